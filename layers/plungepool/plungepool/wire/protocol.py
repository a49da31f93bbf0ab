"""
PostgreSQL's protocol, version 3.0, without a socket: messages out as bytes, replies in as generators.

A generator yields the number of bytes that it lacks, at least; whoever runs it puts what came into `Protocol.chunk`,
one byte or all there is, and goes on. Else it yields what is to be sent. So the same code is driven by a socket and by
a test.

Source: PostgreSQL's manual, "Frontend/Backend Protocol", Message Flow and Message Formats.
"""

from __future__ import annotations

import struct
from binascii import hexlify
from collections import deque
from functools import lru_cache
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any

from .errors import (
    DatabaseError,
    DataError,
    EndOfStream,
    NotSupportedError,
    OperationalError,
    PasswordAheadRefused,
    ProgrammingError,
    Secret,
    error_fields,
    server_error,
    violation,
)
from .values import BYTEA, Column, UnknownType, parameter_oid, to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from .scram import Scram

# The first byte of each message that a server sends.
AUTHENTICATION, BACKEND_KEY_DATA, PARAMETER_STATUS, READY_FOR_QUERY = b"RKSZ"
PARSE_COMPLETE, BIND_COMPLETE, ROW_DESCRIPTION, NO_DATA, DATA_ROW = b"12TnD"
COMMAND_COMPLETE, EMPTY_QUERY_RESPONSE, PORTAL_SUSPENDED = b"CIs"
ERROR_RESPONSE, NOTICE_RESPONSE, NOTIFICATION_RESPONSE = b"ENA"
COPY_IN_RESPONSE, COPY_OUT_RESPONSE, COPY_DATA, COPY_DONE = b"GHdc"
# Of one that a client sends, and that is looked for in what was sent.
BIND = b"B"[0]

#: What ReadyForQuery says of the transaction: none is open, one is, one is and has failed.
IDLE, IN_TRANSACTION, FAILED = b"ITE"

# What the server asks for to authenticate, and what it says when it is content.
_OK, _CLEAR_TEXT, _MD5, _SASL, _SASL_CONTINUE, _SASL_FINAL = 0, 3, 5, 10, 11, 12
# The same in pg_hba.conf's words; of the methods that are not known here those that a server may ask for.
_METHODS = {_OK: "trust", _CLEAR_TEXT: "password", _MD5: "md5", 7: "gss", 9: "sspi", _SASL: "scram-sha-256"}
_PROTOCOL_VIOLATION = "08P01"

SYNC = b"S\0\0\0\4"
TERMINATE = b"X\0\0\0\4"
EXECUTE = b"E\0\0\0\x09\0\0\0\0\0"
BIND_NOTHING = b"B\0\0\0\x0c\0\0\0\0\0\0\0\0"
DESCRIBE = b"D\0\0\0\6P\0"
_COPY_DONE = b"c\0\0\0\4"
_VERSION = 196608  # 3.0
_CANCEL_REQUEST = 80877102

_HEADER = struct.Struct("!BI")
_INT = struct.Struct("!i")
_SHORT = struct.Struct("!H")
_FIELD_DESCRIPTION = struct.Struct("!ihihih")

_PIECE = 65536  # bytes of one piece of a COPY, and of a parameter or a value that is worth a way of its own
_LARGE = 1 << 20  # what is longer is not copied without need
_LONG = bytes((ROW_DESCRIPTION, DATA_ROW, COPY_DATA, ERROR_RESPONSE, NOTICE_RESPONSE, NOTIFICATION_RESPONSE))
_SHORT_AT_MOST = 30_000  # bytes of all other messages; more is a server gone mad
_CANCEL_KEY_AT_MOST = 256  # of the protocol's version 3.2; 4 before
_SHAPES_KEPT = 256
_SHAPE_AT_MOST = 1000  # bytes of a row that is worth a guess of its values' sizes
_CONVERTED_AT_ONCE = 4096  # values that are kept as bytes until their columns are converted
_PARAMETERS_AT_MOST = 65535
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


# ---- messages out ---------------------------------------------------------------------------------------------------


