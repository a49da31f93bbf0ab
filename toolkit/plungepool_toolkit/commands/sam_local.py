"""
`plungepool sam-local`: every sample function in the SAM CLI's own containers, with the layers, from a real PostgreSQL.

The application is built by `sam build`, each function invoked with its event by `sam local invoke`, and the API asked
over HTTP under `sam local start-api`. A Docker engine that answers is used, else one is started for as long as this
runs. See docs/sam-local.md.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from plungepool_toolkit.commands.console import interruptible, step, table
from plungepool_toolkit.commands.samples import APPLICATION_ROLE, DATABASE, problem_of
from plungepool_toolkit.docker_engine import DockerEngine, DockerEngineError, missing_packages
from plungepool_toolkit.lambda_image import CHANGES, LambdaImageError, stand_in
from plungepool_toolkit.postgres import Postgres, PostgresError
from plungepool_toolkit.processes import TemporaryFolder
from plungepool_toolkit.sam import Sam, SamError, set_up

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWNER = "shop_owner"
_PREPARES = "prepare_database"  # makes the schema, the role and the data that the other functions need
# What is asked for here before anything starts: a project that `sam init` made has a template and a toolkit, too.
_NEEDS = ("template.yaml", "toolkit/set-up", "requirements/sam.txt", f"functions/{_PREPARES}")


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing that was tried: by which command, how long it took, and what was wrong with it."""

    name: str
    command: str
    took_s: float
    problem: str | None


