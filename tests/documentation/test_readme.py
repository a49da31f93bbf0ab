"""README is what a user tries first: its example runs, its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from plungepool import dispose_engine

if TYPE_CHECKING:
    from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_runs(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block of Python is a whole handler that answers from a real server."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.setenv("PLUNGEPOOL_URL", postgres.url())
    monkeypatch.setenv("PLUNGEPOOL_PASSWORD", postgres.password)
    monkeypatch.setenv("PLUNGEPOOL_TLS", "disable")
    postgres.execute("CREATE TABLE orders (id bigint, status text); INSERT INTO orders VALUES (7, 'placed')")
    dispose_engine()
    names: dict[str, Any] = {}
    try:
        exec(compile(example, "README.md", "exec"), names)
        answer = names["handler"]({"order_id": 7}, None)
    finally:
        dispose_engine()
        postgres.execute("DROP TABLE orders")
    assert (answer["statusCode"], json.loads(answer["body"])) == (200, {"id": 7, "status": "placed"})


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    """Every link to a file of the repository names one that exists."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_commands_are_targets_of_the_makefile() -> None:
    """Every `make …` that a page tells the reader to type exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        text = page.read_text(encoding="utf-8")
        code = re.findall(r"```.*?```", text, re.DOTALL) + re.findall(r"`[^`\n]+`", text)
        commands = re.findall(r"(?:^|`)make ([a-z][a-z-]*)", "\n".join(code), re.MULTILINE)
        assert set(commands) <= targets, f"{page.name} names a target that does not exist"
