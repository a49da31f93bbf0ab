"""PEP 249's connection and cursor over a session's flights: transactions, two-phase commit, COPY."""

from __future__ import annotations

import contextlib
import time as clock
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from . import errors
from .errors import EndOfStream, Error, InterfaceError, InternalError, OperationalError, ProgrammingError, Secret
from .local import Local
from .messages import BIND_NOTHING, DESCRIBE, EXECUTE, SYNC, bind, first_words, parse, refuse_misuse, types_of
from .parameters import cut
from .protocol import FAILED, IDLE, Reply
from .session import Session

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


def connect(
    *,
    user: str,
    host: str = "localhost",
    port: int = 5432,
    address: str | None = None,
    database: str | None = None,
    password: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    tls_negotiation: str = "postgres",
    password_ahead: bool = False,
    application_name: str | None = None,
    connect_timeout_s: float = 5.0,
    dead_peer_timeout_s: float = 10.0,
    startup_params: Mapping[str, str] | None = None,
    cancel_on_abandon: bool = True,
    first_statement: str | None = None,
    first_statement_ahead: bool = True,
) -> Connection:
    """
    Open a connection; blocks for at most `connect_timeout_s` (the look-up of the host's name comes on top).

    Args: address: what to dial in place of `host` and `port` (the end of a tunnel): a host, or host:port; TLS verifies
        `host` all the same, and CancelRequests go there too. ssl_context: TLS with this context, or an error; None
        means plain text. tls_negotiation: "direct" starts TLS at once, which PostgreSQL 17 and newer takes, for a round
        trip less (libpq's sslnegotiation); the context must offer ALPN: context.set_alpn_protocols(["postgresql"]).
        password_ahead: send the password, as it is, before the server asks for it, for a round trip less: for a token,
        or where the server is known to ask for it in clear text; never before the server has shown a verified
        certificate. connect_timeout_s: TCP, TLS and authentication together; reading later has no time-out of its own.
        dead_peer_timeout_s: how long a network may swallow everything until waiting for it ends with an error.
        startup_params: settings of the server that hold from the start; poolers refuse most. cancel_on_abandon: ask the
        server to stop a statement whose reply is not waited for any more; of no use behind a proxy. first_statement:
        what it brings, its error included, is `first`; it goes with the password, or behind (first_statement_ahead).
    Raises: OperationalError when the server cannot be reached, refuses, or is too slow; PasswordAheadRefused when it
        has to be asked again with password_ahead=False; NotSupportedError for a method of authentication that is not
        known here; ProgrammingError for an argument that cannot be, and for `password_ahead` with a context that does
        not verify.
    Units: every *_s is in seconds of wall clock.
    Threads, forks: a connection is for one thread at a time; a forked child may only close it.
    """
    secret = Secret()
    secret.value, password = password, None
    return Connection(
        user=user,
        host=host,
        port=port,
        address=address,
        database=database,
        secret=secret,
        ssl_context=ssl_context,
        tls_negotiation=tls_negotiation,
        password_ahead=password_ahead,
        application_name=application_name,
        connect_timeout_s=connect_timeout_s,
        dead_peer_timeout_s=dead_peer_timeout_s,
        startup_params=startup_params or {},
        cancel_on_abandon=cancel_on_abandon,
        first_statement=first_statement,
        first_statement_ahead=first_statement_ahead,
    )


_COMMENTED = ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "COPY", "EXPLAIN", "CALL", "(")
_COMMIT = parse("COMMIT") + BIND_NOTHING + EXECUTE


class Xid(NamedTuple):
    """PEP 249's name of a two-phase transaction; `str()` is the server's, written as psycopg writes it."""

    format_id: int
    gtrid: str
    bqual: str

    def __str__(self) -> str:
        from base64 import b64encode

        return "_".join((str(self.format_id), *(b64encode(part.encode()).decode() for part in self[1:])))


def _literal(text: str) -> str:
    escaped = text.replace("'", "''")
    return f" E'{escaped}'".replace("\\", "\\\\") if "\\" in text else f"'{escaped}'"


