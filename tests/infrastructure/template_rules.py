"""
What must hold of the templates and no linter looks at. Each rule takes the templates and fails by an assertion.

`application`, `database`, `layer` and `project` (what `sam init` makes) are the templates after the transform, `source`
is template.yaml before it, `texts` are the files as they lie there. stack.py says what CloudFormation makes of each.
"""

import dataclasses
import io
import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger
from awslambdaric.lambda_runtime_log_utils import JsonFormatter
from stack import ACCOUNT, ELSEWHERE, HOME, Place, Refused, Stack, refusal

from plungepool import Settings
from plungepool.metrics import METRICS as METRICS_OF_THE_LAYER
from plungepool.observe import Tally
from plungepool.recorder import Recorder
from plungepool_toolkit.lambda_context import LambdaContext

ROOT = Path(__file__).parents[2]
SECRET = f"arn:aws:secretsmanager:{HOME.region}:{ACCOUNT}:secret:"
KEY = f"arn:aws:kms:{HOME.region}:{ACCOUNT}:key/"
TOPIC = f"arn:aws:sns:{HOME.region}:{ACCOUNT}:on-call"
NETWORK = {"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2"}
# Every way to deploy, as parameters of template.yaml.
DEPLOYMENTS: dict[str, dict[str, str]] = {
    "existing, password": {
        "Host": "db",
        "Auth": "password",
        "Password": "of-the-role",
        "AdminUser": "a",
        "AdminPassword": "of-the-admin",
    },
    "existing, secret": {
        "Host": "db",
        "Auth": "secret",
        "SecretArn": SECRET + "app-Ab12Cd",
        "AdminSecretArn": SECRET + "admin-Ab12Cd",
    },
    "existing, secret only": {"Host": "db", "Auth": "secret", "SecretArn": SECRET + "app-Ab12Cd"},
    "existing, keys": {
        "Host": "db",
        "Auth": "secret",
        "SecretArn": SECRET + "app-Ab12Cd",
        "SecretKeyArn": KEY + "app",
        "AdminSecretArn": SECRET + "admin-Ab12Cd",
        "AdminSecretKeyArn": KEY + "admin",
    },
    "existing, secret and administrator": {
        "Host": "db",
        "Auth": "secret",
        "SecretArn": SECRET + "app-Ab12Cd",
        "SecretKeyArn": KEY + "app",
        "AdminUser": "a",
        "AdminPassword": "of-the-admin",
    },
    "existing, IAM beside a secret": {
        "Host": "db",
        "ResourceId": "db-1",
        "SecretArn": SECRET + "other-Ab12Cd",
        "SecretKeyArn": KEY + "other",
        "AdminSecretArn": SECRET + "admin-Ab12Cd",
    },
    "existing, IAM proxy": {"Host": "px", "Endpoint": "proxy", "ResourceId": "prx-1", "SecurityGroupIds": "sg-1"}
    | NETWORK,
    "existing, watched": {
        "Host": "px",
        "Endpoint": "proxy",
        "ResourceId": "prx-1",
        "SecurityGroupIds": "sg-1",
        "DatabaseInstance": "orders",
        "DatabaseProxy": "shared",
        "AlarmTopicArn": TOPIC,
    }
    | NETWORK,
    "existing, express": {"Host": "db", "ResourceId": "cluster-1", "AdminUser": "postgres"},
    "existing, IAM beside a secret for the administrator": {
        "Host": "db",
        "ResourceId": "cluster-1",
        "AdminUser": "postgres",
        "AdminSecretArn": SECRET + "admin-Ab12Cd",
    },
    "existing, IAM beside a password for the administrator": {
        "Host": "db",
        "ResourceId": "cluster-1",
        "AdminUser": "a",
        "AdminPassword": "of-the-admin",
    },
    "existing, DSQL": {"Host": "dsql", "Auth": "dsql", "ResourceId": "a" * 26},
    "aurora": {"DatabaseMode": "aurora", "AlarmTopicArn": TOPIC} | NETWORK,
    "aurora beside secrets": {
        "DatabaseMode": "aurora",
        "SecretArn": SECRET + "other-Ab12Cd",
        "SecretKeyArn": KEY + "other",
        "AdminSecretArn": SECRET + "admin-Ab12Cd",
        "AdminSecretKeyArn": KEY + "admin",
        "FinalSnapshot": "false",
        "ProtectDatabase": "false",
    }
    | NETWORK,
    "aurora, proxy": {
        "DatabaseMode": "aurora",
        "Endpoint": "proxy",
        "RouteTableIds": "rtb-1",
        "DatabaseCidr": "10.0.0.0/16",
        "AlarmTopicArn": TOPIC,
    }
    | NETWORK,
    "instance": {"DatabaseMode": "instance", "Port": "5433", "EngineVersion": "16.3", "AlarmTopicArn": TOPIC} | NETWORK,
    "instance, proxy, IAM": {
        "DatabaseMode": "instance",
        "Endpoint": "proxy",
        "ProxyAuth": "iam",
        "FinalSnapshot": "false",
        "SecurityGroupIds": "sg-1",
    }
    | NETWORK,
}
# Parameters of infrastructure/database.yaml, and of the project that `sam init` makes.
NESTED = {"Mode": "instance", "VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2", "ClientSecurityGroupId": "sg-1"}
PROJECT = {"Host": "db", "ResourceId": "db-1"}


@dataclasses.dataclass
class Templates:
    source: dict
    application: dict
    database: dict
    layer: dict
    project: dict
    texts: dict[str, str]
    _deployed: dict[tuple[str, Place], Stack] = dataclasses.field(default_factory=dict)

    def deploy(self, name: str, place: Place = HOME) -> Stack:
        """Return the application's stack under one of DEPLOYMENTS, with the nested one's outputs resolved."""
        if (name, place) not in self._deployed:
            self._deployed[name, place] = self.deploy_with(DEPLOYMENTS[name], place)
        return self._deployed[name, place]

    def deploy_with(self, parameters: dict[str, str], place: Place = HOME) -> Stack:
        moved = {
            key: value.replace(f"arn:{HOME.partition}:", f"arn:{place.partition}:").replace(HOME.region, place.region)
            for key, value in parameters.items()
        }
        stack = Stack(self.application, moved, place)
        if "DemoDatabase" in stack.resources:
            given = stack.properties("DemoDatabase")["Parameters"]
            stack.nested["DemoDatabase"] = Stack(self.database, given, place)
        return stack

    def everywhere(self) -> Iterator[tuple[str, Stack]]:
        """Yield every stack of ours by a name: each deployment, what is nested in it, the layer's and the project's."""
        for name in DEPLOYMENTS:
            stack = self.deploy(name)
            yield name, stack
            yield from ((f"{name}: {nested}", of) for nested, of in stack.nested.items())
        yield "layer", Stack(self.layer, {})
        yield "project", Stack(self.project, PROJECT)
        yield "project in a VPC", Stack(self.project, PROJECT | {"SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"})


def each_deployment(check: Callable[[str, Stack], None]) -> Callable[[Templates], None]:
    def rule(templates: Templates) -> None:
        for name in DEPLOYMENTS:
            check(name, templates.deploy(name))

    rule.__name__, rule.__doc__ = check.__name__, check.__doc__
    return rule


def as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def settings_of(function: dict) -> Settings:
    environment = {key: str(value) for key, value in function["Environment"]["Variables"].items()}
    ours = {key: value for key, value in environment.items() if key.startswith("PLUNGEPOOL_")}
    return Settings.from_env(ours | {"AWS_REGION": HOME.region})


@each_deployment
def variables_are_valid_settings(name: str, stack: Stack) -> None:
    """In each deployment every function's variables make valid Settings: none missing, unknown or contradictory."""
    for logical_id, function in stack.of_type("AWS::Lambda::Function").items():
        settings = settings_of(function)
        demo = "DemoDatabase" in stack.resources
        if logical_id != "PrepareDatabaseFunction":
            assert settings.endpoint == DEPLOYMENTS[name].get("Endpoint", "direct"), f"{name}: {logical_id}"
            assert settings.auth == ("iam" if demo else DEPLOYMENTS[name].get("Auth", "iam")), f"{name}: {logical_id}"
        assert settings.tls == "verify-full"
        assert str(settings.port) == DEPLOYMENTS[name].get("Port", "5432")


def choices_that_are_taken_are_valid_settings(templates: Templates) -> None:
    """
    Every combination of the choices, and the bounds of the numbers, that CloudFormation takes makes valid Settings.
    """
    names = ("DatabaseMode", "Endpoint", "Auth", "Tls", "Pool")
    choices = [templates.application["Parameters"][name]["AllowedValues"] for name in names]
    filled = {"Host": "db", "SecretArn": SECRET + "app-Ab12Cd", "ResourceId": "prx-1", "Password": "p"} | NETWORK
    taken = 0
    for combination in itertools.product(*choices):
        try:
            stack = templates.deploy_with(filled | dict(zip(names, combination, strict=True)))
        except Refused:
            continue
        taken += 1
        for function in stack.of_type("AWS::Lambda::Function").values():
            settings_of(function)
    assert taken > 40
    for bound in ("MinValue", "MaxValue"):
        extreme = {"Pool": "adaptive"} | {
            key: str(of[bound]) for key, of in templates.application["Parameters"].items() if bound in of
        }
        stack = templates.deploy_with(DEPLOYMENTS["existing, password"] | extreme)
        for function in stack.of_type("AWS::Lambda::Function").values():
            settings_of(function)


def each_parameter_arrives_where_it_is_read(templates: Templates) -> None:
    """
    What is given for the database and the functions is what every function has, prepare_database as the administrator.
    """
    given = {
        "Host": "db.example", "Port": "6432", "Database": "orders", "User": "reader", "Auth": "password",
        "Password": "p",
        "Tls": "disable", "Endpoint": "proxy", "AdminUser": "owner", "AdminPassword": "q", "PoolSize": "3",
        "Pool": "adaptive", "FleetLimit": "5", "DatabaseMetrics": "off", "LogLevel": "DEBUG", "Architecture": "x86_64",
        "PowertoolsLayerArn": BOUNDS["PowertoolsLayerArn"][0][1],
    }  # fmt: skip
    stack = templates.deploy_with(given)
    for logical_id, function in stack.of_type("AWS::Lambda::Function").items():
        settings = settings_of(function)
        user = ("owner", "q") if logical_id == "PrepareDatabaseFunction" else ("reader", "p")
        assert (settings.user, settings.password) == user, logical_id
        found = (settings.host, settings.port, settings.database, settings.tls, settings.endpoint, settings.pool_size)
        assert found == ("db.example", 6432, "orders", "disable", "proxy", 3), logical_id
        assert (settings.pool, settings.fleet_limit) == ("adaptive", 5), logical_id
        assert (settings.metrics, settings.recorder) == ("off", "on"), logical_id
        variables = function["Environment"]["Variables"]
        assert variables["POWERTOOLS_SERVICE_NAME"] == stack.values["AWS::StackName"], logical_id
        assert variables["POWERTOOLS_METRICS_NAMESPACE"] == "Plungepool", logical_id
        levels = (variables["POWERTOOLS_LOG_LEVEL"], function["LoggingConfig"]["ApplicationLogLevel"])
        assert levels == ("DEBUG", "DEBUG"), logical_id
        assert function["Architectures"] == ["x86_64"], logical_id
        assert function["Layers"][1] == given["PowertoolsLayerArn"], logical_id
        assert function["MemorySize"] >= 256, (
            logical_id
        )  # a share of the processor comes with it: a cold start of seconds


Right = tuple[str, str, str]  # action, resource, condition
MANAGED = {"AWSLambdaBasicExecutionRole", "AWSXrayWriteOnlyAccess", "AWSLambdaVPCAccessExecutionRole"}


def rights_of(stack: Stack, role: str) -> tuple[set[Right], set[str]]:
    """Return what a role may do by policies of ours, and the names of AWS's policies that it has."""
    properties = stack.properties(role)
    documents = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
    managed = set()
    for arn in properties.get("ManagedPolicyArns", []):
        if arn.startswith("ref-"):
            documents.append(stack.properties(arn.removeprefix("ref-"))["PolicyDocument"])
        else:
            managed.add(arn.rpartition("/")[2])
    found = set()
    for statement in itertools.chain(*(document["Statement"] for document in documents)):
        assert statement["Effect"] == "Allow"
        for action, resource in itertools.product(as_list(statement["Action"]), as_list(statement["Resource"])):
            found.add((action, resource, json.dumps(statement.get("Condition"))))
    return found, managed


def right(action: str, resource: str, condition: object = None) -> Right:
    return action, resource, json.dumps(condition)


