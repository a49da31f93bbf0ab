"""Why a statement is slow, asked of a real planner; nothing is executed, and nothing is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from plungepool import plans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plungepool_toolkit.fixtures import Database
    from plungepool_toolkit.postgres import Postgres

    Run = Callable[[str], list[list[object]]]


@pytest.fixture
def run(database: Database) -> Iterator[Run]:
    """A session in a database with one large table and one small one."""
    with database.server.session(database=database.name) as session:
        session("CREATE TABLE orders (id int PRIMARY KEY, customer int, note text, placed date)")
        session("INSERT INTO orders SELECT n, n % 1000, 'n', '2026-01-01' FROM generate_series(1, 20000) n")
        session("CREATE TABLE small (id int)")
        session("ANALYZE")
        yield session


def test_a_large_table_that_is_read_whole_wants_an_index(run: Run) -> None:
    """The sentence that is advised can be executed as it is, and after it nothing is advised."""
    sql = "SELECT * FROM orders WHERE customer = $1 AND note <> 'a literal' ORDER BY placed DESC LIMIT 10"
    found = plans.why(sql, (), run)
    assert [(scan.name, rows) for scan, rows in found.scans] == [("public.orders", 20000)]
    assert found.indexes == ["CREATE INDEX CONCURRENTLY ON public.orders (customer, placed)"]
    assert found.plan == "Limit(Sort(Seq Scan on public.orders))"
    assert "a literal" not in str(found.as_dict())
    run(found.indexes[0])
    served = plans.why(sql, (), run)
    assert served.indexes == []
    assert "Index Scan" in served.plan


def test_a_small_table_wants_none(run: Run) -> None:
    """Reading it whole is the best plan."""
    found = plans.why("SELECT * FROM small WHERE id = $1", (), run)
    assert found.as_dict() == {
        "plan": "Seq Scan on public.small",
        "estimated_rows": found.estimated_rows,
        "full_scans": [],
        "indexes": [],
    }


def test_an_index_that_the_planner_spurns_is_advised_no_second_time(run: Run) -> None:
    """It is known, and dearer than the table."""
    run("CREATE INDEX ON orders (placed)")
    run("ANALYZE")
    found = plans.why("SELECT * FROM orders WHERE placed = $1", (), run)
    assert [scan.name for scan, _ in found.scans] == ["public.orders"]
    assert found.indexes == []


@pytest.mark.parametrize(
    ("condition", "indexes"),
    [
        ("sku = $1", ["CREATE INDEX CONCURRENTLY ON public.lines (sku)"]),
        ("sku = $1 AND quantity > $2", ["CREATE INDEX CONCURRENTLY ON public.lines (sku, quantity)"]),
        ("order_no = $1 AND sku = $2", []),
        ("order_no > $1", []),
    ],
)
def test_an_index_that_begins_with_another_column_serves_nothing(run: Run, condition: str, indexes: list[str]) -> None:
    """To use it is to read all of it: a key of two columns is no index for the second."""
    run("CREATE TABLE lines (order_no int, sku text, quantity int, PRIMARY KEY (order_no, sku))")
    run("INSERT INTO lines SELECT n / 2, 'P' || n % 400, n FROM generate_series(1, 40000) n")
    run("ANALYZE lines")
    assert plans.why(f"SELECT * FROM lines WHERE {condition}", (), run).indexes == indexes


@pytest.fixture
def lines(run: Run) -> Run:
    """A table with indexes of every sort, and one that is joined to it."""
    run("CREATE TABLE lines (order_no int, sku text, quantity int, price int, paid date, PRIMARY KEY (order_no, sku))")
    run("CREATE INDEX by_price ON lines (price); CREATE INDEX by_price_and_paid ON lines (price, paid)")
    run("CREATE INDEX of_some ON lines (order_no, paid) WHERE quantity > 0")
    run("CREATE INDEX of_an_expression ON lines (lower(sku), paid)")
    return run


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize(
    ("condition", "index"),
    [
        ("sku = $1", "(sku)"),
        ("quantity = $1 AND sku = $2", "(sku, quantity)"),
        ("sku > $1", "(sku)"),
        ("sku = $1 ORDER BY quantity", "(sku, quantity)"),
        # One part of it has an index, and the other none; which index, it does not say.
        ("sku = $1 OR order_no = $2", ""),
        ("order_no = $1", None),
        ("order_no = $1 AND quantity = $2", None),
        ("price = $1 AND sku = $2", None),
        ("price = $1 AND paid > $2", None),
        # Of an index on an expression, and of one on a part of the rows, nobody knows.
        ("lower(sku) = $1", None),
        ("quantity > 0 AND order_no = $1", None),
        # Nothing is asked of the table by itself.
        ("sku = (SELECT note FROM orders WHERE id = $1)", "(sku)"),
        ("EXISTS (SELECT FROM orders WHERE id = $1 AND note = sku)", None),
    ],
)
def test_what_an_index_serves_is_one_rule(lines: Run, rows: int, condition: str, index: str | None) -> None:
    """Whether a table is empty or holds a few rows: an index that begins with another column serves nothing."""
    lines(f"INSERT INTO lines SELECT n, n, n, n, now() FROM generate_series(1, {rows}) n")
    lines("ANALYZE lines")
    plan = plans.explain(f"SELECT * FROM lines WHERE {condition}", (), lines, within=False)
    found = [scan for scan in plans.unserved(plan, lines) if scan.table == "lines"]
    expected = f"CREATE INDEX CONCURRENTLY ON public.lines {index}" if index else ""
    assert [(scan.by, scan.index) for scan in found] == ([] if index is None else [("lines_pkey", expected)])


def test_an_index_that_serves_is_told_from_one_that_costs_the_same(lines: Run) -> None:
    """In a table of few rows the planner may read either; of a bitmap's parts that OR joins each has to be served."""
    run = lines
    run("CREATE INDEX by_sku ON lines (sku)")
    for condition in ("sku = $1", "sku = $1 AND order_no > 0", "sku = $1 OR order_no = $2"):
        plan = plans.explain(f"SELECT * FROM lines WHERE {condition}", (), run, within=False)
        assert plans.unserved(plan, run) == []
    run("DROP INDEX by_sku; CREATE INDEX by_block ON lines USING brin (order_no, sku)")
    run("ALTER TABLE lines DROP CONSTRAINT lines_pkey")
    # The order of its columns does not matter.
    assert plans.unserved(plans.explain("SELECT * FROM lines WHERE sku = $1", (), run, within=False), run) == []


