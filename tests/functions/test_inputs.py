"""Whatever one parser lets through, the next must take: generated inputs of every sample function, to the database."""

import json
import string
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

import plungepool

ADA = "00000000-0000-4000-8000-0000000000c1"
PLACED = "00000000-0000-4000-8000-000000000001"
# Bounded and the same each time; more of them, at random, find more while something is being changed.
search = settings(max_examples=60, deadline=None, derandomize=True, database=None)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
offsets = st.integers(-86399_999999, 86399_999999).map(lambda number: timezone(timedelta(microseconds=number)))
# What Python writes of any time in any zone, and what nearly is one.
times = st.datetimes(timezones=st.none() | st.just(UTC) | offsets).map(datetime.isoformat) | st.sampled_from(
    ["2026-01-14T08:00:00+16:00", "2026-01-14T08:00:00+00:00:00.5", "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
     "infinity", "-infinity", "now", "epoch", "2026-W03-3", "20260114T080000Z", "2026-01-14 24:00:00",
     "2026-02-29T00:00:00Z"]
)  # fmt: skip
identifiers = st.uuids().map(str) | st.sampled_from(
    [
        ADA,
        PLACED,
        "{" + ADA + "}",
        f"urn:uuid:{ADA}",
        ADA.replace("-", ""),
        ADA.upper(),
        "0" * 31 + "\N{FULLWIDTH DIGIT ONE}",
    ]
)


def answered(function: Any, event: dict) -> int:
    """Invoke handle_orders and return its status: an answer in JSON, which no error of the program is."""
    response = function.invoke(event)
    assert isinstance(json.loads(response["body"]), dict)
    return response["statusCode"]


def request(method: str, path: str, **others: Any) -> dict:
    """Return an HTTP API event, payload 2.0."""
    return {
        "version": "2.0",
        "rawPath": path,
        "headers": {"content-type": "application/json"},
        "requestContext": {"stage": "$default", "requestId": "r", "http": {"method": method, "path": path}},
        "isBase64Encoded": False,
    } | others


def test_pages_answer_whatever_is_asked_for(shop: Any, load: Callable[..., Any]) -> None:
    """Any limit and any cursor is 200 or 400, and any path 200 or 404."""
    function = load("handle_orders", shop.url())

    @search
    @given(
        st.text(max_size=5) | st.integers(-2, 200).map(str),
        st.builds("{}~{}".format, times, identifiers) | st.text(max_size=60),
    )
    def list_them(limit: str, cursor: str) -> None:
        query = {"limit": limit, "cursor": cursor}
        for given_of in (query, {"cursor": cursor}):
            status = answered(function, request("GET", "/orders", queryStringParameters=given_of))
            assert status in (200, 400), given_of

    @search
    @given(identifiers | st.text(max_size=50))
    def get_one(order_id: str) -> None:
        assert answered(function, request("GET", f"/orders/{order_id}")) in (200, 404)

    list_them()
    get_one()


def test_bodies_answer_whatever_they_hold(shop: Any, load: Callable[..., Any]) -> None:
    """Any body is 201, 400, 404 or 409, and only 201 takes from the stock."""
    function = load("handle_orders", shop.url())
    skus = st.sampled_from(["TOWEL", "CAP", "FLOAT", "GOGGLES"])
    skus |= st.text(string.ascii_uppercase + "-\0é", max_size=41)
    lines = st.fixed_dictionaries({"sku": skus | anything, "quantity": st.integers(1, 1000) | anything})
    orders = st.fixed_dictionaries(
        {"customer_id": identifiers | anything, "lines": st.lists(lines, max_size=3) | anything}
    )
    documents = (orders | anything).map(json.dumps)
    bodies = (
        documents | documents.map(lambda text: b64encode(text.encode()).decode()) | st.text(max_size=20) | st.none()
    )

    @search
    @given(bodies, st.booleans())
    def place(body: str | None, encoded: bool) -> None:
        before = shop.contents()
        status = answered(function, request("POST", "/orders", body=body, isBase64Encoded=encoded))
        assert status in (201, 400, 404, 409)
        assert (shop.contents() == before) == (status != 201)

    place()


