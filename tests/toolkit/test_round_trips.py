"""Budgets of round trips: counted exactly, told with shape and line, held by a marker or a baseline."""

from __future__ import annotations

import json
import struct
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import text

import plungepool
from plungepool import wire
from plungepool_toolkit.round_trips import exchanges
from plungepool_toolkit.round_trips.client import Client, Statement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plungepool_toolkit.fixtures import Database
    from plungepool_toolkit.round_trips.recorder import RoundTrips

pytest_plugins = ["pytester"]

CONFTEST = """
import outer
import pytest
import plungepool

@pytest.fixture(scope="session")
def postgres():
    return outer.postgres

@pytest.fixture
def engine(database):
    database.execute("CREATE TABLE books (id int PRIMARY KEY, title text, author text)")
    database.execute("INSERT INTO books SELECT i, 'title ' || i, 'Austen' FROM generate_series(1, 9) i")
    engine = plungepool.build_engine(plungepool.Settings.from_env(database.variables()))
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    yield engine
    engine.dispose()
"""
BOOKS = """
from sqlalchemy import text
ONE = text("SELECT title FROM books WHERE id = :id AND title > 'a secret'")
def titles_one_by_one(engine, ids):
    with engine.begin() as connection:
        return [connection.execute(ONE, {"id": id}).scalar() for id in ids]

def titles(engine, ids):
    with engine.begin() as connection:
        return connection.execute(text("SELECT title FROM books WHERE id = ANY(:ids)"), {"ids": ids}).scalars().all()
"""


@pytest.fixture
def project(pytester: pytest.Pytester, postgres: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A project whose tests run in this process, on this run's server."""
    outer = types.ModuleType("outer")
    outer.postgres = postgres  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "outer", outer)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(books=BOOKS)
    yield pytester
    plungepool.dispose_engine()


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_inprocess(
        "-p", "no:cacheprovider", "--strict-markers", "--import-mode=prepend", *arguments
    )


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


STARTUP = message(b"", struct.pack("!i", 196608) + b"user\0app\0database\0shop\0\0")
PASSWORD = message(b"p", b"a password\0")
PARSE = message(b"P", b"one\0SELECT $1\0" + struct.pack("!HI", 1, 23))
BIND = message(b"B", b"\0one\0" + struct.pack("!HHi", 0, 1, 7) + b"a value" + b"\0\0")
SYNC = message(b"S", b"")
SELECT = Statement("SELECT $1", (23,))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_client_is_read_in_pieces_of_any_size(size: int) -> None:
    """What was said is the same, however it arrives; and no value and no password stays anywhere."""
    client = Client()

    def feed(data: bytes) -> Any:
        for start in range(0, len(data), size):
            client.feed(data[start : start + size])
        return client.take()

    said = feed(STARTUP)
    assert (said.starts, client.user, client.database) == (True, "app", "shop")
    assert feed(PASSWORD).signs_in
    said = feed(PARSE + SYNC)
    assert (said.statements, said.prepared) == ([], [SELECT])
    assert feed(BIND * 3 + SYNC).statements == [SELECT]
    assert feed(message(b"d", b"x" * 5000) + message(b"Q", b"COMMIT\0")).statements == [Statement("COMMIT")]
    assert feed(SYNC).statements == []
    assert b"a value" not in client._buffer
    assert b"a password" not in client._buffer


def test_what_is_encrypted_is_not_read() -> None:
    """After TLS has begun only the count is known."""
    client = Client()
    client.feed(message(b"", struct.pack("!i", 80877103)))
    assert client.take().signs_in
    client.feed(b"\x16\x03\x01" + STARTUP + message(b"Q", b"SELECT 1\0"))
    said = client.take()
    assert (said.encrypted, said.statements) == (True, [])
    assert exchanges.read(said, "here").kind == "encrypted"


