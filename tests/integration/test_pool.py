"""One contract over both pools, on a real server; what the server itself counts is the proof."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from elsewhere import in_a_child, wait_until
from sqlalchemy import Column, Integer, MetaData, String, Table, event, exc, select, text
from sqlalchemy.orm import Session, declarative_base

from plungepool import PoolExhausted, Unavailable, wire
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

PID = text("SELECT pg_backend_pid()")


def sessions(postgres: Postgres, name: str = "plungepool") -> list[int]:
    """Return the server processes that serve connections of this application name, as the server counts them."""
    rows = postgres.execute("SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY pid", name)
    return [pid for (pid,) in rows]


def test_thousand_checkouts(engine: Engine, postgres: Postgres, pool_mode: str) -> None:
    """tiny: one server process serves a thousand checkouts; null: each has its own and none stays open."""
    pids = set()
    for _ in range(1000 if pool_mode == "tiny" else 50):
        with engine.connect() as connection:
            pids.add(connection.execute(PID).scalar_one())
    if pool_mode == "tiny":
        assert len(pids) == 1
        assert sessions(postgres) == list(pids)
    else:
        assert len(pids) == 50
        wait_until(lambda: sessions(postgres) == [])


def test_commit_keeps_and_rollback_undoes(engine: Engine) -> None:
    """begin() commits at its end and rolls back on an exception; a plain connect() rolls back at return."""
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS contract"))
        connection.execute(text("CREATE TABLE contract (n int)"))
        connection.execute(text("INSERT INTO contract VALUES (:n)"), {"n": 1})
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        connection.execute(text("INSERT INTO contract VALUES (2)"))
        _ = 1 / 0
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO contract VALUES (3)"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT array_agg(n) FROM contract")).scalar_one() == [1]


def test_failed_statement_leaves_a_usable_engine(engine: Engine) -> None:
    """After an error of the server the next checkout starts clean."""
    with pytest.raises(exc.DBAPIError), engine.begin() as connection:
        connection.execute(text("SELECT 1 / 0"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_second_checkout_in_one_invocation_says_where_the_first_was_taken(engine: Engine) -> None:
    """The error names the time-out, the setting, and the file, line and function that hold the connection."""
    with engine.connect():
        with pytest.raises(PoolExhausted) as caught, engine.connect():
            pytest.fail("the pool gave a second connection")
    message = str(caught.value)
    assert "PLUNGEPOOL_CHECKOUT_TIMEOUT_S" in message
    assert "test_pool.py:" in message
    assert "test_second_checkout_in_one_invocation_says_where_the_first_was_taken" in message
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_threads_wait_for_their_turn(make_engine: Callable[..., Engine], pool_mode: str, postgres: Postgres) -> None:
    """Eight threads over a pool of two are all served, and the server never sees a third connection."""
    engine = make_engine(pool=pool_mode, pool_size=2, checkout_timeout_s=30)
    seen, errors = [], []

    def work() -> None:
        try:
            for _ in range(5):
                with engine.connect() as connection:
                    connection.execute(text("SELECT pg_sleep(0.005)"))
                    seen.append(engine.pool.checkedout())
        except exc.SQLAlchemyError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(seen) == 40
    assert max(seen) <= 2


def test_orm_session_works(engine: Engine) -> None:
    """The engine is a plain one: declarative models, flush, query and rollback as anywhere."""
    base = declarative_base()

    class Pond(base):
        __tablename__ = "pond"
        id = Column(Integer, primary_key=True)
        name = Column(String(20), nullable=False)

    base.metadata.drop_all(engine)
    base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Pond(name="upper"), Pond(name="lower")])
    with Session(engine) as session:
        assert session.scalars(select(Pond.name).order_by(Pond.id)).all() == ["upper", "lower"]
        session.add(Pond(name="lost"))
        session.flush()
    with Session(engine) as session:
        assert len(session.scalars(select(Pond)).all()) == 2


def test_two_engines_for_two_settings(make_engine: Callable[..., Engine], postgres: Postgres) -> None:
    """Two databases have an engine and a connection each."""
    postgres.execute("DROP DATABASE IF EXISTS second")
    postgres.execute("CREATE DATABASE second")
    first, second = make_engine(), make_engine(database="second")
    with first.connect() as one, second.connect() as two:
        assert one.execute(text("SELECT current_database()")).scalar_one() == "postgres"
        assert two.execute(text("SELECT current_database()")).scalar_one() == "second"


def test_connection_that_the_server_ended_is_replaced(engine: Engine, postgres: Postgres) -> None:
    """A kept connection that was ended while nobody looked costs the next invocation nothing but a connect."""
    with engine.connect() as connection:
        first = connection.execute(PID).scalar_one()
    postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'plungepool'")
    wait_until(lambda: first not in sessions(postgres))
    with engine.begin() as connection:
        assert connection.execute(PID).scalar_one() != first


def test_connection_past_its_age_is_replaced(make_engine: Callable[..., Engine]) -> None:
    """A connection older than PLUNGEPOOL_MAX_AGE_S is closed at checkout and a new one opened."""
    engine = make_engine(max_age_s=0.1)
    with engine.connect() as connection:
        first = connection.execute(PID).scalar_one()
    time.sleep(0.15)
    with engine.connect() as connection:
        assert connection.execute(PID).scalar_one() != first


def test_kept_connection_is_asked_only_after_a_long_idle_time(
    make_engine: Callable[..., Engine], postgres: Postgres
) -> None:
    """A look at the socket costs no round trip; past PLUNGEPOOL_PING_AFTER_IDLE_S one question is asked."""
    trips = {}
    with ChaosProxy(postgres.host, postgres.port) as network:
        for ping_after_idle_s in (30, 0):
            engine = make_engine(port=network.port, ping_after_idle_s=ping_after_idle_s)
            for _ in range(2):  # the second is warm
                network.round_trips = 0
                with engine.connect() as connection:
                    connection.execute(PID)
            trips[ping_after_idle_s] = network.round_trips
            engine.dispose()
    assert trips == {30: 2, 0: 3}


def test_kept_connection_whose_network_died_in_silence_is_replaced(
    make_engine: Callable[..., Engine], postgres: Postgres
) -> None:
    """
    A thawed environment whose connection is swallowed by the network has its row all the same, in this invocation.
    """
    with ChaosProxy(postgres.host, postgres.port) as lost, ChaosProxy(postgres.host, postgres.port) as found:
        engine = make_engine(port=lost.port, ping_after_idle_s=0, connect_timeout_s=1)
        with engine.connect() as connection:
            first = connection.execute(PID).scalar_one()
        lost.partition()
        # The next connect goes another way, as it does once a name resolves to the new writer.
        route = wire.connect
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wire, "connect", lambda **arguments: route(**{**arguments, "port": found.port}))
            with engine.connect() as connection:
                assert connection.execute(PID).scalar_one() != first
        lost.heal()


def test_server_gone_then_back(make_engine: Callable[..., Engine], pool_mode: str) -> None:
    """While the server is away each invocation fails with OperationalError; once it is back the same engine works."""
    with Postgres({"max_connections": 10}) as server:
        engine = make_engine(
            host=server.host, port=server.port, password=server.password, pool=pool_mode, checkout_timeout_s=1
        )
        with engine.connect() as connection:
            connection.execute(PID)
        server.stop()
        for _ in range(2):
            with pytest.raises((exc.OperationalError, exc.InterfaceError)), engine.connect() as connection:
                connection.execute(PID)
        server.start()
        with engine.connect() as connection:
            assert connection.execute(PID).scalar_one() > 0
        assert engine.pool.checkedout() == 0
        engine.dispose()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_stop_of_the_server_is_unavailable_and_nothing_else(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture, pool_mode: str, stop: signal.Signals
) -> None:
    """
    In the middle of statements: each error says "later", the first try after the start works, nothing is logged. In the
    middle of connects there is no error: they wait for the start.
    """
    attempts: list[tuple[float, BaseException | None]] = []
    over = threading.Event()
    with Postgres({"max_connections": 10}) as server:
        engine = make_engine(host=server.host, port=server.port, password=server.password, pool=pool_mode)

        def work() -> None:
            while not over.is_set():
                began = time.monotonic()
                try:
                    with engine.begin() as connection:
                        connection.execute(text("SELECT :x, pg_sleep(0.002)"), {"x": 1}).one()
                    attempts.append((began, None))
                except BaseException as error:
                    attempts.append((began, error))

        def first_attempts(count: int) -> list[BaseException | None]:
            """Wait for so many from now on, and return what stopped each."""
            now = time.monotonic()
            wait_until(lambda: sum(began > now for began, _ in attempts) >= count)
            return [error for began, error in attempts if began > now][:count]

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for _ in range(3):
                first_attempts(5)
                os.kill(server.pid, stop)
                wait_until(lambda: not server.running)
                server.start()
                assert first_attempts(1) == [None]
        finally:
            over.set()
            thread.join()
    errors = [error for _, error in attempts if error is not None]
    assert errors or pool_mode == "null", "a kept connection is always in the middle of a statement"
    assert [error for error in errors if not isinstance(error, Unavailable)] == []
    assert caplog.records == []


@pytest.mark.parametrize("dropped", [False, True])
def test_a_connection_that_is_lost_returns_without_a_word(
    make_engine: Callable[..., Engine], postgres: Postgres, caplog: pytest.LogCaptureFixture, dropped: bool
) -> None:
    """Given back, or dropped and found by the collector: the server has rolled back, so that there is no failure."""
    engine = make_engine()
    connection = engine.connect()
    pid = connection.execute(PID).scalar_one()
    postgres.execute(f"SELECT pg_terminate_backend({pid}, 10000)")
    if not dropped:
        connection.close()
    del connection
    gc.collect()
    assert caplog.records == []
    with engine.connect() as connection:
        assert connection.execute(PID).scalar_one() != pid


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_never_touches_the_parents_connection(
    make_engine: Callable[..., Engine], postgres: Postgres
) -> None:
    """The child opens its own connection; the parent's goes on, in the middle of its transaction too."""
    engine = make_engine(pool_size=2)
    with engine.connect() as connection:
        kept = connection.execute(PID).scalar_one()
    held = engine.connect()
    held.execute(text("CREATE TEMP TABLE ours ON COMMIT DROP AS SELECT 42 AS answer"))

    def connect() -> int:
        with engine.connect() as connection:
            own = connection.execute(PID).scalar_one()
        # What the parent had checked out: closing it here must not reach the server, and says so.
        with pytest.raises(exc.InterfaceError, match="only the parent may use it"):
            held.close()
        engine.dispose()
        return int(own)

    own = in_a_child(connect)
    assert own.isdigit(), own
    assert int(own) != kept
    assert held.execute(text("SELECT answer FROM ours")).scalar_one() == 42
    held.close()


