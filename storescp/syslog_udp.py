"""Syslog over UDP, RFC 5426: a message is a datagram, and nobody tells whether any arrives."""

from __future__ import annotations

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostResolution,
    IResolutionReceiver,
    IUDPTransport,
)
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from zope.interface import implementer

from storescp.syslog_queue import FIRST_DELAY, LONGEST_DELAY, MessageQueue


@implementer(IResolutionReceiver)
class DatagramSyslog(DatagramProtocol):
    """Over UDP: nobody tells whether anything arrives, but that nobody listens."""

    log = Logger()
    noisy = False
    transport: IUDPTransport | None

    def __init__(self, name: str, reactor: ReactorBase, host: str, port: int) -> None:
        self._reactor = reactor
        self._host, self._port = host, port
        self._queue = MessageQueue(name, reactor)
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
        return succeed(None)
