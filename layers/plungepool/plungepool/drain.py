"""
Replace every connection of a role: the idle ones are ended, a few per second, and each client connects again.

    from plungepool import drain

The package itself never imports it. `plungepool drain` and the sample function prepare_database run it.

A client of this package looks at a kept connection's socket before it hands it out, so that one that was ended while it
was idle is replaced within the checkout, without an error and without a cold start. So only what is idle is ended: a
backend that is in a transaction is left until it is not. Look and kill are one statement, which reads the backend's
state microseconds before it signals. What no statement can see is a request that is on its way: one that was sent
before the end of the connection has reached the client is answered 57P01, "terminating connection due to administrator
command". That window is a round trip to the server wide. A backend that is asked something every few milliseconds is
the likeliest to fall into it, so that one must have been idle for `min_idle_s`: the busy ones are ended in a pause of
theirs, or reported as left. What falls into the window all the same, `plungepool.run_transaction` runs again, since
nothing was committed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from .engine import build_engine, session_name
from .errors import PlungepoolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from sqlalchemy import Engine

    from .settings import Settings

# Between two looks at what is left, which cost the server about a millisecond with hundreds of backends.
_LOOK_EVERY_S = 0.2
# A lost connection of its own (a failover in the middle of it) is replaced; what goes on failing is an error.
_LOST_AT_MOST = 5
# A backend ends within milliseconds of the signal; one whose host is short of everything may take longer.
_ASK_AGAIN_S = 5.0

# With a schema before each name: what a search path leads to first need not be PostgreSQL's own, and whoever drains may
# be an administrator.
_BEGIN = text("""
    SELECT pg_catalog.clock_timestamp() AS now, pg_catalog.current_database()::pg_catalog.text AS database,
           current_user::pg_catalog.text AS me,
           pg_catalog.current_setting('track_activities')::pg_catalog.bool AS tracked,
           pg_catalog.pg_backend_pid() AS process
""")
# Who has the role's rights, or those that PostgreSQL has for it, may see what its sessions do, and end them.
# Source: PostgreSQL, "System Administration Functions", pg_terminate_backend; "Predefined Roles".
_RIGHTS = text("""
    SELECT role.rolsuper AS superuser, me.rolsuper AS all_rights,
           pg_catalog.pg_has_role(role.oid, 'USAGE') AS own,
           pg_catalog.pg_has_role('pg_read_all_stats'::pg_catalog.name, 'USAGE') AS sees,
           pg_catalog.pg_has_role('pg_signal_backend'::pg_catalog.name, 'USAGE') AS ends
    FROM pg_catalog.pg_roles AS role, pg_catalog.pg_roles AS me
    WHERE role.rolname OPERATOR(pg_catalog.=) CAST(:role AS pg_catalog.name)
      AND me.rolname OPERATOR(pg_catalog.=) current_user
""")
_LOOK = text("""
    SELECT activity.pid, activity.backend_start, activity.state, activity.application_name,
           extract(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) activity.state_change
           )::pg_catalog.float8 AS since_s
    FROM pg_catalog.pg_stat_activity AS activity
    WHERE activity.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
      AND activity.usename OPERATOR(pg_catalog.=) CAST(:role AS pg_catalog.name)
      AND activity.backend_type OPERATOR(pg_catalog.=) 'client backend'
      AND activity.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
      AND activity.backend_start OPERATOR(pg_catalog.<=) (
          CAST(:now AS pg_catalog.timestamptz)
          OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => CAST(:older_than_s AS pg_catalog.float8)))
    ORDER BY activity.backend_start, activity.pid
""")
# The number of a process may be another's by now, so that its start is asked for, too. It waits for its client: between
# "idle" and that the server may still be sending. One statement in one transaction each: what pg_stat_activity shows is
# fixed for the length of a transaction, and would be old for the second.
_END = text("""
    SELECT pg_catalog.pg_terminate_backend(activity.pid)
    FROM pg_catalog.pg_stat_activity AS activity
    WHERE activity.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
      AND activity.usename OPERATOR(pg_catalog.=) CAST(:role AS pg_catalog.name)
      AND activity.backend_type OPERATOR(pg_catalog.=) 'client backend'
      AND activity.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
      AND activity.pid OPERATOR(pg_catalog.=) CAST(:pid AS pg_catalog.int4)
      AND activity.backend_start OPERATOR(pg_catalog.=) CAST(:backend_start AS pg_catalog.timestamptz)
      AND activity.state OPERATOR(pg_catalog.=) 'idle'
      AND activity.wait_event OPERATOR(pg_catalog.=) 'ClientRead'
      AND activity.state_change OPERATOR(pg_catalog.<=) (
          pg_catalog.clock_timestamp()
          OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => CAST(:min_idle_s AS pg_catalog.float8)))
