"""What a context offers, how long it is kept, and what is said of a handshake that failed."""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from plungepool import Settings, tls

PRIME256V1 = 0x0017  # RFC 8422, 5.1.1: secp256r1


def make_settings(ca_file: Path | None = None) -> Settings:
    """Settings of a function with a password, in a region whose authorities are shipped."""
    return Settings(
        host="db.example.com", user="u", password="p", region="eu-west-1", ca_file=str(ca_file) if ca_file else None
    )


def curves_offered(context: ssl.SSLContext | None) -> list[int]:
    """Return the groups that this context's ClientHello names, RFC 8446, 4.2.7."""
    assert context is not None
    sent = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="db.example.com").do_handshake()
    hello = sent.read()[9:]  # without the headers of record and message

    def number(at: int) -> int:
        return int.from_bytes(hello[at : at + 2])

    at = 2 + 32  # version, random
    at += 1 + hello[at]  # session id
    at += 2 + number(at)  # cipher suites
    at += 1 + hello[at]  # compression
    end, at = at + 2 + number(at), at + 2
    while at < end:
        kind, length = number(at), number(at + 2)
        if kind == 10:
            return [number(place) for place in range(at + 6, at + 4 + length, 2)]
        at += 4 + length
    return []


def test_usual_handshake_offers_the_one_curve_that_every_server_knows() -> None:
    """
    A first guess that a server cannot use costs a round trip, so there is one curve to guess; the other context offers
    more.
    """
    assert curves_offered(tls.client_context(make_settings())) == [PRIME256V1]
    every = curves_offered(tls.client_context(make_settings(), every_curve=True))
    assert PRIME256V1 in every
    assert len(every) > 1


def test_file_that_somebody_reads_is_not_read_anew(tmp_path: Path) -> None:
    """
    A context is made anew where the file was written, to the nanosecond, and not where another process looked at it.
    """
    path = tmp_path / "ca.pem"
    path.write_bytes(Path(tls.__file__).with_name("certificates").joinpath("eu-west-1.pem").read_bytes())
    second = 1_700_000_000 * 10**9
    os.utime(path, ns=(second, second))
    context = tls.client_context(make_settings(path))
    os.utime(path, ns=(second + 60 * 10**9, second))
    assert tls.client_context(make_settings(path)) is context
    os.utime(path, ns=(second, second + 1000))
    assert tls.client_context(make_settings(path)) is not context


def self_signed(folder: Path, begins: datetime) -> tuple[Path, Path]:
    """Write a certificate for db.example.com that is valid for a day; return it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "db.example.com")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("db.example.com")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "server.pem", folder / "server.key"


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> Exception | None:
    """Let both shake hands in memory; return what the client raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="db.example.com"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(5):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return error
    return None


@pytest.mark.parametrize(
    ("begins_in_days", "said"),
    [(-3, "has expired"), (2, "is not valid yet"), (0, None)],
    ids=["old", "future", "valid"],
)
def test_certificate_out_of_its_time_is_said_to_be(tmp_path: Path, begins_in_days: int, said: str | None) -> None:
    """A certificate that ran out, or whose time has not come, sends to the server's renewal and to the clock."""
    certificate, key = self_signed(tmp_path, datetime.now(UTC) + timedelta(days=begins_in_days, hours=-1))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = tls.client_context(make_settings(certificate))
    assert client is not None
    error = handshake(client, server)
    if said is None:
        assert error is None
        return
    assert error is not None
    text = tls.explain(error, "db.example.com:5432", client)
    assert f"the certificate of db.example.com:5432, or of an authority above it, {said}" in text
    assert "check this machine's clock" in text


def test_another_failure_is_named_by_its_reason_or_its_class() -> None:
    """OpenSSL's own word where it gave one, the error's class where the connection just ended."""
    refused = ssl.SSLError(1, "an alert")
    refused.reason = "TLSV1_ALERT_PROTOCOL_VERSION"
    assert "failed (TLSV1_ALERT_PROTOCOL_VERSION)" in tls.explain(refused, "db:5432")
    assert "failed (ConnectionResetError)" in tls.explain(ConnectionResetError(), "db:5432")
    assert "failed (SSLEOFError)" in tls.explain(ssl.SSLEOFError(8, "the end"), "db:5432")
