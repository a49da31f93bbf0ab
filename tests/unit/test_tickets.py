"""The law of tickets, by itself: how many there are, which are tried, and for how long one lets a connection idle."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from plungepool.fleet import GRACE_S, PROBES, SHARE, lease_s, probes, tickets


@pytest.mark.parametrize(
    ("limit", "expected"), [(-1, 0), (0, 0), (1, 0), (2, 1), (10, 7), (26, 18), (90, 63), (100, 70), (262143, 183500)]
)
def test_seven_tenths_of_the_limit_are_tickets(limit: int, expected: int) -> None:
    """Rounded down, whatever binary fractions make of it; a limit of one leaves nothing to keep."""
    assert tickets(limit) == expected
    assert tickets(limit) <= max(0, limit * SHARE + 1e-6)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (2, 2), (3, 3), (18, 3)])
def test_no_ticket_is_tried_twice_nor_one_that_is_none(count: int, expected: int) -> None:
    """At most three, at most as many as there are, each another one, at the ends of chance, too."""
    random_ = random.Random(count)
    draws = [[0.0] * 3, [1 - 2**-32] * 3, [0.5] * 3, *([random_.random() for _ in range(3)] for _ in range(500))]
    for chances in draws:
        tried = probes(count, chances)
        assert len(tried) == len(set(tried)) == expected
        assert all(0 <= one < count for one in tried)


def test_each_ticket_is_tried_as_often_as_any_other() -> None:
    """As the first probe, as the second and as the third: none is worn out, none forgotten."""
    random_ = random.Random(1)
    rounds, count = 8000, 8
    for place in zip(*(probes(count, [random_.random() for _ in range(3)]) for _ in range(rounds)), strict=True):
        numbers = Counter(place)
        assert sorted(numbers) == list(range(count))
        assert all(0.85 * rounds / count < often < 1.15 * rounds / count for often in numbers.values())


def test_fewer_chances_are_fewer_probes() -> None:
    """Nobody has to draw three numbers for one."""
    assert probes(18, [0.5]) == (9,)
    assert probes(18, []) == ()


@pytest.mark.parametrize("held", [0, 6, 12, 15, 18])
def test_the_chance_of_none_is_the_third_power_of_what_is_held(held: int) -> None:
    """An early drop by chance, that nobody has to tune: 30 % of those who come when two thirds are held."""
    random_ = random.Random(held)
    count, rounds = 18, 6000
    tried = (probes(count, [random_.random() for _ in range(3)]) for _ in range(rounds))
    none = sum(all(one < held for one in three) for three in tried)
    expected = held * (held - 1) * (held - 2) / (count * (count - 1) * (count - 2))
    assert abs(none / rounds - expected) < 0.025


def test_a_lease_is_the_shorter_the_more_probes_it_took() -> None:
    """Each is longer than what nobody relies on of it; a fourth probe there is not."""
    leases = [lease_s(probe) for probe in range(PROBES)]
    assert leases == [30, 10, 3]
    assert min(leases) > 2 * GRACE_S
    with pytest.raises(IndexError):
        lease_s(PROBES)
