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
# Of the time of an attempt, so much is left for connects where all come at once: docs/scaling.md, the knees.
_USABLE_OF_AN_ATTEMPT = 0.7
_TIMED_OUT = "ConnectTimeout"


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
        none = "nothing" if not best.best else f"{_percent(best)}, and no other strategy of Plungepool's answers more"
        said.append(f"{best.strategy.title}{_before(best)}, answers {none}: {_remedy(best, function, load)}")
    if others:
        said.append(_of_the_others(others))
    direct = [one for one in held if one.database.endpoint == "direct"]
    failed = [one for one in ours if one.database.endpoint == "direct" and not one.held]
    if held and failed and not direct:
        best = max(failed, key=lambda one: one.worst)
        said.append(f"Without a proxy none of them holds: {_remedy(best, function, load)}")
    elif direct and any(one.database.endpoint == "proxy" for one in outcomes):
        said.append(f"A proxy is not needed for this, which saves {_proxy(direct[0]):.0f} dollars a month.")
    return " ".join(said)


def _of_the_others(others: Sequence[Outcome]) -> str:
    best = max(others, key=lambda one: one.worst)
    if best.held:
        return f"{best.strategy.title}{_before(best)}, answers all, too."
    if not best.best:
        failures = best.middle.failures
        return f"None of the others answers anything: they fail with {max(failures, key=failures.__getitem__)}."
    return f"The best of the others, {best.strategy.title}{_before(best)}, answers {_percent(best)}."


def _effort(one: Outcome) -> tuple[bool, float]:
    run = one.middle
    return one.database.endpoint == "proxy", run.latency_s(0.5) + run.database_cpu_s / max(1, run.invocations)


def _before(one: Outcome) -> str:
    return " behind a proxy" if one.database.endpoint == "proxy" else ""


def _percent(one: Outcome) -> str:
    low, high = rounded(one.worst), rounded(one.best)
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def rounded(part: float) -> str:
    """Return a part in percent; 0 and 100 only where it is nothing or all."""
    if 0 < part < 0.005:
        return "less than 1 %"
    return "more than 99 %" if 0.995 < part < 1 else f"{100 * part:.0f} %"


def _proxy(one: Outcome) -> float:
    return prices.bill(one.middle, cores=one.database.cores, proxy=True).proxy


def _sooner(one: Outcome, function: Function, invocations: float) -> str:
    """Say what lets connects that all come at once end in the time that an attempt has."""
    database, attempt_s = one.database, function.connect_timeout_s
    all_s = invocations * database.costs.connect_s / database.cores
    cores = invocations * database.costs.connect_s / attempt_s
    longest_s = math.floor(function.deadline_s - function.margin_s)
    longer = (
        f"PLUNGEPOOL_CONNECT_TIMEOUT_S {longest_s}, " if all_s <= _USABLE_OF_AN_ATTEMPT * longest_s > attempt_s else ""
    )
    return (
        f"connecting all of them takes {all_s:.1f} s of its {database.cores:g} cores, but an attempt has {attempt_s:g} "
        f"s: {longer}a proxy, about {cores:.1f} cores ({math.ceil(cores * prices.ACUS_A_CORE)} ACU), or a limit to the "
        "function's concurrency."
    )


def _remedy(one: Outcome, function: Function, load: Load) -> str:
    """Say what is short, by what each invocation needs at least."""
    database, costs = one.database, one.database.costs
    if load.curve is None:
        span_s, invocations = function.deadline_s - function.margin_s, float(load.environments)
    else:
        points = load.curve.rates(function.service_s + costs.statement_s).points
        span_s, invocations = 1.0, max(value for _, value in points)
    failures = one.middle.failures
    spike = database.endpoint == "direct" and load.curve is None and failures
    slow = invocations * costs.connect_s / function.connect_timeout_s > database.cores
    if spike and slow and max(failures, key=failures.__getitem__) == _TIMED_OUT:
        return _sooner(one, function, invocations)
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
