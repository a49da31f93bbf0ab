"""
Errors: classed by SQLSTATE, with the server's fields, without values, and right about whether the connection is lost.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import ssl
import tempfile
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg.errors
import pytest
import sqlalchemy
from sqlalchemy import Engine, create_engine, text

from plungepool import dialect, wire
from plungepool.wire import messages
from plungepool.wire.errors import server_error
from plungepool.wire.transport import TLS_REQUEST
from plungepool_toolkit.certificates import Authority
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.fixtures import Database

DIALECT = dialect.PlungepoolDialect()


@pytest.fixture
def engine(database: Database) -> Iterator[Any]:
    engine = create_engine(
        database.server.url("postgres", database.name).replace("postgresql://", "postgresql+plungepool://")
    )
    yield engine
    engine.dispose()


def failing(connection: wire.Connection, sql: str, *values: Any) -> Any:
    with pytest.raises(wire.Error) as raised:
        connection.cursor().execute(sql, values)
    return raised.value


def test_every_sqlstate_has_the_class_that_psycopg_gives_it() -> None:
    """
    A program that was written for psycopg catches the same errors in the same `except` clauses; but for two ends of a
    session.
    """
    states = sorted(code for code in psycopg.errors._sqlcodes if len(code) == 5)
    assert len(states) > 200
    for state in states:
        expected = psycopg.errors.get_base_exception(state).__name__
        if state in ("25P03", "25P04"):  # the session is over, and the same may succeed in the next
            expected = "OperationalError"
        error = server_error(f"SERROR\0VERROR\0C{state}\0Mwhat happened\0\0".encode())
        assert (state, type(error).__name__, error.sqlstate) == (state, expected, state)


@pytest.mark.parametrize(
    ("sqlstate", "message", "retryable"),
    [
        ("40001", "could not serialize access", True),
        ("40P01", "deadlock detected", True),
        ("OC000", "change conflicts with another transaction, please retry", True),
        ("OC001", "schema has been updated by another transaction, please retry", True),
        ("53300", "sorry, too many clients already", True),
        ("57P03", "the database system is starting up", True),
        ("08000", "Timed-out waiting to acquire database connection.", True),
        ("08000", "something else about the connection", False),
        ("28P01", "The IAM authentication failed for the role app.", False),
        ("28000", "IAM is allowed only with SSL connections.", False),
        ("57P01", "terminating connection due to administrator command", False),
        ("57014", "canceling statement due to statement timeout", False),
        ("23505", "duplicate key value violates unique constraint", False),
    ],
)
def test_errors_say_whether_the_same_may_succeed_later(sqlstate: str, message: str, retryable: Any) -> None:
    """Only where the server has kept nothing of it, and refused it for what goes by: never after a lost connection."""
    error = server_error(f"SERROR\0VERROR\0C{sqlstate}\0M{message}\0\0".encode())
    assert (sqlstate, error.retryable) == (sqlstate, retryable)


@pytest.mark.parametrize(
    ("sql", "kind", "sqlstate"),
    [
        ("SELECT nothing", wire.ProgrammingError, "42703"),
        ("SELEC", wire.ProgrammingError, "42601"),
        ("SELECT 1/0", wire.DataError, "22012"),
        ("CREATE TEMP TABLE a (b int NOT NULL); INSERT INTO a VALUES (NULL)", wire.IntegrityError, "23502"),
        ("DO $$BEGIN RAISE serialization_failure; END$$", wire.OperationalError, "40001"),
        ("DO $$BEGIN RAISE EXCEPTION 'own words'; END$$", wire.ProgrammingError, "P0001"),
        ("SET statement_timeout = 1; SELECT pg_sleep(5)", wire.OperationalError, "57014"),
        ("ROLLBACK; VACUUM; SELECT 1; ROLLBACK PREPARED 'none'", wire.InternalError, "25001"),
        (
            "CREATE TABLE a (b int) PARTITION BY LIST (b); CREATE INDEX CONCURRENTLY ON a (b)",
            wire.InternalError,
            "25001",
        ),
        ("SELECT * FROM a FOR UPDATE GROUP BY 1", wire.ProgrammingError, "42601"),
    ],
)
def test_server_errors_are_classed(connection: wire.Connection, sql: str, kind: str, sqlstate: str) -> None:
    """Each class of PEP 249, from a real server; the connection lives on."""
    error = failing(connection, sql)
    assert (type(error), error.sqlstate, error.disconnected) == (kind, sqlstate, False)
    connection.rollback()
    assert connection.cursor().execute("SELECT 1").fetchone() == (1,)


def test_not_supported_is_classed(connection: wire.Connection) -> None:
    """0A000 is NotSupportedError."""
    connection.cursor().execute("CREATE TABLE plain (a int)")
    assert isinstance(failing(connection, "SELECT sum(a) OVER () FROM plain FOR UPDATE"), wire.NotSupportedError)


def test_fields_of_the_server_are_attributes(connection: wire.Connection) -> None:
    """Which constraint, table, column and schema: what a handler needs to answer 409 instead of 500."""
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE users (email text PRIMARY KEY, age int CHECK (age > 0) NOT NULL)")
    cursor.execute("INSERT INTO users VALUES ('ada@example.org', 36)")
    connection.commit()
    error = failing(connection, "INSERT INTO users VALUES ($1, $2)", "ada@example.org", 36)
    assert isinstance(error, wire.IntegrityError)
    assert (error.severity, error.sqlstate, error.constraint_name) == ("ERROR", "23505", "users_pkey")
    assert (error.schema_name, error.table_name) == ("public", "users")
    assert error.detail == "Key (email)=(ada@example.org) already exists."
    connection.rollback()
    error = failing(connection, "INSERT INTO users VALUES ('bob@example.org', NULL)")
    assert (error.sqlstate, error.column_name) == ("23502", "age")
    connection.rollback()
    assert failing(connection, "SELECT foo").position == 8
    connection.rollback()
    assert failing(connection, "SELECT 1; SELECT foo").position == 18
    connection.rollback()
    assert failing(connection, "SELECT pg_typeof(lower(1.5))").hint is not None


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("INSERT INTO secrets VALUES ($1)", ("4929 1234",)),
        ("SELECT $1::int", ("4929 1234",)),
        ("SELECT $1::timestamptz", ("4929 1234",)),
        ("SELECT $1::uuid", ("4929 1234",)),
        ("SELECT $1::int[]", ('{"4929 1234", "x"}',)),
        ("SELECT $1::text::json", ("{4929 1234}",)),
        ("SELECT $1::text::smallint", ("49291234",)),
        ("SELECT $1::text::date", ("4929-12-34",)),
        ("SELECT $1::mood", ("4929 1234",)),
        ("INSERT INTO secrets (other) VALUES ($1)", ("4929 1234",)),
    ],
)
def test_texts_hold_no_value(connection: wire.Connection, sql: str, values: Any) -> None:
    """No parameter's value is in the text or the traceback; whoever wants it finds it on the attributes."""
    cursor = connection.cursor()
    cursor.execute(
        "CREATE TYPE mood AS ENUM ('good'); CREATE TABLE secrets (card text UNIQUE, other text CHECK (other = ''))"
    )
    cursor.execute("INSERT INTO secrets VALUES ('4929 1234')")
    error = failing(connection, sql, *values)
    shown = "".join(traceback.format_exception_only(error)) + repr(error)
    assert "4929" not in shown
    assert "1234" not in shown
    assert "4929" in f"{error.message} {error.detail}"
    assert error.sqlstate in str(error)


