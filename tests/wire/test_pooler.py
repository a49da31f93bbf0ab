"""Behind a transaction pooler: every row its own, and no trace of one client on the connection of another."""

from __future__ import annotations

import contextlib
import random
import ssl
import threading
from typing import TYPE_CHECKING, Any

import poolers
import pytest
import sqlalchemy
from sqlalchemy import create_engine, text

from plungepool import dialect, wire
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.fixtures import Database
    from plungepool_toolkit.postgres import Postgres

assert dialect.PlungepoolDialect.driver == "plungepool"

THREADS = 8
ROUNDS = 60


@pytest.fixture(scope="module")
def pgbouncer(postgres: Postgres) -> Iterator[Any]:
    """PgBouncer in transaction mode with two connections to the server."""
    with poolers.pgbouncer(postgres, users={"postgres": postgres.password}, default_pool_size=2) as port:
        yield port


@pytest.fixture
def through_pgbouncer(pgbouncer: Any, database: Database) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": pgbouncer,
        "database": database.name,
        "user": "postgres",
        "password": database.server.password,
        "cancel_on_abandon": False,
    }


@pytest.fixture
def through_rds_proxy(database: Database) -> Iterator[Any]:
    with RdsProxy(
        database.server, auth="password", users={"postgres": database.server.password}, max_database_connections=2
    ) as proxy:
        yield {
            "host": proxy.host,
            "port": proxy.port,
            "database": database.name,
            "user": "postgres",
            "password": database.server.password,
            "ssl_context": ssl.create_default_context(cafile=proxy.ca_file),
            "cancel_on_abandon": False,
        }
        assert proxy.counters.unnamed_statement_outlived == 0
        assert set(proxy.counters.pinned) <= {"DECLARE"}, "only a cursor that the test declares may pin"


def hammer(address: dict[str, Any], database: Database) -> Any:
    """Let eight threads ask for their own numbers in every way, with errors in between; return what went wrong."""
    database.execute("CREATE TABLE moved (thread int, number int)")
    engine = create_engine("postgresql+plungepool://", connect_args=address, pool_size=THREADS, max_overflow=0)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    wrong, done = [], []

    def one(connection: wire.Connection, thread: int, number: int) -> None:
        # Three shapes, so that an unnamed statement that belongs to somebody else would give another kind of row.
        kind = random.randrange(3)
        if kind == 0:
            row = connection.execute(text("SELECT :a ::int, :b ::text"), {"a": number, "b": f"{thread}"}).one()
            expected = (number, f"{thread}")
        elif kind == 1:
            row = connection.execute(text("SELECT :b ::text"), {"b": f"{thread}/{number}"}).one()
            expected = (f"{thread}/{number}",)
        else:
            row = connection.execute(text(f"SELECT {thread}, {number}, 'plain'")).one()
            expected = (thread, number, "plain")
        done.append(1)
        if tuple(row) != expected:
            wrong.append((row, expected))

    def fail(connection: wire.Connection, thread: int) -> None:
        # the values are wrong only at run time, so that Bind or Execute fails
        with pytest.raises(sqlalchemy.exc.DBAPIError, match="division by zero"):
            connection.execute(text("SELECT :a ::int / :b ::int"), {"a": thread, "b": 0})

    def work(thread: int) -> None:
        try:
            for round_ in range(ROUNDS):
                number = thread * 1000 + round_
                with autocommit.connect() as connection:
                    for _ in range(8):
                        one(connection, thread, number)
                    if round_ % 7 == thread % 7:
                        fail(connection, thread)
                    one(connection, thread, number)
                with engine.begin() as connection:
                    connection.execute(text("INSERT INTO moved VALUES (:t, :n)"), [{"t": thread, "n": number}] * 5)
                    one(connection, thread, number)
                with contextlib.suppress(sqlalchemy.exc.DBAPIError), engine.begin() as connection:
                    connection.execute(text("INSERT INTO moved VALUES (:t, -1)"), {"t": thread})
                    if round_ % 5 == thread % 5:
                        connection.execute(text("SELECT 1 / :z ::int"), {"z": 0})
                    connection.rollback()
                options = {"isolation_level": "SERIALIZABLE", "postgresql_readonly": True}
                with engine.connect().execution_options(**options) as connection:
                    seen = connection.execute(
                        text(
                            "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
                        )
                    ).one()
                    if tuple(seen) != ("serializable", "on"):
                        wrong.append(seen)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    assert len(done) == THREADS * ROUNDS * 10 or wrong
    assert database.execute("SELECT count(*), min(number) >= 0 FROM moved") == [[THREADS * ROUNDS * 5, True]]
    return wrong


def state(address: dict[str, Any]) -> Any:
    """What is left on each of the pooler's two connections: settings that were changed, and named statements."""
    left = []
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(wire.connect(**address))
            cursor = connection.cursor()
            cursor.execute("SELECT pg_backend_pid()")  # holds the connection until the end of the transaction
            cursor.execute(
                "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> 'application_name'"
            )
            left += cursor.fetchall()
            cursor.execute("SELECT name, statement FROM pg_prepared_statements")
            left += cursor.fetchall()
    return left


@pytest.mark.parametrize("pooler", ["through_pgbouncer", "through_rds_proxy"])
def test_every_row_is_its_own(request: pytest.FixtureRequest, database: Database, pooler: str) -> None:
    """Thousands of statements of eight threads over two connections of the server: none wrong, nothing left behind."""
    address = request.getfixturevalue(pooler)
    assert hammer(address, database) == []
    allowed = {"client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"}  # what poolers set themselves
    assert [entry for entry in state(address) if entry[0] not in allowed] == []


@pytest.mark.parametrize("pooler", ["through_pgbouncer", "through_rds_proxy"])
def test_everyday_statements_work(request: pytest.FixtureRequest, database: Database, pooler: str) -> None:
    """DDL, batches, COPY, savepoints, a declared cursor and many statements in one text."""
    address = request.getfixturevalue(pooler)
    engine = create_engine("postgresql+plungepool://", connect_args=address)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE things (id int)"))
        connection.execute(text("INSERT INTO things VALUES (:i)"), [{"i": i} for i in range(2500)])
        with connection.begin_nested() as savepoint:
            connection.execute(text("DELETE FROM things"))
            savepoint.rollback()
        cursor = connection.connection.cursor()
        cursor.execute("COPY things FROM STDIN", stream=["7000\n", "7001\n"])
        result = connection.execute(text("SELECT id FROM things ORDER BY id").execution_options(yield_per=1000))
        assert [len(part) for part in result.partitions(1000)] == [1000, 1000, 502]
        assert connection.exec_driver_sql("SELECT 1; SELECT 2").scalar_one() == 2
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.execute(text("SELECT count(*) FROM things")).scalar_one() == 2502
        with pytest.raises(sqlalchemy.exc.ProgrammingError, match="stream"):
            connection.exec_driver_sql("COPY things FROM STDIN")
        assert connection.execute(text("SELECT count(*) FROM things")).scalar_one() == 2502
    engine.dispose()
