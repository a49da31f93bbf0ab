"""
Who is let in: tokens, passwords and certificates that were good once.

    8   PAM authentication fails, now and then  aws/aws-sdk-js-v3#8047, aws/aws-advanced-python-wrapper#1230,
                                                aws/aws-advanced-jdbc-wrapper#612
    9   too many competing requests             guardian/pinboard#352, about 100 a day
    10  a warm function has the old password    wellcomecollection/platform#6317
    11  a snapshot has the old secret           developmentseed/eoapi-cdk#236
    15  TLS cannot connect, or verifies nothing tlocke/pg8000#57 and #72, jeremydaly/serverless-mysql#159
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aws import Role, endpoint, secrets_manager
from moto import mock_aws
from rotation import Rotation
from stories import At, ask, end_sessions, failure, refusal, rows, sessions, variables

from plungepool_toolkit.certificates import Authority
from plungepool_toolkit.fixtures import Database
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from plungepool_toolkit.environment import Environment
    from plungepool_toolkit.rds_proxy import RdsProxy

    Start = Callable[..., Environment]
    StartProxy = Callable[..., RdsProxy]


def reach_naively(proxy: RdsProxy, user: str) -> dict[str, str]:
    """Return the variables of the naive handlers for the stand-in."""
    return {
        "NAIVE_URL": f"postgresql+psycopg://{user}@localhost:{proxy.port}/postgres",
        "CA_FILE": str(proxy.ca_file),
    }


def test_pam_authentication_fails_now_and_then(start: Start, rds_proxy: StartProxy, app: str) -> None:
    """
    Story 8: the role's credentials are exchanged while the environment is frozen, and even between signing and the
    proxy's look at the token. Each connect signs with what is good then; a token that was made at init dies with the
    credentials that signed it.
    """
    proxy = rds_proxy()
    role = Role(proxy)
    with endpoint(role.answer) as address:
        static = {name: value for name, value in proxy.variables(app).items() if not name.startswith("AWS_")}
        reach = {
            **static,
            **reach_naively(proxy, app),
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": address,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": "a token",
            "PLUNGEPOOL_POOL": "null",
        }
        shop, naive = start("shop", reach), start("naive_token", reach)
        rows(ask(shop)), rows(ask(naive))
        assert proxy.counters.refused.total() == 0
        for _ in range(3):
            role.exchange()
            rows(ask(shop))
        assert "IAM authentication failed" in failure(ask(naive))
        # With less than the life of a token left, they are asked for each time.
        role.life_s = 300
        role.exchange()
        rows(ask(shop))
        refused = proxy.counters.refused.total()
        role.is_about_to_exchange = True
        rows(ask(shop))
        assert proxy.counters.refused.total() == refused + 1


def test_too_many_competing_requests(start: Start, rds_proxy: StartProxy, app: str) -> None:
    """
    Story 9: IAM authentication is slow, and limited a second. A hundred warm invocations sign in once, and not a
    hundred times.
    """
    proxy = rds_proxy()
    reach = proxy.variables(app) | reach_naively(proxy, app)
    shop = start("shop", reach)
    assert len({rows(ask(shop))[0][0] for _ in range(100)}) == 1
    assert proxy.counters.accepted == 1
    naive = start("naive_token", reach)
    for _ in range(10):
        rows(ask(naive))
    assert proxy.counters.accepted == 11


@pytest.fixture
def rotation() -> Iterator[Rotation]:
    """A server that asks for passwords, and a secret with the application's, which rotates."""
    with Postgres(authentication="scram-sha-256") as server, mock_aws():
        server.execute("CREATE ROLE app LOGIN")
        yield Rotation(server, ["app"])


def reach_by_secret(rotation: Rotation, address: str) -> dict[str, str]:
    """Return the variables of a function that finds its password in Secrets Manager, at this address."""
    server = rotation.server
    return {
        "AWS_ACCESS_KEY_ID": "not asked for",
        "AWS_SECRET_ACCESS_KEY": "not asked for",
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": address,
        "PLUNGEPOOL_HOST": server.host,
        "PLUNGEPOOL_PORT": str(server.port),
        "PLUNGEPOOL_TLS": "disable",
        "PLUNGEPOOL_AUTH": "secret",
        "PLUNGEPOOL_SECRET_ARN": rotation.arn,
        "SECRET_ARN": rotation.arn,
        "NAIVE_URL": f"postgresql+psycopg://{server.host}:{server.port}/postgres",
    }


