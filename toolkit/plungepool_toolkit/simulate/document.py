"""A simulation as a document: the storm's format, so that one report draws both. Pure."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.storm.results import FORMAT, Histogram, Latency

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import Function
    from .prices import Bill
    from .run import Run
    from .study import Load, Outcome

_POINTS = 400


def document(
    outcomes: Sequence[Outcome],
    bills: Sequence[Bill],
    function: Function,
    load: Load,
    *,
    seeds: Sequence[int],
    command: str,
    date: str,
    arrival: str,
) -> dict[str, Any]:
    """Return the document, which `json.dumps` takes."""
    database = outcomes[0].database
    return {
        "format": FORMAT,
        "kind": "simulation",
        "conditions": {
            "date": date,
            "command": command,
            "versions": {"python": platform.python_version()},
            "cores": database.cores,
            "environments": load.environments,
            "rounds": load.rounds,
            "arrival": arrival,
            "service_ms": function.service_s * 1000,
            "deadline_s": function.deadline_s,
            "max_connections": database.limit,
            "limit": database.limit,
            "seed": seeds[0],
            "text": sentence(outcomes[0], function, load, arrival),
        },
        "strategies": [_strategy(outcome, bill) for outcome, bill in zip(outcomes, bills, strict=True)],
    }


def sentence(outcome: Outcome, function: Function, load: Load, arrival: str) -> str:
    """Return the conditions in a sentence."""
    database = outcome.database
    costs = database.costs
    rounds = f" in {load.rounds} rounds" if load.rounds > 1 else ""
    return (
        f"Virtual time: {outcome.middle.invocations} invocations ({arrival}){rounds} on at most {load.environments} "
        f"environments, {database.limit} connections, {database.cores:g} cores; a connect costs "
        f"{costs.connect_s * 1000:.3g} ms of CPU, a refusal {costs.refused_s * 1000:.3g}, an invocation's statements "
        f"{costs.statement_s * 1000:.3g}; handler {function.service_s * 1000:g} ms, deadline {function.deadline_s:g} s"
    )


def _strategy(outcome: Outcome, bill: Bill) -> dict[str, Any]:
    run = outcome.middle
    times, opened, in_use = _thinned(run)
    latencies_ms = [seconds * 1000 for seconds in run.latencies_s]
    return {
        "name": outcome.strategy.name,
        "title": outcome.strategy.title,
        "endpoint": outcome.database.endpoint,
        "ours": outcome.strategy.ours,
        "invocations": run.invocations,
        "succeeded": run.succeeded,
        "failures": run.failures,
        "latency_ms": _plain(Latency.of(latencies_ms)),
        "latency_histogram": _plain(Histogram.of(latencies_ms)),
        "connections": {
            "peak": run.peak,
            "mean": round(run.mean, 1),
            "times_s": times,
            "open": opened,
            "in_use": in_use,
        },
        "connects": run.connects,
        "refused": run.refused,
        "connects_per_s": {
            "peak": max(run.connects_per_s.values(), default=0),
            "mean": round(run.connects / run.wall_s, 1) if run.wall_s else 0.0,
        },
        "pinned": None,
        "database_cpu_s": round(run.database_cpu_s, 2),
        "wall_s": round(run.wall_s, 2),
        "seeds": {
            "count": len(outcome.runs),
            "succeeded": [min(one.succeeded for one in outcome.runs), max(one.succeeded for one in outcome.runs)],
            "p50_ms": [
                round(min(one.latency_s(0.5) for one in outcome.runs) * 1000, 1),
                round(max(one.latency_s(0.5) for one in outcome.runs) * 1000, 1),
            ],
        },
        "usd": {
            "database_month": round(bill.database, 2),
            "proxy_month": round(bill.proxy, 2),
            "lambda_million": round(bill.lambda_million, 2),
        },
    }


def _plain(part: Histogram | Latency) -> dict[str, Any]:
    """Return what JSON would: lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(part).items()}


def _thinned(run: Run) -> tuple[list[float], list[int], list[int]]:
    """Return connections over time in a few hundred points, each the most of what it stands for."""
    width = -(-len(run.timeline) // _POINTS)
    parts = [run.timeline[at : at + width] for at in range(0, len(run.timeline), width)]
    return (
        [round(part[0][0], 3) for part in parts],
        [max(point[1] for point in part) for part in parts],
        [max(point[2] for point in part) for part in parts],
    )
