"""Fork and snapshot by their hooks: with a pool of one, and with a secret that was fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from elsewhere import in_a_child
from sqlalchemy import text

from plungepool import lifecycle

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from plungepool_toolkit.postgres import Postgres

PID = text("SELECT pg_backend_pid()")


def test_forked_child_does_not_use_the_parents_idle_connection(make_engine: Callable[..., Engine]) -> None:
    """With one connection, idle at the fork, the child opens its own, and closing that leaves the parent's alive."""
    engine = make_engine(pool_size=1)
    with engine.connect() as connection:
        parents = connection.execute(PID).scalar_one()

    def connect() -> int:
        with engine.connect() as connection:
            own = connection.execute(PID).scalar_one()
        engine.dispose()
        return int(own)

    childs = in_a_child(connect)
    assert childs.isdigit(), childs
    assert int(childs) != parents
    with engine.connect() as connection:
        assert connection.execute(PID).scalar_one() == parents


def test_forked_child_connects_while_the_parent_holds_the_only_connection(make_engine: Callable[..., Engine]) -> None:
    """What the parent had checked out at the fork takes no place of the child's; its transaction goes on."""
    engine = make_engine(pool_size=1, checkout_timeout_s=0.2)
    with engine.begin() as held:
        parents = held.execute(PID).scalar_one()

        def connect() -> int:
            with engine.connect() as connection:
                return int(connection.execute(PID).scalar_one())

        childs = in_a_child(connect)
        assert childs.isdigit(), childs
        assert int(childs) != parents
        assert held.execute(PID).scalar_one() == parents


def test_before_a_snapshot_connections_are_closed_and_secrets_dropped(
    make_engine: Callable[..., Engine], postgres: Postgres
) -> None:
    """What the hook leaves of each engine: no session on the server, and nothing that was fetched."""
    engine = make_engine(pool_size=1)
    with engine.connect() as connection:
        pid = connection.execute(PID).scalar_one()
    forgotten: list[str] = []
    lifecycle.follow(engine, lambda: forgotten.append("secret"))
    lifecycle._close_all()
    assert forgotten == ["secret"]
    assert engine.pool.checkedin() == 0
    # A backend leaves a moment after its socket was closed.
    postgres.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
    with engine.connect() as connection:
        assert connection.execute(PID).scalar_one() != pid


def test_an_engine_that_nobody_holds_is_not_kept(make_engine: Callable[..., Engine]) -> None:
    """Following an engine keeps no reference to it."""
    import gc
    import weakref

    from plungepool import Settings, build_engine

    gone = weakref.ref(build_engine(Settings(host="db.invalid", user="app", password="unused")))
    gc.collect()
    assert gone() is None


def test_hook_is_registered_with_the_runtime_where_there_are_snapshots() -> None:
    """With SnapStart the import registers exactly one hook; on demand it imports nothing of the runtime's."""
    program = (
        "import sys, snapshot_restore_py\n"
        "hooks = []\n"
        "snapshot_restore_py.register_before_snapshot = lambda function, *_, **__: hooks.append(function.__name__)\n"
        "import plungepool\n"
        "print(hooks)\n"
    )
    for kind, expected in (("snap-start", "['_close_all']"), ("on-demand", "[]")):
        environ = os.environ | {"AWS_LAMBDA_INITIALIZATION_TYPE": kind}
        result = subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60
        )
        assert (result.stdout.strip(), result.stderr) == (expected, "")
