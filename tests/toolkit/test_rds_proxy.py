"""The stand-in for RDS Proxy, by psycopg, stock pg8000 and raw messages before a real PostgreSQL; tokens by botocore."""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import hmac
import re
import select
import shlex
import signal
import socket
import ssl
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import botocore.session
import pg8000.dbapi
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import Address, Credential, RdsProxy, TokenRefused, verify_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[..., RdsProxy]

NOW = 1_790_000_000.0
ENDPOINT = "app.proxy-abc.eu-west-1.rds.amazonaws.com:5432"
CREDENTIAL = Credential.temporary()


@pytest.fixture(scope="module", autouse=True)
def _roles(postgres: Postgres) -> Iterator[None]:
    """Two roles and a table that they share."""
    postgres.execute(
        "CREATE ROLE proxied LOGIN; CREATE ROLE other LOGIN; CREATE TABLE proxied_rows (id int, value text);"
        "GRANT ALL ON proxied_rows TO proxied, other; GRANT CREATE ON SCHEMA public TO proxied"
    )
    yield
    postgres.execute("DROP OWNED BY proxied, other; DROP TABLE proxied_rows; DROP ROLE proxied, other")


def token(
    credential: Credential = CREDENTIAL,
    *,
    user: str = "proxied",
    endpoint: str = ENDPOINT,
    region: str = "eu-west-1",
) -> str:
    """Sign a token as boto3 does, with the machine's clock."""
    session = botocore.session.Session()
    session.set_credentials(credential.access_key_id, credential.secret_access_key, credential.session_token)
    client = session.create_client("rds", region_name=region)
    host, _colon, port = endpoint.rpartition(":")
    return str(client.generate_db_auth_token(host, int(port), user))


def token_for(proxy: RdsProxy, user: str = "proxied", host: str = "localhost") -> str:
    return token(proxy.credentials[0], user=user, endpoint=f"{host}:{proxy.port}")


@contextlib.contextmanager
def client(proxy: RdsProxy, user: str = "proxied", **options: Any) -> Iterator[psycopg.Connection]:
    """Connect by psycopg as careful users do: verified TLS, no prepared statements."""
    given = {
        "password": (proxy.users or {}).get(user) if proxy.auth != "iam" else token_for(proxy, user),
        "sslmode": "verify-full",
        "sslrootcert": str(proxy.ca_file),
        "prepare_threshold": None,
        "autocommit": True,
    } | options
    connection = psycopg.connect(proxy.url(user), **given)
    try:
        yield connection
    finally:
        connection.close()


def scram(start: Start, **options: Any) -> RdsProxy:
    """A stand-in that asks for passwords: connects are cheap, for tests that are about something else."""
    return start(auth="scram", users={"proxied": "hush", "other": "hush hush"}, **options)


# Tokens


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


# Connecting


def test_a_token_opens_a_connection_over_verified_tls(rds_proxy: Start) -> None:
    """The role is the token's, over TLS that psycopg has verified against the stand-in's own authority."""
    proxy = rds_proxy()
    with client(proxy) as connection:
        assert connection.execute("SELECT current_user, %s::int", (5,)).fetchall() == [("proxied", 5)]
        assert connection.info.parameter_status("server_version") is not None
    assert proxy.counters.accepted == 1


def test_tokens_age_with_the_stand_in_s_clock(rds_proxy: Start) -> None:
    """A token of 14 minutes opens a connection, one of 16 does not, and the connection that it opened lives on."""
    proxy = rds_proxy()
    given = token_for(proxy)
    proxy.advance(14 * 60)
    with client(proxy, password=given) as connection:
        proxy.advance(2 * 60)
        with pytest.raises(psycopg.OperationalError, match="IAM authentication failed for the role proxied"):
            with client(proxy, password=given):
                pass
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert proxy.counters.refused == {"IAM token: it has expired": 1}


