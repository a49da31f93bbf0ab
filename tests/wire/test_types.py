"""
What was read can be written, and is of its type: every type of the server's own, alone and as an array, in any session.
"""

from __future__ import annotations

import decimal
from datetime import datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from plungepool import wire
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator


# A value of each type, as the server takes it.
SAMPLES = {
    "bool": "true", "bytea": "\\x00ff", "char": "c", "name": "a name", "int8": "-9007199254740993", "int2": "-7",
    "int2vector": "1 2",
    "int4": "2147483647", "regproc": "now", "text": 'a "text", with {all} \\ of it', "oid": "4294967295",
    "tid": "(0,1)", "xid": "7", "cid": "3",
    "oidvector": "1 2 3", "json": '{"a": [1, null]}', "point": "(1.5,-2)", "lseg": "[(0,0),(1,1)]",
    "path": "((0,0),(1,1))",
    "box": "(1,1),(0,0)", "polygon": "((0,0),(1,1),(1,0))", "line": "{1,2,3}", "cidr": "10.0.0.0/8", "float4": "1.5",
    "float8": "0.1",
    "circle": "<(0,0),1>", "macaddr8": "08:00:2b:01:02:03:04:05", "money": "$1.25", "macaddr": "08:00:2b:01:02:03",
    "inet": "10.0.0.1/24",
    "aclitem": "postgres=r/postgres", "bpchar": "x", "varchar": "y", "date": "2026-11-26", "time": "13:05:00.000001",
    "timestamp": "2026-11-26 13:05:00.25",
    "timestamptz": "2026-07-26 13:05:00.25+00", "interval": "1 year 2 mons -3 days 04:05:06.789012",
    "timetz": "13:05:00+02", "bit": "1", "varbit": "10101",
    "numeric": "123456789012345678901234567890.123456789", "refcursor": "cursor", "regprocedure": "now()",
    "regoper": "pg_catalog.||/",
    "regoperator": "+(integer,integer)", "regclass": "pg_class", "regtype": "integer",
    "uuid": "00000000-0000-0000-0000-000000000005",
    "txid_snapshot": "10:20:10,14,15", "pg_lsn": "16/B374D848", "tsvector": "'a':1 'b':2", "tsquery": "'a' & 'b'",
    "regconfig": "english",
    "regdictionary": "simple", "jsonb": '{"a": [1, null]}', "int4range": "[1,5)", "numrange": "[1.5,2.5)",
    "tsrange": '["2026-01-01 00:00:00","2026-01-02 00:00:00")',
    "tstzrange": '["2026-01-01 00:00:00+00","2026-01-02 00:00:00+00")', "daterange": "[2026-01-01,2026-01-05)",
    "int8range": "[1,5)", "jsonpath": '$."a"',
    "regnamespace": "pg_catalog", "regrole": "postgres", "regcollation": '"C"', "int4multirange": "{[1,2),[5,7)}",
    "nummultirange": "{[1.5,2.5)}",
    "tsmultirange": '{["2026-01-01 00:00:00","2026-01-02 00:00:00")}',
    "tstzmultirange": '{["2026-01-01 00:00:00+00","2026-01-02 00:00:00+00")}',
    "datemultirange": "{[2026-01-01,2026-01-05)}", "int8multirange": "{[1,2),[5,7)}", "pg_snapshot": "10:20:10,14,15",
    "xid8": "12345678901",
}  # fmt: skip
# Types without an input of their own, or whose values the server makes for itself.
INTERNAL = {"gtsvector", "pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list", "pg_brin_bloom_summary",
"pg_brin_minmax_multi_summary", "xml"}  # fmt: skip
SESSIONS = [
    ("ISO", "UTC"),
    ("ISO", "Europe/Berlin"),
    ("German", "Asia/Kathmandu"),
]


