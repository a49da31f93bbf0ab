"""docs/reference is written from the code: here each page is what the code says, and says something of each thing."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import plungepool
from plungepool import Settings, dispose_engine, observe
from plungepool.metrics import METRICS
from plungepool.wire import errors as wire_errors
from plungepool_toolkit import command

ROOT = Path(__file__).parents[2]

EXTENSION = ROOT / "docs" / "extension"
if str(EXTENSION) not in sys.path:
    sys.path.append(str(EXTENSION))
write_reference, settings_reference, errors_reference, reference_text = map(
    importlib.import_module, ("write_reference", "settings_reference", "errors_reference", "reference_text")
)


def test_pages_are_what_the_code_says() -> None:
    """Nothing has changed in the code that `make reference` would write."""
    assert write_reference.problems() == []


def test_every_setting_says_what_it_means() -> None:
    """Each field of Settings, and the URL, has a section and a sentence beside it in settings.py."""
    found = list(settings_reference.read_settings())
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
    assert settings_reference.default_of(name) == default


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
    assert reference_text.from_reference("[a](b.md#c), [d](#e), [f](https://g)") == (
        "[a](../b.md#c), [d](#e), [f](https://g)"
    )


def test_docstring_is_shown_as_it_is() -> None:
    """Code stays code, the labels become a list, a page that is named is linked, and no sign turns into markup."""
    about = """Do it, *all* of it.

        do(it)

    See docs/wire.md and docs/reference/errors.md.
    Args: a: `*`, or <b>,
        on the next line.
    Units: seconds.        Threads: safe.
    """
    assert reference_text.docstring(about) == [
        "Do it, \\*all\\* of it.",
        "",
        "```python",
        "do(it)",
        "```",
        "",
        "See [wire](../wire.md) and [errors](errors.md).",
        "",
        "- **Args:** a: `*`, or \\<b\\>, on the next line.",
        "- **Units:** seconds.",
        "- **Threads:** safe.",
        "",
    ]


def test_errors_are_all_there() -> None:
    """Each error that the package exports, each of the driver's, and each code that the driver knows has its line."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    named = {name for name in plungepool.__all__ if issubclass(_class(name), BaseException)}
    assert named == set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
    assert {one.__name__ for one in wire_errors.CLASSES} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    codes = set(re.findall(r"^\| (?:class )?`(\w+)` \| [^|]+\| `", page, re.MULTILINE))
    assert set(wire_errors._ERROR_CLASSES) <= codes
    assert "| `40001` | serialization_failure | `OperationalError` | yes |" in page


def _class(name: str) -> type:
    thing = getattr(plungepool, name)
    return thing if isinstance(thing, type) else object


def test_numbers_and_metrics_are_all_there() -> None:
    """Each number of a tally, and each metric with its unit."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    table = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    numbers = {name for row in table for name in re.findall(r"`(\w+)`", row[1])}
    assert numbers == {*observe.FIELDS, "reconnects", "errors", "failure"}
    shown = {found for row in table for found in re.findall(r"`(\w+)`, (\w+)", row[3])}
    assert shown == {(name, unit.value) for name, unit in METRICS.values()}


def test_commands_are_all_there() -> None:
    """Each subcommand, with each option that its help lists."""
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## plungepool ([\w-]+)$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(command.COMMANDS)
    for name, section in sections.items():
        help_ = (
            CliRunner().invoke(command.application, [name, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
        )
        options = set(re.findall(r"^\W*(--[\w-]+)", help_, re.MULTILINE)) - {"--help"}
        assert options <= set(re.findall(r"`(--[\w-]+)`", section)), name
