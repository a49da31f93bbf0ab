"""
When invocations come: a spike, a wave, a steady stream, or a recorded curve of concurrency. Pure.

A storm is a sequence of rounds; the next one begins when all of a round are answered. Times are in seconds from the
beginning of a round, in order.
"""

from __future__ import annotations

import csv
import datetime
import heapq
import json
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ARRIVALS_AT_MOST = 100_000


class CurveError(ValueError):
    """A curve that cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Round:
    """The invocations that come before the next pause; `fresh`: on environments that have never been invoked."""

    times_s: tuple[float, ...]
    fresh: bool = False


def spike(invocations: int, rounds: int, *, fresh: bool = False) -> tuple[Round, ...]:
    """
    Return rounds of so many invocations at once.

    Args: fresh: each round comes upon environments of its own, while those of the rounds before stay frozen.
    """
    return tuple(Round((0.0,) * invocations, fresh) for _ in range(rounds))


def steady(rate_per_s: float, duration_s: float, seed: int) -> tuple[Round, ...]:
    """Return one round of independent arrivals at a mean rate: a Poisson process."""
    return (Round(_poisson(lambda _: rate_per_s, rate_per_s, duration_s, seed)),)


def wave(peak_per_s: float, duration_s: float, seed: int) -> tuple[Round, ...]:
    """Return one round of independent arrivals whose rate rises to a peak half way and falls again, as half a sine."""
    return (Round(_poisson(lambda at: peak_per_s * math.sin(math.pi * at / duration_s), peak_per_s, duration_s, seed)),)


def _poisson(rate: Callable[[float], float], highest: float, duration_s: float, seed: int) -> tuple[float, ...]:
    chance = random.Random(seed)
    times, now = [], chance.expovariate(highest)
    while now < duration_s:
        # Thinning: of a stream at the highest rate, as many are kept as the rate of the moment wants.
        if chance.random() * highest < rate(now):
            times.append(now)
        if len(times) > ARRIVALS_AT_MOST:
            raise CurveError(f"more than {ARRIVALS_AT_MOST} invocations: lower the rate or the duration")
        now += chance.expovariate(highest)
    return tuple(times)


def recorded(curve: Sequence[tuple[float, float]], service_s: float, duration_s: float | None = None) -> tuple[Round]:
    """
    Return one round whose concurrency would be the curve's, if each invocation took `service_s`.

    What the environments really have in flight is higher where the database makes them wait: arrivals do not wait for
    answers.
    Args: curve: (seconds, concurrent executions); each value holds up to the next time. duration_s: stretches or
        compresses it to this length; None: as it was recorded.
    """
    first, last = curve[0][0], curve[-1][0]
    scale = duration_s / (last - first) if duration_s else 1.0
    points = [((at - first) * scale, round(concurrency)) for at, concurrency in curve]
    times: list[float] = []
    ends: list[float] = []  # of those in flight
    for (at, wanted), (until, _) in zip(points, [*points[1:], points[-1]], strict=True):
        now = at
        while now < until:
            while ends and ends[0] <= now:
                heapq.heappop(ends)
            for _ in range(wanted - len(ends)):
                times.append(now)
                heapq.heappush(ends, now + service_s)
            if len(times) > ARRIVALS_AT_MOST:
                raise CurveError(
                    f"more than {ARRIVALS_AT_MOST} invocations: increase the service time, or use less of the curve"
                )
            now = min(ends[0], until) if ends else until
    return (Round(tuple(times)),)


def read_curve(text: str) -> list[tuple[float, float]]:
    """
    Return (seconds, concurrent executions), ordered by time, of a CSV file or of CloudWatch's JSON.

    CSV: two columns, time (seconds, or a date and time in ISO 8601) and concurrency; a first line of names is passed
    over. JSON: what `aws cloudwatch get-metric-data` or `get-metric-statistics` print of ConcurrentExecutions.
    Raises: CurveError.
    """
    try:
        points = _cloudwatch(json.loads(text)) if text.lstrip().startswith("{") else _csv(text)
    except (LookupError, StopIteration, TypeError, ValueError) as error:
        raise CurveError(f"this is neither a CSV of time and concurrency nor CloudWatch's JSON: {error}") from error
    points.sort()
    if len(points) < 2 or points[0][0] == points[-1][0]:
        raise CurveError("a curve needs two points at different times")
    if any(concurrency < 0 or not math.isfinite(concurrency) for _, concurrency in points):
        raise CurveError("a concurrency cannot be negative")
    return points


def _csv(text: str) -> list[tuple[float, float]]:
    rows = [row for row in csv.reader(text.splitlines()) if row and any(cell.strip() for cell in row)]
    if rows and not _is_number(rows[0][1]):
        del rows[0]
    return [(_seconds(row[0]), float(row[1])) for row in rows]


def _cloudwatch(document: dict[str, Any]) -> list[tuple[float, float]]:
    if "Datapoints" in document:
        kinds = ("Maximum", "Average")
        return [
            (_seconds(point["Timestamp"]), float(next(point[kind] for kind in kinds if kind in point)))
            for point in document["Datapoints"]
        ]
    result = document["MetricDataResults"][0]
    return [(_seconds(at), float(value)) for at, value in zip(result["Timestamps"], result["Values"], strict=True)]


def _seconds(text: str | float) -> float:
    if isinstance(text, (int, float)) or _is_number(text):
        return float(text)
    return datetime.datetime.fromisoformat(text.strip()).timestamp()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