def reading(secret: str, key: str = "") -> set[Right]:
    condition = {"StringEquals": {"kms:EncryptionContext:SecretARN": secret}}
    return {right("secretsmanager:GetSecretValue", secret)} | ({right("kms:Decrypt", key, condition)} if key else set())


def connecting(resource_id: str, user: str) -> set[Right]:
    return {right("rds-db:connect", f"arn:aws:rds-db:{HOME.region}:{ACCOUNT}:dbuser:{resource_id}/{user}")}


@each_deployment
def every_role_may_do_what_it_needs_and_nothing_else(name: str, stack: Stack) -> None:
    """
    Each function signs in as one user of one resource, or reads one secret with its key; no role has another right.
    """
    given = {"Auth": "iam", "User": "plungepool_app", **DEPLOYMENTS[name]}
    demo, proxied, aurora = (
        "DatabaseMode" in given, given.get("Endpoint") == "proxy", given.get("DatabaseMode") == "aurora",
    )  # fmt: skip
    database_id = "DBClusterResourceId-of-Cluster" if aurora else "DbiResourceId-of-Instance"
    secret = reading(given.get("SecretArn", ""), given.get("SecretKeyArn", ""))
    signing_in = {
        "password": set(),
        "secret": secret,
        "iam": connecting(given.get("ResourceId", ""), given["User"]),
        "dsql": {right("dsql:DbConnect", f"arn:aws:dsql:{HOME.region}:{ACCOUNT}:cluster/{given.get('ResourceId')}")},
    }[given["Auth"]]
    if demo:
        signing_in = connecting("prx-Proxy" if proxied else database_id, given["User"])
    administering: set[Right] = set()
    if demo:
        kind = "Cluster" if aurora else "Instance"
        administering = reading(f"MasterUserSecret.SecretArn-of-{kind}")
        if proxied and given.get("ProxyAuth") != "iam":
            administering |= reading("Id-of-ApplicationSecret")
    else:
        if "AdminSecretArn" in given:
            administering = reading(given["AdminSecretArn"], given.get("AdminSecretKeyArn", ""))
        if given["Auth"] == "secret":
            administering |= secret
        elif "AdminSecretArn" not in given and "AdminUser" not in given:
            administering = signing_in
        elif "AdminSecretArn" not in given and "AdminPassword" not in given:
            administering = connecting(given["ResourceId"], given["AdminUser"])
    losing = right("sqs:SendMessage", "Arn-of-LostReports")
    expected = {
        "HandleOrdersFunctionRole": (signing_in, MANAGED),
        "FulfilOrdersFunctionRole": (signing_in, MANAGED | {"AWSLambdaSQSQueueExecutionRole"}),
        "ReportSalesFunctionRole": (signing_in | {losing}, MANAGED),
        "PrepareDatabaseFunctionRole": (administering, MANAGED),
        "CheckDatabaseFunctionRole": (signing_in, MANAGED),
        "ReportSalesFunctionDailyRole": ({right("lambda:InvokeFunction", "Arn-of-ReportSalesFunction"), losing}, set()),
        "CodeDeployServiceRole": (set(), {"AWSCodeDeployRoleForLambda"}),
    }
    assert {role: rights_of(stack, role) for role in stack.of_type("AWS::IAM::Role")} == expected, name
    for nested in stack.nested.values():
        roles = {role: rights_of(nested, role) for role in nested.of_type("AWS::IAM::Role")}
        by_secret = given.get("ProxyAuth") != "iam"
        proxy = reading("Id-of-ApplicationSecret") if by_secret else connecting(database_id, given["User"])
        assert roles == ({"ProxyRole": (proxy, set())} if proxied else {}), name


def every_role_trusts_its_own_service(templates: Templates) -> None:
    """A role is taken on by the one service that it is for; the proxy's only on behalf of this account."""
    services = {"Function": "lambda", "Daily": "scheduler", "CodeDeployService": "codedeploy", "Proxy": "rds"}
    for name, stack in templates.everywhere():
        for logical_id, role in stack.of_type("AWS::IAM::Role").items():
            [statement] = role["AssumeRolePolicyDocument"]["Statement"]
            [service] = [of for end, of in services.items() if logical_id.removesuffix("Role").endswith(end)]
            assert as_list(statement["Principal"]["Service"]) == [f"{service}.amazonaws.com"], f"{name}: {logical_id}"
            assert as_list(statement["Action"]) == ["sts:AssumeRole"]
            if logical_id == "ProxyRole":
                assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
        for permission in stack.of_type("AWS::Lambda::Permission").values():
            assert permission["Principal"] == "apigateway.amazonaws.com"
            assert ":execute-api:" in permission["SourceArn"]
        assert not stack.of_type("AWS::Lambda::LayerVersionPermission")


def policies_are_whole(templates: Templates) -> None:
    """
    A policy of ours says something, by the language's present version, and somebody has it: IAM refuses an empty one.
    """
    for name, stack in templates.everywhere():
        attached = {
            arn for role in stack.of_type("AWS::IAM::Role").values() for arn in role.get("ManagedPolicyArns", [])
        }
        policies = stack.of_type("AWS::IAM::ManagedPolicy")
        assert {f"ref-{logical_id}" for logical_id in policies} <= attached, name
        endpoints = stack.of_type("AWS::EC2::VPCEndpoint")
        for logical_id, resource in (policies | endpoints).items():
            document = resource["PolicyDocument"]
            assert document["Version"] == "2012-10-17", f"{name}: {logical_id}"
            assert document["Statement"], f"{name}: {logical_id}"


@each_deployment
def client_connects_where_it_may(name: str, stack: Stack) -> None:
    """The right to connect is given for what the host name names: the proxy's id for the proxy, else the database's."""
    for nested in stack.nested.values():
        host, resource = nested.outputs()["Host"], nested.outputs()["ResourceId"]
        proxied = DEPLOYMENTS[name].get("Endpoint") == "proxy"
        assert (host == "Endpoint-of-Proxy") == proxied, f"{name}: {host}"
        assert resource.startswith("prx-") == proxied, f"{name}: {resource}"
        assert nested.outputs()["AdminHost"] in ("Endpoint.Address-of-Cluster", "Endpoint.Address-of-Instance")
        variables = stack.properties("PrepareDatabaseFunction")["Environment"]["Variables"]
        assert variables["PLUNGEPOOL_HOST"] == nested.outputs()["AdminHost"]
        assert variables["PLUNGEPOOL_ENDPOINT"] == "direct"


@each_deployment
def proxy_demands_iam_and_tls(name: str, stack: Stack) -> None:
    """
    A proxy takes IAM over TLS only, and signs in by the application's own secret or by IAM, never as administrator.
    """
    for nested in stack.nested.values():
        for proxy in nested.of_type("AWS::RDS::DBProxy").values():
            assert proxy["RequireTLS"] is True
            assert proxy["EngineFamily"] == "POSTGRESQL"
            if DEPLOYMENTS[name].get("ProxyAuth") == "iam":
                assert (proxy["DefaultAuthScheme"], "Auth" in proxy) == ("IAM_AUTH", False), name
            else:
                assert proxy["DefaultAuthScheme"] == "NONE"
                [auth] = proxy["Auth"]
                assert (auth["IAMAuth"], auth["SecretArn"]) == ("REQUIRED", "Id-of-ApplicationSecret"), name
                assert auth["ClientPasswordAuthType"] == "POSTGRES_SCRAM_SHA_256"
            assert len(proxy["DBProxyName"]) <= 60


@each_deployment
def role_is_prepared_for_how_it_signs_in(name: str, stack: Stack) -> None:
    """prepare_database gives the role the password that the proxy or the functions use, and none where IAM is used."""
    variables = stack.properties("PrepareDatabaseFunction")["Environment"]["Variables"]
    given = DEPLOYMENTS[name]
    secret = given["SecretArn"] if given.get("Auth") == "secret" else ""
    if "DatabaseMode" in given and given.get("Endpoint") == "proxy" and given.get("ProxyAuth") != "iam":
        secret = "Id-of-ApplicationSecret"
    assert variables["APP_ROLE_SECRET_ARN"] == secret, name
    assert bool(variables["APP_ROLE_PASSWORD"]) == (name == "existing, password"), name
    assert variables["APP_ROLE_NAME"] == stack.values["User"]
    read = (ROOT / "functions" / "prepare_database" / "preparation.py").read_text()
    for variable in variables:
        assert variable.startswith(("PLUNGEPOOL_", "POWERTOOLS_")) or f'"{variable}"' in read, (
            f"nobody reads {variable}"
        )


@each_deployment
def preparation_is_part_of_the_deployment(name: str, stack: Stack) -> None:
    """Where an administrator is known, prepare_database runs at deploy, again when it changes, and has time for it."""
    given = DEPLOYMENTS[name]
    prepared = stack.of_type("Custom::PreparedDatabase")
    assert bool(prepared) == bool(given.keys() & {"DatabaseMode", "AdminSecretArn", "AdminUser"}), name
    for properties in prepared.values():
        assert properties["ServiceToken"] == "Arn-of-PrepareDatabaseFunction"
        assert "PrepareDatabaseFunctionVersion" in properties["FunctionVersion"]
        assert int(properties["ServiceTimeout"]) > stack.properties("PrepareDatabaseFunction")["Timeout"]
        # Rows to look at belong into a demo database, never into somebody's own.
        assert properties["DemoData"] == ("true" if "DatabaseMode" in given else "false"), name


NO_EGRESS = {("255.255.255.255/32", "icmp", 252, 86)}  # a group that names none may reach everything


def openings(rules: list[dict]) -> set[tuple[str, str, int, int]]:
    """Return who may pass, by which protocol, from and to which port."""
    ends = ("CidrIp", "SourceSecurityGroupId", "DestinationSecurityGroupId")
    found = set()
    for rule in rules:
        [other] = [rule[end] for end in ends if end in rule]
        found.add((other, rule["IpProtocol"], int(rule["FromPort"]), int(rule["ToPort"])))
    return found


@each_deployment
def only_the_functions_reach_the_database(name: str, stack: Stack) -> None:
    """
    From the functions' group to the proxy's, from there to the database's, at its port: each step open, nothing else.
    """
    given = DEPLOYMENTS[name]
    port = int(given.get("Port", 5432))
    client = given.get("SecurityGroupIds", "GroupId-of-FunctionSecurityGroup")
    for function in stack.of_type("AWS::Lambda::Function").values():
        expected = {"SubnetIds": ["subnet-1", "subnet-2"], "SecurityGroupIds": [client]}
        assert function.get("VpcConfig") == (expected if "SubnetIds" in given else None), name
    groups = stack.of_type("AWS::EC2::SecurityGroup")
    assert groups.keys() == ({"FunctionSecurityGroup"} if client.startswith("GroupId") and "VpcId" in given else set())
    for group in groups.values():
        outwards = {(given.get("DatabaseCidr", "0.0.0.0/0"), "tcp", port, port), ("0.0.0.0/0", "tcp", 443, 443)}
        assert openings(group["SecurityGroupEgress"]) == outwards, name
        assert "SecurityGroupIngress" not in group
        assert group["VpcId"] == "vpc-1"
    for nested in stack.nested.values():
        of_database, of_proxy, of_endpoint = (
            f"GroupId-of-{kind}SecurityGroup" for kind in ("Database", "Proxy", "Endpoint")
        )
        proxied, closed = given.get("Endpoint") == "proxy", "RouteTableIds" in given
        inwards = {"DatabaseSecurityGroup": {(client, "tcp", port, port)}}
        outwards = {"DatabaseSecurityGroup": NO_EGRESS}
        if proxied:
            inwards["DatabaseSecurityGroup"].add((of_proxy, "tcp", port, port))
            inwards["ProxySecurityGroup"] = {(client, "tcp", port, port)}
            outwards["ProxySecurityGroup"] = {(of_database, "tcp", port, port)}
            # The target group reports healthy only when the proxy reaches the database.
            assert nested.attribute("ProxyTargets", "DependsOn") == "ProxyMayConnect"
        if closed:
            inwards["EndpointSecurityGroup"] = {(client, "tcp", 443, 443)}
            outwards["EndpointSecurityGroup"] = NO_EGRESS
        found = nested.of_type("AWS::EC2::SecurityGroup")
        seen = {key: openings(group["SecurityGroupIngress"]) for key, group in found.items()}
        for rule in nested.of_type("AWS::EC2::SecurityGroupIngress").values():
            seen[rule["GroupId"].removeprefix("GroupId-of-")] |= openings([rule])
        assert seen == inwards, name
        assert {key: openings(group["SecurityGroupEgress"]) for key, group in found.items()} == outwards, name
        attached = {
            "AWS::RDS::DBCluster": ("VpcSecurityGroupIds", of_database),
            "AWS::RDS::DBInstance": ("VPCSecurityGroups", of_database),
            "AWS::RDS::DBProxy": ("VpcSecurityGroupIds", of_proxy),
            "AWS::EC2::VPCEndpoint": ("SecurityGroupIds", of_endpoint),
        }
        for kind, (key, group) in attached.items():
            for resource in nested.of_type(kind).values():
                if "DBClusterIdentifier" not in resource or kind == "AWS::RDS::DBCluster":
                    assert resource.get("VpcEndpointType") == "Gateway" or resource[key] == [group], f"{name}: {kind}"
        for kind, key in (("AWS::RDS::DBProxy", "VpcSubnetIds"), ("AWS::RDS::DBSubnetGroup", "SubnetIds")):
            for resource in nested.of_type(kind).values():
                assert resource[key] == ["subnet-1", "subnet-2"], f"{name}: {kind}"
        for instance in nested.of_type("AWS::RDS::DBInstance").values():
            assert instance["PubliclyAccessible"] is False


