"""pytest fixtures for your own functions: a real PostgreSQL and real Lambda environments. See docs/local.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the whole run: at most 40 connections, the superuser `postgres` without a password."""
    with Postgres({"max_connections": 40}) as server:
        yield server
