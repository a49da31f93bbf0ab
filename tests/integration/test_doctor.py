"""The doctor on real servers, well and ill; the sample function gives the same answers."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto import mock_aws
from typer.testing import CliRunner

from plungepool_toolkit.checks import Check, check_environment
from plungepool_toolkit.command import application
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PASSWORD = "unmistakable-password"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server with TLS and passwords, and a role with all the limits that it should have."""
    with Postgres({"max_connections": 20}, tls=True, authentication="scram-sha-256") as running:
        running.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 5")
        for name in (
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "idle_session_timeout",
        ):
            running.execute(f"ALTER ROLE app SET {name} = '10s'")
        running.execute(f"CREATE ROLE bare LOGIN PASSWORD '{PASSWORD}'")
        running.execute(f"CREATE ROLE boss LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        running.execute(f"CREATE ROLE full_role LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 0")
        yield running


@pytest.fixture
def environ(server: Postgres) -> dict[str, str]:
    """The variables of a function that may connect."""
    return {
        "PLUNGEPOOL_HOST": server.host,
        "PLUNGEPOOL_PORT": str(server.port),
        "PLUNGEPOOL_USER": "app",
        "PLUNGEPOOL_PASSWORD": PASSWORD,
        "PLUNGEPOOL_CA_FILE": str(server.ca_file),
        "PLUNGEPOOL_CONNECT_TIMEOUT_S": "1",
    }


def examine(environ: dict[str, str]) -> list[Check]:
    """Return all checks, having made sure that none holds the password."""
    checks = list(check_environment(environ))
    assert PASSWORD not in repr(checks)
    return checks


def states(checks: list[Check]) -> dict[str, str]:
    """Return the state of each check by its name."""
    return {check.name: check.state for check in checks}


STEPS = ["settings", "name", "endpoint", "TCP", "TLS", "credentials", "authentication", "server", "role", "time-outs", "head-room"]  # fmt: skip


def test_healthy_database_passes_every_step(environ: dict[str, str]) -> None:
    """A role with limits on a server with TLS: every step is ok, in order."""
    checks = examine(environ)
    assert states(checks) == dict.fromkeys(STEPS, "ok")
    found = {check.name: check.found for check in checks}
    assert "days left" in found["TLS"]
    assert found["role"] == "1 of the role's 5 connections are in use"
    assert found["credentials"] == "user 'app' with the password of PLUNGEPOOL_PASSWORD"


@pytest.mark.parametrize(
    ("changes", "last_step", "found", "cure"),
    [
        ({"PLUNGEPOOL_TLS": "maybe"}, "settings", "PLUNGEPOOL_TLS must be one of", "correct the variable"),
        ({"PLUNGEPOOL_HOST": "nobody.invalid"}, "name", "nobody.invalid cannot be resolved", "VPC"),
        ({"PLUNGEPOOL_PORT": "1"}, "TCP", "cannot be reached: Connection refused", "PLUNGEPOOL_PORT"),
        ({"PLUNGEPOOL_CA_FILE": ""}, "TLS", "not trusted here", "nothing secret is sent"),
        ({"PLUNGEPOOL_CA_FILE": "/nowhere.pem"}, "TLS", "PLUNGEPOOL_CA_FILE names '/nowhere.pem'", "leave it unset"),
        ({"PLUNGEPOOL_PASSWORD": "wrong"}, "authentication", "password authentication failed", "correct the password"),
        ({"PLUNGEPOOL_USER": "nobody"}, "authentication", "nobody", "nobody"),
        (
            {"PLUNGEPOOL_DATABASE": "nowhere"},
            "authentication",
            '"nowhere" does not exist',
            "create the database 'nowhere'",
        ),
        ({"PLUNGEPOOL_USER": "full_role"}, "authentication", "too many connections", "docs/troubleshoot.md"),
    ],
)
def test_failure_ends_with_cause_and_cure(
    environ: dict[str, str], changes: dict[str, str], last_step: str, found: str, cure: str
) -> None:
    """Whatever is wrong is the last step said, with what was found and what to do; the steps before it are well."""
    *before, last = examine(environ | changes)
    assert {check.state for check in before} <= {"ok"}
    assert (last.name, last.state) == (last_step, "failed")
    assert found in last.found
    assert cure in last.cure


def test_every_wrong_setting_is_named() -> None:
    """All problems of the settings are said at once, each as a failure of its own."""
    checks = examine({"PLUNGEPOOL_PORT": "x", "PLUNGEPOOL_POOL_SIZE": "0", "PLUNGEPOOL_HOSTT": "h"})
    assert len(checks) >= 3
    assert {(check.name, check.state) for check in checks} == {("settings", "failed")}


@pytest.mark.parametrize(
    ("user", "warnings", "cure"),
    [
        ("bare", {"role", "time-outs"}, "ALTER ROLE bare SET lock_timeout = '3s'"),
        ("boss", {"role", "time-outs"}, "a role of its own"),
    ],
)
def test_missing_limits_are_warnings(environ: dict[str, str], user: str, warnings: set[str], cure: str) -> None:
    """A role without limits works, and is warned about with the statements that set them."""
    checks = examine(environ | {"PLUNGEPOOL_USER": user})
    assert {check.name for check in checks if check.state == "warning"} == warnings
    assert "failed" not in states(checks).values()
    assert cure in " ".join(check.cure for check in checks)


def test_little_head_room_is_a_warning(server: Postgres, environ: dict[str, str]) -> None:
    """When nearly every connection is taken the doctor says how many are left."""
    import pg8000.native

    assert server.ca_file is not None
    held = [
        pg8000.native.Connection(
            "postgres", host=server.host, port=server.port, ssl_context=server._ssl_context, timeout=10
        )
        for _ in range(15)
    ]
    try:
        (room,) = [check for check in examine(environ) if check.name == "head-room"]
    finally:
        for connection in held:
            connection.close()
    assert room.state == "warning"
    assert "of 20 connections are in use, 3 are reserved" in room.found


@pytest.fixture
def listen() -> Iterator[Callable[[bytes | None], int]]:
    """Listeners that answer the request for TLS with these bytes; None keeps silent."""
    over, sockets, threads = threading.Event(), [], []

    def start(answer: bytes | None) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(0.05)
        sockets.append(listener)

        def serve() -> None:
            clients = []
            while not over.is_set():
                with suppress(OSError):
                    client, _ = listener.accept()
                    clients.append(client)
                    if answer is not None:
                        client.sendall(answer)
            for client in clients:
                client.close()

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    over.set()
    for thread, listener in zip(threads, sockets, strict=True):
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    ("answer", "found"), [(b"N", "does not offer TLS"), (b"HTTP", "does not offer TLS"), (None, "ended the handshake")]
)
def test_server_without_tls_fails_that_step(
    environ: dict[str, str], listen: Callable[[bytes | None], int], answer: bytes | None, found: str
) -> None:
    """Plain text, another protocol, silence: the step TLS fails and no password is sent."""
    *_, last = examine(environ | {"PLUNGEPOOL_PORT": str(listen(answer)), "PLUNGEPOOL_CONNECT_TIMEOUT_S": "0.3"})
    assert (last.name, last.state) == ("TLS", "failed")
    assert found in last.found