@pytest.mark.parametrize(
    ("sql", "values", "secrets", "sqlstate"),
    [
        ("SELECT to_tsquery($1)", ("4929 1234",), ("4929", "1234"), "42601"),
        ("SELECT $1::text::regproc", ("Secret.Fn",), ("secret",), "42883 3F000"),  # 3F000 before PostgreSQL 16
        ("SELECT $1::text::regproc", ("secretfn",), ("secretfn",), "42883"),
        ("SELECT $1::text::regclass", ("secret_table_" + "x" * 80,), ("secret_table",), "42P01"),
        ("SELECT pg_has_role($1::text, 'USAGE')", ("topsecret",), ("topsecret",), "42704"),
        ("SELECT set_config('role', $1, true)", ("topsecret",), ("topsecret",), "22023"),
        ("SELECT make_date($1::int, $2::int, $3::int)", (2024, 13, 7), ("2024", "13", "07"), "22008"),
        ("SELECT make_time($1::int, $2::int, 0)", (25, 61), ("25", "61"), "22008"),
        ("SELECT plain($1::text)", ("a top secret",), ("secret",), "P0001"),
        ("SELECT plain($1::text)", ("jo",), (" jo",), "P0001"),
        ("SELECT plain($1::text)", ("Ä top SECRET",), ("SECRET", "Ä"), "P0001"),
        ("SELECT plain($1::text || $2)", ("secret: " * 600_000, "number 77"), ("secret", "77"), "P0001"),
        ("SELECT query_to_xml($1::text, true, true, '')", ("SELEC topsecret FROM x",), ("selec",), "42601"),
    ],
)
def test_no_parameter_is_shown_whatever_the_code(
    connection: wire.Connection, sql: str, values: Any, secrets: Any, sqlstate: str
) -> None:
    """Whole, in part, folded, cut off, as numbers, outside quotes: what was sent as a parameter is not in the text."""
    connection.cursor().execute(
        "CREATE FUNCTION plain(text) RETURNS int LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no user % here', $1; "
        "END$$"
    )
    error = failing(connection, sql, *values)
    shown = "".join(traceback.format_exception_only(error)) + repr(error)
    assert error.sqlstate in sqlstate.split(), shown
    assert [secret for secret in secrets if secret.lower() in shown.replace(error.sqlstate, "").lower()] == [], shown
    assert [secret for secret in secrets if secret.lower() in error.message.lower()], error.message


