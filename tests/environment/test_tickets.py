"""Whose ticket is whose: processes that are copies of one, by a snapshot or by fork(), and those that are killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from elsewhere import wait_until

from plungepool import Settings, build_engine, fleet, guard_invocation
from plungepool_toolkit.lambda_context import LambdaContext
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from plungepool_toolkit.environment import Environment

LIMIT = 20
# It has used its connection before the snapshot is taken: at init a ticket is asked for at once.
HANDLER = """
    import multiprocessing, os
    from plungepool import get_engine, guard_invocation
    from sqlalchemy import text

    engine = get_engine()

    def use():
        with engine.begin() as connection:
            return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

    at_init = use()

    def child(pipe):
        pipe.send([use(), use()])
        pipe.recv()

    @guard_invocation
    def handler(event, context):
        before = use()
        if not event or not event.get("children"):
            return before
        forks = multiprocessing.get_context("fork")
        ends, children = [], []
        for _ in range(event["children"]):
            mine, its = forks.Pipe()
            children.append(forks.Process(target=child, args=(its,)))
            children[-1].start()
            ends.append(mine)
        theirs = [end.recv() for end in ends]
        held = use()
        for end, one in zip(ends, children):
            end.send(None)
            one.join()
        return {"mine": [before, held, use()], "theirs": theirs}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server whose role `app` may have twenty connections: fourteen tickets."""
    with Postgres({"max_connections": 60}) as running:
        running.execute(f"CREATE ROLE app LOGIN CONNECTION LIMIT {LIMIT}")
        yield running


@pytest.fixture
def start(
    server: Postgres, tmp_path: Path, lambda_environment: Callable[..., Environment]
) -> Callable[..., Environment]:
    """Start an environment of the function."""
    (tmp_path / "app.py").write_text(dedent(HANDLER))
    variables = {
        "PLUNGEPOOL_URL": server.url("app", password="not asked for"),
        "PLUNGEPOOL_TLS": "disable",
        "PLUNGEPOOL_POOL": "adaptive",
    }
    return lambda snap_start=False, **others: lambda_environment(
        tmp_path, snap_start=snap_start, variables=variables | others
    )


def held(server: Postgres) -> dict[int, int]:
    """Return the tickets that are held, by the process that has each; no number may be there twice."""
    rows = server.execute("SELECT pid, objid::int8 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2")
    assert len({number for _, number in rows}) == len(rows) <= fleet.tickets(LIMIT)
    return {int(pid): int(number) for pid, number in rows}


def sessions(server: Postgres) -> set[int]:
    """Return the role's sessions."""
    return {int(pid) for (pid,) in server.execute("SELECT pid FROM pg_stat_activity WHERE usename = 'app'")}


@pytest.mark.parametrize("ahead", ["", "true"], ids=["", "connects on restore"])
def test_clones_of_a_snapshot_share_no_ticket(server: Postgres, start: Callable[..., Environment], ahead: str) -> None:
    """What was held at init is given back before the snapshot; each clone has its own, which kill -9 gives back."""
    others = {"PLUNGEPOOL_CONNECT_ON_RESTORE": ahead} if ahead else {}
    snapshot = start(snap_start=True, **others).snapshot()
    wait_until(lambda: not sessions(server), "a session was frozen into the snapshot")
    clones = [snapshot.restore() for _ in range(5)]
    served = [[clone.invoke(None).payload for _ in range(3)] for clone in clones]
    kept = {pids[-1] for pids in served}
    assert len(kept) == 5
    wait_until(lambda: set(held(server)) == sessions(server) == kept, "a connection is kept without a ticket")
    for clone in clones[:2]:
        os.kill(clone.pid, signal.SIGKILL)
    wait_until(lambda: set(held(server)) == sessions(server) == {pids[-1] for pids in served[2:]})
    assert [clone.invoke(None).payload for clone in clones[2:]] == [pids[-1] for pids in served[2:]]


def test_children_of_an_environment_share_no_ticket(server: Postgres, start: Callable[..., Environment]) -> None:
    """Each has a connection of its own, and gives nothing of its parent's back when it ends."""
    environment = start()
    first = environment.invoke(None).payload
    answer = environment.invoke({"children": 4}).payload
    assert answer["mine"] == [first] * 3
    theirs = {pid for pids in answer["theirs"] for pid in pids}
    assert first not in theirs
    wait_until(lambda: sessions(server) == set(held(server)) == {first})


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_those_that_are_killed_at_work_give_back(server: Postgres) -> None:
    """
    Thirty environments at work on twenty connections, half of them killed at any moment: no other fails, no more
    tickets are held than there are, and in the end none.
    """
    engine = build_engine(
        Settings(url=server.url("app", password="-"), tls="disable", pool="adaptive", checkout_timeout_s=60.0)
    )

    def work(writes: int) -> None:
        while True:
            with guard_invocation(LambdaContext()), engine.begin() as connection:
                connection.exec_driver_sql("SELECT pg_sleep(0.002)")
            os.write(writes, b".")
            time.sleep(random.random() / 20)

    children: dict[int, int] = {}
    chance = random.Random(11)
    try:
        for _ in range(30):
            reads, writes = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    work(writes)
                finally:
                    os._exit(1)
            os.close(writes)
            children[child] = reads
        for child in chance.sample(sorted(children), 15):
            assert os.read(children[child], 1)
            time.sleep(chance.random() / 10)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(children.pop(child))
            held(server)
        for reads in children.values():
            os.set_blocking(reads, False)
            with contextlib.suppress(BlockingIOError):
                while os.read(reads, 65536):
                    pass
            os.set_blocking(reads, True)
            assert os.read(reads, 1), "one that was left alone has failed"
        held(server)
    finally:
        for child, reads in children.items():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reads)
        engine.dispose()
    wait_until(lambda: not held(server) and not sessions(server))
