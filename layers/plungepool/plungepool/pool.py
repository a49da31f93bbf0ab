"""
One bounded pool: how many connections, who waits, what to keep, and when to ask whether a connection still lives.

A policy says at each return whether to keep the connection (`tiny`: always; `null`: never; `adaptive`: where the server
has given it a ticket, and without one to the end of the invocation). Kept connections are handed out LIFO, so that what
was used last, which is the likeliest to live, is used next. Nothing runs in the background: an environment is frozen
when it is idle, so every decision is taken at checkout or at return, by the wall clock.

**After a freeze** a kept connection may have been closed, reset, or forgotten without a word. Before it is handed out,
`Examiner` looks at its age and its socket, which costs no round trip, and asks it one short question where the server
has not answered for long. What is found dead is replaced within the same checkout, told in one line at INFO, and may
show something of the others that are kept: nothing, that they should be looked at, or that they are as dead.

**State by evidence.** An exception can strike between any two lines: a signal handler's, another thread's, a
time-out's. So no number is kept that somebody must remember to put back, and there is no lock that somebody must
remember to release. The pool has a fixed tuple of places. Whoever has a place has it by a *checkout*, which ends once
(returned or lost) and passes the place on once, to one heir; both are a single `dict.setdefault`, which no exception
can cut in two. A checkout that did not end is over all the same when nobody holds it: no object refers to the
connection that was handed out, and no frame on any thread's stack is at work with it. Looking at the stacks is for the
one who would else have to wait. What is left of a lost checkout costs its connection, never its place.

Waiting is first come, first served. Threads: safe; signal handlers and finalizers may use the pool while it is in use.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import exc
from sqlalchemy.pool import Pool
from sqlalchemy.pool import base as _sqlalchemys

from . import fleet, invocation
from .errors import PlungepoolError
from .names import variable
from .wire.errors import DeadlineExceeded, Error

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from .settings import Settings
    from .wire import Connection

    # Whether another kept connection is dead, by itself and by when its connect began.
    _OfOthers = Callable[[Any, float], bool]

_logger = logging.getLogger("plungepool")

# How a checkout ends.
_RETURNED, _LOST = "returned", "lost"
# A ring of the bell can be lost with the thread that owed it, so whoever waits looks for himself now and then.
_LOOK_AGAIN_S = 0.1
# Frames that are remembered of each checkout, nearest first: enough to get past a framework's own to the user's line.
_FRAMES_KEPT = 16
_NEVER = float("inf")
# A question has an answer of six bytes: who has not given it by then, after several retransmissions, is not there.
_PING_AT_MOST_S = 2.0
_NOTE, _USED_AT = "plungepool_checkout", "plungepool_used_at"
# A shutdown or pg_terminate_backend, a crash, a start; a write that is refused.
_ENDS_SEVERAL, _READ_ONLY = frozenset(("57P01", "57P02", "57P03")), "25006"
# The session idled for longer than the server allows.
_IDLED = "57P05"


class PoolExhausted(PlungepoolError, exc.TimeoutError):
    """No connection became free within the checkout time-out; says where those in use were taken."""


class _Checkout:
    """The use of one place, from the moment that it is asked for to its end."""

    __slots__ = (
        *(
            "before",
            "bell",
            "connects",
            "delivered",
            "disposed",
            "fate",
            "parked",
            "record",
            "replaced",
            "returned_at",
            "since",
            "thread",
            "trace",
        ),
    )

    def __init__(self, trace: list[tuple[CodeType, int, str]]) -> None:
        self.trace, self.since, self.thread = trace, time.time(), threading.get_ident()
        # "end": how it ended; "heir": the checkout that has its place now. Written by setdefault only: the first wins.
        self.fate: dict[str, Any] = {}
        self.record: Callable[[], Any] = _nothing
        # Whose place it takes over, until it has a record of its own: what that one parked is not to be lost between
        # the two.
        self.before: _Checkout | None = None
        # True when the caller of `connect` has it, and not only SQLAlchemy's code on the way there.
        self.delivered = False
        # True when the pool was disposed of meanwhile: then it is not kept.
        self.disposed = False
        self.parked: ConnectionPoolEntry | None = None
        self.returned_at = 0.0
        # Why it has another connection than the one that was kept for it, and how many others were dropped with that.
        self.replaced: tuple[Dead, int] | None = None
        # True where its connection is a new one.
        self.connects = False
        self.bell: Any = None


class _Place:
    """Room for one connection."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known = _Checkout([])
        self._known.fate["end"] = _RETURNED

    def last(self) -> _Checkout:
        """Return the checkout that has the place, or had it last."""
        checkout = self._known
        while heir := checkout.fate.get("heir"):
            checkout = heir
        self._known = checkout  # an older one, written late by another thread, leads here all the same
        return checkout


