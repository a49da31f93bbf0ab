"""
The stand-in for RDS Proxy, by psycopg, stock pg8000 and raw messages before a real PostgreSQL; tokens by botocore.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from stand_in import client, pg8000_client, scram

from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import Address, RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., RdsProxy]

pytestmark = pytest.mark.usefixtures("proxied_roles")


# Multiplexing


def test_more_clients_than_database_connections(rds_proxy: Start) -> None:
    """Twelve idle clients cost nothing; their transactions share two connections."""
    proxy = scram(rds_proxy, max_database_connections=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(proxy)) for _ in range(12)]
        seen = {connection.execute("SELECT pg_backend_pid()").fetchone() for connection in clients}
        counters = proxy.counters
    assert len(seen) <= 2
    assert (counters.clients, counters.transactions, counters.database_connections_peak) == (12, 12, len(seen))


def test_a_transaction_keeps_its_connection(rds_proxy: Start) -> None:
    """Between BEGIN and COMMIT there is one; the next transaction gets another if there is a choice."""
    proxy = scram(rds_proxy, max_database_connections=2)
    with client(proxy) as first, client(proxy) as second:
        with first.transaction():
            pids = [first.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)]
            assert second.execute("SELECT pg_backend_pid()").fetchone() not in pids
        assert len(set(pids)) == 1
        turns = [first.execute("SELECT pg_backend_pid()").fetchone() for _ in range(4)]
        assert turns[0] != turns[1] == turns[3] != turns[2]


def test_threads_get_their_own_rows(rds_proxy: Start) -> None:
    """Eight threads over two connections: statements by themselves, transactions and errors; each answer is its own."""
    proxy = scram(rds_proxy, max_database_connections=2)

    def work(worker: int) -> int:
        wrong = 0
        with client(proxy) as connection:
            for number in range(40):
                key = worker * 1000 + number
                if number % 5 == 4:
                    with pytest.raises(psycopg.errors.DivisionByZero):
                        connection.execute("SELECT %s / 0", (key,))
                elif number % 5 == 3:
                    with connection.transaction():
                        connection.execute("INSERT INTO proxied_rows VALUES (%s, 'x')", (key,))
                        wrong += connection.execute("SELECT %s::int", (key,)).fetchone() != (key,)
                else:
                    row = connection.execute("SELECT %s::int, %s::text", (key, str(key))).fetchone()
                    wrong += row != (key, str(key))
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
    counters = proxy.counters
    assert (counters.database_connections_peak, counters.transactions, counters.pinned) == (2, 320, {})
    assert counters.unnamed_statement_outlived == 0


def test_stock_pg8000_is_found_out(rds_proxy: Start) -> None:
    """Parse, Describe and Bind each with a Sync of its own: unsafe without a transaction, whoever answers."""
    proxy = scram(rds_proxy, max_database_connections=1)
    connection = pg8000_client(proxy)
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("SELECT %s::int", (1,))
    assert proxy.counters.unnamed_statement_outlived == 2
    connection.autocommit = False
    cursor.execute("SELECT %s::int", (1,))
    connection.commit()
    connection.close()
    assert proxy.counters.unnamed_statement_outlived == 2


def test_users_share_the_limit(rds_proxy: Start) -> None:
    """A connection that lies idle for one user makes way for another's."""
    proxy = scram(rds_proxy, max_database_connections=1)
    with client(proxy) as first, client(proxy, "other") as second:
        for _ in range(3):
            assert first.execute("SELECT current_user").fetchone() == ("proxied",)
            assert second.execute("SELECT current_user").fetchone() == ("other",)
        assert proxy.counters.database_connections == 1


def test_a_waiting_client_gets_a_connection_of_its_own_user(rds_proxy: Start) -> None:
    """The one connection is another user's: it is replaced, and never handed on."""
    proxy = scram(rds_proxy, max_database_connections=1)
    with client(proxy, autocommit=False) as first, client(proxy, "other") as second, ThreadPoolExecutor(1) as pool:
        first.execute("SELECT 1")
        waiting = pool.submit(lambda: second.execute("SELECT current_user").fetchone())
        while not proxy._call(lambda: list(proxy.pool._waiting)):
            time.sleep(0.01)
        first.commit()
        assert waiting.result(timeout=30) == ("other",)


