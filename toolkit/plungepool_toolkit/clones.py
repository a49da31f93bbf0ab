"""
Many processes of one snapshot: an initialised runtime that is copied as often as it is restored.

Its other half, clones_inside.py, runs in the function's process. Between the two is one connection, in lines of JSON:
orders go in, and how each clone began and ended comes out; its end is the end of the keeper and of every clone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

from plungepool_toolkit.processes import Closing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any


class Image(Closing):
    """
    The memory of a runtime at its snapshot, in the hands of its keeper.

    `address` is where the keeper has to come to; then `receive` it. Threads: safe.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._channel: socket.socket | None = None
        self._changed = threading.Condition()
        self._one_at_a_time = threading.Lock()
        self._number = 0
        self._begun: dict[int, int | str] = {}  # order -> process id, or why there is none
        self._codes: dict[int, int] = {}  # order -> exit code
        self._gone = False
        self._reader = threading.Thread(target=self._read, name="snapshot", daemon=True)

    def receive(self, timeout_s: float) -> None:
        """Wait for the keeper. Raises: TimeoutError."""
        with self._listener:
            self._listener.settimeout(timeout_s)
            self._channel, _ = self._listener.accept()
        self._channel.settimeout(None)
        self._reader.start()

    def clone(self, log: Path, variables: Mapping[str, str]) -> Clone:
        """
        Return a new process with the memory of the snapshot.

        Args: log: where its standard output and error go, appended. variables: environment variables that it has
            besides those of the snapshot.
        Raises: OSError if there is no memory for it, or the keeper is gone.
        """
        with self._one_at_a_time:
            self._number += 1
            number = self._number
            order = {"number": number, "log": str(log), "variables": dict(variables)}
            assert self._channel is not None, "the keeper was received"
            self._channel.sendall(json.dumps(order).encode() + b"\n")
            with self._changed:
                self._changed.wait_for(lambda: self._gone or number in self._begun)
                pid = self._begun.pop(number, "its keeper is gone")
        if isinstance(pid, str):
            raise OSError(f"the snapshot cannot be restored: {pid}")
        return Clone(self, number, pid)

    def code(self, number: int, timeout_s: float | None) -> int | None:
        """Return the exit code of a clone, or None if it still runs after `timeout_s` seconds; None waits for ever."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone or number in self._codes, timeout_s)
            # As with a watchdog that was killed: nobody knows how the clone ended.
            return self._codes.get(number, -signal.SIGKILL if self._gone else None)

    def close(self) -> None:
        """End the keeper, and every clone that still runs."""
        self._listener.close()
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)
            self._reader.join()
            self._channel.close()

    def _read(self) -> None:
        assert self._channel is not None
        with contextlib.suppress(OSError), self._channel.makefile("rb") as stream:
            for line in stream:
                said: dict[str, Any] = json.loads(line)
                with self._changed:
                    if "ended" in said:
                        self._codes[said["ended"]] = said["code"]
                    elif "begun" in said:
                        self._begun[said["begun"]] = said["pid"]
                    else:
                        self._begun[said["refused"]] = said["why"]
                    self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._changed.notify_all()


class Clone:
    """
    A process of an image, in a group of its own: what a GuardedProcess is, with the keeper for its watchdog.
    """

    def __init__(self, image: Image, number: int, pid: int) -> None:
        self._image, self._number = image, number
        self.pid = pid
        self.started_at = time.time()

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that ended it), or None while it runs."""
        return self._image.code(self._number, 0)

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code, or None if it still runs after `timeout` seconds."""
        return self._image.code(self._number, timeout)

    def signal(self, number: int) -> None:
        """Send a signal to the process and to every process of its group; one that has ended is no error."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def stop(self) -> int:
        """End it by SIGKILL; return its exit code."""
        self.signal(signal.SIGKILL)
        code = self.wait()
        assert code is not None
        return code
