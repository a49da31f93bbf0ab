"""
What `guard_invocation` costs: a warm invocation, and a cold start. The same handler with it and without it.

    .venv/bin/python bench/guard.py                                 measures and prints; some minutes
    .venv/bin/python bench/guard.py --write docs/invocation.md      writes the page's figures, too

Warm: within one process of the real runtime client, with Lambda's own context object, the two take turns call by call;
the figure is the median of the pairs' differences. Instructions, by valgrind's callgrind, are those of a call more, and
hardly differ from run to run; round trips are counted by the connection. Cold: a process from its start to its first
row, the two in turns. Needs Debian's package valgrind.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import conditions, instructions, write_figures

from plungepool_toolkit.environment import Environment
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

APP = """
import os, sys, time

from plungepool import get_engine, guard_invocation
from plungepool.pool import _trace
from sqlalchemy import text

engine, SELECT = get_engine(), text("SELECT 1")

def nothing(event, context):
    return 1

def select(event, context):
    with engine.begin() as connection:
        return connection.execute(SELECT).scalar_one()

plain = {"nothing": nothing, "select": select}
guarded = {name: guard_invocation(handler) for name, handler in plain.items()}

def line(event, context):
    _trace(sys._getframe(1))
    return 1

plain["line"], guarded["line"] = nothing, line
cold = guarded["select"] if os.environ.get("BENCH_GUARDED") else select

def flights(handler, context):
    with engine.connect() as connection:
        wire = connection.connection.dbapi_connection
    before = wire.flights
    handler({}, context)
    return wire.flights - before

def handler(event, context):
    one, other = plain[event["case"]], guarded[event["case"]]
    pairs, clock = [], time.perf_counter_ns
    for number in range(event["pairs"]):
        times = {}
        for each in (one, other) if number % 2 else (other, one):
            begun = clock()
            each(event, context)
            times[each] = clock() - begun
        pairs.append((times[one], times[other]))
    return {"pairs": pairs, "flights": [flights(each, context) for each in (one, other)]}
