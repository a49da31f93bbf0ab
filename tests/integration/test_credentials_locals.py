"""No frame that an error passes holds a password, a key or a token: a crash reporter prints the locals of each."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import boto3
import botocore.client
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from sqlalchemy.exc import OperationalError

from plungepool import (
    CredentialsError,
    PlungepoolError,
    Settings,
    SettingsError,
    build_engine,
    connect,
    credentials,
    iam,
    secret,
)
from plungepool.connect import Connector
from plungepool.iam import Keys, rds_token
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType, TracebackType

MARK = "unmistakable"
# What is derived from a secret and as good as one.
MARKS = (MARK, "X-Amz-Signature=")


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and whatever hangs on it, hidden contexts included."""
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and not any(one is known for known in seen):
            seen.append(one)
            left += [one.__cause__, one.__context__]
            yield one


def frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    """Yield the frames that an error has passed, but those of these tests, which made the secrets."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename != __file__:
            yield traceback.tb_frame
        traceback = traceback.tb_next


def shows(value: object) -> bool:
    """
    Say whether a crash reporter would show a secret: by the repr, or by going through a mapping or a sequence itself.
    """
    shown = [repr(value)]
    if isinstance(value, Mapping):
        shown.append(repr(dict(value)))
    elif isinstance(value, (list, tuple, set)):
        shown += [repr(dict(item)) for item in value if isinstance(item, Mapping)]
    return any(mark in text for text in shown for mark in MARKS)


def leaks(error: BaseException) -> list[str]:
    """Return where a secret shows: in a text, an attribute, or a local of a frame, whatever it is called or held by."""
    found = []
    for one in chain(error):
        kind = type(one).__name__
        for name, value in {"str": str(one), "repr": repr(one), "args": one.args, "attributes": vars(one)}.items():
            if shows(value):
                found.append(f"{name} of {kind}")
        for frame in frames(one.__traceback__):
            for name, value in frame.f_locals.items():
                if shows(value):
                    found.append(f"{name} in {frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})")
    return found


def source(settings: Settings) -> Connector:
    """The loop over the logins of these settings, before whichever server a test hands to its `connect`."""
    return Connector(settings, lambda server, login, _way: server(login))


class Refused(Exception):
    """What a server says to a wrong login."""

    sqlstate = "28P01"


def refuse(_login: credentials.Login) -> None:
    """Let nobody in."""
    raise Refused("no")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process with AWS credentials that are marked, and a home without any."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{MARK}-key")
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{MARK}-session")


IAM = Settings(host="db.example", user="app", auth="iam", region="eu-west-1")
SECRET = Settings(
    host="db.example", auth="secret", secret_arn="s", region="eu-west-1", connect_timeout_s=0.3
)  # fmt: skip


@contextmanager
def secret_of(content: str | bytes) -> Iterator[None]:
    """A secret with this content at moto's Secrets Manager."""
    with mock_aws(config={"core": {"mock_credentials": False}}):
        client = boto3.client("secretsmanager", region_name="eu-west-1")
        if isinstance(content, bytes):
            client.create_secret(Name="s", SecretBinary=content)
        else:
            client.create_secret(Name="s", SecretString=content)
        yield


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_SECRET_ACCESS_KEY": f"{MARK}\n"},
        {"AWS_SESSION_TOKEN": f"{MARK} \udcff"},
        {"AWS_CREDENTIAL_EXPIRATION": "soon"},
    ],
)
@pytest.mark.parametrize("auth", ["iam", "dsql"])
def test_token_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], auth: str) -> None:
    """A refused token, half a pair of keys, keys that cannot sign and an end that is no moment."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CredentialsError) as caught:
        source(Settings(host="db.example", user="app", auth=auth, region="eu-west-1")).connect(refuse)
    assert leaks(caught.value) == []


def test_signature_that_cannot_be_made_leaves_nothing_behind() -> None:
    """A user's name that nothing can encode raises in the middle of signing."""
    keys = Keys("AKIA", f"{MARK}-key", f"{MARK}-session")
    with pytest.raises(UnicodeEncodeError) as caught:
        rds_token("h", 5432, "\udcff", "eu-west-1", keys, 1e9)
    assert leaks(caught.value) == []


@contextmanager
def endpoint(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A credential endpoint on loopback that does what `answer` does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def reply(status: int, body: bytes) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """Answer with a status and a body."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def document(**changes: Any) -> bytes:
    """What an endpoint answers."""
    whole = {
        "AccessKeyId": "ASIA",
        "SecretAccessKey": f"{MARK}-key",
        "Token": f"{MARK}-session",
        "Expiration": "2100-01-01T00:00:00Z",
    }
    return json.dumps(whole | changes).encode()


@pytest.mark.parametrize(
    "answer",
    [
        reply(403, MARK.encode()),
        reply(200, MARK.encode()),
        reply(200, b"[" * 100_000),
        reply(200, document(Expiration=MARK)),
        reply(200, document(SecretAccessKey=f"{MARK}\n")),
        reply(200, document()),
        lambda handler: handler.wfile.write(b"nonsense\r\n"),
        lambda _handler: None,
    ],
    ids=["403", "no JSON", "deep JSON", "no moment", "line break", "refused by the server", "no HTTP", "hangs up"],
)
def test_container_endpoint_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[http.server.BaseHTTPRequestHandler], None]
) -> None:
    """Whatever the endpoint answers; the authorization that was sent there is in no frame of the HTTP client either."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", "x")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", f"{MARK}-authorization")
    with endpoint(answer) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        with pytest.raises(CredentialsError) as caught:
            source(IAM).connect(refuse)
    assert leaks(caught.value) == []


