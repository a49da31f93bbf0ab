"""Settings that a transaction has for itself: the tenant, by row-level security, and nothing of it left anywhere."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from elsewhere import wait_until
from poolers import pgbouncer
from sqlalchemy import Text, event, exc, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column, sessionmaker

from plungepool import (
    PinningRefused,
    PlungepoolError,
    Settings,
    SettingsError,
    SettingsMissing,
    Unavailable,
    build_engine,
    checks,
    dispose_engine,
    get_engine,
    guard_invocation,
    once,
    run_transaction,
    wire,
)
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from plungepool_toolkit.rds_proxy import RdsProxy

BEFORE_17 = Path("/usr/lib/postgresql/15/bin")
TENANT = text("SELECT nullif(current_setting('app.tenant_id', true), '')")
COUNT = text("SELECT count(*) FROM pages")
TABLES = """
    CREATE ROLE reader LOGIN; CREATE ROLE other LOGIN; GRANT other TO reader;
    CREATE TABLE pages (tenant_id text NOT NULL, body text);
    ALTER TABLE pages ENABLE ROW LEVEL SECURITY; ALTER TABLE pages FORCE ROW LEVEL SECURITY;
    CREATE POLICY of_tenant ON pages USING (tenant_id = nullif(current_setting('app.tenant_id', true), ''));
    GRANT ALL ON pages TO reader, other;
    INSERT INTO pages SELECT t, t || ' ' || n FROM unnest(ARRAY['1', '2']) t, generate_series(1, 3) n
"""


@pytest.fixture(scope="module", params=["18", "15"])
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server with a table of two tenants, and a role that the table's policy holds for."""
    with Postgres(
        {"max_connections": 60, "max_prepared_transactions": 5},
        binaries=BEFORE_17 if request.param == "15" else None,
    ) as server:
        for statement in TABLES.split(";"):
            server.execute(statement)
        yield server


@pytest.fixture
def make(server: Postgres) -> Iterator[Callable[..., Engine]]:
    """Build engines of the role on the server."""
    engines: list[Engine] = []

    def build(options: dict[str, Any] | None = None, **settings: Any) -> Engine:
        base = {"host": server.host, "port": server.port, "user": "reader", "password": "unused", "tls": "disable"}
        engines.append(build_engine(Settings(**(base | settings)), **(options or {})))
        return engines[-1]

    yield build
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(make: Callable[..., Engine]) -> Engine:
    """An engine with one connection."""
    return make(checkout_timeout_s=1)


def of(tenant: str) -> dict[str, Any]:
    """The options of a tenant's engine, connection or session."""
    return {"plungepool_settings": {"app.tenant_id": tenant}}


def driver(connection: Connection) -> Any:
    """The driver's connection."""
    return connection.connection.dbapi_connection


def assert_clean(engine: Engine) -> None:
    """The next checkout, on the same connection of the server, has no tenant and sees no row."""
    with engine.connect() as connection:
        assert driver(connection).transaction_settings == {}
        assert connection.execute(TENANT).scalar_one() is None
        assert connection.execute(COUNT).scalar_one() == 0


class Base(DeclarativeBase):
    """Of the mapped class."""


class Page(Base):
    """A row of a tenant."""

    __tablename__ = "pages"
    body = mapped_column(Text, primary_key=True)
    tenant_id = mapped_column(Text)


def by_engine(engine: Engine, tenant: str) -> set[str]:
    with engine.execution_options(**of(tenant)).begin() as connection:
        return set(connection.execute(text("SELECT tenant_id FROM pages")).scalars())


def by_connection(engine: Engine, tenant: str) -> set[str]:
    with engine.connect().execution_options(**of(tenant)) as connection:
        return set(connection.execute(text("SELECT tenant_id FROM pages")).scalars())


def by_autocommit(engine: Engine, tenant: str) -> set[str]:
    options = of(tenant) | {"isolation_level": "AUTOCOMMIT"}
    with engine.connect().execution_options(**options) as connection:
        return set(connection.execute(text("SELECT tenant_id FROM pages")).scalars())


def by_session_connection(engine: Engine, tenant: str) -> set[str]:
    with Session(engine) as session, session.begin():
        session.connection(execution_options=of(tenant))
        return set(session.scalars(select(Page.tenant_id)))


def by_session_of_engine(engine: Engine, tenant: str) -> set[str]:
    with Session(engine.execution_options(**of(tenant))) as session:
        return {page.tenant_id for page in session.scalars(select(Page))}


def by_session_options(engine: Engine, tenant: str) -> set[str]:
    with Session(engine, execution_options=of(tenant)) as session:
        return {page.tenant_id for page in session.scalars(select(Page))}


def by_run_transaction(engine: Engine, tenant: str) -> set[str]:
    return run_transaction(
        engine.execution_options(**of(tenant)),
        lambda connection: set(connection.execute(text("SELECT tenant_id FROM pages")).scalars()),
        isolation_level="SERIALIZABLE",
    )