class _HandedOut:
    """A checkout, as the end of an invocation has to know it."""

    __slots__ = ("_checkout", "_pool")

    def __init__(self, pool: BoundedPool, checkout: _Checkout) -> None:
        self._pool, self._checkout = pool, checkout

    def is_out(self) -> bool:
        return "end" not in self._checkout.fate

    def where(self) -> str:
        return _where(self._checkout.trace)

    def raises(self) -> bool:
        return self._pool.raise_leaks

    def close(self) -> None:
        """
        Take the connection from whoever has it, in whichever thread: the server rolls back, and its statement is
        stopped.
        """
        _abandon(self._checkout, stop=True)
        self._checkout.fate.setdefault("end", _LOST)
        invocation.count("closed")
        self._pool._ring()


class Dead(NamedTuple):
    """Why a kept connection is not handed out again."""

    why: str
    #: Of which others that are kept it shows the same.
    others: _OfOthers | None = None
    #: True where it ended as it should: there is nothing to tell.
    expected: bool = False
    #: The same as `why` in a word that is counted: age, lease, no_answer, lost, moved, or a SQLSTATE.
    reason: str = "lost"


class Examiner:
    """
    Asks of a kept connection whether it may be handed out again, and gives one that may the invocation's deadline.

    Units: seconds of wall clock.        Threads: safe, for connections that nobody else uses.
    """

    def __init__(self, settings: Settings, lease_s: Callable[[Connection], float] | None = None) -> None:
        """Take the settings of an engine. Args: lease_s(connection): how long the server lets it idle; 0: for ever."""
        self._lease_s = lease_s or _no_lease
        self._max_age_s, self._ping_after_idle_s = settings.max_age_s, settings.ping_after_idle_s
        self._ping_s = min(_PING_AT_MOST_S, settings.connect_timeout_s)
        self._margin_s, self._max_age = settings.margin_s, settings.variable("max_age_s")

    def __call__(self, connection: Connection, opened_at: float) -> Dead | None:
        """
        Say why a connection must be replaced; None: it may be handed out.

        By its age and a look at its socket, which costs no round trip; where the server has not answered for
        PLUNGEPOOL_PING_AFTER_IDLE_S, by a question that has two seconds at most, or half of what the invocation has
        left. A moment that lies in the future is of a clock that was set back since, and says nothing: the connection
        counts as too old, or as idle for too long.

        Args: opened_at: when its connect began.
        """
        now = time.time()
        if not 0 <= now - opened_at <= self._max_age_s:
            return Dead(f"it was older than {self._max_age}", reason="age")
        # In place of the last invocation's, which has passed: what the server did meanwhile is not done by it.
        connection.deadline = end = invocation.deadline(self._margin_s)
        idle_s, given_s, lease_s = now - connection.answered_at, 0.0, self._lease_s(connection)
        if 0 < lease_s <= idle_s + fleet.GRACE_S:
            return Dead(f"its lease of {lease_s:g} s had expired", expected=True, reason="lease")
        try:
            connection.check()
            if not 0 <= idle_s < self._ping_after_idle_s:
                given_s = self._ping_s if end is None else min(self._ping_s, (end - now) / 2)
                connection.deadline = now + given_s
                connection.ping()
                connection.deadline = end
        except DeadlineExceeded:
            why = f"no answer to a ping within {given_s:.1f} s, after {max(0.0, idle_s):.0f} s idle"
            # What was not waited out shows nothing of others.
            others = _not_answered_since(now) if given_s == self._ping_s else None
            return Dead(why, others, reason="no_answer")
        except Error as error:
            why = f"the server had closed it ({error})" if error.sqlstate else str(error)
            expected = lease_s > 0 and error.sqlstate == _IDLED
            return Dead(why, _shown_by(error, opened_at), expected, error.sqlstate or "lost")
        return None


