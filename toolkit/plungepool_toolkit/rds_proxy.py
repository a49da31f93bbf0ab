"""
A stand-in for Amazon RDS Proxy (PostgreSQL), strict enough that what passes it may be believed.

It does what the documentation says of the real one: TLS only, IAM tokens or SCRAM, transactions multiplexed over a few
database connections, a borrow time-out, an idle-client time-out, a client connection's life of 24 hours, pinning, start-up
options refused, cancel requests ignored. Where the documentation leaves two answers open, it takes the one that is harder
on the client. What it does not prove is in docs/rds-proxy.md.

Nothing here imports the package under test, nor botocore: a mistake in the one is not repeated in the other.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import hmac
import logging
import os
import secrets
import shlex
import signal
import ssl
import struct
import threading
import time
from collections import Counter, deque
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol, Self, TypeVar
from urllib.parse import quote, unquote

import pytest
import scramp
import typer
from scramp.utils import saslprep

from plungepool_toolkit.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from rich.console import Console

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)

_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST, _PROTOCOL_3_0 = 80877103, 80877104, 80877102, 196608
_STATEMENT_LIMIT = 16 * 1024
_TOKEN_LIFE_S = 900
_TOKEN_SKEW_S = 300
_LONGEST_BUFFER = 1 << 20
# What PostgreSQL reads: of a client that it does not know yet (PG_MAX_AUTH_TOKEN_LENGTH), and of anybody
# (PQ_LARGE_MESSAGE_LIMIT).
_LONGEST_PASSWORD, _LONGEST_MESSAGE = 65535, (1 << 30) - 1

# Aurora User Guide, "Considerations for connecting to PostgreSQL": what a start-up message may set. Names of settings
# are not case-sensitive.
_STARTUP_SETTINGS = frozenset(
    {"application_name", "client_encoding", "datestyle", "timezone", "extra_float_digits", "search_path"}
)


class Database(Protocol):
    """Where the proxied database listens; the toolkit's `Postgres` is one."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


