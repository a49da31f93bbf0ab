"""
The messages of PostgreSQL's protocol, version 3.0, as bytes: what a client sends. Pure.

Source: PostgreSQL's manual, "Message Formats".
"""

from __future__ import annotations

import struct
from binascii import hexlify
from itertools import chain
from typing import TYPE_CHECKING, Any

from .errors import DataError, ProgrammingError
from .parameters import UnknownType, parameter_oid, to_text
from .values import BYTEA

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SYNC = b"S\0\0\0\4"
TERMINATE = b"X\0\0\0\4"
EXECUTE = b"E\0\0\0\x09\0\0\0\0\0"
BIND_NOTHING = b"B\0\0\0\x0c\0\0\0\0\0\0\0\0"
DESCRIBE = b"D\0\0\0\6P\0"
END_COPY = b"c\0\0\0\4"
_BIND = b"B"[0]
_VERSION = 196608  # 3.0
_CANCEL_REQUEST = 80877102

#: bytes of one piece of a COPY, and of a parameter or a value that is worth a way of its own
PIECE = 65536
_PARAMETERS_AT_MOST = 65535

_HEADER = struct.Struct("!BI")
_INT = struct.Struct("!i")
_SHORT = struct.Struct("!H")

# How the statements begin that end a transaction and keep what it did, or part of it.
_KEEP = ("COMMIT", "END", "PREPARE TRANSACTION")


def message(code: bytes, body: bytes) -> bytes:
    """A message: its code, its length, its body."""
    return code + _INT.pack(len(body) + 4) + body


def query(statement: str) -> bytes:
    """Query: the simple protocol."""
    return message(b"Q", _encoded(statement) + b"\0")


def parse(statement: str, oids: Sequence[int] = ()) -> bytes:
    """Parse, as the unnamed statement, with the types of its parameters."""
    types = struct.pack(f"!H{len(oids)}i", len(oids), *oids) if any(oids) else b"\0\0"
    return message(b"P", b"\0" + _encoded(statement) + b"\0" + types)


def refuse_misuse(values: Any) -> None:
    """Raise ProgrammingError for what is no set of parameters."""
    if not isinstance(values, (list, tuple)):
        raise ProgrammingError(
            f"parameters must be a list or a tuple, for $1, $2 and so on; not {type(values).__name__}"
        )
    if len(values) > _PARAMETERS_AT_MOST:
        raise ProgrammingError(f"{len(values)} parameters in one statement; the protocol allows {_PARAMETERS_AT_MOST}")


def types_of(values: Sequence[Any]) -> list[int]:
    """The types of a statement's parameters: those that literals of their Python values would have."""
    return [parameter_oid(value) for value in values]


def _encoded(statement: str) -> bytes:
    if "\0" in statement:
        raise ProgrammingError("a statement must not contain a NUL character: the server would stop reading there")
    try:
        return statement.encode()
    except UnicodeEncodeError as error:
        raise ProgrammingError("the statement cannot be encoded as UTF-8") from error


def bind(values: Sequence[Any], oids: Sequence[int] = ()) -> bytes:
    """
    Bind, of the unnamed statement to the unnamed portal: everything as text, but long bytes that were declared as such.

    Args: oids: as the statement was parsed with. Binary is what a bytea holds, without a text of twice its length.
    """
    formats = bytearray()
    parts = [b"B", b"", b"\0\0\0\0", _SHORT.pack(len(values))]
    for position, value in enumerate(values, 1):
        try:
            if type(value) is bytes and len(value) > PIECE and len(oids) >= position and oids[position - 1] == BYTEA:
                formats = formats or bytearray(2 * len(values))
                formats[2 * position - 1] = 1
                parts += (_INT.pack(len(value)), value)
                continue
            text = to_text(value)
            if text is None:
                parts.append(b"\xff\xff\xff\xff")
            else:
                encoded = text.encode()
                parts += (_INT.pack(len(encoded)), encoded)
        except UnknownType as error:
            kind = type(value)
            name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
            raise ProgrammingError(
                f"parameter {position} is of type {name} or contains such a value, which has no PostgreSQL type: "
                f"{error}"
            ) from None
        except (ValueError, TypeError, ArithmeticError, AttributeError, struct.error) as error:
            raise DataError(f"parameter {position} of type {type(value).__name__} cannot be sent as text") from error
    parts.append(b"\0\0")
    if formats:
        parts[2] = b"\0\0" + _SHORT.pack(len(values)) + formats
    # Joined once, and not as a body that is copied again behind its header: a parameter may be large.
    parts[1] = _INT.pack(4 + sum(map(len, parts)) - 1)
    return b"".join(parts)


