"""prepare_database: any number of times, all or nothing, the limits and no right too many; CloudFormation is answered."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import moto
import pg8000.exceptions
import pytest
from hypothesis import given, strategies
from sqlalchemy.exc import DBAPIError

import plungepool
from plungepool_toolkit.postgres import Postgres

FUNCTION = Path(__file__).parents[2] / "functions" / "prepare_database"


@pytest.fixture
def prepare(empty_shop, load):
    """The function as the owner of a database with nothing in it, and a role that does not exist."""
    function = load("prepare_database", empty_shop.url("postgres"))

    def invoke(**properties: Any) -> Any:
        return function.invoke({"role_name": empty_shop.app_role} | properties)

    invoke.module = function.module
    return invoke


def tables(shop):
    return [row[0] for row in shop.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'shop' ORDER BY 1")]


# The schema


def test_it_prepares_once_and_again_without_a_change(empty_shop, prepare):
    """The first run makes all; the second applies nothing and leaves every row as it was."""
    first = prepare(demo_data=True)
    assert first["applied"] == sorted(file.name for file in (FUNCTION / "migrations").glob("*.sql"))
    before = empty_shop.contents()
    assert prepare(demo_data=True) == first | {"applied": []}
    assert empty_shop.contents() == before
    assert len(before) > 80


def test_two_at_once_prepare_once(empty_shop, prepare):
    """Invocations at the same moment wait for each other; between them each migration is applied once."""
    preparation = prepare.module.preparation
    options = preparation.Options.read({"role_name": empty_shop.app_role, "demo_data": True})
    engine = plungepool.build_engine(empty_shop.settings("postgres", pool_size=4))
    begin = threading.Barrier(4)
    applied = []

    def run() -> None:
        with engine.connect() as connection:
            begin.wait()
            with connection.begin():
                applied.append(len(preparation.prepare(connection, options, 60)["applied"]))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    assert sorted(applied) == [0, 0, 0, 2]


def test_a_new_migration_is_applied_alone(empty_shop, prepare, tmp_path):
    """What was applied stays; the file with the next number is run."""
    prepare()
    preparation = prepare.module.preparation
    (tmp_path / "003_notes.sql").write_text("CREATE TABLE shop.notes (id int); CREATE INDEX ON shop.notes (id);")
    files = [*sorted((FUNCTION / "migrations").glob("*.sql")), tmp_path / "003_notes.sql"]
    with plungepool.get_engine().begin() as connection:
        assert preparation.migrate(connection, files) == (["003_notes.sql"], 3)
    assert "notes" in tables(empty_shop)
    # The function as it was before knows two of the three, as after a deployment that was rolled back.
    assert prepare()["schema_version"] == 3


def test_a_changed_migration_is_refused(empty_shop, prepare):
    """A file that is not what was applied under its number stops the run, by name."""
    prepare()
    empty_shop.execute("UPDATE shop.migrations SET checksum = 'another' WHERE version = 1")
    with pytest.raises(prepare.module.preparation.PreparationError, match=r"001_tables\.sql is not what was applied"):
        prepare()


def test_a_failing_migration_leaves_nothing(empty_shop, prepare, tmp_path):
    """An error in the last statement undoes the first, and the migrations before it."""
    (tmp_path / "001_good.sql").write_text("CREATE TABLE shop.good (id int);")
    (tmp_path / "002_bad.sql").write_text("CREATE TABLE shop.bad (id int); SELECT 1 / 0;")
    with pytest.raises(DBAPIError) as raised, plungepool.get_engine().begin() as connection:
        prepare.module.preparation.migrate(connection, sorted(tmp_path.glob("*.sql")))
    assert raised.value.orig.sqlstate == "22012"
    assert tables(empty_shop) == []


def test_two_migrations_with_one_number_are_refused(empty_shop, prepare, tmp_path):
    """Two branches that both wrote a 003 are told so before anything runs."""
    for name in ("003_mine.sql", "003_yours.sql"):
        (tmp_path / name).write_text("SELECT 1;")
    preparation = prepare.module.preparation
    with (
        pytest.raises(preparation.PreparationError, match="same number"),
        plungepool.get_engine().begin() as connection,
    ):
        preparation.migrate(connection, sorted(tmp_path.glob("*.sql")))


def test_a_lock_that_is_held_ends_the_wait_in_time(empty_shop, prepare):
    """While another session prepares, the wait ends by the server's time-out, with time left to say so."""
    preparation = prepare.module.preparation
    other = plungepool.build_engine(empty_shop.settings("postgres"))
    with other.begin() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({preparation.LOCK})")
        with pytest.raises(DBAPIError) as raised, plungepool.get_engine().begin() as waiting:
            preparation.prepare(waiting, preparation.Options.read({}), 3)
    other.dispose()
    assert raised.value.orig.sqlstate in ("55P03", "57014")


