"""A fleet that is drained under load: real environments, which are invoked all the time and frozen in between."""

from __future__ import annotations

import random
import threading
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until
from poolers import pgbouncer
from typer.testing import CliRunner

from plungepool import Settings, build_engine, drain
from plungepool_toolkit.command import application
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

    from plungepool_toolkit.environment import Environment

HANDLER = """
import time
from plungepool import get_engine, guard_invocation, run_transaction
from sqlalchemy import text

print("init")
engine = get_engine()

@guard_invocation
def handler(event, context):
    def work(connection):
        connection.execute(text("UPDATE counted SET number = number + 1"))
        time.sleep(event["busy_s"])
        return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

    if event.get("once"):
        with engine.begin() as connection:
            return work(connection)
    return run_transaction(engine, work)
"""
FLEET = 5


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server with the application's role, and a table to count in."""
    with Postgres({"deadlock_timeout": "5s"}) as running:
        running.execute("CREATE ROLE app LOGIN; CREATE TABLE counted (number int); GRANT ALL ON counted TO app")
        running.execute("INSERT INTO counted VALUES (0)")
        yield running


@pytest.fixture
def fleet(tmp_path: Path, lambda_environment: Callable[..., Environment]) -> Callable[..., list[Environment]]:
    """Start the environments, at the port of the server or of a pooler."""
    task = tmp_path / "task"
    task.mkdir()
    (task / "app.py").write_text(dedent(HANDLER))

    def start(port: int, count: int = FLEET, **others: str) -> list[Environment]:
        variables = {"PLUNGEPOOL_URL": f"postgresql://app:any@127.0.0.1:{port}/postgres", "PLUNGEPOOL_TLS": "disable"}
        return [lambda_environment(task, variables=variables | others, function_name="orders") for _ in range(count)]

    return start


class Load:
    """Invokes every environment again and again, each with pauses of its own; keeps what came of it."""

    def __init__(self, environments: list[Environment]) -> None:
        self.pids: list[list[int]] = [[] for _ in environments]
        self.failures: list[Any] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._invoke, args=(number, environment))
            for number, environment in enumerate(environments)
        ]

    def _invoke(self, number: int, environment: Environment) -> None:
        chance = random.Random(number)
        while not self._over.is_set():
            invocation = environment.invoke({"busy_s": 0.01})
            if invocation.error is None:
                self.pids[number].append(invocation.payload)
            else:
                self.failures.append(invocation.error)
            self._over.wait(chance.uniform(0, 1.0))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for_one_each(self) -> None:
        """Wait until each environment has been invoked once more."""
        marks = [len(pids) for pids in self.pids]
        wait_until(lambda: all(len(pids) > mark for pids, mark in zip(self.pids, marks, strict=True)))


def operator(server: Postgres) -> Any:
    """Return the engine of one who may end the application's sessions."""
    return build_engine(Settings(url=server.url(), tls="disable"))


def test_a_fleet_is_drained_twice_under_load(server: Postgres, fleet: Callable[..., list[Environment]]) -> None:
    """No invocation fails, every backend is another afterwards, and no environment is initialised again."""
    environments = fleet(server.port)
    processes = [environment.pid for environment in environments]
    engine = operator(server)
    before = server.execute("SELECT number FROM counted")[0][0]
    used: list[set[int]] = []
    with Load(environments) as load:
        for _ in range(2):
            load.wait_for_one_each()
            used.append({pids[-1] for pids in load.pids})
            *_, last = drain.drain(engine, drain.Options(role="app", rate=20, limit_s=60))
            assert (last.found, last.ended, last.left) == (FLEET, FLEET, 0)
        load.wait_for_one_each()
        used.append({pids[-1] for pids in load.pids})
    engine.dispose()
    assert load.failures == []
    assert [len(pids) for pids in used] == [FLEET] * 3
    assert not used[0] & used[1]
    assert not used[1] & used[2]
    assert [len(dict.fromkeys(pids)) for pids in load.pids] == [3] * FLEET
    assert [environment.pid for environment in environments] == processes
    assert [environment.log.count("init") for environment in environments] == [1] * FLEET
    # What was begun was done, once.
    done = sum(len(pids) for pids in load.pids)
    assert server.execute("SELECT number FROM counted")[0][0] == before + done


