"""What Lambda passes a handler as its context, for a handler that is called in the test's own process."""

from __future__ import annotations

import time
import uuid
from typing import Any

_ARN = "arn:aws:lambda:eu-west-1:000000000000:function:"


class LambdaContext:
    """
    A context of one invocation, with the attributes and the methods that Lambda's has. Its time runs from when it is
    made.

    Args: timeout_s: the function's time-out. function_name, memory_limit_in_mb, function_version: as Lambda has them.
    Units: seconds of wall clock; the remaining time is in milliseconds, as Lambda has it.
    """

    #: set by mobile SDKs and by Cognito, and by nobody else
    client_context: Any = None
    identity: Any = None

    def __init__(
        self,
        *,
        timeout_s: float = 30.0,
        function_name: str = "test",
        memory_limit_in_mb: int = 128,
        function_version: str = "$LATEST",
    ) -> None:
        self._timeout_s, self._ends_at = timeout_s, time.time() + timeout_s
        self.function_name, self.function_version = function_name, function_version
        self.memory_limit_in_mb = memory_limit_in_mb
        self.invoked_function_arn = _ARN + function_name
        self.aws_request_id = str(uuid.uuid4())
        self.log_group_name = f"/aws/lambda/{function_name}"
        self.log_stream_name = f"{time.strftime('%Y/%m/%d')}/[{function_version}]{uuid.uuid4().hex}"

    def __repr__(self) -> str:
        return f"<LambdaContext of {self.function_name}, request {self.aws_request_id}>"

    def get_remaining_time_in_millis(self) -> int:
        """Return how long Lambda would let the invocation run on; 0 when its time is over."""
        return max(0, int((self._ends_at - time.time()) * 1000))

    def log(self, message: object) -> None:
        """Write to the function's log, which is standard output."""
        print(message)

    def again(self, *, timeout_s: float | None = None) -> LambdaContext:
        """
        Return the next invocation's: of the same function, with a request of its own and all of its time.

        Args: timeout_s: its time-out in seconds; None: as this one's was.
        """
        return LambdaContext(
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
            function_name=self.function_name,
            memory_limit_in_mb=self.memory_limit_in_mb,
            function_version=self.function_version,
        )
