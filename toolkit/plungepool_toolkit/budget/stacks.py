"""A template and those nested in it, expanded as SAM does, each with the values of its parameters."""

from __future__ import annotations

import copy
import io
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from plungepool_toolkit.budget.source import Source, TemplateError, read
from plungepool_toolkit.budget.values import NO_VALUE, Attribute, Resolver, Unknown, how_to_say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_SAM = "AWS::Serverless-2016-10-31"
_STACKS = {"AWS::Serverless::Application": "Location", "AWS::CloudFormation::Stack": "TemplateURL"}
# What the transform takes from S3 only, and what stands there instead while it runs: none of it is ever fetched.
_CODE = {
    "CodeUri": "s3://b/k",
    "ContentUri": "s3://b/k",
    "DefinitionUri": "s3://b/k",
    "Location": "https://s3.amazonaws.com/b/k",
}
_DEPTH_AT_MOST = 8
# What these make of a template has no connections in it. CloudFormation User Guide, "Transform reference".
_TRANSFORMS = (
    _SAM,
    "AWS::LanguageExtensions",
    "AWS::CodeDeployBlueGreen",
    "AWS::SecretsManager-2020-07-23",
    "AWS::SecretsManager-2024-09-16",
)


@dataclass(frozen=True, slots=True)
class Knob:
    """What to change: a parameter or a property, and where it stands."""

    name: str
    file: str
    line: int


