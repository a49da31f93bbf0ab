"""The socket: dial, TLS, wait until a deadline, send, receive, cancel. It knows bytes, and nothing of what they say."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time as clock
from typing import TYPE_CHECKING, Any, NoReturn

from ..tls import explain, setting
from .errors import EndOfStream, Lost, OperationalError, Secret, TooLate, lost

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

#: bytes of one read, and of one piece of a long write
PIECE = 65536
#: what is longer is not copied without need
LARGE = 1 << 20
DEAD_PEER_AT_MOST_S = 80_000  # TCP_KEEPIDLE has 15 bits
ALPN = "postgresql"
TLS_REQUEST = struct.pack("!ii", 8, 80877103)

_NO_TLS = {
    b"N": "{} does not offer TLS, but {} requires it; nothing else was sent",
    b"E": "{} refused the connection before TLS began (too many connections, or it is starting up)",
    b"": "{} closed the connection when it was asked for TLS: is PostgreSQL behind that port?",
}
_SHORT_FLIGHT = 16384  # what any socket takes at once, even if the server reads nothing
#: what a CancelRequest may take: half of what a deadline leaves for the handler to answer, as
#: PLUNGEPOOL_DEADLINE_MARGIN_S has it by default
CANCEL_TIMEOUT_S = 0.25


class Transport:
    """
    A way to one server, and to no other one.

    Whatever a call to the socket raises leaves as `Lost`, the end of the stream as `EndOfStream`, the deadline as
    `TooLate`; while it is being opened, with the reason, as `OperationalError`. Any other exception is somebody else's:
    a signal handler's. After each of them the transport is of no use any more, and whoever uses it closes it.
    """

    def __init__(
        self,
        *,
        host: str,
        dialled: tuple[str, int],
        place: str,
        ssl_context: ssl.SSLContext | None,
        direct: bool,
        dead_peer_timeout_s: float,
    ) -> None:
        """
        No I/O yet. `host` is whose certificate is asked for, `dialled` where it is looked for, `place` both, for
        errors.
        """
        self.host, self.dialled, self.place = host, dialled, place
        #: the wall-clock moment at which waiting ends; None: never
        self.deadline: float | None = None
        #: how often the server was waited for on the way to it, and by whoever authenticates there
        self.round_trips = 0
        #: bytes that have come
        self.received = 0
        #: None before it was dialled, and after it was closed
        self.sock: socket.socket | None = None

        self._ssl_context, self._direct = ssl_context, direct
        self._dead_peer_timeout_s = dead_peer_timeout_s
        self._family = socket.AF_INET
        #: where it leads, and all that the look-up of the host's name has shown; as getaddrinfo writes addresses
        self.address: Any = None
        self.looked_up: tuple[Any, ...] = ()
        #: when that look-up was over
        self.named_at = 0.0
        self._poller = select.poll()
        self._secured = False
        self._would_block: tuple[type[OSError], ...] = (BlockingIOError,)
        self._incoming: list[bytes] = []  # read while a long flight was still being written

    def dial(self) -> None:
        """Try each address of the host, each with its share of the time that is left; `deadline` is set."""
        addresses = _resolve(*self.dialled, self.place)
        self.looked_up, self.named_at = tuple(one[-1] for one in addresses), clock.time()
        assert self.deadline is not None  # noqa: S101 - a connect has one
        failure: OSError | None = None
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            now = clock.time()
            share = max(0.0, self.deadline - now) / (len(addresses) - index)
            try:
                self.sock = sock = socket.socket(family, kind, protocol)
                self._family, self.address, self._poller = family, address, select.poll()
                sock.setblocking(False)
                tune(sock, self._dead_peer_timeout_s)
                self.round_trips += 1
                number = sock.connect_ex(address)
                if number == errno.EINPROGRESS:
                    self._wait(sock, select.POLLOUT, now + share)
                    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not number:
                    return
                failure = OSError(number, os.strerror(number))
            except TooLate:
                failure = None
            except OSError as error:  # no descriptor left, or a family that the machine does not have
                if error.errno is None:  # as for `lost`
                    raise
                failure = error
            if self.sock is not None:
                self.sock.close()
        if failure is None:
            raise TooLate
        raise OperationalError(f"{self.place} cannot be reached: {failure.strerror or failure}") from failure

    def secure(self) -> None:
        """Ask for TLS, unless it starts at once, and shake hands."""
        if self._direct:
            self._shake_hands()
            return
        self.send(TLS_REQUEST)
        self.round_trips += 1
        # One byte and no more: what came behind it in plain text would pass for the server's, read through TLS.
        try:
            answer = self.receive(1, at_most=1)
        except EndOfStream:
            answer = b""
        if answer == b"S":
            self._shake_hands()
            return
        said = _NO_TLS.get(answer, "{} does not speak PostgreSQL's protocol: does another service listen on that port?")
        raise OperationalError(said.format(self.place, setting(self._ssl_context, "tls")))

    def _shake_hands(self) -> None:
        import ssl

        context, sock = self._ssl_context, self.sock
        assert context is not None and sock is not None  # noqa: S101, PT018 - asked for by the caller, and dialled
        try:
            try:
                secured = context.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)
            except ssl.SSLError:
                raise
            # A host that can be no certificate's: with an address it was not looked up before.
            except ValueError as error:
                raise OperationalError(f"TLS cannot verify the name {self.host!r} of {self.place}: {error}") from error
            self.sock, self._secured = secured, True
            self._would_block = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
            while True:
                try:
                    secured.do_handshake()
                except ssl.SSLWantReadError:
                    self._wait(secured, select.POLLIN)
                except ssl.SSLWantWriteError:
                    self._wait(secured, select.POLLOUT)
                else:
                    break
        except ssl.SSLError as error:
            if self._direct and not _is_of_tls(error):
                raise _not_at_once(self.place, context) from error
            raise OperationalError(explain(error, self.place, context)) from error
        except OSError as error:
            if self._direct and error.errno is not None:  # as for `lost`
                raise _not_at_once(self.place, context) from error.with_traceback(None)
            raise lost(error) from None
        self.round_trips += 1 if secured.version() == "TLSv1.3" else 2
        # As libpq demands it: a server of another protocol that speaks TLS must not take what follows for its own.
        if self._direct and secured.selected_alpn_protocol() != ALPN:
            raise _not_at_once(self.place, context)

    def peer_certificate(self) -> bytes | None:
        """Return the server's certificate, as DER; None without TLS."""
        sock: Any = self.sock
        return sock.getpeercert(binary_form=True) if self._secured and sock is not None else None

    def receive(self, wanted: int, *, at_most: int = 0) -> bytes:
        """
        Return what there is, one byte at least; waits for it. `wanted` bytes are expected: a hint; `at_most` is a
        bound.
        """
        if self._incoming:
            read, self._incoming = b"".join(self._incoming), []
            return read
        sock: Any = self.sock or _closed()
        while True:
            if not self._secured or not sock.pending():
                self._wait(sock, select.POLLIN)
            try:
                chunk: bytes = sock.recv(at_most or (PIECE if wanted <= PIECE else min(wanted, LARGE)))
            except self._would_block:
                continue
            except OSError as error:
                raise lost(error) from None
            if chunk:
                self.received += len(chunk)
                return chunk
            raise EndOfStream

    def take(self) -> bytes | None:
        """Return what can be read at once: None is nothing yet, and no byte the end."""
        sock: Any = self.sock or _closed()
        try:
            chunk: bytes = sock.recv(PIECE)
        except self._would_block:
            return None
        except OSError as error:
            raise lost(error) from None
        return chunk

    def take_rest(self) -> bytes:
        """
        Return all that has come, what was read while a flight was being written included; never waits, never raises.
        """
        with contextlib.suppress(Lost):
            while chunk := self.take():
                self._incoming.append(chunk)
        return b"".join(self._incoming)

    def is_readable(self) -> bool:
        """Say whether something, or the end, can be read at once."""
        sock: Any = self.sock or _closed()
        self._poller.register(sock, select.POLLIN)
        return bool((self._secured and sock.pending()) or self._poller.poll(0))

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it; waits where the server does not read."""
        sock: Any = self.sock or _closed()
        sent = 0
        if len(data) <= _SHORT_FLIGHT:
            try:
                sent = sock.send(data)
            except self._would_block:
                pass
            except OSError as error:
                raise lost(error) from None
        if sent < len(data):
            self._send_long(sock, memoryview(data)[sent:])

    def send_parts(self, parts: Sequence[bytes]) -> None:
        """Send whole messages: many short ones at once, and a long one without a copy of it."""
        if sum(map(len, parts)) <= LARGE:
            self.send(b"".join(parts))
            return
        batch: list[bytes] = []
        size = 0
        for part in parts:
            if len(part) > LARGE:
                self.send(b"".join(batch))
                batch, size = [], 0
                self.send(part)
                continue
            batch.append(part)
            size += len(part)
            if size > LARGE:
                self.send(b"".join(batch))
                batch, size = [], 0
        self.send(b"".join(batch))

    def send_secret(self, message: Secret) -> None:
        """Send what holds a secret: no frame that an exception leaves behind shows it, those of `ssl` included."""
        sock: Any = self.sock or _closed()
        sent = 0
        while sent < len(message.value):
            try:
                sent += sock.send(message.value[sent:])
                continue
            except self._would_block:
                pass
            except OSError as error:
                raise lost(error.with_traceback(None)) from None
            except BaseException as error:  # noqa: BLE001 - raised at once, without the frames below this
                raise error.with_traceback(None)  # noqa: B904
            self._wait(sock, select.POLLOUT)

    def _send_long(self, sock: Any, view: memoryview) -> None:
        """
        Write a flight of any length, reading what comes meanwhile: else both sides could wait for the other to read.
        """
        sent = 0
        while sent < len(view):
            try:
                sent += sock.send(view[sent : sent + _SHORT_FLIGHT])
                continue
            except self._would_block:
                pass
            except OSError as error:
                raise lost(error) from None
            self._wait(sock, select.POLLIN | select.POLLOUT)
            chunk = self.take()
            if chunk:
                self._incoming.append(chunk)
            elif chunk is not None:
                raise EndOfStream

    def _wait(self, sock: Any, events: int, until: float | None = None) -> None:
        """Wait for `events` until `until`, the deadline or for ever; an error of the socket counts as an event."""
        self._poller.register(sock, events)
        if until is None:
            until = self.deadline
        if until is None:
            self._poller.poll()
            return
        while True:
            left = until - clock.time()
            if left <= 0:
                raise TooLate
            # A second at a time, since the clock of a frozen environment runs on and the poller's stands still.
            if self._poller.poll(min(left, 1.0) * 1000):
                return

    def say(self, farewell: bytes) -> None:
        """Send it if that is possible at once; never raises."""
        if self.sock is not None:
            with contextlib.suppress(OSError):  # whoever closes does not care whether somebody still listens
                self.sock.send(farewell)

    def close(self) -> None:
        """Close the socket for good, without a word; never raises, and may be called again."""
        sock, self.sock = self.sock, None
        self._incoming = []
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def shut_down(self) -> None:
        """End the stream in both directions and keep the descriptor: a thread that still uses it must read an end."""
        sock = self.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the socket's own, also under TLS

    def cancel(self, request: bytes, within_s: float = CANCEL_TIMEOUT_S) -> bool:
        """
        Send a CancelRequest by a connection of its own, secured as this one; no word if it fails.

        Args: within_s: what all of it may take; nothing is tried without time.
        Returns: whether the server has closed after it, and so has passed the request on.
        """
        until = clock.time() + within_s
        try:
            with socket.socket(self._family, socket.SOCK_STREAM) as plain:
                plain.settimeout(_left(until))
                plain.connect(self.address)
                sock = plain
                if self._ssl_context is not None:
                    if not self._direct:
                        plain.settimeout(_left(until))
                        plain.sendall(TLS_REQUEST)
                        if plain.recv(1) != b"S":
                            return False
                    plain.settimeout(_left(until))
                    sock = self._ssl_context.wrap_socket(plain, server_hostname=self.host)
                with sock:
                    sock.settimeout(_left(until))
                    sock.sendall(request)
                    return not sock.recv(1)  # the server closes when it has passed the request on
        # Time-outs of its own, no descriptor left, and a signal handler's OSError alike: another error is on its way
        # already.
        except OSError:
            return False


def _left(until: float) -> float:
    """Return the seconds that are left; raise TimeoutError where there are none: 0 would mean "do not wait at all"."""
    left_s = until - clock.time()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _resolve(host: str, port: int, place: str) -> list[Any]:
    """Return the addresses of a host, as getaddrinfo does."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # ValueError: no name at all (my..host), OverflowError: no port
    except (OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is None:  # as for `lost`
            raise
        where = "" if place == f"{host}:{port}" else f", to reach {place}"
        reason = (error.strerror if isinstance(error, OSError) else "it is not a host name with a port") or error
        raise OperationalError(f"the host name {host} cannot be resolved{where}: {reason}") from error


def _not_at_once(place: str, context: ssl.SSLContext) -> OperationalError:
    return OperationalError(
        f"{place} does not accept direct TLS for PostgreSQL (ALPN {ALPN}), but {setting(context, 'tls_negotiation')}="
        "direct requires it: PostgreSQL supports it from version 17 on, most poolers do not; without the setting, "
        "TLS is "
        "negotiated first"
    )


def _is_of_tls(error: ssl.SSLError) -> bool:
    """
    Whether the other side spoke TLS at all: it showed a certificate, or an alert other than that it does not know
    ALPN's name.
    """
    reason = error.reason or ""
    return hasattr(error, "verify_code") or ("ALERT" in reason and "NO_APPLICATION_PROTOCOL" not in reason)


def _closed() -> NoReturn:
    # By whoever was called back in the middle of a flight (a COPY's stream), and used what called him.
    raise Lost(OSError(errno.EBADF, os.strerror(errno.EBADF)))


def tune(sock: socket.socket, dead_peer_timeout_s: float) -> None:
    """No waiting for more to send, and an end to waiting for a network that swallows everything."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Probes start at two fifths of the time and come five times as often, so that the last unanswered one ends it in
    # time.
    interval = max(1, int(dead_peer_timeout_s / 5))
    idle = max(1, int(dead_peer_timeout_s * 2 / 5))
    options = {
        "TCP_USER_TIMEOUT": max(1, int(dead_peer_timeout_s * 800)),
        "TCP_KEEPIDLE": idle,
        "TCP_KEEPINTVL": interval,
        "TCP_KEEPCNT": max(1, int((dead_peer_timeout_s - idle) / interval)),
    }
    for name, value in options.items():
        if hasattr(socket, name):  # Linux has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
