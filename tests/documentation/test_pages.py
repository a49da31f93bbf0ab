"""The pages with one task each: every block is a file, or what one prints, and the tests that they show pass."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from pages import ROOT, Page

if TYPE_CHECKING:
    from pathlib import Path

# Pages that hold a small project with its tests: for one task each, and others.
TASKS = [
    *("quick-start", "iam", "managed-instances", "dsql", "fastapi", "orm", "alembic", "pandas"),
    *("from-psycopg", "from-pg8000", "how-it-works"),
]
PROJECTS = [*TASKS, "security"]
# Pages whose last section is a project; their other blocks have tests of their own.
TESTING = ["exactly-once", "databases", "adaptive", "snapstart", "invocation", "shutdown"]
SECTIONS = ["Getting started", "Advanced", "Testing your code"]


@pytest.mark.parametrize("name", PROJECTS)
def test_every_block_is_a_file(name: str) -> None:
    """No block of code stands on the page that no test runs or compares."""
    assert Page(name).unnamed() == []


@pytest.mark.parametrize("name", TASKS)
def test_the_page_has_the_sections_of_every_page(name: str) -> None:
    """Whoever has read one page knows where to look on the next."""
    assert [heading for heading in Page(name).headings() if heading in SECTIONS] == SECTIONS


def test_every_page_about_code_says_how_to_test_it() -> None:
    """Below the same heading everywhere."""
    for name in [*TASKS, *TESTING, "tenants", "security"]:
        assert "Testing your code" in Page(name).headings(), name


@pytest.mark.parametrize("name", [*PROJECTS, *TESTING, "budget"])
def test_the_page_is_true(name: str, tmp_path: Path) -> None:
    """All tests of the page pass in a project that holds its files and nothing else."""
    page = Page(name)
    result = page.run_tests(tmp_path)
    passed = re.search(r"^(\d+) passed in ", result.stdout, re.MULTILINE)
    assert passed is not None, result.stdout + result.stderr
    assert int(passed[1]) >= page.number_of_tests()


# The quick start's own commands are run by test_quick_start.py.
PRINTS = [(name, file) for name in PROJECTS if name != "quick-start" for file in Page(name).printed]


@pytest.mark.parametrize(("name", "file"), PRINTS)
def test_what_the_page_prints_is_printed(name: str, file: str, tmp_path: Path) -> None:
    """What stands below a script is what it prints, to the letter."""
    result = Page(name).run_file(file, tmp_path)
    assert result.stdout.strip() == Page(name).printed[file].strip(), result.stderr


def test_the_tables_of_once_are_those_of_the_migration() -> None:
    """Whoever has only the page makes the same tables as prepare_database."""
    migration = ROOT / "functions" / "prepare_database" / "migrations" / "003_exactly_once.sql"
    lines = migration.read_text(encoding="utf-8").splitlines()
    statements = "\n".join(line for line in lines if not line.startswith("--"))
    assert Page("exactly-once").files["once.sql"].strip() == statements.strip()
