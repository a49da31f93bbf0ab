"""
Types of SQLAlchemy's whose values this driver takes or gives otherwise than its others: numerics, arrays, ranges, JSON.

What the server's own types become is in `plungepool.wire.values`; here is what SQLAlchemy makes of that.
"""

# SQLAlchemy's dialects are not typed.
# mypy: disallow-untyped-calls=False, disallow-any-generics=False
from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import types as sqltypes
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ranges
from sqlalchemy.dialects.postgresql.pg8000 import _PGARRAY, _PGNumericNoBind

from .wire.parameters import to_text
from .wire.values import (
    BOOL,
    BYTEA,
    CIDR,
    DATE,
    FLOAT8,
    INET,
    INT4,
    INT8,
    INTERVAL,
    JSON,
    NUMERIC,
    RANGES_OF,
    READERS,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UUID_,
    array_reader,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Numeric(_PGNumericNoBind):
    """
    Floats for a numeric column go as the decimal number that they show: from float8 the server keeps 15 digits only.
    """

    def bind_processor(self, dialect: Any) -> Callable[[Any], Any]:
        return lambda value: Decimal(repr(value)) if type(value) is float else value


class Array(_PGARRAY):
    """
    Arrays of a type that the server made up by itself (CREATE TYPE, CREATE DOMAIN, an extension) come as text.

    What their elements are, only SQLAlchemy's type says; any that is not in `_ELEMENTS` stays text.
    """

    # For enums SQLAlchemy takes the text apart itself, of one dimension, and does not undo every escape.
    _against_native_enum = False

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        if coltype in READERS:
            return super().result_processor(dialect, coltype)
        oid = _element_oid(self.item_type)
        read = array_reader(dialect.own_readers().get(oid) or READERS.get(oid, str))
        process = super().result_processor(dialect, oid)

        def process_text(value: Any) -> Any:
            return process(read(value) if isinstance(value, str) else value)

        return process_text


def _element_oid(element: Any) -> int:
    """Return the type in whose text a value of a type of SQLAlchemy's is written."""
    for base in type(element).__mro__:
        if base in _ELEMENTS:
            return _ELEMENTS[base]
    if isinstance(element, postgresql.DOMAIN):
        return _element_oid(element.data_type)
    return _element_oid(element.impl_instance) if isinstance(element, sqltypes.TypeDecorator) else TEXT


_ELEMENTS: dict[type, int] = {
    sqltypes.Integer: INT8,
    sqltypes.Float: FLOAT8,
    sqltypes.Numeric: NUMERIC,
    sqltypes.Boolean: BOOL,
    sqltypes.LargeBinary: BYTEA,
    sqltypes.Date: DATE,
    sqltypes.DateTime: TIMESTAMPTZ,
    sqltypes.Time: TIME,
    sqltypes.Interval: INTERVAL,
    postgresql.INTERVAL: INTERVAL,
    sqltypes.Uuid: UUID_,
    sqltypes.JSON: JSON,
    postgresql.INET: INET,
    postgresql.CIDR: CIDR,
    ranges.INT4RANGE: RANGES_OF[INT4][0],
    ranges.INT8RANGE: RANGES_OF[INT8][0],
    ranges.NUMRANGE: RANGES_OF[NUMERIC][0],
    ranges.DATERANGE: RANGES_OF[DATE][0],
    ranges.TSRANGE: RANGES_OF[TIMESTAMP][0],
    ranges.TSTZRANGE: RANGES_OF[TIMESTAMPTZ][0],
}


class Range(ranges.AbstractSingleRangeImpl):
    """Ranges: SQLAlchemy's to the server as text, the driver's from it."""

    render_bind_cast = True

    def bind_processor(self, dialect: Any) -> Callable[[Any], Any]:
        return _range_text

    def result_processor(self, dialect: Any, coltype: Any) -> Callable[[Any], Any]:
        return _range_value


class MultiRange(ranges.AbstractMultiRangeImpl):
    render_bind_cast = True

    def bind_processor(self, dialect: Any) -> Callable[[Any], Any]:
        def process(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return "{" + ",".join(str(_range_text(item)) for item in value) + "}"
            return value

        return process

    def result_processor(self, dialect: Any, coltype: Any) -> Callable[[Any], Any]:
        def process(value: Any) -> Any:
            return None if value is None else ranges.MultiRange(_range_value(item) for item in value)

        return process


def _range_text(value: Any) -> Any:
    if not isinstance(value, ranges.Range):
        return value
    from pg8000.types import Range as DriversRange

    return to_text(DriversRange(value.lower, value.upper, value.bounds, value.empty))


def _range_value(value: Any) -> Any:
    if value is None:
        return None
    return ranges.Range(value.lower, value.upper, bounds=value.bounds, empty=value.is_empty)


def json_as_text(serialize: Callable[[Any], Any]) -> Callable[[Any], str]:
    """JSON is text to the server; some serializers (orjson's) give bytes."""

    def serialize_as_text(value: Any) -> str:
        document: str | bytes = serialize(value)
        return document.decode() if isinstance(document, bytes) else document

    return serialize_as_text
