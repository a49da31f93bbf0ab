"""`plungepool demo`, as a user runs it: what it shows, how it ends, what it leaves."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ("-m", "plungepool_toolkit", "demo")
FUNCTIONS = {path.parent.name for path in ROOT.glob("functions/*/app.py")}


@pytest.fixture
def application(tmp_path: Path) -> Any:
    """A copy of the sample functions and their events, for breaking."""
    for folder in ("functions", "events"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_every_function_answers_over_one_connection(machine: Any) -> None:
    """
    The demo shows every sample function there is, with one connection of one backend over 50 warm invocations (the one
    that checks the way to the database keeps none), and leaves nothing.
    """
    result = machine.run(*DEMO)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {cells[0]: cells[1:] for cells in _table(result.stdout)}
    assert set(rows) == FUNCTIONS
    for name, (cold, warm, connections, backends, verdict) in rows.items():
        assert float(cold) > 0
        assert float(warm) > 0
        kept = "0" if name == "check_database" else "1"
        assert (connections, backends, verdict) == (kept, kept, "answered")
    assert "50 warm invocations" in result.stdout
    count = len(FUNCTIONS)
    assert f"The database counts {count - 1} connections for {count} frozen environments." in result.stdout
    assert '"statusCode": 200' in result.stdout
    assert "over the same connection: acme 3, globex 2; without a token: 401" in " ".join(result.stdout.split())
    # The rest run again through the stand-in for RDS Proxy: 51 invocations of 4 environments.
    shown = " ".join(result.stdout.split())
    assert "204 invocations of 4 environments, one at a time and in turns" in shown
    total, shares = re.search(r"(\d+) transactions: (.+?) clients of the proxy: 3, kept", shown).groups()
    numbers = dict(share.rsplit(" ", 1) for share in shares.split(", "))
    # What sets a transaction's tenant would pin the proxy.
    assert set(numbers) == FUNCTIONS - {"prepare_database", "handle_tenant_orders"}
    assert sum(map(int, numbers.values())) == int(total)
    assert "at most, of 2 allowed" in shown
    assert "kept by the frozen environments; pinned: 0" in shown
    assert len(re.findall(r"backends that held them, over all 51 invocations: 1 \(process \d+\)", shown)) == count - 1
    assert "the cold start in README is the layer's alone" in shown
    assert machine.left_behind() == []


def test_a_function_that_pins_the_proxy_fails_the_demo(machine: Any, application: Any) -> None:
    """What goes well on a direct connection and pins a proxy is named, and the exit code is 1."""
    app = application / "functions" / "report_sales" / "app.py"
    app.write_text(
        "from plungepool import get_engine\n"
        "engine = get_engine()\n"
        "def handler(event, context):\n"
        "    with engine.begin() as connection:\n"
        "        connection.exec_driver_sql(\"SET LOCAL work_mem = '8MB'\")\n"
    )
    result = machine.run(*DEMO, "--folder", application, "--warm", 2)
    assert result.returncode == 1
    assert "Behind the proxy it failed" in result.stdout
    assert "PinningRefused" in result.stdout
    assert machine.left_behind() == []


def test_a_function_that_mixes_tenants_fails_the_demo(machine: Any, application: Any) -> None:
    """Where a tenant sees a row of another the exit code is 1: here, that all are answered as one."""
    app = application / "functions" / "handle_tenant_orders" / "tenants.py"
    app.write_text("def tenant_of(event):\n    return 'acme'\n")
    result = machine.run(*DEMO, "--folder", application, "--warm", 2)
    assert result.returncode == 1
    assert "tenants are not kept apart: they see acme 3, globex 3, 3 in all" in " ".join(result.stdout.split())
    assert machine.left_behind() == []


def test_functions_that_fail_fail_the_demo(machine: Any, application: Any) -> None:
    """
    An exception is shown with its log, and a second connection, which only the database can count, is found out; the
    others run, and the exit code is 1.
    """
    app = application / "functions" / "report_sales" / "app.py"
    app.write_text(
        "def handler(event, context):\n    print('so far so good')\n    raise LookupError('no [such] day')\n"
    )
    app = application / "functions" / "fulfil_orders" / "app.py"
    app.write_text(
        "from plungepool import build_engine, get_engine, Settings\n"
        "import os\n"
        "engines = [get_engine(), build_engine(Settings.from_env(os.environ))]\n"
        "def handler(event, context):\n"
        "    for engine in engines:\n"
        "        with engine.connect() as connection:\n"
        "            connection.exec_driver_sql('SELECT 1')\n"
    )
    result = machine.run(*DEMO, "--folder", application, "--warm", 2)
    assert result.returncode == 1
    assert "LookupError: no [such] day" in result.stdout
    assert "so far so good" in result.stdout
    assert "it held 2 connections at once" in result.stdout
    assert f"2 of {len(FUNCTIONS)} functions failed" in result.stdout
    assert {row[0]: row[-1] for row in _table(result.stdout)} == {
        name: "failed" if name in ("report_sales", "fulfil_orders") else "answered" for name in FUNCTIONS
    }
    assert machine.left_behind() == []


def test_a_function_that_cannot_be_initialised_fails_the_demo(machine: Any, application: Any) -> None:
    """An error at import is told by its text; without the first function the others are not run."""
    app = application / "functions" / "prepare_database" / "app.py"
    app.write_text("raise RuntimeError('no engine today')\n")
    result = machine.run(*DEMO, "--folder", application, "--warm", 2)
    assert result.returncode == 1
    assert "RuntimeError: no engine today" in result.stdout
    assert {row[0]: row[-1] for row in _table(result.stdout)} == {
        name: "failed" if name == "prepare_database" else "not run" for name in FUNCTIONS
    }
    assert machine.left_behind() == []


def test_a_folder_without_functions_is_refused(machine: Any, tmp_path: Path) -> None:
    """Elsewhere than in the repository the demo says what is missing."""
    result = machine.run(*DEMO, "--folder", tmp_path)
    assert result.returncode == 2
    assert "There is no" in result.stdout
    assert machine.left_behind() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_an_interrupted_demo_leaves_nothing(machine: Any, read_until: Any, number: Any, code: Any) -> None:
    """Ctrl-C and SIGTERM stop everything before the demo ends."""
    with machine.start(*DEMO, "--warm", 100000) as process:
        read_until(process.stdout, "prepare_database")
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code
        assert machine.left_behind() == []


def test_a_killed_demo_leaves_nothing(machine: Any, read_until: Any) -> None:
    """After SIGKILL the watchdogs stop the server and the environments, and remove their files."""
    with machine.start(*DEMO, "--warm", 5) as process:
        read_until(process.stdout, "handle_orders with")
        assert len(machine.processes()) > 4
        process.kill()
        process.communicate(timeout=60)
        assert machine.left_behind(60) == []


def test_help_names_the_command(machine: Any) -> None:
    """`plungepool --help` lists the demo."""
    result = machine.run("-m", "plungepool_toolkit", "--help")
    assert result.returncode == 0
    assert "demo" in result.stdout


def _table(output: str) -> list[list[str]]:
    """Return the rows of the summary table, which are the lines with this border."""
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in output.splitlines() if "│" in line]
