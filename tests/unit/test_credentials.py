"""Tokens byte for byte, and what each source does when the server refuses."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from unittest import mock

import botocore.session
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plungepool import CredentialsError, Settings
from plungepool.connect import Connector
from plungepool.credentials import Login
from plungepool.iam import Keys, dsql_token, rds_token

if TYPE_CHECKING:
    from collections.abc import Callable

REGIONS = ["eu-west-1", "us-east-1", "cn-north-1", "cn-northwest-1", "us-gov-west-1", "us-gov-east-1", "ap-southeast-7"]
SECRET_KEY, SESSION_TOKEN = "s3cr3t/Key+unmistakable", "T0ken//unmistakable=="

# A label of a host name in any case, as an endpoint (or somebody's typing) may have it.
labels = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?", fullmatch=True)
hosts = st.lists(labels, min_size=1, max_size=6).map(".".join)
# Whatever can be a role name: no NUL, nothing that is no character at all.
users = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
secrets = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=60)
keys = st.builds(
    Keys,
    access_key=st.from_regex(r"A[KS]IA[A-Z0-9]{16}", fullmatch=True),
    secret_key=secrets,
    session_token=st.none() | secrets,
)
moments = st.integers(min_value=1_500_000_000, max_value=4_000_000_000)

_SESSION = botocore.session.Session()
_SESSION.set_credentials("x", "x")
_CLIENTS = {service: _SESSION.create_client(service, region_name="eu-west-1") for service in ("rds", "dsql")}


def boto_token(service: str, method: str, region: str, signer: Keys, moment: float, **arguments: Any) -> str:
    """Return what botocore gives for the same credentials at the same moment."""
    client = _CLIENTS[service]
    client._request_signer._credentials = botocore.credentials.Credentials(
        signer.access_key, signer.secret_key, signer.session_token
    )
    now = datetime.fromtimestamp(moment, UTC)
    with mock.patch("botocore.auth.get_current_datetime", return_value=now):
        return str(getattr(client, method)(**arguments, Region=region))


@settings(max_examples=150, deadline=None)
@given(hosts, st.integers(1, 65535) | st.sampled_from([443, 5432]), users, st.sampled_from(REGIONS), keys, moments)
def test_rds_token_equals_boto3s(host: str, port: int, user: str, region: str, signer: Keys, moment: int) -> None:
    """Every RDS token is byte for byte what boto3 signs, whatever the user, host, port, region, keys and moment."""
    expected = boto_token(
        "rds", "generate_db_auth_token", region, signer, moment, DBHostname=host, Port=port, DBUsername=user
    )
    assert expected == rds_token(host, port, user, region, signer, moment)


@settings(max_examples=75, deadline=None)
@given(hosts, users, st.sampled_from(REGIONS), keys, moments)
def test_dsql_token_equals_boto3s(host: str, user: str, region: str, signer: Keys, moment: int) -> None:
    """Every DSQL token is byte for byte boto3's, and only the user `admin` gets an administrator's."""
    for name, method in ((user, "generate_db_connect_auth_token"), ("admin", "generate_db_connect_admin_auth_token")):
        if name == "admin" or user != "admin":
            expected = boto_token("dsql", method, region, signer, moment, Hostname=host)
            assert expected == dsql_token(host, name, region, signer, moment)


@pytest.mark.parametrize(("left_s", "life_s"), [(3600, 900), (900, 900), (899.5, 899), (61, 61), (-5, 1)])
def test_token_lives_no_longer_than_its_keys(left_s: float, life_s: int) -> None:
    """A token says 15 minutes, or what is left of its credentials if that is less."""
    token = rds_token("h", 5432, "u", "eu-west-1", Keys("A", "s", None, 1_800_000_000 + left_s), 1_800_000_000)
    assert f"&X-Amz-Expires={life_s}&" in token


class Refused(Exception):
    """What a driver raises when the server refuses a login."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("the server's words")
        self.sqlstate = sqlstate


class Server:
    """Refuses the first logins with the SQLSTATEs given, then lets everybody in; remembers what it was shown."""

    def __init__(self, *sqlstates: str | None) -> None:
        self.sqlstates = list(sqlstates)
        self.logins: list[Login] = []

    def __call__(self, login: Login) -> str:
        self.logins.append(login)
        if self.sqlstates:
            raise Refused(self.sqlstates.pop(0))
        return "a connection"


