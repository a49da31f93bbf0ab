"""`plungepool timeline`: the flight recorder's line is found in whatever a log looks like, and drawn."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from browser import Browser
from typer.testing import CliRunner

from plungepool import recorder
from plungepool_toolkit.command import application
from plungepool_toolkit.report import timeline

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENT: dict[str, Any] = {
    "plungepool": "plungepool-timeline/1",
    "why": "failed",
    "function": "report_sales",
    "version": "7",
    "request_id": "8f5",
    "failure": "OperationalError",
    "began_at": 1795816979.81,
    "duration_ms": 520.18,
    "tally": {"checkouts": 1, "database_ms": 506.1, "errors": {"57P01": 1}},
    "exchanges": [
        {"at_ms": -90.0, "took_ms": 1.5, "process": 7, "what": "commit", "request_id": "8f4", "rows": 0, "sent": 9},
        {"at_ms": 0.4, "took_ms": 12, "process": 8, "what": "connect", "parts_ms": {"tcp": 2, "authentication": 10}},
        {
            "at_ms": 13.7,
            "took_ms": 505.8,
            "process": 8,
            "what": 'begin + select "a" from t where id = 0 [b]<script>',
            "sent": 94,
            "received": 142,
            "rows": 0,
            "error": "57P01",
        },
    ],
}
LINE = json.dumps(DOCUMENT, separators=(",", ":"))


def _csv(line: str) -> str:
    written = io.StringIO()
    csv.writer(written).writerows([["@timestamp", "@message"], ["2026-11-27 22:00:00.000", f"[WARNING]\t{line}\n"]])
    return written.getvalue()


@pytest.mark.parametrize(
    "log",
    [
        LINE,
        f"START RequestId: 8f5 Version: 7\n[WARNING]\t2026-11-27T22:02:59.810Z\t8f5\t{LINE}\nEND RequestId: 8f5\n",
        f"2026/11/27/[7]ab 2026-11-27T22:02:59 [WARNING]\t2026-11-27T22:02:59.810Z\t8f5\t{LINE}\r\n",
        json.dumps({"timestamp": "2026-11-27T22:02:59Z", "level": "WARNING", "message": LINE, "requestId": "8f5"}),
        json.dumps({"events": [{"message": "{}"}, {"message": f"[WARNING]\t{LINE}\n", "timestamp": 1}]}, indent=2),
        json.dumps([{"@message": json.dumps({"level": "WARNING", "message": LINE})}]),
        _csv(LINE),
    ],
    ids=["bare", "lambda", "sam logs", "json log", "aws logs", "insights", "csv"],
)
def test_the_line_is_found_in_every_kind_of_log(log: str) -> None:
    """Behind a prefix, within a string within a string, with doubled quotes."""
    (found,) = timeline.read(f"{{ noise }} plungepool\n{log}")
    assert (found.function, found.why, found.request_id) == ("report_sales", "failed", "8f5")
    assert [one.what for one in found.exchanges][2] == 'begin + select "a" from t where id = 0 [b]<script>'
    assert found.headline == "report_sales:7 took 520 ms; an exception left the handler (OperationalError)"


@pytest.mark.parametrize("log", ["", "\0\n{}", LINE[:-20], LINE.replace("plungepool-timeline/1", "other"), '{"plunge'])
def test_what_is_no_line_of_the_recorder_is_passed_over(log: str) -> None:
    """Nothing, a line that was cut off, another format."""
    assert timeline.read(log) == []


def test_every_damage_of_the_line_is_survived() -> None:
    """A log is somebody else's: any field may be missing, or of another kind."""
    for name in DOCUMENT:
        for value in (None, 7, "x", [], {}, [None], {"a": None}, 1e999, True):
            damaged = json.dumps(DOCUMENT | {name: value} | {"plungepool": timeline.FORMAT})
            assert "<main>" in timeline.page(timeline.read(damaged.replace('": "', '":"')))


@pytest.mark.parametrize(
    "field",
    [
        '"began_at":9e11',
        '"began_at":-9e11',
        '"tally":{"a":' + '{"a":' * 900 + "1" + "}" * 901,
        '"why":' + "[" * 900 + "]" * 900,
        '"duration_ms":1e11,"exchanges":[{"what":"a","at_ms":-9e11,"took_ms":9e11},{"took_ms":-5}]',
        '"function":"\\ud800\\u001b]0;title\\u0007\\u202e\\u009b2J"',
    ],
    ids=["future", "past", "deep numbers", "deep list", "long", "terminal"],
)
def test_what_nobody_would_write_is_drawn(tmp_path: Path, field: str) -> None:
    """A moment that no calendar has, depth, times without measure, what moves a terminal's cursor."""
    log, page = tmp_path / "log.txt", tmp_path / "page.html"
    log.write_text(f'{{"plungepool":"{timeline.FORMAT}","request_id":"8f5",{field}}}')
    result = CliRunner().invoke(application, ["timeline", str(log), "--html", str(page)])
    assert result.exit_code == 0, result.output
    for shown in (result.output, page.read_text()):
        assert "8f5" in shown
        assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(shown)


def test_a_log_of_one_line_is_read_in_time_that_grows_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `jq -c` makes of an export: of each of the recorder's lines in it no more is looked at than one may have."""
    looked_at: list[int] = []
    original = timeline._unquoted

    def note(text: str) -> str:
        looked_at.append(len(text))
        return original(text)

    monkeypatch.setattr(timeline, "_unquoted", note)
    message = json.dumps({"message": LINE})
    count = 5 * timeline._LONGEST // len(message)
    assert len(timeline.read(f"[{','.join([message] * count)}]")) == count
    assert max(looked_at) == timeline._LONGEST


def test_format_is_the_recorders() -> None:
    """The layer writes what the toolkit looks for."""
    assert timeline.FORMAT == recorder.FORMAT


def test_the_command_draws_it_and_writes_a_page(tmp_path: Path) -> None:
    """Each exchange with its times, and what was counted; without a line it exits with 1."""
    log, page = tmp_path / "log.txt", tmp_path / "page.html"
    log.write_text(f"other\n[WARNING]\t{LINE}\nother\n")
    result = CliRunner().invoke(application, ["timeline", str(log), "--html", str(page)], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    assert "report_sales:7 took 520 ms" in result.output
    assert "connect (tcp 2 ms, authentication 10 ms)" in result.output
    assert "[b]<script>" in result.output
    assert "57P01" in page.read_text()
    none = CliRunner().invoke(application, ["timeline", str(log), "--request", "other"])
    assert (none.exit_code, "no line" in none.output) == (1, True)
    missing = CliRunner().invoke(application, ["timeline", str(tmp_path / "none")])
    assert (missing.exit_code, "No such file" in missing.output) == (1, True)


def test_the_page_is_one_file_that_asks_nobody(tmp_path: Path) -> None:
    """No script runs, nothing is fetched, nothing is wider than the screen, in a real browser."""
    page = tmp_path / "page.html"
    page.write_text(timeline.page(timeline.read(LINE)))
    text = page.read_text()
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    with Browser() as browser:
        for width in (1280, 400):
            browser.open(page, width=width, scheme="light")
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth") is True
            assert browser.complaints == []
            browser.screenshot(tmp_path / f"{width}.png")
