"""
The invocation after a freeze succeeds, whatever happened to the peer meanwhile; one line at INFO says what was mended.

In the real runtime client, which is stopped between two invocations.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until
from sqlalchemy import exc, text

from plungepool_toolkit.environment import Environment
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

# It holds as many connections at a time as it is told to, and writes by the last; all of the log is of interest.
FUNCTION = """
import contextlib, logging, time

logging.getLogger().setLevel("INFO")
logging.getLogger("sqlalchemy.pool").setLevel("INFO")
from plungepool import get_engine, guard_invocation
from sqlalchemy import text

engine = get_engine()

@guard_invocation
def handler(event, context):
    begun, pids = time.monotonic(), []
    with contextlib.ExitStack() as stack:
        for _ in range(event["connections"]):
            connection = stack.enter_context(engine.begin())
            pids.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        connection.execute(text("INSERT INTO frozen (event) VALUES (:event)"), {"event": event["name"]})
    return {"pids": pids, "seconds": time.monotonic() - begun, "kept": engine.pool.checkedin()}
"""


class Writer:
    """A writer behind a network, its successor, and one environment that is frozen unless it is invoked."""

    def __init__(self, first: Postgres, second: Postgres, network: ChaosProxy, environment: Environment) -> None:
        self.first, self.second, self.network, self.environment = first, second, network, environment

    def invoke(self, name: str, connections: int = 1) -> tuple[dict[str, Any], list[str]]:
        """Return what the invocation answered and the lines that it logged, by their level and text."""
        invocation = self.environment.invoke({"name": name, "connections": connections})
        assert invocation.error is None, (name, invocation.error, invocation.log)
        logged = [line.split("\t") for line in invocation.log]
        return invocation.payload, [f"{parts[0]} {parts[-1]}" for parts in logged]

    def sessions(self) -> set[int]:
        """Return the server processes that the writer has for the environment."""
        rows = self.first.execute("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'frozen:%'")
        return {pid for (pid,) in rows}


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    """
    A pool of four. Each checkout asks, as after a long freeze: the wall clock of a process cannot be moved.
    """
    task = tmp_path_factory.mktemp("thaw") / "frozen"
    task.mkdir()
    (task / "app.py").write_text(FUNCTION)
    with Postgres() as first, Postgres() as second, ChaosProxy(first.host, first.port) as network:
        for server in (first, second):
            server.execute("CREATE ROLE app LOGIN")
            server.execute("CREATE TABLE frozen (event text)")
            server.execute("GRANT ALL ON frozen TO app")
        variables = {
            "PLUNGEPOOL_URL": f"postgresql://app@{network.host}:{network.port}/postgres",
            "PLUNGEPOOL_PASSWORD": "not asked for",
            "PLUNGEPOOL_TLS": "disable",
            "PLUNGEPOOL_POOL_SIZE": "4",
            "PLUNGEPOOL_PING_AFTER_IDLE_S": "0",
            "PLUNGEPOOL_CONNECT_TIMEOUT_S": "20",
        }
        with Environment(task, variables=variables, timeout_s=60) as environment:
            yield Writer(first, second, network, environment)


def terminated(writer: Writer) -> None:
    """By pg_terminate_backend: no word of the others, if there were any."""
    writer.first.execute("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'app'")


def idle_for_too_long(writer: Writer) -> None:
    """By the role's idle_session_timeout, which a frozen environment cannot see coming."""
    writer.first.execute("ALTER ROLE app SET idle_session_timeout = '50ms'")
    terminated(writer)
    writer.invoke("idle")
    wait_until(lambda: not writer.sessions())
    writer.first.execute("ALTER ROLE app RESET idle_session_timeout")


def hung_up(writer: Writer) -> None:
    """In good order, and without a word."""
    writer.network.hang_up()


def reset(writer: Writer) -> None:
    """By the network."""
    writer.network.reset()


def forgotten(writer: Writer) -> None:
    """By a firewall: what is sent goes nowhere, and nobody says so."""
    writer.network.swallow()


def failed_over(writer: Writer) -> None:
    """The writer has gone without a word, and its name leads to another."""
    writer.network.swallow()
    writer.network.upstream = (writer.second.host, writer.second.port)


def failed_back(writer: Writer) -> None:
    """The writer ends its sessions, and the name leads elsewhere."""
    writer.network.upstream = (writer.first.host, writer.first.port)
    writer.second.execute("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'app'")


def restarted(writer: Writer) -> None:
    """As for a minor version."""
    writer.first.restart()


def crashed(writer: Writer) -> None:
    """As where it ran out of memory."""
    os.kill(writer.first.pid, signal.SIGQUIT)
    wait_until(lambda: not writer.first.running)
    writer.first.start()


