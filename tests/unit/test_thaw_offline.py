"""What a kept connection is asked after a freeze, and what a dead one shows of the others: no server, no waiting."""

from __future__ import annotations

import errno
import gc
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from strikes import KINDS, Injector

from plungepool import Settings, invocation, pool, wire
from plungepool.pool import Dead, Examiner

if TYPE_CHECKING:
    from collections.abc import Callable

    from plungepool.pool import BoundedPool

BEGUN = 1_700_000_000.0


class Clock:
    """The wall clock, set by hand."""

    def __init__(self) -> None:
        self.now = BEGUN

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """All that asks for the time gets this one's; nobody has said when the invocation ends."""
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr(invocation, "_end", None)
    return clock


class Driver:
    """A connection as its pool sees it: its socket shows an end or not, and a question is answered or not."""

    def __init__(self, clock: Clock, number: int = 0) -> None:
        self.clock, self.number = clock, number
        self.answered_at, self.deadline = clock.now, None
        self.seen: Exception | None = None
        self.unanswered: BaseException | None = None
        self.looks, self.deadlines = 0, list[Any]()
        self.gone = False

    def check(self) -> None:
        self.looks += 1
        if self.seen is not None:
            raise self.seen

    def ping(self) -> None:
        self.deadlines.append(self.deadline)
        if self.unanswered is not None:
            raise self.unanswered
        self.answered_at = self.clock.now

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        self.gone = True

    def abandon(self, *, stop: bool = False) -> None:
        self.gone = True


def settings(**changes: Any) -> Settings:
    """Return settings whose numbers are easily told apart."""
    given = {"host": "db.invalid", "user": "app", "password": "p", "tls": "disable", "max_age_s": 1000}
    return Settings(**(given | {"ping_after_idle_s": 30, "connect_timeout_s": 4} | changes))


def said(sqlstate: str) -> wire.OperationalError:
    """Return what the server said before it closed."""
    error = wire.OperationalError(f"terminating connection (SQLSTATE {sqlstate})")
    error.sqlstate, error.disconnected = sqlstate, True
    return error


def lost() -> wire.OperationalError:
    """Return what a send ends with where the other side knows nothing of the connection."""
    error = wire.OperationalError("the connection was lost: Connection reset by peer")
    error.__cause__, error.disconnected = OSError(errno.ECONNRESET, "Connection reset by peer"), True
    return error


def test_answered_a_moment_ago_is_looked_at_and_not_asked(clock: Clock) -> None:
    """No round trip until the server has not answered for PLUNGEPOOL_PING_AFTER_IDLE_S."""
    driver, examine = Driver(clock), Examiner(settings())
    clock.now += 29.9
    assert examine(driver, BEGUN) is None
    assert (driver.looks, driver.deadlines) == (1, [])
    clock.now += 0.1
    assert examine(driver, BEGUN) is None
    assert (driver.looks, driver.deadlines) == (2, [clock.now + 2])
    clock.now += 29.9
    assert examine(driver, BEGUN) is None
    assert len(driver.deadlines) == 1


def test_older_than_its_age_is_neither_looked_at_nor_asked(clock: Clock) -> None:
    """At the age it is handed out, beyond it not; that shows nothing of others."""
    driver, examine = Driver(clock), Examiner(settings())
    clock.now = driver.answered_at = BEGUN + 1000
    assert examine(driver, BEGUN) is None
    clock.now += 0.1
    assert examine(driver, BEGUN) == Dead("it was older than PLUNGEPOOL_MAX_AGE_S", reason="age")
    assert driver.looks == 1


def test_clock_that_was_set_back_makes_nothing_young(clock: Clock) -> None:
    """What was opened in the future is too old, and what answered in the future is asked: for ever young is nothing."""
    driver, examine = Driver(clock), Examiner(settings())
    clock.now -= 0.5
    assert examine(driver, BEGUN) == Dead("it was older than PLUNGEPOOL_MAX_AGE_S", reason="age")
    assert examine(driver, BEGUN - 10) is None
    assert len(driver.deadlines) == 1
    assert examine(driver, BEGUN - 10) is None
    assert len(driver.deadlines) == 1  # its answer is of the clock as it is now


