"""
How a connect begins, what an attempt that failed leads to, and for how long what was seen of a server holds; offline.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from plungepool import CredentialsError, Settings, connect, invocation, wire
from plungepool.connect import Connector

if TYPE_CHECKING:
    from collections.abc import Callable

    from plungepool.connect import Way
    from plungepool.credentials import Login

AHEAD, STEPWISE = "ahead", "stepwise"


class Refused(Exception):
    """What the driver says of a login that the server refused."""

    sqlstate = "28P01"


class Opened:
    """A connection, and what the server asked for."""

    def __init__(self, authentication: str) -> None:
        self.authentication = authentication


class Server:
    """
    Asks for the password in one way, and takes it ahead or not; notes how each attempt came, and with how much time.
    """

    def __init__(self, asks: str = "password", *, refuses_ahead: Exception | None = None) -> None:
        self.asks, self.refuses_ahead = asks, refuses_ahead
        self.failures: list[Exception] = []
        self.ways: list[Way] = []
        self.logins: list[Login] = []

    def __call__(self, login: Login, way: Way) -> Opened:
        self.ways.append(way)
        self.logins.append(login)
        if self.failures:
            raise self.failures.pop(0)
        if way.password_ahead and self.refuses_ahead is not None:
            raise self.refuses_ahead
        if way.password_ahead and self.asks != "password":
            refusal = wire.PasswordAheadRefused("not before I ask")
            refusal.authentication = self.asks
            raise refusal
        return Opened(self.asks)

    @property
    def came(self) -> list[str]:
        """How each attempt came since this was asked last."""
        ways, self.ways = self.ways, []
        return [AHEAD if way.password_ahead else STEPWISE for way in ways]


@pytest.fixture(autouse=True)
def aws_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that sign tokens."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unmistakable-key")
    monkeypatch.delenv("AWS_CREDENTIAL_EXPIRATION", raising=False)


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the wall clock on."""
    ahead_s = 0.0
    now = time.time

    def move(seconds: float) -> None:
        nonlocal ahead_s
        ahead_s += seconds

    monkeypatch.setattr("plungepool.connect.time.time", lambda: now() + ahead_s)
    return move


def connector(**changes: Any) -> Connector:
    """What connects with a token, or as the changes say, to the server that is handed to its `connect`."""
    whole = {"host": "db.example", "user": "app", "auth": "iam", "region": "eu-west-1"} | changes
    return Connector(Settings(**whole), lambda server, login, way: server(login, way))


PASSWORD: dict[str, Any] = {"auth": "password", "password": "unmistakable"}


def test_token_goes_ahead_from_the_first_connect() -> None:
    """A token is for this server and for minutes: nothing has to be known of the server first."""
    tokens, server = connector(), Server()
    for _ in range(3):
        tokens.connect(server)
    assert server.came == [AHEAD] * 3


@pytest.mark.parametrize(
    ("asks", "then"), [("password", AHEAD), ("scram-sha-256", STEPWISE), ("md5", STEPWISE), ("trust", STEPWISE)]
)
def test_password_goes_ahead_only_where_it_was_asked_for_in_clear_text(asks: str, then: str) -> None:
    """A server that proves a password, or wants none, is never sent it."""
    passwords, server = connector(**PASSWORD), Server(asks)
    for _ in range(3):
        passwords.connect(server)
    assert server.came == [STEPWISE, then, then]


def test_nothing_goes_ahead_in_plain_text() -> None:
    """Without TLS nobody knows who is at the other end."""
    passwords, server = connector(**PASSWORD, tls="disable", host="localhost"), Server()
    for _ in range(2):
        passwords.connect(server)
    assert server.came == [STEPWISE] * 2


@pytest.mark.parametrize("changes", [{}, PASSWORD], ids=["token", "password"])
def test_stepwise_sends_nothing_before_it_is_asked(changes: dict[str, Any]) -> None:
    """PLUNGEPOOL_STARTUP=stepwise: for what sits between and throws away what it has not asked for."""
    patient, server = connector(**changes, startup="stepwise"), Server()
    for _ in range(3):
        patient.connect(server)
    assert server.came == [STEPWISE] * 3


def test_what_a_listener_has_led_elsewhere_shows_nothing() -> None:
    """A server for readers that asks for clear text: the login's own may prove a password, and never sees it."""
    passwords, server = connector(**PASSWORD), Server()

    def led(login: Login, way: Way) -> Opened:
        opened: Any = server(login, way)
        opened.host, opened.port, opened.user = "reader.example", login.port, login.user
        return opened  # type: ignore[no-any-return]

    for _ in range(2):
        passwords.connect(led)
    passwords.connect(server)
    assert server.came == [STEPWISE] * 3


def test_server_that_takes_none_ahead_gets_the_same_login_step_by_step() -> None:
    """In the same connect, and from the next one on at once, however often it asks for the password in clear text."""
    tokens, server = connector(), Server(refuses_ahead=wire.PasswordAheadRefused("one message at a time"))
    for _ in range(4):
        tokens.connect(server)
    assert server.came == [AHEAD, STEPWISE, STEPWISE, STEPWISE, STEPWISE]
    assert server.logins[0] is server.logins[1]


