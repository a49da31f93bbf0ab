"""Which AWS credentials are taken from where, and what is said where there are none; offline."""

from __future__ import annotations

import json

import pytest
from botocore.exceptions import ClientError

from plungepool import CredentialsError, Settings, credentials, iam, secret
from plungepool.credentials import Document

KEYS = {"AccessKeyId": "ASIA1", "SecretAccessKey": "s", "Token": "t", "Expiration": "2030-01-01T00:00:00Z"}


def test_keys_of_a_user_have_no_session_token() -> None:
    """Nor an end: what a role's keys have, they have not."""
    keys = iam.Keys("AKIA1", "s")
    assert (keys.session_token, keys.expires_at) == (None, None)


@pytest.mark.parametrize(("token", "expected"), [("t", "t"), ("", None), (None, None)])
def test_empty_session_token_is_none(monkeypatch: pytest.MonkeyPatch, token: str | None, expected: str | None) -> None:
    """A variable that was set to nothing must not become a part of the signature."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.delenv("AWS_CREDENTIAL_EXPIRATION", raising=False)
    if token is None:
        monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    else:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    assert iam._environment_keys() == iam.Keys("AKIA1", "s", expected)


def test_keys_of_a_container_are_read_with_their_end() -> None:
    """The answer of the credential endpoint, as the SDKs' guide has it."""
    found = iam._container_keys(Document(lambda: json.dumps(KEYS)), "localhost", 200)
    assert found == iam.Keys("ASIA1", "s", "t", 1893456000.0)


@pytest.mark.parametrize("missing", ["AccessKeyId", "SecretAccessKey", "Expiration"])
def test_half_of_the_keys_is_none(missing: str) -> None:
    """
    Without either key, or without a moment at which they end, there are no credentials; nothing of the answer is
    quoted.
    """
    answer = json.dumps({name: value for name, value in KEYS.items() if name != missing})
    with pytest.raises(CredentialsError, match=r"'localhost' returned no credentials \(HTTP status 200\)"):
        iam._container_keys(Document(lambda: answer), "localhost", 200)


def test_keys_in_a_failure_are_not_taken() -> None:
    """Only an answer of status 200 is one."""
    with pytest.raises(CredentialsError, match="HTTP status 500"):
        iam._container_keys(Document(lambda: json.dumps(KEYS)), "localhost", 500)


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("169.254.170.2", True),
     ("169.254.170.23", True), ("fd00:ec2::23", True), ("169.254.169.254", False), ("10.0.0.1", False), ("example.com",
     False), ("", False)],
)  # fmt: skip
def test_plain_http_goes_to_this_host_only(host: str, own: bool) -> None:
    """Loopback, and the addresses of Amazon ECS and EKS."""
    assert iam._is_container_host(host) is own


def test_error_of_aws_is_named_by_its_code_and_not_quoted() -> None:
    """What AWS answers to who assumes a role may hold names that are nobody's business in a log."""
    answer = {"Error": {"Code": "AccessDenied", "Message": "unmistakable words"}}
    text = iam._explain_chain(ClientError(answer, "AssumeRole"))
    assert "(ClientError)" in text
    assert "AWS refused it (AccessDenied)" in text
    assert "unmistakable" not in text


def test_secret_may_change_while_it_is_tried() -> None:
    """
    In a rotation the server's password and the secret's differ for some seconds; a password of the settings never
    changes.
    """
    settings = Settings(host="db.example.com", auth="secret", secret_arn="orders", region="eu-west-1")
    assert secret.SecretSource(settings).may_change


def test_secret_is_kept_until_the_server_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server took is tried first and without AWS; what it refused is read anew."""
    asked: list[str] = []

    def read(stage: str) -> Document:
        asked.append(stage)
        return Document(lambda: json.dumps({"username": "app", "password": f"p{len(asked)}"}))

    monkeypatch.setattr(secret, "_secret_reader", lambda _settings: read)
    source = secret.SecretSource(
        Settings(host="db.example.com", auth="secret", secret_arn="orders", region="eu-west-1")
    )
    assert next(source.logins()).password == "p1"
    taken = source.logins()
    assert (next(taken).password, asked) == ("p1", ["AWSCURRENT"])
    assert (next(taken).password, asked) == ("p2", ["AWSCURRENT"] * 2)
    assert [login.password for login in taken] == ["p3", "p4"]
    assert next(source.logins()).password == "p5"
    assert asked == ["AWSCURRENT", "AWSCURRENT", "AWSPENDING", "AWSPREVIOUS", "AWSCURRENT"]


def raised_in_turn() -> Exception:
    """An error with a cause, raised while another one was handled."""
    try:
        try:
            raise KeyError("the context")
        except KeyError:
            raise RuntimeError("the error") from ValueError("the cause")
    except RuntimeError as error:
        return error


def test_what_an_error_came_from_is_its_cause() -> None:
    """And its context only where there is no cause; a circle ends."""
    error = raised_in_turn()
    assert [str(one) for one in credentials.chain_of(error)] == ["the error", "the cause"]
    error.__cause__ = None
    assert [str(one) for one in credentials.chain_of(error)] == ["the error", "'the context'"]
    error.__cause__ = error
    assert list(credentials.chain_of(error)) == [error]


def test_error_of_a_library_keeps_no_frame_that_held_a_secret() -> None:
    """Neither its own, nor its cause's, nor those of a context that nobody would print."""
    error = credentials.without_frames(raised_in_turn())
    assert (error.__traceback__, error.__context__, str(error.__cause__)) == (None, None, "the cause")


@pytest.mark.parametrize(
    ("error", "librarys"),
    [(ImportError("boto3"), True), (ClientError({}, "x"), True), (ValueError(), False), (KeyboardInterrupt(), False)],
)
def test_errors_of_awss_libraries_are_told_from_others(error: Exception, librarys: bool) -> None:
    """A library that is missing is theirs, too; what somebody's signal handler raised is not."""
    assert credentials.is_librarys(error) is librarys
