"""
Ctrl-C before and behind a command's work ends the process at once: without a traceback, and with 130.

Until a handler is in place Python answers Ctrl-C by the traceback of whatever import it strikes, and again while the
process ends. In between it is KeyboardInterrupt, so that a command stops what it has started. Imports next to nothing.
"""

import os
import signal


def leave_at_once() -> None:
    """
    Have Ctrl-C end the process: nothing was started yet, or nothing is left of it.

    Where a shell has SIGINT ignored, for what it puts in the background, as well.
    """
    signal.signal(signal.SIGINT, _leave)


def begin_to_work() -> None:
    """Have Ctrl-C be KeyboardInterrupt from here on, where it would end the process; else it is somebody's affair."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, _frame: object) -> None:
    # By no exception: whatever is being imported may catch one.
    os._exit(128 + number)
