"""guard_invocation: a deadline on both sides, and nothing left for the next invocation."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from sqlalchemy import exc, text

from plungepool import ConnectionLeak, DeadlineExceeded, Unavailable, guard_invocation, invocation, pool
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

BEFORE_17 = Path("/usr/lib/postgresql/15/bin")


class Context:
    """What Lambda hands to a handler."""

    def __init__(self, seconds: float, request_id: str = "1") -> None:
        self._ends_at, self.aws_request_id = time.time() + seconds, request_id

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda's: whole milliseconds."""
        return int((self._ends_at - time.time()) * 1000)


@pytest.fixture(scope="module", params=["18", "15"])
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server that knows transaction_timeout, and one that does not."""
    with Postgres({"max_connections": 30}, binaries=BEFORE_17 if request.param == "15" else None) as server:
        yield server


def test_a_statement_ends_at_the_deadline_and_the_handler_still_answers(engine: Engine) -> None:
    """What runs out is DeadlineExceeded, with the margin left."""

    @guard_invocation
    def handler(event: Any, context: Context) -> tuple[str, int]:
        try:
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_sleep(20)"))
        except DeadlineExceeded:
            return "503", context.get_remaining_time_in_millis()
        return "200", 0

    answer, left = handler({}, Context(1.0))
    assert answer == "503"
    assert 100 < left <= 500
    with engine.begin() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_deadline_that_has_passed_lets_nothing_begin(engine: Engine) -> None:
    """An invocation without time asks for no connection."""
    with guard_invocation(Context(0)), pytest.raises(DeadlineExceeded) as caught:
        engine.connect()
    assert isinstance(caught.value, Unavailable)


def test_a_margin_leaves_half_of_the_time_at_least(make_engine: Callable[..., Engine]) -> None:
    """A function whose time-out is shorter than the margin can use its database all the same."""
    engine = make_engine(deadline_margin_s=30.0)
    with guard_invocation(Context(10)), engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        wire: Any = connection.connection.dbapi_connection
        assert 4 < wire.deadline - time.time() <= 5


@pytest.mark.parametrize("context", [None, object()])
def test_without_a_remaining_time_there_is_no_deadline(engine: Engine, context: Any) -> None:
    """A test, or another caller, has no context of Lambda's; leaks are looked at all the same."""

    @guard_invocation
    def handler(event: Any, context: Any = None) -> int:
        assert invocation.is_running()
        with engine.begin() as connection:
            wire: Any = connection.connection.dbapi_connection
            assert wire.deadline is None
            value: int = connection.execute(text("SELECT 1")).scalar_one()
            return value

    assert handler({}, context) == 1
    assert handler({}) == 1
    assert not invocation.is_running()


def test_background_threads_have_the_deadline_too(engine: Engine) -> None:
    """It is the process's, since an environment has one invocation at a time."""
    seen: list[BaseException] = []

    def work() -> None:
        try:
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_sleep(20)"))
        except DeadlineExceeded as error:
            seen.append(error)

    with guard_invocation(Context(1.0)):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(seen) == 1


def test_waiting_for_a_place_ends_at_the_deadline(make_engine: Callable[..., Engine]) -> None:
    """The checkout's own time-out is longer, and the invocation is over first."""
    engine = make_engine(checkout_timeout_s=20.0)
    with guard_invocation(Context(1.0)), engine.connect(), pytest.raises(DeadlineExceeded, match="taken at"):
        engine.connect()


def test_what_was_not_committed_at_the_deadline_is_rolled_back(engine: Engine, postgres: Postgres) -> None:
    """The handler computes for too long: leaving the block raises, and nothing is kept or left open."""
    with guard_invocation(Context(0.8)), pytest.raises(DeadlineExceeded), engine.begin() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        time.sleep(0.5)
    assert backends(postgres, pid) == []


