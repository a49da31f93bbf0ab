"""Each class of what happens to an invocation, driven through a function: exactly the metrics and lines promised."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

import pytest
from aws_lambda_powertools import Metrics
from sqlalchemy import text

from plungepool import guard_invocation, observe
from plungepool.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from plungepool_toolkit.postgres import Postgres

SECRET = "unmistakable-4711"
# What each invocation has that asks for one connection and gets it.
WELL = {"DatabaseCheckouts", "DatabaseRoundTrips", "DatabaseTime", "DatabaseConnectionsKept"}
CONNECT = {"DatabaseConnects", "DatabaseConnectTime"}


class Context:
    """What Lambda hands to a handler."""

    aws_request_id = "8f5"

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda's."""
        return 30_000


@pytest.fixture
def sent(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], dict[str, float]]]:
    """The metrics of the last invocation, by their names."""
    stop = observe.to_metrics(Metrics(namespace="Shop", service="orders"))

    def read() -> dict[str, float]:
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        names = {name for name, _ in METRICS.values()} & line.keys()
        return {name: line[name][0] for name in names}

    yield read
    stop()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the package has logged from INFO on, since the last call."""
    caplog.set_level(logging.INFO, "plungepool")

    def read() -> list[str]:
        found = [one.getMessage() for one in caplog.records if one.name.startswith("plungepool")]
        caplog.clear()
        return found

    return read


def invoke(engine: Engine, sql: str = "SELECT CAST(:value AS text)") -> None:
    """Invoke a function that executes one statement."""

    @guard_invocation
    def handler(_event: object, _context: Context) -> None:
        with engine.begin() as connection:
            connection.execute(text(sql), {"value": SECRET} if ":value" in sql else {})

    handler({}, Context())


def test_what_goes_well_says_nothing(
    make_engine: Callable[..., Engine], sent: Callable[[], dict[str, float]], lines: Callable[[], list[str]]
) -> None:
    """The first has a connect, the second none; neither has a line."""
    engine = make_engine()
    invoke(engine)
    assert sent().keys() == WELL | CONNECT | {"DatabaseRows"}
    invoke(engine)
    assert sent().keys() == WELL | {"DatabaseRows"}
    assert lines() == []


@pytest.mark.parametrize("why", ["age", "57P01"])
def test_a_replaced_connection(
    make_engine: Callable[..., Engine],
    postgres: Postgres,
    tallies: list[observe.Tally],
    sent: Callable[[], dict[str, float]],
    lines: Callable[[], list[str]],
    why: str,
) -> None:
    """By its reason: it was too old, or the server had ended it."""
    engine = make_engine(max_age_s=0.05 if why == "age" else 1800.0)
    invoke(engine)
    if why == "age":
        time.sleep(0.06)
    else:
        with engine.connect() as connection:
            process = connection.connection.dbapi_connection.backend_pid  # type: ignore[union-attr]
        postgres.execute(f"SELECT pg_terminate_backend({process}, 5000)")
    sent(), lines()
    invoke(engine)
    metrics = sent()
    assert metrics.keys() == WELL | CONNECT | {"DatabaseRows", "DatabaseReconnects"}
    assert metrics["DatabaseReconnects"] == 1
    assert tallies[-1].reconnects == {why: 1}
    (line,) = lines()
    assert line.startswith("a kept connection was replaced: ")


def test_a_ping(
    make_engine: Callable[..., Engine], sent: Callable[[], dict[str, float]], lines: Callable[[], list[str]]
) -> None:
    """One that has idled is asked: a round trip more, and no line."""
    engine = make_engine(ping_after_idle_s=0.0)
    invoke(engine)
    sent()
    invoke(engine)
    metrics = sent()
    assert metrics.keys() == WELL | {"DatabaseRows", "DatabasePings"}
    assert (metrics["DatabasePings"], metrics["DatabaseRoundTrips"]) == (1, 3)
    assert lines() == []


def test_a_pin(
    make_engine: Callable[..., Engine], sent: Callable[[], dict[str, float]], lines: Callable[[], list[str]]
) -> None:
    """A statement that pins a proxy is counted and told, without its value."""
    engine = make_engine(endpoint="proxy")
    invoke(engine, f"SET plungepool.test = '{SECRET}'")
    metrics = sent()
    assert metrics.keys() == WELL | CONNECT | {"DatabasePins"}
    assert metrics["DatabasePins"] == 1
    (line,) = lines()
    assert "pin" in line
    assert SECRET not in line


def test_tickets(
    make_engine: Callable[..., Engine], sent: Callable[[], dict[str, float]], lines: Callable[[], list[str]]
) -> None:
    """An adaptive pool asks when the environment comes back, and holds one where there is one."""
    engine = make_engine(pool="adaptive", fleet_limit=50)
    invoke(engine)
    sent()
    invoke(engine)
    metrics = sent()
    assert metrics.keys() == WELL | CONNECT | {"DatabaseRows", "DatabaseTicketsAsked", "DatabaseTicketsHeld"}
    assert (metrics["DatabaseTicketsAsked"], metrics["DatabaseTicketsHeld"]) == (1, 1)
    assert lines() == []
