"""
A shop in real Lambda environments, frozen between invocations, while everything around it fails; and what came of it.

By a seed: what each environment is asked in which order, and which fault comes when. Not by it: how the processes, the
server and the kernel interleave; so a seed that found something finds it often again, and not always.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Self

from cluster import Cluster
from elsewhere import wait_until
from history.checker import Finding
from history.faults import Faults
from history.ledger import Books, Delivery, Request, judge
from history.rotation import Rotation
from poolers import pgbouncer

from plungepool_toolkit.environment import Environment, Invocation
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.processes import Closing
from plungepool_toolkit.rds_proxy import Address, RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TIMEOUT_S = 4.0
# How much longer than an invocation a transaction may be seen, on a machine that is busy with other things.
LATE_S = 5.0
STOCK = 10_000_000
SKUS = 4
# Lists of each level: a worker goes on to the next few after so many requests, so that none grows for ever.
LISTS, LISTS_AT_A_TIME, REQUESTS_A_LIST = 900, 3, 120
FIXED_PASSWORD = "unmistakable-fixed-password"

_TABLES = """
CREATE TABLE product (sku text PRIMARY KEY, stock integer NOT NULL);
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text, sku text REFERENCES product, quantity integer
);
CREATE TABLE shipment (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, order_key text);
CREATE TABLE list (name text PRIMARY KEY, elements integer[] NOT NULL DEFAULT '{}');
CREATE ROLE fixed LOGIN; CREATE ROLE rotating LOGIN; CREATE ROLE pooled LOGIN;
GRANT ALL ON ALL TABLES IN SCHEMA public TO fixed, rotating, pooled;
"""
_GRANTS = """
GRANT USAGE ON SCHEMA plungepool TO fixed, rotating, pooled;
GRANT ALL ON ALL TABLES IN SCHEMA plungepool TO fixed, rotating, pooled;
"""
# Behind a pooler the server is not told of the deadline; a commit that waits for the standby waits for the server.
_TOO_LATE = """
SELECT pid, usename::text, state, query, extract(epoch FROM clock_timestamp() - xact_start)::float
FROM pg_stat_activity
WHERE usename IN ('fixed', 'rotating') AND xact_start < clock_timestamp() - make_interval(secs => $1)
AND wait_event IS DISTINCT FROM 'SyncRep'
"""
_CONNECTIONS = "SELECT usename::text, state, query FROM pg_stat_activity WHERE usename IN ('fixed', 'rotating')"


@dataclass(kw_only=True)
class Report:
    """What a run found, and how much it did."""

    handlers: str
    seed: int
    findings: list[Finding] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        def listed(counter: Counter[str]) -> str:
            return ", ".join(f"{count} {name}" for name, count in counter.most_common()) or "none"

        lines = [
            f"{self.handlers}, seed {self.seed}",
            f"  deliveries: {listed(self.outcomes)}",
            f"  faults: {listed(self.faults)}",
            f"  findings: {listed(Counter(finding.kind for finding in self.findings))}",
        ]
        lines += [f"    {finding.kind}: {finding.what}" for finding in self.findings[:40]]
        return "\n".join(lines)


def side_by_side(*reports: Report) -> str:
    """Return a table of what each run found, a line a kind."""
    counts = [Counter(finding.kind for finding in report.findings) for report in reports]
    kinds = sorted({kind for counter in counts for kind in counter})
    rows = [("", *(report.handlers for report in reports))]
    rows.append(("deliveries", *(str(report.outcomes.total()) for report in reports)))
    rows.append(("faults", *(str(report.faults.total()) for report in reports)))
    rows += [(kind, *(str(counter[kind]) for counter in counts)) for kind in kinds]
    rows.append(("findings", *(str(counter.total()) for counter in counts)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def run(handlers: Literal["ours", "naive"], *, seed: int, seconds: float) -> Report:
    """
    Have the shop work for so many seconds while it is disturbed, and judge it.

    Args: handlers: which of the folders beside this file.
    Blocks: for about half a minute longer than `seconds`.
    """
    with Shop(handlers, seed) as shop:
        return shop.work(seconds)


class Worker:
    """One environment and who invokes it: makes requests up, delivers them, and again what is to be delivered again."""

    def __init__(self, number: int, seed: int, environment: Environment, report: Report) -> None:
        self.number, self.environment = number, environment
        self.requests: list[Request] = []
        #: what others have delivered already, or deliver right now: queues deliver twice
        self.inbox: deque[Request] = deque()
        self.interfered_at = 0.0
        # A process that was killed while it was frozen is missed by the next invocation only.
        self._began_before = 0.0
        self.busy = False
        self.neighbour = self
        self._chance = random.Random(f"{seed} worker {number}")
        self._report = report
        self._to_fulfil: deque[str] = deque()
        self._values = 0
        self._weights = (25, 8, 25, 20, 12, 3, *((3, 6) if report.handlers == "ours" else (0, 0)))

    @property
    def pid(self) -> int | None:
        """The environment's process; None where there is none just now."""
        with contextlib.suppress(RuntimeError, AssertionError):
            return self.environment.pid
        return None

    def run(self, over: threading.Event) -> None:
        """Make requests and deliver them until it is over."""
        while not over.is_set():
            self.deliver(self.inbox.popleft() if self.inbox else self._next())
            over.wait(self._chance.choice((0.0, 0.0, 0.01, 0.05, 0.3)))

    def settle(self) -> None:
        """Deliver an order, which now has to be taken at once, and what is still to be delivered."""
        last = self._order("the last")
        self.requests.append(last)
        self._invoke(last)
        if last.outcome != "committed":
            reason = last.deliveries[-1].reason
            self._report.findings.append(
                Finding("not recovered", f"{last.name} was not taken, all being well: {reason}")
            )
        while self.inbox:
            self._invoke(self.inbox.popleft())

    def deliver(self, request: Request) -> None:
        """Deliver a request; what may happen only once again later, if its outcome is unknown."""
        if request.event["key"] and self._chance.random() < 0.1:
            self.neighbour.inbox.append(request)
        # Some have hardly any time, so that the deadline strikes anywhere.
        outcome = self._invoke(request, self._chance.uniform(0.1, 0.8) if self._chance.random() < 0.12 else TIMEOUT_S)
        again = outcome == "unknown" or (outcome == "failed" and self._chance.random() < 0.5)
        if again and request.event["key"] and len(request.deliveries) < 8:
            self.inbox.append(request)
        elif outcome == "committed" and request.event["do"] == "order":
            self._to_fulfil.append(request.event["key"])

    def _next(self) -> Request:
        kind = self._chance.choices(
            ("order", "fulfil", "transact", "begin", "autocommit", "change mind", "leak", "strike"), self._weights
        )[0]
        if kind == "fulfil" and not self._to_fulfil:
            kind = "order"
        name = f"{self.number}-{len(self.requests)}"
        if kind == "order":
            request = self._order(name)
        elif kind == "fulfil":
            order = self._to_fulfil.popleft()
            request = Request(name=name, event={"do": kind, "key": f"fulfil {order}", "order": order})
        else:
            request = self._transaction(name, kind)
        self.requests.append(request)
        return request

    def _order(self, name: str) -> Request:
        sku = f"sku-{self._chance.randrange(SKUS)}"
        event = {
            "do": "order",
            "key": f"order {self.number} {name}",
            "sku": sku,
            "quantity": self._chance.randrange(1, 5),
        }
        return Request(name=f"order {self.number} {name}", event=event | {"pause_s": self._pause()})

    def _transaction(self, name: str, kind: str) -> Request:
        level, prefix = self._chance.choice((("READ COMMITTED", "c"), ("REPEATABLE READ", "r"), ("SERIALIZABLE", "s")))
        if kind == "autocommit":
            level, prefix = "READ COMMITTED", "c"
        operations: list[tuple[str, str, int | None]] = []
        at = LISTS_AT_A_TIME * (len(self.requests) // REQUESTS_A_LIST)
        for _ in range(1 if kind == "autocommit" else self._chance.choice((1, 2, 2, 3, 4))):
            one = f"{prefix}{(at + self._chance.randrange(LISTS_AT_A_TIME)) % LISTS}"
            if kind == "autocommit" or self._chance.random() < 0.6:
                self._values += 1
                operations.append(("append", one, self.number * 1_000_000 + self._values))
            else:
                operations.append((self._chance.choice(("read", "read", "read by rows")), one, None))
        key = name if kind == "transact" else None
        pause_s = self._chance.uniform(0.0, 0.01) if kind == "strike" else self._pause()
        event = {"do": kind, "key": key, "level": level, "operations": operations, "pause_s": pause_s}
        return Request(name=name, event=event)

    def _pause(self) -> float:
        return self._chance.choice((0.0, 0.0, 0.0, 0.0, 0.02, 0.2))

    def _invoke(self, request: Request, timeout_s: float = TIMEOUT_S) -> str:
        self.environment.timeout_s = timeout_s
        began = time.monotonic()
        self.busy = True
        invocation = self.environment.invoke(request.event)
        self.busy = False
        delivery = Delivery(began=began, ended=time.monotonic(), outcome="unknown")
        if invocation.error is None:
            payload = invocation.payload
            delivery.outcome = payload["outcome"]
            delivery.reads, delivery.reason = payload.get("reads"), payload.get("reason", "")
        else:
            self._judge_failure(request, delivery, invocation, hurried=timeout_s < TIMEOUT_S)
        self._began_before = began
        self._report.outcomes[delivery.outcome] += 1
        if delivery.reason:
            self._report.reasons[delivery.reason[:100]] += 1
        request.deliveries.append(delivery)
        return delivery.outcome

    def _judge_failure(self, request: Request, delivery: Delivery, invocation: Invocation, *, hurried: bool) -> None:
        error = invocation.error or {}
        kind, text = str(error.get("errorType")), str(error.get("errorMessage"))
        delivery.reason = f"{kind}: {text}"[:300]
        if self.interfered_at >= self._began_before or (hurried and kind == "Sandbox.Timedout"):
            return
        if kind == "Sandbox.Timedout":
            self._report.findings.append(Finding("hung", f"{request.name}: {text}"))
        elif self._report.handlers == "naive" and not kind.startswith("Runtime."):
            delivery.outcome = "failed"  # it has answered that it has not done it
        else:
            trace = " ".join("".join(error.get("stackTrace") or ())[-300:].split())
            self._report.findings.append(Finding("unexpected error", f"{request.name}: {delivery.reason} {trace}"))


class Shop(Closing):
    """The database, what leads to it, and the environments; a context manager."""

    def __init__(self, handlers: Literal["ours", "naive"], seed: int) -> None:
        self._handlers, self._seed = handlers, seed
        self._report = Report(handlers=handlers, seed=seed)
        self._stack = contextlib.ExitStack()
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._cluster = stack.enter_context(Cluster({"deadlock_timeout": "100ms"}, proxies=3))
            self._prepare()
            self._rotation = stack.enter_context(Rotation("rotating", self._set_password))
            behind = self._cluster.proxies[2]
            port = stack.enter_context(
                pgbouncer(
                    SimpleNamespace(host=behind.host, port=behind.port),  # type: ignore[arg-type]
                    users={"pooled": FIXED_PASSWORD},
                    server_login_retry=0.2,
                    default_pool_size=4,
                )
            )
            self._front = stack.enter_context(ChaosProxy("127.0.0.1", port))
            self._rds_proxy = stack.enter_context(
                RdsProxy(Address(behind.host, behind.port), users={"pooled": FIXED_PASSWORD}, borrow_timeout_s=2)
            )
            self._environments = stack.enter_context(contextlib.ExitStack())
            for number, variables in enumerate(self._fleet()):
                environment = Environment(
                    HERE / self._handlers, variables=variables, timeout_s=TIMEOUT_S, init_timeout_s=60
                )
                self._environments.enter_context(environment)
                self._workers.append(Worker(number, self._seed, environment, self._report))
            for worker, other in zip(self._workers, [*self._workers[1:], self._workers[0]], strict=True):
                worker.neighbour = other
            self._stack = stack.pop_all()
        return self

    def close(self) -> None:
        """End all of it."""
        self._stack.close()

    def work(self, seconds: float) -> Report:
        """Work, be disturbed, recover, close, and judge."""
        chance = random.Random(f"{self._seed} faults")
        calm, over, watched = threading.Event(), threading.Event(), threading.Event()
        proxies = [*self._cluster.proxies, self._front]
        faults = Faults(chance, calm, self._cluster, proxies, self._rotation, self._workers)
        watching = _started(self._watch, watched)
        working = [_started(worker.run, over) for worker in self._workers]
        disturbing = _started(faults.run)
        time.sleep(seconds)
        calm.set()
        disturbing.join()
        over.set()
        if disturbing.failure is not None:  # a server may be down for good: what comes next would only say that
            raise disturbing.failure
        for thread in working:
            thread.join()
        self._report.faults = faults.done
        if self._handlers == "ours":
            for thread in [_started(worker.settle) for worker in self._workers]:
                thread.join()
            self._look_at_connections(len(self._workers) + 1, "there are more connections than the pools may have")
            self._look_at_logs()
        watched.set()
        watching.join()
        self._environments.close()
        self._look_at_connections(0, "a connection is left after the environments were shut down")
        for thread in (*working, disturbing, watching):
            if thread.failure is not None:
                raise thread.failure
        requests = [request for worker in self._workers for request in worker.requests]
        self._report.findings += judge(requests, self._books())
        return self._report

    def _fleet(self) -> Iterable[dict[str, str]]:
        fixed, rotating, _ = self._cluster.proxies
        if self._handlers == "naive":
            for proxy in (fixed, rotating, fixed, rotating):
                url = f"postgresql+pg8000://fixed:{FIXED_PASSWORD}@{proxy.host}:{proxy.port}/postgres"
                yield {"DATABASE_URL": url}
            return
        common = {"PLUNGEPOOL_TLS": "disable", "PLUNGEPOOL_DEADLINE_MARGIN_S": "1.5"}
        direct = common | {"PLUNGEPOOL_HOST": fixed.host, "PLUNGEPOOL_PORT": str(fixed.port)}
        direct |= {"PLUNGEPOOL_USER": "fixed", "PLUNGEPOOL_PASSWORD": FIXED_PASSWORD}
        secret = common | {"PLUNGEPOOL_HOST": rotating.host, "PLUNGEPOOL_PORT": str(rotating.port)}
        secret |= self._rotation.variables()
        pooled = common | {"PLUNGEPOOL_HOST": self._front.host, "PLUNGEPOOL_PORT": str(self._front.port)}
        pooled |= {
            "PLUNGEPOOL_USER": "pooled",
            "PLUNGEPOOL_PASSWORD": FIXED_PASSWORD,
            "PLUNGEPOOL_ENDPOINT": "proxy",
        }
        yield direct
        yield direct | {"PLUNGEPOOL_PING_AFTER_IDLE_S": "0.05", "PLUNGEPOOL_MAX_AGE_S": "3"}
        yield direct | {"PLUNGEPOOL_POOL_SIZE": "2"}
        yield secret
        yield secret | {"PLUNGEPOOL_POOL": "null"}
        yield pooled
        yield self._rds_proxy.variables("pooled") | {"PLUNGEPOOL_DEADLINE_MARGIN_S": "1.5"}

    def _set_password(self, role: str, password: str) -> None:
        self._cluster.primary.execute(f"ALTER ROLE {role} PASSWORD '{password}'")

    def _prepare(self) -> None:
        execute = self._cluster.primary.execute
        once = ROOT / "functions" / "prepare_database" / "migrations" / "003_exactly_once.sql"
        for statements in (_TABLES, once.read_text(), _GRANTS):
            execute(statements)
        self._set_password("fixed", FIXED_PASSWORD)
        self._set_password("pooled", FIXED_PASSWORD)
        execute(f"INSERT INTO product SELECT 'sku-' || n, {STOCK} FROM generate_series(0, {SKUS - 1}) n")
        execute(
            f"INSERT INTO list (name) SELECT level || n FROM unnest('{{c,r,s}}'::text[]) level, "
            f"generate_series(0, {LISTS - 1}) n"
        )

    def _books(self) -> Books:
        execute = self._cluster.primary.execute
        read_at = time.monotonic()
        return Books(
            orders=[(key, quantity) for key, quantity in execute("SELECT key, quantity FROM orders")],
            shipments=[key for [key] in execute("SELECT order_key FROM shipment")],
            lists={name: tuple(elements) for name, elements in execute("SELECT name, elements FROM list")},
            stock=execute("SELECT sum(stock)::bigint FROM product")[0][0],
            stock_at_first=STOCK * SKUS,
            read_at=read_at,
        )

    def _watch(self, over: threading.Event) -> None:
        """Look for transactions that go on beyond the end of any invocation that may have begun them."""
        told = set()
        while not over.wait(0.3):
            rows: list[list[Any]] = []
            with contextlib.suppress(Exception):  # the server is away just now
                rows = self._cluster.primary.execute(_TOO_LATE, TIMEOUT_S + LATE_S)
            for pid, role, state, query, age_s in rows:
                if pid not in told:
                    told.add(pid)
                    what = f"a transaction of {role} is {state} after {age_s:.1f} s: {query[:100]}"
                    self._report.findings.append(Finding("beyond its deadline", what))

    def _look_at_connections(self, at_most: int, otherwise: str) -> None:
        rows: list[list[Any]] = []

        def are_few() -> bool:
            rows[:] = self._cluster.primary.execute(_CONNECTIONS)
            return len(rows) <= at_most

        try:
            wait_until(are_few, within_s=15)
        except AssertionError:
            self._report.findings.append(Finding("connections", f"{otherwise}: {len(rows)}, not {at_most}: {rows}"))

    def _look_at_logs(self) -> None:
        passwords = {FIXED_PASSWORD, *self._rotation.passwords}
        for worker in self._workers:
            lines = worker.environment.log
            for at, line in enumerate(lines):
                if any(password in line for password in passwords):
                    self._report.findings.append(Finding("secret", "a password is in the log of an environment"))
                if "Traceback" not in line and "Exception ignored" not in line:
                    continue
                traceback = _traceback(lines[at:])
                # The runtime has its own, as of an answer that came too late; a strike in a finalizer can only be
                # printed.
                ours = any("/plungepool/plungepool/" in one for one in traceback)
                if ours and "Struck" not in traceback[-1]:
                    self._report.findings.append(Finding("logged", " | ".join(traceback[-6:])[:1200]))


def _traceback(lines: Sequence[str]) -> list[str]:
    """Return the lines of the traceback that begins here, the error's own the last."""
    end = next((at for at, line in enumerate(lines) if at and line[:1].strip()), len(lines) - 1)
    return [line.strip() for line in lines[: end + 1]]


class _Thread(threading.Thread):
    """A thread whose failure is kept for who waits for it."""

    failure: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except BaseException as failure:
            self.failure = failure


def _started(function: Callable[..., object], *arguments: object) -> _Thread:
    thread = _Thread(target=function, args=arguments, name=function.__name__, daemon=True)
    thread.start()
    return thread
