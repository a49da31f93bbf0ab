"""report_sales: the right day, from the index, in a transaction that cannot write."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import plungepool

ADA = "00000000-0000-4000-8000-0000000000c1"
EVENT = {"time": "2026-01-15T06:00:00Z"}


def place(shop: Any, number: Any, placed_at: Any, quantity: Any) -> None:
    """Insert an order of caps at 7.25."""
    order_id = f"00000000-0000-4000-9000-{number:012}"
    shop.execute(
        "INSERT INTO shop.orders (id, customer_id, total, placed_at) VALUES ($1, $2, 0, $3)", order_id, ADA, placed_at
    )
    shop.execute("INSERT INTO shop.order_lines VALUES ($1, 'CAP', $2, 7.25)", order_id, quantity)


def test_the_day_before_is_reported_from_midnight_to_midnight(shop: Any, load: Any) -> None:
    """The first instant of the day counts, that of the next does not; the schedule's time decides, not the clock."""
    shop.execute("TRUNCATE shop.orders CASCADE")
    place(shop, 1, "2026-01-13 23:59:59.999999+00", 1)
    place(shop, 2, "2026-01-14 00:00:00+00", 10)
    place(shop, 3, "2026-01-14 23:59:59.999999+00", 100)
    place(shop, 4, "2026-01-15 00:00:00+00", 1000)
    report = load("report_sales", shop.url()).invoke(EVENT)
    assert report == {
        "day": "2026-01-14",
        "products": [{"sku": "CAP", "orders": 2, "sold": 110, "revenue": "797.50"}],
    }


def test_a_day_without_sales_is_an_empty_report(shop: Any, load: Any) -> None:
    """No orders, no products, no error."""
    report = load("report_sales", shop.url()).invoke({"time": "1999-06-01T00:00:00Z"})
    assert report == {"day": "1999-05-31", "products": []}


def test_revenue_adds_up_exactly(shop: Any, load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The report's sum is the sum of the orders' totals, to the cent."""
    report = load("report_sales", shop.url()).invoke(EVENT)
    [[total]] = shop.execute("SELECT sum(total) FROM shop.orders")
    revenues = [Decimal(product["revenue"]) for product in report["products"]]
    assert sum(revenues) == total
    assert revenues == sorted(revenues, reverse=True) != revenues[::-1]  # the best seller first
    [[sold]] = shop.execute("SELECT sum(quantity) FROM shop.order_lines")
    assert f'"ProductsSold":[{sold}.0]' in capsys.readouterr().out


def test_the_report_cannot_write(shop: Any, load: Any) -> None:
    """The function's engine gives read-only transactions: PostgreSQL refuses a write with 25006."""
    module = load("report_sales", shop.url()).module
    with pytest.raises(DBAPIError) as raised, module.engine.begin() as connection:
        connection.execute(text("UPDATE shop.products SET stock = 0"))
    assert raised.value.orig.sqlstate == "25006"


def test_the_connection_is_writable_again_for_others(shop: Any, load: Any) -> None:
    """Read-only ends with the transaction: the same pool's next plain transaction writes."""
    function = load("report_sales", shop.url())
    function.invoke(EVENT)
    with plungepool.get_engine().begin() as connection:
        connection.execute(text("UPDATE shop.products SET stock = 7 WHERE sku = 'CAP'"))
    assert shop.execute("SELECT stock FROM shop.products WHERE sku = 'CAP'") == [[7]]


def test_a_day_is_read_from_the_index(shop: Any, load: Any) -> None:
    """With a year of orders in the table, the plan reads the day by orders_by_time and scans neither table."""
    shop.execute(f"""
        WITH placed AS (
            INSERT INTO shop.orders (customer_id, total, placed_at)
            SELECT '{ADA}', 7.25, timestamptz '2025-01-01' + n * interval '25 minutes' FROM generate_series(1, 20000) n
            RETURNING id
        )
        INSERT INTO shop.order_lines SELECT id, 'CAP', 1, 7.25 FROM placed
    """)
    shop.execute("VACUUM ANALYZE shop.orders, shop.order_lines")
    module = load("report_sales", shop.url()).module
    day = {"since": datetime(2025, 6, 1, tzinfo=UTC), "until": datetime(2025, 6, 2, tzinfo=UTC)}
    with module.engine.begin() as connection:
        plan = "\n".join(connection.execute(text(f"EXPLAIN {module.SALES.text}"), day).scalars())
    assert "orders_by_time" in plan
    assert "order_lines_pkey" in plan
    assert "Seq Scan" not in plan
