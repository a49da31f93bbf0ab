"""What holds in one transaction: told once, with the first statement that matters, never left out or left behind."""

from __future__ import annotations

import io
import random
import time
from contextlib import suppress
from typing import Any

import pytest

from plungepool import wire
from plungepool.wire.local import Local, limit_transaction
from plungepool.wire.messages import first_words, may_keep, parse, query
from plungepool.wire.protocol import FAILED, IDLE, IN_TRANSACTION

TENANT = "SELECT nullif(current_setting('app.tenant_id', true), '')"
RUNS = 12
STEPS = 120


def tenant(connection: wire.Connection) -> Any:
    """The tenant of the transaction that runs, or of a new one."""
    return connection.cursor().execute(TENANT).fetchone()[0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("statement", "first"),
    [
        ("select 1", "SELECT 1"),
        ("  \n\tSET x", "SET X"),
        ("-- a comment\nSET x", "SET X"),
        ("-- ended by a carriage return\rCOMMIT", "COMMIT"),
        ("/* a */ -- b\n/* c */COMMIT", "COMMIT"),
        ("/* a /* nested */ one */COMMIT", "COMMIT"),
        ("/*/**/*/COMMIT", "COMMIT"),
        ("/* /*/ */ */LOCK", "LOCK"),
        (";COMMIT AND CHAIN", "COMMIT AND CHAIN"),
        (" ; /* empty */ ;-- a\n;COMMIT", "COMMIT"),
        ("/* never closed", ""),
        ("--", ""),
        ("", ""),
    ],
)
def test_first_words(statement: str, first: str) -> None:
    """As the server reads comments, nested ones included."""
    assert first_words(statement) == first


def test_a_value_is_bound_and_its_name_is_checked() -> None:
    """One statement tells settings and deadline; no value stands in its text."""
    local = Local()
    local.give({"app.tenant_id": "unmistakable", "app.user": "x"})
    limit = limit_transaction(("transaction_timeout",), 5000)
    for told in (local.message(settings=True, limit=""), local.message(settings=True, limit=limit)):
        parse, _, bind = told.partition(b"\0\0\0B")
        assert b"set_config('app.tenant_id', $1, true) IS NULL OR pg_catalog.set_config('app.user', $2" in parse
        assert b"unmistakable" not in parse
        assert b"unmistakable" in bind
        assert told.count(b"SELECT WHERE") == 1
        assert (b"transaction_timeout" in parse) is (limit.encode() in parse)
    assert local.message(settings=False, limit="") == b""
    assert b"app.tenant_id" not in local.message(settings=False, limit=limit)


def test_what_is_told_is_told_once_and_anew_in_the_next_transaction() -> None:
    """Not before a snapshot has to wait, not in a transaction that has failed, and again where it is not known."""
    local = Local()
    local.give({"a.b": "1"})
    local.begin()
    assert not local.has_to_tell("SET TRANSACTION READ ONLY", IDLE, autocommit=False)
    assert not local.has_to_tell("LOCK t", IN_TRANSACTION, autocommit=False)
    assert local.has_to_tell("SAVEPOINT s", IN_TRANSACTION, autocommit=False)
    assert not local.has_to_tell("ROLLBACK TO s", FAILED, autocommit=False)
    local.note(settings=False, limit="a limit")
    assert local.has_to_tell("SELECT 1", IN_TRANSACTION, autocommit=False)
    local.note(settings=True, limit="")
    assert not local.has_to_tell("SELECT 1", IN_TRANSACTION, autocommit=False)
    local.begin()
    assert local.has_to_tell("SELECT 1", IDLE, autocommit=True)


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT AND CHAIN",
        "; ;commit and chain",
        "end work and chain",
        "/* */ROLLBACK AND /* */ CHAIN",
        "abort\nand\nchain",
    ],
)
def test_a_chained_transaction_is_refused(statement: str) -> None:
    """Whether one is open or not."""
    local = Local()
    local.give({"a.b": "1"})
    for status in (IDLE, IN_TRANSACTION, FAILED):
        with pytest.raises(wire.ProgrammingError, match="AND CHAIN"):
            local.has_to_tell(statement, status, autocommit=False)


