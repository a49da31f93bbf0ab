"""A real PgBouncer before a server of the test's."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from elsewhere import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from plungepool_toolkit.certificates import Authority
    from plungepool_toolkit.postgres import Postgres


@contextlib.contextmanager
def pgbouncer(
    server: Postgres,
    *,
    users: Mapping[str, str | None],
    authority: Authority | None = None,
    target: str = "",
    port: int | None = None,
    **settings: object,
) -> Iterator[int]:
    """
    Run PgBouncer in transaction mode, and give its port on 127.0.0.1.

    Args: users: who may come, with the passwords that the server knows of them as well. authority: speaks TLS only, as
        "localhost", with a certificate of this authority. target: what follows `host=… port=…` of its databases. port:
        the one to listen at; None: a free one. settings: of pgbouncer.ini, in place of those here.
    """
    with tempfile.TemporaryDirectory(prefix="plungepool-pgbouncer-") as name:
        folder = Path(name)
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        (folder / "users").write_text("".join(f'"{user}" "{password or ""}"\n' for user, password in users.items()))
        values: dict[str, object] = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "auth_type": "trust",
            "auth_file": folder / "users",
            "pool_mode": "transaction",
            "server_reset_query": "",
            "unix_socket_dir": "",
            "logfile": folder / "log",
            "pidfile": folder / "pid",
        }
        if authority is not None:
            for file, copy in zip(authority.issue("localhost"), ("server.crt", "server.key"), strict=True):
                shutil.copy(file, folder / copy)
            values |= {
                "client_tls_sslmode": "require",
                "client_tls_cert_file": folder / "server.crt",
                "client_tls_key_file": folder / "server.key",
            }
        lines = [f"{key} = {value}" for key, value in (values | settings).items()]
        databases = f"* = host={server.host} port={server.port} {target}"
        (folder / "pgbouncer.ini").write_text("\n".join(["[databases]", databases, "[pgbouncer]", *lines, ""]))
        command = ["pgbouncer", str(folder / "pgbouncer.ini")]
        if os.geteuid() == 0:  # it refuses to run as root
            command[1:1] = ["-u", "nobody"]
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, "nobody")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers() -> bool:
            assert process.poll() is None, f"PgBouncer has ended: {(folder / 'log').read_text()}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        try:
            wait_until(answers, "PgBouncer does not answer")
            yield port
        finally:
            process.terminate()
            process.wait(10)
