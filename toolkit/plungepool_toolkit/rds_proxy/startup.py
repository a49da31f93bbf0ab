"""
How a client comes in: TLS, its start-up message, and the proof of who it is.

A session that is refused is told so as the documentation of RDS Proxy says, or as PostgreSQL would.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, NamedTuple

import scramp
from scramp.utils import saslprep

from plungepool_toolkit.rds_proxy import messages
from plungepool_toolkit.rds_proxy.tokens import TokenRefused, verify_token

if TYPE_CHECKING:
    from plungepool_toolkit.rds_proxy.peer import Peer
    from plungepool_toolkit.rds_proxy.service import Service
    from plungepool_toolkit.rds_proxy.upstream import Key, StartupSettings

_STARTUP_S = 30.0

# Aurora User Guide, "Considerations for connecting to PostgreSQL": what a start-up message may set. Names of settings
# are not case-sensitive.
_STARTUP_SETTINGS = frozenset(
    {"application_name", "client_encoding", "datestyle", "timezone", "extra_float_digits", "search_path"}
)


class Refused(Exception):
    """A client's connection ends with this error message; `reason` is what the counters call it."""

    def __init__(self, code: str, text: str, reason: str | None = None) -> None:
        super().__init__(text)
        self.message = messages.pack_error(code, text)
        self.reason = reason


class Client(NamedTuple):
    """Who a client is, and what it asked for."""

    key: Key
    settings: StartupSettings


async def admit(service: Service, peer: Peer) -> Client:
    """
    Let a client in, up to and without the answer that says so.

    Raises: Refused; OSError if it went away; TimeoutError if it takes too long.
    """
    peer.inbox.longest = messages.LONGEST_PASSWORD
    async with asyncio.timeout(_STARTUP_S):
        fields = await _read_startup(service, peer)
        key = _check(service, fields)
        await _authenticate(service, peer, key[0])
    peer.inbox.longest = messages.LONGEST_MESSAGE
    settings = {name.lower(): value for name, value in fields.items() if name not in ("user", "database")}
    return Client(key, tuple(sorted(settings.items())))


async def _read_startup(service: Service, peer: Peer) -> dict[str, str]:
    """Return what the start-up message asks for, over TLS. Raises: Refused; OSError."""
    secure = service.direct_tls and await peer.peek() == messages.TLS_HANDSHAKE
    if secure and await peer.start_tls(service.tls) != messages.ALPN:
        # PostgreSQL says nothing either: nobody who speaks its protocol is there.
        service.refused["direct TLS without ALPN"] += 1
        raise ConnectionError("TLS at once, for another protocol than PostgreSQL's")
    asked: set[int] = set()
    while True:
        message = await peer.read_startup()
        code = messages.startup_code(message)
        if code == messages.CANCEL_REQUEST:
            service.counts["cancel_requests_ignored"] += 1
            raise ConnectionError("a cancel request, ignored")
        if code not in (messages.SSL_REQUEST, messages.GSS_REQUEST) or code in asked:
            break
        if peer.inbox:
            # CVE-2021-23214: what came before the handshake must not be taken for what comes after it.
            raise Refused("08P01", "Unencrypted data after the request for encryption.", "data before TLS")
        asked.add(code)
        if code == messages.GSS_REQUEST or secure:
            peer.write(b"N")
            continue
        peer.write(b"S")
        await peer.start_tls(service.tls)
        secure = True
        asked.add(messages.GSS_REQUEST)
    if code != messages.PROTOCOL_3_0:
        raise Refused(
            "0A000",
            "Feature not supported: RDS Proxy supports only version 3.0 of the PostgreSQL messaging protocol.",
            "protocol version",
        )
    if not secure:
        text = "IAM is allowed only with SSL connections." if service.auth == "iam" else None
        raise Refused("28000", text or "This RDS Proxy requires TLS connections", "plain text")
    if peer.inbox and service.pipelined_startup == "refuse":
        raise Refused("08P01", "Data after the start-up message, before it was answered.", "pipelined start-up")
    if service.pipelined_startup == "discard":
        peer.inbox.take_all()
    try:
        return messages.startup_fields(message)
    except UnicodeDecodeError:
        raise Refused("08P01", "The start-up message is not UTF-8.", "malformed") from None


def _check(service: Service, fields: dict[str, str]) -> Key:
    """Return the user and the database, if nothing is asked for that a proxy does not support."""
    user = fields.get("user", "")
    if not user:
        raise Refused(
            "28000",
            "The user name is missing from the connection startup packet. Provide a user name for this connection.",
            "no user",
        )
    for name in fields:
        if name in ("user", "database") or name.lower() in _STARTUP_SETTINGS:
            continue
        if name == "options":
            what = "command-line options"
        elif name == "replication":
            what = "streaming replication mode"
        else:
            what = f"the option {name}"
        raise Refused(
            "0A000",
            f"Feature not supported: RDS Proxy currently doesn't support {what}.",
            f"start-up option {name}",
        )
    if service.connected > service.max_clients:
        raise Refused(
            "53300",
            f"The maximum number of client connections to the proxy exceeded {service.max_clients}.",
            "too many clients",
        )
    return user, fields.get("database", "") or user


