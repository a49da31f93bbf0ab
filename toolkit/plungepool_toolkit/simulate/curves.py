"""
How many invocations there are, and when: as many a second as ever, a wave, or a curve that was recorded in a file.
"""

from __future__ import annotations

import contextlib
import json
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from plungepool_toolkit.storm.arrivals import CurveError, read_curve

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

# More than a year of CloudWatch's minutes.
_BYTES_AT_MOST = 50_000_000

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
    with path.open("rb") as file:
        content = file.read(_BYTES_AT_MOST + 1)  # a device, or a pipe, may have no end
    if len(content) > _BYTES_AT_MOST:
        raise CurveError(f"{path} is larger than {_BYTES_AT_MOST:,} bytes")
    try:
        text = _with_commas(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise CurveError(f"{path} is not UTF-8 text") from None
    _refuse_a_part(path, text)
    try:
        points = read_curve(text)
    except (CurveError, RecursionError) as error:
        what = str(error) if isinstance(error, CurveError) else "it is nested too deeply"
        raise CurveError(f"{path}{_wrong_line(text)}: {what}") from None
    if not all(math.isfinite(number) for point in points for number in point):
        raise CurveError(f"{path}{_wrong_line(text)}: this is not a finite number")
    names = [name.strip().lower() for name in text.partition("\n")[0].split(",")]
    return Curve(tuple((at - points[0][0], value) for at, value in points), rate=names[1:] == ["rate"])


def _refuse_a_part(path: Path, text: str) -> None:
    """Refuse what CloudWatch says is a part, or several metrics: the rest would be passed over in silence."""
    document: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(text)
    if document is not None:
        results = document.get("MetricDataResults") if isinstance(document, dict) else None
        if not isinstance(results, list):
            return
        if document.get("NextToken") or any(
            isinstance(one, dict) and one.get("StatusCode") == "PartialData" for one in results
        ):
            raise CurveError(f"{path}: CloudWatch marks this as only a part of the curve: request all of it")
        if len(results) > 1:
            raise CurveError(f"{path}: it contains {len(results)} metrics, but must contain one")


def _with_commas(text: str) -> str:
    """Return a table with commas between its columns: a spreadsheet may write semicolons or tabs, by its country."""
    first = text.lstrip().partition("\n")[0]
    if text.lstrip().startswith("{"):
        return text
    if ";" in first:
        return text.replace(",", ".").replace(";", ",")
    return text.replace("\t", ",") if "\t" in first and "," not in first else text


def _wrong_line(text: str) -> str:
    """Return which line of a CSV file has no time and number, in words; nothing where it is no such file."""
    if text.lstrip().startswith("{"):
        return ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                # With another one before it, it is a curve, if it is a line of one at all.
                points = read_curve(f"-1e12,0\n{line}")
            except CurveError:
                points = []
            # The first one may hold the names.
            if number > 1 and not (points and all(math.isfinite(each) for point in points for each in point)):
                return f", line {number}"
    return ""
