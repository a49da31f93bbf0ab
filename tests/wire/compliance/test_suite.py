"""SQLAlchemy's compliance suite for dialects."""

from sqlalchemy.testing.suite import *
from sqlalchemy.testing.suite import ServerSideCursorsTest as _ServerSideCursorsTest


class ServerSideCursorsTest(_ServerSideCursorsTest):
    """SQLAlchemy's, which knows the cursors of its own dialects only, as a comment there regrets."""

    def _is_server_side(self, cursor):
        return getattr(cursor, "server_side", False)
