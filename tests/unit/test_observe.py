"""What is counted of an invocation, and who is told, without a server."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING
from unittest.mock import MagicMock

import pytest
from aws_lambda_powertools import Metrics

from plungepool import guard_invocation, invocation, metrics, observe, recorder
from plungepool.observe import Tally
from plungepool.wire import session
from plungepool.wire.messages import BIND_NOTHING, EXECUTE, SYNC, parse, query
from plungepool.wire.protocol import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def nobody_listens_afterwards() -> Iterator[None]:
    """No test may leave a listener to the next one; an engine of another test may have attached one for good."""
    before = invocation.observer, session.ended
    yield
    assert (invocation.observer, session.ended, invocation.tally) == (*before, None)


def test_each_invocation_has_a_tally_of_its_own(tallies: list[Tally]) -> None:
    """What is counted belongs to the invocation that runs, and nothing of it to the next."""
    for amount in (2, 3):
        with guard_invocation(None):
            invocation.count("checkouts", amount)
    assert [tally.checkouts for tally in tallies] == [2, 3]
    assert [tally.failure for tally in tallies] == ["", ""]


def test_what_fails_is_named_by_its_class(tallies: list[Tally]) -> None:
    """The tally says what left the guard, and holds none of its text."""

    @guard_invocation
    def handler(event: object, context: object) -> None:
        raise LookupError("4111 1111 1111 1111")

    with pytest.raises(LookupError):
        handler({}, None)
    assert [tally.failure for tally in tallies] == ["LookupError"]
    assert "4111" not in str(tallies[0].as_dict())


def test_a_guard_within_a_guard_is_one_invocation(tallies: list[Tally]) -> None:
    """The guard that is entered first is the one that ends it."""
    with guard_invocation(None):
        with guard_invocation(None):
            invocation.count("checkouts")
        assert tallies == []
    assert [tally.checkouts for tally in tallies] == [1]


def test_between_invocations_nothing_is_counted(tallies: list[Tally]) -> None:
    """What is done outside a guard belongs to none."""
    invocation.count("checkouts")
    with guard_invocation(None):
        pass
    assert [tally.checkouts for tally in tallies] == [0]


def test_a_listener_that_fails_is_told_once_and_changes_nothing(
    tallies: list[Tally], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a listener is one line of the log, without its text; others still hear."""

    def failing(tally: Tally) -> None:
        raise ValueError("4111 1111 1111 1111")

    stop = observe.listen(failing)
    try:
        with caplog.at_level(logging.WARNING, "plungepool"):
            for _ in range(3):
                with guard_invocation(None):
                    pass
    finally:
        stop()
    assert len(tallies) == 3
    assert len(caplog.records) == 1
    assert "ValueError" in caplog.text
    assert "4111" not in caplog.text


def test_whoever_stops_hears_no_more(tallies: list[Tally]) -> None:
    """What ends a listener may be called again, and ends no other one."""
    told: list[Tally] = []
    stop = observe.listen(told.append)
    stop()
    stop()
    with guard_invocation(None):
        pass
    assert told == []
    assert len(tallies) == 1


def test_what_listens_twice_is_told_twice_and_ends_once_for_each(tallies: list[Tally]) -> None:
    """Each end is that of its own beginning, however often it is called."""
    told: list[Tally] = []
    hear = told.append
    first, second = observe.listen(hear), observe.listen(hear)
    for expected in (2, 3, 3):
        with guard_invocation(None):
            pass
        assert len(told) == expected
        first()
        first()
        if expected == 3:
            second()


@pytest.mark.parametrize("name", [object(), 7, MagicMock()])
def test_a_name_that_is_none_is_no_invocations(tallies: list[Tally], name: object) -> None:
    """A mock for a context answers anything; a log takes a text."""
    context = MagicMock(aws_request_id=name)
    with guard_invocation(context):
        assert invocation.request_id() is None
    assert json.dumps(tallies[0].as_dict())


def test_what_sigterm_cuts_off_is_handed_over_once(tallies: list[Tally]) -> None:
    """Also where the program's own handler exits, so that the guard comes to its end behind it."""
    with pytest.raises(SystemExit), guard_invocation(None):
        invocation.count("checkouts")
        assert invocation.observer is not None
        invocation.observer.kill()
        raise SystemExit
    assert [(tally.failure, tally.checkouts) for tally in tallies] == [(observe.KILLED, 1)]


