"""
The memory that one large value takes, read and written, through SQLAlchemy: Plungepool, stock pg8000 and psycopg 3 (C).

    .venv/bin/python bench/memory.py                               measures and prints
    .venv/bin/python bench/memory.py --write docs/memory.md        writes the page, too

Each contender (bench/contender) has a process of its own for each of both; the figure is the most that it held at once
above what it held before, once warm, the value itself included.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from measure import CONTENDERS, ROOT, as_markdown, conditions, serve_contenders, variables

from plungepool_toolkit.postgres import Postgres

COUNTED = {name: title for name, title in CONTENDERS.items() if name != "asyncpg"}
PROGRAM = """
import sys
from pathlib import Path

import app

def held(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])

case, size = sys.argv[1], int(sys.argv[2])
app.cases.select()
app.cases.write(4)
Path("/proc/self/clear_refs").write_text("5")
before = held("VmRSS")
length = app.cases.read() if case == "read" else app.cases.write(size)
assert length == size, length
print((held("VmHWM") - before) / 1024)
"""


def peak(contender: str, case: str, server: Postgres, size: int) -> float:
    """Return the most that a contender held at once, in MiB."""
    environ = variables(contender, server, server.port, tls=False) | {"PYTHONPATH": str(ROOT / "bench/contender")}
    command = [sys.executable, "-c", PROGRAM, case, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode:
        sys.exit(f"{contender} failed:\n{done.stderr}")
    return float(done.stdout)


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--write", type=Path, help="write the table to this page")
    options = parser.parse_args()
    size = options.megabytes * 1_000_000
    table = {}
    with Postgres() as server:
        serve_contenders(server)
        server.execute(f"CREATE TABLE large AS SELECT decode(repeat('ff', {size}), 'hex') AS value")
        server.execute("GRANT SELECT ON large TO app")
        (server_version,) = server.execute("SHOW server_version")[0]
        for case in ("read", "write"):
            table[case] = [
                f"{statistics.median(peak(contender, case, server, size) for _ in range(3)):.0f}"
                for contender in COUNTED
            ]
    text = "\n\n".join(
        [
            "# Memory of one large value",
            (
                "Peak memory of a process in MiB, above what it used before, while it reads or writes one `bytea` of "
                f"{size / 1e6:g} MB ({size / 2**20:.0f} MiB) through SQLAlchemy. The value itself is included. The "
                "figures are medians of three runs."
            ),
            (
                f"{conditions('sqlalchemy', 'pg8000', 'psycopg', server=server_version)}. "
                "To repeat the measurement, run `.venv/bin/python bench/memory.py --write docs/memory.md`."
            ),
            as_markdown("", table, COUNTED),
        ]
    )
    print(text)
    if options.write:
        options.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
