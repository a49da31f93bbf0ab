"""What the layer's flight recorder has written: found in a log, whatever stands around it, and as a page. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.report import charts
from plungepool_toolkit.report.text import NONE, escape, figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: what a line of the recorder's says it is
FORMAT = "plungepool-timeline/1"

# What CloudWatch takes as one event is shorter, quotes within quotes included; and so is what stands before the mark.
_LONGEST, _BEFORE_AT_MOST = 1_000_000, 200
_REST_OF_A_STRING = re.compile(r'(?:[^"\\]|\\.)*+"', re.DOTALL)
_MARK = f'plungepool":"{FORMAT}"'
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_WIDE, _NARROW = 760, 340
_WHY = {
    "deadline": "the deadline had passed",
    "failed": "an exception left the handler",
    "killed": "SIGTERM cut the invocation off",
    "unavailable": "the database was unavailable",
    "slow": "it was slow",
}
_COLUMNS = ("Exchange", "at, ms", "took, ms", "error", "rows", "sent", "received", "process")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One wait for the server; `at_ms` counts from the begin of the invocation that was written."""

    what: str
    at_ms: float
    took_ms: float
    sent: int | None = None
    received: int | None = None
    rows: int | None = None
    process: int = 0
    error: str = ""
    #: of another invocation; empty: of the one that was written
    request_id: str = ""
    parts_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One line of the recorder's."""

    why: str
    function: str = ""
    version: str = ""
    request_id: str = ""
    failure: str = ""
    began_at: float = 0.0
    duration_ms: float = 0.0
    tally: Mapping[str, Any] = field(default_factory=dict)
    exchanges: Sequence[Exchange] = ()

    @property
    def headline(self) -> str:
        """What happened, in a sentence without its full stop."""
        of = f"{self.function}:{self.version}" if self.version else self.function or "An invocation"
        failure = f" ({self.failure})" if self.failure else ""
        return f"{of} took {figure(self.duration_ms)} ms; {_WHY.get(self.why, self.why)}{failure}"

    @property
    def about(self) -> str:
        """Which invocation it was."""
        try:
            when = datetime.fromtimestamp(self.began_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        except (OverflowError, ValueError):  # before the year 1, or after 9999
            when = "at no moment that there is"
        return f"Request {self.request_id or 'without a name'}, started {when}"

    @property
    def numbers(self) -> dict[str, str]:
        """What was counted, by its name in words."""
        return {name.replace("_", " "): _counted(value) for name, value in self.tally.items()}


def read(text: str) -> list[Timeline]:
    """
    Return what the recorder has written in a log: as it is, behind a runtime's prefix, within the message of a log in
    JSON, or in an export (`sam logs`, `aws logs`, CSV). Other lines, and what is cut off, are passed over.
    """
    return [_timeline(document) for document in _documents(text)]


def _documents(text: str) -> Iterator[dict[str, Any]]:
    """Yield each JSON object that the mark is in."""
    at = 0
    while (at := text.find(FORMAT, at)) >= 0:
        # An export may be one line, with thousands of the recorder's in it: of each is read what one may have.
        start, at = text.rfind("{", max(0, at - _BEFORE_AT_MOST), at), at + len(FORMAT)
        if start < 0:
            continue
        end = text.find("\n", at, start + _LONGEST)
        found = text[start : end if end >= 0 else start + _LONGEST]
        if found.startswith('{""'):  # CSV doubles the quotes
            found = found.replace('""', '"')
        while found.startswith("{\\"):
            found = _unquoted(found)
        if _MARK not in found[: len(_MARK) + 4].replace(" ", ""):
            continue
        try:
            document, _ = json.JSONDecoder().raw_decode(found)
        except (ValueError, RecursionError):
            continue
        yield document


def _unquoted(text: str) -> str:
    """Return what stands in a JSON string that `text` is the rest of; an empty text where it has no end."""
    rest = _REST_OF_A_STRING.match(text)
    if rest is None:
        return ""
    try:
        inner: str = json.loads(f'"{rest.group()}')
    except ValueError:
        return ""
    return inner


def _timeline(document: Mapping[str, Any]) -> Timeline:
    exchanges = document.get("exchanges")
    tally = document.get("tally")
    return Timeline(
        why=_plain(document.get("why")),
        function=_plain(document.get("function")),
        version=_plain(document.get("version")),
        request_id=_plain(document.get("request_id")),
        failure=_plain(document.get("failure")),
        began_at=_number(document.get("began_at")) or 0.0,
        duration_ms=_number(document.get("duration_ms")) or 0.0,
        tally={_plain(name): value for name, value in tally.items()} if isinstance(tally, dict) else {},
        exchanges=[_exchange(one) for one in exchanges if isinstance(one, dict)] if isinstance(exchanges, list) else [],
    )


def _exchange(one: Mapping[str, Any]) -> Exchange:
    parts = one.get("parts_ms")
    return Exchange(
        what=_plain(one.get("what")),
        error=_plain(one.get("error")),
        request_id=_plain(one.get("request_id")),
        at_ms=_number(one.get("at_ms")) or 0.0,
        took_ms=_number(one.get("took_ms")) or 0.0,
        process=int(_number(one.get("process")) or 0),
        parts_ms={_plain(name): _number(value) or 0.0 for name, value in parts.items()}
        if isinstance(parts, dict)
        else {},
        sent=_whole(one.get("sent")),
        received=_whole(one.get("received")),
        rows=_whole(one.get("rows")),
    )


def _plain(value: object) -> str:
    """Return a text as a terminal may show it: a log is somebody else's."""
    text = "" if value is None else str(value) if isinstance(value, (str, int, float)) else "…"
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def _number(value: object) -> float | None:
    """Return a number that is one, and no NaN."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
    return float(value) if is_number else None  # type: ignore[arg-type]


def _whole(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _counted(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_plain(name)} {_figure(amount)}" for name, amount in value.items())
    return _figure(value)


def _figure(value: object) -> str:
    number = _number(value)
    return _plain(value) if number is None else figure(number)


def span(timeline: Timeline) -> tuple[float, float]:
    """Return from when to when the exchanges are drawn: the invocation, and what of it went before and behind."""
    own = [one for one in timeline.exchanges if not one.request_id]
    low = min([0.0, *(one.at_ms for one in own)])
    high = max([timeline.duration_ms, *(one.at_ms + one.took_ms for one in own)])
    return low, high if high > low else low + 1.0


def page(timelines: Sequence[Timeline]) -> str:
    """Return a page of HTML, without network or script; the same for the same timelines."""
    title = timelines[0].headline if len(timelines) == 1 else f"{len(timelines)} timelines"
    sections = "".join(_section(one) for one in timelines) or "<p>The log holds no line of the flight recorder.</p>"
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Timeline: {escape(title)}</title>\n<style>{charts.style()}{css}"
        "td.what{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:13em;padding-left:0}th{min-width:3em!important}td.error{color:var(--alarm)}"
        f"</style></head>\n<body><main>\n{sections}</main></body></html>\n"
    )


def _section(timeline: Timeline) -> str:
    drawn = "".join(
        f'<div class="{name}">{_draw(timeline, width)}</div>' for name, width in (("wide", _WIDE), ("narrow", _NARROW))
    )
    numbers = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in timeline.numbers.items()
    )
    return (
        f'<header><p class="kind">Plungepool · timeline</p><h1>{escape(timeline.headline)}.</h1>'
        f"<p>{escape(timeline.about)}.</p></header>\n"
        f"<section><h2>Exchanges</h2><figure>{drawn}<figcaption>Each bar is a wait for the database, in milliseconds "
        "from the start of the invocation; a connect is coloured by its parts, an error is red.</figcaption></figure>"
        f"</section>\n{_table(timeline)}<section><h2>Counted</h2><dl>{numbers}</dl></section>\n"
    )


def _draw(timeline: Timeline, width: int) -> str:
    """Return a bar for each exchange of the invocation, on one scale."""
    own = [one for one in timeline.exchanges if not one.request_id]
    low, high = span(timeline)
    ticks = charts._ticks(low, high, 4 if width < 500 else 8)
    x_at = charts._scale(ticks[0], max(ticks[-1], high), 4.0, width - 4.0)
    drawn, y = [], 0.0
    for one in own:
        label = f"{one.what}{f' · {one.error}' if one.error else ''}"
        drawn.append(
            f'<text class="{"alarm" if one.error else "soft"}" x="4" y="{y + 13:g}">'
            f"{escape(charts._cut(label, width - 8))}</text>"
        )
        drawn += _bars(one, x_at, y + 18)
        y += 34
    for tick in ticks:
        x = x_at(tick)
        drawn.insert(0, f'<path class="grid" d="M{x:.1f} 0V{y:g}"/>')
        edge = "end" if tick == ticks[-1] else "mid" if tick != ticks[0] else ""
        drawn.append(f'<text class="soft {edge}" x="{x:.1f}" y="{y + 16:g}">{figure(tick)}</text>')
    said = "; ".join(f"{one.what} at {figure(one.at_ms)} ms, {figure(one.took_ms)} ms" for one in own)
    return charts._svg(drawn, width, y + 24, "Exchanges of the invocation", said or "none", alone=False)


def _bars(one: Exchange, x_at: charts._Scale, y: float) -> Iterator[str]:
    if not one.parts_ms or one.error:
        yield _bar(one.at_ms, one.took_ms, x_at, y, "alarm" if one.error else "f0", f"{one.what}: {one.took_ms:g} ms")
        return
    at = one.at_ms
    for number, (name, part_ms) in enumerate(one.parts_ms.items(), 1):
        yield _bar(at, part_ms, x_at, y, f"f{number}", f"{name}: {part_ms:g} ms")
        at += part_ms


def _bar(at: float, took: float, x_at: charts._Scale, y: float, kind: str, title: str) -> str:
    begin, end = x_at(at), x_at(at + took)
    fill = ' style="fill:var(--alarm)"' if kind == "alarm" else f' class="{kind}"'
    wide = max(1.5, end - begin)
    return f'<rect{fill} x="{begin:.1f}" y="{y:g}" width="{wide:.1f}" height="9"><title>{escape(title)}</title></rect>'


def _table(timeline: Timeline) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    rows = "".join(
        f'<tr><td class="what">{escape(described(one))}</td><td>{one.at_ms:,.1f}</td><td>{one.took_ms:,.1f}</td>'
        f'<td class="error">{escape(one.error)}</td>'
        + "".join(f"<td>{figure(value)}</td>" for value in (one.rows, one.sent, one.received))
        + f"<td>{one.process or NONE}</td></tr>"
        for one in timeline.exchanges
    )
    return (
        '<section><h2>In numbers</h2><div class="scroll" tabindex="0" role="region" aria-label="In numbers"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>\n"
    )


def described(one: Exchange) -> str:
    """Return what an exchange asked, with the parts of a connect, and whose it was if another invocation's."""
    parts = ", ".join(f"{name} {part_ms:g} ms" for name, part_ms in one.parts_ms.items())
    return f"{one.what}{f' ({parts})' if parts else ''}{f' [request {one.request_id}]' if one.request_id else ''}"
