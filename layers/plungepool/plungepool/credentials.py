"""
Where user and password come from: the settings, a secret, or a token signed for one connect.

The only module that may import boto3, botocore or Powertools, and only inside functions: importing botocore and making
a client costs a cold start more than all the rest of a first connect, and an IAM token needs neither.

Nothing here is logged. What a login, a key or a secret holds is in no repr and in no error.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from .errors import CredentialsError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .settings import Settings

Connection = TypeVar("Connection")

# RDS: a token is valid for 15 minutes (RDS User Guide, "IAM database authentication"); DSQL's is by default, too.
_TOKEN_LIFE_S = 900
# Keys with less time left are asked for anew before they sign, so that a token lives its 15 minutes where it can.
_REFRESH_BEFORE_S = 900
# The server says "the password is wrong" and "this user may not log in" with these two; PAM, which checks RDS's IAM
# tokens, with the second.
_REFUSED = ("28P01", "28000")
_DEFAULT_DATABASE = "postgres"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Login:
    """What one connect needs. Its repr holds no password; two logins that differ in time-out only are equal."""

    user: str
    password: str = field(repr=False)
    host: str
    port: int
    database: str
    timeout_s: float = field(compare=False)
    """What is left of PLUNGEPOOL_CONNECT_TIMEOUT_S for this connect, in seconds."""


class Source(Protocol):
    """Gives the login for each connect, and knows what to try when the server refuses it."""

    def connect(self, open_connection: Callable[[Login], Connection]) -> Connection:
        """
        Obtain credentials, call `open_connection` with them and return what it returns.

        A refusal is told by SQLSTATE 28P01 or 28000 in the attribute `sqlstate` of what `open_connection` raises; any
        other error passes as it is. Blocks for PLUNGEPOOL_CONNECT_TIMEOUT_S of wall clock at most, and one call's time.
        Raises: CredentialsError; SettingsError when the settings contradict what the secret holds.
        Threads: safe.
        """
        ...

    def forget(self) -> None:
        """Drop what was fetched, so that it is in no snapshot; the next connect fetches anew."""
        ...


def source(settings: Settings) -> Source:
    """Return the source of credentials that the settings name; no I/O yet."""
    if settings.auth == "secret":
        return _Secret(settings)
    if settings.auth in ("iam", "dsql"):
        return _Token(settings)
    return _Password(settings)


class _Password:
    """The user and password of the settings. A refused one is not tried again: nothing could have changed."""

    def __init__(self, settings: Settings) -> None:
        self._login = Login(
            settings.user or "",
            settings.password or "",
            settings.host,
            settings.port,
            settings.database,
            settings.connect_timeout_s,
        )

    def connect(self, open_connection: Callable[[Login], Connection]) -> Connection:
        return open_connection(self._login)

    def forget(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Keys:
    """AWS credentials that sign; the repr holds the access key's id and nothing that is secret."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires_at: float | None = None
    """Seconds since the epoch; None where the environment does not say."""


def rds_token(host: str, port: int, user: str, region: str, keys: Keys, now: float) -> str:
    """
    Return the token that RDS, Aurora and RDS Proxy take for a password. Pure: the same arguments, the same token.

    Args: host: the endpoint's own name; a token for a name of one's own is refused. now: seconds since the epoch.
    Source: RDS User Guide, "Connecting using IAM authentication"; Signature Version 4, presigned query.
    """
    return _presign("rds-db", f"{host}:{port}", {"Action": "connect", "DBUser": user}, region, keys, now)


def dsql_token(host: str, user: str, region: str, keys: Keys, now: float) -> str:
    """Return the token that Aurora DSQL takes for a password: an administrator's for the user `admin`. Pure."""
    action = "DbConnectAdmin" if user == "admin" else "DbConnect"
    return _presign("dsql", host, {"Action": action}, region, keys, now)


