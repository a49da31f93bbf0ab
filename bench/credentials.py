"""
What a token costs: signed by this package, and by boto3's client, side by side.

Each row is a process of its own, started anew for each round, the two ways in turn: what is imported and made for the
first token is part of its cost, as it is of a cold start. Run: `.venv/bin/python bench/credentials.py [--rounds 9]`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version

# Both have done what a function has done by then: its own engine is imported.
PROGRAM = """
import json, sys, time
import plungepool
before = set(sys.modules)
start = time.perf_counter()
{first}
first = time.perf_counter() - start
count = 200
start = time.perf_counter()
for _ in range(count):
    {next}
following = (time.perf_counter() - start) / count
print(json.dumps([first * 1000, following * 1e6, len(set(sys.modules) - before)]))
"""
HOST = "db.abcdefghij12.eu-west-1.rds.amazonaws.com"
WAYS = {
    "plungepool": PROGRAM.format(
        first=f"""
from plungepool.connect import source
tokens = source(plungepool.Settings(host={HOST!r}, user="app", auth="iam", region="eu-west-1"))
next(tokens.logins()).password""",
        next="next(tokens.logins()).password",
    ),
    "boto3, one client": PROGRAM.format(
        first=f"""
import boto3
client = boto3.client("rds", region_name="eu-west-1")
client.generate_db_auth_token({HOST!r}, 5432, "app")""",
        next=f'client.generate_db_auth_token({HOST!r}, 5432, "app")',
    ),
}
ENVIRON = {
    "AWS_ACCESS_KEY_ID": "ASIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "x" * 900,
    "AWS_REGION": "eu-west-1",
}


def main() -> None:
    """Measure and print a table with the medians, their ratio, the machine and the versions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    measured: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, program in WAYS.items():
            run = subprocess.run(
                [sys.executable, "-c", program], env=ENVIRON, capture_output=True, text=True, check=True
            )
            # The first round fills the disk's cache and writes the bytecode.
            if number:
                measured[way].append(json.loads(run.stdout))
    medians = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in measured.items()}
    print(f"{'':<20}{'first token':>14}{'each next':>14}{'modules imported':>19}")
    for way, (first_ms, next_us, modules) in medians.items():
        print(f"{way:<20}{first_ms:>11.2f} ms{next_us:>11.0f} µs{modules:>19.0f}")
    ours, theirs = medians.values()
    print(f"{'ratio':<20}{theirs[0] / ours[0]:>13.0f}x{theirs[1] / ours[1]:>13.1f}x")
    print(
        f"medians of {rounds} processes each, in turn; Python {platform.python_version()}, boto3 {version('boto3')}, "
        f"{platform.machine()}, {platform.system()}"
    )


if __name__ == "__main__":
    main()
