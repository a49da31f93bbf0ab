"""
The parent of every process that the toolkit starts: it ends its child when the toolkit ends, however that happens.

A script, not a module to import: `processes.start` runs it with `python -I -S`, so it imports only what starts fast.
Standard input is the toolkit's lifeline. A byte on it asks for a stop; its end means that the toolkit is gone (SIGKILL
included), and then the folders in "remove" go too. PR_SET_PDEATHSIG would be shorter, but it fires when the *thread*
that started the child ends, and exists on Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time

TYPE_CHECKING = False  # typing itself costs as much as all the rest of the start
if TYPE_CHECKING:
    from typing import Any


def become_child(order: dict[str, Any]) -> None:
    """Turn this fork into the wanted process: a session of its own, another user where asked for, no fd of ours."""
    os.setsid()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and exec would hand that on
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["identity"]:
        user, group = order["identity"]
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    os.chdir(order["cwd"])
    os.execvp(order["command"][0], order["command"])  # noqa: S606  no shell is wanted


def send(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # nobody is left in the group
        os.killpg(child, number)


def watch(order: dict[str, Any]) -> None:
    report = order["report"]
    os.set_inheritable(report, False)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler the wake-up descriptor stays silent
    signal.set_wakeup_fd(wake)

    child = os.fork()
    if child == 0:
        try:
            become_child(order)
        except OSError as error:
            os.write(2, f"cannot run {order['command'][0]}: {error}\n".encode())
        os._exit(127)
    os.write(report, f"{child}\n".encode())

    sources, orphaned, stops, next_stop = [0, woken], False, list(order["stop"]), None
    while True:
        wait = None if next_stop is None else max(0.0, next_stop - time.monotonic())
        ready, _, _ = select.select(sources, [], [], wait)
        if woken in ready:
            os.read(woken, 4096)
        if 0 in ready:
            orphaned = not os.read(0, 1)
            sources.remove(0)
            next_stop = time.monotonic()
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if next_stop is not None and time.monotonic() >= next_stop:
            name, patience = stops.pop(0) if stops else ("SIGKILL", 1.0)
            if name == "SIGKILL":
                send(child, signal.SIGKILL)
            else:
                os.kill(child, getattr(signal, name))  # the child stops its own children, in its own order
            next_stop = time.monotonic() + patience

    send(child, signal.SIGKILL)  # whatever it started in its group and left behind
    with contextlib.suppress(BrokenPipeError):  # nobody is left to hear it
        os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os.close(report)
    # A child may end by itself, and the toolkit die later: the folders wait for it.
    if not orphaned and 0 in sources and order["remove"]:
        orphaned = not os.read(0, 1)
    if orphaned:
        for folder in order["remove"]:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    watch(json.loads(sys.argv[1]))
    os._exit(0)