@pytest.mark.parametrize("authorization", [f"{MARK}-authorization", f"{MARK}-\N{BLACK HEART SUIT}"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://127.0.0.1:x/", "http://example.com/"])
def test_endpoint_that_is_away_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, url: str, authorization: str
) -> None:
    """Nobody listens, the port is none, the host is another's; an authorization that no header takes."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", "x")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", authorization)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
    with pytest.raises(CredentialsError) as caught:
        source(IAM).connect(refuse)
    assert leaks(caught.value) == []


@pytest.fixture(params=["Powertools", "boto3"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to read a secret."""
    if request.param == "boto3":
        monkeypatch.setitem(sys.modules, "aws_lambda_powertools.utilities", None)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"username": "app", "password": f"{MARK}-password"}),
        json.dumps({"username": "app", "password": f"{MARK}-password\n"}),
        json.dumps({"username": MARK.upper(), "password": [MARK]}),
        json.dumps({"username": "", "password": MARK}),
        f"{MARK} is no JSON",
        f'{{"password": "{MARK}"',
        f'["{MARK}"]',
        b"\xff\xfe" + MARK.encode(),
        f'{{"password": "{MARK}", "x": ' + "[" * 20_000,
    ],
    ids=["refused", "line break", "no text", "no user", "no JSON", "half a JSON", "a list", "bytes", "deep"],
)
def test_secret_leaves_nothing_behind(reader: None, content: str | bytes) -> None:
    """A refused password, and every shape of a secret that is of no use."""
    with secret_of(content), pytest.raises(CredentialsError) as caught:
        source(SECRET).connect(refuse)
    assert leaks(caught.value) == []


@pytest.mark.parametrize(
    ("changes", "content"),
    [
        ({"user": "other"}, {"username": "app", "password": f"{MARK}-password"}),
        ({"host": ""}, {"username": "app", "password": f"{MARK}-password"}),
        ({"host": ""}, {"username": "app", "password": f"{MARK}-password", "host": "db:5432"}),
    ],
)
def test_secret_that_contradicts_the_settings_leaves_nothing_behind(
    reader: None, changes: dict[str, Any], content: dict[str, str]
) -> None:
    """Another user, no host, a host that is none."""
    values = {"host": "h", "auth": "secret", "secret_arn": "s", "region": "eu-west-1"} | changes
    with secret_of(json.dumps(content)), pytest.raises(PlungepoolError) as caught:
        source(Settings(**values)).connect(refuse)
    assert leaks(caught.value) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("InvalidSignatureException", f"The Canonical String should have been 'x-amz-security-token:{MARK}-session'"),
        ("AccessDeniedException", "not authorized to perform: secretsmanager:GetSecretValue"),
        ("DecryptionFailure", "no"),
    ],
)
def test_refusal_of_aws_leaves_nothing_behind(
    reader: None, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    """Frames of the client hold the request, and with it the session token; a wrong signature's text quotes it."""

    def refuse_call(self: object, operation: str, parameters: dict[str, Any]) -> None:
        request = {"X-Amz-Security-Token": f"{MARK}-session"}
        assert request
        raise ClientError({"Error": {"Code": code, "Message": message}}, operation)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refuse_call)
    with pytest.raises(CredentialsError, match=code) as caught:
        source(SECRET).connect(refuse)
    assert leaks(caught.value) == []
    assert (caught.value.__cause__ is None) == (code == "InvalidSignatureException")


def test_no_way_to_secrets_manager_leaves_nothing_behind(reader: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, at a port where nobody listens: its own frames hold the signed request."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://127.0.0.1:1")
    with pytest.raises(CredentialsError, match=r"Secrets Manager in .* cannot be reached") as caught:
        source(SECRET).connect(refuse)
    assert leaks(caught.value) == []


