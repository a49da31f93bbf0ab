"""
What the doctor says of row-level security, on a real server; where it says that rows of another tenant show, one does.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from typer.testing import CliRunner

from plungepool import Settings, build_engine, checks
from plungepool.checks import Check, check_environment, check_process
from plungepool_toolkit.command import application
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.mark import ParameterSet

ROOT = Path(__file__).parents[2]
BEFORE_16 = Path("/usr/lib/postgresql/15/bin")
DATABASE = "doctor_rls"
ROLES = "app, keeper, admin, middle"

# All is well: the tables are another's, their policy reads a setting that may be missing, and FORCE is set.
WELL = """
    CREATE ROLE app LOGIN; CREATE ROLE keeper; CREATE ROLE admin BYPASSRLS; CREATE ROLE middle;
    CREATE SCHEMA shop; GRANT USAGE ON SCHEMA shop TO app; GRANT ALL ON SCHEMA shop TO keeper, admin, middle;
    CREATE TABLE shop.orders (tenant_id text NOT NULL, item text);
    INSERT INTO shop.orders VALUES ('a', 'towel'), ('b', 'goggles');
    ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY;
    ALTER TABLE shop.orders FORCE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON shop.orders USING (tenant_id = nullif(current_setting('app.tenant_id', true), ''));
    GRANT SELECT, INSERT, UPDATE, DELETE ON shop.orders TO app;
    ALTER TABLE shop.orders OWNER TO keeper;
