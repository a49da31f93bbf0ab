"""
What must hold of the templates and no linter looks at. Each rule takes the templates and fails by an assertion.

`application` and `database` are template.yaml and infrastructure/database.yaml after the transform, `source` is
template.yaml before it. `resolve` says what CloudFormation would make of a template under given parameters.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plungepool import Settings

ROOT = Path(__file__).parents[2]
REGION, ACCOUNT = "eu-west-1", "123456789012"
SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:"
NETWORK = {"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2"}
# Every way to deploy, as parameters of template.yaml.
DEPLOYMENTS: dict[str, dict[str, str]] = {
    "existing, password": {"Host": "db", "Auth": "password", "Password": "x", "AdminUser": "a", "AdminPassword": "y"},
    "existing, secret": {
        "Host": "db",
        "Auth": "secret",
        "SecretArn": SECRET + "app",
        "AdminSecretArn": SECRET + "admin",
    },
    "existing, secret only": {"Host": "db", "Auth": "secret", "SecretArn": SECRET + "app"},
    "existing, IAM proxy": {"Host": "px", "Endpoint": "proxy", "ResourceId": "prx-1", "SecurityGroupIds": "sg-1"}
    | NETWORK,
    "existing, DSQL": {"Host": "dsql", "Auth": "dsql", "ResourceId": "a" * 26},
    "aurora": {"DatabaseMode": "aurora"} | NETWORK,
    "aurora, proxy": {"DatabaseMode": "aurora", "Endpoint": "proxy", "RouteTableIds": "rtb-1"} | NETWORK,
    "instance": {"DatabaseMode": "instance"} | NETWORK,
    "instance, proxy, IAM": {"DatabaseMode": "instance", "Endpoint": "proxy", "ProxyAuth": "iam"} | NETWORK,
}
NOTHING = object()  # AWS::NoValue


@dataclasses.dataclass
class Templates:
    source: dict
    application: dict
    database: dict

    def deploy(self, name: str) -> "Stack":
        """Return the application's stack under one of DEPLOYMENTS, with the nested one's outputs resolved."""
        stack = Stack(self.application, DEPLOYMENTS[name])
        if "DemoDatabase" in stack.resources:
            stack.nested["DemoDatabase"] = Stack(self.database, stack.properties("DemoDatabase")["Parameters"])
        return stack


class Stack:
    """A template under parameters: which resources it has, and their properties as CloudFormation resolves them."""

    def __init__(self, template: dict, parameters: dict[str, str]) -> None:
        self.template = template
        declared = template["Parameters"]
        assert not parameters.keys() - declared.keys(), f"unknown parameters {parameters.keys() - declared.keys()}"
        self.values: dict[str, Any] = {name: of.get("Default") for name, of in declared.items()} | parameters
        for name, of in declared.items():
            assert self.values[name] is not None, f"parameter {name} has no value"
            if "List" in of["Type"]:
                self.values[name] = [part for part in str(self.values[name]).split(",") if part]
            else:
                self.values[name] = str(self.values[name])
        self.values |= {
            "AWS::AccountId": ACCOUNT,
            "AWS::Partition": "aws",
            "AWS::Region": REGION,
            "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/plungepool/aaaa-bbbb-cccc-dddd-0123456789ab",
            "AWS::StackName": "plungepool",
            "AWS::URLSuffix": "amazonaws.com",
        }
        self.nested: dict[str, Stack] = {}
        self.resources = {
            name: resource
            for name, resource in template["Resources"].items()
            if self.holds(resource.get("Condition", True))
        }

    def holds(self, condition: Any) -> bool:
        if isinstance(condition, bool):
            return condition
        if isinstance(condition, str):
            return self.holds(self.template["Conditions"][condition])
        [(function, argument)] = condition.items()
        match function:
            case "Condition":
                return self.holds(argument)
            case "Fn::Not":
                return not self.holds(argument[0])
            case "Fn::And":
                return all(map(self.holds, argument))
            case "Fn::Or":
                return any(map(self.holds, argument))
            case "Fn::Equals":
                return str(self.resolve(argument[0])) == str(self.resolve(argument[1]))
        raise AssertionError(f"{function} is no condition")

    def resolve(self, value: Any) -> Any:
        if isinstance(value, list):
            return [resolved for item in value if (resolved := self.resolve(item)) is not NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            [(function, argument)] = value.items()
            if function == "Ref" or function.startswith("Fn::"):
                return self.call(function, argument)
        resolved = {key: self.resolve(item) for key, item in value.items()}
        return {key: item for key, item in resolved.items() if item is not NOTHING}

    def call(self, function: str, argument: Any) -> Any:
        match function:
            case "Ref" if argument == "AWS::NoValue":
                return NOTHING
            case "Ref" if argument in self.values:
                return self.values[argument]
            case "Ref":
                assert argument in self.resources, f"{argument} is not in this stack"
                return f"ref-{argument}"
            case "Fn::GetAtt":
                name, _, attribute = (argument if isinstance(argument, str) else ".".join(argument)).partition(".")
                assert name in self.resources, f"{name} is not in this stack"
                if name in self.nested:
                    output = attribute.removeprefix("Outputs.")
                    assert output in self.nested[name].outputs(), f"{name} has no output {output}"
                    return self.nested[name].outputs()[output]
                if attribute == "DBProxyArn":
                    return f"arn:aws:rds:{REGION}:{ACCOUNT}:db-proxy:prx-{name}"
                return f"{attribute}-of-{name}"
            case "Fn::If":
                return self.resolve(argument[1] if self.holds(argument[0]) else argument[2])
            case "Fn::Join":
                return argument[0].join(map(str, self.resolve(argument[1])))
            case "Fn::Split":
                return self.resolve(argument[1]).split(argument[0])
            case "Fn::Select":
                return self.resolve(argument[1])[int(argument[0])]
            case "Fn::Sub":
                text, local = (argument, {}) if isinstance(argument, str) else argument
                return re.sub(r"\$\{([^!}]+)\}", lambda found: str(self.substitute(found[1], local)), text)
        raise AssertionError(f"{function} is not known here")

    def substitute(self, name: str, local: dict) -> Any:
        if name in local:
            return self.resolve(local[name])
        return self.resolve({"Fn::GetAtt": name} if "." in name else {"Ref": name})

    def properties(self, name: str) -> dict:
        return self.resolve(self.resources[name].get("Properties", {}))

    def of_type(self, kind: str) -> dict[str, dict]:
        return {name: self.properties(name) for name, of in self.resources.items() if of["Type"] == kind}

    def outputs(self) -> dict[str, Any]:
        declared = self.template["Outputs"].items()
        return {name: self.resolve(of["Value"]) for name, of in declared if self.holds(of.get("Condition", True))}


def statements(stack: Stack) -> Iterator[dict]:
    for policy in stack.of_type("AWS::IAM::ManagedPolicy").values():
        yield from policy["PolicyDocument"]["Statement"]
    for role in stack.of_type("AWS::IAM::Role").values():
        for policy in role.get("Policies", []):
            yield from policy["PolicyDocument"]["Statement"]


def each_deployment(check: Callable[[str, Stack], None]) -> Callable[[Templates], None]:
    def rule(templates: Templates) -> None:
        for name in DEPLOYMENTS:
            check(name, templates.deploy(name))

    rule.__name__, rule.__doc__ = check.__name__, check.__doc__
    return rule


@each_deployment
def variables_are_valid_settings(name: str, stack: Stack) -> None:
    """In each deployment every function's variables make valid Settings: none missing, unknown or contradictory."""
    for logical_id, function in stack.of_type("AWS::Lambda::Function").items():
        environment = {key: str(value) for key, value in function["Environment"]["Variables"].items()}
        ours = {key: value for key, value in environment.items() if key.startswith("PLUNGEPOOL_")}
        try:
            settings = Settings.from_env(ours | {"AWS_REGION": REGION})
        except ValueError as error:
            raise AssertionError(f"{name}: {logical_id}: {error}") from error
        expected = DEPLOYMENTS[name].get("Endpoint", "direct")
        if logical_id != "PrepareDatabaseFunction":
            assert settings.endpoint == expected, f"{name}: {logical_id}"


