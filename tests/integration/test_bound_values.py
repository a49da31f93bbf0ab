"""That a value in the log would be found: the fixture of every test looks for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from bound_values import BoundValues
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

VALUE = "recognisable-4711"


@pytest.mark.values_in_the_log
@pytest.mark.parametrize("logged", [VALUE, "nothing of it"])
def test_a_value_that_is_logged_is_found(make_engine: Callable[..., Engine], logged: str) -> None:
    """Bound to a statement of an engine's, and in a line of any logger below the package's."""
    with BoundValues() as values, make_engine().begin() as connection:
        connection.execute(text("SELECT CAST(:value AS text), CAST(:other AS int)"), {"value": VALUE, "other": 1})
        logging.getLogger("plungepool").warning("a line with %s", logged)
    assert set(values.found()) == ({VALUE} & {logged})
    assert VALUE not in BoundValues().found()
