"""
A process that has imported what takes long and does not change, and forks for each mutant; run.py starts it in a copy
of the tree.

Orders come as lines of JSON on standard input, answers go out in the same way. The forked child is a pytest process
with the plugin below: it runs the tests that were chosen, in the order that was chosen, and tells where it is.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest


class Plugin:
    """Inside the child: what is run, what it is told of, and clusters that are copied in place of made."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._tests = {test: place for place, test in enumerate(order["tests"])} if "tests" in order else None
        self._progress = os.open(order["progress"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC)
        self._clusters = Path(order["clusters"]) if order.get("clusters") else None
        self._record = Path(order["record"]) if order.get("record") else None
        self._begin: Any = None
        self._seconds: dict[str, float] = {}
        self._failed: list[str] = []
        self._test = ""
        if self._record:
            self._name("")
            names: dict[str, Any] = {}
            exec((Path(__file__).parent / "recorder.py").read_text(), names)
            self._begin = names["_record"](str(self._record), tuple(order["packages"]))

    def pytest_configure(self) -> None:
        if self._clusters:
            self._copy_clusters(self._clusters)

    @staticmethod
    def _copy_clusters(folder: Path) -> None:
        """Let initdb make one cluster for each kind of server, of which every other one of that kind is a copy."""
        from plungepool_toolkit import postgres

        class Subprocess:
            """The module `subprocess`, as servers are started by it."""

            def __getattr__(self, name: str) -> Any:
                return getattr(subprocess, name)

            def run(self, command: list[Any], **options: Any) -> Any:
                if Path(command[0]).name != "initdb":
                    return subprocess.run(command, **options)
                data = next(Path(part.partition("=")[2]) for part in command[1:] if part.startswith("--pgdata="))
                kind = [str(part) for part in command if not str(part).startswith("--pgdata=")]
                model = folder / f"cluster-{hashlib.sha256(repr(kind).encode()).hexdigest()[:8]}"
                if model.exists():
                    return subprocess.run(
                        ["cp", "-a", "-T", model, data], **options | {"user": None, "group": None, "extra_groups": None}
                    )
                done = subprocess.run(command, **options)
                if done.returncode == 0:
                    subprocess.run(["cp", "-a", "-T", data, f"{model}.{os.getpid()}"], check=True)
                    os.rename(f"{model}.{os.getpid()}", model)
                return done

        postgres.subprocess = Subprocess()  # type: ignore[assignment]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._tests is not None:
            chosen = [item for item in items if item.nodeid in self._tests]
            items[:] = sorted(chosen, key=lambda item: self._tests[item.nodeid])  # type: ignore[index]

    def _name(self, test: str) -> None:
        if self._record:
            (self._record / "current").write_text(test)
        if self._begin:
            self._begin(test.encode())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        os.write(self._progress, f"{item.nodeid}\n".encode())
        self._test = item.nodeid
        self._name(item.nodeid)
        try:
            return (yield)
        finally:
            self._name("")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        # What a module's fixture runs, every test of the module may see.
        shared = self._record and fixturedef.scope != "function"
        if shared:
            self._name(self._test.split("::")[0])
        try:
            return (yield)
        finally:
            if shared:
                self._name(self._test)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed or (report.skipped and report.when == "setup"):
            self._failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if self._record:
            told = {"seconds": self._seconds, "failed": self._failed}
            (self._record / "tests.json").write_text(json.dumps(told))


def run(order: dict[str, Any]) -> dict[str, Any]:
    """
    Run one order in a child; say its exit code (None: it took too long), the test that it was at, and the seconds.
    """
    began = time.monotonic()
    progress = Path(order["progress"])
    progress.write_bytes(b"")
    child = os.fork()
    if child == 0:
        _child(order)
    code, at, place = None, 0, ""
    limit = order["first_s"]
    deadline = time.monotonic() + limit
    try:
        # Whoever gave the order may be gone.
        while time.monotonic() < deadline and os.getppid() == order["from"]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                break
            size = progress.stat().st_size
            if size != at:
                at, place = size, progress.read_text().splitlines()[-1]
                deadline = time.monotonic() + order["limits"].get(place, order["first_s"])
            time.sleep(0.02)
    finally:
        # The child leads a session of its own: whatever its tests left running ends with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if code is None:
            os.waitpid(child, 0)
    lines = progress.read_text().splitlines()
    return {"code": code, "test": lines[-1] if lines else "", "seconds": round(time.monotonic() - began, 2)}


def _child(order: dict[str, Any]) -> None:
    code = 99
    try:
        os.setsid()
        with open(order["log"], "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        arguments = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:anyio",
            "--no-header",
            "--tb=short",
            "-W",
            "ignore:Module already imported:pytest.PytestAssertRewriteWarning",
            f"--basetemp={order['scratch']}",
        ]
        if not order.get("record"):
            arguments.append("-x")
        code = int(pytest.main([*arguments, *order["files"]], plugins=[Plugin(order)]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serve orders until there are no more."""
    # The folder of this file is not where the packages are; nothing of a mutant is to be found compiled.
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    for name in ("_pytest.assertion.rewrite", "hypothesis.stateful", "sqlalchemy.orm", "boto3", "botocore.session",
    "pg8000.native",
                 "moto", "cryptography.x509", "psycopg", "aws_lambda_powertools.utilities.parameters", "typer.testing",
                 "rich.console",
                 "asyncio", "http.server", "xmlrpc.client", "sqlalchemy.dialects.postgresql.pg8000"):  # fmt: skip
        with contextlib.suppress(ImportError):
            __import__(name)
    if wrong := [name for name in sys.modules if name.startswith("plungepool")]:
        raise SystemExit(f"already imported: {wrong}")
    # A child's collections need not look at what is here already.
    gc.collect()
    gc.freeze()
    sys.dont_write_bytecode = False
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer = run(order)
        shutil.rmtree(order["scratch"], ignore_errors=True)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