def test_parameter_of_a_declared_cursor_is_not_shown_by_a_fetch(engine: Engine) -> None:
    """What a stream's FETCH fails for was sent by another flight."""
    with engine.connect() as connection, pytest.raises(sqlalchemy.exc.ProgrammingError) as raised:
        query = text("SELECT to_tsquery(CASE WHEN n > 2 THEN :x ELSE 'fine' END) FROM generate_series(1, 5) n")
        connection.execution_options(yield_per=1).execute(query, {"x": "4929 1234"}).all()
    assert "4929" not in str(raised.value.orig)


@pytest.mark.parametrize(
    ("sql", "values", "shown"),
    [
        ("INSERT INTO users VALUES ($1, $2)", ("users", 1), 'violates unique constraint "users_pkey"'),
        ("SELECT $1, nothing", ("a",), 'column "nothing" does not exist'),
        ("SELECT $1::int FROM missing", (1,), 'relation "missing" does not exist'),
    ],
)
def test_what_is_no_parameter_stays_readable(connection: wire.Connection, sql: str, values: Any, shown: Any) -> None:
    """A short parameter counts as a word, not as letters anywhere."""
    connection.cursor().execute("CREATE TABLE users (name text PRIMARY KEY, n int); INSERT INTO users VALUES ('users')")
    assert shown in str(failing(connection, sql, *values))


def test_values_stay_in_other_errors_names(connection: wire.Connection) -> None:
    """Names of tables and columns are no values: they stay."""
    assert 'column "sallary" does not exist' in str(failing(connection, "SELECT sallary"))


@pytest.mark.parametrize("value", ["surro\ud800gate", object, {"a": {1}}])
def test_parameter_that_cannot_be_sent_costs_nothing(connection: wire.Connection, value: Any) -> None:
    """A value without a text is refused before the first byte: the connection stays, and its transaction."""
    cursor = connection.cursor()
    cursor.execute("CREATE TEMP TABLE kept (a int)")
    if isinstance(value, type):
        value = type("Odd", (), {"__str__": lambda self: 1 / 0})()
    with pytest.raises((wire.DataError, wire.ProgrammingError), match=r"parameter 2 (is )?of type"):
        cursor.executemany("INSERT INTO kept VALUES ($1), ($2)", [(1, 2), (1, value)])
    assert cursor.execute("SELECT count(*) FROM kept").fetchone() == (0,)


