"""
The invocation that runs now: when it has to be over, and what the pools have handed out in it.

The one owner of the deadline of every connection: what has a limit of its own (a connect, a ping) is bounded by the
invocation's deadline as well, and a connection that is handed out has that deadline and no other, whatever was waited
for before.

Which invocation runs is seen by evidence: by the guard whose block has not been left. A guard that nothing refers to
any more, or that belongs to another request, ended without having said so, as after an exception at a bad moment, and
holds nothing of the next one; what its pools had handed out is had back when the next one begins.

Units: moments are seconds since the epoch, by the wall clock, so that the time an environment is frozen counts.
Threads: Lambda runs one invocation at a time in a process, so the deadline is the process's, background threads
included.
"""

from __future__ import annotations

import functools
import gc
import logging
import time
import weakref
from contextlib import suppress
from decimal import Decimal
from math import isfinite
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from .errors import ConnectionLeak

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
    from typing import Protocol

    class HandedOut(Protocol):
        """What a pool handed out, as far as the end of an invocation has to know it."""

        def is_out(self) -> bool: ...
        def where(self) -> str: ...
        def close(self) -> None: ...
        def raises(self) -> bool: ...

    class Observer(Protocol):
        """Who is told of each invocation; no method raises."""

        def begin(self, request_id: str | None) -> None: ...
        def end(self, error: BaseException | None) -> None: ...
        def kill(self) -> None: ...

    class Context(Protocol):
        """What is read of Lambda's context object; all of it may be missing."""

        aws_request_id: str

        def get_remaining_time_in_millis(self) -> int: ...


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_logger = logging.getLogger("plungepool")

# A code object's flag, as `inspect` names it: importing that costs a cold start more than it tells.
_CO_COROUTINE = 0x80
_ASK = "get_remaining_time_in_millis"

#: what is counted of the invocation that runs, by those places where it happens; None: nobody listens (`observe`)
tally: Any = None
#: told of the begin and the end of each invocation; `observe` sets it
observer: Observer | None = None

# Beyond this a socket and the server count no more; Lambda gives a function 15 minutes.
_LEFT_AT_MOST_S = 1e6
# What is handed out is noted for the invocation's end; what came back meanwhile is dropped whenever there are so many.
_NOTED_AT_MOST = 32


