"""The public types, held by the two checkers that users have: both read public_types.py, as strictly as they can."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import plungepool

ROOT = Path(__file__).parents[2]
TYPES = Path(__file__).with_name("public_types.py")


def mypy(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a file as a user does: with strict settings of their own, and the packages as installed ones."""
    command = [sys.executable, "-m", "mypy", "--config-file", "/dev/null", "--strict", "--no-incremental", path]
    return subprocess.run(command, capture_output=True, text=True, cwd=path.parent)


def pyright(path: Path, folder: Path) -> list[str]:
    """Return what pyright reports of a file."""
    options = {
        "include": [str(path)],
        "extraPaths": [str(ROOT / "layers" / "plungepool"), str(ROOT / "toolkit")],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        # mypy's comments stand beside pyright's, and mypy says which of them is not needed.
        "enableTypeIgnoreComments": False,
        # The fixtures of the file are pytest's to call.
        "reportUnusedExpression": "none",
    }
    project = folder / "pyrightconfig.json"
    project.write_text(json.dumps(options))
    command = [ROOT / ".venv-release/bin/basedpyright", "--outputjson", "-p", project, "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1, done.stdout
    return [f"{one['range']['start']['line'] + 1}: {one['message']}" for one in report["generalDiagnostics"]]


def changed(folder: Path) -> Path:
    """The same file, with one type that is not so and one error that is not expected."""
    path = folder / "changed.py"
    source = TYPES.read_text().replace("assert_type(engine, Engine)", "assert_type(engine, str)")
    path.write_text(source.replace("handler(1, None)  # type: ignore[arg-type] # pyright", "handler(1, None)  #"))
    assert path.read_text() != TYPES.read_text()
    return path


def test_public_names_are_all_there() -> None:
    """Whoever adds one says what it is."""
    read = {node.id for node in ast.walk(ast.parse(TYPES.read_text())) if isinstance(node, ast.Name)}
    assert set(plungepool.__all__) <= read


def test_mypy_sees_the_public_types(tmp_path: Path) -> None:
    """As they are, and would not if they were others."""
    done = mypy(TYPES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert mypy(changed(tmp_path)).stdout.count(": error:") == 2


def test_pyright_sees_the_public_types(tmp_path: Path) -> None:
    """As they are, and would not if they were others."""
    assert pyright(TYPES, tmp_path) == []
    assert len(pyright(changed(tmp_path), tmp_path)) == 2
