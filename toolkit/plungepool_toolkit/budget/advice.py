"""Which parameter to set to what, in a sentence, and where it stands; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plungepool_toolkit.budget.hardware import smallest_class_for
from plungepool_toolkit.budget.rows import together

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from plungepool_toolkit.budget.databases import Database, Use
    from plungepool_toolkit.budget.rows import Row
    from plungepool_toolkit.budget.stacks import Knob


@dataclass(frozen=True, slots=True)
class Setting:
    """One number to lower: `names`: what is set to it, each by the same value; `text`: how that is said."""

    names: tuple[str, ...]
    value: int
    #: With the value's place left open: {value}.
    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """What to set: numbers that other findings may want lower still."""

    settings: tuple[Setting, ...]

    def said(self, lowest: Mapping[str, int]) -> str:
        """Return the sentence, with the lowest value that anything is asked to be set to."""
        parts = (
            one.text.replace("{value}", str(min(lowest.get(name, one.value) for name in one.names)))
            for one in self.settings
        )
        return f"Set {' and '.join(parts)}."


Advice = tuple["str | Words", "Knob | None"]


def lowest_of(words: Iterable[Words]) -> dict[str, int]:
    """
    Return one value for each thing that is to be set: with two of them, a reader would not know which to take.
    """
    settings = [one for each in words for one in each.settings]
    lowest: dict[str, int] = {}
    for _ in range(len(settings)):  # those that are set together have one value, which may lower the others' in turn
        before = dict(lowest)
        for one in settings:
            value = min([one.value, *(lowest[name] for name in one.names if name in lowest)])
            lowest |= dict.fromkeys(one.names, value)
        if lowest == before:
            break
    return lowest


def fit(database: Database, rows: Sequence[Row], limit: float, instead: str = "") -> Advice:
    """Return what makes these rows open no more than a limit; `instead`, or a larger database, where nothing does."""
    pooled = [row for row in rows if row.use.pool_size > 1]
    if pooled and sum(row.open.low / row.use.pool_size for row in rows) <= limit:
        knob = max(pooled, key=lambda row: row.open.low).use.knob("POOL_SIZE")
        return f"Set {knob.name} to 1: an environment serves one invocation at a time.", knob
    shared = [row for row in rows if row.use.function.at_once is None]
    own = sum(row.open.low for row in rows if row.use.function.at_once is not None)
    if len(shared) > 1 and (each := math.floor((limit - own) / sum(row.piece for row in shared))) >= 1:
        knobs = [row.use.function.knob for row in shared]
        text = f"ReservedConcurrentExecutions of {' and '.join(row.use.function.name for row in shared)}"
        names = tuple(dict.fromkeys(knob.name for knob in knobs if knob))
        return Words((Setting(names, each, f"{text} to {{value}} each"),)), knobs[0]
    total = together(rows).low
    movable = _by_knob(row for row in rows if row.use.function.knob and row.open.low > 0)
    for group in sorted(movable, key=lambda one: -_open(one)):
        if (setting := _lower(group, _open(group) - (total - limit))) is not None:
            return Words((setting,)), group[0].use.function.knob
    # No single one will do: each in proportion.
    fixed = total - sum(map(_open, movable))
    share = (limit - fixed) / max(total - fixed, 1)
    parts = [_lower(group, _open(group) * share) for group in movable]
    found = tuple(part for part in parts if part)
    if len(parts) > 1 and len(found) == len(parts):
        return Words(found), movable[0][0].use.function.knob
    return instead or _more(database, total), database.knob


def _by_knob(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows that one change lowers together: several functions may take their value from one parameter."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.use.function.knob is not None:
            groups.setdefault(row.use.function.knob.name, []).append(row)
    return [*groups.values()]


def _open(rows: Iterable[Row]) -> float:
    return sum(row.open.low for row in rows)


def _lower(rows: Sequence[Row], connections: float) -> Setting | None:
    """Return what to set so that these functions open no more connections than that; None if nothing does."""
    function, piece = rows[0].use.function, sum(row.piece for row in rows)
    now, target = _open(rows) / piece, math.floor(connections / piece)
    if function.knob is None or not max(row.use.function.least for row in rows) <= target < now:
        return None
    was = "not set" if function.at_once is None else f"now {now:,.0f}"
    name = function.knob.name
    return Setting((name,), target, f"{name} to {{value}} ({was})")


def pool(use: Use, words: str) -> tuple[str, Knob]:
    """Return how to set PLUNGEPOOL_POOL."""
    knob = use.knob("POOL")
    what = knob.name if knob.name.startswith("the parameter") else f"PLUNGEPOOL_POOL of {use.function.name}"
    return f"Set {what} to {words}", knob


def _more(database: Database, connections: float) -> str:
    if database.kind == "dsql":
        return "Reserve concurrency for its functions."
    if database.kind == "express":
        return "Set PLUNGEPOOL_POOL to adaptive, and reserve concurrency for its functions."
    instance_class = database.size.partition(",")[0]
    larger = smallest_class_for(connections + database.reserved + database.others, instance_class)
    if larger and database.knob and larger != instance_class:
        return f"Set {database.knob.name} to {larger}, or use RDS Proxy (PLUNGEPOOL_ENDPOINT proxy)."
    return "Use RDS Proxy (PLUNGEPOOL_ENDPOINT proxy), or a larger database."