class Address(NamedTuple):
    """The address of a database that is not the toolkit's."""

    host: str
    port: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Credential:
    """
    An AWS credential whose signatures the stand-in takes, as IAM would.

    expires_at: seconds since the epoch, for a role's temporary credentials; a token dies with them.
    database_users: the users that its policy allows for `rds-db:connect`; None for all.
    """

    access_key_id: str
    secret_access_key: str = dataclasses.field(repr=False)
    session_token: str | None = dataclasses.field(default=None, repr=False)
    expires_at: float | None = None
    database_users: frozenset[str] | None = None

    @classmethod
    def temporary(cls) -> Credential:
        """Return a made-up credential of the kind that a function's role has."""
        return cls(
            access_key_id="ASIA" + secrets.token_hex(8).upper(),
            secret_access_key=secrets.token_urlsafe(30),
            # With +, / and =, as real ones have, and of their length.
            session_token="IQoJ+/" + secrets.token_urlsafe(660) + "==",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """What a stand-in has seen and done since its start, at one moment; `clients` and `database_connections` are now."""

    clients: int = 0
    accepted: int = 0
    refused: Counter[str] = dataclasses.field(default_factory=Counter)
    transactions: int = 0
    borrows: int = 0
    borrow_timeouts: int = 0
    pinned: Counter[str] = dataclasses.field(default_factory=Counter)
    unnamed_statement_outlived: int = 0
    cancel_requests_ignored: int = 0
    idle_clients_closed: int = 0
    aged_clients_closed: int = 0
    database_connections: int = 0
    database_connections_peak: int = 0
    database_connections_lost: int = 0
    failovers: int = 0


# ----------------------------------------------------------------------------------------------------------------------
# IAM tokens


class TokenRefused(Exception):
    """Why a token is not accepted, in words that hold nothing of it."""


def verify_token(
    token: str, *, user: str, endpoints: Iterable[str], region: str, credentials: Iterable[Credential], now: float
) -> None:
    """
    Verify an RDS authentication token: a presigned request (SigV4, service rds-db) without its scheme.

    Args: endpoints: `host:port` of what the client may have signed for. now: seconds since the epoch.
    Raises: TokenRefused.
    Source: IAM User Guide, "Create a signed AWS API request"; RDS User Guide, "IAM database authentication".
    """
    host, slash, query = token.partition("/?")
    if not slash:
        raise TokenRefused("it is no token")
    fields: dict[str, str] = {}
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if not equals or unquote(name) in fields:
            raise TokenRefused("it is malformed")
        fields[unquote(name)] = unquote(value)
    try:
        signature = fields.pop("X-Amz-Signature")
        key_id, day, signed_region, service, end = fields["X-Amz-Credential"].split("/")
        stamp = fields["X-Amz-Date"]
        signed_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        life = int(fields["X-Amz-Expires"])
        fixed = fields["Action"], fields["X-Amz-Algorithm"], fields["X-Amz-SignedHeaders"], fields["DBUser"]
    except (KeyError, ValueError) as error:
        raise TokenRefused("it is malformed") from error
    unknown = fields.keys() - {
        "Action", "DBUser", "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires",
        "X-Amz-Security-Token", "X-Amz-SignedHeaders",
    }  # fmt: skip
    if fixed[:3] != ("connect", "AWS4-HMAC-SHA256", "host") or unknown:
        raise TokenRefused("it is malformed")
    if fixed[3] != user:
        raise TokenRefused("it is signed for another user")
    if host not in endpoints:
        raise TokenRefused("it is signed for another host or port")
    if signed_region != region:
        raise TokenRefused("it is signed for another region")
    if (service, end) != ("rds-db", "aws4_request") or not stamp.startswith(day + "T"):
        raise TokenRefused("it is signed for another scope")
    credential = next((one for one in credentials if one.access_key_id == key_id), None)
    if credential is None:
        raise TokenRefused("its access key is unknown")
    if fields.get("X-Amz-Security-Token") != credential.session_token:
        raise TokenRefused("its session token is missing or another one")

    canonical_query = "&".join(f"{quote(name, safe='')}={quote(fields[name], safe='')}" for name in sorted(fields))
    payload = hashlib.sha256().hexdigest()
    canonical = "\n".join(("GET", "/", canonical_query, f"host:{host}", "", "host", payload))
    scope = f"{day}/{region}/rds-db/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = b"AWS4" + credential.secret_access_key.encode()
    for part in (*scope.split("/"), to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(key.hex().encode(), signature.encode()):
        raise TokenRefused("its signature does not match")

    if not life > 0 or now >= signed_at + min(life, _TOKEN_LIFE_S):
        raise TokenRefused("it has expired")
    if now < signed_at - _TOKEN_SKEW_S:
        raise TokenRefused("it is signed in the future")
    if credential.expires_at is not None and now >= credential.expires_at:
        raise TokenRefused("the credentials that signed it have expired")
    if credential.database_users is not None and user not in credential.database_users:
        raise TokenRefused("no policy allows rds-db:connect as this user")


# ----------------------------------------------------------------------------------------------------------------------
# What pins: read character by character. `plungepool.observe` reads the same language by patterns; the tests hold the one
# against the other, so this must not be made out of that.

_LEADING = {
    "set": "SET", "reset": "RESET", "prepare": "PREPARE", "execute": "EXECUTE", "deallocate": "DEALLOCATE",
    "discard": "DISCARD", "listen": "LISTEN", "unlisten": "LISTEN", "load": "LOAD", "declare": "DECLARE",
}  # fmt: skip
_CALLS = {
    "nextval": "nextval", "setval": "setval", "set_config": "set_config",
    "pg_advisory_lock": "advisory lock", "pg_advisory_lock_shared": "advisory lock",
    "pg_try_advisory_lock": "advisory lock", "pg_try_advisory_lock_shared": "advisory lock",
    "pg_advisory_unlock": "advisory lock", "pg_advisory_unlock_shared": "advisory lock",
    "pg_advisory_unlock_all": "advisory lock",
}  # fmt: skip
# After one of these words a name followed by a parenthesis is being defined or filled, not called.
_NAMING = {
    "aggregate", "as", "copy", "exists", "function", "into", "only", "procedure", "recursive", "references", "routine",
    "table", "with",
}  # fmt: skip
_AFTER_INTO = {
    "except", "fetch", "for", "from", "group", "having", "intersect", "limit", "offset", "order", "union", "values",
    "where", "window",
}  # fmt: skip


class _Token(NamedTuple):
    kind: Literal["word", "name", "sign", "string"]
    text: str


def _tokens(sql: str) -> Iterator[_Token]:
    """Yield words in lower case, names with their opening quote, signs, and nothing of what a string holds."""
    at, end = 0, len(sql)
    while at < end:
        char = sql[at]
        following = sql[at + 1 : at + 2]
        if char in " \t\n\r\f\v":
            at += 1
        elif char == "-" and following == "-":
            while at < end and sql[at] not in "\r\n":
                at += 1
        elif char == "/" and following == "*":
            at = _after_comment(sql, at)
        elif char == "'":
            at = _after_quoted(sql, at, backslash=False)
            yield _Token("string", "")
        elif char == '"':
            past = _after_quoted(sql, at, backslash=False)
            yield _Token("name", '"' + sql[at + 1 : past - 1].replace('""', '"'))
            at = past
        elif char in "eE" and following == "'":
            at = _after_escaped(sql, at + 1)
            yield _Token("string", "")
        elif _starts_word(char):
            past = at + 1
            while past < end and (_starts_word(sql[past]) or sql[past].isdigit() or sql[past] == "$"):
                past += 1
            word = sql[at:past]
            # PostgreSQL folds ASCII here; str.lower would make an ASCII letter of U+212A.
            yield _Token("word", word.lower() if word.isascii() else word)
            at = past
        elif char == "$" and (closing := _after_dollars(sql, at)):
            yield _Token("string", "")
            at = closing
        elif char.isdigit() or char == "$":
            at += 1
            while at < end and sql[at].isascii() and (sql[at].isalnum() or sql[at] in "._"):
                at += 1
            yield _Token("sign", "0")
        else:
            yield _Token("sign", char)
            at += 1


def _starts_word(char: str) -> bool:
    return char == "_" or char > "\x7f" or char.isalpha()


def _after_comment(sql: str, at: int) -> int:
    depth = 0
    while at < len(sql):
        pair = sql[at : at + 2]
        if pair == "/*":
            depth += 1
            at += 2
        elif pair == "*/":
            depth -= 1
            at += 2
            if not depth:
                return at
        else:
            at += 1
    return at


def _after_quoted(sql: str, at: int, *, backslash: bool) -> int:
    quoting = sql[at]
    at += 1
    while at < len(sql):
        if backslash and sql[at] == "\\":
            at += 2
        elif sql[at] != quoting:
            at += 1
        elif sql[at + 1 : at + 2] == quoting:
            at += 2
        else:
            return at + 1
    return len(sql)


def _after_escaped(sql: str, at: int) -> int:
    """Return where an E'' string ends that opens at `at`: a string that follows on a new line is a part of it."""
    while True:
        at = past = _after_quoted(sql, at, backslash=True)
        line = False
        while past < len(sql):
            if sql[past] in " \t\f\v":
                past += 1
            elif sql[past] in "\r\n":
                line = True
                past += 1
            elif sql[past : past + 2] == "--":
                while past < len(sql) and sql[past] not in "\r\n":
                    past += 1
            else:
                break
        if not line or sql[past : past + 1] != "'":
            return at
        at = past


def _after_dollars(sql: str, at: int) -> int | None:
    past = at + 1
    while past < len(sql) and (_starts_word(sql[past]) or (past > at + 1 and sql[past].isdigit())):
        past += 1
    if sql[past : past + 1] != "$":
        return None
    tag = sql[at : past + 1]
    closing = sql.find(tag, past + 1)
    return len(sql) if closing < 0 else closing + len(tag)


@lru_cache(maxsize=2048)
def why_pinned(sql: str) -> str | None:
    """Return the first reason in a query's text, several statements perhaps, to pin its client; None if there is none."""
    return next((why for statement in _split(sql) if (why := _why(statement)) is not None), None)


def _split(sql: str) -> Iterator[list[_Token]]:
    """Yield the tokens of each statement: no semicolon in parentheses or in BEGIN ATOMIC ... END ends one."""
    statement: list[_Token] = []
    depth = atomic = 0
    for token in _tokens(sql):
        if token == ("sign", ";") and depth <= 0 and not atomic:
            yield statement
            statement, depth = [], 0
            continue
        statement.append(token)
        text = token.text
        depth += (text == "(") - (text == ")")
        if text == "atomic" and statement[0].text == "create" and statement[-2].text == "begin":
            atomic += 1
        elif atomic:
            atomic += (text == "case") - (text == "end")
    yield statement


def _why(statement: list[_Token]) -> str | None:
    texts = [token.text for token in statement] + [""] * 4
    at = 0
    if texts[0] == "explain":
        at = _after_explain(texts)
    if texts[at] in _LEADING:
        return "SET LOCAL" if texts[at : at + 2] == ["set", "local"] else _LEADING[texts[at]]
    creating = texts[at] == "create"
    defining = False
    if creating:
        kind = at + 1
        while texts[kind] in ("or", "replace", "local", "global"):
            kind += 1
        if texts[kind] in ("temp", "temporary"):
            return "temporary object"
        defining = texts[kind] in ("function", "procedure")
    for place in range(at, len(statement)):
        text, after = texts[place], texts[place + 1]
        before = texts[place - 1] if place else ""
        if creating and text in ("pg_temp", '"pg_temp') and after == ".":
            return "temporary object"
        if defining:
            continue  # its body does not run now
        if creating and (before, text) == ("as", "execute"):
            return "EXECUTE"
        if text == "into" and before not in ("insert", "merge") and _names_temporary(statement, texts, place + 1):
            return "temporary object"
        if after == "(" and (call := _CALLS.get(text.removeprefix('"'))) is not None:
            catalog = place > 1 and texts[place - 2] in ("pg_catalog", '"pg_catalog')
            if catalog if before == "." else before not in _NAMING:
                return call
    return None


def _after_explain(texts: list[str]) -> int:
    at = 1
    while texts[at] in ("analyze", "verbose"):
        at += 1
    # Options in parentheses; a query may stand in parentheses, too.
    if texts[at] == "(" and texts[at + 1] not in ("(", "select", "values", "with", "table") and ")" in texts[at:]:
        at = texts.index(")", at) + 1
    return at


def _names_temporary(statement: list[_Token], texts: list[str], at: int) -> bool:
    """Tell whether what follows INTO is a temporary table: TEMP may also be the name of an ordinary one."""
    if texts[at] in ("local", "global"):
        at += 1
    if texts[at] in ("pg_temp", '"pg_temp') and texts[at + 1] == ".":
        return True
    if texts[at] not in ("temp", "temporary") or at + 1 >= len(statement):
        return False
    following = statement[at + 1]
    return following.kind == "name" or (following.kind == "word" and following.text not in _AFTER_INTO)


# ----------------------------------------------------------------------------------------------------------------------
# The wire


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _strings(*values: str) -> bytes:
    return b"".join(value.encode() + b"\0" for value in values)


def _error(code: str, text: str) -> bytes:
    return _message(b"E", _strings("SFATAL", "VFATAL", "C" + code, "M" + text) + b"\0")


def _field(message: bytes, name: bytes) -> str:
    for field in message[5:].split(b"\0"):
        if field[:1] == name:
            return field[1:].decode(errors="replace")
    return ""


class _Malformed(ConnectionError):
    """The other side has sent a length that no message has; where the next one begins is not known any more."""


class _Peer(asyncio.Protocol):
    """
    One side of a conversation: whole messages out of what has arrived, and an event that is set when anything changes.

    No task reads in the background and none is ever cancelled in the middle of a message: a message is either in the
    buffer or taken.
    """

    def __init__(self, connected: Callable[[_Peer], None] | None = None) -> None:
        self.wake = asyncio.Event()
        self.closed = False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_gone: Callable[[], None] | None = None
        self.longest = _LONGEST_MESSAGE
        self.transport: asyncio.Transport
        self._connected = connected
        self._buffer = bytearray()
        self._full = self._reading_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's transport, as create_server promises
        if self._connected is not None:
            self._connected(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _LONGEST_BUFFER and not self._reading_paused and self._complete():
            self.transport.pause_reading()
            self._reading_paused = True
        self.wake.set()

    def eof_received(self) -> None:
        self.closed = True
        self.wake.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.closed = True
        if not self.gone.done():
            self.gone.set_result(None)
        if self.on_gone is not None:
            self.on_gone()
        self.wake.set()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self.wake.set()

    def can_write(self) -> bool:
        """Tell whether there is room: False while the other side does not read: what is for it has to wait."""
        return not self._full or self.closed

    @property
    def unread(self) -> bool:
        return bool(self._buffer)

    def write(self, data: bytes | bytearray) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def take(self) -> bytes | None:
        """Return the next whole message with its header, or None if it has not arrived yet. Raises: _Malformed."""
        length = self._length()
        if length is None:
            if self._reading_paused and not self.transport.is_closing():
                self.transport.resume_reading()
            self._reading_paused = False
            return None
        return self.take_bytes(length)

    def take_bytes(self, length: int) -> bytes:
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    async def read(self) -> bytes:
        """Return the next whole message, waiting for it. Raises: ConnectionError."""
        while (message := self.take()) is None:
            await self.changed()
        return message

    async def read_startup(self) -> bytes:
        """Return the next message of a kind that has no type: a length and a body."""
        while len(self._buffer) < 4:
            await self.changed()
        length: int = struct.unpack_from("!i", self._buffer)[0]
        if not 8 <= length <= 10_000:  # however much of it has come already
            raise ConnectionError("no start-up message of PostgreSQL's protocol")
        while len(self._buffer) < length:
            await self.changed()
        return self.take_bytes(length)

    async def changed(self) -> None:
        if self.closed:
            raise ConnectionError("closed by the other side")
        self.wake.clear()
        await self.wake.wait()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(
                self.transport, self, context, server_side=True, ssl_handshake_timeout=10, ssl_shutdown_timeout=1
            )
            if transport is None:
                raise ConnectionError("closed during the TLS handshake")
        except BaseException:
            self.connection_lost(None)  # asyncio does not tell when it ends during the handshake
            raise
        self.transport = transport

    def _length(self) -> int | None:
        if len(self._buffer) < 5:
            return None
        length: int = struct.unpack_from("!i", self._buffer, 1)[0]
        if not 4 <= length <= self.longest:
            raise _Malformed("invalid message length")
        return length + 1 if len(self._buffer) > length else None

    def _complete(self) -> bool:
        """Tell whether there is no need to read on before somebody takes what is there."""
        try:
            return self._length() is not None
        except _Malformed:
            return True


class _Refused(Exception):
    """A client's connection ends with this error message; `reason` is what the counters call it."""

    def __init__(self, code: str, text: str, reason: str | None = None) -> None:
        super().__init__(text)
        self.message = _error(code, text)
        self.reason = reason


class _DatabaseRefused(Exception):
    """The database refused a connection or a setting; its own error message is passed on to the client."""

    def __init__(self, message: bytes) -> None:
        super().__init__(_field(message, b"M"))
        self.message = message
        # Starting up, shutting down, too many connections: a proxy waits for such a database.
        self.transient = _field(message, b"C") in ("57P03", "57P01", "57P02", "53300")


class _BorrowTimeout(Exception):
    """No database connection within the borrow time-out."""


_Key = tuple[str, str]
_Settings = tuple[tuple[str, str], ...]


class _Server:
    """One connection to the database."""

    def __init__(self, peer: _Peer, key: _Key) -> None:
        self.peer, self.key = peer, key
        self.parameters: dict[str, str] = {}
        self.settings: _Settings = ()

    @classmethod
    async def open(cls, address: Address, key: _Key, password: str | None) -> _Server:
        """Connect and authenticate. Raises: OSError, _DatabaseRefused."""
        loop = asyncio.get_running_loop()
        _transport, peer = await loop.create_connection(_Peer, address.host, address.port)
        self = cls(peer, key)
        try:
            user, database = key
            body = struct.pack("!i", _PROTOCOL_3_0) + _strings("user", user, "database", database) + b"\0"
            peer.write(struct.pack("!i", len(body) + 4) + body)
            await self._authenticate(user, password)
            while (message := await peer.read())[:1] != b"Z":
                self._note(message)
        except BaseException:
            peer.transport.abort()
            raise
        return self

    async def _authenticate(self, user: str, password: str | None) -> None:
        scram: scramp.ScramClient | None = None
        while True:
            message = await self.peer.read()
            self._note(message)
            if message[:1] != b"R":
                continue
            kind, rest = struct.unpack_from("!i", message, 5)[0], message[9:]
            if kind == 0:
                return
            if password is None:
                raise _DatabaseRefused(
                    _error("28P01", f"The proxy has no password for {user}, and the database asks for one.")
                )
            if kind == 3:
                self.peer.write(_message(b"p", _strings(password)))
            elif kind == 10:
                scram = scramp.ScramClient(["SCRAM-SHA-256"], user, password)
                first = scram.get_client_first().encode()
                self.peer.write(_message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first))
            elif kind == 11 and scram is not None:
                scram.set_server_first(rest.decode())
                self.peer.write(_message(b"p", scram.get_client_final().encode()))
            elif kind == 12 and scram is not None:
                scram.set_server_final(rest.decode())

    async def adopt(self, wanted: _Settings) -> None:
        """Make the session what the client asked for at its start-up; others' settings go. Raises: _DatabaseRefused."""
        if wanted == self.settings:
            return
        new = dict(wanted)
        orders = [f"RESET {name}" for name, _value in self.settings if name not in new]
        for name, value in wanted:
            literal = value.replace("'", "''")
            orders.append(f"SELECT pg_catalog.set_config('{name}', '{literal}', false)")
        self.peer.write(_message(b"Q", _strings(";".join(orders))))
        failure: _DatabaseRefused | None = None
        while (message := await self.peer.read())[:1] != b"Z":
            try:
                self._note(message)
            except _DatabaseRefused as refused:
                failure = refused
        if failure is not None:
            raise failure
        self.settings = wanted

    def _note(self, message: bytes) -> None:
        if message[:1] == b"E":
            raise _DatabaseRefused(message)
        if message[:1] == b"S":
            name, value, _end = message[5:].split(b"\0", 2)
            self.parameters[name.decode()] = value.decode()

    def note_parameter(self, message: bytes) -> None:
        self._note(message)

    def alive(self) -> bool:
        """Tell whether an unused connection still lives, by what has arrived unasked."""
        try:
            while (message := self.peer.take()) is not None:
                self._note(message)
        except _DatabaseRefused:
            return False
        return not self.peer.closed


class _Pool:
    """At most `limit` connections to the database, for all users together, as RDS Proxy's percentage is."""

    def __init__(self, limit: int, open_server: Callable[[_Key], Coroutine[None, None, _Server]]) -> None:
        self._limit, self._open = limit, open_server
        self._idle: deque[_Server] = deque()
        self._waiting: deque[tuple[_Key, asyncio.Future[_Server | None]]] = deque()
        self._opening = 0
        self.servers: set[_Server] = set()
        self.peak = self.lost = 0

    async def borrow(self, key: _Key, avoid: _Server | None, timeout_s: float) -> _Server:
        """
        Return a connection that nobody else uses, rather another one than `avoid`.

        Raises: _BorrowTimeout; _DatabaseRefused if waiting does not help.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            server = await self._slot(key, avoid, end - loop.time())
            if server is None:
                server = await self._fill_slot(key, end)
            if server is not None:
                if server.alive():
                    return server
                self.discard(server)

    async def _fill_slot(self, key: _Key, end: float) -> _Server | None:
        """Open a connection in a slot that is ours; None if the database is away at the moment, after a pause."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(end):
                server = await self._open(key)
        except (OSError, _DatabaseRefused, TimeoutError) as error:
            self._free_slot()
            if isinstance(error, _DatabaseRefused) and not error.transient:
                raise
            if loop.time() >= end:
                raise _BorrowTimeout from error
            await asyncio.sleep(0.05)
            return None
        except BaseException:
            self._free_slot()
            raise
        self._opening -= 1
        self.servers.add(server)
        self.peak = max(self.peak, len(self.servers))
        server.peer.on_gone = lambda: self._forget(server, lost=True)
        return server

    async def _slot(self, key: _Key, avoid: _Server | None, timeout_s: float) -> _Server | None:
        """Return an unused connection, or None for the right to open one."""
        ours = [server for server in self._idle if server.key == key]
        if ours:
            # Never the same again if there is a choice: a client that counts on it is to be found out.
            chosen = next((server for server in ours if server is not avoid), ours[0])
            self._idle.remove(chosen)
            return chosen
        if len(self.servers) + self._opening < self._limit:
            self._opening += 1
            return None
        if self._idle:
            self._opening += 1
            self.discard(self._idle[0])
            return None
        waiter: asyncio.Future[_Server | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, waiter))
        try:
            await asyncio.wait({waiter}, timeout=max(timeout_s, 0))
        except asyncio.CancelledError:
            if waiter.done():
                self._return(waiter.result())
            waiter.cancel()
            raise
        if not waiter.done():
            waiter.cancel()
            raise _BorrowTimeout
        return waiter.result()

    def give_back(self, server: _Server) -> None:
        # Nobody's event any more: whatever arrives now is looked at by the next borrower.
        server.peer.wake = asyncio.Event()
        if server.peer.closed:
            self.discard(server)
            return
        while self._waiting:
            key, waiter = self._waiting.popleft()
            if waiter.done():
                continue
            if key == server.key:
                waiter.set_result(server)
            else:
                self._opening += 1
                waiter.set_result(None)
                self.discard(server)
            return
        self._idle.append(server)

    def discard(self, server: _Server) -> None:
        self._forget(server, lost=False)
        server.peer.transport.abort()

    def _forget(self, server: _Server, *, lost: bool) -> None:
        if server in self.servers:
            self.servers.remove(server)
            self.lost += lost
            if server in self._idle:
                self._idle.remove(server)
            self._wake_one()

    def _free_slot(self) -> None:
        self._opening -= 1
        self._wake_one()

    def _wake_one(self) -> None:
        while self._waiting and len(self.servers) + self._opening < self._limit:
            _key, waiter = self._waiting.popleft()
            if not waiter.done():
                self._opening += 1
                waiter.set_result(None)
                return

    def _return(self, got: _Server | None) -> None:
        if got is None:
            self._free_slot()
        else:
            self.give_back(got)

    def cut(self) -> None:
        """Cut every connection at once, as a database that fails does."""
        for server in list(self.servers):
            self._forget(server, lost=True)
            server.peer.transport.abort()


class _ScramServer:
    """The server's half of SCRAM-SHA-256 without channel binding (RFC 5802, RFC 7677); ValueError or KeyError is a refusal."""

    def __init__(self, password: str) -> None:
        self._salt, self._iterations = secrets.token_bytes(16), 4096
        try:
            prepared = saslprep(password) or password
        except scramp.ScramException:
            prepared = password  # what SASLprep refuses, libpq and PostgreSQL take as it is
        self._salted = hashlib.pbkdf2_hmac("sha256", prepared.encode(), self._salt, self._iterations)
        self._header = self._said = self._nonce = b""

    def first(self, message: bytes) -> bytes:
        """Return the server's first message. libpq sends no user name here: it stands in the start-up message."""
        flag, authorization, bare = message.split(b",", 2)
        nonce = self._fields(bare)[b"r"]
        if flag not in (b"n", b"y") or authorization or not nonce:
            raise ValueError("malformed")
        self._header = message[: -len(bare)]
        self._nonce = nonce + base64.b64encode(secrets.token_bytes(18))
        reply = b"r=%s,s=%s,i=%d" % (self._nonce, base64.b64encode(self._salt), self._iterations)
        self._said = bare + b"," + reply
        return reply

    def final(self, message: bytes) -> bytes:
        """Verify the client's proof and return the server's."""
        without_proof, _comma, _proof = message.rpartition(b",")
        fields = self._fields(message)
        if fields[b"r"] != self._nonce or base64.b64decode(fields[b"c"], validate=True) != self._header:
            raise ValueError("another conversation's")
        said = self._said + b"," + without_proof
        key = hmac.digest(self._salted, b"Client Key", "sha256")
        stored = hashlib.sha256(key).digest()
        mask = hmac.digest(stored, said, "sha256")
        claimed = bytes(a ^ b for a, b in zip(base64.b64decode(fields[b"p"], validate=True), mask, strict=True))
        if not hmac.compare_digest(hashlib.sha256(claimed).digest(), stored):
            raise ValueError("the proof is wrong")
        own = hmac.digest(self._salted, b"Server Key", "sha256")
        return b"v=" + base64.b64encode(hmac.digest(own, said, "sha256"))

    @staticmethod
    def _fields(message: bytes) -> dict[bytes, bytes]:
        return {part[:1]: part[2:] for part in message.split(b",")}


class _Session:
    """One client, from its first byte to its last."""

    def __init__(self, proxy: RdsProxy, peer: _Peer) -> None:
        self.proxy, self.peer = proxy, peer
        self.born = self.active = proxy.now()
        peer.longest = _LONGEST_PASSWORD
        self.expiry: _Refused | None = None
        self.ready = False
        self.user = self.database = ""
        self._settings: _Settings = ()
        self._server: _Server | None = None
        self._last: _Server | None = None
        self._pinned = False
        # Where the conversation stands; see `_from_client` and `_from_server`.
        self._simple = self._awaiting = self._copying = self._started = False
        self._copies_ended_ahead = 0
        self._status = b"I"
        self._unnamed_is_ours = self._told = False

    async def run(self) -> None:
        counts = self.proxy._counts
        try:
            await self._start()
            counts["accepted"] += 1
            self.ready = True
            self.peer.longest = _LONGEST_MESSAGE
            await self._relay()
        except _Refused as refused:
            if refused.reason is not None:
                self.proxy._refused[refused.reason] += 1
                _log.info("client refused: %s", refused.reason)
            self.peer.write(refused.message)
        except _DatabaseRefused as refused:
            self.proxy._refused["the database refused"] += 1
            self.peer.write(refused.message)
        except _BorrowTimeout:
            counts["borrow_timeouts"] += 1
            self.peer.write(_error("08000", "Timed-out waiting to acquire database connection."))
        except _Malformed as malformed:
            self.proxy._refused["malformed"] += 1
            self.peer.write(_error("08P01", str(malformed)))
        except (OSError, ssl.SSLError):
            pass  # the client went away
        finally:
            self.proxy._sessions.pop(self, None)
            if (server := self._server) is not None:
                self._server = None
                self.proxy._pool.discard(server)
            self.peer.transport.close()

    # Start-up

    async def _start(self) -> None:
        async with asyncio.timeout(30):
            fields = await self._read_startup()
            self._check(fields)
            await self._authenticate()
        settings = {name.lower(): value for name, value in fields.items() if name not in ("user", "database")}
        self._settings = tuple(sorted(settings.items()))
        parameters = await self._first_parameters()
        reply = bytearray(_message(b"R", struct.pack("!i", 0)))
        for name, value in parameters.items():
            reply += _message(b"S", _strings(name, value))
        # A key that cancels nothing: RDS Proxy does not support CancelRequest.
        reply += _message(b"K", struct.pack("!i", os.getpid()) + secrets.token_bytes(4))
        self.peer.write(reply + _message(b"Z", b"I"))

    async def _read_startup(self) -> dict[str, str]:
        peer = self.peer
        secure = False
        while True:
            body = await peer.read_startup()
            code = struct.unpack_from("!i", body, 4)[0]
            if code == _SSL_REQUEST and not secure:
                if peer.unread:
                    # CVE-2021-23214: what came before the handshake must not be taken for what comes after it.
                    raise _Refused("08P01", "Unencrypted data after the request for TLS.", "data before TLS")
                peer.write(b"S")
                await peer.start_tls(self.proxy._tls)
                secure = True
            elif code == _GSS_REQUEST:
                peer.write(b"N")
            elif code == _CANCEL_REQUEST:
                self.proxy._counts["cancel_requests_ignored"] += 1
                raise ConnectionError("a cancel request, ignored")
            else:
                break
        if code != _PROTOCOL_3_0:
            raise _Refused(
                "0A000",
                "Feature not supported: RDS Proxy supports only version 3.0 of the PostgreSQL messaging protocol.",
                "protocol version",
            )
        if not secure:
            text = "IAM is allowed only with SSL connections." if self.proxy.auth == "iam" else None
            raise _Refused("28000", text or "This RDS Proxy requires TLS connections", "plain text")
        try:
            parts = body[8:].decode().split("\0")
        except UnicodeDecodeError:
            raise _Refused("08P01", "The start-up message is not UTF-8.", "malformed") from None
        return dict(zip(parts[0:-2:2], parts[1:-1:2], strict=False))

    def _check(self, fields: dict[str, str]) -> None:
        self.user = fields.get("user", "")
        self.database = fields.get("database", "") or self.user
        if not self.user:
            raise _Refused(
                "28000",
                "The user name is missing from the connection startup packet. Provide a user name for this connection.",
                "no user",
            )
        for name in fields:
            if name in ("user", "database") or name.lower() in _STARTUP_SETTINGS:
                continue
            if name == "options":
                what = "command-line options"
            elif name == "replication":
                what = "streaming replication mode"
            else:
                what = f"the option {name}"
            raise _Refused(
                "0A000",
                f"Feature not supported: RDS Proxy currently doesn't support {what}.",
                f"start-up option {name}",
            )
        if len(self.proxy._sessions) > self.proxy.max_clients:
            raise _Refused(
                "53300",
                f"The maximum number of client connections to the proxy exceeded {self.proxy.max_clients}.",
                "too many clients",
            )

    async def _authenticate(self) -> None:
        proxy, user = self.proxy, self.user
        # A user whom nobody knows is asked for a password like any other, and told afterwards.
        expected = (proxy.users or {}).get(user)
        if proxy.auth == "scram":
            await self._scram(expected)
            return
        self.peer.write(_message(b"R", struct.pack("!i", 3)))
        given = await self._password()
        if proxy.auth == "password":
            if expected is None or not hmac.compare_digest(given, expected.encode()):
                raise self._wrong_password()
            return
        try:
            verify_token(
                given.decode(),
                user=user,
                endpoints=proxy.endpoints,
                region=proxy.region,
                credentials=proxy.credentials,
                now=proxy.now(),
            )
        except (TokenRefused, UnicodeDecodeError) as refused:
            why = str(refused) if isinstance(refused, TokenRefused) else "it is no token"
            raise _Refused(
                "28P01",
                f"The IAM authentication failed for the role {user}. Check the IAM token for this role and try again.",
                f"IAM token: {why}",
            ) from None
        if proxy.users is not None and user not in proxy.users:
            raise _Refused(
                "28P01",
                f"This RDS proxy has no credentials for the role {user}. Check the credentials for this role and try again.",
                "no credentials for the role",
            )

    async def _password(self) -> bytes:
        message = await self.peer.read()
        if message[:1] != b"p":
            raise _Refused("08P01", "A password message was expected.", "malformed")
        return message[5:].rstrip(b"\0")

    async def _scram(self, expected: str | None) -> None:
        self.peer.write(_message(b"R", struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0"))
        message = await self.peer.read()
        mechanism, _null, rest = message[5:].partition(b"\0")
        if message[:1] != b"p" or mechanism != b"SCRAM-SHA-256":
            raise _Refused("28000", "RDS Proxy supports only IAM, MD5, or SCRAM authentication.", "mechanism")
        # An unknown user gets the same conversation and the same answer.
        scram = _ScramServer(secrets.token_urlsafe() if expected is None else expected)
        try:
            self.peer.write(_message(b"R", struct.pack("!i", 11) + scram.first(rest[4:])))
            self.peer.write(_message(b"R", struct.pack("!i", 12) + scram.final(await self._password())))
        except (ValueError, KeyError):
            raise self._wrong_password() from None

    def _wrong_password(self) -> _Refused:
        return _Refused("28P01", f"The password that was provided for the role {self.user} is wrong.", "wrong password")

    async def _first_parameters(self) -> dict[str, str]:
        """Return what the database says of itself to a session like this one; it is asked once for each kind."""
        known = self.proxy._parameters
        kind = (self.user, self.database, self._settings)
        if kind not in known:
            server = await self.proxy._pool.borrow((self.user, self.database), None, self.proxy.borrow_timeout_s)
            try:
                await server.adopt(self._settings)
            except BaseException:
                self.proxy._pool.discard(server)
                raise
            known[kind] = dict(server.parameters)
            self.proxy._pool.give_back(server)
        return known[kind]

    # The relay: one batch after the other, a batch being what ends with Query, Sync or FunctionCall

    async def _relay(self) -> None:
        while True:
            if self.expiry is not None:
                raise self.expiry
            moved = self._from_server()
            if self.peer.can_write():
                while self._may_send() and (message := self.peer.take()) is not None:
                    moved = True
                    self.active = self.proxy.now()
                    if message[:1] == b"X":
                        self._finish()
                        return
                    if self._server is None:
                        if message[:1] in b"dcf":
                            continue  # the rest of a COPY that has failed: a server ignores it, too
                        await self._borrow()
                    self._from_client(message)
            if not moved:
                # Both sides set this one event; what arrived meanwhile is found at the next turn.
                await self.peer.changed()

    def _may_send(self) -> bool:
        return (not self._awaiting or self._copying) and (self._server is None or self._server.peer.can_write())

    async def _borrow(self) -> None:
        proxy = self.proxy
        server = await proxy._pool.borrow((self.user, self.database), self._last, proxy.borrow_timeout_s)
        self._server = server
        self._unnamed_is_ours = False
        await server.adopt(self._settings)
        server.peer.wake = self.peer.wake
        proxy._counts["borrows"] += 1

    def _from_client(self, message: bytes) -> None:
        server = self._server
        assert server is not None
        kind = message[:1]
        self._started = True
        if kind == b"Q":
            self._look_at(message[5:-1])
            self._simple = self._awaiting = True
        elif kind == b"F":
            self._simple = self._awaiting = True
        elif kind == b"S":
            self._simple = False
            # The server ignores a Sync while it takes COPY data; the one after the data is answered.
            self._awaiting = not self._copying
        elif kind in b"cf":
            # The end of the data may be sent ahead of the server's consent.
            self._copies_ended_ahead += not self._copying
            self._copying = False
        elif kind != b"d":
            self._simple = False
            if kind == b"P":
                name, _null, rest = message[5:].partition(b"\0")
                self._look_at(rest.partition(b"\0")[0])
                if name:
                    self._pin("named statement")
                else:
                    self._unnamed_is_ours = True
            # A Bind names a portal, then a statement; one that does not is for the server to refuse.
            elif message[5:7] == b"S\0" if kind == b"D" else kind == b"B" and message[5:].split(b"\0", 2)[1:2] == [b""]:
                self._count_unnamed()
        server.peer.write(message)

    def _count_unnamed(self) -> None:
        """Note the use of an unnamed statement that was parsed before this connection was borrowed."""
        if not self._unnamed_is_ours and not self._pinned:
            self.proxy._counts["unnamed_statement_outlived"] += 1

    def _look_at(self, sql: bytes) -> None:
        if self._pinned:
            return
        # Latin-1 keeps every byte and its place; no byte above 127 is a part of anything looked for.
        why = "over 16 KB" if len(sql) > _STATEMENT_LIMIT else why_pinned(sql.decode("latin-1"))
        if why is not None:
            self._pin(why)

    def _pin(self, why: str) -> None:
        if not self._pinned:
            self._pinned = True
            self.proxy._pinned[why] += 1
            _log.info("client pinned until it disconnects: %s", why)

    def _from_server(self) -> bool:
        """Pass on what the database has sent; tell whether there was anything."""
        server = self._server
        if server is None or not self.peer.can_write():
            return False
        out = bytearray()
        while (message := server.peer.take()) is not None:
            kind = message[:1]
            out += message
            if kind == b"G" and self._copies_ended_ahead:
                self._copies_ended_ahead -= 1
            elif kind == b"G":
                self._copying = True
                if not self._simple:
                    self._awaiting = False  # a Sync that was sent along is ignored by the server
            elif kind == b"E":
                self._copying = False
                self._told = _field(message, b"V") in ("FATAL", "PANIC")
            elif kind == b"S":
                server.note_parameter(message)
            elif kind == b"Z":
                self._awaiting = self._copying = self._started = False
                self._copies_ended_ahead = 0
                self._status = message[5:6]
                self.active = self.proxy.now()
                if self._status == b"I":
                    self.proxy._counts["transactions"] += 1
                    if not self._pinned:
                        # Before the client is told: when it knows that it is done, so do the counters.
                        self._release()
                        break
            if len(out) > 65536:
                self.peer.write(out)
                out = bytearray()
                if not self.peer.can_write():
                    return True
        self.peer.write(out)
        if self._server is not None and server.peer.closed and message is None:
            if self._told:
                raise ConnectionError("the database has said why")
            raise _Refused("08006", "The database connection was lost.", None)
        return bool(out)

    def _release(self) -> None:
        server, self._server = self._server, None
        assert server is not None
        self._last = server
        self.proxy._pool.give_back(server)

    def _finish(self) -> None:
        """The client says good-bye: its connection is of use to others only if nothing was left on it."""
        if self._server is not None and not self._pinned and self._status == b"I" and not self._started:
            self._release()

    def expire(self, idle_s: float, life_s: float) -> None:
        """End this client if it has been idle, or connected, for too long."""
        now = self.proxy.now()
        if not self.ready or self._awaiting or self.expiry is not None:
            return
        if now - self.born >= life_s:
            self.proxy._counts["aged_clients_closed"] += 1
            self.expiry = _Refused("57P01", "The client connection has reached its maximum life.", None)
        elif now - self.active >= idle_s:
            self.proxy._counts["idle_clients_closed"] += 1
            self.expiry = _Refused("57P05", "The client connection was idle for too long.", None)
        if self.expiry is not None:
            self.peer.wake.set()


class RdsProxy:
    """
    The stand-in. A context manager: entering starts it in a thread of its own, leaving ends it with all that it holds.

    Args:
        database: what has a host and a port: the toolkit's `Postgres`, or an `Address`.
        auth: how clients prove who they are: `iam` (a token as the clear-text password), `scram` (SCRAM-SHA-256, as RDS
            Proxy has it by default) or `password` (clear text).
        users: the roles that the proxy has secrets for, each with its password, for clients and for the database; None
            lets every role in whose token is good.
        credentials: the AWS credentials whose signatures are good; one is made up if none is given.
        endpoints: host names that clients may sign for, with or without a port, beside the address it listens on. The
            certificate is good for them as well.
        max_database_connections: for all users together.
        clock: seconds since the epoch; `advance` moves it.
        host, port: where to listen; port 0 takes a free one.
    Units: every *_s is in seconds; borrow_timeout_s of real time, the others of `clock`.
    Threads: its attributes `users`, `credentials` and `database` may be set at any time, by any thread.
    """

    def __init__(
        self,
        database: Database,
        *,
        auth: Literal["iam", "scram", "password"] = "iam",
        users: Mapping[str, str | None] | None = None,
        credentials: Iterable[Credential] = (),
        region: str = "eu-west-1",
        endpoints: Iterable[str] = (),
        max_database_connections: int = 5,
        max_clients: int = 1000,
        borrow_timeout_s: float = 120.0,
        idle_client_timeout_s: float = 1800.0,
        client_life_s: float = 86400.0,
        clock: Callable[[], float] = time.time,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        if auth != "iam" and not users:
            raise ValueError(f"users: auth={auth!r} needs the users and their passwords")
        if max_database_connections < 1:
            raise ValueError("max_database_connections: at least 1")
        self.database = database
        self.auth, self.region, self.host, self.port = auth, region, host, port
        self.users = None if users is None else dict(users)
        self.credentials = tuple(credentials) or (Credential.temporary(),)
        self.max_clients = max_clients
        self.borrow_timeout_s = borrow_timeout_s
        self.idle_client_timeout_s = idle_client_timeout_s
        self.client_life_s = client_life_s
        self.endpoints: frozenset[str] = frozenset()
        self._names = tuple(endpoints)
        self._clock, self._ahead = clock, 0.0
        self._pool = _Pool(max_database_connections, self._open_server)
        self._sessions: dict[_Session, asyncio.Task[None]] = {}
        self._peers: set[_Peer] = set()
        self._parameters: dict[tuple[str, str, _Settings], dict[str, str]] = {}
        self._counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._pinned: Counter[str] = Counter()
        self._authority: Authority | None = None
        self._tls: ssl.SSLContext
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event
        self._thread: threading.Thread | None = None
        self._last_counters = Counters()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RdsProxy {self.host}:{self.port} before {self.database!r}>"

    @property
    def ca_file(self) -> Path:
        """The certificate to trust (PEM)."""
        if self._authority is None:
            raise RuntimeError("the stand-in has not been started")
        return self._authority.ca_file

    @property
    def counters(self) -> Counters:
        """What it has seen and done, now; after `close`, at its end."""
        if self._loop is not None:
            self._last_counters = self._call(self._count)
        return self._last_counters

    def now(self) -> float:
        return self._clock() + self._ahead

    def start(self) -> Self:
        """Listen. Raises: OSError if the port is taken."""
        if self._thread is not None:
            raise RuntimeError("the stand-in has been started already")
        names = [name.rpartition(":")[0] if ":" in name else name for name in self._names]
        self._authority = Authority("Plungepool's stand-in for RDS Proxy")
        self._tls = self._authority.server_context(*dict.fromkeys(("localhost", "127.0.0.1", "::1", self.host, *names)))
        started = threading.Event()
        failure: list[BaseException] = []

        def main() -> None:
            try:
                with asyncio.Runner() as runner:
                    runner.run(self._serve(started))
            except BaseException as error:  # noqa: BLE001  # handed to the thread that waits
                failure.append(error)
            finally:
                started.set()

        self._thread = threading.Thread(target=main, name="rds-proxy", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self.close()
            raise failure[0]
        return self

    def close(self) -> None:
        """Cut every client and database connection and end the thread; may be called again."""
        if self._thread is not None:
            if (loop := self._loop) is not None:
                self._last_counters = self._call(self._count)
                loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
        if self._authority is not None:
            self._authority.close()

    def advance(self, seconds: float) -> None:
        """Move the clock: tokens age, idle clients time out, and connections reach their life's end."""
        self._ahead += seconds
        self._call(self._expire)

    def failover(self, database: Database | None = None) -> None:
        """
        Cut every connection to the database, as its failure does, and go on with `database` if one is given.

        A client in a transaction, or pinned, gets an error and is disconnected; the others stay connected and notice
        nothing but the time that it takes.
        """

        def cut() -> None:
            self.database = database or self.database
            self._counts["failovers"] += 1
            self._pool.cut()

        self._call(cut)

    def url(self, user: str, database: str = "postgres", password: str | None = None) -> str:
        """Return a `postgresql://` address for a role and a database."""
        secret = f":{quote(password, safe='')}" if password is not None else ""
        host = "localhost" if self.host in ("127.0.0.1", "0.0.0.0") else self.host
        return f"postgresql://{quote(user, safe='')}{secret}@{host}:{self.port}/{quote(database, safe='')}"

    def variables(self, user: str, database: str = "postgres") -> dict[str, str]:
        """Return the environment variables with which a function reaches its database through the stand-in."""
        variables = {
            "PLUNGEPOOL_URL": self.url(user, database),
            "PLUNGEPOOL_ENDPOINT": "proxy",
            "PLUNGEPOOL_CA_FILE": str(self.ca_file),
        }
        if self.auth == "iam":
            credential = self.credentials[0]
            variables |= {
                "PLUNGEPOOL_AUTH": "iam",
                "AWS_REGION": self.region,
                "AWS_ACCESS_KEY_ID": credential.access_key_id,
                "AWS_SECRET_ACCESS_KEY": credential.secret_access_key,
            }
            if credential.session_token is not None:
                variables["AWS_SESSION_TOKEN"] = credential.session_token
        else:
            variables |= {"PLUNGEPOOL_AUTH": "password", "PLUNGEPOOL_PASSWORD": (self.users or {}).get(user) or ""}
        return variables

    # In the loop's thread

    async def _serve(self, started: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await loop.create_server(lambda: _Peer(self._accept), self.host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        hosts = ("localhost", "127.0.0.1", self.host)
        given = (name if ":" in name else f"{name}:{self.port}" for name in self._names)
        self.endpoints = frozenset((*(f"{host}:{self.port}" for host in hosts), *given))
        self._loop = loop
        sweeper = asyncio.create_task(self._sweep())
        started.set()
        await self._stop.wait()
        self._loop = None
        server.close()
        sweeper.cancel()
        tasks = [*self._sessions.values(), sweeper]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        peers = self._peers | {one.peer for one in self._pool.servers}
        self._pool.cut()
        for peer in peers:
            peer.transport.abort()
        if peers:
            # Transports report their end by a callback; a loop that closes earlier leaves their sockets open.
            await asyncio.wait({peer.gone for peer in peers}, timeout=5)

    def _accept(self, peer: _Peer) -> None:
        self._peers.add(peer)
        peer.on_gone = lambda: self._peers.discard(peer)
        session = _Session(self, peer)
        self._sessions[session] = asyncio.get_running_loop().create_task(session.run())

    async def _open_server(self, key: _Key) -> _Server:
        address = Address(self.database.host, self.database.port)
        return await _Server.open(address, key, (self.users or {}).get(key[0]))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.idle_client_timeout_s / 4, self.client_life_s / 4))
            self._expire()

    def _expire(self) -> None:
        for session in list(self._sessions):
            session.expire(self.idle_client_timeout_s, self.client_life_s)

    def _count(self) -> Counters:
        counts = self._counts
        return Counters(
            clients=sum(session.ready for session in self._sessions),
            accepted=counts["accepted"],
            refused=self._refused.copy(),
            transactions=counts["transactions"],
            borrows=counts["borrows"],
            borrow_timeouts=counts["borrow_timeouts"],
            pinned=self._pinned.copy(),
            unnamed_statement_outlived=counts["unnamed_statement_outlived"],
            cancel_requests_ignored=counts["cancel_requests_ignored"],
            idle_clients_closed=counts["idle_clients_closed"],
            aged_clients_closed=counts["aged_clients_closed"],
            database_connections=len(self._pool.servers),
            database_connections_peak=self._pool.peak,
            database_connections_lost=self._pool.lost,
            failovers=counts["failovers"],
        )

    def _call(self, function: Callable[[], _Result]) -> _Result:
        """Run a function in the loop's thread and return what it returns."""
        if self._loop is None:
            raise RuntimeError("the stand-in is not running")

        async def run() -> _Result:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()


@pytest.fixture
def rds_proxy(postgres: Database) -> Iterator[Callable[..., RdsProxy]]:
    """A factory: `rds_proxy(auth="scram", users={…}, …)` is a running stand-in before `postgres`, closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(RdsProxy(postgres, **options))


def proxy_command(
    database: Annotated[
        str,
        typer.Option(
            help="The database, HOST:PORT, without TLS; one is started for the occasion if this is not given."
        ),
    ] = "",
    user: Annotated[
        list[str] | None, typer.Option(help="A role, as NAME or NAME:PASSWORD; may be given several times.")
    ] = None,
    auth: Annotated[str, typer.Option(help="How clients prove who they are: iam or scram.")] = "iam",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 6432,
    connections: Annotated[int, typer.Option(help="The most connections to the database.")] = 5,
    borrow_timeout_s: Annotated[float, typer.Option(help="How long a transaction waits for one of them.")] = 120.0,
    idle_client_timeout_s: Annotated[float, typer.Option(help="How long a client may be idle.")] = 1800.0,
) -> None:
    """Run a stand-in for RDS Proxy until Ctrl-C (or SIGINT or SIGTERM), and say what would have pinned it."""
    from rich.console import Console

    from plungepool_toolkit.postgres import Postgres

    if auth not in ("iam", "scram"):
        raise typer.BadParameter("iam or scram", param_hint="--auth")
    users: dict[str, str | None] = {}
    for one in user or ["app"]:
        name, _colon, password = one.partition(":")
        users[name] = password or (secrets.token_urlsafe(12) if auth == "scram" else None)
    out, console = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    # A shell starts what it puts in the background with SIGINT ignored; both signals end the stand-in, with its report.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        address: Database
        if database:
            at, _colon, number = database.rpartition(":")
            if not at or not number.isdigit():
                raise typer.BadParameter("HOST:PORT", param_hint="--database")
            address = Address(at, int(number))
        else:
            server = address = stack.enter_context(Postgres())
            for name in users:
                quoted = name.replace('"', '""')
                server.execute(f'CREATE ROLE "{quoted}" LOGIN; GRANT CREATE ON SCHEMA public TO "{quoted}"')
        proxy = stack.enter_context(
            RdsProxy(
                address,
                auth="iam" if auth == "iam" else "scram",
                users=users,
                host=host,
                port=port,
                max_database_connections=connections,
                borrow_timeout_s=borrow_timeout_s,
                idle_client_timeout_s=idle_client_timeout_s,
            )
        )
        trust = "; its superuser is 'postgres', who needs no password from this machine" if not database else ""
        console.print(f"The database itself is at {address.host}:{address.port}, without TLS{trust}.")
        console.print(
            f"The stand-in is at {host}:{proxy.port} (process {os.getpid()}); Ctrl-C, SIGINT or SIGTERM ends it."
        )
        for name in users:
            console.print(f"[bold]{name}[/bold]: give a function these variables")
            for variable, value in proxy.variables(name).items():
                out.print(f"export {variable}={shlex.quote(value)}", markup=False)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        _report(proxy.counters, connections, console)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _report(counters: Counters, connections: int, console: Console) -> None:
    """Print what happened, what pinned first of all."""
    console.print(
        f"{_count(counters.accepted, 'client')}, {_count(counters.transactions, 'transaction')}; at most "
        f"{_count(counters.database_connections_peak, 'connection')} to the database at a time, of {connections} allowed"
    )
    for why, number in counters.pinned.most_common():
        console.print(f"[bold red]pinned[/bold red] {_count(number, 'client')}: {why}")
    if counters.pinned:
        console.print(
            "(each client counts once, by its first statement that pins: what follows finds it pinned already)"
        )
    for why, number in counters.refused.most_common():
        console.print(f"[bold red]refused[/bold red] {_count(number, 'time')}: {why}")
    if counters.borrow_timeouts:
        console.print(
            f"[bold red]timed out[/bold red] {_count(counters.borrow_timeouts, 'time')} waiting for a connection"
        )
    if counters.unnamed_statement_outlived:
        console.print(
            f"[bold red]unsafe[/bold red] {_count(counters.unnamed_statement_outlived, 'time')}: an unnamed statement was used "
            "after the connection it was parsed on had been given back"
        )
    if not counters.pinned:
        console.print("nothing pinned")
