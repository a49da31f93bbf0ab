"""
How long the invocation after a freeze takes, by what happened to the peer meanwhile: Plungepool, and stock SQLAlchemy.

    .venv/bin/python bench/recovery.py                              measures and prints, in about five minutes
    .venv/bin/python bench/recovery.py --write docs/recovery.md     writes the page, too

Each contender is a function in the real runtime client, stopped by SIGSTOP between two invocations (bench/thawed):
Plungepool's engine is the one that `get_engine()` returns, SQLAlchemy's has psycopg and pool_pre_ping. A function is
thawed to a server that is there again, or to another one; what happened lies before. Only `full` goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pg8000.native
from measure import ROOT, conditions

from plungepool_toolkit.environment import Environment
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import Address, RdsProxy

sys.path.append(str(ROOT / "tests" / "shared"))  # PgBouncer as the tests run it
from poolers import pgbouncer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT_S = 15.0
CONTENDERS = {"plungepool": "Plungepool", "psycopg": "SQLAlchemy + psycopg, pre-ping"}


@dataclass
class Place:
    """Where the functions connect to: the network before it, and before the writer, which may fail over."""

    kind: str
    front: ChaosProxy
    back: ChaosProxy
    first: Postgres
    second: Postgres
    ca_file: Path | None = None

    def variables(self, contender: str) -> dict[str, str]:
        """Return the environment variables by which a contender reaches it."""
        host = "localhost" if self.ca_file else self.front.host
        found = {"BENCH_CONTENDER": contender}
        if contender == "plungepool":
            found |= {
                "PLUNGEPOOL_URL": f"postgresql://app@{host}:{self.front.port}/postgres",
                "PLUNGEPOOL_PASSWORD": "secret",
                "PLUNGEPOOL_ENDPOINT": "direct" if self.kind == "direct" else "proxy",
                # As after a freeze of more than half a minute, which nobody has the time for here.
                "PLUNGEPOOL_PING_AFTER_IDLE_S": "0",
            }
            return found | (
                {"PLUNGEPOOL_CA_FILE": str(self.ca_file)} if self.ca_file else {"PLUNGEPOOL_TLS": "disable"}
            )
        options: dict[str, Any] = {} if self.kind == "direct" else {"prepare_threshold": None}
        if self.ca_file:
            options |= {"sslmode": "verify-full", "sslrootcert": str(self.ca_file)}
        url = f"postgresql+psycopg://app:secret@{host}:{self.front.port}/postgres"
        return found | {"BENCH_URL": url, "BENCH_OPTIONS": json.dumps(options)}


@contextlib.contextmanager
def serve() -> Iterator[tuple[Postgres, Postgres]]:
    """Run a writer and what it may fail over to."""
    with Postgres({"max_connections": 20}) as first, Postgres() as second:
        for server in (first, second):
            server.execute("CREATE ROLE app LOGIN PASSWORD 'secret'")
            server.execute("CREATE TABLE written (n int)")
            server.execute("GRANT ALL ON written TO app")
        yield first, second


@contextlib.contextmanager
def direct(first: Postgres, second: Postgres) -> Iterator[Place]:
    """Reach the server itself."""
    with ChaosProxy(first.host, first.port) as network:
        yield Place("direct", network, network, first, second)


@contextlib.contextmanager
def bouncer(first: Postgres, second: Postgres) -> Iterator[Place]:
    """Reach it through PgBouncer, which pools transactions."""
    with (
        ChaosProxy(first.host, first.port) as back,
        pgbouncer(back, users={"app": "secret"}) as port,  # type: ignore[arg-type]
        ChaosProxy("127.0.0.1", port) as front,
    ):
        yield Place("PgBouncer", front, back, first, second)


@contextlib.contextmanager
def stand_in(first: Postgres, second: Postgres) -> Iterator[Place]:
    """Reach it through the stand-in for RDS Proxy, by TLS and SCRAM."""
    with (
        ChaosProxy(first.host, first.port) as back,
        RdsProxy(Address(back.host, back.port), auth="scram", users={"app": "secret"}) as proxy,
        ChaosProxy(proxy.host, proxy.port) as front,
    ):
        yield Place("RDS Proxy (stand-in)", front, back, first, second, proxy.ca_file)


# What happens while the function is frozen. Each returns a context that lasts until it has been invoked.


@contextlib.contextmanager
def closed(place: Place) -> Iterator[None]:
    """The connection was ended in good order, as by an idle time-out of the endpoint's."""
    place.front.hang_up()
    yield


@contextlib.contextmanager
def reset(place: Place) -> Iterator[None]:
    """It was reset."""
    place.front.reset()
    yield


@contextlib.contextmanager
def silent(place: Place) -> Iterator[None]:
    """It was forgotten, by a NAT gateway for example: what is sent has no answer. New connections work."""
    place.front.swallow()
    yield


@contextlib.contextmanager
def failover(place: Place) -> Iterator[None]:
    """The writer is gone and its address leads to another: directly without a word, behind a pooler as it sees it."""
    if place.kind == "direct":
        place.front.swallow()
    else:
        place.back.hang_up()
    place.back.upstream = (place.second.host, place.second.port)
    yield
    place.back.upstream = (place.first.host, place.first.port)
    place.back.hang_up()


@contextlib.contextmanager
def restart(place: Place) -> Iterator[None]:
    """The writer was restarted, and is there again."""
    place.first.restart()
    yield


