"""
What an exchange is, how many a test may make, and how that is told: pure.

A statement is known by its shape, as `plungepool.statements` gives it and the package's own log does: without literals.
"""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from plungepool import statements

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from plungepool_toolkit.round_trips.client import Said

Kind = Literal["connect", "ping", "BEGIN", "COMMIT", "ROLLBACK", "statement", "prepare", "encrypted"]

#: what a round trip may take: within one availability zone, to another, and far away
LATENCIES_MS = (0.5, 1, 5)
FORMAT = "plungepool-round-trips/1"

_ENDS = {"commit": "COMMIT", "end": "COMMIT", "rollback": "ROLLBACK", "abort": "ROLLBACK"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """
    One wait for the server, or those of one connect: `shape` is the statement's, `rides` what went before it in the
    same flight, `place` the line of the program that waited.
    """

    kind: Kind
    shape: str = ""
    rides: tuple[str, ...] = ()
    place: str = ""
    round_trips: int = 1

    def __str__(self) -> str:
        return " + ".join((*self.rides, self.shape or self.kind))


def read(said: Said, place: str) -> Exchange:
    """Return the exchange in which a client said something."""
    if said.encrypted:
        return Exchange("encrypted", "(encrypted: give the driver sslmode=disable)", place=place)
    if said.signs_in:
        return Exchange("connect", place=place)
    if not said.statements and said.prepared:
        return Exchange("prepare", f"(prepare) {statements.shape(said.prepared[-1].text)}", place=place)
    texts = [one.text for one in said.statements if next(statements.tokens(one.text), ";") != ";"]
    if not texts:
        return Exchange("ping", place=place)
    *before, last = texts
    kind, what = _kind(last)
    waits = 2 if kind == "statement" and _copies_in(last) else 1  # the server says when it is ready for the data
    return Exchange(kind, what, tuple(_kind(text)[1] for text in before), place, waits)


def _kind(text: str) -> tuple[Kind, str]:
    first = next(statements.split(text), "").split()
    alone = len(list(statements.split(text))) == 1
    if alone and first[0] in ("begin", "start"):
        return "BEGIN", "BEGIN"
    if first[0] in _ENDS and first[1:2] not in (["to"], ["prepared"]) and "to" not in first[:3]:
        end = _ENDS[first[0]]
        return ("COMMIT", end) if end == "COMMIT" else ("ROLLBACK", end)
    return "statement", statements.shape(text)


def _copies_in(text: str) -> bool:
    return any(one.startswith(" copy ") and " stdin " in one for one in statements.split(text))


@dataclass(frozen=True, slots=True)
class Repeated:
    """One statement from one line, again and again."""

    shape: str
    place: str
    times: int


def repeated(exchanges: Iterable[Exchange], more_than: int) -> list[Repeated]:
    """Return each statement that one line has sent more often than that."""
    counts = collections.Counter((one.shape, one.place) for one in exchanges if one.kind == "statement")
    return [Repeated(*key, times) for key, times in counts.items() if times > more_than]


@dataclass(frozen=True, slots=True)
class Count:
    """What a test has cost, apart: connects, and all else. `whats` is how often each thing was asked."""

    round_trips: int
    connects: int
    whats: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, exchanges: Sequence[Exchange], connects: int) -> Count:
        warm = [one for one in exchanges if one.kind != "connect"]
        whats = collections.Counter(str(one) for one in warm)
        return cls(sum(one.round_trips for one in warm), connects, dict(sorted(whats.items())))


def cost(round_trips: int) -> str:
    """Say what so many round trips take."""
    return ", ".join(f"{round_trips * latency:g} ms at {latency:g} ms" for latency in LATENCIES_MS)


def table(exchanges: Sequence[Exchange]) -> list[str]:
    """Return a line for each exchange, in their order, and one for all of them."""
    lines = []
    width = max((len(one.place) for one in exchanges), default=0)
    for number, one in enumerate(exchanges, 1):
        name = f"{one.kind}, {one.round_trips} round trips" if one.kind == "connect" else str(one)
        lines.append(f"  {number:>3}  {one.place:<{width}}  {name}")
    kinds = collections.Counter()  # type: collections.Counter[str]
    for one in exchanges:
        kinds[one.kind] += one.round_trips
    if kinds:
        lines.append(
            "  that is, in round trips: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        )
    return lines


def advice(again: Iterable[Repeated]) -> list[str]:
    """Return what is said of statements that one line repeats."""
    return [
        f"N+1: {one.place} sent one statement {one.times} times; fetch all rows at once (a join, = ANY(...), "
        f"selectinload): {one.shape}"
        for one in again
    ]


def changes(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Return what is asked more often, and less often, than it was."""
    lines = []
    for what in sorted({*before, *after}):
        difference = after.get(what, 0) - before.get(what, 0)
        if difference:
            lines.append(f"  {difference:+d}  {what}")
    return lines


def read_baseline(text: str) -> dict[str, Count]:
    """Return the counts of a baseline file, by test. Raises: ValueError for what is none."""
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return {
            test: Count(entry["round_trips"], entry["connects"], entry["exchanges"])
            for test, entry in document["tests"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks {error}") from error


def write_baseline(counts: Mapping[str, Count]) -> str:
    """Return a baseline file: sorted, a line for each thing that a test asks."""
    tests = {
        test: {
            "round_trips": count.round_trips,
            "connects": count.connects,
            "exchanges": dict(sorted(count.whats.items())),
        }
        for test, count in sorted(counts.items())
    }
    return json.dumps({"format": FORMAT, "tests": tests}, indent=1, ensure_ascii=False) + "\n"
