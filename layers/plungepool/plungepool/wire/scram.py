"""
SCRAM-SHA-256 (RFC 5802, 7677): proves a password without showing it. Imported when a server asks for it; with IAM none
does.

As libpq does it, unlike libraries that hold to the RFC's recommendations: any count of iterations, and a password that
SASLprep refuses is taken as it is.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64

from .errors import NotSupportedError, OperationalError, Secret, violation

_ITERATIONS_AT_MOST = 1_000_000  # half a second; a server may not keep us longer


class Scram:
    """
    One proof, bound to the TLS channel where the server offers that: `first` is sent, then what `answer` makes.

    Args: password: as it is typed, in UTF-8. mechanisms: those that the server offers. certificate: the server's, as
        DER; None without TLS.
    Raises: NotSupportedError when the server offers none that is known here.
    """

    def __init__(self, password: Secret, mechanisms: bytes, certificate: bytes | None) -> None:
        #: True when the server has proved that it knows the password, too
        self.verified = False
        self._expected: bytes | None = None
        self._password = password
        names = [name for name in mechanisms.split(b"\0") if name]
        digest = None
        self._header, binding, mechanism = b"n,,", b"", b"SCRAM-SHA-256"
        if certificate is not None:
            digest = digest_of_signature(certificate)
            if digest is not None and b"SCRAM-SHA-256-PLUS" in names:
                mechanism = b"SCRAM-SHA-256-PLUS"
                self._header, binding = b"p=tls-server-end-point,,", hashlib.new(digest, certificate).digest()
            elif digest is not None:
                self._header = b"y,,"  # so that the server notices if somebody took its offer out
        if mechanism not in names:
            offered = ", ".join(name.decode("ascii", "replace") for name in names)
            raise NotSupportedError(
                f"the server offers {offered or 'no method'} for authentication, but only SCRAM-SHA-256 is supported"
            )
        self._binding = b2a_base64(self._header + binding, newline=False)
        self._nonce = b2a_base64(os.urandom(18), newline=False)
        self._bare = b"n=,r=" + self._nonce  # the server takes the user of the start-up
        first = self._header + self._bare
        self.first = mechanism + b"\0" + struct.pack("!i", len(first)) + first

    def answer(self, server_first: bytes) -> Secret:
        """
        Return the proof, which answers the server's challenge.

        Raises: OperationalError when the challenge makes no sense, or asks for more than a million iterations.
        """
        if self._expected is not None:
            raise violation("a SCRAM message for the second time")
        fields = server_first.split(b",")
        if [field[:2] for field in fields] != [b"r=", b"s=", b"i="]:
            raise violation("a malformed SCRAM message")
        nonce, salt_text, count = (field[2:] for field in fields)
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise violation("a SCRAM nonce that does not begin with the client's")
        try:
            salt = a2b_base64(salt_text, strict_mode=True)
        except NotBase64:
            salt = b""
        if not salt or not count.isdigit() or len(count) > 10 or not int(count):
            raise violation("a malformed SCRAM message")
        if int(count) > _ITERATIONS_AT_MOST:
            raise OperationalError(
                f"the server requires {int(count)} iterations of SCRAM; at most {_ITERATIONS_AT_MOST} are allowed"
            )
        final = b"c=" + self._binding + b",r=" + nonce
        answer, self._expected = _scram_proof(
            self._password, salt, int(count), b",".join((self._bare, server_first, final))
        )
        answer.value = final + b",p=" + answer.value
        return answer

    def verify(self, server_final: bytes) -> None:
        """
        Check the server's own proof.

        Raises: OperationalError when there is none, or it is wrong.
        """
        if self._expected is None:
            raise violation("the last SCRAM message before the first")
        if server_final[:2] == b"e=":
            raise OperationalError(f"the server refused SCRAM: {server_final[2:].decode('ascii', 'replace')}")
        if not hmac.compare_digest(server_final, self._expected):
            raise OperationalError("the server could not prove that it knows the password")
        self.verified = True


def _scram_proof(password: Secret, salt: bytes, iterations: int, exchange: bytes) -> tuple[Secret, bytes]:
    """Return the client's proof, in Base64, and what the server has to answer; both follow from the password."""
    salted, client, proof = Secret(), Secret(), Secret()
    try:
        salted.value = hashlib.pbkdf2_hmac("sha256", saslprep(password.value), salt, iterations)
        client.value = hmac.digest(salted.value, b"Client Key", "sha256")
        proof.value = hmac.digest(hashlib.sha256(client.value).digest(), exchange, "sha256")
        proof.value = bytes(one ^ other for one, other in zip(client.value, proof.value, strict=True))
        proof.value = b2a_base64(proof.value, newline=False)
        expected = hmac.digest(hmac.digest(salted.value, b"Server Key", "sha256"), exchange, "sha256")
    except BaseException as error:  # noqa: BLE001 - raised at once, without the frames below, which hold keys
        raise error.with_traceback(None)  # noqa: B904
    return proof, b"v=" + b2a_base64(expected, newline=False)


