"""A function that brings a SQLAlchemy or a pg8000 of its own beside the layer's: real copies, before it on the path."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
OLDER = next((ROOT / ".venv-sqlalchemy-2.0").glob("lib/python3.*/site-packages"), None)
LAYER = Path(pytest.__file__).parents[1]

ANSWER = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import plungepool
unwanted = {"asyncio", "importlib.metadata", "pg8000"} & set(sys.modules)
assert not unwanted, unwanted
from sqlalchemy import __file__, __version__, text
with plungepool.get_engine().begin() as connection:
    print(__version__, __file__, connection.execute(text("SELECT 'answered'")).scalar_one())
"""


def bring(function: Path, site: Path, name: str, version: str | None = None, *, metadata: bool = True) -> str:
    """Copy an installed package among a function's own, as the version that it is or as another; return which."""
    (information,) = [path for path in site.glob("*.dist-info") if path.name.lower().startswith(f"{name}-")]
    installed = information.name.removesuffix(".dist-info").rpartition("-")[2]
    shutil.copytree(site / name, function / name, ignore=shutil.ignore_patterns("__pycache__", "testing"))
    if metadata:
        shutil.copytree(information, function / f"{name}-{version or installed}.dist-info")
    if version and name == "sqlalchemy":
        path = function / name / "__init__.py"
        path.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', path.read_text()))
    return version or installed


def answer(function: Path, postgres: Postgres) -> subprocess.CompletedProcess[str]:
    """Have a process whose path is Lambda's, the function's packages first, ask the database something."""
    variables = {
        "PLUNGEPOOL_URL": postgres.url(),
        "PLUNGEPOOL_PASSWORD": postgres.password or "",
        "PLUNGEPOOL_TLS": "disable",
        "PYTHONPATH": str(LAYER),
    }
    return subprocess.run(
        [sys.executable, "-S", "-c", ANSWER, function, ROOT / "layers" / "plungepool"],
        capture_output=True,
        text=True,
        timeout=120,
        env=variables,
    )


def test_function_may_bring_sqlalchemy_2_0(postgres: Postgres, tmp_path: Path) -> None:
    """Then it is what answers, beside a layer that holds 2.1, and costs no import more."""
    assert OLDER is not None, "run `make .venv-sqlalchemy-2.0/.ready`"
    version = bring(tmp_path, OLDER, "sqlalchemy")
    assert version.startswith("2.0.")
    done = answer(tmp_path, postgres)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [version, str(tmp_path / "sqlalchemy" / "__init__.py"), "answered"]


@pytest.mark.parametrize(
    ("name", "version", "metadata"),
    [
        ("sqlalchemy", "1.4.54", True),
        ("sqlalchemy", "1.4.54", False),
        ("sqlalchemy", "2.2.0", True),
        ("pg8000", "1.30.5", True),
        ("pg8000", "1.32.0", True),
    ],
)
def test_other_version_is_one_clear_sentence(
    postgres: Postgres, tmp_path: Path, name: str, version: str, metadata: bool
) -> None:
    """What is needed, what was found, where, and what to do; whether the copy's metadata came along or not."""
    bring(tmp_path, LAYER, name, version, metadata=metadata)
    done = answer(tmp_path, postgres)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"ImportError: plungepool requires (?P<wanted>{name}>=[\d.]+,<[\d.]+) but found {version} in {tmp_path}\S*: "
        rf"a function's own packages take precedence over a layer's; remove {name} from the function's requirements, "
        r"or require (?P=wanted) there",
        last,
    ), last
