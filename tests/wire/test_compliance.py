"""SQLAlchemy's own compliance suite for dialects, against `postgresql+plungepool`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
COMPLIANCE = Path(__file__).parent / "compliance"

# What PostgreSQL does not have, by any driver.
SKIPPED = {
    "test_string_length_reflection[NCHAR-_exclusions_04]": "no NCHAR type",
    "test_string_length_reflection[NVARCHAR-_exclusions_03]": "no NVARCHAR type",
    "test_fetch_offset_percent": "no FETCH FIRST … PERCENT",
    "test_fetch_offset_percent_ties": "no FETCH FIRST … PERCENT",
    "test_simple_fetch_percent": "no FETCH FIRST … PERCENT",
    "test_simple_fetch_percent_ties": "no FETCH FIRST … PERCENT",
    "test_native_lastrowid_autoinc": "no lastrowid: RETURNING is how a new key is learnt",
    "test_get_foreign_keys_remote_repeated": "a foreign key may name a column once only",
    "test_reflect_constraint_remote_repeated": "a foreign key may name a column once only",
}


def requirements() -> Any:
    spec = importlib.util.spec_from_file_location("compliance_requirements", COMPLIANCE / "compliance_requirements.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_more_is_excluded_than_for_the_stock_dialect() -> None:
    """Every exclusion is one that SQLAlchemy's own pg8000 dialect has too, and says why."""
    assert set(requirements().EXCLUSIONS) <= requirements().EXCLUDED_FOR_PG8000
    assert all(requirements().EXCLUSIONS.values())


def run_suite(postgres: Postgres, report: Path, python: str, *options: str) -> ElementTree.Element:
    """Run SQLAlchemy's suite, in a pytest process of its own since its plugin takes over the whole process."""
    postgres.execute("DROP DATABASE IF EXISTS compliance")
    postgres.execute("CREATE DATABASE compliance")
    for schema in ("test_schema", "test_schema_2"):
        postgres.execute(f"CREATE SCHEMA {schema}", database="compliance")
    url = postgres.url(database="compliance").replace("postgresql://", "postgresql+plungepool://")
    run = subprocess.run(
        [
            python,
            "-m",
            "pytest",
            "-q",
            "-c",
            "setup.cfg",
            "--rootdir",
            ".",
            "--dburi",
            url,
            "--junitxml",
            report,
            *options,
        ],
        cwd=COMPLIANCE,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert report.exists(), run.stdout + run.stderr
    suite = ElementTree.parse(report).find("testsuite")
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    return suite


def skipped(suite: ElementTree.Element) -> set[str]:
    return {case.get("name") for case in suite.iter("testcase") if case.find("skipped") is not None}


def test_sqlalchemy_compliance_suite_passes(postgres: Postgres, tmp_path: Path) -> None:
    """All of SQLAlchemy's suite passes, by the SQLAlchemy that is installed here."""
    suite = run_suite(postgres, tmp_path / "report.xml", sys.executable)
    if requirements().IS_2_0:
        known = {"table_options", *(name.partition("[")[0] for name in SKIPPED)}
        assert [name for name in skipped(suite) if not any(one in name for one in known)] == []
        assert int(suite.get("tests")) - len(skipped(suite)) >= 1579
    else:
        assert skipped(suite) == set(SKIPPED)
        assert int(suite.get("tests")) - len(SKIPPED) >= 1878


def test_part_of_the_suite_passes_on_sqlalchemy_2_0(postgres: Postgres, tmp_path: Path) -> None:
    """The oldest line that is supported: statements, types, transactions, cursors; all of it: make test-versions."""
    python = ROOT / ".venv-sqlalchemy-2.0" / "bin" / "python"
    assert python.exists(), "run `make .venv-sqlalchemy-2.0/.ready`"
    chosen = "Insert or Cursors or Isolation or Array or Numeric or Uuid"
    suite = run_suite(postgres, tmp_path / "report.xml", str(python), "-k", chosen)
    assert int(suite.get("tests")) - len(skipped(suite)) > 50


def test_start_of_a_process_is_as_cheap_on_sqlalchemy_2_0() -> None:
    """Nothing of asyncio, nor of what else is put off, is imported there either."""
    python = ROOT / ".venv-sqlalchemy-2.0" / "bin" / "python"
    files = ["tests/unit/test_cold_start.py", "tests/wire/test_inner_names.py"]
    run = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
