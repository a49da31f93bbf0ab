"""
What works and what does not, step by step, from a function's settings to a query: each failure with cause and cure.

    from plungepool import checks

The package itself never imports it. `plungepool doctor` and the sample function check_database say what it says.
No result holds a password, a token or a key.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import socket
import ssl
import time
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from . import connect, credentials, tls
from .engine import build_engine
from .errors import CredentialsError, SettingsError
from .names import PREFIX, split_address
from .settings import Settings, prefixes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from sqlalchemy import Connection

State = Literal["ok", "warning", "failed"]

# The request for TLS, PostgreSQL manual, "Message Formats", SSLRequest.
_TLS_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
_ENDPOINT = re.compile(
    r"\.(?:rds|dsql(?:-[a-z0-9]+)?)\.(?P<a>[a-z]{2}(?:-[a-z]+)+-\d)\.|\.(?P<b>[a-z]{2}(?:-[a-z]+)+-\d)\.rds\."
)
# The endpoints of an Aurora cluster begin with its name: Aurora User Guide, "Aurora endpoint connections".
_CLUSTER = re.compile(
    r"(?P<name>[a-z][a-z0-9-]*)\.cluster-(?:ro-)?[a-z0-9]+\.(?P<region>[a-z]{2}(?:-[a-z]+)+-\d)\.rds\.amazonaws\.com"
)
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_PROXY = re.compile(r"\.proxy-[a-z0-9]+\.")


@dataclass(frozen=True, slots=True)
class Check:
    """One step: what was checked, its state, what was found, and what to do about it."""

    name: str
    state: State
    found: str
    cure: str = ""


class _Failure(Exception):
    """A step after which the others cannot be tried."""

    def __init__(self, name: str, found: str, cure: str) -> None:
        super().__init__(found)
        self.check = Check(name, "failed", found, cure)


def check_environment(
    environ: Mapping[str, str], *, prefix: str = "", rls: bool = False, schemas: Collection[str] = ()
) -> Iterator[Check]:
    """
    Check the settings of an environment, and everything that follows from them.

    Args: environ: usually `os.environ`. AWS credentials are always those of the process. prefix: of the variables, for
        one database of several; as `Settings.from_env` takes it. rls: also check whether row-level security protects
        the rows from the role. schemas: which schemas to check; none means all in which the role may use a table.
    Returns: one Check for each step, in order, each as soon as it is known; a step that failed is the last one, except
        for those of row-level security, which are independent of each other.
    Blocks: for some seconds if something is silent, PLUNGEPOOL_CONNECT_TIMEOUT_S a step. Raises: nothing of its own.
    """
    try:
        settings = Settings.from_env(environ, prefix=prefix)
    except SettingsError as error:
        for problem in error.problems:
            yield Check("settings", "failed", problem, "correct the variable; docs/reference/settings.md lists all")
        return
    found = f"{settings.auth} to the {settings.endpoint} endpoint, TLS {settings.tls}"
    others = ", ".join(f"{other}{PREFIX}…" for other in prefixes(environ) if other != prefix)
    yield Check("settings", "ok", f"{found}; not checked: the database of {others}" if others else found)
    yield from check_settings(settings, rls=rls, schemas=schemas)


def check_settings(settings: Settings, *, rls: bool = False, schemas: Collection[str] = ()) -> Iterator[Check]:
    """Check what follows from settings that are right in themselves; see `check_environment`."""
    doubts: list[Check] = []
    # A name by itself is a collection of letters.
    chosen = ((schemas,) if isinstance(schemas, str) else tuple(schemas)) if rls else None
    try:
        for check in _check_settings(settings, doubts, chosen):
            if check.state == "warning":
                doubts.append(check)
            yield check
    except _Failure as failure:
        yield failure.check


@dataclass(frozen=True, slots=True)
class _Way:
    """Whom the certificate and the token are for, and where that is dialled."""

    host: str
    port: int
    address: str
    address_port: int
    settings: Settings

    def __str__(self) -> str:
        to = f"{self.host}:{self.port}"
        dialled = f"{self.address}:{self.address_port}"
        return to if to == dialled else f"{dialled} ({self.settings.variable('address')}, for {to})"


def _check_settings(settings: Settings, doubts: list[Check], schemas: tuple[str, ...] | None) -> Iterator[Check]:
    host, port = settings.host, settings.port
    login = None
    if not host:
        # Only the secret knows where the database is.
        login, check = _login(settings)
        yield check
        host, port = login.host, login.port
    way = _Way(host, port, *(split_address(settings.address, port) if settings.address else (host, port)), settings)
    has_gateway = functools.cache(functools.partial(_has_gateway, host))
    yield _resolve(way)
    yield from _endpoint(settings, host, has_gateway)
    yield _reach(settings, way)
    yield _secure(settings, way)
    if login is None:
        login, check = _login(settings)
        yield check
    if settings.auth in ("iam", "dsql"):
        yield _identity(settings)
    # What is asked here touches no row of a tenant's.
    engine = build_engine(replace(settings, require_settings=()))
    try:
        started = time.time()
        try:
            connection = engine.connect()
        except (DBAPIError, CredentialsError, SettingsError) as error:
            raise _refusal(settings, login, error, doubts, has_gateway) from error
        with connection:
            yield _let_in(settings, way, login, connection, (time.time() - started) * 1000)
            try:
                yield from _server(settings, login.user, connection, has_gateway)
                if schemas is not None:
                    yield from _row_security(settings, connection, schemas)
            except DBAPIError as error:
                found = str(error.orig)
                raise _Failure("server", found, "see docs/troubleshoot.md for its SQLSTATE") from error
    finally:
        engine.dispose()


def _resolve(way: _Way) -> Check:
    by_name = way.address == way.host
    given = way.settings.variable("host" if by_name else "address")
    try:
        found = socket.getaddrinfo(way.address, way.address_port, type=socket.SOCK_STREAM)
    except OSError as error:
        cure = (
            f"copy the endpoint's name into {given}; to resolve a private name, the VPC needs DNS support and DNS "
            "hostnames enabled"
            if by_name
            else f"set {given} to the local end of the tunnel, such as localhost:15432"
        )
        raise _Failure("name", f"{way.address} ({given}) cannot be resolved: {error.strerror}", cure) from error
    where = ", ".join(sorted({str(address[0]) for *_, address in found}))
    if by_name and way.port == way.address_port:
        return Check("name", "ok", f"{way.host} resolves to {where}")
    # The name itself is not asked for: behind a tunnel it need not resolve here.
    return Check(
        "name",
        "ok",
        f"{way.address} resolves to {where}, used with port {way.address_port}; the certificate and token are for "
        f"{way.host}:{way.port}",
    )


def _unasked() -> bool:
    return False


def _has_gateway(host: str) -> bool:
    """
    Ask RDS whether the host is a cluster with an internet access gateway, as Aurora's express configuration makes it.

    No name and no certificate tells that for sure. Asked where a step is not well, since most roles may not ask; where
    there is no answer, or one of another cluster of this name, nothing is claimed.
    """
    named = _CLUSTER.fullmatch(host.lower())
    if named is None:
        return False
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return False
    config = Config(region_name=named["region"], connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1})
    try:
        client = boto3.session.Session().client("rds", config=config)
        clusters = client.describe_db_clusters(DBClusterIdentifier=named["name"])["DBClusters"]
    except (BotoCoreError, ClientError):
        return False
    return any(
        cluster.get("InternetAccessGatewayEnabled") is True
        and host.lower() in (cluster.get("Endpoint"), cluster.get("ReaderEndpoint"))
        for cluster in clusters
    )


def _endpoint(settings: Settings, host: str, has_gateway: Callable[[], bool] = _unasked) -> Iterator[Check]:
    """Say what the host's name gives away: proxy or direct, another region, a name of one's own."""
    match = _ENDPOINT.search(host.lower())
    region = match and (match["a"] or match["b"])
    is_proxy = bool(_PROXY.search(host.lower()))
    variable = settings.variable
    if is_proxy and settings.endpoint == "direct":
        yield Check(
            "endpoint",
            "warning",
            f"{host} is an RDS Proxy, but {variable('endpoint')} is direct",
            f"set {variable('endpoint')}=proxy, so that nothing is sent that causes pinning",
        )
    elif settings.endpoint == "proxy" and not is_proxy and region and has_gateway():
        yield Check(
            "endpoint",
            "warning",
            f"{host} is a cluster with express configuration, which does not support RDS Proxy, but "
            f"{variable('endpoint')} is proxy",
            f"set {variable('endpoint')}=direct; {variable('pool')}=adaptive limits the connections of the fleet",
        )
    elif region and not is_proxy and settings.endpoint == "proxy":
        yield Check(
            "endpoint",
            "warning",
            f"{host} is a database endpoint, but {variable('endpoint')} is proxy",
            f"set {variable('host')} to the proxy's endpoint, or set {variable('endpoint')}=direct",
        )
    else:
        kind = "a transaction pooler" if settings.endpoint == "proxy" else "the database itself"
        yield Check("endpoint", "ok", f"{host} is treated as {kind} ({variable('endpoint')}={settings.endpoint})")
    if region and settings.region and region != settings.region:
        cure = (
            f"set {variable('region')}={region}: tokens are signed for a Region, and each Region has its own "
            "certificate authorities"
        )
        yield Check("region", "warning", f"{host} is in {region}, but the settings name {settings.region}", cure)
    elif not region and settings.auth in ("iam", "dsql") and not tls.is_loopback(host):
        cure = (
            f"set {variable('host')} to the endpoint name that AWS assigned: a token for any other name or for an "
            "address is refused"
        )
        yield Check("region", "warning", f"{host} is not an endpoint name that AWS assigns", cure)


def _reach(settings: Settings, way: _Way) -> Check:
    started = time.time()
    try:
        with socket.create_connection((way.address, way.address_port), timeout=settings.connect_timeout_s) as sock:
            peer = sock.getpeername()[0]
    except TimeoutError as error:
        cure = (
            "the address is public: a function in a VPC can reach it only through a NAT gateway; the function's "
            "security group must allow outbound traffic to this port, and the database's, if it has one (Aurora's "
            "express configuration has none), must allow inbound traffic"
            if _is_public(way)
            else "allow inbound traffic on this port from the function's security group in the database's; check that "
            "both are in the same VPC or have a route, and that no network ACL blocks the traffic"
        )
        raise _Failure("TCP", f"{way} did not answer within {settings.connect_timeout_s:g} s", cure) from error
    except ConnectionRefusedError as error:
        cure = (
            f"check that the tunnel is up, and {settings.variable('address')}"
            if settings.address
            else f"check {settings.variable('port')}, and that the server is running and listening on this address"
        )
        raise _Failure(
            "TCP", f"{way} cannot be reached: nothing is listening there (connection refused)", cure
        ) from error
    except OSError as error:
        raise _Failure(
            "TCP",
            f"{way} cannot be reached: {error.strerror or error}",
            "there is no route from this machine: check the subnet's routes (or the VPN), and that this machine has "
            "an address of the same family (IPv4 or IPv6)",
        ) from error
    return Check(
        "TCP",
        "ok",
        f"{peer} port {way.address_port} accepted the connection after {(time.time() - started) * 1000:.0f} ms",
    )


def _is_public(way: _Way) -> bool:
    found = socket.getaddrinfo(way.address, way.address_port, type=socket.SOCK_STREAM)
    return any(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found)


def _secure(settings: Settings, way: _Way) -> Check:
    if settings.tls == "disable":
        if tls.is_loopback(way.host):
            return Check("TLS", "ok", "disabled; the server is on this machine")
        cure = (
            f"remove {settings.variable('tls')}; if the certificate is from an authority of your own, name its file "
            f"in {settings.variable('ca_file')}"
        )
        return Check("TLS", "warning", f"disabled: passwords and rows travel to {way.host} in plain text", cure)
    made: list[ssl.SSLContext] = []

    def shake_hands(context: ssl.SSLContext | None) -> tuple[dict[str, Any], str | None]:
        if context is None:
            raise TypeError("asked for with TLS only")
        made.append(context)
        with socket.create_connection((way.address, way.address_port), timeout=settings.connect_timeout_s) as sock:
            _ask_for_tls(sock, way)
            with context.wrap_socket(sock, server_hostname=way.host) as secured:
                return secured.getpeercert() or {}, secured.version()

    try:
        try:
            certificate, version = shake_hands(tls.client_context(settings))
        except ssl.SSLError as error:
            if not tls.may_want_another_curve(error):
                raise
            certificate, version = shake_hands(tls.client_context(settings, every_curve=True))
    except SettingsError as error:
        raise _Failure("TLS", str(error), f"correct {settings.variable('ca_file')}, or leave it unset") from error
    except ssl.SSLError as error:
        cure = "until this is corrected, no password, token or statement is sent"
        raise _Failure("TLS", tls.explain(error, way.host, made[-1]), cure) from error
    except TimeoutError as error:
        raise _Failure(
            "TLS",
            f"{way} stopped responding during the TLS handshake",
            "check the server's log, and any proxy or load balancer in between",
        ) from error
    except OSError as error:
        raise _Failure(
            "TLS",
            f"{way} closed the connection during the TLS handshake: {error.strerror or error}",
            "check the server's log, and any proxy or load balancer in between",
        ) from error
    until = ssl.cert_time_to_seconds(str(certificate.get("notAfter")))
    days = int((until - time.time()) / 86400)
    found = f"{version}, {way.host} verified, issued by {_common_name(certificate.get('issuer'))}, {days} days left"
    if days < 14:
        return Check(
            "TLS", "warning", found, "RDS renews its certificates automatically; renew this one if it is your own"
        )
    return Check("TLS", "ok", found)


def _ask_for_tls(sock: socket.socket, way: _Way) -> None:
    behind = (
        "the tunnel's far end, or a load balancer's target, may be down"
        if way.address != way.host
        else "a load balancer's target may be down"
    )
    try:
        sock.sendall(_TLS_REQUEST)
        answer = sock.recv(1)
        # A server that is full may refuse before TLS begins, and says why in plain text.
        if answer == b"E":
            answer += sock.recv(1000)
    except TimeoutError as error:
        raise _Failure(
            "TLS",
            f"{way} accepts connections but never answers",
            f"check that PostgreSQL, not another program, is listening there, and that it is not suspended; {behind}",
        ) from error
    except OSError as error:
        raise _Failure(
            "TLS",
            f"{way} accepts connections but drops them: {error.strerror or error}",
            f"{behind}; or something other than PostgreSQL is listening there",
        ) from error
    if answer == b"S":
        return
    if not answer:
        raise _Failure(
            "TLS",
            f"{way} accepts connections but closes them without an answer",
            f"{behind}; or something other than PostgreSQL is listening there",
        )
    if answer == b"N":
        raise _Failure(
            "TLS",
            f"{way} is PostgreSQL, but does not offer TLS",
            "enable TLS in the server (ssl = on; RDS always has it on)",
        )
    if answer[:1] == b"E" and (found := re.search(rb"(?:\0|^)M([^\0]+)", answer[5:])):
        raise _Failure(
            "TLS",
            f"{way} refused the connection before TLS: {found[1].decode(errors='replace')}",
            "the server is full, starting up or shutting down: try again, and see docs/troubleshoot.md",
        )
    raise _Failure(
        "TLS",
        f"{way} does not speak PostgreSQL's protocol (it answered {answer[:1]!r} to the TLS request)",
        f"check {way.settings.variable('port')}: another program is listening there",
    )


def _common_name(name: Any) -> str:
    parts = {key: value for pairs in name or () for key, value in pairs}
    return str(parts.get("commonName") or parts.get("organizationName") or "an unnamed authority")


def _login(settings: Settings) -> tuple[credentials.Login, Check]:
    """Obtain what the source of credentials gives, without the database; say who, never what."""
    try:
        login = next(connect.source(settings).logins())
    except (CredentialsError, SettingsError) as error:
        raise _Failure("credentials", str(error), "see docs/authenticate.md") from error
    who = repr(login.user)
    if settings.auth == "secret":
        found = f"the secret names user {who} of database {login.database!r} at {login.host}:{login.port}"
    elif settings.auth == "password":
        found = f"user {who} with the password of {settings.variable('password')}"
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
        return Check("identity", "warning", "not checked: boto3 is not installed here", "")
    action = "dsql:DbConnect" if settings.auth == "dsql" else "rds-db:connect"
    config = Config(region_name=settings.region, connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1})
    try:
        answer = boto3.session.Session().client("sts", config=config).get_caller_identity()
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        return Check(
            "identity",
            "warning",
            f"AWS does not accept these credentials ({code})",
            "renew them (aws sso login, or assume the role again), and check this machine's clock",
        )
    except BotoCoreError as error:
        return Check(
            "identity",
            "warning",
            f"AWS STS cannot be reached from here ({type(error).__name__})",
            f"this does no harm: signing needs no network; the function's role needs {action}",
        )
    found = f"tokens are signed as {answer['Arn']}; its policies must allow {action}"
    ahead_s = _ahead_of(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))
    if abs(ahead_s) > _CLOCK_SKEW_S:
        return Check("identity", "warning", f"{found}; {_skew('AWS', ahead_s)}", _CLOCK)
    return Check("identity", "ok", found)


_CLOCK_SKEW_S = 60
_CLOCK = "set this machine's clock: tokens and certificates depend on it"


def _ahead_of(date: str | None) -> float:
    """Return by how much this machine's clock is ahead of the one that wrote an HTTP date, in seconds."""
    try:
        return time.time() - parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return 0.0