def test_what_was_refused_is_tried_again_after_an_hour(pass_time: Callable[[float], None]) -> None:
    """
    By the wall clock: a frozen environment's hour counts. A proxy that has learnt it meanwhile is sent it ahead again.
    """
    tokens, server = connector(), Server(refuses_ahead=wire.PasswordAheadRefused("one message at a time"))
    tokens.connect(server)
    pass_time(3500)
    tokens.connect(server)
    assert server.came == [AHEAD, STEPWISE, STEPWISE]
    pass_time(200)
    server.refuses_ahead = None
    tokens.connect(server)
    tokens.connect(server)
    assert server.came == [AHEAD, AHEAD]


def test_server_that_asks_otherwise_after_a_failover_is_followed() -> None:
    """Clear text before, SCRAM now: one attempt shows it, and the password is sent ahead no more."""
    passwords, server = connector(**PASSWORD), Server()
    passwords.connect(server)
    server.asks = "scram-sha-256"
    passwords.connect(server)
    passwords.connect(server)
    assert server.came == [STEPWISE, AHEAD, STEPWISE, STEPWISE]


def test_server_that_asks_for_clear_text_again_is_sent_a_token_ahead_again() -> None:
    """What it asked for was the reason, and the next connect shows that it is none any more."""
    tokens, server = connector(), Server("scram-sha-256")
    tokens.connect(server)
    tokens.connect(server)
    server.asks = "password"
    tokens.connect(server)
    tokens.connect(server)
    assert server.came == [AHEAD, STEPWISE, STEPWISE, STEPWISE, AHEAD]


@pytest.mark.parametrize("failure", [wire.OperationalError("lost"), Refused("no")], ids=["lost", "refused"])
def test_a_failed_connect_ends_what_was_seen(failure: Exception) -> None:
    """Whoever comes up after it may be another server: begin as if nothing were known."""
    passwords, server = connector(**PASSWORD), Server()
    passwords.connect(server)
    server.failures = [failure]
    with pytest.raises(type(failure)):
        passwords.connect(server)
    passwords.connect(server)
    assert server.came == [STEPWISE, AHEAD, STEPWISE]


def test_a_snapshot_ends_what_was_seen() -> None:
    """A restored environment meets whichever server there is by then."""
    passwords, server = connector(**PASSWORD), Server()
    passwords.connect(server)
    passwords.forget()
    passwords.connect(server)
    assert server.came == [STEPWISE, STEPWISE]


def test_another_place_is_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a secret names another host than before, nothing is known of it."""
    passwords, server = connector(**PASSWORD), Server()
    passwords.connect(server)
    monkeypatch.setattr(passwords, "_source", connect.source(Settings(host="other.example", user="app", password="x")))
    passwords.connect(server)
    assert server.came == [STEPWISE, STEPWISE]


def test_refused_token_is_a_matter_of_tokens_and_not_of_the_way() -> None:
    """28P01 after a password that went ahead is answered with another token, sent ahead, too."""
    tokens, server = connector(), Server()
    server.failures = [Refused("no"), Refused("no")]
    with pytest.raises(CredentialsError):
        tokens.connect(server)
    assert server.came == [AHEAD, AHEAD]


@pytest.mark.parametrize("seconds", [4.0, 4.007, 4.013])
def test_a_proxy_that_may_throw_away_what_goes_ahead_has_half_the_time(
    pass_time: Callable[[float], None], seconds: float
) -> None:
    """
    It waits for a password and the client for it: half the time for a connect later the client begins again, step by
    step.
    """
    tokens = connector(endpoint="proxy", connect_timeout_s=seconds)
    server = Server()

    def swallow(login: Login, way: Way) -> Opened:
        if way.password_ahead:
            pass_time(way.timeout_s)
            server.failures = [wire.OperationalError("no answer in time")]
        return server(login, way)

    tokens.connect(swallow)
    assert [round(way.timeout_s) for way in server.ways] == [2, 2]
    assert server.came == [AHEAD, STEPWISE]
    tokens.connect(swallow)
    assert [round(way.timeout_s) for way in server.ways] == [4]
    assert server.came == [STEPWISE]


def test_a_proxy_that_has_taken_one_has_the_whole_time() -> None:
    """What was proven is not doubted; and a database's own server, which keeps what it is sent, never is."""
    tokens, server = connector(endpoint="proxy", connect_timeout_s=4), Server()
    tokens.connect(server)
    tokens.connect(server)
    connector(connect_timeout_s=4).connect(server)
    assert [round(way.timeout_s) for way in server.ways] == [2, 4, 4]


def test_a_lost_network_is_not_tried_again() -> None:
    """An attempt that fails before its time is over fails as ever."""
    tokens, server = connector(endpoint="proxy"), Server()
    server.failures = [wire.OperationalError("no way there")]
    with pytest.raises(wire.OperationalError, match="no way there"):
        tokens.connect(server)
    assert server.came == [AHEAD]


def test_the_invocation_bounds_every_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier of the connect's own time and the invocation's end."""
    monkeypatch.setattr(invocation, "_end", time.time() + 1)
    tokens, server = connector(connect_timeout_s=4), Server()
    tokens.connect(server)
    assert 0.5 < server.ways[0].timeout_s <= 1


def test_a_failure_leaves_no_circle() -> None:
    """What an attempt raised is freed when its caller lets go of it, and with it whatever its frames hold."""
    import gc
    import weakref

    class Held:
        pass

    def fail(_login: Login, _way: Way) -> None:
        held = Held()
        kept.append(weakref.ref(held))
        raise wire.OperationalError("lost")

    kept: list[weakref.ref[Held]] = []
    gc.disable()
    try:
        with pytest.raises(wire.OperationalError):
            connector().connect(fail)
        assert kept[0]() is None
    finally:
        gc.enable()
