"""
The commands in the background of a shell, which starts them with SIGINT ignored: they can be interrupted all the same.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from plungepool_toolkit.command import application
from plungepool_toolkit.commands import demo, sam_local

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def ignored() -> Iterator[None]:
    """SIGINT as a background job has it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "module"), [("demo", demo), ("sam-local", sam_local)])
def test_an_interrupt_ends_the_command(name: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGINT ends it with 130, after everything was stopped."""
    monkeypatch.setattr(module, "_run", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    result = CliRunner().invoke(application, [name, "--folder", str(ROOT)])
    assert (result.exit_code, "Interrupted; everything is stopped." in result.output) == (130, True)
