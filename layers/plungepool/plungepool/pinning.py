"""
What would pin a transaction pooler, told before it happens.

RDS Proxy ties a client to one database connection, for the rest of the client's life, when a statement leaves state on
the session. It says so afterwards and only as a metric; by then the fleet holds a connection for each environment. The
guard reads each statement before it is sent, as PostgreSQL would read it: a literal, a comment or an identifier that
holds the word SET is no SET.

A new reason to pin is one entry of CONDITIONS, and one line of docs/rds-proxy.md.

Source: Aurora User Guide, "Avoiding pinning an RDS Proxy", conditions for PostgreSQL. State that a function of the
database changes is seen neither by the proxy nor here.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import event

from . import invocation, statements
from .dialect import SETTINGS
from .errors import PinningRefused
from .names import variable
from .pool import caller

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Engine

_logger = logging.getLogger("plungepool")

_MOST_SHAPES = 256


class Reason(NamedTuple):
    """Why a statement pins: `kind` in a word or two, `why` as a sentence, `instead` what to do."""

    kind: str
    why: str
    instead: str


class Condition(NamedTuple):
    """
    When a statement pins, and why: how it begins, which functions it calls, what it holds, how long it is.

    Each is one way, and any of them is enough. `begins` are the statement's first words in lower case, after an
    EXPLAIN; `calls` are names of the server's own functions; `holds` are patterns that begin where the statement does
    and end where it pins, over tokens as `statements` gives them; a text without any of the words of `hints` holds none
    of them. `option` is one of SQLAlchemy's execution options, for what this package sends beside a statement.
    """

    reason: Reason
    begins: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    longer_than_bytes: int | None = None
    option: str | None = None


# The parts of patterns. What a function that is being created holds does not run now.
_CREATE = r" create(?: or| replace| local| global)*+"
_RUNS = rf"^(?!{_CREATE} (?:function|procedure) )"
_SELECT_INTO = rf"{_RUNS}.*?(?<! insert)(?<! merge) into(?: local| global)?+"
_PG_TEMP = r' (?:pg_temp|"pg_temp") \. '
# TEMP is a word that a table of INSERT INTO may have for a name, and one of SELECT INTO's as well.
_TEMP_AND_NAME = (
    r" temp(?:orary)? "
    r"(?!(?:except|fetch|for|from|group|having|intersect|limit|offset|order|union|values|where|window) )"
    rf'(?:"|{statements.LETTER})'
)

CONDITIONS = (
    Condition(
        Reason(
            "SET",
            "the setting stays on the session",
            "set it on the role (ALTER ROLE ... SET ...) or in the proxy's initialization query; a transaction's "
            "isolation level with BEGIN ISOLATION LEVEL",
        ),
        begins=("set",),
    ),
    Condition(
        Reason(
            "SET LOCAL",
            "RDS Proxy's exemption for SET LOCAL is documented for MySQL only",
            "set it on the role (ALTER ROLE ... SET ...) or in the proxy's initialization query",
        ),
        begins=("set local",),
    ),
    Condition(
        Reason("RESET", "it changes the session's settings", "do not change settings by statements in the first place"),
        begins=("reset",),
    ),
    Condition(
        Reason(
            "set_config",
            "it is SET as a function, also with is_local",
            "set it on the role (ALTER ROLE ... SET ...), or pass the value as a parameter of the statement",
        ),
        calls=("set_config",),
    ),
    Condition(
        Reason(
            "plungepool_settings",
            "they are sent as set_config with is_local, which RDS Proxy is not documented to exempt",
            "a direct endpoint for what needs them, or a database role for each tenant (docs/tenants.md); PgBouncer "
            "does not pin",
        ),
        option=SETTINGS,
    ),
    Condition(
        Reason("PREPARE", "the prepared statement stays on the session", "send the statement with parameters"),
        begins=("prepare",),
    ),
    Condition(
        Reason("EXECUTE", "it needs a statement prepared on the session", "send the statement with parameters"),
        begins=("execute",),
        holds=(rf"{_RUNS} create(?= ).*? as execute ",),
        hints=("execute",),
    ),
    Condition(
        Reason("DEALLOCATE", "it changes the session's prepared statements", "do not prepare statements"),
        begins=("deallocate",),
    ),
    Condition(
        Reason("DISCARD", "it changes the session", "leave nothing on the session that needs it"),
        begins=("discard",),
    ),
    Condition(
        Reason(
            "temporary object",
            "it stays on the session, or in its namespace",
            "a common table expression (WITH), unnest() of array parameters, or an UNLOGGED table with a key of "
            "its own",
        ),
        holds=(
            rf"^{_CREATE} temp(?:orary)? ",
            rf"^ create(?= ).*?{_PG_TEMP}",
            rf"{_SELECT_INTO}{_PG_TEMP}",
            rf"{_SELECT_INTO}{_TEMP_AND_NAME}",
        ),
        hints=("temp",),
    ),
    Condition(
        Reason("LISTEN", "the session would have to stay", "a queue table read with FOR UPDATE SKIP LOCKED, or SQS"),
        begins=("listen", "unlisten"),
    ),
    Condition(
        Reason("LOAD", "the library stays loaded in the session", "shared_preload_libraries in the parameter group"),
        begins=("load",),
    ),
    Condition(
        Reason(
            "DECLARE",
            "a cursor is state of the session (stream_results and yield_per declare one)",
            "read in pages by key: WHERE id > :last ORDER BY id LIMIT :n",
        ),
        begins=("declare",),
    ),
    Condition(
        Reason(
            "advisory lock",
            "a session's advisory lock outlives the transaction",
            "pg_advisory_xact_lock or pg_try_advisory_xact_lock, which end with the transaction",
        ),
        calls=(
            "pg_advisory_lock",
            "pg_advisory_lock_shared",
            "pg_advisory_unlock",
            "pg_advisory_unlock_all",
            "pg_advisory_unlock_shared",
            "pg_try_advisory_lock",
            "pg_try_advisory_lock_shared",
        ),
    ),
    Condition(
        Reason("nextval", "the session remembers the value", "an identity column, read with RETURNING"),
        calls=("nextval",),
    ),
    Condition(
        Reason(
            "setval",
            "the session remembers the value",
            "ALTER SEQUENCE ... RESTART, in a migration over the direct endpoint",
        ),
        calls=("setval",),
    ),
    Condition(
        Reason(
            "over 16 KB",
            "RDS Proxy pins for every statement of more than 16 KB of text",
            "arrays as parameters (unnest), smaller batches (insertmanyvalues_page_size), COPY",
        ),
        longer_than_bytes=16 * 1024,
    ),
)


class Reader:
    """Says of a text of SQL why it would pin; what it has read it remembers, for a bounded number of texts."""

    def __init__(self, conditions: Iterable[Condition]) -> None:
        conditions = tuple(conditions)
        self._lengths = [(one.longer_than_bytes, one.reason) for one in conditions if one.longer_than_bytes is not None]
        # SET LOCAL before SET.
        self._begins = sorted(((f" {words} ", one.reason) for one in conditions for words in one.begins), reverse=True)
        self._searched = [
            ((*one.hints, *one.calls), (*one.holds, *([_call(one.calls)] if one.calls else [])), one.reason)
            for one in conditions
            if one.holds or one.calls
        ]
        hints = {word for one in conditions for word in (*one.hints, *one.calls)}
        hints |= {words.partition(" ")[0] for one in conditions for words in one.begins}
        # A text without "set" has no "reset" either.
        self._hints = tuple(sorted(hint for hint in hints if not any(other in hint for other in hints - {hint})))
        self._read = functools.lru_cache(maxsize=512)(self._reason_of)

    def reason(self, text: str) -> Reason | None:
        """Return why a statement, or the first of several in a text, would pin RDS Proxy; None if it would not."""
        for limit, reason in self._lengths:
            # Characters first: counting bytes is for the few texts that are near the limit.
            if len(text) * 4 > limit and len(text.encode(errors="replace")) > limit:
                return reason
        # Most functions never write any of these words, and so never pay for the patterns.
        lower = text.lower()
        if not any(hint in lower for hint in self._hints):
            return None
        return self._read(text)

    def _reason_of(self, text: str) -> Reason | None:
        return next(
            (reason for one in statements.split(text) if (reason := self._reason_of_one(one)) is not None), None
        )

    def _reason_of_one(self, statement: str) -> Reason | None:
        if statement.startswith(" explain "):
            statement = _compiled(_EXPLAIN).sub("", statement)
        for words, reason in self._begins:
            if statement.startswith(words):
                return reason
        found = [
            (match.end(), reason)
            for hints, patterns, reason in self._searched
            if any(hint in statement for hint in hints)
            for pattern in patterns
            if (match := _compiled(pattern).match(statement)) is not None
        ]
        # What comes first in the statement is what is told.
        return min(found)[1] if found else None


_EXPLAIN = r"^ explain(?: analyze| verbose)*+(?: \( (?!\(|select |values |with |table )[^)]*+\))?+(?= )"


def _call(names: Iterable[str]) -> str:
    """
    Return the pattern of a call of the server's own function; after some words, or in another schema, it is another's.
    """
    return (
        rf"{_RUNS}.*?(?<! aggregate)(?<! as)(?<! copy)(?<! exists)(?<! function)(?<! into)(?<! only)(?<! procedure)"
        r"(?<! recursive)(?<! references)(?<! routine)(?<! table)(?<! with)"
        r'(?:(?<! \.)|(?<= pg_catalog \.)|(?<= "pg_catalog" \.))'
        rf' (?P<quote>"?)(?:{"|".join(names)})(?P=quote) (?=\( )'
    )


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


_reader = Reader(CONDITIONS)
_server_side_cursor = next(one.reason for one in CONDITIONS if "declare" in one.begins)
_of_options = [(one.option, one.reason) for one in CONDITIONS if one.option is not None]


def pinning_reason(statement: str) -> Reason | None:
    """
    Return why a statement, or the first of several in a text, would pin RDS Proxy; None if it would not.

    Threads: safe.
    """
    return _reader.reason(statement)


def guard_pinning(engine: Engine, mode: Literal["warn", "refuse"], setting: str = variable("pinning")) -> None:
    """
    Look at every statement of an engine before it is sent.

    Args: mode: `warn` logs a line for each shape of statement (logger `plungepool`, 256 shapes at most) and one for an
        option, with the line of the program that executed it first; `refuse` raises PinningRefused out of the call that
        executes the statement. setting: the variable that has the mode.
    Threads: safe.
    """
    warned: dict[str, object] = {}

    def tell(reason: Reason, statement: str, option: str | None = None) -> None:
        invocation.count("pins")
        if option in warned:
            return
        shape = statements.shape(statement)
        if mode == "refuse":
            raise PinningRefused(reason, shape, caller(), setting)
        if len(warned) > _MOST_SHAPES:
            return
        # setdefault is atomic: of several threads with one shape, one finds its own object and logs.
        mine = object()
        if warned.setdefault(option or shape, mine) is not mine:
            return
        if len(warned) > _MOST_SHAPES:
            _logger.warning(
                "More than %d shapes of statements pin the proxy; further ones are not reported.", _MOST_SHAPES
            )
        else:
            _logger.warning(
                "%s pins the proxy: %s. Instead: %s. The statement, executed at %s: %s",
                reason.kind,
                reason.why,
                reason.instead,
                caller(),
                shape,
            )

    def look(
        _connection: object, _cursor: object, statement: str, _parameters: object, context: Any, _executemany: bool
    ) -> None:
        # The statement's, and with them the connection's.
        options = getattr(context, "execution_options", {})
        for option, of_option in _of_options:
            if options.get(option):
                # It goes before the statement, whichever that is: told once.
                tell(of_option, statement, option)
        reason = pinning_reason(statement)
        if reason is None and getattr(context, "_is_server_side", False):
            # stream_results and yield_per: the dialect puts the DECLARE before the statement, after this event.
            reason = _server_side_cursor
        if reason is not None:
            tell(reason, statement)

    event.listen(engine, "before_cursor_execute", look)
