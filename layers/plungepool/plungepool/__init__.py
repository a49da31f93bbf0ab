"""Plungepool: a small, deep pool for cold starts. Outside the handler: `engine = get_engine()`."""

from . import cold_start as _cold_start  # before all that imports SQLAlchemy  # noqa: F401
from .engine import Unavailable, build_engine, dispose_engine, get_engine
from .errors import CredentialsError, DeadlineExceeded, PinningRefused, PlungepoolError, SettingsError
from .pool import PoolExhausted
from .settings import Settings

__all__ = [
    "CredentialsError",
    "DeadlineExceeded",
    "PinningRefused",
    "PlungepoolError",
    "PoolExhausted",
    "Settings",
    "SettingsError",
    "Unavailable",
    "build_engine",
    "dispose_engine",
    "get_engine",
]
