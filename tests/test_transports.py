"""storescp.transports: who is connected to by which name."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from storescp.transports import HostEndpoint

_reactor = cast(Any, reactor)


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """See IHostResolution."""


@implementer(IHostnameResolver)
class _Resolver:
    """Knows that every name is this machine's."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[object]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See IHostnameResolver."""
        self.asked.append(hostName)
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        resolutionReceiver.addressResolved(IPv4Address("TCP", "127.0.0.1", portNumber))
        resolutionReceiver.resolutionComplete()
        return resolution


class HostEndpointTests(TestCase):
    """HostEndpoint."""

    @inlineCallbacks
    def test_underscores(self) -> Generator[Deferred[Any], Any, None]:
        """Names are looked up as they are, also those that are no names of hosts by the book."""
        resolver = _Resolver()
        before = _reactor.installNameResolver(resolver)
        self.addCleanup(_reactor.installNameResolver, before)
        ended: Deferred[None] = Deferred()

        class Listening(Protocol):
            def connectionLost(self, reason: object = None) -> None:
                ended.callback(None)

        port = _reactor.listenTCP(0, Factory.forProtocol(Listening), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        endpoint = HostEndpoint(_reactor, "my_pacs.ward", port.getHost().port)
        connection = yield endpoint.connect(Factory.forProtocol(Protocol))
        connection.transport.loseConnection()
        yield ended
        self.assertEqual(resolver.asked, ["my_pacs.ward"])
