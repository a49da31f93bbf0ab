"""
What works and what does not, step by step, from a function's settings to a query: each failure with cause and cure.

Needs nothing but the layer, so that the function check_database can hold this very file and look from inside the VPC.
No result holds a password, a token or a key.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from plungepool import CredentialsError, Settings, SettingsError, build_engine, credentials, tls

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

State = Literal["ok", "warning", "failed"]

# The request for TLS, PostgreSQL manual, "Message Formats", SSLRequest.
_TLS_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
_ENDPOINT = re.compile(
    r"\.(?:rds|dsql(?:-[a-z0-9]+)?)\.(?P<a>[a-z]{2}(?:-[a-z]+)+-\d)\.|\.(?P<b>[a-z]{2}(?:-[a-z]+)+-\d)\.rds\."
)
_PROXY = re.compile(r"\.proxy-[a-z0-9]+\.")


@dataclass(frozen=True, slots=True)
class Check:
    """One step: what was looked at, how it is, what was found, and what to do if that is not well."""

    name: str
    state: State
    found: str
    cure: str = ""


class _Failure(Exception):
    """A step after which the others cannot be tried."""

    def __init__(self, name: str, found: str, cure: str) -> None:
        super().__init__(found)
        self.check = Check(name, "failed", found, cure)


def check_environment(environ: Mapping[str, str]) -> Iterator[Check]:
    """
    Check the settings of an environment, and all that follows from them.

    Args: environ: usually `os.environ`. AWS credentials are always those of the process.
    Returns: one Check a step, in order, each as soon as it is known; the last one failed if any did.
    Blocks: for some seconds if something is silent, PLUNGEPOOL_CONNECT_TIMEOUT_S a step. Raises: nothing of its own.
    """
    try:
        settings = Settings.from_env(environ)
    except SettingsError as error:
        for problem in error.problems:
            yield Check("settings", "failed", problem, "correct the variable; the README lists them all")
        return
    yield Check("settings", "ok", f"{settings.auth} to the {settings.endpoint} endpoint, TLS {settings.tls}")
    yield from check_settings(settings)


def check_settings(settings: Settings) -> Iterator[Check]:
    """Check what follows from settings that are right in themselves; see `check_environment`."""
    try:
        yield from _check_settings(settings)
    except _Failure as failure:
        yield failure.check


def _check_settings(settings: Settings) -> Iterator[Check]:
    host, port = settings.host, settings.port
    login = None
    if not host:
        # Only the secret knows where the database is.
        login, check = _login(settings)
        yield check
        host, port = login.host, login.port
    addresses = _resolve(host, port)
    yield Check("name", "ok", f"{host} is {', '.join(addresses)}")
    yield from _endpoint(settings, host)
    yield _reach(settings, host, port)
    yield _secure(settings, host, port)
    if login is None:
        login, check = _login(settings)
        yield check
    if settings.auth in ("iam", "dsql"):
        yield _identity(settings)
    engine = build_engine(settings)
    try:
        started = time.time()
        try:
            connection = engine.connect()
        except (DBAPIError, CredentialsError, SettingsError) as error:
            raise _refusal(login, error) from error
        with connection:
            taken_ms = (time.time() - started) * 1000
            yield Check(
                "authentication", "ok", f"{host} lets {login.user!r} in, {taken_ms:.0f} ms for the first connection"
            )
            try:
                yield from _server(settings, login.user, connection)
            except DBAPIError as error:
                found = str(error.orig)
                raise _Failure("server", found, "see docs/troubleshoot.md for its SQLSTATE") from error
    finally:
        engine.dispose()


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _Failure(
            "name",
            f"{host} cannot be resolved: {error.strerror}",
            "copy the endpoint's name into PLUNGEPOOL_HOST; for a private name the VPC needs DNS support and DNS host names",
        ) from error
    return sorted({str(address[0]) for *_, address in found})


def _endpoint(settings: Settings, host: str) -> Iterator[Check]:
    """Say what the host's name alone gives away: proxy or direct, another region, a name of one's own."""
    match = _ENDPOINT.search(host.lower())
    region = match and (match["a"] or match["b"])
    is_proxy = bool(_PROXY.search(host.lower()))
    if is_proxy and settings.endpoint == "direct":
        yield Check("endpoint", "warning", f"{host} is an RDS Proxy, and PLUNGEPOOL_ENDPOINT says direct", "set PLUNGEPOOL_ENDPOINT=proxy, so that nothing is sent that pins")  # fmt: skip
    elif region and not is_proxy and settings.endpoint == "proxy":
        yield Check("endpoint", "warning", f"{host} is a database's own endpoint, and PLUNGEPOOL_ENDPOINT says proxy", "name the proxy's endpoint in PLUNGEPOOL_HOST, or set PLUNGEPOOL_ENDPOINT=direct")  # fmt: skip
    else:
        kind = "a transaction pooler" if settings.endpoint == "proxy" else "the database itself"
        yield Check("endpoint", "ok", f"{host} is taken for {kind} (PLUNGEPOOL_ENDPOINT={settings.endpoint})")
    if region and settings.region and region != settings.region:
        cure = f"set PLUNGEPOOL_REGION={region}: tokens are signed for a region, and each has certificate authorities of its own"
        yield Check("region", "warning", f"{host} is in {region}, and the settings say {settings.region}", cure)
    elif not region and settings.auth in ("iam", "dsql") and not tls.is_loopback(host):
        cure = "set PLUNGEPOOL_HOST to the name that AWS gives the endpoint: a token for another name or an address is refused"
        yield Check("region", "warning", f"{host} is no name that AWS gives", cure)


def _reach(settings: Settings, host: str, port: int) -> Check:
    started = time.time()
    try:
        with socket.create_connection((host, port), timeout=settings.connect_timeout_s) as sock:
            peer = sock.getpeername()[0]
    except TimeoutError as error:
        raise _Failure(
            "TCP",
            f"{host}:{port} did not answer within {settings.connect_timeout_s:g} s",
            "let the function's security group into the database's (inbound, this port); check that both are in the same VPC "
            "or have a route, and that no network ACL is in the way",
        ) from error
    except OSError as error:
        raise _Failure(
            "TCP",
            f"{host}:{port} cannot be reached: {error.strerror or error}",
            "check PLUNGEPOOL_PORT, and that the server is running and listens on this address",
        ) from error
    return Check("TCP", "ok", f"{peer} port {port} answers after {(time.time() - started) * 1000:.0f} ms")


def _secure(settings: Settings, host: str, port: int) -> Check:
    if settings.tls == "disable":
        if tls.is_loopback(host):
            return Check("TLS", "ok", "disabled, to this machine only")
        cure = "remove PLUNGEPOOL_TLS; name an authority of your own in PLUNGEPOOL_CA_FILE"
        return Check("TLS", "warning", f"disabled: passwords and rows travel to {host} in plain text", cure)
    try:
        context = tls.client_context(settings)
    except SettingsError as error:
        raise _Failure("TLS", str(error), "correct PLUNGEPOOL_CA_FILE, or leave it unset") from error
    try:
        with socket.create_connection((host, port), timeout=settings.connect_timeout_s) as sock:
            sock.sendall(_TLS_REQUEST)
            answer = sock.recv(1)
            if answer != b"S" or context is None:
                raise _Failure(
                    "TLS",
                    f"{host}:{port} does not offer TLS (it answers {answer!r})",
                    "turn TLS on at the server (RDS has it on), or check that PostgreSQL listens on this port",
                )
            with context.wrap_socket(sock, server_hostname=host) as secured:
                certificate, version = secured.getpeercert() or {}, secured.version()
    except ssl.SSLError as error:
        if tls.offer_every_curve(error, settings):
            return _secure(settings, host, port)
        raise _Failure("TLS", tls.explain(error, host), "until this is mended nothing secret is sent") from error
    except OSError as error:
        raise _Failure(
            "TLS", f"{host}:{port} ended the handshake: {error}", "check that PostgreSQL listens there"
        ) from error
    until = ssl.cert_time_to_seconds(str(certificate.get("notAfter")))
    days = int((until - time.time()) / 86400)
    found = f"{version}, {host} verified, issued by {_common_name(certificate.get('issuer'))}, {days} days left"
    if days < 14:
        return Check("TLS", "warning", found, "RDS renews its certificates by itself; renew this one if it is your own")
    return Check("TLS", "ok", found)


def _common_name(name: Any) -> str:
    parts = {key: value for pairs in name or () for key, value in pairs}
    return str(parts.get("commonName") or parts.get("organizationName") or "an unnamed authority")


def _login(settings: Settings) -> tuple[credentials.Login, Check]:
    """Obtain what the source of credentials gives, without the database; say who, never what."""
    try:
        login = credentials.source(settings).connect(lambda login: login)
    except (CredentialsError, SettingsError) as error:
        raise _Failure("credentials", str(error), "see docs/authenticate.md") from error
    who = repr(login.user)
    if settings.auth == "secret":
        found = f"the secret names user {who} of database {login.database!r} at {login.host}:{login.port}"
    elif settings.auth == "password":
        found = f"user {who} with the password of PLUNGEPOOL_PASSWORD"
    else:
        # The identifier of a key is no secret: CloudTrail logs it.
        key = re.search(r"X-Amz-Credential=(\w+)", login.password)
        found = (
            f"a token for user {who} in {settings.region}, signed with the access key {key[1] if key else 'unknown'}"
        )
    return login, Check("credentials", "ok", found)


def _identity(settings: Settings) -> Check:
    """Ask AWS whose credentials sign: the role that a policy must allow to connect."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return Check("identity", "warning", "not asked: boto3 is not installed here", "")
    action = "dsql:DbConnect" if settings.auth == "dsql" else "rds-db:connect"
    config = Config(region_name=settings.region, connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1})
    try:
        arn = boto3.session.Session().client("sts", config=config).get_caller_identity()["Arn"]
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        return Check("identity", "warning", f"AWS does not know these credentials ({code})", "renew them: aws sso login, or the role")  # fmt: skip
    except BotoCoreError as error:
        return Check("identity", "warning", f"AWS STS cannot be asked from here ({type(error).__name__})", f"no harm: signing needs no network; {action} is what the function's role needs")  # fmt: skip
    return Check("identity", "ok", f"{arn} signs; its policies must allow {action}")


