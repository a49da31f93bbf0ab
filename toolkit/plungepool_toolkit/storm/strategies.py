"""How a function may come to its connection: the strategies that a storm sets side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plungepool_toolkit.storm.endpoints import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One of them; `variables` are those that choose it among the strategies of its function."""

    name: str
    title: str
    module: str
    variables: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    #: Runs under Node; `module` has no meaning then.
    under_node: bool = False
    #: What must be importable for it, and is no requirement of the toolkit's.
    needs: str | None = None

    @property
    def handler(self) -> str:
        """The function's handler, as the runtime client takes it."""
        return f"plungepool_toolkit/storm/function/{self.module}.handler"

    def environ(self, address: Address) -> dict[str, str]:
        """Return the environment variables with which the function reaches the database."""
        variables = {
            "STORM_STRATEGY": self.name,
            "STORM_HOST": address.host,
            "STORM_PORT": str(address.port),
            "STORM_DATABASE": address.database,
            "STORM_USER": address.user,
            "STORM_PASSWORD": address.password,
            "STORM_ENDPOINT": address.endpoint,
            **({"STORM_CA_FILE": str(address.ca_file)} if address.ca_file else {}),
        }
        if self.ours:
            variables |= {
                "PLUNGEPOOL_HOST": address.host,
                "PLUNGEPOOL_PORT": str(address.port),
                "PLUNGEPOOL_DATABASE": address.database,
                "PLUNGEPOOL_USER": address.user,
                "PLUNGEPOOL_AUTH": "password",
                "PLUNGEPOOL_PASSWORD": address.password,
                "PLUNGEPOOL_ENDPOINT": "direct" if address.endpoint == "direct" else "proxy",
                **({"PLUNGEPOOL_CA_FILE": str(address.ca_file)} if address.ca_file else {"PLUNGEPOOL_TLS": "disable"}),
            }
        return variables | dict(self.variables)


def _stock(name: str, title: str) -> Strategy:
    return Strategy(name=name, title=title, module="stock")


def _ours(pool: str) -> Strategy:
    variables = {"PLUNGEPOOL_POOL": pool}
    return Strategy(name=pool, title=f"Plungepool, {pool}", module="ours", variables=variables, ours=True)


STRATEGIES = {
    one.name: one
    for one in (
        _stock("per-invocation", "engine per invocation"),
        _stock("queue-pool", "QueuePool, 5 + 10"),
        _stock("null-pool", "NullPool"),
        _stock("null-retry-fast", "NullPool, retry 0.02-1 s"),
        _stock("null-retry-slow", "NullPool, retry 0.5-6 s"),
        _stock("keep-one", "one kept, retry 0.5-6 s"),
        Strategy(name="psycopg-pool", title="psycopg_pool", module="psycopg_pools", needs="psycopg_pool"),
        Strategy(name="serverless-postgres", title="serverless-postgres, Node", module="", under_node=True),
        _ours("tiny"),
        _ours("null"),
        _ours("adaptive"),
    )
}

# Without a choice: how functions come to their connections, and Plungepool beside them.
DEFAULT = ("per-invocation", "queue-pool", "null-pool", "null-retry-slow", "null", "adaptive")
