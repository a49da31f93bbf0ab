"""
`plungepool storm`: what a fleet of Lambda environments does to a database, strategy by strategy, and what comes of it.

Everything runs here: real processes with the real runtime client, a real PostgreSQL, and before it, where that is asked
for, a real PgBouncer or the stand-in for RDS Proxy.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from plungepool_toolkit.commands.console import check_writable, interruptible, table
from plungepool_toolkit.postgres import PostgresError
from plungepool_toolkit.simulate import curves
from plungepool_toolkit.storm import arrivals, results
from plungepool_toolkit.storm.endpoints import ENDPOINTS, EndpointError
from plungepool_toolkit.storm.fleet import FleetError
from plungepool_toolkit.storm.storm import ENVIRONMENTS_AT_MOST, Plan, Storm, StrategyError
from plungepool_toolkit.storm.strategies import DEFAULT, STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plungepool_toolkit.storm.fleet import Outcome

ARRIVALS = ("spike", "wave", "steady", "recorded")
_ENDPOINT_TITLES = {
    "direct": "To the database itself",
    "pgbouncer": "Through PgBouncer, by transactions",
    "proxy": "Through the stand-in for RDS Proxy",
    "lambda": "On Lambda; the database's side is in CloudWatch and in its log",
}


# The options, each with its bounds: a storm ends, and fits the machine.
_Strategies = Annotated[
    list[str] | None,
    typer.Option(
        help=f"A strategy; may be given several times: {', '.join(STRATEGIES)}. Default: {', '.join(DEFAULT)}."
    ),
]
_Endpoints = Annotated[
    list[str] | None,
    typer.Option(help=f"An endpoint; may be given several times: {', '.join(ENDPOINTS)}. Default: direct."),
]
_Environments = Annotated[
    int, typer.Option(min=1, max=ENVIRONMENTS_AT_MOST, help="The maximum number of environments.")
]
_Arrival = Annotated[str, typer.Option(help=f"How invocations arrive: {', '.join(ARRIVALS)} (which --curve implies).")]
_Rounds = Annotated[
    int, typer.Option(min=1, max=20, help="For a spike: how many times all environments are invoked at once.")
]
_Fresh = Annotated[
    bool, typer.Option("--fresh", help="For a spike: new environments for each round, while the others are frozen.")
]
_Rate = Annotated[
    float, typer.Option(min=0.1, max=2000, help="For a wave or a steady stream: invocations per second at its peak.")
]
_Duration = Annotated[
    float | None, typer.Option(min=1, max=600, help="The duration. Default: 20 seconds, or the length of the curve.")
]
_Curve = Annotated[
    Path | None,
    typer.Option(
        help="A recorded curve: CSV of time and concurrency, or CloudWatch's JSON of ConcurrentExecutions.", exists=True
    ),
]
_Service = Annotated[float, typer.Option(min=0, max=60000, help="How long the handler works within its transaction.")]
_Outside = Annotated[
    float,
    typer.Option(min=0, max=60000, help="How long the handler works after its transaction, without a connection."),
]
_Deadline = Annotated[float, typer.Option(min=1, max=60, help="The time-out of the function.")]
_MaxConnections = Annotated[int, typer.Option(min=6, max=1000, help="The database's max_connections.")]
_PoolerConnections = Annotated[
    int, typer.Option(min=1, max=500, help="How many of them PgBouncer or the proxy may open.")
]
_Freeze = Annotated[bool, typer.Option(help="Whether environments are stopped between invocations.")]
_ReapAfter = Annotated[
    float | None, typer.Option(min=1, help="End environments that have been idle this long. Default: never.")
]
_Seed = Annotated[int, typer.Option(help="The seed for the arrivals of a wave or a steady stream.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write all measurements to this file.")]
_Html = Annotated[Path | None, typer.Option("--html", help="Write a page with charts to this file.")]
_Aws = Annotated[
    str | None, typer.Option("--aws", help="A deployed stack whose function is invoked, which costs money.")
]
_Function = Annotated[
    str | None, typer.Option(help="With --aws: the logical ID of the function, if the stack has several.")
]
_Event = Annotated[Path | None, typer.Option(help="With --aws: the event, a JSON file.", exists=True, dir_okay=False)]
_Yes = Annotated[bool, typer.Option("--yes", help="With --aws: accept the costs without being asked.")]


def storm(
    strategy: _Strategies = None,
    endpoint: _Endpoints = None,
    environments: _Environments = 100,
    arrival: _Arrival = "spike",
    rounds: _Rounds = 3,
    fresh: _Fresh = False,
    rate: _Rate = 50.0,
    duration_s: _Duration = None,
    curve: _Curve = None,
    service_ms: _Service = 20.0,
    outside_ms: _Outside = 0.0,
    deadline_s: _Deadline = 15.0,
    max_connections: _MaxConnections = 30,
    pooler_connections: _PoolerConnections = 10,
    freeze: _Freeze = True,
    reap_after_s: _ReapAfter = None,
    seed: _Seed = 1,
    json_file: _Json = None,
    html_file: _Html = None,
    aws: _Aws = None,
    function: _Function = None,
    event: _Event = None,
    yes: _Yes = False,
) -> None:
    """Let a fleet of environments loose on a database with few connections, and compare strategies."""
    _check(strategy=strategy or (), endpoint=endpoint or (), arrival=(arrival,))
    # Before the storm: afterwards, what was measured would be lost.
    check_writable(json_file, "--json")
    check_writable(html_file, "--html")
    arrival = "recorded" if curve else arrival
    all_rounds = _rounds(arrival, environments, rounds, fresh, rate, duration_s, curve, service_ms + outside_ms, seed)
    plan = Plan(
        rounds=all_rounds,
        arrival=arrival,
        environments=min(ENVIRONMENTS_AT_MOST, environments * (rounds if fresh and arrival == "spike" else 1)),
        service_ms=service_ms,
        outside_ms=outside_ms,
        deadline_s=deadline_s,
        max_connections=max_connections,
        pooler_connections=pooler_connections,
        freeze=freeze,
        reap_after_s=reap_after_s,
        seed=seed,
    )
    console, problems = Console(), list[str]()
    try:
        with interruptible(console):
            if aws is None:
                measured, problems = run_all(plan, strategy or DEFAULT, endpoint or ("direct",), console)
            else:
                measured = _on_lambda(plan, aws, function, event, yes, console)
    except (PostgresError, FleetError) as error:
        console.print(f"[red]The storm ended early[/]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    _tell(measured, problems, json_file, html_file, console)


def _tell(
    measured: results.Storm, problems: Sequence[str], json_file: Path | None, html_file: Path | None, console: Console
) -> None:
    """Show what was measured, write it, and exit by 1 where something could not be run."""
    show(measured, console)
    for problem in problems:
        console.print(f"[yellow]Not run[/]: {escape(problem)}", highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps(measured.to_json(), indent=1) + "\n", encoding="utf-8")
        console.print(f"{json_file} has all of it.", highlight=False)
    if html_file is not None:
        from plungepool_toolkit.report import write_report

        write_report(html_file, measured.to_json())
        console.print(f"{html_file} shows it.", highlight=False)
    console.print("Nothing is left running.")
    if problems:
        raise typer.Exit(1)


def show(measured: results.Storm, console: Console) -> None:
    """Print a storm: a table for each endpoint, what failed by which code, and the conditions."""
    by_endpoint: dict[str, list[results.Strategy]] = {}
    for one in measured.strategies:
        by_endpoint.setdefault(one.endpoint, []).append(one)
    for endpoint, strategies in by_endpoint.items():
        numbers: tuple[str, ...] = ("ok %", "p50", "p95", "p99", "peak", "mean", "conn.", "refused", "CPU s")
        shown = table(f"\n{_ENDPOINT_TITLES[endpoint]}", "strategy", *numbers, numbers=numbers)
        shown.box, shown.padding = None, (0, 1, 0, 0)  # 80 columns are enough for it
        for column in shown.columns:
            column.no_wrap = True
        for one in strategies:
            shown.add_row(*_row(one))
        console.print(shown)
        for one in strategies:
            failures = [f"{code} {count}" for code, count in one.failures.items()]
            if one.pinned:
                failures.append(f"{one.pinned} statements pinned the proxy")
            if failures:
                console.print(f"{escape(one.title)}: {escape(', '.join(failures))}", highlight=False)
    console.print(
        f"\n{measured.conditions.text}. p50 to p99: milliseconds, of all invocations, failed ones included. peak, "
        "mean: the role's connections to the database. conn., refused: connects. CPU: the database's.",
        style="dim",
        highlight=False,
    )


def _row(one: results.Strategy) -> tuple[str, ...]:
    share = f"{100 * one.success:.0f}" if one.success in (0.0, 1.0) else f"{100 * one.success:.1f}"
    latency, connections = one.latency_ms, one.connections
    return (
        f"[bold]{escape(one.title)}[/]" if one.ours else escape(one.title),
        f"[green]{share}[/]" if one.success == 1.0 else f"[red]{share}[/]",
        *(f"{value:.0f}" for value in (latency.p50, latency.p95, latency.p99)),
        *(("", "") if connections is None else (str(connections.peak), f"{connections.mean:.1f}")),
        *("" if count is None else str(count) for count in (one.connects, one.refused)),
        "" if one.database_cpu_s is None else f"{one.database_cpu_s:.1f}",
    )


def _check(**given: Sequence[str]) -> None:
    """Refuse a word that its option does not know."""
    known = {"strategy": tuple(STRATEGIES), "endpoint": ENDPOINTS, "arrival": ARRIVALS}
    for option, words in given.items():
        for one in words:
            if one not in known[option]:
                raise typer.BadParameter(f"{one!r} is not one of {', '.join(known[option])}", param_hint=f"--{option}")


def _rounds(
    arrival: str,
    environments: int,
    rounds: int,
    fresh: bool,
    rate: float,
    duration_s: float | None,
    curve: Path | None,
    service_ms: float,
    seed: int,
) -> tuple[arrivals.Round, ...]:
    """Return how invocations come."""
    try:
        if arrival == "recorded":
            if curve is None:
                raise typer.BadParameter(
                    "a recorded curve is read from a file: give --curve FILE", param_hint="--arrival"
                )
            found = curves.read(curve)
            if found.rate:
                raise arrivals.CurveError(
                    "it is a curve of rates; a storm accepts only concurrency, `plungepool simulate` accepts both"
                )
            return arrivals.recorded(found.points, max(service_ms, 1.0) / 1000, duration_s)
        if arrival == "wave":
            return arrivals.wave(rate, duration_s or 20.0, seed)
        if arrival == "steady":
            return arrivals.steady(rate, duration_s or 20.0, seed)
    except (arrivals.CurveError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--curve" if curve else None) from None
    return arrivals.spike(environments, rounds, fresh=fresh)


def run_all(
    plan: Plan, names: Sequence[str], endpoints: Sequence[str], console: Console
) -> tuple[results.Storm, list[str]]:
    """Run each strategy by each endpoint; return what was measured, and what could not be run."""
    measured, problems = [], []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Storm(plan) as running, Progress(*columns, console=console, transient=True) as progress:
        console.print(
            f"PostgreSQL {running.server_version} with max_connections={plan.max_connections}; {plan.invocations} "
            f"invocations ({plan.arrival}) for each of {len(names) * len(endpoints)} ways to connect",
            highlight=False,
        )
        for endpoint in endpoints:
            for name in names:
                watcher = _Watcher(progress, f"{STRATEGIES[name].title}, {endpoint}", plan)
                try:
                    one = running.run(STRATEGIES[name], endpoint, watcher)
                except (StrategyError, EndpointError) as error:
                    problems.append(str(error))
                else:
                    measured.append(one)
                    console.print(
                        f"  {one.title}, {endpoint}: {one.succeeded} of {one.invocations} answered in "
                        f"{one.wall_s:.1f} s",
                        highlight=False,
                    )
                finally:
                    watcher.close()
        command = shlex.join(["plungepool", *sys.argv[1:]])
        return results.Storm(plan.conditions(running.server_version, command), tuple(measured)), problems


def _on_lambda(
    plan: Plan, stack: str, function: str | None, event: Path | None, yes: bool, console: Console
) -> results.Storm:
    """Run the storm on Lambda, after a yes to what it costs; exit by 2 where there is none, or nothing to invoke."""
    from plungepool_toolkit.storm import on_lambda

    try:
        account = on_lambda.Account()
        deployed = on_lambda.find_function(account.client, stack, function)
        given = json.loads(event.read_text(encoding="utf-8")) if event else {}
        console.print(
            f"{plan.invocations} invocations of {deployed.name} in account {account.number}, {account.region}, at most "
            f"{plan.environments} at a time ({deployed.memory_mb} MB, time-out {deployed.timeout_s:g} s): "
            f"{deployed.costs_at_most(plan.invocations):.4f} US dollars at most, if each runs into its time-out "
            f"({on_lambda.PRICES_AS_OF}); the cost of the database and of other services comes on top. "
            "They count against the account's concurrency.",
            highlight=False,
        )
        if not yes and not sys.stdin.isatty():
            raise on_lambda.DeployedError(
                "there is no terminal to ask whether you accept the costs: give --yes. Nothing was invoked"
            )
        if not yes and console.input("Type [bold]yes[/] to continue: ").strip() != "yes":
            raise on_lambda.DeployedError("the answer was not yes. Nothing was invoked")
    except (on_lambda.DeployedError, OSError, ValueError) as error:
        console.print(f"[red]Refused[/]: {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from None
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(f"  {deployed.name}", total=plan.invocations)
        one = on_lambda.let_loose(
            account.client, deployed, given, plan.rounds, plan.environments, lambda _: progress.advance(bar)
        )
    console.print(
        f"  {one.title}: {one.succeeded} of {one.invocations} answered in {one.wall_s:.1f} s", highlight=False
    )
    return results.Storm(on_lambda.conditions(plan, deployed, shlex.join(["plungepool", *sys.argv[1:]])), (one,))


class _Watcher:
    """A bar for one strategy."""

    def __init__(self, progress: Progress, what: str, plan: Plan) -> None:
        self._progress, self._what, self._plan, self._failed = progress, what, plan, 0
        self._bar = progress.add_task(f"  {what}: environments", total=plan.environments)

    def grown(self, environments: int) -> None:
        self._progress.update(self._bar, completed=environments)
        if environments >= self._plan.environments:
            self._progress.reset(self._bar, total=self._plan.invocations, description=f"  {self._what}")

    def answered(self, outcome: Outcome) -> None:
        self._failed += outcome.failure is not None
        failed = f", [red]{self._failed} failed[/]" if self._failed else ""
        self._progress.update(self._bar, advance=1, description=f"  {self._what}{failed}")

    def close(self) -> None:
        self._progress.remove_task(self._bar)
