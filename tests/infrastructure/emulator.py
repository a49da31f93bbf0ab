"""
ministack with what this repository's templates need and it lacks; runs in .venv-ministack instead of its command.

Added: Fn::Join in conditions; AWS::EC2::SecurityGroupIngress; AWS::RDS::DBProxy and DBProxyTargetGroup; CodeDeploy's
records; saved queries; the secret of a database's administrator; S3's addresses; the routes that an HTTP API takes
from its OpenAPI document; another port than 5432 for a proxy; alarms over an expression. A database and a proxy are
only records there: DATABASE_HOST and PROXY_HOST say where they answer in fact. It uses private names of ministack,
which requirements/ministack.txt pins.
"""

import json
import os
import re
import secrets
from collections.abc import Callable

from ministack.app import main
from ministack.core.responses import get_region
from ministack.services import apigateway, ec2, rds, secretsmanager
from ministack.services.cloudformation import changesets, engine, handlers, provisioners, stacks

HANDLERS = provisioners._RESOURCE_HANDLERS


def checked(response: tuple) -> tuple:
    if response[0] >= 300:
        raise ValueError(f"{response[2]!r}")
    return response


def as_query(prefix: str, value: object) -> dict[str, list[str]]:
    """Return a property as the query protocol of RDS has it: Auth.member.1.IAMAuth=REQUIRED."""
    if isinstance(value, dict):
        parts = [as_query(f"{prefix}.{key}" if prefix else key, item) for key, item in value.items()]
    elif isinstance(value, list):
        parts = [as_query(f"{prefix}.member.{number}", item) for number, item in enumerate(value, 1)]
    else:
        return {} if value is None else {prefix: [str(value).lower() if isinstance(value, bool) else str(value)]}
    return {key: item for part in parts for key, item in part.items()}


def fold_joins(value: object, parameters: dict) -> object:
    """
    Replace each Fn::Join over a parameter by its result; lists are comma-separated text in ministack's parameters.
    """
    if isinstance(value, list):
        return [fold_joins(item, parameters) for item in value]
    if not isinstance(value, dict):
        return value
    if "Fn::Join" in value:
        separator, items = value["Fn::Join"]
        return parameters[items["Ref"]]["Value"].replace(",", separator)
    return {key: fold_joins(item, parameters) for key, item in value.items()}


def with_joins(evaluate: Callable[[dict, dict], dict]) -> Callable[[dict, dict], dict]:
    def evaluate_conditions(template: dict, parameters: dict) -> dict:
        folded = fold_joins(template.get("Conditions", {}), parameters)
        return evaluate({**template, "Conditions": folded}, parameters)

    return evaluate_conditions


def with_any_port(evaluate: Callable[[dict, dict, dict], None]) -> Callable[[dict, dict, dict], None]:
    """
    RDS Proxy listens on 5432 only, and a rule says so; here that port may be taken, and rules see it whatever is given.
    """

    def evaluate_rules(template: dict, parameters: dict, conditions: dict) -> None:
        seen = {name: {**of, "Value": "5432"} if name == "Port" else of for name, of in parameters.items()}
        evaluate(template, seen, conditions)

    return evaluate_rules


def create_record(logical_id: str, properties: dict, stack: str) -> tuple[str, dict]:
    return f"{stack}-{logical_id}-{secrets.token_hex(4)}", {}


def create_ingress(logical_id: str, properties: dict, stack: str) -> tuple[str, dict]:
    group = ec2._security_groups.get(properties["GroupId"])
    if group is None:
        raise ValueError(f"there is no security group {properties['GroupId']}")
    rule = {key: value for key, value in properties.items() if key != "GroupId"}
    group["IpPermissions"].extend(provisioners._ec2_sg_permissions([rule]))
    return f"sgr-{secrets.token_hex(8)}", {}


def create_proxy(logical_id: str, properties: dict, stack: str) -> tuple[str, dict]:
    name = properties["DBProxyName"]
    checked(rds._create_db_proxy(as_query("", {key: of for key, of in properties.items() if key != "Tags"})))
    return name, {"DBProxyArn": rds._db_proxies[name]["DBProxyArn"], "Endpoint": os.environ["PROXY_HOST"]}


def create_targets(logical_id: str, properties: dict, stack: str) -> tuple[str, dict]:
    given = ("DBProxyName", "TargetGroupName", "DBClusterIdentifiers", "DBInstanceIdentifiers")
    query = {key: properties[key] for key in given if properties.get(key)}
    checked(rds._register_db_proxy_targets(as_query("", query)))
    arn = rds._db_proxies[properties["DBProxyName"]]["TargetGroup"]["TargetGroupArn"]
    return arn, {"TargetGroupArn": arn}


def delete_proxy(physical_id: str, properties: dict) -> None:
    checked(rds._delete_db_proxy({"DBProxyName": [physical_id]}))


def delete_nothing(physical_id: str, properties: dict) -> None:
    """What has no record of its own goes with what it belongs to."""


