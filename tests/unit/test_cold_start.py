"""How SQLAlchemy is imported: cheaper, and without a difference that anybody could see."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from plungepool import cold_start


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
import asyncio, importlib.metadata
assert concurrency.asyncio.CancelledError is asyncio.CancelledError
assert concurrency.asyncio.TimeoutError is asyncio.TimeoutError
assert concurrency.asyncio.get_running_loop is asyncio.get_running_loop
async def nothing(): pass
coroutine = nothing()
if hasattr(concurrency, "iscoroutine"):  # SQLAlchemy 2.1
    assert concurrency.iscoroutine(coroutine) and not concurrency.iscoroutine(nothing)
else:
    assert concurrency._AsyncUtil().run(lambda: coroutine) is None
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


def test_tables_of_the_catalogue_are_made_when_one_is_asked_for() -> None:
    """
    All of them, the same for all threads that ask at once; whoever looks at them afterwards sees SQLAlchemy's own.
    """
    source = """
import threading
import plungepool
from sqlalchemy import Column, MetaData, Table
from sqlalchemy.dialects.postgresql import base, pg8000, pg_catalog
assert "pg_class" not in vars(pg_catalog) and pg8000.OIDVECTOR is pg_catalog.OIDVECTOR
assert (pg_catalog.Column, pg_catalog.MetaData, pg_catalog.Table) == (Column, MetaData, Table)
barrier, seen = threading.Barrier(16), []
def ask():
    barrier.wait()
    seen.append((pg_catalog.pg_class, pg_catalog.pg_index, pg_catalog.pg_catalog_meta))