# How the statements begin that end a transaction and keep what it did, or part of it.
_KEEP = ("COMMIT", "END", "PREPARE TRANSACTION")
# What the server says where it has kept it; to COMMIT of a failed one it says ROLLBACK.
_KEPT = frozenset((b"COMMIT", b"PREPARE TRANSACTION"))


def _message(code: bytes, body: bytes) -> bytes:
    return code + _INT.pack(len(body) + 4) + body


def query(statement: str) -> bytes:
    """Query: the simple protocol."""
    return _message(b"Q", _encoded(statement) + b"\0")


def parse(statement: str, oids: Sequence[int] = ()) -> bytes:
    """Parse, as the unnamed statement, with the types of its parameters."""
    types = struct.pack(f"!H{len(oids)}i", len(oids), *oids) if any(oids) else b"\0\0"
    return _message(b"P", b"\0" + _encoded(statement) + b"\0" + types)


def refuse_misuse(values: Any) -> None:
    """Raise ProgrammingError for what is no set of parameters."""
    if not isinstance(values, (list, tuple)):
        raise ProgrammingError(f"parameters are a list or a tuple, for $1, $2 and so on; not {type(values).__name__}")
    if len(values) > _PARAMETERS_AT_MOST:
        raise ProgrammingError(f"{len(values)} parameters in one statement; the protocol allows {_PARAMETERS_AT_MOST}")


def types_of(values: Sequence[Any]) -> list[int]:
    """The types of a statement's parameters: those that literals of their Python values would have."""
    return [parameter_oid(value) for value in values]


def _encoded(statement: str) -> bytes:
    if "\0" in statement:
        raise ProgrammingError("a statement may not hold the character zero: the server would stop reading there")
    try:
        return statement.encode()
    except UnicodeEncodeError as error:
        raise ProgrammingError("the statement cannot be encoded as utf-8") from error


def bind(values: Sequence[Any], oids: Sequence[int] = ()) -> bytes:
    """
    Bind, of the unnamed statement to the unnamed portal: everything as text, but long bytes that were declared as such.

    Args: oids: as the statement was parsed with. Binary is what a bytea holds, without a text of twice its length.
    """
    formats = bytearray()
    parts = [b"B", b"", b"\0\0\0\0", _SHORT.pack(len(values))]
    for position, value in enumerate(values, 1):
        try:
            if type(value) is bytes and len(value) > _PIECE and len(oids) >= position and oids[position - 1] == BYTEA:
                formats = formats or bytearray(2 * len(values))
                formats[2 * position - 1] = 1
                parts += (_INT.pack(len(value)), value)
                continue
            text = to_text(value)
            if text is None:
                parts.append(b"\xff\xff\xff\xff")
            else:
                encoded = text.encode()
                parts += (_INT.pack(len(encoded)), encoded)
        except UnknownType as error:
            kind = type(value)
            name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
            raise ProgrammingError(
                f"parameter {position} is of type {name} or holds such a value, which is none of PostgreSQL's: {error}"
            ) from None
        except (ValueError, TypeError, ArithmeticError, AttributeError, struct.error) as error:
            raise DataError(f"parameter {position} of type {type(value).__name__} cannot be sent as text") from error
    parts.append(b"\0\0")
    if formats:
        parts[2] = b"\0\0" + _SHORT.pack(len(values)) + formats
    # Joined once, and not as a body that is copied again behind its header: a parameter may be large.
    parts[1] = _INT.pack(4 + sum(map(len, parts)) - 1)
    return b"".join(parts)


def limit_transaction(names: Sequence[str], milliseconds: int) -> str:
    """
    Return the conditions of a SELECT that gives these time-outs of the server at most so long, until the transaction
    ends.

    They have no parameter: they may stand in a text of several statements. None is ever true, and nothing is taken
    back: a time-out that is shorter already, of the role or of the user's own, stays.
    """
    conditions = []
    for name in names:
        # Written for a short way through the server's parser and planner, which each transaction goes: the operators'
        # functions, and nothing set where nothing is to change. Not `longer AND set_config`, which may be asked in
        # either order.
        now, limit = f"pg_catalog.current_setting('{name}')", f"'{milliseconds}ms'"
        longer = f"pg_catalog.texteq({now}, '0') OR pg_catalog.interval_gt({now}::pg_catalog.interval, {limit})"
        conditions.append(f"CASE WHEN {longer} THEN pg_catalog.set_config('{name}', {limit}, true) IS NULL END")
    return " OR ".join(conditions)


