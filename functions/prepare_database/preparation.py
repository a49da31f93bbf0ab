"""
Make the database what the functions need: numbered migrations, the application's role, on wish a shop to look at.

All of it is one transaction under one advisory lock: two invocations at once do it once, and a failure leaves nothing.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from scramp import ScramMechanism
from sqlalchemy import Connection, text

HERE = Path(__file__).parent
# Any number does that nothing else in this database locks.
LOCK = 7_301_964_585
# A literal, a quoted name, a comment or a dollar-quoted body may hold a semicolon; one outside of them ends a statement.
TOKEN = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$|(;)""", re.DOTALL)


class PreparationError(Exception):
    """The options or the migrations are wrong; the text says which and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    What to prepare. Read from the event (role_name), ResourceProperties (RoleName) or variables (APP_ROLE_NAME).

    `role_password` is for servers without IAM, and may lie in a secret (role_secret_arn) as it does for an RDS Proxy;
    `iam_login` None grants rds_iam where it exists and no password is given.
    """

    role_name: str
    connection_limit: int
    role_password: str | None = field(repr=False)
    iam_login: bool | None
    demo_data: bool

    @classmethod
    def read(cls, properties: dict) -> "Options":
        """Read the options; raises PreparationError, which holds no password. CloudFormation sends all values as text."""

        def given(name: str, variable: str | None = None, default: object = None) -> object:
            for value in (properties.get(name), properties.get(name.title().replace("_", ""))):
                if value not in (None, ""):
                    return value
            return (os.environ.get(variable) if variable else None) or default

        def truth(name: str) -> bool | None:
            value = given(name)
            if value is not None and str(value).lower() not in ("true", "false"):
                raise PreparationError(f"{name} must be true or false")
            return None if value is None else str(value).lower() == "true"

        name = given("role_name", "APP_ROLE_NAME", "plungepool_app")
        limit = str(given("connection_limit", "APP_ROLE_CONNECTION_LIMIT", 20))
        if not isinstance(name, str) or "\0" in name or len(name.encode(errors="replace")) > 63:
            raise PreparationError("role_name must be text of at most 63 bytes")
        if not re.fullmatch("[0-9]{1,5}", limit) or int(limit) < 1:
            raise PreparationError("connection_limit must be a whole number from 1 to 99999")
        secret = given("role_secret_arn", "APP_ROLE_SECRET_ARN")
        password = given("role_password")
        if password is None:
            password = password_in_secret(str(secret), name) if secret else os.environ.get("APP_ROLE_PASSWORD") or None
        if password is not None and not isinstance(password, str):
            raise PreparationError("role_password must be text")
        return cls(
            role_name=name,
            connection_limit=int(limit),
            role_password=password,
            iam_login=truth("iam_login"),
            demo_data=truth("demo_data") or False,
        )


def prepare(connection: Connection, options: Options, remaining_s: float) -> dict:
    """
    Bring the schema up to date, set the role and its limits; any number of times, with the same result.

    Args: connection: the owner's, in a transaction. remaining_s: what the invocation has left; a statement that would
        take longer, or wait for a lock longer, fails before, so that there is time to say so.
    Returns: {"applied": migrations applied now, "schema_version": int, "role_name": str, "connection_limit": int}.
    Raises: PreparationError, sqlalchemy.exc.DBAPIError; the caller rolls back.
    """
    limits = {
        "statement_timeout": f"{max(1, int(remaining_s - 10))}s",
        "lock_timeout": f"{max(1, int(remaining_s / 3))}s",
    }
    for name, value in limits.items():
        set_locally(connection, name, value)
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    applied, version = migrate(connection, sorted((HERE / "migrations").glob("*.sql")))
    role_settings = {
        "role_name": options.role_name,
        "connection_limit": str(options.connection_limit),
        "role_password": scram_verifier(options.role_password) if options.role_password else "",
        "iam_login": "" if options.iam_login is None else str(options.iam_login).lower(),
    }
    for name, value in role_settings.items():
        set_locally(connection, f"plungepool.{name}", value)
    run_file(connection, HERE / "roles.sql")
    if options.demo_data:
        run_file(connection, HERE / "demo_data.sql")
    return {
        "applied": applied,
        "schema_version": version,
        "role_name": options.role_name,
        "connection_limit": options.connection_limit,
    }


