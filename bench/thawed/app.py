"""
One contender of the recovery table as a Lambda function: its engine is made outside the handler, as its users make it.

BENCH_CONTENDER names it: `plungepool`, whose PLUNGEPOOL_ variables are a user's; or `psycopg`, SQLAlchemy's own pool
with pool_pre_ping, which reaches BENCH_URL with what BENCH_OPTIONS holds.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

if os.environ["BENCH_CONTENDER"] == "plungepool":
    from plungepool import get_engine, guard_invocation

    engine = get_engine()
    guard: Any = guard_invocation
else:
    import sqlalchemy

    options = json.loads(os.environ["BENCH_OPTIONS"])
    engine = sqlalchemy.create_engine(os.environ["BENCH_URL"], pool_pre_ping=True, connect_args=options)
    guard = contextlib.nullcontext
from sqlalchemy import exc, text


def handler(event: dict[str, Any], context: object) -> str:
    """Write one row; return "answered", or what an API would answer 503 to."""
    try:
        with guard(context), engine.begin() as connection:
            connection.execute(text("INSERT INTO written (n) VALUES (:n)"), {"n": event["n"]})
    except exc.DBAPIError as error:
        return f"{type(error.orig).__name__}, {getattr(error.orig, 'sqlstate', None) or 'no SQLSTATE'}"
    return "answered"
