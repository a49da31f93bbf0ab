"""The fleet's connections replaced, as `plungepool drain` does it from outside: {"drain": {}}."""

import os
from dataclasses import replace

from aws_lambda_powertools import Logger
from preparation import PreparationError

from plungepool import Settings, drain

logger = Logger()
# What is left of the invocation for its answer.
MARGIN_S = 5.0
LINE_EVERY_S = 5.0


def run(event: dict, context: object) -> dict:
    """
    End the idle connections of the application's role, a few a second, until none is left that was there.

    Args: event: {"drain": the options of plungepool.drain.Options}; its role is the application's where none is named,
        and it ends a few seconds before the invocation does.
    Returns: plungepool.drain.Progress as a document; `left` is what is still there.
    Raises: PreparationError, plungepool.drain.DrainError, both before anything is ended; sqlalchemy.exc.DBAPIError.
    """
    if others := sorted(set(event) - {"drain"}):
        raise PreparationError(f"drain must be used alone, without {', '.join(others)}")
    options = drain.Options.read(event["drain"])
    role = options.role or os.environ.get("APP_ROLE_NAME") or "plungepool_app"
    left_s = max(0.0, context.get_remaining_time_in_millis() / 1000 - MARGIN_S)
    options = replace(options, role=role, limit_s=min(options.limit_s, left_s))
    said_s, engine = 0.0, drain.own_engine(Settings.from_env(os.environ))
    try:
        for progress in drain.drain(engine, options):
            if progress.took_s - said_s >= LINE_EVERY_S and not progress.over:
                said_s = progress.took_s
                logger.info("draining", **progress.as_document())
    finally:
        engine.dispose()
    result = progress.as_document()
    logger.info("drained", **result)
    if result["others"]:
        logger.warning("no connection has that application_name; the names in use are in `others`")
    if result["left"] and not options.dry_run:
        logger.warning("some connections are left, in a transaction or in constant use: invoke it again")
    return result
