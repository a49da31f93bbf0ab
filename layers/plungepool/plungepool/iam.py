"""
Tokens that RDS, Aurora, RDS Proxy and Aurora DSQL take for a password, and the AWS credentials that sign them.

Imported where an engine with PLUNGEPOOL_AUTH=iam or dsql is built, and by nobody else.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from .credentials import (
    Document,
    Hidden,
    Login,
    error_code,
    is_librarys,
    sqlstate_of,
    without_frames,
)
from .errors import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .settings import Settings

# RDS: a token is valid for 15 minutes (RDS User Guide, "IAM database authentication"); DSQL's is by default, too.
_TOKEN_LIFE_S = 900
# Keys with less time left are asked for anew before they sign, so that a token lives its 15 minutes where it can.
_REFRESH_BEFORE_S = 900


@dataclass(frozen=True, slots=True)
class Keys:
    """AWS credentials that sign; the repr holds the access key's id and nothing that is secret."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    #: Seconds since the epoch; None where the environment does not say.
    expires_at: float | None = None


def rds_token(host: str, port: int, user: str, region: str, keys: Keys, now: float) -> str:
    """
    Return the token that RDS, Aurora and RDS Proxy take for a password. Pure: the same arguments, the same token.

    Args: host: the endpoint's own name; a token for a name of one's own is refused. now: seconds since the epoch.
    Source: RDS User Guide, "Connecting using IAM authentication"; Signature Version 4, presigned query.
    """
    return _presign("rds-db", f"{host}:{port}", {"Action": "connect", "DBUser": user}, region, keys, now)


def dsql_token(host: str, user: str, region: str, keys: Keys, now: float) -> str:
    """
    Return the token that Aurora DSQL takes for a password: an administrator's for the user `admin`. Pure.

    Args: host: the cluster's own endpoint. now: seconds since the epoch.
    Source: Aurora DSQL User Guide, "Generating an authentication token"; Signature Version 4, presigned query.
    """
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
    encoded, request, key = Hidden(), Hidden(), Hidden()
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


