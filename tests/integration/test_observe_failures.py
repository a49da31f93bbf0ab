"""
Each class of failure, driven through a function in the real runtime client: exactly the metrics and the lines that
docs/observe.md promises of it, and no value of a parameter in any line.
"""

from __future__ import annotations

import json
import re
import socketserver
import sys
import threading
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from elsewhere import wait_until

from plungepool.metrics import METRICS
from plungepool.observe import FIELDS
from plungepool_toolkit.environment import Environment
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from plungepool_toolkit.environment import Invocation

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "observe.md").read_text(encoding="utf-8")
SECRET = "unmistakable-4711"
SELECT = "SELECT CAST(:secret AS text)"
# The resolver of a VPC leads one name to wherever the test's file says.
FUNCTION = """
import contextlib, json, logging, os, pathlib, socket, threading, time

logging.getLogger("plungepool").setLevel("DEBUG")
look_up = socket.getaddrinfo

def getaddrinfo(host, port, *arguments, **options):
    if host == "shop.internal":
        host, port = json.loads(pathlib.Path(os.environ["SHOP_INTERNAL"]).read_text())
    return look_up(host, port, *arguments, **options)

socket.getaddrinfo = getaddrinfo

from plungepool import fleet, get_engine, guard_invocation, observe, run_transaction
from sqlalchemy import text

# Who waits for the end of a lease has not to wait for half a minute.
fleet._LEASES_S, fleet.GRACE_S = (0.3, 0.3, 0.3), 0.1
engine = get_engine()
held = []

def execute(connection, event, sql=None):
    sql = sql or event["sql"]
    return connection.execute(text(sql), {"secret": event["secret"]} if ":secret" in sql else {})

def ask(event):
    with engine.begin() as connection:
        execute(connection, event)

def catch(event):
    with contextlib.suppress(Exception):
        ask(event)

def take_two(event):
    with engine.begin() as one, engine.begin() as other:
        execute(one, event)
        execute(other, event, event.get("then"))

def keep(event):
    held.append(engine.connect())
    execute(held[-1], event)

def use_what_was_kept(event):
    execute(held[-1], event)

def go_on(event):
    with engine.begin() as connection:
        with contextlib.suppress(Exception):
            execute(connection, event)

def come_late(event):
    time.sleep(0.6)
    ask(event)

def wait(event):
    with engine.begin() as connection:
        other = threading.Thread(target=ask, args=(event,))
        other.start()
        while not engine.pool._line:
            time.sleep(0.001)
    other.join()

def pause(event):
    with engine.begin() as connection:
        execute(connection, event)
        time.sleep(0.5)
        execute(connection, event)

def run(event):
    run_transaction(engine, lambda connection: execute(connection, event))

def fail_to_listen(event):
    def listener(tally):
        raise KeyError(event["secret"])
    observe.listen(listener)
    ask(event)

def deadlock(event):
    lock = "SELECT n FROM {} FOR UPDATE"
    meet, failures = threading.Barrier(2), []

    def work(first, second):
        try:
            with engine.begin() as connection:
                execute(connection, event, lock.format(first))
                meet.wait()
                execute(connection, event, lock.format(second))
        except Exception as failure:
            failures.append(failure)

    other = threading.Thread(target=work, args=("counters", "others"))
    other.start()
    work("others", "counters")
    other.join()
    raise failures[0]

def conflict(event):
    others = [1]
    def transaction(connection):
        execute(connection, event, "SELECT n FROM counters")
        while others:
            with engine.begin() as other:
                other.execute(text(f"UPDATE counters SET n = n + {others.pop()}"))
        execute(connection, event, "UPDATE counters SET n = n + 1")
    run_transaction(engine.execution_options(isolation_level="REPEATABLE READ"), transaction)

@guard_invocation
def handler(event, context):
    globals()[event["do"]](event)
"""

# What an invocation has that goes well, whether it opens a connection or keeps one.
ORDINARY = {
    *("DatabaseCheckouts", "DatabaseConnects", "DatabaseConnectTime", "DatabaseRoundTrips", "DatabaseTime"),
    *("DatabaseRows", "DatabaseConnectionsKept", "DatabaseConnectionsClosed"),
}
KEPT = {"DatabaseCheckouts", "DatabaseRoundTrips", "DatabaseTime", "DatabaseConnectionsKept"}
LOST = KEPT - {"DatabaseConnectionsKept"} | {"DatabaseConnectionsClosed"}
ROWS = {"DatabaseRows"}
CONNECT = {"DatabaseConnects", "DatabaseConnectTime"}
NO_CONNECTION = {"DatabaseConnectTime"}