def _refusal(login: credentials.Login, error: Exception) -> _Failure:
    """Say why a connect failed whose host, port and TLS are well."""
    if isinstance(error, (CredentialsError, SettingsError)):
        return _Failure("authentication", str(error), "see docs/authenticate.md")
    original = getattr(error, "orig", None) or error
    sqlstate = getattr(original, "sqlstate", None)
    cures = {
        "28P01": f"correct the password of {login.user!r}: nothing else is wrong",
        "28000": f"check that {login.user!r} exists and has LOGIN, and that pg_hba.conf lets this address in with TLS",
        "3D000": f"create the database {login.database!r}, or correct PLUNGEPOOL_DATABASE",
        "42501": f"GRANT CONNECT ON DATABASE {login.database} TO {login.user}",
        "53300": "the server or the role has no connection left: see docs/troubleshoot.md, and set a limit for each role",
        "57P03": "the server is starting or stopping: try again in a minute",
    }
    return _Failure("authentication", str(original), cures.get(sqlstate or "", "see docs/troubleshoot.md"))


_SERVER = text("""
    SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS replica,
           extract(epoch FROM clock_timestamp())::float8 AS now
""")
_ROLE = text("""
    SELECT rolconnlimit AS connection_limit, rolsuper AS superuser,
           (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user) AS used
    FROM pg_roles WHERE rolname = current_user
""")
_TIMEOUTS = text("""
    SELECT name, setting::bigint AS ms FROM pg_settings
    WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout')
    ORDER BY name
""")
# Every role sees how many connections a database has; not every role sees whose they are.
_HEAD_ROOM = text("""
    SELECT (SELECT setting::int FROM pg_settings WHERE name = 'max_connections') AS most,
           (SELECT coalesce(sum(setting::int), 0) FROM pg_settings
            WHERE name IN ('superuser_reserved_connections', 'reserved_connections', 'rds.rds_superuser_reserved_connections')
           ) AS reserved,
           (SELECT coalesce(sum(numbackends), 0) FROM pg_stat_database) AS used
""")


