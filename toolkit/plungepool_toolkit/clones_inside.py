"""
Runs a function in place of `-m awslambdaric`: the real client, whose process can be copied at its snapshot; without
SnapStart, before its first invocation.

A script, not a module to import: it runs in the function's own process, by the function's own Python. At the snapshot
the client asks its Runtime API how to go on: either it is restored itself, or it is to be copied. Then it forks a
*keeper*, which is never run again as the function: it forks a clone whenever the toolkit asks for one, tells how each
ends, and ends all of them when the toolkit is gone.

A clone has the memory of the snapshot and nothing else, as on AWS: no hook of `os.register_at_fork` runs in it, since a
fork is only how a snapshot is copied here. (Python's own hooks for threads, logging and executors do run: they make
locks usable, which no snapshot would have broken.) What a fork cannot copy: threads, and the process's id. Without
SnapStart each copy stands for an environment that was initialised by itself, so that `random` begins anew in it.
"""

from __future__ import annotations

# Before anything that registers a hook of its own: the hooks of these three belong to Python's locks.
import concurrent.futures.thread  # isort: skip  # noqa: F401
import logging  # isort: skip  # noqa: F401
import threading  # isort: skip  # noqa: F401
import contextlib
import json
import os
import select
import signal
import socket
import sys
import warnings

TYPE_CHECKING = False  # as in watchdog.py: typing itself takes as long as all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_copying = False
_register_at_fork = getattr(os, "register_at_fork", None)


def register_at_fork(**hooks: Callable[[], object]) -> None:
    """Stand in for `os.register_at_fork`: the hooks run in each fork but those that copy a snapshot."""
    assert _register_at_fork is not None
    _register_at_fork(**{when: _unless_copying(hook) for when, hook in hooks.items()})


def _unless_copying(hook: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        if not _copying:
            hook()

    return run


def copy() -> int:
    """Fork; return 0 in the copy."""
    global _copying
    sys.stdout.flush()
    sys.stderr.flush()
    _copying = True
    try:
        # Python warns of forks in a process with threads: those that the function's init started end in the copy.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    finally:
        _copying = False


def keep(address: str) -> dict[str, Any]:
    """
    Be the keeper that the toolkit talks to at `address`; return in a clone only, with the order that it is made for.
    """
    os.setsid()  # what freezes and ends the process that was copied is not for this one
    host, _, port = address.rpartition(":")
    channel = socket.create_connection((host, int(port)))
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    before = signal.signal(signal.SIGCHLD, lambda *_: None), signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    poller = select.poll()
    for descriptor in (woken, channel.fileno()):
        poller.register(descriptor, select.POLLIN)
    clones: dict[int, int] = {}  # process id -> number of the order
    received = b""
    while True:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if woken in ready:
            os.read(woken, 4096)
        for pid, code in _ended(clones):
            _tell(channel, {"ended": clones.pop(pid), "code": code})
        if channel.fileno() not in ready:
            continue
        piece = _read(channel)
        if not piece:
            break
        *lines, received = (received + piece).split(b"\n")
        for line in lines:
            order: dict[str, Any] = json.loads(line)
            try:
                pid = copy()
            except OSError as error:
                _tell(channel, {"refused": order["number"], "why": str(error)})
                continue
            if pid == 0:
                signal.set_wakeup_fd(before[1])
                signal.signal(signal.SIGCHLD, before[0])
                channel.close()
                os.close(woken)
                os.close(wake)
                return order
            _lead_a_group(pid)
            clones[pid] = order["number"]
            _tell(channel, {"begun": order["number"], "pid": pid})
    for pid in clones:
        _kill(pid)
    os._exit(0)


def _ended(clones: dict[int, int]) -> list[tuple[int, int]]:
    """Return the clones that have ended, with their exit codes; what they left behind in their groups is ended, too."""
    found = []
    for pid in clones:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _kill(pid)
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _kill(pid: int) -> None:
    # Nobody is left in the group; macOS says the second where only a zombie is.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _lead_a_group(pid: int) -> None:
    with contextlib.suppress(OSError):  # it has done so itself, or has ended
        os.setpgid(pid, pid)


def _read(channel: socket.socket) -> bytes:
    try:
        return channel.recv(65536)
    except OSError:
        return b""


def _tell(channel: socket.socket, what: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the toolkit is gone, as the next read says
        channel.sendall(json.dumps(what).encode() + b"\n")


def enter(order: dict[str, Any]) -> None:
    """Make this copy an environment's own process: its group, its log, its variables."""
    _lead_a_group(0)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.environ.update(order["variables"])
    if "tempfile" in sys.modules:
        vars(sys.modules["tempfile"])["tempdir"] = None  # found anew, from the variables
    if not _has_snap_start() and "random" in sys.modules:
        sys.modules["random"].seed()


def _has_snap_start() -> bool:
    return os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start"


def ask(address: str) -> dict[str, Any]:
    """Ask the Runtime API at `address` how to go on from the snapshot; waits until it knows."""
    import http.client  # imports `random`, which registers a hook

    connection = http.client.HTTPConnection(address)
    try:
        connection.request("GET", "/2018-06-01/runtime/restore/next")
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != http.client.OK:
            raise RuntimeError(f"restore/next was answered by {response.status}: {answer}")
        return answer
    finally:
        connection.close()


def main() -> None:
    # As with -m: the function imports from its own folder, and not from this script's.
    sys.path[0] = os.getcwd()
    if _register_at_fork is not None:
        os.register_at_fork = register_at_fork  # type: ignore[assignment]
    # The client's part in C knows one Runtime API for the process's life, from the moment of its import.
    sys.modules["runtime_client"] = None  # type: ignore[assignment]
    from awslambdaric import lambda_runtime_client as client

    del sys.modules["runtime_client"]

    def restore_next(runtime: Any) -> None:
        while address := ask(runtime.lambda_runtime_address).get("keeper"):
            if copy() == 0:
                order = keep(address)
                enter(order)
                runtime.lambda_runtime_address = order["variables"]["AWS_LAMBDA_RUNTIME_API"]
                if not _has_snap_start():
                    break
        import runtime_client

        runtime_client.initialize_client(client._user_agent())
        client.runtime_client = runtime_client

    client.BaseLambdaRuntimeClient.restore_next = restore_next
    if not _has_snap_start():
        wait = client.BaseLambdaRuntimeClient.wait_next_invocation

        def wait_first(runtime: Any) -> Any:
            client.BaseLambdaRuntimeClient.wait_next_invocation = wait
            restore_next(runtime)
            return wait(runtime)

        client.BaseLambdaRuntimeClient.wait_next_invocation = wait_first
    import runpy

    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
