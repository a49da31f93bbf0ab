"""
See what invocations do with the database: what is counted for each, and who is told.

    from plungepool import observe

    observe.listen(print)                       # the whole of a tally, at the end of each guarded invocation

The places where things happen (a checkout, a connect, a flight) count them in the tally of the invocation that runs,
and only while somebody listens. None of this changes what an invocation does: what a listener raises is logged once,
and is not propagated. A tally belongs to one invocation, and the next invocation starts with a new one, so that what an
exception cut short leaves nothing behind.

Units: seconds of wall clock.        Threads: safe; the threads of one invocation count in one
tally, which may lose a count where two of them come to it in the same moment.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from . import invocation
from .flights import is_ping, name_of, texts
from .wire import session as _session
from .wire.errors import DeadlineExceeded, Error

if TYPE_CHECKING:
    from collections.abc import Callable

    from .wire.protocol import Reply
    from .wire.session import Session

    #: session, reply (None: an attempt to open the session), when it began, the seconds it took, what it raises
    FlightListener = Callable[[Session, Reply | None, float, float, BaseException | None], object]

__all__ = [
    "FIELDS",
    "Tally",
    "is_ping",
    "listen",
    "listen_to_flights",
    "name_of",
    "texts",
    "to_metrics",
    "to_opentelemetry",
    "to_tracer",
]

_logger = logging.getLogger("plungepool")


class Tally:
    """
    What one invocation did with the database, in numbers; `request_id` and `began_at` (since the epoch) say which.

    Each number is 0 until something counts it. Numbers are of this package's engines, all of them together.
    """

    #: connections that were checked out, and the seconds that checkouts waited for one of the pool's to be free
    checkouts, checkout_wait_s = 0, 0.0
    #: checkouts that ended without a connection, whatever the cause; those of them that found none free in time
    #: (`PoolExhausted`)
    checkouts_failed, exhausted = 0, 0
    #: sessions that were opened; attempts that failed; attempts that were made because the database was full,
    #: restarting or silent
    connects, connects_failed, connect_retries = 0, 0, 0
    #: the seconds that attempts took from the name to the answer to the password, failed ones included
    connect_s = 0.0
    #: parts of it: the look-up of the name, TCP, TLS, authentication; and, before it, the password or token
    name_s, tcp_s, tls_s, authentication_s, credentials_s = 0.0, 0.0, 0.0, 0.0, 0.0
    #: questions whether a kept connection still lives
    pings = 0
    #: transactions that `run_transaction` ran again
    transaction_retries = 0
    #: how often the server was waited for, connects left out; the seconds of those waits; and the rows that came
    round_trips, database_s, rows = 0, 0.0, 0
    #: statements that took PLUNGEPOOL_SLOW_QUERY_S
    slow_queries = 0
    #: the round trips that asked why a statement was slow, and their seconds; no other number counts them
    explain_round_trips, explain_s = 0, 0.0
    #: connections that were still checked out at the end
    leaks = 0
    #: statements that pin a proxy, those that were refused for it included
    pins = 0
    #: how often something was not begun, or was given up, since the invocation's deadline had passed
    deadlines_exceeded = 0
    #: connections that were lost in use
    lost = 0
    #: returns after which the pool kept the connection, and connections that it closed, at a return or at the end
    kept, closed = 0, 0
    #: tickets that were asked for and that were held then (PLUNGEPOOL_POOL=adaptive)
    tickets_asked, tickets_held = 0, 0
    #: the seconds of the invocation, from the guard's begin to its end
    duration_s = 0.0
    #: the class of what left the guard; empty where it returned
    failure = ""

    def __init__(self, request_id: str | None = None) -> None:
        self.request_id, self.began_at = request_id, time.time()
        #: kept connections that were replaced, by why: `age`, `lease`, `no_answer`, `lost`, `moved`, or a SQLSTATE
        self.reconnects: dict[str, int] = {}
        #: what exchanges and connects failed by, tried again or not: by SQLSTATE, else by the class's name
        self.errors: dict[str, int] = {}

    def as_dict(self) -> dict[str, Any]:
        """Return every field with its value, as JSON can express it."""
        return {name: getattr(self, name) for name in FIELDS} | {
            "reconnects": dict(self.reconnects),
            "errors": dict(self.errors),
            "request_id": self.request_id,
            "failure": self.failure,
        }


#: the `failure` of an invocation that SIGTERM ended, as Lambda sends it at a time-out
KILLED = "SIGTERM"
#: the names of a tally's numbers
FIELDS: tuple[str, ...] = tuple(
    name for name, value in vars(Tally).items() if type(value) in (int, float) and not name.startswith("_")
)


class _Listeners:
    """Who is told of one thing. A tuple that is replaced: whoever is telling them goes on with those it began with."""

    __slots__ = ("all",)

    def __init__(self) -> None:
        self.all: tuple[Any, ...] = ()

    def add(self, listener: Any) -> Callable[[], None]:
        """Tell this one, too, and once more if it is told already; return what ends that, and nothing else."""
        with _changes:
            self.all = (*self.all, listener)
            _attach()
        is_told = True

        def stop() -> None:
            nonlocal is_told
            with _changes:
                if is_told:
                    is_told, kept = False, list(self.all)
                    for index, one in enumerate(kept):
                        if one is listener:
                            del kept[index]
                            break
                    self.all = tuple(kept)
                    _attach()

        return stop


_of_invocations, _of_flights = _Listeners(), _Listeners()
# Held while listeners change; a signal handler may change them in the middle of that.
_changes = threading.RLock()
# What was logged of what listeners have raised, one line each: not by the id of a listener, which another one has
# when it is gone.
_told: set[tuple[str, str]] = set()


def listen(callback: Callable[[Tally], object]) -> Callable[[], None]:
    """
    Call `callback` with the `Tally` of each guarded invocation when that ends, before its answer leaves; and at
    SIGTERM, where the function hears it (PLUNGEPOOL_SHUTDOWN), with that of the invocation that is being cut off.

    Returns: what ends it; that may be called again.
    Raises: nothing, ever: what the callback raises is logged once (logger `plungepool`).
    Threads: safe; the callback is called on the invocation's own.
    """
    return _of_invocations.add(callback)


def listen_to_flights(listener: FlightListener) -> Callable[[], None]:
    """
    Call `listener(session, reply, began, took_s, error)` after each flight of each session, by whoever waited for it.

    It is called inside the call that executes a statement, so that the stack shows the program's line
    (`pool.caller()`) and `invocation.request_id()` whose it is; with the reply read to its end, or what stopped it in
    `error`. It may read both, and nothing else: to use the session, or to wait, is for later (at the invocation's end,
    `listen`).

    `reply.sent` are the messages as they left: they hold the values of parameters, and of a statement's literals, so
    that nothing of them may be kept or logged but what `statements.shape` makes of a text (`texts(reply)`).
    `reply` is None for an attempt to open a session; `session.opening_s` then has the parts. `began` is in seconds
    since the epoch, and 0 where the deadline had passed before anything was sent; a question whether the server is
    there is a flight, too (`is_ping(reply)`).

    Returns: what ends it. Raises: nothing, ever; what the listener raises is logged once.
    """
    return _of_flights.add(listener)


def to_metrics(metrics: Any = None) -> Callable[[], None]:
    """
    Send the numbers of each invocation to CloudWatch, by Powertools' Metrics: one line in Embedded Metric Format.

    Args: metrics: the function's `Metrics`, whose namespace and service it takes; None: those of
        POWERTOOLS_METRICS_NAMESPACE and POWERTOOLS_SERVICE_NAME. `metrics.METRICS` names what is sent; its one
        dimension is `service`.
    Returns: what ends it. Raises: ImportError without Powertools, ValueError without a namespace.
    """
    from .metrics import Emitter

    return listen(Emitter(metrics))


def to_metrics_once() -> None:
    """Do so for PLUNGEPOOL_METRICS=on, once in a process, however many engines there are."""
    global _by_setting
    if _by_setting is None:
        _by_setting = to_metrics()


def to_tracer(tracer: Any) -> Callable[[], None]:
    """
    Show each connect and each exchange as a subsegment of X-Ray.

    Args: tracer: Powertools' `Tracer`; one that is disabled, as outside Lambda, shows nothing.
    Returns: what ends it.
    """
    from .tracing import XRay

    return _nothing if tracer.disabled else listen_to_flights(XRay(tracer.provider))


def to_opentelemetry(tracer_provider: Any = None, meter_provider: Any = None) -> Callable[[], None]:
    """
    Show each connect and each exchange as a span of OpenTelemetry, and record `db.client.operation.duration`.

    Args: the providers; None: the process's own, as `opentelemetry.trace.set_tracer_provider` has set it.
    Returns: what ends it. Raises: ImportError without opentelemetry-api.
    """
    from .tracing import OpenTelemetry

    return listen_to_flights(OpenTelemetry(tracer_provider, meter_provider))


def _nothing() -> None:
    """End what has not begun."""


class _Observer:
    """Is told of invocations by the guard."""

    def begin(self, request_id: str | None) -> None:
        invocation.tally = Tally(request_id)

    def end(self, error: BaseException | None) -> None:
        tally = invocation.tally
        # What comes between two invocations is of neither.
        invocation.tally = None
        if tally is None:
            return
        if error is not None:
            tally.failure = type(error).__name__
        self._hand_over(tally)

    def kill(self) -> None:
        """
        Hand over what there is of the invocation that SIGTERM cuts off: its guard may not come to its end, and hands
        nothing over once more where it does, by a handler of the program's that exits.
        """
        tally = invocation.tally
        invocation.tally = None
        if tally is not None:
            tally.failure = KILLED
            self._hand_over(tally)

    def _hand_over(self, tally: Tally) -> None:
        tally.duration_s = time.time() - tally.began_at
        for listener in _of_invocations.all:
            try:
                listener(tally)
            except Exception as failure:  # noqa: BLE001 - told, and no further
                _tell(listener, failure)


def _hear(session: Session, reply: Reply | None, began: float, error: BaseException | None) -> None:
    """Count a flight, or an attempt to open a session, and hand it on."""
    took_s = time.time() - began if began else 0.0
    tally = invocation.tally
    if tally is not None:
        if reply is None:
            _count_connect(tally, session, took_s, error)
        elif began:
            tally.round_trips += 1 + reply.asked_for_data
            tally.database_s += took_s
            tally.rows += len(reply.rows)
        if error is not None:
            _count_error(tally, reply, error)
        elif reply is not None and is_ping(reply):
            tally.pings += 1
    for listener in _of_flights.all:
        try:
            listener(session, reply, began, took_s, error)
        except Exception as failure:  # noqa: BLE001 - told, and no further
            _tell(listener, failure)


def _count_connect(tally: Tally, session: Session, took_s: float, error: BaseException | None) -> None:
    tally.connect_s += took_s
    if error is None:
        tally.connects += 1
    else:
        tally.connects_failed += 1
    for part, part_s in session.opening_s.items():
        invocation.count(f"{part}_s", part_s)


def _count_error(tally: Tally, reply: Reply | None, error: BaseException) -> None:
    if reply is not None and is_ping(reply):
        # The connection is replaced, which is counted by its reason: nothing of the program's has failed.
        tally.pings += 1
        return
    invocation.count_under("errors", name_of(error))
    if reply is None:
        return
    if isinstance(error, DeadlineExceeded):
        tally.deadlines_exceeded += 1
    elif not isinstance(error, Error) or error.disconnected:
        tally.lost += 1


def _attach() -> None:
    """Be told, or not any more; nobody who does not listen pays for it."""
    hears = bool(_of_invocations.all or _of_flights.all)
    _session.ended = _hear if hears else None
    invocation.observer = _observer if hears else None
    if not hears:
        invocation.tally = None


def _tell(listener: object, failure: Exception) -> None:
    """Log what a listener has raised, once for each kind of it; no value of an invocation stands in it."""
    kind, name = type(failure).__name__, getattr(listener, "__qualname__", type(listener).__name__)
    if (kind, name) not in _told:
        _told.add((kind, name))
        _logger.warning("a listener failed, and did not see the event it was called for: %s of %s", kind, name)


_observer = _Observer()
# What ends the metrics that PLUNGEPOOL_METRICS=on asked for.
_by_setting: Callable[[], None] | None = None
