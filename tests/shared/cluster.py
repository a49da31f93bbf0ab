"""A database that fails over: a primary, a standby that has all that was answered, and what leads to the primary."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

from elsewhere import wait_until

from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.processes import Closing, TemporaryFolder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

# The superuser comes by the socket in the data folder, which nobody else may enter, and so does the standby.
_RULES = """\
local all postgres trust
local replication postgres trust
host all all 127.0.0.1/32 scram-sha-256
"""
_SETTINGS: dict[str, object] = {
    # Whoever was answered finds it on the standby, and whoever reads there finds what was answered.
    "synchronous_commit": "remote_apply",
    "max_connections": 60,
    # A standby that lost its primary looks for it again at once.
    "wal_retrieve_retry_interval": "50ms",
    "shared_buffers": "32MB",
}


class Cluster(Closing):
    """
    Two servers, of which one is the primary; a context manager.

    Args: settings: of both servers. proxies: how many `ChaosProxy` lead to the primary, in `proxies`.
    Threads: `primary` may be read by any; what changes the servers is for one thread.
    """

    def __init__(self, settings: Mapping[str, object] | None = None, *, proxies: int = 1) -> None:
        self.proxies: list[ChaosProxy] = []
        self.primary: Postgres
        self.standby: Postgres | None = None
        self._settings = _SETTINGS | dict(settings or {})
        self._proxies = proxies
        self._number = 0

    def __enter__(self) -> Self:
        self._folder = TemporaryFolder("cluster")
        self._folder.path.chmod(0o711)
        try:
            rules = self._folder.path / "pg_hba.conf"
            rules.write_text(_RULES)
            rules.chmod(0o644)
            self.primary = self._server()
            self.primary.start()
            for _ in range(self._proxies):
                self.proxies.append(ChaosProxy(self.primary.host, self.primary.port).__enter__())
            self.add_standby()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End all of it, and remove the data."""
        for proxy in self.proxies:
            proxy.close()
        # The standby first: else the primary's last commits would wait for it.
        for server in (self.standby, getattr(self, "primary", None)):
            if server is not None:
                server.close()
        self._folder.remove()

    def add_standby(self) -> None:
        """Make a standby from a backup, and let no commit be answered from now on before it has it."""
        primary, standby = self.primary, self._server()
        programs, data, source = primary._programs, standby._given_data, primary._given_data
        assert programs is not None
        assert data is not None
        assert source is not None
        data.mkdir()
        programs.own(data, 0o700)
        made = programs.run(
            [
                *(programs.folder / "pg_basebackup", "-D", data, "-h", source),
                *("-p", str(primary.port), "-U", "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync"),
            ]
        )
        assert made.returncode == 0, made.stderr
        standby.start()
        self.standby = standby
        wait_until(lambda: self._replicates("streaming"), "the standby does not stream")
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("SELECT pg_reload_conf()")
        wait_until(lambda: self._replicates("streaming", "sync"), "the standby is not synchronous")

    def fail_over(self, *, silent: bool = False, read_only_first: bool = False) -> None:
        """
        Kill the primary and promote the standby; `proxies` lead to it. There is no standby then: `add_standby`.

        Args: silent: the clients' connections hear nothing until it is over, in place of a reset. read_only_first: they
            are led to the standby before it is promoted, as by a name that changes early.
        """
        old, new = self.primary, self.standby
        assert new is not None
        for proxy in self.proxies:
            if silent:
                proxy.partition()
            else:
                proxy.refuse()
                proxy.reset()
        os.kill(old.pid, signal.SIGKILL)
        wait_until(lambda: not old.running, "the old primary does not end")
        if read_only_first:
            self._lead_to(new)
            wait_until(lambda: not new.execute("SELECT true FROM pg_stat_wal_receiver"), "the standby still receives")
        new.execute("SELECT pg_promote()")
        wait_until(lambda: new.execute("SELECT pg_is_in_recovery()") == [[False]], "the standby is not promoted")
        self.primary, self.standby = new, None
        self._lead_to(new)
        old.close()
        assert old._given_data is not None
        shutil.rmtree(old._given_data)

    def crash(self) -> None:
        """End the primary without a check point, as a crash does, and start it again: it recovers from its log."""
        os.kill(self.primary.pid, signal.SIGQUIT)
        wait_until(lambda: not self.primary.running, "the primary does not end")
        self.primary.start()

    def restart(self) -> None:
        """Restart the primary in good order."""
        self.primary.restart()

    def _server(self) -> Postgres:
        self._number += 1
        settings = {"hba_file": self._folder.path / "pg_hba.conf", **self._settings}
        data = self._folder.path / f"data{self._number}"
        return Postgres(settings, authentication="trust", data_folder=data)

    def _lead_to(self, server: Postgres) -> None:
        for proxy in self.proxies:
            proxy.upstream = (server.host, server.port)
            proxy.accept()
            proxy.heal()

    def _replicates(self, *states: str) -> bool:
        rows = self.primary.execute("SELECT state, sync_state FROM pg_stat_replication")
        return any(set(states) <= set(row) for row in rows)
