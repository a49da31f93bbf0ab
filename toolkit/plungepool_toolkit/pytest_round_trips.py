"""
pytest's part: the marker `max_round_trips`, the fixture `round_trips`, the baseline, and the plan guard.

A suite that uses none of them imports nothing of the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from plungepool_toolkit.plan_guard import PlanGuard, Verdict
    from plungepool_toolkit.round_trips.exchanges import Count
    from plungepool_toolkit.round_trips.recorder import RoundTrips

_BUDGET, _LARGE = "max_round_trips", "large_tables"
_REPEATS_AT_MOST = 4

_recorder: pytest.StashKey[RoundTrips] = pytest.StashKey()
_guard: pytest.StashKey[PlanGuard] = pytest.StashKey()
_before: pytest.StashKey[dict[str, Count]] = pytest.StashKey()
_measured: pytest.StashKey[dict[str, Count]] = pytest.StashKey()
_collected: pytest.StashKey[set[str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("plungepool")
    group.addoption(
        "--round-trips-update",
        action="store_true",
        help="write the measured round trips of the tests marked max_round_trips without a number to the baseline",
    )
    parser.addini("round_trips_baseline", "the file of the baseline (round_trips.json)", default="round_trips.json")
    parser.addini(
        _LARGE, "patterns of the tables that are large in production, for the plan guard", type="args", default=[]
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line(
        "markers",
        "max_round_trips(limit=None, *, connects=None, repeats=4): how many times the test may wait for the "
        "database, not counting connects; without a limit, as many times as the baseline says. connects: how many "
        "connections it may open. repeats: how many times one line may send the same statement (None: any number).",
    )
    config.addinivalue_line(
        "markers",
        "large_tables(*patterns): tables that are large in production, in addition to those of pytest's settings",
    )
    config.stash[_measured], config.stash[_collected] = {}, set()
    if config.getoption("--round-trips-update") and hasattr(config, "workerinput"):
        raise pytest.UsageError("--round-trips-update: one process writes the baseline; run it with -n 0")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remember all that there is, before some of it is deselected."""
    config.stash[_collected].update(item.nodeid for item in items)


@pytest.fixture
def round_trips(request: pytest.FixtureRequest) -> Iterator[RoundTrips]:
    """The exchanges of this test with the database: `count`, `exchanges`, `at_most(3)`, `through(database)`."""
    recorder = _recorder_of(request.node)
    yield recorder
    recorder.close()


