"""AWS, as far as an environment of the stories asks it over HTTP: a role's credentials, and moto's Secrets Manager."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from plungepool_toolkit.rds_proxy import Credential

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plungepool_toolkit.rds_proxy import RdsProxy


@contextlib.contextmanager
def endpoint(answer: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]) -> Iterator[str]:
    """Give the address of a service that answers a request's document with a status and a document; one at a time."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, document = answer(json.loads(body or b"{}"))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class Role:
    """The credentials of a function's role, which AWS exchanges now and then; the stand-in takes the present ones."""

    def __init__(self, proxy: RdsProxy) -> None:
        self._proxy = proxy
        self.exchange()
        #: how long they are good for, as AWS says
        self.life_s = 3600.0
        #: exchange them in the moment after they were handed out, once
        self.is_about_to_exchange = False

    def exchange(self) -> None:
        """From now on the ones before are good for nothing, and no token that they signed."""
        self._proxy.credentials = (Credential.temporary(),)

    def answer(self, _request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """As the endpoint of a container's credentials."""
        [credential] = self._proxy.credentials
        if self.is_about_to_exchange:
            self.is_about_to_exchange = False
            self.exchange()
        return 200, {
            "AccessKeyId": credential.access_key_id,
            "SecretAccessKey": credential.secret_access_key,
            "Token": credential.session_token,
            "Expiration": datetime.fromtimestamp(time.time() + self.life_s, UTC).isoformat(),
        }


def secrets_manager() -> contextlib.AbstractContextManager[str]:
    """Give the address of moto's Secrets Manager, of which secrets can be read; within `mock_aws`."""
    client = boto3.client("secretsmanager", region_name="eu-west-1")

    def answer(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        try:
            found = client.get_secret_value(**request)
        except ClientError as error:
            return 400, {"__type": error.response["Error"]["Code"], "message": error.response["Error"]["Message"]}
        return 200, {name: found[name] for name in ("ARN", "Name", "SecretString", "VersionId", "VersionStages")}

    return endpoint(answer)
