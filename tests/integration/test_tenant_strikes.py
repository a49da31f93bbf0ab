"""Exceptions between any two lines: no transaction has another's tenant, and no checkout what another one had set."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc, text
from strikes import KINDS, Injector, strike_threads

from plungepool import Settings, build_engine
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

# Strikes at every line; by default only some are struck in those shapes that differ little from another one.
LONG = "STRIKES" in os.environ
TENANTS = text("SELECT DISTINCT tenant_id FROM struck_pages")
STATE = text(
    "SELECT nullif(current_setting('app.tenant_id', true), ''), current_user::text, "
    "current_setting('transaction_isolation'), current_setting('transaction_read_only'), "
    "current_setting('transaction_deferrable'), (SELECT count(*) FROM struck_pages)"
)
CLEAN = (None, "struck", "read committed", "off", "off", 0)
SHAPES: dict[str, dict[str, Any]] = {
    "transaction": {},
    "autocommit": {"isolation_level": "AUTOCOMMIT"},
    "all": {"isolation_level": "SERIALIZABLE", "postgresql_readonly": True, "postgresql_deferrable": True},
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Double checkin attempted"),
    # A socket that was struck before anybody held it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(0 if LONG else 300),
]


@pytest.fixture(autouse=True)
def no_records() -> Iterator[None]:
    """Whoever keeps an exception keeps its connection: pytest keeps what is logged, and what a finalizer raises."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.disable(logging.CRITICAL)
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()
    logging.disable(logging.NOTSET)
    sys.unraisablehook = before


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server with a table of two tenants, and a role that the table's policy holds for."""
    with Postgres({"max_connections": 60}) as server:
        for statement in (
            "CREATE ROLE struck LOGIN; CREATE ROLE struck_other; GRANT struck_other TO struck",
            "CREATE TABLE struck_pages (tenant_id text, body text)",
            "ALTER TABLE struck_pages ENABLE ROW LEVEL SECURITY; ALTER TABLE struck_pages FORCE ROW LEVEL SECURITY",
            "CREATE POLICY p ON struck_pages USING (tenant_id = nullif(current_setting('app.tenant_id', true), ''))",
            "GRANT ALL ON struck_pages TO struck, struck_other; INSERT INTO struck_pages VALUES ('1'), ('2')",
        ):
            server.execute(statement)
        yield server


@pytest.fixture
def make(server: Postgres) -> Iterator[Callable[..., Engine]]:
    """Build engines of the role on the server."""
    engines: list[Engine] = []

    def build(**settings: Any) -> Engine:
        base = {"host": server.host, "port": server.port, "user": "struck", "password": "unused", "tls": "disable"}
        engines.append(build_engine(Settings(**(base | settings))))
        return engines[-1]

    yield build
    for engine in engines:
        engine.dispose()


def of(tenant: str) -> dict[str, Any]:
    return {"plungepool_settings": {"app.tenant_id": tenant, "role": "struck_other"}}


def in_a_thread(deed: Callable[[], None]) -> None:
    """Run what is traced in a thread of its own, which a trace function may leave with an exception that is handled."""
    problems: list[BaseException] = []

    def catch() -> None:
        try:
            deed()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=catch, daemon=True)
    thread.start()
    thread.join()
    for problem in problems:
        raise problem


@pytest.mark.parametrize("shape", SHAPES)
def test_a_strike_at_any_line_leaves_nothing_for_the_next_checkout(make: Callable[..., Engine], shape: str) -> None:
    """One connection: the very next use is without a tenant, in a transaction of the usual kind, or is the other's."""
    engine, options, wrong = make(checkout_timeout_s=1), SHAPES[shape], list[Any]()
    step = 1 if LONG else 3

    def use(tenant: str) -> None:
        with engine.execution_options(**of(tenant)).connect() as connection:
            if options:
                connection.execution_options(**options)
            seen = connection.execute(TENANTS).scalars().all()
            if seen != [tenant]:
                wrong.append((tenant, seen))

    def strike() -> None:
        at = 0
        while True:
            at += step
            with Injector(at, KINDS[at % 4]) as injector:
                try:
                    use("1")
                except BaseException:
                    if not injector.struck:
                        raise
            if at % 2:
                with engine.begin() as connection:
                    state = connection.execute(STATE).one()
                    in_transaction = connection.connection.dbapi_connection.in_transaction  # type: ignore[union-attr]
                if (tuple(state), in_transaction) != (CLEAN, True):
                    wrong.append((at, state, in_transaction))
            else:
                use("2")
            if not injector.struck and injector.left > 0:
                break
        assert at > 300

    in_a_thread(strike)
    assert wrong == []


def test_a_connection_that_goes_on_after_a_strike_has_what_its_options_say(make: Callable[..., Engine]) -> None:
    """Struck in execution_options(), in a statement or in the end of a transaction: an error, or the right tenant."""
    engine, wrong, answered = make(checkout_timeout_s=1), list[Any](), list[bool]()

    def work(connection: Connection) -> None:
        connection.execution_options(**of("1"))
        connection.execute(TENANTS)
        connection.commit()
        connection.execution_options(**of("2"))
        connection.execute(TENANTS)
        connection.rollback()

    def go_on(connection: Connection, at: int) -> None:
        for _ in range(2):
            try:
                said = connection.get_execution_options().get("plungepool_settings")
                seen = connection.execute(TENANTS).scalars().all()
                answered.append(True)
                if seen != ([said["app.tenant_id"]] if said else []):
                    wrong.append((at, said, seen))
            except (exc.SQLAlchemyError, AssertionError, AttributeError):
                pass  # refused, or broken by the strike within SQLAlchemy itself
            try:
                connection.rollback()
            except (exc.SQLAlchemyError, AssertionError, AttributeError):
                return

    def strike() -> None:
        at = 0
        while True:
            at += 1 if LONG else 3
            connection = engine.connect()
            with Injector(at, KINDS[at % 4]) as injector:
                try:
                    work(connection)
                except BaseException:
                    if not injector.struck:
                        raise
            go_on(connection, at)
            with suppress(exc.SQLAlchemyError, AssertionError, AttributeError):
                connection.close()
            del connection
            with engine.begin() as after:
                if tuple(state := after.execute(STATE).one()) != CLEAN:
                    wrong.append((at, state))
            if not injector.struck and injector.left > 0:
                break
        assert at > 600

    in_a_thread(strike)
    assert wrong == []
    assert len(answered) > 150


def test_strikes_from_other_threads_give_nobody_anothers_rows(make: Callable[..., Engine]) -> None:
    """Threads of two tenants and of none on two connections, struck wherever the interpreter looks."""
    engine, wrong, right = make(pool_size=2, checkout_timeout_s=30), list[Any](), [0] * 4

    def use(thread: int, number: int) -> None:
        tenant = "12"[thread % 2] if number % 3 else None
        options = SHAPES[("transaction", "autocommit", "all")[number % 3]] if tenant else {}
        with engine.connect().execution_options(**options, **(of(tenant) if tenant else {})) as connection:
            seen = connection.execute(TENANTS).scalars().all()
        if seen == ([tenant] if tenant else []):
            right[thread] += 1
        else:
            wrong.append((tenant, seen))

    struck = strike_threads(
        use, threads=4, tries=5000 if LONG else 500, seed=11, enough=lambda struck: struck > 50 and sum(right) > 30
    )
    assert wrong == []
    assert struck > 50
    assert sum(right) > 30
