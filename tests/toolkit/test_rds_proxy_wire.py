"""The stand-in for RDS Proxy, message by message, before a real PostgreSQL."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import ssl
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in import Raw, client, extended, message, query, scram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plungepool_toolkit.postgres import Postgres
    from plungepool_toolkit.rds_proxy import RdsProxy

    Start = Callable[..., RdsProxy]

pytestmark = pytest.mark.usefixtures("proxied_roles")


@pytest.fixture
def raw(rds_proxy: Start) -> Iterator[tuple[RdsProxy, Raw]]:
    """A stand-in with two database connections and a raw client."""
    proxy = rds_proxy(auth="password", users={"proxied": "hush"}, max_database_connections=2)
    one = Raw(proxy)
    yield proxy, one
    one.close()


LENGTHS = [-(2**31), -5, -4, -2, -1, 0, 3, 2**30, 2**31 - 1]


@pytest.mark.parametrize("kind", ["Q", "P", "B", "D", "E", "S", "X", "d", "c", "f", "p", "F", "H", "C", "?", "\0"])
def test_a_message_of_no_possible_length_ends_its_client_alone(raw: tuple[RdsProxy, Raw], kind: str) -> None:
    """
    Negative, shorter than itself or longer than PostgreSQL takes: 08P01 and good-bye, in and out of a transaction.
    """
    proxy, one = raw
    for length in LENGTHS:
        for first in (b"", query("BEGIN")):
            bad = Raw(proxy)
            bad.sock.sendall(first + kind.encode() + struct.pack("!i", length) + b"\0" * 8)
            said = bad.file.read()
            assert (length, b"08P01" in said, b"invalid message length" in said) == (length, True, True)
            bad.close()
            one.sock.sendall(query("SELECT 1"))
            assert one.kinds() == "TDCZ"
    assert proxy.counters.refused == {"malformed": 2 * len(LENGTHS)}


@pytest.mark.parametrize("length", [*LENGTHS, 65536])
def test_a_password_of_no_possible_length_is_refused(raw: tuple[RdsProxy, Raw], length: int) -> None:
    """Before a client is known it is given no room: a token has some 2 KB, and 64 KB are what PostgreSQL reads."""
    proxy, one = raw
    with pytest.raises(psycopg.OperationalError) as raised:
        Raw(proxy, b"p" + struct.pack("!i", length) + b"\0" * 8)
    assert "08P01" in str(raised.value)
    one.sock.sendall(query("SELECT 1"))
    assert one.kinds() == "TDCZ"


def test_whatever_a_client_sends_the_others_are_answered(raw: tuple[RdsProxy, Raw]) -> None:
    """Generated messages, well framed and not, cut off and not: no task fails, and the client beside goes on."""
    proxy, one = raw
    failures: list[Any] = []
    assert proxy._loop is not None
    proxy._loop.set_exception_handler(lambda loop, context: failures.append(context))
    kinds = st.sampled_from(list(b"QPBDESXdcfpFHC")).map(lambda kind: bytes([kind])) | st.binary(min_size=1, max_size=1)
    bodies = st.binary(max_size=30) | st.sampled_from(
        [
            b"\0",
            b"SELECT 1\0",
            b"\0SELECT $1::int\0\0\0",
            b"\0\0\0\0\0\0\0\0",
            b"S\0",
            b"\0\0\0\0\0",
            b"COPY proxied_rows FROM STDIN\0",
        ]
    )
    framed = st.builds(lambda kind, body: kind + struct.pack("!i", len(body) + 4) + body, kinds, bodies)
    lying = st.builds(
        lambda kind, length, body: kind + struct.pack("!i", length) + body, kinds, st.integers(-9, 40), bodies
    )

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.lists(framed | lying, min_size=1, max_size=6).map(b"".join), st.integers(0, 3))
    def send(flight: bytes, cut: int) -> None:
        bad = Raw(proxy)
        bad.sock.sendall(flight[: len(flight) - cut])
        one.sock.sendall(query("SELECT 1"))
        assert one.kinds() == "TDCZ"
        bad.close()

    send()
    one.sock.sendall(query("SELECT 1"))
    assert one.kinds() == "TDCZ"
    gc.collect()  # a task that failed says so when it is forgotten
    assert [str(context) for context in failures] == []


def test_start_up_messages_of_any_kind_leave_the_others_alone(raw: tuple[RdsProxy, Raw]) -> None:
    """Generated ones, before TLS and after it."""
    proxy, one = raw
    failures: list[Any] = []
    assert proxy._loop is not None
    proxy._loop.set_exception_handler(lambda loop, context: failures.append(context))
    codes = st.sampled_from([196608, 196610, 80877102, 80877103, 80877104, 0, -1])
    fields = st.binary(max_size=30) | st.lists(st.sampled_from(["user", "proxied", "database", "\0", "é", ""])).map(
        lambda parts: "\0".join(parts).encode() + b"\0\0"
    )
    lengths = st.none() | st.integers(-9, 12_000)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(codes, fields, lengths, st.booleans())
    def send(code: int, body: bytes, length: int | None, secure: bool) -> None:
        startup = struct.pack("!ii", len(body) + 8 if length is None else length, code) + body
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=30))
            if secure:
                sock.sendall(struct.pack("!ii", 8, 80877103))
                assert sock.recv(1) == b"S"
                context = ssl.create_default_context(cafile=str(proxy.ca_file))
                sock = stack.enter_context(context.wrap_socket(sock, server_hostname="localhost"))
            sock.sendall(startup)
            one.sock.sendall(query("SELECT 1"))
            assert one.kinds() == "TDCZ"

    send()
    gc.collect()
    assert [str(context) for context in failures] == []


def test_several_syncs_in_one_write(raw: tuple[RdsProxy, Raw]) -> None:
    """Each is a transaction of its own, answered in order."""
    proxy, one = raw
    one.sock.sendall(b"".join(extended(f"SELECT {number}") for number in range(50)))
    rows = [body for kind, body in one.until_ready(50) if kind == "D"]
    assert [int(body[6:]) for body in rows] == list(range(50))
    assert proxy.counters.transactions == 50
    assert proxy.counters.unnamed_statement_outlived == 0


def test_a_statement_pins_by_its_length_from_one_byte_over_16_kb(raw: tuple[RdsProxy, Raw]) -> None:
    """16,384 bytes are 16 KB."""
    proxy, one = raw
    for size, pinned in ((16_384, {}), (16_385, {"over 16 KB": 1})):
        one.sock.sendall(query("SELECT 1 --".ljust(size, "x")))
        one.until_ready()
        assert dict(proxy.counters.pinned) == pinned


def test_an_unnamed_statement_is_looked_for_where_a_client_is_pinned_too(raw: tuple[RdsProxy, Raw]) -> None:
    """Parsed over one connection and bound over the one that the client was pinned to since: it is not there."""
    proxy, one = raw
    parse, bind, execute = message("P", b"\0SELECT 1\0\0\0"), message("B", b"\0" * 8), message("E", b"\0" * 5)
    one.sock.sendall(parse + message("S") + query("SET application_name = 'x'"))
    one.until_ready(2)
    one.sock.sendall(bind + execute + message("S"))
    one.until_ready()
    assert proxy.counters.unnamed_statement_outlived == 1
    one.sock.sendall(parse + message("S") + bind + execute + message("S"))
    assert one.kinds(2) == "1Z2DCZ"
    assert proxy.counters.unnamed_statement_outlived == 1


def test_a_client_that_waits_for_an_answer_is_not_idle(raw: tuple[RdsProxy, Raw]) -> None:
    """Time passes while the database works: the answer still comes, and the client is closed when it idles after it."""
    proxy, one = raw
    one.sock.sendall(query("SELECT pg_sleep(0.3)"))
    while not proxy.counters.borrows:
        time.sleep(0.01)
    proxy.advance(proxy.idle_client_timeout_s + 1)
    assert one.kinds() == "TDCZ"
    proxy.advance(proxy.idle_client_timeout_s + 1)
    assert one.message()[0] == "E"


def test_whoever_says_or_hears_something_is_not_idle(raw: tuple[RdsProxy, Raw]) -> None:
    """Time counts from the client's last message, within a batch too, and from the end of the last answer."""
    proxy, one = raw
    proxy.advance(proxy.idle_client_timeout_s - 1)
    one.sock.sendall(message("P", b"\0SELECT pg_sleep(0.3)\0\0\0") + message("H"))
    assert one.message()[0] == "1"
    proxy.advance(2)
    one.sock.sendall(message("B", b"\0" * 8) + message("E", b"\0" * 5) + message("S"))
    while not proxy._call(lambda: next(iter(proxy._sessions))._conversation.awaiting):
        time.sleep(0.01)
    proxy.advance(proxy.idle_client_timeout_s)
    assert one.kinds() == "2DCZ"
    proxy.advance(2)
    assert proxy.counters.idle_clients_closed == 0


