"""
What to keep, what to close, and when to ask whether a connection still lives.

Both pools are SQLAlchemy's QueuePool with no overflow: LIFO, so that what was used last, which is the likeliest to
live, is used next. Nothing runs in the background: an environment is frozen when it is idle, so every decision is
taken at checkout or at return, by the wall clock.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc
from sqlalchemy.pool import QueuePool

from .errors import PlungepoolError
from .settings import Settings, variable

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.pool import ConnectionPoolEntry


class PoolExhausted(PlungepoolError, exc.TimeoutError):
    """Every connection of the pool stayed checked out for the whole checkout time-out; says where each was taken."""


class TinyPool(QueuePool):
    """Keep a returned connection for the next invocation; hand it out again only while it seems to live."""

    def __init__(self, creator: Any, *, is_alive: Callable[[Any, float], bool], **arguments: Any) -> None:
        """Take QueuePool's arguments and `is_alive(connection, idle_s)`, which says whether to hand it out again."""
        super().__init__(creator, **arguments)
        self._is_alive = is_alive
        # What is checked out: the record's id -> (where, when). Changed under the GIL by single operations only.
        self._taken: dict[int, tuple[str, float]] = {}

    def recreate(self) -> TinyPool:
        """Make an empty pool of the same kind, as Engine.dispose() asks for."""
        return type(self)(
            self._creator,
            is_alive=self._is_alive,
            pool_size=self._pool.maxsize,
            max_overflow=self._max_overflow,
            timeout=self._timeout,
            use_lifo=self._pool.use_lifo,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            record = super()._do_get()
        except exc.TimeoutError:
            raise self._exhausted() from None
        try:
            connection = record.dbapi_connection
            if connection is not None:
                idle_s = time.time() - record.info.get("plungepool.returned_at", 0.0)
                if not self._is_alive(connection, idle_s):
                    # The record connects anew when it is asked for its connection, which is the next thing to happen.
                    record.close()
        except BaseException:
            super()._do_return_conn(record)
            raise
        self._taken[id(record)] = (_caller(), time.time())
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        self._taken.pop(id(record), None)
        record.info["plungepool.returned_at"] = time.time()
        super()._do_return_conn(record)

    def _exhausted(self) -> PoolExhausted:
        now = time.time()
        held = "; ".join(f"{where} ({now - since:.1f} s ago)" for where, since in list(self._taken.values()))
        return PoolExhausted(
            f"no connection within {self._timeout:g} s ({variable('checkout_timeout_s')}): all {self.size()} of the "
            f"pool are checked out, taken at {held or 'an unknown place'}. Return each before taking another (use "
            f"`with engine.begin() as connection:`), or raise {variable('pool_size')}"
        )


class NullPool(TinyPool):
    """Close a connection when it is returned; no more than the pool's size at a time all the same."""

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        try:
            record.close()
        finally:
            super()._do_return_conn(record)


def build_pool(settings: Settings, creator: Callable[[], Any], is_alive: Callable[[Any, float], bool]) -> TinyPool:
    """
    Return the pool that the settings ask for; nothing is connected yet.

    Args: creator: opens a connection. is_alive(connection, idle_s): whether a kept connection may be handed out again.
    """
    return {"tiny": TinyPool, "null": NullPool}[settings.pool](
        creator,
        is_alive=is_alive,
        pool_size=settings.pool_size,
        max_overflow=0,
        timeout=settings.checkout_timeout_s,
        recycle=settings.max_age_s,
        use_lifo=True,
    )


def _caller() -> str:
    """Return `file:line in function` of the nearest frame that is neither SQLAlchemy's nor ours; cheap, no source read."""
    frame = sys._getframe(1)
    outer = frame
    while outer is not None and outer.f_globals.get("__name__", "").partition(".")[0] in ("sqlalchemy", "plungepool"):
        if outer.f_back is None:
            break
        outer = outer.f_back
    code = outer.f_code
    return f"{code.co_filename}:{outer.f_lineno} in {code.co_name}"