def test_connect_timeout_does_not_stay_on_as_a_read_timeout(make_engine: Callable[..., Engine]) -> None:
    """A statement may take longer than the time allowed to connect."""
    engine = make_engine(connect_timeout_s=2)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1 FROM pg_sleep(2.5)")).scalar_one() == 1


def test_statement_timeout_reaches_the_server(make_engine: Callable[..., Engine]) -> None:
    """PLUNGEPOOL_STATEMENT_TIMEOUT_S is the server's statement_timeout from the first statement on."""
    engine = make_engine(statement_timeout_s=0.25)
    with engine.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "250ms"
        with pytest.raises(exc.DBAPIError, match="statement timeout"):
            connection.execute(text("SELECT pg_sleep(5)"))


def test_table_metadata_and_core_insert(engine: Engine) -> None:
    """create_all, executemany and RETURNING as with SQLAlchemy's own dialects."""
    metadata = MetaData()
    table = Table("many", metadata, Column("id", Integer, primary_key=True), Column("name", String))
    metadata.drop_all(engine)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"name": f"n{n}"} for n in range(250)])
        ids = connection.execute(table.insert().returning(table.c.id), [{"name": "a"}, {"name": "b"}]).scalars().all()
    assert ids == [251, 252]


def test_exhaustion_names_the_users_line(make_engine: Callable[..., Engine]) -> None:
    """`with engine.begin()`, a Session and a generator of one: the line of the user, never one of a library's."""
    engine = make_engine(checkout_timeout_s=0.05)

    def by_begin() -> str:
        with engine.begin(), pytest.raises(PoolExhausted) as caught, engine.begin():
            pytest.fail("the pool gave a second connection")
        return str(caught.value)

    def by_session() -> str:
        with Session(engine) as session:
            session.execute(text("SELECT 1"))
            with pytest.raises(PoolExhausted) as caught:
                engine.connect()
        return str(caught.value)

    for attempt in (by_begin, by_session):
        message = attempt()
        assert f"test_pool.py:{attempt.__code__.co_firstlineno + (1 if attempt is by_begin else 2)} in" in message
        assert "contextlib" not in message
        assert "sqlalchemy" not in message
        assert "This thread holds one of them itself" in message


