"""
Why a statement is slow, as far as the planner knows: its plan's shape, the tables it reads whole, the index that would
serve. Nothing is executed.

The plan is the generic one, of the statement prepared with the types that the driver sends, and no values; so it is on
every server from PostgreSQL 12 on. (EXPLAIN's GENERIC_PLAN, from 16 on, takes no types: that a driver's numeric keeps
an index on integers from being used, it does not show.) No literal of a statement leaves this module.

Source: PostgreSQL manual, "PREPARE" (plan_cache_mode) and "Planner Method Configuration".
"""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from . import indexes, statements

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .indexes import Run

_SCANS = frozenset(("Seq Scan", "Index Scan", "Index Only Scan"))
_BY_INDEX = frozenset(("Index Scan", "Index Only Scan", "Bitmap Heap Scan"))
_NAME = "plungepool_plan"
#: from how many rows, or blocks of 8 kB, a table is large
LARGE_ROWS, LARGE_PAGES = 10_000, 1000
_SHAPE_AT_MOST = 500
# Of the tables that are read whole so many are told, the largest: one with partitions may have thousands.
_SCANS_AT_MOST = 20


@dataclass(frozen=True, slots=True)
class FullScan:
    """A table that is read to its end, and the filter that no index serves; without literals."""

    schema: str
    table: str
    node: str = field(compare=False)
    filter: str
    #: the columns that an index for it would be of
    wanted: tuple[indexes.Wanted, ...] = field(default=(), compare=False)
    #: the sentence that makes an index for it, once `advised`; empty where none is known that would serve
    index: str = field(default="", compare=False)
    #: the rows that the planner expects to pass the filter
    estimated_rows: int = field(default=0, compare=False)
    #: the index that is read to its end in place of the table: the filter does not name its first column
    by: str = field(default="", compare=False)
    #: whether it may be that fewer rows pass: the first of them in their order, or those of a value, which a generic
    #: plan does not know
    may_be_few: bool = field(default=False, compare=False)

    @property
    def place(self) -> tuple[str, str]:
        """Schema and table."""
        return self.schema, self.table

    @property
    def name(self) -> str:
        """The table, with its schema, quoted where SQL wants it so."""
        return f"{indexes.quoted(self.schema)}.{indexes.quoted(self.table)}"

    @property
    def read_whole(self) -> str:
        """What is read to its end: the table, or an index on it."""
        table = f"{self.schema}.{self.table}"
        return f"{self.by} on {table}" if self.by else table

    def is_of(self, patterns: Sequence[str]) -> bool:
        """Say whether the table is named, with or without its schema, by one of these patterns, as of file names."""
        names = (self.table, f"{self.schema}.{self.table}")
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)


def explain(
    text: str, types: Sequence[int], run: Run, *, within: bool, discourage: bool = True, limit_ms: int = 1000
) -> dict[str, Any]:
    """
    Return the generic plan of one statement, by EXPLAIN's JSON; nothing is left of it in the session.

    Args: types: the oids of its parameters, as far as they were declared. within: a transaction is open, which goes on.
        discourage: sequential scans, so that one in the plan says that no index can serve. A test's database holds a
        handful of rows, on which a scan of the whole table is the best plan. limit_ms: how long the server may work on
        one statement, outside the user's transaction; it waits for a lock for half of it.
    Raises: what the server refuses.
    """
    settings = {"plan_cache_mode": "force_generic_plan", "lock_timeout": f"{limit_ms // 2}ms"}
    if discourage:
        settings["enable_seqscan"] = "off"
    if not within:
        settings["statement_timeout"] = f"{limit_ms}ms"
    end = [f"ROLLBACK TO SAVEPOINT {_NAME}", f"RELEASE SAVEPOINT {_NAME}"] if within else ["ROLLBACK"]
    prepared = False
    run(f"SAVEPOINT {_NAME}" if within else "BEGIN READ ONLY")
    try:
        calls = ", ".join(f"pg_catalog.set_config('{name}', '{value}', true)" for name, value in settings.items())
        run(f"SELECT {calls}")
        names = ""
        if types:
            oids = ",".join(map(str, types))
            ((names,),) = run(
                "SELECT '(' || pg_catalog.string_agg(CASE WHEN t = 0 THEN 'unknown' "
                "ELSE pg_catalog.format_type(t, NULL) END, ', ' ORDER BY n) || ')' "
                f"FROM pg_catalog.unnest('{{{oids}}}'::oid[]) WITH ORDINALITY AS o (t, n)"
            )
        run(f"PREPARE {_NAME} {names} AS {text}")
        prepared = True
        ((count,),) = run(
            "SELECT pg_catalog.cardinality(parameter_types) FROM pg_catalog.pg_prepared_statements "
            f"WHERE name = '{_NAME}'"
        )
        values = f" ({', '.join(['NULL'] * count)})" if count else ""
        ((plan,),) = run(f"EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE {_NAME}{values}")
        # Behind a pooler that nobody has named, the next transaction may be in another session.
        run(f"DEALLOCATE {_NAME}")
        prepared = False
    finally:
        try:
            for sql in end:
                run(sql)
        finally:
            # It outlives the transaction, and goes when that can be asked for again.
            if prepared:
                _forget(run)
    whole = json.loads(plan) if isinstance(plan, str) else plan
    top: dict[str, Any] = whole[0]["Plan"]
    return top


