"""
A transaction that runs again after what undid it, and an effect that happens once.

Only what the server has certainly undone runs again: a conflict, or a connection that was lost before COMMIT was sent.
Where COMMIT was sent and its answer was lost nobody knows what became of it, and running the transaction again could do
everything twice: that is `OutcomeUnknown`. With `once` in the transaction it can be run again all the same, since the
key was recorded together with the effect, or neither was.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sqlalchemy import Connection, Engine, event, exc, text

from . import invocation
from .connect import jitter
from .errors import OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session, SessionTransaction

_Result = TypeVar("_Result")

# Pauses are drawn between nothing and this, doubled at each attempt (full jitter), so that those in conflict part.
_FIRST_PAUSE_S = 0.02
_PAUSE_AT_MOST_S = 1.0
# The server undid the transaction, or never began it, and the next attempt may find it otherwise. 40001 and 40P01:
# conflicts;
# OC000 and OC001: Aurora DSQL's; 25006: it was a writer that is none any more, and the next connection finds the new
# one.
_UNDONE = frozenset(("40001", "40P01", "OC000", "OC001", "25006"))
# How a session ends that nobody limited in time: a restart, a failover, an idle time-out, a pooler that lost its
# server.
# 0A000: a standby that refuses SERIALIZABLE, where a writer was expected.
_ENDED = frozenset(("57P01", "57P02", "57P03", "57P05", "0A000"))

# SQS keeps a message for 14 days at most.
_KEEP_S = 14 * 24 * 3600.0
_KEY_BYTES_AT_MOST = 1024

# Two keys that have expired go with each that comes, so that the table does not grow for ever. Not above READ
# COMMITTED: there a row that two transactions want to delete is a conflict.
_ONCE = text("""
    WITH expired AS (
        DELETE FROM plungepool.once_keys WHERE key IN (
            SELECT key FROM plungepool.once_keys
            WHERE expires_at < pg_catalog.now() AND key <> :key
            AND pg_catalog.current_setting('transaction_isolation') = 'read committed'
            ORDER BY expires_at LIMIT 2 FOR UPDATE SKIP LOCKED
        )
    )
    INSERT INTO plungepool.once_keys AS known (key, recorded_at, expires_at)
    VALUES (:key, pg_catalog.now(), pg_catalog.now() + pg_catalog.make_interval(secs => :keep_s))
    ON CONFLICT (key) DO UPDATE SET recorded_at = excluded.recorded_at, expires_at = excluded.expires_at
    WHERE known.expires_at < pg_catalog.now()
    RETURNING true
