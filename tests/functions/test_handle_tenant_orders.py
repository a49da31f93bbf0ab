"""handle_tenant_orders: two tenants over HTTP, no row of the other's; who is none is refused before the database."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pg8000.exceptions
import pytest

import plungepool
from plungepool.checks import check_environment

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = tuple[int, Any]
# Of the demo's data.
ACMES, GLOBEXS = ("00000000-0000-4000-8000-0000000000a1", "00000000-0000-4000-8000-0000000000b1")


def request(claims: Any, method: str, path: str, body: Any = None, **others: Any) -> dict[str, Any]:
    """Return an HTTP API event, payload 2.0, with the claims of a token that was verified; None for no token."""
    event = {
        "version": "2.0",
        "rawPath": path,
        "headers": {"content-type": "application/json"},
        "requestContext": {"stage": "$default", "requestId": "r", "http": {"method": method, "path": path}},
        "isBase64Encoded": False,
    }
    if claims is not None:
        event["requestContext"]["authorizer"] = {"jwt": {"claims": claims, "scopes": None}}  # type: ignore[index]
    if body is not None:
        event["body"] = json.dumps(body)
    return event | others


@pytest.fixture
def call(shop: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Call the function with a tenant and a request; gives status and body. No transaction may forget the tenant."""
    monkeypatch.setenv("PLUNGEPOOL_REQUIRE_SETTINGS", "app.tenant_id")
    function = load("handle_tenant_orders", shop.url())

    def call_function(tenant: str, *arguments: Any, **others: Any) -> Answer:
        response = function.invoke(request({"sub": "ada", "tenant_id": tenant}, *arguments, **others))
        return response["statusCode"], json.loads(response["body"])

    return call_function


def everything(shop: Any) -> list[list[Any]]:
    """Return all rows, as the superuser, whom no policy binds."""
    rows: list[list[Any]] = shop.execute("SELECT tenant_id, id::text, sku, quantity FROM tenants.orders ORDER BY 1, 2")
    return rows


def test_each_tenant_sees_its_own(shop: Any, call: Callable[..., Answer]) -> None:
    """Over one connection, in turns: each list is that tenant's and whole, and a tenant without orders has none."""
    theirs: dict[str, set[str]] = {"nobody": set()}
    for tenant, order_id, _, _ in everything(shop):
        theirs.setdefault(tenant, set()).add(order_id)
    assert {tenant: len(ids) for tenant, ids in theirs.items()} == {"nobody": 0, "acme": 3, "globex": 2}
    for _ in range(10):
        for tenant, ids in theirs.items():
            status, body = call(tenant, "GET", "/orders")
            assert (status, {order["id"] for order in body["orders"]}) == (200, ids)
    assert shop.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", shop.app_role) == [[1]]


def test_an_order_is_the_tenant_s_own(shop: Any, call: Callable[..., Answer]) -> None:
    """Who has placed it reads it, and for everybody else it is as unknown as one that nobody has placed."""
    status, placed = call("acme", "POST", "/orders", {"sku": "CAP", "quantity": 2})
    assert (status, placed["sku"], placed["quantity"]) == (201, "CAP", 2)
    assert call("acme", "GET", f"/orders/{placed['id']}") == (200, placed)
    assert [tenant for tenant, order_id, _, _ in everything(shop) if order_id == placed["id"]] == ["acme"]
    assert call("globex", "GET", f"/orders/{placed['id']}")[0] == 404
    assert call("acme", "GET", "/orders")[1]["orders"][0] == placed
    assert call("globex", "GET", f"/orders/{GLOBEXS}")[0] == 200
    assert [call("acme", "GET", f"/orders/{one}")[0] for one in (GLOBEXS, ACMES, "7", "x'; --")] == [404, 200, 404, 404]


def test_nothing_that_a_client_chooses_is_asked_for_the_tenant(shop: Any, call: Callable[..., Answer]) -> None:
    """Headers, address, cookies and the stage's variables change nothing; a body that names a tenant is refused."""
    others = {
        "headers": {"x-tenant-id": "globex", "tenant_id": "globex", "authorization": "Bearer globex"},
        "rawQueryString": "tenant_id=globex&app.tenant_id=globex",
        "queryStringParameters": {"tenant_id": "globex", "app.tenant_id": "globex"},
        "cookies": ["tenant_id=globex"],
        "stageVariables": {"tenant_id": "globex"},
    }
    assert call("acme", "GET", "/orders", **others) == call("acme", "GET", "/orders")
    before = everything(shop)
    for extra in ({"tenant_id": "globex"}, {"id": GLOBEXS}, {"app.tenant_id": "globex"}):
        assert call("acme", "POST", "/orders", {"sku": "CAP", "quantity": 1} | extra, **others)[0] == 400
    assert everything(shop) == before


# What a token may hold where a tenant is looked for, and is none.
NO_TENANT: list[Any] = [
    "", " ", "acme ", "acme\n", "acme\0", "acme' OR '1'='1", "'; SET app.tenant_id = 'globex", "acme,globex",
    "[acme globex]", "a" * 65, "\N{FULLWIDTH LATIN SMALL LETTER A}cme", "%", None, 7, True, ["acme"], {"a": "b"},
]  # fmt: skip


