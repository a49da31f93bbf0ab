"""
prepare_database: any number of times, all or nothing, the limits and no right too many; CloudFormation is answered.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import moto
import pg8000.exceptions
import psycopg
import pytest
from hypothesis import given, strategies
from sqlalchemy.exc import DBAPIError

import plungepool
from plungepool.wire import session
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTION = Path(__file__).parents[2] / "functions" / "prepare_database"


@pytest.fixture
def prepare(empty_shop: Any, load: Any) -> Any:
    """The function as the owner of a database with nothing in it, and a role that does not exist."""
    function = load("prepare_database", empty_shop.url("postgres"))

    def invoke(**properties: Any) -> Any:
        return function.invoke({"role_name": empty_shop.app_role} | properties)

    invoke.module = function.module
    return invoke


def in_a_minute() -> Any:
    """Return a deadline that no test reaches."""
    return time.time() + 60


def tables(shop: Any) -> Any:
    return [row[0] for row in shop.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'shop' ORDER BY 1")]


# The schema


def test_it_prepares_once_and_again_without_a_change(empty_shop: Any, prepare: Any) -> None:
    """The first run makes all; the second applies nothing and leaves every row as it was."""
    first = prepare(demo_data=True)
    assert first["applied"] == sorted(file.name for file in (FUNCTION / "migrations").glob("*.sql"))
    before = empty_shop.contents()
    second = prepare(demo_data=True)
    assert second["changed"] == []
    assert {name: of["before"] for name, of in second["limits"].items()} == {
        name: of["after"] for name, of in first["limits"].items()
    }
    assert second == first | {name: second[name] for name in ("limits", "changed")} | {"applied": []}
    assert empty_shop.contents() == before
    assert len(before) > 80


def test_two_at_once_prepare_once(empty_shop: Any, prepare: Any, tmp_path: Path) -> None:
    """Invocations at the same moment wait for each other, the first time and later: each migration is applied once."""
    preparation = prepare.module.preparation
    options = preparation.Options.read({"role_name": empty_shop.app_role, "demo_data": True})
    later = [*sorted((FUNCTION / "migrations").glob("*.sql")), tmp_path / "005_slow.sql"]
    later[-1].write_text("CREATE TABLE shop.slow (); SELECT pg_sleep(0.1);")
    engine = plungepool.build_engine(empty_shop.settings("postgres", pool_size=4))
    begin = threading.Barrier(4)
    applied = []

    def run(work: Any) -> None:
        with engine.connect() as connection:
            begin.wait()
            with connection.begin():
                applied.append(work(connection))

    for work, expected in [
        (lambda connection: len(preparation.prepare(connection, options, 60)["applied"]), 4),
        (lambda connection: len(preparation.migrate(connection, later, in_a_minute())[0]), 1),
    ]:
        applied.clear()
        threads = [threading.Thread(target=run, args=(work,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(applied) == [0, 0, 0, expected]
    engine.dispose()


def test_a_new_migration_is_applied_alone(empty_shop: Any, prepare: Any, tmp_path: Path) -> None:
    """What was applied stays; the file with the next number is run."""
    prepare()
    preparation = prepare.module.preparation
    (tmp_path / "005_notes.sql").write_text("CREATE TABLE shop.notes (id int); CREATE INDEX ON shop.notes (id);")
    files = [*sorted((FUNCTION / "migrations").glob("*.sql")), tmp_path / "005_notes.sql"]
    with plungepool.get_engine().begin() as connection:
        assert preparation.migrate(connection, files, in_a_minute()) == (["005_notes.sql"], 5)
    assert "notes" in tables(empty_shop)
    # The function as it was before knows four of the five, as after a deployment that was rolled back.
    assert prepare()["schema_version"] == 5


def test_a_changed_migration_is_refused(empty_shop: Any, prepare: Any) -> None:
    """A file that is not what was applied under its number stops the run, by name."""
    prepare()
    empty_shop.execute("UPDATE shop.migrations SET checksum = 'another' WHERE version = 1")
    with pytest.raises(
        prepare.module.preparation.PreparationError, match=r"001_tables\.sql differs from what was applied"
    ):
        prepare()


def test_a_failing_migration_leaves_nothing(empty_shop: Any, prepare: Any, tmp_path: Path) -> None:
    """An error in the last statement undoes the first, and the migrations before it."""
    (tmp_path / "001_good.sql").write_text("CREATE TABLE shop.good (id int);")
    (tmp_path / "002_bad.sql").write_text("CREATE TABLE shop.bad (id int); SELECT 1 / 0;")
    with pytest.raises(DBAPIError) as raised, plungepool.get_engine().begin() as connection:
        prepare.module.preparation.migrate(connection, sorted(tmp_path.glob("*.sql")), in_a_minute())
    assert raised.value.orig.sqlstate == "22012"
    assert tables(empty_shop) == []


def test_two_migrations_with_one_number_are_refused(empty_shop: Any, prepare: Any, tmp_path: Path) -> None:
    """Two branches that both wrote a 003 are told so before anything runs."""
    for name in ("003_mine.sql", "003_yours.sql"):
        (tmp_path / name).write_text("SELECT 1;")
    preparation = prepare.module.preparation
    with (
        pytest.raises(preparation.PreparationError, match="same number"),
        plungepool.get_engine().begin() as connection,
    ):
        preparation.migrate(connection, sorted(tmp_path.glob("*.sql")), in_a_minute())


def test_a_lock_that_is_held_ends_the_wait_in_time(empty_shop: Any, prepare: Any) -> None:
    """While another session prepares, the wait ends by the server's time-out, with time left to say so."""
    preparation = prepare.module.preparation
    other = plungepool.build_engine(empty_shop.settings("postgres"))
    with other.begin() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({preparation.LOCK})")
        with pytest.raises(DBAPIError) as raised, plungepool.get_engine().begin() as waiting:
            preparation.prepare(waiting, preparation.Options.read({}), 3)
    other.dispose()
    assert raised.value.orig.sqlstate in ("55P03", "57014")


