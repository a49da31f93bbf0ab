"""
`sam local` for real: every sample function in SAM's own containers, with the layers, against PostgreSQL on this machine.

Where a container engine runs, it is used; else one is started for the time of this command, with its own socket and data,
and without touching the firewall. AWS's base image is pulled where its registry can be reached; where not, a stand-in
under the same name is made from Debian's packages: its Python, the real runtime client, and the folders of Lambda. It is
no Amazon Linux, but sees what SAM builds and how the layers lie. See docs/local.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.processes import GuardedProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RUNTIME = "python3.13"
_DATABASE = "shop"
_ARCHITECTURE = {"x86_64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
# The suite that has this Python, and what the image holds of it. libstdc++6 is the runtime client's.
_SUITE = "trixie"
_PACKAGES = (
    *("base-files", "bash", "coreutils", "dash", "grep", "libc-bin", "libgcc-s1", "libstdc++6", "media-types"),
    *("netbase", "python3.13", "sed", "tzdata"),
)
# What a managed runtime has beside Python itself.
_RUNTIME_PROJECTS = (
    *("awslambdaric", "simplejson", "snapshot-restore-py"),
    *("boto3", "botocore", "jmespath", "python-dateutil", "s3transfer", "six", "urllib3"),
)
_BOOTSTRAP = """\
#!/bin/sh
export AWS_EXECUTION_ENV=AWS_Lambda_python3.13
exec /usr/bin/python3.13 -c '
import os, sys
runtime = "/var/lang/lib/python3.13/site-packages"
sys.path[:0] = [os.environ["LAMBDA_TASK_ROOT"], "/opt/python/lib/python3.13/site-packages", "/opt/python"]
sys.path.append(runtime)
from awslambdaric.__main__ import main
main(["", os.environ["_HANDLER"]])
'
"""


class SamLocalError(RuntimeError):
    """Something that `sam local` needs is not there or does not work; the text says what to do."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """A function of template.yaml, its event, and what its answer must show."""

    logical_id: str
    event: str
    answers: Callable[[Any], bool] = field(repr=False)


_SAMPLES = (
    _Sample("PrepareDatabaseFunction", "prepare_database", lambda answer: answer["role_name"] == "plungepool_app"),
    _Sample("HandleOrdersFunction", "handle_orders", lambda answer: answer["statusCode"] == 200),
    _Sample("FulfilOrdersFunction", "fulfil_orders", lambda answer: answer["batchItemFailures"] == []),
    _Sample("ReportSalesFunction", "report_sales", lambda answer: bool(answer["products"])),
    _Sample("CheckDatabaseFunction", "check_database", lambda answer: bool(answer["checks"])),
)


def sam_local(
    folder: Annotated[Path, typer.Option(help="Where template.yaml lies.", exists=True, file_okay=False)] = Path(),
    stand_in: Annotated[bool, typer.Option(help="Make the image here, without asking AWS's registry.")] = False,
) -> None:
    """Run every sample function by `sam local invoke`, and the API by `sam local start-api`."""
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the `with` blocks
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="plungepool-sam-") as scratch, contextlib.ExitStack() as stack:
            _run(folder.resolve(), Path(scratch), stand_in, console, stack)
    except (SamLocalError, subprocess.SubprocessError) as error:
        console.print(f"[red bold]sam local failed[/]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything is stopped.")
        raise typer.Exit(130) from None
    console.print(f"[green bold]All functions answered in SAM's containers[/] in {time.monotonic() - begun:.0f} s.")


def _run(folder: Path, scratch: Path, stand_in: bool, console: Console, stack: contextlib.ExitStack) -> None:
    sam = _Sam(folder, scratch)
    engine = stack.enter_context(_engine(scratch, console))
    sam.variables["DOCKER_HOST"] = engine
    image = sam.image()
    _provide(image, engine, stand_in, folder, console)
    console.print("Building the application (sam build) …")
    sam.run("build", "--build-dir", sam.built, "--cache-dir", scratch / "cache")
    server = stack.enter_context(Postgres({"max_connections": 20}, authentication="scram-sha-256"))
    server.execute(f"CREATE DATABASE {_DATABASE}")
    gateway = _gateway(engine)
    port = stack.enter_context(_forwarded(gateway, server.port))
    console.print(f"PostgreSQL is at {gateway}:{port} for the containers.\n", highlight=False)
    sam.parameters = {
        "Host": "host.docker.internal",
        "Port": str(port),
        "Database": _DATABASE,
        "User": "plungepool_app",
        "Password": "local",
        "AdminUser": server.superuser,
        "AdminPassword": "local",
    }
    for sample in _SAMPLES:
        begun = time.monotonic()
        answer = sam.invoke(sample.logical_id, folder / "events" / f"{sample.event}.json")
        if not sample.answers(answer):
            raise SamLocalError(f"{sample.logical_id} answered {answer}")
        shown = json.dumps(answer)
        console.print(f"[bold]{sample.logical_id}[/] {time.monotonic() - begun:.1f} s", highlight=False)
        console.print(f"  {escape(shown[:160] + ('…' if len(shown) > 160 else ''))}", highlight=False)
    with sam.api() as address:
        with urllib.request.urlopen(f"{address}/orders?limit=2", timeout=60) as response:  # noqa: S310  this machine's own
            orders = json.load(response)["orders"]
        console.print(f"[bold]start-api[/] GET /orders?limit=2: {response.status}, {len(orders)} orders\n")
        if len(orders) != 2:
            raise SamLocalError(f"start-api answered {len(orders)} orders, not 2")


class _Sam:
    """The SAM CLI, from its own virtual environment, over one application."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch, self.built = folder, scratch, scratch / "build"
        self.parameters: dict[str, str] = {}
        self._binaries = folder / ".venv-sam" / "bin"
        if not (self._binaries / "sam").exists():
            raise SamLocalError("there is no SAM CLI in .venv-sam: run `make sam-local`, which installs it")
        found = shutil.which(_RUNTIME)
        own = Path(sys.executable).resolve().parent  # a virtual environment's python has a real one behind it
        self.variables = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SAM_"))}
        self.variables |= {
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "SAM_CLI_TELEMETRY": "0",
            "PATH": os.pathsep.join([str(own), *([str(Path(found).parent)] if found else []), os.environ["PATH"]]),
        }

    def command(self, *arguments: str | Path) -> list[str]:
        return [str(self._binaries / "sam"), *map(str, arguments)]

    def run(self, *arguments: str | Path) -> str:
        result = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.variables, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise SamLocalError(f"sam {arguments[0]} failed:\n{result.stderr[-3000:]}")
        return result.stdout

    def image(self) -> str:
        """Return the name of the base image that this SAM CLI asks for."""
        program = (
            "from samcli.local.docker.lambda_image import LambdaImage, Runtime; import sys;"
            "print(LambdaImage._INVOKE_REPO_PREFIX + '/' + Runtime.get_image_name_tag(*sys.argv[1:]))"
        )
        command = [str(self._binaries / "python"), "-c", program, _RUNTIME, _ARCHITECTURE]
        return subprocess.run(command, env=self.variables, capture_output=True, text=True, check=True).stdout.strip()

    def _local(self) -> list[str | Path]:
        parameters = self.parameters | {"Auth": "password", "Tls": "disable", "Architecture": _ARCHITECTURE}
        overrides = [f"{key}={value}" for key, value in parameters.items()]
        # Containers of Linux know no host.docker.internal by themselves.
        host = ["--add-host", "host.docker.internal:host-gateway"]
        return [
            "--template",
            self.built / "template.yaml",
            "--skip-pull-image",
            *host,
            "--parameter-overrides",
            *overrides,
        ]

    def invoke(self, function: str, event: Path) -> Any:
        """Invoke once, in a container of its own; return what the function returned."""
        command = self.command("local", "invoke", function, "--event", event, *self._local())
        result = subprocess.run(
            command, cwd=self.folder, env=self.variables, capture_output=True, text=True, check=False, timeout=300
        )
        try:
            # SAM's exit code is 0 for a function that failed, too.
            answer = json.loads(result.stdout.strip().splitlines()[-1])
        except (IndexError, ValueError):
            raise SamLocalError(f"{function} did not answer:\n{result.stderr[-3000:]}") from None
        if isinstance(answer, dict) and "errorMessage" in answer:
            raise SamLocalError(f"{function} failed: {answer}\n{result.stderr[-3000:]}")
        return answer

    @contextlib.contextmanager
    def api(self) -> Iterator[str]:
        """Serve the API on a free port of the loopback interface while the block runs."""
        port = _free_port()
        log = self.scratch / "start-api.log"
        command = self.command("local", "start-api", "--host", "127.0.0.1", "--port", str(port), *self._local())
        # SIGINT is ignored by what a shell starts in the background; SIGTERM ends SAM and its containers.
        process = GuardedProcess(
            command, output=log, environment=self.variables, cwd=self.folder, stop=[("SIGTERM", 30.0)]
        )
        try:
            _wait(
                lambda: _listens(port), 90, lambda: f"sam local start-api does not listen:\n{log.read_text()[-3000:]}"
            )
            yield f"http://127.0.0.1:{port}"
        except urllib.error.URLError as error:
            raise SamLocalError(f"start-api: {error}\n{log.read_text()[-3000:]}") from error
        finally:
            process.stop()


