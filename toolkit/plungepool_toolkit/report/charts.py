"""
Charts as SVG, by hand: a few hundred bytes of code in place of a library of hundreds of kilobytes. Pure.

Each chart tells its series apart by colour and by dashes or labels, says in its `title` and `desc` what it shows, takes
the width that it is drawn for, so that its text is never scaled, and follows the reader's light or dark scheme. The
colours are Okabe and Ito's, which those who see few colours tell apart, darkened or lightened for contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plungepool_toolkit.report.text import NONE, escape, figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from plungepool_toolkit.report.outcome import Strategy

_LIGHT = ("#0060a0", "#b04a00", "#007a55", "#a0337d", "#7a5c00", "#00708f", "#5b4fb5", "#555555")
_DARK = ("#5cb3f0", "#ff9a4d", "#3ddba8", "#ef8fcf", "#ebc94a", "#6fd6f0", "#b3a8ff", "#bbbbbb")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_SCHEMES = {
    "light": {"ink": "#1c1e21", "soft": "#565b62", "grid": "#dcdfe3", "paper": "#ffffff", "alarm": "#b3261e"},
    "dark": {"ink": "#e8eaed", "soft": "#a9b0b8", "grid": "#3a3f45", "paper": "#15171a", "alarm": "#ff8a80"},
}
# How wide a letter of 13 pixels is, of the fonts that a browser may have: for places, not for measures.
_LETTER = 7.2
_LINE = 20


def style() -> str:
    """Return the rules that every chart needs, for both schemes; the page has the same colours."""
    rules = {
        scheme: ";".join(
            [
                *(f"--{name}:{value}" for name, value in _SCHEMES[scheme].items()),
                *(f"--s{n}:{colour}" for n, colour in enumerate(_LIGHT if scheme == "light" else _DARK)),
            ]
        )
        for scheme in _SCHEMES
    }
    strokes = "".join(f".s{n}{{stroke:var(--s{n})}}.f{n}{{fill:var(--s{n})}}" for n in range(len(_LIGHT)))
    return (
        f":root{{{rules['light']};color-scheme:light dark}}"
        f"@media(prefers-color-scheme:dark){{:root{{{rules['dark']}}}}}"
        "svg text{font:13px system-ui,sans-serif;fill:var(--ink)}svg text.soft{fill:var(--soft)}"
        "svg text.alarm{fill:var(--alarm)}svg text.end{text-anchor:end}svg text.mid{text-anchor:middle}"
        "svg text.bold{font-weight:600}svg .grid{stroke:var(--grid);stroke-width:1;fill:none}"
        "svg .line{fill:none;stroke-width:2;stroke-linejoin:round}"
        "svg .limit{stroke:var(--alarm);stroke-width:1.5;fill:none}"
        f"svg .back{{fill:var(--grid)}}svg .paper{{fill:var(--paper)}}{strokes}"
    )


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart: its points from left to right; `steps`: it holds each value until the next."""

    title: str
    points: Sequence[tuple[float, float]]
    steps: bool = False