def saslprep(password: bytes) -> bytes:
    """Prepare a password after RFC 4013; one that it forbids stays as it is, as in PostgreSQL."""
    if password.isascii():
        return password
    import stringprep as tables
    from unicodedata import ucd_3_2_0

    try:
        text = password.decode()
    except UnicodeDecodeError:
        return password
    text = "".join(" " if tables.in_table_c12(c) else c for c in text if not tables.in_table_b1(c))
    text = ucd_3_2_0.normalize("NFKC", text)
    forbidden = (
        tables.in_table_a1,
        tables.in_table_c12,
        tables.in_table_c21_c22,
        tables.in_table_c3,
        tables.in_table_c4,
        tables.in_table_c5,
        tables.in_table_c6,
        tables.in_table_c7,
        tables.in_table_c8,
        tables.in_table_c9,
    )
    if not text or any(table(c) for c in text for table in forbidden):
        return password
    if any(map(tables.in_table_d1, text)) and (
        any(map(tables.in_table_d2, text)) or not (tables.in_table_d1(text[0]) and tables.in_table_d1(text[-1]))
    ):
        return password
    return text.encode()


# By the object identifier of a certificate's signature; RFC 5929 takes SHA-256 for MD5 and SHA-1.
_DIGESTS = {
    **{
        bytes.fromhex("2a864886f70d0101") + bytes((last,)): name
        for last, name in ((4, "sha256"), (5, "sha256"), (11, "sha256"), (12, "sha384"), (13, "sha512"), (14, "sha224"))
    },
    bytes.fromhex("2a8648ce3d0401"): "sha256",
    **{
        bytes.fromhex("2a8648ce3d0403") + bytes((last,)): name
        for last, name in ((1, "sha224"), (2, "sha256"), (3, "sha384"), (4, "sha512"))
    },
}
_RSA_PSS = bytes.fromhex("2a864886f70d01010a")
_PSS_DIGESTS = {
    bytes.fromhex("6086480165030402") + bytes((last,)): name
    for last, name in ((1, "sha256"), (2, "sha384"), (3, "sha512"), (4, "sha224"))
}


def digest_of_signature(certificate: bytes) -> str | None:
    """Return the digest that a certificate (DER) is signed by; None where it has none of its own (Ed25519)."""
    try:
        start, _ = _der(certificate, 0)  # Certificate: a sequence of the certificate to be signed and the algorithm
        _, start = _der(certificate, start)
        start, end = _der(certificate, start)
        name, after = _der(certificate, start)
    except IndexError:
        return None
    algorithm = certificate[name:after]
    if algorithm != _RSA_PSS:
        return _DIGESTS.get(algorithm)
    parameters = certificate[after:end]
    return next((name for identifier, name in _PSS_DIGESTS.items() if identifier in parameters), "sha256")


def _der(data: bytes, start: int) -> tuple[int, int]:
    """Return where the content of the element at `start` begins and ends."""
    size, begin = data[start + 1], start + 2
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(data[begin : begin + count], "big")
        begin += count
    return begin, begin + size