def test_all_of_a_script_ends_in_time(empty_shop: Any, prepare: Any, tmp_path: Path) -> None:
    """Each statement has what is left and not what there was: the second one is ended, or not begun."""
    preparation = prepare.module.preparation
    (tmp_path / "001_slow.sql").write_text("SELECT pg_sleep(0.6); SELECT pg_sleep(0.6);")
    with pytest.raises((DBAPIError, preparation.PreparationError)) as raised:
        with plungepool.get_engine().begin() as connection:
            preparation.migrate(connection, [tmp_path / "001_slow.sql"], time.time() + 1)
    assert getattr(getattr(raised.value, "orig", None), "sqlstate", "57014") == "57014"
    with pytest.raises(preparation.PreparationError, match="increase the function's time-out"):
        with plungepool.get_engine().begin() as connection:
            preparation.migrate(connection, [], time.time())
    assert tables(empty_shop) == []


def test_scripts_are_split_at_the_ends_of_statements(load: Any) -> None:
    """Semicolons in literals, names, comments and bodies end nothing; comments alone are no statement."""
    split = load("prepare_database", "postgresql://nobody@nowhere").module.preparation.statements
    assert split("SELECT 1; SELECT 2") == ["SELECT 1", "SELECT 2"]
    assert split("SELECT ';' || 'it''s; so' AS \"a;b\"; -- no; not this\n/* nor; this */") == [
        "SELECT ';' || 'it''s; so' AS \"a;b\""
    ]
    assert split("DO $$ BEGIN; END $$; DO $a$ $b$ ; $b$ $a$;") == ["DO $$ BEGIN; END $$", "DO $a$ $b$ ; $b$ $a$"]
    assert split(" ;; \n-- only a comment;\n;") == []


@given(strategies.lists(strategies.text("ab'\";-$/*\n :%", max_size=12)))
def test_splitting_reads_any_literals(texts: Any) -> None:
    """Whatever text stands in a literal, as many statements come out as went in."""
    sys.path.insert(0, str(FUNCTION))
    try:
        from preparation import statements
    finally:
        sys.path.remove(str(FUNCTION))
        sys.modules.pop("preparation", None)
    script = [f"""SELECT '{text.replace("'", "''")}'""" for text in texts]
    assert statements(";\n".join(script)) == script


def test_colons_and_percent_signs_in_a_script_stay(empty_shop: Any, prepare: Any, tmp_path: Path) -> None:
    """What SQLAlchemy or the driver would take for a parameter reaches the server as it was written."""
    literal = "at :noon, 12:30, 100%, %s, %(x)s, ::, a\\b"
    (tmp_path / "001_literal.sql").write_text(f"CREATE TABLE shop.said AS SELECT '{literal}'::text AS said;")
    with plungepool.get_engine().begin() as connection:
        prepare.module.preparation.migrate(connection, [tmp_path / "001_literal.sql"], in_a_minute())
    assert empty_shop.execute("SELECT said FROM shop.said") == [[literal]]


# The role


def test_the_role_has_its_limits(empty_shop: Any, prepare: Any) -> None:
    """The server enforces the number of connections and four time-outs, and a change of the number is made."""
    prepare(connection_limit=7)
    ask = (
        "SELECT rolconnlimit, rolconfig, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname "
        "= $1"
    )
    time_outs = [
        "statement_timeout=10s",
        "lock_timeout=3s",
        "idle_in_transaction_session_timeout=10s",
        "idle_session_timeout=15min",
    ]
    [[limit, config, *attributes]] = empty_shop.execute(ask, empty_shop.app_role)
    assert (limit, sorted(config), attributes) == (7, sorted(time_outs), [True, False, False, False])
    prepare(connection_limit="3")
    assert empty_shop.execute(ask, empty_shop.app_role)[0][0] == 3


LIMITS = (
    "connection_limit",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
)


def settings_of(shop: Any) -> Any:
    """Return what PostgreSQL has for the role, with the row's own version, which every ALTER ROLE changes."""
    return shop.execute(
        "SELECT a.xmin::text, a.rolconnlimit, s.xmin::text, s.setdatabase::int, s.setconfig FROM pg_authid a "
        "LEFT JOIN pg_db_role_setting s ON s.setrole = a.oid WHERE rolname = $1 ORDER BY s.setdatabase",
        shop.app_role,
    )


