"""The connection and the dialect as their users see them: values, transactions, COPY, reflection, migrations."""

from __future__ import annotations

import datetime
import decimal
import io
import ipaddress
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

import alembic.autogenerate
import alembic.migration
import alembic.operations
import pytest
import sqlalchemy
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, func, inspect, select, text
from sqlalchemy.dialects import postgresql

from plungepool import dialect, wire
from plungepool.wire import values
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.fixtures import Database

INFINITY = float("inf")
UTC = datetime.UTC


@pytest.fixture
def cursor(connection: wire.Connection) -> Any:
    return connection.cursor()


@pytest.fixture
def engine(address: dict[str, Any]) -> Iterator[Any]:
    engine = create_engine("postgresql+plungepool://", connect_args=address)
    yield engine
    engine.dispose()


def test_inner_names_of_pg8000_are_there() -> None:
    """
    What is used of pg8000 beyond its public interface; when this fails, read its changes before widening the bound.
    """
    from pg8000 import converters, types

    missing = [
        name for name in ("PY_TYPES", "PG_TYPES", "PG_PY_ENCODINGS", "make_param") if not hasattr(converters, name)
    ]
    missing += [name for name in ("PGInterval", "Range") if not hasattr(types, name)]
    assert missing == [], f"pg8000 has no {', '.join(missing)} any more: plungepool.wire relies on it"
    interval = types.PGInterval(years=1, months=2, days=3, seconds=4, microseconds=5)
    assert str(interval) == "1 years 2 months 3 days 4 seconds 5 microseconds"
    assert {"lower", "upper", "bounds", "is_empty"} <= vars(types.Range(1, 2)).keys()


def test_every_type_of_pg8000_is_read() -> None:
    """No type that pg8000 converts is handed out as text here, except those whose text is the value."""
    from pg8000.converters import PG_TYPES, string_in

    known = values.READERS.keys() | values._BYTES_READERS.keys()
    assert {oid for oid, reader in PG_TYPES.items() if reader is not string_in} - known == set()