@pytest.mark.parametrize("host", ["127.0.0.1", "elsewhere.example.test"])
def test_the_host_of_the_token_is_looked_at(rds_proxy: Start, host: str) -> None:
    """The stand-in's address is good, a custom name is not, unless it is an endpoint."""
    proxy = rds_proxy()
    named = rds_proxy(endpoints=["elsewhere.example.test:5432"])
    with client(named, password=token(named.credentials[0], endpoint="elsewhere.example.test:5432")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    if host == "127.0.0.1":
        with client(proxy, password=token_for(proxy, host=host)):
            assert proxy.counters.accepted == 1
    else:
        with pytest.raises(psycopg.OperationalError, match="IAM authentication failed"):
            with client(proxy, password=token_for(proxy, host=host)):
                pass


def test_an_iam_proxy_takes_no_password(rds_proxy: Start) -> None:
    """The secret that the proxy itself uses is none of the client's business."""
    proxy = rds_proxy(users={"proxied": "hush"})
    with pytest.raises(psycopg.OperationalError, match="IAM authentication failed"):
        with client(proxy, password="hush"):
            pass
    assert proxy.counters.refused == {"IAM token: it is no token": 1}


def test_a_role_without_a_secret_is_refused(rds_proxy: Start) -> None:
    """IAM may allow what the proxy has no credentials for."""
    proxy = rds_proxy(users={"proxied": None})
    with pytest.raises(psycopg.OperationalError, match="has no credentials for the role other"):
        with client(proxy, "other"):
            pass


@pytest.mark.parametrize(("auth", "text"), [("iam", "IAM is allowed only with SSL"), ("scram", "requires TLS")])
def test_plain_text_is_refused_before_any_password(rds_proxy: Start, auth: str, text: str) -> None:
    """The client is told so, and is never asked for a password."""
    proxy = rds_proxy(auth=auth, users={"proxied": "hush"})
    with pytest.raises(psycopg.OperationalError, match=text):
        with client(proxy, sslmode="disable"):
            pass
    assert proxy.counters.refused == {"plain text": 1}


@pytest.mark.parametrize("auth", ["scram", "password"])
@pytest.mark.parametrize("password", ["hush", "pä€ss, =", "wrong"])
def test_passwords_are_verified(rds_proxy: Start, auth: str, password: str) -> None:
    """SCRAM and clear text over TLS, by libpq."""
    users = {"proxied": "hush" if password == "wrong" else password}
    proxy = rds_proxy(auth=auth, users=users)
    if password == "wrong":
        with pytest.raises(psycopg.OperationalError, match="password that was provided for the role proxied is wrong"):
            with client(proxy, password=password):
                pass
        assert proxy.counters.refused == {"wrong password": 1}
    else:
        with client(proxy, password=password) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("proxied",)


# What SASLprep maps, leaves, or refuses; PostgreSQL and libpq take what it refuses as it is.
@pytest.mark.parametrize(
    "password", ["\u00aa\u2168", "soft\u00adhyphen", "\u00ad", "pw\U0001f600", "\u05d0\u05d11", "line\n"]
)
def test_any_password_is_prepared_as_libpq_does(rds_proxy: Start, password: str) -> None:
    """SCRAM with characters that SASLprep changes or forbids."""
    proxy = rds_proxy(auth="scram", users={"proxied": password})
    with client(proxy, password=password) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def scram_conversation(proxy: RdsProxy, **lies: bytes) -> bytes:
    """Sign in by SCRAM as proxied with "hush", or with what `lies` say in place of it; return the last message."""
    say = {
        "mechanism": b"SCRAM-SHA-256",
        "header": b"n,,",
        "nonce": b"r=mine",
        "channel": base64.b64encode(lies.get("header", b"n,,")),
        "password": b"hush",
        "user": b"proxied",
    } | lies
    one = Raw(proxy, None, say["user"])
    try:
        first = b"n=," + say["nonce"]
        body = say["mechanism"] + b"\0" + struct.pack("!i", len(first) + len(say["header"])) + say["header"] + first
        one.sock.sendall(message("p", body))
        kind, reply = one.message()
        if kind == "E":
            return reply
        server_first = reply[4:]
        fields = {part[:1]: part[2:] for part in server_first.split(b",")}
        salted = hashlib.pbkdf2_hmac("sha256", say["password"], base64.b64decode(fields[b"s"]), int(fields[b"i"]))
        bare = b"c=" + say["channel"] + b",r=" + say.get("answer", fields[b"r"])
        key = hmac.digest(salted, b"Client Key", "sha256")
        mask = hmac.digest(hashlib.sha256(key).digest(), b",".join((first, server_first, bare)), "sha256")
        proof = say.get("proof", base64.b64encode(bytes(a ^ b for a, b in zip(key, mask, strict=True))))
        one.sock.sendall(message("p", bare + b",p=" + proof))
        return one.message()[1]
    finally:
        one.close()


@pytest.mark.parametrize(
    ("lies", "code"),
    [
        ({"mechanism": b"SCRAM-SHA-1"}, b"C28000"),
        ({"mechanism": b"SCRAM-SHA-256-PLUS"}, b"C28000"),
        ({"header": b"p=tls-server-end-point,,"}, b"C28P01"),
        ({"header": b"n,a=other,"}, b"C28P01"),
        ({"header": b"y,,", "channel": b"biws"}, b"C28P01"),
        ({"user": b"nobody"}, b"C28P01"),
        ({"user": b"nobody", "password": b""}, b"C28P01"),
        ({"nonce": b"r="}, b"C28P01"),
        ({"nonce": b"s=mine"}, b"C28P01"),
        ({"channel": b"eSws"}, b"C28P01"),
        ({"channel": b"!"}, b"C28P01"),
        ({"answer": b"mine"}, b"C28P01"),
        ({"answer": b"mine" + b"0" * 24}, b"C28P01"),
        ({"password": b"other"}, b"C28P01"),
        ({"proof": b""}, b"C28P01"),
        ({"proof": base64.b64encode(b"\0" * 32)}, b"C28P01"),
        ({"proof": base64.b64encode(b"\0" * 31)}, b"C28P01"),
    ],
)
def test_a_lie_in_scram_is_refused(rds_proxy: Start, lies: dict[str, bytes], code: bytes) -> None:
    """Each part of the conversation is looked at, with a proof that is right for what was said."""
    proxy = scram(rds_proxy)
    for truth in (b"n,,", b"y,,"):
        assert scram_conversation(proxy, header=truth).startswith(struct.pack("!i", 12))
    assert code in scram_conversation(proxy, **lies)


def test_an_unknown_user_is_asked_like_any_other(rds_proxy: Start) -> None:
    """The conversation does not tell who exists."""
    proxy = scram(rds_proxy)
    with pytest.raises(psycopg.OperationalError, match="password that was provided for the role nobody is wrong"):
        with client(proxy, "nobody", password="hush"):
            pass


def test_a_rotated_password_counts_at_the_next_connect(rds_proxy: Start) -> None:
    """Open connections live on; a new one needs the new password."""
    proxy = scram(rds_proxy)
    with client(proxy) as connection:
        assert proxy.users is not None
        proxy.users["proxied"] = "new"
        assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="is wrong"):
            with client(proxy, password="hush"):
                pass
        with client(proxy, password="new") as again:
            assert again.execute("SELECT 1").fetchone() == (1,)


def test_the_proxy_knows_the_database_s_passwords() -> None:
    """A database that asks for SCRAM gets it from the proxy, not from the client."""
    with Postgres({"max_connections": 10}, authentication="scram-sha-256") as server:
        server.execute("CREATE ROLE proxied LOGIN PASSWORD 'hush'; CREATE ROLE other LOGIN PASSWORD 'hush'")
        with RdsProxy(server, users={"proxied": "hush", "other": "wrong"}) as proxy:
            with client(proxy) as connection:
                assert connection.execute("SELECT current_user").fetchone() == ("proxied",)
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                with client(proxy, "other"):
                    pass


def test_the_database_s_refusal_reaches_the_client(rds_proxy: Start) -> None:
    """A database that does not exist is told in the server's own words."""
    proxy = scram(rds_proxy)
    with pytest.raises(psycopg.OperationalError, match='database "nowhere" does not exist'):
        with client(proxy, dbname="nowhere"):
            pass


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"options": "-c statement_timeout=1s"}, "command-line options"),
        ({"replication": "database"}, "streaming replication mode"),
    ],
)
def test_start_up_options_of_libpq_are_refused(rds_proxy: Start, options: dict[str, str], text: str) -> None:
    """What RDS Proxy does not support, it says."""
    proxy = scram(rds_proxy)
    with pytest.raises(psycopg.OperationalError, match=f"currently doesn't support {text}"):
        with client(proxy, **options):
            pass


def pg8000_client(proxy: RdsProxy, **options: Any) -> Any:
    context = ssl.create_default_context(cafile=str(proxy.ca_file))
    return pg8000.dbapi.connect(
        "proxied", "localhost", "postgres", proxy.port, "hush", ssl_context=context, timeout=20, **options
    )


def test_settings_at_start_up_are_refused_by_name(rds_proxy: Start) -> None:
    """statement_timeout is a start-up setting for PostgreSQL, and none for RDS Proxy."""
    proxy = scram(rds_proxy)
    with pytest.raises(pg8000.dbapi.DatabaseError, match="doesn't support the option statement_timeout"):
        pg8000_client(proxy, startup_params={"statement_timeout": "5000"})
    assert proxy.counters.refused == {"start-up option statement_timeout": 1}


