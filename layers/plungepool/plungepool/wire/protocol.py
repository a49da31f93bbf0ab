"""
PostgreSQL's protocol, version 3.0, without a socket: a server's replies as generators.

A generator yields the number of bytes that it lacks, at least; whoever runs it puts what came into `Protocol.chunk`,
one byte or all there is, and goes on. Else it yields what is to be sent. So the same code is driven by a socket and by
a test.

Source: PostgreSQL's manual, "Frontend/Backend Protocol", Message Flow and Message Formats.
"""

from __future__ import annotations

import struct
from collections import deque
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from .errors import (
    DatabaseError,
    DataError,
    EndOfStream,
    NotSupportedError,
    ProgrammingError,
    Secret,
    error_fields,
    server_error,
    violation,
)
from .messages import END_COPY, PIECE, SYNC, cancel_request, message, parameters_in
from .values import Column

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from .authentication import Authentication

# The first byte of each message that a server sends.
AUTHENTICATION, BACKEND_KEY_DATA, PARAMETER_STATUS, READY_FOR_QUERY = b"RKSZ"
PARSE_COMPLETE, BIND_COMPLETE, ROW_DESCRIPTION, NO_DATA, DATA_ROW = b"12TnD"
COMMAND_COMPLETE, EMPTY_QUERY_RESPONSE, PORTAL_SUSPENDED = b"CIs"
ERROR_RESPONSE, NOTICE_RESPONSE, NOTIFICATION_RESPONSE = b"ENA"
COPY_IN_RESPONSE, COPY_OUT_RESPONSE, COPY_DATA, COPY_DONE = b"GHdc"

#: What ReadyForQuery says of the transaction: none is open, one is, one is and has failed.
IDLE, IN_TRANSACTION, FAILED = b"ITE"

_PROTOCOL_VIOLATION = "08P01"


_HEADER = struct.Struct("!BI")
_INT = struct.Struct("!i")
_SHORT = struct.Struct("!H")
_FIELD_DESCRIPTION = struct.Struct("!ihihih")

_LARGE = 1 << 20  # what is longer is not copied without need
_LONG = bytes((ROW_DESCRIPTION, DATA_ROW, COPY_DATA, ERROR_RESPONSE, NOTICE_RESPONSE, NOTIFICATION_RESPONSE))
_SHORT_AT_MOST = 30_000  # bytes of all other messages; more is a server gone mad
_CANCEL_KEY_AT_MOST = 256  # of the protocol's version 3.2; 4 before
_SHAPES_KEPT = 256
_SHAPE_AT_MOST = 1000  # bytes of a row that is worth a guess of its values' sizes
_CONVERTED_AT_ONCE = 4096  # values that are kept as bytes until their columns are converted
# What the server says where it has kept what a transaction did; to COMMIT of a failed one it says ROLLBACK.
_KEPT = frozenset((b"COMMIT", b"PREPARE TRANSACTION"))
# The command tags of statements that can ask for READ ONLY.
_MAY_ASK = frozenset((b"SET", b"BEGIN", b"START TRANSACTION"))
# The names of the zone that stands as +00 in a timestamptz: nothing to be done about it.
_UTC = frozenset(
    ("", "UTC", "Etc/UTC", "GMT", "Etc/GMT", "Zulu", "Etc/Zulu", "UCT", "Etc/UCT", "Universal", "Etc/Universal")
)

#: as `times`: the simple protocol, and as many statements as the text holds
SEVERAL = -1


@lru_cache(256)
def _row_shape(sizes: tuple[int, ...]) -> tuple[Callable[[bytes, int], tuple[Any, ...]], tuple[int, ...]]:
    """Return what reads a row whose values have these sizes, as size, value, size, value and so on; and the sizes."""
    return struct.Struct("!" + "".join(f"i{size}s" for size in sizes)).unpack_from, sizes


