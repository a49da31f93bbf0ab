"""What a Docker engine and `sam local` could leave on a machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


# Where an engine writes whatever folders it is given.
_PLACES = ("/opt/containerd", "/run/containerd", "/run/docker", "/etc/docker/key.json")


class Machine:
    """This machine as one run sees it, whose temporary files and commands all name one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
        self.before = self.state()

    def state(self) -> dict[str, set[str]]:
        """
        Engines' bridges, the firewall's rules, chains and policies, forwarding, mounts, and engines' fixed places.
        """
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        firewall = set()
        if shutil.which("iptables-save", path=path):  # else it comes with the engine's packages, and there are no rules
            save = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True, env={"PATH": path})
            lines = {line.split(" [")[0] for line in save.stdout.splitlines()}
            firewall = {line for line in lines if line.startswith("-A") or re.fullmatch(r":\S+ (?!ACCEPT).*", line)}
        links = {link.name for link in Path("/sys/class/net").iterdir()}
        return {
            "links": {link for link in links if link.startswith(("br-", "docker", "plunge"))},
            "firewall": firewall,
            "forwarding": {Path("/proc/sys/net/ipv4/ip_forward").read_text()},
            "mounts": {line for line in Path("/proc/self/mounts").read_text().splitlines() if str(self.folder) in line},
            "places": {place for place in _PLACES if Path(place).exists()},
        }

    def left(self) -> dict[str, set[str]]:
        """What is here now and was not before; a process that was told to end is given time to."""
        deadline = time.monotonic() + 60
        while (found := self._left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _left(self) -> dict[str, set[str]]:
        found = {name: now - self.before[name] for name, now in self.state().items()}
        found["processes"] = {line for line in self._processes() if str(self.folder) in line}
        found["files"] = {str(path) for path in self.folder.iterdir()}
        return {name: new for name, new in found.items() if new}

    def _processes(self) -> Iterator[str]:
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    yield (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:  # it has ended meanwhile
                    continue


@pytest.fixture
def machine() -> Iterator[Machine]:
    """This machine before a run, to be compared with afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sam"))  # pytest's own folders are too long for an engine's sockets
    folder.chmod(0o711)  # PostgreSQL runs as another user
    yield Machine(folder)
    shutil.rmtree(folder, ignore_errors=True)