ENDED = "the server had closed it (terminating connection due to administrator command (SQLSTATE 57P01))"
IDLE = "the server had closed it (terminating connection due to idle-session timeout (SQLSTATE 57P05))"
HUNG_UP = "the server {place} closed the connection"
SILENT = "no answer to a ping within 2.0 s, after 0 s idle"
STORIES: list[tuple[Callable[[Writer], None], str]] = [
    (terminated, ENDED),
    (idle_for_too_long, IDLE),
    (hung_up, HUNG_UP),
    (reset, "the connection to {place} was lost: Connection reset by peer"),
    (forgotten, SILENT),
    (failed_over, SILENT),
    (failed_back, ENDED),
    (restarted, ENDED),
    (crashed, HUNG_UP),
]


@pytest.mark.parametrize(("strike", "why"), STORIES, ids=[strike.__name__ for strike, _ in STORIES])
def test_the_invocation_after_a_freeze_succeeds(writer: Writer, strike: Callable[[Writer], None], why: str) -> None:
    """With another connection, one line at INFO and nothing else; the next one goes on with that connection."""
    before, _ = writer.invoke("before")
    strike(writer)
    after, logged = writer.invoke("after")
    assert after["pids"] != before["pids"]
    place = f"{writer.network.host}:{writer.network.port}"
    assert logged == [f"[INFO] a kept connection was replaced: {why.format(place=place)}"]
    again, logged = writer.invoke("again")
    assert (again["pids"], logged) == (after["pids"], [])


@pytest.mark.parametrize("strike", [restarted, forgotten], ids=lambda one: one.__name__)
def test_several_stale_connections_are_dropped_at_the_first_proof(
    writer: Writer, strike: Callable[[Writer], None]
) -> None:
    """And not tried one by one: the invocation waits once, and the next one waits for nothing."""
    before, _ = writer.invoke("before", 4)
    assert before["kept"] == 4
    strike(writer)
    after, logged = writer.invoke("after")
    assert after["pids"][0] not in before["pids"]
    assert after["kept"] == 1
    assert [line.rpartition(". ")[2] for line in logged] == ["3 others were dropped with it"]
    again, logged = writer.invoke("again", 4)
    assert not set(again["pids"]) & set(before["pids"])
    assert logged == []


def test_one_of_several_that_was_ended_shows_nothing_of_the_others(writer: Writer) -> None:
    """They are looked at, and are used again."""
    before, _ = writer.invoke("before", 4)
    first, *others = before["pids"]
    writer.first.execute("SELECT pg_terminate_backend($1::int, 60000)", first)
    after, logged = writer.invoke("after", 4)
    assert set(others) < set(after["pids"])
    assert first not in after["pids"]
    assert logged == [f"[INFO] a kept connection was replaced: {ENDED}"]


def test_a_function_with_three_seconds_has_time_to_connect_anew(writer: Writer) -> None:
    """Lambda's own default: the question takes half of it at most."""
    writer.invoke("before")
    forgotten(writer)
    writer.environment.timeout_s = 3.0
    try:
        after, logged = writer.invoke("after")
    finally:
        writer.environment.timeout_s = 60.0
    assert len(after["pids"]) == 1
    (line,) = logged
    assert line.startswith("[INFO] a kept connection was replaced: no answer to a ping within 1.")


def test_writer_that_may_not_write_any_more_takes_its_other_connections_along(
    make_engine: Callable[..., Engine], postgres: Postgres
) -> None:
    """25006: one statement fails, since nobody knows what it did; no other does by what was opened before it."""
    postgres.execute("CREATE TABLE IF NOT EXISTS moved (n int)")
    engine = make_engine(pool_size=3)

    def use(count: int) -> list[int]:
        connections = [engine.connect() for _ in range(count)]
        pids = [one.execute(text("SELECT pg_backend_pid()")).scalar_one() for one in connections]
        for one in connections:
            one.close()
        return pids

    before = use(3)
    postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        postgres.execute("SELECT pg_reload_conf()")
        wait_until(lambda: postgres.execute("SHOW default_transaction_read_only") == [["on"]])

        def write() -> None:
            with engine.begin() as connection:
                connection.execute(text("INSERT INTO moved VALUES (1)"))

        with pytest.raises(exc.OperationalError, match="has the writer moved"):
            write()
    finally:
        postgres.execute("ALTER SYSTEM RESET default_transaction_read_only")
        postgres.execute("SELECT pg_reload_conf()")
        wait_until(lambda: postgres.execute("SHOW default_transaction_read_only") == [["off"]])
    write()
    assert not set(use(3)) & set(before)
