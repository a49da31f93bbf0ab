"""What the commands have in common at the terminal: steps and their time, tables, and how a command is interrupted."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING

import typer
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from rich.console import Console


@contextlib.contextmanager
def step(what: str, console: Console) -> Iterator[None]:
    """Say what begins, and when it is over how many seconds it took."""
    begun = time.monotonic()
    console.print(f"{what} …", end=" ", highlight=False)
    try:
        yield
    except BaseException:
        console.print()
        raise
    console.print(f"{time.monotonic() - begun:.1f} s", highlight=False)


def table(title: str, *columns: str, numbers: tuple[str, ...] = (), lines: bool = False) -> Table:
    """
    Return an empty table with a title to the left; `numbers`: columns to align to the right; `lines`: between the rows.
    """
    made = Table(title=title, title_justify="left", show_lines=lines)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def interrupt_on(*numbers: int) -> None:
    """
    Let these signals interrupt as Ctrl-C does, with KeyboardInterrupt.

    SIGINT, too: a shell starts what it puts in the background with SIGINT ignored.
    """
    for number in numbers:
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def interruptible(console: Console) -> Iterator[None]:
    """
    Let SIGINT and SIGTERM end the block in order, so that its `with` statements stop what they started.

    Raises: typer.Exit with 130 after SIGINT, which is said; SystemExit with 143 after SIGTERM.
    """
    interrupt_on(signal.SIGINT)
    signal.signal(signal.SIGTERM, _leave)  # without it only the watchdogs would clean up
    try:
        yield
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything is stopped.")
        raise typer.Exit(130) from None


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
