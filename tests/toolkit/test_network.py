"""The proxy that counts round trips and breaks networks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from plungepool_toolkit.network import ChaosProxy

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def echo() -> Iterator[Any]:
    """A server that answers each line with the same line; its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: Any) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    yield listener.getsockname()
    listener.close()


@pytest.fixture
def proxy(echo: Any) -> Iterator[Any]:
    """A proxy before the server."""
    with ChaosProxy(*echo) as proxy:
        yield proxy


def ask(client: Any, text: str) -> Any:
    client.sendall(text)
    answer = b""
    while len(answer) < len(text):
        piece = client.recv(65536)
        if not piece:
            break
        answer += piece
    return answer


def connect(proxy: ChaosProxy) -> Any:
    return socket.create_connection((proxy.host, proxy.port), timeout=20)


def test_round_trips_are_counted_exactly(proxy: ChaosProxy) -> None:
    """One for the connect and one for each answer, however many clients there are; a reset starts anew."""
    with connect(proxy) as one, connect(proxy) as two:
        for text in (b"a", b"b", b"c"):
            assert ask(one, text) == text
        assert ask(two, b"d") == b"d"
        assert (proxy.round_trips, proxy.connections) == (2 + 4, 2)
        proxy.round_trips = 0
        ask(one, b"e")
        assert proxy.round_trips == 1


@pytest.mark.parametrize(
    "farewell", [b"\x15\x03\x03\x00\x02\x01\x00", b"\x17\x03\x03\x00\x13" + bytes(19)], ids=["1.2", "1.3"]
)
def test_a_farewell_is_no_round_trip(proxy: ChaosProxy, farewell: Any) -> None:
    """
    A server of TLS answers Terminate by an alert; whether the client's end comes before is chance, and not counted.
    """
    with connect(proxy) as client:
        ask(client, b"a")
        assert ask(client, farewell) == farewell
        assert proxy.round_trips == 2


def test_long_streams_pass_unchanged_both_ways_at_once(proxy: ChaosProxy) -> None:
    """Megabytes in both directions arrive whole, beyond what the proxy holds back."""
    sent = bytes(range(256)) * 20_000
    with connect(proxy) as client:
        thread = threading.Thread(target=client.sendall, args=(sent,))
        thread.start()
        received = b""
        while len(received) < len(sent):
            received += client.recv(65536)
        thread.join()
    assert received == sent


def test_latency_keeps_the_order(echo: Any) -> None:
    """Delayed pieces arrive as they were sent."""
    with ChaosProxy(*echo, latency_ms=2) as proxy, connect(proxy) as client:
        sent = b"".join(b"%04d" % number for number in range(2000))
        for start in range(0, len(sent), 100):
            client.sendall(sent[start : start + 100])
        received = b""
        while len(received) < len(sent):
            received += client.recv(65536)
    assert received == sent


def test_reset_reaches_the_client(proxy: ChaosProxy) -> None:
    """A reset breaks every connection, and new ones work."""
    with connect(proxy) as client:
        ask(client, b"a")
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connect(proxy) as client:
        assert ask(client, b"b") == b"b"


def test_hang_up_is_an_end_in_good_order(proxy: ChaosProxy) -> None:
    """A hang-up is an end of file."""
    with connect(proxy) as client:
        ask(client, b"a")
        assert proxy.hang_up() == 1
        assert client.recv(1) == b""


def test_partition_swallows_until_it_heals(proxy: ChaosProxy) -> None:
    """Nothing passes in a partition, and all of it afterwards."""
    with connect(proxy) as client:
        ask(client, b"a")
        proxy.partition()
        client.sendall(b"b")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        proxy.heal()
        client.settimeout(20)
        assert client.recv(1) == b"b"


def test_what_is_swallowed_stays_silent_and_new_connections_pass(proxy: ChaosProxy) -> None:
    """Neither end hears anything again, not even the end of the other; whoever connects anew is served."""
    with connect(proxy) as lost:
        ask(lost, b"a")
        assert proxy.swallow() == 1
        lost.sendall(b"b")
        with connect(proxy) as client:
            assert ask(client, b"c") == b"c"
            lost.settimeout(0.2)
            with pytest.raises(TimeoutError):
                lost.recv(1)
            proxy.partition()
            proxy.heal()
            with pytest.raises(TimeoutError):
                lost.recv(1)
            assert proxy.swallow() == 1


@pytest.mark.parametrize("gracefully", [False, True])
def test_cut_lets_exactly_so_many_bytes_pass(proxy: ChaosProxy, gracefully: Any) -> None:
    """The client gets the bytes before the cut, then the end; the next connection lives."""
    with connect(proxy) as client:
        ask(client, b"before")
        proxy.cut_after(from_server=4, gracefully=gracefully)
        client.sendall(b"0123456789")
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(100):
                received += piece
        assert received == b"0123"
    with connect(proxy) as client:
        assert ask(client, b"0123456789") == b"0123456789"


def test_cut_counts_what_the_client_sends(proxy: ChaosProxy) -> None:
    """A cut may come in the middle of what the client sends."""
    with connect(proxy) as client:
        proxy.cut_after(from_client=3)
        client.sendall(b"0123456789")
        with pytest.raises(ConnectionResetError):
            while client.recv(100):
                pass


def test_refused_connections_fail_and_come_back(proxy: ChaosProxy) -> None:
    """A proxy that refuses keeps its open connections and its port."""
    with connect(proxy) as client:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert ask(client, b"a") == b"a"
        proxy.accept()
        with connect(proxy) as other:
            assert ask(other, b"b") == b"b"


def test_use_outside_its_block_is_an_error(echo: Any) -> None:
    """What cannot work says why."""
    with pytest.raises(RuntimeError, match="with"):
        ChaosProxy(*echo).reset()


def test_a_client_may_come_in_the_moment_of_a_refusal(echo: Any) -> None:
    """Who has come before listening stops is connected, however late the proxy looks; the proxy lives on."""
    with ChaosProxy(*echo) as proxy, ThreadPoolExecutor(1) as pool:
        # Its thread is busy while both come, so that it finds them at one look.
        proxy._call(lambda: proxy._running.at(0.0, lambda: time.sleep(0.3)))
        refusing = pool.submit(proxy.refuse)
        time.sleep(0.1)
        with connect(proxy) as client:
            refusing.result(timeout=20)
            assert ask(client, b"a") == b"a"
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.accept()
        with connect(proxy) as client:
            assert ask(client, b"b") == b"b"
