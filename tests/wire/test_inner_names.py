"""What the wire takes from inside pg8000 and SQLAlchemy is there, and a version that may lack it is shut out."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy

import plungepool
from plungepool import dialect

if TYPE_CHECKING:
    from collections.abc import Iterator


PACKAGE = Path(plungepool.__file__).parent
BORROWED_FROM = ("pg8000", "sqlalchemy")

# Methods and attributes of SQLAlchemy that the dialect replaces or reads, and that no import names.
HOOKS = {
    dialect.PGDialect_pg8000: (
        "_get_server_version_info",
        "_set_backslash_escapes",
        "_get_default_schema_name",
        "_native_inet_types",
        "_on_connect_isolation_level",
        "engine_created",
        "connection_characteristics",
        "reset_isolation_level",
        "get_isolation_level_values",
    ),
    dialect.PGExecutionContext: ("_init_compiled", "_init_ddl", "create_server_side_cursor"),
    dialect.PGInspector: ("_init_connection", "_init_engine"),
}


def borrowed_names() -> Iterator[Any]:
    """Every (file, module, name) that the package imports from the libraries below it, inside functions too."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in BORROWED_FROM:
                for alias in node.names:
                    yield path.relative_to(PACKAGE).as_posix(), node.module, alias.name


@pytest.mark.parametrize(("file", "module", "name"), sorted(set(borrowed_names())))
def test_borrowed_name_is_there(file: Any, module: Any, name: Any) -> None:
    """Each name imported from a library exists, those imported late included."""
    found = importlib.import_module(module)
    assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), (
        f"plungepool/{file} needs {module}.{name}, which this version of {module.split('.')[0]} does not have: "
        "mend the wire, or narrow the bounds in layers/plungepool/pyproject.toml"
    )


def test_scan_for_borrowed_names_finds_them() -> None:
    """The scan sees the late imports, so that the test above cannot pass for want of names."""
    assert {"pg8000", "sqlalchemy"} <= {module.split(".")[0] for _, module, _ in borrowed_names()}
    assert ("wire/values.py", "pg8000.types", "PGInterval") in set(borrowed_names())


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in HOOKS.items() for name in names])
def test_hook_of_sqlalchemy_is_there(owner: Any, name: Any) -> None:
    """Each hook that the dialect replaces or reads is still called so."""
    engine = sqlalchemy.create_engine("postgresql+pg8000://")
    assert hasattr(owner, name) or hasattr(engine.dialect, name), (
        f"SQLAlchemy {sqlalchemy.__version__} has no {owner.__name__}.{name} any more: plungepool/dialect.py relies "
        "on it"
    )


@pytest.mark.parametrize("library", ["pg8000", "sqlalchemy"])
def test_versions_are_bounded(library: str) -> None:
    """A version nobody has tried is not installed by itself."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    (bounds,) = [text for text in project["dependencies"] if re.match(rf"{library}\b", text)]
    assert ">=" in bounds
    assert re.search(r"<\d", bounds)
