"""
The message layer of the stand-in for RDS Proxy, without a socket: each case whole, byte by byte, and with trailing
data.
"""

from __future__ import annotations

import contextlib
import struct
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stand_in import GSS_REQUEST, SSL_REQUEST, extended, message, password, query, startup

from plungepool_toolkit.rds_proxy import messages
from plungepool_toolkit.rds_proxy.messages import Conversation, Inbox, Malformed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def taken(
    pieces: Iterable[bytes], take: Callable[[Inbox], bytes | None] = Inbox.take
) -> tuple[list[bytes], bytes | str]:
    """Return the messages that an inbox gives when it is looked at after each piece, and what is left or went wrong."""
    inbox, got = Inbox(), []
    for piece in pieces:
        inbox.feed(piece)
        try:
            while (one := take(inbox)) is not None:
                got.append(one)
        except ConnectionError as error:
            return got, str(error)
    left, first = len(inbox), inbox.peek()
    rest = inbox.take_all()
    assert (len(rest), [*rest][:1]) == (left, [] if first is None else [first])
    assert (len(inbox), inbox.peek()) == (0, None)
    return got, rest


def each_way(flight: bytes, take: Callable[[Inbox], bytes | None] = Inbox.take) -> tuple[list[bytes], bytes | str]:
    """Feed a flight whole and byte by byte, and return what comes of it, which is the same."""
    whole = taken([flight], take)
    assert taken((flight[at : at + 1] for at in range(len(flight))), take) == whole
    return whole


KINDS = st.binary(min_size=1, max_size=1)
MESSAGES = st.builds(messages.pack, KINDS, st.binary(max_size=40))
# The beginning of a message, and never all of it.
TRAILING = st.builds(lambda one, cut: one[: len(one) - 1 - cut % len(one)], MESSAGES, st.integers(0, 50))


@given(st.lists(MESSAGES, max_size=8), TRAILING)
@settings(deadline=None)
@example([], b"")
@example([messages.pack(b"S")], b"Q\0\0\0")
def test_messages_come_out_as_they_went_in(sent: list[bytes], trailing: bytes) -> None:
    """Whole ones in their order; what has only begun stays, until the rest of it comes."""
    assert each_way(b"".join(sent) + trailing) == (sent, trailing)


@given(
    st.lists(MESSAGES, max_size=4),
    KINDS,
    st.integers(-(2**31), 3) | st.integers(2**30, 2**31 - 1),
    st.binary(max_size=9),
)
@settings(deadline=None)
@example([], b"Q", 3, b"")
@example([], b"Q", 2**30, b"")
def test_what_cannot_be_a_message_is_told_at_its_length(
    sent: list[bytes], kind: bytes, length: int, rest: bytes
) -> None:
    """All that came before is given; nothing of what follows is taken for a message."""
    assert each_way(b"".join(sent) + kind + struct.pack("!i", length) + rest) == (sent, "invalid message length")


@pytest.mark.parametrize(("length", "good"), [(3, False), (4, True), (100, True), (101, False)])
def test_lengths_are_good_up_to_their_bounds(length: int, good: bool) -> None:
    """The shortest message has no body; the longest is what the inbox was told."""
    inbox = Inbox()
    inbox.longest = 100
    begin, rest = b"Q" + struct.pack("!i", length), b"x" * (length - 4)
    inbox.feed(begin)
    if good:
        inbox.feed(rest + b"next")
        assert inbox.take() == begin + rest
        assert inbox.take_all() == b"next"
    else:
        with pytest.raises(Malformed):
            inbox.take()


def test_an_empty_body_is_a_whole_message() -> None:
    """Four bytes of length and nothing behind them."""
    assert each_way(b"S\0\0\0\4") == ([b"S\0\0\0\4"], b"")


def test_unless_told_otherwise_an_inbox_takes_what_postgresql_takes() -> None:
    """One byte less than a gigabyte: the limit of PQ_LARGE_MESSAGE_LIMIT."""
    assert taken([b"Q" + struct.pack("!i", 2**30 - 1)]) == ([], b"Q" + struct.pack("!i", 2**30 - 1))


@pytest.mark.parametrize(
    ("arrived", "complete"),
    [
        (b"", False),
        (b"Q", False),
        (b"Q\0\0\0\5", False),
        (b"Q\0\0\0\4", True),
        (b"Q\0\0\0\5x", True),
        (b"Q\0\0\0\3", True),
    ],
)
def test_an_inbox_knows_whether_it_must_read_on(arrived: bytes, complete: bool) -> None:
    """Not if a message is there, nor if none can come any more; and looking takes nothing."""
    inbox = Inbox()
    inbox.feed(arrived)
    assert inbox.complete() is complete
    assert inbox.take_all() == arrived


