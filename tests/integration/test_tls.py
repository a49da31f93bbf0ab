"""Real handshakes: each way in which a server is not the right one has an error of its own, and hears no password."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from plungepool import Settings, build_engine
from plungepool_toolkit.certificates import Authority
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PASSWORD = "unmistakable-password"


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    """The authority that the client trusts."""
    with Authority() as made:
        yield made


class Listener:
    """
    Answers the request for TLS with one byte, shakes hands with the context given, and records all that it hears.

    What a client sends after the handshake is recorded too: a start-up packet, a password.
    """

    def __init__(self, answer: bytes, context: ssl.SSLContext | None = None) -> None:
        self.heard = b""
        self._answer, self._context = answer, context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._socket.accept()
            client.settimeout(5)
            with client:
                self.heard += client.recv(8)
                client.sendall(self._answer)
                if self._context is not None:
                    client = self._context.wrap_socket(client, server_side=True)
                with client:
                    while part := client.recv(4096):
                        self.heard += part

    def close(self) -> bytes:
        """Wait until the client has gone; return all that was heard."""
        self._thread.join()
        self._socket.close()
        return self.heard


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Start listeners; each is closed at the end, even where nobody called."""
    listeners: list[Listener] = []

    def start(answer: bytes, context: ssl.SSLContext | None = None) -> Listener:
        listeners.append(Listener(answer, context))
        return listeners[-1]

    yield start
    for listener in listeners:
        # Wakes one that nobody has called.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", listener.port)):
            pass
        listener.close()


TLS_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


def connect(listener: Listener, ca_file: Path, host: str = "localhost") -> OperationalError:
    """Connect with a password to a server that must be refused; return the error."""
    settings = Settings(
        host=host, port=listener.port, user="app", password=PASSWORD, ca_file=str(ca_file), connect_timeout_s=5
    )
    engine = build_engine(settings)
    with pytest.raises(OperationalError) as caught:
        engine.connect()
    engine.dispose()
    return caught.value


def test_plain_text_server_hears_the_request_for_tls_only(
    listen: Callable[..., Listener], authority: Authority
) -> None:
    """A server without TLS is refused; neither a start-up packet nor a password is sent."""
    listener = listen(b"N")
    error = connect(listener, authority.ca_file)
    assert listener.close() == TLS_REQUEST
    assert "does not offer TLS" in str(error)
    assert "PLUNGEPOOL_TLS" in str(error)
    assert PASSWORD not in f"{error!r} {error} {error.__cause__!r}"


def wrong_authority(authority: Authority) -> ssl.SSLContext:
    """A good certificate, from an authority of the same name that the client does not trust."""
    with Authority() as other:
        return other.server_context("localhost", "127.0.0.1")


def expired(authority: Authority) -> ssl.SSLContext:
    """A certificate that ran out yesterday."""
    return authority.server_context("localhost", "127.0.0.1", expired=True)


def wrong_host(authority: Authority) -> ssl.SSLContext:
    """A good certificate of another server."""
    return authority.server_context("other.example", "10.0.0.1")


def no_host(authority: Authority) -> ssl.SSLContext:
    """A good certificate for the name in its subject only, which no client may take for a host name."""
    return authority.server_context("other.example")


@pytest.mark.parametrize(
    ("make_context", "host", "words"),
    [
        (wrong_authority, "localhost", ["not trusted here", "PLUNGEPOOL_CA_FILE", "nothing else is trusted"]),
        (expired, "localhost", ["has expired", "clock"]),
        (wrong_host, "localhost", ["certificate is for a name other than localhost", "PLUNGEPOOL_HOST"]),
        (wrong_host, "127.0.0.1", ["certificate is for a name other than 127.0.0.1", "PLUNGEPOOL_HOST"]),
        (no_host, "localhost", ["certificate is for a name other than", "PLUNGEPOOL_HOST"]),
    ],
)
def test_wrong_server_is_refused_before_the_password(
    listen: Callable[..., Listener], authority: Authority, make_context: object, host: str, words: list[str]
) -> None:
    """Wrong authority, expired, wrong name, wrong address: each has its own error; nothing follows the handshake."""
    listener = listen(b"S", make_context(authority))  # type: ignore[operator]
    error = connect(listener, authority.ca_file, host)
    assert listener.close() == TLS_REQUEST
    assert [word for word in words if word not in str(error)] == []
    assert isinstance(error.orig.__cause__, ssl.SSLCertVerificationError)
    assert PASSWORD not in f"{error!r} {error} {error.__cause__!r}"


def test_tls_before_1_2_is_refused(listen: Callable[..., Listener], authority: Authority) -> None:
    """A server that speaks old versions only gets no connection."""
    context = authority.server_context("localhost")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    listener = listen(b"S", context)
    error = connect(listener, authority.ca_file)
    assert listener.close() == TLS_REQUEST
    assert "TLS 1.2 or newer" in str(error)


@pytest.mark.parametrize("curve", ["secp384r1", "prime256v1"])
def test_server_of_one_curve_is_reached(authority: Authority, curve: str) -> None:
    """A server that was told to know one curve only is connected to, whichever it is, at the second attempt at most."""
    with Postgres({"ssl_ecdh_curve": curve}, tls=authority.issue("localhost", owner="nobody")) as server:
        engine = build_engine(
            Settings(host=server.host, port=server.port, user="u", password="p", ca_file=str(authority.ca_file))
        )
        with pytest.raises(OperationalError, match='role "u" does not exist'):
            engine.connect()
        engine.dispose()


def test_shipped_authorities_refuse_everybody_else(listen: Callable[..., Listener], authority: Authority) -> None:
    """Without a file of one's own only Amazon's authorities are trusted: a certificate of this test's is not."""
    listener = listen(b"S", authority.server_context("localhost"))
    engine = build_engine(
        Settings(host="localhost", port=listener.port, user="app", password=PASSWORD, region="eu-west-1")
    )
    with pytest.raises(OperationalError, match="not trusted here"):
        engine.connect()
    assert listener.close() == TLS_REQUEST


def test_slow_handshake_ends_in_time(listen: Callable[..., Listener], authority: Authority) -> None:
    """A server that says yes to TLS and then nothing costs the time for a connect, not an invocation."""
    listener = listen(b"S")
    engine = build_engine(
        Settings(
            host="localhost",
            port=listener.port,
            user="u",
            password="p",
            ca_file=str(authority.ca_file),
            connect_timeout_s=0.3,
            checkout_timeout_s=0.3,
        )
    )
    started = time.time()
    with pytest.raises(OperationalError, match="TLS"):
        engine.connect()
    listener.close()
    assert time.time() - started < 4, "the listener's own time-out ended it"


def test_right_server_is_taken() -> None:
    """With the right authority, name and date a real server with TLS answers, and says that TLS is on."""
    with Postgres(tls=True, authentication="scram-sha-256") as server:
        server.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        engine = build_engine(
            Settings(host=server.host, port=server.port, user="app", password=PASSWORD, ca_file=str(server.ca_file))
        )
        with engine.connect() as connection:
            version = connection.execute(text("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
            assert version.scalar_one() in ("TLSv1.2", "TLSv1.3")
        engine.dispose()
