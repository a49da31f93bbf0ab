"""
Requests as in deadlines.py by one connection of pg8000's, under a time-out that a signal raises, as decorators do.
"""

import os
import random
import signal
from typing import Any
from urllib.parse import urlsplit

import pg8000.native

url = urlsplit(os.environ["NAIVE_URL"])
connection = pg8000.native.Connection(url.username, url.hostname, url.path[1:], url.port)
ASKED = "SELECT :number + n, repeat(chr(97 + n), :length) FROM generate_series(0, 9) AS n"


def ask(number: int, length: int) -> bool:
    rows = connection.run(ASKED, number=number, length=length)
    return [tuple(row) for row in rows] == [(number + n, chr(97 + n) * length) for n in range(10)]


def strike(*_: object) -> None:
    raise TimeoutError


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    signal.signal(signal.SIGALRM, strike)
    numbers = random.Random(event["seed"])
    struck = wrong = failed = 0
    for round_ in range(event["rounds"]):
        number = 100 * round_
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, numbers.uniform(1e-6, event["longest_s"]))
                wrong += not ask(number, numbers.randrange(10_000))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Exception:
            struck += 1
        try:
            wrong += not ask(number + 50, numbers.randrange(100))
        except Exception:
            failed += 1
    return {"struck": struck, "wrong": wrong, "failed": failed}
