"""A password that rotates on a real server, as the rotation functions of Secrets Manager do it."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import boto3

if TYPE_CHECKING:
    from collections.abc import Callable

    from plungepool_toolkit.postgres import Postgres


class Rotation:
    """What the rotation functions of Secrets Manager do, in their four steps, over a secret of moto's."""

    def __init__(self, server: Postgres, users: list[str]) -> None:
        self.server = server
        self.users = users
        self.client = boto3.client("secretsmanager", region_name="eu-west-1")
        self.passwords: list[str] = []
        first = self._content(users[0])
        self._set(first)
        self.arn = self.client.create_secret(Name=f"s-{uuid.uuid4()}", SecretString=json.dumps(first))["ARN"]

    def _content(self, user: str) -> dict[str, str]:
        self.passwords.append(f"unmistakable-{uuid.uuid4()}")
        return {"username": user, "password": self.passwords[-1]}

    def _set(self, content: dict[str, str]) -> None:
        self.server.execute(f"ALTER ROLE {content['username']} PASSWORD '{content['password']}'")

    def rotate(self, number: int, wait: Callable[[], None]) -> None:
        """Create the pending version, set it on the server, and only after a wait make it current."""
        content = self._content(self.users[number % len(self.users)])
        text = json.dumps(content)
        self.client.put_secret_value(SecretId=self.arn, SecretString=text, VersionStages=["AWSPENDING"])
        self._set(content)
        wait()
        self.client.put_secret_value(SecretId=self.arn, SecretString=text, VersionStages=["AWSCURRENT"])
