"""
The orders of a tenant: plain functions over a connection whose transaction is in that tenant's name.

No statement names the tenant. Which rows there are, and whose a new one is, say the policies and the default of
tenants.orders (prepare_database/migrations/004_tenants.sql).
"""

import re
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from aws_lambda_powertools.event_handler.exceptions import BadRequestError, NotFoundError
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2
from sqlalchemy import Connection, text

SKU = re.compile(r"[A-Z0-9-]{1,40}")
QUANTITY_AT_MOST, LISTED_AT_MOST = 1000, 100

# The newest ones, by the index orders_by_tenant; how to go on from page to page, handle_orders shows.
LIST = text("SELECT id, sku, quantity, placed_at FROM tenants.orders ORDER BY placed_at DESC, id DESC LIMIT :limit")
GET = text("SELECT id, sku, quantity, placed_at FROM tenants.orders WHERE id = CAST(:id AS uuid)")
PLACE = text("""
    INSERT INTO tenants.orders (sku, quantity)
    SELECT sku, CAST(:quantity AS integer) FROM shop.products WHERE sku = :sku
    RETURNING id, sku, quantity, placed_at
""")


class WantedOrder(NamedTuple):
    """What is ordered, and how many."""

    sku: str
    quantity: int


def read_order(event: APIGatewayProxyEventV2) -> WantedOrder:
    """Read {"sku": …, "quantity": …}, and nothing else, from the body; raises BadRequestError."""
    try:
        wanted = WantedOrder(**event.json_body)
        if SKU.fullmatch(wanted.sku) and type(wanted.quantity) is int and 1 <= wanted.quantity <= QUANTITY_AT_MOST:
            return wanted
    except (AttributeError, RecursionError, TypeError, ValueError):
        pass  # whatever is wrong with it, the answer says what is right
    raise BadRequestError(
        f'The body must be JSON like {{"sku": "TOWEL", "quantity": 1}}, a quantity from 1 to {QUANTITY_AT_MOST}'
    )


def as_json(value: object) -> str:
    """Return how JSON shows what it has no form for: times by ISO 8601, UUIDs as text."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def list_orders(connection: Connection) -> list[dict]:
    """Return the tenant's newest orders. Shape: [{id, sku, quantity, placed_at}], the newest first, 100 at most."""
    return [row._asdict() for row in connection.execute(LIST, {"limit": LISTED_AT_MOST})]


def get_order(connection: Connection, order_id: str) -> dict:
    """Return one order of the tenant; NotFoundError: another's is as unknown as one that nobody has placed."""
    try:
        row = connection.execute(GET, {"id": str(UUID(order_id))}).one_or_none()
    except ValueError:
        row = None
    if row is None:
        raise NotFoundError(f"There is no order {order_id}")
    return row._asdict()


def place_order(connection: Connection, wanted: WantedOrder) -> dict:
    """Store an order of the tenant and return it; raises NotFoundError for an unknown product."""
    row = connection.execute(PLACE, wanted._asdict()).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no product {wanted.sku}")
    return row._asdict()