def _not_answered_since(moment: float) -> _OfOthers:
    return lambda connection, _opened_at: connection.answered_at < moment


def _is_hung_up(connection: Connection, _opened_at: float) -> bool:
    try:
        connection.check()
    except Error:
        return True
    return False


def _shown_by(error: BaseException, opened_at: float) -> _OfOthers | None:
    """
    Return of which kept connections the loss of one shows that they are lost as well; None: of none.

    Who ends one session may be ending all, as at a restart: each socket shows it, so that they are looked at. Where
    the way to the server, or what stands in between, was lost without a word, no socket shows it, and what has not
    answered since counts as lost. Where a writer has moved, what was opened no later leads to where it was. What a
    server says or does to one session (an idle time-out), or a deadline of this side's, shows nothing of another.
    """
    if isinstance(error, DeadlineExceeded) or not isinstance(error, Error):
        return None
    if error.sqlstate == _READ_ONLY:
        return lambda _, others: others <= opened_at
    if error.sqlstate is not None:
        return _is_hung_up if error.sqlstate in _ENDS_SEVERAL else None
    return _not_answered_since(time.time()) if isinstance(error.__cause__, OSError) else _is_hung_up


class _Host:
    """
    Where a host's name leads, as the last look-up for a connect has shown; no name is looked up for this alone.
    """

    def __init__(self, *, followed: bool) -> None:
        self._followed = followed
        # When the last connect to have looked it up began, and what addresses that has shown.
        self._seen: tuple[float, tuple[Any, ...]] = 0.0, ()

    def learn(self, connection: Any, opened_at: float) -> bool:
        """Take what a new connection has shown; return whether that is anything."""
        shown = getattr(connection, "looked_up", ())  # a listener for `do_connect` may have opened it by other means
        if self._followed and shown:
            self._seen = opened_at, shown
        return bool(self._followed and shown)

    def has_left(self, connection: Any, opened_at: float) -> bool:
        """Say whether the name leads elsewhere than a connection that was opened before."""
        moment, shown = self._seen
        return opened_at < moment and getattr(connection, "address", None) not in (None, *shown)


_HAS_LEFT = Dead("the host name now resolves to another address", reason="moved")


class _Shared:
    """
    Whether a connection that is not kept beyond the invocation is kept to its end, for the next checkout to have it.

    That is where this invocation or the last one had several. Where nothing shows that there is another to come, others
    want it: a handler that goes on for long without it would hold a place of which there are few. It is advice: a
    checkout that is not counted costs a connect at most.
    """

    __slots__ = ("_had_several", "uses")

    def __init__(self) -> None:
        self.uses, self._had_several = 0, False

    def is_expected(self) -> bool:
        return invocation.is_running() and (self.uses > 1 or self._had_several)

    def end(self) -> None:
        if self.uses:
            self.uses, self._had_several = 0, self.uses > 1


