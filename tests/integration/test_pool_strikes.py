"""Exceptions between any two lines of the pool, of SQLAlchemy and of the wire: afterwards every checkout works."""

from __future__ import annotations

import functools
import gc
import logging
import os
import random
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until
from sqlalchemy import event, text
from strikes import KINDS, Injector, StruckError, strike_threads

from plungepool import PoolExhausted, lifecycle, snapshot, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from sqlalchemy import Engine

    from plungepool_toolkit.postgres import Postgres

# In all; `STRIKES=100000 pytest tests/integration/test_pool_strikes.py` is the long run.
STRIKES = int(os.environ.get("STRIKES", "2000"))
SHAPES = [(threads, size) for threads in (1, 2, 4) for size in (1, 2, 4)]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Double checkin attempted"),
    pytest.mark.timeout(0 if STRIKES > 2000 else 300),
]


@pytest.fixture(autouse=True)
def no_records() -> Iterator[None]:
    """Whoever keeps an exception keeps its connection: pytest keeps what is logged, and what a finalizer raises."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.disable(logging.CRITICAL)
    gc.freeze()  # the pool collects garbage when it is short of connections, and all of pytest's objects are none
    yield
    gc.unfreeze()
    logging.disable(logging.NOTSET)
    sys.unraisablehook = before
    gc.collect()


def backends(postgres: Postgres) -> int:
    """Return how many sessions of this application the server counts."""
    ((count,),) = postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'plungepool'")
    return int(count)


def in_a_thread(test: Callable[..., None]) -> Callable[..., None]:
    """
    Run a test in a thread of its own.

    A trace function can raise where the interpreter itself never would, within its own tidying up after an `except`;
    that leaves the thread with an exception "being handled" for ever, which the next tests must not see.
    """

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        problems: list[BaseException] = []

        def catch() -> None:
            try:
                test(**fixtures)
            except BaseException as problem:
                problems.append(problem)

        # A daemon: one that hangs fails its test and does not keep the whole run from ending.
        thread = threading.Thread(target=catch, daemon=True)
        thread.start()
        thread.join()
        for problem in problems:
            raise problem

    return run


def one_use(engine: Engine, number: int, wrong: list[tuple[int, Any]]) -> None:
    """Use the engine as a handler does; note a row that is another's."""
    if number % 3:
        with engine.connect() as connection:
            row = connection.execute(text("SELECT :x ::int"), {"x": number}).scalar()
    else:
        with engine.begin() as connection:
            row = connection.execute(text("SELECT :x ::int"), {"x": number}).scalar()
    if row != number:
        wrong.append((number, row))


def assert_unbroken(engine: Engine, postgres: Postgres, wrong: list[tuple[int, Any]]) -> None:
    """Every place can be used at the same time, the server sees no more than there may be, and nothing is left."""
    size = engine.pool.size()  # type: ignore[attr-defined]
    gc.collect()
    for _ in range(2):
        held = [engine.connect() for _ in range(size)]
        for connection in held:
            assert connection.execute(text("SELECT 1")).scalar() == 1
        wait_until(lambda: backends(postgres) == size, f"there are {backends(postgres)} backends and not {size}")
        with pytest.raises(PoolExhausted):
            engine.connect()
        for connection in held:
            connection.close()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()
    wait_until(lambda: backends(postgres) == 0)
    assert wrong == []


@in_a_thread
@pytest.mark.parametrize("instructions", [False, True], ids=["lines", "instructions"])
def test_strike_at_each_line_costs_no_place(
    make_engine: Callable[..., Engine], postgres: Postgres, pool_mode: str, instructions: bool
) -> None:
    """
    One thread, one connection: after a strike at line 1, 2, 3 and so on of a use, the very next use works at once.
    """
    engine, wrong = make_engine(pool=pool_mode, pool_size=1, checkout_timeout_s=0.5), list[tuple[int, Any]]()
    one_use(engine, 1, wrong)
    at = 0
    # Every instruction is for the long run; a prime takes different ones from use to use.
    step = 1 if STRIKES > 2000 else 97 if instructions else 1 if pool_mode == "tiny" else 7
    while True:
        at += step
        with Injector(at, KINDS[at % 4], instructions=instructions) as injector:
            try:
                one_use(engine, 3 * at + 1, wrong)
            except BaseException:
                if not injector.struck:
                    raise
        one_use(engine, 3 * at + 2, wrong)
        if not injector.struck and injector.left > 0:
            break
    assert at > (200 if not instructions else 1000)
    engine.dispose()
    wait_until(lambda: backends(postgres) == 0)
    assert wrong == []