def _skew(whose: str, ahead_s: float) -> str:
    return f"this machine's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} that of {whose}"


# What a server says of itself and not of who asks: full, starting, no such database.
_OF_THE_SERVER = ("53300", "57P03", "3D000")


def _refusal(
    settings: Settings,
    login: credentials.Login,
    error: Exception,
    doubts: list[Check],
    has_gateway: Callable[[], bool] = _unasked,
) -> _Failure:
    """Say why a connect failed whose host, port and TLS are well; what was doubtful on the way comes first."""
    if isinstance(error, (CredentialsError, SettingsError)):
        earlier = [
            f"{check.name}: {check.cure}" for check in doubts if check.name in ("region", "identity", "endpoint")
        ]
        cure = (
            f"first, correct what the warnings above report: {'; '.join(earlier)}"
            if earlier
            else "see docs/authenticate.md"
        )
        return _Failure("authentication", str(error), cure)
    original = getattr(error, "orig", None) or error
    said = str(original)
    sqlstate = getattr(original, "sqlstate", None)
    if settings.auth in ("password", "secret") and sqlstate not in _OF_THE_SERVER and has_gateway():
        cure = (
            "a cluster with express configuration accepts IAM tokens only, no passwords: set "
            f"{settings.variable('auth')}=iam, for a role that has rds_iam"
        )
    elif sqlstate == "28P01":
        cure = _wrong_password(settings, login, said)
    elif sqlstate == "28000":
        cure = _not_let_in(settings, login, said)
    elif sqlstate == "53300":
        cure = _full(settings, login, said, has_gateway)
    elif sqlstate is None:
        cure = (
            f"the program listening there did not complete PostgreSQL's start-up: check {settings.variable('port')} "
            "and the server's log"
        )
    else:
        cure = {
            "3D000": f"create the database {login.database!r}, or correct {settings.variable('database')}",
            "42501": f"GRANT CONNECT ON DATABASE {_quoted(login.database)} TO {_quoted(login.user)}",
            "57P03": "the server is starting up or shutting down: try again in a minute",
        }.get(sqlstate, "see docs/troubleshoot.md for its SQLSTATE")
    return _Failure("authentication", said, cure)