def test_deadline_off(make_engine: Callable[..., Engine]) -> None:
    """PLUNGEPOOL_DEADLINE=off: the invocation's end bounds nothing."""
    engine = make_engine(deadline="off")
    with guard_invocation(Context(0)), engine.begin() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def limits(connection: Any) -> dict[str, float]:
    """The time-outs of the transaction that runs, in seconds."""
    names = "('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')"
    rows = connection.execute(text(f"SELECT name, setting::int / 1000.0 FROM pg_settings WHERE name IN {names}"))
    return {name: float(seconds) for name, seconds in rows}


def test_the_server_is_told_at_no_round_trip(make_engine: Callable[..., Engine], server: Postgres) -> None:
    """In BEGIN's own exchange, for this transaction alone; in AUTOCOMMIT in the statement's own."""
    engine = make_engine(port=server.port, password=server.password or "unused")
    told = (
        {"transaction_timeout"}
        if not server_before_17(server)
        else {"statement_timeout", "idle_in_transaction_session_timeout"}
    )
    with engine.connect() as connection:
        wire: Any = connection.connection.dbapi_connection
    for autocommit, trips in ((False, 2), (True, 1)):
        with guard_invocation(Context(60)):
            before = wire.flights
            with engine.connect().execution_options(
                **({"isolation_level": "AUTOCOMMIT"} if autocommit else {})
            ) as connection:
                seen = limits(connection)
            assert wire.flights - before == trips
        assert {name for name, seconds in seen.items() if seconds} == told
        assert all(59 < seconds <= 59.6 for seconds in seen.values() if seconds)
    with engine.connect() as connection:
        assert set(limits(connection).values()) == {0}


def test_a_shorter_limit_of_the_users_own_stays(make_engine: Callable[..., Engine], server: Postgres) -> None:
    """The deadline takes no protection away, neither of the engine's nor of the transaction's own."""
    engine = make_engine(port=server.port, password=server.password or "unused", statement_timeout_s=3)
    with guard_invocation(Context(60)), engine.begin() as connection:
        assert limits(connection)["statement_timeout"] == 3
        connection.execute(text("SET LOCAL statement_timeout = '2min'"))
        time.sleep(0.6)
        connection.execute(text("SELECT 1"))
        assert limits(connection)["statement_timeout"] == (
            pytest.approx(59, abs=1.5) if server_before_17(server) else 120
        )


def copy_in(connection: Any) -> None:
    connection.connection.dbapi_connection.cursor().execute("COPY pairs FROM STDIN", stream=io.StringIO("1\t2\n"))


def copy_out(connection: Any) -> None:
    target = io.StringIO()
    connection.connection.dbapi_connection.cursor().execute("COPY pairs TO STDOUT", stream=target)
    assert target.getvalue() == "0\t0\n"


def several(connection: Any) -> None:
    result = connection.exec_driver_sql("INSERT INTO pairs VALUES (1, 1); INSERT INTO pairs VALUES (2, 2), (3, 3)")
    assert (result.rowcount, result.returns_rows) == (2, False)


def semicolon(connection: Any) -> None:
    assert connection.exec_driver_sql("SELECT a, ';' FROM pairs").all() == [(0, ";")]