def test_settings_that_are_known_hold_and_stay_with_their_client(rds_proxy: Start) -> None:
    """Clients with settings of their own share one database connection, and neither sees the other's."""
    proxy = scram(rds_proxy, max_database_connections=1)
    first = pg8000_client(
        proxy, application_name="it's first", startup_params={"TimeZone": "Asia/Tokyo", "search_path": "a, b"}
    )
    second = pg8000_client(proxy)
    for _ in range(3):
        for connection, expected in ((first, ["it's first", "Asia/Tokyo", "a, b"]), (second, ["", "", ""])):
            cursor = connection.cursor()
            names = "('application_name', 'TimeZone', 'search_path')"
            cursor.execute(
                f'SELECT setting, source FROM pg_settings WHERE name IN {names} ORDER BY name COLLATE "C" DESC'
            )
            rows = cursor.fetchall()
            found = {"session": [row[0] for row in rows if row[1] == "session"]}
            assert sorted(found["session"]) == sorted(value for value in expected if value)
            connection.commit()
    assert first.parameter_statuses["TimeZone"] == "Asia/Tokyo"
    first.close()
    second.close()
    counters = proxy.counters
    assert (counters.database_connections, counters.transactions, counters.pinned) == (1, 6, {})


def test_a_setting_that_is_wrong_ends_the_connect(rds_proxy: Start) -> None:
    """The server's own error, and the connection is not poisoned for the next."""
    proxy = scram(rds_proxy, max_database_connections=1)
    with pytest.raises(pg8000.dbapi.DatabaseError, match="invalid value for parameter"):
        pg8000_client(proxy, startup_params={"TimeZone": "Nowhere/Else"})
    pg8000_client(proxy).close()


def test_the_number_of_clients_is_limited(rds_proxy: Start) -> None:
    """One more than allowed is told so; a place that becomes free is given again."""
    proxy = scram(rds_proxy, max_clients=2)
    with client(proxy):
        with client(proxy):
            with pytest.raises(psycopg.OperationalError, match="maximum number of client connections"):
                with client(proxy):
                    pass
    with client(proxy) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_nonsense_instead_of_a_start_up_message_is_survived(rds_proxy: Start) -> None:
    """A health check, a scanner, and a client that leaves at once are nothing to the others."""
    proxy = scram(rds_proxy)
    for nonsense in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x08\x04\xd2\x16\x2fplain", b"\xff" * 20, b"\0\0\0\x04"):
        with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
            sock.sendall(nonsense)
    with client(proxy) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_data_before_the_handshake_is_not_taken_for_data_after_it(rds_proxy: Start) -> None:
    """What was sent in plain text together with the request for TLS ends the connection."""
    proxy = scram(rds_proxy)
    with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
        sock.sendall(struct.pack("!ii", 8, 80877103) + b"smuggled")
        received = b"".join(iter(lambda: sock.recv(4096), b""))
    assert b"08P01" in received
    assert not received.startswith(b"S")


# Multiplexing


def test_more_clients_than_database_connections(rds_proxy: Start) -> None:
    """Twelve idle clients cost nothing; their transactions share two connections."""
    proxy = scram(rds_proxy, max_database_connections=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(proxy)) for _ in range(12)]
        seen = {connection.execute("SELECT pg_backend_pid()").fetchone() for connection in clients}
        counters = proxy.counters
    assert len(seen) <= 2
    assert (counters.clients, counters.transactions, counters.database_connections_peak) == (12, 12, len(seen))


def test_a_transaction_keeps_its_connection(rds_proxy: Start) -> None:
    """Between BEGIN and COMMIT there is one; the next transaction gets another if there is a choice."""
    proxy = scram(rds_proxy, max_database_connections=2)
    with client(proxy) as first, client(proxy) as second:
        with first.transaction():
            pids = [first.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)]
            assert second.execute("SELECT pg_backend_pid()").fetchone() not in pids
        assert len(set(pids)) == 1
        turns = [first.execute("SELECT pg_backend_pid()").fetchone() for _ in range(4)]
        assert turns[0] != turns[1] == turns[3] != turns[2]


def test_threads_get_their_own_rows(rds_proxy: Start) -> None:
    """Eight threads over two connections: statements by themselves, transactions and errors; each answer is its own."""
    proxy = scram(rds_proxy, max_database_connections=2)

    def work(worker: int) -> int:
        wrong = 0
        with client(proxy) as connection:
            for number in range(40):
                key = worker * 1000 + number
                if number % 5 == 4:
                    with pytest.raises(psycopg.errors.DivisionByZero):
                        connection.execute("SELECT %s / 0", (key,))
                elif number % 5 == 3:
                    with connection.transaction():
                        connection.execute("INSERT INTO proxied_rows VALUES (%s, 'x')", (key,))
                        wrong += connection.execute("SELECT %s::int", (key,)).fetchone() != (key,)
                else:
                    row = connection.execute("SELECT %s::int, %s::text", (key, str(key))).fetchone()
                    wrong += row != (key, str(key))
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
    counters = proxy.counters
    assert (counters.database_connections_peak, counters.transactions, counters.pinned) == (2, 320, {})
    assert counters.unnamed_statement_outlived == 0


def test_stock_pg8000_is_found_out(rds_proxy: Start) -> None:
    """Parse, Describe and Bind each with a Sync of its own: unsafe without a transaction, whoever answers."""
    proxy = scram(rds_proxy, max_database_connections=1)
    connection = pg8000_client(proxy)
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("SELECT %s::int", (1,))
    assert proxy.counters.unnamed_statement_outlived == 2
    connection.autocommit = False
    cursor.execute("SELECT %s::int", (1,))
    connection.commit()
    connection.close()
    assert proxy.counters.unnamed_statement_outlived == 2


def test_users_share_the_limit(rds_proxy: Start) -> None:
    """A connection that lies idle for one user makes way for another's."""
    proxy = scram(rds_proxy, max_database_connections=1)
    with client(proxy) as first, client(proxy, "other") as second:
        for _ in range(3):
            assert first.execute("SELECT current_user").fetchone() == ("proxied",)
            assert second.execute("SELECT current_user").fetchone() == ("other",)
        assert proxy.counters.database_connections == 1


