"""
Process start to first row, with IAM, over verified TLS, from a read-only folder: Plungepool beside its peers.

    .venv/bin/python bench/cold_start.py [--rounds 15] [--write docs/cold-start.md]

Every variant is one handler that makes what it needs outside, and answers one row of `SELECT 1`. They take turns, round
by round, against one server (the RDS Proxy stand-in before an embedded PostgreSQL); ratios are of medians in this one
run. `as built` is what `sam build` leaves: pip installs without bytecode, our layer brings its own. `compiled` gives
every variant its bytecode. Two ways: a plain process, whole; and the real runtime client, INIT and first invocation.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from plungepool_toolkit.environment import Environment
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
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
             "X-Amz-Credential": f"{os.environ['AWS_ACCESS_KEY_ID']}/{scope}", "X-Amz-Date": now, "X-Amz-Expires": "900",
             "X-Amz-Security-Token": os.environ["AWS_SESSION_TOKEN"], "X-Amz-SignedHeaders": "host"}
    text = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
    request = f"GET\\n/\\n{text}\\nhost:{host}:{port}\\n\\nhost\\n{hashlib.sha256().hexdigest()}"
    key = ("AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"]).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signed = f"AWS4-HMAC-SHA256\\n{now}\\n{scope}\\n{hashlib.sha256(request.encode()).hexdigest()}"
    return f"{host}:{port}/?{text}&X-Amz-Signature={hmac.digest(key, signed.encode(), 'sha256').hex()}"

host, port, user = os.environ["DB_HOST"], int(os.environ["DB_PORT"]), os.environ["DB_USER"]

def handler(event, context):
    connection = pg8000.native.Connection(user, host, "postgres", port, token(host, port, user, os.environ["AWS_REGION"]),
                                          ssl_context=ssl.create_default_context(cafile=os.environ["DB_CA_FILE"]))
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
engine = create_engine(f"postgresql+{driver}://{{user}}@{{host}}:{{port}}/postgres", connect_args={arguments}, pool_size=1, max_overflow=0)

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
        f"host={host} port={port} user={user} dbname=postgres sslmode=verify-full sslrootcert={os.environ['DB_CA_FILE']}",
        plugins="iam", iam_region=os.environ["AWS_REGION"], iam_host=os.environ["DB_RDS_NAME"], iam_default_port=int(port),
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
    "sqlalchemy.dialects.postgresql.asyncpg": "SQLAlchemy, beside the dialect that is used",
    "pg8000": "the driver itself; its types come when a value needs them",
    "scramp": "pg8000, for SCRAM, which IAM never asks for",
}
IMPORT_LATER = """
import app, gc, sys, time
assert app.handler({{}}, None) == 1 and {name!r} not in sys.modules
gc.disable()
begun = time.perf_counter()
import {name}
print(time.perf_counter() - begun)
"""

PG8000_ARGUMENTS = '{"ssl_context": ssl.create_default_context(cafile=os.environ["DB_CA_FILE"])}'
PSYCOPG_ARGUMENTS = '{"sslmode": "verify-full", "sslrootcert": os.environ["DB_CA_FILE"]}'

# name -> (the handler's source, what pip installs; None: our layer)
VARIANTS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "raw pg8000": (RAW, ("pg8000",)),
    "plungepool": (OURS, None),
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


def build(folder: Path, python: str) -> dict[tuple[str, str], Path]:
    """Lay out each variant's folder, as built and compiled; return them by (name, state)."""
    folders = {}
    for number, (name, (source, packages)) in enumerate(VARIANTS.items()):
        target = folder / f"{number}-as-built"
        if packages is None:
            layer = folder / "layer"
            source_copy = folder / "layer-source"
            shutil.copytree(ROOT / "layers/plungepool", source_copy)
            subprocess.run([sys.executable, "build_layer.py", layer, "plungepool"], cwd=source_copy, check=True, stderr=subprocess.DEVNULL)  # fmt: skip
            shutil.copytree(layer / "python", target)
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


