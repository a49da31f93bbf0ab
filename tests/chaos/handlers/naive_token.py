"""IAM authentication with a token that is made once, at init."""

import os
from typing import Any

import boto3
from sqlalchemy import create_engine, pool
from sqlalchemy.engine import make_url
from work import work

url = make_url(os.environ["NAIVE_URL"])
token = boto3.client("rds").generate_db_auth_token(url.host, url.port, url.username)
tls = {"sslmode": "verify-full", "sslrootcert": os.environ["CA_FILE"]}
engine = create_engine(url.set(password=token), poolclass=pool.NullPool, connect_args=tls)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    with engine.begin() as connection:
        return {"statusCode": 200, "rows": work(connection, event)}
