"""Where AWS credentials come from when the environment has no static ones: a container's endpoint, a profile."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, TokenRetrievalError

from plungepool import CredentialsError, Settings
from plungepool.connect import Connector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from plungepool.credentials import Login

SECRET_KEY = "unmistakable/SecretKey"
AUTHORIZATION = "unmistakable-authorization"


def source(settings: Settings) -> Connector:
    """The loop over the logins of these settings, before whichever server a test hands to its `connect`."""
    return Connector(settings, lambda server, login, _way: server(login))


class Endpoint:
    """A credential endpoint on loopback, as a container has it; what it answers is the test's to say."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.status = 200
        self.life_s = 6 * 3600.0
        self.body: bytes | None = None
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                endpoint.seen.append((self.path, self.headers["Authorization"]))
                body = endpoint.body if endpoint.body is not None else json.dumps(endpoint.document()).encode()
                self.send_response(endpoint.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/2021-04-23/credentials?x=1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def document(self) -> dict[str, str]:
        """What Lambda answers; the access key's id counts the requests."""
        return {
            "AccessKeyId": f"ASIA{len(self.seen)}",
            "SecretAccessKey": SECRET_KEY,
            "Token": "unmistakable-session",
            "Expiration": datetime.fromtimestamp(time.time() + self.life_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def close(self) -> None:
        """Stop it; it refuses connections from now on."""
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """The environment of a function with SnapStart after a restore: no static keys, an endpoint on loopback."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", raising=False)
    served = Endpoint()
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", served.url)
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", AUTHORIZATION)
    yield served
    if served.thread.is_alive():
        served.close()


@pytest.fixture
def tokens() -> Connector:
    """A source of IAM tokens."""
    return source(Settings(host="h", user="u", auth="iam", region="eu-west-1"))


def password(login: Login) -> str:
    """What a server would be shown."""
    return login.password


def test_restored_function_signs_with_the_endpoints_keys(endpoint: Endpoint, tokens: Connector) -> None:
    """One request with the authorization, then the keys are kept for hours and sign every token."""
    assert "Credential=ASIA1%2F" in tokens.connect(password)
    assert "X-Amz-Security-Token=unmistakable-session&" in tokens.connect(password)
    assert endpoint.seen == [("/2021-04-23/credentials?x=1", AUTHORIZATION)]


def test_authorization_file_comes_before_the_variable(
    endpoint: Endpoint, tokens: Connector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token of the file is read at each request, since it is renewed there, and its line's end is left out."""
    file = tmp_path / "token"
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(file))
    for text in ("first", "second\n"):
        file.write_text(text)
        tokens.connect(password)
        tokens.forget()
    assert [seen for _, seen in endpoint.seen] == ["first", "second"]


def test_keys_near_their_end_are_renewed(endpoint: Endpoint, tokens: Connector) -> None:
    """Keys with less than 15 minutes left are asked for at each connect; the token ends with them."""
    endpoint.life_s = 300
    for number in (1, 2):
        token = tokens.connect(password)
        assert f"Credential=ASIA{number}%2F" in token
        assert 290 <= int(token.split("X-Amz-Expires=")[1].split("&")[0]) <= 300


def test_keys_in_time_outlive_an_endpoint_that_is_away(endpoint: Endpoint, tokens: Connector) -> None:
    """Renewing early is a courtesy: when it fails, keys that still live sign on."""
    endpoint.life_s = 300
    tokens.connect(password)
    endpoint.close()
    assert "Credential=ASIA1%2F" in tokens.connect(password)


def test_expired_keys_without_an_endpoint_are_an_error(endpoint: Endpoint, tokens: Connector) -> None:
    """Keys that have run out never sign."""
    endpoint.life_s = -10
    tokens.connect(password)
    endpoint.close()
    with pytest.raises(CredentialsError, match="did not answer"):
        tokens.connect(password)


def test_refusal_fetches_the_keys_anew(endpoint: Endpoint, tokens: Connector) -> None:
    """A refused token may have been signed with keys that were just exchanged: the second is signed with new ones."""
    shown: list[str] = []

    class Refused(Exception):
        sqlstate = "28000"

    def refuse_the_first(login: Login) -> str:
        shown.append(login.password)
        if len(shown) == 1:
            raise Refused
        return "a connection"

    assert tokens.connect(refuse_the_first) == "a connection"
    assert ["Credential=ASIA1%2F" in shown[0], "Credential=ASIA2%2F" in shown[1]] == [True, True]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, b"unmistakable"),
        (200, b"unmistakable"),
        (200, b"[]"),
        (200, b'{"AccessKeyId": "unmistakable"}'),
        (200, b'{"AccessKeyId": "A", "SecretAccessKey": "unmistakable", "Expiration": "unmistakable"}'),
    ],
)
def test_useless_answer_is_an_error_that_quotes_nothing(
    endpoint: Endpoint, tokens: Connector, status: int, body: bytes
) -> None:
    """Whatever comes back, the error names the status and the host and repeats nothing of the answer."""
    endpoint.status, endpoint.body = status, body
    with pytest.raises(CredentialsError, match=rf"HTTP status {status}") as caught:
        tokens.connect(password)
    assert "unmistakable" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://example.com/",
        "http://10.0.0.1/",
        "ftp://127.0.0.1/",
        "//127.0.0.1/",
        "x",
    ],
)
def test_endpoint_elsewhere_is_refused(url: str, tokens: Connector, endpoint: Endpoint, monkeypatch: Any) -> None:
    """The authorization goes over HTTP to this host and to no other; nothing is sent."""
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
    with pytest.raises(CredentialsError, match="AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        tokens.connect(password)
    assert endpoint.seen == []


@pytest.mark.parametrize("authorization", ["a\r\nX-Evil: 1", "a\nX-Evil: 1"])
def test_authorization_cannot_smuggle_a_header(
    authorization: str, endpoint: Endpoint, tokens: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first line of an authorization is sent."""
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", authorization)
    tokens.connect(password)
    assert endpoint.seen == [("/2021-04-23/credentials?x=1", "a")]


PROGRAM = """
import sys
from plungepool import Settings
from plungepool.connect import source
before = "botocore" in sys.modules
token = source(Settings(host="h", user="u", auth="iam", region="eu-west-1")).logins()
token = next(token).password
print(before, "botocore" in sys.modules, "boto3" in sys.modules, token.split("X-Amz-Credential=")[1].split("%2F")[0])
"""


def run_program(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the program in an environment of its own."""
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=False)


def test_profile_is_asked_of_botocore_then_and_only_then(tmp_path: Path) -> None:
    """Without keys in the environment botocore's own chain finds the profile's; boto3 is not needed for it."""
    credentials = tmp_path / "credentials"
    credentials.write_text("[work]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = s\n")
    environ = {"AWS_PROFILE": "work", "AWS_SHARED_CREDENTIALS_FILE": str(credentials), "HOME": str(tmp_path)}
    run = run_program(environ)
    assert (run.stdout, run.stderr) == ("False True False AKIAPROFILE\n", "")


def test_no_credentials_anywhere_is_an_error_with_a_cure(tmp_path: Path) -> None:
    """Nobody has credentials: the error says what to set."""
    run = run_program({"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"})
    assert run.returncode == 1
    assert "found no AWS credentials: a function has those of its role; elsewhere set AWS_PROFILE" in run.stderr


def test_missing_profile_is_an_error_of_ours(tmp_path: Path) -> None:
    """What botocore raises is passed on as a CredentialsError, with its text."""
    run = run_program({"HOME": str(tmp_path), "AWS_PROFILE": "nobody"})
    assert "plungepool.errors.CredentialsError: AWS credentials are not available" in run.stderr
    assert "nobody" in run.stderr


@pytest.fixture
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither keys nor an endpoint: botocore's chain is asked."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_LAMBDA_RUNTIME_API"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nothing_in_the_environment")
def test_missing_botocore_is_named(tokens: Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of Lambda, without keys in the environment, somebody has to look for a profile."""
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(CredentialsError, match="a profile requires botocore, which is not installed"):
        tokens.connect(password)


@pytest.mark.usefixtures("nothing_in_the_environment")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "AssumeRole"), "lack sts:AssumeRole"),
        (TokenRetrievalError(provider="sso", error_msg="expired"), "aws sso login"),
        (CredentialRetrievalError(provider="custom-process", error_msg="unmistakable"), "check AWS_PROFILE"),
    ],
)
def test_chain_that_fails_says_what_to_renew(
    tokens: Connector, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    """
    A role that may not be assumed, a sign-in that has run out, a program of the user's, whose own words are not quoted.
    """

    def fail(_session: object) -> None:
        raise error

    monkeypatch.setattr("botocore.session.Session.get_credentials", fail)
    with pytest.raises(CredentialsError, match="not available from botocore's provider chain") as caught:
        tokens.connect(password)
    assert words in str(caught.value)
    assert "unmistakable" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.usefixtures("nothing_in_the_environment")
def test_exception_of_a_signal_handler_passes_the_chain(tokens: Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    """What strikes while botocore looks is the user's, and no matter of credentials."""

    def strike(_session: object) -> None:
        raise TimeoutError("the user's")

    monkeypatch.setattr("botocore.session.Session.get_credentials", strike)
    with pytest.raises(TimeoutError, match="the user's"):
        tokens.connect(password)
