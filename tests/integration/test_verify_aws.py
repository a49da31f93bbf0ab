"""
`plungepool verify-aws` as far as it goes without an account: its probes against the stand-ins, over real sockets and a
real PostgreSQL, and its deployment and deletion against moto, whose CloudFormation makes and deletes real entries.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.client import BaseClient
from moto import mock_aws
from rich.console import Console

from plungepool import Settings
from plungepool_toolkit.commands.console import interrupt_on
from plungepool_toolkit.commands.verify_aws import carry_out
from plungepool_toolkit.commands.verify_aws.account import NO_NETWORK, TAG, Account, Refusal
from plungepool_toolkit.commands.verify_aws.probe import database as probe
from plungepool_toolkit.commands.verify_aws.verification import Verification
from plungepool_toolkit.environment import Environment
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import Credential, RdsProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from plungepool_toolkit.commands.verify_aws.prices import Mode

ROOT = Path(__file__).parents[2]
PROBE = Path(probe.__file__).parent
REGION = "eu-west-1"
RUN = f"{TAG}-0123abcd"
SIGNER = Credential.temporary()
# The runtime client leaves its main thread free for signals from Python 3.12 on (awslambdaric#105).
HEARS_SIGTERM = sys.version_info >= (3, 12)


@pytest.fixture(scope="module")
def cloud() -> Iterator[tuple[Postgres, RdsProxy]]:
    """A database with TLS and the stand-in for RDS Proxy before it, with five connections."""
    with Postgres({"max_connections": 30}, tls=True, authentication="trust") as server:
        server.execute("CREATE ROLE plungepool_app LOGIN")
        with RdsProxy(
            server, credentials=[SIGNER], region=REGION, max_database_connections=5, borrow_timeout_s=0.5
        ) as proxy:
            yield server, proxy


@pytest.fixture
def variables(cloud: tuple[Postgres, RdsProxy], monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe's variables, as template.yaml sets them, for the stand-ins."""
    server, proxy = cloud
    role = {"HOST": "localhost", "USER": "plungepool_app", "AUTH": "iam"}
    direct = {"PORT": str(server.port), "CA_FILE": str(server.ca_file)}
    of = {
        "": role | {"PORT": str(proxy.port), "CA_FILE": str(proxy.ca_file), "ENDPOINT": "proxy"},
        "DIRECT_": role | direct,
        "ADMIN_": {"HOST": "localhost", "USER": "postgres", "AUTH": "password", "PASSWORD": "none"} | direct,
    }
    for prefix, settings in of.items():
        for name, value in settings.items():
            monkeypatch.setenv(f"{prefix}PLUNGEPOOL_{name}", value)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SIGNER.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SIGNER.secret_access_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SIGNER.session_token or "")


def look(name: str, **arguments: Any) -> dict[str, Any]:
    """Run one probe as Lambda would: what it returns must be JSON."""
    return json.loads(json.dumps(probe.handler({"probe": name, **arguments}, None)))


PINS = {"SET", "SET LOCAL", "set_config, local", "nextval", "declared cursor", "over 16 KB", "named statement"}


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize("suspect", probe.SUSPECTS)
def test_probe_tells_what_pins(cloud: tuple[Postgres, RdsProxy], suspect: str) -> None:
    """By backend process ids alone the probe comes to what the stand-in counts: pinned, or not."""
    _server, proxy = cloud
    look("prepare")
    before = proxy.counters.pinned.total()
    found = look("pinning", suspect=suspect, others=4)
    assert found["pinned"] is (suspect in PINS), found
    assert proxy.counters.pinned.total() - before == (suspect in PINS)


@pytest.mark.usefixtures("variables")
def test_probe_sees_statements_split_over_connections() -> None:
    """
    Parse and Bind in two flights without a transaction reach different connections of the stand-in: wrong answers.
    """
    found = look("split", rounds=10)
    assert found["right"] + found["wrong"] + sum(found["refused"].values()) == 40
    assert found["wrong"] or found["refused"]


