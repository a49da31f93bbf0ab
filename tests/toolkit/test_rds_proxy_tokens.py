"""Whether the stand-in for RDS Proxy takes a token: botocore's, and ones that lie."""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in import CREDENTIAL, ENDPOINT, token

from plungepool_toolkit.rds_proxy import Credential, RdsProxy, TokenRefused, verify_token

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., RdsProxy]


def verify(given: str, *, user: str = "proxied", now: float | None = None, **changes: Any) -> None:
    fixed = {"endpoints": {ENDPOINT}, "region": "eu-west-1", "credentials": [CREDENTIAL]} | changes
    verify_token(given, user=user, now=time.time() if now is None else now, **fixed)


@pytest.mark.parametrize("credential", [CREDENTIAL, Credential(access_key_id="AKIA1", secret_access_key="s/+=")])
@pytest.mark.parametrize("user", ["proxied", "a b&c=d/é+%", "*~'()"])
def test_a_token_of_botocore_s_is_good(credential: Credential, user: str) -> None:
    """Lasting and temporary credentials, and users that need quoting."""
    verify(token(credential, user=user), user=user, credentials=[credential])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"user": "other"}, "another user"),
        ({"endpoints": {ENDPOINT.replace("app.", "own.")}}, "another host or port"),
        ({"endpoints": {ENDPOINT.replace(":5432", ":5433")}}, "another host or port"),
        ({"region": "eu-west-2"}, "another region"),
        ({"credentials": []}, "access key is unknown"),
        (
            {"credentials": [Credential(access_key_id=CREDENTIAL.access_key_id, secret_access_key="other")]},
            "session token",
        ),
    ],
)
def test_a_token_for_something_else_is_refused(changes: dict[str, Any], why: str) -> None:
    """Each thing that a token is bound to is looked at."""
    with pytest.raises(TokenRefused, match=why):
        verify(token(), **changes)


def test_a_signature_by_another_secret_is_refused() -> None:
    """Everything is right but the key."""
    other = Credential(
        access_key_id=CREDENTIAL.access_key_id, secret_access_key="other", session_token=CREDENTIAL.session_token
    )
    with pytest.raises(TokenRefused, match="signature"):
        verify(token(other))


@pytest.mark.parametrize(("age_s", "why"), [(-600, "future"), (0, None), (14 * 60, None), (16 * 60, "expired")])
def test_a_token_lives_fifteen_minutes(age_s: float, why: str | None) -> None:
    """Neither older, nor signed by a clock that is far ahead."""
    given = token()
    if why is None:
        verify(given, now=time.time() + age_s)
    else:
        with pytest.raises(TokenRefused, match=why):
            verify(given, now=time.time() + age_s)


def test_a_token_dies_with_its_credentials() -> None:
    """A role's temporary credentials may end before the fifteen minutes do."""
    short = Credential(access_key_id="ASIA1", secret_access_key="s", session_token="t", expires_at=time.time() + 60)
    verify(token(short), credentials=[short])
    with pytest.raises(TokenRefused, match="credentials that signed it"):
        verify(token(short), credentials=[short], now=time.time() + 61)


def test_a_policy_can_keep_a_user_out() -> None:
    """`rds-db:connect` is allowed for each database user by itself."""
    bound = Credential(access_key_id="AKIA2", secret_access_key="s", database_users=frozenset({"other"}))
    verify(token(bound, user="other"), user="other", credentials=[bound])
    with pytest.raises(TokenRefused, match="rds-db:connect"):
        verify(token(bound), credentials=[bound])