def draw_connections(
    strategies: Sequence[Strategy], limit: float | None, *, width: int = 720, alone: bool = False
) -> str:
    """
    Return the connections over time: a strip for each strategy on the same scales, with the limit as a line.

    Lines in one chart would hide each other: whoever fails spends the time at the limit.
    """
    left, right, high, title = 34.0, 8.0, 64.0, "Connections to the database over time"
    ends = _ticks(0.0, max((at for one in strategies for at, _, _ in one.curve), default=1.0), 4 if width < 500 else 8)
    top = max([opened for one in strategies for _, opened, _ in one.curve] + [limit or 0.0, 1.0]) * 1.1
    x_at = _scale(0.0, ends[-1], left, width - right)
    drawn, y = [], 0.0
    for n, one in enumerate(strategies):
        y_at = _scale(0.0, top, y + 26 + high, y + 26)
        drawn.append(f'<text class="{_weight(one)}" x="0" y="{y + 16:g}">{escape(_cut(one.title, width - 130))}</text>')
        drawn.append(f'<text class="soft end" x="{width - right:g}" y="{y + 16:g}">at most {figure(one.peak)}</text>')
        if one.curve:
            drawn.append(_area(one, n, x_at, y_at))
        if limit:
            drawn.append(
                f'<path class="limit" stroke-dasharray="3 3" d="M{left:g} {y_at(limit):.1f}H{width - right:g}"/>'
            )
            drawn.append(f'<text class="alarm end" x="{left - 5:g}" y="{y_at(limit) + 4:.1f}">{figure(limit)}</text>')
        drawn.append(f'<path class="grid" d="M{left:g} {y_at(0):.1f}H{width - right:g}"/>')
        drawn.append(f'<text class="soft end" x="{left - 5:g}" y="{y_at(0) + 4:.1f}">0</text>')
        y += high + 38
    for tick in ends:
        edge = "end" if tick == ends[-1] else "mid"
        drawn.append(f'<text class="soft {edge}" x="{x_at(tick):.1f}" y="{y + 8:g}">{figure(tick)} s</text>')
    what = "; ".join(f"{one.title}: at most {figure(one.peak)}" for one in strategies)
    return _svg(drawn, width, y + 16, title, f"limit {figure(limit)}; {what}", alone=alone)


def _area(one: Strategy, n: int, x_at: _Scale, y_at: _Scale) -> str:
    """Return the connections that are open, filled, and those in use, as a line."""
    ground, begin = y_at(0.0), x_at(one.curve[0][0])
    path = f"M{begin:.1f} {ground:.1f}V{y_at(one.curve[0][1]):.1f}"
    path += "".join(f"H{x_at(at):.1f}V{y_at(opened):.1f}" for at, opened, _ in one.curve[1:]) + f"V{ground:.1f}Z"
    return (
        f'<path class="f{n % len(_LIGHT)}" fill-opacity=".7" d="{path}">'
        f"<title>{escape(one.title)}: on average {figure(one.mean)}, at most {figure(one.peak)}</title></path>"
    )


def draw_lines(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    limit: float | None = None,
    limit_label: str = "limit",
    log_x: bool = False,
    width: int = 720,
    alone: bool = False,
) -> str:
    """
    Return a chart of lines.

    Args: limit: a horizontal line. log_x: the axis is logarithmic; what is not above 0 is left out. width: in pixels.
        alone: with its own rules and ground, for a file of its own.
    """
    left, right, top, plot = 46.0, 14.0, 26.0, 240.0
    points = [point for one in series for point in one.points if not log_x or point[0] > 0]
    xs = [x for x, _ in points] or [1.0]
    x_ticks = _powers(min(xs), max(xs)) if log_x else _ticks(0.0, max(xs), 4 if width < 500 else 8)
    y_ticks = _ticks(0.0, max([y for _, y in points] + ([limit] if limit else []) + [1.0]), 5)
    x_at = _scale(x_ticks[0], x_ticks[-1], left, width - right, log=log_x)
    y_at = _scale(y_ticks[0], y_ticks[-1], top + plot, top)
    drawn = [f'<text class="soft" x="0" y="14">{escape(y_label)}</text>']
    for tick in y_ticks:
        drawn.append(f'<path class="grid" d="M{left:g} {y_at(tick):.1f}H{width - right:g}"/>')
        drawn.append(f'<text class="soft end" x="{left - 6:g}" y="{y_at(tick) + 4:.1f}">{figure(tick)}</text>')
    for tick in x_ticks:
        edge = "end" if tick == x_ticks[-1] else "mid"
        drawn.append(f'<text class="soft {edge}" x="{x_at(tick):.1f}" y="{top + plot + 18:g}">{figure(tick)}</text>')
    drawn.append(
        f'<text class="soft mid" x="{(left + width - right) / 2:g}" y="{top + plot + 36:g}">{escape(x_label)}</text>'
    )
    if limit:
        drawn.append(f'<path class="limit" stroke-dasharray="3 3" d="M{left:g} {y_at(limit):.1f}H{width - right:g}"/>')
        label = f"{limit_label} {figure(limit)}"
        drawn.append(f'<text class="alarm end" x="{width - right:g}" y="{y_at(limit) - 5:.1f}">{escape(label)}</text>')
    for n, one in enumerate(series):
        shown = [(x_at(x), y_at(y)) for x, y in one.points if not log_x or x > 0]
        if shown:
            drawn.append(_line(shown, n, one))
    height = top + plot + 48
    for n, one in enumerate(series):
        height += _LINE
        drawn.append(_key(n, left, height - 6))
        drawn.append(f'<text x="{left + 40:g}" y="{height - 2:g}">{escape(_cut(one.title, width - left - 46))}</text>')
    what = "; ".join(f"{one.title}: at most {figure(max(y for _, y in one.points))}" for one in series if one.points)
    return _svg(drawn, width, height + 6, title, what, alone=alone)