async def _authenticate(service: Service, peer: Peer, user: str) -> None:
    # A user whom nobody knows is asked for a password like any other, and told afterwards.
    expected = (service.users or {}).get(user)
    if service.auth == "scram":
        await _converse_scram(peer, user, expected)
        return
    peer.write(messages.pack_authentication(messages.AUTH_CLEARTEXT_PASSWORD))
    given = messages.password(await _read_password(peer))
    if service.auth == "iam":
        _verify_token(service, user, given)
    elif expected is None or not hmac.compare_digest(given, expected.encode()):
        raise _wrong_password(user)


def _verify_token(service: Service, user: str, given: bytes) -> None:
    try:
        verify_token(
            given.decode(),
            user=user,
            endpoints=service.endpoints,
            region=service.region,
            credentials=service.credentials,
            now=service.now(),
        )
    except (TokenRefused, UnicodeDecodeError) as refused:
        why = str(refused) if isinstance(refused, TokenRefused) else "it is no token"
        raise Refused(
            "28P01",
            f"The IAM authentication failed for the role {user}. Check the IAM token for this role and try again.",
            f"IAM token: {why}",
        ) from None
    if service.users is not None and user not in service.users:
        raise Refused(
            "28P01",
            f"This RDS proxy has no credentials for the role {user}. Check the credentials for this role and try "
            "again.",
            "no credentials for the role",
        )


async def _read_password(peer: Peer) -> bytes:
    """Return what every answer of a client's about authentication is: a message of the kind PASSWORD."""
    message = await peer.read()
    if message[:1] != messages.PASSWORD:
        raise Refused("08P01", "A password message was expected.", "malformed")
    return message


async def _converse_scram(peer: Peer, user: str, expected: str | None) -> None:
    peer.write(messages.pack_authentication(messages.AUTH_SASL, b"SCRAM-SHA-256\0\0"))
    response = messages.sasl_initial_response(await _read_password(peer))
    if response is None:
        # What PostgreSQL says to a password in clear text: it is all that a client knows of that sent one unasked.
        raise Refused("08P01", "client selected an invalid SASL authentication mechanism", "password instead of SCRAM")
    mechanism, first = response
    if mechanism != b"SCRAM-SHA-256":
        raise Refused("28000", "RDS Proxy supports only IAM, MD5, or SCRAM authentication.", "mechanism")
    # An unknown user gets the same conversation and the same answer.
    scram = _ScramServer(secrets.token_urlsafe() if expected is None else expected)
    try:
        peer.write(messages.pack_authentication(messages.AUTH_SASL_CONTINUE, scram.first(first)))
        last = (await _read_password(peer))[5:]
        peer.write(messages.pack_authentication(messages.AUTH_SASL_FINAL, scram.final(last)))
    except (ValueError, KeyError):
        raise _wrong_password(user) from None


def _wrong_password(user: str) -> Refused:
    return Refused("28P01", f"The password that was provided for the role {user} is wrong.", "wrong password")


class _ScramServer:
    """
    The server's half of SCRAM-SHA-256 without channel binding (RFC 5802, RFC 7677); ValueError or KeyError is a
    refusal.
    """

    def __init__(self, password: str) -> None:
        self._salt, self._iterations = secrets.token_bytes(16), 4096
        try:
            prepared = saslprep(password) or password
        except scramp.ScramException:
            prepared = password  # what SASLprep refuses, libpq and PostgreSQL take as it is
        self._salted = hashlib.pbkdf2_hmac("sha256", prepared.encode(), self._salt, self._iterations)
        self._header = self._said = self._nonce = b""

    def first(self, message: bytes) -> bytes:
        """Return the server's first message. libpq sends no user name here: it stands in the start-up message."""
        flag, authorization, bare = message.split(b",", 2)
        nonce = self._fields(bare)[b"r"]
        if flag not in (b"n", b"y") or authorization or not nonce:
            raise ValueError("malformed")
        self._header = message[: -len(bare)]
        self._nonce = nonce + base64.b64encode(secrets.token_bytes(18))
        reply = b"r=%s,s=%s,i=%d" % (self._nonce, base64.b64encode(self._salt), self._iterations)
        self._said = bare + b"," + reply
        return reply

    def final(self, message: bytes) -> bytes:
        """Verify the client's proof and return the server's."""
        without_proof, _comma, _proof = message.rpartition(b",")
        fields = self._fields(message)
        if fields[b"r"] != self._nonce or base64.b64decode(fields[b"c"], validate=True) != self._header:
            raise ValueError("another conversation's")
        said = self._said + b"," + without_proof
        key = hmac.digest(self._salted, b"Client Key", "sha256")
        stored = hashlib.sha256(key).digest()
        mask = hmac.digest(stored, said, "sha256")
        claimed = bytes(a ^ b for a, b in zip(base64.b64decode(fields[b"p"], validate=True), mask, strict=True))
        if not hmac.compare_digest(hashlib.sha256(claimed).digest(), stored):
            raise ValueError("the proof is wrong")
        own = hmac.digest(self._salted, b"Server Key", "sha256")
        return b"v=" + base64.b64encode(hmac.digest(own, said, "sha256"))

    @staticmethod
    def _fields(message: bytes) -> dict[bytes, bytes]:
        return {part[:1]: part[2:] for part in message.split(b",")}