""")


class DrainError(PlungepoolError, ValueError):
    """The options are wrong, or a right is missing; the text names each, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    Which connections are replaced, and how fast.

    Units: seconds.
    """

    #: Whose connections; None: of the role that the engine connects as.
    role: str | None = None
    #: Only those that were opened at least so long before the drain began; 0: all that were open then.
    older_than_s: float = 0.0
    #: How long a backend must have been idle. Less ends busier ones, and makes a request on its way likelier.
    min_idle_s: float = 0.3
    #: How many a second are ended, at most: as many connect anew, when they are invoked.
    rate: float = 10.0
    #: When to stop, and say what is left.
    limit_s: float = 300.0
    #: Only those whose application_name is this; or begins with it and a colon, as a function's with any version.
    application: str | None = None
    #: Look, and end none.
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Raise DrainError, which names every option that is wrong."""
        problems = []
        for name, least, most in _BOUNDS:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most:
                problems.append(f"{name} must be a number from {least:g} to {most:g}")
        for name in ("role", "application"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value and _is_text(value)):
                problems.append(f"{name} must be text")
        if getattr(self, "dry_run") not in (True, False):  # noqa: B009 - an event's may be anything
            problems.append("dry_run must be true or false")
        if problems:
            raise DrainError("; ".join(problems))

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Options:
        """Read the options as JSON has them; raises DrainError, also for a name that is not an option."""
        if not isinstance(given, dict):
            raise DrainError("drain must be a JSON object with the options, such as {}")
        known = {one.name for one in fields(cls)}
        if others := sorted(str(name) for name in given if name not in known):
            raise DrainError(
                f"{', '.join(others)}: not an option of a drain; its options are {', '.join(sorted(known))}"
            )
        return cls(**given)