def test_plain_text_is_ok_to_this_machine_only(postgres: Postgres) -> None:
    """Disabled TLS on loopback is no warning: nothing leaves the machine."""
    checks = examine(
        {
            "PLUNGEPOOL_HOST": postgres.host,
            "PLUNGEPOOL_PORT": str(postgres.port),
            "PLUNGEPOOL_USER": "postgres",
            "PLUNGEPOOL_PASSWORD": PASSWORD,
            "PLUNGEPOOL_TLS": "disable",
        }
    )
    assert states(checks)["TLS"] == "ok"


def test_secret_says_who_and_where(server: Postgres, environ: dict[str, str]) -> None:
    """With everything in a secret the doctor reads it first, and says the user, the host and the database."""
    content = {"username": "app", "password": PASSWORD, "host": server.host, "port": server.port, "dbname": "postgres"}
    with mock_aws():
        client = boto3.client("secretsmanager", region_name="eu-west-1")
        arn = client.create_secret(Name="s", SecretString=json.dumps(content))["ARN"]
        changes = {"PLUNGEPOOL_AUTH": "secret", "PLUNGEPOOL_SECRET_ARN": arn, "PLUNGEPOOL_CA_FILE": str(server.ca_file)}
        checks = examine(changes)
        missing = examine(changes | {"PLUNGEPOOL_SECRET_ARN": "nobodys", "PLUNGEPOOL_REGION": "eu-west-1"})
    assert [check.name for check in checks][:3] == ["settings", "credentials", "name"]
    assert set(states(checks).values()) == {"ok"}
    assert f"user 'app' of database 'postgres' at {server.host}:{server.port}" in checks[1].found
    assert (missing[-1].name, missing[-1].state) == ("credentials", "failed")


