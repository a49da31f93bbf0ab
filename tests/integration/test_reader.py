"""The engine of a reader, PLUNGEPOOL_ACCESS=read-only: nothing is written by it, at no round trip more."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import poolers
import pytest
from cluster import Cluster
from sqlalchemy import Column, Integer, MetaData, Table, Text, exc, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from plungepool import (
    OutcomeUnknown,
    Settings,
    Unavailable,
    build_engine,
    guard_invocation,
    once,
    run_transaction,
    wire,
)
from plungepool.checks import check_settings
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from plungepool_toolkit.fixtures import Database

WHY = r"this engine is read-only \(READER_PLUNGEPOOL_ACCESS=read-only\)"
THINGS = Table("things", MetaData(), Column("id", Integer, primary_key=True), Column("name", Text))


class Base(DeclarativeBase):
    """What the ORM writes."""


class Thing(Base):
    """A row of the table."""

    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


@pytest.fixture
def things(database: Database) -> Database:
    """A table of two rows, a sequence, and functions that write."""
    database.execute(
        "CREATE TABLE things (id int PRIMARY KEY, name text); INSERT INTO things VALUES (1, 'goggles'), (2, 'towel');"
        "CREATE SEQUENCE numbers;"
        "CREATE FUNCTION sneak() RETURNS void LANGUAGE sql AS $$ INSERT INTO things VALUES (9) $$;"
        "CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; INSERT INTO things VALUES (9); END $$"
    )
    return database


@pytest.fixture
def make(things: Database) -> Iterator[Callable[..., Engine]]:
    """Build engines of a reader, or with access="read-write" of a writer."""
    engines: list[Engine] = []

    def build(**settings: Any) -> Engine:
        base = {
            "host": things.server.host,
            "port": things.server.port,
            "database": things.name,
            "user": "postgres",
            "password": things.server.password or "unused",
            "tls": "disable",
            "access": "read-only",
            "prefix": "READER_",
        }
        engines.append(build_engine(Settings(**(base | settings))))
        return engines[-1]

    yield build
    for engine in engines:
        engine.dispose()


@pytest.fixture(params=["transaction", "AUTOCOMMIT"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """In a transaction, and statement by statement."""
    return {"isolation_level": "AUTOCOMMIT"} if request.param == "AUTOCOMMIT" else {}


def copy_in(connection: Connection) -> None:
    """A COPY by the driver's cursor."""
    cursor: Any = connection.connection.cursor()
    cursor.execute("COPY things FROM STDIN", stream=io.StringIO("3\tcap\n"))