def test_to_end_them_all_at_once_fails_invocations(server: Postgres, fleet: Callable[..., list[Environment]]) -> None:
    """What is often done by hand strikes whoever is in a transaction; a drain at the same moment waits for it."""
    [environment] = fleet(server.port, 1)
    came: list[Any] = []
    by_role = "FROM pg_stat_activity WHERE usename = 'app'"
    for naive in (True, False):
        thread = threading.Thread(
            target=lambda: came.append(environment.invoke({"busy_s": 1.5, "once": True})), daemon=True
        )
        thread.start()
        wait_until(lambda: server.execute(f"SELECT count(*) {by_role} AND state = 'idle in transaction'")[0][0])
        if naive:
            server.execute(f"SELECT pg_terminate_backend(pid) {by_role}")
        else:
            engine = operator(server)
            *_, last = drain.drain(engine, drain.Options(role="app", limit_s=60))
            engine.dispose()
            assert (last.ended, last.left) == (1, 0)
        thread.join()
    assert came[0].error is not None
    assert came[1].error is None


def test_a_pooler_s_connections_are_replaced_as_well(server: Postgres, fleet: Callable[..., list[Environment]]) -> None:
    """Behind PgBouncer it is the pooler's connections that end; its clients keep theirs, and no invocation fails."""
    with pgbouncer(server, users={"app": None}, default_pool_size=2) as port:
        environments = fleet(port, 2, PLUNGEPOOL_ENDPOINT="proxy")
        before = {environment.invoke({"busy_s": 0}).payload for environment in environments}
        engine = operator(server)
        *_, last = drain.drain(engine, drain.Options(role="app", limit_s=60))
        engine.dispose()
        assert (last.found, last.ended, last.left) == (len(before), len(before), 0)
        after = [environment.invoke({"busy_s": 0}) for environment in environments]
        assert [invocation.error for invocation in after] == [None, None]
        assert not before & {invocation.payload for invocation in after}
        assert [text for environment in environments for text in environment.log if "was replaced" in text] == []


def test_an_adaptive_fleet_is_drained_by_the_command(
    server: Postgres, fleet: Callable[..., list[Environment]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    By hand and as its own role, with the fleet's variables: some hold tickets, others come and go, and there may be
    fewer connections than environments. No invocation fails, and no session is older than the drain.
    """
    monkeypatch.setenv("PLUNGEPOOL_URL", server.url("app", password="any"))
    monkeypatch.setenv("PLUNGEPOOL_TLS", "disable")
    monkeypatch.setenv("PLUNGEPOOL_POOL", "adaptive")
    server.execute(f"ALTER ROLE app CONNECTION LIMIT {FLEET - 1}")
    environments = fleet(server.port, PLUNGEPOOL_POOL="adaptive")
    before = server.execute("SELECT number FROM counted")[0][0]
    try:
        with Load(environments) as load:
            for _ in range(2):
                load.wait_for_one_each()
                [[began]] = server.execute("SELECT clock_timestamp()")
                result = CliRunner().invoke(application, ["drain", "--rate", "20", "--limit", "60"])
                # At that moment the fleet may hold none: whoever has no ticket comes and goes.
                done = "none left" in result.output or "nothing to replace" in result.output
                assert (result.exit_code, done) == (0, True), result.output
                old = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND backend_start <= $1"
                assert server.execute(old, began) == [[0]]
            load.wait_for_one_each()
        assert load.failures == []
        assert [environment.log.count("init") for environment in environments] == [1] * FLEET
        done = sum(len(pids) for pids in load.pids)
        assert server.execute("SELECT number FROM counted")[0][0] == before + done
    finally:
        server.execute("ALTER ROLE app CONNECTION LIMIT -1")
