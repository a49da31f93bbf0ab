"""
Lambda's Runtime API and Extensions API over HTTP, on loopback, for the processes of one environment.

`Life` is what the two sides tell each other: the requests of the runtime and of the extensions arrive in threads of
`RuntimeApi`, and the environment begins work, waits for states and announces events.

Source: Lambda developer guide, "Runtime API" and "Extensions API"; for what is refused, and what init waits for,
aws-lambda-runtime-interface-emulator, core/registrations.go and rapid/start.go.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Protocol

from plungepool_toolkit.processes import Closing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class Process(Protocol):
    """A process of an environment: a GuardedProcess, or a Clone."""

    pid: int
    started_at: float

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that ended it), or None while it runs."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code, or None if it still runs after `timeout` seconds."""

    def signal(self, number: int) -> None:
        """Send a signal to the process and to every process of its group; one that has ended is no error."""

    def stop(self) -> int:
        """End it; return its exit code."""


_EXTENSIONS_AT_MOST = 10


class NotInTime(Exception):
    """The state that was waited for did not come; never leaves the environment."""


class Ended(Exception):
    """The process ended while something was expected of it; never leaves the environment."""

    def __init__(self, code: int) -> None:
        self.code = code


@dataclass(slots=True)
class Work:
    """One invocation on its way: what the runtime is given, and what it gave back."""

    request_id: str
    event: bytes
    client_context: Mapping[str, Any] | None
    trace_id: str
    function_arn: str
    deadline: float = 0.0
    handed_at: float = 0.0
    finished_at: float = 0.0
    payload: Any = None
    error: dict[str, Any] | None = None

    def fail(self, error: dict[str, Any]) -> None:
        """End it with an error document, unless it has ended already."""
        if not self.finished_at:  # a response that was given stays given
            self.error = error
            self.finished_at = time.perf_counter()
            self.handed_at = self.handed_at or self.finished_at


@dataclass(slots=True)
class _Extension:
    name: str
    events: list[str]
    external: bool
    waiting: bool = False
    pending: list[dict[str, Any]] = field(default_factory=list)


class Refused(Exception):
    """What the Extensions API answers with 403; the text is the error's type."""


