"""
A PostgreSQL server that lies: it speaks the protocol well enough for a driver, and does to its replies what it is told.

Every query names a token, `q-<number>`, in its text or in its first parameter, and the honest answer is one row that
holds it: so a row that belongs to another query is known at once.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any

TOKEN = re.compile(rb"q-\d+")
PARAMETERS = {
    "server_version": "15.8",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
    "is_superuser": "off",
    "default_transaction_read_only": "off",
    "in_hot_standby": "off",
    "session_authorization": "app",
    "application_name": "",
}
_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
# Longer than any client needs between two pieces of what it sends, short enough for thousands of examples.
_QUIET_S = 0.15


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message of the server."""
    return kind + struct.pack("!i", len(body) + 4) + body


def error(code: str, text: str = "from the fuzzed server", *, severity: str = "ERROR", **more: str) -> bytes:
    """An ErrorResponse; `more`: fields by their letter."""
    fields = {"S": severity, "V": severity, "C": code, "M": text, **more}
    return message(b"E", b"".join(name.encode() + value.encode() + b"\0" for name, value in fields.items()) + b"\0")


def ready(state: bytes = b"I") -> bytes:
    """ReadyForQuery."""
    return message(b"Z", state)


def row_description(*names: str) -> bytes:
    """RowDescription of text columns."""
    columns = b"".join(name.encode() + b"\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0) for name in names)
    return message(b"T", struct.pack("!h", len(names)) + columns)


def data_row(*values: bytes) -> bytes:
    """DataRow."""
    return message(b"D", struct.pack("!h", len(values)) + b"".join(struct.pack("!i", len(v)) + v for v in values))


@dataclass
class Fault:
    """
    What happens to one reply.

    Args: change: from the honest reply's messages to those that are sent (any bytes); how: "whole", "drip" (a byte at a
        time), "silent" (and then nothing, for longer than a test takes), "close" or "reset" right after it; cut: only
        that many bytes of it.
    """

    change: object = list
    how: str = "whole"
    cut: int | None = None


class FuzzServer:
    """
    The server, in threads; a context manager.

    `startup_fault` and `query_faults` (by the number of the flight, counted from 0 over all connections from the moment
    of `plan`) say which replies are spoilt. A client that waits for more than a spoilt reply gives is hung up on after
    a moment, so one that still waits then would wait for ever.
    """

    host = "127.0.0.1"

    def __enter__(self) -> Any:
        self._lock = threading.Lock()
        self.plan()
        self.sent_bytes = 0
        self.connections = 0
        self.clients_that_left = 0
        self._sockets = set()
        self._listener = socket.create_server((self.host, 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in list(self._sockets):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def plan(
        self, *, startup_fault: Any = None, query_faults: Any = None, authentication: bytes = b"", drip_s: float = 0.0
    ) -> None:
        """Say what goes wrong from now on. authentication: messages before AuthenticationOk."""
        with self._lock:
            self.flights = 0
            self.startup_fault, self.query_faults = startup_fault, query_faults or {}
            self.authentication, self.drip_s = authentication, drip_s

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: Any) -> None:
        self.connections += 1
        self._sockets.add(client)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client in the middle of nothing may wait as long as the test does; one in a spoilt reply may not.
        client.settimeout(30)
        try:
            with client, contextlib.suppress(OSError, EOFError):
                if self._start(client):
                    self._answer(client)
        finally:
            self._sockets.discard(client)

    def _start(self, client: Any) -> Any:
        while True:
            (length,) = struct.unpack("!i", _exactly(client, 4))
            (code,) = struct.unpack("!i", _exactly(client, 4))
            _exactly(client, length - 8)
            if code in (_SSL_REQUEST, _GSS_REQUEST):
                client.sendall(b"N")
            else:
                break
        if code == _CANCEL_REQUEST:
            return False
        with self._lock:
            fault, self.startup_fault = self.startup_fault, None
            authentication = self.authentication
        if authentication:
            client.sendall(authentication)
            if client.recv(1) != b"p":
                return False
            _exactly(client, struct.unpack("!i", _exactly(client, 4))[0] - 4)
        reply = [message(b"R", struct.pack("!i", 0))]
        reply += [message(b"S", f"{name}\0{value}\0".encode()) for name, value in PARAMETERS.items()]
        reply += [message(b"K", struct.pack("!ii", 4711, 42)), ready()]
        return self._send(client, reply, fault)

    def _answer(self, client: Any) -> None:
        state, token = b"I", b"nothing"
        reply = []
        while True:
            kind = client.recv(1)
            if kind in (b"X", b""):
                return
            body = _exactly(client, struct.unpack("!i", _exactly(client, 4))[0] - 4)
            if found := TOKEN.search(body):
                token = found.group()
            if kind == b"Q":
                answer, state = _run(body, token, state, described=True)
                reply += [*answer, ready(state)]
            elif kind == b"P":
                statement = body.split(b"\0")[1]
                reply.append(message(b"1"))
            elif kind == b"B":
                reply.append(message(b"2"))
            elif kind == b"D":
                if body[:1] == b"S":
                    reply.append(message(b"t", struct.pack("!h", statement.count(b"$"))))
                reply.append(row_description("token") if _has_rows(statement) else message(b"n"))
            elif kind == b"E":
                answer, state = _run(statement, token, state, described=False)
                reply += answer
            elif kind == b"C":
                reply.append(message(b"3"))
            elif kind == b"S":
                reply.append(ready(state))
            if kind in (b"Q", b"S"):
                # Flights sent together are answered together, so that a fault meets the whole of what is waited for.
                client.settimeout(0.0005)
                with contextlib.suppress(TimeoutError, BlockingIOError):
                    if client.recv(1, socket.MSG_PEEK):
                        client.settimeout(30)
                        continue
                client.settimeout(30)
                with self._lock:
                    fault = self.query_faults.get(self.flights)
                    self.flights += 1
                going = self._send(client, reply, fault)
                reply = []
                if not going:
                    return

    def _send(self, client: Any, reply: Any, fault: Any) -> bool:
        """Send a reply as its fault has it; return whether the connection goes on."""
        if fault is None:
            client.sendall(b"".join(reply))
            return True
        data = b"".join(fault.change(reply))[: fault.cut]
        if fault.how == "drip":
            # What follows a whole reply comes along with its last byte: a second one that came when the next question
            # is on its way would be the answer to that one, for all that anybody can see.
            whole = data.find(b"Z\0\0\0\5")
            last = len(data) - 1 if whole < 0 else whole + 5
            for position in range(min(last + 1, len(data))):
                client.sendall(data[position:] if position == last else data[position : position + 1])
                self.sent_bytes += 1
                time.sleep(self.drip_s)
        else:
            client.sendall(data)
        if fault.how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault.how in ("close", "reset"):
            return False
        if fault.how == "silent":
            with contextlib.suppress(ConnectionError):
                while client.recv(4096):
                    pass
            self.clients_that_left += 1
            return False
        # Is the client content, so that it speaks or leaves? Otherwise it waits, and gets nothing more.
        client.settimeout(_QUIET_S)
        try:
            client.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False
        client.settimeout(30)
        return True


def _has_rows(statement: Any) -> Any:
    return statement.lstrip().upper().startswith((b"SELECT", b"SHOW"))


def _run(statement: Any, token: Any, state: Any, *, described: Any) -> Any:
    statement = statement.rstrip(b"\0")
    word = statement.split(b" ")[0].upper().rstrip(b";")
    if not word:
        return [message(b"I")], state
    if _has_rows(statement):
        # What SQLAlchemy's own dialects ask when they connect.
        value = b"PostgreSQL 15.8" if b"version()" in statement else b"on" if b"standard_conf" in statement else token
        return [
            *([row_description("token")] if described else []),
            data_row(value),
            message(b"C", b"SELECT 1\0"),
        ], state
    if word in (b"BEGIN", b"START"):
        return [message(b"C", b"BEGIN\0")], b"T"
    if word in (b"COMMIT", b"ROLLBACK"):
        return [message(b"C", word + b"\0")], b"I"
    return [message(b"C", word + b" 1\0")], state


def _exactly(client: Any, count: Any) -> Any:
    data = b""
    while len(data) < count:
        piece = client.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
