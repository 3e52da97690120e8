"""HTTP: metrics for Prometheus, probes for whoever starts and balances servers, and a page for people.

What belongs here: what is served, and the bounds of that. It asks for nothing, and changes nothing. Needs the extra
``web``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from prometheus_client.twisted import MetricsResource
from twisted.internet.interfaces import IAddress
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.http import OK, SERVICE_UNAVAILABLE
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from storescp.exposition import registry
from storescp.metrics import Observed
from storescp.page import Page
from storescp.readiness import Readiness

#: Connections at a time, and seconds that each may be idle.
MAX_CONNECTIONS = 64
TIMEOUT = 30.0


class Probe(Resource):
    """Says OK, or with 503 in words, a line each, what *judge* has found."""

    isLeaf = True

    def __init__(self, judge: Callable[[], list[str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._judge = judge

    def render_GET(self, request: Request) -> bytes:
        """See IResource."""
        found = self._judge()
        request.setResponseCode(SERVICE_UNAVAILABLE if found else OK)
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        request.setHeader(b"cache-control", b"no-store")
        return "".join(f"{line}\n" for line in found or ["ok"]).encode()


class BodilessRequest(Request):
    """What a client sends beside its question is not kept."""

    def gotLength(self, length: int | None) -> None:
        """See Request."""
        self.content = io.BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """See Request."""


class QuietSite(Site):
    """Logs no requests: there is one every few seconds."""

    noisy = False

    def log(self, request: object) -> None:
        """See Site."""


class Bounded(WrappingFactory):
    """Closes connections beyond MAX_CONNECTIONS."""

    noisy = False
    protocols: dict[ProtocolWrapper, int]

    def buildProtocol(self, addr: IAddress | None) -> ProtocolWrapper | None:  # type: ignore[override]
        """See IProtocolFactory."""
        if len(self.protocols) >= MAX_CONNECTIONS:
            return None
        return super().buildProtocol(addr)


def site(crew: Observed, readiness: Readiness, reactor: Any) -> Bounded:
    """What to serve for a server."""
    root = Resource()
    root.putChild(b"", Page(crew, readiness))
    root.putChild(b"metrics", MetricsResource(registry(crew, readiness)))  # type: ignore[no-untyped-call]
    root.putChild(b"healthz", Probe(readiness.faults))
    root.putChild(b"readyz", Probe(readiness.obstacles))
    return Bounded(QuietSite(root, requestFactory=BodilessRequest, timeout=TIMEOUT, reactor=reactor))
