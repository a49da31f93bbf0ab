"""The plan guard: which filters no index can serve, asked in the test's own session."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

import plungepool
from plungepool import statements
from plungepool.plans import FullScan
from plungepool_toolkit.plan_guard import PlanGuard
from plungepool_toolkit.round_trips.client import Statement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.fixtures import Database

pytest_plugins = ["pytester"]

TABLES = (
    "CREATE TABLE orders (id int PRIMARY KEY, customer int, note text, placed date)",
    "CREATE INDEX ON orders (customer)",
    "CREATE TABLE lines (order_no int, sku text, PRIMARY KEY (order_no, sku))",
    "CREATE VIEW notes AS SELECT note FROM orders",
)
INT4, NUMERIC = 23, 1700

CONFTEST = """
import outer
import pytest
import plungepool

@pytest.fixture(scope="session")
def postgres():
    return outer.postgres

@pytest.fixture
def engine(database):
    for table in outer.tables:
        database.execute(table)
    engine = plungepool.build_engine(plungepool.Settings.from_env(database.variables()))
    yield engine
    engine.dispose()
"""


@pytest.fixture
def project(pytester: pytest.Pytester, postgres: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A project whose tests run in this process, on this run's server."""
    outer = types.ModuleType("outer")
    outer.postgres, outer.tables = postgres, TABLES  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "outer", outer)
    pytester.makeconftest(CONFTEST)
    yield pytester
    plungepool.dispose_engine()


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-p", "no:cacheprovider", "--strict-markers", *arguments)


@pytest.fixture
def orders(database: Database) -> Database:
    for table in TABLES:
        database.execute(table)
    return database


@pytest.mark.parametrize(
    ("text", "parameters", "served"),
    [
        ("SELECT * FROM orders WHERE id = $1", (), True),
        ("SELECT * FROM orders WHERE customer = $1 AND note = $2", (), True),
        ("SELECT * FROM orders WHERE note = $1", (), False),
        ("SELECT * FROM orders WHERE note LIKE 'a literal%'", (), False),
        ("SELECT * FROM orders WHERE customer + 1 = $1", (), False),
        # An index is read from end to end for its order, and the filter is put to each row.
        ("SELECT * FROM orders WHERE note = $1 ORDER BY id", (), False),
        ("SELECT * FROM orders WHERE customer = $1", (INT4,), True),
        # A driver that sends integers as numeric keeps the index on integers from being used.
        ("SELECT * FROM orders WHERE customer = $1", (NUMERIC,), False),
        ("SELECT * FROM orders WHERE customer = ANY($1)", (), True),
        # All of an index that begins with another column is read.
        ("SELECT * FROM lines WHERE sku = $1", (), False),
        ("DELETE FROM lines WHERE sku = $1", (), False),
        ("SELECT * FROM lines WHERE order_no = $1", (), True),
        ("SELECT * FROM lines JOIN orders ON sku = note WHERE id = $1", (), True),
        ("UPDATE orders SET note = '' WHERE placed < $1", (), False),
        ("DELETE FROM orders WHERE id = $1", (), True),
        ("WITH o AS (SELECT * FROM orders WHERE placed = $1) SELECT count(*) FROM o", (), False),
        ("SELECT * FROM notes WHERE note = $1", (), False),
        ("DECLARE c NO SCROLL CURSOR FOR SELECT * FROM orders WHERE note = $1", (), False),
        # Without a filter there is nothing that an index could serve.
        ("SELECT count(*) FROM orders", (), True),
        ("INSERT INTO orders VALUES ($1, 1, '', now())", (), True),
    ],
)
def test_what_an_index_serves(orders: Database, text: str, parameters: tuple[int, ...], served: bool) -> None:
    """On an empty table, too, a filter that no index serves is found, and only such a one; no literal is told."""
    with orders.server.session(database=orders.name) as session:
        verdict = PlanGuard().judge(Statement(text, parameters), session, within=False)
    assert verdict is not None
    assert verdict.unknown == ""
    assert [scan for scan in verdict.scans if scan.is_of(["orders", "lines"])] == ([] if served else verdict.scans)
    assert (verdict.scans == []) == served
    assert "a literal" not in str(verdict)