def test_a_whole_index_that_the_planner_takes_is_told(run: Run) -> None:
    """It is smaller than the table, and so the plan has no scan of the whole table; it reads all of the index."""
    run("CREATE TABLE lines (order_no int, sku int, note text, PRIMARY KEY (order_no, sku))")
    run("INSERT INTO lines SELECT n, n % 1000, repeat('n', 200) FROM generate_series(1, 40000) n")
    run("VACUUM ANALYZE lines")
    found = plans.why("SELECT count(*) FROM lines WHERE sku = $1", (), run)
    assert found.plan == "Aggregate(Index Only Scan on public.lines by lines_pkey)"
    assert found.as_dict()["full_scans"][0]["table"] == "public.lines"
    assert found.indexes == ["CREATE INDEX CONCURRENTLY ON public.lines (sku)"]


def test_an_index_that_gives_the_order_only_is_none_for_the_filter(run: Run) -> None:
    """With sequential scans discouraged it is read to its end: the filter is served as little as by the table."""
    run("INSERT INTO orders SELECT n, n, 'n' || n, '2026-01-01' FROM generate_series(20001, 40000) n; ANALYZE orders")
    found = plans.why("SELECT * FROM orders WHERE note = $1 ORDER BY id", (), run)
    assert found.plan == "Sort(Seq Scan on public.orders)"
    assert found.indexes == ["CREATE INDEX CONCURRENTLY ON public.orders (note, id)"]


@pytest.mark.parametrize("sql", ["DELETE FROM orders WHERE note = $1", "SELECT * FROM orders FOR UPDATE"])
def test_what_does_more_than_read_is_not_asked(run: Run, sql: str) -> None:
    """Nothing reaches the server."""
    with pytest.raises(ValueError, match="only statements that read"):
        plans.why(sql, (), run)


def test_nothing_is_left_in_the_session(run: Run) -> None:
    """Neither settings nor the prepared statement, also where the server refuses."""
    plans.why("SELECT * FROM orders WHERE note = $1", (), run)
    with pytest.raises(Exception, match="no_table") as refused:
        plans.why("SELECT * FROM no_table WHERE note = $1", (), run)
    assert plans.sqlstate(refused.value) == "42P01"
    assert run("SELECT count(*) FROM pg_prepared_statements") == [[0]]
    assert run("SHOW enable_seqscan") == [["on"]]
    assert run("SHOW plan_cache_mode") == [["auto"]]


