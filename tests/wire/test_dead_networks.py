"""Networks that swallow everything, and servers that do not answer: every wait ends, and what it cost is given back."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from black_hole import BlackHole
from fuzz_server import Fault, FuzzServer

from plungepool import wire
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

DEAD_AFTER_S = 2.0
OF_TCP = ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_NODELAY")
SLEEPS = (
    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60)%' AND pid <> "
    "pg_backend_pid()"
)


@pytest.fixture
def address(postgres: Postgres) -> dict[str, Any]:
    return {
        "user": "postgres",
        "host": postgres.host,
        "port": postgres.port,
        "database": "postgres",
        "password": postgres.password,
    }


def slept(postgres: Postgres) -> Any:
    """How many statements still sleep, once the server has had the time to stop them."""
    for _ in range(100):
        (count,) = postgres.execute(SLEEPS)[0]
        if not count:
            break
        time.sleep(0.02)
    return count


@pytest.mark.parametrize("tls", [False, True])
def test_deadline_gives_a_flight_up_and_stops_the_server(
    postgres: Postgres, address: dict[str, Any], tls: bool
) -> None:
    """At the deadline the connection is closed, the server stops the statement, and what it had locked is free."""
    with contextlib.ExitStack() as stack:
        server = postgres
        if tls:
            server = stack.enter_context(Postgres(tls=True))
            context = ssl.create_default_context(cafile=server.ca_file)
            address.update(host="localhost", port=server.port, password=server.password, ssl_context=context)
        connection = stack.enter_context(wire.connect(**address))
        server.execute("DROP TABLE IF EXISTS held")
        server.execute("CREATE TABLE held (a int)")
        cursor = connection.cursor()
        cursor.execute("LOCK TABLE held")
        connection.deadline = time.time() + 0.3
        with pytest.raises(wire.DeadlinePassed) as raised:
            cursor.execute("SELECT pg_sleep(60)")
        assert raised.value.disconnected
        assert connection.closed
        assert slept(server) == 0
        server.execute("SET lock_timeout = '20s'; INSERT INTO held VALUES (1)")


def test_deadline_that_has_passed_sends_nothing(address: dict[str, Any]) -> None:
    """Before the first byte nothing is lost: the connection stays as it is."""
    with wire.connect(**address) as connection:
        connection.deadline = time.time() - 1
        with pytest.raises(wire.DeadlinePassed, match="nothing was sent"):
            connection.cursor().execute("SELECT 1")
        connection.deadline = None
        assert connection.cursor().execute("SELECT 1").fetchone() == (1,)


def test_peer_that_acknowledges_and_never_answers_is_given_up_at_the_deadline() -> None:
    """No time-out of TCP sees it: its packets are acknowledged, keep-alive probes included."""
    with FuzzServer() as server:
        server.plan(query_faults={0: Fault(lambda reply: [], "silent")})
        connection = wire.connect(user="app", host=server.host, port=server.port)
        connection.deadline = time.time() + 0.3
        with pytest.raises(wire.DeadlinePassed):
            connection.cursor().execute("SELECT $1", ("q-1",))
        assert connection.closed


def test_deadline_of_an_earlier_flight_is_gone(address: dict[str, Any]) -> None:
    """A flight in time leaves no time-out behind on the socket."""
    with wire.connect(**address) as connection:
        connection.deadline = time.time() + 0.3
        connection.cursor().execute("SELECT 1")
        connection.deadline = None
        assert connection.cursor().execute("SELECT pg_sleep(0.5), 1").fetchone() == ("", 1)


def test_interrupted_statement_is_cancelled(postgres: Postgres, address: dict[str, Any]) -> None:
    """An exception in the middle of a flight closes the connection, and the server stops what it was doing for it."""

    class Interrupted(BaseException):
        pass

    class Stream:
        def write(self, data: Any) -> None:
            raise Interrupted

    with wire.connect(**address) as connection:
        query = "SELECT repeat('x', 1000000) UNION ALL SELECT pg_sleep(60)::text"
        with pytest.raises(Interrupted):
            connection.cursor().execute(f"COPY ({query}) TO STDOUT", stream=Stream())
        assert connection.closed
        assert slept(postgres) == 0


def test_cancel_reaches_the_server_and_only_where_asked(postgres: Postgres, address: dict[str, Any]) -> None:
    """CancelRequest stops the server's statement; behind a proxy none is sent."""
    with ChaosProxy(postgres.host, postgres.port) as proxy:
        address.update(host=proxy.host, port=proxy.port)
        for cancel, connections in [(True, 2), (False, 1)]:
            proxy.connections = 0
            connection = wire.connect(**address, cancel_on_abandon=cancel)
            connection.deadline = time.time() + 0.2
            with pytest.raises(wire.DeadlinePassed):
                connection.cursor().execute("SELECT pg_sleep(60)")
            assert proxy.connections == connections
            if cancel:
                assert slept(postgres) == 0
    postgres.execute(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> "
        "pg_backend_pid()"
    )