@pytest.mark.parametrize("statement", ["SELECT 1\0; DROP TABLE users", "SELECT $1\0"])
def test_character_zero_in_a_statement_is_refused(connection: wire.Connection, statement: str) -> None:
    """The protocol ends a statement there: what would be executed is not what was written."""
    assert isinstance(failing(connection, statement, *([1] if "$1" in statement else [])), wire.ProgrammingError)


def test_too_many_parameters_are_refused(connection: wire.Connection) -> None:
    """65,536 parameters do not fit the protocol's count; 65,535 do."""
    assert "65536" in str(failing(connection, "SELECT 1", *range(65536)))
    values = list(range(65535))
    sql = "SELECT ARRAY[" + ",".join(f"${number}::int" for number in range(1, 65536)) + "]"
    assert connection.cursor().execute(sql, values).fetchone() == (values,)


def test_commit_of_a_failed_transaction_is_an_error(connection: wire.Connection) -> None:
    """The server answers such a COMMIT by ROLLBACK: who believes that it was saved has to hear of it."""
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE lost (a int)")
    failing(connection, "SELECT 1/0")
    with pytest.raises(wire.InternalError, match="ROLLBACK") as raised:
        connection.commit()
    assert raised.value.sqlstate == "25P02"
    assert not connection.in_transaction
    assert cursor.execute("SELECT to_regclass('lost')").fetchone() == (None,)


def test_begin_that_fails_runs_nothing(database: Database, connection: wire.Connection) -> None:
    """The statement that rides with BEGIN is skipped when BEGIN fails, and does not run on its own."""
    database.execute("CREATE TABLE written (a int)")
    with connection:
        connection._begin_messages = (
            messages.parse("BEGIN ISOLATION LEVEL NONSENSE") + messages.BIND_NOTHING + messages.EXECUTE
        )
        connection._begin = "BEGIN ISOLATION LEVEL NONSENSE"
        for sql, values in [
            ("INSERT INTO written VALUES ($1)", (1,)),
            ("INSERT INTO written VALUES (2); SELECT 1", ()),
        ]:
            assert failing(connection, sql, *values).sqlstate == "42601"
            assert not connection.in_transaction
    assert database.execute("SELECT count(*) FROM written") == [[0]]


def end(database: Database, connection: wire.Connection) -> None:
    database.execute("SELECT pg_terminate_backend($1::int)", connection.backend_pid)


def test_reason_of_the_server_is_the_error(database: Database, connection: wire.Connection) -> None:
    """57P01, and not "network error": the FATAL that was sent before the close is read; later uses name it too."""
    connection.cursor().execute("SELECT 1")
    end(database, connection)
    error = failing(connection, "SELECT $1::int", 1)
    assert (type(error), error.sqlstate, error.disconnected) == (wire.OperationalError, "57P01", True)
    assert connection.closed
    again = failing(connection, "SELECT 1")
    assert isinstance(again, wire.InterfaceError)
    assert again.disconnected
    assert "57P01" in str(again)


@pytest.mark.parametrize(
    ("setting", "open_transaction", "sqlstate"),
    [("idle_session_timeout", False, "57P05"), ("idle_in_transaction_session_timeout", True, "25P03")],
)
def test_idle_timeouts_of_the_server_are_named(
    address: dict[str, Any], setting: Any, open_transaction: Any, sqlstate: str
) -> None:
    """The look without a round trip finds the reason that the server left."""
    with wire.connect(**address, startup_params={setting: "50"}) as connection:
        if open_transaction:
            connection.cursor().execute("SELECT 1")
        wait_until_readable(connection)
        with pytest.raises(wire.DatabaseError) as raised:
            connection.check()
        assert (raised.value.sqlstate, raised.value.disconnected) == (sqlstate, True)
        assert connection.closed


