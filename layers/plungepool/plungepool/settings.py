"""What an engine is made from: read once, checked as a whole, never changed. Pure: no I/O, no clock."""

from __future__ import annotations

import functools
from dataclasses import InitVar, dataclass, field, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from .errors import SettingsError
from .names import PREFIX, host_problem, local_setting_problem, split_address, variable, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_CHOICES = {
    "endpoint": ("direct", "proxy"),
    "access": ("read-write", "read-only"),
    "auth": ("password", "secret", "iam", "dsql"),
    "tls": ("verify-full", "disable"),
    "tls_negotiation": ("postgres", "direct"),
    "startup": ("pipelined", "stepwise"),
    "pool": ("tiny", "null", "adaptive"),
    "pinning": ("warn", "refuse"),
    "deadline": ("server", "client", "off"),
    "leaks": ("close", "raise"),
    "shutdown": ("extension", "signal", "off"),
    "recorder": ("on", "off"),
    "metrics": ("on", "off"),
    "sql_comment": ("on", "off"),
    "slow_query_explain": ("on", "off"),
}
_SWITCHES = ("connect_on_restore",)
_TEXTS = ("host", "address", "database", "user", "password", "secret_arn", "region", "ca_file", "fleet")
# RDS Proxy ends a client connection after 24 hours whatever it does (RDS User Guide, rds-proxy-connections), Aurora
# DSQL after 60 minutes (its quotas); a connection handed out just before must still live for a whole invocation.
_MAX_AGE_S_AT_MOST = {"proxy": 23 * 3600.0, "dsql": 55 * 60.0}

