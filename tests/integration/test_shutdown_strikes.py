"""SIGTERM at any line: when its handler returns no connection is left, and what goes on afterwards works."""

from __future__ import annotations

import random
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until
from sqlalchemy import exc, text

from plungepool import lifecycle, shutdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from sqlalchemy import Engine

    from plungepool_toolkit.postgres import Postgres

STRIKES = 800
STRUCK_MODULES = ("sqlalchemy.pool", "sqlalchemy.engine", "plungepool.", "weakref", "contextlib")
ONE = text("SELECT 1")
# One that Lambda's runtime client would set: its main thread hears signals.
LAMBDA = {"AWS_EXECUTION_ENV": "AWS_Lambda_python3.13", "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:1"}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Set the handler of SIGTERM; what was there before notes each signal, and the process goes on."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    shutdown.listen(LAMBDA, register=False)
    yield signals
    signal.signal(signal.SIGTERM, before)


class Striker:
    """Sends SIGTERM to this process at the n-th line that is executed in the modules of interest."""

    def __init__(self, at: int) -> None:
        self.left, self.struck = at, False

    def enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self.look if frame.f_globals.get("__name__", "").startswith(STRUCK_MODULES) else None

    def look(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.struck = True
            # The handler runs before this line is left, and is not traced.
            signal.raise_signal(signal.SIGTERM)
            opened = [reference() for reference in lifecycle._opened.copy()]
            # One in the middle of a flight keeps its descriptor for whoever is at work with it.
            assert all(connection is None or connection.closed for connection in opened)
        return self.look


def work(engine: Engine) -> None:
    """Check out, perhaps connect, execute in a transaction, return."""
    with engine.begin() as connection:
        for _ in range(2):
            connection.execute(ONE)


def strike(engine: Engine, at: int) -> Striker:
    """Do the work and be struck, if it comes so far. What the work raises then is the database's error."""
    striker = Striker(at)
    sys.settrace(striker.enter)
    try:
        work(engine)
    except exc.DBAPIError as error:
        assert striker.struck, error
    finally:
        sys.settrace(None)
    return striker


@pytest.mark.parametrize("size", [1, 2])
def test_between_any_two_lines(
    make_engine: Callable[..., Engine], postgres: Postgres, heard: list[int], size: int
) -> None:
    """Nothing hangs, no connection is left, the handler before is called, and the next checkout works."""
    engine = make_engine(pool_size=size, database="postgres")
    dice = random.Random(size)
    work(engine)
    for number in range(STRIKES // 2):
        if cold := number % 2 == 0:
            engine.dispose()
        signals = len(heard)
        # As many lines as there are, with a connect and without.
        struck = strike(engine, dice.randrange(1, 3300 if cold else 2100)).struck
        assert len(heard) - signals == struck
        work(engine)
    engine.dispose()
    wait_until(lambda: sessions(postgres) == 0)


def test_while_other_threads_are_at_work(
    make_engine: Callable[..., Engine], postgres: Postgres, heard: list[int]
) -> None:
    """Their flights are cut off, and their statements stopped, whichever moment it is for them."""
    engine = make_engine(pool_size=3)
    over = threading.Event()
    unexpected: list[BaseException] = []

    def be_at_work() -> None:
        while not over.is_set():
            try:
                work(engine)
            except exc.DBAPIError:
                pass
            except BaseException as error:
                unexpected.append(error)
                raise

    threads = [threading.Thread(target=be_at_work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(60):
        over.wait(random.Random(number).uniform(0, 0.01))
        signal.raise_signal(signal.SIGTERM)
    over.set()
    for thread in threads:
        thread.join()
    assert unexpected == []
    assert len(heard) == 60
    work(engine)
    engine.dispose()
    wait_until(lambda: sessions(postgres) == 0)


def sessions(postgres: Postgres) -> int:
    """Return how many sessions of this application the server counts."""
    ((count,),) = postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'plungepool'")
    return int(count)
