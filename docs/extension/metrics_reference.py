"""docs/reference/metrics.md: what is counted of an invocation, from the comments of Tally and from metrics.py."""

from __future__ import annotations

import inspect
import re

from reference_text import WRITTEN, cell, class_comments, plain

from plungepool import metrics, observe

INTRODUCTION = f"""\
# Metrics

{WRITTEN}

What is counted of each invocation that `guard_invocation` bounds. `observe.listen` hands the numbers over as a `Tally`;
`PLUNGEPOOL_METRICS=on` writes them as metrics of CloudWatch, in milliseconds where a number is in seconds, and leaves
out what is 0. [Observe](../observe.md) says how to turn each on, and what it costs.

| number | what it counts | metric, unit |
|---|---|---|"""


def page() -> str:
    """Return docs/reference/metrics.md."""
    lines = [INTRODUCTION]
    told = list(class_comments(observe.Tally, observe))
    # The two that are counted by name are made in the constructor, with comments of the same kind.
    source = re.findall(r"#: (.+)\n +self\.(\w+): dict", inspect.getsource(observe))
    for names, about in [*told, *(([name], about) for about, name in source)]:
        shown = []
        for name in names:
            if name in metrics.METRICS:
                metric, unit = metrics.METRICS[name]
                shown.append(f"`{metric}`, {unit.value}")
        numbers = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| {numbers} | {cell(plain(about))} | {'<br>'.join(shown)} |")
    return "\n".join(lines) + "\n"
