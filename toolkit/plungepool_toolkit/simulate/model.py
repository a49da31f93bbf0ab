"""What a fleet and its database are, in numbers: what a run is made of. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Sharing = Literal["shared", "queue"]
Endpoint = Literal["direct", "proxy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """
    What the server computes, in seconds of CPU.

    Source: measured on PostgreSQL 15 on 2026-11-22: 9.2 ms for an invocation with a connect, 1.1 ms on a kept
    connection, 4 to 5 ms for a refusal, 0.15 ms for a ticket in a fresh backend.
    """

    #: A connect until it is refused.
    refused_s: float = 0.0045
    #: A connect that is taken, from its beginning to its end.
    connect_s: float = 0.0081
    #: All statements of an invocation.
    statement_s: float = 0.0011
    #: One ticket that is tried.
    ticket_s: float = 0.00015
    #: What an invocation computes beside the server, where functions run on the server's own machine: in a storm.
    client_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """The server, and what stands before it."""

    #: Connections that the fleet's role can have.
    limit: int = 26
    cores: float = 2.0
    sharing: Sharing = "shared"
    #: The part of the CPU that each process beyond the cores takes away from all, where they are shared.
    overhead: float = 0.0
    costs: Costs = field(default_factory=Costs)
    endpoint: Endpoint = "direct"
    #: Connections to the database that a proxy has; None: as many as there are.
    servers: int | None = None
    #: A connect to a proxy, and what it adds to a transaction: a few milliseconds.
    proxy_connect_s: float = 0.005
    proxy_adds_s: float = 0.002
    #: How long a proxy lets a client wait for a connection.
    borrow_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """What an invocation does, and Lambda with it."""

    #: The handler's own time, and whether its transaction is open meanwhile.
    service_s: float = 0.02
    in_transaction: bool = True
    #: Until Lambda ends the invocation, and what is left of that for its answer.
    deadline_s: float = 15.0
    margin_s: float = 0.5
    #: A cold start, before the invocation begins.
    init_s: float = 0.0
    #: One attempt to connect.
    connect_timeout_s: float = 5.0
    #: How long an idle connection is kept by who keeps; None: as long as its environment.
    idle_s: float | None = None
    #: How long Lambda keeps an idle environment.
    reap_s: float = 300.0