@each_deployment
def endpoints_are_made_where_there_is_no_way_out(name: str, stack: Stack) -> None:
    """Closed subnets get endpoints for Secrets Manager and S3, for this account and CloudFormation's answer only."""
    own = {"StringEquals": {"aws:PrincipalAccount": ACCOUNT, "aws:ResourceAccount": ACCOUNT}}
    for nested in stack.nested.values():
        endpoints = nested.of_type("AWS::EC2::VPCEndpoint")
        services = {endpoint["ServiceName"]: endpoint for endpoint in endpoints.values()}
        secrets, storage = f"com.amazonaws.{HOME.region}.secretsmanager", f"com.amazonaws.{HOME.region}.s3"
        assert services.keys() == ({secrets, storage} if "RouteTableIds" in DEPLOYMENTS[name] else set()), name
        for endpoint in endpoints.values():
            for statement in endpoint["PolicyDocument"]["Statement"]:
                assert (statement["Effect"], statement["Principal"]) == ("Allow", "*")
                if statement.get("Condition") == own:
                    assert statement["Action"] == endpoint["ServiceName"].rpartition(".")[2] + ":*"
                    assert statement["Resource"] == "*"
                else:
                    assert statement["Action"] == "s3:PutObject"
                    bucket = "arn:aws:s3:::cloudformation-custom-resource-response-"
                    assert statement["Resource"] == [f"{bucket}{region}/*" for region in ("euwest1", "eu-west-1")]
        if services:
            assert services[secrets]["PrivateDnsEnabled"] is True
            assert services[secrets]["SubnetIds"] == ["subnet-1", "subnet-2"]
            assert services[secrets]["VpcEndpointType"] == "Interface"
            assert len(services[secrets]["PolicyDocument"]["Statement"]) == 1
            assert services[storage]["RouteTableIds"] == ["rtb-1"]
            assert len(services[storage]["PolicyDocument"]["Statement"]) == 2


def limits_reach_what_they_limit(templates: Templates) -> None:
    """
    Each number that bounds the fleet arrives where it is enforced; 0 reserves nothing, and is passed on to nobody.
    """
    numbers = {"PoolSize": "3", "ConnectionLimit": "41", "OrdersConcurrency": "7", "WorkersConcurrency": "9"}
    time_outs = {
        "StatementTimeoutSeconds": ("APP_ROLE_STATEMENT_TIMEOUT_S", "21"),
        "LockTimeoutSeconds": ("APP_ROLE_LOCK_TIMEOUT_S", "22"),
        "IdleInTransactionTimeoutSeconds": ("APP_ROLE_IDLE_IN_TRANSACTION_SESSION_TIMEOUT_S", "23"),
        "IdleSessionTimeoutSeconds": ("APP_ROLE_IDLE_SESSION_TIMEOUT_S", "24"),
    }
    numbers |= {name: seconds for name, (_, seconds) in time_outs.items()}
    stack = templates.deploy_with(DEPLOYMENTS["aurora"] | numbers)
    functions = stack.of_type("AWS::Lambda::Function")
    reserved = {
        key: of["ReservedConcurrentExecutions"] for key, of in functions.items() if "ReservedConcurrentExecutions" in of
    }
    assert reserved == {"HandleOrdersFunction": "7", "ReportSalesFunction": 1}
    assert {of["Environment"]["Variables"]["PLUNGEPOOL_POOL_SIZE"] for of in functions.values()} == {"3"}
    variables = functions["PrepareDatabaseFunction"]["Environment"]["Variables"]
    assert variables["APP_ROLE_CONNECTION_LIMIT"] == "41"
    assert {name: variables[name] for name, _ in time_outs.values()} == dict(time_outs.values())
    assert stack.nested["DemoDatabase"].values["ConnectionLimit"] == "41"
    [source] = stack.of_type("AWS::Lambda::EventSourceMapping").values()
    assert source["ScalingConfig"] == {"MaximumConcurrency": "9"}
    unreserved = templates.deploy_with(DEPLOYMENTS["aurora"] | {"OrdersConcurrency": "0"})
    for function in unreserved.of_type("AWS::Lambda::Function").values():
        assert "ReservedConcurrentExecutions" not in function


def numbers_add_up(templates: Templates) -> None:
    """The defaults, and the example in the description, are the connection limit; the description has the sum."""
    parameters = templates.source["Parameters"]
    limit, workers, orders = (
        parameters[name]["Default"] for name in ("ConnectionLimit", "WorkersConcurrency", "OrdersConcurrency")
    )
    told = re.search(
        r"(\d+) here \+ (\d+) workers \+ (\d+) report \+ (\d+) check = (\d+)",
        parameters["OrdersConcurrency"]["Description"],
    )
    assert [*map(int, told.groups())] == [orders, workers, 1, 1, limit]
    assert orders + workers + 1 + 1 == limit
    assert "concurrency x PoolSize" in parameters["OrdersConcurrency"]["Description"]


@each_deployment
def nobody_waits_longer_than_is_of_use(name: str, stack: Stack) -> None:
    """
    A handler ends before the API gives it up; the proxy lets nobody wait longer, and leaves connections to people.
    """
    handler = stack.properties("HandleOrdersFunction")["Timeout"]
    assert handler < 30  # the longest integration of an HTTP API
    [stage] = stack.of_type("AWS::ApiGatewayV2::Stage").values()
    assert 0 < stage["DefaultRouteSettings"]["ThrottlingRateLimit"] <= 1000
    assert 0 < stage["DefaultRouteSettings"]["ThrottlingBurstLimit"] <= 1000
    for nested in stack.nested.values():
        for target in nested.of_type("AWS::RDS::DBProxyTargetGroup").values():
            pool = target["ConnectionPoolConfigurationInfo"]
            assert pool["ConnectionBorrowTimeout"] < handler, name
            assert 50 <= pool["MaxConnectionsPercent"] <= 90
            assert 0 < pool["MaxIdleConnectionsPercent"] <= pool["MaxConnectionsPercent"]
            expected = "DBClusterIdentifiers" if stack.values["DatabaseMode"] == "aurora" else "DBInstanceIdentifiers"
            assert {key for key in target if key.endswith("Identifiers")} == {expected}, name
            assert target["TargetGroupName"] == "default"
        for cluster in nested.of_type("AWS::RDS::DBCluster").values():
            scaling = cluster["ServerlessV2ScalingConfiguration"]
            assert 0 < scaling["MinCapacity"] < scaling["MaxCapacity"] <= 16


@each_deployment
def data_outlives_mistakes(name: str, stack: Stack) -> None:
    """The database is encrypted, backed up, protected, kept as a snapshot unless that is not wanted, and can grow."""
    given = DEPLOYMENTS[name]
    for nested in stack.nested.values():
        aurora = given["DatabaseMode"] == "aurora"
        logical_id = "Cluster" if aurora else "Instance"
        assert set(nested.of_type("AWS::RDS::DBCluster")) == ({"Cluster"} if aurora else set())
        assert set(nested.of_type("AWS::RDS::DBInstance")) == {"ClusterInstance" if aurora else "Instance"}
        database = nested.properties(logical_id)
        kept = "Delete" if given.get("FinalSnapshot") == "false" else "Snapshot"
        assert nested.attribute(logical_id, "DeletionPolicy") == kept, name
        assert nested.attribute(logical_id, "UpdateReplacePolicy") == "Snapshot"
        assert database["DeletionProtection"] == given.get("ProtectDatabase", "true"), name
        assert database["BackupRetentionPeriod"] >= 7
        for switch in (
            "StorageEncrypted",
            "CopyTagsToSnapshot",
            "ManageMasterUserPassword",
            "EnableIAMDatabaseAuthentication",
        ):
            assert database[switch] is True, f"{name}: {switch}"
        assert "MasterUserPassword" not in database
        assert database["Port"] == stack.values["Port"]
        if not aurora:
            assert database["MaxAllocatedStorage"] >= 2 * int(database["AllocatedStorage"])
        group = nested.properties(
            (database.get("DBClusterParameterGroupName") or database["DBParameterGroupName"]).removeprefix("ref-")
        )
        major = given.get("EngineVersion", "17").partition(".")[0]
        assert group["Family"] == ("aurora-postgresql" if aurora else "postgres") + major
        assert group["Parameters"]["rds.force_ssl"] == "1"
        named = templated_database(nested.template, "orders")
        assert named == ("orders", None), named


@each_deployment
def demo_database_is_what_was_asked_for(name: str, stack: Stack) -> None:
    """
    A demo database is of the kind and version that was asked for, in its network, with what belongs to it and nothing
    else.
    """
    given = DEPLOYMENTS[name]
    for nested in stack.nested.values():
        aurora, proxied = given["DatabaseMode"] == "aurora", given.get("Endpoint") == "proxy"
        expected = {"DatabaseSecurityGroup", "SubnetGroup", "DatabaseLogGroup", "ConnectionsAlarm", "LoadAlarm"}
        if aurora:
            expected |= {"Cluster", "ClusterInstance", "ClusterParameters", "CapacityAlarm"}
        else:
            expected |= {"Instance", "InstanceParameters", "StorageAlarm"}
        if proxied:
            expected |= {"ProxySecurityGroup", "ProxyMayConnect", "ProxyRole", "ProxyLogGroup", "Proxy", "ProxyTargets"}
            expected |= {f"Proxy{alarm}Alarm" for alarm in ("Connections", "Connects", "Refusals", "Waits", "Pinned")}
            assert nested.properties("Proxy")["RoleArn"] == "Arn-of-ProxyRole"
            assert nested.properties("ProxyTargets")["DBProxyName"] == "ref-Proxy"
        if proxied and given.get("ProxyAuth") != "iam":
            expected.add("ApplicationSecret")
        if "RouteTableIds" in given:
            expected |= {"EndpointSecurityGroup", "SecretsEndpoint", "ResponsesEndpoint"}
        assert nested.resources.keys() == expected, name
        database = nested.properties("Cluster" if aurora else "Instance")
        assert database["Engine"] == ("aurora-postgresql" if aurora else "postgres"), name
        assert database["EngineVersion"] == given.get("EngineVersion", "17"), name
        assert database["MasterUsername"] == "postgres"
        assert database["DBSubnetGroupName"] == "ref-SubnetGroup"
        assert database["EnableCloudwatchLogsExports"] == ["postgresql"]
        for instance in nested.of_type("AWS::RDS::DBInstance").values():
            assert instance["DBInstanceClass"] == ("db.serverless" if aurora else "db.t4g.micro"), name
            assert instance["Engine"] == database["Engine"]
            assert instance["AutoMinorVersionUpgrade"] is True
            assert instance.get("DBClusterIdentifier") == ("ref-Cluster" if aurora else None)
        for kind in ("AWS::EC2::SecurityGroup", "AWS::EC2::VPCEndpoint"):
            for logical_id, resource in nested.of_type(kind).items():
                assert resource["VpcId"] == "vpc-1", f"{name}: {logical_id}"


def templated_database(template: dict, name: str) -> tuple[str | None, str | None]:
    """Return what the database is called where its name is given, and where it is postgres, which is always there."""
    found = []
    for database in (name, "postgres"):
        instance = Stack(template, NESTED | {"Database": database}).properties("Instance")
        cluster = Stack(template, NESTED | {"Mode": "aurora", "Database": database}).properties("Cluster")
        assert instance.get("DBName") == cluster.get("DatabaseName")
        found.append(instance.get("DBName"))
    return found[0], found[1]


