"""PLUNGEPOOL_POOL=adaptive on a real server: what keeps a connection, what gives the right back, and what it costs."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until
from poolers import pgbouncer
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from strikes import KINDS, Injector

from plungepool import Settings, build_engine, dispose_engine, fleet, get_engine, guard_invocation, tickets
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection, Engine

LIMIT = 20
PASSWORD = "unmistakable"
PID = text("SELECT pg_backend_pid()")


class Context:
    """What Lambda hands to a handler."""

    def __init__(self, seconds: float = 60) -> None:
        self.aws_request_id, self._ends = str(time.monotonic_ns()), time.time() + seconds

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda's."""
        return int((self._ends - time.time()) * 1000)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server whose roles `app` and `other` may have twenty connections, `pair` two, and `one` one."""
    with Postgres({"max_connections": 60}, authentication="scram-sha-256") as running:
        for role, limit in (("app", LIMIT), ("other", LIMIT), ("pair", 2), ("one", 1)):
            running.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT {limit}")
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(server: Postgres) -> Iterator[None]:
    """Each test begins with no session of the roles."""
    dispose_engine()
    yield
    dispose_engine()
    try:
        wait_until(lambda: sessions(server) == 0, "a session is left")
    finally:  # or every test behind one that fails would wait for it, a minute each
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename NOT IN ('postgres')")


@pytest.fixture
def make(server: Postgres) -> Iterator[Callable[..., Engine]]:
    """
    Build adaptive engines, of environments that were invoked a moment ago, with so many checkouts; all are disposed of
    at the end.
    """
    engines: list[Engine] = []

    def build(options: dict[str, Any] | None = None, *, checkouts: int = 1, **changes: Any) -> Engine:
        engines.append(build_engine(settings_for(server, **changes), **options or {}))
        if checkouts:
            invoke(engines[-1], checkouts)
        return engines[-1]

    yield build
    for engine in engines:
        engine.dispose()


def settings_for(server: Postgres, **changes: Any) -> Settings:
    """Settings of the role `app`."""
    given = {"host": server.host, "port": server.port, "user": "app", "password": PASSWORD, "tls": "disable"}
    return Settings(**(given | {"pool": "adaptive"} | changes))  # type: ignore[arg-type]


def sessions(server: Postgres) -> int:
    """Return how many sessions of these roles there are."""
    ((count,),) = server.execute("SELECT count(*) FROM pg_stat_activity WHERE usename NOT IN ('postgres')")
    return int(count)


def held(server: Postgres) -> list[tuple[int, int]]:
    """Return the advisory locks that are held: class and number."""
    rows = server.execute(
        "SELECT classid::int8, objid::int8 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 ORDER BY 2"
    )
    return [(int(of) - 2**32 if int(of) >= 2**31 else int(of), int(number)) for of, number in rows]


def use(engine: Engine) -> int:
    """Use the engine once; return which session served."""
    with engine.connect() as connection:
        return int(connection.execute(PID).scalar_one())


def invoke(engine: Engine, times: int = 1) -> list[int]:
    """Use the engine so often in one invocation."""
    with guard_invocation(Context()):
        return [use(engine) for _ in range(times)]


@pytest.mark.parametrize("pool", ["tiny", "adaptive"])
@pytest.mark.parametrize(("startup", "connect"), [("pipelined", 6), ("stepwise", 6)])
def test_a_ticket_costs_no_round_trip(server: Postgres, pool: str, startup: str, connect: int) -> None:
    """Counted on get_engine()'s engine: as many as with tiny at a connect, and later; by steps one where it asks."""
    counted = []
    with ChaosProxy(server.host, server.port, latency_ms=10) as proxy:
        engine = get_engine(settings_for(server, port=proxy.port, pool=pool, startup=startup))
        for _ in range(3):
            proxy.round_trips = 0
            with guard_invocation(Context()), engine.connect() as connection:
                assert connection.execute(text("SELECT :x"), {"x": "one"}).scalar_one() == "one"
            counted.append(proxy.round_trips)
        dispose_engine()
    if pool == "tiny":
        assert counted == [connect, 2, 2]
    else:
        assert counted == [connect, connect + (startup == "stepwise"), 2]


