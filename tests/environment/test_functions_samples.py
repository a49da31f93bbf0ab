"""The sample functions in the real runtime client, frozen between invocations, against a PostgreSQL of their own."""

from __future__ import annotations

import contextlib
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pg8000.exceptions
import pg8000.native
import pytest

from plungepool_toolkit.environment import Environment, InitError, Invocation
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PASSWORD = f"never to be seen {secrets.token_urlsafe(12)}"
ALL = ("prepare_database", "handle_orders", "handle_tenant_orders", "fulfil_orders", "report_sales")
ADA = "00000000-0000-4000-8000-0000000000c1"


def event(name: str) -> Any:
    return json.loads((ROOT / "events" / f"{name}.json").read_text())


def variables(name: str, server: Postgres, **others: str) -> dict[str, str]:
    """Return what template.yaml gives a function, for a server on this machine."""
    return {
        "PLUNGEPOOL_HOST": server.host,
        "PLUNGEPOOL_PORT": str(server.port),
        "PLUNGEPOOL_USER": "postgres" if name == "prepare_database" else "plungepool_app",
        "PLUNGEPOOL_PASSWORD": (name == "prepare_database" and server.password) or PASSWORD,
        "PLUNGEPOOL_TLS": "disable",
        "APP_ROLE_PASSWORD": PASSWORD,
        "POWERTOOLS_SERVICE_NAME": "shop",
        "POWERTOOLS_METRICS_NAMESPACE": "Shop",
        "POWERTOOLS_TRACE_DISABLED": "true",
    } | others


@pytest.fixture(scope="module")
def shop() -> Iterator[Postgres]:
    """A server that asks for passwords, prepared by prepare_database itself."""
    with Postgres({"max_connections": 15}, authentication="scram-sha-256") as server:
        task = ROOT / "functions" / "prepare_database"
        with Environment(task, variables=variables("prepare_database", server)) as environment:
            assert environment.invoke(event("prepare_database")).error is None
        yield server


@pytest.fixture
def start(shop: Postgres, lambda_environment: Callable[..., Environment]) -> Callable[..., Environment]:
    """Start the environment of a sample function; keywords are variables that differ."""

    def start_function(name: str, **others: str) -> Environment:
        return lambda_environment(ROOT / "functions" / name, variables=variables(name, shop, **others))

    return start_function


@contextlib.contextmanager
def short(environment: Environment) -> Iterator[None]:
    """Give invocations six seconds: who cannot be served waits for all the time that there is."""
    before, environment.timeout_s = environment.timeout_s, 6.0
    yield
    environment.timeout_s = before


def backends(server: Postgres, name: str) -> list[int]:
    """Return the backends that a function's environments hold, as the database counts them."""
    rows = server.execute("SELECT pid FROM pg_stat_activity WHERE application_name LIKE $1 || ':%'", name)
    return [row[0] for row in rows]


def answer(invocation: Invocation) -> tuple[int, dict[str, Any]]:
    assert invocation.error is None, invocation
    return invocation.payload["statusCode"], json.loads(invocation.payload["body"])


def logged(invocation: Invocation, message: str) -> dict[str, Any]:
    """Return the one structured line of the log with this message."""
    lines = [json.loads(line) for line in invocation.log if line.startswith("{")]
    [found] = [line for line in lines if line.get("message") == message]
    return found


def place(**quantities: int) -> dict[str, Any]:
    """Return the request that places an order."""
    request = event("handle_orders")
    request["requestContext"]["http"]["method"] = "POST"
    lines = [{"sku": sku, "quantity": quantity} for sku, quantity in quantities.items()]
    return request | {"body": json.dumps({"customer_id": ADA, "lines": lines})}


