"""One session for all invocations, never rolled back, as in AWS's sample for SQLAlchemy."""

import os
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from work import work

session = Session(create_engine(os.environ["NAIVE_URL"], pool_size=1, max_overflow=0))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    rows = work(session, event)
    session.commit()
    return {"statusCode": 200, "rows": rows}
