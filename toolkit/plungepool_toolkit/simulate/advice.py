"""What a simulation comes to, in a sentence or two: what held, what did not, what to change. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from . import prices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import Function
    from .study import Load, Outcome

# Of the CPU's time until the deadline, so much can be used: what is refused takes the rest.
_USABLE = 0.8


def advice(outcomes: Sequence[Outcome], function: Function, load: Load) -> str:
    """Return the result and what follows from it."""
    ours = [one for one in outcomes if one.strategy.ours]
    others = [one for one in outcomes if not one.strategy.ours]
    held = sorted((one for one in ours if one.held), key=_effort)
    said = []
    if held:
        best = held[0]
        run = best.middle
        said.append(
            f"{best.strategy.title}{_before(best)}, answers all {run.invocations} with {run.peak} connections, half of "
            f"them within {run.latency_s(0.5):.2g} s."
        )
    elif ours:
        best = max(ours, key=lambda one: one.worst)
        said.append(f"{best.strategy.title}{_before(best)}, answers {_percent(best)} at best.")
        said.append(_remedy(best, function, load))
    if others:
        other = max(others, key=lambda one: one.worst)
        said.append(f"The best of the others, {other.strategy.title}{_before(other)}, answers {_percent(other)}.")
    direct = [one for one in held if one.database.endpoint == "direct"]
    if held and not direct:
        said.append("Without a proxy none of them holds: " + _remedy(held[0], function, load))
    elif direct and any(one.database.endpoint == "proxy" for one in outcomes):
        said.append(f"A proxy is not needed for this, which saves {_proxy(direct[0]):.0f} dollars a month.")
    return " ".join(said)


def _effort(one: Outcome) -> tuple[bool, float]:
    run = one.middle
    return one.database.endpoint == "proxy", run.latency_s(0.5) + run.database_cpu_s / max(1, run.invocations)


def _before(one: Outcome) -> str:
    return " behind a proxy" if one.database.endpoint == "proxy" else ""


def _percent(one: Outcome) -> str:
    low, high = 100 * one.worst, 100 * one.best
    return f"{low:.0f} %" if round(low) == round(high) else f"{low:.0f} to {high:.0f} %"


def _proxy(one: Outcome) -> float:
    return prices.bill(one.middle, cores=one.database.cores, proxy=True).proxy


def _remedy(one: Outcome, function: Function, load: Load) -> str:
    """Say what is short, by what each invocation needs at least."""
    database, costs = one.database, one.database.costs
    if load.curve is None:
        span_s, invocations = function.deadline_s - function.margin_s, float(load.environments)
    else:
        points = load.curve.rates(function.service_s + costs.statement_s).points
        span_s, invocations = 1.0, max(value for _, value in points)
    cores = invocations * (costs.connect_s + costs.statement_s) / span_s / _USABLE
    kept = invocations * costs.statement_s / span_s / _USABLE
    if cores > database.cores:
        if kept > database.cores:
            return (
                f"the statements alone need {kept:.1f} cores, and there are {database.cores:g}: a larger database, or "
                "a limit to the function's concurrency."
            )
        return (
            f"with a connect each they need about {cores:.1f} cores ({math.ceil(cores * prices.ACUS_A_CORE)} ACU), and "
            f"there are {database.cores:g}: a larger database, a proxy, or a limit to the function's concurrency."
        )
    return (
        f"its {database.limit} connections are too few for how long each is held: a proxy, fewer environments, or less "
        "time in a transaction."
    )
