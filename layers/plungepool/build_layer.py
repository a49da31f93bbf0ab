"""
Build a Lambda layer from pinned, hashed requirements: python build_layer.py ARTIFACTS_DIR NAME

The Makefile beside this file calls it for `sam build`, with the current folder as the layer's source. It needs a
Python from 3.11 on, with pip or venv, and nothing else. What it writes is the same, byte for byte, each time that
it is built by the same Pythons:

    python/            pure-Python wheels (any architecture, any Python), stripped of what Lambda never loads;
                       the package that this folder holds, if it has a pyproject.toml; bytecode
    sbom/NAME.cdx.json what is inside, with versions, licences and hashes (CycloneDX 1.6)

Bytecode is compiled for every Python of COMPILE_FOR that runs on this machine, side by side. It is never checked
against its source (`unchecked-hash`): SAM zips files with times of 1980, so checked bytecode would always be stale,
and the layer is read-only, so Lambda would compile everything again at each cold start.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

COMPILE_FOR = ("3.13", "3.12", "3.14")

# Never loaded in Lambda: test suites, other databases' dialects, type checkers' plug-ins, installers' records.
UNUSED = (
    "bin",
    "sqlalchemy/connectors/aioodbc.py",
    "sqlalchemy/connectors/pyodbc.py",
    "sqlalchemy/dialects/mssql",
    "sqlalchemy/dialects/mysql",
    "sqlalchemy/dialects/oracle",
    "sqlalchemy/dialects/sqlite",
    "sqlalchemy/ext/mypy",
    "sqlalchemy/testing",
    "**/__pycache__",
    "**/*.pxd",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.so",
    "*.dist-info/INSTALLER",
    "*.dist-info/RECORD",
    "*.dist-info/REQUESTED",
    "*.dist-info/direct_url.json",
    "*.dist-info/top_level.txt",
    "*.dist-info/zip-safe",
)

# Wheels that say their licence in words only, in the terms of the SPDX list.
LICENCES = {
    "BSD 3-Clause License": "BSD-3-Clause",
    "Dual License": "Apache-2.0 OR BSD-3-Clause",
    "MIT": "MIT",
    "MIT No Attribution": "MIT-0",
    "Apache License 2.0": "Apache-2.0",
    "BSD": "BSD-3-Clause",
}


def say(text: str) -> None:
    print(f"build_layer: {text}", file=sys.stderr)


def run(command: list[str], **variables: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, **variables})


def interpreters() -> dict[str, str]:
    """
    Every Python of COMPILE_FOR here, by version; each is asked, since version managers leave shims that do not run.
    """
    found = {}
    home = Path.home()
    for version in COMPILE_FOR:
        name = f"python{version}"
        candidates = [Path(folder) / name for folder in os.get_exec_path()]
        candidates += sorted(home.glob(f".pyenv/versions/{version}*/bin/{name}"), reverse=True)
        candidates += sorted(home.glob(f".local/share/uv/python/*-{version}.*/bin/{name}"), reverse=True)
        for candidate in candidates:
            if os.access(candidate, os.X_OK) and (executable := runs_as(candidate, version)):
                found[version] = executable
                break
    return found


def runs_as(candidate: Path, version: str) -> str | None:
    question = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    try:
        answer = subprocess.run(
            [str(candidate), "-c", question], check=False, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode or not answer.stdout.startswith(version + " "):
        return None
    return answer.stdout.strip().partition(" ")[2]


def with_pip(scratch: Path) -> str:
    """A Python that has pip: the one that runs this, another one found here, or a virtual environment made for it."""
    for python in (sys.executable, *interpreters().values()):
        if subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0:
            return python
    environment = scratch / "venv"
    if subprocess.run([sys.executable, "-m", "venv", str(environment)], check=False, capture_output=True).returncode:
        sys.exit(
            "build_layer: no Python here has pip or venv; install one of them, or build with `sam build "
            "--use-container`"
        )
    return str(environment / "bin" / "python")


def install(target: Path, scratch: Path) -> dict[str, str]:
    """Install the requirements into `target`; return each wheel's SHA-256 by project name."""
    report = scratch / "report.json"
    run(
        [
            with_pip(scratch), "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--require-hashes",
            "--only-binary", ":all:", "--platform", "any", "--python-version", COMPILE_FOR[0],
            "--target", str(target), "--report", str(report), "--requirement", "requirements.txt",
        ],
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_ROOT_USER_ACTION="ignore",
        PIP_REQUIRE_VIRTUALENV="0",
        PIP_USER="0",
    )  # fmt: skip
    return {
        canonical(item["metadata"]["name"]): item["download_info"]["archive_info"]["hashes"]["sha256"]
        for item in json.loads(report.read_text())["install"]
    }


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def strip(target: Path) -> None:
    for pattern in UNUSED:
        for path in sorted(target.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def own_version(name: str) -> str:
    """The version of this folder's package, which stands there and nowhere else."""
    line = re.search(r'^__version__ = "(.+)"$', Path(name, "__init__.py").read_text(), re.MULTILINE)
    if line is None:
        sys.exit(f"build_layer: {name}/__init__.py has no __version__")
    return line[1]


def add_own_package(target: Path) -> None:
    """Copy the package of this folder, with the metadata that importlib.metadata and SQLAlchemy's entry points read."""
    pyproject = Path("pyproject.toml")
    if not pyproject.exists():
        return
    project = tomllib.loads(pyproject.read_text())["project"]
    name = project["name"]
    version = own_version(name)
    shutil.copytree(name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    information = target / f"{name}-{version}.dist-info"
    (information / "licenses").mkdir(parents=True)
    shutil.copyfile("LICENSE", information / "licenses" / "LICENSE")
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {name}",
        f"Version: {version}",
        f"Summary: {project['description']}",
        f"License-Expression: {project['license']}",
        "License-File: LICENSE",
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {requirement}" for requirement in project.get("dependencies", [])),
    ]
    (information / "METADATA").write_text("\n".join(lines) + "\n")
    groups = project.get("entry-points", {})
    text = "\n".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in sorted(groups[group].items()))
        for group in sorted(groups)
    )
    if text:
        (information / "entry_points.txt").write_text(text)