@dataclass(slots=True)
class Stack:
    """One template with its values; `path` is of logical ids, from the outermost, whose own is empty."""

    path: tuple[str, ...]
    source: Source
    parameters: dict[str, Any]
    #: What the parent's parameters are of which each parameter's value was taken.
    origins: dict[str, list[str]] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=dict)
    children: dict[str, Stack] = field(default_factory=dict)
    #: What a template holds that was not read, and why: nested stacks, macros, modules.
    not_read: dict[str, str] = field(default_factory=dict)
    resolver: Resolver = field(init=False)

    def __post_init__(self) -> None:
        self.resolver = Resolver(self.template, self.parameters, self.path, self._output)

    def all(self) -> Iterator[Stack]:
        """Yield this stack and all that are nested in it."""
        yield self
        for child in self.children.values():
            yield from child.all()

    def resources(self, *types: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the logical id and the resource, of these types or of all, of those whose condition is not false."""
        for name, resource in self.template.get("Resources", {}).items():
            if not types or resource.get("Type") in types:
                condition = resource.get("Condition")
                if condition is None or self.resolver.condition(condition) is not False:
                    yield name, resource

    def property(self, resource: Mapping[str, Any], *names: str) -> Any:
        """Return what a property of a resource comes to; None where it is not there."""
        node: Any = resource.get("Properties") or {}
        for index, name in enumerate(names):
            if isinstance(node, dict) and name not in node and len(node) == 1 and next(iter(node)).startswith("Fn::"):
                node = self.resolver.resolve(node)  # an If around the properties that are asked for
            if node is NO_VALUE or not isinstance(node, dict):
                return node if isinstance(node, Unknown) and index else None
            node = node.get(name)
        value = self.resolver.resolve(node)
        return None if value is NO_VALUE else value

    def line(self, resource: str, *names: str) -> int:
        """Return the line of a resource's property, of Globals where it stands there, or of the resource."""
        lines = self.source.lines
        own = ("Resources", resource, "Properties", *names)
        shared = ("Globals", "Function", *names)
        return self.source.line(*(own if own in lines or shared not in lines else shared))

    def parameter_behind(self, node: Any) -> str | None:
        """Return the outermost template's parameter that a node's value is taken from."""
        for name in self.resolver.parameters_of(node):
            return next(iter(self.origins.get(name, [name])), None) if self.path else name
        return None

    def knob(self, logical_id: str, resource: Mapping[str, Any], *names: str) -> Knob:
        """Return what to change for a property: the parameter that its value is taken from, or the property."""
        node: Any = resource.get("Properties") or {}
        for name in names:
            node = node.get(name) if isinstance(node, dict) else None
        parameter = self.parameter_behind(node)
        what = f"the parameter {parameter}" if parameter else f"{names[-1]} of {'/'.join((*self.path, logical_id))}"
        return Knob(what, str(self.source.path), self.line(logical_id, *names))

    def find(self, attribute: Attribute) -> tuple[Stack, dict[str, Any]] | None:
        """Return the resource that an attribute is of, in this stack or one nested in it; None where it is not made."""
        for stack in self.all():
            resource = stack.template.get("Resources", {}).get(attribute.resource)
            if stack.path == attribute.stack and resource is not None:
                condition = resource.get("Condition")
                made = condition is None or stack.resolver.condition(condition) is not False
                return (stack, resource) if made else None
        return None

    def _output(self, resource: str, name: str) -> Any:
        if child := self.children.get(resource):
            node = child.template.get("Outputs", {}).get(name, {}).get("Value")
            return Unknown(f"the output {name} of {resource}") if node is None else child.resolver.resolve(node)
        return Unknown(f"the output {name} of {resource}")


def load(path: Path, overrides: Mapping[str, str]) -> Stack:
    """
    Read a template and the local ones nested in it.

    Args: overrides: values of its parameters; others have their defaults. Names that begin with AWS:: are pseudo
        parameters.
    Raises: TemplateError; for a parameter that the template does not have, too.
    """
    source = read(path)
    known = source.data.get("Parameters") or {}
    if wrong := sorted(name for name in overrides if name not in known and not name.startswith("AWS::")):
        raise TemplateError(f"{path} has no parameter {', '.join(wrong)}")
    return _load(source, dict(overrides), (), {}, [source.path.resolve()])


def _load(
    source: Source, given: dict[str, Any], path: tuple[str, ...], origins: dict[str, list[str]], above: list[Path]
) -> Stack:
    parameters = _values(source.data.get("Parameters") or {}, given, path)
    stack = Stack(path, source, parameters, origins)
    written = _without_loops(copy.deepcopy(source.data), stack.resolver, source.path)
    places = _places_of_nested(written)
    transforms = source.data.get("Transform")
    transforms = transforms if isinstance(transforms, list) else [transforms]
    if _SAM in transforms:
        written = _expanded(written, source, parameters)
    stack.template.update(written)
    _note_what_is_added(stack, transforms)
    for name, resource in stack.resources():
        if str(resource["Type"]).startswith("AWS::Serverless::") and name not in places:
            line = stack.line(name)
            raise TemplateError(f"{source.path}, line {line}: {resource['Type']} needs the line Transform: {_SAM}")
        if name in places:
            _nest(stack, name, resource, places[name], above)
    return stack


def _note_what_is_added(stack: Stack, transforms: Sequence[Any]) -> None:
    """Note what nobody sees before it is deployed: what macros, modules and stack sets make of a template."""
    for one in transforms:
        name = one.get("Name") if isinstance(one, dict) else one
        if name is not None and name not in _TRANSFORMS:
            stack.not_read[f"the transform {name}"] = "what it makes of the template is known only at deployment"
    if "Fn::Transform" in (stack.source.data.get("Resources") or {}):
        stack.not_read["Fn::Transform"] = "the resources that it adds are known only at deployment"
    for name, resource in stack.resources():
        kind = str(resource["Type"])
        if kind.endswith("::MODULE"):
            stack.not_read[name] = f"the resources of the module {kind} are in CloudFormation's registry"
        elif kind == "AWS::CloudFormation::StackSet":
            stack.not_read[name] = "its stacks, in other accounts or Regions, are not read"


def _values(declared: Mapping[str, Any], given: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {name: value for name, value in given.items() if name.startswith("AWS::")}
    for name, parameter in declared.items():
        parameter = parameter if isinstance(parameter, dict) else {}
        kind = str(parameter.get("Type", "String"))
        value = given.get(name, parameter.get("Default"))
        if value is None:
            whose = f" of {'/'.join(path)}" if path else ""
            values[name] = Unknown(f"the parameter {name}{whose}", "" if path else f"--parameter-overrides {name}=…")
        elif kind.startswith("AWS::SSM::Parameter::Value") and name not in given:
            values[name] = Unknown(f"the value of the parameter {name} in SSM", f"--parameter-overrides {name}=…")
        elif kind == "CommaDelimitedList" or kind.startswith("List<"):
            values[name] = [each.strip() for each in value.split(",")] if isinstance(value, str) else value
        else:
            listed = parameter.get("AllowedValues")
            allowed = [str(each) for each in listed] if isinstance(listed, list) else []
            if allowed and isinstance(value, (str, int, float)) and str(value) not in allowed:
                raise TemplateError(f"the parameter {name} takes one of {', '.join(allowed)}")
            values[name] = value
    return values


def _places_of_nested(template: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: (resource.get("Properties") or {}).get(_STACKS[resource["Type"]])
        for name, resource in template["Resources"].items()
        if isinstance(resource, dict) and resource.get("Type") in _STACKS
    }


def _nest(stack: Stack, name: str, resource: Mapping[str, Any], place: Any, above: Sequence[Path]) -> None:
    if not isinstance(place, str) or "://" in place:
        stack.not_read[name] = "a nested stack whose template is not a local file"
        return
    where = stack.source.path.parent / place
    if where.resolve() in above or len(above) >= _DEPTH_AT_MOST:
        raise TemplateError(f"{where} is nested in itself, or more than {_DEPTH_AT_MOST} deep")
    nodes = (resource.get("Properties") or {}).get("Parameters") or {}
    if not isinstance(nodes, dict):
        raise TemplateError(f"{stack.source.path}, line {stack.line(name)}: Parameters of {name} is not a map")
    values = {key: value for key, node in nodes.items() if (value := stack.resolver.resolve(node)) is not NO_VALUE}
    origins = {key: [one for one in [stack.parameter_behind(node)] if one] for key, node in nodes.items()}
    values |= {key: value for key, value in stack.parameters.items() if key.startswith("AWS::")}
    stack.children[name] = _load(read(where), values, (*stack.path, name), origins, [*above, where.resolve()])


class _Session(NamedTuple):
    region_name: str


def _expanded(template: dict[str, Any], source: Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template as SAM's transform gives it, without a question to AWS."""
    from samtranslator.parser.parser import Parser
    from samtranslator.public.exceptions import InvalidDocumentException
    from samtranslator.translator.translator import Translator

    shared = (template.get("Globals") or {}).get("Function")
    for properties in [shared, *(resource.get("Properties") for resource in template["Resources"].values())]:
        for name, there in _CODE.items() if isinstance(properties, dict) else ():
            # An application of the Serverless Application Repository (Location: a map) would be asked for there.
            if isinstance(properties.get(name), str) or (name == "Location" and name in properties):
                properties[name] = there
    values = {name: value for name, value in parameters.items() if isinstance(value, (str, int, float, bool))}
    # No map of managed policies, and no function that would fetch one: their names pass as they are. Of a session of
    # boto3 the transform wants the region, which stands for any here.
    session = _Session(str(values.get("AWS::Region", "us-east-1")))
    values |= {"AWS::Region": session.region_name, "AWS::Partition": "aws"}
    # It warns, of a feature table of AWS's own, on standard error.
    logging.getLogger("samtranslator").addHandler(logging.NullHandler())
    logging.getLogger("samtranslator").propagate = False
    try:
        expanded: dict[str, Any] = Translator({}, Parser(), boto_session=session).translate(template, values)
    except InvalidDocumentException as error:
        text = io.StringIO()
        print(error.message, *(cause.message for cause in error.causes), file=text)
        raise TemplateError(f"{source.path}: {text.getvalue().strip()}") from error
    except Exception as error:
        # The transform is not ready for everything that a file may hold.
        raise TemplateError(f"{source.path}: SAM's transform fails on it ({type(error).__name__}: {error})") from error
    return expanded


def _without_loops(template: dict[str, Any], resolver: Resolver, path: Path) -> dict[str, Any]:
    """Write out Fn::ForEach (the transform AWS::LanguageExtensions) in Resources, Conditions and Outputs."""
    for section in ("Conditions", "Resources", "Outputs"):
        if isinstance(template.get(section), dict):
            template[section] = _written_out(template[section], resolver, path)
    for name, resource in template["Resources"].items():
        if not name.startswith("Fn::") and not (isinstance(resource, dict) and isinstance(resource.get("Type"), str)):
            raise TemplateError(f"{path}: the resource {name}, which a loop generates, has no Type")
    template["Resources"].pop("Fn::Transform", None)
    return template


def _written_out(entries: dict[str, Any], resolver: Resolver, path: Path) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for name, node in entries.items():
        if not name.startswith("Fn::ForEach::"):
            written[name] = node
            continue
        if not (isinstance(node, list) and len(node) == 3 and isinstance(node[2], dict)):
            raise TemplateError(f"{path}: {name} is not a loop: it takes a name, a list and what is to be repeated")
        values = resolver.resolve(node[1])
        if not isinstance(values, list) or not all(isinstance(value, (str, int)) for value in values):
            say = how_to_say(values)
            raise TemplateError(f"{path}: the list of {name} is not known" + (f"; give it with {say}" if say else ""))
        for value in values:
            written |= _written_out(_replaced(node[2], str(node[0]), str(value)), resolver, path)
    return written


def _replaced(node: Any, name: str, value: str) -> Any:
    if isinstance(node, str):
        letters = "".join(each for each in value if each.isalnum())
        return node.replace(f"${{{name}}}", value).replace(f"&{{{name}}}", letters)
    if isinstance(node, dict):
        if node == {"Ref": name}:
            return value
        return {_replaced(key, name, value): _replaced(each, name, value) for key, each in node.items()}
    return [_replaced(each, name, value) for each in node] if isinstance(node, list) else node
