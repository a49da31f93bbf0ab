"""
What a fleet does to a database, strategy by strategy: spikes, waves, frozen holders, drains, restarts, little CPU.

Each row is run on its own storm (`plungepool storm` runs the same code), several times; what was measured is kept in
`build/fleet`, one file a run, so that a bench that was interrupted goes on where it was: `--anew` measures again.

    .venv/bin/python bench/fleet.py --write                 all rows that are not measured yet, the page, its picture
    .venv/bin/python bench/fleet.py --only spike holders    two of them
    .venv/bin/python bench/fleet.py --list                  which there are, and how long each takes
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import ROOT, machine

from plungepool import Settings, build_engine
from plungepool import drain as package_drain
from plungepool_toolkit.report import draw_answered, outcome
from plungepool_toolkit.storm import arrivals, results
from plungepool_toolkit.storm.endpoints import EndpointError
from plungepool_toolkit.storm.storm import DATABASE, USER, Plan, Storm, StrategyError
from plungepool_toolkit.storm.strategies import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from plungepool_toolkit.postgres import Postgres

PAGE = ROOT / "docs" / "fleet.md"
PICTURE = ROOT / "docs" / "fleet-answered.svg"
# Who is in the picture, which README shows: of the spike.
SHOWN = ("per-invocation", "queue-pool", "null-pool", "psycopg-pool", "serverless-postgres", "tiny", "null", "adaptive")
KEPT = ROOT / "build" / "fleet"
BUSY_PROCESSES = 8
LITTLE_CPU = 0.3
WARM_AFTER_S = 5.0
# What stirs in the middle of a steady storm does it then.
MIDDLE_S = 10.0
COMMAND = ".venv/bin/python bench/fleet.py --write"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of storm, and who goes through it."""

    about: str
    plan: Plan
    strategies: Sequence[str]
    endpoints: Sequence[str] = ("direct",)
    #: What makes it harder from before its first environment to after its last.
    around: Callable[[Postgres], contextlib.AbstractContextManager[None]] | None = None
    #: What happens in its middle.
    meanwhile: Callable[[Postgres], None] | None = None
    #: What is counted of it besides the columns that all have.
    also: Callable[[results.Strategy], str] = field(default=lambda _: "")


@contextlib.contextmanager
def busy_processes(_server: Postgres) -> Iterator[None]:
    """Let eight processes compute for nothing beside clients and server."""
    busy = [
        subprocess.Popen([sys.executable, "-c", "import os\nwhile os.getppid() > 1: sum(range(9999))"])
        for _ in range(BUSY_PROCESSES)
    ]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


