"""What a warm invocation of the sample functions costs, by the markers that docs/testing.md gives to users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ADA = "00000000-0000-4000-8000-0000000000c1"


def request(method: str, path: str, body: str | None = None) -> dict[str, Any]:
    """Return an HTTP API event, payload 2.0."""
    return {
        "version": "2.0",
        "rawPath": path,
        "headers": {"content-type": "application/json"},
        "requestContext": {"stage": "$default", "requestId": "r", "http": {"method": method, "path": path}},
        "isBase64Encoded": False,
        "body": body,
    }


@pytest.fixture
def orders(shop: Any, load: Callable[..., Any]) -> Any:
    """handle_orders, warm."""
    function = load("handle_orders", shop.url())
    function.invoke(request("GET", "/orders"))
    return function


@pytest.mark.max_round_trips(2, connects=0)
@pytest.mark.large_tables("orders", "order_lines")
def test_a_page_of_orders_takes_two(orders: Any) -> None:
    """One statement for the page and all that is on it, and COMMIT; an index serves it."""
    assert orders.invoke(request("GET", "/orders"))["statusCode"] == 200


@pytest.mark.max_round_trips(4, connects=0)
@pytest.mark.large_tables("orders", "order_lines")
def test_an_order_takes_four(orders: Any, shop: Any) -> None:
    """Lock, place, take, COMMIT: as many for many lines as for one."""
    skus = [row[0] for row in shop.execute("SELECT sku FROM shop.products WHERE stock > 0 ORDER BY sku LIMIT 3")]
    lines = ",".join(f'{{"sku": "{sku}", "quantity": 1}}' for sku in skus)
    response = orders.invoke(request("POST", "/orders", f'{{"customer_id": "{ADA}", "lines": [{lines}]}}'))
    assert response["statusCode"] == 201


@pytest.mark.max_round_trips(4, connects=1)
def test_a_report_takes_few(shop: Any, load: Callable[..., Any]) -> None:
    """The report, from a cold start: its connect is counted apart."""
    load("report_sales", shop.url()).invoke({"time": "2026-01-15T06:00:00Z"})


def test_a_loop_of_a_handler_is_found(orders: Any, round_trips: Any) -> None:
    """Reading orders one by one is N+1, at the handler's own line, whoever loops."""
    for number in range(1, 7):
        orders.invoke(request("GET", f"/orders/00000000-0000-4000-8000-{number:012}"))
    assert [(one.times, one.place.partition(":")[0]) for one in round_trips.repeated()] == [
        (6, "functions/handle_orders/orders.py")
    ]