WRITES: dict[str, Callable[[Connection], Any]] = {
    "insert": lambda c: c.execute(insert(THINGS), {"id": 3}),
    "many": lambda c: c.execute(insert(THINGS), [{"id": 3, "name": None}, {"id": 4, "name": "fins"}]),
    "returning": lambda c: c.execute(insert(THINGS).returning(THINGS.c.id), [{"id": 3}, {"id": 4}]),
    "update": lambda c: c.execute(text("UPDATE things SET name = :name"), {"name": "x"}),
    "with": lambda c: c.execute(text("WITH x AS (DELETE FROM things RETURNING id) SELECT * FROM x")),
    "merge": lambda c: c.execute(
        text("MERGE INTO things t USING (SELECT 3 AS id) s ON t.id = s.id WHEN NOT MATCHED THEN INSERT (id) VALUES (3)")
    ),
    "create": lambda c: c.execute(text("CREATE TABLE others (id int)")),
    "truncate": lambda c: c.execute(text("TRUNCATE things")),
    "lock rows": lambda c: c.execute(text("SELECT * FROM things FOR UPDATE")),
    "sequence": lambda c: c.execute(text("SELECT nextval('numbers')")),
    "function": lambda c: c.execute(text("SELECT sneak()")),
    "driver": lambda c: c.exec_driver_sql("INSERT INTO things VALUES ($1)", (3,)),
    "copy": copy_in,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_is_refused(
    make: Callable[..., Engine], things: Database, write: Callable[[Connection], Any], options: dict[str, Any]
) -> None:
    """Whatever it is and however it is sent, by an error that says which engine it was; the engine goes on reading."""
    engine = make(checkout_timeout_s=0.2)
    with engine.connect().execution_options(**options) as connection:
        with pytest.raises((exc.DBAPIError, wire.Error), match=WHY) as caught:
            write(connection)
        error: Any = getattr(caught.value, "orig", caught.value)
        assert (error.sqlstate, error.disconnected) == ("25006", False)
        assert not isinstance(caught.value, Unavailable)
        connection.rollback()
        connection.connection.rollback()  # SQLAlchemy has not seen what went by a cursor of the driver's
        assert connection.execute(select(THINGS.c.id)).scalars().all() == [1, 2]
    assert things.execute("SELECT id, name FROM things ORDER BY id") == [[1, "goggles"], [2, "towel"]]


def test_the_orm_writes_nothing(make: Callable[..., Engine], things: Database) -> None:
    """A flush is refused as any other statement."""
    with Session(make()) as session:
        assert session.get_one(Thing, 1).name == "goggles"
        session.add(Thing(id=3))
        with pytest.raises(exc.DBAPIError, match=WHY):
            session.commit()
    assert things.execute("SELECT count(*) FROM things") == [[2]]


READS: dict[str, tuple[Callable[[Connection], Any], Any]] = {
    "rows": (
        lambda c: c.execute(text("SELECT id, name FROM things ORDER BY id")).all(),
        [(1, "goggles"), (2, "towel")],
    ),
    "a parameter": (lambda c: c.execute(text("SELECT name FROM things WHERE id = :id"), {"id": 2}).scalar(), "towel"),
    "nothing": (lambda c: c.execute(text("SELECT id FROM things WHERE false")).all(), []),
    "many rows": (lambda c: sum(c.execute(text("SELECT generate_series(1, 5000)")).scalars()), 12502500),
    "show": (lambda c: c.execute(text("SHOW transaction_read_only")).scalar(), "on"),
    "explain": (lambda c: bool(c.execute(text("EXPLAIN SELECT 1")).all()), True),
    "no row": (lambda c: c.execute(text("DO $$ BEGIN PERFORM 1; END $$")).returns_rows, False),
    "a semicolon": (lambda c: c.exec_driver_sql("SELECT 'a; COMMIT; INSERT'").scalar(), "a; COMMIT; INSERT"),
    "a large value": (lambda c: len(c.execute(text("SELECT repeat('x', 5000000)")).scalar_one()), 5_000_000),
    "an empty text": (lambda c: c.exec_driver_sql("").returns_rows, False),
}


@pytest.mark.parametrize(("read", "expected"), READS.values(), ids=READS)
def test_reading_costs_what_it_costs_a_writer(
    make: Callable[..., Engine], read: Callable[[Connection], Any], expected: Any, options: dict[str, Any]
) -> None:
    """The same answer in as many round trips, transaction or not, with a deadline for the server and without."""
    flights = []
    for access in ("read-only", "read-write"):
        engine = make(access=access)
        for guarded in (False, True):
            with guard_invocation(Context() if guarded else None), engine.connect() as connection:
                connection.execution_options(**options)
                wired: Any = connection.connection.dbapi_connection
                before = wired.flights
                found = read(connection)
                assert found == expected or access == "read-write"
                assert wired.in_transaction is (not options)
            flights.append(wired.flights - before)
    assert flights == [1 if options else 2] * 4


class Context:
    """Lambda's, with a minute left."""

    aws_request_id = "1"

    def get_remaining_time_in_millis(self) -> int:
        """In whole milliseconds."""
        return 60_000


def test_copy_out_and_cursors_on_the_server(make: Callable[..., Engine]) -> None:
    """What streams, streams."""
    engine = make()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        target = io.StringIO()
        cursor: Any = connection.connection.cursor()
        cursor.execute("COPY (SELECT id FROM things ORDER BY id) TO STDOUT", stream=target)
        assert target.getvalue() == "1\n2\n"
        with pytest.raises(exc.DBAPIError, match="transaction"):
            connection.execution_options(yield_per=1).execute(select(THINGS.c.id)).all()
    with engine.connect() as connection:
        assert connection.execution_options(yield_per=1).execute(select(THINGS.c.id)).scalars().all() == [1, 2]


def test_the_deadline_and_the_settings_of_a_transaction_go_along(make: Callable[..., Engine]) -> None:
    """In AUTOCOMMIT, too: told in the statement's own flight, and gone with it."""
    engine = make()
    shown = text("SELECT current_setting('app.tenant_id', true), current_setting('transaction_timeout') <> '0'")
    with guard_invocation(Context()), engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT", plungepool_settings={"app.tenant_id": "42"})
        assert connection.execute(shown).one() == ("42", True)
        assert connection.execute(text("SHOW app.tenant_id")).scalar_one() == "42"
    with engine.connect() as connection:
        assert connection.execute(shown).one() in [("", False), (None, False)]


@pytest.mark.parametrize("value", [False, 0, None], ids=repr)
def test_no_option_lifts_it(make: Callable[..., Engine], value: Any) -> None:
    """Not of the engine, the connection or the session; and what was asked for beside it is not set either."""
    engine = make()
    asked = {"isolation_level": "AUTOCOMMIT", "postgresql_readonly": value}
    with pytest.raises(exc.ArgumentError, match=WHY):
        engine.execution_options(**asked)
    with engine.connect() as connection, pytest.raises(exc.ArgumentError, match=WHY):
        connection.execution_options(**asked)
    with Session(engine) as session, pytest.raises(exc.ArgumentError, match=WHY):
        session.connection(execution_options=asked)
    with engine.connect() as connection:
        wired: Any = connection.connection.dbapi_connection
        assert (wired.autocommit, wired.readonly) == (False, True)
        with pytest.raises(wire.ProgrammingError, match=WHY):
            wired.readonly = value if value is not None else False
        wired.readonly = None
        assert wired.readonly is True


def test_asking_for_what_is_so_changes_nothing(make: Callable[..., Engine]) -> None:
    """READ ONLY may be asked for, and is not taken away when the connection is returned."""
    engine = make()
    for _ in range(2):
        with engine.connect().execution_options(postgresql_readonly=True) as connection:
            assert connection.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
    with engine.connect() as connection, pytest.raises(exc.DBAPIError, match=WHY):
        connection.execute(insert(THINGS), {"id": 3})


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT; INSERT INTO things VALUES (9)",
        "SELECT 1; COMMIT; INSERT INTO things VALUES (9)",
        "BEGIN READ WRITE; INSERT INTO things VALUES (9); COMMIT",
        "CALL commits()",
        "SET default_transaction_read_only = off; INSERT INTO things VALUES (9)",
    ],
)
def test_no_text_leads_out_of_it(
    make: Callable[..., Engine], things: Database, statement: str, options: dict[str, Any]
) -> None:
    """Texts that end the transaction and go on, and procedures that do, are refused; nothing is written."""
    engine = make()
    for _ in range(2):
        with engine.connect().execution_options(**options) as connection:
            with pytest.raises(exc.DBAPIError):
                connection.exec_driver_sql(statement)
            connection.rollback()
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
    assert things.execute("SELECT count(*) FROM things") == [[2]]


