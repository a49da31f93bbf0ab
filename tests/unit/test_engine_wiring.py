"""
What the settings say is what the driver, the pool and SQLAlchemy are given: seen at the seam between them, offline.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, exc

from plungepool import (
    PoolExhausted,
    Settings,
    SettingsError,
    connect,
    dispose_engine,
    engine,
    get_engine,
    invocation,
    lifecycle,
    pinning,
    wire,
)
from plungepool.credentials import Login

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reached(Exception):
    """The connect came as far as the driver."""


@pytest.fixture(autouse=True)
def forget_engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start and end without a cached engine."""
    dispose_engine()
    yield
    dispose_engine()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What wire.connect was called with; no connection comes of it."""
    calls: list[dict[str, Any]] = []

    def connect(**parameters: Any) -> None:
        calls.append(parameters)
        raise Reached

    monkeypatch.setattr(wire, "connect", connect)
    return calls


def settings(**changes: Any) -> Settings:
    """Settings of a server that is not there."""
    return Settings(**({"host": "db.invalid", "user": "app", "password": "hunter2", "tls": "disable"} | changes))


def parameters(given: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """What the driver is given by an engine of these settings."""
    with pytest.raises(Reached):
        engine.build_engine(settings(**changes)).connect()
    return given[-1]


def test_every_setting_of_a_connection_reaches_the_driver(given: list[dict[str, Any]]) -> None:
    """Each of them under its own name, with a value that no default has."""
    found = parameters(
        given,
        port=6543,
        database="orders",
        address="127.0.0.9",
        dead_peer_timeout_s=7.0,
        connect_timeout_s=3.0,
        statement_timeout_s=1.5,
    )
    timeout_s = found.pop("connect_timeout_s")
    assert 2 < timeout_s <= 3
    assert found == {
        "user": "app",
        "password": "hunter2",
        "host": "db.invalid",
        "port": 6543,
        "address": "127.0.0.9",
        "database": "orders",
        "ssl_context": None,
        "application_name": "plungepool",
        "dead_peer_timeout_s": 7.0,
        "startup_params": {"statement_timeout": "1500"},
        "tls_negotiation": "postgres",
        "password_ahead": False,
        "cancel_on_abandon": True,
    }


@pytest.mark.parametrize(("seconds", "expected"), [(0.001, "1"), (0.0016, "2"), (30.0, "30000")])
def test_statement_timeout_is_in_milliseconds_and_never_zero(
    given: list[dict[str, Any]], seconds: float, expected: str
) -> None:
    """PostgreSQL takes 0 for "no limit", so a limit below a millisecond is one millisecond."""
    assert parameters(given, statement_timeout_s=seconds)["startup_params"] == {"statement_timeout": expected}


def test_no_statement_timeout_sends_none(given: list[dict[str, Any]]) -> None:
    """Without the setting the server's own, and the role's, are left alone."""
    assert parameters(given)["startup_params"] == {}


def test_no_cancel_request_behind_a_proxy(given: list[dict[str, Any]]) -> None:
    """RDS Proxy does not forward it; a new connection for nothing is what it would cost."""
    assert parameters(given, endpoint="proxy")["cancel_on_abandon"] is False
    assert parameters(given, endpoint="direct")["cancel_on_abandon"] is True


def test_tls_hands_a_context_that_verifies(given: list[dict[str, Any]]) -> None:
    """Where the settings do not disable it, the driver is given the context of these settings."""
    context = parameters(given, tls="verify-full", region="eu-west-1")["ssl_context"]
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


@pytest.mark.parametrize(
    "change",
    [{"ssl_context": None}, {"host": "reader"}, {"port": 5433}, {"address": "a:1"}, {"user": "v"}, {"password": "q"}],
)
def test_nothing_goes_ahead_where_a_listener_has_chosen_another_server(
    given: list[dict[str, Any]], change: dict[str, Any]
) -> None:
    """
    Or another context: what that verifies, or that one asks for, nobody knows; a listener that leaves both alone
    changes nothing.
    """
    built = engine.build_engine(settings())
    driver = connect.Driver(settings(), "test")
    driver.dialect = built.dialect
    login, way = Login("u", "p", "h", 5432, "d"), connect.Way(object(), 1.0, True)  # type: ignore[arg-type]
    for changed in ({"application_name": "other"}, change):
        event.listen(built, "do_connect", lambda *arguments, changed=changed: arguments[3].update(changed))
        with pytest.raises(Reached):
            driver(None, login, way)
    assert [one["password_ahead"] for one in given] == [True, False]


def test_tls_at_once_reaches_the_driver(given: list[dict[str, Any]]) -> None:
    """With a context for it, as the driver asks."""
    found = parameters(given, tls="verify-full", region="eu-west-1", tls_negotiation="direct")
    assert (found["tls_negotiation"], found["ssl_context"] is not None) == ("direct", True)


def test_parameters_show_no_password(given: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A crash reporter prints the locals of frames, and goes through dictionaries: what holds the parameters is none.
    """
    held: list[Any] = []
    original = connect._Parameters.__init__

    def keep(self: Any, **values: Any) -> None:
        original(self, **values)
        held.append(self)

    monkeypatch.setattr(connect._Parameters, "__init__", keep)
    parameters(given)
    assert not isinstance(held[0], Mapping)
    assert "hunter2" not in repr(held[0])


