"""`address`: dialled in place of host and port, while TLS, errors and requests to cancel keep to what was meant."""

from __future__ import annotations

import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest

from plungepool import wire
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A server whose certificate is for `localhost`."""
    with Postgres(tls=True) as server:
        yield server


@pytest.mark.parametrize("host", ["localhost", "db.example.com"])
def test_tls_verifies_the_host_and_not_the_address(server: Postgres, host: str) -> None:
    """The tunnel's address is dialled; whose certificate it must be does not change."""
    context = ssl.create_default_context(cafile=server.ca_file)
    options = {"user": "postgres", "database": "postgres", "host": host, "port": 1, "ssl_context": context}
    options["password"] = server.password
    with ChaosProxy(server.host, server.port) as proxy:
        address = f"{proxy.host}:{proxy.port}"
        if host == "localhost":
            with wire.connect(**options, address=address) as connection:
                assert connection.cursor().execute("SELECT 1").fetchone() == (1,)
                assert repr(connection).startswith(
                    f"<plungepool.wire.Connection to {address} (for localhost:1), process "
                )
        else:
            with pytest.raises(wire.OperationalError, match=r"name|host") as raised:
                wire.connect(**options, address=address)
            assert address in str(raised.value)
            assert "db.example.com" in str(raised.value)


def test_request_to_cancel_goes_to_the_address(server: Postgres) -> None:
    """What stops a statement goes by the tunnel, too: the name may not be reachable at all."""
    context = ssl.create_default_context(cafile=server.ca_file)
    with ChaosProxy(server.host, server.port) as proxy:
        connection = wire.connect(
            user="postgres",
            password=server.password,
            database="postgres",
            host="localhost",
            port=1,
            address=f"{proxy.host}:{proxy.port}",
            ssl_context=context,
        )
        proxy.connections = 0
        connection.deadline = time.time() + 0.2
        with pytest.raises(wire.DeadlinePassed, match="for localhost:1"):
            connection.cursor().execute("SELECT pg_sleep(60)")
        assert proxy.connections == 1


def test_address_without_a_port_takes_the_ports(server: Postgres) -> None:
    """A host alone is dialled at `port`."""
    with wire.connect(
        user="postgres",
        password=server.password,
        database="postgres",
        host="db.example.com",
        port=server.port,
        address="127.0.0.1",
    ) as connection:
        assert connection.cursor().execute("SELECT 1").fetchone() == (1,)


def test_errors_name_the_address_and_the_host() -> None:
    """Who reads "cannot be reached" has to know which of the two was tried."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(wire.OperationalError) as raised:
            wire.connect(user="x", host="db.example.com", address=address)
    assert str(raised.value) == f"{address} (for db.example.com:5432) cannot be reached: Connection refused"
    with pytest.raises(wire.OperationalError, match=r"no-such-host\.invalid cannot be resolved.*for db\.example\.com"):
        wire.connect(user="x", host="db.example.com", address="no-such-host.invalid")
    with pytest.raises(wire.ProgrammingError, match="host:port"):
        wire.connect(user="x", host="db.example.com", address="db:port")
