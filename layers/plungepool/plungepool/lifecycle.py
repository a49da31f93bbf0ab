"""
What outlives a process image: fork and snapshot. A socket does not, so each engine forgets what it holds.

Every hook into the process's life is here, and every engine that lives is known here and kept alive by nobody.

Fork (Managed Instances fork a worker a concurrent request): the child drops every pooled connection without a byte on
the wire, since the sockets are the parent's. Snapshot (SnapStart): every connection is closed before the snapshot is
taken and every fetched secret dropped, so that no restored environment starts with what is another's or no longer true.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

# Each engine that lives, with what drops all that it has fetched or learnt.
_engines: weakref.WeakKeyDictionary[Engine, Callable[[], None]] = weakref.WeakKeyDictionary()
# What else has to be made anew in a forked child.
_renewals: list[Callable[[], None]] = []


def follow(engine: Engine, forget: Callable[[], None]) -> None:
    """
    Make the engine safe under fork and snapshots from now on.

    Args: engine: no reference is held that keeps it alive. forget(): drops what was fetched and what was learnt of the
        server, so that no snapshot holds a secret that is rotated later; it must not refer to the engine.
    Threads: safe.
    Source: SQLAlchemy, Connection Pooling, "Using Connection Pools with Multiprocessing or os.fork()".
    """
    _engines[engine] = forget


def renew_in_child(renew: Callable[[], None]) -> None:
    """
    Call `renew` in every forked child from now on, for what another thread of the parent may have been at work with.
    """
    _renewals.append(renew)


def _in_child() -> None:
    for renew in _renewals:
        renew()
    for engine in list(_engines):
        # A new pool with new locks, too: of those of the old one another thread of the parent may have held any.
        engine.dispose(close=False)


def _close_all() -> None:
    for engine, forget in list(_engines.items()):
        engine.dispose()
        forget()


# Hooks are set by the import, and not by the first engine: a flag "they are set" is wrong after an exception between
# the two.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
# The runtime says so before the handler's module is imported; elsewhere the package may not even exist.
if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
    from snapshot_restore_py import register_before_snapshot

    register_before_snapshot(_close_all)