def test_a_waiting_client_gets_a_connection_of_its_own_user(rds_proxy: Start) -> None:
    """The one connection is another user's: it is replaced, and never handed on."""
    proxy = scram(rds_proxy, max_database_connections=1)
    with client(proxy, autocommit=False) as first, client(proxy, "other") as second, ThreadPoolExecutor(1) as pool:
        first.execute("SELECT 1")
        waiting = pool.submit(lambda: second.execute("SELECT current_user").fetchone())
        while not proxy._call(lambda: list(proxy.pool._waiting)):
            time.sleep(0.01)
        first.commit()
        assert waiting.result(timeout=30) == ("other",)


def test_a_client_gets_another_connection_each_time_if_there_is_one(rds_proxy: Start) -> None:
    """Who counts on the same one is found out."""
    proxy = scram(rds_proxy, max_database_connections=2)
    with client(proxy, autocommit=False) as first, client(proxy, autocommit=False) as second:
        first.execute("SELECT 1")
        second.execute("SELECT 1")
        second.commit()
        first.commit()
        pids = []
        for _ in range(6):
            pids += first.execute("SELECT pg_backend_pid()").fetchall()
            first.commit()
            second.execute("SELECT 1")
            second.commit()
    assert all(one != following for one, following in pairwise(pids))


def test_what_a_pinned_client_left_is_nobody_s(rds_proxy: Start) -> None:
    """Its connection ends with it, however it takes its leave."""
    proxy = scram(rds_proxy, max_database_connections=1)
    with client(proxy) as pinned:
        pinned.execute("SET application_name = 'left behind'")
    with client(proxy) as following:
        assert following.execute("SHOW application_name").fetchone() == ("",)


def test_an_open_transaction_is_rolled_back_when_its_client_leaves(rds_proxy: Start) -> None:
    """Neither its rows nor its locks stay, whether the client says good-bye or not."""
    proxy = scram(rds_proxy, max_database_connections=1)
    for leave in (
        lambda connection: connection.close(),
        lambda connection: socket.socket(fileno=connection.fileno()).close(),
    ):
        connection = psycopg.connect(
            proxy.url("proxied", password="hush"), sslmode="verify-full", sslrootcert=str(proxy.ca_file)
        )
        connection.execute("LOCK TABLE proxied_rows")
        connection.execute("INSERT INTO proxied_rows VALUES (-1, 'left')")
        leave(connection)
        with contextlib.suppress(psycopg.OperationalError):
            connection.close()
        with client(proxy) as after:
            assert after.execute("SELECT count(*) FROM proxied_rows WHERE id = -1").fetchone() == (0,)


def test_the_borrow_time_out_ends_the_client(rds_proxy: Start) -> None:
    """With every connection in a transaction, the next client is told after the time-out, and only that one."""
    proxy = scram(rds_proxy, max_database_connections=1, borrow_timeout_s=0.2)
    with client(proxy) as busy, client(proxy) as waiting:
        with busy.transaction():
            busy.execute("SELECT 1")
            with pytest.raises(psycopg.OperationalError, match="Timed-out waiting to acquire database connection"):
                waiting.execute("SELECT 1")
            assert busy.execute("SELECT 2").fetchone() == (2,)
        assert waiting.closed
        with client(proxy) as third:
            assert third.execute("SELECT 3").fetchone() == (3,)
    assert proxy.counters.borrow_timeouts == 1


def test_waiting_clients_are_served_in_turn(rds_proxy: Start) -> None:
    """A queue for one connection empties, and nobody is forgotten."""
    proxy = scram(rds_proxy, max_database_connections=1, borrow_timeout_s=20)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(proxy, "proxied" if i % 2 else "other")) for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                rows = list(pool.map(lambda one: one.execute("SELECT pg_sleep(0.001), 1").fetchone()[1], clients))
                assert rows == [1] * 8
    assert proxy.counters.borrow_timeouts == 0


# Time


def test_idle_clients_are_closed(rds_proxy: Start) -> None:
    """After the idle time-out, in a transaction or not; who was active stays."""
    proxy = scram(rds_proxy)
    with client(proxy) as idle, client(proxy) as active, client(proxy, autocommit=False) as inside:
        inside.execute("SELECT 1")
        proxy.advance(1700)
        active.execute("SELECT 1")
        assert proxy.counters.idle_clients_closed == 0
        proxy.advance(200)
        assert proxy.counters.idle_clients_closed == 2
        for connection in (idle, inside):
            with pytest.raises(psycopg.OperationalError, match="idle for too long"):
                connection.execute("SELECT 1")
        assert active.execute("SELECT 1").fetchone() == (1,)


def test_a_client_lives_a_day(rds_proxy: Start) -> None:
    """However busy it is."""
    proxy = scram(rds_proxy, idle_client_timeout_s=28_800)
    with client(proxy) as connection:
        for _ in range(3):
            proxy.advance(28_000)
            connection.execute("SELECT 1")
        proxy.advance(3_000)
        with pytest.raises(psycopg.OperationalError, match="maximum life"):
            connection.execute("SELECT 1")
    assert proxy.counters.aged_clients_closed == 1


def test_the_sweep_finds_idle_clients_by_itself(rds_proxy: Start) -> None:
    """No call of `advance` is needed where the real clock is used."""
    proxy = scram(rds_proxy, idle_client_timeout_s=0.1)
    with client(proxy) as connection:
        deadline = time.monotonic() + 20
        while not proxy.counters.idle_clients_closed and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(psycopg.OperationalError, match="idle for too long"):
            connection.execute("SELECT 1")


# Pinning

PINNING = {
    "SET application_name = 'x'": "SET",
    "SET LOCAL application_name = 'x'": "SET LOCAL",
    "SELECT set_config('application_name', 'x', false)": "set_config",
    "RESET application_name": "RESET",
    "PREPARE p AS SELECT 1": "PREPARE",
    "DISCARD TEMP": "DISCARD",
    "CREATE TEMP TABLE t (a int)": "temporary object",
    "SELECT 1 AS a INTO TEMP t": "temporary object",
    "LISTEN jobs": "LISTEN",
    "SELECT pg_advisory_lock(1)": "advisory lock",
    "SELECT '" + "x" * 16_384 + "'": "over 16 KB",
}


@pytest.mark.parametrize("statement", PINNING, ids=lambda statement: statement[:30])
def test_what_is_documented_to_pin_pins(rds_proxy: Start, statement: str) -> None:
    """The client keeps its connection until it leaves, others do without, and its session dies with it."""
    proxy = scram(rds_proxy, max_database_connections=2, borrow_timeout_s=0.3)
    with client(proxy) as keeper, client(proxy) as other:
        assert proxy.counters.pinned == {}
        keeper.execute(statement)
        pids = {keeper.execute("SELECT pg_backend_pid()").fetchone() for _ in range(4)}
        assert len(pids) == 1
        assert {other.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)}.isdisjoint(pids)
        assert proxy.counters.pinned == {PINNING[statement]: 1}
        keeper.execute(
            statement.replace("TABLE t", "TABLE u").replace("TEMP t", "TEMP u").replace("PREPARE p", "PREPARE q")
        )
        assert proxy.counters.pinned == {PINNING[statement]: 1}
    with client(proxy) as after:
        assert {after.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)}.isdisjoint(pids)