def _server(settings: Settings, user: str, connection: Connection) -> Iterator[Check]:
    if settings.auth == "dsql":
        yield Check("server", "ok", str(connection.execute(text("SELECT version()")).scalar_one()))
        return
    server = connection.execute(_SERVER).one()
    ahead_s = time.time() - server.now
    found = f"PostgreSQL {server.version}{', a read-only replica' if server.replica else ''}"
    if abs(ahead_s) > 60:
        cure = "set this machine's clock: tokens and certificates depend on it"
        yield Check(
            "server",
            "warning",
            f"{found}; its clock is {abs(ahead_s):.0f} s {'behind' if ahead_s > 0 else 'ahead'}",
            cure,
        )
    else:
        yield Check("server", "ok", found)
    role = connection.execute(_ROLE).one()
    yield _role(user, role)
    yield _timeouts(user, {row.name: row.ms for row in connection.execute(_TIMEOUTS)})
    room = connection.execute(_HEAD_ROOM).one()
    yield _head_room(settings, int(room.most), int(room.reserved), int(room.used))
    connection.commit()
    if settings.endpoint == "proxy":
        yield _pinning(settings)


def _role(user: str, role: Any) -> Check:
    if role.superuser:
        cure = "give the application a role of its own (infrastructure/roles.sql): a superuser may use the reserved connections"
        return Check("role", "warning", f"{user} is a superuser", cure)
    if role.connection_limit < 0:
        return Check("role", "warning", f"{user} has no connection limit", f"ALTER ROLE {user} CONNECTION LIMIT n, so that it leaves room for others")  # fmt: skip
    found = f"{role.used} of the role's {role.connection_limit} connections are in use"
    if role.used >= role.connection_limit:
        return Check(
            "role", "warning", found, "the next connect fails: lower the functions' concurrency or raise the limit"
        )
    return Check("role", "ok", found)