_BOUNDS = (
    ("older_than_s", 0.0, 366 * 86400.0),
    ("min_idle_s", 0.0, 3600.0),
    ("rate", 0.1, 1000.0),
    ("limit_s", 0.0, 86400.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """
    The progress of a drain. The last one says how it ended.

    Units: seconds.
    """

    role: str
    database: str
    dry_run: bool
    #: Those that were there at the beginning and are to be replaced.
    found: int
    #: Those of them that were ended, and are gone;
    ended: int = 0
    #: those that went by themselves before it was their turn;
    gone: int = 0
    #: those that are still there and in a transaction, or at work;
    in_transaction: int = 0
    #: that are idle, and not long enough, or not their turn yet;
    idle: int = 0
    #: and of which the server does not say what they do.
    unknown: int = 0
    took_s: float = 0.0
    #: True for the last one.
    over: bool = False
    #: Where `application` has found none: by what names the role's other sessions go.
    others: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """Return how many are left."""
        return self.in_transaction + self.idle + self.unknown

    def as_document(self) -> dict[str, Any]:
        """Return it as JSON can express it."""
        return asdict(self) | {"left": self.left}


def own_engine(settings: Settings) -> Engine:
    """
    Return an engine for a drain, which connects as these settings say, keeps one connection and holds no ticket.

    The fleet's own policy would open one for each look. What a drain asks touches no row of a tenant's, so that no
    setting is required of it. The caller disposes of it.

    Raises: DrainError for Aurora DSQL, which has no sessions to end.
    """
    if settings.auth == "dsql":
        raise DrainError("Aurora DSQL has no sessions to end: it ends each one after an hour")
    return build_engine(
        replace(
            settings,
            require_settings=(),
            pool="tiny",
            pool_size=1,
            fleet="",
            fleet_limit=0,
            connect_on_restore=False,
        )
    )


def drain(engine: Engine, options: Options) -> Iterator[Progress]:
    """
    End the idle backends of a role in this database, one after the other, until every one that was there is replaced.

    What was opened after it began is not touched, so that it comes to an end, and neither is its own session. It may be
    left at any moment: what was ended by then is ended, and nothing else is changed.

    Args: engine: at the database itself, or at a reader whose sessions are meant. A transaction pooler's sessions are
        its own (docs/drain.md).
    Returns: the progress, first as it is found, then about five times a second; the last one is `over`.
    Raises: DrainError where the role is not there, or a right is missing, before anything is ended;
        sqlalchemy.exc.DBAPIError, CredentialsError for its own connection.
    Blocks: for `limit_s` at most, and for a statement.
    """
    begun = time.time()
    work = _Drain(engine.execution_options(isolation_level="AUTOCOMMIT"), options)
    progress = work.look()
    yield replace(progress, took_s=time.time() - begun)
    due = time.time()
    while not options.dry_run and progress.left and time.time() - begun < options.limit_s:
        next_look = time.time() + _LOOK_EVERY_S
        for pid, backend_start in work.ripe:
            # A clock that was set back must not stop it for long.
            due = min(due, time.time() + 1 / options.rate)
            if due > min(next_look, begun + options.limit_s):
                break
            time.sleep(max(0.0, due - time.time()))
            due = time.time() + 1 / options.rate
            work.end(pid, backend_start)
        time.sleep(max(0.0, min(next_look - time.time(), begun + options.limit_s - time.time(), _LOOK_EVERY_S)))
        progress = replace(work.look(), took_s=time.time() - begun)
        if progress.left:
            yield progress
    yield replace(progress, took_s=time.time() - begun, over=True)


class _Drain:
    """One drain: what was found, and what has become of it."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self._engine, self._options, self._lost, self._logged_in = engine, options, 0, 0
        self._others: tuple[str, ...] = ()
        [first] = self._ask(_BEGIN)
        self._role, self._database, self._now = options.role or first.me, first.database, first.now
        if self._role == first.me and first.process != self._logged_in:
            raise DrainError(
                f"there is a pooler in front of the server (process {self._logged_in} logged in, process "
                f"{first.process} "
                "answered), so that the drain's own session cannot be told from the other sessions of "
                f"{self._role!r}: connect to the database itself, or as another role and name this one"
            )
        self._check_rights(first.tracked)
        self._found: set[tuple[int, datetime]] | None = None
        # When each that was ended was asked to.
        self._asked: dict[tuple[int, datetime], float] = {}
        #: Those that may be ended now, the longest idle first.
        self.ripe: list[tuple[int, datetime]] = []

    def _check_rights(self, tracked: bool) -> None:
        rows = self._ask(_RIGHTS, role=self._role)
        if not rows:
            raise DrainError(f"there is no role {self._role!r}")
        [may] = rows
        if not may.all_rights:
            if may.superuser:
                raise DrainError(f"{self._role!r} is a superuser, whose sessions only a superuser may end")
            has = {"pg_signal_backend": may.own or may.ends, "pg_read_all_stats": may.own or may.sees}
            missing = [name for name, held in has.items() if not held]
            if missing:
                raise DrainError(
                    f"the sessions of {self._role!r} belong to another role: connect as {self._role!r}, which may "
                    f"always end its own, or GRANT {', '.join(missing)} TO the role that drains"
                )
        if not tracked:
            raise DrainError(
                "track_activities is off, so that the server does not report which sessions are idle: turn it on"
            )

    def look(self) -> Progress:
        """Look at what is left of what was there at the first look."""
        rows = self._ask(_LOOK, role=self._role, now=self._now, older_than_s=self._options.older_than_s)
        there = {(row.pid, row.backend_start): row for row in rows}
        if self._found is None:
            # By the name that it has now: what calls itself otherwise meanwhile is one of them all the same.
            self._found = {
                key for key, row in there.items() if _is_meant(row.application_name, self._options.application)
            }
            if not self._found:
                self._others = tuple(sorted({row.application_name or "" for row in rows}))
        left = {key: row for key, row in there.items() if key in self._found}
        # What was asked to end and is there still is asked again when it has had some time.
        ripe = [
            key
            for key, row in left.items()
            if row.state == "idle"
            and row.since_s >= self._options.min_idle_s
            and time.time() - self._asked.get(key, 0.0) > _ASK_AGAIN_S
        ]
        self.ripe = sorted(ripe, key=lambda key: -left[key].since_s)
        states = [row.state for row in left.values()]
        unknown = sum(state in (None, "disabled") for state in states)
        return Progress(
            role=self._role,
            database=self._database,
            dry_run=self._options.dry_run,
            found=len(self._found),
            ended=len(self._asked.keys() - left.keys()),
            gone=len(self._found - self._asked.keys() - left.keys()),
            idle=states.count("idle"),
            unknown=unknown,
            in_transaction=len(states) - states.count("idle") - unknown,
            others=self._others,
        )

    def end(self, pid: int, backend_start: datetime) -> None:
        """End one, if it is idle still."""
        options = self._options
        rows = self._ask(_END, role=self._role, pid=pid, backend_start=backend_start, min_idle_s=options.min_idle_s)
        if any(row[0] for row in rows):
            self._asked[pid, backend_start] = time.time()

    def _ask(self, statement: Any, **parameters: Any) -> list[Any]:
        while True:
            try:
                with self._engine.connect() as connection:
                    self._logged_in = getattr(connection.connection.dbapi_connection, "backend_pid", 0)
                    return list(connection.execute(statement, parameters))
            except DBAPIError as error:
                # A statement that ended a backend and whose answer was lost: the next look finds that one gone.
                self._lost += 1
                if not error.connection_invalidated or self._lost > _LOST_AT_MOST:
                    raise


def _is_text(value: str) -> bool:
    """Say whether PostgreSQL takes it as text: UTF-8, without the character zero. Pure."""
    return "\0" not in value and value == value.encode(errors="replace").decode()


def _is_meant(name: str | None, wanted: str | None) -> bool:
    """Say whether a session of this name is one of a function, of any version or of the one behind a colon. Pure."""
    if wanted is None:
        return True
    function, colon, version = wanted.partition(":")
    # A long name is shown as it was cut: by the length of the version that stands behind it.
    any_version = "" if colon else (name or "").partition(":")[2]
    return name in (wanted, session_name(function, version or any_version))
