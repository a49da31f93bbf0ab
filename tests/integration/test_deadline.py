"""A deadline has one error, whoever raises it, and `except` of each world catches it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import exc, text
from sqlalchemy.orm import Session

import plungepool
from plungepool import DeadlineExceeded, PlungepoolError, Unavailable, invocation, wire
from plungepool_toolkit.network import ChaosProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from plungepool_toolkit.postgres import Postgres


@pytest.fixture(autouse=True)
def no_invocation() -> Iterator[None]:
    """Nobody has said when the invocation ends, neither before nor after a test."""
    invocation.end_at(None)
    yield
    invocation.end_at(None)


def ends_in(seconds: float) -> None:
    """The invocation is over then."""
    invocation.end_at(time.time() + seconds)


def by_connection(engine: Engine) -> None:
    """A statement that takes too long."""
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(9)"))


def by_session(engine: Engine) -> None:
    """The same by the ORM."""
    with Session(engine) as session:
        session.execute(text("SELECT pg_sleep(9)"))


def by_commit(engine: Engine) -> None:
    """A transaction whose time is over before its COMMIT."""
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        time.sleep(0.4)


KINDS = (DeadlineExceeded, TimeoutError, PlungepoolError, exc.OperationalError, exc.DBAPIError, Unavailable)


@pytest.mark.parametrize("use", [by_connection, by_session, by_commit])
def test_every_except_clause_catches_it(engine: Engine, use: Callable[[Engine], None]) -> None:
    """By this package's name, Python's and SQLAlchemy's; what the driver raised is `orig`; the next checkout works."""
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    ends_in(0.3)
    with pytest.raises(exc.OperationalError) as caught:
        use(engine)
    error = caught.value
    assert [kind for kind in KINDS if not isinstance(error, kind)] == []
    assert isinstance(error.orig, wire.DeadlineExceeded)
    # On a busy machine the time may be over before there is a connection.
    assert error.connection_invalidated or "had ended before a connection" in str(error)
    invocation.end_at(None)
    by_short_statement(engine)


def by_short_statement(engine: Engine) -> None:
    """A statement that takes no time."""
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_its_text_has_the_statement_and_no_value(engine: Engine) -> None:
    """As SQLAlchemy words it, and not as Python words an error of the system."""
    with engine.connect() as connection:
        ends_in(0.2)
        connection.connection.dbapi_connection.deadline = invocation.deadline()  # type: ignore[union-attr]
        with pytest.raises(
            DeadlineExceeded, match=r"had not answered at the deadline|the deadline has passed"
        ) as caught:
            connection.execute(text("SELECT pg_sleep(9), CAST(:x AS text)"), {"x": "unmistakable"})
    assert "[SQL: SELECT pg_sleep(9)" in str(caught.value)
    assert "unmistakable" not in str(caught.value)


def test_the_drivers_own_is_one_of_the_drivers(postgres: Postgres) -> None:
    """Without SQLAlchemy it is an OperationalError of PEP 249, by its old name, too."""
    connection = wire.connect(user="postgres", host=postgres.host, port=postgres.port, password=postgres.password)
    connection.deadline = time.time() + 0.1
    with pytest.raises(wire.OperationalError) as caught:
        connection.cursor().execute("SELECT pg_sleep(9)")
    assert isinstance(caught.value, (DeadlineExceeded, TimeoutError))
    assert type(caught.value) is wire.DeadlinePassed
    assert isinstance(caught.value, Unavailable)
    assert caught.value.sqlstate is None


def test_an_invocation_that_ends_while_connecting_says_so(make_engine: Callable[..., Engine]) -> None:
    """A host that answers nothing: the invocation was over, and how far the last attempt came stands there, too."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = make_engine(host="127.0.0.1", port=silent.getsockname()[1])
        ends_in(0.3)
        started = time.time()
        with pytest.raises(DeadlineExceeded, match="the invocation had ended before a connection to") as caught:
            engine.connect()
        assert time.time() - started < 3
        assert isinstance(caught.value, exc.OperationalError)
        assert "; the last attempt: no connection to 127.0.0.1:" in str(caught.value)
        assert "had not finished" in str(caught.value)
        invocation.end_at(None)
    refused = make_engine(port=1)
    ends_in(1.5)
    with pytest.raises(exc.OperationalError) as other:
        refused.connect()
    assert not isinstance(other.value, DeadlineExceeded)


def test_other_errors_keep_their_class(engine: Engine) -> None:
    """Nothing else is renamed."""
    with pytest.raises(exc.DataError) as caught, engine.connect() as connection:
        connection.execute(text("SELECT 1 / 0"))
    assert type(caught.value) is exc.DataError
    assert plungepool.DeadlineExceeded is DeadlineExceeded


@pytest.mark.parametrize("how", ["silent", "ended"])
def test_a_streamed_result_ends_with_its_connection(
    make_engine: Callable[..., Engine], postgres: Postgres, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """To close it is for the server, which is gone: SQLAlchemy has no traceback to log, and the next checkout works."""
    with ChaosProxy(postgres.host, postgres.port) as proxy:
        engine = make_engine(host=proxy.host, port=proxy.port)
        with engine.connect().execution_options(stream_results=True, max_row_buffer=2) as connection:
            result = connection.execute(text("SELECT pg_backend_pid() FROM generate_series(1, 99)"))
            process = result.scalars().fetchmany(1)[0]
            if how == "silent":
                proxy.partition()
                connection.connection.dbapi_connection.deadline = time.time() + 0.2  # type: ignore[union-attr]
            else:
                postgres.execute("SELECT pg_terminate_backend($1::int, 5000)", process)
            caplog.clear()
            result.close()
        assert [one.getMessage() for one in caplog.records if one.name.startswith("sqlalchemy")] == []
        proxy.heal()
        by_short_statement(engine)
