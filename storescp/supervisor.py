"""Several processes behind one port: the parent, which has a worker for each of them.

What belongs here: workers from their start to their end, and what they have in common. Which of them gets a connection
is the business of :mod:`storescp.door`. The archive the parent only recovers and locks.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Generator, Sequence
from typing import IO, Any

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from storescp.archive import CannotOpen, ServerArchive
from storescp.commitment_ledger import Ledger
from storescp.commitment_store import REPORTER
from storescp.config import Config
from storescp.door import Door
from storescp.ending import PATIENCE, Ending
from storescp.measurements import Measurements
from storescp.receiver import close, give_up, report, start_reporter
from storescp.reporter import ClientTLS, Reporter
from storescp.shared import SharedCounts
from storescp.statistics import Load, Statistics
from storescp.worker import Aside
from storescp.worker_process import ORDERLY, Accepted, WorkerProcess

#: A worker that lived for so many seconds is replaced at once; one that did not, later and later, up to a limit.
STEADY = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0

#: Seconds beyond those after which a worker gives up by itself until it is killed, and from then on for its end.
KILL_AFTER = END_AFTER = 3.0


class Supervisor:
    """The workers of a server, and what they have in common. The counterpart of a Receiver.

    *relay* is given the lines that they log. What storage commitment owes is reported here, with *client_tls*.
    """

    log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: ReactorBase,
        relay: Callable[[str], object],
        client_tls: ClientTLS | None = None,
    ) -> None:
        self.config = config
        self._reactor = reactor
        self._archive: ServerArchive | None = None
        self._client_tls = client_tls
        self._ledger: Ledger | None = None
        self._reporter: Reporter | None = None
        self._counts = SharedCounts.create(config.workers)
        self.measurements: Measurements | None = self._counts.measurements
        self.restarts = 0
        """Workers that have ended, and others that were to replace them."""
        self._configuration = _in_memory("storescp-config", config)
        self._workers = [
            WorkerProcess(
                reactor,
                number,
                slot,
                relay=relay,
                ready=self._ready,
                counted=lambda _: self._door.make_room(),
                ended=self._ended,
                owed=self._look,
            )
            for number, slot in enumerate(self._counts.slots)
        ]
        self._door = Door(reactor, self._workers, self._counts, config)
        self._early_ends = dict.fromkeys(self._workers, 0)
        self._replacements: dict[WorkerProcess, IDelayedCall] = {}
        self.has_given_up = False
        """Whether it has stopped, but not in good order: a worker, or the archive, did not answer."""
        self._stopping = False
        self._stopped: Deferred[None] = Deferred()  # of the workers
        self._ending: Ending | None = None

    @property
    def statistics(self) -> Statistics:
        """Of all workers, those that have died too, and our own of what no worker was given."""
        total = self._counts.total()
        total.connections += self._door.statistics.connections
        total.refused += self._door.statistics.refused
        return total

    @property
    def associations(self) -> int:
        """Associations at this moment."""
        return self._counts.associations

    @property
    def is_ready(self) -> bool:
        """Whether somebody serves associations."""
        return any(worker.is_ready for worker in self._workers)

    @property
    def loads(self) -> dict[int, Load]:
        """By the number of the worker: of those that are ready."""
        return {
            worker.number: slot.load
            for worker, slot in zip(self._workers, self._counts.slots, strict=True)
            if worker.is_ready
        }

    def start(self, listeners: Sequence[tuple[socket.socket, bool]]) -> None:
        """Recover the archive, start the workers, and wait until all are ready to serve what *listeners* accept.

        Each with whether its peers are to speak TLS. Raises CannotOpen.
        """
        self._archive = archive = ServerArchive(self.config)
        report(self.log, archive)
        if self.config.commitment is not None:
            self._ledger = Ledger(self.config, self._reactor, archive.directory.root, REPORTER, lambda: None)
            self._reporter = start_reporter(self._ledger, self._reactor, self._client_tls)
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
        self._door.open(listeners)

    def use(self, credentials: object) -> None:
        """Have the workers speak TLS with *credentials*, from the next connection on. Raises OSError."""
        before = self._door.credentials
        self._door.credentials = _in_memory("storescp-credentials", credentials)
        if before is not None:
            before.close()

    def configure(self, config: Config, credentials: object) -> None:
        """Have all workers do as *config* says, with *credentials* if there is TLS, also those that start later.

        That is from the next connection on. Raises OSError, and changes nothing then.
        """
        new = _in_memory("storescp-config", config)
        try:
            if credentials is not None:
                self.use(credentials)
        except OSError:
            new.close()
            raise
        self._configuration.close()
        self.config, self._configuration = config, new
        if self._ledger is not None:
            self._ledger.use(config)
        if self._reporter is not None:
            self._reporter.hasten()
        for worker in self._workers:
            worker.configure(self._configuration)
        self._door.use(config)

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[Any], object, None]:
        """Have the workers stop in good order, and close the archive when they have ended: within some time."""
        self._stopping = True
        self._door.close()
        timeout = self.config.stop_timeout
        seconds = timeout + PATIENCE + KILL_AFTER
        deadline = self._reactor.seconds() + seconds + END_AFTER
        reporting: Deferred[None] = (
            self._reporter.stop(timeout) if self._reporter is not None else succeed(None)
        )
        for replacement in self._replacements.values():
            replacement.cancel()
        for worker in self._workers:
            worker.stop()
        self._check_stopped()
        ended = self._stopped.addCallback(lambda _: reporting)
        self._ending = Ending(self._reactor, ended, seconds)
        yield self._ending.over
        if self._ending.in_vain:
            for worker in self._workers:
                worker.kill()
        self._ending = Ending(
            self._reactor, self._close(), max(END_AFTER, deadline - self._reactor.seconds())
        )
        yield self._ending.over
        if self._ending.in_vain:
            self.has_given_up = True
            alive = [worker for worker in self._workers if worker.is_alive]
            for worker in alive:
                self.log.critical(
                    "worker {number} (process {pid}) was killed and does not end: it waits for the disk",
                    number=worker.number,
                    pid=worker.pid,
                )
            if not alive:
                give_up(self.log, 0)

    def hurry(self) -> None:
        """Let no association end in its own time, and wait no longer for a disk that does not answer."""
        for worker in self._workers:
            worker.hurry()
        if self._reporter is not None:
            self._reporter.hurry()
        if self._ending is not None:
            stalled = max((load.stalled for load in self.loads.values()), default=0.0)
            self._ending.hasten(stalled, KILL_AFTER)

    # -- processes --

    def _spawn(self, worker: WorkerProcess) -> None:
        assert self._archive is not None
        # The lock, so that the archive is in use as long as a worker lives that has lost its parent.
        worker.spawn(
            len(self._workers), self._configuration.fileno(), self._counts.descriptor, self._archive.lock
        )

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
        self.restarts += 1
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
        self._door.look()

    def _ended(self, worker: WorkerProcess, how: str, left: list[Accepted]) -> None:
        self._door.ended(worker, left)
        if self._reporter is not None:
            self._reporter.freed(worker.pid)  # by its ID: the next one in its place may have begun already
        if self._stopping:
            if how != ORDERLY:
                self.has_given_up = True
                self.log.error("worker {number} {how}", number=worker.number, how=how)
            self._check_stopped()
            return
        self.log.error(
            "worker {number} {how}, and its associations with it; another one starts in {delay:g} s",
            number=worker.number,
            how=how,
            delay=self._replace_later(worker),
        )

    def _look(self) -> None:
        if self._reporter is not None:
            self._reporter.look()

    def _check_stopped(self) -> None:
        if not any(worker.is_alive for worker in self._workers):
            self._stopped.callback(None)

    @inlineCallbacks
    def _close(self) -> Generator[Deferred[Any], object, None]:
        """Close what is here, when the workers have ended."""
        yield self._stopped
        if self._ledger is not None:
            yield self._ledger.stop()
        if self._door.credentials is not None:
            self._door.credentials.close()
        self._configuration.close()
        os.close(self._counts.descriptor)
        if self._archive is not None:
            closing = Aside(self._reactor)
            yield closing.call(close, self.log, self._archive)
            yield closing.stop()


def _in_memory(name: str, value: object) -> IO[bytes]:
    """A file with *value*, without a name in any directory: only those that are given it have it."""
    file = os.fdopen(os.memfd_create(name), "wb", buffering=0)
    file.write(pickle.dumps(value))
    return file
