"""
What the client computes for a warm statement and for a row, through SQLAlchemy: Plungepool, stock pg8000, psycopg 3
(C).

    .venv/bin/python bench/instructions.py                                  measures and prints
    .venv/bin/python bench/instructions.py --write docs/instructions.md     writes the page, too

Each contender (bench/contender) does a thing a few and then many times under valgrind's callgrind, in a process of its
own; the difference divided by the number is the cost of one. Beside it: CPU time, the contenders in turns. Needs
Debian's package valgrind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import CONTENDERS, as_markdown, conditions, instructions, serve_contenders, take_turns, variables

from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNTED = {name: title for name, title in CONTENDERS.items() if name != "asyncpg"}
# name -> what is done, how often at least and at most, and how many units each time makes
CASES: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "`SELECT :x`, one integer": ({"case": "select"}, 100, 300, 1),
    "`SELECT` of six parameters of six types": ({"case": "six"}, 100, 300, 1),
    "one of many rows of int, text, float8, timestamptz, numeric": (
        {"case": "rows", "arguments": {"count": 1000}}, 2, 6, 1000
    ),
}  # fmt: skip
TIMED = {name: event | {"cpu": True} for name, (event, *_) in CASES.items()}
PROGRAM = "import app, json, os, sys; app.handler(json.loads(sys.argv[1]), None); os._exit(0)"


def cost(case: str, environ: Mapping[str, str]) -> int:
    """Return the instructions of one unit of a case, by a contender that the variables name."""
    event, few, many, units = CASES[case]
    # Whose bytecode is not there yet has it after this; else one of the two would compile what the other finds.
    subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(event | {"times": 1})], check=True, env={**environ})
    counts = [
        instructions([sys.executable, "-c", PROGRAM, json.dumps(event | {"times": times})], environ)
        for times in (few, many)
    ]
    return (counts[1] - counts[0]) // ((many - few) * units)


def environment(contender: str, server: Postgres, *python_path: Path) -> dict[str, str]:
    """
    Return the variables of a process that runs a contender's function; what is on the path comes before what is
    installed.
    """
    path = ":".join(map(str, (*python_path, Path(__file__).with_name("contender"))))
    # Under valgrind a connect takes fifty times as long.
    return variables(contender, server, server.port, tls=False) | {
        "PYTHONPATH": path,
        "PLUNGEPOOL_CONNECT_TIMEOUT_S": "300",
    }


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the times, after one that is not counted")
    parser.add_argument("--write", type=Path, help="write the tables to this page")
    options = parser.parse_args()
    table: dict[str, list[str]] = {}
    with Postgres() as server:
        serve_contenders(server)
        (server_version,) = server.execute("SHOW server_version")[0]
        for case in CASES:
            costs = {contender: cost(case, environment(contender, server)) for contender in COUNTED}
            ours = costs["plungepool"]
            table[case] = [
                f"{ours:,}",
                *(f"{n:,} ({n / ours:.2f})" for name, n in costs.items() if name != "plungepool"),
            ]
            print(case, table[case], file=sys.stderr)
        times = take_turns(server, server.port, TIMED, options.rounds, tls=False, contenders=COUNTED)
    text = "\n\n".join(
        [
            "# What the client computes",
            (
                "The first table shows the instructions that the process executes for one warm statement in "
                "`engine.connect()`, including its rollback, and for one row of a thousand, all through SQLAlchemy. "
                "The number of instructions hardly varies between runs, whatever else the machine does. The second "
                "table shows the CPU time of the client; the contenders take turns. The ratio to Plungepool is in "
                "parentheses."
            ),
            (
                f"{conditions('sqlalchemy', 'pg8000', 'psycopg', server=server_version)}. "
                "To repeat the measurement, run `.venv/bin/python bench/instructions.py --write docs/instructions.md`."
            ),
            as_markdown("instructions", table, COUNTED),
            as_markdown("milliseconds (rows: for a thousand)", times, COUNTED),
        ]
    )
    print(text)
    if options.write:
        options.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
