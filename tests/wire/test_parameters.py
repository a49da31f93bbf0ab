"""A parameter means what a literal of its Python type would, wherever it stands and however often."""

from __future__ import annotations

import enum
import random
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY, HSTORE, JSONB
from sqlalchemy.orm import Session, declarative_base

from plungepool.compiler import _in_where
from plungepool.wire.parameters import cut
from plungepool.wire.values import BOOL, FLOAT8, INT4, INT8, NUMERIC, TIMESTAMPTZ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool import wire
    from plungepool_toolkit.postgres import Postgres

NOON = datetime(2026, 11, 26, 12, 0, 0, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def urls(postgres: Postgres) -> Any:
    """One server by our dialect and by psycopg's."""
    postgres.execute("CREATE EXTENSION IF NOT EXISTS hstore")
    url = postgres.url()
    return (
        url.replace("postgresql://", "postgresql+plungepool://"),
        url.replace("postgresql://", "postgresql+psycopg://"),
    )


@pytest.fixture(scope="module")
def engines(urls: Any) -> Iterator[Any]:
    made = [sa.create_engine(url) for url in urls]
    yield made
    for engine in made:
        engine.dispose()


@pytest.fixture
def connection(engines: Any) -> Iterator[Any]:
    with engines[0].connect() as connection:
        connection.execute(
            text(
                "CREATE TEMP TABLE u (id int, big bigint, email varchar(80), note text, ts timestamp, tz timestamptz,"
                " amount numeric(20, 2), f float8, flag boolean, doc jsonb, day date, id2 uuid, data bytea)"
            )
        )
        connection.execute(
            text("INSERT INTO u (id, email, tz, day, f) VALUES (1, 'a', '2026-11-26 12:00+00', '2026-11-26', 1.5)")
        )
        yield connection


@pytest.mark.parametrize(
    ("statement", "values", "expected"),
    [
        ("INSERT INTO u(email) SELECT :m WHERE NOT EXISTS (SELECT 1 FROM u WHERE email = :m) RETURNING email", {"m": "x"}, "x"),
        ("INSERT INTO u(id, big) VALUES (:n, :n) RETURNING big", {"n": 7}, 7),
        ("INSERT INTO u(amount, big) VALUES (:n, :n) RETURNING amount", {"n": 7}, Decimal("7.00")),
        ("INSERT INTO u(ts, tz) VALUES (:t, :t) RETURNING tz", {"t": NOON}, NOON),
        ("INSERT INTO u(email, note) VALUES (:s, lower(:s)) RETURNING note", {"s": "AB"}, "ab"),
        ("SELECT greatest(:a, :b)", {"a": 9, "b": 10}, 10),
        ("SELECT :a + :b", {"a": 1, "b": 2}, 3),
        ("SELECT :a || :b", {"a": "x", "b": "y"}, "xy"),
        ("SELECT date_trunc('day', :d)", {"d": NOON}, datetime(2026, 11, 26, tzinfo=UTC)),
        ("SELECT :d - :t", {"d": NOON, "t": timedelta(hours=1)}, NOON - timedelta(hours=1)),
        ("SELECT count(*) FROM u WHERE :x IS NULL OR email = :x", {"x": None}, 1),
        ("SELECT count(*) FROM u WHERE :x is null OR email = :x", {"x": "a"}, 1),
        ("SELECT count(*) FROM u WHERE :x IS NOT NULL AND id = :x", {"x": 1}, 1),
        ("SELECT jsonb_build_object('a', :n) ->> 'a'", {"n": 5}, "5"),
        ("SELECT count(*) FROM u WHERE id < :x", {"x": 1.5}, 1),
        ("SELECT sum(x) FROM unnest(:list) AS x", {"list": [1, 2, None]}, 3),
        ("SELECT count(*) FROM unnest(:list) AS x", {"list": [uuid.uuid4(), uuid.uuid4()]}, 2),
        ("SELECT max(x) FROM unnest(:list) AS x", {"list": [date(2026, 1, 2), datetime(2026, 1, 1, 5)]}, datetime(2026, 1, 2)),
        ("SELECT max(x) FROM unnest(:list) AS x", {"list": [date(2026, 1, 2), None, NOON]}, NOON),
        ("SELECT count(x) FROM unnest(:list) AS x", {"list": [ip_address("10.0.0.1"), ip_network("10.0.0.0/8")]}, 2),
        ("SELECT substring(:s FROM :n)", {"s": "abc", "n": 2}, "bc"),
        ("SELECT count(*) FROM u WHERE id = 2147483648 - :n", {"n": 2**31 - 1}, 1),
        ("SELECT :n", {"n": 2**40}, 2**40),
        ("SELECT :n", {"n": 2**70}, Decimal(2**70)),
        ("SELECT pg_typeof(:n)::text", {"n": 2**31 - 1}, "integer"),
        ("SELECT pg_typeof(:n)::text", {"n": -(2**31) - 1}, "bigint"),
        ("SELECT count(*) FROM u WHERE tz >= :d AND tz < :d + interval '1 day'", {"d": NOON - timedelta(hours=1)}, 1),
        ("SELECT count(*) FROM u WHERE day = :d", {"d": date(2026, 11, 26)}, 1),
        ("SELECT count(*) FROM u WHERE day BETWEEN :d AND :d + 1", {"d": date(2026, 11, 26)}, 1),
        ("SELECT CASE WHEN :flag THEN :a ELSE :b END", {"flag": True, "a": 1, "b": 2}, 1),
        ("SELECT date_trunc(:unit, tz) FROM u GROUP BY date_trunc(:unit, tz)", {"unit": "day"}, NOON.replace(hour=0, microsecond=0)),
        ("SELECT DISTINCT f * :n FROM u ORDER BY f * :n", {"n": 2}, 3.0),
        ("SELECT lower(:s), count(*) FROM u WHERE :s = 'all' OR note = :s OR day = :s GROUP BY lower(:s)", {"s": "2026-11-26"}, "2026-11-26"),
        ("SELECT DISTINCT upper(:s) FROM u WHERE (:s = '') OR note IS NOT DISTINCT FROM :s OR f = :s ORDER BY upper(:s)", {"s": "1.5"}, "1.5"),
        ("WITH a AS (SELECT DISTINCT upper(:s) AS up FROM u WHERE f = :s OR note = ')' -- it's\n) SELECT up FROM a, u WHERE f = :s", {"s": "1.5"}, "1.5"),
        ("SELECT array_length(:l, 1)", {"l": [[1, 2], [3, 4]]}, 2),
        ("SELECT :a = ANY(:l)", {"a": "x", "l": ["x", "y"]}, True),
        ("SELECT host(:a)", {"a": ip_address("10.0.0.1")}, "10.0.0.1"),
        ("SELECT masklen(:a)", {"a": ip_network("10.0.0.0/8")}, 8),
        ("SELECT extract(hour FROM :t)::int", {"t": time(13, 5)}, 13),
        ("SELECT length(:b)", {"b": b"\0\1"}, 2),
        ("SELECT * FROM generate_series(1, 5) LIMIT :n OFFSET :n", {"n": 1}, 2),
        ("SELECT v FROM (VALUES (:a), (:b)) AS t(v) ORDER BY v LIMIT 1", {"a": 10, "b": 9}, 9),
    ],
)  # fmt: skip
def test_parameter_means_what_its_literal_means(
    connection: wire.Connection, statement: str, values: Any, expected: Any
) -> None:
    """Functions, operators, two places that want two types, one name for several columns: as with literals."""
    assert connection.execute(text(statement), values).scalar() == expected


def test_expressions_that_group_stay_equal(engines: Any) -> None:
    """
    The same expression in SELECT, GROUP BY and ORDER BY is one to the server, also in a subquery, by Core and by text.
    """
    for engine in engines:
        with engine.connect() as connection:
            numbers = func.generate_series(1, 6).table_valued("n").render_derived()
            third = func.mod(numbers.c.n, sa.literal(3))
            label = func.concat(sa.cast(sa.literal("r"), sa.Text), third)
            query = select(label, func.count()).group_by(label).order_by(label)
            assert connection.execute(query).all() == [("r0", 2), ("r1", 2), ("r2", 2)]
            assert connection.execute(select(func.max(query.subquery().c[1]))).scalar() == 2
            distinct = select(label).distinct().order_by(label)
            assert connection.execute(distinct).scalars().all() == ["r0", "r1", "r2"]


@pytest.mark.parametrize(
    ("expression", "values"),
    [
        ("j->'l'->:i IS NOT NULL", {"i": 0}),
        ("j->'l'->>:i IS NULL", {"i": 1}),
        ("a = :x IS NULL", {"x": 1}),
        ("a + :x IS NOT NULL", {"x": 1}),
        ("ts + :x IS NULL", {"x": timedelta(days=1)}),
        ("a BETWEEN 0 AND :x IS NOT NULL", {"x": 5}),
        ("a BETWEEN 0 AND 5 AND :x IS NOT NULL", {"x": 5}),
        ("coalesce(a, :x) = :x IS NOT NULL", {"x": 1}),
        ("NOT :x IS NULL AND a = :x", {"x": 1}),
    ],
)
def test_null_tests_are_of_the_whole_operand(engines: Any, expression: str, values: Any) -> None:
    """
    IS NULL binds looser than other operators: only a name by itself is tested as text, and an index stays an index.
    """
    found = []
    for engine in engines:
        with engine.connect() as connection:
            connection.execute(text("CREATE TEMP TABLE n (a int, ts timestamp, j jsonb)"))
            connection.execute(text('INSERT INTO n VALUES (1, now(), \'{"l": [1, "x"]}\'), (NULL, NULL, NULL)'))
            if engine is engines[1] and expression.startswith("NOT"):
                found.append(1)  # psycopg cannot
            else:
                found.append(connection.execute(text(f"SELECT count(*) FROM n WHERE {expression}"), values).scalar())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("statement", "apart"),
    [
        ("SELECT f(:a) FROM t WHERE x = :b AND f(:c) GROUP BY f(:d) HAVING f(:e) ORDER BY f(:g) LIMIT :h", "bc"),
        ("SELECT DISTINCT count(*) FILTER (WHERE x = :a), (SELECT y FROM u WHERE z = :b) FROM t WHERE x = :c", "c"),
        (
            "SELECT DISTINCT 1 FROM (SELECT :a FROM u WHERE z = :b) s JOIN v ON y = :c, f(:d) WHERE x IN (SELECT :e WHERE :g)",
            "bg",
        ),
        (
            "WITH w AS (SELECT x FROM t WHERE y = :a GROUP BY x) SELECT DISTINCT x FROM w WHERE y = :b UNION SELECT :c FROM w WHERE :d",
            "abd",
        ),
        (
            "SELECT x IS DISTINCT FROM :a, extract(year FROM :b) FROM t WHERE x IS DISTINCT FROM :c AND extract(day FROM :d) > 1",
            "cd",
        ),
        (
            "SELECT DISTINCT ':a (', \"b:b(\", $$:c($$ /* ( */ FROM t -- (\n WHERE x = '(' AND y::text = :d AND z = ':e'",
            "d",
        ),
        ("INSERT INTO t SELECT DISTINCT :a FROM u WHERE x = :b ON CONFLICT DO NOTHING; SELECT :c", "b"),
        ("UPDATE t SET x = :a FROM (SELECT DISTINCT y FROM u WHERE z = :b) s WHERE t.y = :c", "b"),
        ("SELECT ) DISTINCT ) FROM t WHERE :a ( ", "a"),
    ],
)
def test_where_of_a_text_that_groups_is_compared_with_nothing(statement: str, apart: Any) -> None:
    """Only what stands in a WHERE, and in nothing that is compared as a whole, may be a parameter of its own."""
    found = list(_in_where(statement))
    assert "".join(name for name, _ in found) == apart
    assert all(statement[place - 1 :].startswith(f":{name}") for name, place in found)


