"""Sends messages to a receiver of syslog, and never waits for it: over UDP, TCP or TLS.

What belongs here: the queue and its bound, connections that are lost and made again. What the messages are is no
business of this module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IHostResolution,
    IPushProducer,
    IReactorTime,
    IResolutionReceiver,
    IStreamClientEndpoint,
    ITCPTransport,
    IUDPTransport,
)
from twisted.internet.protocol import DatagramProtocol, Factory, connectionDone
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from storescp.audit_settings import AuditSettings, Transport
from storescp.logs import Repeated
from storescp.syslog_format import counted

if TYPE_CHECKING:
    from storescp.syslog_tls import Client  # needs pyOpenSSL

#: Bytes of messages that may wait; of messages that peers can cause as often as they like, half of it.
MOST: Final = 4 << 20

#: Seconds before a connection is tried again: at first, and at last.
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0

#: Seconds that a connection and its handshake may take.
CONNECT_TIMEOUT: Final = 15.0


class Syslog(Protocol):
    """A receiver."""

    def start(self) -> None:
        """Send what waits, and what comes."""

    def send(self, message: bytes, *, minor: bool = False) -> None:
        """Send *message* when that is possible, or lose it: a *minor* one sooner than others."""

    def stop(self, patience: float) -> Deferred[None]:
        """Send what waits within so many seconds, and no more; fires when that is over."""


class _Queue:
    """What waits."""

    log = Logger()

    def __init__(self, name: str, clock: ReactorBase) -> None:
        self.name = name
        self.repeated = Repeated(clock)
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._lost = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: bytes, *, minor: bool) -> None:
        size = self._size + len(message)
        if size > (MOST // 2 if minor else MOST):
            self.lose(1, f"{len(self)} messages wait")
        else:
            self._messages.append(message)
            self._size = size

    def take(self) -> bytes:
        message = self._messages.popleft()
        self._size -= len(message)
        return message

    def lose(self, count: int, why: str) -> None:
        self._lost += count
        self.repeated.warn(
            "lost", self.log, "audit: messages to {name} are lost: {why}", name=self.name, why=why
        )

    def close(self) -> None:
        """Tell what is lost."""
        if self._messages:
            self.lose(len(self._messages), "the server stops")
            self._messages.clear()
        self.repeated.stop()
        if self._lost:
            self.log.error("audit: {count} messages to {name} were lost", count=self._lost, name=self.name)


class StreamSyslog:
    """Over TCP, or over TLS, *secure*, which is made anew for each connection: certificates are renewed.

    What the kernel has taken when a connection breaks may be lost: syslog has no answers.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        reactor: ReactorBase,
        endpoint: IStreamClientEndpoint,
        secure: Callable[[], Client] | None = None,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._secure = secure
        self._queue = _Queue(name, reactor)
        self._delay = FIRST_DELAY
        self._attempt: Deferred[Any] | None = None
        self._retry: IDelayedCall | None = None
        self._deadline: IDelayedCall | None = None
        self._connection: _Connection | None = None
        self._stopping: Deferred[None] | None = None

    def start(self) -> None:
        """See Syslog."""
        self._retry = None
        endpoint, client = self._endpoint, None
        if self._secure is not None:
            try:
                client = self._secure()
            except ValueError as error:
                self._failed(str(error))
                return
            endpoint = wrapClientTLS(client, endpoint)
        factory = Factory.forProtocol(lambda: _Connection(self, self._reactor, client))
        factory.noisy = False
        self._attempt = attempt = endpoint.connect(factory)
        attempt.addErrback(self._refused)

    def send(self, message: bytes, *, minor: bool = False) -> None:
        """See Syslog."""
        self._queue.put(message, minor=minor)
        self.pump()

    def stop(self, patience: float) -> Deferred[None]:
        """See Syslog."""
        stopping: Deferred[None] = Deferred()
        self._stopping = stopping
        if self._connection is None and not self._queue:
            self._give_up()
        else:
            self._deadline = self._reactor.callLater(patience, self._give_up)
            if self._retry is not None:  # it is worth a last try
                self._retry.reset(0)
            self.pump()
        return stopping

    def pump(self) -> None:
        """Write what the connection takes."""
        connection = self._connection
        if connection is None:
            return
        while self._queue and connection.takes_more:
            connection.write(counted(self._queue.take()))
        if self._stopping is not None and not self._queue:
            connection.finish()

    def connected(self, connection: _Connection) -> None:
        """*connection* takes messages."""
        self._connection = connection
        self._delay = FIRST_DELAY
        self.log.info("audit: connected to {name}", name=self._queue.name)
        self.pump()

    def disconnected(self, connection: _Connection, why: str) -> None:
        """*connection* has ended."""
        self._attempt = None
        self._connection = None
        if self._stopping is not None and not self._queue:
            self._give_up()
        else:
            self._failed(why)

    def _refused(self, failure: Failure) -> None:
        self._attempt = None
        self._failed(_words(failure))

    def _failed(self, why: str) -> None:
        if self._stopping is not None and self._deadline is None:
            return
        self._queue.repeated.warn(
            "connection",
            self.log,
            "audit: no connection to {name}, {count} messages wait: {why}",
            name=self._queue.name,
            count=len(self._queue),
            why=why,
        )
        self._retry = self._reactor.callLater(self._delay, self.start)
        self._delay = min(self._delay * 2, LONGEST_DELAY)

    def _give_up(self) -> None:
        stopping, self._stopping = self._stopping, Deferred()  # nothing more is to happen
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        if self._connection is not None:
            self._connection.cut("the server stops")
        elif self._attempt is not None:
            self._attempt.cancel()
        self._queue.close()
        assert stopping is not None
        stopping.callback(None)


