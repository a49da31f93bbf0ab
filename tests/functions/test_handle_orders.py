"""handle_orders: what it answers, and that a refusal writes nothing."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import OperationalError

import plungepool

if TYPE_CHECKING:
    from collections.abc import Callable

ADA = "00000000-0000-4000-8000-0000000000c1"
FIRST_ORDER = "00000000-0000-4000-8000-000000000001"


def request(method: str, path: str, query: dict[str, str] | None = None, body: Any = None, **others: Any) -> dict:
    """Return an HTTP API event, payload 2.0; a body that is not text is written as JSON."""
    event = {
        "version": "2.0",
        "rawPath": path,
        "headers": {"content-type": "application/json"},
        "requestContext": {"stage": "$default", "requestId": "r", "http": {"method": method, "path": path}},
        "isBase64Encoded": False,
    }
    if query:
        event["queryStringParameters"] = query
    if body is not None:
        event["body"] = body if isinstance(body, str) else json.dumps(body)
    return event | others


def order(**quantities: Any) -> dict:
    return {"customer_id": ADA, "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in quantities.items()]}


@pytest.fixture
def call(shop: Any, load: Callable[..., Any]) -> Callable[..., tuple[int, Any]]:
    """Call the function with a request; gives status and body."""
    function = load("handle_orders", shop.url())

    def call_function(*arguments: Any, **others: Any) -> tuple[int, Any]:
        response = function.invoke(request(*arguments, **others))
        assert response["headers"]["Content-Type"] == "application/json"
        return response["statusCode"], json.loads(response["body"])

    return call_function


def test_pages_hold_every_order_once_newest_first(shop: Any, call: Callable[..., tuple[int, Any]]) -> None:
    """Following next_cursor to the end gives all orders in order, none twice, also where times are equal."""
    shop.execute("UPDATE shop.orders SET placed_at = '2026-01-14 12:00:00.123456+00' WHERE id::text LIKE '%1'")
    expected = [row[0] for row in shop.execute("SELECT id::text FROM shop.orders ORDER BY placed_at DESC, id DESC")]
    found: list[str] = []
    query = {"limit": "7"}
    while True:
        status, page = call("GET", "/orders", query)
        assert status == 200
        found += [one["id"] for one in page["orders"]]
        if page["next_cursor"] is None:
            break
        assert len(page["orders"]) == 7
        query = {"limit": "7", "cursor": page["next_cursor"]}
    assert found == expected


def test_a_page_that_ends_with_the_last_order_has_no_next(shop: Any, call: Callable[..., tuple[int, Any]]) -> None:
    """Where the orders fit a page exactly, there is no cursor to an empty page."""
    status, page = call("GET", "/orders", {"limit": "40"})
    assert (status, len(page["orders"]), page["next_cursor"]) == (200, 40, None)


def test_a_wrong_page_is_a_bad_request(call: Callable[..., tuple[int, Any]]) -> None:
    """Limits and cursors that make no sense are answered with 400 that says what is right."""
    limits = ["0", "101", "-1", "five", "\N{ARABIC-INDIC DIGIT FIVE}", "", "5 ", "1e1"]
    cursors = ["x", "", "2026-01-14T08:00:00Z~x", f"infinity~{ADA}", "'; DROP TABLE shop.orders~", "2026-01-14T08:00Z"]
    # What Python reads as a time and PostgreSQL does not, or what is none of ours.
    offsets = ["+16:00", "-23:59", "+00:00:00.5", "+01:00", "", "+00:00"]
    cursors += [f"2026-01-14T08:00:00.000000{offset}~{ADA}" for offset in offsets]
    for name, values in {"limit": limits, "cursor": cursors}.items():
        for value in values:
            status, body = call("GET", "/orders", {name: value})
            assert (value, status) == (value, 400)
            assert name in body["message"]


def test_money_is_exact_text(shop: Any, call: Callable[..., tuple[int, Any]]) -> None:
    """Numeric values arrive as decimal text with their scale, never as a float."""
    shop.execute("UPDATE shop.orders SET total = 123456789012.10 WHERE id = $1", FIRST_ORDER)
    status, body = call("GET", f"/orders/{FIRST_ORDER}")
    assert (status, body["total"]) == (200, "123456789012.10")
    assert body["lines"] == [{"sku": "GOGGLES", "quantity": 2, "price": "24.50"}]


def test_an_unknown_order_is_not_found(call: Callable[..., tuple[int, Any]]) -> None:
    """An id that is nobody's, or no id at all, is 404."""
    for order_id in ("00000000-0000-4000-8000-00000000ffff", "7", "x'; --", FIRST_ORDER + "0"):
        assert (order_id, call("GET", f"/orders/{order_id}")[0]) == (order_id, 404)


def test_an_order_takes_from_the_stock(shop: Any, call: Callable[..., tuple[int, Any]]) -> None:
    """A placed order is stored with its lines at the price of the day, and its products leave the stock."""
    status, placed = call("POST", "/orders", body=order(TOWEL=2, CAP=3))
    assert (status, placed["status"], placed["total"]) == (201, "placed", "61.55")
    assert shop.execute("SELECT sku, stock FROM shop.products WHERE sku IN ('TOWEL', 'CAP') ORDER BY sku") == [
        ["CAP", 297],
        ["TOWEL", 498],
    ]
    status, read = call("GET", f"/orders/{placed['id']}")
    assert (status, read["customer_id"], read["total"]) == (200, ADA, "61.55")
    assert read["lines"] == [
        {"sku": "CAP", "quantity": 3, "price": "7.25"},
        {"sku": "TOWEL", "quantity": 2, "price": "19.90"},
    ]


