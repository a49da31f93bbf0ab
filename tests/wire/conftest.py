"""What the wire's tests share."""

import sys
from pathlib import Path

import pytest

from plungepool import wire

# A pytest process of its own runs this folder, see test_compliance.py: its conftest takes over the whole process.
collect_ignore = ["compliance"]

# For fuzz_server.py: pytest's importlib mode puts no test folder on the path.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def address(database):
    """Where the test's own database is, as `wire.connect` takes it."""
    return {
        "user": "postgres",
        "host": database.server.host,
        "port": database.server.port,
        "database": database.name,
        "password": database.server.password,
    }


@pytest.fixture
def connection(address):
    """A connection of the driver to it."""
    connection = wire.connect(**address)
    yield connection
    connection.close()
