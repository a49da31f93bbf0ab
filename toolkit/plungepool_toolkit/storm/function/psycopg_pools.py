"""psycopg_pool, with one connection at most: an environment has one invocation at a time."""

from __future__ import annotations

from typing import Any

from psycopg_pool import ConnectionPool

from plungepool_toolkit.storm.function.work import (
    CA_FILE,
    DATABASE,
    ENDPOINT,
    HOST,
    MARGIN_S,
    PORT,
    READ,
    USER,
    WRITE,
    answering,
    password,
    serve,
)

_READ, _WRITE = READ.format("%s"), WRITE.format("%s")
_pool: ConnectionPool[Any] = ConnectionPool(
    kwargs={
        "host": HOST,
        "port": PORT,
        "dbname": DATABASE,
        "user": USER,
        "password": password(),
        **({"sslmode": "verify-full", "sslrootcert": CA_FILE} if CA_FILE else {"sslmode": "disable"}),
        # A transaction pooler may give the next transaction another session.
        **({} if ENDPOINT == "direct" else {"prepare_threshold": None}),
    },
    min_size=0,
    max_size=1,
    check=ConnectionPool.check_connection,
    open=False,  # its threads would not be in a copy of this process: opened at the first invocation
)


@answering
def handler(event: dict[str, Any], context: Any) -> None:
    _pool.open()  # nothing where it is open
    left_s = context.get_remaining_time_in_millis() / 1000 - MARGIN_S
    with _pool.connection(timeout=left_s) as connection:
        connection.execute(_READ, (event["account"],)).fetchone()
        serve(event["service_s"])
        connection.execute(_WRITE, (event["account"],))
    serve(event["outside_s"])
