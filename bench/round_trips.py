"""
Round trips and times of one statement, side by side: Plungepool, stock pg8000, psycopg 3 (C) and asyncpg.

    .venv/bin/python bench/round_trips.py                                   measures and prints
    .venv/bin/python bench/round_trips.py --write docs/round-trips.md       writes the page, too

Every contender is a function in the real runtime client (bench/contender), Plungepool's engine the one that
`get_engine()` returns. Counts are exact: a proxy counts each wait for the server, TLS on. For times the contenders take
turns, round by round; a ratio is the median of the rounds' ratios. The latency of a network is added by the same proxy
in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import CONTENDERS, as_markdown, conditions, invoke, serve_contenders, start, take_turns

from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

LATENCIES_MS = (0, 1, 5)
# What is done, by its name in the tables: the case of bench/contender and its arguments.
CASES: dict[str, dict[str, Any]] = {
    "connect (TLS, IAM token or clear-text password), first `SELECT :x`, rollback": {"case": "connect"},
    "`SELECT :x`, warm, default isolation": {"case": "select"},
    "`SELECT :x`, warm, AUTOCOMMIT": {"case": "select", "arguments": {"engine": "AUTOCOMMIT"}},
    "`SELECT :x`, warm, default isolation, pre-ping": {"case": "select", "arguments": {"engine": "pre-ping"}},
    "`begin()`, one INSERT with parameters": {"case": "insert", "arguments": {"count": 1}},
    "`begin()`, five INSERTs with parameters": {"case": "insert", "arguments": {"count": 5}},
    "`begin()`, executemany of 100 rows": {"case": "many", "arguments": {"returning": False}},
    "`begin()`, executemany of 100 rows with RETURNING": {"case": "many", "arguments": {"returning": True}},
}
TIMED = {name: case for name, case in CASES.items() if "five" not in name and "pre-ping" not in name}
ROWS = {f"{count:,}": {"case": "rows", "arguments": {"count": count}, "cpu": True} for count in (1, 100, 10_000)}


def count(server: Postgres) -> dict[str, list[str]]:
    """Return the round trips of every case and contender, once warm."""
    table: dict[str, list[str]] = {name: [] for name in CASES}
    for contender in CONTENDERS:
        with (
            ChaosProxy(server.host, server.port) as proxy,
            start(contender, server, proxy.port, tls=True) as environment,
        ):
            for name, case in CASES.items():
                if contender == "asyncpg" and "pre-ping" in name:
                    table[name].append("")
                    continue
                connects = case["case"] == "connect"
                # Closing is not counted: it has an answer under TLS, for which nobody waits.
                invoke(environment, case | {"times": 1 if connects else 10})
                invoke(environment, {"forget": connects})
                proxy.round_trips = 0
                invoke(environment, case | {"times": 1})
                table[name].append(str(proxy.round_trips))
    return table


def serve(host: str, port: int, latency_ms: float, pipe: Connection) -> None:
    """Be a proxy in a process of its own, so that it takes no time from the client."""
    with ChaosProxy(host, port, latency_ms=latency_ms) as proxy:
        pipe.send(proxy.port)
        pipe.recv()


@contextlib.contextmanager
def at_latency(server: Postgres, latency_ms: float) -> Iterator[int]:
    """Give the port at which the server is behind a network with that latency; 0: its own."""
    if not latency_ms:
        yield server.port
        return
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(server.host, server.port, latency_ms, theirs)
    )
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds, after one that is not (default 9)")
    parser.add_argument("--counts", action="store_true", help="count round trips only, in half a minute")
    parser.add_argument("--rows", action="store_true", help="measure the rows only")
    parser.add_argument("--write", type=Path, help="write the tables to this page")
    options = parser.parse_args()
    times: dict[float, dict[str, list[str]]] = {}
    with Postgres(tls=True, authentication="password") as server:
        serve_contenders(server)
        (server_version,) = server.execute("SHOW server_version")[0]
        if options.rows:
            print(as_markdown("rows", take_turns(server, server.port, ROWS, options.rounds, tls=False)))
            return
        counts = count(server)
        if options.counts:
            print(as_markdown("case", counts))
            return
        for latency_ms in LATENCIES_MS:
            with at_latency(server, latency_ms) as port:
                times[latency_ms] = take_turns(server, port, TIMED, options.rounds, tls=True)
        rows = take_turns(server, server.port, ROWS, options.rounds, tls=False)
    parts = [
        "# Round trips and times, side by side",
        (
            "A round trip is one wait for the server. Counts are exact: a proxy between client and server counts the "
            "round trips, including the TCP handshake of a connect. Times are medians of rounds in which the "
            "contenders take turns; each contender is a function in the real runtime client. The median of the "
            "rounds' ratios to Plungepool is in parentheses. On a shared machine, rely on these ratios. "
            "asyncpg runs without SQLAlchemy, and so without the cost of SQLAlchemy."
        ),
        (
            f"{conditions('sqlalchemy', 'pg8000', 'psycopg', 'asyncpg', server=server_version)}; {options.rounds} "
            "rounds. To repeat the measurement, run `.venv/bin/python bench/round_trips.py --write "
            "docs/round-trips.md`."
        ),
        "## Round trips, TLS",
        as_markdown("case", counts),
        *(
            text
            for latency_ms, table in times.items()
            for text in (f"## Milliseconds, TLS, latency of {latency_ms} ms per round trip", as_markdown("case", table))
        ),
        (
            "## Milliseconds of the client's CPU for rows of int, text, float8, timestamptz and numeric (plain text, "
            "loopback)"
        ),
        as_markdown("rows", rows),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
