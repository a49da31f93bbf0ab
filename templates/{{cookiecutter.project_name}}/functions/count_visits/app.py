"""Count the visits of a page: POST /visits/{page}."""

import json
import logging

from sqlalchemy import Connection, text

from plungepool import Unavailable, get_engine, guard_invocation

logger = logging.getLogger()
engine = get_engine()  # outside the handler: one engine per environment; nothing is opened yet

COUNT_VISIT = text("""
    INSERT INTO page_visits AS old (page, visits) VALUES (:page, 1)
    ON CONFLICT (page) DO UPDATE SET visits = old.visits + 1
    RETURNING visits
""")


def count_visit(connection: Connection, page: str) -> int:
    return connection.execute(COUNT_VISIT, {"page": page}).scalar_one()


@guard_invocation  # the database's work ends with the invocation, and no connection is left checked out
def handler(event, context):
    page = event["pathParameters"]["page"]
    try:
        with engine.begin() as connection:
            visits = count_visit(connection, page)
    except Unavailable as error:
        # Full, restarting, out of reach or too slow: worth waiting for. Any other error is a mistake in the program.
        logger.warning("the database is unavailable: %s", error)
        return answer(503, {"message": "try again later"}, {"retry-after": "2"})
    return answer(200, {"page": page, "visits": visits})


def answer(status, body, headers=None):
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json", **(headers or {})},
        "body": json.dumps(body),
    }