def test_a_client_gets_another_connection_each_time_if_there_is_one(rds_proxy: Start) -> None:
    """Who counts on the same one is found out."""
    proxy = scram(rds_proxy, max_database_connections=2)
    with client(proxy, autocommit=False) as first, client(proxy, autocommit=False) as second:
        first.execute("SELECT 1")
        second.execute("SELECT 1")
        second.commit()
        first.commit()
        pids = []
        for _ in range(6):
            pids += first.execute("SELECT pg_backend_pid()").fetchall()
            first.commit()
            second.execute("SELECT 1")
            second.commit()
    assert all(one != following for one, following in pairwise(pids))


def test_what_a_pinned_client_left_is_nobody_s(rds_proxy: Start) -> None:
    """Its connection ends with it, however it takes its leave."""
    proxy = scram(rds_proxy, max_database_connections=1)
    with client(proxy) as pinned:
        pinned.execute("SET application_name = 'left behind'")
    with client(proxy) as following:
        assert following.execute("SHOW application_name").fetchone() == ("",)


def test_an_open_transaction_is_rolled_back_when_its_client_leaves(rds_proxy: Start) -> None:
    """Neither its rows nor its locks stay, whether the client says good-bye or not."""
    proxy = scram(rds_proxy, max_database_connections=1)
    for leave in (
        lambda connection: connection.close(),
        lambda connection: socket.socket(fileno=connection.fileno()).close(),
    ):
        connection = psycopg.connect(
            proxy.url("proxied", password="hush"), sslmode="verify-full", sslrootcert=str(proxy.ca_file)
        )
        connection.execute("LOCK TABLE proxied_rows")
        connection.execute("INSERT INTO proxied_rows VALUES (-1, 'left')")
        leave(connection)
        with contextlib.suppress(psycopg.OperationalError):
            connection.close()
        with client(proxy) as after:
            assert after.execute("SELECT count(*) FROM proxied_rows WHERE id = -1").fetchone() == (0,)


def test_the_borrow_time_out_ends_the_client(rds_proxy: Start) -> None:
    """With every connection in a transaction, the next client is told after the time-out, and only that one."""
    proxy = scram(rds_proxy, max_database_connections=1, borrow_timeout_s=0.2)
    with client(proxy) as busy, client(proxy) as waiting:
        with busy.transaction():
            busy.execute("SELECT 1")
            with pytest.raises(psycopg.OperationalError, match="Timed-out waiting to acquire database connection"):
                waiting.execute("SELECT 1")
            assert busy.execute("SELECT 2").fetchone() == (2,)
        assert waiting.closed
        with client(proxy) as third:
            assert third.execute("SELECT 3").fetchone() == (3,)
    assert proxy.counters.borrow_timeouts == 1


def test_waiting_clients_are_served_in_turn(rds_proxy: Start) -> None:
    """A queue for one connection empties, and nobody is forgotten."""
    proxy = scram(rds_proxy, max_database_connections=1, borrow_timeout_s=20)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(proxy, "proxied" if i % 2 else "other")) for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                rows = list(pool.map(lambda one: one.execute("SELECT pg_sleep(0.001), 1").fetchone()[1], clients))
                assert rows == [1] * 8
    assert proxy.counters.borrow_timeouts == 0


# Time


def test_idle_clients_are_closed(rds_proxy: Start) -> None:
    """After the idle time-out, in a transaction or not; who was active stays."""
    proxy = scram(rds_proxy)
    with client(proxy) as idle, client(proxy) as active, client(proxy, autocommit=False) as inside:
        inside.execute("SELECT 1")
        proxy.advance(1700)
        active.execute("SELECT 1")
        assert proxy.counters.idle_clients_closed == 0
        proxy.advance(200)
        assert proxy.counters.idle_clients_closed == 2
        for connection in (idle, inside):
            with pytest.raises(psycopg.OperationalError, match="idle for too long"):
                connection.execute("SELECT 1")
        assert active.execute("SELECT 1").fetchone() == (1,)


