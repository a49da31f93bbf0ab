"""An exception at any moment costs one connection: no later query gets a row that is not its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, text
from sqlalchemy.pool import QueuePool

from plungepool import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.postgres import Postgres

STRIKES = 1000


class Strike(Exception):
    """An ordinary exception, as a signal handler of the user's may raise it."""


class HardStrike(BaseException):
    """One that `except Exception` does not see."""


KINDS = [KeyboardInterrupt, SystemExit, MemoryError, TimeoutError, Strike, HardStrike]

WIRE = os.path.dirname(wire.__file__) + os.sep
# SQLAlchemy's pool and Python's locks are not made for an exception between two of their own lines, and what the
# garbage collector calls cannot raise one; ours is the wire.
NOT_OURS = (
    "_pytest/unraisableexception",
    "sqlalchemy/pool/",
    "sqlalchemy/util/queue.py",
    "/threading.py",
    "/logging/",
    "/weakref.py",
    "/hypothesis/",
)


# What is struck on the garbage collector's way (a pool's finalizer, a socket that nobody held yet) cannot be raised,
# and Python says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def no_records() -> Iterator[None]:
    """The pool logs what strikes it, and a record holds its traceback, and that the socket: it would be closed late."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    gc.collect()


@pytest.fixture
def engine(postgres: Postgres) -> Iterator[Any]:
    """An engine with one connection to keep, and a table."""
    postgres.execute("DROP TABLE IF EXISTS struck; CREATE TABLE struck (token int)")
    engine = sqlalchemy.create_engine(
        postgres.url().replace("postgresql://", "postgresql+plungepool://"),
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=-1,
    )
    opened = weakref.WeakSet()
    sqlalchemy.event.listen(engine, "connect", lambda connection, record: opened.add(connection))
    yield engine
    gc.collect()
    engine.dispose()
    for connection in list(opened):
        connection.close()  # those that were struck away from their pool


class Struck:
    """
    Queries that know their own answers; `wrong` collects what was another's, `committed` what must be in the table.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.wrong, self.committed = engine, [], []

    def select(self, number: int) -> None:
        with self.engine.connect() as connection:
            self._check(number, connection.execute(text("SELECT :x ::int"), {"x": number}).scalar())

    def select_in_autocommit(self, number: int) -> None:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for token in (number, -number):
                self._check(token, connection.execute(text("SELECT :x ::int"), {"x": token}).scalar())

    def many_rows(self, number: int) -> None:
        query = text("SELECT :x ::int, repeat('y', 40) FROM generate_series(1, 2000)")
        with self.engine.connect() as connection:
            rows = connection.execute(query, {"x": number}).all()
        self._check((number, 2000), (next(iter({row[0] for row in rows}), None), len(rows)))

    def insert(self, number: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("INSERT INTO struck VALUES (:x)"), {"x": number})
            self._check(
                1, connection.execute(text("SELECT count(*) FROM struck WHERE token = :x"), {"x": number}).scalar()
            )
        self.committed.append(number)

    def insert_many(self, number: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(
                text("INSERT INTO struck VALUES (:x)"), [{"x": number}] + [{"x": -n} for n in range(1, 50)]
            )
        self.committed.append(number)

    def failing(self, number: int) -> None:
        with contextlib.suppress(sqlalchemy.exc.DataError), self.engine.connect() as connection:
            connection.execute(text("SELECT 1 / (:x ::int * 0)"), {"x": number})

    def _check(self, expected: Any, got: Any) -> None:
        if got != expected:
            self.wrong.append((expected, got))

    def any(self, random_: Any, number: int) -> None:
        random_.choice(
            [
                self.select,
                self.select,
                self.select_in_autocommit,
                self.many_rows,
                self.insert,
                self.insert_many,
                self.failing,
            ]
        )(number)

    def assert_right(self) -> None:
        assert self.wrong == []
        with self.engine.connect() as connection:
            counts = dict(connection.execute(text("SELECT token, count(*) FROM struck GROUP BY token")).all())
        assert {number for number in self.committed if counts.get(number) != 1} == set()
        assert {number for number, count in counts.items() if number > 0 and count != 1} == set()


class Alarm:
    """Raises an exception of a random kind in the main thread, at a random moment of what it guards."""

    def __init__(self, random_: Any) -> None:
        self.random, self.in_wire, self.kind, self.rung = random_, 0, None, False

    def __enter__(self) -> Any:
        self.before = signal.signal(signal.SIGALRM, self.ring)
        return self

    def __exit__(self, *exception: object) -> None:
        self.disarm()
        signal.signal(signal.SIGALRM, self.before)

    def ring(self, number: int, frame: Any) -> None:
        if self.kind is None:
            return
        in_wire = False
        while frame is not None and not in_wire:
            name = frame.f_code.co_filename
            if any(part in name for part in NOT_OURS):
                signal.setitimer(signal.ITIMER_REAL, 0.00005)
                return
            in_wire = name.startswith(WIRE)
            frame = frame.f_back
        kind, self.kind, self.rung = self.kind, None, True
        self.in_wire += in_wire
        raise kind("struck")

    def arm(self, within_s: float) -> None:
        self.kind, self.rung = self.random.choice(KINDS), False
        signal.setitimer(signal.ITIMER_REAL, self.random.uniform(0.00002, within_s))

    def disarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.kind = None


def test_signal_handlers_that_raise_never_cross_rows(engine: Engine) -> None:
    """Exceptions from signal handlers, at random moments of queries by an engine: every row is its own query's."""
    random_ = random.Random(20)
    struck, number = Struck(engine), 0
    with Alarm(random_) as alarm:
        while alarm.in_wire < STRIKES:
            number += 1
            try:
                try:
                    alarm.arm(0.004)
                    struck.any(random_, number)
                finally:
                    alarm.disarm()
            except BaseException:  # SQLAlchemy wraps some strikes, and some trip its own assertions
                if not alarm.rung:
                    raise
            # And nothing of it is left over: the very next query works, whatever was struck.
            struck.select(10**6 + number)
    struck.assert_right()


def strike_thread(thread_id: Any, kind: str) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(kind))