@pytest.mark.parametrize("name", ALL)
def test_fifty_invocations_hold_one_connection(shop: Postgres, start: Callable[..., Environment], name: Any) -> None:
    """Cold and 50 times warm, frozen in between: every answer is good, and it is one connection and one backend."""
    environment = start(name)
    cold = environment.invoke(event(name))
    assert cold.error is None
    held = backends(shop, name)
    assert len(held) == 1
    process = environment.pid
    for _ in range(50):
        warm = environment.invoke(event(name))
        assert warm.error is None
        assert backends(shop, name) == held
    assert environment.pid == process
    expected = cold.payload | {"applied": []} if name == "prepare_database" else cold.payload
    assert warm.payload == expected


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_connected_before_the_first_invocation(
    shop: Postgres, start: Callable[..., Environment], name: Any
) -> None:
    """Init makes an engine and no connection: an environment that is only provisioned costs the database nothing."""
    start(name)
    assert backends(shop, name) == []


@pytest.mark.parametrize("name", ["handle_orders", "fulfil_orders", "report_sales"])
def test_wrong_settings_fail_the_init_with_every_problem(start: Callable[..., Environment], name: str) -> None:
    """What the operator reads is the SettingsError: each wrong setting by name, a typo too, and no password."""
    with pytest.raises(InitError) as raised:
        start(name, PLUNGEPOOL_PORT="postgres", PLUNGEPOOL_POOLSIZE="2")
    error = raised.value.error
    assert error["errorType"] == "SettingsError"
    assert "PLUNGEPOOL_PORT must be a whole number" in error["errorMessage"]
    assert "did you mean PLUNGEPOOL_POOL_SIZE?" in error["errorMessage"]
    assert PASSWORD not in str(error) + "".join(raised.value.log)


def test_wrong_settings_of_prepare_database_fail_its_invocation(start: Callable[..., Environment]) -> None:
    """It tells CloudFormation before it gives up, so it starts, and the invocation fails with the same text."""
    invocation = start("prepare_database", PLUNGEPOOL_PORT="postgres").invoke(event("prepare_database"))
    assert invocation.error["errorType"] == "SettingsError"
    assert "PLUNGEPOOL_PORT must be a whole number" in invocation.error["errorMessage"]
    assert PASSWORD not in str(invocation.error) + "".join(invocation.log)


def refused(invocation: Invocation, name: str) -> str | None:
    """Check that the function says in its own way that the database is unavailable; give the SQLSTATE it logged."""
    assert PASSWORD not in str(invocation)
    if name in ("handle_orders", "handle_tenant_orders"):
        status, body = answer(invocation)
        assert (status, body["statusCode"]) == (503, 503)
        assert int(invocation.payload["headers"]["Retry-After"]) > 0
        assert invocation.payload["headers"]["Content-Type"] == "application/json"
        return logged(invocation, "the database is unavailable").get("sqlstate")
    if name == "fulfil_orders":
        assert invocation.error is None
        every = [{"itemIdentifier": record["messageId"]} for record in event(name)["Records"]]
        assert invocation.payload == {"batchItemFailures": every}
        return logged(invocation, "an order cannot be fulfilled now").get("sqlstate")
    assert invocation.error is not None
    return None


def assert_well(invocation: Invocation, name: str) -> None:
    """Check that the function has done what its event asks for."""
    assert invocation.error is None, invocation
    if name in ("handle_orders", "handle_tenant_orders"):
        assert answer(invocation)[0] == 200
    if name == "fulfil_orders":
        assert invocation.payload == {"batchItemFailures": []}


@pytest.mark.parametrize("name", ALL)
def test_an_environment_that_starts_without_the_database_recovers(
    shop: Postgres, start: Callable[..., Environment], name: Any
) -> None:
    """Down at the cold start: the function says so. Up again: the same process answers, without a restart."""
    shop.stop()
    try:
        environment = start(name)
        process = environment.pid
        with short(environment):
            assert refused(environment.invoke(event(name)), name) is None
            assert refused(environment.invoke(event(name)), name) is None
    finally:
        shop.start()
    assert_well(environment.invoke(event(name)), name)
    assert environment.pid == process


@pytest.mark.parametrize("name", ALL)
def test_a_restart_of_the_database_costs_no_invocation(
    shop: Postgres, start: Callable[..., Environment], name: Any
) -> None:
    """The database restarts while the environment is frozen: the next invocation finds out and connects anew."""
    environment = start(name)
    first = environment.invoke(event(name))
    shop.restart()
    again = environment.invoke(event(name))
    assert again.error is None
    if name != "prepare_database":
        assert again.payload == first.payload


