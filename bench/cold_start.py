"""
Process start to first row, with IAM, over verified TLS, from a read-only folder: Plungepool beside its peers.

    .venv/bin/python bench/cold_start.py [--rounds 15] [--write docs/cold-start.md]
    .venv/bin/python bench/cold_start.py --instructions [--before COMMIT]               some minutes, exact

Every variant is one handler that makes what it needs outside, and answers one row of `SELECT 1`. They take turns, round
by round, against one server (the RDS Proxy stand-in before an embedded PostgreSQL); ratios are of medians in this one
run. `as built` is what `sam build` leaves: pip installs without bytecode, our layer brings its own. `compiled` gives
every variant its bytecode. Three ways: a plain process, whole; the instructions that it executes, which hardly differ
from run to run; and the real runtime client, INIT and first invocation. `--before COMMIT` has Plungepool of that commit
among the variants.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from measure import ROOT, conditions, instructions

from plungepool_toolkit.environment import Environment
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# The wrapper signs for RDS names only; the stand-in takes this one as another name of its own.
RDS_NAME = "bench.proxy-abcdefghijkl.eu-west-1.rds.amazonaws.com"

RAW = """
import datetime, hashlib, hmac, os, ssl
from urllib.parse import quote
import pg8000.native

def token(host, port, user, region):
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{now[:8]}/{region}/rds-db/aws4_request"
    query = {"Action": "connect", "DBUser": user, "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
             "X-Amz-Credential": f"{os.environ['AWS_ACCESS_KEY_ID']}/{scope}", "X-Amz-Date": now,
             "X-Amz-Expires": "900", "X-Amz-Security-Token": os.environ["AWS_SESSION_TOKEN"],
             "X-Amz-SignedHeaders": "host"}
    text = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
    request = f"GET\\n/\\n{text}\\nhost:{host}:{port}\\n\\nhost\\n{hashlib.sha256().hexdigest()}"
    key = ("AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"]).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signed = f"AWS4-HMAC-SHA256\\n{now}\\n{scope}\\n{hashlib.sha256(request.encode()).hexdigest()}"
    return f"{host}:{port}/?{text}&X-Amz-Signature={hmac.digest(key, signed.encode(), 'sha256').hex()}"

host, port, user = os.environ["DB_HOST"], int(os.environ["DB_PORT"]), os.environ["DB_USER"]

def handler(event, context):
    password = token(host, port, user, os.environ["AWS_REGION"])
    context = ssl.create_default_context(cafile=os.environ["DB_CA_FILE"])
    connection = pg8000.native.Connection(user, host, "postgres", port, password, ssl_context=context)
    return connection.run("SELECT 1")[0][0]
"""

OURS = """
from plungepool import get_engine
from sqlalchemy import text

engine = get_engine()

def handler(event, context):
    with engine.begin() as connection:
        return connection.execute(text("SELECT 1")).scalar_one()
"""

SQLALCHEMY = """
import os, ssl
import boto3
from sqlalchemy import create_engine, event, text

host, port, user = os.environ["DB_HOST"], int(os.environ["DB_PORT"]), os.environ["DB_USER"]
rds = boto3.client("rds")
url = f"postgresql+{driver}://{{user}}@{{host}}:{{port}}/postgres"
engine = create_engine(url, connect_args={arguments}, pool_size=1, max_overflow=0)

@event.listens_for(engine, "do_connect")
def give_token(dialect, record, arguments, parameters):
    parameters["password"] = rds.generate_db_auth_token(host, port, user)

def handler(event, context):
    with engine.begin() as connection:
        return connection.execute(text("SELECT 1")).scalar_one()
"""

WRAPPER = """
import os
import psycopg
from aws_advanced_python_wrapper import AwsWrapperConnection

host, port, user = os.environ["DB_HOST"], os.environ["DB_PORT"], os.environ["DB_USER"]

