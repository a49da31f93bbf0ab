"""Sphinx's configuration of the documentation site: make docs."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extension"))

_pyproject = HERE.parent / "layers" / "plungepool" / "pyproject.toml"
_package = tomllib.loads(_pyproject.read_text(encoding="utf-8"))["project"]

project = "Plungepool"
author = project_copyright = "the Plungepool authors"
version = release = _package["version"]
extensions = ["myst_parser", "sphinx_copybutton", "site_pages"]
exclude_patterns = ["extension"]

#: where the repository's files are read by whoever follows a link to one; without it such a link is its text alone
repository = _package.get("urls", {}).get("Repository", "")

# Links to a heading are checked, by the names that GitHub gives them.
myst_heading_anchors = 4
# Of a block that Pygments cannot read as a whole, which lacks some colours then.
suppress_warnings = ["misc.highlighting_failure"]
# A block without a language is a command or what one prints.
highlight_language = "text"

html_theme = "furo"
html_title = f"Plungepool {version}"
html_static_path = ["extension/static"]
html_css_files = ["site.css"]
html_copy_source = False  # each page stands beside its own as .md
html_show_sphinx = False
copybutton_prompt_text = "$ "
