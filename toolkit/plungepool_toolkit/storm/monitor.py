"""
What a storm does to its database, as the database tells it: connections, connects and refusals, CPU.

The monitor's own connection is opened first, in a slot that the application's role does not get; its backend's CPU is
left out. How many are connected is sampled; every connect, every refusal and the peak are read from the server's log,
where each has its moment.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from plungepool_toolkit.storm import results

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from plungepool_toolkit.postgres import Postgres

# What the server has to log for `Log`.
SETTINGS: dict[str, object] = {
    "log_connections": "on",
    "log_disconnections": "on",
    "log_line_prefix": "%n %p %e ",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
}
_SAMPLE_S = 0.05
_SAMPLE = (
    "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity "
    "WHERE usename = $1 AND backend_type = 'client backend' AND state IS NOT NULL"
)
# A full database or role, and a server that is not ready.
_REFUSED = ("53300", "53400", "57P03")
_LINE = re.compile(r"^(\d+\.\d+) (\d+) (\w{5}) (\w+):  (.*)$", re.MULTILINE)


@dataclass(slots=True)
class Log:
    """What the server's log says of a role's connections. Units: seconds since the epoch."""

    connects: list[float] = field(default_factory=list)
    refused: int = 0
    peak: int = 0

    @classmethod
    def read(cls, text: str, user: str) -> Log:
        """Return what a log says, whose lines are as `SETTINGS` has them."""
        log, began, ends = cls(), dict[str, float](), list[tuple[float, int]]()
        for at, pid, state, level, message in _LINE.findall(text):
            if message.startswith(f"connection authorized: user={user} "):
                began[pid] = float(at)
            elif level == "FATAL" and state in _REFUSED:
                log.refused += 1
                began.pop(pid, None)  # the reserved slots are kept free of it after it is authorized
            elif message.startswith("disconnection:") and pid in began:
                log.connects.append(begun := began.pop(pid))
                ends += [(begun, 1), (float(at), -1)]
        log.connects += began.values()
        ends += [(begun, 1) for begun in began.values()]
        now = 0
        for _, step in sorted(ends):  # of two at one moment, the one that ends comes first
            now += step
            log.peak = max(log.peak, now)
        return log


class Monitor:
    """
    Watches a server while the block runs.

    Args: user: the application's role. Raises: OSError and pg8000's errors where the server cannot be asked.
    Threads: a thread of its own samples; all is read after the block.
    """

    def __init__(self, server: Postgres, user: str) -> None:
        self._server, self._user = server, user
        self._stack = contextlib.ExitStack()
        self._ended = threading.Event()
        self._samples: list[tuple[float, int, int]] = []
        self._begun = self._cpu_s = self.wall_s = 0.0
        self.cpu_s: float | None = None
        self.log = Log()

    def __enter__(self) -> Self:
        self._connect()
        self._mark = len(self._server.log)
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)
        return self

    def _connect(self) -> None:
        self._stack.close()
        self._run = self._stack.enter_context(self._server.session())
        self._own = self._run("SELECT pg_backend_pid()")[0][0]

    def begin(self) -> None:
        """Begin to count: what was done to get ready is none of the storm."""
        self._begun, self._cpu_s, self._pid = time.time(), self._cpu() or 0.0, self._server.pid
        self._thread.start()

    def end(self) -> None:
        """Count no more: what comes now is the fleet's end."""
        self.wall_s = time.time() - self._begun
        # After a restart nobody knows what the server's processes before it took.
        if self._pid == self._server.pid and (cpu_s := self._cpu()) is not None:
            self.cpu_s = round(cpu_s - self._cpu_s, 2)
        self._ended.set()
        self._thread.join()
        self.log = Log.read(self._server.log[self._mark :], self._user)

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._stack.close()

    @property
    def connections(self) -> results.Connections:
        """The role's connections while it was counted."""
        count = len(self._samples)
        return results.Connections(
            peak=max(self.log.peak, *(one[1] for one in self._samples), 0),
            mean=round(sum(one[1] for one in self._samples) / count, 1) if count else 0.0,
            times_s=[round(one[0], 2) for one in self._samples],
            open=[one[1] for one in self._samples],
            in_use=[one[2] for one in self._samples],
        )

    @property
    def connects_per_s(self) -> results.PerSecond:
        """How fast connections were opened."""
        return results.PerSecond.of(self.log.connects, self.wall_s)

    @property
    def connect_times_s(self) -> list[float]:
        """When each connection was opened, in seconds from the beginning."""
        return sorted(round(at - self._begun, 3) for at in self.log.connects)

    def _watch(self) -> None:
        while not self._ended.is_set():
            at = time.time()
            try:
                opened, in_use = self._run(_SAMPLE, self._user)[0]
            except Exception:  # noqa: BLE001  # the server restarts: there is nothing to see, and the session is gone
                with contextlib.suppress(Exception):
                    self._connect()
            else:
                self._samples.append((at - self._begun, opened, in_use))
            self._ended.wait(_SAMPLE_S)

    def _cpu(self) -> float | None:
        """Return the CPU seconds of the server's processes so far, those that have ended included; None: unknown."""
        try:
            own, of_ended = _times(self._server.pid)
            living = sum(sum(_times(pid)) for pid in _children(self._server.pid) if pid != self._own)
        except (OSError, ValueError):
            return None
        return own + of_ended + living


def _times(pid: int) -> tuple[float, float]:
    """Return the CPU seconds of a process, and those of its children that have ended."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, children_user, children_system = (int(value) for value in values[11:15])
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + system) / ticks, (children_user + children_system) / ticks


def _children(parent: int) -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    yield int(entry.name)
