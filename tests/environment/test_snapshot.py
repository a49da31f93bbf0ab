"""SnapStart: what an engine holds must not be in the snapshot, which many environments are restored from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from plungepool_toolkit.environment import Environment
    from plungepool_toolkit.fixtures import Database

# A function that uses its database while it is initialised, as those do that warm something up.
WARM = """
from plungepool import get_engine
from sqlalchemy import text

engine = get_engine()
with engine.connect() as connection:
    at_init = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

def handler(event, context):
    with engine.connect() as connection:
        now = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    return {"at_init": at_init, "now": now}
"""
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'warm:%'"


def warm(tmp_path: Path) -> Path:
    """Return the folder of the function."""
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "app.py").write_text(WARM)
    return tmp_path / "warm"


def test_no_connection_is_in_a_snapshot(
    database: Database, lambda_environment: Callable[..., Environment], tmp_path: Path
) -> None:
    """What was opened at init is closed before the snapshot; the restored environment opens its own, and keeps it."""
    environment = lambda_environment(warm(tmp_path), variables=database.variables(), snap_start=True)
    assert database.execute(SESSIONS) == [[0]]
    environment.restore()
    assert database.execute(SESSIONS) == [[0]]
    first, second = environment.invoke({}), environment.invoke({})
    assert first.error is None
    assert first.payload["now"] != first.payload["at_init"]
    assert second.payload["now"] == first.payload["now"]
    assert database.execute(SESSIONS) == [[1]]


def test_without_snapshots_the_connection_of_init_is_kept(
    database: Database, lambda_environment: Callable[..., Environment], tmp_path: Path
) -> None:
    """On demand there is no snapshot, so the first invocation goes on with what init opened."""
    environment = lambda_environment(warm(tmp_path), variables=database.variables())
    assert database.execute(SESSIONS) == [[1]]
    invocation = environment.invoke({})
    assert invocation.payload["now"] == invocation.payload["at_init"]
