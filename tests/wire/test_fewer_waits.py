"""
A password that goes ahead of the question, and TLS without one: what they save, and what becomes of them where they are
not taken.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import poolers
import pytest
from fuzz_server import error, message

from plungepool import wire
from plungepool_toolkit.certificates import Authority
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = "a token that goes ahead"
RULES = {"asked": "password", "scrambled": "scram-sha-256", "digested": "md5", "trusted": "trust", "unknown": "reject"}


@pytest.fixture(scope="module")
def server(postgresql_18: Path) -> Iterator[Any]:
    """PostgreSQL 18 with TLS, and a role for each way to authenticate."""
    with Postgres(tls=True, authentication="password", binaries=postgresql_18) as server:
        for role in RULES:
            kind = "md5" if role == "digested" else "scram-sha-256"
            server.execute(f"SET password_encryption = '{kind}'; CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
        rules = server.execute("SHOW hba_file")[0][0]
        with open(rules) as file:
            before = file.read()
        with open(rules, "w") as file:
            file.write("".join(f"hostssl all {role} all {method}\n" for role, method in RULES.items()) + before)
        server.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture(scope="module")
def old_server() -> Iterator[Any]:
    """The PostgreSQL with TLS of this machine's own packages: before 17 it knows no direct TLS."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("POSTGRES_WITH_TLS", raising=False)
        server = Postgres(tls=True, authentication="password")
        server.__enter__()
    with contextlib.closing(server):
        if int(server.execute("SHOW server_version_num")[0][0]) >= 170000:
            pytest.fail("a server before 17 is needed here, as Debian 12's package postgresql")
        server.execute(f"CREATE ROLE asked LOGIN PASSWORD '{PASSWORD}'")
        yield server


@pytest.fixture
def proxy(server: Postgres) -> Iterator[Any]:
    with ChaosProxy(server.host, server.port) as proxy:
        yield proxy


def context(server: Postgres, *, direct: bool = False) -> Any:
    made = ssl.create_default_context(cafile=str(server.ca_file))
    if direct:
        made.set_alpn_protocols(["postgresql"])
    return made


def connect(
    server: Postgres, user: str = "asked", *, port: int | None = None, direct: bool = False, **options: Any
) -> Any:
    given = {"password": PASSWORD, "password_ahead": True, **options}
    if "ssl_context" not in given:
        given["ssl_context"] = context(server, direct=direct)
    negotiation = "direct" if direct else "postgres"
    return wire.connect(
        user=user, host="localhost", port=port or server.port, database="postgres", tls_negotiation=negotiation, **given
    )


def select(connection: wire.Connection) -> Any:
    with connection.cursor() as cursor:
        return cursor.execute("SELECT $1::int", [7]).fetchone()


@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({"password_ahead": False}, 5),
        ({"password_ahead": True}, 4),
        ({"password_ahead": False, "direct": True}, 4),
        ({"password_ahead": True, "direct": True}, 3),
    ],
    ids=["step by step", "password ahead", "direct TLS", "both"],
)
def test_round_trips_of_a_connect(server: Postgres, proxy: ChaosProxy, options: Any, waits: int) -> None:
    """TCP, the request for TLS, TLS, start-up, password: what goes ahead or is left out is a round trip less each."""
    with connect(server, port=proxy.port, **options) as connection:
        assert proxy.round_trips == waits
        assert select(connection) == (7,)
        assert proxy.round_trips == waits + 1
        assert connection.authentication == "password"


@pytest.mark.parametrize("user", ["scrambled", "digested", "trusted"])
def test_server_that_asks_for_something_else_is_told_from_a_refusal(server: Postgres, user: str) -> None:
    """It says what it asked for, the connection is gone, and the same connect step by step works."""
    with pytest.raises(wire.PasswordAheadRefused, match="password_ahead=False") as raised:
        connect(server, user)
    assert raised.value.authentication == RULES[user]
    assert raised.value.disconnected
    assert PASSWORD not in str(raised.value)
    with connect(server, user, password_ahead=False) as connection:
        assert connection.authentication == RULES[user]
        assert select(connection) == (7,)


def test_password_that_went_ahead_is_in_no_log(server: Postgres) -> None:
    """Not even where the server takes it for the name of a SASL mechanism, or for a message after the start."""
    for user in ("scrambled", "digested", "trusted"):
        with pytest.raises(wire.PasswordAheadRefused):
            connect(server, user)
    with pytest.raises(wire.OperationalError):
        connect(server, password="a wrong token")
    assert PASSWORD not in server.log
    assert "a wrong token" not in server.log


