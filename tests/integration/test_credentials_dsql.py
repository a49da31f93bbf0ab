"""Aurora DSQL: what a cluster is shown at sign-in, and how its conflicts are classed."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from plungepool import CredentialsError, Settings, build_engine
from plungepool_toolkit.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine


class Cluster:
    """
    Shakes hands at once, asks for the password in clear text and refuses it; remembers what each client asked for and
    showed.
    """

    def __init__(self, authority: Authority) -> None:
        self.names: list[str | None] = []
        self.startups: list[bytes] = []
        self.tokens: list[str] = []
        self._context = authority.server_context("localhost")
        self._context.set_alpn_protocols(["postgresql"])
        self._context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._over = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self._socket.accept()
            if self._over:
                client.close()
                return
            client.settimeout(5)
            with client, contextlib.suppress(OSError):
                with self._context.wrap_socket(client, server_side=True) as secured, secured.makefile("rb") as said:
                    length = said.read(4)
                    self.startups.append(length + said.read(int.from_bytes(length) - 4))
                    secured.sendall(b"R" + struct.pack("!ii", 8, 3))
                    _, length = said.read(1), said.read(4)
                    self.tokens.append(said.read(int.from_bytes(length) - 4)[:-1].decode())
                    fields = b"SFATAL\0VFATAL\0C28000\0Munable to accept connection, access denied\0\0"
                    secured.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)

    def close(self) -> None:
        """Stop, by a last client that wakes it."""
        self._over = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def authority() -> Iterator[Authority]:
    """The authority that the client trusts."""
    with Authority() as made:
        yield made


@pytest.fixture
def cluster(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster that refuses everybody; the environment has a role's credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unmistakable-key")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "unmistakable-session")
    monkeypatch.delenv("AWS_CREDENTIAL_EXPIRATION", raising=False)
    running = Cluster(authority)
    yield running
    running.close()


@pytest.mark.parametrize(("user", "action"), [("app", "DbConnect"), ("admin", "DbConnectAdmin")])
def test_sign_in_names_the_host_and_shows_the_right_token(
    authority: Authority, cluster: Cluster, user: str, action: str
) -> None:
    """TLS says the cluster's name (SNI); the token is for the action of this user; a refusal names DSQL's causes."""
    settings = Settings(
        host="localhost", port=cluster.port, user=user, auth="dsql", region="us-east-1", ca_file=str(authority.ca_file)
    )
    engine = build_engine(settings)
    with pytest.raises(CredentialsError, match=f"dsql:{action} ") as caught:
        engine.connect()
    engine.dispose()
    assert "access denied" in str(caught.value.__cause__)
    assert cluster.names == ["localhost"] * 2
    assert [f"user\0{user}\0".encode() in startup for startup in cluster.startups] == [True, True]
    for token in cluster.tokens:
        host, _, query = token.partition("/?")
        fields = parse_qs(query)
        assert (host, fields["Action"], "DBUser" in fields) == ("localhost", [action], False)
        assert fields["X-Amz-Credential"][0].split("/")[2:] == ["us-east-1", "dsql", "aws4_request"]
        assert fields["X-Amz-Expires"] == ["900"]


@pytest.mark.parametrize("sqlstate", ["40001", "OC000", "OC001"])
def test_conflict_can_be_tried_again(make_engine: Callable[..., Engine], sqlstate: str) -> None:
    """A conflict is an OperationalError with its SQLSTATE; the connection is good for the transaction's next try."""
    engine = make_engine()
    with engine.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with pytest.raises(OperationalError) as caught:
            connection.execute(
                text(f"DO $$ BEGIN RAISE EXCEPTION 'change conflicts' USING ERRCODE = '{sqlstate}'; END $$")
            )
        assert caught.value.orig is not None
        assert caught.value.orig.sqlstate == sqlstate  # type: ignore[attr-defined]
        assert not caught.value.connection_invalidated
        connection.rollback()
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() == pid