def test_waiting_is_first_come_first_served(make_engine: Callable[..., Engine]) -> None:
    """Threads in tight loops take their turns: nobody is served twice while another waits, and nobody times out."""
    engine = make_engine(pool_size=2, checkout_timeout_s=60)
    with engine.connect(), engine.connect():
        pass  # else who opens a connection is served late, on a busy machine
    served: list[int] = []
    problems: list[BaseException] = []
    ready = threading.Barrier(16)

    def work(thread: int) -> None:
        try:
            ready.wait()
            for _ in range(10):
                with engine.connect() as connection:
                    connection.execute(text("SELECT pg_sleep(0.001)"))
                    served.append(thread)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    # While all are at it, everyone's next turn comes before anyone's turn after that. In two rounds: a busy machine may
    # let a thread wait between its turn and the note of it.
    for thread in range(16):
        turns = [place for place, who in enumerate(served[:96]) if who == thread]
        assert max((later - earlier for earlier, later in pairwise(turns)), default=16) <= 32
        assert len(turns) >= 4


def test_exhaustion_under_contention_accuses_nobody(make_engine: Callable[..., Engine]) -> None:
    """Where other threads are simply busy, the text says so, and how many were waiting."""
    engine = make_engine(pool_size=1, checkout_timeout_s=0.3)
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with engine.connect():
            taken.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    try:
        with pytest.raises(PoolExhausted, match=r"Other threads are using them.*raise PLUNGEPOOL_POOL_SIZE") as caught:
            engine.connect()
    finally:
        done.set()
        holder.join()
    assert "in hold" in str(caught.value)
    assert "0 more checkouts were waiting" in str(caught.value)


