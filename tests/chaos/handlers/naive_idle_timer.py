"""A pool that closes what has been idle for 0.2 s, by a timer, as drivers' pools do."""

import os
import threading
from typing import Any

from sqlalchemy import create_engine
from work import work

engine = create_engine(os.environ["NAIVE_URL"])


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    with engine.begin() as connection:
        rows = work(connection, event)
    timer = threading.Timer(0.2, engine.dispose)
    timer.daemon = True
    timer.start()
    return {"statusCode": 200, "rows": rows}
