"""
What people set up wrongly, each in a real environment: the error's own text, or what docs/troubleshoot.md and
docs/runbook.md say of that text, names the cure.
"""

from __future__ import annotations

import functools
import http.server
import json
import re
import socket
import socketserver
import sys
import threading
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from pages import ROOT

from plungepool_toolkit.environment import Environment, InitError
from plungepool_toolkit.network import free_port
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import Credential, RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TROUBLESHOOT, RUNBOOK = ((ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("troubleshoot", "runbook"))
PASSWORD = "unmistakable-password"
AWS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "not-the-key-of-anybody"}
HANDLER = """
from plungepool import get_engine, guard_invocation
from sqlalchemy import text

engine = get_engine()


@guard_invocation
def handler(event, context):
    with engine.begin() as connection:
        return str(connection.execute(text(event)).all())
"""
QUERY = "SELECT status FROM orders WHERE id = 1"
WRITE = "INSERT INTO orders VALUES (2) RETURNING id"


class Denies(http.server.BaseHTTPRequestHandler):
    """Secrets Manager, to a role that may not read the secret."""

    def do_POST(self) -> None:
        """Answer as AWS does."""
        body = json.dumps({"__type": "AccessDeniedException", "Message": "not authorized to perform GetSecretValue"})
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing of a request."""


class BadRequest(socketserver.BaseRequestHandler):
    """What a web server makes of a request that is not HTTP."""

    def handle(self) -> None:
        """Answer it."""
        self.request.recv(8)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


class World:
    """A database with TLS and passwords, what stands for others, and a folder for the function."""

    def __init__(self, server: Postgres, folder: Path, stack: ExitStack) -> None:
        self.server, self.folder, self.stack = server, folder, stack
        self.source, self.sql, self.timeout_s = HANDLER, QUERY, 10.0
        self.options: dict[str, Any] = {}
        self.variables: dict[str, str | None] = {
            "PLUNGEPOOL_HOST": server.host,
            "PLUNGEPOOL_PORT": str(server.port),
            "PLUNGEPOOL_DATABASE": "shop",
            "PLUNGEPOOL_USER": "app",
            "PLUNGEPOOL_PASSWORD": PASSWORD,
            "PLUNGEPOOL_CA_FILE": str(server.ca_file),
        }

    def set(self, **variables: str | None) -> None:
        """Set variables of the function, or with None remove them; without their common prefix."""
        self.variables |= {f"PLUNGEPOOL_{name}": value for name, value in variables.items()}

    def unguarded(self) -> None:
        """Leave `guard_invocation` away."""
        self.source = HANDLER.replace("@guard_invocation\n", "")

    def silent_port(self, *, accepts: bool) -> str:
        """A port that takes connections and never answers, or whose packets go unanswered."""
        listener = self.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128 if accepts else 0))
        for _ in range(0 if accepts else 4):  # the queue is full: the kernel drops what comes
            waiting = self.stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        return str(listener.getsockname()[1])

    def serve(self, kind: type[socketserver.TCPServer], handler: type[socketserver.BaseRequestHandler]) -> str:
        """Start a service of another kind; return its port."""
        service = self.stack.enter_context(kind(("127.0.0.1", 0), handler))
        threading.Thread(target=service.serve_forever, daemon=True).start()
        self.stack.callback(service.shutdown)
        return str(service.server_address[1])

    def run(self) -> str:
        """Run the function once; return what its owner reads in the log."""
        (self.folder / "app.py").write_text(self.source)
        variables = {name: value for name, value in self.variables.items() if value is not None}
        try:
            with Environment(self.folder, variables=variables, timeout_s=self.timeout_s, **self.options) as environment:
                done = environment.invoke(self.sql)
        except InitError as error:
            return str(error)
        assert done.error is not None, f"it works: {done.payload}"
        return f"{done.error['errorType']}: {done.error['errorMessage']}"


def without_layer(world: World) -> None:
    """The runtime's Python, with its client and without what the layer holds."""
    runtime = world.folder / "runtime"
    runtime.mkdir()
    for name in ("awslambdaric", "snapshot_restore_py", "simplejson"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (runtime / name).symlink_to(Path(spec.origin).parent)
    client = find_spec("runtime_client")
    assert client is not None
    assert client.origin is not None
    (runtime / Path(client.origin).name).symlink_to(client.origin)
    world.options = {"python": Path(sys.base_prefix, "bin", "python3"), "python_path": [runtime]}


def other_sqlalchemy(world: World) -> None:
    """A copy that the function's requirements.txt brought along."""
    (world.folder / "sqlalchemy").mkdir()
    (world.folder / "sqlalchemy" / "__init__.py").write_text("__version__ = '1.4.54'")
    (world.folder / "sqlalchemy-1.4.54.dist-info").mkdir()


def of_libpq(world: World) -> None:
    """What psycopg read until now."""
    world.variables = {"PGHOST": world.server.host, "PGUSER": "app", "PGPASSWORD": PASSWORD}


def nobody_listens(world: World) -> None:
    """A port of this machine that is free."""
    world.set(PORT=str(free_port()), CHECKOUT_TIMEOUT_S="0.3", CONNECT_TIMEOUT_S="0.3")
    world.unguarded()


def plain_server(world: World) -> None:
    """A server without TLS, as on one's own machine."""
    plain = world.stack.enter_context(Postgres())
    world.set(HOST=plain.host, PORT=str(plain.port))


def secret_not_readable(world: World) -> None:
    """A function whose policy lacks the right to the secret."""
    arn = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:orders-AbCdEf"
    world.set(AUTH="secret", SECRET_ARN=arn, USER=None, PASSWORD=None)
    world.variables |= {
        **AWS,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{world.serve(http.server.ThreadingHTTPServer, Denies)}",
    }


def iam(world: World) -> None:
    """A role that was made without GRANT rds_iam."""
    world.set(AUTH="iam", PASSWORD=None)
    world.variables |= AWS


def proxy_without_secret(world: World) -> None:
    """An RDS Proxy that knows another user."""
    known = Credential(access_key_id=AWS["AWS_ACCESS_KEY_ID"], secret_access_key=AWS["AWS_SECRET_ACCESS_KEY"])
    users = {"other": PASSWORD}
    proxy = world.stack.enter_context(RdsProxy(world.server, users=users, credentials=[known], endpoints=["localhost"]))
    iam(world)
    world.set(PORT=str(proxy.port), CA_FILE=str(proxy.ca_file), ENDPOINT="proxy", REGION=proxy.region)


def full_role(world: World) -> None:
    """Another environment holds the only connection."""
    world.set(USER="last")
    world.timeout_s = 2.0
    world.stack.enter_context(world.server.session(user="last", database="shop", password=PASSWORD))


def nothing_answers(world: World) -> None:
    """A closed security group."""
    world.set(PORT=world.silent_port(accepts=False))
    world.timeout_s = 1.5


def nothing_answers_unguarded(world: World) -> None:
    """The same, in a handler that nothing guards, and before the connect's own time-out."""
    nothing_answers(world)
    world.unguarded()


def other_service(world: World) -> None:
    """A service that waits for its client to go on."""
    world.set(PORT=world.silent_port(accepts=True), CONNECT_TIMEOUT_S="0.3", CHECKOUT_TIMEOUT_S="0.3")
    world.unguarded()


def web_server(world: World) -> None:
    """A port of HTTP's."""
    world.set(PORT=world.serve(socketserver.ThreadingTCPServer, BadRequest))


def slow_statement(world: World) -> None:
    """A statement that takes longer than it may."""
    world.sql = "SELECT pg_sleep(9)"
    world.set(STATEMENT_TIMEOUT_S="0.2")


def reader(world: World) -> None:
    """An endpoint that only reads."""
    world.set(USER="reading")
    world.sql = WRITE


def nested(world: World) -> None:
    """A helper that takes a connection of its own."""
    world.set(CHECKOUT_TIMEOUT_S="0.2")
    world.source = HANDLER.replace("text(event)).all())", "text(event)).all()) + str(engine.connect())")


class SetUp(NamedTuple):
    """
    A wrong set-up: what it is, what makes it, how its error begins, whether that alone names the cure, and the cure.
    """

    what: str
    make: Callable[[World], object]
    says: str
    by: str
    cure: str


def variables(**wrong: str | None) -> Callable[[World], None]:
    """Return what sets variables, or removes them."""
    return lambda world: world.set(**wrong)


ITSELF, PAGE = "its text", "a page"
SET_UPS = [
    SetUp("no layer", without_layer, "No module named 'plungepool'", PAGE, "attach the layer"),
    SetUp("another SQLAlchemy in the function", other_sqlalchemy, "found 1.4.54", ITSELF, "from the function's requirements"),
    SetUp("a misspelt value", variables(POOL="adaptve"), "PLUNGEPOOL_POOL must be", ITSELF, "one of tiny, null, adaptive"),
    SetUp("variables of another library", of_libpq, "SettingsError", ITSELF, "PLUNGEPOOL_HOST is missing"),
    SetUp("a password in the URL", variables(HOST=None, PORT=None, DATABASE=None, USER=None, PASSWORD=None, URL="postgresql://app:pa/s#s@db.example/shop"), "PLUNGEPOOL_URL must", ITSELF, "percent-encoded"),
    SetUp("another driver's URL", variables(HOST=None, PORT=None, DATABASE=None, USER=None, PASSWORD=None, URL="postgresql+psycopg2://app:x@db.example/shop"), "PLUNGEPOOL_URL must", PAGE, "written for another driver"),
    SetUp("a misspelt host", variables(HOST="orders.invalid"), "the host name orders.invalid cannot be resolved", PAGE, "PLUNGEPOOL_HOST"),
    SetUp("a port where nobody listens", nobody_listens, "Connection refused", PAGE, "PLUNGEPOOL_PORT"),
    SetUp("another service's port", other_service, "TLS had not finished", PAGE, "another service listens"),
    SetUp("a web server's port", web_server, "does not speak PostgreSQL's protocol", ITSELF, "does another service listen on that port"),
    SetUp("a closed security group", nothing_answers, "the last attempt: no connection to .* TCP had not finished", PAGE, "security group"),
    SetUp("the same, unguarded", nothing_answers_unguarded, "Task timed out after", PAGE, "PLUNGEPOOL_CONNECT_TIMEOUT_S"),
    SetUp("a server without TLS", plain_server, "does not offer TLS", PAGE, "PLUNGEPOOL_TLS=disable"),
    SetUp("an authority of one's own", variables(CA_FILE=None), "an authority that is not trusted here", ITSELF, "PLUNGEPOOL_CA_FILE"),
    SetUp("a wrong password", variables(PASSWORD="not-this-one"), "password authentication failed", PAGE, "ALTER ROLE … PASSWORD"),
    SetUp("a role without rds_iam", iam, "refused the token of user 'app' twice", ITSELF, "GRANT rds_iam TO app"),
    SetUp("a proxy without the user's secret", proxy_without_secret, "refused the token of user 'app' twice", ITSELF, "(1) the proxy has neither a secret for this user"),
    SetUp("a secret that may not be read", secret_not_readable, "AccessDeniedException", ITSELF, "secretsmanager:GetSecretValue"),
    SetUp("a misspelt database", variables(DATABASE="shpo"), 'database "shpo" does not exist', PAGE, "PLUNGEPOOL_DATABASE"),
    SetUp("no database named", variables(DATABASE=None), 'relation "orders" does not exist', PAGE, "PLUNGEPOOL_DATABASE"),
    SetUp("a table without GRANT", lambda w: setattr(w, "sql", "SELECT * FROM stock"), "permission denied for table stock", PAGE, "GRANT SELECT"),
    SetUp("a full role", full_role, 'too many connections for role "last"', PAGE, "PLUNGEPOOL_POOL=adaptive"),
    SetUp("a write to a reader", reader, "cannot execute INSERT in a read-only transaction", ITSELF, "a reader's endpoint"),
    SetUp("a statement that is too slow", slow_statement, "canceling statement due to statement timeout", PAGE, "PLUNGEPOOL_STATEMENT_TIMEOUT_S"),
    SetUp("two checkouts at once", nested, "no connection became free within", ITSELF, "pass that one on"),
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server with TLS and passwords, a shop with a table that the role may use, and one that it may not."""
    with Postgres({"max_connections": 20}, tls=True, authentication="scram-sha-256") as running:
        for name in ("app", "last", "reading"):
            running.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        running.execute("ALTER ROLE last CONNECTION LIMIT 1")
        running.execute("ALTER ROLE reading SET default_transaction_read_only TO on")
        running.execute("CREATE DATABASE shop")
        running.execute(
            "CREATE TABLE orders (id int, status text); CREATE TABLE stock (id int); GRANT ALL ON orders TO PUBLIC",
            database="shop",
        )
        yield running


@pytest.fixture
def world(server: Postgres, tmp_path: Path) -> Iterator[World]:
    """The healthy set-up, to be changed."""
    with ExitStack() as stack:
        yield World(server, tmp_path, stack)


@functools.cache
def rows() -> list[tuple[list[str], str]]:
    """Return each row about an error: what it quotes, and what it says, with the section of the runbook it leads to."""
    found = []
    for row in re.findall(r"^\| (.+) \|$", TROUBLESHOOT, re.MULTILINE):
        symptom, _, rest = row.partition(" | ")
        found.append((symptom, rest))
    table = RUNBOOK.partition("## Errors by message")[2].partition("\n### ")[0]
    for row in re.findall(r"^\| (.+) \|$", table, re.MULTILINE):
        symptom, _, rest = row.partition(" | ")
        found.append((symptom, rest))
    return [(re.findall(r"`([^`]+)`", symptom), rest + "".join(sections(rest))) for symptom, rest in found]


def sections(text: str) -> Iterator[str]:
    """Yield the sections of the runbook that a text links."""
    for anchor in re.findall(r"\]\((?:runbook\.md)?#([a-z-]+)\)", text):
        for section in re.split(r"^#+ ", RUNBOOK, flags=re.MULTILINE):
            if re.sub(r"[^\w\- ]", "", section.partition("\n")[0].lower()).replace(" ", "-") == anchor:
                yield section


def looked_up(text: str) -> list[str]:
    """Return what the pages say of a text, by the quotations in it: … stands for anything."""
    return [
        says
        for quotations, says in rows()
        if any(
            len(quoted) >= 12 and re.search(".*?".join(map(re.escape, quoted.strip("… ").split("…"))), text, re.DOTALL)
            for quoted in quotations
        )
    ]


@pytest.mark.parametrize("set_up", SET_UPS, ids=[one.what for one in SET_UPS])
def test_error_leads_to_the_cure(world: World, set_up: SetUp) -> None:
    """The text names the cure, or is quoted in a row that does; it shows no password either way."""
    set_up.make(world)
    text = world.run()
    assert re.search(set_up.says, text, re.DOTALL), text
    assert PASSWORD not in text
    assert "not-this-one" not in text
    if set_up.by == ITSELF:
        assert set_up.cure in text, text
    else:
        found = looked_up(text)
        assert found, f"no row quotes {text}"
        assert any(set_up.cure in says for says in found), found


def test_healthy_set_up_works(world: World) -> None:
    """What the others change answers as it is: each of them fails by what is wrong with it alone."""
    with pytest.raises(AssertionError, match=r"it works: \[\]"):
        world.run()
