"""
A fleet of environments of one function, copied from one that was initialised: real processes with the real runtime
client, frozen between invocations, reaped when they are idle for long, killed when they are out of time.

One that is initialised once costs the machine what it changes, a few MB; one watchdog, the keeper of the copies, ends
all of them when the toolkit ends.

Source: Lambda developer guide, "Understanding the Lambda execution environment lifecycle".
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from plungepool_toolkit.storm.service import Seat, Service, Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from plungepool_toolkit.environment import Snapshot

_ACCOUNTS = 1000
_SHUTDOWN_S = 0.5  # with an extension inside the runtime's process
_BEGINS_WITHIN_S = 30.0
# Beyond the deadline, to hear why: an environment of Lambda's has a CPU of its own, these wait for theirs.
_GRACE_S = 2.0


class FleetError(RuntimeError):
    """The environments do not come up; the text says why."""


class Process(Protocol):
    """A process that serves a seat of the Runtime API."""

    def signal(self, number: int) -> None:
        """Send a signal to all of it; one that has ended is no error."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code, or None if it still runs after `timeout` seconds."""


class Source(Protocol):
    """Where a fleet has its environments from."""

    #: Whether Lambda would send SIGTERM before SIGKILL.
    expects_sigterm: bool

    def begin(self, address: str) -> Process:
        """Start the process of one environment, which comes to this Runtime API. Blocks; raises OSError."""


