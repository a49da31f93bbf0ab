"""The doctor on real servers, well and ill; the sample function gives the same answers."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import socket
import ssl
import struct
import threading
import time
import warnings
from contextlib import ExitStack, suppress
from email.utils import formatdate
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import boto3
import botocore.client
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from typer.testing import CliRunner

from plungepool.checks import Check, check_environment
from plungepool_toolkit.certificates import Authority
from plungepool_toolkit.command import application
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PASSWORD = "unmistakable-password"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server with TLS and passwords, and a role with all the limits that it should have."""
    with Postgres({"max_connections": 20}, tls=True, authentication="scram-sha-256") as running:
        running.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 5")
        for name in (
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "idle_session_timeout",
        ):
            running.execute(f"ALTER ROLE app SET {name} = '10s'")
        running.execute(f"CREATE ROLE bare LOGIN PASSWORD '{PASSWORD}'")
        running.execute(f"CREATE ROLE boss LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        running.execute(f"CREATE ROLE full_role LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 0")
        running.execute(f"CREATE ROLE last_one LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 1")
        running.execute(f"CREATE ROLE no_login NOLOGIN PASSWORD '{PASSWORD}'")
        running.execute("CREATE ROLE no_password LOGIN")
        running.execute("CREATE ROLE trusted LOGIN CONNECTION LIMIT 5")
        running.execute(f"CREATE ROLE too_old LOGIN PASSWORD '{PASSWORD}' VALID UNTIL '2001-01-01'")
        for name in ("tls_only", "kept_out"):
            running.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        running.execute("CREATE DATABASE closed")
        running.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
        running.execute("CREATE DATABASE crowded CONNECTION LIMIT 0")
        rules = Path(running.execute("SHOW hba_file")[0][0])
        first = [
            "hostnossl all tls_only all reject",
            "host all kept_out all reject",
            "host all trusted_nobody,trusted all trust",
        ]
        rules.write_text("\n".join([*first, rules.read_text()]))
        running.execute("SELECT pg_reload_conf()")
        yield running


@pytest.fixture
def environ(server: Postgres) -> dict[str, str]:
    """The variables of a function that may connect."""
    return {
        "PLUNGEPOOL_HOST": server.host,
        "PLUNGEPOOL_PORT": str(server.port),
        "PLUNGEPOOL_USER": "app",
        "PLUNGEPOOL_PASSWORD": PASSWORD,
        "PLUNGEPOOL_CA_FILE": str(server.ca_file),
        "PLUNGEPOOL_CONNECT_TIMEOUT_S": "20",  # on a busy machine, too
        "PLUNGEPOOL_CHECKOUT_TIMEOUT_S": "1",  # a full server is asked again for as long
    }


def examine(environ: dict[str, str]) -> list[Check]:
    """Return all checks, having made sure that none holds the password."""
    checks = list(check_environment(environ))
    assert PASSWORD not in repr(checks)
    return checks


def states(checks: list[Check]) -> dict[str, str]:
    """Return the state of each check by its name."""
    return {check.name: check.state for check in checks}


# Whoever calls, reads or compares by one of these is told so by an error.
PLANTED = f"""
    CREATE ROLE surrounded LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 5;
    CREATE SCHEMA planted;
    GRANT USAGE ON SCHEMA planted TO surrounded;
    ALTER ROLE surrounded SET search_path = planted, pg_catalog;
    CREATE FUNCTION planted.trap(what text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'planted %', what; END $$;
    DO $$
    DECLARE name text;
    BEGIN
        FOREACH name IN ARRAY ARRAY['version', 'pg_is_in_recovery', 'clock_timestamp', 'pg_backend_pid', 'current_setting'] LOOP
            EXECUTE format('CREATE FUNCTION planted.%I() RETURNS text RETURN planted.trap(%L)', name, name);
            EXECUTE format('CREATE FUNCTION planted.%I(text) RETURNS text RETURN planted.trap(%L)', name, name);
        END LOOP;
        FOREACH name IN ARRAY ARRAY['pg_settings', 'pg_roles', 'pg_stat_activity', 'pg_stat_database'] LOOP
            EXECUTE format('CREATE VIEW planted.%I AS SELECT * FROM pg_catalog.%I WHERE planted.trap(%L)', name, name, name);
            EXECUTE format('GRANT SELECT ON planted.%I TO surrounded', name);
        END LOOP;
        FOREACH name IN ARRAY ARRAY['text', 'name'] LOOP
            EXECUTE format('CREATE FUNCTION planted.equal(%s, pg_catalog.%I) RETURNS bool RETURN planted.trap(%L)',
                           'pg_catalog.name', name, 'operator');
            EXECUTE format('CREATE OPERATOR planted.= (LEFTARG = pg_catalog.name, RIGHTARG = pg_catalog.%I, FUNCTION = planted.equal)', name);
        END LOOP;
        CREATE FUNCTION planted.equal(text, text) RETURNS bool RETURN planted.trap('operator');
        CREATE OPERATOR planted.= (LEFTARG = text, RIGHTARG = text, FUNCTION = planted.equal);
        CREATE FUNCTION planted.trapped(bigint) RETURNS bigint RETURN planted.trap('aggregate')::pg_catalog.int4;
        CREATE DOMAIN planted.float8 AS pg_catalog.float8 CHECK (planted.trap('float8'));
        CREATE DOMAIN planted.int4 AS pg_catalog.int4 CHECK (planted.trap('int4'));
        CREATE DOMAIN planted.int8 AS pg_catalog.int8 CHECK (planted.trap('int8'));
        CREATE AGGREGATE planted.count(*) (SFUNC = pg_catalog.int8inc, STYPE = bigint, INITCOND = '0', FINALFUNC = planted.trapped);
        CREATE AGGREGATE planted.sum(integer) (SFUNC = pg_catalog.int4_sum, STYPE = bigint, INITCOND = '0', FINALFUNC = planted.trapped);
    END $$;
"""

STEPS = ["settings", "name", "endpoint", "TCP", "TLS", "credentials", "authentication", "server", "role", "time-outs", "head-room"]  # fmt: skip


def test_healthy_database_passes_every_step(environ: dict[str, str]) -> None:
    """A role with limits on a server with TLS: every step is ok, in order."""
    checks = examine(environ)
    assert states(checks) == dict.fromkeys(STEPS, "ok")
    found = {check.name: check.found for check in checks}
    assert "days left" in found["TLS"]
    assert found["role"] == "1 of the role's 5 connections are in use"
    assert found["credentials"] == "user 'app' with the password of PLUNGEPOOL_PASSWORD"


class World:
    """
    What a set-up may need beside the healthy server: listeners that answer badly, authorities, AWS, another clock.
    """

    def __init__(self, open_server: Callable[[], Postgres], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._open_server = open_server
        self.patch, self.folder = monkeypatch, folder
        self._clean = ExitStack()

    def close(self) -> None:
        """End all that was begun, in reverse."""
        self._clean.close()

    def silent(self) -> int:
        """A port that takes connections and never answers."""
        return self._listen(lambda client: self._over.wait(10))

    def answers(self, first: bytes, *, context: ssl.SSLContext | None = None, then: bytes = b"") -> int:
        """A port that answers the request for TLS so, shakes hands with the context, and answers what follows so."""

        def serve(client: socket.socket) -> None:
            client.recv(8)
            client.sendall(first)
            if context is not None:
                with context.wrap_socket(client, server_side=True) as secured:
                    secured.recv(4096)
                    secured.sendall(then)

        return self._listen(serve)

    def breaks_off(self, *before: bytes) -> int:
        """A port that says these words, each when it has heard one, and then resets the connection."""

        def serve(client: socket.socket) -> None:
            for word in (*before, b""):
                client.recv(4096)
                client.sendall(word)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        return self._listen(serve)

    def falls_silent(self) -> int:
        """A port that agrees to TLS and then says nothing."""

        def serve(client: socket.socket) -> None:
            if client.recv(8):  # who only looks whether somebody listens keeps nobody waiting
                client.sendall(b"S")
                self._over.wait(10)

        return self._listen(serve)

    def refuses(self, sqlstate: str, message: str, host: str = "localhost") -> int:
        """A port with this server's certificate that refuses every login so."""
        body = b"SFATAL\0VFATAL\0C" + sqlstate.encode() + b"\0M" + message.encode() + b"\0\0"
        error = b"E" + (len(body) + 4).to_bytes(4, "big") + body
        return self.answers(b"S", context=self.authority.server_context(host), then=error)

    def full_backlog(self) -> int:
        """A port whose queue is full, so that nothing more is answered: as behind a security group."""
        listener = self._clean.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):
            waiting = self._clean.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        return int(listener.getsockname()[1])

    @cached_property
    def authority(self) -> Authority:
        """Another authority than the healthy server's."""
        return self._clean.enter_context(Authority())

    @cached_property
    def trusted(self) -> dict[str, str]:
        """The variable that trusts the other authority."""
        return {"PLUNGEPOOL_CA_FILE": str(self.authority.ca_file)}

    def empty_file(self) -> str:
        """A file that is no certificate."""
        file = self.folder / "ca.pem"
        file.touch()
        return str(file)

    def shift_clock(self, seconds: float) -> None:
        """Let the doctor's own clock be ahead."""
        ahead = SimpleNamespace(time=lambda: time.time() + seconds)
        self.patch.setattr("plungepool.checks.time", ahead)

    def aws(self, *, keys: bool = True, **variables: str) -> dict[str, str]:
        """Moto for AWS, with or without credentials in the environment; return the settings for IAM."""
        self._clean.enter_context(mock_aws(config={"core": {"mock_credentials": False}}))
        self.without_aws()
        if keys:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                self.patch.setenv(name, f"{PASSWORD}-key" if "SECRET" in name else "ASIAEXAMPLE")
        for name, value in variables.items():
            self.patch.setenv(name, value)
        return {"PLUNGEPOOL_AUTH": "iam", "PLUNGEPOOL_REGION": "eu-west-1", "PLUNGEPOOL_PASSWORD": ""}

    def without_aws(self) -> None:
        """Nobody has signed in."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            self.patch.delenv(name)
        self.patch.setenv("HOME", "/nonexistent")
        self.patch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def secret(self, **content: Any) -> dict[str, str]:
        """A secret with this content, and the settings that name it."""
        self.aws()
        client = boto3.client("secretsmanager", region_name="eu-west-1")
        client.create_secret(Name="orders", SecretString=json.dumps(content))
        return self.secret_settings()

    def secret_settings(self) -> dict[str, str]:
        """The settings of a function with a secret."""
        return {
            "PLUNGEPOOL_AUTH": "secret",
            "PLUNGEPOOL_SECRET_ARN": "orders",
            "PLUNGEPOOL_REGION": "eu-west-1",
            "PLUNGEPOOL_PASSWORD": "",
            "PLUNGEPOOL_USER": "",
        }

    def aws_refuses(self, code: str) -> None:
        """Let Secrets Manager refuse with this code."""

        def refuse(_client: object, operation: str, _parameters: object) -> None:
            raise ClientError({"Error": {"Code": code, "Message": "no"}}, operation)

        self.patch.setattr(botocore.client.BaseClient, "_make_api_call", refuse)

    def rds_says(self, **cluster: Any) -> None:
        """Let RDS say this of the cluster that it is asked for; all else is moto's."""
        asked = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]

        def answer(client: object, operation: str, parameters: object) -> Any:
            if operation == "DescribeDBClusters":
                return {"DBClusters": [cluster]}
            return asked(client, operation, parameters)

        self.patch.setattr(botocore.client.BaseClient, "_make_api_call", answer)

    def proxy(self, **options: Any) -> tuple[RdsProxy, dict[str, str]]:
        """
        The stand-in for RDS Proxy before a server that trusts it, and settings that reach it with the right token.
        """
        behind = self._open_server()
        behind.execute("CREATE ROLE app LOGIN CONNECTION LIMIT 5")
        self._clean.callback(behind.execute, "DROP ROLE app")
        running = self._clean.enter_context(RdsProxy(behind, endpoints=["localhost"], **options))
        iam = self.aws()
        (credential,) = running.credentials
        self.patch.setenv("AWS_ACCESS_KEY_ID", credential.access_key_id)
        self.patch.setenv("AWS_SECRET_ACCESS_KEY", credential.secret_access_key)
        self.patch.setenv("AWS_SESSION_TOKEN", credential.session_token or "")
        reach = {
            "PLUNGEPOOL_HOST": "localhost",
            "PLUNGEPOOL_PORT": str(running.port),
            "PLUNGEPOOL_ENDPOINT": "proxy",
            "PLUNGEPOOL_CA_FILE": str(running.ca_file),
        }
        return running, iam | reach | {"PLUNGEPOOL_REGION": running.region}

    def _listen(self, serve: Callable[[socket.socket], object]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))

        def accept() -> None:
            while True:
                client, _ = listener.accept()
                if self._over.is_set():
                    client.close()
                    return
                # The client may hang up first, or refuse the certificate.
                with client, suppress(OSError):
                    serve(client)

        thread = threading.Thread(target=accept)
        thread.start()

        def end() -> None:
            self._over.set()
            with suppress(OSError):
                socket.create_connection(listener.getsockname(), timeout=5).close()
            thread.join()
            listener.close()

        self._clean.callback(end)
        return int(listener.getsockname()[1])

    @cached_property
    def _over(self) -> threading.Event:
        return threading.Event()


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    """What a set-up may need, ended afterwards."""
    made = World(lambda: request.getfixturevalue("postgres"), monkeypatch, tmp_path)
    yield made
    made.close()


