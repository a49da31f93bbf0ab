"""
Who the server is: verifying TLS contexts over the certificate authorities that the layer ships.

A connection is encrypted and the server's certificate and host name are verified, or there is no connection; plain
text is spoken only where the settings say ``disable``. The authorities of Amazon RDS differ from region to region
and make 160 KB together, so only those of the region in the settings are parsed; Amazon's public roots, which RDS
Proxy, Aurora Serverless and Aurora DSQL chain to, come with every region.

Source: RDS User Guide, "Using SSL/TLS to encrypt a connection to a DB instance or cluster", and "RDS Proxy concepts and
terminology"; certificates/PROVENANCE.md.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import SettingsError
from .names import variable

if TYPE_CHECKING:
    import ssl

    from .settings import Settings

_CERTIFICATES = os.path.join(os.path.dirname(__file__), "certificates")
_AMAZON_ROOTS = "amazon-roots.pem"

# What is trusted -> the state that the file was in, and the context made from it.
_contexts: dict[tuple[str | None, str | None, bool, bool, str], tuple[object, ssl.SSLContext]] = {}


def client_context(settings: Settings, *, every_curve: bool = False) -> ssl.SSLContext | None:
    """
    Return the process-wide verifying context for these settings, made on first use; None where TLS is disabled.

    Args: settings: ``tls``, ``tls_negotiation``, ``ca_file`` and ``region`` decide; by ``prefix`` a context knows what
        errors call them. every_curve: offer what OpenSSL does; else the one curve that saves a round trip with most
        servers.
    Raises: SettingsError when the file of PLUNGEPOOL_CA_FILE cannot be read or holds no certificate; one that was
        written anew is read anew.
    Threads, forks: safe; two threads that come first make two contexts, of which one is kept.
    """
    if settings.tls == "disable":
        return None
    direct = settings.tls_negotiation == "direct"
    key = (settings.ca_file, None if settings.ca_file else settings.region, every_curve, direct, settings.prefix)
    state = _state_of(settings.ca_file)
    known, context = _contexts.get(key, (None, None))
    if context is None or known != state:
        context = _make_context(*key)
        _contexts[key] = state, context
    return context


def may_want_another_curve(error: Exception) -> bool:
    """Say whether a handshake failed in the way in which a server refuses the only curve that it was offered."""
    return any(getattr(one, "reason", None) == "SSLV3_ALERT_HANDSHAKE_FAILURE" for one in (error, error.__cause__))


def shipped_authorities(region: str | None) -> list[str]:
    """
    Return the paths of the shipped PEM files to trust in a region: its own, or every one where it is not known here.

    Source: certificates/PROVENANCE.md.
    """
    names = sorted(name for name in os.listdir(_CERTIFICATES) if name.endswith(".pem"))
    if f"{region}.pem" in names:
        names = [f"{region}.pem", _AMAZON_ROOTS]
    return [os.path.join(_CERTIFICATES, name) for name in names]


def is_loopback(host: str) -> bool:
    """Say whether a host name or address is this machine's own, without asking a resolver."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost")


def explain(error: BaseException, host: str, context: ssl.SSLContext | None = None) -> str:
    """
    Return one sentence of cause and cure for a TLS handshake that failed, with the setting to change.

    Args: error: what `ssl` raised. host: whom the client asked for. context: one of `client_context`'s, which knows
        what it trusts.
    """
    code = getattr(error, "verify_code", None)
    if code in (_HOSTNAME_MISMATCH, _ADDRESS_MISMATCH):
        return (
            f"the server's certificate is for a name other than {host}: {setting(context, 'host')} must be the "
            "endpoint name that AWS assigned, not an address or a name of your own; if a tunnel has another address, "
            f"set it in {setting(context, 'address')}"
        )
    if code in (_EXPIRED, _NOT_YET_VALID):
        return (
            f"the certificate of {host}, or of an authority above it, "
            f"{'has expired' if code == _EXPIRED else 'is not valid yet'}: renew it at the server, and check this "
            "machine's clock"
        )
    if code is not None:
        own = getattr(context, "ca_file", None)
        cure = (
            f"{setting(context, 'ca_file')} names {own!r}, and nothing else is trusted: add the certificate of the "
            "authority that issued the server's to that file, or leave the setting unset for a server of AWS"
            if own
            else (
                f"the trusted authorities are those of Amazon RDS in {setting(context, 'region')}that ship with this "
                f"version, unless {setting(context, 'ca_file')} names a PEM file of others"
            )
        )
        message = getattr(error, "verify_message", "")
        return f"the certificate of {host} was issued by an authority that is not trusted here ({message}): {cure}"
    return (
        f"TLS with {host} failed ({getattr(error, 'reason', None) or type(error).__name__}): the server must speak TLS "
        f"1.2 or newer; {setting(context, 'tls')}=disable is for a database on this machine only"
    )


def setting(context: ssl.SSLContext | None, name: str) -> str:
    """Return the variable of a setting, as the settings that `client_context` made this context of call it."""
    return variable(name, getattr(context, "prefix", ""))


# X509_V_ERR_* of OpenSSL's x509_vfy.h; the module ssl names none of them.
_NOT_YET_VALID = 9
_EXPIRED = 10
_HOSTNAME_MISMATCH = 62
_ADDRESS_MISMATCH = 64


def _state_of(ca_file: str | None) -> object:
    """Return what changes when a file is written anew; a file that is away is for the one who reads it to say."""
    try:
        found = os.stat(ca_file) if ca_file else None
    except (OSError, ValueError):
        return None
    return found and (found.st_mtime_ns, found.st_size, found.st_ino)


def _make_context(
    ca_file: str | None, region: str | None, every_curve: bool, direct: bool, prefix: str
) -> ssl.SSLContext:
    import ssl

    # Not create_default_context(): from Python 3.13 it sets VERIFY_X509_STRICT, and what is trusted must not depend
    # on the runtime. PROTOCOL_TLS_CLIENT asks for a certificate and checks the host name.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.prefix = prefix  # type: ignore[attr-defined]  # for `setting`
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not every_curve:
        # PostgreSQL before 18 knows no other curve unless told to (ssl_ecdh_curve), and every server of TLS 1.3 must
        # know this one (RFC 8446, 9.1). A first guess that the server cannot use costs a round trip
        # (HelloRetryRequest).
        context.set_ecdh_curve("prime256v1")
    if direct:
        # What starts TLS at once must say for which protocol (PostgreSQL, "SSL Session Encryption").
        context.set_alpn_protocols(["postgresql"])
    if ca_file is None:
        for path in shipped_authorities(region):
            context.load_verify_locations(cafile=path)
        return context
    context.ca_file = ca_file  # type: ignore[attr-defined]  # for `explain`
    try:
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError as error:
        problem = f"{variable('ca_file', prefix)} names {ca_file!r}, which holds no certificate in PEM format"
        raise SettingsError([problem]) from error
    except OSError as error:
        problem = (
            f"{variable('ca_file', prefix)} names {ca_file!r}, which cannot be read ({error.strerror}); leave it unset "
            "for AWS"
        )
        raise SettingsError([problem]) from error
    return context
