"""What CloudFormation's functions come to before anything is deployed, and what cannot be known until then; pure."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

_VARIABLE = re.compile(r"\$\{(!?)([^}]*)\}")
_DYNAMIC = re.compile(r"\{\{resolve:[^}]*\}\}")


@dataclass(frozen=True, slots=True)
class Attribute:
    """What only the deployed resource knows: `stack` is the path of the nested stack that it is in."""

    stack: tuple[str, ...]
    resource: str
    name: str

    def __str__(self) -> str:
        return "/".join((*self.stack, self.resource)) + ("" if self.name == "Ref" else f".{self.name}")


@dataclass(frozen=True, slots=True)
class Unknown:
    """What nobody has said: in words that name it, and how to say it."""

    what: str
    how: str = ""
    #: A condition that is not known chooses between values: each of them may be known.
    chooses: bool = False

    def __str__(self) -> str:
        return self.what

    @property
    def name(self) -> str:
        """The word among those words that names it: of a parameter, an export or a dynamic reference."""
        return next((word for word in self.what.split() if word not in ("the", "parameter", "export", "what")), "")


@dataclass(frozen=True, slots=True)
class Text:
    """A text some parts of which are unknown."""

    parts: tuple[Any, ...]

    def __str__(self) -> str:
        return "".join(part if isinstance(part, str) else f"${{{part}}}" for part in self.parts)


class _NoValue:
    """AWS::NoValue: the property is as good as not there."""


NO_VALUE = _NoValue()


def leaves(value: object) -> Iterator[Any]:
    """Yield all that a resolved value consists of, the parts of its texts one by one."""
    if isinstance(value, Text):
        yield from value.parts
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def is_known(value: object) -> bool:
    """Return whether nothing in a value is unknown."""
    return not any(isinstance(each, (Attribute, Unknown)) for each in leaves(value))


def whole(value: object) -> int | None:
    """Return a value as the whole number that it is, or is the text of; None for others, or one beyond reason."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    text = str(value).strip()
    digits = text.removesuffix(".0") if isinstance(value, float) else text
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None


def is_number(value: object) -> bool:
    """Return whether a value is a number, or the text of one."""
    text = str(value).replace(".", "", 1)
    return isinstance(value, (str, int, float)) and not isinstance(value, bool) and text.isascii() and text.isdigit()


def how_to_say(value: object) -> str:
    """Return the option by which something unknown in a value may be said; empty if there is none."""
    return next((each.how for each in leaves(value) if isinstance(each, Unknown) and each.how), "")


def joined(parts: list[Any], between: str = "") -> Any:
    """Return parts as one text, with something between them; a str where all of them are known."""
    flat: list[Any] = []
    for index, part in enumerate(parts):
        for each in [between] * (index > 0) + [*(part.parts if isinstance(part, Text) else (part,))]:
            each = each if isinstance(each, (Attribute, Unknown)) else _text(each)
            if isinstance(each, str) and flat and isinstance(flat[-1], str):
                flat[-1] += each
            else:
                flat.append(each)
    flat = [each for each in flat if each != ""]
    if all(isinstance(each, str) for each in flat):
        return "".join(flat)
    return flat[0] if len(flat) == 1 else Text(tuple(flat))