@pytest.mark.parametrize(
    ("texts", "kind", "told"),
    [
        (["BEGIN"], "BEGIN", "BEGIN"),
        (["START TRANSACTION READ ONLY"], "BEGIN", "BEGIN"),
        (["BEGIN", "SELECT 'a', 1"], "statement", "BEGIN + select ? , ?"),
        (["COMMIT"], "COMMIT", "COMMIT"),
        (["end"], "COMMIT", "COMMIT"),
        (["ROLLBACK"], "ROLLBACK", "ROLLBACK"),
        (["ROLLBACK TO SAVEPOINT a"], "statement", "rollback to savepoint a"),
        (["ROLLBACK PREPARED 'a'"], "statement", "rollback prepared ?"),
        ([""], "ping", "ping"),
        (["-- nothing"], "ping", "ping"),
        ([], "ping", "ping"),
    ],
)
def test_kinds_of_exchanges(texts: list[str], kind: str, told: str) -> None:
    """BEGIN, COMMIT, ROLLBACK and pings are told apart from statements, and no literal is told."""
    client = Client(started=True)
    for one in texts:
        client.feed(message(b"Q", one.encode() + b"\0"))
    exchange = exchanges.read(client.take(), "here")
    assert (exchange.kind, str(exchange)) == (kind, told)


def test_cost_is_told_at_three_latencies() -> None:
    """What a budget is worth, near and far."""
    assert exchanges.cost(3) == "1.5 ms at 0.5 ms, 3 ms at 1 ms, 15 ms at 5 ms"


def deeds() -> dict[str, Callable[[Any], Any]]:
    def begin(engine: Any) -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO notes VALUES (:a)"), [{"a": 1}, {"a": 2}])
            connection.execute(text("SELECT * FROM notes"))

    def fail(engine: Any) -> None:
        with engine.connect() as connection, pytest.raises(Exception, match="division"):
            connection.exec_driver_sql("SELECT 1 / 0")

    def copy(engine: Any) -> None:
        with engine.begin() as connection:
            connection.connection.dbapi_connection.cursor().execute("COPY notes FROM STDIN", stream=["1\n", "2\n"])

    def ping(engine: Any) -> None:
        with engine.connect() as connection:
            connection.connection.dbapi_connection.ping()

    def many(engine: Any) -> None:
        with engine.connect() as connection:
            query = text("SELECT i FROM generate_series(1, 30) i").execution_options(yield_per=10)
            assert len(connection.execute(query).all()) == 30

    return {"begin": begin, "fail": fail, "copy": copy, "ping": ping, "many": many, "connect": lambda e: e.dispose()}


@pytest.mark.parametrize("what", deeds())
def test_ours_count_as_the_proxy_counts(database: Database, round_trips: RoundTrips, what: str) -> None:
    """What sessions tell of themselves is what a proxy counts that looks at nothing, connects included."""
    from plungepool_toolkit.network import ChaosProxy

    database.execute("CREATE TABLE notes (a int)")
    with ChaosProxy(database.server.host, database.server.port) as proxy:
        url = database.server.url("postgres", database.name).replace(f":{database.server.port}", f":{proxy.port}")
        engine = plungepool.build_engine(plungepool.Settings(url=url, tls="disable"))
        round_trips.clear()
        proxy.round_trips = 0
        for _ in range(2):
            deeds()[what](engine)
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
        assert sum(one.round_trips for one in round_trips.exchanges) == proxy.round_trips
        assert round_trips.connects == proxy.connections
        assert {one.place.partition(":")[0] for one in round_trips.exchanges} == {"tests/toolkit/test_round_trips.py"}
        engine.dispose()


def test_a_thread_that_asks_for_a_plan_keeps_no_other_from_being_counted(
    database: Database, round_trips: RoundTrips
) -> None:
    """What the plan guard asks is no test's; what other threads send meanwhile is."""
    asked, done = threading.Event(), threading.Event()

    def read(statement: Any, _place: str, run: Any, *, within: bool | None) -> None:
        if "first" in statement.text and not within:
            asked.set()
            assert done.wait(30)
            run("SELECT 'the guard'")

    def other() -> None:
        assert asked.wait(30)
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1 AS second")
        done.set()

    engine = plungepool.build_engine(plungepool.Settings.from_env(database.variables() | {"PLUNGEPOOL_POOL_SIZE": "2"}))
    thread = threading.Thread(target=other)
    round_trips.reader = read
    thread.start()
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1 AS first")
    thread.join()
    engine.dispose()
    told = [one.shape for one in round_trips.exchanges if one.kind == "statement"]
    assert sorted(told) == ["select ? as first", "select ? as second"]