def test_scripts_are_split_at_the_ends_of_statements(load):
    """Semicolons in literals, names, comments and bodies end nothing; comments alone are no statement."""
    split = load("prepare_database", "postgresql://nobody@nowhere").module.preparation.statements
    assert split("SELECT 1; SELECT 2") == ["SELECT 1", "SELECT 2"]
    assert split("SELECT ';' || 'it''s; so' AS \"a;b\"; -- no; not this\n/* nor; this */") == [
        "SELECT ';' || 'it''s; so' AS \"a;b\""
    ]
    assert split("DO $$ BEGIN; END $$; DO $a$ $b$ ; $b$ $a$;") == ["DO $$ BEGIN; END $$", "DO $a$ $b$ ; $b$ $a$"]
    assert split(" ;; \n-- only a comment;\n;") == []


@given(strategies.lists(strategies.text("ab'\";-$/*\n :%", max_size=12)))
def test_splitting_reads_any_literals(texts):
    """Whatever text stands in a literal, as many statements come out as went in."""
    sys.path.insert(0, str(FUNCTION))
    try:
        from preparation import statements
    finally:
        sys.path.remove(str(FUNCTION))
        sys.modules.pop("preparation", None)
    script = [f"""SELECT '{text.replace("'", "''")}'""" for text in texts]
    assert statements(";\n".join(script)) == script


def test_colons_and_percent_signs_in_a_script_stay(empty_shop, prepare, tmp_path):
    """What SQLAlchemy or the driver would take for a parameter reaches the server as it was written."""
    literal = "at :noon, 12:30, 100%, %s, %(x)s, ::, a\\b"
    (tmp_path / "001_literal.sql").write_text(f"CREATE TABLE shop.said AS SELECT '{literal}'::text AS said;")
    with plungepool.get_engine().begin() as connection:
        prepare.module.preparation.migrate(connection, [tmp_path / "001_literal.sql"])
    assert empty_shop.execute("SELECT said FROM shop.said") == [[literal]]


# The role


def test_the_role_has_its_limits(empty_shop, prepare):
    """The server enforces the number of connections and four time-outs, and a change of the number is made."""
    prepare(connection_limit=7)
    ask = "SELECT rolconnlimit, rolconfig, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = $1"
    time_outs = [
        "statement_timeout=10s",
        "lock_timeout=3s",
        "idle_in_transaction_session_timeout=10s",
        "idle_session_timeout=15min",
    ]
    assert empty_shop.execute(ask, empty_shop.app_role) == [[7, time_outs, True, False, False, False]]
    prepare(connection_limit="3")
    assert empty_shop.execute(ask, empty_shop.app_role)[0][0] == 3


def test_connections_beyond_the_limit_are_refused(empty_shop, prepare):
    """With a limit of 2 the third connection of the role gets 53300, whatever the client would like."""
    prepare(connection_limit=2)
    engine = plungepool.build_engine(empty_shop.settings(pool_size=3))
    with engine.connect(), engine.connect(), pytest.raises(DBAPIError) as raised:
        engine.connect()
    engine.dispose()
    assert raised.value.orig.sqlstate == "53300"


def test_the_role_may_do_no_more_than_the_functions_need(shop):
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


def test_names_are_quoted(empty_shop, prepare):
    """A role's name may hold anything: it is a name and never SQL."""
    name = 'o\'Brien "the" $$;%s :x \\ ROLE'
    empty_shop.app_role = name.replace('"', '""')  # as the fixture drops it
    assert prepare(role_name=name)["role_name"] == name
    assert empty_shop.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", name) == [[20]]
    empty_shop.execute(f'DROP OWNED BY "{empty_shop.app_role}"')


def test_the_owner_is_not_made_the_application(empty_shop, prepare):
    """Limiting the owner, or a superuser, would lock everybody out: refused, and nothing is prepared."""
    with pytest.raises(DBAPIError, match="a role of its own"):
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
        ({"role_name": "x" * 64}, "role_name must be"),
        ({"role_name": "a\0b"}, "role_name must be"),
        ({"role_name": 7}, "role_name must be"),
        ({"role_password": 1234567}, "role_password must be"),
        ({"demo_data": "yes"}, "demo_data must be"),
        ({"iam_login": "maybe"}, "iam_login must be"),
    ],
)
def test_wrong_options_are_refused_by_name(load, wrong, message):
    """An option that makes no sense is named, never with a password's value, and nothing is connected."""
    preparation = load("prepare_database", "postgresql://nobody@nowhere").module.preparation
    with pytest.raises(preparation.PreparationError, match=message) as raised:
        preparation.Options.read(wrong)
    assert "1234567" not in str(raised.value)


