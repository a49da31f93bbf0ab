"""What a cold start imports from process start to first row, with IAM: a list, so that it cannot grow unseen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy

from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from plungepool_toolkit.postgres import Postgres

LIST = Path(__file__).with_name("cold_start_modules.txt")
FIRST_ROW = """
from plungepool import get_engine
from sqlalchemy import text

with get_engine().begin() as connection:
    assert connection.execute(text("SELECT 1")).scalar_one() == 1
import sys
print(*sorted(sys.modules), sep="\\n")
"""


def test_modules_on_the_way_to_the_first_row_are_those_of_the_list(postgres: Postgres) -> None:
    """
    Nothing is imported that the list does not hold; what must never be there is not.

    The standard library's own modules differ between versions, so they are held on the list's version only. To take
    a new module in, add it to the list, and measure what it costs with bench/cold_start.py.
    """
    with RdsProxy(postgres, endpoints=["localhost"]) as proxy:
        # -S: without site-packages' start-up files, which are this machine's and not Lambda's.
        path = ":".join(entry for entry in sys.path if entry)
        environ = proxy.variables("postgres") | {"PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-S", "-c", FIRST_ROW], capture_output=True, text=True, env=environ, timeout=60
        )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    unwanted = {
        "boto3",
        "botocore",
        "aws_lambda_powertools",
        "scramp",
        "asn1crypto",
        "asyncio",
        "importlib.metadata",
        "dateutil",
    }
    assert imported & unwanted == set()
    on_2_1 = sqlalchemy.__version__.startswith("2.1.")  # which the layer holds, and the list
    known = set(LIST.read_text(encoding="utf-8").split())
    others = set() if on_2_1 else {"sqlalchemy", "greenlet", "contextvars", "_contextvars"}
    if sys.version_info[:2] != (3, 13):
        others |= sys.stdlib_module_names
    imported = {name for name in imported if name.partition(".")[0] not in others}
    assert imported - known == set()
    if sys.version_info[:2] == (3, 13) and on_2_1:
        assert known - imported == set(), "the list holds what is no longer imported: take it out"