"""
ALL_IS_WELL = [
    ("RLS role", "ok", "app is not a superuser and does not have BYPASSRLS: policies apply to it"),
    (
        "RLS policies",
        "ok",
        (
            "policies apply to app in shop.orders; they read app.tenant_id. PLUNGEPOOL_REQUIRE_SETTINGS=app.tenant_id "
            "would refuse a transaction that forgets app.tenant_id"
        ),
    ),
]
OF_B = "SELECT * FROM shop.orders WHERE tenant_id = 'b'"


class SetUp(NamedTuple):
    """
    A set-up that is not well: what it is, how it is made, which step says so, how its sentences begin, and what shows a
    row of tenant b to app, who is tenant a; None where none is shown.
    """

    what: str
    made_by: str
    step: str
    state: str
    says: str
    cure: str
    shows: str | None


SET_UPS = [
    # The role.
    SetUp("a superuser", "ALTER ROLE app SUPERUSER", "RLS role", "failed", "app is a superuser, to whom no policy applies", "connect as a role of the application's own", OF_B),
    SetUp("BYPASSRLS", "ALTER ROLE app BYPASSRLS", "RLS role", "failed", "app has BYPASSRLS: no policy applies to it", "ALTER ROLE app NOBYPASSRLS", OF_B),
    SetUp("a session that started as another role", "ALTER ROLE app BYPASSRLS; GRANT middle TO app; ALTER ROLE app SET role = 'middle'; GRANT SELECT ON shop.orders TO middle", "RLS role", "failed", "app, as which the session began and to which SET ROLE NONE returns, has BYPASSRLS", "ALTER ROLE app NOBYPASSRLS", f"SET ROLE NONE; {OF_B}"),
    SetUp("REPLICATION", "ALTER ROLE app REPLICATION", "RLS role", "failed", "app has REPLICATION: it may stream every change", "ALTER ROLE app NOREPLICATION", None),
    SetUp("a role that may read the server's files", "GRANT pg_read_server_files TO app", "RLS role", "failed", "app is a member of pg_read_server_files", "REVOKE pg_read_server_files FROM app", "CREATE TEMP TABLE file (content text); COPY file FROM '/etc/hostname'; SELECT * FROM file"),
    SetUp("a role that may change to one with BYPASSRLS", "GRANT admin TO app; GRANT SELECT ON shop.orders TO admin", "RLS set role", "failed", "app may SET ROLE to admin (BYPASSRLS)", "REVOKE admin FROM app", f"SET ROLE admin; {OF_B}"),
    SetUp("a role that may change to one through a third role", "GRANT admin TO middle; GRANT middle TO app; GRANT SELECT ON shop.orders TO admin", "RLS set role", "failed", "app may SET ROLE to admin (BYPASSRLS)", "REVOKE admin FROM app, or from the role through which it is a member", f"SET ROLE admin; {OF_B}"),
    SetUp("a role that may make itself a member", "GRANT admin TO app WITH INHERIT FALSE, SET FALSE, ADMIN TRUE; GRANT SELECT ON shop.orders TO admin", "RLS set role", "failed", "app may SET ROLE to admin (BYPASSRLS)", "REVOKE admin FROM app", f"GRANT admin TO app WITH SET TRUE; SET ROLE admin; {OF_B}"),
    SetUp("a role that may change to the owner", "GRANT keeper TO app WITH INHERIT FALSE", "RLS set role", "failed", "app may SET ROLE to keeper (owner of tables with policies)", "REVOKE keeper FROM app", f"SET ROLE keeper; ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY; {OF_B}"),
    # Whom the tables belong to.
    SetUp("the owner, without FORCE", "ALTER TABLE shop.orders OWNER TO app; ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY", "RLS owner", "failed", "app owns shop.orders: without FORCE, no policy applies to the owner", "transfer them to a role of which app is not a member (ALTER TABLE shop.orders OWNER TO …), or ALTER TABLE shop.orders FORCE ROW LEVEL SECURITY", OF_B),
    SetUp("a member of the owner, without FORCE", "GRANT keeper TO app; ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY", "RLS owner", "failed", "app owns shop.orders (as a member of keeper): without FORCE,", "transfer them to a role of which app is not a member", OF_B),
    SetUp("the owner, with FORCE", "ALTER TABLE shop.orders OWNER TO app", "RLS owner", "warning", "app owns shop.orders: FORCE applies the policies to it, until it executes NO FORCE", "transfer them to a role of which app is not a member", f"ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY; {OF_B}"),
    # Tables without policies, and what no policy can protect.
    SetUp("a table without row-level security", "ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY; DROP POLICY tenant ON shop.orders", "RLS tables", "warning", "no row-level security: app may read and write shop.orders", "tables with rows of tenants need policies: ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY", OF_B),
    SetUp("policies that were never enabled", "ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY", "RLS tables", "failed", "the policies of shop.orders do nothing", "ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY", OF_B),
    SetUp("one column of a table without row-level security", "CREATE TABLE shop.notes AS TABLE shop.orders; GRANT SELECT (item) ON shop.notes TO app", "RLS tables", "warning", "no row-level security: app may read shop.notes", "tables with rows of tenants need policies", "SELECT item FROM shop.notes WHERE item = 'goggles'"),
    SetUp("a materialized view", "CREATE MATERIALIZED VIEW shop.kept AS TABLE shop.orders; GRANT SELECT ON shop.kept TO app", "RLS tables", "warning", "policies cannot protect these relations: app may read shop.kept (a materialized view, filled as its owner)", "if it contains rows of tenants: REVOKE ALL ON shop.kept FROM app", "SELECT * FROM shop.kept WHERE tenant_id = 'b'"),
    SetUp("a foreign table", "CREATE FOREIGN DATA WRAPPER away; CREATE SERVER away FOREIGN DATA WRAPPER away; CREATE FOREIGN TABLE shop.far (tenant_id text) SERVER away; GRANT SELECT ON shop.far TO app", "RLS tables", "warning", "policies cannot protect these relations: app may read shop.far (a foreign table)", "if it contains rows of tenants: REVOKE ALL ON shop.far FROM app", None),
    SetUp("TRUNCATE", "GRANT TRUNCATE ON shop.orders TO app", "RLS tables", "failed", "app may TRUNCATE shop.orders, which no policy limits", "REVOKE TRUNCATE ON shop.orders FROM app", "TRUNCATE shop.orders; SELECT 'gone'"),
    SetUp("a role without access to any table", "REVOKE ALL ON shop.orders FROM app", "RLS tables", "warning", "app has no privileges on any table in this database", "GRANT it what the application needs", None),
    # Other ways to the same rows.
    SetUp("a partition accessed by its own name", "CREATE TABLE shop.events (tenant_id text) PARTITION BY LIST (tenant_id); CREATE TABLE shop.events_b PARTITION OF shop.events FOR VALUES IN ('b'); INSERT INTO shop.events VALUES ('b'); ALTER TABLE shop.events ENABLE ROW LEVEL SECURITY; CREATE POLICY tenant ON shop.events USING (tenant_id = current_setting('app.tenant_id', true)); GRANT SELECT ON shop.events, shop.events_b TO app", "RLS partitions", "failed", "by their own names, bypassing their parents' policies, app may read shop.events_b (of shop.events)", "REVOKE ALL ON shop.events_b FROM app", "SELECT * FROM shop.events_b"),
    SetUp("a table that inherits", "CREATE TABLE shop.old_orders () INHERITS (shop.orders); INSERT INTO shop.old_orders VALUES ('b', 'cap'); GRANT SELECT ON shop.old_orders TO app", "RLS partitions", "failed", "by their own names, bypassing their parents' policies, app may read shop.old_orders (of shop.orders)", "REVOKE ALL ON shop.old_orders FROM app", "SELECT * FROM shop.old_orders"),
    SetUp("a view that runs as its owner", "CREATE VIEW shop.all_orders AS TABLE shop.orders; GRANT SELECT ON shop.all_orders TO app", "RLS views", "failed", "views run as their owner, to whom no policy applies: app may read shop.all_orders (of shop.orders, as postgres)", "ALTER VIEW shop.all_orders SET (security_invoker = true), and GRANT app what it reads", "SELECT * FROM shop.all_orders WHERE tenant_id = 'b'"),
    SetUp("a view over a view that runs as its owner", "CREATE VIEW shop.inner_one WITH (security_barrier) AS TABLE shop.orders; CREATE VIEW shop.outer_one WITH (security_invoker = on) AS TABLE shop.inner_one; GRANT SELECT ON shop.inner_one, shop.outer_one TO app; REVOKE SELECT ON shop.inner_one FROM PUBLIC", "RLS views", "failed", "app may read shop.inner_one (of shop.orders, as postgres), read shop.outer_one (of shop.orders, as postgres)", "ALTER VIEW shop.inner_one SET (security_invoker = true) (and 1 more)", "SELECT * FROM shop.outer_one WHERE tenant_id = 'b'"),
    SetUp("a view of the tables' owner, without FORCE", "ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY; CREATE VIEW shop.theirs AS TABLE shop.orders; ALTER VIEW shop.theirs OWNER TO keeper; GRANT SELECT ON shop.theirs TO app", "RLS views", "failed", "app may read shop.theirs (of shop.orders, as keeper)", "ALTER VIEW shop.theirs SET (security_invoker = true)", "SELECT * FROM shop.theirs WHERE tenant_id = 'b'"),
    SetUp("a view of a table without row-level security", "CREATE TABLE shop.notes AS TABLE shop.orders; CREATE VIEW shop.noted AS TABLE shop.notes; GRANT SELECT ON shop.noted TO app", "RLS views", "warning", "views show tables without row-level security: app may read shop.noted (of shop.notes, as postgres)", "if they contain rows of tenants, these tables need policies, too", "SELECT * FROM shop.noted WHERE tenant_id = 'b'"),
    SetUp("a function that runs as its owner", "CREATE FUNCTION shop.every(what text) RETURNS SETOF shop.orders SECURITY DEFINER LANGUAGE sql AS 'TABLE shop.orders'", "RLS functions", "warning", "functions run as their owner, to whom no policy applies (SECURITY DEFINER): shop.every(what text) (as postgres)", "review what they do for which tenant", "SELECT * FROM shop.every('') WHERE tenant_id = 'b'"),
    # Policies that do less than they seem to.
    SetUp("another policy that allows every row", "CREATE POLICY open ON shop.orders USING (true)", "RLS policies", "failed", "permissive policies are combined with OR, so that these undo the others: open on shop.orders, USING (true) for SELECT, INSERT, UPDATE, DELETE", "DROP POLICY; or CREATE POLICY … AS RESTRICTIVE", OF_B),
    SetUp("another policy that does not check the tenant", "CREATE POLICY open ON shop.orders FOR SELECT TO app USING (item <> 'towel')", "RLS policies", "failed", "permissive policies are combined with OR, so that these undo the others: open on shop.orders, USING (item <> 'towel'::text) for SELECT", "DROP POLICY; or CREATE POLICY … AS RESTRICTIVE", OF_B),
    SetUp("an only policy that allows every row", "DROP POLICY tenant ON shop.orders; CREATE POLICY open ON shop.orders USING (true)", "RLS policies", "warning", "these let the same rows through for every tenant: open on shop.orders, USING (true) for SELECT, INSERT, UPDATE, DELETE", "tables with rows of tenants need a policy that checks whose transaction it is", OF_B),
    SetUp("a policy that allows writing rows of other tenants", "DROP POLICY tenant ON shop.orders; CREATE POLICY tenant ON shop.orders USING (tenant_id = current_setting('app.tenant_id', true)) WITH CHECK (true)", "RLS policies", "warning", "these let the same rows through for every tenant: tenant on shop.orders, WITH CHECK (true) for INSERT, UPDATE", "tables with rows of tenants need a policy that checks whose transaction it is", "INSERT INTO shop.orders VALUES ('b', 'planted'); SELECT 'written'"),
    SetUp("a policy that fails if its setting is missing", "DROP POLICY tenant ON shop.orders; CREATE POLICY tenant ON shop.orders USING (tenant_id = current_setting('app.tenant_id'))", "RLS policies", "warning", "without the setting, these fail in a fresh session (42704) and read '' in a used one: tenant on shop.orders", "read it with nullif(current_setting('…', true), '')", None),
    SetUp("no policy for the role", "DROP POLICY tenant ON shop.orders; CREATE POLICY tenant ON shop.orders TO keeper USING (true)", "RLS policies", "warning", "no policy of shop.orders lets app see or write a row", "CREATE POLICY … ON shop.orders TO app, or REVOKE", None),
    SetUp("only restrictive policies", "DROP POLICY tenant ON shop.orders; CREATE POLICY tenant ON shop.orders AS RESTRICTIVE USING (tenant_id = current_setting('app.tenant_id', true))", "RLS policies", "warning", "no policy of shop.orders lets app see or write a row", "CREATE POLICY … ON shop.orders TO app, or REVOKE", None),
]  # fmt: skip

# Not to be told of: these show nobody's rows to others.
HARMLESS = {
    "a view that runs as who asks": "CREATE VIEW shop.mine WITH (security_invoker = yes) AS TABLE shop.orders; GRANT SELECT ON shop.mine TO app",
    "a view whose owner policies bind": "CREATE VIEW shop.kept AS TABLE shop.orders; ALTER VIEW shop.kept OWNER TO keeper; GRANT SELECT ON shop.kept TO app",
    "a view over one that runs as who asks": "CREATE VIEW shop.mine WITH (security_invoker) AS TABLE shop.orders; CREATE VIEW shop.yours AS TABLE shop.mine; GRANT SELECT ON shop.mine, shop.yours TO app",
    "an open policy under a restrictive one": "DROP POLICY tenant ON shop.orders; CREATE POLICY open ON shop.orders USING (true); CREATE POLICY tenant ON shop.orders AS RESTRICTIVE USING (tenant_id = current_setting('app.tenant_id', true))",
    "an open policy for others": "CREATE POLICY open ON shop.orders TO admin USING (true)",
    "an open policy for what the role may not do": "REVOKE DELETE ON shop.orders FROM app; CREATE POLICY open ON shop.orders FOR DELETE USING (true)",
    "a setting that is named in a text only": "COMMENT ON TABLE shop.orders IS 'x'; DROP POLICY tenant ON shop.orders; CREATE POLICY tenant ON shop.orders USING (tenant_id = current_setting('app.tenant_id', true) AND item <> 'current_setting(''app.other'')')",
    "a table in a schema that the role may not enter": "CREATE SCHEMA other; CREATE TABLE other.notes (i int); GRANT SELECT ON other.notes TO app",
    "the tables of once and of Idempotency": "CREATE SCHEMA plungepool; CREATE TABLE plungepool.once_keys (k text); CREATE TABLE plungepool.idempotency (id text); GRANT USAGE ON SCHEMA plungepool TO app; GRANT SELECT, INSERT, UPDATE, DELETE ON plungepool.once_keys, plungepool.idempotency TO app",
    "a table that the role may not use": "CREATE TABLE shop.notes (i int)",
    "a partition that only its parent leads to": "CREATE TABLE shop.events (tenant_id text) PARTITION BY LIST (tenant_id); CREATE TABLE shop.events_b PARTITION OF shop.events DEFAULT",
    "a function that runs as who asks": "CREATE FUNCTION shop.every() RETURNS SETOF shop.orders LANGUAGE sql AS 'TABLE shop.orders'",
    "a function of the tables' owner, whom FORCE binds": "CREATE FUNCTION shop.every() RETURNS SETOF shop.orders SECURITY DEFINER LANGUAGE sql AS 'TABLE shop.orders'; ALTER FUNCTION shop.every() OWNER TO keeper",
    "a member who may not become what it is a member of": "GRANT admin TO app WITH INHERIT FALSE, SET FALSE, ADMIN FALSE",
}  # fmt: skip


def where_it_is(what: str, sql: str) -> ParameterSet:
    """Return a case that older servers leave out whose syntax does not have what its SQL uses."""
    since = 16 if re.search(r"\b(INHERIT|SET) (TRUE|FALSE)\b", sql) else 15 if "security_invoker" in sql else 0
    return pytest.param(what, marks=[pytest.mark.since_postgresql(since)] if since else [], id=what)


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[Postgres]:
    """The run's server with a database for these tests."""
    postgres.execute(f"CREATE DATABASE {DATABASE}")
    yield postgres
    postgres.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.fixture
