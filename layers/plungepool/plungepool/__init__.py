"""Plungepool: a small, deep pool for cold starts. Outside the handler: `engine = get_engine()`."""

from . import cold_start as _cold_start  # before all that imports SQLAlchemy  # noqa: F401
from .engine import Unavailable, build_engine, dispose_engine, get_engine
from .errors import (
    ConnectionLeak,
    CredentialsError,
    DeadlineExceeded,
    OutcomeUnknown,
    PinningRefused,
    PlungepoolError,
    SettingsError,
    SettingsMissing,
)
from .invocation import guard_invocation
from .pool import PoolExhausted
from .settings import Settings
from .transaction import once, run_transaction

__version__ = "1.0.0"

__all__ = [
    "ConnectionLeak",
    "CredentialsError",
    "DeadlineExceeded",
    "OutcomeUnknown",
    "PinningRefused",
    "PlungepoolError",
    "PoolExhausted",
    "Settings",
    "SettingsError",
    "SettingsMissing",
    "Unavailable",
    "build_engine",
    "dispose_engine",
    "get_engine",
    "guard_invocation",
    "once",
    "run_transaction",
]