@pytest.fixture(scope="module", params=["18", "15"])
def server(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[Any]:
    """The embedded server, and Debian's."""
    if request.param == "18":
        yield postgres, {}
    else:
        with Postgres(tls=True) as other:
            yield other, {}


@pytest.fixture(params=SESSIONS, ids=lambda session: "-".join(session).replace("/", "_"))
def connection(request: pytest.FixtureRequest, server: Any) -> Iterator[Any]:
    style, zone = request.param
    postgres, options = server
    with wire.connect(
        user="postgres",
        host=postgres.host,
        port=postgres.port,
        database="postgres",
        password=postgres.password,
        **options,
    ) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(f"SET DateStyle TO {style}; SET TimeZone TO '{zone}'; SET lc_monetary TO 'C'")
        yield connection


def test_every_type_of_the_catalogue_comes_and_goes(connection: Any) -> None:
    """
    Alone, as an array with a NULL, and nested: a list is a list, and what was read, sent back, is the same to the
    server.
    """
    cursor = connection.cursor()
    cursor.execute(
        "SELECT typname::text FROM pg_catalog.pg_type WHERE typtype IN ('b', 'r', 'm') AND oid < 10000 AND typelem = 0"
        " AND typinput::oid <> 0 AND typoutput::oid <> 0 UNION SELECT unnest(ARRAY['name', 'point', 'box', 'lseg',"
        " 'line', 'int2vector', 'oidvector'])"
    )
    names = {name for (name,) in cursor.fetchall()} - INTERNAL
    assert names <= set(SAMPLES), f"no sample of {names - set(SAMPLES)}"
    wrong = []
    with decimal.localcontext(prec=4):
        for name in sorted(names):
            kind = f'pg_catalog."{name}"'
            literal = SAMPLES[name].replace("'", "''")
            one = f"CAST('{literal}' AS {kind})"
            for expression, shown, is_list in (
                (one, kind, name == "int2vector" or "multirange" in name),
                (f"ARRAY[{one}, NULL, {one}]", f"{kind}[]", True),
                (f"ARRAY[ARRAY[{one}, {one}], ARRAY[{one}, NULL]]", f"{kind}[]", True),
            ):
                cursor.execute(f"SELECT {expression}, ({expression})::text")
                value, text = cursor.fetchone()
                if isinstance(value, list) is not is_list:
                    wrong.append((name, "is", value))
                try:
                    cursor.execute(f"SELECT (CAST($1 AS {shown}))::text", (value,))
                    (back,) = cursor.fetchone()
                except wire.Error as error:
                    back = error
                if back != text:
                    wrong.append((name, value, back, text))
    assert wrong == [], wrong


def test_values_are_of_their_types(connection: Any) -> None:
    """
    24:00 is no midnight, and an interval is exact, whatever the program's decimal context; timestamptz has the
    session's zone.
    """
    cursor = connection.cursor()
    with decimal.localcontext(prec=4):
        cursor.execute(
            "SELECT time '24:00', time '00:00', interval '12.345678 s', interval '-0.5 s', numeric '1.23456789',"
            " timestamptz '2026-01-26 12:00+00', timestamptz '2026-07-26 12:00+00'"
        )
    midnight, start, seconds, less, number, winter, summer = cursor.fetchone()
    assert midnight == "24:00:00"
    assert start == time(0)
    assert (seconds.total_seconds(), less.total_seconds()) == (12.345678, -0.5)
    assert number == Decimal("1.23456789")
    assert winter == datetime(2026, 1, 26, 12, tzinfo=ZoneInfo("UTC"))
    assert summer == datetime(2026, 7, 26, 12, tzinfo=ZoneInfo("UTC"))
    if connection.parameter_statuses["TimeZone"] == "Europe/Berlin":
        assert winter.tzinfo is summer.tzinfo


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (postgresql.HSTORE, {"a": "1"}),
        (postgresql.BIT(3), "101"),
        (postgresql.MACADDR, "08:00:2b:01:02:03"),
        (postgresql.TSVECTOR, "'a' 'b'"),
        (postgresql.INET, None),
        (postgresql.JSONB, {"a": 1}),
        (sa.Text, "x,y"),
        (sa.Numeric(asdecimal=True), Decimal("1.5")),
        (sa.Uuid, None),
        (sa.LargeBinary, b"\0\1"),
        (sa.Enum("sad", "very ok", name="moods"), "very ok"),
    ],
)
def test_sqlalchemys_types_come_and_go_in_arrays(postgres: Postgres, type_: Any, value: Any) -> None:
    """ARRAY of each type reads what it wrote, and never a list of single characters."""
    postgres.execute("CREATE EXTENSION IF NOT EXISTS hstore; DROP TABLE IF EXISTS in_arrays; DROP TYPE IF EXISTS moods")
    engine = sa.create_engine(postgres.url().replace("postgresql://", "postgresql+plungepool://"))
    table = sa.Table("in_arrays", sa.MetaData(), sa.Column("many", sa.ARRAY(type_)))
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), {"many": [value, None, value]})
        assert connection.execute(sa.select(table.c.many)).scalar_one() == [value, None, value]
    table.metadata.drop_all(engine)
    engine.dispose()


# Types of the database's own: their arrays come as one text in a raw statement, as by psycopg, and SQLAlchemy's type
# reads a list.

LABELS = ["sad", "very ok", "a,b", "NULL", "{x}", 'q"t', "back\\slash", " ", "☀"]


class Doubled(sa.TypeDecorator):
    impl = sa.Integer
    cache_ok = True

    def process_result_value(self, value: Any, _: Any) -> Any:
        return value * 2


@pytest.fixture(scope="module")
def made_up(postgres: Postgres) -> Iterator[Any]:
    """
    A connection of SQLAlchemy's to a database with an enum, a composite and a domain over every type of `ELEMENTS`.
    """
    engine = sa.create_engine(postgres.url().replace("postgresql://", "postgresql+plungepool://"))
    with engine.connect() as connection:
        labels = ", ".join("'" + label.replace("'", "''") + "'" for label in LABELS)
        connection.exec_driver_sql(f"CREATE TYPE pg_temp.mood AS ENUM ({labels})")
        connection.exec_driver_sql("CREATE TYPE pg_temp.pair AS (a int, b text)")
        for name in ELEMENTS:
            connection.exec_driver_sql(f'CREATE DOMAIN pg_temp."of {name}" AS {name}')
        yield connection
    engine.dispose()