"""
# Lambda's own context object, as the runtime client makes it; under valgrind everything takes fifty times as long.
CONTEXT = """
import app, os, sys, time
from awslambdaric.lambda_context import LambdaContext
context = LambdaContext("1", {}, {}, int(time.time() * 1000) + 900_000)
"""
WARM = CONTEXT + "for _ in range(int(sys.argv[3])): getattr(app, sys.argv[1])[sys.argv[2]]({}, context)\nos._exit(0)"
COLD = CONTEXT + "os._exit(app.cold({}, context) != 1)"
# What is shown -> the case, more variables, calls at least and at most for the instructions, pairs.
CASES: dict[str, tuple[str, dict[str, str], int, int, int]] = {
    "the guard alone: a handler that does nothing": ("nothing", {}, 200, 1200, 4000),
    "a transaction of one SELECT, PLUNGEPOOL_DEADLINE=client": (
        "select",
        {"PLUNGEPOOL_DEADLINE": "client"},
        50,
        250,
        500,
    ),
    "the same with the deadline told to the server": ("select", {}, 50, 250, 500),
    "of each checkout, with a guard or without: which line has taken it": ("line", {}, 200, 1200, 4000),
}


def run(program: str, environ: Mapping[str, str], *arguments: str) -> None:
    """Run a program to its end."""
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, env={**environ})


def warm_instructions(case: str, few: int, many: int, environ: Mapping[str, str]) -> int:
    """Return the instructions that the guard adds to one call."""
    of = {}
    for kind in ("plain", "guarded"):
        run(WARM, environ, kind, case, "1")  # whose bytecode is not there yet has it after this
        counts = [instructions([sys.executable, "-c", WARM, kind, case, str(times)], environ) for times in (few, many)]
        of[kind] = (counts[1] - counts[0]) / (many - few)
    return round(of["guarded"] - of["plain"])


def warm(environment: Environment, case: str, pairs: int) -> tuple[float, float, int]:
    """Return what a call takes without the guard, what the guard adds, in microseconds, and the round trips it adds."""
    found: list[Any] = []
    for count in (pairs // 10, pairs):  # the first one warms
        invocation = environment.invoke({"case": case, "pairs": count})
        if invocation.error:
            sys.exit(f"{case}: {invocation.error}")
        found.append(invocation.payload)
    measured = found[-1]["pairs"]
    without, with_guard = found[-1]["flights"]
    return (
        statistics.median(one for one, _ in measured) / 1e3,
        statistics.median(other - one for one, other in measured) / 1e3,
        with_guard - without,
    )


class _Registers(BaseHTTPRequestHandler):
    """The Runtime API, as far as an extension registers."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Lambda-Extension-Identifier", "bench")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def registering() -> Iterator[str]:
    """Give the address of a Runtime API that registers extensions."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Registers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def cold(environ: Mapping[str, str], added: Mapping[str, str], rounds: int) -> tuple[int, int, float, list[float]]:
    """
    Return instructions and CPU milliseconds of a cold start, and what more variables add to each: of the milliseconds
    the quartiles.
    """
    both = [{**environ}, {**environ, **added}]
    counts, pairs = [], []
    for each in both:
        run(COLD, each)
        counts.append(instructions([sys.executable, "-c", COLD], each))
    for number in range(rounds):
        times = [0.0, 0.0]
        for at in (0, 1) if number % 2 else (1, 0):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run(COLD, both[at])
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times[at] = (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1e3
        pairs.append(times)
    return (
        counts[0],
        counts[1] - counts[0],
        statistics.median(one for one, _ in pairs),
        statistics.quantiles([other - one for one, other in pairs], n=4),
    )


def main() -> None:
    """Measure, print, and write the figures into the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="pairs of processes for the cold start (default 21)")
    parser.add_argument("--write", type=Path, help="write the figures into this page, between its marks")
    options = parser.parse_args()
    lines = ["| warm | instructions | adds, µs | to, µs | round trips |", "|---|---:|---:|---:|---:|"]
    with Postgres() as server, tempfile.TemporaryDirectory() as scratch:
        (server_version,) = server.execute("SHOW server_version")[0]
        folder = Path(scratch)
        (folder / "app.py").write_text(APP)
        environ = {
            "PYTHONPATH": scratch, "PLUNGEPOOL_URL": server.url(), "PLUNGEPOOL_PASSWORD": server.password or "unused",
            "PLUNGEPOOL_TLS": "disable", "PLUNGEPOOL_CONNECT_TIMEOUT_S": "300",
        }  # fmt: skip
        for name, (case, more, few, many, pairs) in CASES.items():
            added = warm_instructions(case, few, many, environ | more)
            with Environment(folder, variables=environ | more, timeout_s=120, init_timeout_s=60) as environment:
                without_us, adds_us, trips = warm(environment, case, pairs)
            lines.append(f"| {name} | {added:,} | {adds_us:.1f} | {without_us:.1f} | {trips} |")
            print(lines[-1], file=sys.stderr)
        count, count_adds, cpu_ms, (low_ms, cpu_adds_ms, high_ms) = cold(
            environ, {"BENCH_GUARDED": "1"}, options.rounds
        )
        with registering() as api:
            lambda_ = {"AWS_LAMBDA_RUNTIME_API": api, "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13"}
            _, asks_adds, _, (low_asks, asks_ms, high_asks) = cold(
                environ | lambda_ | {"PLUNGEPOOL_SHUTDOWN": "off"}, {"PLUNGEPOOL_SHUTDOWN": "extension"}, options.rounds
            )
    lines += [
        "",
        "| cold | instructions, millions | CPU, ms |",
        "|---|---:|---:|",
        f"| process to first row, without the guard | {count / 1e6:.1f} | {cpu_ms:.0f} |",
        f"| the guard adds | {count_adds / 1e6:.2f} | {cpu_adds_ms:.1f} ({low_ms:.1f} to {high_ms:.1f}) |",
        f"| asking for SIGTERM adds | {asks_adds / 1e6:.2f} | {asks_ms:.1f} ({low_asks:.1f} to {high_asks:.1f}) |",
        "",
        f"{conditions('sqlalchemy', 'awslambdaric', server=server_version)};",
        "medians of pairs in turns, in brackets their quartiles; measured again by",
        "`.venv/bin/python bench/guard.py --write docs/invocation.md`.",
    ]
    text = "\n".join(lines)
    print(text)
    if options.write:
        write_figures(options.write, "guard", text)


if __name__ == "__main__":
    main()
