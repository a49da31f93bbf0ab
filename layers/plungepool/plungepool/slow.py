"""
Slow queries: one line of JSON for each statement that took PLUNGEPOOL_SLOW_QUERY_S, with what it was and who asked it.

The line holds the statement's shape and its fingerprint, and no value of it; the fingerprint is the same for the same
statement with other values, in every environment, and in the plan guard's failures (docs/testing.md), so that a slow
query leads to the test that runs it. Nothing of this is worked out for a statement that is not slow.

Units: seconds and milliseconds of wall clock.        Threads: safe.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from . import flights, invocation, observe, pool, statements

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from .wire.protocol import Reply
    from .wire.session import Session

_logger = logging.getLogger("plungepool")

FORMAT = "plungepool-slow-query/1"


class Watch:
    """What looks at each flight of a process for how long it took."""

    def __init__(self, environ: Mapping[str, str] | os._Environ[str], slow_s: float) -> None:
        """Args: slow_s: a statement that takes as long, its way to the server and back included, is slow."""
        self.slow_s = slow_s
        self._function = environ.get("AWS_LAMBDA_FUNCTION_NAME", "")
        self._version = environ.get("AWS_LAMBDA_FUNCTION_VERSION", "")

    def hear(
        self, session: Session, reply: Reply | None, _began: float, took_s: float, error: BaseException | None
    ) -> None:
        """Write the line, if it was slow; as `observe.listen_to_flights` has it."""
        if took_s < self.slow_s or reply is None or flights.is_ping(reply):
            return
        invocation.count("slow_queries")
        document = self.document(session, reply, took_s, error)
        _logger.warning("%s", json.dumps(document, separators=(",", ":")))

    def document(self, session: Session, reply: Reply, took_s: float, error: BaseException | None) -> dict[str, Any]:
        """Return what is written of a flight."""
        text = flights.program_text(reply)
        tally = invocation.tally
        found: dict[str, Any] = {
            "plungepool": FORMAT,
            "fingerprint": statements.fingerprint(text),
            "statement": statements.shape(text),
            "took_ms": round(took_s * 1000, 1),
            "rows": flights.rows_of(reply),
            "database": session.database,
            "function": self._function,
            "version": self._version,
            "request_id": None if tally is None else tally.request_id,
            "where": pool.caller(),
        }
        return found if error is None else found | {"error": flights.name_of(error)}


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


def stop() -> None:
    """Watch no more."""
    global _watch
    _watch = None
    while _ends:
        _ends.pop()()
