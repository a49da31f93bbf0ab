"""
Import SQLAlchemy without what this engine never uses: about a seventh less work at a cold start.

SQLAlchemy imports asyncio and its dialect for asyncpg for asynchronous engines, and importlib.metadata for finding
dialects by entry point. While it is imported here, each of them is a proxy that imports the real module when it is first
asked for anything; so whoever makes an asynchronous engine all the same gets what SQLAlchemy would have had. Only
SQLAlchemy ever holds a proxy: `sys.modules` has the real module, or none, as soon as the import is over. Where a module,
or SQLAlchemy, has been imported before, nothing is done.

The garbage collector rests meanwhile: it would walk the same new objects again and again, and none of them is garbage.

Measured by `bench/cold_start.py`.
"""

from __future__ import annotations

import gc
import importlib
import sys
from types import ModuleType
from typing import Any

_UNUSED = ("asyncio", "importlib.metadata", "sqlalchemy.dialects.postgresql.asyncpg")


class _Later(ModuleType):
    """Stands for a module until an attribute of it is asked for; then, and from then on, hands on the real one's."""

    def iscoroutine(self, candidate: object) -> bool:
        """Hand on asyncio's: SQLAlchemy takes this one function while it is imported, without calling it."""
        return bool(self.__getattr__("iscoroutine")(candidate))

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _import_sqlalchemy() -> None:
    proxies = [_Later(name) for name in _UNUSED if name not in sys.modules]
    for proxy in proxies:
        sys.modules[proxy.__name__] = proxy
        parent, _, child = proxy.__name__.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, proxy)
    collecting = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("sqlalchemy.dialects.postgresql.pg8000")
    finally:
        if gc.get_freeze_count() == 0:
            # All to the oldest generation, without a look at each: the first young collection would else walk them all.
            gc.freeze()
            gc.unfreeze()
        if collecting:
            gc.enable()
        for proxy in proxies:
            if sys.modules.get(proxy.__name__) is proxy:
                del sys.modules[proxy.__name__]


if "sqlalchemy" not in sys.modules:
    _import_sqlalchemy()
