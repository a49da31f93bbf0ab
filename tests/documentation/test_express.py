"""docs/express.md: each command of the AWS CLI is one that its model takes; what it says of CloudFormation is so."""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session
import jmespath
import pytest
from botocore import xform_name
from botocore.validate import ParamValidator
from botocore.waiter import WaiterModel

from plungepool import Settings
from plungepool_toolkit.commands.verify_aws.facts import FACTS

if TYPE_CHECKING:
    from botocore.model import OperationModel, ServiceModel, Shape

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "express.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [line for line in LINES if line.startswith("aws ")] + re.findall(r"`(aws rds [^`…]+)`", PAGE)


@functools.cache
def rds() -> ServiceModel:
    """The model of the API, as the CLI and boto3 read it."""
    return botocore.session.Session().get_service_model("rds")


def dashed(name: str) -> str:
    """Return the name that the CLI gives an operation or a parameter."""
    return xform_name(name, "-")


def operation(word: str) -> OperationModel:
    """Return the operation of a command's word. Raises: KeyError, if there is none."""
    return rds().operation_model({dashed(name): name for name in rds().operation_names}[word])


def shorthand(shape: Shape, text: str) -> Any:
    """Return what a value in shorthand syntax says: Name=value,Other=value; blanks between the items of a list."""
    if shape.type_name == "list":
        return [shorthand(shape.member, item) for item in text.split(" ")]  # type: ignore[attr-defined]
    if shape.type_name == "structure":
        pairs = dict(pair.split("=") for pair in text.split(","))
        return {name: shorthand(shape.members[name], value) for name, value in pairs.items()}  # type: ignore[attr-defined]
    kinds = {"string": str, "integer": int, "double": float}
    return kinds[shape.type_name](text)


def parameters(model: OperationModel, words: list[str]) -> dict[str, Any]:
    """Return the parameters that options mean. Raises: KeyError, for an option that the operation has not."""
    members = {dashed(name): (name, shape) for name, shape in model.input_shape.members.items()}
    found: dict[str, Any] = {}
    while words:
        option = words.pop(0).removeprefix("--")
        values = []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if option == "query":
            continue
        bare = option.removeprefix("no-")
        name, shape = members[option] if option in members else members[bare]
        if shape.type_name == "boolean":
            assert not values, option
            found[name] = option == bare
        else:
            found[name] = shorthand(shape, " ".join(values))
    return found


def as_given(command: str) -> tuple[str, dict[str, Any]]:
    """Return a command's operation, and its parameters."""
    _aws, service, word, *words = shlex.split(command)
    assert service == "rds"
    if word == "wait":
        config = botocore.session.Session().get_component("data_loader").load_service_model("rds", "waiters-2")
        waiters = {dashed(name): name for name in WaiterModel(config).waiter_names}
        model = rds().operation_model(WaiterModel(config).get_waiter(waiters[words.pop(0)]).operation)
    else:
        model = operation(word)
    given = parameters(model, words)
    report = ParamValidator().validate(given, model.input_shape)
    assert not report.has_errors(), report.generate_report()
    return model.name, given


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_taken_by_the_model(command: str) -> None:
    """The operation exists, each option is one of its parameters with a value of its type, and none is missing."""
    assert as_given(command)[0]


@pytest.mark.parametrize(
    "wrong",
    [
        "aws rds create-db-cluster --engine aurora-postgresql --with-express-configuration",
        "aws rds create-db-cluster --db-cluster-identifier a --engine aurora-postgresql --express-configuration",
        "aws rds create-db-cluster --db-cluster-identifier a --engine b --no-enable-vpc-networking",
        "aws rds make-db-cluster --db-cluster-identifier a",
        "aws rds create-db-cluster --db-cluster-identifier a --engine b --serverless-v2-scaling-configuration Least=0",
    ],
)
def test_wrong_command_is_not(wrong: str) -> None:
    """What the model does not take is told: a parameter missing, misspelt, of another operation, of another shape."""
    with pytest.raises((AssertionError, KeyError)):
        as_given(wrong)


def test_cluster_is_made_by_express_configuration_alone() -> None:
    """The command that makes a cluster gives nothing that AWS refuses beside the express configuration."""
    [(_, made)] = [given for given in map(as_given, COMMANDS) if given[0] == "CreateDBCluster"]
    assert made.pop("WithExpressConfiguration") is True
    # What users have seen it take; a version, a network, a password or a database's name it refused.
    assert made.keys() == {"DBClusterIdentifier", "Engine", "ServerlessV2ScalingConfiguration", "Tags"}
    [(_, restored)] = [given for given in map(as_given, COMMANDS) if given[0] == "RestoreDBClusterFromSnapshot"]
    assert (restored["EnableVPCNetworking"], restored["EnableInternetAccessGateway"]) == (False, True)
    assert restored["EnableIAMDatabaseAuthentication"] is True


def test_queries_ask_for_what_is_answered() -> None:
    """Each --query names fields that the answer has by the API's model."""

    def example(shape: Shape, depth: int = 0) -> Any:
        if shape.type_name == "list":
            return [example(shape.member, depth + 1)]  # type: ignore[attr-defined]
        if shape.type_name == "structure" and depth < 6:
            return {name: example(of, depth + 1) for name, of in shape.members.items()}  # type: ignore[attr-defined]
        return shape.name

    queries = re.findall(r"aws rds ([a-z-]+)[^\n]*(?:\n[^\n]*)?--query '([^']+)'", PAGE)
    assert len(queries) == 2
    for word, query in queries:
        answer = jmespath.search(query, example(operation(word).output_shape))
        assert answer, query
        assert None not in answer, query


def test_variables_are_settings() -> None:
    """The variables of the table make the settings of an engine that goes straight to the cluster, by token and TLS."""
    rows = dict(re.findall(r"^\| (PLUNGEPOOL_\w+) \| (.*) \|$", PAGE, re.MULTILINE))
    assert rows.keys() == {"PLUNGEPOOL_HOST", "PLUNGEPOOL_AUTH", "PLUNGEPOOL_USER", "PLUNGEPOOL_POOL"}
    given = {
        "PLUNGEPOOL_HOST": "shop.cluster-abc.eu-west-1.rds.amazonaws.com",
        "PLUNGEPOOL_AUTH": rows["PLUNGEPOOL_AUTH"].strip("`"),
        "PLUNGEPOOL_USER": "app",
        "AWS_REGION": "eu-west-1",
    }
    settings = Settings.from_env(given)
    assert (settings.auth, settings.endpoint, settings.tls) == ("iam", "direct", "verify-full")


def test_answer_says_whether_there_is_a_gateway() -> None:
    """What the page, the doctor and verify-aws read of a cluster is in the API's answer."""
    cluster = rds().shape_for("DBCluster").members
    assert {"Endpoint", "DbClusterResourceId", "MasterUsername", "InternetAccessGatewayEnabled"} <= cluster.keys()
    assert json.dumps(sorted(cluster)).count("Express") == 0


def test_what_is_uncertain_is_asked() -> None:
    """Each question of the page names a fact that `plungepool verify-aws --database express` settles."""
    table = PAGE.partition("## What is uncertain")[2].partition("\n## ")[0]
    named = re.findall(r"^\| [^|]+ \| `([a-z-]+)` \|", table, re.MULTILINE)
    assert len(named) == table.count("? |")
    assert set(named) <= {fact.name for fact in FACTS if "express" in fact.modes}
