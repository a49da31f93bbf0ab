"""Fork and snapshot by their hooks: what is held, fetched and learnt by then, and how it goes on."""

from __future__ import annotations

import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import in_a_child, wait_until
from sqlalchemy import event, exc, text

from plungepool import lifecycle, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from plungepool_toolkit.postgres import Postgres

PID = text("SELECT pg_backend_pid()")


def take_snapshot(engine: Engine) -> None:
    """Do what the hook does before a snapshot, as if the process had no other engine."""
    snapshot.before({engine: lifecycle._engines[engine]}, lifecycle._opened)


def restore(*engines: Engine) -> None:
    """Do what the hook does after a restore, as if the process had no other engine."""
    snapshot.after({engine: lifecycle._engines[engine] for engine in engines}, lifecycle._opened)


def is_gone(postgres: Postgres, pid: int) -> bool:
    """Say whether the server has ended a session."""
    return postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid) == [[0]]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged; each in one line and without a traceback."""
    assert not any(record.exc_info or "\n" in record.getMessage() for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


def test_forked_child_does_not_use_the_parents_idle_connection(make_engine: Callable[..., Engine]) -> None:
    """With one connection, idle at the fork, the child opens its own, and closing that leaves the parent's alive."""
    engine = make_engine(pool_size=1)
    with engine.connect() as connection:
        parents = connection.execute(PID).scalar_one()

    def connect() -> int:
        with engine.connect() as connection:
            own = connection.execute(PID).scalar_one()
        engine.dispose()
        return int(own)

    childs = in_a_child(connect)
    assert childs.isdigit(), childs
    assert int(childs) != parents
    with engine.connect() as connection:
        assert connection.execute(PID).scalar_one() == parents


def test_forked_child_connects_while_the_parent_holds_the_only_connection(make_engine: Callable[..., Engine]) -> None:
    """What the parent had checked out at the fork takes no place of the child's; its transaction goes on."""
    engine = make_engine(pool_size=1, checkout_timeout_s=0.2)
    with engine.begin() as held:
        parents = held.execute(PID).scalar_one()

        def connect() -> int:
            with engine.connect() as connection:
                return int(connection.execute(PID).scalar_one())

        childs = in_a_child(connect)
        assert childs.isdigit(), childs
        assert int(childs) != parents
        assert held.execute(PID).scalar_one() == parents


def test_before_a_snapshot_connections_are_closed_and_secrets_dropped(
    make_engine: Callable[..., Engine], postgres: Postgres
) -> None:
    """What the hook leaves of each engine: no session on the server, and nothing that was fetched."""
    engine = make_engine(pool_size=1)
    with engine.connect() as connection:
        pid = connection.execute(PID).scalar_one()
    forgotten: list[str] = []
    lifecycle.follow(engine, lambda: forgotten.append("secret"), lambda: forgotten.append("prepared"))
    take_snapshot(engine)
    assert forgotten == ["secret", "prepared"]
    assert engine.pool.checkedin() == 0
    # A backend leaves a moment after its socket was closed.
    postgres.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
    with engine.connect() as connection:
        assert connection.execute(PID).scalar_one() != pid


def test_an_engine_that_nobody_holds_is_not_kept(make_engine: Callable[..., Engine]) -> None:
    """Following an engine keeps no reference to it."""
    import gc
    import weakref

    from plungepool import Settings, build_engine

    gone = weakref.ref(build_engine(Settings(host="db.invalid", user="app", password="unused")))
    gc.collect()
    assert gone() is None


def test_hook_is_registered_with_the_runtime_where_there_are_snapshots() -> None:
    """With SnapStart the import registers one hook of each kind; on demand it does not even import them."""
    program = (
        "import sys\n"
        "import plungepool\n"
        "hooks = sys.modules.get('snapshot_restore_py')\n"
        "print([function.__name__ for function, _, _ in hooks.get_before_snapshot() + hooks.get_after_restore()]\n"
        "    if hooks else 'plungepool.snapshot' in sys.modules)\n"
    )
    for kind, expected in (("snap-start", "['before', 'after']"), ("on-demand", "False")):
        environ = os.environ | {"AWS_LAMBDA_INITIALIZATION_TYPE": kind}
        result = subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60
        )
        assert (result.stdout.strip(), result.stderr) == (expected, "")


