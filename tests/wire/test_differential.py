"""
The same statements, values and transactions give the same rows and errors as by stock pg8000 and by psycopg.

PLUNGEPOOL_EXAMPLES=20000 looks further than `make test`, and at random.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
import os
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from psycopg.pq import TransactionStatus
from sqlalchemy.dialects import postgresql as pg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.postgres import Postgres


OURS = "plungepool"
STOCK = "pg8000"
PSYCOPG = "psycopg"
DRIVERS = (OURS, STOCK, PSYCOPG)

EXAMPLES = int(os.environ.get("PLUNGEPOOL_EXAMPLES", "0"))


def profile(examples: Any) -> Any:
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def engines(postgres: Postgres) -> Iterator[Any]:
    """One engine a driver, all on one server; each has a schema of its own, set as the role's default there."""
    engines = {}
    postgres.execute("DROP DATABASE IF EXISTS differential")
    postgres.execute("CREATE DATABASE differential")
    for driver in DRIVERS:
        postgres.execute(f"DROP ROLE IF EXISTS {driver}_user", database="differential")
        for statement in (
            f"CREATE ROLE {driver}_user LOGIN SUPERUSER",
            f"CREATE SCHEMA {driver}_user",
            f"CREATE TYPE {driver}_user.mood AS ENUM ('sad', 'ok', 'happy ☀')",
            f"CREATE TABLE {driver}_user.parents (id int PRIMARY KEY)",
            f"""CREATE TABLE {driver}_user.items (
                id serial PRIMARY KEY,
                key int UNIQUE,
                label text NOT NULL CHECK (label <> 'forbidden'),
                parent int REFERENCES {driver}_user.parents DEFERRABLE INITIALLY DEFERRED
            )""",
        ):
            postgres.execute(statement, database="differential")
        url = postgres.url(user=f"{driver}_user", database="differential")
        engines[driver] = sa.create_engine(url.replace("postgresql://", f"postgresql+{driver}://"), pool_size=1)
    yield engines
    for engine in engines.values():
        engine.dispose()
    postgres.execute("DROP DATABASE differential")
    for driver in DRIVERS:
        postgres.execute(f"DROP ROLE {driver}_user")


def sqlstate(error: Any) -> Any:
    """The SQLSTATE of an error that SQLAlchemy wraps, of any of the three drivers; None if it has none."""
    original = error.orig
    if hasattr(original, "sqlstate"):
        return original.sqlstate
    fields = original.args[0] if original.args else None
    return fields.get("C") if isinstance(fields, dict) else None


def native(engine: Any, sql: Any) -> Any:
    """SQL whose parameters are written as %s, as the engine's driver writes them."""
    if engine.dialect.paramstyle != "numeric_dollar":
        return sql
    numbers = itertools.count(1)
    return re.sub("%s", lambda _: f"${next(numbers)}", sql)


def comparable(value: Any) -> Any:
    """Values by type and text, so that 1, 1.0, True and Decimal("1.00") differ and NaN is itself."""
    if isinstance(value, (list, tuple, sa.Row)):
        return [comparable(each) for each in value]
    if isinstance(value, dict):
        return {key: comparable(each) for key, each in value.items()}
    if isinstance(value, memoryview):
        value = bytes(value)
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return ("datetime", value.astimezone(dt.UTC).isoformat() if 1 < value.year < 9999 else str(value))
    if isinstance(value, float) and math.isnan(value):
        return ("float", "nan")
    return (type(value).__name__, str(value) if isinstance(value, Decimal) else value)


def outcome(engine: Any, function: Any) -> Any:
    """What a function of a connection gives: comparable rows, or the class of error and its SQLSTATE."""
    try:
        with engine.connect() as connection:
            return ("rows", comparable(function(connection)))
    except sa.exc.DBAPIError as error:
        return ("error", type(error).__name__, sqlstate(error))
    except Exception as error:
        assert engine.dialect.driver == STOCK, "an error that is no DB-API error"
        engine.dispose()  # a converter's: the reply is half read, and stock pg8000 would give it to the next query
        return ("error", type(error).__name__, None)


