"""
The invocation that runs now, and when it ends: the one owner of the deadline of every connection.

What has a limit of its own (a connect, a ping) is bounded by the invocation's deadline as well, and a connection that is
handed out has that deadline and no other, whatever was waited for before.

Units: moments are seconds since the epoch, by the wall clock, so that the time an environment is frozen counts.
Threads: Lambda runs one invocation at a time in a process, so the deadline is the process's, background threads included.
"""

from __future__ import annotations

import time

_deadline: float | None = None


def deadline() -> float | None:
    """Return the moment at which the invocation has to be over; None where nobody has said."""
    return _deadline


def until(limit_s: float) -> float:
    """Return the moment at which something that starts now and may take `limit_s` has to be over, the invocation's at the latest."""
    own = time.time() + limit_s
    return own if _deadline is None else min(own, _deadline)


def is_over() -> bool:
    """Say whether the invocation's deadline has passed."""
    return _deadline is not None and time.time() >= _deadline


def end_at(moment: float | None) -> None:
    """Set the moment at which the invocation has to be over; None: no limit but those of the settings."""
    global _deadline
    _deadline = moment