class _Guard:
    """The block of one invocation, as `guard_invocation` makes it."""

    def __init__(self, context: Context | None) -> None:
        self.is_bare = context is None
        self.request_id = _name_of(context)
        left_s = _left_s(context)
        self.ends_at = None if left_s is None else time.time() + left_s
        # A margin that is longer than the function's time-out would leave nothing: the database has half of it at
        # least.
        self.margin_at_most_s = (left_s or 0.0) / 2
        self.handed_out: list[HandedOut] = []
        self.outer: _Guard | None = None
        self.is_entered = self.is_left = False
        #: the handler has returned what is not done yet (a coroutine, a generator), and the guard goes on with that
        self.goes_on = False

    def __call__(self, *handler: Any, **named: Any) -> Any:
        """Take the handler, where the decorator has parentheses: `@guard_invocation()`."""
        if self.is_bare and not self.is_entered and len(handler) == 1 and callable(handler[0]) and not named:
            return _guarded(handler[0])
        raise TypeError(
            "guard_invocation takes the handler as a decorator, and Lambda's context object for `with "
            "guard_invocation(context):`; its argument is neither"
        )

    def __enter__(self) -> None:
        global _current
        if self.goes_on:
            self.goes_on = False
            return
        if self.is_entered:
            raise RuntimeError("a guard is for one invocation: call guard_invocation(context) for each")
        self.is_entered = True
        outer = _running()
        if (
            outer is not None
            and None not in (outer.request_id, self.request_id)
            and outer.request_id != self.request_id
        ):
            outer = None  # an earlier invocation's, that ended without having said so
        self.outer = outer
        if outer is not None:
            self.handed_out = outer.handed_out
            if outer.ends_at is not None and (self.ends_at is None or outer.ends_at < self.ends_at):
                self.ends_at, self.margin_at_most_s = outer.ends_at, outer.margin_at_most_s
        else:
            _take_back_what_is_left()
            _end_all()  # the last end may have been struck before its turn
            _noted.append((weakref.ref(self), self.handed_out))
            if observer is not None:
                observer.begin(self.request_id)
        _current = weakref.ref(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        global _current
        if self.goes_on:
            return
        self.is_left = True
        is_current = self._is_current()
        outer, self.outer = self.outer, None
        if outer is not None and not outer.is_left:
            if is_current:
                _current = weakref.ref(outer)
            return
        try:
            leaks = _take_back(self.handed_out)
        finally:
            if is_current:
                _current = _nobody
        _end_all()
        _forget(self.handed_out)
        if leaks and kind is None:
            leak = ConnectionLeak(leaks)
            if observer is not None:
                observer.end(leak)
            raise leak
        if observer is not None:
            observer.end(error)

    def _is_current(self) -> bool:
        """
        Say whether it is this one that runs, or one within it that an exception struck out of.

        Another invocation may run by now, where this one is of a generator that nobody read to its end.
        """
        guard = _running()
        while guard is not None and guard is not self:
            guard = guard.outer
        return guard is self


def _nobody() -> None:
    """Stand for the weak reference to a guard, where no invocation runs."""


_current: Callable[[], _Guard | None] = _nobody
# What was handed out in the invocations that have not ended, or whose end was cut short: with whose guard.
_noted: list[tuple[Callable[[], _Guard | None], list[HandedOut]]] = []
# What pools have to do at each invocation's end. Only methods of the set itself change and copy it, which nothing can
# cut in two.
_at_end: set[Callable[[], Callable[[], object] | None]] = set()
# Set by hand, for who knows the moment without an invocation.
_end: float | None = None


def _running() -> _Guard | None:
    return _current()


@overload
def guard_invocation(handler: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]: ...


@overload
def guard_invocation(handler: Any = None) -> _Guard: ...


def guard_invocation(handler: Any = None) -> Any:
    """
    Limit what an invocation does with the database to the time of the invocation, and leave nothing to the next one.

        @guard_invocation
        def handler(event, context): ...

        with guard_invocation(context):        # where an adapter calls: the context may be None
            ...

    The deadline is `context.get_remaining_time_in_millis()` from now, less PLUNGEPOOL_DEADLINE_MARGIN_S, which is left
    for the handler to respond (at most half of the time). It limits checkouts, connects, pings and statements, in every
    thread; what runs out of time raises DeadlineExceeded. At the end, a connection that is still checked out is closed,
    or returned if nothing refers to it any more; the server rolls back. Either is logged, with the line that checked it
    out.

    Decorators may be in any order; the guard that is entered first is the one that ends the invocation. A context
    without the remaining time, or no context, gives no deadline; with one whose time is up, nothing is begun.
    Args: handler: the handler: a function, a method or another callable, which may be async or a generator, and is then
        guarded to its end; or the context, for `with`. A handler's context is its second argument, or the one that
        knows the remaining time.
    Raises: what the handler raises; ConnectionLeak after a handler that returned, with PLUNGEPOOL_LEAKS=raise.
    Units: seconds of wall clock.        Threads: one invocation at a time in a process, as Lambda has it.
    Source: Lambda developer guide, "Using the Lambda context object to retrieve Python function information".
    """
    # The context of a test may be a mock, which can be called.
    if not callable(handler) or hasattr(handler, _ASK):
        return _Guard(handler)
    return _guarded(handler)


def _guarded(handler: Any) -> Any:
    if _is_async(handler):

        @functools.wraps(handler)
        async def guarded_async(*arguments: Any, **named: Any) -> Any:
            with _Guard(_context(arguments, named)):
                return await handler(*arguments, **named)

        return guarded_async

    @functools.wraps(handler)
    def guarded(*arguments: Any, **named: Any) -> Any:
        guard = _Guard(_context(arguments, named))
        with guard:
            result = handler(*arguments, **named)
            finish = _FINISH.get(type(result))
            if finish is not None:
                result = finish(guard, result)
                guard.goes_on = True
        return result

    return guarded


async def _finish_coroutine(guard: _Guard, coroutine: Coroutine[Any, Any, Any]) -> Any:
    with guard:
        return await coroutine


def _finish_generator(guard: _Guard, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    with guard:
        return (yield from generator)


async def _finish_async_generator(guard: _Guard, generator: Any) -> AsyncGenerator[Any, Any]:
    # As `yield from` does it for a plain one.
    with guard:
        try:
            one = await generator.asend(None)
            while True:
                try:
                    sent = yield one
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 - the handler's, to catch or to raise
                    one = await generator.athrow(error)
                else:
                    one = await generator.asend(sent)
        except StopAsyncIteration:
            return
        finally:
            await generator.aclose()


# What a handler returns before it is done, and what goes on with it.
_FINISH: dict[type, Callable[[_Guard, Any], Any]] = {
    CoroutineType: _finish_coroutine,
    GeneratorType: _finish_generator,
    AsyncGeneratorType: _finish_async_generator,
}


def deadline(margin_s: float | None = 0.0) -> float | None:
    """
    Return the moment at which the database's part has to be over; None where nobody has said.

    Args: margin_s: what is left for the handler to answer, half of what the invocation had at most; None: there is no
        deadline for whoever asks.
    """
    if margin_s is None:
        return None
    guard = _running()
    if guard is None or guard.ends_at is None:
        return _end
    end = guard.ends_at - min(margin_s, guard.margin_at_most_s)
    return end if _end is None else min(end, _end)


def until(limit_s: float, margin_s: float | None = 0.0) -> float:
    """
    Return the moment at which something that starts now and may take `limit_s` has to be over, the deadline at the
    latest.
    """
    own, end = time.time() + limit_s, deadline(margin_s)
    return own if end is None else min(own, end)


def is_over(margin_s: float | None = 0.0) -> bool:
    """Say whether the deadline has passed."""
    end = deadline(margin_s)
    return end is not None and time.time() >= end


def end_at(moment: float | None) -> None:
    """
    Set a deadline without an invocation; None: no limit but those of the settings and of the invocation that runs.
    """
    global _end
    _end = moment


def request_id() -> str | None:
    """Return Lambda's name of the invocation that runs; None where none does, or nobody has said it."""
    guard = _running()
    return None if guard is None else guard.request_id


def count(what: str, amount: float = 1) -> None:
    """Count something of the invocation that runs, by the name of a field of `observe.Tally`, if anybody listens."""
    counted = tally
    if counted is not None:
        setattr(counted, what, getattr(counted, what) + amount)


def count_under(what: str, name: str) -> None:
    """Count something that has several names, in the tally's dictionary of them."""
    counted = tally
    if counted is not None:
        under = getattr(counted, what)
        under[name] = under.get(name, 0) + 1


def is_running() -> bool:
    """Say whether an invocation runs that looks at its end for what was not given back."""
    return _running() is not None


def at_each_end(method: Callable[[], object]) -> None:
    """
    Have a bound method called at each invocation's end, after what leaked is back, for as long as its object lives.

    It may be called more than once, also when an invocation begins.
    """
    _at_end.add(weakref.WeakMethod(method, _at_end.discard))


def note(handed_out: HandedOut) -> None:
    """Have the end of the invocation that runs look whether this came back; where none runs, nothing is noted."""
    guard = _running()
    if guard is not None:
        noted = guard.handed_out
        if len(noted) >= _NOTED_AT_MOST:
            # One by one: another thread may be adding its own.
            for one in [one for one in noted if not one.is_out()]:
                with suppress(ValueError):
                    noted.remove(one)
        noted.append(handed_out)


def _name_of(context: Any) -> str | None:
    """Return the invocation's name; None where the context says none that a log could hold, as a mock's does."""
    name = getattr(context, "aws_request_id", None)
    return name if isinstance(name, str) else None


def _left_s(context: Any) -> float | None:
    """Return the seconds that the invocation has left; None where the context does not say."""
    ask = getattr(context, _ASK, None)
    left = ask() if callable(ask) else None
    # What is no number, as a mock's answer, says nothing; nor does one that is none, or has no end.
    if not isinstance(left, (int, float, Decimal)) or isinstance(left, bool):
        return None
    try:
        left_s = float(left) / 1000
    except (OverflowError, ValueError):
        return None
    return min(max(0.0, left_s), _LEFT_AT_MOST_S) if isfinite(left_s) else None


def _context(arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """
    Return the context among a handler's arguments: the second, as Lambda calls a handler; else the one that knows the
    time: a method's third, a keyword.
    """
    if len(arguments) > 1 and hasattr(arguments[1], _ASK):
        return arguments[1]
    for one in (*arguments[2:], *named.values(), *arguments[:1]):
        if hasattr(one, _ASK):
            return one
    return arguments[1] if len(arguments) > 1 else named.get("context")


def _is_async(handler: Any) -> bool:
    """Say whether it is an async function, also as a method, a partial, or the `__call__` of an object."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    code = getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)
    return bool(getattr(code, "co_flags", 0) & _CO_COROUTINE)


def _take_back_what_is_left() -> None:
    """Have back what an earlier invocation kept that an exception struck at its end."""
    for of, handed_out in _noted.copy():
        guard = of()
        if guard is None or guard.is_left:
            _take_back(handed_out)
            _forget(handed_out)


def _end_all() -> None:
    for reference in _at_end.copy():
        if (method := reference()) is not None:
            method()


def _forget(handed_out: list[HandedOut]) -> None:
    _noted[:] = [one for one in _noted if one[1] is not handed_out]


def _take_back(handed_out: list[HandedOut]) -> list[str]:
    """
    Have back what is still out, and log it; return where that was taken whose owner wants an error.

    A SQLAlchemy connection and its transaction refer to each other: one that the handler has simply dropped is held by
    nobody, and yet not returned until the collector sees it.
    """
    out = [one for one in handed_out if one.is_out()]
    # What is struck before its turn stays in the list, for the next invocation to have it back.
    handed_out[:] = out
    if not out:
        return []
    for generation in (1, 2):
        gc.collect(generation)
        if not any(one.is_out() for one in out):
            break
    leaks = []
    for one in out:
        where = one.where()
        if one.is_out():
            one.close()
            what = "it was closed, because something still refers to it"
        else:
            what = "it was returned, because nothing refers to it any more"
        handed_out.remove(one)
        count("leaks")
        if one.raises():
            leaks.append(where)
        _logger.warning(
            "a connection was still checked out at the end of the invocation, taken at %s: its transaction was rolled "
            "back and %s. Use `with engine.begin() as connection:`.",
            where,
            what,
        )
    return leaks