# The server says less than it knows, on purpose: of a wrong password and of a role that does not exist it says the
# same. What else it says is in the language of its lc_messages; so words only order the causes, and all of them are
# named.


def _quoted(name: str) -> str:
    """Return a name as SQL takes it, so that a cure can be copied."""
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def _in_order(*causes: str) -> str:
    return "; ".join(f"({number}) {cause}" for number, cause in enumerate(causes, 1)) if len(causes) > 1 else causes[0]


def _wrong_password(settings: Settings, login: credentials.Login, said: str) -> str:
    user = login.user
    copied = "the password begins or ends with a space or a line break, probably copied along with it: remove it"
    wrong = f"the password is wrong for {user!r}: correct it"
    missing = (
        f"the role {user!r} does not exist, has no password, or is past its VALID UNTIL: the server reports all of "
        "these alike"
    )
    iam = (
        "the role is a member of rds_iam (RDS), for which every password is refused: set "
        f"{settings.variable('auth')}=iam"
    )
    causes = [copied] if login.password != login.password.strip() else []
    if settings.endpoint == "proxy":
        proxy_iam = f"the proxy requires IAM (IAMAuth: REQUIRED): set {settings.variable('auth')}=iam"
        secret = f"the proxy has no secret for {user!r}, or one with a different password"
        causes += [proxy_iam, wrong, secret] if "IAM" in said else [wrong, secret, proxy_iam]
    else:
        causes += [wrong, missing, iam]
    return _in_order(*causes)


