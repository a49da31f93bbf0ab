"""The start of a session byte by byte, with a server that says what it is told and keeps what it hears."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import ssl
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import pytest
import scramp
from fuzz_server import error, message, ready

from plungepool import wire
from plungepool.wire.errors import Secret
from plungepool.wire.scram import Scram, saslprep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OK = message(b"R", struct.pack("!i", 0))
KEY = message(b"K", struct.pack("!i", 4711) + b"\1\2\3\4")
STATUS = message(b"S", b"server_version\x0018.1\0")


def asks(kind: int, rest: bytes = b"") -> bytes:
    """A request to authenticate."""
    return message(b"R", struct.pack("!i", kind) + rest)


class Server:
    """One connection: what it sends, in turns with what it hears; how it sends: whole or byte by byte."""

    def __init__(self, *says: bytes | Callable[[bytes], bytes], drip: bool = False) -> None:
        self.says, self.drip = says, drip
        self.heard: list[bytes] = []
        self.rest: bytes | None = None

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.options: dict[str, Any] = {"host": "127.0.0.1", "port": self._listener.getsockname()[1], "user": "app"}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(20)
        self._listener.close()
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with peer, peer.makefile("rb") as file:
            peer.settimeout(10)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for turn, says in enumerate(self.says):
                head = file.read(5 if turn else 4)
                body = file.read(struct.unpack("!i", head[-4:])[0] - 4)
                self.heard.append(head + body)
                answer = says if isinstance(says, bytes) else says(body)
                for piece in [answer[at : at + 1] for at in range(len(answer))] if self.drip else [answer]:
                    peer.sendall(piece)
                    time.sleep(0.002 * self.drip)  # so that the client reads them apart
            peer.shutdown(socket.SHUT_WR)
            self.rest = file.read()


def test_startup_message_holds_what_was_given_and_no_more() -> None:
    """Version 3.0, the user and what was named; what was not given is left out."""
    with Server(OK + KEY + ready()) as server:
        wire.connect(
            **server.options, database="orders", application_name="o:7", startup_params={"statement_timeout": "1500"}
        ).close()
    [packet] = server.heard
    assert packet == struct.pack("!ii", len(packet), 196608) + (
        b"user\0app\0database\0orders\0application_name\0o:7\0client_encoding\0UTF8\0DateStyle\0ISO\0"
        b"statement_timeout\x001500\0\0"
    )
    assert server.rest == b"X\0\0\0\4"
    with Server(OK + KEY + ready()) as server:
        wire.connect(**server.options).close()
    assert server.heard[0][8:] == b"user\0app\0client_encoding\0UTF8\0DateStyle\0ISO\0\0"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"startup_params": {"user": "x", "DateStyle": "German", "TimeZone": "UTC"}},
        "startup_params: DateStyle, user cannot be set"),
        ({"user": "a\0b"}, "must not contain a NUL character"),
        ({"startup_params": {"TimeZone": "UTC\0role\0postgres"}}, "must not contain a NUL character"),
        ({"application_name": "\ud800"}, "must be text that can be encoded as UTF-8"),
        ({"connect_timeout_s": 0}, "connect_timeout_s must be more than 0 seconds"),
        ({"dead_peer_timeout_s": 0}, "dead_peer_timeout_s must be more than 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_before_anybody_is_dialled(options: dict[str, Any], says: str) -> None:
    """The caller's mistake, named; no server is needed for that."""
    with pytest.raises(wire.ProgrammingError, match=says):
        wire.connect(**{"user": "app", "host": "192.0.2.1", "connect_timeout_s": 30, **options})


@pytest.mark.parametrize("drip", [False, True], ids=["whole", "drip"])
def test_start_is_read_however_the_pieces_fall(drip: bool) -> None:
    """All in one packet, or a byte at a time: the same session."""
    with Server(OK + STATUS + KEY + ready(b"T"), drip=drip) as server:
        connection = wire.connect(**server.options)
        assert connection.backend_pid == 4711
        assert connection.parameter_statuses == {"server_version": "18.1"}
        assert (connection.in_transaction, connection.in_failed_transaction, connection.closed) == (True, False, False)
        assert (connection.deadline, connection.used_password) == (None, False)
        connection.close()