@pytest.mark.parametrize("answer", [b"", b"S", b"R\0\0\0\x08\0\0\0\x03"])
@pytest.mark.parametrize("tls", [False, True])
def test_connect_ends_whatever_the_server_does_not_say(answer: bytes, tls: bool) -> None:
    """One time-out over TCP, TLS and authentication: a server that falls silent in any of them does not hold us."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peers = []

        def serve() -> None:
            peer, _ = listener.accept()
            peers.append(peer)
            peer.recv(1000)
            peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        context = ssl.create_default_context() if tls else None
        with pytest.raises(wire.OperationalError) as raised:
            wire.connect(
                user="app",
                password="x",
                host="127.0.0.1",
                port=listener.getsockname()[1],
                ssl_context=context,
                connect_timeout_s=0.4,
            )
        thread.join()
        for peer in peers:
            peer.close()
    expected = "connect_timeout_s" if not (tls and answer.startswith(b"R")) and not (answer == b"S" and not tls) else ""
    assert expected in str(raised.value)


def test_connect_ends_though_the_server_talks_all_the_time() -> None:
    """A server that sends a byte now and then does not stretch the time-out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                while True:
                    peer.sendall(b"N\0\0\0\x05\0")  # a notice
                    time.sleep(0.02)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(wire.OperationalError, match="authentication had not finished"):
            wire.connect(user="app", host="127.0.0.1", port=listener.getsockname()[1], connect_timeout_s=0.4)
        thread.join()


def test_other_addresses_of_a_name_are_tried(
    postgres: Postgres, address: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host name with several addresses: one that refuses, one that is silent, and one that answers."""
    with socket.socket() as silent, contextlib.ExitStack() as stack:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(3):  # the queue of a listener that accepts nobody is full: SYNs are dropped
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        with socket.socket() as refusing:
            refusing.bind(("127.0.0.1", 0))
            ports = [refusing.getsockname()[1], silent.getsockname()[1], postgres.port]
            entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
            with wire.connect(**address, connect_timeout_s=3) as connection:
                assert connection.cursor().execute("SELECT 1").fetchone() == (1,)


@pytest.fixture
def hole(postgres: Postgres) -> Iterator[Any]:
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    with BlackHole(postgres) as hole:
        yield hole


@pytest.mark.timeout(60)  # the system's own limit is a quarter of an hour
def test_black_hole_costs_seconds(postgres: Postgres, hole: Any) -> None:
    """Waiting for an answer, asking on an idle connection, and pinging: each ends after the time for a dead peer."""
    address = {"user": "postgres", "database": "postgres", "host": hole.host, "port": hole.port}
    address["password"] = postgres.password
    waiting, idle, pinged = (wire.connect(**address, dead_peer_timeout_s=DEAD_AFTER_S) for _ in range(3))
    taken = {}

    def end(name: str, deed: Any) -> None:
        begin = time.monotonic()
        with pytest.raises(wire.OperationalError) as raised:
            deed()
        taken[name] = time.monotonic() - begin
        assert raised.value.disconnected
        assert isinstance(raised.value.__cause__, OSError)

    begun = threading.Event()

    def wait() -> None:
        begun.set()
        waiting.cursor().execute("SELECT pg_sleep(60)")

    threads = [
        threading.Thread(target=end, args=("waiting", wait)),
        threading.Thread(
            target=end, args=("idle", lambda: idle.cursor().execute("SELECT $1::text", ("x" * 10_000_000,)))
        ),
        threading.Thread(target=end, args=("pinged", pinged.ping)),
    ]
    threads[0].start()
    begun.wait()
    time.sleep(0.3)
    hole.swallow()
    for thread in threads[1:]:
        thread.start()
    begin = time.monotonic()
    with pytest.raises(wire.OperationalError, match="TCP had not finished"):
        wire.connect(**address, connect_timeout_s=0.5)
    taken["connect"] = time.monotonic() - begin
    for thread in threads:
        thread.join()
    assert taken.keys() == {"waiting", "idle", "pinged", "connect"}
    print({name: round(seconds, 1) for name, seconds in taken.items()})
    assert waiting.closed
    assert idle.closed
    assert pinged.closed


def test_dead_peer_settings_follow_from_one_number(address: dict[str, Any]) -> None:
    """The kernel gives up before the number of seconds that was asked for, ten by default."""
    for arguments, limit_s in [({}, 10), ({"dead_peer_timeout_s": 3.0}, 3), ({"dead_peer_timeout_s": 30.0}, 30)]:
        with wire.connect(**address, **arguments) as connection:
            sock = connection._transport.sock
            read = {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in OF_TCP}
            # In milliseconds, and not so early that a short outage is taken for a dead peer.
            assert limit_s * 500 <= read["TCP_USER_TIMEOUT"] <= limit_s * 1000
            assert limit_s / 2 <= read["TCP_KEEPIDLE"] + read["TCP_KEEPINTVL"] * read["TCP_KEEPCNT"] <= limit_s
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert read["TCP_NODELAY"] == 1