# Values of every type, there and back.

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
DATE = st.dates()
DATETIME = st.datetimes()
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
AWARE = st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 12, 31), timezones=OFFSETS)
INTERVAL = st.timedeltas(dt.timedelta(days=-(10**6)), dt.timedelta(days=10**6))
NUMERIC = st.decimals(allow_infinity=False, min_value=-(10**30), max_value=10**30) | st.sampled_from(
    [Decimal("NaN"), Decimal("0E-10"), Decimal("1E+20"), Decimal("-0.000")]
)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e10, 1e10) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
INT4, INT8 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)


def ranges(values: Any) -> Any:
    return st.builds(
        lambda pair, bounds: pg.Range(*sorted(pair), bounds=bounds),
        st.tuples(values, values),
        st.sampled_from(["[)", "[]", "(]", "()"]),
    ) | st.builds(lambda value: pg.Range(value, None), values)


TYPES = {
    "smallint": (sa.SmallInteger(), st.integers(-(2**15), 2**15 - 1)),
    "integer": (sa.Integer(), INT4),
    "bigint": (sa.BigInteger(), INT8),
    "numeric": (sa.Numeric(), NUMERIC),
    "numeric as float": (sa.Numeric(asdecimal=False), st.floats(-1e15, 1e15)),
    "double": (sa.Double(), st.floats()),
    "real": (sa.REAL(), st.floats(width=32)),
    "text": (sa.Text(), TEXT),
    "char": (sa.CHAR(5), st.text("abc ☀", max_size=5)),
    "bytea": (sa.LargeBinary(), st.binary(max_size=50)),
    "boolean": (sa.Boolean(), st.booleans()),
    "date": (sa.Date(), DATE),
    "timestamp": (sa.DateTime(), DATETIME),
    "timestamptz": (sa.DateTime(timezone=True), AWARE),
    "time": (sa.Time(), st.times()),
    "interval": (sa.Interval(), INTERVAL),
    "uuid": (sa.Uuid(), st.uuids()),
    "json": (sa.JSON(), JSON_VALUE),
    "jsonb": (pg.JSONB(), JSON_VALUE),
    "inet": (pg.INET(), st.ip_addresses().map(str)),
    "int[]": (pg.ARRAY(sa.Integer()), st.lists(st.none() | INT4, min_size=1, max_size=5)),
    "int[][]": (
        pg.ARRAY(sa.Integer(), dimensions=2),
        st.lists(st.tuples(INT4, INT4).map(list), min_size=1, max_size=3),
    ),
    "text[]": (pg.ARRAY(sa.Text()), st.lists(st.none() | TEXT, min_size=1, max_size=5)),
    "numeric[]": (pg.ARRAY(sa.Numeric()), st.lists(NUMERIC, min_size=1, max_size=3)),
    "double[]": (pg.ARRAY(sa.Double()), st.lists(st.floats(), min_size=1, max_size=3)),
    "boolean[]": (pg.ARRAY(sa.Boolean()), st.lists(st.booleans(), min_size=1, max_size=3)),
    "date[]": (pg.ARRAY(sa.Date()), st.lists(DATE, min_size=1, max_size=3)),
    "timestamptz[]": (pg.ARRAY(sa.DateTime(timezone=True)), st.lists(AWARE, min_size=1, max_size=3)),
    "uuid[]": (pg.ARRAY(sa.Uuid()), st.lists(st.uuids(), min_size=1, max_size=3)),
    "bytea[]": (pg.ARRAY(sa.LargeBinary()), st.lists(st.binary(max_size=5), min_size=1, max_size=3)),
    "int4range": (pg.INT4RANGE(), ranges(st.integers(-1000, 1000))),
    "int8range": (pg.INT8RANGE(), ranges(st.integers(-(2**40), 2**40))),
    "numrange": (pg.NUMRANGE(), ranges(st.decimals(-1000, 1000, places=3))),
    "daterange": (pg.DATERANGE(), ranges(st.dates(dt.date(2, 1, 1), dt.date(9998, 1, 1)))),
    "tsrange": (pg.TSRANGE(), ranges(st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 1, 1)))),
    "int4multirange": (pg.INT4MULTIRANGE(), st.lists(ranges(st.integers(-1000, 1000)), max_size=3)),
    "enum": (
        pg.ENUM("sad", "ok", "happy ☀", name="mood", create_type=False),
        st.sampled_from(["sad", "ok", "happy ☀"]),
    ),
}

