"""Orders over HTTP (payload 2.0): list them by pages, read one, place one. What they are made of is in orders.py."""

import json
from functools import partial

import orders
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response, content_types
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.logging import correlation_paths

from plungepool import Unavailable, get_engine, guard_invocation

engine = get_engine()
logger, tracer, metrics = Logger(), Tracer(auto_patch=False), Metrics()  # Tracer() imports all it can patch: 0.5 s
app = APIGatewayHttpResolver(serializer=partial(json.dumps, default=orders.as_json))


@app.get("/orders")
def list_orders() -> dict:
    page = orders.read_page(app.current_event.query_string_parameters)
    with engine.begin() as connection:
        return orders.list_orders(connection, page)


@app.get("/orders/<order_id>")
def get_order(order_id: str) -> dict:
    with engine.begin() as connection:
        order = orders.get_order(connection, order_id)
    if order is None:
        raise NotFoundError(f"There is no order {order_id}")
    return order


@app.post("/orders")
def place_order() -> tuple[dict, int]:
    wanted = orders.read_order(app.current_event)
    with engine.begin() as connection:  # a refusal inside is an exception, which rolls back
        return orders.place_order(connection, wanted), 201


@app.exception_handler([*Unavailable])
def try_again_later(error: Exception) -> Response:
    """The database is unavailable: unreachable, full, no login, too slow. The client may try again."""
    cause = getattr(error, "orig", None) or error
    logger.error("the database is unavailable", sqlstate=getattr(cause, "sqlstate", None), reason=str(cause))
    body = {"statusCode": 503, "message": "Orders are temporarily unavailable. Try again in a few seconds"}
    return Response(503, content_types.APPLICATION_JSON, body, headers={"Retry-After": "2"})


@logger.inject_lambda_context(correlation_id_path=correlation_paths.API_GATEWAY_HTTP)
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics(capture_cold_start_metric=True)
@guard_invocation
def handler(event: dict, context: object) -> dict:
    response = app.resolve(event, context)
    metrics.add_metric(name=f"Answered{response['statusCode']}", unit="Count", value=1)
    return response
