"""
Prints, for each kind of error, deadline, shutdown and restore, the modules that the first of its kind imports.

Run in a process of its own by test_first_errors.py: what is imported stays imported.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

# Before SQLAlchemy, as in a function: whoever imports that first has all of it.
from plungepool import PoolExhausted, Settings, build_engine, lifecycle, snapshot

import sqlalchemy  # isort: skip
from sqlalchemy import text  # isort: skip

from plungepool.dialect import DeadlineExceeded  # isort: skip

_, host, port, password = sys.argv
imported: dict[str, list[str]] = {}


def engine(**settings: object) -> sqlalchemy.Engine:
    base = {"host": host, "port": int(port), "user": "postgres", "password": password, "tls": "disable"}
    return build_engine(Settings(**(base | settings)))


def first(path: str, kind: type[BaseException] | None, cause: Any) -> None:
    before = set(sys.modules)
    try:
        cause()
        seen = None
    except BaseException as error:
        seen = type(error)
    imported[path] = sorted(set(sys.modules) - before)
    assert seen is kind, f"{path}: {seen}"


def ring(number: int, frame: object) -> None:
    raise TimeoutError("an application's own time-out")


def statement(sql: str, value: object = None) -> Any:
    def run() -> None:
        with main.begin() as connection:
            connection.execute(text(sql), {} if value is None else {"x": value})

    return run


def nested() -> None:
    with main.connect(), main.connect():
        pass


def struck() -> None:
    signal.signal(signal.SIGALRM, ring)
    with main.connect() as connection:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        connection.execute(text("SELECT pg_sleep(5)"))


def deadline() -> None:
    with main.connect() as connection:
        connection.connection.dbapi_connection.deadline = time.time() + 0.05
        connection.execute(text("SELECT pg_sleep(5)"))


def given_up() -> None:
    with main.connect() as connection:
        connection.execute(text("SELECT 1"))
        raise KeyboardInterrupt


def lost() -> None:
    with main.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def replaced() -> None:
    with main.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
    with other.begin() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    with main.connect() as connection:
        connection.execute(text("SELECT 1"))


def forgotten_in_a_thread() -> None:
    thread = threading.Thread(target=lambda: main.connect().execute(text("SELECT 1")))
    thread.start()
    thread.join()
    with main.connect() as connection:
        connection.execute(text("SELECT 1"))


def forked() -> None:
    child = os.fork()
    if child == 0:
        before = set(sys.modules)
        with main.connect() as connection:
            connection.execute(text("SELECT 1"))
        os._exit(len(set(sys.modules) - before))
    _, status = os.waitpid(child, 0)
    assert status == 0


def connect_once(**settings: object) -> Any:
    built = engine(**settings)  # at init, as a function does

    def run() -> None:
        with built.connect():
            pass

    return run


main, other = engine(checkout_timeout_s=0.2), engine()
for one in (main, other):
    with one.begin() as connection:
        connection.execute(text("SELECT CAST(:x AS int)"), {"x": 1})

exc = sqlalchemy.exc
first("an error of the statement", exc.ProgrammingError, statement("SELEC"))
first("an error of a value", exc.DataError, statement("SELECT 1 / CAST(:x AS int)", 0))
first("a constraint", exc.IntegrityError, statement("DO $$ BEGIN RAISE unique_violation; END $$"))
first("a conflict", exc.OperationalError, statement("DO $$ BEGIN RAISE serialization_failure; END $$"))
first("the server's time-out", exc.OperationalError, statement("SET LOCAL statement_timeout = 1; SELECT pg_sleep(5)"))
first("an exhausted pool", PoolExhausted, nested)
first("a lost connection", exc.OperationalError, lost)
first("a stale connection", None, replaced)
first("an application's time-out", TimeoutError, struck)
first("an interrupt", KeyboardInterrupt, given_up)
first("a deadline", DeadlineExceeded, deadline)
first("a forgotten connection", None, forgotten_in_a_thread)
first("a refused connect", exc.OperationalError, connect_once(port=1))
first("a server without TLS", exc.OperationalError, connect_once(tls="verify-full"))
first("a database that is not there", exc.ProgrammingError, connect_once(database="nowhere"))
first("a fork", None, forked)
first("a snapshot", None, lambda: snapshot.before(lifecycle._engines, lifecycle._opened))
first("the end of a snapshot", None, lambda: snapshot.after(lifecycle._engines, lifecycle._opened))
first("a restore", None, statement("SELECT 1"))
first("a shutdown", None, main.dispose)
print(json.dumps(imported))