STARTUPS = st.sampled_from([SSL_REQUEST, GSS_REQUEST, startup(), startup("é"), messages.pack_startup("a", "b")])


@given(st.lists(STARTUPS, max_size=4), st.binary(max_size=3) | st.just(startup()[:-1]))
@settings(deadline=None)
def test_start_up_messages_come_out_as_they_went_in(sent: list[bytes], trailing: bytes) -> None:
    """They have a length and no kind."""
    assert each_way(b"".join(sent) + trailing, Inbox.take_startup) == (sent, trailing)


@pytest.mark.parametrize(
    ("length", "good"), [(-1, False), (0, False), (7, False), (8, True), (10_000, True), (10_001, False)]
)
def test_a_start_up_message_has_a_length_that_one_can_have(length: int, good: bool) -> None:
    """PostgreSQL's bounds; what is longer is refused before it has come."""
    rest = b"\0" * (length - 4)
    assert each_way(struct.pack("!i", length) + rest, Inbox.take_startup) == (
        ([struct.pack("!i", length) + rest], b"") if good else ([], "no start-up message of PostgreSQL's protocol")
    )


def test_a_password_sent_ahead_waits_behind_the_start_up_message() -> None:
    """The one inbox gives both kinds of messages, each when it is asked for it."""
    for flight in ([startup() + password() + query("SELECT 1")], [bytes([byte]) for byte in startup() + password()]):
        inbox = Inbox()
        for piece in flight:
            inbox.feed(piece)
        assert inbox.take_startup() == startup()
        assert messages.password(inbox.take() or b"") == b"hush"


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(TEXTS, TEXTS)
def test_what_is_packed_is_read_again(one: str, other: str) -> None:
    """Errors, parameters, start-up messages and authentication, of any text."""
    error = messages.pack_error("28P01", one)
    assert [messages.error_field(error, name) for name in (b"S", b"V", b"C", b"M", b"X")] == [
        "FATAL", "FATAL", "28P01", one, "",
    ]  # fmt: skip
    assert messages.parameter(messages.pack(messages.PARAMETER_STATUS, messages.pack_strings(one, other))) == (
        one,
        other,
    )
    begin = messages.pack_startup(one, other)
    assert (messages.startup_code(begin), messages.startup_fields(begin)) == (196608, {"user": one, "database": other})
    request = messages.pack_authentication(11, one.encode())
    assert (request[:1], messages.authentication(request)) == (b"R", (11, one.encode()))
    assert each_way(error + request) == ([error, request], b"")


@given(TEXTS.map(str.encode), st.binary(max_size=8))
def test_a_password_has_one_nul_at_its_end(text: bytes, rest: bytes) -> None:
    """PostgreSQL compares the length of the packet with that of the string."""
    assert messages.password(message("p", text + b"\0")) == text
    if b"\0" in rest:
        with pytest.raises(Malformed, match="password packet size"):
            messages.password(message("p", text + b"\0" + rest))
    with pytest.raises(Malformed, match="password packet size"):
        messages.password(message("p", text))


@given(TEXTS.map(str.encode), st.binary(max_size=20), st.integers(-3, 25))
def test_a_sasl_response_has_the_length_that_it_says(mechanism: bytes, first: bytes, length: int) -> None:
    """What is no such response is told from one of another mechanism."""
    body = mechanism + b"\0" + struct.pack("!i", length) + first
    expected = (mechanism, first) if length == len(first) else None
    assert messages.sasl_initial_response(message("p", body)) == expected
    assert messages.sasl_initial_response(message("p", mechanism)) is None
    assert messages.sasl_initial_response(message("p", mechanism + b"\0\0\0\0")) is None


def test_a_parse_is_read() -> None:
    """Its name and its text, also where it breaks off."""
    assert messages.parsed(message("P", b"name\0SELECT 1\0\0\0")) == (b"name", b"SELECT 1")
    assert messages.parsed(message("P", b"\0SELECT 1\0\0\1\0\0\0\x17")) == (b"", b"SELECT 1")
    assert messages.parsed(message("P", b"name")) == (b"name", b"")
    assert messages.parsed(message("P")) == (b"", b"")