def _forget(run: Run) -> None:
    try:
        run(f"DEALLOCATE {_NAME}")
    except Exception as error:
        # Behind a pooler that nobody has named it is in another session: what kept the plan from being told is.
        if sqlstate(getattr(error, "orig", None) or error) != "26000":
            raise


def unserved(node: dict[str, Any], run: Run, text: str = "") -> list[FullScan]:
    """
    Return the tables of a plan whose filter no index serves, each with the index that would: those that are read to
    their end, and those of which an index is, since the filter does not name its first column.

    Args: node: a plan that was made while sequential scans were discouraged. run: executes SQL in the same session.
        text: the statement, as `advised` takes it.
    """
    return [scan for scan, _ in advised(text, _unserved(node, run), run)]


def _unserved(node: dict[str, Any], run: Run) -> list[FullScan]:
    return [*full_scans(node), *_skims(node, run)]


def advised(text: str, scans: Sequence[FullScan], run: Run) -> list[tuple[FullScan, indexes.Table]]:
    """
    Return a statement's full scans with the sentences of the indexes that would serve them, and what is known of their
    tables: one round trip, if there are any.

    Args: text: an EXPLAIN does not show by which collation it compares. Raises: what the server refuses.
    """
    asked: dict[tuple[str, str], list[indexes.Wanted]] = {}
    for one in scans:
        asked.setdefault(one.place, []).extend(one.wanted)
    known = indexes.ask(asked, run, collates="collate" in statements.tokens(text))
    tables = [known.get(one.place, _UNKNOWN) for one in scans]
    return [(_advised(one, table), table) for one, table in zip(scans, tables, strict=True)]


_UNKNOWN = indexes.Table(0, 0, frozenset())


def _advised(scan: FullScan, table: indexes.Table) -> FullScan:
    columns = indexes.columns([one for one in scan.wanted if one in table.usable])
    return replace(scan, index=f"CREATE INDEX CONCURRENTLY ON {scan.name} ({', '.join(columns)})" if columns else "")


class _Above(NamedTuple):
    """What a node's rows are for, above it."""

    #: what they are sorted by
    keys: Sequence[str] = ()
    #: no more than the first of them are wanted
    is_limited: bool = False
    #: so many share them, if it is made for that
    workers: int = 0


def full_scans(node: dict[str, Any], *, unfiltered: bool = False) -> Iterator[FullScan]:
    """
    Yield the tables that a plan reads to their end for a filter.

    Args: unfiltered: also those that are read without a filter.
    """
    for one, above in _nodes(node):
        kind, condition = str(one.get("Node Type")), str(one.get("Filter", ""))
        if kind in _SCANS and "Index Cond" not in one and (condition or (unfiltered and kind == "Seq Scan")):
            yield _scan(one, condition, above)


def _scan(node: dict[str, Any], condition: str, above: _Above, by: str = "") -> FullScan:
    schema, table = _place(node)
    wanted = indexes.wanted(condition, _alias(node), above.keys)
    # A plan has the share of one of the workers; the leader's is less, the more there are.
    shares = above.workers + max(0.0, 1 - 0.3 * above.workers) if node.get("Parallel Aware") else 1.0
    return FullScan(
        schema,
        table,
        "Index Scan" if by else str(node.get("Node Type")),
        statements.shape(condition),
        wanted,
        estimated_rows=round(int(node.get("Plan Rows", 0)) * shares),
        by=by,
        may_be_few=indexes.has_parameter(condition) or (above.is_limited and indexes.sorts(wanted)),
    )


_NOTHING_ABOVE = _Above()