def test_a_named_statement_pins(rds_proxy: Start) -> None:
    """Whether it does on RDS Proxy is not documented; the stand-in takes the harder answer."""
    proxy = scram(rds_proxy)
    with client(proxy, prepare_threshold=0) as connection:
        connection.execute("SELECT %s::int", (1,))
        assert proxy.counters.pinned == {"named statement": 1}


def test_pinned_clients_fill_the_database(rds_proxy: Start) -> None:
    """Two pinned clients on two connections, though idle, keep everybody else out."""
    proxy = scram(rds_proxy, max_database_connections=2, borrow_timeout_s=0.2)
    with client(proxy) as first, client(proxy) as second, client(proxy) as third:
        for connection in (first, second):
            connection.execute("SET application_name = 'mine'")
        with pytest.raises(psycopg.OperationalError, match="Timed-out"):
            third.execute("SELECT 1")


def test_what_ends_with_the_transaction_does_not_pin(rds_proxy: Start) -> None:
    """Transactions' advisory locks, savepoints, isolation levels of BEGIN, NOTIFY, and words in literals."""
    proxy = scram(rds_proxy)
    with client(proxy) as connection:
        for statement in (
            "SELECT pg_advisory_xact_lock(1)",
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "SAVEPOINT s",
            "COMMIT",
            "NOTIFY jobs",
            "SELECT 'SET x = 1', $$ DISCARD ALL $$ AS \"nextval\" -- LISTEN",
        ):
            connection.execute(statement)
    assert proxy.counters.pinned == {}


# The wire, message by message


class Raw:
    """A client of the protocol that sends just the bytes it is told to."""

    def __init__(
        self, proxy: RdsProxy, password: bytes | None = b"p\0\0\0\x09hush\0", user: bytes = b"proxied"
    ) -> None:
        sock = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
        sock.sendall(struct.pack("!ii", 8, 80877103))
        assert sock.recv(1) == b"S"
        self.sock = ssl.create_default_context(cafile=str(proxy.ca_file)).wrap_socket(sock, server_hostname="localhost")
        self.file = self.sock.makefile("rb")
        fields = b"user\0" + user + b"\0database\0postgres\0\0"
        self.sock.sendall(struct.pack("!ii", len(fields) + 8, 196608) + fields)
        assert self.message()[0] == "R"
        if password is not None:  # or the rest is the test's
            self.sock.sendall(password)
            self.until_ready()

    def message(self) -> tuple[str, bytes]:
        kind, length = struct.unpack("!ci", self.file.read(5))
        return kind.decode(), self.file.read(length - 4)

    def until_ready(self, times: int = 1) -> list[tuple[str, bytes]]:
        got = []
        while times:
            got.append(self.message())
            times -= got[-1][0] == "Z"
            if got[-1][0] == "E" and b"VFATAL" in got[-1][1]:
                self.close()
                raise psycopg.OperationalError(got[-1][1].decode())
        return got

    def exchange(self, flight: bytes, times: int) -> list[tuple[str, bytes]]:
        """Write until everything on the way is full, and only then read; by one thread, as TLS sockets want it."""
        self.sock.setblocking(False)
        received, got, unsent = bytearray(), [], memoryview(flight)
        while times:
            with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                while unsent:
                    unsent = unsent[self.sock.send(unsent[:16384]) :]
            select.select([self.sock], [self.sock] if unsent else [], [], 30)
            with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                while data := self.sock.recv(65536):
                    received += data
            while len(received) >= 5 and len(received) > (length := struct.unpack_from("!i", received, 1)[0]):
                got.append((chr(received[0]), bytes(received[5 : length + 1])))
                del received[: length + 1]
                times -= got[-1][0] == "Z"
        self.sock.setblocking(True)
        return got

    def kinds(self, times: int = 1) -> str:
        return "".join(kind for kind, _body in self.until_ready(times))

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!i", len(body) + 4) + body


def query(sql: str) -> bytes:
    return message("Q", sql.encode() + b"\0")


def extended(sql: str, *values: bytes, sync: bool = True) -> bytes:
    """Parse, Bind, Describe and Execute in one flight, as a driver that takes care sends them."""
    bind = b"\0\0" + struct.pack("!hh", 0, len(values))
    bind += b"".join(struct.pack("!i", len(value)) + value for value in values) + struct.pack("!h", 0)
    flight = message("P", b"\0" + sql.encode() + b"\0\0\0") + message("B", bind)
    flight += message("D", b"P\0") + message("E", b"\0" + struct.pack("!i", 0))
    return flight + (message("S") if sync else b"")


@pytest.fixture
def raw(rds_proxy: Start) -> Iterator[tuple[RdsProxy, Raw]]:
    """A stand-in with two database connections and a raw client."""
    proxy = rds_proxy(auth="password", users={"proxied": "hush"}, max_database_connections=2)
    one = Raw(proxy)
    yield proxy, one
    one.close()


LENGTHS = [-(2**31), -5, -4, -2, -1, 0, 3, 2**30, 2**31 - 1]


@pytest.mark.parametrize("kind", ["Q", "P", "B", "D", "E", "S", "X", "d", "c", "f", "p", "F", "H", "C", "?", "\0"])
def test_a_message_of_no_possible_length_ends_its_client_alone(raw: tuple[RdsProxy, Raw], kind: str) -> None:
    """Negative, shorter than itself or longer than PostgreSQL takes: 08P01 and good-bye, in and out of a transaction."""
    proxy, one = raw
    for length in LENGTHS:
        for first in (b"", query("BEGIN")):
            bad = Raw(proxy)
            bad.sock.sendall(first + kind.encode() + struct.pack("!i", length) + b"\0" * 8)
            said = bad.file.read()
            assert (length, b"08P01" in said, b"invalid message length" in said) == (length, True, True)
            bad.close()
            one.sock.sendall(query("SELECT 1"))
            assert one.kinds() == "TDCZ"
    assert proxy.counters.refused == {"malformed": 2 * len(LENGTHS)}


@pytest.mark.parametrize("length", [*LENGTHS, 65536])
def test_a_password_of_no_possible_length_is_refused(raw: tuple[RdsProxy, Raw], length: int) -> None:
    """Before a client is known it is given no room: a token has some 2 KB, and 64 KB are what PostgreSQL reads."""
    proxy, one = raw
    with pytest.raises(psycopg.OperationalError) as raised:
        Raw(proxy, b"p" + struct.pack("!i", length) + b"\0" * 8)
    assert "08P01" in str(raised.value)
    one.sock.sendall(query("SELECT 1"))
    assert one.kinds() == "TDCZ"


