"""A handler that needs several connections at a time, which it takes one after the other."""

from contextlib import ExitStack
from typing import Any

from work import work

from plungepool import Unavailable, get_engine, guard_invocation

engine = get_engine()


@guard_invocation
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    try:
        with ExitStack() as stack:
            connections = [stack.enter_context(engine.begin()) for _ in range(event["connections"])]
            rows = [work(connection, event)[0] for connection in connections]
    except Unavailable as error:
        return {"statusCode": 503, "reason": str(error), "left_ms": context.get_remaining_time_in_millis()}
    return {"statusCode": 200, "rows": rows}
