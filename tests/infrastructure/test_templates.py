"""What can be said of the templates without AWS: what SAM and its linter say, and samconfig.toml's keys."""

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_application_passes_sam_validate_lint(run_sam: Run) -> None:
    """`sam validate --lint` finds nothing in the application's template."""
    result = run_sam("sam", "validate", "--lint", "--template", ROOT / "template.yaml")
    assert result.returncode == 0, result.stderr


def test_every_key_of_samconfig_is_known(run_sam: Run) -> None:
    """Each section and key of samconfig.toml is a command and an option of the SAM CLI."""
    result = run_sam("python", Path(__file__).with_name("check_samconfig.py"), ROOT / "samconfig.toml")
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
