"""
The model against a storm that was measured: what its server's costs were, and how far the one is from the other.

From the CPU that each strategy took of the server follow the costs of a connect, a refusal and the statements. What a
storm's clients took of the same cores, and what other programs left of them, is nowhere measured: it is what makes the
model's latencies the most like the storm's, and so is whether processes share the cores or wait for each other.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from plungepool_toolkit.storm.results import FORMAT

from .model import Costs, Database, Function
from .strategies import STRATEGIES
from .study import Load, simulate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .model import Sharing
    from .run import Run

#: How far the model may be from a storm.
WITHIN = 0.15
# How much the costs that are known from elsewhere count beside a storm's own: a storm in which nobody was refused says
# nothing of what a refusal costs.
_KNOWN_COUNTS = 0.05
# Where the search begins: which part of the machine is left to a storm by what else runs on it, and what an invocation
# costs the client.
_SHARES = (0.2, 0.3, 0.45, 0.7, 1.0)
_CLIENT_S = 0.01
_BEYOND_REASON = 1e9


class StormError(ValueError):
    """A document is none of a storm that can be compared; says why."""


class Measured(NamedTuple):
    """A storm's conditions, and what it measured of each strategy that the model knows."""

    function: Function
    load: Load
    database: Database
    strategies: Sequence[Mapping[str, Any]]
    #: Those that the model has no strategy for.
    unknown: Sequence[str]


class Difference(NamedTuple):
    """One number of one strategy, measured and computed. Relative to what was measured."""

    strategy: str
    endpoint: str
    what: str
    measured: float
    computed: float

    @property
    def apart(self) -> float:
        """How far they are apart, as a part of what was measured."""
        if self.measured == self.computed:
            return 0.0
        return abs(self.computed - self.measured) / self.measured if self.measured else math.inf


def measured(document: Any) -> Measured:
    """
    Return what a storm's document holds. Raises: StormError.
    """
    try:
        if document["format"] != FORMAT or document["kind"] != "storm":
            raise StormError(f"it must be of the format {FORMAT} and the kind storm")
        conditions = document["conditions"]
        if conditions["arrival"] != "spike":
            raise StormError("only a storm of spikes can be compared: of the others it does not say what arrived when")
        found = Measured(
            _function(
                conditions["service_ms"] / 1000, conditions.get("outside_ms", 0.0) / 1000, conditions["deadline_s"]
            ),
            Load(environments=conditions["environments"], rounds=conditions["rounds"]),
            Database(limit=conditions["limit"], cores=float(conditions["cores"])),
            [one for one in document["strategies"] if one["name"] in STRATEGIES],
            [one["name"] for one in document["strategies"] if one["name"] not in STRATEGIES],
        )
        _refuse_odd(
            {"outside_ms": 0.0, **conditions},
            outside_ms=0.0,
            service_ms=0.0,
            deadline_s=0.1,
            environments=1,
            rounds=1,
            limit=1,
            cores=0.01,
        )
        expected = found.load.environments * found.load.rounds
        for one in found.strategies:
            _refuse_odd(one, invocations=1, succeeded=0, connects=0, refused=0)
            _refuse_odd(one["latency_ms"], p50=0.0)
            if one.get("database_cpu_s") is not None:
                _refuse_odd(one, database_cpu_s=0.0)
            if one["invocations"] != expected:
                raise StormError(f"{one['name']} has {one['invocations']} invocations, and not {expected}")
    except StormError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StormError(f"it is not the document of a storm: {error!r}") from None
    if not found.strategies:
        raise StormError("the model knows none of its strategies")
    return found


def _refuse_odd(part: Mapping[str, Any], **least: float) -> None:
    """Raise StormError where one of the numbers is none, or less than it can be."""
    for name, smallest in least.items():
        value = part[name]
        is_one = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_one or not smallest <= value <= _BEYOND_REASON or (isinstance(smallest, int) and value % 1):
            raise StormError(f"{name} is {value!r}, and must be a number of {smallest:g} or more")


def _function(service_s: float, outside_s: float, deadline_s: float) -> Function:
    if service_s and outside_s:
        raise StormError("the model's handler takes its time either within its transaction or after it, not both")
    return Function(service_s=service_s or outside_s, in_transaction=not outside_s, deadline_s=float(deadline_s))


