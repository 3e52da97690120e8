"""Where audit messages go, and what they say of where they come from: values."""

from __future__ import annotations

import enum
import pathlib
from dataclasses import dataclass


class Transport(enum.Enum):
    """How syslog travels: RFC 5426, RFC 6587 with octet counting, RFC 5425."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """The receiver, an audit record repository; over TLS, whom we believe and what we show.

    ``source`` and ``site`` are the AuditSourceID (if empty, the AE title) and the AuditEnterpriseSiteID; without a
    ``certificate`` we show none.
    """

    transport: Transport
    host: str
    port: int
    source: str
    site: str = ""
    ca: pathlib.Path | None = None
    certificate: pathlib.Path | None = None
    key: pathlib.Path | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport.value}://{host}:{self.port}"
