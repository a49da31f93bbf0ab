"""
How the benches measure: instructions by valgrind's callgrind, times in turns, and what they were measured with.

Time on a shared machine is noise, so times are compared only within a round in which the contenders took turns.
Instructions are the same from run to run within a thousandth, whatever else the machine does.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.environment import Environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[1]
CONTENDERS = {
    "plungepool": "Plungepool",
    "pg8000": "SQLAlchemy + pg8000",
    "psycopg": "SQLAlchemy + psycopg 3",
    "asyncpg": "asyncpg, bare",
}
# What differs from process to process without a cause in the code: the order of sets, and the allocator's own pages.
STEADY = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def instructions(command: Sequence[str | Path], environ: Mapping[str, str], folder: Path | None = None) -> int:
    """Return the instructions that a process executes from its start to its end; in the kernel's none are counted."""
    if shutil.which("valgrind") is None:
        sys.exit("this counts instructions by valgrind, which is not here: install Debian's package valgrind")
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**environ, **STEADY},
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        sys.exit(f"{command[0]} failed under valgrind:\n{done.stdout}{done.stderr}")
    return int(found[1])


def conditions(*projects: str, server: str | None = None) -> str:
    """Return when, by which versions and on which machine something was measured."""
    versions = [f"Python {platform.python_version()}", *(f"{project} {version(project)}" for project in projects)]
    if server:
        versions.append(f"PostgreSQL {server.split()[0]}")
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}; {', '.join(versions)}; {machine()}"


def write_figures(page: Path, name: str, text: str) -> None:
    """Put figures into a page, between its marks of that name."""
    begin, end = f"<!-- figures: {name} -->", "<!-- end -->"
    before = page.read_text(encoding="utf-8")
    marked = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if not marked.search(before):
        sys.exit(f"{page} has no {begin} … {end}")
    page.write_text(marked.sub(lambda _: f"{begin}\n{text}\n{end}", before), encoding="utf-8")


def machine() -> str:
    """Return how many of which processor this machine has, and its kernel."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{os.cpu_count()} cores of {model}, {platform.system()} {platform.release()}"


def serve_contenders(server: Postgres) -> None:
    """Make on a server what the contenders sign in as and write to."""
    server.execute("CREATE ROLE app LOGIN PASSWORD 'secret'")
    server.execute("CREATE TABLE counted (id serial PRIMARY KEY, label text)")
    server.execute("GRANT ALL ON counted, counted_id_seq TO app")


def variables(contender: str, server: Postgres, port: int, *, tls: bool) -> dict[str, str]:
    """Return the environment variables by which a contender reaches the server at a port."""
    host = "localhost" if tls else "127.0.0.1"
    found = {"BENCH_CONTENDER": contender, "BENCH_HOST": host, "BENCH_PORT": str(port)}
    found |= {"PLUNGEPOOL_URL": f"postgresql://app@{host}:{port}/postgres"}
    if tls:
        found |= {"BENCH_CA_FILE": str(server.ca_file), "PLUNGEPOOL_CA_FILE": str(server.ca_file)}
        # A token, as behind RDS: it is sent as the others send the role's password, and bench/contender makes it be
        # that.
        keys = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "example"}
        return found | keys | {"PLUNGEPOOL_AUTH": "iam", "PLUNGEPOOL_REGION": "eu-west-1"}
    return found | {"PLUNGEPOOL_TLS": "disable", "PLUNGEPOOL_PASSWORD": "secret"}


def invoke(environment: Environment, event: dict[str, Any]) -> list[float]:
    """Return how long each run took, in seconds."""
    invocation = environment.invoke(event)
    if invocation.error:
        raise RuntimeError(f"{environment.function_name}: {invocation.error}")
    return list(invocation.payload)


def start(contender: str, server: Postgres, port: int, *, tls: bool) -> Environment:
    """Return an environment of the contender's function; its first invocation can take a while."""
    folder = Path(__file__).with_name("contender")
    given = variables(contender, server, port, tls=tls)
    return Environment(folder, variables=given, timeout_s=120, init_timeout_s=60, memory_mb=1024)


def take_turns(
    server: Postgres,
    port: int,
    cases: dict[str, dict[str, Any]],
    rounds: int,
    *,
    tls: bool,
    contenders: Mapping[str, str] = CONTENDERS,
) -> dict[str, list[str]]:
    """Return milliseconds by case and contender, and the ratio to the first one, round by round in turns."""
    medians: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        environments = {
            contender: stack.enter_context(start(contender, server, port, tls=tls)) for contender in contenders
        }
        for round_ in range(rounds + 1):
            for name, case in cases.items():
                for contender, environment in environments.items():
                    durations = invoke(environment, case | {"seconds": 0.2})
                    if round_:  # the first one warms
                        medians.setdefault((name, contender), []).append(statistics.median(durations) * 1000)
    table: dict[str, list[str]] = {}
    for name in cases:
        first = medians[name, next(iter(contenders))]
        table[name] = []
        for contender in contenders:
            here = medians[name, contender]
            ratio = statistics.median(theirs / ours for theirs, ours in zip(here, first, strict=True))
            table[name].append(f"{statistics.median(here):.2f}" + (f" ({ratio:.2f})" if here is not first else ""))
    return table


def as_markdown(first: str, table: dict[str, list[str]], contenders: Mapping[str, str] = CONTENDERS) -> str:
    """Return a table with a column for each contender."""
    lines = [f"| {first} | " + " | ".join(contenders.values()) + " |"]
    lines.append("|---|" + "---:|" * len(contenders))
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in table.items()]
    return "\n".join(lines)
