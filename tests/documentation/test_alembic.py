"""docs/alembic.md: what the page adds to prepare_database works in the real one."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from pages import ROOT, Page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from plungepool_toolkit.fixtures import Database

POWERTOOLS = {
    "POWERTOOLS_METRICS_NAMESPACE": "Shop",
    "POWERTOOLS_SERVICE_NAME": "shop",
    "POWERTOOLS_TRACE_DISABLED": "true",
}


@pytest.fixture
def function(tmp_path: Path) -> Path:
    """A copy of prepare_database, with the page's files and its patch."""
    folder = tmp_path / "prepare_database"
    shutil.copytree(ROOT / "functions/prepare_database", folder)
    page = Page("alembic")
    for name in page.files:
        if name.startswith("migrat"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(page.files[name], encoding="utf-8")
    patch = ["git", "apply", "--unidiff-zero", "-p0", "-"]
    subprocess.run(patch, cwd=folder, input=page.files["prepare_database.patch"], text=True, check=True)
    return folder


def test_alembic_within_prepare_database(
    function: Path, database: Database, lambda_environment: Callable[..., Any]
) -> None:
    """Role, tables and Alembic's migrations are there, twice with the same result."""
    variables = database.variables() | {"APP_ROLE_NAME": "alembic_app"}
    environment = lambda_environment(function, variables=variables | POWERTOOLS, timeout_s=60)
    for _ in range(2):
        assert environment.invoke({}).error is None
    assert database.execute("SELECT version_num FROM shop.alembic_version") == [["0001"]]
    assert database.execute("SELECT to_regclass('shop.reviews')::text") == [["shop.reviews"]]


def test_a_migration_that_fails_leaves_nothing_of_prepare_database(
    function: Path, database: Database, lambda_environment: Callable[..., Any]
) -> None:
    """All of it is one transaction: neither the role nor a table of the shop remains."""
    broken = function / "migrations/versions/0001_reviews.py"
    broken.write_text(broken.read_text(encoding="utf-8").replace('"stars BETWEEN', '"nonsense BETWEEN'))
    variables = database.variables() | {"APP_ROLE_NAME": "alembic_broken"}
    invocation = lambda_environment(function, variables=variables | POWERTOOLS, timeout_s=60).invoke({})
    assert "nonsense" in invocation.error["errorMessage"]
    assert database.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'shop'") == [[0]]
    assert database.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'alembic_broken'") == [[0]]
