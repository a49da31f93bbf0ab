"""Every block of code on every page is at least read by what it is for; most are run by the test of their page."""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml
from pg8000.exceptions import DatabaseError

import plungepool
from plungepool_toolkit import command

if TYPE_CHECKING:
    from collections.abc import Callable

    from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "templates" / "{{cookiecutter.project_name}}"
FOLDERS = (".github", "docs", "infrastructure", "layers", "templates", "toolkit")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for folder in FOLDERS for page in sorted(ROOT.glob(f"{folder}/**/*.md")))]
FENCE = re.compile(r"^( *)(```|~~~)(\w*)[^\n]*\n(.*?)^\1\2$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """One fenced block: its page and line, its language, what it holds, and whether it is named after a file."""

    place: str
    language: str
    text: str
    named: bool


def blocks() -> list[Block]:
    """Return every block of every page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            place = f"{page.relative_to(ROOT).as_posix()}:{line}"
            named = re.search(r"<!-- example: \S+ -->\n$", text[: match.start()]) is not None
            found.append(Block(place, match[3], textwrap.dedent(match[4]), named))
    return found


BLOCKS = blocks()


def read_python(text: str) -> None:
    """Compile it; what it imports from these packages must be there."""
    compile(text, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "plungepool",
            "plungepool_toolkit",
        ):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")


def read_yaml(text: str) -> None:
    """Load it, with CloudFormation's tags for whatever they stand before."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda *_: None)
    assert yaml.load(text, Loader)


def read_json(text: str) -> None:
    """Load it; a line may stand for itself, as a log has them."""
    try:
        json.loads(text)
    except ValueError:
        for line in text.strip().splitlines():
            json.loads(line)


def read_shell(text: str) -> None:
    """Have a shell read it, and run nothing. `<name>` and `…` stand for what the reader puts there."""
    text = re.sub(r"<[\w ./-]+>", "NAME", text)
    done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def read_ini(text: str) -> None:
    """Parse it."""
    assert configparser.ConfigParser().read_string(text) is None


def read_braces(text: str) -> None:
    """Terraform, which nothing here reads: every bracket is closed, and each line is a block, a value or an end."""
    assert text.count("{") == text.count("}")
    assert text.count("[") == text.count("]")
    shape = re.compile(r'\s*(#.*|[\w"]+( "[\w-]+")* \{|"?[\w.]+"?\s*=.+|[}\])]+,?|)')
    assert [line for line in text.splitlines() if not shape.fullmatch(line)] == []


READERS: dict[str, Callable[[str], None]] = {
    "python": read_python,
    "yaml": read_yaml,
    "json": read_json,
    "sh": read_shell,
    "ini": read_ini,
    "hcl": read_braces,
    # Drawn by a browser, in test_site.py.
    "mermaid": lambda text: None,
    # Files before and after, which the page's own test compares.
    "diff": lambda text: None,
    # What a command prints, or a command in one line, which the test below reads.
    "": lambda text: None,
}


def test_every_fence_is_a_block() -> None:
    """None is closed otherwise than it was opened, which would hide it, and what follows, from the tests below."""
    fences = sum(len(re.findall(r"^ *(?:```|~~~)", page.read_text("utf-8"), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(BLOCKS)


def test_python_that_is_not_run_is_type_checked(tmp_path: Path) -> None:
    """
    A block that is named after a file is run by the test of its page; mypy reads the others, each as a module. Those of
    the reference are signatures, which test_reference.py compares with the code.
    """
    for block in BLOCKS:
        signature = block.place.startswith(("docs/reference/python", "docs/reference/toolkit"))
        if block.language == "python" and not block.named and not signature:
            name = re.sub(r"\W", "_", block.place)
            (tmp_path / f"{name}.py").write_text(block.text, encoding="utf-8")
    assert len(list(tmp_path.iterdir())) > 10
    options = [
        "--config-file=",
        "--check-untyped-defs",
        "--ignore-missing-imports",
        f"--cache-dir={ROOT}/.mypy_cache/blocks",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(tmp_path)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language != "sql"], ids=lambda block: block.place)
def test_block_is_what_it_says(block: Block) -> None:
    """A block of a language is that language; one that nothing here can read has no place on a page."""
    READERS[block.language](block.text)


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "sql"], ids=lambda block: block.place)
def test_block_of_sql_is_read_by_postgresql(postgres: Postgres, block: Block) -> None:
    """
    The server reads the whole text before it executes the first statement of it, which fails here: so nothing of the
    rest is done, and what it cannot read it says first.
    """
    text = (
        re.sub(r"(?<![:\w]):(?=[a-z_])", "$1 --", block.text) if re.search(r"(?<!:):[a-z]", block.text) else block.text
    )
    text = re.sub(r"<[\w ]+>|…", "name", text)
    with pytest.raises(DatabaseError) as caught:
        postgres.execute(f"SELECT 1/0;\n{text}")
    assert caught.value.args[0]["C"] == "22012", caught.value.args[0]


def test_every_command_has_the_options_that_a_page_gives_it() -> None:
    """`plungepool …` in a block or in a line of text names a subcommand, and only options of its own."""
    wrong = []
    known = {name: _options(name) for name in command.COMMANDS}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = [one.text.replace("\\\n", " ") for one in BLOCKS if one.place.startswith(f"{page.relative_to(ROOT)}:")]
        code += re.findall(r"`([^`\n]+)`", re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE))
        lines = [line for one in code for line in one.splitlines()]
        for line in lines:
            if not (found := re.match(r"(?:\S*/)?plungepool ([a-z][a-z-]+)((?: [^#|&;>]*)?)", line)):
                continue
            if found[1] == "requires":  # an error's text
                continue
            if found[1] not in known:
                wrong.append(f"{page.name}: plungepool {found[1]}")
                continue
            given = set(re.findall(r"(?<![\w-])(--[a-z][\w-]*)", found[2])) - {"--help"}
            wrong += [f"{page.name}: plungepool {found[1]} {one}" for one in sorted(given - known[found[1]])]
    assert wrong == []


def _options(name: str) -> set[str]:
    parameters = command._load(name).params
    return {option for one in parameters for option in (*one.opts, *one.secondary_opts) if option.startswith("--")}


def test_what_a_new_project_tells_an_assistant_is_there() -> None:
    """Each file and folder that the AGENTS.md of `sam init` names is in the project, and each name in the package."""
    text = (PROJECT / "AGENTS.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:functions|tests|database|layers|toolkit|template)[\w./]*)`", text)
    assert len(named) > 8
    assert [path for path in named if not (PROJECT / path).exists()] == []
    [imported] = re.findall(r"Import from `plungepool`: (.*?)\. Use", text, re.DOTALL)
    assert [name for name in re.findall(r"`(\w+)`", imported) if not hasattr(plungepool, name)] == []