def isolation(connection: Any) -> None:
    connection.execute(text("/* first */ SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
    assert connection.execute(text("SHOW transaction_isolation")).scalar_one() == "serializable"


def isolation_of_several(connection: Any) -> None:
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; SELECT 1"))


def lock(connection: Any) -> None:
    connection.execute(text("LOCK TABLE pairs"))


@pytest.mark.parametrize(
    "begin",
    [copy_in, copy_out, several, semicolon, isolation, isolation_of_several, lock],
    ids=lambda one: one.__name__,
)
def test_whatever_a_transaction_begins_with(
    make_engine: Callable[..., Engine], server: Postgres, begin: Callable[[Any], None]
) -> None:
    """
    It works as without a guard, and costs nothing more; the server knows the deadline before the transaction idles for
    long.
    """
    server.execute("DROP TABLE IF EXISTS pairs")
    server.execute("CREATE TABLE pairs AS SELECT 0 AS a, 0 AS b")
    engine = make_engine(port=server.port, password=server.password or "unused")
    flights = []
    for seconds in (None, 60):
        with guard_invocation(Context(seconds) if seconds else None), engine.connect() as connection:
            wire: Any = connection.connection.dbapi_connection
            before = wire.flights
            begin(connection)
            flights.append(wire.flights - before)
            seen = limits(connection)
        assert [value for value in seen.values() if value] == (
            [] if not seconds else [pytest.approx(59.5, abs=1)] * (2 if server_before_17(server) else 1)
        )
    assert flights[0] == flights[1]


def test_an_error_of_a_text_of_several_points_into_it(make_engine: Callable[..., Engine], server: Postgres) -> None:
    """And not into what was put before it."""
    engine = make_engine(port=server.port, password=server.password or "unused")
    with guard_invocation(Context(60)), engine.connect() as connection, pytest.raises(exc.DBAPIError) as caught:
        connection.exec_driver_sql("SELECT 1; SELECT nothing")
    assert caught.value.orig.position == 18  # type: ignore[union-attr]


def test_a_lock_comes_before_the_snapshot(make_engine: Callable[..., Engine], server: Postgres) -> None:
    """
    Who has waited for a lock sees what he has waited for, also above READ COMMITTED (PostgreSQL, "Explicit Locking").
    """
    server.execute("DROP TABLE IF EXISTS pairs")
    server.execute("CREATE TABLE pairs AS SELECT 0 AS a, 0 AS b")
    engine = make_engine(port=server.port, password=server.password or "unused", pool_size=2)
    seen = []

    def work() -> None:
        with engine.connect() as second:
            second.execution_options(isolation_level="REPEATABLE READ")
            second.execute(text("LOCK TABLE pairs"))
            seen.append(second.execute(text("SELECT a FROM pairs")).scalar_one())

    with guard_invocation(Context(60)):
        with engine.begin() as first:
            first.execute(text("UPDATE pairs SET a = 1"))
            thread = threading.Thread(target=work)
            thread.start()
            end = time.time() + 5
            while not server.execute("SELECT 1 FROM pg_locks WHERE NOT granted") and time.time() < end:
                time.sleep(0.02)
        thread.join(10)
    assert seen == [1]


def test_a_transaction_that_a_text_begins_in_autocommit_is_told(
    make_engine: Callable[..., Engine], server: Postgres
) -> None:
    """What the server was told in an earlier transaction is over."""
    engine = make_engine(port=server.port, password=server.password or "unused")
    with guard_invocation(Context(60)), engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("SELECT 1"))
        connection.exec_driver_sql("BEGIN; SELECT 1")
        connection.execute(text("SELECT 1"))
        assert any(limits(connection).values())
        connection.exec_driver_sql("ROLLBACK")


@pytest.mark.parametrize(
    "statement",
    ["VACUUM", "CREATE DATABASE guarded", "CALL commits()", "SELECT 1", "INSERT INTO t VALUES (1)", "/* a */ SELECT 1"],
)
def test_every_statement_runs_in_autocommit(
    make_engine: Callable[..., Engine], server: Postgres, statement: str
) -> None:
    """Also what manages transactions by itself, and stands in none with another statement."""
    server.execute("CREATE TABLE IF NOT EXISTS t (n int)")
    server.execute("CREATE OR REPLACE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$")
    server.execute("DROP DATABASE IF EXISTS guarded")
    engine = make_engine(port=server.port, password=server.password or "unused")
    with guard_invocation(Context(60)), engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text(statement))