@pytest.mark.parametrize("name", ["handle_orders", "fulfil_orders"])
def test_a_full_database_is_told_apart(shop: Postgres, start: Callable[..., Environment], name: str) -> None:
    """With every slot taken the answer is 503, or the whole batch again, and the log holds 53300."""
    with contextlib.ExitStack() as stack:
        with pytest.raises(pg8000.exceptions.DatabaseError) as raised:
            while True:
                connection = pg8000.native.Connection(
                    "postgres", host=shop.host, port=shop.port, password=shop.password
                )
                stack.callback(connection.close)
        assert raised.value.args[0]["C"] == "53300"
        environment = start(name)
        with short(environment):
            assert refused(environment.invoke(event(name)), name) == "53300"
    assert_well(environment.invoke(event(name)), name)


@pytest.mark.parametrize("name", ["handle_orders", "fulfil_orders"])
def test_a_wrong_password_is_told_apart(shop: Postgres, start: Callable[..., Environment], name: str) -> None:
    """A refused login is 503, or the whole batch again, with 28P01 in the log and neither password anywhere."""
    environment = start(name, PLUNGEPOOL_PASSWORD=f"wrong {PASSWORD}")
    assert refused(environment.invoke(event(name)), name) == "28P01"
    assert PASSWORD not in "".join(environment.log)


def test_orders_are_placed_refused_and_fulfilled(shop: Postgres, start: Callable[..., Environment]) -> None:
    """The whole way: an order is placed, one too many is refused and writes nothing, the queue's message ships it."""
    orders, worker = start("handle_orders"), start("fulfil_orders")
    status, placed = answer(orders.invoke(place(CAP=2, TOWEL=1)))
    assert status == 201
    counted = shop.execute("SELECT (SELECT count(*) FROM shop.orders), (SELECT sum(stock) FROM shop.products)")
    for body, expected in [(place(FLOAT=1), 409), (place(CAP=-1), 400), (place(BOAT=1), 404)]:
        assert answer(orders.invoke(body))[0] == expected
    assert answer(orders.invoke(place() | {"body": '{"customer_id": '}))[0] == 400
    assert shop.execute("SELECT (SELECT count(*) FROM shop.orders), (SELECT sum(stock) FROM shop.products)") == counted
    batch = event("fulfil_orders")
    batch["Records"][0]["body"] = json.dumps({"order_id": "00000000-0000-4000-8000-00000000dead"})
    batch["Records"][1]["body"] = json.dumps({"order_id": placed["id"]})
    for _ in range(2):  # the second time as SQS delivers twice
        failed = worker.invoke(batch).payload["batchItemFailures"]
        assert failed == [{"itemIdentifier": batch["Records"][0]["messageId"]}]
    assert shop.execute("SELECT count(*) FROM shop.shipments WHERE order_id = $1", placed["id"]) == [[1]]


def test_the_cold_start_is_counted(start: Callable[..., Environment]) -> None:
    """Metrics tell a cold start from a warm one, under the template's namespace."""
    environment = start("handle_orders")
    counts = [
        sum(
            "ColdStart" in line and '"Namespace":"Shop"' in line
            for line in environment.invoke(event("handle_orders")).log
        )
        for _ in range(2)
    ]
    assert counts == [1, 0]


def test_check_database_finds_the_shop_well_and_leaves_no_connection(
    shop: Postgres, start: Callable[..., Environment]
) -> None:
    """As the application's role, with the limits that prepare_database set: every step is well, cold and warm."""
    environment = start("check_database")
    for _ in range(2):
        invocation = environment.invoke(event("check_database"))
        assert [check for check in invocation.payload["checks"] if check["state"] != "ok"] == []
        assert invocation.payload["ok"] is True
        assert PASSWORD not in str(invocation)
    assert backends(shop, "check_database") == []


