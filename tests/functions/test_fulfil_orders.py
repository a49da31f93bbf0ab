"""fulfil_orders: each message once, a bad one alone, and none lost while the database is away."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

import plungepool


def order_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def batch(*bodies: Any) -> dict:
    """Return an SQS event; a body that is a number stands for that order, one that is text for itself."""
    return {
        "Records": [
            {
                "messageId": f"message-{position}",
                "body": body if isinstance(body, str) else json.dumps({"order_id": order_id(body)}),
                "eventSource": "aws:sqs",
            }
            for position, body in enumerate(bodies)
        ]
    }


def failures(response: dict) -> list[str]:
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


def shipped(shop: Any) -> list[str]:
    return [row[0] for row in shop.execute("SELECT order_id::text FROM shop.shipments ORDER BY 1")]


def test_a_batch_is_fulfilled_and_each_order_shipped_once(shop: Any, load: Any) -> None:
    """Every order of the batch becomes fulfilled, with one shipment, and no message is returned."""
    function = load("fulfil_orders", shop.url())
    assert failures(function.invoke(batch(1, 2, 3))) == []
    assert shipped(shop) == [order_id(1), order_id(2), order_id(3)]
    fulfilled = shop.execute("SELECT id::text FROM shop.orders WHERE status = 'fulfilled' ORDER BY 1")
    assert [row[0] for row in fulfilled] == shipped(shop)


def test_a_message_that_is_delivered_twice_changes_nothing(shop: Any, load: Any) -> None:
    """SQS delivers at least once: the same order again, in the batch or later, is done and writes nothing."""
    function = load("fulfil_orders", shop.url())
    assert failures(function.invoke(batch(1, 1))) == []
    before = shop.contents()
    assert failures(function.invoke(batch(1))) == []
    assert shop.contents() == before


def test_the_key_is_recorded_with_the_effect_and_with_nothing_else(shop: Any, load: Any) -> None:
    """What failed leaves no key; a key says "done" by itself, whatever the order's own row says."""
    function = load("fulfil_orders", shop.url())
    assert failures(function.invoke(batch(1, 9999))) == ["message-1"]
    assert shop.execute("SELECT key FROM plungepool.once_keys") == [[f"fulfil {order_id(1)}"]]
    shop.execute("UPDATE shop.orders SET status = 'placed', fulfilled_at = NULL")
    before = shop.contents()
    assert failures(function.invoke(batch(1))) == []
    assert shop.contents() == before


def test_bad_messages_are_returned_alone(shop: Any, load: Any) -> None:
    """Unknown orders and broken bodies fail by themselves; what stands before, between and after them is fulfilled."""
    bad = [
        9999,
        "{",
        "[]",
        '{"order_id": null}',
        '{"order_id": "7"}',
        '{"order_id": 7}',
        "{}",
        '{"order_id": "\\u0000"}',
    ]
    function = load("fulfil_orders", shop.url())
    bodies = [1, *(body for pair in zip(bad, range(2, 2 + len(bad)), strict=True) for body in pair)]
    assert failures(function.invoke(batch(*bodies))) == [f"message-{2 * n + 1}" for n in range(len(bad))]
    assert shipped(shop) == [order_id(number) for number in range(1, 2 + len(bad))]


def test_a_locked_order_is_returned_alone(shop: Any, load: Any) -> None:
    """A lock time-out is the trouble of that record: its message fails, the ones after it are fulfilled."""
    shop.execute(f"ALTER ROLE {shop.app_role} SET lock_timeout = '100ms'")
    function = load("fulfil_orders", shop.url())
    other = plungepool.build_engine(shop.settings("postgres"))
    with other.connect() as connection:
        connection.exec_driver_sql(f"SELECT FROM shop.orders WHERE id = '{order_id(2)}' FOR UPDATE")
        assert failures(function.invoke(batch(1, 2, 3))) == ["message-1"]
    other.dispose()
    assert shipped(shop) == [order_id(1), order_id(3)]
    assert failures(function.invoke(batch(2))) == []


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03", "57014"])
def test_the_trouble_of_one_record_is_its_own(
    shop: Any, load: Any, monkeypatch: pytest.MonkeyPatch, sqlstate: str
) -> None:
    """A conflict, a deadlock or a time-out says nothing of the records after it: they are fulfilled."""
    function = load("fulfil_orders", shop.url())
    fulfil_order = function.module.fulfil_order

    def troubled(connection: Any, one: Any) -> Any:
        if one == order_id(1):
            raise OperationalError("a", None, SimpleNamespace(sqlstate=sqlstate))
        return fulfil_order(connection, one)

    monkeypatch.setattr(function.module, "fulfil_order", troubled)
    assert failures(function.invoke(batch(1, 2, 3))) == ["message-0"]
    assert shipped(shop) == [order_id(2), order_id(3)]


def test_what_was_done_is_counted(shop: Any, load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The metrics hold what was fulfilled now and what is returned, not what came."""
    function = load("fulfil_orders", shop.url())
    function.invoke(batch(1))
    capsys.readouterr()
    function.invoke(batch(1, 2, 3, "{", 9999))
    said = capsys.readouterr().out
    assert '"OrdersFulfilled":[2.0]' in said
    assert '"MessagesReturned":[2.0]' in said


def test_copies_of_a_message_at_once_ship_once(shop: Any, load: Any) -> None:
    """Two environments that get the same message at the same moment make one shipment between them."""
    fulfil_order = load("fulfil_orders", shop.url()).module.fulfil_order
    engine = plungepool.build_engine(shop.settings(pool_size=8))
    begin = threading.Barrier(8)
    results = []

    def fulfil() -> None:
        begin.wait()
        with engine.begin() as connection:
            results.append(fulfil_order(connection, order_id(1)))

    threads = [threading.Thread(target=fulfil) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    assert sorted(results) == [False] * 7 + [True]
    assert shipped(shop) == [order_id(1)]


def test_an_empty_batch_is_nothing(shop: Any, load: Any) -> None:
    """No record, no failure, no connection."""
    function = load("fulfil_orders", shop.url())
    assert failures(function.invoke({"Records": []})) == []
    assert shop.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", shop.app_role) == [[0]]
