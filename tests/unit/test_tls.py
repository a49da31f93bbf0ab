"""Which authorities are trusted, and what is said when there is nothing to trust."""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import botocore
import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from plungepool import Settings, SettingsError, tls
from plungepool.connect import Connector
from plungepool_toolkit import refresh_certificates
from plungepool_toolkit.certificates import Authority

FOLDER = Path(tls.__file__).with_name("certificates")
with warnings.catch_warnings():
    # Starfield's root has the serial number 0, which OpenSSL takes and cryptography frowns on.
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
    SHIPPED = {path.stem: x509.load_pem_x509_certificates(path.read_bytes()) for path in FOLDER.glob("*.pem")}


def make_settings(**changes: str) -> Settings:
    """Settings of a function with a password, in a region whose authorities are shipped."""
    return Settings(**({"host": "db.example", "user": "u", "password": "p", "region": "eu-west-1"} | changes))


def digests(certificates: list[x509.Certificate]) -> set[str]:
    """Return the SHA-256 of each certificate."""
    return {hashlib.sha256(one.public_bytes(Encoding.DER)).hexdigest() for one in certificates}


def trusted_by(context: ssl.SSLContext) -> set[str]:
    """Return the SHA-256 of each certificate that a context trusts."""
    return {hashlib.sha256(der).hexdigest() for der in context.get_ca_certs(binary_form=True)}


@pytest.fixture(autouse=True)
def forget_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts as a process does: without contexts."""
    monkeypatch.setattr(tls, "_contexts", {})


def test_no_shipped_authority_expires_within_half_a_year() -> None:
    """Half a year is time to refresh the certificates and for users to take the new layer."""
    soon = datetime.now(UTC) + timedelta(days=183)
    assert [one.subject for shipped in SHIPPED.values() for one in shipped if one.not_valid_after_utc < soon] == []


def test_each_region_ships_its_three_authorities() -> None:
    """Every region's file holds its own rsa2048-g1, rsa4096-g1 and ecc384-g1 and nothing else: no Beta, no Preview."""
    regions = SHIPPED.keys() - {"amazon-roots"}
    assert len(regions) >= 27
    for region in regions:
        names = {str(one.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value) for one in SHIPPED[region]}
        assert names == {f"Amazon RDS {region} Root CA {kind} G1" for kind in ("RSA2048", "RSA4096", "ECC384")}


@pytest.mark.parametrize("bundle", [certifi.where(), Path(botocore.__file__).with_name("cacert.pem")])
def test_amazons_roots_are_those_of_public_trust_stores(bundle: str) -> None:
    """Amazon Root CA 1 to 4 are the very certificates that certifi and botocore ship: two independent sources."""
    blocks = re.findall(
        r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", Path(bundle).read_text("utf-8"), re.DOTALL
    )
    public = {hashlib.sha256(ssl.PEM_cert_to_DER_cert(block)).hexdigest() for block in blocks}
    assert len(SHIPPED["amazon-roots"]) == 5
    assert digests(SHIPPED["amazon-roots"]) <= public


def test_provenance_names_every_certificate() -> None:
    """PROVENANCE.md lists the digest of each shipped certificate and of no other."""
    listed = set(re.findall(r"`([0-9a-f]{64})`", (FOLDER / "PROVENANCE.md").read_text()))
    assert listed == digests([one for shipped in SHIPPED.values() for one in shipped])


def test_only_the_regions_authorities_are_trusted() -> None:
    """A context of a known region trusts its three authorities and Amazon's roots, and nobody else."""
    context = tls.client_context(make_settings(region="eu-west-1"))
    assert context is not None
    assert trusted_by(context) == digests(SHIPPED["eu-west-1"] + SHIPPED["amazon-roots"])


@pytest.mark.parametrize("region", ["xx-north-9", "eu-west-1b", ""])
def test_unknown_region_trusts_all_that_is_shipped(region: str) -> None:
    """A region without a file gets every shipped authority."""
    context = tls.client_context(make_settings(region=region))
    assert context is not None
    assert trusted_by(context) == digests([one for shipped in SHIPPED.values() for one in shipped])


def test_context_verifies_chain_and_host() -> None:
    """Certificate and host name are required, and no TLS version under 1.2 is spoken."""
    context = tls.client_context(make_settings())
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_one_context_for_the_same_trust() -> None:
    """The certificates are parsed once a process for each region or file, whatever else the settings say."""
    ca_file = str(FOLDER / "eu-west-1.pem")
    first = tls.client_context(make_settings())
    assert first is tls.client_context(make_settings(host="other.example", database="other"))
    assert first is not tls.client_context(make_settings(region="eu-west-2"))
    own = tls.client_context(make_settings(ca_file=ca_file))
    assert own is tls.client_context(make_settings(ca_file=ca_file, region="eu-west-2"))


