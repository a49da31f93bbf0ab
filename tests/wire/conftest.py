"""What the wire's tests share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from plungepool import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.fixtures import Database

# A pytest process of its own runs this folder, see test_compliance.py: its conftest takes over the whole process.
collect_ignore = ["compliance"]

# For fuzz_server.py: pytest's importlib mode puts no test folder on the path.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def address(database: Database) -> dict[str, Any]:
    """Where the test's own database is, as `wire.connect` takes it."""
    return {
        "user": "postgres",
        "host": database.server.host,
        "port": database.server.port,
        "database": database.name,
        "password": database.server.password,
    }


@pytest.fixture
def connection(address: dict[str, Any]) -> Iterator[Any]:
    """A connection of the driver to it."""
    connection = wire.connect(**address)
    yield connection
    connection.close()
