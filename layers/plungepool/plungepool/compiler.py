"""
SQL as SQLAlchemy's compiler writes it for this driver: each occurrence of a bound value is a parameter of its own.

The server gives a parameter one type for all the places where it stands; a literal has one in each.
"""

# SQLAlchemy's dialects are not typed.
# mypy: disallow-untyped-calls=False
from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects.postgresql.base import PGCompiler
from sqlalchemy.sql import operators, visitors

if TYPE_CHECKING:
    from collections.abc import Iterator


class Compiler(PGCompiler):
    """
    Each occurrence of a bound value is a parameter of its own: what it means is then up to its place, as for a literal.

    Not where a statement groups or is DISTINCT: there the server compares expressions, and two parameters are never
    equal. The WHERE of a text that does is compared with nothing; of SQLAlchemy's expressions each is cast to its own
    type anyway.
    """

    _compares_expressions = False

    def visit_select(self, select_stmt: Any, *arguments: Any, **options: Any) -> Any:
        before = self._compares_expressions
        self._compares_expressions = before or _compares(select_stmt)
        try:
            return super().visit_select(select_stmt, *arguments, **options)
        finally:
            self._compares_expressions = before

    def visit_textclause(self, textclause: Any, *arguments: Any, **options: Any) -> Any:
        before = self._compares_expressions
        self._compares_expressions = before or _COMPARES_EXPRESSIONS.search(textclause.text) is not None
        if self._compares_expressions and not before:
            textclause = self._set_apart(textclause)
        if _NULL_TEST.search(textclause.text):
            # A literal there is text; of a parameter the server would not know what it is.
            textclause = textclause._clone()
            textclause.text = _NULL_TEST.sub(_cast_to_text, textclause.text)
        try:
            return super().visit_textclause(textclause, *arguments, **options)
        finally:
            self._compares_expressions = before

    def _set_apart(self, textclause: Any) -> Any:
        """Give each name in a WHERE that nothing is compared with a name of its own; return the text with these."""
        text, binds = textclause.text, dict(textclause._bindparams)
        pieces, end = list[str](), 0
        for name, start in _in_where(text):
            bind = binds.get(name)
            if bind is None or bind.expanding or bind.literal_execute:
                continue
            number = 2
            while (own := f"{name}_again_{number}") in binds or own in self.binds:
                number += 1
            binds[own] = bind._clone(maintain_key=True)
            self.bind_names[binds[own]] = own
            pieces += (text[end:start], own)
            end = start + len(name)
        if not pieces:
            return textclause
        textclause = textclause._clone()
        textclause.text, textclause._bindparams = "".join((*pieces, text[end:])), binds
        return textclause

    def visit_bindparam(self, bindparam: Any, *arguments: Any, **options: Any) -> Any:
        name = self.bind_names.get(bindparam)
        again = self.binds.get(name or bindparam.key)
        if (
            again is None
            or self._compares_expressions
            or options.get("literal_binds")
            or bindparam.expanding
            or bindparam.literal_execute
            or bindparam._is_crud
            or (again is not bindparam and (again.unique or bindparam.unique or again.expanding or again._is_crud))
        ):
            return super().visit_bindparam(bindparam, *arguments, **options)
        # SQLAlchemy fills a bind by its key, and its cache of statements follows clones.
        own = bindparam._clone(maintain_key=True)
        number = 2
        while f"{name or bindparam.key}_again_{number}" in self.binds:
            number += 1
        self.bind_names[own] = f"{name or bindparam.key}_again_{number}"
        try:
            return super().visit_bindparam(own, *arguments, **options)
        finally:
            self.binds[again.key] = again


# As coarse as SQLAlchemy's own search for names in a text: a literal in it is not told apart.
_COMPARES_EXPRESSIONS = re.compile(r"\bGROUP(?:\s|/\*.*?\*/|--[^\n]*\n)+BY\b|\bDISTINCT\b", re.IGNORECASE | re.DOTALL)
# Only where the name is the whole operand: IS binds looser than other operators, and `a = :x IS NULL` tests `a = :x`.
_NULL_TEST = re.compile(
    r"(^|[(,]|\b(?:AND|OR|NOT|WHERE|WHEN|SELECT|ON|HAVING)\b)(\s*)(?<![:\w\\]):(\w+)(?=\s+IS\s+(?:NOT\s+)?NULL\b)",
    re.IGNORECASE,
)


# Compiled when a text is read that groups: strings, comments, names in quotes; a parameter's name; a word or a
# parenthesis.
_LEXEME = r"""(?sx)
    '[^']*' | "[^"]*" | --[^\n]* | /\*.*?\*/ | \$(\w*)\$.*?\$\1\$
    | (?<![:\w\\]):(?P<name>\w+)(?!:) | [\w:\\]+ | [();]
"""
_AFTER_WHERE = frozenset(
    ("group", "having", "order", "window", "limit", "offset", "fetch", "for", "union", "intersect", "except")
)


def _in_where(text: str) -> Iterator[tuple[str, int]]:
    """
    Yield each parameter's name, and its place, in the WHERE of a SELECT that is no part of a compared expression.

    In doubt a name is not in one: it then stays the one parameter that it was.
    """
    # Of each parenthesis that is open: what its words belong to, and whether what is around it is compared.
    regions, compared, last = [""], [False], ""
    for token in re.finditer(_LEXEME, text):
        word = token.group().lower()
        if token["name"]:
            if regions[-1] == "where" and not compared[-1]:
                yield token["name"], token.start("name")
        elif word == "(":
            compared.append(compared[-1] or regions[-1] == "select")
            regions.append("where" if regions[-1] == "where" else "")
        elif word == ")" and len(regions) > 1:
            regions.pop()
            compared.pop()
        elif word == ";":
            regions, compared = [""], [False]
        elif word == "select" or (regions[-1] in ("from", "where") and word in _AFTER_WHERE):
            regions[-1] = "select"
        elif regions[-1] == "select" and word == "from" and last != "distinct":
            regions[-1] = "from"
        elif regions[-1] in ("select", "from") and word == "where":
            regions[-1] = "where"
        last = word


def _cast_to_text(match: re.Match[str]) -> str:
    if match[1].upper() == "AND":
        between = match.string[: match.start()].upper().rpartition("BETWEEN")
        if between[1] and not re.search(r"\bAND\b", between[2]):
            return match[0]
    return f"{match[1]}{match[2]}CAST(:{match[3]} AS text)"


def _compares(select_stmt: Any) -> bool:
    """
    Say whether the server will look for one expression of a SELECT in another: GROUP BY, or DISTINCT of whatever kind.
    """
    return bool(
        select_stmt._group_by_clauses
        or select_stmt._distinct
        or any("DISTINCT" in str(prefix).upper() for prefix, _ in select_stmt._prefixes)
        or any(getattr(element, "operator", None) is operators.distinct_op for element in visitors.iterate(select_stmt))
    )
