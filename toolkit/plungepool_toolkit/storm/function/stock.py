"""SQLAlchemy's own pools over pg8000, as they are used in functions; STORM_STRATEGY says which of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, NullPool, create_engine, text

from plungepool_toolkit.storm.function.work import (
    DATABASE,
    HOST,
    PORT,
    READ,
    USER,
    WRITE,
    answering,
    password,
    retried,
    serve,
    tls,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

STRATEGY = os.environ["STORM_STRATEGY"]
_READ, _WRITE = text(READ.format(":account")), text(WRITE.format(":account"))
# Made once: pg8000 would read the system's authorities at each connect, which is the client's CPU and no pool's.
_TLS = tls() or False
_OPTIONS: dict[str, dict[str, Any]] = {
    "null-pool": {"poolclass": NullPool},
    "null-retry-fast": {"poolclass": NullPool},
    "null-retry-slow": {"poolclass": NullPool},
    "keep-one": {"pool_size": 1, "max_overflow": 0, "pool_pre_ping": True},
}
# Shortest and longest pause, in seconds.
_PAUSES = {"null-retry-fast": (0.02, 1.0), "null-retry-slow": (0.5, 6.0), "keep-one": (0.5, 6.0)}


def _engine() -> Engine:
    url = URL.create("postgresql+pg8000", USER, password(), HOST, PORT, DATABASE)
    options = _OPTIONS.get(STRATEGY, {})
    return create_engine(url, connect_args={"ssl_context": _TLS}, hide_parameters=True, **options)


_shared = _engine()  # its dialect and driver are imported here, before the process is copied


def _use(connection: Connection, asked: dict[str, Any]) -> None:
    with connection, connection.begin():
        connection.execute(_READ, {"account": asked["account"]}).scalar_one()
        serve(asked["service_s"])
        connection.execute(_WRITE, {"account": asked["account"]})


@answering
def handler(event: dict[str, Any], context: Any) -> None:
    engine = _engine() if STRATEGY == "per-invocation" else _shared
    if STRATEGY in _PAUSES:
        _use(retried(engine.connect, *_PAUSES[STRATEGY], context), event)
    else:
        _use(engine.connect(), event)
    serve(event["outside_s"])