def test_tls_at_once_says_for_which_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """With direct negotiation, and only then, a context offers ALPN; it is another one, whatever else is the same."""
    offered: list[list[str]] = []
    monkeypatch.setattr(ssl.SSLContext, "set_alpn_protocols", lambda _, protocols: offered.append(protocols))
    usual = tls.client_context(make_settings())
    assert offered == []
    direct = tls.client_context(make_settings(tls_negotiation="direct"))
    assert offered == [["postgresql"]]
    assert direct is not usual
    assert direct is tls.client_context(make_settings(tls_negotiation="direct"))


def test_ca_file_replaces_what_is_shipped() -> None:
    """Who names a file trusts what is in it, and nothing else."""
    context = tls.client_context(make_settings(ca_file=str(FOLDER / "eu-west-2.pem")))
    assert context is not None
    assert trusted_by(context) == digests(SHIPPED["eu-west-2"])


@pytest.mark.parametrize(
    "content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"]
)
def test_useless_ca_file_names_its_setting(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, empty or no PEM gives a SettingsError with PLUNGEPOOL_CA_FILE and the path."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="PLUNGEPOOL_CA_FILE") as caught:
        tls.client_context(make_settings(ca_file=str(path)))
    assert str(path) in str(caught.value)


def test_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    """A context is kept as long as the file it was made from is the same, and no longer."""
    path = tmp_path / "ca.pem"
    path.write_bytes((FOLDER / "eu-west-1.pem").read_bytes())
    settings = make_settings(ca_file=str(path))
    first = tls.client_context(settings)
    assert first is tls.client_context(settings)
    path.write_bytes((FOLDER / "eu-west-2.pem").read_bytes() + b"\n")
    second = tls.client_context(settings)
    assert second is not None
    assert trusted_by(second) == digests(SHIPPED["eu-west-2"])
    path.unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        tls.client_context(settings)


class Server:
    """Answers an attempt to connect by what it offers: one curve or every; remembers which was offered."""

    def __init__(self, usual: bool, every: bool) -> None:
        self.usual, self.every = usual, every
        self.failure: Exception = refusal()
        self.offered: list[str] = []

    def __call__(self, context: ssl.SSLContext | None) -> str:
        every = context is tls.client_context(make_settings(), every_curve=True)
        self.offered.append("every" if every else "usual")
        if self.every if every else self.usual:
            return "a connection"
        raise self.failure


def refusal() -> Exception:
    """What a driver raises for a handshake that the server refuses."""
    error, cause = RuntimeError("lost"), ssl.SSLError(1, "handshake failure")
    cause.reason = "SSLV3_ALERT_HANDSHAKE_FAILURE"
    error.__cause__ = cause
    return error


def connector(settings: Settings) -> Connector:
    """What connects for an engine of these settings, to whichever server a test hands to its `connect`."""
    return Connector(settings, lambda server, _login, way: server(way.context))


def tries(handshakes: Connector, server: Server) -> list[str]:
    """Connect once; return what was offered, in order, and whether it failed."""
    server.offered = []
    try:
        handshakes.connect(server)
    except RuntimeError:
        server.offered.append("failed")
    return server.offered


def test_server_of_another_curve_is_known_from_the_second_connect() -> None:
    """The first connect finds out, the next ones offer every curve at once."""
    handshakes, server = connector(make_settings()), Server(usual=False, every=True)
    assert tries(handshakes, server) == ["usual", "every"]
    assert tries(handshakes, server) == ["every"]
    assert tries(handshakes, server) == ["every"]


def test_host_whose_handshake_always_fails_is_tried_once_a_connect() -> None:
    """Where no curve helps, each connect after the first is one attempt; nothing is asked of the server twice."""
    handshakes, server = connector(make_settings()), Server(usual=False, every=False)
    assert tries(handshakes, server) == ["usual", "every", "failed"]
    assert tries(handshakes, server) == ["every", "failed"]
    assert tries(handshakes, server) == ["every", "failed"]


def test_what_was_learnt_of_a_failing_server_ends_with_the_failure() -> None:
    """Once it lets anybody in, the usual curve, which saves a round trip, is offered again."""
    handshakes, server = connector(make_settings()), Server(usual=False, every=False)
    tries(handshakes, server)
    server.usual = server.every = True
    assert tries(handshakes, server) == ["every"]
    assert tries(handshakes, server) == ["usual"]


def test_server_that_begins_to_refuse_is_asked_anew() -> None:
    """A server that wanted another curve and now refuses every one is no longer known."""
    handshakes, server = connector(make_settings()), Server(usual=False, every=True)
    tries(handshakes, server)
    server.every = False
    assert tries(handshakes, server) == ["every", "failed"]
    server.usual = server.every = True
    assert [tries(handshakes, server), tries(handshakes, server)] == [["every"], ["usual"]]


def test_other_failures_teach_nothing() -> None:
    """A wrong certificate or a lost network is raised at once, and the next connect offers the usual curve."""
    handshakes, server = connector(make_settings()), Server(usual=False, every=True)
    server.failure = RuntimeError("lost")
    assert [tries(handshakes, server), tries(handshakes, server)] == [["usual", "failed"]] * 2


def test_lost_network_does_not_unlearn_the_curve(caplog: pytest.LogCaptureFixture) -> None:
    """
    What was learnt of a server holds while nothing speaks against it; and where there is TLS nothing is said of plain
    text.
    """
    handshakes, server = connector(make_settings()), Server(usual=False, every=True)
    tries(handshakes, server)
    server.every, server.failure = False, RuntimeError("lost")
    assert tries(handshakes, server) == ["every", "failed"]
    server.every = True
    assert [tries(handshakes, server), tries(handshakes, server)] == [["every"]] * 2
    assert caplog.records == []


def test_engines_learn_apart_and_forget() -> None:
    """What one engine has learnt another does not know, and a snapshot keeps nothing of it."""
    server = Server(usual=False, every=True)
    first, second = connector(make_settings()), connector(make_settings())
    tries(first, server)
    assert tries(second, server) == ["usual", "every"]
    first.forget()
    assert tries(first, server) == ["usual", "every"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "LOCALHOST.", "db.localhost"])
