"""
SQLAlchemy's PostgreSQL dialect over `plungepool.wire`: ``create_engine("postgresql+plungepool://…")``.

It asks the server nothing to set itself up: what the connect already said (version, string syntax) is used, and what it
did not say (the schema that unqualified names go to) is asked for when somebody reflects. Isolation level, READ ONLY
and DEFERRABLE are part of BEGIN and AUTOCOMMIT is a flag, so that no session state is ever changed.
"""

# SQLAlchemy's dialects are not typed.
# mypy: disallow-untyped-calls=False, disallow-any-generics=False
from __future__ import annotations

import os
import re
import sys
import weakref
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, exc
from sqlalchemy import types as sqltypes
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql import ranges
from sqlalchemy.dialects.postgresql.base import (
    PGDeferrableConnectionCharacteristic,
    PGDialect,
    PGExecutionContext,
    PGIdentifierPreparer,
    PGInspector,
    PGReadOnlyConnectionCharacteristic,
)
from sqlalchemy.dialects.postgresql.pg8000 import PGDialect_pg8000
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.characteristics import ConnectionCharacteristic

from . import errors, wire
from .compiler import Compiler
from .sqltypes import Array, MultiRange, Numeric, Range, json_as_text
from .wire.local import checked
from .wire.values import CIDR, INET, JSON, JSONB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType, ModuleType

    from sqlalchemy.engine import URL, ExceptionContext

__all__ = ["OWN", "SETTINGS", "PlungepoolDialect"]

#: The option of engines, connections and sessions that holds the settings of their transactions.
SETTINGS = "plungepool_settings"
#: The option of a statement that is this package's own, and touches no row of the user's: no setting is required.
OWN = "plungepool_own"


class DeadlineExceeded(exc.OperationalError, errors.DeadlineExceeded):
    """The deadline came before the database had answered: what SQLAlchemy's error of it is, and this package's."""


class SettingsMissing(exc.ProgrammingError, errors.SettingsMissing):
    """A transaction lacks a required setting: what SQLAlchemy's error of it is, and this package's."""


_NAMED: tuple[tuple[type[Exception], type[exc.DBAPIError]], ...] = (
    (errors.DeadlineExceeded, DeadlineExceeded),
    (errors.SettingsMissing, SettingsMissing),
)


class _ReadOnly(PGReadOnlyConnectionCharacteristic):
    """`postgresql_readonly`; without it, what the server's default is."""

    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        dbapi_conn.readonly = None


class _Deferrable(PGDeferrableConnectionCharacteristic):
    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        dbapi_conn.deferrable = None


class _Settings(ConnectionCharacteristic):
    """`plungepool_settings`: what each transaction has for itself, the tenant; told in BEGIN's own exchange."""

    transactional = True

    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        dbapi_conn.transaction_settings = {}

    def set_characteristic(self, dialect: Any, dbapi_conn: Any, value: Any) -> None:
        dialect._uses_settings = True
        _check_settings(value)
        dbapi_conn.transaction_settings = value

    def get_characteristic(self, dialect: Any, dbapi_conn: Any) -> Any:
        return dbapi_conn.transaction_settings


def _check_settings(value: Any) -> None:
    try:
        checked(value)
    except wire.ProgrammingError as error:
        problem = f"{SETTINGS}: {error}"
    else:
        return
    raise exc.ArgumentError(problem)


def _check_access(reads_only: str, options: Mapping[str, Any]) -> None:
    if reads_only and not options.get("postgresql_readonly", True):
        raise exc.ArgumentError(f"postgresql_readonly=False: {reads_only}: use another engine for writes")


