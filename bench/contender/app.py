"""
One contender as a Lambda function: what it keeps is made outside the handler, and the event says what to do how often.

BENCH_CONTENDER names it: `plungepool` (its PLUNGEPOOL_ variables are a user's), or a driver with BENCH_HOST, BENCH_PORT
and, for TLS, BENCH_CA_FILE. All are SQLAlchemy engines but `asyncpg`, which SQLAlchemy offers to asyncio only: it runs
bare.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

CONTENDER = os.environ["BENCH_CONTENDER"]
if CONTENDER == "plungepool":
    # The first of all imports, as in a function: it decides what SQLAlchemy's import leaves out.
    import plungepool

    if os.environ.get("PLUNGEPOOL_AUTH") == "iam":  # older commits, which compare.py measures too, have no such module
        from plungepool import iam

        iam.rds_token = lambda *_: "secret"  # what the server takes for the role's password, as RDS takes a token
import sqlalchemy as sa  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

MOMENT, AMOUNT = datetime(2026, 11, 26, 12, tzinfo=UTC), Decimal("1.25")
TABLE = sa.Table("counted", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("label", sa.Text))
MANY = [{"label": f"label {number}"} for number in range(100)]
SIX = sa.text("SELECT :a, CAST(:b AS text), :c, :d, :e, :f")
SIX_VALUES = {"a": 1, "b": "text", "c": 2.5, "d": MOMENT, "e": True, "f": AMOUNT}
ROWS = (
    "SELECT g AS number, 'label ' || g AS label, g / 7.0::float8 AS share, timestamptz '2026-01-01 00:00:00+00' + g * "
    "interval '1 second 1 microsecond' AS moment, (g * 1.01)::numeric AS price FROM generate_series(1, {}) g"
)


def make_engine(**options: Any) -> sa.Engine:
    """Return the engine that a user has: ours as it comes, the others with a pool of one connection."""
    if CONTENDER == "plungepool":
        return plungepool.get_engine(**options)
    ca_file = os.environ.get("BENCH_CA_FILE")
    arguments: dict[str, Any] = {}
    if ca_file and CONTENDER == "psycopg":
        arguments = {"sslmode": "verify-full", "sslrootcert": ca_file}
    elif ca_file:
        arguments = {"ssl_context": ssl.create_default_context(cafile=ca_file)}
    url = sa.URL.create(
        f"postgresql+{CONTENDER}", "app", "secret", os.environ["BENCH_HOST"], int(os.environ["BENCH_PORT"]), "postgres"
    )
    return sa.create_engine(url, connect_args=arguments, pool_size=1, max_overflow=0, **options)


class ByEngine:
    """The cases, on a SQLAlchemy engine."""

    def __init__(self) -> None:
        self._engines: dict[str, sa.Engine] = {}

    def engine(self, name: str = "default") -> sa.Engine:
        """Return the engine of an isolation level, made once."""
        if name not in self._engines:
            if CONTENDER == "plungepool":
                # One engine; its pool looks before it hands out, so that nobody asks for pre-ping.
                level = {"isolation_level": name} if name == "AUTOCOMMIT" else {}
                self._engines[name] = make_engine().execution_options(**level)
            else:
                options = {"default": {}, "AUTOCOMMIT": {"isolation_level": name}, "pre-ping": {"pool_pre_ping": True}}
                self._engines[name] = make_engine(**options[name])
        return self._engines[name]

    def forget(self) -> None:
        """Close all connections and drop the engines."""
        for engine in self._engines.values():
            engine.dispose()
        self._engines.clear()
        if CONTENDER == "plungepool":
            plungepool.dispose_engine()

    def connect(self) -> None:
        engine = self._engines["default"] = make_engine()
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT :x"), {"x": "1"}).scalar_one()

    def select(self, engine: str = "default") -> None:
        with self.engine(engine).connect() as connection:
            connection.execute(sa.text("SELECT :x"), {"x": 1}).scalar_one()

    def six(self) -> None:
        with self.engine().connect() as connection:
            connection.execute(SIX, SIX_VALUES).one()

    def insert(self, count: int) -> None:
        with self.engine().begin() as connection:
            for _ in range(count):
                connection.execute(sa.text("INSERT INTO counted (label) VALUES (:label)"), MANY[0])

    def many(self, *, returning: bool) -> None:
        with self.engine().begin() as connection:
            if returning:
                connection.execute(sa.insert(TABLE).returning(TABLE.c.id), MANY).all()
            else:
                connection.execute(sa.text("INSERT INTO counted (label) VALUES (:label)"), MANY)

    def rows(self, count: int) -> None:
        with self.engine().connect() as connection:
            assert len(connection.exec_driver_sql(ROWS.format(count)).all()) == count

    def read(self) -> int:
        with self.engine().connect() as connection:
            return len(connection.exec_driver_sql("SELECT value FROM large").scalar_one())

    def write(self, size: int) -> int:
        value = b"\xff" * size
        with self.engine().connect() as connection:
            return int(
                connection.execute(sa.text("SELECT length(CAST(:value AS bytea))"), {"value": value}).scalar_one()
            )


class Bare:
    """Some of the cases, on asyncpg."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._session: Any = None

    def forget(self) -> None:
        if self._session is not None:
            self._session.terminate()
            self._session = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return functools.partial(self._run, name)

    def _run(self, name: str, **arguments: Any) -> None:
        if name == "connect":
            self.forget()
            name = "select"
        self._runner.run(self._do(name, **arguments))

    async def _do(self, name: str, **arguments: Any) -> None:
        import asyncpg

        if self._session is None:
            ca_file = os.environ.get("BENCH_CA_FILE")
            self._session = await asyncpg.connect(
                host=os.environ["BENCH_HOST"], port=int(os.environ["BENCH_PORT"]), user="app", password="secret",
                database="postgres", ssl=ssl.create_default_context(cafile=ca_file) if ca_file else False,
            )  # fmt: skip
        if arguments.get("engine") == "AUTOCOMMIT":
            await self._session.fetchval("SELECT $1::int", 1)
            return
        transaction = self._session.transaction()
        await transaction.start()
        if name == "select":
            await self._session.fetchval("SELECT $1::int", 1)
        elif name == "insert":
            for _ in range(arguments["count"]):
                await self._session.execute("INSERT INTO counted (label) VALUES ($1)", MANY[0]["label"])
        elif name == "many":
            sets = [tuple(values.values()) for values in MANY]
            sql = "INSERT INTO counted (label) VALUES ($1)"
            if arguments["returning"]:
                await self._session.fetchmany(sql + " RETURNING id", sets)
            else:
                await self._session.executemany(sql, sets)
        elif name == "rows":
            assert len(await self._session.fetch(ROWS.format(arguments["count"]))) == arguments["count"]
        await (transaction.commit() if name in ("insert", "many") else transaction.rollback())


cases: Any = Bare() if CONTENDER == "asyncpg" else ByEngine()


def handler(event: dict[str, Any], context: object) -> list[float]:
    """
    Run a case some times, or for some seconds, and return how long each took.

    Args: event: `case` and its `arguments`; `times`, or `seconds`; `cpu`: in this process's own computing time;
    `forget`: close everything first, untimed.
    """
    del context
    if event.get("forget"):
        cases.forget()
    if "case" not in event:
        return []
    run = functools.partial(getattr(cases, event["case"]), **event.get("arguments", {}))
    durations: list[float] = []
    clock = time.process_time if event.get("cpu") else time.perf_counter
    until = time.perf_counter() + event.get("seconds", 0)
    while len(durations) < event.get("times", 3) or time.perf_counter() < until:
        if event["case"] == "connect":
            cases.forget()
        begun = clock()
        run()
        durations.append(clock() - begun)
    return durations
