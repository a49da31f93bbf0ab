"""What came of a run, and how it is counted while it goes on. Pure."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

# How finely connections over time are noted.
_GRID_S = 0.05


class Run(NamedTuple):
    """What came of one run."""

    succeeded: int
    failures: dict[str, int]
    #: Of all, those that failed among them, from the shortest to the longest.
    latencies_s: list[float]
    connects: int
    refused: int
    connects_per_s: dict[int, int]
    peak: int
    mean: float
    #: Moment, open, in use.
    timeline: list[tuple[float, int, int]]
    database_cpu_s: float
    #: What Lambda bills: the time of all invocations, cold starts included.
    billed_s: float
    environments: int
    wall_s: float

    @property
    def invocations(self) -> int:
        """How many there were."""
        return len(self.latencies_s)

    @property
    def rate(self) -> float:
        """Return the part that was answered, from 0 to 1."""
        return self.succeeded / self.invocations if self.invocations else 1.0

    def latency_s(self, part: float) -> float:
        """Return the shortest latency that this part of all does not exceed (nearest rank)."""
        return self.latencies_s[max(0, math.ceil(part * len(self.latencies_s)) - 1)] if self.latencies_s else 0.0


class Tally:
    """Counts of a run that goes on."""

    def __init__(self) -> None:
        self.open = self.in_use = 0
        self.connects = self.refused = 0
        self._connects_per_s: Counter[int] = Counter()
        self._failures: Counter[str] = Counter()
        self._latencies_s: list[float] = []
        self._billed_s = self._area = self._seen = 0.0
        self._peak = 0
        self._timeline: list[tuple[float, int, int]] = [(0.0, 0, 0)]

    def connected(self, now: float) -> None:
        """A connect was taken."""
        self.connects += 1
        self._connects_per_s[int(now)] += 1

    def ended(self, latency_s: float, failure: str | None) -> None:
        """An invocation is over; `failure`: its code, or None."""
        self._latencies_s.append(latency_s)
        self._billed_s += latency_s
        if failure is not None:
            self._failures[failure] += 1

    def note(self, now: float, *, opened: int = 0, in_use: int = 0) -> None:
        """So many connections more are open, and in use."""
        self._area += self.open * (now - self._seen)
        self._seen = now
        self.open += opened
        self.in_use += in_use
        self._peak = max(self._peak, self.open)
        last = self._timeline[-1]
        if now < last[0] + _GRID_S:
            self._timeline[-1] = (last[0], max(last[1], self.open), max(last[2], self.in_use))
        else:
            self._timeline.append((now, self.open, self.in_use))

    def run(self, now: float, *, environments: int) -> Run:
        """Return what came of it by now; what the server computed is not known here."""
        self.note(now)
        return Run(
            succeeded=len(self._latencies_s) - self._failures.total(),
            failures=dict(self._failures.most_common()),
            latencies_s=sorted(self._latencies_s),
            connects=self.connects,
            refused=self.refused,
            connects_per_s=dict(self._connects_per_s),
            peak=self._peak,
            mean=self._area / now if now else 0.0,
            timeline=self._timeline,
            database_cpu_s=0.0,
            billed_s=self._billed_s,
            environments=environments,
            wall_s=now,
        )