def test_a_session_has_received_what_it_has_and_not_another_servers() -> None:
    """Two servers give their processes the same numbers."""

    class Session:
        backend_pid, opening_s, parameter_statuses = 77, dict[str, float](), dict[str, str]()

        def __init__(self) -> None:
            self.received = 0

    recording = recorder.Recorder({}, 0.0)
    one, other = Session(), Session()
    reply = Reply((query("SELECT 1"),))
    for session_, received in ((one, 5000), (other, 60), (one, 5300), (other, 100)):
        session_.received = received
        recording.hear(session_, reply, 1.0, 0.1, None)  # type: ignore[arg-type]
    exchanges = recording.document(observe.Tally(), "slow")["exchanges"]
    assert [exchange["received"] for exchange in exchanges] == [5000, 60, 300, 40]


def test_every_number_of_a_tally_is_a_field() -> None:
    """What as_dict gives is JSON's, and a new number cannot be left out of it."""
    tally = observe.Tally("1")
    assert set(vars(observe.Tally)) - set(observe.FIELDS) >= {"as_dict", "failure"}
    assert all(tally.as_dict()[name] == 0 for name in observe.FIELDS)


def test_texts_of_a_flight_are_its_statements() -> None:
    """Of both protocols, in their order, without parameters."""
    extended = Reply((parse("BEGIN") + BIND_NOTHING + EXECUTE, parse("SELECT $1", [23]), BIND_NOTHING, EXECUTE, SYNC))
    assert list(observe.texts(extended)) == ["BEGIN", "SELECT $1"]
    assert list(observe.texts(Reply((query("BEGIN;SELECT 'ü'"),)))) == ["BEGIN;SELECT 'ü'"]
    assert list(observe.texts(Reply((SYNC,)))) == []
    assert observe.is_ping(Reply((SYNC,)))
    assert not observe.is_ping(extended)


def test_a_strike_leaves_nothing_to_the_next_invocation(tallies: list[Tally]) -> None:
    """An exception that ends a guard before its observer leaves a tally behind, which the next begin replaces."""
    observer = invocation.observer
    assert observer is not None
    observer.begin("struck")
    invocation.count("checkouts", 7)
    with guard_invocation(None):
        invocation.count("checkouts")
    assert [tally.checkouts for tally in tallies] == [1]


def test_what_is_no_exception_of_a_listeners_goes_on(tallies: list[Tally]) -> None:
    """Ctrl-C and an exit are not swallowed, wherever they strike."""

    def struck(tally: Tally) -> None:
        raise KeyboardInterrupt

    stop = observe.listen(struck)
    try:
        with pytest.raises(KeyboardInterrupt), guard_invocation(None):
            pass
    finally:
        stop()
    assert invocation.tally is None


def test_a_line_of_metrics_has_milliseconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds of a tally are milliseconds in CloudWatch, the parts of a connect too; amounts stay what they are."""
    tally = Tally("7")
    tally.rows, tally.connect_s, tally.tls_s, tally.credentials_s = 3, 0.25, 0.125, 0.002
    emit = metrics.Emitter(Metrics(namespace="Shop", service="orders"))
    emit(tally)
    line = json.loads(capsys.readouterr().out)
    assert (line["DatabaseRows"], line["DatabaseConnectTime"]) == ([3.0], [250.0])
    assert (line["database_tls_ms"], line["database_credentials_ms"]) == (125.0, 2.0)


def test_an_invocation_without_the_database_has_no_metrics(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """Powertools would warn of a line without metrics, at each invocation."""
    metrics.Emitter(Metrics(namespace="Shop", service="orders"))(Tally("7"))
    assert capsys.readouterr().out == ""
    assert not recwarn.list


@pytest.mark.parametrize("part", ["database_s", "connect_s", "checkout_wait_s"])
def test_an_invocation_is_slow_by_all_its_waits_together(part: str, caplog: pytest.LogCaptureFixture) -> None:
    """Statements, connects and the pool's queue are one wait for the user; the line says what the tally does, once."""
    record = recorder.Recorder({}, slow_s=1.0)
    tally = Tally("7")
    tally.duration_s = 3.0
    tally.database_s = tally.connect_s = tally.checkout_wait_s = 0.3
    record.end(tally)
    assert caplog.messages == []
    setattr(tally, part, 0.4)
    record.end(tally)
    (line,) = map(json.loads, caplog.messages)
    assert (line["why"], line["request_id"], line["duration_ms"]) == ("slow", "7", 3000.0)
    assert line["tally"] == {
        f"{name}_ms": 400.0 if f"{name}_s" == part else 300.0 for name in ("checkout_wait", "connect", "database")
    }
