"""
Whose exception it is: a user's own comes out as it is and costs no connection, the network's is always the DB-API's.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from fuzz_server import Fault, FuzzServer, row_description
from sqlalchemy import create_engine, text

from plungepool import wire
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from pathlib import Path

ERRORS = [
    ValueError("mine"),
    TypeError("mine"),
    KeyError("mine"),
    ZeroDivisionError("mine"),
    MemoryError("mine"),
    OSError(errno.ENOSPC, "mine"),
    ConnectionResetError(errno.ECONNRESET, "mine"),
    TimeoutError("mine"),
    ssl.SSLError(1, "mine"),
    wire.OperationalError("mine"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_a_stream_raises_is_the_users_own(connection: wire.Connection, error: BaseException) -> None:
    """Reading or writing, at the first piece or later: that very exception, and the connection works on."""

    class Stream:
        def __init__(self, good: bool) -> None:
            self.good = good

        def read(self, size: int) -> Any:
            self.good -= 1
            if self.good < 0:
                raise error
            return "1\n" * 50_000

        def write(self, data: Any) -> None:
            self.good -= 1
            if self.good < 0:
                raise error

    cursor = connection.cursor()
    for good in (0, 2):
        for sql in ("COPY t FROM STDIN", "COPY (SELECT generate_series(1, 100000)) TO STDOUT"):
            cursor.execute("CREATE TEMP TABLE IF NOT EXISTS t (a int)")
            with pytest.raises(type(error)) as raised:
                cursor.execute(sql, stream=Stream(good))
            assert raised.value is error
            connection.rollback()
            assert cursor.execute("SELECT 7").fetchone() == (7,)


def test_files_that_are_written_in_c_are_the_users_own(connection: wire.Connection, tmp_path: Path) -> None:
    """
    A full disk, a closed file, a file of the wrong kind: none has a Python frame, and none is taken for the network's.
    """
    cursor = connection.cursor()
    closed = (tmp_path / "closed").open("wb")
    closed.close()
    (tmp_path / "read").write_text("1\n")
    read_only = (tmp_path / "read").open("rb")
    with read_only, open("/dev/full", "wb", buffering=0) as unbuffered:
        for sql, stream, kind in [
            ("COPY (SELECT generate_series(1, 100000)) TO STDOUT", unbuffered, OSError),
            ("COPY (SELECT 1) TO STDOUT", closed, ValueError),
            ("COPY (SELECT 1) TO STDOUT", read_only, io.UnsupportedOperation),
            ("COPY t FROM STDIN", unbuffered, io.UnsupportedOperation),
            ("COPY t FROM STDIN", closed, ValueError),
            ("COPY t FROM STDIN", [1], wire.ProgrammingError),
            ("COPY t FROM STDIN", 1, TypeError),
            ("COPY t FROM STDIN", ["\ud800"], wire.DataError),
        ]:
            cursor.execute("CREATE TEMP TABLE IF NOT EXISTS t (a int)")
            with pytest.raises(kind) as raised:
                cursor.execute(sql, stream=stream)
            assert getattr(raised.value, "disconnected", False) is False
            connection.rollback()
            assert cursor.execute("SELECT 7").fetchone() == (7,)


@pytest.mark.parametrize("cancel", [True, False])
def test_copy_that_cannot_be_written_stops_the_server(postgres: Postgres, address: dict[str, Any], cancel: Any) -> None:
    """The server is asked to stop, except behind a proxy, where the rest is read; the connection lives either way."""

    class Full:
        def write(self, data: Any) -> None:
            raise OSError(errno.ENOSPC, "full")

    connection = wire.connect(**address, cancel_on_abandon=cancel)
    seconds = 60 if cancel else 0.1
    query = f"SELECT repeat('x', 1000000) UNION ALL SELECT pg_sleep({seconds})::text"
    with pytest.raises(OSError, match="full"):
        connection.cursor().execute(f"COPY ({query}) TO STDOUT", stream=Full())
    connection.rollback()
    assert connection.cursor().execute("SELECT 7").fetchone() == (7,)
    connection.close()


@pytest.mark.parametrize("error", ERRORS[:8], ids=lambda error: type(error).__name__)
def test_what_a_registered_reader_raises_is_the_users_own(connection: wire.Connection, error: BaseException) -> None:
    """A reader of the user's own, one row or many: its exception, and the connection works on."""

    def reader(text: str) -> None:
        raise error

    connection.register_in_adapter(25, reader)
    for rows in (1, 10_000):
        with pytest.raises(type(error)) as raised:
            connection.cursor().execute("SELECT 'x'::text FROM generate_series(1, $1::int)", (rows,))
        assert raised.value is error
    assert connection.cursor().execute("SELECT 7").fetchone() == (7,)


