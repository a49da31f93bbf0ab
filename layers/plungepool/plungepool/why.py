"""
Why a slow SELECT was slow: asked of the planner when the statement's connection is returned, and written as a line of
its own behind that of the slow query.

Nothing is executed again: `plans` asks for the generic plan in a transaction of its own that only reads, after the
user's has ended, and by the connection that is there anyway. It is bounded by itself and by the invocation: once for a
fingerprint, and so often in all, in an hour of a process; a quarter of the time that the deadline leaves at most; the
server ends each of its statements by itself. Nobody hears of its round trips but the line and two numbers of the
tally: neither a metric nor a span of the user's own work, nor an error of it, is one of this.

Units: seconds and milliseconds of wall clock.        Threads: safe.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from . import invocation, plans, statements
from .wire.errors import Error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .wire import Connection

_logger = logging.getLogger("plungepool")

FORMAT = "plungepool-why/1"

# So many in so many seconds, and each fingerprint once.
_AT_MOST, _WITHIN_S = 10, 3600.0
# What it may take; where a quarter of what is left is less than the second, the deadline is near.
_MAY_TAKE_S, _NOT_WORTH_S = 2.0, 0.5
# Between the finalizer of a connection that nobody returned and the listener.
_FRAMES_AT_MOST = 12


class _Slow(NamedTuple):
    """A slow statement that has not been explained yet; its text may hold literals."""

    text: str
    types: Sequence[int]
    took_s: float
    #: what its own line says
    line: Mapping[str, Any]
    settings: Mapping[str, str]


class Explainer:
    """What is to be explained in a process, and what was."""

    def __init__(self, *, in_lambda: bool) -> None:
        """Args: in_lambda: without a deadline nobody knows how near the end is."""
        self._in_lambda = in_lambda
        # Of each connection: the slowest of its statements since it was returned last.
        self._slowest: WeakKeyDictionary[Connection, _Slow] = WeakKeyDictionary()
        # The fingerprints that were explained, and when.
        self._explained: dict[str, float] = {}

    def note(
        self, connection: Connection, text: str, types: Sequence[int], took_s: float, line: Mapping[str, Any]
    ) -> None:
        """Have a statement explained when its connection is returned, if it only reads and is due."""
        known = self._slowest.get(connection)
        if known is not None and known.took_s >= took_s:
            return
        if self._is_due(line["fingerprint"]) and plans.only_reads(statements.without_cursor(text)):
            self._slowest[connection] = _Slow(text, types, took_s, line, connection.transaction_settings)

    def explain(self, connection: Connection) -> None:
        """
        Write the line of what was noted of a connection, if there is time; the transaction is over, and nobody uses it.

        Raises: nothing of its own. What a signal handler raises meanwhile goes on, and the connection is closed then.
        """
        slow = self._slowest.pop(connection, None)
        limit_s = self._limit_s()
        if slow is None or limit_s < _NOT_WORTH_S or connection.closed or connection.in_transaction:
            return
        if not self._is_due(slow.line["fingerprint"]) or _is_finalizer():
            return
        self._explained[slow.line["fingerprint"]] = began = time.time()
        flights, deadline = connection.flights, connection.deadline
        connection.unheard, connection.deadline = True, began + limit_s
        done = False
        try:
            found = _ask(connection, slow, round(limit_s * 500))
            done = True
        finally:
            connection.unheard, connection.deadline = False, deadline
            if not done:
                connection.close()
        took_s, round_trips = time.time() - began, connection.flights - flights
        invocation.count("explain_s", took_s)
        invocation.count("explain_round_trips", round_trips)
        cost = {"explain_ms": round(took_s * 1000, 1), "explain_round_trips": round_trips}
        document = {**slow.line, "plungepool": FORMAT, **found, **cost}
        _logger.warning("%s", json.dumps(document, separators=(",", ":")))

    def _is_due(self, fingerprint: str) -> bool:
        now = time.time()
        for known, at in self._explained.copy().items():
            if not 0 <= now - at < _WITHIN_S:
                self._explained.pop(known, None)
        return fingerprint not in self._explained and len(self._explained) < _AT_MOST

    def _limit_s(self) -> float:
        end = invocation.deadline()
        if end is None:
            return 0.0 if self._in_lambda else _MAY_TAKE_S
        return min(_MAY_TAKE_S, (end - time.time()) / 4)


def _ask(connection: Connection, slow: _Slow, limit_ms: int) -> dict[str, Any]:
    """Return what the planner says, or why it says nothing; whatever it is, the session is as it was, or closed."""

    def run(sql: str) -> Sequence[Sequence[Any]]:
        # As BEGIN of the driver's own, so that an engine that only reads takes it, too, and with what the statement's
        # transaction had for itself: the role, and the tenant that a policy asks for.
        if sql.startswith("BEGIN"):
            connection.autocommit, connection.transaction_settings = False, slow.settings
            return ()
        if sql == "ROLLBACK":
            connection.rollback()
            connection.transaction_settings, connection.autocommit = {}, True
            return ()
        cursor = connection.cursor()
        cursor.is_own = True
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else ()

    try:
        connection.start_anew()
        connection.readonly = True
        why = plans.why(slow.text, slow.types, run, limit_ms=limit_ms)
        connection.start_anew()
    except Error as error:
        if connection.in_transaction:
            connection.close()
        return {"not_explained": plans.sqlstate(error)}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A plan that is written otherwise than it is read here: nothing that the user's transaction may fail by.
        connection.close()
        return {"not_explained": type(error).__name__}
    return why.as_dict()


def _is_finalizer() -> bool:
    """
    Say whether the garbage collector returns the connection: in the middle of whatever, which is not to wait for this.
    """
    frame = sys._getframe(1)
    for _ in range(_FRAMES_AT_MOST):
        if frame.f_back is None:
            break
        frame = frame.f_back
        if frame.f_code.co_name == "_finalize_fairy":
            return bool(frame.f_locals.get("is_gc_cleanup"))
    return False
