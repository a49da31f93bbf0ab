"""What a run of `plungepool verify-aws` costs, shown before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from plungepool_toolkit.commands.console import table

if TYPE_CHECKING:
    from rich.console import Console

Mode = Literal["aurora", "instance", "express"]


@dataclass(frozen=True, slots=True)
class Price:
    """
    What one part costs while it is there. An estimate: US dollars an hour in us-east-1, without taxes and free tiers.
    """

    part: str
    an_hour: tuple[float, float]
    how: str


PRICES_AS_OF = (
    "estimated in November 2026 from AWS's public list prices for us-east-1; check the pricing pages of your region"
)
PRICES: dict[Mode, tuple[Price, ...]] = {
    "aurora": (
        Price("Aurora Serverless v2, 0.5 to 4 ACU", (0.06, 0.48), "0.12 an ACU-hour"),
        Price("RDS Proxy before it", (0.12, 0.12), "0.015 an ACU-hour, at least 8 ACU"),
    ),
    "instance": (
        Price("RDS instance db.t4g.micro, 20 GB gp3", (0.02, 0.02), "0.016 an hour and 0.115 a GB-month"),
        Price("RDS Proxy before it", (0.03, 0.03), "0.015 a vCPU-hour, at least 2"),
    ),
    "express": (Price("Aurora of express configuration, 0 to 2 ACU", (0.00, 0.24), "0.12 an ACU-hour"),),
}
_PRICES_OF_NETWORKS = (
    Price("Interface endpoint of Secrets Manager in two zones, unless there is one", (0.00, 0.02), "0.01 a zone-hour"),
)
_ALARMS: dict[Mode, int] = {"aurora": 18, "instance": 18, "express": 10}
_PRICES_OF_ALL = (
    Price("Lambda, HTTP API, SQS, logs, metrics, two secrets, one bucket", (0.01, 0.05), "a few hundred invocations"),
)


def show_prices(console: Console, mode: Mode) -> None:
    """Print what a run makes, and what that costs an hour."""
    title = "What this makes, and what it costs (US dollars an hour, estimate)"
    listed = table(title, "Part", "An hour", "How it is counted")
    for price in parts_of(mode):
        low, high = price.an_hour
        listed.add_row(price.part, f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}", price.how)
    listed.add_row("Together", together(mode), "a run takes 1 to 2 hours, deletion included", style="bold")
    console.print(listed)
    console.print(f"{PRICES_AS_OF}.\n", style="dim")


def parts_of(mode: Mode) -> tuple[Price, ...]:
    """Return the prices of all that a run makes."""
    alarms = Price(f"{_ALARMS[mode]} alarms of CloudWatch", (0.00, 0.01), "0.10 a month each, by the hour")
    networks = () if mode == "express" else _PRICES_OF_NETWORKS
    return (*PRICES[mode], *networks, alarms, *_PRICES_OF_ALL)


def together(mode: Mode) -> str:
    """Return what all parts cost an hour, as "0.19 to 0.67"."""
    low, high = (sum(price.an_hour[end] for price in parts_of(mode)) for end in (0, 1))
    return f"{low:.2f} to {high:.2f}"