# A socket, the server's statement_timeout (an int of milliseconds) and TCP's keep-alive (at most 32767 s of two fifths)
# each overflow somewhere above; below a millisecond a socket may take the rest for 0, which means "never block" to it.
_SHORTEST_S = 0.001
_SECONDS_AT_MOST = {
    "checkout_timeout_s": 1e6,
    "connect_timeout_s": 1e6,
    "dead_peer_timeout_s": 3600.0,
    "deadline_margin_s": 900.0,
    "max_age_s": 1e6,
    "ping_after_idle_s": 1e6,
    "slow_query_s": 1e6,
    "statement_timeout_s": 1e6,
}
_BOUNDS = {
    "port": (1, 65535),
    "pool_size": (1, 1000),
    # PostgreSQL's max_connections has no more.
    "fleet_limit": (0, 262143),
}
_ZERO_MEANS_SOMETHING = ("deadline_margin_s", "ping_after_idle_s", "slow_query_s", "statement_timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Settings of one engine, given as keywords or read by `from_env`.

    Args: each field is the environment variable PLUNGEPOOL_<NAME>; docs/reference/settings.md is written from the
        comments beside them. `url` replaces host, port, database, user and, if it contains one, password. `prefix` is
        not a variable, but what the name of each one begins with: settings with different prefixes have separate
        engines, and each error names its own variables.
    Raises: SettingsError, which names every problem at once and no value of a secret.
    Units: every `*_s` is in seconds of wall clock, because frozen time counts.
    """

    # -- The server
    #: `postgresql://user@host:port/database`, with special characters percent-encoded; or use HOST, PORT, DATABASE and
    #: USER instead. The password may be part of it, or be in PLUNGEPOOL_PASSWORD.
    url: InitVar[str | None] = None
    #: The endpoint's own name, which the server's certificate and the IAM token are for. With `secret`, the secret may
    #: contain it.
    host: str = ""
    #: The port of the endpoint.
    port: int = 5432
    #: Connect to this host (and port), although the certificate and the token are for HOST and PORT, like libpq's
    #: `hostaddr`: for a [tunnel](tunnel.md).
    address: str | None = None
    #: The name of the database.
    database: str = "postgres"
    #: The database role. With `secret`, the secret contains it.
    user: str | None = None
    #: What HOST is: `direct` is the database itself, `proxy` a transaction pooler in front of it, such as [RDS
    #: Proxy](rds-proxy.md).
    endpoint: str = "direct"
    #: `read-only`: the engine refuses to write, which costs no round trip ([a writer and a
    #: reader](databases.md#a-writer-and-a-reader)).
    access: str = "read-write"
    # -- The login
    #: How to log in ([authentication and TLS](authenticate.md)): with a `password`, with a Secrets Manager `secret`,
    #: with a token for RDS, Aurora or RDS Proxy (`iam`), with a token for Aurora DSQL (`dsql`).
    auth: str = "password"
    #: For `password`, as in local development. It is never shown in an error, a repr or a log line.
    password: str | None = field(default=None, repr=False)
    #: For `secret`: a Secrets Manager secret, by ARN or by name.
    secret_arn: str | None = None
    #: The Region of the database, for which `iam` and `dsql` sign a token.
    region: str | None = None
    # -- TLS and the start of a session
    #: `verify-full` verifies the server's certificate and host name; `disable` sends everything in plain text.
    tls: str = "verify-full"
    #: How TLS is negotiated, like libpq's `sslnegotiation`: `postgres` requests it first; `direct` starts it at once,
    #: which saves a round trip and needs PostgreSQL 17 or newer.
    tls_negotiation: str = ""
    #: `pipelined` sends a token along with the start-up packet, saving a round trip; `stepwise` waits for a request.
    startup: str = "pipelined"
    #: A PEM file of certificate authorities to trust instead of those that the layer contains.
    ca_file: str | None = None
    # -- Connections
    #: What happens to a connection that is returned: `tiny` keeps it, `null` closes it, `adaptive` keeps it while the
    #: fleet is below its limit ([tickets](adaptive.md)).
    pool: str = "tiny"
    #: The maximum number of connections of an environment; there is no overflow.
    pool_size: int = 1
    #: For `adaptive`: how many connections the fleet may have; 0 means as many as role, database and server allow.
    fleet_limit: int = 0
    #: For `adaptive`: the name of this fleet, if several fleets log in as the same role.
    fleet: str = ""
    # -- Time limits
    #: How long a checkout waits for a connection to be returned. If no deadline is known, also how long a refused
    #: connect is retried.
    checkout_timeout_s: float = 5.0
    #: How long a connect may take, including TCP, TLS and authentication.
    connect_timeout_s: float = 5.0
    #: How long to wait for a network that no longer delivers anything.
    dead_peer_timeout_s: float = 10.0
    #: A connection that has been idle for this long, by the wall clock, is pinged before it is handed out.
    ping_after_idle_s: float = 30.0
    #: A connection older than this is not handed out again.
    max_age_s: float = 1800.0
    #: The server's `statement_timeout`; 0 means that of the role.
    statement_timeout_s: float = 0.0
    # -- Statements and invocations
    #: Behind a proxy, what happens to a statement that would cause [pinning](rds-proxy.md): `warn` sends and logs it,
    #: `refuse` raises `PinningRefused`.
    pinning: str = "warn"
    #: With `guard_invocation`, who enforces the deadline of the [invocation](invocation.md): the `server` (and the
    #: client), the `client` only, or neither (`off`).
    deadline: str = ""
    #: The time that the deadline leaves for the handler to respond, at most half of the remaining time.
    deadline_margin_s: float = 0.5
    #: A connection that is still checked out after the invocation is closed and logged (`close`), or also raises an
    #: error (`raise`, for tests).
    leaks: str = "close"
    #: Names of [settings](tenants.md), separated by commas, that every transaction must have.
    require_settings: tuple[str, ...] = ()
    #: How connections are closed in order when [the environment ends](shutdown.md): `extension` registers with Lambda
    #: to be told, `signal` relies on another extension that does so, `off` does neither.
    shutdown: str = "extension"
    # -- Observing
    #: A statement that takes this long is written to the log as [one line](slow-queries.md), without its values; 0
    #: means none.
    slow_query_s: float = 1.0
    #: `on`: when the connection of a slow SELECT is returned, the planner is asked why it was slow, and its answer is
    #: [a second line](slow-queries.md#why). Never behind a proxy, and not with `dsql`.
    slow_query_explain: str = "on"
    #: `on`: an invocation that fails, misses its deadline or is slow leaves its last exchanges in one line of the log,
    #: for `plungepool timeline` ([observe](observe.md)).
    recorder: str = "off"
    #: `on`: what each invocation did with the database is sent to CloudWatch as [metrics](observe.md), by Powertools.
    metrics: str = "off"
    #: `on`: function, version, request and trace are appended to each statement as a [comment](observe.md).
    sql_comment: str = "off"
    # -- SnapStart
    #: `true`: with [SnapStart](snapstart.md), connect while an environment is restored.
    connect_on_restore: bool = False
    # No variable, but what stands before the name of each one.
    prefix: str = ""

    def __post_init__(self, url: str | None) -> None:
        if problem := _prefix_problem(self.prefix):
            raise SettingsError([problem])  # every other text would name variables by it
        problems = self._take_url(url) if url else []
        if isinstance(self.password, str):
            self._set("password", _Password(self.password))
        if self.tls_negotiation == "":
            # Aurora DSQL speaks TLS from the first byte; PostgreSQL before 17 has to be asked for it.
            self._set("tls_negotiation", "direct" if self.auth == "dsql" else "postgres")
        if self.deadline == "":
            # What is set in a transaction pins RDS Proxy, and Aurora DSQL has no such settings: there the client's word
            # has to do.
            self._set("deadline", "client" if self.endpoint == "proxy" or self.auth == "dsql" else "server")
        if isinstance(self.require_settings, (list, tuple)):
            names = [name.lower() if isinstance(name, str) else name for name in self.require_settings]
            self._set("require_settings", tuple(names))
        wrong = dict(self._wrong_values())
        # What contradicts a value that is wrong by itself would only mislead, and so would calling missing what stands
        # in a URL that cannot be read.
        unread = {"user", "password"} if problems and not self.host else set()
        if unread:
            wrong.pop("host", None)
        known = wrong.keys() | unread
        contradictions = [text for names, text in _contradictions(self) if known.isdisjoint(names)]
        problems += [*wrong.values(), *contradictions]
        if problems:
            raise SettingsError(problems)

    @property
    def margin_s(self) -> float | None:
        """What the invocation's deadline leaves for the handler, in seconds; None where there is no deadline."""
        return None if self.deadline == "off" else self.deadline_margin_s

    @property
    def policy(self) -> str:
        """
        What is kept: `tiny`, `null` or `adaptive`; behind a proxy, whose connections are the ones that count, adaptive
        is tiny.
        """
        return "tiny" if self.pool == "adaptive" and self.endpoint == "proxy" else self.pool

    @property
    def reads_only(self) -> str:
        """Why an engine of these settings refuses to write, for its errors; empty where it does not."""
        return f"this engine is read-only ({self.variable('access')}=read-only)" if self.access == "read-only" else ""

    def variable(self, name: str) -> str:
        """Return the environment variable of one of these settings, with the prefix: for the text of an error."""
        return variable(name, self.prefix)

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, prefix: str = "") -> Settings:
        """
        Read the settings from environment variables; an empty value counts as not set.

        Args: environ: usually `os.environ`. A PLUNGEPOOL_ name that is not a setting is an error, so that a typo does
            not go unnoticed. AWS_REGION is the default for PLUNGEPOOL_REGION. prefix: for one database of several: with
            "REPORTS_", the variables are REPORTS_PLUNGEPOOL_HOST and so on, and nothing is taken from those without the
            prefix.
        Raises: SettingsError, which names every problem at once.
        """
        settings, problems = cls._read(environ, prefix)
        # What is raised from here shows the locals of this frame to a crash reporter.
        del environ
        if settings is None:
            raise SettingsError(problems)
        return settings

    @classmethod
    def _read(cls, environ: Mapping[str, str], prefix: str) -> tuple[Settings | None, list[str]]:
        """Return the settings, or what is wrong; raises nothing, since its locals hold every value."""
        if problem := _prefix_problem(prefix):
            return None, [problem]
        problems = list(_misplaced(environ, prefix)) if prefix else []
        values: dict[str, Any] = {"prefix": prefix}
        start = prefix + PREFIX
        given = {key: value for key, value in environ.items() if key.startswith(start)}
        for key, value in sorted(given.items()):
            name = key.removeprefix(start).lower()
            if key != key.upper() or name not in _READERS:
                import difflib  # for a typo only: not at a cold start that goes well

                close = difflib.get_close_matches(key.upper(), [variable(known, prefix) for known in _READERS], n=1)
                problems.append(f"{key} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
            elif value:
                try:
                    values[name] = _READERS[name](value)
                except ValueError as error:
                    if _has_line_break(value):
                        # As a value copied with its line's end has it; of text the settings say so themselves.
                        error = ValueError(f"{error}, without a line break at its beginning or end")
                    problems.append(f"{key} must be {error}")
        if "region" not in values and environ.get("AWS_REGION"):
            values["region"] = environ["AWS_REGION"]
        try:
            settings = cls(**values)
        except SettingsError as error:
            # What could not be read fell back to its default; only what the rest says is added.
            return None, [*problems, *error.problems]
        return (None if problems else settings), problems

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _take_url(self, url: str) -> list[str]:
        """Fill the parts from the URL; return what is wrong with it, never quoting it: it may hold a password."""
        variable = self.variable
        here = variable("url")
        if any(character.isspace() or character < " " for character in url):
            # urlsplit would drop some of them without a word.
            return [f"{here} must not contain spaces or line breaks (a copied value may end with one)"]
        shape = (
            f"{here} must have the form postgresql://user@host:5432/database, with special characters percent-encoded"
        )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return [f"{shape}; its host or port is not valid"]
        if parts.scheme not in ("postgresql", "postgres", "postgresql+plungepool") or not parts.hostname:
            return [shape]
        problems = []
        if parts.query or parts.fragment:
            problems.append(
                f"{here} must end after the database: options have settings of their own (percent-encode a '?' or '#' "
                "in a name or password)"
            )
        found = {
            "host": parts.hostname,
            "port": port,
            "database": unquote(parts.path[1:]) or None,
            "user": unquote(parts.username or "") or None,
            "password": unquote(parts.password or "") or None,
        }
        defaults = {one.name: one.default for one in fields(self)}
        for name, value in found.items():
            if value is None:
                continue
            if getattr(self, name) != defaults[name] and getattr(self, name) != value:
                problems.append(f"{variable(name)} and {here} differ; keep one of the two")
            self._set(name, value)
        return problems

    def _wrong_values(self) -> Iterator[tuple[str, str]]:
        """Yield (setting, what is wrong with its value by itself)."""
        variable = self.variable
        for name in (*_CHOICES, *_TEXTS):
            value = getattr(self, name)
            if value is None and name not in _CHOICES:
                continue
            if not isinstance(value, str) or not _is_plain(value):
                yield name, f"{variable(name)} must be text that can be encoded as UTF-8, without NUL characters"
            elif _has_line_break(value):
                yield (
                    name,
                    f"{variable(name)} begins or ends with a line break, probably copied along with it; remove it",
                )
            elif name in _CHOICES and value not in _CHOICES[name]:
                yield name, f"{variable(name)} must be one of {', '.join(_CHOICES[name])}, not {value!r}"
            elif name in _SHAPES and value and (problem := _SHAPES[name](value, variable("port"))):
                yield name, f"{variable(name)} {problem}"
        if not self.host and self.auth != "secret":  # a secret may hold the host
            yield "host", f"{variable('host')} is missing (or {variable('url')})"
        if not self.database:
            yield "database", f"{variable('database')} must not be empty"
        for name, (lowest, highest) in _BOUNDS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
                yield name, f"{variable(name)} must be a whole number from {lowest} to {highest}, not {_shown(value)}"
        for name in _SWITCHES:
            value = getattr(self, name)
            if not isinstance(value, bool):
                yield name, f"{variable(name)} must be true or false, not {_shown(value)}"
        for name, longest in _SECONDS_AT_MOST.items():
            value = getattr(self, name)
            or_zero = name in _ZERO_MEANS_SOMETHING
            if not (_is_number(value) and (_SHORTEST_S <= value <= longest or (or_zero and value == 0))):
                bounds = f"{'0, or ' if or_zero else ''}from {_SHORTEST_S:g} to {longest:.0f}"
                yield name, f"{variable(name)} must be a number of seconds, {bounds}, not {_shown(value)}"

        names: Any = self.require_settings
        if not isinstance(names, tuple):
            yield "require_settings", f"{variable('require_settings')} must be a tuple of names"
        elif problems := list(filter(None, map(local_setting_problem, names))):
            yield "require_settings", f"{variable('require_settings')}: {'; '.join(problems)}"


class _Password(str):
    """
    A text that its repr does not show.

    What goes through the fields of a Settings (dataclasses.replace, asdict, a crash reporter) has it in a local
    variable.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"


def _without_values(init: Callable[..., None]) -> Callable[..., None]:
    """
    Let what a constructor raises leave it without its frames: a crash reporter would show the values, password
    included.
    """

    @functools.wraps(init)
    def __init__(self: Settings, **values: Any) -> None:  # noqa: N807
        try:
            init(self, **values)
        except (SettingsError, TypeError) as error:
            failure = error.with_traceback(None)
        else:
            return
        del self, values
        # Outside the clause: what is raised within one keeps the first error, and with it the frames.
        raise failure

    return __init__


Settings.__init__ = _without_values(Settings.__init__)  # type: ignore[method-assign]


def prefixes(environ: Mapping[str, str]) -> list[str]:
    """Return the prefixes under which the variables name a database; "" where they do without one."""
    names = _names_by_prefix(environ)
    return [prefix for prefix in names if not _prefix_problem(prefix) and not _NAMES_A_SERVER.isdisjoint(names[prefix])]


def _contradictions(settings: Settings) -> Iterator[tuple[set[str], str]]:
    """Yield (the settings involved, how they contradict each other)."""
    variable = settings.variable
    auth = f"{variable('auth')}={settings.auth}"
    if not settings.user and settings.auth != "secret":
        yield {"user", "auth"}, f"{variable('user')} is missing; {auth} needs it"
    if settings.auth == "password" and not settings.password:
        yield {"password", "auth"}, f"{variable('password')} is missing; {auth} needs it"
    if settings.auth != "password" and settings.password:
        yield {"password", "auth"}, f"{variable('password')} has no effect with {auth}; remove it"
    if settings.auth == "secret" and not settings.secret_arn:
        yield {"secret_arn", "auth"}, f"{variable('secret_arn')} is missing; {auth} needs it"
    if settings.auth != "secret" and settings.secret_arn:
        yield {"secret_arn", "auth"}, f"{variable('secret_arn')} has no effect with {auth}; remove it"
    if settings.auth in ("iam", "dsql"):
        if not settings.region:
            yield {"region", "auth"}, f"{variable('region')} (or AWS_REGION) is missing; {auth} signs for a region"
        if settings.tls == "disable":
            text = f"{variable('tls')}=disable would send the token of {auth} in plain text; use verify-full"
            yield {"tls", "auth"}, text
    if settings.ca_file and settings.tls == "disable":
        text = f"{variable('ca_file')} has no effect with {variable('tls')}=disable; remove one of them"
        yield {"ca_file", "tls"}, text
    if settings.tls_negotiation == "direct" and settings.tls == "disable" and settings.auth != "dsql":
        text = f"{variable('tls_negotiation')}=direct contradicts {variable('tls')}=disable; remove one of them"
        yield {"tls_negotiation", "tls"}, text
    if settings.connect_on_restore and settings.pool == "null":
        text = (
            f"{variable('connect_on_restore')} has no effect with {variable('pool')}=null, which keeps no "
            "connection; remove one of them"
        )
        yield {"connect_on_restore", "pool"}, text
    yield from _fleet_contradictions(settings)
    if settings.endpoint == "proxy" and settings.auth == "dsql":
        text = f"{variable('endpoint')}=proxy cannot be used with {auth}: there is no RDS Proxy for Aurora DSQL"
        yield {"endpoint", "auth"}, text
    if settings.endpoint == "proxy" and settings.statement_timeout_s:
        text = (
            f"{variable('statement_timeout_s')} cannot be sent through a proxy; set statement_timeout on the database "
            "role"
        )
        yield {"endpoint", "statement_timeout_s"}, text
    for by, longest in _MAX_AGE_S_AT_MOST.items():
        if by in (settings.endpoint, settings.auth) and _is_number(settings.max_age_s) and settings.max_age_s > longest:
            text = f"{variable('max_age_s')} must be at most {longest:g} with {by}, which ends older connections"
            yield {"endpoint", "auth", "max_age_s"}, text


def _fleet_contradictions(settings: Settings) -> Iterator[tuple[set[str], str]]:
    """Yield those of what is for a fleet's tickets alone."""
    variable, adaptive = settings.variable, f"{settings.variable('pool')}=adaptive"
    if settings.pool != "adaptive":
        for name in ("fleet_limit", "fleet"):
            if getattr(settings, name):
                text = f"{variable(name)} has no effect without {adaptive}; remove one of them"
                yield {name, "pool"}, text
    elif settings.auth == "dsql":
        text = f"{adaptive} cannot be used with {variable('auth')}=dsql: Aurora DSQL has no advisory locks; use tiny"
        yield {"pool", "auth"}, text
    elif settings.fleet and not settings.fleet_limit:
        text = (
            f"{variable('fleet')} needs {variable('fleet_limit')}: a role's connection limit is for everything that "
            "logs in as the role, and one of several fleets may use only a part of it"
        )
        yield {"fleet", "fleet_limit"}, text


def _prefix_problem(prefix: object) -> str | None:
    if prefix == "":
        return None
    if not isinstance(prefix, str) or PREFIX in f"{prefix}_":
        return f"prefix must be what comes before {PREFIX} in the names of the variables, such as REPORTS_, or empty"
    letters = prefix.replace("_", "")
    if not (
        prefix[0].isalpha() and prefix[-1] == "_" and letters.isascii() and letters.isalnum() and letters.isupper()
    ):
        return (
            "prefix must consist of capital letters, digits and underscores, and end with an underscore, such as "
            "REPORTS_"
        )
    return None


def _misplaced(environ: Mapping[str, str], prefix: str) -> Iterator[str]:
    """
    Yield which variables have a prefix that is a typo of this one, and where there is none of this one.

    Two databases may have names as near as READER1_ and READER2_; but variables that name no endpoint are of no
    database, and nobody could use them.
    """
    if not any(key.startswith(prefix + PREFIX) for key in environ):
        others = ", ".join(other for other in prefixes(environ) if other)
        yield f"no variable begins with {prefix}{PREFIX}" + (f"; the prefixes in use are {others}" if others else "")
    for other, names in _names_by_prefix(environ).items():
        if other not in ("", prefix) and _NAMES_A_SERVER.isdisjoint(names):
            import difflib  # for a typo only

            if difflib.get_close_matches(other.upper(), [prefix], cutoff=_NEARLY):
                for name in names:
                    right = variable(name, prefix)
                    yield f"{variable(name, other)} belongs to no database; did you mean {right}?"


def _names_by_prefix(environ: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the settings that stand in the variables, by what stands before PLUNGEPOOL_ there."""
    names: dict[str, list[str]] = {}
    for key in sorted(environ):
        before, found, name = key.partition(PREFIX)
        if found and name.isupper() and name.lower() in _READERS and environ[key]:
            names.setdefault(before, []).append(name.lower())
    return names


# One of these is in the settings of every database.
_NAMES_A_SERVER = frozenset(("url", "host", "secret_arn"))
# How alike two prefixes are of which one is a typo: a letter left out or two exchanged.
_NEARLY = 0.75


def _address_problem(value: str, port_variable: str) -> str | None:
    shape = "must be a host or address to connect to, with or without a port: host, host:5432, [::1]:5432"
    try:
        host, port = split_address(value, 1)
    except ValueError:
        return shape
    if not 1 <= port <= 65535:
        return "must have a port from 1 to 65535"
    return shape if host_problem(host, port_variable) else None


def _region_problem(value: str, _: str) -> str | None:
    # No pattern on the way that every cold start takes: compiling one is dearer than all the rest here.
    letters = value.replace("-", "")
    return (
        None
        if letters.isascii() and letters.isalnum() and value.islower()
        else "must be a region's code, such as eu-west-1"
    )


def _secret_problem(value: str, _: str) -> str | None:
    import re

    if value.startswith("arn:"):
        return (
            None
            if re.fullmatch(r"arn:[^:\s]+:secretsmanager:[a-z0-9-]+:[0-9]*:secret:\S+", value)
            else "must be the ARN of a secret, arn:aws:secretsmanager:<region>:<account>:secret:<name>, or its name"
        )
    # CreateSecret's own rule for a name.
    return None if re.fullmatch(r"[\w/+=.@-]+", value) else "must be the ARN or the name of a secret"


# Of a value, and the variable that a port belongs in.
_SHAPES: dict[str, Callable[[str, str], str | None]] = {
    "host": host_problem,
    "address": _address_problem,
    "region": _region_problem,
    "secret_arn": _secret_problem,
}


def _names(text: str) -> tuple[str, ...]:
    if _has_line_break(text):
        raise ValueError("names separated by commas")
    return tuple(name.strip() for name in text.split(","))


def _is_plain(value: str) -> bool:
    # A byte of the environment that is no UTF-8 comes as half a character, which nothing that is sent can hold.
    return "\0" not in value and value == value.encode(errors="replace").decode()


def _has_line_break(value: str) -> bool:
    return value != value.strip("\r\n")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    # A number of a thousand digits is no help, and the default limit of int's text would raise.
    return repr(value) if not isinstance(value, int) or abs(value) < 1e20 else "that"


def _seconds(text: str) -> float:
    # float() alone takes " 1_0 " and digits of every script.
    if text.strip() != text or "_" in text or not text.isascii():
        raise ValueError("a number of seconds")
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number of seconds") from None


def _boolean(text: str) -> bool:
    # Not "1", "yes" or "True": whatever else were taken for a word, somebody would take for the other one.
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _reader(annotation: str) -> Callable[[str], object]:
    return {"int": whole_number, "float": _seconds, "bool": _boolean, "tuple[str, ...]": _names}.get(annotation, str)


_READERS: dict[str, Callable[[str], object]] = {
    "url": str,
    **{one.name: _reader(str(one.type)) for one in fields(Settings) if one.name != "prefix"},
}
