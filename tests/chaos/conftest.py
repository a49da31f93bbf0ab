"""
Environments of the handlers in `handlers/`, on real servers and networks: what the stories are made of.

`shop` and its like are written as README shows it. `naive…` are written as those wrote theirs whom the story happened
to: they show, in the same story, that the test would see it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from black_hole import BlackHole

# pytest's importlib mode puts no test folder on the path.
sys.path.append(str(Path(__file__).parent))

from stories import end_sessions

from plungepool_toolkit.fixtures import Database
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plungepool_toolkit.environment import Environment

HERE = Path(__file__).parent
BEFORE_17 = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture
def start(lambda_environment: Callable[..., Environment]) -> Callable[..., Environment]:
    """Start an environment of a handler by its name, with its variables and the arguments of an `Environment`."""

    def start_handler(name: str, variables: dict[str, str], **options: Any) -> Environment:
        return lambda_environment(
            HERE / "handlers", f"{name}.handler", function_name=name, variables=variables, **options
        )

    return start_handler


@pytest.fixture(scope="session")
def app(postgres: Postgres) -> Iterator[str]:
    """A role of the run's server that needs no password, and is nobody's superior."""
    postgres.execute("CREATE ROLE chaos_app LOGIN")
    yield "chaos_app"
    postgres.execute("DROP ROLE chaos_app")


@pytest.fixture
def network(database: Database) -> Iterator[ChaosProxy]:
    """A network before the run's server."""
    with ChaosProxy(database.server.host, database.server.port) as network:
        yield network


@pytest.fixture
def black_hole(database: Database) -> Iterator[BlackHole]:
    """A network before the run's server whose packets can be made to vanish."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    with BlackHole(database.server) as hole:
        yield hole


@pytest.fixture(scope="module", params=["18", "15"])
def server_of_each_kind(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server that knows transaction_timeout, and one that does not."""
    with Postgres(binaries=BEFORE_17 if request.param == "15" else None) as server:
        yield server


@pytest.fixture
def stock(server_of_each_kind: Postgres) -> Database:
    """A table of ten products on each of these servers in turn."""
    end_sessions(Database(server_of_each_kind, "postgres"))  # orphans of another test's, with their locks
    server_of_each_kind.execute("DROP TABLE IF EXISTS stock")
    server_of_each_kind.execute("CREATE TABLE stock AS SELECT id, 100 AS n FROM generate_series(1, 10) AS id")
    return Database(server_of_each_kind, "postgres")
