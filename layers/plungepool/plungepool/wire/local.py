"""
What holds in one transaction and no longer: its settings, and the deadline's time-outs. No I/O.

Both are told in the exchange that begins the transaction, behind BEGIN and before the first statement, by one SELECT
that returns nothing; in AUTOCOMMIT before the statement, in the implicit transaction that the two are then. The
server's `set_config(…, true)` takes them back when the transaction ends, however it ends.

Source: PostgreSQL, "Configuration Settings Functions"; "Frontend/Backend Protocol", Pipelining.
"""

from __future__ import annotations

import math
import time as clock
from typing import TYPE_CHECKING

from ..names import local_setting_problem
from .errors import ProgrammingError, SettingsMissing
from .messages import BIND_NOTHING, EXECUTE, bind, first_words, parse
from .protocol import FAILED, IDLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LIMITS = ("transaction_timeout",)
_LIMITS_BEFORE_17 = ("statement_timeout", "idle_in_transaction_session_timeout")
_TELL_AGAIN_S = 0.5
# What may have to stand before a transaction's snapshot, which the SELECT takes: SET TRANSACTION and its siblings fail
# behind it, and behind a LOCK a transaction above READ COMMITTED is to see what those have done that it has waited
# for. None of them reads or writes a row.
_BEFORE_THE_SNAPSHOT = ("SET", "LOCK")
# What a statement in AUTOCOMMIT begins with that may stand in a transaction with another one.
_PLAIN = ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE", "(", "EXPLAIN")
# The same of what is worth it for the settings, that must not be left out where the limit may be. Not CALL and DO: what
# they run may commit, and goes on without the settings.
_TRAVELS = (*_PLAIN, "COPY", "SHOW", "TRUNCATE")
# What ends a transaction, and may begin the next one in the same breath.
_ENDS = ("COMMIT", "END", "ROLLBACK", "ABORT")


def limit_transaction(names: Sequence[str], milliseconds: int) -> str:
    """
    Return the conditions of a SELECT that gives these time-outs of the server at most so long, until the transaction
    ends.

    They have no parameter: they may stand in a text of several statements. None is ever true, and nothing is taken
    back: a time-out that is shorter already, of the role or of the user's own, stays.
    """
    conditions = []
    for name in names:
        # Written for a short way through the server's parser and planner, which each transaction goes: the operators'
        # functions, and nothing set where nothing is to change. Not `longer AND set_config`, which may be asked in
        # either order.
        now, limit = f"pg_catalog.current_setting('{name}')", f"'{milliseconds}ms'"
        longer = f"pg_catalog.texteq({now}, '0') OR pg_catalog.interval_gt({now}::pg_catalog.interval, {limit})"
        conditions.append(f"CASE WHEN {longer} THEN pg_catalog.set_config('{name}', {limit}, true) IS NULL END")
    return " OR ".join(conditions)


class Local:
    """What one session's transactions are to have, and what the one that is open has been told."""

    def __init__(self) -> None:
        #: the settings, as they were given
        self.given: dict[str, str] = {}
        #: what was bound with them: no error of their transaction may show it
        self.bound = BIND_NOTHING
        #: names in lower case, without which nothing is sent
        self.required: tuple[str, ...] = ()
        self.required_by = ""
        #: those of them that are not given; the empty text is none, since it is what policies read where nothing is set
        self.lacking: tuple[str, ...] = ()
        #: whether the server is told the deadline
        self.tells_deadline = False
        #: how many transactions have begun: two equal ones are one
        self.begun = 0
        self._conditions = ""
        self._told = False
        self._limit_told_at = 0.0

    def give(self, settings: Mapping[str, str]) -> None:
        """Take the settings of the transactions to come. Raises: as `checked`."""
        names, values = checked(settings)
        # Names are written out, which the check allows: an error then shows them, and what was bound it may not show.
        conditions = " OR ".join(
            f"pg_catalog.set_config('{name}', ${number}, true) IS NULL" for number, name in enumerate(names, 1)
        )
        message = bind(values) if values else BIND_NOTHING
        self._conditions, self.bound, self.given = conditions, message, dict(zip(names, values, strict=True))
        self.require(self.required, self.required_by)

    def require(self, names: Iterable[str], by: str) -> None:
        """Let nothing be sent where one of these has no value; `by`: who wants it, for the error."""
        self.required, self.required_by = tuple(names), by
        given = {name.lower() for name, value in self.given.items() if value}
        self.lacking = tuple(name for name in self.required if name not in given)

    def refuse_lack(self) -> None:
        """Raise SettingsMissing: a required setting is not given."""
        raise SettingsMissing(
            f"no value was given for {', '.join(self.lacking)}, which every transaction requires "
            f"({self.required_by}): nothing was sent. Set it on the engine, the connection or the session: "
            f'execution_options(plungepool_settings={{"{self.lacking[0]}": …}})'
        )

    def begin(self) -> None:
        """No transaction is open: what was told was told to one that is over."""
        self._told, self._limit_told_at = False, 0.0
        self.begun += 1

    def has_to_tell(self, statement: str, status: int, *, autocommit: bool) -> bool:
        """
        Say whether the settings, which are given, go with this statement: with the first that may read or write a row.

        Raises: ProgrammingError for a statement that would run, or let others run, without them.
        """
        words = first_words(statement)
        if words.startswith(_ENDS) and "CHAIN" in statement.upper():
            raise ProgrammingError(
                "AND CHAIN would begin a transaction without the settings of this one (plungepool_settings): nothing "
                "was sent. End the transaction, and begin another"
            )
        if status == IDLE and autocommit and not words.startswith(_TRAVELS):
            raise ProgrammingError(
                "in AUTOCOMMIT, the settings of a transaction (plungepool_settings) cannot be sent with this "
                "statement, which manages transactions itself, or may do so: nothing was sent. They can be sent with "
                "SELECT, INSERT, UPDATE, "
                "DELETE, MERGE, WITH, VALUES, TABLE, COPY, EXPLAIN, SHOW and TRUNCATE; for other statements, begin a "
                "transaction, or use an engine without settings"
            )
        return not (self._told or status == FAILED or words.startswith(_BEFORE_THE_SNAPSHOT))

    def limit(self, statement: str, status: int, *, autocommit: bool, deadline: float, version: str) -> str:
        """
        Return the conditions by which this flight tells the server the deadline; none where it knows, or may not be
        told.

        Args: version: as the server reports it.
        """
        now, major = clock.time(), version[:2]
        names = _LIMITS if major.isdigit() and int(major) >= 17 else _LIMITS_BEFORE_17
        if status == IDLE:
            # In AUTOCOMMIT the two are one implicit transaction, in which what manages transactions by itself would
            # fail.
            if autocommit and not first_words(statement).startswith(_PLAIN):
                return ""
        elif status == FAILED or (
            self._limit_told_at and (names is _LIMITS or now - self._limit_told_at < _TELL_AGAIN_S)
        ):
            # Each statement has a limit of its own before PostgreSQL 17, and a later one less time left.
            return ""
        if not self._limit_told_at and first_words(statement).startswith(_BEFORE_THE_SNAPSHOT):
            return ""  # the next statement tells it
        left_ms = math.ceil((deadline - now) * 1000)
        return limit_transaction(names, min(left_ms, 2_000_000_000)) if left_ms > 0 else ""

    def message(self, *, settings: bool, limit: str) -> bytes:
        """Return the messages of one statement that tells both; nothing where there is nothing to tell."""
        if not settings:
            return parse(f"SELECT WHERE {limit}") + BIND_NOTHING + EXECUTE if limit else b""
        conditions = f"{self._conditions} OR {limit}" if limit else self._conditions
        return parse(f"SELECT WHERE {conditions}") + self.bound + EXECUTE

    def note(self, *, settings: bool, limit: str) -> None:
        """Note what the open transaction has been told: only what was carried out was heard."""
        if settings:
            self._told = True
        if limit:
            self._limit_told_at = clock.time()


def checked(settings: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """
    Return names and values, each as a plain str, whatever class it was.

    Raises: ProgrammingError for what is no mapping of names to texts, and for a name that may not be set; no value
    stands in it.
    """
    if not hasattr(settings, "keys"):
        raise ProgrammingError(
            'settings of a transaction must be a mapping of names to strings, such as {"app.tenant_id": "42"}, or '
            "{} for none; "
            f"not {type(settings).__name__}"
        )
    names, values, seen = list[str](), list[str](), set[str]()
    for name in settings:
        if problem := local_setting_problem(name):
            raise ProgrammingError(problem)
        value = settings[name]
        name = str.__str__(name)
        if not isinstance(value, str):
            raise ProgrammingError(
                f"the setting {name} must be text, not {type(value).__name__}: write it as current_setting() is to "
                "return it, and leave the setting out if there is no value"
            )
        value = str.__str__(value)
        if "\0" in value or value != value.encode(errors="replace").decode():
            raise ProgrammingError(
                f"the setting {name} must be text that can be encoded as UTF-8, without NUL characters"
            )
        if name.lower() in seen:
            raise ProgrammingError(f"the setting {name} is given twice: names of settings are not case-sensitive")
        seen.add(name.lower())
        names.append(name)
        values.append(value)
    return names, values
