"""storescp.transports: who is connected to by which name, and what is said when that fails."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Generator, Sequence
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost, getConnectError
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from storescp.transports import HostEndpoint, end_of
from tests.server import free_port

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


_READING = """
import resource, sys
from storescp.transports import READ_SIZE, keep_buffers
def read_and_store():
    for _ in range(20):
        pieces = [b"x" * READ_SIZE for _ in range(40)]
        del pieces
if sys.argv[1] == "keep":
    keep_buffers()
read_and_store()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
read_and_store()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (20 * 40 * READ_SIZE))
"""


class BufferTests(TestCase):
    """keep_buffers()."""

    def faulted(self, how: str) -> float:
        """The share of the bytes of large images whose pages the system has to give again."""
        done = subprocess.run(
            [sys.executable, "-c", _READING, how], stdout=subprocess.PIPE, text=True, check=True, timeout=60
        )
        return float(done.stdout)

    def test_kept(self) -> None:
        """What was read into is not given back to the system, which it is else, whenever an image has been stored."""
        self.assertGreater(self.faulted("as it is"), 0.2)
        self.assertLess(self.faulted("keep"), 0.01)


class EndTests(TestCase):
    """end_of: what is told of a connection that ended, or that never was."""

    def test_refused(self) -> None:
        """Where nobody listens, the reason of the operating system."""
        error = getConnectError((errno.ECONNREFUSED, "whatever"))
        self.assertEqual(end_of(error), "Connection refused")

    @inlineCallbacks
    def test_hung_up(self) -> Generator[Deferred[Any], Any, None]:
        """A connection whose end Twisted sees before its error: it hands over a Failure in an error, no traceback."""
        failed: Deferred[None] = Deferred()

        class Connecting(ClientFactory):
            noisy = False

            def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
                failed.errback(reason)

        connector = _reactor.connectTCP("127.0.0.1", free_port(), Connecting())
        connector.transport.connectionLost(Failure(ConnectionDone()))
        error = yield self.assertFailure(failed, ConnectError)
        self.assertIn("Traceback", str(error))  # what Twisted says of it
        self.assertEqual(end_of(error), "the connection was lost")

    def test_names(self) -> None:
        """Errors without words are told by their names, lines are joined, and OpenSSL's have their reasons."""
        self.assertEqual(end_of(ValueError()), "ValueError")
        self.assertEqual(end_of(ValueError("one\n  two")), "one two")
        self.assertEqual(end_of(ConnectionLost()), "the connection was lost")
        self.assertEqual(
            end_of(SSL.Error([("ssl", "", "unknown ca"), ("ssl", "", "no peer")])), "unknown ca; no peer"
        )
        self.assertEqual(end_of(SSL.Error([])), "TLS failed")
