"""The SAM CLI in its own environment, and what it makes of this repository, built once for all tests."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAM = ROOT / ".venv-sam" / "bin"
# Where `make test-versions` has it; elsewhere there is no such folder.
PYTHON_3_14 = ROOT / ".debian/python3.14/usr/bin"
sys.path.append(str(Path(__file__).parent))  # for template_rules


@pytest.fixture(scope="session")
def pythons() -> dict[str, str]:
    """Every supported Python found on this machine, by version."""
    found = subprocess.run([ROOT / "toolkit" / "set-up", "pythons"], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in found.stdout.splitlines())


@pytest.fixture(scope="session")
def run_sam(pythons: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program of the SAM environment in this repository: run_sam("sam", "validate"). No AWS, no telemetry."""
    if not (SAM / "sam").exists():
        subprocess.run([ROOT / "toolkit" / "set-up", "venv", ".venv-sam", "requirements/sam.txt"], check=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SAM_"))}
    environment |= {
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "SAM_CLI_TELEMETRY": "0",
        # sam build asks for a python3.13 that runs; a version manager's shim may be first on PATH.
        "PATH": f"{Path(pythons['3.13']).parent}:{SAM}:{os.environ['PATH']}:{PYTHON_3_14}",
    }

    def run(
        program: str, *arguments: str | Path, standard_input: str = "", endpoint: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [SAM / program, *arguments]
        given = environment | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})
        return subprocess.run(
            command, cwd=ROOT, env=given, input=standard_input, capture_output=True, text=True, timeout=800
        )

    return run


@pytest.fixture(scope="session")
def built(run_sam: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `sam build` fills: one folder a layer and function, and the template that names them."""
    scratch = tmp_path_factory.mktemp("sam")
    result = run_sam("sam", "build", "--build-dir", scratch / "build", "--cache-dir", scratch / "cache")
    assert result.returncode == 0, result.stderr
    return scratch / "build"


@pytest.fixture(scope="session")
def build_layer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, Path], None]:
    """
    Build a layer as `sam build` does, in a copy of its folder: build_layer("plungepool", "PlungepoolLayer", to).

    On a worse machine, though: the Python that builds has no pip, and a version manager's shim that does not run is
    first on PATH under every name.
    """
    shims = tmp_path_factory.mktemp("shims")
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        (shims / name).write_text("#!/bin/sh\necho no version is set >&2\nexit 127\n")
        (shims / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{shims}:{os.environ['PATH']}:{PYTHON_3_14}"}

    def build(name: str, logical_id: str, to: Path) -> None:
        scratch = to.with_name(to.name + "-source")
        shutil.copytree(ROOT / "layers" / name, scratch)
        to.mkdir()
        command = ["make", "--silent", f"PYTHON={sys.executable}", f"build-{logical_id}", f"ARTIFACTS_DIR={to}"]
        result = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr

    return build


@pytest.fixture(scope="session")
def examine(run_sam: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[[dict[str, str], set[str]], dict]:
    """Examine templates, given by name as YAML, and lint those named: see examine_templates.py for what comes back."""

    def run(templates: dict[str, str], lint: set[str]) -> dict:
        asked = {name: {"text": text, "lint": name in lint} for name, text in templates.items()}
        script = Path(__file__).with_name("examine_templates.py")
        result = run_sam("python", script, standard_input=json.dumps(asked))
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run