def _hold_settings(cursor: Any, context: Any) -> None:
    """
    Have a statement run with the settings that its connection's options name, whatever has happened since they were
    set.

    A reconnect, an exception that struck `execution_options()`, a dictionary that was changed: what the transaction has
    is compared with what the options say now.
    Raises: InvalidRequestError for the option of a statement, and for a transaction that was begun with other settings;
    ArgumentError.
    """
    options, invoked = context.execution_options, context.invoked_statement
    if OWN in options:
        cursor.is_own = True
    if SETTINGS not in options:
        return
    given = context.root_connection._execution_options.get(SETTINGS, {})
    for of_statement in (options, invoked._execution_options if invoked is not None else {}):
        # A Session's own default options are its connection's and each statement's.
        if of_statement.get(SETTINGS, given) != given:
            raise exc.InvalidRequestError(
                f"{SETTINGS} is not an option of a statement: a transaction has its settings from its start to its "
                "end. Set it on the engine, the connection, Session(engine.execution_options(…)) or "
                "Session.connection(execution_options=…)"
            )
    connection: wire.Connection = cursor.connection
    if given != connection.transaction_settings:
        if connection.in_transaction:
            raise exc.InvalidRequestError(
                f"{SETTINGS} was changed within a transaction that had begun with other values: nothing was sent. "
                "Commit or roll back first"
            )
        _Settings().set_characteristic(context.dialect, connection, given)


class _Inspector(PGInspector):
    """Reflection needs the name of the default schema, so an inspector asks for it; only the first has to."""

    # SQLAlchemy makes an inspector without calling a constructor of the dialect's class; but it does set this
    # attribute, and Alembic reads the schema's name from the dialect as soon as it has an inspector.
    @property
    def dialect(self) -> Any:
        return self._dialect

    @dialect.setter
    def dialect(self, dialect: Any) -> None:
        self._dialect = dialect
        with self._operation_context() as connection:
            dialect._ask_default_schema_name(connection)


class _ServerSideCursor:
    """A cursor declared on the server, for `stream_results`: rows come in the pieces that are asked for."""

    server_side = True

    def __init__(self, cursor: wire.Cursor, name: str) -> None:
        self._cursor, self._name = cursor, name
        self._open = self._exhausted = False
        self._transaction = 0
        self.arraysize = 1

    @property
    def connection(self) -> wire.Connection:
        return self._cursor.connection

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def description(self) -> list[tuple[Any, ...]] | None:
        return self._cursor.description

    @property
    def is_own(self) -> bool:
        return self._cursor.is_own

    @is_own.setter
    def is_own(self, value: bool) -> None:
        self._cursor.is_own = value

    def execute(self, operation: str, args: Sequence[Any] = ()) -> None:
        self._cursor.declare(self._name, operation, args)
        self._open, self._transaction = True, self._cursor.connection.transaction_number

    def executemany(self, operation: str, param_sets: Any) -> None:
        self._cursor.executemany(operation, param_sets)

    def _fetch(self, count: int | None) -> list[tuple[Any, ...]]:
        if self._exhausted:
            return []
        self._cursor.execute(f"FETCH FORWARD {'ALL' if count is None else count} FROM {self._name}")
        rows = self._cursor.fetchall()
        self._exhausted = count is None or len(rows) < count
        return rows

    def fetchone(self) -> tuple[Any, ...] | None:
        rows = self._fetch(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        return self._fetch(int(self.arraysize if size is None else size))

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self._fetch(None)

    def close(self) -> None:
        connection = self._cursor.connection
        # The end of the transaction closes the cursor, and so does its failure: then there is nothing left to say, and
        # the connection may be in somebody else's.
        own = connection.in_transaction and connection.transaction_number == self._transaction
        if self._open and own and not connection.closed and not connection.in_failed_transaction:
            try:
                self._cursor.execute(f"CLOSE {self._name}")
            except wire.Error:
                if not connection.closed:
                    raise
                # It went with the session: what comes next on this connection says so, and nothing is left to close.
        self._open = False
        self._cursor.close()

    def setinputsizes(self, sizes: Any) -> None:
        """Does nothing."""


class _ExecutionContext(PGExecutionContext):
    @classmethod
    def _init_compiled(cls, *arguments: Any, **options: Any) -> Any:
        _learn_translated_schema(*arguments[:4])
        return super()._init_compiled(*arguments, **options)

    @classmethod
    def _init_ddl(cls, *arguments: Any, **options: Any) -> Any:
        _learn_translated_schema(*arguments[:4])
        return super()._init_ddl(*arguments, **options)

    def create_server_side_cursor(self) -> Any:
        cursor: Any = self._dbapi_connection.cursor()
        return _ServerSideCursor(cursor, cursor.connection.name_cursor())


def _learn_translated_schema(dialect: Any, connection: Any, _: Any, options: Any) -> None:
    """With `schema_translate_map` SQLAlchemy writes the default schema's name into statements: it has to be known."""
    if options.get("schema_translate_map"):
        dialect._ask_default_schema_name(connection)


_IDENTIFIER = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",\s]+))\s*(?:,|$)')


def _identifiers(text: str) -> list[str]:
    """Return the names of a list such as search_path's: in quotes as they are, else in lower case."""
    return [
        plain.lower() if plain else quoted.replace('""', '"')
        for quoted, plain in _IDENTIFIER.findall(text)
        if plain or quoted
    ]


# The last column: the schemas that the path may name, and a few more, as far as the role may use them.
_SEARCH_PATH_AT_THE_START = """
SELECT reset_val, session_user::pg_catalog.text, ARRAY(
    SELECT nspname::pg_catalog.text FROM pg_catalog.pg_namespace
    WHERE (nspname OPERATOR(pg_catalog.=) session_user OR pg_catalog.strpos(
        pg_catalog.lower(pg_catalog.replace(reset_val, '""', '"')), pg_catalog.lower(nspname::pg_catalog.text)
    ) OPERATOR(pg_catalog.>) 0) AND pg_catalog.has_schema_privilege(session_user, oid, 'USAGE')
) FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) 'search_path'
"""


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


# What may stand behind the `?` of a URL: what reads it, and what it has to be.
_URL_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "address": (str, "text"),
    "application_name": (str, "text"),
    "cancel_on_abandon": (_boolean, "true or false"),
    "connect_timeout_s": (float, "a number of seconds"),
    "dead_peer_timeout_s": (float, "a number of seconds"),
}
_CONNECT_OPTIONS = frozenset(wire.connect.__kwdefaults__ or ()) | {"user"}
_INSTEAD = {
    **dict.fromkeys(
        ("sslmode", "sslrootcert", "sslcert", "sslkey", "ssl", "sslnegotiation"),
        'request TLS by connect_args={"ssl_context": ssl.create_default_context(cafile=…)}',
    ),
    "options": 'pass settings of the server in connect_args={"startup_params": {"statement_timeout": "5s"}}',
    "connect_timeout": "the option is connect_timeout_s",
    "timeout": "the option is connect_timeout_s",
    "hostaddr": "the option is address",
    "dbname": "the database is the path of the URL",
    "target_session_attrs": "there is one host only, and it is connected to whatever its role",
}