def _presign(service: str, netloc: str, parameters: Mapping[str, str], region: str, keys: Keys, now: float) -> str:
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    life_s = _TOKEN_LIFE_S
    if keys.expires_at is not None:
        # The server rejects a signature of expired keys anyway; the token says so by itself.
        life_s = max(1, min(life_s, int(keys.expires_at - now)))
    query = {
        **parameters,
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{keys.access_key}/{scope}",
        "X-Amz-Date": moment,
        "X-Amz-Expires": str(life_s),
        "X-Amz-SignedHeaders": "host",
    }
    if keys.session_token is not None:
        query["X-Amz-Security-Token"] = keys.session_token
    encoded = [f"{name}={quote(value, safe='-_.~')}" for name, value in query.items()]
    request = "\n".join(
        [
            "GET",
            "/",
            "&".join(sorted(encoded)),
            f"host:{_host_header(netloc)}",
            "",
            "host",
            hashlib.sha256().hexdigest(),
        ]
    )
    to_sign = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{keys.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    return f"{netloc}/?{'&'.join(encoded)}&X-Amz-Signature={signature}"


def _host_header(netloc: str) -> str:
    # As an HTTPS client writes it: in lower case, without the scheme's own port.
    return urlsplit(f"//{netloc}").netloc.lower().removesuffix(":443")


class _Token:
    """A token signed for each connect, from whatever AWS credentials the environment has at that moment."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._container_keys: Keys | None = None
        self._chain: Any = None

    def connect(self, open_connection: Callable[[Login], Connection]) -> Connection:
        # From when there are keys: importing botocore must not use up the time for the database.
        keys = self._keys(os.environ)
        deadline = time.time() + self._settings.connect_timeout_s
        try:
            return open_connection(self._login(keys, deadline))
        except Exception as error:
            if not _is_refused(error):
                raise
        # The keys may have run out, or been exchanged, between the signature and the server's check.
        self.forget()
        try:
            return open_connection(self._login(self._keys(os.environ), deadline))
        except Exception as error:
            if not _is_refused(error):
                raise
            raise CredentialsError(self._explain(error)) from error

    def forget(self) -> None:
        self._container_keys = self._chain = None

    def _login(self, keys: Keys, deadline: float) -> Login:
        settings = self._settings
        user, region, now = settings.user or "", settings.region or "", time.time()
        if settings.auth == "dsql":
            token = dsql_token(settings.host, user, region, keys, now)
        else:
            token = rds_token(settings.host, settings.port, user, region, keys, now)
        return Login(user, token, settings.host, settings.port, settings.database, _left(deadline))

    def _keys(self, environ: Mapping[str, str]) -> Keys:
        """Return credentials from the nearest place that has them; botocore is imported only if neither is here."""
        if environ.get("AWS_ACCESS_KEY_ID"):
            return _environment_keys(environ)
        # How a function with SnapStart gets its credentials after a restore (Lambda Developer Guide, "SnapStart").
        # Elsewhere a profile may come first, which botocore knows.
        if environ.get("AWS_LAMBDA_RUNTIME_API") and environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
            return self._keys_of_container(environ)
        return self._keys_of_chain()

    def _keys_of_container(self, environ: Mapping[str, str]) -> Keys:
        keys, now = self._container_keys, time.time()
        if keys is None or keys.expires_at is None or keys.expires_at - now < _REFRESH_BEFORE_S:
            try:
                keys = _fetch_container_keys(environ)
            except CredentialsError:
                if keys is None or keys.expires_at is None or keys.expires_at <= now:
                    raise
            self._container_keys = keys
        return keys

    def _keys_of_chain(self) -> Keys:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session

        try:
            if self._chain is None:
                self._chain = Session().get_credentials()
            # Renews them when they end within 15 minutes.
            keys = self._chain and self._chain.get_frozen_credentials()
        except BotoCoreError as error:
            raise CredentialsError(
                f"AWS credentials could not be had from botocore's provider chain: {error}"
            ) from error
        if not keys:
            raise CredentialsError(
                f"PLUNGEPOOL_AUTH={self._settings.auth} found no AWS credentials: a function has those of its role; "
                "elsewhere set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return Keys(keys.access_key, keys.secret_key, keys.token)

    def _explain(self, error: BaseException) -> str:
        settings = self._settings
        place = f"{settings.host}:{settings.port}"
        what = f"{place} refused the token of user {settings.user!r} twice (SQLSTATE {_sqlstate(error)})"
        if settings.auth == "dsql":
            action = "DbConnectAdmin" if settings.user == "admin" else "DbConnect"
            causes = [
                f"the function's role is not allowed dsql:{action} on the cluster's ARN",
                f"the database role is not mapped to it (as admin: AWS IAM GRANT {settings.user} TO '<the role ARN>')",
                f"the cluster is not in {settings.region} (PLUNGEPOOL_REGION)",
                "PLUNGEPOOL_HOST is not the cluster's own endpoint",
                "the clock of this machine is wrong",
            ]
        else:
            behind_proxy = settings.endpoint == "proxy"
            causes = [
                (
                    "the proxy does not ask for IAM (IAMAuth: REQUIRED), or has no secret for this user"
                    if behind_proxy
                    else f"the database user lacks the role: GRANT rds_iam TO {settings.user}"
                ),
                (
                    "the function's role is not allowed rds-db:connect on arn:aws:rds-db:"
                    f"{settings.region}:<account>:dbuser:<{'prx-' if behind_proxy else 'db- or cluster-'} id>/{settings.user}"
                    " (the resource id, not the name)"
                ),
                (
                    "PLUNGEPOOL_HOST is a name of your own (CNAME) or an address, not the endpoint's, or "
                    f"the endpoint is not in {settings.region} (PLUNGEPOOL_REGION)"
                ),
                "the clock of this machine is wrong: a token lives 15 minutes",
                "TLS is off somewhere on the way: IAM is for encrypted connections only",
            ]
        return f"{what}. Usual causes, the most frequent first: " + "; ".join(
            f"({number}) {cause}" for number, cause in enumerate(causes, 1)
        )


def _environment_keys(environ: Mapping[str, str]) -> Keys:
    secret = environ.get("AWS_SECRET_ACCESS_KEY")
    if not secret:
        raise CredentialsError("AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not; set both or neither")
    ends = environ.get("AWS_CREDENTIAL_EXPIRATION")
    try:
        expires_at = _epoch(ends) if ends else None
    except ValueError as error:
        raise CredentialsError(f"AWS_CREDENTIAL_EXPIRATION must be a moment in ISO 8601, not {ends!r}") from error
    return Keys(environ["AWS_ACCESS_KEY_ID"], secret, environ.get("AWS_SESSION_TOKEN") or None, expires_at)


def _fetch_container_keys(environ: Mapping[str, str]) -> Keys:
    """
    Ask the container's credential endpoint.

    Source: AWS SDKs and Tools Reference Guide, "Container credential provider": HTTPS, or these hosts only; the token of
    the file comes before the token of the variable.
    """
    import http.client

    url = urlsplit(environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
    host = url.hostname or ""
    secure = url.scheme == "https"
    if not secure and not (url.scheme == "http" and _is_container_host(host)):
        raise CredentialsError(
            f"AWS_CONTAINER_CREDENTIALS_FULL_URI names {host!r}: over HTTP only this host itself may"
        )
    headers = {"Accept": "application/json"}
    try:
        token = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
        if environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            with open(environ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"], encoding="latin-1") as file:
                token = file.read()
        if token:
            # A line's end in it would start another header.
            headers["Authorization"] = token.splitlines()[0].strip()
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(host, url.port, timeout=2)
        try:
            connection.request("GET", f"{url.path or '/'}{'?' + url.query if url.query else ''}", headers=headers)
            response = connection.getresponse()
            status, body = response.status, response.read(1 << 16)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise CredentialsError(f"the container's credential endpoint at {host!r} did not answer: {error}") from error
    # Not inside an except clause: the decoder's error carries the document, which is secret.
    found = _json_object(body) if status == 200 else {}
    try:
        return Keys(found["AccessKeyId"], found["SecretAccessKey"], found.get("Token"), _epoch(found["Expiration"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CredentialsError(
            f"the container's credential endpoint at {host!r} gave no credentials (HTTP status {status})"
        ) from error


def _is_container_host(host: str) -> bool:
    import ipaddress

    # Amazon ECS and Amazon EKS have theirs at these addresses, which no packet leaves the host to.
    if host in ("localhost", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Secret:
    """
    User and password from Secrets Manager, kept until the server refuses them, then fetched anew.

    In a rotation the server changes some seconds before AWSCURRENT does (or after, where a replica lags): the version
    that is about to be current is tried, then the one before, then all again after a pause. With alternating users the
    secret's user changes; nothing here depends on it.
    Source: Secrets Manager User Guide, "Rotation by Lambda function" and "Rotation strategies".
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cached: Login | None = None
        self._read: Callable[[str, bool], str | bytes] | None = None
        self._process = 0

    def connect(self, open_connection: Callable[[Login], Connection]) -> Connection:
        first = self._cached or self._fetch("AWSCURRENT", fresh=False)
        # From here on: importing boto3 in a cold start must not use up the time for the database.
        deadline = time.time() + self._settings.connect_timeout_s
        refusal: Exception | None = None
        for login in self._logins(first, deadline):
            try:
                connection = open_connection(replace(login, timeout_s=_left(deadline)))
            except Exception as error:
                if not _is_refused(error):
                    raise
                refusal = error
            else:
                self._cached = login
                return connection
        settings = self._settings
        raise CredentialsError(
            f"{settings.host or 'the database'} refused every version of the secret {settings.secret_arn!r} for "
            f"{settings.connect_timeout_s:g} s (SQLSTATE {_sqlstate(refusal)}): the secret's password is not the database "
            "user's. If a rotation failed half way, run it again in Secrets Manager; the user must exist and have LOGIN"
        ) from refusal

    def forget(self) -> None:
        self._cached = self._read = None

    def _logins(self, first: Login | None, deadline: float) -> Iterator[Login]:
        """Yield what is worth trying, in order, until the deadline; fetches no more than the caller asks for."""
        refused = set()
        if first:
            yield first
            refused.add(first)
        pause_s = _FIRST_PAUSE_S
        while True:
            for stage in ("AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"):
                if time.time() >= deadline:
                    return
                login = self._fetch(stage, fresh=True)
                if login and login not in refused:
                    yield login
                    refused.add(login)
            # A whole fleet meets the same rotation at the same moment: it must not come back at the same moment, too.
            import random

            delay_s = random.uniform(pause_s / 2, pause_s)  # noqa: S311
            if time.time() + delay_s >= deadline:
                return
            time.sleep(delay_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            # What was refused a moment ago may be the password by now.
            refused.clear()

    def _fetch(self, stage: str, *, fresh: bool) -> Login | None:
        """Return the login that a version of the secret holds; None where the secret has no such version."""
        name = self._settings.secret_arn or ""
        try:
            text = self._reader()(stage, fresh)
        except Exception as error:
            code = _error_code(error)
            if code == "ResourceNotFoundException" and stage != "AWSCURRENT":
                return None
            raise CredentialsError(
                f"the secret {name!r} could not be read ({code or type(error).__name__}): check PLUNGEPOOL_SECRET_ARN and "
                "its region, the role's secretsmanager:GetSecretValue (and kms:Decrypt with a key of your own), and from "
                "a VPC the way to Secrets Manager (an interface endpoint or NAT)"
            ) from error
        return self._login(_json_object(text))

    def _login(self, content: Mapping[str, Any]) -> Login:
        settings, name = self._settings, self._settings.secret_arn
        user, password = content.get("username"), content.get("password")
        if not isinstance(user, str) or not isinstance(password, str) or not user or not password:
            raise CredentialsError(f"the secret {name!r} must be a JSON object with username and password as text")
        if settings.user and settings.user != user:
            raise SettingsError(
                [
                    f"PLUNGEPOOL_USER is {settings.user!r} and the secret's username is {user!r}; leave PLUNGEPOOL_USER unset"
                ]
            )
        host, port = settings.host, settings.port
        if not host:
            # Where the settings name the endpoint (a proxy, a reader), the secret's address is another one's.
            host = str(content.get("host") or "")
            port = _port(content.get("port")) or port
            if not host:
                raise SettingsError([f"PLUNGEPOOL_HOST is missing, and the secret {name!r} holds no host either"])
        database = settings.database
        if database == _DEFAULT_DATABASE:
            database = str(content.get("dbname") or database)
        return Login(user, password, host, port, database, settings.connect_timeout_s)

    def _reader(self) -> Callable[[str, bool], str | bytes]:
        # A forked child must not share the parent's HTTPS connection to Secrets Manager.
        if self._read is None or self._process != os.getpid():
            self._read, self._process = _secret_reader(self._settings), os.getpid()
        return self._read


def _secret_reader(settings: Settings) -> Callable[[str, bool], str | bytes]:
    """Return a function of a version's stage, and whether it must be fresh, that reads the secret. Imports boto3."""
    from botocore.config import Config

    name = settings.secret_arn or ""
    # The ARN knows its region: arn:aws:secretsmanager:<region>:...
    region = name.split(":")[3] if name.startswith("arn:") and name.count(":") >= 6 else settings.region
    # boto3's own defaults (60 s, five times) outlive most invocations.
    config = Config(
        region_name=region,
        connect_timeout=min(2.0, settings.connect_timeout_s),
        read_timeout=settings.connect_timeout_s,
        retries={"total_max_attempts": 2, "mode": "standard"},
    )
    try:
        from aws_lambda_powertools.utilities import parameters
    except ImportError:
        import boto3

        client = boto3.session.Session().client("secretsmanager", config=config)

        def read(stage: str, _fresh: bool) -> str | bytes:
            answer = client.get_secret_value(SecretId=name, VersionStage=stage)
            found: str | bytes = answer.get("SecretString") or answer["SecretBinary"]
            return found

        return read
    provider = parameters.SecretsProvider(boto_config=config)

    def read_by_powertools(stage: str, fresh: bool) -> str | bytes:
        # Its cache knows a secret by name alone: only the current version may go in.
        if stage == "AWSCURRENT":
            found = provider.get(name, force_fetch=fresh)
        else:
            found = provider.get(name, force_fetch=True, max_age=0, VersionStage=stage)
        return found if isinstance(found, (str, bytes)) else ""

    return read_by_powertools


def _is_refused(error: BaseException) -> bool:
    return _sqlstate(error) in _REFUSED


def _sqlstate(error: BaseException | None) -> str | None:
    return getattr(error, "sqlstate", None)


def _error_code(error: BaseException | None) -> str | None:
    """Return the code of the AWS error in a chain of errors (Powertools puts one of its own before it)."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
        error = error.__cause__ or error.__context__
    return None


def _json_object(text: str | bytes) -> dict[str, Any]:
    """Return the object that the text holds; an empty one if it holds none, without an error that quotes it."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _port(value: object) -> int | None:
    # A rotation function's secret may hold it as text.
    return int(value) if isinstance(value, (int, str)) and str(value).isdigit() else None


def _epoch(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()


def _left(deadline: float) -> float:
    # A connect that is begun gets a moment at least: a time-out of 0 means "never block" to a socket.
    return max(0.05, deadline - time.time())
