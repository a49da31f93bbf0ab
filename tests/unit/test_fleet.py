"""
The law of the fleet in virtual time: a storm of environments on a database that is full, and on one that is overrun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from plungepool.fleet import Pressure
from plungepool_toolkit.simulate.fleet import Fleet
from plungepool_toolkit.simulate.model import Costs, Database, Function, Sharing
from plungepool_toolkit.simulate.strategies import STRATEGIES

if TYPE_CHECKING:
    from plungepool_toolkit.simulate.run import Run

OURS, FIXED = "null", "null-retry-slow"
# In seconds of CPU: what a connect costs the server until it is refused, to its end, and its query. Measured on
# loopback with a password in clear text over TLS, the client's part included.
COSTS = Costs(refused_s=0.006, connect_s=0.012, statement_s=0.003)


def storm(
    strategy: str,
    *,
    environments: int,
    slots: int,
    cores: float,
    seed: int,
    rounds: int = 1,
    sharing: Sharing = "queue",
) -> Run:
    """Run environments that all connect at once, ask, and close."""
    database = Database(limit=slots, cores=cores, sharing=sharing, costs=COSTS)
    return Fleet(STRATEGIES[strategy], database, Function(), environments=environments, seed=seed).spikes(rounds)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cores", [2.0, 1.0, 0.6])
def test_a_spike_is_answered(cores: float, seed: int) -> None:
    """300 environments on 26 connections, also where the server has little CPU: everyone is answered in time."""
    outcome = storm(OURS, environments=300, slots=26, cores=cores, seed=seed)
    assert outcome.succeeded == 300
    assert outcome.refused < 3 * 300


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strategy", ["null", "adaptive"])
@pytest.mark.parametrize("cores", [2.0, 1.0])
def test_a_spike_is_answered_where_processes_share_the_cores(cores: float, strategy: str, seed: int) -> None:
    """The same where all connects get on alike, and each refusal takes as long as all of them together; two rounds."""
    outcome = storm(strategy, environments=300, slots=26, cores=cores, seed=seed, rounds=2, sharing="shared")
    assert outcome.succeeded == 600


def test_a_fixed_range_collapses_where_ours_does_not() -> None:
    """The model can fail: at a fixed pace the refusals take the CPU that the others need."""
    assert storm(FIXED, environments=300, slots=8, cores=0.6, seed=1).succeeded < 200
    assert storm(OURS, environments=300, slots=8, cores=0.6, seed=1).succeeded == 300


@pytest.mark.parametrize("seed", range(3))
def test_ours_is_as_quick_as_a_fixed_range_where_there_is_cpu(seed: int) -> None:
    """The median of a spike on two cores is at most a fifth longer than the best fixed range's."""
    mine = storm(OURS, environments=300, slots=26, cores=2.0, seed=seed)
    its = storm(FIXED, environments=300, slots=26, cores=2.0, seed=seed)
    assert (mine.succeeded, its.succeeded) == (300, 300)
    assert mine.latency_s(0.5) <= 1.2 * its.latency_s(0.5)


def test_thousands_are_answered() -> None:
    """3,000 environments on 100 connections and eight cores, 10,000 on 970 and sixteen."""
    assert storm(OURS, environments=3000, slots=100, cores=8.0, seed=1).succeeded == 3000
    assert storm(OURS, environments=10000, slots=970, cores=16.0, seed=1).succeeded == 10000


@pytest.mark.parametrize("took_s", [0.0, 0.005, 0.5, 5.0, 100.0])
@pytest.mark.parametrize("left_s", [0.11, 0.5, 3.0, 14.5, 900.0])
@pytest.mark.parametrize("refusals", [1, 2, 10, 5000])
@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_a_pause_ends_before_the_deadline(refusals: int, took_s: float, left_s: float, chance: float) -> None:
    """However often and however slowly it was refused; and a full server that answers at once is asked every 8 s."""
    pause_s = Pressure(refusals, took_s).pause_s(left_s, chance)
    assert pause_s is not None
    assert 0 <= pause_s < left_s
    assert pause_s <= max(8.0, 6 * took_s)


def test_there_is_no_pause_where_nothing_is_left() -> None:
    """A try that could not be waited for is not made."""
    assert Pressure(1, 0.005).pause_s(0.1, 0.5) is None
    assert Pressure(1, 0.005).pause_s(-3.0, 0.5) is None


def test_a_slow_refusal_is_remembered_for_a_while() -> None:
    """It lengthens the pauses after it, and is forgotten by a fifth each time."""
    pressure = Pressure().refused(1.0).refused(0.1)
    assert pressure == Pressure(2, 0.8)
    assert pressure.refused(3.0) == Pressure(3, 3.0)
