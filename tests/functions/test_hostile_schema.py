"""
prepare_database as the administrator of a database in which others have planted what a name could find.

In databases that come from PostgreSQL 14 or before, everybody may create in schema public. A function or an operator
there whose parameters fit a call better than PostgreSQL's own is what the call finds; run by an administrator, it does
as an administrator may.
"""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import DBAPIError

import plungepool

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
FUNCTION = ROOT / "functions" / "prepare_database"
SOURCES = [FUNCTION / "preparation.py", FUNCTION / "roles.sql", *FUNCTION.glob("migrations/*.sql")]
SOURCES += [FUNCTION / "demo_data.sql"]
# The kinds of values that the statements pass around.
TYPES = ("text", "name", "boolean", "integer", "bigint", "oid", "numeric", "interval", "timestamptz")
ATTRIBUTES = "SELECT rolsuper, rolcreaterole, rolcreatedb, rolconnlimit FROM pg_roles WHERE rolname = $1"
# What each planted thing does: it notes that it ran, and makes its author what the case was about.
TRAP = """
    CREATE FUNCTION public.trap(what text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    BEGIN
        INSERT INTO public.trapped VALUES (what, session_user);
        EXECUTE format('ALTER ROLE %I CREATEROLE CREATEDB CONNECTION LIMIT -1', (SELECT author FROM public.authors));
    EXCEPTION WHEN insufficient_privilege THEN NULL;
    END $$;
"""


def called_functions() -> list[str]:
    """Return the names that are called anywhere in the preparation: a word before a parenthesis, and then some."""
    called = {name for path in SOURCES for name in re.findall(r"\b([a-z_]+) ?\(", path.read_text(encoding="utf-8"))}
    return sorted(called | {"version", "current_schema", "to_regclass", "current_database"})


def trapped(signature: str, result: str, what: str, value: str) -> str:
    """Return the statement that makes a function which notes that it ran."""
    body = f"BEGIN PERFORM public.trap('{what}'); RETURN {value}; END"
    return f"CREATE FUNCTION public.{signature} RETURNS {result} LANGUAGE plpgsql AS $$ {body} $$"


def plant(shop: Any) -> None:
    """
    As the application's role: a function and an operator of each fitting kind, and tables, types and casts.

    Functions of the names that are called anywhere, with up to three parameters of the first TYPES or one of any,
    operators between any two, views with the names of catalogs, domains with the names of types, and an implicit cast
    from text.
    """
    role = shop.app_role
    shop.postgres.execute(
        f"CREATE TABLE public.trapped (what text, who text); GRANT ALL ON public.trapped TO PUBLIC;"
        f"CREATE TABLE public.authors AS SELECT '{role}'::text AS author; GRANT ALL ON public.authors TO PUBLIC;{TRAP}",
        user=role,
        database=shop.database,
    )
    [known] = shop.execute("SELECT array_agg(DISTINCT proname::text) FROM pg_proc")[0]
    functions = sorted(set(called_functions()) & set(known))
    assert {"format", "set_config", "pg_advisory_xact_lock", "pg_has_role", "lpad"} <= set(functions)
    statements = []
    for name in functions:
        several = (itertools.product(TYPES[:4], repeat=number) for number in (0, 2, 3))
        for parameters in itertools.chain(itertools.product(TYPES), *several):
            statements.append(trapped(f"{name}({', '.join(parameters)})", "text", name, "''"))
    for number, operator in enumerate(("=", "<>", ">=", "||", "*", "+", "%")):
        for left, right in itertools.product(TYPES, repeat=2):
            result, value = ("boolean", "true") if operator in ("=", "<>", ">=") else (right, "NULL")
            statements += [
                trapped(f"operator_{number}({left}, {right})", result, f"operator {operator}", value),
                (
                    f"CREATE OPERATOR public.{operator} (FUNCTION = public.operator_{number}, LEFTARG = {left}, "
                    f"RIGHTARG = {right})"
                ),
            ]
    for catalog in ("pg_roles", "pg_namespace", "pg_class", "pg_database", "migrations"):
        columns = "*" if catalog != "migrations" else "0 AS version"
        source = f" FROM pg_catalog.{catalog}" if catalog != "migrations" else ""
        statements.append(
            f"CREATE VIEW public.{catalog} AS SELECT {columns}{source} WHERE public.trap('view {catalog}') IS NOT NULL"
        )
    statements += [
        trapped("checked(pg_catalog.text)", "boolean", "type", "true"),
        "CREATE DOMAIN public.text AS pg_catalog.text CHECK (public.checked(VALUE))",
        "CREATE DOMAIN public.uuid AS pg_catalog.uuid CHECK (public.checked(''))",
        "CREATE TYPE public.mine AS (a pg_catalog.text)",
        trapped("made(pg_catalog.text)", "public.mine", "cast", "NULL"),
        "CREATE CAST (pg_catalog.text AS public.mine) WITH FUNCTION public.made(pg_catalog.text) AS IMPLICIT",
    ]
    shop.postgres.execute(";".join(statements), user=role, database=shop.database)


