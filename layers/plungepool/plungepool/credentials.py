"""
Where user and password come from: the settings, a secret, or a token signed for one connect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from .settings import Settings

Connection = TypeVar("Connection")


@dataclass(frozen=True, slots=True)
class Login:
    """What one connect needs; its repr holds no password."""

    user: str
    password: str | None = field(repr=False)
    host: str
    port: int
    database: str


class Source(Protocol):
    """Gives the login for each connect, and knows what to try when the server refuses it."""

    def connect(self, open_connection: Callable[[Login], Connection]) -> Connection:
        """Obtain credentials, call ``open_connection`` with them and return what it returns."""
        ...


def source(settings: Settings) -> Source:
    """Return the source of credentials that the settings name; no I/O yet."""
    return _Password(settings)


class _Password:
    def __init__(self, settings: Settings) -> None:
        self._login = Login(settings.user or "", settings.password, settings.host, settings.port, settings.database)

    def connect(self, open_connection: Callable[[Login], Connection]) -> Connection:
        return open_connection(self._login)
