"""Which parameter to set to what, in a sentence, and where it stands; pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from plungepool_toolkit.budget.hardware import smallest_class_for
from plungepool_toolkit.budget.rows import together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plungepool_toolkit.budget.databases import Database, Use
    from plungepool_toolkit.budget.rows import Row
    from plungepool_toolkit.budget.stacks import Knob

Advice = tuple[str, "Knob | None"]


def fit(database: Database, rows: Sequence[Row], limit: float, instead: str = "") -> Advice:
    """Return what makes these rows open no more than a limit; `instead`, or a larger database, where nothing does."""
    pooled = [row for row in rows if row.use.pool_size > 1]
    if pooled and sum(row.open.low / row.use.pool_size for row in rows) <= limit:
        knob = max(pooled, key=lambda row: row.open.low).use.knob("POOL_SIZE")
        return f"Set {knob.name} to 1: an environment serves one invocation at a time.", knob
    shared = [row for row in rows if row.use.function.at_once is None]
    own = sum(row.open.low for row in rows if row.use.function.at_once is not None)
    if len(shared) > 1 and (each := math.floor((limit - own) / sum(row.piece for row in shared))) >= 1:
        names = " and ".join(row.use.function.name for row in shared)
        return f"Set ReservedConcurrentExecutions of {names} to {each} each.", shared[0].use.function.knob
    total = together(rows).low
    movable = [row for row in rows if row.use.function.knob and row.open.low > 0]
    for row in sorted(movable, key=lambda one: -one.open.low):
        if (words := _lower(row, row.open.low - (total - limit))) is not None:
            return f"Set {words}.", row.use.function.knob
    # No single one will do: each in proportion.
    fixed = total - sum(row.open.low for row in movable)
    share = (limit - fixed) / max(total - fixed, 1)
    parts = [_lower(row, row.open.low * share) for row in movable]
    if len(parts) > 1 and all(parts):
        return f"Set {' and '.join(part for part in parts if part)}.", movable[0].use.function.knob
    return instead or _more(database, total), database.knob


def _lower(row: Row, connections: float) -> str | None:
    """Return what to set so that a function opens no more connections than that; None if nothing does."""
    function = row.use.function
    now, target = row.open.low / row.piece, math.floor(connections / row.piece)
    if function.knob is None or not function.least <= target < now:
        return None
    was = "is not set" if function.at_once is None else f"now {now:,.0f}"
    return f"{function.knob.name} to {target} ({was})"


def pool(use: Use, words: str) -> Advice:
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
        return f"Set {database.knob.name} to {larger}, or put an RDS Proxy before it (PLUNGEPOOL_ENDPOINT proxy)."
    return "Put an RDS Proxy before it (PLUNGEPOOL_ENDPOINT proxy), or take a larger database."