def test_who_has_no_tenant_never_reaches_the_database(load: Any) -> None:
    """401 without a verified token, 403 for one without a tenant; nobody listens where the database should be."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    function = load("handle_tenant_orders", f"postgresql://app:x@127.0.0.1:{port}/postgres")

    def statuses(claims: Any, **others: Any) -> set[int]:
        routes = [("GET", "/orders"), ("GET", f"/orders/{ACMES}"), ("POST", "/orders", {"sku": "CAP", "quantity": 1})]
        # Who may ask waits for the database until the invocation ends.
        return {function.invoke(request(claims, *route) | others, remaining_ms=1500)["statusCode"] for route in routes}

    assert statuses({"sub": "ada", "tenant_id": "acme"}) == {503}
    assert [tenant for tenant in NO_TENANT if statuses({"sub": "ada", "tenant_id": tenant}) != {403}] == []
    assert statuses({"sub": "ada"}) == {403}
    assert statuses({"sub": "ada", "Tenant_Id": "acme", "custom:tenant_id": "acme"}) == {403}
    assert statuses(None) == {401}
    http = {"stage": "$default", "requestId": "r", "http": {"method": "GET", "path": "/orders"}}
    forged = [{}, {"jwt": None}, {"jwt": {"claims": None}}, {"iam": {"userId": "acme"}}, {"tenant_id": "acme"}, None]
    for authorizer in forged:
        assert statuses(None, rawPath="/orders", requestContext=http | {"authorizer": authorizer}) == {401}


def test_the_claim_is_called_as_the_issuer_calls_it(shop: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TENANT_CLAIM names it; then the usual name says nothing."""
    monkeypatch.setenv("TENANT_CLAIM", "custom:tenant_id")
    function = load("handle_tenant_orders", shop.url())
    both = function.invoke(request({"custom:tenant_id": "globex", "tenant_id": "acme"}, "GET", "/orders"))
    assert len(json.loads(both["body"])["orders"]) == 2
    assert function.invoke(request({"tenant_id": "acme"}, "GET", "/orders"))["statusCode"] == 403


def test_a_refusal_leaves_the_next_tenant_its_own(shop: Any, call: Callable[..., Answer]) -> None:
    """After a bad body, an unknown product and a failing statement nothing of that tenant is left in the session."""
    before = everything(shop)
    bodies: list[Any] = [{}, [], "CAP", {"sku": "CAP"}, {"sku": "cap", "quantity": 1}, {"sku": ["CAP"], "quantity": 1}]
    bodies += [{"sku": "CAP", "quantity": quantity} for quantity in (0, -1, 1001, 1.5, True, "1", None, 2**63)]
    for body in bodies:
        assert (body, call("acme", "POST", "/orders", body)[0]) == (body, 400)
        assert len(call("globex", "GET", "/orders")[1]["orders"]) == 2
    assert call("acme", "POST", "/orders", {"sku": "BOAT", "quantity": 1})[0] == 404
    assert len(call("globex", "GET", "/orders")[1]["orders"]) == 2
    assert everything(shop) == before


# What the application's role may try by itself, in a transaction for acme: an SQLSTATE that refuses it, or the rows
# that it gives, which are acme's.
TELL = """
    CREATE FUNCTION pg_temp.tell(text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS
    $$ BEGIN IF $1 <> 'acme' THEN RAISE 'seen %', $1; END IF; RETURN true; END $$
"""
ATTEMPTS: list[tuple[str, str | list[list[Any]]]] = [
    ("SELECT count(*) FROM tenants.orders WHERE tenant_id = 'globex'", [[0]]),
    ("SELECT count(*) FROM tenants.orders WHERE true OR tenant_id IS NULL", [[3]]),
    ("SELECT DISTINCT tenant_id FROM tenants.orders", [["acme"]]),
    ("INSERT INTO tenants.orders (tenant_id, sku, quantity) VALUES ('globex', 'CAP', 1)", "42501"),
    ("UPDATE tenants.orders SET tenant_id = 'globex'", "42501"),
    ("DELETE FROM tenants.orders", "42501"),
    ("TRUNCATE tenants.orders", "42501"),
    ("SET LOCAL row_security = off; SELECT * FROM tenants.orders", "42501"),
    ("ALTER TABLE tenants.orders DISABLE ROW LEVEL SECURITY", "42501"),
    ("ALTER TABLE tenants.orders NO FORCE ROW LEVEL SECURITY", "42501"),
    ("DROP POLICY of_tenant ON tenants.orders", "42501"),
    ("CREATE POLICY mine ON tenants.orders USING (true)", "42501"),
    ("CREATE TABLE tenants.mine ()", "42501"),
    ("SET ROLE postgres", "42501"),
    ("SET SESSION AUTHORIZATION postgres", "42501"),
    ("ALTER ROLE CURRENT_USER BYPASSRLS", "42501"),
    ("COPY tenants.orders TO PROGRAM 'cat'", "42501"),
    # A function in a filter is called with the rows of the policy alone: it is not leakproof.
    (f"{TELL}; SELECT count(*) FROM tenants.orders WHERE pg_temp.tell(tenant_id)", [[3]]),
    ("CREATE TEMP VIEW mine AS TABLE tenants.orders; SELECT DISTINCT tenant_id FROM mine", [["acme"]]),
    ("SELECT count(*) FROM pg_stats WHERE schemaname = 'tenants'", [[0]]),
    # A reference to a key tells whether it is there, without a policy: the tenant is a part of the key.
    (
        "CREATE TEMP TABLE guess (tenant_id text, id uuid, FOREIGN KEY (tenant_id, id) REFERENCES tenants.orders)",
        "42P16",
    ),
]


