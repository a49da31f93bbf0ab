"""What the stand-in for RDS Proxy reads from single messages, and the variables that it hands out."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from stand_in import client, scram

from plungepool_toolkit.rds_proxy import Credential, RdsProxy, messages
from plungepool_toolkit.rds_proxy.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable


def packet(*fields: str) -> bytes:
    """A start-up message of version 3.0."""
    body = "".join(f"{field}\0" for field in fields).encode() + b"\0"
    return struct.pack("!ii", len(body) + 8, 196608) + body


@pytest.mark.parametrize(
    "fields", [{}, {"user": "a"}, {"user": "a", "database": "b", "application_name": "", "TimeZone": "UTC"}]
)
def test_every_field_of_a_start_up_is_read(fields: dict[str, str]) -> None:
    """Names and values by turns, to the empty name that ends them; a value may be empty."""
    assert messages.startup_fields(packet(*(text for field in fields.items() for text in field))) == fields


@pytest.mark.parametrize(
    ("message", "unnamed"),
    [
        (messages.pack(b"B", b"\0\0\0\0\0\0\0\0"), True),
        (messages.pack(b"B", b"portal\0\0\0\0\0\0\0\0"), True),
        (messages.pack(b"B", b"\0named\0\0\0\0\0\0\0"), False),
        (messages.pack(b"B", b"no end"), False),
        (messages.pack(b"D", b"S\0"), True),
        (messages.pack(b"D", b"Snamed\0"), False),
        (messages.pack(b"D", b"P\0"), False),
        (messages.pack(b"Q", b"\0\0"), False),
    ],
)
def test_use_of_the_unnamed_statement_is_seen(message: bytes, unnamed: bool) -> None:
    """A Bind names a portal before its statement; a Describe says which of the two it names."""
    assert messages.uses_unnamed_statement(message) is unnamed


def test_parse_is_read() -> None:
    """Its name, its text, and not the types behind them."""
    assert messages.parsed(messages.pack(b"P", b"name\0SELECT 1\0\0\1\0\0\0\x17")) == (b"name", b"SELECT 1")


def test_variables_are_what_a_function_needs(rds_proxy: Callable[..., RdsProxy]) -> None:
    """With a password, none for a user whose password is not known, and with IAM: temporary keys or those of a user."""
    proxy = rds_proxy(auth="scram", users={"app": "secret"})
    expected = {
        "PLUNGEPOOL_URL": f"postgresql://app@localhost:{proxy.port}/orders",
        "PLUNGEPOOL_ENDPOINT": "proxy",
        "PLUNGEPOOL_CA_FILE": str(proxy.ca_file),
        "PLUNGEPOOL_AUTH": "password",
        "PLUNGEPOOL_PASSWORD": "secret",
    }
    assert proxy.variables("app", "orders") == expected
    assert proxy.variables("other")["PLUNGEPOOL_PASSWORD"] == ""
    temporary = Credential.temporary()
    for credential in (temporary, Credential(access_key_id="AKIA1", secret_access_key="s")):
        variables = rds_proxy(auth="iam", credentials=[credential]).variables("app")
        assert (variables["PLUNGEPOOL_AUTH"], variables["AWS_REGION"]) == ("iam", "eu-west-1")
        assert variables["AWS_ACCESS_KEY_ID"] == credential.access_key_id
        assert variables["AWS_SECRET_ACCESS_KEY"] == credential.secret_access_key
        assert variables.get("AWS_SESSION_TOKEN") == credential.session_token
        assert "PLUNGEPOOL_PASSWORD" not in variables


@pytest.mark.usefixtures("proxied_roles")
def test_what_a_failover_cuts_is_counted(rds_proxy: Callable[..., RdsProxy]) -> None:
    """An idle connection of the pool's is lost with it, and no client."""
    proxy = scram(rds_proxy)
    with client(proxy) as connection:
        assert (proxy.counters.database_connections, proxy.counters.database_connections_lost) == (1, 0)
        proxy.failover()
        assert (proxy.counters.database_connections, proxy.counters.database_connections_lost) == (0, 1)
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert (proxy.counters.failovers, proxy.counters.clients_hung_up) == (1, 0)


@pytest.mark.parametrize(
    ("awaiting", "room", "may"), [(False, None, True), (False, True, True), (False, False, False), (True, True, False)]
)
def test_client_waits_for_its_turn_and_for_room(awaiting: bool, room: bool | None, may: bool) -> None:
    """Nothing is taken from it while the database does not read, or has not answered."""
    session = Session(SimpleNamespace(now=lambda: 0.0), SimpleNamespace())  # type: ignore[arg-type]
    session._conversation.awaiting = awaiting
    server: Any = None if room is None else SimpleNamespace(peer=SimpleNamespace(can_write=lambda: room))
    session._server = server
    assert session._may_send() is may
