"""
Secrets Manager: shapes, caching, the rotation window, alternating users; moto stands in for AWS, and only for AWS.
"""

from __future__ import annotations

import json
import socket
import sys
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import boto3
import botocore.client
import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from moto import mock_aws
from sqlalchemy.exc import OperationalError

from plungepool import CredentialsError, Settings, SettingsError, build_engine
from plungepool.connect import Connector, Way
from plungepool.credentials import Login

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FULL = {
    "engine": "postgres",
    "username": "app",
    "password": "first",
    "host": "db.secret",
    "port": "5433",
    "dbname": "orders",
}


def source(settings: Settings) -> Connector:
    """The loop over the logins of these settings, before whichever server a test hands to its `connect`."""

    def attempt(server: Any, login: Login, way: Way) -> Any:
        if isinstance(server, Server):
            server.left.append(way.timeout_s)
        return server(login)

    return Connector(settings, attempt)


class Refused(Exception):
    """What the server says to a wrong password."""

    sqlstate = "28P01"


class Server:
    """Knows one password for each user, and what it was shown."""

    def __init__(self, **passwords: str) -> None:
        self.passwords = passwords
        self.logins: list[Login] = []
        self.left: list[float] = []

    def __call__(self, login: Login) -> str:
        self.logins.append(login)
        if self.passwords.get(login.user) != login.password:
            raise Refused("password authentication failed")
        return "a connection"

    @property
    def shown(self) -> list[str]:
        """The passwords that were tried, in order."""
        return [login.password for login in self.logins]


class Secret:
    """A secret of moto's, with the steps of a rotation; counts what is asked of it."""

    def __init__(self, content: dict[str, Any] | str) -> None:
        self.client = boto3.client("secretsmanager", region_name="eu-west-1")
        self.arn = self.client.create_secret(Name=f"s-{uuid.uuid4()}", SecretString=self._text(content))["ARN"]
        self.reads: list[str] = []
        self.regions: list[str] = []
        self.client_made: Callable[[Any], None] = lambda client: None

    @staticmethod
    def _text(content: dict[str, Any] | str) -> str:
        return content if isinstance(content, str) else json.dumps(content)

    def put(self, content: dict[str, Any] | str, stage: str = "AWSCURRENT") -> None:
        """Store a new version; as AWSCURRENT the one before becomes AWSPREVIOUS."""
        self.client.put_secret_value(SecretId=self.arn, SecretString=self._text(content), VersionStages=[stage])


@pytest.fixture(params=["Powertools", "boto3"])
def secret(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secret]:
    """A secret in the first shape, read through Powertools Parameters and, where that is missing, through boto3."""
    if request.param == "boto3":
        monkeypatch.setitem(sys.modules, "aws_lambda_powertools.utilities", None)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        held = Secret(FULL)
        make_client = boto3.session.Session.client

        def make_counting_client(session: boto3.session.Session, *arguments: Any, **options: Any) -> Any:
            client = make_client(session, *arguments, **options)
            client.meta.events.register(
                "before-parameter-build.secrets-manager.GetSecretValue",
                lambda params, **_: held.reads.append(params.get("VersionStage", "AWSCURRENT")),
            )
            held.regions.append(client.meta.region_name)
            held.client_made(client)
            return client

        monkeypatch.setattr(boto3.session.Session, "client", make_counting_client)
        yield held


def make_settings(secret: Secret, **changes: Any) -> Settings:
    """Settings of a function that names the database's host and the secret."""
    return Settings(
        **({"host": "db.settings", "auth": "secret", "secret_arn": secret.arn, "region": "us-east-1"} | changes)
    )


def test_secret_gives_user_and_password_and_the_settings_the_endpoint(secret: Secret) -> None:
    """
    With a host in the settings (a proxy's, a reader's) the secret's host and port are another one's; dbname counts.
    """
    server = Server(app="first")
    assert source(make_settings(secret)).connect(server) == "a connection"
    assert server.logins == [Login("app", "first", "db.settings", 5432, "orders")]


def test_secret_gives_the_whole_address(secret: Secret) -> None:
    """Without a host in the settings the secret's host and port are used, a port in text too; a database set wins."""
    server = Server(app="first")
    source(make_settings(secret, host="", database="mine")).connect(server)
    assert server.logins == [Login("app", "first", "db.secret", 5433, "mine")]