def _unknown_option(name: str) -> str:
    instead = _INSTEAD.get(name, f"the options of a URL are {', '.join(_URL_OPTIONS)}")
    return f"{name} is not an option of postgresql+plungepool: {instead}"


_VERSION = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?")


class PlungepoolDialect(PGDialect_pg8000):
    """``postgresql+plungepool``; what is not here is as in SQLAlchemy's dialect for pg8000."""

    driver = "plungepool"
    supports_statement_cache = True
    default_paramstyle = "numeric_dollar"
    statement_compiler: Any = Compiler
    preparer: Any = PGIdentifierPreparer
    execution_ctx_cls: Any = _ExecutionContext
    inspector = _Inspector
    supports_sane_multi_rowcount = True
    default_schema_name = "public"
    _knows_default_schema_name = False
    _initializing = False
    _setting_up = False
    _engine: weakref.ref[Engine] | None = None
    #: why the engine never writes; empty: it may
    reads_only = ""
    # Whether an engine or a connection was ever given settings: else nobody who checks one out can have them.
    _uses_settings = False

    connection_characteristics = PGDialect.connection_characteristics.union(
        {"postgresql_readonly": _ReadOnly(), "postgresql_deferrable": _Deferrable(), SETTINGS: _Settings()}
    )

    colspecs = {
        **{
            type_: impl
            for type_, impl in PGDialect_pg8000.colspecs.items()
            if not issubclass(type_, (ranges.AbstractSingleRange, ranges.AbstractMultiRange))
        },
        sqltypes.Numeric: Numeric,
        sqltypes.ARRAY: Array,
        ranges.AbstractSingleRange: Range,
        ranges.AbstractMultiRange: MultiRange,
    }

    def __init__(self, client_encoding: None = None, native_inet_types: bool | None = None, **keywords: Any) -> None:
        if client_encoding is not None:
            raise exc.ArgumentError(
                "client_encoding: plungepool always uses UTF-8, whatever the encoding of the database"
            )
        if keywords.get("json_serializer") is not None:
            keywords["json_serializer"] = json_as_text(keywords["json_serializer"])
        super().__init__(**keywords)
        self._native_inet_types = native_inet_types

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        return wire

    @classmethod
    def load_provisioning(cls) -> None:
        """SQLAlchemy's compliance suite prepares a database for this dialect as for its own."""
        import_module("sqlalchemy.dialects.postgresql.provision")

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        """
        No plain pool may hand out a connection that was torn, or that the server has hung up; this package's own looks
        at what it has kept by itself, and says so. Neither may hand out one that is still set as it was used.
        """
        dialect: Any = engine.dialect
        examines = getattr(engine.pool, "examines", False)
        event.listen(engine, "checkout", dialect._hand_out if examines else dialect._examine_and_hand_out)
        event.listen(engine, "handle_error", _name_error)
        engine.dialect._engine = weakref.ref(engine)  # type: ignore[attr-defined]

    def _examine_and_hand_out(self, dbapi_connection: Any, connection_record: Any, connection_proxy: Any) -> None:
        try:
            dbapi_connection.check()
        except wire.Error as error:
            raise exc.DisconnectionError(str(error)) from error
        self._hand_out(dbapi_connection, connection_record, connection_proxy)

    def _hand_out(self, dbapi_connection: Any, connection_record: Any, connection_proxy: Any) -> None:
        """
        See that nothing is left on a connection of whoever had it before.

        Its return undoes what was set; but an exception may have struck between the two.
        """
        try:
            dbapi_connection.start_anew()
        except wire.Error as error:
            raise exc.DisconnectionError(str(error)) from error
        if self._uses_settings and (given := _settings_of_holder(sys._getframe(1))):
            _check_settings(given)
            dbapi_connection.transaction_settings = given

    def set_engine_execution_options(self, engine: Engine, opts: Mapping[str, Any]) -> None:
        """Take the options of an engine, if they can be: also of one that is never connected."""
        if SETTINGS in opts:
            _check_settings(opts[SETTINGS])
            self._uses_settings = True
        _check_access(self.reads_only, opts)
        super().set_engine_execution_options(engine, opts)

    def set_connection_execution_options(self, connection: Connection, opts: Mapping[str, Any]) -> None:
        """Take the options of a connection: none of them, where one cannot be."""
        _check_access(self.reads_only, opts)
        super().set_connection_execution_options(connection, opts)

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        if context is not None and context.execution_options:
            _hold_settings(cursor, context)
        cursor.execute(statement, parameters)

    def do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        if context is not None and context.execution_options:
            _hold_settings(cursor, context)
        cursor.executemany(statement, parameters)

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any = None) -> None:
        if context is not None and context.execution_options:
            _hold_settings(cursor, context)
        cursor.execute(statement)

    def retrieve_dbapi_version(self, dbapi: Any) -> Any:
        return None

    def create_connect_args(self, url: URL) -> tuple[list[Any], dict[str, Any]]:
        """Take the URL apart; what stands behind its `?` is text and becomes what `wire.connect` wants."""
        options: dict[str, Any] = url.translate_connect_args(username="user")
        for name, text in url.query.items():
            if name in ("host", "port"):
                raise exc.ArgumentError(
                    f"{name}: a URL takes one host and one port, in front of the database; several hosts are not "
                    "supported"
                )
            if name not in _URL_OPTIONS:
                raise exc.ArgumentError(_unknown_option(name))
            if not isinstance(text, str):
                raise exc.ArgumentError(f"{name} is given more than once in the URL")
            read, what = _URL_OPTIONS[name]
            try:
                options[name] = read(text)
            except ValueError:
                raise exc.ArgumentError(f"{name} must be {what}") from None
        return [], options

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """Refuse what `wire.connect` does not know by a sentence, and not by a TypeError."""
        for name in cparams.keys() - _CONNECT_OPTIONS:
            raise exc.ArgumentError(_unknown_option(name))
        return super().connect(*cargs, **cparams)

    def own_readers(self) -> dict[int, Callable[[str], Any]]:
        """Readers that the engine's options ask for, by the type's oid."""
        readers: dict[int, Callable[[str], Any]] = {}
        if self._native_inet_types is False:
            readers |= dict.fromkeys((INET, CIDR), str)
        if self._json_deserializer is not None:
            readers |= dict.fromkeys((JSON, JSONB), self._json_deserializer)
        return readers

    def on_connect(self) -> Callable[[Any], None] | None:
        readers = self.own_readers()
        if not readers:
            return None

        def on_connect(connection: wire.Connection) -> None:
            for oid, reader in readers.items():
                connection.register_in_adapter(oid, reader)

        return on_connect

    def forget(self) -> None:
        """Ask anew for the default schema's name: after a snapshot the role's search path may be another one."""
        self.default_schema_name, self._knows_default_schema_name = "public", False

    def create_xid(self) -> str:
        """Name a two-phase transaction; SQLAlchemy draws from `random`, alike in every environment of one snapshot."""
        return f"_sa_{os.urandom(16).hex()}"

    def _get_server_version_info(self, connection: Connection) -> Any:
        match = _VERSION.match(_dbapi(connection).parameter_statuses.get("server_version", ""))
        if match is None:
            return super()._get_server_version_info(connection)
        return tuple(int(part) for part in match.groups() if part)

    def _set_backslash_escapes(self, connection: Connection) -> None:
        conforming = _dbapi(connection).parameter_statuses.get("standard_conforming_strings")
        if conforming is None:
            super()._set_backslash_escapes(connection)
        else:
            self._backslash_escapes = conforming == "off"

    def initialize(self, connection: Connection) -> None:
        # A listener that has executed something on the new connection may have changed the search path. What the role's
        # own search path is, only the server knows; but nobody needs the name before he reflects.
        self._knows_default_schema_name = _dbapi(connection).flights > 0
        self._initializing = not self._knows_default_schema_name
        self._setting_up = True
        try:
            super().initialize(connection)
        finally:
            self._initializing = self._setting_up = False

    def _get_default_schema_name(self, connection: Connection) -> Any:
        return "public" if self._initializing else super()._get_default_schema_name(connection)

    def _ask_default_schema_name(self, connection: Connection) -> None:
        """
        Learn which schema unqualified names go to where nobody has changed the search path: for the process's life.

        It is asked for within a transaction of the user's, which may have set another path (a tenant's) for itself or
        for the session; so not what holds now is asked, but what a RESET would go back to, in the server's own order:
        the first schema of it that is there and may be used.
        """
        if self._knows_default_schema_name:
            return
        found = connection.exec_driver_sql(_SEARCH_PATH_AT_THE_START, execution_options={OWN: True}).all()
        path, user, usable = found[0] if found else ("public", "", ["public"])
        names = [user if name == "$user" else name for name in _identifiers(path)]
        self.default_schema_name = next((name for name in names if name in usable), None)  # type: ignore[assignment]
        self._knows_default_schema_name = True

    @property
    def default_isolation_level(self) -> Any:
        """
        Return the level of a transaction that asks for none: the role's, or the database's.

        Nothing here needs it (a reset says nothing in BEGIN), so that no connect asks for it. Who reads it pays a
        connection of its own: this property does not know the one that it is read by, and the pool may have no other.
        """
        engine = self._engine() if self._engine is not None else None
        if engine is None:
            return "READ COMMITTED"
        connection: Any = engine.pool._invoke_creator(None)  # type: ignore[arg-type]
        try:
            return self.get_default_isolation_level(connection)
        finally:
            connection.close()

    @default_isolation_level.setter
    def default_isolation_level(self, value: Any) -> None:
        """SQLAlchemy sets it at the first connect."""

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        if self._setting_up:
            return None
        return _show(dbapi_conn, "default_transaction_isolation")

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        dbapi_connection.autocommit = level == "AUTOCOMMIT"
        dbapi_connection.isolation_level = None if level == "AUTOCOMMIT" else level

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        if dbapi_connection.autocommit:
            return "AUTOCOMMIT"
        if dbapi_connection.isolation_level is not None:
            return dbapi_connection.isolation_level
        return _show(dbapi_connection, "transaction_isolation")

    def reset_isolation_level(self, dbapi_conn: Any) -> None:
        if self._on_connect_isolation_level is not None:
            self.set_isolation_level(dbapi_conn, self._on_connect_isolation_level)
        else:
            dbapi_conn.autocommit = False
            dbapi_conn.isolation_level = None

    def set_readonly(self, connection: Any, value: bool) -> None:
        connection.readonly = value

    def get_readonly(self, connection: Any) -> bool:
        return bool(connection.readonly)

    def set_deferrable(self, connection: Any, value: bool) -> None:
        connection.deferrable = value

    def get_deferrable(self, connection: Any) -> bool:
        return bool(connection.deferrable)

    def do_rollback(self, dbapi_connection: Any) -> None:
        if not dbapi_connection.closed:  # else the server has rolled back long ago
            dbapi_connection.leave_tpc()
            _roll_back(super().do_rollback, dbapi_connection)

    def do_ping(self, dbapi_connection: Any) -> bool:
        dbapi_connection.ping()
        return True

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        return isinstance(e, wire.Error) and e.disconnected

    def do_begin_twophase(self, connection: Any, xid: Any) -> None:
        _dbapi(connection).tpc_begin(xid)

    def do_prepare_twophase(self, connection: Any, xid: Any) -> None:
        _dbapi(connection).tpc_prepare()

    def do_rollback_twophase(self, connection: Any, xid: Any, is_prepared: bool = True, recover: bool = False) -> None:
        _dbapi(connection).tpc_rollback(xid if is_prepared else None)

    def do_commit_twophase(self, connection: Any, xid: Any, is_prepared: bool = True, recover: bool = False) -> None:
        _dbapi(connection).tpc_commit(xid if is_prepared else None)

    def do_recover_twophase(self, connection: Any) -> Any:
        return _dbapi(connection).tpc_recover()


