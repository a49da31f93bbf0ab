"""PostgreSQL 18 with TLS, as `make postgresql-18` takes it from Debian sid."""

from __future__ import annotations

import shutil
import socket
import ssl
from typing import TYPE_CHECKING

from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_newer_server_with_tls_starts_and_answers_tls_at_once(postgresql_18: Path) -> None:
    """It is version 18, and takes TLS without being asked first, by the protocol's name."""
    with Postgres(tls=True, authentication="scram-sha-256", binaries=postgresql_18) as server:
        context = ssl.create_default_context(cafile=str(server.ca_file))
        context.set_alpn_protocols(["postgresql"])
        with (
            socket.create_connection((server.host, server.port), timeout=10) as link,
            context.wrap_socket(link, server_hostname="localhost") as secured,
        ):
            assert secured.selected_alpn_protocol() == "postgresql"
        assert server.execute("SHOW server_version_num")[0][0].startswith("18")


def test_the_server_starts_where_its_user_cannot_enter_the_folder(postgresql_18: Path, tmp_path: Path) -> None:
    """A checkout below a private folder serves as well: the programs are copied, with their libraries."""
    private = tmp_path / "private"
    shutil.copytree(postgresql_18.parents[3], private / "server", symlinks=True)
    private.chmod(0o700)
    with Postgres(
        tls=True, binaries=private / "server" / postgresql_18.relative_to(postgresql_18.parents[3])
    ) as server:
        assert server.execute("SELECT 1") == [[1]]


def test_a_variable_names_the_server_with_tls(postgresql_18: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSTGRES_WITH_TLS lets a whole run use another server than the machine's own."""
    monkeypatch.setenv("POSTGRES_WITH_TLS", str(postgresql_18))
    with Postgres(tls=True) as server:
        assert server.execute("SHOW server_version_num")[0][0].startswith("18")
