"""docs/reference/commands.md: each subcommand of `plungepool` with its arguments and options, as --help has them."""

from __future__ import annotations

import re
from typing import Any

from reference_text import WRITTEN, cell, docstring, plain

from plungepool_toolkit import command

INTRODUCTION = f"""\
# Commands

{WRITTEN}

`plungepool` comes with the toolkit: `.venv/bin/plungepool` after `make setup`. `plungepool COMMAND --help` says the
same as this page.
"""


def page() -> str:
    """Return docs/reference/commands.md."""
    lines = [INTRODUCTION]
    for name in command.COMMANDS:
        one = command._load(name)
        shown = [parameter for parameter in one.params if not parameter.hidden]
        arguments = [parameter for parameter in shown if not _is_option(parameter)]
        usage = " ".join(_argument(parameter) for parameter in arguments)
        lines += [f"## plungepool {name}", "", "```", f"plungepool {name} [OPTIONS] {usage}".rstrip(), "```", ""]
        lines += docstring(one.help or "")
        if shown:
            lines += ["| argument or option | default | meaning |", "|---|---|---|", *map(_row, shown), ""]
    return "\n".join(lines).rstrip() + "\n"


def _is_option(parameter: Any) -> bool:
    return str(parameter.opts[0]).startswith("-")


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).upper()
    more = "…" if parameter.nargs == -1 else ""
    return f"{name}{more}" if parameter.required else f"[{name}{more}]"


def _row(parameter: Any) -> str:
    if _is_option(parameter):
        shown = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    else:
        shown = f"`{_argument(parameter)}`"
    bounds = [
        f"{word} {value}" for word, value in (("from", parameter.min), ("to", parameter.max)) if value is not None
    ]
    about = plain(re.sub(r"\s+", " ", parameter.help or "")).rstrip(".")
    meaning = about + (f", {' '.join(bounds)}" if bounds else "") + ("; may be repeated" if parameter.multiple else "")
    return f"| {shown} | {_default(parameter)} | {cell(meaning)} |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value in (None, (), [], "") or parameter.is_flag or callable(value) if _is_option(parameter) else value is None:
        return ""
    return f"`{value}`"