@pytest.fixture
def prepare(empty_shop: Any, load: Callable[..., Any]) -> Callable[..., Any]:
    """prepare_database as the administrator of a database in which everybody may create in schema public."""
    empty_shop.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    function = load("prepare_database", empty_shop.url("postgres"))

    def invoke(**properties: Any) -> Any:
        return function.invoke({"role_name": empty_shop.app_role} | properties)

    invoke.module = function.module
    return invoke


# As a server has it, and as an administrator may have it who wants their own functions first: then nothing of
# PostgreSQL's own is safe that is not named in full.
@pytest.mark.parametrize("search_path", ['"$user", public', "public, pg_catalog"])
@pytest.mark.parametrize("first", [True, False])
def test_nothing_that_others_planted_runs_as_the_administrator(
    empty_shop: Any, prepare: Callable[..., Any], search_path: str, first: bool
) -> None:
    """Neither the first deployment nor a later one calls anything in public, and the role stays what it was."""
    role = empty_shop.app_role
    if first:
        empty_shop.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 20")
    else:
        prepare()
        empty_shop.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    plant(empty_shop)
    empty_shop.execute(f"ALTER DATABASE {empty_shop.database} SET search_path = {search_path}")
    plungepool.dispose_engine()
    result = prepare(demo_data=True, role_password="secret enough", iam_login=False)
    assert len(result["applied"]) == (4 if first else 0)
    assert empty_shop.execute("TABLE public.trapped") == []
    assert empty_shop.postgres.execute(ATTRIBUTES, role) == [[False, False, False, 20]]
    # Nor has any of it become a part of the shop: of a check, a default or a column. Asked with a path of its own, too.
    parts = """
        SET search_path = pg_catalog;
        SELECT pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace IN ('shop'::regnamespace, 'plungepool'::regnamespace, 'tenants'::regnamespace)
        UNION ALL SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
        UNION ALL SELECT pg_get_expr(polqual, polrelid) FROM pg_policy
        UNION ALL SELECT format_type(atttypid, atttypmod) FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace IN ('shop'::regnamespace, 'plungepool'::regnamespace, 'tenants'::regnamespace)
    """
    found = [row[0] for row in empty_shop.execute(parts)]
    assert len(found) > 20
    assert [part for part in found if "public." in part] == []


def test_the_case_itself(empty_shop: Any, prepare: Callable[..., Any]) -> None:
    """
    The application's role plants format(text, text) with an ALTER ROLE in it: the next deployment does not run it.
    """
    prepare()
    empty_shop.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    empty_shop.postgres.execute(
        f"""
        CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            EXECUTE 'ALTER ROLE {empty_shop.app_role} CREATEROLE CREATEDB';
            RETURN pg_catalog.format($1, VARIADIC ARRAY[$2]);
        END $$
        """,
        user=empty_shop.app_role,
        database=empty_shop.database,
    )
    prepare()
    assert empty_shop.postgres.execute(ATTRIBUTES, empty_shop.app_role) == [[False, False, False, 20]]


