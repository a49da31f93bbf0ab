"""docs/quick-start.md: its commands, in the order in which they stand there, end in a test that passes."""

from __future__ import annotations

import sysconfig
from typing import TYPE_CHECKING

from pages import ROOT, Page, run

if TYPE_CHECKING:
    from pathlib import Path

PAGE = Page("quick-start")
PACKAGES = sysconfig.get_path("purelib")


def shell(name: str, folder: Path) -> str:
    """Run one of the page's blocks as a user's shell would; return what it prints."""
    done = run(
        ["sh", "-ec", PAGE.files[name]],
        folder,
        # The clone is of this repository, and what the packages need comes from this environment: nothing is fetched.
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0=f"url.{ROOT}.insteadOf",
        GIT_CONFIG_VALUE_0="https://github.com/OWNER/plungepool",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_NO_BUILD_ISOLATION="0",  # pip's name for it is the wrong way round
        PIP_NO_COMPILE="1",
        PIP_NO_DEPS="1",
        PIP_NO_INDEX="1",
        PYTHONPATH=PACKAGES,  # what builds the two packages
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_commands_lead_to_a_test_that_passes(tmp_path: Path) -> None:
    """Clone, install, two files, pytest: with the packages that the page's own commands have installed."""
    shell("install.sh", tmp_path)
    (installed,) = (tmp_path / ".venv").glob("lib/python3.*/site-packages")
    (installed / "others.pth").write_text(PACKAGES)
    PAGE.write(tmp_path)
    (tmp_path / "tests" / "test_bad_days.py").unlink()
    assert PAGE.printed["run.sh"].strip() in shell("run.sh", tmp_path)
