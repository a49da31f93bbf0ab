"""
Where user and password come from: the settings, a secret, or a token signed for one connect.

The only module that may import boto3, botocore or Powertools, and only inside functions: importing botocore and making
a client costs a cold start more than all the rest of a first connect, and an IAM token needs neither.

Nothing here is logged. What a login, a key or a secret holds is in no repr, in no error, and in no local variable by
itself: a crash reporter prints the locals of every frame that an error has passed. So a secret is only ever an attribute
of something whose repr leaves it out, and an error of a library that was given one is passed on without its frames.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from .errors import CredentialsError, SettingsError
from .settings import host_problem

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

    def within(self, timeout_s: float) -> Login:
        """Return the same login with another time left."""
        return Login(self.user, self.password, self.host, self.port, self.database, timeout_s)


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


class _Hidden:
    """Whatever is put on it is in no repr."""

    text: Any


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
    encoded, request, key = _Hidden(), _Hidden(), _Hidden()
    encoded.text = [f"{name}={quote(value, safe='-_.~')}" for name, value in query.items()]
    if keys.session_token is not None:
        encoded.text.append(f"X-Amz-Security-Token={quote(keys.session_token, safe='-_.~')}")
    request.text = "\n".join(
        [
            "GET",
            "/",
            "&".join(sorted(encoded.text)),
            f"host:{_host_header(netloc)}",
            "",
            "host",
            hashlib.sha256().hexdigest(),
        ]
    )
    to_sign = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.text.encode()).hexdigest()])
    key.text = f"AWS4{keys.secret_key}".encode()
    for part in scope.split("/"):
        key.text = hmac.digest(key.text, part.encode(), "sha256")
    return (
        f"{netloc}/?{'&'.join(encoded.text)}&X-Amz-Signature={hmac.digest(key.text, to_sign.encode(), 'sha256').hex()}"
    )


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
        keys = self._keys()
        deadline = time.time() + self._settings.connect_timeout_s
        try:
            return open_connection(self._login(keys, deadline))
        except Exception as error:
            if not _is_refused(error):
                raise
        # The keys may have run out, or been exchanged, between the signature and the server's check.
        self.forget()
        try:
            return open_connection(self._login(self._keys(), deadline))
        except Exception as error:
            if not _is_refused(error):
                raise
            raise CredentialsError(self._explain(error)) from error

    def forget(self) -> None:
        self._container_keys = self._chain = None

    def _login(self, keys: Keys, deadline: float) -> Login:
        settings = self._settings
        user, region, now = settings.user or "", settings.region or "", time.time()
        return Login(
            user,
            dsql_token(settings.host, user, region, keys, now)
            if settings.auth == "dsql"
            else rds_token(settings.host, settings.port, user, region, keys, now),
            settings.host,
            settings.port,
            settings.database,
            _left(deadline),
        )

    def _keys(self) -> Keys:
        """
        Return credentials from the nearest place that has them; botocore is imported only if neither is here.

        The environment is read where it lies: as a variable of a frame it would be shown, with all that it holds.
        """
        if os.environ.get("AWS_ACCESS_KEY_ID"):
            return _environment_keys()
        # How a function with SnapStart gets its credentials after a restore (Lambda Developer Guide, "SnapStart").
        # Elsewhere a profile may come first, which botocore knows.
        if os.environ.get("AWS_LAMBDA_RUNTIME_API") and os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
            return self._keys_of_container()
        return self._keys_of_chain()

    def _keys_of_container(self) -> Keys:
        keys, now = self._container_keys, time.time()
        if keys is None or keys.expires_at is None or keys.expires_at - now < _REFRESH_BEFORE_S:
            try:
                keys = _fetch_container_keys()
            except CredentialsError:
                if keys is None or keys.expires_at is None or keys.expires_at <= now:
                    raise
            self._container_keys = keys
        return keys

    def _keys_of_chain(self) -> Keys:
        nowhere = (
            f"PLUNGEPOOL_AUTH={self._settings.auth} found no AWS credentials: a function has those of its role; "
            "elsewhere set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        try:
            from botocore.session import Session
        except ImportError as error:
            raise CredentialsError(f"{nowhere}; for a profile botocore must be installed, which it is not") from error
        try:
            if self._chain is None:
                self._chain = Session().get_credentials()
            # Renews them when they end within 15 minutes.
            keys = self._chain and self._chain.get_frozen_credentials()
        except Exception as error:
            if not _is_librarys(error):
                raise
            raise CredentialsError(_explain_chain(error)) from _without_frames(error)
        if not keys:
            raise CredentialsError(nowhere)
        return _checked(
            Keys(keys.access_key, keys.secret_key, keys.token), "a profile, or another place that botocore found,"
        )

    def _explain(self, error: BaseException) -> str:
        settings = self._settings
        place = f"{settings.host}:{settings.port}"
        what = f"{place} refused the token of user {settings.user!r} twice (SQLSTATE {_sqlstate(error)})"
        clock = "the clock of this machine is wrong: a token lives 15 minutes"
        if settings.auth == "dsql":
            action = "DbConnectAdmin" if settings.user == "admin" else "DbConnect"
            causes = [
                f"the function's role is not allowed dsql:{action} on the cluster's ARN",
                f"the database role is not mapped to it (as admin: AWS IAM GRANT {settings.user} TO '<the role ARN>')",
                f"the cluster is not in {settings.region} (PLUNGEPOOL_REGION)",
                "PLUNGEPOOL_HOST is not the cluster's own endpoint",
                clock,
            ]
        else:
            proxy = settings.endpoint == "proxy"
            allowed = (
                "the function's role is not allowed rds-db:connect on arn:aws:rds-db:"
                f"{settings.region}:<account>:dbuser:<{'prx-' if proxy else 'db- or cluster-'} id>/{settings.user}"
                " (the resource id, not the name)"
            )
            named = (
                "PLUNGEPOOL_HOST is a name of your own (CNAME) or an address, not the endpoint's, or "
                f"the endpoint is not in {settings.region} (PLUNGEPOOL_REGION)"
            )
            asked = "the proxy does not ask for IAM (IAMAuth: REQUIRED)"
            known = "the proxy has neither a secret for this user nor IAM to the database itself"
            granted = (
                f"the database user does not exist or lacks the role: GRANT rds_iam TO {settings.user} (a server that "
                "is neither RDS nor Aurora has no such role, and takes no token)"
            )
            enabled = (
                "IAM authentication is not enabled on the instance or cluster: aws rds modify-db-instance, or "
                "modify-db-cluster, --enable-iam-database-authentication"
            )
            said = str(error)
            if proxy:
                # Its texts (RDS User Guide, "Troubleshooting for RDS Proxy") tell which step it was at; all stay possible.
                causes = (
                    [known, allowed, named, clock, asked]
                    if "no credentials" in said
                    else [allowed, named, clock, known, asked]
                    if "IAM" in said
                    else [asked, known, allowed, named, clock]
                )
            elif _sqlstate(error) == "28000" and "PAM" in said:
                # PAM is whom RDS asks about a user that has rds_iam; a user without it is asked for a password.
                causes = [allowed, enabled, named, clock, granted]
            else:
                causes = [granted, enabled, allowed, named, clock]
            causes.append("TLS is off somewhere on the way: IAM is for encrypted connections only")
        return f"{what}. Usual causes, the most frequent first: " + "; ".join(
            f"({number}) {cause}" for number, cause in enumerate(causes, 1)
        )


def _environment_keys() -> Keys:
    if not os.environ.get("AWS_SECRET_ACCESS_KEY"):
        raise CredentialsError("AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not; set both or neither")
    ends = os.environ.get("AWS_CREDENTIAL_EXPIRATION")
    try:
        expires_at = _epoch(ends) if ends else None
    except ValueError as error:
        raise CredentialsError(f"AWS_CREDENTIAL_EXPIRATION must be a moment in ISO 8601, not {ends!r}") from error
    keys = Keys(
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
        os.environ.get("AWS_SESSION_TOKEN") or None,
        expires_at,
    )
    return _checked(keys, "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN)")


def _checked(keys: Keys, where: str) -> Keys:
    """Return keys that can sign; a copied line break would only make a signature that is refused without a reason."""
    for name in ("access_key", "secret_key", "session_token"):
        if any(not "!" <= character <= "~" for character in getattr(keys, name) or ""):
            raise CredentialsError(
                f"the {name.replace('_', ' ')} of {where} holds a blank, a line break or a character that none has: copy it anew"
            )
    return keys


def _explain_chain(error: BaseException) -> str:
    """Say why botocore's providers gave nothing; of a program of the user's, which one of them may run, quote nothing."""
    kind = type(error).__name__
    shown = kind if kind == "CredentialRetrievalError" or _error_code(error) else f"{kind}: {error}"
    code = _error_code(error)
    cure = (
        "sign in again (aws sso login)"
        if "SSO" in kind or "Token" in kind
        else f"AWS refused it ({code}): the credentials that assume the role have run out or lack sts:AssumeRole"
        if code
        else "check AWS_PROFILE and the profile that it names"
    )
    return f"AWS credentials are not available from botocore's provider chain ({shown}): {cure}"


def _fetch_container_keys() -> Keys:
    """
    Ask the container's credential endpoint.

    Source: AWS SDKs and Tools Reference Guide, "Container credential provider": HTTPS, or these hosts only; the token of
    the file comes before the token of the variable.
    """
    import http.client

    url = urlsplit(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
    host = url.hostname or ""
    secure = url.scheme == "https"
    if not secure and not (url.scheme == "http" and _is_container_host(host)):
        raise CredentialsError(
            f"AWS_CONTAINER_CREDENTIALS_FULL_URI names {host!r}: over HTTP only this host itself may"
        )
    headers, status = _Hidden(), 0
    headers.text = {"Accept": "application/json"}
    try:
        path = os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        if path:
            with open(path, encoding="latin-1") as file:
                headers.text["Authorization"] = file.read()
        elif os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN"):
            headers.text["Authorization"] = os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"]
        if headers.text.get("Authorization"):
            # A line's end in it would start another header.
            headers.text["Authorization"] = headers.text["Authorization"].splitlines()[0].strip()
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(host, url.port, timeout=2)
        try:
            connection.request("GET", f"{url.path or '/'}{'?' + url.query if url.query else ''}", headers=headers.text)
            with connection.getresponse() as response:
                status, found = response.status, _Document(lambda: response.read(1 << 16))
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        # ValueError: a header that cannot be sent, or a port that is none; its text may quote the header.
        why = "cannot be asked" if isinstance(error, ValueError) else f"did not answer: {error}"
        failure = None if isinstance(error, ValueError) else _without_frames(error)
        gone = CredentialsError(f"the container's credential endpoint at {host!r} {why}")
    else:
        return _container_keys(found, host, status)
    raise gone from failure


def _container_keys(found: _Document, host: str, status: int) -> Keys:
    try:
        if status == 200 and found.get("AccessKeyId") and found.get("SecretAccessKey"):
            keys = Keys(
                found.get("AccessKeyId"),
                found.get("SecretAccessKey"),
                found.get("Token") or None,
                _epoch(found.get("Expiration")),
            )
            return _checked(keys, "the container's credential endpoint")
    except ValueError:
        # The end is no moment: its error would quote it.
        pass
    raise CredentialsError(
        f"the container's credential endpoint at {host!r} gave no credentials (HTTP status {status})"
    )


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
        self._read: Callable[[str, bool], _Document] | None = None
        self._process = 0

    def connect(self, open_connection: Callable[[Login], Connection]) -> Connection:
        first = self._cached or self._fetch("AWSCURRENT", fresh=False)
        # From here on: importing boto3 in a cold start must not use up the time for the database.
        deadline = time.time() + self._settings.connect_timeout_s
        refusal: Exception | None = None
        for login in self._logins(first, deadline):
            try:
                connection = open_connection(login.within(_left(deadline)))
            except Exception as error:
                if not _is_refused(error):
                    raise
                refusal = error
            else:
                self._cached = login
                return connection
        settings = self._settings
        if first is not None and first.password != first.password.strip():
            cause = "its password begins or ends with a blank or a line break, as a copied value does"
        elif settings.endpoint == "proxy":
            cause = (
                "the secret's password is not the one that the proxy has for this user, the proxy's own secret for it is missing "
                "or wrong, or the proxy asks for IAM (IAMAuth: REQUIRED; then set PLUNGEPOOL_AUTH=iam)"
            )
        else:
            cause = (
                "the user does not exist, has no LOGIN, or has another password; a user with the role rds_iam is refused every "
                "password. If a rotation failed half way, run it again in Secrets Manager"
            )
        raise CredentialsError(
            f"{settings.host or (first.host if first else '') or 'the database'} refused every version of the secret "
            f"{settings.secret_arn!r} for {settings.connect_timeout_s:g} s (SQLSTATE {_sqlstate(refusal)}"
            f"{f', user {first.user!r}' if first else ''}): {cause}"
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
            delay_s = random.uniform(pause_s / 2, pause_s)  # noqa: S311
            if time.time() + delay_s >= deadline:
                return
            time.sleep(delay_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            # What was refused a moment ago may be the password by now.
            refused.clear()

    def _fetch(self, stage: str, *, fresh: bool) -> Login | None:
        """Return the login that a version of the secret holds; None where the secret has no such version."""
        try:
            return self._login(self._reader()(stage, fresh))
        except Exception as error:
            if not _is_librarys(error):
                raise
            code = _error_code(error)
            if code == "ResourceNotFoundException" and stage != "AWSCURRENT":
                return None
            why = _explain_secret(error, self._settings)
            # What AWS says of a wrong signature quotes the request, with the session token in it: that is left out.
            failure = None if code in _SIGNATURE else _without_frames(error)
        raise CredentialsError(why) from failure

    def _login(self, content: _Document) -> Login:
        settings, name = self._settings, self._settings.secret_arn
        user = content.get("username")
        if not user or not content.get("password"):
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
            host = content.get("host")
            port = _port(content.get("port", int)) or port
            if not host:
                raise SettingsError([f"PLUNGEPOOL_HOST is missing, and the secret {name!r} holds no host either"])
            if problem := host_problem(host):
                raise CredentialsError(f"the host in the secret {name!r} {problem}")
        database = settings.database
        if database == _DEFAULT_DATABASE:
            database = content.get("dbname") or database
        return Login(user, content.get("password"), host, port, database, settings.connect_timeout_s)

    def _reader(self) -> Callable[[str, bool], _Document]:
        # A forked child must not share the parent's HTTPS connection to Secrets Manager.
        if self._read is None or self._process != os.getpid():
            self._read, self._process = _secret_reader(self._settings), os.getpid()
        return self._read


def _secret_reader(settings: Settings) -> Callable[[str, bool], _Document]:
    """Return a function of a version's stage, and whether it must be fresh, that reads the secret. Imports boto3."""
    from botocore.config import Config

    name = settings.secret_arn or ""
    # boto3's own defaults (60 s, five times) outlive most invocations.
    config = Config(
        region_name=_region_of(settings),
        connect_timeout=min(2.0, settings.connect_timeout_s),
        read_timeout=settings.connect_timeout_s,
        retries={"total_max_attempts": 2, "mode": "standard"},
    )
    try:
        from aws_lambda_powertools.utilities import parameters
    except ImportError:
        import boto3

        client = boto3.session.Session().client("secretsmanager", config=config)

        def read(stage: str, _fresh: bool) -> _Document:
            answer = _Hidden()
            answer.text = client.get_secret_value(SecretId=name, VersionStage=stage)
            return _Document(lambda: answer.text.get("SecretString") or answer.text["SecretBinary"])

        return read
    provider = parameters.SecretsProvider(boto_config=config)

    def read_by_powertools(stage: str, fresh: bool) -> _Document:
        # Its cache knows a secret by name alone: only the current version may go in.
        options: dict[str, Any] = (
            {"force_fetch": fresh}
            if stage == "AWSCURRENT"
            else {"force_fetch": True, "max_age": 0, "VersionStage": stage}
        )
        answer = _Hidden()
        answer.text = provider.get(name, **options)
        return _Document(lambda: answer.text)

    return read_by_powertools


