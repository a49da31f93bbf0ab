"""
Why a statement is slow, as far as the planner knows: its plan's shape, the tables it reads whole, the index that would
serve. Nothing is executed.

The plan is the generic one, of the statement prepared with the types that the driver sends, and no values; so it is on
every server from PostgreSQL 12 on. (EXPLAIN's GENERIC_PLAN, from 16 on, takes no types: that a driver's numeric keeps
an index on integers from being used, it does not show.) No literal of a statement leaves this module.

Source: PostgreSQL manual, "PREPARE" (plan_cache_mode), "Planner Method Configuration" and "Multicolumn Indexes".
"""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    #: executes one statement of SQL, and returns its rows
    Run = Callable[[str], Sequence[Sequence[Any]]]

_SCANS = frozenset(("Seq Scan", "Index Scan", "Index Only Scan"))
_BY_INDEX = frozenset(("Index Scan", "Index Only Scan", "Bitmap Heap Scan"))
_NAME = "plungepool_plan"
#: from how many rows, or blocks of 8 kB, a table is large
LARGE_ROWS, LARGE_PAGES = 10_000, 1000
# An index of more columns is rarely what was meant.
_COLUMNS_AT_MOST = 4
_SHAPE_AT_MOST = 500

_QUOTED = r'"(?:[^"]|"")+"'
_WORD = rf"(?:{_QUOTED}|[^\W\d][\w$]*)"
_COMPARED = re.compile(
    rf"(?P<open>\()?(?P<alias>{_WORD})\.(?P<column>{_WORD})(?(open)\)(?:::(?P<cast>[\w ]+(?:\(\d+\))?))?)"
    r" (?P<sign>=|<=|>=|<|>|IS NULL)(?: (?P<other>.*))?",
    re.DOTALL,
)
_TURNED = re.compile(
    rf"(?P<other>\$\d+|'(?:[^']|'')*'::[\w ]+|\d+) (?P<sign>=|<=|>=|<|>) (?P<alias>{_WORD})\.(?P<column>{_WORD})"
)
_KEY = re.compile(rf"(?P<alias>{_WORD})\.(?P<column>{_WORD})(?P<order>(?: DESC)?(?: NULLS (?:FIRST|LAST))?)")
_LITERAL = re.compile("'(?:[^']|'')*'")
# A column of varchar is compared as text, by an index on the column.
_SAME = frozenset((None, "text"))


@dataclass(frozen=True, slots=True)
class FullScan:
    """A table that is read to its end, and the filter that no index serves; without literals."""

    schema: str
    table: str
    node: str = field(compare=False)
    filter: str
    #: the sentence that makes an index for it; empty where none is known that would serve
    index: str = field(default="", compare=False)
    #: the rows that the planner expects to pass the filter
    estimated_rows: int = field(default=0, compare=False)
    #: the index that is read to its end in place of the table: the filter does not name its first column
    by: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The table, with its schema, quoted where SQL wants it so."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"

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


def unserved(node: dict[str, Any], run: Run) -> list[FullScan]:
    """
    Return the tables of a plan whose filter no index serves, each with the index that would: those that are read to
    their end, and those of which an index is, since the filter does not name its first column.

    Args: node: a plan that was made while sequential scans were discouraged. run: executes SQL in the same session.
    """
    return [*full_scans(node), *_skims(node, run)]


def full_scans(node: dict[str, Any], *, unfiltered: bool = False) -> Iterator[FullScan]:
    """
    Yield the tables that a plan reads to their end for a filter; each with the index that would serve it.

    Args: unfiltered: also those that are read without a filter.
    """
    for one, keys in _nodes(node):
        kind, condition = str(one.get("Node Type")), str(one.get("Filter", ""))
        if kind in _SCANS and "Index Cond" not in one and (condition or (unfiltered and kind == "Seq Scan")):
            yield _scan(one, condition, keys)


def _scan(node: dict[str, Any], condition: str, keys: Sequence[str], by: str = "") -> FullScan:
    schema, table = _place(node)
    columns = index_columns(condition, _alias(node), keys)
    index = f"CREATE INDEX CONCURRENTLY ON {quoted(schema)}.{quoted(table)} ({', '.join(columns)})" if columns else ""
    kind, estimated = "Index Scan" if by else str(node.get("Node Type")), int(node.get("Plan Rows", 0))
    return FullScan(schema, table, kind, statements.shape(condition), index, estimated, by)