@pytest.mark.parametrize(("endpoint", "rows"), [("proxy", 100), ("direct", 1000)])
def test_rows_of_one_insert_stay_below_what_pins(endpoint: Any, rows: int) -> None:
    """
    Behind RDS Proxy a statement of more than 16 KB pins, so there SQLAlchemy puts fewer rows into one; an option
    overrides.
    """
    assert engine.build_engine(settings(endpoint=endpoint)).dialect.insertmanyvalues_page_size == rows
    assert engine.build_engine(settings(), insertmanyvalues_page_size=7).dialect.insertmanyvalues_page_size == 7


@pytest.mark.parametrize("mode", ["refuse", "warn"])
def test_pinning_is_guarded_behind_a_proxy_only(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    """The guard is set with the mode of the settings, and on no direct connection."""
    guarded: list[tuple[str, str]] = []
    monkeypatch.setattr(pinning, "guard_pinning", lambda _, mode, setting: guarded.append((mode, setting)))
    engine.build_engine(settings(endpoint="direct", pinning=mode))
    assert guarded == []
    engine.build_engine(settings(endpoint="proxy", pinning=mode, prefix="REPORTS_"))
    assert guarded == [(mode, "REPORTS_PLUNGEPOOL_PINNING")]


@pytest.mark.parametrize(("endpoint", "imported"), [("direct", []), ("proxy", ["pinning", "statements"])])
def test_guard_is_imported_behind_a_proxy_only(endpoint: str, imported: list[str]) -> None:
    """A function with a direct endpoint pays nothing for the guard; behind a proxy all of it comes with the engine."""
    program = f"""
import sys
from plungepool import Settings, build_engine
assert not {{"plungepool.pinning", "plungepool.statements"}} & set(sys.modules)
build_engine(Settings(host="h", user="u", password="p", endpoint={endpoint!r}, slow_query_s=0))
print([name for name in ("pinning", "statements") if f"plungepool.{{name}}" in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(imported), done.stderr


@pytest.mark.parametrize("name", sorted(engine._DECIDED))
def test_contradicting_options_are_refused_by_name(name: str) -> None:
    """Each says what to use instead, by get_engine and by build_engine."""
    for build in (get_engine, engine.build_engine):
        with pytest.raises(SettingsError, match=rf"does not take the option {name}: .{{10}}"):
            build(settings(), **{name: object()})


def test_other_options_than_the_first_are_refused() -> None:
    """The error names what differs, and nothing that is the same; the first engine stays."""
    first = get_engine(settings(), echo=False, query_cache_size=7)
    with pytest.raises(SettingsError, match=r"different options \(query_cache_size\)"):
        get_engine(settings(), echo=False, query_cache_size=8)
    assert get_engine(settings(), echo=False, query_cache_size=7) is first


def test_variables_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without settings the environment is parsed by the first call alone."""
    monkeypatch.setenv("PLUNGEPOOL_URL", "postgresql://app:x@db.invalid/postgres")
    first = get_engine()
    monkeypatch.setattr(Settings, "from_env", lambda *_: pytest.fail("read again"))
    assert get_engine() is first


class Driver:
    """A connection whose deadline can be looked at."""

    deadline: float | None = None


@pytest.fixture
def invocation_ends(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the moment at which the invocation has to be over; nobody has said so any more after the test."""
    monkeypatch.setattr(invocation, "_end", None)
    return invocation.end_at


def test_a_connect_has_no_more_time_than_the_invocation(given: list[dict[str, Any]], invocation_ends: Any) -> None:
    """The settings' time-out, or what is left of the invocation if that is less."""
    invocation_ends(time.time() + 1.5)
    assert 1 < parameters(given, connect_timeout_s=5)["connect_timeout_s"] <= 1.5
    assert parameters(given, connect_timeout_s=0.5)["connect_timeout_s"] <= 0.5


def test_a_new_connection_has_the_deadline_of_the_invocation(
    monkeypatch: pytest.MonkeyPatch, invocation_ends: Any
) -> None:
    """The driver leaves none behind after a connect of its own time; one that a listener has opened gets it as well."""
    opened = [Driver(), Driver()]
    monkeypatch.setattr(wire, "connect", lambda **_: opened[0])
    driver = connect.Driver(settings(), "test")
    ends = time.time() + 9
    invocation_ends(ends)
    login, way = Login("u", "p", "h", 5432, "d"), connect.Way(None, 1.0, False)
    assert driver(None, login, way).deadline == ends
    built = engine.build_engine(settings())
    event.listen(built, "do_connect", lambda *_: opened[1])
    driver.dialect = built.dialect
    assert driver(None, login, way) is opened[1]  # type: ignore[comparison-overlap]
    assert opened[1].deadline == ends


def test_snapshot_forgets_secrets_and_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine hands to the lifecycle drops the fetched secret and what was learnt of the server."""
    forgotten: list[str] = []

    class Source:
        def forget(self) -> None:
            forgotten.append("secret")

    monkeypatch.setattr(connect, "source", lambda _: Source())
    monkeypatch.setattr(connect.Connector, "_learn_nothing", lambda self: forgotten.append("handshakes"))
    built = engine.build_engine(settings())
    forgotten.clear()
    forget, _, connect_ahead = lifecycle._engines[built]
    forget()
    assert connect_ahead is None
    assert sorted(forgotten) == ["handshakes", "secret"]


def test_dispose_engine_closes_each_engine_once_and_forgets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """It disposes of every engine that get_engine built, under whichever name, and the next call builds anew."""
    monkeypatch.setenv("PLUNGEPOOL_URL", "postgresql://app:x@db.invalid/postgres")
    built = {get_engine(), get_engine(settings(host="other.invalid"))}
    disposed: list[Any] = []
    monkeypatch.setattr(
        "sqlalchemy.engine.base.Engine.dispose", lambda self, close=True: disposed.append((self, close))
    )
    dispose_engine()
    assert len(disposed) == 2
    assert set(disposed) == {(one, True) for one in built}
    assert get_engine() not in built


def test_unavailable_is_what_may_succeed_later() -> None:
    """The four errors, and none of a statement that is wrong."""
    assert {PoolExhausted, exc.OperationalError, exc.InterfaceError} <= set(engine.Unavailable)
    assert not issubclass(exc.ProgrammingError, engine.Unavailable)
    assert not issubclass(exc.IntegrityError, engine.Unavailable)


def test_variables_after_equal_settings_give_the_same_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way was first: a second engine would be a second connection for this environment."""
    monkeypatch.setenv("PLUNGEPOOL_URL", "postgresql://app@db.invalid/postgres")
    monkeypatch.setenv("PLUNGEPOOL_PASSWORD", "x")
    monkeypatch.delenv("AWS_REGION", raising=False)
    first = get_engine(Settings(host="db.invalid", user="app", password="x"))
    assert get_engine() is first


@pytest.mark.parametrize("seconds", [0.5, 1.337])
def test_time_for_a_connect_is_in_hundredths_and_no_more_than_the_settings(
    given: list[dict[str, Any]], seconds: float
) -> None:
    """What a short time-out leaves is not lengthened, and an error can say it as it is."""
    found = parameters(given, connect_timeout_s=seconds)["connect_timeout_s"]
    assert seconds - 0.4 < found <= seconds + 0.005
    assert found == round(found, 2)


@pytest.mark.parametrize(("tls", "expected"), [("verify-full", True), ("disable", False)])
def test_tls_is_imported_where_the_engine_is_built(tls: str, expected: bool) -> None:
    """At init and not in the first connect, where a time-out may strike; and not at all where it is not spoken."""
    program = (
        "import sys; from plungepool import Settings, build_engine\n"
        f"build_engine(Settings(host='db.invalid', user='app', password='x', tls={tls!r}))\n"
        "print('ssl' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == str(expected)
