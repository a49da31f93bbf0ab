"""The table of what ran on which version, in docs/versions.md."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
WRITE = runpy.run_path(str(ROOT / "docs" / "write_versions.py"))
REPORT = """<testsuites><testsuite name="PostgreSQL 16.15" errors="1" failures="1" skipped="0" tests="3"
timestamp="2026-12-01T10:00:00"><testcase classname="tests.wire.test_wire" name="a"/>
<testcase classname="tests.wire.test_wire" name="b"/><testcase classname="tests.integration.test_pool" name="c"/>
</testsuite></testsuites>"""


def test_row_is_what_a_report_says(tmp_path: Path) -> None:
    """What it ran on, which tests, and how they ended."""
    (tmp_path / "report.xml").write_text(REPORT)
    row = WRITE["row"](tmp_path / "report.xml")
    assert row == "| PostgreSQL 16.15 | integration 1, wire 2 | 1 | 2 | 0 | 2026-12-01 |"


def test_newer_run_replaces_the_row_of_its_line_and_no_other() -> None:
    """PostgreSQL 16.15's replaces 16.14's; what did not run again keeps its row."""
    begin, end, head = WRITE["BEGIN"], WRITE["END"], WRITE["HEAD"]
    page = f"# A\n{begin}{head}| PostgreSQL 14.1 | wire 1 |\n| PostgreSQL 16.14 | wire 1 |\n{end}\nB\n"
    told = WRITE["written"](page, ["| PostgreSQL 16.15 | wire 2 |"])
    assert told == f"# A\n{begin}{head}| PostgreSQL 14.1 | wire 1 |\n| PostgreSQL 16.15 | wire 2 |\n{end}\nB\n"


def test_nothing_failed_where_the_page_says_what_ran() -> None:
    """The oldest PostgreSQL and the older line of SQLAlchemy are among the rows."""
    table = (ROOT / "docs" / "versions.md").read_text().partition(WRITE["BEGIN"])[2].partition(WRITE["END"])[0]
    rows = {WRITE["line_of"](row).strip(): row.split("|") for row in table.splitlines()[2:]}
    assert {"PostgreSQL 14", "SQLAlchemy 2.0"} <= set(rows)
    assert {row[4].strip() for row in rows.values()} == {"0"}
