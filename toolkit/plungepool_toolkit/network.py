"""
A bad network on one machine, without root: a TCP proxy that counts round trips, adds latency and breaks.

`ChaosProxy` stands between a client and a server on loopback. It never looks into the bytes, so it counts
exactly under TLS too; a listener of its may.
"""

from __future__ import annotations

import collections
import errno
import functools
import heapq
import itertools
import random
import select
import selectors
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from plungepool_toolkit.processes import Closing

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Listener(Protocol):
        """Who is told what a `ChaosProxy` counts; called in its thread, before an answer is passed on."""

        def connected(self, link: int) -> None:
            """Note that a client has connected: a round trip. `link` is a number that no other has."""

        def sent(self, link: int, data: bytes) -> None:
            """Note what a client has sent, whole or a piece."""

        def answered(self, link: int) -> None:
            """Note that the server answers what was sent since it last did: a round trip."""


_Result = TypeVar("_Result")

_CHUNK_BYTES = 65536
# Small, so that a client and a server that both wait for the other to read block here as they would on a real network.
_BUFFER_BYTES = 262144
_LOWEST_PORT = 10240  # of those that a server is given; well-known services are below
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class _Stream:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, target: socket.socket, *, from_client: bool) -> None:
        self.source, self.target, self.from_client = source, target, from_client
        self.pending: collections.deque[bytes] = collections.deque()  # due, not yet taken by the target
        self.held_bytes = 0  # read from the source and not yet taken by the target, in flight or pending
        self.read_bytes = 0
        self.ended = False  # the source has sent its last byte
        self.end_due = False
        self.done = False  # and the target has been told


class _Link:
    """A client's connection and the server's connection that carries it."""

    numbers = itertools.count(1)

    def __init__(self, client: socket.socket, server: socket.socket, opens_at: float) -> None:
        self.number = next(self.numbers)
        self.client, self.server = client, server
        self.up = _Stream(client, server, from_client=True)
        self.down = _Stream(server, client, from_client=False)
        self.client_spoke_last = False
        self.opens_at = opens_at
        self.swallowed = False
        self.closed = False

    def stream_from(self, source: socket.socket) -> _Stream:
        return self.up if source is self.client else self.down


def _is_farewell(data: bytes) -> bool:
    """
    Say whether this is TLS's alert, as a server says good-bye: to a client that has said Terminate, and waits for
    nothing.

    From TLS 1.3 on an alert is a record like others, but of two bytes, one for what it is, and sixteen of its tag; no
    message of PostgreSQL's is as short (RFC 8446, 5.2 and 6).
    """
    return data[:1] == b"\x15" or data[:5] == b"\x17\x03\x03\x00\x13"


class _Loop:
    """One thread that waits for sockets and for moments; whatever has to do with either runs in it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stopped = False
        self.watch(self._wake_reader, selectors.EVENT_READ, self._run_calls)
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; whoever has registered a socket closes it."""

        def stop() -> None:
            self._stopped = True

        self.call(stop)
        self._thread.join()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Run a function in the thread and return what it returns, or raise what it raises."""
        done = threading.Event()
        results: list[_Result] = []
        problems: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function())
            except BaseException as problem:  # noqa: BLE001 - it is raised again in the caller's thread
                problems.append(problem)
            finally:
                done.set()

        self._calls.append(run)
        self._wake_writer.send(b"!")
        while not done.wait(1.0):
            if not self._thread.is_alive():
                raise RuntimeError("the proxy's thread has ended, by an error that it printed")
        if problems:
            raise problems[0]
        return results[0]

    def at(self, moment: float, function: Callable[[], None]) -> None:
        """Run a function when the monotonic clock shows this moment; of one moment's, in the order of the calls."""
        heapq.heappush(self._later, (moment, next(self._numbers), function))

    def watch(self, sock: socket.socket, events: int, serve: Callable[[int], None]) -> None:
        """Call `serve` with what a socket is ready for, of these events, from now on; 0 for none."""
        registered = self._selector.get_map().get(sock)
        if events and registered is None:
            self._selector.register(sock, events, serve)
        elif registered is not None and not events:
            self._selector.unregister(sock)
        elif registered is not None and registered.events != events:
            self._selector.modify(sock, events, serve)

    def forget(self, sock: socket.socket) -> None:
        """Wait for nothing of a socket that is about to be closed."""
        if self._selector.get_map().get(sock) is not None:
            self._selector.unregister(sock)

    def _run(self) -> None:
        while not self._stopped:
            timeout = max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
            # select() on the selector itself: epoll rounds its own time-out up to a whole millisecond.
            select.select([self._selector.fileno()], [], [], timeout)
            for key, events in self._selector.select(0):
                key.data(events)
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()

    def _run_calls(self, _events: int) -> None:
        self._wake_reader.recv(4096)
        while self._calls:
            self._calls.popleft()()


