"""A handler that forgets to give back what it took, and keeps it in a global; the guard is around it."""

from typing import Any

from work import work

from plungepool import get_engine, guard_invocation

engine = get_engine()
kept: list[Any] = []


@guard_invocation
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    connection = engine.connect()
    if event.get("keep"):
        kept.append(connection)
    rows = work(connection, event)
    connection.commit()
    connection.close()
    return {"statusCode": 200, "rows": rows}