def test_what_an_earlier_version_let_happen_is_taken_back(empty_shop: Any, prepare: Callable[..., Any]) -> None:
    """A role that has won CREATEROLE and the like, and time-outs of its own, has neither after the next deployment."""
    prepare()
    role = empty_shop.app_role
    empty_shop.execute(f"ALTER ROLE {role} CREATEROLE CREATEDB REPLICATION BYPASSRLS CONNECTION LIMIT -1")
    for where in ("", f"IN DATABASE {empty_shop.database}"):
        empty_shop.postgres.execute(
            f"ALTER ROLE {role} {where} SET statement_timeout = 0; ALTER ROLE {role} {where} SET lock_timeout = 0",
            user=role,
            database=empty_shop.database,
        )
    prepare()
    assert empty_shop.postgres.execute(ATTRIBUTES, role) == [[False, False, False, 20]]
    more = "SELECT rolreplication, rolbypassrls FROM pg_roles WHERE rolname = $1"
    assert empty_shop.postgres.execute(more, role) == [[False, False]]
    for setting, value in {"statement_timeout": "10s", "lock_timeout": "3s"}.items():
        assert empty_shop.postgres.execute(f"SHOW {setting}", user=role, database=empty_shop.database) == [[value]]


@pytest.mark.parametrize("through", ["the administrator", "a superuser", "rds_superuser", "the owner of the database"])
def test_a_role_that_may_become_the_administrator_is_refused(
    empty_shop: Any, prepare: Callable[..., Any], through: str
) -> None:
    """Membership is as good as the role itself: limits mean nothing to who may SET ROLE."""
    role = empty_shop.app_role
    other = "rds_superuser" if through == "rds_superuser" else "shop_other"
    empty_shop.execute(f"CREATE ROLE {role} LOGIN; CREATE ROLE {other}")
    try:
        if through == "the administrator":
            empty_shop.execute(f"GRANT postgres TO {role}")
        elif through == "rds_superuser":  # no superuser to PostgreSQL
            empty_shop.execute(f"GRANT rds_superuser TO {role}")
        elif through == "a superuser":
            empty_shop.execute(f"ALTER ROLE shop_other SUPERUSER; GRANT shop_other TO {role}")
        else:
            empty_shop.execute(f"ALTER DATABASE {empty_shop.database} OWNER TO shop_other; GRANT shop_other TO {role}")
        with pytest.raises(DBAPIError, match=f'role "{role}" owns this database'):
            prepare()
    finally:
        plungepool.dispose_engine()
        empty_shop.execute(f"ALTER DATABASE {empty_shop.database} OWNER TO postgres; DROP ROLE {other}, {role}")


def test_everybody_s_right_to_create_in_public_ends(empty_shop: Any, prepare: Callable[..., Any]) -> None:
    """
    As in a database that PostgreSQL 15 made; the role can plant nothing any more, and what it had stays and harms none.
    """
    assert prepare()["public_may_create"] is False
    with pytest.raises(Exception, match="42501"):
        empty_shop.postgres.execute(
            "CREATE FUNCTION public.late() RETURNS int LANGUAGE sql RETURN 1",
            user=empty_shop.app_role,
            database=empty_shop.database,
        )
    # A schema public that somebody has removed is no reason to fail.
    empty_shop.execute("DROP SCHEMA public")
    assert prepare()["public_may_create"] is False


