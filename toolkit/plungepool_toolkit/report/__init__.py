"""A storm, or a simulation of one, as a page to look at: charts by hand-written SVG, one file, nothing fetched."""

from plungepool_toolkit.report.charts import Series, draw_answered, draw_connections, draw_latency, draw_lines
from plungepool_toolkit.report.page import write_report

__all__ = ["Series", "draw_answered", "draw_connections", "draw_latency", "draw_lines", "write_report"]
