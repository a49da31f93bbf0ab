"""What the stories are told with: where a handler's database is, what is asked of it, and what the server sees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable

    from black_hole import BlackHole

    from plungepool_toolkit.environment import Environment, Invocation
    from plungepool_toolkit.fixtures import Database
    from plungepool_toolkit.network import ChaosProxy
    from plungepool_toolkit.postgres import Postgres


class At(NamedTuple):
    """Where a server is reached, if not at its own address."""

    host: str
    port: int


#: A statement that says which connection of the server answers.
WHO = "SELECT pg_backend_pid()"


def variables(
    database: Database,
    *,
    at: At | Postgres | ChaosProxy | BlackHole | None = None,
    user: str = "postgres",
    **settings: object,
) -> dict[str, str]:
    """
    Return the variables with which any of the handlers reaches a database, through what is at `at`.

    Args: settings: PLUNGEPOOL_ settings by their lower-case names; by their own name what is written in capitals.
    """
    place = at or database.server
    password = database.server.password if user == "postgres" else "not asked for"
    url = f"postgresql://{user}:{quote(password or '', safe='')}@{place.host}:{place.port}/{database.name}"
    given = {name if name.isupper() else f"PLUNGEPOOL_{name.upper()}": str(value) for name, value in settings.items()}
    return {
        "PLUNGEPOOL_URL": url,
        "PLUNGEPOOL_TLS": "disable",
        "NAIVE_URL": url.replace("postgresql:", "postgresql+psycopg:", 1),
    } | given


def ask(environment: Environment, *statements: str, **event: Any) -> Invocation:
    """Invoke a handler with these statements, for one transaction."""
    return environment.invoke({"statements": statements or [WHO], **event})


def at_once(*deeds: Callable[[], Any]) -> list[Any]:
    """Do all of it at the same time, and return what each returned."""
    with ThreadPoolExecutor(len(deeds)) as executor:
        return [future.result() for future in [executor.submit(deed) for deed in deeds]]


def rows(invocation: Invocation) -> list[list[Any]]:
    """Return the rows of an answer that is one, and was given without a word in the log."""
    assert invocation.error is None, invocation
    assert invocation.payload["statusCode"] == 200, invocation
    assert invocation.log == (), invocation
    found: list[list[Any]] = invocation.payload["rows"]
    return found


def refusal(invocation: Invocation) -> dict[str, Any]:
    """Return the 503 that the handler answered in time, by itself."""
    assert invocation.error is None, invocation
    assert invocation.payload["statusCode"] == 503, invocation
    assert invocation.payload["left_ms"] > 0, invocation
    said: dict[str, Any] = invocation.payload
    return said


def failure(invocation: Invocation) -> str:
    """Return what became of an invocation that failed: the type of its error and the text."""
    assert invocation.error is not None, invocation
    return f"{invocation.error['errorType']}: {invocation.error['errorMessage']}"


def sessions(database: Database, state: str = "%") -> list[int]:
    """Return the server's processes for the handlers of this database, of those in this state."""
    found = database.server.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND state LIKE $2 AND application_name <> $3",
        database.name,
        state,
        "plungepool toolkit",
    )
    return [pid for (pid,) in found]


def end_sessions(database: Database) -> None:
    """Have the server end the sessions of all handlers, as a failover or an administrator does."""
    database.server.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
        database.name,
    )


def is_free(database: Database, number: int) -> bool:
    """Say whether nobody has a lock on this row of `stock`."""
    return bool(database.execute("SELECT 1 FROM stock WHERE id = $1 FOR UPDATE SKIP LOCKED", number))
