"""A budget as JSON, and as SARIF 2.1.0, which code review tools show beside the lines it speaks of; pure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plungepool_toolkit.budget import Budget
    from plungepool_toolkit.budget.hardware import Range
    from plungepool_toolkit.budget.verdict import Finding, Verdict

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_DOCUMENT = "docs/budget.md"
#: What each rule looks at, by the id that a finding carries.
RULES = {
    "connections": "More connections may be opened than the database has",
    "role-limit": "More connections may be opened than the role may have",
    "cpu": "More connections are at work than the CPU of the database sustains",
    "spike": "Connecting all environments at once takes longer than a function may run",
    "proxy": "A proxy does not fit the fleet behind it",
    "pinning": "Pinned clients use up a proxy's connections",
    "pause": "A proxy keeps a database from pausing",
    "express": "The express configuration supports neither a proxy nor a password",
    "dsql-connects": "More connects a second than Aurora DSQL accepts",
    "engine": "The database is not PostgreSQL",
    "settings": "Plungepool refuses a setting",
    "pool": "A function pools connections in a way that is not known here",
    "missing": "Input is missing",
}


def as_document(budget: Budget) -> dict[str, Any]:
    """Return a budget as what `--json` prints."""
    return {
        "format": "plungepool-budget/1",
        "template": str(budget.template),
        "holds": budget.holds,
        "databases": [_database(verdict) for verdict in budget.verdicts],
        "not_counted": [{"name": name, "why": why} for name, why in budget.not_counted.items()],
        "missing": [{"option": need.option, "why": need.why} for need in budget.needs],
    }


def _database(verdict: Verdict) -> dict[str, Any]:
    database = verdict.database
    return {
        "name": database.name,
        "kind": database.kind or "unknown",
        "size": database.size,
        "holds": verdict.holds,
        "max_connections": _range(database.max_connections),
        "reserved": database.reserved,
        "others": database.others,
        "usable": _range(database.usable),
        "role_limit": database.role_limit[0] if database.role_limit else None,
        "vcpus": database.vcpus,
        "open": _range(verdict.direct),
        "at_work_per_vcpu": verdict.per_vcpu,
        "bearable_per_vcpu": verdict.bears_per_vcpu,
        "proxies": [
            {
                "name": name,
                "percent": proxy.percent,
                "connections": _range(proxy.connections) if proxy.connections else None,
                "clients": _range(verdict.behind[name]),
            }
            for name, proxy in database.proxies.items()
        ],
        "functions": [
            {
                "name": row.use.function.name,
                "prefix": row.use.prefix,
                "environments": _range(row.environments),
                "processes": row.use.function.processes,
                "why": row.use.function.why,
                "pool": row.use.pool if row.use.ours else None,
                "pool_size": row.use.pool_size,
                "proxy": row.use.proxy,
                "open": _range(row.open),
            }
            for row in verdict.rows
        ],
        "findings": [_finding(finding) for finding in verdict.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "level": finding.level,
        "text": finding.text,
        "advice": finding.advice,
        "file": finding.file,
        "line": finding.line,
    }


def _range(of: Range) -> dict[str, float]:
    return {"low": of.low, "high": of.high}


def as_sarif(budget: Budget, base: Path) -> dict[str, Any]:
    """Return the findings as SARIF; paths are relative to `base`, the repository's folder, where they are below it."""
    results = [
        _result(finding.rule, finding.level, f"{finding.text} {finding.advice}", finding.file, finding.line, base)
        for verdict in budget.verdicts
        for finding in verdict.findings
    ]
    for need in budget.needs:
        text = f"Missing input: {need.option}. {need.why}"
        results.append(_result("missing", "error", text, str(budget.template), 1, base))
    rules = [
        {"id": name, "shortDescription": {"text": text}, "help": {"text": f"See {_DOCUMENT} of Plungepool."}}
        for name, text in RULES.items()
    ]
    driver = {"name": "plungepool budget", "rules": rules}
    return {"version": "2.1.0", "$schema": _SCHEMA, "runs": [{"tool": {"driver": driver}, "results": results}]}


def _result(rule: str, level: str, text: str, file: str, line: int, base: Path) -> dict[str, Any]:
    path = Path(os.path.relpath(file, base))
    uri = Path(file).resolve().as_uri() if path.parts[:1] == ("..",) else path.as_posix()
    location = {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": line}}}
    return {
        "ruleId": rule,
        "ruleIndex": [*RULES].index(rule),
        "level": level,
        "message": {"text": text},
        "locations": [location],
    }
