"""The template's dashboard, drawn from recorded metrics and looked at by a real browser."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import template_rules as rules
from browser import Browser
from draw_dashboard import key_of, page
from sqlalchemy import text
from test_templates import FILES, as_templates, source

from plungepool import Settings, build_engine

if TYPE_CHECKING:
    from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
RECORDED = json.loads(Path(__file__).with_name("recorded_metrics.json").read_text(encoding="utf-8"))
pytestmark = pytest.mark.timeout(600)
Examine = Callable[[dict[str, str], set[str]], dict]


@pytest.fixture(scope="module")
def templates(examine: Examine) -> rules.Templates:
    """The templates, expanded, not linted: test_templates.py does that."""
    return as_templates(examine({file: source(file) for file in FILES}, set()), {})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


def body_of(templates: rules.Templates, deployment: str) -> dict:
    [body] = rules.dashboards_of(templates.deploy(deployment))
    return body


def test_recording_is_of_what_is_shown(templates: rules.Templates) -> None:
    """Each metric of the largest dashboard was recorded, and none that is not shown; none is all zero by mistake."""
    body = body_of(templates, "aurora, proxy")
    shown = {
        key_of(metric, metric[-1].get("stat", of["stat"]))
        for of in rules.properties_of(body)
        for metric in of.get("metrics", [])
    }
    assert shown == RECORDED["series"].keys()
    lengths = {len(values) for values in RECORDED["series"].values()}
    assert len(lengths) == 1
    assert max(RECORDED["series"]["AWS/RDS|DatabaseConnections|Instance|Maximum"]) > 3
    assert max(RECORDED["series"]["AWS/RDS|DatabaseConnectionsBorrowLatency|Proxy|Maximum"]) > 1000  # microseconds
    assert sum(RECORDED["series"]["AWS/Lambda|Throttles|HandleOrdersFunction|Sum"]) > 0


def test_a_slow_statement_is_found_by_the_saved_query(
    templates: rules.Templates, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """The line that a slow statement leaves is what the saved query filters, and takes apart."""
    variables = {
        "PLUNGEPOOL_URL": postgres.url(),
        "PLUNGEPOOL_PASSWORD": postgres.password,
        "PLUNGEPOOL_TLS": "disable",
    }
    engine = build_engine(Settings.from_env(variables | {"PLUNGEPOOL_SLOW_QUERY_S": "0.1"}))
    with caplog.at_level(logging.WARNING, "plungepool"), engine.begin() as connection:
        connection.execute(text('SELECT pg_sleep(0.15) AS "a name"'))
    engine.dispose()
    queries = templates.deploy("aurora, proxy").of_type("AWS::Logs::QueryDefinition").values()
    [asked] = [of["QueryString"] for of in queries if of["Name"].endswith("/slow-queries")]
    [mark] = re.findall(r'filter message like "([^"]+)"', asked)
    # On a busy machine the COMMIT behind it may be slow, too.
    line, *_ = [one.getMessage() for one in caplog.records if mark in one.getMessage()]
    parsed, meant = rules.parsed_by(asked, line), json.loads(line)
    assert parsed["fingerprint"] == meant["fingerprint"]
    assert json.loads(f'"{parsed["statement"]}"') == meant["statement"]
    assert float(parsed["took_ms"]) == meant["took_ms"] >= 150
    assert (int(parsed["rows"]), parsed["place"]) == (1, meant["where"])
    assert Path(__file__).name in parsed["place"]


_CHARTS = """[...document.querySelectorAll("svg")].map(one => [one.getBoundingClientRect(), one]).map(([box, one]) => ({
    left: box.left, right: box.right, width: box.width, height: box.height, lines: one.querySelectorAll(".line").length,
    cut: [...one.querySelectorAll("text")].map(text => [text.getBoundingClientRect(), text.textContent])
        .filter(([inner]) => inner.right > box.right + 1 || inner.left < box.left - 1).map(([_, text]) => text)}))"""
_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("deployment", ["aurora, proxy", "instance", "existing, express"])
def test_a_browser_shows_it(
    browser: Browser, templates: rules.Templates, tmp_path: Path, deployment: str, width: int
) -> None:
    """Every widget is drawn with a line for each metric, nothing is cut off, and nothing scrolls sideways."""
    body = body_of(templates, deployment)
    file = tmp_path / "dashboard.html"
    file.write_text(page(body, RECORDED["series"]), encoding="utf-8")
    browser.open(file, width=width, scheme="light")
    charts = browser.evaluate(_CHARTS)
    metrics = [of["metrics"] for of in rules.properties_of(body) if "metrics" in of]
    further = sum(len(of["annotations"]["horizontal"]) - 1 for of in rules.properties_of(body) if "annotations" in of)
    # Each line has its key below the chart.
    assert sum(chart["lines"] for chart in charts) == 2 * (sum(map(len, metrics)) + further)
    assert len(charts) >= len(metrics)
    for chart in charts:
        assert chart["width"] > 300
        assert chart["height"] > 100
        assert 0 <= chart["left"] < chart["right"] <= width
        assert chart["cut"] == []
    if width == 1280:  # three in a row
        assert len({round(chart["left"]) for chart in charts}) == 3
    assert browser.evaluate(_OVERFLOW) == 0
    assert browser.complaints == []
    build = ROOT / "build" / "dashboard"
    build.mkdir(parents=True, exist_ok=True)
    browser.screenshot(build / f"{deployment.replace(', ', '-')}-{width}.png")