def _nodes(node: dict[str, Any], above: _Above = _NOTHING_ABOVE) -> Iterator[tuple[dict[str, Any], _Above]]:
    """Yield each node of a plan, with what is above it."""
    yield node, above
    kind = node.get("Node Type")
    if kind == "Sort":
        above = above._replace(keys=node.get("Sort Key", ()))
    elif kind == "Limit":
        above = above._replace(is_limited=True)
    elif kind in ("Gather", "Gather Merge"):
        above = above._replace(workers=int(node.get("Workers Planned", 0)))
    elif kind != "Result":
        above = _Above(workers=above.workers)
    for child in node.get("Plans", ()):
        yield from _nodes(child, above)


def _place(node: dict[str, Any]) -> tuple[str, str]:
    return str(node.get("Schema", "")), str(node.get("Relation Name"))


def _alias(node: dict[str, Any]) -> str:
    return str(node.get("Alias", node.get("Relation Name")))


def _skims(node: dict[str, Any], run: Run) -> Iterator[FullScan]:
    """
    Yield the tables of which a plan reads a whole index, for a filter that names none of any index's first column.

    A join's condition is none of the table's own: another plan need not have it.
    """
    aliases = {_alias(one) for one, _ in _nodes(node) if "Alias" in one}
    read = [
        (one, above, conditions)
        for one, above in _nodes(node)
        if one.get("Node Type") in _BY_INDEX and (conditions := list(_index_conditions(one)))
        if not any(_names(aliases - {_alias(one)}, condition) for _, condition in conditions)
    ]
    if not read:
        return
    firsts = _first_columns({_place(one) for one, _, _ in read}, run)
    for one, above, conditions in read:
        own = [str(one[part]) for part in ("Index Cond", "Recheck Cond", "Filter") if part in one]
        whole = own[0] if len(own) == 1 else f"({' AND '.join(own)})"
        known = firsts.get(_place(one), {})
        served = [
            _is_served(index, condition, known, _columns(condition, _alias(one)) + _columns(whole, _alias(one)))
            for index, condition in conditions
        ]
        # What AND joins is served by one of its parts.
        joined = any(child.get("Node Type") == "BitmapAnd" for child in one.get("Plans", ()))
        if not (any(served) if joined else all(served)):
            yield _scan(one, whole, above, conditions[served.index(False)][0])


