"""docs/slow-queries.md: the slow twin of report_sales, before and after the index that its line asks for."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plungepool import build_engine, slow, why

if TYPE_CHECKING:
    import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "slow-queries.md").read_text(encoding="utf-8")
# 20,000 orders, one of them shipped each minute.
FILL = """
    TRUNCATE shop.orders CASCADE;
    INSERT INTO shop.orders (customer_id, total)
        SELECT (SELECT id FROM shop.customers LIMIT 1), 0 FROM generate_series(1, 20000);
    INSERT INTO shop.shipments
        SELECT id, timestamptz '2026-01-01 00:00Z' + interval '1 minute' * row_number() OVER () FROM shop.orders;
    ANALYZE shop.shipments
"""


def promised(which: str) -> dict[str, Any]:
    """What the page shows of a line."""
    (block,) = re.findall(rf"```json {which}\n(.*?)```", PAGE, re.DOTALL)
    shown: dict[str, Any] = json.loads(block)
    return shown


def test_the_page_shows_what_its_line_says(shop: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The line of the statement on the page, with its index; that sentence, executed; and the plan after it."""
    for sql in FILL.split(";"):
        shop.execute(sql)
    (block,) = re.findall(r"```python\n(from sqlalchemy import text\n\nSHIPPED.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/slow-queries.md", "exec"), names)

    def told() -> dict[str, Any]:
        slow.stop()
        caplog.clear()
        engine = build_engine(shop.settings(slow_query_s=0.001))
        assert slow._watch is not None
        # However fast the machine is, and the index.
        slow._watch.slow_s = 0.0
        try:
            with caplog.at_level(logging.WARNING, "plungepool"), engine.begin() as connection:
                day = {"since": "2026-01-03T00:00Z", "until": "2026-01-04T00:00Z"}
                assert connection.execute(names["SHIPPED"], day).scalar_one() == 24 * 60
        finally:
            engine.dispose()
            slow.stop()
        lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == "plungepool"]
        (line,) = [one for one in lines if one["plungepool"] == why.FORMAT]
        return line

    before, shown = told(), promised("before")
    assert {name: before[name] for name in shown} == shown
    shop.execute(shown["indexes"][0])
    shop.execute("ANALYZE shop.shipments")
    after, shown = told(), promised("after")
    assert {name: after[name] for name in shown} == shown
    assert "2026-01-03" not in caplog.text
