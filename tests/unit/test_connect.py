"""
How often a connect is tried, with which login, until when: by a clock that only the test moves, and a server that is
none.
"""

from __future__ import annotations

import random
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from plungepool import Settings, connect, invocation, tls, wire
from plungepool.credentials import Login
from plungepool.wire.errors import server_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = 1_700_000_000.0


class Refused(Exception):
    """What the driver raises where the server refuses a login."""

    sqlstate = "28P01"


class Explained(Exception):
    """What a source says when every login was refused."""


class Clock:
    """The wall clock; sleeping moves it, and nothing else does but the test."""

    def __init__(self) -> None:
        self.now = NOW
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """One that stands still; chance always takes the longest pause."""
    clock = Clock()
    monkeypatch.setattr(time, "time", clock.time)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(connect, "jitter", lambda: 1.0)
    return clock


class Source:
    """Gives logins by their passwords; says what it was asked."""

    def __init__(self, *passwords: str, may_change: bool = True, speaks: bool = True) -> None:
        self.passwords, self.may_change, self.speaks = passwords, may_change, speaks
        self.rounds = 0
        self.forgotten = False
        self.asked_to_explain: list[tuple[str, Exception]] = []

    def logins(self) -> Iterator[Login]:
        self.rounds += 1
        for password in self.passwords:
            yield Login("app", password, "db.invalid", 5432, "orders")

    def explain(self, first: Login, refusal: Exception) -> None:
        self.asked_to_explain.append((first.password, refusal))
        if self.speaks:
            raise Explained from refusal

    def forget(self) -> None:
        self.forgotten = True


@pytest.fixture
def make_connector(monkeypatch: pytest.MonkeyPatch) -> Callable[..., connect.Connector]:
    """Build connectors whose source and attempts are the test's own."""

    def make(source: Source, attempt: Callable[[Login, connect.Way], Any], **changes: Any) -> connect.Connector:
        monkeypatch.setattr(connect, "source", lambda _settings: source)
        settings = Settings(
            **(
                {"host": "localhost", "user": "app", "password": "p", "tls": "disable", "connect_timeout_s": 10}
                | changes
            )
        )
        return connect.Connector(settings, lambda _record, login, way: attempt(login, way))

    return make


def refuse(_login: Login, _way: connect.Way) -> Any:
    """A server that takes nobody."""
    raise Refused


def test_pauses_grow_to_a_second_and_end_before_the_deadline(
    clock: Clock, make_connector: Callable[..., connect.Connector]
) -> None:
    """
    Where the source may change, all of its logins are tried again after 0.05 s, twice as long each time, 1 s at most.
    """
    source = Source("old", "new")
    with pytest.raises(Explained):
        make_connector(source, refuse).connect(None)
    assert clock.slept[:6] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0])
    assert set(clock.slept[5:]) == {1.0}
    assert NOW + 9 < clock.now < NOW + 10
    assert source.rounds == len(clock.slept) + 1


