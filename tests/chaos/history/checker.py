"""
A checker of histories in which transactions append to lists and read them, after Elle's idea. Pure.

A value is appended once in a history, to one list; so whoever reads a list has read in which order its values came,
and from one read of everything at the end the order of all versions is known. From that follows what each transaction
has seen and overwritten, without a word from the database about it:

    lost update          an append that was acknowledged is in no read that began after the acknowledgement
    stale read           it is missing in one of these only, and there in a longer version
    duplicate            a value stands twice in a list
    made up              a value that nobody has appended
    aborted read         G1a: a value of a transaction that said it was not kept
    intermediate read    G1b: a part of what a transaction appended to a list
    incompatible orders  two reads of a list of which neither is the other's beginning
    internal             a transaction reads something else than what it has read and appended itself
    G0, G1c              circles of transactions that overwrite and read one another: forbidden at every level
    G-single             a circle in which one transaction has not seen what another one wrote (read skew; two that
                         overwrite what both have read): forbidden from REPEATABLE READ on
    G2                   a circle with several such (write skew): forbidden by SERIALIZABLE

Whether a transaction whose outcome is unknown was kept is found out by who has read it: from then on it has to be there
as a whole. Source: Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations", 2020;
Adya, "Weak Consistency", 1999.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE = "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"
_FOREVER = float("inf")


class Append(NamedTuple):
    """A value that a transaction appended to a list."""

    list: str
    value: int


class Read(NamedTuple):
    """What a transaction read of a list; None where nobody knows, as of one whose answer was lost."""

    list: str
    values: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """
    What one transaction did, in its order, and what its client knows of its outcome.

    Units: `began` and `ended`, when it was asked for and when its answer came, are seconds of one clock.
    """

    name: str
    operations: tuple[Append | Read, ...]
    outcome: Literal["committed", "aborted", "unknown"] = "committed"
    began: float = 0.0
    ended: float = _FOREVER


class Finding(NamedTuple):
    """Something that must not be: its kind in a word or two, and what was seen."""

    kind: str
    what: str


def check(history: Iterable[Transaction], level: str = SERIALIZABLE) -> list[Finding]:
    """
    Return all that is wrong with a history whose transactions had this isolation level.

    Raises: ValueError where a value is appended twice: then nothing can be told from reading it.
    """
    return [*_Check(list(history), level).findings()]


class _Check:
    def __init__(self, history: list[Transaction], level: str) -> None:
        self._level = level
        self._writers: dict[tuple[str, int], Transaction] = {}
        # What a transaction appended to a list, in its order.
        self._appended: dict[tuple[str, str], list[int]] = defaultdict(list)
        for transaction in history:
            for one in transaction.operations:
                if isinstance(one, Append):
                    if self._writers.setdefault((one.list, one.value), transaction) is not transaction:
                        raise ValueError(f"{one.value} is appended to {one.list} twice")
                    self._appended[transaction.name, one.list].append(one.value)
        self._committed = [one for one in history if one.outcome == "committed"]
        self._reads = [
            (reader, one.list, one.values)
            for reader in self._committed
            for one in reader.operations
            if isinstance(one, Read) and one.values is not None
        ]
        self._versions: dict[str, tuple[int, ...]] = {}
        # Since when an append is known to be kept: since it was acknowledged, or read by one that was.
        self._kept_since: dict[str, float] = {one.name: one.ended for one in self._committed}
        self._kept = {one.name: one for one in self._committed}
        for reader, name, values in self._reads:
            if len(values) >= len(self._versions.get(name, ())):
                self._versions[name] = values
            for value in values:
                writer = self._writers.get((name, value))
                if writer is not None and writer.outcome == "unknown":
                    self._kept[writer.name] = writer
                    self._kept_since[writer.name] = min(self._kept_since.get(writer.name, _FOREVER), reader.ended)

    def findings(self) -> Iterator[Finding]:
        told = set()
        for reader, name, values in self._reads:
            # What is wrong with a value is so in every later read.
            for finding, about in self._of_a_read(reader, name, values):
                if (finding.kind, about) not in told:
                    told.add((finding.kind, about))
                    yield finding
        for transaction in self._committed:
            yield from self._of_its_own(transaction)
        yield from self._lost()
        yield from _circles(self._edges(), self._level)

    def _of_a_read(
        self, reader: Transaction, name: str, values: tuple[int, ...]
    ) -> Iterator[tuple[Finding, tuple[object, ...]]]:
        """Yield what is wrong with a read, each with what it is about."""
        said = f"{reader.name} read {name} as {_short(values)}"
        seen: dict[str, list[int]] = defaultdict(list)
        if len(set(values)) < len(values):
            for value in sorted({value for value in values if values.count(value) > 1}):
                yield Finding("duplicate", f"{said}, with {value} more than once"), (name, value)
        for value in dict.fromkeys(values):
            writer = self._writers.get((name, value))
            if writer is None:
                yield Finding("made up", f"{said}, and nobody has appended {value} to it"), (name, value)
                continue
            if writer.outcome == "aborted":
                what = f"{said}, and {writer.name}, which appended {value}, was not kept"
                yield Finding("aborted read", what), (name, value)
            seen[writer.name].append(value)
        for writer_name, part in seen.items():
            whole = self._appended[writer_name, name]
            if writer_name != reader.name and part != whole:
                what = f"{said}, and {writer_name} appended {whole} to it"
                yield Finding("intermediate read", what), (name, writer_name, *part)
        longest = self._versions[name]
        if values != longest[: len(values)]:
            what = f"{said}, and somebody else as {_short(longest)}"
            yield Finding("incompatible orders", what), (reader.name, name)

    def _of_its_own(self, transaction: Transaction) -> Iterator[Finding]:
        before: dict[str, tuple[int, ...]] = {}
        own: dict[str, tuple[int, ...]] = defaultdict(tuple)
        for one in transaction.operations:
            if isinstance(one, Append):
                own[one.list] += (one.value,)
                if self._level == READ_COMMITTED and len(own[one.list]) == 1:
                    # Until it has locked the list, others' commits come between what it reads and what it appends to.
                    before.pop(one.list, None)
                if one.list in before:
                    before[one.list] += (one.value,)
            elif one.values is not None:
                mine = own[one.list]
                same = one.list in before and (self._level != READ_COMMITTED or bool(mine))
                if (same and before[one.list] != one.values) or one.values[len(one.values) - len(mine) :] != mine:
                    expected = _short(before[one.list]) if same else f"ending with {_short(mine)}"
                    yield Finding(
                        "internal",
                        f"{transaction.name} read {one.list} as {_short(one.values)}, which for it was {expected}",
                    )
                before[one.list] = one.values

    def _lost(self) -> Iterator[Finding]:
        """Yield what a read lacks that was known to be kept before it began."""
        by_list: dict[str, list[tuple[float, Transaction, int]]] = defaultdict(list)
        for (name, value), writer in self._writers.items():
            if writer.name in self._kept:
                by_list[name].append((self._kept_since[writer.name], writer, value))
        told = set()
        for reader, name, values in self._reads:
            present = set(values)
            for since, writer, value in by_list[name]:
                if since < reader.began and value not in present and (name, value) not in told:
                    told.add((name, value))
                    kind = "stale read" if value in self._versions[name] else "lost update"
                    yield Finding(
                        kind,
                        f"{writer.name} appended {value} to {name} and was known to be kept, and {reader.name}, which "
                        f"began later, read {_short(values)}",
                    )

    def _edges(self) -> dict[str, dict[str, str]]:
        """Return who has to come before whom, and why: `ww`, `wr` or `rw`, of which the strongest is kept."""
        edges: dict[str, dict[str, str]] = defaultdict(dict)

        def add(first: Transaction | None, second: Transaction | None, why: str) -> None:
            if first is None or second is None or first is second or not {first.name, second.name} <= set(self._kept):
                return
            known = edges[first.name].get(second.name)
            if known is None or _STRENGTH.index(why) < _STRENGTH.index(known):
                edges[first.name][second.name] = why

        for name, version in self._versions.items():
            for value, following in itertools.pairwise(version):
                add(self._writers.get((name, value)), self._writers.get((name, following)), "ww")
        for reader, name, values in self._reads:
            version, mine = self._versions[name], self._appended.get((reader.name, name), ())
            seen = len(values)
            while seen and values[seen - 1] in mine:
                seen -= 1
            if seen:
                add(self._writers.get((name, values[seen - 1])), reader, "wr")
            if seen < len(version):
                add(reader, self._writers.get((name, version[seen])), "rw")
        return edges


_STRENGTH = ("ww", "wr", "rw")
# A circle through an edge of this kind, over others of these.
_CIRCLES = (
    ("ww", ("ww",), "G0"),
    ("wr", ("ww", "wr"), "G1c"),
    ("rw", ("ww", "wr"), "G-single"),
    ("rw", _STRENGTH, "G2"),
)


def _circles(edges: dict[str, dict[str, str]], level: str) -> Iterator[Finding]:
    """Yield the circles that the level forbids, each found once, by the weakest edges that it needs."""
    allowed = {READ_COMMITTED: 0, REPEATABLE_READ: 1, SERIALIZABLE: 2}[level]
    edges = _core(edges)
    told: set[frozenset[str]] = set()
    for through, over, kind in _CIRCLES[: 2 + allowed]:
        for first, others in edges.items():
            for second, why in others.items():
                back = _way(edges, second, first, over) if why == through else None
                if back is None or any(circle <= {first, *back} for circle in told):
                    continue
                told.add(frozenset((first, *back)))
                steps_of_it = zip([first, *back], back, strict=False)
                yield Finding(kind, first + "".join(f" -{edges[one][other]}-> {other}" for one, other in steps_of_it))


def _core(edges: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return the edges without those that lead out of every circle, or only into one."""
    while True:
        targets = {name for others in edges.values() for name in others}
        kept = {
            name: {other: why for other, why in others.items() if edges.get(other)}
            for name, others in edges.items()
            if others and name in targets
        }
        if sum(map(len, kept.values())) == sum(map(len, edges.values())):
            return kept
        edges = kept


def _way(edges: dict[str, dict[str, str]], start: str, end: str, over: tuple[str, ...]) -> list[str] | None:
    """Return the shortest way from start to end, both included."""
    came_from: dict[str, str | None] = {start: None}
    ahead = deque([start])
    while ahead:
        here = ahead.popleft()
        if here == end:
            way = []
            at: str | None = here
            while at is not None:
                way.append(at)
                at = came_from[at]
            return way[::-1]
        for name, why in edges.get(here, {}).items():
            if why in over and name not in came_from:
                came_from[name] = here
                ahead.append(name)
    return None


def _short(values: Iterable[int]) -> str:
    """Return a list as text; of a long one its end."""
    all_of_it = list(values)
    return f"[… {', '.join(map(str, all_of_it[-6:]))}]" if len(all_of_it) > 6 else str(all_of_it)
