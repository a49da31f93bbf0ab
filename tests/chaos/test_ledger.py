"""The ledger finds each way in which a shop's books can contradict its answers, and nothing in good books."""

from __future__ import annotations

from typing import Any

import pytest
from history.ledger import Books, Delivery, Request, judge


def request(do: str, *outcomes: str, **event: Any) -> Request:
    """Return a request that was delivered once for each of these outcomes."""
    deliveries = [Delivery(began=n, ended=n + 0.5, outcome=outcome) for n, outcome in enumerate(outcomes)]  # type: ignore[arg-type]
    return Request(name=f"the {do}", event={"do": do, "key": "k"} | event, deliveries=deliveries)


def kinds(*requests: Request, **books: Any) -> list[str]:
    """Return the kinds of what is found, in books that have no orders unless some are given."""
    there = {"orders": [], "shipments": [], "lists": {}, "stock": 10, "stock_at_first": 10, "read_at": 100.0} | books
    return [finding.kind for finding in judge(requests, Books(**there))]


@pytest.mark.parametrize(
    "outcomes", [["committed"], ["committed", "again"], ["unknown", "again"], ["failed", "committed"]]
)
def test_an_acknowledged_order_is_there_once(outcomes: list[str]) -> None:
    """However often it was delivered; with none or two of it the books are wrong."""
    order = request("order", *outcomes)
    assert kinds(order, orders=[("k", 3)], stock=7) == []
    assert kinds(order) == ["order lost"]
    assert kinds(order, orders=[("k", 3), ("k", 3)], stock=4) == ["order twice"]


def test_a_refused_order_is_not_there() -> None:
    """One whose every answer was that it was not taken."""
    assert kinds(request("order", "failed", "failed")) == []
    assert kinds(request("order", "failed"), orders=[("k", 3)], stock=7) == ["order refused, and there"]


def test_an_order_of_unknown_outcome_is_there_or_not() -> None:
    """Either is right, but not twice; one that was never delivered is nobody's."""
    order = request("order", "unknown", "failed")
    assert kinds(order) == kinds(order, orders=[("k", 3)], stock=7) == []
    assert kinds(order, orders=[("k", 1), ("k", 1)], stock=8) == ["order twice"]
    assert kinds(request("order")) == []


def test_what_was_done_is_done_anew_once() -> None:
    """Two answers that each say it was not done before."""
    assert kinds(request("order", "committed", "committed"), orders=[("k", 1)], stock=9) == ["done twice"]


def test_the_stock_is_what_is_left() -> None:
    """Neither more nor less, whatever the orders say."""
    assert kinds(request("order", "committed"), orders=[("k", 3)], stock=8) == ["stock"]


def test_a_shipment_belongs_to_an_order() -> None:
    """It is found by the order's key."""
    shipment = request("fulfil", "committed", order="o")
    assert kinds(shipment, shipments=["o"]) == []
    assert kinds(shipment) == ["fulfil lost"]
    assert kinds(shipment, shipments=["o", "o"]) == ["fulfil twice"]


def test_the_lists_at_the_end_are_a_read_of_everything() -> None:
    """What each transaction did goes to the checker, under the level that its lists are named for."""
    append = request("transact", "unknown", "again", operations=[("append", "s1", 7), ("read", "s1", None)])
    assert kinds(append, lists={"s1": (7,)}) == []
    assert kinds(append, lists={"s1": ()}) == ["lost update"]
    read = request("begin", "committed", operations=[("append", "c1", 8), ("read", "c1", None)])
    read.deliveries[0].reads = [None, [8]]
    assert kinds(read, lists={"c1": (8,)}) == []
    read.deliveries[0].reads = [None, []]
    assert kinds(read, lists={"c1": (8,)}) == ["internal"]