def md5(password: bytes, salt: bytes) -> bytes:
    """As the manual has it: concat('md5', md5(concat(md5(concat(password, username)), random-salt)))."""
    inner = hashlib.md5(password + b"app").hexdigest().encode()
    return b"md5" + hashlib.md5(inner + salt).hexdigest().encode() + b"\0"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(asks(3), "pässword".encode() + b"\0"), (asks(5, b"\1\2\3\4"), md5("pässword".encode(), b"\1\2\3\4"))],
    ids=["clear text", "md5"],
)
@pytest.mark.parametrize("drip", [False, True], ids=["whole", "drip"])
def test_password_is_sent_as_the_protocol_has_it(asked: bytes, expected: bytes, drip: bool) -> None:
    """In clear text and as MD5, with nothing behind it; and the connection knows that it was asked for."""
    with Server(asked, OK + KEY + ready(), drip=drip) as server:
        connection = wire.connect(**server.options, password="pässword")
        assert connection.used_password
        connection.close()
    assert server.heard[1] == b"p" + struct.pack("!i", len(expected) + 4) + expected


@pytest.mark.parametrize("asked", [asks(3), asks(5, b"salt"), asks(10, b"SCRAM-SHA-256\0\0")])
def test_no_password_where_one_is_asked_for(asked: bytes) -> None:
    """Said so, with the user, and the connection is closed without another byte."""
    with Server(asked) as server:
        with pytest.raises(wire.OperationalError, match="asks for a password for user app, but none was given"):
            wire.connect(**server.options)
    assert server.rest in (b"", b"X\0\0\0\4")


NAMED = "begins or ends with a space or a line break"


@pytest.mark.parametrize(
    ("code", "password", "asked", "named"),
    [
        ("28P01", "pw\n", True, True),
        ("28000", " pw", True, True),
        ("08P01", "pw ", True, True),
        ("28P01", "pw", True, False),
        ("3D000", "pw\n", True, False),
        ("53300", "pw\n", True, False),
        ("28000", "pw\n", False, False),
    ],
)
def test_refusal_names_a_password_that_was_copied_with_more(code: str, password: str, asked: bool, named: bool) -> None:
    """Where a password was sent and refused, and only there; poolers refuse with 08P01."""
    refusal = error(code, "no", severity="FATAL")
    with Server(asks(3), refusal) if asked else Server(refusal) as server:
        with pytest.raises(wire.Error) as caught:
            wire.connect(**server.options, password=password)
    assert caught.value.sqlstate == code
    assert (NAMED in str(caught.value)) is named
    assert caught.value.disconnected


@pytest.mark.parametrize(("length", "taken"), [(29_999, True), (30_000, True), (30_001, False), (2**31 - 1, False)])
def test_messages_of_the_start_are_short(length: int, taken: bool) -> None:
    """libpq's own bound: what claims to be longer is no PostgreSQL, and is not waited for."""
    value = b"x" * (min(length, 30_001) - 4 - len(b"name\0\0"))
    status = b"S" + struct.pack("!i", length) + b"name\0" + value + b"\0"
    with Server(OK + status + KEY + ready()) as server:
        if taken:
            connection = wire.connect(**server.options)
            assert connection.parameter_statuses["name"] == value.decode()
            connection.close()
        else:
            with pytest.raises(
                wire.OperationalError, match=f"a message 'S' of {length} bytes before the session started"
            ):
                wire.connect(**server.options)


@pytest.mark.parametrize("length", [0, 3])
def test_messages_are_as_long_as_their_own_length_at_least(length: int) -> None:
    """The length counts itself."""
    with Server(b"S" + struct.pack("!i", length) + ready()) as server:
        with pytest.raises(wire.OperationalError, match=f"a message 'S' of {length} bytes"):
            wire.connect(**server.options)


@pytest.mark.parametrize("body", [b"", b"X", b"II", b"i"])
def test_malformed_readiness_is_no_session(body: bytes) -> None:
    """ReadyForQuery holds one of three letters."""
    with Server(OK + KEY + message(b"Z", body)) as server:
        with pytest.raises(wire.OperationalError, match="a malformed ReadyForQuery"):
            wire.connect(**server.options)


