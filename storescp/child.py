"""A worker: the process that serves the connections which its parent hands over.

Started by :mod:`storescp.supervisor` as ``python -m storescp.child NUMBER WORKERS CHANNEL COUNTS``: which of how
many it is, and the descriptors of the channel and of the counts that it inherits; its input is the pickled
configuration. Nobody else has a use for it. It ends when it is told to stop, or when its parent has died, and minds no
signals: those that a terminal or a supervisor sends to the whole group are the parent's business.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from twisted.internet import reactor as _reactor
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.posixbase import PosixReactorBase
from twisted.logger import Logger, globalLogBeginner, globalLogPublisher
from twisted.python.failure import Failure

from storescp.archive import CannotOpen
from storescp.channel import Channel, Kind, Message
from storescp.config import Config, ConfigError
from storescp.logs import LineObserver, line_observer
from storescp.reader import Reader
from storescp.receiver import Receiver
from storescp.shared import Departures, SharedCounts, SharedOccupancy

if TYPE_CHECKING:
    from storescp.audit import Audit
    from storescp.tls_context import TLS

#: Messages that are taken in one turn.
MESSAGES = 64

#: Seconds between two reports of our load.
BEAT = 1.0

#: Seconds for which connections are collected that one message acknowledges. So much later a peer may see one cut.
ACKNOWLEDGE_AFTER = 0.01

#: Seconds until what was lost is asked for again.
ASK_AGAIN = 1.0

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Child:
    """Does what the messages from *channel* say, until it has stopped the *reactor*."""

    log = Logger()

    def __init__(
        self,
        reactor: PosixReactorBase,
        channel: Channel,
        counts: SharedCounts,
        number: int,
        config: Config,
        observer: LineObserver,
    ) -> None:
        self._reactor = reactor
        self._channel = channel
        slot = counts.slots[number]
        self._occupancy = SharedOccupancy(counts, number, config.max_assoc, config.max_pending, self._tell)
        self._departures = Departures(slot)
        recorder = counts.measurements.recorder(number) if config.http is not None else None
        self._receiver = Receiver(
            config,
            reactor,
            slot.statistics,
            self._occupancy,
            self._departures,
            recorder,
            owed=self._owed,
        )
        self._audit: Audit | None = None
        if config.logs.audit is not None:
            from storescp.audit import Audit

            self._audit = Audit(config.logs.audit, config.ae_title, reactor)
            self._receiver.report_to(self._audit)
        self._receiver.start(number)
        self._slot = slot
        self._beat()
        self._tls: TLS | None = None
        self._secure: IProtocolFactory = self._receiver.factory
        if config.tls is not None:
            from storescp.tls import SecureFactory  # needs pyOpenSSL
            from storescp.tls_context import TLS

            self._tls = TLS(config.tls)
            self._secure = SecureFactory(self._tls, self._receiver.factory, reactor)
        self._observer = observer
        self._reader = Reader(reactor, channel, self.read)
        self._acknowledging = False
        self._stopping = False

    @property
    def has_given_up(self) -> bool:
        """Whether it has stopped without the disk."""
        return self._receiver.has_given_up

    def start(self) -> None:
        """Take connections."""
        self._channel.set_blocking(False)
        if self._audit is not None:
            self._audit.start()
        self._channel.send(Kind.READY)
        self._reader.start()

    def read(self) -> None:
        """Take the messages that are there."""
        for _ in range(MESSAGES):
            try:
                message = self._channel.receive()
            except BlockingIOError:
                return
            if message is None:
                self._reader.stop()
                self._stop()
                return
            self._obey(message)

    def _obey(self, message: Message) -> None:
        match message.kind:
            case Kind.CONNECTION:
                self._take(message, self._receiver.factory)
            case Kind.SECURE:
                self._take(message, self._secure)
            case Kind.CREDENTIALS:
                self._use(message.descriptor)
            case Kind.CONFIGURATION:
                self._configure(message.descriptor)
            case Kind.DROP:
                self._occupancy.drop_ordered()
                self._receiver.factory.drop_oldest()
                self._count()
            case Kind.STOP:
                self._stop()
            case Kind.HURRY:
                self._receiver.hurry()

    def _take(self, message: Message, factory: IProtocolFactory) -> None:
        self._occupancy.came()
        number, _, host = message.text.partition(" ")
        if number:
            self._departures.expect(host, int(number))
        if not self._serve(message.descriptor, factory) and number:
            self._departures.leave(host)
        self._count()
        self._occupancy.taken()
        if not self._acknowledging:
            self._acknowledging = True
            self._reactor.callLater(ACKNOWLEDGE_AFTER, self._acknowledge)

    def _use(self, descriptor: int) -> None:
        if descriptor < 0:
            self._lost("the credentials for TLS")
            return
        assert self._tls is not None
        self._tls.use(_unpickled(descriptor))

    def _configure(self, descriptor: int) -> None:
        if descriptor < 0:
            self._lost("the new settings")
            return
        config: Config = _unpickled(descriptor)
        try:
            self._receiver.use(config)
        except ConfigError as error:
            self.log.error("a worker goes on with the settings that it had: {error}", error=error)
            return
        if self._tls is not None and config.tls is not None:
            self._tls.settings = config.tls  # the credentials come before the next connection that needs them
        self._observer.set_levels(config.logs.levels)

    def _lost(self, what: str) -> None:
        self.log.error("{what} were lost: too many open files; they are asked for again", what=what)
        self._reactor.callLater(ASK_AGAIN, self._channel.send, Kind.LOST)

    def _serve(self, descriptor: int, factory: IProtocolFactory) -> bool:
        """Whether the connection is there."""
        if descriptor < 0:
            self.log.error("a connection was lost: too many open files")
            return False
        try:
            os.set_blocking(descriptor, False)
            with socket.socket(fileno=descriptor) as connection:
                self._reactor.adoptStreamConnection(  # which makes a duplicate of it
                    descriptor, connection.family, factory
                )
        except OSError as error:  # a peer that has gone already has no name any more
            self.log.debug("a connection ended before it began: {error}", error=error)
            return False
        return True

    def _count(self) -> None:
        """Also what was in vain: a connection that could not be served, an order when nothing waits."""
        self._occupancy.waiting(len(self._receiver.factory.pending))

    def _acknowledge(self) -> None:
        self._acknowledging = False
        self._tell()

    def _tell(self) -> None:
        # No room for it: then there is such a message already that the parent has not read.
        self._channel.send(Kind.COUNTED)

    def _beat(self) -> None:
        self._slot.report(self._receiver.loads[0])
        self._reactor.callLater(BEAT, self._beat)

    def _owed(self) -> None:
        self._channel.send(Kind.OWED)  # without room for it, the parent looks by itself after a while

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            stopped = self._receiver.stop().addErrback(self._failed)
            if self._audit is not None:
                audit = self._audit
                stopped.addCallback(lambda _: audit.stop())
            stopped.addCallback(lambda _: self._reactor.stop())

    def _failed(self, failure: Failure) -> None:
        self.log.failure("cannot stop in good order", failure)


def _unpickled(descriptor: int) -> Any:
    """What a file from the parent has; it is closed."""
    try:
        return pickle.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    finally:
        os.close(descriptor)


class Output:
    """The log's way to the parent. When that has died there is nobody to tell."""

    def write(self, text: str) -> None:
        rest = memoryview(text.encode(errors="backslashreplace"))
        try:
            while rest:
                rest = rest[os.write(1, rest) :]
        except OSError:
            pass

    def flush(self) -> None:
        pass


