"""
What observing costs an invocation: nobody, the line of a slow query (the default), with it a listener for the numbers,
with that the flight recorder, side by side.

    .venv/bin/python bench/observe.py                              measures and prints; a minute
    .venv/bin/python bench/observe.py --instructions               counts instructions instead; some minutes
    .venv/bin/python bench/observe.py … --write docs/observe.md    writes the page's figures, too, of either

Within one process of the real runtime client, on the engine that `get_engine()` returns, an invocation's flights are
taken down as they are told of. Then what is done with an invocation (its begin, those flights, its counts, its end) is
done again and again, the ways in turns: the figure is the least of many, which hardly depends on what else the machine
does. Instructions, by valgrind's callgrind, are those of a whole invocation on the same engine, its handler guarded and
with the runtime client's context (--instructions; needs Debian's package valgrind).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import conditions, instructions, write_figures

from plungepool_toolkit.environment import Environment
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Mapping

APP = """
import os, time

from plungepool import get_engine, guard_invocation, invocation, observe, recorder, slow
from plungepool.wire import session
from sqlalchemy import text

engine, SELECT = get_engine(), text("SELECT 1")
told = []

def nothing():
    recorder.stop()
    slow.stop()
    while told:
        told.pop()()

def watch():
    nothing()
    slow.start(os.environ, 1.0)

def listen():
    watch()
    told.append(observe.listen(lambda tally: None))

def record():
    listen()
    recorder.start(os.environ, slow_s=1.0)

WAYS = {"off": nothing, "watching": watch, "listening": listen, "recording": record}

@guard_invocation
def select(event, context):
    with engine.begin() as connection:
        return connection.execute(SELECT).scalar_one()

def flights(context):
    # what is told of the flights of one warm invocation
    select({}, context)
    found = []
    nothing()
    session.ended = lambda *told_of: found.append(told_of)
    select({}, context)
    session.ended = None
    return found

def invocation_of(found):
    observer, ended = invocation.observer, session.ended
    if observer is not None:
        observer.begin("1")
    invocation.count("checkouts")
    for flight in found:
        if ended is not None:
            ended(*flight)
    invocation.count("kept")
    if observer is not None:
        observer.end(None)

def handler(event, context):
    found, clock = flights(context), time.perf_counter_ns
    least = dict.fromkeys(WAYS, 1e9)
    for _ in range(event["rounds"]):
        for name, attach in WAYS.items():
            attach()
            for _ in range(5):
                invocation_of(found)
            begun = clock()
            for _ in range(50):
                invocation_of(found)
            least[name] = min(least[name], (clock() - begun) / 50)
    nothing()
    return {"flights": len(found), "least": least}
"""
# Lambda's own context object, as the runtime client makes it; under valgrind everything takes fifty times as long.
WARM = (
    "import app, os, sys, time\n"
    "from awslambdaric.lambda_context import LambdaContext\n"
    'context = LambdaContext("1", {}, {}, int(time.time() * 1000) + 900_000)\n'
    "app.WAYS[sys.argv[1]]()\n"
    "for _ in range(int(sys.argv[2])): app.select({}, context)\n"
    "os._exit(0)"
)
WAYS = {
    "off": "nobody listens, `PLUNGEPOOL_SLOW_QUERY_S=0`",
    "watching": "the line of a slow query, the default",
    "listening": "and a listener for the numbers",
    "recording": "and the flight recorder",
}
FEW, MANY = 50, 250


def cost(way: str, environ: Mapping[str, str]) -> int:
    """Return the instructions of one invocation."""
    subprocess.run([sys.executable, "-c", WARM, way, "1"], check=True, env={**environ})
    counts = [instructions([sys.executable, "-c", WARM, way, str(times)], environ) for times in (FEW, MANY)]
    return (counts[1] - counts[0]) // (MANY - FEW)


def timed(folder: Path, environ: Mapping[str, str], rounds: int) -> list[str]:
    """Return the table of what observing takes, in the runtime client."""
    with Environment(folder, variables=environ, timeout_s=120, init_timeout_s=60) as environment:
        invocation = environment.invoke({"rounds": rounds})
        if invocation.error:
            sys.exit(str(invocation.error))
        found: Any = invocation.payload
    lines = ["| of an invocation of one SELECT in a transaction | µs | adds, µs |", "|---|---:|---:|"]
    for way, title in WAYS.items():
        took, off = found["least"][way] / 1e3, found["least"]["off"] / 1e3
        lines.append(f"| {title} | {took:.1f} | {took - off:.1f} |")
    return [*lines, "", f"{found['flights']} exchanges; the least of {rounds} turns;"]


def counted(environ: Mapping[str, str]) -> list[str]:
    """Return the table of the instructions of a whole invocation."""
    with ThreadPoolExecutor(2) as pool:
        counts = dict(zip(WAYS, pool.map(lambda way: cost(way, environ), WAYS), strict=True))
    lines = ["| an invocation of one SELECT in a transaction | instructions | adds | |", "|---|---:|---:|---:|"]
    for way, title in WAYS.items():
        added = counts[way] - counts["off"]
        lines.append(f"| {title} | {counts[way]:,} | {added:,} | {added / counts['off']:.1%} |")
    return [*lines, "", f"A whole invocation, the mean of {MANY - FEW}, by callgrind;"]


def main() -> None:
    """Measure, print, and write the figures into the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="turns of the ways (default 300)")
    parser.add_argument("--instructions", action="store_true", help="count instructions instead, by valgrind")
    parser.add_argument("--write", type=Path, help="write the figures into this page, between its marks")
    options = parser.parse_args()
    with Postgres() as server, tempfile.TemporaryDirectory() as scratch:
        (server_version,) = server.execute("SHOW server_version")[0]
        folder = Path(scratch)
        (folder / "app.py").write_text(APP)
        environ = {
            "PYTHONPATH": scratch, "PLUNGEPOOL_URL": server.url(), "PLUNGEPOOL_PASSWORD": server.password or "unused",
            "PLUNGEPOOL_TLS": "disable", "PLUNGEPOOL_CONNECT_TIMEOUT_S": "300",
        }  # fmt: skip
        lines = counted(environ) if options.instructions else timed(folder, environ, options.rounds)
    command = "bench/observe.py" + " --instructions" * options.instructions
    lines += [
        f"{conditions('sqlalchemy', 'awslambdaric', server=server_version)}; measured again by",
        f"`.venv/bin/python {command} --write docs/observe.md`.",
    ]
    text = "\n".join(lines)
    print(text)
    if options.write:
        write_figures(options.write, "observe-instructions" if options.instructions else "observe", text)


if __name__ == "__main__":
    main()