def server(database: Postgres) -> Iterator[Postgres]:
    """In that database all is well, and in the next test again."""
    database.execute(WELL, database=DATABASE)
    yield database
    database.execute(
        "DROP SCHEMA IF EXISTS shop, other, planted, plungepool CASCADE; DROP FOREIGN DATA WRAPPER IF EXISTS away "
        "CASCADE;"
        f"DROP OWNED BY {ROLES}; DROP ROLE {ROLES}",
        database=DATABASE,
    )


@pytest.fixture
def environ(server: Postgres) -> dict[str, str]:
    """The variables of a function that connects as app."""
    return {
        "PLUNGEPOOL_HOST": server.host,
        "PLUNGEPOOL_PORT": str(server.port),
        "PLUNGEPOOL_DATABASE": DATABASE,
        "PLUNGEPOOL_USER": "app",
        "PLUNGEPOOL_PASSWORD": "not asked for",
        "PLUNGEPOOL_TLS": "disable",
    }


def examine(environ: dict[str, str], *schemas: str) -> list[Check]:
    """Return what is said of row-level security alone."""
    every = list(check_environment(environ, rls=True, schemas=schemas))
    found = [check for check in every if check.name.startswith("RLS")]
    assert found, every
    return found


def version(server: Postgres) -> int:
    """Return the server's major version."""
    ((number,),) = server.execute("SHOW server_version_num")
    return int(number) // 10000


