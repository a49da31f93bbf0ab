"""What every handler here does with a connection."""

import time
from typing import Any

from sqlalchemy import Connection, text


def work(connection: Connection, event: dict[str, Any]) -> list[list[Any]]:
    """Run the event's statements in the transaction of this connection; return the rows of the last one."""
    rows = []
    for statement in event["statements"]:
        result = connection.execute(text(statement), event.get("parameters", {}))
        rows = [list(row) for row in result] if result.returns_rows else []
    time.sleep(event.get("hold_s", 0))  # it computes, and the transaction is open
    if event.get("raises"):
        raise LookupError(event["raises"])
    return rows
