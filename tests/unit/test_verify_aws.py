"""
`plungepool verify-aws`: what it refuses, what it says beforehand, and how evidence becomes findings. Nothing leaves the
machine.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from moto import mock_aws
from rich.console import Console
from typer.testing import CliRunner

from plungepool_toolkit.commands.verify_aws import verify_aws
from plungepool_toolkit.commands.verify_aws.account import Account, Refusal
from plungepool_toolkit.commands.verify_aws.facts import FACTS, judge
from plungepool_toolkit.commands.verify_aws.prices import PRICES, parts_of, show_prices
from plungepool_toolkit.commands.verify_aws.probe.database import SUSPECTS, settings_of
from plungepool_toolkit.commands.verify_aws.report import show_findings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command() -> typer.Typer:
    """The command by itself."""
    application = typer.Typer()
    application.command()(verify_aws)
    return application


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nobody has signed in to AWS."""
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in (
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def said(result: object) -> str:
    """Return what the command wrote, without the line breaks of the terminal."""
    return " ".join(result.output.split())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_credentials")
def test_refuses_without_credentials(command: typer.Typer) -> None:
    """Without credentials nothing begins, be there a yes or not; the text says how to sign in."""
    result = CliRunner().invoke(command, ["--yes", "--region", "eu-west-1", "--folder", str(ROOT)])
    assert result.exit_code == 2
    assert "no AWS credentials were found" in said(result)
    assert "AWS_PROFILE" in said(result)


@pytest.mark.usefixtures("no_credentials")
def test_refuses_a_profile_that_does_not_exist(command: typer.Typer) -> None:
    """A misspelt profile is a refusal with its name, not a traceback."""
    result = CliRunner().invoke(command, ["--yes", "--profile", "nobody", "--folder", str(ROOT)])
    assert (result.exit_code, "nobody" in said(result)) == (2, True)


@mock_aws
def test_refuses_without_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a region nothing begins."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(Refusal, match="no region"):
        Account()


@mock_aws
@pytest.mark.parametrize("given", ["", "no\n", "y\n"])
def test_refuses_without_an_explicit_yes(command: typer.Typer, given: str) -> None:
    """Prices, account and region are shown; then, with nobody at the terminal and no --yes, nothing is made."""
    # Whichever program it is, it is not begun.
    options = ["--region", "eu-west-1", "--folder", str(ROOT), "--sam", sys.executable]
    result = CliRunner().invoke(command, options, input=given)
    assert result.exit_code == 2
    text = said(result)
    assert "Aurora Serverless v2" in text
    assert "123456789012" in text
    assert "Nothing was created" in text
    assert Account("eu-west-1").client("s3").list_buckets()["Buckets"] == []
    assert Account("eu-west-1").client("cloudformation").list_stacks()["StackSummaries"] == []


@mock_aws
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--database", "dsql"], "aurora or instance or express"),
        (["--delete", "my-production-stack", "--sam", sys.executable], "not the name of a run"),
        (["--folder", str(ROOT / "docs"), "--sam", "/bin/true"], "template.yaml"),
    ],
)
def test_refuses_what_makes_no_sense(command: typer.Typer, options: list[str], why: str) -> None:
    """A wrong database, a name that no run had, a folder without the application: refused, with the reason."""
    result = CliRunner().invoke(command, ["--yes", "--region", "eu-west-1", "--folder", str(ROOT), *options])
    assert (result.exit_code, why in said(result)) == (2, True), result.output


@mock_aws
def test_finds_the_default_network() -> None:
    """Two subnets of the default VPC in different zones, and the route table that needs endpoints."""
    account = Account("eu-west-1")
    network = account.network(None, ())
    ec2 = account.client("ec2")
    subnets = ec2.describe_subnets(SubnetIds=list(network.subnet_ids))["Subnets"]
    assert len({subnet["AvailabilityZone"] for subnet in subnets}) == 2
    assert {subnet["VpcId"] for subnet in subnets} == {network.vpc_id}
    assert len(network.route_table_ids) == 1
    for service, kind in (("s3", "Gateway"), ("secretsmanager", "Interface")):
        ec2.create_vpc_endpoint(
            VpcId=network.vpc_id, ServiceName=f"com.amazonaws.eu-west-1.{service}", VpcEndpointType=kind
        )
    assert account.network(None, ()).route_table_ids == ()