@each_deployment
def signing_in_is_allowed_and_nothing_else(name: str, stack: Stack) -> None:
    """rds-db:connect names one user of one resource id, a secret is named by its ARN, and there is no other right."""
    nested = stack.nested.get("DemoDatabase")
    allowed = {"rds-db:connect", "dsql:DbConnect", "secretsmanager:GetSecretValue", "lambda:InvokeFunction"}
    granted = set()
    for statement in [*statements(stack), *(statements(nested) if nested else [])]:
        actions = {statement["Action"]} if isinstance(statement["Action"], str) else set(statement["Action"])
        assert actions <= allowed, f"{name}: {actions - allowed}"
        granted |= actions
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        assert resources
        for resource in resources:
            assert "*" not in resource, f"{name}: {resource}"
            if actions == {"rds-db:connect"}:
                pattern = rf"arn:aws:rds-db:{REGION}:{ACCOUNT}:dbuser:(prx-\w+|(DBClusterResourceId|DbiResourceId)-of-\w+)/plungepool_app"
                assert re.fullmatch(pattern, resource), f"{name}: {resource}"
            if actions == {"dsql:DbConnect"}:
                assert resource == f"arn:aws:dsql:{REGION}:{ACCOUNT}:cluster/{'a' * 26}", f"{name}: {resource}"
    auth = stack.properties("HandleOrdersFunction")["Environment"]["Variables"]["PLUNGEPOOL_AUTH"]
    needed = {"iam": "rds-db:connect", "dsql": "dsql:DbConnect", "secret": "secretsmanager:GetSecretValue"}
    assert auth == "password" or needed[auth] in granted, f"{name}: {needed[auth]} is not granted"


