"""
Lambda environments on this machine: the real runtime client (`awslambdaric`) against a small Runtime API.

What AWS does with an environment is done here to a process group: init, one invocation at a time, SIGSTOP in between,
a reset after a time-out, shutdown, and SnapStart's snapshot and restore. No Docker, no account, about 0.1 s to start one.
Not imitated: memory and CPU limits, a read-only file system (see `layers`), throttling, and the snapshot's copy of memory
(the one process that was frozen is the one that is restored).

Sources: Lambda developer guide, "Understanding the Lambda execution environment lifecycle", "Runtime API", "Extensions
API", "Lambda SnapStart runtime hooks".
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.processes import Closing, GuardedProcess, TemporaryFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

_SHUTDOWN_INTERNAL_S = 0.5  # with extensions inside the runtime's process only
_SHUTDOWN_EXTERNAL_S = 2.0  # with one that is a process of its own; of these the runtime gets:
_SHUTDOWN_RUNTIME_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """
    What one invocation gave.

    `error` is Lambda's error document (errorType, errorMessage, and for an exception stackTrace) and None on success.
    `duration_s` runs from handing over the event to the response. `init_s` is set if the environment was initialised
    within this invocation, as Lambda does after a time-out or a crash. `log` has the lines written meanwhile.
    """

    request_id: str
    payload: Any = None
    error: dict[str, Any] | None = None
    duration_s: float
    init_s: float | None = None
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """How an environment ended: its exit code (negative: by that signal), whether SIGTERM came first, and how long."""

    exit_code: int
    signalled: bool
    duration_s: float


class InitError(Exception):
    """
    The function could not be initialised, as when its module raises.

    `error` is Lambda's error document; `phase` is "init", "before-snapshot" or "restore"; `log` has the lines written.
    """

    def __init__(self, error: dict[str, Any], phase: str, log: tuple[str, ...]) -> None:
        self.error = error
        self.phase = phase
        self.log = log
        super().__init__(f"{error.get('errorType')}: {error.get('errorMessage')}")


class Environment(Closing):
    """
    One Lambda environment of one function. A context manager: entering initialises it, leaving shuts it down.

    Args:
        task: the function's folder, /var/task on AWS.
        handler: module and function, such as "app.handler".
        variables: environment variables of the function; AWS credentials only if they are among these.
        python_path: folders to import from besides those of the Python that runs the function.
        layers: folders as unpacked to /opt, whose `python` folder is imported from. Nothing is written to them or to
            the task: with layers, Python does not store the bytecode it compiles, as it cannot on AWS.
        extensions: programs to run beside the runtime, as from /opt/extensions.
        timeout_s: the function's time-out.
        init_timeout_s: what init, and restore, may take.
        snap_start: init up to the snapshot; `restore`, or the first `invoke`, goes on from there.
        python: the interpreter; it must have awslambdaric.
    Raises: InitError from `start` and `restore`; OSError and ValueError for what is not there. A failing function
        raises nothing: its `Invocation` has the error.
    Units: seconds. Threads: safe; invocations of one environment wait for each other. Forks: a child must not use it.
    """

    def __init__(
        self,
        task: Path | str,
        handler: str = "app.handler",
        *,
        variables: Mapping[str, str] | None = None,
        python_path: Sequence[Path | str] = (),
        layers: Sequence[Path | str] = (),
        extensions: Sequence[Path | str] = (),
        timeout_s: float = 15.0,
        init_timeout_s: float = 10.0,
        memory_mb: int = 256,
        function_name: str | None = None,
        region: str = "eu-west-1",
        snap_start: bool = False,
        python: Path | str = sys.executable,
    ) -> None:
        self.task = Path(task).resolve()
        self.handler = handler
        self.function_name = function_name or self.task.name
        self.timeout_s = timeout_s
        self.init_s = 0.0
        self.restore_s: float | None = None
        self._variables = dict(variables or {})
        self._python_path = [Path(folder).resolve() for folder in python_path]
        self._layers = [Path(folder).resolve() for folder in layers]
        self._extensions = [Path(program).resolve() for program in extensions]
        self._init_timeout_s = init_timeout_s
        self._memory_mb = memory_mb
        self._region = region
        self._snap_start = snap_start
        self._python = Path(python)
        self._one_at_a_time = threading.RLock()
        self._folder: Path | None = None
        self._temporary: TemporaryFolder | None = None
        self._api: _RuntimeApi | None = None
        self._life: _Life | None = None
        self._last_log: tuple[str, ...] = ()
        for path in (self.task, *self._python_path, *self._layers, *self._extensions):
            if not path.exists():
                raise FileNotFoundError(f"{path} of the environment for {self.function_name} does not exist")

    def __enter__(self) -> Self:
        return self.start()

    def __repr__(self) -> str:
        state = f"process {self._life.runtime.pid}" if self._life and self._life.runtime else "no process"
        return f"<Environment of {self.function_name}, {state}>"

    @property
    def pid(self) -> int:
        """The process id of the runtime; it changes when the environment is reset."""
        runtime = self._require_life().runtime
        assert runtime is not None
        return runtime.pid

    @property
    def log(self) -> tuple[str, ...]:
        """Every line that the function and its extensions wrote to standard output and error."""
        return self._lines(0)

    def start(self) -> Self:
        """Initialise: import the handler's module, run what stands outside the handler, and freeze."""
        with self._one_at_a_time:
            if self._life is not None:
                raise RuntimeError("the environment has been started already")
            if self._folder is None:
                self._temporary = TemporaryFolder("environment")
                self._folder = self._temporary.path
                self._api = _RuntimeApi()
            try:
                self._init()
            except BaseException:
                self.close()
                raise
            return self

    def restore(self) -> float:
        """Go on from the snapshot: run the after-restore hooks. Returns the seconds it took. Only with snap_start."""
        with self._one_at_a_time:
            life = self._require_life()
            if not life.at_snapshot:
                raise RuntimeError("there is no snapshot to restore: start with snap_start=True, and restore it once")
            mark = self._log_size()
            self.thaw()
            begun = time.perf_counter()
            with life.changed:
                life.at_snapshot = False
                life.restoring = True
                life.changed.notify_all()
            try:
                life.wait(lambda: life.idle or life.failure is not None, self._init_timeout_s)
            except _NotInTime:
                life.failure = _failure("Sandbox.Timedout", f"Restore took longer than {self._init_timeout_s:g} s")
            except _Ended as ended:
                life.failure = life.failure or _exit_error(ended.code)
            if life.failure is not None:
                error = InitError(life.failure, life.failed_phase or "restore", self._lines(mark))
                self._end_life("failure")
                raise error
            self.restore_s = time.perf_counter() - begun
            self.freeze()
            return self.restore_s

    def invoke(
        self,
        event: Any,
        *,
        client_context: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        trace_id: str | None = None,
    ) -> Invocation:
        """
        Thaw, run the handler with an event that can be written as JSON, freeze.

        A time-out or a crash is an error of the `Invocation`; the next one initialises the environment anew.
        """
        with self._one_at_a_time:
            if self._api is None:
                raise RuntimeError("the environment is not started, or it has been shut down")
            mark = self._log_size()
            work = _Work(
                request_id=request_id or str(uuid.uuid4()),
                event=json.dumps(event).encode(),
                client_context=client_context,
                trace_id=trace_id or _new_trace_id(),
                function_arn=f"arn:aws:lambda:{self._region}:000000000000:function:{self.function_name}",
            )
            init_s = None
            try:
                if self._life is None:
                    self._init()
                    init_s = self.init_s
                if self._require_life().at_snapshot:
                    self.restore()
            except InitError as error:
                return Invocation(
                    request_id=work.request_id, error=error.error, duration_s=0.0, init_s=init_s, log=error.log
                )
            self._run(self._require_life(), work)
            return Invocation(
                request_id=work.request_id,
                payload=work.payload,
                error=work.error,
                duration_s=work.finished_at - work.handed_at,
                init_s=init_s,
                log=self._lines(mark),
            )

    def freeze(self) -> None:
        """Stop every process of the environment, as Lambda does between invocations."""
        processes = self._require_life().processes
        for process in processes:
            process.signal(signal.SIGSTOP)
        for process in processes:
            _wait_for_state(process, "TZ", 1.0)

    def thaw(self) -> None:
        """Let the environment's processes run; `invoke` does it by itself."""
        for process in self._require_life().processes:
            process.signal(signal.SIGCONT)

    def shutdown(self, reason: str = "spindown") -> Shutdown | None:
        """
        End the environment as Lambda does: SIGKILL, or with an extension SIGTERM first and 0.3 or 0.5 s to end.

        Returns: how it ended; None if there was no process, as after a time-out.
        """
        with self._one_at_a_time:
            return self._end_life(reason) if self._life is not None else None

    def close(self) -> None:
        """Shut down and remove everything that is temporary; `log` can still be read. Nothing if done before."""
        with self._one_at_a_time:
            self.shutdown()
            if self._api is not None:
                self._api.close()
                self._api = None
            if self._temporary is not None:
                self._last_log = self.log
                self._temporary.remove()
                self._temporary = self._folder = None

    # Phases

    def _init(self) -> None:
        assert self._api is not None
        assert self._folder is not None
        mark = self._log_size()
        (self._folder / "tmp").mkdir(exist_ok=True)
        life = self._life = self._api.life = _Life(self.handler, {program.name for program in self._extensions})
        environ = self._environ()
        try:
            for program in self._extensions:  # they register before the runtime starts
                life.processes.append(self._launch([program], environ))
                life.wait(lambda: len(life.extensions) >= len(life.processes), self._init_timeout_s, life.processes[-1])
            life.runtime = self._launch([self._python, "-m", "awslambdaric", self.handler], environ)
            life.processes.append(life.runtime)
            begun = life.runtime.started_at
            ready: Callable[[], bool] = lambda: life.failure is not None or life.at_snapshot or life.idle  # noqa: E731
            life.wait(ready, self._init_timeout_s)
            life.wait(lambda: life.failure is not None or life.extensions_idle, self._init_timeout_s)
        except _NotInTime:
            life.failure = _failure("Sandbox.Timedout", f"Init took longer than {self._init_timeout_s:g} s")
        except _Ended as ended:
            life.failure = life.failure or _exit_error(ended.code)
        except BaseException:
            self._end_life("failure")
            raise
        if life.failure is not None:
            if life.runtime is not None:
                life.runtime.wait(1.0)  # it writes its log and ends by itself
            error = InitError(life.failure, life.failed_phase or "init", self._lines(mark))
            self._end_life("failure")
            raise error
        self.init_s = time.time() - begun
        self.freeze()

    def _run(self, life: _Life, work: _Work) -> None:
        self.thaw()
        work.deadline = time.time() + self.timeout_s
        life.begin(work)
        reset = ""
        try:
            life.wait(lambda: work.finished_at > 0, self.timeout_s)
            # The invocation is over when the runtime and the extensions ask for the next one.
            life.wait(lambda: life.idle and life.extensions_idle, max(0.0, work.deadline - time.time()))
        except _NotInTime:
            reset = "timeout"
            text = f"Error: Task timed out after {self.timeout_s:.2f} seconds"
            work.fail(_failure("Sandbox.Timedout", f"RequestId: {work.request_id} {text}"))
        except _Ended as ended:
            reset = "failure"
            work.fail(_exit_error(ended.code, work.request_id))
        if reset:
            self._end_life(reset)
        else:
            self.freeze()

    def _end_life(self, reason: str) -> Shutdown:
        life = self._require_life()
        begun = time.perf_counter()
        self.thaw()
        internal = any(not extension.external for extension in life.extensions.values())
        external = any(extension.external for extension in life.extensions.values())
        runtime, beside = life.runtime, [process for process in life.processes if process is not life.runtime]
        signalled, code = False, 0
        if runtime is not None:
            signalled = (internal or external) and runtime.poll() is None
            if signalled:
                _let_settle(runtime, 0.3)
                runtime.signal(signal.SIGTERM)
                runtime.wait(_SHUTDOWN_RUNTIME_S if external else _SHUTDOWN_INTERNAL_S)
            code = runtime.stop()
        if beside:
            life.announce({"eventType": "SHUTDOWN", "shutdownReason": reason}, time.time() + _SHUTDOWN_EXTERNAL_S)
            for process in beside:
                process.wait(max(0.0, begun + _SHUTDOWN_EXTERNAL_S - time.perf_counter()))
                process.stop()
        life.end()
        self._life = None
        assert self._folder is not None
        if reason != "spindown":
            shutil.rmtree(self._folder / "tmp", ignore_errors=True)  # a reset environment has an empty /tmp
        return Shutdown(exit_code=code, signalled=signalled, duration_s=time.perf_counter() - begun)

    # What the processes are given

    def _launch(self, command: list[str | Path], environ: dict[str, str]) -> GuardedProcess:
        assert self._folder is not None
        return GuardedProcess(command, output=self._folder / "log", environment=environ, cwd=self.task)

    def _environ(self) -> dict[str, str]:
        assert self._api is not None
        assert self._folder is not None
        version = _python_version(str(self._python))
        path = [self.task]
        for layer in self._layers:
            path += [layer / "python" / "lib" / f"python{version}" / "site-packages", layer / "python"]
        temporary = str(self._folder / "tmp")
        return {
            "AWS_DEFAULT_REGION": self._region,
            # The client chooses by this whether its main thread is free to handle signals, as on AWS.
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{version}",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self._memory_mb),
            "AWS_LAMBDA_FUNCTION_NAME": self.function_name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start" if self._snap_start else "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{self.function_name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": f"2026/01/01/[$LATEST]{secrets.token_hex(16)}",
            "AWS_LAMBDA_RUNTIME_API": self._api.address,
            "AWS_REGION": self._region,
            "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
            "AWS_XRAY_DAEMON_ADDRESS": "127.0.0.1:2000",
            # Not on AWS: the developer's own credentials and instance role stay out of the function.
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": temporary,
            "LAMBDA_TASK_ROOT": str(self.task),
            "LANG": "C.UTF-8",
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": os.pathsep.join(str(folder) for folder in (*path, *self._python_path)),
            "TMPDIR": temporary,
            "TZ": ":UTC",
            "_HANDLER": self.handler,
            **({"PYTHONDONTWRITEBYTECODE": "1"} if self._layers else {}),
            **self._variables,
        }

    def _require_life(self) -> _Life:
        if self._life is None:
            raise RuntimeError("the environment has no process: start it, or invoke it after a reset")
        return self._life

    def _log_size(self) -> int:
        log = self._folder and self._folder / "log"
        return log.stat().st_size if log and log.exists() else 0

    def _lines(self, mark: int) -> tuple[str, ...]:
        log = self._folder and self._folder / "log"
        if log is None or not log.exists():
            return self._last_log
        with log.open("rb") as stream:
            stream.seek(mark)
            return tuple(stream.read().decode(errors="replace").splitlines())


# One life of the processes, from init to shutdown; a reset begins another


class _NotInTime(Exception):
    """The state that was waited for did not come; never leaves this module."""


class _Ended(Exception):
    """The process ended while something was expected of it; never leaves this module."""

    def __init__(self, code: int) -> None:
        self.code = code


@dataclass(slots=True)
class _Work:
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


class _Life:
    """What the Runtime API and the environment tell each other, under one condition."""

    def __init__(self, handler: str, external: set[str]) -> None:
        self.handler = handler
        self.changed = threading.Condition()
        self.processes: list[GuardedProcess] = []
        self.runtime: GuardedProcess | None = None
        self.extensions: dict[str, _Extension] = {}
        self.idle = False  # the runtime waits for an invocation
        self.at_snapshot = False
        self.restoring = False
        self.failure: dict[str, Any] | None = None
        self.failed_phase: str | None = None
        self.ended = False
        self._external = external
        self._work: _Work | None = None
        self._handed = False

    @property
    def extensions_idle(self) -> bool:
        """Whether each extension that hears of invocations, or is a process of its own, has done its part."""
        return all(e.waiting for e in self.extensions.values() if e.external or "INVOKE" in e.events)

    # For the environment

    def wait(self, reached: Callable[[], bool], timeout_s: float, process: GuardedProcess | None = None) -> None:
        """Wait for a state; raise _Ended if the process ends before, _NotInTime if it is not reached in time."""
        deadline = time.monotonic() + timeout_s
        process = process or self.runtime
        assert process is not None
        with self.changed:
            while not reached():
                # The end of the process is asked for every 20 ms; everything else notifies.
                code = process.poll()
                if code is not None:
                    raise _Ended(code)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise _NotInTime
                self.changed.wait(min(left, 0.02))

    def begin(self, work: _Work) -> None:
        with self.changed:
            self._work, self._handed = work, False
            self.idle = False
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

    def announce(self, event: dict[str, Any], deadline: float) -> None:
        """Hand an event to every extension that registered for its kind."""
        with self.changed:
            for extension in self.extensions.values():
                if event["eventType"] in extension.events:
                    extension.pending.append({**event, "deadlineMs": int(deadline * 1000)})
                    extension.waiting = False
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    # For the Runtime API's threads

    def next_work(self) -> _Work | None:
        with self.changed:
            self.idle = True
            self.restoring = False
            self.changed.notify_all()
            while not self.ended:
                if self._work is not None and not self._handed:
                    self._handed = True
                    self._work.handed_at = time.perf_counter()
                    return self._work
                self.changed.wait()
            return None

    def finish(self, request_id: str, error: bool, body: bytes) -> bool:
        with self.changed:
            work = self._work
            if work is None or work.request_id != request_id or work.finished_at:
                return False
            document = json.loads(body or b"null")
            if error:
                work.error = document
            else:
                work.payload = document
            work.finished_at = time.perf_counter()
            self.changed.notify_all()
            return True

    def wait_for_restore(self) -> bool:
        with self.changed:
            self.at_snapshot = True
            self.changed.notify_all()
            while not (self.restoring or self.ended):
                self.changed.wait()
            return self.restoring

    def fail(self, phase: str, error: dict[str, Any]) -> None:
        with self.changed:
            self.failure, self.failed_phase = error, phase
            self.changed.notify_all()

    def register(self, name: str, events: list[str]) -> str | None:
        """Return the extension's id; None if it is internal and wants the event that only external ones get."""
        with self.changed:
            external = name in self._external
            if not external and "SHUTDOWN" in events:
                return None
            identifier = str(uuid.uuid4())
            self.extensions[identifier] = _Extension(name, events, external)
            self.changed.notify_all()
            return identifier

    def next_event(self, identifier: str) -> dict[str, Any] | None:
        with self.changed:
            extension = self.extensions[identifier]
            extension.waiting = not extension.pending
            self.changed.notify_all()
            while not self.ended:
                if extension.pending:
                    return extension.pending.pop(0)
                self.changed.wait()
            return None


# The Runtime API and the Extensions API, over HTTP


class _RuntimeApi:
    """A listening socket and a thread a connection; `life` is whom the requests are about."""

    def __init__(self) -> None:
        self.life: _Life | None = None
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

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  the base class's name
        pass

    def handle_expect_100(self) -> bool:
        accepted = super().handle_expect_100()
        self.wfile.flush()
        return accepted

    def do_GET(self) -> None:
        life = self.server.life  # type: ignore[attr-defined]
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
                if life.wait_for_restore():
                    self._reply(200, {})
                else:
                    self.close_connection = True
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
        life = self.server.life  # type: ignore[attr-defined]
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
                identifier = life.register(
                    self.headers.get("Lambda-Extension-Name", ""), json.loads(body).get("events", [])
                )
                if identifier is None:
                    self._refuse(403, "Extension.InvalidEventType")
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


def _wait_for_state(process: GuardedProcess, states: str, timeout_s: float) -> None:
    """
    Wait until the process is in one of these states, or ended, or the time is over; without /proc, do not wait.

    A signal is delivered some time after it is sent.
    """
    deadline = time.monotonic() + timeout_s
    while Path("/proc/self/stat").exists() and time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            # The state follows the program's name, which stands in brackets and may hold anything.
            if Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in states:
                return
        time.sleep(0.0002)


def _let_settle(process: GuardedProcess, timeout_s: float) -> None:
    """
    Wait until the main thread of a process that was thawed sleeps, as it has done for minutes when Lambda shuts it down.

    Before that, the kernel may give a signal to another thread, and Python's handler would wait for the main thread to
    wake; or the main thread is just about to wait for a lock, too late to notice the signal. A busy one is not waited for.
    """
    status, seen = Path(f"/proc/{process.pid}/status"), ""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            now = status.read_text()
            # The same state and the same count of context switches as 10 ms before: it did not run at all.
            if "State:\tS" in now and now == seen:
                return
            seen = now
        time.sleep(0.01)


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"errorType": kind, "errorMessage": message}


def _exit_error(code: int, request_id: str | None = None) -> dict[str, Any]:
    how = f"signal: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return _failure(
        "Runtime.ExitError",
        (f"RequestId: {request_id} Error: " if request_id else "") + f"Runtime exited with error: {how}",
    )


def _new_trace_id() -> str:
    """Return an X-Ray header whose trace is not sampled, so that nothing is sent."""
    return f"Root=1-{int(time.time()):08x}-{secrets.token_hex(12)};Parent={secrets.token_hex(8)};Sampled=0"


@functools.cache
def _python_version(python: str) -> str:
    """Return "3.13" for an interpreter."""
    if python == sys.executable:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
