"""
How often a server is waited for until the first row is there, on the engine that get_engine() returns: counted, and
exact.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import poolers
import pytest
from sqlalchemy import text

from plungepool import Settings, dispose_engine, get_engine
from plungepool_toolkit.certificates import Authority
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "an unmistakable token"
# So that what a server sends unasked (the session tickets of TLS 1.3) does not reach a client before it has said all
# that it can.
DISTANCE_MS = 20


@pytest.fixture(autouse=True)
def no_engine() -> Iterator[None]:
    """Start and end without a cached engine."""
    dispose_engine()
    yield
    dispose_engine()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """PostgreSQL with TLS that asks for the password in clear text, as RDS asks for a token."""
    with Postgres(tls=True, authentication="password") as running:
        running.execute(f"CREATE ROLE app LOGIN PASSWORD '{TOKEN}'")
        yield running


@pytest.fixture(scope="module")
def server_18(postgresql_18: Path) -> Iterator[Postgres]:
    """The same as PostgreSQL 18, which takes TLS at once."""
    with Postgres(tls=True, authentication="password", binaries=postgresql_18) as running:
        running.execute(f"CREATE ROLE app LOGIN PASSWORD '{TOKEN}'")
        yield running


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS credentials, and tokens that are what the servers of these tests take for a password."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unmistakable-key")
    monkeypatch.delenv("AWS_CREDENTIAL_EXPIRATION", raising=False)
    monkeypatch.setattr("plungepool.iam.rds_token", lambda *_: TOKEN)


def waits(port: int, times: int = 1, **changes: Any) -> list[int]:
    """Connect, SELECT and roll back so many times on a pool that keeps nothing; return how often each waited."""
    with ChaosProxy("127.0.0.1", port, latency_ms=DISTANCE_MS) as proxy:
        settings: dict[str, Any] = {"host": "localhost", "port": proxy.port, "user": "app", "pool": "null"}
        engine = get_engine(Settings(**settings | changes))
        counted = []
        for _ in range(times):
            proxy.round_trips = 0
            with engine.connect() as connection:
                assert connection.execute(text("SELECT :x"), {"x": "one"}).scalar_one() == "one"
            counted.append(proxy.round_trips)
        dispose_engine()
    return counted


def with_token(server: Postgres, **changes: Any) -> dict[str, Any]:
    """Settings that sign in with a token."""
    return {"auth": "iam", "region": "eu-west-1", "ca_file": str(server.ca_file)} | changes


def with_password(server: Postgres, **changes: Any) -> dict[str, Any]:
    """Settings that sign in with a password."""
    return {"password": TOKEN, "ca_file": str(server.ca_file)} | changes


@pytest.mark.usefixtures("tokens")
def test_token_takes_six(server: Postgres) -> None:
    """TCP, the question for TLS, TLS, start-up and token at once; then the statement and the rollback."""
    assert waits(server.port, 2, **with_token(server)) == [6, 6]


@pytest.mark.usefixtures("tokens")
def test_token_and_tls_at_once_take_five(server_18: Postgres) -> None:
    """PostgreSQL 17 and newer need not be asked for TLS."""
    assert waits(server_18.port, 2, **with_token(server_18, tls_negotiation="direct")) == [5, 5]
    assert waits(server_18.port, 2, **with_token(server_18)) == [6, 6]


def test_password_takes_one_more_until_it_was_asked_for_in_clear_text(server: Postgres) -> None:
    """It is not sent to a server that may not want to see it."""
    assert waits(server.port, 3, **with_password(server)) == [7, 6, 6]


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize(("authentication", "expected"), [("scram-sha-256", [12, 8, 8]), ("trust", [10, 6, 6])])
def test_server_that_wants_something_else_gets_it_step_by_step(
    authentication: Literal["scram-sha-256", "trust"], expected: list[int]
) -> None:
    """One attempt more where nothing is known, and none from then on."""
    with Postgres(tls=True, authentication=authentication) as server:
        server.execute(f"CREATE ROLE app LOGIN PASSWORD '{TOKEN}'")
        assert waits(server.port, 3, **with_token(server)) == expected


@pytest.mark.usefixtures("tokens")
def test_failover_to_a_server_with_other_rules_costs_one_attempt(server: Postgres) -> None:
    """Rules that change while an engine lives are followed at the next connect, and back."""
    with (
        Postgres(tls=True, authentication="password") as changing,
        ChaosProxy("127.0.0.1", changing.port, latency_ms=DISTANCE_MS) as proxy,
    ):
        changing.execute(f"CREATE ROLE app LOGIN PASSWORD '{TOKEN}'")
        engine = get_engine(
            Settings(host="localhost", port=proxy.port, user="app", pool="null", **with_token(changing))
        )
        rules = changing.execute("SHOW hba_file")[0][0]
        with open(rules, encoding="utf-8") as file:
            before = file.read()
        seen = []
        for text_of_rules in (before, before.replace(" password", " scram-sha-256"), before):
            with open(rules, "w", encoding="utf-8") as file:
                file.write(text_of_rules)
            changing.execute("SELECT pg_reload_conf()")
            time.sleep(0.2)
            for _ in range(2):
                proxy.round_trips = 0
                with engine.connect() as connection:
                    connection.execute(text("SELECT 1"))
                seen.append(proxy.round_trips)
    assert seen == [6, 6, 12, 8, 7, 6]


@pytest.mark.parametrize("direct_tls", [True, False])
def test_stand_in_for_rds_proxy_takes_six_and_five(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, direct_tls: bool
) -> None:
    """With a real token, which the stand-in verifies; TLS at once where it is taken."""
    expected = [5, 5] if direct_tls else [6, 6]
    negotiation = "direct" if direct_tls else "postgres"
    assert stand_in_waits(postgres, monkeypatch, {"direct_tls": direct_tls}, tls_negotiation=negotiation) == expected


def test_stand_in_that_refuses_what_goes_ahead_is_tried_once(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt of four waits, then step by step, and from then on step by step at once."""
    assert stand_in_waits(postgres, monkeypatch, {"pipelined_startup": "refuse"}) == [11, 7]


