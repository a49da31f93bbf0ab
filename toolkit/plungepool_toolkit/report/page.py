"""One file of HTML, without network or script: what a storm came to, drawn, in numbers, and under which conditions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.report import charts, outcome
from plungepool_toolkit.report.text import escape, figure

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

# A page that fetches nothing says so: whatever a title holds, the browser asks nobody.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# The charts are drawn twice, for a wide and for a narrow screen: text that is scaled down cannot be read.
_WIDE, _NARROW = 760, 340

_CONDITIONS = {
    "environments": "Environments",
    "rounds": "Rounds",
    "arrival": "Arrivals",
    "service_ms": "Service time, ms",
    "outside_ms": "After the transaction, ms",
    "deadline_s": "Time-out of a function, s",
    "max_connections": "max_connections",
    "limit": "Connections for the role",
    "cores": "Cores, shared by fleet and database",
    "seed": "Seed",
    "date": "Date",
}
_COLUMNS = (
    "Strategy",
    "Answered",
    "p50, ms",
    "p95, ms",
    "p99, ms",
    "Longest, ms",
    "Connections, peak",
    "mean",
    "Connects",
    "Refused",
    "Connects a second, peak",
    "Pinned",
    "Database CPU, s",
    "Lasted, s",
)


def write_report(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """
    Write a storm's or a simulation's document as a page.

    Args: path: of the file, which is replaced. result: the JSON that `plungepool storm --json` writes; what it lacks
        is shown as a dash.
    Raises: OSError.
    """
    Path(path).write_text(page(result), encoding="utf-8")


def page(result: Mapping[str, Any]) -> str:
    """Return the page; the same for the same document."""
    strategies, said = outcome.strategies(result), outcome.headline(result)
    conditions = result.get("conditions")
    conditions = conditions if isinstance(conditions, dict) else {}
    simulated = result.get("kind") == "simulation"
    limit = conditions.get("limit")
    limit = float(limit) if isinstance(limit, (int, float)) and not isinstance(limit, bool) else None
    kind = "Simulation" if simulated else "Storm"
    text = conditions.get("text") or ""
    sections = [
        _figure(
            "Answered",
            "Invocations that were answered, and by which code the others failed.",
            strategies,
            charts.draw_answered,
        ),
        _figure(
            "Connections",
            "Connections to the database over time. The dashed line is the limit, beyond which the database refuses "
            "connections.",
            [one for one in strategies if one.curve],
            lambda shown, width: charts.draw_connections(shown, limit, width=width),
        ),
        _figure(
            "Latency",
            "How long an invocation took, failed ones included. Lines: p50 (whole), p95 (dashes), p99 (dots).",
            strategies,
            charts.draw_latency,
        ),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{kind}: {escape(said)}</title>\n"
        f"<style>{charts.style()}{Path(__file__).with_name('page.css').read_text(encoding='utf-8')}</style></head>\n"
        f'<body><main><header><p class="kind">Plungepool · {kind.lower()}</p><h1>{escape(said)}.</h1>\n'
        f"<p>{escape(text)}{'' if not text or str(text).endswith('.') else '.'}</p></header>\n"
        f"{''.join(sections)}{_table(strategies)}{_conditions(conditions)}</main></body></html>\n"
    )


def _figure(title: str, caption: str, strategies: Sequence[outcome.Strategy], draw: Any) -> str:
    if not strategies:
        return ""
    drawn = "".join(
        f'<div class="{name}">{draw(strategies, width=width)}</div>'
        for name, width in (("wide", _WIDE), ("narrow", _NARROW))
    )
    return f"<section><h2>{title}</h2><figure>{drawn}<figcaption>{caption}</figcaption></figure></section>\n"


def _table(strategies: Sequence[outcome.Strategy]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    rows = "".join(
        f'<tr{" class=ours" if one.ours else ""}><th scope="row">{escape(one.title)}</th>'
        f"<td>{one.succeeded:,} of {one.invocations:,} ({one.share})</td>"
        + "".join(f"<td>{figure(value)}</td>" for value in _values(one))
        + "</tr>"
        for one in strategies
    )
    return (
        '<section><h2>All numbers</h2><div class="scroll" tabindex="0" role="region" aria-label="All numbers"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>\n"
    )


def _values(one: outcome.Strategy) -> tuple[float | None, ...]:
    latencies = tuple(one.latency_ms[name] for name in ("p50", "p95", "p99", "max"))
    return (
        *latencies,
        one.peak,
        one.mean,
        one.connects,
        one.refused,
        one.connects_peak_per_s,
        one.pinned,
        one.cpu_s,
        one.wall_s,
    )


def _conditions(conditions: Mapping[str, Any]) -> str:
    versions = conditions.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    pairs = [(label, conditions[name]) for name, label in _CONDITIONS.items() if conditions.get(name) is not None]
    pairs += [(str(name), version) for name, version in sorted(versions.items())]
    listed = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(_shown(value))}</dd></div>" for label, value in pairs)
    command = conditions.get("command")
    again = f'<p>To measure it again:</p><pre class="scroll" tabindex="0">{escape(command)}</pre>' if command else ""
    return f"<section><h2>Conditions</h2><dl>{listed}</dl>{again}</section>\n"


def _shown(value: object) -> str:
    return figure(value) if isinstance(value, float) else str(value)
