"""docs/observe.md: its examples run; docs/reference/metrics.md holds every number that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from plungepool import guard_invocation, observe
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