def sam_local(
    folder: Annotated[
        Path, typer.Option(help="The repository, which contains template.yaml.", exists=True, file_okay=False)
    ] = Path(),
    make_image: Annotated[
        bool, typer.Option("--make-image", help="Build the base image here, without trying to pull AWS's.")
    ] = False,
) -> None:
    """Run every sample function with `sam local invoke`, and the API with `sam local start-api`, with the layers."""
    console = Console()
    folder = folder.resolve()
    missing = [path for path in _NEEDS if not (folder / path).exists()]
    if missing:
        console.print(
            f"[red]There is no {escape(' and no '.join(missing))} here[/]: this command runs Plungepool's own "
            "application. Run it in Plungepool's repository, or give --folder. To run a project of your own, use "
            "`sam build` and `sam local invoke`.",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(2)
    begun = time.monotonic()
    try:
        with interruptible(console):
            trials = _run(folder, make_image, console)
    except (SamError, DockerEngineError, LambdaImageError, PostgresError) as error:
        console.print(f"[red bold]sam local failed[/]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    _summarise(trials, console)
    failed = sum(trial.problem is not None for trial in trials)
    took = f"{time.monotonic() - begun:.0f} s; nothing is left running."
    if failed:
        console.print(f"[red bold]{failed} of {len(trials)} trials failed[/] in {took}")
        raise typer.Exit(1)
    console.print(f"[green bold]All {len(trials)} trials answered[/] in {took}")


def _run(folder: Path, make_image: bool, console: Console) -> list[Trial]:
    with contextlib.ExitStack() as stack:
        scratch = TemporaryFolder("sam")
        stack.callback(scratch.remove)
        with step("Reading template.yaml with the SAM CLI", console):
            sam = Sam(folder, scratch.path)
            functions = sam.ask("functions", str(folder / "template.yaml"), sam.parameters)
        functions.sort(key=lambda function: function["folder"] != _PREPARES)
        _check_events(functions, folder)
        engine = _engine(sam, stack, console)
        with step("Building the application (sam build)", console):
            sam.build()
        loaded = [
            image
            for image, runtime in sorted({(function["image"], function["runtime"]) for function in functions})
            if _provide(image, runtime, make_image, sam, console)
        ]
        with step("Starting PostgreSQL", console):
            server = stack.enter_context(_postgres(engine))
            _create_database(server, sam)
        stack.enter_context(_tidied(sam, server, loaded))
        trials = []
        for function in functions:
            console.print(f"\n[bold]{function['logical_id']}[/] with events/{function['folder']}.json")
            trials.append(_try_function(function, sam, console))
            if trials[-1].problem and function["folder"] == _PREPARES:
                return trials  # without schema and role the others can only fail
        console.print("\n[bold]start-api[/]")
        return trials + _try_api(sam, console)


def _check_events(functions: list[dict[str, str]], folder: Path) -> None:
    missing = [name for function in functions if not _event(folder, name := function["folder"]).exists()]
    if missing:
        raise SamError(
            f"there is no event to invoke these functions with: events/{'.json, events/'.join(missing)}.json"
        )


def _event(folder: Path, name: str) -> Path:
    return folder / "events" / f"{name}.json"


def _engine(sam: Sam, stack: contextlib.ExitStack, console: Console) -> dict[str, str]:
    """Return the version and the network of a Docker engine: the one that answers, or one that the stack stops."""
    engine: dict[str, str] | None = sam.ask("engine")
    if engine is not None:
        console.print(f"Using the Docker engine that runs here, version {engine['version']}", highlight=False)
        return engine
    with step("Starting a Docker engine of its own", console):
        if os.geteuid() == 0 and (missing := missing_packages()):
            set_up(sam.folder, "apt", *missing)
        sam.use_engine(stack.enter_context(DockerEngine()).address)
        engine = sam.ask("engine")
    if engine is None:
        raise SamError("the SAM CLI does not accept the Docker engine that was started for it")
    return engine


def _provide(image: str, runtime: str, make_image: bool, sam: Sam, console: Console) -> bool:
    """See that the engine has a base image: as it is, pulled, or a stand-in; return whether it is a stand-in."""
    if not make_image:
        if sam.ask("has", image):
            console.print(f"The engine has {image}", highlight=False)
            return False
        console.print(f"Pulling {image} …", highlight=False)
        problem = sam.ask("pull", image)
        if problem is None:
            return False
        console.print(f"  it is unavailable here: {escape(problem)}", highlight=False, style="dim")
    elif sam.ask("has", image):
        raise SamError(f"the engine has {image} already: a stand-in would replace it. Leave out --make-image")
    with step("Building a stand-in from Debian packages, unless an earlier run has left one", console):
        if os.geteuid() == 0 and shutil.which("mmdebstrap") is None:
            set_up(sam.folder, "apt", "mmdebstrap")
        archive = stand_in(runtime, sam.cache, sam.folder)
        sam.ask("load", image, str(archive), CHANGES)
    return True


def _postgres(engine: dict[str, str]) -> Postgres:
    """Return a server that containers reach, too."""
    networks = {engine["gateway"]: engine["network"]}
    try:
        with socket.socket() as probe:
            probe.bind((engine["gateway"], 0))
    except OSError:  # the engine runs in a virtual machine, which passes connections on to loopback
        networks = {}
    return Postgres({"max_connections": 20}, authentication="scram-sha-256", networks=networks)


def _create_database(server: Postgres, sam: Sam) -> None:
    """Make a database whose owner is no superuser, as on RDS, and tell SAM how to reach it."""
    owner, application = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
    server.execute(f"CREATE ROLE {_OWNER} LOGIN CREATEROLE PASSWORD '{owner}'")
    server.execute(f"CREATE DATABASE {DATABASE} OWNER {_OWNER}")
    sam.parameters |= {
        "Host": "host.docker.internal",
        "Port": str(server.port),
        "Database": DATABASE,
        "User": APPLICATION_ROLE,
        "AdminUser": _OWNER,
    }
    sam.set_variables(
        {
            "Parameters": {"PLUNGEPOOL_PASSWORD": application, "APP_ROLE_PASSWORD": application},
            "PrepareDatabaseFunction": {"PLUNGEPOOL_PASSWORD": owner},
        }
    )


@contextlib.contextmanager
def _tidied(sam: Sam, server: Postgres, stand_ins: list[str]) -> Iterator[None]:
    """Remove from the engine, which may be the machine's own, what this run has made: containers, images, stand-ins."""
    before = sam.ask("built_images")
    try:
        yield
    finally:
        made = [image for image in sam.ask("built_images") if image not in before]
        sam.ask("tidy", f"PLUNGEPOOL_PORT={server.port}", [*made, *stand_ins])


def _try_function(function: dict[str, str], sam: Sam, console: Console) -> Trial:
    begun = time.monotonic()
    problem: str | None
    try:
        answer, log = sam.invoke(function["logical_id"], _event(sam.folder, function["folder"]))
    except SamError as error:
        problem = str(error)
    else:
        # SAM's exit code is 0 for a function that failed, too: its answer is then the error.
        failure = answer if isinstance(answer, dict) and {"errorMessage", "errorType"} & answer.keys() else None
        problem = problem_of(failure, answer)
        _show(answer if problem is None else f"{problem}\n{log}", console)
        if metrics := _metrics(log):
            _show(f"metrics: {metrics}", console)
    return _tried(Trial(function["logical_id"], "invoke", time.monotonic() - begun, problem), console)


def _metrics(log: str) -> str:
    """Return what the function did with the database, as its line in Embedded Metric Format has it for CloudWatch."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith('{"_aws"')]
    names = [(line, name) for line in lines for name in line if name.startswith("Database")]
    return ", ".join(f"{name} {line[name][0]:g}" for line, name in names)


def _try_api(sam: Sam, console: Console) -> list[Trial]:
    """Ask the API as a client does: list, read, place, read what was placed, and be refused."""
    trials: list[Trial] = []

    def request(name: str, path: str, expected: int, body: object = None) -> Any:
        """Send a request; `name` is its method and what it is for."""
        begun = time.monotonic()
        status, answer = _request(port, name.split(maxsplit=1)[0], path, body)
        problem = None if status == expected else f"it answered {status}, not {expected}: {json.dumps(answer)}"
        trials.append(_tried(Trial(name, "start-api", time.monotonic() - begun, problem), console))
        if problem:
            raise SamError(problem)
        return answer

    begun = time.monotonic()
    try:
        with sam.api() as port:
            console.print(f"  listening on port {port} after {time.monotonic() - begun:.1f} s", highlight=False)
            page = request("GET two orders", "/orders?limit=2", 200)
            if len(page["orders"]) != 2:
                raise SamError(f"GET /orders?limit=2 has {len(page['orders'])} orders")
            known = request("GET one order", f"/orders/{page['orders'][0]['id']}", 200)
            wanted = {"customer_id": known["customer_id"], "lines": [{"sku": known["lines"][0]["sku"], "quantity": 1}]}
            placed = request("POST an order", "/orders", 201, wanted)
            read = request("GET the new order", f"/orders/{placed['id']}", 200)
            if [(line["sku"], line["quantity"]) for line in read["lines"]] != [(known["lines"][0]["sku"], 1)]:
                raise SamError(f"the order that was placed reads back differently: {read}")
            request("POST no order", "/orders", 400, {"lines": []})
    except SamError as error:
        if not any(trial.problem for trial in trials):
            trials.append(_tried(Trial("the API", "start-api", time.monotonic() - begun, str(error)), console))
    return trials


def _request(port: int, method: str, path: str, body: object) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text


def _tried(trial: Trial, console: Console) -> Trial:
    if trial.problem:
        console.print(f"  [red]failed[/]: {escape(trial.problem)}", highlight=False)
    else:
        name = f"{trial.name} " if trial.command == "start-api" else ""
        console.print(f"  {escape(name)}answered in {trial.took_s:.2f} s", highlight=False)
    return trial


def _show(answer: object, console: Console) -> None:
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    console.print(f"  {text}", markup=False, highlight=False, overflow="ellipsis", no_wrap=True)


def _summarise(trials: list[Trial], console: Console) -> None:
    summary = table(
        "\nIn SAM's containers, with the layers", "trial", "sam local", "seconds", "result", numbers=("seconds",)
    )
    for trial in trials:
        result = "[red]failed[/]" if trial.problem else "[green]answered[/]"
        summary.add_row(escape(trial.name), trial.command, f"{trial.took_s:.2f}", result)
    console.print(summary)
