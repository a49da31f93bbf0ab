"""Who proves what to whom: passwords of any characters, servers that lie, and secrets that no crash report shows."""

from __future__ import annotations

import base64
import gc
import hashlib
import hmac
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import scramp
from fuzz_server import PARAMETERS, Fault, FuzzServer, message, ready
from hypothesis import given, settings
from hypothesis import strategies as st

from plungepool import wire
from plungepool.wire.connection import _literal
from plungepool.wire.scram import digest_of_signature, saslprep
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A server that takes SCRAM, with TLS."""
    with Postgres(tls=True, authentication="scram-sha-256") as server:
        yield server


@pytest.fixture(scope="module")
def clear() -> Iterator[Any]:
    """A server that takes passwords in clear text, with TLS."""
    with Postgres(tls=True, authentication="password") as server:
        server.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        yield server


def address(server: Postgres, tls: bool = True) -> dict[str, Any]:
    context = ssl.create_default_context(cafile=server.ca_file) if tls else None
    return {"user": "app", "host": "localhost", "port": server.port, "database": "postgres", "ssl_context": context}


@pytest.mark.parametrize(
    "password",
    [
        "pw😀",
        "\u05e9\u05dc\u05d5\u05dd1",
        "pw\n",
        " pw ",
        "pw\t",
        "\u00ad",
        "ﬁ\u00a0x",
        "a\u0300",
        "\u0221",
        "\u202epw",
        "x" * 1500,
    ],
    ids=ascii,
)
def test_every_password_that_libpq_logs_in_with(server: Postgres, password: str) -> None:
    """
    What SASLprep changes, what it refuses, and what it leaves: as psycopg, with TLS (channel binding) and without.
    """
    name = f"role_{os.urandom(4).hex()}"
    server.execute(f"CREATE ROLE {name} LOGIN PASSWORD {_literal(password)}")
    with psycopg.connect(host="localhost", port=server.port, dbname="postgres", user=name, password=password):
        pass
    for tls in (True, False):
        with wire.connect(**{**address(server, tls), "user": name}, password=password) as connection:
            assert connection.cursor().execute("SELECT current_user").fetchone() == (name,)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from("אש1 aﬁ\u00a0\u00ad\u200d"), max_size=8))
def test_saslprep_is_that_of_a_library(text: str) -> None:
    """Every text is prepared as scramp does it, and where that refuses, it stays as it is."""
    try:
        expected = scramp.utils.saslprep(text) or text
    except scramp.ScramException:
        expected = text
    assert saslprep(text.encode()).decode() == expected


@pytest.mark.since_postgresql(16)
def test_every_count_of_iterations_connects() -> None:
    """`scram_iterations`, of PostgreSQL 16 and newer, may be lower than the RFC recommends."""
    with Postgres(authentication="scram-sha-256") as server:
        for count in (1, 1000, 100_000):
            server.execute(f"SET scram_iterations = {count}; CREATE ROLE app{count} LOGIN PASSWORD 'pw'")
            wire.connect(
                user=f"app{count}", host=server.host, port=server.port, database="postgres", password="pw"
            ).close()


def test_wrong_passwords_are_refused(server: Postgres, clear: bool) -> None:
    """28P01; where the password has a line break at its end, a copied one, the error says so."""
    server.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
    for one in (server, clear):
        for password, says in ((PASSWORD + "\n", True), (PASSWORD + "x", False)):
            with pytest.raises(wire.OperationalError) as raised:
                wire.connect(**address(one), password=password)
            assert raised.value.sqlstate == "28P01"
            assert ("the password that was sent begins or ends with a space" in str(raised.value)) is says


@pytest.mark.parametrize(("password", "says"), [("a\0b", "a NUL character"), ("a\ud800", "UTF-8")])
def test_password_that_cannot_be_sent_is_called_so(clear: bool, password: str, says: str) -> None:
    """And it is not quoted, by the cause neither."""
    with pytest.raises(wire.OperationalError, match=f"the password cannot be sent: .*{says}") as raised:
        wire.connect(**address(clear), password=password)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_bytes_of_the_environment_are_sent_as_they_were(clear: bool) -> None:
    """What os.environ could not decode is a surrogate in Python, and a byte for the server."""
    with pytest.raises(wire.OperationalError) as raised:
        wire.connect(**address(clear), password=os.fsdecode(b"caf\xe9"))
    assert raised.value.sqlstate in ("28P01", "22021")


@pytest.mark.parametrize(
    ("key", "digest", "expected"),
    [
        ("rsa:2048", "sha256", "sha256"),
        ("rsa:2048", "sha384", "sha384"),
        ("rsa:2048", "sha512", "sha512"),
        ("rsa:2048", "sha1", "sha256"),
        ("rsa:2048 -sigopt rsa_padding_mode:pss", "sha384", "sha384"),
        ("ec -pkeyopt ec_paramgen_curve:prime256v1", "sha256", "sha256"),
        ("ec -pkeyopt ec_paramgen_curve:secp384r1", "sha384", "sha384"),
        ("ed25519", "sha256", None),
    ],
)
def test_channel_binding_takes_the_digest_of_the_certificate(
    tmp_path: Path, key: Any, digest: Any, expected: Any
) -> None:
    """As scramp reads it with asn1crypto; for Ed25519 there is none, and the channel is not bound."""
    command = f"openssl req -x509 -newkey {key} -{digest} -nodes -subj /CN=x -keyout {tmp_path}/k -out {tmp_path}/c"
    subprocess.run(command.split(), check=True, capture_output=True)
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "c").read_text())
    assert digest_of_signature(der) == expected
    for length in range(0, len(der), 7):
        digest_of_signature(der[:length])


# What the first authentication of a process imports, needs a descriptor of its own: that is another test's.
STARVED = """
import hashlib, hmac, os, resource, sys
from plungepool import wire
spare = int(sys.argv[2])
first = os.dup(0)  # the lowest descriptor that is free
resource.setrlimit(resource.RLIMIT_NOFILE, (first + spare, 4096))
os.close(first)
try:
    wire.connect(user="app", host="127.0.0.1", port=int(sys.argv[1]), database="postgres", password="pw\u00e9").close()
