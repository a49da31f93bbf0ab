"""The application deployed from end to end to an AWS emulator on this machine, in all three database modes."""

import hashlib
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from elsewhere import wait_until

from plungepool_toolkit.network import free_port
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.processes import GuardedProcess
from plungepool_toolkit.rds_proxy import Credential, RdsProxy

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)  # a build or a deployment is in the set-up of a test
SAM = (ROOT / ".venv-sam" / "bin" / "python", Path(__file__).with_name("prompt_sam.py"))
MINISTACK = ROOT / ".venv-ministack"
REGION, ACCOUNT = "eu-west-1", "000000000000"
MODES = ("existing", "aurora", "instance")


@dataclass(frozen=True)
class Cloud:
    """The emulator, and the database and the proxy that stand behind what it pretends to have."""

    url: str
    database: Postgres
    proxy: RdsProxy
    environment: dict[str, str]

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=ACCOUNT,
            aws_secret_access_key="test",
        )

    def sam(self, *arguments: str | Path, timeout: float = 240) -> str:
        result = subprocess.run(
            [*SAM, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout + result.stderr

    def stacks(self) -> set[str]:
        described = self.client("cloudformation").describe_stacks()["Stacks"]
        return {stack["StackName"] for stack in described if stack["StackStatus"] != "DELETE_COMPLETE"}

    def outputs(self, stack: str) -> dict[str, str]:
        [described] = self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
        assert described["StackStatus"].endswith("_COMPLETE"), described["StackStatus"]
        return {output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]}


@pytest.fixture(scope="module")
def cloud(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """An emulated AWS, with a real PostgreSQL under TLS, and the RDS Proxy stand-in before it, as its databases."""
    if not (MINISTACK / "bin" / "ministack").exists():
        command = [ROOT / "toolkit" / "set-up", "venv", MINISTACK.name, "requirements/ministack.txt"]
        subprocess.run(command, check=True)
    scratch = tmp_path_factory.mktemp("cloud")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with Postgres(tls=True, authentication="trust") as database:
        proxy = RdsProxy(database, users={"app_instance": None}, host="127.0.0.2", port=database.port)
        with proxy:
            trusted = scratch / "ca.pem"
            trusted.write_text(database.ca_file.read_text() + proxy.ca_file.read_text())
            clean = {
                key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SAM_", "PLUNGEPOOL_"))
            }
            emulator = clean | {
                "BIND_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(port),
                "MINISTACK_HOST": "127.0.0.1",
                "MINISTACK_REGION": REGION,
                # Signatures are verified, and IAM decides by the policies that the template gives.
                "AUTH": "true",
                "IOT_MTLS_ENABLED": "0",
                "SFTP_ENABLED": "0",
                "PYTHONDONTWRITEBYTECODE": "1",
                "TMPDIR": str(scratch),
                "DATABASE_HOST": database.host,
                "PROXY_HOST": proxy.host,
                # What the functions inherit from the emulator: no public authority signs for a machine's own servers.
                "PLUNGEPOOL_CA_FILE": str(trusted),
            }
            log = scratch / "emulator.log"
            # Guarded: it ends with this process, however that ends.
            process = GuardedProcess(
                [MINISTACK / "bin" / "python", Path(__file__).with_name("emulator.py")],
                output=log,
                environment=emulator,
                cwd=scratch,
                stop=[("SIGTERM", 15.0)],
            )
            try:
                wait_until(lambda: answers(f"{url}/_ministack/health"), f"see {log}")
                environment = clean | {
                    "AWS_ACCESS_KEY_ID": ACCOUNT,
                    "AWS_SECRET_ACCESS_KEY": "test",
                    "AWS_DEFAULT_REGION": REGION,
                    "AWS_ENDPOINT_URL": url,
                    "SAM_CLI_TELEMETRY": "0",
                }
                yield Cloud(url, database, proxy, environment)
            finally:
                process.stop()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@dataclass(frozen=True)
class Shop:
    """The application as deployed in one mode; `deploy` does the same again."""

    cloud: Cloud
    mode: str
    deploy: Callable[[], str]

    @property
    def stack(self) -> str:
        return f"shop-{self.mode}"

    @property
    def outputs(self) -> dict[str, str]:
        return self.cloud.outputs(self.stack)

    def sql(self, statement: str) -> list[list[Any]]:
        return self.cloud.database.execute(statement, database=f"shop_{self.mode}")

    def request(self, method: str, path: str = "/orders", body: object = None, signed: bool = True) -> tuple[int, Any]:
        """Send a request to the API, as deployed, over HTTP; return the status and the document."""
        api_id = self.outputs["ApiUrl"].removeprefix("https://").partition(".")[0]
        data = json.dumps(body).encode() if body else None
        # The emulator's name for the API.
        unsigned = {"Host": f"{api_id}.execute-api.127.0.0.1"}
        message = AWSRequest(method, f"{self.cloud.url}{path}", data=data, headers=unsigned)
        if signed:
            SigV4Auth(Credentials(ACCOUNT, "test"), "execute-api", REGION).add_auth(message)
        request = urllib.request.Request(message.url, data, dict(message.headers), method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")


@pytest.fixture(scope="module", params=MODES)
def shop(request: pytest.FixtureRequest, cloud: Cloud, built: Path) -> Iterator[Shop]:
    """The application deployed in each mode. At the end it is deleted, and then nothing of it is left."""
    mode = request.param
    ec2 = cloud.client("ec2")
    subnets = ec2.describe_subnets()["Subnets"][:2]
    network = [f"VpcId={subnets[0]['VpcId']}", f"SubnetIds={','.join(subnet['SubnetId'] for subnet in subnets)}"]
    parameters = {
        "existing": [
            f"Host={cloud.database.host}", "Auth=password", "Password=app", "AdminUser=postgres", "AdminPassword=admin",
        ],
        "aurora": [*network, "RouteTableIds=" + ec2.describe_route_tables()["RouteTables"][0]["RouteTableId"]],
        "instance": [*network, "Endpoint=proxy", "ProxyAuth=secret", "FinalSnapshot=false"],
    }[mode]  # fmt: skip
    overrides = [
        f"DatabaseMode={mode}", f"Database=shop_{mode}", f"User=app_{mode}", f"Port={cloud.database.port}",
        "ProtectDatabase=false", "ConnectionLimit=7", "OrdersConcurrency=2", "WorkersConcurrency=4", *parameters,
    ]  # fmt: skip
    arguments = [
        "deploy", "--template-file", built / "template.yaml", "--stack-name", f"shop-{mode}", "--resolve-s3",
        "--capabilities", "CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND", "--no-fail-on-empty-changeset",
        "--no-confirm-changeset", "--no-progressbar", "--parameter-overrides", *overrides,
    ]  # fmt: skip
    cloud.database.execute(f"CREATE DATABASE shop_{mode}")
    before = inventory(cloud)
    cloud.sam(*arguments)
    cloud.proxy.credentials = tuple(role_credentials(cloud))
    yield Shop(cloud, mode, lambda: cloud.sam(*arguments))
    cloud.sam("delete", "--stack-name", f"shop-{mode}", "--no-prompts")
    assert [name for name in cloud.stacks() if name.startswith("shop")] == []
    # The layer's version is meant to stay, for other stacks. (The emulator takes no final snapshot of a nested
    # database.)
    kept = {"layers": sorted([*before["layers"], f"shop-{mode}-plungepool"])}
    assert inventory(cloud) == before | kept


def role_credentials(cloud: Cloud) -> Iterator[Credential]:
    """Yield the credentials of each function's role, which the emulator derives from the invoked ARN and the role's."""
    for function in cloud.client("lambda").list_functions()["Functions"]:
        arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function['FunctionName']}"
        for invoked in (arn, f"{arn}:1", f"{arn}:live"):
            digest = hashlib.sha256(f"{invoked}:{function['Role']}".encode()).hexdigest()
            yield Credential(
                access_key_id=f"ASIA{digest[:16].upper()}",
                secret_access_key=hashlib.sha256(f"secret:{digest}".encode()).hexdigest(),
                session_token=hashlib.sha256(f"token:{digest}".encode()).hexdigest(),
            )


def inventory(cloud: Cloud) -> dict[str, list[str]]:
    """Return what lies in the account that a stack of ours may make."""
    return {
        "functions": sorted(of["FunctionName"] for of in cloud.client("lambda").list_functions()["Functions"]),
        "layers": sorted(of["LayerName"] for of in cloud.client("lambda").list_layers()["Layers"]),
        "queues": sorted(cloud.client("sqs").list_queues().get("QueueUrls", [])),
        "roles": sorted(of["RoleName"] for of in cloud.client("iam").list_roles()["Roles"]),
        "policies": sorted(of["PolicyName"] for of in cloud.client("iam").list_policies(Scope="Local")["Policies"]),
        "secrets": sorted(of["Name"] for of in cloud.client("secretsmanager").list_secrets()["SecretList"]),
        "clusters": sorted(
            of["DBClusterIdentifier"] for of in cloud.client("rds").describe_db_clusters()["DBClusters"]
        ),
        "instances": sorted(
            of["DBInstanceIdentifier"] for of in cloud.client("rds").describe_db_instances()["DBInstances"]
        ),
        "alarms": sorted(of["AlarmName"] for of in cloud.client("cloudwatch").describe_alarms()["MetricAlarms"]),
        "logs": sorted(
            of["logGroupName"]
            for of in cloud.client("logs").describe_log_groups(logGroupNamePrefix="/aws/rds")["logGroups"]
        ),
        "proxies": sorted(of["DBProxyName"] for of in cloud.client("rds").describe_db_proxies()["DBProxies"]),
        "groups": sorted(of["GroupId"] for of in cloud.client("ec2").describe_security_groups()["SecurityGroups"]),
        "endpoints": sorted(of["VpcEndpointId"] for of in cloud.client("ec2").describe_vpc_endpoints()["VpcEndpoints"]),
        "parameters": sorted(of["Name"] for of in cloud.client("ssm").describe_parameters()["Parameters"]),
        "schedules": sorted(of["Name"] for of in cloud.client("scheduler").list_schedules()["Schedules"]),
        "apis": sorted(of["ApiId"] for of in cloud.client("apigatewayv2").get_apis()["Items"]),
    }


def test_database_is_prepared_at_deploy(shop: Shop) -> None:
    """The custom resource ran prepare_database: the schema is there, and the role with the limit of the parameter."""
    assert shop.sql("SELECT max(version) FROM shop.migrations") == [[4]]
    query = f"SELECT rolconnlimit, rolsuper FROM pg_roles WHERE rolname = 'app_{shop.mode}'"
    assert shop.sql(query) == [[7, False]]


def test_api_answers_through_http(shop: Shop) -> None:
    """An order is placed, read and listed through the deployed API; one that is wrong is refused."""
    prepared = json.loads((ROOT / "events" / "prepare_database.json").read_text())
    prepared |= {"role_name": f"app_{shop.mode}", "connection_limit": 7}
    answer = shop.cloud.client("lambda").invoke(
        FunctionName=shop.outputs["PrepareDatabaseFunction"], Payload=json.dumps(prepared)
    )
    assert "FunctionError" not in answer, answer["Payload"].read()
    order = {
        "customer_id": "00000000-0000-4000-8000-0000000000c1",
        "lines": [{"sku": "TOWEL", "quantity": 2}],
    }
    status, placed = shop.request("POST", body=order)
    assert (status, placed.get("total")) == (201, "39.80"), placed
    status, found = shop.request("GET", f"/orders/{placed['id']}")
    assert (status, found["id"]) == (200, placed["id"])
    status, listed = shop.request("GET")
    assert status == 200
    assert placed["id"] in {order["id"] for order in listed["orders"]}
    assert shop.request("POST", body={"lines": []})[0] == 400
    assert shop.request("GET", "/orders/00000000-0000-4000-8000-00000000ffff")[0] == 404


def test_api_refuses_who_does_not_sign(shop: Shop) -> None:
    """A request without a signature is refused before any function runs: a deployment is not open to everybody."""
    assert shop.request("GET", signed=False)[0] == 403


def test_connections_are_counted_where_they_belong(shop: Shop) -> None:
    """The functions reach the database as deployed: through the proxy in the one mode, directly in the others."""
    assert shop.request("GET")[0] == 200
    connected = shop.sql(f"SELECT count(*) FROM pg_stat_activity WHERE usename = 'app_{shop.mode}'")[0][0]
    assert 1 <= connected <= 7
    assert (shop.cloud.proxy.counters.accepted > 0) == (shop.mode == "instance")


def test_bad_message_alone_stays(shop: Shop) -> None:
    """Of a batch the good messages are done and gone; the one that names no order stays in the queue."""
    sqs = shop.cloud.client("sqs")
    orders = shop.sql("SELECT CAST(id AS text) FROM shop.orders WHERE status = 'placed' ORDER BY id LIMIT 2")
    bodies = [json.dumps({"order_id": order_id}) for (order_id,) in orders]
    bodies.insert(1, json.dumps({"order_id": "00000000-0000-4000-8000-00000000ffff"}))
    entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(bodies)]
    sqs.send_message_batch(QueueUrl=shop.outputs["QueueUrl"], Entries=entries)
    ids = ", ".join(f"'{order_id}'" for (order_id,) in orders)
    query = f"SELECT count(*) FROM shop.orders WHERE id IN ({ids}) AND status = 'fulfilled'"
    wait_until(lambda: shop.sql(query) == [[2]], "the good messages were not worked on")

    def left() -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = sqs.get_queue_attributes(QueueUrl=shop.outputs["QueueUrl"], AttributeNames=names)
        return sum(int(answer["Attributes"][name]) for name in names)

    wait_until(lambda: left() == 1, "more or less than the bad message stayed")


def test_alias_serves(shop: Shop) -> None:
    """The published version behind the alias `live` answers, with SnapStart asked for."""
    client = shop.cloud.client("lambda")
    event = (ROOT / "events" / "handle_orders.json").read_text()
    answer = client.invoke(FunctionName=shop.outputs["HandleOrdersAlias"], Payload=event)
    assert answer["ExecutedVersion"].isdigit()
    assert json.loads(answer["Payload"].read())["statusCode"] == 200
    configuration = client.get_function_configuration(FunctionName=shop.outputs["HandleOrdersAlias"])
    assert configuration["SnapStart"]["ApplyOn"] == "PublishedVersions"


def test_the_way_to_the_database_is_right(shop: Shop) -> None:
    """check_database, invoked as deployed, finds that the function's own way to its database works."""
    answer = shop.cloud.client("lambda").invoke(FunctionName=shop.outputs["CheckDatabaseFunction"], Payload="{}")
    result = json.loads(answer["Payload"].read())
    assert "FunctionError" not in answer, result
    assert [check for check in result["checks"] if check["state"] not in ("ok", "warning")] == [], result


def test_layer_is_published_for_others(shop: Shop) -> None:
    """The SSM parameter and the output name the same version of the layer, which exists."""
    stored = shop.cloud.client("ssm").get_parameter(Name=shop.outputs["LayerArnParameter"])["Parameter"]["Value"]
    assert stored == shop.outputs["LayerArn"]
    assert shop.cloud.client("lambda").get_layer_version_by_arn(Arn=stored)["CompatibleRuntimes"]


def test_deploying_again_changes_nothing(shop: Shop) -> None:
    """The same artifacts and parameters give an empty change set, and the database is not prepared again."""
    client = shop.cloud.client("cloudformation")
    before = client.describe_stack_events(StackName=shop.stack)["StackEvents"]
    assert "No changes to deploy" in shop.deploy()
    assert client.describe_stack_events(StackName=shop.stack)["StackEvents"] == before
