"""`plungepool doctor`: what a function's settings lead to, seen from this machine."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from plungepool.checks import Check, as_document, check_environment

_STYLES = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
    prefix: Annotated[str, typer.Option(help="The prefix of the PLUNGEPOOL_ variables, such as REPORTS_.")] = "",
    rls: Annotated[
        bool, typer.Option("--rls", help="Also check whether row-level security protects the rows from the role.")
    ] = False,
    schema: Annotated[
        list[str] | None, typer.Option(help="With --rls: check only this schema; may be given several times.")
    ] = None,
) -> None:
    """
    Check step by step what works with the PLUNGEPOOL_ variables of this environment.

    Exits with 1 if a step failed; a warning is not a failure. The sample function check_database does the same in the
    VPC.
    """
    if schema and not rls:
        raise typer.BadParameter("it requires --rls", param_hint="--schema")
    console = Console(highlight=False, soft_wrap=True)
    checks = []
    for check in check_environment(os.environ, prefix=prefix, rls=rls, schemas=schema or ()):
        checks.append(check)
        if not as_json:
            _print(console, check)
    if as_json:
        console.print_json(json.dumps(as_document(checks)))
    if any(check.state == "failed" for check in checks):
        raise typer.Exit(1)


def _print(console: Console, check: Check) -> None:
    # Text, not markup: what a server says may hold square brackets.
    sign, style = _STYLES[check.state]
    console.print(Text.assemble((f"{sign} {check.name:<15}", style), check.found))
    if check.cure:
        console.print(Text.assemble(" " * 17, ("→ ", style), check.cure))
