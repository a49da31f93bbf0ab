"""The pytest fixtures, as the documentation shows them to users."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from plungepool_toolkit.environment import Invocation

DOCUMENT = (Path(__file__).parents[2] / "docs" / "local.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", DOCUMENT, re.DOTALL))


@pytest.fixture
def project(tmp_path: Path) -> Any:
    """A user's project that holds the files of docs/local.md."""
    for name, source in EXAMPLES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    return tmp_path


def test_the_documented_test_passes(machine: Any, project: Any) -> None:
    """The functions and the tests of docs/local.md work as they stand there, with nothing but the installed plugin."""
    result = machine.run("-m", "pytest", "-q", "-p", "no:cacheprovider", project, cwd=project)
    assert "2 passed" in result.stdout, result.stdout + result.stderr
    assert machine.left_behind(60) == []


def test_the_documented_script_runs(machine: Any, project: Any) -> None:
    """The same as plain classes prints the first visit."""
    result = machine.run(project / "run.py", cwd=project)
    assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr
    assert machine.left_behind(60) == []


def test_a_failing_test_leaves_nothing(machine: Any, project: Any) -> None:
    """Fixtures are torn down after a failure too, with a session still in the database."""
    (project / "test_count_visits.py").write_text(
        EXAMPLES["test_count_visits.py"] + "    assert database.execute('SELECT 1') == []\n"
    )
    result = machine.run("-m", "pytest", "-q", "-p", "no:cacheprovider", project, cwd=project)
    assert "1 failed" in result.stdout, result.stdout + result.stderr
    assert "error" not in result.stdout.splitlines()[-1]
    assert machine.left_behind(60) == []


def test_every_fixture_is_documented(machine: Any, project: Any) -> None:
    """The table of docs/local.md names the plugin's fixtures, all of them."""
    listed = machine.run("-m", "pytest", "--fixtures", "-q", project, cwd=project).stdout
    found = {
        name
        for section in re.split(r"\n-{5,} ", listed)
        if section.startswith("fixtures defined from plungepool_toolkit.")
        for name in re.findall(r"^(\w+)(?: \[\w+ scope\])? --", section, re.MULTILINE)
    }
    assert found
    assert found == set(re.findall(r"^\| `(\w+)` \| (?:session|test) \|", DOCUMENT, re.MULTILINE))


def test_every_part_of_an_invocation_is_documented() -> None:
    """The table of what an invocation gives names the fields of `Invocation`, all of them."""
    table = DOCUMENT.split("## What an invocation gives")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {field.name for field in fields(Invocation)}
