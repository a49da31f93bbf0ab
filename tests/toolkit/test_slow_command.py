"""`plungepool slow`: the worst statements of a real server, their fingerprints, and the index that would serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from plungepool import Settings, build_engine, ranking, statements
from plungepool_toolkit.command import application
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

    from plungepool_toolkit.fixtures import Database

SECRET = "unmistakable-4711"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that counts statements, with a large table."""
    with Postgres({"shared_preload_libraries": "pg_stat_statements"}) as running:
        running.execute("CREATE EXTENSION pg_stat_statements")
        running.execute("CREATE TABLE orders (id int PRIMARY KEY, customer int, note text)")
        running.execute("INSERT INTO orders SELECT n, n % 1000, 'n' FROM generate_series(1, 20000) n")
        running.execute("CREATE TABLE small (a int, b text)")
        running.execute("ANALYZE")
        running.execute("CREATE ROLE app LOGIN; GRANT SELECT ON orders TO app")
        running.execute("CREATE DATABASE bare")
        yield running


@pytest.fixture
def slow(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command against it, with nothing counted yet."""
    server.execute("SELECT pg_stat_statements_reset()")

    def run(*arguments: str, user: str = "postgres", database: str = "postgres") -> Result:
        monkeypatch.setenv("PLUNGEPOOL_URL", server.url(user, database))
        monkeypatch.setenv("PLUNGEPOOL_PASSWORD", server.password if user == "postgres" else "not asked for")
        monkeypatch.setenv("PLUNGEPOOL_TLS", "disable")
        return CliRunner().invoke(application, ["slow", *arguments], env={"COLUMNS": "80"})

    return run


def listed(result: Result) -> dict[str, dict[str, Any]]:
    """The statements of a document, by their fingerprints."""
    assert result.exit_code == 0, result.output
    return {one["fingerprint"]: one for one in json.loads(result.stdout)["statements"]}


@pytest.mark.parametrize(
    "sent",
    [
        f"SELECT note FROM orders WHERE note = '{SECRET}' AND id IN (1, 2, 3)",
        "SELECT  note\nFROM orders -- a comment\nWHERE id = 5 /* another */ LIMIT 1",
        "select NOTE as \"Note\" from orders where customer between 1 and 2.5e0 and note like 'a%'",
        "SELECT note FROM orders WHERE note = E'a\\'b' OR note = $tag$c$tag$",
        "SELECT id::text || 'a' FROM orders WHERE id >= 19999",
        "WITH o AS (SELECT id FROM orders WHERE customer = 7) SELECT count(*) FROM o",
        "INSERT INTO small (a, b) VALUES (1, 'a'), (2, 'b')",
        "UPDATE small SET b = 'c' WHERE a = 1",
        "DELETE FROM small WHERE b = 'd'",
    ],
)
def test_the_fingerprint_is_that_of_what_was_sent(server: Postgres, slow: Callable[..., Result], sent: str) -> None:
    """The server's $1 for a literal makes no difference."""
    server.execute(sent)
    result = slow("--json", "--limit", "100")
    shown = listed(result)[statements.fingerprint(sent)]["statement"]
    # PostgreSQL 18 counts a list of constants once, whatever its length, as a fingerprint does.
    assert shown.replace("( ? )", "( ? , ? , ? )") == statements.shape(sent).replace("( ? )", "( ? , ? , ? )")
    assert SECRET not in result.output


def test_a_bound_value_is_as_a_written_one(server: Postgres, slow: Callable[..., Result]) -> None:
    """As an engine of the layer sends it, whatever it is bound to, and lists of any length are one statement."""
    engine = build_engine(Settings(url=server.url(), tls="disable"))
    with engine.begin() as connection:
        for value in (1, None, -1):
            connection.execute(text("SELECT id FROM orders WHERE customer = CAST(:v AS text)::int"), {"v": value})
        for values in ("$1", "$1, $2"):
            connection.exec_driver_sql(f"SELECT id FROM orders WHERE id IN ({values})", (1, 2)[: values.count("$")])
    engine.dispose()
    found = listed(slow("--json", "--limit", "100"))
    assert found[statements.fingerprint("SELECT id FROM orders WHERE customer = CAST($1 AS text)::int")]["calls"] == 3
    both = found[statements.fingerprint("SELECT id FROM orders WHERE id IN (1, 2, 3)")]
    assert (both["calls"], both["rows"]) == (2, 3)


@pytest.mark.parametrize("literal", ["-1", "NULL", "true"])
def test_what_is_written_and_no_plain_literal_has_another(
    server: Postgres, slow: Callable[..., Result], literal: str
) -> None:
    """As docs/slow-queries.md says: the server counts a sign, NULL and true as values."""
    sent = f"SELECT {literal} AS it FROM orders LIMIT 1"
    server.execute(sent)
    found = listed(slow("--json", "--limit", "100"))
    assert statements.fingerprint(sent) not in found
    assert statements.fingerprint("SELECT $1 AS it FROM orders LIMIT $2") in found


def test_the_worst_is_first_and_told_why(server: Postgres, slow: Callable[..., Result]) -> None:
    """In the terminal: numbers, the shape in one line of its width, and the index; no value."""
    sent = f"SELECT id, customer, note AS a_rather_long_name_of_a_column FROM orders WHERE note = '{SECRET}'"
    for _ in range(3):
        server.execute(sent)
    result = slow("--limit", "1", "--by", "calls")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line]
    assert lines[0].startswith("postgres, since ")
    assert lines[1].startswith(f"{statements.fingerprint(sent)}  total ")
    assert lines[1].endswith(", 3 calls, 0 rows")
    assert lines[2].startswith("  select id , customer , note as ")
    assert lines[2].endswith("…")
    assert len(lines[2]) == 80
    assert lines[3] == "  reads all of public.orders, about 20000 rows, filter ( orders . note = ? )"
    assert lines[4:] == ["  → CREATE INDEX CONCURRENTLY ON public.orders (note)"]
    assert SECRET not in result.output


