"""
What a deadline, a time-out of Lambda's or an exception leaves behind: poisoned pools, wrong rows, locks, orphans.

    5   the pool is poisoned after a time-out   brianc/node-postgres#2243
    6   wrong rows after a deadline             found here, in pg8000
    7   Lambda's time-out leaves locks          polarsource/polar#14345, prisma/orm#7315
    14  transactions are never released         jeremydaly/data-api-client#37, AWS's sample for SQLAlchemy
    16  orphans run on after the time-outs      NASA-IMPACT/veda-backend#646: 3,505 an hour
"""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until
from stories import WHO, ask, at_once, failure, is_free, refusal, rows, sessions, variables

from plungepool_toolkit.network import ChaosProxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from plungepool_toolkit.environment import Environment
    from plungepool_toolkit.fixtures import Database

    Start = Callable[..., Environment]


def test_the_pool_is_poisoned_after_a_time_out(start: Start, database: Database) -> None:
    """
    Story 5: a statement was given up at the deadline. The server has stopped it, and the next invocation has a fresh
    connection and its own rows; a driver's time-out leaves a connection that fails for good.
    """
    reach = variables(database, TIMEOUT_S=0.5)
    shop, naive = start("shop", reach, timeout_s=2), start("naive_connection", reach)
    [[first]], _ = rows(ask(shop)), rows(ask(naive))
    slow, slow_naively = at_once(
        partial(ask, shop, "SELECT 'slow' FROM pg_sleep(60)"), partial(ask, naive, "SELECT 'slow' FROM pg_sleep(1)")
    )
    assert refusal(slow)["error"] == "DeadlineExceeded"
    wait_until(lambda: sessions(database, "active") == [], "the statement that was given up still runs")
    [[second, number]] = rows(ask(shop, "SELECT pg_backend_pid(), 7"))
    assert (second == first, number) == (False, 7)
    assert failure(slow_naively)
    assert failure(ask(naive))


def test_a_statement_time_out_costs_no_connection(start: Start, database: Database) -> None:
    """Story 5, where the server gives the statement up: it says so, and the connection lives."""
    shop = start("shop", variables(database, statement_timeout_s=0.3))
    [[first]] = rows(ask(shop))
    assert refusal(ask(shop, "SELECT 'slow' FROM pg_sleep(60)"))["sqlstate"] == "57014"
    assert rows(ask(shop)) == [[first]]


def test_wrong_rows_after_a_deadline(start: Start, database: Database, app: str) -> None:
    """
    Story 6: a thousand deadlines at random moments, from before the connect to after the commit, and after each a row
    that is its own. Where an exception ends the wait for a reply, a connection of pg8000's takes the rest of it for the
    next one's, or fails for good.
    """
    reach = variables(database, user=app)
    environments = [start("deadlines", reach, timeout_s=120) for _ in range(2)]
    # Without the name of a runtime the client runs the handler in the main thread, where signals arrive.
    naive = start("naive_deadlines", reach | {"AWS_EXECUTION_ENV": ""}, timeout_s=120)
    of_each = {"rounds": 500, "longest_s": 0.01}
    *ours, broken = at_once(
        *[partial(one.invoke, {"seed": seed, **of_each}) for seed, one in enumerate((*environments, naive))]
    )
    for one in ours:
        assert one.error is None, one
        assert one.payload["wrong"] == 0
        assert one.payload["struck"] > 50
    assert broken.error is not None or broken.payload["wrong"] + broken.payload["failed"] > 0


def take(product: int) -> str:
    return f"UPDATE stock SET n = n - 1 WHERE id = {product}"