except wire.OperationalError as error:
    print(error)
"""


@pytest.mark.parametrize("spare", [0, 1])
def test_connect_without_descriptors_left_is_an_operational_error(spare: Any) -> None:
    """None for the socket: said as it is; with one it connects."""
    with Postgres(authentication="scram-sha-256") as server:
        server.execute("CREATE ROLE app LOGIN PASSWORD 'pw\u00e9'")
        command = [sys.executable, "-c", STARVED, str(server.port), str(spare)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ("Too many open files" in done.stdout) is (spare == 0), done.stdout


class Liar:
    """
    A server that speaks SCRAM to its end, as a dialogue in a thread; `script` gets ask(kind, body) and is to answer.
    """

    def __init__(self, script: Any) -> None:
        self.script, self.asked, self.received = script, [], []

    def __enter__(self) -> Any:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join()
        self.listener.close()

    def serve(self) -> None:
        self.peer, _ = self.listener.accept()
        with self.peer, self.peer.makefile("rb") as self.file:
            self.file.read(struct.unpack("!i", self.file.read(4))[0] - 4)
            try:
                self.script(self)
                self.peer.sendall(
                    message(b"R", struct.pack("!i", 0))
                    + b"".join(message(b"S", f"{n}\0{v}\0".encode()) for n, v in PARAMETERS.items())
                    + ready()
                )
                self.file.read()
            except (OSError, EOFError):
                pass

    def say(self, kind: str, body: bytes = b"") -> None:
        self.peer.sendall(message(b"R", struct.pack("!i", kind) + body))

    def hear(self) -> Any:
        if self.file.read(1) != b"p":
            raise EOFError
        self.received.append(self.file.read(struct.unpack("!i", self.file.read(4))[0] - 4))
        return self.received[-1]

    def scram(
        self,
        *,
        change_first: Any = lambda text: text,
        change_final: Any = lambda text: text,
        password: str = PASSWORD,
        skip: Any = False,
    ) -> None:
        self.say(10, b"SCRAM-SHA-256\0\0")
        bare = self.hear().partition(b"\0")[2][4:].removeprefix(b"n,,").decode()
        honest = f"{bare.partition('r=')[2]}SERVER"
        first = change_first(f"r={honest},s={base64.b64encode(b'salt' * 4).decode()},i=4096")
        self.say(11, first.encode())
        final = self.hear().decode().partition(",p=")[0]
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt" * 4, 4096)
        key = hmac.digest(salted, b"Server Key", "sha256")
        proof = hmac.digest(key, f"{bare},{first},{final}".encode(), "sha256")
        if not skip:
            self.say(12, change_final(f"v={base64.b64encode(proof).decode()}").encode())


def long_nonce(text: str) -> str:
    nonce, rest = text.split(",", 1)
    return f"{nonce}{'x' * 20_000},{rest}"


def wrong_proof(text: str) -> Any:
    return "v=" + base64.b64encode(b"x" * 32).decode()


@pytest.mark.parametrize(
    ("lie", "kind", "says"),
    [
        (lambda s: s.scram(change_final=wrong_proof), wire.OperationalError, "could not prove that it knows"),
        (lambda s: s.scram(change_final=lambda text: text[:-4]), wire.OperationalError,
        "could not prove that it knows"),
        (lambda s: s.scram(change_final=lambda text: ""), wire.OperationalError, "could not prove that it knows"),
        (lambda s: s.scram(change_final=lambda text: "e=other-error"), wire.OperationalError,
        "refused SCRAM: other-err"),
        (lambda s: s.scram(skip=True), wire.OperationalError, "skipped the proof"),
        (lambda s: (s.say(10, b"SCRAM-SHA-256\0\0"), s.hear()), wire.OperationalError, "skipped the proof"),
        (lambda s: (s.scram(), s.say(3), s.hear()), wire.OperationalError, "a second request for authentication"),
        (
            lambda s: (s.say(10, b"SCRAM-SHA-256\0\0"), s.hear(), s.say(3), s.hear()),
            wire.OperationalError,
            "a second request",
        ),
        (lambda s: (s.say(3), s.hear(), s.say(3), s.hear()), wire.OperationalError, "a second request"),
        (lambda s: (s.say(12, b"v=x"), s.hear()), wire.OperationalError, "SCRAM was begun"),
        (lambda s: (s.say(10, b"SCRAM-SHA-256\0\0"), s.hear(), s.say(12, b"v=x")), wire.OperationalError, "last SCRAM"),
        (lambda s: (s.scram(), s.say(11, b"r=x,s=eA==,i=1"), s.hear()), wire.OperationalError, "second time"),
        (lambda s: s.scram(change_first=lambda t: "r=mine" + t[t.index(",") :]), wire.OperationalError, "SCRAM nonce"),
        (lambda s: s.scram(change_first=lambda t: t + ",x=y"), wire.OperationalError, "malformed"),
        (lambda s: s.scram(change_first=lambda t: "m=x," + t), wire.OperationalError, "malformed"),
        (lambda s: s.scram(change_first=lambda t: t[: t.index(",i=")]), wire.OperationalError, "malformed"),
        (lambda s: s.scram(change_first=lambda t: t.replace("4096", "0")), wire.OperationalError, "malformed"),
        (lambda s: s.scram(change_first=lambda t: t.replace("4096", "-1")), wire.OperationalError, "malformed"),
        (
            lambda s: s.scram(change_first=lambda t: t.replace("4096", "2000000000")),
            wire.OperationalError,
            "requires 2000000000 iterations",
        ),
        (lambda s: None, None, ""),
        (lambda s: s.scram(change_first=long_nonce), None, ""),
        (lambda s: s.scram(), None, ""),
    ],
)  # fmt: skip
def test_lying_server_is_refused(lie: Any, kind: str, says: str) -> None:
    """Whoever does not prove that it knows the password gets no session; the last lines tell the truth."""
    with Liar(lie) as liar:
        options = {"user": "app", "host": "127.0.0.1", "port": liar.port, "password": PASSWORD, "connect_timeout_s": 5}
        if kind is None:
            wire.connect(**options).close()
            return
        with pytest.raises(kind, match=says) as raised:
            wire.connect(**options)
        assert raised.value.disconnected
    if liar.received and not liar.received[0].startswith(PASSWORD.encode()):
        assert all(PASSWORD.encode() not in answer for answer in liar.received)


def request(kind: str, rest: Any = b"") -> Any:
    return message(b"R", struct.pack("!i", kind) + rest)


@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        *((request(kind), wire.NotSupportedError, f"method {kind},") for kind in (2, 6, 7, 8, 9, -1, 99)),
        (request(3), None, ""),
        (request(5, b"salt"), None, ""),
        (request(5, b"s"), wire.OperationalError, "a salt that is too short"),
        (request(10, b"\0"), wire.NotSupportedError, "the server offers no method"),
        (request(10, b"OAUTHBEARER\0\0"), wire.NotSupportedError, "the server offers OAUTHBEARER for"),
        (request(10, b"SCRAM-SHA-256-PLUS\0\0"), wire.NotSupportedError, "the server offers SCRAM-SHA-256-PLUS"),
        (request(10, b"SCRAM-SHA-256\0\0"), wire.OperationalError, "skipped the proof"),
        (request(11, b"r=x,s=y,i=0"), wire.OperationalError, "SCRAM message before SCRAM was begun"),
        (request(12, b"v=x"), wire.OperationalError, "SCRAM message before SCRAM was begun"),
        (message(b"R"), wire.OperationalError, "an unexpected request for authentication"),
        (message(b"R", b"\0\0"), wire.OperationalError, "an unexpected request for authentication"),
    ],
)
def test_strange_authentication_request_has_its_own_error(asked: bytes, kind: str, says: str) -> None:
    """Each way to authenticate that is not offered here, or asked for out of turn, by its own words."""
    with FuzzServer() as server:
        server.plan(authentication=asked)
        options = {"user": "app", "host": server.host, "port": server.port, "password": "secret"}
        if kind is None:
            wire.connect(**options).close()
        else:
            with pytest.raises(kind, match=says) as raised:
                wire.connect(**options)
            assert type(raised.value) is kind
            assert "secret" not in f"{raised.value!r}"


@pytest.mark.parametrize("where", ["connect", "statement"])
def test_error_without_sqlstate_is_an_error(where: Any) -> None:
    """An ErrorResponse without SQLSTATE, or without anything, says that it lacks it."""
    for body, says in ((b"MBroken\0\0", "Broken"), (b"\0", "gave no message"), (b"", "gave no message")):
        with FuzzServer() as server:
            fault = Fault(lambda reply, body=body: [message(b"E", body)], "close")
            server.plan(**({"startup_fault": fault} if where == "connect" else {"query_faults": {0: fault}}))
            with pytest.raises(wire.DatabaseError, match=rf"{says}.*\(SQLSTATE missing\)") as raised:
                connection = wire.connect(user="app", host=server.host, port=server.port)
                connection.cursor().execute("SELECT $1", ("q-1",))
            assert raised.value.sqlstate is None


@pytest.mark.parametrize(
    ("length", "taken"), [(4, True), (32, True), (256, True), (257, False), (3, False), (0, False)]
)
def test_keys_for_cancelling_have_bounds(length: int, taken: bool) -> None:
    """Four bytes, or up to 256 with protocol 3.2; another key is no key."""
    key = message(b"K", struct.pack("!i", 1) + b"x" * length)
    with FuzzServer() as server:
        server.plan(startup_fault=Fault(lambda reply: [key if m[:1] == b"K" else m for m in reply]))
        if taken:
            connection = wire.connect(user="app", host=server.host, port=server.port)
            assert connection._cancel()
            connection.close()
        else:
            with pytest.raises(wire.OperationalError, match=f"a cancel key of {length} bytes"):
                wire.connect(user="app", host=server.host, port=server.port)


WIRE = os.path.dirname(wire.__file__) + os.sep


class Struck(BaseException):
    pass


def shown(failure: Any) -> Any:
    """What a crash reporter prints: the locals of every frame below the test's own."""
    trace, texts = failure.__traceback__.tb_next, []
    while trace is not None:
        texts += [f"{trace.tb_frame.f_code.co_qualname}: {n} = {v!r}" for n, v in trace.tb_frame.f_locals.items()]
        trace = trace.tb_next
    return texts