def test_distinct_aggregates_and_prefixes_stay_equal(engines: Any) -> None:
    """DISTINCT in an aggregate with its ORDER BY, in a filter, as a prefix: one expression is one to the server."""
    from sqlalchemy.dialects.postgresql import aggregate_order_by

    for engine in engines:
        with engine.connect() as connection:
            words = sa.values(sa.column("s", sa.String), name="words").data([("b",), ("a",), (None,), ("a",)])
            expression = func.coalesce(words.c.s, "x")
            gathered = func.array_agg(aggregate_order_by(sa.distinct(expression), expression))
            assert connection.execute(select(gathered)).scalar() == ["a", "b", "x"]
            filtered = gathered.filter(func.coalesce(words.c.s, "x") != "a")
            assert connection.execute(select(filtered)).scalar() == ["b", "x"]
            prefixed = select(expression).prefix_with("DISTINCT").order_by(expression)
            assert connection.execute(prefixed).scalars().all() == ["a", "b", "x"]
            grouped = text("SELECT n % :k, count(*) FROM generate_series(1, 4) n GROUP /* c */ BY n % :k ORDER BY 1")
            assert connection.execute(grouped, {"k": 2}).all() == [(0, 2), (1, 2)]


@pytest.mark.parametrize("value", [{1, 2}, frozenset(), object(), (n for n in range(3)), [{1}], 1 + 2j])
def test_unknown_objects_are_refused_by_name(connection: wire.Connection, value: Any) -> None:
    """
    Nothing is sent for an object that stands for no value of PostgreSQL; the error names its type, never the object.
    """
    inner = value[0] if isinstance(value, list) else value
    with pytest.raises(exc.ProgrammingError, match=r"parameter 1 .*pass") as caught:
        connection.execute(text("SELECT :x"), {"x": value})
    assert type(value).__name__ in str(caught.value)
    assert ("list(...)" in str(caught.value)) is (isinstance(inner, (set, frozenset)) or hasattr(inner, "__next__"))
    assert repr(value) not in str(caught.value.orig)


