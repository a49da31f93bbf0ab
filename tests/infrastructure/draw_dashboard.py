"""A dashboard's body, drawn from recorded metrics as one page without script or network, by the toolkit's charts."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.report.charts import Series, draw_lines, style

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# A third of a wide screen, and all of a narrow one.
WIDTH = 348
_UNITS = ((1e9, "thousands of millions"), (1e6, "millions"))
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>{style}
*{{box-sizing:border-box}}body{{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}}
main{{display:grid;grid-template-columns:repeat(24,1fr);gap:16px;padding:20px;max-width:1280px;margin:auto}}
section{{min-width:0}}h1{{font-size:1.4rem;margin:0}}h2{{font-size:1rem;margin:0 0 .5rem}}
p{{margin:0;overflow-wrap:anywhere}}
svg{{display:block;max-width:100%}}ul{{columns:3;margin:0;padding-left:1.2em;overflow-wrap:anywhere}}
@media(max-width:1100px){{main{{display:block}}section{{margin-bottom:24px}}ul{{columns:1}}}}
</style></head><body><main>{widgets}</main></body></html>
"""


def page(body: Mapping[str, Any], recorded: Mapping[str, Sequence[float]]) -> str:
    """
    Return the page.

    Args: body: the dashboard's, with resources under their logical ids (`ref-Orders`). recorded: the values of a metric
        by `namespace|name|resource|statistic`, one a period.
    Raises: KeyError where a metric was not recorded.
    """
    drawn = "".join(
        f'<section style="grid-column:span {widget["width"]}">{_widget(widget, recorded)}</section>\n'
        for widget in body["widgets"]
    )
    title = body["widgets"][0]["properties"]["markdown"].partition("\n")[0].lstrip("# ")
    return _PAGE.format(title=escape(title), style=style(), widgets=drawn)


def _widget(widget: Mapping[str, Any], recorded: Mapping[str, Sequence[float]]) -> str:
    properties = widget["properties"]
    if widget["type"] == "text":
        head, _, rest = properties["markdown"].partition("\n")
        return f"<h1>{escape(head.lstrip('# '))}</h1><p>{escape(rest)}</p>"
    heading = f"<h2>{escape(properties['title'])}</h2>"
    if widget["type"] == "alarm":
        return heading + f"<ul>{''.join(f'<li>{escape(alarm)}</li>' for alarm in properties['alarms'])}</ul>"
    return heading + "".join(_charts(properties, recorded))


def _charts(properties: Mapping[str, Any], recorded: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Yield a chart for the left axis and one for the right, where anything is on it."""
    sides: dict[str, list[Series]] = {"left": [], "right": []}
    for metric in properties["metrics"]:
        options = metric[-1]
        values = recorded[key_of(metric, options.get("stat", properties["stat"]))]
        line = Series(options["label"], [*enumerate(values)])
        sides[options.get("yAxis", "left")].append(line)
    limits = properties.get("annotations", {}).get("horizontal", [])
    for side, lines in sides.items():
        if not lines:
            continue
        # The chart draws one limit as such; others are lines.
        shown = limits if side == "left" else []
        last = len(lines[0].points) - 1
        lines += [Series(one["label"], [(0, one["value"]), (last, one["value"])]) for one in shown[1:]]
        # Long figures would not fit beside the axis; CloudWatch writes 21G for them.
        top = max([y for line in lines for _, y in line.points] + [one["value"] for one in shown])
        unit, name = next(((unit, name) for unit, name in _UNITS if top >= unit), (1, ""))
        yield draw_lines(
            [Series(line.title, [(x, y / unit) for x, y in line.points]) for line in lines],
            title=properties["title"],
            x_label="minutes",
            y_label=name,
            limit=shown[0]["value"] / unit if shown else None,
            limit_label=shown[0]["label"] if shown else "",
            width=WIDTH,
        )


def key_of(metric: Sequence[Any], statistic: str) -> str:
    """Return under which key a dashboard's metric was recorded."""
    namespace, name, _, resource = metric[:4]
    return f"{namespace}|{name}|{resource.rpartition('-')[2].removeprefix('Cluster')}|{statistic}"
