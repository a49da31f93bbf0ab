"""What an invocation does with its database: directly, or by a proxy. Pure."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from plungepool import fleet

from .clock import NEVER, Clock, Places, Steps, Turn, Work

if TYPE_CHECKING:
    import random

    from .model import Database, Function
    from .run import Tally
    from .strategies import Strategy

_FULL, _LATE, _OVER, _NOT_BORROWED = "53300", "ConnectTimeout", "DeadlineExceeded", "BorrowTimeout"


class Connection:
    """A connection to the database."""

    __slots__ = ("idle_since", "is_open", "lease_s", "ticket", "watched")

    def __init__(self) -> None:
        self.is_open, self.watched = True, False
        #: None: in use.
        self.idle_since: float | None = None
        self.lease_s = NEVER
        self.ticket: int | None = None


class Environment:
    """An environment, and what it has of connections."""

    __slots__ = ("at_proxy", "gone", "idle_since", "kept", "left", "used_at", "watched")

    def __init__(self) -> None:
        self.kept: Connection | None = None
        self.left: list[Connection] = []
        self.at_proxy = self.gone = self.watched = False
        #: None: busy.
        self.idle_since: float | None = None
        #: When it gave its last connection back.
        self.used_at = -NEVER


class _Endpoint:
    def __init__(
        self,
        strategy: Strategy,
        database: Database,
        function: Function,
        clock: Clock,
        tally: Tally,
        chance: random.Random,
    ) -> None:
        self._strategy, self._database, self._function = strategy, database, function
        self._clock, self._tally, self._chance = clock, tally, chance

    def _handle(self, ends: float) -> Steps[bool]:
        service_s = self._function.service_s
        left_s = ends - self._clock.now
        if min(service_s, left_s) > 0:
            yield min(service_s, left_s)
        return service_s <= left_s


class Direct(_Endpoint):
    """The database itself: connections that are refused, kept and closed."""

    def __init__(
        self,
        strategy: Strategy,
        database: Database,
        function: Function,
        clock: Clock,
        tally: Tally,
        chance: random.Random,
    ) -> None:
        super().__init__(strategy, database, function, clock, tally, chance)
        self._tickets = fleet.tickets(database.limit) if strategy.keeping == "tickets" else 0
        self._taken: set[int] = set()

    def leave(self, environment: Environment) -> None:
        """Close all that an environment has: it is no more."""
        for connection in (*environment.left, environment.kept):
            if connection is not None:
                self._close(connection)
        environment.kept = None
        environment.left.clear()

    def invoke(self, environment: Environment, until: float, ends: float) -> Steps[str | None]:
        """Do what an invocation does, until it has to stop by itself and until Lambda ends it; return why it failed."""
        strategy, function = self._strategy, self._function
        connection, environment.kept = environment.kept, None
        if connection is not None and strategy.keeping == "leave":
            environment.left.append(connection)
            connection = None
        if connection is None or not connection.is_open:
            connection, failure = yield from self._connect(until)
            if connection is None:
                return failure
            if strategy.keeping == "tickets" and fleet.comes_back(self._clock.now - environment.used_at):
                yield from self._ask_for_ticket(connection, until)
        connection.idle_since = None
        self._tally.note(self._clock.now, in_use=1)
        # Of a client that is gone the server hears when it has an answer for it.
        left = None if strategy.ends_by_deadline else partial(self._lose, connection)
        in_time = yield Work(self._clock.processor, self._database.costs.statement_s, until, left)
        if not in_time and left is not None:
            environment.gone = True
            return _OVER
        # The model's invocation has one checkout: what is not kept beyond it is closed when that is over.
        passes = strategy.keeping == "close" or (strategy.keeping == "tickets" and connection.ticket is None)
        early = in_time and passes and not function.in_transaction
        if early:
            environment.used_at = self._clock.now
        if early:
            self._lose(connection)
        if in_time and not (yield from self._handle(ends)):
            environment.gone = True
            if not early:
                self._lose(connection)
            return _OVER
        if not early:
            self._put_away(environment, connection)
        return None if in_time else _OVER

    def _connect(self, until: float) -> Steps[tuple[Connection | None, str]]:
        """Return a connection, or why there is none."""
        clock, processor, database = self._clock, self._clock.processor, self._database
        costs, law, pause = database.costs, self._strategy.law, None
        while True:
            tried = clock.now
            by = min(until, tried + self._function.connect_timeout_s)
            failure = _LATE
            if (yield Work(processor, costs.refused_s, by, _nothing)):
                if self._tally.open < database.limit:
                    connection = Connection()
                    self._tally.note(self._clock.now, opened=1)
                    close = partial(self._close, connection)
                    if (yield Work(processor, costs.connect_s - costs.refused_s, by, close)):
                        self._tally.connected(clock.now)
                        return connection, ""
                else:
                    self._tally.refused += 1
                    failure = _FULL
            if law is None:
                return None, failure
            pause = pause or law(self._chance)
            pause_s = pause(clock.now - tried, until - clock.now)
            if pause_s is None:
                return None, failure
            yield pause_s

    def _ask_for_ticket(self, connection: Connection, until: float) -> Steps[None]:
        chances = [self._chance.random() for _ in range(3)]
        tried = 0
        for tried, ticket in enumerate(fleet.probes(self._tickets, chances)):
            if ticket not in self._taken:
                self._taken.add(ticket)
                connection.ticket, connection.lease_s = ticket, fleet.lease_s(tried)
                break
        yield Work(self._clock.processor, self._database.costs.ticket_s * (tried + 1), until)

    def _put_away(self, environment: Environment, connection: Connection) -> None:
        """Do with a connection at the end of an invocation what the strategy does."""
        keeping = self._strategy.keeping
        environment.used_at = self._clock.now
        if keeping == "close" or (keeping == "tickets" and connection.ticket is None):
            self._lose(connection)
            return
        self._tally.note(self._clock.now, in_use=-1)
        environment.kept = connection
        now = connection.idle_since = self._clock.now
        if keeping != "tickets" and self._function.idle_s is not None:
            connection.lease_s = self._function.idle_s
        if connection.lease_s < NEVER and not connection.watched:
            connection.watched = True
            self._clock.at(now + connection.lease_s, self._end_lease, connection)

    def _end_lease(self, connection: Connection) -> None:
        if not connection.is_open:
            return
        now = self._clock.now
        ends = (now if connection.idle_since is None else connection.idle_since) + connection.lease_s
        if ends > now:
            self._clock.at(ends, self._end_lease, connection)
        else:
            self._close(connection)

    def _lose(self, connection: Connection) -> None:
        """Close a connection that is in use."""
        self._tally.note(self._clock.now, in_use=-1)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection.is_open:
            connection.is_open = False
            if connection.ticket is not None:
                self._taken.discard(connection.ticket)
            self._tally.note(self._clock.now, opened=-1)


class Proxy(_Endpoint):
    """A transaction pooler: whoever comes is let in, and waits there for one of its connections."""

    def __init__(
        self,
        strategy: Strategy,
        database: Database,
        function: Function,
        clock: Clock,
        tally: Tally,
        chance: random.Random,
    ) -> None:
        super().__init__(strategy, database, function, clock, tally, chance)
        self._places, self._servers_idle = Places(min(database.limit, database.servers or database.limit)), 0

    def leave(self, environment: Environment) -> None:
        """An environment is no more."""
        environment.at_proxy = False

    def invoke(self, environment: Environment, until: float, ends: float) -> Steps[str | None]:
        """Do what an invocation does, as `Direct.invoke`."""
        clock, database, strategy = self._clock, self._database, self._strategy
        if not environment.at_proxy:
            yield database.proxy_connect_s
        environment.at_proxy = strategy.keeping in ("keep", "tickets")
        borrow_by = min(until, clock.now + database.borrow_timeout_s)
        if not (yield Turn(self._places, borrow_by)):
            if borrow_by < until:
                return _NOT_BORROWED
            environment.gone = not strategy.ends_by_deadline
            return _OVER
        if self._servers_idle:
            self._servers_idle -= 1
        else:
            self._tally.connected(clock.now)
            self._tally.note(self._clock.now, opened=1)
            if not (yield Work(self._clock.processor, database.costs.connect_s, until, self._give_back)):
                return _OVER
        self._tally.note(self._clock.now, in_use=1)
        left = None if strategy.ends_by_deadline else self._end_at_proxy
        in_time = yield Work(self._clock.processor, database.costs.statement_s, until, left)
        if not in_time and left is not None:
            environment.gone = True
            return _OVER
        if in_time:
            yield database.proxy_adds_s
        if in_time and self._function.in_transaction:
            in_time = yield from self._handle(ends)
            environment.gone = not in_time
        self._end_at_proxy()
        if in_time and not self._function.in_transaction:
            in_time = yield from self._handle(ends)
            environment.gone = not in_time
        return None if in_time else _OVER

    def _end_at_proxy(self) -> None:
        self._tally.note(self._clock.now, in_use=-1)
        self._give_back()

    def _give_back(self) -> None:
        self._servers_idle += 1
        self._places.give_back(self._clock)


def _nothing() -> None:
    """A connect that nobody waits for any more ends."""
