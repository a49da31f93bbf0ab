"""Exceptions that strike at a line of one's choice, in the pool, in SQLAlchemy and in the driver."""

from __future__ import annotations

import ctypes
import dis
import functools
import itertools
import random
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

STRUCK_MODULES = ("sqlalchemy.", "plungepool.", "weakref", "contextlib", "threading")


class StruckError(Exception):
    """What an application's own time-out may raise."""


class StruckExit(BaseException):
    """What is no error."""


KINDS: list[type[BaseException]] = [StruckError, StruckExit, TimeoutError, KeyboardInterrupt]


@functools.cache
def _gaps(code: CodeType) -> list[range]:
    """
    Return where in a function's code a `with` is open and no handler is set: an exception skips `__exit__` there.

    At its begin and its end the compiler leaves some instructions between two handlers: a NOP for the line of a `try`,
    and the loading of three None before the call of `__exit__`.
    """
    instructions = list(dis.get_instructions(code))
    enters = [one.offset for one in instructions if one.opname in ("BEFORE_WITH", "LOAD_SPECIAL")]
    if not enters:
        return []
    loads_none = [one.opname.startswith("LOAD_CONST") and one.argval is None for one in instructions]
    ends = [
        next(call.offset for call in instructions[n + 3 :] if call.opname == "CALL")
        for n in range(len(instructions))
        if loads_none[n : n + 3] == [True] * 3
    ]
    first, last = enters[0] + 4, max(ends, default=0) + 2
    gaps, at = [], first
    for entry in sorted(dis.Bytecode(code).exception_entries, key=lambda entry: entry.start):
        gaps.append(range(at, min(entry.start, last)))
        at = max(at, entry.end)
    return [*gaps, range(at, last)]


def _leaves_a_lock_held(frame: FrameType) -> bool:
    """
    Tell whether a strike would skip the end of a `with` of SQLAlchemy's, and leave its lock held for ever: a trace
    function's alone would, since the interpreter looks for none there.
    """
    if not frame.f_globals.get("__name__", "").startswith("sqlalchemy."):
        return False
    return any(frame.f_lasti in gap for gap in _gaps(frame.f_code))


class Injector:
    """Raises at the n-th line, return or instruction that a thread executes in the modules of interest."""

    def __init__(self, at: int, kind: type[BaseException], *, instructions: bool = False) -> None:
        self.left, self.kind, self.instructions, self.struck = at, kind, instructions, False

    def __enter__(self) -> Self:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_globals.get("__name__", "").startswith(STRUCK_MODULES):
            return None
        frame.f_trace_opcodes = self.instructions
        return self._look

    def _look(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "exception":
            return self._look
        self.left -= 1
        if self.left == 0 and _leaves_a_lock_held(frame):
            self.left = 1  # the next one, then
        elif self.left == 0:
            sys.settrace(None)
            self.struck = True
            raise self.kind("struck")
        return self._look


def led_to_by_a_strike(problem: BaseException) -> bool:
    """Tell whether a strike was being handled when this was raised, or when what it wraps was: SQLAlchemy wraps."""
    seen: BaseException | None = problem
    while seen is not None:
        if isinstance(seen, (StruckError, StruckExit)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def strike_threads(
    use: Callable[[int, int], object],
    *,
    threads: int,
    tries: int,
    seed: int,
    enough: Callable[[int], bool] = lambda struck: True,
) -> int:
    """
    Have so many threads use something over and over, and set exceptions in them from this one, at random moments.

    Args: use(thread, number): one use; nothing but a strike, or what a strike has led to, may come out of it.
        enough(struck): whether these strikes, and what the uses have come to, will do; else there are more, for a
        minute: how far a use comes between two strikes is the machine's to say.
    Returns: how many strikes came out of a use.
    """
    problems: list[BaseException] = []
    stop, open_to_strikes, struck = threading.Event(), [False] * threads, [0] * threads

    def work(thread: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                try:
                    open_to_strikes[thread] = True
                    use(thread, number)
                finally:
                    open_to_strikes[thread] = False
                    for _ in range(3):
                        time.sleep(0.0001)  # a strike that is set is raised here at the latest
            except (StruckError, StruckExit):
                struck[thread] += 1
            except BaseException as problem:
                if not led_to_by_a_strike(problem):
                    problems.append(problem)

    workers = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(threads)]
    for worker in workers:
        worker.start()
    random_ = random.Random(seed)
    until = time.monotonic() + 60
    for number in itertools.count():
        if number >= tries and (enough(sum(struck)) or time.monotonic() > until):
            break
        time.sleep(random_.uniform(0, 0.003))
        thread = random_.randrange(threads)
        if open_to_strikes[thread]:
            kind = random_.choice((StruckError, StruckExit))
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(workers[thread].ident or 0), ctypes.py_object(kind)
            )
    stop.set()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    for problem in problems:
        traceback.print_exception(problem)
    assert problems == [], "see the tracebacks above"
    return sum(struck)
