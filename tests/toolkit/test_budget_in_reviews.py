"""The GitHub action and the pre-commit hook: what they run is really run, by what their files say."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "tests" / "toolkit" / "budget"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository of a user's, with modules by the names of ours and of what we need."""
    for name in ("yaml.py", "typer.py", "plungepool.py"):
        (tmp_path / name).write_text("raise ImportError('not this one')\n")
    (tmp_path / "template.yaml").write_text((TEMPLATES / "too-many.yaml").read_text())
    return tmp_path


def act(folder: Path, **inputs: str) -> Any:
    """Run the action's step as GitHub's runner does: its script by bash, its inputs in the environment."""
    given = {name: of["default"] for name, of in ACTION["inputs"].items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    assert given.keys() == ACTION["inputs"].keys()
    [step] = ACTION["runs"]["steps"]
    environment = dict(os.environ, GITHUB_ACTION_PATH=str(ROOT), COLUMNS="160")
    for name, value in step["env"].items():
        environment[name] = re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], value)
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_the_action_is_what_github_takes() -> None:
    """A composite action: each input has a description, each step a shell, and no input is written into the script."""
    assert {"name", "description", "inputs", "runs"} <= ACTION.keys()
    assert ACTION["runs"]["using"] == "composite"
    assert all(of.keys() == {"description", "default"} for of in ACTION["inputs"].values())
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]
    assert {name for step in ACTION["runs"]["steps"] for name in re.findall(r"inputs\.([\w-]+)", str(step["env"]))} == (
        ACTION["inputs"].keys()
    )


def test_the_action_fails_what_cannot_hold(project: Path) -> None:
    """It exits with 1, names the parameter, and writes the findings where it was told."""
    result = act(project, sarif="found.sarif")
    assert (result.returncode, result.stderr.count("Traceback")) == (1, 0), result.stderr
    assert "Set the parameter OrdersConcurrency to 38" in result.stdout
    [run] = json.loads((project / "found.sarif").read_text())["runs"]
    uris = {one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in run["results"]}
    assert uris == {"template.yaml"}


def test_the_action_takes_options_line_by_line(project: Path) -> None:
    """Parameters, the account's concurrency and further options reach the command; none is read as a piece of shell."""
    options = "--database=database-ms=0.5\n\n--database=rate=40; touch broken\n"
    refused = act(project, parameter_overrides="OrdersConcurrency=30", account_concurrency="1000", options=options)
    assert (refused.returncode, (project / "broken").exists()) == (2, False)
    assert "takes a number" in refused.stderr
    result = act(project, parameter_overrides="OrdersConcurrency=30", options=options.replace("; touch broken", ""))
    assert (result.returncode, "It holds." in result.stdout) == (0, True), result.stdout + result.stderr


def test_the_hook_is_what_pre_commit_takes(project: Path) -> None:
    """A script of this repository, run in the user's with the arguments of their configuration, for templates only."""
    [hook] = HOOKS
    assert (hook["language"], hook["pass_filenames"]) == ("script", False)
    names = ("template.yaml", "service/template.yml", "samconfig.toml", "app.py", "my-template.yaml")
    assert [name for name in names if re.search(hook["files"], name)] == [*names[:3]]
    command = [str(ROOT / hook["entry"]), "--parameter-overrides", "OrdersConcurrency=30"]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=200)
    assert (result.returncode, "It holds." in result.stdout) == (0, True), result.stdout + result.stderr


def test_modules_of_the_callers_do_not_stand_in_for_the_set_ups(tmp_path: Path) -> None:
    """A PYTHONPATH with a module by the name of one that the set-up or a target of make imports changes nothing."""
    for name in ("ssl.py", "hatchling.py", "plungepool.py"):
        (tmp_path / name).write_text("raise ImportError('not this one')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONOPTIMIZE": "2"}
    found = subprocess.run([ROOT / "toolkit/set-up", "pythons"], env=environment, capture_output=True, text=True)
    assert found.stdout, found.stderr
    shown = ["make", "--silent", "--eval", "shown: ; @env", "shown"]
    given = subprocess.run(shown, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "PYTHONPATH" not in given
    assert "PYTHONOPTIMIZE" not in given


def test_the_page_uses_them_by_their_names() -> None:
    """docs/budget.md passes inputs that the action has, and names the hook by its id."""
    page = (ROOT / "docs" / "budget.md").read_text(encoding="utf-8")
    blocks = [
        yaml.safe_load(block)
        for block in re.findall(r"^```yaml\n((?:- uses|repos).*?)^```", page, re.DOTALL | re.MULTILINE)
    ]
    [[use, _], configuration] = blocks
    assert use["with"].keys() <= ACTION["inputs"].keys()
    [repository] = configuration["repos"]
    assert [hook["id"] for hook in repository["hooks"]] == [hook["id"] for hook in HOOKS]


def test_the_page_lists_every_input() -> None:
    """The table of docs/budget.md has the inputs of the action, all of them, in their order, with their defaults."""
    page = (ROOT / "docs" / "budget.md").read_text(encoding="utf-8")
    table = page.split("| input | default | meaning |\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| (?:`(.+?)`)? ?\| \S", table, re.MULTILINE)
    assert rows == [(name, of["default"]) for name, of in ACTION["inputs"].items()]
