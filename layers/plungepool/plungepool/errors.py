"""
The errors that a caller can act on. Database errors pass as SQLAlchemy wraps them.

PlungepoolError
├── SettingsError (also ValueError)        a setting is wrong, missing, unknown or contradicts another
├── CredentialsError                       no usable user and password, or the server refused them
├── SettingsMissing                        a transaction lacks a setting that PLUNGEPOOL_REQUIRE_SETTINGS names
├── DeadlineExceeded (also TimeoutError)   the time was over before the database had answered
├── ConnectionLeak                         the handler kept a connection, and PLUNGEPOOL_LEAKS=raise
├── PoolExhausted (also sqlalchemy.exc.TimeoutError)    in pool.py: every connection of the pool is checked out
├── OutcomeUnknown                         COMMIT was sent and its answer was lost: the transaction was kept, or it was
not
└── PinningRefused                         a statement would pin the proxy, and PLUNGEPOOL_PINNING=refuse
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class PinningReason(Protocol):
        """What of pinning.Reason an error needs; this module imports nothing."""

        @property
        def kind(self) -> str: ...
        @property
        def why(self) -> str: ...
        @property
        def instead(self) -> str: ...


class PlungepoolError(Exception):
    """Root of every error that this package raises by itself."""


class SettingsError(PlungepoolError, ValueError):
    """
    One error for everything that is wrong with the settings; `problems` has a sentence for each.

    No sentence contains the value of a secret. The runtime reports the text of an unhandled exception to the invoker,
    so this text is what you read if the function does not start.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))

    def __reduce__(self) -> tuple[type[SettingsError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class CredentialsError(PlungepoolError):
    """
    No usable user and password, or the server refused them; raised `from` the cause.

    Without a cause if that would quote a request that AWS refused, and its session token with it.
    """


class SettingsMissing(PlungepoolError):
    """
    A transaction has no value for a setting that PLUNGEPOOL_REQUIRE_SETTINGS names, the tenant's; nothing was sent.

    Set it with `execution_options(plungepool_settings={...})`. Not in `Unavailable`: it is an error in the program, and
    happens again. The driver raises it as one of its own errors, and an engine as one of SQLAlchemy's
    (`sqlalchemy.exc.ProgrammingError`); either can be caught by this name.
    """


class DeadlineExceeded(PlungepoolError, TimeoutError):
    """
    The deadline of the invocation, or of a connection, passed before the database had answered; the connection is
    closed.

    The driver raises it as one of its own errors, `wire.DeadlineExceeded`, and an engine as one of SQLAlchemy's: either
    can be caught by this name, as a TimeoutError and as an OperationalError.
    """


class ConnectionLeak(PlungepoolError):
    """
    A handler returned without returning a connection, and PLUNGEPOOL_LEAKS is `raise`; `places` says where it was
    taken.

    The connections are back already, and their transactions rolled back.
    """

    def __init__(self, places: Iterable[str]) -> None:
        self.places = tuple(places)
        super().__init__(self.places)

    def __str__(self) -> str:
        return (
            f"a connection was still checked out at the end of the invocation, taken at {'; '.join(self.places)}. "
            "Use `with engine.begin() as connection:`"
        )


class OutcomeUnknown(PlungepoolError):
    """
    COMMIT was sent but its answer was lost, so it is not known whether the transaction was committed; raised `from` the
    cause.

    Not in `Unavailable`: simply trying again may do everything twice. With `once(connection, key)` in the transaction,
    it can be run again with the same key and takes effect once.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)

    def __str__(self) -> str:
        return (
            "COMMIT was sent but its answer was lost, so the transaction may or may not have been committed: "
            f"{self.what}. Check whether it took effect before running it again, or use plungepool.once() in it"
        )


class PinningRefused(PlungepoolError):
    """
    A statement would pin the proxy, and PLUNGEPOOL_PINNING is `refuse`; nothing was sent.

    `reason` says why: its `kind` in a word or two, `why` as a sentence, `instead` what to do; `shape` is the statement
    without its literals and comments, `where` the line of the program that executed it, `setting` the variable that
    refuses it.
    """

    def __init__(self, reason: PinningReason, shape: str, where: str, setting: str) -> None:
        self.reason, self.shape, self.where, self.setting = reason, shape, where, setting
        super().__init__(reason, shape, where, setting)

    def __str__(self) -> str:
        return (
            f"{self.reason.kind} would pin the proxy: {self.reason.why}. Instead: {self.reason.instead}. Nothing was "
            f"sent, because {self.setting}=refuse. The statement, executed at {self.where}: {self.shape}"
        )