def _nodes(node: dict[str, Any], keys: Sequence[str] = ()) -> Iterator[tuple[dict[str, Any], Sequence[str]]]:
    """Yield each node of a plan, with what its rows are sorted by above it."""
    yield node, keys
    kind = node.get("Node Type")
    if kind == "Sort":
        keys = node.get("Sort Key", ())
    elif kind not in ("Limit", "Gather", "Gather Merge", "Result"):
        keys = ()
    for child in node.get("Plans", ()):
        yield from _nodes(child, keys)


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
        (one, keys, conditions)
        for one, keys in _nodes(node)
        if one.get("Node Type") in _BY_INDEX and (conditions := list(_index_conditions(one)))
        if not any(_names(aliases - {_alias(one)}, condition) for _, condition in conditions)
    ]
    if not read:
        return
    firsts = _first_columns({_place(one) for one, _, _ in read}, run)
    for one, keys, conditions in read:
        own = [str(one[part]) for part in ("Index Cond", "Recheck Cond", "Filter") if part in one]
        whole = own[0] if len(own) == 1 else f"({' AND '.join(own)})"
        known = firsts.get(_place(one), {})
        served = [
            _is_served(
                index, condition, known, index_columns(condition, _alias(one)) + index_columns(whole, _alias(one))
            )
            for index, condition in conditions
        ]
        # What AND joins is served by one of its parts.
        joined = any(child.get("Node Type") == "BitmapAnd" for child in one.get("Plans", ()))
        if not (any(served) if joined else all(served)):
            yield _scan(one, whole, keys, conditions[served.index(False)][0])


