"""What a template does not hold and somebody must say: what was said, and what is still to be asked for; pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: What may be said of a database: `--database NAME:KEY=VALUE`.
DATABASE_KEYS = {
    "kind": "instance, aurora, express, dsql",
    "class": "its instance class, such as db.r6g.large",
    "max-acu": "the largest capacity of Aurora Serverless v2",
    "min-acu": "its smallest capacity",
    "max-connections": "SHOW max_connections",
    "reserved": "superuser_reserved_connections plus those that RDS reserves",
    "vcpu": "its vCPUs",
    "others": "connections held by clients that are not in this template",
    "role-limit": "CONNECTION LIMIT of the role that the functions use",
    "proxy-percent": "MaxConnectionsPercent of the RDS Proxy in front of it",
    "proxy-connections": "connections that the pooler in front of it may open",
    "pinned-percent": "share of the proxy's clients that are pinned",
    "rate": "invocations per second of all functions together, at the peak",
    "handler-ms": "duration of an invocation without the database work",
    "database-ms": "database CPU that an invocation uses",
}
#: What may be said of a function: `--function NAME:KEY=VALUE`.
FUNCTION_KEYS = {
    "concurrency": "the most invocations of it at the same time",
    "environments": "MaxExecutionEnvironments, of Managed Instances",
    "processes": "processes in one environment of Managed Instances",
    "pool-size": "connections that one process may hold",
    "timeout": "its time-out in seconds",
}
_WORDS = ("kind", "class")
# From the least to the most that a number may be, where it is not one or more.
_BEYOND_REASON = 1_000_000
_BOUNDS = {
    "max-acu": (1, 256),
    "min-acu": (0, 256),
    "reserved": (0, _BEYOND_REASON),
    "vcpu": (0.1, _BEYOND_REASON),
    "others": (0, _BEYOND_REASON),
    "proxy-percent": (1, 100),
    "pinned-percent": (0, 100),
    "rate": (0.001, _BEYOND_REASON),
    "handler-ms": (0, _BEYOND_REASON),
    "database-ms": (0.001, _BEYOND_REASON),
    "concurrency": (0, _BEYOND_REASON),
}


class InputError(ValueError):
    """An input that means nothing here; the text says what would."""


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """What must be said before anything can be: the option, and what it is for."""

    option: str
    why: str


@dataclass(slots=True)
class Inputs:
    """What was said on the command line, and what was found missing while reading."""

    account_concurrency: int | None = None
    databases: dict[str, dict[str, str]] = field(default_factory=dict)
    functions: dict[str, dict[str, str]] = field(default_factory=dict)
    needs: list[Need] = field(default_factory=list)
    #: The databases of which something is missing.
    incomplete: set[str] = field(default_factory=set)

    def ask(self, option: str, why: str, database: str = "") -> None:
        """Note what is missing, once; `database`: of which one."""
        self.incomplete.add(database)
        if (need := Need(option, why)) not in self.needs:
            self.needs.append(need)

    def of_function(self, name: str, key: str) -> int | None:
        """Return what was said of a function."""
        value = self.functions.get(name, {}).get(key)
        return None if value is None else int(value)

    def of_database(self, name: str, key: str) -> str | None:
        """Return what was said of a database, or of the only one."""
        return self.databases.get(name, {}).get(key) or self.databases.get("", {}).get(key)

    def number_of_database(self, name: str, key: str) -> float | None:
        """Return the same as a number."""
        value = self.of_database(name, key)
        return None if value is None else float(value)

    def refuse_unused(self, databases: Sequence[str], functions: Sequence[str]) -> None:
        """
        Raise InputError where something was said of what is not there: a typo would leave the default in force.
        """
        if "" in self.databases and len(databases) > 1:
            raise InputError(f"--database needs a name here, NAME:KEY=VALUE; the names are {', '.join(databases)}")
        for option, given, there in (
            ("--database", self.databases, databases),
            ("--function", self.functions, functions),
        ):
            for name in given:
                if name and name not in there:
                    names = ", ".join(there) or "none"
                    raise InputError(f"{option} {name}: there is no such name; the names are {names}")


def parse(option: str, texts: Iterable[str], keys: dict[str, str]) -> dict[str, dict[str, str]]:
    """
    Return what NAME:KEY=VALUE or, where `--database` has one only, KEY=VALUE say, by name and key.

    Raises: InputError.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        left, equals, value = text.partition("=")
        name, _, key = left.rpartition(":")
        if not equals or not value or (not name and option == "--function"):
            raise InputError(f"{option} takes NAME:KEY=VALUE, not {text!r}")
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            meant = f"; did you mean {near[0]}?" if near else f"; the keys are {', '.join(keys)}"
            raise InputError(f"{option} has no key {key!r}{meant}")
        if key not in _WORDS and not _is_number(value, whole=option == "--function"):
            raise InputError(f"{option} {left} takes a number, not {value!r}")
        least, most = _BOUNDS.get(key, (1, _BEYOND_REASON))
        if key not in _WORDS and not least <= float(value) <= most:
            raise InputError(f"{option} {left} takes a number from {least:g} to {most:,.0f}, not {value}")
        if key == "kind" and value not in keys["kind"].split(", "):
            raise InputError(f"{option} {left} takes one of {keys['kind']}, not {value!r}")
        found.setdefault(name, {})[key] = value
    return found


def _is_number(text: str, *, whole: bool) -> bool:
    digits = text if whole else text.replace(".", "", 1)
    return digits.isascii() and digits.isdigit() and len(digits) < 10
