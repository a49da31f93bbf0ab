"""
Run the tests in parts, some at a time, and say once a minute what runs, how far it is and for how long it has run.

    python tests/run_parts.py --at-once 3 --calm chaos --part chaos .venv/bin/python tests/chaos --part unit …

The parts start in the order given, the longest first. Beside a calm one runs at most one other: what is tested there
needs its share of the machine. What a part writes is in build/tests; of one that fails, the failures are shown as well.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

ROOT = Path(__file__).parents[1]
# Each test on a line of its own, that ends in its number and how many there are.
PYTEST = ("-m", "pytest", "-v", "-o", "console_output_style=count", "--durations=10", "-p", "no:cacheprovider")
# Without what a make that started this tells those below it: some tests run make as from a shell.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


@dataclass
class Part:
    """Tests for one pytest process."""

    name: str
    python: str
    tests: list[str]
    log: Path
    calm: bool
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    took_s: float = 0.0

    def start(self) -> None:
        """Start it."""
        self.began = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [self.python, *PYTEST, *self.tests],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def has_ended(self) -> bool:
        """Tell whether it has, and note how long it took."""
        if self.process is None or self.process.poll() is None:
            return False
        self.took_s = time.monotonic() - self.began
        return True

    @property
    def failed(self) -> bool:
        """Whether it has ended other than well."""
        return self.process is None or self.process.returncode != 0

    def progress(self) -> str:
        """Return "core 12 of 345 in 1:02"."""
        return f"{self.name} {how_far(self.written())} in {clock(time.monotonic() - self.began)}"

    def verdict(self) -> str:
        """Return what it came to; of one that has failed, all that pytest says of the failures."""
        written = self.written()
        if not self.failed:
            return f"{self.name}: {summary(written)} ({clock(self.took_s)})"
        return (
            f"{failures(written)}\n{self.name} FAILED: {summary(written)} ({clock(self.took_s)}; all of it: {self.log})"
        )

    def written(self) -> str:
        """What it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def how_far(written: str) -> str:
    """Return "12 of 345" of what pytest has written so far."""
    if counts := re.findall(r"\[ *(\d+)/(\d+)\]$", written, re.MULTILINE):
        return "{} of {}".format(*counts[-1])
    collected = re.search(r"collected (\d+) items?$", written, re.MULTILINE)
    return f"0 of {collected[1]}" if collected else "collecting"


def summary(written: str) -> str:
    """Return pytest's last line without what frames it and its time: "345 passed, 1 skipped"."""
    found = re.findall(r"^=+ (.+) in [\d.]+s.* =+$", written, re.MULTILINE)
    return str(found[-1]) if found else "it did not come to an end"


def failures(written: str) -> str:
    """Return all from the first failure on, or the end of what was written where there is none."""
    found = re.search(r"^=+ (ERRORS|FAILURES) =+$", written, re.MULTILINE)
    return written[found.start() :] if found else written[-10_000:]


def clock(seconds: float) -> str:
    """Return "12:05" for minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def may_start(part: Part, running: Sequence[Part], at_once: int) -> bool:
    """Tell whether there is a place for it, and calm enough for all that are calm."""
    calm = part.calm or any(other.calm for other in running)
    return len(running) < (min(2, at_once) if calm else at_once)


def run(parts: Sequence[Part], at_once: int, report_every_s: float) -> bool:
    """Run all of them, whatever fails; return whether all went well."""
    began = reported = time.monotonic()
    waiting, running = list(parts), list[Part]()
    while waiting or running:
        for part in [part for part in running if part.has_ended()]:
            running.remove(part)
            say(began, part.verdict())
        for part in list(waiting):
            if may_start(part, running, at_once):
                waiting.remove(part)
                running.append(part)
                part.start()
        if time.monotonic() - reported >= report_every_s:
            reported += report_every_s
            later = f"; then {', '.join(part.name for part in waiting)}" if waiting else ""
            say(began, ", ".join(part.progress() for part in running) + later)
        time.sleep(0.2)
    failed = [part.name for part in parts if part.failed]
    say(began, f"{sum(part.took_s for part in parts) / 60:.1f} minutes of parts; {result(failed)}")
    return not failed


def result(failed: Sequence[str]) -> str:
    """Return what it all came to."""
    return f"FAILED: {', '.join(failed)}" if failed else "all passed"


def say(began: float, text: str) -> None:
    """Write a line, after how long all of it has run."""
    print(f"[{clock(time.monotonic() - began)}] {text}", flush=True)


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what is asked for, with the parts in the order in which they are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, required=True, help="how many parts may run at a time")
    parser.add_argument("--part", nargs="+", action="append", metavar=("NAME", "PYTHON TESTS"), required=True)
    parser.add_argument("--calm", nargs="*", default=[], metavar="NAME", help="parts beside which at most one runs")
    parser.add_argument("--logs", type=Path, default=Path("build/tests"), help="the folder for what they write")
    parser.add_argument("--report-every-s", type=float, default=60.0, help="say after so many seconds how far they are")
    given = parser.parse_args(arguments)
    given.parts = [
        Part(name, python, tests, given.logs / f"{name}.log", name in given.calm) for name, python, *tests in given.part
    ]
    return given


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; an interrupt goes to all that runs, and all of it is waited for."""
    given = read_arguments(arguments)
    parts: list[Part] = given.parts

    def pass_on(number: int, frame: FrameType | None) -> None:
        for part in parts:
            if part.process is not None:
                part.process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, pass_on)
    try:
        return 0 if run(parts, given.at_once, given.report_every_s) else 1
    except KeyboardInterrupt:
        # Ctrl-C has reached them, too: they are in the terminal's foreground with this process.
        for part in parts:
            if part.process is not None:
                part.process.wait()
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