@pytest.mark.parametrize("port", [None, "", "5432a", "0", "65536", "123456789"])
def test_port_of_the_settings_stands_in_for_one_that_is_none(secret: Secret, port: str | None) -> None:
    """A secret with a host, and without a port or with one that cannot be."""
    content = {name: value for name, value in FULL.items() if name != "port"}
    secret.put(content if port is None else content | {"port": port})
    server = Server(app="first")
    source(make_settings(secret, host="", port=6000)).connect(server)
    assert [(login.host, login.port) for login in server.logins] == [("db.secret", 6000)]


def test_rds_managed_secret_holds_user_and_password_only(secret: Secret) -> None:
    """The second shape is enough when the settings name the host, and an error that says so when they do not."""
    secret.put({"username": "postgres", "password": "managed"})
    server = Server(postgres="managed")
    source(make_settings(secret, database="d")).connect(server)
    assert server.logins == [Login("postgres", "managed", "db.settings", 5432, "d")]
    with pytest.raises(SettingsError, match="PLUNGEPOOL_HOST is missing"):
        source(make_settings(secret, host="")).connect(server)


def test_region_of_the_arn_is_asked(secret: Secret) -> None:
    """The secret's region is in its ARN, whatever region the function runs in."""
    source(make_settings(secret, region="us-east-1")).connect(Server(app="first"))
    assert secret.regions == ["eu-west-1"]


def test_secret_is_read_once_for_many_connects(secret: Secret) -> None:
    """Nothing is read before the first connect, and nothing again while the server takes what is kept."""
    secrets = source(make_settings(secret))
    assert secret.reads == []
    for _ in range(3):
        secrets.connect(Server(app="first"))
    assert secret.reads == ["AWSCURRENT"]


def test_forget_reads_anew(secret: Secret) -> None:
    """After a snapshot's restore the secret is read again."""
    secrets = source(make_settings(secret))
    secrets.connect(Server(app="first"))
    secret.put(FULL | {"password": "second"})
    secrets.forget()
    server = Server(app="second")
    secrets.connect(server)
    assert server.shown == ["second"]


def test_rotated_secret_is_fetched_once_more(secret: Secret) -> None:
    """A kept password that the server no longer takes is replaced by the current one, in the same connect."""
    secrets = source(make_settings(secret))
    secrets.connect(Server(app="first"))
    secret.put(FULL | {"password": "second"})
    server = Server(app="second")
    assert secrets.connect(server) == "a connection"
    assert server.shown == ["first", "second"]
    assert secret.reads == ["AWSCURRENT"] * 2


def test_pending_version_is_tried_in_the_rotation_window(secret: Secret) -> None:
    """The server has the new password and AWSCURRENT does not yet: AWSPENDING gets in, and is kept for the next."""
    secret.put(FULL | {"password": "second"}, "AWSPENDING")
    secrets = source(make_settings(secret))
    server = Server(app="second")
    for _ in range(2):
        assert secrets.connect(server) == "a connection"
    assert server.shown == ["first", "second", "second"]
    assert len(secret.regions) == 1, "one client read both versions"


def test_previous_version_is_tried_where_the_server_is_late(secret: Secret) -> None:
    """AWSCURRENT is new and the server (a replica) has the old password still: AWSPREVIOUS gets in."""
    secret.put(FULL | {"password": "second"})
    server = Server(app="first")
    assert source(make_settings(secret)).connect(server) == "a connection"
    assert server.shown == ["second", "first"]


def test_alternating_users_change_the_user(secret: Secret) -> None:
    """After a rotation of the other user the login's name changes with the secret's."""
    secrets = source(make_settings(secret))
    secrets.connect(Server(app="first"))
    secret.put(FULL | {"username": "app_clone", "password": "second"})
    server = Server(app="gone", app_clone="second")
    assert secrets.connect(server) == "a connection"
    assert [login.user for login in server.logins] == ["app", "app_clone"]


def test_no_password_of_any_version_ends_at_the_deadline(secret: Secret) -> None:
    """
    The versions are tried with pauses until the time for a connect is over; the error names the secret, not what it
    holds.
    """
    secret.put(FULL | {"password": "second"}, "AWSPENDING")
    server = Server()
    with pytest.raises(CredentialsError, match="refused every version of the secret") as caught:
        source(make_settings(secret, connect_timeout_s=1.5)).connect(server)
    assert server.shown[:4] == ["first", "second", "first", "second"]
    assert isinstance(caught.value.__cause__, Refused)
    assert secret.arn in str(caught.value)
    assert not any(word in str(caught.value) for word in ("first", "second"))
    left = server.left
    assert left == sorted(left, reverse=True)
    assert left[0] <= 1.5