@pytest.mark.parametrize(("connect_timeout_s", "ping_s"), [(4, 2), (0.5, 0.5)])
def test_a_question_has_two_seconds_and_no_more_than_a_connect(
    clock: Clock, connect_timeout_s: float, ping_s: float
) -> None:
    """And the connection has no deadline of the question's afterwards."""
    driver, examine = Driver(clock), Examiner(settings(connect_timeout_s=connect_timeout_s))
    clock.now += 100
    assert examine(driver, BEGUN) is None
    assert driver.deadlines == [clock.now + ping_s]
    assert driver.deadline is None


@pytest.mark.parametrize(("left_s", "ping_s"), [(3.0, 1.5), (60.0, 2.0)])
def test_a_question_leaves_half_of_the_invocation_for_a_connect(clock: Clock, left_s: float, ping_s: float) -> None:
    """The deadline of the invocation is the connection's afterwards."""
    driver, examine = Driver(clock), Examiner(settings())
    clock.now += 100
    invocation.end_at(clock.now + left_s)
    assert examine(driver, BEGUN) is None
    assert driver.deadlines == [clock.now + ping_s]
    assert driver.deadline == clock.now + left_s


def test_what_is_handed_out_has_the_deadline_of_this_invocation(clock: Clock) -> None:
    """A connection that is not asked anything gets it, too, and keeps none of the invocation before."""
    driver, examine = Driver(clock), Examiner(settings())
    driver.deadline = 1.0
    assert examine(driver, BEGUN) is None
    assert driver.deadline is None
    invocation.end_at(clock.now + 9)
    assert examine(driver, BEGUN) is None
    assert driver.deadline == clock.now + 9


def test_what_the_server_did_meanwhile_is_not_done_by_a_deadline_that_has_passed(clock: Clock) -> None:
    """The last invocation's is gone before the socket is looked at; what ended by a limit of the server's says so."""
    driver, examine = Driver(clock), Examiner(settings())
    told: list[float | None] = []
    driver.deadline = clock.now - 1
    driver.check = lambda: told.append(driver.deadline)
    assert examine(driver, BEGUN) is None
    assert told == [None]
    driver = Driver(clock)
    driver.seen = wire.DeadlineExceeded("the server ended what it did for us")
    dead = examine(driver, BEGUN)
    assert dead is not None
    assert dead.others is None


def test_another_exception_than_the_drivers_passes(clock: Clock) -> None:
    """The driver's errors are an answer; anything else is the caller's."""
    driver, examine = Driver(clock), Examiner(settings())
    clock.now += 100
    driver.unanswered = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        examine(driver, BEGUN)


@pytest.fixture
def kept(clock: Clock) -> Callable[..., tuple[BoundedPool, list[Driver]]]:
    """Return a function that makes a pool of four and keeps four connections, opened and answered second by second."""

    def make(**changes: Any) -> tuple[BoundedPool, list[Driver]]:
        given: list[Driver] = []

        def connect(_record: Any) -> Driver:
            given.append(Driver(clock, len(given) + 1))
            return given[-1]

        four = pool.build_pool(settings(pool_size=4, **changes), connect)
        fairies = []
        for _ in range(4):
            clock.now += 1
            fairies.append(four.connect())
        for fairy in fairies:
            clock.now += 1
            fairy.dbapi_connection.answered_at = clock.now
            fairy.close()
        return four, given

    return make


def number(fairy: Any) -> int:
    """Return which of the connections was handed out."""
    return int(fairy.dbapi_connection.number)