@contextlib.contextmanager
def little_cpu(server: Postgres) -> Iterator[None]:
    """Hold the server to a share of one core, by a control group: its processes, and those that they will start."""
    group, limit = control_group()
    group.mkdir()
    try:
        period_us = 100_000
        for name, value in limit(int(LITTLE_CPU * period_us), period_us).items():
            (group / name).write_text(value)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        below = children.read_text().split() if children.exists() else _children(server.pid)
        for pid in (server.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        above = group.parent / "cgroup.procs"
        deadline = time.monotonic() + 10
        while pids := (group / "cgroup.procs").read_text().split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    above.write_text(pid)
            if time.monotonic() > deadline:
                break
        group.rmdir()


def control_group() -> tuple[Path, Callable[[int, int], dict[str, str]]]:
    """Return a control group that does not exist yet, and what to write into it. Raises: StrategyError."""
    name = f"plungepool-bench-{os.getpid()}"
    first, second = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    if os.access(first, os.W_OK) and (first / "cgroup.procs").exists():  # version 1
        return first / name, lambda quota, period: {
            "cpu.cfs_period_us": str(period),
            "cpu.cfs_quota_us": str(quota),
        }
    controllers = second / "cgroup.subtree_control"
    if os.access(second, os.W_OK) and controllers.exists():
        with contextlib.suppress(OSError):
            controllers.write_text("+cpu")
        if "cpu" in controllers.read_text():
            return second / name, lambda quota, period: {"cpu.max": f"{quota} {period}"}
    raise StrategyError("the server's CPU can be limited only where control groups may be made: run this as root")


def _children(parent: int) -> list[str]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return done.stdout.split()


def drain(server: Postgres) -> None:
    """Have every connection of the role replaced, as `plungepool drain` does: idle ones ended in steps."""
    time.sleep(MIDDLE_S)
    url = server.url(server.superuser, DATABASE)
    engine = build_engine(Settings.from_env({"PLUNGEPOOL_URL": url, "PLUNGEPOOL_TLS": "disable"}))
    try:
        for _ in package_drain.drain(engine, package_drain.Options(role=USER, limit_s=30)):
            pass
    finally:
        engine.dispose()


def restart(server: Postgres) -> None:
    """Restart the server, as a failover does: every session is ended, and for a moment nobody answers."""
    time.sleep(MIDDLE_S)
    server.restart()


def after_warm_up(one: results.Strategy) -> str:
    """Say how many connections were opened after the first seconds."""
    late = sum(at > WARM_AFTER_S for at in one.connect_times_s)
    return f"{late} connects after the first {WARM_AFTER_S:g} s"


def of_the_second_group(one: results.Strategy) -> str:
    """Say how many of those that came upon frozen holders were answered."""
    return f"second group: {one.answered[-1]} of {one.invocations // len(one.answered)}"


def busiest_second(one: results.Strategy) -> str:
    """Say how fast connections were opened before the middle, and from then on."""
    early = results.PerSecond.of([at for at in one.connect_times_s if WARM_AFTER_S < at < MIDDLE_S], 1.0)
    late = results.PerSecond.of([at for at in one.connect_times_s if at >= MIDDLE_S], 1.0)
    return f"peak connects per second: {early.peak} before, {late.peak} after"


OURS = ("adaptive", "null")
RETRIED = ("null-retry-fast", "null-retry-slow")
SPIKE = Plan(rounds=arrivals.spike(300, 3), arrival="spike", environments=300)
STEADY = Plan(rounds=arrivals.steady(20, 20, seed=1), arrival="steady", environments=25)
ROWS = {
    "spike": Row(
        about="300 environments at once, three rounds",
        plan=SPIKE,
        strategies=(
            *OURS,
            "tiny",
            *RETRIED,
            "per-invocation",
            "queue-pool",
            "null-pool",
            "psycopg-pool",
            "serverless-postgres",
        ),
    ),
    "holders": Row(
        about="26 environments at once, which freeze with their connections, then 26 others (pattern E)",
        plan=Plan(rounds=arrivals.spike(26, 2, fresh=True), arrival="spike", environments=52),
        strategies=(*OURS, "tiny", "keep-one", "psycopg-pool", "serverless-postgres"),
        also=of_the_second_group,
    ),
    "steady": Row(
        about="25 environments, 20 invocations per second for 20 s, the most recently used environment first",
        plan=STEADY,
        strategies=(*OURS, "tiny", "null-pool", "keep-one"),
        also=after_warm_up,
    ),
    "turns": Row(
        about="25 environments, 20 invocations per second for 20 s, all environments in turn",
        plan=dataclasses.replace(STEADY, reuse="first"),
        strategies=(*OURS, "tiny", "null-pool"),
        also=after_warm_up,
    ),
    "wave": Row(
        about=(
            "a wave of up to 60 invocations per second for 30 s, 600 ms without a connection in each: 36 at a time on "
            "26 connections"
        ),
        plan=Plan(rounds=arrivals.wave(60, 30, seed=1), arrival="wave", environments=300, outside_ms=600),
        strategies=(*OURS, "tiny", "null-pool", "null-retry-slow", "keep-one", "psycopg-pool"),
    ),
    "proxy": Row(
        about="the spike through 10 connections of the stand-in for RDS Proxy, or of PgBouncer",
        plan=SPIKE,
        strategies=("adaptive", "tiny", "null", "queue-pool"),
        endpoints=("proxy", "pgbouncer"),
        also=lambda one: "" if one.pinned is None else f"{one.pinned} pinned",
    ),
    "busy": Row(
        about="the spike on a machine with eight busy processes",
        plan=SPIKE,
        strategies=(*OURS, *RETRIED),
        around=busy_processes,
    ),
    "slow": Row(
        about="the spike, one round, on a server that is limited to 0.3 of a core",
        plan=dataclasses.replace(SPIKE, rounds=arrivals.spike(300, 1)),
        strategies=(*OURS, *RETRIED),
        around=little_cpu,
        also=lambda one: (
            f"{one.succeeded / one.wall_s:.1f} answered per second; server CPU {one.database_cpu_s} s, "
            f"{1000 * (one.database_cpu_s or 0) / max(1, one.succeeded):.1f} ms per answer"
        ),
    ),
    "drain": Row(
        about="25 environments, steady load; halfway through, all old connections are ended in steps",
        plan=STEADY,
        strategies=("adaptive", "tiny", "null", "keep-one"),
        meanwhile=drain,
        also=busiest_second,
    ),
    "restart": Row(
        about="25 environments, steady load; halfway through, the server is restarted",
        plan=STEADY,
        strategies=("adaptive", "tiny", "null", "keep-one"),
        meanwhile=restart,
        also=busiest_second,
    ),
}


def measure(name: str, runs: int, *, anew: bool) -> None:
    """Run what is not measured yet of a row, and keep each result."""
    row = ROWS[name]
    for run in range(runs):
        # Strategies in turns, run by run: what else the machine does at a time is then none's alone.
        missing = [
            (strategy, endpoint)
            for endpoint in row.endpoints
            for strategy in row.strategies
            if anew or not file_of(name, strategy, endpoint, run).exists()
        ]
        if missing:
            with Storm(row.plan) as storm:
                for strategy, endpoint in missing:
                    try:
                        run_one(storm, row, name, strategy, endpoint, run)
                    except (StrategyError, EndpointError) as error:
                        print(f"{name:8} {run + 1} {strategy:20} {endpoint:9} NOT RUN: {error}", flush=True)


def run_one(storm: Storm, row: Row, name: str, strategy: str, endpoint: str, run: int) -> None:
    """Run one strategy once, say what came of it, and keep it."""
    begun = time.monotonic()
    server, meanwhile = storm.server, row.meanwhile
    with row.around(server) if row.around else contextlib.nullcontext():
        one = storm.run(
            STRATEGIES[strategy], endpoint, meanwhile=None if meanwhile is None else lambda: meanwhile(server)
        )
    command = f"bench/fleet.py --only {name}"
    document = results.Storm(row.plan.conditions(storm.server_version, command), (one,)).to_json()
    file = file_of(name, strategy, endpoint, run)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".part").write_text(json.dumps(document))
    file.with_suffix(".part").replace(file)
    print(
        f"{name:8} {run + 1} {strategy:20} {endpoint:9} {one.succeeded}/{one.invocations} "
        f"p50 {one.latency_ms.p50:.0f} ms, {one.connects} connects, {one.refused} refused; {row.also(one)} "
        f"{dict(one.failures) or ''} ({time.monotonic() - begun:.0f} s)",
        flush=True,
    )


