"""What `sam build` makes of the repository: layers that need nothing else, and functions that answer from them."""

import hashlib
import io
import json
import marshal
import runpy
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from plungepool_toolkit.environment import Environment
from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)  # a build or a deployment is in the set-up of a test
LAYERS = {"plungepool": "PlungepoolLayer", "powertools": "PowertoolsLayer"}


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def zipped_mb(folder: Path) -> float:
    """Return what the folder weighs as a zip, as SAM makes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return len(buffer.getvalue()) / 1e6


def test_only_what_belongs_in_opt(built: Path) -> None:
    """A layer holds python/ and its bill of materials, and nothing of its build."""
    for logical_id in LAYERS.values():
        assert {"python", "sbom"} == {path.name for path in (built / logical_id).iterdir()}


def test_layer_is_pure_python_and_stripped(built: Path) -> None:
    """One layer serves both architectures, and carries no test suite, type stub or other database's dialect."""
    python = built / "PlungepoolLayer" / "python"
    assert [path for pattern in ("*.so", "*.pyx", "*.pyi", "RECORD") for path in python.rglob(pattern)] == []
    assert not (python / "sqlalchemy" / "testing").exists()
    assert {"postgresql", "_typing.py", "__init__.py", "__pycache__", "type_migration_guidelines.txt"} >= {
        path.name for path in (python / "sqlalchemy" / "dialects").iterdir()
    }


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_is_small(built: Path, layer: str) -> None:
    """A layer weighs less than 12 MB zipped, bytecode and all: an environment fetches it before it starts."""
    assert zipped_mb(built / LAYERS[layer]) < 12


