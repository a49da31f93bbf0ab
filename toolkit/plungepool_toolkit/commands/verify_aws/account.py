"""The AWS account: whose it is, what a run makes in it, and how all of that is deleted again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TAG = "plungepool-verify"
_GONE = "ValidationError"  # what CloudFormation says of a stack that is not there


class Refusal(Exception):
    """Why the run does not begin, or cannot go on; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Network:
    """Where functions and database live."""

    vpc_id: str
    subnet_ids: tuple[str, ...]
    #: Those that need endpoints for S3 and Secrets Manager; empty where such endpoints are.
    route_table_ids: tuple[str, ...]


#: Where functions are outside any VPC.
NO_NETWORK = Network("", (), ())


class Account:
    """
    One account and region, by boto3's own chain of credentials.

    Raises: Refusal where there are no credentials, no region, or AWS does not know them.
    Units: *_s are seconds.
    """

    def __init__(self, region: str | None = None, profile: str | None = None, *, poll_s: float = 15.0) -> None:
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise Refusal("boto3 is not installed here: pip install boto3") from error
        try:
            self._session: Any = boto3.session.Session(profile_name=profile, region_name=region)
            if self._session.get_credentials() is None:
                raise Refusal(
                    "no AWS credentials were found: set AWS_PROFILE, sign in (aws sso login), or set AWS_ACCESS_KEY_ID "
                    "and AWS_SECRET_ACCESS_KEY. Nothing was created"
                )
            if not self._session.region_name:
                raise Refusal("no region: set AWS_REGION or give --region. Nothing was created")
            identity = self.client("sts").get_caller_identity()
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            raise Refusal(f"AWS does not accept these credentials ({code}). Nothing was created") from error
        except BotoCoreError as error:
            raise Refusal(
                f"AWS could not be asked whose credentials these are: {error}. Nothing was created"
            ) from error
        self.number: str = identity["Account"]
        self.arn: str = identity["Arn"]
        self.region: str = self._session.region_name
        self._profile = profile
        self._poll_s = poll_s

    def client(self, service: str, **config: Any) -> Any:
        """Return boto3's client of a service; `config` is botocore's."""
        from botocore.config import Config

        return self._session.client(service, config=Config(**config))

    def network(self, vpc_id: str | None, subnet_ids: tuple[str, ...]) -> Network:
        """Return the VPC and subnets given, or the default VPC and two of its subnets in different zones."""
        ec2 = self.client("ec2")
        if vpc_id is None:
            found = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
            if not found:
                raise Refusal("this region has no default VPC: give --vpc-id and --subnet-ids (two zones)")
            vpc_id = str(found[0]["VpcId"])
        if not subnet_ids:
            by_zone = {
                subnet["AvailabilityZone"]: subnet["SubnetId"]
                for subnet in ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])["Subnets"]
            }
            subnet_ids = tuple(by_zone[zone] for zone in sorted(by_zone)[:2])
        if len(subnet_ids) < 2:
            raise Refusal(f"{vpc_id} needs two subnets in different zones: give --subnet-ids")
        return Network(vpc_id, subnet_ids, self._closed_route_tables(ec2, vpc_id, subnet_ids))

    def _closed_route_tables(self, ec2: Any, vpc_id: str, subnet_ids: tuple[str, ...]) -> tuple[str, ...]:
        """Return the subnets' route tables unless the endpoints that would be made for them are there."""
        endpoints = ec2.describe_vpc_endpoints(Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])["VpcEndpoints"]
        there = {endpoint["ServiceName"].rpartition(".")[2] for endpoint in endpoints} & {"s3", "secretsmanager"}
        if there == {"s3", "secretsmanager"}:
            return ()
        if there:
            raise Refusal(
                f"{vpc_id} has an endpoint for {there.pop()} and not the other of s3 and secretsmanager: add it, or "
                "give a VPC with both or neither"
            )
        in_vpc = {"Name": "vpc-id", "Values": [vpc_id]}
        tables = ec2.describe_route_tables(Filters=[in_vpc])["RouteTables"]
        own = {
            table["RouteTableId"]
            for table in tables
            for link in table["Associations"]
            if link.get("SubnetId") in subnet_ids
        }
        main = {table["RouteTableId"] for table in tables for link in table["Associations"] if link.get("Main")}
        return tuple(sorted(own or main))

    def outputs(self, stack: str) -> dict[str, str]:
        """Return a stack's outputs. Raises: ClientError if there is no such stack."""
        found = self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
        return {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", ())}

    def resources(self, stack: str) -> Iterator[tuple[str, str, str]]:
        """
        Yield logical id, type and physical id of a stack's resources, nested stacks' included; nothing if it is gone.
        """
        from botocore.exceptions import ClientError

        try:
            found = self.client("cloudformation").describe_stack_resources(StackName=stack)["StackResources"]
        except ClientError:
            return
        for resource in found:
            physical = resource.get("PhysicalResourceId")
            if not physical:
                continue
            yield resource["LogicalResourceId"], resource["ResourceType"], physical
            if resource["ResourceType"] == "AWS::CloudFormation::Stack":
                yield from self.resources(physical)

    def make_bucket(self, name: str) -> None:
        """Make the bucket for the artifacts of `sam deploy`, with the run's tag."""
        s3 = self.client("s3")
        place = {} if self.region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": self.region}}
        s3.create_bucket(Bucket=name, **place)
        s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": [{"Key": TAG, "Value": name}]})

    def sam(self, program: Path, *arguments: str | Path, cwd: Path) -> None:
        """Run the SAM CLI with these credentials; what it says goes to the terminal. Raises: Refusal if it fails."""
        environ = {**os.environ, "AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region, "SAM_CLI_TELEMETRY": "0"}
        if self._profile:
            environ["AWS_PROFILE"] = self._profile
        environ["PATH"] = os.pathsep.join([*_pythons(cwd), environ.get("PATH", os.defpath)])
        command = [str(program), *(str(argument) for argument in arguments)]
        result = subprocess.run(command, cwd=cwd, env=environ, check=False)
        if result.returncode:
            raise Refusal(f"`sam {arguments[0]}` failed with {result.returncode}; what it wrote is above")

    def invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        """Invoke a function and return its answer. Raises: Refusal with the error's type and text if it failed."""
        client = self.client("lambda", read_timeout=330, retries={"total_max_attempts": 1})
        response = client.invoke(FunctionName=function, Payload=json.dumps(event).encode())
        answer = json.loads(response["Payload"].read() or "null")
        if response.get("FunctionError"):
            raise Refusal(f"{function} failed: {answer.get('errorType')}: {answer.get('errorMessage')}")
        return answer

    def make_express_cluster(self, name: str, patience_s: float = 1800.0) -> dict[str, Any]:
        """
        Make an Aurora cluster of express configuration, with the run's tag, and return what RDS says of it.

        CloudFormation cannot. Blocks: a minute is usual. Raises: TimeoutError; ClientError.
        """
        rds = self.client("rds")
        rds.create_db_cluster(
            DBClusterIdentifier=name,
            Engine="aurora-postgresql",
            WithExpressConfiguration=True,
            ServerlessV2ScalingConfiguration={"MinCapacity": 0, "MaxCapacity": 2, "SecondsUntilAutoPause": 300},
            Tags=[{"Key": TAG, "Value": name}],
        )
        end = time.monotonic() + patience_s
        while True:
            cluster: dict[str, Any] = rds.describe_db_clusters(DBClusterIdentifier=name)["DBClusters"][0]
            if cluster["Status"] == "available" and cluster.get("Endpoint"):
                return cluster
            if time.monotonic() >= end:
                raise TimeoutError(f"the cluster {name} is {cluster['Status']} after {patience_s:.0f} s")
            time.sleep(self._poll_s)

    def delete(self, run: str, say: Callable[[str], None], patience_s: float = 5400.0) -> list[str]:
        """
        Delete all that a run made: its stacks, the layer and the log groups that these leave, its bucket. Safe to call
        again.

        Returns: what is left, each with the command that deletes it; empty if nothing is. A step that fails does not
            keep the next from being tried. Blocks: half an hour is usual, since Lambda gives up network interfaces
            late.
        """
        stacks = [f"{run}-probe", run]
        groups = {name for stack in stacks for name in self._log_groups(stack)}
        left: list[str] = []
        for stack in stacks:
            say(f"deleting the stack {stack}")
            with _noted(left, f"the stack {stack}: aws cloudformation delete-stack --stack-name {stack}"):
                self._delete_stack(stack, patience_s)
        cluster = f"aws rds delete-db-cluster --db-cluster-identifier {run} --skip-final-snapshot"
        with _noted(left, f"the cluster {run}, after its instances: {cluster}"):
            self._delete_cluster(run, say, patience_s)
        logs = self.client("logs")
        for prefix in sorted(groups):
            with _noted(left, f"log groups {prefix}*: aws logs delete-log-group --log-group-name …"):
                for group in logs.describe_log_groups(logGroupNamePrefix=prefix)["logGroups"]:
                    logs.delete_log_group(logGroupName=group["logGroupName"])
        layers, layer = self.client("lambda"), f"{run}-plungepool"
        with _noted(
            left, f"the layer {layer}: aws lambda delete-layer-version --layer-name {layer} --version-number …"
        ):
            for version in layers.list_layer_versions(LayerName=layer)["LayerVersions"]:
                layers.delete_layer_version(LayerName=layer, VersionNumber=version["Version"])
        say(f"deleting the bucket {run}")
        with _noted(left, f"the bucket {run}: aws s3 rb s3://{run} --force"):
            self._delete_bucket(run)
        with _noted(left, f"whatever has the tag {TAG}={run}, which could not be listed"):
            left += [f"{arn} (it has the tag {TAG}={run})" for arn in self._tagged(run)]
        return left

    def _log_groups(self, stack: str) -> Iterator[str]:
        """Yield what the names of log groups begin with that services, and not the stack, made for its resources."""
        prefixes = {
            "AWS::Lambda::Function": "/aws/lambda/{}",
            "AWS::RDS::DBProxy": "/aws/rds/proxy/{}",
            "AWS::RDS::DBCluster": "/aws/rds/cluster/{}/",
            "AWS::RDS::DBInstance": "/aws/rds/instance/{}/",
        }
        for _logical, kind, physical in self.resources(stack):
            if kind in prefixes:
                yield prefixes[kind].format(physical)

    def _delete_stack(self, stack: str, patience_s: float) -> None:
        from botocore.exceptions import ClientError

        client = self.client("cloudformation")
        end = time.monotonic() + patience_s
        status = None
        while True:
            try:
                found = client.describe_stacks(StackName=stack)["Stacks"][0]
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == _GONE:
                    return
                raise
            status = found["StackStatus"]
            if status == "DELETE_COMPLETE":
                return
            if time.monotonic() >= end:
                raise TimeoutError(f"it is {status} after {patience_s:.0f} s")
            # A deletion that failed is often mended by another one: a network interface was still in use.
            if status != "DELETE_IN_PROGRESS":
                client.delete_stack(StackName=stack)
            time.sleep(self._poll_s)

    def _delete_cluster(self, name: str, say: Callable[[str], None], patience_s: float) -> None:
        """Delete the cluster that `make_express_cluster` made, and its instances; nothing where there is none."""
        rds = self.client("rds")
        gone, busy = rds.exceptions.DBClusterNotFoundFault, rds.exceptions.InvalidDBClusterStateFault
        end = time.monotonic() + patience_s
        told = False
        while True:
            try:
                cluster = rds.describe_db_clusters(DBClusterIdentifier=name)["DBClusters"][0]
            except gone:
                return
            if not told:
                say(f"deleting the cluster {name}")
                told = True
            if time.monotonic() >= end:
                raise TimeoutError(f"it is {cluster['Status']} after {patience_s:.0f} s")
            for member in cluster.get("DBClusterMembers", ()):
                with contextlib.suppress(
                    rds.exceptions.DBInstanceNotFoundFault, rds.exceptions.InvalidDBInstanceStateFault, busy
                ):
                    rds.delete_db_instance(DBInstanceIdentifier=member["DBInstanceIdentifier"])
            if cluster["Status"] != "deleting":
                with contextlib.suppress(gone, busy):
                    rds.delete_db_cluster(DBClusterIdentifier=name, SkipFinalSnapshot=True)
            time.sleep(self._poll_s)

    def _delete_bucket(self, name: str) -> None:
        from botocore.exceptions import ClientError

        s3 = self.client("s3")
        try:
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name):
                objects = [{"Key": entry["Key"]} for entry in page.get("Contents", ())]
                if objects:
                    s3.delete_objects(Bucket=name, Delete={"Objects": objects})
            s3.delete_bucket(Bucket=name)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in ("NoSuchBucket", "404"):
                raise

    def _tagged(self, run: str) -> list[str]:
        client = self.client("resourcegroupstaggingapi")
        pages = client.get_paginator("get_resources").paginate(TagFilters=[{"Key": TAG, "Values": [run]}])
        # The index of tags lags: what it names is asked for by its own service where that is easy.
        arns = [entry["ResourceARN"] for page in pages for entry in page["ResourceTagMappingList"]]
        return [arn for arn in arns if not arn.startswith(("arn:aws:cloudformation:", "arn:aws:s3:"))]


@contextlib.contextmanager
def _noted(left: list[str], what: str) -> Iterator[None]:
    """Go on after an error of AWS's, and note what is left because of it."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, TimeoutError) as error:
        left.append(f"{what} ({error})")


def find_sam(folder: Path, given: Path | None) -> Path:
    """Return the SAM CLI: the one given, this repository's own, or the one on PATH. Raises: Refusal."""
    own = folder / ".venv-sam" / "bin" / "sam"
    found = given or (own if own.exists() else shutil.which("sam"))
    if found is None:
        raise Refusal("the SAM CLI was not found: install it, or `toolkit/set-up venv .venv-sam requirements/sam.txt`")
    return Path(found)


def _pythons(folder: Path) -> list[str]:
    """Return the folders of Pythons that run; `sam build` takes the first python3.13 on PATH, be it only a shim."""
    script = folder / "toolkit" / "set-up"
    if not script.exists():
        return []
    found = subprocess.run([script, "pythons"], capture_output=True, text=True, check=False).stdout
    return [str(Path(line.partition(" ")[2]).parent) for line in found.splitlines()]
