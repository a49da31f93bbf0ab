"""Rows beyond a megabyte: read value by value, whole wherever the pieces are cut, and without a second copy."""

from __future__ import annotations

import hashlib
import random
import struct
import tracemalloc
from typing import Any

import pytest
from fuzz_server import Fault, FuzzServer, data_row, row_description

from plungepool import wire
from plungepool.wire import messages


def test_large_values_are_whole_among_small_ones(connection: wire.Connection) -> None:
    """Long, short, empty and NULL values in one row, several such rows, with short rows before and behind them."""
    cursor = connection.cursor()
    cursor.execute(
        "SELECT n, repeat(chr(96 + n), n * 700000), NULL, '', decode(repeat('ab', n * 300000), 'hex'), n::text"
        " FROM (VALUES (1), (2), (0), (3), (1)) v(n)"
    )
    expected = [(n, chr(96 + n) * n * 700000, None, "", b"\xab" * n * 300000, str(n)) for n in (1, 2, 0, 3, 1)]
    assert cursor.fetchall() == expected
    assert cursor.execute("SELECT $1::bytea", (b"\x00\xff" * 900_000,)).fetchone() == (b"\x00\xff" * 900_000,)
    cursor.execute("SET bytea_output = 'escape'")
    assert cursor.execute("SELECT $1::bytea", (b"\x00\\" * 400_000,)).fetchone() == (b"\x00\\" * 400_000,)


def test_large_values_are_sent_whole(connection: wire.Connection) -> None:
    """Many rows of long and short parameters in one flight."""
    cursor = connection.cursor()
    cursor.execute("CREATE TEMP TABLE t (n int, a text)")
    random_ = random.Random(1)
    rows = [(n, "x" * random_.choice((0, 3, 70_000, 1_500_000))) for n in range(40)]
    cursor.executemany("INSERT INTO t VALUES ($1, $2)", rows)
    assert cursor.rowcount == 40
    cursor.execute("SELECT n, length(a) FROM t ORDER BY n")
    assert cursor.fetchall() == [(n, len(a)) for n, a in rows]


def test_large_bytes_are_sent_whole_wherever_they_stand(connection: wire.Connection) -> None:
    """Beside other parameters, in a flight of many rows, beside NULL and short ones, and in a cursor's declaration."""
    cursor = connection.cursor()
    long, short = bytes(range(256)) * 400, b"\\x\0\xff"
    sent = ("first", long, None, short, 7, long[1:])
    got = cursor.execute("SELECT $1::text, $2, $3::bytea, $4, $5, $6", sent).fetchone()
    assert got == sent
    cursor.execute("CREATE TEMP TABLE t (n int, a bytea)")
    rows = [(0, long), (1, None), (2, short), (3, long[2:]), (4, bytearray(long)), (5, None)]
    cursor.executemany("INSERT INTO t VALUES ($1, $2)", rows)
    cursor.execute("SELECT n, a FROM t ORDER BY n")
    assert cursor.fetchall() == [(n, a if a is None else bytes(a)) for n, a in rows]
    cursor.declare("c", "SELECT length($1), md5($2)", (long, long))
    assert cursor.execute("FETCH c").fetchone() == (len(long), hashlib.md5(long).hexdigest())


def test_large_bytes_in_a_message_are_what_an_error_would_show_of_them() -> None:
    """What is kept out of errors is looked for as the server writes it there: in hexadecimal digits."""
    values = ("text", b"\xab\xcd" * 40_000, 5)
    message = messages.bind(values, messages.types_of(values))
    assert list(messages.parameters_in([message])) == ["text", "\\x" + "abcd" * 40_000, "5"]
    assert list(messages.parameters_in([messages.bind(values)])) == ["text", "\\x" + "abcd" * 40_000, "5"]


def test_large_bytes_are_sent_with_one_copy(connection: wire.Connection) -> None:
    """As the message that holds them, and no second time."""
    cursor = connection.cursor()
    value = b"\xff" * 8_000_000
    tracemalloc.start()
    try:
        assert cursor.execute("SELECT length($1)", (value,)).fetchone() == (len(value),)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000 * 1.2


def test_large_value_is_held_once(connection: wire.Connection) -> None:
    """As bytes from the server and as what it becomes, and no third time."""
    cursor = connection.cursor()
    cursor.execute("CREATE TEMP TABLE t AS SELECT decode(repeat('ff', 8000000), 'hex') AS a")
    tracemalloc.start()
    try:
        assert len(cursor.execute("SELECT a FROM t").fetchone()[0]) == 8_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000 * 3.5


@pytest.mark.parametrize("lie", ["too long", "too short", "negative", "longer row", "another width"])
def test_large_row_that_lies_is_a_classed_error(lie: Any) -> None:
    """Lengths within a large row are not believed."""
    honest = data_row(b"x" * 2_000_000, b"q-1")
    lies = {
        "too long": honest[:7] + struct.pack("!i", 2_000_100) + honest[11:],
        "too short": honest[:7] + struct.pack("!i", 1_000_000) + honest[11:],
        "negative": honest[:7] + struct.pack("!i", -7) + honest[11:],
        "longer row": honest[:1] + struct.pack("!i", len(honest) + 4) + honest[5:] + b"12345",
        "another width": honest[:5] + struct.pack("!h", 3) + honest[7:],
    }
    with FuzzServer() as server:
        server.plan(
            query_faults={0: Fault(lambda reply: [*reply[:2], row_description("a", "b"), lies[lie], *reply[4:]])}
        )
        connection = wire.connect(user="app", host=server.host, port=server.port)
        connection.autocommit = True
        with pytest.raises(wire.OperationalError, match="broke the protocol"):
            connection.cursor().execute("SELECT $1", ("q-1",))
        assert connection.closed
