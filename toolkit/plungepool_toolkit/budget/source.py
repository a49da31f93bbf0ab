"""A template as it is written: YAML or JSON with CloudFormation's short forms, and the line of every value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Where = tuple[str | int, ...]

# CloudFormation takes no larger template (its User Guide, "CloudFormation quotas": 1 MB in an Amazon S3 object).
_BYTES_AT_MOST = 1_000_000
# An alias of YAML is a copy here; a few lines of them could stand for billions of values.
_VALUES_AT_MOST = 200_000
_DEPTH_AT_MOST = 100
_NO_PREFIX = ("Ref", "Condition")
_SECTIONS = ("Parameters", "Mappings", "Conditions", "Globals", "Outputs", "Rules", "Metadata")


class TemplateError(ValueError):
    """A file that is no template, or one that cannot be read; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its content as plain values, and on which line each of them stands (the first line is 1)."""

    path: Path
    data: dict[str, Any]
    lines: dict[Where, int]

    def line(self, *where: str | int) -> int:
        """Return the line of a value, or of the nearest one around it that is written down."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)


def read(path: Path) -> Source:
    """
    Read one template.

    Raises: TemplateError, where the file is missing, too large, no YAML, or has no Resources.
    """
    import yaml

    try:
        with path.open("rb") as file:
            content = file.read(_BYTES_AT_MOST + 1)  # a device, or a pipe, may have no end
        if len(content) > _BYTES_AT_MOST:
            raise TemplateError(f"{path} is larger than CloudFormation accepts ({_BYTES_AT_MOST:,} bytes)")
        text = _plain(content.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        ) from error
    lines: dict[Where, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        try:
            reader = _Reader(loader, lines)
            node = loader.get_single_node()
            _refuse_twice(node)
            data = reader.value(node, ()) if node is not None else None
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        # PyYAML's own errors are ValueErrors, too, some of them with neither a mark nor a problem.
        what = getattr(error, "problem", None) or getattr(error, "reason", None)
        what = what or (str(error) if isinstance(error, ValueError) else "it is nested too deeply")
        raise TemplateError(f"{path}{at} is not valid YAML: {what}") from error
    if not isinstance(data, dict) or not isinstance(data.get("Resources"), dict) or not data["Resources"]:
        raise TemplateError(f"{path} is not a CloudFormation or SAM template: it has no Resources")
    for section in _SECTIONS:
        if not isinstance(data.get(section, {}), dict) and data[section] is not None:
            raise TemplateError(f"{path}, line {lines.get((section,), 1)}: {section} is not a map of names to values")
    for name, resource in data["Resources"].items():
        if not name.startswith("Fn::") and not (isinstance(resource, dict) and isinstance(resource.get("Type"), str)):
            line = lines.get(("Resources", name), 1)
            raise TemplateError(f"{path}, line {line}: the resource {name} has no Type")
    return Source(path, data, lines)


def _plain(text: str) -> str:
    """Return a template that is JSON without the tabs between its values: to YAML they are none of its blanks."""
    if not text.lstrip().startswith("{") or "\t" not in text:
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text.replace("\t", " ")  # within a text of JSON's there is none


class _Reader:
    def __init__(self, loader: Any, lines: dict[Where, int]) -> None:
        self.lines, self._loader = lines, loader

    def value(self, node: Any, where: Where) -> Any:
        """Return the value of a node of YAML; short forms become long ones."""
        import yaml

        if len(self.lines) > _VALUES_AT_MOST or len(where) > _DEPTH_AT_MOST:
            raise ValueError("it has too many values, or they are nested too deeply")
        self.lines.setdefault(where, node.start_mark.line + 1)
        name = node.tag[1:] if node.tag.startswith("!") and len(node.tag) > 1 else None
        if isinstance(node, yaml.MappingNode):
            self._loader.flatten_mapping(node)
            plain: Any = {}
            for key_node, value_node in node.value:
                key = str(self._loader.construct_object(key_node))
                self.lines[(*where, key)] = key_node.start_mark.line + 1
                plain[key] = self.value(value_node, (*where, key))
        elif isinstance(node, yaml.SequenceNode):
            plain = [self.value(each, (*where, index)) for index, each in enumerate(node.value)]
        elif name or node.tag.endswith(":timestamp"):
            plain = node.value  # a date is text to CloudFormation, as in AWSTemplateFormatVersion
        else:
            plain = self._loader.construct_object(node)
        if name is None:
            return plain
        if name == "GetAtt" and isinstance(plain, str):
            plain = [*plain.split(".", 1)]
        return {name if name in _NO_PREFIX else f"Fn::{name}": plain}


def _refuse_twice(root: Any) -> None:
    """Refuse a key that is there twice: which of its values is meant, nobody knows. Before anything is merged."""
    import yaml

    seen: set[int] = set()
    left = [root]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                left.append(value)
                if not isinstance(key.value, str) or key.tag.endswith(":merge"):
                    continue
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise ValueError(f"the key {key.value} occurs twice, on lines {lines[key.value]} and {line}")
                lines[key.value] = line