def test_new_connection_is_not_pinged(make_engine: Callable[..., Engine], postgres: Postgres) -> None:
    """Only a connection that was returned can have been idle: PLUNGEPOOL_PING_AFTER_IDLE_S=0 asks no new one."""
    trips = {}
    with ChaosProxy(postgres.host, postgres.port) as network:
        for ping_after_idle_s in (30, 0):
            engine = make_engine(port=network.port, ping_after_idle_s=ping_after_idle_s)
            network.round_trips = 0
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            trips[ping_after_idle_s] = network.round_trips
            engine.dispose()
    assert trips[0] == trips[30]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_during_the_first_connect_does_not_deadlock(make_engine: Callable[..., Engine]) -> None:
    """A child that is forked while another thread makes the engine's very first connection opens one of its own."""
    engine = make_engine(pool_size=1)
    parent, arrived, go_on = os.getpid(), threading.Event(), threading.Event()

    @event.listens_for(engine, "connect")
    def wait(connection: object, record: object) -> None:
        if os.getpid() == parent:
            arrived.set()
            go_on.wait()

    def connect() -> None:
        with engine.connect():
            pass

    thread = threading.Thread(target=connect)
    thread.start()
    arrived.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with engine.connect() as connection:
            os._exit(connection.execute(text("SELECT 7")).scalar_one())
    _, status = os.waitpid(child, 0)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 7


def test_looking_at_stacks_keeps_nothing_alive(make_engine: Callable[..., Engine]) -> None:
    """
    Whoever waits for a connection looks at every thread's stack, and leaves no variable of another thread to the
    collector.
    """
    engine = make_engine(pool_size=1, checkout_timeout_s=30)
    held, over = threading.Event(), threading.Event()
    variables: list[weakref.ref[threading.Event]] = []

    def hold(connection_given: bool) -> None:
        variable = threading.Event()
        variables.append(weakref.ref(variable))
        if connection_given:
            with engine.connect() as connection:
                connection.execute(PID)
                held.set()
                over.wait()
        else:
            over.wait()

    threads = [threading.Thread(target=hold, args=(given,)) for given in (False, True, False)]
    for thread in threads:
        thread.start()
    held.wait()
    gc.collect()
    gc.disable()
    try:
        timer = threading.Timer(0.5, over.set)
        timer.start()
        engine.connect().close()  # waits, and looks, until the other thread returns it
        for thread in (*threads, timer):
            thread.join()
        assert [variable() for variable in variables] == [None, None, None]
    finally:
        gc.enable()
