"""Why a slow SELECT was slow: the second line, what it costs, and where nothing is asked."""

from __future__ import annotations

import json
import logging
import signal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from plungepool import Settings, build_engine, guard_invocation, observe, slow, statements, why

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from plungepool.observe import Tally
    from plungepool_toolkit.fixtures import Database

SECRET = "unmistakable-4711"
# It sleeps once, whatever it reads.
SLEEPS = (
    f"SELECT id FROM orders WHERE customer = CAST(:c AS int) AND note <> '{SECRET}' AND (SELECT pg_sleep(0.06)) IS NULL"
)


class Context:
    """What Lambda hands to a handler, with so much time left."""

    aws_request_id = "8f5"

    def __init__(self, left_s: float = 30.0) -> None:
        self._left_s = left_s

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda's."""
        return int(self._left_s * 1000)


@pytest.fixture
def make(database: Database) -> Iterator[Callable[..., Engine]]:
    """Build engines that watch for slow queries anew, in a database with a large table."""
    slow.stop()
    with database.server.session(database=database.name) as session:
        session("CREATE TABLE orders (id int PRIMARY KEY, customer int, note text)")
        session("INSERT INTO orders SELECT n, n / 2, 'n' FROM generate_series(1, 20000) n")
        session("ANALYZE")
    engines: list[Engine] = []

    def build(**changes: Any) -> Engine:
        settings = {
            "url": database.server.url(database=database.name),
            "tls": "disable",
            "slow_query_s": 0.05,
        } | changes
        engines.append(build_engine(Settings(**settings)))
        return engines[-1]

    yield build
    for engine in engines:
        engine.dispose()
    slow.stop()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """The lines that say why."""
    caplog.set_level(logging.DEBUG, "plungepool")
    return lambda: [
        json.loads(one.getMessage())
        for one in caplog.records
        if one.getMessage().startswith(f'{{"plungepool":"{why.FORMAT}"')
    ]


def ask(engine: Engine, sql: str = SLEEPS, customer: int = 7) -> None:
    """Execute a statement in a transaction."""
    with engine.begin() as connection:
        connection.execute(text(sql), {"c": customer})


def kept(engine: Engine) -> Any:
    """The driver's connection that the pool keeps."""
    proxied = engine.raw_connection()
    try:
        return proxied.dbapi_connection
    finally:
        proxied.close()


