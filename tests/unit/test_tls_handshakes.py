"""Which curves a connect offers after what the last ones showed; offline, with handshakes that fail on command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from plungepool import Settings
from plungepool.connect import Connector

if TYPE_CHECKING:
    import ssl


class RefusedCurve(Exception):
    """What `ssl` says of a server that knows no curve that it was offered."""

    reason = "SSLV3_ALERT_HANDSHAKE_FAILURE"


class Server:
    """Answers each attempt as it is told to, in order, and notes which context it was asked with."""

    def __init__(self, *answers: Exception | str) -> None:
        self.answers, self.contexts = list(answers), []

    def __call__(self, context: ssl.SSLContext | None) -> str:
        self.contexts.append(context)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def handshakes() -> Connector:
    """Those of an engine that has not connected yet."""
    settings = Settings(host="db.example.com", user="app", password="x", region="eu-west-1")
    return Connector(settings, lambda server, _login, way: server(way.context))


def test_a_second_attempt_gives_its_connection_and_is_remembered() -> None:
    """Where every curve helps, its connection is returned, and the next connect begins with every curve."""
    shake, server = handshakes(), Server(RefusedCurve(), "connected", "again")
    assert shake.connect(server) == "connected"
    usual, every = server.contexts
    assert usual is not every
    assert shake.connect(server) == "again"
    assert server.contexts == [usual, every, every]


def test_two_failures_of_different_kinds_cost_the_next_connect_one_attempt() -> None:
    """
    The curve refused, then the network lost: the next tries every curve alone, and its success goes back to the usual
    one.
    """
    shake, server = handshakes(), Server(RefusedCurve(), ConnectionResetError(), "connected", "usual")
    with pytest.raises(ConnectionResetError):
        shake.connect(server)
    usual, every = server.contexts
    assert shake.connect(server) == "connected"
    assert shake.connect(server) == "usual"
    assert server.contexts == [usual, every, every, usual]


def test_another_failure_is_raised_without_a_second_attempt() -> None:
    """An error that no curve would cure is the caller's at once."""
    shake, server = handshakes(), Server(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        shake.connect(server)
    assert len(server.contexts) == 1