@each_deployment
def client_connects_where_it_may(name: str, stack: Stack) -> None:
    """The right to connect is given for what the host name names: the proxy's id for the proxy, else the database's."""
    for nested in stack.nested.values():
        host, resource = nested.outputs()["Host"], nested.outputs()["ResourceId"]
        proxied = DEPLOYMENTS[name].get("Endpoint") == "proxy"
        assert (host == "Endpoint-of-Proxy") == proxied, f"{name}: {host}"
        assert resource.startswith("prx-") == proxied, f"{name}: {resource}"
        assert "-of-Proxy" not in nested.outputs()["AdminHost"]


@each_deployment
def proxy_demands_iam_and_tls(name: str, stack: Stack) -> None:
    """A proxy takes IAM over TLS only, and signs in by the application's own secret or by IAM, never as administrator."""
    for nested in stack.nested.values():
        for proxy in nested.of_type("AWS::RDS::DBProxy").values():
            assert proxy["RequireTLS"] is True
            if DEPLOYMENTS[name].get("ProxyAuth") == "iam":
                assert (proxy["DefaultAuthScheme"], "Auth" in proxy) == ("IAM_AUTH", False), name
            else:
                assert proxy["DefaultAuthScheme"] == "NONE"
                [auth] = proxy["Auth"]
                assert (auth["IAMAuth"], auth["SecretArn"]) == ("REQUIRED", "Id-of-ApplicationSecret"), name
            assert len(proxy["DBProxyName"]) <= 60
        for target in nested.of_type("AWS::RDS::DBProxyTargetGroup").values():
            assert ("DBClusterIdentifiers" in target) != ("DBInstanceIdentifiers" in target), name
            # Waiting for a connection longer than the function lives answers nobody.
            borrow = target["ConnectionPoolConfigurationInfo"]["ConnectionBorrowTimeout"]
            assert borrow < stack.properties("HandleOrdersFunction")["Timeout"]


@each_deployment
def role_is_prepared_for_how_it_signs_in(name: str, stack: Stack) -> None:
    """prepare_database gives the role the password that the proxy or the functions use, and none where IAM is used."""
    variables = stack.properties("PrepareDatabaseFunction")["Environment"]["Variables"]
    secrets = {
        "existing, secret": SECRET + "app",
        "existing, secret only": SECRET + "app",
        "aurora, proxy": "Id-of-ApplicationSecret",
    }
    assert variables["APP_ROLE_SECRET_ARN"] == secrets.get(name, ""), name
    assert bool(variables["APP_ROLE_PASSWORD"]) == (name == "existing, password"), name
    read = (ROOT / "functions" / "prepare_database" / "preparation.py").read_text()
    for variable in variables:
        assert variable.startswith(("PLUNGEPOOL_", "POWERTOOLS_")) or f'"{variable}"' in read, (
            f"nobody reads {variable}"
        )


