"""The toolkit's certificate authority: real handshakes, judged by the standard library's verification."""

from __future__ import annotations

import os
import pwd
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from plungepool_toolkit.certificates import Authority


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> str | None:
    """Return the TLS version that both sides agreed on over a real socket pair."""
    ours, theirs = socket.socketpair()
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as tls:
                tls.recv(1)
        except OSError as failure:
            failures.append(failure)
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=host) as tls:
            return tls.version()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("host", ["localhost", "db.example.test", "127.0.0.1", "::1"])
def test_a_certificate_is_good_for_each_of_its_hosts(host: str) -> None:
    """Names and addresses alike are verified against one certificate."""
    with Authority() as authority:
        server = authority.server_context("localhost", "db.example.test", "127.0.0.1", "::1")
        assert handshake(server, authority.client_context(), host) == "TLSv1.3"


@pytest.mark.parametrize("host", ["elsewhere.example.test", "127.0.0.2"])
def test_a_wrong_host_is_refused(host: str) -> None:
    """A host that the certificate does not name fails the verification."""
    with Authority() as authority:
        server = authority.server_context("localhost", "127.0.0.1")
        with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
            handshake(server, authority.client_context(), host)


def test_an_expired_certificate_is_refused() -> None:
    """`expired=True` gives a certificate that is right in all but its date."""
    with Authority() as authority:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            handshake(authority.server_context("localhost", expired=True), authority.client_context(), "localhost")


def test_another_authority_of_the_same_name_is_refused() -> None:
    """Trust follows the key, not the name."""
    with Authority() as ours, Authority() as theirs:
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(theirs.server_context("localhost"), ours.client_context(), "localhost")


def test_a_server_speaks_tls_1_2_at_least() -> None:
    """The oldest version that the server's context takes is 1.2."""
    with Authority() as authority:
        client = authority.client_context()
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        server = authority.server_context("localhost")
        assert server.minimum_version == ssl.TLSVersion.TLSv1_2
        assert handshake(server, client, "localhost") == "TLSv1.2"


def test_only_the_owner_reads_the_key() -> None:
    """PostgreSQL refuses a key that its group or others may read."""
    with Authority() as authority:
        _certificate, key = authority.issue("localhost")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_the_key_can_belong_to_the_user_who_runs_the_server() -> None:
    """`owner` hands the key over, as a server under another account needs it."""
    me = pwd.getpwuid(os.getuid()).pw_name
    owner = "nobody" if os.getuid() == 0 else me
    with Authority() as authority:
        _certificate, key = authority.issue("localhost", owner=owner)
        assert key.owner() == owner


def test_the_files_go_with_the_authority() -> None:
    """Nothing stays behind after the block, and closing again is harmless."""
    with Authority() as authority:
        certificate, key = authority.issue("localhost")
        files = [authority.ca_file, certificate, key]
        assert all(file.is_file() for file in files)
    authority.close()
    assert not any(file.exists() for file in files)
    assert not Path(authority.ca_file).parent.exists()


def test_a_certificate_for_no_host_is_refused() -> None:
    """A certificate without a host would verify nowhere."""
    with Authority() as authority:
        with pytest.raises(ValueError, match="at least one host"):
            authority.issue()


def test_files_go_with_a_process_that_is_killed() -> None:
    """An authority's keys do not outlive who made them, also after SIGKILL."""
    program = (
        "import time; from plungepool_toolkit.certificates import Authority\n"
        "authority = Authority(); print(authority.ca_file, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        file = Path(owner.stdout.readline().strip())
        assert file.is_file()
        owner.kill()
    end = time.monotonic() + 60
    while file.parent.exists():
        assert time.monotonic() < end, "the folder is still there"
        time.sleep(0.05)
