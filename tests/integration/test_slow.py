"""The slow-query line: what it says, what it never holds, and that nobody else is told anything."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from plungepool import Settings, build_engine, guard_invocation, observe, recorder, slow, statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from plungepool.observe import Tally
    from plungepool_toolkit.postgres import Postgres

SECRET = "unmistakable-4711"


class Context:
    """What Lambda hands to a handler."""

    aws_request_id = "8f5"

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda's."""
        return 30000


@pytest.fixture
def make(postgres: Postgres) -> Iterator[Callable[..., Engine]]:
    """Build engines that watch for slow queries anew."""
    slow.stop()
    engines: list[Engine] = []

    def build(**changes: Any) -> Engine:
        settings = {"url": postgres.url(), "tls": "disable"} | changes
        engines.append(build_engine(Settings(**settings)))
        return engines[-1]

    yield build
    for engine in engines:
        engine.dispose()
    slow.stop()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """What was written, line by line."""
    caplog.set_level(logging.DEBUG, "plungepool")
    return lambda: [
        json.loads(one.getMessage())
        for one in caplog.records
        if one.getMessage().startswith(f'{{"plungepool":"{slow.FORMAT}"')
    ]


def ask(engine: Engine, sql: str, **parameters: object) -> None:
    """Execute a statement, to be found by this line."""
    with engine.begin() as connection:
        connection.execute(text(sql), parameters)


def test_a_slow_statement_is_one_line(
    make: Callable[..., Engine],
    lines: Callable[[], list[dict[str, Any]]],
    tallies: list[Tally],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shape, fingerprint, time, rows, round trips, function, request and the line that asked; no value."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "report_sales")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_VERSION", "7")
    engine = make(slow_query_s=0.05)
    sql = f"SELECT pg_sleep(0.06), '{SECRET}' AS a, CAST(:b AS text) AS b FROM generate_series(1, 1)"

    @guard_invocation
    def handler(_event: object, _context: Context) -> int:
        ask(engine, "SELECT CAST(:b AS text)", b=SECRET)
        ask(engine, sql, b=SECRET)
        ask(engine, "SELECT CAST(:b AS text)", b=SECRET)
        return 200

    assert handler({}, Context()) == 200
    (line,) = lines()
    assert 60 <= line.pop("took_ms") < 10_000
    assert line.pop("where").startswith(f"{__file__}:{ask.__code__.co_firstlineno + 3} in ask")
    assert line == {
        "plungepool": slow.FORMAT,
        "fingerprint": statements.fingerprint(sql.replace(":b", "$1")),
        "statement": "select pg_sleep ( ? ) , ? as a , cast ( ? as text ) as b from generate_series ( ? , ? )",
        "rows": 1,
        # Behind an earlier statement and its COMMIT.
        "round_trips": 3,
        "database": "postgres",
        "function": "report_sales",
        "version": "7",
        "request_id": "8f5",
    }
    assert SECRET not in json.dumps(lines())
    assert [one.slow_queries for one in tallies] == [1]


def test_no_value_is_told_where_a_backslash_escapes_in_each_string(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    """By standard_conforming_strings = off a string ends elsewhere: for the line, the recorder and a trace."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    stop = observe.to_opentelemetry(provider)
    recorder.start({}, 0.05)
    try:
        with guard_invocation(Context()), make(slow_query_s=0.05).connect() as connection:
            connection.exec_driver_sql("SET standard_conforming_strings = off")
            for name in ("relname", "relkind"):
                connection.exec_driver_sql(
                    f"SELECT {name}, pg_sleep(0.06), 'a\\' {SECRET} ', E'\\'' FROM pg_class WHERE relname = 'pg_class'"
                )
    finally:
        recorder.stop()
        stop()
    first = "select relname , pg_sleep ( ? ) , ? , ? from pg_class where relname = ?"
    assert [one["statement"] for one in lines()] == [first, first.replace("relname ,", "relkind ,")]
    assert len({one["fingerprint"] for one in lines()}) == 2
    assert recorder.FORMAT in caplog.text
    assert any(first in str((one.attributes or {}).get("db.query.text")) for one in spans.get_finished_spans())
    told = f"{caplog.text}{[one.to_json() for one in spans.get_finished_spans()]}"
    assert SECRET.partition("-")[0] not in told


@pytest.mark.parametrize(
    ("options", "sql", "fingerprint"),
    [
        ({"access": "read-only"}, "SELECT pg_sleep(0.3)", "SELECT pg_sleep(1)"),
        ({}, "SELECT pg_sleep(0.3); SELECT 1", "SELECT pg_sleep(1); SELECT 2"),
        ({}, "SELECT pg_sleep(0.3)", "SELECT pg_sleep(1)"),
    ],
    ids=["read-only", "script", "plain"],
)
@pytest.mark.parametrize("isolation", ["AUTOCOMMIT", "READ COMMITTED"])
def test_what_goes_with_it_is_no_part_of_it(
    make: Callable[..., Engine],
    lines: Callable[[], list[dict[str, Any]]],
    options: dict[str, Any],
    sql: str,
    fingerprint: str,
    isolation: str,
) -> None:
    """BEGIN, the deadline, COMMIT: the fingerprint is the statement's, however it was sent."""
    engine = make(slow_query_s=0.2, **options)

    @guard_invocation
    def handler(_event: object, _context: Context) -> None:
        with engine.connect().execution_options(isolation_level=isolation) as connection:
            connection.exec_driver_sql(sql)

    handler({}, Context())
    (line,) = lines()
    assert line["fingerprint"] == statements.fingerprint(fingerprint)
    assert line["statement"] == statements.shape(fingerprint)


def test_one_that_fails_says_by_what(make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]]) -> None:
    """By its SQLSTATE; the error's own text may hold values, and is not written."""
    engine = make(slow_query_s=0.02)
    with pytest.raises(DBAPIError):
        ask(engine, "SELECT CAST(:b || CAST(pg_sleep(0.03) AS text) AS int)", b=SECRET)
    (line,) = lines()
    assert line["error"] == "22P02"
    assert line["request_id"] is None
    assert SECRET not in json.dumps(line)


@pytest.mark.parametrize("slow_s", [0.0, 60.0])
def test_nothing_else_is_written(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]], slow_s: float
) -> None:
    """Where it is switched off, and where nothing is slow."""
    ask(make(slow_query_s=slow_s), "SELECT pg_sleep(0.01)")
    assert lines() == []


def test_a_ping_and_a_connect_are_no_statements(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """However long they take: the recorder and the tally tell of them."""
    engine = make(slow_query_s=0.001, ping_after_idle_s=0.0)
    for _ in range(2):
        with engine.connect():
            time.sleep(0.01)
    assert lines() == []


def test_the_shortest_time_counts_for_a_process(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """Several engines have one watch, and a statement one line."""
    patient, strict = make(slow_query_s=60.0), make(slow_query_s=0.02)
    for engine in (patient, strict):
        ask(engine, "SELECT pg_sleep(0.03)")
    # On a busy machine a COMMIT may be slow, too.
    assert [one["statement"] for one in lines() if one["statement"] != "commit"] == ["select pg_sleep ( ? )"] * 2