def calibrate(storm: Measured, seeds: Sequence[int] = (1,)) -> Database:
    """Return the database of the model that is the most like the storm's."""
    costs, machine = _costs(storm), storm.database.cores
    weighed: list[tuple[float, Database]] = []

    def weigh(cores: float, sharing: Sharing, client_s: float) -> None:
        database = replace(
            storm.database, costs=replace(costs, client_s=client_s), cores=min(cores, machine), sharing=sharing
        )
        apart = [_distance(one) for one in compare(storm, database, seeds)]
        weighed.append((sum(apart) / len(apart), database))

    def nearest() -> Database:
        return min(weighed, key=lambda one: one[0])[1]

    sharings: tuple[Sharing, ...] = ("shared", "queue")
    for sharing in sharings:
        for share in _SHARES:
            for client_s in (0.0, _CLIENT_S):
                weigh(machine * share, sharing, client_s)
    for factor in (0.5, 1.5, 2.0):
        found = nearest()
        weigh(found.cores, found.sharing, found.costs.client_s * factor)
    for factor in (0.85, 0.92, 1.08, 1.18):
        found = nearest()
        weigh(found.cores * factor, found.sharing, found.costs.client_s)
    return nearest()


def _distance(one: Difference) -> float:
    """Return how far apart two numbers are, so that no single one outweighs all others."""
    return min(abs(math.log(max(one.computed, 1e-6) / max(one.measured, 1e-6))), 2.0)


def compare(storm: Measured, database: Database, seeds: Sequence[int]) -> list[Difference]:
    """Return the numbers of the storm beside the model's: what was answered, the median latency, the connects."""
    found = []
    for one in storm.strategies:
        outcome = simulate(STRATEGIES[one["name"]], _endpoint(one, database), storm.function, storm.load, seeds)
        run = outcome.middle
        for what, was, computed in zip(("answered", "p50 s", "connects"), _numbers(one), _computed(run), strict=True):
            found.append(Difference(one["name"], one["endpoint"], what, was, computed))
    return found


def _numbers(one: Mapping[str, Any]) -> tuple[float, float, float]:
    return one["succeeded"] / one["invocations"], one["latency_ms"]["p50"] / 1000, float(one["connects"])


def _computed(run: Run) -> tuple[float, float, float]:
    return run.rate, run.latency_s(0.5), float(run.connects)


def _endpoint(one: Mapping[str, Any], database: Database) -> Database:
    if one["endpoint"] == "direct":
        return database
    # What a pooler was allowed to open is what it opened: in a storm all of it is in use.
    return replace(database, endpoint="proxy", servers=max(1, one["connections"]["peak"]))


def _costs(storm: Measured) -> Costs:
    """Return the costs that explain the CPU of the server, by least squares."""
    known = Costs()
    start = (known.connect_s, known.refused_s, known.statement_s)
    rows = [
        ((one["connects"], one["refused"], one["succeeded"]), one["database_cpu_s"])
        for one in storm.strategies
        if one["endpoint"] == "direct" and one.get("database_cpu_s")
    ]
    # Each unknown in units of what is known of it, each equation in units of what was measured.
    matrix = [[_KNOWN_COUNTS * (row == column) for column in range(3)] for row in range(3)]
    right = [_KNOWN_COUNTS] * 3
    for counts, cpu_s in rows:
        terms = [count * cost / cpu_s for count, cost in zip(counts, start, strict=True)]
        for row in range(3):
            right[row] += terms[row]
            for column in range(3):
                matrix[row][column] += terms[row] * terms[column]
    connect, refused, statement = (
        max(0.1, factor) * cost for factor, cost in zip(_solve(matrix, right), start, strict=True)
    )
    refused = min(refused, 0.95 * connect)
    return Costs(connect_s=connect, refused_s=refused, statement_s=statement)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Return the solution of linear equations whose matrix is symmetric and positive definite."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = rows[row][pivot] / rows[pivot][pivot]
            rows[row] = [value - factor * above for value, above in zip(rows[row], rows[pivot], strict=True)]
    solution = [0.0] * size
    for row in reversed(range(size)):
        rest = sum(rows[row][column] * solution[column] for column in range(row + 1, size))
        solution[row] = (rows[row][size] - rest) / rows[row][row]
    return solution
