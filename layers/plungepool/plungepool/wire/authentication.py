"""
What one connect proves itself by: a password in clear text, by MD5 or by SCRAM, or nothing. Pure.

Source: PostgreSQL's manual, "Message Flow", Start-up.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from .errors import NotSupportedError, OperationalError, PasswordAheadRefused, Secret, violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from .errors import DatabaseError
    from .scram import Scram

# What the server asks for to authenticate, and what it says when it is content.
_OK, _CLEAR_TEXT, _MD5, _SASL, _SASL_CONTINUE, _SASL_FINAL = 0, 3, 5, 10, 11, 12
# The same in pg_hba.conf's words; of the methods that are not known here those that a server may ask for.
_METHODS = {_OK: "trust", _CLEAR_TEXT: "password", _MD5: "md5", 7: "gss", 9: "sspi", _SASL: "scram-sha-256"}

_INT = struct.Struct("!i")


class Authentication:
    """What one connect has to prove itself by, and what it was asked for. No frame of it shows the password."""

    def __init__(self, user: str, secret: Secret, peer_certificate: Callable[[], bytes | None]) -> None:
        #: True when the server is content
        self.done = False
        #: True when the password was sent before the server asked for it, and it has not asked for it yet
        self.is_ahead = False
        #: what goes to the server behind the last word of this side's, in the same write
        self.behind = b""
        #: True when that went
        self.is_followed = False
        #: what the server asked for, in pg_hba.conf's words
        self.method = "trust"
        self._user, self._secret, self._peer_certificate = user, secret, peer_certificate
        self._answered = False
        self._scram: Scram | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that proving the password step by step may need."""
        if self._secret.value is None:
            return ()
        return (f"{__package__}.scram", *(() if self._secret.value.isascii() else ("stringprep",)))

    def go_ahead(self, packet: Secret) -> None:
        """
        Put the password behind the start-up packet, as the answer to a request for clear text that is yet to come.
        """
        answer = _encoded_password(self._secret)
        answer.value += b"\0"
        packet.value += self._last(answer).value
        self.is_ahead = True

    def refuse(self, text: str, method: str | None = None, sqlstate: str | None = None) -> PasswordAheadRefused:
        """Return the error for a server that does not take what went ahead."""
        error = PasswordAheadRefused(f"{text}; connect again with password_ahead=False")
        error.authentication, error.sqlstate = method, sqlstate
        return error

    def answer(self, body: bytes) -> Secret | None:
        """
        Return the message that answers a request to authenticate; None where there is nothing to say.

        Raises: OperationalError, NotSupportedError.
        """
        (kind,) = _INT.unpack_from(body)
        if self.is_ahead:
            method = _METHODS.get(kind, str(kind))
            if kind != _CLEAR_TEXT:
                raise self.refuse(f"the server requires {method}, not the password that was sent", method)
            self.is_ahead, self._answered, self.method = False, True, method
            return None
        if kind == _OK:
            if self._scram is not None and not self._scram.verified:
                raise OperationalError("the server skipped the proof that it knows the password")
            self.done = True
            return None
        if kind in (_SASL_CONTINUE, _SASL_FINAL):
            if self._scram is None:
                raise violation("a SCRAM message before SCRAM was begun")
            if kind == _SASL_CONTINUE:
                return self._last(self._scram.answer(body[4:]))
            self._scram.verify(body[4:])
            return None
        if kind not in (_CLEAR_TEXT, _MD5, _SASL):
            raise NotSupportedError(
                f"the server asks for authentication method {kind}, which is not supported (password, md5 and "
                "SCRAM-SHA-256 are)"
            )
        # Only one method is answered: a server that cannot verify SCRAM does not get the password as well.
        if self._answered:
            raise violation("a second request for authentication")
        if self._secret.value is None:
            raise OperationalError(f"the server asks for a password for user {self._user}, but none was given")
        self._answered, self.method = True, _METHODS[kind]
        answer = _encoded_password(self._secret)
        if kind == _SASL:
            from .scram import Scram

            self._scram = Scram(answer, body[4:], self._peer_certificate())
            first = Secret()
            first.value = self._scram.first
            return _password_message(first)
        if kind == _MD5:
            if len(body) < 8:
                raise violation("a salt that is too short")
            answer = _md5(self._user, answer, body[4:8])
        else:
            answer.value += b"\0"
        return self._last(answer)

    def _last(self, answer: Secret) -> Secret:
        """Return the message that is the last word of this side's, and what follows it."""
        message = _password_message(answer)
        if self.behind:
            message.value += self.behind
            self.is_followed = True
        return message

    def explain(self, error: DatabaseError) -> None:
        """Add to the server's refusal what may be wrong with the password."""
        refused = self._answered and (error.sqlstate or "").startswith(("28", "08P01"))
        if refused and self._secret.value != self._secret.value.strip():
            error.args = (f"{error.args[0]}; the password that was sent begins or ends with a space or a line break",)


def _password_message(answer: Secret) -> Secret:
    message = Secret()
    message.value = b"p" + _INT.pack(len(answer.value) + 4) + answer.value
    return message


def _encoded_password(secret: Secret) -> Secret:
    encoded = Secret()
    try:
        # What os.environ could not decode is the bytes that it was.
        encoded.value = secret.value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # which holds the whole password
        encoded.value = None
    if encoded.value is None:
        raise OperationalError("the password cannot be sent: it is text that cannot be encoded as UTF-8")
    if b"\0" in encoded.value:
        raise OperationalError("the password cannot be sent: it contains a NUL character")
    return encoded


def _md5(user: str, password: Secret, salt: bytes) -> Secret:
    from hashlib import md5

    answer = Secret()
    answer.value = md5(password.value + user.encode(), usedforsecurity=False).hexdigest().encode()
    answer.value = b"md5" + md5(answer.value + salt, usedforsecurity=False).hexdigest().encode() + b"\0"
    return answer