def draw_answered(strategies: Sequence[Strategy], *, width: int = 720, alone: bool = False) -> str:
    """Return a bar for each strategy: how many of its invocations were answered, and what became of the others."""
    drawn, y, title = [], 0.0, "Invocations that were answered"
    for n, one in enumerate(strategies):
        weight = _weight(one)
        drawn.append(f'<text class="{weight}" x="0" y="{y + 16:g}">{escape(_cut(one.title, width - 150))}</text>')
        count = f"{one.share} of {one.invocations:,}"
        drawn.append(f'<text class="end {weight}" x="{width}" y="{y + 16:g}">{count}</text>')
        drawn.append(f'<rect class="back" x="0" y="{y + 23:g}" width="{width}" height="14" rx="2"/>')
        if one.succeeded:
            drawn.append(
                f'<rect class="f{n % len(_LIGHT)}" x="0" y="{y + 23:g}" width="{max(2.0, one.success * width):.1f}" '
                f'height="14" rx="2"><title>{escape(one.title)}: {count}</title></rect>'
            )
        y += 42
        if one.failures:
            failed = ", ".join(f"{code} ({failures:,})" for code, failures in one.failures.items())
            drawn.append(f'<text class="alarm" x="0" y="{y + 10:g}">{escape(_cut(f"failed: {failed}", width))}</text>')
            y += 18
        y += 6
    what = "; ".join(f"{one.title}: {one.share} of {one.invocations}" for one in strategies)
    return _svg(drawn, width, max(y, 20.0), title, what, alone=alone)


def draw_latency(strategies: Sequence[Strategy], *, width: int = 720, alone: bool = False) -> str:
    """Return for each strategy how its latencies are spread, with p50, p95 and p99, on a logarithmic axis."""
    title = "Latency of an invocation"
    spans = [value for one in strategies for value in one.latency_ms.values() if value and value > 0]
    ticks = _powers(min(spans, default=1.0), max(spans, default=1000.0))
    x_at = _scale(ticks[0], ticks[-1], 8.0, width - 8.0, log=True)
    drawn, y = [], 0.0
    for n, one in enumerate(strategies):
        marks = [(name, one.latency_ms[name]) for name in ("p50", "p95", "p99")]
        said = ", ".join(f"{name} {_ms(value)}" for name, value in marks)
        weight = _weight(one)
        drawn.append(f'<text class="{weight}" x="0" y="{y + 16:g}">{escape(_cut(one.title, width))}</text>')
        drawn.append(f'<text class="soft" x="0" y="{y + 34:g}">{said}</text>')
        drawn += _spread(one, n, y + 42, x_at)
        for number, (name, value) in enumerate(marks):
            if value and value > 0:
                drawn.append(
                    f'<path class="line s{n % len(_LIGHT)}" d="M{x_at(value):.1f} {y + 40:g}V{y + 78:g}" '
                    f'stroke-dasharray="{_DASHES[number]}"><title>{escape(one.title)}: {name} {_ms(value)}</title>'
                    "</path>"
                )
        drawn.append(f'<path class="grid" d="M8 {y + 78:g}H{width - 8:g}"/>')
        y += 92
    for tick in ticks:
        edge = "end" if tick == ticks[-1] else "start" if tick == ticks[0] else "mid"
        drawn.append(f'<text class="soft {edge}" x="{x_at(tick):.1f}" y="{y + 12:g}">{_ms(tick)}</text>')
    what = "; ".join(
        f"{one.title}: p50 {_ms(one.latency_ms['p50'])}, p99 {_ms(one.latency_ms['p99'])}" for one in strategies
    )
    return _svg(drawn, width, y + 20, title, what, alone=alone)