@mock_aws
def test_refuses_a_network_that_would_clash() -> None:
    """One of the two endpoints is there: making both would fail half way, so it is refused beforehand."""
    account = Account("eu-west-1")
    network = account.network(None, ())
    account.client("ec2").create_vpc_endpoint(
        VpcId=network.vpc_id, ServiceName="com.amazonaws.eu-west-1.s3", VpcEndpointType="Gateway"
    )
    with pytest.raises(Refusal, match="endpoint for s3"):
        account.network(None, ())


@pytest.mark.parametrize("mode", PRICES)
def test_prices_add_up(mode: str) -> None:
    """The last line of the table is the sum of the others, and it says that it is an estimate, of which date."""
    console = Console(width=160, record=True, file=io.StringIO())
    show_prices(console, mode)  # type: ignore[arg-type]
    text = console.export_text()
    together = {"aurora": "0.19 to 0.68", "instance": "0.06 to 0.13", "express": "0.01 to 0.30"}[mode]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.count("│") == 4]
    low, high = (sum(float(row[1].split(" to ")[end]) for row in rows[:-1]) for end in (0, -1))
    assert rows[-1][:2] == ["Together", together]
    assert f"{low:.2f} to {high:.2f}" == together
    assert together in (ROOT / "docs" / "verify-on-aws.md").read_text()
    assert "estimate" in text
    assert "2026" in text


@pytest.mark.parametrize("mode", PRICES)
def test_prices_know_every_alarm(mode: str) -> None:
    """CloudWatch takes money for each alarm: as many are priced as the two templates make for this kind of database."""
    paths = ["template.yaml", *(["infrastructure/database.yaml"] if mode != "express" else [])]
    templates = "".join((ROOT / path).read_text() for path in paths)
    conditions = re.findall(r"Type: AWS::CloudWatch::Alarm\n(?:    Condition: (\w+)\n)?", templates)
    made = [
        one
        for one in conditions
        if one in ("", "HasProxy", {"aurora": "IsAurora", "instance": "IsInstance", "express": ""}[mode])
    ]
    [priced] = [price for price in parts_of(mode) if "alarms" in price.part]  # type: ignore[arg-type]
    assert re.findall(r"^\d+", priced.part) == [str(len(made))]


GOOD_TLS = {"versions": {"TLSv1.2": True, "TLSv1.3": True}, "subject": "a", "issuer": "b", "chain_length": 3}
REFUSED = {"sqlstate": "28P01", "message": "no"}
OPTION = {"sqlstate": "0A000", "message": "no"}
TOKENS = {"a password": REFUSED, "another user's token": REFUSED, "a token of an hour ago": REFUSED,
"a token of five minutes": {"value": "let in"}, "no TLS": {"sqlstate": "28000", "message": "no"}}  # fmt: skip
STARTUP = {"statement_timeout": OPTION, "lock_timeout": OPTION, "options -c": OPTION,
"application_name": {"value": "x"}, "search_path": {"value": "y"}}  # fmt: skip
PINS = {"SET", "SET LOCAL", "set_config, local", "nextval", "declared cursor", "over 16 KB", "named statement"}


def evidence() -> dict:
    """What the probes would return if all were as it is expected."""
    return {
        **{f"pinning {suspect}": {"pinned": suspect in PINS, "backends": 5, "began": 0,
        "ended": 1} for suspect in SUSPECTS},
        "split": {"right": 100, "wrong": 3, "refused": {"26000": 2}},
        "startup proxy": STARTUP,
        "refusals proxy": TOKENS,
        "refusals direct": TOKENS,
        "tls proxy": {**GOOD_TLS, "trusted_by": {"region": False, "amazon roots": True, "runtime": True}},
        "tls direct": {**GOOD_TLS, "trusted_by": {"region": True, "amazon roots": False, "runtime": False}},
        "prepare": {"limits": {"max_connections": "800"}, "secret_fields": ["password", "username"]},
        "rate": {"connects": 100, "per_s": 20.0, "refused": {}},
        "borrow": {"held": 8, "sqlstate": "08000", "message": "timed out", "waited_s": 2.0},
        "waits proxy": {"password ahead": {"value": "let in"}, "direct TLS": {"sqlstate": "none",
        "message": "SSLEOFError"}},
        "waits direct": {"password ahead": {"value": "let in"}, "direct TLS": {"value": "let in"}},
        "session proxy": {"cancel": {"value": "ran to its end"},
        "announced": {"value": "another process than the one that serves"}, "idle": {"sqlstate": "57P05",
        "message": "idle"}},
        "snapshot": {"began": "snap-start", "connection": False, "registration": "waits", "sigterm": False,
        "waited_s": 1200.0},
        "metrics": {"DatabaseConnectionsCurrentlySessionPinned": 1.0, "MaxDatabaseConnectionsAllowed": 8.0},
        "shutdown": {"sigterm": True, "waited_s": 300.0, "init_s": 0.1, "handler_s": 0.3},
        "bundle": {"served": 3, "missing": 0},
        "check_database": {"ok": True, "checks": [{"name": "TCP", "state": "ok", "found": "", "cure": ""}]},
    }  # fmt: skip