def by_run_transaction_of_sessions(engine: Engine, tenant: str) -> set[str]:
    return run_transaction(
        sessionmaker(engine.execution_options(**of(tenant))),
        lambda session: set(session.scalars(select(Page.tenant_id))),
    )


def by_cursor(engine: Engine, tenant: str) -> set[str]:
    with engine.execution_options(**of(tenant)).connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute("SELECT DISTINCT tenant_id FROM pages")
        return {row[0] for row in cursor.fetchall()}


def by_raw_connection(engine: Engine, tenant: str) -> set[str]:
    raw = engine.execution_options(**of(tenant)).raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute("SELECT DISTINCT tenant_id FROM pages")
        return {row[0] for row in cursor.fetchall()}
    finally:
        raw.close()


def by_stream(engine: Engine, tenant: str) -> set[str]:
    with engine.execution_options(**of(tenant)).connect() as connection:
        rows = connection.execution_options(yield_per=2).execute(text("SELECT tenant_id FROM pages")).scalars()
        return set(rows)


def by_copy(engine: Engine, tenant: str) -> set[str]:
    with engine.execution_options(**of(tenant)).connect() as connection:
        target = io.StringIO()
        driver(connection).cursor().execute("COPY (SELECT tenant_id FROM pages) TO STDOUT", stream=target)
        return set(target.getvalue().split())


def by_copy_in_autocommit(engine: Engine, tenant: str) -> set[str]:
    options = of(tenant) | {"isolation_level": "AUTOCOMMIT"}
    with engine.execution_options(**options).connect() as connection:
        target = io.StringIO()
        driver(connection).cursor().execute("/* a; b */ COPY (TABLE pages) TO STDOUT;", stream=target)
        return {line[0] for line in target.getvalue().splitlines()}


def by_two_phases(engine: Engine, tenant: str) -> set[str]:
    with engine.execution_options(**of(tenant)).connect() as connection:
        transaction = connection.begin_twophase()
        seen = set(connection.execute(text("SELECT tenant_id FROM pages")).scalars())
        transaction.prepare()
        transaction.commit()
        return seen