def test_import_costs_neither_pg8000_nor_scramp() -> None:
    """
    A cold start pays for pg8000, scramp, dateutil and ssl only when one of their types or a password by SCRAM comes.
    """
    program = (
        "import sys, plungepool.wire; print([m for m in ('pg8000', 'scramp', 'dateutil', 'asn1crypto') if m in "
        "sys.modules])"
    )
    package = (
        "import types, sys; p = types.ModuleType('plungepool'); p.__path__ = [sys.argv[1]]; sys.modules['plungepool'] "
        "= p;"
    )
    folder = os.path.dirname(os.path.dirname(wire.__file__))
    done = subprocess.run([sys.executable, "-c", package + program, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_module_is_after_pep_249() -> None:
    """The names that PEP 249 asks for."""
    assert (wire.apilevel, wire.threadsafety, wire.paramstyle) == ("2.0", 1, "numeric_dollar")
    assert issubclass(wire.IntegrityError, wire.DatabaseError)
    assert issubclass(wire.InterfaceError, wire.Error)
    assert wire.NUMBER == 23
    assert wire.STRING != 23
    assert wire.Binary(b"x") == b"x"
    assert wire.DateFromTicks(0).year in (1969, 1970)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("int4", -(2**31)),
        ("int8", 2**63 - 1),
        ("float8", 1e-300),
        ("float8", INFINITY),
        ("numeric", decimal.Decimal("123456789012345678901234567890.000000001")),
        ("bool", True),
        ("text", "é\n\t\\'\"$1 %s 𝄞"),
        ("text", ""),
        ("text", None),
        ("bytea", bytes(range(256))),
        ("date", datetime.date(1, 1, 1)),
        ("time", datetime.time(23, 59, 59, 999999)),
        ("timetz", datetime.time(1, 2, 3, tzinfo=datetime.timezone(datetime.timedelta(hours=-3, minutes=-30)))),
        ("timestamp", datetime.datetime.max),
        ("timestamptz", datetime.datetime(1, 1, 1, tzinfo=UTC)),
        ("timestamptz", datetime.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        ("interval", datetime.timedelta(days=-1, microseconds=1)),
        ("uuid", uuid.UUID(int=7)),
        ("jsonb", {"a": [1, None, "ü"]}),
        ("inet", ipaddress.ip_interface("10.1.2.3/8")),
        ("inet", ipaddress.ip_address("::1")),
        ("cidr", ipaddress.ip_network("10.0.0.0/8")),
        ("text[]", ["null", "NULL", None, "", " ", 'a"b', "a\\b", "{", "}", ",", "é"]),
        ("int4[]", [[1, 2], [3, None]]),
        ("int4[]", []),
        ("bytea[]", [b"\x00\\", b""]),
        ("timestamptz[]", [datetime.datetime(2026, 1, 1, tzinfo=UTC), None]),
        ("jsonb[]", [{"a": "x,y"}, None]),
        ("bool[]", [True, False]),
        ("numeric[]", [decimal.Decimal("1.50"), decimal.Decimal("Infinity")]),
    ],
)
def test_value_survives_the_way_to_the_server_and_back(cursor: Any, type_: str, value: Any) -> None:
    """What goes in as a parameter comes back equal and of the same type, alone and among NULLs and others."""
    for sql, expected in [
        (f"SELECT $1::{type_}", [(value,)]),
        (
            f"SELECT a FROM (VALUES ($1::{type_}, 1), (NULL, 2), ($1, 3)) v(a, b) ORDER BY b",
            [(value,), (None,), (value,)],
        ),
        (f"SELECT $1::{type_} FROM generate_series(1, 3)", [(value,)] * 3),
    ]:
        rows = cursor.execute(sql, (value,)).fetchall()
        assert rows == expected
        assert [type(row[0]) for row in rows] == [type(row[0]) for row in expected]


def test_not_a_number_survives(cursor: Any) -> None:
    """NaN is no value that equals itself."""
    row = cursor.execute("SELECT $1::float8, $2::numeric", (float("nan"), decimal.Decimal("NaN"))).fetchone()
    assert row[0] != row[0]
    assert row[1].is_nan()


@pytest.mark.parametrize(
    "literal",
    [
        "timestamptz 'infinity'",
        "timestamp '-infinity'",
        "date 'infinity'",
        "date '0044-03-15 BC'",
        "timestamptz '0044-03-15 12:00 BC'",
        "timestamp '10000-01-01'",
        "timestamptz '294276-12-31'",
        "date '5874897-12-31'",
        "time '24:00:00'",
    ],
)
def test_what_python_cannot_hold_stays_text(cursor: Any, literal: Any) -> None:
    """
    Infinity, BC and years beyond 9999 come as the server's text, alone and in a column of others: never as another day.
    """
    (expected,) = cursor.execute(f"SELECT ({literal})::text").fetchone()
    assert cursor.execute(f"SELECT {literal}").fetchone() == (expected,)
    kind = literal.split()[0]
    ordinary = "time '12:00'" if kind == "time" else f"{kind} '2026-11-22'"
    rows = cursor.execute(f"SELECT * FROM (VALUES ({ordinary}), ({literal}), ({ordinary})) v").fetchall()
    assert rows[1] == (expected,)
    assert not isinstance(rows[0][0], str)


@pytest.mark.parametrize(
    "zone", ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns", "Asia/Kathmandu", "Africa/Monrovia"]
)
@pytest.mark.parametrize("style", ["ISO, MDY", "SQL, MDY", "SQL, DMY", "Postgres, MDY", "Postgres, DMY", "German, DMY"])
def test_every_date_style_and_zone_is_read_right(cursor: Any, zone: Any, style: str) -> None:
    """The same moments in every style: also in the hour that comes twice, and with the offsets of two centuries ago."""
    cursor.execute(f"SET datestyle = '{style}'")
    cursor.execute(f"SET timezone = '{zone}'")
    moments = [
        "2026-11-22 10:00:00.1",
        "2026-10-25 00:30:00",
        "2026-10-25 01:30:00",
        "1999-02-03 04:05:06.789",
        "1850-01-01 00:00:00",
        "2026-05-06 12:00:00",
    ]
    for moment in moments:
        expected = datetime.datetime.fromisoformat(moment)
        row = cursor.execute(
            f"SELECT timestamptz '{moment} UTC', timestamp '{moment}', date '{moment}', ARRAY[timestamptz '{moment} "
            f"UTC'], tstzrange('{moment} UTC', NULL)"
        ).fetchone()
        # Compared in UTC: in the hour that comes twice, times of two zones are never equal (PEP 495).
        zoned = [value.astimezone(UTC) for value in (row[0], row[3][0], row[4].lower)]
        assert zoned == [expected.replace(tzinfo=UTC)] * 3
        assert row[1:3] == (expected, expected.date())


@pytest.mark.parametrize("style", ["postgres", "postgres_verbose", "sql_standard", "iso_8601"])
def test_every_interval_style_is_read_right(cursor: Any, style: str) -> None:
    """Mixed signs, no time, no days, months: the same in every style as the server's own arithmetic says."""
    from pg8000.types import PGInterval

    cursor.execute(f"SET intervalstyle = '{style}'")
    generator = random.Random(7)
    for _ in range(150):
        months, days, microseconds = (
            generator.choice([0, 1, -1, generator.randint(-limit, limit)]) for limit in (1000, 10_000, 10**12)
        )
        (value,) = cursor.execute(
            f"SELECT make_interval(months => {months}, days => {days}) + {microseconds} * make_interval(secs => "
            "0.000001)"
        ).fetchone()
        if months:
            expected = PGInterval(months=months, days=days, seconds=microseconds / 1_000_000)
            assert isinstance(value, PGInterval)
            assert value.normalize().months == expected.normalize().months
            assert (value.days or 0, (value.seconds or 0) * 1_000_000 + (value.microseconds or 0)) == (
                days,
                microseconds,
            )
        else:
            assert value == datetime.timedelta(days=days, microseconds=microseconds)
        assert cursor.execute("SELECT $1::interval", (value,)).fetchone() == (value,)


def test_ranges_of_the_driver(cursor: Any) -> None:
    """Empty, unbounded, and bounds that need quotes."""
    from pg8000.types import Range

    for type_, value in [
        ("int4range", Range(1, 5)),
        ("int4range", Range(is_empty=True)),
        ("numrange", Range(None, decimal.Decimal("1.5"), "(]")),
        ("tstzrange", Range(datetime.datetime(2026, 1, 1, tzinfo=UTC), None)),
        ("daterange", Range(datetime.date(2026, 1, 1), datetime.date(2026, 2, 1))),
    ]:
        assert cursor.execute(f"SELECT $1::{type_}", (value,)).fetchone() == (value,)
        assert cursor.execute(f"SELECT ARRAY[$1::{type_}, NULL]", (value,)).fetchone() == ([value, None],)
        assert cursor.execute(f"SELECT $1::{type_}[]", ([value, None],)).fetchone() == ([value, None],)


def test_records_bounds_and_vectors(cursor: Any) -> None:
    """Types that only the catalogue and casual queries bring."""
    row = cursor.execute(
        "SELECT row(1, NULL, 'a\"b', '', 'x,y', '(z)'), '[0:1]={1,2}'::int[], '1 2'::int2vector, point(1, -2.5),"
        " '\\x00ff'::bytea, 'pg_class'::regclass, 7::oid, 'a'::\"char\", '{{a,b},{c,d}}'::text[], '(1,2)'::point"
    ).fetchone()
    assert row[0] == ("1", None, 'a"b', "", "x,y", "(z)")
    assert row[1:4] == ([1, 2], [1, 2], (1.0, -2.5))
    assert row[4:9] == (b"\x00\xff", "pg_class", 7, "a", [["a", "b"], ["c", "d"]])
    cursor.execute("SET bytea_output = 'escape'")
    assert cursor.execute("SELECT $1::bytea", (bytes(range(256)),)).fetchone() == (bytes(range(256)),)


def test_database_in_another_encoding(database: Database, address: dict[str, Any]) -> None:
    """
    The session speaks UTF-8 whatever the database holds; who changes that hears of it at once, and loses the
    connection.
    """
    database.execute(
        f"CREATE DATABASE {database.name}_latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    try:
        for encoding in ("LATIN1", "ISO_8859_5", "KOI8R", "EUC_JP", "SQL_ASCII"):
            of_latin = {**address, "database": f"{database.name}_latin"}
            connection = wire.connect(**(of_latin if encoding == "LATIN1" else address))
            cursor = connection.cursor()
            assert cursor.execute("SELECT $1::text", ("é",)).fetchone() == ("é",)
            cursor.execute("SET client_encoding = 'UTF-8'")
            with pytest.raises(wire.NotSupportedError, match=f"client_encoding was set to {encoding}") as raised:
                cursor.execute(f"SET client_encoding = '{encoding}'")
            assert raised.value.disconnected
            assert connection.closed
    finally:
        database.server.execute(f"DROP DATABASE {database.name}_latin WITH (FORCE)")


def test_converter_that_fails_costs_no_connection(connection: wire.Connection, cursor: Any) -> None:
    """
    A reader of the user's own that raises: the reply was read to its end, so the next statement is answered right.
    """
    connection.register_in_adapter(25, lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cursor.execute("SELECT 'x'::text FROM generate_series(1, 10000)")
    assert cursor.execute("SELECT 7").fetchone() == (7,)
    connection.register_in_adapter(25, str.upper)
    assert cursor.execute("SELECT 'x'::text").fetchone() == ("X",)


@pytest.mark.parametrize("statement", [None, b"SELECT 1", text("SELECT 1")])
def test_what_is_no_text_is_no_statement(cursor: Any, statement: Any) -> None:
    """What another library composes is refused by the name of its type, and the cursor goes on."""
    says = f"^a statement must be text, not {type(statement).__name__}"
    for call in (
        lambda: cursor.execute(statement),
        lambda: cursor.declare("some", statement),
        lambda: cursor.executemany(statement, [(1,)]),
    ):
        with pytest.raises(wire.ProgrammingError, match=says):
            call()
    assert cursor.execute("SELECT 1").fetchone() == (1,)


def test_cursor_after_pep_249(cursor: Any) -> None:
    """description, rowcount and the three ways to fetch."""
    with pytest.raises(wire.ProgrammingError):
        cursor.fetchone()
    cursor.execute("SELECT i AS number, i::text AS word FROM generate_series(1, 5) i")
    assert [column[:2] for column in cursor.description] == [("number", 23), ("word", 25)]
    assert cursor.rowcount == 5
    assert cursor.fetchone() == (1, "1")
    assert cursor.fetchmany() == [(2, "2")]
    assert cursor.fetchmany(2) == [(3, "3"), (4, "4")]
    assert list(cursor) == [(5, "5")]
    assert cursor.fetchone() is None
    assert cursor.fetchall() == []
    cursor.execute("CREATE TEMP TABLE t (a int)")
    assert cursor.description is None
    with pytest.raises(wire.ProgrammingError):
        cursor.fetchall()
    cursor.executemany("INSERT INTO t VALUES ($1)", [(1,), (2,)])
    assert cursor.rowcount == 2
    cursor.executemany("INSERT INTO t VALUES ($1)", [])
    assert cursor.rowcount == 0
    assert cursor.execute("UPDATE t SET a = a").rowcount == 2
    assert cursor.execute("SELECT FROM t").fetchall() == [(), ()]
    assert cursor.execute("").description is None
    cursor.close()
    with pytest.raises(wire.InterfaceError):
        cursor.execute("SELECT 1")


def test_several_statements_give_the_last_result(cursor: Any) -> None:
    """Without parameters a text may hold many statements; the last one's rows are handed out, not all mixed."""
    cursor.execute("SELECT 1 AS a; SELECT 'x' AS b, 'y' AS c;")
    assert ([column[0] for column in cursor.description], cursor.fetchall()) == (["b", "c"], [("x", "y")])


def test_executemany_is_all_or_nothing_in_autocommit(connection: wire.Connection, cursor: Any) -> None:
    """One flight is one implicit transaction: the rows before the one that fails are not left behind."""
    connection.autocommit = True
    cursor.execute("CREATE TEMP TABLE t (a int PRIMARY KEY)")
    with pytest.raises(wire.IntegrityError):
        cursor.executemany("INSERT INTO t VALUES ($1)", [(1,), (2,), (1,)])
    assert cursor.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_copy_both_ways(connection: wire.Connection, cursor: Any) -> None:
    """From text and binary files, from an iterable; to both kinds of file; and what a stream's own failure costs."""
    cursor.execute("CREATE TEMP TABLE t (a int, b text)")
    for stream in (
        io.StringIO("1\té\n"),
        io.BytesIO("2\té\n".encode()),
        ["3\té\n", "4\té\n".encode()],
        (f"{i}\té\n" for i in range(5, 50_000)),
    ):
        cursor.execute("COPY t FROM STDIN", stream=stream)
    assert cursor.rowcount == 49_995
    assert cursor.execute("SELECT count(*), min(b), max(b) FROM t").fetchone() == (49_999, "é", "é")
    for stream, expected in ((io.StringIO(), "1\té\n2\té\n"), (io.BytesIO(), "1\té\n2\té\n".encode())):
        cursor.execute("COPY (SELECT * FROM t WHERE a < 3 ORDER BY a) TO STDOUT", stream=stream)
        assert stream.getvalue() == expected

    def broken() -> Iterator[Any]:
        yield "1\tx\n"
        raise KeyError("mine")

    connection.commit()
    with pytest.raises(KeyError, match="mine"):
        cursor.execute("COPY t FROM STDIN", stream=broken())
    connection.rollback()
    with pytest.raises(wire.DataError, match="invalid input syntax"):
        cursor.execute("COPY t FROM STDIN", stream=["not a number\tx\n"])
    connection.rollback()
    for sql in ("COPY t FROM STDIN", "COPY t TO STDOUT"):
        with pytest.raises(wire.ProgrammingError, match="stream"):
            cursor.execute(sql)
        connection.rollback()
        assert cursor.execute("SELECT count(*) FROM t").fetchone() == (49_999,)


def test_options_of_begin_cannot_change_inside_a_transaction(connection: wire.Connection, cursor: Any) -> None:
    """They would hold for the next transaction only, which nobody expects."""
    cursor.execute("SELECT 1")
    for name, value in (
        ("autocommit", True),
        ("isolation_level", "SERIALIZABLE"),
        ("readonly", True),
        ("deferrable", True),
    ):
        with pytest.raises(wire.ProgrammingError, match=name):
            setattr(connection, name, value)
    connection.rollback()
    with pytest.raises(wire.ProgrammingError):
        connection.isolation_level = "SERIALIZABLE; DROP TABLE users"


def test_defaults_of_the_role_are_kept(database: Database, address: dict[str, Any]) -> None:
    """
    Where no option asks for anything, BEGIN says nothing: the role's own defaults hold, before and after an option.
    """
    database.execute(f"ALTER DATABASE {database.name} SET default_transaction_isolation = 'repeatable read'")
    database.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    engine = create_engine("postgresql+plungepool://", connect_args=address, pool_size=1)
    query = text("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')")
    for options, expected in [
        ({}, ("repeatable read", "on")),
        ({"postgresql_readonly": False, "isolation_level": "READ COMMITTED"}, ("read committed", "off")),
        ({}, ("repeatable read", "on")),
        ({"isolation_level": "AUTOCOMMIT"}, ("repeatable read", "on")),
        ({}, ("repeatable read", "on")),
    ]:
        with engine.connect().execution_options(**options) as connection:
            assert tuple(connection.execute(query).one()) == expected
    with engine.connect() as connection:
        assert connection.get_isolation_level() == "REPEATABLE READ"
    engine.dispose()


def test_two_phase_commit() -> None:
    """Prepared by one connection, found and ended by another; or ended by its own, prepared or not."""
    with Postgres({"max_prepared_transactions": 5}) as server:
        address = {"user": "postgres", "host": server.host, "port": server.port, "database": "postgres"}
        address["password"] = server.password
        server.execute("CREATE TABLE t (a int)")

        def count() -> Any:
            return server.execute("SELECT count(*) FROM t")[0][0]

        with wire.connect(**address) as connection, wire.connect(**address) as other:
            for name in ("it's \\ one", "two"):
                connection.tpc_begin(name)
                connection.cursor().execute("INSERT INTO t VALUES ($1)", (1,))
                connection.tpc_prepare()
                assert (other.tpc_recover(), connection.in_transaction) == ([name], False)
                other.rollback()
                (other.tpc_commit if name == "two" else other.tpc_rollback)(name)
                assert (other.tpc_recover(), count()) == ([], int(name == "two"))
                other.rollback()
            for prepare, end, expected in [
                (True, "commit", 2),
                (False, "commit", 3),
                (True, "rollback", 3),
                (False, "rollback", 3),
            ]:
                connection.tpc_begin("own")
                connection.cursor().execute("INSERT INTO t VALUES (2)")
                if prepare:
                    connection.tpc_prepare()
                getattr(connection, f"tpc_{end}")()
                assert (connection.in_transaction, count()) == (False, expected)
            connection.tpc_begin("empty")
            connection.tpc_prepare()
            connection.tpc_commit()
            connection.tpc_begin("failed")
            with pytest.raises(wire.DataError):
                connection.cursor().execute("SELECT 1/0")
            with pytest.raises(wire.InternalError, match="ROLLBACK"):
                connection.tpc_prepare()
            connection.tpc_rollback()
        engine = create_engine("postgresql+plungepool://", connect_args=address)
        with engine.connect() as connection:
            with connection.begin_twophase() as transaction:
                connection.execute(text("INSERT INTO t VALUES (9)"))
                transaction.prepare()
                transaction.commit()
            with connection.begin_twophase("named") as transaction:
                connection.execute(text("INSERT INTO t VALUES (9)"))
                transaction.prepare()
                assert connection.recover_twophase() == ["named"]
                transaction.rollback()
        engine.dispose()
        assert server.execute("SELECT count(*) FROM t WHERE a = 9") == [[1]]


def test_savepoints(engine: Engine) -> None:
    """A nested transaction that fails leaves the outer one alive."""
    table = Table("t", MetaData(), Column("a", Integer, primary_key=True))
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), {"a": 1})
        with pytest.raises(sqlalchemy.exc.IntegrityError), connection.begin_nested():
            connection.execute(table.insert(), {"a": 1})
        connection.execute(table.insert(), {"a": 2})
    with engine.connect() as connection:
        assert connection.scalars(select(table.c.a).order_by(table.c.a)).all() == [1, 2]


def test_types_of_sqlalchemy(engine: Engine) -> None:
    """Ranges, multiranges, arrays, enums, intervals, INET, HSTORE and JSON as SQLAlchemy's own types have them."""
    ranges = postgresql
    table = Table(
        "typed",
        MetaData(),
        Column("r", ranges.INT4RANGE),
        Column("rs", postgresql.ARRAY(ranges.INT4RANGE)),
        Column("m", ranges.DATEMULTIRANGE),
        Column("t", ranges.TSTZRANGE),
        Column("e", postgresql.ENUM("good", "bad", name="mood")),
        Column("es", postgresql.ARRAY(postgresql.ENUM("good", "bad", name="mood"))),
        Column("i", postgresql.INTERVAL),
        Column("n", postgresql.INET),
        Column("j", postgresql.JSONB),
        Column("u", sqlalchemy.Uuid(as_uuid=False)),
        Column("b", sqlalchemy.LargeBinary),
        Column("s", postgresql.BIT(4)),
    )
    table.create(engine)
    day, later = datetime.date(2026, 1, 1), datetime.date(2026, 2, 1)
    row = {
        "r": ranges.Range(1, 5),
        "rs": [ranges.Range(1, 5), ranges.Range(empty=True)],
        "m": ranges.MultiRange([ranges.Range(day, later)]),
        "t": ranges.Range(datetime.datetime(2026, 1, 1, tzinfo=UTC), None, bounds="[)"),
        "e": "good",
        "es": ["bad", "good"],
        "i": datetime.timedelta(days=-1, seconds=5),
        "n": ipaddress.ip_address("10.0.0.1"),
        "j": {"a": [1, {"b": None}]},
        "u": "00000000-0000-0000-0000-000000000007",
        "b": b"\x00\xff",
        "s": getattr(postgresql, "BitString", str)("0101"),  # a str in SQLAlchemy 2.0
    }
    with engine.begin() as connection:
        connection.execute(table.insert(), row)
        connection.execute(table.insert(), [row, row])
        assert connection.execute(select(table)).mappings().all() == [row] * 3
        assert (
            connection.scalar(select(func.count()).where(table.c.r.contains(2), table.c.j["a"][0].as_integer() == 1))
            == 3
        )


def test_default_schema_is_known_where_it_is_written(database: Database, address: dict[str, Any]) -> None:
    """Reflection, Alembic and `schema_translate_map` with a search path that does not start at public."""
    database.execute("CREATE SCHEMA tenant")
    database.execute("CREATE TABLE public.decoy (id int PRIMARY KEY)")
    database.execute("CREATE TABLE tenant.things (id int PRIMARY KEY)")
    database.execute(f"ALTER DATABASE {database.name} SET search_path = tenant, public")
    for look in (
        lambda engine: inspect(engine).default_schema_name,
        lambda engine: inspect(engine) and engine.dialect.default_schema_name,
    ):
        engine = create_engine("postgresql+plungepool://", connect_args=address)
        assert look(engine) == "tenant"
        engine.dispose()
    engine = create_engine("postgresql+plungepool://", connect_args=address)
    table = Table("things", MetaData(), Column("id", Integer, primary_key=True), schema="elsewhere")
    with engine.connect().execution_options(schema_translate_map={"elsewhere": None}) as connection:
        connection.execute(table.insert(), {"id": 1})
        connection.commit()
    assert database.execute("SELECT id FROM tenant.things") == [[1]]
    engine.dispose()


def test_alembic_upgrades_and_compares(engine: Engine) -> None:
    """Alembic's operations and its comparison see the same schema."""
    metadata = MetaData()
    with engine.begin() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        operations = alembic.operations.Operations(context)
        operations.create_table(
            "orders", Column("id", Integer, primary_key=True), Column("name", String(20), nullable=False)
        )
        operations.add_column("orders", Column("note", String))
        operations.create_index("by_name", "orders", ["name"])
    Table(
        "orders",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("name", String(20), nullable=False, index=False),
        Column("note", String),
        sqlalchemy.Index("by_name", "name"),
    )
    with engine.connect() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        assert alembic.autogenerate.compare_metadata(context, metadata) == []
        (difference,) = alembic.autogenerate.compare_metadata(context, MetaData())[-1:]
        assert difference[0] == "remove_table"


def test_set_up_asks_nothing(engine: Engine) -> None:
    """Version and string syntax are known from the connect."""
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection.flights == 0
        assert engine.dialect.server_version_info >= (14,)
        assert engine.dialect._backslash_escapes is False


def test_entry_point_is_declared() -> None:
    """`create_engine` finds the dialect without an import."""
    program = "import sqlalchemy; print(sqlalchemy.create_engine('postgresql+plungepool://x@y/z').dialect.driver)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == dialect.PlungepoolDialect.driver


def test_client_encoding_cannot_be_set() -> None:
    """What would be a SET on every connection is refused with a reason."""
    with pytest.raises(sqlalchemy.exc.ArgumentError, match="UTF-8"):
        create_engine("postgresql+plungepool://", client_encoding="latin1")


def test_torn_connection_is_replaced_by_any_pool(engine: Engine) -> None:
    """
    A signal handler's ordinary exception in the middle of a query: the pool never hands the rest of the reply out.
    """

    class Rang(Exception):
        pass

    def ring(*_: Any) -> None:
        raise Rang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Rang), engine.connect() as connection:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            connection.execute(text("SELECT 'old', pg_sleep(5)"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 'new'")).scalar_one() == "new"


def test_forked_child_leaves_the_parents_connection_alone(connection: wire.Connection, cursor: Any) -> None:
    """The child may neither use nor end it; the parent goes on."""
    cursor.execute("SELECT 1")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            cursor.execute("SELECT 2")
        except wire.InterfaceError:
            connection.close()
            os.write(writer, b"refused")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    assert os.read(reader, 100) == b"refused"
    os.close(reader)
    assert cursor.execute("SELECT 3").fetchone() == (3,)


def test_use_inside_a_use_is_refused(connection: wire.Connection, cursor: Any) -> None:
    """A stream that asks the connection that reads from it: refused, and nobody gets anybody's rows."""
    cursor.execute("CREATE TEMP TABLE t (a text)")

    def stream() -> Iterator[Any]:
        yield "1\n"
        connection.cursor().execute("SELECT 1")

    with pytest.raises(wire.Error):
        cursor.execute("COPY t FROM STDIN", stream=stream())
    assert connection.closed


def test_one_connection_a_thread(address: dict[str, Any]) -> None:
    """Eight threads with a connection each, at the same time."""
    wrong = []

    def work(number: int) -> None:
        with wire.connect(**address) as connection:
            cursor = connection.cursor()
            for _ in range(100):
                if cursor.execute("SELECT $1::int, $2::text", (number, str(number))).fetchall() != [
                    (number, str(number))
                ]:
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_repr_and_closing(address: dict[str, Any]) -> None:
    """No password in it, and closing twice is no error."""
    connection = wire.connect(**address)
    assert address["password"] not in repr(connection)
    assert str(connection.backend_pid) in repr(connection)
    assert "server_version" in connection.parameter_statuses
    connection.close()
    connection.close()
    assert "closed" in repr(connection)
    for use in (
        connection.check,
        connection.ping,
        connection.commit,
        connection.rollback,
        lambda: connection.cursor().execute("SELECT 1"),
    ):
        with pytest.raises(wire.InterfaceError, match="closed"):
            use()


def test_notices_are_kept(connection: wire.Connection, cursor: Any) -> None:
    """The last hundred, by field."""
    cursor.execute("DO $$BEGIN FOR i IN 1..150 LOOP RAISE NOTICE 'number %', i; END LOOP; END$$")
    assert len(connection.notices) == 100
    assert (connection.notices[-1]["message"], connection.notices[-1]["severity"]) == ("number 150", "NOTICE")


def test_rows_of_one_length_are_told_apart_by_the_sizes_of_their_values(connection: wire.Connection) -> None:
    """Rows are read as the last one of their length lay, where that fits; whatever the sizes, NULLs and widths are."""
    cursor = connection.cursor()
    random_ = random.Random(7)
    sizes = [(random_.randrange(4), random_.randrange(4), random_.randrange(4)) for _ in range(600)]
    rows = [tuple(None if size == 3 and random_.random() < 0.3 else "x" * size for size in row) for row in sizes]
    rows += [("a", "bb", "c" * number) for number in range(40)] * 20
    cursor.execute("CREATE TEMP TABLE rows_of_a_length (n serial, a text, b text, c text)")
    cursor.executemany("INSERT INTO rows_of_a_length (a, b, c) VALUES ($1, $2, $3)", rows)
    cursor.execute("SELECT a, b, c FROM rows_of_a_length ORDER BY n")
    assert cursor.fetchall() == rows
    # In one reply, 15 bytes each: two values, then one.
    cursor.execute("SELECT 'aaaa', 'b' FROM generate_series(1, 3); SELECT 'aaaabcccc' FROM generate_series(1, 3)")
    assert cursor.fetchall() == [("aaaabcccc",)] * 3