def _region_of(settings: Settings) -> str | None:
    """Return the secret's region, which its ARN knows: arn:aws:secretsmanager:<region>:..."""
    name = settings.secret_arn or ""
    return name.split(":")[3] if name.startswith("arn:") and name.count(":") >= 6 else settings.region


_SIGNATURE = (
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "IncompleteSignatureException",
)
_SIGNER = (
    *_SIGNATURE,
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "ExpiredTokenException",
    "ExpiredToken",
    "RequestExpired",
)
_NO_WAY = ("HTTPClientError", "ConnectionError")  # of botocore: what every failure between here and AWS derives from
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "SSOError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "RefreshWithMFAUnsupportedError",
)


def _explain_secret(error: BaseException, settings: Settings) -> str:
    """Return what kept the secret from being read, and its cure; Powertools wraps all of it in one error of its own."""
    name, region, code = settings.secret_arn, _region_of(settings) or "the default region", _error_code(error)
    chain = list(_chain(error))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__ if kind.__module__ == "botocore.exceptions"}
    words = " ".join(str(one) for one in chain) if code not in _SIGNATURE else ""
    what = f"the secret {name!r} could not be read ({code or _root(chain)}): "
    if isinstance(error, ImportError):
        return f"{what}{error.name} cannot be imported here; boto3 is part of Lambda's runtimes, elsewhere install it"
    if kinds.intersection(_NO_CREDENTIALS):
        return f"{what}no AWS credentials; a function has those of its role, elsewhere set AWS_PROFILE or sign in again (aws sso login)"
    if kinds & {"NoRegionError", "InvalidRegionError"}:
        return f"{what}a secret given by name needs PLUNGEPOOL_REGION (or AWS_REGION), or give its whole ARN"
    if kinds.intersection(_NO_WAY):
        return (
            f"{what}there is no way to Secrets Manager in {region} from here; a function in a VPC needs NAT, or an interface "
            "endpoint for secretsmanager with private DNS whose security group lets the function's in on port 443"
        )
    if code in _SIGNER:
        return f"{what}AWS does not take these credentials; renew them, and check this machine's clock"
    if code == "ResourceNotFoundException":
        return (
            f"{what}there is no such secret, or no current version of it, in {region}: check PLUNGEPOOL_SECRET_ARN, its region and "
            "its account"
        )
    if code == "DecryptionFailure" or (code == "AccessDeniedException" and "KMS" in words):
        return f"{what}it is encrypted with a KMS key of your own: the role needs kms:Decrypt on it, also in the key's policy"
    if code == "AccessDeniedException":
        return (
            f"{what}the role is not allowed secretsmanager:GetSecretValue on it; check the role's policy, the secret's own and, in a "
            "VPC, the interface endpoint's"
        )
    if code == "InvalidRequestException":
        return f"{what}the secret is about to be deleted, or has no value yet: restore it, or store one"
    if code in ("ThrottlingException", "InternalServiceError", "InternalServiceErrorException", "ServiceUnavailable"):
        return f"{what}Secrets Manager is too busy or out of order: try again"
    return (
        f"{what}check PLUNGEPOOL_SECRET_ARN and its region, and the role's secretsmanager:GetSecretValue (and kms:Decrypt with a "
        "key of your own)"
    )