def test_secret_that_hides_is_not_stored(connection: wire.Connection) -> None:
    """pydantic's SecretStr shows asterisks to str(): an object of any class is an error, not its text."""

    class SecretStr:
        def __str__(self) -> str:
            return "**********"

    with pytest.raises(exc.ProgrammingError, match="SecretStr"):
        connection.execute(text("INSERT INTO u(email) VALUES (:x)"), {"x": SecretStr()})


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    ("value", "expected"), [(Colour.RED, "red"), (Number.TWO, "2"), (type("Name", (str,), {})("x"), "x")]
)
def test_subclasses_and_enums_are_their_values(connection: wire.Connection, value: Any, expected: Any) -> None:
    """An enum is its value; a subclass of a known type is one of that type."""
    assert connection.execute(text("SELECT CAST(:x AS text)"), {"x": value}).scalar() == expected


BASE = declarative_base()


class Order(BASE):
    __tablename__ = "typed_orders"
    id = sa.Column(sa.Integer, primary_key=True)
    quantity = sa.Column(sa.Integer)
    small = sa.Column(sa.SmallInteger)
    big = sa.Column(sa.BigInteger)
    data = sa.Column(sa.LargeBinary)
    note = sa.Column(sa.String(20))
    price = sa.Column(sa.Numeric(10, 2))
    doc = sa.Column(JSONB)


