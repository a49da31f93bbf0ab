"""
Whether an in-process extension brings SIGTERM, also after a restore from a snapshot, and whether init has more CPU; a
Lambda function of `plungepool verify-aws`, once without SnapStart and once with it.

The extension registers for no events and asks for the next one, once; nobody reads the answer, which never comes. That
makes Lambda send SIGTERM to the runtime before it ends the environment, as the layer has it. What arrives is written to
the log, where the caller looks for it.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

NAME = "plungepool-probe"


def _work_s() -> float:
    started = time.perf_counter()
    total = 0
    for number in range(300_000):
        total += number * number % 7
    return time.perf_counter() - started


def _say(**what: Any) -> None:
    # One write, so that the line is whole even if the process is killed a moment later.
    os.write(sys.stdout.fileno(), (json.dumps({"plungepool_probe": what}) + "\n").encode())


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    _say(seen="SIGTERM", at=time.time())
    os._exit(0)  # Lambda gives half a second, and would kill what takes longer


def _register() -> str:
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"], timeout=5)
    api.request(
        "POST",
        "/2020-01-01/extension/register",
        json.dumps({"events": []}),
        {"Lambda-Extension-Name": NAME, "Content-Type": "application/json"},
    )
    response = api.getresponse()
    response.read()
    if response.status != 200:
        _say(seen="registration refused", status=response.status)
    return str(response.headers.get("Lambda-Extension-Identifier", ""))


def _ask_for_the_next(identifier: str) -> http.client.HTTPConnection:
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    api.request("GET", "/2020-01-01/extension/event/next", headers={"Lambda-Extension-Identifier": identifier})
    return api


# The first run warms up the interpreter, which specialises what it runs often.
_work_s()
INIT_S = _work_s()

signal.signal(signal.SIGTERM, _on_sigterm)
IDENTIFIER = _register()
# Open as long as the process lives.
EXTENSION = _ask_for_the_next(IDENTIFIER)


def _is_open() -> bool:
    """Whether the connection on which init asked for the next event is there: nothing has come, not even its end."""
    return EXTENSION.sock is not None and not select.select([EXTENSION.sock], [], [], 0)[0]


def _known(within_s: float) -> str:
    """
    Ask for the next event by the identifier of init, on a connection of its own; return the answer, or "waits".

    An identifier that is not known is answered at once.
    """
    api = _ask_for_the_next(IDENTIFIER)
    try:
        if api.sock is None or not select.select([api.sock], [], [], within_s)[0]:
            return "waits"
        response = api.getresponse()
        said = json.loads(response.read() or b"{}")
        return f"{response.status} {said.get('errorType', '')}".strip()
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        return type(error).__name__
    finally:
        api.close()


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """
    Return how long the same work takes in init and here, in seconds; for {"registration": true} what is left of it.

    Shape: {"init_s", "handler_s": float, "python", "began": how the environment did}, and "connection": bool,
        "registration": what the Extensions API answers to the identifier of init.
    """
    found = {
        "init_s": INIT_S,
        "handler_s": min(_work_s() for _ in range(3)),
        "python": sys.version.split()[0],
        "began": os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "unknown"),
    }
    if event.get("registration"):
        found |= {"connection": _is_open(), "registration": _known(2.0)}
    return found