class SetUp(NamedTuple):
    """A set-up that is not well: what it is, what it changes, which step says so, and how its sentences begin."""

    what: str
    changes: Callable[[World], dict[str, str]]
    step: str
    says: str
    cure: str
    state: str = "failed"


def port(number: int, **more: str) -> dict[str, str]:
    """Settings that go to another port."""
    return {"PLUNGEPOOL_PORT": str(number), **more}


# Where nothing answers, waiting longer shows no more.
HURRIED = {"PLUNGEPOOL_CONNECT_TIMEOUT_S": "0.3"}


def with_clock(world: World, seconds: float) -> dict[str, str]:
    """Shift the doctor's clock."""
    world.shift_clock(seconds)
    return {}


def refused_by_aws(world: World, code: str) -> dict[str, str]:
    """A secret that AWS refuses to show."""
    world.aws()
    world.aws_refuses(code)
    return world.secret_settings()


def far_secrets_manager(world: World) -> dict[str, str]:
    """An endpoint for Secrets Manager where nobody listens."""
    world.aws(AWS_ENDPOINT_URL_SECRETS_MANAGER="http://127.0.0.1:1")
    return world.secret_settings()


def not_signed_in(world: World) -> dict[str, str]:
    """A secret, and no AWS credentials."""
    world.aws(keys=False)
    return world.secret_settings()


