"""check_database: what it says of the shop, asked for row-level security and not."""

from __future__ import annotations

from typing import Any


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
