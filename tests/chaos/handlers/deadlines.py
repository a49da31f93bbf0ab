"""Requests of random size under deadlines that pass at random moments; after each, a row that must be its own."""

import random
import time
from typing import Any

from sqlalchemy import text

from plungepool import Unavailable, get_engine, guard_invocation

engine = get_engine()
ASKED = text("SELECT :number + n, repeat(chr(97 + n), :length) FROM generate_series(0, 9) AS n")


class Left:
    """What Lambda's context says of the time, for a request with less of it."""

    def __init__(self, seconds: float) -> None:
        self.ends_at = time.time() + seconds

    def get_remaining_time_in_millis(self) -> float:
        return (self.ends_at - time.time()) * 1000


def ask(number: int, length: int) -> bool:
    with engine.begin() as connection:
        rows = connection.execute(ASKED, {"number": number, "length": length}).all()
    return [tuple(row) for row in rows] == [(number + n, chr(97 + n) * length) for n in range(10)]


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    numbers = random.Random(event["seed"])
    struck = wrong = 0
    for round_ in range(event["rounds"]):
        number = 100 * round_
        try:
            with guard_invocation(Left(numbers.uniform(0, event["longest_s"]))):
                wrong += not ask(number, numbers.randrange(10_000))
        except Unavailable:
            struck += 1
        with guard_invocation(context):
            wrong += not ask(number + 50, numbers.randrange(100))
    return {"struck": struck, "wrong": wrong}
