"""
Direct TLS, and more than the start-up message in one write: the stand-in for RDS Proxy beside a real PostgreSQL 18.
"""

from __future__ import annotations

import contextlib
import gc
import select
import socket
import ssl
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from stand_in import GSS_REQUEST, SSL_REQUEST, answer, client, message, password, query, scram, secure, startup

from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., RdsProxy]

pytestmark = pytest.mark.usefixtures("proxied_roles")


@pytest.fixture(scope="module")
def servers(postgres: Postgres, postgresql_18: Path) -> Iterator[dict[str, Any]]:
    """A stand-in and a PostgreSQL 18 for each way to ask for a password."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Any] = {}
        ways: tuple[tuple[Any, Any], ...] = (("password", "password"), ("scram", "scram-sha-256"))
        for auth, authentication in ways:
            found[f"stand-in {auth}"] = stack.enter_context(RdsProxy(postgres, auth=auth, users={"proxied": "hush"}))
            server = Postgres({"max_connections": 10}, tls=True, authentication=authentication, binaries=postgresql_18)
            found[f"PostgreSQL 18 {auth}"] = stack.enter_context(server)
            server.execute("CREATE ROLE proxied LOGIN PASSWORD 'hush'")
        yield found


DIRECT = {"direct": True}
SAME_ANSWERS = {
    "pipelined": ("password", {}, startup() + password(), "R3 R0 Z"),
    "pipelined, with a query": ("password", {}, startup() + password() + query("SELECT 1"), "R3 R0 Z T D C Z"),
    "pipelined, a wrong password": ("password", {}, startup() + password("other") + query("SELECT 1"), "R3 E28P01 end"),
    "pipelined, no password but a query": ("password", {}, startup() + query("SELECT 1"), "R3 E08P01 end"),
    "a password without its NUL": ("password", {}, startup() + message("p", b"hush"), "R3 E08P01 end"),
    "a password with two": ("password", {}, startup() + message("p", b"hush\0\0"), "R3 E08P01 end"),
    "a password with one in it": ("password", {}, startup() + message("p", b"hu\0sh\0"), "R3 E08P01 end"),
    "nothing for a password": ("password", {}, startup() + message("p"), "R3 E08P01 end"),
    "a password where SCRAM is asked for": ("scram", {}, startup() + password(), "R10 E08P01 end"),
    "no text where SCRAM is asked for": ("scram", {}, startup() + message("p", b"hush"), "R10 E08P01 end"),
    "a query where SCRAM is asked for": ("scram", {}, startup() + query("SELECT 1"), "R10 E08P01 end"),
    "direct": ("password", DIRECT, startup() + password(), "R3 R0 Z"),
    "direct, a password where SCRAM is asked for": ("scram", DIRECT, startup() + password(), "R10 E08P01 end"),
    "direct, one protocol of two": ("password", DIRECT | {"alpn": ("h2", "postgresql")}, startup() + password(),
    "R3 R0 Z"),
    "direct, without ALPN": ("password", DIRECT | {"alpn": ()}, startup() + password(), "end"),
    "asked for, without ALPN": ("password", {"alpn": ()}, startup() + password(), "R3 R0 Z"),
    "TLS in TLS": ("password", {}, SSL_REQUEST, "E0A000 end"),
    "GSSAPI in TLS": ("password", {}, GSS_REQUEST, "E0A000 end"),
}  # fmt: skip


@pytest.mark.parametrize("server", ["stand-in", "PostgreSQL 18"])
@pytest.mark.parametrize("case", SAME_ANSWERS)
@pytest.mark.parametrize("pieces", [False, True], ids=["one write", "byte by byte"])
def test_a_start_up_is_answered_as_by_postgresql(servers: dict[str, Any], server: str, case: str, pieces: bool) -> None:
    """What comes along with the start-up message waits for its turn, in whatever pieces it comes."""
    auth, how, flight, expected = SAME_ANSWERS[case]
    with secure(servers[f"{server} {auth}"], **how) as sock:
        with contextlib.suppress(OSError):  # it may have hung up already
            for at in range(len(flight)) if pieces else ():
                sock.sendall(flight[at : at + 1])
            if not pieces:
                sock.sendall(flight)
        try:
            assert answer(sock, expected.count("Z") or 1) == expected
        except ConnectionResetError:
            # What it did not read any more turned its good-bye into a reset; whatever it said may be lost with that.
            assert pieces
            assert expected.endswith("end")


@pytest.mark.parametrize("server", ["stand-in", "PostgreSQL 18"])
@pytest.mark.parametrize("how", [{}, DIRECT], ids=["asked for", "direct"])
def test_after_the_handshake_it_is_the_clients_turn(servers: dict[str, Any], server: str, how: dict[str, bool]) -> None:
    """
    Session tickets, say, would come before the start-up message or behind it, and make one round trip more of it or
    not.
    """
    with secure(servers[f"{server} password"], **how) as sock:
        assert select.select([sock], [], [], 0.2)[0] == []
        sock.sendall(startup() + password())
        assert answer(sock) == "R3 R0 Z"


@pytest.mark.parametrize("server", ["stand-in", "PostgreSQL 18"])
def test_direct_tls_for_another_protocol_is_cut_off(servers: dict[str, Any], server: str) -> None:
    """PostgreSQL sends an alert in the handshake, the stand-in closes after it: not a message in either case."""
    with contextlib.suppress(ssl.SSLError), secure(servers[f"{server} password"], direct=True, alpn=("h2",)) as sock:
        assert sock.selected_alpn_protocol() is None
        with contextlib.suppress(OSError):
            sock.sendall(startup() + password())
        assert answer(sock) == "end"


@pytest.mark.parametrize("server", ["stand-in", "PostgreSQL 18"])
@pytest.mark.parametrize("request_", [SSL_REQUEST, GSS_REQUEST], ids=["TLS", "GSSAPI"])
def test_encryption_in_direct_tls_is_declined_once(servers: dict[str, Any], server: str, request_: bytes) -> None:
    """N, and the start-up message may follow; the second time it is no request any more."""
    with secure(servers[f"{server} password"], direct=True) as sock:
        sock.sendall(request_)
        assert sock.recv(1) == b"N"
        sock.sendall(startup() + password())
        assert answer(sock) == "R3 R0 Z"
    with secure(servers[f"{server} password"], direct=True) as sock:
        sock.sendall(request_)
        assert sock.recv(1) == b"N"
        sock.sendall(request_)
        assert answer(sock) == "E0A000 end"


@pytest.mark.parametrize("server", ["stand-in", "PostgreSQL 18"])
@pytest.mark.parametrize("request_", [SSL_REQUEST, GSS_REQUEST], ids=["TLS", "GSSAPI"])
def test_data_behind_a_request_for_encryption_is_refused(servers: dict[str, Any], server: str, request_: bytes) -> None:
    """In direct TLS as anywhere: what is sent before the answer could be somebody else's."""
    with secure(servers[f"{server} password"], direct=True) as sock:
        sock.sendall(request_ + startup() + password())
        assert answer(sock).removeprefix("N ") == "E08P01 end"


