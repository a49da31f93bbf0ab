"""
Build what a release consists of, in dist/, and try it out: python release/release.py [VERSION]

    plungepool-VERSION*, plungepool_toolkit-VERSION*    a wheel and a source distribution each, for PyPI
    plungepool-layer-VERSION.zip                        the layer, as `aws lambda publish-layer-version` takes it
    plungepool-layer-VERSION.cdx.json                   what is in it (CycloneDX), also inside
    SHA256SUMS

All is built twice from the last commit alone, and must come out the same, byte for byte; then the wheels are installed
into a new environment outside this folder, where release/smoke is run. With VERSION, writes that into each file that
holds it, and does nothing else. `make release` calls this file, in the environment that `make setup` makes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("layers/plungepool", "toolkit")
# The first is the place where it stands; what else holds it is a copy, which a test compares.
VERSION_IN = {
    "layers/plungepool/plungepool/__init__.py": r'^__version__ = "(.+)"$',
    "toolkit/pyproject.toml": r'"plungepool==(.+?)"',
    "template.yaml": r"^    SemanticVersion: (.+)$|Description: Plungepool (\d\S*) with",
    "layers/plungepool/template.yaml": r"^    SemanticVersion: (.+)$|Description: Plungepool (\d\S*) with",
    "templates/{{cookiecutter.project_name}}/template.yaml": r"Description: Plungepool (\d\S*) with",
    "infrastructure/cdk/pyproject.toml": r'^version = "(.+)"$',
    "docs/attach.md": r"^ +SemanticVersion: (.+)$",
}
# Semantic versions that PEP 440 spells alike: the Serverless Application Repository takes the first, PyPI the second.
FORM = re.compile(r"\d+\.\d+\.\d+")


def say(text: str) -> None:
    print(f"release: {text}", flush=True)


def versions(root: Path = ROOT) -> dict[str, list[str]]:
    """Each file that holds the version, and what it says, once for each place."""
    found = {}
    for name, pattern in VERSION_IN.items():
        matches = re.finditer(pattern, (root / name).read_text(), re.MULTILINE)
        found[name] = [next(filter(None, match.groups())) for match in matches]
    return found


def version(root: Path = ROOT) -> str:
    return versions(root)[next(iter(VERSION_IN))][0]


def write_version(new: str, root: Path = ROOT) -> None:
    """Write a version into each file that holds it; nothing, where it is none."""
    if not FORM.fullmatch(new):
        raise SystemExit(f"release: {new!r} is no version: three numbers, such as 1.0.0")
    for name, pattern in VERSION_IN.items():
        path = root / name

        def put(match: re.Match[str]) -> str:
            return match[0].replace(next(filter(None, match.groups())), new)

        path.write_text(re.sub(pattern, put, path.read_text(), flags=re.MULTILINE))


def export_commit(target: Path) -> None:
    """Lay out the last commit in a folder: what nobody has committed is in no release."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    target.mkdir()
    subprocess.run(["tar", "--extract", "--directory", target], input=archive, check=True)


def commit_time() -> str:
    """When it was made, in seconds since 1970: the time of all that is in the packages."""
    shown = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True, text=True)
    return shown.stdout.strip()


def build_packages(source: Path, target: Path, time: str) -> None:
    """A wheel and a source distribution of each package, by the pinned hatchling of this environment."""
    for folder in PACKAGES:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "--directory", target],
            cwd=source / folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "SOURCE_DATE_EPOCH": time},
        )


def build_layer(source: Path, target: Path, scratch: Path) -> str:
    """The layer as a zip, and its bill of materials beside it; returns what its build said."""
    artifacts = scratch / "layer"
    artifacts.mkdir()
    built = subprocess.run(
        [sys.executable, "build_layer.py", artifacts, "plungepool"],
        cwd=source / "layers" / "plungepool",
        check=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    name = f"plungepool-layer-{version(source)}"
    write_zip(artifacts, target / f"{name}.zip")
    shutil.copyfile(artifacts / "sbom" / "plungepool.cdx.json", target / f"{name}.cdx.json")
    return built.stderr


def write_zip(folder: Path, target: Path) -> None:
    """Write the files of a folder, in the order of their names, all with the same times and permissions."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, path.read_bytes())


def sums(folder: Path) -> str:
    """The files of a folder as `sha256sum --check` reads them."""
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def build(target: Path) -> str:
    """Build all of it from the last commit into a folder; returns what the layer's build said."""
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        export_commit(source)
        build_packages(source, target, commit_time())
        said = build_layer(source, target, Path(scratch))
    (target / "SHA256SUMS").write_text(sums(target))
    return said


def run_smoke_test(wheels: list[Path], scratch: Path) -> None:
    """Install the wheels into a new environment outside this folder, and have release/smoke use them there."""
    environment, place = scratch / "environment", scratch / "smoke"
    shutil.copytree(ROOT / "release" / "smoke", place)
    uv = [ROOT / ".venv-uv" / "bin" / "uv"]
    python = environment / "bin" / "python"
    subprocess.run([*uv, "venv", "--quiet", "--no-project", "--python", sys.executable, environment], check=True)
    subprocess.run(
        # The versions, and their hashes, that the tests run with; the wheels alone are new.
        [*uv, "pip", "install", "--quiet", "--python", python, "--constraint", ROOT / "requirements/dev.txt", *wheels],
        check=True,
        cwd=scratch,
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    expected = {"RELEASE_VERSION": wheels[0].name.split("-")[1], "RELEASE_ENVIRONMENT": str(environment)}
    subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "."],
        cwd=place,
        check=True,
        env={**clean, **expected, "PATH": f"{environment}/bin{os.pathsep}{clean['PATH']}"},
    )


def main() -> None:
    if sys.argv[1:]:
        return write_version(sys.argv[1])
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, check=True, capture_output=True, text=True)
    if changed.stdout:
        say("what is not committed is not in it:\n" + changed.stdout.rstrip())
    target = ROOT / "dist"
    with tempfile.TemporaryDirectory(prefix="plungepool-release-") as scratch:
        first, second = Path(scratch, "first"), Path(scratch, "second")
        said = build(first)
        print(said, end="")
        if "no bytecode" in said:
            raise SystemExit("release: a layer without bytecode for each of Lambda's Pythons is not released")
        build(second)
        if (first / "SHA256SUMS").read_text() != (second / "SHA256SUMS").read_text():
            raise SystemExit(
                "release: two builds differ:\n"
                + (first / "SHA256SUMS").read_text()
                + (second / "SHA256SUMS").read_text()
            )
        say("built twice, the same byte for byte; now the wheels in an environment of their own")
        run_smoke_test(sorted(first.glob("*.whl")), Path(scratch))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(first, target)
    print((target / "SHA256SUMS").read_text(), end="")
    say(f"{version()} is in {target.relative_to(ROOT)}/")
    return None


if __name__ == "__main__":
    main()
