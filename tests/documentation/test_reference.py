"""docs/reference is written from the code: here each page is what the code says, and says something of each thing."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from plungepool import Settings, dispose_engine

ROOT = Path(__file__).parents[2]

_spec = importlib.util.spec_from_file_location("write_reference", ROOT / "docs" / "write_reference.py")
assert _spec is not None
assert _spec.loader is not None
write_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(write_reference)


def test_pages_are_what_the_code_says() -> None:
    """Nothing has changed in the code that `make reference` would write."""
    assert write_reference.problems() == []


def test_every_setting_says_what_it_means() -> None:
    """Each field of Settings, and the URL, has a section and a sentence beside it in settings.py."""
    found = list(write_reference.read_settings())
    expected = {"url", *(one.name for one in dataclasses.fields(Settings) if one.name != "prefix")}
    assert [one.name for one in found] == sorted(expected, key=[one.name for one in found].index)
    assert [one.name for one in found if not one.section or not one.about.endswith(".")] == []


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("url", ""),
        ("port", "`5432`"),
        ("region", "`AWS_REGION`"),
        ("pool_size", "`1`"),
        ("connect_timeout_s", "`5`"),
        ("deadline_margin_s", "`0.5`"),
        ("connect_on_restore", "`false`"),
        ("tls_negotiation", "`postgres`; `direct` with `PLUNGEPOOL_AUTH=dsql`"),
        ("deadline", "`server`; `client` with `PLUNGEPOOL_ENDPOINT=proxy` or `PLUNGEPOOL_AUTH=dsql`"),
        ("password", ""),
    ],
)
def test_defaults_are_shown_as_they_come_about(name: str, default: str) -> None:
    """A default that other settings decide says which; one of a number is short; there is none of a secret."""
    assert write_reference.default_of(name) == default


def test_example_of_settings_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the page makes the engine that it names; no connection is made."""
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    dispose_engine()
    try:
        exec(compile(example, "settings.md", "exec"), names)
        assert (names["engine"].url.host, names["settings"].pool_size) == ("db.example", 2)
    finally:
        dispose_engine()


def test_links_of_a_comment_start_from_docs() -> None:
    """What stands beside a field links as a page in docs does; the reference is a folder further down."""
    assert write_reference._from_reference("[a](b.md#c), [d](#e), [f](https://g)") == (
        "[a](../b.md#c), [d](#e), [f](https://g)"
    )
