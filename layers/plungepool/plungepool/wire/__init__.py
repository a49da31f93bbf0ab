"""A PostgreSQL connection after PEP 249: one round trip a statement, and never a wrong row.

What one statement needs (BEGIN where a transaction has to start, Parse, Bind, Describe, Execute, Sync) leaves in one write,
a *flight*, and its reply is read to ReadyForQuery. Whatever stops a flight before that closes the connection for good: a
reply that is half read is never taken for the next one's. A flight is complete in itself, so that a transaction pooler
(RDS Proxy, PgBouncer) may give each to another server: no named statement, no SET, no state unless the user asks for it.

pg8000 stays the driver behind it: its types and its authentication, imported when they are needed and not before.

Times are seconds; moments are wall-clock (`time.time()`), so that the time an environment is frozen counts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import struct
import time as clock
from binascii import hexlify
from collections import deque
from datetime import date, datetime, time
from io import BytesIO
from itertools import count, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

from ..settings import split_address
from ..tls import explain
from .values import Column, UnknownType, cut, parameter_oid, styled_readers, to_text

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

apilevel = "2.0"
threadsafety = 1
#: ``$1``, ``$2``: the server's own, so that no statement is ever searched for placeholders
paramstyle = "numeric_dollar"

__all__ = [
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "DeadlinePassed",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Warning",
    "apilevel",
    "connect",
    "paramstyle",
    "threadsafety",
]


# ---- what else PEP 249 wants of a module ------------------------------------------------------------------------------

Date, Time, Timestamp = date, time, datetime


def Binary(data: bytes | bytearray | memoryview) -> bytes:  # noqa: N802 - PEP 249 names it
    """Return the bytes of what holds bytes; a number is a TypeError, where bytes() would make so many zeros of it."""
    return data if type(data) is bytes else bytes(memoryview(data))


def DateFromTicks(ticks: float) -> date:  # noqa: N802 - PEP 249 names it
    return date.fromtimestamp(ticks)


def TimeFromTicks(ticks: float) -> time:  # noqa: N802 - PEP 249 names it
    return datetime.fromtimestamp(ticks).time()


def TimestampFromTicks(ticks: float) -> datetime:  # noqa: N802 - PEP 249 names it
    return datetime.fromtimestamp(ticks)


class _Kind(frozenset[int]):
    """A kind of type, equal to the oid of each type of that kind."""

    def __eq__(self, other: object) -> bool:
        return other in self if isinstance(other, int) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = frozenset.__hash__


STRING = _Kind((18, 19, 25, 1042, 1043))
BINARY = _Kind((17,))
NUMBER = _Kind((20, 21, 23, 700, 701, 790, 1700))
DATETIME = _Kind((1082, 1083, 1114, 1184, 1186, 1266))
ROWID = _Kind((26,))


class Xid(NamedTuple):
    """PEP 249's name of a two-phase transaction; `str()` is the server's, written as psycopg writes it."""

    format_id: int
    gtrid: str
    bqual: str

    def __str__(self) -> str:
        from base64 import b64encode

        return "_".join((str(self.format_id), *(b64encode(part.encode()).decode() for part in self[1:])))


# ---- errors ---------------------------------------------------------------------------------------------------------


class Warning(Exception):  # noqa: A001 - PEP 249 names it
    """Never raised; PEP 249 asks for it."""


class Error(Exception):
    """What every error here derives from.

    `str()` of a server's error holds nothing that was sent as a parameter, and nothing that a data exception (SQLSTATE class
    22) quotes, which may be a value of the database: `…` stands for either. The whole of it is on the attributes.
    """

    #: the five-character code of the server, None when the error is the client's own
    sqlstate: str | None = None
    severity: str | None = None
    #: the server's whole sentence, values included
    message: str | None = None
    detail: str | None = None
    hint: str | None = None
    #: 1-based character of the statement that the server points at
    position: int | None = None
    context: str | None = None
    schema_name: str | None = None
    table_name: str | None = None
    column_name: str | None = None
    datatype_name: str | None = None
    constraint_name: str | None = None
    #: True when the connection is of no use any more: it was lost, or it reaches a server that may not write any more
    disconnected: bool = False

    # What the server said, by the names below.
    _fields: Mapping[str, str] = MappingProxyType({})

    @property
    def pgcode(self) -> str | None:
        """psycopg2's name for `sqlstate`."""
        return self.sqlstate

    @property
    def pgerror(self) -> str | None:
        """psycopg2's name for `message`."""
        return self.message

    @property
    def diag(self) -> Diagnostic:
        """All that the server said, under the names that psycopg2 and psycopg give it."""
        return Diagnostic(self._fields)

    @property
    def retryable(self) -> bool:
        """
        True when the whole transaction, or the connect, may succeed later as it is: nothing of it was kept.

        A conflict (40001, 40P01; Aurora DSQL's OC000, OC001), no connection to be had (53300, 57P03, RDS Proxy's borrow
        time-out). Not a lost connection: whether its COMMIT was carried out, nobody knows.
        """
        return self.sqlstate in _RETRYABLE or (self.message or "").startswith(_BORROW_TIMEOUT)


