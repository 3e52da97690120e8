"""Sends messages to a receiver of syslog, and never waits for it: over UDP, TCP or TLS.

What belongs here: connections that are lost and made again, and what is known of messages that were written to them.
What the messages are is no business of this module.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from storescp.audit_settings import AuditSettings, Transport
from storescp.counting import Count
from storescp.syslog_format import counted
from storescp.syslog_queue import FIRST_DELAY, LONGEST_DELAY, MessageQueue
from storescp.syslog_udp import DatagramSyslog
from storescp.transports import HostEndpoint, end_of, socket_of, unacknowledged

if TYPE_CHECKING:
    from storescp.syslog_tls import Client  # needs pyOpenSSL

#: Seconds that a connection and its handshake may take.
CONNECT_TIMEOUT: Final = 15.0

#: Seconds between two looks whether what was sent has arrived; and when the server stops.
CHECK_INTERVAL, LAST_INTERVAL = 1.0, 0.05

#: Bytes under way from which on it is looked what of them has arrived, though there is no rest.
MUCH: Final = 512 * 1024

#: Bytes that Twisted may keep of what it was given: TLS some, TCP some, each a message more.
KEPT_BY_TWISTED: Final = 256 * 1024

#: Seconds after which the kernel gives up a connection whose other end takes nothing, tcp(7); it would try for longer.
USER_TIMEOUT: Final = 30.0


class Syslog(Protocol):
    """A receiver."""

    def start(self) -> None:
        """Send what waits, and what comes."""

    def send(self, message: bytes, *, minor: bool = False) -> None:
        """Send *message* when that is possible, or lose it: a *minor* one sooner than others."""

    def stop(self, patience: float) -> Deferred[None]:
        """Send what waits within so many seconds, and no more; fires when that is over."""


class StreamSyslog:
    """Over TCP, or over TLS, *secure*, which is made anew for each connection: certificates are renewed.

    Syslog has no answers: what is known is what the other end's kernel has acknowledged. The rest is sent once more
    when a connection has broken, and arrives twice perhaps. What a receiver has not read when it ends is lost.
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
        self._queue = MessageQueue(name, reactor)
        self._delay = FIRST_DELAY
        self._attempt: Deferred[Any] | None = None
        self._retry: IDelayedCall | None = None
        self._deadline: IDelayedCall | None = None
        self._connection: _Connection | None = None
        self._look: IDelayedCall | None = None
        self._was_quiet = False
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
            if self._look is not None:
                self._look.reset(LAST_INTERVAL)
            self.pump()
        return stopping

    def pump(self) -> None:
        """Write what the connection takes."""
        connection = self._connection
        if connection is None:
            return
        queue = self._queue
        while queue and connection.takes_more:
            connection.write(counted(queue.dispatch()))
            self._was_quiet = False
            if queue.under_way_size > MUCH:
                queue.arrived(all_but=connection.unacknowledged + KEPT_BY_TWISTED)
        if queue.under_way_size:
            self._look_soon()
        elif self._stopping is not None and not queue:
            connection.finish()

    def _look_soon(self) -> None:
        interval = LAST_INTERVAL if self._stopping is not None else CHECK_INTERVAL
        if self._look is None:
            self._look = self._reactor.callLater(interval, self._check)

    def _check(self) -> None:
        """Twice nothing to be acknowledged, and nothing written between: then Twisted has nothing left either."""
        self._look = None
        connection = self._connection
        if connection is not None:
            is_quiet = connection.takes_more and not connection.unacknowledged
            if is_quiet and self._was_quiet:
                self._queue.arrived()
            self._was_quiet = is_quiet
            self.pump()

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
        self._was_quiet = False
        self._queue.take_back()
        if self._stopping is not None and not self._queue:
            self._give_up()
        else:
            self._failed(why)

    def _refused(self, failure: Failure) -> None:
        self._attempt = None
        self._failed(end_of(failure.value))

    def _failed(self, why: str) -> None:
        if self._stopping is not None and self._deadline is None:
            return
        self._queue.repeated.warn(
            "connection",
            self.log,
            "audit: no connection to {name}, {count:message waits|messages wait}: {why}",
            name=self._queue.name,
            count=Count(len(self._queue)),
            why=why,
        )
        self._retry = self._reactor.callLater(self._delay, self.start)
        self._delay = min(self._delay * 2, LONGEST_DELAY)

    def _give_up(self) -> None:
        stopping, self._stopping = self._stopping, Deferred()  # nothing more is to happen
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()
        for timer in (self._retry, self._look):
            if timer is not None and timer.active():
                timer.cancel()
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
        self._socket: socket.socket | None = None
        self.takes_more = False

    @property
    def unacknowledged(self) -> int:
        """Bytes that the kernel has, and the other end's has not."""
        return unacknowledged(self._socket) if self._socket is not None else 0

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.setTcpKeepAlive(True)
        self._socket = socket_of(self.transport)
        if self._socket is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(USER_TIMEOUT * 1000))
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
        self._socket = None
        if self._handshake is not None and self._handshake.active():
            self._handshake.cancel()
        self._owner.disconnected(self, self._why or end_of(reason.value))


def syslog_to(settings: AuditSettings, reactor: ReactorBase) -> Syslog:
    """What sends to the receiver of *settings*. Raises ValueError, for what TLS needs and does not find."""
    name, host, port = str(settings), settings.host, settings.port
    if settings.transport is Transport.UDP:
        return DatagramSyslog(name, reactor, host, port)

    endpoint = HostEndpoint(reactor, host, port, timeout=CONNECT_TIMEOUT)
    if settings.transport is Transport.TCP:
        return StreamSyslog(name, reactor, endpoint)
    from storescp.syslog_tls import Client

    Client(settings)  # a mistake is told now
    return StreamSyslog(name, reactor, endpoint, lambda: Client(settings))