def evidence_of_express() -> dict[str, Any]:
    """The same, of a cluster of express configuration."""
    let_in = {"value": "let in"}
    shared = ("check_database", "prepare", "rate", "shutdown", "snapshot", "bundle")
    return {name: found for name, found in evidence().items() if name in shared} | {
        "cluster": {"InternetAccessGatewayEnabled": True, "VPCNetworkingEnabled": False,
        "IAMDatabaseAuthenticationEnabled": True, "EngineVersion": "17.7"},
        "tls direct": {**GOOD_TLS, "trusted_by": {"region": False, "amazon roots": True, "runtime": True}},
        "startup direct": {name: {"value": "x"} for name in STARTUP},
        "refusals direct": TOKENS,
        "waits direct": {"password ahead": let_in, "direct TLS": let_in},
        "session direct": {"cancel": {"value": "cancelled"}, "announced": {"value": "the process that serves"},
        "idle": {"sqlstate": "57P05", "message": "idle"}},
        "capacity": {"held": 300, "max_connections": "823"},
        "schema": {"properties": []},
    }  # fmt: skip


BY_MODE = {"aurora": evidence, "instance": evidence, "express": evidence_of_express}


@pytest.mark.parametrize("mode", PRICES)
def test_all_as_expected(mode: str) -> None:
    """
    Evidence that is as expected, or only measured, gives no other verdict, and every fact has something that was seen.
    """
    findings = judge(BY_MODE[mode](), mode)
    assert {finding.verdict for finding in findings} == {"as expected", "measured"}
    assert [finding.fact.name for finding in findings if not finding.seen] == []


@pytest.mark.parametrize("mode", PRICES)
def test_nothing_seen_is_no_agreement(mode: str) -> None:
    """Without evidence every fact is "not seen"."""
    assert {finding.verdict for finding in judge({}, mode)} == {"not seen"}


def test_each_fact_is_asked_of_some_database() -> None:
    """A run with a proxy and one of express configuration settle all facts together, and share what is of Lambda."""
    proxied, express = ({finding.fact.name for finding in judge({}, mode)} for mode in ("aurora", "express"))
    assert proxied | express == {fact.name for fact in FACTS}
    assert {"sigterm", "snapshot-registration", "check-database"} <= proxied & express
    assert not any("proxy" in name or "pin" in name for name in express)


@pytest.mark.parametrize(
    ("probe", "found", "fact"),
    [
        ("cluster", {"InternetAccessGatewayEnabled": False, "VPCNetworkingEnabled": False,
        "IAMDatabaseAuthenticationEnabled": True}, "gateway"),
        ("session direct", {"cancel": {"value": "ran to its end"}}, "gateway-cancel"),
        ("session direct", {"idle": {"sqlstate": "none", "message": "TimeoutError: timed out"}}, "gateway-idle"),
        ("waits direct", {"password ahead": {"sqlstate": "08P01", "message": "no"}}, "gateway-password-ahead"),
        ("refusals direct", {**TOKENS, "a password": {"sqlstate": "08004", "message": "no"}}, "gateway-password"),
        ("tls direct", {**GOOD_TLS, "trusted_by": {"region": True, "amazon roots": False, "runtime": False}},
        "gateway-certificate"),
        ("schema", {"properties": ["WithExpressConfiguration"]}, "cloudformation-express"),
        ("snapshot", {"began": "snap-start", "connection": False,
        "registration": "403 Extension.UnknownExtensionIdentifier", "sigterm": False, "waited_s": 9.0},
        "snapshot-registration"),
    ],
)  # fmt: skip
def test_what_is_otherwise_of_express_is_said(probe: str, found: dict[str, Any], fact: str) -> None:
    """Evidence against one fact of the gateway turns the verdict on this one, and on no other."""
    good = evidence_of_express()
    findings = judge(good | {probe: {**good[probe], **found}}, "express")
    assert [finding.fact.name for finding in findings if finding.verdict == "otherwise"] == [fact]


