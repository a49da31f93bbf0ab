"""
A PostgreSQL driver after PEP 249: one round trip a statement, and never a wrong row.

What one statement needs (BEGIN where a transaction has to start, Parse, Bind, Describe, Execute, Sync) leaves in one
write, a *flight*, and its reply is read to ReadyForQuery. Whatever stops a flight before that closes the connection for
good: a reply that is half read is never taken for the next one's. A flight is complete in itself, so that a transaction
pooler (RDS Proxy, PgBouncer) may give each to another server: no named statement, no SET, no state unless the user asks
for it.

Two of pg8000's types, `PGInterval` and `Range`, are what a user gets and may send for what Python has no type for;
pg8000 is imported when one comes, and not before. Nothing else of it is used.

Times are seconds; moments are wall-clock (`time.time()`), so that the time an environment is frozen counts.

Source: PEP 249; PostgreSQL's manual, "Frontend/Backend Protocol".
"""

from __future__ import annotations

from datetime import date, datetime, time

from . import values as types
from .connection import Connection, Cursor, Xid, connect
from .errors import (
    DatabaseError,
    DataError,
    DeadlineExceeded,
    DeadlinePassed,
    Diagnostic,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    PasswordAheadRefused,
    ProgrammingError,
    SettingsMissing,
    Warning,
)

apilevel = "2.0"
threadsafety = 1
#: ``$1``, ``$2``: the server's own, so that no statement is ever searched for placeholders
paramstyle = "numeric_dollar"

__all__ = [
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "DeadlineExceeded",
    "DeadlinePassed",
    "Diagnostic",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "PasswordAheadRefused",
    "ProgrammingError",
    "SettingsMissing",
    "Warning",
    "Xid",
    "apilevel",
    "connect",
    "paramstyle",
    "threadsafety",
]

Date, Time, Timestamp = date, time, datetime


def Binary(data: bytes | bytearray | memoryview) -> bytes:
    """Return the bytes of what holds bytes; a number is a TypeError, where bytes() would make so many zeros of it."""
    return data if type(data) is bytes else bytes(memoryview(data))


def DateFromTicks(ticks: float) -> date:
    """Return the local date of a moment, in seconds since the epoch."""
    return date.fromtimestamp(ticks)


def TimeFromTicks(ticks: float) -> time:
    """Return the local time of day of a moment, in seconds since the epoch."""
    return datetime.fromtimestamp(ticks).time()


def TimestampFromTicks(ticks: float) -> datetime:
    """Return the local date and time of a moment, in seconds since the epoch."""
    return datetime.fromtimestamp(ticks)


class _Kind(frozenset[int]):
    """A kind of type, equal to the oid of each type of that kind."""

    def __eq__(self, other: object) -> bool:
        return other in self if isinstance(other, int) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = frozenset.__hash__


STRING = _Kind((types.CHAR, types.NAME, types.TEXT, types.BPCHAR, types.VARCHAR))
BINARY = _Kind((types.BYTEA,))
NUMBER = _Kind((types.INT8, types.INT2, types.INT4, types.FLOAT4, types.FLOAT8, types.MONEY, types.NUMERIC))
DATETIME = _Kind((types.DATE, types.TIME, types.TIMESTAMP, types.TIMESTAMPTZ, types.INTERVAL, types.TIMETZ))
ROWID = _Kind((types.OID,))
