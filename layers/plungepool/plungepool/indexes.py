"""
The index that would serve a filter, from the filter's text as EXPLAIN writes it, and from the catalogue.

The text says which columns are compared, and how; whether an index of such a column would be used, the catalogue does:
a type without an order has none, `id::text = $1` asks for another value than the column's, a volatile function for
another one in each row, and behind a row security policy a comparison that may leak what it sees comes after it.

Source: PostgreSQL manual, "Operator Classes and Operator Families", "Function Volatility Categories", "Rules and
Privileges" (leakproof) and "Multicolumn Indexes".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    #: executes one statement of SQL, and returns its rows
    Run = Callable[[str], Sequence[Sequence[Any]]]

# An index of more columns is rarely what was meant.
_COLUMNS_AT_MOST = 4

_QUOTED = r'"(?:[^"]|"")+"'
#: a name as the server writes it
WORD = rf"(?:{_QUOTED}|[^\W\d][\w$]*)"
_COMPARED = re.compile(
    rf"(?P<open>\()?(?P<alias>{WORD})\.(?P<column>{WORD})(?(open)\)(?:::(?P<cast>[\w ]+))?)"
    r" (?P<sign>=|<=|>=|<|>|IS NULL)(?: (?P<other>.*))?",
    re.DOTALL,
)
_TURNED = re.compile(
    rf"(?P<other>\$\d+|'(?:[^']|'')*'::[\w ]+|\d+) (?P<sign>=|<=|>=|<|>) (?P<alias>{WORD})\.(?P<column>{WORD})"
)
_KEY = re.compile(rf"(?P<alias>{WORD})\.(?P<column>{WORD})(?P<order>(?: DESC)?(?: NULLS (?:FIRST|LAST))?)")
#: a literal as the server writes it
LITERAL = re.compile("'(?:[^']|'')*'")
_CALL = re.compile(rf"(?P<name>{WORD})\(")
# What is asked anew for each row, or has to hold for all of a list: SubPlan is a word of EXPLAIN's, a name of that
# kind stands in quotes.
_ANEW = re.compile(r"(?<![\w\"])(?:ALL \(|SubPlan )")

_SORT = "sort"


class Wanted(NamedTuple):
    """A column that an index is to be of; without literals."""

    #: as SQL takes it
    column: str
    #: what it is compared by; `sort` where the rows are sorted by it
    sign: str
    #: the type that it is taken for
    cast: str = ""
    #: the functions that make what it is compared with
    calls: tuple[str, ...] = ()
    #: of a sort
    order: str = ""


class Table(NamedTuple):
    """What the catalogue knows of a table: its size, and the columns that an index may be of."""

    rows: int
    #: of 8 kB
    pages: int
    usable: frozenset[Wanted]


def wanted(condition: str, alias: str, keys: Sequence[str] = ()) -> tuple[Wanted, ...]:
    """
    Return the columns of a table that its filter, as EXPLAIN (VERBOSE) writes it, compares with what is the same for
    each row; then those by which its rows are sorted. Pure.
    """
    found: list[Wanted] = []
    for part in _conjunction(condition):
        match = _COMPARED.fullmatch(part) or _TURNED.fullmatch(part)
        if match is None or _bare(match["alias"]) != alias:
            continue
        groups = match.groupdict()
        other = LITERAL.sub("", groups.get("other") or "")
        if _ANEW.search(other) or re.search(rf'(?<![\w$"]){re.escape(match["alias"])}\.', other):
            continue
        calls = tuple(dict.fromkeys(_bare(call["name"]) for call in _CALL.finditer(other)))
        found.append(Wanted(match["column"], match["sign"], groups.get("cast") or "", calls))
    return (*found, *_sorted_by(keys, alias))


def _sorted_by(keys: Sequence[str], alias: str) -> list[Wanted]:
    found = [_KEY.fullmatch(key) for key in keys]
    known = [one for one in found if one is not None and _bare(one["alias"]) == alias]
    if len(known) != len(keys):
        return []
    return [Wanted(one["column"], _SORT, order=one["order"]) for one in known]


def columns(usable: Sequence[Wanted]) -> list[str]:
    """
    Return the columns of an index, of those that it may be of: what is compared for equality, then one that a range is
    taken of, else what the rows are sorted by. Empty where a filter compares none. Pure.
    """
    equal, ranges, keys = list[str](), list[str](), list[Wanted]()
    for one in usable:
        if one.sign == _SORT:
            keys += [one] if one.column not in equal else []
        elif one.column not in equal + ranges:
            (equal if one.sign in ("=", "IS NULL") else ranges).append(one.column)
    found = equal + ranges[:1]
    if equal and not ranges:
        # An index is read backwards as well.
        both_ways = len({one.order for one in keys}) == 1 and keys[0].order in ("", " DESC")
        found += [one.column if both_ways else one.column + one.order for one in keys]
    return found[:_COLUMNS_AT_MOST]


def has_parameter(condition: str) -> bool:
    """Say whether a filter compares with a value that its statement does not hold. Pure."""
    return re.search(r"\$\d", LITERAL.sub("", condition)) is not None


def sorts(asked: Sequence[Wanted]) -> bool:
    """Say whether an index of these gives the rows in their order. Pure."""
    signs = {one.sign for one in asked}
    return _SORT in signs and signs <= {"=", "IS NULL", _SORT}


# Everything by its schema: what the role's search path finds first may be anybody's. 403 is the method btree; up to
# 16384 is the catalogue's own, which takes no index.
_ASK = """
SELECT asked.n, c.reltuples::pg_catalog.int8, c.relpages::pg_catalog.int8, CASE WHEN c.oid >= 16384
  AND (asked.kast IS NULL OR t.oid <> x.oid AND (b.oid = x.oid OR EXISTS (SELECT FROM pg_catalog.pg_cast k WHERE
    k.castsource = b.oid AND k.casttarget = x.oid AND k.castmethod = 'b' AND k.castcontext = 'i')))
  AND NOT (asked.sign = 'IS NULL' AND x.typtype = 'c')
  AND NOT (asked.collates AND a.attcollation <> 0)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc f WHERE f.proname = ANY (asked.calls) AND f.provolatile = 'v')
  AND EXISTS (SELECT FROM pg_catalog.pg_opclass o WHERE o.opcmethod = 403 AND o.opcdefault
    AND (o.opcintype = x.oid OR o.opcintype = CASE WHEN x.typtype = 'e' THEN 3500 WHEN x.typcategory = 'A' THEN 2277
        WHEN x.typtype = 'r' THEN 3831 WHEN x.typtype = 'm' THEN 4537 WHEN x.typtype = 'c' THEN 2249 END
      OR EXISTS (SELECT FROM pg_catalog.pg_cast k WHERE k.castsource = x.oid AND k.casttarget = o.opcintype
        AND k.castmethod = 'b' AND k.castcontext = 'i'))
    AND (asked.sign = 'IS NULL' OR asked.sign = 'sort' OR NOT pg_catalog.row_security_active(c.oid)
      OR EXISTS (SELECT FROM pg_catalog.pg_amop m JOIN pg_catalog.pg_operator r ON r.oid = m.amopopr
        JOIN pg_catalog.pg_proc f ON f.oid = r.oprcode WHERE m.amopfamily = o.opcfamily
        AND m.amoplefttype = o.opcintype AND m.amoprighttype = o.opcintype AND r.oprname = asked.compared
        AND f.proleakproof)))
  THEN 1 ELSE 0 END
