"""The second stack of `plungepool verify-aws`, by the SAM CLI's own eyes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROBE = ROOT / "toolkit" / "plungepool_toolkit" / "commands" / "verify_aws" / "probe" / "template.yaml"


def test_probe_template_passes_sam_validate_lint(run_sam: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """`sam validate --lint` finds nothing in the template of the functions that look."""
    result = run_sam("sam", "validate", "--lint", "--template", PROBE)
    assert result.returncode == 0, result.stderr
