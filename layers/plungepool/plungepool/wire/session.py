"""
One session with a server: what is asked in one write and answered to its end, a *flight*, and what becomes of a torn
one.
"""

from __future__ import annotations

import os
import time as clock
from typing import TYPE_CHECKING, Any, NoReturn

from ..names import split_address
from .authentication import Authentication
from .errors import (
    DatabaseError,
    DataError,
    DeadlineExceeded,
    EndOfStream,
    Error,
    InterfaceError,
    Lost,
    OperationalError,
    ProgrammingError,
    Secret,
    TooLate,
    violation,
)
from .messages import SYNC, TERMINATE, may_keep, query, startup
from .protocol import IDLE, SEVERAL, Protocol, Reply
from .transport import CANCEL_TIMEOUT_S, DEAD_PEER_AT_MOST_S, Transport

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

#: told of each flight before it leaves, and with None of each session that was opened; for tools, nobody here listens
listener: Callable[[Session, Reply | None], None] | None = None
#: told of each flight that has ended, and with None of each attempt to open a session: when it began, by the wall clock
#: (0: the deadline had passed, and nothing was sent), and what it raises; `observe` sets it, else nobody listens
ended: Callable[[Session, Reply | None, float, BaseException | None], None] | None = None

_READ_ONLY = "25006"
_NOT_SUPPORTED = "0A000"
# Where PostgreSQL refuses SERIALIZABLE on a standby: at BEGIN, and at the first statement where it is the default.
_SERIALIZABLE_REFUSED = frozenset(("call_enum_check_hook", "GetSerializableTransactionSnapshot"))
# transaction_timeout, idle_in_transaction_session_timeout, statement_timeout
_TIMED_OUT = frozenset(("25P04", "25P03", "57014"))
_DEFAULT = "default_transaction_read_only"


class _Writer:
    """
    The evidence of who asked for READ ONLY: where nobody did, a write that is refused means that the writer has moved.
    """

    def __init__(self, reported: Mapping[str, str]) -> None:
        """Take what the server reports, which changes."""
        self._reported = reported
        #: why this session never writes; empty: it may
        self.never = ""
        #: what our BEGIN asks for: READ ONLY, READ WRITE, neither
        self.begun_read_only: bool | None = None
        #: a statement of the user's own that may have asked for READ ONLY was executed in the open transaction
        self.may_have_asked = False
        #: a write was refused, and who asked for READ ONLY is known at the rollback
        self.in_doubt = False
        # SET has turned default_transaction_read_only on, for the session.
        self._for_session = False

    def note(self, default_before: str | None) -> None:
        """A statement that may have asked for READ ONLY was executed; with what was reported before it."""
        self.may_have_asked = True
        if self._reported.get(_DEFAULT) != default_before:
            self._for_session = default_before == "off"

    def judge(self, error: DatabaseError) -> None:
        """
        Mark 25006 as a disconnect where nothing says that this client asked for READ ONLY: the writer has moved then.
        So it has where a standby refuses a SERIALIZABLE transaction, which gets no further than that.

        The evidence is our BEGIN, what the server reports (PostgreSQL 14 and newer), and whether the transaction holds
        a statement that can ask for READ ONLY. The last is not certain (it may have been any SET), so that the rollback
        asks the server whether it is a standby.
        """
        if self.begun_read_only is True:
            error.asked_read_only = error.sqlstate == _READ_ONLY
            if error.asked_read_only and self.never:
                error.args = (f"{error.args[0]}; {self.never}: use another engine for writes",)
            return
        reported = self._reported
        standby = reported.get("in_hot_standby") == "on"
        if error.sqlstate == _NOT_SUPPORTED:
            # No other enumeration of the server's is refused as not supported. What a pooler reports may be another
            # server's.
            if error.diag.source_function not in _SERIALIZABLE_REFUSED:
                return
            standby = True
        elif error.sqlstate != _READ_ONLY:
            return
        if not standby and (self._for_session or reported.get(_DEFAULT) != "on"):
            self.in_doubt = self.may_have_asked
            if self._for_session or self.may_have_asked:
                return
        error.disconnected = True
        error.__class__ = OperationalError
        doubt = "is this a reader's endpoint, or has the writer moved?"
        error.args = (f"{error.args[0]}; the connection is for writing: {doubt}",)


