"""
A storm: one strategy after the other, each on a fleet of its own and a database that is as new.

What happens between a strategy's beginning and its end is the environments' business and the server's; this process
hands out invocations, and watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import importlib.util
import os
import platform
import secrets
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Protocol

from plungepool_toolkit.environment import Environment, InitError
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.processes import TemporaryFolder
from plungepool_toolkit.storm import results
from plungepool_toolkit.storm.endpoints import Address, open_endpoint
from plungepool_toolkit.storm.fleet import Copies, Fleet, Outcome, Source
from plungepool_toolkit.storm.monitor import SETTINGS, Monitor
from plungepool_toolkit.storm.node import NodeError, clients

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

    from plungepool_toolkit.storm.arrivals import Round
    from plungepool_toolkit.storm.strategies import Strategy

DATABASE, USER = "storm", "storm"
ENVIRONMENTS_AT_MOST = 1000
_RESERVED = 3  # superuser_reserved_connections
_MONITORS = 1
_BETWEEN_ROUNDS_S = 0.5
_PROJECTS = ("sqlalchemy", "pg8000", "awslambdaric", "psycopg_pool")


class StrategyError(RuntimeError):
    """A strategy cannot be run here; the text says why. The others can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a storm does, the same for each strategy. Units: *_s in seconds, *_ms in milliseconds."""

    rounds: Sequence[Round]
    arrival: str
    environments: int = 100
    service_ms: float = 20.0
    outside_ms: float = 0.0
    deadline_s: float = 15.0
    max_connections: int = 30
    pooler_connections: int = 10
    freeze: bool = True
    reap_after_s: float | None = None
    reuse: str = "last"
    seed: int = 1

    @property
    def invocations(self) -> int:
        """How many there are, in all rounds."""
        return sum(len(one.times_s) for one in self.rounds)

    @property
    def limit(self) -> int:
        """The connections that the application's role may have."""
        return self.max_connections - _RESERVED - _MONITORS

    def conditions(self, server_version: str, command: str) -> results.Conditions:
        """Return what a document says of it."""
        versions = {"python": platform.python_version(), "postgresql": server_version}
        for project in _PROJECTS:
            with contextlib.suppress(PackageNotFoundError):
                versions[project] = version(project)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        rounds = f" in {len(self.rounds)} rounds" if len(self.rounds) > 1 else ""
        outside = f", then {self.outside_ms:g} ms without a connection" if self.outside_ms else ""
        text = (
            f"{self.invocations} invocations ({self.arrival}){rounds} on {self.environments} environments, "
            f"max_connections={self.max_connections}, {self.limit} of them for the application; one transaction of "
            f"two statements and {self.service_ms:g} ms{outside}, deadline {self.deadline_s:g} s; "
            f"all on {cores} cores"
        )
        return results.Conditions(
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            command=command,
            versions=versions,
            cores=cores,
            environments=self.environments,
            rounds=len(self.rounds),
            arrival=self.arrival,
            service_ms=self.service_ms,
            outside_ms=self.outside_ms,
            deadline_s=self.deadline_s,
            max_connections=self.max_connections,
            limit=self.limit,
            seed=self.seed,
            text=text,
        )


class Watcher(Protocol):
    """Who is told how a strategy gets on."""

    def grown(self, environments: int) -> None:
        """So many environments are ready."""

    def answered(self, outcome: Outcome) -> None:
        """One invocation more is over."""


class Unwatched:
    """Nobody is told."""

    def grown(self, environments: int) -> None:
        """Tell nobody."""

    def answered(self, outcome: Outcome) -> None:
        """Tell nobody."""


