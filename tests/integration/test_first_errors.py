"""No import is the first of its module on the path of an error, a deadline or a shutdown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plungepool_toolkit.postgres import Postgres


def test_no_error_is_the_first_to_import_a_module(postgres: Postgres) -> None:
    """An import takes its time with the transaction open, and one that is struck breaks whatever needs it afterwards."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("first_errors.py")), postgres.host, str(postgres.port)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout)
    assert len(imported) >= 19
    assert {path: modules for path, modules in imported.items() if modules} == {}


def test_strikes_during_the_first_error_break_no_later_one(postgres: Postgres) -> None:
    """Twenty processes are struck twice within their first database error: the next error is the database's again."""
    program = """
import signal, sys
from plungepool import Settings, build_engine
from sqlalchemy import exc, text
delay, host, port = float(sys.argv[1]), sys.argv[2], int(sys.argv[3])
engine = build_engine(Settings(host=host, port=port, user="postgres", password="unused", tls="disable"))
with engine.connect() as connection:
    connection.execute(text("SELECT 1"))
def ring(number, frame):
    raise TimeoutError
signal.signal(signal.SIGALRM, ring)
def fail():
    with engine.begin() as connection:
        connection.execute(text("SELECT 1 / 0"))
for _ in range(2):
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        fail()
    except (TimeoutError, exc.SQLAlchemyError):
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
try:
    fail()
except exc.DataError as error:
    print(error.orig.sqlstate)
"""
    arguments = [sys.executable, "-W", "ignore", "-c", program]
    running = [
        subprocess.Popen(
            [*arguments, str(0.0002 * (1 + number)), postgres.host, str(postgres.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(20)
    ]
    outputs = [process.communicate(timeout=60) for process in running]
    assert [output.strip() for output, _ in outputs] == ["22012"] * 20, outputs
