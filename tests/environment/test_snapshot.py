"""SnapStart: what an engine holds must not be in the snapshot, which many environments are restored from."""

from __future__ import annotations

import json
import secrets
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from elsewhere import wait_until
from moto import mock_aws

from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import Credential

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from plungepool_toolkit.environment import Environment
    from plungepool_toolkit.fixtures import Database
    from plungepool_toolkit.rds_proxy import RdsProxy

# A function that uses its database while it is initialised, as those do that warm something up.
WARM = """
from plungepool import get_engine
from sqlalchemy import text

engine = get_engine()
with engine.connect() as connection:
    at_init = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

def handler(event, context):
    with engine.connect() as connection:
        now = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    return {"at_init": at_init, "now": now}
"""
PIDS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'cloned:%'"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'warm:%'"


def warm(tmp_path: Path) -> Path:
    """Return the folder of the function."""
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "app.py").write_text(WARM)
    return tmp_path / "warm"


def folder_of(tmp_path: Path, source: str) -> Path:
    """Return the folder of the function `cloned` with this source."""
    (tmp_path / "cloned").mkdir()
    (tmp_path / "cloned" / "app.py").write_text(source)
    return tmp_path / "cloned"


def test_no_connection_is_in_a_snapshot(
    database: Database, lambda_environment: Callable[..., Environment], tmp_path: Path
) -> None:
    """What was opened at init is closed before the snapshot; the restored environment opens its own, and keeps it."""
    environment = lambda_environment(warm(tmp_path), variables=database.variables(), snap_start=True)
    assert database.execute(SESSIONS) == [[0]]
    environment.restore()
    assert database.execute(SESSIONS) == [[0]]
    first, second = environment.invoke({}), environment.invoke({})
    assert first.error is None
    assert first.payload["now"] != first.payload["at_init"]
    assert second.payload["now"] == first.payload["now"]
    assert database.execute(SESSIONS) == [[1]]


def test_without_snapshots_the_connection_of_init_is_kept(
    database: Database, lambda_environment: Callable[..., Environment], tmp_path: Path
) -> None:
    """On demand there is no snapshot, so the first invocation goes on with what init opened."""
    environment = lambda_environment(warm(tmp_path), variables=database.variables())
    assert database.execute(SESSIONS) == [[1]]
    invocation = environment.invoke({})
    assert invocation.payload["now"] == invocation.payload["at_init"]


# What a function remembers at init that its clones must not share. As on AWS a clone has its original's process id, so
# that nothing is put right by the guards against forks.
CLONED = """
import os, random, socket
here, runtime = os.getpid(), os.environ["AWS_LAMBDA_RUNTIME_API"]
os.getpid = lambda: here
from snapshot_restore_py import register_after_restore

inherited = []

@register_after_restore
def look():
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as one:
                peer = "%s:%d" % one.getpeername()
        except OSError:  # no socket
            continue
        if peer != runtime:  # which Lambda itself connects again
            inherited.append(peer)

from plungepool import connect, get_engine
from sqlalchemy import text

engine = get_engine()
PID = text("SELECT pg_backend_pid()")
with engine.connect() as connection:
    at_init = connection.execute(PID).scalar_one()

def handler(event, context):
    before = engine.pool.checkedin()
    with engine.connect() as connection:
        now = connection.execute(PID).scalar_one()
        local = connection.connection.dbapi_connection._transport.sock.getsockname()
    return {
        "at_init": at_init, "now": now, "local": local[1], "kept": before,
        "inherited": inherited,
        "jitter": [connect.jitter() for _ in range(3)], "random": random.random(),
        "name": engine.dialect.create_xid(),
    }
"""


def at_once(clones: list[Environment]) -> list[Any]:
    """Invoke each clone in a thread of its own; return what they answered."""
    with ThreadPoolExecutor(len(clones)) as executor:
        answers = list(executor.map(lambda clone: clone.invoke({}), clones))
    assert [answer.error for answer in answers] == [None] * len(clones)
    return [answer.payload for answer in answers]


