"""pytest fixtures for your own functions: a real PostgreSQL and real Lambda environments. See docs/local.md."""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import pytest

from plungepool_toolkit.environment import Environment
from plungepool_toolkit.lambda_context import LambdaContext
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

pytest_plugins = ("plungepool_toolkit.pytest_round_trips",)


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database on a running server."""

    server: Postgres
    name: str

    def execute(self, sql: str, *parameters: object) -> list[list[Any]]:
        """Run SQL in this database as the superuser; see `Postgres.execute`."""
        return self.server.execute(sql, *parameters, database=self.name)

    def variables(self, user: str = Postgres.superuser, *, prefix: str = "") -> dict[str, str]:
        """
        Return the environment variables with which a function's `get_engine()` reaches this database; with a prefix,
        `get_engine(Settings.from_env(os.environ, prefix=…))` does.
        """
        return {
            f"{prefix}PLUNGEPOOL_URL": self.server.url(user, self.name),
            # Roles of a test's own are not asked on the fixture's server; they may be on one of yours.
            f"{prefix}PLUNGEPOOL_PASSWORD": (user == Postgres.superuser and self.server.password) or "not asked for",
            f"{prefix}PLUNGEPOOL_TLS": "disable",
        }


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """
    A PostgreSQL server for the whole run: at most 40 connections; of its roles `postgres` alone needs its password.
    """
    with Postgres({"max_connections": 40}) as server:
        yield server


# To make a database takes longer than most tests: one in which nothing has been written serves the next test, too.
_untouched: WeakKeyDictionary[Postgres, str] = WeakKeyDictionary()


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    """An empty database for one test, on the run's server; sessions that are left in it are ended."""
    name = _untouched.pop(postgres, None)
    if name is None:
        name = f"test_{secrets.token_hex(6)}"
        postgres.execute(f"CREATE DATABASE {name}")
    before = _next_transaction(postgres)
    yield Database(postgres, name)
    if before is not None and _end_sessions(postgres, name) and _next_transaction(postgres) == before:
        _untouched[postgres] = name
    else:
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _next_transaction(postgres: Postgres) -> int | None:
    """
    Return the number that the server's next transaction that writes will have; None where a database would outlive us.
    """
    if postgres.keeps_data:
        return None
    ((number,),) = postgres.execute("SELECT txid_snapshot_xmax(txid_current_snapshot())")
    return int(number)


def _end_sessions(postgres: Postgres, database: str, within_s: float = 5.0) -> bool:
    """End a database's sessions; tell whether all of them have ended, with what they were writing."""
    deadline = time.monotonic() + within_s
    with postgres.session() as run:
        while run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
    return True


@pytest.fixture
def lambda_environment() -> Iterator[Callable[..., Environment]]:
    """
    A function that starts an `Environment`, with the same arguments; the test's end shuts all of them down.

        def test_answers(lambda_environment):
            environment = lambda_environment("functions/handle_orders", variables={...})
            assert environment.invoke({...}).payload["statusCode"] == 200
    """
    with contextlib.ExitStack() as stack:

        def start(*arguments: Any, **keywords: Any) -> Environment:
            return stack.enter_context(Environment(*arguments, **keywords))

        yield start


@pytest.fixture
def lambda_context() -> LambdaContext:
    """Lambda's context for a handler that the test calls itself: 30 seconds, `again()` for the next."""
    return LambdaContext()


@pytest.fixture
def rds_proxy(postgres: Postgres) -> Iterator[Callable[..., RdsProxy]]:
    """
    A factory: `rds_proxy(auth="scram", users={…}, …)` is a running stand-in before `postgres`, closed after the test.
    """
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(RdsProxy(postgres, **options))