def file_of(name: str, strategy: str, endpoint: str, run: int) -> Path:
    """Return where a result is kept."""
    return KEPT / name / f"{strategy}-{endpoint}-{run + 1}.json"


def read(name: str, strategy: str, endpoint: str) -> list[tuple[dict[str, Any], results.Strategy]]:
    """Return what is kept of one strategy: conditions and result of each run."""
    found = []
    for file in sorted((KEPT / name).glob(f"{strategy}-{endpoint}-*.json")):
        document = json.loads(file.read_text())
        found.append((document["conditions"], results.Storm.from_json(document).strategies[0]))
    return found


def lines_of(name: str) -> list[str]:
    """Return the part of the page on one row; nothing where it was not measured."""
    row = ROWS[name]
    lines, texts, runs = [], set(), set()
    for endpoint in row.endpoints:
        for strategy in row.strategies:
            kept = read(name, strategy, endpoint)
            if kept:
                runs.add(len(kept))
                texts.add(
                    f"{kept[0][0]['text']}; {kept[0][0]['date']}, PostgreSQL {kept[0][0]['versions']['postgresql']}"
                )
                lines.append(line_of(row, [one for _, one in kept]))
    if not lines:
        return []
    title = row.about[0].upper() + row.about[1:]
    head = (
        "| strategy | endpoint | answered | p50, p99 ms | peak | connects / refused | peak connects per second "
        "| CPU, s | |"
    )
    count = "one run" if runs == {1} else f"{min(runs)} runs" if len(runs) == 1 else f"{min(runs)} to {max(runs)} runs"
    said = [f"{text}; {count} each." for text in sorted(texts)]
    return [f"## {title}", "", head, "|---|---|---|---|---|---|---|---|---|", *lines, "", *said, ""]


