"""A drain ends what is idle and was there, a few a second, and nothing else; the command says so."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import wait_until
from poolers import pgbouncer
from typer.testing import CliRunner

from plungepool import PlungepoolError, Settings, build_engine, drain
from plungepool.drain import DrainError, Options, Progress
from plungepool_toolkit.command import application
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import RdsProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

MY_PID = "SELECT pg_backend_pid()"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server with an application's role, and others."""
    with Postgres({"max_connections": 60}) as running:
        running.execute("CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; CREATE ROLE operator LOGIN")
        running.execute("CREATE DATABASE elsewhere")
        yield running


@pytest.fixture
def connect(server: Postgres) -> Iterator[Callable[..., Engine]]:
    """Make an engine, by default the application's; `application` is what the server shows as its name."""
    engines = []

    def engine(user: str = "app", database: str = "postgres", application: str = "") -> Engine:
        settings = Settings(url=server.url(user, database, "not asked for"), tls="disable")
        with pytest.MonkeyPatch.context() as patch:
            if application:
                name, _, version = application.partition(":")
                patch.setenv("AWS_LAMBDA_FUNCTION_NAME", name)
                patch.setenv("AWS_LAMBDA_FUNCTION_VERSION", version)
            engines.append(build_engine(settings))
        return engines[-1]

    yield engine
    for one in engines:
        one.dispose()
    server.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename IN ('app', 'other')")


