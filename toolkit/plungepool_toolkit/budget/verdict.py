"""
Whether a database can hold what its functions may open, and what its CPU bears; pure.

Costs are measured: docs/budget.md says how. "DSQL": Aurora DSQL User Guide, "Quotas"; "UG": Amazon RDS User Guide,
"Using Amazon RDS Proxy".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from plungepool.fleet import tickets
from plungepool_toolkit.budget.advice import Words, fit, lowest_of, pool
from plungepool_toolkit.budget.databases import PREFIX, TAKES
from plungepool_toolkit.budget.hardware import Range
from plungepool_toolkit.budget.rows import at_work, row, together

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from plungepool_toolkit.budget.advice import Advice
    from plungepool_toolkit.budget.databases import Database
    from plungepool_toolkit.budget.rows import Row
    from plungepool_toolkit.budget.stacks import Knob

# CPU of the server in milliseconds: an invocation of one transaction of two small statements, with a connect before it
# and on a connection that was kept; and the 20 ms that the handler took beside it. Measured, see docs/budget.md.
WITH_CONNECT_MS, KEPT_MS, HANDLER_MS = 9.2, 1.1, 20.0
# Where N invocations at once, each of Z ms elsewhere and S ms on the CPU, keep it busy: N = (Z + S) / S for each vCPU
# (asymptotic bounds of a closed queue: Denning and Buzen, "The Operational Analysis of Queueing Network Models", ACM
# Computing Surveys 10(3), 1978). Beyond it each waits for the others; at twice as many, as long as it works.
_TOO_MANY = 2.0
# UG, "Planning for RDS Proxy": leave 30 % over the peak that was observed.
_HEADROOM = 0.7
_PERCENT_AT_LEAST = 20
# DSQL: 100 new connections a second, bursts of 1,000.
_DSQL_A_SECOND, _DSQL_BURST = 100, 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not fit: how bad, what, and what to change."""

    rule: str
    level: str
    text: str
    advice: str
    file: str
    line: int
    #: Where the advice sets numbers: those, of which other findings may want lower ones.
    words: Words | None = None


@dataclass(slots=True)
class Verdict:
    """What one database was asked for, what it offers, and what follows."""

    database: Database
    rows: list[Row]
    #: What may be open to the server itself, and to each proxy.
    direct: Range
    behind: dict[str, Range]
    #: `rate`, `handler-ms`, `database-ms`, `pinned-percent`, as far as they were said.
    load: Mapping[str, float]
    per_vcpu: float | None = None
    bears_per_vcpu: float | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def holds(self) -> str:
        """`yes`, `tight` (it may fail at the upper end of a range) or `no`."""
        levels = {finding.level for finding in self.findings}
        return "no" if "error" in levels else "tight" if "warning" in levels else "yes"

    def add(self, rule: str, level: str, text: str, advice: str | Words, knob: Knob | None = None) -> None:
        """Note a finding, at what is to be changed or else at the database."""
        file, line = (knob.file, knob.line) if knob else (self.database.file, self.database.line)
        words = advice if isinstance(advice, Words) else None
        said = advice.said({}) if isinstance(advice, Words) else advice
        self.findings.append(Finding(rule, level, f"{text[0].upper()}{text[1:]}.", said, file, line, words))

    def of(self, proxy: str | None) -> list[Row]:
        """Return the functions that come through a proxy, or without one."""
        return [each for each in self.rows if each.use.proxy == proxy]

    def let_in(self, proxy: str | None) -> float:
        """Return how many connections the server lets in at the most on one way."""
        limits = [self.database.role_limit[0]] if self.database.role_limit else []
        if proxy is None:
            limits += [self.database.usable.high] if self.database.usable.high else []
        elif slots := self.database.proxies[proxy].connections:
            limits.append(slots.high)
        return min(limits, default=math.inf)


