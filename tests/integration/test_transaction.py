"""run_transaction and once, on a real server and through a network that is really cut."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cluster import Cluster
from sqlalchemy import Connection, Text, exc, text
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column, sessionmaker

from plungepool import OutcomeUnknown, Settings, build_engine, once, run_transaction
from plungepool_toolkit.network import ChaosProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from plungepool_toolkit.fixtures import Database

TABLES = """
    CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
    INSERT INTO account VALUES (1, 100), (2, 100);
    CREATE TABLE effect (key text)
"""
MIGRATION = Path(__file__).parents[2] / "functions/prepare_database/migrations/003_exactly_once.sql"


@pytest.fixture
def prepared(database: Database) -> Database:
    """A database with two accounts and the table of keys."""
    for statement in (MIGRATION.read_text() + TABLES).split(";"):
        database.execute(statement)
    return database


def settings(database: Database, port: int | None = None, **more: Any) -> Settings:
    return (
        Settings.from_env(database.variables())
        if not (port or more)
        else Settings(
            host=database.server.host,
            port=port or database.server.port,
            user="postgres",
            password=database.variables()["PLUNGEPOOL_PASSWORD"],
            database=database.name,
            tls="disable",
            **more,
        )
    )


@pytest.fixture
def engine(prepared: Database) -> Iterator[Engine]:
    """An engine of two connections on the prepared database."""
    engine = build_engine(settings(prepared, pool_size=4))
    yield engine
    engine.dispose()


@pytest.fixture
def proxy(prepared: Database) -> Iterator[ChaosProxy]:
    """A network between the engine and the server that can be cut."""
    with ChaosProxy(prepared.server.host, prepared.server.port) as proxy:
        yield proxy


@pytest.fixture
def cut_engine(prepared: Database, proxy: ChaosProxy) -> Iterator[Engine]:
    """An engine whose network can be cut."""
    engine = build_engine(settings(prepared, port=proxy.port))
    yield engine
    engine.dispose()


def withdraw(connection: Connection) -> int:
    """Take one from both accounts, reading first: what two of them do at once under SERIALIZABLE is a conflict."""
    total: int = connection.execute(text("SELECT sum(balance) FROM account")).scalar_one()
    connection.execute(text("UPDATE account SET balance = balance - 1"))
    return total


def test_returns_what_the_function_returned_and_commits(engine: Engine, prepared: Database) -> None:
    """One attempt is enough where nothing is in the way."""
    assert run_transaction(engine, withdraw) == 200
    assert prepared.execute("SELECT sum(balance) FROM account") == [[198]]


@pytest.mark.parametrize("kind", ["connection", "session"])
def test_conflicts_run_again_until_all_have_committed(engine: Engine, prepared: Database, kind: str) -> None:
    """Four threads that read and write the same rows under SERIALIZABLE lose no update."""
    source: Any = engine if kind == "connection" else sessionmaker(engine)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                run_transaction(source, withdraw, attempts=50, isolation_level="SERIALIZABLE")  # type: ignore[arg-type]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert prepared.execute("SELECT balance FROM account ORDER BY id") == [[80], [80]]


def test_gives_up_after_the_attempts(engine: Engine) -> None:
    """The last conflict is raised, with a note that says how often it was tried."""
    calls = []

    def conflict(connection: Connection) -> None:
        calls.append(connection)
        connection.execute(text("DO $$ BEGIN RAISE serialization_failure; END $$"))

    with pytest.raises(exc.OperationalError) as caught:
        run_transaction(engine, conflict, attempts=3)
    assert len(calls) == 3
    assert caught.value.__notes__ == ["run_transaction: this was attempt 3 of 3"]


@pytest.mark.parametrize("level", [None, "SERIALIZABLE"])
def test_a_writer_that_has_moved_is_looked_for_and_the_transaction_runs_again(level: str | None) -> None:
    """
    A connection reaches what is a standby now, which refuses a write, and SERIALIZABLE altogether: neither is kept.
    """
    with Cluster() as cluster:
        assert cluster.standby is not None
        cluster.primary.execute("CREATE TABLE written (a int); CREATE ROLE app LOGIN PASSWORD 'known'")
        cluster.primary.execute("GRANT ALL ON written TO app")
        [proxy] = cluster.proxies
        writer, proxy.upstream = proxy.upstream, (cluster.standby.host, cluster.standby.port)
        engine = build_engine(Settings(host=proxy.host, port=proxy.port, user="app", password="known", tls="disable"))
        runs = []

        def write(connection: Connection) -> None:
            runs.append(level)
            proxy.upstream = writer
            connection.execute(text("INSERT INTO written VALUES (1)"))

        run_transaction(engine, write, isolation_level=level)
        engine.dispose()
        assert len(runs) == 2
        assert cluster.primary.execute("SELECT count(*) FROM written") == [[1]]


@pytest.mark.parametrize("sqlstate", ["23505", "57014", "22012", "P0001"])
def test_other_errors_are_raised_at_once(engine: Engine, sqlstate: str) -> None:
    """What would fail again, or was asked to stop, is not tried again."""
    calls = []

    def fail(connection: Connection) -> None:
        calls.append(connection)
        connection.execute(text(f"DO $$ BEGIN RAISE SQLSTATE '{sqlstate}'; END $$"))

    with pytest.raises(exc.DBAPIError):
        run_transaction(engine, fail)
    assert len(calls) == 1


def test_the_functions_own_error_rolls_back_and_is_raised_at_once(engine: Engine, prepared: Database) -> None:
    """Nothing is kept, and nothing runs again."""
    calls = []

    def fail(connection: Connection) -> None:
        calls.append(connection)
        withdraw(connection)
        raise LookupError("no such order")

    with pytest.raises(LookupError):
        run_transaction(engine, fail)
    assert len(calls) == 1
    assert prepared.execute("SELECT sum(balance) FROM account") == [[200]]


@pytest.mark.parametrize("kind", ["connection", "session"])
def test_a_connection_lost_before_commit_runs_again(
    cut_engine: Engine, proxy: ChaosProxy, prepared: Database, kind: str
) -> None:
    """The server undid what the lost connection had done; the second attempt does it once."""
    source: Any = cut_engine if kind == "connection" else sessionmaker(cut_engine)
    calls = []

    def work(connection: Any) -> int:
        calls.append(connection)
        connection.execute(text("UPDATE account SET balance = balance - 1 WHERE id = 1"))
        if len(calls) == 1:
            proxy.reset()
        total: int = connection.execute(text("SELECT sum(balance) FROM account")).scalar_one()
        return total

    assert run_transaction(source, work) == 199
    assert len(calls) == 2
    assert prepared.execute("SELECT sum(balance) FROM account") == [[199]]


def test_a_backend_that_was_ended_before_commit_runs_again(engine: Engine, prepared: Database) -> None:
    """The word that ended the session waits in the socket when COMMIT is due, so COMMIT is not sent."""
    calls = []

    def work(connection: Connection) -> None:
        calls.append(connection)
        pid = connection.execute(
            text("UPDATE account SET balance = balance - 1 WHERE id = 1 RETURNING pg_backend_pid()")
        ).scalar_one()
        if len(calls) == 1:
            prepared.execute("SELECT pg_terminate_backend($1, 5000)", pid)

    run_transaction(engine, work)
    assert len(calls) == 2
    assert prepared.execute("SELECT balance FROM account WHERE id = 1") == [[99]]


@pytest.mark.parametrize("kind", ["connection", "session"])
@pytest.mark.parametrize("arrives", [True, False], ids=["COMMIT arrives", "COMMIT is lost"])
def test_a_lost_answer_to_commit_is_never_run_again(
    cut_engine: Engine, proxy: ChaosProxy, prepared: Database, kind: str, arrives: bool
) -> None:
    """Whether the server has carried it out, the caller is told that nobody knows."""
    source: Any = cut_engine if kind == "connection" else sessionmaker(cut_engine)
    calls = []

    def work(connection: Any) -> None:
        calls.append(connection)
        connection.execute(text("UPDATE account SET balance = balance - 1 WHERE id = 1"))
        if arrives:
            proxy.cut_after(from_server=1)
        else:
            proxy.cut_after(from_client=1)

    with pytest.raises(OutcomeUnknown, match="COMMIT was sent"):
        run_transaction(source, work)
    assert len(calls) == 1
    assert prepared.execute("SELECT balance FROM account WHERE id = 1") == [[99 if arrives else 100]]


@pytest.mark.parametrize("kind", ["connection", "session"])
@pytest.mark.parametrize(
    "commit",
    ["COMMIT", "COMMIT AND CHAIN", "COMMIT; BEGIN", "UPDATE account SET balance = 99 WHERE id = 1; END"],
)
@pytest.mark.parametrize("trouble", ["lost", "conflict"])
def test_what_a_text_of_the_functions_own_has_committed_is_not_done_again(
    cut_engine: Engine, proxy: ChaosProxy, prepared: Database, kind: str, commit: str, trouble: str
) -> None:
    """SQLAlchemy does not see it, and what comes behind it may be undone as any: the server's word counts."""
    source: Any = cut_engine if kind == "connection" else sessionmaker(cut_engine)
    calls = []

    def work(connection: Any) -> None:
        calls.append(connection)
        connection.execute(text("UPDATE account SET balance = balance - 1 WHERE id = 1"))
        connection.execute(text(commit))
        if trouble == "lost":
            proxy.reset()
        connection.execute(text("SELECT 1" if trouble == "lost" else conflict))

    conflict = "DO $$ BEGIN RAISE EXCEPTION 'a conflict' USING ERRCODE = '40001'; END $$"
    with pytest.raises(exc.DBAPIError) as caught:
        run_transaction(source, work)
    assert "committed within the function" in "".join(caught.value.__notes__)
    assert len(calls) == 1
    assert prepared.execute("SELECT balance FROM account WHERE id = 1") == [[99]]


