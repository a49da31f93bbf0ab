"""
Tickets at the server: how the law of the fleet is put to a database, and what it has granted to one connection.

A ticket is a session advisory lock, so that the database counts them, and has back at once the one of a session that
ended, however it did. It is asked for once, by one statement that goes with the log-in (`wire.connect`'s
`first_statement`): the limits, the probes and the lease in it are `fleet`'s, written as SQL. The lease is
`idle_session_timeout`: the server ends a connection that idles for longer, of a frozen environment, too. Where there is
none (before PostgreSQL 14) no ticket is given.

What this client sends can make a ticket void, and is overheard: nobody asks the server whether it is still held.

Source: PostgreSQL, "Explicit Locking", Advisory Locks; "Client Connection Defaults", idle_session_timeout.
"""

from __future__ import annotations

import re
from binascii import crc32
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from . import fleet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .wire import Connection

_LEASE = "idle_session_timeout"
_CHANCES = 2**32
# What a text holds that may make a ticket void, in lower case; and what it holds then for certain.
_WORDS = ("discard", "reset", "advisory_unlock", _LEASE)
_VOIDS = rf"\b(?:discard|reset)\b(?:\s|/\*.*?\*/|--[^\n\r]*[\n\r])*all\b|advisory_unlock|{_LEASE}"


class Grant(NamedTuple):
    """
    What a database has answered: how many tickets there are, None where it knows no leases; the lease, 0 where all that
    were tried are held; and which process of the server has answered.
    """

    tickets: int | None
    lease_s: float
    backend_pid: int


class Ticket:
    """The right to keep one connection, for as long as nothing was sent on it that gives the right back."""

    __slots__ = ("lease_s",)

    def __init__(self, lease_s: float) -> None:
        #: how long the server lets the connection idle; 0: the ticket is void
        self.lease_s = lease_s

    def __call__(self, statement: str, parameters: Iterable[Any]) -> None:
        """
        Overhear a statement: one that takes advisory locks back, or changes the lease, makes the ticket void.

        It is void before the statement is sent, whether it fails or not. A function of the server's that does the same
        is not heard.
        """
        if not self.lease_s or not isinstance(statement, str):
            return
        text = statement.lower()
        if any(word in text for word in _WORDS) and re.search(_VOIDS, text, re.DOTALL):
            self.lease_s = 0.0
        elif "set_config" in text:
            with suppress(TypeError):  # no parameters: the driver says so
                if any(isinstance(one, str) and one.lower() == _LEASE for one in parameters):
                    self.lease_s = 0.0


def lock_class(database: str, user: str, name: str) -> int:
    """
    Return the first key of the advisory locks of one fleet: negative, where nobody counts his own locks.

    Within a database; its name is in it all the same, since a pooler may lead several names to one.
    """
    return crc32("\0".join((database, user, name)).encode("utf-8", "surrogateescape")) % 2**31 - 2**31


def statement(lock_class: int, limit: int, chances: Sequence[float]) -> str | None:
    """
    Return the statement that asks for a ticket, and tells the session its lease; None where there are no tickets.

    Args: limit: how many connections the fleet may have; 0: as many as role, database and server allow, which the
        statement looks up. chances: three random numbers from 0 up to 1, in steps of 2**-32.
    Shape: lease (int, milliseconds, or NULL), tickets (int, or NULL where the server has no leases), the process that
        serves; one row.
    """
    if limit:
        tickets = fleet.tickets(limit)
        tried = [str(one) for one in fleet.probes(tickets, chances)]
        if not tried:
            return None
        missing = ["NULL::pg_catalog.int4"] * (fleet.PROBES - len(tried))
        source = f"SELECT {', '.join([str(tickets), *tried, *missing])}"
    else:
        source = _drawn(chances)
    # In quotes: without them the least of all numbers would be minus one that is too large.
    taken = f"pg_catalog.pg_try_advisory_lock('{lock_class}'::pg_catalog.int4"
    ways = " ".join(
        f"WHEN {taken}, {column}) THEN {round(fleet.lease_s(probe) * 1000)}" for probe, column in enumerate("abc")
    )
    # Nothing is asked for where there is no lease, and a shorter one of the role's own stays.
    return f"""
SELECT CASE WHEN lease IS NULL THEN NULL
    WHEN known OPERATOR(pg_catalog.<>) '0' AND known::pg_catalog.interval OPERATOR(pg_catalog.<)
        (lease::pg_catalog.text OPERATOR(pg_catalog.||) 'ms')::pg_catalog.interval THEN lease
    WHEN pg_catalog.set_config('{_LEASE}', lease::pg_catalog.text, false) IS NOT NULL THEN lease
    END, CASE WHEN known IS NOT NULL THEN k END, pg_catalog.pg_backend_pid()
FROM (SELECT k, known, CASE WHEN known IS NULL THEN NULL {ways} END AS lease FROM (
    SELECT *, pg_catalog.current_setting('{_LEASE}', true) AS known FROM ({source}) AS n(k, a, b, c)) AS s) AS t
"""


