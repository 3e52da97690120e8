"""Several processes behind one port: the parent, which accepts connections and hands each to a worker.

What belongs here: who gets which connection, and what becomes of workers that end. A listening socket that all
of them share would be taken unevenly, and one for each (SO_REUSEPORT) would lose with a worker the connections
that wait for it. The parent reads no byte of an association. The archive it only recovers and locks.
"""

from __future__ import annotations

import errno
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from functools import partial

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from storescp.archive import Archive, CannotOpen
from storescp.config import Config
from storescp.logs import Repeated
from storescp.reader import Reader
from storescp.receiver import close, report
from storescp.shared import SharedAdmission, SharedCounts
from storescp.statistics import Statistics
from storescp.worker_process import ORDERLY, WorkerProcess

#: Connections that are accepted in one turn, from each port.
ACCEPTS = 64

#: Seconds without accepting when the system had no room for a connection.
PAUSE = 1.0

#: A worker that lived for so many seconds is replaced at once; one that did not, later and later, up to a limit.
STEADY = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0

#: Seconds beyond the timeout of the stop that a worker has to abort what is left and to write what it has.
KILL_AFTER = 15.0


class Supervisor:
    """The workers of a server, and what they have in common. The counterpart of a Receiver.

    *relay* is given the lines that they log.
    """

    log = Logger()

    def __init__(self, config: Config, reactor: ReactorBase, relay: Callable[[str], object]) -> None:
        self.config = config
        self._reactor = reactor
        self._archive: Archive | None = None
        self._counts = SharedCounts.create(config.workers)
        self._admission = SharedAdmission(self._counts, config.max_per_address, config.max_rate)
        self._statistics = Statistics()
        self._repeated = Repeated(reactor)
        self._pickled = os.memfd_create("storescp-config")
        os.write(self._pickled, pickle.dumps(config))
        self._workers = [
            WorkerProcess(reactor, number, slot, relay=relay, ready=self._ready, ended=self._ended)
            for number, slot in enumerate(self._counts.slots)
        ]
        self._listeners: list[Reader] = []
        self._pause: IDelayedCall | None = None
        self._early_ends = dict.fromkeys(self._workers, 0)
        self._replacements: dict[WorkerProcess, IDelayedCall] = {}
        self._stopping = False
        self._stopped: Deferred[None] = Deferred()

    @property
    def statistics(self) -> Statistics:
        """Of all workers, those that have died too, and our own of what no worker was given."""
        total = self._counts.total()
        total.connections += self._statistics.connections
        total.refused += self._statistics.refused
        return total

    @property
    def associations(self) -> int:
        """Associations at this moment."""
        return self._counts.associations

    def start(self, listeners: Sequence[socket.socket]) -> None:
        """Recover the archive, start the workers, and wait until all are ready to serve what *listeners* accept.

        Raises CannotOpen.
        """
        self._archive = archive = Archive(self.config)
        report(self.log, archive.recovered)
        try:
            for worker in self._workers:
                self._spawn(worker)
            for worker in self._workers:
                worker.wait_until_ready()
        except BaseException as error:
            for worker in self._workers:
                worker.close()
            if isinstance(error, OSError):
                raise CannotOpen(f"cannot start a worker: {error.strerror}") from None
            raise
        for worker in self._workers:
            worker.watch()
        self._listeners = [
            Reader(self._reactor, listener, partial(self._accept, listener)) for listener in listeners
        ]
        self._set_accepting()

    def stop(self) -> Deferred[None]:
        """Have the workers stop in good order, and close the archive when they have ended."""
        self._stopping = True
        self._set_accepting()
        for replacement in self._replacements.values():
            replacement.cancel()
        for worker in self._workers:
            worker.stop()
        deadline = self._reactor.callLater(self.config.stop_timeout + KILL_AFTER, self._kill)
        self._stopped.addCallback(lambda _: self._close(deadline))
        self._check_stopped()
        return self._stopped

    def hurry(self) -> None:
        """Let no association end in its own time."""
        for worker in self._workers:
            worker.hurry()

    # -- connections --

    def _set_accepting(self) -> None:
        """Accept as long as somebody can take connections: others wait with the kernel."""
        for listener in self._listeners:
            if not self._stopping and self._pause is None and any(w.is_ready for w in self._workers):
                listener.start()
            else:
                listener.stop()

    def _accept(self, listener: socket.socket) -> None:
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
                self._set_accepting()
                return
            with connection:
                # Not the name of a local socket, which is a text or bytes.
                self._admit(connection, address[0] if isinstance(address, tuple) else "")

    def _admit(self, connection: socket.socket, host: str) -> None:
        refusal = self._admission.admit(host, self._reactor.seconds())
        if refusal:
            self._statistics.connections += 1
            self._statistics.refused += 1
            self._repeated.warn(f"refused {host}", self.log, "{host} refused: {why}", host=host, why=refusal)
            return
        number = self._admission.number(host)
        text = f"{number} {host}" if number else ""
        worker = hand_over(connection, self._workers, self.config.max_pending, text)
        if worker is None:
            self.log.error("no worker takes a connection: it is closed")
        else:
            self._admission.given(worker.number, number)

    def _resume(self) -> None:
        self._pause = None
        self._set_accepting()

    # -- processes --

    def _spawn(self, worker: WorkerProcess) -> None:
        assert self._archive is not None
        # The lock, so that the archive is in use as long as a worker lives that has lost its parent.
        worker.spawn(len(self._workers), self._pickled, self._counts.descriptor, self._archive.lock)

    def _replace(self, worker: WorkerProcess) -> None:
        del self._replacements[worker]
        try:
            self._spawn(worker)
        except OSError as error:
            self.log.error("cannot start a worker: {error}", error=error)
            self._replace_later(worker)
        else:
            worker.watch()

    def _replace_later(self, worker: WorkerProcess) -> float:
        """In how many seconds."""
        if self._reactor.seconds() - worker.began >= STEADY:
            self._early_ends[worker] = 0
            delay = 0.0
        else:
            delay = min(FIRST_DELAY * 2 ** self._early_ends[worker], LONGEST_DELAY)
            self._early_ends[worker] = min(self._early_ends[worker] + 1, 10)
        self._replacements[worker] = self._reactor.callLater(delay, self._replace, worker)
        return delay

    def _ready(self, worker: WorkerProcess) -> None:
        self.log.warn("worker {number} is ready again", number=worker.number)
        self._set_accepting()

    def _ended(self, worker: WorkerProcess, how: str) -> None:
        self._admission.ended(worker.number)
        if self._stopping:
            if how != ORDERLY:
                self.log.error("worker {number} {how}", number=worker.number, how=how)
            self._check_stopped()
            return
        self._set_accepting()
        self.log.error(
            "worker {number} {how}, and its associations with it; another one starts in {delay:g} s",
            number=worker.number,
            how=how,
            delay=self._replace_later(worker),
        )

    def _check_stopped(self) -> None:
        if not any(worker.is_alive for worker in self._workers):
            self._stopped.callback(None)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _close(self, deadline: IDelayedCall) -> None:
        if deadline.active():
            deadline.cancel()
        if self._pause is not None:
            self._pause.cancel()
        self._repeated.stop()
        os.close(self._pickled)
        os.close(self._counts.descriptor)
        if self._archive is not None:
            close(self.log, self._archive)


def hand_over(
    connection: socket.socket, workers: Sequence[WorkerProcess], max_pending: int, text: str = ""
) -> WorkerProcess | None:
    """Give *connection*, and *text*, to the least busy of *workers* that takes it, and return that; None if none does.

    If *max_pending* connections of all have no association, the one that has the most drops its oldest for it.
    """
    ready = [worker for worker in workers if worker.is_ready]
    if sum(worker.waiting for worker in ready) >= max_pending:
        max(ready, key=lambda worker: worker.waiting).drop_oldest()
    for worker in sorted(ready, key=lambda worker: worker.load):
        if worker.take(connection, text):
            return worker
    return None