def test_unanswered_question_condemns_what_has_not_answered_since(
    kept: Callable[..., tuple[BoundedPool, list[Driver]]], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Story 20: four stale connections are dropped at the first proof, and one line says so."""
    caplog.set_level(logging.DEBUG, "plungepool")
    four, given = kept()
    clock.now += 300
    for one in given:
        one.unanswered = wire.DeadlineExceeded("no answer")
    assert number(four.connect()) == 5
    assert [one.gone for one in given] == [True, True, True, True, False]
    assert sum(len(one.deadlines) for one in given) == 1
    line = "a kept connection was replaced: no answer to a ping within 2.0 s, after 300 s idle"
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("INFO", f"{line}. 3 others were dropped with it")
    assert (four.checkedout(), four.checkedin()) == (1, 0)


def test_question_that_the_invocation_cut_short_condemns_nothing(
    kept: Callable[..., tuple[BoundedPool, list[Driver]]], clock: Clock
) -> None:
    """Half a second without an answer is no proof of anything."""
    four, given = kept()
    clock.now += 300
    given[3].unanswered = wire.DeadlineExceeded("no answer")
    invocation.end_at(clock.now + 1)
    assert [number(fairy) for fairy in [four.connect(), four.connect()]] == [5, 3]
    assert [one.gone for one in given] == [False, False, False, True, False]


def test_invocation_that_is_over_asks_nothing_and_closes_nothing(
    kept: Callable[..., tuple[BoundedPool, list[Driver]]], clock: Clock
) -> None:
    """The next one has them all."""
    four, given = kept()
    clock.now += 300
    invocation.end_at(clock.now)
    with pytest.raises(wire.DeadlineExceeded, match="ended before a connection was requested"):
        four.connect()
    assert not any(one.gone or one.looks for one in given)
    assert (four.checkedout(), four.checkedin()) == (0, 4)


def test_reset_condemns_what_has_not_answered_since(
    kept: Callable[..., tuple[BoundedPool, list[Driver]]], clock: Clock
) -> None:
    """Who forgot one connection without a word forgot the others of that time; no socket shows it."""
    four, given = kept()
    clock.now += 300
    given[3].unanswered = lost()
    given[1].answered_at = clock.now + 1  # by another thread, meanwhile
    assert number(four.connect()) == 5
    assert [one.gone for one in given] == [True, False, True, True, False]


@pytest.mark.parametrize("code", ["57P01", "57P02", "57P03", None])
def test_session_that_was_ended_has_the_others_looked_at(
    kept: Callable[..., tuple[BoundedPool, list[Driver]]], clock: Clock, code: str | None
) -> None:
    """A restart shows on every socket, pg_terminate_backend on one: nobody is asked, and who lives is kept."""
    four, given = kept()
    for dead in (given[3], given[0]):
        dead.seen = said(code) if code else wire.OperationalError("the server closed the connection")
    assert [number(fairy) for fairy in [four.connect(), four.connect()]] == [5, 3]
    assert [one.gone for one in given] == [True, False, False, True, False]
    assert sum(len(one.deadlines) for one in given) == 0


@pytest.mark.parametrize("code", ["57P05", "25P03", "25P04"])
def test_session_that_ended_by_a_limit_of_its_own_shows_nothing(
    kept: Callable[..., tuple[BoundedPool, list[Driver]]], code: str
) -> None:
    """The others are not even looked at: their own time comes."""
    four, given = kept()
    given[3].seen = said(code)
    assert number(four.connect()) == 5
    assert [(one.gone, one.looks) for one in given[:3]] == [(False, 0)] * 3


def test_age_of_one_shows_nothing(kept: Callable[..., tuple[BoundedPool, list[Driver]]], clock: Clock) -> None:
    """Each is as old as it is."""
    four, given = kept(max_age_s=4)
    clock.now += 0.5  # the fourth was opened 4.5 s ago
    assert number(four.connect()) == 5
    assert [one.gone for one in given] == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (lost(), [True, True, True]),
        (said("57P01"), [False, False, True]),
        (said("57P05"), [False, False, False]),
        (wire.DeadlineExceeded("no answer at the deadline"), [False, False, False]),
        (said("25006"), [True, True, False]),
    ],
    ids=["lost", "ended", "idle", "deadline", "moved"],
)
def test_loss_in_use_shows_what_its_cause_shows(
    kept: Callable[..., tuple[BoundedPool, list[Driver]]], clock: Clock, error: wire.Error, gone: list[bool]
) -> None:
    """
    As SQLAlchemy tells it of a statement's error: the third was in use, the fourth is younger, and its socket shows an
    end.
    """
    four, given = kept()
    fourth, third = four.connect(), four.connect()
    assert [number(third), number(fourth)] == [3, 4]
    fourth.close()
    given[3].seen = said("57P01")
    clock.now += 1
    four._invalidate(third, error)
    assert given[2].gone
    assert [given[0].gone, given[1].gone, given[3].gone] == gone
    third.close()
    assert (four.checkedout(), four.checkedin()) == (0, 3 - sum(gone))


def test_listener_that_gives_up_the_whole_pool_has_its_way(
    kept: Callable[..., tuple[BoundedPool, list[Driver]]], clock: Clock
) -> None:
    """SQLAlchemy's InvalidatePoolError is about every connection that was opened before."""
    from sqlalchemy import event, exc

    four, _ = kept()
    told: list[int] = []

    def refuse(connection: Driver, _record: Any, _fairy: Any) -> None:
        if not told:
            told.append(connection.number)
            clock.now += 1
            raise exc.InvalidatePoolError

    event.listen(four, "checkout", refuse)
    assert [number(fairy) for fairy in [four.connect(), four.connect()]] == [5, 6]
    assert told == [4]


class Ticking(Clock):
    """A clock that goes on whenever somebody looks at it, so that no wait is for ever."""

    def __call__(self) -> float:
        self.now += 0.0005
        return self.now


def stale(of: str, clock: Clock) -> tuple[BoundedPool, list[weakref.ref[Driver]]]:
    """Return a pool of three that keeps three dead connections, and what knows all that it ever opened."""
    given: list[weakref.ref[Driver]] = []

    def connect(_record: Any) -> Driver:
        driver = Driver(clock)
        given.append(weakref.ref(driver))
        return driver

    three = pool.build_pool(settings(pool_size=3, checkout_timeout_s=2), connect)
    for fairy in [three.connect() for _ in range(3)]:
        fairy.close()
    for driver in [one() for one in given]:
        assert driver is not None
        if of == "ended":
            driver.seen = said("57P01")
        else:
            driver.unanswered = wire.DeadlineExceeded("no answer") if of == "silent" else lost()
    clock.now += 300
    return three, given


def left_open(given: list[weakref.ref[Driver]]) -> int:
    """Return how many are open; the driver's own close themselves where nobody refers to them any more."""
    gc.collect()
    return sum(not driver.gone for one in given if (driver := one()) is not None)


@pytest.mark.parametrize("of", ["silent", "ended", "lost"])
@pytest.mark.filterwarnings("ignore:Double checkin attempted")
def test_strike_at_each_line_while_several_are_dropped(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards every place works, and nothing is open that nobody has."""
    clock = Ticking()
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr(invocation, "_end", None)
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)  # it would keep what a finalizer raises
    problems: list[str] = []

    def strike(at: int) -> bool:
        three, given = stale(of, clock)
        with Injector(at, KINDS[at % 4]) as injector:
            try:
                three.connect().close()
            except BaseException as problem:
                if not injector.struck:
                    problems.append(repr(problem))
        held = [three.connect() for _ in range(3)]
        drivers: list[Any] = [fairy.dbapi_connection for fairy in held]
        if len(set(map(id, drivers))) != 3 or any(one.gone or one.seen or one.unanswered for one in drivers):
            problems.append(f"line {at}: one is held by two, or dead")
        if left_open(given) != 3:
            problems.append(f"line {at}: {left_open(given)} are open")
        del drivers
        for fairy in held:
            fairy.close()
        three.dispose()
        if left_open(given):
            problems.append(f"line {at}: {left_open(given)} are left open")
        return injector.struck

    def run() -> None:
        try:
            at = 1
            while strike(at):
                at += 1
            assert at > 150
        except BaseException as problem:
            problems.append(repr(problem))

    # A trace function may leave its thread with an exception "being handled" for ever.
    logging.disable(logging.CRITICAL)
    gc.freeze()
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        gc.unfreeze()
        logging.disable(logging.NOTSET)
    assert problems == []