# Session(execution_options=…) is SQLAlchemy 2.1's.
SINCE_2_1 = [] if sqlalchemy.__version__.startswith("2.0.") else [by_session_options]
WAYS = [
    by_engine, by_connection, by_autocommit, by_session_connection, by_session_of_engine, *SINCE_2_1,
    by_run_transaction, by_run_transaction_of_sessions, by_cursor, by_raw_connection, by_stream, by_copy,
    by_copy_in_autocommit, by_two_phases,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_transaction_has_its_tenant_and_the_next_has_none(
    engine: Engine, way: Callable[[Engine, str], set[str]]
) -> None:
    """Wherever it is given: two tenants in turn on one connection see their own rows, and who has none sees none."""
    for tenant in ("1", "2", "1"):
        assert way(engine, tenant) == {tenant}
        assert_clean(engine)


def test_an_invocation_with_a_deadline_has_it_too(engine: Engine) -> None:
    """The deadline's limit and the tenant are told by one statement."""

    class Context:
        aws_request_id = "1"

        def get_remaining_time_in_millis(self) -> int:
            return 60_000

    timeouts = text(
        "SELECT count(*) FROM pg_settings WHERE setting::int > 0 "
        "AND name IN ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')"
    )
    for way in WAYS:
        with guard_invocation(Context()):
            assert way(engine, "2") == {"2"}
    with guard_invocation(Context()), engine.execution_options(**of("1")).connect() as connection:
        assert connection.execute(COUNT).scalar_one() == 3
        assert connection.execute(timeouts).scalar_one() in (1, 2)
    assert_clean(engine)


def test_options_of_a_connection_replace_those_of_the_engine(engine: Engine) -> None:
    """As SQLAlchemy's do: all of them, and an empty dictionary takes them away."""
    first = engine.execution_options(plungepool_settings={"app.tenant_id": "1", "app.user": "ann"})
    user = text("SELECT nullif(current_setting('app.user', true), '')")
    with first.connect() as connection:
        assert (connection.execute(TENANT).scalar(), connection.execute(user).scalar()) == ("1", "ann")
        connection.commit()
        connection.execution_options(**of("2"))
        assert (connection.execute(TENANT).scalar(), connection.execute(user).scalar()) == ("2", None)
        connection.commit()
        connection.execution_options(plungepool_settings={})
        assert connection.execute(TENANT).scalar() is None
    with first.execution_options(**of("2")).connect() as connection:
        assert (connection.execute(TENANT).scalar(), connection.execute(user).scalar()) == ("2", None)
    with first.connect() as connection:
        assert (connection.execute(TENANT).scalar(), connection.execute(user).scalar()) == ("1", "ann")
    assert_clean(engine)


def test_the_engines_own_options(make: Callable[..., Engine]) -> None:
    """build_engine and get_engine take `execution_options`, and an engine can be given others later."""
    engine = make({"execution_options": of("1")})
    with engine.begin() as connection:
        assert connection.execute(TENANT).scalar_one() == "1"
    engine.update_execution_options(**of("2"))
    with engine.begin() as connection:
        assert connection.execute(TENANT).scalar_one() == "2"


def test_it_costs_no_round_trip(server: Postgres) -> None:
    """Counted by a proxy, on get_engine()'s engine: as many as without, in a transaction and in AUTOCOMMIT."""
    counted = []
    dispose_engine()
    with ChaosProxy(server.host, server.port, latency_ms=5) as proxy:
        settings = Settings(host=proxy.host, port=proxy.port, user="reader", password="unused", tls="disable")
        try:
            for options in ({}, of("1")):
                for level in ({}, {"isolation_level": "AUTOCOMMIT"}):
                    engine = get_engine(settings).execution_options(**options, **level)
                    for _ in range(2):
                        proxy.round_trips = 0
                        with engine.connect() as connection:
                            assert connection.execute(text("SELECT :x"), {"x": "one"}).scalar_one() == "one"
                    counted.append(proxy.round_trips)
        finally:
            dispose_engine()
    assert counted == [2, 1, 2, 1]


def fail(connection: Connection) -> None:
    with pytest.raises(exc.DBAPIError):
        connection.execute(text("SELECT 1 / 0"))


def savepoint(connection: Connection) -> None:
    """Also where it is the first statement, or an error has come first: the tenant stays the transaction's."""
    with connection.begin_nested() as nested:
        assert connection.execute(COUNT).scalar_one() == 3
        nested.rollback()
    assert connection.execute(COUNT).scalar_one() == 3
    with pytest.raises(exc.DBAPIError), connection.begin_nested():
        connection.execute(text("SELECT 1 / 0"))
    assert connection.execute(COUNT).scalar_one() == 3


def late_savepoint(connection: Connection) -> None:
    """What may have to stand before a snapshot goes first, and the tenant is there before the first row."""
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
    connection.execute(text("/* /* nested */ */ LOCK TABLE pages IN SHARE MODE"))
    savepoint(connection)
    assert connection.execute(text("SHOW transaction_isolation")).scalar_one() == "serializable"


def invalidate(connection: Connection) -> None:
    connection.execute(COUNT)
    connection.invalidate()


def commit(connection: Connection) -> None:
    connection.execute(text("INSERT INTO pages VALUES ('1', 'new')"))
    connection.execute(text("DELETE FROM pages WHERE body = 'new'"))
    connection.commit()


@pytest.mark.parametrize(
    "end", [commit, fail, savepoint, late_savepoint, invalidate, lambda connection: connection.execute(COUNT)]
)
@pytest.mark.parametrize("autocommit", [False, True], ids=["transaction", "autocommit"])
def test_nothing_is_left_however_it_ends(engine: Engine, end: Callable[[Connection], None], autocommit: bool) -> None:
    """COMMIT, an error, a rollback to a savepoint, an invalidated connection: the next checkout has no tenant."""
    if autocommit and end in (savepoint, late_savepoint):
        end = commit
    with engine.execution_options(**of("1")).connect() as connection:
        if autocommit:
            connection.execution_options(isolation_level="AUTOCOMMIT")
        end(connection)
    assert_clean(engine)


def test_a_connection_that_reconnects_keeps_its_tenant(engine: Engine, server: Postgres) -> None:
    """Within one Connection, whatever is done next: a statement, or a cursor of the driver's."""
    for options in ({}, {"isolation_level": "AUTOCOMMIT"}):
        with engine.connect().execution_options(**of("1")) as connection:
            for _ in range(2):
                assert connection.execute(COUNT).scalar_one() == 3
                pid = driver(connection).backend_pid
                server.execute("SELECT pg_terminate_backend($1)", pid)
                with pytest.raises(exc.OperationalError):
                    connection.execute(COUNT)
                connection.rollback()
                assert connection.execute(COUNT).scalar_one() == 3
                assert driver(connection).backend_pid != pid
                connection.rollback()
            connection.invalidate()
            cursor = connection.connection.cursor()
            cursor.execute("SELECT count(*) FROM pages")
            assert cursor.fetchone() == (3,)
            connection.invalidate()
            connection.execution_options(**options)
            assert connection.execute(COUNT).scalar_one() == 3
        assert_clean(engine)


def test_what_the_connection_kept_is_not_what_the_next_one_has(engine: Engine) -> None:
    """A holder that leaked: the connection is taken back, and the next invocation has none of its tenant."""
    kept = []
    with guard_invocation(None):
        connection = engine.execution_options(**of("1")).connect()
        connection.execute(COUNT)
        kept.append(connection)
    assert_clean(engine)
    with guard_invocation(None):
        engine.execution_options(**of("2")).connect().execute(COUNT)
    assert_clean(engine)
    with pytest.raises(exc.DBAPIError):
        kept[0].execute(COUNT)


@pytest.mark.parametrize("characteristic", ["all"])
def test_each_checkout_is_as_the_first(make: Callable[..., Engine], characteristic: str) -> None:
    """What the return did not undo, since something struck there, the next checkout does, or it takes a new one."""
    engine = make()
    event.listen(engine, "connect", lambda connection, record: setattr(connection, "deferrable", True))
    with engine.connect() as connection:
        wired = driver(connection)
    wired.autocommit, wired.isolation_level, wired.readonly, wired.deferrable = True, "SERIALIZABLE", True, None
    wired.transaction_settings = {"app.tenant_id": "1"}
    with engine.connect() as connection:
        assert driver(connection) is wired
        assert (wired.autocommit, wired.isolation_level, wired.readonly, wired.deferrable) == (False, None, None, True)
        assert wired.transaction_settings == {}
        assert connection.execute(TENANT).scalar_one() is None
        shown = [connection.execute(text(f"SHOW transaction_{name}")).scalar() for name in ("read_only", "isolation")]
        assert shown == ["off", "read committed"]
    wired.transaction_settings = {"app.tenant_id": "1"}
    wired.cursor().execute("SELECT 1")
    with engine.connect() as connection:
        assert driver(connection) is not wired
        assert connection.execute(TENANT).scalar_one() is None


@pytest.mark.parametrize(
    "name",
    [
        "session_authorization", "client_encoding", "DateStyle", "default_transaction_read_only", "row_security",
        "tenant", "app.", ".id", "app..id", "app.tenant id", "app.x', 'y', true) --", 'app."x"', "app.é", "1a.b", "",
        5, None,
    ],
)  # fmt: skip
def test_a_name_that_may_not_be_set_is_refused_where_it_is_given(engine: Engine, name: Any) -> None:
    """By engine and connection alike, and no value is told."""
    options: dict[str, Any] = {"plungepool_settings": {name: "unmistakable"}}
    for give in (engine.execution_options, engine.connect().execution_options):
        with pytest.raises(exc.ArgumentError, match="setting") as caught:
            give(**options)
        assert "unmistakable" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [None, "app.tenant_id", [("app.tenant_id", "1")], {"app.tenant_id": 42}, {"app.tenant_id": None}, {"app.x": "a\0b"},
     {"app.x": "\ud800"}, {"app.x": "1", "App.X": "2"}],
)  # fmt: skip
def test_what_is_no_text_is_refused(engine: Engine, settings: Any) -> None:
    """A value that is not there, a number, half a character: a clear error where it is given."""
    with pytest.raises(exc.ArgumentError, match=r"plungepool_settings: (settings of a transaction|the setting [Aa]pp)"):
        engine.execution_options(plungepool_settings=settings)


