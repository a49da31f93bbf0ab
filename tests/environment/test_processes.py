"""Several processes: what a child of fork() does, and how it ends, leaves its parent's connections alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import in_a_child, wait_until
from sqlalchemy import text

from plungepool import Settings, build_engine, guard_invocation, lifecycle, wire
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from plungepool_toolkit.environment import Environment

PID = text("SELECT pg_backend_pid()")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server with TLS, whose clients can end each other's streams by what they say."""
    with Postgres(
        {"log_min_messages": "debug1", "log_disconnections": "on", "log_line_prefix": "[%p] "}, tls=True
    ) as one:
        one.execute("CREATE ROLE app LOGIN")
        yield one


@pytest.fixture(params=["verify-full", "disable"])
def engine(server: Postgres, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine with and without TLS, whose pool has one connection."""
    trust = {"ca_file": str(server.ca_file)} if request.param == "verify-full" else {}
    settings = Settings(
        host="localhost", port=server.port, user="app", password="not asked for", tls=request.param, **trust
    )
    engine = build_engine(settings)
    yield engine
    engine.dispose()


# What a child may do with what it has of its parent's, and how it may end.
def _connect(engine: Engine, held: Any) -> None:
    with engine.begin() as connection:
        connection.execute(PID)


def _dispose(engine: Engine, held: Any) -> None:
    engine.dispose()


def _use(engine: Engine, held: Any) -> None:
    with pytest.raises(Exception, match="opened by the parent"):
        held.execute(PID)


def _close(engine: Engine, held: Any) -> None:
    held.close()


def _close_raw(engine: Engine, held: Any) -> None:
    held.connection.dbapi_connection.close()


def _abandon(engine: Engine, held: Any) -> None:
    held.connection.dbapi_connection.abandon(stop=True)


def _say_goodbye(engine: Engine, held: Any) -> None:
    lifecycle.say_goodbye()


def _exit(engine: Engine, held: Any) -> None:
    # As a program ends: every hook of the interpreter's exit, and then every object.
    import atexit

    atexit._run_exitfuncs()
    del held


def _die(engine: Engine, held: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


DEEDS = [_connect, _dispose, _use, _close, _close_raw, _abandon, _say_goodbye, _exit, _die]


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__.strip("_"))
def test_a_child_in_the_middle_of_a_transaction(engine: Engine, deed: Callable[..., None]) -> None:
    """Whatever it does: the parent's transaction goes on in the same session, and can be committed."""
    with engine.begin() as held:
        before = held.execute(PID).scalar_one()
        in_a_child(lambda: deed(engine, held))
        assert held.execute(PID).scalar_one() == before
    with engine.connect() as connection:
        assert connection.execute(PID).scalar_one() == before


@pytest.mark.parametrize(
    "deed", [_connect, _abandon, _say_goodbye, _exit, _die], ids=lambda deed: deed.__name__.strip("_")
)
def test_a_child_while_another_thread_is_in_the_middle_of_a_flight(
    server: Postgres, engine: Engine, deed: Callable[..., None]
) -> None:
    """The thread is not in the child, its connection is: what becomes of it there, the parent's answer comes."""
    held = engine.connect()
    pid = held.execute(PID).scalar_one()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: held.execute(text("SELECT 42 FROM pg_sleep(0.5)")).scalar_one())
        wait_until(
            lambda: server.execute(
                f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND query LIKE '%sleep%' AND state = 'active'"
            )
        )
        in_a_child(lambda: deed(engine, held))
        assert answer.result() == 42
    held.close()


def test_an_exception_that_leaves_the_parents_flight_in_a_child(server: Postgres, engine: Engine) -> None:
    """A stream of COPY that forks, and whose child raises: the parent's COPY is neither stopped nor cut off."""
    raw = engine.raw_connection()
    driver = raw.driver_connection
    assert isinstance(driver, wire.Connection)
    cursor = driver.cursor()
    cursor.execute("CREATE TEMP TABLE copied (id int)")
    children = []

    def rows() -> Iterator[str]:
        yield "1\n"
        child = os.fork()
        if child == 0:
            raise SystemExit(0)
        children.append(child)
        os.waitpid(child, 0)
        time.sleep(0.2)  # a CancelRequest would be there by now
        yield "2\n"

    parent = os.getpid()
    try:
        cursor.execute("COPY copied FROM STDIN", stream=rows())
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert len(children) == 1
    cursor.execute("SELECT count(*) FROM copied")
    assert cursor.fetchone() == (2,)
    raw.close()


def test_the_end_of_a_guard_in_a_child(engine: Engine) -> None:
    """A child that leaves the invocation's block takes back what was handed out there: not its parent's connection."""
    parent = os.getpid()
    try:
        with guard_invocation(None):
            held = engine.connect()
            before = held.execute(PID).scalar_one()
            child = os.fork()
            if child:
                os.waitpid(child, 0)
                assert held.execute(PID).scalar_one() == before
                held.close()
    finally:
        if os.getpid() != parent:
            os._exit(0)


