"""
What a database's size comes to: vCPUs, memory, max_connections; pure.

"AUG": Amazon Aurora User Guide; "UG": Amazon RDS User Guide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Range:
    """From the least to the most that a number may be."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = (
            f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}" for value in (self.low, self.high)
        )
        return low if low == high else f"{low} to {high}"

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)


# AUG and UG, "DB instance classes", hardware specifications: memory in GiB a vCPU by family. The families whose first
# letter says it (m, r, z, c) go by that; the others are written out.
_GIB_A_VCPU = {"m": 4.0, "r": 8.0, "z": 8.0, "c": 2.0, "r3": 7.625, "r4": 7.625}
_GIB_A_VCPU |= {"x1": 15.25, "x1e": 30.5, "x2g": 16.0, "x2idn": 16.0, "x2iedn": 32.0, "x2iezn": 32.0}
_VCPUS = {"medium": 1, "large": 2, "xlarge": 4}
# The same for the burstable classes: (vCPUs, GiB) by size; db.t2 has one vCPU up to small.
_BURSTABLE = {
    "micro": (2, 1),
    "small": (2, 2),
    "medium": (2, 4),
    "large": (2, 8),
    "xlarge": (4, 16),
    "2xlarge": (8, 32),
}
_CLASS = re.compile(r"db\.([a-z]+[0-9][a-z0-9]*)\.([0-9]*)(micro|small|medium|large|xlarge)")

# AUG, "Performance and scaling for Aurora Serverless v2": "approximately 2 GiB of memory, combined with corresponding
# CPU". No rate is documented; this one is that of the memory-optimised classes (8 GiB a vCPU), the leanest.
GIB_AN_ACU = 2.0
VCPUS_AN_ACU = 0.25

# AUG, "Managing Aurora PostgreSQL", and UG, "Quotas": LEAST({DBInstanceClassMemory/9531392},5000).
_BYTES_A_CONNECTION = 9_531_392
_CONNECTIONS_AT_MOST = 5000
# DBInstanceClassMemory leaves out what the operating system and RDS need. How much, these tell: AUG, "Maximum
# connections for Aurora Serverless v2", max_connections by maximum capacity (ACU, of 2 GiB each).
_BY_ACU = ((1, 189), (4, 823), (8, 1669), (16, 3360), (32, 5000))
# The same page: a minimum of 0 or 0.5 ACU caps max_connections.
_CAP_WITH_SMALL_MINIMUM = 2000
_SMALL_MINIMUM = 0.5


def size_of(instance_class: str) -> tuple[int, float] | None:
    """Return the vCPUs and the memory in GiB of an instance class; None for one that is not known here."""
    if not (found := _CLASS.fullmatch(instance_class)):
        return None
    family, times, size = found.groups()
    if family[0] == "t":
        vcpus, gib = _BURSTABLE.get(times + size, (0, 0))
        return (1 if family == "t2" and size in ("micro", "small") else vcpus, gib) if vcpus else None
    a_vcpu = _GIB_A_VCPU.get(family, _GIB_A_VCPU.get(family[0]))
    if a_vcpu is None or size not in _VCPUS:
        return None
    vcpus = _VCPUS[size] * int(times or 1)
    return vcpus, vcpus * a_vcpu


def connections_by_memory(gib: float) -> Range:
    """
    Return max_connections by default: at least what Serverless v2 of as much memory has, at most the formula's.

    Checked against values that AUG gives for classes: db.r6g.large 1,722, db.t4g.medium 405.
    """
    by_formula = min(int(gib * 2**30 / _BYTES_A_CONNECTION), _CONNECTIONS_AT_MOST)
    return Range(min(_by_acu(gib / GIB_AN_ACU), by_formula), by_formula)


def connections_by_acu(most: float, least: float) -> Range:
    """Return max_connections of Aurora Serverless v2 by its capacity; exact where the documentation has a row."""
    exact = dict(_BY_ACU).get(int(most)) if most == int(most) else None
    found = Range(exact, exact) if exact else connections_by_memory(most * GIB_AN_ACU)
    if least <= _SMALL_MINIMUM:
        found = Range(min(found.low, _CAP_WITH_SMALL_MINIMUM), min(found.high, _CAP_WITH_SMALL_MINIMUM))
    return found


def connections_by_formula(formula: str, gib: float) -> Range | None:
    """
    Return what max_connections in a parameter group comes to; None for a formula that is not understood.

    UG, "DB parameter formulas": {DBInstanceClassMemory/N}, with a factor before it, LEAST and GREATEST.
    """
    text = formula.replace(" ", "")
    if text.isdigit():
        return Range(int(text), int(text))
    if (one := re.fullmatch(r"(LEAST|GREATEST)\((.+)\)", text)) is not None:
        parts = [connections_by_formula(part, gib) for part in one[2].split(",")]
        known = [part for part in parts if part is not None]
        choose = min if one[1] == "LEAST" else max
        return Range(choose(p.low for p in known), choose(p.high for p in known)) if len(known) == len(parts) else None
    if (one := re.fullmatch(r"\{DBInstanceClassMemory(?:\*([0-9]+))?/([0-9]+)\}", text)) is not None and int(one[2]):
        bytes_a_connection = int(one[2]) / int(one[1] or 1)
        high = int(gib * 2**30 / bytes_a_connection)
        # The same share of the memory is RDS's own, whatever is divided by.
        share = _by_acu(gib / GIB_AN_ACU) / (gib * 2**30 / _BYTES_A_CONNECTION)
        return Range(int(high * min(share, 1.0)), high)
    return None


def smallest_class_for(connections: float, like: str) -> str | None:
    """Return the smallest class of the same family that offers as many connections; None if there is none."""
    found = _CLASS.fullmatch(like)
    sizes = [*_BURSTABLE] if found and found[1][0] == "t" else ["large", "xlarge", "2xlarge", "4xlarge", "8xlarge"]
    for size in sizes if found else ():
        candidate = f"db.{found[1]}.{size}" if found else ""
        if (of := size_of(candidate)) and connections_by_memory(of[1]).low >= connections:
            return candidate
    return None


def _by_acu(acu: float) -> int:
    """Return what the table says, straight lines between its rows and before the first; the last row's after it."""
    if acu >= _BY_ACU[-1][0]:
        return _BY_ACU[-1][1]
    for (left, at_left), (right, at_right) in pairwise(_BY_ACU):
        if acu < right:
            return max(int(at_left + (at_right - at_left) * (acu - left) / (right - left)), 0)
    return _BY_ACU[-1][1]
