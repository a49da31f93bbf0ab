"""
Connects and exchanges in a trace: X-Ray's subsegments by Powertools' Tracer, or OpenTelemetry's spans and histogram.

Each is made when the exchange is over, with the times that it had, under what is open in the trace by then. A statement
is shown by its shape, without literals and parameters, and an error by its SQLSTATE, without its text.

Source: OpenTelemetry, Semantic Conventions for database client calls, PostgreSQL (stable); AWS X-Ray segment documents,
"SQL queries".
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from . import statements
from .flights import asking, escapes, name_of, what

if TYPE_CHECKING:
    from .wire.protocol import Reply
    from .wire.session import Session

_TEXTS_KEPT = 256
#: seconds; OpenTelemetry's advice for db.client.operation.duration
BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


class XRay:
    """Subsegments by an X-Ray recorder; as `observe.listen_to_flights` has it."""

    def __init__(self, recorder_: Any) -> None:
        self._recorder = recorder_

    def __call__(
        self, session: Session, reply: Reply | None, began: float, took_s: float, error: BaseException | None
    ) -> None:
        if not began:
            return
        subsegment = self._recorder.begin_subsegment(f"{session.database}@{session.host}", namespace="remote")
        if subsegment is None:  # nothing is traced
            return
        try:
            subsegment.start_time = began
            text = described(session, reply)
            sql = {
                "database_type": "PostgreSQL",
                "url": f"{session.host}:{session.port}/{session.database}",
                "user": session.user,
            }
            if reply is not None:
                sql["sanitized_query"] = text
            subsegment.set_sql(sql)
            subsegment.put_annotation("operation", operation(text))
            if reply is None:
                subsegment.put_metadata("parts_s", dict(session.opening_s), "plungepool")
            if error is not None:
                subsegment.put_annotation("error", name_of(error))
                subsegment.add_fault_flag()
        finally:
            self._recorder.end_subsegment(began + took_s)


class OpenTelemetry:
    """Spans, and db.client.operation.duration; as `observe.listen_to_flights` has it."""

    def __init__(self, tracer_provider: Any, meter_provider: Any) -> None:
        from opentelemetry import metrics, trace

        self._tracer = trace.get_tracer("plungepool", tracer_provider=tracer_provider)
        self._duration = metrics.get_meter("plungepool", meter_provider=meter_provider).create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self._client = trace.SpanKind.CLIENT
        self._status = trace.Status(trace.StatusCode.ERROR)

    def __call__(
        self, session: Session, reply: Reply | None, began: float, took_s: float, error: BaseException | None
    ) -> None:
        if not began:
            return
        text = described(session, reply)
        name = operation(text)
        attributes: dict[str, str | int] = {
            "db.system.name": "postgresql",
            "db.namespace": session.database,
            "db.operation.name": name,
            "server.address": session.host,
            "server.port": session.port,
        }
        if error is not None:
            attributes["error.type"] = name_of(error)
            if sqlstate := getattr(error, "sqlstate", None):
                attributes["db.response.status_code"] = sqlstate
        if reply is not None:
            self._duration.record(took_s, attributes)
        span = self._tracer.start_span(
            f"{name} {session.database}", kind=self._client, start_time=int(began * 1e9), attributes=attributes
        )
        if span.is_recording():
            if reply is not None:
                span.set_attribute("db.query.text", text)
            else:
                for part, part_s in session.opening_s.items():
                    span.set_attribute(f"plungepool.connect.{part}_s", part_s)
            if error is not None:
                span.set_status(self._status)
        span.end(int((began + took_s) * 1e9))


def described(session: Session, reply: Reply | None) -> str:
    """Return the shapes of a flight's statements, without a literal; `connect` for an attempt to open a session."""
    return "connect" if reply is None else what(asking(reply.sent), _shape, escapes=escapes(session))


def operation(text: str) -> str:
    """Return what a flight does, as it is described, in one word: that of its last statement, in capitals."""
    last = text.rpartition(" + ")[2].rstrip(" ;").rpartition(" ; ")[2]
    word = last.partition(" ")[0].upper()
    return word if word.isidentifier() else "QUERY"


def _shape(text: str, *, escapes: bool) -> str:
    # A text may have megabytes: of each no more is kept than its shape is made of.
    return _known(text[: statements.SHAPE_OF], escapes)


@functools.lru_cache(_TEXTS_KEPT)
def _known(text: str, escapes: bool) -> str:
    return statements.shape(text, escapes=escapes)
