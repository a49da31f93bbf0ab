"""The same shop as it is often written: a stock driver, an engine outside, a loop around it that tries again."""

import os
import time
from typing import Any, NoReturn

from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

engine = create_engine(os.environ["DATABASE_URL"], pool_size=1, max_overflow=0, pool_pre_ping=True)

TAKE = text("UPDATE product SET stock = stock - :quantity WHERE sku = :sku")
ORDER = text("INSERT INTO orders (key, sku, quantity) VALUES (:key, :sku, :quantity)")
SHIP = text("INSERT INTO shipment (order_key) VALUES (:order)")
READ = text("SELECT elements FROM list WHERE name = :name")
OVERWRITE = text("UPDATE list SET elements = CAST(:elements AS integer[]) WHERE name = :name")


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Do what the event wants, three times at most, and fail if the last one failed."""
    for attempt in range(3):
        try:
            return {"outcome": "committed", "reads": DEEDS[event["do"]](event)}
        except SQLAlchemyError:
            if attempt == 2:
                raise
            time.sleep(0.05)
    raise AssertionError


def order(event: dict[str, Any]) -> list[Any]:
    """Take from the stock and write the order down."""
    with engine.begin() as connection:
        connection.execute(TAKE, event)
        connection.execute(ORDER, event)
        time.sleep(event["pause_s"])
    return []


def fulfil(event: dict[str, Any]) -> list[Any]:
    """Ship what was ordered."""
    with engine.begin() as connection:
        connection.execute(SHIP, event)
    return []


def transact(event: dict[str, Any]) -> list[Any]:
    """Append to lists and read them; what was read is written as a whole."""
    reads = []
    with engine.begin() as connection:
        for what, name, value in event["operations"]:
            elements = connection.execute(READ, {"name": name}).scalar_one()
            if what == "append":
                connection.execute(OVERWRITE, {"name": name, "elements": [*elements, value]})
                elements = None
            reads.append(elements)
            time.sleep(event["pause_s"])
    return reads


def change_mind(event: dict[str, Any]) -> NoReturn:
    """Append to lists, and roll back."""
    with engine.begin() as connection:
        connection.execute(READ, {"name": event["operations"][0][1]})
        connection.rollback()
    raise LookupError


DEEDS = {"order": order, "fulfil": fulfil, "transact": transact, "begin": transact, "autocommit": transact}
DEEDS["change mind"] = change_mind