# Where psycopg differs from stock pg8000, and ours follows the latter, with the reason.
NOT_AS_PSYCOPG = {
    "numeric as float": "psycopg sends float8, which the server cuts to 15 digits on its way to numeric",
}


@pytest.mark.parametrize("name", TYPES)
def test_values_of_every_type_come_back_as_by_the_peers(engines: Any, name: Any) -> None:
    """Any value of a type, bound and read back through SQLAlchemy, is what stock pg8000 and psycopg give."""
    type_, values = TYPES[name]

    @profile(40)
    @given(value=st.none() | values)
    def check(value: Any) -> None:
        statement = sa.select(sa.cast(sa.bindparam("value", value, type_), type_))
        outcomes = {driver: outcome(engines[driver], lambda c: c.execute(statement).scalar_one()) for driver in DRIVERS}
        for peer in (STOCK, PSYCOPG):
            if peer == STOCK or name not in NOT_AS_PSYCOPG:
                assert outcomes[OURS] == outcomes[peer], peer

    check()


# What only the server can write: other styles and zones, infinity, years before Christ.

ZONES = [
    "UTC", "Europe/Zurich", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Chatham", "Africa/Monrovia",
    "Pacific/Kiritimati", "Australia/Lord_Howe", "America/St_Johns", "<+05>-5", "<-0330>3:30",
]  # fmt: skip
DATE_STYLES = [f"{style}, {order}" for style in ("ISO", "SQL", "Postgres", "German") for order in ("MDY", "DMY", "YMD")]
INTERVAL_STYLES = ["postgres", "postgres_verbose", "sql_standard", "iso_8601"]
MOMENTS = [
    "2024-02-29 12:34:56.789012+00", "2024-03-31 01:30:00+00", "2024-10-27 00:30:00+00", "1883-11-18 12:03:58+00",
    "0001-01-01 00:00:00+00", "0044-03-15 12:00:00+00 BC", "4700-01-01 00:00:00+00 BC", "9999-12-31 23:59:59.999999+00",
    "10000-01-01 00:00:00+00", "294276-12-30 23:59:59+00", "infinity", "-infinity", "1970-01-01 00:00:00+00",
    "2024-01-01 00:00:00.1+00", "2024-01-01 00:00:00.120000+00", "2024-06-30 23:59:60+00", "1600-01-01 00:00:00+00",
]  # fmt: skip
INTERVALS = [
    "0", "1 second", "-1 second", "1 day", "-1 day", "1 mon", "1 year 2 mons 3 days 04:05:06.789", "-1 year -2 mons",
    "1 mon -1 day", "-00:00:00.000001", "100000 days", "3 years -2 days 23:59:59.999999", "25:00:00", "-838:59:59",
]  # fmt: skip
NUMBERS = [
    "0",
    "-0",
    "1.50",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e100",
    "0.00000001",
    "123456789012345678901234567890.12",
]


def set_for_transaction(connection: Any, **parameters: Any) -> None:
    for name, value in parameters.items():
        connection.exec_driver_sql(f"SET LOCAL {name} = '{value}'")


def assert_as_stock(engines: Any, function: Any) -> None:
    """Ours gives what stock pg8000 gives, wherever that gives anything."""
    ours, stock = (outcome(engines[driver], function) for driver in (OURS, STOCK))
    assert ours[0] == "rows" or stock[0] == "error"
    if stock[0] == "rows":
        assert ours == stock


EPOCH = dt.datetime(1970, 1, 1)
MICROSECOND = dt.timedelta(microseconds=1)


