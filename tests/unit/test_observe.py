"""What is counted of an invocation, and who is told, without a server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from plungepool import guard_invocation, invocation, observe
from plungepool.wire import session
from plungepool.wire.messages import BIND_NOTHING, EXECUTE, SYNC, parse, query
from plungepool.wire.protocol import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool.observe import Tally


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