def _root(chain: list[BaseException]) -> str:
    """Return the name of the error at the bottom that says most: AWS's own, where there is one."""
    return next(
        (type(one).__name__ for one in reversed(chain) if type(one).__module__.startswith("botocore")),
        type(chain[-1]).__name__,
    )


def _is_librarys(error: Exception) -> bool:
    """Say whether an error is AWS's libraries' own, and not one that somebody's signal handler raised meanwhile."""
    return isinstance(error, ImportError) or type(error).__module__.partition(".")[0] in (
        "boto3",
        "botocore",
        "aws_lambda_powertools",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _without_frames(error: Exception) -> Exception:
    """
    Return the error, and all that it came from, without the frames that it passed.

    A library that was given a key, a token or a secret has it among the locals of those frames.
    """
    for one in _chain(error):
        one.__traceback__ = None
        # A context that a cause hides is printed by nobody, and kept by some.
        if one.__cause__ is not None:
            one.__context__ = None
    return error


def _is_refused(error: BaseException) -> bool:
    return _sqlstate(error) in _REFUSED


def _sqlstate(error: BaseException | None) -> str | None:
    return getattr(error, "sqlstate", None)


def _error_code(error: BaseException | None) -> str | None:
    """Return the code of the AWS error in a chain of errors (Powertools puts one of its own before it)."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None


class _Document:
    """The texts and numbers of a JSON object that is secret; an empty one where there is no object, without an error."""

    def __init__(self, read: Callable[[], str | bytes]) -> None:
        found = _Hidden()
        try:
            found.text = json.loads(read() or "null")
        except (ValueError, TypeError, KeyError, RecursionError):
            # Whatever is wrong with the text, its error would carry it.
            found.text = None
        self._found = found

    def get(self, name: str, *kinds: type) -> str:
        """Return a text, or what is of another kind that is named, as text; nothing for whatever else it is."""
        fits = isinstance(self._found.text, dict) and isinstance(self._found.text.get(name), (str, *kinds))
        return str(self._found.text[name]) if fits else ""


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65535 else None


def _epoch(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()


def _left(deadline: float) -> float:
    # A connect that is begun gets a moment at least: a time-out of 0 means "never block" to a socket.
    return max(0.05, deadline - time.time())
