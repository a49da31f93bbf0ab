"""The pinning guard on the layer's own engine, judged by what the stand-in for RDS Proxy really counts as pinned."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Column, Integer, MetaData, Sequence, Table, insert, text

from plungepool import PinningRefused, Settings, build_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from plungepool_toolkit.postgres import Postgres
    from plungepool_toolkit.rds_proxy import RdsProxy

PINNING = {
    "SET application_name = 'x'": "SET",
    "SET LOCAL application_name = 'x'": "SET LOCAL",
    "RESET application_name": "RESET",
    "SELECT set_config('application_name', 'x', true)": "set_config",
    "CREATE TEMP TABLE guarded_t (a int)": "temporary object",
    "LISTEN guarded": "LISTEN",
    "SELECT pg_try_advisory_lock(4711)": "advisory lock",
    "DECLARE guarded_c CURSOR FOR SELECT 1": "DECLARE",
    "SELECT nextval('guarded_s')": "nextval",
    "SELECT '" + "x" * 17_000 + "'": "over 16 KB",
}
HARMLESS = [
    "SELECT 'SET x = 1'",
    "SELECT pg_advisory_xact_lock(4711)",
    "SELECT 1 AS nextval /* RESET ALL */",
    "NOTIFY guarded",
]


@pytest.fixture(scope="module", autouse=True)
def _role(postgres: Postgres) -> Iterator[None]:
    """A role and a sequence behind the stand-in."""
    postgres.execute("CREATE ROLE guarded LOGIN; CREATE SEQUENCE guarded_s; GRANT ALL ON SEQUENCE guarded_s TO guarded")
    yield
    postgres.execute("DROP OWNED BY guarded; DROP SEQUENCE guarded_s; DROP ROLE guarded")


@pytest.fixture
def proxy(rds_proxy: Callable[..., RdsProxy]) -> RdsProxy:
    """A stand-in that asks for a password."""
    return rds_proxy(auth="scram", users={"guarded": "hush"}, max_database_connections=2)


@pytest.fixture
def connect(proxy: RdsProxy) -> Iterator[Callable[..., Engine]]:
    """An engine with the stand-in before it."""
    engines = []

    def build(**variables: str) -> Engine:
        engines.append(build_engine(Settings.from_env(proxy.variables("guarded") | variables)))
        return engines[-1]

    yield build
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize("statement", PINNING, ids=lambda statement: statement[:30])
def test_a_warning_comes_with_each_pin(
    proxy: RdsProxy, connect: Callable[..., Engine], caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    """What the guard says and what the stand-in does are one; the statement runs."""
    engine = connect()
    with caplog.at_level(logging.WARNING, logger="plungepool"):
        for _ in range(2):
            with engine.connect() as connection:
                connection.execute(text(statement))
    lines = [record.getMessage() for record in caplog.records if record.name == "plungepool"]
    assert len(lines) == 1
    assert lines[0].startswith(f"{PINNING[statement]} pins the proxy")
    assert proxy.counters.pinned == {PINNING[statement]: 1}


@pytest.mark.parametrize("statement", PINNING, ids=lambda statement: statement[:30])
def test_a_refused_statement_is_not_sent(proxy: RdsProxy, connect: Callable[..., Engine], statement: str) -> None:
    """Nothing pins, not even a BEGIN goes out, and the connection goes on as if nothing had been asked."""
    engine = connect(PLUNGEPOOL_PINNING="refuse")
    with engine.connect() as connection:
        before = proxy.counters
        with pytest.raises(PinningRefused) as refused:
            connection.execute(text(statement))
        assert refused.value.reason.kind == PINNING[statement]
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        connection.rollback()
    counters = proxy.counters
    assert counters.borrows - before.borrows == 1
    assert counters.pinned == {}


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_does_not_pin_passes_the_guard(proxy: RdsProxy, connect: Callable[..., Engine], statement: str) -> None:
    """Neither refused by the one nor pinned by the other."""
    with connect(PLUNGEPOOL_PINNING="refuse").connect() as connection:
        connection.execute(text(statement))
    assert proxy.counters.pinned == {}


def test_a_server_side_cursor_is_seen(proxy: RdsProxy, connect: Callable[..., Engine]) -> None:
    """The dialect adds the DECLARE after the event; stream_results is refused all the same."""
    with connect(PLUNGEPOOL_PINNING="refuse").connect() as connection:
        with pytest.raises(PinningRefused, match="DECLARE"):
            connection.execute(text("SELECT 1"), execution_options={"stream_results": True})
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    assert proxy.counters.pinned == {}
    with connect().connect() as connection:
        assert connection.execute(text("SELECT 1"), execution_options={"yield_per": 2}).scalar_one() == 1
    assert proxy.counters.pinned == {"DECLARE": 1}


def test_a_large_insert_is_seen(proxy: RdsProxy, connect: Callable[..., Engine]) -> None:
    """Many rows in one statement make a text of more than 16 KB, where the engine's own page size is overruled."""
    table = Table("guarded_rows", MetaData(), Column("id", Integer, primary_key=True), Column("a", Integer))
    rows = [{"a": number} for number in range(3000)]
    with connect(PLUNGEPOOL_PINNING="refuse").connect() as connection:
        with pytest.raises(PinningRefused, match="16 KB"):
            options = {"insertmanyvalues_page_size": len(rows)}
            connection.execute(insert(table).returning(table.c.id), rows, execution_options=options)
    assert proxy.counters.pinned == {}


def test_a_sequence_of_the_client_s_is_seen(proxy: RdsProxy, connect: Callable[..., Engine]) -> None:
    """SQLAlchemy asks for a Sequence's next value by itself."""
    with connect(PLUNGEPOOL_PINNING="refuse").connect() as connection:
        with pytest.raises(PinningRefused, match="nextval"):
            connection.scalar(Sequence("guarded_s"))
    assert proxy.counters.pinned == {}


def test_a_direct_endpoint_has_no_guard(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to pin."""
    engine = build_engine(
        Settings(host=postgres.host, port=postgres.port, user="guarded", password="unused", tls="disable")
    )
    with caplog.at_level(logging.WARNING, logger="plungepool"), engine.connect() as connection:
        connection.execute(text("SET application_name = 'x'"))
    assert not [record for record in caplog.records if "pins" in record.getMessage()]
    engine.dispose()