threads = [threading.Thread(target=ask) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(seen) == 16 and len(set(map(id, (pair[0] for pair in seen)))) == 1
table, index, metadata = seen[0]
assert type(table) is Table and table is base.pg_catalog.pg_class and table.metadata is index.metadata is metadata
assert type(index.c.indclass.type) is pg_catalog.OIDVECTOR
try: pg_catalog.nosuch
except AttributeError as error: print(error)
"""
    assert run(source) == "module 'sqlalchemy.dialects.postgresql.pg_catalog' has no attribute 'nosuch'"


def test_tables_of_the_catalogue_are_those_that_sqlalchemy_makes_itself() -> None:
    """Each column of each table, with its type and what SQLAlchemy notes beside it, is as without this package."""
    describe = """
from sqlalchemy.dialects.postgresql import pg_catalog
pg_catalog.pg_class
for name, value in sorted(vars(pg_catalog).items()):
    if name.startswith("_"):
        continue
    if isinstance(value, pg_catalog.Table):
        print(name, [(column.name, repr(column.type), column.info) for column in value.columns])
    else:
        print(name, type(value))
print(sorted(pg_catalog.pg_catalog_meta.tables), pg_catalog.pg_catalog_meta.schema)
"""
    assert run("import plungepool\n" + describe) == run(describe)


def test_making_the_catalogue_can_be_interrupted_and_is_done_again() -> None:
    """An exception at any moment, such as a deadline's, leaves nothing half made."""
    source = """
import sys
import plungepool, sqlalchemy
from sqlalchemy.dialects.postgresql import pg_catalog
real, calls = sqlalchemy.Table, 0
def interrupted(*arguments, **keywords):
    global calls
    calls += 1
    if calls == 5: raise KeyboardInterrupt
    return real(*arguments, **keywords)
sqlalchemy.Table = interrupted
try: pg_catalog.pg_class
except KeyboardInterrupt: assert "pg_class" not in vars(pg_catalog)
print(len(pg_catalog.pg_class.metadata.tables) > 10, calls > 15)
"""
    assert run(source) == "True True"


def test_catalogue_that_does_more_with_its_tables_is_executed_as_it_is(tmp_path: Path) -> None:
    """A later SQLAlchemy may use one while it is imported; then nothing is put off."""
    source = f"""
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
import plungepool
from plungepool import cold_start
path = {str(tmp_path / "catalogue.py")!r}
loader = cold_start._CatalogueLoader("sqlalchemy.catalogue", path)
module = ModuleType("sqlalchemy.catalogue")
module.__package__ = "sqlalchemy"
loader.exec_module(module)
print(type(module) is ModuleType, module.oid.name)
"""
    (tmp_path / "catalogue.py").write_text(
        "from . import Column\nfrom . import MetaData\nfrom . import Integer\nfrom . import Table\n"
        "table = Table('name', MetaData(), Column('oid', Integer))\noid = table.c.oid\n"
    )
    assert run(source) == "True oid"


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


def bundle(folder: Path, name: str, version: str, *, metadata: bool = True) -> None:
    """Make a package of a version, as a function may bring it."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"__version__ = {version!r}")
    if metadata:
        (folder / f"{name}-{version}.dist-info").mkdir()


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("sqlalchemy", "1.4.54"),
        ("sqlalchemy", "2.0.39"),
        ("sqlalchemy", "2.2.0"),
        ("pg8000", "1.31.4"),
        ("pg8000", "1.32.0"),
    ],
)
def test_another_version_in_the_functions_own_packages_is_refused(tmp_path: Path, name: str, version: str) -> None:
    """They come before the layer's on the path: the error names what was found where, and what to do."""
    bundle(tmp_path, name, version)
    source = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import plungepool"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (last,) = done.stderr.splitlines()[-1:]
    assert last.startswith(f"ImportError: plungepool requires {name}>=")
    assert f"but found {version} in {tmp_path}" in last


def test_version_that_fits_is_taken_wherever_it_lies(tmp_path: Path) -> None:
    """A function may bring a driver of its own that this package was made for."""
    bundle(tmp_path, "pg8000", "1.31.9")
    assert run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import plungepool; print('taken')") == "taken"


def test_version_without_metadata_is_read_from_the_package() -> None:
    """Bundles are slimmed by leaving the metadata out; SQLAlchemy says its version itself, also where it came first."""
    source = """
import sqlalchemy
sqlalchemy.__version__ = "2.0.39"
try:
    import plungepool
except ImportError as error:
    print(error)
"""
    assert "requires sqlalchemy>=2.0.40,<2.2 but found 2.0.39" in run(source)


def test_versions_are_those_that_are_declared() -> None:
    """What is checked at import is what pyproject.toml and the layer's requirements ask for."""
    layer = Path(__file__).parents[2] / "layers" / "plungepool"
    declared = tomllib.loads((layer / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = {
        f"{name}>={'.'.join(map(str, lowest))},<{'.'.join(map(str, below))}"
        for name, (lowest, below) in cold_start._MADE_FOR.items()
    }
    assert wanted == set(declared) - {"python-dateutil<3"}
    assert wanted <= set((layer / "requirements.in").read_text().splitlines())


@pytest.mark.parametrize("before", [True, False])
def test_xrays_patch_of_pg8000_does_not_import_it(before: bool) -> None:
    """In Lambda it waits for whoever imports pg8000, and then is what it would have been; elsewhere nothing is done."""
    program = f"""
import os, sys
os.environ["AWS_LAMBDA_FUNCTION_NAME"] = "orders"
before = {before}
if before:
    import plungepool
    assert "aws_xray_sdk" not in sys.modules
from aws_xray_sdk.core import patch
patch(["pg8000"])
imported = "pg8000" in sys.modules
import plungepool
import pg8000
import wrapt
from aws_xray_sdk.ext.pg8000 import unpatch
assert type(sys.modules["aws_xray_sdk.ext.pg8000"]) is type(sys)
print(imported, isinstance(pg8000.connect, wrapt.FunctionWrapper))
"""
    assert run(program).split() == [str(not before), "True"]
    assert run("import plungepool, sys; print('aws_xray_sdk.ext.pg8000' in sys.modules)") == "False"
