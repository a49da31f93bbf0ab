"""
The same storm on Lambda itself: a deployed function is invoked by as many threads as there are invocations at a time.

What the database makes of it is not seen from here: CloudWatch's DatabaseConnections and the database's log tell.

Source: Lambda API reference, Invoke; Lambda developer guide, "Understanding Lambda function scaling".
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.storm import results

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from plungepool_toolkit.storm.arrivals import Round
    from plungepool_toolkit.storm.storm import Plan

_BETWEEN_ROUNDS_S = 0.5
_ANSWER_AFTER_S = 5.0  # beyond the function's own time-out
# AWS Lambda pricing, us-east-1, list prices: a request, and a GB-second by architecture.
PRICES_AS_OF = "AWS's public list prices for us-east-1, November 2026, without free tier and taxes"
A_REQUEST = 0.20 / 1_000_000
A_GB_SECOND = {"x86_64": 0.0000166667, "arm64": 0.0000133334}


class DeployedError(RuntimeError):
    """The stack or its function cannot be used; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A function as it is deployed."""

    name: str
    memory_mb: int
    timeout_s: float
    architecture: str
    runtime: str

    def costs_at_most(self, invocations: int) -> float:
        """Return US dollars for so many invocations that all run into their time-out."""
        seconds = invocations * self.timeout_s * self.memory_mb / 1024
        return invocations * A_REQUEST + seconds * A_GB_SECOND[self.architecture]


class Account:
    """
    An account and a region, by boto3's own chain of credentials.

    Raises: DeployedError where there are none, or AWS does not know them.
    """

    def __init__(self) -> None:
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise DeployedError("boto3 is not installed here: pip install boto3") from error
        try:
            self._session: Any = boto3.session.Session()
            if not self._session.region_name:
                raise DeployedError("no region: set AWS_REGION")
            identity = self.client("sts").get_caller_identity()
        except (BotoCoreError, ClientError) as error:
            raise DeployedError(f"AWS does not recognize these credentials: {error}") from error
        self.number: str = identity["Account"]
        self.region: str = self._session.region_name

    def client(self, service: str, **config: Any) -> Any:
        """Return boto3's client of a service; `config` is botocore's."""
        from botocore.config import Config

        return self._session.client(service, config=Config(**config))


def find_function(client: Callable[..., Any], stack: str, function: str | None) -> Deployed:
    """
    Return a stack's function by its logical id; None: the only one there is.

    Args: client: gives boto3's client of a service. Raises: DeployedError.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        pages = client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
        found = {
            one["LogicalResourceId"]: one["PhysicalResourceId"]
            for page in pages
            for one in page["StackResourceSummaries"]
            if one["ResourceType"] == "AWS::Lambda::Function"
        }
        if function is None and len(found) == 1:
            function = next(iter(found))
        if function not in found:
            raise DeployedError(
                f"give --function, one of {', '.join(sorted(found)) or 'none: the stack has no function'}"
            )
        said = client("lambda").get_function_configuration(FunctionName=found[function])
    except (BotoCoreError, ClientError) as error:
        raise DeployedError(f"the function of stack {stack} cannot be looked up: {error}") from error
    return Deployed(
        name=said["FunctionName"],
        memory_mb=said["MemorySize"],
        timeout_s=said["Timeout"],
        architecture=(said.get("Architectures") or ["x86_64"])[0],
        runtime=said.get("Runtime", ""),
    )


def let_loose(
    client: Callable[..., Any],
    deployed: Deployed,
    event: object,
    rounds: Sequence[Round],
    at_a_time: int,
    said: Callable[[str | None], None],
) -> results.Strategy:
    """
    Invoke a function as the rounds say, never more than `at_a_time` of it at once, and none a second time.

    Args: said: told of each answer the code of its failure, or None.
    Blocks: until all are answered; after KeyboardInterrupt for those that are on their way.
    """
    invoking = client(
        "lambda",
        max_pool_connections=at_a_time,
        read_timeout=deployed.timeout_s + _ANSWER_AFTER_S,
        retries={"total_max_attempts": 1},
    )
    body, answered = json.dumps(event).encode(), []
    outcomes: list[tuple[float, str | None]] = []
    lock = threading.Lock()

    def invoke() -> bool:
        begun = time.perf_counter()
        failure = _invoke(invoking, deployed.name, body)
        with lock:
            outcomes.append((time.perf_counter() - begun, failure))
            said(failure)
        return failure is None

    began = time.perf_counter()
    pool = ThreadPoolExecutor(at_a_time, thread_name_prefix="storm")
    try:
        for number, one in enumerate(rounds):
            if number:
                time.sleep(_BETWEEN_ROUNDS_S)
            start, futures = time.perf_counter(), []
            for at in one.times_s:
                time.sleep(max(0.0, at - (time.perf_counter() - start)))
                futures.append(pool.submit(invoke))
            answered.append(sum(future.result() for future in futures))
    finally:
        pool.shutdown(cancel_futures=True)
    return _result(deployed, outcomes, answered, time.perf_counter() - began)


def _result(
    deployed: Deployed, outcomes: Sequence[tuple[float, str | None]], answered: Sequence[int], wall_s: float
) -> results.Strategy:
    latencies_ms = [latency_s * 1000 for latency_s, _ in outcomes]
    failures = Counter(failure for _, failure in outcomes if failure is not None)
    return results.Strategy(
        name=deployed.name,
        title=deployed.name,
        endpoint="lambda",
        ours=False,
        invocations=len(outcomes),
        succeeded=len(outcomes) - failures.total(),
        failures=dict(failures.most_common()),
        latency_ms=results.Latency.of(latencies_ms),
        latency_histogram=results.Histogram.of(latencies_ms),
        wall_s=round(wall_s, 2),
        answered=answered,
    )


def _invoke(client: Any, name: str, body: bytes) -> str | None:
    """Return the code of an invocation's failure, or None."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        reply = client.invoke(FunctionName=name, Payload=body)
        document: Any = json.loads(reply["Payload"].read() or b"null")
    except ClientError as error:
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    except (BotoCoreError, OSError, ValueError) as error:
        return type(error).__name__
    if reply.get("FunctionError"):
        return str(document.get("errorType", "FunctionError")) if isinstance(document, dict) else "FunctionError"
    # A function behind an HTTP API tells its failures so.
    status = document.get("statusCode") if isinstance(document, dict) else None
    return f"status {status}" if isinstance(status, int) and status >= 500 else None


def conditions(plan: Plan, deployed: Deployed, command: str) -> results.Conditions:
    """Return what a document says of a storm on Lambda: of a plan that which has a meaning there."""
    text = (
        f"{plan.invocations} invocations ({plan.arrival}) of {deployed.name} on Lambda, at most {plan.environments} "
        f"at a time; {deployed.memory_mb} MB, {deployed.architecture}, time-out {deployed.timeout_s:g} s"
    )
    local = plan.conditions("", command)
    return dataclasses.replace(
        local,
        versions={"runtime": deployed.runtime},
        deadline_s=deployed.timeout_s,
        service_ms=0.0,
        outside_ms=0.0,
        max_connections=0,
        limit=0,
        text=text,
    )
