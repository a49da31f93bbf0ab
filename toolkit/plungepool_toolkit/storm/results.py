"""
What came of a storm, as one document: measured by the storm, computed by the simulation, drawn by the report. Pure.

Its JSON is described in docs/storm.md.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

FORMAT = "plungepool-storm/1"
# Of a latency histogram: six bins a decade from 1 ms on.
EDGES_MS = (
    0.0,
    *(round(step * 10.0**power, 1) for power in range(4) for step in (1, 1.5, 2, 3, 5, 7)),
    1e4,
    1.5e4,
    2e4,
    3e4,
)


class FormatError(ValueError):
    """A document that is none of a storm; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under which conditions it was measured; `text` says it in a sentence."""

    date: str
    command: str
    versions: Mapping[str, str]
    cores: int
    environments: int
    rounds: int
    arrival: str
    service_ms: float
    deadline_s: float
    max_connections: int
    #: Connections that the application's role may have: less the reserved ones and the monitor's.
    limit: int
    seed: int
    text: str
    #: What the handler takes after its transaction, without a connection; `service_ms` is within it.
    outside_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Of all invocations, those that failed among them. Units: ms."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, latencies_ms: Sequence[float]) -> Self:
        """Return what so many latencies come to, in any order."""
        ordered = sorted(latencies_ms)
        p50, p95, p99, longest = (round(percentile(ordered, share), 1) for share in (0.5, 0.95, 0.99, 1.0))
        return cls(p50=p50, p95=p95, p99=p99, max=longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How many latencies lie between two edges: `counts[n]` from `edges_ms[n]` up to `edges_ms[n + 1]`."""

    edges_ms: Sequence[float]
    counts: Sequence[int]

    @classmethod
    def of(cls, latencies_ms: Sequence[float], edges_ms: Sequence[float] = EDGES_MS) -> Self:
        """Return the histogram; what lies beyond the last edge is counted in the last bin."""
        counts = [0] * (len(edges_ms) - 1)
        for latency in latencies_ms:
            counts[min(bisect.bisect_right(edges_ms, latency), len(counts)) - 1] += 1
        return cls(edges_ms=tuple(edges_ms), counts=tuple(counts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """The role's connections to the database: `peak` is exact, the curves are samples."""

    peak: int
    mean: float
    times_s: Sequence[float] = ()
    open: Sequence[int] = ()
    in_use: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PerSecond:
    """Connects in the busiest second, and on average."""

    peak: int
    mean: float

    @classmethod
    def of(cls, times_s: Sequence[float], wall_s: float) -> Self:
        """Return what so many moments come to; the busiest second may begin at any of them."""
        ordered = sorted(times_s)
        peak = max((bisect.bisect_left(ordered, at + 1.0) - number for number, at in enumerate(ordered)), default=0)
        return cls(peak=peak, mean=round(len(ordered) / wall_s, 1) if wall_s > 0 else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One strategy against the database."""

    name: str
    title: str
    endpoint: str
    ours: bool
    invocations: int
    succeeded: int
    #: By SQLSTATE, or the name of an error's class.
    failures: Mapping[str, int]
    latency_ms: Latency
    latency_histogram: Histogram
    wall_s: float
    #: What the database tells; None where it is not seen, as of a storm on Lambda.
    connections: Connections | None = None
    connects: int | None = None
    refused: int | None = None
    connects_per_s: PerSecond | None = None
    pinned: int | None = None
    database_cpu_s: float | None = None
    #: Of each round how many were answered.
    answered: Sequence[int] = ()
    #: When each connection was opened, in seconds from the beginning.
    connect_times_s: Sequence[float] = ()

    @property
    def success(self) -> float:
        """The share that was answered, from 0 to 1."""
        return self.succeeded / self.invocations if self.invocations else 0.0


@dataclass(frozen=True, slots=True)
class Storm:
    """A whole storm, or a simulation of one."""

    conditions: Conditions
    strategies: Sequence[Strategy]
    kind: str = "storm"
    format: str = field(default=FORMAT)

    def to_json(self) -> dict[str, Any]:
        """Return the document, which `json.dumps` takes."""
        document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return what a document holds. Raises: FormatError."""
        if document.get("format") != FORMAT:
            raise FormatError(f"the format is {document.get('format')!r}, not {FORMAT!r}")
        try:
            return cls(
                kind=document["kind"],
                conditions=_read(Conditions, document["conditions"]),
                strategies=tuple(_read_strategy(one) for one in document["strategies"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"this is not the document of a storm: {error}") from error


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that so much of an ordered sequence does not exceed (nearest rank); 0 of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _read_strategy(document: Mapping[str, Any]) -> Strategy:
    parts = {
        "latency_ms": Latency,
        "latency_histogram": Histogram,
        "connections": Connections,
        "connects_per_s": PerSecond,
    }
    read = {name: _read(part, value) for name, part in parts.items() if (value := document.get(name)) is not None}
    strategy: Strategy = _read(Strategy, {**document, **read})
    return strategy


def _read(kind: type[Any], document: Mapping[str, Any]) -> Any:
    """Return an object of a class; what it has no field for is passed over, as a newer version may write it."""
    known = {one.name for one in dataclasses.fields(kind)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}
    return kind(**{name: value for name, value in values.items() if name in known})
