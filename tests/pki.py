"""An authority for tests, and what it issues: PEM files in a directory."""

from __future__ import annotations

import datetime
import ipaddress
import pathlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_DAY = datetime.timedelta(days=1)
_PEM = serialization.Encoding.PEM


def name(common_name: str) -> x509.Name:
    """A name of two attributes."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hospital"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


class Authority:
    """A certificate authority with its certificate in *directory*: NAME.pem, and NAME.key.pem for keys."""

    def __init__(self, directory: pathlib.Path, common_name: str = "Authority") -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name(common_name)
        self.file = directory / f"{common_name}.pem"
        builder = self._builder(self.name, self.key, days=10)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.file.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM))

    def _builder(self, subject: x509.Name, key: Key, *, days: int) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 20 * _DAY)
            .not_valid_after(now + days * _DAY)
        )

    def issue(
        self, common_name: str, *, key: Key | None = None, days: int = 10, file: str = "", host: str = ""
    ) -> tuple[pathlib.Path, pathlib.Path]:
        """A certificate, valid for so many *days* from now on, and its key; for this machine, or another *host*."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        ours = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        names: Sequence[x509.GeneralName] = [
            *((x509.DNSName(host),) if host else ours),
            x509.UniformResourceIdentifier(f"urn:ae:{common_name}"),
            x509.RFC822Name("ct@example.org"),
        ]
        builder = self._builder(name(common_name), key, days=days)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate, key_file = (
            self.directory / f"{file or common_name}{end}" for end in (".pem", ".key.pem")
        )
        certificate.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM))
        key_file.write_bytes(
            key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        key_file.chmod(0o600)
        return certificate, key_file

    def revoke(self, *certificates: pathlib.Path, days: int = 10) -> pathlib.Path:
        """The revocation list with *certificates*, to be renewed in so many *days*."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now - 20 * _DAY)
            .next_update(now + days * _DAY)
        )
        for certificate in certificates:
            serial = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - _DAY)
            builder = builder.add_revoked_certificate(entry.build())
        path = self.directory / "revoked.pem"
        path.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM))
        return path
