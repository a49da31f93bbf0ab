"""A handler whose transaction runs again where that is safe: `run_transaction`."""

from typing import Any

from work import work

from plungepool import get_engine, guard_invocation, run_transaction

engine = get_engine()


@guard_invocation
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return {"statusCode": 200, "rows": run_transaction(engine, lambda connection: work(connection, event))}