def migrate(connection: Connection, files: list[Path]) -> tuple[list[str], int]:
    """
    Apply the files that were not applied before; a file is named 001_what_it_does.sql.

    Returns: the names applied now, and the schema's version. Migrations that a newer version of this function applied
        stay: CloudFormation invokes the older one when it rolls a stack back.
    Raises: PreparationError where a file was changed after it was applied, or a number is not its own.
    """
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS shop"))
    connection.execute(
        text("""
        CREATE TABLE IF NOT EXISTS shop.migrations (
            version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        )
        """)
    )
    known = {
        row.version: row for row in connection.execute(text("SELECT version, name, checksum FROM shop.migrations"))
    }
    versions = [int(file.name.partition("_")[0]) for file in files]
    if len(set(versions)) < len(versions):
        raise PreparationError("two migrations have the same number: give each its own")
    applied = []
    for version, file in zip(versions, files, strict=True):
        checksum = hashlib.sha256(file.read_text(encoding="utf-8").encode()).hexdigest()
        if version not in known:
            run_file(connection, file)
            connection.execute(
                text("INSERT INTO shop.migrations (version, name, checksum) VALUES (:version, :name, :checksum)"),
                {"version": version, "name": file.name, "checksum": checksum},
            )
            applied.append(file.name)
        elif known[version].checksum != checksum:
            raise PreparationError(
                f"migration {file.name} is not what was applied as {known[version].name}: restore the file, and write "
                f"what is to change into a new one"
            )
    return applied, max([*known, *versions], default=0)


def run_file(connection: Connection, file: Path) -> None:
    """Run the statements of a file, one by one: the extended protocol takes no two in one message."""
    for statement in statements(file.read_text(encoding="utf-8")):
        # A colon before a word is a parameter to SQLAlchemy's text(); in a file it is a colon.
        connection.execute(text(re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", statement)))


def statements(sql: str) -> list[str]:
    """Split a script at the semicolons that end a statement; what holds nothing but comments is left out. Pure."""
    found, start = [], 0
    for end in [*(token.start() for token in TOKEN.finditer(sql) if token[2]), len(sql)]:
        if TOKEN.sub(lambda token: "" if token[0].startswith(("--", "/*")) else token[0], sql[start:end]).strip():
            found.append(sql[start:end].strip())
        start = end + 1
    return found


def password_in_secret(arn: str, role_name: str) -> str:
    """Return the password that a Secrets Manager secret holds for the role; raises PreparationError, which quotes none."""
    import boto3  # the runtime's; only who keeps the password in a secret waits for it
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = boto3.client("secretsmanager").get_secret_value(SecretId=arn)
    except (BotoCoreError, ClientError) as error:
        raise PreparationError(f"role_secret_arn: the secret {arn} cannot be read: {error}") from error
    try:
        secret = json.loads(answer["SecretString"])
        user, password = secret["username"], secret["password"]
    except (KeyError, TypeError, ValueError):
        user = password = None
    if user != role_name or not isinstance(password, str) or not password:
        raise PreparationError(f"the secret {arn} must be JSON with the username {role_name!r} and a password")
    return password


def set_locally(connection: Connection, name: str, value: str) -> None:
    """Set a parameter of the server until the transaction ends."""
    connection.execute(text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})


def scram_verifier(password: str) -> str:
    """
    Return what PostgreSQL keeps of a password: the password itself then never leaves this process.

    Source: PostgreSQL, pg_authid, "SCRAM-SHA-256$<iteration count>:<salt>$<StoredKey>:<ServerKey>".
    """
    from base64 import b64encode

    salt, stored_key, server_key, iterations = ScramMechanism("SCRAM-SHA-256").make_auth_info(password)
    salt, stored_key, server_key = (b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${iterations}:{salt}${stored_key}:{server_key}"
