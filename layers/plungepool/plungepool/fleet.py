"""
The law of the fleet: what one environment does so that all of them get through. Pure: no I/O, no clock, no chance of
its own; the same code runs in production and in virtual time (tests/unit/test_fleet.py).

A full database refuses, and each refusal costs it some milliseconds of CPU: asked again too soon, it does nothing but
refuse. How many are asking, no environment knows; but how long the server took to refuse grows with the queue before
it. So a pause is a multiple of that, drawn by chance, within what is left of the deadline.

A connection that an environment keeps for its next invocation is one that no other can have, and a frozen environment
can give nothing back. So the right to keep one is a *ticket*, of which there are fewer than connections: the database
counts them, and how many were tried to have one says how long the server lets that connection idle, its *lease*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# Calibrated in virtual time; tests/unit/test_fleet.py says on what. Six times as long as a refusal took: the queue of
# those who were refused, and then served at twice the cost of a refusal, has gone by when half of them ask again.
_TIMES_THE_REFUSAL = 6.0
# A server that refuses at once is not busy, but full: its connections are held, and to ask faster frees none. By 0.4 s
# that grow by half, 300 real environments beside 18 kept connections were refused 3,228 times and took twice as long as
# by these: 1,329 times (`plungepool storm --environments 300 --strategy adaptive`).
_FIRST_PAUSE_S, _GROWTH, _LONGEST_OF_A_FULL_ONE_S = 0.5, 2.0, 8.0
# A refusal that took long is forgotten by a fifth with each one that did not.
_FORGET = 0.8
# Of a pause's range: nobody asks again at once, and nobody waits for the very end.
_SHORTEST, _OF_WHAT_IS_LEFT = 0.3, 0.9
# A last try has as long as the longest refusal, or a quarter of what is left if that is less.
_FOR_THE_LAST_TRY = 0.25
_TOO_LATE_S = 0.1


class Pressure(NamedTuple):
    """
    What a connect has met so far: so many refusals, and how busy the server seemed.

    Units: seconds.
    """

    refusals: int = 0
    slow_s: float = 0.0

    def refused(self, took_s: float) -> Pressure:
        """Return what is known after one more refusal, which took so long."""
        return Pressure(self.refusals + 1, max(self.slow_s * _FORGET, took_s))

    def pause_s(self, left_s: float, chance: float) -> float | None:
        """
        Return how long to wait before the next try; None: there is no time for another.

        Args: left_s: until the deadline. chance: a random number from 0 to 1.
        """
        if left_s <= _TOO_LATE_S:
            return None
        full_s = min(_FIRST_PAUSE_S * _GROWTH ** min(self.refusals - 1, 20), _LONGEST_OF_A_FULL_ONE_S)
        longest_s = min(max(full_s, _TIMES_THE_REFUSAL * self.slow_s), _OF_WHAT_IS_LEFT * left_s)
        pause_s = longest_s * (_SHORTEST + (1 - _SHORTEST) * chance)
        last_s = left_s - max(_TOO_LATE_S / 2, min(self.slow_s, _FOR_THE_LAST_TRY * left_s))
        return pause_s if pause_s <= last_s else last_s * chance


#: Of the connections that a fleet may have, as many may be kept; the others come and go. With all of them kept, those
#: of frozen environments leave none to a fresh one.
SHARE = 0.7
# The more tickets are held already, the more probes one takes, and the sooner its connection ends when it idles: with
# three probes at random the chance of none is the third power of the share that is held.
_LEASES_S = (30.0, 10.0, 3.0)
#: How many tickets are tried at most.
PROBES = len(_LEASES_S)
#: Of a lease nobody relies on the last second: it is the server's clock that counts, and a statement has a way to go.
GRACE_S = 1.0


def comes_back(idle_s: float) -> bool:
    """
    Say whether to ask for a ticket, by how long ago this environment had a connection before: whether it is one that
    is used again within a lease.

    One that connects for the first time may be one of hundreds that a spike has started, and frozen after it: tickets
    for the first that come would be held by those who do not need them, while all others share what is left.
    """
    return 0 <= idle_s < _LEASES_S[0]


def tickets(limit: int) -> int:
    """Return how many connections may be kept where so many may be open."""
    return max(0, limit) * round(SHARE * 100) // 100


def probes(tickets: int, chances: Sequence[float]) -> tuple[int, ...]:
    """
    Return which tickets to try, by number from 0, in this order: as many as there are chances, three at most, and no
    one twice.

    Args: chances: random numbers from 0 up to 1.
    """
    chosen: list[int] = []
    for chance in chances[: min(PROBES, tickets)]:
        one = int(chance * (tickets - len(chosen)))
        for other in sorted(chosen):
            one += one >= other
        chosen.append(one)
    return tuple(chosen)


def lease_s(probe: int) -> float:
    """Return how long a connection may idle whose ticket the n-th probe has won, counted from 0: in seconds."""
    return _LEASES_S[probe]