def test_whatever_a_client_sends_the_others_are_answered(raw: tuple[RdsProxy, Raw]) -> None:
    """Generated messages, well framed and not, cut off and not: no task fails, and the client beside goes on."""
    proxy, one = raw
    failures: list[Any] = []
    assert proxy._loop is not None
    proxy._loop.set_exception_handler(lambda loop, context: failures.append(context))
    kinds = st.sampled_from(list(b"QPBDESXdcfpFHC")).map(lambda kind: bytes([kind])) | st.binary(min_size=1, max_size=1)
    bodies = st.binary(max_size=30) | st.sampled_from(
        [
            b"\0",
            b"SELECT 1\0",
            b"\0SELECT $1::int\0\0\0",
            b"\0\0\0\0\0\0\0\0",
            b"S\0",
            b"\0\0\0\0\0",
            b"COPY proxied_rows FROM STDIN\0",
        ]
    )
    framed = st.builds(lambda kind, body: kind + struct.pack("!i", len(body) + 4) + body, kinds, bodies)
    lying = st.builds(
        lambda kind, length, body: kind + struct.pack("!i", length) + body, kinds, st.integers(-9, 40), bodies
    )

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.lists(framed | lying, min_size=1, max_size=6).map(b"".join), st.integers(0, 3))
    def send(flight: bytes, cut: int) -> None:
        bad = Raw(proxy)
        bad.sock.sendall(flight[: len(flight) - cut])
        one.sock.sendall(query("SELECT 1"))
        assert one.kinds() == "TDCZ"
        bad.close()

    send()
    one.sock.sendall(query("SELECT 1"))
    assert one.kinds() == "TDCZ"
    gc.collect()  # a task that failed says so when it is forgotten
    assert [str(context) for context in failures] == []


def test_start_up_messages_of_any_kind_leave_the_others_alone(raw: tuple[RdsProxy, Raw]) -> None:
    """Generated ones, before TLS and after it."""
    proxy, one = raw
    failures: list[Any] = []
    assert proxy._loop is not None
    proxy._loop.set_exception_handler(lambda loop, context: failures.append(context))
    codes = st.sampled_from([196608, 196610, 80877102, 80877103, 80877104, 0, -1])
    fields = st.binary(max_size=30) | st.lists(st.sampled_from(["user", "proxied", "database", "\0", "é", ""])).map(
        lambda parts: "\0".join(parts).encode() + b"\0\0"
    )
    lengths = st.none() | st.integers(-9, 12_000)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(codes, fields, lengths, st.booleans())
    def send(code: int, body: bytes, length: int | None, secure: bool) -> None:
        startup = struct.pack("!ii", len(body) + 8 if length is None else length, code) + body
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=30))
            if secure:
                sock.sendall(struct.pack("!ii", 8, 80877103))
                assert sock.recv(1) == b"S"
                context = ssl.create_default_context(cafile=str(proxy.ca_file))
                sock = stack.enter_context(context.wrap_socket(sock, server_hostname="localhost"))
            sock.sendall(startup)
            one.sock.sendall(query("SELECT 1"))
            assert one.kinds() == "TDCZ"

    send()
    gc.collect()
    assert [str(context) for context in failures] == []


def test_several_syncs_in_one_write(raw: tuple[RdsProxy, Raw]) -> None:
    """Each is a transaction of its own, answered in order."""
    proxy, one = raw
    one.sock.sendall(b"".join(extended(f"SELECT {number}") for number in range(50)))
    rows = [body for kind, body in one.until_ready(50) if kind == "D"]
    assert [int(body[6:]) for body in rows] == list(range(50))
    assert proxy.counters.transactions == 50
    assert proxy.counters.unnamed_statement_outlived == 0


def test_a_statement_pins_by_its_length_from_one_byte_over_16_kb(raw: tuple[RdsProxy, Raw]) -> None:
    """16,384 bytes are 16 KB."""
    proxy, one = raw
    for size, pinned in ((16_384, {}), (16_385, {"over 16 KB": 1})):
        one.sock.sendall(query("SELECT 1 --".ljust(size, "x")))
        one.until_ready()
        assert dict(proxy.counters.pinned) == pinned


def test_a_client_that_waits_for_an_answer_is_not_idle(raw: tuple[RdsProxy, Raw]) -> None:
    """Time passes while the database works: the answer still comes, and the client is closed when it idles after it."""
    proxy, one = raw
    one.sock.sendall(query("SELECT pg_sleep(0.3)"))
    while not proxy.counters.borrows:
        time.sleep(0.01)
    proxy.advance(proxy.idle_client_timeout_s + 1)
    assert one.kinds() == "TDCZ"
    proxy.advance(proxy.idle_client_timeout_s + 1)
    assert one.message()[0] == "E"


def test_begin_rides_along(raw: tuple[RdsProxy, Raw]) -> None:
    """A Query and an extended flight in one write are one transaction on one connection."""
    proxy, one = raw
    one.sock.sendall(query("BEGIN") + extended("SELECT pg_backend_pid()"))
    first = one.until_ready(2)
    assert [body for kind, body in first if kind == "Z"] == [b"T", b"T"]
    one.sock.sendall(extended("SELECT pg_backend_pid()") + query("COMMIT"))
    second = one.until_ready(2)
    pids = {body for kind, body in first + second if kind == "D"}
    assert len(pids) == 1
    assert proxy.counters.transactions == 1


def test_after_an_error_the_rest_is_skipped_until_sync(raw: tuple[RdsProxy, Raw]) -> None:
    """What follows in the same batch is not run, what comes after its Sync is."""
    proxy, one = raw
    one.sock.sendall(extended("SELECT 1/0", sync=False) + extended("SELECT 5") + extended("SELECT 6"))
    assert one.kinds() == "1EZ"
    assert one.kinds() == "12TDCZ"
    assert proxy.counters.transactions == 2


def test_an_error_in_a_transaction_keeps_the_connection(raw: tuple[RdsProxy, Raw]) -> None:
    """A failed transaction is still a transaction, until ROLLBACK."""
    proxy, one = raw
    one.sock.sendall(
        query("BEGIN") + extended("SELECT 1/0") + extended("SELECT 1") + query("ROLLBACK") + query("SELECT 2")
    )
    states = [body for kind, body in one.until_ready(5) if kind == "Z"]
    assert states == [b"T", b"E", b"E", b"I", b"I"]
    assert proxy.counters.transactions == 2