@pytest.mark.parametrize("commit", ["COMMIT", "COMMIT AND CHAIN"])
def test_a_lost_answer_to_a_commit_of_the_functions_own(
    cut_engine: Engine, proxy: ChaosProxy, prepared: Database, commit: str
) -> None:
    """Nobody knows what became of it, as of any."""
    calls = []

    def work(connection: Connection) -> None:
        calls.append(connection)
        connection.execute(text("UPDATE account SET balance = balance - 1 WHERE id = 1"))
        proxy.cut_after(from_server=1)
        connection.execute(text(commit))

    with pytest.raises(OutcomeUnknown, match="was sent"):
        run_transaction(cut_engine, work)
    assert len(calls) == 1
    assert prepared.execute("SELECT balance FROM account WHERE id = 1") == [[99]]


def test_an_unknown_outcome_within_a_transaction_that_could_run_again(
    engine: Engine, cut_engine: Engine, proxy: ChaosProxy, prepared: Database
) -> None:
    """A transaction within another one's function has an end of its own; where that is unknown, nothing runs again."""
    calls = []

    def inner(connection: Connection) -> None:
        connection.execute(text("UPDATE account SET balance = balance - 1 WHERE id = 1"))
        proxy.cut_after(from_server=1)

    def outer(connection: Connection) -> None:
        calls.append(connection)
        connection.execute(text("UPDATE account SET balance = balance - 1 WHERE id = 2"))
        run_transaction(cut_engine, inner)

    with pytest.raises(OutcomeUnknown):
        run_transaction(engine, outer)
    assert len(calls) == 1
    assert prepared.execute("SELECT balance FROM account ORDER BY id") == [[99], [100]]