class Copies:
    """Environments that are copies of one that was initialised."""

    def __init__(self, snapshot: Snapshot, log: Path) -> None:
        self._snapshot, self._log = snapshot, log
        self.expects_sigterm = snapshot.expects_sigterm

    def begin(self, address: str) -> Process:
        """Start the process of one environment. Raises: OSError."""
        return self._snapshot.clone(self._log, {"AWS_LAMBDA_RUNTIME_API": address})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an invocation; `failure` is its code."""

    latency_s: float
    failure: str | None


@dataclass(slots=True)
class _One:
    """An environment of the fleet."""

    seat: Seat
    process: Process | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    idle_since: float = 0.0
    invoked: bool = False
    gone: bool = False

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.signal(number)


class Fleet:
    """
    So many environments at most; an async context manager, which ends them.

    Args: reuse: which of the idle environments is next: the one that was used "last" or "first". freeze: whether an
        idle one is stopped. reap_after_s: ends those that are idle for so long; None: never.
    Raises: FleetError. Units: seconds.
    """

    def __init__(
        self,
        source: Source,
        at_most: int,
        *,
        deadline_s: float,
        freeze: bool = True,
        reap_after_s: float | None = None,
        reuse: str = "last",
    ) -> None:
        self._source, self._at_most, self._deadline_s = source, at_most, deadline_s
        self._freeze, self._reap_after_s, self._reuse = freeze, reap_after_s, reuse
        self._service = Service()
        self._idle: deque[_One] = deque()
        self._all: list[_One] = []
        self._numbers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        await self._service.start()
        if self._reap_after_s is not None:
            self._follow(self._reap(self._reap_after_s))
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self._all:
            one.signal(signal.SIGKILL)
            one.seat.end("Runtime.ExitError")
        await self._service.close()

    async def grow(self, number: int, said: Callable[[int], None] = lambda _: None) -> None:
        """Have so many environments that wait, initialised and frozen; `said` is told how many there are."""
        while len(self._idle) < number:
            some = [await self._begin() for _ in range(min(25, number - len(self._idle)))]
            for one in some:
                await self._until_ready(one)
            said(len(self._idle))

    async def invoke(self, service_s: float, outside_s: float = 0.0, *, fresh: bool = False) -> Outcome:
        """
        Invoke an idle environment, or else a new one; `fresh`: one that has not been invoked.

        Args: service_s, outside_s: the handler's own time within its transaction, and after it.
        Returns: what came of it. Where there is none and can be no other: TooManyRequestsException, as Lambda says.
        """
        begun = time.perf_counter()
        one = self._choose(fresh)
        if one is None:
            if len(self._all) >= self._at_most:
                return Outcome(time.perf_counter() - begun, "TooManyRequestsException")
            one = await self._begin()
            await self._until_ready(one)
            self._idle.remove(one)
        self._numbers += 1
        event = {"account": self._numbers % _ACCOUNTS, "service_s": service_s, "outside_s": outside_s}
        work = Work(f"storm-{self._numbers}", event, self._deadline_s)
        one.invoked = True
        one.ready.clear()
        if self._freeze:
            one.signal(signal.SIGCONT)
        one.seat.begin(work)
        try:
            failure = await asyncio.wait_for(asyncio.shield(work.done), self._deadline_s + _GRACE_S)
        except TimeoutError:
            failure = "Sandbox.Timedout"
        latency_s = time.perf_counter() - begun
        if failure is None and latency_s > self._deadline_s:
            failure = "Sandbox.Timedout"
        if failure in ("Sandbox.Timedout", "Runtime.ExitError"):
            self._discard(one, failure)
        return Outcome(latency_s, failure)

    def _choose(self, fresh: bool) -> _One | None:
        if fresh:
            one = next((one for one in self._idle if not one.invoked), None)
            if one is not None:
                self._idle.remove(one)
            return one
        if not self._idle:
            return None
        return self._idle.pop() if self._reuse == "last" else self._idle.popleft()

    async def _begin(self) -> _One:
        number = len(self._service.seats)
        one = _One(Seat(lambda: self._has_become_idle(one)))
        self._service.seats[number] = one.seat
        address = f"{self._service.address}/{number}"
        try:
            one.process = await asyncio.to_thread(self._source.begin, address)
        except OSError as error:
            raise FleetError(f"environment {number + 1} cannot be started: {error}") from error
        if one.ready.is_set():  # it was faster than the news of it
            self._pause(one)
        self._all.append(one)
        self.counts["begun"] += 1
        return one

    async def _until_ready(self, one: _One) -> None:
        try:
            await asyncio.wait_for(one.ready.wait(), _BEGINS_WITHIN_S)
        except TimeoutError:
            raise FleetError("an environment did not ask for its first invocation") from None

    def _has_become_idle(self, one: _One) -> None:
        if one.gone:
            return
        self._pause(one)
        one.idle_since = time.monotonic()
        self._idle.append(one)
        one.ready.set()

    def _pause(self, one: _One) -> None:
        if self._freeze:
            one.signal(signal.SIGSTOP)

    def _discard(self, one: _One, code: str) -> None:
        """Kill an environment that is out of time or has crashed, as Lambda resets it."""
        one.gone = True
        one.signal(signal.SIGKILL)
        one.seat.end(code)
        with contextlib.suppress(ValueError):
            self._all.remove(one)
        self.counts["reset"] += 1

    async def _reap(self, after_s: float) -> None:
        while True:
            await asyncio.sleep(min(0.25, after_s / 4))
            now = time.monotonic()
            for one in [one for one in self._idle if now - one.idle_since >= after_s]:
                self._idle.remove(one)
                self._all.remove(one)
                one.gone = True
                self.counts["reaped"] += 1
                self._follow(self._shut_down(one))

    async def _shut_down(self, one: _One) -> None:
        """End an environment as Lambda does: by SIGTERM and half a second where an extension wants it, and SIGKILL."""
        if self._freeze:
            one.signal(signal.SIGCONT)
        try:
            if self._source.expects_sigterm:
                await asyncio.sleep(0.02)  # one that has just been thawed may miss a signal
                one.signal(signal.SIGTERM)
                assert one.process is not None
                await asyncio.to_thread(one.process.wait, _SHUTDOWN_S)
        finally:
            one.signal(signal.SIGKILL)
            one.seat.end("Runtime.ExitError")

    def _follow(self, what: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(what)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
