"""`plungepool storm`, as a user runs it: a small fleet against a small database, how it ends, what it leaves."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from plungepool_toolkit.storm import results

ROOT = Path(__file__).parents[2]
STORM = ("-m", "plungepool_toolkit", "storm")
SMALL = ("--environments", 20, "--max-connections", 12, "--rounds", 2)
LIMIT = 12 - 3 - 1


def test_what_fails_elsewhere_is_answered_here(machine: Any, tmp_path: Path) -> None:
    """
    Twenty environments at once on eight connections: SQLAlchemy's pool keeps what it gets, so that the others fail by
    53300 in every round; Plungepool's pools answer all within the limit: null opens one connection each time, adaptive
    keeps some once environments come back.
    """
    file = tmp_path / "storm.json"
    page = tmp_path / "storm.html"
    names = ("--strategy", "queue-pool", "--strategy", "null", "--strategy", "adaptive")
    result = machine.run(*STORM, *SMALL, "--rounds", 3, *names, "--json", file, "--html", page)
    assert (result.returncode, result.stderr) == (0, "")
    measured = results.Storm.from_json(json.loads(file.read_text()))
    assert measured.conditions.limit == LIMIT
    naive, ours, adaptive = measured.strategies
    assert (naive.name, naive.ours, ours.name, ours.ours) == ("queue-pool", False, "null", True)
    assert naive.invocations == ours.invocations == 60
    # A connect that is refused after it was authorized may take another's place for a moment.
    assert LIMIT <= naive.succeeded <= 3 * LIMIT
    assert naive.failures == {"53300": naive.refused} == {"53300": 60 - naive.succeeded}
    assert naive.connects == naive.connections.peak <= LIMIT
    assert (ours.succeeded, ours.failures, ours.connects) == (60, {}, 60)
    assert 1 <= ours.connections.peak <= LIMIT
    assert (adaptive.succeeded, adaptive.failures) == (60, {})
    assert adaptive.connects < 60
    assert adaptive.connections.peak <= LIMIT
    assert sum(ours.latency_histogram.counts) == 60
    assert ours.database_cpu_s is not None
    assert "Plungepool, null" in result.stdout
    assert "Plungepool, null" in page.read_text()
    # What docs/storm.md reads it by.
    page = (ROOT / "docs" / "storm.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    assert f"Plungepool, null direct 100.0% {ours.latency_ms.p50}" in machine.run("-c", program, cwd=tmp_path).stdout
    assert f"QueuePool, 5 + 10: 53300 {naive.refused}" in result.stdout
    assert machine.left_behind() == []


def test_poolers_hold_the_same_fleet(machine: Any, tmp_path: Path) -> None:
    """Through PgBouncer and the stand-in for RDS Proxy all are answered over four connections, and nothing pins."""
    file = tmp_path / "storm.json"
    ways = ("--endpoint", "pgbouncer", "--endpoint", "proxy", "--pooler-connections", 4, "--outside-ms", 30)
    result = machine.run(*STORM, *SMALL, "--strategy", "tiny", *ways, "--json", file)
    assert (result.returncode, result.stderr) == (0, "")
    measured = results.Storm.from_json(json.loads(file.read_text()))
    assert measured.conditions.outside_ms == 30
    assert "20 ms, then 30 ms without a connection" in measured.conditions.text
    bouncer, proxy = measured.strategies
    assert min(bouncer.latency_ms.p50, proxy.latency_ms.p50) > 50
    assert (bouncer.endpoint, bouncer.succeeded, bouncer.failures) == ("pgbouncer", 40, {})
    assert (proxy.endpoint, proxy.succeeded, proxy.failures, proxy.pinned) == ("proxy", 40, {}, 0)
    assert max(bouncer.connections.peak, proxy.connections.peak) <= 4
    assert machine.left_behind() == []


def test_idle_environments_are_reaped(machine: Any, tmp_path: Path) -> None:
    """An environment that is idle for long is ended, and its connection with it: what it blocked is free again."""
    file = tmp_path / "storm.json"
    curve = tmp_path / "curve.csv"
    # Six at once, twice; nothing for two seconds; one more.
    curve.write_text("time,concurrency\n0,6\n0.15,0\n2.5,1\n2.55,0\n2.6,0\n")
    options = ("--environments", 16, "--max-connections", 30, "--curve", curve, "--service-ms", 100)
    result = machine.run(*STORM, *options, "--reap-after-s", 1, "--strategy", "tiny", "--json", file)
    assert (result.returncode, result.stderr) == (0, "")
    (one,) = results.Storm.from_json(json.loads(file.read_text())).strategies
    assert one.success == 1.0
    assert one.connections.peak >= 6
    assert one.connections.open[-1] <= 1
    assert one.connects == one.connections.peak + 1
    assert machine.left_behind() == []


def test_an_interrupted_storm_leaves_nothing(machine: Any) -> None:
    """Ctrl-C in the middle of a storm ends every environment and the server."""
    options = ("--environments", 8, "--arrival", "steady", "--rate", 20, "--duration-s", 600, "--strategy", "tiny")
    with machine.start(*STORM, *options) as process:
        _until_it_storms(machine, process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert machine.left_behind() == []


def test_a_killed_storm_leaves_nothing(machine: Any) -> None:
    """After SIGKILL the watchdogs end every environment, frozen ones included, and the server."""
    options = ("--environments", 8, "--arrival", "steady", "--rate", 20, "--duration-s", 600, "--strategy", "tiny")
    with machine.start(*STORM, *options) as process:
        _until_it_storms(machine, process)
        process.kill()
        process.communicate(timeout=60)
        assert machine.left_behind(60) == []


def test_a_peer_that_is_not_there_is_told(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Node its peer is not run, which is said, the others are, and the exit code is 1."""
    monkeypatch.setenv("PATH", str(tmp_path))
    names = ("--strategy", "serverless-postgres", "--strategy", "null")
    result = machine.run(*STORM, "--environments", 2, "--rounds", 1, *names)
    assert result.returncode == 1
    assert "Not run: serverless-postgres needs node" in " ".join(result.stdout.split())
    assert "Plungepool, null, direct: 2 of 2 answered" in result.stdout
    assert machine.left_behind() == []


def _until_it_storms(machine: Any, process: Any) -> None:
    """Wait until all eight environments are there, besides the one that was initialised and the keeper of copies."""
    deadline = time.monotonic() + 60
    while sum("clones_inside" in command for command in machine.processes().values()) < 10:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # some of them have an invocation now, the others are frozen


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--strategy", "tinny"), "tinny"),
        (("--endpoint", "pgpool"), "pgpool"),
        (("--arrival", "drizzle"), "drizzle"),
        (("--arrival", "recorded"), "--curve FILE"),
        (("--arrival", "steady", "--rate", 2000, "--duration-s", 600), "100000"),
    ],
)
def test_nonsense_is_refused_before_anything_starts(machine: Any, options: Any, said: str) -> None:
    """What cannot be run is told by its name, with exit code 2."""
    result = machine.run(*STORM, *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert machine.left_behind() == []
