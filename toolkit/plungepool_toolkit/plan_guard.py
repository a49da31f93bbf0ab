"""
Whether an index can serve a statement's filter, asked of the planner while sequential scans are discouraged.

A test database holds a handful of rows, on which a scan of the whole table is the best plan. With enable_seqscan off
the planner takes any index that it can use, whatever it costs: what still reads the whole table, or a whole index, no
index serves.

How the planner is asked, what serves, and which index is advised, is `plungepool.plans`, as for a slow statement in
production.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plungepool import plans, statements

if TYPE_CHECKING:
    from plungepool.indexes import Run
    from plungepool.plans import FullScan
    from plungepool_toolkit.round_trips.client import Statement

_PLANNED = frozenset(("select", "with", "insert", "update", "delete", "merge", "values", "table"))


@dataclass(slots=True)
class Verdict:
    """What the planner said of a statement: its full scans, or why it was not asked."""

    shape: str
    #: the same as in the line that production writes of it when it is slow
    fingerprint: str
    scans: list[FullScan] = field(default_factory=list)
    unknown: str = ""


class PlanGuard:
    """Asks for the plan of each statement once; threads: one at a time."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[str, str, tuple[int, ...]], Verdict] = {}

    @property
    def verdicts(self) -> list[Verdict]:
        """What is known of each statement so far."""
        return list(self._verdicts.values())

    def judge(self, statement: Statement, run: Run | None, *, within: bool | None) -> Verdict | None:
        """
        Return what is known of a statement; None for one that has no plan.

        Args: run: executes SQL in the session that will execute the statement, or in one of the same role; None: there
            is none. within: whether a transaction is open there; None: it has failed, and nothing can be asked.
        """
        text = statements.without_cursor(statement.text)
        words = list(statements.split(text))
        if len(words) != 1 or words[0].split()[0] not in _PLANNED:
            return None
        shape = statements.shape(text)
        # A long shape was cut, and is that of several statements.
        key = shape, text if shape.endswith("…") else "", statement.types
        verdict = self._verdicts.get(key)
        if verdict is not None and not verdict.unknown:
            return verdict
        verdict = Verdict(shape, statements.fingerprint(text))
        if run is None:
            verdict.unknown = (
                "there is no session to run EXPLAIN in: pass the fixture `postgres` or `database` to through()"
            )
        elif within is None:
            verdict.unknown = "its transaction had failed"
        else:
            try:
                verdict.scans = plans.unserved(plans.explain(text, statement.types, run, within=within), run, text)
            except Exception as error:  # noqa: BLE001 - whatever the server and the driver raise; it is told
                verdict.unknown = f"the server could not plan it: SQLSTATE {plans.sqlstate(error)}"
        self._verdicts[key] = verdict
        return verdict