@each_deployment
def preparation_is_part_of_the_deployment(name: str, stack: Stack) -> None:
    """Where an administrator is known, prepare_database runs at deploy, again when it changes, and has time for it."""
    prepared = stack.of_type("Custom::PreparedDatabase")
    assert bool(prepared) == (name not in ("existing, secret only", "existing, IAM proxy", "existing, DSQL")), name
    for properties in prepared.values():
        assert properties["ServiceToken"] == "Arn-of-PrepareDatabaseFunction"
        assert "PrepareDatabaseFunctionVersion" in properties["FunctionVersion"]
        assert int(properties["ServiceTimeout"]) > stack.properties("PrepareDatabaseFunction")["Timeout"]


@each_deployment
def only_the_functions_reach_the_database(name: str, stack: Stack) -> None:
    """The database lets in security groups, no addresses; the functions' own group exists where a VPC is given."""
    for nested in stack.nested.values():
        for group in nested.of_type("AWS::EC2::SecurityGroup").values():
            for rule in group.get("SecurityGroupIngress", []):
                assert "CidrIp" not in rule, f"{name}: {rule}"
                assert rule["SourceSecurityGroupId"] == "GroupId-of-FunctionSecurityGroup"
        for instance in nested.of_type("AWS::RDS::DBInstance").values():
            assert instance["PubliclyAccessible"] is False
    configuration = stack.properties("ReportSalesFunction").get("VpcConfig")
    assert (configuration is not None) == ("SubnetIds" in DEPLOYMENTS[name]), name
    if configuration:
        assert configuration["SecurityGroupIds"] in (["sg-1"], ["GroupId-of-FunctionSecurityGroup"]), name


@each_deployment
def endpoints_are_made_where_there_is_no_way_out(name: str, stack: Stack) -> None:
    """Secrets Manager and S3 get endpoints in closed subnets, by the names that AWS gives these services."""
    for nested in stack.nested.values():
        services = {endpoint["ServiceName"] for endpoint in nested.of_type("AWS::EC2::VPCEndpoint").values()}
        closed = {f"com.amazonaws.{REGION}.secretsmanager", f"com.amazonaws.{REGION}.s3"}
        assert services == (closed if "RouteTableIds" in DEPLOYMENTS[name] else set()), name


def nested_parameters_and_outputs_match(templates: Templates) -> None:
    """What the application hands to the nested stack is what that one declares, with the same patterns and defaults."""
    given = templates.application["Resources"]["DemoDatabase"]["Properties"]["Parameters"]
    declared = templates.database["Parameters"]
    assert given.keys() == declared.keys()
    for name in ("EngineVersion", "Database", "User", "Port"):
        ours, theirs = templates.application["Parameters"][name], declared[name]
        for key in ("Default", "AllowedPattern"):
            assert ours.get(key) == theirs.get(key), name


def engine_version_is_offered(templates: Templates) -> None:
    """RDS offers the version for both kinds of demo database, by the lists that cfn-lint ships (it resolves no parameter)."""
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


def queue_outlives_its_function(templates: Templates) -> None:
    """A message stays hidden six times as long as the function runs, and dies into a queue that keeps it longer."""
    stack = templates.deploy("existing, DSQL")
    queue, dead = stack.properties("Orders"), stack.properties("DeadOrders")
    assert queue["VisibilityTimeout"] >= 6 * stack.properties("FulfilOrdersFunction")["Timeout"]
    assert dead["MessageRetentionPeriod"] > queue["MessageRetentionPeriod"]
    assert 3 <= queue["RedrivePolicy"]["maxReceiveCount"] <= 10
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == "Arn-of-DeadOrders"
    [source] = stack.of_type("AWS::Lambda::EventSourceMapping").values()
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


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


def logs_end(templates: Templates) -> None:
    """Every function writes to a log group of the stack, of its own, that has an end; and is traced."""
    stack = templates.deploy("existing, DSQL")
    groups = stack.of_type("AWS::Logs::LogGroup")
    assert all(group.get("RetentionInDays") for group in groups.values())
    used = []
    for function in stack.of_type("AWS::Lambda::Function").values():
        used.append(function["LoggingConfig"]["LogGroup"].removeprefix("ref-"))
        assert function["LoggingConfig"]["LogFormat"] == "JSON"
        assert function["TracingConfig"] == {"Mode": "Active"}
    assert len(used) == len(set(used))
    assert set(used) <= groups.keys()


