"""A handler that uses its database at init already, as those do that fill a cache there."""

from typing import Any

from sqlalchemy import text
from work import work

from plungepool import get_engine, guard_invocation

engine = get_engine()
with engine.begin() as connection:
    connection.execute(text("SELECT 1"))


@guard_invocation
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    with engine.begin() as connection:
        return {"statusCode": 200, "rows": work(connection, event)}
