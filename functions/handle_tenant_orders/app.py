"""Orders of several tenants over HTTP (payload 2.0): each sees its own, by the policies of the table."""

import json
from contextlib import AbstractContextManager
from functools import partial

import orders
import tenants
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response, content_types
from aws_lambda_powertools.logging import correlation_paths
from sqlalchemy import Connection

from plungepool import Unavailable, get_engine, guard_invocation

engine = get_engine()
logger = Logger()
app = APIGatewayHttpResolver(serializer=partial(json.dumps, default=orders.as_json))


def for_the_tenant() -> AbstractContextManager[Connection]:
    """Return a transaction in the tenant's name, which the policies read; who has none is refused before it begins."""
    settings = {"app.tenant_id": tenants.tenant_of(app.current_event)}
    return engine.execution_options(plungepool_settings=settings).begin()


@app.get("/orders")
def list_orders() -> dict:
    with for_the_tenant() as connection:
        return {"orders": orders.list_orders(connection)}


@app.get("/orders/<order_id>")
def get_order(order_id: str) -> dict:
    with for_the_tenant() as connection:
        return orders.get_order(connection, order_id)


@app.post("/orders")
def place_order() -> tuple[dict, int]:
    transaction, wanted = for_the_tenant(), orders.read_order(app.current_event)
    with transaction as connection:
        return orders.place_order(connection, wanted), 201


@app.exception_handler([*Unavailable])
def try_again_later(error: Exception) -> Response:
    cause = getattr(error, "orig", None) or error
    logger.error("the database is unavailable", sqlstate=getattr(cause, "sqlstate", None), reason=str(cause))
    body = {"statusCode": 503, "message": "Orders are temporarily unavailable. Try again in a few seconds"}
    return Response(503, content_types.APPLICATION_JSON, body, headers={"Retry-After": "2"})


@logger.inject_lambda_context(correlation_id_path=correlation_paths.API_GATEWAY_HTTP)
@guard_invocation
def handler(event: dict, context: object) -> dict:
    return app.resolve(event, context)
