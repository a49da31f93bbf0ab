"""get_engine, build_engine, dispose_engine, Unavailable: the one place that puts the parts together."""

from __future__ import annotations

import os
import threading
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, create_engine, exc

from . import connect, dialect, lifecycle
from .errors import CredentialsError, DeadlineExceeded, SettingsError
from .pool import PoolExhausted, build_pool, used_at
from .settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: What means "try again later" to whoever called: `except Unavailable:` and answer 503. No connection (unreachable,
#: full, every checkout taken, no credentials or refused ones), or one that was lost, timed out, cancelled or in a
#: conflict.
Unavailable: tuple[type[Exception], ...] = (
    PoolExhausted,
    CredentialsError,
    # Also the driver's own, where SQLAlchemy is not in between: a COPY by the driver's cursor.
    DeadlineExceeded,
    exc.OperationalError,
    exc.InterfaceError,
)

# Settings -> engine and the options that it was built with; None stands for the settings of the environment variables.
_engines: dict[Settings | None, tuple[Engine, dict[str, Any]]] = {}
_lock = threading.Lock()

# What create_engine takes and this engine decides by itself, with what to use instead; a setting stands in braces.
_DECIDED = {
    **dict.fromkeys(("url", "connect_args"), "the settings say where to connect and how"),
    **dict.fromkeys(("creator", "pool", "poolclass"), "use {pool}"),
    **dict.fromkeys(("module", "dialect"), "the driver is this package's own"),
    **dict.fromkeys(("paramstyle", "client_encoding"), "the driver speaks one: $1 for placeholders, UTF-8 for text"),
    "hide_parameters": "values stay out of errors and logs",
    **dict.fromkeys(("echo_pool", "pool_logging_name"), "use the logger sqlalchemy.pool"),
    "pool_events": "use sqlalchemy.event.listen",
    "strategy": "it is another kind of engine",
    "pool_size": "use {pool_size}",
    "max_overflow": "there is never an overflow; use {pool_size}",
    "pool_timeout": "use {checkout_timeout_s}",
    "pool_recycle": "use {max_age_s}",
    "pool_pre_ping": "a kept connection is checked anyway; use {ping_after_idle_s}",
    "pool_use_lifo": "the connection that was used last is always used next",
    "pool_reset_on_return": "a connection is always rolled back when it is returned",
}


def get_engine(settings: Settings | None = None, **options: Any) -> Engine:
    """
    Return the process-wide engine for these settings, building it on the first call.

    Args: settings: None reads the PLUNGEPOOL_ environment variables, once; `dispose_engine` makes the next call read
        them again. options: those of `sqlalchemy.create_engine` that do not contradict the settings, such as
        `json_serializer`, `echo`, `isolation_level`, `execution_options`, `plugins`, `query_cache_size`; the same in
        every call.
    Returns: a plain sqlalchemy.Engine; no connection is opened yet. In Lambda the first one of a process asks for
        SIGTERM, by a request to the Runtime API on the same machine (PLUNGEPOOL_SHUTDOWN).
    Raises: SettingsError, also for an option that contradicts the settings, and for options other than those of the
        first call; TypeError for an option that SQLAlchemy does not know; at the first connect
        sqlalchemy.exc.OperationalError, CredentialsError.
    Threads, forks: safe; a forked child keeps the engine and opens connections of its own.
    Source: SQLAlchemy, Engine Configuration; Connection Pooling, "Using Connection Pools with Multiprocessing".
    """
    built = _engines.get(settings)
    if built is None:
        with _lock:
            built = _engines.get(settings)
            if built is None:
                read = settings if settings is not None else Settings.from_env(os.environ)
                # Both names give one engine: a second would be a second connection for this environment.
                built = _engines.get(read) or (build_engine(read, **options), options)
                _engines[read] = _engines[settings] = built
    engine, first = built
    if options != first:
        differ = sorted(name for name in options.keys() | first.keys() if options.get(name) != first.get(name))
        problem = (
            f"get_engine was called before with different options ({', '.join(differ)}): there is one engine for "
            "these settings; pass the same options in every call, or build a separate engine with build_engine"
        )
        raise SettingsError([problem])
    return engine


def build_engine(settings: Settings, **options: Any) -> Engine:
    """
    Return a new engine that is not shared: for tests and tools. The caller disposes of it.

    Args: options: as get_engine takes them.
    Returns: a plain sqlalchemy.Engine; no connection is opened yet.
    Raises: SettingsError for an option that contradicts the settings; TypeError for one that SQLAlchemy does not know;
        at the first connect sqlalchemy.exc.OperationalError, CredentialsError.
    Threads, forks: safe; a forked child keeps the engine and opens connections of its own.
    """
    if contradictions := [f"{name}: {_instead(name, settings)}" for name in options if name in _DECIDED]:
        raise SettingsError([f"get_engine does not take the option {one}" for one in contradictions])
    if settings.tls != "disable":
        import_module("ssl")  # the first connect needs it, and a time-out that strikes there must not strike an import
    driver = connect.Driver(settings, application_name(os.environ), used_at)
    connector = connect.Connector(settings, driver)
    opens = lifecycle.remembered(connector.connect, says_goodbye=settings.shutdown != "off")
    proxy = settings.endpoint == "proxy"
    url = URL.create(
        f"postgresql+{dialect.PlungepoolDialect.driver}",
        settings.user,
        None,
        settings.host,
        settings.port,
        settings.database,
    )
    engine = create_engine(
        url,
        pool=build_pool(settings, opens),
        hide_parameters=True,
        # SQLAlchemy puts this many rows of an INSERT with RETURNING into one statement; RDS Proxy pins for one of more
        # than 16 KB (User Guide, rds-proxy-pinning), which 100 rows of a dozen columns stay below.
        **({"insertmanyvalues_page_size": 100 if proxy else 1000} | options),
    )
    driver.dialect = engine.dialect
    engine.dialect.reads_only = settings.reads_only  # type: ignore[attr-defined]
    if proxy:
        from . import pinning  # a direct endpoint pays nothing for it

        pinning.guard_pinning(
            engine, "refuse" if settings.pinning == "refuse" else "warn", settings.variable("pinning")
        )
    learnt: Any = engine.dialect

    def forget() -> None:
        connector.forget()
        learnt.forget()

    ahead = connector.connect_ahead if settings.connect_on_restore else None
    lifecycle.follow(engine, forget, connector.prepare, ahead)
    if settings.slow_query_s or "on" in (settings.recorder, settings.metrics):
        _observe(engine, settings)
    if settings.shutdown != "off" and "AWS_LAMBDA_RUNTIME_API" in os.environ:
        from . import shutdown  # another process pays nothing for it

        shutdown.listen(os.environ, register=settings.shutdown == "extension")
    return engine


def _observe(engine: Engine, settings: Settings) -> None:
    """Attach what the settings ask for, once in a process; nobody else pays for it."""
    from . import observe

    if settings.slow_query_s:
        from . import slow

        slow.start(os.environ, settings.slow_query_s)
        # What is asked in between would pin a proxy's connection.
        if settings.slow_query_explain == "on" and settings.endpoint == "direct" and settings.auth != "dsql":
            slow.explain(engine)
    if settings.recorder == "on":
        from . import recorder

        recorder.start(os.environ, settings.slow_query_s)
    if settings.metrics == "on":
        try:
            observe.to_metrics_once()
        except (ImportError, ValueError) as error:
            raise SettingsError([f"{settings.variable('metrics')}=on: {error}"]) from error


def _instead(option: str, settings: Settings) -> str:
    return _DECIDED[option].format_map({one.name: settings.variable(one.name) for one in fields(settings)})


def dispose_engine() -> None:
    """
    Close every idle connection of the engines that get_engine built, and forget the engines; the next call builds a new
    one.

    A connection that is checked out is closed when it is returned. Threads: safe.
    """
    with _lock:
        engines = {engine for engine, _ in _engines.values()}
        _engines.clear()
    for engine in engines:
        engine.dispose()


def application_name(environ: dict[str, str] | os._Environ[str]) -> str:
    """
    Return the name that pg_stat_activity shows: the function's name and version. Pure.

    At most 63 bytes, which PostgreSQL would cut off; the end of a long function name goes, the version stays.
    """
    function, version = environ.get("AWS_LAMBDA_FUNCTION_NAME"), environ.get("AWS_LAMBDA_FUNCTION_VERSION")
    return session_name(function, version or "") if function else "plungepool"


def session_name(function: str, version: str) -> str:
    """Return the name by which pg_stat_activity shows the sessions of a function's version. Pure."""
    ending = f":{version}" if version else ""
    return function[: 63 - len(ending)] + ending


def _renew_lock() -> None:
    # Another thread of the parent may have held it at the moment of the fork; nobody would release it here.
    global _lock
    _lock = threading.Lock()


lifecycle.renew_in_child(_renew_lock)