def test_stand_in_that_throws_away_what_goes_ahead_costs_half_a_connect(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never says so; half of the time for a connect later the client begins again."""
    started = time.time()
    counted = stand_in_waits(postgres, monkeypatch, {"pipelined_startup": "discard"}, connect_timeout_s=2)
    assert counted == [11, 7]
    assert time.time() - started > 1


def stand_in_waits(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], **changes: Any
) -> list[int]:
    """Count two connects to a stand-in for RDS Proxy, with IAM."""
    postgres.execute("DROP ROLE IF EXISTS counted; CREATE ROLE counted LOGIN")
    with (
        RdsProxy(postgres, **options) as rds_proxy,
        ChaosProxy("127.0.0.1", rds_proxy.port, latency_ms=DISTANCE_MS) as proxy,
    ):
        rds_proxy.endpoints = frozenset([f"localhost:{proxy.port}"])
        for name, value in rds_proxy.variables("counted").items():
            if name.startswith("AWS_"):
                monkeypatch.setenv(name, value)
        settings: dict[str, Any] = {
            "host": "localhost", "port": proxy.port, "user": "counted", "auth": "iam", "endpoint": "proxy",
            "region": rds_proxy.region, "ca_file": str(rds_proxy.ca_file), "pool": "null",
        }  # fmt: skip
        engine = get_engine(Settings(**settings | changes))
        counted = []
        for _ in range(2):
            proxy.round_trips = 0
            with engine.connect() as connection:
                assert connection.execute(text("SELECT current_user")).scalar_one() == "counted"
            counted.append(proxy.round_trips)
        dispose_engine()
    postgres.execute("DROP ROLE counted")
    return counted


@pytest.fixture
def pgbouncer(postgres: Postgres) -> Iterator[tuple[int, Authority]]:
    """PgBouncer with TLS that asks for the password in clear text."""
    postgres.execute("DROP ROLE IF EXISTS app; CREATE ROLE app LOGIN")
    with (
        Authority() as authority,
        poolers.pgbouncer(postgres, users={"app": TOKEN}, authority=authority, auth_type="plain") as port,
    ):
        yield port, authority
    postgres.execute("DROP ROLE app")


def test_pgbouncer_takes_six(pgbouncer: tuple[int, Authority]) -> None:
    """A pooler that asks for the password in clear text is sent it ahead from the second connect on."""
    port, authority = pgbouncer
    settings = {"password": TOKEN, "ca_file": str(authority.ca_file), "endpoint": "proxy"}
    assert waits(port, 3, **settings) == [7, 6, 6]