class Target:
    """A thread that works and is struck once a round, in its work or while it waits for the strike."""

    def __init__(self, work: Any, verify: Any, rounds: int) -> None:
        self.work, self.verify, self.rounds = work, verify, rounds
        self.armed, self.in_work, self.problems, self.done = threading.Event(), 0, [], False
        self.struck = self.delivered = 0  # strikes that may come, and that have been set
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        try:
            for number in range(1, self.rounds + 1):
                self.round(number)
                self.verify(10**6 + number)
        except BaseException as problem:  # for the main thread to raise
            self.problems.append(problem)
        finally:
            self.done = True
            self.armed.set()

    def round(self, number: int) -> None:
        worked = settled = False
        while not settled:
            try:
                if not worked:
                    self.armed.set()
                    self.work(number)
                    worked = True
                while self.delivered < number:
                    time.sleep(0.0001)
                for _ in range(3):
                    time.sleep(0.0001)  # a strike that is set is raised here at the latest
                settled = True
            except BaseException as error:
                if self.struck < number:
                    raise RuntimeError("an error that no strike explains") from error
                self.in_work += not worked
                worked = True

    def strike_it(self, random_: Any) -> None:
        self.thread.start()
        while True:
            self.armed.wait()
            if self.done:
                break
            self.armed.clear()
            time.sleep(random_.uniform(0, 0.003))
            self.struck += 1
            strike_thread(self.thread.ident, random_.choice(KINDS))
            self.delivered += 1
        self.thread.join()
        for problem in self.problems:
            raise RuntimeError("the struck thread failed") from problem


@pytest.fixture
def short_switches() -> Iterator[None]:
    """Threads change often, so that a strike meets many different lines."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.00005)
    yield
    sys.setswitchinterval(before)


def test_exceptions_from_other_threads_never_cross_rows(postgres: Postgres, short_switches: Any) -> None:
    """
    Exceptions that another thread sets, on a bare connection: it still answers rightly, or says that it is closed.
    """
    random_ = random.Random(21)
    connections, wrong = [], []

    def connect() -> None:
        address = {"user": "postgres", "host": postgres.host, "port": postgres.port, "database": "postgres"}
        connections.append(wire.connect(**address, password=postgres.password))
        connections[-1].autocommit = True

    def work(number: int) -> None:
        cursor = connections[-1].cursor()
        for token in (number, -number):
            cursor.execute("SELECT $1::int, g FROM generate_series(1, 100) g", (token,))
            rows = [list(row) for row in cursor.fetchall()]
            if rows != [[token, g] for g in range(1, 101)]:
                wrong.append((token, rows[:2]))

    def verify(number: int) -> None:
        try:
            work(number)
        except wire.Error:  # closed for good: then it is replaced, as a pool does
            with contextlib.suppress(wire.Error):
                connections.pop().close()
            connect()
            work(number)

    connect()
    target = Target(work, verify, STRIKES)
    target.strike_it(random_)
    connections.pop().close()
    assert wrong == []
    assert target.in_work > STRIKES // 20


def test_exceptions_from_other_threads_through_an_engine_never_cross_rows(engine: Engine, short_switches: Any) -> None:
    """The same by an engine, transactions and executemany included: what was committed is there, once."""
    random_ = random.Random(22)
    struck = Struck(engine)
    target = Target(lambda number: struck.any(random_, number), struck.select, STRIKES // 2)
    target.strike_it(random.Random(23))
    struck.assert_right()
    assert target.in_work > STRIKES // 40
