"""
Behind a transaction pooler: what a session keeps is everybody's.

    12  the proxy is of no use, or an outage   MagicStack/asyncpg#1153, prisma/orm#5866, Opus10/django-pghistory#245
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from stories import WHO, ask, at_once, failure, refusal, rows

from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from plungepool_toolkit.environment import Environment

    Start = Callable[..., Environment]

# In the server's log of statements.
OF_A_SESSION = re.compile(r"(?:statement|execute [^:]*): *(SET(?! LOCAL)|DECLARE|PREPARE|LISTEN)\b", re.IGNORECASE)


def test_a_set_for_the_session_pins_the_proxy(start: Start) -> None:
    """
    Story 12: what is set for a session ties its client to a database connection, until none is left for anybody else.
    Nothing that is sent here does: three environments share one connection, deadlines, errors and all.
    """
    with (
        Postgres({"log_statement": "all"}) as server,
        RdsProxy(
            server,
            auth="scram",
            users={"postgres": server.password, "app": "hush"},
            max_database_connections=1,
            borrow_timeout_s=1.0,
        ) as proxy,
    ):
        server.execute(
            "CREATE ROLE app LOGIN PASSWORD 'hush'; CREATE TABLE orders (id int); GRANT ALL ON orders TO app"
        )
        reach = proxy.variables("app") | {
            "PLUNGEPOOL_PINNING": "refuse",
            "NAIVE_URL": f"postgresql+psycopg://app:hush@localhost:{proxy.port}/postgres?sslmode=require",
        }
        snapshot = start("shop", reach, snap_start=True).snapshot()
        shops = [snapshot.restore() for _ in range(3)]
        for _ in range(5):
            order = ["INSERT INTO orders VALUES (:id)", "SELECT count(*) FROM orders", WHO]
            for placed in at_once(*[partial(ask, shop, *order, parameters={"id": 7}) for shop in shops]):
                rows(placed)
            assert "division by zero" in failure(ask(shops[0], "SELECT 1 / 0"))
        seen = proxy.counters
        assert (dict(seen.pinned), seen.database_connections_peak, seen.borrow_timeouts) == ({}, 1, 0)
        assert OF_A_SESSION.findall(server.log) == []

        naive = start("naive", reach)
        rows(ask(naive, "SET statement_timeout = '5s'", WHO))
        assert list(proxy.counters.pinned) != []
        assert OF_A_SESSION.findall(server.log) == ["SET"]
        assert "Timed-out waiting" in refusal(ask(shops[0]))["reason"]
        naive.close()
        rows(ask(shops[0]))
