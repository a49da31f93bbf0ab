"""
What a Python value is as a parameter: its text, and the type that a literal of it would have. Pure.

A value of another library's type goes as what it stands for, where that is certain; else it is refused by name.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from json import dumps
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .values import (
    ARRAY_OF,
    BOOL,
    BYTEA,
    CIDR,
    DATE,
    FLOAT8,
    INET,
    INT4,
    INT8,
    INTERVAL,
    NUMERIC,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    TIMETZ,
    UUID_,
    XID,
    MultiRange,
    TransactionId,
    Vector,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def _datetime_out(value: datetime) -> str:
    if value.tzinfo is None:
        return value.isoformat()
    try:
        return value.astimezone(UTC).isoformat()
    except OverflowError:  # the first and last hours of all time
        return value.isoformat()


def _interval_out(value: timedelta) -> str:
    # With IntervalStyle sql_standard a minus at the front holds for every number that has no sign of its own.
    plus = "+" if value.days < 0 else ""
    return f"{value.days} days {plus}{value.seconds} seconds {plus}{value.microseconds} microseconds"


_PG_INTERVAL_UNITS = (
    "millennia",
    "centuries",
    "decades",
    "years",
    "months",
    "weeks",
    "days",
    "hours",
    "minutes",
    "seconds",
)


def _pg_interval_out(value: Any) -> str:
    counts = ((getattr(value, unit), unit) for unit in (*_PG_INTERVAL_UNITS, "microseconds"))
    return " ".join(f"{count:+} {unit}" for count, unit in counts if count is not None) or "0"


def _range_out(value: Any) -> str:
    if value.is_empty:
        return "empty"
    lower, upper = ("" if bound is None else _quoted(bound, _RANGE_PLAIN) for bound in (value.lower, value.upper))
    return f"{value.bounds[0]}{lower},{upper}{value.bounds[1]}"


_ARRAY_PLAIN = re.compile(r"[^\s{}\",\\]+")
_RANGE_PLAIN = re.compile(r"[^\s()\[\]\",\\]+")
_COMPOSITE_PLAIN = re.compile(r"[^\s()\",\\]+")


def _quoted(value: Any, plain: re.Pattern[str]) -> str:
    text = to_text(value)
    assert text is not None  # noqa: S101 - None was answered by the caller
    if plain.fullmatch(text) and text.upper() != "NULL":
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# An array without elements, as every array's reader takes it and JSON's does not: a list for a jsonb column is an error
# whatever it holds, and `{}` would be stored there as an object.
_NO_ELEMENTS = "{\v}"
_BOX = re.compile(r"\([^()]*\),\([^()]*\)")


def _array_out(value: list[Any]) -> str:
    # Text that can be nothing but boxes: the one type whose arrays have another delimiter.
    elements = [item for item in _elements(value) if item is not None]
    boxes = elements and all(isinstance(item, str) and _BOX.fullmatch(item) for item in elements)
    return _braces(value, ";" if boxes else ",") if value else _NO_ELEMENTS


def _braces(value: Iterable[Any], delimiter: str) -> str:
    items = []
    for item in value:
        if item is None:
            items.append("NULL")
        elif _is_array(item):
            items.append(_braces(item, delimiter))
        else:
            items.append(_quoted(item, _ARRAY_PLAIN))
    return "{" + delimiter.join(items) + "}"


def _is_array(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value, (MultiRange, Vector))


def _multirange_out(value: MultiRange) -> str:
    return "{" + ",".join(str(to_text(item)) for item in value) + "}"


def _composite_out(value: tuple[Any, ...]) -> str:
    return "(" + ",".join("" if item is None else _quoted(item, _COMPOSITE_PLAIN) for item in value) + ")"


def _bytes_out(value: bytes | bytearray | memoryview) -> str:
    return "\\x" + value.hex()


WRITERS: dict[type, Callable[[Any], str]] = {
    str: str,
    int: str,
    bool: lambda value: "true" if value else "false",
    float: str,
    Decimal: str,
    bytes: _bytes_out,
    bytearray: _bytes_out,
    memoryview: _bytes_out,
    datetime: _datetime_out,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: _interval_out,
    UUID: str,
    dict: dumps,
    list: _array_out,
    MultiRange: _multirange_out,
    Vector: lambda value: " ".join(map(str, value)),
    **dict.fromkeys((IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network), str),
    tuple: _composite_out,
}


def to_text(value: Any) -> str | None:
    """The text that stands for a parameter; None for NULL."""
    if value is None:
        return None
    writer = WRITERS.get(type(value))
    return writer(value) if writer else _unusual(value)


class UnknownType(TypeError):
    """A parameter is of a type that stands for no value of PostgreSQL; the text says what to do."""


def _unusual(value: Any) -> str | None:
    """A subclass of a type that is known, one of the driver's own types, an enum or a number of numpy's."""
    plain = _plain(value)
    if plain is not value:
        return to_text(plain)
    for base in type(value).__mro__[1:-1]:
        if writer := WRITERS.get(base):
            return str.__str__(value) if base is str else writer(value)
    name = _drivers_own(value)
    if name == "PGInterval":
        return _pg_interval_out(value)
    if name == "Range":
        return _range_out(value)
    raise UnknownType(
        "pass list(...)"
        if isinstance(value, (set, frozenset)) or hasattr(value, "__next__")
        else "pass a value of a type that docs/wire.md lists, such as str(...)"
    )


def _plain(value: Any) -> Any:
    """What stands behind a value: an enum's value; the number that a number of numpy's is."""
    if isinstance(value, Enum):
        return value.value
    if type(value).__module__ == "numpy" and not getattr(value, "shape", True):
        return value.item()
    return value


def _drivers_own(value: Any) -> str:
    # By name: whoever has such a value has imported pg8000, and nobody else shall.
    return type(value).__name__ if type(value).__module__ == "pg8000.types" else ""


# The type that a literal of the Python type would have. Zero is for the server to find out, as for a literal in quotes.
_OIDS: dict[type, int] = {
    type(None): 0,
    str: 0,
    dict: 0,
    tuple: 0,
    MultiRange: 0,
    Vector: 0,
    TransactionId: XID,
    bool: BOOL,
    float: FLOAT8,
    Decimal: NUMERIC,
    bytes: BYTEA,
    bytearray: BYTEA,
    memoryview: BYTEA,
    date: DATE,
    timedelta: INTERVAL,
    UUID: UUID_,
    **dict.fromkeys((IPv4Address, IPv6Address, IPv4Interface, IPv6Interface), INET),
    **dict.fromkeys((IPv4Network, IPv6Network), CIDR),
}
_INTEGERS = (INT4, INT8, NUMERIC)
# The types of which the server makes one array, the later in place of the earlier.
_WIDER = (_INTEGERS, (DATE, TIMESTAMP, TIMESTAMPTZ), (TIME, TIMETZ), (CIDR, INET))


def parameter_oid(value: Any) -> int:
    """The oid of the type that a parameter is declared as; 0 leaves it to the server."""
    kind = type(value)
    oid = _OIDS.get(kind)
    if oid is not None:
        return oid
    by_value = _OIDS_BY_VALUE.get(kind)
    return by_value(value) if by_value is not None else _unusual_oid(value)


def cut(statement: str, rows: Sequence[Sequence[Any]]) -> list[tuple[list[int], list[Sequence[Any]]]]:
    """
    Cut the rows of an executemany into runs of the same types, in order, so that each row means what it would alone.

    NULL, and integers of different sizes, are in one run with others where that changes nothing: see `_by_assignment`.
    """
    runs: list[tuple[list[int], list[Sequence[Any]]]] = []
    types: list[int] = []
    mergeable: frozenset[int] | None = None
    for row in rows:
        own = [parameter_oid(value) for value in row]
        if runs and own != types and len(own) == len(types):
            if mergeable is None:
                mergeable = _by_assignment(statement)
            for index, (oid, value) in enumerate(zip(types, row, strict=True)):
                if own[index] != oid and index + 1 in mergeable:
                    if value is None:
                        own[index] = oid
                    elif not oid and all(earlier[index] is None for earlier in runs[-1][1]):
                        types[index] = own[index]
                    elif own[index] in _INTEGERS and oid in _INTEGERS:
                        types[index] = own[index] = max(oid, own[index], key=_INTEGERS.index)
        if runs and own == types:
            runs[-1][1].append(row)
        else:
            types = own
            runs.append((types, [row]))
    return runs


# Compiled when they are needed, by `re`'s own cache: most functions never do.
_PLACEHOLDER = r"\$(\d+)(?!\d)(\s*::)?"
_INSERT = (
    r'(?i)\s*INSERT\s+INTO\s+[\w."]+(?:\s+AS\s+\w+)?\s*(?:\([\w\s,"]*\)\s*)?(?:OVERRIDING\s+\w+\s+VALUE\s+)?VALUES\s*\('
)
_CAST = r'\s*::[\w\s."\[\]]+(?:\([\d\s,]*\)[\w\s\[\]]*)?'
_ITEM = rf"\s*(?:\$(\d+)(?:{_CAST})?|[\w.]+|'[^']*')\s*([,)])(\s*,\s*\()?"


def _by_assignment(statement: str) -> frozenset[int]:
    """
    Return the parameters that are cast, or assigned to a column by INSERT … VALUES, wherever they stand, and nothing
    else.

    There no operator or function is chosen by the type, and a NULL or an integer becomes the same value from any type
    that it can have. In doubt a parameter is left out: that costs a message, not a round trip.
    """
    assigned = set()
    if insert := re.match(_INSERT, statement):
        place, items = insert.end(), re.compile(_ITEM)
        while item := items.match(statement, place):
            if item[1]:
                assigned.add(item.start(1) - 1)
            place = item.end()
            if item[2] == ")" and item[3] is None:
                break
    found: set[int] = set()
    elsewhere: set[int] = set()
    for match in re.finditer(_PLACEHOLDER, statement):
        (found if match[2] or match.start() in assigned else elsewhere).add(int(match[1]))
    return frozenset(found - elsewhere)


def _common_oid(values: Iterable[Any]) -> int:
    """
    The type that all elements of a list have, of numbers and of moments the one that holds all; 0 where they differ.
    """
    oids = {parameter_oid(value) for value in values if value is not None}
    if len(oids) > 1:
        for wider in _WIDER:
            if oids.issubset(wider):
                return max(oids, key=wider.index)
        return NUMERIC if oids.issubset((*_INTEGERS, FLOAT8)) else 0  # float8 has not all of an integer's digits
    return oids.pop() if oids else 0


def _integer_oid(value: int) -> int:
    return INT4 if -0x80000000 <= value < 1 << 31 else INT8 if -(1 << 63) <= value < 1 << 63 else NUMERIC


# Where the value says which of several types it is.
_OIDS_BY_VALUE: dict[type, Callable[[Any], int]] = {
    int: _integer_oid,
    datetime: lambda value: TIMESTAMP if value.tzinfo is None else TIMESTAMPTZ,
    time: lambda value: TIME if value.tzinfo is None else TIMETZ,
    list: lambda value: ARRAY_OF.get(_common_oid(_elements(value)), 0),
}


def _unusual_oid(value: Any) -> int:
    """As `_unusual`, for the type."""
    plain = _plain(value)
    if plain is not value:
        return parameter_oid(plain)
    for base in type(value).__mro__[1:-1]:
        if base in _OIDS:
            return _OIDS[base]
        if base in _OIDS_BY_VALUE:
            return _OIDS_BY_VALUE[base](value)
    return INTERVAL if _drivers_own(value) == "PGInterval" else 0


def _elements(value: Iterable[Any]) -> Iterable[Any]:
    for item in value:
        if _is_array(item):
            yield from _elements(item)
        else:
            yield item