def test_autocommit_is_refused(engine: Engine) -> None:
    """There is no transaction that could run again, and a key would outlive an effect that fails."""
    with pytest.raises(ValueError, match="AUTOCOMMIT"):
        run_transaction(engine, withdraw, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(ValueError, match="AUTOCOMMIT"):
            once(connection, "a")


def test_a_source_that_cannot_begin_anew_is_refused(engine: Engine) -> None:
    """A connection or a session cannot be run again, whatever state it is in."""
    with engine.connect() as connection, pytest.raises(TypeError, match="needs the engine"):
        run_transaction(connection, withdraw)  # type: ignore[call-overload]
    with Session(engine) as session, pytest.raises(TypeError, match="needs the engine"):
        run_transaction(session, withdraw)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="at least 1"):
        run_transaction(engine, withdraw, attempts=0)


def test_a_session_of_several_engines_is_refused(prepared: Database) -> None:
    """
    They commit one after the other: what the first has kept the conflict of the second would do twice. Two-phase commit
    does not.
    """
    first, second = build_engine(settings(prepared)), build_engine(settings(prepared))
    calls = []

    class Base(DeclarativeBase):
        pass

    class Effect(Base):
        __tablename__ = "effect"
        key = mapped_column(Text, primary_key=True)

    def work(session: Session) -> None:
        calls.append(session)
        session.execute(text("UPDATE account SET balance = balance - 1 WHERE id = 1"))
        with session.begin_nested():
            session.execute(text("UPDATE account SET balance = balance - 1 WHERE id = 1"))
        session.add(Effect(key="a"))

    with pytest.raises(ValueError, match="several engines"):
        run_transaction(sessionmaker(first, binds={Effect: second}), work)
    assert len(calls) == 1
    assert prepared.execute("SELECT balance FROM account WHERE id = 1") == [[100]]
    run_transaction(sessionmaker(first, binds={Effect: first}), work)
    assert prepared.execute("SELECT balance FROM account WHERE id = 1") == [[98]]
    first.dispose()
    second.dispose()


