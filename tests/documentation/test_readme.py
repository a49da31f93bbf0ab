"""README is what a user tries first: its example runs, its links lead somewhere."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from plungepool import dispose_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from plungepool_toolkit.fixtures import Database
    from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
# The Makefile's targets; `%` of a pattern stands for a version.
_NAMES = re.findall(r"^(?:\S+: )?([a-z0-9%-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
TARGET = re.compile("|".join(name.replace("%", "[a-z0-9.]+") for name in _NAMES))


def python_blocks(page: str) -> list[str]:
    """Return a page's blocks of Python, also those within a list."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        textwrap.dedent(found[1])
        for found in re.findall(r"^( *)```python\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize("page", ["README.md", "AGENTS.md"])
def test_example_runs(postgres: Postgres, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """The first block of Python is a whole handler that answers from a real server."""
    example = python_blocks(page)[0]
    monkeypatch.setenv("PLUNGEPOOL_URL", postgres.url())
    monkeypatch.setenv("PLUNGEPOOL_PASSWORD", postgres.password)
    monkeypatch.setenv("PLUNGEPOOL_TLS", "disable")
    postgres.execute("CREATE TABLE orders (id bigint, status text); INSERT INTO orders VALUES (7, 'placed')")
    dispose_engine()
    names: dict[str, Any] = {}
    try:
        exec(compile(example, page, "exec"), names)
        answer = names["handler"]({"order_id": 7}, None)
    finally:
        dispose_engine()
        postgres.execute("DROP TABLE orders")
    assert (answer["statusCode"], json.loads(answer["body"])) == (200, {"id": 7, "status": "placed"})


def test_the_test_that_an_assistant_reads_passes(
    database: Database, lambda_environment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test in AGENTS.md passes with the handler in AGENTS.md."""
    handler, test = python_blocks("AGENTS.md")
    (tmp_path / "functions" / "orders").mkdir(parents=True)
    (tmp_path / "functions" / "orders" / "app.py").write_text(handler, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(test, "AGENTS.md", "exec"), names)
    names["test_an_unknown_order_is_404"](database, lambda_environment)


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    """Every link to a file of the repository names one that exists."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_anchors_lead_to_a_heading() -> None:
    """Every link to a heading of a page names one, as GitHub writes it."""
    wrong = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#\s]*\.md)?#([^)\s]+)\)", page.read_text(encoding="utf-8")):
            there = (page.parent / target).resolve() if target else page
            if anchor not in _anchors(there):
                wrong.append(f"{page.name} links to {target}#{anchor}")
    assert wrong == []


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def test_commands_are_targets_of_the_makefile() -> None:
    """Every `make …` that a page tells the reader to type exists."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = page.read_text(encoding="utf-8")
        code = re.findall(r"```.*?```", text, re.DOTALL) + re.findall(r"`[^`\n]+`", text)
        commands = re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", "\n".join(code), re.MULTILINE)
        unknown = [command for command in commands if not TARGET.fullmatch(command)]
        assert unknown == [], f"{page.name} names a target that does not exist"


@pytest.mark.parametrize("form", sorted(path.name for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")))
def test_issue_forms_are_what_github_takes(form: str) -> None:
    """Each form has a name, a description and fields, each of a kind that there is, with a name of its own."""
    text = (ROOT / ".github/ISSUE_TEMPLATE" / form).read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    if form == "config.yml":
        assert found == {"blank_issues_enabled": False}
        return
    assert {"name", "description", "body"} <= found.keys() <= {"name", "description", "body", "labels", "title"}
    fields = [field for field in found["body"] if field["type"] != "markdown"]
    assert fields
    assert {field["type"] for field in found["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_our_own_hooks_run_what_the_makefile_has() -> None:
    """The commands of .pre-commit-config.yaml are targets, and run from the repository alone."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"].split() for hook in repository["hooks"]]
    assert [entry for entry in entries if entry[0] != "make" or not all(map(TARGET.fullmatch, entry[1:]))] == []
