"""
Record what a dashboard shows: a small fleet on a real PostgreSQL behind the stand-in for RDS Proxy, a spike amid.

    .venv/bin/python tests/infrastructure/record_metrics.py

writes recorded_metrics.json beside it: of each metric one value a period, by namespace, name, resource and statistic.
What AWS would measure is measured here where it arises: sessions at the server, connections at the stand-in,
invocations, throttles and durations at the functions, ages at a queue. A period is a second here and a minute on AWS.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

import plungepool
from plungepool import Settings, Unavailable, build_engine, guard_invocation
from plungepool_toolkit.lambda_context import LambdaContext
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE = Path(__file__).with_name("recorded_metrics.json")
PERIODS, SPIKE = 24, range(8, 15)
RESERVED = {"HandleOrdersFunction": 13, "FulfilOrdersFunction": 5, "ReportSalesFunction": 1}
LIMIT, ALLOWED, PASSWORD = 20, 6, "of-the-role"
Key = tuple[str, str, str, str]


class Fleet:
    """Functions with environments of their own, each with one engine; what they do is counted as CloudWatch does."""

    def __init__(self, server: Postgres, proxy: RdsProxy) -> None:
        self.server, self.proxy = server, proxy
        variables = proxy.variables("plungepool_app")
        self._settings = Settings.from_env(variables | {"PLUNGEPOOL_CHECKOUT_TIMEOUT_S": "2"})
        self._idle: dict[str, list[Engine]] = defaultdict(list)
        self._lock = threading.Lock()
        self.orders: queue.Queue[float] = queue.Queue()
        self.dead = 0
        self.values: dict[Key, list[float]] = defaultdict(list)
        self._seen: dict[Key, list[float]] = defaultdict(list)
        self._busy: dict[str, int] = defaultdict(int)

    def see(self, namespace: str, metric: str, of: str, value: float) -> None:
        """Note a sample of a metric in the period that runs."""
        with self._lock:
            self._seen[namespace, metric, of, ""].append(value)

    def end_period(self) -> None:
        """Make the statistics of a period of its samples; no sample is no event."""
        with self._lock:
            seen, self._seen = self._seen, defaultdict(list)
        for namespace, metric, of, kinds in METRICS:
            samples = seen.get((namespace, metric, of, ""), [])
            for kind in kinds:
                calculate = statistics.fmean if (metric, kind) in SAMPLED else STATISTICS[kind]
                self.values[namespace, metric, of, kind].append(round(calculate(samples), 3) if samples else 0)

    def invoke(self, function: str, statement: str) -> bool:
        """Invoke a function once, in an idle environment or a new one; False where it was throttled."""
        with self._lock:
            throttled = self._busy[function] >= RESERVED[function]
            if not throttled:
                self._busy[function] += 1
            engine = self._idle[function].pop() if self._idle[function] and not throttled else None
        if throttled:
            self.see("AWS/Lambda", "Throttles", function, 1)
            return False
        self.see("AWS/Lambda", "ConcurrentExecutions", function, self._busy[function])
        engine = engine or build_engine(self._settings)
        began = time.time()
        failed = 0
        try:
            with engine.begin() as connection:
                connection.execute(text(statement))
        except Unavailable:
            failed = 1
        finally:
            with self._lock:
                self._busy[function] -= 1
                self._idle[function].append(engine)
        self.see("AWS/Lambda", "Duration", function, (time.time() - began) * 1000)
        if function == "HandleOrdersFunction":  # which answers 503
            self.see("AWS/ApiGateway", "Count", "Api", 1)
            self.see("AWS/ApiGateway", "5xx", "Api", failed)
        else:
            self.see("AWS/Lambda", "Errors", function, failed)
        return not failed

    def take_order(self) -> None:
        """A request: it is answered, and its order waits for a worker."""
        if self.invoke("HandleOrdersFunction", "SELECT count(*) FROM generate_series(1, 60000)"):
            self.orders.put(time.time())

    def work(self, ended: threading.Event) -> None:
        """A poller of the queue: what fails comes again, and is dead after the fifth time."""
        while not ended.is_set():
            try:
                sent = self.orders.get(timeout=0.1)
            except queue.Empty:
                continue
            for _ in range(5):
                if self.invoke("FulfilOrdersFunction", "SELECT pg_sleep(0.1)"):
                    break
            else:
                self.dead += 1
            self.see("AWS/SQS", "ApproximateAgeOfOldestMessage", "Orders", time.time() - sent)

    def sample(self, ended: threading.Event) -> None:
        """Look ten times a period at the server, the stand-in and the queues."""
        refused, idle = 0, idle_s()
        with self.server.session() as run:
            while not ended.wait(0.1):
                [[opened, busy, waits]] = run(SESSIONS)
                before, idle = idle, idle_s()
                cpu = max(0.0, 100 * (1 - (idle[1] - before[1]) / (idle[0] - before[0]) / (os.cpu_count() or 1)))
                self.see("AWS/RDS", "DatabaseConnections", "Instance", opened)
                self.see("AWS/RDS", "DBLoadRelativeToNumVCPUs", "Instance", busy / (os.cpu_count() or 1))
                self.see("AWS/RDS", "DBLoadNonCPU", "Instance", waits)
                self.see("AWS/RDS", "CPUUtilization", "Instance", cpu)
                self.see(
                    "AWS/RDS", "FreeableMemory", "Instance", os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
                )
                counters = self.proxy.counters
                self.see("AWS/RDS", "MaxDatabaseConnectionsAllowed", "Proxy", ALLOWED)
                self.see("AWS/RDS", "DatabaseConnections", "Proxy", counters.database_connections)
                self.see("AWS/RDS", "DatabaseConnectionsCurrentlyBorrowed", "Proxy", busy)
                self.see("AWS/RDS", "ClientConnections", "Proxy", counters.clients)
                before_now, refused = refused, sum(counters.refused.values())
                self.see("AWS/RDS", "ClientConnectionsSetupFailedAuth", "Proxy", refused - before_now)
                # Whoever is pinned here stays connected, and so pinned, to the end.
                pinned = sum(counters.pinned.values())
                self.see("AWS/RDS", "DatabaseConnectionsCurrentlySessionPinned", "Proxy", pinned)
                self.see("AWS/RDS", "DatabaseConnectionsSetupFailed", "Proxy", 0)
                self.see("AWS/SQS", "ApproximateNumberOfMessagesVisible", "Orders", self.orders.qsize())
                self.see("AWS/SQS", "ApproximateNumberOfMessagesVisible", "DeadOrders", self.dead)
                self.see("AWS/SQS", "ApproximateNumberOfMessagesVisible", "LostReports", 0)

    def invoke_guarded(self, ended: threading.Event) -> None:
        """
        Invoke a function in an environment that is a process of its own, and read the metrics that it prints.

        Only such a process has one invocation at a time, as Lambda has it, whose numbers are its own.
        """
        variables = self.proxy.variables("plungepool_app") | {
            "PLUNGEPOOL_METRICS": "on",
            "POWERTOOLS_METRICS_NAMESPACE": "Plungepool",
            "POWERTOOLS_SERVICE_NAME": "shop",
        }
        command = [sys.executable, __file__, "--environment"]
        with subprocess.Popen(
            command, env=os.environ | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            reader = threading.Thread(target=self._read_metrics, args=(process.stdout,))
            reader.start()
            begins, told = time.time(), set[str]()
            while not ended.wait(0.1):
                asked = "SELECT count(*) FROM generate_series(1, 20000)"
                for once, at in ONCE.items():
                    if once not in told and time.time() - begins >= at:
                        told.add(once)
                        asked = once
                process.stdin.write(f"{asked}\n")
                process.stdin.flush()
            process.stdin.close()
            reader.join()

    def _read_metrics(self, lines: Iterable[str]) -> None:
        for line in lines:
            blob = json.loads(line)
            for group in blob["_aws"]["CloudWatchMetrics"]:
                assert (group["Namespace"], blob["service"]) == ("Plungepool", "shop")
                for metric in group["Metrics"]:
                    values = blob[metric["Name"]]
                    for value in values if isinstance(values, list) else [values]:
                        self.see("Plungepool", metric["Name"], "shop", value)

    def wait_for_connections(self, ended: threading.Event) -> None:
        """Ask through the proxy, over and over, and time what it takes, nearly all of it the wait for a connection."""
        engine = build_engine(self._settings)
        while not ended.wait(0.05):
            began = time.time()
            try:
                with engine.begin() as connection:
                    connection.execute(text("SELECT 1"))
            except Unavailable:
                pass
            self.see("AWS/RDS", "DatabaseConnectionsBorrowLatency", "Proxy", (time.time() - began) * 1e6)


def idle_s() -> tuple[float, float]:
    """Return the time, and how long this machine's processors have been idle since it started, together."""
    with open("/proc/stat") as file:
        fields = file.readline().split()
    return time.time(), (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def environment() -> None:
    """Be an environment: an invocation for each line of standard input, a statement; metrics go to standard output."""
    engine, kept = build_engine(Settings.from_env(os.environ)), []

    @guard_invocation
    def handler(event: str, context: LambdaContext) -> None:
        if event == LEAK:
            kept.append(engine.connect())
            return
        with engine.begin() as connection:
            connection.execute(text(event))

    for line in sys.stdin:
        with contextlib.suppress(Unavailable, DBAPIError):
            handler(line.strip(), LambdaContext(timeout_s=1.5))


LEAK = "a connection is kept"
# What the environment does once, so many seconds after it began: it leaks, runs out of time, pins, and makes a mistake.
ONCE = {LEAK: 4, "SELECT pg_sleep(3)": 10, "CREATE TEMPORARY TABLE kept (a int)": 16, "SELECT 1 / 0": 18}
SESSIONS = """
SELECT count(*)::int, count(*) FILTER (WHERE state <> 'idle')::int,
       count(*) FILTER (WHERE state = 'active' AND wait_event_type IS NOT NULL)::int
FROM pg_stat_activity WHERE usename = 'plungepool_app'
"""
STATISTICS: dict[str, Any] = {
    "Sum": sum,
    "Average": statistics.fmean,
    "Maximum": max,
    "p99": lambda samples: sorted(samples)[int(len(samples) * 0.99)],
}
_FUNCTIONS = ("HandleOrdersFunction", "FulfilOrdersFunction", "ReportSalesFunction")
OF_PROXY = (
    "MaxDatabaseConnectionsAllowed", "DatabaseConnections", "DatabaseConnectionsCurrentlyBorrowed", "ClientConnections",
    "DatabaseConnectionsCurrentlySessionPinned", "ClientConnectionsSetupFailedAuth", "DatabaseConnectionsSetupFailed",
)  # fmt: skip
# AWS reports these once a minute, and sums over the proxy's machines; here one machine is looked at ten times.
SAMPLED = {(metric, "Sum") for metric in OF_PROXY[:5]}
METRICS: list[tuple[str, str, str, tuple[str, ...]]] = [
    *(("AWS/Lambda", "Errors", one, ("Sum",)) for one in _FUNCTIONS),
    *(("AWS/Lambda", "Throttles", one, ("Sum",)) for one in _FUNCTIONS),
    *(("AWS/Lambda", "ConcurrentExecutions", one, ("Maximum",)) for one in _FUNCTIONS),
    *(("AWS/Lambda", "Duration", one, ("p99",)) for one in _FUNCTIONS),
    ("AWS/ApiGateway", "5xx", "Api", ("Sum",)),
    ("AWS/ApiGateway", "Count", "Api", ("Sum",)),
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible", "Orders", ("Maximum",)),
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible", "DeadOrders", ("Maximum",)),
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible", "LostReports", ("Maximum",)),
    ("AWS/SQS", "ApproximateAgeOfOldestMessage", "Orders", ("Maximum",)),
    ("AWS/RDS", "DatabaseConnections", "Instance", ("Maximum",)),
    *(("AWS/RDS", one, "Instance", ("Average",)) for one in ("DBLoadRelativeToNumVCPUs", "DBLoadNonCPU")),
    *(("AWS/RDS", one, "Instance", ("Average",)) for one in ("CPUUtilization", "FreeableMemory")),
    *(("AWS/RDS", one, "Proxy", ("Sum",)) for one in OF_PROXY),
    ("AWS/RDS", "DatabaseConnectionsBorrowLatency", "Proxy", ("Average", "Maximum")),
    *(("Plungepool", one, "shop", ("p99",)) for one in ("DatabaseTime", "DatabaseConnectTime", "DatabaseCheckoutWait")),
    ("Plungepool", "DatabaseRoundTrips", "shop", ("Average", "p99")),
    *(("Plungepool", f"Database{one}", "shop", ("Sum",)) for one in (
        "Connects", "ConnectsFailed", "Reconnects", "CheckoutsFailed", "Errors", "DeadlinesExceeded", "ConnectionsLost",
        "Leaks", "PoolExhausted", "SlowQueries", "Pins", "ConnectionsKept", "ConnectionsClosed",
    )),
]  # fmt: skip


def record() -> dict[str, Any]:
    """Run the fleet for PERIODS seconds, and return what was measured."""
    with (
        Postgres(settings={"max_connections": 40}, authentication="scram-sha-256") as server,
        RdsProxy(
            server,
            auth="scram",
            users={"plungepool_app": PASSWORD},
            max_database_connections=ALLOWED,
            borrow_timeout_s=1.0,
        ) as proxy,
    ):
        server.execute(f"CREATE ROLE plungepool_app LOGIN CONNECTION LIMIT {LIMIT} PASSWORD '{PASSWORD}'")
        fleet, ended, arrivals = Fleet(server, proxy), threading.Event(), random.Random(1)
        helpers = [
            fleet.sample,
            fleet.wait_for_connections,
            fleet.invoke_guarded,
            *[fleet.work] * RESERVED["FulfilOrdersFunction"],
        ]
        with ThreadPoolExecutor(80) as pool:
            running = [pool.submit(helper, ended) for helper in helpers]
            for period in range(PERIODS):
                ends, rate = time.time() + 1.0, 60 if period in SPIKE else 8
                if period == PERIODS // 2:
                    pool.submit(
                        fleet.invoke, "ReportSalesFunction", "CREATE TEMPORARY TABLE sales AS SELECT pg_sleep(0.8)"
                    )
                while (left := ends - time.time()) > 0:
                    pool.submit(fleet.take_order)
                    time.sleep(min(left, arrivals.expovariate(rate)))
                fleet.end_period()
            ended.set()
        for one in running:
            one.result()
    return {
        "format": "plungepool-metrics/1",
        "command": ".venv/bin/python tests/infrastructure/record_metrics.py",
        "date": time.strftime("%Y-%m-%d"),
        "version": getattr(plungepool, "__version__", ""),
        "period": "a second here, a minute on AWS",
        "series": {"|".join(key): values for key, values in sorted(fleet.values.items())},
    }


if __name__ == "__main__" and sys.argv[1:] == ["--environment"]:
    environment()
elif __name__ == "__main__":
    FILE.write_text(json.dumps(record(), indent=1).replace("\n   ", " ").replace("\n  ]", "]") + "\n", encoding="utf-8")