@pytest.fixture
def orders(engines: Any) -> Iterator[Any]:
    BASE.metadata.drop_all(engines[0])
    BASE.metadata.create_all(engines[0])
    yield engines
    BASE.metadata.drop_all(engines[0])


@pytest.mark.parametrize("value", [5.0, Decimal("5.0"), True, 5])
def test_numbers_go_into_integer_columns(orders: Any, value: Any) -> None:
    """A whole float or Decimal and a boolean are stored as psycopg stores them, and are found again."""
    found = []
    for number, engine in enumerate(orders):
        with Session(engine) as session, session.begin():
            other = None if value is True else value  # PostgreSQL has no cast from boolean to the other sizes
            session.add(Order(id=number + 1, quantity=value, small=other, big=other, price=Decimal("1.10")))
        with Session(engine) as session:
            order = session.get(Order, float(number + 1))
            found.append((order.quantity, order.small, order.big))
            if value is not True:  # which SQLAlchemy writes as `= true` itself
                assert session.scalars(select(Order.id).where(Order.quantity == value)).all()
    assert found[0] == found[1]


def test_binary_takes_bytes_only(orders: Any) -> None:
    """The int 5 is no five NUL bytes."""
    for value in (5, "text"):
        with (
            Session(orders[0]) as session,
            pytest.raises((TypeError, exc.StatementError), match=r"bytes-like|memoryview"),
        ):
            session.add(Order(id=1, data=value))
            session.flush()
    for value in (b"x", bytearray(b"x"), memoryview(b"x")):
        with Session(orders[0]) as session:
            session.add(Order(id=1, data=value))
            session.flush()
            assert session.scalar(select(Order.data)) == b"x"


def test_serializer_may_give_bytes(urls: Any) -> None:
    """orjson.dumps gives bytes: JSON is text to the server all the same."""
    import json

    engine = sa.create_engine(urls[0], json_serializer=lambda value: json.dumps(value).encode())
    with engine.connect() as connection:
        assert connection.execute(select(sa.literal({"a": [1]}, JSONB))).scalar() == {"a": [1]}
    engine.dispose()


def test_rows_of_executemany_agree_on_a_type(connection: wire.Connection) -> None:
    """Integers of all sizes, NULLs and rows whose types differ are stored as each would be alone."""
    rows = [
        {"a": 1, "b": None, "c": 1},
        {"a": 2**40, "b": NOON, "c": 2.5},
        {"a": None, "b": None, "c": Decimal("3.25")},
    ]
    connection.execute(text("INSERT INTO u(big, tz, amount, note) VALUES (:a, :b, :c, 'many')"), rows)
    found = connection.execute(text("SELECT big, tz, amount FROM u WHERE note = 'many' ORDER BY amount")).all()
    assert found == [(1, None, Decimal("1.00")), (2**40, NOON, Decimal("2.50")), (None, None, Decimal("3.25"))]


def test_one_statement_takes_values_of_changing_types(connection: wire.Connection) -> None:
    """SQLAlchemy's cache keeps the statement; what a parameter is, is decided anew at each execution."""
    query = select(sa.bindparam("x"))
    for value in (1, "a", None, 2.5, Decimal("1.5"), True, NOON, [1, 2], 2**40):
        assert connection.execute(query, {"x": value}).scalar() == value