WIDE = """
CREATE SCHEMA "Odd Place";
CREATE TYPE status AS ENUM ('open', 'sent');
CREATE TYPE size AS (width int, height int);
CREATE DOMAIN address AS varchar(100);
CREATE DOMAIN positive AS int CHECK (VALUE >= 0);
CREATE FUNCTION mine() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 5; END';
CREATE FUNCTION "Mine (now"() RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN 5; END';
CREATE TABLE "Odd Place"."order" AS SELECT n AS id, n AS customer, n % 1000 AS other, n % 2 AS half, 'n' || n AS note,
    ('c' || n)::char(8) AS code, ('s' || n)::varchar(20) AS sku, ('m' || n)::address AS mail, n::positive AS points,
    'open'::status AS state, gen_random_uuid() AS key, n::numeric AS amount, now() - n * interval '1 min' AS placed,
    (n, n)::size AS size, box(point(n, n), point(0, 0)) AS area, n::text::xid AS xact, ARRAY[n] AS tags,
    int4range(n, n + 1) AS span, ('10.' || n / 256 || '.' || n % 256 || '.0/24')::cidr AS net, n AS "Select",
    n AS "a"" = $1) AND (b;", 'n' || n AS c_text
FROM generate_series(1, 20000) n;
ALTER TABLE "Odd Place"."order" ALTER c_text TYPE text COLLATE "C";
CREATE TABLE "Odd Place".policed AS SELECT * FROM "Odd Place"."order";
ALTER TABLE "Odd Place".policed ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON "Odd Place".policed USING (customer <> 4711);
CREATE TABLE "Odd Place".parts (id int, customer int) PARTITION BY RANGE (id);
DO $$ BEGIN FOR n IN 0..24 LOOP EXECUTE format(
    'CREATE TABLE "Odd Place".part_%s PARTITION OF "Odd Place".parts FOR VALUES FROM (%s) TO (%s)',
    n, n * 12000, n * 12000 + 12000); END LOOP; END $$;
INSERT INTO "Odd Place".parts SELECT n, n FROM generate_series(0, 299999) n;
ANALYZE;
DROP ROLE IF EXISTS policed;
CREATE ROLE policed;
GRANT USAGE ON SCHEMA "Odd Place" TO policed;
GRANT SELECT ON "Odd Place".policed TO policed;
"""
TEXT, UUID = 25, 2950


@pytest.fixture(scope="module")
def wide(postgres: Postgres) -> Iterator[str]:
    """A database with columns of many kinds."""
    postgres.execute("CREATE DATABASE wide")
    with postgres.session(database="wide") as session:
        session(WIDE)
    yield "wide"
    postgres.execute("DROP DATABASE wide WITH (FORCE)")