def wait_until_readable(connection: wire.Connection) -> None:
    assert select.select([connection._transport.sock], [], [], 10)[0]


def test_look_takes_what_is_said_between_statements(database: Database, connection: wire.Connection) -> None:
    """A notification and a changed setting that arrive while the connection is idle are no sign of its end."""
    cursor = connection.cursor()
    connection.autocommit = True
    cursor.execute("LISTEN news")
    database.execute("NOTIFY news, 'extra'")
    wait_until_readable(connection)
    connection.check()
    assert [(channel, payload) for _, channel, payload in connection.notifications] == [("news", "extra")]
    assert cursor.execute("SELECT 1").fetchone() == (1,)


def test_refused_logins_say_why(postgres: Postgres) -> None:
    """An unknown role or database, and a server that is full: the server's code, and a connection that is closed."""
    address = {"host": postgres.host, "port": postgres.port}
    for sqlstate, kind, arguments in [
        ("28000", wire.OperationalError, {"user": "nobody_here", "database": "postgres"}),
        ("3D000", wire.ProgrammingError, {"user": "postgres", "password": postgres.password, "database": "nowhere"}),
    ]:
        with pytest.raises(wire.DatabaseError) as raised:
            wire.connect(**address, **arguments)
        assert (raised.value.sqlstate, type(raised.value), raised.value.disconnected) == (sqlstate, kind, True)


def test_wrong_password_and_full_server_say_why() -> None:
    """28P01 in every method, and 53300."""
    with Postgres(
        {"max_connections": 4, "superuser_reserved_connections": 1}, authentication="scram-sha-256"
    ) as server:
        server.execute("CREATE ROLE app LOGIN PASSWORD 'right'")
        address = {"host": server.host, "port": server.port, "database": "postgres", "user": "app"}
        with pytest.raises(wire.OperationalError) as raised:
            wire.connect(**address, password="wrong")
        assert raised.value.sqlstate == "28P01"
        assert "wrong" not in str(raised.value)
        with pytest.raises(wire.OperationalError, match="none was given"):
            wire.connect(**address)
        held = []
        with pytest.raises(wire.OperationalError) as raised:
            for _ in range(5):
                held.append(wire.connect(**address, password="right"))
        assert raised.value.sqlstate == "53300"
        for connection in held:
            connection.close()


def test_unreachable_server_is_an_operational_error() -> None:
    """A closed port and a name that does not exist."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(wire.OperationalError, match="cannot be reached"):
            wire.connect(user="x", host="127.0.0.1", port=taken.getsockname()[1])
    with pytest.raises(wire.OperationalError, match="cannot be resolved"):
        wire.connect(user="x", host="no-such-host.invalid")


@pytest.mark.parametrize("cut", ["reset", "hang_up"])
@pytest.mark.parametrize("moment", ["idle", "waiting"])
@pytest.mark.parametrize("autocommit", [False, True])
def test_cut_connections_are_classed(
    postgres: Postgres, address: dict[str, Any], cut: Any, moment: Any, autocommit: bool
) -> None:
    """No OSError comes out unwrapped, and the next statement is refused instead of sent."""
    with ChaosProxy(postgres.host, postgres.port) as proxy:
        connection = wire.connect(**address | {"port": proxy.port})
        connection.autocommit = autocommit
        connection.cursor().execute("SELECT 1")
        connection.rollback()
        if moment == "idle":
            getattr(proxy, cut)()
            error = failing(connection, "SELECT $1::text", "x" * 100_000)
        else:
            timer = threading.Timer(0.2, getattr(proxy, cut))
            timer.start()
            error = failing(connection, "SELECT pg_sleep(30)")
            timer.join()
        assert isinstance(error, wire.OperationalError)
        assert error.disconnected
        assert connection.closed
        assert failing(connection, "SELECT 1").disconnected
        connection.close()


def test_engine_replaces_what_was_cut(postgres: Postgres, database: Database) -> None:
    """SQLAlchemy takes each of these as a disconnect: one error, and the next checkout has a new connection."""
    with ChaosProxy(postgres.host, postgres.port) as proxy:
        url = f"postgresql+plungepool://postgres:{postgres.password}@{proxy.host}:{proxy.port}/{database.name}"
        engine = create_engine(url, pool_size=1, max_overflow=0)
        for cut in (proxy.reset, proxy.hang_up):
            with engine.connect() as connection, pytest.raises(sqlalchemy.exc.OperationalError) as raised:
                connection.execute(text("SELECT 1"))
                cut()
                connection.execute(text("SELECT 1"))
            assert raised.value.connection_invalidated
            with engine.connect() as connection:
                assert connection.execute(text("SELECT 2")).scalar_one() == 2
        engine.dispose()


def test_idle_connection_that_died_is_never_handed_out(
    database: Database, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Without pre-ping: the look at checkout finds that the server has hung up. No error, and nothing in the log."""
    with engine.connect() as connection:
        first = connection.connection.dbapi_connection
    end(database, first)
    wait_until_readable(first)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        assert connection.connection.dbapi_connection.backend_pid != first.backend_pid
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