FROM (VALUES {asked}) AS asked (n, place, tbl, col, sign, compared, kast, calls, collates)
JOIN pg_catalog.pg_namespace s ON s.nspname = asked.place
JOIN pg_catalog.pg_class c ON c.relnamespace = s.oid AND c.relname = asked.tbl
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = asked.col AND a.attnum > 0
LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
LEFT JOIN pg_catalog.pg_type x
  ON x.oid = CASE WHEN asked.kast IS NULL THEN b.oid ELSE pg_catalog.to_regtype(asked.kast)::pg_catalog.oid END
"""


def ask(
    tables: Mapping[tuple[str, str], Sequence[Wanted]], run: Run, *, collates: bool = False
) -> dict[tuple[str, str], Table]:
    """
    Return what the catalogue knows of tables, by schema and name; nothing of one that is the session's own. One round
    trip.

    Args: collates: something is compared by another collation than the column's, which EXPLAIN does not show.
    Raises: what the server refuses.
    """
    asked = [(place, one) for place, several in tables.items() for one in (None, *dict.fromkeys(several))]
    if not asked:
        return {}
    values = ", ".join(_row(number, *place, one, collates=collates) for number, (place, one) in enumerate(asked))
    sql = re.sub(r" (=|<>|>=|>) ", r" OPERATOR(pg_catalog.\1) ", _ASK).format(asked=values)
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    usable: dict[tuple[str, str], set[Wanted]] = {}
    for number, rows, pages, is_usable in run(sql):
        place, one = asked[int(number)]
        sizes[place] = max(0, int(rows)), int(pages)
        if one is not None and int(is_usable):
            usable.setdefault(place, set()).add(one)
    return {place: Table(*size, frozenset(usable.get(place, ()))) for place, size in sizes.items()}


def _row(number: int, schema: str, table: str, one: Wanted | None, *, collates: bool) -> str:
    column = "NULL" if one is None else literal(_bare(one.column))
    sign = "" if one is None else one.sign
    cast = literal(one.cast) if one is not None and one.cast else "NULL"
    calls = ", ".join(literal(call) for call in one.calls) if one is not None else ""
    return (
        f"({number}, {literal(schema)}::pg_catalog.name, {literal(table)}::pg_catalog.name, {column}::pg_catalog.name, "
        f"{literal(sign)}::pg_catalog.text, {literal(sign)}::pg_catalog.name, {cast}::pg_catalog.text, "
        f"ARRAY[{calls}]::pg_catalog.name[], {'true' if collates else 'false'})"
    )


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


def literal(text: str) -> str:
    """Return a text as SQL takes it, whatever standard_conforming_strings says."""
    return " E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
