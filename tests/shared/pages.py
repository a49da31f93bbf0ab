"""A page of docs/ as a project: a block that is named after a file is that file, and the page's tests run there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Page:
    """
    One page, by its name without `.md`.

    Before each block of code stands `<!-- example: FILE -->`, or `<!-- printed by: FILE -->` for what a program prints.
    """

    def __init__(self, name: str) -> None:
        self.path = ROOT / "docs" / f"{name}.md"
        self.text = self.path.read_text(encoding="utf-8")

    @cached_property
    def files(self) -> dict[str, str]:
        """The page's files, by their names."""
        return self._blocks("example")

    @cached_property
    def printed(self) -> dict[str, str]:
        """What the page says that its files print, by the name of the file."""
        return self._blocks("printed by")

    def _blocks(self, mark: str) -> dict[str, str]:
        pattern = rf"^( *)<!-- {mark}: (\S+) -->\n\1```\w*\n(.*?)^\1```$"
        found = re.findall(pattern, self.text, re.DOTALL | re.MULTILINE)
        blocks = {name: textwrap.dedent(source) for _, name, source in found}
        assert len(found) == len(blocks), f"{self.path.name} has two blocks of one name"
        return blocks

    def unnamed(self) -> list[str]:
        """Return the first lines of the blocks that no test can find."""
        blocks = re.findall(r"^(.*)\n *```\w*\n(.*)\n(?:.*\n)*? *```$", self.text, re.MULTILINE)
        return [first for before, first in blocks if not re.fullmatch(r" *<!-- (example|printed by): \S+ -->", before)]

    def number_of_tests(self) -> int:
        """Return how many tests the page has."""
        return sum(source.count("\ndef test_") for source in self.files.values())

    def headings(self) -> list[str]:
        """Return the texts of the headings outside of code, without backquotes."""
        prose = re.sub(r"^( *)```.*?^\1```$", "", self.text, flags=re.DOTALL | re.MULTILINE)
        return [text.replace("`", "") for text in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)]

    def section(self, heading: str) -> str:
        """Return what stands below a heading, up to the next one that is as high; KeyError if there is none."""
        level, found, in_code = 0, [], False
        for line in self.text.splitlines():
            in_code ^= line.lstrip().startswith("```")
            marks, _, text = line.partition(" ")
            if not in_code and marks and not marks.strip("#"):
                if level and len(marks) <= level:
                    return "\n".join(found)
                if not level and text.replace("`", "") == heading:
                    level = len(marks)
            if level:
                found.append(line)
        if not level:
            raise KeyError(f"{self.path.name} has no heading {heading!r}")
        return "\n".join(found)

    def write(self, folder: Path) -> None:
        """Write the page's files."""
        for name, source in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(source, encoding="utf-8")

    def run_tests(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """Write the page's files, and run its tests there."""
        self.write(folder)
        return run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"], folder)

    def run_file(self, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Write the page's files, and run one of them: a script of the shell's or of Python's."""
        self.write(folder)
        return run(["sh", "-e", name] if name.endswith(".sh") else [sys.executable, name], folder)


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as in a user's shell in which this environment is active."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PLUNGEPOOL_", "PYTEST_"))}
    environ |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120", **variables}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=240)
