"""What the doctor says of what it has found, without a database: words, bounds and the order of causes."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from plungepool import Settings, checks
from plungepool.checks import Check
from plungepool.credentials import Login

if TYPE_CHECKING:
    from collections.abc import Callable

WAY = checks._Way("db.example", 5432, "db.example", 5432, Settings(host="db.example", user="app", password="p"))
TUNNEL = dataclasses.replace(WAY, address="localhost", address_port=15432)


def settings(**changes: Any) -> Settings:
    """Return settings that are right in themselves."""
    return Settings(**({"host": "db.example", "user": "app", "password": "p"} | changes))


def login(password: str = "p") -> Login:
    """Return who connects where."""
    return Login("app", password, "db.example", 5432, "orders")


def test_check_is_a_fact() -> None:
    """Nobody changes what was found."""
    check = Check("name", "ok", "found")
    assert check.cure == ""
    with pytest.raises(dataclasses.FrozenInstanceError):
        check.state = "failed"  # type: ignore[misc]
    assert not hasattr(check, "__dict__")


def test_document_is_ok_where_nothing_failed() -> None:
    """A warning is no failure."""
    well = [Check("a", "ok", "b"), Check("c", "warning", "d", "e")]
    assert checks.as_document(well) == {
        "ok": True,
        "checks": [
            {"name": "a", "state": "ok", "found": "b", "cure": ""},
            {"name": "c", "state": "warning", "found": "d", "cure": "e"},
        ],
    }
    assert checks.as_document([*well, Check("f", "failed", "g")])["ok"] is False


def test_way_names_what_is_dialled() -> None:
    """And for whom, where that is another."""
    assert str(WAY) == "db.example:5432"
    assert str(TUNNEL) == "localhost:15432 (PLUNGEPOOL_ADDRESS, for db.example:5432)"


def test_endpoint_that_nobody_named_leaves_the_region_alone() -> None:
    """A name of one's own matters where a token is for a name; on this machine it does not."""
    for given, host in (
        (settings(), "db.example"),
        (settings(auth="iam", region="eu-west-1", password=""), "localhost"),
    ):
        assert [(check.name, check.state) for check in checks._endpoint(given, host)] == [("endpoint", "ok")]


class Sock:
    """Gives these answers, one a call, or raises them."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers, self.asked, self.sent = list(answers), list[int](), b""

    def sendall(self, what: bytes) -> None:
        self.sent += what

    def recv(self, size: int) -> bytes:
        self.asked.append(size)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer[:size]


def test_tls_is_asked_for_and_agreed_to() -> None:
    """Eight bytes, and nothing is read that belongs to the handshake."""
    sock: Any = Sock(b"Shello")
    checks._ask_for_tls(sock, WAY)
    assert (sock.sent, sock.asked) == (b"\0\0\0\x08\x04\xd2\x16\x2f", [1])


REFUSES = "db.example:5432 refused the connection before TLS: "
NO_PROTOCOL = "db.example:5432 does not speak PostgreSQL's protocol (it answered "


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([b"E", b"\0\0\0\x20SFATAL\0C53300\0Mfull\0\0"], f"{REFUSES}full"),
        ([b"E", b"\0\0\0\x20Mfull\0\0"], f"{REFUSES}full"),
        ([b"E", b"\0\0\0\x20C53300\0Mv\xf6ll\0\0"], f"{REFUSES}v\ufffdll"),
        ([b"E", b"\0\0\0\x20C53300\0\0"], f"{NO_PROTOCOL}b'E' to the TLS request)"),
        ([b"E", b"MMMMSFATAL\0\0"], f"{NO_PROTOCOL}b'E' to the TLS request)"),
        ([b"H"], f"{NO_PROTOCOL}b'H' to the TLS request)"),
        ([OSError("no word")], "db.example:5432 accepts connections but drops them: no word"),
        ([ConnectionResetError(104, "reset")], "db.example:5432 accepts connections but drops them: reset"),
        ([b"E", TimeoutError()], "db.example:5432 accepts connections but never answers"),
    ],
)  # fmt: skip
def test_refusal_before_tls_is_told_in_the_servers_words(answers: list[bytes | Exception], found: str) -> None:
    """Where its message is, first or last among the fields; what is no such answer is another program's."""
    sock: Any = Sock(*answers)
    with pytest.raises(checks._Failure) as caught:
        checks._ask_for_tls(sock, WAY)
    assert (caught.value.check.name, caught.value.check.found) == ("TLS", found)


