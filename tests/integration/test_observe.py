"""What is counted of invocations on a real server, and who is told of their flights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc, text

from plungepool import guard_invocation, observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from plungepool.observe import Tally


class Context:
    """What Lambda hands to a handler."""

    def __init__(self, seconds: float = 30, request_id: str = "1") -> None:
        self._ends_at, self.aws_request_id = time.time() + seconds, request_id

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda's: whole milliseconds."""
        return int((self._ends_at - time.time()) * 1000)


@pytest.fixture
def tallies() -> Iterator[list[Tally]]:
    """What a listener is told."""
    told: list[Tally] = []
    stop = observe.listen(told.append)
    yield told
    stop()


def test_a_warm_invocation_is_counted(make_engine: Callable[..., Engine], tallies: list[Tally]) -> None:
    """The first has a connect with its parts, the second none; both have their round trips, rows and returns."""
    engine = make_engine()
    for number in range(2):
        with guard_invocation(Context(request_id=str(number))), engine.begin() as connection:
            connection.execute(text("SELECT generate_series(1, 3)"))
    cold, warm = tallies
    assert (cold.request_id, warm.request_id) == ("0", "1")
    assert (cold.connects, warm.connects) == (1, 0)
    assert 0 < cold.tcp_s + cold.authentication_s <= cold.connect_s <= cold.duration_s
    assert (warm.checkouts, warm.round_trips, warm.rows, warm.kept, warm.closed) == (1, 2, 3, 1, 0)
    assert 0 < warm.database_s < warm.duration_s
    assert (warm.errors, warm.reconnects, warm.failure, warm.leaks) == ({}, {}, "", 0)


def test_flights_are_told_with_what_became_of_them(make_engine: Callable[..., Engine]) -> None:
    """A listener gets each flight, the attempt to open the session, and what a flight raises."""
    told: list[tuple[list[str] | None, str]] = []

    def hear(session: Any, reply: Any, began: float, took_s: float, error: BaseException | None) -> None:
        assert began > 0
        assert took_s >= 0
        told.append((None if reply is None else list(observe.texts(reply)), getattr(error, "sqlstate", "")))

    stop = observe.listen_to_flights(hear)
    try:
        with make_engine().connect() as connection, pytest.raises(exc.DBAPIError):
            connection.execute(text("SELECT 1 / :zero"), {"zero": 0})
    finally:
        stop()
    assert told == [(None, ""), (["BEGIN", "SELECT 1 / $1"], "22012"), (["ROLLBACK"], "")]
