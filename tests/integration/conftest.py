"""A role with a password of its own and an engine for each pool mode, on the run's PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from plungepool import Settings, build_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from plungepool_toolkit.postgres import Postgres


@pytest.fixture(params=["tiny", "null"])
def pool_mode(request: pytest.FixtureRequest) -> str:
    """Every test that uses it holds for both pools."""
    return str(request.param)


@pytest.fixture
def make_engine(postgres: Postgres) -> Iterator[Callable[..., Engine]]:
    """Build engines on the run's server from settings of the test's choice; all are disposed of at the end."""
    engines: list[Engine] = []

    def make(**settings: Any) -> Engine:
        base = {
            "host": postgres.host,
            "port": postgres.port,
            "user": "postgres",
            "password": postgres.password,
            "tls": "disable",
        }
        engines.append(build_engine(Settings(**(base | settings))))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(make_engine: Callable[..., Engine], pool_mode: str) -> Engine:
    """An engine in each pool mode in turn."""
    return make_engine(pool=pool_mode, checkout_timeout_s=0.2)
