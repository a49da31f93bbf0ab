"""docs/how-it-works.md: its pictures are what the code does, and what goes over the wire."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING

import pytest
from pages import ROOT, Page

if TYPE_CHECKING:
    from types import ModuleType

PAGE = Page("how-it-works")


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """The command that draws."""
    spec = importlib.util.spec_from_file_location("draw_how_it_works", ROOT / "docs/draw_how_it_works.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pictures_are_what_is_drawn_now(drawing: ModuleType) -> None:
    """Each picture of the page is a file, and each file what the command draws of the code as it is."""
    drawn = drawing.pictures()
    assert set(re.findall(r"\]\((\S+\.svg)\)", PAGE.text)) == set(drawn)
    for name, picture in drawn.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == picture, name


def test_the_recorded_round_trips_are_those_of_the_table(drawing: ModuleType) -> None:
    """The picture of the wire and docs/round-trips.md, which another command writes, agree."""
    table = (ROOT / "docs/round-trips.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `SELECT :x`, warm, default isolation \| (\d+) \| (\d+) \| (\d+) \|", table, re.MULTILINE)
    drawn = (ROOT / "docs/how-wire.svg").read_text(encoding="utf-8")
    ours, pg8000, psycopg = row
    said = f"SQLAlchemy + pg8000: {pg8000}; SQLAlchemy + psycopg 3: {psycopg}; Plungepool: {ours}"
    assert f"<desc>round trips: {said}</desc>" in drawn
