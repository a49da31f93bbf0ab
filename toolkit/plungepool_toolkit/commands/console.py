"""What the commands have in common at the terminal: steps and their time, tables, and how a command is interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import typer
from rich.cells import cell_len
from rich.measure import Measurement
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from rich.console import Console

_WIDER_THAN_ANY = 10_000


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


def show(made: Table, console: Console) -> None:
    """
    Print a table that breaks no word; where the terminal is too narrow for that, a paragraph for each of its rows.

    Its cells are plain text.
    """
    for column in made.columns:
        words = [word for cell in (column.header, *column.cells) for word in str(cell).split()]
        column.min_width = max(map(cell_len, words), default=0)
    # What it needs at least may be more than the console's width, which would hide it.
    spare = console.width - Measurement.get(console, console.options.update_width(_WIDER_THAN_ANY), made).minimum
    if spare >= 0:
        # Rich would narrow the widest columns first, and cut off what has no room then.
        for column in made.columns:
            longest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
            column.width = min(longest, (column.min_width or 0) + spare)
            spare -= column.width - (column.min_width or 0)
        console.print(made)
        return
    if made.title:
        console.print(made.title, markup=False)
    for first, *cells in zip(*(column.cells for column in made.columns), strict=True):
        console.print(first, style="bold", markup=False)
        for column, cell in zip(made.columns[1:], cells, strict=True):
            console.print(f"  {column.header}: {cell}", markup=False)
    if made.caption:
        console.print(made.caption, markup=False)


@contextlib.contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """
    Say of a file that cannot be written which it is, and why.

    Raises: typer.BadParameter for that.
    """
    try:
        yield
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint=option) from None


def check_writable(path: Path | None, option: str) -> None:
    """Refuse a file that could not be written when all is done; it is neither made nor changed. Raises: as writing."""
    if path is None:
        return
    with writing(path, option):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "its folder is not there")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


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
