"""
`sam init` with this repository's template, by the real SAM CLI: the project validates, builds, and passes its own tests
at once.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from plungepool_toolkit.environment import Environment
from plungepool_toolkit.fixtures import Database

ROOT = Path(__file__).parents[2]
SAM = ROOT / ".venv-sam" / "bin"
UV = ROOT / ".venv-uv" / "bin" / "uv"
Result = subprocess.CompletedProcess[str]
# A role that SQL takes only where it is quoted.
USER = "order"


def run(*command: str | Path, cwd: Path, variables: dict[str, str] | None = None) -> Result:
    """Run a program without AWS and without what this test run has in its environment of Python's."""
    dropped = ("AWS_", "SAM_", "PYTHON", "PYTEST_", "VIRTUAL_ENV", "UV_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment |= {"AWS_DEFAULT_REGION": "eu-west-1", "SAM_CLI_TELEMETRY": "0", **(variables or {})}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


def succeed(result: Result) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def init(location: str | Path, folder: Path, variables: dict[str, str], **context: str) -> Result:
    """Run `sam init` for a location, in a folder, with the answers to its questions."""
    command = [SAM / "sam", "init", "--no-input", "--location", location, "--extra-context", json.dumps(context)]
    return run(*command, cwd=folder, variables={**variables, "GIT_CONFIG_NOSYSTEM": "1"})


@pytest.fixture(scope="module")
def python() -> Path:
    """A Python 3.13 that is no version manager's shim, as `sam build` wants it first on PATH."""
    found = dict(line.split(" ", 1) for line in succeed(run("toolkit/set-up", "pythons", cwd=ROOT)).splitlines())
    if not (SAM / "sam").exists():
        succeed(run("toolkit/set-up", "venv", ".venv-sam", "requirements/sam.txt", cwd=ROOT))
    return Path(found["3.13"])


@pytest.fixture(scope="module")
def initialise(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run `sam init` in a folder of its own: initialise(location, name) returns the project's folder."""

    def sam_init(location: str | Path, name: str = "plungepool-app") -> Path:
        folder = tmp_path_factory.mktemp("init")
        home = tmp_path_factory.mktemp("home")  # where a template that comes from Git is cloned to
        succeed(init(location, folder, {"HOME": str(home)}, project_name=name, database_user=USER))
        return folder / name

    return sam_init


@pytest.fixture(scope="module")
def project(initialise: Callable[..., Path], python: Path) -> Path:
    """A project made from the template in this folder."""
    return initialise(ROOT / "templates")


@pytest.fixture(scope="module")
def outcomes(project: Path, python: Path) -> Iterator[dict[str, Future[Result]]]:
    """What a new user does first, side by side: validate, build, and run the project's tests in a fresh environment."""
    path = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}

    def test() -> Result:
        succeed(run(UV, "venv", "--quiet", "--python", python, ".venv", cwd=project))
        succeed(
            run(
                UV,
                "pip",
                "install",
                "--quiet",
                "--python",
                ".venv/bin/python",
                "-r",
                "requirements-dev.txt",
                cwd=project,
            )
        )
        return run(".venv/bin/python", "-m", "pytest", "-p", "no:cacheprovider", cwd=project)

    with ThreadPoolExecutor() as pool:
        yield {
            "validate": pool.submit(run, SAM / "sam", "validate", "--lint", cwd=project, variables=path),
            "build": pool.submit(run, SAM / "sam", "build", cwd=project, variables=path),
            "test": pool.submit(test),
        }


def test_project_is_whole(project: Path) -> None:
    """
    The project has the layer, the toolkit, a function, its event and its tests; no link and nothing unrendered is left.
    """
    for path in (
        "layers/plungepool/plungepool/certificates/amazon-roots.pem",
        "layers/plungepool/build_layer.py",
        "toolkit/plungepool_toolkit/fixtures.py",
        "toolkit/pyproject.toml",
        "functions/count_visits/app.py",
        "events/count_visits.json",
    ):
        assert (project / path).is_file(), path
    everything = list(project.rglob("*"))
    assert [path for path in everything if path.is_symlink()] == []
    assert [
        path for path in everything if path.suffix != ".pyc" and path.is_file() and b"cookiecutter" in path.read_bytes()
    ] == []


def test_project_names_no_folder_of_this_machine(project: Path) -> None:
    """A team commits the project: nothing in it knows where the template lay."""
    files = [path for path in project.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".pem")]
    assert [path for path in files if str(ROOT).encode() in path.read_bytes()] == []


def test_passes_sam_validate_lint(outcomes: dict[str, Future[Result]]) -> None:
    """`sam validate --lint` finds nothing in the project's template."""
    succeed(outcomes["validate"].result())


