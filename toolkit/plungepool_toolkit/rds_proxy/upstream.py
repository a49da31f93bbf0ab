"""The database's side: connections to it, at most so many, each lent to one client at a time."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

import scramp

from plungepool_toolkit.rds_proxy import messages
from plungepool_toolkit.rds_proxy.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

# A user and a database.
Key = tuple[str, str]
# What a client asked for at its start-up, sorted.
StartupSettings = tuple[tuple[str, str], ...]


class Database(Protocol):
    """Where the proxied database listens; the toolkit's `Postgres` is one."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


class Address(NamedTuple):
    """The address of a database that is not the toolkit's."""

    host: str
    port: int


class DatabaseRefused(Exception):
    """The database refused a connection or a setting; its own error message is passed on to the client."""

    def __init__(self, message: bytes) -> None:
        super().__init__(messages.error_field(message, b"M"))
        self.message = message
        # Starting up, shutting down, too many connections: a proxy waits for such a database.
        self.transient = messages.error_field(message, b"C") in ("57P03", "57P01", "57P02", "53300")


class BorrowTimeout(Exception):
    """No database connection within the borrow time-out."""


class Server:
    """One connection to the database."""

    def __init__(self, peer: Peer, key: Key) -> None:
        self.peer, self.key = peer, key
        self.parameters: dict[str, str] = {}
        self.settings: StartupSettings = ()

    @classmethod
    async def open(cls, address: Address, key: Key, password: str | None) -> Server:
        """Connect and authenticate. Raises: OSError, DatabaseRefused."""
        loop = asyncio.get_running_loop()
        _transport, peer = await loop.create_connection(Peer, address.host, address.port)
        self = cls(peer, key)
        try:
            peer.write(messages.pack_startup(*key))
            await self._authenticate(key[0], password)
            while (message := await peer.read())[:1] != messages.READY_FOR_QUERY:
                self._note(message)
        except BaseException:
            peer.transport.abort()
            raise
        return self

    async def _authenticate(self, user: str, password: str | None) -> None:
        scram: scramp.ScramClient | None = None
        while True:
            message = await self.peer.read()
            self._note(message)
            if message[:1] != messages.AUTHENTICATION:
                continue
            request, rest = messages.authentication(message)
            if request == messages.AUTH_OK:
                return
            if password is None:
                raise DatabaseRefused(
                    messages.pack_error(
                        "28P01", f"The proxy has no password for {user}, and the database asks for one."
                    )
                )
            if request == messages.AUTH_CLEARTEXT_PASSWORD:
                answer = messages.pack_strings(password)
            elif request == messages.AUTH_SASL:
                scram = scramp.ScramClient(["SCRAM-SHA-256"], user, password)
                first = scram.get_client_first().encode()
                answer = b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first
            elif request == messages.AUTH_SASL_CONTINUE and scram is not None:
                scram.set_server_first(rest.decode())
                answer = scram.get_client_final().encode()
            elif request == messages.AUTH_SASL_FINAL and scram is not None:
                scram.set_server_final(rest.decode())
                continue
            else:
                continue
            self.peer.write(messages.pack(messages.PASSWORD, answer))

    async def adopt(self, wanted: StartupSettings) -> None:
        """Make the session what the client asked for at its start-up; others' settings go. Raises: DatabaseRefused."""
        if wanted == self.settings:
            return
        new = dict(wanted)
        orders = [f"RESET {name}" for name, _value in self.settings if name not in new]
        for name, value in wanted:
            literal = value.replace("'", "''")
            orders.append(f"SELECT pg_catalog.set_config('{name}', '{literal}', false)")
        self.peer.write(messages.pack(messages.QUERY, messages.pack_strings(";".join(orders))))
        failure: DatabaseRefused | None = None
        while (message := await self.peer.read())[:1] != messages.READY_FOR_QUERY:
            try:
                self._note(message)
            except DatabaseRefused as refused:
                failure = refused
        if failure is not None:
            raise failure
        self.settings = wanted

    def _note(self, message: bytes) -> None:
        if message[:1] == messages.ERROR_RESPONSE:
            raise DatabaseRefused(message)
        self.note_parameter(message)

    def note_parameter(self, message: bytes) -> None:
        """Keep what a ParameterStatus says; other messages say nothing here."""
        if message[:1] == messages.PARAMETER_STATUS:
            name, value = messages.parameter(message)
            self.parameters[name] = value

    def alive(self) -> bool:
        """Tell whether an unused connection still lives, by what has arrived unasked."""
        try:
            while (message := self.peer.take()) is not None:
                self._note(message)
        except DatabaseRefused:
            return False
        return not self.peer.closed


