"""A shop as the documentation has it: engine outside, guard, run_transaction, once; after OutcomeUnknown once more."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import ForeignKey, String, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from plungepool import OutcomeUnknown, Unavailable, get_engine, guard_invocation, once, run_transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

engine = get_engine()
sessions = sessionmaker(engine)
kept: list[Connection] = []
wrong: list[str] = []


class Struck(BaseException):
    """An exception out of the blue, as a signal handler or a time-out of somebody's raises it."""


class ChangedItsMind(Exception):
    """The transaction is not wanted any more."""


class Base(DeclarativeBase):
    """What the mapped classes have in common."""


class Product(Base):
    """What can be ordered, and how much of it is left."""

    __tablename__ = "product"
    sku: Mapped[str] = mapped_column(String, primary_key=True)
    stock: Mapped[int]


class Order(Base):
    """What somebody ordered; nothing in the table itself keeps a key from coming twice."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str]
    sku: Mapped[str] = mapped_column(ForeignKey("product.sku"))
    quantity: Mapped[int]


SHIP = text("INSERT INTO shipment (order_key) SELECT key FROM orders WHERE key = :order RETURNING order_key")
READ = text("SELECT elements FROM list WHERE name = :name")
READ_BY_ROWS = text(
    "SELECT element FROM list, unnest(elements) WITH ORDINALITY AS all_of_it (element, place) "
    "WHERE name = :name ORDER BY place"
)
# Atomic in itself, for READ COMMITTED.
APPEND = text("UPDATE list SET elements = elements || CAST(:value AS integer) WHERE name = :name RETURNING elements")
# What was read is written as a whole: only a level that detects the conflict makes it right.
OVERWRITE = text("UPDATE list SET elements = :elements WHERE name = :name")
FEW = {"yield_per": 3}
NOISE = text("SELECT CAST(:number AS integer) + n FROM generate_series(0, 2) n")


@guard_invocation
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Do what the event wants, and say what became of it: committed, again (it had been), failed or unknown."""
    with noise():
        return do(event)


def do(event: dict[str, Any]) -> dict[str, Any]:
    """Do it; where its outcome is unknown and it has a key, find out."""
    unknown = None
    for _ in range(3 if event["key"] else 1):
        try:
            done = DEEDS[event["do"]](event)
        except Struck as error:
            return {"outcome": "unknown", "reason": said(error)}
        except ChangedItsMind:
            return {"outcome": "failed", "reason": "rolled back, as it should be"}
        except OutcomeUnknown as error:
            unknown = error  # the same key tells what became of it
        except Unavailable as error:
            return {"outcome": "unknown" if unknown else "failed", "reason": said(error)}
        else:
            return {"outcome": "again"} if done is None else {"outcome": "committed", "reads": done}
    return {"outcome": "unknown", "reason": said(unknown)}


def order(event: dict[str, Any]) -> list[Any] | None:
    """Take from the stock and write the order down, by the ORM."""

    def work(session: Session) -> list[Any] | None:
        if not once(session, event["key"]):
            return None
        product = session.get_one(Product, event["sku"], with_for_update=True)
        product.stock -= event["quantity"]
        session.add(Order(key=event["key"], sku=product.sku, quantity=event["quantity"]))
        session.flush()
        time.sleep(event["pause_s"])
        return []

    return run_transaction(sessions, work)


def fulfil(event: dict[str, Any]) -> list[Any] | None:
    """Ship what was ordered."""

    def work(connection: Connection) -> list[Any] | None:
        if not once(connection, event["key"]):
            return None
        return [connection.execute(SHIP, {"order": event["order"]}).scalar_one()]

    return run_transaction(engine, work)


def transact(event: dict[str, Any]) -> list[Any] | None:
    """Append to lists and read them, in a transaction that happens once."""

    def work(connection: Connection) -> list[Any] | None:
        if not once(connection, event["key"]):
            return None
        return append_and_read(connection, event)

    return run_transaction(engine, work, isolation_level=event["level"])