def what_others_use_is_kept(templates: Templates) -> None:
    """A layer's version that other stacks may use outlives the stack, and the next version; what is not shared goes."""
    for name, stack in templates.everywhere():
        for logical_id, of in stack.resources.items():
            if of["Type"] == "AWS::Lambda::LayerVersion":
                kept = logical_id.startswith("PlungepoolLayer")
                assert of["DeletionPolicy"] == ("Retain" if kept else "Delete"), f"{name}: {logical_id}"
            elif of["Type"] not in ("AWS::RDS::DBCluster", "AWS::RDS::DBInstance", "AWS::Lambda::Version"):
                assert of.get("DeletionPolicy", "Delete") == "Delete", f"{name}: {logical_id}"


def engine_version_is_offered(templates: Templates) -> None:
    """
    RDS offers the version for both kinds of demo database, by the lists that cfn-lint ships (it resolves no parameter).
    """
    [lists] = ROOT.glob(".venv-sam/lib/python*/site-packages/cfnlint/data/schemas/extensions")
    version = templates.database["Parameters"]["EngineVersion"]["Default"]
    for kind, engine in (("dbcluster", "aurora-postgresql"), ("dbinstance", "postgres")):
        schema = json.loads((lists / f"aws_rds_{kind}" / "engine_version.json").read_text())
        [offered] = [
            case["then"]["properties"]["EngineVersion"]["enum"]
            for case in schema["allOf"]
            if case["if"]["properties"]["Engine"] == {"const": engine}
        ]
        assert version in offered, f"{version} of {engine}"


def passwords_are_not_shown(templates: Templates) -> None:
    """
    A parameter that takes a password hides it; it reaches the variables of the functions that use it, and nothing else.
    """
    for template in (templates.application, templates.database, templates.project):
        for name, declared in template["Parameters"].items():
            assert (declared.get("NoEcho") is True) == name.endswith("Password"), name
            assert not (name.endswith("Password") and declared["Default"])
    stack = templates.deploy("existing, password")
    shown = {"of-the-role": set(), "of-the-admin": set()}
    for path, text in stack.everything():
        for password, where in shown.items():
            if password in text:
                where.add(path)
    functions = stack.of_type("AWS::Lambda::Function")
    own = {f"/{name}/Environment/Variables/PLUNGEPOOL_PASSWORD" for name in functions}
    preparing = "/PrepareDatabaseFunction/Environment/Variables/"
    assert shown["of-the-admin"] == {preparing + "PLUNGEPOOL_PASSWORD"}
    assert shown["of-the-role"] == own - {preparing + "PLUNGEPOOL_PASSWORD"} | {preparing + "APP_ROLE_PASSWORD"}


@each_deployment
def secrets_are_named_where_they_are_used(name: str, stack: Stack) -> None:
    """Only prepare_database is told of the administrator; the functions of their secret where they sign in by it."""
    given = DEPLOYMENTS[name]
    for logical_id, function in stack.of_type("AWS::Lambda::Function").items():
        variables = function["Environment"]["Variables"]
        if logical_id == "PrepareDatabaseFunction":
            continue
        assert variables["PLUNGEPOOL_SECRET_ARN"] == (given["SecretArn"] if given.get("Auth") == "secret" else ""), name
        assert bool(variables["PLUNGEPOOL_PASSWORD"]) == (given.get("Auth") == "password"), name
        assert not any(key.startswith("APP_ROLE") for key in variables)
    for nested in stack.nested.values():
        for secret in nested.of_type("AWS::SecretsManager::Secret").values():
            generated = secret["GenerateSecretString"]
            assert json.loads(generated["SecretStringTemplate"]) == {"username": stack.values["User"]}
            assert (generated["GenerateStringKey"], generated["PasswordLength"] >= 32) == ("password", True)
            assert generated["ExcludePunctuation"] is True
            assert "SecretString" not in secret


def queue_outlives_its_function(templates: Templates) -> None:
    """A message stays hidden six times as long as the function runs, and dies into a queue that keeps it longer."""
    stack = templates.deploy("existing, DSQL")
    queue, dead = stack.properties("Orders"), stack.properties("DeadOrders")
    assert queue["VisibilityTimeout"] >= 6 * stack.properties("FulfilOrdersFunction")["Timeout"]
    assert dead["MessageRetentionPeriod"] > queue["MessageRetentionPeriod"]
    assert 3 <= queue["RedrivePolicy"]["maxReceiveCount"] <= 10
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == "Arn-of-DeadOrders"
    for name, properties in stack.of_type("AWS::SQS::Queue").items():
        assert properties["SqsManagedSseEnabled"] is True, name
        assert properties["MessageRetentionPeriod"] == 1209600 or name == "Orders", name
    [source] = stack.of_type("AWS::Lambda::EventSourceMapping").values()
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert source["EventSourceArn"] == "Arn-of-Orders"
    assert source["BatchSize"] <= 10


def schedule_is_well_formed(templates: Templates) -> None:
    """The schedule is an expression that EventBridge takes: rate(1 hour), rate(2 hours) or six fields of cron."""
    schedules = templates.deploy("existing, DSQL").of_type("AWS::Scheduler::Schedule").values()
    assert schedules
    for schedule in schedules:
        expression = schedule["ScheduleExpression"]
        one, many = r"rate\(1 (minute|hour|day)\)", r"rate\(([2-9]|[1-9]\d+) (minutes|hours|days)\)"
        if not re.fullmatch(f"{one}|{many}", expression):
            fields = re.fullmatch(r"cron\(([^()]+)\)", expression)
            assert fields, expression
            minute, hour, day, month, weekday, year = fields[1].split(" ")
            assert re.fullmatch(r"[\d,*/-]+", minute + hour + month + year), expression
            assert (day == "?") != (weekday == "?"), expression
            assert (int(hour) < 24, int(minute) < 60) == (True, True), expression


def report_is_of_yesterday_and_never_lost(templates: Templates) -> None:
    """
    The report is asked for once a day of UTC, by which it counts; tried again within that day; and else kept in a
    queue.
    """
    stack = templates.deploy("existing, DSQL")
    [schedule] = stack.of_type("AWS::Scheduler::Schedule").values()
    assert schedule["ScheduleExpressionTimezone"] == "UTC"
    assert schedule.get("State", "ENABLED") == "ENABLED"
    minute, hour = map(int, re.fullmatch(r"cron\((\d+) (\d+) \* \* \? \*\)", schedule["ScheduleExpression"]).groups())
    window = schedule["FlexibleTimeWindow"]["MaximumWindowInMinutes"]
    target = schedule["Target"]
    assert target["Arn"] == "Arn-of-ReportSalesFunction"
    assert target["RetryPolicy"]["MaximumRetryAttempts"] >= 3
    assert target["DeadLetterConfig"] == {"Arn": "Arn-of-LostReports"}
    [invoked] = stack.of_type("AWS::Lambda::EventInvokeConfig").values()
    assert invoked["FunctionName"] == "ref-ReportSalesFunction"
    assert invoked["MaximumRetryAttempts"] == 2
    assert invoked["DestinationConfig"] == {"OnFailure": {"Destination": "Arn-of-LostReports"}}
    # A retry after midnight would report another day.
    latest = target["RetryPolicy"]["MaximumEventAgeInSeconds"] + invoked["MaximumEventAgeInSeconds"]
    assert (hour * 60 + minute + window) * 60 + latest < 24 * 3600


def logs_end(templates: Templates) -> None:
    """Every function, the API, the database and the proxy write to a log group of the stack that has an end."""
    for name, stack in templates.everywhere():
        groups = stack.of_type("AWS::Logs::LogGroup")
        for key, group in groups.items():
            expected = 30 if name.startswith("project") else "30"
            assert group["RetentionInDays"] == expected, f"{name}: {key}"
        used = []
        for function in stack.of_type("AWS::Lambda::Function").values():
            used.append(function["LoggingConfig"]["LogGroup"].removeprefix("ref-"))
            assert function["LoggingConfig"]["LogFormat"] == "JSON"
            assert function["TracingConfig"] == {"Mode": "Active"}
        assert len(used) == len(set(used))
        assert set(used) <= groups.keys()
        named = {group.get("LogGroupName"): key for key, group in groups.items()}
        # What RDS writes to, if it is there before; it would make the group itself, without an end.
        for kind, key, path in (
            ("AWS::RDS::DBCluster", "DBClusterIdentifier", "/aws/rds/cluster/{}/postgresql"),
            ("AWS::RDS::DBInstance", "DBInstanceIdentifier", "/aws/rds/instance/{}/postgresql"),
            ("AWS::RDS::DBProxy", "DBProxyName", "/aws/rds/proxy/{}"),
        ):
            for logical_id, resource in stack.of_type(kind).items():
                if kind == "AWS::RDS::DBProxy" or resource.get("EnableCloudwatchLogsExports"):
                    group = named.get(path.format(resource[key]))
                    assert stack.attribute(logical_id, "DependsOn") == group is not None, f"{name}: {logical_id}"
    days = templates.deploy_with(DEPLOYMENTS["aurora, proxy"] | {"LogRetentionDays": "7"})
    for stack in (days, days.nested["DemoDatabase"]):
        assert {group["RetentionInDays"] for group in stack.of_type("AWS::Logs::LogGroup").values()} == {"7"}


# Namespace, metric: dimension, statistics that say something, and the least and the greatest sensible threshold.
# AWS: Lambda Developer Guide, "Types of metrics"; SQS, API Gateway, RDS and Aurora User Guides (rds-proxy.monitoring).
METRICS: dict[tuple[str, str], tuple[str, str, float, float]] = {
    ("AWS/Lambda", "Errors"): ("FunctionName", "Sum", 1, 10),
    ("AWS/Lambda", "Throttles"): ("FunctionName", "Sum", 1, 100),
    ("AWS/ApiGateway", "5xx"): ("ApiId", "Sum", 1, 100),
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): ("QueueName", "Maximum", 1, 1),
    ("AWS/SQS", "ApproximateAgeOfOldestMessage"): ("QueueName", "Maximum", 300, 86400),
    ("Plungepool", "DatabaseCheckoutsFailed"): ("service", "Sum", 1, 20),
    ("Plungepool", "DatabaseDeadlinesExceeded"): ("service", "Sum", 1, 20),
    ("Plungepool", "DatabaseLeaks"): ("service", "Sum", 1, 1),
    ("AWS/RDS", "DatabaseConnections"): ("DB", "Maximum", 50, 95),  # per cent of ConnectionLimit
    ("AWS/RDS", "DBLoadRelativeToNumVCPUs"): ("DBInstanceIdentifier", "Average", 1, 2),  # tight, cannot hold
    ("AWS/RDS", "FreeStorageSpace"): ("DB", "Minimum", 1e9, 4e9),  # bytes
    ("AWS/RDS", "ACUUtilization"): ("DB", "Average", 70, 100),  # per cent
    ("AWS/RDS", "MaxDatabaseConnectionsAllowed"): ("ProxyName", "Sum", 50, 70),  # per cent; AWS: 30 stay free
    ("AWS/RDS", "DatabaseConnectionsSetupFailed"): ("ProxyName", "Sum", 1, 100),
    ("AWS/RDS", "ClientConnectionsSetupFailedAuth"): ("ProxyName", "Sum", 1, 100),
    ("AWS/RDS", "DatabaseConnectionsBorrowLatency"): ("ProxyName", "Average", 100_000, 10_000_000),  # microseconds
    ("AWS/RDS", "DatabaseConnectionsCurrentlySessionPinned"): ("ProxyName", "Minimum", 1, 10),
}


def alarms_of(stack: Stack, topic: str) -> Iterator[tuple[str, str, str]]:
    """Yield namespace, metric and whose it is for each alarm, after a look at whether it can go off, and for whom."""
    for name, alarm in stack.of_type("AWS::CloudWatch::Alarm").items():
        metric = metric_of(name, alarm, stack) if "Metrics" in alarm else alarm
        [dimension] = metric["Dimensions"]
        kind, statistic, least, most = METRICS[metric["Namespace"], metric["MetricName"]]
        if kind == "DB":
            kind = "DBClusterIdentifier" if stack.values.get("Mode") == "aurora" else "DBInstanceIdentifier"
        assert (dimension["Name"], metric["Statistic"]) == (kind, statistic), name
        assert least <= alarm["Threshold"] <= most, name
        assert metric["Period"] in (60, 300), name
        assert 1 <= alarm["EvaluationPeriods"] <= 5
        less = metric["MetricName"] == "FreeStorageSpace"
        assert alarm["ComparisonOperator"] == ("LessThan" if less else "GreaterThanOrEqualTo") + "Threshold", name
        assert alarm["TreatMissingData"] == "notBreaching", name
        for actions in ("AlarmActions", "OKActions"):
            assert alarm.get(actions) == ([topic] if topic else None), name
        assert alarm.get("ActionsEnabled", True) is True
        yield metric["Namespace"].removeprefix("AWS/"), metric["MetricName"], dimension["Value"].rpartition("-")[2]


