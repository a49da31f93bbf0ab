"""
`plungepool verify-aws`: settle on an account what only an account can settle, and leave nothing behind.

It deploys the application with a demo database behind an RDS Proxy, and beside it two functions that look (probe/), prints
what was expected and what was seen, and deletes everything: after a failure and Ctrl-C, too. It begins only with
credentials and an explicit yes, given after the prices were shown.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import signal
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plungepool import tls
from plungepool_toolkit.verify_aws.account import TAG, Account, Network, Refusal, find_sam
from plungepool_toolkit.verify_aws.facts import Evidence, Finding, judge
from plungepool_toolkit.verify_aws.probe.database import SUSPECTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

_PROBE = Path(__file__).with_name("probe")
_USER = "plungepool_app"
_PORT = 5432
Mode = Literal["aurora", "instance"]


# ---- what it costs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Price:
    """What one part costs while it is there. An estimate: US dollars an hour in us-east-1, without taxes and free tiers."""

    part: str
    an_hour: tuple[float, float]
    how: str


PRICES_AS_OF = (
    "estimated in November 2026 from AWS's public list prices for us-east-1; check the pricing pages of your region"
)
PRICES: dict[Mode, tuple[Price, ...]] = {
    "aurora": (
        Price("Aurora Serverless v2, 0.5 to 4 ACU", (0.06, 0.48), "0.12 an ACU-hour"),
        Price("RDS Proxy before it", (0.12, 0.12), "0.015 an ACU-hour, at least 8 ACU"),
    ),
    "instance": (
        Price("RDS instance db.t4g.micro, 20 GB gp3", (0.02, 0.02), "0.016 an hour and 0.115 a GB-month"),
        Price("RDS Proxy before it", (0.03, 0.03), "0.015 a vCPU-hour, at least 2"),
    ),
}
_PRICES_OF_BOTH = (
    Price("Interface endpoint of Secrets Manager in two zones, unless there is one", (0.00, 0.02), "0.01 a zone-hour"),
    Price("Lambda, HTTP API, SQS, logs, metrics, two secrets, one bucket", (0.01, 0.05), "a few hundred invocations"),
)


def show_prices(console: Console, mode: Mode) -> None:
    """Print what a run makes, and what that costs an hour."""
    table = Table(title="What this makes, and what it costs (US dollars an hour, estimate)", title_justify="left")
    for column in ("Part", "An hour", "How it is counted"):
        table.add_column(column)
    parts = (*PRICES[mode], *_PRICES_OF_BOTH)
    for price in parts:
        low, high = price.an_hour
        table.add_row(price.part, f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}", price.how)
    low, high = (sum(price.an_hour[end] for price in parts) for end in (0, 1))
    table.add_row("Together", f"{low:.2f} to {high:.2f}", "a run takes 1 to 2 hours, deletion included", style="bold")
    console.print(table)
    console.print(f"{PRICES_AS_OF}.\n", style="dim")


# ---- one run --------------------------------------------------------------------------------------------------------


class Verification:
    """
    One run: `deploy`, `look`, `delete`, in this order; `delete` at any time, any number of times.

    Args: name: of the stacks, the bucket and the tag; unique, and what `--delete` takes.
    Raises: Refusal, and botocore's errors, from `deploy`; nothing from `look`, whose evidence lacks what failed.
    """

    bundle_url = "https://truststore.pki.rds.amazonaws.com/{region}/{region}-bundle.pem"

    def __init__(
        self, account: Account, name: str, console: Console, *, folder: Path, sam: Path, mode: Mode = "aurora"
    ) -> None:
        self.name, self.console = name, console
        self._account, self._folder, self._sam, self._mode = account, folder, sam, mode
        self._functions: dict[str, str] = {}
        self._proxy = ""
        self._shutdown_began = 0.0

    def deploy(self, network: Network, architecture: str = "arm64") -> None:
        """Build and deploy the application, then the probes beside it. Blocks: 20 to 30 minutes on AWS."""
        account, run = self._account, self.name
        account.make_bucket(run)
        with tempfile.TemporaryDirectory() as scratch:
            build = Path(scratch, "build")
            config = Path(scratch, "samconfig.toml")
            config.write_text("version = 0.1\n")  # the repository's own would decide for us
            self._say("building the application")
            account.sam(self._sam, "build", "--config-file", config, "--build-dir", build, cwd=self._folder)
            self._say("deploying it with its database and proxy: 20 minutes are usual")
            self._deploy_stack(run, build / "template.yaml", config, {
                "DatabaseMode": self._mode,
                "Endpoint": "proxy",
                "ProxyAuth": "iam",
                "ProtectDatabase": "false",
                "FinalSnapshot": "false",
                "OrdersConcurrency": "0",  # a new account has none to reserve
                "VpcId": network.vpc_id,
                "SubnetIds": ",".join(network.subnet_ids),
                "RouteTableIds": ",".join(network.route_table_ids),
                "User": _USER,
                "Port": str(_PORT),
                "LogRetentionDays": "1",
                "Architecture": architecture,
            })  # fmt: skip
            self._say("deploying the functions that look")
            self._deploy_stack(
                f"{run}-probe", _PROBE / "template.yaml", config, self._probe_parameters(network, architecture)
            )
        self._functions = {
            name: function
            for stack in (run, f"{run}-probe")
            for name, function in account.outputs(stack).items()
            if name in ("CheckDatabaseFunction", "DatabaseProbe", "ShutdownProbe", "ShutdownProbeLogs")
        }

    def _deploy_stack(self, stack: str, template: Path, config: Path, parameters: Mapping[str, str]) -> None:
        overrides = [f"{name}={value}" for name, value in parameters.items() if value]
        self._account.sam(
            self._sam, "deploy", "--config-file", config, "--template-file", template, "--stack-name", stack,
            "--s3-bucket", self.name, "--s3-prefix", stack, "--tags", f"{TAG}={self.name}",
            "--no-confirm-changeset", "--no-progressbar",
            "--capabilities", "CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND",
            "--parameter-overrides", *overrides,
            cwd=self._folder,
        )  # fmt: skip

    def _probe_parameters(self, network: Network, architecture: str) -> dict[str, str]:
        account = self._account
        resources = {logical: (kind, physical) for logical, kind, physical in account.resources(self.name)}
        database = account.outputs(resources["DemoDatabase"][1])
        rds = account.client("rds")
        if self._mode == "aurora":
            clusters = rds.describe_db_clusters(DBClusterIdentifier=resources["Cluster"][1])["DBClusters"]
            direct_id = clusters[0]["DbClusterResourceId"]
        else:
            instances = rds.describe_db_instances(DBInstanceIdentifier=resources["Instance"][1])["DBInstances"]
            direct_id = instances[0]["DbiResourceId"]
        self._proxy = resources["Proxy"][1]
        return {
            "LayerArn": account.outputs(self.name)["LayerArn"],
            "SubnetIds": ",".join(network.subnet_ids),
            "SecurityGroupId": resources["FunctionSecurityGroup"][1],
            "Host": database["Host"],
            "DirectHost": database["AdminHost"],
            "Port": str(_PORT),
            "User": _USER,
            "ResourceId": database["ResourceId"],
            "DirectResourceId": direct_id,
            "AdminSecretArn": database["AdminSecretArn"],
            "Architecture": architecture,
        }

    def look(self, *, patience_s: float = 900.0) -> dict[str, Any]:
        """
        Run every probe and return the evidence. Blocks: 10 to 20 minutes on AWS.

        Args: patience_s: how long to wait for the end of an environment, and for metrics and logs to arrive.
        """
        evidence: dict[str, Any] = {}
        began = time.time()
        shutdown = self._begin_shutdown()
        self._probe(evidence, "bundle", None)
        self._ask(evidence, "check_database", "CheckDatabaseFunction", {})
        self._probe(evidence, "prepare", {})
        for suspect in SUSPECTS:
            self._probe(evidence, f"pinning {suspect}", {"suspect": suspect})
        self._probe(evidence, "split", {})
        for prefix, place in (("", "proxy"), ("DIRECT_", "direct")):
            for probe in ("startup", "refusals", "tls"):
                self._probe(evidence, f"{probe} {place}", {"prefix": prefix})
        self._probe(evidence, "rate", {})
        with self._tolerated("borrow"):
            self._narrow_proxy()
            time.sleep(min(60.0, patience_s / 10))  # nothing tells when a proxy has taken it up
            self._probe(evidence, "borrow", {})
        if shutdown is not None:
            evidence["shutdown"] = shutdown | self._await_sigterm(patience_s)
        with self._tolerated("logs of the proxy"):
            self._add_reasons(evidence, began)
        with self._tolerated("metrics"):
            evidence["metrics"] = self._metrics(began)
        return evidence

    def _probe(self, evidence: dict[str, Any], name: str, arguments: dict[str, Any] | None) -> None:
        if arguments is None:
            with self._tolerated(name):
                evidence[name] = self._bundle()
            return
        self._ask(evidence, name, "DatabaseProbe", {"probe": name.partition(" ")[0], **arguments})

    def _ask(self, evidence: dict[str, Any], name: str, function: str, event: dict[str, Any]) -> None:
        self._say(f"looking: {name}")
        with self._tolerated(name):
            evidence[name] = self._account.invoke(self._functions[function], event)

    @contextlib.contextmanager
    def _tolerated(self, what: str) -> Iterator[None]:
        """Go on after a failure of one probe: the others may still be answered."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Refusal, BotoCoreError, ClientError, OSError, KeyError) as error:
            self.console.print(f"  [yellow]not seen[/]: {escape(what)}: {escape(f'{type(error).__name__}: {error}')}")

    def _bundle(self) -> dict[str, int]:
        """Compare the regional bundle that AWS serves with what the layer ships."""
        url = self.bundle_url.format(region=self._account.region)
        with urllib.request.urlopen(url, timeout=20) as response:  # noqa: S310  # a fixed address
            served = _certificates(response.read().decode())
        shipped = {
            certificate
            for file in tls.shipped_authorities(self._account.region)
            for certificate in _certificates(Path(file).read_text())
        }
        return {"served": len(served), "missing": len(served - shipped)}

    def _narrow_proxy(self) -> None:
        """Leave the proxy a hundredth of the database's connections, and two seconds to wait for one."""
        self._account.client("rds").modify_db_proxy_target_group(
            DBProxyName=self._proxy,
            TargetGroupName="default",
            ConnectionPoolConfig={
                "MaxConnectionsPercent": 1,
                "MaxIdleConnectionsPercent": 0,
                "ConnectionBorrowTimeout": 2,
            },
        )

    def _begin_shutdown(self) -> dict[str, Any] | None:
        """Invoke the function that waits for SIGTERM, then change its configuration, which ends its environment."""
        evidence: dict[str, Any] = {}
        self._ask(evidence, "shutdown", "ShutdownProbe", {})
        changed = False
        with self._tolerated("a new configuration"):
            self._account.client("lambda").update_function_configuration(
                FunctionName=self._functions["ShutdownProbe"], Environment={"Variables": {"TURN": "2"}}
            )
            changed = True
        self._shutdown_began = time.time()
        return evidence.get("shutdown") if changed else None

    def _await_sigterm(self, patience_s: float) -> dict[str, Any]:
        logs = self._account.client("logs")
        while True:
            waited_s = time.time() - self._shutdown_began
            with self._tolerated("the log of shutdown"):
                events = logs.filter_log_events(
                    logGroupName=self._functions["ShutdownProbeLogs"], filterPattern="SIGTERM"
                )["events"]
                if events:
                    return {"sigterm": True, "waited_s": waited_s}
            if waited_s >= patience_s:
                return {"sigterm": False, "waited_s": waited_s}
            self._say(f"waiting for the end of an environment, {waited_s:.0f} of {patience_s:.0f} s")
            time.sleep(min(30.0, patience_s / 10))

    def _add_reasons(self, evidence: dict[str, Any], began: float) -> None:
        """Add to each suspect what the proxy's own log says of pinning while it was looked at."""
        pages = (
            self._account.client("logs")
            .get_paginator("filter_log_events")
            .paginate(logGroupName=f"/aws/rds/proxy/{self._proxy}", startTime=int(began * 1000), filterPattern="pinned")
        )
        events = [(event["timestamp"] / 1000, event["message"]) for page in pages for event in page["events"]]
        for name, found in evidence.items():
            if name.startswith("pinning "):
                during = [text for at, text in events if found["began"] - 1 <= at <= found["ended"] + 1]
                found["logged"] = sorted({match[1] for text in during if (match := _REASON.search(text))})

    def _metrics(self, began: float) -> dict[str, float]:
        client = self._account.client("cloudwatch")
        found = {}
        for name in ("DatabaseConnectionsCurrentlySessionPinned", "MaxDatabaseConnectionsAllowed"):
            # Some are kept by proxy, some by its target too; which is not documented for each.
            of_proxy = [{"Name": "ProxyName", "Value": self._proxy}]
            kept = client.list_metrics(Namespace="AWS/RDS", MetricName=name, Dimensions=of_proxy)["Metrics"]
            points = [
                point["Maximum"]
                for metric in kept
                for point in client.get_metric_statistics(
                    Namespace="AWS/RDS",
                    MetricName=name,
                    Dimensions=metric["Dimensions"],
                    StartTime=began,
                    EndTime=time.time(),
                    Period=60,
                    Statistics=["Maximum"],
                )["Datapoints"]
            ]
            if points:
                found[name] = max(points)
        return found

    def delete(self) -> bool:
        """
        Delete everything, and say what is left if that fails; True if nothing is.

        The first Ctrl-C meanwhile is answered with why it goes on; the second one ends it.
        """
        with _stubborn(self.console):
            left = self._account.delete(self.name, self._say)
        if not left:
            self.console.print("[green]Everything is deleted.[/]")
            return True
        self.console.print("[red bold]This is left, and costs:[/]")
        for what in left:
            self.console.print(f"  {escape(what)}", highlight=False)
        self.console.print(f"Try again: plungepool verify-aws --delete {self.name}")
        return False

    def _say(self, what: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')} {escape(what)}", highlight=False)


_REASON = re.compile(r"Reason:\s*(.*)")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def _certificates(text: str) -> set[str]:
    return {"".join(body.split()) for body in _PEM.findall(text)}


@contextlib.contextmanager
def _stubborn(console: Console) -> Iterator[None]:
    """Let the first interrupt pass with a warning; the second one interrupts."""

    def warn(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a signal handler's signature
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.print("[yellow]Still deleting: what is left would go on to cost. Ctrl-C again to leave it.[/]")

    before = signal.signal(signal.SIGINT, warn)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a signal handler's signature
    raise KeyboardInterrupt


# ---- the command ----------------------------------------------------------------------------------------------------

_STYLES = {"as expected": "green", "otherwise": "red", "measured": "cyan", "not seen": "yellow"}


def show_findings(console: Console, findings: list[Finding]) -> None:
    """Print each fact, what was expected and what was seen."""
    table = Table(title="What was seen", title_justify="left", show_lines=True)
    for column in ("Fact", "Question", "Expected", "Seen", ""):
        table.add_column(column)
    for finding in findings:
        verdict = f"[{_STYLES[finding.verdict]}]{finding.verdict}[/]"
        fact = finding.fact
        table.add_row(fact.name, escape(fact.question), escape(fact.expected), escape(finding.seen), verdict)
    console.print(table)


def write_findings(file: Path, findings: list[Finding], evidence: Evidence) -> None:
    """Write the findings and all that the probes returned as JSON."""
    rows = [
        {
            "fact": finding.fact.name,
            "question": finding.fact.question,
            "expected": finding.fact.expected,
            "seen": finding.seen,
            "verdict": finding.verdict,
        }
        for finding in findings
    ]
    file.write_text(json.dumps({"findings": rows, "evidence": evidence}, indent=2) + "\n")


def verify_aws(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the costs without being asked.")] = False,
    database: Annotated[str, typer.Option(help="aurora (Serverless v2) or instance.")] = "aurora",
    region: Annotated[str | None, typer.Option(help="Where; AWS_REGION otherwise.")] = None,
    profile: Annotated[str | None, typer.Option(help="Whose credentials; AWS_PROFILE otherwise.")] = None,
    vpc_id: Annotated[str | None, typer.Option(help="The VPC; the default one otherwise.")] = None,
    subnet_ids: Annotated[str, typer.Option(help="Two subnets or more in different zones, with commas.")] = "",
    architecture: Annotated[str, typer.Option(help="Of the functions: arm64 or x86_64.")] = "arm64",
    delete: Annotated[str | None, typer.Option(help="Only delete what a run of this name has left.")] = None,
    folder: Annotated[Path, typer.Option(help="Where template.yaml lies.", exists=True, file_okay=False)] = Path(),
    sam: Annotated[Path | None, typer.Option(help="The SAM CLI.", exists=True, dir_okay=False)] = None,
    patience_s: Annotated[float, typer.Option(help="Seconds to wait for the end of an environment (SIGTERM).")] = 900.0,
    output: Annotated[Path | None, typer.Option(help="Write the findings and the evidence as JSON, too.")] = None,
) -> None:
    """
    Deploy to an AWS account, settle what only an account can settle, and delete everything again. It costs money.

    Exits with 0 if all is as expected and deleted, 1 if not, 2 if it refused to begin, 130 if it was interrupted.
    """
    console = Console()
    mode: Mode = "instance" if database == "instance" else "aurora"
    try:
        if database not in PRICES:
            raise Refusal(f"--database is aurora or instance, not {database!r}")
        account = Account(region, profile)
        name = delete or f"{TAG}-{secrets.token_hex(4)}"
        program = find_sam(folder, sam)
        run = Verification(account, name, console, folder=folder.resolve(), sam=program, mode=mode)
        if delete:
            if not re.fullmatch(rf"{TAG}-[0-9a-f]{{8}}", delete):
                raise Refusal(f"{delete!r} is no name of a run: {TAG}- and eight digits")
            raise typer.Exit(0 if run.delete() else 1)
        if not (folder / "template.yaml").exists():
            raise Refusal(
                f"there is no {folder / 'template.yaml'}: run this in Plungepool's repository, or give --folder"
            )
        show_prices(console, mode)
        console.print(f"In account [bold]{account.number}[/], region [bold]{account.region}[/], as {account.arn}")
        _agree(console, yes)
        network = account.network(vpc_id, tuple(part for part in subnet_ids.split(",") if part))
    except Refusal as refusal:
        console.print(f"[red]Refused[/]: {escape(str(refusal))}", highlight=False)
        raise typer.Exit(2) from None
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell starts what it puts in the background with SIGINT ignored; what was made has to be deleted all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise typer.Exit(carry_out(run, network, architecture, output, patience_s=patience_s))


def _agree(console: Console, yes: bool) -> None:
    """Return if the costs are agreed to. Raises: Refusal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refusal("nobody is here to agree to the costs: give --yes. Nothing was made")
    answer = console.input("This makes what is listed above and costs money. Type [bold]yes[/] to go on: ")
    if answer.strip() != "yes":
        raise Refusal("the answer was not yes. Nothing was made")


def carry_out(
    run: Verification, network: Network, architecture: str, output: Path | None, *, patience_s: float = 900.0
) -> int:
    """Deploy, look, show and delete; return the exit code. Whatever happens, deletion is tried."""
    from botocore.exceptions import BotoCoreError, ClientError

    console = run.console
    console.print(f"This run is [bold]{run.name}[/]; if all else fails: plungepool verify-aws --delete {run.name}")
    code = 1
    try:
        run.deploy(network, architecture)
        evidence = run.look(patience_s=patience_s)
        findings = judge(evidence)
        show_findings(console, findings)
        if output is not None:
            write_findings(output, findings, evidence)
        if all(finding.verdict in ("as expected", "measured") for finding in findings):
            code = 0
    except KeyboardInterrupt:
        console.print("[yellow]Interrupted.[/]")
        code = 130
    except (Refusal, BotoCoreError, ClientError, OSError, KeyError) as error:
        console.print(f"[red]Failed[/]: {escape(f'{type(error).__name__}: {error}')}", highlight=False)
    finally:
        if not run.delete():
            code = code or 1
    return code