def microseconds(value: Any) -> Any:
    """Since 1970, or since midnight for a time, as the server's extract(epoch …) counts them."""
    if isinstance(value, dt.datetime):
        return (value - (EPOCH if value.tzinfo is None else EPOCH.replace(tzinfo=dt.UTC))) // MICROSECOND
    if isinstance(value, dt.date):
        return (value - EPOCH.date()) // MICROSECOND
    offset = value.utcoffset() or dt.timedelta(0)
    return (dt.datetime.combine(EPOCH, value.replace(tzinfo=None)) - EPOCH - offset) // MICROSECOND


@pytest.mark.parametrize("style", DATE_STYLES)
@pytest.mark.parametrize("zone", ZONES)
def test_moments_the_server_writes_are_the_moments_it_means(engines: Any, zone: Any, style: Any) -> None:
    """
    In every zone and date style a moment is the server's own, to the microsecond, or the server's text where Python has
    no such year. (Stock pg8000 is no measure: it reads 44 BC as 44 AD, and guesses the order of day and month.)
    """
    values = ", ".join(f"(timestamptz '{moment}')" for moment in MOMENTS)
    with engines[OURS].connect() as connection:
        set_for_transaction(connection, timezone="UTC")
        connection.exec_driver_sql(
            f"CREATE TEMP TABLE moments ON COMMIT DROP AS SELECT * FROM (VALUES {values}) AS m (v)"
        )
        set_for_transaction(connection, timezone=zone, datestyle=style)
        for type_ in ("timestamptz", "timestamp", "date", "time", "timetz"):
            rows = connection.exec_driver_sql(
                f"SELECT v::{type_}, v::{type_}::text, (extract(epoch FROM v::{type_}) * 1000000)::text, "
                f"ARRAY[v::{type_}], isfinite(v) AND extract(year FROM v::timestamp) BETWEEN 1 AND 9999 FROM moments"
                + (" WHERE isfinite(v)" if type_ in ("time", "timetz") else "")
            ).all()
            assert rows
            for value, text, epoch, (element,), pythonic in rows:
                assert element == value
                if isinstance(value, str):
                    assert value == text
                    assert not style.startswith("ISO") or not pythonic
                else:
                    assert microseconds(value) == Decimal(epoch)