def test_streams_and_expanding_lists_and_returning_go_on_working(orders: Any) -> None:
    """Server-side cursors, IN lists, insertmanyvalues and literal_execute with repeated names."""
    engine = orders[0]
    with Session(engine) as session, session.begin():
        session.add_all([Order(id=n, quantity=n % 3, note=f"n{n}", doc={"n": n}) for n in range(1, 1500)])
    with engine.connect() as connection:
        stream = connection.execution_options(yield_per=100).execute(
            text("SELECT id FROM typed_orders WHERE id > :n AND quantity <> :n ORDER BY id"), {"n": 2}
        )
        assert next(stream)[0] == 3
        stream.close()
        wanted = sa.bindparam("ids", expanding=True)
        query = select(func.count()).where(Order.id.in_(wanted) | Order.quantity.in_(wanted))
        assert connection.execute(query, {"ids": [1, 2]}).scalar() > 2
        limited = (
            select(Order.id)
            .order_by(Order.id)
            .limit(sa.bindparam("n", type_=sa.Integer, literal_execute=True))
            .offset(1)
        )
        assert connection.execute(limited, {"n": 1}).scalars().all() == [2]


ARRAYS = {
    "hstore": ['"a"=>"1"', '"b"=>"2"'],
    "bit(3)": ["101", "000"],
    "macaddr": ["08:00:2b:01:02:03", "08:00:2b:01:02:04"],
    "tsvector": ["'a' 'b'", "'c'"],
    "box": ["(1,1),(0,0)", "(2,2),(1,1)"],
    "point": [(1.0, 2.0), (3.0, 4.0)],
    "int4multirange": None,
}


@pytest.mark.parametrize("json", ["INSERT INTO u (doc) VALUES (:none)", "SELECT CAST(:none AS json)"])
def test_an_empty_list_is_an_array_and_never_json(connection: wire.Connection, json: str) -> None:
    """It is compared and stored as an array of whatever type; for JSON it is the error that any other list is."""
    for kind in ("int[]", "text[]", "box[]", "timestamptz[]", "jsonb[]", "hstore[]"):
        assert connection.execute(text(f"SELECT cardinality(CAST(:none AS {kind}))"), {"none": []}).scalar() == 0
    assert connection.execute(text("SELECT 1 = ANY (:none)"), {"none": []}).scalar() is False
    with pytest.raises(sa.exc.DBAPIError, match=r"22P02|42804"):
        connection.execute(text(json), {"none": []})
    connection.rollback()


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_come_as_lists_and_go_back(connection: wire.Connection, kind: str) -> None:
    """
    Arrays of the server's own types without a reader of their own are lists of their texts, and what was read can be
    written.
    """
    values = ARRAYS[kind]
    if values is None:
        values = [
            connection.execute(text(f"SELECT '{one}'::int4multirange")).scalar() for one in ("{[1,2),[5,7)}", "{}")
        ]
    connection.execute(text(f"CREATE TEMP TABLE arrays (one {kind}, many {kind}[])"))
    connection.execute(text("INSERT INTO arrays VALUES (:one, :many)"), {"one": values[0], "many": values})
    one, many = connection.execute(text("SELECT one, many FROM arrays")).one()
    assert one == values[0]
    connection.execute(text("DROP TABLE arrays"))
    if kind != "hstore":  # an extension's array is text in a raw statement
        assert many == values


def test_arrays_of_made_up_types_are_lists_by_sqlalchemys_type(connection: wire.Connection) -> None:
    """An extension's type, a domain and an enum: ARRAY(...) reads a list, never single characters."""
    connection.execute(text("CREATE DOMAIN pg_temp.word AS text"))
    connection.execute(text("CREATE TYPE pg_temp.mood AS ENUM ('sad', 'very ok')"))
    read = select(
        sa.literal_column("ARRAY['a=>1', 'b=>2']::hstore[]", ARRAY(HSTORE)),
        sa.literal_column("ARRAY['x,y', '{z}']::pg_temp.word[]", ARRAY(sa.Text)),
        sa.literal_column("ARRAY['sad', 'very ok', NULL]::pg_temp.mood[]", ARRAY(sa.Text)),
    )
    assert connection.execute(read).one() == ([{"a": "1"}, {"b": "2"}], ["x,y", "{z}"], ["sad", "very ok", None])


