"""Certificates, keys and revocation lists: PEM files, judged before a server uses them. Blocking; no Twisted.

What belongs here: whatever can be wrong with a file, told in one line that names the option and the file. No
message, and no repr, holds anything of a key.
"""

from __future__ import annotations

import datetime
import pathlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from storescp.certificates import PeerCertificate
from storescp.tls_settings import TLSSettings

#: Far beyond any sensible file: a list of a large public authority has some megabytes.
MAX_FILE_SIZE: Final = 64 << 20

#: What the files of a directory of authorities are called; others in it are not looked at.
SUFFIXES: Final = frozenset((".pem", ".crt", ".cer"))

PrivateKey: TypeAlias = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey

T = TypeVar("T")

_key_in_pem = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


class BadCredentials(Exception):
    """What keeps TLS from working; str() is one line: the option, what was expected, what was got."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a server shows, and by what it judges what it is shown. All in PEM, so that it can be handed on.

    ``certificate`` is followed by those of the authorities between, if there are; without ``authorities`` nobody is
    trusted.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    authorities: bytes
    revocations: bytes

    @property
    def chain(self) -> list[x509.Certificate]:
        """Our own certificate, and what follows it."""
        return x509.load_pem_x509_certificates(self.certificate)

    @property
    def private_key(self) -> PrivateKey:
        key = load_pem_private_key(self.key, None)
        if not isinstance(key, PrivateKey):
            raise ValueError("no key that signs for TLS")
        return key

    @property
    def trusted(self) -> list[x509.Certificate]:
        """The authorities whose certificates are believed."""
        return x509.load_pem_x509_certificates(self.authorities) if self.authorities else []

    @property
    def revocation_lists(self) -> list[x509.CertificateRevocationList]:
        return list(_revocation_lists(self.revocations))


def read(settings: TLSSettings) -> tuple[Credentials, list[str]]:
    """The credentials of a server, and what the operator should know of them. Raises BadCredentials."""
    credentials = Credentials(
        _read("tls-certificate", settings.certificate),
        _read("tls-key", settings.key),
        b"" if settings.ca is None else b"\n".join(_authorities(settings.ca)),
        b"\n".join(_revocations(path) for path in settings.crl),
    )
    certificate = _parsed(
        "tls-certificate", "certificates in PEM", settings.certificate, lambda: credentials.chain
    )[0]
    if not _key_in_pem.search(credentials.key):
        raise BadCredentials(f"--tls-key: expected a private key in PEM, got {_quoted(settings.key)}")
    key = _parsed(
        "tls-key",
        "a private key in PEM without a passphrase",
        settings.key,
        lambda: credentials.private_key,
    )
    if _encoded(key.public_key()) != _encoded(certificate.public_key()):
        raise BadCredentials(
            f"--tls-key: expected the key of the certificate in {_quoted(settings.certificate)},"
            f" got another one in {_quoted(settings.key)}"
        )
    return credentials, list(_warnings(settings, certificate, credentials.revocation_lists))


def peer_certificate(certificate: x509.Certificate) -> PeerCertificate:
    """What *certificate* says of its owner. Raises ValueError when it cannot be understood."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        names: tuple[str, ...] = ()
    else:
        names = tuple(
            str(name.value)
            for name in extension.value
            if isinstance(
                name, x509.DNSName | x509.UniformResourceIdentifier | x509.RFC822Name | x509.IPAddress
            )
        )
    return PeerCertificate(
        certificate.subject.rfc4514_string(), names, certificate.fingerprint(SHA256()).hex()
    )


def _quoted(path: pathlib.Path) -> str:
    return repr(str(path))


def _read(option: str, path: pathlib.Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_SIZE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadCredentials(f"--{option}: expected a readable file, got {_quoted(path)}: {reason}") from None
    if len(content) > MAX_FILE_SIZE:
        raise BadCredentials(
            f"--{option}: expected a file of at most {MAX_FILE_SIZE} bytes, got {_quoted(path)}"
        )
    return content


def _authorities(path: pathlib.Path) -> list[bytes]:
    """What the file *path*, or those in the directory, have."""
    if not path.is_dir():
        files = [path]
    else:
        try:
            files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        except OSError as error:
            raise BadCredentials(
                f"--tls-ca: expected a readable directory, got {_quoted(path)}: {error.strerror}"
            ) from None
        if not files:
            raise BadCredentials(
                f"--tls-ca: expected a directory with {', '.join(sorted(SUFFIXES))} files, got {_quoted(path)}"
            )
    return [_authority(file) for file in files]


def _authority(path: pathlib.Path) -> bytes:
    content = _read("tls-ca", path)
    _parsed("tls-ca", "certificates in PEM", path, lambda: x509.load_pem_x509_certificates(content))
    return content


def _revocations(path: pathlib.Path) -> bytes:
    content = _read("tls-crl", path)
    if not _parsed("tls-crl", "revocation lists in PEM", path, lambda: list(_revocation_lists(content))):
        raise BadCredentials(f"--tls-crl: expected revocation lists in PEM, got {_quoted(path)}")
    return content


def _parsed(option: str, expected: str, path: pathlib.Path, parse: Callable[[], T]) -> T:
    try:
        return parse()
    # TypeError: a passphrase is asked for. What these say would lead further than the operator can go.
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadCredentials(f"--{option}: expected {expected}, got {_quoted(path)}") from None


def _revocation_lists(pem: bytes) -> Iterator[x509.CertificateRevocationList]:
    end = b"-----END X509 CRL-----"
    for text in pem.split(end)[:-1]:
        yield x509.load_pem_x509_crl(text + end)


def _encoded(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _warnings(
    settings: TLSSettings, certificate: x509.Certificate, revocations: list[x509.CertificateRevocationList]
) -> Iterator[str]:
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        yield (
            f"--tls-certificate: expected one that is valid, got {_quoted(settings.certificate)},"
            f" which has expired on {certificate.not_valid_after_utc:%Y-%m-%d}: peers will refuse it"
        )
    elif now < certificate.not_valid_before_utc:
        yield (
            f"--tls-certificate: expected one that is valid, got {_quoted(settings.certificate)},"
            f" which is valid from {certificate.not_valid_before_utc:%Y-%m-%d}: peers will refuse it"
        )
    if any(crl.next_update_utc is not None and now > crl.next_update_utc for crl in revocations):
        yield "--tls-crl: expected current revocation lists, got one that is out of date: its peers are refused"