def test_the_password_works_and_never_reaches_the_server_as_text(load):
    """The role logs in by SCRAM with the password; the server's log of all statements does not hold it."""
    password = 'pool\'; "side" \N{LATIN SMALL LETTER U WITH DIAERESIS}ber'
    with Postgres({"log_statement": "all", "log_parameter_max_length": -1}, authentication="scram-sha-256") as server:
        function = load("prepare_database", server.url("postgres", password="unused"))
        function.invoke({"role_password": password})
        assert server.execute("SELECT current_user::text", user="plungepool_app", password=password) == [
            ["plungepool_app"]
        ]
        assert "SCRAM-SHA-256$" in server.log
        assert password not in server.log
        assert "pool'" not in server.log.replace("''", "'")
        function.invoke({})  # without a password the one it has stays
        server.execute("SELECT 1", user="plungepool_app", password=password)


def test_the_password_comes_from_the_secret_that_the_proxy_has(load, monkeypatch, empty_shop):
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


def test_iam_login_is_granted_where_it_can_be_used(empty_shop, prepare, rds_iam):
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


def test_an_owner_who_is_no_superuser_can_prepare(empty_shop, prepare, load, rds_iam):
    """On RDS the owner may create roles and grant rds_iam, and is no superuser: it prepares, twice."""
    owner = "shop_owner"
    empty_shop.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE; GRANT rds_iam TO {owner} WITH ADMIN OPTION")
    empty_shop.execute(f"ALTER DATABASE {empty_shop.database} OWNER TO {owner}")
    try:
        function = load("prepare_database", empty_shop.url(owner))
        properties = {"role_name": empty_shop.app_role, "demo_data": True}
        assert len(function.invoke(properties)["applied"]) == 2
        for changed in ({"role_password": "a proxy's"}, {"connection_limit": 3, "iam_login": True}):
            assert function.invoke(properties | changed)["applied"] == []
        report = load("report_sales", empty_shop.url()).invoke({"time": "2026-01-15T06:00:00Z"})
        assert len(report["products"]) == 3
        with pytest.raises(DBAPIError, match="a role of its own"):
            load("prepare_database", empty_shop.url(owner)).invoke({"role_name": owner})
    finally:
        plungepool.dispose_engine()
        empty_shop.execute(f"DROP OWNED BY {empty_shop.app_role}; DROP ROLE {empty_shop.app_role}")
        empty_shop.execute(
            f"ALTER DATABASE {empty_shop.database} OWNER TO postgres; DROP OWNED BY {owner} CASCADE; DROP ROLE {owner}"
        )


def test_iam_login_needs_a_server_that_has_it(prepare):
    """Asked for on a server that is no RDS, it is refused with what that means."""
    with pytest.raises(DBAPIError, match="no role rds_iam"):
        prepare(iam_login=True)


# CloudFormation


class Answers(HTTPServer):
    """The place that CloudFormation's pre-signed address points to; `refusals` attempts are refused first."""

    def __init__(self, refusals: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _AnswerRequest)
        self.refusals = refusals
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
        self.server.received.append(json.loads(body))
        self.server.content_types.append(self.headers["Content-Type"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


@contextmanager
def cloudformation(refusals: int = 0) -> Iterator[Answers]:
    with Answers(refusals) as server:
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


def test_cloudformation_hears_of_create_update_and_delete(empty_shop, load):
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
    assert created["Data"]["schema_version"] == "2"
    assert created["Data"]["role_name"] == empty_shop.app_role
    assert not any(server.content_types)
    assert empty_shop.execute("SELECT count(*) FROM shop.orders") == [[40]]
    assert empty_shop.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", empty_shop.app_role) == [[9]]


def test_cloudformation_is_told_why_it_failed(empty_shop, load, capsys, monkeypatch):
    """A failure is answered with the reason and its SQLSTATE, within the size CloudFormation takes, and no password."""
    with cloudformation() as server:
        function = load("prepare_database", empty_shop.url("postgres", password="hidden-1"))
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
    assert "hidden" not in "".join(reasons) + said.out + said.err


def test_the_answer_is_tried_again(empty_shop, load, monkeypatch):
    """An answer that is refused for a moment is sent again, and arrives once."""
    function = load("prepare_database", empty_shop.url("postgres"))
    waits: list[float] = []
    monkeypatch.setattr(function.module.cloudformation.time, "sleep", waits.append)
    with cloudformation(refusals=2) as server:
        function.invoke(request(server, "Delete"))
    assert [answer["Status"] for answer in server.received] == ["SUCCESS"]
    assert waits == [1, 2]