def _index_conditions(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the indexes that a node reads by a condition, each with that."""
    if "Index Name" in node and "Index Cond" in node:
        yield str(node["Index Name"]), str(node["Index Cond"])
    for child in node.get("Plans", ()):
        if str(child.get("Node Type")).startswith("Bitmap"):
            yield from _index_conditions(child)


def _names(aliases: set[str], condition: str) -> bool:
    """Say whether a condition has a column of one of these tables."""
    bare = _LITERAL.sub("", condition)
    return any(re.search(rf"(?<![\w$\"]){re.escape(quoted(alias))}\.", bare) for alias in aliases)


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
        f"(nspname OPERATOR(pg_catalog.=) {_literal(schema)} AND t.relname OPERATOR(pg_catalog.=) {_literal(table)})"
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
        plain = str(first) if is_plain and re.fullmatch(_WORD, str(first)) else ""
        found.setdefault((str(schema), str(table)), {})[str(index)] = plain
    return found


def index_columns(condition: str, alias: str, keys: Sequence[str] = ()) -> list[str]:
    """
    Return the columns of an index that serves a filter, as EXPLAIN (VERBOSE) writes it: those that are compared for
    equality, then one that a range is taken of, else those that are sorted by. Empty where a filter names none. Pure.
    """
    equal: list[str] = []
    ranges: list[str] = []
    for part in _conjunction(condition):
        found = _COMPARED.fullmatch(part) or _TURNED.fullmatch(part)
        if found is None or _bare(found["alias"]) != alias:
            continue
        groups = found.groupdict()
        other = _LITERAL.sub("", groups.get("other") or "")
        if groups.get("cast") not in _SAME or f"{found['alias']}." in other:
            continue
        chosen = equal if found["sign"] in ("=", "IS NULL") else ranges
        if found["column"] not in equal + ranges:
            chosen.append(found["column"])
    columns = equal + ranges[:1]
    if columns and not ranges:
        columns += _sorted_by(keys, alias, equal)
    return columns[:_COLUMNS_AT_MOST]


def _sorted_by(keys: Sequence[str], alias: str, equal: Sequence[str]) -> list[str]:
    found = [_KEY.fullmatch(key) for key in keys]
    known = [one for one in found if one is not None and _bare(one["alias"]) == alias]
    if len(known) != len(keys):
        return []
    known = [one for one in known if one["column"] not in equal]
    # An index is read backwards as well.
    if len({one["order"] for one in known}) == 1 and known[0]["order"] in ("", " DESC"):
        return [one["column"] for one in known]
    return [one["column"] + one["order"] for one in known]


def _conjunction(condition: str) -> Iterator[str]:
    """Yield the parts that AND joins, without the brackets around them."""
    while condition.startswith("(") and _closes(condition) == len(condition) - 1:
        condition = condition[1:-1]
    parts, depth, start, at = [], 0, 0, 0
    while at < len(condition):
        sign = condition[at]
        if sign in "'\"":
            at = condition.find(sign, at + 1)
            if at < 0:
                return
        depth += (sign == "(") - (sign == ")")
        if depth == 0 and condition.startswith(" AND ", at):
            parts.append(condition[start:at])
            start = at = at + 5
            continue
        if depth == 0 and condition.startswith(" OR ", at):
            return
        at += 1
    if not parts:
        yield condition
        return
    for part in (*parts, condition[start:]):
        yield from _conjunction(part)


def _closes(condition: str) -> int:
    """Return where the bracket closes that the text begins with; -1: nowhere."""
    depth = at = 0
    while at < len(condition):
        sign = condition[at]
        if sign in "'\"":
            at = condition.find(sign, at + 1)
            if at < 0:
                return -1
        depth += (sign == "(") - (sign == ")")
        if not depth:
            return at
        at += 1
    return -1


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
        }


def why(text: str, types: Sequence[int], run: Run, *, limit_ms: int = 1000) -> Why:
    """
    Ask the planner for the plan of a statement that reads, in a transaction of its own: about eight round trips, twice
    that where it reads a large table whole. An index is advised only where none serves already (`unserved`).

    Raises: what the server refuses; ValueError for a statement that does not only read.
    """
    text = statements.without_cursor(text)
    if not only_reads(text):
        raise ValueError("only a statement that reads is explained")
    top = explain(text, types, run, within=False, discourage=False, limit_ms=limit_ms)
    scans = [
        (scan, rows)
        for scan, (rows, pages) in _sizes([*full_scans(top, unfiltered=True), *_skims(top, run)], run)
        if rows >= LARGE_ROWS or pages >= LARGE_PAGES
    ]
    if any(scan.filter and not scan.by for scan, _ in scans):
        found = unserved(explain(text, types, run, within=False, limit_ms=limit_ms), run)
        # Where an index serves, the planner knows it, and finds it dearer than the whole table: another one like it is
        # no help. A table's filter is written otherwise where an index is read by a part of it.
        skimmed = {scan.name for scan in found if scan.by}
        scans = [
            (scan if scan.by or scan in found or scan.name in skimmed else _without_index(scan), rows)
            for scan, rows in scans
        ]
    return Why(shape(top), int(top.get("Plan Rows", 0)), scans)


def only_reads(text: str) -> bool:
    """Say whether a text is one SELECT that reads a table, and neither writes nor locks. Pure."""
    found = list(statements.split(text))
    if len(found) != 1:
        return False
    words = found[0]
    return words.split()[0] in ("select", "with") and " from " in words and not _WRITES.search(words)


# A word that is quoted, and so a name, stands in its quotes.
_WRITES = re.compile(r" (?:insert|update|delete|merge|into|for (?:no|key|share)) ")


def _without_index(scan: FullScan) -> FullScan:
    return FullScan(scan.schema, scan.table, scan.node, scan.filter, estimated_rows=scan.estimated_rows)


def _sizes(scans: list[FullScan], run: Run) -> Iterator[tuple[FullScan, tuple[int, int]]]:
    known: dict[tuple[str, str], tuple[int, int]] = {}
    for scan in scans:
        place = scan.schema, scan.table
        if place not in known:
            rows = run(
                "SELECT reltuples::pg_catalog.int8, relpages::pg_catalog.int8 FROM pg_catalog.pg_class c "
                "JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace "
                f"WHERE relname OPERATOR(pg_catalog.=) {_literal(scan.table)} "
                f"AND nspname OPERATOR(pg_catalog.=) {_literal(scan.schema)}"
            )
            known[place] = (max(0, int(rows[0][0])), int(rows[0][1])) if rows else (0, 0)
        yield scan, known[place]


def quoted(name: str) -> str:
    """Return an identifier as SQL takes it, in quotes where it is no plain name."""
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name) and name not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


# PostgreSQL manual, "SQL Key Words": those that are no table's name without quotes.
_WORDS = (
    "all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation "
    "column concurrently constraint create cross current_catalog current_date current_role current_schema current_time "
    "current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze "
    "from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like "
    "limit localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary "
    "references returning right select session_user similar some symmetric system_user table tablesample then to "
    "trailing true union unique user using variadic verbose when where window with"
)
_RESERVED = frozenset(_WORDS.split())


def _bare(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _literal(text: str) -> str:
    # Right whatever standard_conforming_strings says.
    return " E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def sqlstate(error: BaseException) -> str:
    """Return an error's SQLSTATE, of whichever driver; its class where it has none."""
    state = getattr(error, "sqlstate", None)
    if state is None and error.args and isinstance(error.args[0], dict):  # pg8000's
        state = error.args[0].get("C")
    return str(state or type(error).__name__)
