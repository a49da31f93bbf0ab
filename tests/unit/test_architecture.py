"""
docs/architecture.md says where everything is and who may import whom: here that is held against the modules themselves.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

_spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
assert _spec is not None
assert _spec.loader is not None
draw_architecture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(draw_architecture)

PACKAGES = list(draw_architecture.FOLDERS)


def importers(what: str) -> set[str]:
    """Return the modules of both packages that import something, those of its own package left out."""
    return {
        one.importer
        for package in PACKAGES
        for one in draw_architecture.read_imports(package)
        if draw_architecture.is_in(one.imported, what) and not draw_architecture.is_in(one.importer, what)
    }


def test_trees_and_drawings_are_what_there_is() -> None:
    """Every module has its line and every line its module; the drawings are drawn from the imports as they are."""
    assert draw_architecture.problems(PAGE) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_import_one_way(package: str) -> None:
    """Each module imports only from those above it in the tree, so that each can be read without those below."""
    place = {module.name: number for number, module in enumerate(draw_architecture.read_tree(PAGE, package))}
    assert [
        f"{one.importer} imports {one.imported}"
        for one in draw_architecture.read_imports(package)
        if one.imported in place and place[one.imported] >= place[one.importer]
    ] == []


def test_what_is_lazy_is_not_imported_with_the_package() -> None:
    """A tree's `lazy` is true, and so is what is not said to be: `import plungepool` imports exactly the others."""
    modules = draw_architecture.read_tree(PAGE, "plungepool")
    later = {
        module.name for module in modules if module.about.startswith((draw_architecture.LAZY, draw_architecture.APART))
    }
    program = "import plungepool, sys; print(*[name for name in sys.modules if name.split('.')[0] == 'plungepool'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == {module.name for module in modules} - later


def test_what_stands_apart_is_imported_by_nobody() -> None:
    """Nothing in the package imports a module that its tree says is never imported."""
    for module in draw_architecture.read_tree(PAGE, "plungepool"):
        if module.about.startswith(draw_architecture.APART):
            assert [name for name in importers(module.name) if draw_architecture.is_in(name, "plungepool")] == []


def rows(heading: str) -> list[tuple[list[str], list[str]]]:
    """Return the rows of the table with this heading: the names of each column."""
    table = PAGE.partition(f"| {heading} |\n|---|---|\n")[2].partition("\n\n")[0]
    return [tuple(re.findall(r"`([\w.]+)`", cell) for cell in line.split("|")[1:3]) for line in table.splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize(("what", "rooms"), rows("what | imported by"), ids=str)
def test_only_those_that_may_import_it_do(what: list[str], rooms: list[str]) -> None:
    """The table names exactly those that import a library or a room; an entry that is no longer needed goes."""
    found = {name for one in what for name in importers(one)}
    assert {name for name in found if not any(draw_architecture.is_in(name, room) for room in rooms)} == set()
    assert {room for room in rooms if not any(draw_architecture.is_in(name, room) for name in found)} == set()


@pytest.mark.parametrize(("rooms", "what"), rows("what | never imports"), ids=str)
def test_some_never_import_others(rooms: list[str], what: list[str]) -> None:
    """What a room must not know, it does not import."""
    found = {name for one in what for name in importers(one)}
    assert [name for name in found if any(draw_architecture.is_in(name, room) for room in rooms)] == []


def test_the_tables_were_read() -> None:
    """Tables that another heading hides would forbid nothing."""
    assert len(rows("what | imported by")) > 3
    assert len(rows("what | never imports")) > 2


def test_links_are_those_of_the_table() -> None:
    """Every link between folders is in the table with where it leads to, and there are no others."""
    table = PAGE.partition("| link | leads to | because |\n|---|---|---|\n")[2].partition("\n\n")[0]
    listed = {match[1]: match[2] for match in re.finditer(r"^\| `([^`]+)` \| `([^`]+)` \|", table, re.MULTILINE)}
    folders = ("bench", "docs", "events", "functions", "infrastructure", "layers", "templates", "tests", "toolkit")
    links = {
        path.relative_to(ROOT).as_posix(): path.resolve().relative_to(ROOT).as_posix()
        for folder in folders
        for path in _below(ROOT / folder)
        if path.is_symlink()
    }
    assert links == listed


def _below(folder: Path) -> Iterator[Path]:
    """Return all that a folder holds, but not what its links lead to."""
    for path in folder.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def test_what_the_last_table_names_is_where_it_says() -> None:
    """Each name that a row of "to add or change" looks for stands in the file beside it, and each page is there."""
    table = PAGE.partition("| to add or change |")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+)` (?:in|of) \[[^\]]+\]\(\.\./([^)]+)\)", table)
    assert len(named) >= 10
    for name, path in named:
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), f"{path} has no {name}"
    for page in re.findall(r"\bdocs/[\w-]+\.md", table):
        assert (ROOT / page).exists(), page