def parameters_in(sent: Iterable[bytes]) -> Iterator[str]:
    """Read the texts of all parameters out of the Bind messages of a flight."""
    return chain.from_iterable(map(_parameters, sent))


def _parameters(sent: bytes) -> Iterator[str]:
    position = 0
    while position + 5 <= len(sent):
        code, length = _HEADER.unpack_from(sent, position)
        if code == _BIND:
            place = position + 5
            for _ in range(2):  # the names of portal and statement
                place = sent.index(b"\0", place) + 1
            (given,) = _SHORT.unpack_from(sent, place)
            binary = sent[place + 3 : place + 2 + 2 * given : 2]
            place += 2 + 2 * given
            (count,) = _SHORT.unpack_from(sent, place)
            place += 2
            for number in range(count):
                (size,) = _INT.unpack_from(sent, place)
                place += 4
                if size > 0:
                    value = sent[place : place + size]
                    # Errors show bytes as hexadecimal digits, however they were sent.
                    text = b"\\x" + hexlify(value) if given and binary[number] else value
                    yield text.decode("utf-8", "replace").strip()
                    place += size
        position += 1 + length


def may_keep(sent: Iterable[bytes]) -> bool:
    """Say whether a statement among these messages may end a transaction so that what it did is kept. Pure."""
    for message in sent:
        code, body = bytes(message[:1]), bytes(message[5:])
        # Parse has the name of the statement first; ours have none.
        statements = body.split(b";") if code == b"Q" else [body[1:]] if code == b"P" else []
        if any(first_words(one.decode("utf-8", "replace")).startswith(_KEEP) for one in statements):
            return True
    return False


def first_words(statement: str) -> str:
    """
    Return the beginning of a statement in capitals, without the comments and empty statements before it. Pure.
    """
    statement = statement.lstrip()
    while statement.startswith(("--", "/*", ";")):
        if statement.startswith(";"):
            statement = statement[1:]
        elif statement.startswith("--"):
            statement = statement.replace("\r", "\n").partition("\n")[2]
        else:
            # Comments nest.
            open_ones, end = 1, 2
            while open_ones and end < len(statement):
                two = statement[end : end + 2]
                open_ones += (two == "/*") - (two == "*/")
                end += 2 if two in ("/*", "*/") else 1
            statement = statement[end:]
        statement = statement.lstrip()
    return statement[:20].upper()


def startup(parameters: Mapping[str, str | None], more: Mapping[str, str]) -> bytes:
    """
    StartupMessage; what is None is left out.

    Raises: ProgrammingError for what `more` may not hold, and for text that cannot be sent.
    """
    if clash := parameters.keys() & more.keys():
        raise ProgrammingError(f"startup_params: {', '.join(sorted(clash))} cannot be set there")
    given = {name: value for name, value in {**parameters, **more}.items() if value is not None}
    try:
        packet = b"".join(f"{name}\0{value}\0".encode() for name, value in given.items())
    except UnicodeEncodeError:
        raise ProgrammingError(
            "user, database, application_name and startup_params must be text that can be encoded as UTF-8"
        ) from None
    if packet.count(b"\0") != 2 * len(given):
        raise ProgrammingError("user, database, application_name and startup_params must not contain a NUL character")
    return _INT.pack(len(packet) + 9) + _INT.pack(_VERSION) + packet + b"\0"


def cancel_request(backend_pid: int, key: bytes) -> bytes:
    """CancelRequest, for a connection of its own."""
    return struct.pack("!iii", 12 + len(key), _CANCEL_REQUEST, backend_pid) + key