def test_every_key_of_samconfig_is_known(project: Path) -> None:
    """Each section and key of the project's samconfig.toml is a command and an option of the SAM CLI."""
    check = ROOT / "tests" / "infrastructure" / "check_samconfig.py"
    assert succeed(run(SAM / "python", check, project / "samconfig.toml", cwd=project)) == ""


def test_passes_its_own_tests(outcomes: dict[str, Future[Result]]) -> None:
    """The project's tests pass in an environment that holds what its requirements-dev.txt names, and nothing else."""
    assert "5 passed" in succeed(outcomes["test"].result())


def test_built_function_answers_from_the_built_layer(
    outcomes: dict[str, Future[Result]], project: Path, python: Path, database: Database, tmp_path: Path
) -> None:
    """
    What `sam build` makes answers under the runtime client in a Python that has nothing else, over one connection.
    """
    succeed(outcomes["build"].result())
    bare = tmp_path / "bare"
    succeed(run(UV, "venv", "--quiet", "--python", python, bare, cwd=ROOT))
    wanted = ["awslambdaric", "snapshot-restore-py", "--constraint", "requirements/dev.txt"]
    succeed(run(UV, "pip", "install", "--quiet", "--python", bare / "bin" / "python", *wanted, cwd=ROOT))
    database.execute((project / "database" / "schema.sql").read_text())
    event = json.loads((project / "events" / "count_visits.json").read_text())
    built = project / ".aws-sam" / "build"
    with Environment(
        built / "CountVisitsFunction",
        layers=[built / "PlungepoolLayer"],
        variables=database.variables(USER),
        python=bare / "bin" / "python",
    ) as environment:
        answers = [environment.invoke(event) for _ in range(3)]
        assert [answer.error for answer in answers] == [None] * 3
        assert [json.loads(answer.payload["body"])["visits"] for answer in answers] == [1, 2, 3]
        assert database.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", USER) == [[1]]


def test_starts_from_the_repositorys_address(initialise: Callable[..., Path], python: Path, tmp_path: Path) -> None:
    """From Git, `--location` is the address of the whole repository, and the name is the user's."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("LICENSE", "cookiecutter.json", "templates", "layers", "toolkit"):
        succeed(run("cp", "-R", ROOT / name, tree, cwd=tmp_path))
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    succeed(run("git", "init", "--quiet", cwd=tree))
    succeed(run("git", "add", "--all", cwd=tree))
    succeed(run("git", *identity, "commit", "--quiet", "--message", "all of it", cwd=tree))
    started = initialise(f"git+file://{tree}", "orders")
    assert 'stack_name = "orders"' in (started / "samconfig.toml").read_text()
    assert (started / "layers" / "plungepool" / "Makefile").is_file()


def test_names_that_would_not_work_are_refused(python: Path, tmp_path: Path) -> None:
    """`sam init` refuses a name that no stack or no role can have, says what would do, and leaves no folder."""
    result = init(ROOT, tmp_path, {"HOME": str(tmp_path)}, project_name="My Orders!", database_user="orders-app")
    assert result.returncode != 0
    assert "project_name 'My Orders!'" in result.stderr
    assert "'my-orders'" in result.stderr
    assert "database_user 'orders-app'" in result.stderr
    assert "'orders_app'" in result.stderr
    assert [path for path in tmp_path.iterdir() if "rders" in path.name] == []


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("project_name", "orders", True),
        ("project_name", "true", True),  # not a boolean of YAML
        ("project_name", "O-2", True),
        ("project_name", "o" * 53, True),
        ("project_name", "o" * 54, False),
        ("project_name", "2-orders", False),
        ("project_name", "my_orders", False),
        ("project_name", "../orders", False),
        ("project_name", "", False),
        ("project_name", "orders\n", False),
        ("project_name", '"; import os #', False),
        ("project_name", "café", False),
        ("database_user", "user", True),
        ("database_user", "_2", True),
        ("database_user", "a" * 63, True),
        ("database_user", "a" * 64, False),
        ("database_user", "Orders", False),
        ("database_user", "app'; DROP", False),
        ("database_user", "pg_app", False),
        ("database_user", "public", False),
        ("database_user", "postgres", False),
        ("database_user", "rds_replication", False),
        ("database_user", "app\n", False),
    ],
)
def test_only_names_that_work_are_taken(name: str, value: str, fits: bool) -> None:
    """The hook takes what a stack and a role can be called, and names what it refuses."""
    script = (ROOT / "templates" / "hooks" / "pre_gen_project.py").read_text()
    for key, given in ({"project_name": "orders", "database_user": "app"} | {name: value}).items():
        script = script.replace(f"{{{{cookiecutter.{key} | tojson}}}}", json.dumps(given))
    result = run(sys.executable, "-c", script, cwd=ROOT)
    assert (result.returncode == 0, name in result.stderr) == (fits, not fits)