@pytest.mark.parametrize("ahead", [True, False])
def test_refused_login_is_the_servers_error_either_way(server: Postgres, ahead: bool) -> None:
    """A wrong password, and a role that may not log in, keep their SQLSTATE: nothing says that the way was wrong."""
    for options, sqlstate in (({"password": "wrong "}, "28P01"), ({"user": "unknown"}, "28000")):
        with pytest.raises(wire.OperationalError) as raised:
            connect(server, **options, password_ahead=ahead)
        assert raised.value.sqlstate == sqlstate
        assert not isinstance(raised.value, wire.PasswordAheadRefused)
        if sqlstate == "28P01":
            assert "begins or ends with a space" in str(raised.value)


def unverified() -> Any:
    made = ssl.create_default_context()
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def without_names() -> Any:
    made = ssl.create_default_context()
    made.check_hostname = False
    return made


@pytest.mark.parametrize(
    "options",
    [
        {"ssl_context": None},
        {"ssl_context": unverified()},
        {"ssl_context": without_names()},
        {"password": None},
    ],
    ids=["plain text", "unverified", "any name", "no password"],
)
def test_no_password_goes_ahead_to_whoever_answers(options: Any) -> None:
    """Only to a server whose certificate and name are verified; else nothing is dialled."""
    given = {"password": PASSWORD, "ssl_context": ssl.create_default_context(), **options}
    with pytest.raises(wire.ProgrammingError, match="password_ahead"):
        wire.connect(user="app", host="127.0.0.1", port=1, password_ahead=True, **given)


@pytest.mark.parametrize("options", [{"tls_negotiation": "directly"}, {"tls_negotiation": "direct"}])
def test_negotiation_that_cannot_be_is_refused(options: Any) -> None:
    """A word that is none, and direct TLS without TLS."""
    with pytest.raises(wire.ProgrammingError, match="tls_negotiation"):
        wire.connect(user="app", host="127.0.0.1", port=1, **options)


class Scripted:
    """
    A server with TLS under an authority of its own, that does to each client as it is told; `heard`: what came through
    TLS.
    """

    def __init__(self, script: Any = lambda client: None, alpn: Any = "postgresql") -> None:
        self._script, self.heard = script, b""
        self.authority = Authority()
        self._context = self.authority.server_context("localhost")
        if alpn:
            self._context.set_alpn_protocols([alpn])

    def __enter__(self) -> Any:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.authority.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                if client.recv(1, socket.MSG_PEEK) == b"\0":
                    client.recv(8)
                    client.sendall(b"S")
                with self._context.wrap_socket(client, server_side=True) as secured:
                    self.heard += secured.recv(1000)
                    self._script(secured)

    def connect(self, *, trusted: Any = True, direct: bool = False) -> Any:
        """Connect with the password ahead."""
        made = self.authority.client_context() if trusted else ssl.create_default_context()
        if direct:
            made.set_alpn_protocols(["postgresql"])
        return connect(self, direct=direct, ssl_context=made)


@pytest.mark.parametrize("direct", [False, True])
def test_certificate_is_verified_before_the_password_goes(direct: bool) -> None:
    """
    A server under an unknown authority gets no byte of it; and what is wrong is said, not laid on the negotiation.
    """
    with Scripted() as scripted:
        with pytest.raises(wire.OperationalError, match="authority") as raised:
            scripted.connect(trusted=False, direct=direct)
    assert scripted.heard == b""
    assert "NEGOTIATION" not in str(raised.value)
    assert isinstance(raised.value.__cause__, ssl.SSLCertVerificationError)


@pytest.mark.parametrize("alpn", [None, "http/1.1"])
def test_direct_tls_with_a_server_of_something_else(alpn: Any) -> None:
    """One that speaks TLS and does not agree on the protocol may be anything: it gets no password."""
    with Scripted(alpn=alpn) as scripted, pytest.raises(wire.OperationalError, match="PLUNGEPOOL_TLS_NEGOTIATION"):
        scripted.connect(direct=True)
    assert scripted.heard == b""


@pytest.mark.parametrize(
    ("script", "sqlstate", "says"),
    [
        (lambda client: client.unwrap(), None, "closed the connection"),
        (
            lambda client: client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
            None,
            "closed the connection",
        ),
        (lambda client: client.sendall(error("08P01", "one at a time", severity="FATAL")), "08P01", "one at a time"),
    ],
    ids=["closes", "resets", "complains"],
)
def test_server_that_takes_one_message_at_a_time_is_told_from_a_refusal(script: Any, sqlstate: str, says: str) -> None:
    """Where it asked for nothing, nobody knows what it wants; the connect step by step will say."""
    with Scripted(script) as scripted, pytest.raises(wire.PasswordAheadRefused, match=says) as raised:
        scripted.connect()
    assert (raised.value.authentication, raised.value.sqlstate) == (None, sqlstate)
    assert PASSWORD.encode() in scripted.heard


