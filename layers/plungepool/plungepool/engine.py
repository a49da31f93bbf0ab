"""get_engine, build_engine, dispose_engine: the one place that puts the parts together."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from sqlalchemy import URL, create_engine

from . import credentials, dialect, lifecycle, observe, tls, wire
from .pool import build_pool
from .settings import Settings

if TYPE_CHECKING:
    import ssl

    from sqlalchemy import Engine

    from .credentials import Login

# Settings -> engine; None stands for the settings of the environment variables.
_engines: dict[Settings | None, Engine] = {}
_lock = threading.Lock()


def get_engine(settings: Settings | None = None) -> Engine:
    """
    Return the process-wide engine for these settings, building it on the first call.

    Args: settings: None reads the PLUNGEPOOL_ environment variables, once; `dispose_engine` makes them read anew.
    Returns: a plain sqlalchemy.Engine; no connection is opened yet.
    Raises: SettingsError; at the first connect sqlalchemy.exc.OperationalError, CredentialsError.
    Threads, forks: safe; a forked child keeps the engine and opens connections of its own.
    Source: SQLAlchemy, Engine Configuration; Connection Pooling, "Using Connection Pools with Multiprocessing".
    """
    engine = _engines.get(settings)
    if engine is None:
        with _lock:
            engine = _engines.get(settings)
            if engine is None:
                read = settings if settings is not None else Settings.from_env(os.environ)
                # Both names give one engine: a second would be a second connection for this environment.
                engine = _engines.get(read) or build_engine(read)
                _engines[read] = _engines[settings] = engine
    return engine


def build_engine(settings: Settings) -> Engine:
    """
    Return a new engine that nothing shares: for tests and tools. The caller disposes of it.

    Returns: a plain sqlalchemy.Engine; no connection is opened yet.
    """
    source = credentials.source(settings)
    handshakes = tls.Handshakes(settings)
    proxy = settings.endpoint == "proxy"
    startup = {}
    if settings.statement_timeout_s:
        startup["statement_timeout"] = str(max(1, round(settings.statement_timeout_s * 1000)))
    name = application_name(os.environ)

    def connect(login: Login, timeout_s: float, context: ssl.SSLContext | None) -> wire.Connection:
        return wire.connect(
            user=login.user,
            password=login.password,
            host=login.host,
            port=login.port,
            address=settings.address,
            database=login.database,
            ssl_context=context,
            application_name=name,
            connect_timeout_s=timeout_s,
            dead_peer_timeout_s=settings.dead_peer_timeout_s,
            startup_params=startup,
            cancel_on_abandon=not proxy,
        )

    def open_connection(login: Login) -> wire.Connection:
        deadline = time.time() + login.timeout_s
        # In hundredths: an error says how long it was waited.
        return handshakes.connect(lambda context: connect(login, max(0.05, round(deadline - time.time(), 2)), context))

    def is_alive(connection: wire.Connection, idle_s: float) -> bool:
        # At each checkout the dialect looks at the socket, at no cost, and finds what the server has closed; after a
        # long idle time the way to the server may have gone without a word, and only a question finds that.
        if idle_s < settings.ping_after_idle_s:
            return True
        try:
            connection.deadline = time.time() + settings.connect_timeout_s
            connection.ping()
        except wire.Error:
            return False
        finally:
            connection.deadline = None
        return True

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
        pool=build_pool(settings, lambda _record: source.connect(open_connection), is_alive),
        hide_parameters=True,
        # SQLAlchemy puts this many rows of an INSERT with RETURNING into one statement; RDS Proxy pins for one of more
        # than 16 KB (User Guide, rds-proxy-pinning), which 100 rows of a dozen columns stay below.
        insertmanyvalues_page_size=100 if proxy else 1000,
    )
    if proxy:
        observe.guard_pinning(engine, "refuse" if settings.pinning == "refuse" else "warn")

    def forget() -> None:
        source.forget()
        handshakes.forget()

    lifecycle.follow(engine, forget)
    return engine


def dispose_engine() -> None:
    """Close every idle connection of the engines that get_engine built, and forget them; the next call builds anew."""
    with _lock:
        engines = set(_engines.values())
        _engines.clear()
    for engine in engines:
        engine.dispose()


def application_name(environ: dict[str, str] | os._Environ[str]) -> str:
    """
    Return the name that pg_stat_activity shows: the function's name and version. Pure.

    At most 63 bytes, which PostgreSQL would cut off; the end of a long function name goes, the version stays.
    """
    function, version = environ.get("AWS_LAMBDA_FUNCTION_NAME"), environ.get("AWS_LAMBDA_FUNCTION_VERSION")
    if not function:
        return "plungepool"
    ending = f":{version}" if version else ""
    return function[: 63 - len(ending)] + ending


def _renew_lock() -> None:
    # Another thread of the parent may have held it at the moment of the fork; nobody would release it here.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