def metric_of(name: str, alarm: dict, stack: Stack) -> dict:
    """Return the metric that an alarm over a share reads last: of the role's limit, or of what a proxy may open."""
    [shown] = [of for of in alarm["Metrics"] if of.get("ReturnData", True)]
    read = {of["Id"]: of["MetricStat"] for of in alarm["Metrics"] if "MetricStat" in of}
    whole = [key for key in read if key != "connections"] or [stack.values["ConnectionLimit"]]
    assert shown["Expression"] == f"100 * connections / {whole[0]}", name
    used = read["connections"]["Metric"]
    assert (used["Namespace"], used["MetricName"]) == ("AWS/RDS", "DatabaseConnections"), name
    for of in read.values():
        # What is divided is of the same thing, and over the same time.
        assert of["Metric"]["Dimensions"] == used["Dimensions"], name
        assert {key: of[key] for key in ("Stat", "Period")} == {
            key: read["connections"][key] for key in ("Stat", "Period")
        }, name
    last = [*read.values()][-1]
    return last["Metric"] | {"Statistic": last["Stat"], "Period": last["Period"]}


@each_deployment
def what_needs_somebody_wakes_somebody(name: str, stack: Stack) -> None:
    """
    Errors, throttles, dead letters, late orders, 5xx, the database's and the proxy's limits each have one alarm that
    can go off.
    """
    topic = DEPLOYMENTS[name].get("AlarmTopicArn", "")
    functions = {"HandleOrdersFunction", "FulfilOrdersFunction", "ReportSalesFunction"}
    expected = {("Lambda", metric, function) for metric in ("Errors", "Throttles") for function in functions}
    expected |= {("SQS", "ApproximateNumberOfMessagesVisible", queue) for queue in ("DeadOrders", "LostReports")}
    expected |= {("SQS", "ApproximateAgeOfOldestMessage", "Orders"), ("ApiGateway", "5xx", "Api")}
    ours = ("DatabaseCheckoutsFailed", "DatabaseDeadlinesExceeded", "DatabaseLeaks")
    expected |= {("Plungepool", metric, stack.values["AWS::StackName"]) for metric in ours}
    if "DatabaseInstance" in DEPLOYMENTS[name]:
        of_instance = ("DatabaseConnections", "DBLoadRelativeToNumVCPUs", "FreeStorageSpace", "ACUUtilization")
        expected |= {("RDS", metric, "orders") for metric in of_instance}
        expected |= {("RDS", metric, "shared") for (_, metric), (kind, *_) in METRICS.items() if kind == "ProxyName"}
    assert sorted(alarms_of(stack, topic)) == sorted(expected), name
    for nested in stack.nested.values():
        of_database = "Cluster" if stack.values["DatabaseMode"] == "aurora" else "Instance"
        limit = "ACUUtilization" if of_database == "Cluster" else "FreeStorageSpace"
        [instance] = nested.of_type("AWS::RDS::DBInstance")
        expected = {("RDS", "DatabaseConnections", of_database), ("RDS", limit, of_database)}
        expected |= {("RDS", "DBLoadRelativeToNumVCPUs", instance)}
        # Without it there is no DBLoad.
        assert nested.properties(instance)["EnablePerformanceInsights"] is True, name
        if DEPLOYMENTS[name].get("Endpoint") == "proxy":
            expected |= {("RDS", metric, "Proxy") for (_, metric), (kind, *_) in METRICS.items() if kind == "ProxyName"}
        assert sorted(alarms_of(nested, topic)) == sorted(expected), name


@each_deployment
def every_alarm_says_what_to_do(name: str, stack: Stack) -> None:
    """
    An alarm's description is a sentence and the address of a section of the runbook that is there and names the alarm.
    """
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (.+)\n\*([^*]+)\*$", runbook, re.MULTILINE))
    named = {title.lower().replace(" ", "-"): re.findall(r"\w+", alarms) for title, alarms in sections.items()}
    for one in (stack, *stack.nested.values()):
        for alarm, of in one.of_type("AWS::CloudWatch::Alarm").items():
            told, _, address = of["AlarmDescription"].rpartition(" ")
            page, _, section = address.partition("#")
            assert page == "docs/runbook.md", f"{name}: {alarm}"
            assert alarm.removesuffix("Alarm") in named[section], f"{name}: {alarm}"
            assert len(told) > 20, f"{name}: {alarm}"
            assert len(of["AlarmDescription"]) + 400 <= 1024, f"{name}: {alarm}"  # with the longest RunbookUrl


# Ours, as the code names them, by the statistics that say something of a count and of milliseconds.
OUR_METRICS = {
    name: ("Average", "Maximum", "p99") if unit.value == "Milliseconds" else ("Sum", "Average", "p99")
    for name, unit in METRICS_OF_THE_LAYER.values()
}
AWS_METRICS = json.loads((Path(__file__).with_name("aws_metrics.json")).read_text(encoding="utf-8"))["metrics"]
# What a dimension's value names.
OF_DIMENSION = {
    "FunctionName": "AWS::Lambda::Function",
    "ApiId": "AWS::ApiGatewayV2::Api",
    "QueueName": "AWS::SQS::Queue",
    "DBInstanceIdentifier": "AWS::RDS::DBInstance",
    "DBClusterIdentifier": "AWS::RDS::DBCluster",
    "ProxyName": "AWS::RDS::DBProxy",
}
# Dashboard body structure and syntax (CloudWatch API Reference): what a widget of metrics may say.
OF_WIDGET = {"title", "region", "stat", "period", "metrics", "annotations", "yAxis"}
OF_METRIC = {"label", "stat", "yAxis"}


def metrics_exist(templates: Templates) -> None:
    """Each metric that an alarm or the dashboard reads exists, by dimensions that it has, of something that exists."""
    for name, stack in templates.everywhere():
        for alarm, of in stack.of_type("AWS::CloudWatch::Alarm").items():
            read = [one["MetricStat"] for one in of.get("Metrics", [of]) if "MetricStat" in one]
            for metric, statistic in [(one["Metric"], one["Stat"]) for one in read] or [(of, of["Statistic"])]:
                dimensions = {one["Name"]: one["Value"] for one in metric["Dimensions"]}
                look_up(f"{name}: {alarm}", metric["Namespace"], metric["MetricName"], dimensions, statistic, [stack])
        for body in dashboards_of(stack):
            for title, metric in metrics_of(body):
                stacks = [stack, *stack.nested.values()]
                look_up(f"{name}: {title}", *metric, stacks)


def look_up(where: str, namespace: str, metric: str, dimensions: dict, statistic: str, stacks: list[Stack]) -> None:
    """See that a metric is one of AWS's, or of ours as the code makes them, and of what."""
    if namespace == "Plungepool":
        # As every function that sends them has it.
        services = [
            (environment["POWERTOOLS_METRICS_NAMESPACE"], environment["POWERTOOLS_SERVICE_NAME"])
            for function in stacks[0].of_type("AWS::Lambda::Function").values()
            if (environment := function["Environment"]["Variables"])["PLUNGEPOOL_METRICS"] == "on"
        ]
        assert {(namespace, service) for service in dimensions.values()} == set(services), where
        assert dimensions.keys() == {"service"}, where
        assert metric in OUR_METRICS, f"{where}: {metric}"
        assert statistic in OUR_METRICS[metric], f"{where}: {metric}: {statistic}"
        return
    listed = AWS_METRICS[namespace][metric]
    [(kind, value)] = dimensions.items()
    assert kind in listed["dimensions"], f"{where}: {metric} has no {kind}"
    assert statistic in listed["statistics"], f"{where}: {metric}: {statistic}"
    given = {one.values.get(key) for one in stacks for key in ("DatabaseInstance", "DatabaseProxy")}
    if kind in ("DBInstanceIdentifier", "ProxyName") and value in given - {None, ""}:
        return  # of a database that is not the stack's
    named = re.fullmatch(r"(?:ref|QueueName-of)-(\w+)", value)
    assert named is not None, f"{where}: {value}"
    kinds = [one.resources[named[1]]["Type"] for one in stacks if named[1] in one.resources]
    assert kinds == [OF_DIMENSION[kind]], f"{where}: {value}"


def dashboards_of(stack: Stack) -> list[dict]:
    return [json.loads(of["DashboardBody"]) for of in stack.of_type("AWS::CloudWatch::Dashboard").values()]


def metrics_of(body: dict) -> Iterator[tuple[str, tuple[str, str, dict, str]]]:
    """Yield a widget's title, and namespace, name, dimensions and statistic of each metric that it shows."""
    for widget in body["widgets"]:
        properties = widget["properties"]
        for namespace, metric, *dimensions in properties.get("metrics", []):
            options = dimensions.pop()
            pairs = dict(zip(dimensions[::2], dimensions[1::2], strict=True))
            yield properties["title"], (namespace, metric, pairs, options.get("stat", properties["stat"]))


# What must be on the dashboard, beside the functions, the API and the queues.
SHOWN_OF_INSTANCE = {
    "DatabaseConnections",
    "DBLoadRelativeToNumVCPUs",
    "DBLoadNonCPU",
    "CPUUtilization",
    "FreeableMemory",
}
SHOWN_OF_PROXY = {
    "MaxDatabaseConnectionsAllowed", "DatabaseConnections", "DatabaseConnectionsCurrentlyBorrowed", "ClientConnections",
    "DatabaseConnectionsBorrowLatency", "DatabaseConnectionsCurrentlySessionPinned", "DatabaseConnectionsSetupFailed",
    "ClientConnectionsSetupFailedAuth",
}  # fmt: skip


OURS_SHOWN = {
    "DatabaseTime", "DatabaseConnectTime", "DatabaseCheckoutWait", "DatabaseConnects", "DatabaseConnectsFailed",
    "DatabaseReconnects", "DatabaseCheckoutsFailed", "DatabaseErrors", "DatabaseDeadlinesExceeded",
    "DatabaseConnectionsLost",
    "DatabaseLeaks", "DatabasePoolExhausted", "DatabaseRoundTrips", "DatabaseSlowQueries", "DatabasePins",
    "DatabaseConnectionsKept", "DatabaseConnectionsClosed",
}  # fmt: skip


def dashboard_shows_what_matters(templates: Templates) -> None:
    """
    In each deployment the dashboard is JSON as CloudWatch takes it, and shows the database, the proxy, each function,
    queue and alarm that there is, limits included, by few enough metrics to be free.
    """
    own = {"DatabaseInstance": "orders-1", "DatabaseProxy": "orders-proxy"}
    watched = {f"{name}, watched": of | own for name, of in DEPLOYMENTS.items() if "DatabaseMode" not in of}
    for name, given in (DEPLOYMENTS | watched).items():
        stack = templates.deploy_with(given)
        [body] = dashboards_of(stack)
        database = "DatabaseInstance" in given or "DatabaseMode" in given
        proxy = "DatabaseProxy" in given or ("DatabaseMode" in given and given.get("Endpoint") == "proxy")
        shown: dict[str, set[str]] = {}
        for _, (_, metric, dimensions, _) in metrics_of(body):
            shown.setdefault(next(iter(dimensions)), set()).add(metric)
        assert shown.get("DBInstanceIdentifier", set()) == (SHOWN_OF_INSTANCE if database else set()), name
        assert shown.get("ProxyName", set()) == (SHOWN_OF_PROXY if proxy else set()), name
        assert shown["service"] == OURS_SHOWN, name
        assert shown["FunctionName"] == {"Errors", "Throttles", "Duration", "ConcurrentExecutions"}, name
        read = [(metric, *dimensions.values()) for _, (_, metric, dimensions, _) in metrics_of(body)]
        for metric in ("Errors", "Throttles", "Duration", "ConcurrentExecutions"):
            functions = {value for one, value in read if one == metric}
            assert functions == {f"ref-{key}Function" for key in ("HandleOrders", "FulfilOrders", "ReportSales")}, name
        queues = {value for one, value in read if one == "ApproximateNumberOfMessagesVisible"}
        assert queues == {f"QueueName-of-{queue}" for queue in stack.of_type("AWS::SQS::Queue")}, name
        assert len(read) <= 50, f"{name}: {len(read)}"
        widgets_are_as_cloudwatch_takes_them(name, body)
        limits = {of["title"]: of["annotations"]["horizontal"] for of in properties_of(body) if "annotations" in of}
        if database:
            assert [of["value"] for of in limits["Connections to the database"]] == [20], name
            assert [of["value"] for of in limits["Sessions at work for each vCPU"]] == [1, 2], name
        if proxy:
            [second] = limits["How long clients wait for a connection of the proxy's, microseconds"]
            assert second["value"] == 1_000_000, name
        alarms = [
            f"Arn-of-{key}" for one in (stack, *stack.nested.values()) for key in one.of_type("AWS::CloudWatch::Alarm")
        ]
        [listed] = [of["alarms"] for of in properties_of(body) if "alarms" in of]
        assert sorted(listed) == sorted(alarms), name
        assert f"{stack.values['AWS::StackName']}" in body["widgets"][0]["properties"]["markdown"], name
    assert dashboards_of(templates.deploy_with(DEPLOYMENTS["aurora"] | {"MakeDashboard": "false"})) == []
    silent = templates.deploy_with(DEPLOYMENTS["aurora"] | {"DatabaseMetrics": "off"})
    [body] = dashboards_of(silent)
    widgets_are_as_cloudwatch_takes_them("without metrics", body)
    assert "Plungepool" not in {namespace for _, (namespace, *_) in metrics_of(body)}
    assert not {"CheckoutsAlarm", "DeadlinesAlarm", "LeaksAlarm"} & silent.resources.keys()