class _Places(Pool):
    """Room for so many connections, and what SQLAlchemy's pools tell of themselves."""

    # Where SQLAlchemy's pools log what they do; else it would be this module's.
    _sqla_logger_namespace = "sqlalchemy.pool.BoundedPool"
    _places: tuple[_Place, ...]
    _timeout_s: float

    def size(self) -> int:
        """Return how many connections there may be."""
        return len(self._places)

    def timeout(self) -> float:
        """Return the seconds that a checkout waits."""
        return self._timeout_s

    def checkedout(self) -> int:
        """Return how many connections are in use."""
        return sum("end" not in place.last().fate for place in self._places)

    def checkedin(self) -> int:
        """Return how many connections are kept for the next checkout."""
        parked = (place.last().parked for place in self._places)
        return sum(record is not None and record.dbapi_connection is not None for record in parked)

    def _is_worth_collecting(self, generation: int, *, late: bool) -> bool:
        """
        Say whether places may be held by garbage that the collector has not seen.

        A holder that nothing refers to, except itself in a circle, is none: SQLAlchemy's connection and its transaction
        are such a circle. One that this thread was struck out of a moment ago is young, and found at little cost; a
        whole collection is for when nobody else could return a connection, or half of the time is over.
        """
        # Their names only: frames that a variable keeps are a circle with its own, and hold every thread's variables.
        me, living = threading.get_ident(), set(sys._current_frames())
        lasts = (place.last() for place in self._places)
        mine = [last.thread == me or last.thread not in living for last in lasts if "end" not in last.fate]
        return late or (any(mine) if generation == 1 else all(mine))

    def overflow(self) -> int:
        """Return 0: there are never more than `size` connections."""
        return 0

    def status(self) -> str:
        """Return the numbers in a sentence."""
        return f"{self.size()} connections at most: {self.checkedout()} in use, {self.checkedin()} kept"


