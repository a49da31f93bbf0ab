"""
Looks from inside the VPC at what the documentation leaves open; a Lambda function of `plungepool verify-aws`.

Needs nothing but the layer. The messages that are in question (named statements, start-up options, a Sync between Parse
and Bind) are sent as they are, by a client of a hundred lines that does what no driver does. Nothing returned or logged
holds a password, a token or a key, and no local variable does by itself: a crash reporter prints those of each frame
that an error has passed. So a password is only ever an attribute of a Login, whose repr leaves it out.

Variables: PLUNGEPOOL_* for the proxy (where there is none, the database), DIRECT_PLUNGEPOOL_* for the database itself
as the same role, and ADMIN_PLUNGEPOOL_* for its administrator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import ssl
import struct
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import text

from plungepool import Settings, build_engine, connect, iam, tls
from plungepool.credentials import Login

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_PROTOCOL_3_0 = 196608
_CANCEL = 80877102
_SCHEMA = "plungepool_probe"


def settings_of(prefix: str = "") -> Settings:
    """Return the settings of the proxy (no prefix), of the database (`DIRECT_`) or of its administrator (`ADMIN_`)."""
    return Settings.from_env(os.environ, prefix=prefix)


class Refused(Exception):
    """The server's error: SQLSTATE and text. SQLSTATE "none" where the other side said nothing."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(f"{sqlstate} {message}")
        self.sqlstate, self.message = sqlstate, message

    def document(self) -> dict[str, str]:
        return {"sqlstate": self.sqlstate, "message": self.message}


def parse(sql: str, name: str = "") -> bytes:
    return _message(b"P", name.encode() + b"\0" + sql.encode() + b"\0" + struct.pack("!h", 0))


def bind(*values: str, name: str = "") -> bytes:
    body = b"\0" + name.encode() + b"\0" + struct.pack("!hh", 0, len(values))
    for value in values:
        body += struct.pack("!i", len(value.encode())) + value.encode()
    return _message(b"B", body + struct.pack("!h", 0))


def query(sql: str) -> bytes:
    return _message(b"Q", sql.encode() + b"\0")


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


DESCRIBE, EXECUTE, SYNC = _message(b"D", b"P\0"), _message(b"E", b"\0\0\0\0\0"), _message(b"S")


