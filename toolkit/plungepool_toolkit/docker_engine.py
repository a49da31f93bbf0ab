"""
A Docker engine that lives as long as a `with` block, for machines where none runs.

Everything of it is its own: socket, data, process id file and network bridge. It touches no rule of the firewall: its
containers reach this machine over the bridge and nothing beyond it, and what they serve is passed on by a process.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from plungepool_toolkit.processes import Closing, GuardedProcess, TemporaryFolder, end_of

if TYPE_CHECKING:
    from typing import Self

_PROGRAMS = {"dockerd": "docker.io", "ip": "iproute2", "unshare": "util-linux"}
# The shell that the watchdog stops: so the bridge goes after the engine even where this process was killed. What the
# engine makes in fixed places goes too, unless it was there before. Its mounts are in a mount namespace of their own.
_SCRIPT = """
bridge=$1; address=$2; shift 2
stopped=; engine=; fresh=; key=
trap 'stopped=yes; [ -z "$engine" ] || kill "$engine"' TERM
[ -e /opt/containerd ] || fresh="/opt/containerd/bin /opt/containerd/lib /opt/containerd"
[ -e /run/containerd ] || fresh="$fresh /run/containerd/s /run/containerd"
[ -e /run/docker ] || fresh="$fresh /run/docker/plugins /run/docker"
[ -e /etc/docker/key.json ] || key=/etc/docker/key.json
ip link add name "$bridge" type bridge && ip address add "$address" dev "$bridge" && ip link set "$bridge" up || exit 1
"$@" &
engine=$!
[ -z "$stopped" ] || kill "$engine"
wait "$engine"
wait "$engine"
code=$?
ip link delete "$bridge"
[ -z "$fresh" ] || rmdir $fresh 2>/dev/null
[ -z "$key" ] || rm -f "$key"
exit "$code"
"""


class DockerEngineError(RuntimeError):
    """The engine cannot be started here; the text says why and what to do."""


class DockerEngine(Closing):
    """
    An engine: entering starts it and waits until it answers, leaving stops it with its containers and removes its data.

    Needs root, and the programs of `missing_packages`.

    Raises: DockerEngineError at entering.
    """

    def __init__(self) -> None:
        self.address = ""  # for DOCKER_HOST
        self._process: GuardedProcess | None = None
        self._folder: TemporaryFolder | None = None

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise DockerEngineError("only root can start a Docker engine: start one yourself, or run this as root")
        if missing := missing_packages():
            raise DockerEngineError(f"a Docker engine needs these packages: {', '.join(missing)}")
        self._folder = TemporaryFolder("engine")
        try:
            self._start(self._folder.path)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Stop the engine, which stops its containers, and remove what it wrote. Nothing if it is stopped."""
        if self._process is not None:
            process, self._process = self._process, None
            process.stop()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    @property
    def pid(self) -> int:
        """The process id of the shell that keeps the engine."""
        if self._process is None:
            raise DockerEngineError("the engine is not running")
        return self._process.pid

    def _start(self, folder: Path, timeout_s: float = 60.0) -> None:
        network = _free_network()
        gateway = str(next(network.hosts()))
        bridge = f"plunge{os.getpid()}"  # docker0 may be another engine's
        sockets = folder / "docker.sock"
        self.address = f"unix://{sockets}"
        configuration = folder / "daemon.json"  # in place of the machine's, which is for its own engine
        configuration.write_text(
            json.dumps(
                {
                    "hosts": [self.address],
                    "data-root": str(folder / "data"),
                    "exec-root": str(folder / "exec"),
                    "pidfile": str(folder / "docker.pid"),
                    "bridge": bridge,
                    "host-gateway-ip": gateway,
                    "iptables": False,
                    "ip6tables": False,
                    "ip-forward": False,
                    "ip-masq": False,
                    "log-level": "warn",
                }
            )
        )
        log = folder / "engine.log"
        temporary = folder / "tmp"  # where containerd leaves a word about each thread when it is hurried at its end
        temporary.mkdir()
        self._process = GuardedProcess(
            [
                *("unshare", "--mount", "sh", "-c", _SCRIPT, "engine", bridge, f"{gateway}/{network.prefixlen}"),
                *("dockerd", "--config-file", configuration),
            ],
            output=log,
            environment={**os.environ, "PATH": _path(), "TMPDIR": str(temporary)},
            stop=[("SIGTERM", 45.0)],
        )
        deadline = time.monotonic() + timeout_s
        while not _answers(sockets):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DockerEngineError(f"the Docker engine does not start. The end of its log:\n{end_of(log)}")
            time.sleep(0.05)


def missing_packages() -> list[str]:
    """Return the packages of Debian and Ubuntu to install before an engine can be started; dockerd may be another's."""
    return [package for program, package in _PROGRAMS.items() if shutil.which(program, path=_path()) is None]


def _path() -> str:
    """PATH, and the folders where Debian keeps such programs, which are not on every user's."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def _answers(path: Path) -> bool:
    link = socket.socket(socket.AF_UNIX)
    try:
        with link:
            link.settimeout(10)
            link.connect(str(path))
            connection = http.client.HTTPConnection("engine")
            connection.sock = link
            connection.request("GET", "/_ping")
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def _free_network() -> ipaddress.IPv4Network:
    """Return a small private network that no route of this machine leads to."""
    routes = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        destination, mask = (int.from_bytes(bytes.fromhex(fields[place]), "little") for place in (1, 7))
        if mask:  # the default route leads everywhere
            routes.append(ipaddress.IPv4Network((destination, str(ipaddress.IPv4Address(mask)))))
    # From a block that engines take for further networks last, beginning at a place of this process's own.
    for number in range(256):
        network = ipaddress.IPv4Network(f"172.29.{(os.getpid() + number) % 256}.0/24")
        if not any(network.overlaps(route) for route in routes):
            return network
    raise DockerEngineError("every network of 172.29.0.0/16 is in use here; none is left for the engine's containers")
