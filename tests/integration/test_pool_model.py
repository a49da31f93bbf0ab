"""Any sequence of uses, strikes, freezes, deaths, ages, forks and invocations holds the pool to a model of a page."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest
from elsewhere import wait_until
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import exc, text
from strikes import KINDS, Injector

from plungepool import DeadlineExceeded, PoolExhausted, Settings, build_engine, fleet, guard_invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from plungepool_toolkit.postgres import Postgres

SIZE = 3
LEASE_S = 30
MAX_AGE_S, PING_AFTER_IDLE_S = 1800, 30
PID = text("SELECT pg_backend_pid()")


class Context:
    """What Lambda hands to a handler: an invocation with so many seconds left."""

    def __init__(self, seconds: float) -> None:
        self.aws_request_id, self._seconds = str(time.monotonic_ns()), seconds

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda's."""
        return int(self._seconds * 1000)


class Kept(NamedTuple):
    """A connection that the pool should have, by the wall clock as it was then."""

    returned_at: float
    opened_at: float
    pid: int


class Held(NamedTuple):
    """A connection that is checked out."""

    connection: Connection
    opened_at: float
    pid: int


class Clock:
    """The wall clock, which a freeze moves on, and somebody may set back."""

    def __init__(self) -> None:
        self.offset, self._time = 0.0, time.time

    def __call__(self) -> float:
        return self._time() + self.offset


def backends(postgres: Postgres) -> int:
    """Return how many sessions of this application the server counts."""
    ((count,),) = postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'plungepool'")
    return int(count)


class Model:
    """What is held, what is kept, and what the server has done to either; the rules below are its moves."""

    def __init__(self, postgres: Postgres, clock: Clock, mode: str) -> None:
        self.postgres, self.clock, self.mode = postgres, clock, mode
        self.engine: Engine = build_engine(
            Settings(
                host=postgres.host,
                port=postgres.port,
                user="postgres",
                password=postgres.password,
                tls="disable",
                pool=mode,
                pool_size=SIZE,
                # So many tickets that the first one that is tried is free.
                fleet_limit=262143 if mode == "adaptive" else 0,
                checkout_timeout_s=0.02,
                connect_timeout_s=30,
                max_age_s=MAX_AGE_S,
                ping_after_idle_s=PING_AFTER_IDLE_S,
            )
        )
        self.held: list[Held] = []
        self.kept: list[Kept] = []
        self.opened: dict[int, float] = {}
        self.dead: set[int] = set()  # ended by the server
        self.silent: set[int] = set()  # they do not answer any more

    def take(self) -> Held:
        """Check one out, and hold it against what should have come."""
        expected = self.due()
        connection = self.engine.connect()
        try:
            pid = connection.execute(PID).scalar_one()
            assert pid not in {other.pid for other in self.held}
            assert pid not in self.dead | self.silent
            if expected is not None:
                assert pid == expected.pid
            else:
                assert pid not in self.opened
        except BaseException:
            connection.close()  # else the end of the run would tell of its backend, and not of this
            raise
        opened_at = self.opened.setdefault(pid, self.clock())
        return Held(connection, opened_at, pid)

    def due(self) -> Kept | None:
        """Return what is to be handed out next, None for a new connection; with what that shows of the others."""
        if not self.kept:
            return None
        self.kept.sort()
        last = self.kept.pop()
        if not 0 <= self.clock() - last.opened_at <= MAX_AGE_S:
            return None
        if self.mode == "adaptive" and self.clock() - last.returned_at >= LEASE_S - 1:
            return None
        if last.pid in self.dead:
            self.kept = [one for one in self.kept if one.pid not in self.dead]
            return None
        if last.pid in self.silent:
            self.kept.clear()
            return None
        return last

    def give_back(self, held: Held) -> None:
        """Return it."""
        held.connection.close()
        self.keep(held)

    def keep(self, held: Held) -> None:
        """Have the pool keep what was returned."""
        if self.mode != "null":
            self.kept.append(Kept(self.clock(), held.opened_at, held.pid))

    def drain(self) -> None:
        """
        Have every place used at a time, whatever the pool has kept: after anything the next checkout works.

        Then it is known again what is kept.
        """
        self.kept.clear()
        gc.collect()
        held = []
        for _ in range(SIZE - len(self.held)):
            connection = self.engine.connect()
            pid = connection.execute(PID).scalar_one()
            assert pid not in {other.pid for other in (*self.held, *held)}
            assert pid not in self.dead
            held.append(Held(connection, self.opened.setdefault(pid, self.clock()), pid))
        for one in held:
            self.give_back(one)

    def end(self, pid: int) -> None:
        """Have the server end a session; it has ended, and what it said has come, when this returns."""
        self.dead.add(pid)
        self.postgres.execute("SELECT pg_terminate_backend($1::int, 5000)", pid)

    def check(self) -> None:
        """Nobody holds another's connection, and there are never more than the pool's size."""
        assert self.engine.pool.checkedout() == len(self.held)  # type: ignore[attr-defined]
        assert self.engine.pool.checkedin() <= SIZE - len(self.held)  # type: ignore[attr-defined]
        for held in self.held:
            assert held.connection.execute(PID).scalar_one() == held.pid
        wait_until(lambda: backends(self.postgres) - len(self.silent) <= SIZE, "there are more than the pool's size")

    def finish(self) -> None:
        """Leave nothing behind at the server."""
        for pid in self.silent:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        while self.held:
            self.held.pop().connection.close()
        self.engine.dispose()
        wait_until(lambda: backends(self.postgres) == 0, "a backend is left")


