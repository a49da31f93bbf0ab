"""One run of `plungepool verify-aws`: what it deploys, where it looks, and that it deletes all of it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from plungepool import tls
from plungepool_toolkit.commands.verify_aws.account import TAG, Account, Network, Refusal
from plungepool_toolkit.commands.verify_aws.probe.database import SUSPECTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

    from rich.console import Console

    from plungepool_toolkit.commands.verify_aws.prices import Mode

_PROBE = Path(__file__).with_name("probe")
_USER = "plungepool_app"
_PORT = 5432
_OF_EXPRESS = re.compile("Express|InternetAccessGateway|VPCNetworking")
_REASON = re.compile(r"Reason:\s*(.*)")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


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
        self._account, self._folder, self._sam, self.mode = account, folder, sam, mode
        self._functions: dict[str, str] = {}
        self._proxy = ""
        self._cluster: dict[str, Any] = {}
        self._shutdown_began = 0.0

    def deploy(self, network: Network, architecture: str = "arm64") -> None:
        """
        Build and deploy the application, then the probes beside it. Blocks: 20 to 30 minutes on AWS; 10 with express.
        """
        account, run = self._account, self.name
        account.make_bucket(run)
        if self.mode == "express":
            self._say("creating a cluster with express configuration")
            self._cluster = account.make_express_cluster(run)
        with tempfile.TemporaryDirectory() as scratch:
            build = Path(scratch, "build")
            config = Path(scratch, "samconfig.toml")
            config.write_text("version = 0.1\n")  # the repository's own would decide for us
            self._say("building the application")
            account.sam(self._sam, "build", "--config-file", config, "--build-dir", build, cwd=self._folder)
            how_long = "5" if self.mode == "express" else "20"
            self._say(f"deploying it with its database: {how_long} minutes are usual")
            self._deploy_stack(run, build / "template.yaml", config, {
                **_database_parameters(self.mode, self._cluster, network),
                "OrdersConcurrency": "0",  # a new account has none to reserve
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
            if name == "CheckDatabaseFunction" or name.removesuffix("Logs").endswith("Probe")
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
        if self.mode == "express":
            return {
                "LayerArn": account.outputs(self.name)["LayerArn"],
                "Host": self._cluster["Endpoint"],
                "DirectHost": self._cluster["Endpoint"],
                "Port": str(_PORT),
                "User": _USER,
                "ResourceId": self._cluster["DbClusterResourceId"],
                "DirectResourceId": self._cluster["DbClusterResourceId"],
                "Architecture": architecture,
            }
        resources = {logical: (kind, physical) for logical, kind, physical in account.resources(self.name)}
        database = account.outputs(resources["DemoDatabase"][1])
        rds = account.client("rds")
        if self.mode == "aurora":
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
        self._ask(evidence, "snapshot", "SnapshotProbe", {"registration": True})
        self._probe(evidence, "prepare", {})
        if self.mode == "express":
            self._look_at_gateway(evidence)
        else:
            self._look_at_proxy(evidence, patience_s)
        if shutdown is not None:
            evidence["shutdown"] = shutdown | self._await_sigterm(patience_s)
        if "snapshot" in evidence:
            evidence["snapshot"] |= self._sigterm_so_far("SnapshotProbeLogs", began)
        if self.mode != "express":
            with self._tolerated("logs of the proxy"):
                self._add_reasons(evidence, began)
            with self._tolerated("metrics"):
                evidence["metrics"] = _metrics(self._account, self._proxy, began)
        return evidence

    def _look_at_gateway(self, evidence: dict[str, Any]) -> None:
        kept = (str, bool, int, float)
        evidence["cluster"] = {name: value for name, value in self._cluster.items() if isinstance(value, kept)}
        self._look_at_way(evidence, "DIRECT_", "direct")
        self._probe(evidence, "session direct", {"prefix": "DIRECT_"})
        self._probe(evidence, "rate", {})
        self._probe(evidence, "capacity", {})
        with self._tolerated("schema"):
            evidence["schema"] = _schema(self._account)

    def _look_at_proxy(self, evidence: dict[str, Any], patience_s: float) -> None:
        for suspect in SUSPECTS:
            self._probe(evidence, f"pinning {suspect}", {"suspect": suspect})
        self._probe(evidence, "split", {})
        self._look_at_way(evidence, "", "proxy")
        self._look_at_way(evidence, "DIRECT_", "direct")
        self._probe(evidence, "session proxy", {})
        self._probe(evidence, "rate", {})
        with self._tolerated("borrow"):
            self._narrow_proxy()
            time.sleep(min(60.0, patience_s / 10))  # nothing tells when a proxy has taken it up
            self._probe(evidence, "borrow", {})

    def _look_at_way(self, evidence: dict[str, Any], prefix: str, place: str) -> None:
        for probe in ("startup", "refusals", "tls", "waits"):
            self._probe(evidence, f"{probe} {place}", {"prefix": prefix})

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
        with urllib.request.urlopen(url, timeout=20) as response:
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

    def _sigterm_so_far(self, group: str, began: float) -> dict[str, Any]:
        """Look once into a log for SIGTERM; nobody says when Lambda ends an environment that was restored."""
        found = {"sigterm": False, "waited_s": time.time() - began}
        with self._tolerated("the log of a restored environment"):
            events = self._account.client("logs").filter_log_events(
                logGroupName=self._functions[group], filterPattern="SIGTERM"
            )["events"]
            found["sigterm"] = bool(events)
        return found

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
        self.console.print("[red bold]This is left, and still costs money:[/]")
        for what in left:
            self.console.print(f"  {escape(what)}", highlight=False)
        self.console.print(f"Try again: plungepool verify-aws --delete {self.name}")
        return False

    def _say(self, what: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')} {escape(what)}", highlight=False)


def _database_parameters(mode: Mode, cluster: Mapping[str, Any], network: Network) -> dict[str, str]:
    """Return the parameters of the application that say which database it has."""
    if mode == "express":
        return {
            "DatabaseMode": "existing",
            "Auth": "iam",
            "Host": cluster["Endpoint"],
            "ResourceId": cluster["DbClusterResourceId"],
            "AdminUser": cluster["MasterUsername"],
        }
    return {
        "DatabaseMode": mode,
        "Endpoint": "proxy",
        "ProxyAuth": "iam",
        "ProtectDatabase": "false",
        "FinalSnapshot": "false",
        "VpcId": network.vpc_id,
        "SubnetIds": ",".join(network.subnet_ids),
        "RouteTableIds": ",".join(network.route_table_ids),
    }


def _schema(account: Account) -> dict[str, list[str]]:
    """Ask CloudFormation for the properties of a cluster that an express configuration would need."""
    client = account.client("cloudformation")
    said = client.describe_type(Type="RESOURCE", TypeName="AWS::RDS::DBCluster")["Schema"]
    names = json.loads(said)["properties"]
    return {"properties": sorted(name for name in names if _OF_EXPRESS.search(name))}


def _metrics(account: Account, proxy: str, began: float) -> dict[str, float]:
    client = account.client("cloudwatch")
    found = {}
    for name in ("DatabaseConnectionsCurrentlySessionPinned", "MaxDatabaseConnectionsAllowed"):
        # Some are kept by proxy, some by its target too; which is not documented for each.
        of_proxy = [{"Name": "ProxyName", "Value": proxy}]
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


def _certificates(text: str) -> set[str]:
    return {"".join(body.split()) for body in _PEM.findall(text)}


@contextlib.contextmanager
def _stubborn(console: Console) -> Iterator[None]:
    """Let the first interrupt pass with a warning; the second one interrupts."""

    def warn(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.print(
            "[yellow]Still deleting: what is left would continue to cost money. Press Ctrl-C again to leave it.[/]"
        )

    before = signal.signal(signal.SIGINT, warn)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