class Life:
    """
    What the Runtime API and the environment tell each other, under one condition.

    Several runtimes may ask for work, each for one invocation at a time: the processes of a Managed Instance.
    """

    def __init__(self, handler: str, external: set[str]) -> None:
        self.handler = handler
        self.changed = threading.Condition()
        self.processes: list[Process] = []
        self.runtime: Process | None = None
        self.extensions: dict[str, _Extension] = {}
        self.closed = False  # a runtime has asked for work: no extension can be registered any more
        self.at_snapshot = False
        self.restoring = False
        self.keeper: str | None = None  # where the keeper of a copy has to come to
        self.failure: dict[str, Any] | None = None
        self.failed_phase: str | None = None
        self.ended = False
        self._external = external
        self._waiting: deque[Work] = deque()
        self._running: dict[str, Work] = {}
        self._idle_runtimes = 0

    @property
    def idle(self) -> bool:
        """Whether a runtime waits for an invocation."""
        return self._idle_runtimes > len(self._waiting)

    @property
    def initialised(self) -> bool:
        """Whether init is over: it failed, it came to the snapshot, or the runtime waits for work."""
        return self.failure is not None or self.at_snapshot or self.idle

    @property
    def extensions_idle(self) -> bool:
        """Whether each extension that hears of invocations, or is a process of its own, has done its part."""
        return all(e.waiting for e in self.extensions.values() if e.external or "INVOKE" in e.events)

    @property
    def extensions_ready(self) -> bool:
        """Whether each extension, also one of no events, has asked for its next event, as init waits for."""
        return all(e.waiting for e in self.extensions.values())

    # For the environment

    def wait(self, reached: Callable[[], bool], timeout_s: float, process: Process | None = None) -> None:
        """Wait for a state; raise Ended if the process ends before, NotInTime if it is not reached in time."""
        deadline = time.monotonic() + timeout_s
        process = process or self.runtime
        assert process is not None
        with self.changed:
            while not reached():
                # The end of the process is asked for every 20 ms; everything else notifies.
                code = process.poll()
                if code is not None:
                    raise Ended(code)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise NotInTime
                self.changed.wait(min(left, 0.02))

    def begin(self, work: Work) -> None:
        """Give the runtime an invocation, and tell the extensions of it."""
        with self.changed:
            self._waiting.append(work)
            self.changed.notify_all()
        self.announce(
            {
                "eventType": "INVOKE",
                "requestId": work.request_id,
                "invokedFunctionArn": work.function_arn,
                "tracing": {"type": "X-Amzn-Trace-Id", "value": work.trace_id},
            },
            work.deadline,
        )

    def withdraw(self, work: Work) -> None:
        """Give nobody an invocation that no runtime has taken in its time."""
        with self.changed, contextlib.suppress(ValueError):
            self._waiting.remove(work)

    def begin_restore(self) -> None:
        """Let the runtime go on from the snapshot."""
        with self.changed:
            self.at_snapshot = False
            self.restoring = True
            self.changed.notify_all()

    def begin_copy(self, keeper: str) -> None:
        """Have the runtime, which is at its snapshot, copied by a keeper that comes to this address."""
        with self.changed:
            self.at_snapshot = False
            self.keeper = keeper
            self.changed.notify_all()

    def adopt(self, names: Iterable[str]) -> None:
        """Know of the extensions inside a runtime that was copied: their threads are gone, and SIGTERM is due to it."""
        with self.changed:
            for name in names:
                self.extensions[str(uuid.uuid4())] = _Extension(name, [], external=False, waiting=True)

    def announce(self, event: dict[str, Any], deadline: float) -> None:
        """Hand an event to every extension that registered for its kind."""
        with self.changed:
            for extension in self.extensions.values():
                if event["eventType"] in extension.events:
                    extension.pending.append({**event, "deadlineMs": int(deadline * 1000)})
                    extension.waiting = False
            self.changed.notify_all()

    def end(self) -> None:
        """Let go every thread that waits for work, for an event or for the restore."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    # For the Runtime API's threads

    def next_work(self) -> Work | None:
        """Say that a runtime is idle, and wait for the next invocation; None at the end."""
        with self.changed:
            self._idle_runtimes += 1
            self.closed = True
            self.restoring = False
            self.changed.notify_all()
            try:
                while not self.ended:
                    if self._waiting:
                        work = self._waiting.popleft()
                        self._running[work.request_id] = work
                        work.handed_at = time.perf_counter()
                        return work
                    self.changed.wait()
                return None
            finally:
                self._idle_runtimes -= 1

    def finish(self, request_id: str, error: bool, body: bytes) -> bool:
        """Take a runtime's answer; False if it is not to an invocation that runs."""
        with self.changed:
            work = self._running.pop(request_id, None)
            if work is None or work.finished_at:
                return False
            document = json.loads(body or b"null")
            if error:
                work.error = document
            else:
                work.payload = document
            work.finished_at = time.perf_counter()
            self.changed.notify_all()
            return True

    def wait_for_restore(self) -> dict[str, Any] | None:
        """Say that the snapshot can be taken, and wait for its restore or its copy; None at the end."""
        with self.changed:
            self.at_snapshot = True
            self.changed.notify_all()
            while not (self.restoring or self.keeper or self.ended):
                self.changed.wait()
            keeper, self.keeper = self.keeper, None
            return {"keeper": keeper} if keeper else {} if self.restoring else None

    def fail(self, phase: str, error: dict[str, Any]) -> None:
        """Take the error that the runtime reports of init, of a hook or of the restore."""
        with self.changed:
            self.failure, self.failed_phase = error, phase
            self.changed.notify_all()

    def register(self, name: str, events: list[str]) -> str:
        """
        Return the extension's id.

        Raises: Refused for an internal one that wants the event that only external ones get, that comes too late, or
            whose name is taken.
        """
        with self.changed:
            external = name in self._external
            if not external and "SHUTDOWN" in events:
                raise Refused("Extension.InvalidEventType")
            if self.closed:
                raise Refused("Extension.RegistrationClosed")
            if any(extension.name == name for extension in self.extensions.values()):
                raise Refused("Extension.InvalidExtensionState")
            if len(self.extensions) >= _EXTENSIONS_AT_MOST:
                raise Refused("Extension.TooManyExtensions")
            identifier = str(uuid.uuid4())
            self.extensions[identifier] = _Extension(name, events, external)
            self.changed.notify_all()
            return identifier

    def next_event(self, identifier: str) -> dict[str, Any] | None:
        """Wait for the next event of an extension; None at the end."""
        with self.changed:
            extension = self.extensions[identifier]
            extension.waiting = not extension.pending
            self.changed.notify_all()
            while not self.ended:
                if extension.pending:
                    return extension.pending.pop(0)
                self.changed.wait()
            return None


