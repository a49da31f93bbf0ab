"""
One Runtime API for a whole fleet, in the loop of the storm: the first part of a path says whose request it is.

The toolkit's other one (runtime_api.py) has a thread a connection, and knows of init, extensions and snapshots; by the
time an environment comes here, all that is behind it. What is left is small enough for hundreds in one thread.

Source: Lambda developer guide, "Runtime API".
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_VERSION = "/2018-06-01/runtime/"
ARN = "arn:aws:lambda:eu-west-1:000000000000:function:storm"


class Work:
    """One invocation; `done` is set to its error's code, None on success."""

    __slots__ = ("body", "deadline", "done", "request_id")

    def __init__(self, request_id: str, event: object, deadline_s: float) -> None:
        self.request_id = request_id
        self.body = json.dumps(event).encode()
        self.deadline = time.time() + deadline_s
        self.done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def finish(self, code: str | None) -> None:
        """Say what came of it, unless that is known already."""
        if not self.done.done():
            self.done.set_result(code)


class Seat:
    """
    An environment as the Runtime API sees it: it waits for an invocation, has one, or is gone.

    `on_idle` is called whenever it waits, the first time as well.
    """

    def __init__(self, on_idle: Callable[[], None]) -> None:
        self.on_idle = on_idle
        self._next: asyncio.Future[Work | None] | None = None
        self._work: Work | None = None

    def begin(self, work: Work) -> None:
        """Hand over an invocation. Only where the environment waits for one."""
        assert self._next is not None
        self._work = work
        self._next.set_result(work)

    def end(self, code: str) -> None:
        """The environment is gone, or is about to be: what it had fails by this code, and it gets nothing more."""
        if self._work is not None:
            self._work.finish(code)
        if self._next is not None and not self._next.done():
            self._next.set_result(None)

    async def wait(self) -> Work | None:
        """Wait for the next invocation; None: there will be none."""
        self._next = asyncio.get_running_loop().create_future()
        self.on_idle()
        return await self._next

    def answer(self, request_id: str, code: str | None) -> bool:
        """Take an answer; False where it is to nothing that was asked."""
        work = self._work
        if work is None or work.request_id != request_id:
            return False
        self._work = None
        work.finish(code)
        return True

    def hang_up(self) -> None:
        """Its connection has ended: a runtime that has an invocation then has crashed."""
        if self._work is not None:
            self._work.finish("Runtime.ExitError")


class Service:
    """The server. `address` is known after `start`; `seats` are who may come, by number."""

    def __init__(self) -> None:
        self.seats: dict[int, Seat] = {}
        self.address = ""
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, in the running loop."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    async def close(self) -> None:
        """Listen no more, and let every connection go."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        link = writer.get_extra_info("socket")
        # A small answer must not wait for the acknowledgement of the one before.
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seat: Seat | None = None
        try:
            while True:
                method, path, fields = await _read_head(reader)
                body = await _read_body(reader, writer, fields)
                number, _, rest = path.removeprefix("/").partition(_VERSION)
                seat = self.seats.get(int(number)) if number.isdecimal() else None
                if seat is None:
                    break
                reply = await _reply(seat, method, rest, body)
                if reply is None:
                    break
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            # The end of the storm. Whoever awaited this task has nothing to learn from it.
            pass
        finally:
            if seat is not None:
                seat.hang_up()
            self._connections.discard(task)
            writer.close()


async def _reply(seat: Seat, method: str, path: str, body: bytes) -> bytes | None:
    match [method, *path.split("/")]:
        case ["GET", "invocation", "next"]:
            work = await seat.wait()
            if work is None:
                return None
            head = (
                f"Lambda-Runtime-Aws-Request-Id: {work.request_id}\r\n"
                f"Lambda-Runtime-Deadline-Ms: {int(work.deadline * 1000)}\r\n"
                f"Lambda-Runtime-Invoked-Function-Arn: {ARN}\r\n"
            )
            return _written("200 OK", work.body, head)
        case ["POST", "invocation", request_id, "response" | "error" as kind]:
            if seat.answer(request_id, _code(kind, body)):
                return _written("202 Accepted", b'{"status": "OK"}')
            return _written("400 Bad Request", b'{"errorType": "InvalidRequestID"}')
    return _written("404 Not Found", b'{"errorType": "NotFound"}')


def _code(kind: str, body: bytes) -> str | None:
    """Return what an answer says of its invocation: the code of its failure, or None."""
    try:
        document: Any = json.loads(body or b"null")
        code = document["errorType" if kind == "error" else "failure"]
    except (KeyError, TypeError, ValueError):
        return "Runtime.InvalidResponse"
    return None if code is None else str(code)


def _written(status: str, body: bytes, head: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\n{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1")
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return method, path, fields


async def _read_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fields: dict[str, str]) -> bytes:
    if fields.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if fields.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(fields.get("content-length") or 0))
    pieces = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(pieces)