@pytest.mark.parametrize(("by", "first"), [("total", "pg_sleep"), ("mean", "pg_sleep"), ("calls", "customer")])
def test_it_is_ranked_by_what_is_asked_for(server: Postgres, slow: Callable[..., Result], by: str, first: str) -> None:
    """All time, time of a call, or calls."""
    for _ in range(4):
        server.execute("SELECT 1 FROM orders WHERE customer = 1 LIMIT 1")
    server.execute("SELECT pg_sleep(0.3)")
    (one,) = listed(slow("--json", "--limit", "1", "--by", by)).values()
    assert first in one["statement"]


def test_another_roles_statement_is_not_planned_with_ones_own_rights(
    server: Postgres, slow: Callable[..., Result]
) -> None:
    """It is listed, by the right to read it, and its functions are not called."""
    sent = "SELECT count(*) FROM orders WHERE note = 'x'"
    server.execute(sent, user="app")
    one = listed(slow("--json"))[statements.fingerprint(sent)]
    assert (one["why"], one["not_explained"]) == (None, "it belongs to another role: connect as that role")
    own = listed(slow("--json", user="app"))[statements.fingerprint(sent)]
    assert own["why"]["indexes"] == ["CREATE INDEX CONCURRENTLY ON public.orders (note)"]


def test_what_the_right_hides_is_told(server: Postgres, slow: Callable[..., Result]) -> None:
    """With the sentence that grants it, after which nothing is hidden."""
    server.execute("SELECT count(*) FROM orders WHERE note = 'x'")
    server.execute("SELECT 1 FROM orders WHERE id = 1", user="app")
    result = slow(user="app")
    assert result.exit_code == 0, result.output
    assert "of other roles are not shown; execute GRANT pg_read_all_stats TO app" in result.stdout
    server.execute("GRANT pg_read_all_stats TO app")
    try:
        result = slow("--json", user="app")
    finally:
        server.execute("REVOKE pg_read_all_stats FROM app")
    assert json.loads(result.stdout)["hidden"] == 0
    assert statements.fingerprint("SELECT count(*) FROM orders WHERE note = 'x'") in listed(result)


def test_where_all_is_hidden_there_is_nothing_to_list(server: Postgres, slow: Callable[..., Result]) -> None:
    """What the command itself asks is no answer, however often it has run."""
    server.execute("SELECT count(*) FROM orders WHERE note = 'x'")
    for _ in range(2):
        result = slow(user="app")
        assert (result.exit_code, result.stdout) == (1, ""), result.stdout
        assert "not shown to app; execute GRANT pg_read_all_stats TO app" in result.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_a_database_without_the_extension(slow: Callable[..., Result], as_json: bool) -> None:
    """What to execute, and where."""
    result = slow(*["--json"] * as_json, database="bare")
    assert result.exit_code == 1
    problem = json.loads(result.stdout)["problem"] if as_json else result.stderr
    assert "not in the database bare: execute CREATE EXTENSION pg_stat_statements there" in problem


def test_a_server_that_has_not_loaded_it(database: Database) -> None:
    """The extension alone counts nothing."""
    database.execute("CREATE EXTENSION pg_stat_statements")
    result = CliRunner().invoke(application, ["slow"], env=database.variables())
    assert result.exit_code == 1
    assert "add it to shared_preload_libraries" in result.stderr


def test_the_documentations_commands_run(slow: Callable[..., Result]) -> None:
    """Each of docs/slow-queries.md."""
    lines = (Path(__file__).parents[2] / "docs/slow-queries.md").read_text("utf-8").splitlines()
    commands = [line.split()[2:] for line in lines if line.startswith("plungepool slow")]
    assert commands
    for arguments in commands:
        assert slow(*arguments).exit_code == 0, arguments


def test_behind_a_proxy_it_lists_and_explains_nothing(
    server: Postgres, slow: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prepared statement would pin a session, or be left in one."""
    sent = "SELECT count(*) FROM orders WHERE note = 'x'"
    server.execute(sent)
    monkeypatch.setenv("PLUNGEPOOL_ENDPOINT", "proxy")
    one = listed(slow("--json", "--limit", "100"))[statements.fingerprint(sent)]
    assert one["why"] is None
    assert one["not_explained"].endswith("connect to the database itself")


def test_an_extension_of_an_older_server_is_told(server: Postgres, slow: Callable[..., Result]) -> None:
    """After an upgrade the extension stays what it was, until it is asked."""
    server.execute("CREATE DATABASE older")
    server.execute("CREATE EXTENSION pg_stat_statements VERSION '1.8'", database="older")
    result = slow(database="older")
    assert result.exit_code == 1
    assert "execute ALTER EXTENSION pg_stat_statements UPDATE" in result.stderr


def test_a_statement_whose_text_the_server_has_lost_is_left_out() -> None:
    """Texts are in a file, which it may not be able to read."""
    assert [
        one.calls for one in ranking.rank([(None, 9, 9.0, 9, True), ("SELECT 1", 1, 1.0, 1, True)], ranking.By.CALLS)
    ] == [1]


def test_nothing_is_left_on_the_server(server: Postgres, slow: Callable[..., Result]) -> None:
    """It explains, and executes none of the statements again."""
    sent = "SELECT count(*) FROM orders WHERE note = 'x'"
    server.execute(sent)
    for _ in range(2):
        one = listed(slow("--json"))[statements.fingerprint(sent)]
        assert (one["calls"], one["why"] is None) == (1, False)
