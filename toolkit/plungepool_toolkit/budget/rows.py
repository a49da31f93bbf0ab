"""What each function may open to a database, and what that adds up to; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plungepool_toolkit.budget.hardware import Range

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plungepool_toolkit.budget.databases import Use


@dataclass(frozen=True, slots=True)
class Row:
    """
    What one function may open to one database.

    `environments` and `open`: from a quiet day to the worst, just after a deployment; `busy`: connections that work at
    the same time when it is invoked as often as it may be.
    """

    use: Use
    environments: Range
    open: Range
    busy: float

    @property
    def piece(self) -> float:
        """The connections that follow from one more of what the function's knob counts."""
        function = self.use.function
        factor = function.factor if self.use.pool == "tiny" else 1
        return self.use.pool_size * function.processes * function.step * factor


def row(use: Use, unreserved: int, kept_at_most: int) -> Row:
    """
    Return what a function may open.

    Args: unreserved: invocations at once that the account has for functions that reserve nothing. kept_at_most: the
        tickets of PLUNGEPOOL_POOL=adaptive.
    """
    function = use.function
    at_once = unreserved if function.at_once is None else function.at_once
    environments = at_once * function.factor if function.environments is None else function.environments
    # Of Managed Instances each process has an engine of its own: AWS Lambda Developer Guide, "Python runtime for Lambda
    # Managed Instances".
    kept = environments * function.processes * use.pool_size
    busy = float(at_once * use.pool_size)
    # A deployment leaves the environments of the version before, frozen with what they keep, until Lambda ends them;
    # `null` keeps nothing, `adaptive` no more than it has tickets.
    if use.pool == "null":
        low, high = busy, busy
    elif use.pool == "adaptive":
        low, high = busy, busy + min(kept, kept_at_most)
    else:
        low, high = max(kept, busy), 2 * max(kept, busy)
    # What is invoked by hand, or while the stack is deployed, is there now and then only.
    least = 0 if function.occasional else 1
    return Row(use, Range(least * environments, 2 * environments), Range(least * low, high), least * busy)


def together(rows: Iterable[Row]) -> Range:
    """
    Add up what is open.

    The functions that reserve nothing share what the account has for them: at the least the one of them that opens the
    most has all of it, at the most each has had it in turn and keeps what it opened.
    """
    rows = list(rows)
    shared = [each.open.low for each in rows if each.use.function.at_once is None]
    own = sum(each.open.low for each in rows if each.use.function.at_once is not None)
    return Range(own + max(shared, default=0), sum(each.open.high for each in rows))


def at_work(rows: Iterable[Row]) -> float:
    """Return how many connections work at once when all functions are invoked as often as they may be."""
    rows = list(rows)
    shared = [each.busy for each in rows if each.use.function.at_once is None]
    return sum(each.busy for each in rows if each.use.function.at_once is not None) + max(shared, default=0)
