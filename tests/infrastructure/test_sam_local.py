"""`make sam-local` as a user runs it: SAM's containers, the built layers, a real PostgreSQL; and nothing left afterwards."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "plungepool_toolkit.sam_local", "--stand-in"]
ENGINE = ["docker.io", "mmdebstrap", "iproute2"]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def programs(run_sam: Callable[..., object]) -> None:
    """A container engine and what makes the stand-in image, from Debian's packages; the SAM CLI."""
    subprocess.run([ROOT / "toolkit" / "set-up", "apt", *ENGINE], check=True)


def traces() -> dict[str, str]:
    """Return what a run could leave on this machine: links, firewall rules, forwarding, its processes and folders."""

    def output(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    links = sorted(path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith(("plunge", "veth")))
    processes = [line for line in output("ps", "-eo", "args").splitlines() if "plungepool-sam-" in line]
    return {
        "links": str(links),
        "filter": output("iptables", "-S"),
        "nat": output("iptables", "-t", "nat", "-S"),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "processes": str(processes),
        "folders": str(sorted(Path("/tmp").glob("plungepool-sam-*"))),
    }


def test_every_function_answers_in_sams_containers() -> None:
    """Each function answers its event by `sam local invoke`, and the API by `start-api`; then all of it is gone."""
    before = traces()
    result = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stdout
    for function in ("PrepareDatabase", "HandleOrders", "FulfilOrders", "ReportSales", "CheckDatabase"):
        assert f"{function}Function" in result.stdout
    assert "start-api GET /orders?limit=2: 200, 2 orders" in result.stdout
    assert traces() == before


def test_being_ended_leaves_nothing() -> None:
    """SIGTERM while a container runs stops the engine, the database and SAM, and removes the bridge."""
    before = traces()
    with subprocess.Popen(
        COMMAND, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("PostgreSQL is at"):
                break
        run.send_signal(signal.SIGTERM)
        run.stdout.read()
        assert run.wait(90) == 143
    assert traces() == before