class Place:
    """A database behind a network, another one, and a name that leads to the one or the other."""

    def __init__(self, first: Postgres, second: Postgres, network: ChaosProxy, name: Path, proxy: RdsProxy) -> None:
        self.first, self.second, self.network, self.name, self.proxy = first, second, network, name, proxy
        self.lead_to(first)

    def lead_to(self, server: Postgres) -> None:
        """Have the name lead to a server."""
        self.name.write_text(json.dumps([server.host, server.port]))

    def sessions(self, role: str = "app") -> list[int]:
        """Return the server's processes for the function."""
        return [pid for (pid,) in self.first.execute("SELECT pid FROM pg_stat_activity WHERE usename = $1", role)]

    def terminate(self) -> None:
        """End the function's sessions."""
        for pid in self.sessions():
            self.first.execute(f"SELECT pg_terminate_backend({pid}, 60000)")

    def wait_for(self, statement: str) -> None:
        """Wait until the server executes one that begins so."""
        sql = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND usename = 'app' AND query ILIKE $1"
        wait_until(lambda: self.first.execute(sql, f"{statement}%"))


NOTHING = MappingProxyType[str, str]({})


class Case(NamedTuple):
    """How it is brought about, and what of an ordinary invocation is in its metrics all the same."""

    what: str
    ordinary: set[str]
    event: Mapping[str, str] = NOTHING
    variables: Mapping[str, str] = NOTHING
    #: events of invocations before it, in the same environment
    before: tuple[Mapping[str, str], ...] = (NOTHING,)
    strike: Callable[[Place], object] | None = None
    #: runs while the function does
    meanwhile: Callable[[Place], object] | None = None
    afterwards: Callable[[Place], object] | None = None
    timeout_s: float = 60.0
    #: the metrics of which it is not 1: times, and how often something was tried again
    several: tuple[str, ...] = ()


def role(name: str, host: str = "{host}") -> dict[str, str]:
    """Return the variables of a function that signs in as this role."""
    return {"PLUNGEPOOL_URL": f"postgresql://{name}@{host}:{{port}}/postgres"}


def wait_out_the_lease(place: Place) -> None:
    """Freeze for longer than the server lets it idle."""
    time.sleep(0.5)


def hold_the_only_one(place: Place) -> None:
    """Take the one connection that the role may have."""
    holders.append(place.first.session(user="few"))
    holders[-1].__enter__()


def release_it(place: Place) -> None:
    """Give it back, once the function was refused."""
    wait_until(lambda: 'too many connections for role "few"' in place.first.log)
    holders.pop().__exit__(None, None, None)


def cut(statement: str) -> Callable[[Place], object]:
    """Return what cuts the network while the server executes a statement."""

    def act(place: Place) -> None:
        place.wait_for(statement)
        place.network.reset()

    return act


class _NotPostgres(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(100)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def answer_by_http(place: Place) -> None:
    """Have another service listen where the database was."""
    web = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _NotPostgres)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    services.append(web)
    place.network.upstream = web.server_address  # type: ignore[assignment]


def answer_by_postgres(place: Place) -> None:
    """Have the database listen there again."""
    place.network.upstream = (place.first.host, place.first.port)
    web = services.pop()
    web.shutdown()
    web.server_close()


holders: list[Any] = []
services: list[socketserver.ThreadingTCPServer] = []
KILLED = "Lambda ends the function at its time-out"
TWO = {"do": "take_two"}
SLEEP = {"sql": "SELECT pg_sleep(30), :secret ::text"}
TLS = {"PLUNGEPOOL_TLS": "verify-full"}
ADAPTIVE = {"PLUNGEPOOL_POOL": "adaptive", "PLUNGEPOOL_FLEET_LIMIT": "50"}
RETRIED = ("DatabaseConnectsFailed", "DatabaseConnectRetries", "DatabaseErrors")