def parameters_in(sent: Iterable[bytes]) -> Iterator[str]:
    """Read the texts of all parameters out of the Bind messages of a flight."""
    return chain.from_iterable(map(_parameters, sent))


def _parameters(sent: bytes) -> Iterator[str]:
    position = 0
    while position + 5 <= len(sent):
        code, length = _HEADER.unpack_from(sent, position)
        if code == BIND:
            place = position + 5
            for _ in range(2):  # the names of portal and statement
                place = sent.index(b"\0", place) + 1
            (given,) = _SHORT.unpack_from(sent, place)
            binary = sent[place + 3 : place + 2 + 2 * given : 2]
            place += 2 + 2 * given
            (count,) = _SHORT.unpack_from(sent, place)
            place += 2
            for number in range(count):
                (size,) = _INT.unpack_from(sent, place)
                place += 4
                if size > 0:
                    value = sent[place : place + size]
                    # Errors show bytes as hexadecimal digits, however they were sent.
                    text = b"\\x" + hexlify(value) if given and binary[number] else value
                    yield text.decode("utf-8", "replace").strip()
                    place += size
        position += 1 + length


def may_keep(sent: Iterable[bytes]) -> bool:
    """Say whether a statement among these messages may end a transaction so that what it did is kept. Pure."""
    for message in sent:
        code, body = bytes(message[:1]), bytes(message[5:])
        # Parse has the name of the statement first; ours have none.
        statements = body.split(b";") if code == b"Q" else [body[1:]] if code == b"P" else []
        if any(first_words(one.decode("utf-8", "replace")).startswith(_KEEP) for one in statements):
            return True
    return False


def first_words(statement: str) -> str:
    """
    Return the beginning of a statement in capitals, without the comments and empty statements before it. Pure.
    """
    statement = statement.lstrip()
    while statement.startswith(("--", "/*", ";")):
        if statement.startswith(";"):
            statement = statement[1:]
        elif statement.startswith("--"):
            statement = statement.replace("\r", "\n").partition("\n")[2]
        else:
            # Comments nest.
            open_ones, end = 1, 2
            while open_ones and end < len(statement):
                two = statement[end : end + 2]
                open_ones += (two == "/*") - (two == "*/")
                end += 2 if two in ("/*", "*/") else 1
            statement = statement[end:]
        statement = statement.lstrip()
    return statement[:20].upper()


def startup(parameters: Mapping[str, str | None], more: Mapping[str, str]) -> bytes:
    """
    StartupMessage; what is None is left out.

    Raises: ProgrammingError for what `more` may not hold, and for text that cannot be sent.
    """
    if clash := parameters.keys() & more.keys():
        raise ProgrammingError(f"startup_params: {', '.join(sorted(clash))} cannot be set there")
    given = {name: value for name, value in {**parameters, **more}.items() if value is not None}
    try:
        packet = b"".join(f"{name}\0{value}\0".encode() for name, value in given.items())
    except UnicodeEncodeError:
        raise ProgrammingError(
            "user, database, application_name and startup_params must be text that UTF-8 can hold"
        ) from None
    if packet.count(b"\0") != 2 * len(given):
        raise ProgrammingError("user, database, application_name and startup_params may not hold the character zero")
    return _INT.pack(len(packet) + 9) + _INT.pack(_VERSION) + packet + b"\0"


# ---- replies in -----------------------------------------------------------------------------------------------------


