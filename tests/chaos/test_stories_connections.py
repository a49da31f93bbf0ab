"""
Connections that are refused, outlive their timers, die or fall silent while an environment is frozen.

    1   remaining slots reserved on a burst      kirill-markin/flashcards-open-source-app#1635, spreaker/poduptime#20
    2   idle connections outlive the idle timer  brianc/node-postgres#2718, sequelize/sequelize#8468
    3   the first call after a pause dies        npgsql/npgsql#3559, polarsource/polar#13859, brianc/node-postgres#2112
    4   the first call after a pause hangs       tum-gis/3dcitydb-mcp-server#1
    19  a pool stuck for hours after recovery    psycopg/psycopg#1315
    20  stale ones tried one by one for 30 s     fecgov/fecfile-web-api PR#2208
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from elsewhere import wait_until
from stories import WHO, ask, at_once, end_sessions, failure, refusal, rows, sessions, variables

from plungepool_toolkit.fixtures import Database
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable

    from black_hole import BlackHole

    from plungepool_toolkit.environment import Environment

    Start = Callable[..., Environment]

# Three of the twelve are the superuser's.
WORKERS, LIMIT, SLOTS = 30, 12, 9


def test_remaining_slots_are_reserved_on_a_burst(start: Start) -> None:
    """
    Story 1: thirty workers, nine slots. Who is refused says so in time and holds nothing; who comes when there is room
    gets in.

    Each environment keeps its connection here, so that nine are answered; with PLUNGEPOOL_POOL=null all are, see below.
    """
    with Postgres({"max_connections": LIMIT}) as server:
        server.execute("CREATE ROLE app LOGIN; CREATE TABLE orders (id int); GRANT ALL ON orders TO app")
        database = Database(server, "postgres")
        reach = variables(database, user="app")
        snapshot = start("shop", reach, timeout_s=6, snap_start=True).snapshot()
        workers = [snapshot.restore() for _ in range(WORKERS)]
        order = ["INSERT INTO orders VALUES (1)", WHO]
        burst = at_once(*[partial(ask, worker, *order, hold_s=0.2) for worker in workers])
        assert [one for one in burst if one.error is not None] == []
        inside = [worker for worker, one in zip(workers, burst, strict=True) if one.payload["statusCode"] == 200]
        outside = [worker for worker in workers if worker not in inside]
        refused = [refusal(one) for one in burst if one.payload["statusCode"] != 200]
        assert 1 <= len(inside) <= SLOTS
        assert {(one["error"], one["sqlstate"]) for one in refused} <= {
            ("OperationalError", "53300"),
            ("DeadlineExceeded", None),
        }
        # As many orders as were acknowledged, as many connections, and no transaction that is open.
        assert server.execute("SELECT count(*) FROM orders") == [[len(inside)]]
        wait_until(lambda: len(sessions(database)) == len(inside))
        assert len(sessions(database, "idle")) == len(inside)
        assert server.execute("SELECT count(*) FROM pg_locks WHERE pid <> pg_backend_pid()") == [[0]]

        def every_slot_is_taken() -> bool:
            # In the burst each that was refused held one for a moment.
            if len(inside) < SLOTS and ask(outside[0]).payload["statusCode"] == 200:
                inside.append(outside.pop(0))
            return len(inside) == SLOTS

        wait_until(every_slot_is_taken)
        assert refusal(ask(outside[0]))["sqlstate"] in ("53300", None)
        assert "OperationalError" in failure(ask(start("naive", reach)))
        inside[0].shutdown()
        # A slot is free a moment after its session is no longer seen.
        wait_until(lambda: ask(outside[0]).payload["statusCode"] == 200, "there is room, and nobody gets in")
        assert rows(ask(outside[0]))[0][0] in sessions(database)
        at_once(*[worker.shutdown for worker in workers])
        wait_until(lambda: sessions(database) == [], "a connection outlives its environment")


def test_a_burst_is_answered_where_nobody_keeps_a_slot(start: Start) -> None:
    """Story 1 again: thirty workers take turns at nine slots, within their invocations; each order is there once."""
    with Postgres({"max_connections": LIMIT}) as server:
        server.execute("CREATE ROLE app LOGIN; CREATE TABLE orders (id int); GRANT ALL ON orders TO app")
        database = Database(server, "postgres")
        reach = variables(database, user="app") | {"PLUNGEPOOL_POOL": "null"}
        snapshot = start("shop", reach, timeout_s=60, snap_start=True).snapshot()
        workers = [snapshot.restore() for _ in range(WORKERS)]
        order = ["INSERT INTO orders VALUES (1)", WHO]
        burst = at_once(*[partial(ask, worker, *order, hold_s=0.2) for worker in workers])
        assert [(one.error, one.payload["statusCode"]) for one in burst] == [(None, 200)] * WORKERS
        assert server.execute("SELECT count(*) FROM orders") == [[WORKERS]]
        wait_until(lambda: sessions(database) == [], "a connection was kept")
        at_once(*[worker.shutdown for worker in workers])


def test_idle_connections_outlive_the_idle_timer(start: Start, database: Database) -> None:
    """
    Story 2: a timer does not run in an environment that is frozen. What must go goes before the handler returns, or is
    replaced by its age on the wall at the next checkout; a timer's promise is not kept.
    """
    naive = start("naive_idle_timer", variables(database))
    [[kept]] = rows(ask(naive))
    for_nobody = start("shop", variables(database, pool="null"))
    [[gone]] = rows(ask(for_nobody))
    assert gone not in sessions(database)
    aging = start("shop", variables(database, max_age_s=0.5))
    [[old]] = rows(ask(aging))
    assert old in sessions(database)
    time.sleep(0.7)
    assert kept in sessions(database)
    [[new]] = rows(ask(aging))
    assert new != old
    wait_until(lambda: set(sessions(database)) == {kept, new}, "what was too old is still open")
    naive.thaw()
    wait_until(lambda: kept not in sessions(database), "the timer does nothing at all, and the story shows nothing")


def terminated(database: Database, network: ChaosProxy) -> None:
    """By an administrator, or a failover."""
    end_sessions(database)


def timed_out(database: Database, network: ChaosProxy) -> None:
    """By idle_session_timeout, which the sessions have since they began."""
    wait_until(lambda: sessions(database) == [])


def reset(database: Database, network: ChaosProxy) -> None:
    """By a network's RST."""
    assert network.reset() == 2