CASES = [
    Case(
        "a kept connection was too old",
        KEPT | ROWS | CONNECT,
        variables={"PLUNGEPOOL_MAX_AGE_S": "0.05"},
        strike=lambda _: time.sleep(0.1),
    ),
    Case("the server had ended a kept connection", KEPT | ROWS | CONNECT, strike=Place.terminate),
    Case(
        "an idle time-out struck a kept connection",
        KEPT | ROWS | CONNECT,
        variables=role("idler"),
        strike=lambda place: wait_until(lambda: not place.sessions("idler")),
    ),
    Case(
        "a kept connection did not answer",
        KEPT | ROWS | CONNECT,
        variables={"PLUNGEPOOL_PING_AFTER_IDLE_S": "0", "PLUNGEPOOL_SLOW_QUERY_S": "30"},
        strike=lambda place: place.network.swallow(),
    ),
    Case("a kept connection was reset", KEPT | ROWS | CONNECT, strike=lambda place: place.network.reset()),
    Case("a kept connection was closed", KEPT | ROWS | CONNECT, strike=lambda place: place.network.hang_up()),
    Case(
        "the lease of a kept connection was over",
        LOST | ROWS | CONNECT,
        variables=ADAPTIVE,
        before=({}, {}),
        strike=wait_out_the_lease,
    ),
    Case(
        "the writer's name leads elsewhere",
        KEPT | ROWS | CONNECT,
        variables=role("app", "shop.internal") | {"PLUNGEPOOL_POOL_SIZE": "2"},
        before=({}, {"do": "take_two", "moves": "yes"}),
    ),
    Case("a kept connection was asked", KEPT | ROWS, variables={"PLUNGEPOOL_PING_AFTER_IDLE_S": "0"}),
    Case(
        "the database was full for a moment",
        KEPT | ROWS | CONNECT,
        variables=role("few"),
        before=(),
        strike=hold_the_only_one,
        meanwhile=release_it,
        several=RETRIED,
    ),
    Case(
        "the database is full",
        NO_CONNECTION,
        variables=role("closed"),
        before=(),
        timeout_s=2.0,
        several=RETRIED,
    ),
    Case(
        "the database is full, and the handler answers",
        NO_CONNECTION,
        event={"do": "catch"},
        variables=role("closed"),
        before=(),
        timeout_s=2.0,
        several=RETRIED,
    ),
    Case(
        "the database cannot be reached",
        NO_CONNECTION,
        before=(),
        strike=lambda place: place.network.refuse(),
        afterwards=lambda place: place.network.accept(),
        timeout_s=2.0,
        several=RETRIED,
    ),
    Case(
        "the network is silent until the deadline",
        NO_CONNECTION,
        variables={"PLUNGEPOOL_CONNECT_TIMEOUT_S": "20"},
        before=(),
        strike=lambda place: place.network.partition(),
        afterwards=lambda place: place.network.heal(),
        timeout_s=2.0,
    ),
    Case("the name is not known", NO_CONNECTION, variables=role("app", "nowhere.invalid") | TLS, before=()),
    Case("the server offers no TLS", NO_CONNECTION, variables=TLS, before=()),
    Case(
        "the login is refused",
        NO_CONNECTION,
        variables=role("postgres") | {"PLUNGEPOOL_PASSWORD": SECRET},
        before=(),
    ),
    Case(
        "there are no credentials",
        set(),
        variables=TLS | {"PLUNGEPOOL_AUTH": "iam", "PLUNGEPOOL_PASSWORD": ""},
        before=(),
    ),
    Case(
        "what answers is no PostgreSQL",
        NO_CONNECTION,
        before=(),
        strike=answer_by_http,
        afterwards=answer_by_postgres,
    ),
    Case(
        "the proxy has no connection",
        LOST | KEPT | ROWS | CONNECT,
        event=TWO,
        variables={"PROXY": "yes", "PLUNGEPOOL_POOL_SIZE": "2"},
        before=(),
    ),
    Case(
        "a thread waits for the other's connection",
        KEPT | ROWS,
        event={"do": "wait"},
        several=("DatabaseCheckoutWait",),
    ),
    Case(
        "the pool is empty",
        {"DatabaseCheckouts", "DatabaseConnectionsKept"},
        event=TWO,
        variables={"PLUNGEPOOL_CHECKOUT_TIMEOUT_S": "0.1"},
        several=("DatabaseCheckoutWait",),
    ),
    Case("a connection leaks", LOST | ROWS, event={"do": "keep"}),
    Case("a leak, where leaks raise", LOST | ROWS, event={"do": "keep"}, variables={"PLUNGEPOOL_LEAKS": "raise"}),
    Case("a connection is used after its end", set(), event={"do": "use_what_was_kept"}, before=({"do": "keep"},)),
    Case(
        "the deadline passes while a statement is executed",
        LOST,
        event=SLEEP,
        variables={"PLUNGEPOOL_SLOW_QUERY_S": "30"},
        timeout_s=2.0,
    ),
    Case("the deadline has passed before a checkout", set(), event={"do": "come_late"}, timeout_s=1.0),
    Case(
        KILLED,
        {"DatabaseCheckouts"},
        event=SLEEP,
        variables={"PLUNGEPOOL_DEADLINE": "off"},
        timeout_s=1.0,
    ),
    Case(
        "the server ends a session in use",
        LOST,
        event=SLEEP,
        meanwhile=lambda place: (place.wait_for("SELECT pg_sleep"), place.terminate()),
    ),
    Case(
        "an idle time-out strikes in a transaction",
        LOST | ROWS | CONNECT,
        event={"do": "pause"},
        variables=role("idler"),
        before=(),
    ),
    Case(
        "the network is cut in a statement",
        LOST,
        event=SLEEP,
        meanwhile=cut("SELECT pg_sleep"),
    ),
    Case(
        "the network is cut in a COMMIT",
        LOST,
        event={"do": "run", "sql": "INSERT INTO slowly VALUES (:secret)"},
        meanwhile=cut("COMMIT"),
    ),
    Case("the server refuses a value", KEPT, event={"sql": "SELECT CAST(:secret AS int)"}),
    Case(
        "a statement took too long",
        KEPT | CONNECT,
        event=SLEEP,
        variables={"PLUNGEPOOL_STATEMENT_TIMEOUT_S": "0.2"},
        before=(),
    ),
    Case(
        "a lock was not free in time",
        KEPT | ROWS | CONNECT,
        event=TWO | {"sql": "SELECT n FROM counters FOR UPDATE", "then": "SELECT n FROM counters FOR UPDATE"},
        variables=role("impatient") | {"PLUNGEPOOL_POOL_SIZE": "2"},
        before=(),
    ),
    Case(
        "two transactions lock each other out",
        KEPT | ROWS | CONNECT,
        event={"do": "deadlock"},
        # The server looks for it after a second.
        variables={"PLUNGEPOOL_POOL_SIZE": "2", "PLUNGEPOOL_SLOW_QUERY_S": "30"},
        before=(),
    ),
    Case(
        "two transactions are in conflict",
        KEPT | ROWS | CONNECT,
        event={"do": "conflict"},
        variables={"PLUNGEPOOL_POOL_SIZE": "2"},
        before=(),
    ),
    Case("an error was swallowed", KEPT, event={"do": "go_on", "sql": "SELECT CAST(:secret AS int)"}),
    Case(
        "the server only reads",
        LOST | CONNECT,
        event={"sql": "INSERT INTO slowly VALUES (:secret)"},
        variables=role("reader"),
        before=(),
    ),
    Case(
        "a tenant is missing",
        {"DatabaseCheckouts", "DatabaseConnectionsKept"} | CONNECT,
        variables={"PLUNGEPOOL_REQUIRE_SETTINGS": "app.tenant_id"},
        before=(),
    ),
    Case(
        "a statement pins the proxy",
        KEPT,
        event={"sql": f"SET plungepool.test = '{SECRET}'"},
        variables={"PLUNGEPOOL_ENDPOINT": "proxy"},
    ),
    Case(
        "a statement would pin the proxy, and is refused",
        {"DatabaseCheckouts", "DatabaseConnectionsKept"},
        event={"sql": f"SET plungepool.test = '{SECRET}'"},
        variables={"PLUNGEPOOL_ENDPOINT": "proxy", "PLUNGEPOOL_PINNING": "refuse"},
    ),
    Case(
        "a statement was slow",
        KEPT,
        event={"sql": "SELECT n FROM counters WHERE n::text <> :secret AND (SELECT pg_sleep(0.1)) IS NULL"},
        variables={"PLUNGEPOOL_SLOW_QUERY_S": "0.08"},
    ),
    Case(
        "an adaptive pool asks for a ticket, and has it",
        KEPT | ROWS | CONNECT,
        variables=ADAPTIVE,
    ),
    Case(
        "an adaptive pool may hold no ticket",
        LOST | ROWS | CONNECT,
        variables=ADAPTIVE | {"PLUNGEPOOL_URL": "postgresql://app@{host}:{port}/locked"},
    ),
    Case(
        "the connection is in plain text",
        KEPT | ROWS | CONNECT,
        variables=role("app", "shop.internal"),
        before=(),
    ),
    Case("a listener fails", KEPT | ROWS, event={"do": "fail_to_listen"}),
    Case("a connection is opened", KEPT | ROWS | CONNECT, before=()),
    Case("a connection is used again", KEPT | ROWS),
    Case("no connection is kept", LOST | ROWS | CONNECT, variables={"PLUNGEPOOL_POOL": "null"}),
]


