"""
Who the server is: verifying TLS contexts over the certificate authorities that the layer ships.

A connection is encrypted and the server's certificate and host name are verified, or there is no connection; plain
text is spoken only where the settings say ``disable``. The authorities of Amazon RDS differ from region to region
and make 160 KB together, so only those of the region in the settings are parsed; Amazon's public roots, which RDS
Proxy, Aurora Serverless and Aurora DSQL chain to, come with every region.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from .errors import SettingsError

if TYPE_CHECKING:
    import ssl

    from .settings import Settings

_CERTIFICATES = os.path.join(os.path.dirname(__file__), "certificates")
_AMAZON_ROOTS = "amazon-roots.pem"

_logger = logging.getLogger("plungepool")
_contexts: dict[tuple[str | None, str | None, bool], ssl.SSLContext] = {}
_hosts_of_other_curves: set[str] = set()
_warned: set[str] = set()


def client_context(settings: Settings) -> ssl.SSLContext | None:
    """
    Return the process-wide verifying context for these settings, made on first use; None where TLS is disabled.

    Args: settings: ``tls``, ``ca_file`` and ``region`` decide; ``host`` only whether plain text is worth a warning.
    Raises: SettingsError when the file of PLUNGEPOOL_CA_FILE cannot be read or holds no certificate.
    Threads, forks: safe; two threads that come first make two contexts, of which one is kept.
    """
    if settings.tls == "disable":
        _warn_of_plain_text(settings.host)
        return None
    key = (settings.ca_file, None if settings.ca_file else settings.region, settings.host in _hosts_of_other_curves)
    context = _contexts.get(key)
    if context is None:
        context = _contexts.setdefault(key, _make_context(*key))
    return context


def offer_every_curve(error: BaseException | None, settings: Settings) -> bool:
    """
    Say whether a failed handshake is worth another attempt, in which `client_context` will offer every curve.

    The usual context offers the one curve that saves a round trip. A server that was told to know others only (P-384,
    as some rules ask for) answers with a plain "handshake failure"; it is remembered for the process's life.
    """
    if getattr(error, "reason", None) != "SSLV3_ALERT_HANDSHAKE_FAILURE" or settings.host in _hosts_of_other_curves:
        return False
    _hosts_of_other_curves.add(settings.host)
    return True


def shipped_authorities(region: str | None) -> list[str]:
    """
    Return the paths of the shipped PEM files to trust in a region: its own, or every one where it is not known here.
    """
    names = sorted(name for name in os.listdir(_CERTIFICATES) if name.endswith(".pem"))
    if f"{region}.pem" in names:
        names = [f"{region}.pem", _AMAZON_ROOTS]
    return [os.path.join(_CERTIFICATES, name) for name in names]


def is_loopback(host: str | None) -> bool:
    """Say whether a host name or address is this machine's own, without asking a resolver."""
    import ipaddress

    if not host or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost")


def explain(error: BaseException, host: str) -> str:
    """
    Return one sentence of cause and cure for a TLS handshake that failed, with the setting to change.

    Args: error: what `ssl` raised. host: whom the client asked for.
    """
    code = getattr(error, "verify_code", None)
    if code in (_HOSTNAME_MISMATCH, _ADDRESS_MISMATCH):
        return (
            f"the server shows a certificate for another name than {host}: PLUNGEPOOL_HOST must be the endpoint's own name "
            "as AWS gives it, not an address or a name of your own"
        )
    if code in (_EXPIRED, _NOT_YET_VALID):
        return (
            f"the certificate of {host}, or of an authority above it, {'has expired' if code == _EXPIRED else 'is not valid yet'}: "
            "renew it at the server, and check this machine's clock"
        )
    if code is not None:
        return (
            f"the certificate of {host} comes from an authority that is not trusted here ({getattr(error, 'verify_message', '')}): "
            "unless PLUNGEPOOL_CA_FILE names others, those of Amazon RDS in PLUNGEPOOL_REGION are, as far as this version "
            "ships them; name a PEM file with the server's authority in PLUNGEPOOL_CA_FILE"
        )
    return (
        f"TLS with {host} failed ({getattr(error, 'reason', None) or type(error).__name__}): the server must speak TLS 1.2 or "
        "newer; PLUNGEPOOL_TLS=disable is for a database on this machine only"
    )


# X509_V_ERR_* of OpenSSL's x509_vfy.h; the module ssl names none of them.
_NOT_YET_VALID = 9
_EXPIRED = 10
_HOSTNAME_MISMATCH = 62
_ADDRESS_MISMATCH = 64


def _make_context(ca_file: str | None, region: str | None, every_curve: bool) -> ssl.SSLContext:
    import ssl

    # Not create_default_context(): from Python 3.13 it sets VERIFY_X509_STRICT, and what is trusted must not depend
    # on the runtime. PROTOCOL_TLS_CLIENT asks for a certificate and checks the host name.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not every_curve:
        # PostgreSQL before 18 knows no other curve unless told to (ssl_ecdh_curve), and every server of TLS 1.3 must know
        # this one (RFC 8446, 9.1). A first guess that the server cannot use costs a round trip (HelloRetryRequest).
        context.set_ecdh_curve("prime256v1")
    if ca_file is None:
        for path in shipped_authorities(region):
            context.load_verify_locations(cafile=path)
        return context
    try:
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError as error:
        raise SettingsError(
            [f"PLUNGEPOOL_CA_FILE names {ca_file!r}, which holds no certificate in PEM format"]
        ) from error
    except OSError as error:
        problem = (
            f"PLUNGEPOOL_CA_FILE names {ca_file!r}, which cannot be read ({error.strerror}); leave it unset for AWS"
        )
        raise SettingsError([problem]) from error
    return context


def _warn_of_plain_text(host: str | None) -> None:
    if is_loopback(host) or host in _warned:
        return
    _warned.add(str(host))
    _logger.warning(
        "PLUNGEPOOL_TLS=disable: passwords, statements and rows travel to %s in plain text, and nothing proves who "
        "answers there. Remove the setting; a certificate of your own authority is trusted with PLUNGEPOOL_CA_FILE.",
        host,
    )
