"""Hears every session of this process and every client of a proxy, and notes what was asked from which line."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import plungepool
from plungepool import indexes
from plungepool.wire import session as wire_session
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.round_trips.client import Client, Statement
from plungepool_toolkit.round_trips.exchanges import Count, Exchange, Repeated, advice, cost, read, repeated, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import Any, Protocol, Self

    class OnServer(Protocol):
        """A database of a server, as the fixture `database` is one."""

        server: Postgres

    class Reader(Protocol):
        """
        Who reads each statement: before it runs, with what executes SQL in the same session; within: a transaction.
        """

        def __call__(
            self, statement: Statement, place: str, run: Callable[[str], list[Any]] | None, *, within: bool | None
        ) -> None: ...


_LIBRARIES = (
    os.path.dirname(os.__file__) + os.sep,
    str(Path(plungepool.__file__).parent) + os.sep,
    str(Path(__file__).parents[1]) + os.sep,
    "<",
)
_WAITS = ("threading.py", "queue.py", "_base.py", "thread.py")
_UNKNOWN = "an unknown place"


class RoundTrips:
    """
    What the fixture `round_trips` gives: the exchanges of the test so far, those of its fixtures left out.

    Sessions of Plungepool in this process are heard as they are; those of any other driver, and of other processes, go
    through a proxy: `through`. Threads: all of this process are heard.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        #: the exchanges so far, in the order of their ends
        self.exchanges: list[Exchange] = []
        #: how many sessions were opened
        self.connects = 0
        #: who reads statements
        self.reader: Reader | None = None
        self._proxies: list[ChaosProxy] = []
        # Statements that a proxy has carried: read later, since nothing can be asked in their sessions.
        self._carried: list[tuple[Statement, str, Postgres | None, str, str]] = []
        self._stack = contextlib.ExitStack()
        self._thread = threading.get_ident()
        # Threads in which the reader asks: what they send meanwhile is no test's.
        self._asking: set[int] = set()

    @property
    def count(self) -> int:
        """How many round trips the test has waited for so far, connects left out."""
        return Count.of(self.exchanges, self.connects).round_trips

    def clear(self) -> None:
        """Forget what was counted so far."""
        self.exchanges, self.connects = [], 0

    def repeated(self, more_than: int = 4) -> list[Repeated]:
        """Return each statement that one line has sent more often than that: N+1."""
        return repeated(self.exchanges, more_than)

    def report(self) -> str:
        """Return each exchange so far, with its line, and what all of them cost."""
        return "\n".join(
            [*table(self.exchanges), *advice(self.repeated()), f"  {self.count} round trips take {cost(self.count)}"]
        )

    @contextlib.contextmanager
    def at_most(self, limit: int) -> Iterator[None]:
        """Fail with AssertionError if the block waits for more round trips, connects left out."""
        start = len(self.exchanges)
        yield
        within = self.exchanges[start:]
        count = Count.of(within, 0).round_trips
        if count > limit:
            lines = [*table(within), *advice(repeated(within, 4)), f"  {count} round trips take {cost(count)}"]
            raise AssertionError(f"{count} round trips, and the block may make {limit}:\n" + "\n".join(lines))

    def through(self, server: Postgres | OnServer | str, port: int = 0, *, latency_ms: float = 0.0) -> ChaosProxy:
        """
        Return a proxy to a server, to connect to in its place; it is closed when the test ends.

        Args: server: the fixture `postgres` or `database`, or a host, with its `port`. The driver has to connect
            without TLS (sslmode=disable) for its statements to be read; they are counted all the same.
        """
        known = server if isinstance(server, Postgres) else None if isinstance(server, str) else server.server
        host, port = (known.host, known.port) if known is not None else (str(server), port)
        proxy = ChaosProxy(host, port, latency_ms=latency_ms, listener=_Clients(self, known))
        self._proxies.append(self._stack.enter_context(proxy))
        return proxy

    def close(self) -> None:
        """Close what `through` has opened."""
        self._stack.close()

    def __enter__(self) -> Self:
        """Count from here on."""
        self.clear()
        self._before, wire_session.listener = wire_session.listener, self._hear
        return self

    def __exit__(self, *_: object) -> None:
        wire_session.listener = self._before

    def _hear(self, session: Any, reply: Any) -> None:
        thread = threading.get_ident()
        if thread in self._asking or any(session.port == proxy.port for proxy in self._proxies):
            return
        place = self._place(sys._getframe(1))
        if reply is None:
            self.connects += 1
            self.exchanges.append(Exchange("connect", place=place, round_trips=session.opening_round_trips))
            return
        client = Client(started=True)
        for part in reply.sent:
            client.feed(part)
        said = client.take()
        if self.reader is not None:
            within = None if session.in_failed_transaction else session.in_transaction
            self._asking.add(thread)
            try:
                for one in said.statements:
                    self.reader(one, place, functools.partial(_ask, session), within=within)
            finally:
                self._asking.discard(thread)
        self.exchanges.append(read(said, place))

    def read_carried(self) -> None:
        """Read what the proxies have carried, in sessions of the same role and database."""
        carried, self._carried = self._carried, []
        if self.reader is None:
            return
        for statement, place, server, user, database in carried:
            if server is None:
                self.reader(statement, place, None, within=None)
                continue
            try:
                with server.session(user=user, database=database) as run:
                    self.reader(statement, place, run, within=False)
            except OSError:  # the server is gone
                self.reader(statement, place, None, within=None)

    def _place(self, frame: FrameType | None) -> str:
        while frame is not None:
            if _is_users(frame.f_code.co_filename):
                path = frame.f_code.co_filename
                with contextlib.suppress(ValueError):
                    path = str(Path(path).relative_to(self._root))
                return f"{path}:{frame.f_lineno} in {frame.f_code.co_name}"
            frame = frame.f_back
        return _UNKNOWN

    def _place_of_client(self) -> str:
        """Where the program waits for what a proxy carries: its threads stand still as long."""
        frames = sys._current_frames()
        frames.pop(threading.get_ident(), None)
        mine = frames.pop(self._thread, None)
        if mine is not None and os.path.basename(mine.f_code.co_filename) not in _WAITS:
            return self._place(mine)
        others = {
            place
            for frame in frames.values()
            if os.path.basename(frame.f_code.co_filename) not in _WAITS and (place := self._place(frame)) != _UNKNOWN
        }
        if len(others) == 1:
            return others.pop()
        return "one of several threads" if others else self._place(mine)


