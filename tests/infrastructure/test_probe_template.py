"""The second stack of `plungepool verify-aws`, by the SAM CLI's own eyes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

PROBE = Path(__file__).parents[2] / "toolkit" / "plungepool_toolkit" / "verify_aws" / "probe" / "template.yaml"


def test_probe_template_passes_sam_validate_lint(run_sam: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """`sam validate --lint` finds nothing in the template of the functions that look."""
    result = run_sam("sam", "validate", "--lint", "--template", PROBE)
    assert result.returncode == 0, result.stderr