def test_an_administrator_who_may_not_take_that_right_back_says_so(
    empty_shop: Any, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Where schema public is somebody else's, the deployment goes on, as safe, and the log says what its owner has to do.
    """
    owner = "shop_owner"
    empty_shop.execute(f"GRANT CREATE ON SCHEMA public TO PUBLIC; CREATE ROLE {owner} LOGIN CREATEROLE")
    empty_shop.execute(
        f"ALTER SCHEMA public OWNER TO postgres; GRANT CREATE ON DATABASE {empty_shop.database} TO {owner}"
    )
    try:
        function = load("prepare_database", empty_shop.url(owner))
        assert function.invoke({"role_name": empty_shop.app_role})["public_may_create"] is True
        assert "REVOKE CREATE ON SCHEMA public FROM PUBLIC" in caplog.text
        # Neither a superuser nor the database's owner, and still not to be the application.
        # Not "a role of its own", which stands in the statement that every error of it quotes.
        with pytest.raises(DBAPIError, match=f'role "{owner}" owns this database'):
            function.invoke({"role_name": owner})
    finally:
        plungepool.dispose_engine()
        empty_shop.execute(f"DROP OWNED BY {empty_shop.app_role}; DROP ROLE {empty_shop.app_role}")
        empty_shop.execute(f"DROP OWNED BY {owner} CASCADE; DROP ROLE {owner}")


@pytest.mark.parametrize("what", ["SCHEMA shop", "TABLE shop.migrations"])
def test_a_schema_of_somebody_else_is_refused(empty_shop: Any, prepare: Callable[..., Any], what: str) -> None:
    """
    Its owner could have a trigger there run as the administrator: the error names the owner and the cure, which works.
    """
    empty_shop.execute("CREATE ROLE shop_other; CREATE SCHEMA shop")
    empty_shop.execute(
        "CREATE TABLE shop.migrations (version int PRIMARY KEY, name text NOT NULL, checksum text NOT NULL)"
    )
    empty_shop.execute(f"ALTER {what} OWNER TO shop_other")
    try:
        with pytest.raises(prepare.module.preparation.PreparationError, match=f"shop_other.*ALTER {what} OWNER TO"):
            prepare()
        # Another superuser's is as good as one's own.
        empty_shop.execute("ALTER ROLE shop_other SUPERUSER")
        assert len(prepare()["applied"]) == 4
        empty_shop.execute(f"ALTER ROLE shop_other NOSUPERUSER; ALTER {what} OWNER TO postgres")
        assert prepare()["applied"] == []
    finally:
        plungepool.dispose_engine()
        empty_shop.execute("DROP ROLE shop_other")


def test_the_role_cannot_hold_up_a_deployment(empty_shop: Any, prepare: Callable[..., Any]) -> None:
    """The advisory lock is anybody's: after the first deployment nothing waits for it."""
    prepare()
    role = plungepool.build_engine(empty_shop.settings())
    with role.begin() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({prepare.module.preparation.LOCK})")
        assert prepare()["applied"] == []
    role.dispose()


def test_a_script_names_its_schemas(empty_shop: Any, prepare: Callable[..., Any], tmp_path: Path) -> None:
    """
    A migration finds PostgreSQL's own names only, and makes nothing where it did not say; it may set a path itself.
    """
    migrate, deadline = prepare.module.preparation.migrate, time.time() + 60
    empty_shop.execute("CREATE FUNCTION public.now(text) RETURNS text LANGUAGE sql RETURN 'planted'")
    for unqualified in ("CREATE TABLE notes (id int)", "SELECT now('x')", "CREATE FUNCTION f() RETURNS int RETURN 1"):
        (tmp_path / "001_unqualified.sql").write_text(unqualified)
        with pytest.raises(DBAPIError) as raised, plungepool.get_engine().begin() as connection:
            migrate(connection, [tmp_path / "001_unqualified.sql"], deadline)
        assert raised.value.orig.sqlstate in ("3F000", "42883")
    (tmp_path / "001_path.sql").write_text("SET LOCAL search_path = shop, public; CREATE TABLE mine AS SELECT now('x')")
    (tmp_path / "002_next.sql").write_text("CREATE TABLE shop.next AS SELECT current_setting('search_path') AS path")
    with plungepool.get_engine().begin() as connection:
        migrate(connection, [tmp_path / "001_path.sql", tmp_path / "002_next.sql"], deadline)
        assert connection.exec_driver_sql("SHOW search_path").scalar() == "pg_catalog, pg_temp"
    assert empty_shop.execute("SELECT * FROM shop.mine") == [["planted"]]
    assert empty_shop.execute("SELECT path FROM shop.next") == [['""']]


@pytest.mark.parametrize("search_path", ['"$user", public', "public, pg_catalog"])
def test_roles_by_hand_run_nothing_that_others_planted(
    empty_shop: Any, prepare: Callable[..., Any], search_path: str
) -> None:
    """roles.sql is safe by itself, as psql runs it: each statement a transaction of its own."""
    prepare()
    empty_shop.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    plant(empty_shop)
    roles = (FUNCTION / "roles.sql").read_text(encoding="utf-8")
    empty_shop.execute(
        f"SET search_path = {search_path}; SET plungepool.role_name = '{empty_shop.app_role}';"
        "SET plungepool.connection_limit = '7'; SET plungepool.iam_login = 'false'; COMMIT;" + roles
    )
    assert empty_shop.execute("TABLE public.trapped") == []
    assert empty_shop.postgres.execute(ATTRIBUTES, empty_shop.app_role) == [[False, False, False, 7]]