def test_value_that_no_reader_takes_is_a_data_error() -> None:
    """A value that is none of its type: the column is named, and the value is in no text."""
    with FuzzServer() as server:
        honest = row_description("age")
        oid = honest.replace(b"\0\0\0\x19\xff\xff", b"\0\0\0\x17\xff\xff")
        server.plan(query_faults={0: Fault(lambda reply: [oid if m[:1] == b"T" else m for m in reply])})
        connection = wire.connect(user="app", host=server.host, port=server.port)
        connection.autocommit = True
        with pytest.raises(wire.DataError, match="column 'age'") as raised:
            connection.cursor().execute("SELECT $1", ("q-123",))
        assert "q-123" not in f"{raised.value} {raised.value.__cause__} {raised.value.__context__}"
        assert connection.cursor().execute("SELECT $1", ("q-2",)).fetchone() == ("q-2",)
        connection.close()


@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError, ValueError, LookupError, OSError])
def test_what_a_signal_handler_raises_is_the_users_own(connection: wire.Connection, error: BaseException) -> None:
    """While the server is waited for: that very exception, whatever its class; the connection is closed."""

    class Mine(error):
        pass

    mine = Mine("from the handler")

    def handler(number: int, frame: Any) -> None:
        raise mine

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Mine) as raised:
            connection.cursor().execute("SELECT pg_sleep(10)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised.value is mine
    assert connection.closed


def test_engine_keeps_its_pool_when_a_stream_fails(address: dict[str, Any]) -> None:
    """A full disk is no lost connection: SQLAlchemy invalidates nothing."""
    engine = create_engine("postgresql+plungepool://", connect_args=address, pool_size=1, max_overflow=0)
    pids = set()
    for _ in range(2):
        with engine.connect() as connection:
            pids.add(connection.connection.dbapi_connection.backend_pid)
            with pytest.raises(OSError, match="No space"), open("/dev/full", "wb", buffering=0) as full:
                connection.connection.cursor().execute("COPY (SELECT 1) TO STDOUT", stream=full)
            connection.rollback()
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
    assert len(pids) == 1
    engine.dispose()


def addresses(*entries: Any) -> Any:
    return lambda *_, **__: [(family, socket.SOCK_STREAM, 6, "", address) for family, address in entries]


@pytest.mark.parametrize(
    "first",
    [
        (socket.AF_APPLETALK if hasattr(socket, "AF_APPLETALK") else 9999, ("127.0.0.1", 1)),
        (socket.AF_INET6, ("::ffff:ffff:ffff:ffff", 1, 0, 0)),
        (socket.AF_INET, ("127.0.0.1", 1)),
    ],
    ids=["no such family", "no such address", "refused"],
)
def test_next_address_is_tried(address: dict[str, Any], monkeypatch: pytest.MonkeyPatch, first: Any) -> None:
    """Whatever is wrong with one address of a name, the next is tried."""
    monkeypatch.setattr(socket, "getaddrinfo", addresses(first, (socket.AF_INET, (address["host"], address["port"]))))
    wire.connect(**address, connect_timeout_s=4).close()
    monkeypatch.setattr(socket, "getaddrinfo", addresses(first))
    with pytest.raises(wire.OperationalError, match=r"cannot be reached|connect_timeout_s"):
        wire.connect(**address, connect_timeout_s=0.5)


def test_no_descriptor_left_is_an_operational_error(address: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files: said as it is, and nothing is left open."""

    def full(*arguments: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", full)
    with pytest.raises(wire.OperationalError, match="cannot be reached: Too many open files"):
        wire.connect(**address)


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"host": "my..host"}, wire.OperationalError, "my..host"),
        ({"host": "x" * 64 + ".example.com"}, wire.OperationalError, "cannot be resolved"),
        ({"host": "a\0b"}, wire.OperationalError, "cannot be resolved"),
        ({"port": 2**70}, wire.OperationalError, "cannot be resolved"),
        ({"dead_peer_timeout_s": 1e300}, wire.ProgrammingError, "dead_peer_timeout_s"),
        ({"dead_peer_timeout_s": 0}, wire.ProgrammingError, "dead_peer_timeout_s"),
        ({"connect_timeout_s": float("nan")}, wire.ProgrammingError, "connect_timeout_s"),
        ({"connect_timeout_s": -1}, wire.ProgrammingError, "connect_timeout_s"),
        ({"application_name": "\ud800"}, wire.ProgrammingError, "UTF-8"),
        ({"application_name": "a\0b"}, wire.ProgrammingError, "NUL character"),
    ],
)
def test_only_errors_of_the_db_api_leave_a_connect(address: dict[str, Any], options: Any, kind: str, says: str) -> None:
    """What no socket and no resolver takes is a classed error that says which option it was."""
    with pytest.raises(kind, match=says.replace(".", r"\.")):
        wire.connect(**{**address, **options})


def test_absurd_connect_timeout_is_a_long_one(address: dict[str, Any]) -> None:
    """Seconds that overflow a socket's own time-out are waited for in parts."""
    wire.connect(**address, connect_timeout_s=1e300).close()


def test_host_that_no_certificate_can_name_is_an_operational_error(postgres: Postgres) -> None:
    """With `address` the host is only verified, and not looked up."""
    with Postgres(tls=True) as server, pytest.raises(wire.OperationalError, match="cannot verify the name"):
        wire.connect(
            user="postgres",
            password=server.password,
            host="my..host",
            address=f"127.0.0.1:{server.port}",
            ssl_context=ssl.create_default_context(cafile=server.ca_file),
        )


def test_deadline_holds_when_a_tls_record_is_half_there() -> None:
    """Bytes that make no whole TLS record wake the wait and do not end it; the deadline does."""
    with Postgres(tls=True) as server, socket.create_server(("127.0.0.1", 0)) as listener:
        context = ssl.create_default_context(cafile=server.ca_file)
        peers = []

        def serve() -> None:
            client, _ = listener.accept()
            upstream = socket.create_connection(("127.0.0.1", server.port))
            peers.extend((client, upstream))
            threading.Thread(target=pump, args=(client, upstream, None), daemon=True).start()
            pump(upstream, client, half)

        half = threading.Event()

        def pump(one: Any, other: Any, cut: Any) -> None:
            while data := one.recv(65536):
                if cut is not None and cut.is_set():
                    other.sendall(data[:3])
                    return
                other.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        connection = wire.connect(
            user="postgres",
            password=server.password,
            database="postgres",
            host="localhost",
            address=f"127.0.0.1:{listener.getsockname()[1]}",
            ssl_context=context,
            cancel_on_abandon=False,
        )
        half.set()
        connection.deadline = time.time() + 0.3
        with pytest.raises(wire.DeadlinePassed):
            connection.cursor().execute("SELECT 1")
        thread.join()
        for peer in peers:
            peer.close()