def test_a_warm_function_has_the_old_password(start: Start, rotation: Rotation) -> None:
    """
    Story 10: the password rotates between two invocations, and its connections end. The warm environment gets in again,
    also in the moments when the server has the new password and the secret does not say so yet.
    """
    database = Database(rotation.server, "postgres")
    with secrets_manager() as address:
        reach = reach_by_secret(rotation, address)
        shop, naive = start("shop", reach), start("naive_secret", reach)
        process = shop.pid
        rows(ask(shop)), rows(ask(naive))
        in_the_gap = []

        def invoke_in_the_gap() -> None:
            end_sessions(database)
            in_the_gap.append(ask(shop))

        for number in range(2):
            rotation.rotate(number, invoke_in_the_gap)
            rows(in_the_gap[number])
            end_sessions(database)
            rows(ask(shop))
        assert shop.pid == process
        assert "terminating connection" in failure(ask(naive))
        assert "password authentication failed" in failure(ask(naive))


def test_a_snapshot_has_the_old_secret(start: Start, rotation: Rotation) -> None:
    """
    Story 11: connected at init, then kept as a snapshot for days, while the password rotates and the server forgets the
    session. Nothing of it is in the snapshot; each environment that is restored from it asks for the secret, and
    connects by itself.
    """
    database = Database(rotation.server, "postgres")
    with secrets_manager() as address:
        reach = reach_by_secret(rotation, address)
        shop = start("warm", reach, snap_start=True)
        assert sessions(database) == []
        naive = start("naive_secret", reach, snap_start=True)
        assert len(sessions(database)) == 1
        snapshot = shop.snapshot()
        rotation.rotate(1, lambda: end_sessions(database))
        clones = [snapshot.restore() for _ in range(2)]
        assert len({rows(ask(clone))[0][0] for clone in clones}) == 2
        naive.restore()
        assert "terminating connection" in failure(ask(naive))
        assert "password authentication failed" in failure(ask(naive))


@pytest.fixture
def server_with_tls() -> Iterator[tuple[Postgres, Authority]]:
    """A server with TLS, whose certificate is good for `localhost` alone, and who has issued that."""
    with Authority() as authority, Postgres(tls=authority.issue("localhost")) as server:
        server.execute("CREATE ROLE app LOGIN")
        yield server, authority


IS_SECURE = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


def test_tls_that_verifies_nothing(
    start: Start, database: Database, app: str, server_with_tls: tuple[Postgres, Authority], tmp_path: Path
) -> None:
    """
    Story 15: a server in plain text, one whose certificate is another authority's, and one of another name are refused,
    each with its cause; a file of authorities, the old one and the new, goes on working.
    """
    server, authority = server_with_tls
    secure = Database(server, "postgres")
    by_number = At("127.0.0.1", server.port)
    bundle = tmp_path / "authorities.pem"
    with Authority() as other:
        bundle.write_bytes(other.ca_file.read_bytes() + authority.ca_file.read_bytes())

        def shop(of: Database, ca_file: Path, **at: Any) -> Environment:
            reach = variables(of, user=app if of is database else "app", ca_file=ca_file, **at)
            return start("shop", {name: value for name, value in reach.items() if name != "PLUNGEPOOL_TLS"})

        assert rows(ask(shop(secure, bundle), IS_SECURE)) == [[True]]
        for refused, cause in (
            (shop(database, authority.ca_file), "does not offer TLS"),
            (shop(secure, other.ca_file), "not trusted"),
            (shop(secure, bundle, at=by_number), "127.0.0.1"),
        ):
            assert cause in refusal(ask(refused))["reason"]
        naive = start("naive", variables(database, user=app))
        assert rows(ask(naive, IS_SECURE)) == [[False]]
        mute = start("naive", variables(secure, at=by_number, user="app"))
        assert rows(ask(mute, IS_SECURE)) == [[True]]
