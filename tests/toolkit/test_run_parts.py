"""`make test` runs the tests in parts: none is left out, no failure goes unnoticed, and each says how far it is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from elsewhere import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
WAITING = """
import pathlib, time
def test_a(): pass
def test_b():
    pathlib.Path(__file__).with_suffix(".waits").touch()
    while not pathlib.Path(__file__).with_suffix(".goes").exists(): time.sleep(0.01)
"""


def part(folder: Path, name: str, tests: str) -> list[str]:
    """Return the arguments for a part with one file of tests."""
    (folder / f"test_{name}.py").write_text(tests)
    return ["--part", name, sys.executable, f"{folder / f'test_{name}.py'}"]


def start(folder: Path, *parts: Sequence[str], at_once: int = 2, **options: str) -> subprocess.Popen[str]:
    """Start the parts."""
    command = [sys.executable, ROOT / "tests" / "run_parts.py", "--at-once", str(at_once), "--logs", folder / "logs"]
    command += [argument for name, value in options.items() for argument in (f"--{name.replace('_', '-')}", value)]
    command += [argument for each in parts for argument in each]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_what_fails_is_shown_and_the_rest_runs_all_the_same(tmp_path: Path) -> None:
    """One that passes, one that fails, one that cannot be collected and one that kills its process: three are red."""
    with start(
        tmp_path,
        part(tmp_path, "broken", "import nothing_of_this_name"),
        part(tmp_path, "killed", "def test_a():\n    import os\n    os.kill(os.getpid(), 9)"),
        part(tmp_path, "red", "def test_a():\n    assert 'the reason' == ''\ndef test_b(): pass"),
        part(tmp_path, "green", "def test_a(): pass"),
    ) as run:
        said = run.communicate(timeout=120)[0]
    assert run.returncode == 1
    assert "No module named 'nothing_of_this_name'" in said
    assert "killed FAILED: it did not come to an end" in said
    assert "AssertionError: assert 'the reason' == ''" in said
    assert "red FAILED: 1 failed, 1 passed" in said
    assert "green: 1 passed" in said
    assert "FAILED: broken, killed, red" in said.splitlines()[-1]


def test_each_part_says_how_far_it_is(tmp_path: Path) -> None:
    """As often as is asked for: tests that have ended, how many there are, since when; and what is still to come."""
    half_way = r"\] one 1 of 2 in 0:\d\d, two 1 of 2 in 0:\d\d; then three$"
    with start(
        tmp_path,
        part(tmp_path, "one", WAITING),
        part(tmp_path, "two", WAITING),
        part(tmp_path, "three", "def test_a(): pass"),
        report_every_s="0.3",
    ) as run:
        assert run.stdout is not None
        while not re.search(half_way, line := run.stdout.readline()):
            assert line
        for name in ("one", "two"):
            (tmp_path / f"test_{name}.goes").touch()
        said = run.communicate(timeout=120)[0]
    assert run.returncode == 0
    assert "three: 1 passed" in said
    assert said.splitlines()[-1].endswith("minutes of parts; all passed")


def test_one_whose_first_test_takes_long_says_how_many_it_has(tmp_path: Path) -> None:
    """It has not ended one, and is not collecting them any more."""
    first = WAITING.replace("def test_a(): pass", "")
    with start(tmp_path, part(tmp_path, "one", first), report_every_s="0.1") as run:
        assert run.stdout is not None
        while "one 0 of 1 in" not in (said := run.stdout.readline()):
            assert said
        (tmp_path / "test_one.goes").touch()
        run.communicate(timeout=120)
    assert run.returncode == 0


def test_beside_a_calm_part_runs_one_other(tmp_path: Path) -> None:
    """Of three that may run at a time the third waits, until the calm one has ended."""
    with start(
        tmp_path,
        part(tmp_path, "calm", WAITING),
        part(tmp_path, "one", WAITING),
        part(tmp_path, "two", WAITING),
        at_once=3,
        calm="calm",
        report_every_s="0.1",
    ) as run:
        wait_until(lambda: (tmp_path / "test_calm.waits").exists() and (tmp_path / "test_one.waits").exists())
        assert run.stdout is not None
        for _ in range(5):
            assert run.stdout.readline().rstrip().endswith("; then two")
        (tmp_path / "test_calm.goes").touch()
        wait_until((tmp_path / "test_two.waits").exists)  # while "one" still runs
        for name in ("one", "two"):
            (tmp_path / f"test_{name}.goes").touch()
        run.communicate(timeout=120)
    assert run.returncode == 0


def test_an_end_that_is_asked_for_ends_what_runs(tmp_path: Path) -> None:
    """SIGTERM: each pytest tidies up as after Ctrl-C and is gone before the whole is."""
    tidy = WAITING.replace("    while", "    import os; print(os.getpid(), flush=True)\n    while")
    fixture = (
        "import pytest, pathlib, os\n"
        "@pytest.fixture(autouse=True)\ndef tidy():\n    yield\n"
        "    pathlib.Path(__file__).with_suffix('.tidy').write_text(str(os.getpid()))\n"
    )
    with start(tmp_path, part(tmp_path, "one", fixture + tidy)) as run:
        wait_until((tmp_path / "test_one.waits").exists)
        (tmp_path / "test_one.tidy").unlink()  # the first test's
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=120)
    assert run.returncode == 130
    pid = int((tmp_path / "test_one.tidy").read_text())
    assert not os.path.exists(f"/proc/{pid}")


def test_every_test_is_in_one_part(tmp_path: Path) -> None:
    """What `make test` hands to the parts on the main Python is every file of tests, each in one part only."""
    (tmp_path / "Makefile").write_text(
        f"include {ROOT}/Makefile\nlist:\n"
        "\t@echo $(CHAOS_RUN) $(TEMPLATE) $(TOOLKIT) $(CORE_A) $(LOCAL) $(FUNCTIONS) $(CORE_B) $(WIRE) $(STORIES)\n"
    )
    made = subprocess.run(
        ["make", "-s", "-f", tmp_path / "Makefile", "list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [
        file
        for given in made.stdout.split()
        for file in ([ROOT / given] if given.endswith(".py") else (ROOT / given).rglob("test_*.py"))
        if "compliance" not in file.parts  # a pytest of its own runs it
    ]
    # What looks for secrets in all that was written does so in both halves.
    files.remove(ROOT / "tests/integration/test_credentials_output.py")
    every = [file for file in (ROOT / "tests").rglob("test_*.py") if "compliance" not in file.parts]
    assert sorted(files) == sorted(every)