def scram_asks(count: int) -> Callable[[bytes], bytes]:
    """Answer the client's first message with so many iterations."""

    def answer(first: bytes) -> bytes:
        nonce = first.rpartition(b"r=")[2]
        return asks(11, b"r=" + nonce + b"SERVER,s=" + base64.b64encode(b"salt") + b",i=%d" % count)

    return answer


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (1_000_000, "could not prove"),
        (1_000_001, "requires 1000001 iterations of SCRAM; at most 1000000 are allowed"),
    ],
)
def test_iterations_of_scram_have_a_bound(count: int, says: str) -> None:
    """A million is done, half a second; a server may not keep us longer."""
    wrong = asks(12, b"v=" + base64.b64encode(b"x" * 32))
    turns = [asks(10, b"SCRAM-SHA-256\0\0"), scram_asks(count), wrong][: 3 if "prove" in says else 2]
    with Server(*turns) as server:
        with pytest.raises(wire.OperationalError, match=says):
            wire.connect(**server.options, password="pw", connect_timeout_s=60)


def test_nonce_of_scram_must_be_more_than_the_clients() -> None:
    """A server that adds nothing of its own could replay somebody else's exchange (RFC 5802, 5.1)."""

    def adds_nothing(first: bytes) -> bytes:
        return asks(11, b"r=" + first.rpartition(b"r=")[2] + b",s=" + base64.b64encode(b"salt") + b",i=4096")

    with Server(asks(10, b"SCRAM-SHA-256\0\0"), adds_nothing) as server:
        with pytest.raises(wire.OperationalError, match="a SCRAM nonce that does not begin with the client's"):
            wire.connect(**server.options, password="pw")


@pytest.mark.parametrize(
    ("salt", "count"),
    [(b"", b"4096"), (b"c2Fs!dA==", b"4096"), (b"c2FsdA", b"4096"), (b"c2FsdA==", b"00000004096"), (b"c2FsdA==",
    b"9" * 5000),
     (b"c2FsdA==", b""), (b"c2FsdA==", "\u0663".encode())],
)  # fmt: skip
def test_salt_and_iterations_of_scram_are_read_strictly(salt: bytes, count: bytes) -> None:
    """What is no Base64, no salt, or no number that a server would write, is no step of SCRAM."""

    def answer(first: bytes) -> bytes:
        return asks(11, b"r=" + first.rpartition(b"r=")[2] + b"SERVER,s=" + salt + b",i=" + count)

    with Server(asks(10, b"SCRAM-SHA-256\0\0"), answer) as server:
        with pytest.raises(wire.OperationalError, match="a malformed SCRAM message"):
            wire.connect(**server.options, password="pw")


@pytest.mark.parametrize(
    "text", ["א\u00ad1", "1\u00adא", "א\u00adaא", "א\u00ad1א", "\u00adאa", "\u00adא", "a\u00adb", "\u00ad"]
)
def test_password_of_two_directions_is_prepared_as_by_a_library(text: str) -> None:
    """
    Right to left at both ends and with nothing that runs left to right, or it stays as it is, soft hyphens included.
    """
    try:
        expected = scramp.utils.saslprep(text) or text
    except scramp.ScramException:
        expected = text
    assert saslprep(text.encode()).decode() == expected


def test_certificate_without_a_digest_binds_no_channel(tmp_path: Path) -> None:
    """Ed25519 has none (RFC 5929 leaves it undefined): plain SCRAM is spoken, also where the other is offered."""
    command = f"openssl req -x509 -newkey ed25519 -nodes -subj /CN=localhost -keyout {tmp_path}/k -out {tmp_path}/c"
    subprocess.run(command.split(), check=True, capture_output=True)
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "c").read_text())
    password = Secret()
    password.value = b"pw"
    assert Scram(password, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0", der).first.startswith(b"SCRAM-SHA-256\0")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"N", "does not offer TLS, but PLUNGEPOOL_TLS requires it; nothing else was sent"),
        (b"E", r"refused the connection before TLS began \(too many connections, or it is starting up\)"),
        (b"H", "does not speak PostgreSQL's protocol: does another service listen on that port"),
        (b"", "closed the connection when it was asked for TLS: is PostgreSQL behind that port"),
    ],
)
def test_server_without_tls_hears_the_request_and_nothing_else(answer: bytes, says: str) -> None:
    """No start-up packet and no password in plain text, whatever it answers."""
    with Server(answer) as server:
        with pytest.raises(wire.OperationalError, match=says):
            wire.connect(**server.options, password="pw", ssl_context=ssl.create_default_context())
    assert (server.heard, server.rest) == ([struct.pack("!ii", 8, 80877103)], b"")