class Diagnostic:
    """What the server said of an error, under psycopg's names; None for what it did not say."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        get = fields.get
        self.severity = self.severity_nonlocalized = get("severity")
        self.sqlstate = get("sqlstate")
        self.message_primary = get("message")
        self.message_detail = get("detail")
        self.message_hint = get("hint")
        self.statement_position = get("position")
        self.internal_position = get("internal_position")
        self.internal_query = get("internal_query")
        self.context = get("context")
        self.schema_name = get("schema_name")
        self.table_name = get("table_name")
        self.column_name = get("column_name")
        self.datatype_name = get("datatype_name")
        self.constraint_name = get("constraint_name")
        self.source_file = get("source_file")
        self.source_line = get("source_line")
        self.source_function = get("source_function")


class InterfaceError(Error):
    """The interface was used in a way that cannot work, for example a connection that is closed."""


class DatabaseError(Error):
    """An error of the database."""


class DataError(DatabaseError):
    """A value that cannot be what the statement wants of it (class 22)."""


class OperationalError(DatabaseError):
    """The server or the way to it: refused, lost, timed out, cancelled, out of a resource, a conflict."""


class IntegrityError(DatabaseError):
    """A constraint was violated (class 23)."""


class InternalError(DatabaseError):
    """The transaction or the server is in a state that does not allow this (classes 24, 25, XX)."""


class ProgrammingError(DatabaseError):
    """The statement is wrong, or names something that is not there (class 42 and others)."""


class NotSupportedError(DatabaseError):
    """The server does not offer this (0A000)."""


class DeadlinePassed(OperationalError):
    """The flight was given up at `Connection.deadline`; the connection is closed."""


# As psycopg 3 classes them, so that a program moved from it catches what it caught; but what ends a session from outside
# (25P03, 25P04, and 25006 of a writer that has moved) is operational, whatever its class, and may succeed later.
_ERROR_CLASSES: dict[str, type[DatabaseError]] = {
    **dict.fromkeys(("10", "20", "21", "26", "34", "3D", "3F", "42", "44", "P0"), ProgrammingError),
    **dict.fromkeys(
        # OC: Aurora DSQL's conflicts, OC000 and OC001, where it does not say 40001.
        ("08", "27", "28", "2F", "38", "39", "3B", "40", "53", "54", "55", "57", "58", "F0", "HV", "OC"),
        OperationalError,
    ),
    **dict.fromkeys(("24", "25", "2B", "2D", "XX"), InternalError),
    "25P03": OperationalError,
    "25P04": OperationalError,
    "0A": NotSupportedError,
    "22": DataError,
    "23": IntegrityError,
}
_FIELDS = {
    "V": "severity",
    "C": "sqlstate",
    "M": "message",
    "D": "detail",
    "H": "hint",
    "P": "position",
    "W": "context",
    "s": "schema_name",
    "t": "table_name",
    "c": "column_name",
    "d": "datatype_name",
    "n": "constraint_name",
    "p": "internal_position",
    "q": "internal_query",
    "F": "source_file",
    "L": "source_line",
    "R": "source_function",
}
_INNER = frozenset(("internal_position", "internal_query", "source_file", "source_line", "source_function"))
_READ_ONLY = "25006"
# The server could not tell a parameter's type, or found no operator or function for the types.
_OF_TYPES = frozenset(("42P18", "42P08", "42725", "42883"))
_OF_TYPES_CURE = (
    "A parameter has the type of its Python value, text and None have none: cast it where it stands, as in $1::integer or "
    "CAST(:name AS integer), or send str(value) where it is compared with text"
)
# The command tags of statements that can ask for READ ONLY.
_MAY_ASK = frozenset((b"SET", b"BEGIN", b"START TRANSACTION"))
_RETRYABLE = frozenset(("40001", "40P01", "OC000", "OC001", "53300", "57P03"))
# RDS Proxy's text; its SQLSTATE (08000 is reported) says no more than that something is wrong with the connection.
_BORROW_TIMEOUT = "Timed-out waiting to acquire database connection"


def _fields(body: bytes) -> dict[str, str]:
    fields = {}
    for part in body.split(b"\0"):
        if part:
            letter, text = chr(part[0]), part[1:].decode("utf-8", "replace")
            if letter in _FIELDS:
                fields[_FIELDS[letter]] = text
            elif letter == "S":
                fields.setdefault("severity", text)
    return fields


def _server_error(body: bytes, sent: Sequence[bytes] = ()) -> DatabaseError:
    """Build the error of an ErrorResponse; `sent`: the messages of the flight, whose parameters its text may not show."""
    fields = _fields(body)
    sqlstate, message = fields.get("sqlstate", ""), fields.get("message", "the server gave no message")
    shown = _without_parameters(message, sent)
    if sqlstate in _OF_TYPES:
        hint = _without_parameters(fields.get("hint", ""), sent).rstrip(".")
        shown += f"{'. ' if hint else ''}{hint}. {_OF_TYPES_CURE}"
    elif sqlstate == "42601" and message.endswith('"%"'):
        shown += ". Placeholders are $1, $2; or use text() with :name"
    if sqlstate.startswith("22"):  # invalid input syntax for type integer: "4929…", which may stand in a table
        for opening, closing in _QUOTES:
            first, last = shown.find(opening), shown.rfind(closing)
            if 0 <= first < last:
                shown = f"{shown[: first + 1]}…{shown[last:]}"
    error = _ERROR_CLASSES.get(sqlstate, _ERROR_CLASSES.get(sqlstate[:2], DatabaseError))(
        f"{shown} (SQLSTATE {sqlstate or 'missing'})"
    )
    error._fields = fields
    for name, text in fields.items():
        if name == "position":
            error.position = int(text) if text.isdecimal() and len(text) < 10 else None
        elif name not in _INNER:
            setattr(error, name, text)
    return error


_QUOTES = (('"', '"'), ("»", "«"), ("„", "“"), ("«", "»"))  # as PostgreSQL's translations write them
_QUOTED = re.compile("|".join(f"{opening}([^{opening}{closing}]+){closing}" for opening, closing in _QUOTES))
_NUMBER = re.compile("[0-9]+")
_RUN = 8  # so many characters in a row that stand in a parameter, too, are taken for a part of it
_TEXT_AT_MOST = 10_000
_SEARCHED_AT_MOST = 4_000_000


def _without_parameters(message: str, sent: Sequence[bytes]) -> str:
    """
    Put `…` for what a message holds of the parameters in `sent`, whatever the SQLSTATE.

    The server shows a parameter whole or in part, in quotes or without, as a name in lower case, or as numbers: make_date
    (2024, 13, 1) is `2024-13-01` in its message. A short parameter counts as a word only: else `a` would hide every a.
    """
    parameters = {text for part in sent for text in map(_lower, _parameters(part)) if text}
    if not parameters:
        return message
    message = message[:_TEXT_AT_MOST]
    lower, hidden = _lower(message), bytearray(len(message))
    everything = "\0".join(parameters)
    if len(everything) > _SEARCHED_AT_MOST:  # seconds of searching
        return "…"
    numbers = {number.lstrip("0") for number in _NUMBER.findall(everything)}
    spans = [match.span() for match in _NUMBER.finditer(lower) if match.group().lstrip("0") in numbers]
    for match in _QUOTED.finditer(lower):
        group = match.lastindex or 0
        if match.group(group) in everything:
            spans.append(match.span(group))
    for start in range(len(lower) - _RUN + 1):
        if lower[start : start + _RUN] in everything:
            spans.append((start, start + _RUN))
    for text in parameters:
        start = lower.find(text) if len(text) < _RUN else -1
        while start >= 0:
            end = start + len(text)
            if not (_joined(lower, start) or _joined(lower, end)):
                spans.append((start, end))
            start = lower.find(text, start + 1)
    for start, end in spans:
        hidden[start:end] = b"\1" * (end - start)
    return "".join(
        character if not hide else "" if place and hidden[place - 1] else "…"
        for place, (character, hide) in enumerate(zip(message, hidden, strict=True))
    )


def _joined(text: str, place: int) -> bool:
    """Whether a word goes on over `place`."""
    return 0 < place < len(text) and all(c.isalnum() or c == "_" for c in text[place - 1 : place + 1])


def _lower(text: str) -> str:
    """In lower case, at the same length: a few letters have two in the other case."""
    lower = text.lower()
    return lower if len(lower) == len(text) else text


def _parameters(sent: bytes) -> Iterator[str]:
    """Read the texts of all parameters out of the Bind messages among those of a flight."""
    position = 0
    while position + 5 <= len(sent):
        code, length = _HEADER.unpack_from(sent, position)
        if code == 66:  # B
            place = position + 5
            for _ in range(2):  # the names of portal and statement
                place = sent.index(b"\0", place) + 1
            place += 2 + 2 * _SHORT.unpack_from(sent, place)[0]  # formats
            (count,) = _SHORT.unpack_from(sent, place)
            place += 2
            for _ in range(count):
                (size,) = _INT.unpack_from(sent, place)
                place += 4
                if size > 0:
                    yield sent[place : place + size].decode("utf-8", "replace").strip()
                    place += size
        position += 1 + length


# What ends a flight, raised where it is known and nowhere else: `_give_up` takes any other exception for somebody else's.


class _EndOfStream(Exception):
    """The server closed the connection where a message was due."""


class _Lost(Exception):
    """A call to the socket failed."""

    def __init__(self, error: OSError) -> None:
        self.error = error


class _TooLate(Exception):
    """The deadline passed."""


def _lost(error: OSError) -> Exception:
    """Turn what an own call to the socket raised into what ends a flight."""
    # No call to the system fails without a number, and no socket here has a time-out of its own: what has none was raised
    # at that line by somebody else (a signal handler), and stays what it is. The socket's frames may hold what was sent.
    return error if error.errno is None else _Lost(error.with_traceback(None))


def _violation(what: str) -> OperationalError:
    return OperationalError(f"the server broke the protocol: {what}; the connection is closed")


# ---- messages -------------------------------------------------------------------------------------------------------

_HEADER = struct.Struct("!BI")
_INT = struct.Struct("!i")
_SHORT = struct.Struct("!H")
_FIELD_DESCRIPTION = struct.Struct("!ihihih")

_SYNC = b"S\0\0\0\4"
_TERMINATE = b"X\0\0\0\4"
_COPY_DONE = b"c\0\0\0\4"
_EXECUTE = b"E\0\0\0\x09\0\0\0\0\0"
_BIND_NOTHING = b"B\0\0\0\x0c\0\0\0\0\0\0\0\0"
_DESCRIBE = b"D\0\0\0\6P\0"
_TLS_REQUEST = struct.pack("!ii", 8, 80877103)
_CANCEL_CODE = 80877102

_PIECE = 65536  # bytes of one read, and of one piece of a long write
_LARGE = 1 << 20  # what is longer is not copied without need
_SHORT_FLIGHT = 16384  # what any socket takes at once, even if the server reads nothing
_CANCEL_TIMEOUT_S = 0.5
_DEAD_PEER_AT_MOST_S = 80_000  # TCP_KEEPIDLE has 15 bits
_LONG = b"TDdENA"  # only these messages may be longer than 30,000 bytes; more is a server gone mad
_SHAPES_KEPT = 256
_SEVERAL = -1  # the simple protocol: as many statements as the text holds


def _message(code: bytes, body: bytes) -> bytes:
    return code + _INT.pack(len(body) + 4) + body


def _parse(statement: str, encoding: str, oids: Sequence[int] = ()) -> bytes:
    types = struct.pack(f"!H{len(oids)}i", len(oids), *oids) if any(oids) else b"\0\0"
    return _message(b"P", b"\0" + _encoded(statement, encoding) + b"\0" + types)


def _refuse_misuse(values: Any) -> None:
    if not isinstance(values, (list, tuple)):
        raise ProgrammingError(f"parameters are a list or a tuple, for $1, $2 and so on; not {type(values).__name__}")
    if len(values) > 65535:
        raise ProgrammingError(f"{len(values)} parameters in one statement; the protocol allows 65535")


def _oids(values: Sequence[Any]) -> list[int]:
    """The types of a statement's parameters: those that literals of their Python values would have."""
    return [parameter_oid(value) for value in values]


def _encoded(statement: str, encoding: str) -> bytes:
    if "\0" in statement:
        raise ProgrammingError("a statement may not hold the character zero: the server would stop reading there")
    try:
        return statement.encode(encoding)
    except UnicodeEncodeError as error:
        raise ProgrammingError(f"the statement cannot be encoded as {encoding}") from error


def _bind(values: Sequence[Any], encoding: str) -> bytes:
    parts = [b"B", b"", b"\0\0\0\0", _SHORT.pack(len(values))]
    for position, value in enumerate(values, 1):
        try:
            if type(value) is bytes and len(value) > _PIECE:  # without the three copies that text takes
                parts += (_INT.pack(2 + 2 * len(value)), b"\\x", hexlify(value))
                continue
            text = to_text(value)
            if text is None:
                parts.append(b"\xff\xff\xff\xff")
            else:
                encoded = text.encode(encoding)
                parts += (_INT.pack(len(encoded)), encoded)
        except UnknownType as error:
            kind = type(value)
            name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
            raise ProgrammingError(
                f"parameter {position} is of type {name} or holds such a value, which is none of PostgreSQL's: {error}"
            ) from None
        except (ValueError, TypeError, ArithmeticError, AttributeError, struct.error) as error:
            raise DataError(f"parameter {position} of type {type(value).__name__} cannot be sent as text") from error
    parts.append(b"\0\0")
    # Joined once, and not as a body that is copied again behind its header: a parameter may be large.
    parts[1] = _INT.pack(4 + sum(map(len, parts)) - 1)
    return b"".join(parts)


class _Reply:
    """What one flight brought back."""

    __slots__ = (
        "columns",
        "description",
        "error",
        "may_have_asked",
        "own",
        "refused",
        "rowcount",
        "rows",
        "runs",
        "sent",
        "stream",
        "tag",
    )

    def __init__(self, stream: Any = None) -> None:
        self.description: list[tuple[Any, ...]] | None = None
        self.columns: list[Column] = []
        self.rows: list[tuple[Any, ...]] = []
        #: how often the statement is executed each time that it is parsed: anew where the types of the parameters change
        self.runs: Sequence[int] = ()
        self.rowcount = -1
        self.tag = b""
        self.error: DatabaseError | None = None
        #: what the user's own stream raised, or its misuse
        self.own: Exception | None = None
        #: what stopped a conversion, and the column's description if it was a value of that column
        self.refused: tuple[Exception, tuple[Any, ...] | None] | None = None
        self.may_have_asked = False
        self.sent: Sequence[bytes] = ()
        self.stream = stream

    def convert(self, values: list[bytes | None]) -> None:
        """Turn the values of whole rows into rows; what a converter raises waits until the flight is over."""
        columns = self.columns
        width = len(columns)
        try:
            if len(values) == width:
                self.rows.append(
                    tuple(
                        [
                            None if value is None else column.one(value)
                            for column, value in zip(columns, values, strict=True)
                        ]
                    )
                )
            else:
                self.rows += zip(
                    *[column.convert(values[index::width]) for index, column in enumerate(columns)], strict=True
                )
        except Exception as error:  # noqa: BLE001 - raised by `_fly` once the reply is read
            self.refused = self.refused or self._culprit(values, error)
        values.clear()

    def _culprit(self, values: list[bytes | None], error: Exception) -> tuple[Exception, tuple[Any, ...] | None]:
        """Find the value that stopped a conversion by converting once more: what no value stops came from elsewhere."""
        width = len(self.columns)
        for index, value in enumerate(values):
            try:
                if value is not None:
                    self.columns[index % width].one(value)
            except Exception as again:  # noqa: BLE001 - a reader may raise anything
                return again, self.description[index % width] if self.description else None
        return error, None