def _spread(one: Strategy, n: int, top: float, x_at: _Scale) -> Iterable[str]:
    """Yield the bars of a histogram, as high as the fullest bin is full."""
    most = max(one.counts, default=0)
    for number, count in enumerate(one.counts):
        low, high = max(one.edges_ms[number], x_at.low), min(one.edges_ms[number + 1], x_at.high)
        if not count or high <= low:
            continue
        height = max(2.0, 36 * count / most)
        yield (
            f'<rect class="f{n % len(_LIGHT)}" fill-opacity=".45" x="{x_at(low):.1f}" y="{top + 36 - height:.1f}" '
            f'width="{max(1.0, x_at(high) - x_at(low) - 1):.1f}" height="{height:.1f}">'
            f"<title>{_ms(one.edges_ms[number])} to {_ms(one.edges_ms[number + 1])}: {count:,}</title></rect>"
        )


def _weight(one: Strategy) -> str:
    return "bold" if one.ours else "plain"


def _line(shown: Sequence[tuple[float, float]], n: int, one: Series) -> str:
    path = f"M{shown[0][0]:.1f} {shown[0][1]:.1f}"
    for x, y in shown[1:]:
        path += f"H{x:.1f}V{y:.1f}" if one.steps else f"L{x:.1f} {y:.1f}"
    dash = f' stroke-dasharray="{_DASHES[n % 4]}"' if n % 4 else ""
    return f'<path class="line s{n % len(_LIGHT)}"{dash} d="{path}"><title>{escape(one.title)}</title></path>'


def _key(n: int, x: float, y: float) -> str:
    dash = f' stroke-dasharray="{_DASHES[n % 4]}"' if n % 4 else ""
    return f'<path class="line s{n % len(_LIGHT)}"{dash} d="M{x:g} {y:g}h32"/>'


def _svg(drawn: Iterable[str], width: int, height: float, title: str, what: str, *, alone: bool) -> str:
    ground = f'<style>{style()}</style><rect class="paper" width="{width}" height="{height:g}"/>' if alone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height:g}" '
        f'viewBox="0 0 {width} {height:g}"><title>{escape(title)}</title><desc>{escape(what)}</desc>'
        f"{ground}{''.join(drawn)}</svg>"
    )


class _Scale:
    """From a value to its place on the paper."""

    def __init__(self, low: float, high: float, begin: float, end: float, *, log: bool) -> None:
        self.low, self.high, self._begin, self._end, self._log = low, high, begin, end, log

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self._log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self._begin + share * (self._end - self._begin)


def _scale(low: float, high: float, begin: float, end: float, *, log: bool = False) -> _Scale:
    return _Scale(low, high, begin, end, log=log)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers from one to the other and a little beyond, at most so many steps."""
    high = high if high > low else low + 1.0
    size = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (size * factor) <= about)
    first = math.floor(low / step)
    return [(first + n) * step for n in range(math.ceil(high / step - 1e-9) - first + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Return the powers of ten from below one to above the other, at least two."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _ms(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"


def _cut(text: str, width: float) -> str:
    letters = max(8, int(width / _LETTER))
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
