"""The `plungepool` command. Each subcommand is a module of `commands/`, imported when it is typed."""

from __future__ import annotations

import errno
import io
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from plungepool_toolkit.interrupts import begin_to_work

# In the order in which --help lists them; the module and its function have the same name, with underscores.
COMMANDS = (
    "budget",
    "demo",
    "doctor",
    "drain",
    "proxy",
    "sam-local",
    "simulate",
    "slow",
    "storm",
    "timeline",
    "verify-aws",
)


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # A word that is none of them may be a slip, which is looked for among all.
        for name in (cmd_name,) if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.add_command(_load(name), name)
        return self.commands.get(cmd_name)


class _Command(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        begin_to_work()
        return super().invoke(ctx)


def _load(name: str) -> Any:
    word = name.replace("-", "_")
    one = typer.Typer(add_completion=False)
    one.command(name, cls=_Command)(getattr(import_module(f"plungepool_toolkit.commands.{word}"), word))
    return typer.main.get_command(one)


application = typer.Typer(
    cls=_Commands,
    name="plungepool",
    help="A cloud on one machine for PostgreSQL from AWS Lambda.",
    no_args_is_help=True,
    add_completion=False,
    # Typer's own tracebacks print local variables, among which may be passwords.
    pretty_exceptions_enable=False,
)


@application.callback()
def _plungepool() -> None:
    """What is the same for all subcommands: nothing, so far; without a callback Typer takes a lone command for all."""


def main() -> None:
    """Run the command line; the process's exit code is the command's."""
    for stream in (sys.stdout, sys.stderr):
        # Not every terminal's encoding has the signs and frames that are printed: it shows others for them.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        application()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"The output cannot be written: {error.strerror}")
