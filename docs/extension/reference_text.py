"""What the pages of docs/reference have in common: docstrings and comments as Markdown."""

from __future__ import annotations

import ast
import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

WRITTEN = "<!-- Written by docs/extension/write_reference.py from the code: change it there, then `make reference`. -->"
_LABEL = re.compile(r"(Args|Raises|Returns|Units|Threads|Threads, forks|Source|Tables|Forks): ?(.*)")


def from_reference(text: str) -> str:
    """Return a text whose links start from docs with links that start from docs/reference."""
    return re.sub(r"\]\((?![#a-z]+:)(?!#)", "](../", text)


def plain(text: str) -> str:
    """Return a text as Markdown that shows it as it is: what stands in backquotes stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if number % 2 else _prose(part) for number, part in enumerate(parts))


def _prose(text: str) -> str:
    """Return what is no code, with links where it names a page."""
    shown = re.sub(r"([*<>|])", r"\\\1", text)
    return re.sub(
        r"\bdocs/((?:reference/)?)([\w-]+)\.md\b",
        lambda found: f"[{found[2]}]({'' if found[1] else '../'}{found[2]}.md)",
        shown,
    )


def cell(text: str) -> str:
    """Return a text as a cell of a table."""
    return text.replace("|", "\\|").replace("\\\\|", "\\|")


def docstring(about: str) -> list[str]:
    """
    Return a docstring as lines of Markdown.

    What is indented after an empty line is code; `Args:`, `Raises:` and their like become a list.
    """
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(about)):
        if paragraph.startswith("    "):
            code = inspect.cleandoc("\n" + paragraph)
            lines += [f"```{_language(code)}", *code.splitlines(), "```", ""]
            continue
        text: list[str] = []
        items: list[str] = []
        for line in re.sub(r"(\S) {4,}(?=\w+: )", r"\1\n", paragraph).splitlines():
            if found := _LABEL.fullmatch(line):
                items.append(f"- **{found[1]}:** {plain(found[2])}")
            elif items and line.startswith("    "):
                items[-1] += " " + plain(line.strip())
            elif items and not line.startswith(" "):
                items[-1] += " " + plain(line)
            else:
                text.append(plain(line.strip()))
        # Each block ends with an empty line.
        lines += [*text, *([""] if text else []), *items, *([""] if items else [])]
    return lines


def _language(code: str) -> str:
    try:
        ast.parse(code)
    except SyntaxError:
        return ""
    return "python"


def comments(node: ast.Module | ast.ClassDef, source: str) -> Iterator[tuple[list[str], str]]:
    """Yield what the `#:` comments in a module or a class say, each with the names that are assigned below it."""
    lines = source.splitlines()
    for statement in node.body:
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
        about: list[str] = []
        number = statement.lineno - 2
        while number >= 0 and lines[number].strip().startswith("#: "):
            about.insert(0, lines[number].strip().removeprefix("#: "))
            number -= 1
        if about:
            yield names, " ".join(about)


def class_comments(thing: type, module: ModuleType) -> Iterator[tuple[list[str], str]]:
    """Yield what the `#:` comments in a class say."""
    source = inspect.getsource(module)
    (node,) = (
        one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.ClassDef) and one.name == thing.__name__
    )
    return comments(node, source)


def signature(thing: Any, name: str) -> str:
    """Return how a function is called, as its source has it."""
    source = inspect.cleandoc("\n" + inspect.getsource(inspect.unwrap(thing)))
    node = ast.parse(source).body[0]
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise TypeError(f"{name} is no function")
    arguments = node.args
    own = arguments.posonlyargs or arguments.args
    if own and own[0].arg in ("self", "cls"):
        own.pop(0)
    before = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{before}def {name}({ast.unparse(arguments)}){returned}: ..."
