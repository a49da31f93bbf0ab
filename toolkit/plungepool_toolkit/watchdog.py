"""
The parent of every process that the toolkit starts: it ends its child when the toolkit ends, however that happens.

A script, not a module to import: `processes.start` runs it with `python -I -S`, so it imports only what starts fast.
Standard input is the toolkit's lifeline. A byte on it asks for a stop; its end means that the toolkit is gone, SIGKILL
included. PR_SET_PDEATHSIG would be shorter, but it fires when the *thread* that started the child ends, and exists on
Linux only. With {"keep": folder} there is no child: the script makes the folder and removes it at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
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


def anybody_in(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


def tell(descriptor: int, text: str) -> None:
    """Tell the toolkit; it may be gone, struck by Ctrl-C before it has heard the first word."""
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptor, text.encode())


def watch(order: dict[str, Any]) -> None:
    report = order["report"]
    for descriptor in order["descriptors"]:
        os.set_inheritable(descriptor, False)  # they are the watchdog's, not the child's
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
    tell(report, f"{child}\n")

    sources, stops, next_stop = [0, woken], list(order["stop"]), None
    while True:
        wait = None if next_stop is None else max(0.0, next_stop - time.monotonic())
        ready, _, _ = select.select(sources, [], [], wait)
        if woken in ready:
            os.read(woken, 4096)
        if 0 in ready:
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

    patience = time.monotonic() + order["linger_s"]
    while time.monotonic() < patience and anybody_in(child):
        time.sleep(0.002)
    send(child, signal.SIGKILL)  # whatever it started in its group and left behind
    tell(report, f"{os.waitstatus_to_exitcode(status)}\n")


def keep(folder: str) -> None:
    os.umask(0o066)  # the caller's may close to others what they must get through
    os.mkdir(folder, 0o711)  # others, such as PostgreSQL's user, get through to what they know by name
    tell(1, ".")
    os.read(0, 1)
    import shutil  # slow to import, and only needed now

    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    if "keep" in task:
        keep(task["keep"])
    else:
        watch(task)
    os._exit(0)
