"""A database that refuses for a moment: full, restarting, not there yet. What may pass is waited for, on every pool."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from plungepool import Settings, Unavailable, build_engine, guard_invocation
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 6


@pytest.fixture(scope="module")
def small() -> Iterator[Postgres]:
    """A server whose role `app` may have six connections, and `closed` none; ten are left to the others."""
    with Postgres({"max_connections": 16, "superuser_reserved_connections": 3}) as server:
        server.execute(f"CREATE ROLE app LOGIN CONNECTION LIMIT {LIMIT}; CREATE ROLE closed LOGIN CONNECTION LIMIT 0")
        server.execute("CREATE ROLE locked")
        server.execute("CREATE DATABASE shut ALLOW_CONNECTIONS false")
        yield server


def settings_for(server: Postgres, **changes: Any) -> Settings:
    """Settings of the role `app`; the server asks it for no password."""
    given: dict[str, Any] = {"host": server.host, "port": server.port, "user": "app", "password": "-", "tls": "disable"}
    return Settings(**(given | changes))


def in_threads(count: int, work: Callable[[], object]) -> list[BaseException]:
    """Run it in so many threads at once; return what they raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    return raised


@pytest.mark.parametrize("pool", ["tiny", "null"])
def test_a_spike_above_the_limit_is_answered(small: Postgres, pool: str, caplog: pytest.LogCaptureFixture) -> None:
    """Five times as many engines as the role may have connections: nobody sees a refusal, and a line at INFO tells."""
    caplog.set_level(logging.INFO, "plungepool")

    def ask() -> None:
        engine = build_engine(settings_for(small, pool=pool, checkout_timeout_s=60.0))
        try:
            with engine.connect() as connection:
                assert connection.execute(text("SELECT 7, pg_sleep(0.05)")).scalar_one() == 7
        finally:
            engine.dispose()

    assert in_threads(5 * LIMIT, ask) == []
    lines = [record.getMessage() for record in caplog.records if "connected on attempt" in record.getMessage()]
    assert lines
    # The role is full, or for a moment so is the server: what is refused, or has just ended, holds a slot, too.
    assert all("(SQLSTATE 53300)" in line for line in lines)
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_what_stays_full_says_how_often_it_was_asked(small: Postgres) -> None:
    """Within the checkout time-out, where there is no deadline; `Unavailable`, with what the database said."""
    engine = build_engine(settings_for(small, user="closed", checkout_timeout_s=2.0))
    before = time.monotonic()
    with pytest.raises(
        OperationalError, match=r"too many connections.* \(SQLSTATE 53300\); tried \d+ times in"
    ) as caught:
        engine.connect()
    assert isinstance(caught.value, Unavailable)
    assert caught.value.orig is not None
    assert caught.value.orig.sqlstate == "53300"
    assert 1.0 < time.monotonic() - before < 60


@pytest.mark.parametrize("limited", ["role", "database"])
def test_a_limit_of_none_is_told_of(small: Postgres, limited: str) -> None:
    """The server says of it what it says of one that is reached, so that the last error says that it may be that."""
    small.execute("CREATE DATABASE closed CONNECTION LIMIT 0")
    try:
        change = {"user": "closed"} if limited == "role" else {"database": "closed"}
        engine = build_engine(settings_for(small, checkout_timeout_s=2.0, **change))
        with pytest.raises(OperationalError, match=f"; a {limited} whose CONNECTION LIMIT is 0 is always refused"):
            engine.connect()
    finally:
        small.execute("DROP DATABASE closed")


def test_a_full_server_is_not_said_to_have_a_limit_of_none(small: Postgres) -> None:
    """Where it is the server's own limit that is reached, nothing is said of a role's."""
    small.execute("CREATE ROLE plain LOGIN")
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            one = build_engine(settings_for(small, user="plain", checkout_timeout_s=0.1))
            stack.callback(one.dispose)
            with contextlib.suppress(OperationalError):
                stack.enter_context(one.connect())
        engine = build_engine(settings_for(small, user="plain", checkout_timeout_s=2.0))
        with pytest.raises(OperationalError, match=r"tried \d+ times in [0-9.]+ s\n") as caught:
            engine.connect()
        assert "53300" in str(caught.value)


def test_the_deadline_bounds_it_and_leaves_the_margin(small: Postgres) -> None:
    """Under a guard the invocation's end counts, not the checkout time-out."""

    class Context:
        aws_request_id = "1"

        def __init__(self) -> None:
            self.ends = time.time() + 3.0

        def get_remaining_time_in_millis(self) -> int:
            return int((self.ends - time.time()) * 1000)

    engine = build_engine(settings_for(small, user="closed", checkout_timeout_s=900.0))
    context = Context()

    @guard_invocation
    def handler(event: object, context: Context) -> float:
        with pytest.raises(Unavailable, match="tried"):
            engine.connect()
        return context.ends - time.time()

    assert handler({}, context) > 0


def test_one_that_is_not_there_yet_is_waited_for() -> None:
    """Nobody listens, as between the two halves of a failover; then somebody does."""
    with Postgres() as server:
        server.execute("CREATE ROLE app LOGIN")
        server.stop()
        engine = build_engine(settings_for(server, checkout_timeout_s=60.0))
        started = threading.Timer(1.0, server.start)
        started.start()
        try:
            with engine.connect() as connection:
                assert connection.execute(text("SELECT 7")).scalar_one() == 7
        finally:
            started.join()
            engine.dispose()


def test_one_that_hangs_up_is_asked_again(small: Postgres) -> None:
    """A listener that throws the first connects away, and then is the server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thrown = 0

        def throw_away() -> None:
            nonlocal thrown
            for _ in range(2):
                client, _ = listener.accept()
                thrown += 1
                client.close()
            client, _ = listener.accept()
            with client, socket.create_connection((small.host, small.port)) as server:
                pump(client, server)

        def pump(client: socket.socket, server: socket.socket) -> None:
            back = threading.Thread(target=copy, args=(server, client), daemon=True)
            back.start()
            copy(client, server)

        def copy(source: socket.socket, target: socket.socket) -> None:
            try:
                while data := source.recv(65536):
                    target.sendall(data)
            except OSError:
                pass

        threading.Thread(target=throw_away, daemon=True).start()
        engine = build_engine(settings_for(small, host="127.0.0.1", port=port, checkout_timeout_s=60.0))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 7")).scalar_one() == 7
        engine.dispose()
        wait_until(lambda: thrown == 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user": "nobody"}, "does not exist"),
        ({"database": "nowhere"}, "does not exist"),
        ({"user": "locked"}, "not permitted to log in"),
        ({"database": "shut"}, "not currently accepting connections"),
        ({"host": "nowhere.invalid"}, "nowhere.invalid"),
    ],
)
def test_what_does_not_pass_is_told_at_once(small: Postgres, changes: dict[str, str], words: str) -> None:
    """A role, a database, a name that is not there or lets nobody in: asked once, however long the time-out."""
    engine = build_engine(settings_for(small, checkout_timeout_s=900.0, **changes))
    with pytest.raises(DBAPIError, match=words) as caught:
        engine.connect()
    assert "tried" not in str(caught.value)