def test_later_invocations_ask_nothing(make: Callable[..., Engine], server: Postgres) -> None:
    """One session serves them all, and its ticket is one advisory lock, above what anybody counts by hand."""
    engine = make()
    pids = {pid for _ in range(5) for pid in invoke(engine)}
    assert len(pids) == 1
    ((of, number),) = held(server)
    assert of == tickets.lock_class("postgres", "app", "") < 0
    assert 0 <= number < fleet.tickets(LIMIT)
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]


def test_without_a_ticket_an_invocation_shares_one_and_closes_it(make: Callable[..., Engine], server: Postgres) -> None:
    """Several checkouts of one invocation have the same; the next invocation has another."""
    engine = make(user="one", checkouts=2)
    first, second = invoke(engine, 3), invoke(engine, 2)
    assert (len(set(first)), len(set(second))) == (1, 1)
    assert set(first).isdisjoint(second)
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    wait_until(lambda: sessions(server) == 0)
    assert held(server) == []


def test_where_there_is_one_checkout_it_is_closed_at_its_end(make: Callable[..., Engine], server: Postgres) -> None:
    """Others may want it while the handler is busy with something else; a second checkout shows better."""
    engine = make(user="one")
    with guard_invocation(Context()):
        first = use(engine)
        wait_until(lambda: sessions(server) == 0, "the only connection of the role waits for nothing")
        others = [use(engine) for _ in range(2)]
        assert first != others[0] == others[1]
        assert sessions(server) == 1
    assert len(set(invoke(engine, 2))) == 1