@pytest.mark.parametrize(
    ("one", "uses"),
    [
        (message("B", b"\0\0\0\0\0\0\0\0"), True),
        (message("B", b"portal\0\0\0\0\0\0\0\0"), True),
        (message("B", b"\0named\0\0\0\0\0\0\0"), False),
        (message("B", b"portal\0named\0\0\0\0\0\0\0"), False),
        (message("B", b"portal"), False),
        (message("B"), False),
        (message("D", b"S\0"), True),
        (message("D", b"Snamed\0"), False),
        (message("D", b"P\0"), False),
        (message("D", b"S"), False),
        (message("C", b"S\0"), False),
        (message("P", b"\0\0\0\0"), False),
    ],
)
def test_who_uses_the_unnamed_statement(one: bytes, uses: bool) -> None:
    """A Bind of whatever portal, and a Describe of the statement itself; nothing else does."""
    assert messages.uses_unnamed_statement(one) is uses


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_no_body_whatever_breaks_a_reader(body: bytes) -> None:
    """What a reader is told to raise, and nothing else."""
    for kind in b"QPBDSpE":
        one = messages.pack(bytes([kind]), body)
        messages.parsed(one)
        messages.uses_unnamed_statement(one)
        messages.sasl_initial_response(one)
        messages.error_field(one, b"C")
        Conversation().sent(one)
        Conversation().answered(one)
    try:
        assert messages.password(messages.pack(b"p", body)) == body[:-1]
    except Malformed:
        assert body.find(b"\0") != len(body) - 1 or not body
    begin = struct.pack("!ii", len(body) + 8, 196608) + body
    with contextlib.suppress(UnicodeDecodeError):
        assert set(messages.startup_fields(begin)) <= set(body.decode().split("\0"))


class Server:
    """
    As much of a PostgreSQL as it takes to answer: whole batches, errors, transactions, COPY; after the manual's
    "Message Flow".
    """

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self._copying = self._simple = self._skipping = False
        self._status = b"I"

    def take(self, one: bytes) -> None:
        kind, body = one[:1], one[5:]
        if self._copying:
            # Flush and Sync are ignored here.
            if kind == b"d" and body == b"bad\n":
                self._copying = False
                self._end(b"E")
            elif kind in b"cf":
                self._copying = False
                self._end(b"C" if kind == b"c" else b"E")
        elif kind in b"dcf":
            pass  # the rest of a COPY that has failed
        elif kind == b"Q":
            self._simple, self._skipping = True, False
            self._run(body)
        elif kind == b"S":
            self._skipping = False
            self._ready()
        elif not self._skipping:
            self._simple = False
            if kind == b"E":
                self._run(self._parsed)
            elif kind == b"P":
                self._parsed = body[1:]
                self._say(b"1")

    def _run(self, sql: bytes) -> None:
        """Run the first statement of a text; the others come after it."""
        one, _semicolon, self._rest = sql.partition(b";")
        if one.startswith(b"COPY"):
            self._copying = True
            self._say(b"G")
            return
        if one.startswith(b"BEGIN"):
            self._status = b"T"
        elif one.startswith(b"COMMIT"):
            self._status = b"I"
        self._end(b"E" if one.startswith(b"FAIL") else b"C")

    def _end(self, kind: bytes) -> None:
        self._say(kind)
        if kind == b"E":
            self._skipping = not self._simple
            self._status = b"E" if self._status != b"I" else b"I"
        elif self._rest:
            self._run(self._rest)
            return
        if self._simple:
            self._ready()

    def _ready(self) -> None:
        self._say(b"Z", self._status)

    def _say(self, kind: bytes, body: bytes = b"") -> None:
        self.replies.append(messages.pack(kind, body))


def copied(sql: str, *, simple: bool, early_sync: bool, ended_by: str, rows: int, bad: bool = False) -> list[bytes]:
    """A COPY by one of the protocols, its data sent along; the first row may be one that the server does not take."""
    data = (
        [message("d", b"bad\n")] * bad
        + [message("d", b"1\n")] * rows
        + [message(ended_by, b"why\0" if ended_by == "f" else b"")]
    )
    if simple:
        return [query(sql), *data]
    begin = [
        message("P", b"\0" + sql.encode() + b"\0\0\0"),
        message("B", b"\0\0\0\0\0\0\0\0"),
        message("E", b"\0\0\0\0\0"),
    ]
    return [*begin, *([message("S")] if early_sync else []), *data, message("S")]


def batch(sql: str, simple: bool) -> list[bytes]:
    return [query(sql)] if simple else list(taken([extended(sql)])[0])


def copied_twice(rows: int, ended_by: str, last: str) -> list[bytes]:
    """Two COPYs of one simple query, each with its data, and perhaps something else behind them."""
    first, *data = copied(f"COPY;COPY{last}", simple=True, early_sync=False, ended_by=ended_by, rows=rows)
    return [first, *data, *data]