def process(python: str, folder: Path, variables: dict[str, str]) -> tuple[float, float]:
    """Start a process and have its first row, the last thing it does; return its wall-clock and CPU seconds."""
    before, begun = os.times(), time.perf_counter()
    code = "import app, os; os._exit(app.handler({}, None) != 1)"
    subprocess.run([python, "-S", "-c", code], check=True, cwd=folder, env={**variables, "PYTHONPATH": str(folder)})
    wall, after = time.perf_counter() - begun, os.times()
    return wall, after.children_user - before.children_user + after.children_system - before.children_system


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


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds, after one that is not (default 15)")
    parser.add_argument("--write", type=Path, help="write the tables to this page")
    options = parser.parse_args()
    python = str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}")
    with (
        tempfile.TemporaryDirectory() as scratch,
        Postgres() as server,
        RdsProxy(server, endpoints=["localhost", RDS_NAME]) as proxy,
    ):
        folders = build(Path(scratch), python)
        (credential,) = proxy.credentials
        variables = {
            "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_ACCESS_KEY_ID": credential.access_key_id, "AWS_SECRET_ACCESS_KEY": credential.secret_access_key,
            "AWS_SESSION_TOKEN": credential.session_token or "", "AWS_REGION": proxy.region, "AWS_DEFAULT_REGION": proxy.region,
            "DB_HOST": "localhost", "DB_PORT": str(proxy.port), "DB_RDS_NAME": RDS_NAME, "DB_USER": "postgres", "DB_CA_FILE": str(proxy.ca_file),
            "PLUNGEPOOL_HOST": "localhost", "PLUNGEPOOL_PORT": str(proxy.port), "PLUNGEPOOL_USER": "postgres",
            "PLUNGEPOOL_AUTH": "iam", "PLUNGEPOOL_ENDPOINT": "proxy", "PLUNGEPOOL_CA_FILE": str(proxy.ca_file),
        }  # fmt: skip
        walls: dict[tuple[str, str], list[float]] = {key: [] for key in folders}
        cpus: dict[tuple[str, str], list[float]] = {key: [] for key in folders}
        inits: dict[tuple[str, str], list[float]] = {key: [] for key in folders}
        firsts: dict[tuple[str, str], list[float]] = {key: [] for key in folders}
        for round_ in range(options.rounds + 1):
            for key, folder in folders.items():
                wall, cpu = process(python, folder, variables)
                init, first = runtime(folder, variables)
                if round_:  # the first one warms the file cache
                    walls[key].append(wall)
                    cpus[key].append(cpu)
                    inits[key].append(init)
                    firsts[key].append(first)
            print(f"round {round_} of {options.rounds}", file=sys.stderr)
        left = left_out(python, folders["plungepool", "as built"], variables, options.rounds)

    lines = []
    for state in ("as built", "compiled"):
        lines += [
            "", f"## {state.capitalize()}", "",
            "| | process, ms | of it CPU, ms | ÷ raw pg8000 | ÷ plungepool | INIT, ms | first invocation, ms |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        # Raw pg8000 as a reference is always compiled: what the driver costs, not what a compiler does.
        raw = statistics.median(walls["raw pg8000", "compiled"])
        ours = statistics.median(walls["plungepool", state])
        for name in VARIANTS:
            key = (name, state)
            wall, cpu, init, first = (statistics.median(times[key]) for times in (walls, cpus, inits, firsts))
            lines.append(f"| {name} | {wall * 1e3:.0f} | {cpu * 1e3:.0f} | {wall / raw:.2f} | {wall / ours:.2f} | {init * 1e3:.0f} | {first * 1e3:.0f} |")  # fmt: skip
    page = [
        "# Cold start",
        "",
        "Process start to first row with IAM over verified TLS, from a read-only folder; medians, lower is better. Written by",
        "`.venv/bin/python bench/cold_start.py --write docs/cold-start.md`, which measures all of it again, side by side.",
        "",
        f"{datetime.date.today()}, Python {platform.python_version()}, {os.cpu_count()} cores of {platform.machine()}, {options.rounds} rounds.",
        *lines,
        "",
        "## Left out",
        "",
        "What the path to the first row does not import, who would, and what each would add by itself (they share modules, so the",
        "sum is less).",
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