class BoundedPool(_Places):
    """At most `size` connections, each handed out again only while it seems to live."""

    #: The dialect need not look at what is checked out once more.
    examines = True

    def __init__(
        self,
        creator: Any,
        *,
        size: int,
        timeout_s: float,
        margin_s: float | None = 0.0,
        raise_leaks: bool = False,
        prefix: str = "",
        keep: Callable[[Any], bool],
        to_the_end: bool = False,
        follows_host: bool = False,
        examine: Callable[[Any, float], Dead | None],
        **arguments: Any,
    ) -> None:
        """
        Take `sqlalchemy.pool.Pool`'s arguments and these.

        Args: keep(connection): asked at each return; False closes it. to_the_end: not before the invocation ends, so
            that several checkouts in it share one. follows_host: drop what leads to an address that the host's name no
            longer shows. examine(connection, opened_at): why a kept connection may not be handed out again; None where
            it may. prefix: what the settings' variables begin with, for errors.
        Units: seconds of wall clock.
        """
        super().__init__(creator, **arguments)
        self._timeout_s, self._keep, self._examine, self._to_the_end = timeout_s, keep, examine, to_the_end
        self._margin_s, self.raise_leaks, self._prefix = margin_s, raise_leaks, prefix
        self._places = tuple(_Place() for _ in range(size))
        self._line: deque[_Checkout] = deque()
        self._shared, self._follows_host, self._host = _Shared(), follows_host, _Host(followed=follows_host)
        if to_the_end:
            invocation.at_each_end(self._end_invocation)

    def recreate(self) -> BoundedPool:
        """Make an empty pool of the same kind, as Engine.dispose() asks for."""
        return type(self)(
            self._creator,
            size=self.size(),
            timeout_s=self._timeout_s,
            margin_s=self._margin_s,
            raise_leaks=self.raise_leaks,
            prefix=self._prefix,
            keep=self._keep,
            to_the_end=self._to_the_end,
            follows_host=self._follows_host,
            examine=self._examine,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close what is kept; what is out is closed at its return."""
        for place in self._places:
            nobody = _Checkout([])
            nobody.fate["end"] = _RETURNED
            heir: _Checkout | None = None
            while heir is not nobody:
                last = place.last()
                last.disposed = True
                if "end" not in last.fate:
                    break
                # Where another checkout has taken it over meanwhile, that one has to know.
                heir = last.fate.setdefault("heir", nobody)
                if heir is nobody and last.parked is not None:
                    last.parked.close()

    def connect(self) -> PoolProxiedConnection:
        """
        Check a connection out; blocks for the checkout time-out at most, and for a connect where none is kept.

        Raises: PoolExhausted; whatever a connect raises.
        Threads: safe, and first come, first served.
        """
        checkout = _Checkout(_trace(sys._getframe(1)))
        try:
            fairy = super().connect()
            checkout.delivered = True
            invocation.count("checkouts")
            if invocation.is_running():
                self._shared.uses += 1
                invocation.note(_HandedOut(self, checkout))
            if checkout.replaced is not None:
                _tell(*checkout.replaced)
            if checkout.connects:
                self._learn_address(fairy)
            return fairy
        except BaseException:
            invocation.count("checkouts_failed")
            # Nobody will ever get it. Its end comes last: whoever finds none does all of this again.
            if "end" not in checkout.fate:
                _abandon(checkout)
                checkout.fate.setdefault("end", _LOST)
                self._ring()
            raise

    def _do_get(self) -> ConnectionPoolEntry:
        checkout = _asking(sys._getframe(1))
        if invocation.is_over(self._margin_s):
            invocation.count("deadlines_exceeded")
            raise DeadlineExceeded("the invocation had ended before a connection was requested")
        before = self._inherit(checkout, look_closely=False) if not self._line else None
        if before is None:
            before = self._wait(checkout)
        record = before.parked if before.fate["end"] is _RETURNED else None
        if record is None:
            checkout.connects = True
            record = self._create_connection()
            checkout.record = weakref.ref(record)
        else:
            checkout.record = weakref.ref(record)
            before.parked = None
            connection = record.dbapi_connection
            dead = None if connection is None else self._judge(connection, _opened_at(record))
            checkout.connects = connection is None or dead is not None
            if dead is not None:
                invocation.count_under("reconnects", dead.reason)
                record.close()  # the record connects anew when it is asked for its connection, which is next
                checkout.replaced = dead, 0 if dead.others is None else self._drop(dead.others)
        checkout.before = None
        _notes(record)[_NOTE] = checkout
        return record

    def _judge(self, connection: Any, opened_at: float) -> Dead | None:
        return _HAS_LEFT if self._host.has_left(connection, opened_at) else self._examine(connection, opened_at)

    def _learn_address(self, fairy: Any) -> None:
        """Drop what leads to where the host's name no longer leads, as a new connection has shown."""
        record = fairy._connection_record
        learnt = record is not None and self._host.learn(fairy.dbapi_connection, _opened_at(record))
        if learnt and (dropped := self._drop(self._host.has_left)):
            _logger.info("%s: %s", _dropped(dropped), _HAS_LEFT.why)

    def _drop(self, is_dead: _OfOthers) -> int:
        """Close those of the kept connections of which that is true, and return how many."""
        dropped = 0
        for place in self._places:
            last = place.last()
            record = last.parked
            if record is None or "end" not in last.fate:
                continue
            # The place is in use meanwhile, as by any checkout, and is lost and found as any is.
            checkout = _Checkout([])
            checkout.record, checkout.before, checkout.returned_at = weakref.ref(record), last, last.returned_at
            if last.fate.setdefault("heir", checkout) is not checkout:
                continue
            connection = record.dbapi_connection
            if connection is not None and is_dead(connection, _opened_at(record)):
                record.close()
                dropped += 1
            last.parked = None
            self._park(checkout, record)
        return dropped

    def _invalidate(
        self, connection: PoolProxiedConnection, exception: BaseException | None = None, _checkin: bool = True
    ) -> None:
        """
        Have a connection that was lost in use end, and with it those others of which that shows that they are lost.

        SQLAlchemy asks for this, and by itself would give up every connection that was opened before, whatever the
        cause. Where a listener asks for that by its InvalidatePoolError, it has it.
        """
        if not isinstance(exception, Error):
            super()._invalidate(connection, exception, _checkin)
            return
        record = getattr(connection, "_connection_record", None)
        others = _shown_by(exception, _opened_at(record)) if record is not None else None
        if others is not None and (dropped := self._drop(others)):
            _logger.info("%s with one that was lost in use (%s)", _dropped(dropped), exception)
        if _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)

    def _inherit(self, checkout: _Checkout, *, look_closely: bool) -> _Checkout | None:
        """Take over a place whose last checkout is over, and return that one; None where every place is in use."""
        over = []
        for place in self._places:
            last = place.last()
            if "end" not in last.fate and look_closely and _is_lost(last):
                _abandon(last)
                last.fate.setdefault("end", _LOST)
            if "end" in last.fate:
                over.append(last)
        for last in sorted(over, key=_kept_since, reverse=True):
            checkout.before = last
            if last.fate.setdefault("heir", checkout) is checkout:
                return last
        checkout.before = None
        return None

    def _wait(self, checkout: _Checkout) -> _Checkout:
        checkout.bell = bell = threading.Lock()
        bell.acquire()
        deadline = min(checkout.since + self._timeout_s, invocation.deadline(self._margin_s) or _NEVER)
        generations = [2, 1]
        self._line.append(checkout)
        try:
            rung = False
            while True:
                if self._is_first(checkout, look_closely=not rung):
                    before = self._inherit(checkout, look_closely=not rung)
                    if before is not None:
                        invocation.count("checkout_wait_s", time.time() - checkout.since)
                        return before
                now = time.time()
                if generations and self._is_worth_collecting(
                    generations[-1], late=now > deadline - self._timeout_s / 2
                ):
                    gc.collect(generations.pop())
                    continue
                if now >= deadline:
                    exhausted = self._exhausted(now - checkout.since)
                    invocation.count("checkout_wait_s", now - checkout.since)
                    if now >= checkout.since + self._timeout_s:
                        invocation.count("exhausted")
                        raise exhausted
                    invocation.count("deadlines_exceeded")
                    raise DeadlineExceeded(f"the invocation had ended before a connection became free: {exhausted}")
                rung = bell.acquire(timeout=max(0.0, min(deadline - now, _LOOK_AGAIN_S)))
        finally:
            with suppress(ValueError):
                self._line.remove(checkout)
            self._ring()

    def _is_first(self, checkout: _Checkout, *, look_closely: bool) -> bool:
        while True:
            try:
                head = self._line[0]
            except IndexError:
                return True
            if head is checkout:
                return True
            if not look_closely or _in_hands(head, None):
                return False
            with suppress(ValueError):
                self._line.remove(head)

    def _ring(self) -> None:
        """Let the first in the line look for a place."""
        if self._line:
            with suppress(IndexError, RuntimeError):  # nobody waits any more, or the bell has been rung
                self._line[0].bell.release()

    def _exhausted(self, waited_s: float) -> PoolExhausted:
        held = [last for last in (place.last() for place in self._places) if "end" not in last.fate]
        waited = f"{min(self._timeout_s, round(waited_s, 2)):g} s ({variable('checkout_timeout_s', self._prefix)})"
        size = f"{self.size()} ({variable('pool_size', self._prefix)})"
        return PoolExhausted(
            f"{_why_exhausted(held, waited, size, len(self._line) - 1)}, or raise {variable('pool_size', self._prefix)}"
        )

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        checkout = _notes(record).pop(_NOTE, None)
        connection = record.dbapi_connection
        passes = connection is not None and not self._keep(connection)
        if checkout is None or (passes and not (self._to_the_end and self._shared.is_expected())):
            record.close()
        if checkout is None:
            return
        invocation.count("closed" if record.dbapi_connection is None else "kept")
        checkout.returned_at = _notes(record)[_USED_AT] = time.time()
        self._park(checkout, record)
        if passes and self._to_the_end and not invocation.is_running():
            self._end_invocation()  # it ended meanwhile, and may have looked before this was there

    def _end_invocation(self) -> None:
        """Close what was kept for the invocation alone."""
        self._shared.end()
        parked = (place.last().parked for place in self._places)
        if any(one is not None and one.dbapi_connection and not self._keep(one.dbapi_connection) for one in parked):
            dropped = self._drop(lambda connection, _opened_at: not self._keep(connection))
            invocation.count("kept", -dropped)
            invocation.count("closed", dropped)

    def _park(self, checkout: _Checkout, record: ConnectionPoolEntry) -> None:
        """End a checkout, and keep its record, closed or not, for the next one that has the place."""
        checkout.parked = record
        if checkout.disposed:
            record.close()
        if checkout.fate.setdefault("end", _RETURNED) is not _RETURNED:
            # Somebody found that nobody had it, and the place is another's.
            checkout.parked = None
            record.close()
        self._ring()