ELEMENTS = {
    "smallint": ("-1", [sa.SmallInteger()]),
    "bigint": ("9007199254740993", [sa.BigInteger(), sa.Integer(), Doubled()]),
    "numeric": ("1.50", [sa.Numeric(), sa.Numeric(asdecimal=False)]),
    "double precision": ("1.5", [sa.Double(), sa.Float(), sa.Float(asdecimal=True)]),
    "boolean": ("true", [sa.Boolean()]),
    "bytea": ("\\xff5c", [sa.LargeBinary()]),
    "date": ("2026-01-02", [sa.Date()]),
    "timestamp": ("2026-01-02 03:04:05", [sa.DateTime(), postgresql.TIMESTAMP()]),
    "timestamptz": ("2026-01-02 03:04:05+02", [sa.DateTime(timezone=True)]),
    "time": ("03:04:05.5", [sa.Time()]),
    "interval": ("1 day 2 hours", [sa.Interval(), postgresql.INTERVAL()]),
    "uuid": ("00000000-0000-0000-0000-000000000005", [sa.Uuid(), sa.Uuid(as_uuid=False)]),
    "jsonb": ('{"a": [1, "x, y"]}', [postgresql.JSONB(), sa.JSON()]),
    "inet": ("10.0.0.1/24", [postgresql.INET()]),
    "cidr": ("10.0.0.0/8", [postgresql.CIDR()]),
    "int4range": ("[1,5)", [postgresql.INT4RANGE()]),
    "tstzrange": ('["2026-01-01 00:00:00+00",)', [postgresql.TSTZRANGE()]),
    "text": ('a "b", {c}', [sa.Text(), sa.String()]),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_arrays_of_domains_are_lists_of_their_types(made_up: Any, name: Any) -> None:
    """
    ARRAY(T) of a domain over T gives what ARRAY(T) of T gives, with the type itself and with DOMAIN, NULLs included.
    """
    sample, types = ELEMENTS[name]
    for type_ in types:
        for element in (type_, postgresql.DOMAIN(f"of {name}", type_)):
            for nested in ("ARRAY[{0}]", "ARRAY[ARRAY[{0}, {0}]]", "ARRAY[{0}, NULL]"):
                if isinstance(type_, Doubled) and "NULL" in nested:
                    continue
                literal = nested.format("'" + sample + "'")
                read = [
                    made_up.scalar(sa.select(sa.literal_column(f"{literal}::{kind}[]", postgresql.ARRAY(element))))
                    for kind in (name, f'pg_temp."of {name}"')
                ]
                assert repr(read[0]) == repr(read[1])
                assert isinstance(read[1], list)


def test_arrays_of_enums_and_composites_are_lists(made_up: Any) -> None:
    """Of any dimensions, whatever is in the labels; a composite's elements are their texts."""
    array = postgresql.ARRAY(postgresql.ENUM(*LABELS, name="mood", create_type=False))
    mood = sa.table("m", sa.column("v", array))
    made_up.exec_driver_sql("CREATE TEMP TABLE m (v pg_temp.mood[])")
    for value in (LABELS, [LABELS, LABELS[::-1]], [None, "NULL"], []):
        made_up.exec_driver_sql("INSERT INTO m VALUES ($1)", (value,))
        assert made_up.scalar(sa.select(mood.c.v)) == value
        raw = made_up.exec_driver_sql("SELECT v FROM m").scalar()
        assert isinstance(raw, str)
        made_up.exec_driver_sql("UPDATE m SET v = $1", (raw,))  # the text goes back, too
        assert made_up.scalar(sa.select(mood.c.v)) == value
        made_up.exec_driver_sql("TRUNCATE m")
    pairs = sa.literal_column("ARRAY[ROW(1, 'x y')]::pg_temp.pair[]", postgresql.ARRAY(sa.Text))
    assert made_up.scalar(sa.select(pairs)) == ['(1,"x y")']


def test_options_of_the_engine_hold_within_arrays_of_domains(postgres: Postgres) -> None:
    """A json_deserializer, and addresses as text."""
    url = postgres.url().replace("postgresql://", "postgresql+plungepool://")
    engine = sa.create_engine(url, json_deserializer=lambda text: f"read {text}", native_inet_types=False)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DOMAIN pg_temp.doc AS jsonb; CREATE DOMAIN pg_temp.address AS inet")
        for sample, element, expected in (
            ("{1}", postgresql.JSONB(), ["read 1"]),
            ("{10.0.0.1}", postgresql.INET(), ["10.0.0.1"]),
        ):
            name = "doc" if expected == ["read 1"] else "address"
            column = sa.literal_column(f"'{sample}'::pg_temp.{name}[]", postgresql.ARRAY(element))
            assert connection.scalar(sa.select(column)) == expected
    engine.dispose()
