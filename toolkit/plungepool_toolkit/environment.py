"""
Lambda environments on this machine: the real runtime client (`awslambdaric`) against a small Runtime API.

What AWS does with an environment is done here to a process group: init, one invocation at a time, SIGSTOP in between, a
reset after a time-out, shutdown, SnapStart's snapshot, of which any number of environments are restored, and the
processes of a Managed Instance. No Docker, no account, about 0.1 s to start one. Not imitated: memory and CPU limits, a
read-only file system (see `layers`), throttling.

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
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.clones import Image
from plungepool_toolkit.processes import Closing, GuardedProcess, TemporaryFolder
from plungepool_toolkit.runtime_api import Ended, Life, NotInTime, RuntimeApi, Work

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from plungepool_toolkit.clones import Clone
    from plungepool_toolkit.runtime_api import Process

# Instead of the client itself, where its process may have to be copied.
_COPYABLE = Path(__file__).with_name("clones_inside.py")
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

    Units: every *_s is in seconds of wall clock.
    """

    request_id: str
    payload: Any = None
    error: dict[str, Any] | None = None
    duration_s: float
    init_s: float | None = None
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """
    How an environment ended: its exit code (negative: by that signal), whether SIGTERM came first, after how many
    seconds.
    """

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
        snap_start: init up to the snapshot; `restore`, or the first `invoke`, goes on from there, and `snapshot` makes
            any number of environments of it.
        max_concurrency: on a Lambda Managed Instance: the runtime forks so many processes, each imports the handler and
            has one invocation at a time, and nothing is frozen. An invocation that is out of time ends no process.
        python: the interpreter; it must have awslambdaric.
    Attributes: `init_s` and `restore_s`, what the last init and the restore took; `timeout_s` may be assigned.
    Raises: InitError from `start` and `restore`; OSError and ValueError for what is not there. A failing function
        raises nothing: its `Invocation` has the error.
    Units: seconds. Threads: safe; invocations of one environment wait for each other, beyond `max_concurrency`.
        Forks: a child must not use it.
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
        max_concurrency: int | None = None,
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
        self._max_concurrency = max_concurrency
        self._turns = threading.Semaphore(max_concurrency or 1)
        self._python = Path(python)
        self._one_at_a_time = threading.RLock()
        self._folder: Path | None = None
        self._temporary: TemporaryFolder | None = None
        self._api: RuntimeApi | None = None
        self._life: Life | None = None
        self._log = _Log()
        self._snapshots: list[Snapshot] = []  # taken of this environment
        self._origin: Snapshot | None = None  # whose memory this environment begins with
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
        """
        The process id of the runtime; it changes when the environment is reset.

        Raises: RuntimeError if there is no process, as before `start` and after a reset.
        """
        runtime = self._require_life().runtime
        assert runtime is not None
        return runtime.pid

    @property
    def log(self) -> tuple[str, ...]:
        """Every line that the function and its extensions wrote to standard output and error."""
        return self._log.lines()

    def start(self) -> Self:
        """
        Initialise: import the handler's module, run what stands outside the handler, and freeze.

        Raises: InitError; RuntimeError if it is started already. Blocks: for `init_timeout_s` at most.
        """
        with self._one_at_a_time:
            if self._life is not None:
                raise RuntimeError("the environment has been started already")
            if self._folder is None:
                self._temporary = TemporaryFolder("environment")
                self._folder = self._temporary.path
                self._log.path = self._folder / "log"
                self._api = RuntimeApi()
            try:
                self._init()
            except BaseException:
                self.close()
                raise
            return self

    def snapshot(self) -> Snapshot:
        """
        Keep what init left in memory and in /tmp, before any restore; this environment goes on as if nothing had been.

        Returns: the snapshot, which is closed with this environment.
        Raises: RuntimeError where it is not at its snapshot, or has extensions: programs, which cannot be copied.
            Blocks: for `init_timeout_s` at most.
        """
        with self._one_at_a_time:
            self._snapshots.append(Snapshot(self))
            return self._snapshots[-1]

    def restore(self) -> float:
        """
        Go on from the snapshot: run the after-restore hooks. Only with `snap_start`, and once.

        Returns: the seconds it took.
        Raises: InitError if a hook fails; RuntimeError if there is no snapshot. Blocks: for `init_timeout_s` at most.
        Source: Lambda developer guide, "Lambda SnapStart runtime hooks for Python".
        """
        with self._one_at_a_time:
            life = self._require_life()
            if not life.at_snapshot:
                raise RuntimeError("there is no snapshot to restore: start with snap_start=True, and restore it once")
            mark, begun = self._log.size(), time.perf_counter()
            self.thaw()
            life.begin_restore()
            with _judged(life, "Restore", self._init_timeout_s):
                life.wait(lambda: life.idle or life.failure is not None, self._init_timeout_s)
            self._raise_failure(life, "restore", mark)
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

        Args: client_context: as a mobile SDK sends it; request_id, trace_id: made up unless they are given.
        Returns: what came of it, a failure of the function included.
        Raises: RuntimeError before `start` and after `close`; TypeError for an event that JSON cannot express.
            Blocks: for `timeout_s` at most, and for `init_timeout_s` where it has to be initialised or restored first.
        """
        with self._turns, contextlib.ExitStack() as alone:
            alone.enter_context(self._one_at_a_time)
            if self._api is None:
                raise RuntimeError("the environment is not started, or it has been shut down")
            mark = self._log.size()
            work = Work(
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
            life = self._require_life()
            if self._max_concurrency:
                alone.close()
            self._run(life, work)
            return Invocation(
                request_id=work.request_id,
                payload=work.payload,
                error=work.error,
                duration_s=work.finished_at - work.handed_at,
                init_s=init_s,
                log=self._log.lines(mark),
            )

    def freeze(self) -> None:
        """
        Stop every process of the environment, as Lambda does between invocations; `invoke` does it by itself.

        On a Managed Instance nothing is stopped. Raises: RuntimeError if there is no process.
        """
        processes = self._require_life().processes
        _stop_running([] if self._max_concurrency else processes)

    def thaw(self) -> None:
        """
        Let the environment's processes run; `invoke` does it by itself.

        Raises: RuntimeError if there is no process.
        """
        for process in self._require_life().processes:
            process.signal(signal.SIGCONT)

    def shutdown(self, reason: str = "spindown") -> Shutdown | None:
        """
        End the environment as Lambda does: SIGKILL, or with an extension SIGTERM first and 0.3 or 0.5 s to end.

        Args: reason: what external extensions are told: spindown, timeout or failure.
        Returns: how it ended; None if there was no process, as after a time-out.
        Source: Lambda developer guide, "Understanding the Lambda execution environment lifecycle", "Shutdown phase".
        """
        with self._one_at_a_time:
            return self._end_life(reason) if self._life is not None else None

    def close(self) -> None:
        """Shut down and remove everything that is temporary; `log` can still be read. Nothing if done before."""
        with self._one_at_a_time:
            while self._snapshots:
                self._snapshots.pop().close()
            self.shutdown()
            if self._api is not None:
                self._api.close()
                self._api = None
            if self._temporary is not None:
                self._log.keep()
                self._temporary.remove()
                self._temporary = self._folder = None

    def _init(self) -> None:
        assert self._api is not None
        assert self._folder is not None
        mark = self._log.size()
        (self._folder / "tmp").mkdir(exist_ok=True)
        life = self._life = self._api.life = Life(self.handler, {program.name for program in self._extensions})
        environ = _variables_of(self, self._api.address, self._folder / "tmp")
        try:
            with _judged(life, "Init", self._init_timeout_s):
                for program in self._extensions:  # they register before the runtime starts
                    begun = self._launch([program], environ)
                    life.processes.append(begun)
                    life.wait(lambda: len(life.extensions) >= len(life.processes), self._init_timeout_s, begun)
                life.runtime = self._start_runtime(life, environ)
                life.processes.append(life.runtime)
                life.wait(lambda: life.initialised, self._init_timeout_s)
                life.wait(lambda: life.failure is not None or life.extensions_ready, self._init_timeout_s)
        except BaseException:
            self._end_life("failure")
            raise
        if life.failure is not None and life.runtime is not None:
            life.runtime.wait(1.0)  # it writes its log and ends by itself
        self._raise_failure(life, "init", mark)
        assert life.runtime is not None
        self.init_s = time.time() - life.runtime.started_at
        self.freeze()

    def _raise_failure(self, life: Life, phase: str, mark: int) -> None:
        if life.failure is not None:
            error = InitError(life.failure, life.failed_phase or phase, self._log.lines(mark))
            self._end_life("failure")
            raise error

    def _run(self, life: Life, work: Work) -> None:
        if not self._max_concurrency:
            self.thaw()
        reset = _perform(life, work, self.timeout_s, alone=not self._max_concurrency)
        if not reset:
            self.freeze()
            return
        with self._one_at_a_time:
            if self._life is life:  # the end of its process is the end of every invocation that ran there
                self._end_life(reset)

    def _end_life(self, reason: str) -> Shutdown:
        life = self._require_life()
        self.thaw()
        shutdown = _shut_down(life, reason)
        self._life = None
        if reason != "spindown" and self._folder is not None:
            shutil.rmtree(self._folder / "tmp", ignore_errors=True)  # a reset environment has an empty /tmp
        return shutdown

    def _start_runtime(self, life: Life, environ: dict[str, str]) -> Process:
        if self._origin is not None:
            return self._origin._clone(life, environ)
        client: list[str | Path] = [_COPYABLE] if self._snap_start else ["-m", "awslambdaric"]
        return self._launch([self._python, *client, self.handler], environ)

    def _launch(self, command: list[str | Path], environ: dict[str, str]) -> GuardedProcess:
        assert self._folder is not None
        # Of a Managed Instance's processes the first one does nothing but wait for the others.
        linger_s = _SHUTDOWN_INTERNAL_S if self._max_concurrency else 0.0
        log = self._folder / "log"
        return GuardedProcess(command, output=log, environment=environ, cwd=self.task, linger_s=linger_s)

    def _require_life(self) -> Life:
        if self._life is None:
            raise RuntimeError("the environment has no process: start it, or invoke it after a reset")
        return self._life


class Snapshot(Closing):
    """
    What SnapStart keeps of an initialised environment; `Environment.snapshot` takes it.

    Environments that are restored from it have the same memory, and all the rest of their own: process, /tmp, log and
    Runtime API; they are invoked, frozen, reset and shut down as any other. As on AWS each sees the same variables, and
    descriptors that were open at the snapshot are open in all of them. Not as on AWS: threads that init started do not
    go on, and the process ids differ. A lock that such a thread held at the snapshot stays locked.

    Raises: RuntimeError for an environment that `Environment.snapshot` refuses.
    Threads: safe. Forks: a child must not use it.
    """

    def __init__(self, environment: Environment) -> None:
        """Take it of an environment; as `Environment.snapshot`, which is the way to one."""
        life, self._environment = environment._require_life(), environment
        if not life.at_snapshot:
            raise RuntimeError("there is no snapshot to keep: start with snap_start=True, and do not restore it first")
        if environment._extensions or environment._origin is not None:
            raise RuntimeError(
                "an environment with extensions, or one restored from a snapshot, cannot be kept as a snapshot"
            )
        assert environment._folder is not None
        self._temporary = TemporaryFolder("snapshot")
        self._restored: list[Environment] = []
        self._closed = False
        self._image = Image()
        try:
            environment.thaw()
            life.begin_copy(self._image.address)
            life.wait(lambda: life.at_snapshot, environment._init_timeout_s)
            self._image.receive(environment._init_timeout_s)
            environment.freeze()
            shutil.copytree(environment._folder / "tmp", self._temporary.path / "tmp")
        except (NotInTime, Ended, TimeoutError) as error:
            self.close()
            how = f"ended: {_exit_error(error.code)['errorMessage']}" if isinstance(error, Ended) else "does not answer"
            raise RuntimeError(f"the snapshot cannot be taken, because the environment's process {how}") from error
        except BaseException:
            self.close()
            raise
        self._inside = [extension.name for extension in life.extensions.values()]

    def restore(self) -> Environment:
        """
        Return a new environment that goes on from here: its after-restore hooks have run, and it is frozen.

        It is shut down with the snapshot, if not before. After a time-out or a crash it is restored anew.
        Raises: InitError if a hook fails; OSError if there is no memory for it; RuntimeError after `close`. Blocks: for
            `init_timeout_s` twice at most.
        """
        if self._closed:
            raise RuntimeError("the snapshot is closed")
        of = self._environment
        environment = Environment(
            of.task,
            of.handler,
            timeout_s=of.timeout_s,
            init_timeout_s=of._init_timeout_s,
            memory_mb=of._memory_mb,
            function_name=of.function_name,
            region=of._region,
            snap_start=True,
            python=of._python,
        )
        environment._origin = self
        self._restored.append(environment)
        try:
            environment.start().restore()
        except BaseException:
            environment.close()
            raise
        return environment

    def clone(self, log: Path, variables: Mapping[str, str]) -> Clone:
        """
        Return a process that goes on from here, for a Runtime API of the caller's own.

        Args: log: where its output goes, appended. variables: what differs from this one's, AWS_LAMBDA_RUNTIME_API
            among it.
        Raises: OSError if there is no memory for it.
        """
        return self._image.clone(log, variables)

    @property
    def expects_sigterm(self) -> bool:
        """Whether an extension was registered inside the process, so that Lambda would send SIGTERM at the end."""
        return bool(self._inside)

    def close(self) -> None:
        """Shut down the environments that were restored, and let go of the memory. Nothing if done before."""
        self._closed = True
        while self._restored:
            self._restored.pop().close()
        self._image.close()
        self._temporary.remove()

    def _clone(self, life: Life, environ: Mapping[str, str]) -> Process:
        """Return the process of an environment with these variables, on its way to the snapshot."""
        life.adopt(self._inside)
        own = {name: environ[name] for name in ("AWS_LAMBDA_RUNTIME_API", "HOME", "TMPDIR")}
        temporary = Path(environ["TMPDIR"])
        shutil.copytree(self._temporary.path / "tmp", temporary, dirs_exist_ok=True)
        return self._image.clone(temporary.with_name("log"), own)


def _variables_of(environment: Environment, api: str, temporary: Path) -> dict[str, str]:
    """Return every variable of an environment's processes: Lambda's own, and the function's, which come last."""
    version = _python_version(str(environment._python))
    path = [environment.task]
    for layer in environment._layers:
        path += [layer / "python" / "lib" / f"python{version}" / "site-packages", layer / "python"]
    return {
        "AWS_DEFAULT_REGION": environment._region,
        # The client chooses by this whether its main thread is free to handle signals, as on AWS.
        "AWS_EXECUTION_ENV": f"AWS_Lambda_python{version}",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(environment._memory_mb),
        "AWS_LAMBDA_FUNCTION_NAME": environment.function_name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": _initialization_type(environment),
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{environment.function_name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": f"2026/01/01/[$LATEST]{secrets.token_hex(16)}",
        "AWS_LAMBDA_RUNTIME_API": api,
        "AWS_REGION": environment._region,
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
        "AWS_XRAY_DAEMON_ADDRESS": "127.0.0.1:2000",
        # Not on AWS: the developer's own credentials and instance role stay out of the function.
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(temporary),
        "LAMBDA_TASK_ROOT": str(environment.task),
        "LANG": "C.UTF-8",
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": os.pathsep.join(str(folder) for folder in (*path, *environment._python_path)),
        "TMPDIR": str(temporary),
        "TZ": ":UTC",
        "_HANDLER": environment.handler,
        **({"PYTHONDONTWRITEBYTECODE": "1"} if environment._layers else {}),
        **({"AWS_LAMBDA_MAX_CONCURRENCY": str(concurrency)} if (concurrency := environment._max_concurrency) else {}),
        **environment._variables,
    }


def _initialization_type(environment: Environment) -> str:
    if environment._max_concurrency:
        return "lambda-managed-instances"
    return "snap-start" if environment._snap_start else "on-demand"


class _Log:
    """What the processes of an environment wrote; it can still be read when its file is gone."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._kept: tuple[str, ...] = ()

    def size(self) -> int:
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def lines(self, mark: int = 0) -> tuple[str, ...]:
        """Return what was written since the file had the size `mark`."""
        if self.path is None or not self.path.exists():
            return self._kept
        with self.path.open("rb") as stream:
            stream.seek(mark)
            return tuple(stream.read().decode(errors="replace").splitlines())

    def keep(self) -> None:
        """Read it to its end: the file is about to be removed."""
        self._kept = self.lines()


@contextlib.contextmanager
def _judged(life: Life, phase: str, timeout_s: float) -> Iterator[None]:
    """Take it for the environment's failure where the phase is not over in time, or its process ends before."""
    try:
        yield
    except NotInTime:
        life.failure = _failure("Sandbox.Timedout", f"{phase} took longer than {timeout_s:g} s")
    except Ended as ended:
        life.failure = life.failure or _exit_error(ended.code)


def _perform(life: Life, work: Work, timeout_s: float, *, alone: bool) -> str:
    """
    Have the runtime, which is not frozen, do its work; return why the environment has to be reset, or nothing.

    Where it is not alone, on a Managed Instance, others have work there, and it ends with its answer or its time.
    """
    work.deadline = time.time() + timeout_s
    life.begin(work)
    try:
        life.wait(lambda: work.finished_at > 0, timeout_s)
        # The invocation is over when the runtime and the extensions ask for the next one.
        life.wait(lambda: not alone or (life.idle and life.extensions_idle), max(0.0, work.deadline - time.time()))
    except NotInTime:
        text = f"Error: Task timed out after {timeout_s:.2f} seconds"
        work.fail(_failure("Sandbox.Timedout", f"RequestId: {work.request_id} {text}"))
        life.withdraw(work)
        return "timeout" if alone else ""
    except Ended as ended:
        work.fail(_exit_error(ended.code, work.request_id))
        return "failure"
    return ""


def _stop_running(processes: Sequence[Process]) -> None:
    for process in processes:
        process.signal(signal.SIGSTOP)
    for process in processes:
        _wait_for_state(process, "TZ", 1.0)


def _shut_down(life: Life, reason: str) -> Shutdown:
    """End the processes, which are not frozen: the runtime first, then the extensions beside it."""
    begun = time.perf_counter()
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
    return Shutdown(exit_code=code, signalled=signalled, duration_s=time.perf_counter() - begun)


def _wait_for_state(process: Process, states: str, timeout_s: float) -> None:
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


def _let_settle(process: Process, timeout_s: float) -> None:
    """
    Wait until the main thread of a process that was thawed sleeps, as it has done for minutes when Lambda shuts it
    down.

    Before that, the kernel may give a signal to another thread, and Python's handler would wait for the main thread to
    wake; or the main thread is just about to wait for a lock, too late to notice the signal. A busy one is not waited
    for.
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
