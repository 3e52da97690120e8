"""TLS to a receiver of syslog, RFC 5425: whom we believe, and what we show. Needs pyOpenSSL."""

from __future__ import annotations

import ipaddress
import pathlib

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, platformTrust, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from storescp.audit_settings import AuditSettings


@implementer(IOpenSSLClientConnectionCreator)
class Client:
    """Makes connections to the receiver of *settings*. Raises ValueError, in one line.

    Certificates are judged by their authority in the handshake; their names by :meth:`complaint` afterwards, for
    what Twisted has for that lets pass a certificate with a name that it cannot read.
    """

    def __init__(self, settings: AuditSettings) -> None:
        self._host = settings.host
        trust = platformTrust()
        if settings.ca is not None:
            trusted = _certificates("audit-ca", settings.ca)
            trust = trustRootFromCertificates([Certificate(authority) for authority in trusted])
        if settings.certificate is None:
            options = CertificateOptions(trustRoot=trust)
        else:
            ours, *between = _certificates("audit-certificate", settings.certificate)
            key = _key(settings.key or settings.certificate, ours)
            options = CertificateOptions(
                privateKey=key, certificate=ours, extraCertChain=between, trustRoot=trust
            )
        self._context: SSL.Context = options.getContext()

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See IOpenSSLClientConnectionCreator."""
        connection = SSL.Connection(self._context, None)
        if not _is_address(self._host):
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection

    def complaint(self, connection: SSL.Connection) -> str:
        """What is wrong with the certificate of the other end, whose handshake is done; empty: nothing."""
        certificate = connection.get_peer_certificate(as_cryptography=True)
        try:
            if isinstance(certificate, x509.Certificate) and is_for(certificate, self._host):
                return ""
        except ValueError:
            return "its certificate cannot be understood"
        return f"its certificate is not for {self._host}"


def is_for(certificate: x509.Certificate, host: str) -> bool:
    """Whether *certificate* has the name or address *host*, RFC 9525: as a subject alternative name."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    if _is_address(host):
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    host = host.rstrip(".").lower()
    _, _, domain = host.partition(".")
    wanted = {host, f"*.{domain}"} if "." in domain else {host}
    return any(name.lower() in wanted for name in names.get_values_for_type(x509.DNSName))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _certificates(option: str, file: pathlib.Path) -> list[crypto.X509]:
    content = _read(option, file)
    try:
        found = x509.load_pem_x509_certificates(content)
    except ValueError:
        raise _bad(option, "certificates in PEM", file) from None
    return [crypto.X509.from_cryptography(certificate) for certificate in found]


def _key(file: pathlib.Path, certificate: crypto.X509) -> crypto.PKey:
    content = _read("audit-key", file)
    try:
        key = load_pem_private_key(content, None)
        packed = crypto.PKey.from_cryptography_key(key)  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _bad("audit-key", "a private key in PEM without a passphrase", file) from None
    if key.public_key() != certificate.get_pubkey().to_cryptography_key():
        raise _bad("audit-key", "the key of audit-certificate", file)
    return packed


def _read(option: str, file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{_bad(option, 'a readable file', file)}: {error.strerror}") from None


def _bad(option: str, expected: str, file: pathlib.Path) -> ValueError:
    return ValueError(f"{option}: expected {expected}, got {str(file)!r}")
