"""
PostgreSQL's text format to Python values and back; pure, no input or output.

What a user gets for each type is what pg8000 gives (its `PGInterval` and `Range` included), with its readers replaced
where they are slow (``strptime``) or wrong (a negative interval, the array element 'null', bounds of infinity). pg8000
itself is imported only when one of its types is needed: its import costs a cold start more than everything in this
file.
"""

from __future__ import annotations

import re
from binascii import unhexlify
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
    ip_address,
    ip_interface,
    ip_network,
)
from json import dumps, loads
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# The oids of the types, under the server's own names (pg_type.dat).
BOOL, BYTEA, CHAR, NAME, INT8, INT2, INT2VECTOR, INT4, TEXT, OID, XID = 16, 17, 18, 19, 20, 21, 22, 23, 25, 26, 28
JSON, JSONB, POINT, FLOAT4, FLOAT8, MONEY, CIDR, INET = 114, 3802, 600, 700, 701, 790, 650, 869
BPCHAR, VARCHAR, CSTRING, NUMERIC, RECORD, UUID_ = 1042, 1043, 2275, 1700, 2249, 2950
DATE, TIME, TIMESTAMP, TIMESTAMPTZ, INTERVAL, TIMETZ = 1082, 1083, 1114, 1184, 1186, 1266

# ---- from the server ------------------------------------------------------------------------------------------------


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


_FIELD = re.compile(r'"((?:[^"\\]|\\.|"")*)"|([^,"]*)', re.DOTALL)
_FIELD_ESCAPE = re.compile(r'\\(.)|""', re.DOTALL)


def _record(text: str) -> tuple[str | None, ...]:
    """An anonymous composite: the server does not say the types of its fields, so they stay text."""
    body, fields, position = text[1:-1], list[str | None](), 0
    while True:
        match = _FIELD.match(body, position)
        assert match is not None  # noqa: S101 - the second alternative matches the empty text
        if match[1] is None:
            fields.append(match[2] or None)
        else:
            fields.append(_FIELD_ESCAPE.sub(lambda escape: escape[1] or '"', match[1]))
        position = match.end() + 1
        if position > len(body):
            return tuple(fields)


_UNITS = {"year": 12, "mon": 1}
_MICROSECONDS = {"hour": 3_600_000_000, "min": 60_000_000, "sec": 1_000_000}
_ISO_PART = re.compile(r"([+-]?[0-9.]+)([YMWDHS])")


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
        for number, unit in _ISO_PART.findall(date_part):
            if unit in "YM":
                months += int(number) * (12 if unit == "Y" else 1)
            else:
                days += int(number) * (7 if unit == "W" else 1)
        for number, unit in _ISO_PART.findall(time_part):
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


_ARRAY_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([{}])|([^",{}]+)', re.DOTALL)
_BACKSLASH = re.compile(r"\\(.)", re.DOTALL)


def array_reader(one: Callable[[str], Any], delimiter: str = ",") -> Callable[[str], list[Any]]:
    """
    A reader of arrays of any number of dimensions whose elements `one` reads; only the type box has another delimiter.
    """
    token = _ARRAY_TOKEN if delimiter == "," else re.compile(_ARRAY_TOKEN.pattern.replace(",", delimiter), re.DOTALL)

    def read(text: str) -> list[Any]:
        if text.startswith("["):  # [2:4]={...}: bounds other than from 1
            text = text[text.index("=") + 1 :]
        if '"' not in text and text.rfind("{") == 0:
            body = text[1:-1]
            return [None if item == "NULL" else one(item) for item in body.split(delimiter)] if body else []
        top: list[Any] = []
        open_lists = [top]
        for match in token.finditer(text):
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


_RANGE = re.compile(
    r'^([\[(])(?:"((?:[^"\\]|\\.|"")*)"|([^,"]*)),(?:"((?:[^"\\]|\\.|"")*)"|([^,"]*))([\])])$', re.DOTALL
)


def range_reader(one: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of ranges: pg8000's `Range`, with None for a bound that is absent."""

    def bound(quoted: str | None, plain: str | None) -> Any:
        if quoted is not None:
            return one(_FIELD_ESCAPE.sub(lambda escape: escape[1] or '"', quoted))
        return one(plain) if plain else None

    def read(text: str) -> Any:
        from pg8000.types import Range

        if text == "empty":
            return Range(is_empty=True)
        match = _RANGE.match(text)
        if match is None:
            raise ValueError("malformed range")
        return Range(bound(match[2], match[3]), bound(match[4], match[5]), bounds=match[1] + match[6])

    return read


_IN_MULTIRANGE = re.compile(r'empty|[\[(](?:"(?:[^"\\]|\\.|"")*"|[^"\])])*[\])]', re.DOTALL)


class MultiRange(list[Any]):
    """The ranges of a multirange: a list that goes back to the server as a multirange, and not as an array."""


def multirange_reader(one: Callable[[str], Any]) -> Callable[[str], MultiRange]:
    read = range_reader(one)
    return lambda text: MultiRange(read(item) for item in _IN_MULTIRANGE.findall(text))


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


# ---- to the server --------------------------------------------------------------------------------------------------


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


_BOX = re.compile(r"\([^()]*\),\([^()]*\)")


def _array_out(value: Iterable[Any]) -> str:
    # Text that can be nothing but boxes: the one type whose arrays have another delimiter.
    elements = [item for item in _elements(value) if item is not None]
    boxes = elements and all(isinstance(item, str) and _BOX.fullmatch(item) for item in elements)
    return _braces(value, ";" if boxes else ",")


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


# ---- what a parameter is --------------------------------------------------------------------------------------------

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
