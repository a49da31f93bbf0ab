"""How clients come in to the stand-in for RDS Proxy: TLS, the start-up message, tokens, passwords, SCRAM."""

from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import struct
from typing import TYPE_CHECKING

import pg8000.dbapi
import psycopg
import pytest
from stand_in import Raw, client, message, pg8000_client, scram, token, token_for

from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., RdsProxy]

pytestmark = pytest.mark.usefixtures("proxied_roles")


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


def test_a_new_client_is_told_what_the_session_is_like_now(rds_proxy: Start) -> None:
    """A function may have changed a session unseen: whoever gets it next is not told what it was like before."""
    proxy = scram(rds_proxy, max_database_connections=1)
    with client(proxy) as connection:
        connection.execute(
            "CREATE FUNCTION unseen() RETURNS text LANGUAGE sql AS $$ SELECT set_config('DateStyle', 'German', "
            "false) $$"
        )
        connection.execute("SELECT unseen()")
        connection.execute("DROP FUNCTION unseen()")
        with client(proxy, application_name="another kind") as other:
            assert (other.info.parameter_status("DateStyle") or "").startswith("German")
    assert proxy.counters.pinned == {}


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


def test_a_client_without_a_database_gets_its_users(
    rds_proxy: Start, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """As PostgreSQL has it; and what is refused is logged with its reason."""
    caplog.set_level("INFO", "plungepool_toolkit.rds_proxy")
    proxy = rds_proxy()
    fields = {"host": "localhost", "port": proxy.port, "user": "proxied", "password": token_for(proxy)}
    safe = {"sslmode": "verify-full", "sslrootcert": str(proxy.ca_file)}
    postgres.execute("CREATE DATABASE proxied")
    try:
        with psycopg.connect(**fields, **safe) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("proxied",)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(**(fields | {"password": "none"}), **safe)
    finally:
        proxy.close()
        postgres.execute("DROP DATABASE proxied WITH (FORCE)")
    assert [record.getMessage() for record in caplog.records if "client refused" in record.getMessage()] == [
        f"client refused: {reason}" for reason in proxy.counters.refused
    ]