def test_tls_counts_as_the_proxy_counts(round_trips: RoundTrips) -> None:
    """TLS is a question and a handshake; a password in clear text one more."""
    from plungepool.tls import client_context
    from plungepool_toolkit.network import ChaosProxy
    from plungepool_toolkit.postgres import Postgres

    with Postgres(tls=True, authentication="password") as server, ChaosProxy(server.host, server.port) as proxy:
        settings = plungepool.Settings(host="localhost", user="a", password="b", ca_file=str(server.ca_file))
        with wire.connect(
            user="postgres",
            password=server.password,
            host="localhost",
            port=proxy.port,
            database="postgres",
            ssl_context=client_context(settings),
        ) as connection:
            assert connection.opening_round_trips == proxy.round_trips == round_trips.exchanges[0].round_trips == 5


def test_nobody_listens_after_a_test(project: pytest.Pytester) -> None:
    """The hook in the driver is set while a test counts, and gone behind it."""
    project.makepyfile(
        """
        import pytest
        from plungepool.wire import session
        @pytest.mark.max_round_trips(0)
        def test_one():
            assert session.listener is not None
        def test_two():
            assert session.listener is None
        """
    )
    run(project).assert_outcomes(passed=2)


def test_a_suite_that_counts_nothing_imports_nothing(pytester: pytest.Pytester) -> None:
    """The plugin imports the package when a test asks for it."""
    pytester.makepyfile(
        """
        import sys
        def test_nothing():
            assert "plungepool" not in sys.modules
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_budget_that_holds_says_nothing(project: pytest.Pytester) -> None:
    """A statement and COMMIT are two; what fixtures and connects cost is not of the budget."""
    project.makepyfile(
        """
        import books, pytest
        @pytest.mark.max_round_trips(2)
        def test_titles(engine):
            assert len(books.titles(engine, [1, 2, 3])) == 3
        @pytest.mark.max_round_trips(2, connects=1)
        def test_cold(engine):
            engine.dispose()
            assert len(books.titles(engine, [1, 2, 3])) == 3
        """
    )
    run(project).assert_outcomes(passed=2)


def test_n_plus_one_is_found_and_told(project: pytest.Pytester) -> None:
    """The failure has each exchange with its line, N+1, and what it costs; no literal and no value."""
    project.makepyfile(
        """
        import books, pytest
        @pytest.mark.max_round_trips(2)
        def test_titles(engine):
            books.titles_one_by_one(engine, [71, 72, 73, 74, 75])
        """
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    statement = "select title from books where id = ? and title > ?"
    result.stdout.fnmatch_lines(
        [
            "test_*.py::test_titles: 6 round trips, but the budget is 2; one line sends the same statement *",
            f"*1  books.py:5 in titles_one_by_one  BEGIN + {statement}",
            f"*2  books.py:5 in titles_one_by_one  {statement}",
            "*6  books.py:4 in titles_one_by_one  COMMIT",
            "  that is, in round trips: COMMIT 1, statement 5",
            f"N+1: books.py:5 in titles_one_by_one sent one statement 5 times; *: {statement}",
            "6 round trips take 3 ms at 0.5 ms, 6 ms at 1 ms, 30 ms at 5 ms*; 2 take 1 ms at 0.5 ms*",
        ]
    )
    assert "a secret" not in result.stdout.str()
    assert "75" not in result.stdout.str().replace("[71, 72, 73, 74, 75]", "")


def test_n_plus_one_fails_within_the_budget(project: pytest.Pytester) -> None:
    """More than `repeats` times is too often, as large as the budget may be; None allows it."""
    project.makepyfile(
        """
        import books, pytest
        @pytest.mark.max_round_trips(99)
        def test_five(engine):
            books.titles_one_by_one(engine, [1, 2, 3, 4, 5])
        @pytest.mark.max_round_trips(99)
        def test_four(engine):
            books.titles_one_by_one(engine, [1, 2, 3, 4])
        @pytest.mark.max_round_trips(99, repeats=2)
        def test_three(engine):
            books.titles_one_by_one(engine, [1, 2, 3])
        @pytest.mark.max_round_trips(99, repeats=None)
        def test_nine(engine):
            books.titles_one_by_one(engine, range(9))
        """
    )
    result = run(project, "-rA")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["PASSED *test_four", "PASSED *test_nine", "FAILED *test_five*", "FAILED *test_three*"])


def test_too_many_connects_fail(project: pytest.Pytester) -> None:
    """Connects have a limit of their own."""
    project.makepyfile(
        """
        import books, pytest
        @pytest.mark.max_round_trips(9, connects=1)
        def test_two(engine):
            for _ in range(2):
                engine.dispose()
                books.titles(engine, [1])
        """
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*2 connections opened, but at most 1 may be.", "*connect, * round trips"])


def test_a_test_that_fails_by_itself_says_why(project: pytest.Pytester) -> None:
    """A budget hides no other failure."""
    project.makepyfile(
        """
        import books, pytest
        @pytest.mark.max_round_trips(0)
        def test_wrong(engine):
            books.titles(engine, [1])
            assert "this" == "that"
        """
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    assert "'this' == 'that'" in result.stdout.str()
    assert "the budget is" not in result.stdout.str()


def test_the_fixture_counts_a_block(database: Database, round_trips: RoundTrips) -> None:
    """`at_most` holds a block, `report` tells all of it."""
    connection = wire.connect(
        host=database.server.host,
        port=database.server.port,
        user="postgres",
        password=database.server.password,
        database=database.name,
    )
    connection.autocommit = True
    with round_trips.at_most(1):
        connection.cursor().execute("SELECT 1")
    with pytest.raises(AssertionError, match=r"(?s)2 round trips, and the block may make 1:.*ping.*1 ms at 0\.5 ms"):
        with round_trips.at_most(1):
            connection.cursor().execute("SELECT 'a literal'")
            connection.ping()
    assert (round_trips.count, round_trips.connects) == (3, 1)
    assert "a literal" not in round_trips.report()
    connection.close()


BASELINED = """
import books, pytest
pytestmark = pytest.mark.max_round_trips
def test_b(engine):
    books.titles_one_by_one(engine, [1, 2])
def test_a(engine):
    books.titles(engine, [1])
"""


def test_the_baseline_is_written_and_held(project: pytest.Pytester) -> None:
    """Written sorted and the same each time; what costs more than it says fails, with what came on top."""
    project.makepyfile(test_it=BASELINED)
    result = run(project)
    result.assert_outcomes(failed=2)
    assert "run pytest with --round-trips-update" in result.stdout.str()

    run(project, "--round-trips-update").assert_outcomes(passed=2)
    file = project.path / "round_trips.json"
    written = file.read_text()
    assert json.loads(written) == {
        "format": "plungepool-round-trips/1",
        "tests": {
            "test_it.py::test_a": {
                "round_trips": 2,
                "connects": 0,
                "exchanges": {"BEGIN + select title from books where id = any ( ? )": 1, "COMMIT": 1},
            },
            "test_it.py::test_b": {
                "round_trips": 3,
                "connects": 0,
                "exchanges": {
                    "BEGIN + select title from books where id = ? and title > ?": 1,
                    "COMMIT": 1,
                    "select title from books where id = ? and title > ?": 1,
                },
            },
        },
    }
    assert list(json.loads(written)["tests"]) == ["test_it.py::test_a", "test_it.py::test_b"]
    run(project).assert_outcomes(passed=2)
    run(project, "--round-trips-update").assert_outcomes(passed=2)
    assert file.read_text() == written

    project.makepyfile(test_it=BASELINED.replace("[1, 2]", "[1, 2, 3, 4]").replace("titles(engine, [1])", "titles"))
    result = run(project)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_b: 5 round trips, but the baseline has 3.",
            "Against the baseline:",
            "  +2  select title from books where id = ? and title > ?",
            "round trips: test_it.py::test_a takes 0 instead of 2; --round-trips-update records it",
        ]
    )


def test_an_update_keeps_what_did_not_run(project: pytest.Pytester) -> None:
    """What was deselected and what failed stays as it was; a test that is no more goes."""
    project.makepyfile(test_it=BASELINED)
    run(project, "--round-trips-update").assert_outcomes(passed=2)
    file = project.path / "round_trips.json"
    written = file.read_text()
    more = BASELINED.replace("[1, 2]", "[1, 2, 3]")
    project.makepyfile(test_it=more)
    run(project, "--round-trips-update", "-k", "test_a").assert_outcomes(passed=1, deselected=1)
    assert file.read_text() == written
    run(project, "--round-trips-update", "test_it.py::test_a").assert_outcomes(passed=1)
    assert file.read_text() == written
    project.makepyfile(test_it=more.replace("[1, 2, 3])", "[1, 2, 3]); assert False"))
    run(project, "--round-trips-update").assert_outcomes(passed=1, failed=1)
    assert file.read_text() == written
    project.makepyfile(test_it=BASELINED.replace("def test_a", "def test_c"))
    result = run(project, "--round-trips-update")
    result.stdout.fnmatch_lines(["round trips: round_trips.json: 2 tests written, 0 kept, 1 dropped"])
    assert list(json.loads(file.read_text())["tests"]) == ["test_it.py::test_b", "test_it.py::test_c"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": "another/1", "tests": {}}',
        '{"format": "plungepool-round-trips/1", "tests": {"a": 1}}',
    ],
)
def test_what_is_no_baseline_is_refused(content: str) -> None:
    """A file of something else, or half of one, is an error that says so."""
    with pytest.raises(ValueError):
        exchanges.read_baseline(content)


def test_a_worker_writes_no_baseline(pytester: pytest.Pytester) -> None:
    """Of several processes (pytest-xdist) each would write what the others have not seen."""
    pytester.makeconftest(
        """
        import pytest
        @pytest.hookimpl(tryfirst=True)
        def pytest_configure(config):
            config.workerinput = {}
        """
    )
    pytester.makepyfile("def test_nothing(): pass")
    assert pytester.runpytest_inprocess().ret == 0
    result = pytester.runpytest_inprocess("--round-trips-update")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*run it with -n 0*"])


def test_psycopg_is_counted_through_a_proxy(database: Database, round_trips: RoundTrips) -> None:
    """A driver that knows nothing of this is counted and read, with the line that waits; BEGIN is one of its own."""
    database.execute("CREATE TABLE books (id int)")
    proxy = round_trips.through(database)
    with psycopg.connect(
        host=proxy.host,
        port=proxy.port,
        user="postgres",
        password=database.server.password,
        dbname=database.name,
        sslmode="disable",
    ) as connection:
        assert (round_trips.count, round_trips.connects) == (0, 1)
        for number in range(6):
            connection.execute("SELECT id FROM books WHERE id = %s AND 'a literal' > ''", (number,))
    whats = exchanges.Count.of(round_trips.exchanges, 1).whats
    assert whats == {"BEGIN": 1, "COMMIT": 1, "select id from books where id = ? and ? > ?": 6} | {
        what: count for what, count in whats.items() if what.startswith("(prepare)")
    }
    assert sum(one.round_trips for one in round_trips.exchanges) == proxy.round_trips
    (again,) = round_trips.repeated()
    assert (again.times, again.place.partition(":")[0]) == (6, "tests/toolkit/test_round_trips.py")
    assert again.place.endswith("in test_psycopg_is_counted_through_a_proxy")


def test_a_project_of_psycopg_has_budgets(project: pytest.Pytester) -> None:
    """A small project without Plungepool in its code: pass, and N+1 found at its line."""
    project.makepyfile(
        shop="""
        def prices(connection, skus):
            return [connection.execute("SELECT price FROM items WHERE sku = %s", (sku,)).fetchone() for sku in skus]

        def all_prices(connection, skus):
            return connection.execute("SELECT price FROM items WHERE sku = ANY(%s)", (skus,)).fetchall()
        """,
        test_shop="""
        import psycopg, pytest, shop

        @pytest.fixture
        def connection(database, round_trips):
            database.execute("CREATE TABLE items (sku text, price int)")
            proxy = round_trips.through(database)
            with psycopg.connect(host=proxy.host, port=proxy.port, user="postgres", dbname=database.name,
                                 password=database.server.password, sslmode="disable") as connection:
                yield connection

        @pytest.mark.max_round_trips(2, connects=0)
        def test_good(connection):
            shop.all_prices(connection, ["a", "b"])

        @pytest.mark.max_round_trips(2)
        def test_bad(connection):
            shop.prices(connection, list("abcde"))
        """,
    )
    result = run(project)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "test_shop.py::test_bad: 6 round trips, but the budget is 2; one line *",
            "*1  shop.py:2 in prices  BEGIN",
            "*2  shop.py:2 in prices  select price from items where sku = ?",
            "N+1: shop.py:2 in prices sent one statement 5 times; *",
        ]
    )