def test_behind_a_pooler_that_nobody_named_nothing_is_kept(
    server: Postgres, make: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """Its sessions serve many, and each environment would hold a ticket at once: seen at the first, and said."""
    with pgbouncer(server, users={"app": PASSWORD}, default_pool_size=1) as port:
        engine = make(port=port)
        assert [engine.pool.checkedin() for _ in range(4) if invoke(engine)] == [0] * 4  # type: ignore[attr-defined]
        assert len(held(server)) == 1
        (said,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
        assert "PLUNGEPOOL_ENDPOINT=proxy" in said
        engine.dispose()


def test_a_first_connect_asks_for_no_ticket(make: Callable[..., Engine], server: Postgres) -> None:
    """Of hundreds that a spike has started each would be as good as any other: who comes back has one."""
    engine = make(checkouts=0)
    first = invoke(engine)
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    second = invoke(engine)
    assert first != second == invoke(engine)
    assert len(held(server)) == 1


def test_who_comes_back_after_a_lease_asks_for_none(
    make: Callable[..., Engine], server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it would keep would be gone by then."""
    engine = make()
    monkeypatch.setattr(fleet, "_LEASES_S", (0.0, 0.0, 0.0))
    assert invoke(engine) != invoke(engine)
    assert held(server) == []


def test_outside_of_an_invocation_it_asks_at_once(make: Callable[..., Engine], server: Postgres) -> None:
    """At init, while a snapshot is restored, without a guard: what is not kept would not outlive its checkout."""
    engine = make(checkouts=0)
    assert use(engine) == use(engine)
    assert len(held(server)) == 1


def test_only_the_outermost_guard_ends_it(make: Callable[..., Engine]) -> None:
    """A guard within another one is no invocation of its own; a handler that fails ends as any does."""
    engine = make(fleet_limit=1, checkouts=2)
    context = Context()
    with contextlib.suppress(ZeroDivisionError), guard_invocation(context):
        with guard_invocation(context):
            first = use(engine)
        assert use(engine) == first
        raise ZeroDivisionError
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]


def test_without_a_guard_it_is_closed_at_return(make: Callable[..., Engine]) -> None:
    """Nobody says when the invocation ends."""
    engine = make(fleet_limit=1)
    assert use(engine) != use(engine)
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]


def test_what_leaks_out_of_an_invocation_is_not_kept(make: Callable[..., Engine], server: Postgres) -> None:
    """Neither what the guard returns nor what it closes."""
    engine = make(user="one", pool_size=2)
    kept: list[Connection] = []
    with guard_invocation(Context()):
        kept.append(engine.connect())
        kept[0].execute(PID)
    wait_until(lambda: sessions(server) == 0)
    assert use(engine)


def test_a_thread_that_outlives_the_invocation_keeps_nothing(make: Callable[..., Engine], server: Postgres) -> None:
    """What it returns after the end is closed then."""
    engine = make(fleet_limit=1, pool_size=2)
    taken, over = threading.Event(), threading.Event()

    def work() -> None:
        with contextlib.suppress(DBAPIError), engine.connect() as connection:
            connection.execute(PID)
            taken.set()
            over.wait(30)

    thread = threading.Thread(target=work)
    with guard_invocation(Context()):
        thread.start()
        taken.wait(30)
        use(engine)
    over.set()
    thread.join()
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    wait_until(lambda: sessions(server) == 0)


def fork_environments(count: int, engine: Engine) -> list[tuple[int, int]]:
    """Fork environments that serve two invocations each and are frozen then; return process and end of a pipe."""
    environments = []
    for _ in range(count):
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                invoke(engine)
                invoke(engine)
                os.write(writes, b"x")
                signal.pause()
            finally:
                os._exit(status)
        os.close(writes)
        environments.append((child, reads))
    for _, reads in environments:
        assert os.read(reads, 1) == b"x"
        os.close(reads)
    return environments


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_frozen_environments_hold_no_more_than_their_share(make: Callable[..., Engine], server: Postgres) -> None:
    """
    Thirty environments, by turns of ten, and twenty connections: never more kept than tickets; killed ones give back.
    """
    engine = make(checkout_timeout_s=60)
    environments: list[tuple[int, int]] = []
    try:
        for _ in range(3):
            environments += fork_environments(10, engine)
        wait_until(lambda: sessions(server) == len(held(server)), "a connection is kept without a ticket")
        kept = held(server)
        assert fleet.tickets(LIMIT) // 2 < len(kept) <= fleet.tickets(LIMIT)
        assert len(set(kept)) == len(kept)
        assert {of for of, _ in kept} == {tickets.lock_class("postgres", "app", "")}
        use(engine)  # a fresh one finds room beside those that are frozen
        engine.dispose()
    finally:
        for child, _ in environments:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    wait_until(lambda: held(server) == [])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"user": "other"}),
        ({"fleet": "shop", "fleet_limit": 2}, {"fleet": "desk", "fleet_limit": 2}),
        ({}, {"fleet": "desk", "fleet_limit": 2}),
    ],
    ids=["roles", "fleets", "one that is named"],
)
def test_two_applications_do_not_share_tickets(
    make: Callable[..., Engine], server: Postgres, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """By their roles, or by their names where they log in as the same role."""
    invoke(make(**one))
    invoke(make(**other))
    assert len({of for of, _ in held(server)}) == 2


@pytest.mark.parametrize("database", ["postgres", "elsewhere"])
def test_who_a_listener_makes_of_it_counts(make: Callable[..., Engine], server: Postgres, database: str) -> None:
    """
    A role or a database that a listener for `do_connect` has put in place of the settings': its tickets, and its limit.
    """
    engine = make(checkouts=0)

    @event.listens_for(engine, "do_connect")
    def change(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
        assert "first_statement" not in parameters
        parameters |= {"user": "pair", "database": database}

    server.execute("CREATE DATABASE elsewhere")
    try:
        assert use(engine) == use(engine)
        assert held(server) == [(tickets.lock_class(database, "pair", ""), 0)]
        engine.dispose()
    finally:
        server.execute("DROP DATABASE elsewhere WITH (FORCE)")


def test_a_statement_of_a_listener_s_own_brings_no_ticket(make: Callable[..., Engine], server: Postgres) -> None:
    """What it returns is the listener's affair, even where it looks like a grant."""
    engine = make(checkouts=0)

    @event.listens_for(engine, "do_connect")
    def change(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
        parameters["first_statement"] = "SELECT 30000, 7, pg_backend_pid()"

    assert use(engine) != use(engine)
    assert held(server) == []


def test_functions_of_one_role_share_them(make: Callable[..., Engine], server: Postgres) -> None:
    """A role that may have two has one ticket, whoever logs in as it."""
    first, second = make(user="pair"), make(user="pair")
    assert invoke(first) == invoke(first)
    assert invoke(second) != invoke(second)
    first.dispose()
    wait_until(lambda: not held(server))
    assert invoke(second) == invoke(second)


def test_the_server_works_the_law_out_as_python_does(server: Postgres) -> None:
    """Limits of 1 to 30, at the ends of chance and within: the same tickets are tried, and as many there are."""
    found, expected = [], []
    ends = [0.0, 1 - 2**-32, 0.5]
    for limit in (1, 2, 3, 4, 5, 6, 9, 30):
        server.execute(f"ALTER ROLE postgres CONNECTION LIMIT {limit}")
        draws = [tuple(ends[(seed >> place) % 3] for place in (0, 1, 2)) for seed in range(9)]
        draws += [tuple(int.from_bytes(os.urandom(4)) / 2**32 for _ in range(3)) for _ in range(9)]
        for chances in draws:
            (row,) = server.execute(tickets._drawn(chances))
            found.append([number for number in row if number is not None])
            count = fleet.tickets(limit)
            expected.append([count, *fleet.probes(count, chances)])
    server.execute("ALTER ROLE postgres CONNECTION LIMIT -1")
    assert found == expected


def limit_of(server: Postgres) -> int:
    """Return how many tickets the server finds."""
    return int(server.execute(tickets._drawn([0.5, 0.5, 0.5]))[0][0])


def test_the_least_of_all_limits_counts(server: Postgres) -> None:
    """The server's less what is reserved, the database's, the role's."""
    assert limit_of(server) == fleet.tickets(60 - 3)
    server.execute("ALTER DATABASE postgres CONNECTION LIMIT 30")
    assert limit_of(server) == fleet.tickets(30)
    server.execute("ALTER ROLE postgres CONNECTION LIMIT 10")
    assert limit_of(server) == fleet.tickets(10)
    server.execute("ALTER ROLE postgres CONNECTION LIMIT -1; ALTER DATABASE postgres CONNECTION LIMIT -1")


@pytest.mark.parametrize("limit", [2, 3, 5, 30])
def test_a_limit_of_the_settings_counts_instead(make: Callable[..., Engine], server: Postgres, limit: int) -> None:
    """Also where there are fewer tickets than probes."""
    engine = make(fleet_limit=limit)
    assert invoke(engine) == invoke(engine)
    ((_, number),) = held(server)
    assert number < fleet.tickets(limit)


@pytest.mark.parametrize(
    "statement",
    [
        "DISCARD ALL",
        "SELECT pg_advisory_unlock_all()",
        "RESET ALL",
        "SET idle_session_timeout = 0",
        "SELECT set_config('idle_session_timeout', '0', false)",
    ],
)
def test_what_gives_the_ticket_back_is_noticed(make: Callable[..., Engine], server: Postgres, statement: str) -> None:
    """Nobody asks the server: the connection ends with the invocation, and the next one has a ticket of its own."""
    engine = make({"isolation_level": "AUTOCOMMIT"}, checkouts=2)
    before = invoke(engine, 2)[:1]
    with guard_invocation(Context()):
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        assert [use(engine)] == before  # to the end of the invocation it is shared as before
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    after = invoke(engine)
    assert after != before
    assert invoke(engine) == after
    assert len(held(server)) == 1


def test_a_statement_that_failed_counts_as_well(make: Callable[..., Engine]) -> None:
    """What it did to locks is not undone with its transaction."""
    engine = make()
    with guard_invocation(Context()), pytest.raises(DBAPIError), engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_advisory_unlock_all(), 1 / (random() * 0)::int")
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]


def test_locks_of_the_users_own_are_not_disturbed(make: Callable[..., Engine], server: Postgres) -> None:
    """They are held as long as the session is, and taken back one by one."""
    engine = make({"isolation_level": "AUTOCOMMIT"})
    with guard_invocation(Context()), engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_advisory_lock(7, 1), pg_advisory_lock(42)")
    assert invoke(engine) == invoke(engine)
    assert {of for of, _ in held(server)} == {7, tickets.lock_class("postgres", "app", "")}


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of 0.3 s, which nobody relies on for the last 0.1."""
    monkeypatch.setattr(fleet, "_LEASES_S", (0.3, 0.3, 0.3))
    monkeypatch.setattr(fleet, "GRACE_S", 0.1)


@pytest.mark.usefixtures("short_leases")
def test_a_frozen_holder_loses_its_connection_and_nobody_is_told(
    make: Callable[..., Engine], server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """The server ends it, the ticket is free, and the next invocation connects without a word at INFO."""
    caplog.set_level(logging.DEBUG, "plungepool")
    engine = make()
    before = invoke(engine)
    wait_until(lambda: sessions(server) == 0, "the lease did not end")
    assert held(server) == []
    assert invoke(engine) != before
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("DEBUG", "a kept connection was replaced: its lease of 0.3 s had expired")
    ]


def test_a_shorter_lease_of_the_roles_own_holds_and_is_seen_at_the_socket(
    make: Callable[..., Engine], server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """idle_session_timeout of the role, which the ticket does not lengthen: as quiet, and found without asking."""
    caplog.set_level(logging.DEBUG, "plungepool")
    server.execute("ALTER ROLE app SET idle_session_timeout = '100ms'")
    engine = make()
    try:
        before = invoke(engine)
        wait_until(lambda: sessions(server) == 0)
        assert invoke(engine) != before
    finally:
        server.execute("ALTER ROLE app RESET idle_session_timeout")
    (line,) = caplog.records
    assert line.levelname == "DEBUG"
    assert "57P05" in line.getMessage()


@pytest.mark.parametrize(("role", "expected"), [("15min", "30s"), ("29s", "29s"), ("0", "30s"), ("1d", "30s")])
def test_a_lease_is_the_shorter_one(make: Callable[..., Engine], server: Postgres, role: str, expected: str) -> None:
    """Of the role's, as `prepare_database` sets it, and the ticket's."""
    server.execute(f"ALTER ROLE app SET idle_session_timeout = '{role}'")
    try:
        with make(fleet_limit=262143).connect() as connection:
            assert connection.exec_driver_sql("SHOW idle_session_timeout").scalar_one() == expected
    finally:
        server.execute("ALTER ROLE app RESET idle_session_timeout")


@pytest.mark.usefixtures("short_leases")
def test_no_lease_strikes_within_a_transaction(make: Callable[..., Engine]) -> None:
    """It is a limit of idle sessions, and a session in a transaction is none."""
    engine = make()
    with guard_invocation(Context()), engine.begin() as connection:
        before = connection.execute(PID).scalar_one()
        time.sleep(0.5)
        assert connection.execute(PID).scalar_one() == before


@pytest.mark.usefixtures("short_leases")
def test_a_session_that_idles_in_use_ends_with_a_known_outcome(make: Callable[..., Engine]) -> None:
    """Between a checkout and its first statement the session is idle: what comes too late was not executed."""
    engine = make()
    with guard_invocation(Context()), pytest.raises(DBAPIError) as caught, engine.connect() as connection:
        time.sleep(0.6)
        connection.execute(PID)
    assert caught.value.connection_invalidated
    original: Any = caught.value.orig
    assert (original.sqlstate, original.outcome_unknown) == ("57P05", False)


def test_a_role_that_may_take_no_locks_keeps_nothing_and_says_so_once(
    make: Callable[..., Engine], server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """The statement's error is no error of the user's: a warning, once for an engine."""
    server.execute("CREATE DATABASE locked")
    administrator = make(user="postgres", password=server.password, database="locked", pool="null")
    with administrator.begin() as connection:
        connection.exec_driver_sql("REVOKE EXECUTE ON FUNCTION pg_try_advisory_lock(int, int) FROM PUBLIC")
    engine = make(database="locked", checkouts=2)
    assert len(set(invoke(engine, 2))) == 1
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    invoke(engine)
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "PLUNGEPOOL_POOL=adaptive keeps no connection after the invocation" in warning
    assert "42501" in warning


LIES = [
    "SELECT 'abc', 7, pg_backend_pid()",
    "SELECT 30000, 'many', pg_backend_pid()",
    "SELECT 30000, NULL, pg_backend_pid()",
    "SELECT 30000, 0, pg_backend_pid()",
    "SELECT 30000, 7, 'abc'",
    "SELECT 30000, 7, NULL",
    "SELECT NULL, NULL, NULL",
    "SELECT true, 7, pg_backend_pid()",
    "SELECT ARRAY[30000], 7, pg_backend_pid()",
    "SELECT '1 day'::interval, 7, pg_backend_pid()",
    "SELECT 30000.5, 7, pg_backend_pid()",
    "SELECT 'NaN'::float8, 7, pg_backend_pid()",
    "SELECT 'Infinity'::float8, 7, pg_backend_pid()",
    "SELECT 30001, 7, pg_backend_pid()",
    "SELECT -5, 7, pg_backend_pid()",
    "SELECT 30000",
    "SELECT 1 WHERE false",
    "SELECT",
    "SELECT 30000, 7, pg_backend_pid() FROM generate_series(1, 2)",
    "COPY (SELECT 1) TO STDOUT",
]
ERRORS = [
    "SELECT 1 / 0",
    "SELECT 30000, 7, pg_backend_pid(); SELECT 1 / 0",
    "CREATE TEMP TABLE t (a int); COPY t FROM STDIN",
]


@pytest.mark.parametrize("answer", LIES + ERRORS)
def test_an_answer_that_is_none_keeps_nothing_and_is_told_once(
    make: Callable[..., Engine], server: Postgres, caplog: Any, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """Other types, rows or numbers, or an error behind a row: the invocation is not touched."""
    monkeypatch.setattr(tickets, "statement", lambda *_: answer)
    engine = make()
    assert invoke(engine) != invoke(engine)
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    wait_until(lambda: sessions(server) == 0)
    (told,) = [one.getMessage() for one in caplog.records]
    said = "SQLSTATE" if answer in ERRORS else "the request for a ticket is not valid"
    assert told.startswith("PLUNGEPOOL_POOL=adaptive keeps no connection after the invocation: ")
    assert said in told


@pytest.mark.parametrize(
    "before", ["LISTEN ours; NOTIFY ours, 'between'", "DO $$ BEGIN RAISE WARNING 'between'; END $$"]
)
def test_what_comes_before_the_answer_does_not_matter(
    make: Callable[..., Engine], server: Postgres, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """A notification, a notice: a server may send them at any time."""
    ask = tickets.statement
    monkeypatch.setattr(tickets, "statement", lambda *given: f"{before}; {ask(*given)}")
    engine = make()
    assert invoke(engine) == invoke(engine)
    assert len(held(server)) == 1


def test_a_session_that_begins_in_a_transaction_is_none(
    make: Callable[..., Engine], server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done in it would not be kept by the COMMIT of whoever has it: it is closed, and that is said."""
    monkeypatch.setattr(tickets, "statement", lambda *_: "BEGIN; SELECT 30000, 7, pg_backend_pid()")
    engine = make()
    with pytest.raises(OperationalError, match="broke the protocol: a new session that is in a transaction"):
        invoke(engine)
    wait_until(lambda: sessions(server) == 0)


def test_a_server_without_leases_gives_no_tickets(
    make: Callable[..., Engine], server: Postgres, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before PostgreSQL 14 a frozen environment could not be made to give its connection back."""
    monkeypatch.setattr(tickets, "_LEASE", "plungepool.no_such_setting")
    for limit in (0, 10):
        engine = make(fleet_limit=limit)
        assert invoke(engine) != invoke(engine)
        assert held(server) == []
    told = (
        "PLUNGEPOOL_POOL=adaptive keeps no connection after the invocation: the server has no idle_session_timeout, "
        "which requires PostgreSQL 14 or later"
    )
    assert [one.getMessage() for one in caplog.records] == [told, told]


def test_behind_a_proxy_it_is_tiny(make: Callable[..., Engine], server: Postgres) -> None:
    """No lock is taken there, which would pin, and no setting changed."""
    engine = make(endpoint="proxy", fleet_limit=10)
    assert invoke(engine) == invoke(engine)
    assert use(engine) == use(engine)
    assert held(server) == []
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW idle_session_timeout").scalar_one() == "0"


def test_a_database_that_wakes_up_is_waited_for(server: Postgres) -> None:
    """It takes connections and says nothing for a while, then it refuses, then it is there: one invocation's time."""
    with ChaosProxy(server.host, server.port) as proxy:
        proxy.partition()
        engine = build_engine(settings_for(server, port=proxy.port, connect_timeout_s=0.3))

        def wake() -> None:
            time.sleep(0.7)
            proxy.refuse()
            proxy.heal()
            time.sleep(0.5)
            proxy.accept()

        thread = threading.Thread(target=wake)
        thread.start()
        try:
            invoke(engine)
            assert not thread.is_alive()
        finally:
            thread.join()
            engine.dispose()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, int]]]:
    """A name service: where names lead, as they lead at that moment."""
    led_to: dict[str, list[tuple[str, int]]] = {}
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        return [one for place in led_to.get(host, [(host, port)]) for one in look_up(*place, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return led_to


def together(engine: Engine, count: int) -> list[tuple[int, int]]:
    """Use so many connections at a time; return the process and the port of each one's server."""
    taken = [engine.connect() for _ in range(count)]
    rows = [one.exec_driver_sql("SELECT pg_backend_pid(), inet_server_port()").one() for one in taken]
    for one in reversed(taken):
        one.close()
    return [(int(pid), int(port)) for pid, port in rows]


@pytest.mark.parametrize("access", ["read-write", "read-only"])
def test_what_leads_to_where_the_name_led_before_is_dropped(
    server: Postgres, postgres: Postgres, names: dict[str, list[tuple[str, int]]], access: str, caplog: Any
) -> None:
    """
    A connect shows that the name leads elsewhere: what is kept to the old place goes, in use or not, at no look-up of
    its own. A reader's name may lead to several by turns.
    """
    caplog.set_level(logging.INFO, "plungepool")
    blue, green = (server.host, server.port), (postgres.host, postgres.port)
    postgres.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
    names["shop.internal"] = [blue]
    engine = build_engine(settings_for(server, host="shop.internal", pool="tiny", pool_size=3, access=access))
    try:
        before = together(engine, 3)
        assert {port for _, port in before} == {blue[1]}
        assert together(engine, 3) == before
        names["shop.internal"] = [green, blue]
        server.execute("SELECT pg_terminate_backend($1::int, 5000)", before[0][0])
        assert {port for _, port in together(engine, 3)} == {blue[1], green[1]}  # both are shown: either is right
        names["shop.internal"] = [green]
        with engine.connect() as used:
            leader, port = used.exec_driver_sql("SELECT pg_backend_pid(), inet_server_port()").one()
            (postgres if port == green[1] else server).execute("SELECT pg_terminate_backend($1::int, 5000)", leader)
        caplog.clear()
        ports = [port for _, port in together(engine, 3)]
        if access == "read-only":
            assert blue[1] in ports
        else:
            assert ports == [green[1]] * 3
            wait_until(lambda: sessions(server) == 0)
            assert any("the host name now resolves to another address" in one.getMessage() for one in caplog.records)
    finally:
        engine.dispose()
        wait_until(lambda: not postgres.execute("SELECT 1 FROM pg_stat_activity WHERE usename = 'app'"))
        postgres.execute("DROP ROLE app")


@pytest.mark.filterwarnings("ignore:Double checkin attempted")
@pytest.mark.parametrize(("limit", "steps"), [(0, 23), (1, 31)], ids=["with a ticket", "without"])
def test_strike_at_each_line_costs_a_connection_at_most(
    make: Callable[..., Engine], server: Postgres, limit: int, steps: int
) -> None:
    """
    Wherever an invocation is struck, its guard included: the next one works, keeps by a ticket or not at all, and no
    other ticket or connection is left.
    """
    engine = make(fleet_limit=limit, checkout_timeout_s=2)
    problems: list[BaseException] = []
    struck = 0

    def run() -> None:
        nonlocal struck
        at = 0
        while True:
            at += steps
            with Injector(at, KINDS[at % 4]) as injector:
                try:
                    if at % 2:
                        engine.dispose()
                    invoke(engine, 2)
                except BaseException:
                    if not injector.struck:
                        raise
            struck += injector.struck
            invoke(engine)
            invoke(engine)  # where the strike has cost the first its evidence, it has shown that it comes back
            assert engine.pool.checkedin() == (0 if limit else 1)  # type: ignore[attr-defined]
            if not injector.struck and injector.left > 0:
                return

    def work() -> None:
        try:
            run()
        except BaseException as problem:
            problems.append(problem)

    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.disable(logging.CRITICAL)
    try:
        # A trace function may leave its thread as if it handled an exception.
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join()
    finally:
        logging.disable(logging.NOTSET)
        sys.unraisablehook = before
    assert problems == []
    assert struck > 20
    wait_until(lambda: sessions(server) == len(held(server)) == (0 if limit else 1), "more is left than is kept")


VOIDS = [
    "discard all",
    "DISCARD/* what else */ALL",
    "DISCARD --\rALL",
    "SELECT 1; DISCARD -- all of it\n ALL",
    "RESET\n\tALL",
    "select pg_advisory_unlock(1)",
    "SELECT PG_ADVISORY_UNLOCK_ALL()",
    "DO $$ BEGIN PERFORM pg_advisory_unlock_all(); END $$",
    "SET SESSION idle_session_timeout TO '1h'",
    "RESET idle_session_timeout",
]
HARMLESS = [
    "SELECT 1",
    "DISCARD PLANS",
    "RESET ROLE",
    "SELECT reset, all_of_it FROM discarded",
    "SELECT pg_advisory_lock(1)",
    "SET statement_timeout = 5",
    "SELECT set_config('app.tenant_id', $1, true)",
]


@pytest.mark.parametrize("statement", VOIDS)
def test_a_ticket_is_void_by(statement: str) -> None:
    """Comments and case make no difference, nor does what else stands in the text."""
    ticket = tickets.Ticket(30.0)
    ticket(statement, ())
    assert ticket.lease_s == 0


@pytest.mark.parametrize("statement", HARMLESS)
def test_a_ticket_is_not_void_by(statement: str) -> None:
    """What looks like it only."""
    ticket = tickets.Ticket(30.0)
    ticket(statement, ("idle", 5, None))
    assert ticket.lease_s == 30


@pytest.mark.parametrize(
    ("parameters", "lease_s"), [(("IDLE_session_timeout", "0"), 0), (("app.x", "0"), 30), (None, 30)]
)
def test_the_name_of_a_setting_may_be_a_parameter(parameters: Sequence[object], lease_s: float) -> None:
    """Of set_config, which takes any."""
    ticket = tickets.Ticket(30.0)
    ticket("SELECT set_config($1, $2, false)", parameters)
    assert ticket.lease_s == lease_s
