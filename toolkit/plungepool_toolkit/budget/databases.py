"""What is known of a database: who uses it how, and what it offers; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.budget.hardware import Range

if TYPE_CHECKING:
    from plungepool_toolkit.budget.functions import Function
    from plungepool_toolkit.budget.stacks import Knob

PREFIX = "PLUNGEPOOL_"
_NOTHING = Range(0, 0)
#: What Plungepool's settings take of the variables that are read here; tests compare it with the package.
TAKES = {
    "POOL": "tiny, null, adaptive",
    "POOL_SIZE": "1 to 1000",
    "ENDPOINT": "direct, proxy",
    "AUTH": "password, secret, iam, dsql",
}
#: The connections of a pool where nothing says how many; compared, too.
POOL_SIZE = 1


@dataclass(frozen=True, slots=True)
class Use:
    """One function's use of one database: how it pools, and by which prefix of its variables it is told."""

    function: Function
    prefix: str
    pool: str = "tiny"
    pool_size: int = 1
    endpoint: str = "direct"
    auth: str = ""
    user: Any = None
    proxy: str | None = None
    #: False: without PLUNGEPOOL_ variables, so that one connection an environment is the least.
    ours: bool = True
    #: Of the variables in `TAKES`, those whose value Plungepool refuses.
    refused: tuple[str, ...] = ()
    #: Whether `--function NAME:pool-size` said how many connections it holds.
    said: bool = False

    def knob(self, variable: str) -> Knob:
        """Return what to change for one of the variables."""
        return self.function.knob_of("Environment", "Variables", f"{self.prefix}{PREFIX}{variable}")


@dataclass(slots=True)
class Proxy:
    """One RDS Proxy before a database, or a pooler that the template does not hold."""

    name: str
    percent: float = 100.0  # botocore, MaxConnectionsPercent
    connections: Range | None = None
    knob: Knob | None = None


@dataclass(slots=True)
class Database:
    """One server, or the readers of a cluster: what it offers, and who uses it."""

    name: str
    kind: str = ""
    uses: list[Use] = field(default_factory=list)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    max_connections: Range = _NOTHING
    reserved: float = 0
    others: float = 0
    vcpus: float | None = None
    size: str = ""
    pauses: bool = False
    role_limit: tuple[float, str, Knob | None] | None = None
    knob: Knob | None = None
    file: str = ""
    line: int = 1

    @property
    def usable(self) -> Range:
        """What is left of max_connections."""
        taken = self.reserved + self.others
        return Range(max(self.max_connections.low - taken, 0), max(self.max_connections.high - taken, 0))
