"""
Instructions executed for one warm statement, through SQLAlchemy: ours, ours without declared parameter types, and the peers.

Time on a shared machine is noise; instructions are the same from run to run. Each contender executes a few and then many
statements under valgrind's callgrind, in a process of its own; the difference divided by the number of statements is the
cost of one. It takes some minutes, and needs Debian's package valgrind.

    .venv/bin/python bench/instructions.py            # prints a table
    .venv/bin/python bench/instructions.py --write    # and keeps it in docs/instructions.md
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from plungepool_toolkit.postgres import Postgres

FEW, MANY = 200, 1200
CONTENDERS = {
    "Plungepool": "plungepool",
    "Plungepool, no types declared": "untyped",
    "SQLAlchemy + pg8000": "pg8000",
    "SQLAlchemy + psycopg 3 (C)": "psycopg",
}
STATEMENTS = {
    "`SELECT :x`, one integer": ("SELECT :x", "dict(x=n)"),
    "`SELECT` of six parameters of six types": (
        "SELECT :a, CAST(:b AS text), :c, :d, :e, :f",
        "dict(a=n, b='text', c=2.5, d=MOMENT, e=True, f=AMOUNT)",
    ),
}
PROGRAM = """
import sys
from datetime import UTC, datetime
from decimal import Decimal
contender, host, port, password, times, statement, values = sys.argv[1:]
MOMENT, AMOUNT = datetime(2026, 11, 26, 12, tzinfo=UTC), Decimal("1.25")
if contender in ("plungepool", "untyped"):
    from plungepool import Settings, build_engine, wire
    if contender == "untyped":
        from plungepool.wire import connection
        connection.types_of = lambda rows: ()
    engine = build_engine(Settings(host=host, port=int(port), user="postgres", password=password, tls="disable"))
else:
    import sqlalchemy
    url = sqlalchemy.URL.create("postgresql+" + contender, "postgres", password, host, int(port), "postgres")
    engine = sqlalchemy.create_engine(url)
from sqlalchemy import text
query = text(statement)
for n in range(int(times)):
    with engine.connect() as connection:
        connection.execute(query, eval(values)).all()
"""


def instructions(contender: str, postgres: Postgres, times: int, statement: str, values: str) -> int:
    """Return the instructions that a process executes from its start to its end."""
    password = postgres.password or "unused"
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-c", PROGRAM),
            *(contender, postgres.host, str(postgres.port), password, str(times), statement, values),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONMALLOC": "malloc"},
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1])


def main() -> None:
    lines = [
        "# Instructions of one statement",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, Python {sys.version.split()[0]}, `.venv/bin/python bench/instructions.py --write`:",
        "instructions executed for one warm statement in `engine.connect()`, with its rollback, by valgrind's callgrind.",
        "",
    ]
    with Postgres() as postgres:
        for title, (statement, values) in STATEMENTS.items():
            lines += [f"{title}:", "", "| | instructions | ÷ Plungepool |", "|---|---:|---:|"]
            costs = {}
            for name, contender in CONTENDERS.items():
                few, many = (instructions(contender, postgres, times, statement, values) for times in (FEW, MANY))
                costs[name] = (many - few) // (MANY - FEW)
                lines.append(f"| {name} | {costs[name]:,} | {costs[name] / costs['Plungepool']:.3f} |")
                print(lines[-1], flush=True)
            lines.append("")
    print("\n".join(lines))
    if "--write" in sys.argv:
        (Path(__file__).parent.parent / "docs" / "instructions.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