@implementer(IHandshakeListener, IPushProducer)
class _Connection(StreamProtocol):
    """To a receiver, which says nothing. It counts when the handshake is done, and *client* has no complaint."""

    transport: ITCPTransport | None

    def __init__(self, owner: StreamSyslog, clock: IReactorTime, client: Client | None) -> None:
        self._owner = owner
        self._clock = clock
        self._client = client
        self._handshake: IDelayedCall | None = None
        self._why = ""
        self.takes_more = False

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.setTcpKeepAlive(True)
        self.transport.registerProducer(self, True)  # type: ignore[attr-defined]
        if self._client is not None:
            self._handshake = self._clock.callLater(CONNECT_TIMEOUT, self.cut, "no handshake of TLS")
        else:
            self._begin()

    def handshakeCompleted(self) -> None:
        """See IHandshakeListener."""
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None
        assert self._client is not None and self.transport is not None
        complaint = self._client.complaint(self.transport.getHandle())  # type: ignore[attr-defined]
        if complaint:
            self.cut(complaint)
        else:
            self._begin()

    def _begin(self) -> None:
        self.takes_more = True
        self._owner.connected(self)

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def finish(self) -> None:
        """Close when all is sent."""
        assert self.transport is not None
        self.takes_more = False
        self.transport.unregisterProducer()  # type: ignore[attr-defined]
        self.transport.loseConnection()

    def cut(self, why: str) -> None:
        """Close now."""
        self._why = why
        assert self.transport is not None
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        self.takes_more = False

    def resumeProducing(self) -> None:
        self.takes_more = True
        self._owner.pump()

    def stopProducing(self) -> None:
        self.takes_more = False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.takes_more = False
        if self._handshake is not None and self._handshake.active():
            self._handshake.cancel()
        self._owner.disconnected(self, self._why or _words(reason))


def _words(failure: Failure) -> str:
    """What the operator can make use of: of OpenSSL's errors their reasons."""
    args = getattr(failure.value, "args", ())
    if args and isinstance(args[0], list):
        return "; ".join(str(entry[-1]) for entry in args[0]) or "the connection was closed"
    return failure.getErrorMessage() or type(failure.value).__name__


@implementer(IResolutionReceiver)
class DatagramSyslog(DatagramProtocol):
    """Over UDP: nobody tells whether anything arrives, but that nobody listens."""

    log = Logger()
    noisy = False
    transport: IUDPTransport | None

    def __init__(self, name: str, reactor: ReactorBase, host: str, port: int) -> None:
        self._reactor = reactor
        self._host, self._port = host, port
        self._queue = _Queue(name, reactor)
        self._addresses: list[IAddress] = []
        self._ready = False
        self._retry: IDelayedCall | None = None

    def start(self) -> None:
        """See Syslog."""
        self._retry = None
        self._addresses = []
        self._reactor.nameResolver.resolveHostName(self, self._host, self._port, transportSemantics="UDP")

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """See IResolutionReceiver."""

    def addressResolved(self, address: IAddress) -> None:
        """See IResolutionReceiver."""
        self._addresses.append(address)

    def resolutionComplete(self) -> None:
        """See IResolutionReceiver."""
        if not self._addresses:
            self._queue.repeated.warn(
                "name", self.log, "audit: no address is known of {name}", name=self._queue.name
            )
            self._retry = self._reactor.callLater(LONGEST_DELAY, self.start)
            return
        address = self._addresses[0]
        interface = "::" if ":" in address.host else ""  # type: ignore[attr-defined]
        self._reactor.listenUDP(0, self, interface=interface)  # type: ignore[attr-defined]
        assert self.transport is not None
        self.transport.connect(address.host, self._port)  # type: ignore[attr-defined]
        self._ready = True
        self._pump()

    def send(self, message: bytes, *, minor: bool = False) -> None:
        """See Syslog."""
        self._queue.put(message, minor=minor)
        self._pump()

    def _pump(self) -> None:
        while self._ready and self._queue:
            assert self.transport is not None
            try:
                self.transport.write(self._queue.take())  # type: ignore[call-arg] # it is connected
            except OSError as error:
                self._queue.lose(1, error.strerror or str(error))

    def connectionRefused(self) -> None:
        self._queue.lose(1, "nobody listens there")

    def stopProtocol(self) -> None:
        # What the network tells of a datagram that nobody has taken may look to the reactor like the end.
        if self._ready:
            self._ready = False
            self.connectionRefused()
            self._retry = self._reactor.callLater(FIRST_DELAY, self.start)

    def stop(self, patience: float) -> Deferred[None]:
        """See Syslog."""
        if self._retry is not None:
            self._retry.cancel()
        if self._ready:
            self._ready = False
            assert self.transport is not None
            self.transport.stopListening()
        self._queue.close()
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done


def syslog_to(settings: AuditSettings, reactor: ReactorBase) -> Syslog:
    """What sends to the receiver of *settings*. Raises ValueError, for what TLS needs and does not find."""
    name, host, port = str(settings), settings.host, settings.port
    if settings.transport is Transport.UDP:
        return DatagramSyslog(name, reactor, host, port)

    endpoint = HostnameEndpoint(reactor, host, port, timeout=CONNECT_TIMEOUT)
    if settings.transport is Transport.TCP:
        return StreamSyslog(name, reactor, endpoint)
    from storescp.syslog_tls import Client

    Client(settings)  # a mistake is told now
    return StreamSyslog(name, reactor, endpoint, lambda: Client(settings))
