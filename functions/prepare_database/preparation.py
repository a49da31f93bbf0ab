"""
Make the database what the functions need: numbered migrations, the application's role, optionally a shop to look at.

All of it is one transaction under one lock: two invocations at once do it once, and a failure leaves nothing. It runs
as an administrator in a database in which others may create things, so no name is looked up where they may.
"""

import difflib
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, text

from plungepool.wire.scram import saslprep

HERE = Path(__file__).parent
# Any number does that nothing else in this database locks.
LOCK = 7_301_964_585
# An administrator's statements find PostgreSQL's own names and nothing that somebody else has created (CVE-2018-1058).
OWN_NAMES = "pg_catalog, pg_temp"
# In a script nothing is in the path that could take a new table, either: one without its schema's name is an error.
NO_NAMES = "''"
# The schema and the table in which an administrator writes, where somebody else could have put a trigger on them.
FOREIGN = text("""
    SELECT what, owner.rolname AS owner
    FROM (
        SELECT 'SCHEMA shop' AS what, nspowner AS owner FROM pg_catalog.pg_namespace WHERE nspname = 'shop'
        UNION ALL
        SELECT 'TABLE shop.migrations', relowner FROM pg_catalog.pg_class
        WHERE oid = pg_catalog.to_regclass('shop.migrations')
    ) AS used JOIN pg_catalog.pg_roles AS owner ON owner.oid = used.owner
    WHERE NOT owner.rolsuper AND owner.rolname <> current_user
""")
# Whether everybody may still create in schema public: an administrator who does not own it cannot take that back.
PUBLIC_MAY_CREATE = text("""
    SELECT true FROM pg_catalog.pg_namespace, LATERAL pg_catalog.aclexplode(nspacl) AS granted
    WHERE nspname = 'public' AND granted.grantee = 0 AND granted.privilege_type = 'CREATE'
""")
# What is set for a role: everywhere, and in this database alone, which goes before.
LIMITS = text("""
    SELECT role.rolconnlimit AS connection_limit, everywhere.setconfig AS everywhere, here.setconfig AS here
    FROM pg_catalog.pg_roles AS role
    LEFT JOIN pg_catalog.pg_db_role_setting AS everywhere
        ON everywhere.setrole = role.oid AND everywhere.setdatabase = 0
    LEFT JOIN pg_catalog.pg_db_role_setting AS here
        ON here.setrole = role.oid AND here.setdatabase
            = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    WHERE role.rolname = :role_name
""")
# The time-outs of the role, the variable for each, and the seconds where nothing is said; 0 sets none.
TIME_OUTS = {
    "statement_timeout": ("APP_ROLE_STATEMENT_TIMEOUT_S", 10),
    "lock_timeout": ("APP_ROLE_LOCK_TIMEOUT_S", 3),
    "idle_in_transaction_session_timeout": ("APP_ROLE_IDLE_IN_TRANSACTION_SESSION_TIMEOUT_S", 10),
    "idle_session_timeout": ("APP_ROLE_IDLE_SESSION_TIMEOUT_S", 900),
}
LONGEST_S = 86_400
NAMES = (
    *("role_name", "connection_limit", *(f"{name}_s" for name in TIME_OUTS)),
    *("role_password", "role_secret_arn", "iam_login", "demo_data"),
)
# A literal, a quoted name, a comment or a dollar-quoted body may hold a semicolon; one outside of them ends a
# statement.
TOKEN = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$|(;)""", re.DOTALL)


class PreparationError(Exception):
    """The options or the migrations are wrong; the text says which and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    What to prepare. Read from the event (role_name), ResourceProperties (RoleName) or variables (APP_ROLE_NAME).

    `role_password` is for servers without IAM, and may lie in a secret (role_secret_arn) as it does for an RDS Proxy;
    `iam_login` None grants rds_iam where it exists and no password is given. `time_outs_ms` has one for each of
    TIME_OUTS, by PostgreSQL's name; 0 is none.
    """

    role_name: str
    connection_limit: int
    time_outs_ms: dict[str, int]
    role_password: str | None = field(repr=False)
    iam_login: bool | None
    demo_data: bool

    @classmethod
    def read(cls, properties: dict) -> "Options":
        """
        Read the options. CloudFormation sends all values as text.

        Raises: PreparationError, which names every option that is wrong, and holds no password.
        """
        problems: list[str] = []

        def given(name: str, variable: str | None = None, default: object = None) -> object:
            for value in (properties.get(name), properties.get(name.title().replace("_", ""))):
                if value not in (None, ""):
                    return value
            return (os.environ.get(variable) if variable else None) or default

        def truth(name: str) -> bool | None:
            value = given(name)
            if value is not None and str(value).lower() not in ("true", "false"):
                problems.append(f"{name} must be true or false")
            return None if value is None else str(value).lower() == "true"

        if not isinstance(properties, dict):
            raise PreparationError("the event must be a JSON object with the options")
        # An option by another name would leave the limit at its default without a word. CloudFormation's own
        # properties, as ServiceToken, are written otherwise.
        for other in sorted(name for name in properties if re.fullmatch("[a-z_]+", name) and name not in NAMES):
            meant = difflib.get_close_matches(other, NAMES, 1)
            problems.append(f"{other} is not an option{f' (did you mean {meant[0]}?)' if meant else ''}")
        name = given("role_name", "APP_ROLE_NAME", "plungepool_app")
        limit = str(given("connection_limit", "APP_ROLE_CONNECTION_LIMIT", 20))
        if not is_text(name) or len(name.encode()) > 63:
            problems.append("role_name must be text of at most 63 bytes")
        if not re.fullmatch("[0-9]{1,5}", limit) or int(limit) < 1:
            problems.append("connection_limit must be a whole number from 1 to 99999")
        time_outs_ms = {}
        for time_out, (variable, default) in TIME_OUTS.items():
            seconds = str(given(f"{time_out}_s", variable, default))
            if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", seconds) and float(seconds) <= LONGEST_S:
                time_outs_ms[time_out] = round(float(seconds) * 1000)
            else:
                problems.append(f"{time_out}_s must be a number of seconds, from 0 (no time-out) to {LONGEST_S}")
        secret = given("role_secret_arn", "APP_ROLE_SECRET_ARN")
        if secret is not None and not is_text(secret):
            problems.append("role_secret_arn must be text")
        iam_login, demo_data = truth("iam_login"), truth("demo_data") or False
        if given("role_password") is not None and not is_text(given("role_password")):
            problems.append("role_password must be text")
        if problems:
            raise PreparationError("; ".join(problems))
        # Last, and kept in no variable: a crash reporter shows those of every frame that an error passes.
        return cls(
            role_name=name,
            connection_limit=int(limit),
            time_outs_ms=time_outs_ms,
            role_password=given("role_password")
            or (password_in_secret(secret, name) if secret else os.environ.get("APP_ROLE_PASSWORD") or None),
            iam_login=iam_login,
            demo_data=demo_data,
        )


def is_text(value: object) -> bool:
    """Tell whether a value is text that PostgreSQL and AWS can take: UTF-8 without NUL, which JSON can hold."""
    return isinstance(value, str) and "\0" not in value and value == value.encode(errors="replace").decode()


def prepare(connection: Connection, options: Options, remaining_s: float) -> dict:
    """
    Bring the schema up to date, set the role and its limits; any number of times, with the same result.

    Args: connection: the owner's, in a transaction. remaining_s: what the invocation has left; whatever would take
        longer, or wait for a lock longer, fails before, so that there is time to say so.
    Returns: {"applied": migrations applied now, "schema_version": int, "role_name": str, "connection_limit": int,
        "limits": what `compare` returns, "changed": the names of those that were changed, "public_may_create": whether
        everybody may still create in schema public}.
    Raises: PreparationError, sqlalchemy.exc.DBAPIError; the caller rolls back.
    """
    find_names(connection, OWN_NAMES)  # before anything else
    # An answer takes time, too.
    deadline = time.time() + remaining_s - min(10, remaining_s / 2)
    applied, version = migrate(connection, sorted((HERE / "migrations").glob("*.sql")), deadline)
    role_settings = {
        "role_name": options.role_name,
        "connection_limit": str(options.connection_limit),
        "role_password": scram_verifier(options.role_password) if options.role_password else "",
        "iam_login": "" if options.iam_login is None else str(options.iam_login).lower(),
        **{name: spell(ms) for name, ms in options.time_outs_ms.items()},
    }
    for name, value in role_settings.items():
        set_locally(connection, f"plungepool.{name}", value)
    before = limits(connection, options.role_name)
    run_file(connection, HERE / "roles.sql", deadline)
    compared = compare(before, limits(connection, options.role_name))
    if options.demo_data:
        run_file(connection, HERE / "demo_data.sql", deadline)
    return {
        "applied": applied,
        "schema_version": version,
        "role_name": options.role_name,
        "connection_limit": options.connection_limit,
        "limits": compared,
        "changed": [name for name, of in compared.items() if of["before"] != of["after"] or of["before_here"]],
        "public_may_create": bool(connection.execute(PUBLIC_MAY_CREATE).first()),
    }


def limits(connection: Connection, role_name: str) -> dict[str, tuple[int | str | None, str | None]]:
    """
    Return what limits a role has: for each by its name what is set everywhere, and what in this database alone.

    The number of connections is -1 where there is no limit; None is what is not set, and all of a role that is not
    there.
    """
    row = connection.execute(LIMITS, {"role_name": role_name}).first()
    everywhere, here = (dict(one.split("=", 1) for one in of or ()) for of in (row[1:] if row else (None, None)))
    found = {"connection_limit": (row.connection_limit if row else None, None)}
    return found | {name: (everywhere.get(name), here.get(name)) for name in TIME_OUTS}


def compare(before: dict, after: dict) -> dict[str, dict[str, int | str | None]]:
    """
    Return for each limit what was set before, what of it in this database alone, which went before, and what is now.
    """
    return {
        name: {"before": before[name][0], "before_here": before[name][1], "after": after[name][0]} for name in before
    }


def tell(limits: dict[str, dict[str, int | str | None]]) -> str:
    """Say in a line what `compare` found. Pure."""

    def shown(value: int | str | None) -> str:
        return "not set" if value is None else "unlimited" if value == -1 else "off" if value == "0" else str(value)

    said = []
    for name, of in limits.items():
        was = shown(of["before"]) + (f" ({of['before_here']} in this database)" if of["before_here"] else "")
        now = shown(of["after"])
        said.append(f"{name} {now}" if was == now else f"{name} {was} -> {now}")
    return ", ".join(said)


def spell(ms: int) -> str:
    """Return a time as PostgreSQL shows it, in the largest unit that it is a whole number of. Pure."""
    for unit, of_ms in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if ms and ms % of_ms == 0:
            return f"{ms // of_ms}{unit}"
    return f"{ms}ms" if ms else "0"


def migrate(connection: Connection, files: list[Path], deadline: float) -> tuple[list[str], int]:
    """
    Apply the files that were not applied before; a file is named 001_what_it_does.sql.

    Args: connection: one that finds OWN_NAMES, as `prepare` has it. deadline: seconds since the epoch.
    Returns: the names applied now, and the schema's version. Migrations that a newer version of this function applied
        stay: CloudFormation invokes the older one when it rolls a stack back.
    Raises: PreparationError where a file was changed after it was applied, a number is not its own, or the schema is
        somebody else's.
    """
    limit_time(connection, deadline)
    take_turn(connection)
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
            find_names(connection, NO_NAMES)
            run_file(connection, file, deadline)
            find_names(connection, OWN_NAMES)
            connection.execute(
                text("INSERT INTO shop.migrations (version, name, checksum) VALUES (:version, :name, :checksum)"),
                {"version": version, "name": file.name, "checksum": checksum},
            )
            applied.append(file.name)
        elif known[version].checksum != checksum:
            raise PreparationError(
                f"migration {file.name} differs from what was applied as {known[version].name}: restore the file, and "
                "put the changes into a new one"
            )
    return applied, max([*known, *versions], default=0)


def take_turn(connection: Connection) -> None:
    """
    Make schema and table of the migrations where there are none, and wait until no other invocation is at work.

    Raises: PreparationError where one of them belongs to somebody else, who could have this administrator run a
    trigger.
    """
    if connection.execute(text("SELECT pg_catalog.to_regclass('shop.migrations') IS NULL")).scalar_one():
        # Any role can hold an advisory lock, and so hold up the deployment: for the first time alone, when there is no
        # table yet that nobody else may lock.
        connection.execute(text("SELECT pg_catalog.pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS shop"))
    connection.execute(
        text("""
        CREATE TABLE IF NOT EXISTS shop.migrations (
            version pg_catalog.int4 PRIMARY KEY, name pg_catalog.text NOT NULL, checksum pg_catalog.text NOT NULL,
            applied_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now()
        )
        """)
    )
    if foreign := connection.execute(FOREIGN).first():
        raise PreparationError(
            f"{foreign.what.lower()} belongs to {foreign.owner}, who could make the administrator execute anything: "
            f"review what is in it, then ALTER {foreign.what} OWNER TO the role that prepares the database"
        )
    connection.execute(text("LOCK TABLE shop.migrations IN SHARE ROW EXCLUSIVE MODE"))


def run_file(connection: Connection, file: Path, deadline: float) -> None:
    """Run the statements of a file, one by one: the extended protocol takes no two in one message."""
    for statement in statements(file.read_text(encoding="utf-8")):
        limit_time(connection, deadline)
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
    """
    Return the password that a Secrets Manager secret holds for the role; raises PreparationError, which quotes none.
    """
    import boto3  # the runtime's; only who keeps the password in a secret waits for it
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = boto3.client("secretsmanager").get_secret_value(SecretId=arn)
    except (BotoCoreError, ClientError) as error:
        raise PreparationError(f"role_secret_arn: the secret {arn} cannot be read: {error}") from error
    password = password_in(answer, role_name)
    del answer  # as in Options.read
    if password is None:
        raise PreparationError(f"the secret {arn} must be JSON with the username {role_name!r} and a password")
    return password


def password_in(answer: dict, role_name: str) -> str | None:
    """
    Return the password in Secrets Manager's answer, or None where it is not as it should be. Pure; raises nothing.
    """
    try:
        secret = json.loads(answer["SecretString"])
        user, password = secret["username"], secret["password"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    return password if user == role_name and password and is_text(password) else None


def find_names(connection: Connection, search_path: str) -> None:
    """Have the server look for names without a schema there, until the transaction ends."""
    connection.execute(text(f"SET LOCAL search_path = {search_path}"))


def limit_time(connection: Connection, deadline: float) -> None:
    """Have the server end the next statement, or its wait for a lock, in time to say so; raises PreparationError."""
    left_s = deadline - time.time()
    if left_s <= 0:
        raise PreparationError("the time of the invocation is used up: increase the function's time-out")
    set_locally(connection, "statement_timeout", f"{max(1, int(left_s * 1000))}ms")
    set_locally(connection, "lock_timeout", f"{max(1, int(left_s * 1000 / 3))}ms")


def set_locally(connection: Connection, name: str, value: str) -> None:
    """Set a parameter of the server until the transaction ends."""
    connection.execute(
        text("SELECT pg_catalog.set_config(CAST(:name AS pg_catalog.text), CAST(:value AS pg_catalog.text), true)"),
        {"name": name, "value": value},
    )


def scram_verifier(password: str) -> str:
    """
    Return what PostgreSQL keeps of a password: the password itself then never leaves this process.

    Source: PostgreSQL, pg_authid, "SCRAM-SHA-256$<iteration count>:<salt>$<StoredKey>:<ServerKey>"; RFC 5802, section
    3.
    """
    salt, iterations = secrets.token_bytes(16), 4096
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password.encode()), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"
