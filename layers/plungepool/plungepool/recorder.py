"""
The flight recorder: the last exchanges of this environment, written as one line of JSON when an invocation goes wrong.

A ring holds what each exchange was: the text of its statements as it was parsed, without any parameter, sizes, times,
rows, SQLSTATE. It is written when an exception leaves the guard, when the deadline was missed, when the database was
unavailable, when SIGTERM cuts the invocation off, or when it was slow; and only then are the texts turned into shapes,
without literals. So neither what is kept nor what is written grows, and no value is written. `plungepool timeline`
draws the line.

Units: seconds and milliseconds of wall clock.        Threads: safe; one ring a process.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from . import flights, invocation, observe

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from .observe import Tally
    from .wire.protocol import Reply
    from .wire.session import Session

_logger = logging.getLogger("plungepool")

FORMAT = "plungepool-timeline/1"

# Exchanges that are kept: enough for an invocation that goes wrong, and a line that CloudWatch takes as one event.
_KEPT = 64
# Of a message of a flight: as much of its text as a shape is made of.
_TEXT_AT_MOST = 2100


class _Exchange(NamedTuple):
    """One wait for the server: of a connect, where `texts` is None."""

    request_id: str | None
    began: float
    took_s: float
    process: int
    texts: tuple[bytes, ...] | None
    escapes: bool
    sent: int
    received: int
    rows: int
    error: str
    parts: Mapping[str, float] | None


class Recorder:
    """The ring of one process, and what decides that it is written."""

    def __init__(self, environ: Mapping[str, str], slow_s: float) -> None:
        self.slow_s = slow_s
        self._function = environ.get("AWS_LAMBDA_FUNCTION_NAME", "")
        self._version = environ.get("AWS_LAMBDA_FUNCTION_VERSION", "")
        self._ring: deque[_Exchange] = deque(maxlen=_KEPT)
        # What a session has received so far. Not by its process, whose number another server has, too.
        self._received: WeakKeyDictionary[Session, int] = WeakKeyDictionary()

    def hear(
        self, session: Session, reply: Reply | None, began: float, took_s: float, error: BaseException | None
    ) -> None:
        """Keep what an exchange was; as `observe.listen_to_flights` has it."""
        tally = invocation.tally
        request_id = None if tally is None else tally.request_id
        name = "" if error is None else flights.name_of(error)
        process, received = session.backend_pid, session.received
        if reply is None:
            self._received[session] = received
            self._ring.append(
                _Exchange(request_id, began, took_s, process, None, False, 0, received, 0, name, session.opening_s)
            )
            return
        before = self._received.get(session, 0)
        self._received[session] = received
        sent = reply.sent
        texts = tuple([part[:_TEXT_AT_MOST] for part in flights.asking(sent)])
        self._ring.append(
            _Exchange(
                request_id,
                began or time.time(),
                took_s,
                process,
                texts,
                flights.escapes(session),
                sum(map(len, sent)) if began else 0,
                received - before,
                flights.rows_of(reply),
                name,
                None,
            )
        )

    def end(self, tally: Tally) -> None:
        """Write the line, if the invocation went wrong."""
        why = self._why(tally)
        if why:
            _logger.warning("%s", json.dumps(self.document(tally, why), separators=(",", ":")))

    def _why(self, tally: Tally) -> str:
        if tally.failure == observe.KILLED:
            return "killed"
        if tally.deadlines_exceeded:
            return "deadline"
        if tally.failure:
            return "failed"
        if tally.checkouts_failed or tally.lost:
            return "unavailable"
        waited_s = tally.database_s + tally.connect_s + tally.checkout_wait_s
        return "slow" if tally.slow_queries or (self.slow_s and waited_s >= self.slow_s) else ""

    def document(self, tally: Tally, why: str) -> dict[str, Any]:
        """Return what is written of an invocation."""
        numbers = {name: value for name, value in tally.as_dict().items() if value}
        for name in ("request_id", "failure", "duration_s"):
            numbers.pop(name, None)
        return {
            "plungepool": FORMAT,
            "why": why,
            "function": self._function,
            "version": self._version,
            "request_id": tally.request_id,
            "failure": tally.failure,
            "began_at": round(tally.began_at, 3),
            "duration_ms": _ms(tally.duration_s),
            "tally": {name: _ms(value) if type(value) is float else value for name, value in _in_ms(numbers)},
            "exchanges": [_shown(one, tally) for one in self._ring.copy()],
        }


def _in_ms(numbers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (name.removesuffix("_s") + "_ms" if type(value) is float else name, value) for name, value in numbers.items()
    ]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _shown(one: _Exchange, tally: Tally) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "at_ms": _ms(one.began - tally.began_at),
        "took_ms": _ms(one.took_s),
        "process": one.process,
        "what": "connect" if one.texts is None else flights.what(one.texts, escapes=one.escapes),
    }
    if one.request_id != tally.request_id:
        shown["request_id"] = one.request_id
    if one.parts:
        shown["parts_ms"] = {name: _ms(part_s) for name, part_s in one.parts.items()}
    if one.texts is not None:
        shown |= {"sent": one.sent, "received": one.received, "rows": one.rows}
    if one.error:
        shown["error"] = one.error
    return shown


_recorder: Recorder | None = None
_ends: list[Callable[[], None]] = []


def start(environ: Mapping[str, str] | os._Environ[str], slow_s: float) -> None:
    """
    Record from here on; once in a process, and a second call changes nothing.

    Args: slow_s: the seconds of waiting for the database from which on an invocation is slow; 0: none is.
    """
    global _recorder
    if _recorder is None:
        _recorder = recorder = Recorder(environ, slow_s)
        _ends.extend((observe.listen_to_flights(recorder.hear), observe.listen(recorder.end)))


def stop() -> None:
    """Record no more, and forget what was recorded."""
    global _recorder
    _recorder = None
    while _ends:
        _ends.pop()()
