"""
Whether this checkout computes more than a commit did: a gate, by instructions executed, which hardly differ from run to
run.

    .venv/bin/python bench/compare.py COMMIT [--limit 1.01]

Prints what Plungepool executes from process start to first row (the layer, compiled, IAM over TLS), for a warm
statement and for a row, then and now. Ends with status 1 if any of them has grown beyond the limit. Some minutes; needs
Debian's package valgrind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import cold_start
import instructions
from measure import ROOT, serve_contenders

from plungepool_toolkit.postgres import Postgres


def cold_starts(trees: dict[str, Path], scratch: Path) -> dict[str, int]:
    """Return the instructions from process start to first row, for each checkout."""
    python = cold_start.interpreter()
    with cold_start.served() as (variables, _):
        folders = cold_start.build(scratch, python, {name: (cold_start.OURS, tree) for name, tree in trees.items()})
        return {name: cold_start.count(python, folders[name, "compiled"], variables) for name in trees}


def main() -> None:
    """Measure, print, and say by the exit status whether the limit was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--limit", type=float, default=1.01, help="the most that a figure may grow to (default 1.01)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        trees = {"then": cold_start.check_out(options.commit, Path(scratch) / "then"), "now": ROOT}
        figures = {"process start to first row": cold_starts(trees, Path(scratch))}
        with Postgres() as server:
            serve_contenders(server)
            for case in instructions.CASES:
                figures[case] = {
                    name: instructions.cost(
                        case, instructions.environment("plungepool", server, tree / "layers/plungepool")
                    )
                    for name, tree in trees.items()
                }
    grown = False
    for name, counts in figures.items():
        ratio = counts["now"] / counts["then"]
        grown = grown or ratio > options.limit
        print(f"{ratio:6.3f}  {counts['then']:>13,} -> {counts['now']:>13,}  {name}")
    sys.exit(f"more than {options.limit:g} times what {options.commit} executes" if grown else 0)


if __name__ == "__main__":
    main()
