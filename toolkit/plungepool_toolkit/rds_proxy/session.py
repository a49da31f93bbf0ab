"""
One client of the stand-in, from its first byte to its last: its transactions, each over a database connection that is
borrowed.
"""

from __future__ import annotations

import logging
import os
import secrets
import ssl
import struct
from typing import TYPE_CHECKING

from plungepool_toolkit.rds_proxy import messages
from plungepool_toolkit.rds_proxy.pinning import why_pinned
from plungepool_toolkit.rds_proxy.startup import Client, Refused, admit
from plungepool_toolkit.rds_proxy.upstream import BorrowTimeout, DatabaseRefused

if TYPE_CHECKING:
    from plungepool_toolkit.rds_proxy.peer import Peer
    from plungepool_toolkit.rds_proxy.service import Service
    from plungepool_toolkit.rds_proxy.upstream import Server

_logger = logging.getLogger(__name__)

# RDS User Guide, "Avoiding pinning": longer statements pin.
_STATEMENT_LIMIT = 16 * 1024
_PIECE = 65536


class Session:
    """One client, from its first byte to its last."""

    def __init__(self, service: Service, peer: Peer) -> None:
        self.service, self.peer = service, peer
        self.born = self.active = service.now()
        self.expiry: Refused | None = None
        self.ready = False
        self._client: Client
        self._server: Server | None = None
        self._last: Server | None = None
        self._pinned = False
        self._unnamed_is_ours = False
        self._conversation = messages.Conversation()

    async def run(self) -> None:
        """Serve the client until it leaves or is refused."""
        service = self.service
        try:
            self._client = await admit(service, self.peer)
            await self._welcome()
            service.counts["accepted"] += 1
            self.ready = True
            await self._relay()
        except Refused as refused:
            if refused.reason is not None:
                service.refused[refused.reason] += 1
                _logger.info("client refused: %s", refused.reason)
            self.peer.write(refused.message)
        except DatabaseRefused as refused:
            service.refused["the database refused"] += 1
            self.peer.write(refused.message)
        except BorrowTimeout:
            service.counts["borrow_timeouts"] += 1
            self.peer.write(messages.pack_error("08000", "Timed-out waiting to acquire database connection."))
        except messages.Malformed as malformed:
            service.refused["malformed"] += 1
            self.peer.write(messages.pack_error("08P01", str(malformed)))
        except (OSError, ssl.SSLError):
            service.counts["clients_hung_up"] += self.ready  # the client went away without Terminate
        finally:
            if (server := self._server) is not None:
                self._server = None
                service.pool.discard(server)
            self.peer.transport.close()

    async def _welcome(self) -> None:
        reply = bytearray(messages.pack_authentication(messages.AUTH_OK))
        for name, value in (await self._first_parameters()).items():
            reply += messages.pack(messages.PARAMETER_STATUS, messages.pack_strings(name, value))
        # A key that cancels nothing: RDS Proxy does not support CancelRequest.
        reply += messages.pack(messages.BACKEND_KEY_DATA, struct.pack("!i", os.getpid()) + secrets.token_bytes(4))
        self.peer.write(reply + messages.pack(messages.READY_FOR_QUERY, messages.IDLE))

    async def _first_parameters(self) -> dict[str, str]:
        """Return what the database says of itself to a session like this one; it is asked once for each kind."""
        service, known, client = self.service, self.service.parameters, self._client
        if client not in known:
            server = await service.pool.borrow(client.key, None, service.borrow_timeout_s)
            try:
                await server.adopt(client.settings)
            except BaseException:
                service.pool.discard(server)
                raise
            known[client] = dict(server.parameters)
            service.pool.give_back(server)
        return known[client]

    async def _relay(self) -> None:
        """Pass on one batch after the other, a batch being what ends with Query, Sync or FunctionCall."""
        while True:
            if self.expiry is not None:
                raise self.expiry
            moved = self._from_server()
            if self.peer.can_write():
                while self._may_send() and (message := self.peer.take()) is not None:
                    moved = True
                    self.active = self.service.now()
                    if message[:1] == messages.TERMINATE:
                        return
                    if self._server is None:
                        if message[:1] in messages.COPY_MESSAGES:
                            continue  # the rest of a COPY that has failed: a server ignores it, too
                        await self._borrow()
                    self._from_client(message)
            if not moved:
                # Both sides set this one event; what arrived meanwhile is found at the next turn.
                await self.peer.changed()

    def _may_send(self) -> bool:
        return self._conversation.may_send and (self._server is None or self._server.peer.can_write())

    async def _borrow(self) -> None:
        service = self.service
        server = await service.pool.borrow(self._client.key, self._last, service.borrow_timeout_s)
        self._server = server
        self._unnamed_is_ours = False
        await server.adopt(self._client.settings)
        server.peer.wake = self.peer.wake
        service.counts["borrows"] += 1

    def _from_client(self, message: bytes) -> None:
        assert self._server is not None
        self._conversation.sent(message)
        kind = message[:1]
        if kind == messages.QUERY:
            self._look_at(message[5:-1])
        elif kind == messages.PARSE:
            name, sql = messages.parsed(message)
            self._look_at(sql)
            if name:
                self._pin("named statement")
            else:
                self._unnamed_is_ours = True
        elif messages.uses_unnamed_statement(message) and not self._unnamed_is_ours:
            # It was parsed before this connection was borrowed.
            self.service.counts["unnamed_statement_outlived"] += 1
        self._server.peer.write(message)

    def _look_at(self, sql: bytes) -> None:
        if self._pinned:
            return
        # Latin-1 keeps every byte and its place; no byte above 127 is a part of anything looked for.
        why = "over 16 KB" if len(sql) > _STATEMENT_LIMIT else why_pinned(sql.decode("latin-1"))
        if why is not None:
            self._pin(why)

    def _pin(self, why: str) -> None:
        if not self._pinned:
            self._pinned = True
            self.service.pinned[why] += 1
            _logger.info("client pinned until it disconnects: %s", why)

    def _from_server(self) -> bool:
        """Pass on what the database has sent; tell whether there was anything."""
        server = self._server
        if server is None or not self.peer.can_write():
            return False
        out = bytearray()
        while (message := server.peer.take()) is not None:
            out += message
            self._conversation.answered(message)
            server.note_parameter(message)
            # Before the client is told: when it knows that it is done, so do the counters.
            if message[:1] == messages.READY_FOR_QUERY and self._end_batch():
                break
            if len(out) > _PIECE:
                self.peer.write(out)
                out = bytearray()
                if not self.peer.can_write():
                    return True
        self.peer.write(out)
        if self._server is not None and server.peer.closed and message is None:
            if self._conversation.ended:
                raise ConnectionError("the database has said why")
            raise Refused("08006", "The database connection was lost.", None)
        return bool(out)

    def _end_batch(self) -> bool:
        """Note that a batch has been answered; tell whether the database connection was given back."""
        self.active = self.service.now()
        if self._conversation.status != messages.IDLE:
            return False
        self.service.counts["transactions"] += 1
        if not self._pinned:
            self._release()
        return not self._pinned

    def _release(self) -> None:
        server, self._server = self._server, None
        assert server is not None
        self._last = server
        self.service.pool.give_back(server)

    def expire(self, idle_s: float, life_s: float) -> None:
        """End this client if it has been idle, or connected, for too long."""
        now, counts = self.service.now(), self.service.counts
        if not self.ready or self._conversation.awaiting or self.expiry is not None:
            return
        if now - self.born >= life_s:
            counts["aged_clients_closed"] += 1
            self.expiry = Refused("57P01", "The client connection has reached its maximum life.", None)
        elif now - self.active >= idle_s:
            counts["idle_clients_closed"] += 1
            self.expiry = Refused("57P05", "The client connection was idle for too long.", None)
        if self.expiry is not None:
            self.peer.wake.set()