@pytest.mark.parametrize("sqlstate", ["53300", "57P03", "28000", "3D000"])
def test_error_before_the_question_is_the_servers(sqlstate: str) -> None:
    """A server that is full, starting up or has no rule says so before it asks for a password."""
    with Scripted(lambda client: client.sendall(error(sqlstate, severity="FATAL"))) as scripted:
        with pytest.raises(wire.DatabaseError) as raised:
            scripted.connect()
    assert raised.value.sqlstate == sqlstate
    assert not isinstance(raised.value, wire.PasswordAheadRefused)


def test_second_question_is_none() -> None:
    """A server that has been given the password and asks by another method gets nothing more."""
    asks = message(b"R", struct.pack("!i", 3)) + message(b"R", struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0")
    with Scripted(lambda client: (client.sendall(asks), client.recv(1))) as scripted:
        with pytest.raises(wire.OperationalError, match="a second request for authentication"):
            scripted.connect()


def test_direct_tls_is_refused_by_a_server_before_17(old_server: Any) -> None:
    """It hangs up on what it does not know; the error says which setting asked for it."""
    with pytest.raises(wire.OperationalError, match="PLUNGEPOOL_TLS_NEGOTIATION"):
        connect(old_server, direct=True)
    with connect(old_server) as connection:
        assert select(connection) == (7,)


def test_direct_tls_demands_the_protocols_name(server: Postgres) -> None:
    """A context that does not offer ALPN gets a connection from no server, as libpq has it."""
    with pytest.raises(wire.OperationalError, match=r"ALPN postgresql.*PLUNGEPOOL_TLS_NEGOTIATION"):
        wire.connect(
            user="asked",
            host="localhost",
            port=server.port,
            password=PASSWORD,
            ssl_context=context(server),
            tls_negotiation="direct",
        )


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("pipelined", ["accept", "refuse"])
def test_stand_in_for_rds_proxy(postgres: Postgres, direct: bool, pipelined: Any) -> None:
    """It takes both, or refuses what goes ahead as it is told."""
    with RdsProxy(
        postgres, auth="password", users={"postgres": postgres.password}, pipelined_startup=pipelined
    ) as stand_in:
        if pipelined == "refuse":
            with pytest.raises(wire.PasswordAheadRefused):
                connect(stand_in, "postgres", direct=direct, password=postgres.password)
        ahead = pipelined == "accept"
        with connect(
            stand_in, "postgres", direct=direct, password=postgres.password, password_ahead=ahead
        ) as connection:
            assert select(connection) == (7,)
            assert connection.authentication == "password"


@pytest.fixture(scope="module")
def pgbouncer(postgres: Postgres) -> Iterator[Any]:
    """PgBouncer with TLS that asks for passwords in clear text."""
    target = f"user=postgres password={postgres.password}"
    with (
        Authority() as authority,
        poolers.pgbouncer(
            postgres, users={"asked": PASSWORD}, authority=authority, target=target, auth_type="plain"
        ) as port,
    ):
        yield authority, port


@pytest.mark.parametrize(("ahead", "waits"), [(False, 6), (True, 5)])
def test_pgbouncer(pgbouncer: Any, ahead: bool, waits: int) -> None:
    """It reads what lies behind the start-up packet when it asks for it, as the server does."""
    authority, port = pgbouncer
    context = authority.client_context()
    # With TLS 1.3 its session tickets would come at any moment, and be counted. TLS 1.2 takes one round trip more.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with ChaosProxy("127.0.0.1", port) as proxy:
        options = {"password_ahead": ahead, "ssl_context": context}
        with connect(None, port=proxy.port, **options) as connection:
            assert proxy.round_trips == waits
            assert select(connection) == (7,)


def test_direct_tls_is_refused_by_pgbouncer(pgbouncer: Any) -> None:
    """It knows no direct TLS."""
    context = pgbouncer[0].client_context()
    context.set_alpn_protocols(["postgresql"])
    with pytest.raises(wire.OperationalError, match="PLUNGEPOOL_TLS_NEGOTIATION"):
        connect(None, port=pgbouncer[1], direct=True, ssl_context=context)


def test_stand_in_without_direct_tls(postgres: Postgres) -> None:
    """A proxy that knows TLS by request only, as RDS Proxy may."""
    with RdsProxy(postgres, auth="password", users={"postgres": postgres.password}, direct_tls=False) as stand_in:
        with pytest.raises(wire.OperationalError, match="PLUNGEPOOL_TLS_NEGOTIATION"):
            connect(stand_in, "postgres", direct=True, password=postgres.password)


@pytest.mark.parametrize("direct", [False, True])
def test_cancel_takes_the_same_way(server: Postgres, direct: bool) -> None:
    """A statement that is given up is stopped on the server, whichever way TLS was begun."""
    connection = connect(server, direct=direct)
    connection.cursor().execute("SELECT 1")
    pid = connection.backend_pid
    connection.deadline = time.time() + 0.3
    with pytest.raises(wire.DeadlineExceeded):
        connection.cursor().execute("SELECT pg_sleep(60)")
    alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND query LIKE '%pg_sleep%' AND state = 'active'"
    for _ in range(200):
        if server.execute(alive, pid) == [[0]]:
            break
        time.sleep(0.05)
    assert server.execute(alive, pid) == [[0]]


@pytest.mark.parametrize("user", RULES)
@pytest.mark.parametrize("ahead", [True, False])
def test_a_first_statement_goes_with_the_password(server: Postgres, proxy: ChaosProxy, user: str, ahead: bool) -> None:
    """
    However the password is proven, it costs no round trip; where none is asked for, and where it is to wait, one.
    """
    options: dict[str, Any] = {"port": proxy.port, "password_ahead": False}
    if user == "unknown":
        with pytest.raises(wire.OperationalError) as raised:
            connect(server, user, **options, first_statement="SELECT 5", first_statement_ahead=ahead)
        assert raised.value.sqlstate == "28000"
        return
    with connect(server, user, **options):
        without, proxy.round_trips = proxy.round_trips, 0
    statement = "SELECT 5, 'a'::text; SET TimeZone = 'UTC'; SELECT 6"
    with connect(server, user, **options, first_statement=statement, first_statement_ahead=ahead) as connection:
        assert proxy.round_trips == without + (not ahead or user == "trusted")
        assert (connection.first.rows, connection.first.error) == ([(6,)], None)
        assert (connection.flights, connection.in_transaction) == (0, False)
        assert select(connection) == (7,)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_first_statement_goes_behind_a_password_that_goes_ahead(
    server: Postgres, proxy: ChaosProxy, ahead: bool
) -> None:
    """Start-up, password and statement in one write."""
    with connect(server, port=proxy.port, first_statement="SELECT 5", first_statement_ahead=ahead) as connection:
        assert proxy.round_trips == 4 + (not ahead)
        assert connection.first.rows == [(5,)]
        assert select(connection) == (7,)


@pytest.mark.parametrize("ahead", [True, False])
def test_an_error_of_the_first_statement_is_not_the_connects(server: Postgres, ahead: bool) -> None:
    """It stays in `first`, and the connection is as any other; nothing is left open."""
    for statement, sqlstate in (("SELECT 1/0", "22012"), ("SELEC", "42601"), ("BEGIN; SELECT 1/0; COMMIT", "22012")):
        with connect(server, first_statement=statement, first_statement_ahead=ahead) as connection:
            assert connection.first.error.sqlstate == sqlstate
            connection.rollback()
            assert select(connection) == (7,)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_first_statement_that_ends_the_session_is_the_connects_error(server: Postgres, ahead: bool) -> None:
    """With the server's word for it, and in the time of the connect."""
    ends = "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)"
    server.execute("GRANT pg_signal_backend TO asked")
    with pytest.raises(wire.OperationalError) as raised:
        connect(server, first_statement=ends, first_statement_ahead=ahead)
    assert raised.value.sqlstate == "57P01"
    with pytest.raises(wire.OperationalError, match="the first statement had not finished"):
        connect(server, first_statement="SELECT pg_sleep(60)", first_statement_ahead=ahead, connect_timeout_s=0.5)


def test_a_statement_is_overheard_before_it_is_sent(server: Postgres) -> None:
    """Each one of a cursor's, with its parameters; what is the connection's own is not."""
    heard: list[Any] = []
    with connect(server) as connection:
        connection.overhears = lambda statement, args: heard.append((statement, [*args]))
        cursor = connection.cursor()
        cursor.execute("SELECT $1::int", [7])
        cursor.executemany("SELECT $1::int", [[1], [2]])
        cursor.declare("c", "SELECT 1")
        with pytest.raises(wire.ProgrammingError):
            cursor.execute("SELEC")
        connection.rollback()
        cursor.execute("COPY (SELECT 1) TO STDOUT", stream=io.BytesIO())
    assert heard == [
        ("SELECT $1::int", [7]),
        ("SELECT $1::int", [1, 2]),
        ("SELECT 1", []),
        ("SELEC", []),
        ("COPY (SELECT 1) TO STDOUT", []),
    ]