@contextlib.contextmanager
def _engine(scratch: Path, console: Console) -> Iterator[str]:
    """Yield the address of a container engine: the one that runs, or one that lives as long as this block."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0:
        yield os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        return
    daemon = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if daemon is None or os.geteuid() != 0:
        raise SamLocalError("no container engine runs here, and only root with the package docker.io can start one")
    console.print("Starting a container engine for this command …")
    address = f"unix://{scratch}/docker.sock"
    # A bridge of its own: docker0 may be another engine's. It is a link of this machine only, so any free range will do.
    bridge, gateway = f"plunge{os.getpid() % 1_000_000}", f"172.29.{os.getpid() % 250}.1"
    with _bridge(bridge, gateway):
        process = GuardedProcess(
            [
                daemon, "--host", address, "--data-root", scratch / "data", "--exec-root", scratch / "exec",
                "--pidfile", scratch / "docker.pid", "--bridge", bridge, "--host-gateway-ip", gateway,
                # The containers reach this machine over the bridge, and nothing beyond it: the firewall is left alone.
                "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
            ],
            output=scratch / "dockerd.log",
            stop=[("SIGTERM", 30.0)],
        )  # fmt: skip
        try:
            _wait(
                lambda: _docker(address, "info").returncode == 0,
                30,
                lambda: f"dockerd does not answer:\n{(scratch / 'dockerd.log').read_text()[-3000:]}",
            )
            yield address
        finally:
            process.stop()


@contextlib.contextmanager
def _bridge(name: str, address: str) -> Iterator[None]:
    """Make a network bridge that lives as long as the block."""
    for command in (f"link add name {name} type bridge", f"address add {address}/24 dev {name}", f"link set {name} up"):
        made = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
        if made.returncode:
            raise SamLocalError(f"ip {command}: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)


def _docker(engine: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["docker", "--host", engine, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _gateway(engine: str) -> str:
    """Return the address of this machine that host.docker.internal:host-gateway stands for."""
    result = _docker(engine, "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    if result.returncode or not result.stdout.strip():
        raise SamLocalError(f"the engine's bridge has no gateway: {result.stderr.strip()}")
    return result.stdout.strip()


def _provide(image: str, engine: str, stand_in: bool, folder: Path, console: Console) -> None:
    """See that the engine has the base image: as it is, pulled, or a stand-in."""
    if _docker(engine, "image", "inspect", image).returncode == 0:
        return
    if not stand_in:
        console.print("Pulling AWS's image …")
        if _docker(engine, "pull", image).returncode == 0:
            return
        console.print("It cannot be pulled here.")
    archive = folder / "build" / f"lambda-{_RUNTIME}-{_ARCHITECTURE}.tar"
    if not archive.exists():
        console.print(f"Making a stand-in for AWS's image from Debian's packages ({_SUITE}) …")
        archive.parent.mkdir(exist_ok=True)
        _make_image(archive)
    changes = (
        "ENV PATH=/var/lang/bin:/usr/local/bin:/usr/bin:/bin:/opt/bin",
        "ENV LAMBDA_TASK_ROOT=/var/task LAMBDA_RUNTIME_DIR=/var/runtime LANG=C.UTF-8",
        "WORKDIR /var/task",
    )
    result = _docker(engine, "import", *(part for change in changes for part in ("--change", change)), archive, image)
    if result.returncode:
        raise SamLocalError(f"docker import: {result.stderr.strip()}")


def _make_image(archive: Path) -> None:
    """Write the root file system of the stand-in as a tar archive."""
    if f"python{sys.version_info.major}.{sys.version_info.minor}" != _RUNTIME:
        raise SamLocalError(
            f"the stand-in takes its runtime client from this Python, which must be 3.13: {sys.version}"
        )
    if shutil.which("mmdebstrap") is None:
        raise SamLocalError("the stand-in is made by the package mmdebstrap, which is not installed")
    with tempfile.TemporaryDirectory(prefix="plungepool-image-") as name:
        root = Path(name) / "root"
        made = subprocess.run(
            [
                "mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(_PACKAGES)}", _SUITE, root, _mirror(),
            ],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if made.returncode:
            raise SamLocalError(f"mmdebstrap: {made.stderr[-2000:]}")
        for folder in ("var/task", "var/runtime", "opt", "tmp", "etc/ssl/certs"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "tmp").chmod(0o1777)
        authorities = Path("/etc/ssl/certs/ca-certificates.crt")
        if authorities.exists():
            shutil.copyfile(authorities, root / "etc/ssl/certs/ca-certificates.crt")
        _copy_runtime(root / "var/lang/lib/python3.13/site-packages")
        bootstrap = root / "var/runtime/bootstrap"
        bootstrap.write_text(_BOOTSTRAP)
        bootstrap.chmod(0o755)
        partial = archive.with_suffix(".part")
        subprocess.run(["tar", "--create", "--numeric-owner", "--file", partial, "--directory", root, "."], check=True)
        partial.rename(archive)


def _copy_runtime(target: Path) -> None:
    from importlib.metadata import files

    for project in _RUNTIME_PROJECTS:
        for file in files(project) or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), target / file)


def _mirror() -> str:
    """Return where this machine's apt fetches Debian's packages from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)", "Identifier: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in listed.stdout.splitlines():
        if found := re.fullmatch(r"Debian (?!\S*-security)\S+ (\S+)", line):
            return found[1]
    raise SamLocalError("apt's sources here name no mirror of Debian, and apt-get update may not have run")


@contextlib.contextmanager
def _forwarded(address: str, port: int) -> Iterator[int]:
    """Let what connects to a free port of `address` reach the same machine's loopback interface at `port`."""

    class Forwarder(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as server:
                back = threading.Thread(target=_pump, args=(server, self.request), daemon=True)
                back.start()
                _pump(self.request, server)
                back.join()

    class Listener(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Listener((address, 0), Forwarder) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _wait(condition: Callable[[], bool], seconds: float, otherwise: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SamLocalError(otherwise())
        time.sleep(0.1)


if __name__ == "__main__":
    typer.run(sam_local)
