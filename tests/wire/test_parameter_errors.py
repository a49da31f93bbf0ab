"""Errors about the types of parameters lead to the cast; numbers of several kinds agree on one type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.fixtures import Database


@pytest.fixture
def engine(database: Database) -> Iterator[Any]:
    address = {
        "user": "postgres",
        "host": database.server.host,
        "port": database.server.port,
        "database": database.name,
        "password": database.server.password,
    }
    engine = sa.create_engine("postgresql+plungepool://", connect_args=address)
    yield engine
    engine.dispose()


@pytest.mark.parametrize(
    ("statement", "parameters", "words"),
    [
        ("SELECT 'a'::text = $1", (5,), "explicit type casts.*CAST"),
        ("SELECT jsonb_build_object('a', $1)", ("x",), "cast it in the statement"),
        ("SELECT 1 WHERE 1 = %s", (), r"Placeholders are \$1"),
    ],
)
def test_error_of_types_leads_to_the_cast(engine: Engine, statement: str, parameters: Any, words: str) -> None:
    """
    An error about types keeps the server's hint and says what to cast; one at a percent sign says what placeholders
    are.
    """
    with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError, match=words):
        connection.exec_driver_sql(statement, parameters)


def test_numbers_of_several_kinds_have_a_type_that_holds_all(engine: Engine) -> None:
    """An int and a float, as rows of an executemany or as items of a list, are numeric together."""
    table = sa.Table("numbers", sa.MetaData(), sa.Column("n", sa.Integer))
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), [{"n": 5}, {"n": 6.0}])
        assert connection.execute(sa.select(table.c.n).order_by(table.c.n)).scalars().all() == [5, 6]
        unnested = sa.text("SELECT sum(x)::float8 FROM unnest(:l) x")
        assert connection.execute(unnested, {"l": [1, 2.5]}).scalar_one() == 3.5