def build_pool(
    settings: Settings, creator: Callable[[Any], Any], examine: Callable[[Any, float], Dead | None] | None = None
) -> BoundedPool:
    """
    Return the pool that the settings ask for; nothing is connected yet.

    Args: creator(record): opens a connection. examine(connection, opened_at): why a kept connection may not be handed
        out again; by the settings where nothing else is given.
    Source: SQLAlchemy, Connection Pooling, "Constructing a Pool".
    """
    keep, lease_s = _policy(settings.policy)
    return BoundedPool(
        creator,
        size=settings.pool_size,
        timeout_s=settings.checkout_timeout_s,
        margin_s=settings.margin_s,
        raise_leaks=settings.leaks == "raise",
        prefix=settings.prefix,
        keep=keep,
        to_the_end=settings.policy == "adaptive",
        # Other names may lead to several servers by turns: a reader's, a proxy's, Aurora DSQL's.
        follows_host=settings.endpoint == "direct" and settings.access == "read-write" and settings.auth != "dsql",
        examine=examine or Examiner(settings, lease_s),
    )


def used_at(record: Any) -> float:
    """Return when a record's last connection was given back, in seconds since the epoch; 0: it has had none."""
    return float(_notes(record).get(_USED_AT, 0.0))


def caller() -> str:
    """Return `file:line in function` of the nearest frame that is the user's: no library's and not Python's own."""
    return _where(_trace(sys._getframe(1)))