def own_certificate(world: World, *hosts: str, **options: bool) -> dict[str, str]:
    """A server with a certificate of the other authority, which is trusted."""
    return port(world.answers(b"S", context=world.authority.server_context(*hosts, **options))) | world.trusted


def old_tls(world: World) -> dict[str, str]:
    """A server that speaks TLS 1.1 only."""
    context = world.authority.server_context("localhost")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return port(world.answers(b"S", context=context)) | world.trusted


def refused_token(world: World, sqlstate: str, message: str) -> dict[str, str]:
    """A server that refuses a token in these words."""
    return world.aws() | port(world.refuses(sqlstate, message)) | world.trusted


def refused_login(world: World, sqlstate: str, message: str) -> dict[str, str]:
    """A server that refuses a password in these words."""
    return port(world.refuses(sqlstate, message)) | world.trusted


def over_network(world: World) -> dict[str, str]:
    """Plain text to what is not taken for this machine."""
    world.patch.setattr("plungepool.tls.is_loopback", lambda _host: False)
    return {"PLUNGEPOOL_TLS": "disable", "PLUNGEPOOL_CA_FILE": ""}


def trusted_over_network(world: World) -> dict[str, str]:
    """A role that is asked for nothing, and a wrong password, on what is not taken for this machine."""
    world.patch.setattr("plungepool.tls.is_loopback", lambda _host: False)
    return {"PLUNGEPOOL_USER": "trusted", "PLUNGEPOOL_PASSWORD": "wrong"}


