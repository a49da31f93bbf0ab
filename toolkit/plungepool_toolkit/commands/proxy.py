"""`plungepool proxy`: run the stand-in for RDS Proxy until a signal, and say what would have pinned it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import threading
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from plungepool_toolkit.commands.console import interrupt_on
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.rds_proxy import Address, RdsProxy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plungepool_toolkit.rds_proxy import Counters, Database


def proxy(
    database: Annotated[
        str,
        typer.Option(help="The database, HOST:PORT, without TLS. Default: one is started for this run."),
    ] = "",
    user: Annotated[
        list[str] | None, typer.Option(help="A role, as NAME or NAME:PASSWORD; may be given several times.")
    ] = None,
    auth: Annotated[str, typer.Option(help="How clients authenticate: iam or scram.")] = "iam",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 selects a free one.")] = 6432,
    direct_tls: Annotated[
        bool, typer.Option(help="Whether clients may use direct TLS, as PostgreSQL 17 allows.")
    ] = True,
    connections: Annotated[int, typer.Option(help="The maximum number of connections to the database.")] = 5,
    borrow_timeout_s: Annotated[float, typer.Option(help="How long a transaction may wait for one of them.")] = 120.0,
    idle_client_timeout_s: Annotated[float, typer.Option(help="How long a client may stay idle.")] = 1800.0,
) -> None:
    """Run a stand-in for RDS Proxy until Ctrl-C (or SIGINT or SIGTERM), and report what would have pinned it."""
    if auth not in ("iam", "scram"):
        raise typer.BadParameter("iam or scram", param_hint="--auth")
    users: dict[str, str | None] = {}
    for one in user or ["app"]:
        name, _colon, password = one.partition(":")
        users[name] = password or (secrets.token_urlsafe(12) if auth == "scram" else None)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    interrupt_on(signal.SIGINT, signal.SIGTERM)  # both end the stand-in, with its report
    with contextlib.ExitStack() as stack:
        address = _address(database) if database else _start_database(stack, users)
        running = stack.enter_context(
            RdsProxy(
                address,
                auth="iam" if auth == "iam" else "scram",
                users=users,
                host=host,
                port=port,
                direct_tls=direct_tls,
                max_database_connections=connections,
                borrow_timeout_s=borrow_timeout_s,
                idle_client_timeout_s=idle_client_timeout_s,
            )
        )
        trust = "; its superuser is 'postgres', who needs no password from this machine" if not database else ""
        console.print(f"The database itself is at {address.host}:{address.port}, without TLS{trust}.")
        _introduce(running, users, console)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        _report(running.counters, connections, console)


def _address(database: str) -> Address:
    at, _colon, number = database.rpartition(":")
    if not at or not number.isdigit():
        raise typer.BadParameter("HOST:PORT", param_hint="--database")
    return Address(at, int(number))


def _start_database(stack: contextlib.ExitStack, users: Iterable[str]) -> Database:
    server = stack.enter_context(Postgres())
    for name in users:
        quoted = name.replace('"', '""')
        server.execute(f'CREATE ROLE "{quoted}" LOGIN; GRANT CREATE ON SCHEMA public TO "{quoted}"')
    return server


def _introduce(running: RdsProxy, users: Iterable[str], console: Console) -> None:
    """
    Print where the stand-in is, and the variables for each role to standard output, where a shell takes them from.
    """
    out = Console(highlight=False, soft_wrap=True)
    console.print(
        f"The stand-in is at {running.host}:{running.port} (process {os.getpid()}); Ctrl-C, SIGINT or SIGTERM ends it."
    )
    for name in users:
        console.print(f"[bold]{name}[/bold]: set these variables for a function")
        for variable, value in running.variables(name).items():
            out.print(f"export {variable}={shlex.quote(value)}", markup=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _report(counters: Counters, connections: int, console: Console) -> None:
    """Print what happened, what pinned first of all."""
    console.print(
        f"{_count(counters.accepted, 'client')}, {_count(counters.transactions, 'transaction')}; at most "
        f"{_count(counters.database_connections_peak, 'connection')} to the database at a time, of {connections} "
        "allowed"
    )
    for why, number in counters.pinned.most_common():
        console.print(f"[bold red]pinned[/bold red] {_count(number, 'client')}: {why}")
    if counters.pinned:
        console.print("(each client counts once, by the first statement that pinned it)")
    for why, number in counters.refused.most_common():
        console.print(f"[bold red]refused[/bold red] {_count(number, 'time')}: {why}")
    if counters.borrow_timeouts:
        console.print(
            f"[bold red]timed out[/bold red] {_count(counters.borrow_timeouts, 'time')} waiting for a connection"
        )
    if counters.unnamed_statement_outlived:
        console.print(
            f"[bold red]unsafe[/bold red] {_count(counters.unnamed_statement_outlived, 'time')}: an unnamed statement "
            "was used after the connection it was parsed on had been returned"
        )
    if not counters.pinned:
        console.print("nothing pinned")