def _roll_back(roll_back: Callable[[Any], None], connection: wire.Connection) -> None:
    try:
        roll_back(connection)
    except wire.OperationalError as error:
        # A lost session is rolled back by its end: what was asked for is so, and the pool sees what is closed.
        if not error.disconnected:
            raise


def _dbapi(connection: Any) -> wire.Connection:
    dbapi_connection: wire.Connection = connection.connection.dbapi_connection
    return dbapi_connection


def _show(dbapi_connection: wire.Connection, name: str) -> str:
    """Ask for a setting, of the open transaction or of one that it takes for it."""
    before = dbapi_connection.in_transaction
    with dbapi_connection.cursor() as cursor:
        cursor.is_own = True
        row = cursor.execute(f"SHOW {name}").fetchone()
    if not before:
        dbapi_connection.rollback()
    return str(row[0]).upper() if row else ""


_CHECK_OUT, _RECONNECT = Engine.raw_connection.__code__, Connection._revalidate_connection.__code__
# Between the engine that checks a connection out and the listener.
_FRAMES_AT_MOST = 12


def _settings_of_holder(frame: FrameType | None) -> Mapping[str, str]:
    """
    Return the settings of whoever checks a connection out: of an engine, or of a connection that has lost its own.

    SQLAlchemy sets the options of an engine when it makes a connection, not for `raw_connection()`, and lets go of them
    with the connection that was lost; a cursor of the driver's, which it does not see, may be what comes next.
    """
    for _ in range(_FRAMES_AT_MOST):
        if frame is None:
            break
        if frame.f_code is _CHECK_OUT:
            if frame.f_back is not None and frame.f_back.f_code is _RECONNECT:
                frame = frame.f_back
            given: Mapping[str, str] = frame.f_locals["self"]._execution_options.get(SETTINGS, {})
            return given
        frame = frame.f_back
    return {}


def _name_error(context: ExceptionContext) -> exc.DBAPIError | None:
    """Return what SQLAlchemy's error is to be, so that it can be caught by this package's name."""
    wrapped = context.sqlalchemy_exception
    for ours, both in _NAMED:
        if isinstance(context.original_exception, ours) and isinstance(wrapped, exc.DBAPIError):
            return both(
                wrapped.statement,
                wrapped.params,
                context.original_exception,
                hide_parameters=wrapped.hide_parameters,
                connection_invalidated=wrapped.connection_invalidated,
                code=wrapped.code,
                ismulti=wrapped.ismulti,
            )
    return None


dialect = PlungepoolDialect
registry.register("postgresql.plungepool", __name__, "PlungepoolDialect")