def test_a_client_lives_a_day(rds_proxy: Start) -> None:
    """However busy it is."""
    proxy = scram(rds_proxy, idle_client_timeout_s=28_800)
    with client(proxy) as connection:
        for _ in range(3):
            proxy.advance(28_000)
            connection.execute("SELECT 1")
        proxy.advance(3_000)
        with pytest.raises(psycopg.OperationalError, match="maximum life"):
            connection.execute("SELECT 1")
    assert proxy.counters.aged_clients_closed == 1


def test_limits_of_time_are_reached_at_their_second(rds_proxy: Start) -> None:
    """Not before it, and not after it: of idleness, and of a life."""
    for limits, counter in (
        ({"idle_client_timeout_s": 100}, "idle_clients_closed"),
        ({"client_life_s": 100}, "aged_clients_closed"),
    ):
        proxy = scram(rds_proxy, clock=lambda: 1_000_000_000.0, **limits)
        with client(proxy):
            proxy.advance(99.5)
            assert getattr(proxy.counters, counter) == 0
            proxy.advance(0.5)
            assert getattr(proxy.counters, counter) == 1


def test_the_sweep_finds_idle_clients_by_itself(rds_proxy: Start) -> None:
    """No call of `advance` is needed where the real clock is used."""
    proxy = scram(rds_proxy, idle_client_timeout_s=0.1)
    with client(proxy) as connection:
        deadline = time.monotonic() + 60
        while not proxy.counters.idle_clients_closed and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(psycopg.OperationalError, match="idle for too long"):
            connection.execute("SELECT 1")


# Pinning

PINNING = {
    "SET application_name = 'x'": "SET",
    "SET LOCAL application_name = 'x'": "SET LOCAL",
    "SELECT set_config('application_name', 'x', false)": "set_config",
    "RESET application_name": "RESET",
    "PREPARE p AS SELECT 1": "PREPARE",
    "DISCARD TEMP": "DISCARD",
    "CREATE TEMP TABLE t (a int)": "temporary object",
    "SELECT 1 AS a INTO TEMP t": "temporary object",
    "LISTEN jobs": "LISTEN",
    "SELECT pg_advisory_lock(1)": "advisory lock",
    "SELECT '" + "x" * 16_384 + "'": "over 16 KB",
}


@pytest.mark.parametrize("statement", PINNING, ids=lambda statement: statement[:30])
def test_what_is_documented_to_pin_pins(rds_proxy: Start, statement: str) -> None:
    """The client keeps its connection until it leaves, others do without, and its session dies with it."""
    proxy = scram(rds_proxy, max_database_connections=2, borrow_timeout_s=0.3)
    with client(proxy) as keeper, client(proxy) as other:
        assert proxy.counters.pinned == {}
        keeper.execute(statement)
        pids = {keeper.execute("SELECT pg_backend_pid()").fetchone() for _ in range(4)}
        assert len(pids) == 1
        assert {other.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)}.isdisjoint(pids)
        assert proxy.counters.pinned == {PINNING[statement]: 1}
        keeper.execute(
            statement.replace("TABLE t", "TABLE u").replace("TEMP t", "TEMP u").replace("PREPARE p", "PREPARE q")
        )
        assert proxy.counters.pinned == {PINNING[statement]: 1}
    with client(proxy) as after:
        assert {after.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)}.isdisjoint(pids)


def test_a_named_statement_pins(rds_proxy: Start) -> None:
    """Whether it does on RDS Proxy is not documented; the stand-in takes the harder answer."""
    proxy = scram(rds_proxy)
    with client(proxy, prepare_threshold=0) as connection:
        connection.execute("SELECT %s::int", (1,))
        assert proxy.counters.pinned == {"named statement": 1}


