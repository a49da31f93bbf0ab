"""
What a client says to a PostgreSQL server, read as it is sent: the texts of its statements, and no value.

Pure: bytes in, in pieces of any size. Parameters, passwords and the data of COPY are skipped and never kept.
Source: PostgreSQL manual, "Message Formats".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

_PROTOCOL_3 = 3
_TLS_REQUEST, _GSS_REQUEST = 80877103, 80877104
# A text beyond it is skipped, and said to be long.
_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement's text, and the types that its parameters were declared with; 0 is left to the server."""

    text: str
    types: tuple[int, ...] = ()


@dataclass(slots=True)
class Said:
    """What was said between two answers: `statements` are those that run, `prepared` those that were only prepared."""

    statements: list[Statement] = field(default_factory=list)
    prepared: list[Statement] = field(default_factory=list)
    #: a part of signing in
    signs_in: bool = False
    #: the start-up message itself, of which each session has one
    starts: bool = False
    encrypted: bool = False


class Client:
    """One client, from its first byte; or, with `started`, one that has signed in."""

    def __init__(self, *, started: bool = False) -> None:
        self._started = started
        self._encrypted = False
        self._buffer = bytearray()
        self._skip = 0
        self._names: dict[bytes, Statement] = {}
        self._said = Said()
        #: from the start-up message
        self.user = self.database = ""

    def feed(self, data: bytes) -> None:
        """Read what was sent."""
        if self._encrypted:
            return
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._buffer += data
        while self._next():
            pass

    def take(self) -> Said:
        """Return what was said since it was taken last."""
        said, self._said = self._said, Said()
        said.encrypted = self._encrypted
        return said

    def _next(self) -> bool:
        buffer = self._buffer
        if not self._started and buffer[:1] == b"\x16":  # TLS, at once or after it was asked for
            self._encrypted = True
            buffer.clear()
            return False
        head = 1 if self._started else 0
        if len(buffer) < head + 4:
            return False
        kind = bytes(buffer[:head])
        (length,) = struct.unpack_from("!i", buffer, head)
        end = head + length
        if self._started and (kind not in (b"Q", b"P", b"B") or length > _LONGEST):
            if kind == b"p":
                self._said.signs_in = True
            elif kind in (b"Q", b"P"):
                self._run(Statement(f"/* a text of {length} bytes */"))
            self._skip = max(0, end - len(buffer))
            del buffer[:end]
            return not self._skip
        if len(buffer) < end:
            return False
        body = bytes(buffer[head + 4 : end])
        del buffer[:end]
        if not self._started:
            self._start(body)
        elif kind == b"Q":
            self._run(Statement(_text(body)))
        elif kind == b"P":
            self._parse(body)
        else:
            statement = self._names.get(body.split(b"\0", 2)[1])
            if statement is not None:
                self._run(statement)
        return True

    def _start(self, body: bytes) -> None:
        self._said.signs_in = True
        (code,) = struct.unpack_from("!i", body)
        if code >> 16 == _PROTOCOL_3:
            words = body[4:].split(b"\0")
            parameters = {
                name: value.decode(errors="replace") for name, value in zip(words[::2], words[1::2], strict=False)
            }
            self.user = parameters.get(b"user", "")
            self.database = parameters.get(b"database", self.user)
            self._started = self._said.starts = True
        elif code not in (_TLS_REQUEST, _GSS_REQUEST):  # CancelRequest, which nobody answers
            self._said.signs_in = False

    def _parse(self, body: bytes) -> None:
        name, _, rest = body.partition(b"\0")
        text, _, types = rest.partition(b"\0")
        (count,) = struct.unpack_from("!H", types)
        statement = Statement(_text(text), struct.unpack_from(f"!{count}I", types, 2))
        self._names[name] = statement
        self._said.prepared.append(statement)

    def _run(self, statement: Statement) -> None:
        # A batch binds one statement many times.
        if not self._said.statements or self._said.statements[-1] != statement:
            self._said.statements.append(statement)


def _text(body: bytes) -> str:
    return body.partition(b"\0")[0].decode(errors="replace")
