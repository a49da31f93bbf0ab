"""`make chaos`: the randomised run, as long as one likes, beside the naive handlers; prints seed and findings."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "shared")]

from history.harness import run, side_by_side


def main() -> int:
    """Run, print, and return 1 where something was found that must not be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long the shop works (300)")
    parser.add_argument("--seed", type=int, default=None, help="one is drawn unless it is given")
    parser.add_argument(
        "--naive-seconds", type=float, default=20, help="how long the naive handlers do (20); 0: not at all"
    )
    parser.add_argument("--reasons", action="store_true", help="say with which errors requests failed, and how often")
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    reports = [run("ours", seed=seed, seconds=options.seconds)]
    print(reports[0], flush=True)
    if options.reasons:
        for reason, count in reports[0].reasons.most_common():
            print(f"    {count} {reason}")
    if options.naive_seconds:
        reports.append(run("naive", seed=seed, seconds=options.naive_seconds))
        print(reports[1], side_by_side(*reports), sep="\n\n")
    return 1 if reports[0].findings else 0


if __name__ == "__main__":
    sys.exit(main())
