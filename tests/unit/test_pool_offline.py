"""The pool's rules, one by one, with connections that are none: no server, no waiting beyond a moment."""

from __future__ import annotations

import gc
import logging
import re
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from plungepool import ConnectionLeak, PoolExhausted, Settings, guard_invocation, invocation, pool
from plungepool.wire.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from plungepool.pool import BoundedPool


class Connection:
    """Stands for a driver's connection; knows what was done to it."""

    def __init__(self, number: int) -> None:
        self.number, self.gone, self.abandoned, self.stopped = number, False, False, False

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        self.gone = True

    def abandon(self, *, stop: bool = False) -> None:
        self.gone = self.abandoned = True
        self.stopped = stop


class Server:
    """Gives connections, numbered from 1, and says of those that were kept whether they may be handed out."""

    def __init__(self) -> None:
        self.given: list[Connection] = []
        self.asked: list[tuple[int, float]] = []
        self.dead: pool.Dead | None = None

    def connect(self, _record: Any) -> Connection:
        self.given.append(Connection(len(self.given) + 1))
        return self.given[-1]

    def examine(self, connection: Connection, opened_at: float) -> pool.Dead | None:
        self.asked.append((connection.number, opened_at))
        return self.dead


@pytest.fixture
def server() -> Server:
    """One that is reached and lives."""
    return Server()


@pytest.fixture
def make_pool(server: Server) -> Callable[..., BoundedPool]:
    """Build pools on it from settings of the test's choice."""

    def make(**changes: Any) -> BoundedPool:
        settings = {"host": "db.invalid", "user": "app", "password": "p", "tls": "disable", "checkout_timeout_s": 0.05}
        return pool.build_pool(Settings(**(settings | changes)), server.connect, server.examine)

    return make


def number(fairy: Any) -> int:
    """Return which of the server's connections was handed out."""
    return int(fairy.dbapi_connection.number)


def test_numbers_tell_what_is_out_and_what_is_kept(make_pool: Callable[..., BoundedPool]) -> None:
    """From a pool that was never used to one that was used twice at a time; a place that is kept is not in use."""
    two = make_pool(pool_size=2, checkout_timeout_s=1.5)
    assert (two.size(), two.timeout(), two.overflow()) == (2, 1.5, 0)
    assert (two.checkedout(), two.checkedin()) == (0, 0)
    assert two.status() == "2 connections at most: 0 in use, 0 kept"
    first, second = two.connect(), two.connect()
    assert (two.checkedout(), two.checkedin()) == (2, 0)
    first.close()
    assert two.status() == "2 connections at most: 1 in use, 1 kept"
    second.close()
    assert (two.checkedout(), two.checkedin()) == (0, 2)
    two.dispose()
    assert (two.checkedout(), two.checkedin()) == (0, 0)


def test_null_keeps_nothing(make_pool: Callable[..., BoundedPool], server: Server) -> None:
    """Each checkout has a connection of its own, closed at its return, and nobody is asked whether it lives."""
    null = make_pool(pool="null")
    for _ in range(2):
        null.connect().close()
    assert [one.gone for one in server.given] == [True, True]
    assert (server.asked, null.checkedin()) == ([], 0)


def test_last_used_is_used_next(make_pool: Callable[..., BoundedPool]) -> None:
    """What was returned last is the likeliest to live, in whichever place it is."""
    two = make_pool(pool_size=2)
    for first_to_return in (0, 1, 0):
        fairies = [two.connect(), two.connect()]
        numbers = [number(fairy) for fairy in fairies]
        fairies[first_to_return].close()
        time.sleep(0.002)  # the wall clock's own grain
        fairies[1 - first_to_return].close()
        fairy = two.connect()
        assert number(fairy) == numbers[1 - first_to_return]
        fairy.close()


