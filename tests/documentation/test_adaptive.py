"""docs/adaptive.md: its code and its SQL do what the page says, on a real database."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from plungepool import Settings, dispose_engine, fleet, get_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.fixtures import Database

PAGE = (Path(__file__).parents[2] / "docs" / "adaptive.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def forget_engines() -> Iterator[None]:
    """Start and end without an engine of another page."""
    dispose_engine()
    yield
    dispose_engine()


def test_the_handler_keeps_a_connection_that_the_query_shows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block of Python, and that of SQL: the handler answers, keeps its connection, which the query names."""
    for name, value in (database.variables() | {"PLUNGEPOOL_POOL": "adaptive"}).items():
        monkeypatch.setenv(name, value)
    with get_engine().begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS things (id int)"))
    names: dict[str, Any] = {"__name__": "handler"}
    example, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (query,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "docs/adaptive.md", "exec"), names)
    try:
        assert [names["handler"]({}, None) for _ in range(2)] == [0, 0]
        with names["engine"].begin() as connection:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            held = [(row.pid, row.ticket) for row in connection.execute(text(query))]
            assert [holder for holder, _ in held] == [pid]
            connection.exec_driver_sql("DROP TABLE things")
    finally:
        dispose_engine()


def test_the_numbers_are_the_laws() -> None:
    """Share and leases, as the page has them."""
    assert fleet.SHARE == 0.7
    assert "7 of 10" in PAGE
    leases = [fleet.lease_s(probe) for probe in range(fleet.PROBES)]
    assert "30 seconds (10 or 3 where tickets are scarce)" in PAGE
    assert leases == [30, 10, 3]
    assert Settings.__dataclass_fields__["fleet_limit"].default == 0