def _not_let_in(settings: Settings, login: credentials.Login, said: str) -> str:
    user = login.user
    role = f"CREATE ROLE {_quoted(user)} LOGIN, or correct {settings.variable('user')}"
    may = f"ALTER ROLE {_quoted(user)} LOGIN"
    entry = f"allow {user!r} to connect to {login.database!r} from this address in pg_hba.conf"
    plain = f"the server requires TLS: remove {settings.variable('tls')}=disable"
    iam = (
        "the role is a member of rds_iam (RDS), for which every password is refused: set "
        f"{settings.variable('auth')}=iam"
    )
    causes = [role, may, entry, iam]
    first = (
        iam
        if "PAM" in said
        else role
        if "does not exist" in said
        else may
        if "not permitted to log in" in said
        else entry
        if "pg_hba.conf" in said
        else None
    )
    if settings.tls == "disable":
        causes.append(plain)
        # PostgreSQL 14 and newer say "no encryption", older ones "SSL off", RDS Proxy "requires TLS".
        if "no encryption" in said or "SSL" in said or "TLS" in said:
            first = plain
    return first or _in_order(*causes)


def _instead(settings: Settings, has_gateway: Callable[[], bool], proxy: str) -> str:
    """Return what else than fewer connections helps a server that is full."""
    if has_gateway():
        return f"set {settings.variable('pool')}=adaptive (express configuration supports no proxy)"
    return proxy


