"""
The memory that one large value takes, read and written: Plungepool, stock pg8000 and psycopg 3 (C), side by side.

    .venv/bin/python bench/memory.py          measures and prints

Each driver has a process of its own; the figure is the most that it held at once above what it held before, in MiB.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

DRIVERS = {"plungepool": "plungepool.wire", "pg8000": "pg8000.dbapi", "psycopg": "psycopg"}


def _status(name: str) -> int:
    """Return a line of this process's status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(name)


def _measure(driver: str, address: dict[str, Any], size: int, deed: str, answer: Connection) -> None:
    module: Any = importlib.import_module(DRIVERS[driver])
    connection = module.connect(**address)
    cursor = connection.cursor()
    place = "$1" if driver == "plungepool" else "%s"
    cursor.execute(f"SELECT {place}::bytea", (b"warm",))
    cursor.fetchone()
    value = b"\xff" * size if deed == "write" else b""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    if deed == "read":
        cursor.execute("SELECT value FROM large")
        (value,) = cursor.fetchone()
        if len(value) != size:
            raise ValueError(f"{len(value)} bytes of {size}")
    else:
        cursor.execute(f"SELECT length({place}::bytea)", (value,))
        cursor.fetchone()
    answer.send((_status("VmHWM") - before) / 1024)
    connection.close()


def measure(size: int) -> dict[str, dict[str, float]]:
    """Return, for each driver, the peak in MiB of reading and of writing one bytea of `size` bytes."""
    context = multiprocessing.get_context("spawn")
    peaks: dict[str, dict[str, float]] = {}
    with Postgres() as server:
        server.execute(f"CREATE TABLE large AS SELECT decode(repeat('ff', {size}), 'hex') AS value")
        for driver in DRIVERS:
            name = "dbname" if driver == "psycopg" else "database"
            address = {"user": server.superuser, "host": server.host, "port": server.port, name: "postgres"}
            for deed in ("read", "write"):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_measure, args=(driver, address, size, deed, theirs))
                process.start()
                theirs.close()
                peaks.setdefault(driver, {})[deed] = ours.recv()
                process.join()
    return peaks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=60)
    size = parser.parse_args().megabytes * 1_000_000
    print(f"one bytea of {size / 1e6:g} MB, peak in MiB: read, written")
    for driver, peaks in measure(size).items():
        print(f"{driver:>11} {peaks['read']:6.0f} {peaks['write']:6.0f}")


if __name__ == "__main__":
    main()