def test_kept_connection_is_examined_with_the_moment_that_it_was_opened(
    make_pool: Callable[..., BoundedPool], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the wall clock, at each checkout; a new one is not examined."""
    begun = now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    one = make_pool()
    one.connect().close()
    assert server.asked == []
    now += 1234.5
    one.connect().close()
    one.connect().close()
    assert server.asked == [(1, begun), (1, begun)]


def test_kept_connection_that_is_dead_is_replaced(make_pool: Callable[..., BoundedPool], server: Server) -> None:
    """It is closed, and the checkout gets a new one."""
    one = make_pool()
    one.connect().close()
    server.dead = pool.Dead("it was struck by lightning")
    fairy = one.connect()
    assert (number(fairy), server.given[0].gone) == (2, True)
    fairy.close()
    assert one.checkedin() == 1


def test_dispose_closes_what_is_kept_at_once_and_what_is_out_at_its_return(
    make_pool: Callable[..., BoundedPool], server: Server
) -> None:
    """Whoever is at work is not disturbed; what comes back to a pool that was disposed of is not kept."""
    two = make_pool(pool_size=2)
    out, kept = two.connect(), two.connect()
    kept.close()
    two.dispose()
    assert [one.gone for one in server.given] == [False, True]
    out.close()
    assert [one.gone for one in server.given] == [True, True]
    two.connect().close()
    assert (number(two.connect()), len(server.given), server.given[2].gone) == (3, 3, False)


def test_pool_after_dispose_is_of_the_same_kind(make_pool: Callable[..., BoundedPool], server: Server) -> None:
    """
    What Engine.dispose() puts in its place has the same size, patience, policy, name and log, and nothing in it.
    """
    old = make_pool(pool_size=3, checkout_timeout_s=0.07)
    old.connect().close()
    new = old.recreate()
    assert (new.size(), new.timeout(), new.checkedin()) == (3, 0.07, 0)
    new.connect().close()
    new.connect().close()
    assert (len(server.given), [of for of, _ in server.asked]) == (2, [2])
    null = make_pool(pool="null").recreate()
    null.connect().close()
    assert null.checkedin() == 0


def test_pool_after_dispose_keeps_its_listeners_and_its_name(server: Server) -> None:
    """SQLAlchemy's own arguments go on, too."""
    from sqlalchemy import event

    old = pool.BoundedPool(
        server.connect, size=1, timeout_s=0.05, keep=lambda _: True, examine=server.examine,
        logging_name="orders", reset_on_return=None, echo=True,
    )  # fmt: skip
    seen: list[str] = []
    event.listen(old, "checkout", lambda *_: seen.append("checkout"))
    new = old.recreate()
    new.connect().close()
    assert seen == ["checkout"]
    assert (new.logging_name, new._reset_on_return, new.echo) == ("orders", old._reset_on_return, True)
    assert new._dialect is old._dialect


def test_pool_forgets_checkouts_that_are_over(make_pool: Callable[..., BoundedPool]) -> None:
    """An environment lives for hours: what is left of a thousand checkouts is as much as of three."""
    one = make_pool()

    def left() -> int:
        gc.collect()
        return sum(
            type(thing).__name__ == "_Checkout" and type(thing).__module__ == "plungepool.pool"
            for thing in gc.get_objects()
        )

    for _ in range(3):
        one.connect().close()
    before = left()
    for _ in range(1000):
        one.connect().close()
    assert left() <= before


def test_exhaustion_says_how_long_who_and_what_to_do(make_pool: Callable[..., BoundedPool]) -> None:
    """The thread that holds the only connection is told so, with the line, the seconds and the settings."""
    one = make_pool()
    held = one.connect()
    with pytest.raises(PoolExhausted) as caught:
        one.connect()
    message = str(caught.value)
    assert re.match(
        r"no connection became free within 0\.05 s \(PLUNGEPOOL_CHECKOUT_TIMEOUT_S\): the pool has 1 "
        r"\(PLUNGEPOOL_POOL_SIZE\), "
        r"taken at \S*test_pool_offline\.py:\d+ in test_exhaustion_says_how_long_who_and_what_to_do \(\d\.\d s ago\); "
        r"0 more checkouts were waiting\. This thread holds one of them itself",
        message,
    ), message
    assert message.endswith("or raise PLUNGEPOOL_POOL_SIZE")
    held.close()
    one.connect().close()


def test_exhaustion_names_each_place_once(make_pool: Callable[..., BoundedPool]) -> None:
    """Of several connections, with the line of the user's code for each, and how many were taken there."""
    three = make_pool(pool_size=3)

    def leak() -> Any:
        return three.connect()

    held = [leak(), three.connect(), leak()]
    with pytest.raises(PoolExhausted) as caught:
        three.connect()
    line = leak.__code__.co_firstlineno
    places = re.search(r"taken at (.*); 0 more", str(caught.value))
    assert places is not None
    leaked, other = places[1].split("; ")
    assert re.fullmatch(rf"\S+\.py:{line + 1} in leak \(2 of them, the first \d\.\d s ago\)", leaked)
    assert re.fullmatch(rf"\S+\.py:{line + 3} in test_exhaustion_names_each_place_once \(\d\.\d s ago\)", other)
    for one in held:
        one.close()


def test_exhaustion_inside_an_invocation_says_what_to_do(make_pool: Callable[..., BoundedPool]) -> None:
    """Under the guard nothing is left of an earlier invocation; without it, what was left is told, and the cure."""
    one = make_pool()
    left: list[Any] = []

    def handler(event: dict[str, Any], context: None) -> None:
        left.append(one.connect())

    cure = "guard_invocation returns what an earlier invocation left checked out, or raise PLUNGEPOOL_POOL_SIZE"
    handler({}, None)
    with pytest.raises(PoolExhausted, match=f"in handler .*{cure}$"):
        handler({}, None)
    left.pop().close()
    guarded = guard_invocation(handler)
    for _ in range(3):
        guarded({}, None)
    with guard_invocation(), pytest.raises(PoolExhausted) as caught:
        handler({}, None)
        handler({}, None)
    assert "in handler (" in str(caught.value)
    assert "guard_invocation" not in str(caught.value)
    left.clear()


def test_exhaustion_by_other_threads_tells_how_many_wait(make_pool: Callable[..., BoundedPool]) -> None:
    """
    Of two that wait for a connection of a third thread, the first is told of one more, and nobody of a fault of their
    own.
    """
    one = make_pool(checkout_timeout_s=1.0)
    held, messages = one.connect(), []

    def wait() -> None:
        with pytest.raises(PoolExhausted) as caught:
            one.connect()
        messages.append(str(caught.value))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for waiting, thread in enumerate(threads, 1):
        thread.start()
        while len(one._line) < waiting:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert "1 more checkout was waiting. Other threads are using them" in messages[0]
    # The first may still be about to say so when the second's time is over.
    assert re.search(r"[01] more checkouts? (was|were) waiting\. Other threads are using them", messages[1])
    held.close()


def test_connect_that_fails_frees_its_place(make_pool: Callable[..., BoundedPool], server: Server) -> None:
    """A server that is away costs the checkout and nothing else."""
    one = make_pool()
    give = server.connect

    def refuse(_record: Any) -> Connection:
        raise ConnectionRefusedError

    one._creator = refuse
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            one.connect()
    assert (one.checkedout(), one.checkedin()) == (0, 0)
    one._creator = give
    one.connect().close()
    assert one.checkedin() == 1


def test_holder_in_a_circle_is_collected_before_anybody_is_turned_away(
    make_pool: Callable[..., BoundedPool], server: Server
) -> None:
    """
    A connection that only a circle of garbage refers to is nobody's; the checkout that needs its place finds that.
    """
    one = make_pool(checkout_timeout_s=0.2)
    gc.collect()
    gc.disable()
    try:
        circle: dict[str, Any] = {"fairy": one.connect()}
        circle["self"] = circle
        del circle
        fairy = one.connect()
    finally:
        gc.enable()
    assert number(fairy) in (1, 2)
    assert one.checkedout() == 1
    fairy.close()


def test_waiter_gets_what_is_returned_before_later_ones(
    make_pool: Callable[..., BoundedPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First come, first served, and each is woken by the return, not by a look of its own."""
    monkeypatch.setattr(pool, "_LOOK_AGAIN_S", 300.0)
    one = make_pool(checkout_timeout_s=300)
    held, order = one.connect(), []

    def wait(name: str) -> None:
        fairy = one.connect()
        order.append(name)
        fairy.close()

    threads = []
    for name in ("first", "second", "third"):
        threads.append(threading.Thread(target=wait, args=(name,), daemon=True))
        threads[-1].start()
        while len(one._line) < len(threads):
            time.sleep(0.001)
    held.close()
    for thread in threads:
        thread.join(20)
    assert order == ["first", "second", "third"]
    assert (one.checkedout(), one.checkedin()) == (0, 1)


def test_waiter_is_woken_by_a_checkout_that_fails_and_by_one_that_is_taken_back(
    make_pool: Callable[..., BoundedPool], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a checkout rings for the next one."""
    monkeypatch.setattr(pool, "_LOOK_AGAIN_S", 300.0)
    one = make_pool(checkout_timeout_s=300)
    served: list[int] = []

    def wait() -> threading.Thread:
        thread = threading.Thread(target=lambda: served.append(number(one.connect())), daemon=True)
        thread.start()
        while not one._line:
            time.sleep(0.001)
        return thread

    waiting: list[threading.Thread] = []
    give = server.connect

    def refuse(_record: Any) -> Connection:
        waiting.append(wait())
        one._creator = give
        raise ConnectionRefusedError

    one._creator = refuse
    with pytest.raises(ConnectionRefusedError):
        one.connect()
    waiting[0].join(20)
    assert len(served) == 1
    with guard_invocation():
        held = one.connect()
        waiting.append(wait())
    waiting[1].join(20)
    assert len(served) == 2
    del held


class Jump:
    """A clock that stands still for its first readers, and then stands at a later moment."""

    def __init__(self, readers: int, after_s: float) -> None:
        self.readers, self.after_s = readers, after_s

    def __call__(self) -> float:
        self.readers -= 1
        return 1_700_000_000.0 + (0.0 if self.readers >= 0 else self.after_s)


def test_time_is_over_at_its_last_moment(
    make_pool: Callable[..., BoundedPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited for the whole time-out is told so, also where the invocation ends at that moment."""
    one = make_pool(checkout_timeout_s=0.5)
    held = one.connect()
    monkeypatch.setattr(invocation, "_end", 1_700_000_000.5)
    monkeypatch.setattr(time, "time", Jump(2, 0.5))
    with pytest.raises(PoolExhausted, match=r"^no connection became free within 0\.5 s"):
        one.connect()
    held.close()


def test_wait_that_the_invocation_ends_says_so_and_who_has_the_connection(
    make_pool: Callable[..., BoundedPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no time-out of the pool's, and nobody is told to wait longer."""
    one = make_pool(checkout_timeout_s=0.5)
    held = one.connect()
    monkeypatch.setattr(invocation, "_end", 1_700_000_000.258)
    monkeypatch.setattr(time, "time", Jump(2, 0.258))
    over = r"^the invocation had ended before a connection became free: no connection .* within 0\.26 s .*taken at"
    with pytest.raises(DeadlineExceeded, match=over):
        one.connect()
    held.close()


def test_whole_collection_is_for_the_late(
    make_pool: Callable[..., BoundedPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another thread may return its connection nothing is collected; when half of the time is over, all is."""
    one = make_pool(checkout_timeout_s=0.2)
    done, held = threading.Event(), []

    def hold() -> None:
        held.append(one.connect())
        done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    while not held:
        time.sleep(0.001)
    collected: list[tuple[int, float]] = []
    begun = time.time()
    monkeypatch.setattr(gc, "collect", lambda generation=2: collected.append((generation, time.time() - begun)))
    with pytest.raises(PoolExhausted):
        one.connect()
    monkeypatch.undo()
    done.set()
    thread.join()
    assert [generation for generation, _ in collected] == [1, 2]
    assert min(after_s for _, after_s in collected) >= 0.09


def test_garbage_is_looked_for_where_this_thread_or_one_that_is_gone_took_a_connection(
    make_pool: Callable[..., BoundedPool],
) -> None:
    """The young where any place is such a one, all of it where each is, and in any case when it is late."""
    two = make_pool(pool_size=2)
    done, held = threading.Event(), []

    def worth() -> tuple[bool, bool]:
        return two._is_worth_collecting(1, late=False), two._is_worth_collecting(2, late=False)

    def hold() -> None:
        held.append(two.connect())
        done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    while not held:
        time.sleep(0.001)
    assert worth() == (False, False)
    assert two._is_worth_collecting(1, late=True)
    mine = two.connect()
    assert worth() == (True, False)
    assert two._is_worth_collecting(2, late=True)
    done.set()
    thread.join()
    assert worth() == (True, True)
    mine.close()
    assert worth() == (True, True)


def test_connection_is_closed_where_a_checkout_ends_before_it_has_the_record(
    make_pool: Callable[..., BoundedPool], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the last one had parked is not lost between the two, whoever refers to its record."""
    one = make_pool()
    fairy = one.connect()
    record = fairy._connection_record
    fairy.close()

    def strike(_record: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool.weakref, "ref", strike)
    with pytest.raises(KeyboardInterrupt):
        one.connect()
    monkeypatch.undo()
    assert (server.given[0].abandoned, server.given[0].stopped) == (True, False)
    assert record is not None
    again = one.connect()
    assert (number(again), one.checkedout()) == (2, 1)


def test_what_was_taken_back_is_nobodys_any_more(
    make_pool: Callable[..., BoundedPool], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of the invocation closes it, says where it was taken, and its holder finds nothing in its record."""
    from sqlalchemy import event

    caplog.set_level(logging.WARNING, "plungepool")
    one = make_pool()
    returned: list[Any] = []
    event.listen(one, "checkin", lambda connection, _record: returned.append(connection))
    with guard_invocation():
        held = one.connect()
        record: Any = held._connection_record
    assert (server.given[0].abandoned, server.given[0].stopped, record.dbapi_connection) == (True, True, None)
    assert re.search(r"test_pool_offline\.py:\d+ in test_what_was_taken_back_is_nobodys", caplog.text), caplog.text
    held.close()
    del held
    gc.collect()
    assert returned == []
    assert (one.checkedout(), one.checkedin()) == (0, 0)


def test_pool_after_dispose_keeps_what_it_says_and_when_it_ends(
    make_pool: Callable[..., BoundedPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of its variables, whether a leak is an error, and that the invocation's end bounds nothing."""
    first = make_pool(prefix="A_", leaks="raise", deadline="off")
    for one in (first, first.recreate()):
        monkeypatch.setattr(invocation, "_end", 1.0)
        held = one.connect()
        exhausted = r"\(A_PLUNGEPOOL_CHECKOUT_TIMEOUT_S\): the pool has 1 \(A_PLUNGEPOOL_POOL_SIZE\)"
        with pytest.raises(PoolExhausted, match=exhausted):
            one.connect()
        held.close()
        monkeypatch.undo()
        with pytest.raises(ConnectionLeak), guard_invocation():
            held = one.connect()
    for other in (make_pool(), make_pool().recreate()):
        monkeypatch.setattr(invocation, "_end", 1.0)
        with pytest.raises(DeadlineExceeded, match="ended before a connection was requested"):
            other.connect()
        monkeypatch.undo()


def test_code_of_no_module_can_take_a_connection(make_pool: Callable[..., BoundedPool]) -> None:
    """What `exec` runs has the names that it was given, and none of its own."""
    names: dict[str, Any] = {"connect": make_pool().connect}
    exec("fairy = connect()", names)
    assert number(names["fairy"]) == 1


class Bell:
    """A lock that nobody releases; it knows how long it was waited for."""

    waits: ClassVar[list[float]] = []

    def acquire(self, timeout: float = -1) -> bool:
        self.waits.append(round(timeout, 6))
        return False


@pytest.mark.parametrize(("timeout_s", "waits_s"), [(0.05, [-1, 0.05]), (7.0, [-1, 0.1])])
def test_wait_is_no_longer_than_its_time_and_a_look_of_its_own(
    make_pool: Callable[..., BoundedPool], monkeypatch: pytest.MonkeyPatch, timeout_s: float, waits_s: list[float]
) -> None:
    """Whatever rings or does not: what is left of the time-out, a tenth of a second at most."""
    one = make_pool(checkout_timeout_s=timeout_s)
    held = one.connect()
    monkeypatch.setattr(Bell, "waits", [])
    monkeypatch.setattr(pool, "threading", SimpleNamespace(Lock=Bell, get_ident=threading.get_ident))
    monkeypatch.setattr(one, "_is_worth_collecting", lambda *_, **__: False)
    monkeypatch.setattr(time, "time", Jump(2, timeout_s))
    with pytest.raises(PoolExhausted):
        one.connect()
    assert Bell.waits == waits_s
    held.close()


def test_nobody_looks_at_stacks_while_there_is_a_place(
    make_pool: Callable[..., BoundedPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is for who would else have to wait."""
    looked: list[Any] = []
    monkeypatch.setattr(pool, "_is_lost", lambda checkout: bool(looked.append(checkout)))
    two = make_pool(pool_size=2)
    held = [two.connect(), two.connect()]
    assert looked == []
    with pytest.raises(PoolExhausted):
        two.connect()
    assert len(looked) >= 2
    for one in held:
        one.close()


def test_waiter_who_is_gone_keeps_nobody_waiting(make_pool: Callable[..., BoundedPool]) -> None:
    """One that no frame is at work with leaves the line when somebody looks closely; in an empty one any is first."""
    one, mine = make_pool(), pool._Checkout([])
    assert one._is_first(mine, look_closely=False)
    one._line.extend([pool._Checkout([]), mine])
    assert not one._is_first(mine, look_closely=False)
    assert one._is_first(mine, look_closely=True)
    assert list(one._line) == [mine]
    one._line.clear()


def test_closed_connection_is_not_preferred(make_pool: Callable[..., BoundedPool]) -> None:
    """What was returned last, and has no connection any more, comes after one that has."""
    two = make_pool(pool_size=2)
    first, second = two.connect(), two.connect()
    first.close()
    time.sleep(0.002)  # the wall clock's own grain
    second.invalidate()
    second.close()
    assert number(two.connect()) == 1


@pytest.mark.parametrize("end", ["gone", "invalidated"])
def test_torn_connection_holds_no_place(make_pool: Callable[..., BoundedPool], server: Server, end: str) -> None:
    """Whoever still refers to it: the next checkout has the place."""
    one = make_pool()
    held = one.connect()
    if end == "gone":
        server.given[0].gone = True
    else:
        held.invalidate()
    again = one.connect()
    assert (number(again), one.checkedout()) == (2, 1)
    del held
    gc.collect()
    assert (one.checkedout(), server.given[1].gone) == (1, False)


def test_record_that_is_returned_twice_is_closed(make_pool: Callable[..., BoundedPool], server: Server) -> None:
    """It is kept once, and nobody gets it a second time."""
    one = make_pool()
    fairy = one.connect()
    record: Any = fairy._connection_record
    fairy.close()
    one._do_return_conn(record)
    assert (server.given[0].gone, one.checkedout(), one.checkedin()) == (True, 0, 0)
    assert number(one.connect()) == 2


def test_who_has_a_connection_is_known_while_he_has_it(make_pool: Callable[..., BoundedPool]) -> None:
    """And of this pool's only."""
    from sqlalchemy.pool import QueuePool

    two = make_pool(pool_size=2)
    two._places[0].last().fate["heir"] = pool._Checkout([])  # another thread's, before it has a record
    held = two.connect()
    connection = held.dbapi_connection
    where = pool.taken_at(two, connection)
    assert re.fullmatch(
        r".*test_pool_offline\.py:\d+ in test_who_has_a_connection_is_known_while_he_has_it", where or ""
    )
    assert pool.taken_at(two, object()) is None
    assert pool.taken_at(QueuePool(lambda: None), connection) is None  # type: ignore[arg-type,return-value]
    held.close()
    assert pool.taken_at(two, connection) is None


def test_words_where_nothing_is_known() -> None:
    """Where it was taken, by whom and how many wait."""
    assert pool._where([]) == "an unknown place"
    said = pool._why_exhausted([], "1 s", "2", 2)
    assert (
        "the pool has 2, taken at places that have returned them; 2 more checkouts were waiting. Other threads are "
        "using them" in said
    )


def test_distribution_in_the_working_folder_is_a_library(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path without a folder is of the working folder."""
    (tmp_path / "framework-1.0.dist-info").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pool._is_library("framework.py", "framework")
    assert not pool._is_library("app.py", "app")


@pytest.mark.parametrize(
    ("path", "module", "library"),
    [
        (pool.os.__file__, "os", True),
        ("/opt/python/framework/core.py", "framework.core", True),
        ("/var/runtime/bootstrap.py", "bootstrap", True),
        ("<string>", "__main__", True),
        ("/home/me/.venv/lib/python3.13/site-packages/x/y.py", "x.y", True),
        ("/usr/lib/python3/dist-packages/x/y.py", "x.y", True),
        ("/nowhere/at/all/app.py", "app", False),
        ("/app.py", "", False),
    ],
)
def test_users_line_is_told_from_a_librarys(path: str, module: str, library: bool) -> None:
    """
    Python's own, the layer's, the runtime's and what is installed are not the user's; a file that is not there is.
    """
    assert pool._is_library(path, module) is library


def test_distribution_beside_the_handler_is_a_library(tmp_path: Any) -> None:
    """`sam build` puts what requirements.txt names beside the handler; only there a .dist-info folder tells."""
    (tmp_path / "Framework-1.0.dist-info").mkdir()
    (tmp_path / "framework" / "inner").mkdir(parents=True)
    assert pool._is_library(str(tmp_path / "framework" / "inner" / "core.py"), "framework.inner.core")
    assert pool._is_library(str(tmp_path / "framework" / "core.py"), "framework.core")
    assert not pool._is_library(str(tmp_path / "app.py"), "app")
    assert not pool._is_library(str(tmp_path / "other" / "core.py"), "other.core")


def test_caller_is_the_users_line() -> None:
    """The nearest frame outside of SQLAlchemy and this package."""
    where = pool.caller()
    assert re.fullmatch(r".*test_pool_offline\.py:\d+ in test_caller_is_the_users_line", where), where