class _Secret:
    """
    Holds a password, or what is as good as one: crash reporters print a frame's locals, and this prints without it.

    It is set as an attribute, and not by a constructor, whose frame would show it.
    """

    __slots__ = ("value",)
    value: Any


# ---- the connection -------------------------------------------------------------------------------------------------


def connect(
    *,
    user: str,
    host: str = "localhost",
    port: int = 5432,
    address: str | None = None,
    database: str | None = None,
    password: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    application_name: str | None = None,
    connect_timeout_s: float = 5.0,
    dead_peer_timeout_s: float = 10.0,
    startup_params: Mapping[str, str] | None = None,
    cancel_on_abandon: bool = True,
) -> Connection:
    """Open a connection; blocks for at most `connect_timeout_s` (the look-up of the host's name comes on top).

    Args: address: what to dial in place of `host` and `port` (the end of a tunnel): a host, or host:port; TLS verifies
        `host` all the same, and CancelRequests go there too. ssl_context: TLS with this context, or an error; None means
        plain text. connect_timeout_s: TCP, TLS and authentication together; reading later has no time-out of its own.
        dead_peer_timeout_s: how long a network may swallow everything until waiting for it ends with an error.
        startup_params: settings of the server that hold from the start; poolers refuse most. cancel_on_abandon: ask the
        server to stop a statement whose reply is not waited for any more; of no use behind a proxy.
    Raises: OperationalError when the server cannot be reached, refuses, or is too slow.
    Threads, forks: a connection is for one thread at a time; a forked child may only close it.
    """
    secret = _Secret()
    secret.value, password = password, None
    return Connection(
        user=user,
        host=host,
        port=port,
        address=address,
        database=database,
        secret=secret,
        ssl_context=ssl_context,
        application_name=application_name,
        connect_timeout_s=connect_timeout_s,
        dead_peer_timeout_s=dead_peer_timeout_s,
        startup_params=startup_params or {},
        cancel_on_abandon=cancel_on_abandon,
    )