class _Transactions(Session):
    """What a transaction is begun with, how it ends, and which statements ride with its BEGIN."""

    def __init__(self, **options: Any) -> None:
        self._autocommit = False
        self._local = Local()
        self._isolation_level: str | None = None
        self._deferrable: bool | None = None
        self._xid: str | None = None
        self._prepared = False
        #: gets the text and the parameters of each statement of a cursor's, before it is sent
        self.overhears: Callable[[str, Iterable[Any]], object] | None = None
        #: gives what is to stand behind each statement of a cursor's that may read or write a row: a comment
        self.comment: Callable[[], str] | None = None
        # How each checkout finds it: what it is set to before the first.
        self._at_the_start: tuple[bool, str | None, bool | None, bool | None] | None = None
        # Before the session is opened: a strike behind that would leave a connection without its BEGIN.
        self._readonly: bool | None = None
        self._plan_begin()
        super().__init__(**options)

    @property
    def used_password(self) -> bool:
        """Whether the server asked for the password; where it trusts, nobody knows whether that is right."""
        return self.authentication != "trust"

    @property
    def deadline(self) -> float | None:
        """
        The moment at which a flight is given up and the connection closed; None: never.

        Units: seconds of wall clock since the epoch, as time.time() counts them.
        """
        return self._transport.deadline

    @deadline.setter
    def deadline(self, moment: float | None) -> None:
        self._transport.deadline = moment

    @property
    def in_transaction(self) -> bool:
        """True when a transaction is open on the server, failed or not."""
        return self._protocol.status != IDLE

    @property
    def transaction_number(self) -> int:
        """A number that the open transaction has, and no earlier one of this session had."""
        return self._local.begun

    @property
    def in_failed_transaction(self) -> bool:
        """True when a statement of the open transaction failed, so that only a rollback is left."""
        return self._protocol.status == FAILED

    @property
    def autocommit(self) -> bool:
        """True when each statement is a transaction of its own; costs nothing to change, but not inside one."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._refuse_inside_transaction("autocommit")
        self._autocommit = value

    @property
    def isolation_level(self) -> str | None:
        """The isolation level that the next BEGIN asks for; None: the server's default."""
        return self._isolation_level

    @isolation_level.setter
    def isolation_level(self, value: str | None) -> None:
        self._refuse_inside_transaction("isolation_level")
        if value not in (None, "READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
            raise ProgrammingError(f"isolation_level: {value!r} is not an isolation level")
        self._isolation_level = value
        self._plan_begin()

    @property
    def readonly(self) -> bool | None:
        """Whether the next BEGIN asks for READ ONLY (True), READ WRITE (False), or neither (None)."""
        return self._readonly

    @readonly.setter
    def readonly(self, value: bool | None) -> None:
        self._refuse_inside_transaction("readonly")
        if self._writer.never:
            if value is not None and not value:
                raise ProgrammingError(f"readonly: {self._writer.never}")
            value = True
        self._readonly = self._writer.begun_read_only = value
        self._plan_begin()

    def refuse_writes(self, why: str) -> None:
        """
        Let the session only read, from here to its end, and whatever is asked for.

        Each BEGIN asks for READ ONLY; in AUTOCOMMIT BEGIN and COMMIT go with the statement, in its own flight, so that
        what cannot stand in a transaction is refused, as is a text that begins one; and a text holds one statement.
        Nothing is set in the session, so that it holds behind a pooler, too. Args: why: for the errors.
        """
        self._writer.never = why
        self.readonly = True

    @property
    def deferrable(self) -> bool | None:
        """Whether the next BEGIN asks for DEFERRABLE (True), NOT DEFERRABLE (False), or neither (None)."""
        return self._deferrable

    @deferrable.setter
    def deferrable(self, value: bool | None) -> None:
        self._refuse_inside_transaction("deferrable")
        self._deferrable = value
        self._plan_begin()

    @property
    def tells_deadline(self) -> bool:
        """
        Whether the server is told `deadline` as well, with what begins a transaction: it then ends what this side
        cannot end any more. By transaction_timeout, which ends the session; before PostgreSQL 17 by statement_timeout
        and idle_in_transaction_session_timeout.
        """
        return self._local.tells_deadline

    @tells_deadline.setter
    def tells_deadline(self, value: bool) -> None:
        self._local.tells_deadline = value

    @property
    def transaction_settings(self) -> Mapping[str, str]:
        """
        Settings of the server that each transaction has for itself, by name: a copy of what was given. Empty: none.

        They go with BEGIN, as bound parameters, and end with the transaction; in AUTOCOMMIT they go with each statement
        that can stand in a transaction, and others are refused. A text of several statements is refused as well.
        Raises: at setting, ProgrammingError within a transaction, for a name that may not be set (docs/tenants.md), and
            for what is no text.
        """
        return self._local.given.copy()

    @transaction_settings.setter
    def transaction_settings(self, settings: Mapping[str, str]) -> None:
        self._refuse_inside_transaction("transaction_settings")
        self._local.give(settings)

    def require_settings(self, names: Iterable[str], by: str = "require_settings") -> None:
        """
        Send nothing by a cursor where `transaction_settings` have no value for one of these, which is SettingsMissing.

        Args: names: in lower case. by: who wants it, for the error's text.
        """
        self._local.require(names, by)

    def start_anew(self) -> None:
        """
        Be as before the first use, for whoever gets the connection next; no I/O.

        What was set before the first call (autocommit, isolation_level, readonly, deferrable) is set again; the
        settings of transactions are none.
        Raises: OperationalError where a transaction is open, whose settings are its own; the connection is closed.
        """
        if self._protocol.status != IDLE and not self.closed:
            self._discard("it was passed on with an open transaction")
            error = OperationalError("the connection was passed on with an open transaction: it is closed")
            error.disconnected = True
            raise error
        self._xid, self._prepared = None, False
        if self._local.given:
            self._local.give({})
        now = self._autocommit, self._isolation_level, self._readonly, self._deferrable
        if self._at_the_start is None:
            self._at_the_start = now
        elif now != self._at_the_start or self._begin_is_of != now[1:]:
            self._autocommit, self._isolation_level, self._readonly, self._deferrable = self._at_the_start
            self._writer.begun_read_only = self._readonly
            self._plan_begin()

    def _refuse_inside_transaction(self, name: str) -> None:
        if self.in_transaction and not self.closed:
            raise ProgrammingError(f"{name} cannot change inside a transaction: commit or roll back first")

    def _plan_begin(self) -> None:
        begin = "BEGIN"
        if self._isolation_level is not None:
            begin += f" ISOLATION LEVEL {self._isolation_level}"
        if self._readonly is not None:
            begin += " READ ONLY" if self._readonly else " READ WRITE"
        if self._deferrable is not None:
            begin += " DEFERRABLE" if self._deferrable else " NOT DEFERRABLE"
        self._begin = begin
        # As messages of the flight it rides with, and not as a query of its own: if BEGIN fails, the server skips the
        # rest, and nothing runs outside the transaction it was meant for.
        self._begin_messages = parse(begin) + BIND_NOTHING + EXECUTE
        # Set last: what was struck before it is planned again.
        self._begin_is_of = self._isolation_level, self._readonly, self._deferrable

    def commit(self) -> None:
        """
        Commit; no round trip when nothing was sent since the last one.

        Raises: InternalError when the server rolled back instead, since a statement of the transaction had failed;
            ProgrammingError within a two-phase transaction.
        """
        self._refuse_within_tpc("commit")
        self._commit()

    def _commit(self) -> None:
        if self._protocol.status != IDLE or self.closed:
            # A session that has ended already says so before COMMIT is sent, and not in place of its answer: that is
            # the difference between a transaction that may run again and one of which nobody knows.
            self.check()
            reply = self._query("COMMIT")
            if reply.tag == b"ROLLBACK":
                error = InternalError(
                    "COMMIT was answered by ROLLBACK, since a statement of the transaction had failed (SQLSTATE 25P02)"
                )
                error.sqlstate, error.message = "25P02", str(error)
                raise error

    def rollback(self) -> None:
        """
        Roll back; no round trip when nothing was sent since the last one.

        Raises: ProgrammingError within a two-phase transaction.
        """
        self._refuse_within_tpc("rollback")
        self._rollback()

    def _rollback(self) -> None:
        if self.deadline is not None and self._protocol.status != IDLE and self.deadline <= clock.time():
            # There is no time left to ask for it, and the server does it by itself when the session ends.
            self.close()
        elif self._protocol.status != IDLE or self.closed:
            try:
                self._ask_for_rollback()
            except Error as error:
                # The transaction may be open still: only the end of the session is sure to roll back. SQLAlchemy 2.0
                # would keep a connection checked out whose close() raises anything but a lost connection.
                if not error.disconnected:
                    self.close()
                    error.disconnected = True
                raise

    def _ask_for_rollback(self) -> None:
        if not self._writer.in_doubt:
            self._query("ROLLBACK")
            return
        self._writer.in_doubt = False
        reply = self._query("ROLLBACK; SELECT pg_catalog.pg_is_in_recovery()")
        if reply.rows == [(True,)]:
            self._discard("its server no longer accepts writes: has the writer moved?")

    def _refuse_within_tpc(self, name: str) -> None:
        if self._xid is not None and not self.closed:
            raise ProgrammingError(
                f"{name} cannot be used within a two-phase transaction: use tpc_commit or tpc_rollback"
            )

    def check(self) -> None:
        """
        Look whether the server has hung up, without a round trip; blocks never.

        Raises: InterfaceError when the connection is closed; OperationalError when the server closed it, with the
            reason that it gave (for example 57P01).
        """
        transport = self._usable()
        self._flying = True
        try:
            self._protocol.sort_out_leftovers()
            if transport.is_readable():
                ended = False
                while not ended and (chunk := transport.take()) is not None:
                    self._protocol.sort_out_leftovers(chunk)
                    ended = not chunk
                if ended:
                    raise EndOfStream
        except BaseException as error:  # noqa: BLE001 - `_give_up` raises it
            self._give_up(error, None)
        self._flying = False

    def ping(self) -> None:
        """
        Ask the server whether it is there: one round trip.

        Raises: OperationalError when it is not; InterfaceError when the connection is closed.
        """
        self._fly(Reply((SYNC,)), 0, 0)


class Connection(_Transactions):
    """
    One session; not to be shared between threads at the same time. `connect` makes it, and says what it raises.

    Units: every *_s is in seconds.
    """

    def __init__(self, **options: Any) -> None:
        self._cursor_names = count(1)
        super().__init__(**options)

    def register_in_adapter(self, oid: int, reader: Callable[[str], Any]) -> None:
        """
        Read values of the type `oid` with `reader`, which gets the server's text; what it raises, the statement raises.
        """
        self._protocol.adapt(oid, reader)

    def cursor(self) -> Cursor:
        """Return a new cursor; no I/O."""
        return Cursor(self)

    def name_cursor(self) -> str:
        """Return a name for a cursor on the server that this session has not used yet."""
        return f"plungepool_{next(self._cursor_names)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """
        Commit, or roll back where an exception leaves the block; then close, as psycopg does.

        Raises: what `commit` raises, also where the block has hidden the failure of a statement.
        """
        try:
            if kind is None and not self.closed:
                self.commit()
            elif not self.closed:
                self.leave_tpc()
                with contextlib.suppress(Error):  # the exception that is on its way tells more
                    self.rollback()
        finally:
            self.close()

    def xid(self, format_id: int, global_transaction_id: str, branch_qualifier: str) -> Xid:
        """
        Return a name for `tpc_begin`, which takes any text, too. Raises: ProgrammingError for parts that are too long.
        """
        if not 0 <= format_id <= 0x7FFFFFFF:
            raise ProgrammingError("xid: the format ID must be from 0 to 2147483647")
        if not all(len(part.encode()) <= 64 for part in (global_transaction_id, branch_qualifier)):
            raise ProgrammingError("xid: each part may have at most 64 bytes")
        return Xid(format_id, global_transaction_id, branch_qualifier)

    def tpc_begin(self, xid: str | Xid) -> None:
        """
        Name the transaction that the next statement starts.

        Raises: ProgrammingError within a transaction, and in autocommit mode.
        """
        if not self._prepared:  # a prepared one is the server's, and may have been ended by somebody else
            self._refuse_within_tpc("tpc_begin")
        self._refuse_inside_transaction("tpc_begin")
        if self._autocommit:
            raise ProgrammingError("tpc_begin cannot be used in autocommit mode")
        self._xid, self._prepared = str(xid), False

    def tpc_prepare(self) -> None:
        """
        First phase: the server keeps the transaction, under its name, whatever becomes of this connection.

        Raises: InternalError when the server rolled back instead; ProgrammingError without `tpc_begin`.
        """
        if self._xid is None or self._prepared:
            raise ProgrammingError("tpc_prepare needs a transaction begun by tpc_begin, and can be called once")
        # Where nothing was executed, an empty transaction is prepared.
        reply = self._run(f"PREPARE TRANSACTION {_literal(self._xid)}", ((),))
        if reply.tag == b"ROLLBACK":
            raise InternalError(
                "PREPARE TRANSACTION was answered by ROLLBACK, since a statement of the transaction had failed"
            )
        self._prepared = True

    def tpc_commit(self, xid: str | Xid | None = None) -> None:
        """
        Second phase, or the only one when the transaction was not prepared; `xid`: one that tpc_recover has found.

        Raises: ProgrammingError without a transaction that is named; 42704 where nobody has prepared that name.
        """
        self._tpc_end("COMMIT", xid)

    def tpc_rollback(self, xid: str | Xid | None = None) -> None:
        """Roll back, prepared or not; `xid`: one that tpc_recover has found."""
        self._tpc_end("ROLLBACK", xid)

    def leave_tpc(self) -> None:
        """
        Forget the two-phase transaction; one that is prepared stays on the server until somebody ends it by its name.
        """
        self._xid, self._prepared = None, False

    def tpc_recover(self) -> list[str]:
        """Return the names of the prepared transactions of this database: one round trip."""
        reply = self._query(
            "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()"
        )
        return [row[0] for row in reply.rows]

    def _tpc_end(self, verb: str, xid: str | Xid | None) -> None:
        if xid is None and self._xid is None:
            raise ProgrammingError(f"tpc_{verb.lower()} needs a transaction begun by tpc_begin, or an xid")
        if xid is not None and self._xid not in (None, str(xid)):
            raise ProgrammingError(
                f"tpc_{verb.lower()} of another transaction cannot be used before this one has ended"
            )
        own, self._xid = self._xid if self._prepared else None, None
        if xid is None and self.in_transaction:
            if verb == "COMMIT":
                self._commit()
            else:
                self._rollback()
        elif xid is not None or own is not None:
            self._query(f"{verb} PREPARED {_literal(str(xid or own))}")

    def _execute(self, statement: str, values: Sequence[Any], stream: Any, *, own: bool) -> Reply:
        """Run one statement; `own`: it is no user's, and needs none of the settings that are required."""
        local = self._local
        several = not values and (stream is not None or ";" in statement)
        if several and not local.given and not self._writer.never:
            # The simple protocol: the only one that takes several statements, and the one for COPY.
            if local.lacking and not own:
                local.refuse_lack()
            idle = self._protocol.status == IDLE
            if idle:
                local.begin()
            limit = self._limit(statement, autocommit=self._autocommit)
            first = [f"SELECT WHERE {limit}"] if limit else []
            if idle and self._autocommit:
                # It may be one that stands in no transaction with another one, or a text that begins a transaction.
                first, limit = [], ""
            elif idle:
                first = [self._begin, *first]
            reply = self._query(statement, stream, first, kept=idle and self._autocommit)
            local.note(settings=False, limit=limit)
            return reply
        try:
            return self._run(statement, (values,), stream=stream, own=own)
        except ProgrammingError as error:
            if error.sqlstate == "42601" and ";" in statement and not values:
                why = "with settings of a transaction (plungepool_settings)" if local.given else self._writer.never
                error.args = (f"{error.args[0]}; {why} a string may contain only one statement",)
            raise

    def _run(
        self,
        statement: str,
        rows: Sequence[Sequence[Any]],
        first: tuple[bytes, ...] = (),
        *,
        stream: Any = None,
        own: bool = False,
    ) -> Reply:
        """
        One flight of one statement, once for each of `rows`; `first` are messages of statements that go before it.

        The statement is parsed anew where the types of the parameters change, and stays one flight. Before all of them
        go BEGIN, where a transaction has to start, and what it is to have for itself.
        """
        local = self._local
        if local.lacking and not own:
            local.refuse_lack()
        # A cursor on the server needs a transaction of the user's.
        reads_alone = self._autocommit and bool(self._writer.never) and not first
        if reads_alone:
            self._refuse_to_begin(statement)
        status, autocommit = self._protocol.status, self._autocommit and not reads_alone
        if status == IDLE:
            local.begin()
        settings = bool(local.given) and local.has_to_tell(statement, status, autocommit=autocommit)
        limit = self._limit(statement, autocommit=autocommit)
        if settings or limit:
            first = (local.message(settings=settings, limit=limit), *first)
        if not autocommit and status == IDLE:
            first = (self._begin_messages, *first)
        for values in rows:
            refuse_misuse(values)
        runs = [(types_of(rows[0]), rows)] if len(rows) == 1 else cut(statement, rows)
        parts = [*first]
        for oids, run in runs:
            parts.append(parse(statement, oids))
            describe = DESCRIBE
            for values in run:
                parts += (bind(values, oids), describe, EXECUTE)
                describe = b""
        if reads_alone:
            parts.append(_COMMIT)
        parts.append(SYNC)
        reply = Reply(parts, stream)
        reply.kept = autocommit and status == IDLE
        reply.runs = [len(run) for _, run in runs] + [1] * reads_alone
        try:
            self._fly(reply, len(first), len(rows) + reads_alone)
        except Error:
            if reads_alone:
                self._end_reading()
            raise
        if settings or limit:
            local.note(settings=settings, limit=limit)
            if settings and self._protocol.status != IDLE:
                self._protocol.declared.append(local.bound)
        return reply

    def _refuse_to_begin(self, statement: str) -> None:
        """Refuse a text that begins a transaction which COMMIT, in the same flight, would end."""
        if first_words(statement).startswith(("BEGIN", "START")):
            raise ProgrammingError(
                f"{self._writer.never}, and begins its transactions automatically: nothing was sent. Use "
                "`connection.begin()`, without AUTOCOMMIT"
            )
        self._end_reading()

    def _end_reading(self) -> None:
        """Roll back what a statement that reads alone has left open: its transaction has failed, or was struck."""
        if self._protocol.status != IDLE and not self.closed:
            with contextlib.suppress(Error):  # it is closed then, and the next statement says so
                self._query("ROLLBACK")

    def _limit(self, statement: str, *, autocommit: bool) -> str:
        deadline = self._transport.deadline
        if deadline is None or not self._local.tells_deadline:
            return ""
        version = self._protocol.parameter_statuses.get("server_version", "")
        return self._local.limit(
            statement, self._protocol.status, autocommit=autocommit, deadline=deadline, version=version
        )

    def _declare(self, name: str, statement: str, values: Sequence[Any], *, own: bool) -> Reply:
        refuse_misuse(values)
        oids = types_of(values)
        declare = parse(f"DECLARE {name} NO SCROLL CURSOR FOR {statement}", oids) + bind(values, oids) + EXECUTE
        return self._run(f"FETCH FORWARD 0 FROM {name}", ((),), (declare,), own=own)


class Cursor:
    """The result of one statement, all of it in memory."""

    #: True for what no user executes, as a dialect's own questions: it needs none of the settings that are required
    is_own = False

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.arraysize = 1
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self._rows: Iterator[tuple[Any, ...]] | None = None
        self._closed = False

    def execute(self, operation: str, args: Sequence[Any] = (), stream: Any = None) -> Cursor:
        """
        Execute one statement with `args` for ``$1``, ``$2`` and so on; without any, several statements may stand in it.

        BEGIN goes before it in the same flight where a transaction has to start.

        Args: stream: what COPY reads from (a file, or any iterable of text or bytes) or writes to (a file).
        Raises: the server's error, classed by its SQLSTATE; DataError for a value that cannot be sent or read;
            ProgrammingError for what is no statement, no parameters, or has no stream; InterfaceError when the
            connection or the cursor is closed; OperationalError when it was lost; DeadlineExceeded; what the stream
            raises.
        """
        self._start(operation, args)
        self._take(self.connection._execute(self._commented(operation), args, stream, own=self.is_own))
        return self

    def declare(self, name: str, operation: str, args: Sequence[Any] = ()) -> None:
        """
        Declare a cursor on the server, for FETCH; one flight, which also tells `description`.

        Raises: as `execute`.
        """
        self._start(operation, args)
        reply = self.connection._declare(name, self._commented(operation), args, own=self.is_own)
        self._take(reply)
        if args:  # an error of a later FETCH may show them
            self.connection._protocol.declared += reply.sent

    def executemany(self, operation: str, param_sets: Iterable[Sequence[Any]]) -> Cursor:
        """
        Execute the statement once for each of `param_sets`, all in one flight: all of it happens, or nothing.

        Raises: as `execute`.
        """
        sets = list(param_sets)
        self._start(operation, chain.from_iterable(sets))
        if sets:
            self._take(self.connection._run(self._commented(operation), sets, own=self.is_own))
        else:
            self.rowcount = 0
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, operation: str, args: Iterable[Any]) -> None:
        if self._closed:
            raise InterfaceError("the cursor is closed")
        if not isinstance(operation, str):
            raise ProgrammingError(f"a statement must be text, not {type(operation).__name__}")
        if self.connection.overhears is not None:
            self.connection.overhears(operation, args)
        self.description, self.rowcount, self._rows = None, -1, None

    def _commented(self, operation: str) -> str:
        """
        Return a statement with the comment behind it, if there is to be one.

        Not behind what manages transactions or defines something, which is read for words, or kept with its text.
        """
        comment = self.connection.comment
        if comment is None or self.is_own or not first_words(operation).startswith(_COMMENTED):
            return operation
        return operation + comment()

    def _take(self, reply: Reply) -> None:
        self.rowcount = reply.rowcount
        if reply.description is not None:
            self.description = reply.description
            self._rows = iter(reply.rows)

    def _results(self) -> Iterator[tuple[Any, ...]]:
        if self._rows is None:
            raise ProgrammingError(
                "there is no result to fetch from: the last statement returned no rows, or none was executed"
            )
        return self._rows

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, or None; ProgrammingError where no statement has returned rows."""
        return next(self._results(), None)

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """Return the next `size` rows, or so many as `arraysize` says; ProgrammingError as `fetchone`."""
        return list(islice(self._results(), self.arraysize if size is None else size))

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left; ProgrammingError as `fetchone`."""
        return list(self._results())

    def __iter__(self) -> Self:
        self._results()
        return self

    def __next__(self) -> tuple[Any, ...]:
        return next(self._results())

    def close(self) -> None:
        """Forget the result; executing raises InterfaceError from here on."""
        self._closed = True
        self._rows = None

    def setinputsizes(self, sizes: Any) -> None:
        """Does nothing: PEP 249 asks for it."""

    def setoutputsize(self, size: Any, column: Any = None) -> None:
        """Does nothing: PEP 249 asks for it."""


# PEP 249's optional extension: the exceptions, for whoever has a connection and not the module.
for _class in errors.CLASSES:
    setattr(Connection, _class.__name__, _class)