def _index_conditions(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the indexes that a node reads by a condition, each with that."""
    if "Index Name" in node and "Index Cond" in node:
        yield str(node["Index Name"]), str(node["Index Cond"])
    for child in node.get("Plans", ()):
        if str(child.get("Node Type")).startswith("Bitmap"):
            yield from _index_conditions(child)


def _names(aliases: set[str], condition: str) -> bool:
    """Say whether a condition has a column of one of these tables."""
    bare = indexes.LITERAL.sub("", condition)
    return any(re.search(rf"(?<![\w$\"]){re.escape(indexes.quoted(alias))}\.", bare) for alias in aliases)


def _columns(condition: str, alias: str) -> list[str]:
    return indexes.columns(indexes.wanted(condition, alias))


def _is_served(index: str, condition: str, firsts: dict[str, str], columns: Sequence[str]) -> bool:
    """
    Say whether a condition is one on an index's first column, or could be on another's.

    In a test's database all of them cost the same. An index of which nothing is known serves.
    """
    first = firsts.get(index, "")
    if not first or re.search(rf"\.{re.escape(first)}(?![\w$])", condition):
        return True
    return any(one in columns for one in firsts.values())


def _first_columns(tables: set[tuple[str, str]], run: Run) -> dict[tuple[str, str], dict[str, str]]:
    """
    Return the first column of each index of these tables; empty where it is an expression, which a condition writes
    otherwise, where the index is of a part of the rows, or where the order of its columns does not matter.
    """
    places = " OR ".join(
        f"(nspname OPERATOR(pg_catalog.=) {indexes.literal(schema)} "
        f"AND t.relname OPERATOR(pg_catalog.=) {indexes.literal(table)})"
        for schema, table in sorted(tables)
    )
    found: dict[tuple[str, str], dict[str, str]] = {}
    for schema, table, index, first, is_plain in run(
        "SELECT nspname, t.relname, c.relname, pg_catalog.pg_get_indexdef(c.oid, 1, true), "
        "i.indpred IS NULL AND a.amname OPERATOR(pg_catalog.=) 'btree' FROM pg_catalog.pg_index i "
        "JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.indexrelid "
        "JOIN pg_catalog.pg_am a ON a.oid OPERATOR(pg_catalog.=) c.relam "
        "JOIN pg_catalog.pg_class t ON t.oid OPERATOR(pg_catalog.=) i.indrelid "
        "JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.relnamespace "
        f"WHERE i.indisvalid AND ({places})"
    ):
        plain = str(first) if is_plain and re.fullmatch(indexes.WORD, str(first)) else ""
        found.setdefault((str(schema), str(table)), {})[str(index)] = plain
    return found


def shape(node: dict[str, Any]) -> str:
    """Return a plan on one line, without conditions: `Sort(Seq Scan on shop.orders)`."""
    whole = _shape(node)
    return whole if len(whole) <= _SHAPE_AT_MOST else whole[: _SHAPE_AT_MOST - 1] + "…"


def _shape(node: dict[str, Any]) -> str:
    what = str(node.get("Node Type"))
    if "Relation Name" in node:
        what += f" on {node.get('Schema', '')}.{node['Relation Name']}"
    if "Index Name" in node:
        what += f" by {node['Index Name']}"
    inner = ", ".join(_shape(child) for child in node.get("Plans", ()))
    return f"{what}({inner})" if inner else what


@dataclass(frozen=True, slots=True)
class Why:
    """What the planner says of a slow statement; without literals."""

    plan: str
    estimated_rows: int
    #: the large tables that it reads whole, with the rows that they are thought to hold
    scans: list[tuple[FullScan, int]]
    #: and how many more there are
    left_out: int = 0

    @property
    def indexes(self) -> list[str]:
        """The sentences that make the indexes that would serve."""
        return list(dict.fromkeys(scan.index for scan, _ in self.scans if scan.index))

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "plan": self.plan,
            "estimated_rows": self.estimated_rows,
            "full_scans": [
                {
                    "table": scan.name,
                    "table_rows": rows,
                    "estimated_rows": scan.estimated_rows,
                    "filter": scan.filter,
                }
                for scan, rows in self.scans
            ],
            "indexes": self.indexes,
        } | ({"full_scans_left_out": self.left_out} if self.left_out else {})


def why(text: str, types: Sequence[int], run: Run, *, limit_ms: int = 1000) -> Why:
    """
    Ask the planner for the plan of a statement that reads, in a transaction of its own: about eight round trips, twice
    that where it reads a large table whole. An index is advised only where none serves already (`unserved`), and not
    where the planner knows that half of the rows pass the filter.

    Raises: what the server refuses; ValueError for a statement that does not only read.
    """
    text = statements.without_cursor(text)
    if not only_reads(text):
        raise ValueError("only statements that read are explained")
    top = explain(text, types, run, within=False, discourage=False, limit_ms=limit_ms)
    scans = [
        (scan, table)
        for scan, table in advised(text, [*full_scans(top, unfiltered=True), *_skims(top, run)], run)
        if table.rows >= LARGE_ROWS or table.pages >= LARGE_PAGES
    ]
    if any(scan.filter and not scan.by for scan, _ in scans):
        found = _unserved(explain(text, types, run, within=False, limit_ms=limit_ms), run)
        # Where an index serves, the planner knows it, and finds it dearer than the whole table: another one like it is
        # no help. A table's filter is written otherwise where an index is read by a part of it.
        skimmed = {scan.name for scan in found if scan.by}
        scans = [
            (scan if scan.by or scan in found or scan.name in skimmed else replace(scan, index=""), table)
            for scan, table in scans
        ]
    scans = [(replace(scan, index="") if _takes_most(scan, table) else scan, table) for scan, table in scans]
    told = sorted(scans, key=lambda one: -one[1].rows)[:_SCANS_AT_MOST] if len(scans) > _SCANS_AT_MOST else scans
    known = [(scan, table.rows) for scan, table in told]
    return Why(shape(top), int(top.get("Plan Rows", 0)), known, len(scans) - len(told))


def _takes_most(scan: FullScan, table: indexes.Table) -> bool:
    """Say whether so many rows pass the filter that to read all is cheaper, whatever index there is."""
    return scan.estimated_rows * 2 >= table.rows and not scan.may_be_few


def only_reads(text: str) -> bool:
    """Say whether a text is one SELECT that reads a table, and neither writes nor locks. Pure."""
    found = list(statements.split(text))
    if len(found) != 1:
        return False
    words = found[0]
    return words.split()[0] in ("select", "with") and " from " in words and not _WRITES.search(words)


# A word that is quoted, and so a name, stands in its quotes.
_WRITES = re.compile(r" (?:insert|update|delete|merge|into|for (?:no|key|share)) ")


def sqlstate(error: BaseException) -> str:
    """Return an error's SQLSTATE, of whichever driver; its class where it has none."""
    state = getattr(error, "sqlstate", None)
    if state is None and error.args and isinstance(error.args[0], dict):  # pg8000's
        state = error.args[0].get("C")
    return str(state or type(error).__name__)
