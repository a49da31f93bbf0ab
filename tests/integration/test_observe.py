"""What is counted of invocations on a real server, and who is told of their flights."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc, text

from plungepool import PlungepoolError, guard_invocation, observe, recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from plungepool.observe import Tally
    from plungepool_toolkit.postgres import Postgres


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


# ---- the flight recorder, and what each failure leaves behind


@pytest.fixture
def recorded(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the flight recorder has written so far; the engine of a test starts it."""
    recorder.stop()
    with caplog.at_level(logging.WARNING, "plungepool"):
        yield lambda: [
            json.loads(record.getMessage()) for record in caplog.records if recorder.FORMAT in record.getMessage()
        ]
    recorder.stop()


SECRET = "4111-1111"


def _fail(engine: Engine, backend: Callable[[int], None]) -> None:
    with engine.begin() as connection:
        connection.execute(text("SELECT :secret || 'and 4111-1111'"), {"secret": SECRET})
        raise LookupError(SECRET)


def _miss_the_deadline(engine: Engine, backend: Callable[[int], None]) -> None:
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_sleep(20), :secret ::text"), {"secret": SECRET})


def _violate(engine: Engine, backend: Callable[[int], None]) -> None:
    with engine.begin() as connection:
        connection.execute(text("SELECT CAST(:secret AS integer)"), {"secret": SECRET})


def _be_ended(engine: Engine, backend: Callable[[int], None]) -> None:
    with engine.begin() as connection:
        backend(connection.connection.dbapi_connection.backend_pid)  # type: ignore[union-attr]
        connection.execute(text("SELECT :secret ::text"), {"secret": SECRET})


def _exhaust(engine: Engine, backend: Callable[[int], None]) -> None:
    with engine.connect(), engine.connect():
        pass


def _leak(engine: Engine, backend: Callable[[int], None]) -> None:
    held.append(engine.connect())
    held[-1].execute(text("SELECT :secret ::text"), {"secret": SECRET})


def _wait(engine: Engine, backend: Callable[[int], None]) -> None:
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_sleep(1.05), :secret ::text"), {"secret": SECRET})


held: list[Connection] = []


@pytest.mark.parametrize(
    ("run", "why", "failure", "numbers", "errors"),
    [
        (_fail, "failed", "LookupError", {}, {}),
        (_miss_the_deadline, "deadline", "DeadlineExceeded", {"deadlines_exceeded": 1}, {"DeadlineExceeded": 1}),
        (_violate, "failed", "DataError", {}, {"22P02": 1}),
        (_be_ended, "failed", "OperationalError", {"lost": 1}, {"57P01": 1}),
        (_exhaust, "failed", "PoolExhausted", {"exhausted": 1, "checkouts_failed": 1}, {}),
        (_leak, "failed", "ConnectionLeak", {"leaks": 1}, {}),
        (_wait, "slow", "", {"slow_queries": 0}, {}),
    ],
)
def test_each_failure_leaves_its_numbers_and_one_line(
    make_engine: Callable[..., Engine],
    postgres: Postgres,
    tallies: list[Tally],
    recorded: Callable[[], list[dict[str, Any]]],
    caplog: pytest.LogCaptureFixture,
    run: Callable[[Engine, Callable[[int], None]], None],
    why: str,
    failure: str,
    numbers: dict[str, int],
    errors: dict[str, int],
) -> None:
    """The tally and the line say what went wrong; neither they nor any other line hold a value."""
    engine = make_engine(recorder="on", checkout_timeout_s=0.1, leaks="raise")

    @guard_invocation
    def handler(event: Any, context: Context) -> None:
        run(engine, lambda process: _end(postgres, process))

    with contextlib.suppress(LookupError, exc.SQLAlchemyError, PlungepoolError):
        handler({}, Context(1.0 if why == "deadline" else 30.0))
    (tally,) = tallies
    assert tally.failure == failure
    common = {"deadlines_exceeded": 0, "lost": 0, "exhausted": 0, "checkouts_failed": 0, "leaks": 0, "pins": 0}
    assert {name: getattr(tally, name) for name in common | numbers} == common | numbers
    assert tally.errors == errors
    (line,) = recorded()
    assert (line["why"], line["failure"], line["request_id"]) == (why, tally.failure, "1")
    assert SECRET not in caplog.text
    held.clear()


def _end(server: Postgres, process: int) -> None:
    """End a session of the server, and wait until it is gone."""
    server.execute(f"SELECT pg_terminate_backend({process}, 5000)")


def test_exchanges_are_written_by_their_shapes(
    make_engine: Callable[..., Engine], recorded: Callable[[], list[dict[str, Any]]]
) -> None:
    """Connect with its parts, BEGIN with the deadline's settings and the statement, ROLLBACK: sizes, rows, times."""
    engine = make_engine(recorder="on")
    with pytest.raises(LookupError), guard_invocation(Context()):
        _fail(engine, lambda _: None)
    connect, select, rollback = recorded()[0]["exchanges"]
    assert connect["what"] == "connect"
    assert set(connect["parts_ms"]) == {"name", "tcp", "authentication"}
    assert select["what"] == "begin + settings + select ? | | ?"
    assert (select["rows"], rollback["what"]) == (1, "rollback")
    assert select["sent"] > 100
    assert select["received"] > 50
    assert 0 < select["at_ms"] + select["took_ms"] <= rollback["at_ms"]


def test_what_goes_well_writes_nothing(
    make_engine: Callable[..., Engine], recorded: Callable[[], list[dict[str, Any]]]
) -> None:
    """No line, and the exchanges are there for the next invocation that fails, under their own request's name."""
    engine = make_engine(recorder="on")
    with guard_invocation(Context(request_id="good")), engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    assert recorded() == []
    with pytest.raises(LookupError), guard_invocation(Context(request_id="bad")):
        raise LookupError
    (line,) = recorded()
    assert (line["request_id"], {one["request_id"] for one in line["exchanges"]}) == ("bad", {"good"})
    assert len(line["exchanges"]) == 3
    assert all(one["at_ms"] < 0 for one in line["exchanges"])


def test_the_ring_is_bounded(make_engine: Callable[..., Engine], recorded: Callable[[], list[dict[str, Any]]]) -> None:
    """However much an invocation asks, and however long its texts are, the line stays one that a log takes."""
    engine = make_engine(recorder="on")
    with pytest.raises(LookupError), guard_invocation(Context()), engine.begin() as connection:
        for _ in range(100):
            connection.execute(text(f"SELECT '{'x' * 5000}', {'1 + ' * 3000} 1"))
        raise LookupError
    (line,) = recorded()
    assert len(line["exchanges"]) == 64
    assert len(json.dumps(line)) < 40_000