def source(settings: Settings) -> Connector:
    """The loop over the logins of these settings, before whichever server a test hands to its `connect`."""
    return Connector(settings, lambda server, login, _way: server(login))


@pytest.fixture
def aws_environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with static credentials, as an on-demand function has it, and no other."""
    for name in (
        "AWS_PROFILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_LAMBDA_RUNTIME_API",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)
    return monkeypatch


@pytest.fixture(params=["iam", "dsql"])
def token_settings(request: pytest.FixtureRequest) -> Settings:
    """Settings for each kind of token."""
    return Settings(host="db.example", user="app", auth=request.param, region="eu-west-1")


def test_password_is_tried_once() -> None:
    """A refused password is not tried again: nothing could have changed, and the server may count attempts."""
    server = Server("28P01")
    with pytest.raises(Refused):
        source(Settings(host="h", user="u", password="p", tls="disable")).connect(server)
    assert [Login("u", "p", "h", 5432, "postgres")] == server.logins


def test_token_is_signed_at_connect(aws_environ: pytest.MonkeyPatch, token_settings: Settings) -> None:
    """Credentials are read from the environment at each connect, never when the source is made."""
    aws_environ.delenv("AWS_ACCESS_KEY_ID")
    tokens = source(token_settings)
    server = Server()
    for access_key in ("AKIAFIRST", "AKIASECOND"):
        aws_environ.setenv("AWS_ACCESS_KEY_ID", access_key)
        assert tokens.connect(server) == "a connection"
        assert f"Credential={access_key}%2F" in server.logins[-1].password


@pytest.mark.parametrize("sqlstate", ["28P01", "28000"])
def test_refused_token_is_signed_once_more(
    aws_environ: pytest.MonkeyPatch, token_settings: Settings, sqlstate: str
) -> None:
    """One refusal is answered with a new token; the second attempt may succeed."""
    server = Server(sqlstate)
    assert source(token_settings).connect(server) == "a connection"
    assert len(server.logins) == 2


def test_token_refused_twice_names_the_causes(aws_environ: pytest.MonkeyPatch, token_settings: Settings) -> None:
    """After two refusals the error names the user, the causes in order and no secret, and keeps the server's error."""
    server = Server("28000", "28000", "28000")
    with pytest.raises(CredentialsError) as caught:
        source(token_settings).connect(server)
    text = str(caught.value)
    assert len(server.logins) == 2
    assert isinstance(caught.value.__cause__, Refused)
    assert "'app'" in text
    causes = (
        ["rds_iam", "rds-db:connect", "CNAME", "clock", "TLS"]
        if token_settings.auth == "iam"
        else ["dsql:DbConnect", "AWS IAM GRANT", "PLUNGEPOOL_REGION", "PLUNGEPOOL_HOST", "clock"]
    )
    assert sorted(map(text.index, causes)) == [text.index(cause) for cause in causes]
    assert SECRET_KEY not in text
    assert SESSION_TOKEN not in text


@pytest.mark.parametrize("sqlstate", [None, "53300", "57P03"])
def test_other_errors_pass(aws_environ: pytest.MonkeyPatch, token_settings: Settings, sqlstate: str | None) -> None:
    """A server that is full or away is not asked again here: that is no matter of credentials."""
    server = Server(sqlstate)
    with pytest.raises(Refused):
        source(token_settings).connect(server)
    assert len(server.logins) == 1


