"""Child processes that do not outlive the toolkit, whichever way it ends: a normal exit, Ctrl-C, SIGTERM, SIGKILL."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
        remove: folders that the watchdog deletes when this process died without having stopped it.
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
        remove: Sequence[Path] = (),
    ) -> None:
        self._owner = os.getpid()
        self._report, report = os.pipe()
        self._received = b""
        order = {
            "command": [str(part) for part in command],
            "cwd": str(cwd),
            "identity": identity,
            "stop": list(stop),
            "remove": [str(folder) for folder in remove],
            "report": report,
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
                    pass_fds=[report],
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
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._report], [], [], wait)[0]:
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