def judge(database: Database, unreserved: int, load: Mapping[str, float]) -> Verdict:
    """
    Return the verdict over one database.

    Args: unreserved: what the account has for the functions that reserve nothing. load: as in Verdict.
    """
    rows = [row(use, unreserved, tickets(int(_limit(database)))) for use in database.uses]
    behind = {name: together(each for each in rows if each.use.proxy == name) for name in database.proxies}
    verdict = Verdict(database, rows, together(each for each in rows if each.use.proxy is None), behind, load)
    _kind(verdict)
    _slots(verdict)
    _role_limit(verdict)
    _proxies(verdict)
    _cpu(verdict)
    _spike(verdict)
    _dsql(verdict)
    verdict.findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.level))
    return verdict


def agree(verdicts: Sequence[Verdict]) -> None:
    """Let all findings set a parameter to one value: the lowest that any of them asks for."""
    lowest = lowest_of(one.words for verdict in verdicts for one in verdict.findings if one.words)
    for verdict in verdicts:
        verdict.findings[:] = [
            replace(one, advice=one.words.said(lowest)) if one.words else one for one in verdict.findings
        ]


def _kind(verdict: Verdict) -> None:
    """What does not go together at all."""
    database = verdict.database
    for use in database.uses:
        for name in use.refused:
            variable, takes = f"{use.prefix}{PREFIX}{name}", TAKES[name]
            text = f"{variable} of {use.function.name} has a value that Plungepool refuses: the function will not start"
            verdict.add("settings", "error", text, f"Set it to one of {takes}.", use.knob(name))
        if not use.ours and not use.said:
            text = f"{use.function.name} does not use Plungepool, and is counted with one connection per environment"
            advice = f"State how many its pool may open: --function {use.function.name}:pool-size=N."
            verdict.add("pool", "note", text, advice, use.function.knob_of("Environment", "Variables"))
    endpoint = next((use.knob("ENDPOINT") for use in database.uses if use.proxy and use.ours), None)
    if database.kind.startswith("no PostgreSQL"):
        verdict.add("engine", "error", f"{database.name} is {database.kind}", "Give these functions a PostgreSQL.")
    if database.kind == "dsql" and database.proxies:
        text = "There is no RDS Proxy for Aurora DSQL"
        verdict.add("proxy", "error", text, "Set PLUNGEPOOL_ENDPOINT to direct.", endpoint)
    for use in database.uses:
        if not use.ours or (use.auth == "dsql") == (database.kind == "dsql"):
            continue
        text = f"{use.function.name} has PLUNGEPOOL_AUTH {use.auth}: Aurora DSQL needs dsql, and others refuse it"
        advice = f"Set PLUNGEPOOL_AUTH to {'dsql' if database.kind == 'dsql' else 'iam, secret or password'}."
        verdict.add("settings", "error", text, advice, use.knob("AUTH"))
    for use in database.uses:
        if use.auth == "dsql" and use.pool == "adaptive":
            text = f"{use.function.name} has PLUNGEPOOL_POOL adaptive: Aurora DSQL has no advisory locks"
            verdict.add("settings", "error", text, *pool(use, "tiny."))
    if database.kind == "express":
        # AWS's agent toolkit, "Aurora PostgreSQL express configuration": IAM only, no RDS Proxy.
        if database.proxies:
            text = "Aurora's express configuration does not support RDS Proxy"
            advice = "Set PLUNGEPOOL_ENDPOINT to direct, and PLUNGEPOOL_POOL to adaptive."
            verdict.add("express", "error", text, advice, endpoint)
        for use in database.uses:
            if use.ours and use.auth != "iam":
                text = f"{use.function.name} signs in with {use.auth}; Aurora's express configuration supports IAM only"
                verdict.add("express", "error", text, "Set PLUNGEPOOL_AUTH to iam.", use.knob("AUTH"))
    elif database.pauses and database.proxies and database.kind != "dsql":
        # The same toolkit, RDS Proxy: auto-pause and a proxy exclude each other.
        text = f"{database.name} may pause at 0 ACU, and an RDS Proxy in front of it keeps it awake"
        verdict.add("pause", "warning", text, f"Set MinCapacity of {database.name} to 0.5, or do without the proxy.")


