"""Who gets which connection, where a server has several processes.

What belongs here: the listening sockets, and connections until a worker has them. A listening socket that all
workers share would be taken unevenly, and one for each (SO_REUSEPORT) would lose with a worker the connections
that wait for it. No byte of an association is read here.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import IO

from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from storescp.config import Config
from storescp.limits import plain
from storescp.logs import Repeated
from storescp.reader import Reader
from storescp.shared import SharedAdmission, SharedCounts
from storescp.statistics import Statistics
from storescp.worker_process import Accepted, WorkerProcess

#: Connections that are accepted in one turn, from each port.
ACCEPTS = 64

#: Seconds without accepting when the system had no room for a connection.
PAUSE = 1.0


class Door:
    """Lets connections in, as far as *config* allows and as long as there are *workers* to take them.

    ``credentials`` go with those that are to speak TLS; ``statistics`` are of those that no worker was given.
    """

    log = Logger()

    def __init__(
        self, reactor: ReactorBase, workers: Sequence[WorkerProcess], counts: SharedCounts, config: Config
    ) -> None:
        self._reactor = reactor
        self._workers = workers
        self._admission = SharedAdmission(counts, config.max_per_address, config.max_rate)
        self._max_pending = config.max_pending
        self._repeated = Repeated(reactor)
        self._left: deque[Accepted] = deque()  # connections whose worker died before it took them
        self._listeners: list[Reader] = []
        self._pause: IDelayedCall | None = None
        self._is_closed = False
        self.credentials: IO[bytes] | None = None
        self.statistics = Statistics()

    def open(self, listeners: Sequence[tuple[socket.socket, bool]]) -> None:
        """Serve what *listeners* accept, each with whether its peers are to speak TLS."""
        self._listeners = [
            Reader(self._reactor, listener, partial(self._accept, listener, secure))
            for listener, secure in listeners
        ]
        self.look()

    def use(self, config: Config) -> None:
        """Have it as *config* says from now on."""
        self._admission.limit(config.max_per_address, config.max_rate)
        self._max_pending = config.max_pending
        self.make_room()

    def make_room(self) -> None:
        """Have no more connections without an association than there may be."""
        make_room(self._workers, self._max_pending)

    def look(self) -> None:
        """Somebody can take connections, or nobody can any more: then others wait with the kernel."""
        while self._left and self._hand_over(self._left[0]):
            self._left.popleft()
        is_open = self._pause is None and any(worker.is_ready for worker in self._workers)
        for listener in self._listeners:
            if is_open and not self._is_closed:
                listener.start()
            else:
                listener.stop()

    def ended(self, worker: WorkerProcess, left: Sequence[Accepted]) -> None:
        """A worker has, before it took the connections that are *left*."""
        self._admission.ended(worker.number)
        self._left += left
        if self._is_closed:
            self._close_left()
        else:
            self.look()

    def close(self) -> None:
        """Accept nothing more."""
        self._is_closed = True
        self._close_left()
        self.look()
        if self._pause is not None:
            self._pause.cancel()
        self._repeated.stop()

    def _accept(self, listener: socket.socket, secure: bool) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EPERM):
                    continue  # the peer's doing, or the firewall's
                self.log.error("cannot accept a connection: {error}", error=error)
                self._pause = self._reactor.callLater(PAUSE, self._resume)
                self.look()
                return
            # Not the name of a local socket, which is a text or bytes.
            host = plain(address[0]) if isinstance(address, tuple) else ""
            if not self._admit(Accepted(connection, secure, host)):
                connection.close()

    def _admit(self, accepted: Accepted) -> bool:
        """Whether it may come in, and somebody takes it."""
        host = accepted.host
        refusal = self._admission.admit(host, self._reactor.seconds())
        if refusal:
            self.statistics.connections += 1
            self.statistics.refused += 1
            self._repeated.warn(f"refused {host}", self.log, "{host} refused: {why}", host=host, why=refusal)
            return False
        if not self._hand_over(accepted):
            self.log.error("no worker takes a connection: it is closed")
            return False
        return True

    def _resume(self) -> None:
        self._pause = None
        self.look()

    def _hand_over(self, accepted: Accepted) -> bool:
        number = self._admission.number(accepted.host)
        text = f"{number} {accepted.host}" if number else ""
        worker = hand_over(accepted, self._workers, self._max_pending, self.credentials, text)
        if worker is not None:
            self._admission.given(worker.number, number)
        return worker is not None

    def _close_left(self) -> None:
        while self._left:
            self._left.popleft().connection.close()


def hand_over(
    accepted: Accepted,
    workers: Sequence[WorkerProcess],
    max_pending: int,
    credentials: IO[bytes] | None = None,
    text: str = "",
) -> WorkerProcess | None:
    """Give a connection, and *text*, to the least busy of *workers* that takes it, and return that; None if none does.

    *credentials* are those for TLS. If *max_pending* connections of all have no association, there is one less before.
    """
    make_room(workers, max_pending - 1)
    ready = (worker for worker in workers if worker.is_ready)
    by_load = sorted(ready, key=lambda worker: worker.load)
    return next((worker for worker in by_load if worker.take(accepted, credentials, text)), None)


def make_room(workers: Sequence[WorkerProcess], most: int) -> None:
    """Have no more than *most* connections without an association: who has the most of them drops its oldest."""
    ready = [worker for worker in workers if worker.is_ready]
    while sum(worker.waiting for worker in ready) > most:
        if not max(ready, key=lambda worker: worker.waiting).drop_oldest():
            break