CHILD = """
import os, sys, time
from plungepool import Settings, build_engine, guard_invocation
from sqlalchemy import text

class Context:
    aws_request_id = "1"
    def get_remaining_time_in_millis(self): return 2000

port, what = int(sys.argv[1]), sys.argv[2]
password = os.environ["PGPASSWORD"]
engine = build_engine(Settings(host="127.0.0.1", port=port, user="postgres", password=password, tls="disable"))
with guard_invocation(Context()), engine.connect() as connection:
    if what == "autocommit":
        connection.execution_options(isolation_level="AUTOCOMMIT")
    pid = connection.connection.dbapi_connection.backend_pid
    if what != "statement in a transaction":
        connection.execute(text("UPDATE locked SET n = n + 1"))
    print(pid, flush=True)
    if what == "idle in transaction":
        time.sleep(60)
    connection.execute(text("UPDATE locked SET n = n + 1 WHERE pg_sleep(60) IS NOT NULL"))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("what", ["idle in transaction", "statement in a transaction", "autocommit"])
def test_an_environment_that_ended_leaves_no_lock_and_no_statement(
    server: Postgres, what: str, end: signal.Signals
) -> None:
    """
    Killed or frozen for ever: a second after its deadline the server has no backend, no lock and no statement of it.
    """
    server.execute("DROP TABLE IF EXISTS locked")
    server.execute("CREATE TABLE locked AS SELECT 1 AS n")
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(server.port), what],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PGPASSWORD": server.password or "unused"},
    ) as child:
        try:
            assert child.stdout is not None
            pid = int(child.stdout.readline())
            deadline = time.time() + 1.5
            while time.time() < deadline - 0.5 and backends(server, pid) == ["idle"]:
                time.sleep(0.01)  # until its statement is under way
            os.kill(child.pid, end)
            while time.time() < deadline + 1 and backends(server, pid):
                time.sleep(0.05)
            # Before PostgreSQL 17 the end of the statement leaves a session whose transaction is over, and which holds
            # nothing.
            over = {"idle", "idle in transaction (aborted)"} if server_before_17(server) else {"idle"}
            assert [state for state in backends(server, pid) if state not in over] == []
            assert server.execute("SELECT count(*) FROM pg_locks WHERE pid = $1", pid) == [[0]]
        finally:
            child.kill()


def server_before_17(server: Postgres) -> bool:
    return int(server.execute("SHOW server_version_num")[0][0]) < 170000


def backends(server: Postgres, pid: int) -> list[str]:
    return [row[0] for row in server.execute("SELECT state FROM pg_stat_activity WHERE pid = $1", pid)]


def test_a_connection_that_was_dropped_is_returned(
    engine: Engine, pool_mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody refers to it but itself: it is rolled back and returned, and the line is told once."""
    gc.disable()
    try:

        @guard_invocation
        def handler(event: Any, context: Any) -> int:
            connection = engine.connect()
            pid: int = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            return pid

        first = handler({}, Context(60))
    finally:
        gc.enable()
    [record] = [record for record in caplog.records if "still checked out" in record.message]
    assert f"{__file__}:" in record.message
    assert "in handler: its transaction was rolled back and it was returned" in record.message
    with engine.connect() as connection:
        second = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    assert (first == second) is (pool_mode == "tiny")