def effect(connection: Any, key: str) -> bool:
    """Record an effect the first time."""
    if not once(connection, key):
        return False
    connection.execute(text("INSERT INTO effect VALUES (:key)"), {"key": key})
    return True


def test_once_is_true_once(engine: Engine, prepared: Database) -> None:
    """The second delivery finds the key."""
    assert [run_transaction(engine, lambda connection: effect(connection, "a")) for _ in range(3)] == [
        True,
        False,
        False,
    ]
    assert run_transaction(sessionmaker(engine), lambda session: effect(session, "a")) is False
    assert prepared.execute("SELECT count(*) FROM effect") == [[1]]


def test_two_keys_the_other_way_round_are_a_conflict_like_any(engine: Engine, prepared: Database) -> None:
    """One of the two transactions waits for the other's second key and is undone; again, it finds both known."""
    meeting, results = threading.Barrier(2, timeout=10), []

    def fulfil(*keys: str) -> None:
        first = [True]

        def work(connection: Connection) -> list[bool]:
            found = [once(connection, keys[0])]
            if first.pop() if first else False:
                meeting.wait()
            return [*found, once(connection, keys[1])]

        results.append(run_transaction(engine, work))

    threads = [threading.Thread(target=fulfil, args=keys) for keys in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == [[False, False], [True, True]]


def test_once_goes_with_the_transaction(engine: Engine) -> None:
    """A transaction that was rolled back has not been."""
    with pytest.raises(LookupError), engine.begin() as connection:
        assert effect(connection, "a")
        raise LookupError
    with engine.begin() as connection:
        assert effect(connection, "a")


def test_once_at_the_same_time_has_one_winner(engine: Engine, prepared: Database) -> None:
    """Whoever comes second waits, and finds the key where the first committed."""
    results: list[bool] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        results.append(run_transaction(engine, lambda connection: effect(connection, "b")))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]
    assert prepared.execute("SELECT count(*) FROM effect") == [[1]]


def test_the_same_key_tells_what_became_of_an_unknown_outcome(
    cut_engine: Engine, proxy: ChaosProxy, prepared: Database
) -> None:
    """Whether COMMIT arrived or not: after the next call the effect is there once."""
    for key, cut in (("arrives", {"from_server": 1}), ("is lost", {"from_client": 1})):

        def work(connection: Connection, key: str = key, cut: dict[str, int] = cut) -> None:
            effect(connection, key)
            proxy.cut_after(**cut)

        with pytest.raises(OutcomeUnknown):
            run_transaction(cut_engine, work)
        again = run_transaction(cut_engine, lambda connection, key=key: effect(connection, key))  # type: ignore[misc]
        assert again is (key == "is lost")
    assert prepared.execute("SELECT key FROM effect ORDER BY key") == [["arrives"], ["is lost"]]


def test_keys_expire_and_go(engine: Engine, prepared: Database) -> None:
    """An expired key is new again, and the table does not grow for ever."""
    for number in range(6):
        with engine.begin() as connection:
            assert once(connection, f"old {number}", keep_s=0)
    with engine.begin() as connection:
        assert once(connection, "old 5", keep_s=3600)
    with engine.begin() as connection:
        assert not once(connection, "old 5")
    assert prepared.execute("SELECT key FROM plungepool.once_keys") == [["old 5"]]


@pytest.mark.parametrize("key", ["", "x" * 1025])
def test_a_key_has_a_length(engine: Engine, key: str) -> None:
    """What would be known by everybody, or not fit into the index, is refused before it is sent."""
    with engine.begin() as connection, pytest.raises(ValueError, match="1 to 1024 bytes"):
        once(connection, key)


def test_once_costs_one_round_trip(engine: Engine) -> None:
    """It is one statement."""
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        wire: Any = connection.connection.dbapi_connection
        before = wire.flights
        once(connection, "a")
        assert wire.flights == before + 1


def test_pauses_end_at_the_deadline(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause reaches past the moment at which the invocation has to be over."""
    from plungepool import invocation, transaction

    monkeypatch.setattr(transaction, "jitter", lambda: 1.0)
    monkeypatch.setattr(transaction, "_FIRST_PAUSE_S", 30.0)
    calls = []

    def conflict(connection: Connection) -> None:
        calls.append(connection)
        connection.execute(text("DO $$ BEGIN RAISE serialization_failure; END $$"))

    import time

    invocation.end_at(time.time() + 0.9)
    try:
        with pytest.raises(exc.OperationalError):
            run_transaction(engine, conflict)
    finally:
        invocation.end_at(None)
    assert len(calls) == 1