@pytest.mark.parametrize(
    ("condition", "types", "columns"),
    [
        ("customer = $1", (), "customer"),
        ('"Select" = $1', (), '"Select"'),
        ('"a"" = $1) AND (b;" = $1', (), '"a"" = $1) AND (b;"'),
        ("sku = $1", (TEXT,), "sku"),
        ("mail = $1", (TEXT,), "mail"),
        ("points = $1", (), "points"),
        ("net = $1", (), "net"),
        ("tags = $1", (), "tags"),
        ("span = $1", (), "span"),
        ("size = ROW(1, 2)::size", (), "size"),
        ("c_text = $1", (TEXT,), "c_text"),
        ("customer = ANY ($1)", (), "customer"),
        ('customer = "Mine (now"()', (), "customer"),
        ("placed > now() - interval '1 hour'", (), "placed"),
        ('customer = (SELECT max(i.customer) FROM "Odd Place"."order" i)', (), "customer"),
        ("half = $1 ORDER BY placed DESC LIMIT 5", (), "half, placed"),
        ("note = $1 ORDER BY id", (TEXT,), "note, id"),
        # What stands in the filter is not what an index holds.
        ("key::text = $1", (TEXT,), ""),
        ("customer::text = $1", (TEXT,), ""),
        ("state::text = $1 AND other = 7", (TEXT,), "other"),
        ("code = $1", (TEXT,), ""),
        ('note = $1 COLLATE "C"', (TEXT,), ""),
        ('note COLLATE "C" = $1', (TEXT,), ""),
        # Another value in each row, or all of a list.
        ("customer = mine()", (), ""),
        ("placed > clock_timestamp()", (), ""),
        ('customer = (SELECT max(i.customer) FROM "Odd Place"."order" i WHERE i.id = t.other)', (), "id"),
        ("customer = ALL ($1)", (), ""),
        # No index can be made, or none is made for it.
        ("area = $1", (), ""),
        ("xact = $1", (), ""),
        ("size IS NULL", (), ""),
        ("tableoid = 1::oid AND other = $1", (), "other"),
        # Half of the rows, or most of them.
        ("half = 1", (), ""),
        ("customer > 100", (), ""),
    ],
)
def test_an_advised_index_can_be_made_and_is_used(
    postgres: Postgres, wide: str, condition: str, types: tuple[int, ...], columns: str
) -> None:
    """As the sentence stands there, whatever the names; and none is advised that the planner would not take."""
    sql = f'SELECT t.* FROM "Odd Place"."order" t WHERE {condition}'
    with postgres.session(database=wide) as session:
        found = plans.why(sql, types, session)
        sentences = [f'CREATE INDEX CONCURRENTLY ON "Odd Place"."order" ({columns})'] if columns else []
        assert found.indexes == sentences
        for sentence in sentences:
            session(sentence)
            ((name,),) = session(
                "SELECT relname FROM pg_class WHERE relkind = 'i' AND relnamespace = '\"Odd Place\"'::regnamespace"
            )
            after = plans.why(sql, types, session)
            session('DROP INDEX "Odd Place"."{}"'.format(str(name).replace('"', '""')))
            assert f" by {name}" in after.plan
            assert after.indexes == []


@pytest.mark.parametrize(
    ("condition", "columns"),
    [("other = $1", "other, customer"), ("amount = 5", ""), ("state = 'sent' AND other = 7", "other")],
)
def test_behind_a_policy_only_what_leaks_nothing_is_advised(
    postgres: Postgres, wide: str, condition: str, columns: str
) -> None:
    """What may tell something of another tenant's row, as numeric's and an enum's = may, is asked after the policy."""
    with postgres.session(database=wide) as session:
        session("SET ROLE policed")
        found = plans.why(f'SELECT * FROM "Odd Place".policed WHERE {condition}', (), session)
    first = columns.partition(",")[0]
    assert found.indexes == ([f'CREATE INDEX CONCURRENTLY ON "Odd Place".policed ({first})'] if columns else [])


def test_of_many_partitions_some_are_told(postgres: Postgres, wide: str) -> None:
    """A line of a log does not grow with them, nor do the round trips; how many more there are is said."""
    asked: list[str] = []
    with postgres.session(database=wide) as session:

        def run(sql: str) -> list[list[object]]:
            asked.append(sql)
            return session(sql)

        found = plans.why('SELECT * FROM "Odd Place".parts WHERE customer = $1', (), run).as_dict()
    assert len(found["full_scans"]) == len(found["indexes"]) == 20
    assert found["full_scans_left_out"] == 5
    assert len(asked) == 15


def test_what_workers_share_is_told_as_a_whole(run: Run) -> None:
    """A plan in parallel estimates the rows of one of them."""
    run("ALTER TABLE orders SET (parallel_workers = 2)")
    run("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0")
    found = plans.why("SELECT count(*) FROM orders WHERE customer = $1", (), run)
    assert "Gather" in found.plan
    assert [scan.estimated_rows for scan, _ in found.scans] == [pytest.approx(20, abs=2)]


def test_the_catalogue_is_asked_whatever_the_search_path_finds_first(run: Run) -> None:
    """A function or an operator of somebody else's is none of its own."""
    run("CREATE SCHEMA other")
    run("CREATE FUNCTION other.wrong(name, name) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RAISE ''called''; END'")
    run("CREATE OPERATOR other.= (FUNCTION = other.wrong, LEFTARG = name, RIGHTARG = name)")
    run("SET search_path = other, public, pg_catalog")
    found = plans.why("SELECT * FROM orders WHERE customer = $1", (), run)
    assert found.indexes == ["CREATE INDEX CONCURRENTLY ON public.orders (customer)"]