def handler(event, context):
    connection = AwsWrapperConnection.connect(
        psycopg.Connection.connect,
        f"host={host} port={port} user={user} dbname=postgres sslmode=verify-full "
        f"sslrootcert={os.environ['DB_CA_FILE']}",
        plugins="iam", iam_region=os.environ["AWS_REGION"],
        iam_host=os.environ["DB_RDS_NAME"], iam_default_port=int(port),
        wrapper_dialect="pg",
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]
"""

# What this engine's path to the first row leaves out, and others import: each is imported after the first row, in a
# process of its own, so that what is measured is what it would add.
LEFT_OUT = {
    "asyncio": "SQLAlchemy, for asynchronous engines",
    "importlib.metadata": "SQLAlchemy and pg8000, for entry points and a version",
    "sqlalchemy.dialects.postgresql.asyncpg": "SQLAlchemy, in addition to the dialect in use",
    "pg8000": "the driver itself; its types are imported when a value needs them",
    "scramp": "pg8000, for SCRAM, which IAM does not use",
}
IMPORT_LATER = """
import app, gc, sys, time
assert app.handler({{}}, None) == 1 and {name!r} not in sys.modules
gc.disable()
begun = time.process_time()
import {name}
print(time.process_time() - begun)
"""

PG8000_ARGUMENTS = '{"ssl_context": ssl.create_default_context(cafile=os.environ["DB_CA_FILE"])}'
PSYCOPG_ARGUMENTS = '{"sslmode": "verify-full", "sslrootcert": os.environ["DB_CA_FILE"]}'

# What pip installs, or the checkout whose layer is built.
Layer = tuple[str, ...] | Path
# name -> (the handler's source, its packages)
VARIANTS: dict[str, tuple[str, Layer]] = {
    "raw pg8000": (RAW, ("pg8000",)),
    "plungepool": (OURS, ROOT),
    "boto3 + SQLAlchemy + pg8000": (
        SQLALCHEMY.format(driver="pg8000", arguments=PG8000_ARGUMENTS),
        ("boto3", "sqlalchemy", "pg8000"),
    ),
    "boto3 + SQLAlchemy + psycopg": (
        SQLALCHEMY.format(driver="psycopg", arguments=PSYCOPG_ARGUMENTS),
        ("boto3", "sqlalchemy", "psycopg[binary]"),
    ),
    "AWS Advanced Python Wrapper + psycopg": (WRAPPER, ("aws-advanced-python-wrapper", "boto3", "psycopg[binary]")),
}


def run(command: Sequence[str | Path], **variables: str) -> None:
    """Run a command to its end; its output is shown only if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


def build_layer(tree: Path, target: Path) -> None:
    """Lay out what our layer of a checkout has in Lambda's /opt/python."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        shutil.copytree(tree / "layers/plungepool", source)
        layer = Path(scratch) / "layer"
        subprocess.run(
            [sys.executable, "build_layer.py", layer, "plungepool"], cwd=source, check=True, stderr=subprocess.DEVNULL
        )
        shutil.copytree(layer / "python", target)


def check_out(commit: str, folder: Path) -> Path:
    """Lay out the repository's files as of a commit; return the folder."""
    folder.mkdir()
    archive = folder.with_suffix(".tar")
    run(["git", "-C", ROOT, "archive", "--output", archive, commit])
    shutil.unpack_archive(archive, folder, filter="fully_trusted")
    return folder