def properties_of(body: dict) -> list[dict]:
    return [widget["properties"] for widget in body["widgets"]]


def widgets_are_as_cloudwatch_takes_them(name: str, body: dict) -> None:
    """Dashboard body structure and syntax, CloudWatch API Reference."""
    assert body.keys() <= {"start", "periodOverride", "widgets"}, name
    assert body["periodOverride"] in ("auto", "inherit")
    for widget in body["widgets"]:
        assert widget.keys() == {"type", "width", "height", "properties"}, name
        assert 1 <= widget["width"] <= 24, name
        assert 1 <= widget["height"] <= 1000, name
        properties = widget["properties"]
        if widget["type"] == "text":
            assert properties.keys() == {"markdown"}, name
        elif widget["type"] == "alarm":
            assert properties.keys() == {"title", "alarms"}, name
            assert len(properties["alarms"]) <= 100, name
        else:
            assert widget["type"] == "metric", name
            assert {"title", "region", "stat", "period", "metrics"} <= properties.keys() <= OF_WIDGET, name
            assert (properties["region"], properties["period"]) == (HOME.region, 60), name
            for *_, options in properties["metrics"]:
                assert {"label"} <= options.keys() <= OF_METRIC, f"{name}: {properties['title']}"
            for line in properties.get("annotations", {}).get("horizontal", []):
                assert line.keys() == {"label", "value", "color"}, name
    # Rows of 24 columns, so that no widget stands alone.
    row = 0
    for widget in body["widgets"]:
        row += widget["width"]
        assert row <= 24, name
        row %= 24
    assert row == 0, name


def log_lines(recorder: Recorder) -> Iterator[dict]:
    """Yield what the functions' logs hold: a line of Powertools, one of Lambda's formatter, and Lambda's own."""
    written = io.StringIO()
    logger = Logger(service="shop", stream=written, logger_handler=logging.StreamHandler(written))
    context = LambdaContext(function_name="handle_orders")
    keys = {"function_name": context.function_name, "function_request_id": context.aws_request_id}
    # As the sample functions log it, and what inject_lambda_context adds.
    logger.error("the database is unavailable", sqlstate="53300", reason="full", **keys)
    try:
        raise RuntimeError("of a test")
    except RuntimeError:
        logger.exception("a message is wrong", message_id="1", **keys)
        raised = sys.exc_info()
    yield from map(json.loads, written.getvalue().splitlines())
    tally = Tally(context.aws_request_id)
    tally.failure, tally.duration_s = "OperationalError", 0.25
    line = json.dumps(recorder.document(tally, "failed"), separators=(",", ":"))
    # As slow.py writes it; test_dashboard.py has a real one.
    slow = {"plungepool": "plungepool-slow-query/1", "fingerprint": "0a1b", "statement": 'select "a" from t'}
    slow |= {"took_ms": 1500.5, "rows": 3, "round_trips": 1, "request_id": None, "where": "app.py:7 in f"}
    slow_line = json.dumps(slow, separators=(",", ":"))
    for text, exception in ((line, None), (slow_line, None), ("Unhandled", raised)):
        record = logging.LogRecord("plungepool", logging.WARNING, "", 0, "%s", (text,), exception)
        record.aws_request_id = context.aws_request_id  # by the runtime's own filter
        yield json.loads(JsonFormatter().format(record))
    # Lambda Developer Guide, "Lambda system log event types"; a time-out is a report of that status.
    yield {"time": "", "type": "platform.report", "record": {"requestId": "1", "status": "timeout", "metrics": {}}}


# What stands in a query of Logs Insights and is no field (CloudWatch Logs User Guide, "Logs Insights QL commands").
COMMANDS = {"fields", "filter", "parse", "sort", "limit", "stats"}
WORDS = {"coalesce", "count", "sum", "max", "avg", "latest", "as", "by", "in", "or", "like", "desc"}


def parsed_by(asked: str, message: str) -> dict[str, str]:
    """Return what the `parse` commands of a query make of a message; each must find something."""
    parsed: dict[str, str] = {}
    for glob, made in re.findall(r"parse message '([^']+)' as ([\w, ]+)", asked):
        found = re.search(re.escape(glob).replace(r"\*", "(.*?)"), message)
        assert found is not None, glob
        parsed |= dict(zip(made.strip().split(", "), found.groups(), strict=True))
    return parsed


def saved_queries_find_what_is_logged(templates: Templates) -> None:
    """
    A saved query is of this stack and its functions' logs; it asks for fields that a line of a log has, and takes the
    lines of the flight recorder and of slow statements apart as they are written.
    """
    stack = templates.deploy("aurora, proxy")
    recorder = Recorder({"AWS_LAMBDA_FUNCTION_NAME": "handle_orders", "AWS_LAMBDA_FUNCTION_VERSION": "7"}, 1.0)
    lines = [*log_lines(recorder)]
    known = {"@timestamp", "@log"} | {key for line in lines for key in line}
    known |= {f"record.{key}" for line in lines for key in line.get("record", {})}
    used = {function["LoggingConfig"]["LogGroup"] for function in stack.of_type("AWS::Lambda::Function").values()}
    queries = {of["Name"]: of for of in stack.of_type("AWS::Logs::QueryDefinition").values()}
    assert queries.keys() == {"shop/errors", "shop/failed-invocations", "shop/slow-queries"}
    told = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    assert {f"shop/{name}" for name in re.findall(r"saved query \*([a-z-]+)\*", told)} == queries.keys()
    parsed = {}
    for name, of in queries.items():
        assert set(of["LogGroupNames"]) <= used, name
        asked = of["QueryString"]
        assert {part.split()[0] for part in asked.split("|")} <= COMMANDS, name
        made = {one for names in re.findall(r" as (\w+(?:, \w+)*)", asked) for one in names.split(", ")}
        names = set(re.findall(r"[@\w.]+", re.sub(r"'[^']*'|\"[^\"]*\"", "", asked)))
        assert {one for one in names if not one.isdigit()} - made - WORDS - COMMANDS - known == set(), name
        if filtered := re.findall(r'filter message like "([^"]+)"', asked):
            [line] = [line["message"] for line in lines if filtered[0] in str(line.get("message"))]
            parsed[name] = parsed_by(asked, line)
    failed, slow = parsed["shop/failed-invocations"], parsed["shop/slow-queries"]
    assert (failed["why"], failed["function"], failed["failure"]) == ("failed", "handle_orders", "OperationalError")
    assert float(failed["duration_ms"]) == 250
    assert (slow["fingerprint"], slow["statement"], slow["place"]) == ("0a1b", r"select \"a\" from t", "app.py:7 in f")
    assert (float(slow["took_ms"]), int(slow["rows"])) == (1500.5, 3)
    # What ends an invocation without a word of its own is found, too.
    [levels] = re.findall(r"level in \[([^\]]+)\]", queries["shop/errors"]["QueryString"])
    assert {line["level"] for line in lines if "level" in line} <= set(re.findall(r"\w+", levels))
    assert '"timeout"' in queries["shop/errors"]["QueryString"]


def new_version_is_tried_first(templates: Templates) -> None:
    """
    A new version of handle_orders takes over as OrdersDeployment says, and is rolled back if the old alarm goes off.
    """
    assert templates.source["Resources"]["HandleOrdersFunction"]["Properties"]["DeploymentPreference"]["Type"] == {
        "Ref": "OrdersDeployment"
    }
    stack = templates.deploy("existing, DSQL")
    group = stack.properties("HandleOrdersFunctionDeploymentGroup")
    assert group["DeploymentConfigName"] == "CodeDeployDefault.LambdaCanary10Percent5Minutes"
    assert group["AlarmConfiguration"] == {"Enabled": True, "Alarms": [{"Name": "ref-HandleOrdersErrorsAlarm"}]}
    assert "DEPLOYMENT_STOP_ON_ALARM" in group["AutoRollbackConfiguration"]["Events"]
    policy = stack.attribute("HandleOrdersFunctionAliaslive", "UpdatePolicy")["CodeDeployLambdaAliasUpdate"]
    assert policy["DeploymentGroupName"] == "ref-HandleOrdersFunctionDeploymentGroup"
    # Shorter than the canary's time, or it would go off when all is over.
    alarm = stack.properties("HandleOrdersErrorsAlarm")
    assert alarm["Period"] * alarm["EvaluationPeriods"] <= 120


@each_deployment
def outputs_say_where_things_are(name: str, stack: Stack) -> None:
    """Each output is what its name says, and every text in the stack resolves."""
    layer = f"ref-{next(key for key in stack.resources if key.startswith('PlungepoolLayer'))}"
    assert stack.outputs() == {
        "LayerArn": layer,
        "LayerArnParameter": "ref-LayerArnParameter",
        "ApiUrl": f"https://ref-Api.execute-api.{HOME.region}.amazonaws.com/orders",
        "QueueUrl": "ref-Orders",
        "DeadLetterQueueUrl": "ref-DeadOrders",
        "LostReportsUrl": "ref-LostReports",
        "HandleOrdersAlias": "ref-HandleOrdersFunctionAliaslive",
        "PrepareDatabaseFunction": "ref-PrepareDatabaseFunction",
        "CheckDatabaseFunction": "ref-CheckDatabaseFunction",
    }
    assert stack.properties("LayerArnParameter")["Value"] == layer
    for nested in stack.nested.values():
        kind = "Cluster" if DEPLOYMENTS[name]["DatabaseMode"] == "aurora" else "Instance"
        proxied = DEPLOYMENTS[name].get("Endpoint") == "proxy"
        expected = {
            "Host": "Endpoint-of-Proxy" if proxied else f"Endpoint.Address-of-{kind}",
            "Port": DEPLOYMENTS[name].get("Port", "5432"),
            "ResourceId": "prx-Proxy"
            if proxied
            else f"Db{'i' if kind == 'Instance' else 'Cluster'}ResourceId-of-{kind}",
            "AdminHost": f"Endpoint.Address-of-{kind}",
            "AdminSecretArn": f"MasterUserSecret.SecretArn-of-{kind}",
            "InstanceId": "ref-ClusterInstance" if kind == "Cluster" else "ref-Instance",
        }
        alarms = ["Connections", "Load", "Capacity" if kind == "Cluster" else "Storage"]
        if proxied:
            expected["ProxyName"] = "ref-Proxy"
            alarms += [f"Proxy{alarm}" for alarm in ("Connections", "Connects", "Refusals", "Waits", "Pinned")]
        expected["AlarmArns"] = '", "'.join(f"Arn-of-{alarm}Alarm" for alarm in alarms)
        expected["ResourceId"] = expected["ResourceId"].replace("DbCluster", "DBCluster")
        if proxied and DEPLOYMENTS[name].get("ProxyAuth") != "iam":
            expected["ApplicationSecretArn"] = "Id-of-ApplicationSecret"
        assert nested.outputs() == expected, name
    for path, text in stack.everything():
        assert "${" not in text or path.startswith("/Api/Body"), f"{name}: {path}: {text}"


NAMES = {"LogGroupName", "LayerName", "FunctionName", "RoleName", "QueueName", "AlarmName", "TopicName", "SecretName",
         "DBClusterIdentifier", "DBInstanceIdentifier", "DBProxyName", "DBSubnetGroupName", "GroupName",
         "ManagedPolicyName", "DashboardName"}  # fmt: skip


