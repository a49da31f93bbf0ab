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
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plungepool_toolkit.demo import problem_of
from plungepool_toolkit.docker_engine import DockerEngine, DockerEngineError, missing_packages
from plungepool_toolkit.lambda_image import CHANGES, LambdaImageError, stand_in
from plungepool_toolkit.postgres import Postgres, PostgresError
from plungepool_toolkit.processes import GuardedProcess, TemporaryFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_DATABASE, _OWNER, _APPLICATION = "shop", "shop_owner", "plungepool_app"
_PREPARES = "prepare_database"  # makes the schema, the role and the data that the other functions need
_ARCHITECTURE = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "x86_64")
# What is asked for here before anything starts: a project that `sam init` made has a template and a toolkit, too.
_NEEDS = ("template.yaml", "toolkit/set-up", "requirements/sam.txt", f"functions/{_PREPARES}")
_INSIDE = Path(__file__).with_name("sam_inside.py")


class SamLocalError(RuntimeError):
    """Something that this needs is missing or does not work; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing that was tried: by which command, how long it took, and what was wrong with it."""

    name: str
    command: str
    took_s: float
    problem: str | None


def sam_local(
    folder: Annotated[
        Path, typer.Option(help="The repository: where template.yaml lies.", exists=True, file_okay=False)
    ] = Path(),
    make_image: Annotated[
        bool, typer.Option("--make-image", help="Make the base image here, without trying to pull AWS's.")
    ] = False,
) -> None:
    """Run every sample function by `sam local invoke`, and the API by `sam local start-api`, with the layers."""
    console = Console()
    folder = folder.resolve()
    missing = [path for path in _NEEDS if not (folder / path).exists()]
    if missing:
        console.print(
            f"[red]There is no {escape(' and no '.join(missing))} here[/]: this command runs Plungepool's own application. "
            "Run it in Plungepool's repository, or give --folder. A project of your own is run by "
            "`sam build` and `sam local invoke`.",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(2)
    # A shell starts what it puts in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _leave)  # ends the `with` blocks; without it only the watchdogs would clean up
    begun = time.monotonic()
    try:
        trials = _run(folder, make_image, console)
    except (SamLocalError, DockerEngineError, LambdaImageError, PostgresError) as error:
        console.print(f"[red bold]sam local failed[/]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything is stopped.")
        raise typer.Exit(130) from None
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
        with _step("Reading template.yaml by the SAM CLI", console):
            sam = Sam(folder, scratch.path)
            functions = sam.ask("functions", str(folder / "template.yaml"), sam.parameters)
        functions.sort(key=lambda function: function["folder"] != _PREPARES)
        _check_events(functions, folder)
        engine = _engine(sam, stack, console)
        with _step("Building the application (sam build)", console):
            sam.build()
        loaded = [
            image
            for image, runtime in sorted({(function["image"], function["runtime"]) for function in functions})
            if _provide(image, runtime, make_image, sam, console)
        ]
        with _step("Starting PostgreSQL", console):
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


class Sam:
    """
    The SAM CLI, from .venv-sam, over one application: without AWS, telemetry, or the user's own configuration of either.

    Whatever it starts ends with this process, and on Ctrl-C.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self._scratch = folder, scratch
        self.cache = folder / "build" / "sam-local"
        programs = folder / ".venv-sam" / "bin"
        self._sam, self._python = str(programs / "sam"), str(programs / "python")
        if not (programs / "sam").exists():
            set_up(folder, "venv", ".venv-sam", "requirements/sam.txt")
        found = set_up(folder, "pythons").splitlines()
        pythons = dict(line.split(" ", 1) for line in found)
        if "3.13" not in pythons:
            raise SamLocalError("`sam build` needs the functions' own Python, and no Python 3.13 was found here")
        self._variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAM_"))}
        self._variables |= {
            "AWS_DEFAULT_REGION": "eu-west-1",
            # Without any credentials: with made-up ones, each command would ask AWS in vain whose they are, for seconds.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "SAM_CLI_TELEMETRY": "0",
            "TMPDIR": str(scratch),  # its locks and downloads go with this run
            "PATH": f"{Path(pythons['3.13']).parent}:{programs}:{os.environ.get('PATH', os.defpath)}",
        }
        self._variables.pop("PYTHONPATH", None)
        self.parameters = {"Architecture": _ARCHITECTURE, "Auth": "password", "Tls": "disable"}
        self._secrets = scratch / "variables.json"  # not on a command line, which every user of the machine can read
        self._built = scratch / "build"

    def use_engine(self, address: str) -> None:
        """Let the SAM CLI use the engine at an address."""
        self._variables["DOCKER_HOST"] = address

    def set_variables(self, variables: dict[str, dict[str, str]]) -> None:
        """Give functions variables, by logical id; those under "Parameters" are for all of them."""
        self._secrets.touch(mode=0o600)
        self._secrets.write_text(json.dumps(variables))

    def ask(self, question: str, *arguments: object) -> Any:
        """Ask what only the SAM CLI knows: see sam_inside.py."""
        command = [self._python, "-P", str(_INSIDE), question, json.dumps(arguments)]
        code, answer, log = self._finish(command, 600)
        if code:
            raise SamLocalError(f"the SAM CLI could not be asked ({question}):\n{log}")
        return json.loads(answer)

    def build(self) -> None:
        """Build the application as `sam build` does."""
        command = [self._sam, "build", "--build-dir", str(self._built), "--cache-dir", str(self._scratch / "cache")]
        code, _, log = self._finish([*command, *self._configured()], 600)
        if code:
            raise SamLocalError(f"sam build failed:\n{log}")

    def invoke(self, function: str, event: Path) -> tuple[Any, str]:
        """Invoke once, in a container of its own; return what SAM printed of the answer, and the log."""
        command = [self._sam, "local", "invoke", function, "--event", str(event), *self._local()]
        code, answer, log = self._finish(command, 300)
        if code:
            raise SamLocalError(f"sam local invoke ended with code {code}:\n{log}")
        try:
            return json.loads(answer), log
        except ValueError:
            raise SamLocalError(f"there is no answer, as after a time-out or a crash:\n{log}") from None

    @contextlib.contextmanager
    def api(self) -> Iterator[int]:
        """Serve the API on a port of the loopback interface while the block runs."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        log = self._scratch / "start-api.log"
        command = [self._sam, "local", "start-api", "--host", "127.0.0.1", "--port", str(port)]
        # SIGTERM ends SAM and its containers; SIGINT is ignored where a shell started it in the background.
        server = self._start([*command, *self._local()], log, stop=[("SIGTERM", 30.0)])
        try:
            deadline = time.monotonic() + 120
            while not _listens(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SamLocalError(f"sam local start-api does not listen:\n{_tail(log)}")
                time.sleep(0.1)
            yield port
        except (OSError, http.client.HTTPException) as error:
            raise SamLocalError(f"sam local start-api does not answer: {error}\n{_tail(log)}") from error
        finally:
            server.stop()

    def _local(self) -> list[str]:
        overrides = [f"{name}={value}" for name, value in self.parameters.items()]
        return [
            *("--template", str(self._built / "template.yaml"), "--env-vars", str(self._secrets)),
            *self._configured(),
            "--skip-pull-image",  # the base image is there by now, and may be a stand-in
            *("--parameter-overrides", *overrides),
        ]

    def _configured(self) -> list[str]:
        # SAM looks for it beside the template, which for what is built is another folder.
        return ["--config-file", str(self.folder / "samconfig.toml")]

    def _start(self, command: list[str], log: Path, stop: list[tuple[str, float]]) -> GuardedProcess:
        return GuardedProcess(command, output=log, environment=self._variables, cwd=self.folder, stop=stop)

    def _finish(self, command: list[str], timeout_s: float) -> tuple[int, str, str]:
        """Run a command to its end; return its exit code, standard output, and the end of its standard error."""
        output, log = self._scratch / "output", self._scratch / "log"
        log.unlink(missing_ok=True)
        separate = ["sh", "-c", 'exec "$@" >"$0"', str(output)]
        process = self._start([*separate, *command], log, stop=[("SIGTERM", 20.0)])
        try:
            code = process.wait(timeout_s)
        finally:
            process.stop()
        if code is None:
            raise SamLocalError(
                f"{Path(command[0]).name} {command[1]} was not done after {timeout_s:g} s:\n{_tail(log)}"
            )
        return code, output.read_text(errors="replace"), _tail(log)


def set_up(folder: Path, *arguments: str) -> str:
    """Let toolkit/set-up make or find what is needed; return what it found."""
    result = subprocess.run([folder / "toolkit" / "set-up", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise SamLocalError(f"toolkit/set-up {' '.join(arguments)} failed; what it says above names the reason")
    return result.stdout


def _check_events(functions: list[dict[str, str]], folder: Path) -> None:
    missing = [name for function in functions if not _event(folder, name := function["folder"]).exists()]
    if missing:
        raise SamLocalError(
            f"these functions have no event to be invoked with: events/{'.json, events/'.join(missing)}.json"
        )


def _event(folder: Path, name: str) -> Path:
    return folder / "events" / f"{name}.json"


def _engine(sam: Sam, stack: contextlib.ExitStack, console: Console) -> dict[str, str]:
    """Return the version and the network of a Docker engine: the one that answers, or one that the stack stops."""
    engine: dict[str, str] | None = sam.ask("engine")
    if engine is not None:
        console.print(f"Using the Docker engine that runs here, version {engine['version']}", highlight=False)
        return engine
    with _step("Starting a Docker engine of its own", console):
        if os.geteuid() == 0 and (missing := missing_packages()):
            set_up(sam.folder, "apt", *missing)
        sam.use_engine(stack.enter_context(DockerEngine()).address)
        engine = sam.ask("engine")
    if engine is None:
        raise SamLocalError("the SAM CLI does not accept the Docker engine that was started for it")
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
        raise SamLocalError(f"the engine has {image} already: a stand-in would replace it. Leave out --make-image")
    with _step("Making a stand-in of Debian packages, unless it is kept from an earlier run", console):
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
    server.execute(f"CREATE DATABASE {_DATABASE} OWNER {_OWNER}")
    sam.parameters |= {
        "Host": "host.docker.internal",
        "Port": str(server.port),
        "Database": _DATABASE,
        "User": _APPLICATION,
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
    except SamLocalError as error:
        problem = str(error)
    else:
        # SAM's exit code is 0 for a function that failed, too: its answer is then the error.
        failure = answer if isinstance(answer, dict) and {"errorMessage", "errorType"} & answer.keys() else None
        problem = problem_of(failure, answer)
        _show(answer if problem is None else f"{problem}\n{log}", console)
    return _tried(Trial(function["logical_id"], "invoke", time.monotonic() - begun, problem), console)


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
            raise SamLocalError(problem)
        return answer

    begun = time.monotonic()
    try:
        with sam.api() as port:
            console.print(f"  listening on port {port} after {time.monotonic() - begun:.1f} s", highlight=False)
            page = request("GET two orders", "/orders?limit=2", 200)
            if len(page["orders"]) != 2:
                raise SamLocalError(f"GET /orders?limit=2 has {len(page['orders'])} orders")
            known = request("GET one order", f"/orders/{page['orders'][0]['id']}", 200)
            wanted = {"customer_id": known["customer_id"], "lines": [{"sku": known["lines"][0]["sku"], "quantity": 1}]}
            placed = request("POST an order", "/orders", 201, wanted)
            read = request("GET the new order", f"/orders/{placed['id']}", 200)
            if [(line["sku"], line["quantity"]) for line in read["lines"]] != [(known["lines"][0]["sku"], 1)]:
                raise SamLocalError(f"the order that was placed reads otherwise: {read}")
            request("POST no order", "/orders", 400, {"lines": []})
    except SamLocalError as error:
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
    table = Table(title="\nIn SAM's containers, with the layers", title_justify="left")
    table.add_column("trial", overflow="fold")
    table.add_column("sam local")
    table.add_column("seconds", justify="right")
    table.add_column("result")
    for trial in trials:
        result = "[red]failed[/]" if trial.problem else "[green]answered[/]"
        table.add_row(escape(trial.name), trial.command, f"{trial.took_s:.2f}", result)
    console.print(table)


@contextlib.contextmanager
def _step(what: str, console: Console) -> Iterator[None]:
    begun = time.monotonic()
    console.print(f"{what} …", end=" ", highlight=False)
    try:
        yield
    except BaseException:
        console.print()
        raise
    console.print(f"{time.monotonic() - begun:.1f} s", highlight=False)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