def test_no_credentials_for_secrets_manager_leave_nothing_behind(reader: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cause is said, and not what Powertools made of it."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(CredentialsError, match="no AWS credentials") as caught:
        source(SECRET).connect(refuse)
    assert leaks(caught.value) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"PLUNGEPOOL_PORT": "x"},
        {"PLUNGEPOOL_HOSTT": "x"},
        {"PLUNGEPOOL_AUTH": "iam"},
        {"PLUNGEPOOL_PASSWORD": f"{MARK}\n"},
        {"PLUNGEPOOL_PASSWORD": f"{MARK}\udcff"},
        {"PLUNGEPOOL_URL": f"postgresql://u:{MARK}@h/d?x=1"},
        {"PLUNGEPOOL_URL": f"postgresql://[u:{MARK}@h/d"},
        {"PLUNGEPOOL_HOST": f"postgresql://u:{MARK}@h/d"},
        {"PLUNGEPOOL_HOST": f"u:{MARK}@h"},
        {"PLUNGEPOOL_ADDRESS": f"u:{MARK}@h"},
    ],
)
def test_wrong_settings_leave_nothing_behind(changes: dict[str, str]) -> None:
    """Neither the environment nor the values read from it nor the constructor's arguments are in a frame."""
    environ = {"PLUNGEPOOL_HOST": "h", "PLUNGEPOOL_USER": "u", "PLUNGEPOOL_PASSWORD": f"{MARK}-password"} | changes
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)
    assert leaks(caught.value) == []


@pytest.mark.parametrize("changes", [{"port": 0}, {"passwrod": MARK}, {"url": f"postgresql://u:{MARK}@h/d#"}])
def test_wrong_keywords_leave_nothing_behind(changes: dict[str, Any]) -> None:
    """
    The constructor's own frames, which a dataclass generates, are left out; a misspelt keyword is the usual TypeError.
    """
    with pytest.raises((SettingsError, TypeError)) as caught:
        Settings(**{"host": "h", "user": "u", "password": f"{MARK}-password"} | changes)
    assert leaks(caught.value) == []


def test_a_replacement_that_fails_leaves_nothing_behind() -> None:
    """dataclasses.replace has every field in a dictionary while it makes the new settings; so does asdict."""
    whole = Settings(host="h", user="u", password=f"{MARK}-password")
    with pytest.raises(SettingsError) as caught:
        dataclasses.replace(whole, port=0)
    assert leaks(caught.value) == []
    assert not shows(dataclasses.asdict(whole))
    assert dataclasses.replace(whole, port=1).password == f"{MARK}-password"


@pytest.mark.parametrize("authentication", ["scram-sha-256", "password"])
def test_failed_connect_leaves_nothing_behind(authentication: Literal["scram-sha-256", "password"]) -> None:
    """
    Through engine, pool, SQLAlchemy and wire: a refused password, nobody at the port, an authority that is not trusted.
    """
    with Postgres(tls=True, authentication=authentication) as server:
        server.execute("CREATE ROLE app LOGIN PASSWORD 'other'")
        whole: dict[str, Any] = {
            "host": server.host, "port": server.port, "ca_file": str(server.ca_file), "checkout_timeout_s": 0.05
        }  # fmt: skip
        for changes in ({}, {"port": 1}, {"ca_file": None}, {"database": "nowhere"}, {"host": "nobody.invalid"}):
            engine = build_engine(Settings(**whole | changes, user="app", password=f"{MARK}-password"))
            with pytest.raises(OperationalError) as caught:
                engine.connect()
            engine.dispose()
            assert leaks(caught.value) == []


def test_failed_connect_with_a_token_leaves_nothing_behind(postgres: Postgres) -> None:
    """A proxy that does not know the credentials: neither the token nor the keys that signed it are in any frame."""
    with RdsProxy(postgres, endpoints=["localhost"]) as proxy:
        engine = build_engine(
            Settings(
                host="localhost", port=proxy.port, user="app", auth="iam", endpoint="proxy", region=proxy.region,
                ca_file=str(proxy.ca_file),
            )
        )  # fmt: skip
        with pytest.raises(CredentialsError) as caught:
            engine.connect()
        engine.dispose()
    assert leaks(caught.value) == []


def test_no_line_of_credentials_holds_a_secret_in_a_local(reader: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Not only where an error is raised today: at no line of the module does a local show one, whoever interrupts it.
    """
    found: dict[str, None] = {}
    lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in {connect.__file__, credentials.__file__, iam.__file__, secret.__file__}:
            return None
        lines += 1
        for name, value in list(frame.f_locals.items()):
            if shows(value):
                found[f"{name} in {frame.f_code.co_qualname}:{frame.f_lineno}"] = None
        return trace

    def use(settings: Settings) -> None:
        sources = source(settings)
        sys.settrace(trace)
        try:
            sources.connect(lambda _login: "a connection")
            with suppress(CredentialsError, Refused):
                sources.connect(refuse)
            sources.forget()
        finally:
            sys.settrace(None)

    use(Settings(host="h", user="u", password=f"{MARK}-password"))
    use(IAM)
    use(Settings(host="h", user="admin", auth="dsql", region="eu-west-1"))
    with secret_of(json.dumps({"username": "app", "password": f"{MARK}-password"})):
        use(SECRET)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", "x")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", f"{MARK}-authorization")
    with endpoint(reply(200, document())) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        use(IAM)
    assert lines > 100
    assert list(found) == []