def two_stacks_fit_into_one_account(templates: Templates) -> None:
    """
    No resource has a name that a second stack would give to its own: each has the stack's name or id in it, or none.
    """
    for name, stack in templates.everywhere():
        if name == "layer":
            continue  # that one is there once, under a name that others know
        own = (stack.values["AWS::StackName"], stack.values["AWS::StackId"].rpartition("-")[2], "ref-")
        for logical_id, resource in stack.resources.items():
            properties = stack.properties(logical_id)
            given = {properties.get(key) for key in NAMES}
            if resource["Type"] == "AWS::Lambda::LayerVersion":  # else SAM names it by its logical id
                assert "LayerName" in properties, f"{name}: {logical_id}"
            if resource["Type"] in (
                "AWS::Scheduler::Schedule",
                "AWS::SSM::Parameter",
                "AWS::SecretsManager::Secret",
                "AWS::Logs::QueryDefinition",
            ):
                given.add(properties.get("Name"))
            for fixed in filter(None, given):
                assert any(part in fixed for part in own), f"{name}: {logical_id}: {fixed}"


# What each parameter takes, and what it refuses.
NAME_BOUNDS = (["orders", "_x", "A" * 63], ["", "A" * 64, "1x", "a-b", "a*", "a\n"])
SECRET_BOUNDS = (
    ["", SECRET + "app-Ab12Cd", SECRET.replace("arn:aws:", "arn:aws-us-gov:") + "rds!db-1-Ab12Cd"],
    ["app", SECRET + "app", SECRET + "*", "arn:aws:ssm:eu-west-1:123456789012:parameter/x-Ab12Cd"],
)
KEY_BOUNDS = (
    ["", KEY + "mrk-1", KEY.replace("aws:", "aws-cn:") + "1a-b"],
    ["*", "alias/x", KEY + "*", SECRET + "x-Ab12Cd"],
)
TOPIC_BOUNDS = (["", TOPIC], ["on-call", TOPIC + "*", SECRET + "x-Ab12Cd"])
FLAG_BOUNDS = (["true", "false"], ["", "yes", "True"])
DAYS_BOUNDS = (["1", "3653"], ["0", "2", "-1", "x"])
SECONDS_BOUNDS = (["0", "0.5", "86400"], ["-1", "86401", "x", ""])
BOUNDS: dict[str, tuple[list[str], list[str]]] = {
    "DatabaseMode": (["existing", "aurora", "instance"], ["", "cluster"]),
    "Endpoint": (["direct", "proxy"], ["", "pooler"]),
    "Host": (["", "db.example.com", "::1", "a_b"], ["a b", "db/x", "db,x", "db\n"]),
    "Port": (["1", "65535"], ["0", "65536", "-1", "x", ""]),
    "Database": NAME_BOUNDS,
    "User": NAME_BOUNDS,
    "Auth": (["password", "secret", "iam", "dsql"], ["", "none"]),
    "SecretArn": SECRET_BOUNDS,
    "SecretKeyArn": KEY_BOUNDS,
    "ResourceId": (["", "prx-1a", "cluster-A1", "db-1", "a" * 26], ["*", "my-database", "prx-*", "a" * 25]),
    "Password": (["", "any thing ü"], []),
    "Tls": (["verify-full", "disable"], ["", "require"]),
    "AdminSecretArn": SECRET_BOUNDS,
    "AdminSecretKeyArn": KEY_BOUNDS,
    "AdminUser": (["", *NAME_BOUNDS[0]], NAME_BOUNDS[1][1:]),
    "AdminPassword": (["", "any thing ü"], []),
    "VpcId": (["", "vpc-0a1b"], ["vpc-", "subnet-1", "vpc-xyz"]),
    "SubnetIds": (["", "subnet-1,subnet-2"], []),
    "SecurityGroupIds": (["", "sg-1"], []),
    "DatabaseCidr": (["0.0.0.0/0", "10.0.0.0/16", "10.1.2.3/32"], ["", "10.0.0.0", "10.0.0.0/33", "::/0", "10.0.0/8"]),
    "RouteTableIds": (["", "rtb-1,rtb-2"], []),
    "Pool": (["tiny", "null", "adaptive"], ["", "large"]),
    "PoolSize": (["1", "16"], ["0", "17", "x"]),
    "FleetLimit": (["0", "10000"], ["-1", "10001"]),
    "ConnectionLimit": (["1", "10000"], ["0", "10001", "-1"]),
    "StatementTimeoutSeconds": SECONDS_BOUNDS,
    "LockTimeoutSeconds": SECONDS_BOUNDS,
    "IdleInTransactionTimeoutSeconds": SECONDS_BOUNDS,
    "IdleSessionTimeoutSeconds": SECONDS_BOUNDS,
    "OrdersConcurrency": (["0", "1000"], ["-1", "1001"]),
    "WorkersConcurrency": (["2", "1000"], ["1", "1001"]),  # the bounds of SQS
    "EngineVersion": (["14", "18", "16.3", "17.10"], ["", "13", "19", "17.", "17.123", "latest"]),
    "ProxyAuth": (["secret", "iam"], ["", "password"]),
    "ProtectDatabase": FLAG_BOUNDS,
    "FinalSnapshot": FLAG_BOUNDS,
    "Architecture": (["arm64", "x86_64"], ["", "amd64"]),
    "LogLevel": (["DEBUG", "INFO", "WARN", "ERROR"], ["", "WARNING", "info"]),
    "LogRetentionDays": DAYS_BOUNDS,
    "PowertoolsLayerArn": (
        ["", f"arn:aws:lambda:{HOME.region}:017000801446:layer:AWSLambdaPowertoolsPythonV3-python313-arm64:1"],
        ["*", f"arn:aws:lambda:{HOME.region}:017000801446:layer:Powertools"],
    ),
    "OrdersDeployment": (["AllAtOnce", "Canary10Percent5Minutes"], ["", "Canary"]),
    "AlarmTopicArn": TOPIC_BOUNDS,
    "MakeDashboard": FLAG_BOUNDS,
    "DatabaseMetrics": (["on", "off"], ["", "true"]),
    "DatabaseInstance": (["", "orders-1"], ["1orders", "orders.example", "a" * 64]),
    "DatabaseProxy": (["", "orders-proxy"], ["-orders", "orders/proxy", "a" * 64]),
    "RunbookUrl": (["docs/runbook.md", "https://wiki.example.com/run?page=1"], ["", "a b", "a#b", "<a>", "a" * 401]),
}
DATABASE_BOUNDS: dict[str, tuple[list[str], list[str]]] = {
    "Mode": (["aurora", "instance"], ["", "existing"]),
    "Port": (["1150", "65535"], ["1149", "65536"]),  # RDS's own
    "Protect": FLAG_BOUNDS,
    "VpcId": (["vpc-1"], [""]),
    "SubnetIds": (["subnet-1,subnet-2"], [""]),
    "ClientSecurityGroupId": (["sg-1"], [""]),
}
PROJECT_BOUNDS: dict[str, tuple[list[str], list[str]]] = {
    "Host": (["db", "::1"], ["", "a b"]),
    "ResourceId": (["prx-1", "cluster-A", "db-1"], ["", "*", "my-database"]),
    "Concurrency": (["0", "1000"], ["-1", "1001"]),
    "PlungepoolLayerArn": (
        ["", f"arn:aws:lambda:{HOME.region}:{ACCOUNT}:layer:plungepool:1"],
        ["*", f"arn:aws:lambda:{HOME.region}:{ACCOUNT}:layer:plungepool"],
    ),
}


def parameters_are_held_to_their_bounds(templates: Templates) -> None:
    """
    Each parameter of each template takes what it should, up to its bounds, and nothing beyond; and says what it is.
    """
    shared = {name: BOUNDS[name] for name in templates.database["Parameters"].keys() & BOUNDS.keys()}
    for template, bounds in (
        (templates.application, BOUNDS),
        (templates.database, shared | DATABASE_BOUNDS),
        (
            templates.project,
            {key: BOUNDS[key] for key in ("Endpoint", "Database", "User", "SubnetIds", "SecurityGroupIds")}
            | PROJECT_BOUNDS,
        ),
    ):
        declared = template["Parameters"]
        assert declared.keys() == bounds.keys()
        for name, (taken, refused) in bounds.items():
            assert len(declared[name]["Description"]) > 10, name
            assert [value for value in taken if refusal(declared[name], value)] == [], name
            assert [value for value in refused if not refusal(declared[name], value)] == [], name
            default = declared[name].get("Default")
            assert default is None or refusal(declared[name], str(default)) is None, name


def parameters_have_a_use_and_a_place(templates: Templates) -> None:
    """Each parameter and condition is used; the console shows each parameter once, in a group."""
    for template in (templates.source, templates.database, templates.project):
        used = json.dumps({key: of for key, of in template.items() if key not in ("Parameters", "Metadata")})
        for name in template["Parameters"]:
            assert f'{{"Ref": "{name}"}}' in used or f"${{{name}}}" in used, name
        for name in template["Conditions"]:
            assert f'{{"Condition": "{name}"}}' in used or f'"{name}", ' in used or f'"Condition": "{name}"' in used, (
                name
            )
        if "Metadata" in template:
            groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
            shown = [name for group in groups for name in group["Parameters"]]
            assert sorted(shown) == sorted(template["Parameters"])


def nested_parameters_and_outputs_match(templates: Templates) -> None:
    """What the application hands to the nested stack is what that one declares, under the same bounds and defaults."""
    given = templates.application["Resources"]["DemoDatabase"]["Properties"]["Parameters"]
    declared = templates.database["Parameters"]
    assert given.keys() == declared.keys()
    same = {"Mode": "DatabaseMode", "Protect": "ProtectDatabase"} | {
        name: name for name in declared.keys() & templates.application["Parameters"].keys()
    }
    for theirs, ours in same.items():
        one, other = templates.application["Parameters"][ours], declared[theirs]
        if theirs in ("VpcId", "SubnetIds", "Mode"):
            continue  # empty in the application where there is no demo database
        for key in ("Default", "AllowedPattern", "AllowedValues", "MaxValue"):
            assert one.get(key) == other.get(key), theirs
        assert given[theirs] in ({"Ref": ours}, {"Fn::Join": [",", {"Ref": ours}]}), theirs


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "nothing at all": ({}, "needs Host"),
    "a secret without its ARN": ({"Host": "db", "Auth": "secret"}, "needs SecretArn"),
    "IAM without an id": ({"Host": "db"}, "need ResourceId"),
    "DSQL without an id": ({"Host": "db", "Auth": "dsql"}, "need ResourceId"),
    "no password": ({"Host": "db", "Auth": "password"}, "needs Password"),
    "a token in clear": ({"Host": "db", "ResourceId": "db-1", "Tls": "disable"}, "must be verify-full"),
    "DSQL behind a proxy": (
        {"Host": "db", "Auth": "dsql", "ResourceId": "a" * 26, "Endpoint": "proxy"},
        "needs Endpoint direct",
    ),
    "an administrator without a password": (
        {"Host": "db", "Auth": "password", "Password": "x", "AdminUser": "a"},
        "AdminUser needs AdminPassword",
    ),
    "an administrator without a password beside a secret": (
        {"Host": "db", "Auth": "secret", "SecretArn": SECRET + "app-Ab12Cd", "AdminUser": "a"},
        "AdminUser needs AdminPassword",
    ),
    "a password without an administrator": (
        {"Host": "db", "ResourceId": "db-1", "AdminPassword": "x"},
        "AdminPassword needs AdminUser",
    ),
    "tickets of DSQL": (
        {"Host": "db", "Auth": "dsql", "ResourceId": "a" * 26, "Pool": "adaptive"},
        "needs Pool tiny or null",
    ),
    "a fleet's limit without tickets": (
        {"Host": "db", "ResourceId": "db-1", "FleetLimit": "20"},
        "FleetLimit is for Pool adaptive",
    ),
    "endpoints for a database of one's own": (
        {"Host": "db", "ResourceId": "db-1", "RouteTableIds": "rtb-1"} | NETWORK,
        "RouteTableIds is for a demo database",
    ),
    "aurora without a network": ({"DatabaseMode": "aurora"}, "need VpcId"),
    "instance without subnets": ({"DatabaseMode": "instance", "VpcId": "vpc-1"}, "instance need SubnetIds"),
    "aurora without a VPC": (
        {"DatabaseMode": "aurora", "SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"},
        "need VpcId",
    ),
    "a proxy at another port": (
        {"DatabaseMode": "aurora", "Endpoint": "proxy", "Port": "5433"} | NETWORK,
        "needs Port 5432",
    ),
    "subnets without groups": ({"Host": "db", "ResourceId": "db-1", "SubnetIds": "subnet-1"}, "SubnetIds need"),
    "groups without subnets": ({"Host": "db", "ResourceId": "db-1", "SecurityGroupIds": "sg-1"}, "need SubnetIds"),
    "a VPC without subnets": ({"Host": "db", "ResourceId": "db-1", "VpcId": "vpc-1"}, "need SubnetIds"),
    "an instance of one's own beside a demo database": (
        {"DatabaseMode": "aurora", "DatabaseInstance": "orders-1"} | NETWORK,
        "are for DatabaseMode existing",
    ),
    "a proxy of one's own beside a demo database": (
        {"DatabaseMode": "instance", "DatabaseProxy": "orders-proxy"} | NETWORK,
        "are for DatabaseMode existing",
    ),
    "a demo database below RDS's ports": (
        {"DatabaseMode": "aurora", "Port": "1149"} | NETWORK,
        "Port must be at least",
    ),
}
TAKEN: dict[str, dict[str, str]] = DEPLOYMENTS | {
    "a pooler of one's own at another port": {
        "Host": "db",
        "Auth": "password",
        "Password": "x",
        "Endpoint": "proxy",
        "Port": "6432",
    },
    "a password in clear": {"Host": "db", "Auth": "password", "Password": "x", "Tls": "disable"},
    "groups of one's own": {"Host": "db", "ResourceId": "db-1", "SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"},
    "tickets": {"Host": "db", "ResourceId": "db-1", "Pool": "adaptive"},
    "tickets of a limit": {"Host": "db", "ResourceId": "db-1", "Pool": "adaptive", "FleetLimit": "20"},
    "tickets that a proxy makes needless": {
        "Host": "px",
        "ResourceId": "prx-1",
        "Endpoint": "proxy",
        "Pool": "adaptive",
        "FleetLimit": "20",
    },
    "a group that is made": {"Host": "db", "ResourceId": "db-1"} | NETWORK,
    "an instance without a host": {"DatabaseMode": "instance", "Auth": "secret"} | NETWORK,
}


