"""
PEP 249's errors, classed by SQLSTATE: what may be tried again, what ended the connection, and no value in any text.

    Warning
    Error
    ├── InterfaceError
    └── DatabaseError
        ├── DataError, IntegrityError, InternalError, NotSupportedError
        ├── ProgrammingError
        │   └── SettingsMissing (also plungepool.SettingsMissing)
        └── OperationalError
            ├── DeadlineExceeded (also plungepool.DeadlineExceeded and TimeoutError)
            └── PasswordAheadRefused
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .. import errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Warning(Exception):
    """Never raised; PEP 249 asks for it."""


class Error(Exception):
    """
    What every error here derives from.

    `str()` of a server's error holds nothing that was sent as a parameter, and nothing that a data exception (class 22)
    quotes, which may be a value of the database: `…` stands for either. The whole of it is on the attributes.
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
    #: True when the server closed the connection where an answer was due, and did not say why
    hung_up: bool = False
    #: True when the connection was lost after something was sent that is kept as soon as it is done (COMMIT; in
    #: AUTOCOMMIT any statement), and the server's answer to it was not read: it was carried out, or not
    outcome_unknown: bool = False
    #: True when a write was refused in a transaction that this side has begun as READ ONLY
    asked_read_only: bool = False

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


class SettingsMissing(ProgrammingError, errors.SettingsMissing):
    """A setting that is required of a connection has no value in its `transaction_settings`; nothing was sent."""


class DeadlineExceeded(OperationalError, errors.DeadlineExceeded):
    """The flight was given up at `Connection.deadline`; the connection is closed."""


DeadlinePassed = DeadlineExceeded  # as it was called before it was this package's error as well


class PasswordAheadRefused(OperationalError):
    """
    The server did not take the password that was sent before it asked for one: connect again with
    `password_ahead=False`.

    Raised by a connect with `password_ahead=True` alone; nothing is said about the password. `sqlstate` is 08P01 where
    the server complained that a message came that it had not asked for.
    """

    #: what it asked for in its place, in pg_hba.conf's words (`scram-sha-256`, `md5`, …; `trust` where it asked for
    #: nothing); None where it complained, or hung up without a word
    authentication: str | None = None


# Under the name by which they are caught: SQLAlchemy and tracebacks print the module.
CLASSES: tuple[type[Exception], ...] = (
    Warning,
    Error,
    InterfaceError,
    DatabaseError,
    DataError,
    OperationalError,
    IntegrityError,
    InternalError,
    ProgrammingError,
    NotSupportedError,
    SettingsMissing,
    DeadlineExceeded,
    PasswordAheadRefused,
)
for _class in CLASSES:
    _class.__module__ = __package__ or ""

# As psycopg 3 classes them, so that a program moved from it catches what it caught; but what ends a session from
# outside (25P03, 25P04, and 25006 of a writer that has moved) is operational, whatever its class, and may succeed
# later.
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
# The server could not tell a parameter's type, or found no operator or function for the types.
_OF_TYPES = frozenset(("42P18", "42P08", "42725", "42883"))
_OF_TYPES_CURE = (
    "A parameter has the type of its Python value; text and None have no type: cast it in the statement, as in "
    "$1::integer "
    "or CAST(:name AS integer), or send str(value) where it is compared with text"
)
_RETRYABLE = frozenset(("40001", "40P01", "OC000", "OC001", "53300", "57P03"))
# RDS Proxy's text; its SQLSTATE (08000 is reported) says no more than that something is wrong with the connection.
_BORROW_TIMEOUT = "Timed-out waiting to acquire database connection"


def error_fields(body: bytes) -> dict[str, str]:
    """Read an ErrorResponse or a NoticeResponse: what it says, under psycopg's names."""
    fields = {}
    for part in body.split(b"\0"):
        if part:
            letter, text = chr(part[0]), part[1:].decode("utf-8", "replace")
            if letter in _FIELDS:
                fields[_FIELDS[letter]] = text
            elif letter == "S":
                fields.setdefault("severity", text)
    return fields


def server_error(body: bytes, parameters: Iterable[str] = ()) -> DatabaseError:
    """
    Build the error of an ErrorResponse; `parameters`: the texts of those that were sent, which its text may not show.
    """
    withheld = {text for text in map(_lower, parameters) if text}
    fields = error_fields(body)
    sqlstate, message = fields.get("sqlstate", ""), fields.get("message", "the server gave no message")
    shown = _without(withheld, message)
    if sqlstate in _OF_TYPES:
        hint = _without(withheld, fields.get("hint", "")).rstrip(".")
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


def _without(parameters: set[str], message: str) -> str:
    """
    Put `…` for what a message holds of these parameters, whatever the SQLSTATE.

    The server shows a parameter whole or in part, in quotes or without, as a name in lower case, or as numbers:
    make_date (2024, 13, 1) is `2024-13-01` in its message. A short parameter counts as a word only: else `a` would hide
    every a.
    """
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


# What ends a flight, raised where it is known and nowhere else: any other exception is taken for somebody else's.


class EndOfStream(Exception):
    """The server closed the connection where a message was due."""


class Lost(Exception):
    """A call to the socket failed."""

    def __init__(self, error: OSError) -> None:
        self.error = error


class TooLate(Exception):
    """The deadline passed."""


def lost(error: OSError) -> Exception:
    """Turn what an own call to the socket raised into what ends a flight."""
    # No call to the system fails without a number, and no socket here has a time-out of its own: what has none was
    # raised at that line by somebody else (a signal handler), and stays what it is. The socket's frames may hold what
    # was sent.
    return error if error.errno is None else Lost(error.with_traceback(None))


def violation(what: str) -> OperationalError:
    """Return the error for what no server says that follows the protocol."""
    return OperationalError(f"the server broke the protocol: {what}; the connection is closed")


class Secret:
    """
    Holds a password, or what is as good as one: crash reporters print a frame's locals, and this prints without it.

    It is set as an attribute, and not by a constructor, whose frame would show it.
    """

    __slots__ = ("value",)
    value: Any
