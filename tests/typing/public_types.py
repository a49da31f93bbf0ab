"""
What users' type checkers see of the public names: test_public_types.py has mypy and pyright read this file.

It is never run. Where a type becomes wider, another or unknown, `assert_type` fails; where what is wrong is no longer
an error, the comment that expects one is an error itself.
"""

from collections.abc import Callable
from typing import Any, assert_type

from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session, sessionmaker

import plungepool
from plungepool import (
    ConnectionLeak,
    CredentialsError,
    DeadlineExceeded,
    OutcomeUnknown,
    PinningRefused,
    PlungepoolError,
    PoolExhausted,
    Settings,
    SettingsError,
    SettingsMissing,
    Unavailable,
    build_engine,
    dispose_engine,
    get_engine,
    guard_invocation,
    observe,
    once,
    run_transaction,
)
from plungepool_toolkit.environment import Environment, Invocation
from plungepool_toolkit.fixtures import Database
from plungepool_toolkit.postgres import Postgres

settings = Settings(host="db", user="app", password="x", pool_size=2, tls="verify-full")
assert_type(settings, Settings)
assert_type(settings.pool_size, int)
assert_type(settings.checkout_timeout_s, float)
assert_type(Settings.from_env({"PLUNGEPOOL_HOST": "db"}), Settings)
Settings(host=1, user="app")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
Settings("db")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
settings.pool_size = 3  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]

engine = get_engine()
assert_type(engine, Engine)
assert_type(get_engine(settings, echo=True), Engine)
assert_type(build_engine(settings), Engine)
assert_type(plungepool.__version__, str)
dispose_engine()


@guard_invocation
def handler(event: dict[str, int], context: object) -> list[str]:
    """A handler keeps its types."""
    with engine.begin() as connection:
        return list(connection.execute(text("SELECT :id"), event).scalars())


assert_type(handler({"id": 1}, None), list[str])
handler(1, None)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
with guard_invocation():
    pass


def count(connection: Connection) -> int:
    """What run_transaction is given, and gives back."""
    assert_type(once(connection, "key"), bool)
    return int(connection.execute(text("SELECT 1")).scalar_one())


def count_in_session(session: Session) -> tuple[int, str]:
    """The same of the ORM."""
    assert_type(once(session, "key", keep_s=60), bool)
    return 1, "one"


assert_type(run_transaction(engine, count), int)
assert_type(run_transaction(engine, count, attempts=3, isolation_level="SERIALIZABLE"), int)
assert_type(run_transaction(sessionmaker(engine), count_in_session), tuple[int, str])
run_transaction(engine, count_in_session)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]

errors: list[type[PlungepoolError]] = [
    ConnectionLeak,
    CredentialsError,
    DeadlineExceeded,
    OutcomeUnknown,
    PinningRefused,
    SettingsError,
    SettingsMissing,
]
value_error: type[ValueError] = SettingsError
timeout_error: type[TimeoutError] = DeadlineExceeded
pool_exhausted: type[Exception] = PoolExhausted
assert_type(Unavailable, tuple[type[Exception], ...])


def hear(tally: observe.Tally) -> None:
    """Who listens is told the numbers of an invocation."""
    assert_type(tally.as_dict(), dict[str, Any])


assert_type(observe.listen(hear), Callable[[], None])


def test_answers(database: Database, lambda_environment: Callable[..., Environment]) -> None:
    """The fixtures' types, as they are annotated in a test."""
    assert_type(database.server, Postgres)
    assert_type(database.execute("SELECT 1"), list[list[Any]])
    environment = lambda_environment("function", variables=database.variables())
    assert_type(environment.invoke({}), Invocation)


with Postgres() as server:
    assert_type(server, Postgres)
    assert_type(server.url(), str)