class Session:
    """
    One session over the bare protocol: TLS as the settings say, a password in clear text within it, and start-up
    options.

    Args: login: as whom, with what password; as the settings say otherwise. direct: TLS at once, without a request for
        it. ahead: the password goes with the start-up message.
    Raises: Refused with the server's SQLSTATE; OSError, ssl.SSLError where there is no server or no trust.
    Units: timeout_s is seconds, of each wait.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        options: Mapping[str, str] | None = None,
        login: Login | None = None,
        timeout_s: float = 30.0,
        secure: bool = True,
        direct: bool = False,
        ahead: bool = False,
    ) -> None:
        if login is None:
            login = next(connect.source(settings).logins())
        self.key = 0, 0
        self.sock = _dial(settings, login.host, login.port, timeout_s, secure=secure, direct=direct)
        try:
            fields = {"user": login.user, "database": login.database, **(options or {})}
            body = b"".join(part.encode() + b"\0" for pair in fields.items() for part in pair) + b"\0"
            start = struct.pack("!ii", len(body) + 8, _PROTOCOL_3_0) + body
            self.sock.sendall(start if not ahead else start + _password(login))
            self._authenticate(None if ahead else login)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(_message(b"X"))
        self.sock.close()

    def send(self, *messages: bytes) -> list[list[str | None]]:
        """Send all messages in one flight, read one reply a Query or Sync among them, and return the rows of all."""
        self.sock.sendall(b"".join(messages))
        return self.replies(sum(message[:1] in (b"Q", b"S") for message in messages))

    def replies(self, count: int) -> list[list[str | None]]:
        """Read so many replies, each to its end, and return the rows of all."""
        rows: list[list[str | None]] = []
        failure: Refused | None = None
        for _ in range(count):
            while True:
                try:
                    kind, body = self._read()
                except Refused as silence:
                    # After a fatal error nothing follows.
                    raise failure or silence from None
                if kind == b"Z":
                    break
                if kind == b"E":
                    failure = failure or _refusal(body)
                elif kind == b"D":
                    rows.append(_row(body))
        if failure is not None:
            raise failure
        return rows

    def value(self, sql: str) -> str | None:
        return self.send(query(sql))[0][0]

    def _authenticate(self, login: Login | None) -> None:
        while True:
            kind, body = self._read()
            if kind == b"E":
                raise _refusal(body)
            if kind == b"Z":
                return
            if kind == b"K":
                self.key = struct.unpack_from("!ii", body)
            if kind != b"R":
                continue
            wanted = struct.unpack_from("!i", body)[0]
            if wanted == 3:
                if login is not None:
                    self.sock.sendall(_password(login))
            elif wanted:
                raise Refused("none", f"the server asks for authentication {wanted}, and a token needs clear text (3)")

    def _read(self) -> tuple[bytes, bytes]:
        header = self._exactly(5)
        return header[:1], self._exactly(struct.unpack_from("!i", header, 1)[0] - 4)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.sock.recv(count - len(data))
            if not more:
                raise Refused("none", "the other side hung up without a word")
            data += more
        return data


def _password(login: Login) -> bytes:
    # Not by _message, in whose frame it would be a local.
    return b"p" + struct.pack("!i", len(login.password.encode()) + 5) + login.password.encode() + b"\0"


def _dial(
    settings: Settings, host: str, port: int, timeout_s: float, *, secure: bool = True, direct: bool = False
) -> socket.socket:
    """Connect, with TLS as asked for. Raises: Refused, where the server does not offer it; OSError, ssl.SSLError."""
    how = dataclasses.replace(settings, tls_negotiation="direct" if direct else "postgres")
    context = tls.client_context(how) if secure else None
    sock = socket.create_connection((host, port), timeout=timeout_s)
    try:
        if context is None:
            return sock
        if not direct:
            sock.sendall(_SSL_REQUEST)
            if sock.recv(1) != b"S":
                raise Refused("none", "the server does not offer TLS")
        secured = context.wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise
    if direct and secured.selected_alpn_protocol() is None:
        secured.close()
        raise Refused("none", "TLS was agreed to, and not the protocol that runs in it (ALPN)")
    return secured


def _refusal(body: bytes) -> Refused:
    fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    return Refused(fields.get(b"C", "none"), fields.get(b"M", ""))


def _row(body: bytes) -> list[str | None]:
    values: list[str | None] = []
    at = 2
    for _ in range(struct.unpack_from("!h", body)[0]):
        length = struct.unpack_from("!i", body, at)[0]
        at += 4
        values.append(None if length < 0 else body[at : at + length].decode())
        at += max(length, 0)
    return values


# What each suspect sends, one flight an entry. The first two are the controls: they show that the method tells the two
# apart.
_INSERT = f"INSERT INTO {_SCHEMA}.numbered (note) VALUES ('probe')"
SUSPECTS: dict[str, list[list[bytes]]] = {
    "nothing": [[query("SELECT 1")]],
    "SET": [[query("SET work_mem = '5MB'")]],
    "BEGIN READ ONLY": [[query("BEGIN READ ONLY; SELECT 1; COMMIT")]],
    "SET LOCAL": [[query("BEGIN")], [query("SET LOCAL lock_timeout = '2s'")], [query("COMMIT")]],
    "set_config, local": [
        [query("BEGIN")],
        [query("SELECT set_config('lock_timeout', '2s', true)")],
        [query("COMMIT")],
    ],
    "identity column": [[query(_INSERT)]],
    "nextval": [[query(f"SELECT nextval('{_SCHEMA}.counter')")]],
    "advisory lock of a transaction": [[query("BEGIN; SELECT pg_advisory_xact_lock(7106); COMMIT")]],
    "declared cursor": [[query("BEGIN; DECLARE probe CURSOR FOR SELECT 1; FETCH probe; CLOSE probe; COMMIT")]],
    "over 16 KB": [[query("SELECT 1 /*" + "x" * 17000 + "*/")]],
    "pipelined, in a transaction": [
        [query("BEGIN"), parse("SELECT $1::int"), bind("1"), DESCRIBE, EXECUTE, SYNC],
        [query("COMMIT")],
    ],
    "pipelined, autocommit": [[parse("SELECT $1::int"), bind("1"), DESCRIBE, EXECUTE, SYNC]],
    "unnamed statement, a Sync after Parse": [
        [query("BEGIN")],
        [parse("SELECT $1::int"), SYNC],
        [bind("1"), DESCRIBE, EXECUTE, SYNC],
        [query("COMMIT")],
    ],
    "named statement": [[parse("SELECT $1::int", "probe"), bind("1", name="probe"), DESCRIBE, EXECUTE, SYNC]],
}


def probe_pinning(suspect: str, others: int = 8) -> dict[str, Any]:
    """
    Tell whether a client is pinned: nobody else gets the database connection that it used last.

    Others hold as many transactions open as they can. A proxy that multiplexes gives them the idle connections first,
    the suspect's among them; one that has pinned the suspect never does.
    Shape: {"pinned": bool, "backends": int, "began", "ended": seconds since the epoch} or {"refused": {...}, ...}
    """
    settings = settings_of()
    began = time.time()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Session(settings))
        # The others are there before: a connection that is opened for them later is no proof of anything.
        crowd = [stack.enter_context(Session(settings)) for _ in range(others)]
        try:
            for flight in SUSPECTS[suspect]:
                client.send(*flight)
            backend = client.value("SELECT pg_backend_pid()")
        except Refused as refused:
            return {"refused": refused.document(), "began": began, "ended": time.time()}
        held = set()
        for other in crowd:
            try:
                held.add(other.send(query("BEGIN; SELECT pg_backend_pid()"))[0][0])
            except (Refused, TimeoutError):
                break  # none left: all that there are have been seen
        return {"pinned": backend not in held, "backends": len(held | {backend}), "began": began, "ended": time.time()}


def probe_split(rounds: int = 40) -> dict[str, Any]:
    """
    Send Parse and Bind of an unnamed statement in two flights, outside a transaction, while others do the same.

    Shape: {"right": int, "wrong": int, "refused": {SQLSTATE: int}}; wrong is another client's value.
    """
    settings = settings_of()
    right = wrong = 0
    refused: dict[str, int] = {}
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal right, wrong
        session = Session(settings)
        try:
            for turn in range(rounds):
                mine = f"{number}-{turn}"
                try:
                    session.send(parse(f"SELECT $1::text || '|{number}'"), SYNC)
                    seen = session.send(bind(mine), DESCRIBE, EXECUTE, SYNC)
                except Refused as error:
                    with lock:
                        refused[error.sqlstate] = refused.get(error.sqlstate, 0) + 1
                    session.close()
                    session = Session(settings)
                    continue
                with lock:
                    if seen == [[f"{mine}|{number}"]]:
                        right += 1
                    else:
                        wrong += 1
        finally:
            session.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"right": right, "wrong": wrong, "refused": refused}


_OPTIONS: dict[str, dict[str, str]] = {
    "application_name": {"application_name": "plungepool probe"},
    "search_path": {"search_path": _SCHEMA},
    "statement_timeout": {"statement_timeout": "4000"},
    "lock_timeout": {"lock_timeout": "4000"},
    "work_mem": {"work_mem": "5MB"},
    "options -c": {"options": "-c statement_timeout=4000"},
}


def probe_startup(prefix: str = "") -> dict[str, Any]:
    """
    Connect with one start-up option after the other.

    Shape: {option: {"value": what SHOW says} or {"sqlstate", "message"}}
    """
    found: dict[str, Any] = {}
    for name, options in _OPTIONS.items():
        shown = "statement_timeout" if name == "options -c" else name
        found[name] = _attempt(partial(_shown, settings_of(prefix), options, shown))
    return found


def _shown(settings: Settings, options: Mapping[str, str], name: str) -> dict[str, Any]:
    with Session(settings, options=options) as session:
        return {"value": session.value(f"SHOW {name}")}


def _attempt(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return action()
    except Refused as refused:
        return refused.document()
    except (OSError, ssl.SSLError) as error:
        return {"sqlstate": "none", "message": f"{type(error).__name__}: {error}"}


def probe_refusals(prefix: str = "") -> dict[str, Any]:
    """
    Sign in with tokens that are wrong, each in one way, with one that ends early, and without TLS.

    Shape: {case: {"value": "let in"} or {"sqlstate", "message"}}
    """
    settings = settings_of(prefix)
    user, region = settings.user or "", settings.region or ""
    keys = iam.Keys(
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], os.environ.get("AWS_SESSION_TOKEN")
    )
    now = time.time()

    def token(*, to: str = user, at: float = now, region: str = region, ends: float | None = None) -> Login:
        signing = dataclasses.replace(keys, expires_at=ends)
        place = settings.host, settings.port
        return Login(user, iam.rds_token(*place, to, region, signing, at), *place, settings.database)

    wrong = "us-west-2" if region != "us-west-2" else "us-east-1"
    cases = {
        "a password": Login(user, "not a token", settings.host, settings.port, settings.database),
        "another user's token": token(to="somebody_else"),
        "another region's token": token(region=wrong),
        "a token of an hour ago": token(at=now - 3600),
        "a token of five minutes": token(ends=now + 300),
    }
    found: dict[str, Any] = {}
    for name, login in cases.items():
        found[name] = _attempt(partial(_let_in, settings, login=login))
    found["no TLS"] = _attempt(partial(_let_in, settings, secure=False))
    return found


def _let_in(settings: Settings, **how: Any) -> dict[str, Any]:
    with Session(settings, **how) as session:
        session.value("SELECT 1")
    return {"value": "let in"}


def probe_waits(prefix: str = "") -> dict[str, Any]:
    """
    Connect with fewer waits than the protocol's own: the password with the start-up message, TLS at once.

    Shape: {"password ahead", "direct TLS": {"value": "let in"} or {"sqlstate", "message"}}
    """
    settings = settings_of(prefix)
    return {
        "password ahead": _attempt(partial(_let_in, settings, ahead=True, timeout_s=10.0)),
        "direct TLS": _attempt(partial(_let_in, settings, direct=True, timeout_s=10.0)),
    }


def probe_session(prefix: str = "", sleep_s: float = 5.0, patience_s: float = 10.0) -> dict[str, Any]:
    """
    Cancel a statement, compare who was announced with who serves, and let a session idle past its own time-out.

    Shape: {"cancel", "announced": {"value"} or {"sqlstate", "message"}, "idle": {"sqlstate", "message"}}; idle is
        57P05 where the server's word of the end arrives, and "none" with a TimeoutError where nothing does.
    """
    settings = settings_of(prefix)
    return {
        "cancel": _attempt(partial(_cancelled, settings, sleep_s)),
        "announced": _attempt(partial(_announced, settings)),
        "idle": _attempt(partial(_idle, settings, patience_s)),
    }


def _cancelled(settings: Settings, sleep_s: float) -> dict[str, Any]:
    with Session(settings) as session:
        session.sock.sendall(query(f"SELECT pg_sleep({sleep_s})"))
        # It may be heard before the statement runs, and is then heard by nobody.
        time.sleep(sleep_s / 5)
        with _dial(settings, settings.host, settings.port, 10.0) as request:
            request.sendall(struct.pack("!iiii", 16, _CANCEL, *session.key))
        try:
            session.replies(1)
        except Refused as refused:
            if refused.sqlstate == "57014":
                return {"value": "cancelled"}
            raise
    return {"value": "ran to its end"}


def _announced(settings: Settings) -> dict[str, Any]:
    with Session(settings) as session:
        same = str(session.key[0]) == session.value("SELECT pg_backend_pid()")
    return {"value": "the process that serves" if same else "another process than the one that serves"}


def _idle(settings: Settings, patience_s: float) -> dict[str, Any]:
    with Session(settings, timeout_s=patience_s) as session:
        session.send(query("SET idle_session_timeout = '1s'"))
        session.replies(1)
    return {"value": "the session went on"}


def probe_capacity(prefix: str = "ADMIN_", most: int = 300) -> dict[str, Any]:
    """
    Hold sessions open until one is refused, as a role without a limit of its own.

    Shape: {"held": int, "max_connections": str}, and "sqlstate", "message" unless `most` were had.
    """
    settings = settings_of(prefix)
    found: dict[str, Any] = {"held": 0}
    with contextlib.ExitStack() as stack:
        while found["held"] < most:
            try:
                session = stack.enter_context(Session(settings))
                if not found["held"]:
                    found["max_connections"] = session.value("SHOW max_connections")
            except Refused as refused:
                return found | refused.document()
            found["held"] += 1
    return found


def probe_borrow(most: int = 60) -> dict[str, Any]:
    """
    Hold transactions open until the proxy has no connection left, and say how it refuses the next one.

    Shape: {"held": int, "sqlstate", "message", "waited_s": float}; without sqlstate if `most` were had.
    """
    settings = settings_of()
    with contextlib.ExitStack() as stack:
        for held in range(most):
            started = time.time()
            try:
                session = stack.enter_context(Session(settings, timeout_s=150))
                session.send(query("BEGIN; SELECT 1"))
            except Refused as refused:
                return {"held": held, **refused.document(), "waited_s": round(time.time() - started, 1)}
    return {"held": most}


def probe_tls(prefix: str = "") -> dict[str, Any]:
    """
    Shake hands in every way that matters.

    Shape: {"versions": {"TLSv1.2": bool, "TLSv1.3": bool}, "subject", "issuer", "chain_length",
        "trusted_by": {"region", "amazon roots", "runtime": bool}}
    """
    settings = settings_of(prefix)
    files = tls.shipped_authorities(settings.region) if settings.ca_file is None else [settings.ca_file]
    roots = [file for file in files if file.endswith("amazon-roots.pem")]
    contexts = {"region": _trusting(*(set(files) - set(roots))), "amazon roots": _trusting(*roots)}
    runtime = ssl.create_default_context()
    found: dict[str, Any] = {
        "versions": {},
        "trusted_by": {
            name: _handshake(settings, context) is not None
            for name, context in {**contexts, "runtime": runtime}.items()
        },
    }
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = _trusting(*files)
        context.minimum_version = context.maximum_version = version
        certificate = _handshake(settings, context)
        found["versions"][version.name.replace("_", ".")] = certificate is not None
        found.update(certificate or {})
    return found


def _trusting(*files: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for file in files:
        context.load_verify_locations(cafile=file)
    return context


def _handshake(settings: Settings, context: ssl.SSLContext) -> dict[str, Any] | None:
    """Return what the server shows, or None where it is not trusted or does not speak this version."""
    try:
        with socket.create_connection((settings.host, settings.port), timeout=10) as sock:
            sock.sendall(_SSL_REQUEST)
            if sock.recv(1) != b"S":
                return None
            with context.wrap_socket(sock, server_hostname=settings.host) as secured:
                leaf = secured.getpeercert() or {}
                chain = len(secured.get_unverified_chain()) if hasattr(secured, "get_unverified_chain") else 0
    except ssl.SSLError:
        return None
    return {"subject": _name(leaf.get("subject")), "issuer": _name(leaf.get("issuer")), "chain_length": chain}


def _name(pairs: Any) -> str:
    parts = {key: value for group in pairs or () for key, value in group}
    return str(parts.get("commonName") or parts.get("organizationName") or "")


_LIMITS = text("""
    SELECT name, setting FROM pg_settings
    WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections',
                   'rds.rds_superuser_reserved_connections', 'server_version', 'rds.force_ssl')
