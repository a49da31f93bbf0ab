"""
The engine of its own: what it is made of, what it says where it cannot be, and that it goes, however its owner ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plungepool_toolkit import docker_engine, lambda_image
from plungepool_toolkit.docker_engine import DockerEngine, DockerEngineError
from plungepool_toolkit.lambda_image import LambdaImageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    """The programs of an engine, from Debian's packages where they are missing."""
    subprocess.run([ROOT / "toolkit" / "set-up", "apt", *docker_engine.missing_packages()], check=True)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_engine_goes_with_its_owner(machine: Any, end: Any) -> None:
    """Its owner is ended or killed: engine, bridge and data are gone, and no rule of the firewall has changed."""
    program = (
        "import sys, time; from plungepool_toolkit.docker_engine import DockerEngine\n"
        "with DockerEngine() as engine:\n"
        "    print(engine.address, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], env=machine.variables, stdout=subprocess.PIPE, text=True
    ) as owner:
        address = owner.stdout.readline().strip()
        assert Path(address.removeprefix("unix://")).is_socket()
        meanwhile = machine.state()
        assert meanwhile["links"] - machine.before["links"] == {f"plunge{owner.pid}"}
        for unchanged in ("firewall", "forwarding", "mounts"):
            assert meanwhile[unchanged] == machine.before[unchanged]
        owner.send_signal(end)
    assert machine.left() == {}


def test_without_root_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root can start an engine; another user is told so."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DockerEngineError, match="run this as root"), DockerEngine():
        pass


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where dockerd or another program is not installed, the error names the packages."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(DockerEngineError, match=r"needs these packages: docker\.io, iproute2, util-linux"):
        DockerEngine().__enter__()


def test_an_engine_that_fails_shows_its_log_and_leaves_nothing(
    machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A daemon that ends at once: its own words are in the error."""
    daemon = tmp_path / "dockerd"
    daemon.write_text("#!/bin/sh\necho 'failed to load listeners' >&2\nexit 1\n")
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DockerEngineError, match="failed to load listeners"):
        DockerEngine().__enter__()
    assert machine.left() == {}


def test_its_network_is_one_that_no_route_leads_to() -> None:
    """The bridge takes a network that is free on this machine; the next engine takes another one."""
    network = docker_engine._free_network()
    assert network.is_private
    assert network.prefixlen == 24
    with DockerEngine():
        assert docker_engine._free_network() != network


def test_a_runtime_without_a_stand_in_is_named(tmp_path: Path) -> None:
    """Only runtimes whose Python Debian has can be stood in for."""
    with pytest.raises(LambdaImageError, match=r"no stand-in is known for nodejs22\.x, only for python3\.13"):
        lambda_image.stand_in("nodejs22.x", tmp_path, ROOT)
