"""docs/databases.md: each block of code does on real databases what the page says of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pages import Page
from sqlalchemy import exc, text

from plungepool import dispose_engine
from plungepool_toolkit.fixtures import Database

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[2] / "docs" / "databases.md").read_text(encoding="utf-8")
BLOCKS = Page("databases").files


@pytest.fixture(autouse=True)
def forget_engines() -> Iterator[None]:
    """Start and end without an engine of another page."""
    dispose_engine()
    yield
    dispose_engine()


def run(name: str) -> dict[str, Any]:
    """Run a block of the page; return the names that it defines."""
    names: dict[str, Any] = {"__name__": name}
    exec(compile(BLOCKS[name], f"docs/databases.md: {name}", "exec"), names)
    return names


def test_every_block_has_a_name_and_a_test() -> None:
    """No block of code stands on the page without a test that runs it, here or in test_pages.py."""
    assert len(BLOCKS) == PAGE.count("```python")
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in BLOCKS if f'"{name}"' not in tests and not name.startswith("test_")] == []


@pytest.fixture
def second(database: Database) -> Iterator[Database]:
    """Another database on the same server."""
    another = Database(database.server, f"{database.name}_second")
    database.execute(f"CREATE DATABASE {another.name}")
    yield another
    database.execute(f"DROP DATABASE {another.name} WITH (FORCE)")


def test_two_databases(database: Database, second: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each engine reaches its own, by the variables with its prefix, and the function holds one connection of each."""
    database.execute("CREATE TABLE things (id bigint); INSERT INTO things VALUES (1), (2), (3)")
    second.execute("CREATE TABLE counts (number bigint)")
    for name, value in (database.variables() | second.variables(prefix="REPORTS_")).items():
        monkeypatch.setenv(name, value)
    two = run("functions/count_things/app.py")
    assert [two["handler"](None, None) for _ in range(2)] == [3, 3]
    assert second.execute("SELECT number FROM counts") == [[3], [3]]
    assert [two[name].pool.checkedin() for name in ("shop", "reports")] == [1, 1]


def test_a_writer_and_a_reader(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader counts, the writer writes, and the reader cannot; the page quotes the error."""
    database.execute("CREATE TABLE things (id bigint); CREATE TABLE counts (number bigint)")
    database.execute("INSERT INTO things VALUES (1), (2)")
    for name, value in (database.variables() | database.variables(prefix="READER_")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("READER_PLUNGEPOOL_ACCESS", "read-only")
    names = run("reader")
    assert names["handler"](None, None) == 2
    assert database.execute("SELECT number FROM counts") == [[2]]
    with pytest.raises(exc.InternalError) as caught, names["reader"].begin() as connection:
        connection.execute(text("INSERT INTO counts VALUES (3)"))
    said = str(caught.value.orig)
    quoted = " ".join(PAGE.split())
    assert [part in quoted for part in said.replace(" (SQLSTATE 25006)", "|").split("|")] == [True, True], said
