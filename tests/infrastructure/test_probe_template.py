"""The second stack of `plungepool verify-aws`, by the SAM CLI's own eyes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from stack import HOME, Stack
from template_rules import SECRET, connecting, reading, rights_of

from plungepool import Settings

ROOT = Path(__file__).parents[2]
PROBE = ROOT / "toolkit" / "plungepool_toolkit" / "commands" / "verify_aws" / "probe" / "template.yaml"


def test_probe_template_passes_sam_validate_lint(run_sam: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """`sam validate --lint` finds nothing in the template of the functions that look."""
    result = run_sam("sam", "validate", "--lint", "--template", PROBE)
    assert result.returncode == 0, result.stderr


GIVEN = {
    "LayerArn": "arn:layer:1", "Host": "px", "DirectHost": "db", "Port": "5432", "User": "app", "ResourceId": "prx-1",
    "DirectResourceId": "cluster-1", "Architecture": "arm64",
}  # fmt: skip
PROXIED = {"AdminSecretArn": SECRET + "admin-Ab12Cd", "SubnetIds": "subnet-1,subnet-2", "SecurityGroupId": "sg-1"}


@pytest.fixture(scope="module")
def expanded(examine: Callable[[dict[str, str], set[str]], dict]) -> dict:
    """The template after the transform, which takes packaged code only."""
    packaged = PROBE.read_text().replace("    CodeUri: .\n", "    CodeUri: s3://artifacts/key\n")
    seen = examine({"probe": packaged}, set())["probe"]
    assert seen["problems"] == []
    return seen["expanded"]


@pytest.mark.parametrize("proxied", [True, False])
def test_probe_signs_in_where_and_as_whom_it_may(expanded: dict, proxied: bool) -> None:
    """Behind a proxy in the VPC, the administrator by the secret; of express configuration outside, all by IAM."""
    stack = Stack(expanded, GIVEN | (PROXIED if proxied else {}))
    function = stack.properties("DatabaseProbe")
    network = {"SubnetIds": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert function.get("VpcConfig") == (network if proxied else None)
    variables = {name: str(value) for name, value in function["Environment"]["Variables"].items()}
    of = {p: Settings.from_env(variables | {"AWS_REGION": HOME.region}, prefix=p) for p in ("", "DIRECT_", "ADMIN_")}
    found = [(one.host, one.user or "", one.auth, one.endpoint) for one in of.values()]
    assert found == [
        ("px", "app", "iam", "proxy" if proxied else "direct"),
        ("db", "app", "iam", "direct"),
        ("db", "", "secret", "direct") if proxied else ("db", "postgres", "iam", "direct"),
    ]
    rights, _managed = rights_of(stack, "DatabaseProbeRole")
    administering = reading(PROXIED["AdminSecretArn"]) if proxied else connecting("cluster-1", "postgres")
    assert rights == connecting("prx-1", "app") | connecting("cluster-1", "app") | administering


def test_one_of_two_shutdown_probes_is_restored(expanded: dict) -> None:
    """The same code without SnapStart and with it, whose alias is what is invoked."""
    stack = Stack(expanded, GIVEN)
    plain, restored = (stack.properties(name) for name in ("ShutdownProbe", "SnapshotProbe"))
    assert (plain["Handler"], restored["Handler"]) == ("shutdown.handler", "shutdown.handler")
    assert ("SnapStart" in plain, restored["SnapStart"]) == (False, {"ApplyOn": "PublishedVersions"})
    assert stack.outputs()["SnapshotProbe"] == "ref-SnapshotProbeAliaslive"
