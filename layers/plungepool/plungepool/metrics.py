"""
The numbers of an invocation as CloudWatch metrics, by Powertools' Metrics (Embedded Metric Format): one line an
invocation.

The line is one of its own, with the namespace and the service of the function's: so it leaves whole whichever of the
decorators ends first, and no dimension but `service` makes a metric of each value. What is not worth a metric (the
parts of a connect, errors by SQLSTATE, the request) stands in the line as metadata, for Logs Insights.
"""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

_COUNT, _MS = MetricUnit.Count, MetricUnit.Milliseconds

#: the metric of each number, and its unit; what is 0 in an invocation is not sent
METRICS: dict[str, tuple[str, MetricUnit]] = {
    "checkouts": ("DatabaseCheckouts", _COUNT),
    "checkout_wait_s": ("DatabaseCheckoutWait", _MS),
    "checkouts_failed": ("DatabaseCheckoutsFailed", _COUNT),
    "exhausted": ("DatabasePoolExhausted", _COUNT),
    "connects": ("DatabaseConnects", _COUNT),
    "connects_failed": ("DatabaseConnectsFailed", _COUNT),
    "connect_retries": ("DatabaseConnectRetries", _COUNT),
    "connect_s": ("DatabaseConnectTime", _MS),
    "pings": ("DatabasePings", _COUNT),
    "reconnects": ("DatabaseReconnects", _COUNT),
    "transaction_retries": ("DatabaseTransactionRetries", _COUNT),
    "round_trips": ("DatabaseRoundTrips", _COUNT),
    "database_s": ("DatabaseTime", _MS),
    "rows": ("DatabaseRows", _COUNT),
    "slow_queries": ("DatabaseSlowQueries", _COUNT),
    "errors": ("DatabaseErrors", _COUNT),
    "deadlines_exceeded": ("DatabaseDeadlinesExceeded", _COUNT),
    "lost": ("DatabaseConnectionsLost", _COUNT),
    "leaks": ("DatabaseLeaks", _COUNT),
    "pins": ("DatabasePins", _COUNT),
    "kept": ("DatabaseConnectionsKept", _COUNT),
    "closed": ("DatabaseConnectionsClosed", _COUNT),
    "tickets_asked": ("DatabaseTicketsAsked", _COUNT),
    "tickets_held": ("DatabaseTicketsHeld", _COUNT),
}
# What stands in the line beside them.
_METADATA = ("credentials_s", "name_s", "tcp_s", "tls_s", "authentication_s")


class Emitter:
    """Writes the line of each invocation; as `observe.listen` has it."""

    def __init__(self, metrics: Any = None) -> None:
        """
        Take the function's Metrics, or Powertools' environment variables.

        Raises: ValueError without a namespace, which CloudWatch demands.
        """
        namespace = getattr(metrics, "namespace", None) or os.environ.get("POWERTOOLS_METRICS_NAMESPACE")
        if not namespace:
            raise ValueError("metrics need a namespace: Metrics(namespace=…), or POWERTOOLS_METRICS_NAMESPACE")
        self._metrics = EphemeralMetrics(namespace=namespace, service=getattr(metrics, "service", None))

    def __call__(self, tally: Any) -> None:
        """Write one line, if the invocation did anything with the database."""
        added = False
        for field, (name, unit) in METRICS.items():
            value = getattr(tally, field)
            amount = sum(value.values()) if isinstance(value, dict) else value
            if amount:
                self._metrics.add_metric(name, unit, round(amount * 1000, 3) if unit is _MS else amount)
                added = True
        if not added:
            return
        for name, known in self._metadata(tally).items():
            self._metrics.add_metadata(name, known)
        self._metrics.flush_metrics()

    def _metadata(self, tally: Any) -> dict[str, Any]:
        found: dict[str, Any] = {
            f"database_{name.removesuffix('_s')}_ms": round(value * 1000, 3)
            for name in _METADATA
            if (value := getattr(tally, name))
        }
        for name in ("errors", "reconnects", "failure"):
            if value := getattr(tally, name):
                found[f"database_{name}"] = dict(value) if isinstance(value, dict) else value
        if tally.request_id:
            found["request_id"] = tally.request_id
        if version := os.environ.get("AWS_LAMBDA_FUNCTION_VERSION"):
            found["function_version"] = version
        return found