class Pool:
    """At most `limit` connections to the database, for all users together, as RDS Proxy's percentage is."""

    def __init__(self, limit: int, open_server: Callable[[Key], Coroutine[None, None, Server]]) -> None:
        self._limit, self._open = limit, open_server
        self._idle: deque[Server] = deque()
        self._waiting: deque[tuple[Key, asyncio.Future[Server | None]]] = deque()
        self._opening = 0
        self.servers: set[Server] = set()
        self.peak = self.lost = 0

    async def borrow(self, key: Key, avoid: Server | None, timeout_s: float) -> Server:
        """
        Return a connection that nobody else uses, rather another one than `avoid`.

        Raises: BorrowTimeout; DatabaseRefused if waiting does not help.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            server = await self._slot(key, avoid, end - loop.time())
            if server is None:
                server = await self._fill_slot(key, end)
            if server is not None:
                if server.alive():
                    return server
                self.discard(server)

    async def _fill_slot(self, key: Key, end: float) -> Server | None:
        """Open a connection in a slot that is ours; None if the database is away at the moment, after a pause."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(end):
                server = await self._open(key)
        except (OSError, DatabaseRefused, TimeoutError) as error:
            self._free_slot()
            if isinstance(error, DatabaseRefused) and not error.transient:
                raise
            if loop.time() >= end:
                raise BorrowTimeout from error
            await asyncio.sleep(0.05)
            return None
        except BaseException:
            self._free_slot()
            raise
        self._opening -= 1
        self.servers.add(server)
        self.peak = max(self.peak, len(self.servers))
        server.peer.on_gone = lambda: self._forget(server, lost=True)
        return server

    async def _slot(self, key: Key, avoid: Server | None, timeout_s: float) -> Server | None:
        """Return an unused connection, or None for the right to open one."""
        ours = [server for server in self._idle if server.key == key]
        if ours:
            # Never the same again if there is a choice: a client that counts on it is to be found out.
            chosen = next((server for server in ours if server is not avoid), ours[0])
            self._idle.remove(chosen)
            return chosen
        if len(self.servers) + self._opening < self._limit:
            self._opening += 1
            return None
        if self._idle:
            self._opening += 1
            self.discard(self._idle[0])
            return None
        waiter: asyncio.Future[Server | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, waiter))
        try:
            await asyncio.wait({waiter}, timeout=max(timeout_s, 0))
        except asyncio.CancelledError:
            if waiter.done():
                self._return(waiter.result())
            waiter.cancel()
            raise
        if not waiter.done():
            waiter.cancel()
            raise BorrowTimeout
        return waiter.result()

    def give_back(self, server: Server) -> None:
        # Nobody's event any more: whatever arrives now is looked at by the next borrower.
        server.peer.wake = asyncio.Event()
        if server.peer.closed:
            self.discard(server)
            return
        while self._waiting:
            key, waiter = self._waiting.popleft()
            if waiter.done():
                continue
            if key == server.key:
                waiter.set_result(server)
            else:
                self._opening += 1
                waiter.set_result(None)
                self.discard(server)
            return
        self._idle.append(server)

    def discard(self, server: Server) -> None:
        self._forget(server, lost=False)
        server.peer.transport.abort()

    def _forget(self, server: Server, *, lost: bool) -> None:
        if server in self.servers:
            self.servers.remove(server)
            self.lost += lost
            if server in self._idle:
                self._idle.remove(server)
            self._wake_one()

    def _free_slot(self) -> None:
        self._opening -= 1
        self._wake_one()

    def _wake_one(self) -> None:
        while self._waiting and len(self.servers) + self._opening < self._limit:
            _key, waiter = self._waiting.popleft()
            if not waiter.done():
                self._opening += 1
                waiter.set_result(None)
                return

    def _return(self, got: Server | None) -> None:
        if got is None:
            self._free_slot()
        else:
            self.give_back(got)

    def cut(self) -> None:
        """Cut every connection at once, as a database that fails does."""
        for server in list(self.servers):
            self._forget(server, lost=True)
            server.peer.transport.abort()