def test_begin_rides_along(raw: tuple[RdsProxy, Raw]) -> None:
    """A Query and an extended flight in one write are one transaction on one connection."""
    proxy, one = raw
    one.sock.sendall(query("BEGIN") + extended("SELECT pg_backend_pid()"))
    first = one.until_ready(2)
    assert [body for kind, body in first if kind == "Z"] == [b"T", b"T"]
    one.sock.sendall(extended("SELECT pg_backend_pid()") + query("COMMIT"))
    second = one.until_ready(2)
    pids = {body for kind, body in first + second if kind == "D"}
    assert len(pids) == 1
    assert proxy.counters.transactions == 1


def test_after_an_error_the_rest_is_skipped_until_sync(raw: tuple[RdsProxy, Raw]) -> None:
    """What follows in the same batch is not run, what comes after its Sync is."""
    proxy, one = raw
    one.sock.sendall(extended("SELECT 1/0", sync=False) + extended("SELECT 5") + extended("SELECT 6"))
    assert one.kinds() == "1EZ"
    assert one.kinds() == "12TDCZ"
    assert proxy.counters.transactions == 2


def test_an_error_in_a_transaction_keeps_the_connection(raw: tuple[RdsProxy, Raw]) -> None:
    """A failed transaction is still a transaction, until ROLLBACK."""
    proxy, one = raw
    one.sock.sendall(
        query("BEGIN") + extended("SELECT 1/0") + extended("SELECT 1") + query("ROLLBACK") + query("SELECT 2")
    )
    states = [body for kind, body in one.until_ready(5) if kind == "Z"]
    assert states == [b"T", b"E", b"E", b"I", b"I"]
    assert proxy.counters.transactions == 2


