"""Prepare the database: schema, role, limits; or drain its connections. Invoked directly, or by CloudFormation."""

import cloudformation
import draining
import preparation
from aws_lambda_powertools import Logger, Metrics, Tracer

from plungepool import get_engine

logger, tracer, metrics = Logger(), Tracer(auto_patch=False), Metrics()  # Tracer() imports all it can patch: 0.5 s


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics(capture_cold_start_metric=True)
def handler(event: dict, context: object) -> dict:
    if not isinstance(event, dict) or "ResponseURL" not in event:
        drains = isinstance(event, dict) and "drain" in event
        return draining.run(event, context) if drains else prepare(event, context)
    cloudformation.check(event)
    # CloudFormation waits an hour for an answer that does not come: whatever happens, there is one.
    try:
        # Deleting the stack leaves the data alone: the database belongs to somebody else, or goes as a whole.
        result = {} if event["RequestType"] == "Delete" else prepare(event.get("ResourceProperties", {}), context)
        status, reason = "SUCCESS", "prepared"
    except Exception as error:
        logger.exception("the database could not be prepared")
        status, reason, result = "FAILED", describe(error), {}
    metrics.add_metric(name="PreparationsFailed", unit="Count", value=int(status == "FAILED"))
    cloudformation.answer(event, context, status, reason, result)
    return {"Status": status, "Reason": reason}


def prepare(properties: dict, context: object) -> dict:
    options = preparation.Options.read(properties)
    # Not at module scope as in the other functions: settings that are wrong must not stop the answer to CloudFormation.
    # get_engine() keeps its engine, so that a warm invocation has the same one.
    with get_engine().begin() as connection:
        result = preparation.prepare(connection, options, context.get_remaining_time_in_millis() / 1000)
    metrics.add_metric(name="MigrationsApplied", unit="Count", value=len(result["applied"]))
    logger.info("prepared", **result)
    logger.info("limits of the role: %s", preparation.tell(result["limits"]))
    if result["public_may_create"]:
        logger.warning(
            "everyone may create objects in schema public: ask its owner to REVOKE CREATE ON SCHEMA public FROM PUBLIC"
        )
    return result


def describe(error: Exception) -> str:
    """Say what happened in a line; the database's own errors end with their SQLSTATE, and quote no parameter."""
    return f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"