class Connection:
    """One session; not to be shared between threads at the same time. `connect` makes it."""

    # For the repr of one that was struck before it was made: crash reporters print it.
    _sock: socket.socket | None = None
    _flying = False
    _place = "no server yet"

    def __init__(
        self,
        *,
        user: str,
        host: str,
        port: int,
        address: str | None,
        database: str | None,
        secret: _Secret,
        ssl_context: ssl.SSLContext | None,
        application_name: str | None,
        connect_timeout_s: float,
        dead_peer_timeout_s: float,
        startup_params: Mapping[str, str],
        cancel_on_abandon: bool,
    ) -> None:
        if not connect_timeout_s > 0:
            raise ProgrammingError("connect_timeout_s must be more than 0 seconds")
        if not 0 < dead_peer_timeout_s <= _DEAD_PEER_AT_MOST_S:
            raise ProgrammingError(
                f"dead_peer_timeout_s must be more than 0 and at most {_DEAD_PEER_AT_MOST_S} seconds"
            )
        self.host, self.port, self.user = host, port, user
        try:
            self._dialled = split_address(address, port) if address else (host, port)
        except ValueError:
            raise ProgrammingError(f"address: {address!r} is neither a host nor host:port") from None
        # For errors and the repr: where the connection goes, and whom it should reach there.
        self._place = f"{address} (for {host}:{port})" if address else f"{host}:{port}"
        #: what the server reported: server_version, TimeZone, in_hot_standby and more
        self.parameter_statuses: dict[str, str] = {}
        #: the last 100 notices, each the server's fields by name
        self.notices: deque[dict[str, str]] = deque(maxlen=100)
        #: the last 100 notifications: process, channel, payload
        self.notifications: deque[tuple[int, str, str]] = deque(maxlen=100)
        self.backend_pid = 0
        #: whether the server asked for the password; where it trusts, nobody knows whether that is right
        self.used_password = False
        #: how often the server was waited for since the connection was made
        self.flights = 0
        #: the wall-clock moment at which a flight is given up and the connection closed; None: never
        self.deadline: float | None = None
        self.cancel_on_abandon = cancel_on_abandon

        self._address: Any = None
        self._family = socket.AF_INET
        self._ssl_context = ssl_context
        self._poller = select.poll()
        self._secured = False
        self._would_block: tuple[type[OSError], ...] = (BlockingIOError,)
        self._dead_peer_timeout_s = dead_peer_timeout_s
        self._secret = b""
        self._process = os.getpid()
        self._encoding = "utf-8"
        # True from before the first byte of a flight until its reply is read: found True later, the flight was torn.
        self._flying = False
        self._buffer, self._position = b"", 0
        self._incoming: list[bytes] = []  # read while a long flight was still being written
        self._status = b"I"[0]
        self._lost = ""
        self._autocommit = False
        self._isolation_level: str | None = None
        self._readonly: bool | None = None
        self._deferrable: bool | None = None
        # A statement of the user's own that may have asked for READ ONLY was executed in the open transaction.
        self._may_have_asked = False
        # SET has turned default_transaction_read_only on, for the session.
        self._session_read_only = False
        self._declared: list[
            bytes
        ] = []  # messages of flights of the open transaction that have declared a cursor with parameters
        self._in_doubt = False  # a write was refused, and who asked for READ ONLY is known at the rollback
        self._cursor_names = count(1)
        self._xid: str | None = None
        self._prepared = False
        self._adapters: dict[int, Callable[[str], Any]] = {}
        self._styled: dict[int, Callable[[str], Any]] = {}
        self._shapes: dict[bytes, tuple[list[tuple[Any, ...]], list[Column]]] = {}
        self._plan_begin()
        self._open(secret, database, application_name, connect_timeout_s, startup_params)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"process {self.backend_pid}"
        return f"<plungepool.wire.Connection to {self._place}, {state}>"

    # ---- state

    @property
    def closed(self) -> bool:
        """True when the connection can never be used again."""
        return self._sock is None or self._flying

    @property
    def gone(self) -> bool:
        """True when not even a socket is left of it; unlike `closed`, also right while another thread is at work with it."""
        return self._sock is None

    @property
    def in_transaction(self) -> bool:
        """True when a transaction is open on the server, failed or not."""
        return self._status != 73  # I

    @property
    def in_failed_transaction(self) -> bool:
        """True when a statement of the open transaction failed, so that only a rollback is left."""
        return self._status == 69  # E

    @property
    def autocommit(self) -> bool:
        """True when each statement is a transaction of its own; costs nothing to change, but not inside one."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._refuse_inside_transaction("autocommit")
        self._autocommit = value

    @property
    def isolation_level(self) -> str | None:
        """The isolation level that the next BEGIN asks for; None: the server's default."""
        return self._isolation_level

    @isolation_level.setter
    def isolation_level(self, value: str | None) -> None:
        self._refuse_inside_transaction("isolation_level")
        if value not in (None, "READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
            raise ProgrammingError(f"isolation_level: {value!r} is none")
        self._isolation_level = value
        self._plan_begin()

    @property
    def readonly(self) -> bool | None:
        """Whether the next BEGIN asks for READ ONLY (True), READ WRITE (False), or neither (None)."""
        return self._readonly

    @readonly.setter
    def readonly(self, value: bool | None) -> None:
        self._refuse_inside_transaction("readonly")
        self._readonly = value
        self._plan_begin()

    @property
    def deferrable(self) -> bool | None:
        """Whether the next BEGIN asks for DEFERRABLE (True), NOT DEFERRABLE (False), or neither (None)."""
        return self._deferrable

    @deferrable.setter
    def deferrable(self, value: bool | None) -> None:
        self._refuse_inside_transaction("deferrable")
        self._deferrable = value
        self._plan_begin()

    def _refuse_inside_transaction(self, name: str) -> None:
        if self.in_transaction and not self.closed:
            raise ProgrammingError(f"{name} cannot change inside a transaction: commit or roll back first")

    def _plan_begin(self) -> None:
        begin = "BEGIN"
        if self._isolation_level is not None:
            begin += f" ISOLATION LEVEL {self._isolation_level}"
        if self._readonly is not None:
            begin += " READ ONLY" if self._readonly else " READ WRITE"
        if self._deferrable is not None:
            begin += " DEFERRABLE" if self._deferrable else " NOT DEFERRABLE"
        self._begin = begin
        # As messages of the flight it rides with, and not as a query of its own: if BEGIN fails, the server skips the rest,
        # and nothing runs outside the transaction it was meant for.
        self._begin_messages = _parse(begin, "ascii") + _BIND_NOTHING + _EXECUTE

    def register_in_adapter(self, oid: int, reader: Callable[[str], Any]) -> None:
        """Read values of the type `oid` with `reader`, which gets the server's text."""
        self._adapters[oid] = reader
        self._shapes.clear()

    # ---- PEP 249

    def cursor(self) -> Cursor:
        return Cursor(self)

    def name_cursor(self) -> str:
        """Return a name for a cursor on the server that this session has not used yet."""
        return f"plungepool_{next(self._cursor_names)}"

    def commit(self) -> None:
        """Commit; no round trip when nothing was sent since the last one.

        Raises: InternalError when the server rolled back instead, since a statement of the transaction had failed;
            ProgrammingError within a two-phase transaction.
        """
        self._refuse_within_tpc("commit")
        self._commit()

    def _commit(self) -> None:
        if self._sock is None or self._flying or self._status != 73:
            reply = self._query("COMMIT")
            if reply.tag == b"ROLLBACK":
                error = InternalError(
                    "COMMIT was answered by ROLLBACK, since a statement of the transaction had failed (SQLSTATE 25P02)"
                )
                error.sqlstate, error.message = "25P02", str(error)
                raise error

    def rollback(self) -> None:
        """Roll back; no round trip when nothing was sent since the last one.

        Raises: ProgrammingError within a two-phase transaction.
        """
        self._refuse_within_tpc("rollback")
        self._rollback()

    def _rollback(self) -> None:
        if self._sock is None or self._flying or self._status != 73:
            if not self._in_doubt:
                self._query("ROLLBACK")
                return
            self._in_doubt = False
            reply = self._query("ROLLBACK; SELECT pg_catalog.pg_is_in_recovery()")
            if reply.rows == [(True,)]:
                self._discard("it reaches a server that may not write any more: has the writer moved?")

    def close(self) -> None:
        """Say goodbye and close; a transaction that is open is lost. Never raises, and may be called again."""
        sock = self._sock
        if sock is None:
            return
        # A child of fork() shares the parent's connection: it lets go of it without a word to the server.
        if not self._flying and self._process == os.getpid():
            with contextlib.suppress(OSError):  # whoever closes does not care whether somebody still listens
                sock.send(_TERMINATE)
        self._discard("it was closed by this program")

    def abandon(self) -> None:
        """End the session without a word, from whichever thread: for a pool whose holder of the connection is gone.

        The descriptor stays open until nobody refers to the connection: a thread that is still at work with it must read
        an end, and not what another connection receives on a descriptor of the same number.
        """
        sock, self._flying = self._sock, True
        self._lost = self._lost or "its holder was gone"
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the socket's own, also under TLS

    def __del__(self) -> None:
        try:  # noqa: SIM105 - without a name of a module: at the interpreter's end they may be gone
            self.close()
        except Exception:  # noqa: BLE001, S110 - at the interpreter's end the modules that it needs may be gone
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Commit, or roll back where an exception leaves the block; then close, as psycopg does.

        Raises: what `commit` raises, also where the block has hidden the failure of a statement.
        """
        try:
            if kind is None and not self.closed:
                self.commit()
            elif not self.closed:
                self.leave_tpc()
                with contextlib.suppress(Error):  # the exception that is on its way tells more
                    self.rollback()
        finally:
            self.close()

    # ---- two-phase commit: the transaction's name is the server's, as it is written in pg_prepared_xacts

    def xid(self, format_id: int, global_transaction_id: str, branch_qualifier: str) -> Xid:
        """Return a name for `tpc_begin`, which takes any text, too."""
        if not 0 <= format_id <= 0x7FFFFFFF:
            raise ProgrammingError("xid: the format's number must be from 0 to 2147483647")
        if not all(len(part.encode()) <= 64 for part in (global_transaction_id, branch_qualifier)):
            raise ProgrammingError("xid: each part may have 64 bytes")
        return Xid(format_id, global_transaction_id, branch_qualifier)

    def tpc_begin(self, xid: str | Xid) -> None:
        """Name the transaction that the next statement starts."""
        if not self._prepared:  # a prepared one is the server's, and may have been ended by somebody else
            self._refuse_within_tpc("tpc_begin")
        self._refuse_inside_transaction("tpc_begin")
        if self._autocommit:
            raise ProgrammingError("tpc_begin cannot be used in autocommit mode")
        self._xid, self._prepared = str(xid), False

    def tpc_prepare(self) -> None:
        """First phase: the server keeps the transaction, under its name, whatever becomes of this connection."""
        if self._xid is None or self._prepared:
            raise ProgrammingError("tpc_prepare needs a transaction that tpc_begin has named, and once")
        prefix = (
            "" if self.in_transaction else f"{self._begin};"
        )  # nothing was executed: an empty transaction is prepared
        reply = self._query(f"{prefix}PREPARE TRANSACTION {_literal(self._xid)}")
        if reply.tag == b"ROLLBACK":
            raise InternalError(
                "PREPARE TRANSACTION was answered by ROLLBACK, since a statement of the transaction had failed"
            )
        self._prepared = True

    def tpc_commit(self, xid: str | Xid | None = None) -> None:
        """Second phase, or the only one when the transaction was not prepared; `xid`: one that tpc_recover has found."""
        self._tpc_end("COMMIT", xid)

    def tpc_rollback(self, xid: str | Xid | None = None) -> None:
        """Roll back, prepared or not; `xid`: one that tpc_recover has found."""
        self._tpc_end("ROLLBACK", xid)

    def leave_tpc(self) -> None:
        """Forget the two-phase transaction; one that is prepared stays on the server until somebody ends it by its name."""
        self._xid, self._prepared = None, False

    def _refuse_within_tpc(self, name: str) -> None:
        if self._xid is not None and not self.closed:
            raise ProgrammingError(
                f"{name} cannot be used within a two-phase transaction: use tpc_commit or tpc_rollback"
            )

    def tpc_recover(self) -> list[str]:
        """The names of the prepared transactions of this database."""
        reply = self._query(
            "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()"
        )
        return [row[0] for row in reply.rows]

    def _tpc_end(self, verb: str, xid: str | Xid | None) -> None:
        if xid is None and self._xid is None:
            raise ProgrammingError(f"tpc_{verb.lower()} needs a transaction that tpc_begin has named, or a name")
        if xid is not None and self._xid not in (None, str(xid)):
            raise ProgrammingError(f"tpc_{verb.lower()} of another transaction needs the end of this one first")
        own, self._xid = self._xid if self._prepared else None, None
        if xid is None and self.in_transaction:
            if verb == "COMMIT":
                self._commit()
            else:
                self._rollback()
        elif xid is not None or own is not None:
            self._query(f"{verb} PREPARED {_literal(str(xid or own))}")

    # ---- is it alive

    def check(self) -> None:
        """Look whether the server has hung up, without a round trip; blocks never.

        Raises: InterfaceError when the connection is closed; OperationalError when the server closed it, with the reason
            that it gave (for example 57P01).
        """
        sock = self._usable()
        self._flying = True
        try:
            self._sort_out_leftovers()
            if self._readable(sock):
                ended = False
                while not ended and (chunk := self._take(sock, _PIECE)) is not None:
                    self._buffer += chunk
                    ended = not chunk
                self._sort_out_leftovers()
                if ended:
                    raise _EndOfStream
        except BaseException as error:  # noqa: BLE001 - `_give_up` raises it
            self._give_up(error, None)
        self._flying = False

    def ping(self) -> None:
        """Ask the server whether it is there: one round trip.

        Raises: OperationalError when it is not.
        """
        self._fly([_SYNC], _Reply(), 0, 0)

    # ---- statements

    def _execute(self, statement: str, values: Sequence[Any], stream: Any) -> _Reply:
        if not values and (stream is not None or ";" in statement):
            # The simple protocol: the only one that takes several statements, and the one for COPY.
            if self._autocommit or self._status != 73:
                return self._query(statement, stream)
            reply = self._query(f"{self._begin};{statement}", stream, len(self._begin) + 1)
        else:
            reply = self._run(statement, (values,))
        return reply

    def _run(self, statement: str, rows: Sequence[Sequence[Any]], first: tuple[bytes, ...] = ()) -> _Reply:
        """
        One flight of one statement, once for each of `rows`; `first` are messages of statements that go before it.

        The statement is parsed anew where the types of the parameters change, and stays one flight.
        """
        encoding = self._encoding
        if not self._autocommit and self._status == 73:
            first = (self._begin_messages, *first)
        for values in rows:
            _refuse_misuse(values)
        runs = [(_oids(rows[0]), rows)] if len(rows) == 1 else cut(statement, rows)
        parts = [*first]
        for oids, run in runs:
            parts.append(_parse(statement, encoding, oids))
            describe = _DESCRIBE
            for values in run:
                parts += (_bind(values, encoding), describe, _EXECUTE)
                describe = b""
        parts.append(_SYNC)
        reply = _Reply()
        reply.runs = [len(run) for _, run in runs]
        self._fly(parts, reply, len(first), len(rows))
        return reply

    def _declare(self, name: str, statement: str, values: Sequence[Any]) -> _Reply:
        encoding = self._encoding
        _refuse_misuse(values)
        declare = (
            _parse(f"DECLARE {name} NO SCROLL CURSOR FOR {statement}", encoding, _oids(values))
            + _bind(values, encoding)
            + _EXECUTE
        )
        return self._run(f"FETCH FORWARD 0 FROM {name}", ((),), (declare,))

    def _query(self, statement: str, stream: Any = None, shift: int = 0) -> _Reply:
        """One flight by the simple protocol; `shift` characters at the front are not the user's."""
        reply = _Reply(stream)
        try:
            self._fly([_message(b"Q", _encoded(statement, self._encoding) + b"\0")], reply, 1 if shift else 0, _SEVERAL)
        except Error as error:
            if error.position is not None:
                error.position -= shift
            raise
        return reply

    # ---- flights

    def _usable(self) -> socket.socket:
        if self._flying:  # an exception tore the flight so hard that even giving it up was not finished
            self._discard("a flight was torn")
        sock = self._sock
        if sock is None:
            error = InterfaceError(f"the connection to {self._place} is closed: {self._lost}")
            error.disconnected = True
            raise error
        if self._process != os.getpid():
            error = InterfaceError(
                "the connection was opened by the parent of this process, and only the parent may use it"
            )
            error.disconnected = True
            raise error
        return sock

    def _fly(self, parts: list[bytes], reply: _Reply, before: int, times: int) -> None:
        """
        Send one flight and read its reply: of `before` statements without rows, and of one that was executed `times`.

        By the simple protocol (`_SEVERAL`) `before` is 1 where our BEGIN stands in front.
        """
        sock = self._usable()
        reply.sent = parts
        if self.deadline is not None and self.deadline <= clock.time():
            raise DeadlinePassed("the deadline has passed: nothing was sent")
        read_only_before = self.parameter_statuses.get("default_transaction_read_only")
        self._flying = True
        self.flights += 1
        try:
            if self._buffer:
                self._sort_out_leftovers()
            self._send_parts(sock, parts)
            self._read_reply(sock, reply, before, times)
        except BaseException as error:  # noqa: BLE001 - `_give_up` raises it
            self._give_up(error, reply)
        self._flying = False
        if reply.may_have_asked:
            self._may_have_asked = True
            if self.parameter_statuses.get("default_transaction_read_only") != read_only_before:
                self._session_read_only = read_only_before == "off"
        # 57014 is the server's echo when a COPY was called off on this side: the reason is the better error.
        if reply.error is not None and (reply.own is None or reply.error.sqlstate != "57014"):
            self._judge(reply.error)
            if self._status == 73:
                self._may_have_asked, self._declared = False, []
            raise reply.error
        if self._status == 73:
            self._may_have_asked, self._declared = False, []
        if reply.own is not None:
            raise reply.own
        if reply.refused is not None:
            failure, column = reply.refused
            if column is None or column[1] in self._adapters:  # a reader that the user registered raises what it wants
                raise failure
            # Without a cause: the reader's error quotes the value.
            raise DataError(
                f"a value that the server sent cannot be converted: column {column[0]!r}, whose type has the oid {column[1]}"
            )

    def _judge(self, error: DatabaseError) -> None:
        """
        Mark 25006 as a disconnect where nothing says that this client asked for READ ONLY: the writer has moved then.

        The evidence is our BEGIN, what the server reports (PostgreSQL 14 and newer), and whether the transaction holds a
        statement that can ask for READ ONLY. The last is not certain (it may have been any SET), so that the rollback asks
        the server whether it is a standby.
        """
        if error.sqlstate != _READ_ONLY or self._readonly is True:
            return
        reported = self.parameter_statuses
        standby = reported.get("in_hot_standby") == "on"
        if not standby and (self._session_read_only or reported.get("default_transaction_read_only") != "on"):
            self._in_doubt = self._may_have_asked
            if self._session_read_only or self._may_have_asked:
                return
        error.disconnected = True
        error.__class__ = OperationalError
        error.args = (f"{error.args[0]}; the connection should write: has the writer moved?",)

    def _wait(self, sock: socket.socket, events: int, until: float | None = None) -> None:
        """Wait for `events` until `until`, the deadline or for ever; an error of the socket counts as an event."""
        self._poller.register(sock, events)
        if until is None:
            until = self.deadline
        if until is None:
            self._poller.poll()
            return
        while True:
            left = until - clock.time()
            if left <= 0:
                raise _TooLate
            # A second at a time, since the clock of a frozen environment runs on and the poller's stands still.
            if self._poller.poll(min(left, 1.0) * 1000):
                return

    def _take(self, sock: Any, size: int) -> bytes | None:
        """What can be read at once; None: nothing yet."""
        try:
            chunk: bytes = sock.recv(size)
        except self._would_block:
            return None
        except OSError as error:
            raise _lost(error) from None
        return chunk

    def _receive(self, sock: Any, size: int) -> bytes:
        while True:
            if not self._secured or not sock.pending():
                self._wait(sock, select.POLLIN)
            chunk = self._take(sock, size)
            if chunk:
                return chunk
            if chunk is not None:
                raise _EndOfStream

    def _send(self, sock: socket.socket, data: bytes | memoryview) -> None:
        sent = 0
        if len(data) <= _SHORT_FLIGHT:
            try:
                sent = sock.send(data)
            except self._would_block:
                pass
            except OSError as error:
                raise _lost(error) from None
        if sent < len(data):
            self._send_long(sock, memoryview(data)[sent:])

    def _readable(self, sock: Any) -> bool:
        self._poller.register(sock, select.POLLIN)
        return bool((self._secured and sock.pending()) or self._poller.poll(0))

    def _send_parts(self, sock: socket.socket, parts: Sequence[bytes]) -> None:
        """Send whole messages: many short ones at once, and a long one without a copy of it."""
        batch: list[bytes] = []
        size = 0
        for part in parts:
            if len(part) > _LARGE:
                self._send(sock, b"".join(batch))
                batch, size = [], 0
                self._send(sock, part)
                continue
            batch.append(part)
            size += len(part)
            if size > _LARGE:
                self._send(sock, b"".join(batch))
                batch, size = [], 0
        self._send(sock, b"".join(batch))

    def _send_secret(self, sock: socket.socket, message: _Secret) -> None:
        """Send what holds a secret: no frame that an exception leaves behind shows it, those of `ssl` included."""
        sent = 0
        while sent < len(message.value):
            try:
                sent += sock.send(message.value[sent:])
                continue
            except self._would_block:
                pass
            except OSError as error:
                raise _lost(error.with_traceback(None)) from None
            except BaseException as error:  # noqa: BLE001 - raised at once, without the frames below this
                raise error.with_traceback(None)  # noqa: B904
            self._wait(sock, select.POLLOUT)

    def _send_long(self, sock: socket.socket, view: memoryview) -> None:
        """Write a flight of any length, reading what comes meanwhile: else both sides could wait for the other to read."""
        sent = 0
        while sent < len(view):
            try:
                sent += sock.send(view[sent : sent + _SHORT_FLIGHT])
                continue
            except self._would_block:
                pass
            except OSError as error:
                raise _lost(error) from None
            self._wait(sock, select.POLLIN | select.POLLOUT)
            chunk = self._take(sock, _PIECE)
            if chunk:
                self._incoming.append(chunk)
            elif chunk is not None:
                raise _EndOfStream

    def _fill(self, sock: socket.socket, buffer: bytes, position: int, wanted: int) -> bytes:
        """What is left of `buffer` and so much more that at least `wanted` bytes are there."""
        if self._incoming:
            parts = [buffer[position:], *self._incoming]
            self._incoming = []
        else:
            parts = [buffer[position:], self._receive(sock, _size(wanted))]
        have = sum(map(len, parts))
        while have < wanted:
            parts.append(self._receive(sock, _size(wanted - have)))
            have += len(parts[-1])
        return b"".join(parts)

    def _take_large_row(self, sock: socket.socket, buffer: bytes, values: list[bytes | None], width: int) -> bytes:
        """Read a row value by value, so that none is held twice; return what came behind it."""
        buffer = self._fill(sock, buffer, 0, 7) if len(buffer) < 7 else buffer
        left = _INT.unpack_from(buffer, 1)[0] - 6
        if _SHORT.unpack_from(buffer, 5)[0] != width:
            raise _violation("a row that was not described")
        buffer = buffer[7:]
        for _ in range(width):
            if left < 4:
                raise _violation("a row that is too short")
            buffer = self._fill(sock, buffer, 0, 4) if len(buffer) < 4 else buffer
            (size,) = _INT.unpack_from(buffer)
            left -= 4
            if size < -1 or size > left:
                raise _violation("a value of a length that does not fit its row")
            buffer = buffer[4:]
            if size < 0:
                values.append(None)
                continue
            left -= size
            if size <= len(buffer):
                values.append(buffer[:size])
                buffer = buffer[size:]
                continue
            # Grows in place, and gives its bytes away without a copy.
            value = BytesIO()
            have = value.write(buffer)
            buffer = b""
            while have < size:
                if self._incoming:
                    chunk = self._incoming.pop(0)
                else:
                    chunk = self._receive(sock, _size(min(size - have, _PIECE)))
                have += value.write(chunk)
            if have > size:
                value.seek(size)
                buffer = value.read()
                value.truncate(size)
            values.append(value.getvalue())
        if left:
            raise _violation("a row of another length than it says")
        return buffer

    def _read_reply(self, sock: socket.socket, reply: _Reply, before: int, times: int) -> None:
        simple = times == _SEVERAL
        statements = before + times
        expected = (before + len(reply.runs), statements, statements)
        start, lengths = before, iter(reply.runs)
        buffer, position = self._buffer, self._position
        end = len(buffer)
        header, integer = _HEADER.unpack_from, _INT.unpack_from
        values: list[bytes | None] = []
        append = values.append
        described = False
        width, width_bytes = 0, b""
        parsed = bound = executed = 0
        while True:
            if end - position < 5:
                if len(values) > 4096:
                    reply.convert(values)
                buffer = self._fill(sock, buffer, position, 5)
                position, end = 0, len(buffer)
            code, length = header(buffer, position)
            stop = position + 1 + length
            if stop > end:
                if length > 30000 and code not in _LONG:
                    raise _violation(f"a message {chr(code)!r} of {length} bytes")
                if len(values) > 4096:
                    reply.convert(values)
                if code == 68 and length > _LARGE and described:
                    buffer = self._take_large_row(sock, buffer[position:], values, width)
                    position, end = 0, len(buffer)
                    continue
                buffer = self._fill(sock, buffer, position, length + 1)
                position, end, stop = 0, len(buffer), length + 1
            if length < 4:
                raise _violation(f"a message {chr(code)!r} of {length} bytes")
            if code == 68:  # D: DataRow
                if not described or buffer[position + 5 : position + 7] != width_bytes:
                    raise _violation("a row that was not described")
                place = position + 7
                for _ in range(width):
                    if place > stop - 4:
                        raise _violation("a row that is too short")
                    (size,) = integer(buffer, place)
                    place += 4
                    if size >= 0:
                        append(buffer[place : place + size])
                        place += size
                    elif size == -1:
                        append(None)
                    else:
                        raise _violation("a value of negative length")
                if place != stop:
                    raise _violation("a row of another length than it says")
                if not width:
                    reply.rows.append(())
                position = stop
                continue
            body = buffer[position + 5 : stop]
            position = stop
            if code == 67:  # C: CommandComplete
                executed += 1
                reply.tag = body[:-1]
                if executed > before and reply.tag in _MAY_ASK:
                    reply.may_have_asked = True
                word = body[body.rfind(b" ") + 1 : -1]
                if word.isdigit() and len(word) < 20:
                    reply.rowcount = int(word) if simple or reply.rowcount < 0 else reply.rowcount + int(word)
                if simple:
                    if values:
                        reply.convert(values)
                    described = False
            elif code == 50:  # 2: BindComplete
                bound += 1
            elif code == 49:  # 1: ParseComplete
                parsed += 1
            elif code == 84:  # T: RowDescription
                if described if simple else executed != start or executed == statements:
                    raise _violation("a description that nobody asked for")
                if values:
                    reply.convert(values)
                if not described:
                    reply.rows = []
                described = True
                start += next(lengths, 0)
                reply.description, reply.columns = self._shape(body)
                width = len(reply.columns)
                width_bytes = body[:2]
            elif code == 110:  # n: NoData
                start += next(lengths, 0) if executed == start else 0
            elif code == 90:  # Z: ReadyForQuery
                if length != 5 or body[0] not in b"ITE":
                    raise _violation("a malformed ReadyForQuery")
                if reply.error is None and (not executed if simple else (parsed, bound, executed) != expected):
                    raise _violation("an answer to something that was not asked")
                if values:
                    reply.convert(values)
                self._buffer, self._position = buffer[position:], 0
                self._status = body[0]
                if self._buffer:
                    self._sort_out_leftovers(error_waits=True)
                return
            elif code == 69:  # E: ErrorResponse
                error = _server_error(body, (*self._declared, *reply.sent))
                reply.error = reply.error or error
                if error.severity in ("FATAL", "PANIC"):
                    raise _EndOfStream
            elif code == 73:  # I: EmptyQueryResponse
                executed += 1
            elif code == 71:  # G: CopyInResponse
                self._copy_in(sock, reply, simple)
            elif code == 72:  # H: CopyOutResponse
                if reply.stream is None:
                    reply.own = reply.own or ProgrammingError(
                        "COPY TO STDOUT needs a stream to write to: execute(…, stream=…)"
                    )
            elif code == 100:  # d: CopyData
                if reply.own is None:
                    self._copy_out(reply, body)
            elif code not in (99, 115):  # c: CopyDone, s: PortalSuspended
                self._aside(code, body)

    def _aside(self, code: int, body: bytes) -> None:
        """Take a message that may come at any time."""
        if code == 83:  # S: ParameterStatus
            name, _, value = body[:-1].partition(b"\0")
            self.parameter_statuses[name.decode("utf-8", "replace")] = text = value.decode("utf-8", "replace")
            if name == b"client_encoding" and text.upper() not in ("UTF8", "UNICODE"):  # UNICODE: its old name
                raise NotSupportedError(
                    f"client_encoding was set to {text}, and plungepool speaks UTF8 only; the connection is closed"
                )
            if name in (b"DateStyle", b"TimeZone"):
                style, zone = (self.parameter_statuses.get(key, "") for key in ("DateStyle", "TimeZone"))
                self._styled = styled_readers(style or "ISO", zone)
                self._shapes.clear()
        elif code == 78:  # N: NoticeResponse
            self.notices.append(_fields(body))
        elif code == 65:  # A: NotificationResponse
            if len(body) < 4:
                raise _violation("a notification that is too short")
            (process,) = _INT.unpack_from(body)
            channel, payload = body[4:-1].decode("utf-8", "replace").partition("\0")[::2]
            self.notifications.append((process, channel, payload))
        else:
            raise _violation(f"an unexpected message {chr(code)!r}")

    def _sort_out_leftovers(self, *, error_waits: bool = False) -> None:
        """
        Take what the server said between flights: only asides, or why it is going to close.

        `error_waits` leaves that for the next use: what the flight that has just ended brought is good all the same.
        """
        buffer, position = self._buffer, 0
        while len(buffer) - position >= 5:
            code, length = _HEADER.unpack_from(buffer, position)
            if code not in b"NSAE" or length < 4:
                raise _violation(f"a message {chr(code)!r} that nobody asked for")
            stop = position + 1 + length
            if stop > len(buffer):
                break
            if code == 69:
                if error_waits:
                    break
                raise _server_error(buffer[position + 5 : stop])
            self._aside(code, buffer[position + 5 : stop])
            position = stop
        self._buffer, self._position = buffer[position:], 0

    def _shape(self, body: bytes) -> tuple[list[tuple[Any, ...]], list[Column]]:
        """The description and the converters for a RowDescription; the same one comes again and again, so it is kept."""
        shape = self._shapes.get(body)
        if shape is None:
            description, columns, position = [], [], 2
            for _ in range(_SHORT.unpack_from(body)[0] if len(body) >= 2 else 0):
                end = body.find(b"\0", position)
                if end < 0 or end + 19 > len(body):
                    raise _violation("a malformed RowDescription")
                _, _, oid, size, _, binary = _FIELD_DESCRIPTION.unpack_from(body, end + 1)
                if binary:
                    raise _violation("a column in binary, which nobody asked for")
                description.append((body[position:end].decode("utf-8", "replace"), oid, None, size, None, None, None))
                columns.append(Column(oid, self._encoding, self._adapters.get(oid) or self._styled.get(oid)))
                position = end + 19
            if len(self._shapes) >= _SHAPES_KEPT:
                self._shapes.clear()
            shape = self._shapes[body] = description, columns
        return shape

    # ---- COPY

    # What a stream raises is the user's, and known by where it is called. The server is told, and the connection lives.

    def _copy_in(self, sock: socket.socket, reply: _Reply, simple: bool) -> None:
        if reply.stream is None:
            reply.own = reply.own or ProgrammingError(
                "COPY FROM STDIN needs a stream to read from: execute(…, stream=…)"
            )
        pieces = None
        batch = bytearray()
        while reply.own is None:
            try:
                pieces = pieces or _pieces(reply.stream)
                piece = next(pieces, None)
            except Exception as error:  # noqa: BLE001 - a stream may raise anything
                reply.own = error
                break
            if piece is None:
                break
            try:
                data = piece.encode(self._encoding) if isinstance(piece, str) else bytes(memoryview(piece))
            except UnicodeEncodeError:
                reply.own = DataError("COPY: the stream gave text that cannot be encoded as UTF-8")
                break
            except TypeError:
                reply.own = ProgrammingError(f"COPY: the stream gave {type(piece).__name__}, neither text nor bytes")
                break
            batch += b"d" + _INT.pack(len(data) + 4) + data
            if len(batch) >= _PIECE:
                self._send(sock, bytes(batch))
                batch.clear()
        last = bytes(batch) + _COPY_DONE if reply.own is None else _message(b"f", b"the client gave up\0")
        # In the extended protocol the server has thrown the Sync of the flight away while it waited for data.
        self._send(sock, last if simple else last + _SYNC)

    def _copy_out(self, reply: _Reply, body: bytes) -> None:
        stream = reply.stream
        try:
            data = body.decode(self._encoding) if _is_text(stream) else body
        except UnicodeDecodeError:
            reply.own = DataError("COPY: what the server sent is no UTF-8: write to a stream of bytes")
        else:
            try:
                stream.write(data)
            except Exception as error:  # noqa: BLE001 - a stream may raise anything
                reply.own = error
        # The rest is read and thrown away; a request that may still be under way would stop the next statement instead.
        if reply.own is not None and self.cancel_on_abandon and self._secret and not self._cancel():
            raise reply.own

    # ---- the end of a connection

    def _give_up(self, error: BaseException, reply: _Reply | None) -> NoReturn:
        """Close the connection since `error` stopped a flight, and raise what the user is to see."""
        said = reply.error if reply is not None else None
        cause: BaseException | None = None
        if isinstance(error, _EndOfStream):
            seen: BaseException = said or OperationalError(f"the server {self._place} closed the connection")
        elif isinstance(error, _TooLate):
            self._discard("the deadline passed", cancel=True)
            seen = DeadlinePassed(
                f"the server {self._place} had not answered at the deadline; the connection is closed"
            )
        elif isinstance(error, _Lost):
            cause = error.error
            seen = (
                said
                # A stream that uses the connection that reads from it has closed it, and was told so.
                or (reply.own if reply is not None and self._sock is None else None)
                or self._last_words(reply.sent if reply is not None else ())
                or OperationalError(f"the connection to {self._place} was lost: {cause.strerror or cause}")
            )
        else:
            # An error of ours that says what the server did wrong, or somebody else's exception: the server may then be
            # at work still.
            self._discard(f"{type(error).__name__} stopped a flight", cancel=not isinstance(error, DatabaseError))
            seen = error
        if self._sock is not None:
            self._discard(str(seen))
        if isinstance(seen, Error):
            seen.disconnected = True
        if seen is error:
            raise error
        raise seen from cause

    def _last_words(self, sent: Sequence[bytes]) -> DatabaseError | None:
        """The error that the server sent before it closed, when writing was what failed."""
        sock = self._sock
        if sock is None:
            return None
        with contextlib.suppress(_Lost):
            while chunk := self._take(sock, _PIECE):
                self._incoming.append(chunk)
        buffer, position = self._buffer[self._position :] + b"".join(self._incoming), 0
        while len(buffer) - position >= 5:
            code, length = _HEADER.unpack_from(buffer, position)
            stop = position + 1 + length
            if code == 69 and stop <= len(buffer):
                return _server_error(buffer[position + 5 : stop], sent)
            position = stop
        return None

    def _discard(self, why: str, cancel: bool = False) -> None:
        """Close the socket for good; `cancel`: the server may still be at work for us."""
        sock, self._sock = self._sock, None
        self._lost = self._lost or why
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()
        self._flying = False
        self._status = 73
        self._buffer, self._position, self._incoming = b"", 0, []
        if cancel and self.cancel_on_abandon and self._secret:
            self._cancel()

    def _cancel(self) -> bool:
        """
        Ask the server to stop what it does for us, so that its locks go; half a second at most, and no word if it fails.

        Returns: whether the server has closed after it, and so has passed the request on.
        """
        until = clock.time() + _CANCEL_TIMEOUT_S
        try:
            with socket.socket(self._family, socket.SOCK_STREAM) as plain:
                plain.settimeout(_CANCEL_TIMEOUT_S)
                plain.connect(self._address)
                sock = plain
                if self._ssl_context is not None:
                    plain.sendall(_TLS_REQUEST)
                    if plain.recv(1) != b"S":
                        return False
                    plain.settimeout(max(0.01, until - clock.time()))
                    sock = self._ssl_context.wrap_socket(plain, server_hostname=self.host)
                with sock:
                    sock.settimeout(max(0.01, until - clock.time()))
                    sock.sendall(
                        _INT.pack(12 + len(self._secret))
                        + _INT.pack(_CANCEL_CODE)
                        + _INT.pack(self.backend_pid)
                        + self._secret
                    )
                    return not sock.recv(1)  # the server closes when it has passed the request on
        # Time-outs of its own, no descriptor left, and a signal handler's OSError alike: another error is on its way already.
        except OSError:
            return False

    # ---- the start of a connection

    def _open(
        self,
        secret: _Secret,
        database: str | None,
        application_name: str | None,
        connect_timeout_s: float,
        startup_params: Mapping[str, str],
    ) -> None:
        parameters = {
            "user": self.user,
            "database": database,
            "application_name": application_name,
            "client_encoding": "UTF8",
            "DateStyle": "ISO",
        }
        if clash := parameters.keys() & startup_params.keys():
            raise ProgrammingError(f"startup_params: {', '.join(sorted(clash))} cannot be set there")
        try:
            packet = b"".join(
                name.encode() + b"\0" + value.encode() + b"\0"
                for name, value in {**parameters, **startup_params}.items()
                if value is not None
            )
        except UnicodeEncodeError:
            raise ProgrammingError(
                "user, database, application_name and startup_params must be text that UTF-8 can hold"
            ) from None
        if packet.count(b"\0") != 2 * sum(value is not None for value in {**parameters, **startup_params}.values()):
            raise ProgrammingError(
                "user, database, application_name and startup_params may not hold the character zero"
            )
        self.deadline = clock.time() + connect_timeout_s
        stage = "TCP"
        reply = _Reply()
        try:
            try:
                sock = self._dial()
                if self._ssl_context is not None:
                    stage = "TLS"
                    sock = self._secure(sock)
                stage = "authentication"
                body = _INT.pack(196608) + packet + b"\0"
                self._send(sock, _INT.pack(len(body) + 4) + body)
                self._authenticate(sock, secret, reply)
                self.deadline = None
            except _TooLate:
                raise OperationalError(
                    f"no connection to {self._place} within {connect_timeout_s:g} s (connect_timeout_s): {stage} had not finished"
                ) from None
        except BaseException as error:  # noqa: BLE001 - `_give_up` raises it
            self.deadline = None
            try:
                self._give_up(error, reply)
            finally:
                self._sock = None

    def _dial(self) -> socket.socket:
        """Try each address of the host, each with its share of the time that is left."""
        try:
            addresses = socket.getaddrinfo(*self._dialled, type=socket.SOCK_STREAM)
        except (
            OSError,
            ValueError,
            OverflowError,
        ) as error:  # ValueError: no name at all (my..host), OverflowError: no port
            if isinstance(error, OSError) and error.errno is None:  # as for `_lost`
                raise
            place = "" if self._dialled == (self.host, self.port) else f", to reach {self._place}"
            reason = (error.strerror if isinstance(error, OSError) else "it is not a host's name with a port") or error
            raise OperationalError(f"the host name {self._dialled[0]} cannot be resolved{place}: {reason}") from error
        assert self.deadline is not None  # noqa: S101 - `_open` sets it
        failure: OSError | None = None
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            now = clock.time()
            share = max(0.0, self.deadline - now) / (len(addresses) - index)
            try:
                self._sock = sock = socket.socket(family, kind, protocol)
                self._family, self._address, self._poller = family, address, select.poll()
                sock.setblocking(False)
                _tune(sock, self._dead_peer_timeout_s)
                number = sock.connect_ex(address)
                if number == errno.EINPROGRESS:
                    self._wait(sock, select.POLLOUT, now + share)
                    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not number:
                    return sock
                failure = OSError(number, os.strerror(number))
            except _TooLate:
                failure = None
            except OSError as error:  # no descriptor left, or a family that the machine does not have
                if error.errno is None:  # as for `_lost`
                    raise
                failure = error
            if self._sock is not None:
                self._sock.close()
        if failure is None:
            raise _TooLate
        raise OperationalError(f"{self._place} cannot be reached: {failure.strerror or failure}") from failure

    def _secure(self, sock: socket.socket) -> socket.socket:
        import ssl

        context = self._ssl_context
        assert context is not None  # noqa: S101 - asked for by the caller
        self._send(sock, _TLS_REQUEST)
        # One byte and no more: what came behind it in plain text would pass for the server's, read through TLS.
        try:
            answer = self._receive(sock, 1)
        except _EndOfStream:
            answer = b""
        if answer == b"N":
            raise OperationalError(
                f"{self._place} does not offer TLS, and PLUNGEPOOL_TLS asks for it; nothing else was sent"
            )
        if answer != b"S":
            raise (
                OperationalError(f"{self._place} did not answer the request for TLS")
                if answer != b"E"
                else OperationalError(
                    f"{self._place} refused the connection before TLS began (too many connections, or it is starting up)"
                )
            )
        try:
            try:
                secured = context.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)
            except ssl.SSLError:
                raise
            except (
                ValueError
            ) as error:  # a host that can be no certificate's: with an address it was not looked up before
                raise OperationalError(f"TLS cannot verify the name {self.host!r} of {self._place}: {error}") from error
            self._sock, self._secured = secured, True
            self._would_block = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
            while True:
                try:
                    secured.do_handshake()
                except ssl.SSLWantReadError:
                    self._wait(secured, select.POLLIN)
                except ssl.SSLWantWriteError:
                    self._wait(secured, select.POLLOUT)
                else:
                    return secured
        except ssl.SSLError as error:
            raise OperationalError(explain(error, self._place, context)) from error
        except OSError as error:
            raise _lost(error) from None

    def _read_message(self, sock: socket.socket) -> tuple[int, bytes]:
        if len(self._buffer) < 5:
            self._buffer = self._fill(sock, self._buffer, 0, 5)
        code, length = _HEADER.unpack_from(self._buffer)
        if not 4 <= length <= 30000:
            raise _violation(f"a message {chr(code)!r} of {length} bytes before the session started")
        if len(self._buffer) < length + 1:
            self._buffer = self._fill(sock, self._buffer, 0, length + 1)
        body = self._buffer[5 : length + 1]
        self._buffer = self._buffer[length + 1 :]
        return code, body

    def _authenticate(self, sock: socket.socket, secret: _Secret, reply: _Reply) -> None:
        scram: _Scram | None = None
        answered = authenticated = False
        while True:
            code, body = self._read_message(sock)
            if code == 69:
                reply.error = _server_error(body)
                refused = answered and (reply.error.sqlstate or "").startswith(("28", "08P01"))
                if refused and secret.value != secret.value.strip():
                    reply.error.args = (
                        f"{reply.error.args[0]}; the password that was sent begins or ends with a blank or a line break",
                    )
                raise _EndOfStream
            if authenticated and code == 90:
                if len(body) != 1 or body[0] not in b"ITE":
                    raise _violation("a malformed ReadyForQuery")
                self._status = body[0]
                self._sort_out_leftovers()
                return
            if authenticated and code == 75:
                if not 8 <= len(body) <= 4 + _CANCEL_KEY_AT_MOST:
                    raise _violation(f"a key for cancelling of {len(body) - 4} bytes")
                (self.backend_pid,) = _INT.unpack_from(body)
                self._secret = body[4:]
                continue
            if code != 82 or authenticated or len(body) < 4:
                if code == 82:
                    raise _violation("a request to authenticate where none was due")
                self._aside(code, body)
                continue
            (kind,) = _INT.unpack_from(body)
            if kind == 0:
                if scram is not None and not scram.verified:
                    raise OperationalError("the server skipped the proof that it knows the password")
                authenticated = True
                continue
            if kind not in (3, 5, 10, 11, 12):
                raise NotSupportedError(
                    f"the server asks for authentication method {kind}, which is not offered here (password, md5 and SCRAM are)"
                )
            if kind <= 10:
                # Only one method is answered: a server that cannot verify SCRAM does not get the password as well.
                if answered:
                    raise _violation("a second method of authentication")
                if secret.value is None:
                    raise OperationalError(f"the server asks for a password for user {self.user}, and none was given")
                answered = self.used_password = True
            if kind in (5, 10):
                _load("binascii", "hashlib", "hmac", *([] if secret.value.isascii() else ["stringprep"]))
            message = _Secret()
            if kind == 3:
                message.value = _encoded_password(secret).value + b"\0"
            elif kind == 5:
                if len(body) < 8:
                    raise _violation("a salt that is too short")
                message.value = _md5(self.user, secret, body[4:8]).value
            elif kind == 10:
                scram = _Scram(secret, body[4:], sock)
                message.value = scram.first
            elif scram is None:
                raise _violation("a step of SCRAM that was not begun")
            elif kind == 11:
                message.value = scram.answer(body[4:]).value
            else:
                scram.verify(body[4:])
                continue
            message.value = _message(b"p", message.value)
            self._send_secret(sock, message)