VALUES = [
    (1, "1"), (-3, "-3"), (2**40, str(2**40)), (2.5, "2.5::float8"), (Decimal("1.25"), "1.25"), ("7", "'7'"), ("abc", "'abc'"),
    (None, "NULL"), (True, "true"), (date(2026, 1, 2), "date '2026-01-02'"), (NOON, "timestamptz '2026-11-26 12:00:00.000005+00'"),
    (datetime(2026, 1, 2, 3, 4, 5), "timestamp '2026-01-02 03:04:05'"), (timedelta(days=1, hours=2), "interval '1 day 2 hours'"),
    ([1, 2], "'{1,2}'::int[]"), (["a", "b"], "'{a,b}'"), (uuid.UUID(int=5), "'00000000-0000-0000-0000-000000000005'::uuid"),
]  # fmt: skip
TEMPLATES = [
    ":a + :b", ":a - :b", ":a * :b", ":a || :b", ":a = :b", ":a < :b", "coalesce(:a, :b)", "greatest(:a, :b, :a)", "nullif(:a, :b)",
    "CASE WHEN :a = :b THEN :a ELSE :b END", ":a = ANY(:b)", ":a IN (:b, :a)", "abs(:a)", "length(:a)", "upper(:a)",
    "date_trunc('hour', :a)", "extract(year FROM :a)", "array_append(:a, :b)", "unnest(:a)", "round(:a)", "substring(:a FROM 1)",
    ":a::text", "CAST(:a AS numeric)", "to_jsonb(:a)", "pg_typeof(:a)::text", "(SELECT max(v) FROM (VALUES (:a), (:b)) t(v))",
    "(SELECT id FROM t WHERE id = :a LIMIT 1)", "(SELECT name FROM t WHERE name = :a OR id > :b LIMIT 1)", "(SELECT count(*) FROM t WHERE at >= :a)",
    "(SELECT sum(n) FROM (SELECT id AS n FROM t ORDER BY id LIMIT :a) s)", ":a BETWEEN :b AND :a", ":a IS NULL OR :a = :b", ":a IS NOT DISTINCT FROM :b",
    "(SELECT amount FROM t WHERE amount = :a OR amount = :b LIMIT 1)", "(SELECT at + :a FROM t LIMIT 1)", "concat(:a, :b)", "array_length(:a, 1)", "(:a, :b) = (:b, :a)",
    "(SELECT upper(:a) FROM t WHERE name = :a OR id = :b OR at > :a GROUP BY upper(:a))", "(SELECT count(DISTINCT coalesce(:a, :b)) FROM t WHERE at >= :a OR name = :a)",
    "(SELECT DISTINCT concat(:a, name) FROM t WHERE id = :a OR amount > :b ORDER BY concat(:a, name) LIMIT 1)",
]  # fmt: skip


def outcome(connection: wire.Connection, statement: Any, values: dict[str, Any]) -> tuple[str, Any]:
    savepoint = connection.begin_nested()
    try:
        row: tuple[str, Any] = ("row", connection.execute(text(f"SELECT {statement}"), values).scalars().all())
    except exc.SQLAlchemyError as error:
        row = ("error", getattr(error.orig, "sqlstate", type(error).__name__))
    savepoint.rollback()
    return row


def test_what_works_with_psycopg_works_here_and_as_with_literals(engines: Any) -> None:
    """1,500 generated statements: no row differs from psycopg's, and none from that of the statement with literals."""
    random_ = random.Random(8)
    worked = 0
    with engines[0].connect() as ours, engines[1].connect() as psycopgs:
        for connection in (ours, psycopgs):
            connection.execute(text("SET TimeZone TO 'UTC'"))
            connection.execute(
                text("CREATE TEMP TABLE t (id int, name varchar(9), at timestamptz, amount numeric(9, 2))")
            )
            connection.execute(
                text("INSERT INTO t VALUES (1, 'abc', '2026-11-26 12:00+00', 1.25), (7, '7', now(), NULL)")
            )
        for _ in range(1500):
            template = random_.choice(TEMPLATES)
            (a, literal_a), (b, literal_b) = random_.choice(VALUES), random_.choice(VALUES)
            values = {name: value for name, value in (("a", a), ("b", b)) if f":{name}" in template}
            here, there = outcome(ours, template, values), outcome(psycopgs, template, values)
            with_literals = outcome(
                ours, template.replace(":a::", f"({literal_a})::").replace(":a", literal_a).replace(":b", literal_b), {}
            )
            if (
                "pg_typeof" in template
            ):  # psycopg has the smallest integer type, a literal has not; an unknown one is text to neither
                continue
            if there[0] == "row":
                assert here == there, (template, values)
                worked += 1
            elif here[0] == "row":
                assert with_literals[0] == "error" or here == with_literals, (template, values)
    assert worked > 300


