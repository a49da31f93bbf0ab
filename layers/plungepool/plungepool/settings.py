"""What an engine is made from: read once, checked as a whole, never changed. Pure: no I/O, no clock."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass, field, fields
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from .errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PREFIX = "PLUNGEPOOL_"

_CHOICES = {
    "endpoint": ("direct", "proxy"),
    "auth": ("password", "secret", "iam", "dsql"),
    "tls": ("verify-full", "disable"),
    "pool": ("tiny", "null"),
    "pinning": ("warn", "refuse"),
}
# RDS Proxy ends a client connection after 24 hours whatever it does (RDS User Guide, rds-proxy-connections), Aurora
# DSQL after 60 minutes (its quotas); a connection handed out just before must still live for a whole invocation.
_MAX_AGE_S_AT_MOST = {"proxy": 23 * 3600.0, "dsql": 55 * 60.0}


def variable(name: str) -> str:
    """Return the environment variable of a setting: `pool_size` is PLUNGEPOOL_POOL_SIZE."""
    return PREFIX + name.upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Settings of one engine, given as keywords or read by `from_env`.

    Args: each field is the environment variable PLUNGEPOOL_<NAME>; `url` stands for host, port, database, user and, if
        it holds one, password, each percent-encoded where it has special characters.
    Raises: SettingsError, which names every problem at once and no value of a secret.
    Units: every `*_s` is in seconds of wall clock, because frozen time counts.
    """

    url: InitVar[str | None] = None
    host: str = ""
    port: int = 5432
    database: str = "postgres"
    user: str | None = None
    endpoint: str = "direct"
    auth: str = "password"
    password: str | None = field(default=None, repr=False)
    secret_arn: str | None = None
    region: str | None = None
    tls: str = "verify-full"
    ca_file: str | None = None
    pool: str = "tiny"
    pool_size: int = 1
    checkout_timeout_s: float = 5.0
    connect_timeout_s: float = 5.0
    dead_peer_timeout_s: float = 10.0
    ping_after_idle_s: float = 30.0
    max_age_s: float = 1800.0
    statement_timeout_s: float = 0.0
    pinning: str = "warn"

    def __post_init__(self, url: str | None) -> None:
        problems = self._take_url(url) if url else []
        wrong = dict(self._wrong_values())
        # What contradicts a value that is wrong by itself would only mislead.
        contradictions = [text for names, text in self._contradictions() if wrong.keys().isdisjoint(names)]
        problems += [*wrong.values(), *contradictions]
        if problems:
            raise SettingsError(problems)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """
        Read the settings from environment variables; an empty value counts as not set.

        Args: environ: usually `os.environ`. A PLUNGEPOOL_ name that is not a setting is a problem, so that a typo is
            not silent. AWS_REGION stands in for PLUNGEPOOL_REGION.
        Raises: SettingsError, which names every problem at once.
        """
        problems: list[str] = []
        values: dict[str, object] = {}
        given = {key: value for key, value in environ.items() if key.startswith(PREFIX)}
        for key, value in sorted(given.items()):
            name = key.removeprefix(PREFIX).lower()
            if key != key.upper() or name not in _READERS:
                import difflib  # for a typo only: not at a cold start that goes well

                close = difflib.get_close_matches(key.upper(), [variable(known) for known in _READERS], n=1)
                problems.append(f"{key} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
            elif value:
                try:
                    values[name] = _READERS[name](value)
                except ValueError as error:
                    problems.append(f"{key} must be {error}")
        if "region" not in values and environ.get("AWS_REGION"):
            values["region"] = environ["AWS_REGION"]
        try:
            settings = cls(**values)  # type: ignore[arg-type]  # each reader gives its field's type
        except SettingsError as error:
            # What could not be read fell back to its default; only what the rest says is added.
            raise SettingsError([*problems, *error.problems]) from None
        if problems:
            raise SettingsError(problems)
        return settings

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _take_url(self, url: str) -> list[str]:
        """Fill the parts from the URL; return what is wrong with it, never quoting it: it may hold a password."""
        here = variable("url")
        shape = f"{here} must look like postgresql://user@host:5432/database, special characters percent-encoded"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return [f"{shape}; its host or port cannot be read"]
        if parts.scheme not in ("postgresql", "postgres", "postgresql+plungepool") or not parts.hostname:
            return [shape]
        problems = []
        if parts.query or parts.fragment:
            problems.append(f"{here} must end after the database: options have settings of their own (a '?' or '#' in a name or password is percent-encoded)")  # fmt: skip
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
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                yield name, f"{variable(name)} must be one of {', '.join(choices)}, not {getattr(self, name)!r}"
        for name in ("host", "database", "user", "password", "secret_arn", "region", "ca_file"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or "\0" in value):
                yield name, f"{variable(name)} must be text without NUL characters"
        if not self.host and self.auth != "secret":  # a secret may hold the host
            yield "host", f"{variable('host')} is missing (or {variable('url')})"
        if isinstance(self.host, str) and any(character in self.host for character in " /@,"):
            yield "host", f"{variable('host')} must be one host name or address, without user, port or path"
        if not self.database:
            yield "database", f"{variable('database')} must not be empty"
        for name, lowest, highest in (("port", 1, 65535), ("pool_size", 1, 1000)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
                yield name, f"{variable(name)} must be a whole number from {lowest} to {highest}, not {value!r}"
        for name in ("checkout_timeout_s", "connect_timeout_s", "dead_peer_timeout_s", "max_age_s"):
            if not _is_seconds(getattr(self, name)) or getattr(self, name) <= 0:
                yield name, f"{variable(name)} must be seconds above 0, not {getattr(self, name)!r}"
        for name in ("ping_after_idle_s", "statement_timeout_s"):
            if not _is_seconds(getattr(self, name)) or getattr(self, name) < 0:
                yield name, f"{variable(name)} must be seconds, 0 or more, not {getattr(self, name)!r}"

    def _contradictions(self) -> Iterator[tuple[set[str], str]]:
        """Yield (the settings involved, how they contradict each other)."""
        auth = f"{variable('auth')}={self.auth}"
        if not self.user and self.auth != "secret":
            yield {"user", "auth"}, f"{variable('user')} is missing; {auth} needs it"
        if self.auth == "password" and not self.password:
            yield {"password", "auth"}, f"{variable('password')} is missing; {auth} needs it"
        if self.auth != "password" and self.password:
            yield {"password", "auth"}, f"{variable('password')} has no effect with {auth}; remove it"
        if self.auth == "secret" and not self.secret_arn:
            yield {"secret_arn", "auth"}, f"{variable('secret_arn')} is missing; {auth} needs it"
        if self.auth != "secret" and self.secret_arn:
            yield {"secret_arn", "auth"}, f"{variable('secret_arn')} has no effect with {auth}; remove it"
        if self.auth in ("iam", "dsql"):
            if not self.region:
                yield {"region", "auth"}, f"{variable('region')} (or AWS_REGION) is missing; {auth} signs for a region"
            if self.tls == "disable":
                text = f"{variable('tls')}=disable would send the token of {auth} in clear; use verify-full"
                yield {"tls", "auth"}, text
        if self.ca_file and self.tls == "disable":
            text = f"{variable('ca_file')} has no effect with {variable('tls')}=disable; remove one of them"
            yield {"ca_file", "tls"}, text
        if self.endpoint == "proxy" and self.auth == "dsql":
            text = f"{variable('endpoint')}=proxy does not go with {auth}: there is no RDS Proxy for Aurora DSQL"
            yield {"endpoint", "auth"}, text
        if self.endpoint == "proxy" and self.statement_timeout_s:
            text = (
                f"{variable('statement_timeout_s')} does not pass a proxy; set statement_timeout on the database role"
            )
            yield {"endpoint", "statement_timeout_s"}, text
        for by, longest in _MAX_AGE_S_AT_MOST.items():
            if by in (self.endpoint, self.auth) and _is_seconds(self.max_age_s) and self.max_age_s > longest:
                text = f"{variable('max_age_s')} must be at most {longest:g} with {by}, which ends older connections"
                yield {"endpoint", "auth", "max_age_s"}, text


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole_number(text: str) -> int:
    # int() alone takes " 1_000 " and digits of every script.
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number of seconds") from None


def _reader(annotation: str) -> Callable[[str], object]:
    return {"int": _whole_number, "float": _seconds}.get(annotation, str)


_READERS: dict[str, Callable[[str], object]] = {
    "url": str,
    **{one.name: _reader(str(one.type)) for one in fields(Settings)},
}
