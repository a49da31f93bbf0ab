"""One connection of pg8000's for the life of the environment, with a time-out of its own, as in many a sample."""

import os
from typing import Any
from urllib.parse import urlsplit

import pg8000.native

url = urlsplit(os.environ["NAIVE_URL"])
connection = pg8000.native.Connection(
    url.username, url.hostname, url.path[1:], url.port, url.password, timeout=float(os.environ.get("TIMEOUT_S", "60"))
)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    for statement in event["statements"]:
        rows = connection.run(statement)
    return {"statusCode": 200, "rows": rows}