def test_a_connection_that_is_still_held_is_closed(
    engine: Engine, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A global that keeps one: the server rolls back, the next invocation has its own, and the old one works no more.
    """
    kept = []

    @guard_invocation
    def handler(event: Any, context: Any) -> int:
        connection = engine.connect()
        kept.append(connection)
        pid: int = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        return pid

    pid = handler({}, Context(60))
    assert "it was closed, because something still refers to it" in caplog.text
    end = time.time() + 5
    while backends(postgres, pid) and time.time() < end:
        time.sleep(0.02)
    assert backends(postgres, pid) == []
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    with pytest.raises(exc.DBAPIError):
        kept[0].execute(text("SELECT 1"))
    kept[0].close()


def test_a_thread_that_still_works_loses_its_connection(engine: Engine, postgres: Postgres) -> None:
    """Its statement is stopped on the server, and it cannot go on with it in the next invocation."""
    started, ended = threading.Event(), []

    def work() -> None:
        with engine.connect() as connection:
            pids.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            started.set()
            try:
                connection.execute(text("SELECT pg_sleep(60)"))
            except exc.DBAPIError as error:
                ended.append(error)

    pids: list[int] = []
    thread = threading.Thread(target=work)
    with guard_invocation(Context(60)):
        thread.start()
        started.wait(10)
        time.sleep(0.2)
    thread.join(10)
    assert not thread.is_alive()
    assert len(ended) == 1
    end = time.time() + 5
    while backends(postgres, pids[0]) and time.time() < end:
        time.sleep(0.02)
    assert backends(postgres, pids[0]) == []


@pytest.mark.parametrize("name", ["is_out", "where", "close"])
def test_an_exception_at_the_end_leaves_it_to_the_next_invocation(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A signal handler's, in the middle of looking for leaks: the next invocation has its connection all the same."""
    engine = make_engine(checkout_timeout_s=0.2)
    kept = []

    @guard_invocation
    def handler(event: Any, context: Any) -> None:
        kept.append(engine.connect())

    def strike(_: Any) -> None:
        raise LookupError

    with monkeypatch.context() as patch:
        patch.setattr(pool._HandedOut, name, strike)
        with pytest.raises(LookupError):
            handler({}, Context(60, "1"))
    for number in ("2", "3"):
        with guard_invocation(Context(60, number)), engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
    assert caplog.text.count("still checked out") == 1
    with pytest.raises(exc.DBAPIError):
        kept[0].execute(text("SELECT 1"))


def test_leaks_can_be_errors(make_engine: Callable[..., Engine]) -> None:
    """PLUNGEPOOL_LEAKS=raise, for tests: the error names the line, and the connection is back all the same."""
    engine = make_engine(leaks="raise", checkout_timeout_s=0.2)
    kept = []

    @guard_invocation
    def handler(event: Any, context: Any) -> None:
        kept.append(engine.connect())

    with pytest.raises(ConnectionLeak, match=r"test_guard.py:\d+ in handler"):
        handler({}, Context(60))
    engine.connect().close()


def test_nothing_is_said_where_nothing_leaks(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Also with many checkouts, and where the handler fails."""
    with caplog.at_level(logging.INFO, logger="plungepool"), guard_invocation(Context(60)):
        for _ in range(100):
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
    with pytest.raises(LookupError), guard_invocation(Context(60)), engine.begin():
        raise LookupError
    assert caplog.records == []


def test_guards_within_guards_are_one(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The outermost ends the invocation; the shorter deadline holds within."""
    context = Context(60)
    with guard_invocation(context):
        connection = engine.connect()
        with guard_invocation(context):
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        with guard_invocation(Context(2)):
            assert (invocation.deadline() or 0) - time.time() <= 2
        assert (invocation.deadline() or 0) - time.time() > 50
        connection.close()
    assert caplog.records == []


def test_an_invocation_that_never_ended_binds_no_other() -> None:
    """An exception at a bad moment may leave a guard entered: the next request has its own."""
    struck = guard_invocation(Context(0, "1"))
    struck.__enter__()
    with guard_invocation(Context(60, "2")):
        assert (invocation.deadline() or 0) > time.time() + 50
    assert not invocation.is_running()
    struck = guard_invocation(Context(0))
    struck.__enter__()
    del struck
    gc.collect()
    assert not invocation.is_running()


def test_a_context_that_is_a_mock() -> None:
    """It can be called, and is a context all the same."""
    with guard_invocation(mock.Mock(**{"get_remaining_time_in_millis.return_value": 60_000})):
        assert (invocation.deadline() or 0) > time.time() + 50


def test_async_handlers(engine: Engine) -> None:
    """The invocation lasts until the coroutine has ended."""

    @guard_invocation
    async def handler(event: Any, context: Any) -> bool:
        await asyncio.sleep(0)
        with engine.connect():
            return invocation.is_running()

    assert asyncio.run(handler({}, Context(60)))
    assert not invocation.is_running()


def test_the_handler_keeps_its_name_and_its_arguments() -> None:
    """As functools.wraps leaves them, for whoever looks."""

    @guard_invocation
    def handler(event: Any, context: Any, *, extra: int = 1) -> Any:
        """Answers."""
        return event, extra

    assert (handler.__name__, handler.__doc__) == ("handler", "Answers.")
    assert handler({"a": 1}, Context(60), extra=2) == ({"a": 1}, 2)
    assert handler(event=1, context=Context(60)) == (1, 1)