def _full(settings: Settings, login: credentials.Login, said: str, has_gateway: Callable[[], bool] = _unasked) -> str:
    functions = f"reserved concurrency x {settings.variable('pool_size')}, summed over the functions"
    role = (
        f"the role {login.user!r} already has as many connections as its CONNECTION LIMIT allows: lower {functions}, "
        "to less than the limit, or raise the limit, which is the only remedy if it is 0"
    )
    database = (
        f"the database {login.database!r} has reached its own CONNECTION LIMIT: raise it (if it is 0, nothing else "
        f"helps), or lower {functions}"
    )
    if "for role" in said:
        return role
    if "for database" in said:
        return database
    server = (
        f"all of the server's max_connections are in use, except for the reserved ones: lower {functions}, or "
        f"{_instead(settings, has_gateway, 'put RDS Proxy in front of it')}"
    )
    if "slots" in said or "clients" in said:
        return server
    return _in_order(server, role, database)


# With a schema before each name: what a role's search path leads to first need not be PostgreSQL's own.
_VERSION = text("SELECT pg_catalog.version()")
_SERVER = text("""
    SELECT pg_catalog.current_setting('server_version') AS version, pg_catalog.pg_is_in_recovery() AS replica,
           extract(epoch FROM pg_catalog.clock_timestamp())::pg_catalog.float8 AS now,
           pg_catalog.pg_backend_pid() AS process
""")
_ROLE = text("""
    SELECT rolconnlimit AS connection_limit, rolsuper AS superuser,
           (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
            WHERE usename OPERATOR(pg_catalog.=) current_user) AS used
    FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user
""")
_TIMEOUTS = text("""
    SELECT name, setting::pg_catalog.int8 AS ms FROM pg_catalog.pg_settings
    WHERE name OPERATOR(pg_catalog.=) ANY (ARRAY[
        'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout'
    ]) ORDER BY name
""")
# Every role sees how many connections a database has; not every role sees whose they are.
_HEAD_ROOM = text("""
    SELECT (SELECT setting::pg_catalog.int4 FROM pg_catalog.pg_settings
            WHERE name OPERATOR(pg_catalog.=) 'max_connections') AS most,
           (SELECT coalesce(pg_catalog.sum(setting::pg_catalog.int4), 0) FROM pg_catalog.pg_settings
            WHERE name OPERATOR(pg_catalog.=) ANY (ARRAY[
                'superuser_reserved_connections', 'reserved_connections', 'rds.rds_superuser_reserved_connections'
            ])) AS reserved,
           (SELECT coalesce(pg_catalog.sum(numbackends), 0) FROM pg_catalog.pg_stat_database) AS used
""")