def line_of(row: Row, runs: Sequence[results.Strategy]) -> str:
    """Return one line: medians, of what was answered the worst run, of connections the highest."""

    def median(value: Callable[[results.Strategy], float | None]) -> str:
        values = [found for one in runs if (found := value(one)) is not None]
        return (
            f"{statistics.median(values):.3g}"
            if values and max(values) < 100
            else (f"{statistics.median(values):.0f}" if values else "")
        )

    worst = min(runs, key=lambda one: one.success)
    middle = sorted(runs, key=lambda one: one.latency_ms.p50)[len(runs) // 2]
    failures = ", ".join(f"{code} {count}" for code, count in worst.failures.items())
    title = f"**{worst.title}**" if worst.ours else worst.title
    return (
        f"| {title} | {worst.endpoint} | {worst.succeeded} of {worst.invocations} "
        f"| {median(lambda one: one.latency_ms.p50)}, {median(lambda one: one.latency_ms.p99)} "
        f"| {max(one.connections.peak for one in runs)} "
        f"| {median(lambda one: one.connects)} / {median(lambda one: one.refused)} "
        f"| {median(lambda one: one.connects_per_s.peak)} | {median(lambda one: one.database_cpu_s)} "
        f"| {'; '.join(filter(None, (failures, row.also(middle))))} |"
    )


INTRODUCTION = (
    "# A fleet against a database: strategies side by side\n\n"
    "Real environments (Lambda's runtime client, frozen between invocations) use a real PostgreSQL, all on one "
    "machine. [storm.md](storm.md) explains how this works and what is measured. Each strategy is configured as its "
    "authors recommend. *answered* is from the worst run, *peak* is the highest number of connections in any run, and "
    "all other figures are medians. Latencies include failed invocations. Clients, server and poolers share the cores "
    "of the machine, so compare figures within one table only."
)


def page() -> str:
    """Return docs/fleet.md, with every row that was measured."""
    parts = [INTRODUCTION, "", f"Measured on {machine()}. To repeat the measurements, run `{COMMAND}`.", ""]
    parts += [f"![Answered invocations in the first of these storms, by strategy]({PICTURE.name})", ""]
    for name in ROWS:
        parts += lines_of(name)
    return "\n".join(parts).rstrip() + "\n"


def picture() -> str:
    """Return what became of the spike's invocations, a bar for each strategy: of each its worst run, as on the page."""
    worst = []
    for strategy in SHOWN:
        runs = [json.loads(file.read_text()) for file in (KEPT / "spike").glob(f"{strategy}-direct-*.json")]
        worst += sorted((run["strategies"][0] for run in runs), key=lambda one: one["succeeded"])[:1]
    return draw_answered(outcome.strategies({"strategies": worst}), alone=True)


def main() -> None:
    """Measure what is missing, print the page, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS), help="these rows")
    parser.add_argument("--runs", type=int, default=3, help="of each strategy (default 3)")
    parser.add_argument("--anew", action="store_true", help="measure again what is kept")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.list:
        for name, row in ROWS.items():
            print(f"{name:8} {row.about}: {', '.join(row.strategies)} ({', '.join(row.endpoints)})")
        return
    for name in options.only:
        measure(name, options.runs, anew=options.anew)
    text = page()
    print(text)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
        PICTURE.write_text(picture() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
