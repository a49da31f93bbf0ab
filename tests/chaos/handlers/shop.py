"""A handler as README shows it: the engine outside, the guard around it; an unavailable database is 503."""

from typing import Any

from work import work

from plungepool import Unavailable, get_engine, guard_invocation

engine = get_engine()


@guard_invocation
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    try:
        with engine.begin() as connection:
            rows = work(connection, event)
    except Unavailable as error:
        cause = getattr(error, "orig", None) or error
        return {
            "statusCode": 503,
            "error": type(cause).__name__,
            "sqlstate": getattr(cause, "sqlstate", None),
            "reason": str(cause),
            "left_ms": context.get_remaining_time_in_millis(),
        }
    return {"statusCode": 200, "rows": rows}
