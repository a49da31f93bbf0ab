"""
Write docs/reference from the code: python docs/extension/write_reference.py [--write]

Without --write it says which page is not what the code says, and exits with 1 if one is. Needs both packages (make
setup). tests/documentation/test_reference.py asks the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import commands_reference
import errors_reference
import metrics_reference
import python_reference
import settings_reference

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parents[1] / "reference"

PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_reference.page,
    "errors.md": errors_reference.page,
    "metrics.md": metrics_reference.page,
    "commands.md": commands_reference.page,
    "python.md": python_reference.layer_page,
    "toolkit.md": python_reference.toolkit_page,
}


def problems() -> list[str]:
    """Return which pages are not what the code says."""
    there = {name: FOLDER / name for name in PAGES}
    return [
        f"docs/reference/{name} is not what the code says: make reference"
        for name, path in there.items()
        if not path.exists() or path.read_text(encoding="utf-8") != PAGES[name]()
    ]


def main() -> int:
    """Write the pages, or say what is wrong with them."""
    if "--write" in sys.argv[1:]:
        for name, page in PAGES.items():
            (FOLDER / name).write_text(page(), encoding="utf-8")
        return 0
    found = problems()
    for problem in found:
        print(problem)
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