_CANCEL_KEY_AT_MOST = 256  # of the protocol's version 3.2; 4 before
_SCRAM_ITERATIONS_AT_MOST = 1_000_000  # half a second; a server may not keep us longer


def _load(*modules: str) -> None:
    """Import what the next step needs: where that fails (no descriptor left), it is an error of the connect."""
    from importlib import import_module

    for name in modules:
        try:
            import_module(name)
        except (ImportError, OSError) as error:
            raise OperationalError(f"authentication needs Python's {name}, which cannot be loaded: {error}") from error


def _encoded_password(secret: _Secret) -> _Secret:
    encoded = _Secret()
    try:
        # What os.environ could not decode is the bytes that it was.
        encoded.value = secret.value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # which holds the whole password
        encoded.value = None
    if encoded.value is None:
        raise OperationalError("the password cannot be sent: it is no text that UTF-8 can hold")
    if b"\0" in encoded.value:
        raise OperationalError("the password cannot be sent: it holds the character zero")
    return encoded


def _md5(user: str, secret: _Secret, salt: bytes) -> _Secret:
    from hashlib import md5

    answer = _Secret()
    answer.value = md5(_encoded_password(secret).value + user.encode(), usedforsecurity=False).hexdigest().encode()
    answer.value = b"md5" + md5(answer.value + salt, usedforsecurity=False).hexdigest().encode() + b"\0"
    return answer