""")


@overload
def run_transaction(
    source: Engine, function: Callable[[Connection], _Result], *, attempts: int = 5, isolation_level: str | None = None
) -> _Result: ...


@overload
def run_transaction(
    source: Callable[[], Session],
    function: Callable[[Session], _Result],
    *,
    attempts: int = 5,
    isolation_level: str | None = None,
) -> _Result: ...


def run_transaction(
    source: Engine | Callable[[], Session],
    function: Callable[[Any], _Result],
    *,
    attempts: int = 5,
    isolation_level: str | None = None,
) -> _Result:
    """
    Run `function` in a transaction of its own, commit, and return its result; run all of it again after a conflict.

    The function may run several times, so whatever it does outside the database must tolerate that. It neither commits
    nor rolls back; if a statement of its own has committed all the same, nothing is run again. What it returns must not
    need the connection any more (rows, not a result that reads them later).

    Args: source: the engine, and the function gets a Connection; or a `sessionmaker`, and it gets a Session, a new one
        each time. attempts: the maximum number of attempts, including the first. isolation_level: of this transaction,
        for example "SERIALIZABLE"; None means the engine's.
    Raises: OutcomeUnknown if COMMIT was sent but its answer was lost; otherwise what the last attempt raised: whatever
        the function raises, at once, unless it is the database's report that the transaction was undone by a conflict
        (40001, 40P01; Aurora DSQL's OC000, OC001) or the loss of the connection before COMMIT was sent. ValueError for
        AUTOCOMMIT, for a session that uses several engines (without two-phase commit) and for fewer than one attempt,
        TypeError for a source that is neither.
    Units: pauses between attempts are chosen at random from 0 to 20 ms, doubled each time, 1 s at most; none extends
        past the deadline.
    Threads: safe, as the engine is.
    Source: PostgreSQL, "Serialization Failure Handling"; AWS Architecture Blog, "Exponential Backoff And Jitter".
    """
    if attempts < 1:
        raise ValueError("run_transaction: attempts must be at least 1")
    if isinstance(source, Connection) or not (isinstance(source, Engine) or callable(source)):
        raise TypeError(
            "run_transaction needs the engine, or a sessionmaker: it begins a transaction of its own, a new one for "
            f"each attempt; not {type(source).__name__}"
        )
    for attempt in range(1, attempts + 1):
        commits = _Commits()
        try:
            return _attempt(source, function, isolation_level, commits)
        except Exception as error:
            if getattr(getattr(error, "orig", None), "outcome_unknown", False):
                raise OutcomeUnknown(str(getattr(error, "orig", error))) from error
            if _was_undone(error) and commits.were_made():
                error.add_note("run_transaction: part of it was committed within the function, so it is not run again")
                raise
            pause = jitter() * min(_PAUSE_AT_MOST_S, _FIRST_PAUSE_S * 2 ** (attempt - 1))
            if not _was_undone(error) or time.time() + pause >= (invocation.deadline() or float("inf")):
                raise
            if attempt == attempts:
                if attempts > 1:
                    error.add_note(f"run_transaction: this was attempt {attempt} of {attempts}")
                raise
        invocation.count("transaction_retries")
        time.sleep(pause)
    raise AssertionError  # the last attempt has returned or raised


def once(connection: Connection | Session, key: str, *, keep_s: float = _KEEP_S) -> bool:
    """
    Record `key` in the current transaction, and return whether it is new; effect and record are committed together.

        with engine.begin() as connection:
            if once(connection, message_id):
                ...                                 # the effect

    A second transaction with the same key waits for the first one to end, and then gets False if that was committed,
    True if it was rolled back. So, after `OutcomeUnknown`, the same call tells whether it was committed.

    Args: key: identifies what must not happen twice, for example a message's ID and a word for what is done; at most
        1,024 bytes. keep_s: how long the key is kept, at least as long as the message may be redelivered; 14 days, as
        long as SQS keeps a message.
    Returns: True if the key was not known, or had expired.
    Raises: ValueError for an empty or too long key, and in AUTOCOMMIT, where the record would outlive an effect that
        fails; what a statement raises: under REPEATABLE READ or SERIALIZABLE a conflict (40001), as `run_transaction`
        expects it.
    Units: keep_s in seconds, by the server's clock. One round trip.
    Tables: plungepool.once_keys, which prepare_database creates (docs/exactly-once.md has the statements).
    """
    if not key or len(key.encode()) > _KEY_BYTES_AT_MOST:
        raise ValueError(f"once: a key must have 1 to {_KEY_BYTES_AT_MOST} bytes")
    if not isinstance(connection, Connection):
        connection = connection.connection()
    _refuse_autocommit("once", connection)
    return connection.execute(_ONCE, {"key": key, "keep_s": keep_s}).first() is not None


class _Commits:
    """Whether the server has kept anything of an attempt: also what a text of the function's own has committed."""

    def __init__(self) -> None:
        self._wire: Any = None
        self._before = 0

    def count_from_now(self, connection: Connection) -> None:
        self._wire = connection.connection.dbapi_connection
        self._before = getattr(self._wire, "commits", 0)

    def were_made(self) -> bool:
        return bool(getattr(self._wire, "commits", 0) != self._before)


def _attempt(
    source: Engine | Callable[[], Session],
    function: Callable[[Any], _Result],
    isolation_level: str | None,
    commits: _Commits,
) -> _Result:
    options = {} if isolation_level is None else {"isolation_level": isolation_level}
    if isinstance(source, Engine):
        with source.connect() as connection:
            if options:
                connection.execution_options(**options)
            _refuse_autocommit("run_transaction", connection)
            commits.count_from_now(connection)
            with connection.begin():
                return function(connection)
    with source() as session, session.begin():
        first = session.connection(execution_options=options)
        _refuse_autocommit("run_transaction", first)
        commits.count_from_now(first)
        if not session.twophase:

            def refuse_another(_session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
                if connection is not first:
                    raise ValueError(
                        "run_transaction: this session uses several engines, which commit one after the other: what "
                        "one has committed would be repeated after a conflict on another. Use one engine, or "
                        "sessionmaker(..., twophase=True)"
                    )

            event.listen(session, "after_begin", refuse_another)
        return function(session)


def _refuse_autocommit(what: str, connection: Connection) -> None:
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise ValueError(f"{what} needs a transaction: the isolation level is AUTOCOMMIT")


def _was_undone(error: Exception) -> bool:
    """Say whether nothing of the transaction was kept, and another attempt may end otherwise."""
    if not isinstance(error, exc.DBAPIError):
        return False
    orig = error.orig
    sqlstate = getattr(orig, "sqlstate", None)
    if sqlstate in _UNDONE:
        # A write in a transaction that was begun as READ ONLY is refused each time.
        return not getattr(orig, "asked_read_only", False)
    lost = getattr(orig, "disconnected", False) and not isinstance(orig, TimeoutError)
    return lost and (sqlstate is None or sqlstate in _ENDED or sqlstate.startswith("08"))
