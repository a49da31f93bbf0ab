"""A function as a user writes it, for release/smoke."""

from sqlalchemy import text

from plungepool import get_engine, guard_invocation

engine = get_engine()


@guard_invocation
def handler(event, context):
    with engine.begin() as connection:
        return {"status": connection.execute(text("SELECT status FROM orders WHERE id = :id"), event).scalar_one()}
