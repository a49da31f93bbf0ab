"""
The protocol without a socket: each case whole, in pieces, byte by byte, and with more behind it; and damaged, at
random.

What needs a socket (hanging up, time-outs, memory) is held by the server that lies, in test_fuzzed_server.py.
PLUNGEPOOL_EXAMPLES=20000 looks further than `make test`, and at random.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import struct
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

import pytest
from damage import CHANGE, INTRUDER, apply_changes
from fuzz_server import PARAMETERS, data_row, error, message, ready, row_description
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plungepool import wire
from plungepool.wire import protocol as wire_protocol
from plungepool.wire.authentication import Authentication
from plungepool.wire.errors import EndOfStream, Secret
from plungepool.wire.messages import SYNC, bind, parse
from plungepool.wire.protocol import IDLE, IN_TRANSACTION, SEVERAL, Protocol, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

PROFILE = settings(
    max_examples=int(os.environ.get("PLUNGEPOOL_EXAMPLES", "500")),
    derandomize="PLUNGEPOOL_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
WHOLE = 1 << 30
SIZES = (WHOLE, 1, 2, 7, 64)
NOTICE = message(b"N", b"SNOTICE\0C00000\0Mhello\0\0")
PARSED, BOUND = message(b"1"), message(b"2")


class Starved(Exception):
    """More is wanted than the server has said: on a socket, waiting until the deadline."""


def drive(protocol: Protocol, steps: Iterable[Any], data: bytes, size: int) -> tuple[list[Any], bytes]:
    """Feed what a server said in pieces of `size`; return what is sent in between, and what was not asked for."""
    sent, place = [], 0
    for step in steps:
        if isinstance(step, int):
            assert step > 0
            if place >= len(data):
                raise Starved
            protocol.chunk = data[place : place + size]
            place += size
        else:
            sent.append(step.value if isinstance(step, Secret) else step)
    return sent, data[place:]


def read(
    data: bytes,
    size: int = WHOLE,
    *,
    before: int = 0,
    times: int = 1,
    runs: Sequence[int] | None = None,
    stream: Any = None,
    protocol: Protocol | None = None,
    sent: Sequence[bytes] = (),
) -> tuple[Reply, Protocol, list[Any], bytes]:
    """Read one reply; as `drive`."""
    protocol = protocol or Protocol()
    reply = Reply(sent, stream)
    reply.runs = runs if runs is not None else () if times == SEVERAL else (times,) * bool(times)
    said, rest = drive(protocol, protocol.read_reply(reply, before, times), data, size)
    return reply, protocol, said, rest


def rows_of(*values: str) -> bytes:
    return b"".join(data_row(value.encode()) for value in values)


def done(tag: str) -> bytes:
    return message(b"C", tag.encode() + b"\0")


ONE = PARSED + BOUND + row_description("token") + rows_of("q-1") + done("SELECT 1") + ready()
BEGUN = PARSED + BOUND + done("BEGIN")
# A reply, how it is read, and what comes of it: rows, count, tag, status, SQLSTATE.
CASES: dict[str, tuple[bytes, dict[str, Any], tuple[Any, ...]]] = {
    "one row": (ONE, {}, ([("q-1",)], 1, b"SELECT 1", IDLE, None)),
    "BEGIN before it": (
        BEGUN + ONE[:-1] + b"T",
        {"before": 1},
        ([("q-1",)], 1, b"SELECT 1", IN_TRANSACTION, None),
    ),
    "no rows": (PARSED + BOUND + message(b"n") + done("UPDATE 3") + ready(), {}, ([], 3, b"UPDATE 3", IDLE, None)),
    "executemany": (
        PARSED + BOUND + message(b"n") + done("INSERT 0 1") + (BOUND + done("INSERT 0 1")) * 2 + ready(),
        {"times": 3},
        ([], 3, b"INSERT 0 1", IDLE, None),
    ),
    "executemany with rows, parsed twice": (
        (PARSED + BOUND + row_description("token") + rows_of("a") + done("INSERT 0 1")) * 2 + ready(),
        {"times": 2, "runs": (1, 1)},
        ([("a",), ("a",)], 2, b"INSERT 0 1", IDLE, None),
    ),
    "a ping": (ready(), {"times": 0}, ([], -1, b"", IDLE, None)),
    "an empty statement": (message(b"I") + ready(), {"times": SEVERAL}, ([], -1, b"", IDLE, None)),
    "several statements": (
        (row_description("token") + rows_of("q-1", "q-2") + done("SELECT 2")) * 2 + done("SET") + ready(),
        {"times": SEVERAL},
        ([("q-1",), ("q-2",)], 2, b"SET", IDLE, None),
    ),
    "rows without columns": (
        PARSED + BOUND + row_description() + data_row() * 2 + done("SELECT 2") + ready(),
        {},
        ([(), ()], 2, b"SELECT 2", IDLE, None),
    ),
    "NULL": (
        PARSED
        + BOUND
        + row_description("token")
        + message(b"D", struct.pack("!hi", 1, -1))
        + done("SELECT 1")
        + ready(),
        {},
        ([(None,)], 1, b"SELECT 1", IDLE, None),
    ),
    "an error": (PARSED + error("22012") + ready(b"E"), {}, ([], -1, b"", b"E"[0], "22012")),
    "an error after rows": (
        ONE[: ONE.index(b"C")] + error("22012") + ready(),
        {},
        ([("q-1",)], -1, b"", IDLE, "22012"),
    ),
    "more than is converted at once": (
        PARSED + BOUND + row_description("token") + rows_of("x") * 10_000 + done("SELECT 10000") + ready(),
        {},
        ([("x",)] * 10_000, 10_000, b"SELECT 10000", IDLE, None),
    ),
    "a value longer than a read": (
        PARSED + BOUND + row_description("token") + rows_of("y" * 100_000) + done("SELECT 1") + ready(),
        {},
        ([("y" * 100_000,)], 1, b"SELECT 1", IDLE, None),
    ),
}


def outcome(reply: Reply, protocol: Protocol) -> tuple[Any, ...]:
    sqlstate = reply.error.sqlstate if reply.error else None
    return [tuple(row) for row in reply.rows], reply.rowcount, reply.tag, protocol.status, sqlstate


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_reply_is_the_same_however_it_comes(name: str, size: int) -> None:
    """Whole, in pieces or byte by byte."""
    data, how, expected = CASES[name]
    reply, protocol, _, rest = read(data, size, **how)
    assert outcome(reply, protocol) == expected
    assert (rest, protocol.buffer) == (b"", b"")


@pytest.mark.parametrize("name", CASES)
def test_what_comes_behind_a_reply_is_no_part_of_it(name: str) -> None:
    """
    Asides are taken, the beginning of one waits for the rest, an error waits for the next use; nothing else may come.
    """
    data, how, expected = CASES[name]
    aside = message(b"S", b"TimeZone\0UTC\0")
    reply, protocol, _, _ = read(data + NOTICE + aside + NOTICE[:6], **how)
    assert outcome(reply, protocol) == expected
    assert (len(protocol.notices), protocol.parameter_statuses, protocol.buffer) == (1, {"TimeZone": "UTC"}, NOTICE[:6])
    protocol.sort_out_leftovers(NOTICE[6:])
    assert (len(protocol.notices), protocol.buffer) == (2, b"")
    reply, protocol, _, _ = read(data + error("57P05", severity="FATAL"), **how)
    assert outcome(reply, protocol) == expected
    with pytest.raises(wire.OperationalError) as raised:
        protocol.sort_out_leftovers()
    assert raised.value.sqlstate == "57P05"
    for stray in (ready(), rows_of(INTRUDER), ONE):
        with pytest.raises(wire.OperationalError, match="that was not requested"):
            read(data + stray, **how)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name, (data, _, _) in CASES.items() if len(data) < 50_000])
def test_asides_are_welcome_between_any_two_messages(name: str, size: int) -> None:
    """A notice before each message changes nothing."""
    data, how, expected = CASES[name]
    place, mixed, count = 0, b"", 0
    while place < len(data):
        end = place + 1 + struct.unpack_from("!i", data, place + 1)[0]
        mixed, place, count = mixed + NOTICE + data[place:end], end, count + 1
    reply, protocol, _, _ = read(mixed, size, **how)
    assert outcome(reply, protocol) == expected
    assert len(protocol.notices) == min(count, 100)


@pytest.mark.parametrize("name", CASES)
def test_reply_that_is_cut_off_is_waited_for(name: str) -> None:
    """Wherever it ends before its end, more is wanted; nothing is taken for the whole of it."""
    data, how, _ = CASES[name]
    for end in range(0, len(data), max(1, len(data) // 200)):
        with pytest.raises(Starved):
            read(data[:end], **how)


@pytest.mark.parametrize("size", [WHOLE, 70_000, 65_536, 1000])
def test_large_row_is_read_value_by_value(size: int) -> None:
    """A row of more than a megabyte, with what stands before and behind it."""
    values = [b"a" * 600_000, b"", b"b" * 700_000]
    data = PARSED + BOUND + row_description("a", "b", "c") + data_row(b"1", b"2", b"3") + data_row(*values)
    data += data_row(b"4", b"5", b"6") + done("SELECT 3") + ready()
    reply, _, _, _ = read(data, size)
    assert [tuple(row) for row in reply.rows] == [
        ("1", "2", "3"),
        tuple(value.decode() for value in values),
        ("4", "5", "6"),
    ]
    broken = data.replace(struct.pack("!i", 700_000) + b"b", struct.pack("!i", 900_000) + b"b")
    with pytest.raises(wire.OperationalError, match="broke the protocol"):
        read(broken, size)


@pytest.mark.parametrize("size", SIZES)
def test_copy_in_sends_what_the_stream_has(size: int) -> None:
    """By the simple protocol and the extended one, from a file, an iterable, or text."""
    asked = message(b"G", struct.pack("!bh", 0, 0))
    for stream in (BytesIO(b"1\n2\n"), [b"1\n", b"2\n"], StringIO("1\n2\n")):
        reply, _, said, _ = read(asked + done("COPY 2") + ready(), size, times=SEVERAL, stream=stream)
        assert b"".join(said).endswith(b"c\0\0\0\4")
        assert b"1\n" in b"".join(said)
        assert (reply.rowcount, reply.own) == (2, None)
    extended = PARSED + BOUND + message(b"n") + asked + done("COPY 2") + ready()
    assert read(extended, size, stream=[b"1\n"])[2][-1].endswith(b"c\0\0\0\4" + SYNC)


@pytest.mark.parametrize("size", SIZES)
def test_copy_in_without_a_stream_is_called_off(size: int) -> None:
    """The server is told, so that its reply comes to an end."""
    data = message(b"G", struct.pack("!bh", 0, 0)) + error("57014") + ready()
    reply, _, said, _ = read(data, size, times=SEVERAL)
    assert isinstance(reply.own, wire.ProgrammingError)
    assert said == [message(b"f", b"the client gave up\0")]


@pytest.mark.parametrize("size", SIZES)
def test_copy_out_stops_at_a_stream_that_fails(size: int) -> None:
    """The rest is of no use, which is said once, and is read to its end."""

    class Full(BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    data = (
        message(b"H", struct.pack("!bh", 0, 1)) + message(b"d", b"1\n") * 3 + message(b"c") + done("COPY 3") + ready()
    )
    reply, _, said, rest = read(data, size, times=SEVERAL, stream=Full())
    assert (said, rest) == ([None], b"")
    assert isinstance(reply.own, OSError)
    written = BytesIO()
    read(data, size, times=SEVERAL, stream=written)
    assert written.getvalue() == b"1\n" * 3


def test_error_shows_no_parameter_of_its_flight() -> None:
    """What was sent is what is withheld, from wherever it was sent in the flight."""
    sent = [parse("SELECT $1"), bind(["a secret word"]), SYNC]
    reply, _, _, _ = read(error("22P02", 'what is "a secret word"?') + ready(), sent=sent)
    assert reply.error is not None
    assert "secret" not in str(reply.error)
    assert "secret" in (reply.error.message or "")


PASSWORD = "correct horse"
ENDING = (
    message(b"R", struct.pack("!i", 0))
    + b"".join(message(b"S", f"{name}\0{value}\0".encode()) for name, value in PARAMETERS.items())
    + message(b"K", struct.pack("!ii", 4711, 42))
    + ready()
)


def login(password: str | None = PASSWORD, *, ahead: bool = False) -> Authentication:
    secret, packet = Secret(), Secret()
    secret.value, packet.value = password, b"packet"
    one = Authentication("app", secret, lambda: None)
    if ahead:
        one.go_ahead(packet)
        assert packet.value == b"packet" + message(b"p", PASSWORD.encode() + b"\0")
    return one


def request(kind: int, body: bytes = b"") -> bytes:
    return message(b"R", struct.pack("!i", kind) + body)


def start(one: Authentication, data: bytes, size: int) -> tuple[Protocol, list[bytes], bytes]:
    protocol = Protocol()
    said, rest = drive(protocol, protocol.authenticate(one, Reply()), data, size)
    return protocol, said, rest


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("asked", "answer", "method"),
    [
        (b"", None, "trust"),
        (request(3), PASSWORD.encode() + b"\0", "password"),
        (
            request(5, b"salt"),
            b"md5"
            + hashlib.md5(hashlib.md5(PASSWORD.encode() + b"app").hexdigest().encode() + b"salt").hexdigest().encode()
            + b"\0",
            "md5",
        ),
    ],
    ids=["trust", "clear text", "md5"],
)
def test_start_is_the_same_however_it_comes(asked: bytes, answer: bytes | None, method: str, size: int) -> None:
    """Whole, in pieces or byte by byte; with notices in between; with more behind it."""
    for noise in (b"", NOTICE):
        one = login()
        protocol, said, rest = start(one, noise + asked + noise + ENDING + noise, size)
        assert said == ([] if answer is None else [message(b"p", answer)])
        assert (one.method, protocol.backend_pid, protocol.status) == (method, 4711, IDLE)
        assert protocol.parameter_statuses == PARAMETERS
        assert protocol.cancel_request() == struct.pack("!iiii", 16, 80877102, 4711, 42)
        assert protocol.buffer + rest in (b"", noise)


@pytest.mark.parametrize("size", SIZES)
def test_scram_is_the_same_however_it_comes(size: int) -> None:
    """The whole dialogue, with a server that knows the password, and one that does not."""
    for knows in (True, False):
        one, protocol, said = login(), Protocol(), list[bytes]()
        waiting = bytearray(request(10, b"SCRAM-SHA-256\0\0"))
        first = final = b""

        def answer(sent: bytes, *, knows: bool = knows, said: list[bytes] = said, waiting: bytearray = waiting) -> None:
            nonlocal first, final
            said.append(sent)
            if len(said) == 1:
                nonce = sent.partition(b"r=")[2] + b"SERVER"
                first = b"r=" + nonce + b",s=" + base64.b64encode(b"salt") + b",i=4096"
                waiting.extend(request(11, first))
            else:
                final = sent[5:].partition(b",p=")[0]
                exchange = said[0].partition(b"n,,")[2] + b"," + first + b"," + final
                word = PASSWORD if knows else "another"
                key = hmac.digest(hashlib.pbkdf2_hmac("sha256", word.encode(), b"salt", 4096), b"Server Key", "sha256")
                proof = base64.b64encode(hmac.digest(key, exchange, "sha256"))
                waiting.extend(request(12, b"v=" + proof) + ENDING)

        def dialogue(one: Authentication = one, protocol: Protocol = protocol, waiting: bytearray = waiting) -> None:
            for step in protocol.authenticate(one, Reply()):
                if isinstance(step, Secret):
                    answer(step.value)
                else:
                    protocol.chunk = bytes(waiting[:size])
                    del waiting[:size]
                    assert protocol.chunk

        if knows:
            dialogue()
            assert (one.method, protocol.backend_pid) == ("scram-sha-256", 4711)
        else:
            with pytest.raises(wire.OperationalError, match="could not prove"):
                dialogue()


@pytest.mark.parametrize("size", SIZES)
def test_password_that_went_ahead_is_not_sent_again(size: int) -> None:
    """A request for clear text is answered already; any other is a refusal of what went ahead."""
    one = login(ahead=True)
    protocol, said, _ = start(one, request(3) + ENDING, size)
    assert (said, one.method, protocol.backend_pid) == ([], "password", 4711)
    for asked, method in (
        (request(5, b"salt"), "md5"),
        (request(10, b"SCRAM-SHA-256\0\0"), "scram-sha-256"),
        (request(7), "gss"),
        (request(99), "99"),
        (ENDING, "trust"),
    ):
        with pytest.raises(wire.PasswordAheadRefused) as raised:
            start(login(ahead=True), asked, size)
        assert (raised.value.authentication, raised.value.sqlstate) == (method, None)
    with pytest.raises(wire.PasswordAheadRefused) as raised:
        start(login(ahead=True), error("08P01", severity="FATAL"), size)
    assert (raised.value.authentication, raised.value.sqlstate) == (None, "08P01")
    for refused in (request(3) + error("08P01", severity="FATAL"), error("28000", severity="FATAL")):
        with pytest.raises(EndOfStream):
            start(login(ahead=True), refused, size)


def result(work: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "good", work()
    except Starved:
        return "waits", None
    except EndOfStream:
        return "ends", None
    except wire.Error as failure:
        # Which rule was broken first may depend on how much has come.
        broken = "broke the protocol" in str(failure)
        return type(failure).__name__, "broken" if broken else str(failure)


def agree(*results: tuple[str, Any]) -> bool:
    """
    Whether it is the same: what comes behind a reply is found out at its end, or, in pieces, before the next flight.
    """
    return len({repr(one) for one in results}) == 1 or any(
        text in repr(results) for text in ("broken", "client_encoding", "waits")
    )


MESSAGES = [PARSED, BOUND, row_description("token"), rows_of("q-1"), done("SELECT 1"), ready()]
SIMPLE = MESSAGES[2:]
START = [
    request(3),
    *(m for m in [message(b"R", struct.pack("!i", 0))]),
    *(message(b"S", f"{name}\0{value}\0".encode()) for name, value in PARAMETERS.items()),
    message(b"K", struct.pack("!ii", 4711, 42)),
    ready(),
]


@PROFILE
@given(changes=st.lists(CHANGE, max_size=4), simple=st.booleans(), size=st.integers(1, 40))
def test_damaged_reply_is_an_error_or_a_reply_and_never_the_next_ones(changes: Any, simple: bool, size: int) -> None:
    """
    Our errors or rows; the same in whatever pieces it comes; and the next reply's rows are its own, or nothing is.
    """
    data = b"".join(apply_changes(changes)(SIMPLE if simple else MESSAGES))
    how: dict[str, Any] = {"times": SEVERAL} if simple else {}

    def two(size: int) -> Any:
        protocol = Protocol()
        reply, _, _, rest = read(data, size, protocol=protocol, stream=BytesIO(), **how)
        first = outcome(reply, protocol), repr(reply.own), rest
        # What is left is read before the next flight is sent; what it then brings is the next statement's.
        protocol.sort_out_leftovers(rest)
        second, _, _, _ = read(ONE.replace(b"q-1", b"q-2"), size, protocol=protocol)
        if second.error is None and not protocol.buffer:
            assert [tuple(row) for row in second.rows] == [("q-2",)]
        return first[:2]

    assert agree(result(lambda: two(WHOLE)), result(lambda: two(size)))


@PROFILE
@given(changes=st.lists(CHANGE, max_size=4), ahead=st.booleans(), size=st.integers(1, 40))
def test_damaged_start_is_an_error_or_a_session(changes: Any, ahead: bool, size: int) -> None:
    """The same, for what a server says before the first statement; and the password is answered with once at most."""
    data = b"".join(apply_changes(changes)(START))

    def run(size: int) -> Any:
        one = login(ahead=ahead)
        protocol, said, rest = start(one, data, size)
        protocol.sort_out_leftovers(rest)
        assert len(said) + ahead <= 1 or one.method == "scram-sha-256"
        return one.method, protocol.backend_pid, sorted(protocol.parameter_statuses.items())

    assert agree(result(lambda: run(WHOLE)), result(lambda: run(size)))


@PROFILE
@given(data=st.binary(max_size=200), size=st.integers(1, 200))
def test_noise_is_an_error_or_waited_for(data: bytes, size: int) -> None:
    """Bytes at random, and messages of random bytes: nothing but our errors."""
    for junk in (data, b"".join(message(data[i : i + 1], data[i : i + 9]) for i in range(0, len(data), 7))):
        for how in ({}, {"times": SEVERAL}, {"times": 0}):
            assert result(lambda junk=junk, how=how: read(junk, size, **how))[0] != "good" or junk
        result(lambda junk=junk: start(login(), junk, size))


def test_every_message_is_known_by_a_name() -> None:
    """The names of the messages' first bytes are those of the manual's chapter Message Formats."""
    assert (wire_protocol.DATA_ROW, wire_protocol.READY_FOR_QUERY, wire_protocol.EMPTY_QUERY_RESPONSE) == (68, 90, 73)
