"""
What an invocation of a storm does with the database, and how it tells that it failed; the same for every strategy.

The event holds the row that is changed, and the seconds that the handler takes within its transaction and after it.
"""

from __future__ import annotations

import functools
import os
import random
import ssl
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Made = TypeVar("_Made")

READ = "SELECT balance FROM accounts WHERE id = {}"
WRITE = "UPDATE accounts SET balance = balance + 1 WHERE id = {}"

HOST, PORT = os.environ["STORM_HOST"], int(os.environ["STORM_PORT"])
DATABASE, USER = os.environ["STORM_DATABASE"], os.environ["STORM_USER"]
ENDPOINT, CA_FILE = os.environ["STORM_ENDPOINT"], os.environ.get("STORM_CA_FILE")
# What is kept free of the deadline, to answer in.
MARGIN_S = 0.5
# A full database or role, one that starts or stops, and a connection that was refused or cut.
PASSING = {"53300", "53400", "57P01", "57P02", "57P03", "08006", "08001", "08004"}


def password() -> str:
    """Return the role's password; asked for where it is used, so that no frame keeps it."""
    return os.environ["STORM_PASSWORD"]


def tls() -> ssl.SSLContext | None:
    """Return how a connect verifies the endpoint; None: plain text."""
    return ssl.create_default_context(cafile=CA_FILE) if CA_FILE else None


def serve(seconds: float) -> None:
    """Take the handler's time."""
    if seconds:
        time.sleep(seconds)


def answering(handle: Callable[[dict[str, Any], Any], None]) -> Callable[[dict[str, Any], Any], dict[str, str | None]]:
    """Make a handler of a function: its answer is the code of what it raised, or nothing."""

    @functools.wraps(handle)
    def handler(event: dict[str, Any], context: Any) -> dict[str, str | None]:
        try:
            handle(event, context)
        except Exception as error:  # noqa: BLE001  # told, as what came of the invocation
            return {"failure": code_of(error)}
        return {"failure": None}

    return handler


def code_of(error: BaseException) -> str:
    """Return the SQLSTATE that an error or its cause has, or else the name of its class."""
    current: BaseException | None = error
    while current is not None:
        inner = getattr(current, "orig", None) or current
        fields = inner.args[0] if inner.args and isinstance(inner.args[0], dict) else {}  # pg8000's
        code = getattr(inner, "sqlstate", None) or fields.get("C")
        if not code and "FATAL:  " in str(inner) and "connection" in str(inner):
            code = "53300" if "too many" in str(inner) or "remaining connection slots" in str(inner) else None
        if isinstance(code, str):
            return code
        current = current.__cause__
    return type(getattr(error, "orig", None) or error).__name__


def retried(connect: Callable[[], _Made], low_s: float, high_s: float, context: Any) -> _Made:
    """
    Return what `connect` makes, trying again after what passes: decorrelated jitter from a shortest to a longest pause.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter". The last try is at a random moment of what is left.
    """
    until = time.time() + context.get_remaining_time_in_millis() / 1000 - MARGIN_S
    pause_s = low_s
    while True:
        try:
            return connect()
        except Exception as error:
            left_s = until - time.time()
            if left_s < 0.05 or not _may_pass(error):
                raise
        pause_s = min(high_s, random.uniform(low_s, pause_s * 3))
        if pause_s >= left_s:
            pause_s = random.uniform(0, left_s)
        time.sleep(pause_s)


def _may_pass(error: BaseException) -> bool:
    return code_of(error) in PASSING or isinstance(getattr(error, "orig", error), OSError)