def test_pinned_clients_fill_the_database(rds_proxy: Start) -> None:
    """Two pinned clients on two connections, though idle, keep everybody else out."""
    proxy = scram(rds_proxy, max_database_connections=2, borrow_timeout_s=0.2)
    with client(proxy) as first, client(proxy) as second, client(proxy) as third:
        for connection in (first, second):
            connection.execute("SET application_name = 'mine'")
        with pytest.raises(psycopg.OperationalError, match="Timed-out"):
            third.execute("SELECT 1")


def test_what_ends_with_the_transaction_does_not_pin(rds_proxy: Start) -> None:
    """Transactions' advisory locks, savepoints, isolation levels of BEGIN, NOTIFY, and words in literals."""
    proxy = scram(rds_proxy)
    with client(proxy) as connection:
        for statement in (
            "SELECT pg_advisory_xact_lock(1)",
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "SAVEPOINT s",
            "COMMIT",
            "NOTIFY jobs",
            "SELECT 'SET x = 1', $$ DISCARD ALL $$ AS \"nextval\" -- LISTEN",
        ):
            connection.execute(statement)
    assert proxy.counters.pinned == {}


# Failover and the end


def test_failover_spares_idle_clients(rds_proxy: Start) -> None:
    """A client in a transaction and a pinned one get an error; an idle one goes on over a new connection."""
    proxy = scram(rds_proxy)
    with client(proxy) as idle, client(proxy) as inside, client(proxy) as pinned:
        before = idle.execute("SELECT pg_backend_pid()").fetchone()
        pinned.execute("SET application_name = 'x'")
        with pytest.raises(psycopg.OperationalError, match="connection was lost"):
            with inside.transaction():
                inside.execute("SELECT 1")
                proxy.failover()
                inside.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="connection was lost"):
            pinned.execute("SELECT 1")
        assert idle.execute("SELECT pg_backend_pid()").fetchone() != before
    counters = proxy.counters
    assert counters.failovers == 1
    assert counters.database_connections_lost >= 2


def test_failover_goes_to_another_server(rds_proxy: Start) -> None:
    """The new writer answers the next transaction of a client that never reconnected."""
    proxy = scram(rds_proxy)
    with Postgres({"max_connections": 10}) as successor, client(proxy) as connection:
        successor.execute(
            "CREATE ROLE proxied LOGIN; CREATE TABLE successor (a int); GRANT ALL ON successor TO proxied"
        )
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM successor")
        proxy.failover(successor)
        assert connection.execute("SELECT * FROM successor").fetchall() == []


def test_a_restart_of_the_database_is_waited_for() -> None:
    """A transaction that begins while the database is away waits, and then runs."""
    with Postgres({"max_connections": 10}) as server:
        server.execute("CREATE ROLE proxied LOGIN")
        with RdsProxy(server, auth="scram", users={"proxied": "hush"}) as proxy, client(proxy) as connection:
            connection.execute("SELECT 1")
            server.stop()
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(lambda: connection.execute("SELECT 2").fetchone())
                time.sleep(0.2)
                server.start()
                assert answer.result(timeout=60) == (2,)


def test_a_database_that_is_away_is_a_borrow_time_out(rds_proxy: Start) -> None:
    """Nobody listens there: the client is told after the time-out."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = Address("127.0.0.1", taken.getsockname()[1])
        with RdsProxy(nowhere, auth="scram", users={"proxied": "hush"}, borrow_timeout_s=0.2) as proxy:
            with pytest.raises(psycopg.OperationalError, match="Timed-out"):
                with client(proxy):
                    pass
    assert proxy.counters.borrow_timeouts == 1


def test_a_session_that_the_database_ends_is_told_why(rds_proxy: Start, postgres: Postgres) -> None:
    """The server's last words reach the client that was in a transaction."""
    proxy = scram(rds_proxy)
    with client(proxy, autocommit=False) as connection:
        pid = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert pid is not None
        postgres.execute("SELECT pg_terminate_backend($1, 10000)", pid[0])
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")


