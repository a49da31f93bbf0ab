"""IAM from end to end: tokens of this package, verified by the stand-in for RDS Proxy, which shares no code with it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from plungepool import CredentialsError, Settings, build_engine
from plungepool.iam import Keys, rds_token
from plungepool_toolkit.rds_proxy import Credential, RdsProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.postgres import Postgres

# What a role may be called, all of which must survive the signature's percent-encoding.
USERS = ["tokens_app", "Tokens App/+=&?%", "tökens-äpp~._*"]


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[Postgres]:
    """The run's server, with roles of ordinary and of odd names."""
    for user in USERS:
        postgres.execute(f'CREATE ROLE "{user}" LOGIN')
    yield postgres
    for user in USERS:
        postgres.execute(f'DROP ROLE "{user}"')


@pytest.fixture
def proxy(database: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[RdsProxy]:
    """A proxy that asks for IAM; the environment holds the credentials of a role that may sign in."""
    with RdsProxy(database, endpoints=["localhost"]) as running:
        set_keys(monkeypatch, running.credentials[0])
        yield running


def set_keys(monkeypatch: pytest.MonkeyPatch, credential: Credential) -> None:
    """Set the variables that Lambda sets."""
    monkeypatch.delenv("AWS_CREDENTIAL_EXPIRATION", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", credential.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credential.secret_access_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", credential.session_token or "")


def make_settings(proxy: RdsProxy, **changes: Any) -> Settings:
    """Settings of a function behind the proxy."""
    return Settings(
        **(
            {
                "host": "localhost",
                "port": proxy.port,
                "user": "tokens_app",
                "auth": "iam",
                "endpoint": "proxy",
                "region": proxy.region,
                "ca_file": str(proxy.ca_file),
            }
            | changes
        )
    )


@pytest.mark.parametrize("user", USERS)
def test_token_opens_a_connection(proxy: RdsProxy, user: str) -> None:
    """A function signs in as its user, odd names included, and nothing pins the proxy."""
    engine = build_engine(make_settings(proxy, user=user))
    with engine.begin() as connection:
        assert connection.execute(text("SELECT session_user")).scalar_one() == user
    engine.dispose()
    assert (proxy.counters.accepted, proxy.counters.pinned.total()) == (1, 0)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"age_s": 0}, None),
        ({"age_s": 14 * 60}, None),
        ({"age_s": 16 * 60}, "it has expired"),
        ({"user": "another"}, "it is signed for another user"),
        ({"host": "127.0.0.2"}, "it is signed for another host or port"),
        ({"port": 5432}, "it is signed for another host or port"),
        ({"region": "us-east-1"}, "it is signed for another region"),
        ({"secret_key": "another"}, "its signature does not match"),
    ],
)
def test_token_is_good_for_its_user_host_port_region_and_a_quarter_of_an_hour(
    proxy: RdsProxy, what: dict[str, Any], reason: str | None
) -> None:
    """14 minutes old passes, 16 does not; nor does one for another user, host, port or region, or of other keys."""
    credential = proxy.credentials[0]
    keys = Keys(
        credential.access_key_id, what.get("secret_key", credential.secret_access_key), credential.session_token
    )
    token = rds_token(
        what.get("host", "localhost"),
        what.get("port", proxy.port),
        what.get("user", "tokens_app"),
        what.get("region", proxy.region),
        keys,
        time.time() - what.get("age_s", 0),
    )
    engine = build_engine(make_settings(proxy, auth="password", password=token))
    if reason is None:
        engine.connect().close()
    else:
        with pytest.raises(Exception, match="SQLSTATE") as caught:
            engine.connect()
        assert token not in f"{caught.value!r} {caught.value}"
        assert dict(proxy.counters.refused) == {f"IAM token: {reason}": 1}
    engine.dispose()


def test_each_connect_has_a_token_of_its_own(proxy: RdsProxy) -> None:
    """An engine that lives longer than a token goes on connecting: nothing is frozen at its making."""
    engine = build_engine(make_settings(proxy, pool="null"))
    engine.connect().close()
    with pytest.MonkeyPatch.context() as patch:
        now = time.time() + 3600
        patch.setattr("plungepool.iam.time.time", lambda: now)
        proxy.advance(3600)
        engine.connect().close()
    engine.dispose()
    assert proxy.counters.refused == {}


def test_exchanged_keys_are_used_at_once(proxy: RdsProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the role's credentials are replaced, the next connect signs with the new ones."""
    engine = build_engine(make_settings(proxy, pool="null"))
    engine.connect().close()
    new = Credential.temporary()
    proxy.credentials = (new,)
    with pytest.raises(CredentialsError, match="Usual causes"):
        engine.connect()
    set_keys(monkeypatch, new)
    engine.connect().close()
    engine.dispose()
    assert proxy.counters.refused.total() == 2


def test_user_without_the_policy_gets_the_causes(proxy: RdsProxy) -> None:
    """Where no policy allows rds-db:connect the error says so among the causes, after two attempts."""
    proxy.credentials = (dataclasses.replace(proxy.credentials[0], database_users=frozenset({"somebody"})),)
    with pytest.raises(CredentialsError, match="rds-db:connect") as caught:
        build_engine(make_settings(proxy)).connect()
    assert proxy.counters.refused.total() == 2
    assert getattr(caught.value.__cause__, "sqlstate", None) in ("28P01", "28000")


PROGRAM = """
import json, os, sys
from plungepool import get_engine
from sqlalchemy import text
engine = get_engine()
with engine.begin() as connection:
    user = connection.execute(text("SELECT session_user")).scalar_one()
print(json.dumps([user, sorted({"boto3", "botocore", "aws_lambda_powertools"} & sys.modules.keys())]))
"""


def test_connect_with_iam_imports_no_aws_library(proxy: RdsProxy, tmp_path: Any) -> None:
    """In an environment like Lambda's, import, connect and query with IAM need neither boto3 nor botocore."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    environ = {name: os.environ[name] for name in names} | {
        "AWS_REGION": proxy.region,
        "AWS_LAMBDA_FUNCTION_NAME": "orders",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "PLUNGEPOOL_URL": f"postgresql://tokens_app@localhost:{proxy.port}/postgres",
        "PLUNGEPOOL_AUTH": "iam",
        "PLUNGEPOOL_ENDPOINT": "proxy",
        "PLUNGEPOOL_CA_FILE": str(proxy.ca_file),
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == ["tokens_app", []]
    assert run.stderr == ""