def test_a_flush_is_answered_before_sync(raw: tuple[RdsProxy, Raw]) -> None:
    """The connection is kept while a batch is open."""
    proxy, one = raw
    one.sock.sendall(extended("SELECT 7", sync=False) + message("H"))
    assert [one.message()[0] for _ in range(5)] == list("12TDC")
    one.sock.sendall(message("S"))
    assert one.kinds() == "Z"
    assert proxy.counters.transactions == 1


def test_large_messages_and_long_replies_pass(raw: tuple[RdsProxy, Raw]) -> None:
    """A parameter of 5 MB, a reply of 20 MB."""
    _proxy, one = raw
    value = b"x" * 5_000_000
    one.sock.sendall(extended("SELECT length($1), repeat($1, 4)", value))
    (row,) = [body for kind, body in one.until_ready() if kind == "D"]
    assert row[6:13] == b"5000000"
    assert len(row) == 2 + 4 + 7 + 4 + 20_000_000


def test_batches_larger_than_every_buffer(raw: tuple[RdsProxy, Raw]) -> None:
    """3,000 batches of 4 KB, answered by as much, while the client writes without reading for a while."""
    proxy, one = raw
    flight = b"".join(extended("SELECT $1::text", b"%08d" % number + b"y" * 4000) for number in range(3000))
    rows = [body for kind, body in one.exchange(flight, 3000) if kind == "D"]
    assert [int(body[6:14]) for body in rows] == list(range(3000))
    assert proxy.counters.transactions == 3000


def copy_data(*rows: bytes) -> bytes:
    return b"".join(message("d", row + b"\n") for row in rows)


@pytest.mark.parametrize("early_sync", [True, False], ids=["sync with execute", "sync at the end"])
def test_copy_in_by_the_extended_protocol(raw: tuple[RdsProxy, Raw], early_sync: bool) -> None:
    """The server ignores a Sync while it takes data: the one after the data is answered."""
    proxy, one = raw
    for turn in range(3):
        one.sock.sendall(query("TRUNCATE proxied_rows"))
        one.until_ready()
        flight = extended("COPY proxied_rows FROM STDIN", sync=early_sync)
        if turn:  # everything in one write; and, at first, waiting for the server's consent
            one.sock.sendall(flight + copy_data(b"1\ta", b"2\tb") + message("c") + message("S") + extended("SELECT 9"))
            assert one.kinds(2) == "12nGCZ12TDCZ"
        else:
            one.sock.sendall(flight if early_sync else flight + message("H"))
            assert [one.message()[0] for _ in range(4)] == list("12nG")
            one.sock.sendall(copy_data(b"1\ta", b"2\tb") + message("c") + message("S"))
            assert one.kinds() == "CZ"
        one.sock.sendall(query("SELECT count(*) FROM proxied_rows"))
        assert (one.until_ready())[1][1][-1:] == b"2"
    one.sock.sendall(query("TRUNCATE proxied_rows"))
    one.until_ready()
    assert proxy.counters.pinned == {}


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_a_copy_that_fails_leaves_the_conversation_in_step(raw: tuple[RdsProxy, Raw], protocol: str) -> None:
    """Data that comes after the error is ignored, and the next batch has its own answer."""
    _proxy, one = raw
    sql = "COPY proxied_rows FROM STDIN"
    data = copy_data(b"no number\ta", *[b"1\ta"] * 500) + message("c")
    if protocol == "simple":
        one.sock.sendall(query(sql) + data)
        assert one.kinds() == "GEZ"
    else:
        one.sock.sendall(extended(sql) + data + message("S"))
        assert one.kinds() == "12nGEZ"
    one.sock.sendall(extended("SELECT 1"))
    assert one.kinds() == "12TDCZ"


def test_a_copy_that_is_refused_leaves_the_conversation_in_step(raw: tuple[RdsProxy, Raw]) -> None:
    """The server never asked for the data that the client sent along: two Syncs, two answers."""
    _proxy, one = raw
    one.sock.sendall(
        extended("COPY nowhere FROM STDIN") + copy_data(b"1\ta") + message("c") + message("S") + query("SELECT 1")
    )
    assert one.kinds() == "12nEZ"
    assert one.kinds() == "Z"
    assert one.kinds() == "TDCZ"


def test_copies_by_psycopg(rds_proxy: Start) -> None:
    """In and out, more than the buffers hold."""
    proxy = scram(rds_proxy, max_database_connections=1)
    with client(proxy) as connection, client(proxy) as other:
        with connection.cursor() as cursor, cursor.copy("COPY proxied_rows FROM STDIN") as copy:
            for number in range(20_000):
                copy.write_row((number, "z" * 100))
        assert other.execute("SELECT count(*) FROM proxied_rows").fetchone() == (20_000,)
        with connection.cursor() as cursor, cursor.copy("COPY proxied_rows TO STDOUT") as copy:
            assert sum(1 for _row in copy.rows()) == 20_000
        with pytest.raises(ValueError, match="changes its mind"):
            with connection.cursor() as cursor, cursor.copy("COPY proxied_rows FROM STDIN") as copy:
                raise ValueError("the client changes its mind")
        connection.execute("TRUNCATE proxied_rows")
    assert proxy.counters.pinned == {}


def test_pipelines_of_psycopg(rds_proxy: Start) -> None:
    """Statements sent ahead, errors among them."""
    proxy = scram(rds_proxy, max_database_connections=2)
    with client(proxy) as connection:
        with connection.pipeline() as pipeline:
            cursors = [connection.execute("SELECT %s::int", (number,)) for number in range(200)]
            pipeline.sync()
            assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(200)]
        with pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline():
            connection.execute("SELECT 1/0")
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert proxy.counters.pinned == {}


def test_cancel_requests_are_ignored(rds_proxy: Start) -> None:
    """The statement runs to its end."""
    proxy = scram(rds_proxy)
    with client(proxy) as connection, ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: connection.execute("SELECT pg_sleep(0.5), 1").fetchone()[1])
        while proxy.counters.borrows == 0:
            time.sleep(0.01)
        connection.cancel_safe()  # cancel() would wait with the interpreter locked, and the stand-in with it
        assert running.result() == 1
    assert proxy.counters.cancel_requests_ignored == 1


# Failover and the end


