"""What it costs: the database, a proxy before it, a way out of the VPC, and Lambda's time. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run import Run

AS_OF = (
    "Prices are estimated in November 2026 from AWS's public list prices in US dollars for us-east-1, without taxes "
    "and free tiers; check the pricing pages of your region"
)
HOURS_A_MONTH = 730
#: Source: AWS's pricing page of Aurora, Serverless v2, Standard.
ACU_HOUR = 0.12
#: A proxy before Aurora Serverless v2 is paid by the ACU, for 8 at least; before an instance by the vCPU, for 2 at
#: least. Source: AWS's pricing page of RDS Proxy; what the floor comes to a month: cds-snc/platform-forms-client#4216.
PROXY_ACU_HOUR, PROXY_ACUS_AT_LEAST = 0.015, 8.0
PROXY_VCPU_HOUR, PROXY_VCPUS_AT_LEAST = 0.015, 2.0
#: One gateway, in one zone. Source: AWS's pricing page of VPC.
NAT_HOUR = 0.045
#: x86_64. Source: AWS's pricing page of Lambda.
LAMBDA_GB_S, LAMBDA_MILLION = 0.0000166667, 0.20
#: 8 ACU have the 16 GiB of an instance with 2 vCPUs (db.r6g.large). An estimate: AWS names no CPU of an ACU.
ACUS_A_CORE = 4.0
#: max_connections by the most ACU that a cluster may have. Source: Aurora User Guide, "Maximum connections for Aurora
#: Serverless v2".
MAX_CONNECTIONS = {1.0: 189, 4.0: 823, 8.0: 1669, 16.0: 3360, 32.0: 5000, 64.0: 5000, 128.0: 5000, 256.0: 5000}
#: superuser_reserved_connections and rds.rds_superuser_reserved_connections.
RESERVED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """US dollars a month for what is always there, and for a million invocations as they were."""

    database: float
    proxy: float
    nat: float
    lambda_million: float
    #: Seconds that an invocation is billed for, on average.
    billed_s: float

    @property
    def month(self) -> float:
        """Without NAT: no Plungepool function needs one for its database."""
        return self.database + self.proxy


def bill(run: Run, *, cores: float, proxy: bool, serverless: bool = True, memory_mb: int = 512) -> Bill:
    """
    Return what a run's fleet costs, the database always at its full size.

    Args: cores: of the database. memory_mb: of the function. serverless: whether a proxy is paid by the ACU.
    """
    acus = cores * ACUS_A_CORE
    an_hour = (
        PROXY_ACU_HOUR * max(acus, PROXY_ACUS_AT_LEAST)
        if serverless
        else PROXY_VCPU_HOUR * max(cores, PROXY_VCPUS_AT_LEAST)
    )
    billed_s = run.billed_s / run.invocations if run.invocations else 0.0
    return Bill(
        database=acus * ACU_HOUR * HOURS_A_MONTH,
        proxy=an_hour * HOURS_A_MONTH if proxy else 0.0,
        nat=NAT_HOUR * HOURS_A_MONTH,
        lambda_million=1e6 * billed_s * memory_mb / 1024 * LAMBDA_GB_S + LAMBDA_MILLION,
        billed_s=billed_s,
    )


def of_acus(acus: float) -> tuple[int, float]:
    """
    Return the connections that a cluster with at most so many ACU has for a role, and its cores.

    Raises: KeyError.
    """
    return MAX_CONNECTIONS[acus] - RESERVED, acus / ACUS_A_CORE
