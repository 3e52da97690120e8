"""What a peer has proved of itself by its certificate: a value for rules to match."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The certificate that a TLS client has shown, verified, and proved to own.

    ``subject`` as RFC 4514 writes it (``CN=ct1,O=Hospital``), ``names`` the DNS names, URIs, mail and IP addresses
    of its Subject Alternative Name in their order, ``sha256`` the fingerprint in lower-case hexadecimal digits.
    """

    subject: str
    names: tuple[str, ...]
    sha256: str
