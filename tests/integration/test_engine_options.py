"""SQLAlchemy's own options, those that contradict the settings, and its hook for connecting."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import JSON, Column, MetaData, Table, bindparam, event, insert, select, text

from plungepool import (
    CredentialsError,
    PoolExhausted,
    Settings,
    SettingsError,
    Unavailable,
    build_engine,
    dispose_engine,
    get_engine,
    wire,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from plungepool_toolkit.postgres import Postgres


@pytest.fixture
def settings(postgres: Postgres) -> Iterator[Settings]:
    """Settings of the run's server; the process starts and ends without a cached engine."""
    dispose_engine()
    yield Settings(host=postgres.host, port=postgres.port, user="postgres", password=postgres.password, tls="disable")
    dispose_engine()


def test_options_reach_the_engine(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """
    JSON by functions of one's own, AUTOCOMMIT, execution options, the cache's size and echo work as SQLAlchemy says.
    """
    engine = get_engine(
        settings,
        json_serializer=lambda value: json.dumps({"wrapped": value}),
        json_deserializer=lambda text: json.loads(text)["wrapped"],
        isolation_level="AUTOCOMMIT",
        execution_options={"colour": "blue"},
        query_cache_size=7,
        logging_name="pond",
    )
    documents = Table("documents", MetaData(), Column("body", JSON))
    with engine.connect() as connection:
        assert connection.get_execution_options()["colour"] == "blue"
        connection.execute(text("DROP TABLE IF EXISTS documents"))
        connection.execute(text("CREATE TABLE documents (body json)"))
        connection.execute(insert(documents), {"body": [1, 2]})
        assert connection.execute(select(documents.c.body)).scalar_one() == [1, 2]
        assert connection.execute(text("SELECT body ->> 'wrapped' FROM documents")).scalar_one() == "[1, 2]"
        assert connection.connection.dbapi_connection.autocommit is True  # type: ignore[union-attr]
        connection.execute(text("DROP TABLE documents"))
    assert engine._compiled_cache is not None
    assert engine._compiled_cache.capacity == 7
    engine.echo = True
    with caplog.at_level(logging.INFO), engine.connect() as connection:
        connection.execute(select(bindparam("x", "a secret")))
    assert "a secret" not in caplog.text
    engine.echo = False


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("pool_size", "PLUNGEPOOL_POOL_SIZE"),
        ("max_overflow", "PLUNGEPOOL_POOL_SIZE"),
        ("pool_timeout", "PLUNGEPOOL_CHECKOUT_TIMEOUT_S"),
        ("pool_recycle", "PLUNGEPOOL_MAX_AGE_S"),
        ("pool_pre_ping", "PLUNGEPOOL_PING_AFTER_IDLE_S"),
        ("poolclass", "PLUNGEPOOL_POOL"),
        ("creator", "PLUNGEPOOL_POOL"),
        ("connect_args", "settings"),
        ("hide_parameters", "values stay out of errors"),
        ("pool_use_lifo", "always"),
        ("pool_reset_on_return", "always"),
        ("paramstyle", r"\$1"),
        ("echo_pool", r"sqlalchemy\.pool"),
        ("pool_events", "event"),
        ("strategy", "another kind"),
    ],
)
def test_contradictions_are_refused_by_name(settings: Settings, option: str, instead: str) -> None:
    """An option that would undo a setting is an error that names it and what to use; nothing is cached by it."""
    with pytest.raises(SettingsError, match=f"{option}: .*{instead}"):
        get_engine(settings, **{option: 0})
    assert get_engine(settings)


def test_option_that_nobody_knows_is_sqlalchemys_error(settings: Settings) -> None:
    """A misspelt option is not swallowed."""
    with pytest.raises(TypeError, match="query_cash_size"):
        build_engine(settings, query_cash_size=1)


def test_two_calls_that_differ_are_an_error(settings: Settings) -> None:
    """
    The same options give the same engine; others, or none, an error that names what differs, and no second engine.
    """
    engine = get_engine(settings, echo=False, query_cache_size=9)
    assert get_engine(settings, query_cache_size=9, echo=False) is engine
    for other in (
        {"query_cache_size": 8, "echo": False},
        {},
        {"echo": False, "query_cache_size": 9, "label_length": 20},
    ):
        with pytest.raises(SettingsError, match=r"query_cache_size|label_length"):
            get_engine(settings, **other)
    dispose_engine()
    assert get_engine(settings) is not engine


def test_unavailable_is_what_may_succeed_later(make_engine: Callable[..., Engine]) -> None:
    """A server that is not there, an exhausted pool, a lost connection and a conflict are; a wrong statement is not."""
    engine = make_engine(checkout_timeout_s=0.05)

    def nested() -> None:
        with engine.connect(), engine.connect():
            pass

    def unreachable() -> None:
        with make_engine(port=1, checkout_timeout_s=0.05).connect():
            pass

    def run(sql: str) -> Callable[[], None]:
        def statement() -> None:
            with engine.begin() as connection:
                connection.execute(text(sql))

        return statement

    for cause in (
        nested,
        unreachable,
        run("SELECT pg_terminate_backend(pg_backend_pid())"),
        run("DO $$ BEGIN RAISE serialization_failure; END $$"),
    ):
        with pytest.raises(Unavailable):
            cause()
    for cause in (run("SELEC"), run("SELECT 1 / 0")):
        try:
            cause()
        except Unavailable as error:
            pytest.fail(f"{error} will not succeed later")
        except Exception:
            pass
    assert PoolExhausted in Unavailable
    assert CredentialsError in Unavailable


def test_do_connect_listeners_fire(make_engine: Callable[..., Engine], postgres: Postgres) -> None:
    """SQLAlchemy's hook gets the parameters of each connect, may change them, and may connect by itself."""
    engine = make_engine(pool="null")
    seen: list[dict[str, Any]] = []

    @event.listens_for(engine, "do_connect")
    def change(dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        seen.append(dict(parameters))
        parameters["application_name"] = "changed"
        if len(seen) == 2:
            return wire.connect(**parameters | {"application_name": "own"})
        return None

    for expected in ("changed", "own"):
        with engine.connect() as connection:
            assert connection.execute(text("SELECT current_setting('application_name')")).scalar_one() == expected
    assert seen[0]["user"] == "postgres"
    assert seen[0]["password"] == postgres.password