def _let_in(settings: Settings, way: _Way, login: credentials.Login, connection: Connection, taken_ms: float) -> Check:
    """Say that the server lets the user in; one that trusts did not look at the password, which may be any."""
    found = f"{way.host} accepted the login of {login.user!r}"
    taken = f"{taken_ms:.0f} ms for the first connection"
    if getattr(connection.connection.dbapi_connection, "used_password", True):
        return Check("authentication", "ok", f"{found}, {taken}")
    what = "password" if settings.auth in ("password", "secret") else "token"
    found = f"{found} without asking for the {what}, which may be wrong; {taken}"
    if tls.is_loopback(way.host):
        return Check("authentication", "ok", found)
    cure = (
        "anyone who can reach the server is let in: replace trust by scram-sha-256 in its pg_hba.conf (for a pooler, "
        "in its auth_type), and check that the password is right"
    )
    return Check("authentication", "warning", found, cure)


def _server(settings: Settings, user: str, connection: Connection, has_gateway: Callable[[], bool]) -> Iterator[Check]:
    if settings.auth == "dsql":
        yield Check("server", "ok", str(connection.execute(_VERSION).scalar_one()))
        return
    server = connection.execute(_SERVER).one()
    ahead_s = time.time() - server.now
    found = f"PostgreSQL {server.version}{', a read-only replica' if server.replica else ''}"
    if abs(ahead_s) > _CLOCK_SKEW_S:
        yield Check("server", "warning", f"{found}; {_skew('the server', ahead_s)}", _CLOCK)
    else:
        yield Check("server", "ok", found)
    if server.replica and not settings.reads_only:
        access = settings.variable("access")
        yield Check(
            "access",
            "warning",
            f"the server is read-only, but {access} is {settings.access}",
            f"set {access}=read-only, or set {settings.variable('host')} to the writer's endpoint",
        )
    yield from _between(settings, connection, server.process, has_gateway)
    role = connection.execute(_ROLE).one()
    yield _role(user, role)
    yield _timeouts(user, {row.name: row.ms for row in connection.execute(_TIMEOUTS)})
    room = connection.execute(_HEAD_ROOM).one()
    yield _head_room(settings, int(room.most), int(room.reserved), int(room.used), has_gateway)
    connection.commit()
    if settings.endpoint == "proxy":
        yield _pinning(settings)


