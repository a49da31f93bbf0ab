"""The answer to a CloudFormation custom resource: a PUT to the pre-signed address that came with the request."""

import json
import os
import re
import time
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

ATTEMPTS = 3
# CloudFormation takes 4,096 bytes in all; what a reason may take of them.
REASON_BYTES = 1500
# What S3 is called in AWS's partitions, after a bucket's name or without one.
# Source: AWS General Reference, "Amazon S3 endpoints and quotas"; botocore's partitions.json.
S3 = re.compile(
    r"([a-z0-9.-]+\.)?s3[.-](dualstack\.)?([a-z0-9-]+\.)?"
    r"(amazonaws\.com(\.cn)?|amazonaws\.eu|c2s\.ic\.gov|sc2s\.sgov\.gov|csp\.hci\.ic\.gov|cloud\.adc-e\.uk)"
)
# An address holds nothing else: what does is read so by one parser and otherwise by the next.
ADDRESS = re.compile(r"[!$-;=?-\[\]_a-z~]+")


class RequestError(Exception):
    """The request is none of CloudFormation's; the text quotes nothing of its address, which is a secret for hours."""


def check(event: dict) -> None:
    """
    Raise RequestError for a request that cannot, or must not, be answered; before anything is done for it.

    Whoever may invoke the function could otherwise have it open a file, or send to a place inside the network. An
    emulator, whose address the AWS SDKs' own variables hold, is answered, too.
    """
    for name in ("RequestType", "ResponseURL", "StackId", "RequestId", "LogicalResourceId"):
        if not isinstance(event.get(name), str):
            raise RequestError(f"a request of CloudFormation has {name}")
    try:
        known = ADDRESS.fullmatch(event["ResponseURL"]) and _is_known(event["ResponseURL"])
    except ValueError:
        known = False
    if not known:
        raise RequestError(
            "ResponseURL must be an https address of Amazon S3, where CloudFormation waits for the answer"
        )


def _is_known(url: str) -> bool:
    there = urlsplit(url)
    emulators = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    if any(there[:2] == urlsplit(emulator)[:2] for emulator in emulators if emulator):
        return True
    # The whole of it: no user, no other port.
    return there.scheme == "https" and bool(S3.fullmatch(there.netloc.removesuffix(":443")))


def answer(event: dict, context: object, status: str, reason: str, data: dict) -> None:
    """
    Tell CloudFormation how it went, in up to three attempts; blocks 10 s each at most, and not beyond the invocation.

    Args: event: a request that `check` has let pass. status: SUCCESS or FAILED. data: what Fn::GetAtt may ask for;
        values become text.
    Raises: OSError or HTTPException where no attempt reached it (in a VPC: no S3 gateway endpoint and no NAT).
    """
    body = json.dumps(
        {
            "Status": status,
            "Reason": re.sub(r"[\x00-\x1f]", " ", reason)
            .encode(errors="replace")[:REASON_BYTES]
            .decode(errors="ignore"),
            # The same for the life of the resource: another one would have CloudFormation delete the one before.
            "PhysicalResourceId": event.get("PhysicalResourceId") or f"{context.function_name}-database",
            "StackId": event["StackId"],
            "RequestId": event["RequestId"],
            "LogicalResourceId": event["LogicalResourceId"],
            "Data": {name: value if isinstance(value, str) else json.dumps(value) for name, value in data.items()},
        },
        ensure_ascii=False,
    ).encode(errors="replace")
    # The address is signed for a request without a content type.
    request = urllib.request.Request(event["ResponseURL"], body, {"Content-Type": ""}, method="PUT")
    for attempt in range(1, ATTEMPTS + 1):
        left_s = context.get_remaining_time_in_millis() / 1000 - 1
        try:
            # A redirect is an error to urllib, since this is no GET: nothing leads elsewhere.
            with urllib.request.urlopen(request, timeout=max(0.5, min(10, left_s / (ATTEMPTS - attempt + 1)))):
                return
        except (OSError, HTTPException):
            if attempt == ATTEMPTS or left_s < 2 * attempt:
                raise
            time.sleep(attempt)