def test_a_flush_is_answered_before_sync(raw: tuple[RdsProxy, Raw]) -> None:
    """The connection is kept while a batch is open."""
    proxy, one = raw
    one.sock.sendall(extended("SELECT 7", sync=False) + message("H"))
    assert [one.message()[0] for _ in range(5)] == list("12TDC")
    one.sock.sendall(message("S"))
    assert one.kinds() == "Z"
    assert proxy.counters.transactions == 1


def test_large_messages_and_long_replies_pass(raw: tuple[RdsProxy, Raw]) -> None:
    """A parameter of 5 MB, a reply of 20 MB."""
    _proxy, one = raw
    value = b"x" * 5_000_000
    one.sock.sendall(extended("SELECT length($1), repeat($1, 4)", value))
    (row,) = [body for kind, body in one.until_ready() if kind == "D"]
    assert row[6:13] == b"5000000"
    assert len(row) == 2 + 4 + 7 + 4 + 20_000_000


def test_batches_larger_than_every_buffer(raw: tuple[RdsProxy, Raw]) -> None:
    """3,000 batches of 4 KB, answered by as much, while the client writes without reading for a while."""
    proxy, one = raw
    flight = b"".join(extended("SELECT $1::text", b"%08d" % number + b"y" * 4000) for number in range(3000))
    rows = [body for kind, body in one.exchange(flight, 3000) if kind == "D"]
    assert [int(body[6:14]) for body in rows] == list(range(3000))
    assert proxy.counters.transactions == 3000


