"""
What users call says what it does, what it raises and in which units; what follows somebody else's rules says whose.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PUBLIC = (
    "plungepool",
    "plungepool.checks",
    "plungepool.drain",
    "plungepool.idempotency",
    "plungepool.observe",
    "plungepool.wire",
    "plungepool_toolkit.budget",
    "plungepool_toolkit.environment",
    "plungepool_toolkit.lambda_context",
    "plungepool_toolkit.network",
    "plungepool_toolkit.postgres",
    "plungepool_toolkit.rds_proxy",
    "plungepool_toolkit.report",
)
# What these do is written down by others: PostgreSQL, PEP 249, AWS.
FOLLOW_OTHERS = (
    "plungepool.iam",
    "plungepool.lifecycle",
    "plungepool.pinning",
    "plungepool.secret",
    "plungepool.statements",
    "plungepool.tls",
    "plungepool.wire",
    "plungepool_toolkit.rds_proxy",
    "plungepool_toolkit.runtime_api",
)


def public_objects() -> Iterator[tuple[str, Any, str]]:
    """Yield the name of each public function, method and class, the object, and its docstring."""
    for name in PUBLIC:
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None) or [
            own for own, value in vars(module).items() if str(getattr(value, "__module__", "")).startswith(name)
        ]
        for own in names:
            found = getattr(module, own)
            if own.startswith("_") or not callable(found):
                continue
            yield f"{name}.{own}", found, inspect.getdoc(found) or ""
            if not inspect.isclass(found) or issubclass(found, tuple) or getattr(found, "_is_protocol", False):
                continue
            for base in found.__mro__:
                if base.__module__.partition(".")[0] != name.partition(".")[0]:
                    continue
                for method, value in vars(base).items():
                    function = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", value))
                    # A dataclass's own constructor has no source.
                    if not inspect.isfunction(function) or function.__code__.co_filename.startswith("<"):
                        continue
                    if not method.startswith("_") or method == "__init__":
                        # Whoever makes one reads what the class says.
                        about = (
                            inspect.getdoc(found) if method == "__init__" else inspect.getdoc(getattr(found, method))
                        )
                        yield f"{name}.{own}.{method}", function, about or ""


OBJECTS = {name: (found, about) for name, found, about in public_objects()}


def raised(function: Any) -> set[str]:
    """Return the errors that the lines of a function itself raise, those of its inner functions left out."""
    found = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Raise) and child.exc is not None:
                error = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
                found.add(ast.unparse(error).rpartition(".")[2])
            if not isinstance(child, (ast.FunctionDef, ast.Lambda)):
                walk(child)

    walk(ast.parse(textwrap.dedent(inspect.getsource(function))).body[0])
    return {name for name in found if name[0].isupper() and name != "StopIteration"}


def test_everything_public_says_what_it_does() -> None:
    """Each class, function, method and property that users see has a docstring of its own or of what it overrides."""
    assert len(OBJECTS) > 60
    assert [name for name, (_, about) in OBJECTS.items() if not about and not name.endswith("__init__")] == []


def test_what_raises_says_so() -> None:
    """Where a function's own lines raise an error, its docstring says which and when."""
    silent = {}
    for name, (found, about) in OBJECTS.items():
        if inspect.isfunction(found) and (errors := raised(found)) and "raise" not in about.lower():
            silent[name] = errors
    assert silent == {}


def test_what_takes_time_says_in_which_units() -> None:
    """Where a parameter or a field is a time, the docstring says that it is in seconds."""
    silent = []
    for name, (found, about) in OBJECTS.items():
        if inspect.isfunction(found):
            names = list(inspect.signature(found).parameters)
        else:
            names = [field.name for field in dataclasses.fields(found)] if dataclasses.is_dataclass(found) else []
        if any(one.endswith(("_s", "_ms")) for one in names) and "second" not in about and "Units" not in about:
            silent.append(name)
    assert silent == []


@pytest.mark.parametrize("name", FOLLOW_OTHERS)
def test_what_follows_others_names_its_source(name: str) -> None:
    """Where the rules are PostgreSQL's, Python's or AWS's, a docstring says where they are written."""
    file = Path(str(importlib.import_module(name).__file__))
    files = file.parent.rglob("*.py") if file.stem == "__init__" else [file]
    nodes = [node for one in files for node in ast.walk(ast.parse(one.read_text(encoding="utf-8")))]
    documented = [node for node in nodes if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    assert any("Source: " in (ast.get_docstring(node) or "") for node in documented)
