"""Plungepool's engine, as README has it; the PLUNGEPOOL_ variables say which pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from plungepool import get_engine, guard_invocation, run_transaction
from plungepool_toolkit.storm.function.work import READ, WRITE, answering, serve

if TYPE_CHECKING:
    from sqlalchemy import Connection

engine = get_engine()
_READ, _WRITE = text(READ.format(":account")), text(WRITE.format(":account"))


@answering
@guard_invocation
def handler(event: dict[str, Any], _context: Any) -> None:
    def work(connection: Connection) -> None:
        connection.execute(_READ, {"account": event["account"]}).scalar_one()
        serve(event["service_s"])
        connection.execute(_WRITE, {"account": event["account"]})

    run_transaction(engine, work)
    serve(event["outside_s"])
