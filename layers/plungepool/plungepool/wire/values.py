"""
PostgreSQL's text format to Python values; pure, no input or output. The way back is parameters.py.

What a user gets for each type is what pg8000 gives (its `PGInterval` and `Range` included), with its readers replaced
where they are slow (``strptime``) or wrong (a negative interval, the array element 'null', bounds of infinity). pg8000
itself is imported only when one of its types is needed: its import costs a cold start more than everything in this
file.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import (
    ip_address,
    ip_interface,
    ip_network,
)
from json import loads
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# The oids of the types, under the server's own names (pg_type.dat).
BOOL, BYTEA, CHAR, NAME, INT8, INT2, INT2VECTOR, INT4, TEXT, OID, XID = 16, 17, 18, 19, 20, 21, 22, 23, 25, 26, 28
JSON, JSONB, POINT, FLOAT4, FLOAT8, MONEY, CIDR, INET = 114, 3802, 600, 700, 701, 790, 650, 869
BPCHAR, VARCHAR, CSTRING, NUMERIC, RECORD, UUID_ = 1042, 1043, 2275, 1700, 2249, 2950
DATE, TIME, TIMESTAMP, TIMESTAMPTZ, INTERVAL, TIMETZ = 1082, 1083, 1114, 1184, 1186, 1266


def read_timestamp(text: str) -> datetime | str:
    """A timestamp in ISO style; what no `datetime` can hold (infinity, BC, the year 10000) stays the server's text."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


def _date(text: str) -> date | str:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return text


def _time(text: str) -> time | str:
    if text.startswith("24"):  # which Python 3.14 reads as midnight, silently
        return text
    try:
        return time.fromisoformat(text)
    except ValueError:
        return text


def _bytea(text: str) -> bytes:
    if text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    return re.sub(rb"\\(\\|[0-3][0-7]{2})", _bytea_escape, text.encode("latin-1"))  # bytea_output = escape


def _bytea_bytes(value: bytes) -> bytes:
    if value.startswith(b"\\x"):
        return unhexlify(memoryview(value)[2:])  # without a copy as text: a value may be large
    return _bytea(value.decode("latin-1"))


def _bytea_escape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return b"\\" if code == b"\\" else bytes([int(code, 8)])


def _inet(text: str) -> Any:
    return ip_interface(text) if "/" in text else ip_address(text)


def _point(text: str) -> tuple[float, ...]:
    return tuple(map(float, text[1:-1].split(",")))


class TransactionId(int):
    """An xid: a number that goes back to the server as one, since it has no cast from an integer."""


class Vector(list[Any]):
    """An int2vector: a list that goes back to the server as one, and not as an array."""


def _vector(text: str) -> Vector:
    return Vector(int(item) for item in text.split())


# Patterns of what most sessions never read are text: `re` compiles, and keeps, them where they are used first.
_FIELD = r'(?s)"((?:[^"\\]|\\.|"")*)"|([^,"]*)'
_FIELD_ESCAPE = r'(?s)\\(.)|""'


def _record(text: str) -> tuple[str | None, ...]:
    """An anonymous composite: the server does not say the types of its fields, so they stay text."""
    body, fields, position = text[1:-1], list[str | None](), 0
    field = re.compile(_FIELD)
    while True:
        match = field.match(body, position)
        assert match is not None  # noqa: S101 - the second alternative matches the empty text
        if match[1] is None:
            fields.append(match[2] or None)
        else:
            fields.append(re.sub(_FIELD_ESCAPE, lambda escape: escape[1] or '"', match[1]))
        position = match.end() + 1
        if position > len(body):
            return tuple(fields)


_UNITS = {"year": 12, "mon": 1}
_MICROSECONDS = {"hour": 3_600_000_000, "min": 60_000_000, "sec": 1_000_000}
_ISO_PART = r"([+-]?[0-9.]+)([YMWDHS])"


