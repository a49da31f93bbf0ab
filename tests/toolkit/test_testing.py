"""docs/testing.md, run as it stands there; and the context that it gives a handler."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aws_lambda_powertools import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from plungepool_toolkit.lambda_context import LambdaContext

DOCUMENT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", DOCUMENT, re.DOTALL))
PRINTED = re.findall(r"<!-- printed by: \S+ -->\n```\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture
def run(machine: Any, tmp_path: Path) -> Callable[..., Any]:
    """Run the page's project, or those of its files that are named."""
    for name, source in EXAMPLES.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    return lambda *arguments: machine.run("-m", "pytest", "-p", "no:cacheprovider", *arguments, cwd=tmp_path)


def test_the_page_has_no_block_that_is_not_run() -> None:
    """Every block of Python stands behind its file's name."""
    assert DOCUMENT.count("```python\n") == sum(name.endswith(".py") for name in EXAMPLES)


def test_the_page_is_true(run: Callable[..., Any]) -> None:
    """The page's tests pass, but for the two of which it shows how they fail, to the letter."""
    result = run("--strict-markers")
    assert "2 failed, 6 passed" in result.stdout, result.stdout + result.stderr
    assert len(PRINTED) == 2
    for text in PRINTED:
        assert text in result.stdout, result.stdout


def test_remaining_time_counts_down(lambda_context: LambdaContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remaining time is the time-out less what has passed, and never less than nothing."""
    monkeypatch.setattr("time.time", lambda: 1000.0)
    context = lambda_context.again(timeout_s=2)
    assert context.get_remaining_time_in_millis() == 2000
    monkeypatch.setattr("time.time", lambda: 1001.5)
    assert context.get_remaining_time_in_millis() == 500
    monkeypatch.setattr("time.time", lambda: 1003.0)
    assert context.get_remaining_time_in_millis() == 0


def test_each_invocation_is_a_request_of_its_own(lambda_context: LambdaContext) -> None:
    """The next context is of the same function and of another request."""
    again = lambda_context.again()
    assert again.aws_request_id != lambda_context.aws_request_id
    assert again.invoked_function_arn == lambda_context.invoked_function_arn


def test_powertools_takes_the_context(lambda_context: LambdaContext, capsys: pytest.CaptureFixture[str]) -> None:
    """inject_lambda_context finds all that it wants, and logs the request's id."""
    logger = Logger(service="books", level=logging.INFO)

    @logger.inject_lambda_context
    def handler(_event: Any, _context: Any) -> None:
        logger.info("asked")

    handler({}, lambda_context)
    assert lambda_context.aws_request_id in capsys.readouterr().out