""")


def probe_prepare() -> dict[str, Any]:
    """
    As the administrator: make what the other probes need, and read the limits. Safe to run again.

    Shape: {"limits": {setting: value}, "secret_fields": [names] or None}
    """
    settings = settings_of("ADMIN_")
    role = settings_of().user or ""
    engine = build_engine(settings)
    try:
        with engine.begin() as connection:
            quoted = engine.dialect.identifier_preparer.quote(role)
            for statement in (
                # An administrator's names are PostgreSQL's own, whatever others have created (CVE-2018-1058).
                "SET LOCAL search_path = pg_catalog, pg_temp",
                f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}",
                f"CREATE TABLE IF NOT EXISTS {_SCHEMA}.numbered (id bigint GENERATED ALWAYS AS IDENTITY, note text)",
                f"CREATE SEQUENCE IF NOT EXISTS {_SCHEMA}.counter",
                f"GRANT USAGE ON SCHEMA {_SCHEMA} TO {quoted}",
                f"GRANT INSERT ON {_SCHEMA}.numbered TO {quoted}",
                f"GRANT USAGE ON {_SCHEMA}.counter TO {quoted}",
            ):
                connection.execute(text(statement))
            limits = {row.name: row.setting for row in connection.execute(_LIMITS)}
    finally:
        engine.dispose()
    return {"limits": limits, "secret_fields": _secret_fields(settings)}


def _secret_fields(settings: Settings) -> list[str] | None:
    """
    Return the names of the fields of the administrator's secret, and no value; None if it is no document of fields.
    """
    if settings.auth != "secret":
        return None
    import boto3

    client = boto3.session.Session().client("secretsmanager", region_name=settings.region)
    try:
        return sorted(json.loads(client.get_secret_value(SecretId=settings.secret_arn or "")["SecretString"]).keys())
    except (KeyError, ValueError, AttributeError):  # each of them would show what was read
        return None


def probe_rate(seconds: float = 5.0, threads: int = 8) -> dict[str, Any]:
    """
    Sign in to the database as often as possible. Shape: {"connects": int, "per_s": float, "refused": {SQLSTATE: int}}
    """
    settings = settings_of("DIRECT_")
    lock = threading.Lock()
    connects = 0
    refused: dict[str, int] = {}
    started = time.time()

    def work() -> None:
        nonlocal connects
        while time.time() - started < seconds:
            outcome = _attempt(partial(_let_in, settings))
            with lock:
                if "value" in outcome:
                    connects += 1
                else:
                    refused[outcome["sqlstate"]] = refused.get(outcome["sqlstate"], 0) + 1

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"connects": connects, "per_s": round(connects / (time.time() - started), 1), "refused": refused}


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": probe_prepare,
    "pinning": probe_pinning,
    "split": probe_split,
    "startup": probe_startup,
    "refusals": probe_refusals,
    "borrow": probe_borrow,
    "waits": probe_waits,
    "session": probe_session,
    "capacity": probe_capacity,
    "tls": probe_tls,
    "rate": probe_rate,
}


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Run one probe: {"probe": its name, and its arguments}."""
    arguments = {name: value for name, value in event.items() if name != "probe"}
    return PROBES[event["probe"]](**arguments)