def test_pauses_of_a_fleet_differ(
    clock: Clock, make_connector: Callable[..., connect.Connector], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chance takes each between half of its length and the whole."""
    drawn = iter((0.0, 0.5))
    monkeypatch.setattr(connect, "jitter", lambda: next(drawn, 1.0))
    with pytest.raises(Explained):
        make_connector(Source("p"), refuse).connect(None)
    assert clock.slept[:3] == pytest.approx([0.025, 0.075, 0.2])


def test_chance_is_the_systems_own() -> None:
    """Python's `random` in one state, as in each environment of a snapshot, gives different pauses all the same."""
    drawn = []
    for _ in range(3):
        random.seed(1)
        drawn.append(connect.jitter())
    assert len(set(drawn)) == 3
    assert all(0 <= one < 1 for one in drawn)


def test_source_that_cannot_change_is_tried_once(
    clock: Clock, make_connector: Callable[..., connect.Connector]
) -> None:
    """One round through its logins, without a pause."""
    tried: list[str] = []

    def attempt(login: Login, _way: connect.Way) -> Any:
        tried.append(login.password)
        raise Refused

    with pytest.raises(Explained):
        make_connector(Source("first", "second", may_change=False), attempt).connect(None)
    assert (tried, clock.slept) == (["first", "second"], [])


def test_login_that_is_taken_ends_the_search(clock: Clock, make_connector: Callable[..., connect.Connector]) -> None:
    """The next login is asked for only where the last was refused."""
    source = Source("old", "new", "never asked for")

    def attempt(login: Login, _way: connect.Way) -> Any:
        if login.password == "old":
            raise Refused
        return login.password

    assert make_connector(source, attempt).connect(None) == "new"
    assert (source.rounds, clock.slept, source.asked_to_explain) == (1, [], [])


def test_source_explains_the_first_login_and_the_last_refusal(
    clock: Clock, make_connector: Callable[..., connect.Connector]
) -> None:
    """Where it has nothing to say, the refusal itself is raised."""
    refusals = []

    def attempt(_login: Login, _way: connect.Way) -> Any:
        refusals.append(Refused())
        raise refusals[-1]

    source = Source("old", "new", may_change=False)
    with pytest.raises(Explained) as caught:
        make_connector(source, attempt).connect(None)
    assert source.asked_to_explain == [("old", refusals[-1])]
    assert (caught.value.__cause__, len(refusals)) == (refusals[-1], 2)
    silent = Source("p", may_change=False, speaks=False)
    with pytest.raises(Refused):
        make_connector(silent, attempt).connect(None)


def test_other_failures_are_raised_at_once(clock: Clock, make_connector: Callable[..., connect.Connector]) -> None:
    """A network that fails is nobody's login: no second attempt, and no explanation."""
    source = Source("old", "new")

    def attempt(_login: Login, _way: connect.Way) -> Any:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        make_connector(source, attempt).connect(None)
    assert (source.rounds, source.asked_to_explain, clock.slept) == (1, [], [])


@pytest.mark.parametrize(
    ("each_takes_s", "expected"), [(3.3333, [10.0, 6.67, 3.33, 0.05]), (2.5, [10.0, 7.5, 5.0, 2.5])]
)
def test_each_attempt_has_what_is_left_of_the_time(
    clock: Clock, make_connector: Callable[..., connect.Connector], each_takes_s: float, expected: list[float]
) -> None:
    """In hundredths of a second, a moment at least; and no further login is tried when the time is over."""
    left: list[float] = []

    def attempt(_login: Login, way: connect.Way) -> Any:
        left.append(way.timeout_s)
        clock.now += each_takes_s
        raise Refused

    with pytest.raises(Explained):
        make_connector(Source("1", "2", "3", "4", "5", "6", may_change=False), attempt).connect(None)
    assert left == expected


def test_no_pause_that_ends_with_the_time(
    clock: Clock, make_connector: Callable[..., connect.Connector], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause after which nothing could be tried is not begun."""
    for name in ("_FIRST_PAUSE_S", "_LONGEST_PAUSE_S"):
        monkeypatch.setattr(connect, name, 2.5)
    with pytest.raises(Explained):
        make_connector(Source("p"), refuse).connect(None)
    assert clock.slept == [2.5] * 3


def test_time_begins_when_there_is_a_login(clock: Clock, make_connector: Callable[..., connect.Connector]) -> None:
    """What the first login takes, an import of boto3 or a call to AWS, is not taken from the database's time."""
    source = Source("p")
    logins = source.logins

    def slow() -> Iterator[Login]:
        clock.now += 7
        yield from logins()

    source.logins = slow  # type: ignore[method-assign]
    assert make_connector(source, lambda _login, way: way.timeout_s).connect(None) == 10.0


def test_invocations_deadline_bounds_a_connect(clock: Clock, make_connector: Callable[..., connect.Connector]) -> None:
    """The attempt gets what the invocation has left, where that is less than the time of a connect."""
    connector = make_connector(Source("p"), lambda _login, way: way.timeout_s)
    invocation.end_at(NOW + 2.5)
    try:
        assert connector.connect(None) == 2.5
        invocation.end_at(NOW + 60)
        assert connector.connect(None) == 10.0
    finally:
        invocation.end_at(None)


def test_record_reaches_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pool hands in comes out at the driver as it is."""
    record, settings = object(), Settings(host="localhost", user="app", password="p", tls="disable")
    connector = connect.Connector(settings, lambda *given: given)
    found, login, way = connector.connect(record)
    assert found is record
    assert (login.user, login.password, login.host, login.port, login.database) == (
        "app",
        "p",
        "localhost",
        5432,
        "postgres",
    )
    assert way.context is None


def test_forget_reaches_the_source(make_connector: Callable[..., connect.Connector]) -> None:
    """What was fetched is dropped."""
    source = Source("p")
    make_connector(source, refuse).forget()
    assert source.forgotten


def test_failure_leaves_no_circle_of_frames(clock: Clock, make_connector: Callable[..., connect.Connector]) -> None:
    """An error, its traceback, a frame and the error again would live until the collector looks: logins with it."""
    failed: list[Exception] = []

    def attempt(_login: Login, _way: connect.Way) -> Any:
        failed.append(ConnectionResetError())
        raise failed[-1]

    with pytest.raises(ConnectionResetError):
        make_connector(Source("p"), attempt).connect(None)
    trace = failed[0].__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is connect.Connector.connect.__code__:
            assert failed[0] not in trace.tb_frame.f_locals.values()
        trace = trace.tb_next


@pytest.mark.parametrize(
    ("usual", "every", "expected"),
    [
        ("taken", "-", ["usual"]),
        ("another curve", "taken", ["usual", "every"]),
        ("another curve", "refused", ["usual", "every"]),
        ("another curve", "lost", ["usual", "every"]),
        ("lost", "-", ["usual"]),
    ],
)
def test_curves_that_a_connect_offers(
    make_connector: Callable[..., connect.Connector], usual: str, every: str, expected: list[str]
) -> None:
    """The usual one first; every curve with the same login where that may be the cure, and nothing else."""
    offered: list[tuple[str, Any]] = []

    def attempt(login: Login, way: connect.Way) -> Any:
        offered.append((login.password, way.context))
        answer = usual if len(offered) == 1 else every
        if answer == "taken":
            return answer
        error: Exception = Refused() if answer == "refused" else ConnectionResetError()
        if answer == "another curve":
            error.reason = "SSLV3_ALERT_HANDSHAKE_FAILURE"  # type: ignore[attr-defined]
        raise error

    source = Source("p", may_change=False, speaks=False)
    connector = make_connector(source, attempt, tls="verify-full", region="eu-west-1")
    if "taken" in (usual, every):
        assert connector.connect(None) == "taken"
    else:
        with pytest.raises((Refused, ConnectionResetError)):
            connector.connect(None)
    assert [password for password, _ in offered] == ["p"] * len(expected)
    assert all(first is not second for (_, first), (_, second) in pairwise(offered))
    assert len(offered) == len(expected)


def test_server_that_let_in_by_every_curve_and_refused_the_login_is_known(
    make_connector: Callable[..., connect.Connector],
) -> None:
    """A refused login is a handshake that was made: the next connect begins with what led to it."""
    contexts: list[Any] = []

    def attempt(_login: Login, way: connect.Way) -> Any:
        contexts.append(way.context)
        if len(contexts) == 1:
            error = ConnectionResetError()
            error.reason = "SSLV3_ALERT_HANDSHAKE_FAILURE"  # type: ignore[attr-defined]
            raise error
        if len(contexts) == 2:
            raise Refused
        return "connected"

    source = Source("p", may_change=False, speaks=False)
    connector = make_connector(source, attempt, tls="verify-full", region="eu-west-1")
    with pytest.raises(Refused):
        connector.connect(None)
    assert connector.connect(None) == "connected"
    assert connector.connect(None) == "connected"
    usual, every, again, once_more = contexts
    assert usual is not every
    assert again is once_more is every


def test_server_that_takes_the_usual_curve_is_offered_it_again(
    make_connector: Callable[..., connect.Connector],
) -> None:
    """The curve that saves a round trip stays the first choice where it works."""
    connector = make_connector(Source("p"), lambda _login, way: way.context, tls="verify-full", region="eu-west-1")
    assert connector.connect(None) is connector.connect(None) is tls.client_context(connector._settings)


@pytest.mark.parametrize("moment", [None, time.time() + 3600])
def test_new_connection_has_the_deadline_of_the_invocation(
    monkeypatch: pytest.MonkeyPatch, moment: float | None
) -> None:
    """Whatever the connect itself was limited by."""
    opened = SimpleNamespace(deadline=1.0)
    monkeypatch.setattr(wire, "connect", lambda **_parameters: opened)
    settings = Settings(host="localhost", user="app", password="p", tls="disable")
    invocation.end_at(moment)
    try:
        assert connect.Connector(settings, connect.Driver(settings, "orders")).connect(None) is opened
    finally:
        invocation.end_at(None)
    assert opened.deadline == moment


def test_first_listener_that_connects_is_the_last_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Listeners for `do_connect` see what the driver would be given; one that returns a connection makes the driver
    needless.
    """
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        wire, "connect", lambda **parameters: given.append(parameters) or SimpleNamespace(deadline=None)
    )
    settings = Settings(host="localhost", user="app", password="p", tls="disable")
    driver, opened, record = connect.Driver(settings, "orders"), SimpleNamespace(deadline=None), object()
    asked: list[tuple[str, Any]] = []

    def looks(_dialect: Any, of: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        asked.append(("looks", of))
        parameters["application_name"] = "changed"

    def connects(_dialect: Any, of: Any, _arguments: Any, parameters: dict[str, Any]) -> Any:
        asked.append((parameters["application_name"], of))
        return opened

    driver.dialect = SimpleNamespace(dispatch=SimpleNamespace(do_connect=[looks, connects, looks]))  # type: ignore[assignment]
    connector = connect.Connector(settings, driver)
    assert connector.connect(record) is opened
    assert (asked, given) == ([("looks", record), ("changed", record)], [])
    driver.dialect = SimpleNamespace(dispatch=SimpleNamespace(do_connect=[looks]))  # type: ignore[assignment]
    connector.connect(record)
    assert [parameters["application_name"] for parameters in given] == ["changed"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("C57P03|Mthe database system is not accepting connections|DHot standby mode is disabled.|RBackendInitialize",
         " (Hot standby mode is disabled)"),
        ("C53300|MZu viele Verbindungen für Rolle »app«|RInitializeSessionUserId",
         "; a role whose CONNECTION LIMIT is 0 is always refused"),
        ("C53300|Msorry, too many clients already|RInitProcess", ""),
        ("C53300|Mtoo many connections for role|", ""),
    ],
)  # fmt: skip
def test_what_a_refusal_leaves_open_is_said(fields: str, expected: str) -> None:
    """By the server's function, whatever the language; with its detail, as of a standby that lets nobody in."""
    error = server_error(fields.replace("|", "\0").encode() + b"\0\0")
    assert connect._may_stay(error) == expected