class Promise(NamedTuple):
    """A row of the page."""

    metrics: set[str]
    beside: dict[str, set[str]]
    lines: list[str]


def promises() -> dict[str, Promise]:
    """Return what the page promises of each class of failure."""
    table = PAGE.partition("## What a failure leaves behind")[2].partition("\n## ")[0]
    found = {}
    for row in re.findall(r"^\| (?!what happens|---)(.*) \|$", table, re.MULTILINE):
        what, metrics, beside, lines = (cell.strip() for cell in row.split(" | "))
        fields = {
            name: set(re.findall(r"`(.*?)`", values)) for name, values in re.findall(r"(\w+) ((?:`.*?`,? ?)+)", beside)
        }
        found[what] = Promise(
            set(re.findall(r"`(\w+)`", metrics)), fields, [one for one in lines.split("<br>") if one != "-"]
        )
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Roles of every sort, a table whose COMMIT takes its time, and one of one row."""
    name = tmp_path_factory.mktemp("names") / "shop.internal"
    with Postgres() as first, Postgres() as second, ChaosProxy(first.host, first.port) as network:
        for server in (first, second):
            server.execute("CREATE ROLE app LOGIN")
        first.execute(
            "CREATE ROLE closed LOGIN CONNECTION LIMIT 0; CREATE ROLE few LOGIN CONNECTION LIMIT 1;"
            "CREATE ROLE impatient LOGIN; ALTER ROLE impatient SET lock_timeout = '100ms';"
            "CREATE ROLE reader LOGIN; ALTER ROLE reader SET default_transaction_read_only = on;"
            "CREATE ROLE idler LOGIN; ALTER ROLE idler SET idle_session_timeout = '100ms';"
            "ALTER ROLE idler SET idle_in_transaction_session_timeout = '100ms';"
            "CREATE TABLE counters AS SELECT 1 AS n; CREATE TABLE others AS SELECT 1 AS n;"
            "CREATE TABLE slowly (secret text);"
            "CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN PERFORM pg_sleep(30); RETURN new; END';"
            "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON slowly DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION be_slow();"
            "GRANT ALL ON counters, others, slowly TO PUBLIC"
        )
        first.execute("CREATE DATABASE locked")
        with first.session(database="locked") as session:
            session("REVOKE EXECUTE ON FUNCTION pg_try_advisory_lock(int, int) FROM PUBLIC")
        one = {"max_database_connections": 1, "borrow_timeout_s": 0.2}
        with RdsProxy(first, auth="scram", users={"app": SECRET}, **one) as proxy:
            yield Place(first, second, network, name, proxy)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The function's folder."""
    folder = tmp_path_factory.mktemp("task") / "orders"
    folder.mkdir()
    (folder / "app.py").write_text(FUNCTION)
    return folder