def _ask(session: Any, sql: str) -> list[Any]:
    """Execute SQL in a session, in a transaction with the settings of its own ones: a policy may ask for them."""
    rows: list[Any] = session._query(sql).rows
    settings = getattr(session, "transaction_settings", {}) if sql.startswith("BEGIN") else {}
    if settings:
        calls = (
            f"pg_catalog.set_config({indexes.literal(name)}, {indexes.literal(value)}, true)"
            for name, value in settings.items()
        )
        session._query(f"SELECT {', '.join(calls)}")
    return rows


class _Clients:
    """The clients of one proxy."""

    def __init__(self, round_trips: RoundTrips, server: Postgres | None) -> None:
        self._round_trips, self._server = round_trips, server
        self._clients: dict[int, Client] = {}
        self._connects: dict[int, Exchange] = {}

    def connected(self, link: int) -> None:
        self._clients[link] = Client()
        self._connects[link] = connect = Exchange("connect", place=self._round_trips._place_of_client())
        self._round_trips.exchanges.append(connect)

    def sent(self, link: int, data: bytes) -> None:
        self._clients[link].feed(data)

    def answered(self, link: int) -> None:
        round_trips, client = self._round_trips, self._clients[link]
        said = client.take()
        place = round_trips._place_of_client()
        exchange = read(said, place)
        round_trips.connects += said.starts
        if exchange.kind == "connect":
            self._go_on(link, place)
        else:
            round_trips.exchanges.append(exchange)
        if round_trips.reader is not None:
            round_trips._carried += [
                (one, place, self._server, client.user, client.database) for one in said.statements
            ]

    def _go_on(self, link: int, place: str) -> None:
        """Add a round trip to the connect that is under way."""
        exchanges, before = self._round_trips.exchanges, self._connects[link]
        after = Exchange("connect", place=place, round_trips=before.round_trips + 1)
        for index, one in enumerate(exchanges):
            if one is before:
                exchanges[index] = after
                break
        else:
            exchanges.append(after)  # it had begun before these were counted
        self._connects[link] = after


@functools.lru_cache(maxsize=1024)
def _is_users(path: str) -> bool:
    return not path.startswith(_LIBRARIES) and "/site-packages/" not in path and "/dist-packages/" not in path
