"""
PostgreSQL's messages as the stand-in reads and writes them: bytes in, bytes out; no socket, no clock, no task.

Source: PostgreSQL, "Frontend/Backend Protocol": "Message Formats" and "Message Flow".
"""

from __future__ import annotations

import struct

# What stands where a start-up message has its version.
SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST, PROTOCOL_3_0 = 80877103, 80877104, 80877102, 196608

# The first byte of a TLS handshake, which no start-up message begins with, and the protocol that it must agree on then
# (ALPN; PostgreSQL 17 and newer).
TLS_HANDSHAKE, ALPN = 0x16, "postgresql"

# Of clients.
QUERY, FUNCTION_CALL, SYNC, TERMINATE, PASSWORD = b"Q", b"F", b"S", b"X", b"p"
PARSE, BIND, DESCRIBE = b"P", b"B", b"D"
COPY_DATA, COPY_DONE, COPY_FAIL = COPY_MESSAGES = b"d", b"c", b"f"

# Of servers.
AUTHENTICATION, PARAMETER_STATUS, BACKEND_KEY_DATA, READY_FOR_QUERY = b"R", b"S", b"K", b"Z"
ERROR_RESPONSE, COPY_IN_RESPONSE = b"E", b"G"

# What a server says with AUTHENTICATION.
AUTH_OK, AUTH_CLEARTEXT_PASSWORD, AUTH_SASL, AUTH_SASL_CONTINUE, AUTH_SASL_FINAL = 0, 3, 10, 11, 12

# What a server says with READY_FOR_QUERY: no transaction is open.
IDLE = b"I"

# What PostgreSQL reads: of a client that it does not know yet (PG_MAX_AUTH_TOKEN_LENGTH, MAX_STARTUP_PACKET_LENGTH),
# and of anybody (PQ_LARGE_MESSAGE_LIMIT).
LONGEST_PASSWORD, LONGEST_STARTUP, LONGEST_MESSAGE = 65535, 10_000, (1 << 30) - 1

_HEADER = struct.Struct("!ci")
_INT = struct.Struct("!i")


class Malformed(ConnectionError):
    """
    The other side has sent what no message is: by its length, perhaps, so that it is not known where the next one
    begins.
    """


def pack(kind: bytes, body: bytes = b"") -> bytes:
    """Return a message."""
    return _HEADER.pack(kind, len(body) + 4) + body


def pack_strings(*values: str) -> bytes:
    """Return what messages hold of text: each value with a NUL behind it."""
    return b"".join(value.encode() + b"\0" for value in values)


def pack_startup(user: str, database: str) -> bytes:
    """Return the first message of a client that wants neither TLS nor any setting."""
    body = _INT.pack(PROTOCOL_3_0) + pack_strings("user", user, "database", database) + b"\0"
    return _INT.pack(len(body) + 4) + body


def pack_authentication(request: int, rest: bytes = b"") -> bytes:
    """Return what a server says about authentication: one of the AUTH_ numbers, and what goes with it."""
    return pack(AUTHENTICATION, _INT.pack(request) + rest)


def pack_error(code: str, text: str) -> bytes:
    """Return an error that ends the session."""
    return pack(ERROR_RESPONSE, pack_strings("SFATAL", "VFATAL", "C" + code, "M" + text) + b"\0")


def error_field(message: bytes, name: bytes) -> str:
    """Return a field of an error message by its letter; empty if it is not there."""
    for field in message[5:].split(b"\0"):
        if field[:1] == name:
            return field[1:].decode(errors="replace")
    return ""


def parameter(message: bytes) -> tuple[str, str]:
    """Return what a ParameterStatus says: a setting's name and its value."""
    name, value, _end = message[5:].split(b"\0", 2)
    return name.decode(), value.decode()


def authentication(message: bytes) -> tuple[int, bytes]:
    """Return what an Authentication message asks for, and what goes with it."""
    return _INT.unpack_from(message, 5)[0], message[9:]


def startup_code(message: bytes) -> int:
    """
    Return what a start-up message is: the version of the protocol, or one of the requests that stand in its place.
    """
    code: int = _INT.unpack_from(message, 4)[0]
    return code


def startup_fields(message: bytes) -> dict[str, str]:
    """Return what a start-up message asks for. Raises: UnicodeDecodeError."""
    parts = message[8:].decode().split("\0")
    return dict(zip(parts[0:-2:2], parts[1:-1:2], strict=False))


def parsed(message: bytes) -> tuple[bytes, bytes]:
    """Return what a Parse says: the statement's name and its text."""
    name, _null, rest = message[5:].partition(b"\0")
    return name, rest.partition(b"\0")[0]