def held(proxy: RdsProxy) -> int:
    """Return how many bytes the stand-in holds for those who do not take them, once it has stopped to take more."""

    def count() -> int:
        peers = [*proxy._peers, *(server.peer for server in proxy.pool.servers)]
        return sum(len(peer.inbox) + peer.transport.get_write_buffer_size() for peer in peers)

    sizes = [-1, -2, -3]
    while len(set(sizes[-3:])) > 1 or not sizes[-1]:
        time.sleep(0.1)
        sizes.append(proxy._call(count))
        assert len(sizes) < 300
    return sizes[-1]


def test_a_client_that_does_not_read_is_waited_for(raw: tuple[RdsProxy, Raw]) -> None:
    """60 MB for somebody who takes nothing stay with the database; others are served, and then all of it comes."""
    proxy, one = raw
    one.sock.sendall(query("SELECT repeat('x', 1000000) FROM generate_series(1, 60)"))
    assert held(proxy) < 10_000_000
    other = Raw(proxy)
    other.sock.sendall(query("SELECT 1"))
    assert other.kinds() == "TDCZ"
    other.close()
    assert sum(len(body) for kind, body in one.until_ready() if kind == "D") > 60_000_000


def test_a_database_that_does_not_read_is_waited_for(raw: tuple[RdsProxy, Raw]) -> None:
    """40 MB for a backend that is stopped stay with the client."""
    proxy, one = raw
    one.sock.sendall(query("BEGIN") + query("SELECT pg_backend_pid()"))
    pid = next(int(body[6:]) for kind, body in one.until_ready(2) if kind == "D")
    flight = b"".join(extended("SELECT length($1)", b"y" * 1_000_000, sync=False) for _ in range(40)) + message("S")
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(one.sock.sendall, flight)
            try:
                assert held(proxy) < 10_000_000
                assert not sending.done()
            finally:
                os.kill(pid, signal.SIGCONT)
            sending.result(timeout=60)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert one.kinds() == "12TDC" * 40 + "Z"


def test_a_last_word_of_the_database_is_the_last(raw: tuple[RdsProxy, Raw], postgres: Postgres) -> None:
    """Who was told why the session ends is not told once more that it has ended."""
    _proxy, one = raw
    one.sock.sendall(query("BEGIN") + query("SELECT pg_backend_pid()"))
    pid = next(int(body[6:]) for kind, body in one.until_ready(2) if kind == "D")
    postgres.execute("SELECT pg_terminate_backend($1, 10000)", pid)
    kind, body = one.message()
    assert (kind, b"C57P01" in body) == ("E", True)
    assert one.file.read() == b""


def copy_data(*rows: bytes) -> bytes:
    return b"".join(message("d", row + b"\n") for row in rows)


@pytest.mark.parametrize("early_sync", [True, False], ids=["sync with execute", "sync at the end"])
def test_copy_in_by_the_extended_protocol(raw: tuple[RdsProxy, Raw], early_sync: bool) -> None:
    """The server ignores a Sync while it takes data: the one after the data is answered."""
    proxy, one = raw
    for turn in range(3):
        one.sock.sendall(query("TRUNCATE proxied_rows"))
        one.until_ready()
        flight = extended("COPY proxied_rows FROM STDIN", sync=early_sync)
        if turn:  # everything in one write; and, at first, waiting for the server's consent
            one.sock.sendall(flight + copy_data(b"1\ta", b"2\tb") + message("c") + message("S") + extended("SELECT 9"))
            assert one.kinds(2) == "12nGCZ12TDCZ"
        else:
            one.sock.sendall(flight if early_sync else flight + message("H"))
            assert [one.message()[0] for _ in range(4)] == list("12nG")
            one.sock.sendall(copy_data(b"1\ta", b"2\tb") + message("c") + message("S"))
            assert one.kinds() == "CZ"
        one.sock.sendall(query("SELECT count(*) FROM proxied_rows"))
        assert (one.until_ready())[1][1][-1:] == b"2"
    one.sock.sendall(query("TRUNCATE proxied_rows"))
    one.until_ready()
    assert proxy.counters.pinned == {}


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_a_copy_that_fails_leaves_the_conversation_in_step(raw: tuple[RdsProxy, Raw], protocol: str) -> None:
    """Data that comes after the error is ignored, and the next batch has its own answer."""
    _proxy, one = raw
    sql = "COPY proxied_rows FROM STDIN"
    data = copy_data(b"no number\ta", *[b"1\ta"] * 500) + message("c")
    if protocol == "simple":
        one.sock.sendall(query(sql) + data)
        assert one.kinds() == "GEZ"
    else:
        one.sock.sendall(extended(sql) + data + message("S"))
        assert one.kinds() == "12nGEZ"
    one.sock.sendall(extended("SELECT 1"))
    assert one.kinds() == "12TDCZ"