@pytest.mark.parametrize(
    "text",
    ["CREATE TABLE a (b int)", "SELECT 1; DROP TABLE orders", "COMMIT", "", "COPY orders TO STDOUT", "SET a.b = 'c'"],
)
def test_what_has_no_plan_is_not_asked(orders: Database, text: str) -> None:
    """Only one statement that has a plan is prepared: a text of two would run the second."""

    def run(sql: str) -> list[Any]:
        raise AssertionError(f"sent: {sql}")

    assert PlanGuard().judge(Statement(text), run, within=False) is None


@pytest.mark.parametrize("within", [False, True])
def test_nothing_is_left_in_the_session(orders: Database, within: bool) -> None:
    """Settings, prepared statement and savepoint are gone, also where the server refuses; a transaction goes on."""
    with orders.server.session(database=orders.name) as session:
        if within:
            session("BEGIN")
            session("INSERT INTO orders VALUES (1, 1, 'kept', now())")
        guard = PlanGuard()
        guard.judge(Statement("SELECT * FROM orders WHERE note = $1"), session, within=within)
        wrong = guard.judge(Statement("SELECT * FROM no_table WHERE note = $1"), session, within=within)
        assert wrong is not None
        assert "42P01" in wrong.unknown
        assert session("SELECT count(*) FROM pg_prepared_statements") == [[0]]
        assert session("SHOW enable_seqscan") == [["on"]]
        if within:
            session("COMMIT")
            assert session("SELECT note FROM orders") == [["kept"]]


def test_each_statement_is_asked_once(orders: Database) -> None:
    """The same shape is not asked again; another type, or the tail of a long text, is another statement."""
    asked: list[str] = []
    with orders.server.session(database=orders.name) as session:

        def run(sql: str) -> list[list[Any]]:
            asked.extend([sql] if sql.startswith("EXPLAIN") else [])
            return session(sql)

        guard = PlanGuard()
        long = "SELECT " + ", ".join(f"id AS a_long_name_{number}" for number in range(20)) + " FROM orders WHERE "
        for text, types_ in (
            ("SELECT * FROM orders WHERE note = 'a'", ()),
            ("SELECT * FROM orders WHERE note = 'b'", ()),
            ("SELECT * FROM orders WHERE id = $1", (INT4,)),
            ("SELECT * FROM orders WHERE id = $1", (NUMERIC,)),
            (long + "id = 1", ()),
            (long + "note = ''", ()),
        ):
            guard.judge(Statement(text, types_), run, within=False)
    assert len(asked) == 5
    assert [bool(one.scans) for one in guard.verdicts] == [True, False, True, False, True]


def test_tables_are_named_by_patterns() -> None:
    """With and without a schema, and partitions by a star."""
    scan = FullScan("shop", "orders_2026", "Seq Scan", "")
    assert scan.is_of(["orders_*"])
    assert scan.is_of(["shop.orders_2026"])
    assert not scan.is_of(["orders", "public.*"])


def test_a_project_fails_where_an_index_lacks(project: pytest.Pytester) -> None:
    """Opt-in by pytest's settings: each test that executes such a statement fails, with its line; nothing else does."""
    project.makeini("[pytest]\nlarge_tables = orders")
    project.makepyfile(
        """
        from sqlalchemy import text
        def test_served(engine):
            with engine.begin() as connection:
                connection.execute(text("SELECT * FROM orders WHERE customer = :c"), {"c": 1})
        def test_not_served(engine):
            with engine.connect() as connection:
                connection.execute(text("SELECT * FROM orders WHERE note = :n"), {"n": "a value"})
        def test_again_in_autocommit(engine):
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("SELECT * FROM orders WHERE note = :n"), {"n": "another"})
        def test_another_table(engine):
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE small (a int)"))
                connection.execute(text("SELECT * FROM small WHERE a = 1"))
        """
    )
    result = run(project)
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "plan guard: no index can serve a filter on a large table, *of test_*.py:7 in test_not_served:",
            "  select * from orders where note = ? (*)",
            "  Seq Scan of all of public.orders, filter ( orders . note = ? )",
            "  CREATE INDEX CONCURRENTLY ON public.orders (note)",
            "plan guard: 3 statements explained",
        ]
    )
    assert "a value" not in result.stdout.str().replace('{"n": "a value"}', "")


