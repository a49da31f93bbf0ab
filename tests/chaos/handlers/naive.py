"""A handler as many write it: SQLAlchemy's own engine outside, and nothing else."""

import json
import os
from typing import Any

from sqlalchemy import create_engine
from work import work

engine = create_engine(os.environ["NAIVE_URL"], **json.loads(os.environ.get("NAIVE_OPTIONS", "{}")))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    with engine.begin() as connection:
        return {"statusCode": 200, "rows": work(connection, event)}
