"""One change of one place in a source at a time: which there are, and what tests must look at to see them. Pure."""

from __future__ import annotations

import ast
import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Mutant:
    """One change of one place: the bytes from `start` to `end` become `text`."""

    line: int
    start: int
    end: int
    text: str
    was: str
    #: The function that it is in, with its classes; empty for what the import runs.
    scope: str
    #: The lines of its statement, without those of a body: a test that ran none of them cannot see it.
    lines: tuple[int, ...]

    @property
    def name(self) -> str:
        """What it is called in reports and in equivalent.txt: no line numbers, which move."""
        return f"{self.scope or '(import)'}: {_short(self.was)} -> {_short(self.text)}"


def _short(text: str) -> str:
    return " ".join(text.split())[:60]


_COMPARED: dict[type[ast.cmpop], str] = {
    ast.Lt: ">=", ast.LtE: "<", ast.Gt: "<=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_COUNTED: dict[type[ast.operator], str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.LShift: ">>",
    ast.RShift: "<<",
}  # fmt: skip


class _Source:
    """A source and the places of its nodes in bytes."""

    def __init__(self, source: str) -> None:
        self.encoded = source.encode()
        self._starts = [0]
        for line in self.encoded.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self._starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def code(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.encoded[start:end].decode()

    def changes(self, node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
        """Give each change of this node alone: what becomes which text. Texts of messages stay."""
        code = self.code
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARED:
                yield node, f"({code(left)} {_COMPARED[type(op)]} {code(right)})"
            case ast.BoolOp(op=op, values=values):
                word = " and " if isinstance(op, ast.And) else " or "
                for place in range(len(values)):  # each condition left out
                    yield node, f"({word.join(map(code, values[:place] + values[place + 1 :]))})"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield node, f"bool({code(operand)})"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _COUNTED and not _is_text(left):
                yield node, f"({code(left)} {_COUNTED[type(op)]} {code(right)})"
            case ast.Constant(value=bool() as value):
                yield node, str(not value)
            case ast.Constant(value=int() | float() as value):
                yield node, f"({value!r} + 1)"
            case ast.If(test=test) | ast.IfExp(test=test) if isinstance(
                test, ast.Name | ast.Attribute | ast.Call | ast.NamedExpr
            ):
                yield test, f"(not ({code(test)}))"
            case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
                yield value, "None"
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.AugAssign() | ast.Delete():
                yield node, "pass"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield node, "pass"
            case ast.Break():
                yield node, "continue"
            case ast.Continue():
                yield node, "break"
            case _:
                pass

    def keywords(self, call: ast.Call) -> Iterator[tuple[ast.keyword, int, int]]:
        """
        Give each keyword that may be left out, with its comma; where it is needed, the first call kills the mutant.
        """
        for keyword in call.keywords:
            switch = isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool | int | float)
            if keyword.arg and not switch:
                start, end = self.span(keyword)
                rest = self.encoded[end:].lstrip(b" \n")
                if rest[:1] == b",":
                    end += len(self.encoded[end:]) - len(rest.lstrip(b" \n,"))
                yield keyword, start, end


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _is_for_readers(node: ast.AST) -> bool:
    # Neither for a type checker nor for a reader: what runs.
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _lines(node: ast.AST, above: tuple[int, ...]) -> tuple[int, ...]:
    """
    Return the lines of a statement, of a case or of an except clause up to its body; others have those of what they are
    in.
    """
    if isinstance(node, ast.match_case):
        return tuple(range(node.pattern.lineno, max(node.pattern.lineno + 1, node.body[0].lineno)))
    if not isinstance(node, ast.stmt | ast.ExceptHandler):
        return above
    body = getattr(node, "body", None)
    end = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
    return tuple(range(node.lineno, end + 1))


def mutants(source: str, only: str = "") -> list[Mutant]:
    """
    Return each change that is made to this source, in its order; `only` matches the functions and classes to change.
    """
    text = _Source(source)
    found: set[Mutant] = set()

    def walk(node: ast.AST, inside: bool, names: tuple[str, ...], scope: str, lines: tuple[int, ...]) -> None:
        if _is_for_readers(node):
            return
        lines = _lines(node, lines)
        within, names_within = scope, names
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names_within = (*names, node.name)
            inside = inside or bool(re.fullmatch(only, node.name))
            if not isinstance(node, ast.ClassDef):
                within = ".".join(names_within)
        if inside:
            for place, becomes in text.changes(node):
                start, end = text.span(place)
                line: int = place.lineno  # type: ignore[attr-defined]
                found.add(Mutant(line, start, end, becomes, text.code(place), scope, lines))
            if isinstance(node, ast.Call):
                for keyword, start, end in text.keywords(node):
                    was = text.encoded[start:end].decode()
                    found.add(Mutant(keyword.lineno, start, end, "", was, scope, lines))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_comment"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    # Defaults and decorators run where the function is made.
                    walk(child, inside, names_within, within if name == "body" else scope, lines)

    walk(ast.parse(source), not only, (), "", ())
    valid = []
    for mutant in sorted(found, key=lambda one: (one.start, one.end, one.text)):
        with contextlib.suppress(SyntaxError):
            ast.parse(applied(text.encoded, mutant))
            valid.append(mutant)
    return valid


def applied(encoded: bytes, mutant: Mutant) -> bytes:
    """Return the source with this change."""
    return encoded[: mutant.start] + mutant.text.encode() + encoded[mutant.end :]
