"""
What CloudFormation makes of a template: whether it takes the parameters, and which resources with which properties.

The SAM CLI and cfn-lint resolve conditions in part, moto's parser and ministack's engine need a server around them;
none gives the properties of a nested stack under parameters. This evaluates what this repository's templates use,
offline and in a millisecond. Rules: CloudFormation User Guide, "Rules section structure" and "Rule-specific intrinsic
functions"; Fn::If and Fn::Join are refused there.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

ACCOUNT = "123456789012"
NOTHING = object()  # AWS::NoValue


class Refused(ValueError):
    """CloudFormation does not take these parameters; the text is what it says."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A region of a partition."""

    partition: str
    region: str
    suffix: str


HOME = Place("aws", "eu-west-1", "amazonaws.com")
ELSEWHERE = (Place("aws-us-gov", "us-gov-west-1", "amazonaws.com"), Place("aws-cn", "cn-north-1", "amazonaws.com.cn"))


def refusal(declared: dict, value: str) -> str | None:
    """Return why a parameter does not take a value: its type, pattern, choices and bounds; None where it does."""
    parts = [value] if "List" not in declared["Type"] else [part for part in value.split(",") if part]
    for part in parts:
        if declared["Type"] == "Number":
            if not re.fullmatch(r"-?\d+(\.\d+)?", part):
                return "must be a number"
            if float(part) < declared.get("MinValue", float("-inf")):
                return f"must be at least {declared['MinValue']}"
            if float(part) > declared.get("MaxValue", float("inf")):
                return f"must be at most {declared['MaxValue']}"
        if "AllowedValues" in declared and part not in map(str, declared["AllowedValues"]):
            return f"must be one of {declared['AllowedValues']}"
        if "AllowedPattern" in declared and not re.fullmatch(declared["AllowedPattern"], part):
            return f"must match {declared['AllowedPattern']}"
        if declared["Type"].startswith(("AWS::", "List<AWS::")) and not part:
            return "must name a resource"
    if declared["Type"].startswith("List<AWS::") and not parts:
        return "must name a resource"
    return None


class Stack:
    """
    A template under parameters in a place.

    Raises: Refused, where a parameter or a rule refuses them; AssertionError, where the template is wrong.
    """

    def __init__(self, template: dict, parameters: dict[str, Any], place: Place = HOME) -> None:
        self.template, self.place = template, place
        declared = template.get("Parameters", {})
        assert not parameters.keys() - declared.keys(), f"unknown parameters {parameters.keys() - declared.keys()}"
        given = {name: of.get("Default") for name, of in declared.items()} | parameters
        texts: dict[str, str] = {}
        for name, of in declared.items():
            if given[name] is None:
                raise Refused(f"parameter {name} has no value")
            texts[name] = ",".join(given[name]) if isinstance(given[name], list) else str(given[name])
            if (why := refusal(of, texts[name])) is not None:
                raise Refused(f"parameter {name} {why}")
        pseudo = {
            "AWS::AccountId": ACCOUNT,
            "AWS::Partition": place.partition,
            "AWS::Region": place.region,
            "AWS::StackId": (
                f"arn:{place.partition}:cloudformation:{place.region}:{ACCOUNT}:stack/shop/aaaa-bbbb-cccc-dddd-0123456789ab"
            ),
            "AWS::StackName": "shop",
            "AWS::URLSuffix": place.suffix,
        }
        lists = {name for name, of in declared.items() if "List" in of["Type"]}
        # No document says whether an empty list has no member or an empty one: both must be judged alike.
        for empty in ([], [""]):
            self.values: dict[str, Any] = pseudo | {
                name: text if name not in lists else ([part for part in text.split(",") if part] or empty)
                for name, text in texts.items()
            }
            for rule, of in template.get("Rules", {}).items():
                self._obey(rule, of)
        self.values |= {name: [part for part in texts[name].split(",") if part] for name in lists}
        self.nested: dict[str, Stack] = {}
        self.resources = {
            name: resource
            for name, resource in template["Resources"].items()
            if self.holds(resource.get("Condition", True))
        }

    def _obey(self, name: str, rule: dict) -> None:
        if "RuleCondition" in rule and not self._judge(rule["RuleCondition"]):
            return
        for assertion in rule["Assertions"]:
            if not self._judge(assertion["Assert"]):
                raise Refused(f"rule {name} failed: {assertion['AssertDescription']}")

    def _judge(self, value: Any) -> Any:
        """Evaluate an expression of a rule, which has functions of its own."""
        if isinstance(value, list):
            return [self._judge(item) for item in value]
        if not isinstance(value, dict):
            return str(value)
        [(function, argument)] = value.items()
        match function:
            case "Ref":
                return self.values[argument]
            case "Fn::And":
                return all(self._judge(argument))
            case "Fn::Or":
                return any(self._judge(argument))
            case "Fn::Not":
                return not self._judge(argument[0])
        first, second = (self._judge(part) for part in argument)
        match function:
            case "Fn::Equals":
                return first == second
            case "Fn::Contains":
                return second in first
            case "Fn::EachMemberEquals":
                return all(member == second for member in first)
            case "Fn::EachMemberIn":
                return all(member in second for member in first)
        raise AssertionError(f"{function} is no function of a rule")

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
                    return f"arn:{self.place.partition}:rds:{self.place.region}:{ACCOUNT}:db-proxy:prx-{name}"
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

    def attribute(self, name: str, attribute: str) -> Any:
        """Return what stands beside a resource's properties: DeletionPolicy, DependsOn, …"""
        return self.resolve(self.resources[name].get(attribute))

    def of_type(self, kind: str) -> dict[str, dict]:
        return {name: self.properties(name) for name, of in self.resources.items() if of["Type"] == kind}

    def outputs(self) -> dict[str, Any]:
        declared = self.template.get("Outputs", {}).items()
        return {name: self.resolve(of["Value"]) for name, of in declared if self.holds(of.get("Condition", True))}

    def everything(self) -> Iterator[tuple[str, str]]:
        """Yield where a text stands and the text, for each in the stack's resources and outputs, keys left out."""
        yield from texts({name: self.properties(name) for name in self.resources} | {"Outputs": self.outputs()})
        for nested in self.nested.values():
            yield from nested.everything()


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text in a document with the path that leads to it."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(item, f"{path}/{key}")
    elif isinstance(value, list):
        for item in value:
            yield from texts(item, path)