def test_the_limits_are_those_that_are_asked_for(
    empty_shop: Any, prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the event, CloudFormation's properties (text), or the variables; and a session begins with them."""
    prepare(statement_timeout_s=0.25, lock_timeout_s=0, idle_in_transaction_session_timeout_s=60, connection_limit=4)
    engine = plungepool.build_engine(empty_shop.settings())
    with engine.connect() as connection:
        shown = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in LIMITS[1:]]
    engine.dispose()
    assert shown == ["250ms", "0", "1min", "15min"]
    names = {"statement_timeout": "StatementTimeoutS", "idle_session_timeout": "IdleSessionTimeoutS"}
    monkeypatch.setenv("APP_ROLE_LOCK_TIMEOUT_S", "7")
    monkeypatch.setenv("APP_ROLE_STATEMENT_TIMEOUT_S", "8")
    limits = prepare(**{names["statement_timeout"]: "90", names["idle_session_timeout"]: "3600"})["limits"]
    assert {name: of["after"] for name, of in limits.items()} == {
        "connection_limit": 20,
        "statement_timeout": "90s",
        "lock_timeout": "7s",
        "idle_in_transaction_session_timeout": "10s",
        "idle_session_timeout": "1h",
    }


def test_it_says_what_it_found_and_what_it_changed(
    empty_shop: Any, prepare: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Each limit before and after, with what was set in this database alone; a second run writes nothing."""
    role = empty_shop.app_role
    first = prepare()
    assert {of["before"] for of in first["limits"].values()} == {None}
    assert first["changed"] == list(LIMITS)
    empty_shop.execute(f"ALTER ROLE {role} SET statement_timeout = '5min'; ALTER ROLE {role} CONNECTION LIMIT -1")
    empty_shop.execute(f"ALTER ROLE {role} RESET lock_timeout; ALTER ROLE {role} SET work_mem = '5MB'")
    for own in ("idle_session_timeout = '1h'", "work_mem = '6MB'", "idle_session_timeout = '2h'"):
        empty_shop.execute(f"ALTER ROLE {role} IN DATABASE {empty_shop.database} SET {own}")
    caplog.clear()
    found = prepare()
    assert found["limits"] == {
        "connection_limit": {"before": -1, "before_here": None, "after": 20},
        "statement_timeout": {"before": "5min", "before_here": None, "after": "10s"},
        "lock_timeout": {"before": None, "before_here": None, "after": "3s"},
        "idle_in_transaction_session_timeout": {"before": "10s", "before_here": None, "after": "10s"},
        "idle_session_timeout": {"before": "15min", "before_here": "2h", "after": "15min"},
    }
    assert found["changed"] == ["connection_limit", "statement_timeout", "lock_timeout", "idle_session_timeout"]
    said = (
        "limits of the role: connection_limit unlimited -> 20, statement_timeout 5min -> 10s, lock_timeout not set -> "
        "3s, idle_in_transaction_session_timeout 10s, idle_session_timeout 15min (2h in this database) -> 15min"
    )
    assert said in caplog.text
    before = settings_of(empty_shop)
    # What is none of the limits stays.
    assert [(row[1], row[4]) for row in before][1] == (20, ["work_mem=6MB"])
    assert prepare()["changed"] == []
    assert settings_of(empty_shop) == before


def test_connections_beyond_the_limit_are_refused(empty_shop: Any, prepare: Any) -> None:
    """With a limit of 2 the third connection of the role gets 53300, whatever the client would like."""
    prepare(connection_limit=2)
    engine = plungepool.build_engine(empty_shop.settings(pool_size=3))
    with engine.connect(), engine.connect(), pytest.raises(DBAPIError) as raised:
        engine.connect()
    engine.dispose()
    assert raised.value.orig.sqlstate == "53300"


def test_the_role_may_do_no_more_than_the_functions_need(shop: Any) -> None:
    """What no function does, the role may not do: 42501."""
    for forbidden in [
        "UPDATE shop.products SET price = 0",
        "INSERT INTO shop.products VALUES ('X', 'x', 1, 1)",
        "DELETE FROM shop.orders",
        "UPDATE shop.orders SET total = 0",
        "SELECT FROM shop.migrations",
        "UPDATE shop.customers SET name = ''",
        "CREATE TABLE shop.mine ()",
        "TRUNCATE shop.shipments",
        "ALTER ROLE current_user CONNECTION LIMIT -1",
    ]:
        with pytest.raises(pg8000.exceptions.DatabaseError) as raised:
            shop.postgres.execute(forbidden, user=shop.app_role, database=shop.database)
        assert (forbidden, raised.value.args[0]["C"]) == (forbidden, "42501")


def test_names_are_quoted(empty_shop: Any, prepare: Any) -> None:
    """A role's name may hold anything: it is a name and never SQL."""
    name = 'o\'Brien "the" $$;%s :x \\ ROLE'
    empty_shop.app_role = name.replace('"', '""')  # as the fixture drops it
    assert prepare(role_name=name)["role_name"] == name
    assert empty_shop.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", name) == [[20]]
    empty_shop.execute(f'DROP OWNED BY "{empty_shop.app_role}"')


def test_the_owner_is_not_made_the_application(empty_shop: Any, prepare: Any) -> None:
    """Limiting the owner, or a superuser, would lock everybody out: refused, and nothing is prepared."""
    with pytest.raises(DBAPIError, match='role "postgres" owns this database'):
        prepare(role_name="postgres")
    assert tables(empty_shop) == []
    assert empty_shop.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'postgres'") == [[-1]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"connection_limit": 0}, "connection_limit must be"),
        ({"connection_limit": -1}, "connection_limit must be"),
        ({"connection_limit": "20; DROP"}, "connection_limit must be"),
        ({"connection_limit": True}, "connection_limit must be"),
        ({"statement_timeout_s": -1}, "statement_timeout_s must be"),
        ({"lock_timeout_s": "3s"}, "lock_timeout_s must be"),
        ({"idle_session_timeout_s": 86401}, "idle_session_timeout_s must be"),
        ({"idle_in_transaction_session_timeout_s": "0.0001"}, "idle_in_transaction_session_timeout_s must be"),
        ({"StatementTimeoutS": "1'; DROP ROLE x"}, "statement_timeout_s must be"),
        ({"statement_timeout": 5}, r"statement_timeout is not an option \(did you mean statement_timeout_s\?\)"),
        ({"role_name": "x" * 64}, "role_name must be"),
        ({"role_name": "a\0b"}, "role_name must be"),
        ({"role_name": 7}, "role_name must be"),
        ({"role_password": 1234567}, "role_password must be"),
        ({"demo_data": "yes"}, "demo_data must be"),
        ({"iam_login": "maybe"}, "iam_login must be"),
    ],
)
def test_wrong_options_are_refused_by_name(load: Any, wrong: Any, message: str) -> None:
    """An option that makes no sense is named, never with a password's value, and nothing is connected."""
    preparation = load("prepare_database", "postgresql://nobody@nowhere").module.preparation
    with pytest.raises(preparation.PreparationError, match=message) as raised:
        preparation.Options.read(wrong)
    assert "1234567" not in str(raised.value)