def hung_up(database: Database, network: ChaosProxy) -> None:
    """By a balancer's FIN."""
    assert network.hang_up() == 2


@pytest.mark.parametrize("end", [terminated, timed_out, reset, hung_up], ids=lambda end: end.__name__)
def test_the_first_call_after_a_pause_dies(
    start: Start, database: Database, network: ChaosProxy, end: Callable[..., None]
) -> None:
    """Story 3: the connection was ended meanwhile. The invocation finds out before it sends anything, and answers."""
    if end is timed_out:
        database.execute(f"ALTER DATABASE {database.name} SET idle_session_timeout = '300ms'")
    reach = variables(database, at=network)
    shop, naive = start("shop", reach), start("naive", reach)
    [[first]], _ = rows(ask(shop)), rows(ask(naive))
    end(database, network)
    [[second]] = rows(ask(shop))
    assert second != first
    assert "OperationalError" in failure(ask(naive))


def test_the_first_call_after_a_pause_hangs(start: Start, database: Database, network: ChaosProxy) -> None:
    """
    Story 4: the way was forgotten without a word, as NAT gateways and balancers do after 350 s. One bounded ping finds
    out, and the same invocation answers.
    """
    reach = variables(database, at=network, ping_after_idle_s=0.1, connect_timeout_s=1)
    shop, naive = start("shop", reach), start("naive", reach, timeout_s=3)
    [[first]], _ = rows(ask(shop)), rows(ask(naive))
    assert network.swallow() == 2
    time.sleep(0.2)
    answered, hung = at_once(partial(ask, shop), partial(ask, naive))
    assert rows(answered) != [[first]]
    assert "timed out" in failure(hung)