class _Scram:
    """
    SCRAM-SHA-256 (RFC 5802, 7677), bound to the TLS channel where the server offers it.

    As libpq does it, unlike libraries that hold to the RFC's recommendations: any count of iterations, and a password that
    SASLprep refuses is taken as it is.
    """

    def __init__(self, secret: _Secret, mechanisms: bytes, sock: Any) -> None:
        from binascii import b2a_base64

        self.verified = False
        self._expected: bytes | None = None
        self._password = _encoded_password(secret)
        names = [name for name in mechanisms.split(b"\0") if name]
        digest = None
        self._header, binding, mechanism = b"n,,", b"", b"SCRAM-SHA-256"
        if hasattr(sock, "getpeercert"):
            certificate = sock.getpeercert(binary_form=True)
            digest = _digest_of_signature(certificate)
            if digest is not None and b"SCRAM-SHA-256-PLUS" in names:
                from hashlib import new

                mechanism = b"SCRAM-SHA-256-PLUS"
                self._header, binding = b"p=tls-server-end-point,,", new(digest, certificate).digest()
            elif digest is not None:
                self._header = b"y,,"  # so that the server notices if somebody took its offer out
        if mechanism not in names:
            offered = ", ".join(name.decode("ascii", "replace") for name in names)
            raise NotSupportedError(
                f"the server offers {offered or 'no method'} to prove the password; SCRAM-SHA-256 is known here"
            )
        self._binding = b2a_base64(self._header + binding, newline=False)
        self._nonce = b2a_base64(os.urandom(18), newline=False)
        self._bare = b"n=,r=" + self._nonce  # the server takes the user of the start-up
        first = self._header + self._bare
        self.first = mechanism + b"\0" + _INT.pack(len(first)) + first

    def answer(self, server_first: bytes) -> _Secret:
        from binascii import Error as NotBase64
        from binascii import a2b_base64

        if self._expected is not None:
            raise _violation("a step of SCRAM for the second time")
        fields = server_first.split(b",")
        if [field[:2] for field in fields] != [b"r=", b"s=", b"i="]:
            raise _violation("a step of SCRAM that makes no sense")
        nonce, salt_text, count = (field[2:] for field in fields)
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise _violation("SCRAM with a nonce that is not ours")
        try:
            salt = a2b_base64(salt_text, strict_mode=True)
        except NotBase64:
            salt = b""
        if not salt or not count.isdigit() or len(count) > 10 or not int(count):
            raise _violation("a step of SCRAM that makes no sense")
        if int(count) > _SCRAM_ITERATIONS_AT_MOST:
            raise OperationalError(
                f"the server asks for {int(count)} iterations of SCRAM; more than {_SCRAM_ITERATIONS_AT_MOST} are not done"
            )
        final = b"c=" + self._binding + b",r=" + nonce
        answer, self._expected = _scram_proof(
            self._password, salt, int(count), b",".join((self._bare, server_first, final))
        )
        answer.value = final + b",p=" + answer.value
        return answer

    def verify(self, server_final: bytes) -> None:
        from hmac import compare_digest

        if self._expected is None:
            raise _violation("the end of SCRAM before its middle")
        if server_final[:2] == b"e=":
            raise OperationalError(f"the server refused SCRAM: {server_final[2:].decode('ascii', 'replace')}")
        if not compare_digest(server_final, self._expected):
            raise OperationalError("the server could not prove that it knows the password")
        self.verified = True