class Reply:
    """What one flight brought back."""

    __slots__ = (
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
                yield min(size - have, _PIECE)
                have += value.write(self.chunk)
            self.chunk = b""
            if have > size:
                value.seek(size)
                buffer = value.read()
                value.truncate(size)
            values.append(value.getvalue())
        if left:
            raise violation("a row of another length than it says")
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
        return key and b"".join(map(_INT.pack, (12 + len(key), _CANCEL_REQUEST, self.backend_pid))) + key

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
                    raise violation("a row of another length than it says")
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
                    raise violation("a description that nobody asked for")
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
                    raise violation("an answer to something that was not asked")
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
                raise violation("a column in binary, which nobody asked for")
            description.append((body[position:end].decode("utf-8", "replace"), oid, None, size, None, None, None))
            columns.append(Column(oid, self.adapters.get(oid) or self._styled.get(oid)))
            position = end + 19
        if len(self._shapes) >= _SHAPES_KEPT:
            self._shapes.clear()
        self._shapes[body] = shape = description, columns
        return shape

    # ---- what may come at any time

    def _read_aside(self, code: int, body: bytes) -> None:
        if code == PARAMETER_STATUS:
            name, _, value = body[:-1].partition(b"\0")
            self.parameter_statuses[name.decode("utf-8", "replace")] = text = value.decode("utf-8", "replace")
            if name == b"client_encoding" and text.upper() not in ("UTF8", "UNICODE"):  # UNICODE: its old name
                raise NotSupportedError(
                    f"client_encoding was set to {text}, and plungepool speaks UTF8 only; the connection is closed"
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
                raise violation(f"a message {chr(code)!r} that nobody asked for")
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

    # ---- the start of a session

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
                    raise violation("a request to authenticate where none was due")
                if (answer := login.answer(body)) is not None:
                    yield answer
            elif code == ERROR_RESPONSE:
                reply.error = server_error(body)
                login.explain(reply.error)
                if login.is_ahead and reply.error.sqlstate == _PROTOCOL_VIOLATION:
                    raise login.refuse(
                        f"the server did not take the password before it had asked for it: {reply.error}",
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
                    raise violation(f"a key for cancelling of {len(body) - 4} bytes")
                (self.backend_pid,) = _INT.unpack_from(body)
                self._cancel_key = body[4:]
            else:
                self._read_aside(code, body)


# ---- COPY -----------------------------------------------------------------------------------------------------------

# What a stream raises is the user's, and known by where it is called. The server is told, and the connection lives.


def _copy_in(reply: Reply, simple: bool) -> Generator[bytes, None, None]:
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
        if len(batch) >= _PIECE:
            yield bytes(batch)
            batch.clear()
    last = bytes(batch) + _COPY_DONE if reply.own is None else _message(b"f", b"the client gave up\0")
    # In the extended protocol the server has thrown the Sync of the flight away while it waited for data.
    yield last if simple else last + SYNC


def _copy_out(reply: Reply, body: bytes) -> bool:
    """Hand a piece to the user's stream; return whether that takes more."""
    stream = reply.stream
    try:
        data = body.decode() if _is_text(stream) else body
    except UnicodeDecodeError:
        reply.own = DataError("COPY: what the server sent is no UTF-8: write to a stream of bytes")
    else:
        try:
            stream.write(data)
        except Exception as error:  # noqa: BLE001 - a stream may raise anything
            reply.own = error
    return reply.own is None


def _pieces(stream: Any) -> Iterator[bytes | str]:
    if hasattr(stream, "read"):
        while piece := stream.read(_PIECE):
            yield piece
    else:
        yield from stream


def _is_text(stream: Any) -> bool:
    from io import TextIOBase

    return isinstance(stream, TextIOBase)


# ---- authentication -------------------------------------------------------------------------------------------------


class Authentication:
    """What one connect has to prove itself by, and what it was asked for. No frame of it shows the password."""

    def __init__(self, user: str, secret: Secret, peer_certificate: Callable[[], bytes | None]) -> None:
        #: True when the server is content
        self.done = False
        #: True when the password was sent before the server asked for it, and it has not asked for it yet
        self.is_ahead = False
        #: what goes to the server behind the last word of this side's, in the same write
        self.behind = b""
        #: True when that went
        self.is_followed = False
        #: what the server asked for, in pg_hba.conf's words
        self.method = "trust"
        self._user, self._secret, self._peer_certificate = user, secret, peer_certificate
        self._answered = False
        self._scram: Scram | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that proving the password step by step may need."""
        if self._secret.value is None:
            return ()
        return (f"{__package__}.scram", *(() if self._secret.value.isascii() else ("stringprep",)))

    def go_ahead(self, packet: Secret) -> None:
        """
        Put the password behind the start-up packet, as the answer to a request for clear text that is yet to come.
        """
        answer = _encoded_password(self._secret)
        answer.value += b"\0"
        packet.value += self._last(answer).value
        self.is_ahead = True

    def refuse(self, text: str, method: str | None = None, sqlstate: str | None = None) -> PasswordAheadRefused:
        """Return the error for a server that does not take what went ahead."""
        error = PasswordAheadRefused(f"{text}; connect again with password_ahead=False")
        error.authentication, error.sqlstate = method, sqlstate
        return error

    def answer(self, body: bytes) -> Secret | None:
        """
        Return the message that answers a request to authenticate; None where there is nothing to say.

        Raises: OperationalError, NotSupportedError.
        """
        (kind,) = _INT.unpack_from(body)
        if self.is_ahead:
            method = _METHODS.get(kind, str(kind))
            if kind != _CLEAR_TEXT:
                raise self.refuse(f"the server asks for {method}, and not for the password that was sent", method)
            self.is_ahead, self._answered, self.method = False, True, method
            return None
        if kind == _OK:
            if self._scram is not None and not self._scram.verified:
                raise OperationalError("the server skipped the proof that it knows the password")
            self.done = True
            return None
        if kind in (_SASL_CONTINUE, _SASL_FINAL):
            if self._scram is None:
                raise violation("a step of SCRAM that was not begun")
            if kind == _SASL_CONTINUE:
                return self._last(self._scram.answer(body[4:]))
            self._scram.verify(body[4:])
            return None
        if kind not in (_CLEAR_TEXT, _MD5, _SASL):
            raise NotSupportedError(
                f"the server asks for authentication method {kind}, which is not offered here (password, md5 and SCRAM "
                "are)"
            )
        # Only one method is answered: a server that cannot verify SCRAM does not get the password as well.
        if self._answered:
            raise violation("a second method of authentication")
        if self._secret.value is None:
            raise OperationalError(f"the server asks for a password for user {self._user}, and none was given")
        self._answered, self.method = True, _METHODS[kind]
        answer = _encoded_password(self._secret)
        if kind == _SASL:
            from .scram import Scram

            self._scram = Scram(answer, body[4:], self._peer_certificate())
            first = Secret()
            first.value = self._scram.first
            return _password_message(first)
        if kind == _MD5:
            if len(body) < 8:
                raise violation("a salt that is too short")
            answer = _md5(self._user, answer, body[4:8])
        else:
            answer.value += b"\0"
        return self._last(answer)

    def _last(self, answer: Secret) -> Secret:
        """Return the message that is the last word of this side's, and what follows it."""
        message = _password_message(answer)
        if self.behind:
            message.value += self.behind
            self.is_followed = True
        return message

    def explain(self, error: DatabaseError) -> None:
        """Add to the server's refusal what may be wrong with the password."""
        refused = self._answered and (error.sqlstate or "").startswith(("28", "08P01"))
        if refused and self._secret.value != self._secret.value.strip():
            error.args = (f"{error.args[0]}; the password that was sent begins or ends with a blank or a line break",)


def _password_message(answer: Secret) -> Secret:
    message = Secret()
    message.value = b"p" + _INT.pack(len(answer.value) + 4) + answer.value
    return message


def _encoded_password(secret: Secret) -> Secret:
    encoded = Secret()
    try:
        # What os.environ could not decode is the bytes that it was.
        encoded.value = secret.value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # which holds the whole password
        encoded.value = None
    if encoded.value is None:
        raise OperationalError("the password cannot be sent: it is no text that UTF-8 can hold")
    if b"\0" in encoded.value:
        raise OperationalError("the password cannot be sent: it holds the character zero")
    return encoded


def _md5(user: str, password: Secret, salt: bytes) -> Secret:
    from hashlib import md5

    answer = Secret()
    answer.value = md5(password.value + user.encode(), usedforsecurity=False).hexdigest().encode()
    answer.value = b"md5" + md5(answer.value + salt, usedforsecurity=False).hexdigest().encode() + b"\0"
    return answer