class Storm:
    """
    A server for a storm, and what can be let loose on it. A context manager.

    Raises: PostgresError on entering.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._password = secrets.token_urlsafe(16)
        settings = {"max_connections": plan.max_connections, "superuser_reserved_connections": _RESERVED, **SETTINGS}
        # In clear text, as an IAM token is sent: SCRAM would measure what it costs the clients' CPU.
        self.server = Postgres(settings, authentication="password")

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.server.close()

    @property
    def server_version(self) -> str:
        """The server's version, such as 18.6."""
        return str(self.server.execute("SHOW server_version")[0][0]).split()[0]

    def run(
        self,
        strategy: Strategy,
        endpoint: str = "direct",
        watcher: Watcher | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> results.Strategy:
        """
        Let the plan's invocations loose on a fleet of one strategy.

        Args: meanwhile: called in a thread of its own when the storm begins: for what is to happen in its middle.
        Raises: StrategyError where it cannot be run here; EndpointError; FleetError. Blocks: for the plan's duration,
            and one deadline a round.
        """
        if strategy.needs is not None and importlib.util.find_spec(strategy.needs) is None:
            raise StrategyError(f"{strategy.name} needs the package {strategy.needs}: pip install {strategy.needs}")
        self._clean()
        direct = Address(
            endpoint="direct",
            host=self.server.host,
            port=self.server.port,
            database=DATABASE,
            user=USER,
            password=self._password,
        )
        with open_endpoint(self.server, direct, endpoint, self.plan.pooler_connections) as door:
            environments = _source(strategy, strategy.environ(door.address), self.plan)
            with environments as source, Monitor(self.server, USER) as monitor:
                rounds = asyncio.run(_let_loose(source, self.plan, monitor, watcher or Unwatched(), meanwhile))
            committed = self._committed()
        return _result(strategy, endpoint, rounds, monitor, door.pinned, committed)

    def _clean(self) -> None:
        """Make the database and its role as new."""
        self.server.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        self.server.execute(f"DROP ROLE IF EXISTS {USER}")
        self.server.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{self._password}'")
        self.server.execute(f"CREATE DATABASE {DATABASE} OWNER {USER}")
        self.server.execute(
            "CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL) WITH (fillfactor = 50);"
            "INSERT INTO accounts SELECT n, 0 FROM generate_series(0, 999) n; ANALYZE accounts",
            database=DATABASE,
        )
        self.server.execute(f"GRANT SELECT, UPDATE ON accounts TO {USER}", database=DATABASE)

    def _committed(self) -> int:
        return int(self.server.execute("SELECT sum(balance) FROM accounts", database=DATABASE)[0][0])


@contextlib.contextmanager
def _source(strategy: Strategy, variables: Mapping[str, str], plan: Plan) -> Iterator[Source]:
    """Give where a strategy's environments come from. Raises: StrategyError."""
    if not strategy.under_node:
        with _copies(strategy, variables, plan) as copies:
            yield copies
        return
    try:
        with clients({**variables, "STORM_MAX_CONNECTIONS": str(plan.max_connections)}) as found:
            yield found
    except NodeError as error:
        raise StrategyError(str(error)) from error


@contextlib.contextmanager
def _copies(strategy: Strategy, variables: Mapping[str, str], plan: Plan) -> Iterator[Copies]:
    """Initialise one environment of a strategy's function, to be copied. Raises: StrategyError."""
    temporary = TemporaryFolder("storm")
    try:
        with Environment(
            temporary.path,
            strategy.handler,
            # Copied as if each had been initialised by itself: it knows of no snapshot.
            variables={"AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand", **variables},
            snap_start=True,
            timeout_s=plan.deadline_s,
            init_timeout_s=30.0,
            function_name="storm",
        ) as seed:
            yield Copies(seed.snapshot(), temporary.path / "log")
    except InitError as error:
        raise StrategyError(f"{strategy.name} cannot be initialised: {error}") from error
    finally:
        temporary.remove()


async def _let_loose(
    source: Source, plan: Plan, monitor: Monitor, watcher: Watcher, meanwhile: Callable[[], None] | None
) -> list[list[Outcome]]:
    """Return what came of the invocations, by round."""
    rounds: list[list[Outcome]] = []
    async with Fleet(
        source,
        plan.environments,
        deadline_s=plan.deadline_s,
        freeze=plan.freeze,
        reap_after_s=plan.reap_after_s,
        reuse=plan.reuse,
    ) as fleet:
        await fleet.grow(plan.environments, watcher.grown)

        async def invoke(fresh: bool) -> None:
            outcome = await fleet.invoke(plan.service_ms / 1000, plan.outside_ms / 1000, fresh=fresh)
            rounds[-1].append(outcome)
            watcher.answered(outcome)

        monitor.begin()
        beside = asyncio.create_task(asyncio.to_thread(meanwhile)) if meanwhile else None
        for one in plan.rounds:
            if rounds:
                await asyncio.sleep(_BETWEEN_ROUNDS_S)
            rounds.append([])
            begun = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for at in one.times_s:
                    if (ahead := at - (time.perf_counter() - begun)) > 0:
                        await asyncio.sleep(ahead)
                    group.create_task(invoke(one.fresh))
        if beside is not None:
            await beside
        monitor.end()
    return rounds


def _result(
    strategy: Strategy,
    endpoint: str,
    rounds: Sequence[Sequence[Outcome]],
    monitor: Monitor,
    pinned: int | None,
    committed: int,
) -> results.Strategy:
    outcomes = [one for each in rounds for one in each]
    failures = Counter(one.failure for one in outcomes if one.failure is not None)
    succeeded = len(outcomes) - failures.total()
    if committed < succeeded:
        raise StrategyError(f"{strategy.name}: {succeeded} reported that they were answered, but {committed} committed")
    latencies_ms = [one.latency_s * 1000 for one in outcomes]
    return results.Strategy(
        name=strategy.name,
        title=strategy.title,
        endpoint=endpoint,
        ours=strategy.ours,
        invocations=len(outcomes),
        succeeded=succeeded,
        failures=dict(failures.most_common()),
        latency_ms=results.Latency.of(latencies_ms),
        latency_histogram=results.Histogram.of(latencies_ms),
        connections=monitor.connections,
        connects=len(monitor.log.connects),
        refused=monitor.log.refused,
        connects_per_s=monitor.connects_per_s,
        pinned=pinned,
        database_cpu_s=monitor.cpu_s,
        answered=[sum(one.failure is None for one in each) for each in rounds],
        connect_times_s=monitor.connect_times_s,
        wall_s=round(monitor.wall_s, 2),
    )
