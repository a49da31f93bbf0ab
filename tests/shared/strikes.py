"""Exceptions that strike at a line of one's choice, in the pool, in SQLAlchemy and in the driver."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType

STRUCK_MODULES = ("sqlalchemy.", "plungepool.", "weakref", "contextlib", "threading")


class StruckError(Exception):
    """What an application's own time-out may raise."""


class StruckExit(BaseException):
    """What is no error."""


KINDS: list[type[BaseException]] = [StruckError, StruckExit, TimeoutError, KeyboardInterrupt]


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
        if self.left == 0:
            sys.settrace(None)
            self.struck = True
            raise self.kind("struck")
        return self._look
