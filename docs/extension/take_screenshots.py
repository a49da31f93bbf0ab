"""
Take the pictures of docs: python docs/extension/take_screenshots.py (make screenshots)

The site's first page from build/docs, which `make docs` has built; the report of a storm and the dashboard as the tests
have looked at them, which this runs. Needs what those need: chromium-headless-shell, and the SAM CLI's environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "shared"))
# The picture, the test that leaves it, and where.
LOOKED_AT = (
    ("storm-report.png", "tests/toolkit/test_report.py::test_a_browser_shows_it[light-1280]", "report/light-1280.png"),
    (
        "dashboard.png",
        "tests/infrastructure/test_dashboard.py::test_a_browser_shows_it[aurora, proxy-1280]",
        "dashboard/aurora-proxy-1280.png",
    ),
)


def main() -> None:
    """Write the three pictures."""
    from browser import Browser

    with Browser() as browser:
        browser.open(ROOT / "build" / "docs" / "index.html", width=1280, scheme="light")
        browser.screenshot(ROOT / "docs" / "site.png", height=900)
    for picture, test, left in LOOKED_AT:
        subprocess.run([sys.executable, "-m", "pytest", "-q", test], cwd=ROOT, check=True)
        shutil.copyfile(ROOT / "build" / left, ROOT / "docs" / picture)


if __name__ == "__main__":
    main()
