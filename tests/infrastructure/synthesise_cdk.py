"""
Synthesise stacks with the CDK construct, and print what came of each as JSON.

Run by test_cdk.py in an environment that has the CDK.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from aws_cdk import App, Environment, Stack, aws_ec2, aws_rds
from aws_cdk import aws_lambda as lambda_
from aws_cdk.assertions import Template

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
        }
    )
)