KINDS = {
    "number": [1, -3, 2**40, 2**70, 2.5, Decimal("2.50"), 3.0, True, False, "7", None],
    "moment": [
        date(2026, 1, 2), datetime(2026, 1, 2, 3, 4, 5), NOON, "2026-05-06", time(3, 4), time(3, 4, tzinfo=UTC), timedelta(hours=5), None,
    ],
    "text": ["abc", "7", 7, 2.0, True, None, b"x", uuid.UUID(int=5), date(2026, 1, 2), Decimal("1.0"), ip_address("10.0.0.1")],
    "list": [[1, 2], [2**40], [1.5], [1, 2.5], ["a", "7"], [], [None], [True], [1, True], [NOON, date(2026, 1, 2)], None, "{3}", 3],
}  # fmt: skip
# What is executed, and the kinds of values that can go there; some are tried with others, too.
PLACES = {
    "INSERT INTO kept (number) VALUES (:a)": ("number",),
    "INSERT INTO kept (number, note) VALUES (:a, :b)": ("number", "text"),
    "INSERT INTO kept (flag) VALUES (:a)": ("number",),
    "INSERT INTO kept (whole, big, note) VALUES (:a, :b, 'x, (y)')": ("number", "number"),
    "INSERT INTO kept (note) VALUES (:a), (:b)": ("text", "number"),
    "INSERT INTO kept (note, number) VALUES (upper(:a), :b)": ("text", "number"),
    "INSERT INTO kept (f) VALUES (:a)": ("number",),
    "INSERT INTO kept (at, zoned, day) VALUES (:a, :b, :a)": ("moment", "moment"),
    "INSERT INTO kept (spent) VALUES (:a)": ("moment",),
    "INSERT INTO kept (hour) VALUES (:a)": ("moment",),
    "INSERT INTO kept (many) VALUES (:a)": ("list",),
    "INSERT INTO kept (words) VALUES (:a)": ("list",),
    "INSERT INTO kept (doc) VALUES (to_jsonb(:a))": ("number",),
    "INSERT INTO kept (note) VALUES (coalesce(:a, :b))": ("text", "text"),
    "INSERT INTO kept (note) SELECT :a || :b": ("text", "text"),
    "INSERT INTO kept (many) SELECT :a || :b": ("list", "number"),
    "INSERT INTO kept (note) VALUES (greatest(:a, :b))": ("number", "number"),
    "INSERT INTO kept (number) VALUES (:a + :b)": ("number", "number"),
    "INSERT INTO kept (zoned) VALUES (:a + :b)": ("moment", "moment"),
    "INSERT INTO kept (whole) VALUES (CAST(:a AS integer))": ("number",),
    "INSERT INTO kept (whole, note) VALUES ((:a)::integer, (:b)::text)": ("number", "text"),
    "INSERT INTO kept (note) VALUES ((:a)::numeric(9, 1)), (to_hex(:b))": ("number", "number"),
    "INSERT INTO kept (note) VALUES (pg_typeof(:a + 1)::text)": ("number",),
    "INSERT INTO kept (note) SELECT x::text FROM unnest(:a) x": ("list",),
    "INSERT INTO kept (note) SELECT v::text FROM (VALUES (:a), (:b)) t(v)": ("number", "number"),
    "UPDATE kept SET note = :a WHERE whole = :b": ("text", "number"),
    "UPDATE kept SET whole = whole + :a WHERE number >= :b": ("number", "number"),
    "DELETE FROM kept WHERE whole = :a OR note = :b": ("number", "text"),
    "UPDATE kept SET note = CASE WHEN :a > :b THEN 'more' ELSE 'less' END": ("number", "number"),
    "INSERT INTO kept (number) VALUES (:a) RETURNING number": ("number",),
}
KEPT = (
    "CREATE TEMP TABLE kept (number numeric, note text, flag boolean, whole int, big bigint, f float8, at timestamp, zoned timestamptz,"
    " day date, spent interval, hour time, many int[], words text[], doc jsonb)"
)


def kept(connection: wire.Connection, statement: str, *executions: Any) -> tuple[str, Any]:
    """What a table holds after a statement was executed with each of `executions`, or the SQLSTATE of its error."""
    savepoint = connection.begin_nested()
    try:
        connection.execute(text("INSERT INTO kept (whole, note, number) VALUES (1, '7', 2.5), (7, 'abc', 9)"))
        for parameters in executions:
            connection.execute(statement, parameters)
        rows = sorted(map(repr, connection.execute(text("SELECT * FROM kept")).all()))
        return ("rows", rows)
    except exc.SQLAlchemyError as error:
        return ("error", getattr(getattr(error, "orig", None), "sqlstate", None))
    finally:
        savepoint.rollback()


