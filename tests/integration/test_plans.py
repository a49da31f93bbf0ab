"""Why a statement is slow, asked of a real planner; nothing is executed, and nothing is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from plungepool import plans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plungepool_toolkit.fixtures import Database

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
    with pytest.raises(ValueError, match="only a statement that reads"):
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
