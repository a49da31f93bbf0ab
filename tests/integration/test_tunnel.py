"""PLUNGEPOOL_ADDRESS: what is dialled is one thing, whom certificate and token are for another, as through a tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from moto import mock_aws
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from plungepool import Settings, build_engine
from plungepool.checks import check_environment
from plungepool_toolkit.certificates import Authority
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "orders.abc123.eu-west-1.rds.amazonaws.com"


@pytest.fixture(scope="module")
def tunnel() -> Iterator[tuple[Postgres, Authority]]:
    """A server whose certificate is for the name that AWS gave it, at an address of this machine."""
    with (
        Authority() as authority,
        Postgres(tls=authority.issue(NAME, owner="nobody"), authentication="scram-sha-256") as server,
    ):
        server.execute("CREATE ROLE app LOGIN PASSWORD 'hush'")
        yield server, authority


def environ(server: Postgres, authority: Authority, **changes: str) -> dict[str, str]:
    """The variables of somebody at the near end of the tunnel."""
    return {
        "PLUNGEPOOL_HOST": NAME,
        "PLUNGEPOOL_ADDRESS": f"127.0.0.1:{server.port}",
        "PLUNGEPOOL_USER": "app",
        "PLUNGEPOOL_PASSWORD": "hush",
        "PLUNGEPOOL_CA_FILE": str(authority.ca_file),
        **changes,
    }


def test_address_is_dialled_and_name_is_verified(tunnel: tuple[Postgres, Authority]) -> None:
    """The name need not resolve here, its port need not be the tunnel's, and TLS is verified as ever."""
    engine = build_engine(Settings.from_env(environ(*tunnel)))
    with engine.connect() as connection:
        encrypted = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert connection.execute(encrypted).scalar_one() is True
    engine.dispose()


def test_address_without_a_port_takes_the_port_of_the_name(tunnel: tuple[Postgres, Authority]) -> None:
    """As libpq's hostaddr, which has no port of its own."""
    server, authority = tunnel
    changes = {"PLUNGEPOOL_ADDRESS": "localhost", "PLUNGEPOOL_PORT": str(server.port)}
    engine = build_engine(Settings.from_env(environ(server, authority, **changes)))
    with engine.connect():
        pass
    engine.dispose()


def test_tunnel_to_another_server_is_refused(tunnel: tuple[Postgres, Authority]) -> None:
    """The certificate decides who answers, wherever the address leads."""
    engine = build_engine(Settings.from_env(environ(*tunnel, PLUNGEPOOL_HOST="other.example")))
    with pytest.raises(OperationalError, match=r"certificate is for a name other than .*other\.example"):
        engine.connect()
    engine.dispose()


def test_doctor_says_which_address_and_which_name(tunnel: tuple[Postgres, Authority]) -> None:
    """Both are said where they are used: the address that was dialled, the name that was verified."""
    server, _ = tunnel
    found = {check.name: check for check in check_environment(environ(*tunnel))}
    assert "failed" not in [check.state for check in found.values()]
    assert found["name"].found == (
        f"127.0.0.1 resolves to 127.0.0.1, used with port {server.port}; the certificate and token are for {NAME}:5432"
    )
    assert f"127.0.0.1 port {server.port} accepted" in found["TCP"].found
    assert f"{NAME} verified" in found["TLS"].found
    failed = list(check_environment(environ(*tunnel, PLUNGEPOOL_HOST="other.example")))[-1]
    assert (failed.name, failed.state) == ("TLS", "failed")
    assert "if a tunnel has another address, set it in PLUNGEPOOL_ADDRESS" in failed.found


def test_token_is_signed_for_the_name(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that takes tokens for the endpoint's name and port only is reached at another address and port."""
    postgres.execute("CREATE ROLE tunnelled LOGIN")
    with (
        mock_aws(config={"core": {"mock_credentials": False}}),
        RdsProxy(postgres, endpoints=[f"{NAME}:5432"]) as proxy,
    ):
        for name, value in proxy.variables("tunnelled").items():
            if name.startswith("AWS_"):
                monkeypatch.setenv(name, value)
        settings = Settings(
            host=NAME,
            address=f"127.0.0.1:{proxy.port}",
            user="tunnelled",
            auth="iam",
            endpoint="proxy",
            region=proxy.region,
            ca_file=str(proxy.ca_file),
        )
        engine = build_engine(settings)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT current_user")).scalar_one() == "tunnelled"
        engine.dispose()
    postgres.execute("DROP ROLE tunnelled")
