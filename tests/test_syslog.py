"""storescp.syslog and storescp.syslog_format: what waits, what is lost, and what a message looks like."""

from __future__ import annotations

import datetime
import fcntl
import sys
import termios
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from storescp.syslog import CHECK_INTERVAL, LAST_INTERVAL, StreamSyslog
from storescp.syslog_format import counted, syslog_message
from storescp.syslog_queue import FIRST_DELAY, LONGEST_DELAY, MOST
from tests.pki import Authority
from tests.server import DEADLINE, temporary_directory


class FormatTests(SynchronousTestCase):
    """RFC 5424, RFC 5425."""

    def test_message(self) -> None:
        """A header without spaces where none may be, no structured data, the mark of UTF-8, the content."""
        when = datetime.datetime(2026, 11, 25, 19, 5, tzinfo=datetime.UTC)
        self.assertEqual(
            syslog_message("<Ä/>".encode(), when, "my host", "47\n11"),
            b"<85>1 2026-11-25T19:05:00.000+00:00 my_host storescp 47_11 DICOM+RFC3881 - \xef\xbb\xbf<\xc3\x84/>",
        )
        self.assertIn(b"+00:00 - storescp - DICOM", syslog_message(b"", when, "", ""))
        self.assertEqual(counted(b"abc"), b"3 abc")