def main(number: int, workers: int, channel_descriptor: int, counts_descriptor: int) -> int:
    """Run the worker; the exit code."""
    for ignored in _IGNORED:
        signal.signal(ignored, signal.SIG_IGN)
    assert isinstance(_reactor, PosixReactorBase)
    channel = Channel(socket.socket(fileno=channel_descriptor))
    try:
        # Not from where it stands: whoever starts after us shares its position.
        config: Config = pickle.loads(os.pread(0, os.fstat(0).st_size, 0))
        observer = line_observer(Output(), config.logs, _reactor)
        globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
        counts = SharedCounts(counts_descriptor, workers)
        child = Child(_reactor, channel, counts, number, config, observer)
    except CannotOpen as error:
        channel.send(Kind.FAILED, str(error))
        return 1
    except Exception as error:  # noqa: BLE001 - the operator gets a line, whatever it is
        channel.send(Kind.FAILED, f"worker {number} cannot start: {type(error).__name__}: {error}")
        return 1
    _reactor.callWhenRunning(child.start)
    # What the reactor has to say when it ends, the parent says too.
    _reactor.addSystemEventTrigger("after", "shutdown", globalLogPublisher.removeObserver, observer)
    _reactor.run(installSignalHandlers=False)
    observer.flush()
    if child.has_given_up:
        os._exit(1)  # what belongs to threads that wait for a disk is not touched any more
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
