"""A handler that asks for several things at a time, each thread with a transaction of its own."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from work import work

from plungepool import Unavailable, get_engine, guard_invocation

engine = get_engine()


@guard_invocation
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    together = threading.Barrier(event["threads"])

    def ask(_number: int) -> list[list[Any]]:
        try:
            with engine.begin() as connection:
                rows = work(connection, event)
                together.wait()  # so that each has a connection of its own
                return rows
        except BaseException:
            together.abort()  # nobody waits for this one any more
            raise

    try:
        with ThreadPoolExecutor(event["threads"]) as executor:
            return {"statusCode": 200, "rows": list(executor.map(ask, range(event["threads"])))}
    except (*Unavailable, threading.BrokenBarrierError) as error:
        return {"statusCode": 503, "reason": str(error), "left_ms": context.get_remaining_time_in_millis()}