def _text(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


class Resolver:
    """
    What the functions in one template come to.

    Args: template: the whole of it; parameters: the values of its parameters, which may hold Attributes of the stack
        around it; stack: its path; output: what a nested stack's output comes to, (logical id, name) to value.
    """

    def __init__(
        self,
        template: Mapping[str, Any],
        parameters: Mapping[str, Any],
        stack: tuple[str, ...],
        output: Callable[[str, str], Any],
    ) -> None:
        self._template, self._parameters, self._stack, self._output = template, parameters, stack, output
        self._conditions: dict[str, bool | Unknown] = {}
        self._functions: dict[str, Callable[[Any], Any]] = {
            "Ref": self._ref,
            "Fn::GetAtt": self._get_att,
            "Fn::If": self._if,
            "Fn::Sub": self._sub,
            "Fn::Join": self._join,
            "Fn::Select": self._select,
            "Fn::Split": self._split,
            "Fn::FindInMap": self._find_in_map,
            "Fn::ImportValue": lambda of: Unknown(f"the export {self.resolve(of)}"),
            "Fn::Length": lambda of: len(value) if isinstance(value := self.resolve(of), list) else Unknown("a length"),
        }

    def resolve(self, node: Any) -> Any:
        """Return the value of a node: plain, or with Attribute, Unknown and Text in it; NO_VALUE for nothing."""
        if isinstance(node, Mapping):
            if len(node) == 1:
                name, of = next(iter(node.items()))
                if name in self._functions:
                    try:
                        return self._functions[name](of)
                    except (LookupError, TypeError, ValueError, AttributeError):
                        # It does not take what it is given: CloudFormation would refuse it, or it is newer than this.
                        return Unknown(f"what {name} gives")
                if name.startswith("Fn::"):
                    return Unknown(f"what {name} gives")
            values = {key: self.resolve(value) for key, value in node.items()}
            return {key: value for key, value in values.items() if value is not NO_VALUE}
        if isinstance(node, list):
            return [value for each in node if (value := self.resolve(each)) is not NO_VALUE]
        if isinstance(node, str) and (found := _DYNAMIC.search(node)):
            before, after = node[: found.start()], node[found.end() :]
            return joined([before, Unknown(f"what {found.group()[2:-2]} holds"), self.resolve(after)])
        return node

    def condition(self, name: object) -> bool | Unknown:
        """Return whether a condition holds, or what must be known to say so."""
        name = str(name) if isinstance(name, bool) else name  # YAML's No, which is a name here
        if not isinstance(name, str):
            return Unknown("a condition")
        if name not in self._conditions:
            # Until it is known, so that one that refers to itself ends.
            self._conditions[name] = Unknown(f"the condition {name}")
            node = (self._template.get("Conditions") or {}).get(name)
            # One that is not there, or is no condition, is as good as one that nobody knows.
            with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
                self._conditions[name] = self._truth(node) if node is not None else Unknown(f"the condition {name}")
        return self._conditions[name]

    def parameters_of(self, node: Any) -> list[str]:
        """
        Return the parameters that a value is, as they stand: those to set where the value is to be another.

        One that only chooses between values, or is a part of one, is none of them.
        """
        if not isinstance(node, Mapping) or len(node) != 1:
            return []
        name, of = next(iter(node.items()))
        if name == "Fn::Sub" and isinstance(of, str) and (found := _VARIABLE.fullmatch(of)):
            name, of = "Ref", found[2].strip()
        if name == "Ref":
            return [of] if isinstance(of, str) and of in (self._template.get("Parameters") or {}) else []
        if name != "Fn::If" or not isinstance(of, list) or len(of) != 3:
            return []
        one, other = (self.parameters_of(branch) for branch in of[1:])
        holds = self.condition(of[0])
        if isinstance(holds, Unknown):
            return list(dict.fromkeys([*one, *other]))
        taken, left = (one, other) if holds else (other, one)
        # Where it is set by one that also says whether it is set at all, as 0 for none.
        asked = self._asked_by({"Condition": of[0]}, set())
        return taken or [each for each in left if each in asked]

    def _asked_by(self, node: Any, seen: set[str]) -> set[str]:
        """Return the parameters that a condition asks for."""
        if isinstance(node, list):
            return {name for each in node for name in self._asked_by(each, seen)}
        if not isinstance(node, Mapping):
            return set()
        found: set[str] = set()
        for name, of in node.items():
            if name == "Condition" and isinstance(of, str) and of not in seen:
                seen.add(of)
                found |= self._asked_by((self._template.get("Conditions") or {}).get(of), seen)
            elif name == "Ref" and isinstance(of, str):
                found.add(of)
            else:
                found |= self._asked_by(of, seen)
        return found

    def _truth(self, node: Any) -> bool | Unknown:
        name, of = next(iter(node.items())) if isinstance(node, Mapping) and len(node) == 1 else ("", node)
        if name == "Condition":
            return self.condition(of)
        if name == "Fn::Not":
            inner = self._truth(of[0])
            return inner if isinstance(inner, Unknown) else not inner
        if name in ("Fn::And", "Fn::Or"):
            settles = name == "Fn::Or"
            parts = [self._truth(each) for each in of]
            if settles in parts:
                return settles
            return next((part for part in parts if isinstance(part, Unknown)), not settles)
        if name == "Fn::Equals":
            left, right = (self.resolve(each) for each in of)
            for side in (*leaves(left), *leaves(right)):
                if isinstance(side, Unknown):
                    return side
            if is_known(left) and is_known(right):
                return _text(left) == _text(right) if not isinstance(left, list) else left == right
            # What a resource says is no empty text; anything else is not known before it is deployed.
            return left == right if "" not in (left, right) else False
        return Unknown(f"the condition {name or node}")

    def _ref(self, name: Any) -> Any:
        if name == "AWS::NoValue":
            return NO_VALUE
        if name in self._parameters:
            return self._parameters[name]
        if str(name).startswith("AWS::"):
            return Unknown(name, f"--parameter-overrides {name}=…")
        return Attribute(self._stack, str(name), "Ref")

    def _get_att(self, of: Any) -> Any:
        parts = of.split(".", 1) if isinstance(of, str) else of
        if not isinstance(parts, list) or len(parts) < 2:
            return Unknown("what Fn::GetAtt gives")
        name = joined([self.resolve(part) for part in parts[1:]], ".")
        return self._attribute(str(parts[0]), str(name))

    def _attribute(self, resource: str, name: str) -> Any:
        if name.startswith("Outputs."):
            return self._output(resource, name.removeprefix("Outputs."))
        return Attribute(self._stack, resource, name)

    def _if(self, of: Any) -> Any:
        if not isinstance(of, list) or len(of) != 3:
            return Unknown("what Fn::If gives")
        holds = self.condition(of[0])
        if isinstance(holds, Unknown):
            # Either way the same, as where both branches lead to one database: then it does not matter.
            one, other = self.resolve(of[1]), self.resolve(of[2])
            return one if one == other else replace(holds, chooses=True)
        return self.resolve(of[1] if holds else of[2])

    def _sub(self, of: Any) -> Any:
        text, given = (of[0], of[1] if len(of) > 1 else {}) if isinstance(of, list) else (of, {})
        parts: list[Any] = []
        at = 0
        for found in _VARIABLE.finditer(text):
            parts.append(text[at : found.start()])
            at = found.end()
            literal, name = found.groups()
            name = name.strip()
            if literal:
                parts.append(f"${{{name}}}")
            elif name in given:
                parts.append(self.resolve(given[name]))
            elif "." in name and name not in self._parameters:
                parts.append(self._attribute(*name.split(".", 1)))
            else:
                parts.append(self._ref(name))
        parts.append(text[at:])
        return self.resolve(whole) if isinstance(whole := joined(parts), str) else whole

    def _join(self, of: Any) -> Any:
        values = self.resolve(of[1])
        if isinstance(values, Attribute | Unknown):
            return values
        return joined(values if isinstance(values, list) else [values], str(of[0]))

    def _split(self, of: Any) -> Any:
        text = self.resolve(of[1])
        return text.split(of[0]) if isinstance(text, str) else text

    def _select(self, of: Any) -> Any:
        index, values = self.resolve(of[0]), self.resolve(of[1])
        if isinstance(values, list) and str(index).isdigit() and int(index) < len(values):
            return values[int(index)]
        # A part of what is not known leads where the whole does.
        return values if isinstance(values, Attribute | Unknown | Text) else Unknown("what Fn::Select gives")

    def _find_in_map(self, of: Any) -> Any:
        keys = [self.resolve(each) for each in of[:3]]
        for key in keys:
            if isinstance(key, Unknown):
                return key
        found: Any = self._template.get("Mappings", {})
        for key in keys:
            if not isinstance(found, Mapping) or str(key) not in found:
                if len(of) > 3 and isinstance(of[3], Mapping) and "DefaultValue" in of[3]:
                    return self.resolve(of[3]["DefaultValue"])
                return Unknown(f"the map {'.'.join(map(str, keys))}")
            found = found[str(key)]
        return found
