"""
How many environments each function of a template may have, and why; pure.

Source of each formula: beside it. "LDG": AWS Lambda Developer Guide; "botocore": its model of the Lambda API, 1.44.5.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.budget.stacks import Knob
from plungepool_toolkit.budget.values import Attribute, Unknown, how_to_say, is_known, leaves, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.budget.inputs import Inputs
    from plungepool_toolkit.budget.stacks import Stack

FUNCTION = "AWS::Lambda::Function"
# LDG, "Configuring provisioned mode": a poller of a queue invokes up to 10 at once. botocore, MaximumPollers: "default
# of 200" for SQS.
_INVOKES_A_POLLER = 10
_POLLERS_BY_DEFAULT = 200
# LDG, "Tenant isolation": up to 2,500 environments, active or idle, for each 1,000 of concurrency.
_ENVIRONMENTS_A_TENANCY = 2.5
# LDG, "Configuring reserved concurrency": 100 always stay unreserved; a function's time-out is 3 s where none is set.
_ALWAYS_UNRESERVED = 100
_TIMEOUT_BY_DEFAULT_S = 3
# They name a function and never invoke it.
_BYSTANDERS = ("AWS::Lambda::Alias", "AWS::Lambda::Version", "AWS::Lambda::LayerVersion", "AWS::SSM::Parameter")
_BYSTANDING_SERVICES = (
    "AWS::IAM::",
    "AWS::Logs::",
    "AWS::CloudWatch::",
    "AWS::CodeDeploy::",
    "AWS::ApplicationAutoScaling::",
)
_RATE = re.compile(r"rate\(([0-9]+) (minute|hour|day)s?\)")
_CRON = re.compile(r"cron\((\S+) .*\)")
_MINUTES = re.compile(r"(\*|[0-9]{1,2})(?:-([0-9]{1,2}))?(?:/([0-9]{1,2}))?")
_SECONDS = {"minute": 60, "hour": 3600, "day": 86400}


@dataclass(slots=True)
class Function:
    """
    One function: how many invocations at once and how many environments it may have; None: as many as the account.

    `at_once`: invocations, or processes of Managed Instances that may work at the same time; `environments`: active or
    frozen, of one version; `why`: whence the bound; `occasional`: by hand or while the stack is deployed only.

    Units: `timeout_s` in seconds.
    """

    stack: Stack
    logical_id: str
    resource: dict[str, Any]
    timeout_s: int = _TIMEOUT_BY_DEFAULT_S
    at_once: int | None = None
    environments: int | None = None
    processes: int = 1
    reserved: int | None = None
    provisioned: int = 0
    why: str = ""
    occasional: bool = False
    knob: Knob | None = None
    #: The smallest value that the knob takes, and how many invocations at once one more of it lets in.
    least: int = 1
    step: int = 1
    #: Environments for each invocation at once.
    factor: float = 1.0
    #: Whether something is missing, and was asked for.
    unknown: bool = False

    @property
    def name(self) -> str:
        """The logical ids that lead to it."""
        return "/".join((*self.stack.path, self.logical_id))

    def knob_of(self, *names: str) -> Knob:
        """Return what to change for one of its properties: the parameter that it is taken from, or the property."""
        return self.stack.knob(self.logical_id, self.resource, *names)


@dataclass(slots=True)
class _Trigger:
    what: str
    at_once: int | None
    knob: Knob | None = None
    least: int = 1
    step: int = 1
    occasional: bool = False


def functions(root: Stack, inputs: Inputs) -> list[Function]:
    """Return every function of a stack and of those nested in it, with its bounds."""
    found = [Function(stack, name, resource) for stack in root.all() for name, resource in stack.resources(FUNCTION)]
    readers = _Readers(root, inputs)
    for function in found:
        made = function.stack.resolver.condition(function.resource.get("Condition", ""))
        if "Condition" in function.resource and isinstance(made, Unknown):
            option = made.how or "--parameter-overrides NAME=…"
            inputs.ask(option, f"whether {function.name} is created at all: its condition depends on {made}")
        readers.read(function)
    return found


def unreserved(found: list[Function], account: int) -> int:
    """Return what the account has left for the functions that reserve nothing."""
    return max(account - sum(function.reserved or 0 for function in found), min(_ALWAYS_UNRESERVED, account))


@dataclass(slots=True)
class _Readers:
    root: Stack
    inputs: Inputs
    #: Alias or version to the function that it is one of.
    _aliases: dict[tuple[tuple[str, ...], str], tuple[tuple[str, ...], str]] = field(default_factory=dict)
    _uses: list[tuple[Stack, str, dict[str, Any], list[tuple[tuple[str, ...], str]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for stack in self.root.all():
            for name, resource in stack.resources("AWS::Lambda::Alias", "AWS::Lambda::Version"):
                for each in leaves(stack.property(resource, "FunctionName")):
                    if isinstance(each, Attribute):
                        self._aliases[(stack.path, name)] = (each.stack, each.resource)
        for stack in self.root.all():
            for name, resource in stack.resources():
                self._uses.append((stack, name, resource, self._functions_in(stack, resource)))

    def read(self, function: Function) -> None:
        """Fill in the bounds of one function."""
        timeout = self.inputs.of_function(function.name, "timeout") or self._number(function, "Timeout")
        function.timeout_s = _TIMEOUT_BY_DEFAULT_S if timeout is None else timeout
        function.reserved = self._number(function, "ReservedConcurrentExecutions")
        function.provisioned = self._provisioned(function)
        if "CapacityProviderConfig" in (function.resource.get("Properties") or {}):
            self._managed_instances(function)
            return
        said = self.inputs.of_function(function.name, "concurrency")
        self._bound(function, said)
        if said is not None:
            function.at_once = said if function.at_once is None else min(said, function.at_once)
            function.why, function.knob = "as given by --function", None
            function.occasional = False
        self._tenants(function)
        # Of the provisioned environments each takes its turn, however few work at once: LDG, "Configuring provisioned
        # concurrency".
        if function.environments is not None and function.provisioned > function.environments:
            function.environments = function.provisioned
            function.why += f", {function.provisioned} provisioned"
            function.knob = function.knob_of("ProvisionedConcurrencyConfig", "ProvisionedConcurrentExecutions")
            function.least = function.step = 1

    def _bound(self, function: Function, said: int | None) -> None:
        triggers = list(self._triggers(function))
        bounded = sum(trigger.at_once or 0 for trigger in triggers)
        if any(trigger.at_once is None for trigger in triggers):
            bound = None
        elif triggers:
            largest = max(triggers, key=lambda trigger: trigger.at_once or 0)
            bound, function.knob = bounded, largest.knob
            function.least, function.step = largest.least, largest.step
            function.why = " + ".join(dict.fromkeys(trigger.what for trigger in triggers))
            function.occasional = all(trigger.occasional for trigger in triggers)
            if function.occasional and said is not None:
                bound = max(bound, said)
        else:
            # Not seen here is what invokes it from elsewhere: its reservation says how often, or --function does.
            bound = max(1, function.reserved or 0, said or 0)
            function.why, function.occasional = "by hand: nothing in the template invokes it", bound == 1
        if function.reserved is not None and (bound is None or function.reserved <= bound):
            bound, function.why = function.reserved, "reserved"
            function.knob = function.knob_of("ReservedConcurrentExecutions")
            function.least = function.step = 1
        if bound is None:
            what = next(trigger.what for trigger in triggers if trigger.at_once is None)
            function.why = f"the account's concurrency ({what})"
            function.knob = function.knob_of("ReservedConcurrentExecutions")
        function.at_once = function.environments = bound

    def _tenants(self, function: Function) -> None:
        function.environments = function.at_once
        if function.stack.property(function.resource, "TenancyConfig", "TenantIsolationMode") == "PER_TENANT":
            function.factor = _ENVIRONMENTS_A_TENANCY
            function.why += f", x {_ENVIRONMENTS_A_TENANCY} for tenants"
            if function.at_once is not None:
                function.environments = math.ceil(function.at_once * _ENVIRONMENTS_A_TENANCY)

    def _managed_instances(self, function: Function) -> None:
        # facts: LDG, "Python runtime for Lambda Managed Instances": one process for each concurrent request;
        # botocore, FunctionScalingConfig: MaxExecutionEnvironments is the bound. The default of 16 processes a vCPU
        # would need the environment's vCPUs: asked for instead.
        config = ("CapacityProviderConfig", "LambdaManagedInstancesCapacityProviderConfig")
        most = self.inputs.of_function(function.name, "environments")
        if most is None:
            most = self._number(function, "FunctionScalingConfig", "MaxExecutionEnvironments")
        processes = self.inputs.of_function(function.name, "processes")
        if processes is None:
            processes = self._number(function, *config, "PerExecutionEnvironmentMaxConcurrency")
        if most is None:
            why = "MaxExecutionEnvironments of its FunctionScalingConfig, which alone bounds Managed Instances"
            self.inputs.ask(f"--function {function.name}:environments=N", why)
            function.unknown = True
        if processes is None:
            why = "PerExecutionEnvironmentMaxConcurrency; Lambda's default for Python is 16 for each vCPU"
            self.inputs.ask(f"--function {function.name}:processes=N", why)
        function.environments, function.processes = most or 0, processes or 1
        function.at_once = function.environments * function.processes
        function.why = f"Managed Instances: {most} environments x {processes} processes"
        function.knob = function.knob_of("FunctionScalingConfig", "MaxExecutionEnvironments")
        function.least = 3  # botocore and LDG: three environments at least, over availability zones

    def _provisioned(self, function: Function) -> int:
        found = 0
        for stack, _, resource, named in self._uses:
            if (function.stack.path, function.logical_id) not in named:
                continue
            kind = resource.get("Type")
            where: tuple[str, ...] = ("ProvisionedConcurrencyConfig", "ProvisionedConcurrentExecutions")
            if kind == "AWS::ApplicationAutoScaling::ScalableTarget":
                where = ("MaxCapacity",)
            elif kind not in ("AWS::Lambda::Alias", "AWS::Lambda::Version"):
                continue
            found = max(found, self._whole(stack.property(resource, *where), function, where[-1]) or 0)
        return found

    def _triggers(self, function: Function) -> Iterator[_Trigger]:
        for stack, name, resource, named in self._uses:
            kind = str(resource.get("Type"))
            bystands = kind in _BYSTANDERS or kind.startswith(_BYSTANDING_SERVICES)
            if bystands or (function.stack.path, function.logical_id) not in named:
                continue
            if kind == FUNCTION and (stack.path, name) == (function.stack.path, function.logical_id):
                continue
            if kind == "AWS::Lambda::EventSourceMapping" and _is_off(stack, resource):
                yield _Trigger("an event source that is disabled", 1, occasional=True)
            elif kind == "AWS::Lambda::EventSourceMapping":
                yield self._source(function, stack, name, resource)
            elif kind.startswith("Custom::") or kind == "AWS::CloudFormation::CustomResource":
                yield _Trigger("a custom resource, while the stack is deployed", 1, occasional=True)
            elif (expression := stack.property(resource, "ScheduleExpression")) is not None:
                if _is_off(stack, resource):
                    yield _Trigger("a schedule that is disabled", 1, occasional=True)
                    continue
                if not isinstance(expression, str):
                    self._whole(expression, function, "ScheduleExpression")
                at_once = _overlapping(expression, function.timeout_s) if isinstance(expression, str) else None
                yield _Trigger("a schedule", at_once)
            elif kind == "AWS::Lambda::EventInvokeConfig":
                if self._functions_of(stack.property(resource, "DestinationConfig")):
                    yield _Trigger("a destination", None)
            elif kind == "AWS::Lambda::Permission" and self._is_of_a_schedule(stack, resource):
                pass
            else:
                yield _Trigger(_caller(stack, kind, resource), None)

    def _source(self, function: Function, stack: Stack, name: str, resource: dict[str, Any]) -> _Trigger:
        """Return what an event source mapping lets through at once."""
        most = stack.property(resource, "ScalingConfig", "MaximumConcurrency")
        if most is not None:
            return _Trigger(
                "its queue's MaximumConcurrency",
                self._whole(most, function, "MaximumConcurrency"),
                self._knob_of_event(function, stack, name, resource, "ScalingConfig", "MaximumConcurrency"),
                least=2,  # botocore, MaximumConcurrency: 2 to 1,000
            )
        pollers = stack.property(resource, "ProvisionedPollerConfig")
        if isinstance(pollers, dict) and self._leads_to(stack, resource, "AWS::SQS::Queue"):
            most = self._whole(pollers.get("MaximumPollers", _POLLERS_BY_DEFAULT), function, "MaximumPollers")
            knob = self._knob_of_event(function, stack, name, resource, "ProvisionedPollerConfig", "MaximumPollers")
            at_once = None if most is None else most * _INVOKES_A_POLLER
            return _Trigger(f"{most} pollers x {_INVOKES_A_POLLER}", at_once, knob, least=2, step=_INVOKES_A_POLLER)
        if stream := self._leads_to(stack, resource, "AWS::Kinesis::Stream"):
            shards = self._whole(stack.property(stream, "ShardCount"), function, "ShardCount")
            factor = self._whole(stack.property(resource, "ParallelizationFactor") or 1, function, "a factor")
            if shards is not None and factor is not None:
                # LDG, "Using Lambda with Kinesis": one batch of a shard at a time, or ParallelizationFactor of them.
                knob = self._knob_of_event(function, stack, name, resource, "ParallelizationFactor")
                return _Trigger(f"{shards} shards x {factor}", shards * factor, knob, step=shards)
        return _Trigger("its event source", None)

    def _knob_of_event(
        self, function: Function, stack: Stack, name: str, resource: dict[str, Any], *names: str
    ) -> Knob:
        node: Any = resource.get("Properties") or {}
        for each in names:
            node = node.get(each) if isinstance(node, dict) else None
        parameter = stack.parameter_behind(node)
        # SAM names a mapping after its function and event.
        event = name.removeprefix(function.logical_id)
        written = ("Resources", function.logical_id, "Properties", "Events", event, "Properties", *names)
        own = ("Resources", name, "Properties", *names)
        line = stack.source.line(*(written if written in stack.source.lines else own))
        what = f"the parameter {parameter}" if parameter else f"{names[-1]} of {function.name}"
        return Knob(what, str(stack.source.path), line)

    def _leads_to(self, stack: Stack, resource: dict[str, Any], kind: str) -> dict[str, Any] | None:
        for each in leaves(stack.property(resource, "EventSourceArn")):
            if isinstance(each, Attribute):
                found = self._resource(each)
                if found is not None and found.get("Type") == kind:
                    return found
            elif isinstance(each, str) and each.startswith("arn:") and f":{kind.split('::')[1].lower()}:" in each:
                return {"Type": kind}
        return None

    def _resource(self, attribute: Attribute) -> dict[str, Any] | None:
        found = self.root.find(attribute)
        return found[1] if found else None

    def _is_of_a_schedule(self, stack: Stack, resource: dict[str, Any]) -> bool:
        for each in leaves(stack.property(resource, "SourceArn")):
            found = self._resource(each) if isinstance(each, Attribute) else None
            if found is not None and "ScheduleExpression" in (found.get("Properties") or {}):
                return True
        return False

    def _functions_in(self, stack: Stack, resource: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
        return self._functions_of(stack.resolver.resolve(resource.get("Properties") or {}))

    def _functions_of(self, value: Any) -> list[tuple[tuple[str, ...], str]]:
        found = []
        for each in leaves(value):
            if isinstance(each, Attribute):
                key = (each.stack, each.resource)
                found.append(self._aliases.get(key, key))
        return found

    def _number(self, function: Function, *names: str) -> int | None:
        return self._whole(function.stack.property(function.resource, *names), function, names[-1])

    def _whole(self, value: Any, function: Function, what: str) -> int | None:
        if value is None:
            return None
        if (number := whole(value)) is not None:
            return number
        key = "timeout" if what == "Timeout" else "concurrency"
        if self.inputs.of_function(function.name, key) is not None:
            return None  # what was said stands for it
        function.unknown = True
        option = how_to_say(value) or f"--function {function.name}:{key}=N"
        known = "not known here" if not is_known(value) else "not a whole number that Lambda accepts"
        self.inputs.ask(option, f"{what} of {function.name} is {value}, which is {known}")
        return None


def _caller(stack: Stack, kind: str, resource: dict[str, Any]) -> str:
    principal = stack.property(resource, "Principal") if kind == "AWS::Lambda::Permission" else None
    return str(principal).removesuffix(".amazonaws.com") if principal else kind.removeprefix("AWS::").replace("::", " ")


def _is_off(stack: Stack, resource: dict[str, Any]) -> bool:
    """Return whether an event source or a schedule is there and does not invoke."""
    enabled, state = stack.property(resource, "Enabled"), stack.property(resource, "State")
    return str(enabled).lower() == "false" or state == "DISABLED"


def _overlapping(expression: str, timeout_s: int) -> int:
    """Return how many invocations of a schedule can run at once: the next may begin before the last has ended."""
    if found := _RATE.fullmatch(expression.strip()):
        return max(1, math.ceil(timeout_s / max(int(found[1]) * _SECONDS[found[2]], 60)))
    if found := _CRON.fullmatch(expression.strip()):
        minutes = _minutes(found[1])
        gaps = [(later - earlier) % 60 or 60 for earlier, later in pairwise([*minutes, minutes[0]])]
        return max(1, math.ceil(timeout_s / (60 * min(gaps))))
    return 1


def _minutes(text: str) -> list[int]:
    """
    Return at which minutes of an hour a cron expression fires; every one where that is not understood.

    Source: Amazon EventBridge User Guide, "Cron expressions": `,`, `-`, `*` and `/`.
    """
    found: set[int] = set()
    for part in text.split(","):
        if not (match := _MINUTES.fullmatch(part)):
            return [*range(60)]
        first, last, step = match.groups()
        begin = 0 if first == "*" else int(first)
        end = int(last) if last else 59 if step or first == "*" else begin
        found.update(range(begin, end + 1, max(int(step or 1), 1)))
    return sorted(minute for minute in found if minute < 60) or [*range(60)]