def _timeouts(user: str, timeouts: Mapping[str, int]) -> Check:
    missing = [name for name, ms in timeouts.items() if not ms]
    found = ", ".join(f"{name} {ms / 1000:g} s" if ms else f"{name} off" for name, ms in timeouts.items())
    if missing:
        cure = "; ".join(f"ALTER ROLE {user} SET {name} = '{_ADVICE[name]}'" for name in missing)
        return Check("time-outs", "warning", found, cure)
    return Check("time-outs", "ok", found)


# What infrastructure/roles.sql sets.
_ADVICE = {
    "statement_timeout": "10s",
    "lock_timeout": "3s",
    "idle_in_transaction_session_timeout": "10s",
    "idle_session_timeout": "15min",
}


def _head_room(settings: Settings, most: int, reserved: int, used: int) -> Check:
    free = most - reserved - used
    found = f"{used} of {most} connections are in use, {reserved} are reserved, {max(free, 0)} are free"
    if settings.endpoint == "proxy":
        found += " (the database behind the proxy)"
    if free < max(settings.pool_size, most // 10):
        return Check(
            "head-room", "warning", found, "close what is idle, lower concurrency x pool size, or put a proxy between"
        )
    return Check("head-room", "ok", found)


def _pinning(settings: Settings) -> Check:
    if settings.pinning == "refuse":
        return Check("pinning", "ok", "statements that would pin the proxy are refused (PLUNGEPOOL_PINNING)")
    return Check(
        "pinning", "ok", "statements that would pin the proxy are logged; PLUNGEPOOL_PINNING=refuse stops them in tests"
    )


def as_document(checks: list[Check]) -> dict[str, Any]:
    """
    Return the checks as JSON can hold them.

    Shape: {"ok": bool, "checks": [{"name", "state", "found", "cure"}, ...]}; ok where nothing failed.
    """
    return {
        "ok": all(check.state != "failed" for check in checks),
        "checks": [{name: getattr(check, name) for name in ("name", "state", "found", "cure")} for check in checks],
    }


def check_process() -> dict[str, Any]:
    """Check this process's own environment; see `check_environment` and `as_document`."""
    return as_document(list(check_environment(os.environ)))
