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
