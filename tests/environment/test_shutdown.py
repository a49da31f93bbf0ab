"""The end of an environment: what the server hears of it, as its log tells."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until
from poolers import pgbouncer

from plungepool_toolkit import environment as toolkit
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plungepool_toolkit.environment import Environment
    from plungepool_toolkit.rds_proxy import RdsProxy

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="on Python 3.11 the runtime client's main thread hears no signal"
)

# Every statement in a transaction that stays open, as a handler has it that holds a connection.
HANDLER = """
from plungepool import get_engine
from sqlalchemy import text

engine = get_engine()

def handler(event, context):
    with engine.begin() as connection:
        return connection.execute(text(event)).scalar_one()
"""
# For a busy machine: what asking the server to stop may take.
PATIENT = "from plungepool import lifecycle\nlifecycle._GOODBYE_S = 50.0\n"
SILENT_END = "unexpected EOF on client connection"
OPEN_TRANSACTION = "with an open transaction"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that tells each end of a session, and also one that is not an error."""
    with Postgres({"log_min_messages": "debug1", "log_disconnections": "on", "log_line_prefix": "[%p] "}) as running:
        running.execute("CREATE ROLE app LOGIN")
        yield running


@pytest.fixture
def start(
    server: Postgres,
    tmp_path: Path,
    lambda_environment: Callable[..., Environment],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Environment]:
    """Start an environment of a function whose source is given; Lambda is patient, as a busy machine wants it."""
    monkeypatch.setattr(toolkit, "_SHUTDOWN_INTERNAL_S", 60.0)
    monkeypatch.setattr(toolkit, "_SHUTDOWN_RUNTIME_S", 60.0)

    def make(source: str = HANDLER, variables: dict[str, str] | None = None, **keywords: Any) -> Environment:
        (tmp_path / "app.py").write_text(dedent(source))
        own = {"PLUNGEPOOL_URL": server.url(), "PLUNGEPOOL_TLS": "disable"} | (variables or {})
        return lambda_environment(tmp_path, variables=own, **keywords)

    return make


def backend(environment: Environment) -> int:
    """Return the server's process for the environment's connection."""
    return int(environment.invoke("SELECT pg_backend_pid()").payload)


def end_of(server: Postgres, pid: int) -> str:
    """Return what the server has logged of a session, once that has ended."""

    def lines() -> list[str]:
        return [line for line in server.log.splitlines() if line.startswith(f"[{pid}]")]

    wait_until(lambda: any("disconnection:" in line for line in lines()), f"session {pid} has not ended")
    return "\n".join(lines())


def test_an_idle_connection_says_goodbye(server: Postgres, start: Callable[..., Environment]) -> None:
    """Out of the freeze, after several: SIGTERM comes, Terminate goes, and the process ends by the signal."""
    environment = start()
    pids = {backend(environment) for _ in range(3)}
    assert len(pids) == 1
    shutdown = environment.shutdown()
    assert shutdown is not None
    assert (shutdown.exit_code, shutdown.signalled) == (-signal.SIGTERM, True)
    assert SILENT_END not in end_of(server, pids.pop())
    assert environment.log == ()


@pytest.mark.parametrize("mode", ["off", "signal"])
def test_without_an_extension_nobody_says_goodbye(
    server: Postgres, start: Callable[..., Environment], mode: str
) -> None:
    """`off` and `signal` register nothing, so that Lambda kills the process: the server sees the stream end."""
    environment = start(variables={"PLUNGEPOOL_SHUTDOWN": mode})
    pid = backend(environment)
    shutdown = environment.shutdown()
    assert shutdown is not None
    assert (shutdown.exit_code, shutdown.signalled) == (-signal.SIGKILL, False)
    assert SILENT_END in end_of(server, pid)


def test_with_snapshots_a_restored_environment_says_goodbye(
    server: Postgres, start: Callable[..., Environment]
) -> None:
    """The extension is registered at init, before the snapshot, and the handler is in it."""
    snapshot = start(snap_start=True).snapshot()
    for environment in (snapshot.restore(), snapshot.restore()):
        pid = backend(environment)
        shutdown = environment.shutdown()
        assert shutdown is not None
        assert (shutdown.exit_code, shutdown.signalled) == (-signal.SIGTERM, True)
        assert SILENT_END not in end_of(server, pid)


HELD = """
from plungepool import get_engine
from sqlalchemy import text

connection = get_engine().connect()

def handler(event, context):
    return connection.execute(text(event)).scalar_one()
"""


def test_a_transaction_that_is_open_ends_at_once(server: Postgres, start: Callable[..., Environment]) -> None:
    """A connection that is held for ever has one: it ends with a goodbye, and its lock goes."""
    environment = start(HELD)
    server.execute("CREATE TABLE IF NOT EXISTS held (id int)")
    pid = backend(environment)
    environment.invoke("WITH one AS (INSERT INTO held VALUES (1) RETURNING id) SELECT id FROM one")
    environment.shutdown()
    log = end_of(server, pid)
    assert SILENT_END not in log
    assert OPEN_TRANSACTION not in log
    assert server.execute("SELECT count(*) FROM held") == [[0]]


