"""`plungepool slow`: the statements that cost a database most, by pg_stat_statements, and why; no value of any."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from plungepool import ranking
from plungepool.ranking import By


def slow(
    *,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many statements to list.")] = 10,
    by: Annotated[By, typer.Option(help="What to rank them by: total time, mean time of a call, or calls.")] = By.TOTAL,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
    prefix: Annotated[str, typer.Option(help="The prefix of the PLUNGEPOOL_ variables, such as REPORTS_.")] = "",
) -> None:
    """
    List the statements that cost this database the most, by pg_stat_statements, and explain the SELECTs among them.

    Connects by the PLUNGEPOOL_ variables of this environment. Executes none of the statements, prints no values and
    changes nothing. Exits with 1 if it could not run.
    """
    document = ranking.rank_process(prefix, by=by, limit=limit)
    if as_json:
        print(json.dumps(document))
    if document["problem"]:
        console = Console(highlight=False, soft_wrap=True, stderr=True)
        console.print(Text(f"✗ {_plain(document['problem'])}", style="red"))
        raise typer.Exit(1)
    if not as_json:
        _print(Console(highlight=False, soft_wrap=True), document)


def _print(console: Console, document: dict[str, Any]) -> None:
    def line(indent: str, text: str, *, cut: bool = False, style: str = "") -> None:
        shown = Text(indent + _plain(text), style=style)
        if cut:
            shown.truncate(console.width, overflow="ellipsis")
        console.print(shown)

    line("", f"{document['database']}, since {document['since']}, by {document['by']}")
    for one in document["statements"]:
        line("", "")
        times = f"total {_time(one['total_ms'])}, mean {_time(one['mean_ms'])}"
        numbers = f"{times}, {one['calls']} calls, {one['rows']} rows"
        line("", f"{one['fingerprint']}  {numbers}", style="bold")
        line("  ", one["statement"], cut=True)
        if one["not_explained"]:
            line("  ", f"not explained: {one['not_explained']}")
        why = one["why"] or {"full_scans": (), "indexes": ()}
        for scan in why["full_scans"]:
            condition = f", filter {scan['filter']}" if scan["filter"] else ""
            line("  ", f"reads all of {scan['table']}, about {scan['table_rows']} rows{condition}")
        for index in why["indexes"]:
            line("  → ", index)
    if not document["statements"]:
        line("", "no statements have been counted so far")
    if document["hidden"]:
        line("", "")
        grant = ranking.grant(document["role"])
        line("! ", f"{document['hidden']} statements of other roles are not shown; {grant}")


def _plain(text: str) -> str:
    """Return a text as a terminal may show it: a name, or what a server says, may hold what moves the cursor."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _time(value_ms: float) -> str:
    return f"{value_ms / 1000:.1f} s" if value_ms >= 1000 else f"{value_ms:.1f} ms"