@pytest.mark.usefixtures("variables")
def test_probe_sees_how_connects_are_refused() -> None:
    """SQLSTATEs of start-up options, tokens and plain text, of proxy and database; and no token in what comes back."""
    options, direct = look("startup"), look("startup", prefix="DIRECT_")
    assert {name for name, found in options.items() if found.get("sqlstate") == "0A000"} == {
        "statement_timeout", "lock_timeout", "work_mem", "options -c",
    }  # fmt: skip
    assert {name: found["value"] for name, found in direct.items()}["statement_timeout"] == "4s"
    tokens = look("refusals")
    assert {name: found.get("sqlstate", found.get("value")) for name, found in tokens.items()} == {
        "a password": "28P01",
        "another user's token": "28P01",
        "another region's token": "28P01",
        "a token of an hour ago": "28P01",
        "a token of five minutes": "let in",
        "no TLS": "28000",
    }
    assert SIGNER.secret_access_key not in json.dumps(tokens)
    assert "X-Amz" not in json.dumps(tokens)


def shows(value: object) -> bool:
    """
    Say whether a crash reporter would show a key, a token or a password: by the repr, or by going through a mapping.
    """
    shown = repr(value) + (repr(dict(value)) if isinstance(value, Mapping) else "")
    marks = (SIGNER.secret_access_key, SIGNER.session_token or "-", "X-Amz-Signature=", "unmistakable")
    return any(mark in shown for mark in marks)


@pytest.mark.usefixtures("variables")
def test_no_line_of_the_probe_holds_a_secret_in_a_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that interrupts it anywhere shows no password, token or key to what prints the locals of each frame."""
    monkeypatch.setenv("ADMIN_PLUNGEPOOL_PASSWORD", "unmistakable")
    found: dict[str, None] = {}
    lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != probe.__file__:
            return None
        lines += 1
        for name, value in list(frame.f_locals.items()):
            if shows(value):
                found[f"{name} in {frame.f_code.co_name}"] = None
        return trace

    sys.settrace(trace)
    try:
        look("prepare")
        look("startup")
        look("refusals")
        look("refusals", prefix="DIRECT_")
        look("pinning", suspect="SET", others=1)
    finally:
        sys.settrace(None)
    assert lines > 100
    assert list(found) == []


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize("content", ['{"username": "app", "password": "unmistakable"', '["unmistakable"]', None])
def test_probe_tells_no_secret_that_it_cannot_read(content: str | None) -> None:
    """The administrator's secret may be no document of fields: its names are then unknown, and no error quotes it."""
    settings = Settings(host="localhost", auth="secret", secret_arn="admin", region=REGION)
    kind: dict[str, Any] = {"SecretString": content} if content is not None else {"SecretBinary": b"unmistakable"}
    with mock_aws():
        boto3.client("secretsmanager", region_name=REGION).create_secret(Name="admin", **kind)
        assert probe._secret_fields(settings) is None


@pytest.mark.usefixtures("variables")
def test_probe_exhausts_the_proxy() -> None:
    """With every connection of the proxy in a transaction the next one is refused, and the probe says how."""
    found = look("borrow")
    assert (found["held"], found["sqlstate"]) == (5, "08000")
    assert "acquire" in found["message"]


@pytest.mark.usefixtures("variables")
def test_probe_reads_certificates_limits_and_rates() -> None:
    """TLS versions and who is trusted, what the administrator reads, and connects a second."""
    assert look("tls")["versions"] == {"TLSv1.2": True, "TLSv1.3": True}
    assert look("tls", prefix="DIRECT_")["trusted_by"] == {"region": True, "amazon roots": False, "runtime": False}
    assert look("prepare")["limits"]["max_connections"] == "30"
    rate = look("rate", seconds=0.5, threads=2)
    assert rate["connects"] > 0
    assert rate["refused"] == {}


@pytest.mark.usefixtures("variables")
def test_probe_counts_waits() -> None:
    """
    The stand-in takes the password with the start-up message, and TLS only when it was asked for; a server before
    PostgreSQL 17 does as well, and one that trusts wants no password.
    """
    assert look("waits")["password ahead"] == {"value": "let in"}
    found = look("waits", prefix="DIRECT_")
    assert found["password ahead"]["sqlstate"] == "08P01"
    assert found["direct TLS"]["sqlstate"] == "none"
    assert "X-Amz" not in json.dumps(found)


