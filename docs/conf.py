"""Sphinx's configuration of the documentation site: make docs."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extension"))

_pyproject = HERE.parent / "layers" / "plungepool" / "pyproject.toml"
_package = tomllib.loads(_pyproject.read_text(encoding="utf-8"))["project"]

project = "Plungepool"
author = project_copyright = "the Plungepool authors"
# The one place where it stands.
_source = (HERE.parent / "layers" / "plungepool" / "plungepool" / "__init__.py").read_text(encoding="utf-8")
version = release = re.findall(r'^__version__ = "(.+)"$', _source, re.MULTILINE)[0]
extensions = ["myst_parser", "sphinx_copybutton", "site_pages"]
exclude_patterns = ["extension"]

#: where the repository's files are read by whoever follows a link to one; REPOSITORY=… says another place
repository = _package["urls"]["Source"]

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
