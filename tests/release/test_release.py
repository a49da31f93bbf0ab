"""What `make release` builds: two packages that can be uploaded, the layer's zip, its bill of materials, checksums."""

from __future__ import annotations

import email
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parents[2]
RELEASE = runpy.run_path(str(ROOT / "release" / "release.py"))
TOOLS = ROOT / ".venv-release" / "bin"
NAMES = ("plungepool", "plungepool_toolkit")
TIME = "1700000000"
pytestmark = pytest.mark.timeout(600)


def tree(target: Path) -> Path:
    """Lay out the working tree, as `make release` does the commit: with what is not committed yet."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            shutil.copy2(ROOT / name, path, follow_symlinks=False)
    return target


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository, elsewhere."""
    return tree(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what was built of it."""
    target, scratch = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("scratch")
    RELEASE["build_packages"](source, target, TIME)
    RELEASE["build_layer"](source, target, scratch)
    (target / "SHA256SUMS").write_text(RELEASE["sums"](target))
    return target


def metadata(built: Path, name: str) -> Message:
    """Return what a wheel says of itself."""
    (wheel,) = built.glob(f"{name}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [path for path in archive.namelist() if path.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(path))


def test_version_is_the_same_wherever_it_stands() -> None:
    """One file says it, and each that repeats it says the same."""
    found = RELEASE["versions"]()
    assert set(found) == set(RELEASE["VERSION_IN"])
    assert all(found.values())
    assert {one for several in found.values() for one in several} == {RELEASE["version"]()}
    assert RELEASE["FORM"].fullmatch(RELEASE["version"]())


def test_version_is_written_wherever_it_stands(tmp_path: Path) -> None:
    """And nothing else is changed; what is no version is refused."""
    for name in RELEASE["VERSION_IN"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    RELEASE["write_version"]("12.34.56", tmp_path)
    assert {one for several in RELEASE["versions"](tmp_path).values() for one in several} == {"12.34.56"}
    RELEASE["write_version"](RELEASE["version"](), tmp_path)
    for name in RELEASE["VERSION_IN"]:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()
    with pytest.raises(SystemExit, match="no version"):
        RELEASE["write_version"]("1.0", tmp_path)


@pytest.mark.parametrize("folder", RELEASE["PACKAGES"])
def test_licence_of_a_package_is_the_repositorys(folder: str) -> None:
    """A file of its own, since a link would lead out of the source distribution."""
    assert not (ROOT / folder / "LICENSE").is_symlink()
    assert (ROOT / folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_packages_pass_the_check_before_an_upload(built: Path) -> None:
    """`twine check --strict`: the readme is rendered as PyPI renders it, without a warning."""
    files = [path for path in built.iterdir() if path.suffix in (".whl", ".gz")]
    assert len(files) == 4
    done = subprocess.run([TOOLS / "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_wheel_says_what_a_page_on_pypi_shows(built: Path, name: str) -> None:
    """Readme, addresses, words to be found by, authors, Pythons, licence."""
    said = metadata(built, name)
    classifiers = said.get_all("Classifier", [])
    assert said["Version"] == RELEASE["version"]()
    assert (said["License-Expression"], said["License-File"]) == ("Apache-2.0", "LICENSE")
    assert said["Description-Content-Type"] == "text/markdown"
    assert said.get_payload().startswith(f"# {name.replace('_', '-')}\n")
    assert said["Author"]
    assert len(said["Keywords"].split(",")) >= 5
    assert {one.partition(",")[0] for one in said.get_all("Project-URL", [])} >= {
        "Documentation",
        "Changelog",
        "Source",
    }
    pythons = {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)}
    assert pythons | {"Typing :: Typed"} <= set(classifiers)
    assert ("Framework :: Pytest" in classifiers) == (name == "plungepool_toolkit")


@pytest.mark.parametrize("name", NAMES)
def test_source_distribution_holds_all_that_its_wheel_is_made_of(built: Path, name: str, tmp_path: Path) -> None:
    """Unpacked elsewhere, with nothing beside it, it gives the same wheel, byte for byte; it holds no link."""
    (archive,) = built.glob(f"{name}-*.tar.gz")
    (wheel,) = built.glob(f"{name}-*.whl")
    with tarfile.open(archive) as files:
        assert [member.name for member in files if not member.isfile()] == []
        assert f"{archive.name.removesuffix('.tar.gz')}/LICENSE" in files.getnames()
        files.extractall(tmp_path, filter="data")
    folder = tmp_path / archive.name.removesuffix(".tar.gz")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=folder,
        check=True,
        capture_output=True,
        env={"SOURCE_DATE_EPOCH": TIME, "PATH": "/usr/bin:/bin"},
    )
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_second_build_gives_the_same_bytes(built: Path, source: Path, tmp_path: Path) -> None:
    """Also from a folder of another name with files of other times and permissions. Layers: tests/infrastructure."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(source, elsewhere, symlinks=True, copy_function=shutil.copyfile)
    target = tmp_path / "again"
    target.mkdir()
    RELEASE["build_packages"](elsewhere, target, TIME)
    with zipfile.ZipFile(next(built.glob("*.zip"))) as archive:
        archive.extractall(tmp_path / "layer")
    RELEASE["write_zip"](tmp_path / "layer", target / next(built.glob("*.zip")).name)
    for path in target.iterdir():
        assert path.read_bytes() == (built / path.name).read_bytes(), path.name
    assert len(list(target.iterdir())) == 5


def test_layers_zip_is_what_lambda_takes(built: Path) -> None:
    """It unpacks to /opt/python with this version of the package, and to the bill of materials that lies beside it."""
    (path,) = built.glob("*.zip")
    version = RELEASE["version"]()
    assert path.name == f"plungepool-layer-{version}.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert {name.partition("/")[0] for name in names} == {"python", "sbom"}
        assert f"python/plungepool-{version}.dist-info/METADATA" in names
        bill = archive.read("sbom/plungepool.cdx.json")
    assert bill == (built / f"plungepool-layer-{version}.cdx.json").read_bytes()


def test_bill_of_materials_is_valid(built: Path) -> None:
    """By CycloneDX's own schema, strictly: no word in it that the schema does not know."""
    program = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(None if error is None else str(error.data))
"""
    (path,) = built.glob("*.cdx.json")

    def validate(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([TOOLS / "python", "-c", program, path], capture_output=True, text=True)

    assert validate(path).stderr == ""
    assert validate(path).returncode == 0
    wrong = path.with_suffix(".wrong")
    wrong.write_text(path.read_text().replace('"purl"', '"pearl"'))
    assert validate(wrong).returncode == 1
    wrong.unlink()


def test_checksums_are_of_all_files(built: Path) -> None:
    """`sha256sum --check` reads them."""
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=built, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6


def test_wheels_alone_do_their_work_elsewhere(built: Path, tmp_path: Path, capfd: Any) -> None:
    """In a new environment outside the repository: command, engine, authorities, dialect, the pytest plugin."""
    RELEASE["run_smoke_test"](sorted(built.glob("*.whl")), tmp_path)
    assert "passed" in capfd.readouterr().out