STATEMENTS = st.sampled_from(["SELECT", "FAIL", "BEGIN", "COMMIT"])
BATCHES = st.one_of(
    st.builds(batch, STATEMENTS, st.booleans()),
    # An error in the middle of a batch: the rest of it is skipped.
    st.builds(lambda one, other: batch(one, False)[:-1] + batch(other, False), STATEMENTS, STATEMENTS),
    st.builds(
        copied,
        # The second is refused: the server never asks for the data.
        st.sampled_from(["COPY", "FAIL"]),
        simple=st.booleans(),
        early_sync=st.booleans(),
        ended_by=st.sampled_from(["c", "f"]),
        rows=st.integers(0, 3),
        bad=st.booleans(),
    ),
    st.builds(copied_twice, st.integers(0, 2), st.sampled_from(["c", "f"]), st.sampled_from(["", ";SELECT", ";FAIL"])),
)


class Eager:
    """Lets a client say all that it may before it hears anything."""

    def random(self) -> float:
        return 1.0


class Alternating:
    """Lets a client hear something, then say something."""

    def __init__(self) -> None:
        self._last = 1.0

    def random(self) -> float:
        self._last = 1.0 - self._last
        return self._last


def could_be_lent(conversation: Conversation) -> bool:
    """Whether the database connection could go to somebody else now: no batch and no transaction is open."""
    return conversation.status == messages.IDLE and not conversation._started


def each_copy(test: Any) -> Any:
    """Add every kind of COPY with a statement behind it, by a client that hears first and by one that speaks first."""
    for sql, simple, early_sync, ended_by, bad in product(("COPY", "FAIL"), (0, 1), (0, 1), "cf", (0, 1)):
        copy = copied(sql, simple=bool(simple), early_sync=bool(early_sync), ended_by=ended_by, rows=2, bad=bool(bad))
        for random in (None, Eager()):
            test = example([copy, batch("SELECT", False)], random)(test)
    return test


@given(st.lists(BATCHES, min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=300)
@each_copy
# A client that hears of the error gives up its data, and asks for the next thing at once.
@example([[query("COPY"), message("d", b"bad\n")], batch("SELECT", True)], Alternating())
@example([copied_twice(1, "c", ""), batch("SELECT", False)], None)
@example(
    [
        batch("BEGIN", True),
        copied("FAIL", simple=True, early_sync=False, ended_by="c", rows=1),
        copied("COPY", simple=True, early_sync=False, ended_by="c", rows=1),
    ],
    None,
)
def test_a_conversation_that_waits_its_turn_has_the_answers_of_one_that_does_not(
    batches: list[list[bytes]], random: object
) -> None:
    """
    In whatever order both sides are heard: nobody waits for ever, nothing is said that a server by itself would not
    say, and the database connection could be lent between the batches and not within one.
    """
    flight = [one for sent in batches for one in sent]
    alone = Server()
    for one in flight:
        alone.take(one)

    server, conversation = Server(), Conversation()
    heard: list[bytes] = []
    to_send, unheard, lent = list(flight), 0, True
    while to_send or unheard < len(server.replies):
        may_hear, may_send = unheard < len(server.replies), bool(to_send) and conversation.may_send
        assert may_hear or may_send, "both sides wait for each other"
        if may_send and not (may_hear and (random is None or random.random() < 0.5)):  # type: ignore[attr-defined]
            one = to_send.pop(0)
            if lent and one[:1] in b"dcf":
                continue  # as a session does: nobody is there who wants it
            lent = False
            conversation.sent(one)
            assert not could_be_lent(conversation) or one[:1] in b"dcf"
            server.take(one)
        else:
            one = server.replies[unheard]
            unheard += 1
            heard.append(one)
            conversation.answered(one)
            if one[:1] == messages.READY_FOR_QUERY and conversation.status == messages.IDLE:
                assert could_be_lent(conversation)
                assert unheard == len(server.replies), "lent while something is on its way to it or from it"
                lent = True
    assert heard == alone.replies
    assert not conversation.awaiting
    assert not conversation.ended


def test_a_server_s_last_word_is_noted() -> None:
    """FATAL and PANIC end a session, an ERROR does not; an error without a severity is nobody's last word."""
    for severity, last in ((b"FATAL", True), (b"PANIC", True), (b"ERROR", False), (b"", False)):
        conversation = Conversation()
        conversation.answered(messages.pack(b"E", b"SFATAL\0V" + severity + b"\0C57P01\0\0"))
        assert conversation.ended is last
