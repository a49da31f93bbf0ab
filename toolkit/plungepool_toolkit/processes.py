"""Processes and folders that do not outlive the toolkit, however it ends: a normal exit, Ctrl-C, SIGTERM, SIGKILL."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Self

_WATCHDOG = Path(__file__).with_name("watchdog.py")


class GuardedProcess:
    """
    A process in a session of its own, under a watchdog that ends it when this process is gone.

    Args:
        command: the program and its arguments.
        output: where standard output and error go, appended.
        environment: its environment variables, all of them; None hands on this process's.
        cwd: its working folder.
        identity: (user id, group id) to run as; only root can. The watchdog keeps its own.
        stop: the signals that ask it to end, each with the seconds it is given; SIGKILL to its group comes last.
        linger_s: how long the processes of its group that it leaves behind may go on.
    Raises: OSError if there is no memory or file descriptor left. A program that cannot be run ends with code 127.
    Threads: safe after the constructor; `poll` and `wait` may be called from one thread at a time.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        output: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | str = "/",
        identity: tuple[int, int] | None = None,
        stop: Sequence[tuple[str, float]] = (),
        linger_s: float = 0.0,
    ) -> None:
        self._owner = os.getpid()
        self._report, report = os.pipe()
        self._received = b""
        order: dict[str, Any] = {
            "command": [str(part) for part in command],
            "cwd": str(cwd),
            "identity": identity,
            "stop": list(stop),
            "linger_s": linger_s,
            "report": report,
            "descriptors": [report, *lifelines()],
        }
        try:
            with output.open("ab") as log:
                self._watchdog = subprocess.Popen(
                    # -I -S: no user's site-packages or PYTHON* variables; a third of the usual start-up time
                    [sys.executable, "-I", "-S", str(_WATCHDOG), json.dumps(order)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=None if environment is None else dict(environment),
                    pass_fds=order["descriptors"],
                    start_new_session=True,  # Ctrl-C in the terminal is for the toolkit, which then stops its children
                )
        except BaseException:
            os.close(self._report)
            raise
        finally:
            os.close(report)
        pid = self._line(0, None)
        assert pid is not None, "the watchdog reports a process id before anything else"
        self.pid = pid
        self.started_at = time.time()

    def _line(self, index: int, timeout: float | None) -> int | None:
        """Return the watchdog's line `index` (0: process id, 1: exit code), or None if it does not come in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._received.count(b"\n") <= index:
            wait_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            reader = select.poll()  # select() cannot watch a descriptor from 1024 on, and a fleet has as many
            reader.register(self._report, select.POLLIN)
            if not reader.poll(wait_ms):
                return None
            piece = os.read(self._report, 64)
            if not piece:  # the watchdog was killed: nobody knows how the child ended
                return -signal.SIGKILL
            self._received += piece
        return int(self._received.split(b"\n")[index])

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that ended it), or None while it runs."""
        return self._line(1, 0)

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code, or None if it still runs after `timeout` seconds."""
        return self._line(1, timeout)

    def signal(self, number: int) -> None:
        """Send a signal to the process and to every process of its group; one that has ended is no error."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def stop(self) -> int:
        """End it by its stop signals, then by SIGKILL; return its exit code. Blocks for their seconds at most."""
        if os.getpid() != self._owner:  # a forked child inherits the object, not the right to end the process
            raise RuntimeError("this process was started by the parent of this one; stop it there")
        assert self._watchdog.stdin is not None
        with contextlib.suppress(OSError):  # the watchdog may have ended with its child
            self._watchdog.stdin.write(b".")
            self._watchdog.stdin.flush()
        code = self.wait()
        with contextlib.suppress(OSError):
            self._watchdog.stdin.close()
        self._watchdog.wait()
        if self._report >= 0:
            os.close(self._report)
            self._report = -1
        assert code is not None
        return code


class Closing(ABC):
    """A context manager that leaves by `close`; what starts only at entering overrides `__enter__`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End what was begun, and remove what is temporary; may be called again."""


class TemporaryFolder:
    """
    A folder that goes with `remove`, with this object, or, after this process was killed, with its last child.

    All of a process's temporary folders lie in one that a keeper, a process of its own, makes before anything is in it
    and removes once this process and every GuardedProcess of it are gone.
    """

    def __init__(self, kind: str) -> None:
        self.path = _keep(kind)
        self.remove = weakref.finalize(self, _release, self.path, os.getpid())


def end_of(log: Path) -> str:
    """Return the last lines that a process wrote to its `output`, to be quoted where it failed."""
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


def lifelines() -> tuple[int, ...]:
    """Return the descriptors to hand to a child that uses a TemporaryFolder, so that the folder waits for its end."""
    return _keeper.lifelines if _keeper is not None else ()


class _Keeper:
    def __init__(self) -> None:
        self.owner = os.getpid()
        self.folder = Path(tempfile.gettempdir()) / f"plungepool-{secrets.token_hex(6)}"
        self.kept: set[Path] = set()
        order = json.dumps({"keep": str(self.folder)})
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WATCHDOG), order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdout as answer:
            if answer.read(1) != b".":
                raise OSError(f"no folder can be created in {self.folder.parent}")
        self.lifelines = (self._process.stdin.fileno(),)

    def end(self) -> None:
        self._process.communicate(b".")


_keeper: _Keeper | None = None
_keeper_lock = threading.RLock()  # reentrant: a finalizer may run while it is held


def _keep(kind: str) -> Path:
    global _keeper
    with _keeper_lock:
        if _keeper is None or _keeper.owner != os.getpid():  # a forked child has a keeper of its own
            _keeper = _Keeper()
        path = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=_keeper.folder))
        _keeper.kept.add(path)
        return path


def _release(path: Path, owner: int) -> None:
    """Remove a folder, and with the last one the keeper; nothing in a forked child, where it is the parent's."""
    global _keeper
    with _keeper_lock:
        if os.getpid() != owner:
            return
        shutil.rmtree(path, ignore_errors=True)
        if _keeper is not None and _keeper.owner == owner:
            _keeper.kept.discard(path)
            if not _keeper.kept:
                keeper, _keeper = _keeper, None
                keeper.end()