def test_names_and_values_of_other_classes_are_what_they_hold(engine: Engine) -> None:
    """A subclass of str cannot say one thing to the check and another to the server."""

    class Sly(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "2"

        def __format__(self, spec: str) -> str:
            return "x', 'y', true) --"

        def encode(self, *_: Any) -> bytes:  # type: ignore[override]
            return b"2"

    with engine.connect().execution_options(plungepool_settings={Sly("app.tenant_id"): Sly("1")}) as connection:
        assert connection.execute(TENANT).scalar_one() == "1"


@pytest.mark.parametrize("value", ["1", "'; DROP TABLE pages; --", "\\', true) --", "$1", "é\n\t", "x" * 100_000])
def test_a_value_is_bound_and_never_written_out(engine: Engine, value: str) -> None:
    """Whatever it holds, it is the value."""
    with engine.connect().execution_options(**of(value)) as connection:
        assert connection.execute(TENANT).scalar_one() == value
        assert connection.execute(text("SELECT to_regclass('pages') IS NOT NULL")).scalar_one()


def test_no_error_shows_a_value(engine: Engine) -> None:
    """Neither of the exchange that it is sent with, nor of a later statement that quotes it."""
    for name, value in (("role", "unmistakable"), ("work_mem", "unmistakable"), ("app.tenant_id", "unmistakable")):
        with engine.connect().execution_options(plungepool_settings={name: value}) as connection:
            with pytest.raises(exc.DBAPIError) as caught:
                connection.execute(text("SELECT 1"))
                connection.execute(text("SELECT current_setting('app.tenant_id')::int"))
            assert "unmistakable" not in str(caught.value)
            connection.rollback()
            if name == "app.tenant_id":
                connection.execute(text("SELECT 1"))
                with pytest.raises(exc.DBAPIError) as caught:
                    connection.execute(text("DO $$ BEGIN RAISE 'not %', current_setting('app.tenant_id'); END $$"))
                assert "unmistakable" not in str(caught.value)
    assert_clean(engine)


def test_option_of_a_statement_is_refused_by_name(engine: Engine) -> None:
    """It would be ignored, silently: in execute(), on the statement, in a session; also beside a connection's own."""
    for settings in ({}, of("1")):
        with engine.connect().execution_options(**settings) as connection:
            for execute in (
                lambda: connection.execute(COUNT, execution_options=of("2")),
                lambda: connection.execute(COUNT.execution_options(**of("2"))),
                lambda: connection.exec_driver_sql("SELECT 1", execution_options=of("2")),
                lambda: Session(connection).execute(select(Page), execution_options=of("2")),
                lambda: Session(connection).execute(select(Page).execution_options(**of("2"))),
            ):
                with pytest.raises(
                    exc.InvalidRequestError, match="plungepool_settings is not an option of a statement"
                ):
                    execute()
                assert connection.execute(COUNT).scalar_one() == (3 if settings else 0)
    assert_clean(engine)


def test_changing_it_within_a_transaction_is_refused(engine: Engine) -> None:
    """By SQLAlchemy where it knows; and what the options say and what the transaction has are never two things."""
    with engine.connect().execution_options(**of("1")) as connection:
        assert connection.execute(COUNT).scalar_one() == 3
        with pytest.raises(exc.InvalidRequestError, match="plungepool_settings may not be altered"):
            connection.execution_options(**of("2"))
        with pytest.raises(exc.InvalidRequestError, match="changed within a transaction"):
            connection.execute(COUNT)
        with pytest.raises(wire.ProgrammingError, match="transaction_settings cannot change inside a transaction"):
            driver(connection).transaction_settings = {}
        connection.rollback()
        assert connection.execute(TENANT).scalar_one() == "2"
    settings = {"app.tenant_id": "1"}
    with engine.connect().execution_options(plungepool_settings=settings) as connection:
        assert connection.execute(TENANT).scalar_one() == "1"
        settings["app.tenant_id"] = "2"
        with pytest.raises(exc.InvalidRequestError, match="changed within a transaction"):
            connection.execute(TENANT)
        connection.rollback()
        assert connection.execute(TENANT).scalar_one() == "2"
    assert_clean(engine)


@pytest.mark.parametrize(
    "statement",
    ["VACUUM", "CALL commits()", "DO $$ BEGIN COMMIT; END $$", "CREATE DATABASE nowhere", "BEGIN", "START TRANSACTION",
     "SET app.tenant_id = '2'", "CREATE TABLE t ()", "/* SELECT */ VACUUM", "PREPARE p AS SELECT 1", ""],
)  # fmt: skip
def test_what_cannot_carry_it_is_refused_in_autocommit(engine: Engine, statement: str) -> None:
    """What manages transactions by itself, or may, would go on without a tenant."""
    options = of("1") | {"isolation_level": "AUTOCOMMIT"}
    with engine.connect().execution_options(**options) as connection:
        with pytest.raises(exc.ProgrammingError, match="in AUTOCOMMIT, the settings"):
            connection.exec_driver_sql(statement)
        before = driver(connection).flights
        for allowed in ("EXPLAIN SELECT * FROM pages", "SHOW server_version", "(SELECT 1)", "-- a\r\nSELECT 1;"):
            connection.exec_driver_sql(allowed)
        assert driver(connection).flights == before + 4


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("statement", ["SELECT 1; SELECT 2", "SET LOCAL a.b = '1'; TABLE pages", "SELECT 1; COMMIT"])
def test_a_text_of_several_statements_is_refused(engine: Engine, statement: str, autocommit: bool) -> None:
    """The server itself says that there are several; what only looks so runs."""
    options = of("1") | ({"isolation_level": "AUTOCOMMIT"} if autocommit else {})
    with engine.connect().execution_options(**options) as connection:
        with pytest.raises(exc.ProgrammingError, match=r"may contain only one statement|in AUTOCOMMIT"):
            connection.exec_driver_sql(statement)
        connection.rollback()
        assert connection.exec_driver_sql("SELECT ';', count(*) FROM pages;").all() == [(";", 3)]


@pytest.mark.parametrize("statement", ["COMMIT AND CHAIN", "/* /* */ */ rollback\nAND /* ; */ chain", "END and CHAIN"])
def test_a_transaction_that_another_one_begins_is_refused(engine: Engine, statement: str) -> None:
    """It would have no tenant, and the driver would not see it begin."""
    with engine.connect().execution_options(**of("1")) as connection:
        connection.execute(COUNT)
        with pytest.raises(exc.ProgrammingError, match="AND CHAIN"):
            connection.exec_driver_sql(statement)
        assert connection.execute(COUNT).scalar_one() == 3


def test_a_transaction_ended_by_hand_gives_the_next_one_its_tenant(engine: Engine) -> None:
    """COMMIT and ROLLBACK as texts, and PREPARE TRANSACTION, are seen by what the server says."""
    with engine.connect().execution_options(**of("1")) as connection:
        for end in ("COMMIT", "ROLLBACK", "PREPARE TRANSACTION 'by hand'", "ROLLBACK PREPARED 'by hand'"):
            if end.endswith("'by hand'") and end.startswith("ROLLBACK"):
                driver(connection).tpc_rollback("by hand")
            else:
                connection.exec_driver_sql(end)
            assert connection.execute(COUNT).scalar_one() == 3
            connection.exec_driver_sql("ROLLBACK")


def test_a_prepared_transaction_of_nothing_has_it(engine: Engine, server: Postgres) -> None:
    """Where nothing was executed, an empty transaction is prepared, all the same."""
    with engine.connect().execution_options(**of("1")) as connection:
        transaction = connection.begin_twophase("nothing")
        transaction.prepare()
        assert server.execute("SELECT gid FROM pg_prepared_xacts") == [["nothing"]]
        transaction.rollback()
    assert_clean(engine)


def test_copy_from_a_stream_has_it_too(make: Callable[..., Engine], server: Postgres) -> None:
    """In BEGIN's exchange, or in the one of AUTOCOMMIT; and what stops it leaves the connection as it should be."""
    server.execute("CREATE TABLE IF NOT EXISTS copied (n int, tenant text DEFAULT current_setting('app.tenant_id'))")
    server.execute("TRUNCATE copied; GRANT ALL ON copied TO reader")

    def broken() -> Iterator[str]:
        yield "1\n"
        raise LookupError

    engine = make()
    for options in ({}, {"isolation_level": "AUTOCOMMIT"}):
        with engine.connect().execution_options(**of("1") | options) as connection:
            cursor = driver(connection).cursor()
            before = driver(connection).flights
            cursor.execute("COPY copied (n) FROM STDIN", stream=["1\n2\n", b"3\n"])
            assert (driver(connection).flights, cursor.rowcount) == (before + 1, 3)
            connection.connection.commit()
            for stream, error in ((broken(), LookupError), (["x\n"], wire.DataError)):
                with pytest.raises(error):
                    cursor.execute("COPY copied (n) FROM STDIN", stream=stream)
                connection.connection.rollback()
            with pytest.raises(wire.ProgrammingError, match="nowhere"):
                cursor.execute("COPY nowhere FROM STDIN", stream=["1\n"] * 100_000)
            connection.connection.rollback()
            assert connection.execute(TENANT).scalar_one() == "1"
    assert server.execute("SELECT tenant, count(*) FROM copied GROUP BY tenant") == [["1", 6]]
    assert_clean(engine)


def test_other_settings_of_a_transaction(engine: Engine) -> None:
    """A role, a search path, time-outs and names: for the transaction alone."""
    settings = {"role": "other", "search_path": "nowhere", "lock_timeout": "7s", "application_name": "here"}
    shown = text("SELECT current_user, current_schemas(false), current_setting('lock_timeout'), "
                 "current_setting('application_name')")  # fmt: skip
    for _ in range(2):
        with engine.connect().execution_options(plungepool_settings=settings) as connection:
            assert connection.execute(shown).one() == ("other", [], "7s", "here")
        with engine.connect() as connection:
            assert connection.execute(shown).one() == ("reader", ["public"], "0", "plungepool")


def test_a_transaction_that_lacks_a_required_setting_is_refused(make: Callable[..., Engine]) -> None:
    """Before anything is sent, by whatever way; one error that says what to do, and that does not mean "try later"."""
    engine = make(require_settings=("App.Tenant_Id",))

    def refused(deed: Callable[[Connection], Any], **options: Any) -> None:
        with engine.connect().execution_options(**options) as connection:
            before = driver(connection).flights
            with pytest.raises(SettingsMissing, match=r"app\.tenant_id.*execution_options") as caught:
                deed(connection)
            assert isinstance(caught.value, PlungepoolError)
            assert not isinstance(caught.value, Unavailable)
            assert driver(connection).flights == before

    autocommit = {"isolation_level": "AUTOCOMMIT"}
    for options in ({}, autocommit, {"plungepool_settings": {"app.user": "1"}}, of("")):
        refused(lambda connection: connection.execute(COUNT), **options)
        refused(lambda connection: connection.exec_driver_sql("SELECT 1; SELECT 2"), **options)
        refused(lambda connection: connection.exec_driver_sql("SET LOCAL a.b = '1'"), **options)
        refused(lambda connection: connection.execute(COUNT.execution_options(stream_results=True)), **options)
        refused(lambda connection: connection.connection.cursor().execute("SELECT 1"), **options)
        refused(lambda connection: driver(connection).cursor().executemany("SELECT $1", [(1,), (2,)]), **options)
        refused(lambda connection: connection.begin_nested(), **options)
    refused(lambda connection: connection.execute(text("VACUUM")), **autocommit)
    refused(lambda connection: connection.begin_twophase().prepare())
    raw = engine.raw_connection()
    with pytest.raises(wire.SettingsMissing):
        raw.cursor().execute("SELECT 1")
    raw.close()
    with pytest.raises(SettingsMissing), Session(engine) as session:
        session.scalars(select(Page)).all()
    for way in WAYS:
        assert way(engine, "1") == {"1"}


def test_what_the_engine_asks_by_itself_is_not_refused(make: Callable[..., Engine]) -> None:
    """Pings, the isolation level, the default schema, prepared transactions: no row of a tenant's."""
    engine = make(require_settings=("app.tenant_id",), ping_after_idle_s=0)
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.get_isolation_level() == "READ COMMITTED"
            assert engine.dialect.default_isolation_level == "READ COMMITTED"
            assert inspect(connection).default_schema_name == "public"
            connection.rollback()
            assert list(connection.recover_twophase()) == []
            with connection.begin():
                pass
            with pytest.raises(SettingsMissing):
                connection.execute(COUNT)
            connection.rollback()
            with pytest.raises(SettingsMissing):
                inspect(connection).get_table_names()
    with engine.execution_options(**of("1")).connect() as connection:
        assert connection.execute(COUNT).scalar_one() == 3


def test_names_that_are_required_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """PLUNGEPOOL_REQUIRE_SETTINGS is a list of names separated by commas; a wrong one is told at the start."""
    minimum = {"PLUNGEPOOL_HOST": "h", "PLUNGEPOOL_USER": "u", "PLUNGEPOOL_PASSWORD": "p"}
    read = Settings.from_env(minimum | {"PLUNGEPOOL_REQUIRE_SETTINGS": "app.tenant_id, App.User,role"})
    assert read.require_settings == ("app.tenant_id", "app.user", "role")
    assert Settings.from_env(minimum).require_settings == ()
    for wrong in ("tenant", "app.tenant_id,", "app.x;app.y", "session_authorization"):
        with pytest.raises(SettingsError, match="PLUNGEPOOL_REQUIRE_SETTINGS"):
            Settings.from_env(minimum | {"PLUNGEPOOL_REQUIRE_SETTINGS": wrong})
    for given in ("app.x", 5, (5,)):
        with pytest.raises(SettingsError, match="PLUNGEPOOL_REQUIRE_SETTINGS"):
            Settings(host="h", user="u", password="p", require_settings=given)  # type: ignore[arg-type]


def test_once_and_a_transaction_that_runs_again(make: Callable[..., Engine], server: Postgres) -> None:
    """Each attempt has the tenant; the key is recorded in its transaction."""
    migration = Path(__file__).parents[2] / "functions/prepare_database/migrations/003_exactly_once.sql"
    for statement in migration.read_text().split(";"):
        server.execute(statement)
    server.execute("GRANT USAGE ON SCHEMA plungepool TO reader; GRANT ALL ON plungepool.once_keys TO reader")
    attempts = []

    def work(connection: Connection) -> bool:
        attempts.append(connection.execute(TENANT).scalar_one())
        first = once(connection, "a key")
        if len(attempts) == 1:
            connection.execute(text("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"))
        return first

    engine = make(require_settings=("app.tenant_id",)).execution_options(**of("1"))
    assert run_transaction(engine, work) is True
    assert run_transaction(engine, work) is False
    assert attempts == ["1", "1", "1"]


def test_the_doctor_asks_without_a_tenant(server: Postgres) -> None:
    """What it asks is the server's own."""
    environ = {
        "PLUNGEPOOL_URL": server.url("reader"),
        "PLUNGEPOOL_PASSWORD": "unused",
        "PLUNGEPOOL_TLS": "disable",
        "PLUNGEPOOL_REQUIRE_SETTINGS": "app.tenant_id",
    }
    assert [check for check in checks.check_environment(environ) if check.state == "failed"] == []


THREADS, TRANSACTIONS = 8, 300


def test_two_tenants_through_one_connection_of_pgbouncer(make: Callable[..., Engine], server: Postgres) -> None:
    """Thousands of transactions of eight threads, failures and raw cursors among them: no row of the other's."""
    wrong: list[Any] = []
    with pgbouncer(server, users={"reader": None}, default_pool_size=1, max_client_conn=100) as port:
        engine = make(
            port=port,
            endpoint="proxy",
            deadline="server",
            pool_size=THREADS,
            checkout_timeout_s=60,
            connect_timeout_s=60,
        )
        waits = [by_engine, by_autocommit, by_connection, by_session_of_engine, by_cursor, by_copy_in_autocommit]

        def work(thread: int) -> None:
            try:
                tenant = "12"[thread % 2]
                own = engine.execution_options(**of(tenant))
                for number in range(TRANSACTIONS):
                    kind = (number * 7 + thread) % 10
                    if kind < len(waits):
                        seen = waits[kind](engine, tenant)
                        if seen != {tenant}:
                            wrong.append((kind, tenant, seen))
                    elif number % 50 == 49:
                        with own.connect() as connection:
                            connection.execute(COUNT)
                            driver(connection).abandon()  # as when an environment is killed
                            connection.invalidate()
                    elif kind < 8:
                        with own.connect() as connection:
                            with pytest.raises(exc.DBAPIError):
                                connection.execute(text("SELECT 1 / count(*) FILTER (WHERE false) FROM pages"))
                            connection.rollback()
                            seen = set(connection.execute(text("SELECT tenant_id FROM pages")).scalars())
                        if seen != {tenant}:
                            wrong.append((kind, tenant, seen))
                    else:
                        with engine.connect() as connection:
                            none = (connection.execute(TENANT).scalar_one(), connection.execute(COUNT).scalar_one())
                        if none != (None, 0):
                            wrong.append((kind, tenant, none))
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        settings = {"role": "other", "application_name": "theirs", "search_path": "nowhere", "app.tenant_id": "1"}
        with engine.connect().execution_options(plungepool_settings=settings) as connection:
            connection.execute(text("SELECT 1"))
        with engine.connect() as connection:
            left = connection.execute(
                text(
                    "SELECT current_user, current_setting('search_path'), current_setting('app.tenant_id', true), "
                    "current_setting('application_name')"
                )
            ).one()
            set_on_the_session = connection.execute(
                text("SELECT name FROM pg_settings WHERE source = 'session' AND name = ANY(:names)"),
                {"names": ["search_path", "role", "statement_timeout", "transaction_timeout", "app.tenant_id"]},
            ).all()
        wait_until(lambda: server.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader'") == [[1]])
        assert tuple(left) == ("reader", '"$user", public', "", "plungepool")
        assert set_on_the_session == []


@pytest.fixture
def behind_rds_proxy(
    postgres: Postgres, rds_proxy: Callable[..., RdsProxy]
) -> Iterator[tuple[RdsProxy, Callable[..., Engine]]]:
    """The stand-in for RDS Proxy, and what builds engines behind it."""
    postgres.execute("CREATE ROLE of_tenants LOGIN")
    proxy = rds_proxy(auth="scram", users={"of_tenants": "hush"}, max_database_connections=2)
    engines: list[Engine] = []

    def build(**variables: str) -> Engine:
        engines.append(build_engine(Settings.from_env(proxy.variables("of_tenants") | variables)))
        return engines[-1]

    yield proxy, build
    for engine in engines:
        engine.dispose()
    postgres.execute("DROP OWNED BY of_tenants; DROP ROLE of_tenants")


def test_behind_rds_proxy_it_pins_and_the_guard_says_so(
    behind_rds_proxy: tuple[RdsProxy, Callable[..., Engine]], caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with what to do instead, and with the line; what the stand-in counts is what the guard says."""
    proxy, build = behind_rds_proxy
    engine = build()
    for number in range(3):
        with engine.execution_options(**of("1")).connect() as connection:
            assert connection.execute(text(f"SELECT '{number}', current_setting('app.tenant_id')")).one()[1] == "1"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "plungepool"]
    assert line.startswith("plungepool_settings pins the proxy")
    assert "docs/tenants.md" in line
    assert "test_tenants.py" in line
    assert set(proxy.counters.pinned) == {"set_config"}
    with engine.connect() as connection:
        assert connection.execute(TENANT).scalar_one() is None


def test_behind_rds_proxy_it_can_be_refused(behind_rds_proxy: tuple[RdsProxy, Callable[..., Engine]]) -> None:
    """Before anything is sent, each time; without settings everything goes on."""
    proxy, build = behind_rds_proxy
    engine = build(PLUNGEPOOL_PINNING="refuse")
    for _ in range(2):
        with (
            engine.execution_options(**of("1")).connect() as connection,
            pytest.raises(PinningRefused, match="plungepool_settings"),
        ):
            connection.execute(text("SELECT 1"))
    with engine.execution_options(plungepool_settings={}).connect() as connection:
        connection.execute(text("SELECT 1"))
    assert proxy.counters.pinned == {}


def test_a_stream_that_outlives_its_connection_says_nothing_to_the_next_transaction(engine: Engine) -> None:
    """Its cursor went with its own transaction; closed late, it must not ask the next one, another tenant's, for it."""
    connection = engine.execution_options(**of("1")).connect()
    stream = connection.execution_options(stream_results=True, yield_per=1).execute(text("SELECT body FROM pages"))
    assert stream.fetchone() is not None
    connection.close()
    with engine.execution_options(**of("2")).begin() as other:
        assert other.execute(COUNT).scalar_one() == 3
        stream.close()
        assert other.execute(COUNT).scalar_one() == 3
