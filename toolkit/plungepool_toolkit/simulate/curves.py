"""
How many invocations there are, and when: as many a second as ever, a wave, or a curve that was recorded in a file.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from plungepool_toolkit.storm.arrivals import CurveError, read_curve

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Curve", "CurveError", "moments", "read", "steady", "wave"]


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
    Return what a file recorded: as `plungepool storm --curve` reads it, or a CSV whose second column is named `rate`.

    Raises: CurveError; OSError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CurveError(f"{path} is no text in UTF-8") from None
    try:
        points = read_curve(text)
    except CurveError as error:
        raise CurveError(f"{path}: {error}") from None
    names = [name.strip().lower() for name in text.partition("\n")[0].split(",")]
    return Curve(tuple((at - points[0][0], value) for at, value in points), rate=names[1:] == ["rate"])
