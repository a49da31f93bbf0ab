"""
`plungepool sam-local` as a user runs it: SAM's own containers, the built layers, a real PostgreSQL; nothing stays.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plungepool_toolkit.docker_engine import DockerEngine

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "plungepool_toolkit", "sam-local"]

pytestmark = pytest.mark.timeout(900)  # an image may have to be made, and a busy machine takes its time


def test_every_function_and_the_api_answer_in_sams_containers(machine: Any) -> None:
    """Each function answers its event by `sam local invoke`, the API by `start-api`, and then all of it is gone."""
    result = subprocess.run(COMMAND, cwd=ROOT, env=machine.variables, capture_output=True, text=True)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    # The sample for several tenants has a stack of its own: whoever issues the tokens is the user's.
    template = (ROOT / "template.yaml").read_text()
    samples = {path.parent.name for path in (ROOT / "functions").glob("*/app.py")}
    functions = {name for name in samples if f"CodeUri: functions/{name}/" in template}
    assert samples - functions == {"handle_tenant_orders"}
    for name in functions:
        assert f"{name.title().replace('_', '')}Function with events/{name}.json" in said
    for request in ("GET two orders", "GET one order", "POST an order", "GET the new order", "POST no order"):
        assert f"  {request} answered" in said
    # As CloudWatch gets them: the template turns metrics on.
    for name in ("handle_orders", "fulfil_orders", "report_sales"):
        trial = said.partition(f"events/{name}.json")[2].partition("answered in")[0]
        assert "metrics: DatabaseCheckouts " in trial
        assert "DatabaseConnects 1" in trial
    assert f"All {len(functions) + 5} trials answered" in said
    assert machine.left() == {}


def ask(address: Any, path: Any) -> Any:
    """Ask an engine by its socket."""
    with contextlib.closing(http.client.HTTPConnection("engine")) as connection, socket.socket(socket.AF_UNIX) as link:
        link.connect(address.removeprefix("unix://"))
        connection.sock = link
        connection.request("GET", path)
        return json.load(connection.getresponse())


def test_a_function_that_fails_fails_the_command(machine: Any, tmp_path: Path) -> None:
    """
    SAM ends with 0 for a function that failed; the command does not, and says why.

    The engine that runs here already is used: it stays, and holds nothing of the run but an image that was pulled.
    """
    # What SAM reads by relative paths is copied: it takes some of them from where a link leads to. The rest is large.
    copied = {"events", "functions", "infrastructure", "layers", "samconfig.toml", "template.yaml", "toolkit"}
    for path in ROOT.iterdir():
        if path.name not in copied:
            (tmp_path / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, tmp_path / path.name, symlinks=True)
        else:
            shutil.copyfile(path, tmp_path / path.name)
    (tmp_path / "events" / "prepare_database.json").write_text(json.dumps({"connection_limit": "many"}))
    command = [*COMMAND, "--folder", tmp_path]
    with DockerEngine() as engine:
        variables = {**machine.variables, "DOCKER_HOST": engine.address}
        result = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        said = result.stdout + result.stderr
        assert ask(engine.address, "/containers/json?all=1") == []
        images = [name for image in ask(engine.address, "/images/json") for name in image["RepoTags"]]
    assert result.returncode == 1, said
    assert "Using the Docker engine that runs here" in said
    assert [image for image in images if f"Pulling {image}" not in said or "Building a stand-in" in said] == []
    assert "connection_limit" in said.partition("failed: ")[2]
    assert "1 of 1 trials failed" in said  # the others need what prepare_database makes
    assert machine.left() == {}


def test_ctrl_c_while_a_container_is_made_leaves_nothing(machine: Any) -> None:
    """Interrupted in the midst of an invocation: the container, SAM, PostgreSQL and the engine end, in that order."""
    with subprocess.Popen(
        COMMAND, cwd=ROOT, env=machine.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        said = ""
        for line in run.stdout:
            said += line
            if line.startswith("PrepareDatabaseFunction"):
                run.send_signal(signal.SIGINT)
    assert run.returncode == 130, said
    assert "Interrupted; everything is stopped." in said
    assert machine.left() == {}


def test_another_folder_is_told_what_is_missing(tmp_path: Path) -> None:
    """
    Run where there is no template, or in a project that `sam init` made: one line that says what to do, no traceback.
    """
    result = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, "")
    assert "template.yaml" in result.stdout
    (tmp_path / "template.yaml").touch()
    (tmp_path / "toolkit" / "plungepool_toolkit").mkdir(parents=True)
    result = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, "")
    assert "toolkit/set-up" in result.stdout
    assert "sam local invoke" in result.stdout
