"""
Behind a transaction pooler: what a session keeps is everybody's.

    12  the proxy is of no use, or an outage   MagicStack/asyncpg#1153, prisma/orm#5866, Opus10/django-pghistory#245
    13  tenants read each other's rows         django-tenants/django-tenants#732, rails-on-services/apartment#470
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from poolers import pgbouncer
from stories import WHO, At, ask, at_once, failure, refusal, rows, variables

from plungepool_toolkit.fixtures import Database
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


PAGES = """
    CREATE ROLE reader LOGIN; CREATE TABLE pages (tenant_id text NOT NULL, body text);
    ALTER TABLE pages ENABLE ROW LEVEL SECURITY; ALTER TABLE pages FORCE ROW LEVEL SECURITY;
    CREATE POLICY of_tenant ON pages USING (tenant_id = nullif(current_setting('app.tenant_id', true), ''));
    GRANT ALL ON pages TO reader; INSERT INTO pages VALUES ('1', 'one'), ('2', 'two')
"""


def test_tenants_read_each_others_rows(start: Start) -> None:
    """
    Story 13: one connection of the server for everybody. What two environments set for their tenants, in eight threads
    each, holds for a transaction and is gone with it; what is set for a session is there for the next one who asks.
    """
    with Postgres() as server:
        for statement in PAGES.split(";"):
            server.execute(statement)
        with pgbouncer(server, users={"reader": None}, default_pool_size=1) as port:
            reach = variables(Database(server, "postgres"), at=At("127.0.0.1", port), user="reader", pool_size=8)
            snapshot = start("tenants", reach, timeout_s=120, snap_start=True).snapshot()
            event = {"threads": 8, "rounds": 100}
            environments = snapshot.restore(), snapshot.restore()
            told = at_once(*[partial(environment.invoke, event) for environment in environments])
            assert [one.error for one in told] == [None, None]
            # But for the tenth that fails.
            assert [one.payload for one in told] == [{"right": 8 * 90, "wrong": []}] * 2

            first, second = start("naive", reach), start("naive", reach)
            rows(ask(first, "SELECT set_config('app.tenant_id', '1', false)"))
            assert rows(ask(second, "SELECT tenant_id FROM pages")) == [["1"]]