class TokenSource:
    """
    A token signed for each connect, from whatever AWS credentials the environment has at that moment.

    Threads: safe; two that come at once may both fetch keys.
    """

    may_change = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._container_keys: Keys | None = None
        self._chain: Any = None

    def logins(self) -> Iterator[Login]:
        """
        Yield a token, and another one: keys may run out, or be exchanged, between a signature and the server's check.

        Blocks for two seconds at most where a container's endpoint has the keys, and for as long as botocore does where
        it is asked.
        Raises: CredentialsError where there are no keys, or none that can sign.
        """
        for _ in range(2):
            yield self._login(self._keys())
            self.forget()

    def explain(self, first: Login, refusal: Exception) -> None:  # noqa: ARG002
        """Raise CredentialsError with the usual causes, the most frequent first."""
        raise CredentialsError(self._explanation(refusal)) from refusal

    def forget(self) -> None:
        """Drop the keys."""
        self._container_keys = self._chain = None

    def prepare(self) -> None:
        """Nothing is missing where there are snapshots: the runtime's client asks by HTTP, too."""

    def _login(self, keys: Keys) -> Login:
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
            f"{self._settings.variable('auth')}={self._settings.auth} found no AWS credentials: a function has those "
            "of its role; elsewhere set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        try:
            from botocore.session import Session
        except ImportError as error:
            raise CredentialsError(f"{nowhere}; a profile requires botocore, which is not installed") from error
        try:
            if self._chain is None:
                self._chain = Session().get_credentials()
            # Renews them when they end within 15 minutes.
            keys = self._chain and self._chain.get_frozen_credentials()
        except Exception as error:
            if not is_librarys(error):
                raise
            raise CredentialsError(_explain_chain(error)) from without_frames(error)
        if not keys:
            raise CredentialsError(nowhere)
        return _checked(
            Keys(keys.access_key, keys.secret_key, keys.token), "a profile, or another place that botocore found,"
        )

    def _explanation(self, error: BaseException) -> str:
        settings = self._settings
        place = f"{settings.host}:{settings.port}"
        what = f"{place} refused the token of user {settings.user!r} twice (SQLSTATE {sqlstate_of(error)})"
        clock = "the AWS credentials have expired, or this machine's clock is wrong: a token is valid for 15 minutes"
        if settings.auth == "dsql":
            action = "DbConnectAdmin" if settings.user == "admin" else "DbConnect"
            causes = [
                f"the function's role is not allowed dsql:{action} on the cluster's ARN",
                f"the database role is not mapped to it (as admin: AWS IAM GRANT {settings.user} TO '<the role ARN>')",
                f"the cluster is not in {settings.region} ({settings.variable('region')})",
                f"{settings.variable('host')} is not the cluster's own endpoint",
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
                f"{settings.variable('host')} is a name of your own (CNAME) or an address, not the endpoint's, or "
                f"the endpoint is not in {settings.region} ({settings.variable('region')})"
            )
            asked = "the proxy does not require IAM (IAMAuth: REQUIRED)"
            known = "the proxy has neither a secret for this user nor IAM authentication to the database"
            granted = (
                f"the database user does not exist or lacks the role: GRANT rds_iam TO {settings.user} (a server that "
                "is neither RDS nor Aurora has no such role, and accepts no token)"
            )
            enabled = (
                "IAM authentication is not enabled on the instance or cluster: aws rds modify-db-instance, or "
                "modify-db-cluster, --enable-iam-database-authentication"
            )
            said = str(error)
            if proxy:
                # Its texts (RDS User Guide, "Troubleshooting for RDS Proxy") tell which step it was at; all stay
                # possible.
                causes = (
                    [known, allowed, named, clock, asked]
                    if "no credentials" in said
                    else [allowed, named, clock, known, asked]
                    if "IAM" in said
                    else [asked, known, allowed, named, clock]
                )
            elif sqlstate_of(error) == "28000" and "PAM" in said:
                # PAM is whom RDS asks about a user that has rds_iam; a user without it is asked for a password.
                causes = [allowed, enabled, named, clock, granted]
            else:
                causes = [granted, enabled, allowed, named, clock]
            causes.append("TLS is off somewhere along the way: IAM requires an encrypted connection")
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
        raise CredentialsError(f"AWS_CREDENTIAL_EXPIRATION must be a time in ISO 8601 format, not {ends!r}") from error
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
                f"the {name.replace('_', ' ')} of {where} contains a space, a line break or another invalid "
                "character: copy it again"
            )
    return keys


def _explain_chain(error: BaseException) -> str:
    """
    Say why botocore's providers gave nothing; of a program of the user's, which one of them may run, quote nothing.
    """
    kind = type(error).__name__
    shown = kind if kind == "CredentialRetrievalError" or error_code(error) else f"{kind}: {error}"
    code = error_code(error)
    cure = (
        "sign in again (aws sso login)"
        if "SSO" in kind or "Token" in kind
        else f"AWS refused it ({code}): the credentials that assume the role have expired or lack sts:AssumeRole"
        if code
        else "check AWS_PROFILE and the profile that it names"
    )
    return f"AWS credentials are not available from botocore's provider chain ({shown}): {cure}"


def _fetch_container_keys() -> Keys:
    """
    Ask the container's credential endpoint.

    Source: AWS SDKs and Tools Reference Guide, "Container credential provider": HTTPS, or these hosts only; the token
    of the file comes before the token of the variable.
    """
    import http.client

    url = urlsplit(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
    host = url.hostname or ""
    secure = url.scheme == "https"
    if not secure and not (url.scheme == "http" and _is_container_host(host)):
        raise CredentialsError(
            f"AWS_CONTAINER_CREDENTIALS_FULL_URI names {host!r}: HTTP is allowed only for this host itself"
        )
    headers, status = Hidden(), 0
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
                status, found = response.status, Document(lambda: response.read(1 << 16))
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        # ValueError: a header that cannot be sent, or a port that is none; its text may quote the header.
        why = "cannot be reached" if isinstance(error, ValueError) else f"did not answer: {error}"
        failure = None if isinstance(error, ValueError) else without_frames(error)
        gone = CredentialsError(f"the container's credential endpoint at {host!r} {why}")
    else:
        return _container_keys(found, host, status)
    raise gone from failure


def _container_keys(found: Document, host: str, status: int) -> Keys:
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
        f"the container's credential endpoint at {host!r} returned no credentials (HTTP status {status})"
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


def _epoch(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()