def _clock(text: str) -> int:
    """Microseconds of ``[-]H:MM[:SS[.f]]``; the sign holds for all of it."""
    negative = text.startswith("-")
    hours, minutes, *rest = text.lstrip("+-").split(":")
    microseconds = int(hours) * 3_600_000_000 + int(minutes) * 60_000_000 + (_micro(rest[0], 1_000_000) if rest else 0)
    return -microseconds if negative else microseconds


def _micro(number: str, factor: int) -> int:
    """
    Microseconds of a decimal number of units; in whole numbers, since Decimal's arithmetic depends on the caller's
    context.
    """
    whole, _, fraction = number.partition(".")
    part = int(fraction[:6].ljust(6, "0")) * factor // 1_000_000 if fraction else 0
    return int(whole or 0) * factor + (-part if number.startswith("-") else part)


def interval(text: str) -> Any:
    """
    An interval in any IntervalStyle: a `timedelta`, or pg8000's `PGInterval` when it counts months or is too long for
    one.
    """
    months = days = microseconds = 0
    if text in ("infinity", "-infinity"):
        return text
    if text.startswith("P"):
        date_part, _, time_part = text.partition("T")
        for number, unit in re.findall(_ISO_PART, date_part):
            if unit in "YM":
                months += int(number) * (12 if unit == "Y" else 1)
            else:
                days += int(number) * (7 if unit == "W" else 1)
        for number, unit in re.findall(_ISO_PART, time_part):
            microseconds += _micro(number, {"H": 3_600_000_000, "M": 60_000_000, "S": 1_000_000}[unit])
    elif any(character.isalpha() for character in text):  # postgres and postgres_verbose
        words, index = text.removeprefix("@ ").split(), 0
        ago = words[-1] == "ago"
        if ago:
            words.pop()
        while index < len(words):
            if ":" in words[index]:
                microseconds += _clock(words[index])
                index += 1
                continue
            number, unit = words[index], words[index + 1].removesuffix("s")
            if unit in _UNITS:
                months += int(number) * _UNITS[unit]
            elif unit == "day":
                days += int(number)
            else:
                microseconds += _micro(number, _MICROSECONDS[unit])
            index += 2
        if ago:
            months, days, microseconds = -months, -days, -microseconds
    else:
        months, days, microseconds = _sql_standard(text.removeprefix("@ "))
    if not months:
        try:
            return timedelta(days=days, microseconds=microseconds)
        except OverflowError:
            pass
    from pg8000.types import PGInterval

    sign = -1 if months < 0 else 1
    years, months = divmod(abs(months), 12)
    seconds, rest = divmod(microseconds, 1_000_000)
    parts = {"years": sign * years, "months": sign * months, "days": days, "seconds": seconds, "microseconds": rest}
    return PGInterval(**{unit: count for unit, count in parts.items() if count})


def _sql_standard(text: str) -> tuple[int, int, int]:
    """``[+-]Y-M [+-]D [+-]H:MM:SS``, any of the three; one sign at the very front holds for all of it."""
    months = days = microseconds = 0
    words = text.split()
    signed = [word[0] in "+-" for word in words]
    shared = -1 if signed[0] and not any(signed[1:]) and words[0][0] == "-" else 1
    for index, word in enumerate(words):
        factor = shared if index else 1
        if ":" in word:
            microseconds = _clock(word) * factor
        elif "-" in word[1:]:
            years, month = word.lstrip("+-").split("-")
            months = (int(years) * 12 + int(month)) * (-1 if word[0] == "-" else 1) * factor
        else:
            days = int(word) * factor
    return months, days, microseconds


_IN_ARRAY = r'(?s)"((?:[^"\\]|\\.)*)"|([{}])|([^",{}]+)'
_BACKSLASH = re.compile(r"\\(.)", re.DOTALL)