def test_an_order_that_no_column_can_hold_is_refused(shop: Any, load: Callable[..., Any]) -> None:
    """The dearest products in the largest number cost more than an order's total may: 400, and nothing is taken."""
    shop.execute("UPDATE shop.products SET price = 9999999999.99, stock = 1000")
    function = load("handle_orders", shop.url())
    before = shop.contents()
    for quantity, expected in ((1000, 400), (100, 201)):
        body = json.dumps({"customer_id": ADA, "lines": [{"sku": "CAP", "quantity": quantity}]})
        assert answered(function, request("POST", "/orders", body=body)) == expected
        assert (shop.contents() == before) == (expected == 400)


def test_a_message_fails_alone_whatever_it_holds(shop: Any, load: Callable[..., Any]) -> None:
    """Any body fails its own message and no other: an order after it is fulfilled, or was."""
    function = load("fulfil_orders", shop.url())
    documents = (st.fixed_dictionaries({"order_id": identifiers | anything}) | anything).map(json.dumps)

    @search
    @given(documents | st.text(max_size=20))
    def fulfil(body: str) -> None:
        bodies = [body, json.dumps({"order_id": PLACED})]
        records = [
            {"messageId": str(number), "body": text, "eventSource": "aws:sqs"} for number, text in enumerate(bodies)
        ]
        failed = [one["itemIdentifier"] for one in function.invoke({"Records": records})["batchItemFailures"]]
        try:
            known = str(UUID(json.loads(body)["order_id"])) == PLACED
        except Exception:
            known = False
        assert failed == ([] if known else ["0"])

    fulfil()
    assert shop.execute("SELECT order_id::text FROM shop.shipments") == [[PLACED]]


def test_a_report_is_of_a_day_or_says_what_a_time_is(shop: Any, load: Callable[..., Any]) -> None:
    """Any time that has a day before gives that day's report; anything else is one ValueError, before a connection."""
    function = load("report_sales", shop.url())

    @search
    @given(times | anything)
    def report(moment: Any) -> None:
        try:
            day = function.invoke({"time": moment})["day"]
        except ValueError as error:
            assert str(error).startswith("time must be")
        else:
            assert datetime.fromisoformat(day)

    report()
    for wrong in ({}, {"time": None}, {"time": "0001-01-01T12:00:00Z"}):
        with pytest.raises(ValueError, match="time must be"):
            function.invoke(wrong)


def test_options_are_refused_or_understood_by_the_database(empty_shop: Any, load: Callable[..., Any]) -> None:
    """Any event of prepare_database is refused by name; or the database does it, or says that the name is its own."""
    preparation = load("prepare_database", empty_shop.url("postgres")).module.preparation
    names = st.text(max_size=64) | st.sampled_from(
        ["public", "none", "PUBLIC", "pg_x", "current_user", "postgres", " ", "é" * 31]
    )
    option = {
        "role_name": names | anything,
        "connection_limit": st.integers(0, 100_000) | st.integers(1, 99_999).map(str) | anything,
        **dict.fromkeys(
            (
                "statement_timeout_s",
                "lock_timeout_s",
                "idle_in_transaction_session_timeout_s",
                "idle_session_timeout_s",
            ),
            st.integers(0, 90_000) | st.floats(0, 90_000).map(lambda seconds: f"{seconds:.3f}") | anything,
        ),
        "role_password": st.text(max_size=20) | anything,
        "iam_login": st.sampled_from(["true", "False", False]) | anything,
        "demo_data": st.booleans() | anything,
    }

    @search
    @given(st.fixed_dictionaries({}, optional=option) | anything)
    def prepare(event: Any) -> None:
        try:
            options = preparation.Options.read(event)
        except preparation.PreparationError:
            return
        with plungepool.get_engine().connect() as connection:  # and rolled back
            try:
                preparation.prepare(connection, options, 60)
            except DBAPIError as error:
                # Reserved names, the owner's own; and IAM, which is asked for where there is none.
                assert error.orig.sqlstate in ("42939", "0P000", "42704")

    prepare()
