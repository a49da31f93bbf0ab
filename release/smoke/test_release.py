"""What the installed packages must be able to do, outside the repository, with nothing else of it at hand."""

import importlib.metadata
import os
import subprocess

import pytest
from sqlalchemy import create_engine, text

import plungepool
import plungepool_toolkit
from plungepool import Settings, build_engine, dispose_engine, get_engine


@pytest.fixture
def orders(database):
    """A database with one order."""
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, status text)")
    database.execute("INSERT INTO orders VALUES (1, 'paid')")
    return database


@pytest.mark.parametrize("package", [plungepool, plungepool_toolkit])
def test_is_what_the_wheel_brought(package):
    """The package of the new environment, in this version, with its types and its licence."""
    assert package.__file__.startswith(os.environ["RELEASE_ENVIRONMENT"])
    name = package.__name__.replace("_", "-")
    assert importlib.metadata.version(name) == os.environ["RELEASE_VERSION"] == plungepool.__version__
    names = [str(path) for path in importlib.metadata.files(name)]
    assert f"{package.__name__}/py.typed" in names
    assert any(path.endswith("licenses/LICENSE") for path in names)


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--help"], ["simulate", "--help"], ["storm", "--help"]])
def test_command_explains_itself(arguments):
    """The command is on the path, and its subcommands load."""
    done = subprocess.run(["plungepool", *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage: plungepool" in done.stdout


def test_get_engine_answers(orders, monkeypatch):
    """The engine of the environment's variables, against a PostgreSQL that the toolkit started."""
    for name, value in orders.variables().items():
        monkeypatch.setenv(name, value)
    with get_engine().begin() as connection:
        assert connection.execute(text("SELECT status FROM orders")).scalar_one() == "paid"
    dispose_engine()


def test_shipped_authorities_are_there():
    """TLS is verified by default, against the files that the wheel brings."""
    settings = Settings(host="db.eu-central-1.rds.amazonaws.com", user="app", password="x")
    assert settings.tls == "verify-full"
    build_engine(settings).dispose()
    names = [path.name for path in importlib.metadata.files("plungepool") if path.locate().exists()]
    assert {"amazon-roots.pem", "eu-central-1.pem"} <= set(names)


def test_dialect_is_found_by_its_entry_point(orders):
    """`create_engine("postgresql+plungepool://…")`, also where plungepool itself was not imported."""
    url = orders.server.url("postgres", orders.name).replace("postgresql://", "postgresql+plungepool://")
    with create_engine(url).connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_handler_answers_in_a_lambda_environment(orders, lambda_environment):
    """The pytest plugin is loaded by itself: a function in an environment, with the real runtime client."""
    environment = lambda_environment("function", variables=orders.variables())
    invocation = environment.invoke({"id": 1})
    assert invocation.error is None, invocation
    assert invocation.payload == {"status": "paid"}


@pytest.mark.max_round_trips(3)
def test_budget_of_round_trips_holds(orders, monkeypatch):
    """And the plugin's markers: BEGIN with its statement, and COMMIT; the connect is another."""
    for name, value in orders.variables().items():
        monkeypatch.setenv(name, value)
    with get_engine().begin() as connection:
        connection.execute(text("SELECT 1"))
    dispose_engine()
