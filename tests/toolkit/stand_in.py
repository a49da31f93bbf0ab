"""Clients of the stand-in for RDS Proxy: psycopg, stock pg8000, and one that sends just the bytes it is told to."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any

import botocore.session
import pg8000.dbapi
import psycopg

from plungepool_toolkit.rds_proxy import Credential, RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[..., RdsProxy]

ENDPOINT = "app.proxy-abc.eu-west-1.rds.amazonaws.com:5432"
CREDENTIAL = Credential.temporary()


def token(
    credential: Credential = CREDENTIAL,
    *,
    user: str = "proxied",
    endpoint: str = ENDPOINT,
    region: str = "eu-west-1",
) -> str:
    """Sign a token as boto3 does, with the machine's clock."""
    session = botocore.session.Session()
    session.set_credentials(credential.access_key_id, credential.secret_access_key, credential.session_token)
    client = session.create_client("rds", region_name=region)
    host, _colon, port = endpoint.rpartition(":")
    return str(client.generate_db_auth_token(host, int(port), user))


def token_for(proxy: RdsProxy, user: str = "proxied", host: str = "localhost") -> str:
    return token(proxy.credentials[0], user=user, endpoint=f"{host}:{proxy.port}")


@contextlib.contextmanager
def client(proxy: RdsProxy, user: str = "proxied", **options: Any) -> Iterator[psycopg.Connection]:
    """Connect by psycopg as careful users do: verified TLS, no prepared statements."""
    given = {
        "password": (proxy.users or {}).get(user) if proxy.auth != "iam" else token_for(proxy, user),
        "sslmode": "verify-full",
        "sslrootcert": str(proxy.ca_file),
        "prepare_threshold": None,
        "autocommit": True,
    } | options
    connection = psycopg.connect(proxy.url(user), **given)
    try:
        yield connection
    finally:
        connection.close()


def scram(start: Start, **options: Any) -> RdsProxy:
    """A stand-in that asks for passwords: connects are cheap, for tests that are about something else."""
    return start(auth="scram", users={"proxied": "hush", "other": "hush hush"}, **options)


def pg8000_client(proxy: RdsProxy, **options: Any) -> Any:
    context = ssl.create_default_context(cafile=str(proxy.ca_file))
    return pg8000.dbapi.connect(
        "proxied", "localhost", "postgres", proxy.port, "hush", ssl_context=context, timeout=20, **options
    )


class Raw:
    """A client of the protocol that sends just the bytes it is told to."""

    def __init__(
        self, proxy: RdsProxy, password: bytes | None = b"p\0\0\0\x09hush\0", user: bytes = b"proxied"
    ) -> None:
        sock = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
        sock.sendall(struct.pack("!ii", 8, 80877103))
        assert sock.recv(1) == b"S"
        self.sock = ssl.create_default_context(cafile=str(proxy.ca_file)).wrap_socket(sock, server_hostname="localhost")
        self.file = self.sock.makefile("rb")
        fields = b"user\0" + user + b"\0database\0postgres\0\0"
        self.sock.sendall(struct.pack("!ii", len(fields) + 8, 196608) + fields)
        assert self.message()[0] == "R"
        if password is not None:  # or the rest is the test's
            self.sock.sendall(password)
            self.until_ready()

    def message(self) -> tuple[str, bytes]:
        kind, length = struct.unpack("!ci", self.file.read(5))
        return kind.decode(), self.file.read(length - 4)

    def until_ready(self, times: int = 1) -> list[tuple[str, bytes]]:
        got = []
        while times:
            got.append(self.message())
            times -= got[-1][0] == "Z"
            if got[-1][0] == "E" and b"VFATAL" in got[-1][1]:
                self.close()
                raise psycopg.OperationalError(got[-1][1].decode())
        return got

    def exchange(self, flight: bytes, times: int) -> list[tuple[str, bytes]]:
        """Write until everything on the way is full, and only then read; by one thread, as TLS sockets want it."""
        self.sock.setblocking(False)
        received, got, unsent = bytearray(), [], memoryview(flight)
        while times:
            with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                while unsent:
                    unsent = unsent[self.sock.send(unsent[:16384]) :]
            select.select([self.sock], [self.sock] if unsent else [], [], 30)
            with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                while data := self.sock.recv(65536):
                    received += data
            while len(received) >= 5 and len(received) > (length := struct.unpack_from("!i", received, 1)[0]):
                got.append((chr(received[0]), bytes(received[5 : length + 1])))
                del received[: length + 1]
                times -= got[-1][0] == "Z"
        self.sock.setblocking(True)
        return got

    def kinds(self, times: int = 1) -> str:
        return "".join(kind for kind, _body in self.until_ready(times))

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!i", len(body) + 4) + body


def query(sql: str) -> bytes:
    return message("Q", sql.encode() + b"\0")


def extended(sql: str, *values: bytes, sync: bool = True) -> bytes:
    """Parse, Bind, Describe and Execute in one flight, as a driver that takes care sends them."""
    bind = b"\0\0" + struct.pack("!hh", 0, len(values))
    bind += b"".join(struct.pack("!i", len(value)) + value for value in values) + struct.pack("!h", 0)
    flight = message("P", b"\0" + sql.encode() + b"\0\0\0") + message("B", bind)
    flight += message("D", b"P\0") + message("E", b"\0" + struct.pack("!i", 0))
    return flight + (message("S") if sync else b"")


SSL_REQUEST, GSS_REQUEST = struct.pack("!ii", 8, 80877103), struct.pack("!ii", 8, 80877104)


def startup(user: str = "proxied") -> bytes:
    """A start-up message."""
    fields = b"user\0" + user.encode() + b"\0database\0postgres\0\0"
    return struct.pack("!ii", len(fields) + 8, 196608) + fields


def password(text: str = "hush") -> bytes:
    """A password in clear text."""
    return message("p", text.encode() + b"\0")


def secure(server: Any, *, direct: bool = False, alpn: tuple[str, ...] = ("postgresql",)) -> ssl.SSLSocket:
    """Return a socket over verified TLS, asked for or begun at once, to what has a port and a ca_file."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    context = ssl.create_default_context(cafile=str(server.ca_file))
    context.set_alpn_protocols(list(alpn))
    try:
        if not direct:
            sock.sendall(SSL_REQUEST)
            assert sock.recv(1) == b"S"
        return context.wrap_socket(sock, server_hostname="localhost")
    except BaseException:
        sock.close()
        raise


def answer(sock: ssl.SSLSocket, ready: int = 1) -> str:
    """
    Return what a server says up to so many ReadyForQuery, or to its end: the kinds of its messages, with the number of
    a request about authentication and an error's SQLSTATE; without the parameters and the key.
    """
    said = []
    with sock.makefile("rb") as file:
        while ready and (kind := file.read(1)):
            if kind == b"N":  # it stands alone
                said.append("N")
                continue
            body = file.read(struct.unpack("!i", file.read(4))[0] - 4)
            ready -= kind == b"Z"
            if kind == b"R":
                said.append(f"R{struct.unpack_from('!i', body)[0]}")
            elif kind == b"E":
                said.append("E" + body.partition(b"\0C")[2][:5].decode())
            elif kind not in b"SK":
                said.append(kind.decode())
    return " ".join(said if not ready else [*said, "end"])