def _slots(verdict: Verdict) -> None:
    """More connections than the server has."""
    database, rows = verdict.database, verdict.of(None)
    taken = sum((proxy.connections or Range(0, 0)).low for proxy in database.proxies.values())
    offered = Range(max(database.usable.low - taken, 0), max(database.usable.high - taken, 0))
    others = f", {database.others:g} used by others" if database.others else ""
    others += f", {taken:,.0f} for proxies" if taken else ""
    whence = f"{database.size}: max_connections {database.max_connections}, {database.reserved:g} reserved{others}"
    if not rows:
        return
    first = next((proxy for proxy in database.proxies.values() if proxy.knob), None)
    left = database.usable.low - together(rows).high
    instead: Advice | None = None
    if first and first.knob and taken > left >= database.max_connections.low / 100:
        percent = math.floor(100 * left / database.max_connections.low / len(database.proxies))
        leaves = f"so that {'the proxy leaves' if len(database.proxies) == 1 else 'each proxy leaves'} them the rest"
        instead = (f"Set {first.knob.name} to {max(percent, 1)} (now {first.percent:g}), {leaves}.", first.knob)
    _compare(verdict, "connections", rows, offered, f"the database has {offered} available ({whence})", instead)


def _role_limit(verdict: Verdict) -> None:
    """More connections than the role may have."""
    database = verdict.database
    if database.role_limit is None:
        return
    limit, role, knob = database.role_limit
    rows = [each for each in verdict.of(None) if not role or each.use.user in (None, role)]
    if not rows:
        return
    asked, whose = together(rows), f"the role {role}" if role else "their role"
    room = database.usable.low >= asked.low and knob
    raised: Advice | None = (f"Set {knob.name} to {asked.low:,.0f} or more.", knob) if room and knob else None
    _compare(
        verdict, "role-limit", rows, Range(limit, limit), f"the connection limit of {whose} is {limit:,.0f}", raised
    )


def _compare(
    verdict: Verdict,
    rule: str,
    rows: Sequence[Row],
    offered: Range,
    offer: str,
    instead: Advice | None = None,
) -> None:
    asked = together(rows)
    text = f"the functions may open {asked} connections, and {offer}"
    if asked.low > offered.high:
        verdict.add(rule, "error", text, *(instead or fit(verdict.database, rows, offered.low)))
    elif asked.low > offered.low:
        text += ": this may not be enough"
        verdict.add(rule, "warning", text, *(instead or fit(verdict.database, rows, offered.low)))
    elif asked.high > offered.low:
        largest = max(rows, key=lambda each: each.open.high - each.open.low).use
        text += ": enough in normal operation, but not while old environments hold theirs after a deployment"
        if largest.ours and largest.pool == "tiny":
            advice, knob = pool(largest, "adaptive, so that the fleet returns connections that it does not need")
            verdict.add(rule, "warning", text, f"{advice}, or deploy when traffic is low.", knob)
        else:
            verdict.add(rule, "warning", text, *fit(verdict.database, rows, offered.low / 2))