@pytest.mark.usefixtures("variables")
def test_probe_sees_what_becomes_of_a_session() -> None:
    """A server cancels, serves by whom it announced and tells of the idle time-out; the stand-in does neither."""
    assert look("session", prefix="DIRECT_", sleep_s=2.0) == {
        "cancel": {"value": "cancelled"},
        "announced": {"value": "the process that serves"},
        "idle": {"sqlstate": "57P05", "message": "terminating connection due to idle-session timeout"},
    }
    found = look("session", sleep_s=0.5, patience_s=3.0)
    assert found["cancel"] == {"value": "ran to its end"}
    assert found["announced"] == {"value": "another process than the one that serves"}


@pytest.mark.usefixtures("variables")
def test_probe_holds_connections_until_one_is_refused(cloud: tuple[Postgres, RdsProxy]) -> None:
    """As many as there are, and how the next one is refused; or as many as were asked for."""
    server, _proxy = cloud
    assert look("capacity", most=3) == {"held": 3, "max_connections": "30"}
    server.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADMIN_PLUNGEPOOL_USER", "few")
        found = look("capacity", most=5)
    assert (found["held"], found["sqlstate"]) == (2, "53300")


def test_shutdown_probe_asks_for_its_registration() -> None:
    """In an environment that was not restored init's registration is known, and its connection is open."""
    with Environment(PROBE, "shutdown.handler") as environment:
        found = environment.invoke({"registration": True}).payload
    assert found["connection"] is True
    assert "Unknown" not in found["registration"]


def test_shutdown_probe_says_that_sigterm_came() -> None:
    """Under the real runtime client, with an extension that registers for no events, SIGTERM is written to the log."""
    with Environment(PROBE, "shutdown.handler") as environment:
        found = environment.invoke({})
        assert found.error is None, found
        assert found.payload["init_s"] > 0
        shutdown = environment.shutdown()
        log = environment.log
    assert shutdown is not None
    assert (shutdown.exit_code == 0) is HEARS_SIGTERM
    lines = [json.loads(line) for line in log if "plungepool_probe" in line]
    assert [line["plungepool_probe"]["seen"] for line in lines] == ["SIGTERM"] * HEARS_SIGTERM