def build(folder: Path, python: str, variants: Mapping[str, tuple[str, Layer]]) -> dict[tuple[str, str], Path]:
    """Lay out each variant's folder, as built and compiled; return them by (name, state)."""
    folders = {}
    for number, (name, (source, packages)) in enumerate(variants.items()):
        target = folder / f"{number}-as-built"
        if isinstance(packages, Path):
            build_layer(packages, target)
        else:
            run([
                ROOT / ".venv-uv/bin/uv", "pip", "install", "--quiet", "--python", python, "--target", target,
                "--constraint", ROOT / "requirements/bench.txt", *packages,
            ])  # fmt: skip
            for cache in target.rglob("__pycache__"):
                shutil.rmtree(cache)
        (target / "app.py").write_text(source)
        compiled = folder / f"{number}-compiled"
        shutil.copytree(target, compiled)
        run([python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", compiled])
        folders[name, "as built"], folders[name, "compiled"] = target, compiled
    return folders


# The first row is the last thing that the process does.
FIRST_ROW = "import app, os; os._exit(app.handler({}, None) != 1)"


def process(python: str, folder: Path, variables: dict[str, str]) -> tuple[float, float]:
    """Start a process and have its first row; return its wall-clock and CPU seconds."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environ = {**variables, "PYTHONPATH": str(folder)}
    subprocess.run([python, "-S", "-c", FIRST_ROW], check=True, cwd=folder, env=environ)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def count(python: str, folder: Path, variables: dict[str, str]) -> int:
    """Return the instructions of the same process, in which a connect takes fifty times as long."""
    environ = {**variables, "PYTHONPATH": str(folder), "PLUNGEPOOL_CONNECT_TIMEOUT_S": "300"}
    return instructions([python, "-S", "-c", FIRST_ROW], environ, folder)


def runtime(folder: Path, variables: dict[str, str]) -> tuple[float, float]:
    """Initialise an environment with the real runtime client, invoke it once; return INIT and invocation seconds."""
    with Environment(folder, python_path=[folder], variables=variables, init_timeout_s=30, timeout_s=30) as environment:
        invocation = environment.invoke({})
    assert invocation.payload == 1, invocation
    return environment.init_s, invocation.duration_s


def left_out(python: str, folder: Path, variables: dict[str, str], rounds: int) -> list[str]:
    """Return a line for each module that is left out, with the milliseconds that its import would add."""
    times: dict[str, list[float]] = {name: [] for name in LEFT_OUT}
    for _ in range(rounds):
        for name, seconds in times.items():
            command = [python, "-S", "-c", IMPORT_LATER.format(name=name)]
            environ = {**variables, "PYTHONPATH": str(folder)}
            done = subprocess.run(command, check=True, cwd=folder, env=environ, capture_output=True, text=True)
            seconds.append(float(done.stdout))
    return [f"| {name} | {LEFT_OUT[name]} | {statistics.median(times[name]) * 1e3:.1f} |" for name in LEFT_OUT]


def interpreter() -> str:
    """Return the Python of this virtual environment, without its packages."""
    return str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}")


@contextlib.contextmanager
def served() -> Iterator[tuple[dict[str, str], str]]:
    """Give the variables with which every variant reaches the stand-in, and the server's version."""
    with Postgres() as server, RdsProxy(server, endpoints=["localhost", RDS_NAME]) as proxy:
        (credential,) = proxy.credentials
        yield {
            "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_ACCESS_KEY_ID": credential.access_key_id, "AWS_SECRET_ACCESS_KEY": credential.secret_access_key,
            "AWS_SESSION_TOKEN": credential.session_token or "", "AWS_REGION": proxy.region,
            "AWS_DEFAULT_REGION": proxy.region,
            "DB_HOST": "localhost", "DB_PORT": str(proxy.port), "DB_RDS_NAME": RDS_NAME, "DB_USER": "postgres",
            "DB_CA_FILE": str(proxy.ca_file),
            "PLUNGEPOOL_HOST": "localhost", "PLUNGEPOOL_PORT": str(proxy.port), "PLUNGEPOOL_USER": "postgres",
            "PLUNGEPOOL_AUTH": "iam", "PLUNGEPOOL_ENDPOINT": "proxy", "PLUNGEPOOL_CA_FILE": str(proxy.ca_file),
        }, server.execute("SHOW server_version")[0][0]  # fmt: skip


def take_turns(
    python: str, folders: Mapping[tuple[str, str], Path], variables: dict[str, str], rounds: int
) -> dict[tuple[str, str], list[tuple[float, ...]]]:
    """
    Return for each variant its process's wall and CPU seconds, its INIT's and its first invocation's, round by round.
    """
    measured: dict[tuple[str, str], list[tuple[float, ...]]] = {key: [] for key in folders}
    for round_ in range(rounds + 1):
        for key, folder in folders.items():
            figures = (*process(python, folder, variables), *runtime(folder, variables))
            if round_:  # the first one warms the file cache
                measured[key].append(figures)
        print(f"round {round_} of {rounds}", file=sys.stderr)
    return measured


def table(
    state: str,
    names: Sequence[str],
    measured: Mapping[tuple[str, str], list[tuple[float, ...]]],
    counts: Mapping[tuple[str, str], int],
) -> list[str]:
    """
    Return the lines of a table: ratios are medians of the rounds' ratios, of CPU time, which other processes change
    least.
    """
    columns = ("instructions, millions", "÷ raw pg8000", "CPU, ms", "÷ raw pg8000", "÷ plungepool")
    lines = [
        "", f"## {state.capitalize()}", "",
        f"| | {' | '.join(columns)} | process, ms | INIT, ms | first invocation, ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    # Raw pg8000 as a reference is always compiled: what the driver costs, not what a compiler does.
    reference = ("raw pg8000", "compiled")
    for name in names:
        key = (name, state)
        cells = [f"{counts[key] / 1e6:,.0f}", f"{counts[key] / counts[reference]:.2f}"] if key in counts else ["", ""]
        if measured:
            wall, cpu, init, first = (statistics.median(column) * 1e3 for column in zip(*measured[key], strict=True))
            raw, ours = (
                statistics.median(
                    mine[1] / theirs[1] for mine, theirs in zip(measured[key], measured[other], strict=True)
                )
                for other in (reference, ("plungepool", state))
            )
            cells += [f"{cpu:.0f}", f"{raw:.2f}", f"{ours:.2f}", f"{wall:.0f}", f"{init:.0f}", f"{first:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds, after one that is not (default 15)")
    parser.add_argument("--instructions", action="store_true", help="count instructions only, of ours and raw pg8000")
    parser.add_argument("--before", metavar="COMMIT", help="have Plungepool of this commit among the variants")
    parser.add_argument("--write", type=Path, help="write the tables to this page")
    options = parser.parse_args()
    python = interpreter()
    with tempfile.TemporaryDirectory() as scratch, served() as (variables, server_version):
        variants = dict(VARIANTS)
        if options.instructions:
            variants = {name: variants[name] for name in ("raw pg8000", "plungepool")}
        if options.before:
            variants[f"plungepool of {options.before}"] = OURS, check_out(options.before, Path(scratch) / "before")
        folders = build(Path(scratch), python, variants)
        # The peers have the times; under valgrind, and compiling their source there, they would take longer than all
        # the rest.
        counts = {
            (name, state): count(python, folder, variables)
            for (name, state), folder in folders.items()
            if state == "compiled" and (name == "raw pg8000" or isinstance(variants[name][1], Path))
        }
        if options.instructions:
            for (name, state), number in counts.items():
                print(f"{name}, {state}: {number:,}, {number / counts['raw pg8000', 'compiled']:.3f} of raw pg8000")
            return
        measured = take_turns(python, folders, variables, options.rounds)
        left = left_out(python, folders["plungepool", "as built"], variables, options.rounds)
    page = [
        "# Cold start",
        "",
        "From the start of the process to the first row, with IAM over verified TLS, from a read-only folder. Lower is",
        "better. The number of instructions hardly varies between runs. Times are medians. The ratios of CPU time are",
        "the medians of the ratios in each round, in which the variants take turns.",
        "",
        f"{conditions('sqlalchemy', 'pg8000', 'psycopg', server=server_version)}; {options.rounds} rounds.",
        "To repeat the measurement, run",
        "`.venv/bin/python bench/cold_start.py --write docs/cold-start.md`.",
        *table("as built", list(variants), measured, counts),
        *table("compiled", list(variants), measured, counts),
        "",
        "## Left out",
        "",
        "Plungepool does not import these modules on the path to the first row. The table shows who would import them,",
        "and the time that each would add by itself. Some share modules, so together they would add less than the sum.",
        "",
        "| module | imported by | would add, ms |",
        "|---|---|---|",
        *left,
        "",
    ]
    print("\n".join(page))
    if options.write:
        options.write.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
