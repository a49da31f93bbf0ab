"""
Environments order, ship and append to lists while everything around them fails; at the end the books have to agree.

`make chaos` runs it longer, by other seeds. Where this fails, the report names the seed: `make chaos SEED=…`.
"""

from __future__ import annotations

from history.harness import Report, run, side_by_side

SECONDS, NAIVE_SECONDS, SEED = 60, 15, 20261127
_reports: list[Report] = []


def test_nothing_is_lost_or_done_twice_whatever_befalls_the_environments() -> None:
    """
    Every order that was acknowledged exists once, none that was refused, and the stock is what is left.

    No list lacks, repeats or shows too early what was appended to it, at three isolation levels; no invocation hangs,
    no transaction outlives its deadline, no connection its environment; and when all is well again, all are served.
    """
    report = run("ours", seed=SEED, seconds=SECONDS)
    _reports.append(report)
    print(report)
    assert report.findings == [], str(report)
    # It was busy, it was disturbed in every way, and it did not simply refuse.
    assert report.outcomes["committed"] > 100
    assert len(report.faults) == 13


def test_the_same_run_finds_the_faults_of_a_naive_handler() -> None:
    """A stock driver and a loop that tries again: orders that were placed twice, and appends that are gone."""
    report = run("naive", seed=SEED, seconds=NAIVE_SECONDS)
    print(report, side_by_side(*_reports, report), sep="\n\n")
    kinds = {finding.kind for finding in report.findings}
    assert {"order twice", "lost update"} <= kinds