@pytest.mark.parametrize(("threads", "size"), SHAPES)
def test_strikes_in_threads_cost_no_place(
    make_engine: Callable[..., Engine], postgres: Postgres, threads: int, size: int
) -> None:
    """Threads that are struck at random lines hang nowhere, and leave a pool in which every checkout works."""
    engine, wrong = make_engine(pool_size=size, checkout_timeout_s=20), list[tuple[int, Any]]()
    strikes = STRIKES // (len(SHAPES) * threads)
    problems: list[BaseException] = []
    done = [0] * threads

    def work(thread: int) -> None:
        random_ = random.Random(thread)
        try:
            for number in range(1, strikes + 1):
                token = number * 100 + thread
                with Injector(random_.randint(1, 1500), random_.choice(KINDS)) as injector:
                    try:
                        one_use(engine, token, wrong)
                    except BaseException:
                        if not injector.struck:
                            raise
                done[thread] += injector.struck
                one_use(engine, -token, wrong)
        except BaseException as problem:
            problems.append(problem)

    workers = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(None if STRIKES > 2000 else 240)
    assert not any(worker.is_alive() for worker in workers)
    assert problems == []
    assert sum(done) > strikes * threads * 0.5
    engine.pool._timeout_s = 0.1  # type: ignore[attr-defined]
    assert_unbroken(engine, postgres, wrong)


