"""What charts and page write alike. Pure."""

from __future__ import annotations

import html
import re

# What XML does not allow, not even escaped, and what would turn the text's direction.
#: What stands where there is no number.
NONE = "\N{EN DASH}"  # as wide as a figure
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")


def escape(text: object) -> str:
    """Return a text for HTML or SVG, within an element or an attribute's quotes."""
    return html.escape(_UNFIT.sub("�", str(text)), quote=True)


def figure(value: float | None) -> str:
    """Return a number as people read it: 1,200, 0.25, or a dash for none."""
    if value is None:
        return NONE
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