def test_failover_spares_idle_clients(rds_proxy: Start) -> None:
    """A client in a transaction and a pinned one get an error; an idle one goes on over a new connection."""
    proxy = scram(rds_proxy)
    with client(proxy) as idle, client(proxy) as inside, client(proxy) as pinned:
        before = idle.execute("SELECT pg_backend_pid()").fetchone()
        pinned.execute("SET application_name = 'x'")
        with pytest.raises(psycopg.OperationalError, match="connection was lost"):
            with inside.transaction():
                inside.execute("SELECT 1")
                proxy.failover()
                inside.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="connection was lost"):
            pinned.execute("SELECT 1")
        assert idle.execute("SELECT pg_backend_pid()").fetchone() != before
    counters = proxy.counters
    assert counters.failovers == 1
    assert counters.database_connections_lost >= 2


def test_failover_goes_to_another_server(rds_proxy: Start) -> None:
    """The new writer answers the next transaction of a client that never reconnected."""
    proxy = scram(rds_proxy)
    with Postgres({"max_connections": 10}) as successor, client(proxy) as connection:
        successor.execute(
            "CREATE ROLE proxied LOGIN; CREATE TABLE successor (a int); GRANT ALL ON successor TO proxied"
        )
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM successor")
        proxy.failover(successor)
        assert connection.execute("SELECT * FROM successor").fetchall() == []


def test_a_restart_of_the_database_is_waited_for() -> None:
    """A transaction that begins while the database is away waits, and then runs."""
    with Postgres({"max_connections": 10}) as server:
        server.execute("CREATE ROLE proxied LOGIN")
        with RdsProxy(server, auth="scram", users={"proxied": "hush"}) as proxy, client(proxy) as connection:
            connection.execute("SELECT 1")
            server.stop()
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(lambda: connection.execute("SELECT 2").fetchone())
                time.sleep(0.2)
                server.start()
                assert answer.result(timeout=60) == (2,)


def test_a_database_that_is_away_is_a_borrow_time_out(rds_proxy: Start) -> None:
    """Nobody listens there: the client is told after the time-out."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = Address("127.0.0.1", taken.getsockname()[1])
        with RdsProxy(nowhere, auth="scram", users={"proxied": "hush"}, borrow_timeout_s=0.2) as proxy:
            with pytest.raises(psycopg.OperationalError, match="Timed-out"):
                with client(proxy):
                    pass
    assert proxy.counters.borrow_timeouts == 1


def test_a_session_that_the_database_ends_is_told_why(rds_proxy: Start, postgres: Postgres) -> None:
    """The server's last words reach the client that was in a transaction."""
    proxy = scram(rds_proxy)
    with client(proxy, autocommit=False) as connection:
        pid = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert pid is not None
        postgres.execute("SELECT pg_terminate_backend($1, 10000)", pid[0])
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")


def test_a_connection_that_died_in_the_pool_is_not_handed_out(rds_proxy: Start, postgres: Postgres) -> None:
    """A client notices nothing of a session that ended while nobody used it."""
    proxy = scram(rds_proxy)
    with client(proxy) as connection:
        for _ in range(5):
            pid = connection.execute("SELECT pg_backend_pid()").fetchone()
            assert pid is not None
            postgres.execute("SELECT pg_terminate_backend($1, 10000)", pid[0])
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_nothing_is_left_at_the_end(postgres: Postgres) -> None:
    """No thread, no socket, no file, no database session: with clients connected, waiting and in the middle of things."""
    proxy = RdsProxy(postgres, auth="scram", users={"proxied": "hush"}, max_database_connections=2).start()
    ca_file = proxy.ca_file
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(proxy, autocommit=False)) for _ in range(4)]
        half_open = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
        half_open.sendall(struct.pack("!ii", 8, 80877103))
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(one.execute, "SELECT pg_sleep(30)") for one in clients]
            while proxy.counters.database_connections < 2:
                time.sleep(0.01)
            proxy.close()
            for one in running:
                assert isinstance(one.exception(timeout=20), psycopg.OperationalError)
    proxy.close()
    assert not ca_file.exists()
    assert "rds-proxy" not in {thread.name for thread in threading.enumerate()}
    assert proxy.counters.database_connections_peak == 2
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port))
    deadline = time.monotonic() + 60
    while postgres.execute("SELECT 1 FROM pg_stat_activity WHERE usename = 'proxied' AND state <> 'active'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'proxied'")


def test_it_can_be_started_once(postgres: Postgres) -> None:
    """And says what is wrong with its arguments."""
    with RdsProxy(postgres) as proxy:
        with pytest.raises(RuntimeError, match="already"):
            proxy.start()
        with pytest.raises(OSError, match="in use"):
            RdsProxy(postgres, port=proxy.port).start()
    with pytest.raises(ValueError, match="users"):
        RdsProxy(postgres, auth="scram")
    with pytest.raises(ValueError, match="max_database_connections"):
        RdsProxy(postgres, max_database_connections=0)


# As users have it


def test_the_documented_test_passes(machine: Any, tmp_path: Path) -> None:
    """The function and the test of docs/rds-proxy.md work as they stand there."""
    document = (Path(__file__).parents[2] / "docs" / "rds-proxy.md").read_text()
    examples = re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", document, re.DOTALL)
    assert len(examples) == 2
    for name, source in examples:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    result = machine.run("-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path)
    assert "1 passed" in result.stdout, result.stdout + result.stderr
    assert machine.left_behind(2) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_what_pinned(machine: Any, read_until: Callable[..., str], number: signal.Signals) -> None:
    """
    `plungepool proxy`, started in the background as a shell does it: prints what a function needs, as a shell takes it, and
    where the database itself is; each of the two signals ends it with a report, in which one is one.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = machine.start(
            "-m", "plungepool_toolkit", "proxy", "--auth", "scram", "--user", "app:hush", "--port", "0"
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process as command:
        lines = read_until(command.stdout, "PLUNGEPOOL_PASSWORD").splitlines()
        assert [line.split(" ")[0] for line in lines] == ["export"] * len(lines)
        variables = {name: value for line in lines for name, value in [shlex.split(line)[1].split("=", 1)]}
        url = variables["PLUNGEPOOL_URL"]
        with psycopg.connect(
            url, password="hush", sslmode="verify-full", sslrootcert=variables["PLUNGEPOOL_CA_FILE"]
        ) as connection:
            for _ in range(5):
                connection.execute("SET application_name = 'x'")
        connection.close()
        command.send_signal(number)
        _output, report = command.communicate(timeout=30)
    assert command.returncode == 0
    assert "1 client, 1 transaction; at most 1 connection to the database at a time, of 5 allowed" in report
    assert "pinned 1 client: SET\n" in report
    assert "each client counts once" in report
    at = re.search(r"The database itself is at (127\.0\.0\.1:\d+), without TLS; its superuser is 'postgres'", report)
    assert at is not None
    assert at[1] not in url
    assert machine.left_behind(5) == []
