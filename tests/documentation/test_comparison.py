"""docs/comparison.md: what can be asked of the alternatives that are installed here is as the page says."""

from __future__ import annotations

import re
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING

import psycopg_pool
from pages import Page
from sqlalchemy import QueuePool, create_engine, text

from plungepool import dispose_engine, get_engine

if TYPE_CHECKING:
    import pytest

    from plungepool_toolkit.fixtures import Database

PAGE = " ".join(Page("comparison").text.split())


def test_versions_are_those_that_are_installed() -> None:
    """What is said holds for what is tested beside it; a new version is a reason to read the page again."""
    for name, distribution in (("psycopg_pool", "psycopg-pool"), ("SQLAlchemy", "SQLAlchemy")):
        found = re.search(rf"{name} (\d+\.\d+)[,;. ]", PAGE)
        assert found is not None
        assert version(distribution).startswith(f"{found[1]}.")


def test_defaults_of_queue_pool() -> None:
    """Five connections, and ten more, for an environment that uses one."""
    pool = create_engine("postgresql+pg8000://").pool
    assert isinstance(pool, QueuePool)
    assert (pool.size(), pool._max_overflow) == (5, 10)
    assert "the defaults are 5 connections and 10 more" in PAGE


def test_who_starts_threads(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """psycopg_pool has threads that maintain it; here there is none, whatever was asked."""
    before = threading.active_count()
    conninfo = f"{database.server.url(database=database.name)}?password={database.server.password}"
    with psycopg_pool.ConnectionPool(conninfo, min_size=1) as pool:
        pool.wait()
        assert threading.active_count() > before
    for name, value in database.variables().items():
        monkeypatch.setenv(name, value)
    dispose_engine()
    with get_engine().begin() as connection:
        connection.execute(text("SELECT 1"))
        assert threading.active_count() <= before
    dispose_engine()
