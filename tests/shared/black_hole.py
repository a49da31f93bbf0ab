"""A network whose packets can be made to vanish; needs root and iproute2."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from plungepool_toolkit.postgres import Postgres


class BlackHole:
    """
    A network of its own, one virtual cable away, whose answers can be made to vanish: nothing is even acknowledged.

    A listener in a network namespace passes on to the server outside; the namespace's route back is what vanishes.
    Names and addresses follow from the process's number, so that two runs at a time do not meet.
    """

    port = 5432

    def __init__(self, server: Postgres) -> None:
        # 198.18.0.0/15 is for tests of networks (RFC 2544); process numbers end at 2^22, and a /29 for each fits 2^14.
        base = int(ipaddress.ip_address("198.18.0.0")) + os.getpid() % 2**14 * 8
        self.network = f"{ipaddress.ip_address(base)}/29"
        self.host, self.client, self._next_client = (str(ipaddress.ip_address(base + number)) for number in (1, 2, 3))
        self.target = server.host, server.port
        self.space, self.cable, self.far_end = (f"{kind}{os.getpid()}" for kind in ("plungepool", "ppa", "ppb"))
        self.inside = ("ip", "-n", self.space)
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        _run("ip", "netns", "add", self.space)
        _run("ip", "link", "add", self.cable, "type", "veth", "peer", "name", self.far_end, "netns", self.space)
        for client in (self.client, self._next_client):
            _run("ip", "addr", "add", f"{client}/29", "dev", self.cable)
        _run("ip", "link", "set", self.cable, "up")
        _run(*self.inside, "addr", "add", f"{self.host}/29", "dev", self.far_end)
        _run(*self.inside, "link", "set", self.far_end, "up")
        thread = threading.Thread(target=self._listen)
        thread.start()
        thread.join()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def swallow(self) -> None:
        """Let nothing through any more."""
        _run(*self.inside, "route", "add", "blackhole", f"{self.client}/32")

    def swallow_what_is_open(self) -> None:
        """Let nothing through of the connections that are open, as where a NAT gateway has forgotten them; once."""
        self.swallow()
        # Whoever connects now comes from another address.
        _run("ip", "route", "replace", self.network, "dev", self.cable, "src", self._next_client)

    def __exit__(self, *_: object) -> None:
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        # By itself it would go some time after its namespace, and the next one has the same name.
        _run("ip", "link", "del", self.cable)
        _run("ip", "netns", "del", self.space)

    def _listen(self) -> None:
        # A socket belongs to the namespace of the thread that makes it.
        with open(f"/run/netns/{self.space}") as namespace:
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000) == 0  # CLONE_NEWNET
        self.listener = socket.create_server((self.host, self.port))
        self.sockets.append(self.listener)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                server = socket.create_connection(self.target)
                self.sockets += (peer, server)
                for one, other in ((peer, server), (server, peer)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
