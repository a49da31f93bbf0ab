"""PEP 249's own test suite; each test that is replaced here is a deviation on purpose, and docs/wire.md names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dbapi20
import pytest

from plungepool import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.fixtures import Database


class TestDBAPI20(dbapi20.DatabaseAPI20Test):
    """All of the suite, against a database of its own."""

    driver = wire
    lower_func = "lower"

    @pytest.fixture(autouse=True)
    def address(self, database: Database) -> Iterator[None]:
        """The database, and the one procedure that the suite calls."""
        self.connect_kw_args = {
            "user": "postgres",
            "host": database.server.host,
            "port": database.server.port,
            "database": database.name,
            "password": database.server.password,
        }
        self.opened = []
        yield
        for connection in self.opened:
            connection.close()

    def _connect(self) -> Any:
        self.opened.append(wire.connect(**self.connect_kw_args))
        return self.opened[-1]

    def tearDown(self) -> None:
        """Nothing: the database goes."""

    def _paraminsert(self, cur: Any) -> None:
        # As in the suite, with the placeholders of this driver.
        self.executeDDL1(cur)
        cur.execute(f"insert into {self.table_prefix}booze values ('Victoria Bitter')")
        assert cur.rowcount in (-1, 1)
        cur.execute(f"insert into {self.table_prefix}booze values ($1)", ("Cooper's",))
        assert cur.rowcount in (-1, 1)
        cur.execute(f"select name from {self.table_prefix}booze")
        assert sorted(row[0] for row in cur.fetchall()) == ["Cooper's", "Victoria Bitter"]

    def test_paramstyle(self) -> None:
        """`$1`, the server's own: none of PEP 249's five, each of which needs a search through the statement."""
        assert wire.paramstyle == "numeric_dollar"

    def test_executemany(self) -> None:
        """As in the suite, with the placeholders of this driver."""
        cursor = self._connect().cursor()
        self.executeDDL1(cursor)
        cursor.executemany(f"insert into {self.table_prefix}booze values ($1)", [("Cooper's",), ("Boag's",)])
        assert cursor.rowcount in (-1, 2)
        cursor.execute(f"select name from {self.table_prefix}booze")
        assert sorted(row[0] for row in cursor.fetchall()) == ["Boag's", "Cooper's"]

    def test_non_idempotent_close(self) -> None:
        """Closing twice is no error: whoever cleans up need not know whether somebody else has."""
        connection = self._connect()
        connection.close()
        connection.close()

    def test_setoutputsize(self) -> None:
        """Does nothing, as PEP 249 allows."""
        self._connect().cursor().setoutputsize(1000, 1)

    def test_nextset(self) -> None:
        """Not offered: of several statements in one text the last result is the cursor's."""
        assert not hasattr(self._connect().cursor(), "nextset")

    def test_callproc(self) -> None:
        """Not offered: `SELECT` and `CALL` say how a function or a procedure is meant."""
        assert not hasattr(self._connect().cursor(), "callproc")


class TestExtensions:
    """PEP 249's optional extensions that this driver offers."""

    @pytest.fixture
    def connection(self, address: dict[str, Any]) -> Iterator[Any]:
        connection = wire.connect(**address)
        yield connection
        connection.close()

    def test_cursor_is_a_context_manager_and_an_iterator(self, connection: wire.Connection) -> None:
        """`with`, `next` and `for` on one cursor."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 4)")
            assert next(cursor) == (1,)
            assert iter(cursor) is cursor
            assert list(cursor) == [(2,), (3,), (4,)]
            with pytest.raises(StopIteration):
                next(cursor)
        with pytest.raises(wire.InterfaceError):
            cursor.execute("SELECT 1")

    def test_type_objects_are_unequal_where_they_are_not_equal(self) -> None:
        """`!=` is the opposite of `==`."""
        for kind in (wire.STRING, wire.BINARY, wire.NUMBER, wire.DATETIME, wire.ROWID):
            for oid in (17, 23, 25, 26, 1184):
                assert (kind != oid) is not (kind == oid)
                assert (oid != kind) is not (oid == kind)

    def test_with_a_connection_commits_or_rolls_back_and_closes(
        self, address: dict[str, Any], database: Database
    ) -> None:
        """As psycopg: success commits, an exception rolls back, and the connection is closed either way."""
        with wire.connect(**address) as connection:
            connection.cursor().execute("CREATE TABLE kept (a int)")
        assert connection.closed
        with pytest.raises(KeyError), wire.connect(**address) as connection:
            connection.cursor().execute("INSERT INTO kept VALUES (1)")
            raise KeyError
        assert connection.closed
        assert database.execute("SELECT count(*) FROM kept") == [[0]]
        with pytest.raises(wire.InternalError, match="ROLLBACK"), wire.connect(**address) as connection:
            with pytest.raises(wire.DataError):
                connection.cursor().execute("SELECT 1/0")
        assert connection.closed
        with wire.connect(**address) as connection:
            connection.close()

    def test_exceptions_have_the_names_of_the_peers(self, connection: wire.Connection) -> None:
        """psycopg2's pgcode and pgerror, and psycopg's diag."""
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE users (email text PRIMARY KEY)")
        cursor.execute("INSERT INTO users VALUES ('ada@example.org')")
        with pytest.raises(connection.IntegrityError) as raised:
            cursor.execute("INSERT INTO users VALUES ($1)", ("ada@example.org",))
        error = raised.value
        assert (error.pgcode, error.pgerror) == ("23505", error.message)
        diag = error.diag
        assert (diag.sqlstate, diag.severity, diag.severity_nonlocalized) == ("23505", "ERROR", "ERROR")
        assert (diag.schema_name, diag.table_name, diag.constraint_name) == ("public", "users", "users_pkey")
        assert diag.message_primary == error.message
        assert diag.message_detail == "Key (email)=(ada@example.org) already exists."
        assert (diag.source_function, diag.statement_position) == ("_bt_check_unique", None)
        connection.rollback()
        with pytest.raises(connection.ProgrammingError) as raised:
            cursor.execute("SELECT nothing")
        assert raised.value.diag.statement_position == "8"
        assert wire.InterfaceError("of the client").diag.sqlstate is None

    def test_diagnostics_are_those_of_psycopg(self) -> None:
        """Every attribute of psycopg's `diag` is there."""
        psycopg = pytest.importorskip("psycopg.errors")
        names = {name for name in dir(psycopg.Diagnostic) if not name.startswith("_")}
        assert names <= set(vars(wire.Diagnostic({})))

    def test_two_phase_transactions_refuse_what_pep_249_refuses(self, connection: wire.Connection) -> None:
        """commit, rollback, a second beginning, and ends without a beginning."""
        xid = connection.xid(7, "global", "branch")
        assert (tuple(xid), str(xid)) == ((7, "global", "branch"), "7_Z2xvYmFs_YnJhbmNo")
        for end in (connection.tpc_prepare, connection.tpc_commit, connection.tpc_rollback):
            with pytest.raises(wire.ProgrammingError):
                end()
        connection.tpc_begin(xid)
        connection.cursor().execute("SELECT 1")
        for wrong in (
            connection.commit,
            connection.rollback,
            lambda: connection.tpc_begin("another"),
            lambda: connection.tpc_commit("another"),
        ):
            with pytest.raises(wire.ProgrammingError):
                wrong()
        connection.tpc_rollback()
        connection.rollback()
        for arguments in ((-1, "g", "b"), (2**31, "g", "b"), (1, "g" * 65, "b")):
            with pytest.raises(wire.ProgrammingError):
                connection.xid(*arguments)