def test_a_body_in_base64_is_read(shop: Any, call: Callable[..., tuple[int, Any]]) -> None:
    """API Gateway encodes bodies whose type it does not know as text."""
    body = b64encode(json.dumps(order(CAP=1)).encode()).decode()
    assert call("POST", "/orders", body=body, isBase64Encoded=True)[0] == 201


DEEP = "[" * 100_000
BAD_BODIES = {
    "none": None,
    "empty": "",
    "malformed": '{"customer_id": ',
    "not an object": "[]",
    "null": "null",
    "too deep": DEEP,
    "no customer": {"lines": [{"sku": "CAP", "quantity": 1}]},
    "customer is no UUID": order(CAP=1) | {"customer_id": "ada"},
    "customer is a number": order(CAP=1) | {"customer_id": 7},
    "no lines": {"customer_id": ADA},
    "empty lines": order(),
    "lines of text": {"customer_id": ADA, "lines": "CAP"},
    "too many lines": order(**{f"SKU-{n}": 1 for n in range(51)}),
    "same product twice": {"customer_id": ADA, "lines": [{"sku": "CAP", "quantity": 1}] * 2},
    "negative quantity": order(CAP=-1),
    "no quantity": {"customer_id": ADA, "lines": [{"sku": "CAP"}]},
    "zero": order(CAP=0),
    "huge": order(CAP=2**63),
    "fraction": order(CAP=1.5),
    "quantity is true": order(CAP=True),
    "quantity is text": order(CAP="1"),
    "quantity is NaN": json.dumps(order(CAP=float("nan"))),
    "sku with NUL": order(**{"CAP\0": 1}),
    "sku is a list": {"customer_id": ADA, "lines": [{"sku": ["CAP"], "quantity": 1}]},
    "sku with half a character": order(**{"CAP\ud800": 1}),
}


def test_a_bad_body_is_refused_and_writes_nothing(shop: Any, call: Callable[..., tuple[int, Any]]) -> None:
    """Whatever is wrong with the body, the answer is 400 with the right form, and the tables stay as they were."""
    before = shop.contents()
    for name, body in BAD_BODIES.items():
        status, answer = call("POST", "/orders", body=body)
        assert (name, status) == (name, 400)
        assert '"customer_id"' in answer["message"]
    assert shop.contents() == before


def test_what_cannot_be_ordered_is_refused_and_writes_nothing(shop: Any, call: Callable[..., tuple[int, Any]]) -> None:
    """Unknown products and customers are 404, too much wanted is 409, and the part that would have done is undone."""
    before = shop.contents()
    stranger = "00000000-0000-4000-8000-00000000dead"
    refused = [
        (order(CAP=1, BOAT=1), 404, "BOAT"),
        (order(CAP=1) | {"customer_id": stranger}, 404, stranger),
        (order(CAP=1, FLOAT=1), 409, "FLOAT"),
        (order(CAP=301, TOWEL=1), 409, "CAP"),
    ]
    for body, expected, named in refused:
        status, answer = call("POST", "/orders", body=body)
        assert (named, status) == (named, expected)
        assert named in answer["message"]
    assert shop.contents() == before


def test_a_refusal_leaves_the_connection_usable(shop: Any, call: Callable[..., tuple[int, Any]]) -> None:
    """After a refusal inside a transaction the next order is placed over the same connection."""
    assert call("POST", "/orders", body=order(FLOAT=1))[0] == 409
    assert call("POST", "/orders", body=order(CAP=1))[0] == 201
    counted = shop.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", shop.app_role)
    assert counted == [[1]]


def test_the_last_ones_are_sold_once(shop: Any, load: Any) -> None:
    """Eight buyers at once for a stock of five get five orders between them, and the stock ends at 0."""
    shop.execute("UPDATE shop.products SET stock = 5 WHERE sku IN ('CAP', 'TOWEL')")
    orders = load("handle_orders", shop.url()).module.orders
    engine = plungepool.build_engine(shop.settings(pool_size=8))
    begin = threading.Barrier(8)
    answers = []

    def buy(skus: list[str]) -> None:
        begin.wait()
        try:
            with engine.begin() as connection:
                orders.place_order(connection, orders.WantedOrder(ADA, dict.fromkeys(skus, 1)))
            answers.append(201)
        except orders.ServiceError as error:
            answers.append(error.status_code)
        except OperationalError as error:  # a deadlock would be one
            answers.append(str(error))

    threads = [threading.Thread(target=buy, args=(["CAP", "TOWEL"][:: 1 if n % 2 else -1],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    assert sorted(answers) == [201] * 5 + [409] * 3
    assert shop.execute("SELECT stock FROM shop.products WHERE sku IN ('CAP', 'TOWEL')") == [[0], [0]]


def test_a_page_is_read_from_the_index(shop: Any, load: Any) -> None:
    """The page's statement walks the index and neither scans nor sorts the table, whatever its size."""
    orders = load("handle_orders", shop.url()).module.orders
    shop.execute(f"""
        INSERT INTO shop.orders (customer_id, total, placed_at)
        SELECT '{ADA}', 1, timestamptz '2025-01-01' + n * interval '1 minute' FROM generate_series(1, 20000) n
    """)
    shop.execute("VACUUM ANALYZE shop.orders")
    engine = plungepool.build_engine(shop.settings())
    with engine.begin() as connection:
        page = orders.read_page({"limit": "20"})._asdict()
        plan = "\n".join(connection.execute(orders.text(f"EXPLAIN {orders.LIST.text}"), page).scalars())
    engine.dispose()
    assert "Index Scan Backward using orders_by_time" in plan
    assert "Sort" not in plan
