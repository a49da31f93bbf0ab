"""What happens elsewhere, in the server, the kernel or a child, and has to be waited for."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(reached: Callable[[], object], otherwise: str = "it did not come true", within_s: float = 60.0) -> None:
    """
    Wait for what others do in their own time; the bound ends only a test that waits in vain, on a busy machine too.
    """
    end = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < end, otherwise
        time.sleep(0.005)


def in_a_child(deed: Callable[[], object]) -> str:
    """
    Fork; return the repr of what the deed returns in the child, or of what it raises. The child ends as it stands.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # one that waits for a lock of the parent's does so for ever
        said = "nothing"
        try:
            said = repr(deed())
        except BaseException as error:
            said = repr(error)
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said
