"""
The statements that cost a database most, by pg_stat_statements, and why the SELECTs among them do; no value of any.

    from plungepool import ranking

The package itself never imports it. `plungepool slow` prints it, and the sample function check_database returns it.
None of the statements is executed.

Source: PostgreSQL manual, "pg_stat_statements".
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from . import indexes, plans, statements
from .engine import build_engine
from .errors import CredentialsError, SettingsError
from .settings import Settings

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection

    from .indexes import Run

#: what `plungepool slow --json` and check_database answer in
FORMAT = "plungepool-slow/1"

# As many of the server's entries are read, the worst first, and so much of the text of each.
_ENTRIES, _TEXT = 1000, 20_000
_LISTED_AT_MOST = 100
# What else pg_stat_statements counts, SET and CREATE ROLE among it, has no shape without a value on every server.
_RANKED = frozenset(("select", "with", "insert", "update", "delete", "merge", "values", "table", "call"))

_NOT_LOADED = (
    "pg_stat_statements is not loaded: add it to shared_preload_libraries (on RDS and Aurora, in the parameter "
    "group) and restart the server"
)
_OLD = (
    "the extension pg_stat_statements is older than the one of PostgreSQL 14: execute ALTER EXTENSION "
    "pg_stat_statements UPDATE"
)


class By(StrEnum):
    """What makes a statement the worst."""

    TOTAL = "total"
    MEAN = "mean"
    CALLS = "calls"


_COLUMNS = {By.TOTAL: "total_exec_time", By.MEAN: "mean_exec_time", By.CALLS: "calls"}


class SlowError(Exception):
    """What keeps the statements from being listed, and what to do about it."""


@dataclass(slots=True)
class Ranked:
    """What the server has counted of one statement, all its lists of values together."""

    fingerprint: str
    statement: str
    calls: int
    total_ms: float
    rows: int
    #: as the server normalised it, where the connected role has executed it itself
    own_text: str = ""
    why: dict[str, Any] | None = None
    not_explained: str | None = None

    @property
    def mean_ms(self) -> float:
        """Of one call."""
        return self.total_ms / max(1, self.calls)

    def as_document(self) -> dict[str, Any]:
        """Return it as JSON takes it; without the text."""
        known = asdict(self) | {"mean_ms": round(self.mean_ms, 3), "total_ms": round(self.total_ms, 3)}
        del known["own_text"]
        return known


def rank_process(prefix: str = "", *, by: str = By.TOTAL, limit: int = 10) -> dict[str, Any]:
    """
    Return the worst statements of the database of this process's environment variables, as JSON takes it.

    By a connection of its own. Shape: {format, database, role, since, by, hidden, statements, problem}; {format,
    problem} where it could not work, with what to do about it.
    """
    try:
        if by not in list(By) or not isinstance(limit, int) or not 1 <= limit <= _LISTED_AT_MOST:
            raise SlowError(f"by is one of {', '.join(By)}, and limit a number from 1 to {_LISTED_AT_MOST}")
        known, found = _ask(Settings.from_env(os.environ, prefix=prefix), By(by), limit)
    except (SlowError, SettingsError, CredentialsError, DBAPIError) as error:
        return {"format": FORMAT, "problem": str(getattr(error, "orig", None) or error)}
    return known | {"statements": [one.as_document() for one in found], "problem": None}


def _ask(settings: Settings, by: By, limit: int) -> tuple[dict[str, Any], list[Ranked]]:
    if settings.auth == "dsql":
        raise SlowError("Aurora DSQL has no pg_stat_statements")
    # What is asked here touches no row of a tenant's, and is no slow statement of a function's.
    engine = build_engine(replace(settings, require_settings=(), slow_query_s=0.0))
    try:
        with closing(engine.connect().execution_options(isolation_level="AUTOCOMMIT")) as connection:
            return _look(connection, by, limit, direct=settings.endpoint == "direct")
    finally:
        engine.dispose()


def _look(connection: Connection, by: By, limit: int, *, direct: bool) -> tuple[dict[str, Any], list[Ranked]]:
    ours: set[str] = set()

    def run(sql: str) -> Sequence[Sequence[Any]]:
        ours.add(statements.fingerprint(sql))
        result = connection.exec_driver_sql(sql)
        return result.all() if result.returns_rows else ()

    ((database, role, version),) = run(
        "SELECT pg_catalog.current_database(), current_user, pg_catalog.current_setting('server_version_num')::int"
    )
    if version < 140000:
        raise SlowError(f"PostgreSQL 14 or later is needed; this server is {version // 10000}")
    place = run(
        "SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'pg_stat_statements'"
    )
    if not place:
        raise SlowError(
            f"the extension pg_stat_statements is not in the database {database}: execute CREATE EXTENSION "
            "pg_stat_statements there, as a superuser or, on RDS and Aurora, with rds_superuser; it must also be in "
            "shared_preload_libraries (there, in the parameter group)"
        )
    schema = indexes.quoted(place[0][0])
    try:
        ((since, hidden),) = run(
            f"SELECT (SELECT stats_reset::text FROM {schema}.pg_stat_statements_info), pg_catalog.count(*) "
            f"FROM {schema}.pg_stat_statements('f') s WHERE queryid IS NULL AND {_HERE}"
        )
        entries = run(
            f"SELECT pg_catalog.left(query, {_TEXT}), calls, total_exec_time, rows, "
            "userid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user) "
            f"FROM {schema}.pg_stat_statements('t') s WHERE queryid IS NOT NULL AND {_HERE} "
            f"ORDER BY {_COLUMNS[by]} DESC LIMIT {_ENTRIES}"
        )
    except DBAPIError as error:
        state = plans.sqlstate(error.orig or error)
        texts = {"55000": _NOT_LOADED, "42P01": _OLD, "42703": _OLD, "42883": _OLD}
        if state not in texts:
            raise
        raise SlowError(texts[state]) from None
    found = rank(entries, by, ours)[:limit]
    if hidden and not found:
        raise SlowError(f"{hidden} statements belong to other roles, and are not shown to {role}; {grant(role)}")
    for one in found:
        _explain(one, run, direct=direct)
    known = {"format": FORMAT, "database": database, "role": role, "since": since, "by": by.value, "hidden": hidden}
    return known, found


_HERE = "dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"


def rank(entries: Sequence[Sequence[Any]], by: By, but: Collection[str] = ()) -> list[Ranked]:
    """Return what was counted, a line for each fingerprint, the worst first; `but`: fingerprints to leave out. Pure."""
    found: dict[str, Ranked] = {}
    for text, calls, total_ms, rows, own in entries:
        if text is None:  # the server has lost the file in which texts are
            continue
        if next(iter(statements.tokens(text)), "") not in _RANKED:
            continue
        fingerprint = statements.fingerprint(text)
        if fingerprint in but:
            continue
        one = found.setdefault(fingerprint, Ranked(fingerprint, statements.shape(text), 0, 0.0, 0))
        one.calls += calls
        one.total_ms += total_ms
        one.rows += rows
        if own and len(text) < _TEXT and not one.own_text:
            one.own_text = text
    keys = {By.TOTAL: lambda one: one.total_ms, By.MEAN: lambda one: one.mean_ms, By.CALLS: lambda one: one.calls}
    return sorted(found.values(), key=keys[by], reverse=True)


def _explain(one: Ranked, run: Run, *, direct: bool) -> None:
    if one.own_text and not plans.only_reads(one.own_text):
        return
    if not direct:
        one.not_explained = "prepared statements should not be sent through a proxy: connect to the database itself"
    elif not one.own_text:
        # To plan is to call functions that say they are immutable: another role's must not run with this one's rights.
        one.not_explained = "it belongs to another role: connect as that role"
    else:
        try:
            one.why = plans.why(one.own_text, (), run).as_dict()
        except DBAPIError as error:
            one.not_explained = f"the server could not plan it: SQLSTATE {plans.sqlstate(error.orig or error)}"
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            one.not_explained = f"its plan does not have the expected form: {type(error).__name__}"


def grant(role: str) -> str:
    """Return what lets a role see the statements of others, for the end of a sentence."""
    return f"execute GRANT pg_read_all_stats TO {indexes.quoted(role)}"