@pytest.mark.parametrize("ahead", ["false", "true"])
def test_clones_of_one_snapshot_share_nothing(
    database: Database, lambda_environment: Callable[..., Environment], tmp_path: Path, ahead: str
) -> None:
    """
    Four clones at once: sessions, sockets, pauses and names of each one's own, and the first invocation is right; with
    PLUNGEPOOL_CONNECT_ON_RESTORE its connection was there before it, and without it none was.
    """
    variables = database.variables() | {"PLUNGEPOOL_CONNECT_ON_RESTORE": ahead}
    template = lambda_environment(folder_of(tmp_path, CLONED), variables=variables, snap_start=True)
    snapshot = template.snapshot()
    clones = [snapshot.restore() for _ in range(4)]
    opened = [pid for (pid,) in database.execute(PIDS)]
    assert len(opened) == (4 if ahead == "true" else 0)
    first, second = at_once(clones), at_once(clones)
    assert [one["inherited"] for one in first] == [[]] * 4
    for unique in ("now", "local", "random", "name"):
        assert len({one[unique] for one in first}) == 4, unique
    assert len({tuple(one["jitter"]) for one in first}) == 4
    assert first[0]["at_init"] not in {one["now"] for one in first}
    assert [one["now"] for one in second] == [one["now"] for one in first]
    assert [one["kept"] for one in first] == [1 if ahead == "true" else 0] * 4
    assert sorted(pid for (pid,) in database.execute(PIDS)) == sorted(one["now"] for one in first)
    if ahead == "true":
        assert sorted(opened) == sorted(one["now"] for one in first)
    assert "WARNING" not in "".join(line for clone in (template, *clones) for line in clone.log)


HELD = """
from plungepool import get_engine
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError

engine = get_engine()
PID = text("SELECT pg_backend_pid()")
connection = engine.connect()
at_init = connection.execute(PID).scalar_one()

def handler(event, context):
    try:
        return connection.execute(PID).scalar_one()
    except InterfaceError:
        connection.rollback()
        raise
"""


def test_a_connection_that_init_keeps_is_an_error_once_and_never_shared(
    database: Database, lambda_environment: Callable[..., Environment], tmp_path: Path
) -> None:
    """
    A global connection: the line is logged before the version can be used; each clone's first use of it is an error
    that says what to do, and its next one has a session of that clone's own.
    """
    template = lambda_environment(folder_of(tmp_path, HELD), variables=database.variables(), snap_start=True)
    wait_until(lambda: database.execute(PIDS) == [])
    (warning,) = (line for line in template.log if "WARNING" in line)
    assert f"taken at {tmp_path / 'cloned' / 'app.py'}:8 in <module>" in warning
    snapshot = template.snapshot()
    clones = [snapshot.restore() for _ in range(2)]
    for clone in clones:
        error = clone.invoke({}).error
        assert error is not None
        assert error["errorType"] == "InterfaceError"
        assert "check connections out in the handler" in error["errorMessage"]
    own = at_once(clones)
    assert len(set(own)) == 2
    assert sorted(pid for (pid,) in database.execute(PIDS)) == sorted(own)
    # The extension that asks for SIGTERM was registered at init; its handler is in the snapshot, and in every clone.
    ended = clones[0].shutdown()
    assert ended is not None
    assert (ended.exit_code, ended.signalled) == (-signal.SIGTERM, True)
    wait_until(lambda: [pid for (pid,) in database.execute(PIDS)] == own[1:])


def test_a_connect_ahead_that_is_refused_is_one_line_and_no_more(
    database: Database, lambda_environment: Callable[..., Environment], tmp_path: Path
) -> None:
    """The restore goes on, and the first invocation connects by itself when the server lets it in."""
    role = f"of_{database.name}"
    database.execute(f"CREATE ROLE {role} NOLOGIN")
    try:
        variables = database.variables(role) | {"PLUNGEPOOL_CONNECT_ON_RESTORE": "true"}
        source = CLONED.replace("with engine.connect() as connection:\n    at_init =", "if True:\n    at_init = None #")
        template = lambda_environment(folder_of(tmp_path, source), variables=variables, snap_start=True)
        clone = template.snapshot().restore()
        (line,) = clone.log
        assert "[WARNING]" in line
        assert "so the first invocation opens one: " in line
        assert "is not permitted to log in" in line
        database.execute(f"ALTER ROLE {role} LOGIN")
        assert clone.invoke({}).error is None
        template.close()
    finally:
        database.execute(f"DROP ROLE {role}")