class Reply:
    """What one flight brought back."""

    __slots__ = (
        "asked_for_data",
        "columns",
        "description",
        "error",
        "kept",
        "may_have_asked",
        "own",
        "refused",
        "rowcount",
        "rows",
        "runs",
        "sent",
        "stream",
        "tag",
    )

    def __init__(self, sent: Sequence[bytes] = (), stream: Any = None) -> None:
        #: the messages of the flight: an error's text may show none of their parameters
        self.sent = sent
        #: how often the statement is executed each time that it is parsed: anew where the types of the parameters
        #: change
        self.runs: Sequence[int] = ()
        #: what COPY reads from or writes to
        self.stream = stream
        #: True when no transaction is open around it, so that what it does is kept as soon as it is done
        self.kept = False
        #: how often COPY waited for the server to ask for its data, before it sent any: a round trip each time
        self.asked_for_data = 0
        self.description: list[tuple[Any, ...]] | None = None
        self.columns: list[Column] = []
        self.rows: list[tuple[Any, ...]] = []
        self.rowcount = -1
        self.tag = b""
        self.error: DatabaseError | None = None
        #: what the user's own stream raised, or its misuse
        self.own: Exception | None = None
        #: what stopped a conversion, and the column's description if it was a value of that column
        self.refused: tuple[Exception, tuple[Any, ...] | None] | None = None
        #: a statement of the user's own was one that can ask for READ ONLY
        self.may_have_asked = False

    def convert(self, values: list[bytes | None]) -> None:
        """Turn the values of whole rows into rows; what a converter raises waits until the flight is over."""
        columns = self.columns
        width = len(columns)
        try:
            if len(values) == width:
                self.rows.append(
                    tuple(
                        [
                            None if value is None else column.one(value)
                            for column, value in zip(columns, values, strict=True)
                        ]
                    )
                )
            else:
                self.rows += zip(
                    *[column.convert(values[index::width]) for index, column in enumerate(columns)], strict=True
                )
        except Exception as error:  # noqa: BLE001 - raised once the reply is read
            self.refused = self.refused or self._culprit(values, error)
        values.clear()

    def _culprit(self, values: list[bytes | None], error: Exception) -> tuple[Exception, tuple[Any, ...] | None]:
        """Find the value that stopped a conversion by converting once more: what no value stops came from elsewhere."""
        width = len(self.columns)
        for index, value in enumerate(values):
            try:
                if value is not None:
                    self.columns[index % width].one(value)
            except Exception as again:  # noqa: BLE001 - a reader may raise anything
                return again, self.description[index % width] if self.description else None
        return error, None


class _Input:
    """What has come and was not read yet."""

    def __init__(self) -> None:
        #: what has come, for the generator that asked for it
        self.chunk = b""
        #: what came behind the last reply
        self.buffer = b""

    def _gather(self, buffer: bytes, wanted: int) -> Generator[int, None, bytes]:
        """Return `buffer` with so much more behind it that at least `wanted` bytes are there."""
        parts, have = [buffer], len(buffer)
        while have < wanted:
            yield wanted - have
            parts.append(self.chunk)
            have += len(self.chunk)
        self.chunk = b""
        return b"".join(parts)

    def _read_large_row(self, buffer: bytes, values: list[bytes | None], width: int) -> Generator[int, None, bytes]:
        """Read a row value by value, so that none is held twice; return what came behind it."""
        buffer = yield from self._gather(buffer, 7)
        left = _INT.unpack_from(buffer, 1)[0] - 6
        if _SHORT.unpack_from(buffer, 5)[0] != width:
            raise violation("a row that was not described")
        buffer = buffer[7:]
        for _ in range(width):
            if left < 4:
                raise violation("a row that is too short")
            buffer = yield from self._gather(buffer, 4)
            (size,) = _INT.unpack_from(buffer)
            left -= 4
            if size < -1 or size > left:
                raise violation("a value of a length that does not fit its row")
            buffer = buffer[4:]
            if size < 0:
                values.append(None)
                continue
            left -= size
            if size <= len(buffer):
                values.append(buffer[:size])
                buffer = buffer[size:]
                continue
            # Grows in place, and gives its bytes away without a copy.
            value = BytesIO()
            have = value.write(buffer)
            buffer = b""
            while have < size:
                yield min(size - have, PIECE)
                have += value.write(self.chunk)
            self.chunk = b""
            if have > size:
                value.seek(size)
                buffer = value.read()
                value.truncate(size)
            values.append(value.getvalue())
        if left:
            raise violation("a row whose length is not the one that it states")
        return buffer

    def _read_message(self) -> Generator[int, None, tuple[int, bytes]]:
        """One message of the start, where none is long."""
        if len(self.buffer) < 5:
            self.buffer = yield from self._gather(self.buffer, 5)
        code, length = _HEADER.unpack_from(self.buffer)
        if not 4 <= length <= _SHORT_AT_MOST:
            raise violation(f"a message {chr(code)!r} of {length} bytes before the session started")
        if len(self.buffer) < length + 1:
            self.buffer = yield from self._gather(self.buffer, length + 1)
        body = self.buffer[5 : length + 1]
        self.buffer = self.buffer[length + 1 :]
        return code, body


