"""No class is too long to be read at once, and no function; what is all the same says why."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "layers" / "plungepool" / "plungepool", ROOT / "toolkit" / "plungepool_toolkit")
CLASS, FUNCTION = 300, 60

# What is longer, and why it is better so. An entry that is no longer needed fails, too.
REASONS = {
    "plungepool.wire.protocol.Protocol": (
        "what one session says shares a buffer and what was said before; no I/O in it"
    ),
    "plungepool.wire.protocol.Protocol.read_reply": (
        "the hot path of every statement: a call a message would cost a tenth"
    ),
    "plungepool.wire.session.Session": "flights and what becomes of a torn one: each method undoes what another began",
    "plungepool.wire.transport.Transport": "one socket from dialling to its end; a few lines over",
    "plungepool_toolkit.commands.simulate.simulate": ("half of it are its options, which Typer reads from a signature"),
    "plungepool_toolkit.environment.Environment": "one environment from init to its end; a few lines over",
    "plungepool_toolkit.network.ChaosProxy": "one way to break a network a method; a few lines over",
}


def long_ones() -> set[str]:
    """Return `module.Class.function` of every class and function that is longer than its limit, docstring included."""
    found = set()

    def walk(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                inner = f"{name}.{child.name}"
                limit = CLASS if isinstance(child, ast.ClassDef) else FUNCTION
                if child.end_lineno is not None and child.end_lineno - child.lineno >= limit:
                    found.add(inner)
            walk(child, inner)

    for folder in PACKAGES:
        for file in folder.rglob("*.py"):
            parts = [folder.name, *file.relative_to(folder).with_suffix("").parts]
            name = ".".join(parts).removesuffix(".__init__")
            walk(ast.parse(file.read_text(encoding="utf-8")), name)
    return found


def test_what_is_long_says_why() -> None:
    """
    Each class of more than 300 lines and each function of more than 60 is in the table with a reason, and no other is.
    """
    assert long_ones() == set(REASONS)
    assert [name for name, reason in REASONS.items() if len(reason) < 30] == []
