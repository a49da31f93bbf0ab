"""The default schema is the role's, whatever the transaction in which it is first needed has set or suffered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, exc, inspect, select, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from plungepool_toolkit.postgres import Postgres


@pytest.fixture
def schemas(postgres: Postgres) -> Iterator[None]:
    """Two tenants' schemas, one whose name needs quotes, and a role whose own search path leads to that one."""
    postgres.execute(
        'CREATE SCHEMA t1; CREATE SCHEMA t2; CREATE SCHEMA "Mixed, Case"; CREATE SCHEMA forbidden;'
        "CREATE TABLE public.things (n int); CREATE TABLE t1.things (n int); CREATE TABLE t2.things (n int);"
        "CREATE ROLE elsewhere LOGIN; CREATE ROLE homely LOGIN; CREATE SCHEMA homely AUTHORIZATION homely;"
        'GRANT USAGE ON SCHEMA "Mixed, Case", t1 TO elsewhere;'
        'ALTER ROLE elsewhere SET search_path = forbidden, nowhere, "Mixed, Case", t2'
    )
    yield
    postgres.execute(
        'DROP TABLE public.things; DROP SCHEMA t1, t2, "Mixed, Case", forbidden, homely CASCADE;'
        "DROP ROLE elsewhere; DROP ROLE homely"
    )


def map_first(connection: Connection) -> None:
    """Use schema_translate_map, for which SQLAlchemy writes the default schema into statements."""
    things = Table("things", MetaData(), Column("n", Integer), schema="shared")
    connection.execution_options(schema_translate_map={"shared": None}).execute(select(things)).all()


def inspect_first(connection: Connection) -> None:
    """Reflect."""
    inspect(connection).get_table_names()


@pytest.mark.usefixtures("schemas")
@pytest.mark.parametrize("need", [map_first, inspect_first])
@pytest.mark.parametrize("change", ["SET LOCAL search_path = t1", "SET search_path = t1", "SET LOCAL ROLE elsewhere"])
def test_search_path_of_one_transaction_is_not_everybodys(
    make_engine: Callable[..., Engine], postgres: Postgres, need: Callable[[Connection], None], change: str
) -> None:
    """What one request sets for itself when the name is first needed is written and read by no later request."""
    engine = make_engine()
    with engine.connect() as connection:
        connection.execute(text(change))
        if "ROLE" in change and need is map_first:
            with pytest.raises(exc.ProgrammingError):  # that role may not read the table
                need(connection)
        else:
            need(connection)
        connection.invalidate()
    things = Table("things", MetaData(), Column("n", Integer), schema="shared")
    with engine.begin() as connection:
        assert inspect(connection).default_schema_name == "public"
        connection.execution_options(schema_translate_map={"shared": None}).execute(things.insert(), {"n": 1})
    counts = [postgres.execute(f"SELECT count(*) FROM {schema}.things")[0][0] for schema in ("public", "t1", "t2")]
    assert counts == [1, 0, 0]


@pytest.mark.usefixtures("schemas")
@pytest.mark.parametrize(
    ("user", "expected"), [("postgres", "public"), ("elsewhere", "Mixed, Case"), ("homely", "homely")]
)
def test_default_schema_is_the_servers_own_choice(make_engine: Callable[..., Engine], user: str, expected: str) -> None:
    """
    The role's path, "$user" and schemas that are missing or forbidden included: what current_schema() says at the
    start.
    """
    engine = make_engine(user=user)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT current_schema()")).scalar_one() == expected
        assert inspect(connection).default_schema_name == expected


@pytest.mark.usefixtures("schemas")
def test_failed_question_is_asked_again(make_engine: Callable[..., Engine]) -> None:
    """A first inspection within a failed transaction fails, and the next one finds the role's schema all the same."""
    engine = make_engine(user="elsewhere")
    with engine.connect() as connection:
        with pytest.raises(exc.DBAPIError):
            connection.execute(text("SELECT 1 / 0"))
        with pytest.raises(exc.DBAPIError):
            inspect(connection)
    with engine.connect() as connection:
        assert inspect(connection).default_schema_name == "Mixed, Case"
