"""Where the environments of a storm connect to: the database itself, PgBouncer, or the stand-in for RDS Proxy."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.network import free_port
from plungepool_toolkit.processes import GuardedProcess, TemporaryFolder, end_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plungepool_toolkit.postgres import Postgres

ENDPOINTS = ("direct", "pgbouncer", "proxy")
_STARTS_WITHIN_S = 20.0


class EndpointError(RuntimeError):
    """An endpoint cannot be started; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """How a role reaches its database by an endpoint; `ca_file`: the authority of its certificate, None: plain text."""

    endpoint: str
    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    ca_file: Path | None = None


@dataclass(slots=True)
class Door:
    """An endpoint that runs. `pinned` is known when it has ended; None: it does not count them."""

    address: Address
    pinned: int | None = None


@contextlib.contextmanager
def open_endpoint(server: Postgres, direct: Address, endpoint: str, connections: int) -> Iterator[Door]:
    """
    Run what stands between the environments and the database, up to the end of the block.

    Args: direct: the database's own address. connections: what a pooler may open.
    Raises: EndpointError.
    """
    if endpoint == "direct":
        yield Door(direct)
    elif endpoint == "pgbouncer":
        with _pgbouncer(server, direct, connections) as door:
            yield door
    else:
        with _stand_in(direct, connections) as door:
            yield door


@contextlib.contextmanager
def _pgbouncer(server: Postgres, direct: Address, connections: int) -> Iterator[Door]:
    program = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
    if program is None:
        raise EndpointError("PgBouncer is not installed: install Debian's package pgbouncer, or leave out its endpoint")
    temporary = TemporaryFolder("pgbouncer")
    folder, port = temporary.path, free_port()
    users = folder / "users"
    users.touch(mode=0o600)
    users.write_text(f'"{direct.user}" "{direct.password}"\n')
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "auth_type": "plain",
        "auth_file": users,
        "pool_mode": "transaction",
        "default_pool_size": connections,
        "max_db_connections": connections,
        "max_client_conn": 2000,
        "server_reset_query": "",
        "unix_socket_dir": "",
        # What drivers and SQLAlchemy set at start, and a pooler cannot keep apart.
        "ignore_startup_parameters": "extra_float_digits,options",
    }
    lines = ["[databases]", f"* = host={server.host} port={server.port}", "[pgbouncer]"]
    (folder / "pgbouncer.ini").write_text(
        "\n".join([*lines, *(f"{name} = {is_}" for name, is_ in settings.items()), ""])
    )
    identity = None
    if os.geteuid() == 0:  # it refuses to be root
        import pwd

        nobody = pwd.getpwnam("nobody")
        identity = (nobody.pw_uid, nobody.pw_gid)
        for path in (folder, *folder.iterdir()):
            os.chown(path, *identity)
    process = GuardedProcess([program, folder / "pgbouncer.ini"], output=folder / "log", identity=identity)
    try:
        _wait(lambda: _listens(port), process, "PgBouncer", folder / "log")
        yield Door(
            Address(
                endpoint="pgbouncer",
                host="127.0.0.1",
                port=port,
                database=direct.database,
                user=direct.user,
                password=direct.password,
            )
        )
    finally:
        process.stop()
        temporary.remove()


@contextlib.contextmanager
def _stand_in(direct: Address, connections: int) -> Iterator[Door]:
    """Run the stand-in for RDS Proxy in a process of its own, which has its own share of the machine."""
    temporary = TemporaryFolder("proxy")
    log = temporary.path / "log"
    order = {"host": direct.host, "port": direct.port, "user": direct.user, "connections": connections}
    environ = {**os.environ, "STORM_PROXY": json.dumps(order), "STORM_PASSWORD": direct.password}
    command = [sys.executable, "-m", __name__]
    process, door = GuardedProcess(command, output=log, environment=environ, stop=[("SIGTERM", 10.0)]), None
    try:
        said = _wait(lambda: _said(log, 0), process, "the stand-in for RDS Proxy", log)
        door = Door(
            Address(
                endpoint="proxy",
                host="localhost",
                port=said["port"],
                database=direct.database,
                user=direct.user,
                password=direct.password,
                ca_file=Path(said["ca_file"]),
            )
        )
        yield door
    finally:
        process.stop()
        if door is not None:
            door.pinned = (_said(log, 1) or {}).get("pinned")
        temporary.remove()


def _said(log: Path, index: int) -> dict[str, Any] | None:
    """Return the stand-in's line of JSON with this number; None: not yet."""
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
    document: dict[str, Any] | None = json.loads(lines[index]) if len(lines) > index else None
    return document


def _wait(ready: Callable[[], Any], process: GuardedProcess, what: str, log: Path) -> Any:
    deadline = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < deadline:
        if process.wait(0.02) is not None:
            break
        if found := ready():
            return found
    raise EndpointError(f"{what} does not start: {end_of(log)}")


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _main() -> None:
    """Be the process of `_stand_in`."""
    from plungepool_toolkit.rds_proxy import Address as Database
    from plungepool_toolkit.rds_proxy import RdsProxy

    order = json.loads(os.environ["STORM_PROXY"])
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with RdsProxy(
        Database(order["host"], order["port"]),
        auth="password",
        users={order["user"]: os.environ["STORM_PASSWORD"]},
        max_database_connections=order["connections"],
        max_clients=2000,
    ) as proxy:
        print(json.dumps({"port": proxy.port, "ca_file": str(proxy.ca_file)}), flush=True)
        ended.wait()
    counters = proxy.counters
    print(json.dumps({"pinned": counters.pinned.total(), "borrow_timeouts": counters.borrow_timeouts}), flush=True)


if __name__ == "__main__":
    _main()
