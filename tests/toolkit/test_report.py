"""The report of a storm: what it says, what it never lets through, and how a real browser shows it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import Browser

from plungepool_toolkit.report import Series, draw_connections, draw_lines, outcome, write_report
from plungepool_toolkit.report.page import page
from plungepool_toolkit.storm.results import Storm

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = Path(__file__).parent / "report" / "storm.json"
BUILD = Path(__file__).parents[2] / "build" / "report"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """A storm that `plungepool storm --json` has written."""
    document: dict[str, Any] = json.loads(EXAMPLE.read_text())
    return document


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


def strategy(**given: Any) -> dict[str, Any]:
    return {
        "name": "one",
        "title": "One",
        "endpoint": "direct",
        "ours": False,
        "invocations": 2,
        "succeeded": 1,
    } | given


def test_example_is_what_the_storm_writes(example: dict[str, Any]) -> None:
    """The storm's own reader takes it, so that it is no format of the test's."""
    assert Storm.from_json(example).to_json() == example


def test_headline_sets_the_best_of_ours_beside_the_worst_of_the_others() -> None:
    """One sentence for each, exact counts."""
    document = {
        "strategies": [
            strategy(title="Naive", invocations=1200, succeeded=26),
            strategy(title="Better", invocations=1200, succeeded=900),
            strategy(title="Ours", ours=True, invocations=1200, succeeded=1200),
        ]
    }
    assert outcome.headline(document) == "Ours: all 1,200 invocations were answered. Naive: 26 of 1,200"
    assert outcome.headline(document | {"kind": "simulation"}).startswith(
        "Ours: all 1,200 invocations would be answered"
    )


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "Nothing was measured"),
        ({"strategies": None}, "Nothing was measured"),
        ({"strategies": [strategy()]}, "One: 1 of 2 invocations were answered"),
        ({"strategies": [strategy(invocations=0, succeeded=0)]}, "One: 0 of 0 invocations were answered"),
        ({"strategies": [strategy(ours=True, succeeded=1)]}, "One: 1 of 2 invocations were answered"),
    ],
)
def test_a_document_that_lacks_something_has_a_page_all_the_same(document: dict[str, Any], said: str) -> None:
    """Nothing measured, one strategy, no invocation, no number: a dash stands there."""
    shown = page(document)
    assert f"<h1>{said}.</h1>" in shown
    assert "None" not in shown
    assert "nan" not in shown


def test_nearly_all_is_not_all() -> None:
    """A share that rounds to 100 or 0 percent and is not: it says so."""
    nearly, hardly = outcome.strategies(
        {"strategies": [strategy(invocations=10000, succeeded=9999), strategy(invocations=10000, succeeded=1)]}
    )
    assert (nearly.share, hardly.share) == ("99.9 %", "0.1 %")


def test_what_a_document_says_is_text_and_nothing_else(example: dict[str, Any]) -> None:
    """A title, a code, a command and a version that are HTML: none of them is an element or an attribute."""
    evil = "</style></title><script>alert(1)</script><img src=x onerror='alert(1)'>\"'\0\ud800"
    document = json.loads(json.dumps(example))
    for one in document["strategies"]:
        one["title"], one["failures"] = evil, {evil: 1}
    document["conditions"] |= {"text": evil, "command": evil, "versions": {evil: evil}}
    shown = page(document)
    assert "<script" not in shown
    assert "<img" not in shown
    assert "onerror='" not in shown
    assert "\0" not in shown
    shown.encode()


def test_a_chart_is_well_formed_and_says_what_it_shows() -> None:
    """XML that a parser takes, with a title and a description for who cannot see it."""
    drawn = draw_lines(
        [Series("A & B", [(0, 1), (10, 20)]), Series("nothing", [])],
        title="T <1>", x_label="x", y_label="y", limit=30, alone=True,
    )  # fmt: skip
    root = ET.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title") == "T <1>"
    assert root.findtext(f"{space}desc") == "A & B: at most 20"
    assert root.find(f"{space}style") is not None
    for log_x in (False, True):
        ET.fromstring(draw_lines([], title="", x_label="", y_label="", log_x=log_x))


def test_a_long_curve_keeps_its_peaks(example: dict[str, Any]) -> None:
    """10,000 points are drawn as no more than 400, the highest of each stretch."""
    times = [n / 10 for n in range(10_000)]
    opened = [900 if n == 7_777 else n % 7 for n in range(10_000)]
    (one,) = outcome.strategies({"strategies": [strategy(connections={"times_s": times, "open": opened})]})
    assert len(one.curve) <= 400
    assert max(y for _, y, _ in one.curve) == 900
    assert len(draw_connections([one], 30)) < 20_000


def test_the_same_document_gives_the_same_page(example: dict[str, Any], tmp_path: Path) -> None:
    """Nothing of the moment is in it, and all of it is in one file."""
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    write_report(first, example)
    write_report(second, json.loads(json.dumps(example)))
    assert first.read_bytes() == second.read_bytes()
    assert "://" not in first.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")


# What the browser is asked: each chart that is shown, with its size and how many shapes it has; what sticks out; and of
# each text the contrast to the ground by WCAG 2's formula.
_CHARTS = """[...document.querySelectorAll("svg")].map(one => [one.getBoundingClientRect(), one])
    .filter(([box]) => box.width).map(([box, one]) => ({
        right: box.right, width: box.width, height: box.height,
        shapes: one.querySelectorAll("path, rect").length,
        cut: [...one.querySelectorAll("text")].map(text => [text.getBoundingClientRect(), text.textContent])
            .filter(([inner]) => inner.right > box.right + 1 || inner.left < box.left - 1).map(([_, text]) => text)
    }))"""
_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_CONTRAST = """(() => {
    const channels = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const linear = c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = colour => channels(colour).map(c => linear(c / 255))
        .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
    const ground = light(getComputedStyle(document.body).backgroundColor);
    const of = one => one.namespaceURI.endsWith("svg") ? getComputedStyle(one).fill : getComputedStyle(one).color;
    const texts = [...document.querySelectorAll("h1, h2, p, th, td, dt, dd, figcaption, pre, svg text")];
    return Math.min(...texts.map(of).map(light).map(l => (Math.max(l, ground) + 0.05) / (Math.min(l, ground) + 0.05)));
})()"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(browser: Browser, example: dict[str, Any], tmp_path: Path, width: int, scheme: str) -> None:
    """Three charts, none cut off, nothing to scroll sideways, text that can be read, no complaint of the browser."""
    report = tmp_path / "report.html"
    write_report(report, example)
    browser.open(report, width=width, scheme=scheme)
    charts = browser.evaluate(_CHARTS)
    assert len(charts) == 3
    for chart in charts:
        assert chart["width"] > 300
        assert chart["height"] > 100
        assert chart["shapes"] > 5
        assert chart["right"] <= width
        assert chart["cut"] == []
    assert browser.evaluate(_OVERFLOW) == 0
    assert browser.evaluate(_CONTRAST) >= 4.5
    browser.screenshot(BUILD / f"{scheme}-{width}.png")
    assert browser.complaints == []


def test_a_browser_asks_nobody_whatever_a_title_says(browser: Browser, example: dict[str, Any], tmp_path: Path) -> None:
    """Twelve strategies with hostile titles on a narrow screen: no request, no script, nothing sticks out."""
    document = json.loads(json.dumps(example))
    document["strategies"] = (document["strategies"] * 12)[:12]
    for number, one in enumerate(document["strategies"]):
        document["strategies"][number] = one | {"title": f"<img src=http://127.0.0.1:9/{number}>" + "W" * 80}
    report = tmp_path / "report.html"
    write_report(report, document)
    browser.open(report, width=390, scheme="light")
    assert browser.evaluate("document.images.length + document.scripts.length") == 0
    assert browser.evaluate(_OVERFLOW) == 0
    assert browser.complaints == []