def _recorder_of(item: pytest.Item) -> RoundTrips:
    if _recorder not in item.stash:
        from plungepool_toolkit.round_trips.recorder import RoundTrips

        item.stash[_recorder] = RoundTrips(item.config.rootpath)
    return item.stash[_recorder]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Count while the test itself runs, and judge if it passed."""
    budget = item.get_closest_marker(_BUDGET)
    large = [*item.config.getini(_LARGE), *(name for mark in item.iter_markers(_LARGE) for name in mark.args)]
    if budget is None and not large and _recorder not in item.stash:
        return (yield)
    recorder = _recorder_of(item)
    slow: dict[str, str] = {}
    if large:
        _watch(item.config, recorder, large, slow)
    with recorder:
        result = yield
    recorder.read_carried()
    problems = [] if budget is None else _judge(item, recorder, budget)
    if slow:
        problems.append("\n".join(slow.values()))
    if problems:
        pytest.fail("\n\n".join(problems), pytrace=False)
    return result


def _judge(item: pytest.Item, recorder: RoundTrips, budget: pytest.Mark) -> list[str]:
    from plungepool_toolkit.round_trips import exchanges

    limit, connects, repeats = _arguments(*budget.args, **budget.kwargs)
    exchanged = recorder.exchanges
    count = exchanges.Count.of(exchanged, recorder.connects)
    again = [] if repeats is None else exchanges.repeated(exchanged, repeats)
    problems: list[str] = []
    detail: list[str] = []
    if limit is None:
        item.config.stash[_measured][item.nodeid] = count
        before = None if item.config.getoption("--round-trips-update") else _baseline(item.config).get(item.nodeid)
        if before is not None and count.round_trips > before.round_trips:
            problems.append(f"{count.round_trips} round trips, but the baseline has {before.round_trips}")
            detail = ["Against the baseline:", *exchanges.changes(before.whats, count.whats)]
            limit = before.round_trips
        elif before is None and not item.config.getoption("--round-trips-update"):
            problems.append("this test is not in the baseline: run pytest with --round-trips-update")
    elif count.round_trips > limit:
        problems.append(f"{count.round_trips} round trips, but the budget is {limit}")
    if connects is not None and recorder.connects > connects:
        problems.append(f"{recorder.connects} connections opened, but at most {connects} may be")
    if again:
        problems.append("one line sends the same statement again and again")
    if not problems:
        return []
    lines = [f"{item.nodeid}: {'; '.join(problems)}.", *exchanges.table(exchanged), *detail, *exchanges.advice(again)]
    lines.append(f"{count.round_trips} round trips take {exchanges.cost(count.round_trips)} a round trip")
    if limit is not None and count.round_trips > limit:
        lines[-1] += f"; {limit} take {exchanges.cost(limit)}"
    return ["\n".join(lines)]


def _arguments(
    limit: int | None = None, *, connects: int | None = None, repeats: int | None = _REPEATS_AT_MOST
) -> tuple[int | None, int | None, int | None]:
    return limit, connects, repeats


def _baseline_file(config: pytest.Config) -> Path:
    return config.rootpath / str(config.getini("round_trips_baseline"))


def _baseline(config: pytest.Config) -> dict[str, Count]:
    if _before not in config.stash:
        from plungepool_toolkit.round_trips import exchanges

        file = _baseline_file(config)
        try:
            config.stash[_before] = exchanges.read_baseline(file.read_text(encoding="utf-8")) if file.exists() else {}
        except ValueError as error:
            raise pytest.UsageError(f"{file} is not a baseline of round trips: {error}") from None
    return config.stash[_before]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the baseline where that was asked for; tell what it could be lowered to, and what no plan was seen of."""
    measured = config.stash[_measured]
    if config.getoption("--round-trips-update"):
        terminalreporter.write_line(_update(terminalreporter, config))
    elif measured:
        lower = [
            name
            for name, count in measured.items()
            if name in _baseline(config) and count.round_trips < _baseline(config)[name].round_trips
        ]
        for name in lower:
            terminalreporter.write_line(
                f"round trips: {name} takes {measured[name].round_trips} instead of "
                f"{_baseline(config)[name].round_trips}; --round-trips-update records it"
            )
    if _guard in config.stash:
        unknown = [one for one in config.stash[_guard].verdicts if one.unknown]
        terminalreporter.write_line(
            f"plan guard: {len(config.stash[_guard].verdicts) - len(unknown)} statements explained"
        )
        for one in unknown:
            terminalreporter.write_line(f"plan guard: not explained, {one.unknown}: {one.shape}")


def _update(reporter: pytest.TerminalReporter, config: pytest.Config) -> str:
    """Write what was measured; keep what did not run, and drop tests that are no more."""
    from plungepool_toolkit.round_trips import exchanges

    failed = {report.nodeid for report in (*reporter.getreports("failed"), *reporter.getreports("error"))}
    now = {name: count for name, count in config.stash[_measured].items() if name not in failed}
    before = _baseline(config)
    whole = not any("::" in argument for argument in config.args)
    files = {name.partition("::")[0] for name in config.stash[_collected]} if whole else set()
    kept = {
        name: count
        for name, count in before.items()
        if (config.rootpath / name.partition("::")[0]).exists()
        and (name in config.stash[_collected] or name.partition("::")[0] not in files)
    }
    after = {**kept, **now}
    file = _baseline_file(config)
    file.write_text(exchanges.write_baseline(after), encoding="utf-8")
    dropped = len(before.keys() - after.keys())
    return f"round trips: {file.name}: {len(now)} tests written, {len(after) - len(now)} kept, {dropped} dropped"


def _watch(config: pytest.Config, recorder: RoundTrips, large: list[str], slow: dict[str, str]) -> None:
    from plungepool_toolkit.plan_guard import PlanGuard

    guard = config.stash.setdefault(_guard, PlanGuard())

    def read(statement: Any, place: str, run: Any, *, within: bool | None) -> None:
        verdict = guard.judge(statement, run, within=within)
        if verdict is not None and (told := _tell(verdict, place, large)):
            slow.setdefault(verdict.shape, told)

    recorder.reader = read


def _tell(verdict: Verdict, place: str, large: list[str]) -> str:
    scans = [scan for scan in verdict.scans if scan.is_of(large)]
    if not scans:
        return ""
    return "\n".join(
        [
            f"plan guard: no index can serve a filter on a large table, for the statement of {place}:",
            f"  {verdict.shape} ({verdict.fingerprint})",
            *(f"  {one.node} of all of {one.read_whole}, filter {one.filter}" for one in scans),
            *(f"  {index}" for index in dict.fromkeys(one.index for one in scans if one.index)),
        ]
    )
