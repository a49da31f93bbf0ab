"""docs/observe.md: its examples run; docs/reference/metrics.md holds every number that there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from plungepool import guard_invocation, observe, slow, statements
from plungepool.metrics import METRICS

if TYPE_CHECKING:
    import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "observe.md").read_text(encoding="utf-8")


def test_number_of_metrics_is_right() -> None:
    """What a fleet may cost at most depends on it."""
    assert f"{len(METRICS)} names at most" in PAGE


def test_the_other_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them attaches something, or nothing where tracing is off, as outside Lambda."""
    monkeypatch.setattr(observe._of_invocations, "all", ())
    monkeypatch.setattr(observe._of_flights, "all", ())
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[1:]:
        exec(compile(example, "docs/observe.md", "exec"), {})
    assert len(observe._of_invocations.all) == 1
    assert len(observe._of_flights.all) == 1
    monkeypatch.undo()
    observe._attach()


def test_the_first_example_prints_a_tally(capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands there."""
    (example,) = re.findall(r"```python\n(from plungepool import observe\n\nobserve\.listen.*?)```", PAGE, re.DOTALL)
    before = observe._of_invocations.all
    exec(compile(example, "docs/observe.md", "exec"), {})
    assert len(observe._of_invocations.all) == len(before) + 1
    try:
        with guard_invocation(None):
            pass
    finally:
        observe._of_invocations.all = before
        observe._attach()
    assert "'checkouts': 0" in capsys.readouterr().out


def test_the_saved_queries_read_names_that_are_quoted() -> None:
    """Quotes within JSON are no end: `"order"` is as good a table as any."""
    page = (Path(__file__).parents[2] / "docs" / "slow-queries.md").read_text(encoding="utf-8")
    patterns = [re.compile(one.replace("(?<", "(?P<")) for one in re.findall(r"parse @message /(.*)/\n", page)]
    line = json.dumps(
        {
            "plungepool": slow.FORMAT,
            "fingerprint": "db2bd8c4e1c1",
            "statement": statements.shape('SELECT * FROM shop."order" WHERE id = 1'),
            "took_ms": 2310.4,
            "indexes": ['CREATE INDEX CONCURRENTLY ON shop."order" ("Customer")', "CREATE …"],
        },
        separators=(",", ":"),
    )
    found: dict[str, str] = {}
    for pattern in patterns:
        match = pattern.search(line)
        assert match is not None, pattern.pattern
        found |= match.groupdict()
    assert found["took_ms"] == "2310.4"
    assert json.loads(f'"{found["statement"]}"') == 'select * from shop . "order" where id = ?'
    assert json.loads(f'"{found["index"]}"') == 'CREATE INDEX CONCURRENTLY ON shop."order" ("Customer")'
