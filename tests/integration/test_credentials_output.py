"""Nothing that is secret is ever written: not in a log at its loudest, not in an error, not by any test of the run."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto import mock_aws
from sqlalchemy import text

from plungepool import Settings, build_engine
from plungepool.connect import source
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PASSWORD, WRONG_PASSWORD = "unmistakable-right", "unmistakable-wrong"
# A marker that is in every made-up secret of these tests; and a token's signature, whoever made it.
SECRET = re.compile(r"unmistakable|X-Amz-Signature=[0-9a-f]{64}|X-Amz-Security-Token=.")
CANARY = "this line proves that the output of the run is kept"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that checks passwords."""
    with Postgres(authentication="scram-sha-256") as running:
        running.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        yield running


@pytest.fixture
def attempts(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Settings]]:
    """Settings of every kind, each with a right and a wrong secret."""
    with (
        mock_aws(config={"core": {"mock_credentials": False}}),
        RdsProxy(server, endpoints=["localhost"], users={"app": PASSWORD}) as proxy,
    ):
        (credential,) = proxy.credentials
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", credential.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credential.secret_access_key)
        monkeypatch.setenv("AWS_SESSION_TOKEN", credential.session_token or "")
        client = boto3.client("secretsmanager", region_name="eu-west-1")

        def secret(name: str, password: str) -> str:
            content = json.dumps({"username": "app", "password": password})
            return str(client.create_secret(Name=name, SecretString=content)["ARN"])

        direct: dict[str, Any] = {"host": server.host, "port": server.port, "tls": "disable", "connect_timeout_s": 0.5}
        iam = {
            "host": "localhost",
            "port": proxy.port,
            "endpoint": "proxy",
            "auth": "iam",
            "ca_file": str(proxy.ca_file),
        }
        yield {
            "password": Settings(**direct, user="app", password=PASSWORD),
            "wrong password": Settings(**direct, user="app", password=WRONG_PASSWORD),
            "secret": Settings(**direct, auth="secret", secret_arn=secret("right", PASSWORD)),
            "wrong secret": Settings(**direct, auth="secret", secret_arn=secret("wrong", WRONG_PASSWORD)),
            "useless secret": Settings(**direct, auth="secret", secret_arn=secret("useless", "")),
            "token": Settings(**iam, user="app", region=proxy.region),
            "wrong token": Settings(**iam, user="app", region="us-east-1"),
            "wrong authority": Settings(**iam | {"ca_file": None}, user="app", region=proxy.region),
        }


def use(settings: Settings, show: Callable[[object], None]) -> bool:
    """Connect and run a good and a bad statement; show all there is to see; say whether the connect succeeded."""
    show(settings)
    show(source(settings))
    engine = build_engine(settings)
    engine.echo = True
    connected = False
    try:
        show(engine)
        show(engine.url)
        with engine.connect() as connection:
            connected = True
            show(connection.connection.dbapi_connection)
            connection.execute(text("SELECT length(CAST(:value AS text))"), {"value": WRONG_PASSWORD}).one()
            connection.execute(text("SELECT CAST(:value AS integer)"), {"value": WRONG_PASSWORD})
    except Exception as error:
        show(error)
        show("".join(traceback.format_exception(error)))
    finally:
        show(engine.pool.status())
        engine.dispose()
    return connected


def test_nothing_secret_is_written_at_the_loudest(
    attempts: dict[str, Settings], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """
    Every way to sign in, right and wrong, with all loggers of this package and SQLAlchemy at DEBUG: no secret shows.
    """
    caplog.set_level(logging.DEBUG, logger="plungepool")
    caplog.set_level(logging.DEBUG, logger="sqlalchemy")
    shown: dict[str, list[str]] = {}
    for name, settings in attempts.items():
        lines = shown.setdefault(name, [])
        connected = use(settings, lambda value, lines=lines: lines.extend([repr(value), str(value)]))  # type: ignore[misc]
        assert connected == (name in ("password", "secret", "token")), lines
    written = {
        **{name: "\n".join(lines) for name, lines in shown.items()},
        "log": caplog.text,
        "output": str(capfd.readouterr()),
    }
    assert "SELECT length" in written["log"], "the log was not at its loudest"
    assert {name: SECRET.findall(found) for name, found in written.items() if SECRET.search(found)} == {}


def test_output_of_the_run_is_kept() -> None:
    """What a test writes to its log and its output is what the last test reads."""
    logging.getLogger("plungepool").warning(CANARY)
    sys.stderr.write(CANARY)


@pytest.mark.at_the_end
def test_no_secret_is_in_any_output_of_the_run(output_of_the_run: dict[str, str]) -> None:
    """No log and no output of any test before this one holds a password, a key or a token."""
    kept = [
        found.count(CANARY) for name, found in output_of_the_run.items() if "test_output_of_the_run_is_kept" in name
    ]
    assert kept
    assert max(kept) == 2
    assert [name for name, found in output_of_the_run.items() if SECRET.search(found)] == []