def _between(
    settings: Settings, connection: Connection, process: int, has_gateway: Callable[[], bool] = _unasked
) -> Iterator[Check]:
    """
    Say whether something stands between that PLUNGEPOOL_ENDPOINT does not say, or the other way round.

    A server announces at the start the process that will serve (the key for a cancel request); a pooler has to announce
    something before it has chosen a server's connection, so what it announces is not the process that answers.
    """
    endpoint = settings.variable("endpoint")
    announced = getattr(connection.connection.dbapi_connection, "backend_pid", None)
    if settings.endpoint == "direct" and announced != process:
        found = f"the session is served by process {process}, but process {announced} was announced at its start"
        if has_gateway():
            # What a gateway announces nobody has documented; it is no pooler.
            yield Check("endpoint", "ok", f"{found}, because of the gateway of the cluster's express configuration")
            return
        found = f"{found}: there is a pooler in between, but {endpoint} is direct"
        yield Check(
            "endpoint",
            "warning",
            found,
            f"set {endpoint}=proxy, so that nothing is sent that causes pinning, or connect to the database's own "
            "endpoint",
        )
    if settings.endpoint == "proxy" and announced == process:
        found = (
            "the session is served by the process that was announced at its start: this looks like the database "
            f"itself, but {endpoint} is proxy"
        )
        yield Check(
            "endpoint",
            "warning",
            found,
            f"set {settings.variable('host')} to the proxy's endpoint, or set {endpoint}=direct",
        )


