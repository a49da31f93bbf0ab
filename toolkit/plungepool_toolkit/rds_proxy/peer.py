"""One side of a conversation, a client or the database: a socket, with the messages that have arrived by it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from plungepool_toolkit.rds_proxy.messages import Inbox

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

_LONGEST_BUFFER = 1 << 20


class Peer(asyncio.Protocol):
    """
    One side of a conversation: whole messages out of what has arrived, and an event that is set when anything changes.

    No task reads in the background and none is ever cancelled in the middle of a message: a message is either in the
    inbox or taken.
    """

    def __init__(self, connected: Callable[[Peer], None] | None = None) -> None:
        self.inbox = Inbox()
        self.wake = asyncio.Event()
        self.closed = False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_gone: Callable[[], None] | None = None
        self.transport: asyncio.Transport
        self._connected = connected
        self._full = self._reading_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's transport, as create_server promises
        if self._connected is not None:
            self._connected(self)

    def data_received(self, data: bytes) -> None:
        self.inbox.feed(data)
        if len(self.inbox) > _LONGEST_BUFFER and not self._reading_paused and self.inbox.complete():
            self.transport.pause_reading()
            self._reading_paused = True
        self.wake.set()

    def eof_received(self) -> None:
        self.closed = True
        self.wake.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if not self.gone.done():
            self.gone.set_result(None)
        if self.on_gone is not None:
            self.on_gone()
        self.wake.set()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self.wake.set()

    def can_write(self) -> bool:
        """Tell whether there is room: False while the other side does not read: what is for it has to wait."""
        return not self._full or self.closed

    def write(self, data: bytes | bytearray) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def take(self) -> bytes | None:
        """Return the next whole message with its header, or None if it has not arrived yet. Raises: Malformed."""
        message = self.inbox.take()
        if message is None:
            if self._reading_paused and not self.transport.is_closing():
                self.transport.resume_reading()
            self._reading_paused = False
        return message

    async def read(self) -> bytes:
        """Return the next whole message, waiting for it. Raises: ConnectionError."""
        while (message := self.take()) is None:
            await self.changed()
        return message

    async def read_startup(self) -> bytes:
        """Return the next message of a kind that has no type: a length and a body. Raises: ConnectionError."""
        while (message := self.inbox.take_startup()) is None:
            await self.changed()
        return message

    async def changed(self) -> None:
        if self.closed:
            raise ConnectionError("closed by the other side")
        self.wake.clear()
        await self.wake.wait()

    async def peek(self) -> int:
        """Return the next byte and leave it there, waiting for it. Raises: ConnectionError."""
        while (byte := self.inbox.peek()) is None:
            await self.changed()
        return byte

    async def start_tls(self, context: ssl.SSLContext) -> str | None:
        """
        Speak TLS from here on, as the server; what has arrived already is the beginning of the handshake.

        Returns: the protocol that was agreed on by ALPN, if any. Raises: OSError.
        """
        loop = asyncio.get_running_loop()
        if early := self.inbox.take_all():
            # Two turns of the loop from here TLS stands in our place, and the socket has not been read again.
            loop.call_soon(loop.call_soon, _hand_over, self.transport, early)
        try:
            transport = await loop.start_tls(
                self.transport, self, context, server_side=True, ssl_handshake_timeout=10, ssl_shutdown_timeout=1
            )
            if transport is None:
                raise ConnectionError("closed during the TLS handshake")
        except BaseException:
            self.connection_lost(None)  # asyncio does not tell when it ends during the handshake
            raise
        self.transport = transport
        protocol: str | None = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        return protocol


def _hand_over(transport: asyncio.Transport, data: bytes) -> None:
    """Give what was read from a socket to whoever reads it now."""
    protocol = transport.get_protocol()
    while data and isinstance(protocol, asyncio.BufferedProtocol):
        room = memoryview(protocol.get_buffer(len(data)))
        taken = min(len(room), len(data))
        room[:taken] = data[:taken]
        data = data[taken:]
        protocol.buffer_updated(taken)
