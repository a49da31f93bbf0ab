"""A password that is read from Secrets Manager once, at init, and a connection opened there."""

import json
import os
from typing import Any

import boto3
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from work import work

secret = json.loads(boto3.client("secretsmanager").get_secret_value(SecretId=os.environ["SECRET_ARN"])["SecretString"])
engine = create_engine(make_url(os.environ["NAIVE_URL"]).set(username=secret["username"], password=secret["password"]))
engine.connect().close()


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    with engine.begin() as connection:
        return {"statusCode": 200, "rows": work(connection, event)}