def test_a_copy_that_is_refused_leaves_the_conversation_in_step(raw: tuple[RdsProxy, Raw]) -> None:
    """The server never asked for the data that the client sent along: two Syncs, two answers."""
    _proxy, one = raw
    one.sock.sendall(
        extended("COPY nowhere FROM STDIN") + copy_data(b"1\ta") + message("c") + message("S") + query("SELECT 1")
    )
    assert one.kinds() == "12nEZ"
    assert one.kinds() == "Z"
    assert one.kinds() == "TDCZ"


@pytest.mark.parametrize("first", ["SELECT 1", "SET application_name = 'x'"], ids=["multiplexed", "pinned"])
def test_a_copy_after_one_that_was_refused(raw: tuple[RdsProxy, Raw], first: str) -> None:
    """
    The data of the first, which nobody wants, is not taken for the end of the second; also where one connection is
    kept.
    """
    _proxy, one = raw
    one.sock.sendall(query(first))
    one.until_ready()
    one.sock.sendall(query("COPY nowhere FROM STDIN") + copy_data(b"1\ta") + message("c"))
    assert one.kinds() == "EZ"
    one.sock.sendall(query("COPY proxied_rows FROM STDIN") + copy_data(b"1\ta") + message("c"))
    assert one.kinds() == "GCZ"
    one.sock.sendall(query("TRUNCATE proxied_rows"))
    assert one.kinds() == "CZ"


def test_copies_by_psycopg(rds_proxy: Start) -> None:
    """In and out, more than the buffers hold."""
    proxy = scram(rds_proxy, max_database_connections=1)
    with client(proxy) as connection, client(proxy) as other:
        with connection.cursor() as cursor, cursor.copy("COPY proxied_rows FROM STDIN") as copy:
            for number in range(20_000):
                copy.write_row((number, "z" * 100))
        assert other.execute("SELECT count(*) FROM proxied_rows").fetchone() == (20_000,)
        with connection.cursor() as cursor, cursor.copy("COPY proxied_rows TO STDOUT") as copy:
            assert sum(1 for _row in copy.rows()) == 20_000
        with pytest.raises(ValueError, match="changes its mind"):
            with connection.cursor() as cursor, cursor.copy("COPY proxied_rows FROM STDIN") as copy:
                raise ValueError("the client changes its mind")
        connection.execute("TRUNCATE proxied_rows")
    assert proxy.counters.pinned == {}


def test_pipelines_of_psycopg(rds_proxy: Start) -> None:
    """Statements sent ahead, errors among them."""
    proxy = scram(rds_proxy, max_database_connections=2)
    with client(proxy) as connection:
        with connection.pipeline() as pipeline:
            cursors = [connection.execute("SELECT %s::int", (number,)) for number in range(200)]
            pipeline.sync()
            assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(200)]
        with pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline():
            connection.execute("SELECT 1/0")
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert proxy.counters.pinned == {}


def test_cancel_requests_are_ignored(rds_proxy: Start) -> None:
    """The statement runs to its end."""
    proxy = scram(rds_proxy)
    with client(proxy) as connection, ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: connection.execute("SELECT pg_sleep(0.5), 1").fetchone()[1])
        while proxy.counters.borrows == 0:
            time.sleep(0.01)
        connection.cancel_safe()  # cancel() would wait with the interpreter locked, and the stand-in with it
        assert running.result() == 1
    assert proxy.counters.cancel_requests_ignored == 1
