"""Whose session it is, by the name that the server shows, which is cut at 63 bytes."""

from __future__ import annotations

import pytest

from plungepool.drain import DrainError, Options, _is_meant
from plungepool.engine import session_name

LONG = "shop-prod-HandleOrdersFunction-1A2B3C4D5E6F7G8H9I0J-and-more"


@pytest.mark.parametrize("function", ["orders", LONG, LONG + LONG[:4], LONG * 2])
@pytest.mark.parametrize("version", ["", "7", "12", "$LATEST"])
def test_a_functions_sessions_are_found_however_long_its_name_is(function: str, version: str) -> None:
    """By the function for each version; by function and version for that one alone."""
    shown = session_name(function, version)
    assert len(shown) <= 63
    assert _is_meant(shown, function)
    assert _is_meant(shown, f"{function}:{version}" if version else function)
    assert _is_meant(shown, None)
    assert not _is_meant(shown, f"{function}:8")


@pytest.mark.parametrize("name", [None, "", "order", "orders2:7", "psql", "orders-7", "x:orders"])
def test_others_are_left(name: str | None) -> None:
    """Of another function, or of no function."""
    assert not _is_meant(name, "orders")


@pytest.mark.parametrize("rate", [10**400, -(10**400), float("nan"), float("inf"), True, "1"])
def test_an_odd_number_is_refused(rate: object) -> None:
    """Also one that is too large to be a float."""
    with pytest.raises(DrainError, match=r"rate must be a number from 0\.1 to 1000"):
        Options(rate=rate)  # type: ignore[arg-type]
