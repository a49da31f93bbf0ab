"""
User and password from AWS Secrets Manager, also while they rotate.

Imported where an engine with PLUNGEPOOL_AUTH=secret is built, and by nobody else; boto3 by its first connect.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .credentials import (
    Document,
    Hidden,
    Login,
    chain_of,
    error_code,
    is_librarys,
    sqlstate_of,
    without_frames,
)
from .errors import CredentialsError, SettingsError
from .names import host_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .settings import Settings

_DEFAULT_DATABASE = "postgres"


class SecretSource:
    """
    User and password from Secrets Manager, kept until the server refuses them, then fetched anew.

    In a rotation the server changes some seconds before AWSCURRENT does (or after, where a replica lags): the version
    that is about to be current is tried, then the one before, then all again after a pause. With alternating users the
    secret's user changes; nothing here depends on it.
    Threads: safe; two that come at once may both fetch.
    Source: Secrets Manager User Guide, "Rotation by Lambda function" and "Rotation strategies".
    """

    may_change = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cached: Login | None = None
        self._read: Callable[[str], Document] | None = None
        self._process = 0

    def logins(self) -> Iterator[Login]:
        """
        Yield what the server took last; then what the versions of the secret hold, each fetched as it is asked for, and
        once.

        Blocks for PLUNGEPOOL_CONNECT_TIMEOUT_S and two seconds at most for each try to fetch one, and makes two tries.
        Raises: CredentialsError where a version cannot be fetched or holds no login; SettingsError where it is another
            user's, or no host is known.
        """
        refused: set[Login] = set()
        for stage in ("", "AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"):
            login = self._fetch(stage) if stage else self._cached
            if login is None or login in refused:
                continue
            self._cached = login
            yield login
            refused.add(login)
            if self._cached is login:  # and not what another thread has found meanwhile
                self._cached = None

    def explain(self, first: Login, refusal: Exception) -> None:
        """Raise CredentialsError, which names the secret, the user and the usual causes."""
        settings = self._settings
        if first.password != first.password.strip():
            cause = "its password begins or ends with a space or a line break, probably copied along with it"
        elif settings.endpoint == "proxy":
            cause = (
                "the secret's password is not the one that the proxy has for this user, the proxy's own secret for it "
                "is missing or wrong, or the proxy requires IAM (IAMAuth: REQUIRED; then set "
                f"{settings.variable('auth')}=iam)"
            )
        else:
            cause = (
                "the user does not exist, has no LOGIN, or has another password; a user with the role rds_iam is "
                "refused every password. If a rotation failed half way, run it again in Secrets Manager"
            )
        raise CredentialsError(
            f"{settings.host or first.host or 'the database'} refused every version of the secret "
            f"{settings.secret_arn!r} for {settings.connect_timeout_s:g} s (SQLSTATE {sqlstate_of(refusal)}, "
            f"user {first.user!r}): {cause}"
        ) from refusal

    def forget(self) -> None:
        """Drop the login, and the client that has read it."""
        self._cached = self._read = None

    def prepare(self) -> None:
        """Import what reads a secret, which takes longer than all the rest of a first connect."""
        for name in ("aws_lambda_powertools.utilities.parameters", "boto3"):
            with suppress(Exception):
                import_module(name)

    def _fetch(self, stage: str) -> Login | None:
        """Return the login that a version of the secret holds; None where the secret has no such version."""
        try:
            return self._login(self._reader()(stage))
        except Exception as error:
            if not is_librarys(error):
                raise
            code = error_code(error)
            if code == "ResourceNotFoundException" and stage != "AWSCURRENT":
                return None
            why = _explain_secret(error, self._settings)
            # What AWS says of a wrong signature quotes the request, with the session token in it: that is left out.
            failure = None if code in _SIGNATURE else without_frames(error)
        raise CredentialsError(why) from failure

    def _login(self, content: Document) -> Login:
        settings, name = self._settings, self._settings.secret_arn
        user = content.get("username")
        if not user or not content.get("password"):
            raise CredentialsError(f"the secret {name!r} must be a JSON object with username and password as text")
        if settings.user and settings.user != user:
            raise SettingsError(
                [
                    (
                        f"{settings.variable('user')} is {settings.user!r} but the secret's username is {user!r}; "
                        f"leave {settings.variable('user')} unset"
                    )
                ]
            )
        host, port = settings.host, settings.port
        if not host:
            # Where the settings name the endpoint (a proxy, a reader), the secret's address is another one's.
            host = content.get("host")
            port = _port(content.get("port", int)) or port
            if not host:
                raise SettingsError(
                    [f"{settings.variable('host')} is missing, and the secret {name!r} contains no host either"]
                )
            if problem := host_problem(host, settings.variable("port")):
                raise CredentialsError(f"the host in the secret {name!r} {problem}")
        database = settings.database
        if database == _DEFAULT_DATABASE:
            database = content.get("dbname") or database
        return Login(user, content.get("password"), host, port, database)

    def _reader(self) -> Callable[[str], Document]:
        # A forked child must not share the parent's HTTPS connection to Secrets Manager.
        if self._read is None or self._process != os.getpid():
            self._read, self._process = _secret_reader(self._settings), os.getpid()
        return self._read


def _secret_reader(settings: Settings) -> Callable[[str], Document]:
    """Return a function of a version's stage that reads the secret anew. Imports boto3."""
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

        def read(stage: str) -> Document:
            answer = Hidden()
            answer.text = client.get_secret_value(SecretId=name, VersionStage=stage)
            return Document(lambda: answer.text.get("SecretString") or answer.text["SecretBinary"])

        return read
    provider = parameters.SecretsProvider(boto_config=config)

    def read_by_powertools(stage: str) -> Document:
        # Its cache knows a secret by name alone, and a login is kept until it is refused: neither goes in nor comes
        # out.
        options: dict[str, Any] = {} if stage == "AWSCURRENT" else {"VersionStage": stage}
        answer = Hidden()
        answer.text = provider.get(name, max_age=0, **options)
        return Document(lambda: answer.text)

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
    name, region, code = settings.secret_arn, _region_of(settings) or "the default region", error_code(error)
    chain = list(chain_of(error))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__ if kind.__module__ == "botocore.exceptions"}
    words = " ".join(str(one) for one in chain) if code not in _SIGNATURE else ""
    what = f"the secret {name!r} could not be read ({code or _root(chain)}): "
    if isinstance(error, ImportError):
        return f"{what}{error.name} cannot be imported here; boto3 is part of Lambda's runtimes, elsewhere install it"
    if kinds.intersection(_NO_CREDENTIALS):
        return (
            f"{what}no AWS credentials; a function has those of its role, elsewhere set AWS_PROFILE or sign in again "
            "(aws sso login)"
        )
    if kinds & {"NoRegionError", "InvalidRegionError"}:
        return (
            f"{what}a secret given by name needs {settings.variable('region')} (or AWS_REGION), or give its whole ARN"
        )
    if kinds.intersection(_NO_WAY):
        return (
            f"{what}Secrets Manager in {region} cannot be reached from here; a function in a VPC needs a NAT gateway, "
            "or an interface endpoint for secretsmanager with private DNS whose security group allows port 443 from "
            "the function's"
        )
    if code in _SIGNER:
        return f"{what}AWS does not accept these credentials; renew them, and check this machine's clock"
    if code == "ResourceNotFoundException":
        return (
            f"{what}there is no such secret, or no current version of it, in {region}: check "
            f"{settings.variable('secret_arn')}, its region and its account"
        )
    if code == "DecryptionFailure" or (code == "AccessDeniedException" and "KMS" in words):
        return (
            f"{what}it is encrypted with a KMS key of your own: the role needs kms:Decrypt on it, also in the key's "
            "policy"
        )
    if code == "AccessDeniedException":
        return (
            f"{what}the role is not allowed secretsmanager:GetSecretValue on it; check the role's policy, the secret's "
            "own and, in a VPC, the interface endpoint's"
        )
    if code == "InvalidRequestException":
        return f"{what}the secret is about to be deleted, or has no value yet: restore it, or store one"
    if code in ("ThrottlingException", "InternalServiceError", "InternalServiceErrorException", "ServiceUnavailable"):
        return f"{what}Secrets Manager is throttling requests or unavailable: try again"
    return (
        f"{what}check {settings.variable('secret_arn')} and its region, and the role's secretsmanager:GetSecretValue "
        "(and kms:Decrypt with a key of your own)"
    )


def _root(chain: list[BaseException]) -> str:
    """Return the name of the error at the bottom that says most: AWS's own, where there is one."""
    return next(
        (type(one).__name__ for one in reversed(chain) if type(one).__module__.startswith("botocore")),
        type(chain[-1]).__name__,
    )


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65535 else None
