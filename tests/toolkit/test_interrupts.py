"""Ctrl-C at any moment of any command, from its first import to Python's own end: 130, and no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from plungepool_toolkit import watchdog
from plungepool_toolkit.command import COMMANDS

ROOT = Path(__file__).parents[2]

# Python as the command's script runs it, with SIGINT at the first audit event of that kind whose arguments match.
PROGRAM = """
import atexit, os, re, signal, sys
kind, holds, *arguments = sys.argv[1:]
struck = False

def strike(event, given):
    global struck
    if not struck and event == kind and re.search(holds, str(given)):
        struck = True
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(strike)
if kind == "end":
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["plungepool", *arguments]
if os.environ["SIGINT"] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
from plungepool_toolkit.__main__ import main
sys.exit(main())
"""


@pytest.fixture(params=["", "ignored"])
def background(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the foreground, and in the background of a shell, which has SIGINT ignored."""
    monkeypatch.setenv("SIGINT", request.param)


def strike(machine: Any, kind: str, holds: str, *arguments: str) -> None:
    """Run a command and strike it then; it must end as Ctrl-C ends one."""
    result = machine.run("-c", PROGRAM, kind, holds, *arguments, cwd=machine.folder)
    assert "Traceback" not in result.stderr, result.stderr
    assert "KeyboardInterrupt" not in result.stderr, result.stderr
    assert result.returncode == 128 + signal.SIGINT, result


@pytest.mark.usefixtures("background")
@pytest.mark.parametrize("module", ["plungepool_toolkit.command", "typer"])
def test_while_the_command_line_is_imported(machine: Any, module: str) -> None:
    """Before anybody knows which command it is."""
    strike(machine, "import", f"'{module}'", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_while_a_command_is_imported(machine: Any, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """What it needs takes most of a second."""
    monkeypatch.setenv("SIGINT", "")
    strike(machine, "open", rf"plungepool_toolkit/commands/(__pycache__/)?{command.replace('-', '_')}\b", command)


@pytest.mark.usefixtures("background")
@pytest.mark.parametrize(
    ("command", "kind", "holds"),
    [
        (["doctor"], "socket.getaddrinfo", "localhost"),
        (["drain"], "socket.getaddrinfo", "localhost"),
        (["slow"], "socket.getaddrinfo", "localhost"),
        (["budget", "template.yaml"], "open", "template.yaml"),
        (["timeline", "log"], "open", "'log'"),
        (["simulate", "--curve", "curve.csv"], "open", "curve.csv"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_while_a_command_works(
    machine: Any, monkeypatch: pytest.MonkeyPatch, command: list[str], kind: str, holds: str
) -> None:
    """Those that have nothing to stop end as well as those that say what they have stopped."""
    for name in ("template.yaml", "log", "curve.csv"):
        (machine.folder / name).write_text("\n")
    monkeypatch.setenv("PLUNGEPOOL_URL", "postgresql://app:-@localhost:1/postgres")
    monkeypatch.setenv("PLUNGEPOOL_TLS", "disable")
    strike(machine, kind, holds, *command)


@pytest.mark.usefixtures("background")
def test_while_python_ends(machine: Any) -> None:
    """When all is said, and the process is about to end."""
    strike(machine, "end", "", "--help")


def test_the_script_begins_there() -> None:
    """As `python -m plungepool_toolkit` does."""
    scripts = tomllib.loads((ROOT / "toolkit" / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"plungepool": "plungepool_toolkit.__main__:main"}


@pytest.mark.parametrize("what", ["a folder", "a process"])
def test_what_was_begun_for_one_that_is_gone_ends(machine: Any, what: str) -> None:
    """Struck before the watchdog's first word: it says nothing of that to the terminal, and nothing is left."""
    reads, writes = os.pipe()
    os.close(reads)
    order: dict[str, Any] = {"keep": str(machine.folder / "kept")}
    if what == "a process":
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        order = {"command": sleep, "cwd": "/", "identity": None, "stop": [], "linger_s": 0.0, "report": writes}
        order["descriptors"] = [writes]
    started = subprocess.run(
        [sys.executable, "-I", "-S", watchdog.__file__, json.dumps(order)],
        stdin=subprocess.DEVNULL,
        stdout=writes,
        stderr=subprocess.PIPE,
        pass_fds=[writes],
        env={"TMPDIR": str(machine.folder)},
        check=False,
        timeout=60,
    )
    os.close(writes)
    assert (started.returncode, started.stderr) == (0, b"")
    assert machine.left_behind(within_s=10) == []