def test_nothing_pins_an_rds_proxy(shop: Postgres, lambda_environment: Callable[..., Environment]) -> None:
    """Through a proxy, with IAM and over TLS: what the functions send ties none of them to a database connection."""
    with RdsProxy(shop, users={"plungepool_app": PASSWORD}, max_database_connections=1) as proxy:
        powertools = {name: value for name, value in variables("", shop).items() if name.startswith("POWERTOOLS_")}
        settings = powertools | proxy.variables("plungepool_app") | {"PLUNGEPOOL_PINNING": "refuse"}
        orders, worker, report = (
            lambda_environment(ROOT / "functions" / name, variables=settings)
            for name in ("handle_orders", "fulfil_orders", "report_sales")
        )
        for _ in range(3):
            assert answer(orders.invoke(event("handle_orders")))[0] == 200
            status, placed = answer(orders.invoke(place(CAP=1)))
            assert status == 201
            batch = event("fulfil_orders")
            batch["Records"][0]["body"] = json.dumps({"order_id": placed["id"]})
            assert worker.invoke(batch).payload == {"batchItemFailures": []}
            assert report.invoke(event("report_sales")).error is None
            assert answer(orders.invoke(place(FLOAT=1)))[0] == 409
        seen = proxy.counters
        assert (dict(seen.pinned), dict(seen.refused), seen.unnamed_statement_outlived) == ({}, {}, 0)
        assert (seen.clients, seen.accepted, seen.database_connections_peak) == (3, 3, 1)


def test_a_warm_invocation_waits_for_the_server_once_a_statement_and_once_to_commit(
    shop: Postgres, start: Callable[..., Environment]
) -> None:
    """Round trips, counted on the wire: BEGIN travels with the first statement, and nothing is asked beside them."""
    with ChaosProxy(shop.host, shop.port) as network:
        there = {"PLUNGEPOOL_HOST": network.host, "PLUNGEPOOL_PORT": str(network.port)}
        orders, worker, report = (start(name, **there) for name in ("handle_orders", "fulfil_orders", "report_sales"))
        tenants = start("handle_tenant_orders", PLUNGEPOOL_REQUIRE_SETTINGS="app.tenant_id", **there)

        def round_trips(environment: Environment, request: Any) -> int:
            assert environment.invoke(request).error is None  # the first one connects
            network.round_trips = 0
            assert environment.invoke(request).error is None
            return network.round_trips

        batch = event("fulfil_orders")
        assert round_trips(orders, event("handle_orders")) == 2
        assert round_trips(tenants, event("handle_tenant_orders")) == 2  # the tenant goes with BEGIN
        assert round_trips(orders, place(CAP=1, TOWEL=1)) == 4
        assert round_trips(report, event("report_sales")) == 2
        assert round_trips(worker, batch) == 2 * 2  # fulfilled before: the key is known, and all is said


@pytest.mark.parametrize("way", ["hang_up", "reset"])
def test_a_connection_that_is_cut_while_frozen_costs_no_invocation(
    shop: Postgres, start: Callable[..., Environment], way: str
) -> None:
    """Whoever ends the connection meanwhile, and however: the next invocation finds out before it sends a statement."""
    with ChaosProxy(shop.host, shop.port) as network:
        environment = start("handle_orders", PLUNGEPOOL_HOST=network.host, PLUNGEPOOL_PORT=str(network.port))
        for _ in range(3):
            assert answer(environment.invoke(event("handle_orders")))[0] == 200
            assert getattr(network, way)() == 1
        assert network.connections == 3


@pytest.mark.parametrize("name", ["handle_orders", "fulfil_orders"])
def test_a_silent_database_is_given_up_before_the_function_is(
    shop: Postgres, start: Callable[..., Environment], name: str
) -> None:
    """A server that takes the connection and says nothing: the connect time-out strikes, and the function answers."""
    with ChaosProxy(shop.host, shop.port) as network:
        there = {"PLUNGEPOOL_HOST": network.host, "PLUNGEPOOL_PORT": str(network.port)}
        environment = start(name, PLUNGEPOOL_CONNECT_TIMEOUT_S="1", **there)
        network.partition()
        assert refused(environment.invoke(event(name)), name) is None
        network.heal()
        assert_well(environment.invoke(event(name)), name)