def signed(extra: str = "", **changes: str | None) -> str:
    """Sign whatever fields at 12:00 UTC: the signature is good, so that nothing else can be why a token is refused."""
    secret, session = CREDENTIAL.secret_access_key, CREDENTIAL.session_token
    fields: dict[str, str | None] = {
        "Action": "connect",
        "DBUser": "proxied",
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{CREDENTIAL.access_key_id}/20260114/eu-west-1/rds-db/aws4_request",
        "X-Amz-Date": "20260114T120000Z",
        "X-Amz-Expires": "900",
        "X-Amz-Security-Token": session,
        "X-Amz-SignedHeaders": "host",
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    kept = {name: value for name, value in fields.items() if value is not None}
    query = "&".join(f"{quote(name, safe='')}={quote(kept[name], safe='')}" for name in sorted(kept)) + extra
    _key, *scope = str(fields["X-Amz-Credential"]).split("/")
    canonical = f"GET\n/\n{query}\nhost:{ENDPOINT}\n\nhost\n{hashlib.sha256(b'').hexdigest()}"
    to_sign = "\n".join(
        ("AWS4-HMAC-SHA256", str(fields["X-Amz-Date"]), "/".join(scope), hashlib.sha256(canonical.encode()).hexdigest())
    )
    key = b"AWS4" + secret.encode()
    for part in (*scope, to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    return f"{ENDPOINT}/?{query}&X-Amz-Signature={key.hex()}"


NOON = datetime(2026, 1, 14, 12, tzinfo=UTC).timestamp()
SCOPE = f"{CREDENTIAL.access_key_id}/20260114/eu-west-1/rds-db/aws4_request"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"Action": "list"}, "malformed"),
        ({"X_Amz_Algorithm": "AWS4-HMAC-SHA1"}, "malformed"),
        ({"X_Amz_SignedHeaders": "host;x-other"}, "malformed"),
        ({"Other": "1"}, "malformed"),
        ({"extra": "&DBUser=other"}, "malformed"),
        ({"DBUser": "other"}, "another user"),
        ({"DBUser": None}, "malformed"),
        ({"X_Amz_Credential": SCOPE.replace("eu-west-1", "eu-west-2")}, "another region"),
        ({"X_Amz_Credential": SCOPE.replace("rds-db", "rds")}, "another scope"),
        ({"X_Amz_Credential": SCOPE.replace("aws4_request", "aws4")}, "another scope"),
        ({"X_Amz_Credential": SCOPE.replace("20260114", "20260113")}, "another scope"),
        ({"X_Amz_Credential": "other" + SCOPE}, "access key is unknown"),
        ({"X_Amz_Security_Token": None}, "session token"),
        ({"X_Amz_Security_Token": "other"}, "session token"),
        ({"X_Amz_Expires": "0"}, "expired"),
        ({"X_Amz_Expires": "-900"}, "expired"),
        ({"X_Amz_Date": "20260114T120100Z", "X_Amz_Expires": "0"}, "expired"),
        ({"X_Amz_Expires": "many"}, "malformed"),
        ({"X_Amz_Date": "20260114T120501Z"}, "signed in the future"),
        ({"X_Amz_Date": "20260114T114500Z"}, "expired"),
        ({"X_Amz_Date": "20260114T114500Z", "X_Amz_Expires": "3600"}, "expired"),
        ({"X_Amz_Date": "20260114T115900Z", "X_Amz_Expires": "60"}, "expired"),
    ],
)
def test_a_token_is_refused_for_what_it_says_though_its_signature_is_good(changes: dict[str, Any], why: str) -> None:
    """Each rule by itself, at its bound: only the rule can refuse what somebody with the key has signed."""
    verify(signed(), now=NOON)
    with pytest.raises(TokenRefused, match=why):
        verify(signed(**changes), now=NOON)


def test_a_token_is_good_up_to_its_bounds() -> None:
    """The last second of its life, of its credentials' and of a clock that is ahead."""
    verify(signed(), now=NOON + 899)
    verify(signed(X_Amz_Expires="60"), now=NOON + 59)
    verify(signed(), now=NOON - 300)
    ending = replace(CREDENTIAL, expires_at=NOON + 5)
    verify(signed(), now=NOON + 4.9, credentials=[ending])
    with pytest.raises(TokenRefused, match="credentials that signed it"):
        verify(signed(), now=NOON + 5, credentials=[ending])


def test_a_token_is_the_same_however_its_names_are_written() -> None:
    """A signature is of what the query says, after percent-decoding."""
    verify(signed().replace("X-Amz-Date", "X%2DAmz-Dat%65"), now=NOON)
    with pytest.raises(TokenRefused, match="malformed"):
        verify(signed() + "&D%42User=proxied", now=NOON)


_GOOD = token()


@given(st.integers(0, len(_GOOD) - 1), st.characters(min_codepoint=32, max_codepoint=126))
@settings(deadline=None)
def test_a_token_with_one_character_changed_is_refused(at: int, char: str) -> None:
    """No part of it is without meaning; only what decodes to the same token is the same token."""
    changed = _GOOD[:at] + char + _GOOD[at + 1 :]
    if unquote(changed) != unquote(_GOOD):
        with pytest.raises(TokenRefused):
            verify(changed)


@given(st.text(max_size=80) | st.text(alphabet="&=?/%:+aZ0-", max_size=80).map(lambda rest: f"{ENDPOINT}/?{rest}"))
@settings(deadline=None)
def test_whatever_is_no_token_is_refused(given: str) -> None:
    """Rubbish is refused, and does not break the verification."""
    with pytest.raises(TokenRefused):
        verify(given)


def test_a_refusal_says_nothing_of_the_token() -> None:
    """Neither the error nor the credential's repr shows a secret."""
    given = token()
    with pytest.raises(TokenRefused) as refused:
        verify(given, user="other")
    assert given not in str(refused.value)
    assert CREDENTIAL.secret_access_key not in repr(CREDENTIAL)
    assert str(CREDENTIAL.session_token) not in repr(CREDENTIAL)