def test_an_index_of_which_all_is_read_is_named(project: pytest.Pytester) -> None:
    """And the one that would serve, by the fingerprint and in the words of production's line."""
    project.makeini("[pytest]\nlarge_tables = lines")
    project.makepyfile(
        """
        from sqlalchemy import text
        def test_it(engine):
            with engine.begin() as connection:
                connection.execute(text("SELECT * FROM lines WHERE sku = :sku"), {"sku": "a"})
        """
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    fingerprint = statements.fingerprint("SELECT * FROM lines WHERE sku = $1")
    result.stdout.fnmatch_lines(
        [
            f"  select * from lines where sku = ? ({fingerprint})",
            "  Index Scan of all of lines_pkey on public.lines, filter ( lines . sku = ? )",
            "  CREATE INDEX CONCURRENTLY ON public.lines (sku)",
        ]
    )


@pytest.mark.parametrize("isolation", ["AUTOCOMMIT", "READ COMMITTED"])
def test_a_policy_that_asks_for_a_tenant_is_planned_with_it(project: pytest.Pytester, isolation: str) -> None:
    """What travels with BEGIN is there for the guard's question before it, too; its transaction leaves none of it."""
    role = f"guarded_{isolation[0].lower()}"
    project.makeini("[pytest]\nlarge_tables = orders")
    project.makepyfile(
        f"""
        from sqlalchemy import text
        def test_it(engine, database):
            database.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")
            database.execute("CREATE POLICY mine ON orders USING (id = current_setting('app.tenant')::int)")
            database.execute("CREATE ROLE {role}; GRANT SELECT ON orders TO {role}")
            options = {{"app.tenant": "7", "role": "{role}"}}
            with engine.connect().execution_options(
                plungepool_settings=options, isolation_level="{isolation}"
            ) as connection:
                connection.execute(text("SELECT * FROM orders WHERE note = :n"), {{"n": "a"}})
        """
    )
    result = run(project)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["plan guard: * statements explained"])
    assert "not explained" not in result.stdout.str()


def test_a_marker_names_tables_for_a_test(project: pytest.Pytester) -> None:
    """Without the marker, and without the setting, nothing is asked."""
    project.makepyfile(
        """
        import pytest
        from sqlalchemy import text
        def ask(engine):
            with engine.begin() as connection:
                connection.execute(text("SELECT * FROM orders WHERE note = :n"), {"n": ""})
        def test_unmarked(engine):
            ask(engine)
        @pytest.mark.large_tables("public.orders")
        def test_marked(engine):
            ask(engine)
        """
    )
    result = run(project)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["FAILED *test_marked*"])


def test_psycopg_is_guarded_through_a_proxy(project: pytest.Pytester) -> None:
    """What a proxy has carried is asked for in a session of the same role; the guard and a budget go together."""
    project.makepyfile(
        """
        import psycopg, pytest
        @pytest.mark.large_tables("orders")
        @pytest.mark.max_round_trips(0)
        def test_it(engine, database, round_trips):
            proxy = round_trips.through(database)
            with psycopg.connect(host=proxy.host, port=proxy.port, user="postgres", dbname=database.name,
                                 password=database.server.password, sslmode="disable") as connection:
                connection.execute("SELECT * FROM orders WHERE note = %s", ("a",))
        """
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*but the budget is 0*",
            "plan guard: no index *test_*.py:8 in test_it:",
            "  select * from orders where note = ? (*)",
        ]
    )


def test_what_was_not_explained_is_told(project: pytest.Pytester) -> None:
    """A statement that could not be asked for is in the summary: silence would pass for an index."""
    project.makeini("[pytest]\nlarge_tables = orders")
    project.makepyfile(
        """
        import psycopg
        def test_it(engine, database, round_trips):
            proxy = round_trips.through(database.server.host, database.server.port)
            with psycopg.connect(host=proxy.host, port=proxy.port, user="postgres", dbname=database.name,
                                 password=database.server.password, sslmode="disable") as connection:
                connection.execute("SELECT * FROM orders")
        """
    )
    result = run(project)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["plan guard: not explained, there is no session to run EXPLAIN in: *: select * from orders"]
    )
