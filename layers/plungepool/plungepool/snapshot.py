"""
SnapStart: what an engine leaves in a snapshot, which is nothing of a server's, and how a restored environment begins.

Imported where there are snapshots, and by nobody else. Before the snapshot every connection is closed, one that
somebody still has included, and every token, key and secret is dropped, so that no restored environment starts with
what is another's or no longer true; what a first connect imports is there in their place. After the restore Python's
`random` begins anew, as it does in a forked child, and a connection may be opened ahead of the first invocation.

Source: Lambda developer guide, "Lambda SnapStart runtime hooks", "Handling uniqueness with Lambda SnapStart".
"""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Any

from .pool import taken_at

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

    # As `lifecycle.follow` takes them: forget, prepare, connect_ahead.
    Engines = Mapping[Engine, tuple[Callable[[], None], Callable[[], None], Callable[[Engine, float], None] | None]]

_logger = logging.getLogger("plungepool")

# Loading the runtime and all hooks after a restore have 10 s together, and some of them are the user's. What a
# connection ahead may take on the network, and in all.
_AHEAD_S, _AHEAD_AT_MOST_S = 3.0, 4.0
_CLOSED = (
    "it was closed before the snapshot was taken, because no restored environment may use it; check connections out "
    "in the handler"
)


def watch(engines: Engines, opened: set[weakref.ref[Any]]) -> None:
    """
    Have the runtime call `before` and `after` around each snapshot from now on.

    Args: engines: those that live by then. opened: a reference to each connection that lives by then.
    """
    from snapshot_restore_py import register_after_restore, register_before_snapshot

    register_before_snapshot(before, engines, opened)
    register_after_restore(after, engines, opened)


def before(engines: Engines, opened: set[weakref.ref[Any]]) -> None:
    """
    Close every connection, forget what was fetched, and have ready what a first connect needs; of a connection that
    somebody has, log where he took it.

    Blocks for a quarter of a second at most for each connection in the middle of a statement, which is stopped.
    """
    pools = [engine.pool for engine in list(engines)]
    for engine, (forget, prepare, _) in list(engines.items()):
        engine.dispose()
        forget()
        prepare()
    # What nobody has is closed by this: a connection that was simply dropped, and AWS's clients that are forgotten.
    gc.collect()
    for connection in _living(opened):
        place = next(filter(None, (taken_at(pool, connection) for pool in pools)), "an unknown place")
        if connection.closed:
            # In the middle of a flight: whoever waits for the reply has to read an end.
            connection.abandon(stop=True, why=_CLOSED)
        else:
            connection.close(_CLOSED)
        _logger.warning(
            "a connection was still checked out when the snapshot was taken, taken at %s: its transaction was rolled "
            "back and it was closed, because no restored environment may use it. Check connections out in the handler: "
            "`with engine.begin() as connection:`.",
            place,
        )


def after(engines: Engines, opened: set[weakref.ref[Any]]) -> None:
    """
    Begin as an environment of its own, and connect ahead where that is wanted.

    Blocks for 4 s at most where a connection ahead does not come.
    """
    random.seed()
    # A thread or another hook may have opened it after `before`: every clone has its socket, so not a byte is said.
    for connection in _living(opened):
        connection.abandon(why=_CLOSED)
    wanted = []
    for engine, (forget, _, connect_ahead) in list(engines.items()):
        engine.dispose(close=False)
        forget()
        if connect_ahead is not None:
            wanted.append(_Ahead(engine, connect_ahead))
    _connect_ahead(wanted)


def _living(opened: set[weakref.ref[Any]]) -> list[Any]:
    """Return each connection that has not been closed."""
    living = [reference() for reference in opened.copy()]
    return [connection for connection in living if not getattr(connection, "gone", True)]


class _Ahead(threading.Thread):
    """One connection ahead; in a thread, since nothing else bounds a name's look-up and what AWS's libraries do."""

    def __init__(self, engine: Engine, connect: Callable[[Engine, float], None]) -> None:
        super().__init__(name="plungepool-ahead", daemon=True)
        self.engine, self._connect = engine, connect
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._connect(self.engine, _AHEAD_S)
        except BaseException as error:  # noqa: BLE001 - told by who waits for it
            self.failure = error


def _connect_ahead(wanted: list[_Ahead]) -> None:
    """Open all of them at once; one that fails is logged and no error, which would end the restore."""
    until = time.time() + _AHEAD_AT_MOST_S
    for ahead in wanted:
        try:
            ahead.start()
        except RuntimeError as error:  # the machine gives no thread
            ahead.failure = error
    for ahead in wanted:
        if ahead.ident is not None:
            ahead.join(max(0.0, until - time.time()))
        if ahead.is_alive():
            # Whoever comes next finds a place that is free, and what is opened late is closed at its return.
            ahead.engine.dispose()
            why = f"it took longer than {_AHEAD_AT_MOST_S:g} s"
        elif ahead.failure is not None:
            why = _told(ahead.failure)
        else:
            continue
        _logger.warning(
            "no connection was opened in advance after the restore, so the first invocation opens one: %s", why
        )


def _told(error: BaseException) -> str:
    """Return an error in one line, and of another's than this package's only the kind: it may quote what is secret."""
    own = type(error).__module__.partition(".")[0] == __name__.partition(".")[0]
    return " ".join(str(error).split()) if own else type(error).__name__