@pytest.mark.parametrize(("threads", "size"), [(2, 1), (4, 2)])
def test_strikes_from_other_threads_cost_no_place(
    make_engine: Callable[..., Engine], postgres: Postgres, threads: int, size: int
) -> None:
    """Exceptions that another thread sets come wherever the interpreter looks for them, waits in the pool included."""
    engine, wrong = make_engine(pool_size=size, checkout_timeout_s=20), list[tuple[int, Any]]()
    struck = strike_threads(
        lambda thread, number: one_use(engine, number * 100 + thread, wrong),
        threads=threads,
        tries=max(300, STRIKES // 20),
        seed=5,
        enough=lambda struck: struck > 30,
    )
    assert struck > 30
    engine.pool._timeout_s = 0.1  # type: ignore[attr-defined]
    assert_unbroken(engine, postgres, wrong)


def test_signal_handlers_that_raise_cost_no_place(make_engine: Callable[..., Engine], postgres: Postgres) -> None:
    """An application's own time-out by SIGALRM, at random moments of a use: the next use always works."""
    engine, wrong = make_engine(pool_size=1, checkout_timeout_s=0.5), list[tuple[int, Any]]()
    random_ = random.Random(7)

    def ring(number: int, frame: object) -> None:
        raise random_.choice(KINDS)("struck")

    limit_s, _ = signal.getitimer(signal.ITIMER_REAL)  # the test's own time-out, by the same signal
    before = signal.signal(signal.SIGALRM, ring)
    struck = 0
    try:
        number = 0
        while struck < max(60, STRIKES // 20):
            number += 1
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random_.uniform(0.00005, 0.001))
                    one_use(engine, 2 * number, wrong)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except BaseException:
                struck += 1
            one_use(engine, 2 * number + 1, wrong)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
    engine.pool._timeout_s = 0.1  # type: ignore[attr-defined]
    assert_unbroken(engine, postgres, wrong)


def before_snapshot() -> None:
    """Do what the hook does."""
    snapshot.before(lifecycle._engines, lifecycle._opened)


@in_a_thread
@pytest.mark.parametrize("leave", ["snapshot", "dispose"])
def test_strike_at_each_line_of_a_shutdown(make_engine: Callable[..., Engine], postgres: Postgres, leave: str) -> None:
    """
    However far closing everything came: the engine works as before, keeps what it should, and can be closed again.
    """
    engine, wrong = make_engine(pool_size=2), list[tuple[int, Any]]()
    close_all = before_snapshot if leave == "snapshot" else engine.dispose
    at = 0
    while True:
        at += 1
        with engine.connect() as one, engine.connect() as other:
            pids = {connection.execute(text("SELECT pg_backend_pid()")).scalar() for connection in (one, other)}
        assert len(pids) == 2
        with Injector(at, KINDS[at % 4]) as injector:
            try:
                close_all()
            except BaseException:
                if not injector.struck:
                    raise
        if at % 20 == 0:
            kept = set()
            for _ in range(2):
                with engine.connect() as connection:
                    kept.add(connection.execute(text("SELECT pg_backend_pid()")).scalar())
            assert len(kept) == 1
        if not injector.struck:
            break
    assert at > 50
    engine.pool._timeout_s = 0.1  # type: ignore[attr-defined]
    assert_unbroken(engine, postgres, wrong)


def test_holder_that_died_with_its_thread_frees_the_place(make_engine: Callable[..., Engine]) -> None:
    """A thread that ends with a connection which only a circle of objects refers to takes no place with it."""
    engine = make_engine(pool_size=1, checkout_timeout_s=2)

    def take_and_die() -> None:
        circle: list[Any] = [engine.connect()]
        circle.append(circle)

    gc.disable()
    try:
        thread = threading.Thread(target=take_and_die)
        thread.start()
        thread.join()
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
    finally:
        gc.enable()


@in_a_thread
def test_strike_leaves_no_backend_whoever_holds_the_record(
    make_engine: Callable[..., Engine], postgres: Postgres
) -> None:
    """
    Something else may refer to the record, a listener or a finalizer that was struck itself: its connection ends all
    the same.
    """
    engine, wrong = make_engine(pool_size=1, checkout_timeout_s=0.5), list[tuple[int, Any]]()
    holders: list[Any] = []
    event.listen(engine, "checkout", lambda connection, record, fairy: holders.append(record))
    at = 0
    while True:
        at += 1
        one_use(engine, 3 * at, wrong)
        with Injector(at, KINDS[at % 4]) as injector:
            try:
                engine.connect().close()
            except BaseException:
                if not injector.struck:
                    raise
        one_use(engine, 3 * at + 1, wrong)
        if at % 10 == 0:
            wait_until(lambda: backends(postgres) == 1, "there is more or less than one backend")
        if not injector.struck:
            break
    assert at > 100
    engine.dispose()
    wait_until(lambda: backends(postgres) == 0)
    assert wrong == []


@in_a_thread
def test_checkout_by_a_signal_handler_in_the_middle_of_one(make_engine: Callable[..., Engine]) -> None:
    """
    A handler that uses the engine between any two lines of a checkout gets a connection of its own, and so does that.
    """
    engine, wrong = make_engine(pool_size=2, checkout_timeout_s=0.5), list[tuple[int, Any]]()

    class Reenter(Injector):
        def _look(self, frame: FrameType, event: str, arg: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.struck = True
                with engine.connect() as other:
                    if other.execute(text("SELECT 5")).scalar() != 5:
                        wrong.append((5, None))
            return self._look

    one_use(engine, 1, wrong)
    at = 0
    while True:
        at += 7
        with Reenter(at, StruckError) as injector:
            one_use(engine, at, wrong)
        if not injector.struck:
            break
    assert at > 200
    assert wrong == []


def test_abandoned_connection_is_an_end_for_whoever_still_uses_it(postgres: Postgres) -> None:
    """Its session ends on the server, its descriptor stays its own, and every later use says so."""
    connection = wire.connect(
        user="postgres", host=postgres.host, port=postgres.port, database="postgres", password=postgres.password
    )
    connection.cursor().execute("SELECT 1")
    descriptor = connection._transport.sock.fileno() if connection._transport.sock else -1
    connection.abandon()
    assert connection.closed
    assert os.fstat(descriptor)
    with pytest.raises(wire.InterfaceError, match="holder was gone"):
        connection.cursor().execute("SELECT 1")
    connection.close()
