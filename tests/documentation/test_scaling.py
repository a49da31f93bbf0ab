"""docs/scaling.md: its tables and pictures are what the simulation gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plungepool_toolkit.command import application
from plungepool_toolkit.simulate import study
from plungepool_toolkit.simulate.model import Function
from plungepool_toolkit.simulate.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")

_spec = importlib.util.spec_from_file_location("draw_scaling", ROOT / "docs" / "draw_scaling.py")
assert _spec is not None
assert _spec.loader is not None
draw_scaling = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(draw_scaling)


@pytest.mark.parametrize("environments", [size for size in draw_scaling.SIZES if size <= 1000])
def test_what_is_answered_is_what_the_simulation_gives(environments: int) -> None:
    """The rows of the table that are quick to make."""
    row = draw_scaling.row_of_answered(environments, draw_scaling.answered(environments))
    assert row in draw_scaling.part(PAGE, "answered").splitlines()


def test_the_smallest_databases_knees_are_what_the_simulation_gives() -> None:
    """The first row, prices included."""
    row = draw_scaling.row_of_knees(1.0, draw_scaling.knees(1.0))
    assert row in draw_scaling.part(PAGE, "knees").splitlines()


def test_the_time_of_an_attempt_moves_the_knee() -> None:
    """As the page says."""
    where = draw_scaling.database(draw_scaling.ACU, "direct")
    adaptive = study.knee(STRATEGIES["adaptive"], where, Function(connect_timeout_s=14.0), draw_scaling.SEEDS)
    before = draw_scaling.numbers(PAGE, "knees")[draw_scaling.ACUS.index(draw_scaling.ACU)]
    assert f"{adaptive:,} environments in place of {before[5] // 100}" in PAGE.replace("\n", " ")


def test_the_pictures_are_drawn_from_the_tables() -> None:
    """Each picture of the page is a file, and each file what the table says."""
    drawn = draw_scaling.pictures(PAGE)
    assert {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in drawn} == drawn
    assert [name for name in drawn if f"]({name})" not in PAGE] == []


def commands() -> list[list[str]]:
    """Return the page's commands that need no file."""
    lines = [line.split() for line in PAGE.splitlines() if line.startswith("plungepool simulate")]
    return [line[1:] for line in lines if not {"--curve", "--calibrate", "--compare", "--knee"} & set(line)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_pages_commands_run(command: list[str]) -> None:
    """Each ends with its advice."""
    done = CliRunner().invoke(application, command, env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    assert done.stdout.rstrip().endswith(".")


def test_the_pages_commands_were_found() -> None:
    """A page that is written otherwise would be tested by nothing."""
    assert len(commands()) == 3