def with_secret(kind: str) -> None:
    """Give the database the secret that RDS manages for its administrator, and the address where it answers."""
    create, delete = HANDLERS[kind]["create"], HANDLERS[kind]["delete"]

    def create_with_secret(logical_id: str, properties: dict, stack: str) -> tuple[str, dict]:
        physical_id, attributes = create(logical_id, properties, stack)
        attributes["Endpoint.Address"] = os.environ["DATABASE_HOST"]
        if str(properties.get("ManageMasterUserPassword")).lower() == "true":
            content = {"username": properties["MasterUsername"], "password": secrets.token_urlsafe(20)}
            response = checked(
                secretsmanager._create_secret({"Name": f"rds!{physical_id}", "SecretString": json.dumps(content)})
            )
            attributes["MasterUserSecret.SecretArn"] = json.loads(response[2])["ARN"]
        return physical_id, attributes

    def delete_with_secret(physical_id: str, properties: dict) -> None:
        delete(physical_id, properties)
        if str(properties.get("ManageMasterUserPassword")).lower() == "true":
            checked(
                secretsmanager._delete_secret({"SecretId": f"rds!{physical_id}", "ForceDeleteWithoutRecovery": True})
            )

    HANDLERS[kind] |= {"create": create_with_secret, "delete": delete_with_secret}


def with_numbers(create: Callable) -> Callable:
    """Parameters are text; the poller compares its limit with a number."""

    def create_with_numbers(logical_id: str, properties: dict, stack: str) -> tuple[str, dict]:
        scaling = {key: int(value) for key, value in properties.get("ScalingConfig", {}).items()}
        return create(logical_id, {**properties, "ScalingConfig": scaling}, stack)

    return create_with_numbers


def without_expressions(create: Callable) -> Callable:
    """An alarm over an expression becomes one over the metric that the expression reads."""

    def create_without_expressions(logical_id: str, properties: dict, stack: str) -> tuple[str, dict]:
        plain = {key: of for key, of in properties.items() if key != "Metrics"}
        for metric in properties.get("Metrics", []):
            if "MetricStat" in metric:
                read = metric["MetricStat"]
                plain |= read["Metric"] | {"Statistic": read["Stat"], "Period": read["Period"]}
        return create(logical_id, plain, stack)

    return create_without_expressions


def with_routes(create: Callable) -> Callable:
    def create_with_routes(logical_id: str, properties: dict, stack: str) -> tuple[str, dict]:
        api_id, attributes = create(logical_id, properties, stack)
        for path, methods in ((properties.get("Body") or {}).get("paths") or {}).items():
            for method, operation in methods.items():
                answer = operation.get("x-amazon-apigateway-integration")
                if not answer:
                    continue
                integration = checked(
                    apigateway._create_integration(
                        api_id,
                        {
                            "integrationType": "AWS_PROXY",
                            "integrationUri": answer["uri"],
                            "payloadFormatVersion": answer["payloadFormatVersion"],
                        },
                    )
                )
                target = f"integrations/{json.loads(integration[2])['integrationId']}"
                route = {"routeKey": f"{method.upper()} {path}", "target": target}
                if {"AWS_IAM": []} in operation.get("security", []):
                    route["authorizationType"] = "AWS_IAM"
                checked(apigateway._create_route(api_id, route))
        return api_id, attributes

    return create_with_routes


def with_aws_addresses(escape: Callable[[str], str]) -> Callable[[str], str]:
    """
    Show a nested template at S3's own address: `sam delete` takes no other, and takes the endpoint's when it deploys.
    """

    def escape_template(text: str) -> str:
        shown = f"https://s3.{get_region()}.amazonaws.com/"
        return escape(re.sub(r'((?:TemplateURL|Location)"?: "?)http://127\.0\.0\.1:\d+/', rf"\g<1>{shown}", str(text)))

    return escape_template


for module in (engine, stacks, changesets):
    if hasattr(module, "_evaluate_conditions"):
        module._evaluate_conditions = with_joins(module._evaluate_conditions)
handlers._esc = with_aws_addresses(handlers._esc)
HANDLERS["AWS::EC2::SecurityGroupIngress"] = {"create": create_ingress, "delete": delete_nothing}
engine._evaluate_rules = with_any_port(engine._evaluate_rules)
# A deployment group only: aliases change over at once.
for kind in ("Application", "DeploymentGroup"):
    HANDLERS[f"AWS::CodeDeploy::{kind}"] = {"create": create_record, "delete": delete_nothing}
HANDLERS["AWS::Logs::QueryDefinition"] = {"create": create_record, "delete": delete_nothing}
HANDLERS["AWS::RDS::DBProxy"] = {"create": create_proxy, "delete": delete_proxy}
HANDLERS["AWS::RDS::DBProxyTargetGroup"] = {"create": create_targets, "delete": delete_nothing}
with_secret("AWS::RDS::DBCluster")
with_secret("AWS::RDS::DBInstance")
HANDLERS["AWS::Lambda::EventSourceMapping"]["create"] = with_numbers(
    HANDLERS["AWS::Lambda::EventSourceMapping"]["create"]
)
HANDLERS["AWS::CloudWatch::Alarm"]["create"] = without_expressions(HANDLERS["AWS::CloudWatch::Alarm"]["create"])
HANDLERS["AWS::ApiGatewayV2::Api"]["create"] = with_routes(HANDLERS["AWS::ApiGatewayV2::Api"]["create"])

if __name__ == "__main__":
    main()
