"""
A certificate authority for one machine: what a test needs to say yes or no to a server's certificate.

The keys are elliptic (P-256), so that issuing one costs a millisecond and not RSA's second. The files live in a folder
of their own, which goes with the authority: at `close`, at the end of the `with` block, or at the end of the process.

Why not `trustme`: tried in November 2026 (1.2.1), it would replace the sixty lines that build certificates, at the
price of two packages more for every user of the toolkit. It issues what is asked for here (hosts and addresses, any
dates, P-256, and it passes VERIFY_X509_STRICT) and more than anybody here asks for (chains, RSA, certificates not yet
valid). What this module is for it leaves to its caller: keys that are created with mode 0600 (its files are 0644) or
belong to the server's user, files that go with a process that is killed, a name of the authority's own, so that an
error says whose certificate it was, and the two contexts. And it refuses host names with an underscore, which
containers have.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from plungepool_toolkit.processes import Closing, TemporaryFolder

if TYPE_CHECKING:
    from pathlib import Path

_DAY = timedelta(days=1)


class Authority(Closing):
    """
    A certificate authority and the files of what it issued.

    Args: name: the common name of its root; two authorities of one name still have keys of their own, so a client that
    trusts the one does not trust the other.
    Threads: safe once built.
    """

    def __init__(self, name: str = "Plungepool toolkit CA") -> None:
        self._files = TemporaryFolder("ca")
        self._folder = self._files.path
        # A server that runs as another user must get at its files; each key is guarded by its own mode.
        self._folder.chmod(0o711)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self.certificate = (
            self._builder(self._name, self._key.public_key())
            .not_valid_before(now - 365 * _DAY)
            .not_valid_after(now + 3650 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = self._folder / "ca.pem"
        self.ca_file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self.ca_file.chmod(0o644)

    def __repr__(self) -> str:
        return f"<Authority {self._name.rfc4514_string()} in {self._folder}>"

    def close(self) -> None:
        """Remove the files; may be called again."""
        self._files.remove()

    def issue(
        self, *hosts: str, expired: bool = False, not_yet_valid: bool = False, owner: str | None = None
    ) -> tuple[Path, Path]:
        """
        Issue a server certificate.

        Args: hosts: names and IP addresses that it is good for, at least one. expired: it ran out yesterday.
        not_yet_valid: it is good from tomorrow on. owner: the operating system's user that runs the server and is to
        own the key (root only; PostgreSQL refuses a key that others may read).
        Returns: the paths of the certificate and of its key (mode 0600), both PEM.
        """
        if not hosts:
            raise ValueError("a server certificate needs at least one host")
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])]), key.public_key())
            .not_valid_before(now + _DAY if not_yet_valid else now - 30 * _DAY)
            .not_valid_after(now - _DAY if expired else now + 365 * _DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        stem = f"server-{secrets.token_hex(4)}"
        cert_file, key_file = self._folder / f"{stem}.pem", self._folder / f"{stem}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        cert_file.chmod(0o644)
        # Created with its mode, not narrowed after: there is no moment in which another user could read it.
        with open(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
        if owner is not None:
            shutil.chown(key_file, owner)
        return cert_file, key_file

    def server_context(self, *hosts: str, expired: bool = False, not_yet_valid: bool = False) -> ssl.SSLContext:
        """Return a server's TLS context (1.2 at least) with a new certificate for these hosts; see `issue`."""
        cert_file, key_file = self.issue(*hosts, expired=expired, not_yet_valid=not_yet_valid)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(cert_file, key_file)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a client's verifying TLS context that trusts this authority and no other."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        # Both key identifiers are asked for by VERIFY_X509_STRICT, Python 3.13's default.
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    """Return what a key may do: sign certificates, or be a server's."""
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )
