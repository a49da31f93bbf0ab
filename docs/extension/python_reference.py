"""docs/reference/python.md and toolkit.md: what a program imports, from signatures and docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from reference_text import WRITTEN, comments, docstring, plain, signature

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYER = (
    "plungepool",
    "plungepool.observe",
    "plungepool.checks",
    "plungepool.drain",
    "plungepool.idempotency",
    "plungepool.wire",
)
TOOLKIT = (
    "plungepool_toolkit.postgres",
    "plungepool_toolkit.environment",
    "plungepool_toolkit.lambda_context",
    "plungepool_toolkit.rds_proxy",
    "plungepool_toolkit.network",
    "plungepool_toolkit.budget",
    "plungepool_toolkit.report",
)
LAYER_INTRODUCTION = """\
# Python interface

{written}

What `import plungepool` gives, and the modules beside it that are imported by their own names. [The errors](errors.md)
have a page of their own, [the settings](settings.md) too.
"""
TOOLKIT_INTRODUCTION = """\
# The toolkit's Python interface

{written}

What tests and scripts import. The fixtures of pytest are on [their own page](../testing.md), and need no import.
"""


def layer_page() -> str:
    """Return docs/reference/python.md."""
    return _page(LAYER_INTRODUCTION, LAYER)


def toolkit_page() -> str:
    """Return docs/reference/toolkit.md."""
    return _page(TOOLKIT_INTRODUCTION, TOOLKIT)


def _page(introduction: str, modules: tuple[str, ...]) -> str:
    lines = [introduction.format(written=WRITTEN)]
    for name in modules:
        module = importlib.import_module(name)
        lines += [f"## {name}", "", *docstring(module.__doc__ or "")]
        for own, thing in public(module):
            lines += _thing(own, thing, module)
    return "\n".join(lines).rstrip() + "\n"


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield the public names of a module with what they stand for, errors left out: those have a page of their own."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]
    for name in names:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) and issubclass(thing, BaseException)):
            yield name, thing


def _thing(name: str, thing: Any, module: Any) -> list[str]:
    if inspect.isclass(thing):
        return _class(name, thing)
    if inspect.isfunction(thing):
        return [
            f"### {name}",
            "",
            "```python",
            signature(thing, name),
            "```",
            "",
            *docstring(inspect.getdoc(thing) or ""),
        ]
    about = _about(name, module)
    value = f"`{name} = {thing!r}`" if isinstance(thing, (int, str)) else ""
    return [f"### {name}", "", *filter(None, (plain(about), value)), ""]


def _about(name: str, module: Any) -> str:
    """Return what the `#:` comment says over a name, in this module or in the one that it comes from."""
    for one in (module, *(value for value in vars(module).values() if inspect.ismodule(value))):
        try:
            source = inspect.getsource(one)
        except (OSError, TypeError):
            continue
        for names, about in comments(ast.parse(source), source):
            if name in names:
                return about[0].upper() + about[1:]
    return ""


def _class(name: str, thing: type) -> list[str]:
    lines = [f"### {name}", "", *docstring(inspect.getdoc(thing) or "")]
    package = thing.__module__.partition(".")[0]
    done = set()
    for base in thing.__mro__:
        if base.__module__.partition(".")[0] != package:
            continue
        for method, value in vars(base).items():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if method in done or not inspect.isfunction(inspect.unwrap(function)) or not function.__doc__:
                continue
            if method.startswith("_"):
                continue
            done.add(method)
            shown = f"{name}.{method}"
            if isinstance(value, property):
                lines += [f"#### {shown}", "", *docstring(inspect.getdoc(value) or "")]
            else:
                about = docstring(inspect.getdoc(getattr(thing, method)) or "")
                lines += [f"#### {shown}", "", "```python", signature(function, method), "```", "", *about]
    return lines
