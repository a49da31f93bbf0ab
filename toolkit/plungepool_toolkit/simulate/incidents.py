"""
Incidents that their owners have published, as samples: what is known of each, and what had to be assumed to replay it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .curves import Curve
from .model import Costs, Database, Function


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One incident."""

    name: str
    title: str
    sources: tuple[str, ...]
    published: tuple[str, ...]
    assumed: tuple[str, ...]
    #: The strategy they had.
    theirs: str
    database: Database
    function: Function
    environments: int
    curve: Curve
    #: Connections that the fleet is given where it is asked whether fewer had held.
    cap: int


INCIDENTS = {
    one.name: one
    for one in (
        Incident(
            name="veda",
            title="NASA's VEDA, 2026-09-09: 845 connections on two vCPUs",
            sources=(
                "https://github.com/NASA-IMPACT/veda-backend/issues/646",
                "https://github.com/NASA-IMPACT/veda-backend/pull/649",
            ),
            published=(
                "about 38 requests a second, one connection an environment, RDS Proxy at 100 % of max_connections",
                "db.r5.large: 2 vCPUs, max_connections about 1,700 from its memory",
                "900 environments, 845 connections, down for about 33 minutes; Lambda's time-out 30 s",
                "3,505 orphaned statements an hour went on after their clients had timed out",
                "what set it off was how many connections were open at once, not the rate",
            ),
            assumed=(
                "40 ms of CPU a request: 38 a second need 1.5 of the 2 vCPUs",
                "each process beyond the cores takes 0.1 % of the CPU for itself",
                "a cold cache at the beginning: 100 requests a second for 12 seconds",
                "two of the 33 minutes are replayed",
            ),
            theirs="queue-pool",
            database=Database(
                limit=1700,
                cores=2.0,
                overhead=0.001,
                endpoint="proxy",
                costs=Costs(statement_s=0.040),
            ),
            function=Function(service_s=0.1, in_transaction=False, deadline_s=30.0),
            environments=1000,
            curve=Curve(
                ((0, 38), (10, 38), (11, 100), (23, 100), (24, 38), (120, 38)),
                rate=True,
            ),
            cap=40,
        ),
        Incident(
            name="flashcards",
            title="flashcards-open-source-app, 2026-08-29: 110 environments, 110 connections",
            sources=(
                "https://github.com/kirill-markin/flashcards-open-source-app/pull/1635",
                "https://github.com/kirill-markin/flashcards-open-source-app/pull/1630",
            ),
            published=(
                "ConcurrentExecutions went to 110, DatabaseConnections to 110 in the same minute",
                "db.t4g.micro: max_connections about 112, of which 109 can be used",
                "no reserved concurrency; a pool without a limit of its own, about one connection an environment",
                "every request that needed the database answered 503 until the burst was over",
            ),
            assumed=(
                "the burst wanted 130 at once, of which the database let 110 through, for a minute",
                "two seconds of handler, its transaction over before; 4 ms of CPU a request; 2 vCPUs",
                "a deadline of 15 s",
            ),
            theirs="queue-pool",
            database=Database(limit=109, cores=2.0, costs=Costs(statement_s=0.004)),
            function=Function(service_s=2.0, in_transaction=False),
            environments=1000,
            curve=Curve(((0, 4), (30, 4), (50, 130), (110, 130), (130, 4), (160, 4))),
            cap=109,
        ),
        Incident(
            name="boardsesh",
            title="boardsesh, 2026-08-29: ten idle connections an instance",
            sources=(
                "https://github.com/boardsesh/boardsesh/issues/4861",
                "https://github.com/boardsesh/boardsesh/pull/4860",
            ),
            published=(
                "max_connections 200; an instance on Vercel holds up to 10 connections that idle for 30 s",
                "about 940 times an hour: too many clients already",
                "mostly a crawler's page views; another service starved beside them",
            ),
            assumed=(
                "each of an instance's ten connections is an environment of its own, as it serves as many at once",
                "a crawler's burst every five minutes: 10 seconds with as many as 205 at once",
                "two seconds a page, its transaction over before; 8 ms of CPU a page; a deadline of 15 s",
                "4 vCPUs, and 197 of the connections for them",
            ),
            theirs="queue-pool",
            database=Database(limit=197, cores=4.0, costs=Costs(statement_s=0.008)),
            function=Function(service_s=2.0, in_transaction=False, idle_s=30.0),
            environments=1000,
            curve=Curve(
                (
                    *((0, 20), (100, 20), (102, 205), (110, 205), (112, 20)),
                    *((400, 20), (402, 205), (410, 205), (412, 20), (600, 20)),
                )
            ),
            cap=197,
        ),
    )
}