class Served:
    """What AWS gives a function over HTTP, and who asked for it: a secret's versions by moto, or a role's keys."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.asked: list[int] = []
        asked, lock = self.asked, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            # Connections are kept, as boto3 keeps them.
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    asked.append(self.client_address[1])
                    body = json.dumps(answer(json.loads(text or "null"))).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.respond()

            def do_POST(self) -> None:
                self.respond()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_each_clone_reads_the_secret_anew(lambda_environment: Callable[..., Environment], tmp_path: Path) -> None:
    """
    Init has read it; between snapshot and restore it is rotated. No clone shows the server the old password, and none
    has the connection to Secrets Manager that init left.
    """
    role = f"rotated_{secrets.token_hex(4)}"
    with mock_aws():
        client = boto3.client(
            "secretsmanager", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
        )

        def content(password: str) -> str:
            return json.dumps({"username": role, "password": password})

        arn = client.create_secret(Name=role, SecretString=content("first"))["ARN"]

        def answer(request: Any) -> Any:
            found = client.get_secret_value(**request)
            return {"ARN": arn, "Name": role, "SecretString": found["SecretString"]}

        manager = Served(answer)
        with Postgres({"max_connections": 20}, authentication="scram-sha-256") as server:
            server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
            variables = {
                "PLUNGEPOOL_HOST": server.host,
                "PLUNGEPOOL_PORT": str(server.port),
                "PLUNGEPOOL_TLS": "disable",
                "PLUNGEPOOL_AUTH": "secret",
                "PLUNGEPOOL_SECRET_ARN": arn,
                "AWS_ENDPOINT_URL_SECRETS_MANAGER": manager.url,
                "AWS_ACCESS_KEY_ID": "made up",
                "AWS_SECRET_ACCESS_KEY": "made up",
            }
            template = lambda_environment(folder_of(tmp_path, CLONED), variables=variables, snap_start=True)
            (at_init,) = manager.asked
            snapshot = template.snapshot()
            client.put_secret_value(SecretId=arn, SecretString=content("second"))
            server.execute(f"ALTER ROLE {role} PASSWORD 'second'")
            clones = [snapshot.restore() for _ in range(3)]
            answers = at_once(clones)
            assert [one["inherited"] for one in answers] == [[]] * 3
            assert len({one["now"] for one in answers}) == 3
            assert len(set(manager.asked)) == len(manager.asked) == 4
            assert at_init not in manager.asked[1:]
            refused = [line for line in server.log.splitlines() if "authentication failed" in line]
            assert refused == []
            template.close()
        manager.close()


def test_each_clone_signs_a_token_with_keys_of_its_own_time(
    rds_proxy: Callable[..., RdsProxy], lambda_environment: Callable[..., Environment], tmp_path: Path
) -> None:
    """The role's keys of init are no longer good: each clone asks the endpoint for its own, and none is refused."""
    current = [Credential.temporary()]

    def answer(_: Any) -> dict[str, str | None]:
        expires = datetime.now(UTC) + timedelta(hours=6)
        return {
            "AccessKeyId": current[-1].access_key_id,
            "SecretAccessKey": current[-1].secret_access_key,
            "Token": current[-1].session_token,
            "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    endpoint = Served(answer)
    proxy = rds_proxy(auth="iam", credentials=current)
    variables = {name: value for name, value in proxy.variables("postgres").items() if "AWS_S" not in name}
    del variables["AWS_ACCESS_KEY_ID"]
    variables["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{endpoint.url}/credentials"
    template = lambda_environment(folder_of(tmp_path, CLONED), variables=variables, snap_start=True)
    assert len(endpoint.asked) == 1
    snapshot = template.snapshot()
    current.append(Credential.temporary())
    proxy.credentials = [current[-1]]
    clones = [snapshot.restore() for _ in range(3)]
    assert [one["inherited"] for one in at_once(clones)] == [[]] * 3
    assert len(endpoint.asked) == 4
    assert sum(proxy.counters.refused.values()) == 0
    template.close()
    endpoint.close()