@pytest.mark.parametrize(("tls", "stage"), [(True, "TLS"), (False, "authentication")])
def test_time_for_a_connect_is_named_with_how_far_it_came(tls: bool, stage: str) -> None:
    """A listener that never answers: the seconds, the setting and the stage."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(wire.OperationalError) as caught:
            wire.connect(
                user="app", host="127.0.0.1", port=port, connect_timeout_s=0.25,
                ssl_context=ssl.create_default_context() if tls else None,
            )  # fmt: skip
    assert str(caught.value) == (
        f"no connection to 127.0.0.1:{port} within 0.25 s (connect_timeout_s): {stage} had not finished"
    )
    assert time.monotonic() - began >= 0.2


def test_next_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may have addresses at which nobody listens; the first that answers is taken, the last error told."""
    with socket.socket() as nobody, Server(OK + KEY + ready()) as server:
        nobody.bind(("127.0.0.1", 0))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
                 for port in (nobody.getsockname()[1], server.options["port"])]  # fmt: skip
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        wire.connect(**server.options).close()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:1])
        with pytest.raises(wire.OperationalError, match="cannot be reached: Connection refused"):
            wire.connect(**server.options)


@pytest.mark.parametrize(
    ("timeout_s", "expected"),
    [(10.0, (8000, 4, 2, 3)), (2.5, (2000, 1, 1, 1)), (0.5, (400, 1, 1, 1)), (60.0, (48000, 24, 12, 3))],
)
def test_network_that_swallows_everything_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float, expected: tuple[int, ...]
) -> None:
    """Unacknowledged data, and probes of an idle connection: both end within the time that was asked for."""
    options = ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    found: list[Any] = []
    connect = socket.socket.connect_ex

    def look(sock: socket.socket, address: Any) -> int:
        found.append(tuple(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in options))
        found.append(
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        )
        return connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect_ex", look)
    with Server(OK + KEY + ready()) as server:
        wire.connect(**server.options, dead_peer_timeout_s=timeout_s).close()
    assert found == [expected, 1]


def test_refusal_ends_the_connect_whether_or_not_the_server_hangs_up() -> None:
    """A server that says no and then nothing is not waited for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def refuse() -> None:
            held.append(listener.accept()[0])
            held[0].sendall(error("28000", "no", severity="FATAL"))

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(wire.OperationalError) as caught:
            wire.connect(user="app", host="127.0.0.1", port=listener.getsockname()[1], connect_timeout_s=10)
        thread.join()
        held[0].close()
    assert caught.value.sqlstate == "28000"


def test_request_to_cancel_holds_the_key_that_the_server_gave() -> None:
    """The process and the whole key: where either differs, the server ignores the request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        heard: list[bytes] = []

        def serve() -> None:
            with listener.accept()[0] as session:
                session.recv(1000)
                session.sendall(OK + KEY + ready())
                with listener.accept()[0] as other:
                    heard.append(other.recv(1000))
                    session.sendall(error("57014", "canceled") + ready())

        thread = threading.Thread(target=serve)
        thread.start()
        connection = wire.connect(user="app", host="127.0.0.1", port=listener.getsockname()[1])
        connection.deadline = time.time() + 0.2
        with pytest.raises(wire.OperationalError):
            connection.cursor().execute("SELECT pg_sleep(60)")
        thread.join()
    assert heard == [struct.pack("!iii", 16, 80877102, 4711) + b"\1\2\3\4"]


def test_addresses_that_never_answer_take_all_of_the_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its share of what is left, so that a slow network is not given up while there is time."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # Linux drops what comes to a full queue
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", full.getsockname())] * 3
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        began = time.time()
        with pytest.raises(wire.OperationalError, match=r"within 0\.6 s \(connect_timeout_s\): TCP had not finished"):
            wire.connect(user="app", host="db.example.com", connect_timeout_s=0.6)
        assert time.time() - began >= 0.59