def test_the_first_call_after_a_pause_hangs_where_packets_vanish(
    start: Start, database: Database, black_hole: BlackHole
) -> None:
    """Story 4, where nothing is acknowledged any more, and the system itself would wait for a quarter of an hour."""
    # By its address, so that nothing is said of plain text on a network.
    address = f"{black_hole.host}:{black_hole.port}"
    shop = start("shop", variables(database, address=address, ping_after_idle_s=0.1, connect_timeout_s=1))
    naive = start("naive", variables(database, at=black_hole), timeout_s=3)
    [[first]], _ = rows(ask(shop)), rows(ask(naive))
    black_hole.swallow_what_is_open()
    time.sleep(0.2)
    answered, hung = at_once(partial(ask, shop), partial(ask, naive))
    assert rows(answered) != [[first]]
    assert "timed out" in failure(hung)


def test_a_call_that_hangs_ends_in_time(start: Start, database: Database, network: ChaosProxy) -> None:
    """
    Story 4, after a pause that was too short for a ping: the deadline ends the wait, the handler says 503, and the next
    invocation answers.
    """
    shop = start("shop", variables(database, at=network), timeout_s=3)
    [[first]] = rows(ask(shop))
    network.swallow()
    assert refusal(ask(shop))["error"] == "DeadlineExceeded"
    [[second]] = rows(ask(shop))
    assert second != first


def test_a_pool_is_stuck_for_hours_after_the_database_has_recovered(start: Start) -> None:
    """
    Story 19: away, then silent, each for many invocations. The first one after that answers, with the whole pool, in
    the same process.
    """
    with Postgres() as server, ChaosProxy(server.host, server.port) as network:
        database = Database(server, "postgres")
        reach = variables(database, at=network, pool_size=3, ping_after_idle_s=0, connect_timeout_s=0.3)
        naive = start("naive_connection", reach)
        shop = start("several", reach, timeout_s=3)
        process = shop.pid

        def whole_pool() -> int:
            return len({pid for [pid] in rows(ask(shop, connections=3))})

        assert (whole_pool(), len(rows(ask(naive)))) == (3, 1)
        server.stop()
        for _ in range(5):  # more than there are places to lose
            refusal(ask(shop, connections=3))
        server.start()
        assert whole_pool() == 3
        network.partition()
        for _ in range(2):
            refusal(ask(shop, connections=3))
        network.heal()
        assert whole_pool() == 3
        assert shop.pid == process
        for _ in range(2):
            failure(ask(naive))


def test_stale_connections_are_tried_one_by_one(start: Start) -> None:
    """
    Story 20: the database has restarted, and five kept connections never heard of it. The first that does not answer
    shows it of all: the invocation that needs five waits for one answer, two seconds, and not for five.
    """
    with Postgres() as server, ChaosProxy(server.host, server.port) as network:
        database = Database(server, "postgres")
        reach = variables(database, at=network, pool_size=5, ping_after_idle_s=0.1)
        shop = start("several", reach, timeout_s=60)
        naive = start("naive", reach | {"NAIVE_OPTIONS": '{"pool_pre_ping": true}'}, timeout_s=3)
        before = rows(ask(shop, connections=5))
        rows(ask(naive))
        assert network.swallow() == 6
        server.restart()
        network.connections = 0
        time.sleep(0.2)
        answered, hung = at_once(partial(ask, shop, connections=5), partial(ask, naive))
        after = rows(answered)
        assert answered.duration_s < 8  # ten, one by one
        assert len({pid for [pid] in after}) == 5
        assert not {pid for [pid] in before} & {pid for [pid] in after}
        assert network.connections == 5
        assert "timed out" in failure(hung)