def test_a_connection_that_died_in_the_pool_is_not_handed_out(rds_proxy: Start, postgres: Postgres) -> None:
    """A client notices nothing of a session that ended while nobody used it."""
    proxy = scram(rds_proxy)
    with client(proxy) as connection:
        for _ in range(5):
            pid = connection.execute("SELECT pg_backend_pid()").fetchone()
            assert pid is not None
            postgres.execute("SELECT pg_terminate_backend($1, 10000)", pid[0])
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_nothing_is_left_at_the_end(postgres: Postgres) -> None:
    """
    No thread, no socket, no file, no database session: with clients connected, waiting and in the middle of things.
    """
    proxy = RdsProxy(postgres, auth="scram", users={"proxied": "hush"}, max_database_connections=2).start()
    ca_file = proxy.ca_file
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(proxy, autocommit=False)) for _ in range(4)]
        half_open = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
        half_open.sendall(struct.pack("!ii", 8, 80877103))
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(one.execute, "SELECT pg_sleep(30)") for one in clients]
            while proxy.counters.database_connections < 2:
                time.sleep(0.01)
            proxy.close()
            for one in running:
                assert isinstance(one.exception(timeout=20), psycopg.OperationalError)
    proxy.close()
    assert not ca_file.exists()
    assert "rds-proxy" not in {thread.name for thread in threading.enumerate()}
    assert proxy.counters.database_connections_peak == 2
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port))
    deadline = time.monotonic() + 60
    while postgres.execute("SELECT 1 FROM pg_stat_activity WHERE usename = 'proxied' AND state <> 'active'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'proxied'")


def test_it_can_be_started_once(postgres: Postgres) -> None:
    """And says what is wrong with its arguments."""
    with RdsProxy(postgres) as proxy:
        with pytest.raises(RuntimeError, match="already"):
            proxy.start()
        with pytest.raises(OSError, match="in use"):
            RdsProxy(postgres, port=proxy.port).start()
    with pytest.raises(ValueError, match="users"):
        RdsProxy(postgres, auth="scram")
    with pytest.raises(ValueError, match="max_database_connections"):
        RdsProxy(postgres, max_database_connections=0)


# As users have it


def test_the_documented_test_passes(machine: Any, tmp_path: Path) -> None:
    """The function and the test of docs/rds-proxy.md work as they stand there."""
    document = (Path(__file__).parents[2] / "docs" / "rds-proxy.md").read_text()
    examples = re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", document, re.DOTALL)
    assert len(examples) == 2
    for name, source in examples:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    result = machine.run("-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path)
    assert "1 passed" in result.stdout, result.stdout + result.stderr
    assert machine.left_behind(60) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_what_pinned(machine: Any, read_until: Callable[..., str], number: signal.Signals) -> None:
    """
    `plungepool proxy`, started in the background as a shell does it: prints what a function needs, as a shell takes it,
    and where the database itself is; each of the two signals ends it with a report, in which one is one.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = machine.start(
            "-m", "plungepool_toolkit", "proxy", "--auth", "scram", "--user", "app:hush", "--port", "0"
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process as command:
        lines = read_until(command.stdout, "PLUNGEPOOL_PASSWORD").splitlines()
        assert [line.split(" ")[0] for line in lines] == ["export"] * len(lines)
        variables = {name: value for line in lines for name, value in [shlex.split(line)[1].split("=", 1)]}
        url = variables["PLUNGEPOOL_URL"]
        with psycopg.connect(
            url, password="hush", sslmode="verify-full", sslrootcert=variables["PLUNGEPOOL_CA_FILE"]
        ) as connection:
            for _ in range(5):
                connection.execute("SET application_name = 'x'")
        connection.close()
        command.send_signal(number)
        _output, report = command.communicate(timeout=30)
    assert command.returncode == 0
    assert "1 client, 1 transaction; at most 1 connection to the database at a time, of 5 allowed" in report
    assert "pinned 1 client: SET\n" in report
    assert "each client counts once" in report
    at = re.search(r"The database itself is at (127\.0\.0\.1:\d+), without TLS; its superuser is 'postgres'", report)
    assert at is not None
    assert at[1] not in url
    assert machine.left_behind(60) == []
