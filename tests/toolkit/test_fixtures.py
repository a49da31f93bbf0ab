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


WRITERS = """
import pytest

names = []
LEAVES = {
    "a table": "CREATE TABLE left_behind ()",
    "a schema": "CREATE SCHEMA left_behind",
    "a sequence's value": "CREATE SEQUENCE left_behind; SELECT nextval('left_behind')",
    "a large object": "SELECT lo_create(0)",
    "a setting": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''5MB''', current_database()); END $$",
    "a transaction that is open": "BEGIN; CREATE TABLE left_behind ()",
}

@pytest.mark.parametrize("sql", LEAVES.values(), ids=LEAVES)
def test_writes(database, sql, request):
    session = database.server.session(database=database.name)
    session.__enter__()(sql)
    request.config.left = session
    names.append(database.name)

def test_reads(database):
    assert database.execute("SELECT 1") == [[1]]
    names.append(database.name)

def test_leaves_a_session(database, request):
    request.config.reader = database.server.session(database=database.name)
    request.config.reader.__enter__()("SELECT pg_advisory_lock(1)")
    names.append(database.name)

def test_each_had_an_empty_one(database):
    assert database.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") == [[1]]
    names.append(database.name)
    *writers, one, two, three = names
    assert one == two == three
    assert len({*writers, one}) == len(writers) + 1
    assert database.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test%'") == [[database.name]]
"""


def test_a_database_serves_again_where_nothing_was_written(machine: Any, tmp_path: Path) -> None:
    """Whatever a test leaves in its database, also with a session still open, the next one finds an empty one."""
    (tmp_path / "test_writers.py").write_text(WRITERS)
    result = machine.run("-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path)
    assert "9 passed" in result.stdout, result.stdout + result.stderr
    assert machine.left_behind(60) == []


def test_no_database_stays_in_data_that_is_kept(machine: Any, tmp_path: Path) -> None:
    """On a server of one's own whose data lies in a folder of one's own."""
    (tmp_path / "test_kept.py").write_text(
        "import pytest\n"
        "from pathlib import Path\n"
        "from plungepool_toolkit.postgres import Postgres\n\n"
        "@pytest.fixture(scope='module')\n"
        f"def postgres():\n    with Postgres(data_folder=Path({str(machine.folder / 'data')!r})) as server:\n"
        "        yield server\n"
        "        assert server.execute(\"SELECT datname FROM pg_database WHERE datname LIKE 'test%'\") == []\n\n"
        "def test_reads(database):\n    assert database.execute('SELECT 1') == [[1]]\n"
    )
    result = machine.run("-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path)
    assert "1 passed" in result.stdout, result.stdout + result.stderr
    assert "error" not in result.stdout.splitlines()[-1]