def test_session_that_ends_without_a_word_has_ended() -> None:
    """A connection is looked at before it is used: the end is seen, be it told or not."""
    good = evidence_of_express()
    silent = {"idle": {"sqlstate": "none", "message": "the other side hung up without a word"}}
    findings = judge(good | {"session direct": {**good["session direct"], **silent}}, "express")
    assert [finding.verdict for finding in findings if finding.fact.name == "gateway-idle"] == ["as expected"]


def test_environment_that_was_not_restored_shows_nothing_of_snapshots() -> None:
    """An extension that init registered is registered: that says nothing of a restore."""
    found = {"began": "on-demand", "connection": True, "registration": "waits", "sigterm": True, "waited_s": 1.0}
    findings = judge(evidence() | {"snapshot": found})
    assert [one.verdict for one in findings if one.fact.name == "snapshot-registration"] == ["not seen"]


@pytest.mark.parametrize(
    ("probe", "found", "fact"),
    [
        ("pinning SET LOCAL", {"pinned": False, "backends": 5}, "set-local"),
        ("pinning identity column", {"pinned": True, "backends": 5, "logged": ["a sequence"]}, "identity-column"),
        ("pinning nextval", {"refused": {"sqlstate": "42501", "message": "denied"}}, "nextval"),
        ("tls proxy", {**GOOD_TLS, "trusted_by": {"region": True, "amazon roots": False, "runtime": False}},
        "proxy-certificate"),
        ("startup proxy", {**STARTUP, "statement_timeout": {"value": "4s"}}, "startup-statement-timeout"),
        ("bundle", {"served": 4, "missing": 1}, "regional-bundle"),
        ("borrow", {"held": 8, "sqlstate": "57014", "message": "cancelled", "waited_s": 2.0}, "borrow-timeout"),
    ],
)  # fmt: skip
def test_what_is_otherwise_is_said(probe: str, found: dict, fact: str) -> None:
    """Evidence against one fact turns the verdict on this one, and on no other."""
    findings = judge(evidence() | {probe: found})
    assert [finding.fact.name for finding in findings if finding.verdict == "otherwise"] == [fact]


def test_controls_that_fail_void_every_suspect() -> None:
    """If SET is not seen to pin, the method is wrong, and no suspect's result is taken for one."""
    findings = {
        finding.fact.name: finding.verdict
        for finding in judge(evidence() | {"pinning SET": {"pinned": False, "backends": 5}})
    }
    assert findings["control-pins"] == "otherwise"
    assert {findings[name] for name in ("set-local", "identity-column", "named-statement")} == {"not seen"}


def test_table_shows_every_fact() -> None:
    """Each fact is a row, with what the server said taken as text and not as markup."""
    console = Console(width=300, record=True, file=io.StringIO())
    show_findings(
        console, judge(evidence() | {"borrow": {"sqlstate": "08000", "message": "[bold]no", "waited_s": 2.0}})
    )
    text = console.export_text()
    assert [fact.name for fact in FACTS if "aurora" in fact.modes and fact.name not in text] == []
    assert "[bold]no" in text


def test_documentation_lists_every_fact() -> None:
    """docs/verify-on-aws.md has a row for each fact that the command settles, and for no other."""
    lines = (ROOT / "docs" / "verify-on-aws.md").read_text().splitlines()
    documented = [line.split("`")[1] for line in lines if line.startswith("| `") and line.count("|") == 4]
    assert sorted(documented) == sorted(fact.name for fact in FACTS)


def test_settings_of_each_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix chooses whose settings are read, and the region is everybody's."""
    environ = {
        "AWS_REGION": "eu-west-1",
        "PLUNGEPOOL_HOST": "proxy.example", "PLUNGEPOOL_USER": "app", "PLUNGEPOOL_AUTH": "iam",
        "ADMIN_PLUNGEPOOL_HOST": "database.example", "ADMIN_PLUNGEPOOL_AUTH": "secret",
        "ADMIN_PLUNGEPOOL_SECRET_ARN": "one",
    }  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert (settings_of("").host, settings_of("").region) == ("proxy.example", "eu-west-1")
    assert (settings_of("ADMIN_").host, settings_of("ADMIN_").auth) == ("database.example", "secret")
