"""
The sample functions of the application, for the commands that run them: who they are, and whether an answer is good.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Mapping

DATABASE = "shop"
APPLICATION_ROLE = "plungepool_app"


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample function: functions/<name>/app.py, invoked with events/<name>.json, as a role of the database."""

    name: str
    role: str = APPLICATION_ROLE
    connections: int = 1  # that its environment keeps between invocations
    variables: Mapping[str, str] = field(default_factory=dict)  # beside those that all of them have
    tenants: tuple[str, ...] = ()  # whose rows it keeps apart, as the token in its event names one
    pins: bool = False  # an RDS Proxy, so that behind one it is not run


# In this order: the first one makes the schema, the roles and the data that the others need.
SAMPLES = (
    Sample("prepare_database", role=Postgres.superuser),
    Sample("handle_orders"),
    Sample(
        "handle_tenant_orders",
        variables={"PLUNGEPOOL_REQUIRE_SETTINGS": "app.tenant_id"},
        tenants=("acme", "globex"),
        pins=True,
    ),
    Sample("fulfil_orders"),
    Sample("report_sales"),
    Sample("check_database", connections=0),  # looks from outside: connects anew each time, and hangs up
)


def problem_of(error: dict[str, Any] | None, payload: Any) -> str | None:
    """
    Return what is wrong with an invocation: an error, an HTTP status that says so, messages left unhandled; or None.
    """
    if error is not None:
        return f"{error.get('errorType')}: {error.get('errorMessage')}"
    if isinstance(payload, dict):
        if payload.get("statusCode", 200) >= 400:
            return f"it answered {payload['statusCode']}: {payload.get('body')}"
        if payload.get("batchItemFailures"):
            return f"it could not handle {len(payload['batchItemFailures'])} messages"
        if payload.get("ok") is False:
            return "; ".join(check["found"] for check in payload["checks"] if check["state"] == "failed")
    return None
