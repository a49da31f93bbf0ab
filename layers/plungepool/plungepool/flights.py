"""What a flight has asked, without a value, and by which name an error is counted. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import statements
from .wire.errors import DeadlineExceeded
from .wire.messages import SYNC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .wire.protocol import Reply
    from .wire.session import Session

# The statements of a flight stand in its first messages; what comes behind are rows of an executemany.
_MESSAGES_LOOKED_AT = 8
_PARSE, _QUERY = b"PQ"
# Of the statement that tells the server the deadline, and the settings of a transaction: how it begins, what it holds.
_OWN, _SETTINGS = "SELECT WHERE ", "pg_catalog.set_config("


def name_of(error: BaseException) -> str:
    """
    Return what an error is counted by: its SQLSTATE, else its class; a missed deadline is one, whoever noticed it.
    """
    sqlstate = None if isinstance(error, DeadlineExceeded) else getattr(error, "sqlstate", None)
    return sqlstate or type(error).__name__


def is_ping(reply: Reply) -> bool:
    """Say whether a flight asked nothing but whether the server is there."""
    return len(reply.sent) == 1 and reply.sent[0] == SYNC


def texts(reply: Reply) -> Iterator[str]:
    """
    Yield the texts of a flight's statements, with their literals, as they were sent: BEGIN and what travels with it
    before the program's own.

    A text of the simple protocol may hold several. No parameter is in them.
    """
    for message in reply.sent:
        yield from texts_of(message)


def texts_of(message: bytes) -> Iterator[str]:
    """Yield the texts in one message of a flight, or in what was made one of several; what is cut off is left out."""
    for text, _ in _asked(message):
        yield text


def _asked(message: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the texts in one message, each with what stands behind it: in Parse, the types of its parameters."""
    at = 0
    while at + 5 <= len(message):
        code, end = message[at : at + 1], at + 1 + int.from_bytes(message[at + 1 : at + 5])
        # The name of the statement comes first in Parse, which is empty, and the types of its parameters behind.
        start = {b"Q": at + 5, b"P": at + 6}.get(code)
        if start is not None:
            text, _, behind = message[start:end].partition(b"\0")
            yield text.decode("utf-8", "replace"), behind
        at = end


def program(reply: Reply) -> tuple[str, tuple[int, ...]]:
    """
    Return the text of the statement that the program has asked for, and the oids of the types that its parameters were
    declared with (0: the server decides); without what goes before it (BEGIN, the deadline, the settings of the
    transaction) and behind it (COMMIT of a read-only engine in AUTOCOMMIT).

    Where nothing else is in the flight, as at a commit, it is the first text.
    """
    asked = [found for message in reply.sent for found in _asked(message)]
    own = [(text, behind) for text, behind in ((_without_own(one), behind) for one, behind in asked) if text]
    text, behind = own[0] if own else asked[0] if asked else ("", b"")
    return text, tuple(int.from_bytes(behind[at : at + 4]) for at in range(2, len(behind) - 3, 4))


def _without_own(text: str) -> str:
    # By the simple protocol, which several statements need, all is in one text.
    while _is_own(text) and ";" in text:
        text = text.partition(";")[2]
    return "" if _is_own(text) else text


def _is_own(text: str) -> bool:
    return text.startswith("BEGIN") or _is_settings(text)


def _is_settings(text: str) -> bool:
    return text.startswith(_OWN) and _SETTINGS in text


def escapes(session: Session) -> bool:
    """Say whether a backslash escapes in each string of a session's statements (standard_conforming_strings is off)."""
    return session.parameter_statuses.get("standard_conforming_strings") == "off"


def rows_of(reply: Reply) -> int:
    """Return how many rows came back, or were changed."""
    return len(reply.rows) or max(reply.rowcount, 0)


def asking(sent: Sequence[bytes]) -> list[bytes]:
    """Return those messages of a flight in which its statements are."""
    return [part for part in sent[:_MESSAGES_LOOKED_AT] if part and part[0] in (_PARSE, _QUERY)]


def what(messages: Iterable[bytes], shape: Callable[..., str] = statements.shape, *, escapes: bool = False) -> str:
    """
    Return what the messages of a flight ask: the shapes of its statements, without a literal; `ping` for none.

    Args: escapes: as `escapes` says of the session.
    """
    texts = [text for message in messages for text in texts_of(message)]
    named = ["settings" if _is_settings(text) else shape(text, escapes=escapes) for text in texts]
    return " + ".join(one for one in named if one) or "ping"