class Protocol(_Input):
    """What the server has said in one session, and how what it says is read."""

    def __init__(self) -> None:
        super().__init__()
        #: IDLE, IN_TRANSACTION or FAILED
        self.status = IDLE
        #: how often the server has said that it keeps what a transaction did
        self.commits = 0
        self.parameter_statuses: dict[str, str] = {}
        self.notices: deque[dict[str, str]] = deque(maxlen=100)
        self.notifications: deque[tuple[int, str, str]] = deque(maxlen=100)
        self.backend_pid = 0
        #: messages of flights of the open transaction whose parameters a later error may show
        self.declared: list[bytes] = []
        #: the readers that the user has registered, by oid
        self.adapters: dict[int, Callable[[str], Any]] = {}

        self._cancel_key = b""
        self._styled: dict[int, Callable[[str], Any]] = {}
        self._shapes: dict[bytes, tuple[list[tuple[Any, ...]], list[Column]]] = {}

    def adapt(self, oid: int, reader: Callable[[str], Any]) -> None:
        """Read values of the type `oid` with `reader`."""
        self.adapters[oid] = reader
        self._shapes.clear()

    def cancel_request(self) -> bytes:
        """Return the CancelRequest for this session; nothing where the server gave no key."""
        key = self._cancel_key
        return key and cancel_request(self.backend_pid, key)

    def forget(self) -> None:
        """The connection has ended: no transaction is open, and nothing is left to be read."""
        self.status = IDLE
        self.buffer = self.chunk = b""

    def read_reply(self, reply: Reply, before: int, times: int) -> Generator[int | bytes | None, None, None]:
        """
        Read a reply to ReadyForQuery: of `before` statements without rows, and of one that was executed `times`.

        By the simple protocol (`SEVERAL`) those stand in the same text, in front. Errors are kept in `reply`.
        Yields how many bytes are lacking; what is to be sent; None when nobody wants the rest of what the server sends.
        Raises: OperationalError when the server does not follow the protocol; EndOfStream behind a FATAL error.
        """
        # One long loop without a call for what every statement's reply holds: it is the hot path.
        simple = times == SEVERAL
        statements = before + times
        expected = (before + len(reply.runs), statements, statements)
        start, lengths = before, iter(reply.runs)
        buffer, position = self.buffer, 0
        end = len(buffer)
        header, integer = _HEADER.unpack_from, _INT.unpack_from
        values: list[bytes | None] = []
        append, extend = values.append, values.extend
        # How the row of a length lay that came last: the next one of that length is read by it at once, if it fits.
        shapes: dict[int, tuple[Callable[[bytes, int], tuple[Any, ...]], tuple[int, ...]]] = {}
        learnt = 0
        described = False
        width, width_bytes = 0, b""
        parsed = bound = executed = 0
        while True:
            while end - position < 5:
                if len(values) > _CONVERTED_AT_ONCE:
                    reply.convert(values)
                yield 5 - end + position
                buffer, position = buffer[position:] + self.chunk, 0
                end = len(buffer)
            code, length = header(buffer, position)
            stop = position + 1 + length
            if stop > end:
                if length > _SHORT_AT_MOST and code not in _LONG:
                    raise violation(f"a message {chr(code)!r} of {length} bytes")
                if len(values) > _CONVERTED_AT_ONCE:
                    reply.convert(values)
                if code == DATA_ROW and length > _LARGE and described:
                    buffer = yield from self._read_large_row(buffer[position:], values, width)
                    position, end = 0, len(buffer)
                    continue
                buffer = yield from self._gather(buffer[position:], length + 1)
                position, end, stop = 0, len(buffer), length + 1
            if length < 4:
                raise violation(f"a message {chr(code)!r} of {length} bytes")
            if code == DATA_ROW:
                if not described or buffer[position + 5 : position + 7] != width_bytes:
                    raise violation("a row that was not described")
                shape = shapes.get(length)
                if shape is not None:
                    row = shape[0](buffer, position + 7)
                    if row[::2] == shape[1]:
                        extend(row[1::2])
                        position = stop
                        continue
                place = position + 7
                for _ in range(width):
                    if place > stop - 4:
                        raise violation("a row that is too short")
                    (size,) = integer(buffer, place)
                    place += 4
                    if size >= 0:
                        append(buffer[place : place + size])
                        place += size
                    elif size == -1:
                        append(None)
                    else:
                        raise violation("a value of negative length")
                if place != stop:
                    raise violation("a row whose length is not the one that it states")
                if not width:
                    reply.rows.append(())
                elif width < len(values) and length < _SHAPE_AT_MOST:
                    if learnt > 64 + (len(reply.rows) + len(values) // width) // 4:
                        shapes.clear()  # hardly a row is like another one
                    elif None not in (last := values[-width:]):
                        learnt += 1
                        shapes[length] = _row_shape(tuple(len(value or b"") for value in last))
                position = stop
                continue
            body = buffer[position + 5 : stop]
            position = stop
            if code == COMMAND_COMPLETE:
                executed += 1
                reply.tag = body[:-1]
                if reply.tag in _KEPT:
                    self.commits += 1
                if executed > before and reply.tag in _MAY_ASK:
                    reply.may_have_asked = True
                word = body[body.rfind(b" ") + 1 : -1]
                if word.isdigit() and len(word) < 20:
                    reply.rowcount = int(word) if simple or reply.rowcount < 0 else reply.rowcount + int(word)
                if simple:
                    if values:
                        reply.convert(values)
                    described = False
                    if executed <= before:
                        reply.description, reply.rowcount = None, -1
            elif code == BIND_COMPLETE:
                bound += 1
            elif code == PARSE_COMPLETE:
                parsed += 1
            elif code == ROW_DESCRIPTION:
                if described if simple else executed != start or executed == statements:
                    raise violation("a description that was not requested")
                if values:
                    reply.convert(values)
                if not described:
                    reply.rows = []
                described = True
                start += next(lengths, 0)
                reply.description, reply.columns = self._shapes.get(body) or self._shape(body)
                width = len(reply.columns)
                width_bytes = body[:2]
                shapes.clear()
            elif code == READY_FOR_QUERY:
                if length != 5 or body[0] not in b"ITE":
                    raise violation("a malformed ReadyForQuery")
                if reply.error is None and (not executed if simple else (parsed, bound, executed) != expected):
                    raise violation("an answer to a request that was not sent")
                if values:
                    reply.convert(values)
                self.buffer = buffer[position:]
                self.status = body[0]
                if self.buffer:
                    self.sort_out_leftovers(error_waits=True)
                return
            elif code == NO_DATA:
                start += next(lengths, 0) if executed == start else 0
            elif code == EMPTY_QUERY_RESPONSE:
                executed += 1
            elif code == COPY_IN_RESPONSE:
                yield from _copy_in(reply, simple)
            elif code == COPY_DATA:
                if reply.own is None and not _copy_out(reply, body):
                    yield None
            else:
                self._read_more(code, body, reply)

    def _read_more(self, code: int, body: bytes, reply: Reply) -> None:
        """Take the messages of a reply that are rare."""
        if code == ERROR_RESPONSE:
            error = server_error(body, parameters_in((*self.declared, *reply.sent)))
            reply.error = reply.error or error
            if error.severity in ("FATAL", "PANIC"):
                raise EndOfStream
        elif code == COPY_OUT_RESPONSE:
            if reply.stream is None:
                reply.own = reply.own or ProgrammingError(
                    "COPY TO STDOUT needs a stream to write to: execute(…, stream=…)"
                )
        elif code not in (COPY_DONE, PORTAL_SUSPENDED):
            self._read_aside(code, body)

    def _shape(self, body: bytes) -> tuple[list[tuple[Any, ...]], list[Column]]:
        """
        The description and the converters for a RowDescription; the same one comes again and again, so it is kept.
        """
        description, columns, position = [], [], 2
        for _ in range(_SHORT.unpack_from(body)[0] if len(body) >= 2 else 0):
            end = body.find(b"\0", position)
            if end < 0 or end + 19 > len(body):
                raise violation("a malformed RowDescription")
            _, _, oid, size, _, binary = _FIELD_DESCRIPTION.unpack_from(body, end + 1)
            if binary:
                raise violation("a column in binary format, which was not requested")
            description.append((body[position:end].decode("utf-8", "replace"), oid, None, size, None, None, None))
            columns.append(Column(oid, self.adapters.get(oid) or self._styled.get(oid)))
            position = end + 19
        if len(self._shapes) >= _SHAPES_KEPT:
            self._shapes.clear()
        self._shapes[body] = shape = description, columns
        return shape

    def _read_aside(self, code: int, body: bytes) -> None:
        if code == PARAMETER_STATUS:
            name, _, value = body[:-1].partition(b"\0")
            self.parameter_statuses[name.decode("utf-8", "replace")] = text = value.decode("utf-8", "replace")
            if name == b"client_encoding" and text.upper() not in ("UTF8", "UNICODE"):  # UNICODE: its old name
                raise NotSupportedError(
                    f"client_encoding was set to {text}, but plungepool supports UTF8 only; the connection is closed"
                )
            if name in (b"DateStyle", b"TimeZone"):
                self._change_style()
        elif code == NOTICE_RESPONSE:
            self.notices.append(error_fields(body))
        elif code == NOTIFICATION_RESPONSE:
            if len(body) < 4:
                raise violation("a notification that is too short")
            (process,) = _INT.unpack_from(body)
            channel, payload = body[4:-1].decode("utf-8", "replace").partition("\0")[::2]
            self.notifications.append((process, channel, payload))
        else:
            raise violation(f"an unexpected message {chr(code)!r}")

    def _change_style(self) -> None:
        style = self.parameter_statuses.get("DateStyle") or "ISO"
        zone = self.parameter_statuses.get("TimeZone", "")
        if style.startswith("ISO") and zone in _UTC:
            self._styled = {}
        else:
            from .datestyle import styled_readers

            self._styled = styled_readers(style, zone)
        self._shapes.clear()

    def sort_out_leftovers(self, more: bytes = b"", *, error_waits: bool = False) -> None:
        """
        Take what the server said between flights, `more` included: only asides, or why it is going to close.

        `error_waits` leaves that for the next use: what the flight that has just ended brought is good all the same.
        Raises: DatabaseError, the server's or one that says how it broke the protocol.
        """
        buffer, position = self.buffer + more, 0
        while len(buffer) - position >= 5:
            code, length = _HEADER.unpack_from(buffer, position)
            if code not in b"NSAE" or length < 4:
                raise violation(f"a message {chr(code)!r} that was not requested")
            stop = position + 1 + length
            if stop > len(buffer):
                break
            if code == ERROR_RESPONSE:
                if error_waits:
                    break
                raise server_error(buffer[position + 5 : stop])
            self._read_aside(code, buffer[position + 5 : stop])
            position = stop
        self.buffer = buffer[position:]

    def last_words(self, rest: bytes, sent: Sequence[bytes]) -> DatabaseError | None:
        """Find the error that the server sent before it closed, when writing was what failed; `rest` is what came."""
        buffer, position = self.buffer + rest, 0
        while len(buffer) - position >= 5:
            code, length = _HEADER.unpack_from(buffer, position)
            stop = position + 1 + length
            if code == ERROR_RESPONSE and stop <= len(buffer):
                return server_error(buffer[position + 5 : stop], parameters_in(sent))
            position = stop
        return None

    def authenticate(self, login: Authentication, reply: Reply) -> Generator[int | Secret, None, None]:
        """
        Answer what the server asks of `login`, and read what it says of the session, to its first ReadyForQuery.

        Raises: OperationalError, NotSupportedError; EndOfStream behind an error of the server, which is kept in
        `reply`.
        """
        while True:
            code, body = yield from self._read_message()
            if code == AUTHENTICATION:
                if login.done or len(body) < 4:
                    raise violation("an unexpected request for authentication")
                if (answer := login.answer(body)) is not None:
                    yield answer
            elif code == ERROR_RESPONSE:
                reply.error = server_error(body)
                login.explain(reply.error)
                if login.is_ahead and reply.error.sqlstate == _PROTOCOL_VIOLATION:
                    raise login.refuse(
                        f"the server did not accept the password before it had asked for it: {reply.error}",
                        sqlstate=_PROTOCOL_VIOLATION,
                    )
                raise EndOfStream
            elif code == READY_FOR_QUERY and login.done:
                if len(body) != 1 or body[0] not in b"ITE":
                    raise violation("a malformed ReadyForQuery")
                self.status = body[0]
                if not login.is_followed:  # else the answer to that may be there already
                    self.sort_out_leftovers()
                return
            elif code == BACKEND_KEY_DATA and login.done:
                if not 8 <= len(body) <= 4 + _CANCEL_KEY_AT_MOST:
                    raise violation(f"a cancel key of {len(body) - 4} bytes")
                (self.backend_pid,) = _INT.unpack_from(body)
                self._cancel_key = body[4:]
            else:
                self._read_aside(code, body)


def _copy_in(reply: Reply, simple: bool) -> Generator[bytes, None, None]:
    reply.asked_for_data += 1
    # What the stream raises is the user's, and known by where it is called: the server is told, and the session lives.
    if reply.stream is None:
        reply.own = reply.own or ProgrammingError("COPY FROM STDIN needs a stream to read from: execute(…, stream=…)")
    pieces = None
    batch = bytearray()
    while reply.own is None:
        try:
            pieces = pieces or _pieces(reply.stream)
            piece = next(pieces, None)
        except Exception as error:  # noqa: BLE001 - a stream may raise anything
            reply.own = error
            break
        if piece is None:
            break
        try:
            data = piece.encode() if isinstance(piece, str) else bytes(memoryview(piece))
        except UnicodeEncodeError:
            reply.own = DataError("COPY: the stream gave text that cannot be encoded as UTF-8")
            break
        except TypeError:
            reply.own = ProgrammingError(f"COPY: the stream gave {type(piece).__name__}, neither text nor bytes")
            break
        batch += b"d" + _INT.pack(len(data) + 4) + data
        if len(batch) >= PIECE:
            yield bytes(batch)
            batch.clear()
    last = bytes(batch) + END_COPY if reply.own is None else message(b"f", b"the client gave up\0")
    # In the extended protocol the server has thrown the Sync of the flight away while it waited for data.
    yield last if simple else last + SYNC


def _copy_out(reply: Reply, body: bytes) -> bool:
    """Hand a piece to the user's stream; return whether that takes more."""
    stream = reply.stream
    try:
        data = body.decode() if _is_text(stream) else body
    except UnicodeDecodeError:
        reply.own = DataError("COPY: what the server sent is not UTF-8: write to a stream of bytes")
    else:
        try:
            stream.write(data)
        except Exception as error:  # noqa: BLE001 - a stream may raise anything
            reply.own = error
    return reply.own is None


def _pieces(stream: Any) -> Iterator[bytes | str]:
    if hasattr(stream, "read"):
        while piece := stream.read(PIECE):
            yield piece
    else:
        yield from stream


def _is_text(stream: Any) -> bool:
    from io import TextIOBase

    return isinstance(stream, TextIOBase)
