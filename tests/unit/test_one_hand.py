"""Package and toolkit read as if one had written them: what the linter does not look at is held here."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / "layers" / "plungepool" / "plungepool").rglob("*.py"),
    *(ROOT / "toolkit" / "plungepool_toolkit").rglob("*.py"),
]


def bodies(file: Path) -> list[list[ast.stmt]]:
    """Return the statements of a module and of each class, function and block in it, body by body."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [body for node in nodes if isinstance(body := getattr(node, "body", None), list)]


def test_attributes_are_explained_above_them() -> None:
    """A comment that begins with `#:` stands above an attribute; no text in quotes stands below one."""
    assert [
        f"{file.relative_to(ROOT)}:{after.lineno}"
        for file in FILES
        for body in bodies(file)
        for before, after in itertools.pairwise(body)
        if isinstance(before, (ast.Assign, ast.AnnAssign))
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    ] == []


def test_loggers_have_one_name() -> None:
    """A module's logger is `_logger`: nobody imports it from elsewhere."""
    assert {
        ast.unparse(target)
        for file in FILES
        for body in bodies(file)
        for statement in body
        if isinstance(statement, ast.Assign) and "logging.getLogger" in ast.unparse(statement.value)
        for target in statement.targets
    } == {"_logger"}


def test_no_comment_is_a_banner() -> None:
    """A part of a file that wants a title wants to be a file: no line of dashes says what comes next."""
    everything = [
        *FILES,
        *(file for folder in ("bench", "docs", "functions", "tests") for file in (ROOT / folder).rglob("*.py")),
    ]
    assert [
        f"{file.relative_to(ROOT)}:{number}"
        for file in everything
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.match(r"\s*#\s*([-=*#~])\1{2,}", line)
    ] == []
