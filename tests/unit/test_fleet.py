"""
The law of the fleet in virtual time: a storm of environments on a database that is full, and on one that is overrun.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import pytest

from plungepool.fleet import Pressure

if TYPE_CHECKING:
    from collections.abc import Callable

    # From what the last refusal took and what is left, in seconds, to the pause; None: it gives up.
    Law = Callable[[float, float], float | None]

# What a connect costs the server until it is refused, what it costs more where it is not, and its query: in seconds of
# CPU. Measured on loopback with a password in clear text over TLS.
REFUSED_S, ACCEPTED_S, QUERY_S = 0.006, 0.006, 0.003
HELD_S, DEADLINE_S = 0.02, 14.5


class Outcome(NamedTuple):
    answered: int
    median_s: float
    refused: int


def storm(law: Callable[[random.Random], Law], *, environments: int, slots: int, cores: float, seed: int) -> Outcome:
    """
    Run environments that all connect at once, ask, and close. The server's CPU is one queue; whether there is a slot
    shows when the connect has had its turn.
    """
    chance, tie = random.Random(seed), itertools.count()
    workers = max(1, round(cores + 0.49))
    speed = cores / workers
    events: list[tuple[float, int, str, int]] = []
    queue: deque[tuple[str, int, float]] = deque()
    laws = [law(chance) for _ in range(environments)]
    began = [0.0] * environments
    idle, used, refused = workers, 0, 0
    answers: list[float] = []

    def at(moment: float, what: str, who: int) -> None:
        heapq.heappush(events, (moment, next(tie), what, who))

    def compute(now: float, *work: tuple[str, int, float]) -> None:
        nonlocal idle
        queue.extend(work)
        while idle and queue:
            what, who, cost_s = queue.popleft()
            idle -= 1
            at(now + cost_s / speed, what, who)

    for one in range(environments):
        at(chance.uniform(0, 0.05), "connect", one)
    while events:
        now, _, what, one = heapq.heappop(events)
        if what == "connect":
            began[one] = now
            compute(now, ("asked", one, REFUSED_S))
            continue
        if what == "done":
            used -= 1
            if now <= DEADLINE_S:
                answers.append(now)
            continue
        idle += 1
        if what == "asked" and used < slots:
            used += 1
            compute(now, ("answered", one, ACCEPTED_S + QUERY_S))
            continue
        if what == "asked":
            refused += 1
            pause_s = laws[one](now - began[one], DEADLINE_S - now)
            if pause_s is not None:
                at(now + pause_s, "connect", one)
        else:
            at(now + HELD_S, "done", one)
        compute(now)
    answers.sort()
    return Outcome(len(answers), answers[len(answers) // 2] if answers else DEADLINE_S, refused)


def ours(chance: random.Random) -> Law:
    pressure = Pressure()

    def pause(took_s: float, left_s: float) -> float | None:
        nonlocal pressure
        pressure = pressure.refused(took_s)
        return pressure.pause_s(left_s, chance.random())

    return pause


def fixed(chance: random.Random) -> Law:
    """Decorrelated jitter from 0.5 to 6 s, the best of those that know nothing of the server."""
    pause_s = 0.3

    def pause(took_s: float, left_s: float) -> float | None:
        nonlocal pause_s
        pause_s = min(6.0, chance.uniform(0.5, max(0.5, pause_s) * 3))
        return pause_s if pause_s < left_s else chance.uniform(0, left_s) if left_s > 0.1 else None

    return pause


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cores", [2.0, 1.0, 0.6])
def test_a_spike_is_answered(cores: float, seed: int) -> None:
    """300 environments on 26 connections, also where the server has little CPU: everyone is answered in time."""
    outcome = storm(ours, environments=300, slots=26, cores=cores, seed=seed)
    assert outcome.answered == 300
    assert outcome.refused < 3 * 300


def test_a_fixed_range_collapses_where_ours_does_not() -> None:
    """The model can fail: at a fixed pace the refusals take the CPU that the others need."""
    assert storm(fixed, environments=300, slots=8, cores=0.6, seed=1).answered < 200
    assert storm(ours, environments=300, slots=8, cores=0.6, seed=1).answered == 300


@pytest.mark.parametrize("seed", range(3))
def test_ours_is_as_quick_as_a_fixed_range_where_there_is_cpu(seed: int) -> None:
    """The median of a spike on two cores is at most a fifth longer than the best fixed range's."""
    mine = storm(ours, environments=300, slots=26, cores=2.0, seed=seed)
    its = storm(fixed, environments=300, slots=26, cores=2.0, seed=seed)
    assert (mine.answered, its.answered) == (300, 300)
    assert mine.median_s <= 1.2 * its.median_s


def test_thousands_are_answered() -> None:
    """3,000 environments on 100 connections and eight cores, 10,000 on 970 and sixteen."""
    assert storm(ours, environments=3000, slots=100, cores=8.0, seed=1).answered == 3000
    assert storm(ours, environments=10000, slots=970, cores=16.0, seed=1).answered == 10000


@pytest.mark.parametrize("took_s", [0.0, 0.005, 0.5, 5.0, 100.0])
@pytest.mark.parametrize("left_s", [0.11, 0.5, 3.0, 14.5, 900.0])
@pytest.mark.parametrize("refusals", [1, 2, 10, 5000])
@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_a_pause_ends_before_the_deadline(refusals: int, took_s: float, left_s: float, chance: float) -> None:
    """However often and however slowly it was refused; and a full server that answers at once is asked every 6 s."""
    pause_s = Pressure(refusals, took_s).pause_s(left_s, chance)
    assert pause_s is not None
    assert 0 <= pause_s < left_s
    assert pause_s <= max(6.0, 6 * took_s)


def test_there_is_no_pause_where_nothing_is_left() -> None:
    """A try that could not be waited for is not made."""
    assert Pressure(1, 0.005).pause_s(0.1, 0.5) is None
    assert Pressure(1, 0.005).pause_s(-3.0, 0.5) is None


def test_a_slow_refusal_is_remembered_for_a_while() -> None:
    """It lengthens the pauses after it, and is forgotten by a fifth each time."""
    pressure = Pressure().refused(1.0).refused(0.1)
    assert pressure == Pressure(2, 0.8)
    assert pressure.refused(3.0) == Pressure(3, 3.0)