def test_all_that_is_wrong_is_named_at_once(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error has every option that is wrong, whichever way it came, and no value."""
    preparation = load("prepare_database", "postgresql://nobody@nowhere").module.preparation
    monkeypatch.setenv("APP_ROLE_LOCK_TIMEOUT_S", "a minute")
    wrong = {"connection_limit": 0, "statement_timeout_s": "x", "role_name": 7, "demo_data": "perhaps", "limit": 5}
    with pytest.raises(preparation.PreparationError) as raised:
        preparation.Options.read(wrong)
    said = str(raised.value).split("; ")
    assert [problem.split()[0] for problem in said] == [
        "limit",
        "role_name",
        "connection_limit",
        "statement_timeout_s",
        "lock_timeout_s",
        "demo_data",
    ]
    assert "perhaps" not in str(raised.value)
    assert "a minute" not in str(raised.value)


def test_the_password_works_and_never_reaches_the_server_as_text(load: Any) -> None:
    """The role logs in by SCRAM with the password; the server's log of all statements does not hold it."""
    password = 'pool\'; "side" \N{LATIN SMALL LETTER U WITH DIAERESIS}ber'
    with Postgres({"log_statement": "all", "log_parameter_max_length": -1}, authentication="scram-sha-256") as server:
        function = load("prepare_database", server.url("postgres"))
        function.invoke({"role_password": password})
        assert server.execute("SELECT current_user::text", user="plungepool_app", password=password) == [
            ["plungepool_app"]
        ]
        assert "SCRAM-SHA-256$" in server.log
        assert password not in server.log
        assert "pool'" not in server.log.replace("''", "'")
        function.invoke({})  # without a password the one it has stays
        server.execute("SELECT 1", user="plungepool_app", password=password)


# What SASLprep maps, leaves, or refuses; PostgreSQL and libpq take what it refuses as it is.
PASSWORDS = [
    "pw\U0001f600",
    "\u05d0\u05d11",
    "line\n",
    "\u00aa\u2168",
    "non\u00a0breaking",
    "\u00ad",
    "soft\u00adhyphen",
    "\x7f",
]


def test_any_password_is_the_one_to_log_in_with(load: Any) -> None:
    """Emoji, right-to-left letters with a digit, a line's end: whatever the role is given, libpq logs in with."""
    with Postgres(authentication="scram-sha-256") as server:
        function = load("prepare_database", server.url("postgres"))
        for password in PASSWORDS:
            function.invoke({"role_password": password})
            with psycopg.connect(server.url("plungepool_app"), password=password) as connection:
                assert connection.execute("SELECT current_user").fetchone() == ("plungepool_app",)
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(server.url("plungepool_app"), password=password + "x")


def test_no_repr_and_no_frame_of_an_error_shows_the_password(
    empty_shop: Any, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What a crash reporter prints, the locals of every frame that an error passes, holds no password; nor does a repr.
    """
    preparation = load("prepare_database", empty_shop.url("postgres")).module.preparation
    password = "never to be seen"
    monkeypatch.setenv("APP_ROLE_PASSWORD", password)
    options = preparation.Options.read({"role_name": "pg_reserved"})
    assert options.role_password == password
    assert "role_name='pg_reserved'" in repr(options)
    assert password not in repr(options)

    def in_database() -> None:
        with plungepool.get_engine().begin() as connection:
            preparation.prepare(connection, options, 60)

    contents = {"username": "somebody", "password": password}
    answers = iter([json.dumps(contents), json.dumps(contents)[:-1], json.dumps([password]), password])
    secret = SimpleNamespace(get_secret_value=lambda **_: {"SecretString": next(answers)})
    monkeypatch.setattr(boto3, "client", lambda name: secret)
    attempts = [in_database, *[lambda: preparation.Options.read({"role_secret_arn": "arn"})] * 4]
    attempts += [
        lambda wrong=wrong: preparation.Options.read(wrong) for wrong in ({"demo_data": "x"}, {"role_name": 7})
    ]
    for attempt in attempts:
        with pytest.raises((preparation.PreparationError, DBAPIError)) as raised:
            attempt()
        error = raised.value
        while error is not None:
            assert password not in f"{error!r} {error}"
            for frame, _ in traceback.walk_tb(error.__traceback__):
                if Path(frame.f_code.co_filename).name != Path(__file__).name:
                    assert password not in repr(frame.f_locals), frame.f_code.co_qualname
            error = error.__cause__ or error.__context__


def test_the_password_comes_from_the_secret_that_the_proxy_has(
    load: Any, monkeypatch: pytest.MonkeyPatch, empty_shop: Any
) -> None:
    """With APP_ROLE_SECRET_ARN the role gets that secret's password; a secret of somebody else is refused, unquoted."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(name, value)
    function = load("prepare_database", empty_shop.url("postgres"))
    with moto.mock_aws():
        client = boto3.client("secretsmanager")
        secret = client.create_secret(
            Name="app", SecretString=json.dumps({"username": empty_shop.app_role, "password": "from the secret"})
        )
        monkeypatch.setenv("APP_ROLE_SECRET_ARN", secret["ARN"])
        function.invoke({"role_name": empty_shop.app_role})
        read = "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = $1"
        assert empty_shop.execute(read, empty_shop.app_role) == [[True]]
        refusal = function.module.preparation.PreparationError
        with pytest.raises(refusal, match="must be JSON with the username 'somebody'") as raised:
            function.invoke({"role_name": "somebody"})
        assert "from the secret" not in str(raised.value)
        monkeypatch.setenv("APP_ROLE_SECRET_ARN", "gone")
        with pytest.raises(refusal, match="cannot be read"):
            function.invoke({})


@pytest.fixture
def rds_iam(postgres: Postgres) -> Iterator[None]:
    """The role that RDS and Aurora have."""
    postgres.execute("CREATE ROLE rds_iam")
    yield
    postgres.execute("DROP ROLE rds_iam")


def test_iam_login_is_granted_where_it_can_be_used(empty_shop: Any, prepare: Any, rds_iam: None) -> None:
    """rds_iam goes to a role without a password, is taken back when it gets one, and follows iam_login if given."""

    def granted() -> bool:
        return empty_shop.execute("SELECT pg_has_role($1, 'rds_iam', 'MEMBER')", empty_shop.app_role)[0][0]

    for properties, expected in [
        ({}, True),
        ({"role_password": "a proxy's"}, False),
        ({"iam_login": True}, True),
        ({"iam_login": "false"}, False),
        ({"iam_login": False}, False),
    ]:
        prepare(**properties)
        assert (properties, granted()) == (properties, expected)


def test_an_owner_who_is_no_superuser_can_prepare(empty_shop: Any, prepare: Any, load: Any, rds_iam: None) -> None:
    """On RDS the owner may create roles and grant rds_iam, and is no superuser: it prepares, twice."""
    owner = "shop_owner"
    empty_shop.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE; GRANT rds_iam TO {owner} WITH ADMIN OPTION")
    empty_shop.execute(f"ALTER DATABASE {empty_shop.database} OWNER TO {owner}")
    try:
        function = load("prepare_database", empty_shop.url(owner))
        properties = {"role_name": empty_shop.app_role, "demo_data": True}
        assert len(function.invoke(properties)["applied"]) == 4
        for changed in ({"role_password": "a proxy's"}, {"connection_limit": 3, "iam_login": True}):
            assert function.invoke(properties | changed)["applied"] == []
        report = load("report_sales", empty_shop.url()).invoke({"time": "2026-01-15T06:00:00Z"})
        assert len(report["products"]) == 3
        with pytest.raises(DBAPIError, match=f'role "{owner}" owns this database'):
            load("prepare_database", empty_shop.url(owner)).invoke({"role_name": owner})
    finally:
        plungepool.dispose_engine()
        empty_shop.execute(f"DROP OWNED BY {empty_shop.app_role}; DROP ROLE {empty_shop.app_role}")
        empty_shop.execute(
            f"ALTER DATABASE {empty_shop.database} OWNER TO postgres; DROP OWNED BY {owner} CASCADE; DROP ROLE {owner}"
        )


def test_iam_login_needs_a_server_that_has_it(prepare: Any) -> None:
    """Asked for on a server that is no RDS, it is refused with what that means."""
    with pytest.raises(DBAPIError) as raised:
        prepare(iam_login=True)
    assert "no role rds_iam" in str(raised.value.orig)


# The drain, as an event


@pytest.fixture
def client(empty_shop: Any, prepare: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An engine of the application that keeps a connection, and the name of its role, as the function has it."""
    prepare()
    monkeypatch.setenv("APP_ROLE_NAME", empty_shop.app_role)
    engine = plungepool.build_engine(empty_shop.settings())
    yield engine
    engine.dispose()


def backend(engine: Any) -> int:
    """Do what an invocation does, and return the backend's process."""
    with engine.begin() as connection:
        return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()


def test_an_event_drains_the_application_s_connections(prepare: Any, client: Any, caplog: Any) -> None:
    """As `plungepool drain` does it, for the application's role: a dry run, and all of them; nothing is prepared."""
    function = sys.modules["app"]
    before = backend(client)
    counted = SimpleNamespace(get_remaining_time_in_millis=lambda: 60_000)
    result = function.draining.run({"drain": {"dry_run": True}}, counted)
    assert (result["found"], result["ended"], backend(client)) == (1, 0, before)
    result = function.draining.run({"drain": {"min_idle_s": 0.0}}, counted)
    assert {name: result[name] for name in ("role", "found", "ended", "left", "over")} == {
        "role": "shop_app",
        "found": 1,
        "ended": 1,
        "left": 0,
        "over": True,
    }
    assert "drained" in caplog.text
    assert backend(client) != before


@pytest.mark.parametrize("pool", ["tiny", "null", "adaptive"])
def test_a_drain_has_one_connection_and_no_ticket(
    empty_shop: Any, load: Any, client: Any, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    """Whatever the function's own variables say of its pool: a connect for each look would be the fleet's to bear."""
    monkeypatch.setenv("PLUNGEPOOL_POOL", pool)
    function = load("prepare_database", empty_shop.url("postgres"))
    opened: list[Any] = []
    with client.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        monkeypatch.setattr(session, "listener", lambda one, reply: opened.append(one) if reply is None else None)
        result = function.invoke({"drain": {}}, remaining_ms=6000)
    assert (result["left"], result["in_transaction"]) == (1, 1)
    assert [(one.first, one.closed) for one in opened] == [(None, True)]


def test_a_drain_of_aurora_dsql_is_refused(empty_shop: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command refuses it, and before anybody is asked for a token."""
    function = load("prepare_database", empty_shop.url("postgres"))
    monkeypatch.delenv("PLUNGEPOOL_URL")
    monkeypatch.delenv("PLUNGEPOOL_TLS")
    for name, value in {
        "HOST": "nobody.dsql.eu-west-1.on.aws",
        "USER": "app",
        "AUTH": "dsql",
        "REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(f"PLUNGEPOOL_{name}", value)
    with pytest.raises(plungepool.PlungepoolError, match="Aurora DSQL has no sessions to end"):
        function.invoke({"drain": {}})


def test_a_drain_by_an_unknown_name_is_told(empty_shop: Any, load: Any, client: Any, caplog: Any) -> None:
    """With the names that there are, since a slip would look like a fleet that is drained."""
    backend(client)
    function = load("prepare_database", empty_shop.url("postgres"))
    result = function.invoke({"drain": {"application": "handle_order"}})
    assert (result["found"], result["others"]) == (0, ["plungepool"])
    assert "no connection has that application_name" in caplog.text


def test_a_drain_ends_before_the_invocation_does(empty_shop: Any, load: Any, client: Any, caplog: Any) -> None:
    """Whatever its limit is, a transaction that does not end is left, told, and some time stays for the answer."""
    function = load("prepare_database", empty_shop.url("postgres"))
    with client.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        result = function.invoke({"drain": {"limit_s": 300}}, remaining_ms=6000)
        assert connection.exec_driver_sql("SELECT 2").scalar_one() == 2
    assert (result["left"], result["in_transaction"], result["ended"]) == (1, 1, 0)
    assert result["took_s"] >= 1
    assert "invoke it again" in caplog.text


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"drain": {"rate": 0, "rolle": 1}}, "rolle: not an option of a drain"),
        ({"drain": {"rate": 0, "limit_s": "x"}}, "rate must be a number.*limit_s must be a number"),
        ({"drain": True}, "must be a JSON object"),
        ({"drain": {}, "demo_data": True, "role_name": "x"}, "drain must be used alone, without demo_data, role_name"),
        ({"drain": {"role": "nobody"}}, "there is no role 'nobody'"),
    ],
)
def test_a_drain_that_makes_no_sense_is_refused(
    empty_shop: Any, load: Any, client: Any, event: dict[str, Any], said: str
) -> None:
    """By name, before anything is ended."""
    before = backend(client)
    function = load("prepare_database", empty_shop.url("postgres"))
    with pytest.raises((plungepool.PlungepoolError, function.module.preparation.PreparationError), match=said):
        function.invoke(event)
    assert backend(client) == before


# CloudFormation


class Answers(HTTPServer):
    """
    The place that CloudFormation's pre-signed address points to, as an emulator of AWS has it.

    `refusals` attempts are refused first; `elsewhere` is where it sends who comes, if it does.
    """

    def __init__(self, refusals: int = 0, elsewhere: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _AnswerRequest)
        self.refusals, self.elsewhere = refusals, elsewhere
        self.received: list[dict[str, Any]] = []
        self.content_types: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/answer?signature=x"


class _AnswerRequest(BaseHTTPRequestHandler):
    server: Answers

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refusals:
            self.server.refusals -= 1
            self.send_error(503)
            return
        if self.server.elsewhere:
            self.send_response(307)
            self.send_header("Location", self.server.elsewhere)
            self.end_headers()
            return
        self.server.received.append(json.loads(body))
        self.server.content_types.append(self.headers["Content-Type"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def cloudformation(refusals: int = 0, elsewhere: str = "") -> Iterator[Answers]:
    with Answers(refusals, elsewhere) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def request(server: Answers, kind: str, **properties: Any) -> dict:
    return {
        "RequestType": kind,
        "ResponseURL": server.url,
        "StackId": "arn:aws:cloudformation:eu-west-1:000000000000:stack/shop/1",
        "RequestId": "request-1",
        "LogicalResourceId": "PreparedDatabase",
        "ResourceType": "Custom::PreparedDatabase",
        "ResourceProperties": {"ServiceToken": "arn", "ServiceTimeout": "300"} | properties,
    }


def test_cloudformation_hears_of_create_update_and_delete(empty_shop: Any, load: Any) -> None:
    """Each request is answered once under the same physical id; Delete keeps the data."""
    function = load("prepare_database", empty_shop.url("postgres"))
    with cloudformation() as server:
        properties = {"RoleName": empty_shop.app_role, "ConnectionLimit": "9", "DemoData": "true"}
        function.invoke(request(server, "Create", **properties))
        created = server.received[0]
        for kind in ("Update", "Delete"):
            function.invoke(request(server, kind, **properties) | {"PhysicalResourceId": created["PhysicalResourceId"]})
    assert [answer["Status"] for answer in server.received] == ["SUCCESS"] * 3
    assert {answer["PhysicalResourceId"] for answer in server.received} == {"sample-database"}
    assert {
        (answer["StackId"][:20], answer["RequestId"], answer["LogicalResourceId"]) for answer in server.received
    } == {("arn:aws:cloudformati", "request-1", "PreparedDatabase")}
    assert created["Data"]["schema_version"] == "4"
    assert created["Data"]["role_name"] == empty_shop.app_role
    assert not any(server.content_types)
    assert empty_shop.execute("SELECT count(*) FROM shop.orders") == [[40]]
    assert empty_shop.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", empty_shop.app_role) == [[9]]


def test_cloudformation_is_told_why_it_failed(
    empty_shop: Any, load: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is answered with the reason and its SQLSTATE, within the size CloudFormation takes, and no password."""
    with cloudformation() as server:
        function = load("prepare_database", empty_shop.url("postgres"))
        empty_shop.execute("CREATE SCHEMA shop; CREATE TABLE shop.customers ()")
        function.invoke(request(server, "Create", RoleName=empty_shop.app_role, RolePassword="hidden-2"))
        function.invoke(request(server, "Create", RoleName="x" * 5000, RolePassword="hidden-3"))
        # Settings that make no engine must not keep the answer back either.
        load("prepare_database", "postgresql://nobody:hidden-4@").invoke(request(server, "Update"))
        # A database that is gone.
        load("prepare_database", "postgresql://postgres:hidden-5@127.0.0.1:1/shop").invoke(request(server, "Create"))
        # Deleting the stack works without one.
        load("prepare_database", "postgresql://postgres:hidden-5@127.0.0.1:1/shop").invoke(request(server, "Delete"))
    reasons = [answer["Reason"] for answer in server.received]
    assert [answer["Status"] for answer in server.received] == ["FAILED"] * 4 + ["SUCCESS"]
    assert "42P07" in reasons[0]
    assert "customers" in reasons[0]
    assert "role_name must be" in reasons[1]
    assert "PLUNGEPOOL_URL" in reasons[2]
    assert "127.0.0.1" in reasons[3]
    assert all(len(json.dumps(answer)) < 4096 for answer in server.received)
    said = capsys.readouterr()
    for secret in ("hidden", empty_shop.postgres.password):
        assert secret not in "".join(reasons) + said.out + said.err


def test_the_answer_is_tried_again(empty_shop: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is refused for a moment is sent again, and arrives once."""
    function = load("prepare_database", empty_shop.url("postgres"))
    waits: list[float] = []
    monkeypatch.setattr(function.module.cloudformation.time, "sleep", waits.append)
    with cloudformation(refusals=2) as server:
        function.invoke(request(server, "Delete"))
    assert [answer["Status"] for answer in server.received] == ["SUCCESS"]
    assert waits == [1, 2]


def test_the_answer_follows_nobody_elsewhere(empty_shop: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect is a refusal: the answer is for the address that was checked."""
    function = load("prepare_database", empty_shop.url("postgres"))
    monkeypatch.setattr(function.module.cloudformation.time, "sleep", lambda seconds: None)
    with cloudformation() as elsewhere, cloudformation(elsewhere=elsewhere.url) as server:
        with pytest.raises(OSError, match="307"):
            function.invoke(request(server, "Delete"))
    assert (elsewhere.received, server.received) == ([], [])


def test_the_answer_ends_with_the_invocation(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts and pauses together take no longer than the invocation has left, whoever is silent."""
    module = load("prepare_database", "postgresql://nobody@nowhere").module.cloudformation
    event = {"ResponseURL": "https://b.s3.amazonaws.com/", "StackId": "s", "RequestId": "r", "LogicalResourceId": "l"}
    for available in (100.0, 33.0, 10.0, 5.0, 2.0):
        left = [available]

        class Clock:
            function_name = "sample"

            @staticmethod
            def get_remaining_time_in_millis(left: Any = left) -> Any:
                return int(left[0] * 1000)

        def silent(request: pytest.FixtureRequest, timeout: Any, left: Any = left) -> None:
            left[0] -= timeout
            raise TimeoutError

        def pause(seconds: Any, left: Any = left) -> None:
            left[0] -= seconds

        monkeypatch.setattr(module.urllib.request, "urlopen", silent)
        monkeypatch.setattr(module.time, "sleep", pause)
        with pytest.raises(TimeoutError):
            module.answer(event, Clock, "SUCCESS", "", {})
        assert (available, left[0] > 0) == (available, True)


S3_ADDRESSES = [
    "https://cloudformation-custom-resource-response-useast1.s3.amazonaws.com/arn%3Aaws%3A1?X-Amz-Signature=x&a=%7C",
    "https://cloudformation-custom-resource-response-euwest1.s3-eu-west-1.amazonaws.com/x",
    "https://cloudformation-custom-resource-response-eucentral1.s3.eu-central-1.amazonaws.com:443/x",
    "https://s3.eu-west-1.amazonaws.com/cloudformation-custom-resource-response-euwest1/x",
    "https://bucket.s3.dualstack.eu-west-1.amazonaws.com/x",
    "https://bucket.s3.cn-north-1.amazonaws.com.cn/x",
    "https://bucket.s3.us-gov-west-1.amazonaws.com/x",
    "https://bucket.s3.us-iso-east-1.c2s.ic.gov/x",
    "https://bucket.s3.eusc-de-east-1.amazonaws.eu/x",
]
OTHER_ADDRESSES = [
    "http://bucket.s3.amazonaws.com/x",
    "HTTP://bucket.s3.amazonaws.com/x",
    "file:///etc/passwd",
    "file://bucket.s3.amazonaws.com/etc/passwd",
    "data:text/plain,x",
    "ftp://bucket.s3.amazonaws.com/x",
    "//bucket.s3.amazonaws.com/x",
    "bucket.s3.amazonaws.com/x",
    "",
    "https://",
    "https://169.254.169.254/latest/meta-data/",
    "https://localhost/",
    "https://example.com/s3.amazonaws.com",
    "https://s3.amazonaws.com.example.com/",
    "https://bucket.s3.amazonaws.com.example.com/",
    "https://examples3.amazonaws.com/",
    "https://x.execute-api.eu-west-1.amazonaws.com/s3",
    "https://s3.x.execute-api.eu-west-1.amazonaws.com/",
    "https://ec2-1-2-3-4.eu-west-1.compute.amazonaws.com/",
    "https://bucket.s3.amazonaws.com:8443/",
    "https://bucket.s3.amazonaws.com@example.com/",
    "https://user@bucket.s3.amazonaws.com/",
    "https://example.com\\.s3.amazonaws.com/",
    "https://example.com#.s3.amazonaws.com/",
    "https://example.com?.s3.amazonaws.com/",
    "https://example.com/.s3.amazonaws.com",
    "https://bucket.s3.amazonaws.com/x\n",
    "https://bucket.s3.amazonaws.com/x y",
    "\thttps://bucket.s3.amazonaws.com/x",
    "https://bucket\u3002s3.amazonaws.com/x",
    "https://bucket.s3.amazonaws.com\0/x",
    "https://[::1",
    "https://[bucket.s3.amazonaws.com]/",
    None,
    7,
    ["https://bucket.s3.amazonaws.com/x"],
]


def test_only_cloudformation_s_own_addresses_are_answered(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    S3 over https in every partition; nothing else is opened, and nothing is done for who asked. An emulator's is known.
    """
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    function = load("prepare_database", "postgresql://nobody@nowhere")
    module = function.module.cloudformation
    opened = []
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda request, timeout: opened.append(request) or BytesIO())
    fields = dict.fromkeys(("RequestType", "StackId", "RequestId", "LogicalResourceId"), "Delete")
    for address in S3_ADDRESSES:
        assert function.invoke(fields | {"ResponseURL": address})["Status"] == "SUCCESS"
    assert [request.full_url for request in opened] == S3_ADDRESSES
    for address in OTHER_ADDRESSES:
        with pytest.raises(module.RequestError, match="ResponseURL") as raised:
            function.invoke(fields | {"ResponseURL": address})
        assert not address or str(address) not in str(raised.value)
    emulator = "http://127.0.0.1:4566/_aws/cloudformation/1"
    for variable, address, known in [
        ("http://127.0.0.1:4566", emulator, True),
        ("http://127.0.0.1:4567", emulator, False),
        ("https://127.0.0.1:4566", emulator, False),
        ("", emulator, False),
        ("http://127.0.0.1:4566", "file://127.0.0.1:4566/etc/passwd", False),
    ]:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", variable)
        try:
            module.check(fields | {"ResponseURL": address})
        except module.RequestError:
            assert not known, (variable, address)
        else:
            assert known, (variable, address)
    for missing in fields:
        with pytest.raises(module.RequestError, match=missing):
            function.invoke(
                {name: of for name, of in fields.items() if name != missing} | {"ResponseURL": S3_ADDRESSES[0]}
            )
    assert len(opened) == len(S3_ADDRESSES)