def _proxies(verdict: Verdict) -> None:
    """Proxies that their clients, or each other, leave no connection."""
    database = verdict.database
    for name, proxy in database.proxies.items():
        rows, slots = verdict.of(name), proxy.connections or Range(0, 0)
        if not rows or not slots.high:
            continue
        slots = Range(min(slots.low, verdict.let_in(name)), min(slots.high, verdict.let_in(name)))
        pinned = verdict.load.get("pinned-percent", 0.0) / 100 * verdict.behind[name].high
        busy = at_work(rows)
        if pinned >= slots.high:
            text = (
                f"{pinned:,.0f} pinned clients occupy all {slots} connections of {name}, and other clients wait in vain"
            )
            what = "Find what pins (docs/rds-proxy.md), and set PLUNGEPOOL_PINNING to refuse."
            verdict.add("pinning", "error", text, what, proxy.knob)
        elif busy > _HEADROOM * (slots.low - pinned):
            left = f"{slots} connections of {name}" + (f", {pinned:,.0f} of them pinned" if pinned else "")
            text = f"{busy:,.0f} invocations at once share {left}: this is more than 70 %, and some may have to wait"
            advice = fit(database, rows, math.floor(_HEADROOM * (slots.low - pinned)))
            by_role = database.role_limit[2] if database.role_limit else None
            if by_role and proxy.connections and slots.low < proxy.connections.low:
                advice = (f"Set {by_role.name} to {math.ceil(busy / _HEADROOM + pinned)} or more.", by_role)
            verdict.add("proxy", "warning", text, *advice)
    total = sum(proxy.percent for proxy in database.proxies.values())
    if len(database.proxies) > 1 and total >= 100:
        # UG, "Planning for RDS Proxy": the percentages of several proxies together stay below 100.
        text = f"together, the proxies of {database.name} may open {total:g} % of its connections"
        first = next((proxy.knob for proxy in database.proxies.values() if proxy.knob), None)
        level = "error" if total > 100 else "warning"
        verdict.add("proxy", level, text, "Reduce MaxConnectionsPercent so that the sum is less than 100.", first)


def _cpu(verdict: Verdict) -> None:
    """More at work at once than the CPU bears, however many slots there are."""
    database = verdict.database
    ways = [(verdict.of(name), verdict.let_in(name)) for name in (None, *database.proxies)]
    busy = sum(min(at_work(rows), most) for rows, most in ways)
    if not database.vcpus or not busy:
        return
    handler, cost = verdict.load.get("handler-ms", HANDLER_MS), _cost(verdict)
    bears, at_once = (handler + cost) / cost, busy / database.vcpus
    if (rate := verdict.load.get("rate")) is not None:
        # As many are at work as arrive in the time that one takes (Little's law), and no more than there are.
        at_once = min(at_once, rate * (handler + cost) / 1000 / database.vcpus)
    verdict.per_vcpu, verdict.bears_per_vcpu = at_once, bears
    if at_once <= bears:
        return
    text = (
        f"{at_once * database.vcpus:,.0f} connections at work on {database.vcpus:g} vCPUs ({database.size}) are "
        f"{at_once:,.0f} per vCPU, and a vCPU sustains {bears:,.1f}: an invocation uses {cost:.2g} ms of database CPU "
        f"and {handler:g} ms elsewhere, and would take {_times(at_once / bears)} as long"
    )
    level = "error" if at_once > _TOO_MANY * bears else "warning"
    verdict.add("cpu", level, text, *_less_at_work(verdict, _bearable(verdict, handler), cost))


def _bearable(verdict: Verdict, handler: float) -> float:
    """Return how many may be at work: with fewer of them, more find one of the connections that tickets keep."""
    vcpus, now = verdict.database.vcpus or 0.0, at_work(verdict.rows)
    most = 0.0
    for tried in range(1, int(now) + 1):
        cost = _cost(verdict, tried / now)
        if tried <= (bears := (handler + cost) / cost * vcpus):
            most = bears
    return most or (handler + _cost(verdict)) / _cost(verdict) * vcpus


def _times(ratio: float) -> str:
    return f"{ratio:,.1f} times" if ratio >= 1.05 else f"{100 * ratio:.1f} %"


def _less_at_work(verdict: Verdict, most: float, cost: float) -> Advice:
    database = verdict.database
    null = [each for each in verdict.of(None) if each.use.pool == "null" and each.busy]
    if null and at_work(verdict.rows) <= most * cost / KEPT_MS:
        advice, knob = pool(max(null, key=lambda each: each.busy).use, "tiny or adaptive")
        return f"{advice}: an invocation with a connect costs {WITH_CONNECT_MS} ms of CPU, without {KEPT_MS}.", knob
    for name, proxy in database.proxies.items():
        if verdict.behind[name].high and proxy.connections and proxy.connections.high > most and proxy.knob:
            percent = max(1, math.floor(100 * most / max(database.max_connections.high, 1)))
            advice = f"Set {proxy.knob.name} to {percent} (now {proxy.percent:g}), so that the rest waits at the proxy"
            advice += ", and limit concurrency to what it can serve"
            # UG, "Planning for RDS Proxy": 20 at least, 30 on small instances.
            advised = f" AWS recommends {_PERCENT_AT_LEAST} or more." if percent < _PERCENT_AT_LEAST else ""
            return f"{advice}.{advised}", proxy.knob
    busy = [each for each in verdict.rows if each.busy]
    vcpus = math.ceil(at_work(busy) / most * (database.vcpus or 1))
    say = f"--database {database.name}:database-ms=…, handler-ms=… and rate=…"
    return fit(database, busy, most, f"Use a database with {vcpus} vCPUs, or state what an invocation uses: {say}.")


