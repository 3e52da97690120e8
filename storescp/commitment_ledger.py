"""Storage commitment in one process: what is owed, and what can be said of it, without making the reactor wait.

What belongs here: the two threads that work for it, one with the database of what is owed, one that judges; and what
the log is told.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from storescp.access import Rules
from storescp.commitment_check import Judge
from storescp.commitment_data import Report, decode_request, encode_report
from storescp.commitment_store import NAME, CommitmentStore, CommitmentsUnavailable, Owed, Taken
from storescp.config import Config, Sync
from storescp.counting import Count
from storescp.index import Index, IndexUnavailable
from storescp.storage_directory import PRIVATE_DIRECTORY
from storescp.worker import Aside

#: The longest time between two attempts, in seconds.
LONGEST_DELAY = 3600.0


class Encoded(NamedTuple):
    """A report, and its data set."""

    report: Report
    data_set: bytes


class MakeAside(Protocol):
    """Makes what calls functions on a thread."""

    def __call__(self, reactor: IReactorFromThreads) -> Aside: ...


class Ledger:
    """The transactions that the process *holder* (its ID) takes, and reports; all of the server's are in one place.

    *owed* is called when there may be something that another process has to report. *config* must give storage
    commitment, and *root* is where files are.
    """

    log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: IReactorFromThreads,
        root: str,
        holder: int,
        owed: Callable[[], object],
        *,
        wall_clock: Callable[[], float] = time.time,
        aside: MakeAside = Aside,
    ) -> None:
        assert config.commitment is not None and config.index_db is not None
        self.settings = config.commitment
        self.rules = Rules(config.access.callers)
        self.wall_clock = wall_clock
        self.store = CommitmentStore(os.path.join(root, PRIVATE_DIRECTORY, NAME))
        self._config = config
        self._root = root
        self._index_db = config.index_db
        self._holder = holder
        self._owed = owed
        self._judge: Judge | None = None
        self._books = aside(reactor)
        self._judgement = aside(reactor)
        self.call = self._books.call

    def use(self, config: Config) -> None:
        """Do as *config* says from now on."""
        if config.commitment is not None:  # it is given, or not, as long as the server runs
            self.settings = config.commitment
            self.rules = Rules(config.access.callers)
            self._config = config
            if self._judge is not None:
                self._judge.takes = config.accept.takes

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[None], object, None]:
        """End the threads when they have done what they were given, and close the databases."""
        yield self._judgement.stop()
        yield self._books.stop()
        self.store.close()
        if self._judge is not None:
            try:
                self._judge.close()
            except IndexUnavailable as error:
                self.log.error("cannot close: {error}", error=error)

    def take(
        self, data: bytes, transfer_syntax_uid: str, calling: str, called: str
    ) -> Deferred[tuple[Taken, Owed | None]]:
        """Owe a report on the request that *data* has. Fails with BadRequest and CommitmentsUnavailable."""
        return self.call(self._take, data, transfer_syntax_uid, calling, called)

    def encoded(self, owed: Owed, transfer_syntax_uid: str) -> Deferred[Encoded]:
        """What is to be reported at this moment. Fails with IndexUnavailable."""
        return self._judgement.call(self._encoded, owed, transfer_syntax_uid)

    def confirmed(self, owed: Owed, report: Report, how: str, log: Logger | None = None) -> Deferred[None]:
        """The requester has the report, which *log* is told, by default ours."""
        (log or self.log).info(
            "storage commitment: reported to {calling} {how}: {committed} of {count:instance} committed{failed}",
            calling=owed.calling_ae_title,
            how=how,
            committed=len(report.committed),
            count=Count(len(owed.request.references)),
            failed=f", {report.reasons}" if report.failed else "",
        )
        return self.call(self.store.settle, owed.id).addErrback(self.failed)

    def let_go(self, owed: Owed) -> Deferred[None]:
        """It could not be reported on the requester's association: somebody else has to."""
        done = self.call(self.store.let_go, owed.id, self.wall_clock())
        return done.addCallbacks(self._tell, self.failed)

    def delay(self, owed: Owed) -> float:
        """Seconds from an attempt that has failed to the next."""
        return min(self.settings.retry * 2.0 ** min(owed.attempts, 20), LONGEST_DELAY)

    def postpone(self, owed: Owed) -> Deferred[None]:
        """An attempt to report it has failed."""
        due_at = self.wall_clock() + self.delay(owed)
        done = self.call(self.store.let_go, owed.id, due_at, failed=True)
        return done.addErrback(self.failed)

    def failed(self, failure: Failure) -> None:
        """Something about the books could not be done; a restart finds it as it was."""
        if failure.check(CommitmentsUnavailable, IndexUnavailable):
            self.log.error("{error}", error=failure.value)
        else:
            self.log.failure("storage commitment: internal error", failure)

    def _tell(self, _: None) -> None:
        self._owed()

    # -- on the threads --

    def _take(
        self, data: bytes, transfer_syntax_uid: str, calling: str, called: str
    ) -> tuple[Taken, Owed | None]:
        request = decode_request(data, transfer_syntax_uid, self.settings.max_items)
        return self.store.take(
            request,
            calling,
            called,
            now=self.wall_clock(),
            holder=self._holder,
            most=self.settings.max_owed,
        )

    def _encoded(self, owed: Owed, transfer_syntax_uid: str) -> Encoded:
        if self._judge is None:
            if not os.path.exists(self._index_db):  # which must not be made anew: its rows would be missing
                raise IndexUnavailable(f"index {self._index_db}: no such file")
            self._judge = Judge(
                self._root,
                Index(self._index_db),
                self._config.accept.takes,
                is_synced=self._config.sync is Sync.ALWAYS,
            )
        caller = self.rules.caller(owed.calling_ae_title)
        report = self._judge.report(owed.request, caller.directory if caller is not None else "")
        return Encoded(report, encode_report(report, transfer_syntax_uid))
