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
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import IO, Any

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from storescp.archive import CannotOpen, ServerArchive
from storescp.commitment_ledger import Ledger
from storescp.commitment_store import REPORTER
from storescp.config import Config
from storescp.ending import PATIENCE, Ending
from storescp.limits import plain
from storescp.logs import Repeated
from storescp.measurements import Measurements
from storescp.reader import Reader
from storescp.receiver import close, give_up, report, start_reporter
from storescp.reporter import ClientTLS, Reporter
from storescp.shared import SharedAdmission, SharedCounts
from storescp.statistics import Load, Statistics
from storescp.worker import Aside
from storescp.worker_process import ORDERLY, Accepted, WorkerProcess

#: Connections that are accepted in one turn, from each port.
ACCEPTS = 64

#: Seconds without accepting when the system had no room for a connection.
PAUSE = 1.0

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
        self._admission = SharedAdmission(self._counts, config.max_per_address, config.max_rate)
        self._statistics = Statistics()
        self._repeated = Repeated(reactor)
        self._configuration = _in_memory("storescp-config", config)
        self._workers = [
            WorkerProcess(
                reactor,
                number,
                slot,
                relay=relay,
                ready=self._ready,
                counted=lambda _: make_room(self._workers, self.config.max_pending),
                ended=self._ended,
                owed=self._look,
            )
            for number, slot in enumerate(self._counts.slots)
        ]
        self._left: deque[Accepted] = deque()  # connections whose worker died before it took them
        self._listeners: list[Reader] = []
        self._credentials: IO[bytes] | None = None
        self._pause: IDelayedCall | None = None
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
        total.connections += self._statistics.connections
        total.refused += self._statistics.refused
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
        self._listeners = [
            Reader(self._reactor, listener, partial(self._accept, listener, secure))
            for listener, secure in listeners
        ]
        self._set_accepting()

    def use(self, credentials: object) -> None:
        """Have the workers speak TLS with *credentials*, from the next connection on. Raises OSError."""
        before, self._credentials = self._credentials, _in_memory("storescp-credentials", credentials)
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
        self._admission.limit(config.max_per_address, config.max_rate)
        if self._ledger is not None:
            self._ledger.use(config)
        if self._reporter is not None:
            self._reporter.hasten()
        for worker in self._workers:
            worker.configure(self._configuration)
        make_room(self._workers, config.max_pending)

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[Any], object, None]:
        """Have the workers stop in good order, and close the archive when they have ended: within some time."""
        self._stopping = True
        self._set_accepting()
        self._close_left()
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

    # -- connections --

    def _set_accepting(self) -> None:
        """Accept as long as somebody can take connections: others wait with the kernel."""
        for listener in self._listeners:
            if not self._stopping and self._pause is None and any(w.is_ready for w in self._workers):
                listener.start()
            else:
                listener.stop()

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
                self._set_accepting()
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
            self._statistics.connections += 1
            self._statistics.refused += 1
            self._repeated.warn(f"refused {host}", self.log, "{host} refused: {why}", host=host, why=refusal)
            return False
        if not self._hand_over(accepted):
            self.log.error("no worker takes a connection: it is closed")
            return False
        return True

    def _resume(self) -> None:
        self._pause = None
        self._set_accepting()

    def _hand_over(self, accepted: Accepted) -> bool:
        number = self._admission.number(accepted.host)
        text = f"{number} {accepted.host}" if number else ""
        worker = hand_over(accepted, self._workers, self.config.max_pending, self._credentials, text)
        if worker is not None:
            self._admission.given(worker.number, number)
        return worker is not None

    def _hand_over_left(self) -> None:
        while self._left and self._hand_over(self._left[0]):
            self._left.popleft()

    def _close_left(self) -> None:
        while self._left:
            self._left.popleft().connection.close()

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
        self._hand_over_left()
        self._set_accepting()

    def _ended(self, worker: WorkerProcess, how: str, left: list[Accepted]) -> None:
        self._admission.ended(worker.number)
        if self._reporter is not None:
            self._reporter.freed(worker.pid)  # by its ID: the next one in its place may have begun already
        self._left += left
        if self._stopping:
            self._close_left()
            if how != ORDERLY:
                self.has_given_up = True
                self.log.error("worker {number} {how}", number=worker.number, how=how)
            self._check_stopped()
            return
        self._hand_over_left()
        self._set_accepting()
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
        if self._pause is not None:
            self._pause.cancel()
        if self._credentials is not None:
            self._credentials.close()
        self._repeated.stop()
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
