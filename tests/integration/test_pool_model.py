"""Any sequence of uses, strikes, deaths, ages and forks holds the pool to a model that is a screen long."""

from __future__ import annotations

import gc
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import text

from plungepool import PoolExhausted, Settings, build_engine

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from plungepool_toolkit.postgres import Postgres

SIZE = 3


class StruckError(BaseException):
    """What a signal handler raises."""


@pytest.mark.parametrize("mode", ["tiny", "null"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_pool_follows_its_model(postgres: Postgres, mode: str) -> None:
    """Who asks gets a connection exactly as long as fewer than the pool's size are held, and never one that is held."""

    class Pool(RuleBasedStateMachine):
        """The model: what is held, and which server process was returned last."""

        def __init__(self) -> None:
            super().__init__()
            self.engine: Engine = build_engine(
                Settings(
                    host=postgres.host,
                    port=postgres.port,
                    user="postgres",
                    password=postgres.password,
                    tls="disable",
                    pool=mode,
                    pool_size=SIZE,
                    checkout_timeout_s=0.02,
                )
            )
            self.held: list[tuple[Connection, int]] = []
            self.kept: list[int] = []  # server processes, the last returned at the end
            self.dead: set[int] = set()

        @precondition(lambda self: len(self.held) < SIZE)
        @rule()
        def check_out(self) -> None:
            connection = self.engine.connect()
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            assert pid not in [other for _, other in self.held]
            assert pid not in self.dead
            last = self.last_kept()
            assert last in (None, pid) or last in self.dead  # a death is found when it is the dead one's turn
            self.held.append((connection, pid))

        @precondition(lambda self: len(self.held) == SIZE)
        @rule()
        def check_out_one_too_many(self) -> None:
            with pytest.raises(PoolExhausted, match=r"test_pool_model\.py"):
                self.engine.connect()

        @precondition(lambda self: self.held)
        @rule(data=st.data())
        def give_back(self, data: st.DataObject) -> None:
            connection, pid = self.take(data)
            connection.close()
            self.keep(pid)

        @precondition(lambda self: self.held)
        @rule(data=st.data())
        def forget(self, data: st.DataObject) -> None:
            """Drop it without a word: garbage returns it."""
            pid = self.take(data)[1]
            gc.collect()
            self.keep(pid)

        @precondition(lambda self: self.held)
        @rule(data=st.data())
        def end_at_the_server(self, data: st.DataObject) -> None:
            connection, pid = self.take(data)
            self.end(pid)
            connection.invalidate()
            connection.close()
            self.keep(pid)  # its place is the one that was returned last, and is empty

        @precondition(lambda self: self.kept)
        @rule()
        def end_a_kept_one_at_the_server(self) -> None:
            self.end(self.kept[-1])

        @precondition(lambda self: len(self.held) < SIZE)
        @rule(kind=st.sampled_from([StruckError, ValueError, TimeoutError]))
        def strike_a_use(self, kind: type[BaseException]) -> None:
            """The connection that is struck in the middle of a statement is lost, and nothing else."""
            pid = 0

            def strike(*arguments: Any) -> None:
                raise kind

            with pytest.raises(kind):
                connection = self.engine.connect()
                try:
                    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
                    connection.connection.dbapi_connection._protocol.read_reply = strike  # type: ignore[union-attr]
                    connection.execute(text("SELECT 1"))
                finally:
                    connection.close()
            self.dead.add(pid)
            self.last_kept()
            self.keep(pid)

        @rule()
        def dispose(self) -> None:
            """
            Engine.dispose() closes what is kept; what is held goes on, and is closed at its return to the old pool.
            """
            self.engine.dispose()
            while self.held:
                self.held.pop()[0].close()
            self.kept.clear()

        @rule()
        def fork(self) -> None:
            """A child has connections of its own, as many as the pool's size, and disturbs none of the parent's."""
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    pids = {
                        connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
                        for connection in [self.engine.connect() for _ in range(SIZE)]
                    }
                    status = 0 if len(pids) == SIZE and pids.isdisjoint(pid for _, pid in self.held) else 2
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0

        @invariant()
        def counts_are_right(self) -> None:
            assert self.engine.pool.checkedout() == len(self.held)  # type: ignore[attr-defined]
            for connection, pid in self.held:
                assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() == pid

        def teardown(self) -> None:
            while self.held:
                self.held.pop()[0].close()
            self.engine.dispose()

        def take(self, data: st.DataObject) -> tuple[Connection, int]:
            return self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))

        def keep(self, pid: int) -> None:
            if mode == "tiny":
                self.kept.append(pid)

        def last_kept(self) -> int | None:
            return self.kept.pop() if self.kept else None

        def end(self, pid: int) -> None:
            self.dead.add(pid)
            postgres.execute("SELECT pg_terminate_backend($1::int, 5000)", pid)

    logging.disable(logging.CRITICAL)
    gc.freeze()  # the pool collects garbage when it is short of connections, and all of pytest's objects are none
    try:
        run_state_machine_as_test(
            Pool,
            settings=settings(
                max_examples=10,
                stateful_step_count=25,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        gc.unfreeze()
        logging.disable(logging.NOTSET)