@pytest.mark.parametrize("auth", ["iam", "scram", "password"])
def test_libpq_connects_by_direct_tls(rds_proxy: Start, auth: str) -> None:
    """Verified, with each way to prove who one is."""
    proxy = rds_proxy(auth=auth, users={"proxied": "hush"})
    with client(proxy, sslnegotiation="direct") as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("proxied",)
    assert proxy.counters.refused == {}


def test_direct_tls_saves_a_round_trip(rds_proxy: Start) -> None:
    """And a password that is sent along saves another."""
    proxy = rds_proxy(auth="password", users={"proxied": "hush"})
    trips = {}
    # With some distance in between, the session tickets of TLS 1.3 do not reach a client before it has said all that it
    # can.
    with ChaosProxy("127.0.0.1", proxy.port, latency_ms=40) as network:
        there = SimpleNamespace(port=network.port, ca_file=proxy.ca_file)
        for direct in (False, True):
            for pipelined in (False, True):
                network.round_trips = 0
                with secure(there, direct=direct) as sock:
                    sock.sendall(startup() + (password() if pipelined else b""))
                    if not pipelined:
                        assert sock.recv(9)[:1] == b"R"
                        sock.sendall(password())
                    assert answer(sock) == ("R3 R0 Z" if pipelined else "R0 Z")
                    trips[direct, pipelined] = network.round_trips
    # TCP, the request for TLS, TLS, the start-up message, the password.
    assert trips == {(False, False): 5, (False, True): 4, (True, False): 4, (True, True): 3}


