"""How SQLAlchemy is imported: cheaper, and without a difference that anybody could see."""

from __future__ import annotations

import subprocess
import sys


def run(source: str) -> str:
    """Run Python in a process of its own, since what is imported stays imported, and return what it prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_no_more_than_it_needs() -> None:
    """Neither what only asynchronous engines need, nor AWS's libraries, nor the driver that only some connects need."""
    unwanted = (
        "asyncio",
        "importlib.metadata",
        "sqlalchemy.dialects.postgresql.asyncpg",
        "boto3",
        "botocore",
        "aws_lambda_powertools",
        "pg8000",
        "scramp",
        "ssl",
    )
    assert run(f"import plungepool, sys; print([name for name in {unwanted!r} if name in sys.modules])") == "[]"


def test_importing_the_package_starts_no_thread() -> None:
    """An environment that is frozen has nothing going on in the background."""
    assert run("import plungepool, threading; print(threading.active_count())") == "1"


def test_what_was_left_out_comes_when_it_is_asked_for() -> None:
    """SQLAlchemy finds asyncio's own objects behind the proxy, and everybody else imports the real modules."""
    print_it = """
import plungepool, sys
import sqlalchemy.util.concurrency as concurrency
assert concurrency.asyncio.CancelledError is __import__("asyncio").CancelledError
import asyncio, importlib.metadata
async def nothing(): pass
coroutine = nothing()
assert concurrency.iscoroutine(coroutine) and not concurrency.iscoroutine(nothing)
coroutine.close()
from types import ModuleType
assert type(asyncio) is type(importlib.metadata) is ModuleType
assert sys.modules["asyncio"] is asyncio and sys.modules["importlib.metadata"] is importlib.metadata
from sqlalchemy.util.compat import importlib_metadata_get
importlib_metadata_get("sqlalchemy.dialects")
print(importlib.metadata.version("sqlalchemy")[:2])
"""
    assert run(print_it) == "2."


def test_other_dialects_of_postgresql_are_still_there() -> None:
    """The asynchronous dialect is SQLAlchemy's own, by name, by attribute and by import."""
    source = """
import plungepool
from sqlalchemy.dialects import postgresql, registry
behind_the_proxy = postgresql.asyncpg.dialect
found = registry.load("postgresql.asyncpg")
import sqlalchemy.dialects.postgresql.asyncpg as imported
print(behind_the_proxy is found is imported.dialect is postgresql.asyncpg.dialect)
"""
    assert run(source) == "True"


def test_entry_points_are_still_read() -> None:
    """A dialect that nobody registered is looked for among the installed ones, and its absence said as always."""
    source = """
import plungepool
from sqlalchemy import create_engine
from sqlalchemy.exc import NoSuchModuleError
try: create_engine("nosuch://")
except NoSuchModuleError as error: print("nosuch" in str(error))
"""
    assert run(source) == "True"


def test_sqlalchemy_that_was_imported_before_is_left_alone() -> None:
    """Whoever imports SQLAlchemy first has it with the real modules."""
    source = """
import sqlalchemy, plungepool, asyncio
import sqlalchemy.util.concurrency as concurrency
print(concurrency.asyncio is asyncio)
"""
    assert run(source) == "True"


def test_garbage_collection_goes_on_afterwards() -> None:
    """The collector is as it was before the import, running or not."""
    assert run("import plungepool, gc; print(gc.isenabled())") == "True"
    assert run("import gc; gc.disable(); import plungepool; print(gc.isenabled())") == "False"
