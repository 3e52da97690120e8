"""What the operator has said of TLS. Values only: the files are read by :mod:`storescp.credentials`."""

from __future__ import annotations

import enum
import pathlib
from dataclasses import dataclass
from typing import Final

#: What an endpoint of ours begins with; the rest is that of Twisted's ``tcp:``.
SECURE: Final = "tls:"


class TLSProfile(enum.Enum):
    """What is negotiated: the profiles of PS3.15 Annex B."""

    BCP195 = "bcp195"
    """B.12, BCP 195 RFC 8996, 9325: TLS 1.3 and 1.2, the latter with what RFC 9325 §4.2 recommends."""
    NON_DOWNGRADING = "non-downgrading"
    """B.10, retired: the same, and what RFC 7525 §4.2 recommended with finite fields."""
    TLS13 = "tls13"
    """TLS 1.3 only."""


class ClientCertificate(enum.Enum):
    """What a peer must show. One that it shows is verified in any case, if it was asked for."""

    REQUIRE = "require"
    REQUEST = "request"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSettings:
    """The settings of all ports with TLS. ``handshake_timeout`` in seconds."""

    certificate: pathlib.Path
    key: pathlib.Path
    ca: pathlib.Path | None
    crl: tuple[pathlib.Path, ...]
    client_certificate: ClientCertificate
    profile: TLSProfile
    handshake_timeout: float


def is_secure(endpoint: str) -> bool:
    """Whether an endpoint is one with TLS."""
    return endpoint.startswith(SECURE)


def beneath(endpoint: str) -> str:
    """Twisted's endpoint for one of ours."""
    return f"tcp:{endpoint.removeprefix(SECURE)}" if is_secure(endpoint) else endpoint
