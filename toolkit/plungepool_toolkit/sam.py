"""
The SAM CLI on this machine, from a virtual environment of its own (.venv-sam): `sam build` and `sam local` without AWS.

What only the SAM CLI knows is asked of its own Python, by sam_inside.py.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.processes import GuardedProcess, end_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_ARCHITECTURE = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "x86_64")
_INSIDE = Path(__file__).with_name("sam_inside.py")


class SamError(RuntimeError):
    """Something that the SAM CLI needs is missing or does not work; the text says what to do."""


class Sam:
    """
    The SAM CLI, from .venv-sam, over one application: without AWS, telemetry, or the user's own configuration of
    either.

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
            raise SamError("`sam build` needs the functions' own Python, and no Python 3.13 was found here")
        self._variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAM_"))}
        self._variables |= {
            "AWS_DEFAULT_REGION": "eu-west-1",
            # Without any credentials: with made-up ones, each command would ask AWS in vain whose they are, for
            # seconds.
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
            raise SamError(f"the SAM CLI could not be run ({question}):\n{log}")
        return json.loads(answer)

    def build(self) -> None:
        """Build the application as `sam build` does."""
        command = [self._sam, "build", "--build-dir", str(self._built), "--cache-dir", str(self._scratch / "cache")]
        code, _, log = self._finish([*command, *self._configured()], 600)
        if code:
            raise SamError(f"sam build failed:\n{log}")

    def invoke(self, function: str, event: Path) -> tuple[Any, str]:
        """Invoke once, in a container of its own; return what SAM printed of the answer, and the log."""
        command = [self._sam, "local", "invoke", function, "--event", str(event), *self._local()]
        code, answer, log = self._finish(command, 300)
        if code:
            raise SamError(f"sam local invoke ended with code {code}:\n{log}")
        try:
            return json.loads(answer), (self._scratch / "log").read_text(errors="replace")
        except ValueError:
            raise SamError(f"there is no answer, as after a time-out or a crash:\n{log}") from None

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
                    raise SamError(f"sam local start-api does not listen:\n{end_of(log)}")
                time.sleep(0.1)
            yield port
        except (OSError, http.client.HTTPException) as error:
            raise SamError(f"sam local start-api does not answer: {error}\n{end_of(log)}") from error
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
            raise SamError(
                f"{Path(command[0]).name} {command[1]} had not finished after {timeout_s:g} s:\n{end_of(log)}"
            )
        return code, output.read_text(errors="replace"), end_of(log)


def set_up(folder: Path, *arguments: str) -> str:
    """Let toolkit/set-up make or find what is needed; return what it found."""
    result = subprocess.run([folder / "toolkit" / "set-up", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise SamError(f"toolkit/set-up {' '.join(arguments)} failed; its output above gives the reason")
    return result.stdout


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