def uses_unnamed_statement(message: bytes) -> bool:
    """
    Tell whether a Bind or a Describe names the unnamed statement; one that names none is for the server to refuse.
    """
    if message[:1] == DESCRIBE:
        return message[5:7] == b"S\0"
    # A Bind names a portal, then a statement.
    return message[:1] == BIND and message[5:].split(b"\0", 2)[1:2] == [b""]


def password(message: bytes) -> bytes:
    """Return what a PasswordMessage says in clear text. Raises: Malformed, as PostgreSQL: one NUL, at its end."""
    text, null, rest = message[5:].partition(b"\0")
    if not null or rest:
        raise Malformed("invalid password packet size")
    return text


def sasl_initial_response(message: bytes) -> tuple[bytes, bytes] | None:
    """Return the mechanism that a client chose and what it says first; None if this is another message."""
    mechanism, null, rest = message[5:].partition(b"\0")
    if not null or len(rest) < _INT.size or _INT.unpack_from(rest)[0] != len(rest) - _INT.size:
        return None
    return mechanism, rest[_INT.size :]


class Inbox:
    """What one side has sent and nobody has taken yet: whole messages out of whatever pieces it arrives in."""

    def __init__(self) -> None:
        self.longest = LONGEST_MESSAGE
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def peek(self) -> int | None:
        """Return the next byte and leave it there; None if nothing has arrived."""
        return self._buffer[0] if self._buffer else None

    def take_all(self) -> bytes:
        """Return all that has arrived, whole messages or not."""
        return self._cut(len(self._buffer))

    def take(self) -> bytes | None:
        """Return the next whole message with its header, or None if it has not arrived yet. Raises: Malformed."""
        length = self._length()
        return None if length is None else self._cut(length)

    def take_startup(self) -> bytes | None:
        """
        Return the next message of the kind that has no type, a length and a body, or None if it has not arrived yet.

        Raises: ConnectionError for a length that it cannot have, however much of it has come already.
        """
        if len(self._buffer) < 4:
            return None
        length: int = _INT.unpack_from(self._buffer)[0]
        if not 8 <= length <= LONGEST_STARTUP:
            raise ConnectionError("no start-up message of PostgreSQL's protocol")
        return self._cut(length) if len(self._buffer) >= length else None

    def complete(self) -> bool:
        """Tell whether there is no need to read on before somebody takes what is there."""
        try:
            return self._length() is not None
        except Malformed:
            return True

    def _cut(self, length: int) -> bytes:
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def _length(self) -> int | None:
        if len(self._buffer) < _HEADER.size:
            return None
        length: int = _INT.unpack_from(self._buffer, 1)[0]
        if not 4 <= length <= self.longest:
            raise Malformed("invalid message length")
        return length + 1 if len(self._buffer) > length else None


class Conversation:
    """
    Where a client and a server stand: whose turn it is, and whether the server could be lent to somebody else.

    A batch is what ends with Query, Sync or FunctionCall; its answer ends with ReadyForQuery, and one batch is passed
    on after the other. The exception is COPY, whose data the client sends in the middle of the answer.
    """

    def __init__(self) -> None:
        self.awaiting = False
        self.status = IDLE
        self.ended = False
        self._simple = self._copying = self._started = False
        self._copies_ended_ahead = 0

    @property
    def may_send(self) -> bool:
        """Whether the client's next message may be passed on."""
        return not self.awaiting or self._copying

    def sent(self, message: bytes) -> None:
        """Note a message of the client's, as it is passed on."""
        kind = message[:1]
        if kind in COPY_MESSAGES and not self._started:
            return  # the rest of a COPY that has failed, sent before its client knew: the server ignores it
        self._started = True
        if kind in (QUERY, FUNCTION_CALL):
            self._simple = self.awaiting = True
        elif kind == SYNC:
            self._simple = False
            # The server ignores a Sync while it takes COPY data; the one after the data is answered.
            self.awaiting = not self._copying
        elif kind in (COPY_DONE, COPY_FAIL):
            # The end of the data may be sent ahead of the server's consent.
            self._copies_ended_ahead += not self._copying
            self._copying = False
        elif kind != COPY_DATA:
            self._simple = False

    def answered(self, message: bytes) -> None:
        """Note a message of the server's, as it is passed on."""
        kind = message[:1]
        if kind == COPY_IN_RESPONSE and self._copies_ended_ahead:
            self._copies_ended_ahead -= 1
        elif kind == COPY_IN_RESPONSE:
            self._copying = True
            if not self._simple:
                # A Sync that was sent along is ignored by the server.
                self.awaiting = False
        elif kind == ERROR_RESPONSE:
            self._copying = False
            self.ended = error_field(message, b"V") in ("FATAL", "PANIC")
        elif kind == READY_FOR_QUERY:
            self.awaiting = self._copying = self._started = False
            self._copies_ended_ahead = 0
            self.status = message[5:6]
