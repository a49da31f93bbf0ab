"""
Import SQLAlchemy without what this engine never uses: about a sixth less work at a cold start.

SQLAlchemy imports asyncio and its dialect for asyncpg for asynchronous engines, and importlib.metadata for finding
dialects by entry point. While it is imported here, each of them is a proxy that imports the real module when it is
first asked for anything; so whoever makes an asynchronous engine all the same gets what SQLAlchemy would have had. Only
SQLAlchemy ever holds a proxy: `sys.modules` has the real module, or none, as soon as the import is over. Where a
module, or SQLAlchemy, has been imported before, nothing is done.

A function's own packages come before a layer's: one that brings another SQLAlchemy or driver is told so here, once, and
not by whatever breaks first.

SQLAlchemy's tables of PostgreSQL's catalogue serve reflection alone: they are made when one of them is first asked for.

X-Ray's patch of pg8000, which a `Tracer()` of Powertools' applies because the layer holds that, would import it for
nothing, for half a second: in Lambda it waits until somebody else imports pg8000.

The garbage collector rests meanwhile: it would walk the same new objects again and again, and none of them is garbage.

Measured by `bench/cold_start.py`.
"""

from __future__ import annotations

import builtins
import functools
import gc
import importlib
import os
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CATALOGUE = "sqlalchemy.dialects.postgresql.pg_catalog"
_PATCH = "aws_xray_sdk.ext.pg8000"
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

    def Runner(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: N802 - asyncio names it
        """Make one of asyncio's: SQLAlchemy 2.0 takes the class while it is imported, where greenlet is installed."""
        return self.__getattr__("Runner")(*arguments, **keywords)

    @property
    def CancelledError(self) -> type[BaseException]:  # noqa: N802 - asyncio names it
        """Return asyncio's, if there is one: as long as nobody has imported it, nobody can raise it."""
        return getattr(sys.modules.get("asyncio.exceptions"), "CancelledError", _NeverRaised)


class _NeverRaised(BaseException):
    """What asyncio's CancelledError is in a process without asyncio."""


class _PatchLater(_Later):
    """Stands for X-Ray's patch of pg8000, which begins with an import of that: it patches once that is imported."""

    def patch(self) -> None:
        """Be called by the X-Ray SDK's `patch_all`; `wrapt` is what that patches by."""
        when_imported = importlib.import_module("wrapt").when_imported

        @when_imported("pg8000")  # type: ignore[untyped-decorator]
        def patch(_: ModuleType) -> None:
            # As patch_all does: what cannot be patched is left as it is.
            with suppress(Exception):
                self.__getattr__("patch")()


class _Call:
    """A call that is put off: of one of SQLAlchemy's classes, by its name."""

    def __init__(self, name: str, *arguments: Any, **keywords: Any) -> None:
        self.name, self.arguments, self.keywords = name, arguments, keywords

    def now(self, made: dict[_Call, Any]) -> Any:
        """Return what the call gives, with the calls among its arguments; each is made once, and found in `made`."""
        if self not in made:
            arguments = [value.now(made) if isinstance(value, _Call) else value for value in self.arguments]
            made[self] = getattr(sys.modules["sqlalchemy"], self.name)(*arguments, **self.keywords)
        return made[self]


class _Catalogue(ModuleType):
    """
    SQLAlchemy's module of PostgreSQL's catalogue, whose tables are made, all of them, when one is first asked for.
    """

    def __getattr__(self, name: str) -> Any:
        calls: dict[str, _Call] = self.__dict__["_plungepool_calls"]
        if name not in calls:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        made: dict[_Call, Any] = {}
        tables = {name: call.now(made) for name, call in calls.items()}
        # Threads may come here together, and any of them be interrupted: all get the tables that were whole first.
        self.__dict__.update(self.__dict__.setdefault("_plungepool_tables", tables))
        return self.__dict__[name]


class _CatalogueLoader(SourceFileLoader):
    """Executes that module's own code, with its calls of `Table` and the like put off."""

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module; as it is, should its code ever do more with its tables than name them."""
        names = ("Column", "MetaData", "Table")
        put_off = SimpleNamespace(**{name: functools.partial(_Call, name) for name in names})

        def import_from(name: str, variables: Any = None, place: Any = None, wanted: Any = (), level: int = 0) -> Any:
            return put_off if wanted and wanted[0] in names else __import__(name, variables, place, wanted, level)

        space = module.__dict__
        space["__builtins__"] = {**builtins.__dict__, "__import__": import_from}
        try:
            exec(self.get_code(module.__name__) or "", space)  # noqa: S102
        except (AttributeError, ImportError, TypeError):
            space["__builtins__"] = builtins.__dict__
            return super().exec_module(module)
        space["__builtins__"] = builtins.__dict__
        space.update({name: getattr(sys.modules["sqlalchemy"], name) for name in names})
        calls = space["_plungepool_calls"] = {name: value for name, value in space.items() if isinstance(value, _Call)}
        for name in calls:
            del space[name]
        module.__class__ = _Catalogue
        return None


class _CatalogueFinder:
    """Finds that module, for its loader."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _CATALOGUE else None
        if spec is None or type(spec.loader) is not SourceFileLoader:
            return None
        spec.loader = _CatalogueLoader(spec.loader.name, spec.loader.path)
        return spec


def _import_sqlalchemy() -> None:
    proxies = [_Asyncio(name) if name == "asyncio" else _Later(name) for name in _UNUSED if name not in sys.modules]
    for proxy in proxies:
        sys.modules[proxy.__name__] = proxy
        parent, _, child = proxy.__name__.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, proxy)
    finder: Any = _CatalogueFinder()
    sys.meta_path.insert(0, finder)
    collecting = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("sqlalchemy.dialects.postgresql.pg8000")
    finally:
        sys.meta_path.remove(finder)
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
_MADE_FOR = {"sqlalchemy": ((2, 0, 40), (2, 2)), "pg8000": ((1, 31, 5), (1, 32))}


def _refuse_other_versions() -> None:
    """
    Raise ImportError for a package of another version than this one was made for, before it is imported.

    What lies beside this package was installed with it. Of anything else the folder of its metadata tells the version
    by its name; importlib.metadata would do no better, for a tenth of a cold start.
    """
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in _MADE_FOR:
        spec = PathFinder.find_spec(name)
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
            f"plungepool requires {wanted} but found {version} in {folder}: a function's own packages take precedence "
            f"over a layer's; remove {name} from the function's requirements, or require {wanted} there",
            name=name,
        )


def _put_off_patch(environ: Mapping[str, str]) -> None:
    """In Lambda alone, since elsewhere nobody is traced."""
    if "AWS_LAMBDA_FUNCTION_NAME" in environ:
        sys.modules.setdefault(_PATCH, _PatchLater(_PATCH))


_refuse_other_versions()
_put_off_patch(os.environ)
if "sqlalchemy" not in sys.modules:
    _import_sqlalchemy()
# Where the metadata was left out of a package.
_refuse_unless_made_for("sqlalchemy", sys.modules["sqlalchemy"].__version__, str(sys.modules["sqlalchemy"].__path__[0]))
