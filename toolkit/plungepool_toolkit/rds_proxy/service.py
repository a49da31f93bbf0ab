"""
What all sessions of one stand-in share: what is asked of clients, the database connections, and what has been counted.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from typing import TYPE_CHECKING, Literal

from plungepool_toolkit.rds_proxy.tokens import Credential
from plungepool_toolkit.rds_proxy.upstream import Address, Pool, Server

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping

    from plungepool_toolkit.rds_proxy.upstream import Database, Key, StartupSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """
    What a stand-in has seen and done since its start, at one moment; `clients` and `database_connections` are now.
    """

    clients: int = 0
    accepted: int = 0
    refused: Counter[str] = dataclasses.field(default_factory=Counter)
    transactions: int = 0
    borrows: int = 0
    borrow_timeouts: int = 0
    pinned: Counter[str] = dataclasses.field(default_factory=Counter)
    unnamed_statement_outlived: int = 0
    cancel_requests_ignored: int = 0
    idle_clients_closed: int = 0
    aged_clients_closed: int = 0
    clients_hung_up: int = 0
    database_connections: int = 0
    database_connections_peak: int = 0
    database_connections_lost: int = 0
    failovers: int = 0


class Service:
    """
    A stand-in as its sessions see it. `RdsProxy` is one that runs, and says what the arguments mean.

    Everything here is used by one thread, the loop's, but for the settings that `RdsProxy` lets others set.
    """

    def __init__(
        self,
        database: Database,
        *,
        auth: Literal["iam", "scram", "password"] = "iam",
        users: Mapping[str, str | None] | None = None,
        credentials: Iterable[Credential] = (),
        region: str = "eu-west-1",
        endpoints: Iterable[str] = (),
        direct_tls: bool = True,
        pipelined_startup: Literal["accept", "refuse", "discard"] = "accept",
        max_database_connections: int = 5,
        max_clients: int = 1000,
        borrow_timeout_s: float = 120.0,
        idle_client_timeout_s: float = 1800.0,
        client_life_s: float = 86400.0,
        clock: Callable[[], float] = time.time,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        if auth != "iam" and not users:
            raise ValueError(f"users: auth={auth!r} needs the users and their passwords")
        if max_database_connections < 1:
            raise ValueError("max_database_connections: at least 1")
        if pipelined_startup not in ("accept", "refuse", "discard"):
            raise ValueError("pipelined_startup: accept, refuse or discard")
        self.database = database
        self.auth, self.region, self.host, self.port = auth, region, host, port
        self.users = None if users is None else dict(users)
        self.credentials = tuple(credentials) or (Credential.temporary(),)
        self.direct_tls, self.pipelined_startup = direct_tls, pipelined_startup
        self.max_clients = max_clients
        self.borrow_timeout_s = borrow_timeout_s
        self.idle_client_timeout_s = idle_client_timeout_s
        self.client_life_s = client_life_s
        # What clients may sign for; known when the port is.
        self.endpoints: frozenset[str] = frozenset()
        self.names = tuple(endpoints)
        self.tls: ssl.SSLContext
        self.pool = Pool(max_database_connections, self._open_server)
        # What the database says of itself to a session of a user, a database and start-up settings.
        self.parameters: dict[tuple[Key, StartupSettings], dict[str, str]] = {}
        # Clients, whether they have been let in or not.
        self.connected = 0
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.pinned: Counter[str] = Counter()
        self._clock, self._ahead = clock, 0.0

    def now(self) -> float:
        """Return the stand-in's time, in seconds since the epoch."""
        return self._clock() + self._ahead

    async def _open_server(self, key: Key) -> Server:
        address = Address(self.database.host, self.database.port)
        password = (self.users or {}).get(key[0])
        if password is None and key[0] == getattr(self.database, "superuser", None):  # the toolkit's own server
            password = getattr(self.database, "password", None)
        return await Server.open(address, key, password)