def test_half_a_pair_of_keys_is_an_error(aws_environ: pytest.MonkeyPatch, token_settings: Settings) -> None:
    """An access key without its secret gives an error that names both variables."""
    aws_environ.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialsError, match=r"AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"):
        source(token_settings).connect(Server())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AWS_ACCESS_KEY_ID", "access key"),
        ("AWS_SECRET_ACCESS_KEY", "secret key"),
        ("AWS_SESSION_TOKEN", "session token"),
    ],
)
@pytest.mark.parametrize("end", ["\n", " ", "\u00a0", "\udcff"])
def test_key_that_was_copied_with_more_is_named(
    aws_environ: pytest.MonkeyPatch, token_settings: Settings, name: str, said: str, end: str
) -> None:
    """A blank or a line break would make a signature that is refused without a reason: nothing is signed with it."""
    aws_environ.setenv(name, f"unmistakable{end}")
    server = Server()
    with pytest.raises(
        CredentialsError, match=f"the {said} of the environment .* contains a space, a line break"
    ) as caught:
        source(token_settings).connect(server)
    assert server.logins == []
    assert "unmistakable" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "sqlstate", "message", "first"),
    [
        ("direct", "28P01", "password authentication failed", "the database user does not exist or lacks the role"),
        ("direct", "28000", "PAM authentication failed", "the function's role is not allowed rds-db:connect"),
        ("direct", "28000", "no pg_hba.conf entry", "the database user does not exist or lacks the role"),
        ("proxy", "28P01", "The password that was provided is wrong", "the proxy does not require IAM"),
        ("proxy", "28P01", "The IAM authentication failed", "the function's role is not allowed rds-db:connect"),
        ("proxy", "28P01", "This RDS proxy has no credentials", "the proxy has neither a secret"),
    ],
)
def test_what_the_server_says_orders_the_causes(
    aws_environ: pytest.MonkeyPatch, endpoint: str, sqlstate: str, message: str, first: str
) -> None:
    """
    The step that refused is known from its words; every cause is named all the same, IAM that is not enabled among
    them.
    """

    def refuse(_login: Login) -> None:
        error = Refused(sqlstate)
        error.args = (message,)
        raise error

    with pytest.raises(CredentialsError) as caught:
        source(Settings(host="h", user="app", auth="iam", region="eu-west-1", endpoint=endpoint)).connect(refuse)
    text = str(caught.value)
    assert f"(1) {first}" in text
    assert [
        word
        for word in ("rds-db:connect", "CNAME", "clock", "TLS", "(6)" if endpoint == "direct" else "IAMAuth")
        if word not in text
    ] == []
    assert ("IAM authentication is not enabled" in text) == (endpoint == "direct")


def test_expiry_in_the_environment_bounds_the_token(aws_environ: pytest.MonkeyPatch, token_settings: Settings) -> None:
    """AWS_CREDENTIAL_EXPIRATION, which tools export beside the keys, is respected; nonsense in it is an error."""
    server = Server()
    aws_environ.setenv("AWS_CREDENTIAL_EXPIRATION", "2001-01-01T00:00:00Z")
    source(token_settings).connect(server)
    assert "X-Amz-Expires=1&" in server.logins[0].password
    aws_environ.setenv("AWS_CREDENTIAL_EXPIRATION", "soon")
    with pytest.raises(CredentialsError, match="AWS_CREDENTIAL_EXPIRATION"):
        source(token_settings).connect(server)


@pytest.mark.parametrize("show", [repr, str, lambda value: f"{value}", lambda value: f"{value!r}"])
def test_reprs_hold_no_secret(aws_environ: pytest.MonkeyPatch, show: Callable[[object], str]) -> None:
    """Neither a login nor keys nor any source shows a password, a key or a token."""
    password = "unmistakable-password"
    shown = [
        Login("u", password, "h", 5432, "d"),
        Keys("AKIA", SECRET_KEY, SESSION_TOKEN),
        source(Settings(host="h", user="u", password=password, tls="disable")),
        source(Settings(host="h", user="u", auth="iam", region="eu-west-1")),
    ]
    for value in shown:
        assert not any(secret in show(value) for secret in (password, SECRET_KEY, SESSION_TOKEN))


def test_iam_imports_neither_boto3_nor_botocore() -> None:
    """
    In an environment with a function's variables a token costs no AWS library, nor Powertools, nor an HTTP client.
    """
    program = """
import sys
from plungepool import Settings
from plungepool.connect import source
for auth in ("iam", "dsql"):
    next(source(Settings(host="h", user="u", auth=auth, region="eu-west-1")).logins())
print(sorted(name for name in ("boto3", "botocore", "aws_lambda_powertools", "http.client") if name in sys.modules))
"""
    environ = {
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_SESSION_TOKEN": "t",
        "AWS_REGION": "eu-west-1",
    }
    run = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