def taken_at(pool: Pool, connection: Any) -> str | None:
    """Return `file:line in function` of who checked a connection out and has it still; None where nobody did here."""
    for place in pool._places if isinstance(pool, BoundedPool) else ():
        last = place.last()
        record = last.record()
        if "end" not in last.fate and record is not None and record.dbapi_connection is connection:
            return _where(last.trace)
    return None


def _tell(dead: Dead, dropped: int) -> None:
    level = logging.DEBUG if dead.expected else logging.INFO
    _logger.log(
        level, "a kept connection was replaced: %s%s", dead.why, f". {_dropped(dropped)} with it" if dropped else ""
    )


def _dropped(count: int) -> str:
    return "1 other was dropped" if count == 1 else f"{count} others were dropped"


def _opened_at(record: Any) -> float:
    # SQLAlchemy's own note of when the connect began.
    return float(record.starttime)


def _kept_since(checkout: _Checkout) -> float:
    """Return when what is kept of a checkout that is over was used last; 0 where nothing is."""
    record = checkout.parked
    return checkout.returned_at if record is not None and record.dbapi_connection is not None else 0.0


def _nothing() -> None:
    """Stand for the weak reference to a record that was not there yet."""


def _policy(name: str) -> tuple[Callable[[Any], bool], Callable[[Any], float] | None]:
    """Return what is asked at each return, and how long the server lets what is kept idle, where it was told."""
    if name == "adaptive":
        from . import tickets  # the others pay nothing for it

        return tickets.may_keep, tickets.lease_s
    return _always if name == "tiny" else _never, None


def _always(_connection: Any) -> bool:
    return True


def _never(_connection: Any) -> bool:
    return False


def _no_lease(_connection: Any) -> float:
    return 0.0


def _notes(record: ConnectionPoolEntry) -> dict[Any, Any]:
    # SQLAlchemy's own dictionary of the record, which lives as long as the record does.
    return record.record_info  # type: ignore[return-value]  # None for a detached connection only, which has no record


def _asking(frame: FrameType | None) -> _Checkout:
    """
    Return the checkout that is being made: by the frame of `connect`, since a signal handler may be making another.
    """
    while frame is not None:
        if frame.f_code is _CONNECT:
            checkout: _Checkout = frame.f_locals["checkout"]
            return checkout
        frame = frame.f_back
    return _Checkout([])


def _is_lost(checkout: _Checkout) -> bool:
    """Say whether nobody has what was checked out; the caller has looked that it did not end."""
    record = checkout.record()
    if checkout.delivered:
        if record is None:
            return True
        fairy = record.fairy_ref and record.fairy_ref()
        # A connection that was torn and closed is nobody's use of the server, whoever refers to it.
        if fairy is not None and not getattr(record.dbapi_connection, "gone", True):
            return False
        del fairy
    return not _in_hands(checkout, record)


