"""The sales of a day, on a schedule: a read-only transaction, and an aggregate that an index answers."""

from datetime import UTC, datetime, timedelta

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.utilities.data_classes import EventBridgeEvent
from sqlalchemy import Connection, text

from plungepool import get_engine, guard_invocation

engine = get_engine().execution_options(postgresql_readonly=True)  # the same pool; PostgreSQL refuses any write
logger, tracer, metrics = Logger(), Tracer(auto_patch=False), Metrics()  # Tracer() imports all it can patch: 0.5 s

# A range of the index orders_by_time, and the lines of those orders by their primary key.
SALES = text("""
    SELECT sku, count(*) AS orders, sum(quantity) AS sold, sum(quantity * price) AS revenue
    FROM shop.orders JOIN shop.order_lines ON order_id = id
    WHERE placed_at >= CAST(:since AS timestamptz) AND placed_at < CAST(:until AS timestamptz)
    GROUP BY sku ORDER BY revenue DESC, sku
""")


def report_sales(connection: Connection, since: datetime, until: datetime) -> list[dict]:
    """
    Return what was sold from `since` until just before `until`.

    Shape: {sku, orders, sold, revenue} a product, the best seller first; revenue is an exact decimal as text.
    """
    rows = connection.execute(SALES, {"since": since.isoformat(), "until": until.isoformat()})
    return [row._asdict() | {"revenue": str(row.revenue)} for row in rows]


def day_before(moment: str) -> tuple[datetime, datetime]:
    """
    Return midnight to midnight UTC of the day before: the schedule's own time, so that a retry reports the same.

    Raises: ValueError for what is no time, or has no day before.
    """
    try:
        parsed = datetime.fromisoformat(moment)
        moment_utc = parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
        until = moment_utc.replace(hour=0, minute=0, second=0, microsecond=0)
        return until - timedelta(days=1), until
    except (OverflowError, TypeError, ValueError):
        raise ValueError("time must be the time of the schedule, such as 2026-01-15T06:00:00Z") from None


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics(capture_cold_start_metric=True)
@guard_invocation
def handler(event: dict, context: object) -> dict:
    since, until = day_before(EventBridgeEvent(event).get("time"))
    with engine.begin() as connection:
        products = report_sales(connection, since, until)
    report = {"day": since.date().isoformat(), "products": products}
    logger.info("sales", **report)
    metrics.add_metric(name="ProductsSold", unit="Count", value=sum(product["sold"] for product in products))
    return report
