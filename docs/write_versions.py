"""
Write the table of docs/versions.md from the reports in build/versions, which `make test-versions` leaves

A report is pytest's own, under the name of what it ran on. What was not run again keeps its row.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
REPORTS = ROOT / "build" / "versions"
BEGIN, END = "<!-- written by docs/write_versions.py -->\n", "<!-- end -->"
HEAD = "| on | tests of | passed | failed | skipped | on the day |\n|---|---|---:|---:|---:|---|\n"


def row(report: Path) -> str:
    """One report as a line of the table."""
    suite = next(ElementTree.parse(report).iter("testsuite"))  # noqa: S314 - written by our own run
    skipped, failed = int(suite.get("skipped", 0)), int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    folders = Counter(case.get("classname", "").split(".")[1] for case in suite.iter("testcase"))
    of = ", ".join(f"{folder} {count}" for folder, count in sorted(folders.items()))
    passed = int(suite.get("tests", 0)) - skipped - failed
    return f"| {suite.get('name')} | {of} | {passed} | {failed} | {skipped} | {suite.get('timestamp', '')[:10]} |"


def line_of(row: str) -> str:
    """What a row is about, without the last part of the version: a newer run replaces an older one's."""
    return re.sub(r"\.\d+ *$", "", row.split("|")[1])


def written(page: str, rows: list[str]) -> str:
    """The page with these rows, and with those of its own that they do not replace."""
    before, _, rest = page.partition(BEGIN)
    table, _, after = rest.partition(END)
    kept = {line_of(row): row for row in table.splitlines()[2:]}
    kept |= {line_of(row): row for row in rows}
    return before + BEGIN + HEAD + "".join(f"{row}\n" for _, row in sorted(kept.items())) + END + after


if __name__ == "__main__":
    reports = sorted(REPORTS.glob("*.xml"))
    PAGE.write_text(written(PAGE.read_text(), [row(report) for report in reports]))
    print(f"{len(reports)} reports: {PAGE.relative_to(ROOT)}")
