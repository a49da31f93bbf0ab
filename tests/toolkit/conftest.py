"""What the toolkit leaves on the machine, found by the folder that all of it was told to use."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
sys.path.append(str(Path(__file__).parent))  # for stand_in


@dataclass
class Machine:
    """A place for temporary files of its own; every process that is started below it carries its name."""

    folder: Path

    def run(self, *command: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        with self.start(*command, cwd=cwd) as process:
            output, errors = process.communicate()
            return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    @contextlib.contextmanager
    def start(self, *command: object, cwd: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
        """Start this Python with these arguments; it is killed at the end of the block if it still runs."""
        with subprocess.Popen(
            [sys.executable, "-u", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "TMPDIR": str(self.folder), "COLUMNS": "120"},
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def processes(self) -> dict[int, str]:
        """Return the processes whose environment names the folder, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if str(self.folder).encode() in (entry / "environ").read_bytes():
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def left_behind(self, within_s: float = 0.0) -> list[str]:
        """Return the processes and files that are left; wait for them to go if time is given."""
        deadline = time.monotonic() + within_s
        while left := [*map(str, self.folder.iterdir()), *self.processes().values()]:
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        return left


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine with nothing on it; what a test leaves is removed."""
    folder = Path(tempfile.mkdtemp(prefix="leftovers-"))
    folder.chmod(0o711)  # PostgreSQL's user has to get through
    machine = Machine(folder)
    yield machine
    for pid in machine.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    shutil.rmtree(folder, ignore_errors=True)


def read_until(stream: IO[str], text: str) -> str:
    """Return what the stream gives up to the line that holds the text; fail if the stream ends before."""
    seen = ""
    for line in stream:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came: {seen}")


@pytest.fixture(name="read_until")
def _read_until() -> Any:
    """The function above, for tests that may not import from here."""
    return read_until


@pytest.fixture(scope="module")
def proxied_roles(postgres: Postgres) -> Iterator[None]:
    """Two roles and a table that they share, for the tests of the stand-in for RDS Proxy."""
    postgres.execute(
        "CREATE ROLE proxied LOGIN; CREATE ROLE other LOGIN; CREATE TABLE proxied_rows (id int, value text);"
        "GRANT ALL ON proxied_rows TO proxied, other; GRANT CREATE ON SCHEMA public TO proxied"
    )
    yield
    postgres.execute("DROP OWNED BY proxied, other; DROP TABLE proxied_rows; DROP ROLE proxied, other")
