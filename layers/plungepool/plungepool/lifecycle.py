"""
What outlives a process image: fork and snapshot. A socket does not, so each engine forgets what it holds.

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

# Each engine that lives, with what drops its credentials.
_engines: weakref.WeakKeyDictionary[Engine, Callable[[], None]] = weakref.WeakKeyDictionary()


def follow(engine: Engine, forget_credentials: Callable[[], None]) -> None:
    """
    Make the engine safe under fork and snapshots from now on; holds no reference that keeps it alive.

    Args: forget_credentials: drops what was fetched, so that no snapshot holds a secret that is rotated later.
    """
    _engines[engine] = forget_credentials


def _forget_the_parents() -> None:
    for engine in list(_engines):
        # A new pool with new locks, too: of those of the old one another thread of the parent may have held any.
        engine.dispose(close=False)


def _close_all() -> None:
    for engine, forget_credentials in list(_engines.items()):
        engine.dispose()
        forget_credentials()


# Hooks are set by the import, and not by the first engine: a flag "they are set" is wrong after an exception between the two.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)
# The runtime says so before the handler's module is imported; elsewhere the package may not even exist.
if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
    from snapshot_restore_py import register_before_snapshot

    register_before_snapshot(_close_all)