class Moves(RuleBasedStateMachine):
    """What can happen to an environment."""

    make: Callable[[], Model]

    def __init__(self) -> None:
        super().__init__()
        self.model = type(self).make()

    @precondition(lambda self: len(self.model.held) < SIZE)
    @rule()
    def check_out(self) -> None:
        self.model.held.append(self.model.take())

    @precondition(lambda self: len(self.model.held) == SIZE)
    @rule()
    def check_out_one_too_many(self) -> None:
        with pytest.raises(PoolExhausted, match=r"test_pool_model\.py"):
            self.model.engine.connect()

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.model.give_back(self.pick(data))

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Drop it without a word: garbage returns it."""
        pick = self.pick(data)
        held = Held(None, pick.opened_at, pick.pid)  # type: ignore[arg-type]
        del pick
        gc.collect()
        self.model.keep(held)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def end_in_use(self, data: st.DataObject) -> None:
        """Its next statement says so; of the others that are kept, those go that were ended as well."""
        held = self.pick(data)
        self.model.end(held.pid)
        with pytest.raises(exc.OperationalError, match="57P01"):
            held.connection.execute(PID)
        held.connection.close()
        self.model.kept = [one for one in self.model.kept if one.pid not in self.model.dead]

    @precondition(lambda self: self.model.kept)
    @rule(data=st.data())
    def end_a_kept_one(self, data: st.DataObject) -> None:
        self.model.end(data.draw(st.sampled_from(sorted(one.pid for one in self.model.kept))))

    @precondition(lambda self: self.model.kept)
    @rule()
    def end_all_that_are_kept(self) -> None:
        """As a restart does."""
        for one in self.model.kept:
            self.model.end(one.pid)

    @rule(seconds=st.sampled_from([PING_AFTER_IDLE_S + 1, MAX_AGE_S + 1]))
    def freeze(self, seconds: float) -> None:
        self.model.clock.offset += seconds

    @rule()
    def set_the_clock_back(self) -> None:
        self.model.clock.offset -= MAX_AGE_S / 2

    @precondition(lambda self: self.model.kept and not self.model.silent)
    @rule(data=st.data())
    def freeze_and_lose_the_way(self, data: st.DataObject) -> None:
        """What is kept does not answer any more, and nothing on this side shows it."""
        model = self.model
        model.kept.sort()
        for one in model.kept[data.draw(st.integers(0, len(model.kept) - 1)) :]:
            if one.pid not in model.dead:
                model.silent.add(one.pid)
                os.kill(one.pid, signal.SIGSTOP)
        model.clock.offset += PING_AFTER_IDLE_S + 1
        if len(model.held) < SIZE:
            held = model.take()
            model.give_back(held)

    @precondition(lambda self: len(self.model.held) < SIZE and not self.model.silent)
    @rule(at=st.integers(1, 900), kind=st.sampled_from(KINDS))
    def strike(self, at: int, kind: type[BaseException]) -> None:
        """At any line of a use: of SQLAlchemy's pool, of this one, of the driver."""
        engine, problems = self.model.engine, list[str]()

        def use() -> None:
            with Injector(at, kind) as injector:
                try:
                    with engine.begin() as connection:
                        connection.execute(PID)
                except BaseException as problem:
                    if not injector.struck:
                        problems.append(repr(problem))

        # A trace function may leave its thread with an exception "being handled" for ever.
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert problems == []
        self.model.drain()

    @precondition(lambda self: len(self.model.held) < SIZE)
    @rule(referred_to=st.booleans())
    def leak_out_of_an_invocation(self, referred_to: bool) -> None:
        """What nothing refers to any more is returned; what something does is closed."""
        model = self.model
        with guard_invocation(Context(60)):
            held = model.take()
            if not referred_to:
                held = held._replace(connection=None)  # type: ignore[arg-type]
        if referred_to:
            with pytest.raises(exc.DBAPIError):
                held.connection.execute(PID)
            model.dead.add(held.pid)
        else:
            model.keep(held)

    @precondition(lambda self: len(self.model.held) < SIZE and not self.model.silent)
    @rule(seconds=st.sampled_from([0, 0.4]))
    def run_out_of_time(self, seconds: float) -> None:
        """The deadline is no proof against anything but the statement that ran into it."""
        with pytest.raises(DeadlineExceeded), guard_invocation(Context(seconds)):
            with self.model.engine.connect() as connection:
                connection.execute(text("SELECT pg_sleep(60)"))
        self.model.drain()

    @rule()
    def dispose(self) -> None:
        """
        Engine.dispose() closes what is kept; what is held goes on, and is closed at its return to the old pool.
        """
        self.model.engine.dispose()
        while self.model.held:
            self.model.held.pop().connection.close()
        self.model.kept.clear()

    @rule()
    def fork(self) -> None:
        """A child has connections of its own, as many as the pool's size, and disturbs none of the parent's."""
        model = self.model
        child = os.fork()
        if child == 0:
            status = 1
            try:
                pids = {
                    connection.execute(PID).scalar_one() for connection in [model.engine.connect() for _ in range(SIZE)]
                }
                status = 0 if len(pids) == SIZE and pids.isdisjoint(model.opened) else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        wait_until(lambda: backends(model.postgres) - len(model.silent) <= SIZE)

    @invariant()
    def hold(self) -> None:
        self.model.check()

    def teardown(self) -> None:
        self.model.finish()

    def pick(self, data: st.DataObject) -> Held:
        return self.model.held.pop(data.draw(st.integers(0, len(self.model.held) - 1)))