# Run by each Python in turn; its arguments: the folder, and where it will lie in Lambda. As compileall, but docstrings
# are left out: nobody reads them in Lambda, and they are a third of the bytecode. Statements, assertions and line
# numbers are those of the source.
COMPILE = """
import ast, importlib.util, marshal, sys
from pathlib import Path

folder, place = Path(sys.argv[1]), sys.argv[2]
for path in sorted(folder.rglob("*.py")):
    source = path.read_bytes()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, False) is not None:
            text = node.body.pop(0)
            if not node.body and not isinstance(node, ast.Module):
                node.body.append(ast.copy_location(ast.Pass(), text))
    code = compile(tree, f"{place}/{path.relative_to(folder).as_posix()}", "exec", dont_inherit=True, optimize=0)
    flags = (1).to_bytes(4, "little")  # by the hash of the source, which is never checked
    target = Path(importlib.util.cache_from_source(str(path), optimization=""))
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(importlib.util.MAGIC_NUMBER + flags + importlib.util.source_hash(source) + marshal.dumps(code))
"""


def compile_bytecode(target: Path) -> list[str]:
    """Compile for every Python found, as files of /opt/python; the hash seed is fixed so that sets keep their order."""
    pythons = interpreters()
    compilers = {
        version: subprocess.Popen(
            [python, "-W", "ignore", "-c", COMPILE, str(target), "/opt/python"],
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        for version, python in pythons.items()
    }
    failed = [version for version, compiler in compilers.items() if compiler.wait()]
    if failed:
        sys.exit(f"build_layer: compiling failed for Python {', '.join(failed)}")
    return sorted(compilers)


def without_bytecode(name: str, compiled: list[str]) -> list[str]:
    """What to say of the Pythons of COMPILE_FOR that are not here: nothing, or one line."""
    missing = sorted(set(COMPILE_FOR) - set(compiled))
    if not missing:
        return []
    return [
        f"{name}: no bytecode for Python {', '.join(missing)}, which is not installed here: functions on it work, but "
        "compile the layer at each cold start, which is several times slower. To include it, build where `python"
        + "` and `python".join(missing)
        + "` can be run from PATH"
    ]


def metadata(target: Path) -> list[tuple[Path, Message]]:
    return [
        (path.parent, HeaderParser().parsestr(path.read_text())) for path in sorted(target.glob("*.dist-info/METADATA"))
    ]


def bill_of_materials(name: str, target: Path, hashes: dict[str, str]) -> dict[str, object]:
    components = []
    for folder, fields in metadata(target):
        if not list(folder.glob("LICEN*")) + list(folder.glob("licenses/*")):
            sys.exit(f"build_layer: {fields['Name']} has no licence text")
        project = canonical(fields["Name"])
        said = fields["License-Expression"] or fields["License"] or ""
        licence = fields["License-Expression"] or LICENCES.get(said)
        if licence is None:
            sys.exit(f"build_layer: which licence is {said!r} of {project}? Add it to LICENCES in {__file__}")
        purl = f"pkg:pypi/{project}@{fields['Version']}"
        component = {
            "type": "library",
            "bom-ref": purl,
            "name": project,
            "version": fields["Version"],
            "licenses": [{"expression": licence}],
            "purl": purl,
        }
        if project in hashes:
            component["hashes"] = [{"alg": "SHA-256", "content": hashes[project]}]
        components.append(component)
    own = next((part for part in components if part["name"] == name), None)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own or {"type": "application", "bom-ref": name, "name": name}},
        "components": [part for part in components if part is not own],
    }


def settle(root: Path) -> None:
    """Give files and folders the same permissions and times everywhere."""
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (315532800, 315532800))


def main() -> None:
    artifacts, name = Path(sys.argv[1]), sys.argv[2]
    target = artifacts / "python"
    with tempfile.TemporaryDirectory() as scratch:
        hashes = install(target, Path(scratch))
    strip(target)
    add_own_package(target)
    bill = artifacts / "sbom" / f"{name}.cdx.json"
    bill.parent.mkdir(parents=True)
    bill.write_text(json.dumps(bill_of_materials(name, target, hashes), indent=1, sort_keys=True) + "\n")
    compiled = compile_bytecode(target)
    settle(artifacts)
    say(f"{name}: {len(metadata(target))} projects, bytecode for Python {', '.join(compiled) or 'none'}")
    for line in without_bytecode(name, compiled):
        say(line)


if __name__ == "__main__":
    main()