def test_each_row_of_executemany_means_what_it_means_alone(engines: Any) -> None:
    """
    1,500 generated lists of rows of all kinds: as row by row, the error included, and as by psycopg where that can.
    """
    random_ = random.Random(9)
    worked = mixed = 0
    with engines[0].connect() as ours, engines[1].connect() as psycopgs:
        for connection in (ours, psycopgs):
            connection.execute(text("SET TimeZone TO 'Asia/Kolkata'"))
            connection.execute(text(KEPT))
        for _ in range(1500):
            place, kinds = random_.choice(list(PLACES.items()))
            choices = [random_.sample(KINDS[kind], 3) for kind in kinds]
            if random_.random() < 0.1:
                choices[0] = KINDS[random_.choice(list(KINDS))]
            rows = [dict(zip("ab", map(random_.choice, choices), strict=False)) for _ in range(random_.randint(2, 6))]
            statement = text(place)
            here = kept(ours, statement, rows)
            alone = kept(ours, statement, *rows)
            there = kept(psycopgs, statement, rows)
            assert here == alone, (place, rows)
            if there[0] == "rows" and "pg_typeof" not in place:  # psycopg declares the smallest integer type
                assert here == there, (place, rows)
            worked += here[0] == "rows"
            mixed += here[0] == "rows" and len({tuple(map(type, row.values())) for row in rows}) > 1
    assert worked > 300
    assert mixed > 200


def test_rows_of_all_types_are_one_flight(urls: Any) -> None:
    """
    Where the types change the statement is parsed anew in the same exchange, and each row comes back as of its own
    type.
    """
    engine = sa.create_engine(urls[0])
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        connection.execute(text("SELECT 1"))
        before = driver.flights
        with driver.cursor() as cursor:
            rows = [1, "a", None, 2, 2.5, NOON, NOON, [1, None], True, "b"]
            cursor.executemany("SELECT $1", [(value,) for value in rows])
            assert cursor.fetchall() == [(value,) for value in rows]
            assert cursor.rowcount == len(rows)
            cursor.executemany("SELECT g, $1 FROM generate_series(1, $2) g", [("x", 2), (5, 0), (5, 2)])
            assert cursor.fetchall() == [(1, "x"), (2, "x"), (1, 5), (2, 5)]
        assert driver.flights == before + 2
    engine.dispose()


@pytest.mark.parametrize(
    ("statement", "rows", "expected"),
    [
        ("INSERT INTO t VALUES ($1, $2)", [(1, None), (None, "x"), (2**40, "y"), (3, None)], [([INT8, 0], 4)]),
        ('INSERT INTO "a b".t VALUES ($1)', [(1,), (None,), (2,)], [([INT4], 1), ([0], 1), ([INT4], 1)]),
        ("INSERT INTO a.t AS u (b, c) VALUES ('(', $1::int, DEFAULT, $2)", [(None, None), (1, NOON)], [([INT4, TIMESTAMPTZ], 2)]),
        ("INSERT INTO t VALUES ($1, lower($2), $3)", [(1, 1, 1), (None, 1, 1), (1, 1, None)], [([INT4] * 3, 2), ([INT4, INT4, 0], 1)]),
        ("INSERT INTO t VALUES ($1), ($2)", [(Decimal(1), 1), (2, None)], [([NUMERIC, INT4], 2)]),
        ("INSERT INTO t VALUES ($1) ON CONFLICT DO UPDATE SET n = $1 + 1", [(1,), (None,)], [([INT4], 1), ([0], 1)]),
        ("INSERT INTO t SELECT v FROM (VALUES ($1)) s(v)", [(1,), (None,)], [([INT4], 1), ([0], 1)]),
        ("UPDATE t SET a = $1::int WHERE b = $2", [(1, 1), (None, 1), (2, 2**40)], [([INT4, INT4], 2), ([INT4, INT8], 1)]),
        ("UPDATE t SET a = $1::int + $1", [(1,), (None,)], [([INT4], 1), ([0], 1)]),
        ("UPDATE t SET a = $1::int, b = $11", [(1, *[1] * 10), (None, *[1] * 10)], [([INT4] * 11, 2)]),
        ("INSERT INTO t VALUES ($1)", [(1,), (2.5,), (True,), ("x",)], [([INT4], 1), ([FLOAT8], 1), ([BOOL], 1), ([0], 1)]),
        ("INSERT INTO t VALUES ($1)", [("x",), (None,), (1,)], [([0], 2), ([INT4], 1)]),
    ],
)  # fmt: skip
def test_rows_share_a_type_only_where_it_means_the_same(statement: str, rows: Any, expected: Any) -> None:
    """A NULL and integers of several sizes are one run where a cast or a column takes them, and nowhere else."""
    assert [(types, len(run)) for types, run in cut(statement, rows)] == expected
    assert [row for _, run in cut(statement, rows) for row in run] == rows
