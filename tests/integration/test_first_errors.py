"""No import is the first of its module on the path of an error, a deadline or a shutdown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from plungepool_toolkit.postgres import Postgres


def test_no_error_is_the_first_to_import_a_module(postgres: Postgres) -> None:
    """
    An import takes its time with the transaction open, and one that is struck breaks whatever needs it afterwards.
    """
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("first_errors.py")),
            postgres.host,
            str(postgres.port),
            postgres.password,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout)
    assert len(imported) >= 19
    assert {path: modules for path, modules in imported.items() if modules} == {}


@pytest.mark.parametrize("nth", [1, 8, 20, 40])
def test_strike_during_an_import_of_the_first_error_breaks_no_later_one(postgres: Postgres, nth: int) -> None:
    """Whatever the first error would import, and however far it would come: the next errors are the database's."""
    program = """
import sys
from plungepool import Settings, build_engine
from sqlalchemy import exc, text
nth, host, port, password = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
engine = build_engine(Settings(host=host, port=port, user="postgres", password=password, tls="disable"))
with engine.connect() as connection:
    connection.execute(text("SELECT 1"))
class Striker:
    count = 0
    def find_spec(self, *arguments):
        self.count += 1
        if self.count == nth:
            raise TimeoutError("struck")
sys.meta_path.insert(0, Striker())
for _ in range(3):
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT 1 / 0"))
    except BaseException as error:
        print(type(error).__name__)
"""
    arguments = [sys.executable, "-c", program, str(nth), postgres.host, str(postgres.port), postgres.password]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["DataError"] * 3, done.stderr
