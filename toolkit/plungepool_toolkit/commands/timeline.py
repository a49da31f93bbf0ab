"""`plungepool timeline`: what led to a failure, from the line that the flight recorder has written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from plungepool_toolkit.commands.console import table
from plungepool_toolkit.report import timeline as report

if TYPE_CHECKING:
    from rich.table import Table

_BAR = 24


def timeline(
    file: Annotated[str, typer.Argument(help="A log that contains the line, among others; - reads standard input.")],
    *,
    html: Annotated[Path | None, typer.Option(help="Also write a page of HTML to this file.")] = None,
    request: Annotated[str, typer.Option(help="Show only the invocation with this request ID.")] = "",
) -> None:
    """
    Draw what an invocation did with the database, from the line that PLUNGEPOOL_RECORDER=on left in its log.

    Accepts the log as it is, and the exports of `sam logs`, `aws logs` and Logs Insights (JSON, CSV). Exits with 1 if
    it contains no line of the recorder.
    """
    console = Console(highlight=False, soft_wrap=False)
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        found = [one for one in report.read(data.decode("utf-8", "replace")) if request in ("", one.request_id)]
        if html is not None and found:
            html.write_text(report.page(found), encoding="utf-8")
    except OSError as error:
        console.print(Text(f"✗ {error.filename}: {error.strerror}", style="red"), soft_wrap=True)
        raise typer.Exit(1) from None
    if not found:
        console.print(Text("✗ no line of the flight recorder is in it; is PLUNGEPOOL_RECORDER=on?", style="red"))
        raise typer.Exit(1)
    for one in found:
        console.print(Text(one.headline, style="bold"))
        console.print(Text(one.about, style="dim"))
        console.print(_drawn(one))
        console.print(Text("; ".join(f"{name} {value}" for name, value in one.numbers.items()), style="dim"))
        console.print()
    if html is not None:
        console.print(Text(f"✓ written to {html}"))


def _drawn(one: report.Timeline) -> Table:
    made = table("", "exchange", "at, ms", "took, ms", "", "rows", "error", numbers=("at, ms", "took, ms", "rows"))
    low, high = report.span(one)
    for exchange in one.exchanges:
        made.add_row(
            Text(report.described(exchange)),
            f"{exchange.at_ms:,.1f}",
            f"{exchange.took_ms:,.1f}",
            Text("" if exchange.request_id else _bar(exchange, low, high)),
            "" if exchange.rows is None else str(exchange.rows),
            Text(exchange.error, style="red"),
        )
    return made


def _bar(exchange: report.Exchange, low: float, high: float) -> str:
    scale = _BAR / (high - low)
    begin = min(_BAR - 1, max(0, int((exchange.at_ms - low) * scale)))
    length = max(1, min(_BAR - begin, round(exchange.took_ms * scale)))
    return " " * begin + "█" * length
