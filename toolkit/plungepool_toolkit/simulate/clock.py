"""
Virtual time: tasks that wait, and processors that they share. Pure: no clock and no chance of its own.

A task is a generator. It yields a number to sleep for so many seconds, or a `Work` to be computed, or a `Turn` to wait
for a place; what it gets back says whether that came about before the moment it would wait until.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar

NEVER = math.inf

_T = TypeVar("_T")
# What a task yields, gets back, and returns. `Any`: a sleep, a Work, a Turn.
Steps = Generator[Any, bool, _T]


class Work:
    """So many seconds of a processor, waited for until some moment; if that is over first, `left` says what then."""

    __slots__ = ("cost_s", "ended", "left", "processor", "task", "until")

    def __init__(
        self,
        processor: Processor,
        cost_s: float,
        until: float = NEVER,
        left: Callable[[], None] | None = None,
    ) -> None:
        """
        Args: left: the processor goes on with what nobody waits for any more, and calls this at its end; None: it drops
            it.
        """
        self.processor, self.cost_s, self.until, self.left = processor, cost_s, until, left
        self.task: Steps[None] | None = None
        self.ended = False

    def begin(self, clock: Clock, task: Steps[None]) -> None:
        self.task = task
        self.processor.add(clock.now, self)
        if self.until < NEVER:
            clock.at(max(self.until, clock.now), _give_up_work, (clock, self))


def _give_up_work(waiting: tuple[Clock, Work]) -> None:
    clock, work = waiting
    if work.ended or work.task is None:
        return
    task, work.task = work.task, None
    if work.left is None:
        work.ended = True
        work.processor.drop(clock.now)
    clock.resume(task, False)


class Turn:
    """A place in a line, waited for until some moment; see `Places`."""

    __slots__ = ("places", "task", "until")

    def __init__(self, places: Places, until: float = NEVER) -> None:
        self.places, self.until = places, until
        self.task: Steps[None] | None = None

    def begin(self, clock: Clock, task: Steps[None]) -> None:
        if self.places.free:
            self.places.free -= 1
            clock.at(clock.now, clock.go_on, task)
            return
        self.task = task
        self.places.line.append(self)
        if self.until < NEVER:
            clock.at(max(self.until, clock.now), _give_up_turn, (clock, self))


def _give_up_turn(waiting: tuple[Clock, Turn]) -> None:
    clock, turn = waiting
    if turn.task is not None:
        task, turn.task = turn.task, None
        clock.resume(task, False)


class Places:
    """So many places; first come, first served."""

    __slots__ = ("free", "line")

    def __init__(self, count: int) -> None:
        self.free = count
        self.line: deque[Turn] = deque()

    def give_back(self, clock: Clock) -> None:
        """Give one's place to the next in line."""
        while self.line:
            turn = self.line.popleft()
            if turn.task is not None:
                task, turn.task = turn.task, None
                clock.at(clock.now, clock.go_on, task)
                return
        self.free += 1


class Clock:
    """The events of one run, in the order of their moments; of one moment in the order in which they were made."""

    __slots__ = ("_events", "_tie", "going", "now", "processor")

    def __init__(self, processor: Processor) -> None:
        """Args: processor: the one whose ends of work are events."""
        self.now, self.processor = 0.0, processor
        #: Whoever knows that nothing that is to come matters sets it to False.
        self.going = True
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._tie = itertools.count()

    def at(self, moment: float, action: Callable[[Any], None], argument: Any) -> None:
        """Let something happen at a moment, which is not before now."""
        heapq.heappush(self._events, (moment, next(self._tie), action, argument))

    def start(self, task: Steps[None], at: float) -> None:
        """Let a task begin at a moment."""
        self.at(at, self._begin, task)

    def _begin(self, task: Steps[None]) -> None:
        try:
            wait = next(task)
        except StopIteration:
            return
        self._wait(wait, task)

    def go_on(self, task: Steps[None]) -> None:
        """Tell a task that what it waited for came about."""
        self.resume(task, True)

    def resume(self, task: Steps[None], came: bool) -> None:
        """Tell a task whether what it waited for came about."""
        try:
            wait = task.send(came)
        except StopIteration:
            return
        self._wait(wait, task)

    def _wait(self, wait: Any, task: Steps[None]) -> None:
        if wait.__class__ is float:
            heapq.heappush(self._events, (self.now + wait, next(self._tie), self.go_on, task))
        else:
            wait.begin(self, task)

    def run(self) -> None:
        """Let happen all that happens, while it is `going`."""
        events, processor = self._events, self.processor
        while self.going:
            moment = events[0][0] if events else NEVER
            if processor.next <= moment:
                if processor.next == NEVER:
                    break
                self.now = processor.next
                work = processor.end()
                work.ended = True
                if work.task is not None:
                    task, work.task = work.task, None
                    self.resume(task, True)
                elif work.left is not None:
                    work.left()
                continue
            self.now, _, action, argument = heapq.heappop(events)
            action(argument)


