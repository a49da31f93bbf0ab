"""
Import SQLAlchemy without what this engine never uses: about a seventh less work at a cold start.

SQLAlchemy imports asyncio and its dialect for asyncpg for asynchronous engines, and importlib.metadata for finding
dialects by entry point. While it is imported here, each of them is a proxy that imports the real module when it is first
asked for anything; so whoever makes an asynchronous engine all the same gets what SQLAlchemy would have had. Only
SQLAlchemy ever holds a proxy: `sys.modules` has the real module, or none, as soon as the import is over. Where a module,
or SQLAlchemy, has been imported before, nothing is done.

A function's own packages come before a layer's: one that brings another SQLAlchemy or driver is told so here, once, and not by
whatever breaks first.

The garbage collector rests meanwhile: it would walk the same new objects again and again, and none of them is garbage.

Measured by `bench/cold_start.py`.
"""

from __future__ import annotations

import gc
import importlib
import importlib.machinery
import os
import sys
from types import ModuleType
from typing import Any

_UNUSED = ("asyncio", "importlib.metadata", "sqlalchemy.dialects.postgresql.asyncpg")


class _Later(ModuleType):
    """Stands for a module until an attribute of it is asked for; then, and from then on, hands on the real one's."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _Asyncio(_Later):
    """
    Stands for asyncio, and answers by itself what SQLAlchemy asks for within every database error.

    An import there would be the first in the life of the process to be cut short by a time-out or a signal, with the
    transaction open, and a package half imported breaks every error after it.
    """

    #: asyncio's is the built-in one (Python 3.11, "What's New")
    TimeoutError = TimeoutError

    def iscoroutine(self, candidate: object) -> bool:
        """Hand on asyncio's: SQLAlchemy takes this one function while it is imported, without calling it."""
        return bool(self.__getattr__("iscoroutine")(candidate))

    @property
    def CancelledError(self) -> type[BaseException]:  # noqa: N802 - asyncio names it
        """Return asyncio's, if there is one: as long as nobody has imported it, nobody can raise it."""
        return getattr(sys.modules.get("asyncio.exceptions"), "CancelledError", _NeverRaised)


class _NeverRaised(BaseException):
    """What asyncio's CancelledError is in a process without asyncio."""


def _import_sqlalchemy() -> None:
    proxies = [_Asyncio(name) if name == "asyncio" else _Later(name) for name in _UNUSED if name not in sys.modules]
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


# As pyproject.toml asks for them: from this version on, and below that one.
_MADE_FOR = {"sqlalchemy": ((2, 1), (2, 2)), "pg8000": ((1, 31, 5), (1, 32)), "scramp": ((1, 4, 5), (2,))}


def _refuse_other_versions() -> None:
    """
    Raise ImportError for a package of another version than this one was made for, before it is imported.

    What lies beside this package was installed with it. Of anything else the folder of its metadata tells the version by
    its name; importlib.metadata would do no better, for a tenth of a cold start.
    """
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in _MADE_FOR:
        spec = importlib.machinery.PathFinder.find_spec(name)
        folder = os.path.dirname(os.path.dirname(spec.origin)) if spec and spec.origin else ours
        if folder == ours or not os.path.isdir(folder):
            continue
        for entry in os.listdir(folder):
            package, _, version = entry.removesuffix(".dist-info").partition("-")
            if entry.endswith(".dist-info") and package.lower() == name:
                _refuse_unless_made_for(name, version, folder)


def _refuse_unless_made_for(name: str, version: str, folder: str) -> None:
    found = tuple(int(part) for part in version.split(".") if part.isdecimal())
    lowest, below = _MADE_FOR[name]
    if not lowest <= found < below:
        wanted = f"{name}>={'.'.join(map(str, lowest))},<{'.'.join(map(str, below))}"
        raise ImportError(
            f"plungepool needs {wanted} and found {version} in {folder}: a function's own packages come before a layer's; "
            f"leave {name} out of the function's requirements, or ask for {wanted} there",
            name=name,
        )


_refuse_other_versions()
if "sqlalchemy" not in sys.modules:
    _import_sqlalchemy()
# Where the metadata was left out of a package.
_refuse_unless_made_for("sqlalchemy", sys.modules["sqlalchemy"].__version__, str(sys.modules["sqlalchemy"].__path__[0]))
