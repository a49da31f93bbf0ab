"""The dialect's own doings: options of a URL, the default isolation level, names of cursors on the server."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from sqlalchemy import create_engine, text

from plungepool import wire

if TYPE_CHECKING:
    from plungepool_toolkit.fixtures import Database


@pytest.fixture
def url(database: Database) -> Any:
    return database.server.url("postgres", database.name).replace("postgresql://", "postgresql+plungepool://")


@pytest.fixture
def address(database: Database) -> dict[str, Any]:
    return {
        "user": "postgres",
        "host": database.server.host,
        "port": database.server.port,
        "database": database.name,
        "password": database.server.password,
    }


def test_options_of_a_url_have_their_types(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are numbers and `false` is false."""
    seen = {}
    connect = wire.connect
    query = "?connect_timeout_s=2.5&dead_peer_timeout_s=7&cancel_on_abandon=false&application_name=app"
    engine = create_engine(url + query)
    monkeypatch.setattr(wire, "connect", lambda **options: (seen.update(options), connect(**options))[1])
    with engine.connect() as connection:
        assert connection.execute(text("SHOW application_name")).scalar_one() == "app"
        assert connection.connection.dbapi_connection.cancel_on_abandon is False
    assert (seen["connect_timeout_s"], seen["dead_peer_timeout_s"]) == (2.5, 7.0)
    engine.dispose()


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("connect_timeout_s=soon", "connect_timeout_s must be a number of seconds"),
        ("cancel_on_abandon=0", "cancel_on_abandon must be true or false"),
        ("host=a&host=b", "host: a URL takes one host"),
        ("port=1", "port: a URL takes one host and one port"),
        ("sslmode=require", "sslmode is not an option.*ssl_context"),
        ("options=-c%20geqo%3Doff", "options is not an option.*startup_params"),
        ("connect_timeout=5", "the option is connect_timeout_s"),
        ("password=secret", "password is not an option"),
        (
            "colour=red",
            "colour is not an option of postgresql.plungepool: the options of a URL are address, application_name",
        ),
        ("application_name=a&application_name=b", "application_name is given more than once in the URL"),
    ],
)
def test_other_options_of_a_url_are_refused_by_name(query: Any, says: str) -> None:
    """One sentence that says what to write instead, and no TypeError; values are not quoted."""
    with pytest.raises(sqlalchemy.exc.ArgumentError, match=says) as raised:
        create_engine(f"postgresql+plungepool://app@localhost/db?{query}").connect()
    assert "secret" not in str(raised.value)


def test_errors_do_without_docstrings() -> None:
    """PYTHONOPTIMIZE=2, as a function may have it, takes them away."""
    code = (
        "from plungepool.dialect import dialect; from sqlalchemy import make_url; import sys; "
        "dialect().create_connect_args(make_url(sys.argv[1]))"
    )
    url = "postgresql+plungepool://u@h/d?connect_timeout_s=soon"
    done = subprocess.run([sys.executable, "-OO", "-c", code, url], check=False, capture_output=True, text=True)
    assert "connect_timeout_s must be a number of seconds" in done.stderr


def test_unknown_connect_args_are_refused_by_name(url: str) -> None:
    """The same for connect_args."""
    engine = create_engine(url, connect_args={"sslmode": "require"})
    with pytest.raises(sqlalchemy.exc.ArgumentError, match="sslmode is not an option"):
        engine.connect()


def test_default_isolation_level_is_the_roles(database: Database, url: str) -> None:
    """Also when the pool's only connection is the one that asks; a plain connect does not ask."""
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=5)
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection.flights == 0
        assert connection.default_isolation_level == "READ COMMITTED"
        database.execute(f"ALTER DATABASE {database.name} SET default_transaction_isolation = 'serializable'")
        assert connection.default_isolation_level == "SERIALIZABLE"
        assert connection.connection.dbapi_connection.flights == 0
    engine.dispose()


def test_half_read_streams_live_side_by_side(url: str) -> None:
    """
    A dozen streams of one transaction that are not read to their end, while the garbage collector reuses addresses.
    """
    engine = create_engine(url)
    with engine.connect() as connection:
        query = text("SELECT generate_series(1, 1000)")
        for _ in range(30):
            for row in connection.execution_options(yield_per=10).execute(query):
                assert row == (1,)
                break
        one, other = (iter(connection.execution_options(yield_per=2).execute(query)) for _ in range(2))
        assert [next(one)[0] for _ in range(5)] == [next(other)[0] for _ in range(5)] == [1, 2, 3, 4, 5]
    engine.dispose()
