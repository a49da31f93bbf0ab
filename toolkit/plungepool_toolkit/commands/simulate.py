"""`plungepool simulate`: a fleet of thousands in virtual time, by the package's own law."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path  # noqa: TC003  # Typer reads it at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console

from plungepool_toolkit.commands.console import check_writable, show, table
from plungepool_toolkit.report import write_report
from plungepool_toolkit.simulate import calibration, curves, prices, study
from plungepool_toolkit.simulate.advice import advice
from plungepool_toolkit.simulate.document import document, sentence
from plungepool_toolkit.simulate.incidents import INCIDENTS, Incident
from plungepool_toolkit.simulate.model import Database, Function
from plungepool_toolkit.simulate.strategies import DEFAULT, STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from plungepool_toolkit.simulate.model import Endpoint
    from plungepool_toolkit.simulate.prices import Bill
    from plungepool_toolkit.simulate.strategies import Strategy
    from plungepool_toolkit.simulate.study import Load, Outcome


_T = TypeVar("_T")

# Environments of which a knee is looked for.
_TRIED_AT_MOST = 10_000
# A minute or so for each strategy.
_INVOCATIONS_AT_MOST = 1_000_000


def simulate(
    context: typer.Context,
    *,
    environments: Annotated[int, typer.Option(min=1, max=100_000, help="The maximum number of environments.")] = 300,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="For a spike: how many times all environments are invoked.")
    ] = 1,
    arrival: Annotated[Literal["spike", "wave", "steady"], typer.Option(help="How invocations arrive.")] = "spike",
    rate: Annotated[
        float, typer.Option(min=0.01, max=100_000, help="For a wave or steady: invocations per second at its peak.")
    ] = 20.0,
    duration: Annotated[
        float, typer.Option(min=1, max=86400, help="For a wave or steady: the duration in seconds.")
    ] = 60.0,
    curve: Annotated[
        Path | None, typer.Option(help="Replay a recorded curve: CSV (time, concurrency or rate) or CloudWatch's JSON.")
    ] = None,
    incident: Annotated[
        str | None,
        typer.Option(help=f"Replay a published incident: would the database have held? ({', '.join(INCIDENTS)})"),
    ] = None,
    service_ms: Annotated[
        float, typer.Option(min=0, max=900_000, help="How long the handler itself works within its transaction.")
    ] = 20.0,
    statement_ms: Annotated[
        float | None,
        typer.Option(min=0.01, max=60_000, help="CPU time of the server for the statements of an invocation. (1.1)"),
    ] = None,
    deadline: Annotated[float, typer.Option(min=1, max=900, help="The function's time-out, in seconds.")] = 15.0,
    connect_timeout: Annotated[
        float, typer.Option(min=0.1, max=900, help="The time limit of one attempt to connect, in seconds.")
    ] = 5.0,
    sharing: Annotated[
        Literal["shared", "queue"], typer.Option(help="How connects and statements share the server's cores.")
    ] = "shared",
    limit: Annotated[int, typer.Option(min=1, max=262_143, help="The connection limit of the fleet's role.")] = 26,
    cores: Annotated[float, typer.Option(min=0.05, max=1024, help="The number of cores of the server.")] = 2.0,
    acu: Annotated[
        float | None,
        typer.Option(
            help="The maximum capacity of an Aurora cluster, which sets limit and cores (1, 4, 8, 16, 32, 64, ...)."
        ),
    ] = None,
    servers: Annotated[
        int | None, typer.Option(min=1, help="The database connections of a proxy. (as many as --limit)")
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help=f"A strategy to simulate; may be given several times. ({', '.join(STRATEGIES)})"),
    ] = None,
    endpoint: Annotated[
        Literal["direct", "proxy", "both"] | None,
        typer.Option(help="The endpoint of the strategies. (direct; tiny both)"),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of the first run.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="How many runs, each with its own seed.")] = 1,
    memory_mb: Annotated[
        int, typer.Option(min=128, max=10_240, help="The memory of the function, for its price.")
    ] = 512,
    knee: Annotated[
        bool, typer.Option("--knee", help="Also find how many environments at once the database can serve.")
    ] = False,
    calibrate: Annotated[Path | None, typer.Option(help="Take the server's costs from the JSON of a storm.")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Simulate a measured storm, and exit with 1 if they differ by more than 15 %.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, in the storm's format.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page with charts to this file.")] = None,
) -> None:
    """
    Predict how a fleet of environments fares on one database, without running any of them: in virtual time.

    What an environment does is decided by the package's own code. The costs of the server are measured ones; use your
    own with --calibrate and the file that `plungepool storm --json FILE` wrote. Exits with 1 if --compare finds a
    difference.
    """
    _refuse_what_has_no_effect(context)
    check_writable(html, "--html")
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), stderr=as_json)
    chosen = range(seed, seed + seeds)
    if compare is not None:
        _compare(console, _storm(compare, "--compare"), _storm(calibrate, "--calibrate"), chosen)
        return
    database, function, load = _conditions(
        console,
        database=replace(_database(limit, cores, acu, servers), sharing=sharing),
        function=Function(service_s=service_ms / 1000, deadline_s=deadline, connect_timeout_s=connect_timeout),
        load=_load(environments, rounds, arrival, rate, duration, curve),
        statement_ms=statement_ms,
        storm=_storm(calibrate, "--calibrate"),
    )
    story = _known(INCIDENTS, incident, "--incident") if incident else None
    word = "recorded" if curve or incident else arrival
    if story is not None:
        function = story.function
        load = study.Load(environments=story.environments, curve=story.curve)
        asked = _of_incident(story)
    else:
        asked = _asked(database, strategy, endpoint)
    _refuse_too_many(load, function, database.costs.statement_s)
    outcomes = [study.simulate(one, where, function, load, chosen) for one, where in asked]
    bills = [
        prices.bill(one.middle, cores=one.database.cores, proxy=one.database.endpoint == "proxy", memory_mb=memory_mb)
        for one in outcomes
    ]
    made = document(
        outcomes,
        bills,
        function,
        load,
        seeds=chosen,
        command=" ".join(["plungepool", *sys.argv[1:]]),
        date=datetime.now(UTC).date().isoformat(),
        arrival=word,
    )
    if html is not None:
        _write(html, made)
    if as_json:
        typer.echo(json.dumps(made, indent=1))
        return
    if story is not None:
        _tell(console, story)
    console.print(f"{sentence(outcomes[0], function, load, word)}.\n", style="dim")
    show(_table(outcomes), console)
    show(_costs(outcomes, bills), console)
    if knee:
        show(_knees(asked, function, chosen, load.rounds), console)
    console.print(f"{prices.AS_OF}.\n", style="dim")
    console.print(advice(outcomes, function, load), style="bold")


# What each of these options says already, or makes no use of.
_ALONE: dict[str, tuple[str, ...]] = {
    "compare": (
        *("environments", "rounds", "arrival", "rate", "duration", "curve", "incident", "service_ms", "statement_ms"),
        *("deadline", "connect_timeout", "sharing", "limit", "cores", "acu", "servers", "strategy", "endpoint"),
        *("memory_mb", "knee", "as_json", "html"),
    ),
    "incident": (
        *("environments", "rounds", "arrival", "rate", "duration", "curve", "service_ms", "statement_ms", "deadline"),
        *("connect_timeout", "sharing", "limit", "cores", "acu", "servers", "strategy", "endpoint", "calibrate"),
    ),
    "curve": ("rounds", "arrival", "rate", "duration"),
    "acu": ("limit", "cores"),
}


def _refuse_what_has_no_effect(context: typer.Context) -> None:
    """Refuse options beside which others were given that say the same: one of them would be passed over in silence."""
    given: dict[str, str] = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name:
            given[parameter.name] = parameter.opts[0]
    for name, others in _ALONE.items():
        if name in given and (void := [given[other] for other in others if other in given]):
            raise typer.BadParameter(f"it has no effect with {given[name]}", param_hint=" ".join(void))


def _conditions(
    console: Console,
    *,
    database: Database,
    function: Function,
    load: Load,
    statement_ms: float | None,
    storm: calibration.Measured | None,
) -> tuple[Database, Function, Load]:
    if storm is not None:
        with console.status("Fitting the model to the storm"):
            found = calibration.calibrate(storm)
        # On Lambda the functions have CPUs of their own.
        database = replace(database, costs=replace(found.costs, client_s=0.0), sharing=found.sharing)
    if statement_ms is not None:
        database = replace(database, costs=replace(database.costs, statement_s=statement_ms / 1000))
    return database, function, load


def _database(limit: int, cores: float, acu: float | None, servers: int | None) -> Database:
    if acu is not None:
        try:
            limit, cores = prices.of_acus(acu)
        except KeyError:
            known = ", ".join(f"{one:g}" for one in prices.MAX_CONNECTIONS)
            raise typer.BadParameter(f"the known ones are {known}", param_hint="--acu") from None
    return Database(limit=limit, cores=cores, servers=servers)


def _load(environments: int, rounds: int, arrival: str, rate: float, duration: float, curve: Path | None) -> Load:
    found = None
    if curve is not None:
        try:
            found = curves.read(curve)
        except (curves.CurveError, OSError) as error:
            raise typer.BadParameter(str(error), param_hint="--curve") from None
    elif arrival != "spike":
        found = (curves.wave if arrival == "wave" else curves.steady)(rate, duration)
    return study.Load(environments=environments, rounds=rounds, curve=found)


def _refuse_too_many(load: Load, function: Function, statement_s: float) -> None:
    """Refuse a run that would take hours."""
    wanted: float = load.environments * load.rounds
    if load.curve is not None:
        points = load.curve.rates(function.service_s + statement_s).points
        wanted = sum((at - begin) * (first + last) / 2 for (begin, first), (at, last) in pairwise(points))
    if wanted > _INVOCATIONS_AT_MOST:
        text = f"this is about {wanted:,.0f} invocations, and at most {_INVOCATIONS_AT_MOST:,} can be simulated"
        raise typer.BadParameter(f"{text}: reduce it, or increase --service-ms")


def _asked(database: Database, strategies: list[str] | None, endpoint: str | None) -> list[tuple[Strategy, Database]]:
    chosen = [_known(STRATEGIES, name, "--strategy") for name in strategies or DEFAULT]
    places: tuple[Endpoint, ...] = ("direct", "proxy")
    if endpoint != "both":
        places = ("proxy",) if endpoint == "proxy" else ("direct",)
    asked = [(one, replace(database, endpoint=place)) for place in places for one in chosen]
    if not strategies and endpoint is None:
        asked.append((STRATEGIES["tiny"], replace(database, endpoint="proxy")))
    return asked


def _of_incident(story: Incident) -> list[tuple[Strategy, Database]]:
    database = story.database
    capped = replace(database, limit=story.cap)
    asked = [(STRATEGIES[story.theirs], database)]
    for one in (database, capped) if capped != database else (database,):
        asked += [(STRATEGIES[name], replace(one, endpoint="direct")) for name in ("null", "adaptive")]
        asked.append((STRATEGIES["tiny"], replace(one, endpoint="proxy")))
    return asked


def _known(things: Mapping[str, _T], name: str, option: str) -> _T:
    if name not in things:
        raise typer.BadParameter(f"{name} is not one of {', '.join(things)}", param_hint=option)
    return things[name]


def _storm(path: Path | None, option: str) -> calibration.Measured | None:
    if path is None:
        return None
    try:
        return calibration.measured(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint=option) from None


def _write(html: Path, made: dict[str, Any]) -> None:
    try:
        write_report(html, made)
    except OSError as error:
        raise typer.BadParameter(f"{html}: {error.strerror}", param_hint="--html") from None


def _tell(console: Console, story: Incident) -> None:
    console.print(story.title, style="bold")
    for title, lines in (("Published", story.published), ("Assumed", story.assumed), ("Sources", story.sources)):
        console.print(f"{title}:")
        for line in lines:
            console.print(f"  - {line}", style="dim")
    console.print()


def _table(outcomes: Sequence[Outcome]) -> Table:
    numbers = ("Peak", "Answered", "p50 / p99, s", "Connects", "Refused")
    made = table("", "Strategy", *numbers, numbers=numbers)
    for one in outcomes:
        run = one.middle
        made.add_row(
            _title(one),
            f"{run.peak}/{one.database.limit}",
            _answered(one),
            f"{run.latency_s(0.5):.2f} / {run.latency_s(0.99):.2f}",
            str(run.connects),
            str(run.refused),
            style="bold" if one.strategy.ours else None,
        )
    return made


def _costs(outcomes: Sequence[Outcome], bills: Sequence[Bill]) -> Table:
    numbers = ("Limit", "CPU, s", "Database", "Proxy", "Billed, s", "A million")
    made = table("What it costs", "Strategy", *numbers, numbers=numbers)
    for one, bill in zip(outcomes, bills, strict=True):
        made.add_row(
            _title(one),
            str(one.database.limit),
            f"{one.middle.database_cpu_s:.1f}",
            f"{bill.database:.0f}",
            f"{bill.proxy:.0f}",
            f"{bill.billed_s:.2f}",
            f"{bill.lambda_million:.2f}",
        )
    made.caption = (
        "Limit: connections. Database and proxy: dollars a month. A million: invocations, dollars of Lambda. A NAT "
        f"gateway, which no token needs, is {bills[0].nat:.0f} a month for each zone."
    )
    made.caption_justify = "left"
    return made


def _title(one: Outcome) -> str:
    return f"{one.strategy.title}{', by proxy' if one.database.endpoint == 'proxy' else ''}"


def _answered(one: Outcome) -> str:
    low, high = (f"{100 * part:.1f}" for part in (one.worst, one.best))
    return f"{low} %" if low == high else f"{low}-{high} %"


def _knees(asked: Sequence[tuple[Strategy, Database]], function: Function, seeds: Sequence[int], rounds: int) -> Table:
    numbers = ("Connections", "At most")
    made = table("Environments at once that are held", "Strategy", "Endpoint", *numbers, numbers=numbers)
    for strategy, database in asked:
        found = study.knee(strategy, database, function, seeds, rounds=rounds)
        most = f"{found} or more" if found >= _TRIED_AT_MOST else str(found)
        made.add_row(strategy.title, database.endpoint, str(database.limit), most)
    return made


def _compare(
    console: Console, storm: calibration.Measured | None, other: calibration.Measured | None, seeds: Sequence[int]
) -> None:
    assert storm is not None
    with console.status("Fitting the model to the storm"):
        found = calibration.calibrate(other or storm)
    database = replace(storm.database, costs=found.costs, sharing=found.sharing, cores=found.cores)
    costs = database.costs
    console.print(
        f"The model: {database.cores:.2f} cores ({database.sharing}), {costs.connect_s * 1000:.1f} ms "
        f"of CPU a connect, {costs.refused_s * 1000:.1f} a refusal, {costs.statement_s * 1000:.1f} an invocation; "
        f"{costs.client_s * 1000:.1f} its function.",
        style="dim",
    )
    numbers = ("Measured", "Computed", "Apart")
    made = table("", "Strategy", "Endpoint", "What", *numbers, numbers=numbers)
    differences = calibration.compare(storm, database, seeds)
    beyond = [one for one in differences if one.apart > calibration.WITHIN]
    for one in differences:
        made.add_row(
            one.strategy,
            one.endpoint,
            one.what,
            f"{one.measured:.3g}",
            f"{one.computed:.3g}",
            f"{100 * one.apart:.0f} %",
            style="red" if one in beyond else None,
        )
    show(made, console)
    if storm.unknown:
        console.print(f"Not in the model: {', '.join(storm.unknown)}.", style="dim")
    within = f"{len(differences) - len(beyond)} of {len(differences)} numbers are within {calibration.WITHIN:.0%}"
    console.print(f"{within}{'.' if not beyond else ': trust the model for those only.'}", style="bold")
    if beyond:
        raise typer.Exit(1)
