"""check_database: what it says of the shop, asked for row-level security and not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from plungepool_toolkit.command import application
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_row_level_security_is_looked_at_where_asked_for(shop: Any, load: Any) -> None:
    """The event chooses it, and the schemas; an event without it, or of another kind, asks for the rest alone."""
    function = load("check_database", shop.url())
    for event in ({}, {"rls": False}, {"schemas": ["shop"]}, [], None, "rls"):
        assert [check["name"] for check in function.invoke(event)["checks"] if check["name"].startswith("RLS")] == []
    result = function.invoke({"rls": True, "schemas": ["shop"]})
    found = {check["name"]: check for check in result["checks"]}
    assert (result["ok"], found["RLS role"]["state"]) == (True, "ok")
    # The tables of one shop, which all of its orders share.
    assert found["RLS tables"]["state"] == "warning"
    assert "read and write shop.orders" in found["RLS tables"]["found"]
    assert "plungepool.once_keys" not in found["RLS tables"]["found"]


@pytest.fixture(scope="module")
def counting() -> Iterator[Postgres]:
    """A server that counts statements, with a large table."""
    with Postgres({"shared_preload_libraries": "pg_stat_statements"}) as running:
        running.execute("CREATE EXTENSION pg_stat_statements")
        running.execute("CREATE TABLE orders (id int PRIMARY KEY, customer int)")
        running.execute("INSERT INTO orders SELECT n, n / 2 FROM generate_series(1, 20000) n")
        running.execute("ANALYZE")
        running.execute("SELECT pg_stat_statements_reset()")
        running.execute("SELECT id FROM orders WHERE customer = 4711")
        yield running


def test_the_worst_statements_are_those_of_the_command(
    counting: Postgres, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From inside the VPC what `plungepool slow` says from a developer's machine: ranked, with the index, no value."""
    function = load("check_database", counting.url())
    answer = function.invoke({"slow": {}})
    (found,) = [one for one in answer["statements"] if "orders" in one["statement"]]
    assert found["why"]["indexes"] == ["CREATE INDEX CONCURRENTLY ON public.orders (customer)"]
    assert "4711" not in json.dumps(answer)
    environ = {
        "PLUNGEPOOL_URL": counting.url(),
        "PLUNGEPOOL_PASSWORD": counting.password or "x",
        "PLUNGEPOOL_TLS": "disable",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    printed = json.loads(CliRunner().invoke(application, ["slow", "--json"]).stdout)
    assert found["fingerprint"] in [one["fingerprint"] for one in printed["statements"]]
    assert function.invoke({"slow": {"by": "calls", "limit": 1}})["by"] == "calls"


@pytest.mark.parametrize("asked", [{"by": "colour"}, {"by": []}, {"limit": 0}, {"limit": "ten"}, {}])
def test_what_cannot_be_listed_is_said(shop: Any, load: Any, asked: dict[str, Any]) -> None:
    """A wrong choice, and a database without the extension: one sentence, and nothing raised."""
    answer = load("check_database", shop.url()).invoke({"slow": asked})
    assert set(answer) == {"format", "problem"}
    assert ("by is one of total, mean, calls" if asked else "CREATE EXTENSION") in answer["problem"]