def begin(event: dict[str, Any]) -> list[Any]:
    """Append to lists and read them in a plain transaction; whether it was kept is told by its error."""
    try:
        with engine.connect().execution_options(isolation_level=event["level"]) as connection, connection.begin():
            return append_and_read(connection, event)
    except SQLAlchemyError as error:
        raise_if_unknown(error)
        raise


def change_mind(event: dict[str, Any]) -> list[Any]:
    """Append to lists, and roll back."""
    with engine.connect().execution_options(isolation_level=event["level"]) as connection, connection.begin():
        append_and_read(connection, event)
        raise ChangedItsMind


def leak(event: dict[str, Any]) -> list[Any]:
    """Append to lists and forget the connection, which the guard has to find: dropped, or still referred to."""
    connection = engine.connect().execution_options(isolation_level=event["level"])
    if event["pause_s"]:
        kept[:] = [*kept[-2:], connection]
    connection.begin()
    append_and_read(connection, event)
    raise ChangedItsMind


def strike(event: dict[str, Any]) -> list[Any]:
    """Append to lists, and be struck by an exception between any two lines."""
    me, lock, over = threading.get_ident(), threading.Lock(), threading.Event()

    def hit() -> None:
        time.sleep(event["pause_s"])
        with lock:
            if not over.is_set():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(me), ctypes.py_object(Struck))

    threading.Thread(target=hit, daemon=True).start()
    try:
        return begin(event | {"pause_s": 0.0})
    finally:
        with lock:
            over.set()


def autocommit(event: dict[str, Any]) -> list[Any]:
    """Append to a list in a statement that commits by itself."""
    [[_, name, value]] = event["operations"]
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(APPEND, {"name": name, "value": value}).scalar_one()
            return [None]
    except SQLAlchemyError as error:
        raise_if_unknown(error)
        raise


def append_and_read(connection: Connection, event: dict[str, Any]) -> list[Any]:
    """Do the operations one after the other; return what each has read, None for an append."""
    reads: list[Any] = []
    for what, name, value in event["operations"]:
        elements = None
        if what == "append" and event["level"] == "READ COMMITTED":
            connection.execute(APPEND, {"name": name, "value": value}).scalar_one()
        elif what == "append":
            before = connection.execute(READ, {"name": name}).scalar_one()
            connection.execute(OVERWRITE, {"name": name, "elements": [*before, value]})
        elif what == "read by rows":
            # By a cursor on the server: one that is read to its end, and one that is given up in the middle.
            elements = list(connection.execute(READ_BY_ROWS, {"name": name}, execution_options=FEW).scalars())
            connection.execute(READ_BY_ROWS, {"name": name}, execution_options=FEW).fetchone()
        else:
            elements = connection.execute(READ, {"name": name}).scalar_one()
        reads.append(elements)
        time.sleep(event["pause_s"])
    return reads


@contextlib.contextmanager
def noise() -> Iterator[None]:
    """Where the pool has room for it, have another thread ask for things meanwhile, and get what it has asked for."""
    over = threading.Event()

    def ask() -> None:
        number = 0
        while not over.is_set():
            number += 1
            with contextlib.suppress(*Unavailable), engine.connect() as connection:
                [*rows] = connection.execute(NOISE, {"number": number}).scalars()
                if rows != [number, number + 1, number + 2]:
                    wrong.append(f"asked for {number} and the next two, got {rows}")

    thread = threading.Thread(target=ask, daemon=True)
    if os.environ.get("PLUNGEPOOL_POOL_SIZE", "1") != "1":
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()
    assert not wrong, wrong


def raise_if_unknown(error: SQLAlchemyError) -> None:
    """Raise OutcomeUnknown, as run_transaction does, where the answer to what commits was lost."""
    if getattr(getattr(error, "orig", None), "outcome_unknown", False):
        raise OutcomeUnknown(str(error)) from error


def said(error: BaseException | None) -> str:
    """Return what happened in one line."""
    return f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"[:300]


DEEDS: dict[str, Callable[[dict[str, Any]], list[Any] | None]] = {
    "order": order,
    "fulfil": fulfil,
    "transact": transact,
    "begin": begin,
    "autocommit": autocommit,
    "change mind": change_mind,
    "leak": leak,
    "strike": strike,
}