def test_the_role_itself_gets_no_further(shop: Any) -> None:
    """Whatever the role sends in acme's name, short of another name: it is refused, or shows acme's rows alone."""
    shop.execute("ANALYZE tenants.orders")
    before = everything(shop)
    for attempt, outcome in ATTEMPTS:
        seen: str | list[list[Any]]
        try:
            statements = f"BEGIN; SET LOCAL app.tenant_id = 'acme'; {attempt}"
            seen = shop.postgres.execute(statements, user=shop.app_role, database=shop.database)
        except pg8000.exceptions.DatabaseError as error:
            seen = error.args[0]["C"]
        assert (attempt, seen) == (attempt, outcome)
        assert everything(shop) == before


def test_another_name_is_nobody_s(shop: Any) -> None:
    """Without a tenant, or with one that nearly is one, there are no rows; and without one nothing can be stored."""

    def as_role(statements: str) -> list[list[Any]]:
        rows: list[list[Any]] = shop.postgres.execute(statements, user=shop.app_role, database=shop.database)
        return rows

    for name in ("", " ", "ACME", "acm_", "acme,globex"):
        assert as_role(f"BEGIN; SET LOCAL app.tenant_id = '{name}'; TABLE tenants.orders") == []
    for begin in ("BEGIN", "BEGIN; SET LOCAL app.tenant_id = 'acme'; COMMIT; BEGIN"):
        assert as_role(f"{begin}; TABLE tenants.orders") == []
        with pytest.raises(pg8000.exceptions.DatabaseError) as raised:
            as_role(f"{begin}; INSERT INTO tenants.orders (sku, quantity) VALUES ('CAP', 1)")
        # The policy comes before the column's NOT NULL.
        assert raised.value.args[0]["C"] == "42501"


def test_the_policies_bind_an_owner_who_is_no_superuser(shop: Any) -> None:
    """As on RDS, where the administrator is none: FORCE has the policy bind who owns the table, too."""
    shop.execute("CREATE ROLE shop_keeper LOGIN; GRANT USAGE ON SCHEMA tenants TO shop_keeper")
    try:
        shop.execute("ALTER TABLE tenants.orders OWNER TO shop_keeper")
        assert shop.postgres.execute("TABLE tenants.orders", user="shop_keeper", database=shop.database) == []
    finally:
        shop.execute("ALTER TABLE tenants.orders OWNER TO postgres; DROP OWNED BY shop_keeper; DROP ROLE shop_keeper")


def test_the_doctor_finds_nothing(shop: Any) -> None:
    """`plungepool doctor --rls --schema tenants`, as the application's role: every step of it is ok."""
    environ = {"PLUNGEPOOL_URL": shop.url(), "PLUNGEPOOL_TLS": "disable"}
    environ["PLUNGEPOOL_REQUIRE_SETTINGS"] = "app.tenant_id"
    told = [one for one in check_environment(environ, rls=True, schemas=["tenants"]) if one.name.startswith("RLS")]
    assert [(one.name, one.state) for one in told] == [("RLS role", "ok"), ("RLS policies", "ok")]
    assert told[1].found.endswith("in tenants.orders; they read app.tenant_id")


def test_the_list_is_read_from_the_index(shop: Any, load: Any) -> None:
    """The policy is a condition of the index: of many tenants' rows only the tenant's are read, and none is sorted."""
    orders = load("handle_tenant_orders", shop.url()).module.orders
    shop.execute("""
        INSERT INTO tenants.orders (tenant_id, sku, quantity, placed_at)
        SELECT 't' || n % 50, 'CAP', 1, timestamptz '2025-01-01' + n * interval '1 minute'
        FROM generate_series(1, 20000) n
    """)
    shop.execute("VACUUM ANALYZE tenants.orders")
    engine = plungepool.build_engine(shop.settings())
    with engine.execution_options(plungepool_settings={"app.tenant_id": "t7"}).begin() as connection:
        explained = connection.exec_driver_sql(f"EXPLAIN {orders.LIST.text.replace(':limit', '100')}").scalars()
        plan = "\n".join(explained)
        assert len(orders.list_orders(connection)) == 100
    engine.dispose()
    assert "Index Scan Backward using orders_by_tenant" in plan
    assert "Index Cond: (tenant_id =" in plan
    assert "Sort" not in plan
