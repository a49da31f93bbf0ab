"""The end of an ordinary process: connections say goodbye, whatever ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from elsewhere import wait_until

from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGINNING = """
import sys, threading
from plungepool import get_engine, lifecycle
from sqlalchemy import text

lifecycle._GOODBYE_S = 50.0  # for a busy machine
engine = get_engine()
connection = engine.connect()
print(connection.execute(text("SELECT pg_backend_pid()")).scalar_one(), flush=True)
"""
ENDINGS = {
    "idle": "connection.close()",
    "within a transaction": "",
    "exit": "sys.exit(3)",
    "exception": "raise ValueError('uncaught')",
    # A daemon thread is not waited for: its statement would run on, without a client.
    "in the middle of a statement": """
def at_work():
    connection.execute(text("SELECT pg_sleep(600)"))

threading.Thread(target=at_work, daemon=True).start()
SLEEPS = text("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sl%' AND state = 'active'")
with engine.connect() as watching:
    while not watching.execute(SLEEPS).all():
        watching.rollback()
""",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that tells each end of a session, and also one that is not an error."""
    with Postgres({"log_min_messages": "debug1", "log_disconnections": "on", "log_line_prefix": "[%p] "}) as running:
        yield running


@pytest.mark.parametrize("ending", ENDINGS)
def test_connections_say_goodbye_when_the_interpreter_ends(server: Postgres, ending: str) -> None:
    """The server sees no stream that ends without a word, and no statement runs on."""
    environ = os.environ | {"PLUNGEPOOL_URL": server.url(), "PLUNGEPOOL_TLS": "disable", "PLUNGEPOOL_POOL_SIZE": "2"}
    ended = subprocess.run(
        [sys.executable, "-c", BEGINNING + ENDINGS[ending]], env=environ, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == {"exit": 3, "exception": 1}.get(ending, 0), ended.stderr
    pid = ended.stdout.strip()
    assert pid.isdigit(), ended.stderr

    def lines() -> str:
        return "\n".join(line for line in server.log.splitlines() if line.startswith(f"[{pid}]"))

    wait_until(lambda: "disconnection:" in lines(), f"session {pid} has not ended")
    assert "unexpected EOF" not in lines()
