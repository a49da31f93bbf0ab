"""PLUNGEPOOL_SQL_COMMENT: who asks stands behind each statement, breaks none, and keeps pg_stat_statements' groups."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc, text

from plungepool import Settings, build_engine, comments, guard_invocation, statements
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

ROOT = "1-5759e988-bd862e3fe1be46a994272793"
XRAY = f"Root={ROOT};Parent=53995c3f42cd8ad8;Sampled=1"
TRACEPARENT = "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01"


class Context:
    """What Lambda hands to a handler."""

    def __init__(self, request_id: str) -> None:
        self.aws_request_id = request_id


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that counts statements."""
    with Postgres({"shared_preload_libraries": "pg_stat_statements"}) as running:
        running.execute("CREATE EXTENSION pg_stat_statements")
        yield running


@pytest.fixture
def make(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    """Build engines as in a function whose name wants to end the comment."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "orders*/; DROP TABLE t --'\"%")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_VERSION", "7")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", XRAY)
    engines: list[Engine] = []

    def build(**more: Any) -> Engine:
        given = {"user": "postgres", "password": server.password or "unused", "tls": "disable", "sql_comment": "on"}
        engines.append(build_engine(Settings(host=server.host, port=server.port, **(given | more))))
        return engines[-1]

    yield build
    for engine in engines:
        engine.dispose()


def test_one_statement_with_several_comments_is_one_to_pg_stat_statements(
    server: Postgres, make: Callable[..., Engine]
) -> None:
    """The same queryid for each request and for none; the text that the server shows elsewhere holds the comment."""
    engine = make()
    server.execute("SELECT pg_stat_statements_reset()")
    for request in ("first", "second", "third"):
        with guard_invocation(Context(request)), engine.begin() as connection:
            row = connection.execute(
                text("SELECT query, :value ::int FROM pg_stat_activity WHERE pid = pg_backend_pid()"), {"value": 1}
            ).one()
        assert row[0].endswith(
            f"/*function='orders%2A%2F%3B%20DROP%20TABLE%20t%20--%27%22%25',request_id='{request}',"
            f"traceparent='{TRACEPARENT}',version='7'*/"
        )
        assert statements.shape(row[0]).endswith("where pid = pg_backend_pid ( )")
    with make(sql_comment="off").begin() as connection:
        connection.execute(
            text("SELECT query, :value ::int FROM pg_stat_activity WHERE pid = pg_backend_pid()"), {"value": 1}
        )
    counted = server.execute("SELECT queryid, calls FROM pg_stat_statements WHERE query LIKE 'SELECT query, %'")
    assert [int(calls) for _, calls in counted] == [4]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1", [(1,)]),
        ("SELECT 1;", [(1,)]),
        ("SELECT 1 -- to the end of the line", [(1,)]),
        ("SELECT 1 /* and /* nested */ */", [(1,)]),
        ("SELECT 1; SELECT 2 -- two", [(2,)]),
        ("-- before\nSELECT '/*'", [("/*",)]),
        ("SELECT $tag$ -- $tag$", [(" -- ",)]),
        ("(SELECT 1) UNION ALL (SELECT 1)", [(1,), (1,)]),
        ("VALUES (1)", [(1,)]),
        ("WITH one AS (SELECT 1 AS n) SELECT n FROM one", [(1,)]),
        ("DO $$ BEGIN PERFORM 1; END $$", None),
        ("CREATE TEMPORARY TABLE made (n int)", None),
        ("SAVEPOINT s", None),
    ],
)
def test_no_statement_is_broken(make: Callable[..., Engine], statement: str, expected: object) -> None:
    """Comments at its end, semicolons, several statements, quotes of any kind: each gives what it gave without it."""
    with guard_invocation(Context("*/ SELECT 1/0; --")), make().connect() as connection:
        cursor: Any = connection.connection.cursor()
        cursor.execute(statement)
        assert (cursor.fetchall() if cursor.description else None) == expected


def test_copy_executemany_and_cursors_on_the_server_work(make: Callable[..., Engine]) -> None:
    """COPY by the simple protocol, one parse for many rows, DECLARE: with comments as without."""
    with guard_invocation(Context("1")), make().begin() as connection:
        cursor: Any = connection.connection.cursor()
        cursor.execute("CREATE TEMPORARY TABLE copied (n int)")
        cursor.execute("COPY copied FROM STDIN -- from here", stream=io.StringIO("1\n2\n"))
        cursor.executemany("INSERT INTO copied VALUES ($1)", [(3,), (4,)])
        written = io.BytesIO()
        cursor.execute("COPY copied TO STDOUT", stream=written)
        assert written.getvalue() == b"1\n2\n3\n4\n"
        rows = connection.execution_options(stream_results=True).execute(text("SELECT n FROM copied ORDER BY n"))
        assert [n for (n,) in rows] == [1, 2, 3, 4]


def test_a_name_that_utf_8_does_not_hold_breaks_nothing(make: Callable[..., Engine]) -> None:
    """What is wrong in it is a question mark, in a comment that goes out."""
    with guard_invocation(Context("a\ud800*/")), make().connect() as connection:
        shown = connection.exec_driver_sql(
            "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        ).scalar_one()
    assert "request_id='a%3F%2A%2F'" in shown


def test_an_error_says_the_same_as_without(make: Callable[..., Engine]) -> None:
    """The position counts in the program's text, and the comment is in no message."""
    said = []
    for switch in ("on", "off"):
        with make(sql_comment=switch).connect() as connection, pytest.raises(exc.ProgrammingError) as caught:
            connection.exec_driver_sql("SELECT a FROM missing")
        orig: Any = caught.value.orig
        said.append((str(orig), orig.position))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (XRAY, TRACEPARENT),
        (f"Root={ROOT};Parent=53995c3f42cd8ad8;Sampled=0;Lineage=a:b", f"{TRACEPARENT[:-2]}00"),
        (f"Root={ROOT}", None),
        ("Root=2-x;Parent=y", None),
        ("", None),
        (";;=", None),
    ],
)
def test_xrays_header_becomes_a_traceparent(header: str, expected: str | None) -> None:
    """In the W3C's form, and nothing where it names no trace."""
    assert comments.traceparent(header) == expected
