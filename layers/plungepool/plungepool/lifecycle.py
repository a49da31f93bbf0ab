"""
What outlives a process image: fork and snapshot. A socket does not, so each engine forgets what it holds.

Every hook into the process's life is here, and every engine that lives is known here and kept alive by nobody. So is
every connection that lives: at the process's end each of them says goodbye to its server.

Fork (Managed Instances fork a worker a concurrent request): the child drops every pooled connection without a byte on
the wire, since the sockets are the parent's. Snapshot (SnapStart): snapshot.py, which is imported where there are any.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    Followed = tuple[Callable[[], None], Callable[[], None], Callable[[Engine, float], None] | None]

# What asking servers to stop their statements may take at the process's end, all of it: Lambda gives 300 ms.
_GOODBYE_S = 0.15

# Each engine that lives, with what `follow` was given.
_engines: weakref.WeakKeyDictionary[Engine, Followed] = weakref.WeakKeyDictionary()
# Each connection that lives, and of these each that says goodbye at the process's end. Only methods of the sets
# themselves change and copy them, which nothing can cut in two: a signal handler looks at one in the middle of
# anything.
_opened: set[weakref.ref[Any]] = set()
_farewells: set[weakref.ref[Any]] = set()
# What else has to be made anew in a forked child.
_renewals: list[Callable[[], None]] = []


def follow(
    engine: Engine,
    forget: Callable[[], None],
    prepare: Callable[[], None],
    connect_ahead: Callable[[Engine, float], None] | None = None,
) -> None:
    """
    Make the engine safe under fork and snapshots from now on.

    Args: engine: no reference is held that keeps it alive. forget(): drops what was fetched and what was learnt of the
        server, so that no snapshot holds a secret that is rotated later. prepare(): puts into a snapshot what the first
        connect takes its time for. connect_ahead(engine, within_s): opens a connection after a restore, and leaves it
        in the engine's pool. None of them may refer to the engine.
    Threads: safe.
    Source: SQLAlchemy, Connection Pooling, "Using Connection Pools with Multiprocessing or os.fork()".
    """
    _engines[engine] = forget, prepare, connect_ahead


def remembered(connect: Callable[[Any], Any], *, says_goodbye: bool) -> Callable[[Any], Any]:
    """
    Return `connect` so that what it opens is in no snapshot, whoever has it then.

    Args: says_goodbye: whether it is ended at the process's end, too.
    Threads: safe. Forks: a child remembers nothing of its parent's.
    """
    where = (_farewells, _opened) if says_goodbye else (_opened,)

    def connect_and_remember(record: Any) -> Any:
        connection = connect(record)
        with suppress(TypeError):  # a listener for `do_connect` may have opened it by other means
            for living in where:
                living.add(weakref.ref(connection, living.discard))
        return connection

    return connect_and_remember


def say_goodbye() -> None:
    """
    End every connection that is to say goodbye, whatever is under way on it: the process ends.

    One that waits for no answer sends Terminate, which ends its transaction, too. One in the middle of a flight is cut
    off, whichever thread it serves, and its server is asked to stop what it does, where that is heard within 0.15 s for
    all of them together. For signal handlers and the interpreter's exit: it takes no lock, imports nothing, logs
    nothing and raises nothing but another handler's exception.
    """
    at_work = []
    for connection in [reference() for reference in _farewells.copy()]:
        with suppress(Exception):
            if connection is None or connection.gone:
                continue
            if connection.closed:
                at_work.append(connection)
            else:
                connection.close()
    until = time.time() + _GOODBYE_S
    for connection in at_work:
        with suppress(Exception):
            connection.abandon(stop=True, within_s=until - time.time())


def renew_in_child(renew: Callable[[], None]) -> None:
    """
    Call `renew` in every forked child from now on, for what another thread of the parent may have been at work with.
    """
    _renewals.append(renew)


def _in_child() -> None:
    _opened.clear()
    _farewells.clear()
    for renew in _renewals:
        renew()
    for engine in list(_engines):
        # A new pool with new locks, too: of those of the old one another thread of the parent may have held any.
        engine.dispose(close=False)


def _watch_snapshots() -> None:
    from . import snapshot  # elsewhere nobody pays for it, and the runtime's package may not even exist

    snapshot.watch(_engines, _opened)


# Hooks are set by the import, and not by the first engine: a flag "they are set" is wrong after an exception between
# the two.
atexit.register(say_goodbye)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
# The runtime says so before the handler's module is imported.
if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
    _watch_snapshots()