class Session:
    """
    Flights to one server, one after the other; `Connection` puts transactions and PEP 249 on top.

    Whatever stops a flight before its reply is read closes the session for good: a reply that is half read is never
    taken for the next one's.
    """

    # For the repr of one that was struck before it was made: crash reporters print it.
    _transport: Transport
    _flying = False
    _place = "no server yet"
    #: how often the server was waited for until the session was open: TCP, TLS, authentication
    opening_round_trips = 0
    #: the seconds that each part of that took, as far as it came: name, tcp, tls, authentication
    opening_s: Mapping[str, float] = {}
    #: True while its flights are nobody's but whose who uses it: `listener` and `ended` are not told of them
    unheard = False

    def __init__(
        self,
        *,
        user: str,
        host: str,
        port: int,
        address: str | None,
        database: str | None,
        secret: Secret,
        ssl_context: ssl.SSLContext | None,
        tls_negotiation: str,
        password_ahead: bool,
        application_name: str | None,
        connect_timeout_s: float,
        dead_peer_timeout_s: float,
        startup_params: Mapping[str, str],
        cancel_on_abandon: bool,
        first_statement: str | None,
        first_statement_ahead: bool,
    ) -> None:
        """Open it; as `connect` says."""
        _refuse_misuse(secret, ssl_context, tls_negotiation, password_ahead, connect_timeout_s, dead_peer_timeout_s)
        self.host, self.port, self.user, self.database = host, port, user, database or user
        # For errors and the repr: where the connection goes, and whom it should reach there.
        self._place = f"{address} (for {host}:{port})" if address else f"{host}:{port}"
        self._transport = Transport(
            host=host,
            dialled=_dialled(address, host, port),
            place=self._place,
            ssl_context=ssl_context,
            direct=tls_negotiation == "direct",
            dead_peer_timeout_s=dead_peer_timeout_s,
        )
        self._protocol = protocol = Protocol()
        #: what the server reported: server_version, TimeZone, in_hot_standby and more
        self.parameter_statuses = protocol.parameter_statuses
        #: the last 100 notices, each the server's fields by name
        self.notices = protocol.notices
        #: the last 100 notifications: process, channel, payload
        self.notifications = protocol.notifications
        #: what the server asked for, in pg_hba.conf's words: `password` (in clear text, as for IAM tokens, LDAP and
        #: PAM), `md5`, `scram-sha-256`; `trust` where it asked for nothing
        self.authentication = "trust"
        #: how often the server was waited for since the connection was made
        self.flights = 0
        #: when it answered last, in seconds since the epoch: the last proof that there is a way to it
        self.answered_at = 0.0
        self.cancel_on_abandon = cancel_on_abandon
        self._process = os.getpid()
        # True from before the first byte of a flight until its reply is read: found True later, the flight was torn.
        self._flying, self._lost = False, ""
        self._writer = _Writer(protocol.parameter_statuses)
        login = Authentication(user, secret, self._transport.peer_certificate)
        #: what the first statement has brought; None where there was none
        self.first = Reply((query(first_statement),)) if first_statement else None
        login.behind = self.first.sent[0] if self.first is not None and first_statement_ahead else b""
        packet = _first_packet(user, database, application_name, startup_params)
        self._open(login, packet, connect_timeout_s, secured=ssl_context is not None, ahead=password_ahead)

    def __repr__(self) -> str:
        state = "closed" if "_lost" not in vars(self) or self.closed else f"process {self._protocol.backend_pid}"
        return f"<plungepool.wire.Connection to {self._place}, {state}>"

    @property
    def closed(self) -> bool:
        """True when the connection can never be used again."""
        return self._transport.sock is None or self._flying

    @property
    def gone(self) -> bool:
        """
        True when not even a socket is left of it; unlike `closed`, also right while another thread is at work with it.
        """
        return self._transport.sock is None

    @property
    def backend_pid(self) -> int:
        """The server's process that serves this session; 0 where it did not say."""
        return self._protocol.backend_pid

    @property
    def commits(self) -> int:
        """How often the server has said that it keeps what a transaction did."""
        return self._protocol.commits

    @property
    def received(self) -> int:
        """How many bytes have come so far."""
        return self._transport.received

    @property
    def address(self) -> Any:
        """Where it leads, as getaddrinfo writes addresses."""
        return self._transport.address

    @property
    def looked_up(self) -> tuple[Any, ...]:
        """All the addresses that the look-up of the host's name has shown when the connection was opened."""
        return self._transport.looked_up

    def _open(
        self, login: Authentication, packet: Secret, connect_timeout_s: float, *, secured: bool, ahead: bool
    ) -> None:
        began = clock.time()
        try:
            self._go_in(login, packet, connect_timeout_s, secured=secured, ahead=ahead)
        except BaseException as error:
            if ended is not None:
                ended(self, None, began, error)
            raise
        if ended is not None:
            ended(self, None, began, None)

    def _go_in(
        self, login: Authentication, packet: Secret, connect_timeout_s: float, *, secured: bool, ahead: bool
    ) -> None:
        transport = self._transport
        reply = Reply()
        try:
            if ahead:
                login.go_ahead(packet)
            else:
                _load(*login.modules)  # now, and not when the socket has taken the last descriptor
            began = clock.time()
            transport.deadline = began + connect_timeout_s
            stage = "TCP"
            try:
                transport.dial()
                dialled, named = clock.time(), transport.named_at
                parts = self.opening_s = {"name": named - began, "tcp": dialled - named}
                if secured:
                    stage = "TLS"
                    transport.secure()
                    parts["tls"] = clock.time() - dialled
                    dialled = clock.time()
                stage = "authentication"
                self._authenticate(login, packet, reply)
                parts["authentication"] = self.answered_at - dialled
                if self.first is not None:
                    stage = "the first statement"
                    self._ask_first(self.first, reply, sent=login.is_followed)
                    # An error in a transaction of the statement's own is its error, which `rollback` ends.
                    if self._protocol.status != IDLE and self.first.error is None:
                        raise violation("a new session that is in a transaction")
                transport.deadline = None
            except TooLate:
                raise OperationalError(
                    f"no connection to {self._place} within {connect_timeout_s:g} s (connect_timeout_s): {stage} had "
                    "not finished"
                ) from None
        except BaseException as error:  # noqa: BLE001 - `_give_up` raises it
            transport.deadline = None
            try:
                self._give_up(error, reply)
            finally:
                transport.close()

    def _authenticate(self, login: Authentication, packet: Secret, reply: Reply) -> None:
        transport = self._transport
        try:
            transport.send_secret(packet)
            asked = 1
            for step in self._protocol.authenticate(login, reply):
                if isinstance(step, int):
                    self._protocol.chunk = transport.receive(step)
                    transport.round_trips += asked
                    asked = 0
                else:
                    transport.send_secret(step)
                    asked = 1
        except (EndOfStream, Lost):
            if reply.error is None and login.is_ahead:  # a proxy that reads one message at a time, or the network
                raise login.refuse(
                    f"{self._place} closed the connection when the password was sent before it had asked for it"
                ) from None
            raise
        self.authentication = login.method
        self.answered_at = clock.time()
        self.opening_round_trips = transport.round_trips
        if listener is not None:
            listener(self, None)

    def _ask_first(self, first: Reply, reply: Reply, *, sent: bool) -> None:
        """Read what the first statement brings; an error of its own stays in it, one that ends the session does not."""
        transport, protocol = self._transport, self._protocol
        if not sent:
            transport.send_parts(first.sent)
        try:
            for step in protocol.read_reply(first, 0, SEVERAL):
                if isinstance(step, int):
                    protocol.chunk = transport.receive(step)
                elif step is not None:
                    transport.send(step)
        except EndOfStream:
            reply.error = first.error
            raise
        self.answered_at = clock.time()

    def close(self, why: str = "it was closed by this program") -> None:
        """
        Say goodbye and close; a transaction that is open is lost. Never raises, and may be called again.

        Args: why: what whoever uses it afterwards is told.
        """
        if self._transport.sock is None:
            return
        # A child of fork() shares the parent's connection: it lets go of it without a word to the server.
        if not self._flying and self._process == os.getpid():
            self._transport.say(TERMINATE)
        self._discard(why)

    def abandon(self, *, stop: bool = False, within_s: float = CANCEL_TIMEOUT_S, why: str | None = None) -> None:
        """
        End the session without a word, from whichever thread: for a pool whose holder of the connection is gone.

        Args: stop: ask the server to stop what it does for us, too, if it does something; within_s: the seconds that
            this may take; why: what whoever uses it afterwards is told.

        The descriptor stays open until nobody refers to the connection: a thread that is still at work with it must
        read an end, and not what another connection receives on a descriptor of the same number.
        """
        if self._process != os.getpid():  # the stream is the parent's, and no thread of this child is at work with it
            self._discard("it belongs to the parent of this process")
            return
        at_work, self._flying = self._flying, True
        self._lost = (
            self._lost or why or ("the invocation that checked it out has ended" if stop else "its holder was gone")
        )
        # Before the stream ends: the thread that is at work with it then forgets whom to cancel.
        request = self._protocol.cancel_request() if stop and at_work and self._may_cancel() else b""
        self._transport.shut_down()
        if request:
            self._transport.cancel(request, within_s)

    def __del__(self) -> None:
        try:  # noqa: SIM105 - without a name of a module: at the interpreter's end they may be gone
            self.close()
        except Exception:  # noqa: BLE001, S110 - at the interpreter's end the modules that it needs may be gone
            pass

    def _query(self, statement: str, stream: Any = None, first: Sequence[str] = (), *, kept: bool = False) -> Reply:
        """One flight by the simple protocol; the statements `first` go before the user's own."""
        prefix = "".join(f"{one};" for one in first)
        reply = Reply((query(prefix + statement),), stream)
        reply.kept = kept
        try:
            self._fly(reply, len(first), SEVERAL)
        except Error as error:
            if error.position is not None:
                error.position -= len(prefix)
            raise
        return reply

    def _usable(self) -> Transport:
        if self._flying:  # an exception tore the flight so hard that even giving it up was not finished
            self._discard("an exchange was interrupted")
        transport = self._transport
        if transport.sock is None:
            error = InterfaceError(f"the connection to {self._place} is closed: {self._lost}")
            error.disconnected = True
            raise error
        if self._process != os.getpid():
            error = InterfaceError(
                "the connection was opened by the parent of this process, and only the parent may use it"
            )
            error.disconnected = True
            raise error
        return transport

    def _fly(self, reply: Reply, before: int, times: int) -> None:
        """
        Send the flight `reply.sent` and read its reply: of `before` statements without rows, and of one executed
        `times`.

        By the simple protocol (`SEVERAL`) those stand in the same text, in front.
        """
        transport, protocol = self._usable(), self._protocol
        if transport.deadline is not None and transport.deadline <= clock.time():
            passed = DeadlineExceeded("the deadline has passed: nothing was sent")
            if ended is not None and not self.unheard:
                ended(self, reply, 0.0, passed)
            raise passed
        if listener is not None and not self.unheard:
            listener(self, reply)
        if ended is None or self.unheard:
            self._carry(transport, protocol, reply, before, times)
            return
        began = clock.time()
        try:
            self._carry(transport, protocol, reply, before, times)
        except BaseException as error:
            ended(self, reply, began, error)
            raise
        ended(self, reply, began, None)

    def _carry(self, transport: Transport, protocol: Protocol, reply: Reply, before: int, times: int) -> None:
        """Have the flight out and back, and raise what came of it."""
        default_before = protocol.parameter_statuses.get(_DEFAULT)
        self._flying = True
        self.flights += 1
        try:
            if protocol.buffer:
                protocol.sort_out_leftovers()
            transport.send_parts(reply.sent)
            for step in protocol.read_reply(reply, before, times):
                if isinstance(step, int):
                    protocol.chunk = transport.receive(step)
                elif step is not None:
                    transport.send(step)
                # A request that may still be under way would stop the next statement instead.
                elif reply.own is not None and self._may_cancel() and not self._cancel():
                    raise reply.own
        except BaseException as error:  # noqa: BLE001 - `_give_up` raises it
            self._give_up(error, reply)
        self.answered_at = clock.time()
        self._flying = False
        if reply.may_have_asked:
            self._writer.note(default_before)
        # 57014 is the server's echo when a COPY was called off on this side: the reason is the better error.
        if reply.error is not None and (reply.own is None or reply.error.sqlstate != "57014"):
            self._writer.judge(reply.error)
            reply.own = self._as_deadline(reply.error)
        if protocol.status == IDLE:
            self._writer.may_have_asked, protocol.declared = False, []
        if reply.own is not None:
            raise reply.own
        if reply.refused is not None:
            failure, column = reply.refused
            # A reader that the user registered raises what it wants.
            if column is None or column[1] in protocol.adapters:
                raise failure
            # Without a cause: the reader's error quotes the value.
            raise DataError(
                f"a value that the server sent cannot be converted: column {column[0]!r}, whose type has the oid "
                f"{column[1]}"
            )

    def _as_deadline(self, error: Error) -> Error:
        """
        Return the error that a time-out of the server's is when this side's deadline has passed as well: the server was
        told it.
        """
        if (
            error.sqlstate not in _TIMED_OUT
            or self._transport.deadline is None
            or clock.time() < self._transport.deadline
        ):
            return error
        passed = DeadlineExceeded(f"the deadline has passed, and the server ended the statement: {error}")
        passed.sqlstate, passed.message, passed._fields = error.sqlstate, error.message, error._fields
        return passed

    def _give_up(self, error: BaseException, reply: Reply | None) -> NoReturn:
        """Close the connection since `error` interrupted an exchange, and raise what the user is to see."""
        said = reply.error if reply is not None else None
        # These come to a session that is idle: nothing of the flight was looked at.
        unknown = (
            reply is not None
            and not (said is not None and said.sqlstate in ("25P03", "57P05"))
            and (reply.kept or may_keep(reply.sent))
            # Of a transaction that reads nothing is kept.
            and not self._writer.never
        )
        cause: BaseException | None = None
        if isinstance(error, EndOfStream):
            seen: BaseException = said or OperationalError(f"the server {self._place} closed the connection")
            if isinstance(seen, Error):
                seen.hung_up = said is None
        elif isinstance(error, TooLate):
            # A question alone leaves nothing at work that could be stopped.
            self._discard("the deadline passed", cancel=reply is None or reply.sent != (SYNC,))
            seen = DeadlineExceeded(
                f"the server {self._place} had not answered at the deadline; the connection is closed"
            )
        elif isinstance(error, Lost):
            cause = error.error
            seen = (
                said
                # A stream that uses the connection that reads from it has closed it, and was told so.
                or (reply.own if reply is not None and self.gone else None)
                or self._last_words(reply)
                or OperationalError(f"the connection to {self._place} was lost: {cause.strerror or cause}")
            )
        else:
            # An error of ours that says what the server did wrong, or somebody else's exception: the server may then be
            # at work still.
            self._discard(
                f"{type(error).__name__} interrupted an exchange", cancel=not isinstance(error, DatabaseError)
            )
            seen = error
        if not self.gone:
            self._discard(str(seen))
        if isinstance(seen, Error):
            seen = self._as_deadline(seen)
            seen.disconnected, seen.outcome_unknown = True, unknown
        if seen is error:
            raise error
        raise seen from cause

    def _last_words(self, reply: Reply | None) -> DatabaseError | None:
        """The error that the server sent before it closed, when writing was what failed."""
        if self.gone:
            return None
        return self._protocol.last_words(self._transport.take_rest(), reply.sent if reply is not None else ())

    def _discard(self, why: str, cancel: bool = False) -> None:
        """Close the socket for good; `cancel`: the server may still be at work for us."""
        self._transport.close()
        self._lost = self._lost or why
        self._flying = False
        self._protocol.forget()
        if cancel and self._may_cancel():
            self._cancel()

    def _may_cancel(self) -> bool:
        # In a child of fork() an exception may leave a flight of the parent's, which goes on there.
        return self.cancel_on_abandon and self._process == os.getpid() and bool(self._protocol.cancel_request())

    def _cancel(self) -> bool:
        """Ask the server to stop what it does for us, so that its locks go; return whether it was heard."""
        return self._transport.cancel(self._protocol.cancel_request())


