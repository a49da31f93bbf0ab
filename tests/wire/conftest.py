"""What the wire's tests share."""

import sys
from pathlib import Path

# A pytest process of its own runs this folder, see test_compliance.py: its conftest takes over the whole process.
collect_ignore = ["compliance"]

# For fuzz_server.py: pytest's importlib mode puts no test folder on the path.
sys.path.append(str(Path(__file__).parent))