def test_bytecode_leaves_out_docstrings_and_nothing_else(built: Path) -> None:
    """
    Docstrings are a third of the bytecode and nobody reads them in Lambda; code and line numbers are the source's.
    """
    folder = built / "PlungepoolLayer" / "python" / "plungepool"
    (path,) = folder.glob(f"__pycache__/errors.{sys.implementation.cache_tag}.pyc")
    ours = marshal.loads(path.read_bytes()[16:])
    theirs = compile((folder / "errors.py").read_text(), "errors.py", "exec", dont_inherit=True)

    def parts(code: types.CodeType) -> dict[str, types.CodeType]:
        inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        return {code.co_qualname: code} | {name: part for one in inner for name, part in parts(one).items()}

    assert parts(ours).keys() == parts(theirs).keys()
    for name, part in parts(theirs).items():
        assert parts(ours)[name].co_firstlineno == part.co_firstlineno
    texts = {constant for part in parts(ours).values() for constant in part.co_consts if isinstance(constant, str)}
    assert not any("One error for everything that is wrong" in text for text in texts)
    assert any(
        "One error for everything that is wrong" in str(constant)
        for part in parts(theirs).values()
        for constant in part.co_consts
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_two_builds_are_identical(built: Path, build_layer: Callable, tmp_path: Path, layer: str) -> None:
    """Building again, by another Python that has no pip, gives the same bytes: no change, no new version."""
    build_layer(layer, LAYERS[layer], tmp_path / "again")
    assert contents(built / LAYERS[layer]) == contents(tmp_path / "again")


@pytest.mark.parametrize("layer", LAYERS)
def test_bill_of_materials_lists_what_is_inside(built: Path, layer: str) -> None:
    """Every project in the layer is in the CycloneDX file with its version, its licence and its wheel's pinned hash."""
    root = built / LAYERS[layer]
    bill = json.loads((root / "sbom" / f"{layer}.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    inside = {
        path.name.removesuffix(".dist-info").lower().replace("_", "-") for path in root.glob("python/*.dist-info")
    }
    parts = [*bill["components"], bill["metadata"]["component"]] if layer == "plungepool" else bill["components"]
    assert inside == {f"{part['name']}-{part['version']}" for part in parts}
    pinned = (ROOT / "layers" / layer / "requirements.txt").read_text()
    for part in bill["components"]:
        assert part["licenses"][0]["expression"]
        assert f"sha256:{part['hashes'][0]['content']}" in pinned


@pytest.mark.parametrize("layer", LAYERS)
def test_every_project_brings_its_licence(built: Path, layer: str) -> None:
    """The text of each project's licence is in the layer, ours included."""
    for information in built.glob(f"{LAYERS[layer]}/python/*.dist-info"):
        assert [*information.glob("LICEN*"), *information.glob("licenses/LICEN*")], information.name


def test_layers_share_no_module(built: Path) -> None:
    """No module comes from both layers in two versions: which would win depends on their order."""
    ours, theirs = (contents(built / logical_id / "python") for logical_id in LAYERS.values())
    assert {path: theirs[path] for path in ours.keys() & theirs.keys() if ours[path] != theirs[path]} == {}


def test_imports_from_a_read_only_layer_without_compiling(built: Path, pythons: dict[str, str]) -> None:
    """
    On Python 3.13 with nothing else on its path engine and doctor do their work, and all the bytecode was there
    already.
    """
    layer = built / "PlungepoolLayer" / "python"
    before = contents(layer)
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from plungepool import Settings, build_engine, checks
assert {check.state for check in checks.check_environment({"PLUNGEPOOL_HSOT": "db"})} == {"failed"}
engine = build_engine(Settings(host="localhost", user="app", password="none"))
assert engine.dialect.name == "postgresql", engine.dialect
files = [(module, getattr(module, "__file__", None) or "") for module in sys.modules.values()]
loaded = [module for module, file in files if file.startswith(sys.argv[1])]
assert len(loaded) > 50, loaded
"""
    command = [pythons["3.13"], "-I", "-S", "-c", program, str(layer)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert before == contents(layer)


def test_bytecode_for_every_python_found(built: Path, pythons: dict[str, str]) -> None:
    """Each module has unchecked bytecode for each runtime's Python that this machine has."""
    versions = {version.replace(".", "") for version in pythons} & {"312", "313", "314"}
    module = built / "PlungepoolLayer" / "python" / "plungepool" / "engine.py"
    compiled = list(module.parent.glob("__pycache__/engine.*.pyc"))
    assert {f"engine.cpython-{version}.pyc" for version in versions} == {path.name for path in compiled}
    # PEP 552: flag 1 says that the hash of the source is in the file, flag 2 that Python is to check it.
    assert {1} == {int.from_bytes(path.read_bytes()[4:8], "little") for path in compiled}


def test_function_artifacts_hold_what_they_read(built: Path) -> None:
    """prepare_database is built with its migrations and with roles.sql itself, not a link to it."""
    folder = built / "PrepareDatabaseFunction"
    assert not (folder / "roles.sql").is_symlink()
    assert (ROOT / "infrastructure" / "roles.sql").read_text() == (folder / "roles.sql").read_text()
    assert list((folder / "migrations").glob("*.sql"))


def test_functions_answer_from_the_built_artifacts(built: Path, postgres: Postgres) -> None:
    """prepare_database and handle_orders, as built and with the built layers, do their work on a real database."""
    variables = {
        "PLUNGEPOOL_HOST": postgres.host,
        "PLUNGEPOOL_PORT": str(postgres.port),
        "PLUNGEPOOL_PASSWORD": postgres.password,
        "PLUNGEPOOL_TLS": "disable",
        "POWERTOOLS_SERVICE_NAME": "test",
        "POWERTOOLS_METRICS_NAMESPACE": "test",
        "POWERTOOLS_TRACE_DISABLED": "1",
    }
    layers = [built / logical_id for logical_id in LAYERS.values()]

    def invoke(function: str, user: str, event: str) -> dict:
        with Environment(
            built / function, variables=variables | {"PLUNGEPOOL_USER": user}, layers=layers, timeout_s=30
        ) as environment:
            invocation = environment.invoke(json.loads((ROOT / "events" / f"{event}.json").read_text()))
        assert invocation.error is None, invocation
        return invocation.payload

    prepared = invoke("PrepareDatabaseFunction", "postgres", "prepare_database")
    assert prepared["role_name"] == "plungepool_app"
    answer = invoke("HandleOrdersFunction", "plungepool_app", "handle_orders")
    assert answer["statusCode"] == 200
    assert len(json.loads(answer["body"])["orders"]) == 5


def test_build_says_for_which_pythons_it_has_no_bytecode() -> None:
    """Whoever builds without one of the runtimes' Pythons learns what it costs, and what to do."""
    script = runpy.run_path(str(ROOT / "layers" / "plungepool" / "build_layer.py"))
    assert script["without_bytecode"]("plungepool", ["3.12", "3.13", "3.14"]) == []
    (line,) = script["without_bytecode"]("plungepool", ["3.12"])
    assert line.startswith("plungepool: no bytecode for Python 3.13, 3.14, which is not installed here")
    assert line.endswith("build where `python3.13` and `python3.14` can be run from PATH")