def array_reader(one: Callable[[str], Any], delimiter: str = ",") -> Callable[[str], list[Any]]:
    """
    A reader of arrays of any number of dimensions whose elements `one` reads; only the type box has another delimiter.
    """
    part = _IN_ARRAY.replace(",", delimiter)

    def read(text: str) -> list[Any]:
        if text.startswith("["):  # [2:4]={...}: bounds other than from 1
            text = text[text.index("=") + 1 :]
        if '"' not in text and text.rfind("{") == 0:
            body = text[1:-1]
            return [None if item == "NULL" else one(item) for item in body.split(delimiter)] if body else []
        top: list[Any] = []
        open_lists = [top]
        for match in re.finditer(part, text):
            quoted, brace, plain = match.groups()
            if brace == "{":
                inner: list[Any] = []
                open_lists[-1].append(inner)
                open_lists.append(inner)
            elif brace == "}":
                open_lists.pop()
            elif quoted is not None:
                open_lists[-1].append(one(_BACKSLASH.sub(r"\1", quoted) if "\\" in quoted else quoted))
            else:
                open_lists[-1].append(None if plain == "NULL" else one(plain))
        value: list[Any] = top[0]
        return value

    return read


_RANGE = r'(?s)^([\[(])(?:"((?:[^"\\]|\\.|"")*)"|([^,"]*)),(?:"((?:[^"\\]|\\.|"")*)"|([^,"]*))([\])])$'


