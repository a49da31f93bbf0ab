"""docs/reference/settings.md: each setting, from the fields of Settings and the tables by which they are checked."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from reference_text import WRITTEN, from_reference

from plungepool import Settings, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

INTRODUCTION = f"""\
# Settings

{WRITTEN}

Environment variables, or keywords of `Settings` under the lower-case name without the prefix, whose values are Python's
(a number, a bool, a tuple). An empty variable counts as not set. One `SettingsError` names everything that is wrong, an
unknown `PLUNGEPOOL_` name included. Every time is in seconds.

```python
from plungepool import Settings, get_engine

settings = Settings(host="db.example", user="app", auth="iam", region="eu-west-1", pool_size=2)
engine = get_engine(settings)  # without settings: those of the environment variables
```

For a second database `Settings.from_env(os.environ, prefix="REPORTS_")` reads `REPORTS_PLUNGEPOOL_HOST` and so on
([more than one database](../databases.md)). `get_engine(settings, **options)` also takes SQLAlchemy's own options
(`json_serializer`, `isolation_level`, `execution_options`, `echo`, `plugins`, …), except those that a setting decides.

| variable | default | values |
|---|---|---|"""


class Setting(NamedTuple):
    """One setting: its section, its name as a keyword, and what the comment beside it says."""

    section: str
    name: str
    about: str

    @property
    def variable(self) -> str:
        """The environment variable."""
        return settings.variable(self.name, "")


def read_settings() -> Iterator[Setting]:
    """
    Yield each setting in the order of settings.py: `# -- ` begins a section, `#: ` says what the field below it means.

    Comments, because they cost a cold start nothing: there is no trace of them in the bytecode.
    """
    source = inspect.getsource(settings)
    (node,) = (one for one in ast.parse(source).body if isinstance(one, ast.ClassDef) and one.name == "Settings")
    fields = {one.lineno: ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign)}
    section, about = "", []
    for number, line in enumerate(source.splitlines(), 1):
        text = line.strip()
        if text.startswith("# -- "):
            section = text.removeprefix("# -- ")
        elif text.startswith("#: "):
            about.append(text.removeprefix("#: "))
        elif number in fields and fields[number] != "prefix":
            yield Setting(section, fields[number], " ".join(about))
        if not text.startswith("#: "):
            about = []


def default_of(name: str) -> str:
    """Return the default as the table shows it; where it depends on other settings, as those make it."""
    if name == "url":
        return ""
    someone: dict[str, Any] = {"host": "db.example", "user": "app"}
    plain = Settings(**someone, password="not shown")
    there = {"PLUNGEPOOL_HOST": "db.example", "PLUNGEPOOL_USER": "app", "PLUNGEPOOL_PASSWORD": "x", "AWS_REGION": "aa"}
    declared = next(one.default for one in dataclasses.fields(Settings) if one.name == name)
    if declared is None and getattr(Settings.from_env(there), name) == "aa":
        return "`AWS_REGION`"
    if declared in ("", None, ()):
        declared = getattr(plain, name) if name not in (*someone, "password") else None
    if not isinstance(declared, (str, int, float)) or declared == "":
        return ""
    special = {
        "PLUNGEPOOL_ENDPOINT=proxy": Settings(**someone, password="x", endpoint="proxy"),
        "PLUNGEPOOL_AUTH=dsql": Settings(**someone, auth="dsql", region="eu-west-1"),
    }
    others: dict[str, list[str]] = {}
    for where, made in special.items():
        if name not in where.lower() and getattr(made, name) != getattr(plain, name):
            others.setdefault(_shown(getattr(made, name)), []).append(f"`{where}`")
    return "; ".join([_shown(declared), *(f"{value} with {' or '.join(where)}" for value, where in others.items())])


def values_of(name: str) -> str:
    """Return what a setting takes, from the tables by which it is checked."""
    if choices := settings._CHOICES.get(name):
        return "one of " + ", ".join(f"`{one}`" for one in choices)
    if bounds := settings._BOUNDS.get(name):
        return f"a whole number from {bounds[0]} to {bounds[1]}"
    if longest := settings._SECONDS_AT_MOST.get(name):
        at_most = [
            f"at most {limit:g} with {where}"
            for where, limit in (
                ("`PLUNGEPOOL_ENDPOINT=proxy`", settings._MAX_AGE_S_AT_MOST["proxy"]),
                ("`PLUNGEPOOL_AUTH=dsql`", settings._MAX_AGE_S_AT_MOST["dsql"]),
            )
            if name == "max_age_s"
        ]
        zero = "0, or " if name in settings._ZERO_MEANS_SOMETHING else ""
        bounds_of_it = f"seconds, {zero}from {settings._SHORTEST_S:g} to {longest:.0f}"
        return "; ".join([bounds_of_it, *at_most])
    if name in settings._SWITCHES:
        return "`true` or `false`"
    return "names" if name == "require_settings" else "text"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, (int, float)) else f"`{value}`"


def page() -> str:
    """Return docs/reference/settings.md."""
    found = list(read_settings())
    lines = [INTRODUCTION]
    for one in found:
        lines.append(f"| [{one.variable}](#{one.variable.lower()}) | {default_of(one.name)} | {values_of(one.name)} |")
    section = ""
    for one in found:
        if one.section != section:
            section = one.section
            lines += ["", f"## {section}"]
        default = default_of(one.name)
        lines += ["", f"### {one.variable}", "", from_reference(one.about), ""]
        lines.append(f"Keyword `{one.name}`: {values_of(one.name)}." + (f" Default: {default}." if default else ""))
    return "\n".join(lines) + "\n"
