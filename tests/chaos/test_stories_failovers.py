"""
The server is another one now, and a connection leads to the old one still.

    17  writes are refused for days after a failover    gpustack/gpustack#6107, sqlalchemy/sqlalchemy#7839
    18  connections poisoned by a blue/green switch     ustaxcourt/ef-cms PR#9899, aws/aws-advanced-jdbc-wrapper#2096
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until
from stories import At, ask, failure, refusal, rows, variables

from plungepool_toolkit.fixtures import Database
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plungepool_toolkit.environment import Environment

    Start = Callable[..., Environment]

WRITE, READ = "INSERT INTO orders VALUES (1)", "SELECT colour FROM orders_of"
IS_FENCED = "SHOW default_transaction_read_only"


@pytest.fixture
def blue_and_green() -> Iterator[tuple[Postgres, Postgres]]:
    """A server, and the one that takes its place."""
    with Postgres() as blue, Postgres() as green:
        for server, colour in ((blue, "blue"), (green, "green")):
            server.execute(
                f"CREATE ROLE app LOGIN; CREATE TABLE orders (id int); CREATE TABLE orders_of AS SELECT '{colour}' AS "
                "colour; GRANT ALL ON ALL TABLES IN SCHEMA public TO app"
            )
        yield blue, green


def orders(server: Postgres) -> int:
    return int(server.execute("SELECT count(*) FROM orders")[0][0])


def says(environment: Environment, value: str) -> bool:
    return rows(ask(environment, IS_FENCED)) == [[value]]


def fence(server: Postgres, *environments: Environment) -> None:
    """Have the server refuse writes from now on, in the sessions of these environments, too."""
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    server.execute("SELECT pg_reload_conf()")
    for environment in environments:
        wait_until(partial(says, environment, "on"))


def test_writes_are_refused_for_days_after_a_failover(start: Start, blue_and_green: tuple[Postgres, Postgres]) -> None:
    """
    Story 17: the writer became a reader, and the connections to it live. The first write that is refused ends the
    connection, so that the next invocation writes to the new writer; `run_transaction` does in the same one.
    """
    blue, green = blue_and_green
    with ChaosProxy(blue.host, blue.port) as network:
        reach = variables(Database(blue, "postgres"), at=network, user="app")
        shop, again, naive = start("shop", reach), start("transactional", reach), start("naive", reach)
        for environment in (shop, again, naive):
            rows(ask(environment, WRITE))
        network.upstream = (green.host, green.port)
        fence(blue, shop, again, naive)
        assert refusal(ask(shop, WRITE))["sqlstate"] == "25006"
        rows(ask(shop, WRITE))
        rows(ask(again, WRITE))
        for _ in range(3):
            assert "read-only transaction" in failure(ask(naive, WRITE))
        assert (orders(blue), orders(green)) == (3, 2)


def test_connections_are_poisoned_by_a_blue_green_switch(
    start: Start, blue_and_green: tuple[Postgres, Postgres], tmp_path: Path
) -> None:
    """
    Story 18: the name leads to another server now. Who writes is told at once that the old one is none for it; who only
    reads has the new one's rows after the connection's age, by the clock on the wall; and where the old server goes,
    nobody notices.
    """
    blue, green = blue_and_green
    names = tmp_path / "names.json"

    def lead_to(server: Postgres) -> None:
        names.write_text(json.dumps({"shop.localhost": [server.host, server.port]}))

    def starts(handler: str, **settings: Any) -> Environment:
        reach = variables(
            Database(blue, "postgres"), at=At("shop.localhost", 5432), user="app", NAMES=names, **settings
        )
        reach["NAIVE_URL"] = reach["NAIVE_URL"].replace("+psycopg", "+pg8000")
        return start(handler, reach, python_path=[Path(__file__).parent / "names"])

    lead_to(blue)
    writer, aging, reader, naive = starts("shop"), starts("shop", max_age_s=1), starts("shop"), starts("naive")
    rows(ask(writer, WRITE))
    for environment in (aging, reader, naive):
        assert rows(ask(environment, READ)) == [["blue"]]
    lead_to(green)
    fence(blue, writer, naive)
    assert refusal(ask(writer, WRITE))["sqlstate"] == "25006"
    rows(ask(writer, WRITE))
    assert (orders(blue), orders(green)) == (1, 1)
    time.sleep(1.1)
    assert rows(ask(aging, READ)) == [["green"]]
    assert rows(ask(reader, READ)) == rows(ask(naive, READ)) == [["blue"]]
    blue.stop()
    assert rows(ask(reader, READ)) == [["green"]]
    assert failure(ask(naive, READ))
