"""`plungepool budget`: may the functions of a template open more connections than their database can take?"""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from plungepool_toolkit.budget import Budget, examine
from plungepool_toolkit.budget.documents import as_document, as_sarif
from plungepool_toolkit.budget.inputs import DATABASE_KEYS, FUNCTION_KEYS, InputError, Inputs, parse
from plungepool_toolkit.budget.source import TemplateError
from plungepool_toolkit.commands.console import show, table, writing

if TYPE_CHECKING:
    from plungepool_toolkit.budget.rows import Row
    from plungepool_toolkit.budget.verdict import Verdict

_STYLES = {"error": ("✗", "red"), "warning": ("!", "yellow"), "note": ("·", "blue")}
_ANSWERS = {
    "yes": ("It holds.", "green"),
    "tight": ("It holds, but not at all times.", "yellow"),
    "no": ("It cannot hold.", "red"),
    "unknown": ("More input is needed.", "red"),
}
_COLUMNS = ("function", "environments", "bounded by", "pool", "open connections")

_Template = Annotated[Path, typer.Argument(help="The SAM or CloudFormation template.")]
_Parameters = Annotated[
    list[str] | None,
    typer.Option(help="Parameter values, as for `sam deploy`: NAME=VALUE pairs, separated by spaces."),
]
_Environment = Annotated[
    str, typer.Option(help="The environment of the samconfig.toml next to the template whose values are used.")
]
_Account = Annotated[int | None, typer.Option(min=1, help="The account's quota of concurrent executions (Lambda).")]
_Database = Annotated[
    list[str] | None,
    typer.Option(
        help="What the template does not say about a database: NAME:KEY=VALUE, or KEY=VALUE if there is only one."
    ),
]
_Function = Annotated[list[str] | None, typer.Option(help="The same for a function: NAME:KEY=VALUE.")]
_Strict = Annotated[bool, typer.Option("--strict", help="Also exit with 1 if it does not hold at all times.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
_Sarif = Annotated[Path | None, typer.Option(help="Also write the findings to this file, for code review.")]


def budget(
    *,
    template: _Template = Path("template.yaml"),
    parameter_overrides: _Parameters = None,
    config_env: _Environment = "default",
    account_concurrency: _Account = None,
    database: _Database = None,
    function: _Function = None,
    strict: _Strict = False,
    as_json: _Json = False,
    sarif: _Sarif = None,
) -> None:
    """
    Show for each database who may open how many connections, and whether it holds.

    Exits with 1 if it cannot hold, and with 2 if input is missing. Sends no request to AWS. See docs/budget.md.
    """
    try:
        import samtranslator  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise typer.BadParameter(f"it requires {error.name}: pip install 'plungepool-toolkit[budget]'") from None
    try:
        overrides = _configured(template, config_env) | _overrides(parameter_overrides or [])
        databases = parse("--database", database or [], DATABASE_KEYS)
        functions = parse("--function", function or [], FUNCTION_KEYS)
        found = examine(template, overrides, Inputs(account_concurrency, databases, functions))
    except (TemplateError, InputError) as error:
        raise typer.BadParameter(str(error)) from None
    if sarif is not None:
        with writing(sarif, "--sarif"):
            sarif.write_text(json.dumps(as_sarif(found, Path.cwd()), indent=2) + "\n", encoding="utf-8")
    # A terminal breaks lines anywhere; what reads a pipe wants them whole.
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())
    if as_json:
        console.print_json(json.dumps(as_document(found)))
    else:
        _print(console, found)
    if found.holds == "unknown":
        raise typer.Exit(2)
    if found.holds == "no" or (strict and found.holds == "tight"):
        raise typer.Exit(1)


def _overrides(texts: list[str]) -> dict[str, str]:
    """Return NAME=VALUE, and ParameterKey=NAME,ParameterValue=VALUE, as the SAM CLI takes both."""
    found = {}
    try:
        words = [word for text in texts for word in shlex.split(text)]
    except ValueError as error:
        raise InputError(f"--parameter-overrides cannot be split into words: {error}") from None
    for word in words:
        key, _, rest = word.removeprefix("ParameterKey=").partition(",ParameterValue=")
        name, equals, value = (key, "=", rest) if word.startswith("ParameterKey=") else word.partition("=")
        if not equals or not name:
            raise InputError(f"--parameter-overrides takes NAME=VALUE, not {word!r}")
        found[name] = value
    return found


def _configured(template: Path, environment: str) -> dict[str, str]:
    """Return the parameters that samconfig.toml beside the template gives for `sam deploy`."""
    path = template.parent / "samconfig.toml"
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if environment not in config and environment != "default":
        raise InputError(f"{path} has no [{environment}]; its environments are {', '.join(config)}")
    found: dict[str, str] = {}
    for command in ("global", "deploy"):
        given: Any = config
        for name in (environment, command, "parameters", "parameter_overrides"):
            given = given.get(name) if isinstance(given, dict) else None
        if isinstance(given, dict):
            found |= {name: str(value) for name, value in given.items()}
        elif given:
            found |= _overrides([given] if isinstance(given, str) else [str(each) for each in given])
    return found


def _print(console: Console, found: Budget) -> None:
    for verdict in found.verdicts:
        _print_database(console, verdict)
    if found.not_counted:
        console.print("Not counted:")
        for name, why in found.not_counted.items():
            console.print(Text(f"  {name}: {why}"))
    if found.needs:
        console.print("Missing input:")
        for need in found.needs:
            console.print(Text.assemble("  ", (need.option, "bold"), f"  {need.why}"))
    elif not found.verdicts:
        console.print("No function in this template opens a connection to a PostgreSQL database.")
        return
    text, style = _ANSWERS[found.holds]
    console.print(Text(text, style))


def _print_database(console: Console, verdict: Verdict) -> None:
    database = verdict.database
    title = f"{database.name} ({database.size})" if database.size else database.name
    rows = table(title, *_COLUMNS, numbers=("environments", "open connections"))
    for row in verdict.rows:
        rows.add_row(*_cells(row))
    show(rows, console)
    limit = f"; limit of the role: {database.role_limit[0]:,.0f}" if database.role_limit else ""
    console.print(
        f"Open: {verdict.direct}. Available: {database.usable} (max_connections {database.max_connections}, "
        f"{database.reserved:g} reserved){limit}."
    )
    for name, proxy in database.proxies.items():
        slots = f", at most {proxy.connections}" if proxy.connections else ""
        console.print(Text(f"Through {name}: {verdict.behind[name]} clients{slots} connections ({proxy.percent:g} %)."))
    if verdict.per_vcpu is not None and verdict.bears_per_vcpu is not None:
        at_work, bears = f"{verdict.per_vcpu:,.1f}", f"{verdict.bears_per_vcpu:,.1f}"
        console.print(f"At work per vCPU (of {database.vcpus:g}): {at_work}. Sustainable: {bears}.")
    for finding in verdict.findings:
        sign, style = _STYLES[finding.level]
        console.print(Text.assemble((f"{sign} ", style), finding.text))
        console.print(Text.assemble(("  → ", style), f"{finding.advice} ({finding.file}:{finding.line})"))
    console.print()


def _cells(row: Row) -> tuple[str, ...]:
    use = row.use
    processes = f" x {use.function.processes}" if use.function.processes > 1 else ""
    pool = f"{use.pool}, {use.pool_size}" if use.ours else f"not ours, at least {use.pool_size}"
    name = use.function.name + (f" ({use.prefix.rstrip('_')})" if use.prefix else "")
    through = f" through {use.proxy}" if use.proxy else ""
    return name, f"{row.environments}{processes}", use.function.why, pool, f"{row.open}{through}"
