"""
Where user and password come from: the settings, a secret (secret.py), or a token signed for one connect (iam.py).

Only those two may import boto3, botocore or Powertools, and only inside functions: importing botocore and making a
client costs a cold start more than all the rest of a first connect, and an IAM token needs neither.

Nothing here is logged. What a login, a key or a secret holds is in no repr, in no error, and in no local variable by
itself: a crash reporter prints the locals of every frame that an error has passed. So a secret is only ever an
attribute of something whose repr leaves it out, and an error of a library that was given one is passed on without its
frames.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .settings import Settings

# The server says "the password is wrong" and "this user may not log in" with these two; PAM, which checks RDS's IAM
# tokens, with the second.
_REFUSED = ("28P01", "28000")


@dataclass(frozen=True, slots=True)
class Login:
    """What a server wants to know of a client, and where it is; the repr holds no password."""

    user: str
    password: str = field(repr=False)
    host: str
    port: int
    database: str


class Source(Protocol):
    """
    Gives the logins to connect with, one after the other.

    Threads: safe.
    """

    #: Whether `logins` may give others a moment later.
    may_change: bool

    def logins(self) -> Iterator[Login]:
        """
        Yield each login that is worth trying now; whoever asks for the next one says that the server refused the last.

        The first is obtained when it is asked for, and so is each of the others: that may import boto3 and ask AWS.
        Raises: CredentialsError; SettingsError when the settings contradict what a secret holds.
        """
        ...

    def explain(self, first: Login, refusal: Exception) -> None:
        """
        Raise what a user is to read when the server has refused every login, `from` its last refusal; or leave it to
        that one.

        Args: first: the login that was tried first. refusal: the last of the server's errors.
        Raises: CredentialsError.
        """
        ...

    def forget(self) -> None:
        """Drop what was fetched, so that it is in no snapshot; the next login is obtained anew."""
        ...

    def prepare(self) -> None:
        """Import ahead what the first login would, and ask nobody; what is not installed is that login's error."""
        ...


class PasswordSource:
    """The user and password of the settings. A refused one is not tried again: nothing could have changed."""

    may_change = False

    def __init__(self, settings: Settings) -> None:
        self._login = Login(
            settings.user or "", settings.password or "", settings.host, settings.port, settings.database
        )

    def logins(self) -> Iterator[Login]:
        """Yield the one that there is."""
        yield self._login

    def explain(self, first: Login, refusal: Exception) -> None:
        """Leave it to the server's own error."""

    def forget(self) -> None:
        """Nothing was fetched."""

    def prepare(self) -> None:
        """Nothing is missing."""


class Hidden:
    """Whatever is put on it is in no repr."""

    text: Any


class Document:
    """
    The texts and numbers of a JSON object that is secret; an empty one where there is no object, without an error.
    """

    def __init__(self, read: Callable[[], str | bytes]) -> None:
        found = Hidden()
        try:
            found.text = json.loads(read() or "null")
        except (ValueError, TypeError, KeyError, RecursionError):
            # Whatever is wrong with the text, its error would carry it.
            found.text = None
        self._found = found

    def get(self, name: str, *kinds: type) -> str:
        """Return a text, or what is of another kind that is named, as text; nothing for whatever else it is."""
        fits = isinstance(self._found.text, dict) and isinstance(self._found.text.get(name), (str, *kinds))
        return str(self._found.text[name]) if fits else ""


def is_librarys(error: Exception) -> bool:
    """Say whether an error is AWS's libraries' own, and not one that somebody's signal handler raised meanwhile."""
    return isinstance(error, ImportError) or type(error).__module__.partition(".")[0] in (
        "boto3",
        "botocore",
        "aws_lambda_powertools",
    )


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def without_frames(error: Exception) -> Exception:
    """
    Return the error, and all that it came from, without the frames that it passed.

    A library that was given a key, a token or a secret has it among the locals of those frames.
    """
    for one in chain_of(error):
        one.__traceback__ = None
        # A context that a cause hides is printed by nobody, and kept by some.
        if one.__cause__ is not None:
            one.__context__ = None
    return error


def error_code(error: BaseException | None) -> str | None:
    """Return the code of the AWS error in a chain of errors (Powertools puts one of its own before it)."""
    for one in chain_of(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None


def is_refused(error: BaseException) -> bool:
    """Say whether the server refused the login."""
    return sqlstate_of(error) in _REFUSED


def sqlstate_of(error: BaseException | None) -> str | None:
    """Return the server's code; None where the error is not the server's."""
    return getattr(error, "sqlstate", None)