@contextlib.contextmanager
def pooled(server: Postgres, users: dict[str, str | None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """PgBouncer, and what settings need for it."""
    with pgbouncer(server, users=users, default_pool_size=4) as port:
        yield port, {"tls": "disable", "endpoint": "proxy"}


@contextlib.contextmanager
def stand_in(server: Postgres, users: dict[str, str | None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """RDS Proxy's stand-in, and what settings need for it."""
    with RdsProxy(server, users=users, auth="password") as proxy:
        yield proxy.port, {"ca_file": str(proxy.ca_file), "endpoint": "proxy"}


def invoke(engine: Engine) -> int:
    """Do what an invocation does, which keeps its connection; return the backend's process."""
    with engine.begin() as connection:
        return connection.exec_driver_sql(MY_PID).scalar_one()


def alive(server: Postgres) -> set[int]:
    """Return the backends of the two applications."""
    rows = server.execute("SELECT pid FROM pg_stat_activity WHERE usename IN ('app', 'other')")
    return {pid for [pid] in rows}


def run(engine: Engine, **options: Any) -> Progress:
    """Drain with no patience for what was just used, unless the test says otherwise; return how it ended."""
    given = {"min_idle_s": 0.0, "rate": 1000, "limit_s": 20} | options
    *_, last = drain.drain(engine, Options(**given))
    assert last.over
    return last


def test_all_that_is_idle_is_replaced_at_its_next_checkout(
    server: Postgres, connect: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """Every connection that was there ends, once; each client has another, and no error; the drain's own stays."""
    clients = [connect() for _ in range(5)]
    before = [invoke(client) for client in clients]
    mine = connect()
    own = invoke(mine)
    ended = run(mine)
    assert (ended.found, ended.ended, ended.gone, ended.left) == (5, 5, 0, 0)
    assert (ended.role, ended.database) == ("app", "postgres")
    assert alive(server) == {own}
    with caplog.at_level("INFO"):
        after = [invoke(client) for client in clients]
    assert not set(before) & set(after)
    assert caplog.text.count("a kept connection was replaced: the server had closed it") == 5
    assert not [record for record in caplog.records if record.levelno > 20]


def test_a_transaction_is_left_until_it_is_over(server: Postgres, connect: Callable[..., Engine]) -> None:
    """In a transaction, in a failed one, or in a statement: it goes on, and is ended when it is idle."""
    busy, failed, working = connect(), connect(), connect()
    with busy.connect() as one, failed.connect() as two, working.connect() as three:
        one.exec_driver_sql("SELECT 1")
        with pytest.raises(Exception, match="division"):
            two.exec_driver_sql("SELECT 1/0")
        process = three.exec_driver_sql(MY_PID).scalar_one()
        three.commit()
        steps = drain.drain(connect(), Options(min_idle_s=0.0, rate=1000, limit_s=30))
        first = next(steps)
        assert (first.found, first.in_transaction, first.idle) == (3, 2, 1)
        for progress in steps:
            assert not progress.over
            if progress.ended == 1:
                break
        assert (progress.in_transaction, progress.left) == (2, 2)
        assert process not in alive(server)
        assert one.exec_driver_sql("SELECT 2").scalar_one() == 2
        one.commit()
        two.rollback()
        *_, last = steps
    assert (last.ended, last.left, last.over) == (3, 0, True)


def test_what_began_since_the_look_is_not_ended(server: Postgres, connect: Callable[..., Engine]) -> None:
    """Look and kill are one statement: a transaction that has begun in between goes on."""
    client = connect()
    process = invoke(client)
    work = drain._Drain(connect().execution_options(isolation_level="AUTOCOMMIT"), Options(min_idle_s=0.0))
    work.look()
    [(pid, started)] = work.ripe
    assert pid == process
    with client.begin() as connection:
        connection.exec_driver_sql("SELECT 1")
        work.end(pid, started)
        assert connection.exec_driver_sql(MY_PID).scalar_one() == process
    assert work.look().ended == 0
    # Another process of that number is another.
    work.end(pid, started.replace(year=2001))
    # It has been idle for a moment only.
    patient = drain._Drain(work._engine, Options(min_idle_s=3000.0))
    patient.end(pid, started)
    assert alive(server) >= {process}
    work.end(pid, started)
    wait_until(lambda: process not in alive(server))


def test_others_are_let_alone(server: Postgres, connect: Callable[..., Engine]) -> None:
    """Another role, another database, another application, and what was opened after it began."""
    orders, orders_2, reports = (
        connect(application="orders:7"),
        connect(application="orders:8"),
        connect(application="reports:7"),
    )
    role, elsewhere, late = connect("other"), connect(database="elsewhere"), connect(application="orders:8")
    meant = {invoke(orders), invoke(orders_2)}
    kept = {invoke(reports), invoke(role), invoke(elsewhere)}
    steps = drain.drain(connect(), Options(min_idle_s=0.0, application="orders"))
    assert next(steps).found == 2
    kept.add(invoke(late))
    *_, last = steps
    assert last.ended == 2
    assert kept < alive(server)
    assert not meant & alive(server)
    assert run(connect(), application="orders:8", dry_run=True).found == 1
    assert run(connect(), application="order").found == 0


def test_only_those_that_are_old_enough(server: Postgres, connect: Callable[..., Engine]) -> None:
    """`older_than_s` counts from when the drain began, by the server's clock."""
    old, young = connect(), connect()
    first = invoke(old)
    ages = "SELECT extract(epoch FROM clock_timestamp() - backend_start) FROM pg_stat_activity WHERE pid = $1"
    wait_until(lambda: server.execute(ages, first)[0][0] > 1.5)
    second = invoke(young)
    # The first one's age by now, so that a busy machine may take its time for the second.
    assert run(connect(), older_than_s=float(server.execute(ages, first)[0][0])).ended == 1
    assert first not in alive(server)
    assert second in alive(server)
    assert run(connect(), older_than_s=3600).found == 0


def test_a_dry_run_ends_nothing(server: Postgres, connect: Callable[..., Engine]) -> None:
    """It says what is there, once."""
    process = invoke(connect())
    last = run(connect(), dry_run=True)
    assert (last.found, last.idle, last.ended, last.left, last.dry_run) == (1, 1, 0, 1, True)
    assert process in alive(server)


class Clock:
    """A clock that goes only where somebody sleeps, and the moments of what is noted."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.noted: list[float] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def test_no_more_than_the_rate_are_ended_in_a_second(
    connect: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first to the last: between any two there is at least the time that the rate says."""
    clients = [connect() for _ in range(12)]
    for client in clients:
        invoke(client)
    clock = Clock()
    monkeypatch.setattr(drain, "time", clock)
    end = drain._Drain.end

    def noted(self: Any, *arguments: Any) -> None:
        clock.noted.append(clock.now)
        end(self, *arguments)

    monkeypatch.setattr(drain._Drain, "end", noted)
    last = run(connect(), rate=8)
    assert last.ended == 12
    pauses = [later - earlier for earlier, later in zip(clock.noted, clock.noted[1:], strict=False)]
    assert len(pauses) == 11
    assert min(pauses) >= 0.125 - 1e-9


def test_after_its_time_it_says_what_is_left(connect: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that does not end is not waited for beyond the limit, and is counted."""
    monkeypatch.setattr(drain, "time", Clock())
    idle, busy = connect(), connect()
    invoke(idle)
    with busy.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        last = run(connect(), limit_s=3)
        assert connection.exec_driver_sql("SELECT 2").scalar_one() == 2
    assert (last.ended, last.in_transaction, last.left, last.over) == (1, 1, 1, True)
    assert 3 <= last.took_s < 3.5


def test_what_goes_by_itself_is_counted_as_gone(connect: Callable[..., Engine]) -> None:
    """A client that closes its connection before its turn was not ended."""
    client = connect()
    invoke(client)
    steps = drain.drain(connect(), Options(min_idle_s=60))
    assert next(steps).idle == 1
    client.dispose()
    *_, last = steps
    assert (last.ended, last.gone, last.left) == (0, 1, 0)


def test_its_own_connection_may_be_lost(server: Postgres, connect: Callable[..., Engine]) -> None:
    """As by a failover, or by another drain: it connects anew, and goes on."""
    clients = [connect() for _ in range(3)]
    for client in clients:
        invoke(client)
    mine = connect()
    steps = drain.drain(mine, Options(min_idle_s=0.0, rate=1000))
    next(steps)
    server.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = $1", invoke(mine))
    *_, last = steps
    assert (last.ended, last.left) == (3, 0)


def test_which_rights_it_takes(server: Postgres, connect: Callable[..., Engine]) -> None:
    """One's own need none; another role's need membership or the two that PostgreSQL has for it: each is named."""
    client, operator = connect(), connect("operator")
    process = invoke(client)

    def refusal(role: str = "app") -> str:
        with pytest.raises(DrainError) as raised:
            run(operator, role=role)
        return str(raised.value)

    try:
        assert "GRANT pg_signal_backend, pg_read_all_stats TO" in refusal()
        server.execute("GRANT pg_signal_backend TO operator")
        assert "GRANT pg_read_all_stats TO" in refusal()
        server.execute("REVOKE pg_signal_backend FROM operator; GRANT pg_read_all_stats TO operator")
        assert "GRANT pg_signal_backend TO" in refusal()
        assert alive(server) == {process}
        assert "is a superuser" in refusal("postgres")
        assert "there is no role 'nobody'" in refusal("nobody")
        server.execute("GRANT pg_signal_backend TO operator")
        assert run(operator, role="app").ended == 1
        server.execute("REVOKE pg_signal_backend, pg_read_all_stats FROM operator; GRANT app TO operator")
        invoke(client)
        assert run(operator, role="app").ended == 1
    finally:
        server.execute("REVOKE pg_signal_backend, pg_read_all_stats, app FROM operator")


def test_a_server_that_does_not_say_what_is_idle_is_refused(server: Postgres, connect: Callable[..., Engine]) -> None:
    """Without track_activities nothing is known of any session, nothing is ended; one without it is left, and told."""
    process = invoke(connect())
    server.execute("ALTER ROLE operator SET track_activities = off; GRANT app TO operator")
    try:
        with pytest.raises(DrainError, match="track_activities is off"):
            run(connect("operator"), role="app")
        server.execute("ALTER ROLE operator RESET track_activities; ALTER ROLE app SET track_activities = off")
        silent = invoke(connect())
        last = run(connect("operator"), role="app", limit_s=1)
        assert (last.ended, last.unknown) == (1, 1)
        assert alive(server) == {silent}
        assert process != silent
    finally:
        server.execute("ALTER ROLE operator RESET track_activities; ALTER ROLE app RESET track_activities")
        server.execute("REVOKE app FROM operator")


def test_names_that_others_planted_are_not_used(server: Postgres, connect: Callable[..., Engine]) -> None:
    """An administrator whose search path leads elsewhere first calls nothing there."""
    invoke(connect())
    server.execute("CREATE ROLE surrounded SUPERUSER LOGIN; CREATE SCHEMA planted")
    server.execute(
        """
        ALTER ROLE surrounded SET search_path = planted, pg_catalog;
        CREATE FUNCTION planted.trap() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'planted'; END $$;
        DO $$
        DECLARE one text; sign text;
        BEGIN
            FOREACH one IN ARRAY ARRAY['pg_stat_activity', 'pg_roles'] LOOP
                EXECUTE format('CREATE VIEW planted.%I AS SELECT * FROM pg_catalog.%I WHERE planted.trap()', one, one);
            END LOOP;
            FOREACH one IN ARRAY ARRAY['pg_backend_pid', 'clock_timestamp', 'current_database'] LOOP
                EXECUTE format('CREATE FUNCTION planted.%I() RETURNS bool RETURN planted.trap()', one);
            END LOOP;
            FOREACH one IN ARRAY ARRAY['name', 'text', 'int4', 'timestamptz'] LOOP
                EXECUTE format(
                    'CREATE FUNCTION planted.of(pg_catalog.%I, pg_catalog.%I) RETURNS bool RETURN planted.trap()',
                    one, one
                );
                FOREACH sign IN ARRAY ARRAY['=', '<>', '<=', '-'] LOOP
                    EXECUTE format(
                        'CREATE OPERATOR planted.%s (FUNCTION = planted.of, LEFTARG = pg_catalog.%I, '
                        'RIGHTARG = pg_catalog.%I)',
                        sign, one, one
                    );
                END LOOP;
            END LOOP;
            CREATE FUNCTION planted.pg_terminate_backend(int4) RETURNS bool RETURN planted.trap();
            CREATE FUNCTION planted.make_interval(secs float8) RETURNS interval
                LANGUAGE plpgsql AS 'BEGIN RAISE $r$planted$r$; END';
            CREATE DOMAIN planted.float8 AS pg_catalog.float8 CHECK (planted.trap());
            CREATE DOMAIN planted.int4 AS pg_catalog.int4 CHECK (planted.trap());
            CREATE DOMAIN planted.bool AS pg_catalog.bool CHECK (planted.trap());
        END $$;
        """
    )  # fmt: skip
    try:
        with pytest.raises(Exception, match="planted"), connect("surrounded").connect() as connection:
            connection.exec_driver_sql("SELECT pid FROM pg_stat_activity").all()
        assert run(connect("surrounded"), role="app").ended == 1
    finally:
        server.execute("DROP SCHEMA planted CASCADE; DROP ROLE surrounded")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rate": 0, "limit_s": True, "min_idle_s": float("nan")}, ["rate", "limit_s", "min_idle_s"]),
        ({"older_than_s": -1, "role": "", "application": 7}, ["older_than_s", "role", "application"]),
        ({"dry_run": "yes"}, ["dry_run"]),
        ({"role": "a\0b"}, ["role"]),
        ({"role": "a\udcff", "application": "\ud800"}, ["role", "application"]),
    ],
)
def test_wrong_options_are_named_together(wrong: dict[str, Any], named: list[str]) -> None:
    """One error with each of them, which is a ValueError and one of the package's."""
    with pytest.raises(DrainError) as raised:
        Options.read(wrong)
    assert {problem.split()[0] for problem in str(raised.value).split("; ")} == set(named)
    assert isinstance(raised.value, PlungepoolError)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("wrong", [None, 5, [], "all", {"rolle": "app"}, {"role_name": "app", "force": True}])
def test_what_is_no_option_is_refused(wrong: Any) -> None:
    """As an event has it: no object, or a name that it does not know, which is named."""
    with pytest.raises(DrainError) as raised:
        Options.read(wrong)
    for name in wrong if isinstance(wrong, dict) else ["JSON object"]:
        assert name in str(raised.value)


@pytest.mark.parametrize("proxy", [pooled, stand_in], ids=["PgBouncer", "stand-in"])
def test_behind_a_pooler_its_own_session_is_not_to_be_told(server: Postgres, proxy: Any) -> None:
    """
    Each of its statements is served by another of the role's sessions: it would leave some and count others as gone.
    Another role's are no riddle.
    """
    server.execute("GRANT app TO operator")
    with contextlib.ExitStack() as stack:
        port, options = stack.enter_context(proxy(server, users={"app": "p", "operator": "p"}))

        def through(user: str) -> Engine:
            engine = build_engine(Settings(url=f"postgresql://{user}:p@localhost:{port}/postgres", **options))
            stack.callback(engine.dispose)
            return engine

        clients = [through("app") for _ in range(3)]
        taken = [client.connect() for client in clients]
        before = {one.exec_driver_sql(MY_PID).scalar_one() for one in taken}
        for one in taken:
            one.close()
        assert len(before) == 3
        with pytest.raises(DrainError, match="there is a pooler in front of the server"):
            run(through("app"))
        assert alive(server) == before
        assert run(through("operator"), role="app").ended == 3
        assert {invoke(client) for client in clients}.isdisjoint(before)
    server.execute("REVOKE app FROM operator")


def test_a_name_that_nobody_has_is_told_with_those_that_there_are(connect: Callable[..., Engine]) -> None:
    """Only where there are none of that name."""
    invoke(connect(application="orders:7"))
    invoke(connect(application="reports:1"))
    last = run(connect(), application="order")
    assert (last.found, last.others) == (0, ("orders:7", "reports:1"))
    assert run(connect(), application="orders", dry_run=True).others == ()


@pytest.fixture
def environ(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the application."""
    monkeypatch.setenv("PLUNGEPOOL_URL", server.url("app", password="unmistakable-password"))
    monkeypatch.setenv("PLUNGEPOOL_TLS", "disable")


def command(*arguments: str) -> tuple[int, str, str]:
    """Run it in this process; return its exit code and what it wrote."""
    result = CliRunner().invoke(application, ["drain", *arguments])
    assert "unmistakable-password" not in result.output
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_what_it_did(server: Postgres, connect: Callable[..., Engine], environ: None) -> None:
    """0 and a summary where all are replaced, a dry run before it; 1 where something is left, with what to do."""
    clients = [connect() for _ in range(3)]
    before = {invoke(client) for client in clients}
    code, said, _ = command("--dry-run")
    assert (code, said.splitlines()[-1]) == (0, "app in postgres: 3 connections, 3 idle; none ended (dry run)")
    assert alive(server) == before
    code, said, _ = command("--min-idle", "0", "--rate", "100")
    assert code == 0
    assert "✓ app in postgres: 3 connections, 3 ended, 0 closed otherwise, none left" in said
    with clients[0].connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        code, said, _ = command("--min-idle", "0", "--limit", "0.5")
    assert code == 1
    assert "! app in postgres: 1 connection, 0 ended, 0 closed otherwise, 1 in a transaction" in said
    assert "--limit" in said


def test_the_command_s_json_is_the_progress(connect: Callable[..., Engine], environ: None) -> None:
    """One document on standard output, everything else beside it; also of what could not work."""
    invoke(connect())
    code, out, beside = command("--json", "--min-idle", "0", "--older-than", "0")
    document = json.loads(out)
    assert code == 0
    assert {name: document[name] for name in ("role", "found", "ended", "left", "over", "problem")} == {
        "role": "app", "found": 1, "ended": 1, "left": 0, "over": True, "problem": None,
    }  # fmt: skip
    assert "replaced" in beside
    code, out, _ = command("--json", "--role", "postgres")
    assert code == 1
    assert "superuser" in json.loads(out)["problem"]


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["--rate", "0", "--limit", "-1"], {}, ["rate must be", "limit_s must be"]),
        (["--role", "nobody"], {}, ["there is no role 'nobody'"]),
        ([], {"PLUNGEPOOL_TLS": "perhaps"}, ["PLUNGEPOOL_TLS"]),
        (
            [],
            {
                "PLUNGEPOOL_URL": "postgresql://app:unmistakable-password@127.0.0.1:1/x",
                "PLUNGEPOOL_CHECKOUT_TIMEOUT_S": "1",
            },
            ["127.0.0.1"],
        ),
    ],
)
def test_what_cannot_work_is_said_in_a_line(
    environ: None, monkeypatch: pytest.MonkeyPatch, arguments: list[str], variables: dict[str, str], said: list[str]
) -> None:
    """Wrong options, a wrong variable, no server: exit code 1, no traceback, and no password."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, out, _ = command(*arguments)
    assert code == 1
    assert [text for text in said if text not in out] == []
    assert "Traceback" not in out


def test_the_command_says_what_there_was_to_replace(connect: Callable[..., Engine], environ: None) -> None:
    """Nothing at all, or nothing by that name and what there is: no tick beside a slip."""
    assert command()[:2] == (0, "✓ app in postgres: no connections, so there was nothing to replace\n")
    assert command("--application", "orders")[1].startswith("✓ app in postgres: no connections")
    invoke(connect(application="orders:[red]7"))
    code, said, _ = command("--application", "order")
    assert (code, said) == (
        0,
        "! app in postgres: no connection has that application_name; the names in use are 'orders:[red]7'\n",
    )
    code, out, _ = command("--application", "order", "--json")
    assert (code, json.loads(out)["others"]) == (0, ["orders:[red]7"])


def test_a_role_without_a_connection_left_is_told_to_name_another(
    server: Postgres, connect: Callable[..., Engine], environ: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drain needs one as well."""
    server.execute("ALTER ROLE app CONNECTION LIMIT 1")
    monkeypatch.setenv("PLUNGEPOOL_CHECKOUT_TIMEOUT_S", "0.5")
    try:
        invoke(connect())
        code, said, _ = command()
        assert (code, "53300" in said, "with --role" in said) == (1, True, True)
    finally:
        server.execute("ALTER ROLE app CONNECTION LIMIT -1")


def test_aurora_dsql_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no such sessions, and nothing is asked of it."""
    monkeypatch.setenv("PLUNGEPOOL_HOST", "nobody.dsql.eu-west-1.on.aws")
    for name, value in {"USER": "app", "AUTH": "dsql", "REGION": "eu-west-1"}.items():
        monkeypatch.setenv(f"PLUNGEPOOL_{name}", value)
    code, said, _ = command()
    assert (code, "Aurora DSQL" in said) == (1, True)


def test_ctrl_c_leaves_the_rest_as_it_is(server: Postgres, connect: Callable[..., Engine], environ: None) -> None:
    """In the midst of it: 130, what was done is said, and who was not ended goes on with the connection it has."""
    clients = [connect() for _ in range(4)]
    before = [invoke(client) for client in clients]
    arguments = [sys.executable, "-m", "plungepool_toolkit", "drain", "--min-idle", "0", "--rate", "0.2"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: len(alive(server) & set(before)) == 3)
            # Its next look has seen that.
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, errors) == (130, "")
    assert "interrupted; the connections that were ended stay ended" in out
    assert "4 connections, 1 ended" in out
    assert len({invoke(client) for client in clients} & set(before)) == 3