@pytest.mark.parametrize(
    ("asked", "disconnected"),
    [
        (None, True),
        ("option", False),
        ("SET TRANSACTION READ ONLY", False),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", False),
        ("SET transaction_read_only = on", False),
        ("SET default_transaction_read_only TO on", False),
        ("SET default_transaction_read_only TO off", True),
        ("SET application_name TO 'the only session'", True),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; RESET default_transaction_read_only", True),
    ],
)
def test_read_only_server_is_a_disconnect_unless_asked_for(
    database: Database, address: dict[str, Any], connection: wire.Connection, asked: bytes, disconnected: Any
) -> None:
    """25006 on a connection that should write means that the writer has moved; not so where READ ONLY was asked for."""
    database.execute("CREATE TABLE written (a int)")
    if disconnected:  # what a server that may not write any more looks like; the role could have it as well
        database.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
        connection = wire.connect(**address)
    if asked == "option":
        connection.readonly = True
    elif asked is not None:
        connection.cursor().execute(asked)
        if not asked.startswith(("SET TRANSACTION", "SET transaction")):
            connection.commit()
        if "off" in asked or "RESET" in asked:
            connection.cursor().execute("SELECT set_config('transaction_read_only', 'on', true)")
    error = failing(connection, "INSERT INTO written VALUES ($1)", 1)
    assert (error.sqlstate, error.disconnected) == ("25006", disconnected)
    assert DIALECT.is_disconnect(error, None, None) == disconnected
    connection.rollback()
    assert not connection.closed
    connection.close()


def test_read_only_transaction_is_forgotten(connection: wire.Connection) -> None:
    """READ ONLY asked for in one transaction says nothing of the next."""
    connection.cursor().execute("SET TRANSACTION READ ONLY")
    connection.rollback()
    connection.cursor().execute("SELECT 1")
    connection.cursor().execute("SELECT set_config('transaction_read_only', 'on', true)")
    assert failing(connection, "CREATE TABLE x (a int)").disconnected