CHILDREN = """
import multiprocessing
from plungepool import get_engine, guard_invocation
from sqlalchemy import text

engine = get_engine()

def backend():
    with engine.begin() as connection:
        return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

def child(pipe):
    pipe.send(backend())

@guard_invocation
def handler(event, context):
    with engine.begin() as connection:
        mine = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        kind = multiprocessing.get_context(event)
        children = []
        for _ in range(2):
            ours, theirs = kind.Pipe()
            process = kind.Process(target=child, args=(theirs,))
            process.start()
            children.append(ours.recv())
            process.join()
            assert process.exitcode == 0
        again = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    return {"mine": mine, "children": children, "again": again, "next": backend()}
"""


@pytest.mark.parametrize("kind", ["fork", "spawn", "forkserver"])
def test_children_of_a_handler_have_connections_of_their_own(
    server: Postgres, lambda_environment: Callable[..., Environment], tmp_path: Path, kind: str
) -> None:
    """By each way of multiprocessing's, within an open transaction of the handler's, under TLS."""
    (tmp_path / "app.py").write_text(CHILDREN)
    environment = lambda_environment(tmp_path, variables=variables(server), timeout_s=60)
    for _ in range(2):
        invocation = environment.invoke(kind)
        assert invocation.error is None, invocation
        found = invocation.payload
        assert found["mine"] == found["again"] == found["next"]
        assert len({found["mine"], *found["children"]}) == 3
    assert "unexpected EOF" not in log_of(server, found["mine"])


MANAGED = """
import os, time
from pathlib import Path
from plungepool import get_engine, guard_invocation
from sqlalchemy import text

engine = get_engine()

@guard_invocation
def handler(event, context):
    with engine.begin() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        if event:
            here = Path(event["folder"])
            (here / str(os.getpid())).touch()
            while len(list(here.iterdir())) < event["together"]:
                time.sleep(0.005)
    return {"process": os.getpid(), "backend": pid}
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Managed Instances have Python 3.13 and newer")
def test_processes_of_a_managed_instance(
    server: Postgres, lambda_environment: Callable[..., Environment], tmp_path: Path
) -> None:
    """
    As many invocations at a time as there are processes, each with a connection of its own, kept for its next one; one
    of the processes registers the extension, and all of them say goodbye.
    """
    together = 4
    (tmp_path / "app.py").write_text(MANAGED)
    environment = lambda_environment(tmp_path, variables=variables(server), timeout_s=60, max_concurrency=together)
    backends: dict[int, set[int]] = {}
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        with ThreadPoolExecutor(together) as pool:
            event = {"folder": str(folder), "together": together}
            for invocation in pool.map(environment.invoke, [event] * together):
                assert invocation.error is None, invocation
                backends.setdefault(invocation.payload["process"], set()).add(invocation.payload["backend"])
    assert len(backends) == together
    assert all(len(own) == 1 for own in backends.values())
    assert len(set.union(*backends.values())) == together
    assert environment.pid not in backends
    assert [extension.name for extension in environment._require_life().extensions.values()] == ["plungepool-shutdown"]
    shutdown = environment.shutdown()
    assert shutdown is not None
    assert shutdown.signalled
    for own in backends.values():
        assert "unexpected EOF" not in log_of(server, own.pop(), ended=True)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Managed Instances have Python 3.13 and newer")
def test_an_invocation_that_is_out_of_time_ends_no_process_of_a_managed_instance(
    server: Postgres, lambda_environment: Callable[..., Environment], tmp_path: Path
) -> None:
    """The others go on, and so does its own process when it is done."""
    (tmp_path / "app.py").write_text(MANAGED)
    environment = lambda_environment(tmp_path, variables=variables(server), max_concurrency=2)
    folder = tmp_path / "together"
    folder.mkdir()
    environment.timeout_s = 3.0
    with ThreadPoolExecutor(2) as pool:
        # It waits for another one, which does not come in its time.
        late = pool.submit(environment.invoke, {"folder": str(folder), "together": 2})
        wait_until(lambda: list(folder.iterdir()))
        process = int(next(folder.iterdir()).name)
        others = [environment.invoke(None).payload["process"] for _ in range(3)]
    error = late.result().error
    assert error is not None
    assert error["errorType"] == "Sandbox.Timedout"
    assert len({process, *others}) == 2
    environment.timeout_s = 60.0
    (folder / "another").touch()
    (tmp_path / "again").mkdir()
    with ThreadPoolExecutor(2) as pool:
        event = {"folder": str(tmp_path / "again"), "together": 2}
        again = list(pool.map(environment.invoke, [event, event]))
    assert {one.payload["process"] for one in again} == {process, *others}


def variables(server: Postgres) -> dict[str, str]:
    """Return what a function needs for the server, with verified TLS."""
    return {
        "PLUNGEPOOL_HOST": "localhost",
        "PLUNGEPOOL_PORT": str(server.port),
        "PLUNGEPOOL_USER": "app",
        "PLUNGEPOOL_PASSWORD": "not asked for",
        "PLUNGEPOOL_CA_FILE": str(server.ca_file),
    }


def log_of(server: Postgres, pid: int, *, ended: bool = False) -> str:
    """Return what the server has logged of a session, where wanted at its end."""

    def lines() -> str:
        return "\n".join(line for line in server.log.splitlines() if line.startswith(f"[{pid}]"))

    if ended:
        wait_until(lambda: "disconnection:" in lines(), f"session {pid} has not ended")
    return lines()