def api_asks_for_a_signature(templates: Templates) -> None:
    """Every route is signed with IAM, and leads to the alias that has SnapStart, not to $LATEST."""
    stack = templates.deploy("existing, DSQL")
    [api] = stack.of_type("AWS::ApiGatewayV2::Api").values()
    operations = [of for path in api["Body"]["paths"].values() for method, of in path.items() if method != "options"]
    assert len(operations) == 3
    for operation in operations:
        assert operation["security"] == [{"AWS_IAM": []}]
        assert "HandleOrdersFunctionAlias" in operation["x-amazon-apigateway-integration"]["uri"]
    assert stack.properties("HandleOrdersFunction")["SnapStart"] == {"ApplyOn": "PublishedVersions"}


def functions_exist(templates: Templates) -> None:
    """Each function's folder has the module and function that its handler names; each layer's Makefile has its target."""
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
    """Every function runs a Python that the layers are declared and compiled for, with both layers."""
    stack = templates.deploy("existing, DSQL")
    compiled = (ROOT / "layers" / "plungepool" / "build_layer.py").read_text()
    for layer in stack.of_type("AWS::Lambda::LayerVersion").values():
        for function in stack.of_type("AWS::Lambda::Function").values():
            assert function["Runtime"] in layer["CompatibleRuntimes"]
            assert f'"{function["Runtime"].removeprefix("python")}"' in compiled
            assert function["Architectures"][0] in layer["CompatibleArchitectures"]
            assert len(function["Layers"]) == 2


def numbers_add_up(templates: Templates) -> None:
    """The defaults, and the example in the description, stay within the connection limit; the description has the sum."""
    parameters = templates.source["Parameters"]
    limit, workers = parameters["ConnectionLimit"]["Default"], parameters["WorkersConcurrency"]["Default"]
    orders, workers_told, report, total = map(
        int,
        re.search(
            r"(\d+) here \+ (\d+) workers \+ (\d+) report = (\d+)", parameters["OrdersConcurrency"]["Description"]
        ).groups(),
    )
    assert (workers_told, total) == (workers, limit)
    assert orders + workers + report == limit
    assert "concurrency x PoolSize" in parameters["OrdersConcurrency"]["Description"]


def layer_is_handed_on(templates: Templates) -> None:
    """The layer's version ARN is an output and an SSM parameter under the stack's name."""
    stack = templates.deploy("existing, DSQL")
    assert stack.outputs()["LayerArn"] == stack.properties("LayerArnParameter")["Value"]
    assert stack.properties("LayerArnParameter")["Name"] == "/plungepool/layer-arn"


def repository_metadata_is_complete(templates: Templates) -> None:
    """The Serverless Application Repository gets what it requires, and the files exist."""
    metadata = templates.source["Metadata"]["AWS::ServerlessRepo::Application"]
    assert re.fullmatch(r"[a-zA-Z0-9-]{1,140}", metadata["Name"])
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", metadata["Author"])
    assert 0 < len(metadata["Description"]) <= 256
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["SemanticVersion"])
    assert (ROOT / metadata["LicenseUrl"]).exists()
    assert metadata["SpdxLicenseId"] == "Apache-2.0"
    shown = {
        name
        for group in templates.source["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
        for name in group["Parameters"]
    }
    assert shown == templates.source["Parameters"].keys()


RULES: list[Callable[[Templates], None]] = [
    variables_are_valid_settings,
    signing_in_is_allowed_and_nothing_else,
    client_connects_where_it_may,
    proxy_demands_iam_and_tls,
    role_is_prepared_for_how_it_signs_in,
    preparation_is_part_of_the_deployment,
    only_the_functions_reach_the_database,
    endpoints_are_made_where_there_is_no_way_out,
    nested_parameters_and_outputs_match,
    engine_version_is_offered,
    queue_outlives_its_function,
    schedule_is_well_formed,
    logs_end,
    api_asks_for_a_signature,
    functions_exist,
    functions_run_where_the_layer_is_compiled,
    numbers_add_up,
    layer_is_handed_on,
    repository_metadata_is_complete,
]