@pytest.fixture(scope="module")
def standby() -> Iterator[Any]:
    """A server that is told to follow another one, and so may not write."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # the server is another user's
        data = Path(folder) / "data"
        # A password is set at each start, which a standby cannot.
        with Postgres(data_folder=data, authentication="trust"):
            (data / "standby.signal").write_text("")
        with Postgres(data_folder=data, authentication="trust") as server:
            yield server


@pytest.mark.parametrize("reports", [True, False], ids=["reported", "not reported"])
def test_standby_is_recognized_whatever_was_set(standby: Any, reports: Any) -> None:
    """A SET in each transaction hides no failed-over writer: it reports itself, or the rollback asks it."""
    connection = wire.connect(user="postgres", host=standby.host, port=standby.port, database="postgres")
    if not reports:  # PostgreSQL 13, or a pooler that keeps the report to itself
        del connection.parameter_statuses["in_hot_standby"]
    connection.cursor().execute("SET LOCAL lock_timeout = '1s'")
    error = failing(connection, "CREATE TABLE x (a int)")
    assert (error.sqlstate, error.disconnected) == ("25006", reports)
    connection.rollback()
    assert connection.closed is not reports
    connection.close()


@pytest.mark.parametrize("reports", ["on", None, "off"], ids=["reported", "not reported", "another server's"])
@pytest.mark.parametrize("asked", ["in BEGIN", "by default"])
def test_standby_that_refuses_serializable_is_a_moved_writer(
    standby: Postgres, asked: str, reports: str | None
) -> None:
    """A standby refuses such a transaction before it can refuse a write; not so whoever asks for READ ONLY as well."""
    connection = wire.connect(user="postgres", host=standby.host, port=standby.port, database="postgres")
    if reports != "on":  # PostgreSQL 13; a pooler, which tells what another server was when it first asked
        del connection.parameter_statuses["in_hot_standby"]
    if reports == "off":
        connection.parameter_statuses["in_hot_standby"] = reports
    if asked == "in BEGIN":
        connection.isolation_level = "SERIALIZABLE"
    else:
        connection.cursor().execute("SET default_transaction_isolation TO serializable")
        connection.commit()
    error = failing(connection, "SELECT 1")
    assert (error.sqlstate, error.disconnected, type(error)) == ("0A000", True, wire.OperationalError)
    assert "; the connection is for writing: is this a reader's endpoint, or has the writer moved?" in str(error)
    connection.rollback()
    connection.readonly = True
    error = failing(connection, "SELECT 1")
    assert (error.sqlstate, error.disconnected, type(error)) == ("0A000", False, wire.NotSupportedError)
    connection.close()


def test_what_no_server_supports_is_no_moved_writer(standby: Postgres, connection: wire.Connection) -> None:
    """Any other 0A000 keeps the connection, to a standby as well."""
    reader = wire.connect(user="postgres", host=standby.host, port=standby.port, database="postgres")
    for one in (connection, reader):
        error = failing(one, "SELECT count(*) FROM pg_class FOR UPDATE")
        assert (error.sqlstate, error.disconnected) == ("0A000", False)
        one.close()


def test_server_without_tls_sees_nothing(postgres: Postgres) -> None:
    """Asked for TLS, a server that has none gets the question and not one byte more: no user name, no password."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                seen.append(peer.recv(100))
                peer.sendall(b"N")
                seen.append(peer.recv(100))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(wire.OperationalError, match="does not offer TLS"):
            wire.connect(
                user="app",
                password="secret",
                host="127.0.0.1",
                port=listener.getsockname()[1],
                ssl_context=ssl.create_default_context(),
            )
        thread.join()
    assert seen == [TLS_REQUEST, b""]


def test_certificate_of_a_stranger_is_refused() -> None:
    """The password is not sent to a server whose certificate is not trusted."""
    with Authority() as stranger, Postgres(tls=True, authentication="password") as server:
        with pytest.raises(wire.OperationalError, match="authority") as raised:
            wire.connect(
                user="app", password="secret", host="localhost", port=server.port, ssl_context=stranger.client_context()
            )
        assert raised.value.disconnected
        assert "authentication" not in server.log


def test_sockets_are_closed_after_every_failure(postgres: Postgres, address: dict[str, Any]) -> None:
    """No failed connect leaves a socket to the garbage collector (which would warn, and a warning is an error here)."""
    with ChaosProxy(postgres.host, postgres.port) as proxy:
        for count in (0, 20, 60, 200):
            proxy.cut_after(from_server=count) if count else proxy.refuse()
            with pytest.raises(wire.OperationalError):
                wire.connect(**address | {"port": proxy.port}, connect_timeout_s=2)
            proxy.accept() if not count else None
    gc.collect()
