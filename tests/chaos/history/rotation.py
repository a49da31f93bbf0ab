"""Secrets Manager over HTTP, for processes of their own: moto answers; and a password that rotates in it."""

from __future__ import annotations

import json
import secrets
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError
from moto import mock_aws

from plungepool_toolkit.processes import Closing

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

_REGION = "eu-west-1"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever was killed in the middle of a question needs no answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Rotation(Closing):
    """
    A role's secret, read at `variables()`, and rotated as Secrets Manager's functions do it.

    Args: set_password: called with the role and its new password; changes it on the server.
    """

    def __init__(self, role: str, set_password: Callable[[str, str], object]) -> None:
        self._role, self._set_password = role, set_password
        self._one_at_a_time = threading.Lock()  # moto's dictionaries change while another thread reads them
        #: all that were ever good
        self.passwords: list[str] = []

    def __enter__(self) -> Self:
        self._aws = mock_aws()
        self._aws.start()
        self._client = boto3.client("secretsmanager", region_name=_REGION)
        content = self._content()
        self._set_password(self._role, self.passwords[-1])
        self._arn = self._client.create_secret(Name="chaos", SecretString=content)["ARN"]
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, name="secrets-manager", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Listen no more, and forget the secret."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._aws.stop()

    def variables(self) -> dict[str, str]:
        """Return the environment variables with which a function reads the secret."""
        return {
            "PLUNGEPOOL_AUTH": "secret",
            "PLUNGEPOOL_SECRET_ARN": self._arn,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "unused",
            "AWS_SECRET_ACCESS_KEY": "unused",
        }

    def rotate(self, wait: Callable[[], object]) -> None:
        """Make a pending version, set it on the server, wait, and only then make it the current one."""
        content = self._content()
        self._put(content, "AWSPENDING")
        self._set_password(self._role, self.passwords[-1])
        wait()
        self._put(content, "AWSCURRENT")

    def _content(self) -> str:
        self.passwords.append(f"unmistakable-{secrets.token_hex(12)}")
        return json.dumps({"username": self._role, "password": self.passwords[-1]})

    def _put(self, content: str, stage: str) -> None:
        with self._one_at_a_time:
            self._client.put_secret_value(SecretId=self._arn, SecretString=content, VersionStages=[stage])

    def _answer(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        try:
            with self._one_at_a_time:
                found = self._client.get_secret_value(**asked)
        except ClientError as error:
            said = error.response["Error"]
            return 400, {"__type": said["Code"], "message": said["Message"]}
        return 200, {name: found[name] for name in ("ARN", "Name", "VersionId", "SecretString", "VersionStages")}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, document = answer(asked)
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler
