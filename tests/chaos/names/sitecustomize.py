"""
A name service for one environment: where the names in the file NAMES lead, as they lead at that moment.

Python imports this at its start, before the runtime client; Python's own look-up of a name is all that it changes.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

look_up = socket.getaddrinfo


def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
    led_to = json.loads(Path(os.environ["NAMES"]).read_text()).get(host)
    return look_up(*(led_to or (host, port)), *arguments, **options)


socket.getaddrinfo = getaddrinfo