def invoke(case: Case, place: Place, task: Path) -> Invocation:
    """Bring it about in an environment of its own, and return what the function has answered and logged."""
    variables = {
        "PLUNGEPOOL_PASSWORD": "not asked for",
        "PLUNGEPOOL_TLS": "disable",
        "PLUNGEPOOL_METRICS": "on",
        "PLUNGEPOOL_RECORDER": "on",
        "POWERTOOLS_METRICS_NAMESPACE": "Shop",
        "POWERTOOLS_SERVICE_NAME": "orders",
        "SHOP_INTERNAL": str(place.name),
        **role("app"),
        **case.variables,
    }
    if variables.pop("PROXY", None):
        variables |= place.proxy.variables("app") | TLS
    variables["PLUNGEPOOL_URL"] = variables["PLUNGEPOOL_URL"].format(host=place.network.host, port=place.network.port)
    place.lead_to(place.first)
    with Environment(task, variables=variables, timeout_s=60.0) as environment:
        for earlier in case.before:
            if "moves" in earlier:
                place.lead_to(place.second)
            environment.invoke({"do": "ask", "sql": SELECT, "secret": SECRET} | earlier)
        environment.timeout_s = case.timeout_s
        try:
            if case.strike is not None:
                case.strike(place)
            thread = threading.Thread(target=case.meanwhile, args=(place,)) if case.meanwhile else None
            if thread is not None:
                thread.start()
            invocation = environment.invoke({"do": "ask", "sql": SELECT, "secret": SECRET} | case.event)
            if thread is not None:
                thread.join()
        finally:
            if case.afterwards is not None:
                case.afterwards(place)
    return invocation


