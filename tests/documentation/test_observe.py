"""docs/observe.md: its examples run, and its table holds every number that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from plungepool import guard_invocation, observe
from plungepool.metrics import METRICS

if TYPE_CHECKING:
    import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "observe.md").read_text(encoding="utf-8")


def test_every_number_of_a_tally_is_explained() -> None:
    """The table holds the tally's fields, all of them and no others."""
    table = PAGE.partition("| number | what it counts |\n|---|---|\n")[2].partition("\n\n")[0]
    first = " ".join(line.split("|")[1] for line in table.splitlines())
    parts = {"name_s", "tcp_s", "tls_s", "authentication_s"}
    assert set(re.findall(r"`(\w+)`", first)) | parts == {*observe.FIELDS, "reconnects", "errors", "failure"}
    assert all(f"`{part}`" in table for part in parts)


def test_every_metric_is_in_the_table() -> None:
    """With its number and its unit, in the code's order."""
    table = PAGE.partition("| metric | number | unit |\n|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [f"| {name} | `{field}` | {unit.value} |" for field, (name, unit) in METRICS.items()]
    assert set(METRICS) <= {*observe.FIELDS, "errors", "reconnects"}
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
