"""What an environment does about its connection: how it asks a database that refuses, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from plungepool import fleet
from plungepool_toolkit.storm import strategies as storm

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    # From what the last refusal took and what is left, in seconds, to the pause before the next try; None: it gives up.
    Pause = Callable[[float, float], float | None]
    # One connect's pauses.
    Law = Callable[[random.Random], Pause]

_TOO_LATE_S = 0.05

# What becomes of the connection at the end of an invocation: left open beside the next one's; kept for the next one;
# closed; kept by whoever has a ticket.
Keeping = Literal["leave", "keep", "close", "tickets"]


def of_the_fleet(chance: random.Random) -> Pause:
    """Pause as Plungepool does: `plungepool.fleet`."""
    pressure = fleet.Pressure()

    def pause(took_s: float, left_s: float) -> float | None:
        nonlocal pressure
        pressure = pressure.refused(took_s)
        return pressure.pause_s(left_s, chance.random())

    return pause


def of_a_range(shortest_s: float, longest_s: float) -> Law:
    """
    Pause within a fixed range: decorrelated jitter, which knows nothing of the server.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter".
    """

    def law(chance: random.Random) -> Pause:
        pause_s = shortest_s

        def pause(_took_s: float, left_s: float) -> float | None:
            nonlocal pause_s
            if left_s < _TOO_LATE_S:
                return None
            pause_s = min(longest_s, chance.uniform(shortest_s, pause_s * 3))
            if pause_s >= left_s:
                pause_s = chance.uniform(0, left_s)
            return pause_s

        return pause

    return law


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to use a database from an environment."""

    name: str
    title: str
    keeping: Keeping
    #: How it asks again; None: it does not.
    law: Law | None
    #: The invocation's deadline is told to the server, which ends what is still at work by then; without it a statement
    #: goes on for a client that is gone.
    ends_by_deadline: bool
    ours: bool


def _stock(name: str, keeping: Keeping, law: Law | None = None) -> Strategy:
    return Strategy(name, storm.STRATEGIES[name].title, keeping, law, ends_by_deadline=False, ours=False)


def _ours(name: str, keeping: Keeping) -> Strategy:
    return Strategy(name, storm.STRATEGIES[name].title, keeping, of_the_fleet, ends_by_deadline=True, ours=True)


# By the names and the titles that `plungepool storm` gives the same strategies.
STRATEGIES = {
    one.name: one
    for one in (
        _stock("per-invocation", "leave"),
        _stock("queue-pool", "keep"),
        _stock("null-pool", "close"),
        _stock("null-retry-fast", "close", of_a_range(0.02, 1.0)),
        _stock("null-retry-slow", "close", of_a_range(0.5, 6.0)),
        _stock("keep-one", "keep", of_a_range(0.5, 6.0)),
        _ours("tiny", "keep"),
        _ours("null", "close"),
        _ours("adaptive", "tickets"),
    )
}
DEFAULT = ("per-invocation", "queue-pool", "null-pool", "null-retry-slow", "tiny", "null", "adaptive")