def _scram_proof(password: _Secret, salt: bytes, iterations: int, exchange: bytes) -> tuple[_Secret, bytes]:
    """Return the client's proof, in Base64, and what the server has to answer; both follow from the password."""
    from binascii import b2a_base64
    from hashlib import pbkdf2_hmac, sha256
    from hmac import digest

    salted, client, proof = _Secret(), _Secret(), _Secret()
    try:
        salted.value = pbkdf2_hmac("sha256", _saslprep(password.value), salt, iterations)
        client.value = digest(salted.value, b"Client Key", "sha256")
        proof.value = digest(sha256(client.value).digest(), exchange, "sha256")
        proof.value = bytes(one ^ other for one, other in zip(client.value, proof.value, strict=True))
        proof.value = b2a_base64(proof.value, newline=False)
        expected = digest(digest(salted.value, b"Server Key", "sha256"), exchange, "sha256")
    except BaseException as error:  # noqa: BLE001 - raised at once, without the frames below, which hold keys
        raise error.with_traceback(None)  # noqa: B904
    return proof, b"v=" + b2a_base64(expected, newline=False)


def _saslprep(password: bytes) -> bytes:
    """Prepare a password after RFC 4013; one that it forbids stays as it is, as in PostgreSQL."""
    if password.isascii():
        return password
    import stringprep as tables
    from unicodedata import ucd_3_2_0

    try:
        text = password.decode()
    except UnicodeDecodeError:
        return password
    text = "".join(" " if tables.in_table_c12(c) else c for c in text if not tables.in_table_b1(c))
    text = ucd_3_2_0.normalize("NFKC", text)
    forbidden = (
        tables.in_table_a1,
        tables.in_table_c12,
        tables.in_table_c21_c22,
        tables.in_table_c3,
        tables.in_table_c4,
        tables.in_table_c5,
        tables.in_table_c6,
        tables.in_table_c7,
        tables.in_table_c8,
        tables.in_table_c9,
    )
    if not text or any(table(c) for c in text for table in forbidden):
        return password
    if any(map(tables.in_table_d1, text)) and (
        any(map(tables.in_table_d2, text)) or not (tables.in_table_d1(text[0]) and tables.in_table_d1(text[-1]))
    ):
        return password
    return text.encode()


