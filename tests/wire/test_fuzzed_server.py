"""
Whatever a server sends, the wire ends in a classed error or the right row: no hang, no stranger's row, bounded memory.

PLUNGEPOOL_EXAMPLES=20000 looks further than `make test`, and at random.
"""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from damage import CHANGE, apply_changes
from fuzz_server import Fault, FuzzServer, error, message, ready
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.pool import QueuePool

from plungepool import wire

if TYPE_CHECKING:
    from collections.abc import Iterator


DRIVER = "plungepool"
PROFILE = settings(
    max_examples=int(os.environ.get("PLUNGEPOOL_EXAMPLES", "250")),
    derandomize="PLUNGEPOOL_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A server that answers as it is told, for the whole module."""
    with FuzzServer() as fuzz_server:
        yield fuzz_server


def engine_for(server: FuzzServer, **options: Any) -> Any:
    return sqlalchemy.create_engine(
        f"postgresql+{DRIVER}://app@{server.host}:{server.port}/db",
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        connect_args={"connect_timeout_s": 5.0},
        **options,
    )


def connect(server: FuzzServer, **options: Any) -> Any:
    return wire.connect(
        user="app", host=server.host, port=server.port, database="db", **{"connect_timeout_s": 5.0, **options}
    )


FAULT = st.builds(
    lambda changes, how, cut: Fault(apply_changes(changes), how, cut),
    st.lists(CHANGE, min_size=0, max_size=3),
    st.sampled_from(["whole", "whole", "whole", "drip", "close", "reset"]),
    st.none() | st.integers(0, 120),
)


def ask(connection: wire.Connection, number: int) -> Any:
    """Ask for the row of query `number`, by a parameter or by the text alone; return what came."""
    if number % 3 == 0:
        result = connection.exec_driver_sql(f"SELECT 'q-{number}'")
    else:
        result = connection.execute(sqlalchemy.text("SELECT :token"), {"token": f"q-{number}"})
    return [value for row in result.all() for value in row] if result.returns_rows else []


@PROFILE
@given(fault=FAULT, flight=st.integers(0, 3), autocommit=st.booleans(), first=st.integers(0, 2))
def test_spoilt_reply_costs_its_connection_and_nothing_else(
    server: FuzzServer, fault: Fault, flight: int, autocommit: bool, first: int
) -> None:
    """
    After any damage to one reply, no query gets another one's row, errors are classed, and the engine works again.
    """
    server.plan(query_faults={flight: fault})
    engine = engine_for(server, **({"isolation_level": "AUTOCOMMIT"} if autocommit else {}))
    try:
        failures = {}
        for number in range(100 + first, 107 + first):
            try:
                with engine.connect() as connection:
                    values = ask(connection, number)
            except sqlalchemy.exc.DBAPIError as failure:
                failures[number] = failure.orig
            else:
                strangers = {f"q-{other}" for other in range(100, 110) if other != number}
                assert strangers.isdisjoint(values)
        assert all(isinstance(failure, wire.Error) for failure in failures.values())
        assert len(failures) <= 2
        assert set(failures).isdisjoint({number, number - 1}), "the engine did not recover"
    finally:
        engine.dispose()


def test_rollback_that_the_server_refuses_ends_the_session(server: FuzzServer) -> None:
    """Its transaction may be open still: the connection is given up, and the next one of the pool's has its place."""
    server.plan(query_faults={1: Fault(lambda reply: [error("22012", "no"), *reply], "whole")})
    engine = engine_for(server, pool_timeout=1)
    with pytest.raises(sqlalchemy.exc.DBAPIError) as caught, engine.connect() as connection:
        ask(connection, 100)
    assert (caught.value.orig.sqlstate, caught.value.connection_invalidated) == ("22012", True)
    with engine.connect() as another:
        assert ask(another, 101) == ["q-101"]
    engine.dispose()


@PROFILE
@given(fault=FAULT)
def test_spoilt_connect_is_a_classed_error_or_a_connection_that_works(server: FuzzServer, fault: Fault) -> None:
    """Any damage to what the server says while a client connects is a classed error, or harmless."""
    server.plan(startup_fault=fault)
    try:
        connection = connect(server)
    except wire.Error:
        return
    try:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("SELECT $1", ("q-1",))
        assert [value for row in cursor.fetchall() for value in row] == ["q-1"]
    except wire.Error:
        pass
    finally:
        connection.close()


@pytest.mark.parametrize("severity", ["ERROR", "FATAL"])
@pytest.mark.parametrize("position", range(18))
def test_error_at_any_moment_of_a_connect_is_the_error_the_user_sees(
    server: FuzzServer, position: int, severity: str
) -> None:
    """An ErrorResponse at any place among what the server says while a client connects keeps its SQLSTATE."""

    def change(reply: Any) -> list[Any]:
        return [*reply[: position % len(reply)], error("53300", "too many", severity=severity)]

    server.plan(startup_fault=Fault(change, "close"))
    with pytest.raises(wire.OperationalError) as caught:
        connect(server)
    assert caught.value.sqlstate == "53300"


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("parameters", [(), ("q-5",)], ids=["simple", "parameters"])
@pytest.mark.parametrize("position", range(8))
@pytest.mark.parametrize(
    ("code", "severity", "kind"),
    [
        ("23505", "ERROR", wire.IntegrityError),
        ("40001", "ERROR", wire.OperationalError),
        ("22012", "ERROR", wire.DataError),
        ("42P01", "ERROR", wire.ProgrammingError),
        ("0A000", "ERROR", wire.NotSupportedError),
        ("XX000", "ERROR", wire.InternalError),
        ("57P01", "FATAL", wire.OperationalError),
        ("25P03", "FATAL", None),
    ],
)
def test_error_in_any_state_of_a_statement_is_the_error_the_user_sees(
    server: FuzzServer, position: int, code: str, severity: str, kind: str, parameters: Any, autocommit: bool
) -> None:
    """An ErrorResponse at any place of a reply keeps its SQLSTATE and its class; a FATAL one ends the connection."""
    state = b"I" if autocommit else b"E"

    def change(reply: Any) -> list[Any]:
        kept = reply[: min(position, len(reply) - 1)]
        return [*kept, error(code, severity=severity), *([ready(state)] if severity == "ERROR" else [])]

    server.plan(query_faults={0: Fault(change, "whole" if severity == "ERROR" else "close")})
    connection = connect(server)
    try:
        connection.autocommit = autocommit
        cursor = connection.cursor()
        with pytest.raises(kind or wire.Error) as caught:
            cursor.execute("SELECT $1" if parameters else "SELECT 'q-5'", parameters)
            cursor.fetchall()
        assert caught.value.sqlstate == code
    finally:
        connection.close()


def test_fatal_sent_to_an_idle_connection_is_the_error_the_user_sees(server: FuzzServer) -> None:
    """A FATAL that waits unread when the next statement starts is that statement's error, with its SQLSTATE."""
    fatal = error("57P05", "terminating connection due to idle-session timeout", severity="FATAL")
    server.plan(query_faults={0: Fault(lambda reply: [*reply, fatal], "close")})
    connection = connect(server)
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("SELECT $1", ("q-1",))
    assert [list(row) for row in cursor.fetchall()] == [["q-1"]]
    with pytest.raises(wire.OperationalError) as caught:
        cursor.execute("SELECT $1", ("q-2",))
    assert caught.value.sqlstate == "57P05"
    connection.close()


def test_asynchronous_messages_are_welcome_anywhere(server: FuzzServer) -> None:
    """Notices, parameter changes and notifications between any two messages change nothing of the answer."""
    asynchronous = [
        message(b"N", b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0"),
        message(b"S", b"TimeZone\0Europe/Zurich\0"),
        message(b"A", struct.pack("!i", 1) + b"channel\0payload\0"),
    ]

    def change(reply: Any) -> list[Any]:
        return [piece for honest in reply for piece in (*asynchronous, honest)]

    server.plan(startup_fault=None, query_faults=dict.fromkeys(range(10), Fault(change)))
    engine = engine_for(server)
    with engine.connect() as connection:
        for number in (20, 21, 22):
            assert ask(connection, number) == [f"q-{number}"]
    engine.dispose()


@pytest.mark.parametrize("length", [2**24, 2**30, 2**31 - 1])
@pytest.mark.parametrize("kind", [b"D", b"T", b"E", b"S", b"N", b"C", b"Z", b"R", b"1"])
@pytest.mark.parametrize("when", ["connect", "statement"])
def test_huge_length_field_takes_no_memory(server: FuzzServer, length: int, kind: str, when: Any) -> None:
    """A message that claims gigabytes costs memory for what came, not for what was claimed."""
    fault = Fault(lambda reply: [kind + struct.pack("!i", length) + b"x" * 1000], "close")
    server.plan(**({"startup_fault": fault} if when == "connect" else {"query_faults": {0: fault}}))
    connection = None
    tracemalloc.start()
    try:
        with pytest.raises(wire.Error):
            connection = connect(server)
            connection.cursor().execute("SELECT $1", ("q-1",))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        if connection is not None:
            connection.close()
    assert peak < 8_000_000


@pytest.mark.parametrize("count", [2**15 - 1, -1, -(2**15)])
@pytest.mark.parametrize("kind", [b"T", b"D"])
def test_wrong_count_of_columns_is_a_classed_error(server: FuzzServer, kind: str, count: int) -> None:
    """A count of columns that does not fit the message's bytes is a classed error."""

    def change(reply: Any) -> list[Any]:
        return [kind + m[1:5] + struct.pack("!h", count) + m[7:] if m[:1] == kind else m for m in reply]

    server.plan(query_faults={0: Fault(change)})
    connection = connect(server)
    with pytest.raises(wire.Error):
        connection.cursor().execute("SELECT $1", ("q-1",))
    connection.close()


def test_reply_byte_by_byte_is_the_same_reply(server: FuzzServer) -> None:
    """A reply that drips in is read as one that comes at once."""
    server.plan(
        startup_fault=Fault(how="drip"), query_faults=dict.fromkeys(range(10), Fault(how="drip")), drip_s=0.0002
    )
    engine = engine_for(server)
    with engine.connect() as connection:
        for number in (30, 31, 32):
            assert ask(connection, number) == [f"q-{number}"]
    engine.dispose()


def test_connect_that_drips_for_ever_ends_by_its_time_out(server: FuzzServer) -> None:
    """The connect time-out is one for the whole connect: a byte now and then does not extend it."""
    notice = message(b"N", b"SNOTICE\0C00000\0Mhello\0\0")
    server.sent_bytes = 0
    server.plan(startup_fault=Fault(lambda reply: [notice] * 1000, "drip"), drip_s=0.01)
    with pytest.raises(wire.OperationalError):
        connect(server, connect_timeout_s=0.5)
    assert server.sent_bytes < 1000 * len(notice) // 2
    server.plan()


def test_silent_server_ends_by_the_connect_time_out(server: FuzzServer) -> None:
    """A server that takes the connection and says no more is given up, by the client."""
    server.clients_that_left = 0
    server.plan(startup_fault=Fault(lambda reply: reply[:2], "silent"))
    with pytest.raises(wire.OperationalError):
        connect(server, connect_timeout_s=0.3)
    while not server.clients_that_left:
        time.sleep(0.01)  # pytest's own time-out ends a test that waits in vain


def test_flood_of_notices_is_bounded_in_memory(server: FuzzServer) -> None:
    """What nobody reads is not kept: of a hundred thousand notices a hundred are."""
    notice = message(b"N", b"SNOTICE\0C00000\0M" + b"x" * 200 + b"\0\0")
    server.plan(query_faults={0: Fault(lambda reply: [notice * 100_000, *reply])})
    connection = connect(server)
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("SELECT $1", ("q-1",))
    assert [list(row) for row in cursor.fetchall()] == [["q-1"]]
    assert len(connection.notices) == 100
    connection.close()