def _refuse_misuse(
    secret: Secret,
    ssl_context: ssl.SSLContext | None,
    tls_negotiation: str,
    password_ahead: bool,
    connect_timeout_s: float,
    dead_peer_timeout_s: float,
) -> None:
    """Raise ProgrammingError for arguments of `connect` that cannot be."""
    if not connect_timeout_s > 0:
        raise ProgrammingError("connect_timeout_s must be more than 0 seconds")
    if not 0 < dead_peer_timeout_s <= DEAD_PEER_AT_MOST_S:
        raise ProgrammingError(f"dead_peer_timeout_s must be more than 0 and at most {DEAD_PEER_AT_MOST_S} seconds")
    if tls_negotiation not in ("postgres", "direct"):
        raise ProgrammingError('tls_negotiation must be "postgres" or "direct"')
    if tls_negotiation == "direct" and ssl_context is None:
        raise ProgrammingError("tls_negotiation needs an ssl_context")
    if password_ahead and (secret.value is None or not _verifies(ssl_context)):
        raise ProgrammingError(
            "password_ahead needs a password, and an ssl_context that verifies the server's certificate and name"
        )


def _dialled(address: str | None, host: str, port: int) -> tuple[str, int]:
    try:
        return split_address(address, port) if address else (host, port)
    except ValueError:
        raise ProgrammingError(f"address: {address!r} is neither a host nor host:port") from None


def _first_packet(user: str, database: str | None, application_name: str | None, more: Mapping[str, str]) -> Secret:
    """Return the start-up packet, as what may get a password behind it."""
    packet = Secret()
    parameters = {"user": user, "database": database, "application_name": application_name}
    packet.value = startup({**parameters, "client_encoding": "UTF8", "DateStyle": "ISO"}, more)
    return packet


def _verifies(context: ssl.SSLContext | None) -> bool:
    return context is not None and context.check_hostname and context.verify_mode.name == "CERT_REQUIRED"


def _load(*modules: str) -> None:
    """Import what authentication may need; where that fails, it is the connect's error."""
    from importlib import import_module

    for name in modules:
        try:
            import_module(name)
        except (ImportError, OSError) as error:
            raise OperationalError(f"authentication needs {name}, which cannot be loaded: {error}") from error