# By the object identifier of a certificate's signature; RFC 5929 takes SHA-256 for MD5 and SHA-1.
_DIGESTS = {
    **{
        bytes.fromhex("2a864886f70d0101") + bytes((last,)): name
        for last, name in ((4, "sha256"), (5, "sha256"), (11, "sha256"), (12, "sha384"), (13, "sha512"), (14, "sha224"))
    },
    bytes.fromhex("2a8648ce3d0401"): "sha256",
    **{
        bytes.fromhex("2a8648ce3d0403") + bytes((last,)): name
        for last, name in ((1, "sha224"), (2, "sha256"), (3, "sha384"), (4, "sha512"))
    },
}
_RSA_PSS = bytes.fromhex("2a864886f70d01010a")
_PSS_DIGESTS = {
    bytes.fromhex("6086480165030402") + bytes((last,)): name
    for last, name in ((1, "sha256"), (2, "sha384"), (3, "sha512"), (4, "sha224"))
}


def _digest_of_signature(certificate: bytes) -> str | None:
    """Return the digest that a certificate (DER) is signed by; None where it has none of its own (Ed25519)."""
    try:
        start, _ = _der(certificate, 0)  # Certificate: a sequence of the certificate to be signed and the algorithm
        _, start = _der(certificate, start)
        start, end = _der(certificate, start)
        name, after = _der(certificate, start)
    except IndexError:
        return None
    algorithm = certificate[name:after]
    if algorithm != _RSA_PSS:
        return _DIGESTS.get(algorithm)
    parameters = certificate[after:end]
    return next((name for identifier, name in _PSS_DIGESTS.items() if identifier in parameters), "sha256")


def _der(data: bytes, start: int) -> tuple[int, int]:
    """Return where the content of the element at `start` begins and ends."""
    size, begin = data[start + 1], start + 2
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(data[begin : begin + count], "big")
        begin += count
    return begin, begin + size


def _tune(sock: socket.socket, dead_peer_timeout_s: float) -> None:
    """No waiting for more to send, and an end to waiting for a network that swallows everything."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Probes start at two fifths of the time and come five times as often, so that the last unanswered one ends it in time.
    interval = max(1, int(dead_peer_timeout_s / 5))
    idle = max(1, int(dead_peer_timeout_s * 2 / 5))
    options = {
        "TCP_USER_TIMEOUT": max(1, int(dead_peer_timeout_s * 800)),
        "TCP_KEEPIDLE": idle,
        "TCP_KEEPINTVL": interval,
        "TCP_KEEPCNT": max(1, int((dead_peer_timeout_s - idle) / interval)),
    }
    for name, value in options.items():
        if hasattr(socket, name):  # Linux has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _size(wanted: int) -> int:
    return min(max(_PIECE, wanted), 1 << 20)


def _literal(text: str) -> str:
    escaped = text.replace("'", "''")
    return f" E'{escaped}'".replace("\\", "\\\\") if "\\" in text else f"'{escaped}'"


def _is_text(stream: Any) -> bool:
    from io import TextIOBase

    return isinstance(stream, TextIOBase)


def _pieces(stream: Any) -> Iterator[bytes | str]:
    if hasattr(stream, "read"):
        while piece := stream.read(_PIECE):
            yield piece
    else:
        yield from stream


# ---- the cursor -----------------------------------------------------------------------------------------------------


# PEP 249's optional extension: the exceptions, for whoever has a connection and not the module.
_classes: tuple[type[Exception], ...] = (Warning, Error, InterfaceError, DatabaseError, *_ERROR_CLASSES.values())
for _class in _classes:
    setattr(Connection, _class.__name__, _class)


class Cursor:
    """The result of one statement, all of it in memory."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.arraysize = 1
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self._rows: Iterator[tuple[Any, ...]] | None = None
        self._closed = False

    def execute(self, operation: str, args: Sequence[Any] = (), stream: Any = None) -> Cursor:
        """Execute one statement with `args` for ``$1``, ``$2`` and so on; without any, several statements may stand in it.

        Args: stream: what COPY reads from (a file, or any iterable of text or bytes) or writes to (a file).
        """
        self._start()
        self._take(self.connection._execute(operation, args, stream))
        return self

    def declare(self, name: str, operation: str, args: Sequence[Any] = ()) -> None:
        """Declare a cursor on the server, for FETCH; one flight, which also tells `description`."""
        self._start()
        reply = self.connection._declare(name, operation, args)
        self._take(reply)
        if args:  # an error of a later FETCH may show them
            self.connection._declared += reply.sent

    def executemany(self, operation: str, param_sets: Iterable[Sequence[Any]]) -> Cursor:
        """Execute the statement once for each of `param_sets`, all in one flight: all of it happens, or nothing."""
        self._start()
        sets = list(param_sets)
        if sets:
            self._take(self.connection._run(operation, sets))
        else:
            self.rowcount = 0
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        if self._closed:
            raise InterfaceError("the cursor is closed")
        self.description, self.rowcount, self._rows = None, -1, None

    def _take(self, reply: _Reply) -> None:
        self.rowcount = reply.rowcount
        if reply.description is not None:
            self.description = reply.description
            self._rows = iter(reply.rows)

    def _results(self) -> Iterator[tuple[Any, ...]]:
        if self._rows is None:
            raise ProgrammingError(
                "there is no result to fetch from: the last statement returned no rows, or none was executed"
            )
        return self._rows

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(self._results(), None)

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        return list(islice(self._results(), self.arraysize if size is None else size))

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self._results())

    def __iter__(self) -> Self:
        self._results()
        return self

    def __next__(self) -> tuple[Any, ...]:
        return next(self._results())

    def close(self) -> None:
        self._closed = True
        self._rows = None

    def setinputsizes(self, sizes: Any) -> None:
        """Does nothing: PEP 249 asks for it."""

    def setoutputsize(self, size: Any, column: Any = None) -> None:
        """Does nothing: PEP 249 asks for it."""