def _drawn(chances: Sequence[float]) -> str:
    """Return the SQL of `fleet.tickets` and `fleet.probes` over the limits that the server knows."""
    whole = [round(chance * _CHANCES) for chance in chances]

    def draw(number: int, of: str) -> str:
        product = f"({of})::pg_catalog.int8 OPERATOR(pg_catalog.*) {whole[number]}::pg_catalog.int8"
        return f"(({product}) OPERATOR(pg_catalog./) {_CHANCES})::pg_catalog.int4"

    def minus(number: int) -> str:
        return f"k OPERATOR(pg_catalog.-) {number}"

    def shifted(what: str, over: str) -> str:
        return f"{what} OPERATOR(pg_catalog.+) ({what} OPERATOR(pg_catalog.>=) {over})::pg_catalog.int4"

    def setting(name: str) -> str:
        return f"coalesce(pg_catalog.current_setting('{name}', true)::pg_catalog.int4, 0)"

    reserved = f"{setting('superuser_reserved_connections')} OPERATOR(pg_catalog.-) {setting('reserved_connections')}"
    limit = f"""greatest(0, least({setting("max_connections")} OPERATOR(pg_catalog.-) {reserved},
        (SELECT rolconnlimit FROM pg_catalog.pg_roles
            WHERE rolname OPERATOR(pg_catalog.=) session_user AND rolconnlimit OPERATOR(pg_catalog.>=) 0),
        (SELECT datconnlimit FROM pg_catalog.pg_database
            WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
            AND datconnlimit OPERATOR(pg_catalog.>=) 0)))"""
    share = round(fleet.SHARE * 100)
    tickets = f"({limit}) OPERATOR(pg_catalog.*) {share} OPERATOR(pg_catalog./) 100"
    # OFFSET 0: each step is worked out once.
    return f"""
SELECT k, CASE WHEN k OPERATOR(pg_catalog.>) 0 THEN a END, CASE WHEN k OPERATOR(pg_catalog.>) 1 THEN b END,
    CASE WHEN k OPERATOR(pg_catalog.>) 2 THEN {shifted("d", "greatest(a, b)")} END
FROM (SELECT k, a, b, {shifted("c", "least(a, b)")} AS d
    FROM (SELECT k, a, {shifted("b", "a")} AS b, c
        FROM (SELECT k, {draw(0, "k")} AS a, {draw(1, minus(1))} AS b, {draw(2, minus(2))} AS c
            FROM (SELECT {tickets} AS k OFFSET 0) AS u OFFSET 0) AS v OFFSET 0) AS w OFFSET 0) AS x
"""


def grant(rows: Sequence[Sequence[Any]]) -> Grant | None:
    """Return what the statement's rows say; None for what is no answer to it, whatever a server has sent. Pure."""
    if len(rows) != 1 or len(rows[0]) != 3:
        return None
    lease_ms, tickets, backend_pid = rows[0]
    if any(type(one) is not int for one in rows[0] if one is not None) or backend_pid is None:
        return None
    if lease_ms is not None and not (tickets and 0 < lease_ms <= fleet.lease_s(0) * 1000):
        return None
    return Grant(tickets, (lease_ms or 0) / 1000, backend_pid)


def lease_s(connection: Connection) -> float:
    """Return the lease of a connection that may be kept, in seconds; 0: it may not."""
    ticket = getattr(connection, "overhears", None)
    return ticket.lease_s if isinstance(ticket, Ticket) else 0.0


def may_keep(connection: Connection) -> bool:
    """Say whether a connection may be kept after the invocation."""
    return lease_s(connection) > 0