@pytest.mark.parametrize("answers", [[TimeoutError()], [OSError("x")], [b""]])
def test_tunnels_far_end_is_thought_of_where_there_is_a_tunnel(answers: list[bytes | Exception]) -> None:
    """And only there."""
    for way, there in ((WAY, False), (TUNNEL, True)):
        sock: Any = Sock(*answers)
        with pytest.raises(checks._Failure) as caught:
            checks._ask_for_tls(sock, way)
        assert ("the tunnel's far end" in caught.value.check.cure) is there
        assert "a load balancer's target" in caught.value.check.cure


@pytest.mark.parametrize("step", ["_reach", "_secure"])
def test_error_without_a_word_of_the_systems_is_told(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """As create_connection's own, where a name has no address."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("getaddrinfo returns an empty list")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(checks._Failure, match="getaddrinfo returns an empty list"):
        getattr(checks, step)(WAY.settings, WAY)


class Context:
    """A context by whose name a handshake fails."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason

    def wrap_socket(self, _sock: object, *, server_hostname: str) -> object:
        assert server_hostname == "db.example"
        error = ssl.SSLError(1, self.name)
        error.reason = self.reason
        raise error


@pytest.mark.parametrize(
    ("reason", "made"), [("SSLV3_ALERT_HANDSHAKE_FAILURE", ["one", "every"]), ("CERTIFICATE_VERIFY_FAILED", ["one"])]
)
def test_another_curve_is_offered_to_who_refuses_one(
    monkeypatch: pytest.MonkeyPatch, reason: str, made: list[str]
) -> None:
    """And to nobody else; what is told is of the last handshake."""
    asked: list[str] = []

    def context(_settings: Settings, *, every_curve: bool = False) -> Context:
        asked.append("every" if every_curve else "one")
        return Context(asked[-1], reason)

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: contextlib.nullcontext(Sock(b"S")))
    monkeypatch.setattr(checks.tls, "client_context", context)
    monkeypatch.setattr(checks.tls, "explain", lambda error, host, context: f"{error.args[1]} {host} {context.name}")
    with pytest.raises(checks._Failure) as caught:
        checks._secure(WAY.settings, WAY)
    assert asked == made
    assert caught.value.check.found == f"{made[-1]} db.example {made[-1]}"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (((("organizationName", "O"),), (("commonName", "C"),)), "C"),
        (((("organizationName", "O"),),), "O"),
        (((("countryName", "X"),),), "an unnamed authority"),
        (None, "an unnamed authority"),
    ],
)
def test_authority_has_a_name(name: Any, told: str) -> None:
    """Its own, its organisation's, or none."""
    assert checks._common_name(name) == told


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_date_that_is_none_says_nothing_of_the_clock(date: str | None) -> None:
    """A missing header is no wrong clock."""
    assert checks._ahead_of(date) == 0.0


def test_clock_is_ahead_or_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """By as much as the date says, and in that direction."""
    monkeypatch.setattr(checks, "time", SimpleNamespace(time=lambda: 1_700_000_090.0))
    assert checks._ahead_of("Tue, 14 Nov 2023 22:13:20 GMT") == 90.0
    assert checks._skew("AWS", 90.0) == "this machine's clock is 90 s ahead of that of AWS"
    assert checks._skew("AWS", -90.0) == "this machine's clock is 90 s behind that of AWS"


@pytest.mark.parametrize(
    ("name", "quoted"), [("app_1", "app_1"), ("App", '"App"'), ("1a", '"1a"'), ('a"b', '"a""b"'), ("a-b", '"a-b"')]
)
def test_name_is_quoted_where_sql_wants_it(name: str, quoted: str) -> None:
    """So that a cure can be copied."""
    assert checks._quoted(name) == quoted


@pytest.mark.parametrize(
    ("used", "limit", "superuser", "state", "found"),
    [
        (4, 5, False, "ok", "4 of the role's 5 connections are in use"),
        (5, 5, False, "warning", "5 of the role's 5 connections are in use"),
        (0, 0, False, "warning", "0 of the role's 0 connections are in use"),
        (1, -1, False, "warning", "app has no connection limit"),
        (1, 5, True, "warning", "app is a superuser"),
    ],
)
def test_role_at_its_bounds(used: int, limit: int, superuser: bool, state: str, found: str) -> None:
    """The last connection that it may have is a warning; a limit of none is a limit."""
    check = checks._role("app", SimpleNamespace(used=used, connection_limit=limit, superuser=superuser))
    assert (check.name, check.state, check.found) == ("role", state, found)


