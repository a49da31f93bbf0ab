"""The function against a real PostgreSQL, in the real Lambda runtime client; see toolkit/ for the fixtures."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from plungepool import dispose_engine

PROJECT = Path(__file__).parents[1]
EVENT = json.loads((PROJECT / "events" / "count_visits.json").read_text())
USER = "{{ cookiecutter.database_user }}"


@pytest.fixture
def shop(database):
    """An empty database with the project's schema."""
    database.execute((PROJECT / "database" / "schema.sql").read_text())
    return database


@pytest.fixture
def environment(shop, lambda_environment):
    """An environment of the function, signed in as the role that it has on AWS."""
    return lambda_environment(PROJECT / "functions" / "count_visits", variables=shop.variables(USER))


def visit(environment, page="home"):
    response = environment.invoke({**EVENT, "pathParameters": {"page": page}})
    assert response.error is None, response.error
    return response.payload["statusCode"], json.loads(response.payload["body"])


def test_counts_each_page(environment):
    """Each page has a count of its own."""
    assert visit(environment) == (200, {"page": "home", "visits": 1})
    assert visit(environment) == (200, {"page": "home", "visits": 2})
    assert visit(environment, "about") == (200, {"page": "about", "visits": 1})


def test_keeps_one_connection(environment, shop):
    """All invocations of an environment share one connection, and it is idle in between."""
    for _ in range(5):
        visit(environment)
    assert shop.execute("SELECT state FROM pg_stat_activity WHERE usename = $1", USER) == [["idle"]]


def test_answers_503_while_the_database_is_full(lambda_environment, shop):
    """Where the role has no connection left, the caller is told to try again later, and then served."""
    # It tries again until half a second before the function's time-out: a short one keeps the test short.
    folder = PROJECT / "functions" / "count_visits"
    environment = lambda_environment(folder, variables=shop.variables(USER), timeout_s=3)
    shop.execute(f'ALTER ROLE "{USER}" CONNECTION LIMIT 0')
    assert visit(environment)[0] == 503
    shop.execute(f'ALTER ROLE "{USER}" CONNECTION LIMIT 20')
    assert visit(environment)[0] == 200


@pytest.fixture
def handler(shop, monkeypatch):
    """The function's own handler, in this process."""
    for name, value in shop.variables(USER).items():
        monkeypatch.setenv(name, value)
    dispose_engine()
    spec = importlib.util.spec_from_file_location("count_visits", PROJECT / "functions" / "count_visits" / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.handler
    dispose_engine()


def test_a_visit_takes_two_round_trips(handler, lambda_context, round_trips):
    """One for the statement, with BEGIN in it, and one for COMMIT: a third would be a wait more for each visit."""
    handler(EVENT, lambda_context)  # the first one connects
    with round_trips.at_most(2):
        assert handler(EVENT, lambda_context)["statusCode"] == 200


def test_the_database_has_the_connections_that_the_functions_may_open():
    """Set class (or max-acu) to that of your database: `plungepool budget --help`."""
    database = ["--database", "class=db.t4g.micro", "--database", "role-limit=20"]
    command = [sys.executable, "-m", "plungepool_toolkit", "budget", PROJECT / "template.yaml", *database]
    result = subprocess.run(command, check=False, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
