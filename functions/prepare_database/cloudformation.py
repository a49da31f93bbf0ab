"""The answer to a CloudFormation custom resource: a PUT to the pre-signed address that came with the request."""

import json
import time
import urllib.request
from http.client import HTTPException

ATTEMPTS = 3
# CloudFormation takes 4,096 bytes in all; what a reason may take of them.
REASON_BYTES = 1500


def answer(event: dict, context: object, status: str, reason: str, data: dict) -> None:
    """
    Tell CloudFormation how it went; blocks 10 s an attempt at most, three attempts.

    Args: status: SUCCESS or FAILED. data: what Fn::GetAtt may ask for; values become text.
    Raises: OSError or HTTPException where no attempt reached it (in a VPC: no S3 gateway endpoint and no NAT).
    """
    body = json.dumps(
        {
            "Status": status,
            "Reason": reason.encode()[:REASON_BYTES].decode(errors="ignore"),
            # The same for the life of the resource: another one would have CloudFormation delete the one before.
            "PhysicalResourceId": event.get("PhysicalResourceId") or f"{context.function_name}-database",
            "StackId": event["StackId"],
            "RequestId": event["RequestId"],
            "LogicalResourceId": event["LogicalResourceId"],
            "Data": {name: value if isinstance(value, str) else json.dumps(value) for name, value in data.items()},
        }
    ).encode()
    # The address is signed for a request without a content type.
    request = urllib.request.Request(event["ResponseURL"], body, {"Content-Type": ""}, method="PUT")  # noqa: S310  CloudFormation's own address
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, timeout=10):  # noqa: S310
                return
        except (OSError, HTTPException):
            if attempt == ATTEMPTS:
                raise
            time.sleep(attempt)