@pytest.mark.parametrize("tls", [False, True], ids=["plain text", "tls"])
def test_a_statement_that_runs_at_a_time_out_is_stopped(
    server: Postgres, start: Callable[..., Environment], tls: bool
) -> None:
    """
    Without a guard, an invocation is cut off in the middle of a statement: Lambda's SIGTERM calls it off on the server.
    """
    with Postgres(tls=True) if tls else contextlib.nullcontext(server) as running:
        variables = {}
        if tls:
            running.execute("CREATE ROLE app LOGIN")
            variables = {"PLUNGEPOOL_URL": running.url("app"), "PLUNGEPOOL_PASSWORD": "not asked for"}
            variables |= {"PLUNGEPOOL_TLS": "verify-full", "PLUNGEPOOL_CA_FILE": str(running.ca_file)}
        mark = len(running.log)
        environment = start(PATIENT + HANDLER, variables, timeout_s=2.0)
        invocation = environment.invoke("SELECT 1 FROM pg_sleep(600)")
        assert invocation.error is not None
        assert invocation.error["errorType"] == "Sandbox.Timedout"
        wait_until(lambda: "canceling statement due to user request" in running.log[mark:])


def test_a_goodbye_is_heard_through_pgbouncer(server: Postgres, start: Callable[..., Environment]) -> None:
    """A pooler is told by the same message, and says so in its own log."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        log = Path(folder) / "log"
        with pgbouncer(server, users={"app": None}, logfile=log) as port:
            variables = {
                "PLUNGEPOOL_URL": f"postgresql://app@127.0.0.1:{port}/postgres",
                "PLUNGEPOOL_PASSWORD": "not asked for",
                "PLUNGEPOOL_ENDPOINT": "proxy",
            }
            environment = start(variables=variables)
            assert environment.invoke("SELECT 1").payload == 1
            environment.shutdown()
            wait_until(lambda: "closing because: client" in log.read_text())
            assert "client close request" in log.read_text()


def test_a_goodbye_is_heard_through_tls_and_rds_proxy(
    rds_proxy: Callable[..., RdsProxy], start: Callable[..., Environment]
) -> None:
    """The stand-in, with IAM and TLS, counts who leaves without a word."""
    proxy = rds_proxy()
    environment = start(variables={"PLUNGEPOOL_URL": "", "PLUNGEPOOL_TLS": ""} | proxy.variables("postgres"))
    assert environment.invoke("SELECT 1").payload == 1
    assert proxy.counters.clients == 1
    environment.shutdown()
    wait_until(lambda: proxy.counters.clients == 0)
    assert proxy.counters.clients_hung_up == 0


TWO_ENGINES = """
import signal
from plungepool import Settings, build_engine, get_engine
from sqlalchemy import text
import os

def before(number, frame):
    print("mine, after:", [engine.pool.checkedin() for engine in engines], flush=True)
    os._exit(7)

signal.signal(signal.SIGTERM, before)
engines = [get_engine(), build_engine(Settings.from_env(os.environ))]

def handler(event, context):
    pids = []
    for engine in engines:
        with engine.begin() as connection:
            pids.append(connection.execute(text(event)).scalar_one())
    return pids
"""


def test_the_handler_that_was_there_is_called_after_every_engine_has_gone(
    server: Postgres, start: Callable[..., Environment]
) -> None:
    """One handler for two engines, and one registration; what it does then is its own business."""
    environment = start(TWO_ENGINES)
    pids = environment.invoke("SELECT pg_backend_pid()").payload
    assert len(set(pids)) == 2
    shutdown = environment.shutdown()
    assert shutdown is not None
    assert (shutdown.exit_code, shutdown.signalled) == (7, True)
    assert len(environment.log) == 1
    assert environment.log[0].startswith("mine, after:")
    assert all(SILENT_END not in end_of(server, pid) for pid in pids)


def test_a_handler_that_is_set_later_stays(server: Postgres, start: Callable[..., Environment]) -> None:
    """Who sets a handler after the engine has the signal for himself; calling what was there says goodbye, too."""
    later = """
        import os, signal
        def mine(number, frame):
            before(number, frame) if os.environ["CALL"] else os._exit(7)
        before = signal.signal(signal.SIGTERM, mine)
    """
    for call, code in (("", 7), ("yes", -signal.SIGTERM)):
        environment = start(HANDLER + dedent(later), {"CALL": call})
        pid = backend(environment)
        shutdown = environment.shutdown()
        assert shutdown is not None
        assert shutdown.exit_code == code
        assert (SILENT_END in end_of(server, pid)) is (not call)


def test_a_signal_that_is_ignored_ends_connections_and_nothing_else(
    server: Postgres, start: Callable[..., Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ignored SIGTERM goes on, until Lambda kills the process."""
    monkeypatch.setattr(toolkit, "_SHUTDOWN_INTERNAL_S", 1.0)
    ignored = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    environment = start(ignored + HANDLER)
    pid = backend(environment)
    shutdown = environment.shutdown()
    assert shutdown is not None
    assert (shutdown.exit_code, shutdown.signalled) == (-signal.SIGKILL, True)
    assert SILENT_END not in end_of(server, pid)