def as_tenant_a(server: Postgres, statements: str) -> list[list[Any]]:
    """Run statements as app in tenant a's name, and return the rows of the last one."""
    *first, last = ["SET app.tenant_id = 'a'", *statements.split("; ")]
    return server.execute(f"{'; '.join(first)}; {last}", user="app", database=DATABASE)


def test_all_is_well(server: Postgres, environ: dict[str, str]) -> None:
    """Policies that bind the role, on tables of another: said so with the setting that they read, and they do."""
    assert [(check.name, check.state, check.found) for check in examine(environ)] == ALL_IS_WELL
    assert as_tenant_a(server, "SELECT tenant_id FROM shop.orders") == [["a"]]
    assert server.execute("TABLE shop.orders", user="app", database=DATABASE) == []


def test_settings_that_policies_read_can_be_required(environ: dict[str, str]) -> None:
    """What is required already is not advised; what is not is added to it, by the name of the variable."""
    required = examine(environ | {"PLUNGEPOOL_REQUIRE_SETTINGS": "app.tenant_id,app.other"})[-1].found
    assert required == "policies apply to app in shop.orders; they read app.tenant_id"
    theirs = {f"REPORTS_{name}": value for name, value in environ.items()}
    theirs["REPORTS_PLUNGEPOOL_REQUIRE_SETTINGS"] = "app.other"
    *_, last = check_environment(theirs, prefix="REPORTS_", rls=True)
    assert "REPORTS_PLUNGEPOOL_REQUIRE_SETTINGS=app.other,app.tenant_id would refuse" in last.found


