"""What a shop does with orders: plain functions over a connection. Whoever calls them owns the transaction."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from aws_lambda_powertools.event_handler.exceptions import BadRequestError, NotFoundError, ServiceError
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2
from sqlalchemy import Connection, text

SKU = re.compile(r"[A-Z0-9-]{1,40}")
LINES_AT_MOST, QUANTITY_AT_MOST, PAGE_AT_MOST = 50, 1000, 100
TOTAL_AT_MOST = Decimal("999999999999.99")  # of numeric(14, 2)
# Always UTC. With Z, because the plus sign of +00:00 means a space in an address.
CURSOR_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
# The cursor of the first page: it comes after every order.
NEWEST = "infinity~ffffffff-ffff-ffff-ffff-ffffffffffff"

# A page starts where the last one ended, by the index orders_by_time; an OFFSET would read all that it skips.
LIST = text("""
    SELECT id, customer_id, status, total, placed_at, fulfilled_at FROM shop.orders
    WHERE (placed_at, id) < (CAST(:placed_at AS timestamptz), CAST(:id AS uuid))
    ORDER BY placed_at DESC, id DESC LIMIT :limit
""")
GET = text("""
    SELECT id, customer_id, status, total, placed_at, fulfilled_at, sku, quantity, price
    FROM shop.orders JOIN shop.order_lines ON order_id = id
    WHERE id = CAST(:id AS uuid) ORDER BY sku
""")
# Locked in the order of their names, so that two orders for the same products never wait for each other in a circle.
LOCK = text("SELECT sku, price, stock FROM shop.products WHERE sku = ANY(:skus) ORDER BY sku FOR UPDATE")
PLACE = text("""
    INSERT INTO shop.orders (customer_id, total)
    SELECT id, CAST(:total AS numeric) FROM shop.customers WHERE id = CAST(:customer_id AS uuid)
    RETURNING id
""")
TAKE = text("""
    WITH line AS (
        INSERT INTO shop.order_lines (order_id, sku, quantity, price)
        SELECT CAST(:order_id AS uuid), sku, quantity, price
        FROM unnest(CAST(:skus AS text[]), CAST(:quantities AS integer[])) AS wanted (sku, quantity)
        JOIN shop.products USING (sku)
        RETURNING sku, quantity
    )
    UPDATE shop.products SET stock = stock - line.quantity FROM line WHERE products.sku = line.sku
""")


class Page(NamedTuple):
    """Which orders to list: at most `limit`, those that come after the cursor."""

    limit: int
    placed_at: str
    id: str


class WantedOrder(NamedTuple):
    """Who wants how many of what; `quantities` by SKU."""

    customer_id: str
    quantities: dict[str, int]


def read_page(parameters: dict[str, str]) -> Page:
    """Read ?limit=…&cursor=…; raises BadRequestError."""
    limit, cursor = parameters.get("limit", "20"), parameters.get("cursor", NEWEST)
    if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= PAGE_AT_MOST:
        raise BadRequestError(f"limit must be a whole number from 1 to {PAGE_AT_MOST}")
    placed_at, _, order_id = cursor.partition("~")
    try:
        if cursor != NEWEST:  # exactly the form that next_cursor has: Python reads offsets that PostgreSQL does not
            placed_at = f"{datetime.strptime(placed_at, CURSOR_TIME).isoformat()}Z"
        return Page(int(limit), placed_at, str(UUID(order_id)))
    except ValueError:
        raise BadRequestError("cursor must be the next_cursor of the previous page") from None


def read_order(event: APIGatewayProxyEventV2) -> WantedOrder:
    """Read {"customer_id": …, "lines": [{"sku": …, "quantity": …}, …]} from the body; raises BadRequestError."""
    try:
        body = event.json_body
        lines = [(line["sku"], line["quantity"]) for line in body["lines"]]
        wanted = WantedOrder(str(UUID(body["customer_id"])), dict(lines))
        known = all(
            SKU.fullmatch(sku) and type(quantity) is int and 1 <= quantity <= QUANTITY_AT_MOST
            for sku, quantity in lines
        )
        if known and len(wanted.quantities) == len(lines) and 1 <= len(lines) <= LINES_AT_MOST:
            return wanted
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        pass  # whatever is wrong with it, the answer says what is right
    raise BadRequestError(
        'The body must be JSON like {"customer_id": "a UUID", "lines": [{"sku": "TOWEL", "quantity": 1}]}, with '
        f"1 to {LINES_AT_MOST} lines of different SKUs and quantities from 1 to {QUANTITY_AT_MOST}"
    )


def as_json(value: object) -> str:
    """
    Return how JSON shows what it has no form for: times by ISO 8601; UUIDs and numeric, which stays exact, as text.
    """
    return value.isoformat() if isinstance(value, datetime) else str(value)


def list_orders(connection: Connection, page: Page) -> dict:
    """
    Return a page of orders, the newest first, and the cursor of the next page (None at the end).

    Shape: {"orders": [{id, customer_id, status, total, placed_at, fulfilled_at}], "next_cursor": str | None}.
    """
    # One more than asked for tells whether there is a next page.
    found = [row._asdict() for row in connection.execute(LIST, page._asdict() | {"limit": page.limit + 1})]
    shown = found[: page.limit]
    cursor = None
    if len(found) > len(shown):
        cursor = f"{shown[-1]['placed_at'].astimezone(UTC).strftime(CURSOR_TIME)}~{shown[-1]['id']}"
    return {"orders": shown, "next_cursor": cursor}


def get_order(connection: Connection, order_id: str) -> dict | None:
    """
    Return one order with its lines, or None where there is no such order.

    Shape: {id, customer_id, status, total, placed_at, fulfilled_at, "lines": [{sku, quantity, price}]}.
    """
    try:
        rows = connection.execute(GET, {"id": str(UUID(order_id))}).mappings().all()
    except ValueError:
        return None
    if not rows:
        return None
    line = ("sku", "quantity", "price")
    order = {name: value for name, value in rows[0].items() if name not in line}
    return order | {"lines": [{name: row[name] for name in line} for row in rows]}


def place_order(connection: Connection, wanted: WantedOrder) -> dict:
    """
    Take the products from the stock and return the new order; four round trips, the transaction's own included.

    Raises: NotFoundError for an unknown product or customer, ServiceError 409 where the stock does not suffice,
        BadRequestError for a total that no order can have; the caller's transaction is then to be rolled back.
    """
    skus = sorted(wanted.quantities)
    products = {row.sku: row for row in connection.execute(LOCK, {"skus": skus})}
    if unknown := [sku for sku in skus if sku not in products]:
        raise NotFoundError(f"There is no product {', '.join(unknown)}")
    if short := [sku for sku in skus if products[sku].stock < wanted.quantities[sku]]:
        raise ServiceError(409, f"Not enough in stock of {', '.join(short)}")
    total = sum(products[sku].price * wanted.quantities[sku] for sku in skus)
    if total > TOTAL_AT_MOST:
        raise BadRequestError(f"An order may cost {TOTAL_AT_MOST} at most")
    order_id = connection.execute(PLACE, {"customer_id": wanted.customer_id, "total": total}).scalar()
    if order_id is None:
        raise NotFoundError(f"There is no customer {wanted.customer_id}")
    quantities = [wanted.quantities[sku] for sku in skus]
    connection.execute(TAKE, {"order_id": str(order_id), "skus": skus, "quantities": quantities})
    return {"id": order_id, "status": "placed", "total": total}