class ChaosProxy(Closing):
    """
    A TCP proxy in a thread, between clients on loopback and the server at `host`:`port`.

    `round_trips` counts the waits of all its clients, exactly: one for each TCP connection opened, and one each time
    the server answers after a client has spoken. It is counted before the answer is passed on, so a client that holds
    the answer also reads the right count. What a client sends without an answer (Terminate) is no round trip. Assign 0
    to `round_trips` or `connections` to count anew.

    Args: host, port: the server. latency_ms: what a round trip takes more, half of it each way; a connect waits for a
        whole one. It may be assigned at any time. listener: is told of each round trip, and of what clients send.
    Units: milliseconds and bytes, as the names say.
    Threads: the methods may be called from any thread and return when the deed is done.

        with ChaosProxy(server.host, server.port) as proxy:
            connection = wire.connect(user="postgres", host=proxy.host, port=proxy.port, database="postgres")
            proxy.round_trips = 0
            ...
            assert proxy.round_trips == 1
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int, *, latency_ms: float = 0.0, listener: Listener | None = None) -> None:
        self.upstream = (host, port)
        self._told = listener
        self.latency_ms = latency_ms
        self.round_trips = 0
        self.connections = 0
        self.port = 0
        self._links: set[_Link] = set()
        self._partitioned = False
        self._cut_from_client: int | None = None
        self._cut_from_server: int | None = None
        self._cut_gracefully = False
        self._listener: socket.socket | None = None
        self._loop: _Loop | None = None

    def __enter__(self) -> Self:
        self._loop = _Loop()
        self._call(self._listen)
        return self

    def close(self) -> None:
        """End the proxy and every connection through it; may be called again."""
        if self._loop is None:
            return

        def act() -> None:
            self._stop_listening()
            for link in list(self._links):
                self._close_link(link)

        self._loop.call(act)
        self._loop.close()
        self._loop = None

    # What can happen to a network.

    def reset(self) -> int:
        """Break every connection with a TCP reset, towards client and server; return how many there were."""

        def act() -> int:
            links = list(self._links)
            for link in links:
                self._close_link(link, reset=True)
            return len(links)

        return self._call(act)

    def hang_up(self) -> int:
        """End every connection as a server does that closes in good order (FIN); return how many there were."""

        def act() -> int:
            links = list(self._links)
            for link in links:
                self._close_link(link)
            return len(links)

        return self._call(act)

    def partition(self) -> None:
        """
        Pass nothing on, in neither direction, until `heal`: a black hole behind an open connection.

        New connections are accepted, as by a load balancer, and hear nothing. Note that this machine's TCP still
        acknowledges what the client sends, so TCP_USER_TIMEOUT and keepalive do not strike here.
        """

        def act() -> None:
            self._partitioned = True
            self._refresh_all()

        self._call(act)

    def heal(self) -> None:
        """End a partition; what was sent in the meantime arrives now."""

        def act() -> None:
            self._partitioned = False
            for link in list(self._links):
                self._flush(link, link.up)
                self._flush(link, link.down)
            self._refresh_all()

        self._call(act)

    def swallow(self) -> int:
        """
        Lose every connection that is open, for good and without a word, as a NAT gateway or a load balancer loses those
        that were idle for too long: neither end hears of the other again, and new connections pass. Return how many
        there were.

        As in a partition, this machine's TCP still acknowledges what is sent.
        """

        def act() -> int:
            lost = [link for link in self._links if not link.swallowed]
            for link in lost:
                link.swallowed = True
                self._refresh(link)
            return len(lost)

        return self._call(act)

    def cut_after(
        self, *, from_client: int | None = None, from_server: int | None = None, gracefully: bool = False
    ) -> None:
        """
        Break the first connection that has passed that many more bytes, and then no other one.

        Args: from_client, from_server: the bytes that still arrive, in that direction, counted on each connection from
            now; None: no limit there. gracefully: by FIN, in place of a reset.
        """

        def act() -> None:
            self._cut_from_client, self._cut_from_server, self._cut_gracefully = from_client, from_server, gracefully
            for link in self._links:
                link.up.read_bytes = link.down.read_bytes = 0
            for link in list(self._links):
                if 0 in (from_client, from_server):
                    self._cut(link)
                    break

        self._call(act)

    def refuse(self) -> None:
        """Stop listening: new connections are refused by the system, those that are open live on."""

        def act() -> None:
            while self._accept():  # who has come before, as the system sees it, is connected
                pass
            self._stop_listening()

        self._call(act)

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._call(self._listen)

    # In the loop's thread, the only one that touches the sockets.

    def _call(self, function: Callable[[], _Result]) -> _Result:
        return self._running.call(function)

    @property
    def _running(self) -> _Loop:
        if self._loop is None:
            raise RuntimeError("the proxy is not running: use it inside its `with` block")
        return self._loop

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(1024)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._running.watch(listener, selectors.EVENT_READ, self._accept_next)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._running.forget(self._listener)
            self._listener.close()
            self._listener = None

    def _accept_next(self, _events: int) -> None:
        self._accept()

    def _accept(self) -> bool:
        """Connect the next client in the queue; tell whether there was one."""
        if self._listener is None:
            return False  # it was closed after somebody had come, and before this thread looked
        try:
            client, _ = self._listener.accept()
        except OSError:
            return False  # gone again already
        try:
            server = socket.create_connection(self.upstream, timeout=5)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            client.close()
            return True
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(False)
        self.connections += 1
        self.round_trips += 1
        link = _Link(client, server, time.monotonic() + self.latency_ms / 1000)
        self._links.add(link)
        if self._told is not None:
            self._told.connected(link.number)
        self._refresh(link)
        return True

    def _serve(self, link: _Link, end: socket.socket, events: int) -> None:
        if link.closed:
            return
        stream = link.stream_from(end)
        if events & selectors.EVENT_WRITE:
            self._flush(link, link.down if end is link.client else link.up)
        if events & selectors.EVENT_READ and not self._is_silent(link) and not stream.ended:
            self._read(link, stream)
        self._refresh(link)

    def _read(self, link: _Link, stream: _Stream) -> None:
        if link.closed:
            return
        limit = self._cut_from_client if stream.from_client else self._cut_from_server
        try:
            data = stream.source.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close_link(link, reset=True)
            return
        if data:
            stream.read_bytes += len(data)
            if limit is not None and stream.read_bytes >= limit:
                data = data[: max(0, len(data) - (stream.read_bytes - limit))]
                stream.held_bytes += len(data)
                stream.pending.append(data)
                self._flush(link, stream)
                self._cut(link)
                return
            if stream.from_client:
                link.client_spoke_last = True
                if self._told is not None:
                    self._told.sent(link.number, data)
            elif link.client_spoke_last and not _is_farewell(data):
                link.client_spoke_last = False
                if not link.up.ended:  # who has hung up waits for nothing
                    self.round_trips += 1
                    if self._told is not None:
                        self._told.answered(link.number)
            stream.held_bytes += len(data)
        else:
            stream.ended = True

        def deliver() -> None:
            if link.closed:
                return
            if data:
                stream.pending.append(data)
            else:
                stream.end_due = True
            self._flush(link, stream)
            self._refresh(link)

        if self.latency_ms:
            due = max(time.monotonic(), link.opens_at) + self.latency_ms / 2000
            self._running.at(due, deliver)
        else:
            deliver()

    def _flush(self, link: _Link, stream: _Stream) -> None:
        if self._is_silent(link) or link.closed:
            return
        try:
            while stream.pending:
                data = stream.pending[0]
                sent = stream.target.send(data)
                stream.held_bytes -= sent
                if sent < len(data):
                    stream.pending[0] = data[sent:]
                    return
                stream.pending.popleft()
            if stream.end_due and not stream.done:
                stream.done = True
                stream.target.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            self._close_link(link, reset=True)
            return
        if link.up.done and link.down.done:
            self._close_link(link)

    def _cut(self, link: _Link) -> None:
        self._cut_from_client = self._cut_from_server = None
        self._close_link(link, reset=not self._cut_gracefully)

    def _is_silent(self, link: _Link) -> bool:
        return self._partitioned or link.swallowed

    def _refresh_all(self) -> None:
        for link in list(self._links):
            self._refresh(link)

    def _refresh(self, link: _Link) -> None:
        """Tell the selector what this link waits for now."""
        if link.closed:
            return
        for source, outgoing, incoming in ((link.client, link.up, link.down), (link.server, link.down, link.up)):
            events = 0
            if not self._is_silent(link):
                if not outgoing.ended and outgoing.held_bytes < _BUFFER_BYTES:
                    events |= selectors.EVENT_READ
                if incoming.pending:
                    events |= selectors.EVENT_WRITE
            self._running.watch(source, events, functools.partial(self._serve, link, source))

    def _close_link(self, link: _Link, *, reset: bool = False) -> None:
        if link.closed:
            return
        link.closed = True
        self._links.discard(link)
        for end in (link.client, link.server):
            self._running.forget(end)
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            end.close()


def free_port() -> int:
    """
    Return a port that nobody has: below those that the kernel gives to whoever connects, so that none of them has it
    while a server is stopped and is to come back on it.

    Raises: OSError if none is free.
    """
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        lowest = 0
    choices = [random.SystemRandom().randrange(_LOWEST_PORT, lowest) for _ in range(50) if lowest > _LOWEST_PORT + 1000]
    for port in [*choices, 0]:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(errno.EADDRINUSE, "no port of 127.0.0.1 is free")
