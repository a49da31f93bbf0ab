"""What a run of `plungepool verify-aws` found, as a table and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.markup import escape

from plungepool_toolkit.commands.console import table

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from plungepool_toolkit.commands.verify_aws.facts import Evidence, Finding

_STYLES = {"as expected": "green", "otherwise": "red", "measured": "cyan", "not seen": "yellow"}


def show_findings(console: Console, findings: list[Finding]) -> None:
    """Print each fact, what was expected and what was seen."""
    seen = table("What was seen", "Fact", "Question", "Expected", "Seen", "", lines=True)
    for finding in findings:
        verdict = f"[{_STYLES[finding.verdict]}]{finding.verdict}[/]"
        fact = finding.fact
        seen.add_row(fact.name, escape(fact.question), escape(fact.expected), escape(finding.seen), verdict)
    console.print(seen)


def write_findings(file: Path, findings: list[Finding], evidence: Evidence) -> None:
    """Write the findings and all that the probes returned as JSON."""
    rows = [
        {
            "fact": finding.fact.name,
            "question": finding.fact.question,
            "expected": finding.fact.expected,
            "seen": finding.seen,
            "verdict": finding.verdict,
        }
        for finding in findings
    ]
    file.write_text(json.dumps({"findings": rows, "evidence": evidence}, indent=2) + "\n")
