"""
Questions to the model: what comes of one load, with several seeds; from how many environments on it no longer holds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from . import curves
from .fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .curves import Curve
    from .model import Database, Function
    from .run import Run
    from .strategies import Strategy

# What counts as held.
HELD = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What arrives: spikes of all environments, or a curve of invocations a second."""

    environments: int = 300
    rounds: int = 1
    curve: Curve | None = None

    @property
    def arrival(self) -> str:
        """The word for it."""
        return "spike" if self.curve is None else "recorded"


class Outcome(NamedTuple):
    """What came of one load and one strategy, a run for each seed."""

    strategy: Strategy
    database: Database
    runs: Sequence[Run]

    @property
    def middle(self) -> Run:
        """The run in the middle, by what was answered and how soon."""
        ordered = sorted(self.runs, key=lambda run: (run.rate, -run.latency_s(0.5)))
        return ordered[(len(ordered) - 1) // 2]

    @property
    def worst(self) -> float:
        """The least part that was answered with any seed."""
        return min(run.rate for run in self.runs)

    @property
    def best(self) -> float:
        """The greatest part that was answered with any seed."""
        return max(run.rate for run in self.runs)

    @property
    def held(self) -> bool:
        """Whether all but one in a thousand were answered, with every seed."""
        return self.worst >= HELD


def simulate(strategy: Strategy, database: Database, function: Function, load: Load, seeds: Sequence[int]) -> Outcome:
    """Return what comes of a load with each of these seeds."""
    return Outcome(strategy, database, [_once(strategy, database, function, load, seed) for seed in seeds])


def _once(strategy: Strategy, database: Database, function: Function, load: Load, seed: int) -> Run:
    fleet = Fleet(strategy, database, function, environments=load.environments, seed=seed)
    if load.curve is None:
        return fleet.spikes(load.rounds)
    expected_s = function.service_s + database.costs.statement_s
    # Of its own, so that each strategy meets the same arrivals.
    chance = random.Random(seed)
    return fleet.arrivals(curves.moments(load.curve.rates(expected_s), chance))


def knee(
    strategy: Strategy,
    database: Database,
    function: Function,
    seeds: Sequence[int],
    *,
    rounds: int = 1,
    at_most: int = 10_000,
) -> int:
    """
    Return the most environments whose spike is held, to about a twentieth; `at_most`: no more were tried.
    """

    def holds(environments: int) -> bool:
        load = Load(environments=environments, rounds=rounds)
        return all(simulate(strategy, database, function, load, (seed,)).held for seed in seeds)

    good, bad = 0, 8
    while bad < at_most and holds(bad):
        good, bad = bad, bad * 2
    if bad >= at_most:
        if holds(at_most):
            return at_most
        bad = at_most
    while bad - good > max(1, good // 20):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good