def metrics(invocation: Invocation) -> dict[str, Any]:
    """Return its line of metrics; empty where it has none, since nothing was counted."""
    lines = [json.loads(line) for line in invocation.log if line.startswith('{"_aws"')]
    assert len(lines) <= 1
    return lines[0] if lines else {}


def logged(invocation: Invocation) -> list[str]:
    """Return the lines of the package, those of JSON by their format and what they are about."""
    found = []
    for line in invocation.log:
        level, *_, message = line.split("\t") if "\t" in line else ("", line)
        if not re.fullmatch(r"\[[A-Z]+\]", level):  # of the runtime's, or of a traceback
            continue
        if message.startswith("{"):
            document = json.loads(message)
            assert document["request_id"] == invocation.request_id
            message = document["plungepool"] + (f" {document['why']}" if "why" in document else "")
        found.append(f"{level.strip('[]')} {message}")
    return found


def matches(line: str, promised: str) -> bool:
    """Say whether a line is the one that the page quotes; … stands for anything."""
    pattern = ".*".join(re.escape(part) for part in promised.replace("`", "").split("…"))
    return re.fullmatch(pattern, line) is not None


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_each_failure_leaves_what_the_page_promises(case: Case, place: Place, task: Path) -> None:
    """Exactly these metrics, what stands beside them, and these lines; no value in any of them."""
    if case.what == KILLED and sys.version_info < (3, 12):
        pytest.skip("on Python 3.11 the runtime client's main thread hears no signal")
    promise = promises()[case.what]
    for _ in range(3):
        invocation = invoke(case, place, task)
        line = metrics(invocation)
        # On a busy machine the deadline may come within the last try, which is another row.
        if case.several != RETRIED or "DatabaseDeadlinesExceeded" not in line:
            break
    assert line.get("request_id", invocation.request_id) == invocation.request_id
    sent = {name: line[name][0] for name, _ in METRICS.values() if name in line}
    assert sent.keys() == promise.metrics | case.ordinary
    once = {name: amount for name, amount in sent.items() if name not in ORDINARY and name not in case.several}
    assert once == dict.fromkeys(once, 1)
    beside = {
        name: line[f"database_{name}"] for name in ("reconnects", "errors", "failure") if f"database_{name}" in line
    }
    assert {name: {value} if isinstance(value, str) else set(value) for name, value in beside.items()} == promise.beside
    lines = logged(invocation)
    assert len(lines) == len(promise.lines), lines
    assert [line for line, promised in zip(lines, promise.lines, strict=True) if not matches(line, promised)] == []
    assert SECRET not in "\n".join(invocation.log)


def test_a_connect_has_its_parts_beside_the_metrics(place: Place, task: Path) -> None:
    """As metadata, which costs no metric; they are parts of the whole."""
    line = metrics(invoke(Case("", set(), variables={"PROXY": "yes"}, before=()), place, task))
    parts = [line[f"database_{name}_ms"] for name in ("credentials", "name", "tcp", "tls", "authentication")]
    assert min(parts) > 0
    assert sum(parts[1:]) <= line["DatabaseConnectTime"][0]
    assert line["function_version"] == "$LATEST"


def test_the_page_promises_nothing_that_is_not_tried() -> None:
    """Each row is driven through a function above, and each number of the tally that is sent is in one of them."""
    assert {case.what for case in CASES} == promises().keys()
    shown = {name for promise in promises().values() for name in promise.metrics} | ORDINARY
    assert shown == {name for name, _ in METRICS.values()}
    # What is no metric: the parts of a connect, the cost of explaining (test_why.py), and the whole (test_observe.py).
    parts = {"credentials_s", "name_s", "tcp_s", "tls_s", "authentication_s"}
    assert {*FIELDS, "errors", "reconnects"} - METRICS.keys() == parts | {
        "explain_s",
        "explain_round_trips",
        "duration_s",
    }
