"""
Whether an index can serve a statement's filter, asked of the planner while sequential scans are discouraged.

A test database holds a handful of rows, on which a scan of the whole table is the best plan. With enable_seqscan off
the planner takes any index that it can use, whatever it costs: what still reads the whole table, no index serves.

The plan is the generic one, of the statement prepared with the types that the driver sends, and no values; so it is on
every server from PostgreSQL 12 on. (EXPLAIN's GENERIC_PLAN, from 16 on, takes no types: that a driver's numeric keeps
an index on integers from being used, it does not show.) Nothing is executed.

Source: PostgreSQL manual, "PREPARE" (plan_cache_mode) and "Planner Method Configuration".
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plungepool import statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from plungepool_toolkit.round_trips.client import Statement

    Run = Callable[[str], Sequence[Sequence[Any]]]

_PLANNED = frozenset(("select", "with", "insert", "update", "delete", "merge", "values", "table"))
_SCANS = frozenset(("Seq Scan", "Index Scan", "Index Only Scan"))
_CURSOR = re.compile(r"\s*DECLARE\s+\S+\s+(?:NO\s+SCROLL\s+)?CURSOR\s+FOR\s", re.IGNORECASE)
_NAME = "plungepool_plan_guard"
_SETTINGS = (
    "SELECT pg_catalog.set_config('enable_seqscan', 'off', true), "
    "pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', true), "
    "pg_catalog.set_config('lock_timeout', '1s', true)"
)


@dataclass(frozen=True, slots=True)
class FullScan:
    """A table that is read to its end, and the filter that no index serves; without literals."""

    schema: str
    table: str
    node: str
    filter: str

    def is_of(self, patterns: Sequence[str]) -> bool:
        """Say whether the table is named, with or without its schema, by one of these patterns, as of file names."""
        names = (self.table, f"{self.schema}.{self.table}")
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)


@dataclass(slots=True)
class Verdict:
    """What the planner said of a statement: its full scans, or why it was not asked."""

    shape: str
    #: the same as in the line that production writes of it when it is slow
    fingerprint: str = ""
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
        text = _CURSOR.sub("", statement.text, count=1)
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
            verdict.unknown = "there is no session to ask in: give through() the fixture `postgres` or `database`"
        elif within is None:
            verdict.unknown = "its transaction had failed"
        else:
            try:
                verdict.scans = list(_full_scans(explain(text, statement.types, run, within=within)))
            except Exception as error:  # noqa: BLE001 - whatever the server and the driver raise; it is told
                verdict.unknown = f"the server would not plan it: SQLSTATE {_sqlstate(error)}"
        self._verdicts[key] = verdict
        return verdict


def explain(text: str, types: Sequence[int], run: Run, *, within: bool) -> dict[str, Any]:
    """
    Return the generic plan of one statement, by EXPLAIN's JSON, with sequential scans discouraged; nothing is left.

    Args: types: the oids of its parameters, as far as they were declared. within: a transaction is open, which goes on.
    Raises: what the server refuses.
    """
    end = [f"ROLLBACK TO SAVEPOINT {_NAME}", f"RELEASE SAVEPOINT {_NAME}"] if within else ["ROLLBACK"]
    with contextlib.ExitStack() as stack:
        run(f"SAVEPOINT {_NAME}" if within else "BEGIN")
        for sql in reversed(end):
            stack.callback(run, sql)
        run(_SETTINGS)
        names = ""
        if types:
            oids = ",".join(map(str, types))
            ((names,),) = run(
                "SELECT '(' || pg_catalog.string_agg(CASE WHEN t = 0 THEN 'unknown' "  # noqa: S608 - numbers
                "ELSE pg_catalog.format_type(t, NULL) END, ', ' ORDER BY n) || ')' "
                f"FROM pg_catalog.unnest('{{{oids}}}'::oid[]) WITH ORDINALITY AS o (t, n)"
            )
        run(f"PREPARE {_NAME} {names} AS {text}")
        # A prepared statement outlives the transaction, and goes when that can be asked for again.
        ending = stack.pop_all()
        stack.callback(run, f"DEALLOCATE {_NAME}")
        stack.push(ending)
        ((count,),) = run(
            "SELECT pg_catalog.cardinality(parameter_types) FROM pg_catalog.pg_prepared_statements "  # noqa: S608
            f"WHERE name = '{_NAME}'"
        )
        values = f" ({', '.join(['NULL'] * count)})" if count else ""
        ((plan,),) = run(f"EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE {_NAME}{values}")
    whole = json.loads(plan) if isinstance(plan, str) else plan
    top: dict[str, Any] = whole[0]["Plan"]
    return top


def _full_scans(node: dict[str, Any]) -> Iterator[FullScan]:
    if node.get("Node Type") in _SCANS and "Filter" in node and "Index Cond" not in node:
        what = statements.shape(str(node["Filter"]))
        yield FullScan(str(node.get("Schema", "")), str(node.get("Relation Name")), str(node["Node Type"]), what)
    for child in node.get("Plans", ()):
        yield from _full_scans(child)


def _sqlstate(error: Exception) -> str:
    state = getattr(error, "sqlstate", None)
    if state is None and error.args and isinstance(error.args[0], dict):  # pg8000's
        state = error.args[0].get("C")
    return str(state or type(error).__name__)
