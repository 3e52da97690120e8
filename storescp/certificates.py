"""Who a peer's certificate says that it is. A value; how it is read off a connection is the business of others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The certificate that a TLS client has shown and proved to own.

    ``subject`` as in RFC 4514, ``names`` the Subject Alternative Names, ``sha256`` the fingerprint in hexadecimal.
    """

    subject: str
    names: tuple[str, ...]
    sha256: str
