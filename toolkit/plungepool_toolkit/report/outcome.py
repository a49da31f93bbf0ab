"""
What a report says of a storm: each strategy's numbers, read tolerantly, and the one sentence that they come to. Pure.

A document may come from an older version, or lack what a simulation has none of: what is missing is None, and is shown
as a dash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.report.text import NONE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Of a curve: more points than that are no wider than a screen.
_POINTS_AT_MOST = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """
    One strategy, as far as the document says.

    Units: ms for latencies, seconds elsewhere.        None: not said.
    """

    title: str
    endpoint: str
    ours: bool
    invocations: int
    succeeded: int
    failures: dict[str, int]
    #: p50, p95, p99 and the longest.
    latency_ms: dict[str, float | None]
    edges_ms: list[float]
    counts: list[int]
    peak: float | None
    mean: float | None
    #: (seconds, connections that are open, connections in use).
    curve: list[tuple[float, float, float | None]]
    connects: float | None
    refused: float | None
    connects_peak_per_s: float | None
    pinned: float | None
    cpu_s: float | None
    wall_s: float | None

    @property
    def success(self) -> float:
        """The share that was answered, from 0 to 1."""
        return self.succeeded / self.invocations if self.invocations else 0.0

    @property
    def share(self) -> str:
        """The share in percent; 100 and 0 only where it was all or nothing."""
        if not self.invocations:
            return NONE
        percent = 100 * self.success
        if 0 < self.succeeded < self.invocations:
            percent = min(max(percent, 0.1), 99.9)
        return f"{percent:.0f} %" if percent in (0.0, 100.0) else f"{percent:.1f} %"


def strategies(document: Mapping[str, Any]) -> list[Strategy]:
    """Return the strategies of a document, in its order; where there are several endpoints, the title names its own."""
    given = [one for one in _list(document.get("strategies")) if isinstance(one, dict)]
    several = len({one.get("endpoint") for one in given}) > 1
    return [_strategy(one, several) for one in given]


def _strategy(one: Mapping[str, Any], several: bool) -> Strategy:
    title, endpoint = str(one.get("title") or one.get("name") or "unnamed"), str(one.get("endpoint") or "direct")
    latency, histogram, connections = (
        _mapping(one.get(name)) for name in ("latency_ms", "latency_histogram", "connections")
    )
    counts, edges = _numbers(histogram.get("counts")), _numbers(histogram.get("edges_ms"))
    if len(edges) != len(counts) + 1:
        edges, counts = [], []
    return Strategy(
        title=f"{title}, {_ENDPOINTS.get(endpoint, endpoint)}" if several else title,
        endpoint=endpoint,
        ours=bool(one.get("ours")),
        invocations=int(_number(one.get("invocations")) or 0),
        succeeded=int(_number(one.get("succeeded")) or 0),
        failures={
            str(code): int(_number(count) or 0)
            for code, count in sorted(_mapping(one.get("failures")).items(), key=lambda item: -(_number(item[1]) or 0))
        },
        latency_ms={name: _number(latency.get(name)) for name in ("p50", "p95", "p99", "max")},
        edges_ms=edges,
        counts=[int(count) for count in counts],
        peak=_number(connections.get("peak")),
        mean=_number(connections.get("mean")),
        curve=_curve(connections),
        connects=_number(one.get("connects")),
        refused=_number(one.get("refused")),
        connects_peak_per_s=_number(_mapping(one.get("connects_per_s")).get("peak")),
        pinned=_number(one.get("pinned")),
        cpu_s=_number(one.get("database_cpu_s")),
        wall_s=_number(one.get("wall_s")),
    )


_ENDPOINTS = {"direct": "direct", "pgbouncer": "through PgBouncer", "proxy": "through a proxy"}


def _curve(connections: Mapping[str, Any]) -> list[tuple[float, float, float | None]]:
    """Return the curve, of each stretch its highest point where there are more than a screen shows."""
    times, opened, used = (_numbers(connections.get(name)) for name in ("times_s", "open", "in_use"))
    points = [(at, opened[n], used[n] if n < len(used) else None) for n, at in enumerate(times[: len(opened)])]
    width = math.ceil(len(points) / _POINTS_AT_MOST)
    if width <= 1:
        return points
    return [max(points[n : n + width], key=lambda point: point[1]) for n in range(0, len(points), width)]


def headline(document: Mapping[str, Any]) -> str:
    """Return what a storm came to in a sentence or two."""
    all_of_them = strategies(document)
    ours = [one for one in all_of_them if one.ours]
    others = [one for one in all_of_them if not one.ours]
    if not all_of_them:
        return "Nothing was measured"
    verb = "would be answered" if document.get("kind") == "simulation" else "were answered"
    best = max(ours or others, key=lambda one: one.success)
    said = f"{best.title}: {_answered(best, verb)}"
    worst = min((one for one in others if one is not best), key=lambda one: one.success, default=None)
    if worst is not None:
        said += f". {_capital(worst.title)}: {_count(worst.succeeded)} of {_count(worst.invocations)}"
    return _capital(said)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _answered(one: Strategy, verb: str) -> str:
    if one.invocations and one.succeeded == one.invocations:
        return f"all {_count(one.invocations)} invocations {verb}"
    return f"{_count(one.succeeded)} of {_count(one.invocations)} invocations {verb}"


def _count(number: int) -> str:
    return f"{number:,}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _numbers(value: object) -> list[float]:
    found = [_number(one) for one in _list(value)]
    return [one for one in found if one is not None] if None not in found else []
