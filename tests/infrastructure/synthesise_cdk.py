"""
Synthesise stacks with the CDK construct, and print what came of each as JSON.

Run by test_cdk.py in an environment that has the CDK.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aws_cdk import App, CfnParameter, Environment, Stack, Token, aws_ec2, aws_ecr, aws_rds
from aws_cdk import aws_lambda as lambda_
from aws_cdk.assertions import Template

if TYPE_CHECKING:
    from collections.abc import Callable

CDK = Path(__file__).parents[2] / "infrastructure" / "cdk"
sys.path.insert(0, str(CDK))

from plungepool_cdk import Plungepool  # noqa: E402 - from the repository

ENVIRONMENT = Environment(account="123456789012", region="eu-west-1")


def database(stack: Stack, kind: str, vpc: aws_ec2.IVpc) -> Any:
    """An instance, a cluster, or a proxy in front of one, or the same by their attributes."""
    group = aws_ec2.SecurityGroup.from_security_group_id(stack, "Group", "sg-0123456789abcdef0")
    if kind == "imported proxy":
        return aws_rds.DatabaseProxy.from_database_proxy_attributes(
            stack, "Proxy", db_proxy_arn="arn:aws:rds:eu-west-1:123456789012:db-proxy:prx-0123456789abcdef0",
            db_proxy_name="orders", endpoint="orders.proxy-x.eu-west-1.rds.amazonaws.com", security_groups=[group],
        )  # fmt: skip
    engine = aws_rds.DatabaseInstanceEngine.postgres(version=aws_rds.PostgresEngineVersion.VER_16)
    if kind == "instance":
        return aws_rds.DatabaseInstance(stack, "Database", engine=engine, vpc=vpc, iam_authentication=True)
    cluster = aws_rds.DatabaseCluster(
        stack,
        "Cluster",
        engine=aws_rds.DatabaseClusterEngine.aurora_postgres(version=aws_rds.AuroraPostgresEngineVersion.VER_16_4),
        writer=aws_rds.ClusterInstance.serverless_v2("Writer"),
        vpc=vpc,
        iam_authentication=True,
    )
    if kind == "cluster":
        return cluster
    return cluster.add_proxy("Proxy", secrets=[cluster.secret], vpc=vpc, iam_auth=True, db_proxy_name="orders")


def function(stack: Stack, name: str, reserved: int | None, vpc: aws_ec2.IVpc | None) -> lambda_.Function:
    """A function of no meaning."""
    return lambda_.Function(
        stack, name, runtime=lambda_.Runtime.PYTHON_3_13, handler="app.handler", vpc=vpc,
        code=lambda_.Code.from_inline("def handler(event, context): pass"), reserved_concurrent_executions=reserved,
    )  # fmt: skip


def attach(given: Callable[[Stack], Any], times: int = 1, **options: Any) -> Any:
    """Return what comes of attaching something that is no plain function, or not once: a template or the refusal."""
    app = App(analytics_reporting=False)
    stack = Stack(app, "Orders", env=ENVIRONMENT)
    vpc = aws_ec2.Vpc(stack, "Vpc", max_azs=2)
    options = {"user": "orders_app", "database": database(stack, "instance", vpc), **options}
    try:
        one = given(stack)
        for number in range(times):
            Plungepool(stack, f"Plungepool{number}", **options).attach(one)
    except ValueError as error:
        return str(error)
    return Template.from_stack(stack).to_json()


def plain(stack: Stack) -> lambda_.Function:
    return function(stack, "Function", 5, None)


def on(runtime: lambda_.Runtime) -> Callable[[Stack], Any]:
    """A function on another runtime."""
    code = lambda_.Code.from_inline("nothing")
    return lambda stack: lambda_.Function(stack, "Function", runtime=runtime, handler="a.b", code=code)


def image(stack: Stack) -> lambda_.DockerImageFunction:
    repository = aws_ecr.Repository.from_repository_name(stack, "Repository", "orders")
    return lambda_.DockerImageFunction(stack, "Function", code=lambda_.DockerImageCode.from_ecr(repository))


def imported(stack: Stack) -> lambda_.IFunction:
    arn = "arn:aws:lambda:eu-west-1:123456789012:function:orders"
    return lambda_.Function.from_function_arn(stack, "Function", arn)


def later(stack: Stack) -> Any:
    """A function whose reservation is a parameter of its stack."""
    made = plain(stack)
    resource: Any = made.node.default_child
    resource.reserved_concurrent_executions = CfnParameter(stack, "Reserved", type="Number").value_as_number
    return made


def synthesise(kind: str, reserved: list[int | None], in_vpc: bool = True, **options: Any) -> Any:
    """Return the template of a stack with so many functions, or the refusal."""
    app = App(analytics_reporting=False)
    stack = Stack(app, "Orders", env=ENVIRONMENT)
    vpc = aws_ec2.Vpc(stack, "Vpc", max_azs=2)
    try:
        plungepool = Plungepool(stack, "Plungepool", database=database(stack, kind, vpc), user="orders_app", **options)
        for number, concurrency in enumerate(reserved):
            plungepool.attach(function(stack, f"Function{number}", concurrency, vpc if in_vpc else None))
    except ValueError as error:
        return str(error)
    return Template.from_stack(stack).to_json()


def readme() -> Any:
    """Return the template that README's example makes."""
    (example,) = re.findall(r"```python\n(.*?)```", (CDK / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    example = example.replace('lambda_.Code.from_asset("functions/list_orders")', 'lambda_.Code.from_inline("x")')
    exec(compile(example, "README.md", "exec"), names)
    app = App(analytics_reporting=False)
    base = Stack(app, "Base", env=ENVIRONMENT)
    vpc = aws_ec2.Vpc(base, "Vpc", max_azs=2)
    return Template.from_stack(
        names["Orders"](app, "Orders", vpc=vpc, database=database(base, "instance", vpc), env=ENVIRONMENT)
    ).to_json()


ADAPTIVE = {"PLUNGEPOOL_POOL": "adaptive"}
print(
    json.dumps(
        {
            "instance": synthesise("instance", [10, 10], connection_limit=20),
            "cluster": synthesise("cluster", [10]),
            "proxy": synthesise("proxy", [None], connection_limit=5),
            "imported proxy": synthesise("imported proxy", [100], in_vpc=False),
            "adaptive": synthesise("instance", [None], connection_limit=20, settings=ADAPTIVE),
            "too many": synthesise("instance", [10, 11], connection_limit=20),
            "pool of 2": synthesise("instance", [11], connection_limit=20, settings={"PLUNGEPOOL_POOL_SIZE": "2"}),
            "unbounded": synthesise("instance", [None], connection_limit=20),
            "not a setting": synthesise("instance", [1], settings={"POOL": "null"}),
            "decided": synthesise("instance", [1], settings={"PLUNGEPOOL_AUTH": "password"}),
            "README": readme(),
            "twice": attach(plain, times=2),
            "node": attach(on(lambda_.Runtime.NODEJS_22_X)),
            "old Python": attach(on(lambda_.Runtime.PYTHON_3_10)),
            "image": attach(image),
            "imported function": attach(imported),
            "alias": attach(lambda stack: plain(stack).add_alias("live")),
            "layer as text": attach(plain, layer="arn:aws:lambda:eu-west-1:123456789012:layer:plungepool:3"),
            "number as setting": attach(plain, settings={"PLUNGEPOOL_POOL_SIZE": 2}),
            "no pool size": attach(plain, connection_limit=20, settings={"PLUNGEPOOL_POOL_SIZE": "two"}),
            "limit as text": attach(plain, connection_limit="20"),
            "no limit": attach(plain, connection_limit=0),
            "every role": attach(plain, user="*"),
            "no role": attach(plain, user=""),
            "no IAM": attach(plain, database=object()),
            "limit at deployment": attach(plain, connection_limit=Token.as_number({"Ref": "Limit"})),
            "size at deployment": attach(
                plain, connection_limit=20, settings={"PLUNGEPOOL_POOL_SIZE": Token.as_string({"Ref": "Size"})}
            ),
            "reservation at deployment": attach(later, connection_limit=20),
        }
    )
)