def secrets_of(password: str) -> list[Any]:
    inner = hashlib.md5(password.encode() + b"app").hexdigest()
    return [password, inner, hashlib.md5(inner.encode() + b"salt").hexdigest()]


# A socket that is struck before anybody holds it goes to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("method", ["clear text", "ahead", "md5", "SCRAM"])
def test_no_frame_shows_a_secret_wherever_it_is_struck(
    server: Postgres, clear: bool, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """
    An exception at each line that runs while a password is on its way, those of Python's `ssl` and `hmac` included.
    """
    server.execute(f"DROP ROLE IF EXISTS app; CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
    keys = []
    if method == "SCRAM":
        derive = hashlib.pbkdf2_hmac
        monkeypatch.setattr("hashlib.pbkdf2_hmac", lambda *a: (keys.append(derive(*a)), keys[-1])[1])
    lines, met = set(), [None]
    target = [None]

    def trace(frame: Any, event: Any, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not (name.startswith(WIRE) or name.endswith(("ssl.py", "hmac.py"))):
            return None
        place = (name, frame.f_lineno)
        if event == "line" and met[0] is None:
            if target[0] is None:
                lines.add(place)
            elif place == target[0]:
                met[0] = place
                raise Struck
        return trace

    with FuzzServer() as fuzz:
        fuzz.plan(authentication=request(5, b"salt"))
        options = {
            "clear text": address(clear),
            "ahead": {**address(clear), "password_ahead": True},
            "md5": {"user": "app", "host": fuzz.host, "port": fuzz.port},
            "SCRAM": address(server),
        }[method]

        def connect() -> None:
            sys.settrace(trace)
            try:
                wire.connect(**options, password=PASSWORD).close()
            finally:
                sys.settrace(None)

        connect()
        count = 0
        for place in sorted(lines):
            target[0], met[0] = place, None
            try:
                connect()
            except Struck as struck:
                count += 1
                # The first line of `connect` itself is where the argument is put away.
                texts = [text for text in shown(struck) if not text.startswith("test_")]
                hidden = [*secrets_of(PASSWORD), *(base64.b64encode(k).decode() for k in keys), *map(repr, keys)]
                found = [t for t in texts for s in hidden if s in t and not t.startswith("connect: password")]
                assert found == [], place
        gc.collect()
        assert count > 100


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("method", ["clear text", "SCRAM"])
def test_no_frame_shows_a_secret_when_the_server_refuses(
    server: Postgres, clear: bool, method: str, ahead: bool
) -> None:
    """The usual failure: a wrong password, or a method that does not take what went ahead."""
    chosen = address(clear if method == "clear text" else server)
    with pytest.raises(wire.OperationalError) as raised:
        wire.connect(**chosen, password="wrong horse battery", password_ahead=ahead)
    assert [text for text in shown(raised.value) if "wrong horse" in text] == []