@pytest.fixture
def proxy(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RdsProxy, dict[str, str]]]:
    """A proxy that asks for IAM, in front of a real server, and the environment of a function that may sign in."""
    postgres.execute("DROP ROLE IF EXISTS doctors_app")
    postgres.execute("CREATE ROLE doctors_app LOGIN CONNECTION LIMIT 5")
    for name in ("AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    with RdsProxy(postgres, endpoints=["localhost"]) as running:
        (credential,) = running.credentials
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", credential.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credential.secret_access_key)
        monkeypatch.setenv("AWS_SESSION_TOKEN", credential.session_token or "")
        yield (
            running,
            {
                "PLUNGEPOOL_HOST": "localhost",
                "PLUNGEPOOL_PORT": str(running.port),
                "PLUNGEPOOL_USER": "doctors_app",
                "PLUNGEPOOL_AUTH": "iam",
                "PLUNGEPOOL_ENDPOINT": "proxy",
                "PLUNGEPOOL_REGION": running.region,
                "PLUNGEPOOL_CA_FILE": str(running.ca_file),
            },
        )
    postgres.execute("DROP ROLE doctors_app")


def test_iam_through_a_proxy_says_who_signs(proxy: tuple[RdsProxy, dict[str, str]]) -> None:
    """The token's user and access key and the role's ARN are said; neither key, session token nor token is."""
    running, environ = proxy
    (credential,) = running.credentials
    with mock_aws(config={"core": {"mock_credentials": False}}):
        checks = examine(environ)
    found = {check.name: check.found for check in checks}
    assert "failed" not in states(checks).values()
    assert credential.access_key_id in found["credentials"]
    assert "arn:aws:sts:" in found["identity"]
    assert "rds-db:connect" in found["identity"]
    assert "PLUNGEPOOL_PINNING" in found["pinning"]
    said = repr(checks)
    assert credential.secret_access_key not in said
    assert str(credential.session_token) not in said
    assert "X-Amz-Signature" not in said
    assert running.counters.pinned.total() == 0


def test_refused_token_names_the_causes(
    proxy: tuple[RdsProxy, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature that the proxy does not take ends with the usual causes, in order."""
    _, environ = proxy
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another/unmistakable-password")
    with mock_aws(config={"core": {"mock_credentials": False}}):
        *_, last = examine(environ)
    assert (last.name, last.state) == ("authentication", "failed")
    assert "Usual causes" in last.found
    assert "rds-db:connect" in last.found


@pytest.mark.parametrize(
    ("host", "endpoint", "region", "warnings"),
    [
        ("p.proxy-abc123.eu-west-1.rds.amazonaws.com", "direct", "eu-west-1", ["endpoint"]),
        ("p.proxy-abc123.eu-west-1.rds.amazonaws.com", "proxy", "eu-west-1", []),
        ("d.abc123.eu-west-1.rds.amazonaws.com", "proxy", "eu-west-1", ["endpoint"]),
        ("d.abc123.eu-west-1.rds.amazonaws.com", "direct", "us-east-1", ["region"]),
        ("d.abc123.rds.cn-north-1.amazonaws.com.cn", "direct", "cn-northwest-1", ["region"]),
        ("abc123.dsql.us-east-1.on.aws", "direct", "us-west-2", ["region"]),
        ("db.example.com", "direct", "eu-west-1", ["region"]),
    ],
)
def test_names_give_wrong_settings_away(
    monkeypatch: pytest.MonkeyPatch, host: str, endpoint: str, region: str, warnings: list[str]
) -> None:
    """A proxy taken for a database, another region and a name of one's own are seen from the host's name."""
    # Names of AWS's do not resolve here, and must not be asked for: this machine's own address stands in.
    monkeypatch.setattr("plungepool_toolkit.checks._resolve", lambda *_: ["192.0.2.1"])
    checks = examine(
        {
            "PLUNGEPOOL_HOST": host,
            "PLUNGEPOOL_USER": "u",
            "PLUNGEPOOL_AUTH": "iam",
            "PLUNGEPOOL_REGION": region,
            "PLUNGEPOOL_ENDPOINT": endpoint,
            "PLUNGEPOOL_CONNECT_TIMEOUT_S": "0.1",
        }
    )
    assert [check.name for check in checks if check.state == "warning"] == warnings


def run_command(environ: dict[str, str], *arguments: str) -> Any:
    """Run `plungepool doctor` with these variables."""
    return CliRunner().invoke(application, ["doctor", *arguments], env=environ)


def test_command_prints_each_step_and_exits_by_them(environ: dict[str, str]) -> None:
    """Exit code 0 when nothing failed; 1, the cause and the cure when something did."""
    good = run_command(environ)
    assert good.exit_code == 0, good.output
    assert [line.split()[1] for line in good.output.splitlines()] == STEPS
    bad = run_command(environ | {"PLUNGEPOOL_PASSWORD": "wrong"})
    assert bad.exit_code == 1
    assert "✗ authentication" in bad.output
    assert "→ correct the password of 'app'" in bad.output
    assert PASSWORD not in good.output + bad.output


def test_command_gives_json(environ: dict[str, str]) -> None:
    """The same as one document, for scripts."""
    result = run_command(environ, "--json")
    document = json.loads(result.output)
    assert document["ok"] is True
    assert [check["name"] for check in document["checks"]] == STEPS


def test_sample_function_gives_the_same_answers(
    environ: dict[str, str], lambda_environment: Callable[..., Any]
) -> None:
    """check_database, run as Lambda runs it, returns the same steps for the same variables."""
    variables = environ | {
        "POWERTOOLS_SERVICE_NAME": "test",
        "POWERTOOLS_TRACE_DISABLED": "true",
        "POWERTOOLS_METRICS_NAMESPACE": "test",
    }
    function = Path(__file__).parents[2] / "functions" / "check_database"
    event = json.loads((function.parents[1] / "events" / "check_database.json").read_text())
    environment = lambda_environment(task=function, handler="app.handler", variables=variables, timeout_s=30)
    result = environment.invoke(event)
    assert result.error is None
    assert result.payload["ok"] is True
    assert [check["name"] for check in result.payload["checks"]] == STEPS
    assert PASSWORD not in json.dumps(result.payload)