@contextlib.contextmanager
def full(place: Place) -> Iterator[None]:
    """The connection was ended, and others took every slot that the server has (53300), and keep them."""
    place.back.hang_up()
    fillers: list[Any] = []
    try:
        with contextlib.suppress(pg8000.exceptions.DatabaseError):
            while True:
                fillers.append(
                    pg8000.native.Connection("app", host=place.first.host, port=place.first.port, database="postgres")
                )
        yield
    finally:
        for filler in fillers:
            filler.close()


STORIES: dict[str, Callable[[Place], contextlib.AbstractContextManager[None]]] = {
    "closed": closed,
    "reset": reset,
    "silent": silent,
    "failover": failover,
    "restart": restart,
    "full": full,
}


def start(contender: str, place: Place) -> Environment:
    """Return an environment of the contender's function."""
    folder = Path(__file__).with_name("thawed")
    return Environment(folder, variables=place.variables(contender), timeout_s=TIMEOUT_S, init_timeout_s=60)


def outcome(environment: Environment) -> tuple[float, str]:
    """Invoke; return the seconds that it took, and what came of it."""
    invocation = environment.invoke({"n": 1})
    if invocation.error is not None and invocation.error["errorType"] == "Sandbox.Timedout":
        return TIMEOUT_S, "Lambda's time-out"
    if invocation.error is not None:
        raise RuntimeError(f"the function failed by itself: {invocation.error}\n" + "\n".join(invocation.log))
    return invocation.duration_s, str(invocation.payload)


def cell(results: list[tuple[float, str]]) -> str:
    """Return what stands in the table for some rounds: the median, or what went wrong at least once."""
    bad = [one for one in results if one[1] != "answered"]
    if bad:
        seconds, what = max(bad)
        return f"{what} after {shown(seconds)}" + (
            f" ({len(bad)} of {len(results)})" if len(bad) < len(results) else ""
        )
    return shown(statistics.median(seconds for seconds, _ in results))


def shown(seconds: float) -> str:
    """Return a time as the table has it."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def measure(place: Place, rounds: int, only: list[str]) -> dict[str, list[str]]:
    """Return a row for each story, with a cell for each contender."""
    table: dict[str, list[str]] = {}
    for contender in CONTENDERS:
        with start(contender, place) as environment:
            for name in only:
                results: list[tuple[float, str]] = []
                while len(results) < rounds:
                    while (warm := outcome(environment))[1] != "answered":  # a pooler may be slow to find its server
                        print(f"    not yet: {warm}", file=sys.stderr)
                        time.sleep(0.5)
                    with STORIES[name](place):
                        results.append(outcome(environment))
                    if results[-1][0] > 1:  # it waited for something, and would so again
                        break
                table.setdefault(name, []).append(cell(results))
                print(f"{place.kind}: {name}: {contender}: {table[name][-1]}", file=sys.stderr)
    return table


INTRODUCTION = (
    "How long the first invocation after a freeze takes, depending on what happened to its kept connection during the "
    "freeze: the time until a row is written, or the error. Each function runs in the real runtime client and is "
    "stopped between two invocations. Plungepool uses `get_engine()` and `guard_invocation` with their defaults, "
    "except that it pings each kept connection, as after a freeze longer than PLUNGEPOOL_PING_AFTER_IDLE_S. "
    "SQLAlchemy uses its own pool, psycopg 3 with its defaults, and `pool_pre_ping`, whose ping has no time-out. "
    "Each function has a time-out of {timeout:g} seconds. The network and the servers are on the same machine."
)
TOLD = {
    "closed": "the endpoint closed the connection normally.",
    "reset": "the network reset the connection.",
    "silent": "a device in between has dropped the connection without notice. What is sent on it gets no response, and "
    "new connections work. Plungepool waits at most two seconds for a ping.",
    "failover": "the address leads to another server. With a direct endpoint, the old server has disappeared without "
    "closing the connection. Behind a pooler, it has disappeared for the pooler.",
    "restart": "the server was restarted and is available again.",
    "full": "the server has no free slot (53300), and this does not change. Plungepool retries until the deadline, and "
    "then raises the error.",
}


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of what takes less than a second (default 5)")
    parser.add_argument("--only", nargs="*", default=list(STORIES), choices=list(STORIES), help="these stories")
    parser.add_argument("--places", nargs="*", default=["direct", "bouncer", "stand_in"], help="these endpoints")
    parser.add_argument("--write", type=Path, help="write the table to this page")
    options = parser.parse_args()
    tables: dict[str, dict[str, list[str]]] = {}
    with serve() as (first, second):
        (version,) = first.execute("SHOW server_version")[0]
        for name in options.places:
            with globals()[name](first, second) as place:
                tables[place.kind] = measure(place, options.rounds, options.only)
    lines = ["| endpoint | what happened | " + " | ".join(CONTENDERS.values()) + " |"]
    lines.append("|---|---|" + "---|" * len(CONTENDERS))
    for kind, table in tables.items():
        lines += [f"| {kind} | {name} | " + " | ".join(cells) + " |" for name, cells in table.items()]
    parts = [
        "# After a freeze: how long the next invocation takes",
        INTRODUCTION.format(timeout=TIMEOUT_S),
        (
            f"{conditions('sqlalchemy', 'psycopg', server=version)}; the median of {options.rounds} rounds, or one "
            "round if an invocation takes longer than a second. To repeat the measurement, run `.venv/bin/python "
            "bench/recovery.py --write docs/recovery.md`."
        ),
        "\n".join(lines),
        "\n".join(f"- {name}: {told}" for name, told in TOLD.items()),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
