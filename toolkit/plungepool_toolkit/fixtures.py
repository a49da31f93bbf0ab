"""pytest fixtures for your own functions: a real PostgreSQL and real Lambda environments. See docs/local.md."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from plungepool_toolkit.environment import Environment
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import rds_proxy  # noqa: F401  # the fixture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the whole run: at most 40 connections, the superuser `postgres` without a password."""
    with Postgres({"max_connections": 40}) as server:
        yield server


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