def test_what_a_first_connect_imports_is_in_the_snapshot() -> None:
    """
    Importing boto3 takes a small function seconds: not in each restored environment. A file of authorities that is not
    there is no error of the hook's, which would end the version.
    """
    program = (
        "import sys, snapshot_restore_py\n"
        "from plungepool import Settings, build_engine, tls\n"
        "engines = [build_engine(Settings(auth='secret', secret_arn='s', host='h', region='eu-west-1', **more))\n"
        "    for more in ({}, {'ca_file': '/nowhere.pem'})]\n"
        "wanted = 'boto3', 'aws_lambda_powertools.utilities.parameters', 'plungepool.wire.scram'\n"
        "seen = lambda: [name in sys.modules for name in wanted] + [len(tls._contexts)]\n"
        "print(seen())\n"
        "((before, arguments, named),) = snapshot_restore_py.get_before_snapshot()\n"
        "before(*arguments, **named)\n"
        "print(seen())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.splitlines() == ["[False, False, False, 0]", "[True, True, True, 1]"], result.stderr


def test_a_connection_that_is_checked_out_is_in_no_snapshot(
    make_engine: Callable[..., Engine], postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Its session ends, its transaction with it, and the line that took it is told; who uses it afterwards gets an error
    that says why, and after a rollback a connection of the new environment's.
    """
    engine = make_engine(pool_size=2)
    held = engine.connect()
    pid = held.execute(PID).scalar_one()
    line = sys._getframe().f_lineno - 2
    with engine.connect():
        pass
    take_snapshot(engine)
    (told,) = messages(caplog)
    assert f"taken at {__file__}:{line} in " in told
    wait_until(lambda: is_gone(postgres, pid))
    restore(engine)
    with pytest.raises(exc.InterfaceError, match=r"closed before the snapshot was taken.* the handler") as caught:
        held.execute(PID)
    assert caught.value.connection_invalidated
    held.rollback()
    assert held.execute(PID).scalar_one() != pid
    held.close()
    assert engine.pool.status() == "2 connections at most: 0 in use, 1 kept"


def test_what_was_detached_or_left_by_a_disposed_pool_is_in_no_snapshot(
    make_engine: Callable[..., Engine], postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """
    It is closed since it lives, whatever the pool knows of it, and whether or not it would say goodbye at the process's
    end; what nobody has any more is not worth a word.
    """
    engine = make_engine(pool_size=3, shutdown="off")
    detached, left = engine.raw_connection(), engine.raw_connection()
    detached.detach()
    dropped = engine.connect()
    pids = []
    for one in (detached, left, dropped.connection):
        with one.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pids.append(cursor.fetchone()[0])
    del one, dropped
    engine.dispose()
    take_snapshot(engine)
    assert len(messages(caplog)) == 2
    wait_until(lambda: all(is_gone(postgres, pid) for pid in pids))
    assert {getattr(one.dbapi_connection, "gone", None) for one in (detached, left)} == {True}


def test_a_statement_that_runs_when_the_snapshot_is_taken_is_stopped(
    make_engine: Callable[..., Engine], postgres: Postgres
) -> None:
    """Another thread's, whose wait ends with an error, and not with what a socket of that number reads next."""
    engine = make_engine(pool_size=1)
    pids: list[int] = []
    errors: list[BaseException] = []

    def sleep() -> None:
        try:
            with engine.connect() as connection:
                pids.append(connection.execute(PID).scalar_one())
                connection.execute(text("SELECT pg_sleep(600)"))
        except exc.DBAPIError as error:
            errors.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND query LIKE '%pg_sleep(600)%' AND state = 'active'"
    )
    wait_until(lambda: pids and postgres.execute(running, pids[0]) == [[1]])
    take_snapshot(engine)
    thread.join(60)
    assert not thread.is_alive()
    assert len(errors) == 1
    wait_until(lambda: is_gone(postgres, pids[0]))
    restore(engine)
    with engine.connect() as connection:
        assert connection.execute(PID).scalar_one() != pids[0]


def test_what_was_opened_after_the_hook_is_let_go_of_without_a_byte(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread, or a hook of the user's, may connect when ours has run: then every clone has the socket."""
    engine = make_engine(pool_size=2)
    take_snapshot(engine)
    with engine.connect() as connection:
        kept = connection.execute(PID).scalar_one()
    held = engine.raw_connection()
    said: list[Any] = []
    monkeypatch.setattr("plungepool.wire.transport.Transport.say", lambda self, farewell: said.append(farewell))
    monkeypatch.setattr("plungepool.wire.transport.Transport.send", lambda self, data: said.append(data))
    restore(engine)
    held.close()
    assert said == []
    monkeypatch.undo()
    with engine.connect() as connection:
        assert connection.execute(PID).scalar_one() != kept


def test_the_default_schema_is_asked_for_anew(make_engine: Callable[..., Engine], postgres: Postgres) -> None:
    """The role's search path may have been changed between the snapshot and the restore, weeks later."""
    postgres.execute(
        "CREATE ROLE of_snapshots LOGIN; CREATE SCHEMA elsewhere; GRANT USAGE ON SCHEMA elsewhere TO public"
    )
    try:
        engine = make_engine(user="of_snapshots", password="not asked for")
        with engine.connect() as connection:
            connection.dialect._ask_default_schema_name(connection)  # type: ignore[attr-defined]
            assert connection.dialect.default_schema_name == "public"
        take_snapshot(engine)
        postgres.execute("ALTER ROLE of_snapshots SET search_path = elsewhere")
        restore(engine)
        with engine.connect() as connection:
            connection.dialect._ask_default_schema_name(connection)  # type: ignore[attr-defined]
            assert connection.dialect.default_schema_name == "elsewhere"
        engine.dispose()
    finally:
        postgres.execute("DROP SCHEMA elsewhere; DROP ROLE of_snapshots")


def test_nothing_is_drawn_twice(make_engine: Callable[..., Engine]) -> None:
    """
    After the restore Python's `random` begins anew; names of two-phase transactions do not come from there at all: with
    the same name one clone would commit what another has prepared.
    """
    engine = make_engine()
    drawn, names = set(), set()
    for _ in range(3):
        random.seed(1)
        names.add(engine.dialect.create_xid())  # type: ignore[no-untyped-call]
        restore(engine)
        drawn.add(random.random())
    assert (len(drawn), len(names)) == (3, 3)


def test_a_connection_is_opened_ahead_where_that_is_wanted(make_engine: Callable[..., Engine]) -> None:
    """It is kept in the pool as any other, and the first checkout gets it; nothing is opened elsewhere."""
    ahead, other = make_engine(connect_on_restore=True, pool_size=2), make_engine()
    opened: list[Any] = []
    event.listen(ahead, "connect", lambda connection, _: opened.append(connection))
    restore(ahead, other)
    assert (ahead.pool.checkedin(), other.pool.checkedin()) == (1, 0)  # type: ignore[attr-defined]
    with ahead.connect() as connection:
        assert connection.connection.dbapi_connection is opened[0]
    assert len(opened) == 1


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("what", ["refused", "silent", "listener", "no thread"])
def test_a_connection_ahead_that_fails_fails_nothing(
    make_engine: Callable[..., Engine],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    silent: int,
    what: str,
) -> None:
    """One line says why, without what may be secret; then it is as if nobody had tried."""
    monkeypatch.setattr(snapshot, "_AHEAD_S", 0.2)
    engine = make_engine(connect_on_restore=True, port=silent if what == "silent" else 1, checkout_timeout_s=0.5)
    if what == "listener":

        def connect(*_: object) -> None:
            raise ValueError("with what is secret")

        event.listen(engine, "do_connect", connect)
    if what == "no thread":

        def refuse(_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
    restore(engine)
    monkeypatch.undo()
    (told,) = messages(caplog)
    expected = {
        "refused": "127.0.0.1:1 cannot be reached: Connection refused",
        "silent": "within 0.2 s",
        "listener": "ValueError",
        "no thread": "RuntimeError",
    }
    assert told.startswith("no connection was opened in advance after the restore, so the first invocation opens one: ")
    assert expected[what] in told
    assert "secret" not in told
    assert engine.pool.status() == "1 connections at most: 0 in use, 0 kept"


def test_a_connection_ahead_that_comes_too_late_takes_no_place(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What hangs where nothing can stop it (a name's look-up) is left alone: the first invocation has the pool to itself,
    and all of its time to connect.
    """
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(snapshot, "_AHEAD_AT_MOST_S", 0.2)
    engine = make_engine(connect_on_restore=True, pool_size=1, checkout_timeout_s=0.5)
    go_on, late = threading.Event(), []

    def hang(*_: object) -> None:
        if threading.current_thread().name == "plungepool-ahead":
            go_on.wait(60)

    event.listen(engine, "do_connect", hang)
    event.listen(engine, "close", lambda connection, _: late.append(connection))
    begun = time.time()
    restore(engine)
    assert time.time() - begun < 30
    (told,) = messages(caplog)
    assert told.endswith("it took longer than 0.2 s")
    with engine.connect() as connection:
        first = connection.connection.dbapi_connection
    go_on.set()
    wait_until(lambda: late)
    assert late != [first]
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection is first
