"""
The SAM CLI, which asks the emulator on this machine five times a second what it asks AWS every 15 or 30 seconds.

It gives up after as long as ever. Run by the Python of the SAM CLI's own environment: `prompt_sam.py deploy …`.
"""

import sys
from typing import Any

from botocore.waiter import Waiter
from samcli.cli.main import cli

DELAY_S = 0.2
_wait = Waiter.wait


def wait(self: Waiter, **options: Any) -> None:
    """Wait as long at most as is asked for, and look more often."""
    asked = options.pop("WaiterConfig", {})
    within_s = asked.get("Delay", self.config.delay) * asked.get("MaxAttempts", self.config.max_attempts)
    _wait(self, **options, WaiterConfig={"Delay": DELAY_S, "MaxAttempts": round(within_s / DELAY_S)})


Waiter.wait = wait

if __name__ == "__main__":
    sys.exit(cli())