@pytest.mark.parametrize("style", INTERVAL_STYLES)
def test_intervals_the_server_writes_are_the_intervals_it_means(engines: Any, style: Any) -> None:
    """
    In every style an interval has the server's own months, days and microseconds. (Stock reads -1 second as 1 second.)
    """
    with engines[OURS].connect() as connection:
        set_for_transaction(connection, intervalstyle=style)
        for interval in INTERVALS:
            value, (element,), months, rest = connection.exec_driver_sql(
                f"SELECT v, ARRAY[v], (extract(year FROM v) * 12 + extract(month FROM v))::int, "
                "(extract(day FROM v) * 86400 + extract(hour FROM v) * 3600 + extract(minute FROM v) * 60 + "
                f"extract(second FROM v))::text FROM (SELECT interval '{interval}' AS v) AS i"
            ).one()
            if isinstance(value, dt.timedelta):
                assert (0, Decimal(rest)) == (months, Decimal(value // MICROSECOND) / 1000000)
                assert element == value
            else:
                parts = {
                    name: getattr(value, name) or 0 for name in ("days", "hours", "minutes", "seconds", "microseconds")
                }
                assert value.years or value.months
                assert months == (value.years or 0) * 12 + (value.months or 0)
                assert Decimal(rest) == (
                    Decimal(parts["days"] * 86400 + parts["hours"] * 3600 + parts["minutes"] * 60)
                    + Decimal(str(parts["seconds"]))
                    + Decimal(parts["microseconds"]) / 1000000
                )


@pytest.mark.parametrize("type_", ["numeric", "float8", "float4"])
def test_numbers_the_server_writes_are_read_as_by_stock(engines: Any, type_: str) -> None:
    """NaN, infinity and many digits."""
    for number in NUMBERS:
        if type_ == "float4" and number == "1e100":
            continue

        def read(connection: Any, number: Any = number) -> Any:
            return connection.exec_driver_sql(f"SELECT '{number}'::{type_}, ARRAY['{number}'::{type_}]").all()

        assert_as_stock(engines, read)


# Where stock pg8000 is wrong or lacks a type, and ours gives what psycopg gives.
NOT_AS_STOCK = {
    "ROW(1, 'a', NULL)": "stock drops the NULLs of a record",
    "'10.0.0.0/8'::cidr": "stock has inet as ipaddress's, and cidr as text",
    "'12:34:56.5+02'::timetz": "stock leaves it as text",
}


@pytest.mark.parametrize(
    "expression",
    [
        "1::oid", "'x'::name", "'a'::\"char\"", "B'0101'", "B'1'::bit varying", "'(1,2)'::point",
        "'08:00:2b:01:02:03'::macaddr",
        "'10.0.0.0/8'::cidr", "'1.5'::money", "'<a/>'::xml", "'a b'::tsvector", "'a & b'::tsquery",
        "'[1,2)'::int4range",
        "'{[1,2),[5,6)}'::int4multirange", "'empty'::int4range", "ROW(1, 'a', NULL)", "ARRAY[[1,2],[3,NULL]]",
        "'{}'::int[]",
        "ARRAY['a,b', 'c\"d', 'e\\f', NULL, 'NULL', '']", "'[0:1]={1,2}'::int[]", "now()::regclass::text = 'x'",
        "'pg_class'::regclass",
        "NULL", "''", "''::bytea", "'\\x00ff'::bytea", "'null'::json", "'{\"a\": [1, 2.5, null]}'::jsonb",
        "'$.a'::jsonpath",
        "txid_current() > 0", "'1 day'::interval", "'a'::char(3)", "E'\\u00e9☀'", "repeat('x', 100000)",
        "'16/B374D848'::pg_lsn",
        "decode('00', 'hex')", "1::int2", "9223372036854775807", "true", "'t'::text::bool",
        "current_date - current_date", "'12:34:56.5+02'::timetz",
    ],
)  # fmt: skip
def test_types_that_no_converter_knows_are_as_by_stock(engines: Any, expression: str) -> None:
    """Any other type gives what stock pg8000 gives, and the same description of the column."""

    def read(connection: Any) -> Any:
        result = connection.exec_driver_sql(f"SELECT {expression}")
        description = [column[:2] for column in result.cursor.description]
        return [*description, *result.all()]

    if expression in NOT_AS_STOCK:
        psycopgs = outcome(engines[PSYCOPG], lambda c: c.exec_driver_sql(f"SELECT {expression}").all())
        assert outcome(engines[OURS], read)[1][-1:] == psycopgs[1]
    else:
        assert_as_stock(engines, read)


# Values bound without a type: what the driver makes of a Python value by itself. Not the text of a negative interval:
# with IntervalStyle sql_standard stock's means another one.

PLAIN = st.one_of(
    st.none(), st.booleans(), INT4, INT8, st.integers(-(2**80), 2**80), st.floats(), NUMERIC, TEXT,
    st.binary(max_size=9),
    DATE, DATETIME, AWARE, st.times(), INTERVAL.filter(lambda value: value.days >= 0), st.uuids(), st.ip_addresses(),
    st.lists(INT4, min_size=1, max_size=3),
    st.lists(TEXT, min_size=1, max_size=3), st.dictionaries(TEXT, INT4, max_size=2),
)  # fmt: skip
CASTS = ["", "::text", "::int", "::numeric", "::timestamptz", "::jsonb", "::uuid", "::bytea", "::text[]"]


@profile(250)
@given(values=st.lists(st.tuples(PLAIN, st.sampled_from(CASTS)), min_size=1, max_size=4))
def test_plain_values_are_bound_as_by_psycopg(engines: Any, values: Any) -> None:
    """Any Python value, with any cast: what psycopg gives, ours gives, too."""
    # An int is an int4 at least, as a literal is: psycopg sends the smallest type that holds it.
    assume(not any(type(value) is int and cast == "::bytea" for value, cast in values))
    # A list of text by itself comes back as the text that was sent, in which each quotes what he thinks best.
    assume(not any(type(value) in (list, dict) and cast in ("", "::text") for value, cast in values))
    sql = "SELECT " + ", ".join(f"%s{cast}" for _, cast in values)
    parameters = tuple(value for value, _ in values)
    ours, psycopgs = (
        outcome(engines[driver], lambda c: c.exec_driver_sql(native(c.engine, sql), parameters).all())
        for driver in (OURS, PSYCOPG)
    )
    if psycopgs[0] != "error":
        assert ours == psycopgs


# Errors.

FAILING = {
    "syntax": ("SELEC 1", None),
    "no such table": ("SELECT * FROM nowhere", None),
    "no such column": ("SELECT nothing FROM items", None),
    "no such function": ("SELECT nothing(1)", None),
    "no such type": ("SELECT 1::nothing", None),
    "ambiguous": ("SELECT id FROM items a, items b", None),
    "unique": ("INSERT INTO items (key, label) VALUES (1, 'a'), (1, 'b')", None),
    "not null": ("INSERT INTO items (key) VALUES (2)", None),
    "check": ("INSERT INTO items (label) VALUES ('forbidden')", None),
    "division by zero": ("SELECT 1 / %s::int", (0,)),
    "out of range": ("SELECT %s::int", ("99999999999",)),
    "overflow": ("SELECT 2147483647 + %s::int", (1,)),
    "invalid text": ("SELECT %s::int", ("abc",)),
    "invalid date": ("SELECT %s::date", ("2024-02-30",)),
    "invalid json": ("SELECT %s::json", ("{",)),
    "too long": ("SELECT %s::varchar(3)::char(2) || (CASE WHEN length(%s) > 0 THEN chr(0) END)", ("abc", "x")),
    "bad regex": ("SELECT 'a' ~ %s::text", ("[",)),
    "bad encoding": ("SELECT convert_from(%s::bytea, 'UTF8')", (b"\xff",)),
    "raise": ("DO $$ BEGIN RAISE EXCEPTION 'own' USING ERRCODE = 'P0001'; END $$", None),
    "raise own class": ("DO $$ BEGIN RAISE EXCEPTION 'own' USING ERRCODE = 'ZZ123'; END $$", None),
    "feature not supported": ("CREATE TABLE x (id int) PARTITION BY RANGE (id); CREATE TABLE y () INHERITS (x)", None),
    "read only": ("SET TRANSACTION READ ONLY; INSERT INTO items (label) VALUES ('x')", None),
    "statement timeout": ("SET LOCAL statement_timeout = 20; SELECT pg_sleep(5)", None),
    "lock timeout": ("SET LOCAL lock_timeout = 1; SELECT 1 / 0", None),
    "cardinality": ("SELECT (SELECT g FROM generate_series(1, 2) g)", None),
    "grouping": ("SELECT id, count(*) FROM items", None),
    "wrong parameter count": ("SELECT array_fill(0, ARRAY[-1])", None),
    "in failed transaction": ("DO $$ BEGIN PERFORM 1; END $$; SELECT 1 / 0", None),
    "duplicate table": ("CREATE TABLE items (id int)", None),
    "savepoint": ("ROLLBACK TO SAVEPOINT nowhere", None),
    "cursor": ("FETCH 1 FROM nowhere", None),
    "prepared": ("EXECUTE nowhere", None),
    "invalid parameter": ("SET nowhere = 1", None),
    "invalid parameter value": ("SET LOCAL work_mem = 'much'", None),
    "serialization": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$", None),
    "deadlock": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$", None),
    "with check": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '44000'; END $$", None),
    "disk full": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53100'; END $$", None),
    "exclusion": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '23P01'; END $$", None),
    "internal": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = 'XX000'; END $$", None),
    "insufficient privilege": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '42501'; END $$", None),
    "foreign data": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = 'HV000'; END $$", None),
    "query canceled": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '57014'; END $$", None),
    "no data": ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = 'P0002'; END $$", None),
}


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("name", FAILING)
def test_errors_are_classed_as_by_psycopg(engines: Any, name: Any, autocommit: bool) -> None:
    """An error has the SQLSTATE that both peers report and the class that psycopg gives it."""
    sql, parameters = FAILING[name]
    outcomes = {}
    for driver, engine in engines.items():
        options = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        with engine.connect().execution_options(**options) as connection:
            with pytest.raises(sa.exc.DBAPIError) as caught:
                connection.exec_driver_sql(native(engine, sql), parameters)
            outcomes[driver] = (type(caught.value).__name__, sqlstate(caught.value))
            # The connection is still good for something.
            connection.rollback()
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    assert outcomes[OURS] == outcomes[PSYCOPG]
    assert outcomes[OURS][1] == outcomes[STOCK][1]


# Whole transactions.

KEY = st.integers(1, 4)
LABEL = st.sampled_from(["a", "b ☀", "100%", "it's", "forbidden", ":x", "%s", "$1", "\\"])
STEP = st.one_of(
    st.tuples(st.just("insert"), KEY, LABEL),
    st.tuples(st.just("insert returning"), KEY, LABEL),
    st.tuples(st.just("insert many"), st.lists(st.tuples(KEY, LABEL), min_size=1, max_size=4)),
    st.tuples(st.just("insert many returning"), st.lists(st.tuples(KEY, LABEL), min_size=1, max_size=4)),
    st.tuples(st.just("update"), KEY, LABEL),
    st.tuples(st.just("update many"), st.lists(st.tuples(KEY, LABEL), min_size=1, max_size=4)),
    st.tuples(st.just("delete"), KEY),
    st.tuples(st.just("orphan"), KEY),
    st.tuples(st.just("select")),
    st.tuples(st.just("select in"), st.lists(KEY, max_size=3)),
    st.tuples(st.just("stream"), st.integers(0, 5)),
    st.tuples(st.just("literal"), LABEL),
    st.tuples(st.just("ddl")),
    st.tuples(st.just("error")),
    st.tuples(st.just("begin nested")),
    st.tuples(st.just("rollback nested")),
    st.tuples(st.just("commit nested")),
    st.tuples(st.just("commit")),
    st.tuples(st.just("rollback")),
)
ISOLATION = st.sampled_from([None, "AUTOCOMMIT", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])

METADATA = sa.MetaData()
ITEMS = sa.Table(
    "items",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.Integer),
    sa.Column("label", sa.Text),
    sa.Column("parent", sa.Integer),
)


class Program:
    """Runs generated steps over one connection and notes what each gave."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.nested, self.notes = connection, [], []

    def run(self, steps: Any) -> None:
        for name, *arguments in steps:
            try:
                note = getattr(self, name.replace(" ", "_"))(*arguments)
            except (sa.exc.DBAPIError, sa.exc.PendingRollbackError, sa.exc.InvalidRequestError) as error:
                state = sqlstate(error) if isinstance(error, sa.exc.DBAPIError) else None
                note = ("error", type(error).__name__, state)
            self.notes.append((name, comparable(note)))

    def insert(self, key: Any, label: Any) -> Any:
        result = self.connection.execute(sa.insert(ITEMS).values(key=key, label=label))
        return result.inserted_primary_key[0] is not None

    def insert_returning(self, key: Any, label: Any) -> Any:
        statement = sa.insert(ITEMS).values(key=key, label=label).returning(ITEMS.c.key, ITEMS.c.label)
        return [tuple(row) for row in self.connection.execute(statement)]

    def insert_many(self, rows: Any) -> None:
        self.connection.execute(sa.insert(ITEMS), [{"key": k, "label": v} for k, v in rows])  # its rowcount is not kept

    def insert_many_returning(self, rows: Any) -> Any:
        statement = sa.insert(ITEMS).returning(ITEMS.c.key, ITEMS.c.label)
        result = self.connection.execute(statement, [{"key": k, "label": v} for k, v in rows])
        return sorted(tuple(row) for row in result)

    def update(self, key: Any, label: Any) -> Any:
        return self.connection.execute(sa.update(ITEMS).where(ITEMS.c.key == key).values(label=label)).rowcount

    def update_many(self, rows: Any) -> Any:
        statement = sa.update(ITEMS).where(ITEMS.c.key == sa.bindparam("k")).values(label=sa.bindparam("v"))
        return self.connection.execute(statement, [{"k": k, "v": v} for k, v in rows]).rowcount

    def delete(self, key: Any) -> Any:
        return self.connection.execute(sa.delete(ITEMS).where(ITEMS.c.key == key)).rowcount

    def orphan(self, key: Any) -> Any:
        """Breaks a foreign key that is checked at COMMIT."""
        return self.connection.execute(sa.update(ITEMS).where(ITEMS.c.key == key).values(parent=77)).rowcount

    def select(self) -> Any:
        result = self.connection.execute(sa.select(ITEMS.c.key, ITEMS.c.label).order_by(ITEMS.c.key, ITEMS.c.label))
        return [list(result.keys()), *(tuple(row) for row in result)]

    def select_in(self, keys: Any) -> Any:
        statement = sa.select(ITEMS.c.key).where(ITEMS.c.key.in_(keys)).order_by(ITEMS.c.key)
        return self.connection.execute(statement).scalars().all()

    def stream(self, count: Any) -> Any:
        statement = sa.text("SELECT g FROM generate_series(1, 7) g WHERE g > :low").execution_options(yield_per=3)
        with self.connection.execute(statement, {"low": count}) as result:
            return [list(part) for part in result.scalars().partitions()]

    def literal(self, text: Any) -> Any:
        return self.connection.execute(sa.select(sa.literal_column("'" + text.replace("'", "''") + "'"))).scalar_one()

    def ddl(self) -> Any:
        self.connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS more (x int)")
        return self.connection.exec_driver_sql("DROP TABLE more").rowcount

    def error(self) -> Any:
        return self.connection.execute(sa.text("SELECT 1 / :zero"), {"zero": 0}).scalar()

    def begin_nested(self) -> None:
        self.nested.append(self.connection.begin_nested())

    def rollback_nested(self) -> None:
        if self.nested:
            self.nested.pop().rollback()

    def commit_nested(self) -> None:
        if self.nested:
            self.nested.pop().commit()

    def commit(self) -> Any:
        """Commits; a transaction that had failed is "lost": ours and stock say so by an error, psycopg says nothing."""
        self.nested.clear()
        dbapi_connection = self.connection.connection.dbapi_connection
        lost = getattr(getattr(dbapi_connection, "info", None), "transaction_status", None) == TransactionStatus.INERROR
        try:
            self.connection.commit()
        except sa.exc.DBAPIError as error:
            if sqlstate(error) not in ("25P02", None):
                raise
            self.connection.rollback()
            lost = True
        return "lost" if lost else "kept"

    def rollback(self) -> None:
        self.nested.clear()
        self.connection.rollback()


@pytest.mark.filterwarnings("ignore:<psycopg.ServerCursor:ResourceWarning")
@profile(200)
@given(steps=st.lists(STEP, min_size=1, max_size=12), isolation=ISOLATION)
def test_transactions_give_the_same_rows_and_errors_as_the_peers(engines: Any, steps: Any, isolation: Any) -> None:
    """
    Any program of statements, savepoints, commits and errors gives the same at every step, and leaves the same rows.
    """
    notes = {}
    for driver, engine in engines.items():
        with engine.begin() as connection:
            connection.exec_driver_sql("TRUNCATE items, parents RESTART IDENTITY")
        with engine.connect() as connection:
            if isolation:
                connection = connection.execution_options(isolation_level=isolation)
            program = Program(connection)
            program.run(steps)
        with engine.connect() as connection:
            after = Program(connection)
            after.run([("select",)])
        notes[driver] = [*program.notes, *after.notes]
    # In AUTOCOMMIT an executemany that fails leaves nothing here and by psycopg; by stock, what came before the
    # failure.
    stock_too = isolation != "AUTOCOMMIT" or not any("many" in name for name, *_ in steps)
    assert notes[OURS] == notes[PSYCOPG]
    for mine, stocks in zip(notes[OURS], notes[STOCK], strict=True):
        if isinstance(mine[1], list) and mine[1] and mine[1][0] == ("str", "error"):
            assert not stock_too or mine[1][2] == stocks[1][2]  # stock pg8000 has no classes
        else:
            assert not stock_too or mine == stocks