@pytest.fixture
def quiet() -> Iterator[None]:
    """Whoever keeps an exception keeps its connection: pytest keeps what is logged, and what a finalizer raises."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.disable(logging.CRITICAL)
    gc.freeze()  # the pool collects garbage when it is short of connections, and all of pytest's objects are none
    yield
    gc.unfreeze()
    logging.disable(logging.NOTSET)
    sys.unraisablehook = before


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("mode", ["tiny", "null", "adaptive"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning", "ignore:Double checkin attempted")
def test_pool_follows_its_model(postgres: Postgres, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks gets a connection exactly as long as fewer than the pool's size are held, and never one that is held."""
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    # Who asks for a ticket is the law's part (test_adaptive.py): here everybody does.
    monkeypatch.setattr(fleet, "comes_back", lambda _idle_s: True)
    monkeypatch.setattr(Moves, "make", staticmethod(lambda: Model(postgres, clock, mode)), raising=False)
    examples, steps = (int(number) for number in os.environ.get("MODEL", "10 25").split())
    run_state_machine_as_test(
        Moves,
        settings=settings(
            max_examples=examples // 2 if mode == "adaptive" else examples,
            stateful_step_count=steps,
            deadline=None,
            # To explain a failure Python before 3.12 is traced from the first example on, at several times the cost.
            phases=[one for one in Phase if one is not Phase.explain],
            derandomize="MODEL" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
