"""
Which lines of the packages each test runs, written down as they run.

Run by `exec` in the process of the tests and, from a .pth file, at the start of every other Python: it must leave no
module behind and import nothing, because tests look at what is imported. A line counts once a test; the current test's
name is in a file, because not every process is given this one's variables.
"""

from __future__ import annotations

from typing import Any


def _record(folder: str, packages: tuple[str, ...]) -> Any:  # type: ignore[no-untyped-def]
    import sys
    from posix import O_APPEND, O_CREAT, O_RDONLY, O_WRONLY, close, read, write
    from posix import open as open_file

    monitoring = sys.monitoring
    tool = monitoring.COVERAGE_ID
    if monitoring.get_tool(tool) is not None:
        return None  # a process may read the .pth files twice
    # Not inherited by another program, but by a fork.
    lines = open_file(f"{folder}/lines", O_WRONLY | O_APPEND | O_CREAT)

    def name() -> bytes:
        current = open_file(f"{folder}/current", O_RDONLY)
        try:
            return read(current, 4096)
        finally:
            close(current)

    state = [name()]

    def on_line(code: Any, line: Any) -> Any:  # type: ignore[no-untyped-def]
        if code.co_filename.startswith(packages):
            write(lines, b"%s\t%s\t%d\n" % (state[0], code.co_filename.encode(), line))
        return monitoring.DISABLE

    def begin(test: bytes) -> None:
        state[0] = test
        monitoring.restart_events()

    monitoring.use_tool_id(tool, "mutants")
    monitoring.register_callback(tool, monitoring.events.LINE, on_line)
    monitoring.set_events(tool, monitoring.events.LINE)
    return begin