def test_password_that_becomes_right_is_taken(secret: Secret) -> None:
    """A server that changes a moment later than the secret is waited for."""

    class LateServer(Server):
        def __call__(self, login: Login) -> str:
            if len(self.logins) == 4:
                self.passwords = {"app": "first"}
            return super().__call__(login)

    server = LateServer()
    assert source(make_settings(secret)).connect(server) == "a connection"
    assert server.shown == ["first"] * 5


def test_other_errors_pass_and_read_nothing(secret: Secret) -> None:
    """A full server is no matter of credentials: its error passes, the secret stays as it is."""

    class Full(Exception):
        sqlstate = "53300"

    def open_connection(_: Login) -> str:
        raise Full

    with pytest.raises(Full):
        source(make_settings(secret)).connect(open_connection)
    assert secret.reads == ["AWSCURRENT"]


def test_another_user_in_the_settings_is_an_error(secret: Secret) -> None:
    """A user in the settings must be the secret's, or not be there."""
    assert source(make_settings(secret, user="app")).connect(Server(app="first")) == "a connection"
    server = Server(app="first")
    with pytest.raises(SettingsError, match="PLUNGEPOOL_USER is 'other' but the secret's username is 'app'"):
        source(make_settings(secret, user="other")).connect(server)
    assert server.logins == []


@pytest.mark.parametrize(
    "content",
    [
        "unmistakable",
        '["unmistakable"]',
        {"username": "app"},
        {"user": "app", "password": "unmistakable"},
        {"username": "app", "password": 1},
        {"username": "", "password": "unmistakable"},
    ],
)
def test_useless_secret_is_an_error_that_quotes_nothing(secret: Secret, content: dict[str, Any] | str) -> None:
    """A secret of another shape is an error that names it and says the shape; nothing in the chain holds its text."""
    secret.put(content)
    with pytest.raises(CredentialsError, match="must be a JSON object with username and password") as caught:
        source(make_settings(secret)).connect(Server())
    assert "unmistakable" not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize(("connect_timeout_s", "connect_s", "read_s"), [(5.0, 2.0, 5.0), (0.5, 0.5, 0.5)])
def test_secrets_manager_has_the_time_of_a_connect(
    secret: Secret, connect_timeout_s: float, connect_s: float, read_s: float
) -> None:
    """Not boto3's own 60 s, five times over: what is silent ends within the time-outs of the settings, tried twice."""
    clients: list[Any] = []
    secret.client_made = clients.append
    source(make_settings(secret, connect_timeout_s=connect_timeout_s)).connect(Server(app="first"))
    (client,) = clients
    config = client.meta.config
    assert (config.connect_timeout, config.read_timeout) == (connect_s, read_s)
    assert config.retries["total_max_attempts"] == 2


def test_secrets_manager_that_never_answers_ends_the_connect(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that accepts and stays silent: the error says that there is no way to it, after two short attempts."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(CredentialsError, match="Secrets Manager in eu-west-1 cannot be reached"):
            source(make_settings(secret, connect_timeout_s=0.2)).connect(Server())
        silent.setblocking(False)
        calls = 0
        with suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                calls += 1
    assert calls == 2


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            "AccessDeniedException: User: arn:aws:sts::1:x is not authorized",
            "the role is not allowed secretsmanager:GetSecretValue",
        ),
        ("AccessDeniedException: Access to KMS is not allowed", "the role needs kms:Decrypt on it"),
        ("DecryptionFailure: no", "the role needs kms:Decrypt on it"),
        ("ThrottlingException: KMS is slow", "try again"),
        ("ExpiredTokenException: no", "does not accept these credentials"),
        ("UnrecognizedClientException: no", "does not accept these credentials"),
        ("InvalidRequestException: marked for deletion", "about to be deleted"),
        ("ThrottlingException: slow", "try again"),
        ("SomethingNewException: what", "check PLUNGEPOOL_SECRET_ARN and its region"),
    ],
)  # fmt: skip
def test_refusal_of_secrets_manager_leads_to_its_cure(
    secret: Secret, monkeypatch: pytest.MonkeyPatch, failure: str, words: str
) -> None:
    """Each code of AWS's has a cure of its own, and the error at the bottom is named, not Powertools' around it."""
    code, message = failure.split(": ", 1)

    def refuse(_client: object, operation: str, _parameters: object) -> None:
        raise ClientError({"Error": {"Code": code, "Message": message}}, operation)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refuse)
    with pytest.raises(CredentialsError) as caught:
        source(make_settings(secret)).connect(Server())
    assert f"({code})" in str(caught.value)
    assert words in str(caught.value)
    assert "GetParameterError" not in str(caught.value)


