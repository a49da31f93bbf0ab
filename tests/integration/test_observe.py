"""What is counted of invocations on a real server, and who is told of their flights."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aws_lambda_powertools import Metrics
from aws_xray_sdk import global_sdk_config
from aws_xray_sdk.core.context import Context as XRayContext
from aws_xray_sdk.core.recorder import AWSXRayRecorder
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import exc, text

from plungepool import PlungepoolError, SettingsError, guard_invocation, observe, recorder, wire
from plungepool_toolkit.network import ChaosProxy

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


def test_copy_is_counted_as_it_waits(
    postgres: Postgres, make_engine: Callable[..., Engine], tallies: list[Tally]
) -> None:
    """Data leaves when the server has asked for it: a round trip more, wherever COPY gets so far."""

    def broken() -> Iterator[str]:
        yield "1\n"
        raise LookupError

    with ChaosProxy(postgres.host, postgres.port) as proxy:
        engine = make_engine(port=proxy.port)
        for statement, stream in (
            ("COPY copied FROM STDIN", ["1\n"] * 50_000),
            ("COPY copied FROM STDIN", broken()),
            ("COPY no_table FROM STDIN", ["1\n"]),
        ):
            with contextlib.suppress(LookupError, exc.DBAPIError, wire.Error):
                with engine.connect():
                    proxy.round_trips = 0
                with guard_invocation(Context()), engine.begin() as connection:
                    connection.exec_driver_sql("CREATE TEMPORARY TABLE copied (a int) ON COMMIT DROP")
                    cursor: Any = connection.connection.cursor()
                    cursor.execute(statement, stream=stream)
            assert tallies.pop().round_trips == proxy.round_trips


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
        (_wait, "slow", "", {"slow_queries": 1}, {}),
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
    assert select["what"] == "begin + settings + select ? || ?"
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


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"_aws"')]


def test_metrics_are_one_line_with_the_dimension_service(
    make_engine: Callable[..., Engine], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is 0 is left out, what has many values is metadata, and the function's own metrics are not touched."""
    metrics = Metrics(namespace="Shop", service="orders")
    metrics.add_metric("OrdersPlaced", "Count", 1)
    stop = observe.to_metrics(metrics)
    try:
        engine = make_engine()
        with pytest.raises(exc.DataError), guard_invocation(Context()), engine.begin() as connection:
            connection.execute(text("SELECT CAST(:secret AS integer)"), {"secret": SECRET})
        with guard_invocation(Context()):
            pass
    finally:
        stop()
    (line,) = _lines(capsys)
    (described,) = line["_aws"]["CloudWatchMetrics"]
    assert (described["Namespace"], described["Dimensions"], line["service"]) == ("Shop", [["service"]], "orders")
    sent = {one["Name"]: line[one["Name"]][0] for one in described["Metrics"]}
    times = {name for name in sent if name.endswith("Time")}
    assert {name: sent[name] for name in sent if name not in times} == {
        "DatabaseCheckouts": 1,
        "DatabaseConnects": 1,
        "DatabaseRoundTrips": 2,
        "DatabaseErrors": 1,
        "DatabaseConnectionsKept": 1,
    }
    assert times == {"DatabaseConnectTime", "DatabaseTime"}
    assert all(0 < sent[name] < 5000 for name in times)
    assert (line["database_errors"], line["database_failure"], line["request_id"]) == ({"22P02": 1}, "DataError", "1")
    assert SECRET not in json.dumps(line)
    metrics.flush_metrics()
    assert [one["Name"] for one in _lines(capsys)[0]["_aws"]["CloudWatchMetrics"][0]["Metrics"]] == ["OrdersPlaced"]


