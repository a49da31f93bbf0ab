"""Who gets which database connection in the stand-in for RDS Proxy: its pool by itself, without a database."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import pytest

from plungepool_toolkit.rds_proxy import messages
from plungepool_toolkit.rds_proxy.peer import Peer
from plungepool_toolkit.rds_proxy.upstream import BorrowTimeout, DatabaseRefused, Pool, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

ONE, OTHER = ("one", "postgres"), ("other", "postgres")


class Transport(asyncio.Transport):
    """What a server's connection is written to; only its end matters here."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


class Database:
    """Opens servers, or raises what it is told to, one after the other."""

    def __init__(self, limit: int = 1) -> None:
        self.pool = Pool(limit, self.open)
        self.opened: list[Server] = []
        self.trouble: list[BaseException] = []

    async def open(self, key: tuple[str, str]) -> Server:
        await asyncio.sleep(0)
        if self.trouble:
            raise self.trouble.pop(0)
        peer = Peer()
        peer.connection_made(Transport())
        self.opened.append(Server(peer, key))
        return self.opened[-1]

    async def borrow(self, key: tuple[str, str] = ONE, avoid: Server | None = None, timeout_s: float = 20.0) -> Server:
        return await self.pool.borrow(key, avoid, timeout_s)

    def waiting(self, key: tuple[str, str] = ONE) -> asyncio.Task[Server]:
        return asyncio.ensure_future(self.borrow(key))