class _Transport(StringTransport):
    """Of a TCP connection."""

    protocol: IProtocol

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing to do."""

    def loseConnection(self) -> None:
        """Close, now that all is sent."""
        self.protocol.connectionLost(Failure(ConnectionLost()))


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """Connects when the test says so."""

    def __init__(self) -> None:
        self.attempts: list[Any] = []
        self.factories: list[Any] = []

    def connect(self, factory: Any) -> Any:
        """See IStreamClientEndpoint."""
        self.factories.append(factory)
        self.attempts.append(Deferred())
        return self.attempts[-1]

    def succeed(self) -> _Transport:
        """The last attempt."""
        transport = _Transport()
        protocol = self.factories[-1].buildProtocol(None)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.attempts[-1].callback(protocol)
        return transport

    def fail(self) -> None:
        """The last attempt."""
        self.attempts[-1].errback(Failure(OSError("no route")))


class StreamTests(SynchronousTestCase):
    """StreamSyslog."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = _Endpoint()
        self.syslog = StreamSyslog("tcp://x:1", cast(ReactorBase, self.clock), self.endpoint)

    def said(self, events: Sequence[LogEvent]) -> list[str]:
        return [str(formatEvent(event)) for event in events]

    def test_waiting(self) -> None:
        """What comes before the connection waits for it; afterwards it goes at once, as fast as it is taken."""
        self.syslog.send(b"one")
        self.syslog.start()
        self.syslog.send(b"two")
        transport = self.endpoint.succeed()
        self.assertEqual(transport.value(), b"3 one3 two")
        assert transport.producer is not None
        transport.producer.pauseProducing()
        self.syslog.send(b"three")
        self.assertEqual(transport.value(), b"3 one3 two")
        transport.producer.resumeProducing()
        self.assertEqual(transport.value(), b"3 one3 two5 three")

    def test_retries(self) -> None:
        """A connection that fails is tried again, later and later; one that is lost soon."""
        with capturedLogs() as events:
            self.syslog.start()
            delay = FIRST_DELAY
            for attempt in range(1, 10):
                self.endpoint.fail()
                self.clock.advance(delay - 0.001)
                self.assertEqual(len(self.endpoint.attempts), attempt)
                self.clock.advance(0.001)
                self.assertEqual(len(self.endpoint.attempts), attempt + 1)
                delay = min(2 * delay, LONGEST_DELAY)
            transport = self.endpoint.succeed()
            transport.loseConnection()
            self.syslog.send(b"one")
            self.clock.advance(FIRST_DELAY)
            self.assertEqual(self.endpoint.succeed().value(), b"3 one")
        self.assertEqual(self.said(events)[0], "audit: no connection to tcp://x:1, 0 messages wait: no route")

    def test_bound(self) -> None:
        """No more than so many bytes wait, of what peers can cause half; what is lost is told once, and in the end."""
        message = bytes(MOST // 8)
        with capturedLogs() as events:
            for _ in range(6):
                self.syslog.send(message, minor=True)
            for _ in range(6):
                self.syslog.send(message)
            self.assertEqual(len(events), 1)
            self.syslog.start()
            self.assertEqual(self.endpoint.succeed().value(), counted(message) * 8)
            done = self.syslog.stop(5)
            self.clock.pump([LAST_INTERVAL] * 2)
        self.successResultOf(done)
        self.assertEqual(self.said(events)[-1], "audit: lost 4 messages to tcp://x:1")

    def test_stop(self) -> None:
        """A stop sends what waits, and closes; it tries once more, and waits no longer than it was told."""
        self.syslog.start()
        self.endpoint.fail()
        self.syslog.send(b"last")
        done = self.syslog.stop(5)
        self.clock.advance(0)
        self.assertNoResult(done)
        transport = self.endpoint.succeed()
        self.assertEqual(transport.value(), b"4 last")
        self.clock.advance(LAST_INTERVAL)
        self.assertNoResult(done)  # it might be under way yet
        self.clock.advance(LAST_INTERVAL)
        self.successResultOf(done)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_in_vain(self) -> None:
        """What cannot be sent by then is lost, and said to be."""
        self.syslog.start()
        self.syslog.send(b"last")
        with capturedLogs() as events:
            done = self.syslog.stop(5)
            self.clock.advance(4.9)
            self.assertNoResult(done)
            self.endpoint.attempts[0].addErrback(lambda _: None)
            self.clock.advance(0.1)
            self.successResultOf(done)
        self.assertEqual(self.said(events)[-1], "audit: lost 1 message to tcp://x:1")
        self.assertEqual(self.clock.getDelayedCalls(), [])


class _Receiving(Protocol):
    """A receiver that reads when the test says so."""

    def __init__(self, case: ConnectionTests) -> None:
        self.case = case
        self.data = b""

    def connectionMade(self) -> None:
        self.transport.pauseProducing()  # type: ignore[union-attr]
        self.case.made.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.data += data


class ConnectionTests(TestCase):
    """StreamSyslog over real connections, with its own clock."""

    def setUp(self) -> None:
        self.made: list[_Receiving] = []
        self.clock = Clock()
        factory: Any = Factory.forProtocol(lambda: _Receiving(self))
        port = cast(Any, reactor).listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        endpoint = TCP4ClientEndpoint(cast(Any, reactor), "127.0.0.1", port.getHost().port)
        self.syslog = StreamSyslog("tcp://x:1", cast(ReactorBase, self.clock), endpoint)
        self.syslog.start()

    def until(self, condition: Callable[[], object]) -> Deferred[None]:
        """Fires as soon as it is so; looked at in every turn of the reactor."""
        done: Deferred[None] = Deferred()

        def look() -> None:
            if condition():
                done.callback(None)
            else:
                cast(ReactorBase, reactor).callLater(0, look)

        look()
        return done.addTimeout(DEADLINE, cast(ReactorBase, reactor))

    @inlineCallbacks
    def broken(self, number: int) -> Generator[Deferred[None], None, None]:
        """The connection of that number ends without having been read, and there is another one."""
        self.made[number].transport.abortConnection()  # type: ignore[union-attr]
        yield self.until(lambda: self.syslog._connection is None)
        self.clock.advance(FIRST_DELAY)
        yield self.until(lambda: len(self.made) == number + 2 and self.syslog._connection is not None)

    @inlineCallbacks
    def test_broken(self) -> Generator[Deferred[None], None, None]:
        """What is not known to have arrived is sent again when the connection has broken; what has is not."""
        yield self.until(lambda: self.made and self.syslog._connection is not None)
        self.syslog.send(b"one")
        self.syslog.send(b"two")
        yield self.broken(0)
        self.made[1].transport.resumeProducing()  # type: ignore[union-attr]
        yield self.until(lambda: self.made[1].data == b"3 one3 two")
        queue = self.syslog._queue

        def has_arrived() -> bool:
            self.clock.advance(CHECK_INTERVAL)
            return not queue.under_way_size

        yield self.until(has_arrived)
        yield self.broken(1)
        self.syslog.send(b"three")
        self.made[2].transport.resumeProducing()  # type: ignore[union-attr]
        yield self.until(lambda: self.made[2].data)
        self.assertEqual(self.made[2].data, b"5 three")
        yield self.stop()

    @inlineCallbacks
    def test_stuck(self) -> Generator[Deferred[None], None, None]:
        """Whatever a receiver that does not read has no room for comes on the next connection, without a gap."""
        yield self.until(lambda: self.made and self.syslog._connection is not None)
        messages = [b"%06d" % number + bytes(10_000) for number in range(MOST // 10_006)]
        for message in messages:
            self.syslog.send(message)
            self.clock.advance(CHECK_INTERVAL)
        self.assertGreater(self.syslog._queue.under_way_size, 0)
        handle = self.made[0].transport.getHandle()  # type: ignore[union-attr]
        had = int.from_bytes(fcntl.ioctl(handle, termios.FIONREAD, bytes(4)), sys.byteorder)
        yield self.broken(0)
        self.made[1].transport.resumeProducing()  # type: ignore[union-attr]
        last = counted(messages[-1])
        yield self.until(lambda: self.made[1].data.endswith(last))
        every = b"".join(map(counted, messages))
        self.assertTrue(every.endswith(self.made[1].data))
        self.assertGreaterEqual(len(self.made[1].data), len(every) - had)
        yield self.stop()

    def stop(self) -> Deferred[None]:
        done = self.syslog.stop(5)

        def is_over() -> bool:
            self.clock.advance(LAST_INTERVAL)
            return done.called

        return self.until(is_over)


class NameTests(SynchronousTestCase):
    """Whose certificate it is."""

    def test_names(self) -> None:
        """A name, a name with a wildcard for its first part, or an address, as the certificate has them."""
        from cryptography import x509

        from storescp.syslog_tls import is_for

        certificate, _ = Authority(temporary_directory(self)).issue("x")
        parsed = x509.load_pem_x509_certificate(certificate.read_bytes())
        self.assertEqual(
            [
                is_for(parsed, host)
                for host in ("localhost", "LOCALHOST.", "127.0.0.1", "127.0.0.2", "x", "a.localhost")
            ],
            [True, True, True, False, False, False],
        )
