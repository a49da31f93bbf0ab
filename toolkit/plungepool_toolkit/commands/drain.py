"""`plungepool drain`: a fleet's connections replaced, each at its next checkout, without an error or a cold start."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from typing import Annotated

import typer
from rich.console import Console
from sqlalchemy.exc import DBAPIError

from plungepool import CredentialsError, Settings, SettingsError
from plungepool import drain as fleet
from plungepool_toolkit.commands.console import interrupt_on

# How often what is no terminal is told how far it is.
_LINE_EVERY_S = 2.0


def drain(
    *,
    role: Annotated[
        str | None, typer.Option(help="The role whose connections are replaced. Default: the role that connects.")
    ] = None,
    older_than: Annotated[float, typer.Option(help="Only connections opened at least this many seconds ago.")] = 0.0,
    min_idle: Annotated[float, typer.Option(help="Only connections idle for at least this many seconds.")] = 0.3,
    rate: Annotated[float, typer.Option(help="The maximum number of connections to end per second.")] = 10.0,
    limit: Annotated[float, typer.Option(help="Stop after this many seconds, and report what is left.")] = 300.0,
    application: Annotated[
        str | None, typer.Option(help="Only connections with this application_name: a function, in any version.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be replaced, without ending anything.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
    prefix: Annotated[str, typer.Option(help="The prefix of the PLUNGEPOOL_ variables, such as REPORTS_.")] = "",
) -> None:
    """
    Replace the connections of a role in this database, each at its next checkout, a few per second.

    Connects by the PLUNGEPOOL_ variables of this environment. Exits with 0 if all were replaced, with 1 if some are
    left or it could not run, and with 130 after Ctrl-C, which is safe at any moment.
    """
    # What a pipe reads is the document; the rest goes beside it.
    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    report = _Report(console, as_json=as_json)
    try:
        interrupt_on(signal.SIGINT)
        options = fleet.Options(
            role=role,
            older_than_s=older_than,
            min_idle_s=min_idle,
            rate=rate,
            limit_s=limit,
            application=application,
            dry_run=dry_run,
        )
        settings = Settings.from_env(os.environ, prefix=prefix)
        engine = fleet.own_engine(settings)
        with ExitStack() as stack:
            stack.callback(engine.dispose)
            for progress in fleet.drain(engine, options):
                report.take(progress)
    except KeyboardInterrupt:
        report.end("interrupted; the connections that were ended stay ended, and nothing else has changed")
        raise typer.Exit(130) from None
    except (fleet.DrainError, SettingsError, CredentialsError, DBAPIError) as error:
        said = str(getattr(error, "orig", None) or error)
        if getattr(getattr(error, "orig", None), "sqlstate", None) == "53300":
            said += (
                "; the drain needs a connection, too: connect as a role that has one left, and name this one with "
                "--role"
            )
        report.end(said)
        raise typer.Exit(1) from None
    report.end()
    if report.last is not None and report.last.left and not dry_run:
        raise typer.Exit(1)


class _Report:
    """What is said of a drain, while it runs and at its end."""

    def __init__(self, console: Console, *, as_json: bool) -> None:
        self.last: fleet.Progress | None = None
        self._console, self._as_json, self._said_s = console, as_json, 0.0

    def take(self, progress: fleet.Progress) -> None:
        """Say how far it is: at once at the beginning, then now and then."""
        quiet = progress.over or progress.dry_run or not progress.found
        if not quiet and (self.last is None or progress.took_s - self._said_s >= _LINE_EVERY_S):
            self._said_s = progress.took_s
            of = f"{progress.ended + progress.gone} of {progress.found}"
            self._console.print(f"{progress.took_s:6.1f} s  {of} replaced; {_left(progress)}")
        self.last = progress

    def end(self, problem: str = "") -> None:
        """Say what came of it."""
        if self._as_json:
            known = self.last.as_document() if self.last else {}
            print(json.dumps(known | {"problem": problem or None}))
        if self.last is not None:
            self._console.print(_summary(self.last), markup=False)
        if problem:
            self._console.print(f"✗ {problem}", style="red", markup=False)


def _left(progress: fleet.Progress) -> str:
    left = {
        "in a transaction": progress.in_transaction,
        "idle": progress.idle,
        "in an unknown state": progress.unknown,
    }
    return ", ".join(f"{number} {what}" for what, number in left.items() if number) or "none left"


def _summary(progress: fleet.Progress) -> str:
    whose = f"{progress.role} in {progress.database}"
    if progress.others:
        return (
            f"! {whose}: no connection has that application_name; the names in use are "
            f"{', '.join(map(repr, progress.others))}"
        )
    if not progress.found:
        return f"✓ {whose}: no connections, so there was nothing to replace"
    of = f"{whose}: {'1 connection' if progress.found == 1 else f'{progress.found} connections'}"
    if progress.dry_run:
        return f"{of}, {_left(progress)}; none ended (dry run)"
    done = f"{of}, {progress.ended} ended, {progress.gone} closed otherwise, {_left(progress)}; {progress.took_s:.1f} s"
    if not progress.left:
        return f"✓ {done}"
    return (
        f"! {done}\n  → Run it again later or with a longer --limit; a smaller --min-idle also ends busy connections."
    )