def on_a_loop(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Run a test that is a coroutine."""

    def run() -> None:
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@on_a_loop
async def test_a_connection_is_used_again() -> None:
    """As long as it lives, by its own user."""
    database = Database(2)
    first = await database.borrow()
    database.pool.give_back(first)
    assert await database.borrow() is first
    second = await database.borrow(OTHER)
    assert (second is first, second.key, database.pool.peak) == (False, OTHER, 2)


@on_a_loop
async def test_another_one_is_taken_if_there_is_one() -> None:
    """A client that counts on the same connection is found out; where there is one only, it gets that."""
    database = Database(2)
    first, second = await database.borrow(), await database.borrow()
    for server in (first, second):
        database.pool.give_back(server)
    assert await database.borrow(avoid=first) is second
    assert await database.borrow(avoid=first) is first


@on_a_loop
async def test_one_that_has_been_told_to_end_is_not_lent() -> None:
    """The server's last words may be there before the end of the connection is."""
    database = Database()
    first = await database.borrow()
    database.pool.give_back(first)
    first.peer.data_received(messages.pack_error("57P01", "terminating connection"))
    second = await database.borrow()
    assert second is not first
    assert first.peer.transport.is_closing()
    assert database.pool.servers == {second}
    assert database.pool.lost == 0


@on_a_loop
async def test_what_arrives_unasked_is_noted() -> None:
    """A setting that the server has changed by itself is what the next client is told; a notice is nothing."""
    database = Database()
    server = await database.borrow()
    database.pool.give_back(server)
    server.peer.data_received(messages.pack(b"N") + messages.pack(b"S", messages.pack_strings("TimeZone", "UTC")))
    assert await database.borrow() is server
    assert server.parameters == {"TimeZone": "UTC"}


@on_a_loop
async def test_one_that_is_closed_is_not_taken_back() -> None:
    """Its slot is free at once."""
    database = Database()
    first = await database.borrow()
    waiting = database.waiting()
    await turns()
    first.peer.eof_received()
    database.pool.give_back(first)
    second = await waiting
    assert (second is first, database.pool.servers) == (False, {second})


@on_a_loop
async def test_one_that_is_lost_makes_room() -> None:
    """Whether it was lent or idle, it is counted, and whoever waits may open another."""
    database = Database()
    first = await database.borrow()
    waiting = database.waiting()
    await turns()
    first.peer.connection_lost(None)
    second = await waiting
    assert (database.pool.lost, database.pool.servers) == (1, {second})
    database.pool.give_back(second)
    second.peer.connection_lost(None)
    assert (database.pool.lost, database.pool.servers) == (2, set())
    assert await database.borrow() not in (first, second)
    assert database.pool.peak == 1


@on_a_loop
async def test_who_waits_is_served_in_turn() -> None:
    """First come, first served; the others go on waiting."""
    database = Database()
    server = await database.borrow()
    queue = [database.waiting() for _ in range(3)]
    await turns()
    for number in range(3):
        database.pool.give_back(server)
        await turns()
        assert [one.done() for one in queue] == [True] * (number + 1) + [False] * (2 - number)
        assert queue[number].result() is server


@on_a_loop
async def test_who_waits_gets_no_connection_of_another_user() -> None:
    """It is replaced."""
    database = Database()
    first = await database.borrow()
    waiting = database.waiting(OTHER)
    await turns()
    database.pool.give_back(first)
    second = await waiting
    assert (second.key, first.peer.transport.is_closing(), database.pool.servers) == (OTHER, True, {second})


@on_a_loop
async def test_an_idle_one_makes_way_for_another_user() -> None:
    """The limit is for all users together."""
    database = Database()
    first = await database.borrow()
    database.pool.give_back(first)
    second = await database.borrow(OTHER)
    assert (first.peer.transport.is_closing(), database.pool.servers, database.pool.lost) == (True, {second}, 0)


@pytest.mark.parametrize("key", [ONE, OTHER])
def test_who_is_gone_before_it_could_take_its_turn_leaves_it_to_the_next(key: tuple[str, str]) -> None:
    """What was given to a client that is cut off in the same moment, a connection or a slot, is not lost."""

    async def scenario() -> None:
        database = Database()
        server = await database.borrow()
        waiting = database.waiting(key)
        await turns()
        database.pool.give_back(server)
        waiting.cancel()
        await turns()
        assert waiting.cancelled()
        after = await database.borrow(key, timeout_s=1)
        assert (after is server) == (key == ONE)
        assert database.pool.servers == {after}

    asyncio.run(scenario())


@on_a_loop
async def test_who_stopped_waiting_is_passed_over() -> None:
    """By a time-out, or cut off: the next one gets what comes."""
    database = Database()
    server = await database.borrow()
    gone = database.waiting()
    await turns()
    with pytest.raises(BorrowTimeout):
        await database.borrow(timeout_s=0.01)
    gone.cancel()
    last = database.waiting()
    await turns()
    database.pool.give_back(server)
    assert await last is server
    with pytest.raises(BorrowTimeout):
        await database.borrow(timeout_s=0.01)
    again = database.waiting(OTHER)
    await turns()
    server.peer.connection_lost(None)
    assert (await again).key == OTHER


@pytest.mark.parametrize("code", ["57P03", "57P01", "57P02", "53300"])
def test_a_database_that_will_be_back_is_waited_for(code: str) -> None:
    """Starting up, shutting down, crashed, full; and nobody listens there."""

    async def scenario() -> None:
        database = Database()
        database.trouble = [DatabaseRefused(messages.pack_error(code, "not now")), ConnectionRefusedError()]
        assert await database.borrow() in database.pool.servers

    asyncio.run(scenario())


@on_a_loop
async def test_a_refusal_is_passed_on_at_once_and_the_slot_is_free() -> None:
    """Waiting would not help."""
    database = Database()
    database.trouble = [DatabaseRefused(messages.pack_error("3D000", "no such database")), ValueError("a fault")]
    with pytest.raises(DatabaseRefused, match="no such database"):
        await database.borrow()
    with pytest.raises(ValueError, match="a fault"):
        await database.borrow()
    assert await database.borrow(timeout_s=1) in database.pool.servers


@on_a_loop
async def test_a_database_that_does_not_come_back_is_a_time_out() -> None:
    """And the slot is free afterwards."""
    database = Database()
    database.trouble = [ConnectionRefusedError()] * 1000
    with pytest.raises(BorrowTimeout):
        await asyncio.wait_for(database.borrow(timeout_s=0.12), 20)
    database.trouble = []
    assert await database.borrow(timeout_s=1) in database.pool.servers


@on_a_loop
async def test_who_leaves_while_a_connection_is_opened_frees_the_slot() -> None:
    """For whoever waits, too."""
    database = Database()
    opening = database.waiting()
    waiting = database.waiting()
    await asyncio.sleep(0)
    opening.cancel()
    assert await asyncio.wait_for(waiting, 20) in database.pool.servers


@on_a_loop
async def test_a_failover_cuts_all_of_them() -> None:
    """Lent and idle ones; each is counted as lost, and there is room for new ones."""
    database = Database(2)
    lent, idle = await database.borrow(), await database.borrow()
    database.pool.give_back(idle)
    database.pool.cut()
    assert [one.peer.transport.is_closing() for one in (lent, idle)] == [True, True]
    assert (database.pool.lost, database.pool.servers) == (2, set())
    assert await database.borrow() not in (lent, idle)
    assert database.pool.peak == 2


@on_a_loop
async def test_who_gave_a_connection_back_is_not_woken_by_it() -> None:
    """What arrives then is for the next one."""
    database = Database()
    server = await database.borrow()
    mine = server.peer.wake = asyncio.Event()
    database.pool.give_back(server)
    server.peer.data_received(b"")
    assert not mine.is_set()


@on_a_loop
async def test_what_is_said_beside_the_login_is_no_end_of_it() -> None:
    """A notice or a parameter before the request for a password, and between two steps: the password is sent."""
    for asks, answer in ((struct.pack("!i", 3), b"hush\0"), (struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0", None)):
        database = Database()
        server = await database.borrow()
        written: list[bytes] = []
        server.peer.transport.write = written.append  # type: ignore[method-assign,assignment]
        parameter = messages.pack(b"S", messages.pack_strings("TimeZone", "UTC"))
        for one in (messages.pack(b"N"), parameter, messages.pack(b"R", asks), messages.pack(b"N")):
            server.peer.data_received(one)
        login = asyncio.ensure_future(server._authenticate("one", "hush"))
        await turns()
        assert [one[:1] for one in written] == [b"p"]
        assert answer is None or written == [messages.pack(b"p", answer)]
        assert not login.done()
        server.peer.data_received(messages.pack(b"R", struct.pack("!i", 0)))
        await login
        assert server.parameters == {"TimeZone": "UTC"}


@on_a_loop
async def test_database_that_wants_a_password_that_nobody_knows_is_told_of() -> None:
    """In an error that the client gets."""
    server = await Database().borrow()
    server.peer.data_received(messages.pack(b"R", struct.pack("!i", 3)))
    with pytest.raises(DatabaseRefused, match="The proxy has no password for one"):
        await server._authenticate("one", None)
