"""What holds for every sample function."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

import plungepool

ROOT = Path(__file__).parents[2]
APPS = {path.parent.name: path for path in sorted((ROOT / "functions").glob("*/app.py"))}


def test_every_function_has_its_event_and_its_place_in_the_documentation() -> None:
    """functions/, events/ and the table of docs/functions.md name the same functions."""
    assert {path.stem for path in (ROOT / "events").glob("*.json")} == set(APPS)
    lines = (ROOT / "docs" / "functions.md").read_text().splitlines()
    sections = {line.removeprefix("## ") for line in lines if line.startswith("## ")}
    assert sections - {"Variables"} == set(APPS)
    assert {line.split("`")[1] for line in lines if line.startswith("| `") and "_" in line.split("`")[1]} >= set(APPS)
    for path in (ROOT / "events").glob("*.json"):
        assert isinstance(json.loads(path.read_text()), dict)


def test_handlers_stay_short() -> None:
    """A sample that does not fit a screen or two is not read: under 60 lines each."""
    assert {name: count for name, path in APPS.items() if (count := len(path.read_text().splitlines())) >= 60} == {}


def test_options_of_prepare_database_are_documented() -> None:
    """The table of docs/functions.md lists every variable that prepare_database reads."""
    source = (ROOT / "functions" / "prepare_database" / "preparation.py").read_text()
    documentation = (ROOT / "docs" / "functions.md").read_text()
    variables = set(re.findall(r'"(APP_ROLE_\w+)"', source))
    assert len(variables) == 8
    assert [name for name in variables if f"`{name}`" not in documentation] == []


def test_roles_are_one_file() -> None:
    """prepare_database runs infrastructure/roles.sql itself, not a copy that could differ."""
    assert (ROOT / "functions" / "prepare_database" / "roles.sql").resolve() == ROOT / "infrastructure" / "roles.sql"


@pytest.mark.parametrize("kind", plungepool.Unavailable, ids=lambda kind: kind.__name__)
def test_whatever_is_unavailable_is_tried_again_later(shop: Any, load: Any, kind: Any) -> None:
    """Each error that means "try later" is 503 to a client, and to a queue the rest of the batch."""
    error = kind("a", None, Exception("b")) if issubclass(kind, DBAPIError) else kind("a")
    events = {name: json.loads((ROOT / "events" / f"{name}.json").read_text()) for name in APPS}

    def unavailable() -> None:
        raise error

    function = load("handle_orders", shop.url())
    function.module.engine = SimpleNamespace(begin=unavailable)
    response = function.invoke(events["handle_orders"])
    assert (response["statusCode"], response["headers"]["Retry-After"]) == (503, "2")
    function = load("fulfil_orders", shop.url())
    function.module.engine = SimpleNamespace(begin=unavailable)
    every = [{"itemIdentifier": record["messageId"]} for record in events["fulfil_orders"]["Records"]]
    assert function.invoke(events["fulfil_orders"]) == {"batchItemFailures": every}
