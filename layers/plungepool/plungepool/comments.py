"""
Who asks, as a comment behind each statement: function, version, request and trace, by sqlcommenter's format.

PostgreSQL's `pg_stat_statements` groups by what a statement was parsed to, in which no comment is left; logs,
`pg_stat_activity` and `auto_explain` show the text with it. Values are percent-encoded, so that none of them can end
the comment or begin a statement.

Source: sqlcommenter's specification; W3C Trace Context, "traceparent"; AWS X-Ray, "Tracing header".
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

from . import invocation

if TYPE_CHECKING:
    from collections.abc import Mapping

_XRAY = "_X_AMZN_TRACE_ID"


class Comment:
    """What stands behind a statement now; for `wire.Connection.comment`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._function = environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self._version = environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        # The last one, and of what it is: most statements of an invocation have the same.
        self._last: tuple[tuple[str | None, str | None], str] = (None, None), self._made(None, None)

    def __call__(self) -> str:
        """Return it, with a line's end before it: the statement may end in a comment of its own."""
        known = invocation.request_id(), self._traceparent()
        of, text = self._last
        if of != known:
            text = self._made(*known)
            self._last = known, text
        return text

    def _made(self, request_id: str | None, traceparent: str | None) -> str:
        pairs = {
            "function": self._function,
            "request_id": request_id,
            "traceparent": traceparent,
            "version": self._version,
        }
        given = ",".join(
            f"{name}='{quote(str(value), safe='', errors='replace')}'" for name, value in pairs.items() if value
        )
        return f"\n/*{given}*/" if given else ""

    def _traceparent(self) -> str | None:
        """Return the trace that is open: OpenTelemetry's, where that is used, else X-Ray's."""
        trace = sys.modules.get("opentelemetry.trace")
        if trace is not None:
            context = trace.get_current_span().get_span_context()
            if context.is_valid:
                return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        return traceparent(self._environ.get(_XRAY, ""))


def traceparent(header: str) -> str | None:
    """Return an X-Ray tracing header in the W3C's form; None where it names no trace. Pure."""
    fields = dict(part.split("=", 1) for part in header.split(";") if "=" in part)
    version, _, rest = fields.get("Root", "").partition("-")
    trace, parent = rest.replace("-", ""), fields.get("Parent", "")
    if version != "1" or len(trace) != 32 or len(parent) != 16:
        return None
    return f"00-{trace}-{parent}-{'01' if fields.get('Sampled') == '1' else '00'}"
