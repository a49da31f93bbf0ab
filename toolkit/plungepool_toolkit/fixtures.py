"""pytest fixtures for your own functions: a real PostgreSQL and real Lambda environments. See docs/local.md."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    """An empty database for one test, on the run's server; sessions that are left in it are ended."""
    name = f"test_{secrets.token_hex(6)}"
    postgres.execute(f"CREATE DATABASE {name}")
    yield Database(postgres, name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


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
