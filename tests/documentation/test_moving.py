"""docs/from-psycopg.md, docs/from-pg8000.md: a line of the tables works with the peer, and gives here what is said."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pg8000.dbapi
import psycopg
import pytest
from pages import Page
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from sqlalchemy import NullPool, column, create_engine, exc, select, table, text

from plungepool import dispose_engine, get_engine
from plungepool_toolkit.fixtures import Database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.postgres import Postgres

PAGES = {name: Page(f"from-{name}") for name in ("psycopg", "pg8000")}
NAMES: dict[str, Any] = {
    "Jsonb": Jsonb, "NullPool": NullPool, "ZoneInfo": ZoneInfo, "column": column, "create_engine": create_engine,
    "date": date, "dict_row": dict_row, "get_engine": get_engine, "select": select, "sql": sql, "table": table,
    "text": text,
}  # fmt: skip


def cells(line: str) -> list[str]:
    """Return the cells of a row, as they are read."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def code_of(cell: str) -> str:
    """Return the code at a cell's beginning, or nothing."""
    found = re.match("`([^`]+)`", cell)
    return found[1] if found else ""


ROWS = [
    (peer, *cells(line)) for peer, page in PAGES.items() for line in re.findall(r"^\| `.*\|$", page.text, re.MULTILINE)
]


@pytest.fixture(scope="module")
def server(postgres: Postgres) -> Iterator[Database]:
    """A database for all lines: each finds its table as the first one did."""
    database = Database(postgres, "moving")
    postgres.execute(f"CREATE DATABASE {database.name}")
    yield database
    postgres.execute(f"DROP DATABASE {database.name} WITH (FORCE)")


@pytest.fixture
def orders(server: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A table to ask, and the variables of a function."""
    server.execute(
        "DROP TABLE IF EXISTS orders; CREATE TABLE orders"
        " (id bigint GENERATED ALWAYS AS IDENTITY, item text, code varchar, price numeric, tags jsonb, placed date);"
        "INSERT INTO orders (item, code, tags) VALUES ('towel', '5', '[1]')"
    )
    for name, value in server.variables().items():
        monkeypatch.setenv(name, value)
    dispose_engine()
    yield server
    dispose_engine()


def names_of(connection: Any, cursor: Any) -> dict[str, Any]:
    """Return what a line of the tables may use."""
    return NAMES | {"connection": connection, "cursor": cursor}


def run_with_psycopg(database: Database, code: str) -> None:
    """Run a line of the first column: on psycopg's own connection, or on SQLAlchemy's over psycopg."""
    server = database.server
    if "text(" in code or "exec_driver_sql" in code:
        engine = create_engine(server.url(database=database.name).replace("postgresql:", "postgresql+psycopg:"))
        engine = create_engine(engine.url.set(password=server.password), poolclass=NullPool)
        with engine.connect() as connection:
            eval(code, names_of(connection, None))
        return
    with psycopg.connect(server.url(database=database.name), password=server.password) as connection:
        result = eval(code, names_of(connection, connection.cursor()))
        if hasattr(result, "close"):
            result.close()


def run_with_pg8000(database: Database, code: str) -> None:
    """Run a line of the first column on SQLAlchemy's connection over pg8000, or on its cursor."""
    engine = create_engine(
        database.server.url(database=database.name).replace("postgresql:", "postgresql+pg8000:"), poolclass=NullPool
    )
    with create_engine(engine.url.set(password=database.server.password), poolclass=NullPool).connect() as connection:
        eval(code, names_of(connection, connection.connection.cursor()))


@pytest.mark.parametrize(("peer", "with_peer", "error", "instead"), ROWS)
def test_a_row_says_what_happens(peer: str, with_peer: str, error: str, instead: str, orders: Database) -> None:
    """The first column works with the peer, gives the error of the second here, and the third works here."""
    code = code_of(with_peer)
    if code.startswith(("get_engine", "create_engine")):  # no statement that a peer could run
        with pytest.raises(Exception) as caught:
            eval(code, NAMES)
    else:
        (run_with_psycopg if peer == "psycopg" else run_with_pg8000)(orders, code)
        with get_engine().connect() as connection, pytest.raises(Exception) as caught:
            eval(code, names_of(connection, connection.connection.cursor()))
    raised = getattr(caught.value, "orig", None) or caught.value
    said, expected = f"{type(raised).__name__}: {raised}", code_of(error)
    assert said.startswith(expected.removesuffix("…")) if expected.endswith("…") else said == expected
    if code_of(instead):
        with get_engine().connect() as connection:
            eval(code_of(instead), names_of(connection, connection.connection.cursor()))


def test_there_are_rows() -> None:
    """Both pages have their tables, and no row is lost by how it is written."""
    assert len(ROWS) == sum(page.text.count("\n| `") for page in PAGES.values()) > 30


DIFFERENT = {
    "psycopg": [
        ("SELECT interval '1 month'", None, "30 days, 0:00:00", "1 months"),
        ("SELECT 'infinity'::timestamptz", None, exc.DataError, "infinity"),
    ],
    "pg8000": [
        ("SELECT CAST('24:00' AS time)", None, ValueError, "24:00:00"),
        ("UPDATE orders SET price = :x RETURNING price", 1234567890.1234567, "1234567890.1234567", "1234567890.12346"),
    ],
}


@pytest.mark.parametrize(("peer", "row"), [(peer, row) for peer, rows in DIFFERENT.items() for row in rows])
def test_what_differs_without_an_error(peer: str, row: tuple[str, Any, Any, str], orders: Database) -> None:
    """The lists below the tables: what the peer gives, and what is given here."""
    statement, value, theirs, ours = row
    url = create_engine(orders.server.url(database=orders.name).replace("postgresql:", f"postgresql+{peer}:")).url
    found = []
    for engine in (create_engine(url.set(password=orders.server.password), poolclass=NullPool), get_engine()):
        with engine.connect() as connection:
            try:
                result = connection.execute(text(statement), {"x": value} if value is not None else {}).scalar_one()
            except (exc.DataError, ValueError) as error:
                found.append(type(error))
            else:
                found.append(str(result))
    assert found == [theirs, ours]


def test_a_commit_after_a_failed_statement(orders: Database) -> None:
    """psycopg rolls back without a word, pg8000 has an error of its own, and here it is 25P02."""
    server = orders.server
    peers: dict[str, Any] = {
        "psycopg": psycopg.connect(server.url(database=orders.name), password=server.password),
        "pg8000": pg8000.dbapi.connect("postgres", "127.0.0.1", orders.name, server.port, server.password),
        "ours": get_engine().raw_connection(),
    }
    for connection in peers.values():
        with pytest.raises(Exception, match="division by zero"):
            connection.cursor().execute("SELECT 1 / 0")
    peers["psycopg"].commit()
    with pytest.raises(pg8000.dbapi.InterfaceError, match="in failed transaction block"):
        peers["pg8000"].commit()
    with pytest.raises(Exception, match="25P02"):
        peers["ours"].commit()
    for connection in peers.values():
        connection.close()


def test_a_decimal_keeps_its_digits(orders: Database) -> None:
    """What the pages say to pass instead of a float."""
    with get_engine().begin() as connection:
        statement = text("UPDATE orders SET price = :x RETURNING price")
        exact = Decimal("1234567890.1234567")
        assert connection.execute(statement, {"x": exact}).scalar_one() == exact