def rules_refuse_what_would_not_work(templates: Templates) -> None:
    """CloudFormation refuses each set of parameters that could not work, says what is missing, and takes the others."""
    for name, (parameters, text) in REFUSED.items():
        assert text in (why_refused(templates.deploy_with, parameters) or "it is taken"), name
    for name, parameters in TAKEN.items():
        assert why_refused(templates.deploy_with, parameters) is None, name
    for endpoint, port, fits in (("proxy", "5432", True), ("proxy", "5433", False), ("direct", "5433", True)):
        refused = why_refused(Stack, templates.database, NESTED | {"Endpoint": endpoint, "Port": port})
        assert (refused is None) is fits, refused
    subnets, groups = {"SubnetIds": "subnet-1"}, {"SecurityGroupIds": "sg-1"}
    for network, fits in (({}, True), (subnets, False), (groups, False), (subnets | groups, True)):
        assert (why_refused(Stack, templates.project, PROJECT | network) is None) is fits, network


def why_refused(deploy: Callable[..., Stack], *arguments: Any) -> str | None:
    try:
        deploy(*arguments)
    except Refused as refused:
        return str(refused)
    return None


def api_asks_for_a_signature(templates: Templates) -> None:
    """Every route is signed with IAM, and leads to the alias that has SnapStart, not to $LATEST."""
    stack = templates.deploy("existing, DSQL")
    assert stack.properties("HandleOrdersFunction")["SnapStart"] == {"ApplyOn": "PublishedVersions"}
    for one, target, routes in (
        (stack, "HandleOrdersFunctionAlias", 3),
        (Stack(templates.project, PROJECT), "CountVisitsFunction", 1),
    ):
        [api] = one.of_type("AWS::ApiGatewayV2::Api").values()
        paths = api["Body"]["paths"].values()
        operations = [of for path in paths for method, of in path.items() if method != "options"]
        assert len(operations) == routes
        for operation in operations:
            assert operation["security"] == [{"AWS_IAM": []}]
            assert target in operation["x-amazon-apigateway-integration"]["uri"]
            assert operation["x-amazon-apigateway-integration"]["payloadFormatVersion"] == "2.0"


def functions_exist(templates: Templates) -> None:
    """
    Each function's folder has the module and function that its handler names; each layer's Makefile has its target.
    """
    general = templates.source["Globals"]["Function"]
    for name, resource in templates.source["Resources"].items():
        properties = resource.get("Properties", {})
        if resource["Type"] == "AWS::Serverless::Function":
            module, _, function = properties.get("Handler", general["Handler"]).partition(".")
            text = (ROOT / properties["CodeUri"] / f"{module}.py").read_text()
            assert re.search(rf"^def {function}\(", text, re.MULTILINE), name
        if resource["Type"] == "AWS::Serverless::LayerVersion":
            assert f"build-{name}:" in (ROOT / properties["ContentUri"] / "Makefile").read_text()


def functions_run_where_the_layer_is_compiled(templates: Templates) -> None:
    """Every function runs a Python and an architecture that its layers are declared and compiled for."""
    compiled = (ROOT / "layers" / "plungepool" / "build_layer.py").read_text()
    declared = []
    for name, stack in templates.everywhere():
        for logical_id, layer in stack.of_type("AWS::Lambda::LayerVersion").items():
            if logical_id.startswith("PlungepoolLayer"):
                declared.append((layer["CompatibleRuntimes"], layer["CompatibleArchitectures"]))
            for function in stack.of_type("AWS::Lambda::Function").values():
                assert function["Runtime"] in layer["CompatibleRuntimes"], name
                assert f'"{function["Runtime"].removeprefix("python")}"' in compiled
                assert function["Architectures"][0] in layer["CompatibleArchitectures"]
                assert len(function["Layers"]) == (1 if name.startswith("project") else 2), name
    assert all(one == declared[0] for one in declared)


def layer_is_handed_on(templates: Templates) -> None:
    """The layer's version ARN is an output and an SSM parameter, under the stack's name, or the one that docs name."""
    stack = templates.deploy("existing, DSQL")
    assert stack.outputs()["LayerArn"] == stack.properties("LayerArnParameter")["Value"]
    assert stack.properties("LayerArnParameter")["Name"] == f"/{stack.values['AWS::StackName']}/layer-arn"
    alone = Stack(templates.layer, {})
    [parameter] = alone.of_type("AWS::SSM::Parameter").values()
    assert parameter == {"Name": "/plungepool/layer-arn", "Type": "String", "Value": alone.outputs()["LayerArn"]}
    assert alone.outputs()["LayerArn"].startswith("ref-PlungepoolLayer")
    # In a second stack of an account the name is taken.
    assert not Stack(templates.layer, {"LayerArnParameter": ""}).of_type("AWS::SSM::Parameter")
    assert f"--name {parameter['Name']}" in (ROOT / "docs" / "start-a-project.md").read_text()
    text = templates.texts["layers/plungepool/template.yaml"]
    assert re.search(r"^      ContentUri: \.$", text, re.MULTILINE)
    assert re.search(r"^      BuildMethod: makefile$", text, re.MULTILINE)


def project_is_what_its_schema_says(templates: Templates) -> None:
    """
    What `sam init` makes signs in as one user of one resource, by valid settings, within its role's connection limit.
    """
    schema = (ROOT / "templates" / "{{cookiecutter.project_name}}" / "database" / "schema.sql").read_text()
    [limit] = re.findall(r"CONNECTION LIMIT (\d+)", schema)
    for parameters, network in (
        (PROJECT, None),
        (PROJECT | {"SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"}, True),
    ):
        stack = Stack(templates.project, parameters)
        [function] = stack.of_type("AWS::Lambda::Function").values()
        settings = settings_of(function)
        assert (settings.auth, settings.user, settings.tls) == ("iam", "app", "verify-full")
        assert function["ReservedConcurrentExecutions"] == limit
        assert function["Timeout"] < 30
        expected = {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]} if network else None
        assert function.get("VpcConfig") == expected
        [(role, _)] = stack.of_type("AWS::IAM::Role").items()
        assert rights_of(stack, role) == (connecting("db-1", "app"), MANAGED)
        assert stack.outputs() == {"ApiUrl": f"https://ref-Api.execute-api.{HOME.region}.amazonaws.com"}
    assert "ReservedConcurrentExecutions" not in Stack(templates.project, PROJECT | {"Concurrency": "0"}).properties(
        "CountVisitsFunction"
    )
    published = Stack(templates.project, PROJECT | {"PlungepoolLayerArn": PROJECT_BOUNDS["PlungepoolLayerArn"][0][1]})
    assert not published.of_type("AWS::Lambda::LayerVersion")
    assert published.properties("CountVisitsFunction")["Layers"] == [published.values["PlungepoolLayerArn"]]


def nothing_names_a_partition_or_a_region(templates: Templates) -> None:
    """In another partition and region every ARN and address is that one's: GovCloud, China."""
    for place in ELSEWHERE:
        stacks = {name: templates.deploy(name, place) for name in DEPLOYMENTS}
        stacks |= {"layer": Stack(templates.layer, {}, place), "project": Stack(templates.project, PROJECT, place)}
        for name, stack in stacks.items():
            for path, text in stack.everything():
                # The transform, which ran here, names AWS's own policies as they are called where it runs.
                of_aws = ":iam::aws:policy/" in text
                assert f"arn:{HOME.partition}:" not in text or of_aws, f"{name}: {path}: {text}"
                if path.endswith("/TemplateURL"):
                    continue  # where examine_templates.py says that it is packaged
                assert HOME.region not in text, f"{name}: {path}: {text}"
                if "amazonaws.com" in text and not re.fullmatch(r"[a-z]+\.amazonaws\.com", text):
                    assert f".{place.suffix}" in text, f"{name}: {path}: {text}"
    for name, text in templates.texts.items():
        assert not re.search(r"\barn:aws:|\b(eu|us|ap)-[a-z]+-\d\b", text), name


def repository_metadata_is_complete(templates: Templates) -> None:
    """The Serverless Application Repository gets what it requires, under names of their own, and the files exist."""
    names = set()
    for template, folder in ((templates.source, ROOT), (templates.layer, ROOT / "layers" / "plungepool")):
        metadata = template["Metadata"]["AWS::ServerlessRepo::Application"]
        assert re.fullmatch(r"[a-zA-Z0-9-]{1,140}", metadata["Name"])
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", metadata["Author"])
        assert 0 < len(metadata["Description"]) <= 256
        assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["SemanticVersion"])
        assert len(metadata["Labels"]) <= 10
        assert (folder / metadata["LicenseUrl"]).exists()
        assert (folder / metadata["ReadmeUrl"]).exists()
        assert metadata["SpdxLicenseId"] == "Apache-2.0"
        names.add(metadata["Name"])
    assert len(names) == 2


RULES: list[Callable[[Templates], None]] = [
    variables_are_valid_settings,
    choices_that_are_taken_are_valid_settings,
    each_parameter_arrives_where_it_is_read,
    every_role_may_do_what_it_needs_and_nothing_else,
    every_role_trusts_its_own_service,
    policies_are_whole,
    client_connects_where_it_may,
    proxy_demands_iam_and_tls,
    role_is_prepared_for_how_it_signs_in,
    preparation_is_part_of_the_deployment,
    only_the_functions_reach_the_database,
    endpoints_are_made_where_there_is_no_way_out,
    limits_reach_what_they_limit,
    numbers_add_up,
    nobody_waits_longer_than_is_of_use,
    data_outlives_mistakes,
    demo_database_is_what_was_asked_for,
    what_others_use_is_kept,
    engine_version_is_offered,
    passwords_are_not_shown,
    secrets_are_named_where_they_are_used,
    queue_outlives_its_function,
    schedule_is_well_formed,
    report_is_of_yesterday_and_never_lost,
    logs_end,
    what_needs_somebody_wakes_somebody,
    every_alarm_says_what_to_do,
    metrics_exist,
    dashboard_shows_what_matters,
    saved_queries_find_what_is_logged,
    new_version_is_tried_first,
    outputs_say_where_things_are,
    two_stacks_fit_into_one_account,
    parameters_are_held_to_their_bounds,
    parameters_have_a_use_and_a_place,
    nested_parameters_and_outputs_match,
    rules_refuse_what_would_not_work,
    api_asks_for_a_signature,
    functions_exist,
    functions_run_where_the_layer_is_compiled,
    layer_is_handed_on,
    project_is_what_its_schema_says,
    nothing_names_a_partition_or_a_region,
    repository_metadata_is_complete,
]