def test_a_slow_select_says_why(
    make: Callable[..., Engine],
    lines: Callable[[], list[dict[str, Any]]],
    tallies: list[Tally],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Plan, full scan with the rows expected and those that came, the index, its cost: after the commit, no value."""
    engine = make()

    @guard_invocation
    def handler(_event: object, _context: Context) -> None:
        ask(engine)

    handler({}, Context())
    (line,) = lines()
    first = json.loads(caplog.records[0].getMessage())
    assert {**line, "plungepool": slow.FORMAT, **first} == {**line, "plungepool": slow.FORMAT}
    assert line["fingerprint"] == statements.fingerprint(SLEEPS.replace(":c", "$1"))
    assert line["plan"] == "Result(Result, Seq Scan on public.orders)"
    assert line["rows"] == 0
    assert line["indexes"] == ["CREATE INDEX CONCURRENTLY ON public.orders (customer)"]
    (scan,) = line["full_scans"]
    assert scan == {
        "table": "public.orders",
        "table_rows": 20000,
        "estimated_rows": 2,
        "filter": "( ( orders . note <> ? :: text ) and ( orders . customer = ? ) )",
    }
    assert SECRET not in caplog.text
    (tally,) = tallies
    # docs/slow-queries.md says so much; none of it is among the invocation's own.
    assert (tally.explain_round_trips, line["explain_round_trips"]) == (15, 15)
    assert 0 < tally.explain_s < 30
    assert tally.round_trips == 2


def test_what_reads_a_small_table_costs_less(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]], database: Database
) -> None:
    """As docs/slow-queries.md counts it, without parameters: the plan, and the size of a table that is read whole."""
    engine = make()
    database.execute("CREATE TABLE small (id int)")
    ask(engine, "SELECT id FROM small WHERE id > 1 AND (SELECT pg_sleep(0.06)) IS NOT NULL")
    (line,) = lines()
    assert (line["explain_round_trips"], line["full_scans"]) == (7, [])


def test_nothing_is_left_in_the_session(make: Callable[..., Engine], lines: Callable[[], list[Any]]) -> None:
    """It is the same session, as it was before: settings, prepared statements, transaction, deadline."""
    engine = make()
    before = kept(engine)
    ask(engine)
    assert len(lines()) == 1
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection is before
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar_one() == 0
        assert connection.exec_driver_sql("SHOW enable_seqscan").scalar_one() == "on"
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "0"
        connection.rollback()
        connection.exec_driver_sql("CREATE TEMPORARY TABLE writes (id int)")
    assert not before.unheard


def test_each_fingerprint_is_asked_once_and_so_many_in_all(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an hour of a process, whatever its values; the hour after, again."""
    monkeypatch.setattr(why, "_AT_MOST", 2)
    engine = make()
    for customer in (1, 2):
        ask(engine, customer=customer)
    for column in ("customer", "note"):
        ask(engine, f"SELECT {column} FROM orders WHERE (SELECT pg_sleep(0.06)) IS NULL")
    assert [one["statement"].split()[1] for one in lines()] == ["id", "customer"]
    monkeypatch.setattr(why, "_WITHIN_S", 0.0)
    ask(engine)
    assert len(lines()) == 3


def test_the_slowest_of_a_transaction_is_asked(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """One at each return."""
    engine = make()
    with engine.begin() as connection:
        for column, slept in (("id", 0.06), ("customer", 0.2), ("note", 0.06)):
            connection.exec_driver_sql(f"SELECT {column} FROM orders WHERE (SELECT pg_sleep({slept})) IS NULL")
    assert [one["statement"].split()[1] for one in lines()] == ["customer"]


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE orders SET note = 'x' WHERE id = 1 AND (SELECT pg_sleep(0.06)) IS NOT NULL",
        "SELECT id FROM orders WHERE id = 1 AND (SELECT pg_sleep(0.06)) IS NOT NULL FOR UPDATE",
        "WITH gone AS (DELETE FROM orders WHERE id = 1 RETURNING pg_sleep(0.06)) SELECT count(*) FROM gone",
        "SELECT pg_sleep(0.06)",
    ],
)
def test_what_writes_locks_or_reads_no_table_is_not_asked(
    make: Callable[..., Engine], lines: Callable[[], list[Any]], tallies: list[Tally], sql: str
) -> None:
    """Its own line is all."""
    engine = make()
    with guard_invocation(Context()), engine.begin() as connection:
        connection.exec_driver_sql(sql)
    assert lines() == []
    assert (tallies[0].slow_queries, tallies[0].explain_round_trips) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "left_s"),
    [
        ({"slow_query_explain": "off"}, 30.0),
        ({"endpoint": "proxy"}, 30.0),
        # Half a second is more than a quarter of it.
        ({}, 1.9),
        ({}, None),
    ],
    ids=["off", "proxy", "deadline", "no deadline known"],
)
def test_where_nothing_is_asked(
    make: Callable[..., Engine],
    lines: Callable[[], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    left_s: float | None,
) -> None:
    """Where it is switched off, would pin, or would come near the end."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "report_sales")
    engine = make(**changes)
    if left_s is None:
        ask(engine)
    else:
        with guard_invocation(Context(left_s)):
            ask(engine)
    assert lines() == []


def test_a_statement_that_timed_out_is_asked(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """Its transaction is rolled back before, and its line says by what it ended."""
    engine = make(statement_timeout_s=0.1)
    with pytest.raises(DBAPIError):
        ask(
            engine,
            "SELECT id FROM orders WHERE customer = CAST(:c AS int) AND (SELECT pg_sleep(5)) IS NULL",
            customer=1,
        )
    (line,) = lines()
    assert line["error"] == "57014"
    assert line["indexes"] == ["CREATE INDEX CONCURRENTLY ON public.orders (customer)"]


def test_what_the_server_refuses_is_said_and_no_error_of_the_invocation(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]], tallies: list[Tally], database: Database
) -> None:
    """A table that is gone at the end, or locked for longer than is waited: its SQLSTATE, and the session goes on."""
    engine = make()
    first = kept(engine)
    with guard_invocation(Context()):
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TEMPORARY TABLE gone (id int) ON COMMIT DROP")
            connection.exec_driver_sql("SELECT id FROM gone WHERE (SELECT pg_sleep(0.06)) IS NOT NULL")
            connection.exec_driver_sql("INSERT INTO gone VALUES (1)")
            connection.exec_driver_sql("SELECT id FROM gone WHERE (SELECT pg_sleep(0.06)) IS NOT NULL")
        with database.server.session(database=database.name) as other:
            with engine.begin() as connection:
                connection.execute(text(SLEEPS), {"c": 1})
                connection.rollback()
                other("BEGIN")
                other("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            other("ROLLBACK")
    assert [one["not_explained"] for one in lines()] == ["42P01", "55P03"]
    assert kept(engine) is first
    assert (tallies[0].errors, tallies[0].lost) == ({}, 0)


@pytest.mark.parametrize("isolation", ["AUTOCOMMIT", "SERIALIZABLE"])
@pytest.mark.parametrize("access", ["read-only", "read-write"])
def test_however_an_engine_is_set(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]], isolation: str, access: str
) -> None:
    """One that refuses to write, and each isolation level, which is the next one's as before."""
    engine = make(access=access)
    for _ in range(2):
        with engine.connect().execution_options(isolation_level=isolation) as connection:
            connection.execute(text(SLEEPS), {"c": 1})
            assert connection.get_isolation_level() == isolation
    (line,) = lines()
    assert line["indexes"] == ["CREATE INDEX CONCURRENTLY ON public.orders (customer)"]


def test_a_policy_is_planned_with_the_tenant_that_was_set(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]], database: Database
) -> None:
    """What a policy asks for is there while it is planned, and gone behind it; required settings are no obstacle."""
    with database.server.session(database=database.name) as session:
        engine = make(require_settings=("app.tenant",))
        session("ALTER TABLE orders ENABLE ROW LEVEL SECURITY; ALTER TABLE orders FORCE ROW LEVEL SECURITY")
        session("CREATE POLICY mine ON orders USING (customer = current_setting('app.tenant')::int)")
        session("CREATE ROLE tenants; GRANT SELECT ON orders TO tenants")
    options = {"app.tenant": "4711", "role": "tenants"}
    with engine.connect().execution_options(plungepool_settings=options) as connection:
        connection.exec_driver_sql("SELECT id FROM orders WHERE note <> 'n' AND (SELECT pg_sleep(0.06)) IS NULL")
        connection.exec_driver_sql("SELECT pg_sleep(0.06)")
    (line,) = lines()
    assert "current_setting" in line["full_scans"][0]["filter"]
    assert "4711" not in json.dumps(line)
    assert kept(engine).transaction_settings == {}