@pytest.mark.parametrize("what", [where_it_is(one.what, f"{one.made_by}; {one.shows}") for one in SET_UPS])
def test_set_up_leads_to_its_cure(server: Postgres, environ: dict[str, str], what: str) -> None:
    """What lets a row of another tenant through is told, with its cure; and it does let one through."""
    (set_up,) = (one for one in SET_UPS if one.what == what)
    cure = set_up.cure
    if version(server) < 15:
        cure = re.sub(r" SET \(security_invoker.*", " OWNER TO …, a role that policies bind", cure)
    server.execute(set_up.made_by, database=DATABASE)
    found = examine(environ)
    told = [check for check in found if (check.name, check.state) == (set_up.step, set_up.state) and set_up.says in check.found]  # fmt: skip
    assert len(told) == 1, found
    assert cure in told[0].cure
    if set_up.shows == OF_B:
        # What shows is said to be bound nowhere.
        assert [check.found for check in found if check.name == "RLS policies" and check.state == "ok"] == []
    if set_up.shows is None:
        assert set_up.state == "warning" or set_up.what == "REPLICATION"
    else:
        assert as_tenant_a(server, set_up.shows) != []


@pytest.mark.parametrize("what", [where_it_is(*one) for one in HARMLESS.items()])
def test_what_is_harmless_is_not_told(server: Postgres, environ: dict[str, str], what: str) -> None:
    """Neither a warning nor a failure where the rows of others stay hidden."""
    server.execute(HARMLESS[what], database=DATABASE)
    assert [check for check in examine(environ) if check.state != "ok"] == []