@pytest.mark.parametrize(
    ("statement", "tells"),
    [
        ("SELECT 1", True),
        ("/* orders.py:12 */ SELECT 1", True),
        ("-- why\n(SELECT 1) UNION ALL (SELECT 2)", True),
        (";SELECT 1", True),
        ("EXPLAIN ANALYZE SELECT 1", True),
        ("VACUUM", False),
        ("CALL p()", False),
        ("SELECTION", True),  # a syntax error either way
    ],
)
def test_the_limit_goes_with_what_may_stand_in_a_transaction(statement: str, tells: bool) -> None:
    """In AUTOCOMMIT, whatever stands before its first word."""
    local = Local()
    end = time.time() + 5
    assert bool(local.limit(statement, IDLE, autocommit=True, deadline=end, version="18.1")) is tells


@pytest.mark.parametrize(
    ("statement", "may"), [("COMMIT", True), (";COMMIT", True), ("/* a */;; commit", True), ("SELECT 1", False)]
)
def test_what_may_keep_is_known_by_its_first_word(statement: str, may: bool) -> None:
    """Whether an answer that is lost leaves the outcome unknown, sent by either protocol."""
    assert may_keep([parse(statement)]) is may
    assert may_keep([query(statement)]) is may


def test_it_costs_no_flight(connection: wire.Connection) -> None:
    """Whatever a transaction begins with."""
    connection.cursor().execute("CREATE TABLE t (n int, tenant text DEFAULT current_setting('app.tenant_id', true))")
    connection.commit()
    connection.transaction_settings = {"app.tenant_id": "42"}
    cursor = connection.cursor()
    for deed in (
        lambda: cursor.execute("SELECT $1::int", (1,)),
        lambda: cursor.execute("SELECT 1;"),
        lambda: cursor.executemany("INSERT INTO t (n) VALUES ($1)", [(1,), (2,)]),
        lambda: cursor.execute("COPY t (n) FROM STDIN", stream=["3\n"]),
        lambda: cursor.execute("COPY t (n) TO STDOUT", stream=io.BytesIO()),
        lambda: cursor.declare("c", "SELECT n FROM t"),
        lambda: cursor.execute("SAVEPOINT s"),
        lambda: cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
    ):
        before = connection.flights
        deed()
        assert connection.flights == before + 1
        assert tenant(connection) == "42"
        connection.commit()
    assert cursor.execute("SELECT DISTINCT tenant FROM t").fetchall() == [("42",)]


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_setting_that_fails_lets_nothing_run(connection: wire.Connection, autocommit: bool) -> None:
    """The statement that it goes with is not carried out, and the next transaction is as if it had not been."""
    connection.cursor().execute("CREATE TABLE t (n int)")
    connection.commit()
    connection.autocommit = autocommit
    connection.transaction_settings = {"app.tenant_id": "42", "work_mem": "nonsense"}
    for statement in ("INSERT INTO t VALUES (1)", "WITH a AS (DELETE FROM t) INSERT INTO t VALUES (1)"):
        with pytest.raises(wire.DataError, match="invalid value"):
            connection.cursor().execute(statement)
        connection.rollback()
    with pytest.raises(wire.DataError, match="invalid value"):
        connection.cursor().execute("COPY t FROM STDIN", stream=["1\n"] * 100_000)
    connection.rollback()
    connection.transaction_settings = {}
    assert connection.cursor().execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert tenant(connection) is None


def test_changing_them_within_a_transaction_is_refused(connection: wire.Connection) -> None:
    """Also to the same ones; what was given is a copy."""
    given = {"app.tenant_id": "1"}
    connection.transaction_settings = given
    given["app.tenant_id"] = "2"
    assert tenant(connection) == "1"
    with pytest.raises(wire.ProgrammingError, match="transaction_settings cannot change"):
        connection.transaction_settings = {"app.tenant_id": "1"}
    connection.rollback()
    connection.transaction_settings = given
    assert tenant(connection) == "2"