def test_the_setting_sends_metrics_once_and_needs_a_namespace(
    make_engine: Callable[..., Engine], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many engines there are, an invocation has one line; without a namespace the engine is refused."""
    monkeypatch.delenv("POWERTOOLS_METRICS_NAMESPACE", raising=False)
    with pytest.raises(SettingsError, match="PLUNGEPOOL_METRICS=on: metrics need a namespace"):
        make_engine(metrics="on")
    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "Shop")
    monkeypatch.setattr(observe, "_by_setting", None)
    engine, other = make_engine(metrics="on"), make_engine(metrics="on")
    try:
        with guard_invocation(Context()), engine.begin() as one, other.begin() as two:
            assert one.execute(text("SELECT 1")).scalar() == two.execute(text("SELECT 1")).scalar()
    finally:
        assert observe._by_setting is not None
        observe._by_setting()
    (line,) = _lines(capsys)
    assert line["DatabaseCheckouts"] == [2]


class _Emitter:
    """Stands for X-Ray's daemon."""

    def __init__(self) -> None:
        self.segments: list[dict[str, Any]] = []

    def send_entity(self, entity: Any) -> None:
        self.segments.append(json.loads(entity.serialize()))

    def set_daemon_address(self, address: object) -> None:
        pass


def test_xray_has_a_subsegment_for_each_exchange(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own times, the statement's shape, and the SQLSTATE of what failed; below what is open by then."""
    # A Tracer of Powertools' that is made outside Lambda turns the SDK off for the whole process.
    monkeypatch.setattr(global_sdk_config, "sdk_enabled", lambda: True)
    emitter, xray = _Emitter(), AWSXRayRecorder()
    xray.emitter._socket.close()
    xray.configure(service="orders", sampling=False, context=XRayContext(), emitter=emitter, plugins=())
    tracer = SimpleNamespace(disabled=False, provider=xray)
    stop = observe.to_tracer(tracer)
    try:
        xray.begin_segment("orders")
        with make_engine().connect() as connection, pytest.raises(exc.DBAPIError):
            connection.execute(text("SELECT CAST(:secret AS integer), 'and 4111-1111'"), {"secret": SECRET})
        xray.end_segment()
    finally:
        stop()
    (segment,) = emitter.segments
    connect, select, rollback = segment["subsegments"]
    assert {one["name"] for one in segment["subsegments"]} == {"postgres@127.0.0.1"}
    assert [one["annotations"]["operation"] for one in segment["subsegments"]] == ["CONNECT", "SELECT", "ROLLBACK"]
    assert set(connect["metadata"]["plungepool"]["parts_s"]) == {"name", "tcp", "authentication"}
    assert select["sql"]["sanitized_query"] == "begin + select cast ( $1 as integer ) , ?".replace("$1", "?")
    assert (select["annotations"]["error"], select["fault"], "fault" in rollback) == ("22P02", True, False)
    assert connect["start_time"] <= connect["end_time"] <= select["start_time"] < select["end_time"]
    assert SECRET not in json.dumps(segment)
    assert observe.to_tracer(SimpleNamespace(disabled=True, provider=xray))() is None


def test_opentelemetry_has_spans_and_the_stable_histogram(make_engine: Callable[..., Engine]) -> None:
    """Names and attributes are the conventions' for PostgreSQL; the parent is the span that is open."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    traces = TracerProvider()
    traces.add_span_processor(SimpleSpanProcessor(spans))
    stop = observe.to_opentelemetry(traces, MeterProvider([reader]))
    try:
        with (
            traces.get_tracer("test").start_as_current_span("handler") as parent,
            make_engine().connect() as connection,
        ):
            with pytest.raises(exc.DBAPIError):
                connection.execute(text("SELECT CAST(:secret AS integer)"), {"secret": SECRET})
    finally:
        stop()
    connect, select, rollback, _ = spans.get_finished_spans()
    assert [one.name for one in (connect, select, rollback)] == [
        "CONNECT postgres",
        "SELECT postgres",
        "ROLLBACK postgres",
    ]
    assert select.attributes is not None
    assert {name: select.attributes[name] for name in select.attributes if not name.startswith("server.")} == {
        "db.system.name": "postgresql",
        "db.namespace": "postgres",
        "db.operation.name": "SELECT",
        "db.query.text": "begin + select cast ( ? as integer )",
        "db.response.status_code": "22P02",
        "error.type": "22P02",
    }
    assert (select.kind.name, select.status.status_code.name) == ("CLIENT", "ERROR")
    assert select.parent is not None
    assert select.parent.span_id == parent.get_span_context().span_id
    assert select.start_time is not None
    assert select.end_time is not None
    assert 0 < select.end_time - select.start_time < 5e9
    data: Any = reader.get_metrics_data()
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("db.client.operation.duration", "s")
    points = {point.attributes["db.operation.name"]: point for point in metric.data.data_points}
    assert {name: point.count for name, point in points.items()} == {"SELECT": 1, "ROLLBACK": 1}
    assert points["SELECT"].explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
    assert SECRET not in str([one.to_json() for one in spans.get_finished_spans()])