def test_direct_tls_can_be_refused(rds_proxy: Start) -> None:
    """As by PostgreSQL before 17: cut off in the handshake, while TLS that is asked for goes on as before."""
    proxy = scram(rds_proxy, direct_tls=False)
    with pytest.raises(psycopg.OperationalError):
        with client(proxy, sslnegotiation="direct"):
            pass
    with pytest.raises(OSError):
        secure(proxy, direct=True)
    with secure(proxy) as sock:
        assert sock.selected_alpn_protocol() is None
    with client(proxy) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_direct_tls_without_alpn_is_counted(rds_proxy: Start) -> None:
    """The client is told nothing, so the counters say it."""
    proxy = scram(rds_proxy)
    with secure(proxy, direct=True, alpn=()) as sock:
        assert answer(sock) == "end"
    assert proxy.counters.refused == {"direct TLS without ALPN": 1}


def test_a_handshake_comes_in_pieces(rds_proxy: Start) -> None:
    """However the first record of direct TLS is cut, nothing of it is lost."""
    proxy = rds_proxy(auth="password", users={"proxied": "hush"})
    context = ssl.create_default_context(cafile=str(proxy.ca_file))
    context.set_alpn_protocols(["postgresql"])
    for cuts in ([1], [1, 2, 3], [5, 60], [1, 300]):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            hello = outgoing.read()
            for begin, end in pairwise([0, *cuts, len(hello)]):
                sock.sendall(hello[begin:end])
                time.sleep(0.02)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    incoming.write(sock.recv(65536))
            tls.write(startup() + password())
            sock.sendall(outgoing.read())
            received = b""
            while b"Z\0\0\0\x05I" not in received:
                try:
                    received += tls.read(65536)
                except ssl.SSLWantReadError:
                    incoming.write(sock.recv(65536))


def test_a_broken_handshake_ends_its_client_alone(rds_proxy: Start) -> None:
    """What only begins like TLS, and who leaves in the middle of it, are nothing to the others; no task fails."""
    proxy = scram(rds_proxy)
    failures: list[Any] = []
    assert proxy._loop is not None
    proxy._loop.set_exception_handler(lambda loop, context: failures.append(context))
    for nonsense in (b"\x16", b"\x16\x03\x01\0\x05hello", b"\x16" * 70_000, b"\x16\x03\x01\x02\0" + b"\1" * 100):
        with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
            sock.sendall(nonsense)
    with client(proxy) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    gc.collect()
    assert [str(context) for context in failures] == []


def test_a_pipelined_start_up_can_be_refused(rds_proxy: Start) -> None:
    """08P01 for who sends ahead; who waits for each answer notices nothing."""
    proxy = rds_proxy(auth="password", users={"proxied": "hush"}, pipelined_startup="refuse")
    with secure(proxy) as sock:
        sock.sendall(startup() + password())
        assert answer(sock) == "E08P01 end"
    assert proxy.counters.refused == {"pipelined start-up": 1}
    with client(proxy) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_pipelined_start_up_can_be_lost(rds_proxy: Start) -> None:
    """The password is asked for as if none had come: whoever waits without sending it again waits in vain."""
    proxy = rds_proxy(auth="password", users={"proxied": "hush"}, pipelined_startup="discard")
    with secure(proxy) as sock:
        sock.sendall(startup() + password())
        assert sock.recv(9) == b"R\0\0\0\x08\0\0\0\x03"
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(30)
        sock.sendall(password())
        assert answer(sock) == "R0 Z"


def test_a_word_for_pipelining_that_is_none_is_refused(postgres: Postgres) -> None:
    """A misspelt switch would test something else than was meant."""
    with pytest.raises(ValueError, match="pipelined_startup"):
        RdsProxy(postgres, pipelined_startup="reject")  # type: ignore[arg-type]