def test_page_shows_every_set_up() -> None:
    """docs/doctor.md has each set-up of the list above, in order, with its step and how cause and cure begin."""
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| `(RLS [a-z ]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert rows == [(one.what, one.step, one.state, one.says, one.cure) for one in SET_UPS]


def test_cures_can_be_copied(server: Postgres, environ: dict[str, str]) -> None:
    """Names that need quotes have them: the statement that is advised does what it says."""
    server.execute(
        'CREATE TABLE shop."Odd ""Orders" (tenant_id text); GRANT TRUNCATE, SELECT ON shop."Odd ""Orders" TO app;'
        'ALTER TABLE shop."Odd ""Orders" ENABLE ROW LEVEL SECURITY; CREATE POLICY "a b" ON shop."Odd ""Orders"'
        " USING (tenant_id = current_setting('app.tenant_id', true))",
        database=DATABASE,
    )
    (told,) = [check for check in examine(environ) if check.state != "ok"]
    server.execute(told.cure, database=DATABASE)
    assert {check.state for check in examine(environ)} == {"ok"}


def test_schemas_limit_what_is_looked_at(server: Postgres, environ: dict[str, str]) -> None:
    """Tables elsewhere are left out, but for what leads to those inside: a partition's schema, or a view's, may be another."""
    server.execute(
        """
        CREATE SCHEMA other; GRANT USAGE ON SCHEMA other TO app;
        CREATE TABLE other.notes (i int); GRANT SELECT ON other.notes TO app;
        CREATE VIEW other.look AS TABLE other.notes; GRANT SELECT ON other.look TO app;
        """,
        database=DATABASE,
    )
    everywhere = [(check.name, check.state) for check in examine(environ)]
    assert everywhere == [("RLS role", "ok"), ("RLS tables", "warning"), ("RLS policies", "ok")]
    for schemas in (["shop"], "shop"):
        found = [check for check in check_environment(environ, rls=True, schemas=schemas) if check.name[:3] == "RLS"]
        assert [(check.name, check.state, check.found) for check in found] == ALL_IS_WELL
    server.execute(
        """
        CREATE TABLE other.old_orders () INHERITS (shop.orders); GRANT SELECT ON other.old_orders TO app;
        CREATE VIEW other.orders AS TABLE shop.orders; GRANT SELECT ON other.orders TO app;
        """,
        database=DATABASE,
    )
    failed = [check.name for check in examine(environ, "shop") if check.state == "failed"]
    assert failed == ["RLS partitions", "RLS views"]


def test_a_schema_that_does_not_exist_is_no_success(environ: dict[str, str]) -> None:
    """A slip in a schema's name must not look as if all were well; the others are looked at all the same."""
    assert [(check.name, check.state) for check in examine(environ, "shpo")] == [
        ("RLS role", "ok"),
        ("RLS schemas", "failed"),
    ]
    both = examine(environ, "shpo", "shop")
    assert [check.state for check in both] == ["ok", "failed", "ok"]
    assert "'shpo'" in both[1].found
    assert "has no privileges on any table in schema public" in examine(environ, "public")[-1].found


def test_long_lists_are_counted(server: Postgres, environ: dict[str, str]) -> None:
    """Of very many tables twenty are named, and the others counted."""
    tables = "".join(f"CREATE TABLE shop.t{n:02} (i int); GRANT SELECT ON shop.t{n:02} TO app;" for n in range(25))
    server.execute(tables, database=DATABASE)
    (told,) = [check for check in examine(environ) if check.name == "RLS tables"]
    assert "read shop.t19 and 5 more" in told.found
    assert "(and 24 more)" in told.cure


def test_before_postgresql_16_createrole_is_enough(server: Postgres, environ: dict[str, str]) -> None:
    """A role with CREATEROLE makes itself a member of the tables' owner there, and membership alone is SET ROLE."""
    if version(server) >= 16:
        server.execute("ALTER ROLE app CREATEROLE", database=DATABASE)
        assert [(check.name, check.state, check.found) for check in examine(environ)] == ALL_IS_WELL
    with Postgres(binaries=BEFORE_16) as old:
        environ |= {"PLUNGEPOOL_PORT": str(old.port), "PLUNGEPOOL_DATABASE": "postgres"}
        old.execute(WELL)
        assert [(check.name, check.state, check.found) for check in examine(environ)] == ALL_IS_WELL
        old.execute("ALTER ROLE app CREATEROLE")
        told = examine(environ)
        old.execute("GRANT keeper TO app; SET ROLE keeper", user="app")
        then = examine(environ)
    assert [(check.name, check.state) for check in told] == [("RLS role", "failed"), ("RLS policies", "ok")]
    assert told[0].cure == "ALTER ROLE app NOCREATEROLE"
    assert [check.name for check in then] == ["RLS role", "RLS set role", "RLS owner", "RLS policies"]


# Something of each kind, so that each part of each query has a row to look at.
OF_EACH_KIND = """
    CREATE VIEW shop.all_orders AS TABLE shop.orders; GRANT SELECT ON shop.all_orders TO app;
    CREATE POLICY open ON shop.orders FOR SELECT TO app USING (item <> 'towel');
    CREATE TABLE shop.old_orders () INHERITS (shop.orders); GRANT SELECT ON shop.old_orders TO app;
    CREATE FUNCTION shop.every() RETURNS SETOF shop.orders SECURITY DEFINER LANGUAGE sql AS 'TABLE shop.orders';
    CREATE TABLE shop.loose (i int); ALTER TABLE shop.loose ENABLE ROW LEVEL SECURITY; GRANT admin TO app;
"""
# Whoever calls, reads, compares or casts by one of these is told so by an error. `"any"` is for functions in C alone.
PLANTED = """
    CREATE SCHEMA planted; GRANT USAGE ON SCHEMA planted TO app;
    CREATE FUNCTION planted.trap(what text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'planted %', what; END $$;
    DO $$
    DECLARE one record;
    BEGIN
        FOR one IN
            SELECT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
            FROM pg_proc p WHERE pronamespace = 'pg_catalog'::regnamespace AND NOT 2276 = ANY (proargtypes)
              AND proname IN ('current_setting', 'quote_ident', 'pg_has_role', 'format', 'starts_with', 'unnest',
                              'has_schema_privilege', 'has_table_privilege', 'has_any_column_privilege', 'pg_get_expr',
                              'has_function_privilege', 'pg_get_userbyid', 'pg_get_function_identity_arguments')
              AND NOT pg_get_function_identity_arguments(p.oid) ~ 'OUT|VARIADIC'
        LOOP
            EXECUTE format('CREATE FUNCTION planted.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L',
                           one.proname, one.arguments, one.result, format('BEGIN RAISE ''planted %s''; END', one.proname));
        END LOOP;
        CREATE FUNCTION planted.concat(text, oid, text) RETURNS text RETURN planted.trap('concat')::text;
        CREATE FUNCTION planted.concat(text, text) RETURNS text RETURN planted.trap('concat')::text;
        CREATE FUNCTION planted.format(text, name, name) RETURNS text RETURN planted.trap('format')::text;
        CREATE FUNCTION planted.format(text, name, name, text) RETURNS text RETURN planted.trap('format')::text;
        FOR one IN
            SELECT oprname, oprleft::regtype AS "left", oprright::regtype AS "right", row_number() OVER () AS number
            FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprname IN ('=', '<>', '<', '~', '!~')
              AND oprleft <> 0 AND NOT (SELECT bool_or(typtype = 'p') FROM pg_type WHERE oid IN (oprleft, oprright))
        LOOP
            EXECUTE format('CREATE FUNCTION planted.compare%s(%s, %s) RETURNS bool RETURN planted.trap(%L)',
                           one.number, one."left", one."right", 'operator ' || one.oprname);
            EXECUTE format('CREATE OPERATOR planted.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = planted.compare%s)',
                           one.oprname, one."left", one."right", one.number);
        END LOOP;
        FOR one IN SELECT unnest(ARRAY['pg_roles', 'pg_class', 'pg_namespace', 'pg_depend', 'pg_inherits', 'pg_rewrite',
                                       'pg_proc', 'pg_policy']) AS name LOOP
            EXECUTE format('CREATE VIEW planted.%I AS SELECT * FROM pg_catalog.%I WHERE planted.trap(%L) OFFSET 0', one.name, one.name, one.name);
            EXECUTE format('GRANT SELECT ON planted.%I TO app', one.name);
        END LOOP;
        FOR one IN SELECT unnest(ARRAY['int4', 'int8', 'text', 'oid', 'char', 'regclass', 'regtype', 'regprocedure']) AS name LOOP
            EXECUTE format('CREATE DOMAIN planted.%I AS pg_catalog.%I CHECK (planted.trap(%L))', one.name, one.name, one.name);
        END LOOP;
    END $$;
    ALTER ROLE app SET search_path = planted, pg_catalog;
"""  # fmt: skip


def test_a_role_s_search_path_leads_to_nothing_that_others_planted(server: Postgres, environ: dict[str, str]) -> None:
    """Names, operators and types that stand before PostgreSQL's own: none is called or read, and all is said as ever."""
    server.execute(OF_EACH_KIND, database=DATABASE)
    before = [check for check in examine(environ, "shop") if check.name != "RLS policies"]
    server.execute(PLANTED, database=DATABASE)
    after = examine(environ, "shop")
    assert [check for check in after if check.name != "RLS policies"] == before
    # PostgreSQL writes what the path hides with its schema.
    (policies,) = [check for check in after if check.name == "RLS policies"]
    assert "USING (item OPERATOR(pg_catalog.<>) 'towel'::pg_catalog.text) for SELECT" in policies.found


def test_nothing_pins_a_proxy(postgres: Postgres, server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a transaction pooler it asks for the same, and leaves nothing that ties the session."""
    for name in ("AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    with RdsProxy(postgres, endpoints=["localhost"], users={"app": "its own"}) as proxy:
        variables = proxy.variables("app", DATABASE)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PLUNGEPOOL_PINNING", "refuse")
        report = check_process(rls=True, schemas=["shop"])
        assert not proxy.counters.pinned
    told = [(check["name"], check["state"], check["found"]) for check in report["checks"] if check["name"][:3] == "RLS"]
    assert told == ALL_IS_WELL
    assert report["ok"] is True


def test_aurora_dsql_has_none(server: Postgres, environ: dict[str, str]) -> None:
    """Where there is no row-level security that is said, instead of a look at a catalog that is not there."""
    engine = build_engine(Settings.from_env(environ))
    dsql: Any = SimpleNamespace(auth="dsql")
    with engine.connect() as connection:
        (told,) = checks._row_security(dsql, connection, ())
    engine.dispose()
    assert (told.name, told.state) == ("RLS", "warning")


def test_command_says_it(server: Postgres, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`plungepool doctor --rls --schema shop`: nothing of it without the option, and 1 where rows get past policies."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    runner = CliRunner()
    plain = runner.invoke(application, ["doctor"])
    assert (plain.exit_code, "RLS" in plain.output) == (0, False)
    well = runner.invoke(application, ["doctor", "--rls", "--schema", "shop"])
    assert well.exit_code == 0
    assert "✓ RLS policies   policies apply to app in shop.orders; they read app.tenant_id" in well.output
    server.execute("ALTER ROLE app BYPASSRLS")
    ill = runner.invoke(application, ["doctor", "--rls", "--schema", "shop", "--json"])
    assert ill.exit_code == 1
    report = json.loads(ill.output)
    assert [check["found"] for check in report["checks"] if check["state"] == "failed"] == [
        "app has BYPASSRLS: no policy applies to it"
    ]
    alone = runner.invoke(application, ["doctor", "--schema", "shop"])
    assert alone.exit_code == 2
    assert "--rls" in alone.output