def no_route_to_host(world: World) -> dict[str, str]:
    """A connect that a gateway has answered so; none can be made to here without root."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    world.patch.setattr("plungepool.checks.socket.create_connection", refuse)
    return {}


CLUSTER = "shop.cluster-abc123.eu-west-1.rds.amazonaws.com"


def express(world: World, sqlstate: str, message: str, **more: str) -> dict[str, str]:
    """A cluster of express configuration, as RDS says of it, that refuses every login so."""
    iam = world.aws()
    world.rds_says(Endpoint=CLUSTER, InternetAccessGatewayEnabled=True)
    address = f"127.0.0.1:{world.refuses(sqlstate, message, CLUSTER)}"
    reach = {"PLUNGEPOOL_HOST": CLUSTER, "PLUNGEPOOL_ADDRESS": address, "PLUNGEPOOL_PORT": "5432"}
    return iam | reach | world.trusted | more


def by_password(world: World, sqlstate: str, message: str) -> dict[str, str]:
    """The same, and a password."""
    return express(world, sqlstate, message, PLUNGEPOOL_AUTH="password", PLUNGEPOOL_PASSWORD=PASSWORD)


def silent_public_address(world: World) -> dict[str, str]:
    """An address on the internet that does not answer; nothing goes there from here."""

    def wait(*_: object, **__: object) -> None:
        raise TimeoutError

    world.patch.setattr("plungepool.checks.socket.create_connection", wait)
    return {"PLUNGEPOOL_ADDRESS": "8.8.8.8"}


# TCP has no way to a group of hosts: the kernel says of a multicast address that the network is unreachable.
NO_ROUTE = "224.0.0.1"
PLAIN = {"PLUNGEPOOL_TLS": "disable", "PLUNGEPOOL_CA_FILE": "", "PLUNGEPOOL_HOST": "127.0.0.1"}

SET_UPS = [
    # The settings.
    SetUp("a misspelt variable", lambda w: {"PLUNGEPOOL_HSOT": "db"}, "settings", "PLUNGEPOOL_HSOT is not a setting; did you mean PLUNGEPOOL_HOST?", "correct the variable"),
    SetUp("a port within the host", lambda w: {"PLUNGEPOOL_HOST": "db:5432"}, "settings", "PLUNGEPOOL_HOST must not contain a port: set PLUNGEPOOL_PORT", "correct the variable"),
    SetUp("a line break at the end of a copied value", lambda w: {"PLUNGEPOOL_PASSWORD": f"{PASSWORD}\n"}, "settings", "PLUNGEPOOL_PASSWORD begins or ends with a line break", "correct the variable"),
    SetUp("an ARN that is not of a secret", lambda w: w.secret_settings() | {"PLUNGEPOOL_SECRET_ARN": "arn:aws:rds:eu-west-1:1:db:d"}, "settings", "PLUNGEPOOL_SECRET_ARN must be the ARN of a secret", "correct the variable"),
    SetUp("no password", lambda w: {"PLUNGEPOOL_PASSWORD": ""}, "settings", "PLUNGEPOOL_PASSWORD is missing", "correct the variable"),
    SetUp("a token over plain text", lambda w: w.aws() | PLAIN, "settings", "PLUNGEPOOL_TLS=disable would send the token of PLUNGEPOOL_AUTH=iam in plain text; use verify-full", "correct the variable"),
    # The way.
    SetUp("a host that does not exist", lambda w: {"PLUNGEPOOL_HOST": "nobody.invalid"}, "name", "nobody.invalid (PLUNGEPOOL_HOST) cannot be resolved", "copy the endpoint's name into PLUNGEPOOL_HOST"),
    SetUp("a tunnel's address that does not exist", lambda w: {"PLUNGEPOOL_ADDRESS": "nobody.invalid"}, "name", "nobody.invalid (PLUNGEPOOL_ADDRESS) cannot be resolved", "set PLUNGEPOOL_ADDRESS to the local end of the tunnel"),
    SetUp("another port", lambda w: port(1), "TCP", "nothing is listening there (connection refused)", "check PLUNGEPOOL_PORT, and that the server is running"),
    SetUp("a tunnel that is not up", lambda w: {"PLUNGEPOOL_ADDRESS": "127.0.0.1:1"}, "TCP", "nothing is listening there (connection refused)", "check that the tunnel is up"),
    SetUp("a host without a route to it", lambda w: {"PLUNGEPOOL_ADDRESS": NO_ROUTE}, "TCP", "cannot be reached: Network is unreachable", "there is no route from this machine: check the subnet's routes (or the VPN)"),
    SetUp("a gateway that reports an unknown host", no_route_to_host, "TCP", "cannot be reached: No route to host", "there is no route from this machine: check the subnet's routes (or the VPN)"),
    SetUp("a closed security group", lambda w: port(w.full_backlog(), **HURRIED), "TCP", "did not answer within 0.3 s", "allow inbound traffic on this port from the function's security group"),
    SetUp("a function in a VPC without a NAT gateway, and a public address", silent_public_address, "TCP", "did not answer within 20 s", "the address is public: a function in a VPC can reach it only through a NAT gateway"),
    # TLS.
    SetUp("a server without TLS", lambda w: port(w.answers(b"N")), "TLS", "is PostgreSQL, but does not offer TLS", "enable TLS in the server"),
    SetUp("another program at the port", lambda w: port(w.answers(b"HTTP/1.1 400 Bad Request")), "TLS", "does not speak PostgreSQL's protocol", "check PLUNGEPOOL_PORT"),
    SetUp("a port that accepts and never answers", lambda w: port(w.silent(), **HURRIED), "TLS", "accepts connections but never answers", "check that PostgreSQL, not another program, is listening there"),
    SetUp("a load balancer or tunnel without a server behind it", lambda w: port(w.answers(b"")), "TLS", "accepts connections but closes them without an answer", "a load balancer's target may be down"),
    SetUp("a load balancer that resets", lambda w: port(w.breaks_off()), "TLS", "accepts connections but drops them: Connection reset by peer", "a load balancer's target may be down"),
    SetUp("a server that stops responding during the TLS handshake", lambda w: port(w.falls_silent(), **HURRIED), "TLS", "stopped responding during the TLS handshake", "check the server's log, and any proxy or load balancer in between"),
    SetUp("a device in between that aborts the TLS handshake", lambda w: port(w.breaks_off(b"S")), "TLS", "closed the connection during the TLS handshake: Connection reset by peer", "check the server's log, and any proxy or load balancer in between"),
    SetUp("a server without free connections, before TLS", lambda w: port(w.answers(b"E\0\0\0\x29SFATAL\0C53300\0Msorry, too many clients\0\0")), "TLS", "refused the connection before TLS: sorry, too many clients", "the server is full, starting up or shutting down"),
    SetUp("a certificate authority other than Amazon's, and no CA file", lambda w: {"PLUNGEPOOL_CA_FILE": ""}, "TLS", "unless PLUNGEPOOL_CA_FILE names a PEM file of others", "until this is corrected, no password"),
    SetUp("the wrong CA file", lambda w: w.trusted, "TLS", "and nothing else is trusted: add the certificate of the authority that issued the server's to that file", "until this is corrected, no password"),
    SetUp("a CA file that does not exist", lambda w: {"PLUNGEPOOL_CA_FILE": "/nowhere.pem"}, "TLS", "PLUNGEPOOL_CA_FILE names '/nowhere.pem', which cannot be read", "correct PLUNGEPOOL_CA_FILE"),
    SetUp("a CA file without certificates", lambda w: {"PLUNGEPOOL_CA_FILE": w.empty_file()}, "TLS", "which holds no certificate in PEM format", "correct PLUNGEPOOL_CA_FILE"),
    SetUp("a custom name, or an address", lambda w: own_certificate(w, "db.example"), "TLS", "the server's certificate is for a name other than localhost", "until this is corrected, no password"),
    SetUp("a certificate that has expired", lambda w: own_certificate(w, "localhost", expired=True), "TLS", "has expired: renew it at the server, and check this machine's clock", "until this is corrected, no password"),
    SetUp("a certificate that is not valid yet", lambda w: own_certificate(w, "localhost", not_yet_valid=True), "TLS", "is not valid yet: renew it at the server, and check this machine's clock", "until this is corrected, no password"),
    SetUp("TLS 1.1", old_tls, "TLS", "the server must speak TLS 1.2 or newer", "until this is corrected, no password"),
    SetUp("a certificate near its end", lambda w: with_clock(w, 360 * 86400), "TLS", "4 days left", "RDS renews its certificates automatically", "warning"),
    SetUp("plain text over a network", over_network, "TLS", "disabled: passwords and rows travel to localhost in plain text", "remove PLUNGEPOOL_TLS", "warning"),
    # The credentials.
    SetUp("IAM without AWS credentials", lambda w: w.aws(keys=False), "credentials", "found no AWS credentials: a function has those of its role", "see docs/authenticate.md"),
    SetUp("an access key without its secret", lambda w: w.aws(AWS_SECRET_ACCESS_KEY=""), "credentials", "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not", "see docs/authenticate.md"),
    SetUp("a secret, and no AWS credentials", not_signed_in, "credentials", "(NoCredentialsError): no AWS credentials", "see docs/authenticate.md"),
    SetUp("a secret, and no route to Secrets Manager", far_secrets_manager, "credentials", "(EndpointConnectionError): Secrets Manager in eu-west-1 cannot be reached from here", "see docs/authenticate.md"),
    SetUp("a secret that does not exist", lambda w: w.aws() and w.secret_settings(), "credentials", "(ResourceNotFoundException): there is no such secret", "see docs/authenticate.md"),
    SetUp("a role that may not read the secret", lambda w: refused_by_aws(w, "AccessDeniedException"), "credentials", "the role is not allowed secretsmanager:GetSecretValue", "see docs/authenticate.md"),
    SetUp("a customer managed KMS key", lambda w: refused_by_aws(w, "DecryptionFailure"), "credentials", "the role needs kms:Decrypt", "see docs/authenticate.md"),
    SetUp("AWS credentials that have expired", lambda w: refused_by_aws(w, "ExpiredTokenException"), "credentials", "AWS does not accept these credentials", "see docs/authenticate.md"),
    SetUp("a secret without a password", lambda w: w.secret(username="app"), "credentials", "must be a JSON object with username and password as text", "see docs/authenticate.md"),
    SetUp("a secret of another user", lambda w: w.secret(username="app", password=PASSWORD) | {"PLUNGEPOOL_USER": "other"}, "credentials", "leave PLUNGEPOOL_USER unset", "see docs/authenticate.md"),
    SetUp("no host, neither in the variables nor in the secret", lambda w: w.secret(username="app", password=PASSWORD) | {"PLUNGEPOOL_HOST": ""}, "credentials", "PLUNGEPOOL_HOST is missing, and the secret", "see docs/authenticate.md"),
    # The login.
    SetUp("a wrong password", lambda w: {"PLUNGEPOOL_PASSWORD": "wrong"}, "authentication", "password authentication failed", "(1) the password is wrong for 'app'"),
    SetUp("a password that was copied with a blank", lambda w: {"PLUNGEPOOL_PASSWORD": f"{PASSWORD} "}, "authentication", "password authentication failed", "(1) the password begins or ends with a space"),
    SetUp("a role that does not exist", lambda w: {"PLUNGEPOOL_USER": "nobody"}, "authentication", "password authentication failed", "(1) the password is wrong for 'nobody': correct it; (2) the role 'nobody' does not exist"),
    SetUp("a role without a password", lambda w: {"PLUNGEPOOL_USER": "no_password"}, "authentication", "password authentication failed", "(1) the password is wrong for 'no_password': correct it; (2) the role 'no_password' does not exist, has no password"),
    SetUp("a password that has expired", lambda w: {"PLUNGEPOOL_USER": "too_old"}, "authentication", "password authentication failed", "(1) the password is wrong for 'too_old': correct it; (2) the role 'too_old' does not exist, has no password, or is past its VALID UNTIL"),
    SetUp("a role that does not exist, on a server that asks for no password", lambda w: {"PLUNGEPOOL_USER": "trusted_nobody"}, "authentication", "does not exist", "CREATE ROLE trusted_nobody LOGIN"),
    SetUp("a role without LOGIN", lambda w: {"PLUNGEPOOL_USER": "no_login"}, "authentication", "is not permitted to log in", "ALTER ROLE no_login LOGIN"),
    SetUp("an address that pg_hba.conf rejects", lambda w: {"PLUNGEPOOL_USER": "kept_out"}, "authentication", "pg_hba.conf rejects connection", "allow 'kept_out' to connect to 'postgres' from this address in pg_hba.conf"),
    SetUp("plain text to a server that requires TLS", lambda w: PLAIN | {"PLUNGEPOOL_USER": "tls_only"}, "authentication", "no encryption", "the server requires TLS: remove PLUNGEPOOL_TLS=disable"),
    SetUp("a password for a role with rds_iam", lambda w: refused_login(w, "28000", "PAM authentication failed for user"), "authentication", "PAM authentication failed", "the role is a member of rds_iam (RDS), for which every password is refused: set PLUNGEPOOL_AUTH=iam"),
    SetUp("a server that asks nobody for a password", trusted_over_network, "authentication", "accepted the login of 'trusted' without asking for the password, which may be wrong", "anyone who can reach the server is let in: replace trust by scram-sha-256 in its pg_hba.conf", "warning"),
    SetUp("a database that does not exist", lambda w: {"PLUNGEPOOL_DATABASE": "nowhere"}, "authentication", "does not exist", "create the database 'nowhere', or correct PLUNGEPOOL_DATABASE"),
    SetUp("a role that may not connect to the database", lambda w: {"PLUNGEPOOL_DATABASE": "closed"}, "authentication", "permission denied", "GRANT CONNECT ON DATABASE closed TO app"),
    SetUp("a role at its connection limit", lambda w: {"PLUNGEPOOL_USER": "full_role"}, "authentication", "too many connections for role", "the role 'full_role' already has as many connections as its CONNECTION LIMIT allows"),
    SetUp("a database at its connection limit", lambda w: {"PLUNGEPOOL_DATABASE": "crowded"}, "authentication", "too many connections for database", "the database 'crowded' has reached its own CONNECTION LIMIT"),
    SetUp("a server without free connections", lambda w: refused_login(w, "53300", "remaining connection slots are reserved"), "authentication", "remaining connection slots are reserved", "all of the server's max_connections are in use"),
    SetUp("a server that is starting", lambda w: refused_login(w, "57P03", "the database system is starting up"), "authentication", "starting up", "the server is starting up or shutting down: try again in a minute"),
    SetUp("another program at the port, and no TLS", lambda w: port(w.answers(b"HTTP/1.1 400 Bad Request")) | PLAIN, "authentication", "broke the protocol", "the program listening there did not complete PostgreSQL's start-up: check PLUNGEPOOL_PORT"),
    SetUp("a token for a role without rds_iam", lambda w: w.aws(), "authentication", "(1) the database user does not exist or lacks the role: GRANT rds_iam TO app", "see docs/authenticate.md"),
    SetUp("a token, and no permission to connect", lambda w: refused_token(w, "28000", "PAM authentication failed for user"), "authentication", "(1) the function's role is not allowed rds-db:connect", "see docs/authenticate.md"),
    SetUp("a proxy that requires IAM, and a password", lambda w: w.proxy()[1] | {"PLUNGEPOOL_AUTH": "password", "PLUNGEPOOL_PASSWORD": PASSWORD}, "authentication", "IAM authentication failed", "(1) the proxy requires IAM (IAMAuth: REQUIRED): set PLUNGEPOOL_AUTH=iam"),
    SetUp("a proxy that requires a password, and a token", lambda w: w.proxy(auth="scram", users={"app": "other"})[1], "authentication", "(1) the proxy does not require IAM (IAMAuth: REQUIRED)", "see docs/authenticate.md"),
    SetUp("a proxy without a secret for the user", lambda w: w.proxy(users={"other": "x"})[1], "authentication", "(1) the proxy has neither a secret for this user nor IAM authentication to the database", "see docs/authenticate.md"),
    SetUp("a proxy, and another region", lambda w: w.proxy()[1] | {"PLUNGEPOOL_REGION": "us-east-2"}, "authentication", "(2) PLUNGEPOOL_HOST is a name of your own (CNAME) or an address, not the endpoint's, or the endpoint is not in us-east-2", "see docs/authenticate.md"),
    SetUp("a password for a cluster with express configuration", lambda w: by_password(w, "28P01", "password authentication failed"), "authentication", "password authentication failed", "a cluster with express configuration accepts IAM tokens only, no passwords: set PLUNGEPOOL_AUTH=iam"),
    SetUp("a cluster with express configuration, without free connections", lambda w: express(w, "53300", "remaining connection slots are reserved"), "authentication", "remaining connection slots are reserved", "or set PLUNGEPOOL_POOL=adaptive (express configuration supports no proxy)"),
    # What is there.
    SetUp("a cluster with express configuration, and PLUNGEPOOL_ENDPOINT=proxy", lambda w: express(w, "28000", "no", PLUNGEPOOL_ENDPOINT="proxy"), "endpoint", "is a cluster with express configuration, which does not support RDS Proxy, but PLUNGEPOOL_ENDPOINT is proxy", "set PLUNGEPOOL_ENDPOINT=direct", "warning"),
    SetUp("a proxy, and PLUNGEPOOL_ENDPOINT=direct", lambda w: w.proxy()[1] | {"PLUNGEPOOL_ENDPOINT": "direct"}, "endpoint", "there is a pooler in between, but PLUNGEPOOL_ENDPOINT is direct", "set PLUNGEPOOL_ENDPOINT=proxy", "warning"),
    SetUp("a database, and PLUNGEPOOL_ENDPOINT=proxy", lambda w: {"PLUNGEPOOL_ENDPOINT": "proxy"}, "endpoint", "this looks like the database itself, but PLUNGEPOOL_ENDPOINT is proxy", "set PLUNGEPOOL_HOST to the proxy's endpoint", "warning"),
    SetUp("a wrong clock", lambda w: with_clock(w, 3600), "server", "this machine's clock is 3600 s ahead of that of the server", "set this machine's clock", "warning"),
    SetUp("a role without a limit", lambda w: {"PLUNGEPOOL_USER": "bare"}, "role", "bare has no connection limit", "ALTER ROLE bare CONNECTION LIMIT n", "warning"),
    SetUp("a superuser", lambda w: {"PLUNGEPOOL_USER": "boss"}, "role", "boss is a superuser", "give the application a role of its own", "warning"),
    SetUp("a role that has no connection left", lambda w: {"PLUNGEPOOL_USER": "last_one"}, "role", "1 of the role's 1 connections are in use", "the next attempt to connect will fail", "warning"),
    SetUp("a role without time-outs", lambda w: {"PLUNGEPOOL_USER": "bare"}, "time-outs", "statement_timeout off", "ALTER ROLE bare SET", "warning"),
]  # fmt: skip


@pytest.mark.parametrize(
    "set_up", [one for one in SET_UPS if "PLUNGEPOOL_" in one.says + one.cure], ids=lambda set_up: set_up.what
)
def test_with_a_prefix_it_is_named_with_it(environ: dict[str, str], world: World, set_up: SetUp) -> None:
    """Where several databases have their variables, cause and cure are those of the one that was asked for."""
    given = {f"A_{name}" if name.startswith("PLUNGEPOOL_") else name: value for name, value in (environ | set_up.changes(world)).items()}  # fmt: skip
    checks = list(check_environment({name: value for name, value in given.items() if value}, prefix="A_"))
    says, cure = (text.replace("PLUNGEPOOL_", "A_PLUNGEPOOL_") for text in (set_up.says, set_up.cure))
    assert [check for check in checks if says in check.found and cure in check.cure], checks
    named = " ".join(f"{check.found} {check.cure}" for check in checks)
    assert named.count("PLUNGEPOOL_") == named.count("A_PLUNGEPOOL_")


@pytest.mark.parametrize("set_up", SET_UPS, ids=lambda set_up: set_up.what)
def test_set_up_leads_to_its_cure(environ: dict[str, str], world: World, set_up: SetUp) -> None:
    """
    Whatever is wrong is said by the step that it belongs to, with its cause and cure first; nothing before it is wrong.
    """
    checks = examine({name: value for name, value in (environ | set_up.changes(world)).items() if value})
    at = next((number for number, check in enumerate(checks) if (check.name, check.state) == (set_up.step, set_up.state) and set_up.says in check.found), None)  # fmt: skip
    assert at is not None, checks
    assert set_up.cure in checks[at].cure
    assert set_up.state == "warning" or checks[-1] is checks[at]
    assert "failed" not in [check.state for check in checks[:at]]


def test_error_of_the_server_in_the_middle_is_a_failure(server: Postgres, environ: dict[str, str]) -> None:
    """What the doctor asks can be refused, too: it says so and stops."""
    server.execute("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_is_in_recovery() FROM PUBLIC")
    try:
        *_, last = examine(environ)
    finally:
        server.execute("GRANT EXECUTE ON FUNCTION pg_catalog.pg_is_in_recovery() TO PUBLIC")
    assert (last.name, last.state, last.cure) == ("server", "failed", "see docs/troubleshoot.md for its SQLSTATE")
    assert last.found.startswith("permission denied for function pg_is_in_recovery")


def test_times_are_in_milliseconds(environ: dict[str, str], world: World) -> None:
    """By a clock on which a second passes between any two looks."""
    ticks = itertools.count(int(time.time()))
    world.patch.setattr("plungepool.checks.time", SimpleNamespace(time=lambda: float(next(ticks))))
    found = {check.name: check.found for check in examine(environ)}
    assert re.fullmatch(
        rf"(127\.0\.0\.1|::1) port {environ['PLUNGEPOOL_PORT']} accepted the connection after 1000 ms", found["TCP"]
    )
    assert found["authentication"] == "localhost accepted the login of 'app', 1000 ms for the first connection"


@pytest.mark.parametrize(("ahead_days", "left", "state"), [(350, 14, "ok"), (351, 13, "warning")])
def test_certificate_is_renewed_two_weeks_before_its_end(
    environ: dict[str, str], world: World, ahead_days: int, left: int, state: str
) -> None:
    """Not earlier."""
    world.shift_clock(ahead_days * 86400)
    (check,) = [check for check in examine(environ) if check.name == "TLS"]
    assert (check.state, check.found.rpartition(", ")[2]) == (state, f"{left} days left")


def test_page_shows_every_set_up() -> None:
    """docs/doctor.md has each set-up of the list above, in order, with its step and how cause and cure begin."""
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| `([a-zA-Z-]+)` \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert rows == [(one.what, one.step, one.says, one.cure) for one in SET_UPS]


def test_trust_on_this_machine_is_said_and_is_no_warning(environ: dict[str, str]) -> None:
    """Where nothing was asked for, the doctor does not say that the password is right."""
    checks = examine(environ | {"PLUNGEPOOL_USER": "trusted", "PLUNGEPOOL_PASSWORD": "wrong"})
    found = {check.name: check for check in checks}["authentication"]
    assert found.state == "ok"
    assert "without asking for the password, which may be wrong" in found.found
    asked = {check.name: check for check in examine(environ)}["authentication"]
    assert "without asking" not in asked.found


def test_a_role_s_search_path_leads_to_nothing_that_others_planted(server: Postgres, environ: dict[str, str]) -> None:
    """Names, operators and types that stand before PostgreSQL's own: the doctor calls and reads none of them."""
    server.execute(PLANTED)
    try:
        checks = examine(environ | {"PLUNGEPOOL_USER": "surrounded"})
    finally:
        server.execute("DROP SCHEMA planted CASCADE; DROP OWNED BY surrounded; DROP ROLE surrounded")
    assert {check.name: check.state for check in checks} == dict.fromkeys(STEPS, "ok") | {"time-outs": "warning"}


