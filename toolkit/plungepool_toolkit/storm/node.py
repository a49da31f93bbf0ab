"""
A peer that runs under Node: serverless-postgres, whose clients share a few processes, which are not frozen.

Node and npm must be on the machine; the package is fetched for the occasion, pinned and hashed, into a folder of its
own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from plungepool_toolkit.processes import GuardedProcess, TemporaryFolder, end_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PEER = Path(__file__).with_name("peer")
_A_PROCESS = 100  # clients
_FETCHED_WITHIN_S = 120.0
_STARTS_WITHIN_S = 20.0


class NodeError(RuntimeError):
    """The peer cannot be run here; the text says why."""


class Client:
    """One environment of the peer: it can be ended, and nothing else."""

    def __init__(self, control: socket.socket, address: str) -> None:
        self._control, self._address = control, address

    def signal(self, number: int) -> None:
        """End it for the signals that end a process; the others are for processes of its own."""
        if number in (signal.SIGKILL, signal.SIGTERM):
            with contextlib.suppress(OSError):
                self._control.sendall(f"end {self._address}\n".encode())

    def wait(self, timeout: float | None = None) -> int | None:
        """Return at once: it is the environments' process that ends."""
        return 0


class Clients:
    """Where a fleet has the peer's environments from."""

    expects_sigterm = False

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self._folder, self._variables = folder, variables
        self._processes: list[tuple[GuardedProcess, socket.socket]] = []
        self._begun = 0

    def begin(self, address: str) -> Client:
        """Start one environment. Raises: OSError."""
        if self._begun % _A_PROCESS == 0:
            self._processes.append(self._start())
        self._begun += 1
        control = self._processes[-1][1]
        control.sendall(f"begin {address}\n".encode())
        return Client(control, address)

    def close(self) -> None:
        """End all of them."""
        for process, control in self._processes:
            control.close()
            process.stop()

    def _start(self) -> tuple[GuardedProcess, socket.socket]:
        log = self._folder / "log"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(_STARTS_WITHIN_S)
            environ = {
                "PATH": os.environ.get("PATH", os.defpath),
                **self._variables,
                "STORM_CONTROL": str(listener.getsockname()[1]),
            }
            process = GuardedProcess(["node", self._folder / "peer.mjs"], output=log, environment=environ)
            try:
                control, _ = listener.accept()
            except BaseException as error:
                process.stop()
                if isinstance(error, TimeoutError):
                    raise OSError(f"Node does not start: {end_of(log)}") from error
                raise
        return process, control


@contextlib.contextmanager
def clients(variables: Mapping[str, str]) -> Iterator[Clients]:
    """Fetch the peer, and give what starts its environments. Raises: NodeError."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise NodeError(f"serverless-postgres needs {program}, which is not installed here")
    temporary = TemporaryFolder("node")
    try:
        for file in _PEER.iterdir():
            shutil.copy(file, temporary.path)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        try:
            done = subprocess.run(
                command,
                cwd=temporary.path,
                capture_output=True,
                text=True,
                check=False,
                timeout=_FETCHED_WITHIN_S,
            )
        except subprocess.TimeoutExpired:
            raise NodeError(f"npm did not fetch serverless-postgres within {_FETCHED_WITHIN_S:g} s") from None
        if done.returncode:
            raise NodeError(f"npm could not fetch serverless-postgres: {done.stderr.strip()[-500:]}")
        running = Clients(temporary.path, variables)
        try:
            yield running
        finally:
            running.close()
    finally:
        temporary.remove()
