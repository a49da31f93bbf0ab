"""
IAM authentication tokens, verified as AWS documents their signature: by recomputing it, with no code of botocore's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Iterable

_TOKEN_LIFE_S = 900
_TOKEN_SKEW_S = 300
_FIELDS = frozenset(
    {
        "Action", "DBUser", "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires",
        "X-Amz-Security-Token", "X-Amz-SignedHeaders",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Credential:
    """
    An AWS credential whose signatures the stand-in takes, as IAM would.

    expires_at: seconds since the epoch, for a role's temporary credentials; a token dies with them.
    database_users: the users that its policy allows for `rds-db:connect`; None for all.
    """

    access_key_id: str
    secret_access_key: str = dataclasses.field(repr=False)
    session_token: str | None = dataclasses.field(default=None, repr=False)
    expires_at: float | None = None
    database_users: frozenset[str] | None = None

    @classmethod
    def temporary(cls) -> Credential:
        """Return a made-up credential of the kind that a function's role has."""
        return cls(
            access_key_id="ASIA" + secrets.token_hex(8).upper(),
            secret_access_key=secrets.token_urlsafe(30),
            # With +, / and =, as real ones have, and of their length.
            session_token="IQoJ+/" + secrets.token_urlsafe(660) + "==",
        )


class TokenRefused(Exception):
    """Why a token is not accepted, in words that hold nothing of it."""


def verify_token(
    token: str, *, user: str, endpoints: Iterable[str], region: str, credentials: Iterable[Credential], now: float
) -> None:
    """
    Verify an RDS authentication token: a presigned request (SigV4, service rds-db) without its scheme.

    Args: endpoints: `host:port` of what the client may have signed for. now: seconds since the epoch.
    Raises: TokenRefused.
    Source: IAM User Guide, "Create a signed AWS API request"; RDS User Guide, "IAM database authentication".
    """
    host, slash, query = token.partition("/?")
    if not slash:
        raise TokenRefused("it is no token")
    fields = _fields(query)
    try:
        signature = fields.pop("X-Amz-Signature")
        key_id, day, signed_region, service, end = fields["X-Amz-Credential"].split("/")
        stamp = fields["X-Amz-Date"]
        signed_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        life = int(fields["X-Amz-Expires"])
        fixed = fields["Action"], fields["X-Amz-Algorithm"], fields["X-Amz-SignedHeaders"]
        signed_user = fields["DBUser"]
    except (KeyError, ValueError) as error:
        raise TokenRefused("it is malformed") from error
    if fixed != ("connect", "AWS4-HMAC-SHA256", "host") or fields.keys() - _FIELDS:
        raise TokenRefused("it is malformed")
    if signed_user != user:
        raise TokenRefused("it is signed for another user")
    if host not in endpoints:
        raise TokenRefused("it is signed for another host or port")
    if signed_region != region:
        raise TokenRefused("it is signed for another region")
    if (service, end) != ("rds-db", "aws4_request") or not stamp.startswith(day + "T"):
        raise TokenRefused("it is signed for another scope")
    credential = next((one for one in credentials if one.access_key_id == key_id), None)
    if credential is None:
        raise TokenRefused("its access key is unknown")
    if fields.get("X-Amz-Security-Token") != credential.session_token:
        raise TokenRefused("its session token is missing or another one")
    expected = _signature(host, fields, credential, stamp, f"{day}/{region}/rds-db/aws4_request")
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        raise TokenRefused("its signature does not match")

    if not life > 0 or now >= signed_at + min(life, _TOKEN_LIFE_S):
        raise TokenRefused("it has expired")
    if now < signed_at - _TOKEN_SKEW_S:
        raise TokenRefused("it is signed in the future")
    if credential.expires_at is not None and now >= credential.expires_at:
        raise TokenRefused("the credentials that signed it have expired")
    if credential.database_users is not None and user not in credential.database_users:
        raise TokenRefused("no policy allows rds-db:connect as this user")


def _fields(query: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if not equals or unquote(name) in fields:
            raise TokenRefused("it is malformed")
        fields[unquote(name)] = unquote(value)
    return fields


def _signature(host: str, fields: dict[str, str], credential: Credential, stamp: str, scope: str) -> str:
    """Return what this credential's holder signs for these fields, in hexadecimal."""
    canonical_query = "&".join(f"{quote(name, safe='')}={quote(fields[name], safe='')}" for name in sorted(fields))
    payload = hashlib.sha256().hexdigest()
    canonical = "\n".join(("GET", "/", canonical_query, f"host:{host}", "", "host", payload))
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = b"AWS4" + credential.secret_access_key.encode()
    for part in (*scope.split("/"), to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    return key.hex()