WITHIN = """
from plungepool import get_engine
from sqlalchemy import text

def handler(event, context):
    with get_engine().begin() as connection:
        return connection.execute(text(event)).scalar_one()
"""
ANOTHER = """
import http.client, os, threading

def call(method, path, headers, body=None):
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    connection.request(method, "/2020-01-01/extension/" + path, body, headers)
    response = connection.getresponse()
    return response.headers, response.read()

headers, _ = call("POST", "register", {"Lambda-Extension-Name": NAME}, '{"events": []}')
headers = {"Lambda-Extension-Identifier": headers["Lambda-Extension-Identifier"]}
threading.Thread(target=call, args=("GET", "event/next", headers), daemon=True).start()
"""


def test_an_engine_that_is_built_within_an_invocation_comes_too_late(
    server: Postgres, start: Callable[..., Environment]
) -> None:
    """Lambda registers nobody after init: nothing is told, and the process is killed as without this."""
    environment = start(WITHIN)
    pid = backend(environment)
    shutdown = environment.shutdown()
    assert shutdown is not None
    assert (shutdown.exit_code, shutdown.signalled) == (-signal.SIGKILL, False)
    assert SILENT_END in end_of(server, pid)
    assert environment.log == ()


@pytest.mark.parametrize("source", [WITHIN, HANDLER], ids=["within an invocation", "at init"])
@pytest.mark.parametrize("name", ["another", "plungepool-shutdown"])
def test_the_signal_of_another_extension_will_do(
    server: Postgres, start: Callable[..., Environment], source: str, name: str
) -> None:
    """A registration that is refused, since it is late or its name is taken, is no loss where somebody else has one."""
    environment = start(f"NAME = {name!r}\n" + ANOTHER + source, {"PLUNGEPOOL_SHUTDOWN": "extension"})
    pid = backend(environment)
    shutdown = environment.shutdown()
    assert shutdown is not None
    assert (shutdown.exit_code, shutdown.signalled) == (-signal.SIGTERM, True)
    assert SILENT_END not in end_of(server, pid)
    assert environment.log == ()


def test_the_runtime_of_an_older_python_is_left_alone(server: Postgres, start: Callable[..., Environment]) -> None:
    """Its main thread would hear no signal, and Lambda would wait for it in vain: no extension, no handler."""
    environment = start(variables={"AWS_EXECUTION_ENV": "AWS_Lambda_python3.11"})
    pid = backend(environment)
    shutdown = environment.shutdown()
    assert shutdown is not None
    assert (shutdown.exit_code, shutdown.signalled) == (-signal.SIGKILL, False)
    assert SILENT_END in end_of(server, pid)


def test_an_engine_of_another_thread_sets_no_handler(server: Postgres, start: Callable[..., Environment]) -> None:
    """Python lets the main thread set one only: nothing is registered, and nothing is told."""
    source = HANDLER.replace(
        "engine = get_engine()",
        "import threading\nthread = threading.Thread(target=get_engine)\nthread.start()\nthread.join()\n"
        "engine = get_engine()",
    )
    environment = start(source)
    pid = backend(environment)
    shutdown = environment.shutdown()
    assert shutdown is not None
    assert not shutdown.signalled
    assert SILENT_END in end_of(server, pid)
    assert environment.log == ()


GUARDED = """
import time

from plungepool import get_engine, guard_invocation, observe
from sqlalchemy import text

engine = get_engine()
observe.listen(lambda tally: print("told", tally.failure, tally.round_trips, flush=True))

@guard_invocation
def handler(event, context):
    with engine.begin() as connection:
        connection.execute(text("SELECT CAST(:value AS text)"), {"value": "unmistakable-4711"})
    time.sleep(600)
"""


def test_an_invocation_that_is_cut_off_leaves_its_numbers_and_its_line(start: Callable[..., Environment]) -> None:
    """At Lambda's time-out the guard does not come to its end: SIGTERM has it told, and the recorder writes why."""
    environment = start(GUARDED, {"PLUNGEPOOL_RECORDER": "on", "PLUNGEPOOL_DEADLINE": "off"}, timeout_s=3.0)
    invocation = environment.invoke({})
    assert invocation.error is not None
    assert invocation.error["errorType"] == "Sandbox.Timedout"
    wait_until(lambda: '"why":"killed"' in "".join(environment.log), "no line was written")
    written = "\n".join(environment.log)
    assert "told SIGTERM 2" in written
    assert '"failure":"SIGTERM"' in written
    assert "unmistakable-4711" not in written
