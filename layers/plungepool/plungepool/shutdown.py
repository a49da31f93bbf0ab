"""
SIGTERM, by which Lambda ends an environment: every connection says goodbye to its server before the process ends.

Lambda sends it only where an extension is registered; else it kills the processes at once, and no server hears that its
client is gone. So an extension is registered here, inside the process, for no events. Init is over only when every
extension has asked for its next event: this one asks once, and nobody waits for the answer, which never comes. So there
is no thread, and nothing happens in the background.

The handler runs where the runtime client's main thread is free to run it, which is from Python 3.12 on; before,
nothing is done here, and a handler would only make Lambda wait for the process.

Source: Lambda developer guide, "Extensions API" and "Lambda execution environment lifecycle", "Shutdown phase"; the
source of aws-lambda-runtime-interface-emulator (core/registrations.go, rapid/shutdown.go); awslambdaric,
lambda_config.py.
"""

from __future__ import annotations

# The module signal makes enumerations of every constant, for ten times what all the rest here costs a cold start.
import _signal as signal  # type: ignore[import-not-found]
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import invocation, lifecycle

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

# Unique among the extensions of a function. The processes of one environment share it: one of them is registered, the
# others are refused, and each gets the signal.
_REGISTER = (
    b"POST /2020-01-01/extension/register HTTP/1.1\r\nHost: %b\r\nLambda-Extension-Name: plungepool-shutdown\r\n"
    b'Content-Type: application/json\r\nContent-Length: 14\r\n\r\n{"events": []}'
)
_NEXT = b"GET /2020-01-01/extension/event/next HTTP/1.1\r\nHost: %b\r\nLambda-Extension-Identifier: %b\r\n\r\n"
_IDENTIFIER = b"\r\nlambda-extension-identifier:"
# The Runtime API is on the same machine, and answers within a millisecond.
_ANSWER_WITHIN_S = 1.0

# The extension's connection, open as long as the process lives; False: registering has been tried, in vain or in the
# parent of this process; None: not yet.
_extension: socket.socket | bool | None = None


def listen(environ: Mapping[str, str], *, register: bool) -> None:
    """
    Have every connection say goodbye at SIGTERM, and ask Lambda to send it.

    The handler that is there is called afterwards; one that is set later is the user's, and takes this one's place. In
    another thread than the main one, which cannot set a handler, and where the runtime client would not let it run,
    nothing is done. A registration that is refused, as after init, is no error and is not told: another extension may
    be there, and bring the signal.

    Args: register: whether an extension is registered, once a process; else the signal comes where there is another
        one.
    Blocks: for a second at most, where the Runtime API does not answer.        Forks: a child keeps the handler, which
    ends the child's own connections only.
    """
    global _extension
    if not _can_be_heard(environ):
        return
    before = signal.getsignal(signal.SIGTERM)
    if not isinstance(before, _Goodbye):
        if before is None:  # set by a library in C: it could not be called after this one
            return
        try:
            signal.signal(signal.SIGTERM, _Goodbye(before))
        except ValueError:  # not the main thread
            return
    if register and _extension is None:
        _extension = False
        _extension = _registered(environ["AWS_LAMBDA_RUNTIME_API"]) or False


def _can_be_heard(environ: Mapping[str, str]) -> bool:
    version = environ.get("AWS_EXECUTION_ENV", "").removeprefix("AWS_Lambda_python3.")
    return version.isdecimal() and int(version) >= 12


def _registered(api: str) -> socket.socket | None:
    """Return the connection of an extension that is registered and has asked for its next event; None: it is not."""
    host, _, port = api.rpartition(":")
    sock: socket.socket | None = None
    try:
        sock = socket.socket()
        sock.settimeout(_ANSWER_WITHIN_S)
        sock.connect((host, int(port)))
        name = api.encode()
        sock.sendall(_REGISTER % name)
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = sock.recv(4096)
            if not chunk:
                break
            head += chunk
        at = head.lower().find(_IDENTIFIER)
        if at >= 0:
            identifier = head[at + len(_IDENTIFIER) :].partition(b"\r\n")[0].strip()
            sock.sendall(_NEXT % (name, identifier))
            return sock
    except (OSError, ValueError):
        pass
    if sock is not None:
        with suppress(OSError):
            sock.close()
    return None


class _Goodbye:
    """The handler of SIGTERM, with the one that was there before."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        lifecycle.say_goodbye()
        if invocation.observer is not None:
            invocation.observer.kill()
        if callable(self._before):
            self._before(number, frame)
        elif self._before == signal.SIG_DFL:
            # By the signal, as without this handler: an exit of Python's would wait for the runtime client's thread,
            # for ever.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _in_child() -> None:
    global _extension
    if _extension:
        _extension = False


lifecycle.renew_in_child(_in_child)