def range_reader(one: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of ranges: pg8000's `Range`, with None for a bound that is absent."""

    def bound(quoted: str | None, plain: str | None) -> Any:
        if quoted is not None:
            return one(re.sub(_FIELD_ESCAPE, lambda escape: escape[1] or '"', quoted))
        return one(plain) if plain else None

    def read(text: str) -> Any:
        from pg8000.types import Range

        if text == "empty":
            return Range(is_empty=True)
        match = re.match(_RANGE, text)
        if match is None:
            raise ValueError("malformed range")
        return Range(bound(match[2], match[3]), bound(match[4], match[5]), bounds=match[1] + match[6])

    return read


_IN_MULTIRANGE = r'(?s)empty|[\[(](?:"(?:[^"\\]|\\.|"")*"|[^"\])])*[\])]'


class MultiRange(list[Any]):
    """The ranges of a multirange: a list that goes back to the server as a multirange, and not as an array."""


def multirange_reader(one: Callable[[str], Any]) -> Callable[[str], MultiRange]:
    read = range_reader(one)
    return lambda text: MultiRange(read(item) for item in re.findall(_IN_MULTIRANGE, text))


def _text(text: str) -> str:
    return text


def _bool(text: str) -> bool:
    return text == "t"


# oid of the type, of its array, and its reader
_SCALARS: list[tuple[int, int, Callable[[str], Any]]] = [
    (BOOL, 1000, _bool),
    (BYTEA, 1001, _bytea),
    (CHAR, 1002, _text),
    (NAME, 1003, _text),
    (INT8, 1016, int),
    (INT2, 1005, int),
    (INT2VECTOR, 1006, _vector),
    (INT4, 1007, int),
    (TEXT, 1009, _text),
    (OID, 1028, int),
    (XID, 1011, TransactionId),
    (JSON, 199, loads),
    (JSONB, 3807, loads),
    (POINT, 1017, _point),
    (FLOAT4, 1021, float),
    (FLOAT8, 1022, float),
    (CIDR, 651, ip_network),
    (INET, 1041, _inet),
    (BPCHAR, 1014, _text),
    (VARCHAR, 1015, _text),
    (DATE, 1182, _date),
    (TIME, 1183, _time),
    (TIMESTAMP, 1115, read_timestamp),
    (TIMESTAMPTZ, 1185, read_timestamp),
    (INTERVAL, 1187, interval),
    (TIMETZ, 1270, _time),
    (NUMERIC, 1231, Decimal),
    (RECORD, 2287, _record),
    (UUID_, 2951, UUID),
    (MONEY, 791, _text),
    (CSTRING, 1263, _text),
]
# The arrays of every other type of the server's own, whose elements stay text (pg_type.dat; new ones come with new
# versions).
_ARRAYS_OF_TEXT = (
    143, 210, 270, 271, 272, 273, 629, 719, 775, 1008, 1010, 1012, 1013, 1018, 1019, 1027, 1034, 1040, 1561, 1563, 2201,
    2207, 2208, 2209, 2210, 2211, 2949, 3221, 3643, 3644, 3645, 3735, 3770, 4073, 4090, 4097, 4192, 5039,
)  # fmt: skip
_BOX_ARRAY = 1020
#: by the oid of what the bounds are: oid of the range, of its array, of the multirange, of its array
RANGES_OF = {
    INT4: (3904, 3905, 4451, 6150),
    INT8: (3926, 3927, 4536, 6157),
    NUMERIC: (3906, 3907, 4532, 6151),
    DATE: (3912, 3913, 4535, 6155),
    TIMESTAMP: (3908, 3909, 4533, 6152),
    TIMESTAMPTZ: (3910, 3911, 4534, 6153),
}


def readers_over(oid: int, reader: Callable[[str], Any]) -> dict[int, Callable[[str], Any]]:
    """Return the readers of a type's range and multirange, and of their arrays; `reader` reads a bound."""
    ranged, ranged_array, multi, multi_array = RANGES_OF[oid]
    return {
        ranged: range_reader(reader),
        ranged_array: array_reader(range_reader(reader)),
        multi: multirange_reader(reader),
        multi_array: array_reader(multirange_reader(reader)),
    }


#: by the type's oid, what turns the server's text into the value; a type that is not here is handed out as its text
READERS: dict[int, Callable[[str], Any]] = {oid: reader for oid, _, reader in _SCALARS if reader is not _text}
ARRAY_OF: dict[int, int] = {oid: array for oid, array, _ in _SCALARS}
for _oid, _array, _reader in _SCALARS:
    READERS[_array] = array_reader(_reader)
for _array in _ARRAYS_OF_TEXT:
    READERS[_array] = array_reader(_text)
READERS[_BOX_ARRAY] = array_reader(_text, ";")
for _oid in RANGES_OF:
    READERS |= readers_over(_oid, READERS[_oid])

# Columns are converted whole, with as much of the loop in C as the type allows: the difference is a factor of four.
_decode = bytes.decode


def _timestamps(column: Sequence[bytes]) -> list[Any]:
    try:
        return list(map(datetime.fromisoformat, map(_decode, column)))
    except ValueError:
        return [read_timestamp(value.decode()) for value in column]


def _dates(column: Sequence[bytes]) -> list[Any]:
    try:
        return list(map(date.fromisoformat, map(_decode, column)))
    except ValueError:
        return [_date(value.decode()) for value in column]


_BYTES_READERS: dict[int, Callable[[bytes], Any]] = {
    BYTEA: _bytea_bytes,
    BOOL: b"t".__eq__,
    INT2: int,
    INT4: int,
    INT8: int,
    OID: int,
    XID: TransactionId,
    FLOAT4: float,
    FLOAT8: float,
}
_COLUMN_READERS: dict[int, Callable[[Sequence[bytes]], Iterable[Any]]] = {
    TIMESTAMP: _timestamps,
    TIMESTAMPTZ: _timestamps,
    DATE: _dates,
    NUMERIC: lambda column: map(Decimal, map(_decode, column)),
    JSON: lambda column: map(loads, map(_decode, column)),
    JSONB: lambda column: map(loads, map(_decode, column)),
    UUID_: lambda column: map(UUID, map(_decode, column)),
}


class Column:
    """How one column of a result is converted."""

    __slots__ = ("many", "one")

    def __init__(self, oid: int, own: Callable[[str], Any] | None) -> None:
        """`own` is the session's own reader for the type, and goes before everything else."""
        reader = own or READERS.get(oid)
        if own is None and oid in _BYTES_READERS:
            self.one: Callable[[bytes], Any] = _BYTES_READERS[oid]
        elif reader is None:
            self.one = _decode
        else:
            read = reader
            self.one = lambda value: read(_decode(value))
        self.many: Callable[[Sequence[bytes]], Iterable[Any]] | None = None
        if own is None:
            self.many = _COLUMN_READERS.get(oid)

    def convert(self, column: Sequence[bytes | None]) -> Iterable[Any]:
        if None in column:
            one = self.one
            return [None if value is None else one(value) for value in column]
        whole: Sequence[bytes] = column  # type: ignore[assignment]
        return self.many(whole) if self.many else map(self.one, whole)