def _role(user: str, role: Any) -> Check:
    if role.superuser:
        cure = (
            "give the application a role of its own (infrastructure/roles.sql): a superuser may use the reserved "
            "connections"
        )
        return Check("role", "warning", f"{user} is a superuser", cure)
    if role.connection_limit < 0:
        return Check(
            "role",
            "warning",
            f"{user} has no connection limit",
            f"ALTER ROLE {_quoted(user)} CONNECTION LIMIT n, so that it leaves room for others",
        )
    found = f"{role.used} of the role's {role.connection_limit} connections are in use"
    if role.used >= role.connection_limit:
        return Check(
            "role",
            "warning",
            found,
            "the next attempt to connect will fail: lower the functions' concurrency or raise the limit",
        )
    return Check("role", "ok", found)


def _timeouts(user: str, timeouts: Mapping[str, int]) -> Check:
    missing = [name for name, ms in timeouts.items() if not ms]
    found = ", ".join(f"{name} {ms / 1000:g} s" if ms else f"{name} off" for name, ms in timeouts.items())
    if missing:
        cure = "; ".join(f"ALTER ROLE {_quoted(user)} SET {name} = '{_ADVICE[name]}'" for name in missing)
        return Check("time-outs", "warning", found, cure)
    return Check("time-outs", "ok", found)


# What infrastructure/roles.sql sets.
_ADVICE = {
    "statement_timeout": "10s",
    "lock_timeout": "3s",
    "idle_in_transaction_session_timeout": "10s",
    "idle_session_timeout": "15min",
}


def _head_room(
    settings: Settings, most: int, reserved: int, used: int, has_gateway: Callable[[], bool] = _unasked
) -> Check:
    free = most - reserved - used
    found = f"{used} of {most} connections are in use, {reserved} are reserved, {max(free, 0)} are free"
    if settings.endpoint == "proxy":
        found += " (the database behind the proxy)"
    if free < max(settings.pool_size, most // 10):
        instead = _instead(settings, has_gateway, "put a proxy in front of the database")
        return Check(
            "head-room", "warning", found, f"close idle connections, lower concurrency x pool size, or {instead}"
        )
    return Check("head-room", "ok", found)


def _pinning(settings: Settings) -> Check:
    pinning = settings.variable("pinning")
    if settings.pinning == "refuse":
        return Check("pinning", "ok", f"statements that would pin the proxy are refused ({pinning})")
    return Check(
        "pinning", "ok", f"statements that would pin the proxy are logged; {pinning}=refuse stops them in tests"
    )


def _row_security(settings: Settings, connection: Connection, schemas: tuple[str, ...]) -> Iterator[Check]:
    from . import row_security

    if settings.auth == "dsql":
        found = "not checked: Aurora DSQL has no row-level security"
        yield Check(
            "RLS", "warning", found, "separate tenants by giving each a schema and a role, or a cluster, of its own"
        )
        return
    required, variable = settings.require_settings, settings.variable("require_settings")
    for finding in row_security.examine(connection, schemas, required=required, variable=variable):
        yield Check(*finding)
    connection.commit()


def as_document(checks: list[Check]) -> dict[str, Any]:
    """
    Return the checks as JSON can express them.

    Shape: {"ok": bool, "checks": [{"name", "state", "found", "cure"}, ...]}; ok where nothing failed.
    """
    return {
        "ok": all(check.state != "failed" for check in checks),
        "checks": [{name: getattr(check, name) for name in ("name", "state", "found", "cure")} for check in checks],
    }


def check_process(prefix: str = "", *, rls: bool = False, schemas: Collection[str] = ()) -> dict[str, Any]:
    """Check this process's own environment; see `check_environment` and `as_document`."""
    return as_document(list(check_environment(os.environ, prefix=prefix, rls=rls, schemas=schemas)))
