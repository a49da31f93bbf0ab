"""The sizes that `plungepool budget` counts with cover what RDS and Aurora offer for PostgreSQL."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from plungepool_toolkit.budget.hardware import connections_by_acu, connections_by_memory, size_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import CompletedProcess

PROGRAM = """
import json, sys
from importlib.resources import files
where = files("cfnlint.data.schemas.extensions.aws_rds_dbinstance") / "dbinstanceclass_enum.json"
found = set()
for region in json.loads(where.read_text()).values():
    for rule in region["allOf"]:
        engine = rule["if"]["properties"].get("Engine", {})
        if any("postgres" in name for name in [engine.get("const", ""), *engine.get("enum", [])]):
            found |= set(rule["then"]["properties"]["DBInstanceClass"]["enum"])
json.dump(sorted(found), sys.stdout)
"""


def test_every_class_has_a_size(run_sam: Callable[..., CompletedProcess[str]]) -> None:
    """All classes that cfn-lint knows for PostgreSQL have vCPUs and memory; the first generation alone has not."""
    result = run_sam("python", "-c", PROGRAM)
    assert result.returncode == 0, result.stderr
    classes = json.loads(result.stdout)
    assert len(classes) > 200
    assert [name for name in classes if size_of(name) is None] == ["db.m1.small", "db.serverless"]


def test_max_connections_is_what_is_documented() -> None:
    """What the Aurora User Guide says of classes lies in the range, and what it says of capacities is exact."""
    for name, documented in {"db.r6g.large": 1722, "db.t4g.medium": 405}.items():
        size = size_of(name)
        assert size is not None
        found = connections_by_memory(size[1])
        assert found.low <= documented <= found.high
    for capacity, documented in {1: 189, 4: 823, 8: 1669, 16: 3360, 32: 5000, 256: 5000}.items():
        assert connections_by_acu(capacity, 1).low == documented
    assert connections_by_acu(32, 0.5).high == 2000