def test_what_the_collector_returns_is_not_waited_for(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """A finalizer runs in the middle of whatever the program does."""
    engine = make()
    with guard_invocation(Context()):
        connection = engine.connect()
        connection.execute(text(SLEEPS), {"c": 1})
        del connection
    assert lines() == []
    ask(engine)
    assert len(lines()) == 1


def test_an_answer_that_does_not_come_costs_the_connection_only(
    make: Callable[..., Engine],
    lines: Callable[[], list[dict[str, Any]]],
    tallies: list[Tally],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it may take is over: the invocation goes on, and misses nothing; the next one connects."""

    def silent(_text: str, _types: object, run: Callable[[str], object], *, limit_ms: int) -> None:
        run("BEGIN")
        run(f"SELECT pg_sleep({limit_ms})")

    monkeypatch.setattr(why.plans, "why", silent)
    monkeypatch.setattr(why, "_MAY_TAKE_S", 0.5)
    engine = make(deadline="client")
    first = kept(engine)
    with guard_invocation(Context()):
        ask(engine)
    assert [one["not_explained"] for one in lines()] == ["DeadlineExceeded"]
    assert kept(engine) is not first
    assert (tallies[0].deadlines_exceeded, tallies[0].errors, tallies[0].closed) == (0, {}, 1)


def test_a_strike_goes_on_and_closes_the_connection(
    make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of a signal handler's is the program's; the next checkout has the place."""

    class Struck(Exception):
        pass

    def strike(*_: object) -> None:
        raise Struck

    original = why.plans.why

    def slowly(*arguments: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return original(*arguments, **named)

    monkeypatch.setattr(why.plans, "why", slowly)
    before = signal.signal(signal.SIGUSR1, strike)
    try:
        engine = make(checkout_timeout_s=5.0)
        with pytest.raises(Struck):
            ask(engine)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert lines() == []
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1


def test_no_listener_hears_of_it(make: Callable[..., Engine], lines: Callable[[], list[dict[str, Any]]]) -> None:
    """Neither spans nor the recorder, nor a budget of round trips in a test, are to show what no program asked."""
    heard: list[str] = []
    stop = observe.listen_to_flights(lambda _, reply, *__: heard.extend(observe.texts(reply) if reply else ()))
    try:
        ask(make())
    finally:
        stop()
    assert len(lines()) == 1
    assert [one for one in heard if "EXPLAIN" in one or "PREPARE" in one] == []
