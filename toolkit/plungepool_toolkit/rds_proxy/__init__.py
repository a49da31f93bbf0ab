"""
A stand-in for Amazon RDS Proxy (PostgreSQL), strict enough that what passes it may be believed.

It does what the documentation says of the real one: TLS only, IAM tokens or SCRAM, transactions multiplexed over a few
database connections, a borrow time-out, an idle-client time-out, a client connection's life of 24 hours, pinning,
start-up options refused, cancel requests ignored. Where the documentation leaves two answers open, it takes the one
that is harder on the client. What it does not prove is in docs/rds-proxy.md.

    messages    the protocol, pure             upstream    the database, and who has it
    peer        a socket and its messages      service     what all sessions share
    tokens      is this IAM token good         startup     who a client is
    pinning     does this statement pin        session     one client, start to end

Nothing here imports the package under test, nor botocore: a mistake in the one is not repeated in the other.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import quote

from plungepool_toolkit.certificates import Authority
from plungepool_toolkit.processes import Closing
from plungepool_toolkit.rds_proxy import messages
from plungepool_toolkit.rds_proxy.peer import Peer
from plungepool_toolkit.rds_proxy.pinning import why_pinned
from plungepool_toolkit.rds_proxy.service import Counters, Service
from plungepool_toolkit.rds_proxy.session import Session
from plungepool_toolkit.rds_proxy.tokens import Credential, TokenRefused, verify_token
from plungepool_toolkit.rds_proxy.upstream import Address, Database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Address", "Counters", "Credential", "Database", "RdsProxy", "TokenRefused", "verify_token", "why_pinned"]

_Result = TypeVar("_Result")


class RdsProxy(Service, Closing):
    """
    The stand-in. A context manager: entering starts it in a thread of its own, leaving ends it with all that it holds.

    Args:
        database: what has a host and a port: the toolkit's `Postgres`, or an `Address`.
        auth: how clients prove who they are: `iam` (a token as the clear-text password), `scram` (SCRAM-SHA-256, as RDS
            Proxy has it by default) or `password` (clear text).
        users: the roles that the proxy has secrets for, each with its password, for clients and for the database; None
            lets every role in whose token is good. For the superuser of a `Postgres` it knows the database's password.
        credentials: the AWS credentials whose signatures are good; one is made up if none is given.
        endpoints: host names that clients may sign for, with or without a port, beside the address it listens on. The
            certificate is good for them as well.
        direct_tls: whether a client may start TLS at once (libpq's `sslnegotiation=direct`; it must offer ALPN), as
            PostgreSQL 17 and newer let it; without it such a client is cut off, as by older servers.
        pipelined_startup: what happens to what a client sends along with its start-up message, the password as a rule:
            `accept` (it waits for its turn, as PostgreSQL lets it), `refuse` (08P01), or `discard` (the client waits
            for an answer that never comes). Where a password comes that is no answer to what is asked for, as with
            `scram`, it is refused as PostgreSQL does, by 08P01.
        max_database_connections: for all users together.
        clock: seconds since the epoch; `advance` moves it.
        host, port: where to listen; port 0 takes a free one.
    Units: every *_s is in seconds; borrow_timeout_s of real time, the others of `clock`.
    Raises: ValueError for arguments that do not go together; OSError, on entering, if the port is taken.
    Threads: its attributes `users`, `credentials` and `database` may be set at any time, by any thread.
    """

    _authority: Authority | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _last_counters = Counters()
    _stop: asyncio.Event
    _sessions: dict[Session, asyncio.Task[None]]
    _peers: set[Peer]

    def __enter__(self) -> Self:
        return self.start()

    def __repr__(self) -> str:
        return f"<RdsProxy {self.host}:{self.port} before {self.database!r}>"

    @property
    def ca_file(self) -> Path:
        """The certificate to trust (PEM). Raises: RuntimeError before the start."""
        if self._authority is None:
            raise RuntimeError("the stand-in has not been started")
        return self._authority.ca_file

    @property
    def counters(self) -> Counters:
        """What it has seen and done, now; after `close`, at its end."""
        if self._loop is not None:
            self._last_counters = self._call(self._count)
        return self._last_counters

    def start(self) -> Self:
        """Listen. Raises: OSError if the port is taken."""
        if self._thread is not None:
            raise RuntimeError("the stand-in has been started already")
        self._sessions, self._peers = {}, set()
        names = [name.rpartition(":")[0] if ":" in name else name for name in self.names]
        self._authority = Authority("Plungepool's stand-in for RDS Proxy")
        self.tls = self._authority.server_context(*dict.fromkeys(("localhost", "127.0.0.1", "::1", self.host, *names)))
        # Like PostgreSQL, no session tickets: where the client is slow, they pass for an answer to whoever counts round
        # trips.
        self.tls.num_tickets = 0
        if self.direct_tls:
            self.tls.set_alpn_protocols([messages.ALPN])
        started = threading.Event()
        failure: list[BaseException] = []

        def main() -> None:
            try:
                with asyncio.Runner() as runner:
                    runner.run(self._serve(started))
            except BaseException as error:  # noqa: BLE001  # handed to the thread that waits
                failure.append(error)
            finally:
                started.set()

        self._thread = threading.Thread(target=main, name="rds-proxy", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self.close()
            raise failure[0]
        return self

    def close(self) -> None:
        """Cut every client and database connection and end the thread; may be called again."""
        if self._thread is not None:
            if (loop := self._loop) is not None:
                self._last_counters = self._call(self._count)
                loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
        if self._authority is not None:
            self._authority.close()

    def advance(self, seconds: float) -> None:
        """Move the clock: tokens age, idle clients time out, and connections reach their life's end."""
        self._ahead += seconds
        self._call(self._expire)

    def failover(self, database: Database | None = None) -> None:
        """
        Cut every connection to the database, as its failure does, and go on with `database` if one is given.

        A client in a transaction, or pinned, gets an error and is disconnected; the others stay connected and notice
        nothing but the time that it takes.
        """

        def cut() -> None:
            self.database = database or self.database
            self.counts["failovers"] += 1
            self.pool.cut()

        self._call(cut)

    def url(self, user: str, database: str = "postgres", password: str | None = None) -> str:
        """Return a `postgresql://` address for a role and a database."""
        secret = f":{quote(password, safe='')}" if password is not None else ""
        host = "localhost" if self.host in ("127.0.0.1", "0.0.0.0") else self.host
        return f"postgresql://{quote(user, safe='')}{secret}@{host}:{self.port}/{quote(database, safe='')}"

    def variables(self, user: str, database: str = "postgres") -> dict[str, str]:
        """Return the environment variables with which a function reaches its database through the stand-in."""
        variables = {
            "PLUNGEPOOL_URL": self.url(user, database),
            "PLUNGEPOOL_ENDPOINT": "proxy",
            "PLUNGEPOOL_CA_FILE": str(self.ca_file),
        }
        if self.auth == "iam":
            credential = self.credentials[0]
            variables |= {
                "PLUNGEPOOL_AUTH": "iam",
                "AWS_REGION": self.region,
                "AWS_ACCESS_KEY_ID": credential.access_key_id,
                "AWS_SECRET_ACCESS_KEY": credential.secret_access_key,
            }
            if credential.session_token is not None:
                variables["AWS_SESSION_TOKEN"] = credential.session_token
        else:
            variables |= {"PLUNGEPOOL_AUTH": "password", "PLUNGEPOOL_PASSWORD": (self.users or {}).get(user) or ""}
        return variables

    # In the loop's thread

    async def _serve(self, started: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await loop.create_server(lambda: Peer(self._accept), self.host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        hosts = ("localhost", "127.0.0.1", self.host)
        given = (name if ":" in name else f"{name}:{self.port}" for name in self.names)
        self.endpoints = frozenset((*(f"{host}:{self.port}" for host in hosts), *given))
        self._loop = loop
        sweeper = asyncio.create_task(self._sweep())
        started.set()
        await self._stop.wait()
        self._loop = None
        server.close()
        sweeper.cancel()
        tasks = [*self._sessions.values(), sweeper]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        peers = self._peers | {one.peer for one in self.pool.servers}
        self.pool.cut()
        for peer in peers:
            peer.transport.abort()
        if peers:
            # Transports report their end by a callback; a loop that closes earlier leaves their sockets open.
            await asyncio.wait({peer.gone for peer in peers}, timeout=5)

    def _accept(self, peer: Peer) -> None:
        self._peers.add(peer)
        peer.on_gone = lambda: self._peers.discard(peer)
        session = Session(self, peer)
        self._sessions[session] = asyncio.get_running_loop().create_task(self._run(session))
        self.connected += 1

    async def _run(self, session: Session) -> None:
        try:
            await session.run()
        finally:
            del self._sessions[session]
            self.connected -= 1

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.idle_client_timeout_s / 4, self.client_life_s / 4))
            self._expire()

    def _expire(self) -> None:
        for session in list(self._sessions):
            session.expire(self.idle_client_timeout_s, self.client_life_s)

    def _count(self) -> Counters:
        counts = self.counts
        return Counters(
            clients=sum(session.ready for session in self._sessions),
            accepted=counts["accepted"],
            refused=self.refused.copy(),
            transactions=counts["transactions"],
            borrows=counts["borrows"],
            borrow_timeouts=counts["borrow_timeouts"],
            pinned=self.pinned.copy(),
            unnamed_statement_outlived=counts["unnamed_statement_outlived"],
            cancel_requests_ignored=counts["cancel_requests_ignored"],
            idle_clients_closed=counts["idle_clients_closed"],
            aged_clients_closed=counts["aged_clients_closed"],
            clients_hung_up=counts["clients_hung_up"],
            database_connections=len(self.pool.servers),
            database_connections_peak=self.pool.peak,
            database_connections_lost=self.pool.lost,
            failovers=counts["failovers"],
        )

    def _call(self, function: Callable[[], _Result]) -> _Result:
        """Run a function in the loop's thread and return what it returns."""
        if self._loop is None:
            raise RuntimeError("the stand-in is not running")

        async def run() -> _Result:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()
