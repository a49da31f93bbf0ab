"""Orders from a queue: fulfil each once, each in its own transaction; what fails is redelivered, and it alone."""

from uuid import UUID

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.utilities.data_classes import SQSEvent
from sqlalchemy import Connection, text

from plungepool import OutcomeUnknown, Unavailable, get_engine, guard_invocation, once, run_transaction

engine = get_engine()
logger, tracer, metrics = Logger(), Tracer(auto_patch=False), Metrics()  # Tracer() imports all it can patch: 0.5 s

FULFIL = text("""
    WITH fulfilled AS (
        UPDATE shop.orders SET status = 'fulfilled', fulfilled_at = now()
        WHERE id = CAST(:id AS uuid) AND status = 'placed' RETURNING id
    )
    INSERT INTO shop.shipments (order_id) SELECT id FROM fulfilled RETURNING order_id
""")
KNOWN = text("SELECT true FROM shop.orders WHERE id = CAST(:id AS uuid)")
# Serialization failure, deadlock, lock and statement time-out: the trouble of one record, not of the database.
OF_ONE_RECORD = {"40001", "40P01", "55P03", "57014"}


def fulfil_order(connection: Connection, order_id: str) -> bool:
    """Fulfil a placed order; False where it was fulfilled before. Raises LookupError where there is no such order."""
    if not once(connection, f"fulfil {order_id}"):  # recorded with the effect: both are committed, or neither is
        return False
    if connection.execute(FULFIL, {"id": order_id}).first():
        return True
    if connection.execute(KNOWN, {"id": order_id}).first():
        return False
    raise LookupError(f"there is no order {order_id}")


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics(capture_cold_start_metric=True)
@guard_invocation
def handler(event: dict, context: object) -> dict:
    failed, fulfilled = [], 0
    for position, record in enumerate(records := list(SQSEvent(event).records)):
        try:
            order_id = str(UUID(record.json_body["order_id"]))
            fulfilled += run_transaction(engine, lambda connection: fulfil_order(connection, order_id))  # noqa: B023
        except (*Unavailable, OutcomeUnknown) as error:
            sqlstate = getattr(cause := getattr(error, "orig", None) or error, "sqlstate", None)
            logger.error("an order cannot be fulfilled now", sqlstate=sqlstate, reason=str(cause))
            if sqlstate not in OF_ONE_RECORD:  # the database is unavailable: the rest would only wait in turn
                failed += [left.message_id for left in records[position:]]
                break
            failed.append(record.message_id)
        except Exception:  # whatever is wrong with one record, the others must not suffer
            logger.exception("a message is wrong", message_id=record.message_id)
            failed.append(record.message_id)
    metrics.add_metric(name="OrdersFulfilled", unit="Count", value=fulfilled)
    metrics.add_metric(name="MessagesReturned", unit="Count", value=len(failed))
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}
