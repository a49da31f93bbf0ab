"""
One new connection: from which source of credentials, with whose login, by which handshake, how often and until when.

The one place that tries again: `_judge` says of an attempt that failed whether another handshake may be the cure, or
the next login, or nothing; `_may_pass` says whether the same may succeed a moment later, and `fleet` when. (What the
driver does within one attempt, an address of the host's name after the other, is its own.) What was seen of a server
decides how the next connect to it begins, and holds no longer than it shows.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from . import fleet, invocation, tls, wire
from .credentials import PasswordSource, is_refused, sqlstate_of
from .errors import SettingsError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from sqlalchemy import Dialect, Engine

    from .credentials import Login, Source
    from .settings import Settings

_logger = logging.getLogger("plungepool")

# Between two rounds through the logins of a source that may change; doubled each time.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
# Another version, a failover, other rules in pg_hba.conf: each shows in the next answer, or in a connect that fails,
# and ends what was seen before. Only a server that has learnt to take a password ahead shows it to nobody but who tries
# again.
_SEEN_FOR_S = 3600.0
# An attempt that is begun gets a moment at least: a time-out of 0 means "never block" to a socket.
_SHORTEST_ATTEMPT_S = 0.05
# An attempt's time is in hundredths: an error says how long it was waited.
_ROUNDED_S = 0.01


def source(settings: Settings) -> Source:
    """
    Return the source of credentials that the settings name; no I/O yet.

    Imports what this source needs and no other does, except for boto3: an engine is built at init, where nothing
    strikes.
    """
    if settings.auth == "secret":
        from .secret import SecretSource

        return SecretSource(settings)
    if settings.auth in ("iam", "dsql"):
        from .iam import TokenSource

        return TokenSource(settings)
    return PasswordSource(settings)


class Way(NamedTuple):
    """How one attempt to connect is made."""

    #: TLS with this one; None: plain text.
    context: ssl.SSLContext | None
    #: How long it may take, in seconds.
    timeout_s: float
    #: Send the password along with the start-up packet, before the server has asked for it: a round trip less.
    password_ahead: bool


class _Seen(NamedTuple):
    """What the last connects have shown of one server: whether to send it a password ahead."""

    place: tuple[str, int, str, str]
    ahead: bool
    #: A password that went ahead has shown it, and not only what the server asked for step by step.
    proven: bool
    #: It may be wrong by then, in seconds since the epoch.
    until: float


class _Plan(NamedTuple):
    """What the next attempt of a connect offers, and what is known of the server by then."""

    every_curve: bool
    password_ahead: bool
    seen: _Seen | None


class Connector:
    """
    Opens the connections of one engine.

    Units: seconds of wall clock.        Threads: safe; each decides by what it saw last.
    """

    def __init__(self, settings: Settings, attempt: Callable[[Any, Login, Way], Any]) -> None:
        """
        Take the settings of an engine; no I/O yet.

        Args: attempt(record, login, way): opens a connection, or raises; what it raises tells the server's SQLSTATE,
            where there is one, as its attribute `sqlstate`: 28P01 and 28000 refuse the login.
        """
        self._settings, self._attempt = settings, attempt
        # What a connect may take in a thread that has less time than others.
        self._limits: dict[int, float] = {}
        self._source = source(settings)
        self._learn_nothing()

    def _learn_nothing(self) -> None:
        # Whether the server wants another curve than the usual one; None: not to be known, since neither way led in.
        self._needs_every_curve: bool | None = False
        self._seen: _Seen | None = None
        self._warned = False

    def forget(self) -> None:
        """
        Drop what was fetched, and start as if nothing were known of the server: after a snapshot it may be another one.
        """
        self._source.forget()
        self._learn_nothing()

    def prepare(self) -> None:
        """
        Have in memory what the first connect takes its time for and no snapshot can make wrong: modules, and the
        authorities that are trusted. Asks nobody; what is missing is that connect's error.
        """
        self._source.prepare()
        with suppress(SettingsError):
            tls.client_context(self._settings)
        if self._settings.auth in ("password", "secret"):
            import_module(f"{wire.__name__}.scram")

    def connect(self, record: Any) -> Any:
        """
        Return a new connection, after as many tries as the database lets wait for: see `fleet`.

        Blocks until the invocation's deadline at most, without one for PLUNGEPOOL_CHECKOUT_TIMEOUT_S; one try for
        PLUNGEPOOL_CONNECT_TIMEOUT_S. What the first login takes (an import of boto3, a call to AWS) and the look-up of
        the host's name come on top.
        Args: record: handed to `attempt` as it is.
        Raises: CredentialsError; SettingsError when the settings contradict what a secret holds, or name no usable CA
            file; wire.DeadlineExceeded where the invocation was over first; what `attempt` raises.
        """
        settings, began, pressure, said = self._settings, time.time(), fleet.Pressure(), ""
        limit_s = self._limits.get(threading.get_ident())
        while True:
            asked = time.time()
            if invocation.is_over(settings.margin_s):
                invocation.count("deadlines_exceeded")
                raise wire.DeadlineExceeded("the invocation had ended before a connection was requested")
            logins = self._source.logins()
            login = next(logins)
            # From here on: importing boto3 or botocore in a cold start must not use up the time for the database.
            tried = time.time()
            invocation.count("credentials_s", tried - asked)
            deadline = invocation.until(limit_s or settings.connect_timeout_s, settings.margin_s)
            try:
                connection = self._connect_once(record, login, logins, deadline)
            except wire.Error as error:
                failure = error
            else:
                if said:
                    _logger.info(
                        "connected on attempt %d, after %.1f s: %s", pressure.refusals + 1, time.time() - began, said
                    )
                return connection
            now = time.time()
            pressure = pressure.refused(now - tried)
            end = invocation.deadline(settings.margin_s)
            left_s = (began + settings.checkout_timeout_s if end is None else end) - now
            # One that has less time than others is ahead of what is needed: it is tried once.
            may_pass = limit_s is None and _may_pass(failure, late=now >= deadline - _ROUNDED_S)
            pause_s = pressure.pause_s(left_s, jitter()) if may_pass else None
            said = str(failure)
            try:
                if pause_s is None:
                    if pressure.refusals > 1:
                        failure.args = (
                            f"{said}; tried {pressure.refusals} times in {now - began:.1f} s{_may_stay(failure)}",
                        )
                    raise failure
            finally:
                del failure  # else the error, its traceback, this frame and the error again would be a circle
            invocation.count("connect_retries")
            time.sleep(pause_s)

    def _connect_once(self, record: Any, login: Login, logins: Iterator[Login], deadline: float) -> Any:
        """Return a new connection, by the handshake and the login that the server takes."""
        first, others = login, _worth_trying(self._source, logins, deadline)
        curve_known = self._needs_every_curve
        plan = self._begin(login)
        while True:
            ends = self._end_of_attempt(plan, deadline)
            try:
                connection = self._attempt(record, login, self._way(login, plan, ends))
            except Exception as error:  # noqa: BLE001 - judged below, and raised there if nothing is left to try
                failure = error
            else:
                self._needs_every_curve = _curves(curve_known, plan.every_curve, None)
                self._seen = _see(login, plan, connection)
                return connection
            step = _judge(failure, plan, late=ends < deadline and time.time() >= ends - _ROUNDED_S)
            if step == "every curve":
                plan = plan._replace(every_curve=True)
                continue
            if step == "step by step":
                # Where the server says what it asks for in place of it, the next connect shows whether it still does.
                proven = getattr(failure, "authentication", None) is None
                plan = plan._replace(password_ahead=False, seen=_seen_of(login, ahead=False, proven=proven))
                continue
            self._needs_every_curve = _curves(curve_known, plan.every_curve, failure)
            self._seen = None
            following = next(others, None) if step == "next login" else None
            if following is not None:
                login = following
                continue
            try:
                if invocation.is_over(self._settings.margin_s):
                    invocation.count("deadlines_exceeded")
                    raise wire.DeadlineExceeded(
                        f"the invocation had ended before a connection to {login.host}:{login.port} was "
                        f"established; the last attempt: {failure}"
                    ) from failure
                if step == "next login":
                    self._source.explain(first, failure)
                raise failure
            finally:
                del failure  # else the error, its traceback, this frame and the error again would be a circle

    def connect_ahead(self, engine: Engine, within_s: float) -> None:
        """
        Open a connection before anybody wants it, and leave it in the engine's pool.

        Blocks for `within_s` at most, besides what comes on top in `connect`. Raises: what a checkout does.
        """
        me = threading.get_ident()
        self._limits[me] = min(within_s, self._settings.connect_timeout_s)
        try:
            engine.raw_connection().close()
        finally:
            del self._limits[me]

    def _begin(self, login: Login) -> _Plan:
        """
        Return how a connect begins, by what was seen of this server.

        A token is good for this server and for minutes, and goes ahead until the server is seen not to take it. A
        password goes ahead only where the server has asked for it in clear text before, so that one that proves it by
        SCRAM never sees it.
        """
        every_curve, seen = self._needs_every_curve is not False, self._seen
        if seen is None or seen.place != _place(login) or time.time() >= seen.until:
            seen = None
        ahead = self._settings.auth in ("iam", "dsql") if seen is None else seen.ahead
        may_go_ahead = self._settings.startup == "pipelined" and self._settings.tls != "disable"
        return _Plan(every_curve, ahead and may_go_ahead, seen)

    def _end_of_attempt(self, plan: _Plan, deadline: float) -> float:
        """
        Return when an attempt ends: at the deadline, or half way there where a proxy may have thrown away what went
        ahead.

        Nothing says that a proxy must keep what a client sends before it is asked; one that did not would wait for the
        password, and this client for the proxy, until the end.
        """
        proven = plan.seen is not None and plan.seen.proven
        if plan.password_ahead and not proven and self._settings.endpoint == "proxy":
            now = time.time()
            return now + (deadline - now) / 2
        return deadline

    def _way(self, login: Login, plan: _Plan, ends: float) -> Way:
        if self._settings.tls == "disable":
            self._warn_of_plain_text(login.host)
        left_s = max(_SHORTEST_ATTEMPT_S, round(ends - time.time(), 2))
        return Way(tls.client_context(self._settings, every_curve=plan.every_curve), left_s, plan.password_ahead)

    def _warn_of_plain_text(self, host: str) -> None:
        if self._warned or tls.is_loopback(host):
            return
        self._warned = True
        _logger.warning(
            "%s=disable: passwords, statements and rows travel to %s in plain text, and the identity of the server "
            "is not verified. Remove the setting; to trust a certificate authority of your own, use %s.",
            self._settings.variable("tls"),
            host,
            self._settings.variable("ca_file"),
        )


def _judge(
    failure: Exception, plan: _Plan, *, late: bool
) -> Literal["every curve", "step by step", "next login", "give up"]:
    """
    Say what may be the cure of an attempt that failed. Pure.

    A server that was told to know other curves only (P-384, as some rules ask for) answers the usual one with a plain
    "handshake failure", as it answers much else; so the same login is tried with every curve. One that takes no
    password before it has asked for it gets the same login step by step.
    Args: late: the attempt had less than the whole time for the connect, and used it up.
    """
    if not plan.every_curve and tls.may_want_another_curve(failure):
        return "every curve"
    if plan.password_ahead and (late or isinstance(failure, wire.PasswordAheadRefused)):
        return "step by step"
    return "next login" if is_refused(failure) else "give up"


# Besides what the driver calls retryable (full, starting up): another limit; shutting down, crashed. Of a connect
# alone: behind a statement nobody knows what became of it.
_PASSING = frozenset(("53400", "57P01", "57P02"))
# Nobody listens, or the connect was thrown away: a restart, a failover, a queue that has overflowed.
_PASSING_NUMBERS = frozenset((errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE))


def _may_pass(failure: wire.Error, *, late: bool) -> bool:
    """
    Say whether a connect may succeed a moment later as it is. Pure.

    A refused login, a certificate that does not verify, a name that is not known: these stay as they are.
    Args: late: there was no answer in time, as of a database that is waking up or overrun.
    """
    sqlstate = sqlstate_of(failure)
    if sqlstate is not None:
        return sqlstate in _PASSING or failure.retryable
    if isinstance(failure.__cause__, OSError):
        return failure.__cause__.errno in _PASSING_NUMBERS
    return late or failure.hung_up


# What may stay as it is and looks as if it passed: by the server's function, since its words may be translated.
_LIMITED = {"InitializeSessionUserId": "role", "CheckMyDatabase": "database"}


def _may_stay(failure: wire.Error) -> str:
    """
    Return what a refusal that was tried to the end leaves open, with the server's own detail; "" for nothing. Pure.

    A role or a database that is let in never (CONNECTION LIMIT 0) is refused in the same words as one that has all its
    connections in use. A connect has sent no value that a detail could show.
    """
    detail = f" ({failure.detail.rstrip('.')})" if failure.detail else ""
    what = _LIMITED.get(failure.diag.source_function or "") if failure.sqlstate == "53300" else None
    return f"{detail}; a {what} whose CONNECTION LIMIT is 0 is always refused" if what else detail


def _place(login: Login) -> tuple[str, int, str, str]:
    return login.host, login.port, login.database, login.user


def _seen_of(login: Login, *, ahead: bool, proven: bool) -> _Seen:
    return _Seen(_place(login), ahead, proven, time.time() + _SEEN_FOR_S)


def _see(login: Login, plan: _Plan, connection: Any) -> _Seen | None:
    """Return what a good connect has shown, with what was seen before it."""
    if any(getattr(connection, name, None) not in (None, getattr(login, name)) for name in ("host", "port", "user")):
        return plan.seen  # a listener for `do_connect` has led it elsewhere
    if plan.password_ahead:
        return _seen_of(login, ahead=True, proven=True)
    if plan.seen is not None and plan.seen.proven:
        return plan.seen  # it takes none ahead, and a connect step by step shows nothing else
    # A listener for `do_connect` may have opened it by other means.
    return _seen_of(login, ahead=getattr(connection, "authentication", None) == "password", proven=False)


def _curves(known: bool | None, every_curve: bool, failure: Exception | None) -> bool | None:
    """
    Return what a connect has shown of the curves that the server wants, after what was known before it. Pure.

    Where every curve failed, too, the next connect offers every curve at once, and the first success goes back to the
    usual one. At worst, on a server that has changed meanwhile, a connect waits once more.
    """
    if failure is None or sqlstate_of(failure) is not None:
        # There was a handshake. Where the usual curve had just failed, every curve is what helped.
        return every_curve and known is not None
    if every_curve and (known is False or tls.may_want_another_curve(failure)):
        return None
    return known


def _worth_trying(source: Source, logins: Iterator[Login], deadline: float) -> Iterator[Login]:
    """
    Yield the logins after the first, and all of them round after round where the source may change, until the deadline.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        for login in logins:
            if time.time() >= deadline:
                return
            yield login
        # A whole fleet meets the same rotation at the same moment: it must not come back at the same moment, too.
        delay_s = pause_s * (1 + jitter()) / 2
        if not source.may_change or time.time() + delay_s >= deadline:
            return
        time.sleep(delay_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        logins = source.logins()


def jitter() -> float:
    """
    Return a number from 0 up to 1, at random.

    From the system: the state of Python's `random` is the same in every environment of one snapshot.
    """
    return int.from_bytes(os.urandom(4)) / 2**32


class Driver:
    """Makes one attempt by this package's driver, as `Connector` takes it."""

    def __init__(
        self, settings: Settings, application_name: str, used_at: Callable[[Any], float] = lambda _record: 0.0
    ) -> None:
        """
        Take the settings of an engine, and the name that pg_stat_activity shows; no I/O yet.

        Args: used_at(record): when the connection that the pool's record had before was given back, in seconds since
            the epoch; 0: it had none.
        """
        self._settings, self._application_name, self._used_at = settings, application_name, used_at
        self._startup = {}
        self._told = False
        # A pooler answers in the server's place: a ticket would be the lock of a session that others use as well.
        self._pooled = False
        self._tickets: Any = None
        if settings.policy == "adaptive":
            from . import tickets  # the others pay nothing for it

            self._tickets = tickets
        self._comment: Callable[[], str] | None = None
        if settings.sql_comment == "on":
            from . import comments  # the others pay nothing for it

            self._comment = comments.Comment(os.environ)
        if settings.statement_timeout_s:
            self._startup["statement_timeout"] = str(max(1, round(settings.statement_timeout_s * 1000)))
        #: the engine's, once it is made: its listeners for `do_connect` are asked first, as where SQLAlchemy makes the
        #: pool
        self.dialect: Dialect | None = None

    def __call__(self, record: Any, login: Login, way: Way) -> wire.Connection:
        """
        Return a new connection, which has the deadline of the invocation. Raises: wire.OperationalError and other
        errors of the driver's; what a listener raises.
        """
        parameters = _Parameters(
            user=login.user,
            password=login.password,
            host=login.host,
            port=login.port,
            address=self._settings.address,
            database=login.database,
            ssl_context=way.context,
            application_name=self._application_name,
            connect_timeout_s=way.timeout_s,
            dead_peer_timeout_s=self._settings.dead_peer_timeout_s,
            startup_params=self._startup,
            tls_negotiation=self._settings.tls_negotiation,
            password_ahead=way.password_ahead,
            # RDS Proxy does not forward a request to cancel.
            cancel_on_abandon=self._settings.endpoint != "proxy",
        )
        chosen = _Parameters(**parameters.values)
        connection: wire.Connection | None = None
        # A listener changes the parameters, or connects by itself.
        for listener in self.dialect.dispatch.do_connect if self.dialect is not None else ():
            connection = listener(self.dialect, record, [], parameters.values)
            if connection is not None:
                break
        if connection is None:
            if not chosen.lead_to_the_same(parameters):
                # Another context may verify less, or a listener may have chosen plain text; and what was seen of one
                # server tells nothing of another: nothing goes ahead there.
                parameters.values["password_ahead"] = False
            get = parameters.values.get
            # A statement of a listener's own goes instead, and brings no ticket.
            asked = {} if get("first_statement") else self._ticket(record, get("user"), get("database"))
            connection = wire.connect(**(parameters.values | asked))
            if asked:
                self._hold_ticket(connection)
        connection.deadline = invocation.deadline(self._settings.margin_s)
        connection.comment = self._comment
        connection.tells_deadline = self._settings.deadline == "server"
        if self._settings.reads_only:
            connection.refuse_writes(self._settings.reads_only)
        if self._settings.require_settings:
            connection.require_settings(self._settings.require_settings, self._settings.variable("require_settings"))
        return connection

    def _ticket(self, record: Any, user: str | None, database: str | None) -> dict[str, Any]:
        """
        Return what asks for the right to keep the connection, where the pool keeps by that; drawn anew each time.

        Outside of a guarded invocation it is asked for at once: what is not kept then does not outlive its checkout.
        Args: user, database: as the listeners have left them, since whose tickets these are goes by them.
        """
        tickets = self._tickets
        if tickets is None or self._pooled:
            return {}
        if invocation.is_running() and not fleet.comes_back(time.time() - self._used_at(record)):
            return {}
        invocation.count("tickets_asked")
        return {
            "first_statement": tickets.statement(
                tickets.lock_class(database or user or "", user or "", self._settings.fleet),
                self._settings.fleet_limit,
                [jitter() for _ in range(fleet.PROBES)],
            ),
            "first_statement_ahead": self._settings.startup == "pipelined",
        }

    def _hold_ticket(self, connection: wire.Connection) -> None:
        """Have the connection know its ticket; where the server cannot give any, nothing is kept, and that is said."""
        first = getattr(connection, "first", None)
        if first is None or self._tickets is None:
            return
        pool, why = self._settings.variable("pool"), None
        # Behind an error the lease is taken back with its transaction, and the lock is not.
        grant = None if first.error is not None else self._tickets.grant(first.rows)
        if grant is None:
            why = first.error or "the server's answer to the request for a ticket is not valid"
        elif grant.backend_pid != connection.backend_pid:
            self._pooled = True
            _logger.warning(
                "%s=adaptive keeps no connection after the invocation: there is a pooler in front of the server "
                "(process %d logged in, process %d answered), and one lock of a shared session is left behind. Set "
                "%s=proxy.",
                pool,
                connection.backend_pid,
                grant.backend_pid,
                self._settings.variable("endpoint"),
            )
        elif grant.lease_s:
            invocation.count("tickets_held")
            connection.overhears = self._tickets.Ticket(grant.lease_s)
        elif grant.tickets is None:
            why = "the server has no idle_session_timeout, which requires PostgreSQL 14 or later"
        if why is not None and not self._told:
            self._told = True
            _logger.warning("%s=adaptive keeps no connection after the invocation: %s", pool, why)


# The parameters of a connect that say who proves what to whom.
_WHOM = ("host", "port", "address", "database", "user", "password", "ssl_context")


class _Parameters:
    """Holds the parameters of a connect: a crash reporter that goes through a dictionary would show the password."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def lead_to_the_same(self, others: _Parameters) -> bool:
        """
        Say whether these go to the same server, as the same user with the same password, and verify it by the same
        context.
        """
        return all(self.values.get(name) == others.values.get(name) for name in _WHOM)