@pytest.mark.parametrize(
    ("pool_size", "used", "endpoint", "state", "free"),
    [(1, 87, "direct", "ok", 10), (1, 88, "direct", "warning", 9), (12, 85, "direct", "ok", 12),
     (12, 86, "proxy", "warning", 11), (1, 99, "direct", "warning", 0)],
)  # fmt: skip
def test_head_room_at_its_bounds(pool_size: int, used: int, endpoint: str, state: str, free: int) -> None:
    """A tenth of all, or what one pool may want; never fewer than none."""
    check = checks._head_room(settings(pool_size=pool_size, endpoint=endpoint), 100, 3, used)
    behind = " (the database behind the proxy)" if endpoint == "proxy" else ""
    found = f"{used} of 100 connections are in use, 3 are reserved, {free} are free{behind}"
    assert (check.name, check.state, check.found) == ("head-room", state, found)


def test_time_outs_are_told_in_seconds() -> None:
    """Each that is off has its order in the cure, and no other."""
    well = checks._timeouts("app", {"lock_timeout": 1500, "statement_timeout": 10000})
    assert (well.state, well.found, well.cure) == ("ok", "lock_timeout 1.5 s, statement_timeout 10 s", "")
    ill = checks._timeouts("App", {"lock_timeout": 0, "statement_timeout": 10000})
    assert (ill.state, ill.found) == ("warning", "lock_timeout off, statement_timeout 10 s")
    assert ill.cure == "ALTER ROLE \"App\" SET lock_timeout = '3s'"


@pytest.mark.parametrize(("pinning", "found"), [("refuse", "are refused"), ("warn", "are logged")])
def test_pinning_says_what_is_done(pinning: str, found: str) -> None:
    """Refused or logged."""
    given = settings(endpoint="proxy", pinning=pinning)
    assert found in checks._pinning(given).found
    assert checks._pinning(given).state == "ok"


@pytest.mark.parametrize(
    ("endpoint", "announced", "told"),
    [("direct", 7, None), ("direct", 8, "but process 8 was announced at its start"), ("proxy", 8, None),
     ("proxy", 7, "this looks like the database itself"), ("direct", None, "but process None was announced")],
)  # fmt: skip
def test_pooler_between_is_seen_by_the_process(endpoint: str, announced: int | None, told: str | None) -> None:
    """The one that was announced serves: or not."""
    connection: Any = SimpleNamespace(
        connection=SimpleNamespace(dbapi_connection=SimpleNamespace(backend_pid=announced))
    )
    found = list(checks._between(settings(endpoint=endpoint), connection, 7))
    assert [check.state for check in found] == ([] if told is None else ["warning"])
    assert all(told in check.found for check in found if told)


@pytest.mark.parametrize(
    ("used", "auth", "loopback", "state", "word"),
    [
        (True, "password", False, "ok", ""),
        (False, "password", True, "ok", "password"),
        (False, "password", False, "warning", "password"),
        (False, "secret", False, "warning", "password"),
        (False, "iam", False, "warning", "token"),
    ],
)
def test_whether_the_password_was_looked_at_is_told(
    used: bool, auth: str, loopback: bool, state: str, word: str
) -> None:
    """A server that asked for none has not looked at it; on this machine that is nothing to warn of."""
    more = {
        "password": {"password": "p"},
        "secret": {"secret_arn": "s", "region": "eu-west-1"},
        "iam": {"region": "eu-west-1"},
    }
    given = Settings(host="db.example", user="app", auth=auth, **more[auth])  # type: ignore[arg-type]
    way = dataclasses.replace(WAY, host="localhost" if loopback else "db.example")
    connection: Any = SimpleNamespace(connection=SimpleNamespace(dbapi_connection=SimpleNamespace(used_password=used)))
    check = checks._let_in(given, way, login(), connection, 12.4)
    assert check.state == state
    assert "12 ms for the first connection" in check.found
    assert ("without asking for" in check.found) is not used
    assert word in check.found
    assert bool(check.cure) is (state == "warning")


