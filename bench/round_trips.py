"""
Round trips and times of one statement, side by side: Plungepool, stock pg8000, psycopg 3 (C) and asyncpg.

    .venv/bin/python bench/round_trips.py                                   measures and prints
    .venv/bin/python bench/round_trips.py --write docs/round-trips.md       writes the page, too

Counts are exact: a proxy counts each wait for the server, TLS on. Times are medians of one run on one machine, worth their
ratios; the latency of a network is added by the same proxy in a process of its own. asyncpg runs bare, without SQLAlchemy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import functools
import multiprocessing
import os
import platform
import ssl
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import asyncpg
import sqlalchemy as sa

from plungepool import Settings, build_engine
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

LATENCIES_MS = (0, 1, 5)
ROWS = (1, 100, 10_000)
TABLE = sa.Table("counted", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("label", sa.Text))
MANY = [{"label": f"label {number}"} for number in range(100)]
ROWS_SQL = (
    "SELECT g AS number, 'label ' || g AS label, g / 7.0::float8 AS share, "
    "timestamptz '2026-01-01 00:00:00+00' + g * interval '1 second 1 microsecond' AS moment, (g * 1.01)::numeric AS price "
    "FROM generate_series(1, {}) g"
)


class Place:
    """Where the server is for one measurement: directly, or behind a proxy."""

    def __init__(self, server: Postgres, port: int, *, tls: bool) -> None:
        self.port, self.tls = port, tls
        self.host = "localhost" if tls else "127.0.0.1"
        self.ca_file = str(server.ca_file) if tls else None


class ByEngine:
    """A driver under SQLAlchemy."""

    def __init__(self, name: str, driver: str) -> None:
        self.name, self.driver = name, driver

    def engine(self, place: Place, **options: Any) -> sa.Engine:
        arguments: dict[str, Any] = {}
        if (
            self.driver == "plungepool"
        ):  # what get_engine() returns: its pool looks before it hands out, and needs no ping
            options.pop("pool_pre_ping", None)
            tls = {"ca_file": place.ca_file} if place.tls else {"tls": "disable"}
            return build_engine(
                Settings(host=place.host, port=place.port, user="app", password="secret", **tls), **options
            )
        if place.tls:
            if self.driver == "psycopg":
                arguments = {"sslmode": "verify-full", "sslrootcert": place.ca_file}
            else:
                arguments = {"ssl_context": ssl.create_default_context(cafile=place.ca_file)}
        url = sa.URL.create(f"postgresql+{self.driver}", "app", "secret", place.host, place.port, "postgres")
        return sa.create_engine(url, connect_args=arguments, pool_size=1, **options)

    @contextlib.contextmanager
    def case(self, name: str, place: Place) -> Iterator[Callable[[], object]]:
        options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if "AUTOCOMMIT" in name else {}
        if "pre-ping" in name:
            options["pool_pre_ping"] = True
        engine = self.engine(place, **options)

        def select() -> object:
            with engine.connect() as connection:
                return connection.execute(sa.text("SELECT :x"), {"x": "1"}).scalar_one()

        def insert(count: int = 1) -> None:
            with engine.begin() as connection:
                for _ in range(count):
                    connection.execute(sa.text("INSERT INTO counted (label) VALUES (:label)"), MANY[0])

        def many(*, returning: bool) -> None:
            with engine.begin() as connection:
                if returning:
                    connection.execute(sa.insert(TABLE).returning(TABLE.c.id), MANY).all()
                else:
                    connection.execute(sa.text("INSERT INTO counted (label) VALUES (:label)"), MANY)

        opened = [engine]

        def connect() -> None:
            opened.append(self.engine(place))
            with opened[-1].connect() as connection:
                connection.execute(sa.text("SELECT :x"), {"x": "1"}).scalar_one()
            if len(opened) > 5:  # not the last: saying goodbye under TLS has an answer, that nobody waits for
                opened.pop(0).dispose()

        def rows(count: int) -> None:
            with engine.connect() as connection:
                assert len(connection.exec_driver_sql(ROWS_SQL.format(count)).all()) == count

        yield choose(name, select=select, insert=insert, many=many, connect=connect, rows=rows)
        for engine in opened:
            engine.dispose()


class Bare:
    """asyncpg as it is, since SQLAlchemy offers it to asyncio only."""

    name, driver = "asyncpg, bare", "asyncpg"

    async def open(self, place: Place) -> Any:
        context = ssl.create_default_context(cafile=place.ca_file) if place.tls else False
        return await asyncpg.connect(
            host=place.host, port=place.port, user="app", password="secret", database="postgres", ssl=context
        )

    @contextlib.contextmanager
    def case(self, name: str, place: Place) -> Iterator[Callable[[], object]]:
        with asyncio.Runner() as runner:
            session = runner.run(self.open(place))

            async def select() -> object:
                if "AUTOCOMMIT" in name:
                    return await session.fetchval("SELECT $1::text", "1")
                transaction = session.transaction()
                await transaction.start()
                value = await session.fetchval("SELECT $1::text", "1")
                await transaction.rollback()
                return value

            async def insert(count: int = 1) -> None:
                async with session.transaction():
                    for _ in range(count):
                        await session.execute("INSERT INTO counted (label) VALUES ($1)", MANY[0]["label"])

            async def many(*, returning: bool) -> None:
                sets = [tuple(values.values()) for values in MANY]
                sql = "INSERT INTO counted (label) VALUES ($1)"
                async with session.transaction():
                    if returning:
                        await session.fetchmany(sql + " RETURNING id", sets)
                    else:
                        await session.executemany(sql, sets)

            async def connect() -> None:
                fresh = await self.open(place)
                transaction = fresh.transaction()
                await transaction.start()
                await fresh.fetchval("SELECT $1::text", "1")
                await transaction.rollback()
                fresh.terminate()

            async def rows(count: int) -> None:
                async with session.transaction():
                    assert len(await session.fetch(ROWS_SQL.format(count))) == count

            chosen = choose(name, select=select, insert=insert, many=many, connect=connect, rows=rows)
            yield lambda: runner.run(chosen())
            session.terminate()


def choose(name: str, **functions: Callable[..., Any]) -> Callable[[], Any]:
    """The function that a case of this name calls."""
    kind, arguments = CASES[name] if name in CASES else ("rows", {"count": int(name)})
    return functools.partial(functions[kind], **arguments)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "connect (TLS, clear-text password), first `SELECT :x`, rollback": ("connect", {}),
    "`SELECT :x`, warm, default isolation": ("select", {}),
    "`SELECT :x`, warm, AUTOCOMMIT": ("select", {}),
    "`SELECT :x`, warm, default isolation, pre-ping": ("select", {}),
    "`begin()`, one INSERT with parameters": ("insert", {"count": 1}),
    "`begin()`, five INSERTs with parameters": ("insert", {"count": 5}),
    "`begin()`, executemany of 100 rows": ("many", {"returning": False}),
    "`begin()`, executemany of 100 rows with RETURNING": ("many", {"returning": True}),
}
TIMED = [name for name in CASES if "five" not in name and "pre-ping" not in name]


class Drivers:
    """In the order of the columns."""

    ALL: ClassVar = [
        ByEngine("Plungepool", "plungepool"),
        ByEngine("pg8000", "pg8000"),
        ByEngine("psycopg 3", "psycopg"),
        Bare(),
    ]


def count(server: Postgres) -> dict[str, list[str]]:
    """The round trips of every case and driver, once warm."""
    table: dict[str, list[str]] = {}
    for name in CASES:
        table[name] = []
        for driver in Drivers.ALL:
            if "pre-ping" in name and isinstance(driver, Bare):
                table[name].append("")
                continue
            with (
                ChaosProxy(server.host, server.port) as proxy,
                driver.case(name, Place(server, proxy.port, tls=True)) as run,
            ):
                for _ in range(10 if CASES[name][0] != "connect" else 1):
                    run()
                proxy.round_trips = 0
                run()
                table[name].append(str(proxy.round_trips))
    return table


def median_ms(run: Callable[[], object], seconds: float = 1.5) -> float:
    """The median time of a call, of as many calls as fit, at least five."""
    for _ in range(3):
        run()
    times = []
    until = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < until and len(times) < 500):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def serve(host: str, port: int, latency_ms: float, pipe: Connection) -> None:
    """A proxy in a process of its own, so that it takes no time from the client."""
    with ChaosProxy(host, port, latency_ms=latency_ms) as proxy:
        pipe.send(proxy.port)
        pipe.recv()


@contextlib.contextmanager
def at_latency(server: Postgres, latency_ms: float, *, tls: bool) -> Iterator[Place]:
    """The server behind a network with that latency; 0: directly."""
    if not latency_ms:
        yield Place(server, server.port, tls=tls)
        return
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(server.host, server.port, latency_ms, theirs)
    )
    process.start()
    try:
        yield Place(server, ours.recv(), tls=tls)
    finally:
        ours.send(None)
        process.join()


def time_cases(server: Postgres) -> dict[float, dict[str, list[str]]]:
    """Milliseconds of the cases at each latency."""
    tables: dict[float, dict[str, list[str]]] = {}
    for latency_ms in LATENCIES_MS:
        tables[latency_ms] = {name: [] for name in TIMED}
        with at_latency(server, latency_ms, tls=True) as place:
            for name in TIMED:
                for driver in Drivers.ALL:
                    with driver.case(name, place) as run:
                        tables[latency_ms][name].append(f"{median_ms(run):.2f}")
    return tables


def time_rows(server: Postgres) -> dict[str, list[str]]:
    """Milliseconds for rows of int, text, float8, timestamptz and numeric, in plain text on loopback."""
    table: dict[str, list[str]] = {}
    place = Place(server, server.port, tls=False)
    for rows in ROWS:
        table[f"{rows:,}"] = []
        for driver in Drivers.ALL:
            with driver.case(str(rows), place) as run:
                table[f"{rows:,}"].append(f"{median_ms(run, 3.0):.2f}")
    return table


def as_markdown(first: str, table: dict[str, list[str]]) -> str:
    lines = [f"| {first} | " + " | ".join(driver.name for driver in Drivers.ALL) + " |"]
    lines.append("|---|" + "---:|" * len(Drivers.ALL))
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in table.items()]
    return "\n".join(lines)


def machine() -> str:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{os.cpu_count()} cores of {model}, {platform.system()} {platform.release()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the tables to this page")
    options = parser.parse_args()
    with Postgres(tls=True, authentication="password") as server:
        server.execute("CREATE ROLE app LOGIN PASSWORD 'secret'")
        server.execute("CREATE TABLE counted (id serial PRIMARY KEY, label text)")
        server.execute("GRANT ALL ON counted, counted_id_seq TO app")
        (server_version,) = server.execute("SHOW server_version")[0]
        counts, times, rows = count(server), time_cases(server), time_rows(server)
    versions = ", ".join(f"{name} {version(name)}" for name in ("sqlalchemy", "pg8000", "psycopg", "asyncpg"))
    parts = [
        "# Round trips and times, side by side",
        (
            "A round trip is one wait for the server. Counts are exact: a proxy between client and server counts them, the TCP "
            "handshake of a connect included. Times are medians of one run, for comparison within a table only. asyncpg runs "
            "without SQLAlchemy, whose own cost it does not carry."
        ),
        (
            f"Measured {dt.datetime.now(dt.UTC):%Y-%m-%d} by `.venv/bin/python bench/round_trips.py --write docs/round-trips.md`: Python "
            f"{platform.python_version()}, {versions}, PostgreSQL {server_version.split()[0]}; {machine()}."
        ),
        "## Round trips, TLS",
        as_markdown("case", counts),
        *(
            text
            for latency_ms, table in times.items()
            for text in (
                f"## Milliseconds, TLS, network latency of {latency_ms} ms a round trip",
                as_markdown("case", table),
            )
        ),
        "## Milliseconds for rows of int, text, float8, timestamptz and numeric (plain text, loopback)",
        as_markdown("rows", rows),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
