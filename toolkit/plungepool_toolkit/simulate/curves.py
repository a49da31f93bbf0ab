"""
How many invocations there are, and when: as many a second as ever, a wave, or a curve that was recorded in a file.
"""

from __future__ import annotations

import csv
import json
import math
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class CurveError(ValueError):
    """A file is no curve; says what is wrong with it."""


class Curve(NamedTuple):
    """
    What was recorded: seconds since its beginning, and a number. Between two points it is a straight line.

    Units: `rate`: invocations a second; otherwise concurrent ones.
    """

    points: tuple[tuple[float, float], ...]
    rate: bool = False

    @property
    def duration_s(self) -> float:
        return self.points[-1][0]

    def rates(self, invocation_s: float) -> Curve:
        """
        Return invocations a second: of concurrent ones there are as many as begin while one lasts (Little's law).

        Args: invocation_s: how long one lasts where nothing is wrong.
        """
        if self.rate:
            return self
        return Curve(tuple((at, value / invocation_s) for at, value in self.points), rate=True)


def moments(curve: Curve, chance: random.Random) -> Iterator[float]:
    """Yield when invocations begin: as independent of each other as requests of many users are. `curve`: of rates."""
    for (begin, first), (end, last) in pairwise(curve.points):
        highest = max(first, last)
        if highest <= 0:
            continue
        at = begin
        while True:
            at += chance.expovariate(highest)
            if at >= end:
                break
            if chance.random() * highest <= first + (last - first) * (at - begin) / (end - begin):
                yield at


def steady(rate: float, duration_s: float) -> Curve:
    """Return a curve that stays as it is."""
    return Curve(((0.0, rate), (duration_s, rate)), rate=True)


def wave(rate: float, duration_s: float) -> Curve:
    """Return a curve that rises from nothing to `rate` half way and falls again, as half a sine."""
    steps = 24
    return Curve(
        tuple((duration_s * step / steps, rate * math.sin(math.pi * step / steps)) for step in range(steps + 1)),
        rate=True,
    )


def read(path: Path) -> Curve:
    """
    Return what a file recorded.

    A CSV file has the columns `time` (in seconds, or as ISO 8601 writes it) and `concurrency`, or `rate` in invocations
    a second. JSON is what `aws cloudwatch get-metric-data` or `get-metric-statistics` prints for ConcurrentExecutions.

    Raises: CurveError; OSError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CurveError(f"{path} is no text in UTF-8") from None
    if text.lstrip()[:1] in ("{", "["):
        return _of(_points_of_json(text, path), path, rate=False)
    rows = csv.DictReader(text.splitlines())
    columns = [name.strip().lower() for name in rows.fieldnames or ()]
    rows.fieldnames = columns
    value = next((name for name in ("concurrency", "rate") if name in columns), None)
    if "time" not in columns or value is None:
        raise CurveError(f"{path} needs a line with the names of its columns: time, and concurrency or rate")
    points = []
    for row in rows:
        try:
            points.append((_seconds(row["time"]), float(row[value])))
        except (TypeError, ValueError):
            raise CurveError(f"{path}, line {rows.line_num}: no time and number") from None
    return _of(points, path, rate=value == "rate")


def _points_of_json(text: str, path: Path) -> list[tuple[float, float]]:
    try:
        document: Any = json.loads(text)
        if "MetricDataResults" in document:
            result = document["MetricDataResults"][0]
            return [
                (_seconds(moment), float(value))
                for moment, value in zip(result["Timestamps"], result["Values"], strict=True)
            ]
        return [
            (
                _seconds(one["Timestamp"]),
                float(next(one[name] for name in ("Maximum", "Average", "Sum") if name in one)),
            )
            for one in document["Datapoints"]
        ]
    except (ValueError, KeyError, TypeError, IndexError, StopIteration):
        raise CurveError(f"{path} is not what CloudWatch prints: MetricDataResults, or Datapoints") from None


def _seconds(moment: Any) -> float:
    try:
        return float(moment)
    except ValueError:
        return datetime.fromisoformat(moment.strip()).timestamp()


def _of(points: Sequence[tuple[float, float]], path: Path, *, rate: bool) -> Curve:
    if len(points) < 2:
        raise CurveError(f"{path} needs two points at least")
    ordered = sorted(points)
    if any(not math.isfinite(at) or not math.isfinite(value) or value < 0 for at, value in ordered):
        raise CurveError(f"{path}: every number must be finite and not below 0")
    if any(one[0] == other[0] for one, other in pairwise(ordered)):
        raise CurveError(f"{path}: two points have the same time")
    return Curve(tuple((at - ordered[0][0], value) for at, value in ordered), rate=rate)