def test_cure_can_be_copied_whatever_the_name(server: Postgres, environ: dict[str, str]) -> None:
    """A role whose name needs quotes has them in the statements that mend it."""
    server.execute(f"CREATE ROLE \"my-app\" LOGIN PASSWORD '{PASSWORD}'")
    try:
        checks = examine(environ | {"PLUNGEPOOL_USER": "my-app"})
        for check in checks:
            if check.name == "time-outs":
                server.execute(check.cure)
        again = examine(environ | {"PLUNGEPOOL_USER": "my-app"})
    finally:
        server.execute('DROP ROLE "my-app"')
    assert states(checks)["time-outs"] == "warning"
    assert states(again)["time-outs"] == "ok"
    assert {check.name: check.cure for check in checks}["role"].startswith('ALTER ROLE "my-app" CONNECTION LIMIT')


def test_handler_of_the_page_gives_the_same_answers(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/doctor.md's handler is all that a function with the layer needs: it returns every step, and prints each."""
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    exec(compile(source, "docs/doctor.md", "exec"), names)
    report = names["handler"]({}, None)
    assert (report["ok"], [check["name"] for check in report["checks"]]) == (True, STEPS)
    printed = capsys.readouterr().out
    assert [line.split(" | ")[:2] for line in printed.splitlines()] == [["ok", name] for name in STEPS]
    assert PASSWORD not in printed


def test_every_wrong_setting_is_named() -> None:
    """All problems of the settings are said at once, each as a failure of its own."""
    checks = examine({"PLUNGEPOOL_PORT": "x", "PLUNGEPOOL_POOL_SIZE": "0", "PLUNGEPOOL_HOSTT": "h"})
    assert len(checks) >= 3
    assert {(check.name, check.state) for check in checks} == {("settings", "failed")}


@pytest.mark.parametrize(
    ("user", "warnings", "cure"),
    [
        ("bare", {"role", "time-outs"}, "ALTER ROLE bare SET lock_timeout = '3s'"),
        ("boss", {"role", "time-outs"}, "a role of its own"),
    ],
)
def test_missing_limits_are_warnings(environ: dict[str, str], user: str, warnings: set[str], cure: str) -> None:
    """A role without limits works, and is warned about with the statements that set them."""
    checks = examine(environ | {"PLUNGEPOOL_USER": user})
    assert {check.name for check in checks if check.state == "warning"} == warnings
    assert "failed" not in states(checks).values()
    assert cure in " ".join(check.cure for check in checks)


def test_little_head_room_is_a_warning(server: Postgres, environ: dict[str, str]) -> None:
    """When nearly every connection is taken the doctor says how many are left."""
    import pg8000.native

    assert server.ca_file is not None
    held = [
        pg8000.native.Connection(
            "postgres",
            host=server.host,
            port=server.port,
            password=server.password,
            ssl_context=server._ssl_context,
            timeout=10,
        )
        for _ in range(15)
    ]
    try:
        (room,) = [check for check in examine(environ) if check.name == "head-room"]
    finally:
        for connection in held:
            connection.close()
    assert room.state == "warning"
    assert "of 20 connections are in use, 3 are reserved" in room.found


def test_plain_text_is_ok_to_this_machine_only(postgres: Postgres) -> None:
    """Disabled TLS on loopback is no warning: nothing leaves the machine."""
    checks = examine(
        {
            "PLUNGEPOOL_HOST": postgres.host,
            "PLUNGEPOOL_PORT": str(postgres.port),
            "PLUNGEPOOL_USER": "postgres",
            "PLUNGEPOOL_PASSWORD": PASSWORD,
            "PLUNGEPOOL_TLS": "disable",
        }
    )
    assert states(checks)["TLS"] == "ok"


def test_secret_says_who_and_where(server: Postgres, environ: dict[str, str]) -> None:
    """With everything in a secret the doctor reads it first, and says the user, the host and the database."""
    content = {"username": "app", "password": PASSWORD, "host": server.host, "port": server.port, "dbname": "postgres"}
    with mock_aws():
        client = boto3.client("secretsmanager", region_name="eu-west-1")
        arn = client.create_secret(Name="s", SecretString=json.dumps(content))["ARN"]
        changes = {"PLUNGEPOOL_AUTH": "secret", "PLUNGEPOOL_SECRET_ARN": arn, "PLUNGEPOOL_CA_FILE": str(server.ca_file)}
        checks = examine(changes)
        missing = examine(changes | {"PLUNGEPOOL_SECRET_ARN": "nobodys", "PLUNGEPOOL_REGION": "eu-west-1"})
    assert [check.name for check in checks][:3] == ["settings", "credentials", "name"]
    assert set(states(checks).values()) == {"ok"}
    assert f"user 'app' of database 'postgres' at {server.host}:{server.port}" in checks[1].found
    assert (missing[-1].name, missing[-1].state) == ("credentials", "failed")


@pytest.fixture
def proxy(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RdsProxy, dict[str, str]]]:
    """A proxy that asks for IAM, in front of a real server, and the environment of a function that may sign in."""
    postgres.execute("DROP ROLE IF EXISTS doctors_app")
    postgres.execute("CREATE ROLE doctors_app LOGIN CONNECTION LIMIT 5")
    for name in ("AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    with RdsProxy(postgres, endpoints=["localhost"]) as running:
        (credential,) = running.credentials
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", credential.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credential.secret_access_key)
        monkeypatch.setenv("AWS_SESSION_TOKEN", credential.session_token or "")
        yield (
            running,
            {
                "PLUNGEPOOL_HOST": "localhost",
                "PLUNGEPOOL_PORT": str(running.port),
                "PLUNGEPOOL_USER": "doctors_app",
                "PLUNGEPOOL_AUTH": "iam",
                "PLUNGEPOOL_ENDPOINT": "proxy",
                "PLUNGEPOOL_REGION": running.region,
                "PLUNGEPOOL_CA_FILE": str(running.ca_file),
            },
        )
    postgres.execute("DROP ROLE doctors_app")


def test_iam_through_a_proxy_says_who_signs(proxy: tuple[RdsProxy, dict[str, str]]) -> None:
    """The token's user and access key and the role's ARN are said; neither key, session token nor token is."""
    running, environ = proxy
    (credential,) = running.credentials
    with mock_aws(config={"core": {"mock_credentials": False}}):
        checks = examine(environ)
    found = {check.name: check.found for check in checks}
    assert "failed" not in states(checks).values()
    assert credential.access_key_id in found["credentials"]
    assert "arn:aws:sts:" in found["identity"]
    assert "rds-db:connect" in found["identity"]
    assert "PLUNGEPOOL_PINNING" in found["pinning"]
    said = repr(checks)
    assert credential.secret_access_key not in said
    assert str(credential.session_token) not in said
    assert "X-Amz-Signature" not in said
    assert running.counters.pinned.total() == 0


def test_doubts_come_before_the_causes(environ: dict[str, str], world: World) -> None:
    """What was doubtful on the way, such as credentials that AWS does not take, is the first thing to look at."""
    changes = refused_token(world, "28000", "PAM authentication failed for user")
    world.aws_refuses("ExpiredToken")
    *_, last = examine({name: value for name, value in (environ | changes).items() if value})
    assert last.name == "authentication"
    assert last.cure.startswith("first, correct what the warnings above report: identity: renew them")


@pytest.mark.parametrize(("date_s", "state"), [(0, "ok"), (-3600, "warning"), (3600, "warning")])
def test_clock_is_compared_with_that_of_aws(environ: dict[str, str], world: World, date_s: float, state: str) -> None:
    """Before a token is refused for it: the date of AWS's answer tells whether this machine's clock is right."""
    changes = refused_token(world, "28000", "PAM authentication failed for user")

    def answer(_client: object, _operation: str, _parameters: object) -> dict[str, Any]:
        date = formatdate(time.time() + date_s, usegmt=True)
        return {"Arn": "arn:aws:sts::1:assumed-role/r/f", "ResponseMetadata": {"HTTPHeaders": {"date": date}}}

    world.patch.setattr(botocore.client.BaseClient, "_make_api_call", answer)
    checks = examine({name: value for name, value in (environ | changes).items() if value})
    (identity,) = [check for check in checks if check.name == "identity"]
    assert identity.state == state
    assert ("clock" in identity.found) == (state == "warning")


def test_german_server_leads_to_all_causes(environ: dict[str, str], world: World) -> None:
    """Words only order the causes: where the server speaks another language all of them are named."""
    changes = refused_login(world, "53300", "zu viele Verbindungen")
    *_, last = examine({name: value for name, value in (environ | changes).items() if value})
    assert "(1) all of the server's max_connections are in use" in last.cure
    assert "(2) the role 'app'" in last.cure
    assert "(3) the database 'postgres'" in last.cure


@pytest.mark.parametrize(
    ("host", "endpoint", "region", "warnings"),
    [
        ("p.proxy-abc123.eu-west-1.rds.amazonaws.com", "direct", "eu-west-1", ["endpoint"]),
        ("p.proxy-abc123.eu-west-1.rds.amazonaws.com", "proxy", "eu-west-1", []),
        ("d.abc123.eu-west-1.rds.amazonaws.com", "proxy", "eu-west-1", ["endpoint"]),
        ("d.abc123.eu-west-1.rds.amazonaws.com", "direct", "us-east-1", ["region"]),
        ("d.abc123.rds.cn-north-1.amazonaws.com.cn", "direct", "cn-northwest-1", ["region"]),
        ("abc123.dsql.us-east-1.on.aws", "direct", "us-west-2", ["region"]),
        ("db.example.com", "direct", "eu-west-1", ["region"]),
    ],
)
def test_names_give_wrong_settings_away(
    monkeypatch: pytest.MonkeyPatch, host: str, endpoint: str, region: str, warnings: list[str]
) -> None:
    """A proxy taken for a database, another region and a name of one's own are seen from the host's name."""
    # Names of AWS's do not resolve here, and must not be asked for: this machine's own address stands in.
    monkeypatch.setattr("plungepool.checks._resolve", lambda _way: Check("name", "ok", ""))
    checks = examine(
        {
            "PLUNGEPOOL_HOST": host,
            "PLUNGEPOOL_USER": "u",
            "PLUNGEPOOL_AUTH": "iam",
            "PLUNGEPOOL_REGION": region,
            "PLUNGEPOOL_ENDPOINT": endpoint,
            "PLUNGEPOOL_CONNECT_TIMEOUT_S": "0.1",
        }
    )
    assert [check.name for check in checks if check.state == "warning"] == warnings


def run_command(environ: dict[str, str], *arguments: str) -> Any:
    """Run `plungepool doctor` with these variables."""
    return CliRunner().invoke(application, ["doctor", *arguments], env=environ)


def test_command_prints_each_step_and_exits_by_them(environ: dict[str, str]) -> None:
    """Exit code 0 when nothing failed; 1, the cause and the cure when something did."""
    good = run_command(environ)
    assert good.exit_code == 0, good.output
    assert [line.split()[1] for line in good.output.splitlines()] == STEPS
    bad = run_command(environ | {"PLUNGEPOOL_PASSWORD": "wrong"})
    assert bad.exit_code == 1
    assert "✗ authentication" in bad.output
    assert "→ (1) the password is wrong for 'app'" in bad.output
    assert PASSWORD not in good.output + bad.output


def test_command_gives_json(environ: dict[str, str]) -> None:
    """The same as one document, for scripts."""
    result = run_command(environ, "--json")
    document = json.loads(result.output)
    assert document["ok"] is True
    assert [check["name"] for check in document["checks"]] == STEPS


def test_command_looks_at_one_database_of_several(environ: dict[str, str]) -> None:
    """With --prefix at that one; and what it does not look at, it says."""
    both = environ | {f"A_{name}": value for name, value in environ.items()} | {"A_PLUNGEPOOL_PASSWORD": "wrong"}
    good, bad = run_command(both), run_command(both, "--prefix", "A_")
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "not checked: the database of A_PLUNGEPOOL_…" in good.output
    assert "not checked: the database of PLUNGEPOOL_…" in bad.output
    assert "✗ authentication" in bad.output
    none = run_command(both, "--prefix", "B_")
    assert none.exit_code == 1
    assert "no variable begins with B_PLUNGEPOOL_; the prefixes in use are A_" in none.output


def test_sample_function_gives_the_same_answers(
    environ: dict[str, str], lambda_environment: Callable[..., Any]
) -> None:
    """check_database, run as Lambda runs it, returns the same steps for the same variables."""
    variables = environ | {
        "POWERTOOLS_SERVICE_NAME": "test",
        "POWERTOOLS_TRACE_DISABLED": "true",
        "POWERTOOLS_METRICS_NAMESPACE": "test",
    }
    function = Path(__file__).parents[2] / "functions" / "check_database"
    event = json.loads((function.parents[1] / "events" / "check_database.json").read_text())
    environment = lambda_environment(task=function, handler="app.handler", variables=variables, timeout_s=30)
    result = environment.invoke({})
    assert result.error is None
    assert result.payload["ok"] is True
    assert [check["name"] for check in result.payload["checks"]] == STEPS
    assert PASSWORD not in json.dumps(result.payload)
    asked = environment.invoke(event)  # of a schema that is not there
    assert asked.payload["checks"][-1]["found"] == f"there is no schema {event['schemas'][0]!r}"
    other = environment.invoke(event | {"prefix": "A_"})
    assert other.payload["checks"][0]["found"].startswith("no variable begins with A_PLUNGEPOOL_")