DATABASE_STACK: dict[str, Any] = {
    "Resources": {
        "Instance": {
            "Type": "AWS::RDS::DBInstance",
            "Properties": {
                "DBInstanceIdentifier": "demo-database", "Engine": "postgres", "DBInstanceClass": "db.t4g.micro",
                "AllocatedStorage": "20",
                "MasterUsername": "postgres", "MasterUserPassword": "not-a-secret",
            },
        },
        # moto's CloudFormation makes no proxies; this leads to the one that `sam` below makes by RDS's own interface.
        "Proxy": {"Type": "AWS::SSM::Parameter", "Properties": {"Name": "proxy-one", "Type": "String", "Value": "-"}},
    },
    "Outputs": {
        "Host": {"Value": "proxy.example"},
        "AdminHost": {"Value": "database.example"},
        "ResourceId": {"Value": "prx-1"},
        "AdminSecretArn": {"Value": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:admin"},
    },
}  # fmt: skip


def function(role: str) -> dict[str, Any]:
    properties = {"Runtime": "python3.13", "Handler": "a.b", "Role": role, "Code": {"ZipFile": "def b(*_): pass"}}
    return {"Type": "AWS::Lambda::Function", "Properties": properties}


def application_stack(bucket: str, *, proxied: bool = True) -> dict[str, Any]:
    """What the test needs of template.yaml: the outputs and the nested stack, by the same names."""
    url = f"https://{bucket}.s3.amazonaws.com/database.json"
    database = {
        "DemoDatabase": {"Type": "AWS::CloudFormation::Stack", "Properties": {"TemplateURL": url}},
        "FunctionSecurityGroup": {
            "Type": "AWS::EC2::SecurityGroup",
            "Properties": {"GroupDescription": "functions"},
        },
    }
    alone = {"Orders": {"Type": "AWS::SQS::Queue"}}
    return {
        "Resources": database if proxied else alone,
        "Outputs": {"LayerArn": {"Value": "arn:layer:1"}, "CheckDatabaseFunction": {"Value": "check"}},
    }


def probe_stack(role: str) -> dict[str, Any]:
    return {
        "Resources": {
            "DatabaseProbe": function(role),
            "ShutdownProbe": function(role),
            "ShutdownProbeLogs": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": f"{RUN}-shutdown"}},
            "SnapshotProbeLogs": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": f"{RUN}-snapshot"}},
        },
        "Outputs": {
            **{name: {"Value": {"Ref": name}} for name in ("DatabaseProbe", "ShutdownProbe")},
            **{name: {"Value": {"Ref": name}} for name in ("ShutdownProbeLogs", "SnapshotProbeLogs")},
            "SnapshotProbe": {"Value": "restored"},
        },
    }


class LocalAccount(Account):
    """An account of moto's. `sam` deploys plain templates, and the probes run here, where the stand-ins are."""

    fails_at = ""
    deployed: dict[str, dict[str, str]]

    def sam(self, program: Path, *arguments: str | Path, cwd: Path) -> None:
        self.deployed = getattr(self, "deployed", {})
        given = [str(argument) for argument in arguments]
        if given[0] == "build":
            return
        stack = given[given.index("--stack-name") + 1]
        bucket = given[given.index("--s3-bucket") + 1]
        overrides = given[given.index("--parameter-overrides") + 1 :]
        self.deployed[stack] = dict(pair.split("=", 1) for pair in overrides)
        self.client("s3").put_object(Bucket=bucket, Key="database.json", Body=json.dumps(DATABASE_STACK).encode())
        iam = self.client("iam")
        if stack.endswith("-probe"):
            template = probe_stack(iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"])
        elif "SubnetIds" not in self.deployed[stack]:
            template = application_stack(bucket, proxied=False)
        else:
            template = application_stack(bucket)
            subnets = self.deployed[stack]["SubnetIds"].split(",")
            self.client("rds").create_db_proxy(
                DBProxyName="proxy-one", EngineFamily="POSTGRESQL", RoleArn="arn:aws:iam::123456789012:role/r",
                VpcSubnetIds=subnets,
                Auth=[{"AuthScheme": "SECRETS", "SecretArn": "arn:aws:secretsmanager:::one"}],
            )  # fmt: skip
        self.client("cloudformation").create_stack(
            StackName=stack, TemplateBody=json.dumps(template), Tags=[{"Key": TAG, "Value": bucket}]
        )
        if stack == self.fails_at:
            raise Refusal("`sam deploy` failed with 1; what it wrote is above")

    def invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        if function == "check":
            return {"ok": True, "checks": [{"name": "TCP", "state": "ok", "found": "", "cure": ""}]}
        if event.get("suspect"):
            # As CloudWatch keeps it, by proxy and target group; nobody measures the stand-in, so a 1 will do.
            dimensions = [{"Name": "ProxyName", "Value": "proxy-one"}, {"Name": "TargetGroup", "Value": "default"}]
            metric = {"MetricName": "DatabaseConnectionsCurrentlySessionPinned", "Dimensions": dimensions, "Value": 1.0}
            self.client("cloudwatch").put_metric_data(Namespace="AWS/RDS", MetricData=[metric])
        if "probe" in event:
            limits = {
                "pinning": {"others": 4},
                "split": {"rounds": 5},
                "rate": {"seconds": 0.3, "threads": 2},
                "session": {"sleep_s": 1.0, "patience_s": 3.0},
                "capacity": {"most": 3},
            }
            arguments = {key: value for key, value in event.items() if key != "probe"}
            return look(event["probe"], **arguments, **limits.get(event["probe"], {}))
        with Environment(PROBE, "shutdown.handler") as environment:
            answer = environment.invoke(dict(event)).payload
            if function == "restored":
                return answer
            environment.shutdown()
            log = environment.log
        logs = self.client("logs")
        group = f"{RUN}-shutdown"
        logs.create_log_stream(logGroupName=group, logStreamName="one")
        events = [{"timestamp": 1_795_000_000_000, "message": line} for line in log]
        if events:
            logs.put_log_events(logGroupName=group, logStreamName="one", logEvents=events)
        return answer


@pytest.fixture
def account(variables: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalAccount]:
    """An account that holds a function of somebody else's, which must be there at the end."""
    with mock_aws():
        # moto has credentials of its own; the probes sign with those that the stand-in knows.
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", SIGNER.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SIGNER.secret_access_key)
        monkeypatch.setenv("AWS_SESSION_TOKEN", SIGNER.session_token or "")
        account = LocalAccount(REGION, poll_s=0.01)
        account.client("s3").create_bucket(
            Bucket="somebody-elses", CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        account.client("logs").create_log_group(logGroupName="/aws/rds/proxy/somebody-elses")
        yield account


def run_of(account: Account, mode: Mode = "instance") -> tuple[Verification, Console]:
    console = Console(width=250, record=True, file=io.StringIO())
    run = Verification(account, RUN, console, folder=ROOT, sam=Path("sam"), mode=mode)
    run.bundle_url = (ROOT / "layers/plungepool/plungepool/certificates").as_uri() + "/{region}.pem"
    return run, console


def left(account: Account) -> dict[str, list[str]]:
    """What is in the account."""
    stacks = account.client("cloudformation").describe_stacks()["Stacks"]
    return {
        "stacks": [stack["StackName"] for stack in stacks],
        "buckets": [bucket["Name"] for bucket in account.client("s3").list_buckets()["Buckets"]],
        "logs": [group["logGroupName"] for group in account.client("logs").describe_log_groups()["logGroups"]],
        "functions": [one["FunctionName"] for one in account.client("lambda").list_functions()["Functions"]],
        "databases": [
            one["DBInstanceIdentifier"] for one in account.client("rds").describe_db_instances()["DBInstances"]
        ],
        "clusters": [one["DBClusterIdentifier"] for one in account.client("rds").describe_db_clusters()["DBClusters"]],
    }


UNTOUCHED = {"stacks": [], "buckets": ["somebody-elses"], "logs": ["/aws/rds/proxy/somebody-elses"], "functions": [],
"databases": [], "clusters": []}  # fmt: skip


def test_a_whole_run(account: LocalAccount, tmp_path: Path) -> None:
    """
    Deployed, looked at through the stand-ins, shown, written down, deleted; nobody else's things are touched, nothing
    secret is told.
    """
    run, console = run_of(account)
    network = account.network(None, ())
    code = carry_out(run, network, "arm64", tmp_path / "findings.json", patience_s=0.1)
    text = console.export_text()
    written = json.loads((tmp_path / "findings.json").read_text())
    verdicts = {finding["fact"]: finding["verdict"] for finding in written["findings"]}
    for fact in ("control-pins", "set-local", "pipelined-transaction", "named-statement", "startup-options",
                 "token-refused-proxy", "borrow-timeout", "regional-bundle", "check-database"):  # fmt: skip
        assert verdicts[fact] == "as expected", (fact, written["findings"], text)
    assert verdicts["sigterm"] == ("as expected" if HEARS_SIGTERM else "otherwise")
    # The stand-ins' certificates are not Amazon's, and nothing measures this proxy's connections: that is said, too.
    assert verdicts["proxy-certificate"] == "otherwise"
    assert verdicts["proxy-capacity"] == "not seen"
    [pinned] = [finding for finding in written["findings"] if finding["fact"] == "pinned-metric"]
    assert (pinned["verdict"], pinned["seen"]) == ("measured", "at most 1")
    assert code == 1
    assert "Everything is deleted" in text
    assert left(account) == UNTOUCHED
    for secret in (SIGNER.secret_access_key, SIGNER.session_token or "-", "X-Amz-Signature"):
        assert secret not in text
        assert secret not in json.dumps(written)
    groups = account.client("rds").describe_db_proxy_target_groups(DBProxyName="proxy-one")["TargetGroups"]
    assert groups[0]["ConnectionPoolConfig"]["MaxConnectionsPercent"] == 1
    assert account.deployed[RUN]["ProtectDatabase"] == "false"
    assert account.deployed[f"{RUN}-probe"]["DirectHost"] == "database.example"
    assert set(account.deployed[f"{RUN}-probe"]) <= parameters(PROBE / "template.yaml")
    assert set(account.deployed[RUN]) <= parameters(ROOT / "template.yaml")


@pytest.fixture
def express(account: LocalAccount, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """
    Let moto, which knows no express configuration, make a cluster with one instance, and say of it what RDS does;
    return what it was asked to make.
    """
    asked: list[dict[str, Any]] = []
    call = BaseClient._make_api_call  # type: ignore[attr-defined]

    def answer(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
        if operation == "CreateDBCluster":
            asked.append(parameters)
            known = {key: value for key, value in parameters.items() if key != "WithExpressConfiguration"}
            made = call(client, operation, known | {"MasterUsername": "postgres", "MasterUserPassword": "not-a-secret"})
            client.create_db_instance(
                DBInstanceIdentifier=f"{RUN}-instance-1", DBClusterIdentifier=RUN, Engine="aurora-postgresql",
                DBInstanceClass="db.serverless",
            )  # fmt: skip
            return made
        if operation == "DescribeType":
            return {"Schema": json.dumps({"properties": {"Engine": {}, "EnableIAMDatabaseAuthentication": {}}})}
        found = call(client, operation, parameters)
        if operation == "DescribeDBClusters":
            for cluster in found["DBClusters"]:
                cluster |= {"InternetAccessGatewayEnabled": True, "VPCNetworkingEnabled": False}
                cluster |= {"IAMDatabaseAuthenticationEnabled": True}
        return found

    monkeypatch.setattr(BaseClient, "_make_api_call", answer)
    return asked


def test_a_whole_run_of_express(account: LocalAccount, express: list[dict[str, Any]], tmp_path: Path) -> None:
    """
    The cluster is made by RDS's own interface, the template takes it as one that is there, the gateway's questions are
    asked; stacks, instance and cluster are deleted.
    """
    run, console = run_of(account, "express")
    carry_out(run, NO_NETWORK, "arm64", tmp_path / "findings.json", patience_s=0.1)
    text = console.export_text()
    [asked] = express
    assert asked["WithExpressConfiguration"] is True
    assert asked["Tags"] == [{"Key": TAG, "Value": RUN}]
    verdicts = {
        finding["fact"]: finding["verdict"]
        for finding in json.loads((tmp_path / "findings.json").read_text())["findings"]
    }
    for fact in (
        "gateway",
        "gateway-cancel",
        "gateway-idle",
        "gateway-tls",
        "cloudformation-express",
        "regional-bundle",
    ):
        assert verdicts[fact] == "as expected", (fact, text)
    assert verdicts["gateway-connections"] == "measured"
    # The stand-in's certificate is not Amazon's, and its server trusts whoever comes.
    assert verdicts["gateway-certificate"] == "otherwise"
    assert verdicts["gateway-password"] == "otherwise"
    assert "not seen" not in {verdict for fact, verdict in verdicts.items() if fact.startswith("gateway")}
    given = account.deployed[RUN]
    assert (given["DatabaseMode"], given["Auth"], given["AdminUser"]) == ("existing", "iam", "postgres")
    assert not given.keys() & {"VpcId", "SubnetIds", "Endpoint", "AdminPassword"}
    assert "AdminSecretArn" not in account.deployed[f"{RUN}-probe"]
    for stack, template in ((RUN, ROOT / "template.yaml"), (f"{RUN}-probe", PROBE / "template.yaml")):
        assert set(account.deployed[stack]) <= parameters(template)
    assert "Everything is deleted" in text
    assert left(account) == UNTOUCHED


def test_cluster_that_does_not_go_is_named(
    account: LocalAccount, express: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would cost is told with the command that deletes it, and again is enough."""
    run, console = run_of(account, "express")
    run.deploy(NO_NETWORK)
    with monkeypatch.context() as patched:
        patched.setattr(account, "delete", partial(account.delete, patience_s=0.0))
        assert run.delete() is False
    assert f"aws rds delete-db-cluster --db-cluster-identifier {RUN} --skip-final-snapshot" in console.export_text()
    assert run.delete() is True
    assert left(account) == UNTOUCHED


def parameters(template: Path) -> set[str]:
    """Return the names of a template's parameters: the two-space indented keys of their section."""
    lines = template.read_text().partition("\nParameters:\n")[2].splitlines()
    names = set()
    for line in lines:
        if line and not line.startswith(" "):
            break
        if line.startswith("  ") and not line.startswith("   "):
            names.add(line.strip().partition(":")[0])
    return names


@pytest.mark.parametrize("stack", [RUN, f"{RUN}-probe"])
def test_deletes_after_a_failed_deployment(account: LocalAccount, stack: str) -> None:
    """A deployment that fails half way leaves nothing, and its failure is said."""
    account.fails_at = stack
    run, console = run_of(account)
    assert carry_out(run, account.network(None, ()), "arm64", None) == 1
    assert "`sam deploy` failed" in console.export_text()
    assert left(account) == UNTOUCHED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_deletes_after_an_interrupt(account: LocalAccount, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C, or SIGTERM, while the probes run: everything is deleted, and the exit code says interrupted."""
    before = signal.getsignal(signal.SIGTERM)
    interrupt_on(signal.SIGINT, signal.SIGTERM)
    try:
        monkeypatch.setattr(account, "invoke", lambda *_: os.kill(os.getpid(), number))
        run, _console = run_of(account)
        assert carry_out(run, account.network(None, ()), "arm64", None) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left(account) == UNTOUCHED


def test_second_interrupt_ends_the_deletion(account: LocalAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first Ctrl-C while it deletes is answered with a warning; the second one is obeyed."""
    run, console = run_of(account)
    pressed = []

    def press(*_: object, **__: object) -> list[str]:
        for _press in range(2):
            pressed.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return []

    monkeypatch.setattr(account, "delete", press)
    with pytest.raises(KeyboardInterrupt):
        run.delete()
    assert len(pressed) == 2
    assert "Still deleting" in console.export_text()


def test_says_what_is_left(account: LocalAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Stacks that do not go are named with the command that deletes them, the rest is deleted all the same, and again is
    enough.
    """
    run, console = run_of(account)
    run.deploy(account.network(None, ()))
    with monkeypatch.context() as patched:
        patched.setattr(account, "delete", partial(account.delete, patience_s=0.0))
        assert run.delete() is False
    text = console.export_text()
    for stack in (RUN, f"{RUN}-probe"):
        assert f"aws cloudformation delete-stack --stack-name {stack}" in text
    assert f"verify-aws --delete {RUN}" in text
    assert left(account)["stacks"]
    assert left(account)["buckets"] == ["somebody-elses"]
    assert run.delete() is True
    assert left(account) == UNTOUCHED


def test_deletes_the_logs_that_services_leave(account: LocalAccount) -> None:
    """Log groups that Lambda and RDS made for the run's resources, and its layer, are deleted; those of others stay."""
    run, _console = run_of(account)
    run.deploy(account.network(None, ()))
    layers = account.client("lambda")
    for name in (f"{RUN}-plungepool", "somebody-elses"):
        layers.publish_layer_version(LayerName=name, Content={"ZipFile": b"none"})
    logs = account.client("logs")
    for _logical, kind, physical in account.resources(RUN):
        if kind == "AWS::RDS::DBInstance":
            logs.create_log_group(logGroupName=f"/aws/rds/instance/{physical}/postgresql")
    for _logical, kind, physical in account.resources(f"{RUN}-probe"):
        if kind == "AWS::Lambda::Function":
            logs.create_log_group(logGroupName=f"/aws/lambda/{physical}")
    assert len(left(account)["logs"]) == 6
    assert run.delete() is True
    assert left(account) == UNTOUCHED
    assert [layer["LayerName"] for layer in layers.list_layers()["Layers"]] == ["somebody-elses"]


def test_sam_that_fails_is_a_refusal(account: LocalAccount, tmp_path: Path) -> None:
    """The SAM CLI is run with the run's region; its failure is a refusal that names the command."""
    sam = tmp_path / "sam"
    sam.write_text(f'#!/bin/sh\necho "$1 $AWS_REGION" > {tmp_path}/said\n[ "$1" = build ]\n')
    sam.chmod(0o755)
    Account.sam(account, sam, "build", cwd=tmp_path)
    assert (tmp_path / "said").read_text() == f"build {REGION}\n"
    with pytest.raises(Refusal, match="`sam deploy` failed with 1"):
        Account.sam(account, sam, "deploy", cwd=tmp_path)
