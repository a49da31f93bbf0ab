"""What may happen to a server's messages: for the fuzz tests, with a socket and without."""

from __future__ import annotations

import struct
from typing import Any

from fuzz_server import data_row, error, message, ready, row_description
from hypothesis import strategies as st

INTRUDER = "intruder"
# What is inserted into a reply.
STRAYS = [
    error("22012"),
    error("57P01", severity="FATAL"),
    error("XX000", severity="PANIC"),
    message(b"N", b"SNOTICE\0C00000\0Mhello\0\0"),
    message(b"S", b"TimeZone\0Europe/Zurich\0"),
    message(b"S", b"client_encoding\0LATIN1\0"),
    message(b"A", struct.pack("!i", 1) + b"channel\0payload\0"),
    row_description("token", "more"),
    row_description(),
    data_row(INTRUDER.encode()),
    data_row(),
    data_row(INTRUDER.encode(), b"x"),
    message(b"1"),
    message(b"2"),
    message(b"3"),
    message(b"n"),
    message(b"s"),
    message(b"I"),
    message(b"t", struct.pack("!h", 0)),
    message(b"C", b"SELECT 1\0"),
    message(b"C", b""),
    message(b"C", b"INSERT 0 99999999999999999999\0"),
    ready(),
    ready(b"T"),
    ready(b"E"),
    message(b"Z"),
    message(b"Z", b"?"),
    message(b"G", struct.pack("!bh", 0, 0)),
    message(b"H", struct.pack("!bh", 0, 1)),
    message(b"W", struct.pack("!bh", 0, 0)),
    message(b"d", b"copied\n"),
    message(b"c"),
    message(b"R", struct.pack("!i", 0)),
    message(b"R", struct.pack("!i", 3)),
    message(b"R", struct.pack("!i", 7)),
    message(b"R", struct.pack("!i", 10) + b"SCRAM-SHA-512\0\0"),
    message(b"K", b"\0\0"),
    message(b"v", struct.pack("!ii", 196608, 0)),
    message(b"V", struct.pack("!i", -1)),
    message(b"?", b"?"),
    b"E\0\0\0\x05",
    message(b"E"),
    message(b"E", b"\0"),
    message(b"E", b"C"),
    message(b"E", b"C\xff\xfe\0M\xff\0\0"),
]
LENGTHS = [-(2**31), -1, 0, 1, 3, 4, 5, 2**16, 2**24, 2**30, 2**31 - 1]
POSITION = st.integers(0, 15)
CHANGE = st.one_of(
    st.tuples(st.just("drop"), POSITION),
    st.tuples(st.just("duplicate"), POSITION),
    st.tuples(st.just("swap"), POSITION, POSITION),
    st.tuples(st.just("insert"), POSITION, st.sampled_from(STRAYS)),
    st.tuples(st.just("kind"), POSITION, st.binary(min_size=1, max_size=1)),
    st.tuples(st.just("length"), POSITION, st.sampled_from(LENGTHS)),
    st.tuples(st.just("shorten"), POSITION, st.integers(0, 30)),
    st.tuples(st.just("overwrite"), POSITION, st.integers(5, 30), st.binary(min_size=1, max_size=6)),
    st.tuples(st.just("garbage"), POSITION, st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("twice")),
)


def apply_changes(changes: Any) -> Any:
    def change(reply: Any) -> Any:
        reply = list(reply)
        for name, *arguments in changes:
            if name == "twice":
                reply *= 2
                continue
            if not reply:
                break
            at = arguments[0] % len(reply)
            if name == "drop":
                del reply[at]
            elif name == "duplicate":
                reply.insert(at, reply[at])
            elif name == "swap":
                other = arguments[1] % len(reply)
                reply[at], reply[other] = reply[other], reply[at]
            elif name in ("insert", "garbage"):
                reply.insert(at, arguments[1])
            elif name == "kind":
                reply[at] = arguments[1] + reply[at][1:]
            elif name == "length":
                reply[at] = reply[at][:1] + struct.pack("!i", arguments[1]) + reply[at][5:]
            elif name == "shorten":
                body = reply[at][5 : 5 + arguments[1]]
                reply[at] = message(reply[at][:1], body)
            elif name == "overwrite":
                _, start, data = arguments
                reply[at] = reply[at][:start] + data + reply[at][start + len(data) :]
        return reply

    return change