class Processor(Protocol):
    """What computes: when the next work ends, and how much it has computed so far."""

    next: float
    used_s: float

    def add(self, now: float, work: Work) -> None: ...

    def drop(self, now: float) -> None:
        """Some work that was added has `ended` before its end."""

    def end(self) -> Work:
        """Return the work that ends at `next`."""


class Shared:
    """
    Cores that all work shares alike, as processes share a machine: each has a core of its own, or where there are not
    as many its part of them all. Processor sharing.
    """

    __slots__ = ("_at", "_cores", "_count", "_done_s", "_overhead", "_speed", "_tie", "_works", "next", "used_s")

    def __init__(self, cores: float, overhead: float = 0.0) -> None:
        """Args: overhead: the part of all that each work beyond the number of cores takes away."""
        self._cores, self._overhead, self._speed = cores, overhead, 1.0
        self._works: list[tuple[float, int, Work]] = []
        self._tie = itertools.count()
        self._count, self._at, self._done_s = 0, 0.0, 0.0
        self.next, self.used_s = NEVER, 0.0

    def add(self, now: float, work: Work) -> None:
        self._catch_up(now)
        heapq.heappush(self._works, (self._done_s + work.cost_s, next(self._tie), work))
        self._count += 1
        self._look_ahead()

    def drop(self, now: float) -> None:
        self._catch_up(now)
        self._count -= 1
        self._look_ahead()

    def end(self) -> Work:
        self._catch_up(self.next)
        end_s, _, work = heapq.heappop(self._works)
        self._done_s = max(self._done_s, end_s)  # what rounding has left
        self._count -= 1
        work.ended = True
        self._look_ahead()
        return work

    def _catch_up(self, now: float) -> None:
        if self._count:
            passed_s = now - self._at
            self._done_s += passed_s * self._speed
            self.used_s += passed_s * min(self._count, self._cores)
        self._at = now

    def _look_ahead(self) -> None:
        works = self._works
        while works and works[0][2].ended:
            heapq.heappop(works)
        if not works:
            self.next = NEVER
            return
        count, cores = self._count, self._cores
        self._speed = speed = min(1.0, cores / count) / (1 + self._overhead * max(0.0, count - cores))
        self.next = self._at + max(0.0, works[0][0] - self._done_s) / speed


class Queue:
    """Cores with one queue before them: each work has a core to itself from its beginning to its end."""

    __slots__ = ("_idle", "_running", "_speed", "_tie", "_waiting", "next", "used_s")

    def __init__(self, cores: float) -> None:
        self._idle = max(1, math.ceil(cores))
        self._speed = cores / self._idle
        self._running: list[tuple[float, int, Work]] = []
        self._waiting: deque[Work] = deque()
        self._tie = itertools.count()
        self.next, self.used_s = NEVER, 0.0

    def add(self, now: float, work: Work) -> None:
        self._waiting.append(work)
        self._fill(now)

    def drop(self, now: float) -> None:
        pass  # it is passed over when its turn comes, and what runs has a core until it is over

    def end(self) -> Work:
        now, _, work = heapq.heappop(self._running)
        self._idle += 1
        self._fill(now)
        return work

    def _fill(self, now: float) -> None:
        while self._idle and self._waiting:
            work = self._waiting.popleft()
            if work.ended:
                continue
            self._idle -= 1
            self.used_s += work.cost_s
            heapq.heappush(self._running, (now + work.cost_s / self._speed, next(self._tie), work))
        self.next = self._running[0][0] if self._running else NEVER