def test_required_settings(connection: wire.Connection) -> None:
    """Nothing is sent by a cursor that is not the dialect's own; pings and the end of a transaction are."""
    connection.require_settings(["app.tenant_id"], "MY_SETTING")
    before = connection.flights
    for deed in (
        lambda: connection.cursor().execute("SELECT 1"),
        lambda: connection.cursor().execute("SELECT 1; SELECT 2"),
        lambda: connection.cursor().execute("COPY (SELECT 1) TO STDOUT", stream=io.BytesIO()),
        lambda: connection.cursor().executemany("SELECT $1", [(1,)]),
        lambda: connection.cursor().declare("c", "SELECT 1"),
    ):
        with pytest.raises(wire.SettingsMissing, match=r"app\.tenant_id.*\(MY_SETTING\)"):
            deed()
    connection.commit()
    assert connection.flights == before
    connection.ping()
    own = connection.cursor()
    own.is_own = True
    own.execute("SELECT 1")
    with pytest.raises(wire.SettingsMissing):
        connection.cursor().execute("SELECT 1")
    connection.rollback()
    connection.transaction_settings = {"APP.tenant_id": "1"}
    assert tenant(connection) == "1"


class Model:
    """A connection beside what is known of it, used at random."""

    def __init__(self, connection: wire.Connection, random_: random.Random) -> None:
        self.connection, self.random = connection, random_
        self.given: str | None = None
        self.savepoints = 0

    def execute(self, statement: str, **more: Any) -> wire.Cursor:
        return self.connection.cursor().execute(statement, **more)

    def look(self) -> None:
        if not self.connection.in_failed_transaction:
            assert tenant(self.connection) == self.given

    def count(self) -> None:
        if not self.connection.in_failed_transaction:
            rows = self.execute(f"SELECT DISTINCT ({TENANT}) FROM generate_series(1, $1)", args=(3,)).fetchall()
            assert rows == [(self.given,)]

    def copy(self) -> None:
        if not self.connection.in_failed_transaction:
            target = io.StringIO()
            self.execute(f"COPY ({TENANT}) TO STDOUT", stream=target)
            assert target.getvalue().strip() == (self.given or "\\N")

    def fail(self) -> None:
        with pytest.raises(wire.Error):
            self.execute("SELECT 1 / 0")

    def set(self) -> None:
        with suppress(wire.Error):
            self.execute("SET TRANSACTION READ WRITE")

    def lock(self) -> None:
        with suppress(wire.Error):
            self.execute("LOCK TABLE pg_temp.t" if self.random.random() < 0.1 else "LOCK TABLE model IN SHARE MODE")

    def savepoint(self) -> None:
        with suppress(wire.Error):
            self.execute("SAVEPOINT s")

    def back(self) -> None:
        with suppress(wire.Error):
            self.execute("ROLLBACK TO s")

    def by_hand(self) -> None:
        with suppress(wire.Error):
            self.execute(self.random.choice(["COMMIT", "ROLLBACK", "BEGIN", "END AND CHAIN", "BEGIN; SELECT 1"]))

    def commit(self) -> None:
        with suppress(wire.InternalError):  # a statement had failed
            self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    def many(self) -> None:
        with suppress(wire.Error):
            self.connection.cursor().executemany("SELECT $1", [(1,), ("a",)])

    def give(self) -> None:
        new = self.random.choice(["1", "2", None])
        try:
            self.connection.transaction_settings = {"app.tenant_id": new} if new else {}
            self.given = new
        except wire.ProgrammingError:
            assert self.connection.in_transaction

    def switch(self) -> None:
        with suppress(wire.ProgrammingError):
            self.connection.autocommit = self.random.random() < 0.3

    def anew(self) -> None:
        if not self.connection.in_transaction:
            self.connection.start_anew()
            self.given = None


@pytest.fixture
def model_table(connection: wire.Connection) -> wire.Connection:
    """A connection, and a table to lock."""
    connection.cursor().execute("CREATE TABLE model ()")
    connection.commit()
    return connection


@pytest.mark.parametrize("seed", range(RUNS))
def test_whatever_comes_before_a_row_is_read_with_its_tenant(model_table: wire.Connection, seed: int) -> None:
    """Statements, errors, savepoints, ends of all kinds, at random: each row is read with the tenant that is set."""
    random_ = random.Random(seed)
    model = Model(model_table, random_)
    deeds = [getattr(model, name) for name in vars(Model) if not name.startswith("_") and name != "execute"]
    for _ in range(STEPS):
        random_.choice(deeds)()
        if random_.random() < 0.3:
            model.look()
    model_table.rollback()
    model_table.transaction_settings = {}
    assert tenant(model_table) is None