CLUSTER = "shop.cluster-abc.eu-west-1.rds.amazonaws.com"
GATEWAY = {
    "Endpoint": CLUSTER,
    "ReaderEndpoint": CLUSTER.replace("-abc", "-ro-abc"),
    "InternetAccessGatewayEnabled": True,
}


@pytest.mark.parametrize(
    ("host", "answer", "asked", "gateway"),
    [
        (CLUSTER, GATEWAY, True, True),
        (CLUSTER.upper(), GATEWAY, True, True),
        (CLUSTER.replace("-abc", "-ro-abc"), GATEWAY, True, True),
        (CLUSTER, GATEWAY | {"InternetAccessGatewayEnabled": False}, True, False),
        (CLUSTER, {"Endpoint": CLUSTER}, True, False),
        (CLUSTER.replace("abc", "xyz"), GATEWAY, True, False),  # of this name, in another account
        (CLUSTER, None, True, False),
        ("shop.abc.eu-west-1.rds.amazonaws.com", GATEWAY, False, False),
        ("shop.proxy-abc.eu-west-1.rds.amazonaws.com", GATEWAY, False, False),
        ("db.example", GATEWAY, False, False),
    ],
)
def test_gateway_is_what_rds_says_of_this_cluster(
    monkeypatch: pytest.MonkeyPatch, host: str, answer: dict[str, Any] | None, asked: bool, gateway: bool
) -> None:
    """Only of a cluster's endpoint, only where RDS names that very endpoint, and never without an answer."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    questions = []

    def ask(client: Any, operation: str, parameters: object) -> Any:
        questions.append((operation, parameters, client.meta.region_name))
        if answer is None:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, operation)
        return {"DBClusters": [answer]}

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", ask)
    assert checks._has_gateway(host) is gateway
    assert questions == ([("DescribeDBClusters", {"DBClusterIdentifier": "shop"}, "eu-west-1")] if asked else [])


def test_without_boto3_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has the driver alone."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert checks._has_gateway(CLUSTER) is False


@pytest.mark.parametrize("sqlstate", ["28P01", "28000", "08P01", None])
def test_password_before_a_gateway_is_the_cause(sqlstate: str | None) -> None:
    """However it refuses, which is not documented."""
    check = checks._refusal(settings(), login(), Refused(sqlstate), [], lambda: True).check
    assert check.cure.startswith("a cluster with express configuration accepts IAM tokens only, no passwords")


@pytest.mark.parametrize("sqlstate", ["53300", "57P03", "3D000"])
def test_what_a_server_says_of_itself_is_not_the_passwords_fault(sqlstate: str) -> None:
    """A full server would refuse a token, too."""
    check = checks._refusal(settings(), login(), Refused(sqlstate), [], lambda: True).check
    assert "IAM tokens" not in check.cure


def test_no_proxy_is_advised_before_a_gateway() -> None:
    """A full server, and little head-room."""
    for cure in (
        checks._full(settings(), login(), "slots", lambda: True),
        checks._head_room(settings(), 100, 3, 90, lambda: True).cure,
    ):
        assert "or set PLUNGEPOOL_POOL=adaptive" in cure
        assert "RDS Proxy" not in cure


def test_gateway_may_announce_any_process() -> None:
    """It is told, and no warning that would lead to PLUNGEPOOL_ENDPOINT=proxy."""
    connection: Any = SimpleNamespace(connection=SimpleNamespace(dbapi_connection=SimpleNamespace(backend_pid=8)))
    [check] = checks._between(settings(), connection, 7, lambda: True)
    assert (check.state, check.cure) == ("ok", "")
    assert "by process 7, but process 8 was announced" in check.found


@pytest.mark.parametrize(
    ("address", "begins"),
    [("8.8.8.8", "the address is public"), ("10.0.0.1", "allow inbound traffic on this port from the function"),
     ("127.0.0.1", "allow inbound traffic on this port from the function's security group")],
)  # fmt: skip
def test_silence_of_a_public_address_is_not_a_security_groups(
    monkeypatch: pytest.MonkeyPatch, address: str, begins: str
) -> None:
    """The way out is looked for first."""

    def wait(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", wait)
    with pytest.raises(checks._Failure) as caught:
        checks._reach(WAY.settings, dataclasses.replace(WAY, address=address))
    assert caught.value.check.cure.startswith(begins)


@pytest.mark.parametrize(
    ("said", "plain", "begins"),
    [
        ("PAM authentication failed", False, "the role is a member of rds_iam"),
        ('role "app" does not exist', False, "CREATE ROLE app LOGIN"),
        ('role "app" is not permitted to log in', False, "ALTER ROLE app LOGIN"),
        ("no pg_hba.conf entry for host", False, "allow 'app' to connect to 'orders'"),
        ("no pg_hba.conf entry for host, no encryption", True, "the server requires TLS"),
        ("no pg_hba.conf entry for host, SSL off", True, "the server requires TLS"),
        ("This RDS Proxy requires TLS connections", True, "the server requires TLS"),
        ("no pg_hba.conf entry for host, SSL off", False, "allow 'app' to connect to 'orders'"),
        ("nein", False, "(1) CREATE ROLE app LOGIN"),
        ("nein", True, "(1) CREATE ROLE app LOGIN"),
    ],
)
def test_refused_login_has_its_cause_first(said: str, plain: bool, begins: str) -> None:
    """By a word that the server said; else all causes are named, plain text where that is sent."""
    given = settings(tls="disable" if plain else "verify-full")
    cure = checks._not_let_in(given, login(), said)
    assert cure.startswith(begins)
    if begins.startswith("(1)"):
        assert cure.count("; (") == (4 if plain else 3)
        assert ("the server requires TLS" in cure) is plain


@pytest.mark.parametrize(
    ("endpoint", "password", "said", "begins", "causes"),
    [
        ("direct", "p", "failed", "(1) the password is wrong for 'app': correct it; (2) the role 'app' does not", 3),
        ("direct", " p", "failed", "(1) the password begins or ends with a space", 4),
        ("direct", "p\n", "failed", "(1) the password begins or ends with a space", 4),
        ("proxy", "p", "IAM authentication failed", "(1) the proxy requires IAM", 3),
        ("proxy", "p", "failed", "(1) the password is wrong for 'app': correct it; (2) the proxy has no secret", 3),
        ("proxy", "p ", "failed", "(1) the password begins or ends with a space", 4),
    ],
)  # fmt: skip
def test_wrong_password_has_its_likeliest_cause_first(
    endpoint: str, password: str, said: str, begins: str, causes: int
) -> None:
    """A copied blank before anything else."""
    cure = checks._wrong_password(settings(endpoint=endpoint), login(password), said)
    assert cure.startswith(begins)
    assert f"({causes}) " in cure
    assert f"({causes + 1}) " not in cure


@pytest.mark.parametrize(
    ("said", "begins"),
    [
        ("too many connections for role", "the role 'app' already has"),
        ("too many connections for database", "the database 'orders' has"),
        ("remaining connection slots are reserved", "all of the server's max_connections"),
        ("sorry, too many clients already", "all of the server's max_connections"),
        ("zu viele", "(1) all of the server's max_connections"),
    ],
)
def test_what_is_full_is_told(said: str, begins: str) -> None:
    """The role, the database or the server."""
    assert checks._full(settings(), login(), said).startswith(begins)


class Refused(Exception):
    """What a driver raises for a connect that was refused."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(f"refused by {sqlstate}")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("sqlstate", "begins"),
    [
        ("28P01", "(1) the password"),
        ("28000", "(1) CREATE ROLE"),
        ("53300", "(1) all of the server's"),
        ("3D000", "create the database 'orders'"),
        ("42501", "GRANT CONNECT ON DATABASE orders TO app"),
        ("57P03", "the server is starting up or shutting down"),
        ("XX000", "see docs/troubleshoot.md for its SQLSTATE"),
        (None, "the program listening there did not complete PostgreSQL's start-up"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda error: error, lambda error: SimpleNamespace(orig=error)])
def test_each_sqlstate_leads_to_its_cure(sqlstate: str | None, begins: str, wrap: Callable[[Any], Any]) -> None:
    """Whether SQLAlchemy has wrapped the driver's error or not."""
    check = checks._refusal(settings(), login(), wrap(Refused(sqlstate)), []).check
    assert (check.name, check.state, check.found) == ("authentication", "failed", f"refused by {sqlstate}")
    assert check.cure.startswith(begins)
