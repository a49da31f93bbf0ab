"""
Slow queries: one line of JSON for each statement that took PLUNGEPOOL_SLOW_QUERY_S, with what it was and who asked it.

The line holds the statement's shape and its fingerprint, and no value of it; the fingerprint is the same for the same
statement with other values, in every environment, and in the plan guard's failures (docs/testing.md), so that a slow
query leads to the test that runs it. Nothing of this is worked out for a statement that is not slow. Where an engine
asks for it, `why` explains a SELECT when its connection is returned.

Units: seconds and milliseconds of wall clock.        Threads: safe.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import event

from . import flights, invocation, observe, pool, statements
from .wire.errors import DeadlineExceeded, Error

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

    from .why import Explainer
    from .wire import Connection
    from .wire.protocol import Reply
    from .wire.session import Session

_logger = logging.getLogger("plungepool")

FORMAT = "plungepool-slow-query/1"


class Watch:
    """What looks at each flight of a process for how long it took."""

    def __init__(self, environ: Mapping[str, str] | os._Environ[str], slow_s: float) -> None:
        """Args: slow_s: a statement that takes as long, its way to the server and back included, is slow."""
        self.slow_s = slow_s
        #: whether any engine asks why
        self.explains = False
        self._explainer: Explainer | None = None
        self._function = environ.get("AWS_LAMBDA_FUNCTION_NAME", "")
        self._version = environ.get("AWS_LAMBDA_FUNCTION_VERSION", "")

    def hear(
        self, session: Session, reply: Reply | None, _began: float, took_s: float, error: BaseException | None
    ) -> None:
        """Write the line, if it was slow; as `observe.listen_to_flights` has it."""
        if took_s < self.slow_s or reply is None or flights.is_ping(reply):
            return
        invocation.count("slow_queries")
        text, types = flights.program(reply)
        document = self._document(session, text, reply, took_s, error)
        _logger.warning("%s", json.dumps(document, separators=(",", ":")))
        if self.explains and (error is None or _leaves_session(error)) and not flights.escapes(session):
            if self._explainer is None:
                from .why import Explainer

                self._explainer = Explainer(in_lambda=bool(self._function))
            self._explainer.note(cast("Connection", session), text, types, took_s, document)

    def explain(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """Explain what was noted of a connection that is returned; as SQLAlchemy's event `checkin` has it."""
        if self._explainer is not None and connection is not None:
            self._explainer.explain(connection)
            if connection.closed:
                record.close()

    def _document(
        self, session: Session, text: str, reply: Reply, took_s: float, error: BaseException | None
    ) -> dict[str, Any]:
        """Return what is written of a flight."""
        tally, escapes = invocation.tally, flights.escapes(session)
        found: dict[str, Any] = {
            "plungepool": FORMAT,
            "fingerprint": statements.fingerprint(text, escapes=escapes),
            "statement": statements.shape(text, escapes=escapes),
            "took_ms": round(took_s * 1000, 1),
            "rows": flights.rows_of(reply),
            "round_trips": None if tally is None else tally.round_trips,
            "database": session.database,
            "function": self._function,
            "version": self._version,
            "request_id": None if tally is None else tally.request_id,
            "where": pool.caller(),
        }
        return found if error is None else found | {"error": flights.name_of(error)}


def _leaves_session(error: BaseException) -> bool:
    """Say whether a session may be asked something after an error, and whether there may be time for it."""
    return isinstance(error, Error) and not error.disconnected and not isinstance(error, DeadlineExceeded)


_watch: Watch | None = None
_ends: list[Callable[[], None]] = []


def start(environ: Mapping[str, str] | os._Environ[str], slow_s: float) -> None:
    """
    Watch from here on; once in a process, and by the shortest time that any of its engines asks for.

    Args: slow_s: in seconds, above 0.
    """
    global _watch
    if _watch is None:
        _watch = Watch(environ, slow_s)
        _ends.append(observe.listen_to_flights(_watch.hear))
    _watch.slow_s = min(_watch.slow_s, slow_s)


def explain(engine: Engine) -> None:
    """Have the slow SELECTs of an engine explained, after `start`."""
    if _watch is not None:
        _watch.explains = True
        event.listen(engine, "checkin", _watch.explain)


def stop() -> None:
    """Watch no more."""
    global _watch
    _watch = None
    while _ends:
        _ends.pop()()