@pytest.mark.parametrize("statement", ["BEGIN", "/* a */ start transaction read write"])
def test_a_text_begins_no_transaction_in_autocommit(
    make: Callable[..., Engine], things: Database, statement: str
) -> None:
    """It would be over at once, and what follows would not be in it: nothing is sent."""
    with make().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wired: Any = connection.connection.dbapi_connection
        before = wired.flights
        with pytest.raises(exc.ProgrammingError, match=f"{WHY}, and begins its transactions automatically"):
            connection.exec_driver_sql(statement)
        assert wired.flights == before


def test_a_text_of_several_statements_is_refused(make: Callable[..., Engine], options: dict[str, Any]) -> None:
    """One of them could end the transaction; the error says why it is none here."""
    with make().connect().execution_options(**options) as connection:
        with pytest.raises(exc.ProgrammingError, match=f"{WHY} a string may contain only one statement"):
            connection.exec_driver_sql("SELECT 1; SELECT 2")


@pytest.mark.parametrize("statement", ["VACUUM things", "CREATE DATABASE others", "REINDEX TABLE CONCURRENTLY things"])
def test_what_stands_in_no_transaction_is_refused(make: Callable[..., Engine], statement: str) -> None:
    """In AUTOCOMMIT, where a writer's engine takes it: each statement of a reader has a transaction around it."""
    with make().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(exc.DBAPIError, match="transaction"):
            connection.execute(text(statement))
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_an_exception_behind_an_error_leaves_nothing_failed(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler's, before the failed statement's transaction was rolled back: the next statement sees to it."""
    engine = make()

    def strike(_: Any) -> None:
        raise LookupError

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        raw: Any = connection.connection.dbapi_connection
        cursor = raw.cursor()
        with monkeypatch.context() as patch:
            patch.setattr(wire.Connection, "_end_reading", strike)
            patch.setattr(wire.Connection, "_refuse_to_begin", lambda *_: None)
            with pytest.raises(LookupError):
                cursor.execute("SELECT 1/0")
        assert raw.in_failed_transaction
        assert cursor.execute("SELECT 1").fetchall() == [(1,)]
        assert not raw.in_transaction


def test_nothing_of_it_is_left_on_the_server_behind_a_pooler(make: Callable[..., Engine], things: Database) -> None:
    """A writer and a reader share one connection of PgBouncer's to the server, in turns: each is what it is."""
    users = {"postgres": things.server.password}
    with poolers.pgbouncer(things.server, users=users, default_pool_size=1) as port:
        at = {"host": "127.0.0.1", "port": port, "endpoint": "proxy"}
        reader, writer = make(**at), make(**at, access="read-write")
        for number in range(10, 20):
            for options in ({}, {"isolation_level": "AUTOCOMMIT"}):
                with reader.connect().execution_options(**options) as connection:
                    assert connection.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
                    with pytest.raises(exc.DBAPIError, match=WHY):
                        connection.execute(insert(THINGS), {"id": number})
                with writer.connect().execution_options(**options) as connection:
                    assert connection.execute(text("SHOW transaction_read_only")).scalar_one() == "off"
            with writer.begin() as connection:
                connection.execute(insert(THINGS), {"id": number})
    assert things.execute("SELECT count(*) FROM things") == [[12]]


def test_it_pins_nothing(make: Callable[..., Engine], things: Database, options: dict[str, Any]) -> None:
    """Behind RDS Proxy: BEGIN READ ONLY is no SET, and after an error no connection to the database is kept."""
    users = {"postgres": things.server.password}
    with RdsProxy(things.server, auth="password", users=users, max_database_connections=1) as proxy:
        engine = make(host=proxy.host, port=proxy.port, endpoint="proxy", tls="verify-full", ca_file=str(proxy.ca_file))
        with engine.connect().execution_options(**options) as connection:
            assert connection.execute(text("SELECT count(*) FROM things")).scalar_one() == 2
            with pytest.raises(exc.DBAPIError, match=WHY):
                connection.execute(insert(THINGS), {"id": 3})
            connection.rollback()
            assert connection.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
            assert proxy.counters.pinned == {}


def test_run_transaction_reads(make: Callable[..., Engine]) -> None:
    """By a connection and by a session."""
    engine = make()

    def count(connection: Any) -> int:
        number: int = connection.execute(text("SELECT count(*) FROM things")).scalar_one()
        return number

    assert run_transaction(engine, count) == run_transaction(sessionmaker(engine), count) == 2
    assert run_transaction(engine, count, isolation_level="REPEATABLE READ") == 2


def test_a_write_is_not_tried_again(make: Callable[..., Engine]) -> None:
    """It is no writer that has moved: the next attempt would be refused as well; `once` is a write."""
    calls = []

    def write(connection: Connection) -> None:
        calls.append(connection)
        if len(calls) == 1:
            connection.execute(insert(THINGS), {"id": 3})
        once(connection, "key")

    for _ in range(2):
        with pytest.raises(exc.DBAPIError, match=f"{WHY}|once_keys"):
            run_transaction(make(), write)
    assert len(calls) == 2


def test_a_reading_transaction_has_no_unknown_outcome(make: Callable[..., Engine], things: Database) -> None:
    """Where COMMIT's answer is lost nothing was to be kept, so it runs again; a writer's does not."""
    with ChaosProxy(things.server.host, things.server.port) as network:
        for access, expected in (("read-only", 2), ("read-write", 1)):
            engine = make(host=network.host, port=network.port, access=access)
            calls = []

            def read(connection: Connection, calls: list[Any] = calls) -> None:
                calls.append(connection.execute(text("SELECT count(*) FROM things")).scalar_one())
                if len(calls) == 1:
                    network.cut_after(from_server=1)

            if access == "read-only":
                run_transaction(engine, read)
            else:
                with pytest.raises(OutcomeUnknown):
                    run_transaction(engine, read)
            assert calls == [2] * expected


def test_a_standby() -> None:
    """A reader's engine reads there and stays; a writer's is told so by the doctor before its first write fails."""
    with Cluster() as cluster:
        assert cluster.standby is not None
        cluster.primary.execute("CREATE ROLE reader LOGIN PASSWORD 'a word'")
        at: dict[str, Any] = {"host": cluster.standby.host, "port": cluster.standby.port, "user": "reader"}
        settings = Settings(**at, password="a word", tls="disable", access="read-only")
        engine = build_engine(settings)
        try:
            for options in ({}, {"isolation_level": "AUTOCOMMIT"}):
                with engine.connect().execution_options(**options) as connection:
                    assert connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one()
                    with pytest.raises(exc.DBAPIError, match=r"read-only \(PLUNGEPOOL_ACCESS=read-only\)") as caught:
                        connection.execute(text("CREATE TABLE t (n int)"))
                    assert not caught.value.connection_invalidated
            assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
        finally:
            engine.dispose()
        ours = {check.name: check for check in check_settings(settings)}
        assert "access" not in ours
        assert "a read-only replica" in ours["server"].found
        writer = Settings(**at, password="a word", tls="disable", prefix="SHOP_")
        access = {check.name: check for check in check_settings(writer)}["access"]
        assert access.state == "warning"
        assert access.found == "the server is read-only, but SHOP_PLUNGEPOOL_ACCESS is read-write"
        assert "SHOP_PLUNGEPOOL_HOST" in access.cure
