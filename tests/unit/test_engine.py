"""The engine as it is built: from which settings, how often, and without touching the network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, exc

import plungepool
from plungepool import PlungepoolError, Settings, SettingsError, dispose_engine, engine, get_engine, pool

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = Settings(host="db.invalid", user="app", password="hunter2-hunter2")


@pytest.fixture(autouse=True)
def forget_engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start and end without a cached engine, and without variables of the machine."""
    for name in [name for name in os.environ if name.startswith("PLUNGEPOOL_")]:
        monkeypatch.delenv(name)
    dispose_engine()
    yield
    dispose_engine()


def test_engine_is_plain_and_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """get_engine returns SQLAlchemy's own class and neither resolves a name nor connects."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: pytest.fail("resolved a name"))
    built = get_engine(SETTINGS)
    assert type(built) is Engine
    assert built.pool.checkedin() == 0
    assert built.hide_parameters is True


def test_engine_shows_no_password() -> None:
    """Its repr and URL tell host and user, and nothing secret."""
    built = get_engine(SETTINGS)
    shown = f"{built!r} {built.url!r} {built.url.render_as_string(hide_password=False)} {built.pool!r}"
    assert "db.invalid" in shown
    assert "hunter2" not in shown


def test_one_engine_for_each_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal settings share an engine, whether they come from variables or keywords; others have their own."""
    monkeypatch.setenv("PLUNGEPOOL_URL", "postgresql://app@db.invalid/postgres")
    monkeypatch.setenv("PLUNGEPOOL_PASSWORD", "hunter2-hunter2")
    monkeypatch.delenv("AWS_REGION", raising=False)
    assert get_engine() is get_engine()
    assert get_engine() is get_engine(SETTINGS)
    assert get_engine(Settings(host="other.invalid", user="app", password="x")) is not get_engine()


def test_dispose_engine_forgets_so_that_variables_are_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """After dispose_engine, the next get_engine looks at the variables again."""
    monkeypatch.setenv("PLUNGEPOOL_URL", "postgresql://app:hunter2@first.invalid/postgres")
    assert get_engine().url.host == "first.invalid"
    monkeypatch.setenv("PLUNGEPOOL_URL", "postgresql://app:hunter2@second.invalid/postgres")
    assert get_engine().url.host == "first.invalid"
    dispose_engine()
    assert get_engine().url.host == "second.invalid"


def test_wrong_variables_raise_at_get_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function with wrong settings fails at its init, with every problem named, and builds nothing."""
    monkeypatch.setenv("PLUNGEPOOL_HSOT", "x")
    with pytest.raises(SettingsError, match=r"PLUNGEPOOL_HSOT is not a setting.*PLUNGEPOOL_HOST is missing"):
        get_engine()


def test_thirty_two_threads_build_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads ask first, one engine is built and all get it."""
    builds: list[Settings] = []
    build = engine.build_engine

    def slowly(settings: Settings) -> Engine:
        builds.append(settings)
        threading.Event().wait(0.05)  # long enough for every thread to arrive
        return build(settings)

    monkeypatch.setattr(engine, "build_engine", slowly)
    start, got = threading.Barrier(32), []

    def ask() -> None:
        start.wait()
        got.append(get_engine(SETTINGS))

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(got) == 32
    assert len(set(map(id, got))) == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_another_thread_builds_does_not_deadlock() -> None:
    """A child forked while a thread of the parent holds the lock can still build its engine."""
    with engine._lock:
        child = os.fork()
        if child == 0:
            get_engine(SETTINGS)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_fork_during_the_very_first_build_does_not_deadlock() -> None:
    """The same in a process that has never built an engine: what makes a fork safe must not wait for the first one."""
    program = """
import os, signal
from plungepool import Settings, engine, get_engine
with engine._lock:
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        get_engine(Settings(host="db.invalid", user="app", password="unused"))
        os._exit(0)
    _, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status) != 0)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


@pytest.mark.parametrize(("environ", "expected"), [
    ({}, "plungepool"),
    ({"AWS_LAMBDA_FUNCTION_NAME": "orders", "AWS_LAMBDA_FUNCTION_VERSION": "7"}, "orders:7"),
    ({"AWS_LAMBDA_FUNCTION_NAME": "x" * 64, "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST"}, "x" * 55 + ":$LATEST"),
])  # fmt: skip
def test_application_name_tells_function_and_version(environ: dict[str, str], expected: str) -> None:
    """pg_stat_activity shows who holds a connection; PostgreSQL keeps 63 bytes, so the version must fit in them."""
    assert engine.application_name(environ) == expected
    assert len(expected.encode()) <= 63


@pytest.mark.parametrize(("name", "keeps"), [("tiny", True), ("null", False)])
def test_pool_follows_the_settings(name: str, keeps: bool) -> None:
    """Size, time-out, age and policy are the settings', also after dispose(); there is no overflow."""
    settings = Settings(host="h", user="u", password="p", pool=name, pool_size=3, checkout_timeout_s=2, max_age_s=60)
    built = engine.build_engine(settings).pool
    assert isinstance(built, pool.BoundedPool)
    for one in (built, built.recreate()):
        assert (one.size(), one.timeout(), one.overflow()) == (3, 2, 0)
        assert isinstance(one._examine, pool.Examiner)
        assert one._examine._max_age_s == 60
        assert one._keep(object()) is keeps


def test_pool_exhausted_is_sqlalchemys_timeout_too() -> None:
    """Code that catches SQLAlchemy's TimeoutError goes on working."""
    assert issubclass(plungepool.PoolExhausted, exc.TimeoutError)
    assert issubclass(plungepool.PoolExhausted, PlungepoolError)


def test_public_names_are_what_is_documented() -> None:
    """__all__ holds the interface of the README and nothing else."""
    assert sorted(plungepool.__all__) == sorted(name for name in vars(plungepool) if name in plungepool.__all__)
    for name in plungepool.__all__:
        assert getattr(plungepool, name).__doc__