def test_a_time_out_of_lambda_leaves_locks(start: Start, stock: Database) -> None:
    """
    Story 7: the handler still computes at its time-out, in the middle of a transaction, and the server never hears that
    it has gone. It knows the deadline since BEGIN, and lets the lock go.
    """
    with ChaosProxy(stock.server.host, stock.server.port) as network:
        reach = variables(stock, at=network)
        shop, naive = start("shop", reach, timeout_s=2.5), start("naive", reach, timeout_s=2.5)
        rows(ask(shop)), rows(ask(naive))

        def cut_the_network() -> None:
            wait_until(lambda: not is_free(stock, 1) and not is_free(stock, 2))
            wait_until(lambda: len(sessions(stock, "idle in transaction")) == 2)
            network.partition()

        *ended, _ = at_once(
            partial(ask, shop, take(1), hold_s=60), partial(ask, naive, take(2), hold_s=60), cut_the_network
        )
        assert ["timed out" in failure(one) for one in ended] == [True, True]
        wait_until(lambda: is_free(stock, 1), "the lock outlives its invocation", within_s=10)
        assert len(sessions(stock, "idle in transaction")) == 1
        assert not is_free(stock, 2)
        network.heal()
    assert rows(ask(start("shop", variables(stock)), take(1), "SELECT n FROM stock WHERE id = 1")) == [[99]]


def asleep(database: Database) -> list[list[Any]]:
    """Return the server's processes that are at work for a slow statement."""
    return database.execute(
        "SELECT pid FROM pg_stat_activity "
        "WHERE state = 'active' AND query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
    )


@pytest.mark.parametrize("end", ["given up", "killed"])
def test_orphans_run_on_after_the_time_outs(start: Start, stock: Database, end: str) -> None:
    """
    Story 16: the statement is slow and the environment has gone, by its own deadline or killed, and no word of it
    reaches the server. It knows the deadline, and stops; an orphan that was not told runs on, and keeps its lock.
    """
    with ChaosProxy(stock.server.host, stock.server.port) as network:
        reach = variables(stock, at=network)
        shop, naive = start("shop", reach, timeout_s=2.5), start("naive", reach, timeout_s=2.5)
        rows(ask(shop)), rows(ask(naive))

        def cut_the_network() -> None:
            wait_until(lambda: len(asleep(stock)) == 2)
            network.partition()
            if end == "killed":
                os.kill(shop.pid, signal.SIGKILL)

        slow = " AND pg_sleep(600) IS NOT NULL"
        ours, naively, _ = at_once(
            partial(ask, shop, take(1), take(3) + slow),
            partial(ask, naive, take(2), take(4) + slow),
            cut_the_network,
        )
        if end == "killed":
            assert "SIGKILL" in failure(ours)
        else:
            assert refusal(ours)["error"] == "DeadlineExceeded"
        assert "timed out" in failure(naively)
        wait_until(lambda: is_free(stock, 1), "the lock outlives its invocation", within_s=10)
        assert len(asleep(stock)) == 1
        assert not is_free(stock, 2)
        network.heal()


@pytest.mark.parametrize("keep", [False, True], ids=["dropped", "kept in a global"])
def test_transactions_are_never_released(start: Start, database: Database, keep: bool) -> None:
    """
    Story 14: the handler fails in the middle, and gives nothing back. Before the environment freezes the transaction is
    rolled back and its locks are free; the line is logged, and the next invocation begins anew.
    """
    database.execute("CREATE TABLE stock AS SELECT id, 100 AS n FROM generate_series(1, 10) AS id")
    leaky, naive = start("leaky", variables(database)), start("naive_session", variables(database))
    failed, failed_naively = (
        ask(leaky, take(1), raises="out of stock", keep=keep),
        ask(naive, take(2), raises="out of stock"),
    )
    assert failure(failed) == failure(failed_naively) == "LookupError: out of stock"
    wait_until(lambda: len(sessions(database, "idle in transaction")) == 1)
    wait_until(lambda: is_free(database, 1))
    assert not is_free(database, 2)
    [said] = [line for line in failed.log if "still checked out" in line]
    assert "leaky.py:" in said
    assert rows(ask(leaky, take(1), "SELECT n FROM stock WHERE id = 1")) == [[99]]
    # What was thought to be undone is committed by the next one.
    rows(ask(naive, WHO))
    assert database.execute("SELECT n FROM stock WHERE id = 2") == [[99]]