def _spike(verdict: Verdict) -> None:
    """All environments connect at once, as after a deployment."""
    database = verdict.database
    direct = [each for each in verdict.of(None) if each.busy]
    if not database.vcpus or not direct:
        return
    busy = min(at_work(direct), verdict.let_in(None))
    took = busy * WITH_CONNECT_MS / 1000 / database.vcpus
    function = min((each.use.function for each in direct), key=lambda each: each.timeout_s)
    if took > function.timeout_s:
        text = (
            f"{busy:,.0f} environments connecting at once take {took:,.1f} s on {database.vcpus:g} vCPUs, longer than "
            f"the time-out of {function.name} ({function.timeout_s} s)"
        )
        knob = function.knob_of("Timeout")
        advice = f"Set {knob.name} to {math.ceil(took) + 1}, or limit concurrency."
        verdict.add("spike", "error", text, advice, knob)


def _dsql(verdict: Verdict) -> None:
    """More connects a second than Aurora DSQL takes."""
    rows = [each for each in verdict.rows if each.busy]
    if verdict.database.kind != "dsql" or not rows:
        return
    connecting = [each for each in rows if each.use.pool == "null"]
    handler = verdict.load.get("handler-ms", HANDLER_MS)
    a_second = at_work(connecting) * 1000 / (handler + WITH_CONNECT_MS)
    a_second = min(a_second, verdict.load.get("rate", math.inf))
    if a_second > _DSQL_A_SECOND:
        text = f"{a_second:,.0f} connects a second are more than the {_DSQL_A_SECOND} that Aurora DSQL accepts"
        advice, knob = pool(max(connecting, key=lambda each: each.busy).use, "tiny.")
        verdict.add("dsql-connects", "error", text, advice, knob)
    if (busy := at_work(rows)) > _DSQL_BURST:
        took = (busy - _DSQL_BURST) / _DSQL_A_SECOND
        shortest = min(each.use.function.timeout_s for each in rows)
        text = (
            f"{busy:,.0f} environments connecting at once take {took:,.0f} s: Aurora DSQL accepts {_DSQL_BURST:,} "
            f"at once, then {_DSQL_A_SECOND} a second"
        )
        level = "error" if took > shortest else "warning"
        verdict.add("dsql-connects", level, text, *fit(verdict.database, rows, _DSQL_BURST))


def _cost(verdict: Verdict, share: float = 1.0) -> float:
    """Return the mean CPU of an invocation in ms; `share`: with so much less at work than there may be."""
    statements = verdict.load.get("database-ms", KEPT_MS)
    kept = tickets(int(_limit(verdict.database)))
    direct = max(at_work(verdict.of(None)) * share, 1)
    total = 0.0
    for each in verdict.rows:
        missed = 1.0 if each.use.pool == "null" and each.use.proxy is None else 0.0
        if each.use.pool == "adaptive" and each.use.proxy is None:
            # Of as many as are active, as many as there are tickets find a connection kept.
            missed = max(0.0, 1 - kept / direct)
        total += each.busy * (statements + (WITH_CONNECT_MS - KEPT_MS) * missed)
    return total / sum(each.busy for each in verdict.rows)


def _limit(database: Database) -> float:
    """Return how many connections the fleet may hold."""
    return min(database.usable.low, database.role_limit[0] if database.role_limit else math.inf)