class RuntimeApi(Closing):
    """A listening socket and a thread a connection; `life` is whom the requests are about."""

    def __init__(self) -> None:
        self.life: Life | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="runtime-api", daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._closing:
                connection.close()
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._serve, args=(connection,), name="runtime-api", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):  # a killed runtime leaves in the middle of a word
            _Request(connection, ("127.0.0.1", 0), self)  # type: ignore[arg-type]  # a server only by name

    def close(self) -> None:
        """Listen no more, and wait for the requests that are being served."""
        self._closing = True
        with contextlib.suppress(OSError):  # wakes accept(), which closing the socket does not do everywhere
            socket.create_connection(self._listener.getsockname(), timeout=1).close()
        self._acceptor.join()
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Unbuffered small writes with Nagle's algorithm cost 40 ms of delayed acknowledgement each.
    wbufsize = -1
    disable_nagle_algorithm = True

    @property
    def _life(self) -> Life:
        life: Life | None = self.server.life  # type: ignore[attr-defined]  # RuntimeApi is a server only by name
        assert life is not None
        return life

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  the base class's name
        pass

    def handle_expect_100(self) -> bool:
        accepted = super().handle_expect_100()
        self.wfile.flush()
        return accepted

    def do_GET(self) -> None:
        life = self._life
        match self.path.split("/")[1:]:
            case ["2018-06-01", "runtime", "invocation", "next"]:
                work = life.next_work()
                if work is None:
                    self.close_connection = True
                    return
                headers = {
                    "Lambda-Runtime-Aws-Request-Id": work.request_id,
                    "Lambda-Runtime-Deadline-Ms": str(int(work.deadline * 1000)),
                    "Lambda-Runtime-Invoked-Function-Arn": work.function_arn,
                    "Lambda-Runtime-Trace-Id": work.trace_id,
                }
                if work.client_context is not None:
                    headers["Lambda-Runtime-Client-Context"] = json.dumps(work.client_context)
                self._reply(200, work.event, headers)
            case ["2018-06-01", "runtime", "restore", "next"]:
                answer = life.wait_for_restore()
                if answer is None:
                    self.close_connection = True
                else:
                    self._reply(200, answer)
            case ["2020-01-01", "extension", "event", "next"]:
                identifier = self.headers.get("Lambda-Extension-Identifier", "")
                if identifier not in life.extensions:
                    self._refuse(403, "Extension.UnknownExtensionIdentifier")
                    return
                event = life.next_event(identifier)
                if event is None:
                    self.close_connection = True
                else:
                    self._reply(200, event)
            case _:
                self._refuse(404, "NotFound")

    def do_POST(self) -> None:
        life = self._life
        body = self._body()
        match self.path.split("/")[1:]:
            case ["2018-06-01", "runtime", "invocation", request_id, "response" | "error" as kind]:
                if life.finish(request_id, kind == "error", body):
                    self._reply(202, {"status": "OK"})
                else:
                    self._refuse(400, "InvalidRequestID")
            case ["2018-06-01", "runtime", "init" | "restore" as phase, "error"]:
                reason = self.headers.get("Lambda-Runtime-Function-Error-Type", "")
                life.fail("before-snapshot" if reason.endswith("BeforeSnapshotError") else phase, json.loads(body))
                self._reply(202, {"status": "OK"})
            case ["2020-01-01", "extension", "register"]:
                try:
                    identifier = life.register(
                        self.headers.get("Lambda-Extension-Name", ""), json.loads(body).get("events", [])
                    )
                except Refused as refused:
                    self._refuse(403, str(refused))
                    return
                function = {"functionName": "function", "functionVersion": "$LATEST", "handler": life.handler}
                self._reply(200, function, {"Lambda-Extension-Identifier": identifier})
            case _:
                self._refuse(404, "NotFound")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _refuse(self, status: int, kind: str) -> None:
        self._reply(status, {"errorType": kind, "errorMessage": f"{self.command} {self.path} is refused: {kind}"})

    def _reply(self, status: int, body: bytes | dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
