"""
Make docs/scaling.md's tables and pictures from simulations: python docs/draw_scaling.py [--write]

Without --write it says what differs, and exits with 1 if that is anything. Takes some minutes.
tests/documentation/test_scaling.py asks a part of the same.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from plungepool_toolkit.report import Series, draw_lines
from plungepool_toolkit.simulate import prices, study
from plungepool_toolkit.simulate.model import Database, Function
from plungepool_toolkit.simulate.strategies import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plungepool_toolkit.simulate.model import Endpoint

FOLDER = Path(__file__).parent
PAGE = FOLDER / "scaling.md"
SEEDS = (1,)
AT_MOST = 10_000
ACUS = (1.0, 4.0, 8.0, 16.0)
SIZES = (100, 200, 500, 1000, 2000, 5000, 10_000)
#: Of the first picture: the database whose fleet grows.
ACU = 4.0
WAYS: dict[str, tuple[str, Endpoint]] = {
    "QueuePool": ("queue-pool", "direct"),
    "NullPool, retry 0.5-6 s": ("null-retry-slow", "direct"),
    "Plungepool, adaptive": ("adaptive", "direct"),
    "Plungepool, by proxy": ("tiny", "proxy"),
}


def database(acus: float, endpoint: Endpoint) -> Database:
    """Return an Aurora cluster of at most so many ACU."""
    limit, cores = prices.of_acus(acus)
    return Database(limit=limit, cores=cores, endpoint=endpoint)


def knees(acus: float) -> list[int]:
    """Return how many environments at once each way holds."""
    return [
        study.knee(STRATEGIES[name], database(acus, endpoint), Function(), SEEDS, at_most=AT_MOST)
        for name, endpoint in WAYS.values()
    ]


def answered(environments: int) -> list[int]:
    """Return how much of a spike each way answers, in percent."""
    load = study.Load(environments=environments)
    return [
        int(100 * study.simulate(STRATEGIES[name], database(ACU, endpoint), Function(), load, SEEDS).worst)
        for name, endpoint in WAYS.values()
    ]


def row_of_knees(acus: float, found: Sequence[int]) -> str:
    """Return the row of a table."""
    limit, cores = prices.of_acus(acus)
    run = study.simulate(STRATEGIES["null"], database(acus, "direct"), Function(), study.Load(environments=1), (1,))
    bill = prices.bill(run.middle, cores=cores, proxy=True)
    cells = [f"{acus:g}", f"{cores:g}", f"{limit:,}", *(_knee(one) for one in found)]
    return f"| {' | '.join(cells)} | {bill.database:,.0f} | {bill.proxy:,.0f} |"


def row_of_answered(environments: int, found: Sequence[int]) -> str:
    """Return the row of a table."""
    return f"| {environments:,} | {' | '.join(f'{one} %' for one in found)} |"


def _knee(found: int) -> str:
    return f"{found:,}" if found < AT_MOST else f"{found:,} or more"


def part(page: str, name: str) -> str:
    """Return what stands between a page's marks."""
    found = re.search(rf"<!-- drawn: {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    if found is None:
        raise SystemExit(f"docs/scaling.md has no part that is drawn as {name}")
    return found[1]


def numbers(page: str, name: str) -> list[list[int]]:
    """Return the numbers of a drawn table, row by row, times 100."""
    rows = []
    for line in part(page, name).splitlines()[2:]:
        cells = [cell.replace(",", "").strip() for cell in line.strip("|").split("|")]
        rows.append([int(float(cell.split()[0]) * 100) for cell in cells])
    return rows


def pictures(page: str) -> dict[str, str]:
    """Return the pictures of what the page's tables say, by the names of their files."""
    grown, sized = numbers(page, "answered"), numbers(page, "knees")
    return {
        "scaling-answered.svg": draw_lines(
            [Series(title, tuple((row[0] / 100, row[at + 1] / 100) for row in grown)) for at, title in enumerate(WAYS)],
            title=f"Share of a spike that is answered, Aurora with a maximum of {ACU:g} ACU",
            x_label="concurrent environments",
            y_label="answered, %",
            log_x=True,
            alone=True,
        ),
        "scaling-knees.svg": draw_lines(
            [Series(title, tuple((row[0] / 100, row[at + 3] / 100) for row in sized)) for at, title in enumerate(WAYS)],
            title="Concurrent environments that are served, by the size of the database",
            x_label="maximum ACU of Aurora",
            y_label=f"environments (no more than {AT_MOST:,} were tried)",
            alone=True,
        ),
    }


def made(page: str) -> str:
    """Return the page with its tables made anew."""
    ways = " | ".join(WAYS)
    tables = {
        "answered": [f"| environments | {ways} |", row_lines(len(WAYS) + 1)]
        + [row_of_answered(size, answered(size)) for size in SIZES],
        "knees": [f"| ACU | vCPU | connections | {ways} | database | proxy |", row_lines(len(WAYS) + 5)]
        + [row_of_knees(acus, knees(acus)) for acus in ACUS],
    }
    for name, lines in tables.items():
        mark = f"<!-- drawn: {name} -->\n"
        page = page.replace(mark + part(page, name), mark + "\n".join(lines) + "\n")
    return page


def row_lines(columns: int) -> str:
    """Return the line below a table's heading: numbers to the right."""
    return f"|{'---:|' * columns}"


def main() -> None:
    """Make it, or say what differs."""
    page = PAGE.read_text(encoding="utf-8")
    wanted = made(page)
    drawn = pictures(wanted)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(wanted, encoding="utf-8")
        for name, picture in drawn.items():
            (FOLDER / name).write_text(picture, encoding="utf-8")
        return
    wrong = [name for name, picture in drawn.items() if (FOLDER / name).read_text(encoding="utf-8") != picture]
    if wanted != page:
        wrong.insert(0, PAGE.name)
    for name in wrong:
        print(f"{name} is not what the simulation gives: python docs/draw_scaling.py --write")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