def test_version_that_may_not_be_read_is_no_missing_version(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role that may read the current version only: what AWS says of the pending one is the error."""
    call = botocore.client.BaseClient._make_api_call

    def refuse_others(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
        if parameters.get("VersionStage", "AWSCURRENT") != "AWSCURRENT":
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, operation)
        return call(client, operation, parameters)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refuse_others)
    with pytest.raises(CredentialsError, match="the role is not allowed secretsmanager:GetSecretValue"):
        source(make_settings(secret)).connect(Server(app="another"))


def test_missing_credentials_are_named_by_awss_own_error(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    """No code of AWS's has come: the error of the client is named that says most."""

    def refuse(*_: object) -> None:
        raise NoCredentialsError

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refuse)
    with pytest.raises(CredentialsError, match=r"could not be read \(NoCredentialsError\): no AWS credentials"):
        source(make_settings(secret)).connect(Server())


def test_missing_region_is_named(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret by name, and a region nowhere."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(CredentialsError, match="needs PLUNGEPOOL_REGION"):
        source(make_settings(secret, secret_arn="by-name", region=None)).connect(Server())


def test_missing_boto3_is_named(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of Lambda's runtimes nobody may have installed it."""
    monkeypatch.setitem(sys.modules, "botocore.config", None)
    with pytest.raises(CredentialsError, match=r"botocore.config cannot be imported here; boto3 is part of Lambda's"):
        source(make_settings(secret)).connect(Server())


def test_exception_of_a_signal_handler_passes(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody's handler raises while a client is made is theirs, and no matter of credentials."""

    class Struck(Exception):
        pass

    def strike(*_: object, **__: object) -> None:
        raise Struck

    monkeypatch.setattr(boto3.session.Session, "client", strike)
    monkeypatch.setattr("aws_lambda_powertools.utilities.parameters.SecretsProvider", strike)
    with pytest.raises(Struck):
        source(make_settings(secret)).connect(Server())


@pytest.mark.parametrize(
    ("changes", "content", "words"),
    [
        ({}, {"password": "first"}, "a user with the role rds_iam is refused every password"),
        ({}, {"password": "first\n"}, "begins or ends with a space or a line break"),
        ({"endpoint": "proxy"}, {"password": "first"}, "the proxy requires IAM"),
    ],
)
def test_refused_secret_names_what_may_be_wrong(
    secret: Secret, changes: dict[str, Any], content: dict[str, str], words: str
) -> None:
    """
    A copied line break is seen from here; behind a proxy the causes are others; the user is named, its password not.
    """
    secret.put(FULL | content)
    with pytest.raises(CredentialsError) as caught:
        source(make_settings(secret, connect_timeout_s=0.1, **changes)).connect(Server())
    assert words in str(caught.value)
    assert "user 'app'" in str(caught.value)
    assert "first" not in str(caught.value)


def test_missing_secret_is_an_error_with_causes(secret: Secret) -> None:
    """What Secrets Manager refuses is named by its code, with what to check."""
    with pytest.raises(CredentialsError, match=r"'nobodys' could not be read \(ResourceNotFoundException\)") as caught:
        source(make_settings(secret, secret_arn="nobodys", region="eu-west-1")).connect(Server())
    assert "there is no such secret, or no current version of it, in eu-west-1" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_forked_child_reads_with_a_client_of_its_own(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's HTTPS connection is not the child's: in another process the client is made anew."""
    secrets = source(make_settings(secret))
    secrets.connect(Server(app="first"))
    secret.put(FULL | {"password": "second"})
    monkeypatch.setattr("plungepool.secret.os.getpid", lambda: -1)
    secrets.connect(Server(app="second"))
    assert len(secret.regions) == 2


def test_secret_values_are_in_no_log(secret: Secret, caplog: pytest.LogCaptureFixture) -> None:
    """With every logger of this package at its loudest nothing of a login is written."""
    caplog.set_level("DEBUG", logger="plungepool")
    with pytest.raises(CredentialsError):
        source(make_settings(secret, connect_timeout_s=0.2)).connect(Server())
    source(make_settings(secret)).connect(Server(app="first"))
    assert "first" not in caplog.text


def test_plain_text_to_the_host_of_a_secret_is_loud(secret: Secret, caplog: pytest.LogCaptureFixture) -> None:
    """Where only the secret knows the host, it is that host which decides whether plain text is worth a warning."""
    secret.put(FULL | {"host": "nobody.invalid"})
    engine = build_engine(make_settings(secret, host="", tls="disable"))
    with pytest.raises(OperationalError):
        engine.connect()
    assert "rows travel to nobody.invalid in plain text" in caplog.text