def _in_hands(checkout: _Checkout, record: Any) -> bool:
    """Say whether a frame on any thread's stack, of this pool or of SQLAlchemy's, is at work with it."""
    top: FrameType | None = None
    frame: FrameType | None = None
    try:
        for top in sys._current_frames().values():
            frame = top
            while frame is not None:
                if frame.f_code in _OURS or frame.f_globals is _SQLALCHEMYS:
                    for value in list(frame.f_locals.values()):
                        if value is checkout or (record is not None and value is record):
                            return True
                frame = frame.f_back
        return False
    finally:
        # One of them is this frame: a circle, which would keep the variables of all that is on this stack.
        top = frame = None


_CONNECT = BoundedPool.connect.__code__
_OURS = (_CONNECT, *(one.__code__ for one in (BoundedPool._do_return_conn, BoundedPool._park, BoundedPool._drop)))
_SQLALCHEMYS = vars(_sqlalchemys)


def _abandon(checkout: _Checkout, *, stop: bool = False) -> None:
    """
    End the connection of a lost checkout. Its finalizer may be about to run in another thread: that finds it closed.
    """
    record, before = checkout.record(), checkout.before
    if record is None and before is not None and before.fate.get("heir") is checkout:
        record = before.record()
    if record is not None:
        record.fairy_ref = None
        if record.dbapi_connection is not None:
            record.dbapi_connection.abandon(stop=stop)
            record.dbapi_connection = None


def _trace(frame: FrameType | None) -> list[tuple[CodeType, int, str]]:
    """
    Return code, line and module of the nearest frames outside SQLAlchemy and this package; cheap, no source is read.
    """
    trace: list[tuple[CodeType, int, str]] = []
    while frame is not None and len(trace) < _FRAMES_KEPT:
        module = frame.f_globals.get("__name__") or ""
        if not module.startswith(("sqlalchemy.", "plungepool.")):
            trace.append((frame.f_code, frame.f_lineno, module))
        frame = frame.f_back
    return trace


def _where(trace: list[tuple[CodeType, int, str]]) -> str:
    if not trace:
        return "an unknown place"
    code, line, _ = next((one for one in trace if not _is_library(one[0].co_filename, one[2])), trace[0])
    return f"{code.co_filename}:{line} in {code.co_name}"


def _why_exhausted(held: list[_Checkout], waited: str, size: str, waiting: int) -> str:
    """Return what an error says of who has the connections, where each was taken, and what to do."""
    now, me = time.time(), threading.get_ident()
    ages: dict[str, list[float]] = {}
    for last in held:
        ages.setdefault(_where(last.trace), []).append(now - last.since)
    where = "; ".join(
        f"{place} ({'' if len(since) == 1 else f'{len(since)} of them, the first '}{max(since):.1f} s ago)"
        for place, since in ages.items()
    )
    if any(last.thread == me for last in held):
        advice = (
            "This thread holds one of them itself: pass that one on, or return it before checking out another (use "
            "`with "
            "engine.begin() as connection:`)"
        )
        if not invocation.is_running():
            advice += "; guard_invocation returns what an earlier invocation left checked out"
    else:
        advice = "Other threads are using them: make their transactions shorter"
    return (
        f"no connection became free within {waited}: the pool has {size}, taken at "
        f"{where or 'places that have returned them'}; "
        f"{waiting} more {'checkout was' if waiting == 1 else 'checkouts were'} waiting. {advice}"
    )


_PYTHONS_OWN = os.path.dirname(os.__file__) + os.sep


def _is_library(path: str, module: str) -> bool:
    """
    Say whether a file belongs to Python, a layer or an installed distribution; sam build puts those beside the handler.
    """
    if path.startswith((_PYTHONS_OWN, "/opt/python/", "/var/runtime/", "<")):
        return True
    if "/site-packages/" in path or "/dist-packages/" in path:
        return True
    package = module.partition(".")[0]
    folder = os.path.dirname(path)
    while os.path.basename(folder) and f"{os.sep}{package}{os.sep}" in f"{folder}{os.sep}":
        folder = os.path.dirname(folder)
    with suppress(OSError):
        for name in os.listdir(folder or "."):
            if name.endswith(".dist-info") and name.partition("-")[0].lower() == package.lower():
                return True
    return False