def test_plain_text_to_this_machine_is_quiet(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing leaves the machine, so nothing is said."""
    assert connector(make_settings(tls="disable", host=host)).connect(lambda context: context) is None
    assert caplog.records == []


@pytest.mark.parametrize("host", ["db.example", "10.0.0.7", "localhost.example", "2001:db8::1"])
def test_plain_text_elsewhere_is_loud_once(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """
    An engine's first connect in plain text over a network logs one warning with the setting, the host and no password.
    """
    handshakes = connector(make_settings(tls="disable", host=host, password="unmistakable"))
    for _ in range(3):
        assert handshakes.connect(lambda context: context) is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("plungepool", logging.WARNING)
    assert "PLUNGEPOOL_TLS=disable" in record.getMessage()
    assert host in record.getMessage()
    assert "unmistakable" not in caplog.text


def test_asking_for_a_context_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A question does not act: no warning, and every curve for one caller is not every curve for the next."""
    assert tls.client_context(make_settings(tls="disable")) is None
    assert caplog.records == []
    usual = tls.client_context(make_settings())
    assert tls.client_context(make_settings(), every_curve=True) is not usual
    assert tls.client_context(make_settings()) is usual


def untrusted() -> ssl.SSLCertVerificationError:
    """What is raised for a certificate of an authority that is not trusted."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = 20, "unable to get local issuer certificate"
    return error


def test_own_authorities_are_named_when_they_are_not_the_servers() -> None:
    """With a file of one's own the text is about that file; without one it is about the region and the shipped ones."""
    path = str(FOLDER / "eu-west-2.pem")
    own = tls.explain(untrusted(), "db:5432", tls.client_context(make_settings(ca_file=path)))
    assert f"PLUNGEPOOL_CA_FILE names {path!r}, and nothing else is trusted" in own
    assert "Amazon" not in own
    shipped = tls.explain(untrusted(), "db:5432", tls.client_context(make_settings()))
    assert "Amazon RDS in PLUNGEPOOL_REGION" in shipped


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_refresh_writes_what_is_shipped(tmp_path: Path) -> None:
    """The refresh command makes the shipped files from their certificates again, and removes a region that is gone."""
    (tmp_path / "old-region-1.pem").write_text("")
    sources = [str(path) for path in FOLDER.glob("*.pem")]
    refresh_certificates.main([*sources, "--source", "the shipped files", "--folder", str(tmp_path)])
    assert {path.name: path.read_text() for path in FOLDER.glob("*.pem")} == {
        path.name: path.read_text() for path in tmp_path.glob("*.pem")
    }


def test_refresh_leaves_out_what_nobody_must_trust() -> None:
    """Beta and Preview authorities, those of another name, those that ran out and those of a server stay outside."""
    names = [
        "Amazon RDS eu-west-1 Root CA RSA2048 G1",
        "Amazon RDS Beta us-east-1 Root CA RSA2048 G1",
        "Amazon RDS Preview us-east-2 Root CA RSA2048 G1",
        "Not Amazon RDS eu-west-1 Root CA RSA2048 G1",
        "Amazon RDS eu-west-1 2019 CA",
    ]
    authorities = [Authority(name) for name in names]
    certificates = [authority.certificate for authority in authorities]
    now = datetime.now(UTC)
    assert refresh_certificates.sort_out(certificates, now) == {"eu-west-1": certificates[:1]}
    assert refresh_certificates.sort_out(certificates, now + timedelta(days=20 * 365)) == {}
    for authority in authorities:
        authority.close()
