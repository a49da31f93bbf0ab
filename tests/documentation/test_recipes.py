"""docs/recipes.md: each block of code does on a real server what the page says of it."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aws_lambda_powertools.metrics.provider.base import reset_cold_start_flag_provider

from plungepool import dispose_engine
from plungepool.wire import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.postgres import Postgres

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- example: (\w+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(autouse=True)
def database(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    """A table to use, a role that does not own it, and the variables of a function that has that role."""
    postgres.execute(
        "CREATE ROLE recipes_app LOGIN; CREATE TABLE things (id bigint PRIMARY KEY, name text);"
        "INSERT INTO things VALUES (1, 'goggles'), (2, 'towel'); GRANT ALL ON things TO recipes_app"
    )
    monkeypatch.setenv("PLUNGEPOOL_URL", postgres.url(user="recipes_app"))
    monkeypatch.setenv("PLUNGEPOOL_PASSWORD", "not asked for")
    monkeypatch.setenv("PLUNGEPOOL_TLS", "disable")
    dispose_engine()
    yield postgres
    dispose_engine()
    postgres.execute("DROP TABLE things; DROP OWNED BY recipes_app; DROP ROLE recipes_app")


def run(name: str) -> dict[str, Any]:
    """Run a block of the page; return the names that it defines."""
    names: dict[str, Any] = {"__name__": name}
    exec(compile(BLOCKS[name], f"docs/recipes.md: {name}", "exec"), names)
    return names


def test_every_block_has_a_name() -> None:
    """No block of code stands on the page without a test that runs it."""
    assert len(BLOCKS) == PAGE.count("```python") + PAGE.count("```sql")
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in BLOCKS if f'"{name}"' not in tests] == []


def test_powertools(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Logger, Tracer and Metrics around a handler that answers from the database."""
    monkeypatch.setenv("POWERTOOLS_TRACE_DISABLED", "true")
    reset_cold_start_flag_provider()  # another test of this process may have had Powertools' one cold start
    context = SimpleNamespace(
        function_name="f",
        function_version="1",
        memory_limit_in_mb=128,
        invoked_function_arn="arn:aws:x",
        aws_request_id="1",
    )
    assert run("powertools")["handler"]({"id": 2}, context) == "towel"
    assert '"ColdStart"' in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "imports_drivers"), [("", True), ("auto_patch=False", False)])
def test_tracer_imports_what_it_patches(arguments: str, imports_drivers: bool) -> None:
    """The advice holds: by itself Tracer imports pg8000 and the ORM, and neither as the page says."""
    source = f"""
import plungepool, sys
from aws_lambda_powertools import Tracer
Tracer(service="s", {arguments})
print([name in sys.modules for name in ("pg8000", "sqlalchemy.orm")])
"""
    # As in Lambda: elsewhere Tracer turns itself off.
    environ = {**os.environ, "LAMBDA_TASK_ROOT": "/var/task", "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", source], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{[imports_drivers] * 2}\n"


def test_copy() -> None:
    """What is loaded is there, and comes back as it went in; a line that is wrong loads nothing."""
    copy = run("copy")
    assert copy["load"](["3,cap\n", "4,fins\n"]) == 2
    file = io.StringIO()
    copy["dump"](file)
    assert file.getvalue() == "1,goggles\n2,towel\n3,cap\n4,fins\n"
    with pytest.raises(DataError):
        copy["load"](io.StringIO("5,mask\nsix,snorkel\n"))
    again = io.StringIO()
    copy["dump"](again)
    assert again.getvalue() == file.getvalue()
