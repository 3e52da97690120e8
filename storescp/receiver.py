"""What one process does: takes associations, and stores what they send."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger

from storescp import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from storescp.access import Access
from storescp.archive import CannotOpen, ServerArchive
from storescp.authentication import Authenticator
from storescp.commitment import CommitmentSCP
from storescp.commitment_ledger import Ledger
from storescp.commitment_store import CommitmentsUnavailable
from storescp.config import Config, ConfigError
from storescp.counting import Count
from storescp.ending import PATIENCE, Ending
from storescp.index import IndexUnavailable
from storescp.limits import Admission, Limits
from storescp.logs import association_ids
from storescp.measurements import Duration, Measurements, Recorder
from storescp.negotiation import Policy
from storescp.protocol import AssociationFactory, AssociationProtocol
from storescp.reporter import ClientTLS, Reporter
from storescp.scp import StorageSCP
from storescp.sop_classes import STORAGE_COMMITMENT, TRANSFER_SYNTAXES, VERIFICATION
from storescp.space import FreeSpace, size_text
from storescp.statistics import Load, Occupancy, Statistics
from storescp.store import InstanceStore
from storescp.transports import keep_buffers
from storescp.worker import Aside

if TYPE_CHECKING:
    from storescp.audit import Audit


class Receiver:
    """The associations that connections made by ``factory`` bring, and the archive behind them.

    *statistics*, *occupancy*, *admission* and *recorder* may be those of one process of several; *owed* is called when
    another one has to report storage commitment. *client_tls* is that of the reports.
    """

    log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: ReactorBase,
        statistics: Statistics | None = None,
        occupancy: Occupancy | None = None,
        admission: Admission | None = None,
        recorder: Recorder | None = None,
        *,
        owed: Callable[[], object] | None = None,
        client_tls: ClientTLS | None = None,
    ) -> None:
        self.config = config
        self.restarts = 0  # of workers, which there are none
        self.measurements: Measurements | None = None  # where they are not those of several processes
        if config.http is not None and recorder is None:
            self.measurements = Measurements.of_one_process()
            recorder = self.measurements.recorder()
        self._recorder = recorder
        self.statistics = statistics if statistics is not None else Statistics()
        policy = _policy(config)
        self.factory = AssociationFactory(
            policy,
            _limits(config),
            self._make_user,
            reactor,
            self.statistics,
            occupancy,
            _access(config, policy),
            admission,
        )
        self.factory.recorder = self._recorder
        self._reactor = reactor
        self._owed = owed
        self._client_tls = client_tls
        self._archive: ServerArchive | None = None
        self._store: InstanceStore | None = None
        self._ledger: Ledger | None = None
        self._reporter: Reporter | None = None
        self._audit: Audit | None = None
        self._users = Aside(reactor)  # never ended: nobody wants to know any more when the rest has
        self._ending: Ending | None = None
        self._closing_since: float | None = None

    @property
    def associations(self) -> int:
        """Associations at this moment."""
        return len(self.factory.associations)

    @property
    def is_ready(self) -> bool:
        """Whether somebody serves associations."""
        return self._store is not None

    @property
    def loads(self) -> dict[int, Load]:
        """By the number of the process, of which there is one."""
        factory, store, archive = self.factory, self._store, self._archive
        return {
            0: Load(
                time.monotonic(),
                len(factory.associations),
                len(factory.pending),
                factory.in_flight.total,
                store.worker.outstanding if store is not None else 0,
                store.worker.stalled if store is not None else 0.0,
                archive.committer.unsettled if archive is not None else 0,
                time.process_time(),
                _resident(),
            )
        }

    def report_to(self, audit: Audit) -> None:
        """Have *audit* report what happens."""
        self._audit = self.factory.audit = audit

    def start(self, worker: int | None = None) -> None:
        """Open the archive: as the server, or as its *worker* of this number. Raises CannotOpen."""
        keep_buffers()
        config = self.config
        if worker is not None:
            self.factory.association_ids = association_ids(worker)
        try:
            self.factory.authenticator = authenticator(config, self._users)
        except ConfigError as error:
            raise CannotOpen(str(error)) from None
        self._archive = archive = ServerArchive(config, worker)
        report(self.log, archive)
        if self._recorder is not None:
            archive.committer.syncing = self._recorder.stopwatch(Duration.SYNC)
            archive.committer.indexing = self._recorder.stopwatch(Duration.INDEX)
        if config.commitment is not None:
            owed = self._owed or self._look
            self._ledger = Ledger(config, self._reactor, archive.directory.root, os.getpid(), owed)
            if self._owed is None:
                self._reporter = start_reporter(self._ledger, self._reactor, self._client_tls)
        space = FreeSpace(archive.directory.root, config.min_free, self._space_found)
        with contextlib.suppress(OSError):  # nobody waits for the first image to learn that it has no room
            space.check()
        self._store = InstanceStore(
            self._reactor,
            self._reactor,
            archive.directory,
            archive.committer,
            naming=config.naming,
            space=space,
            digest=config.digest,
        )
        self._store.worker.start()

    def use(self, config: Config) -> None:
        """Do as *config* says, as far as that goes while running, with who comes from now on.

        Of the associations that are there, each keeps what it was admitted under. Raises ConfigError, and changes
        nothing then.
        """
        users = authenticator(config, self._users)
        self.config = config
        policy = _policy(config)
        self.factory.use(policy, _limits(config), _access(config, policy), users)
        if self._ledger is not None:
            self._ledger.use(config)
        if self._reporter is not None:
            self._reporter.hasten()
        if self._store is not None:
            self._store.digest = config.digest
            if self._store.space is not None:
                self._store.space.set_limit(config.min_free)

    @property
    def has_given_up(self) -> bool:
        """Whether it has stopped without the disk: threads that wait for that are still there."""
        return self._ending is not None and self._ending.in_vain

    def stop(self) -> Deferred[None]:
        """Let associations end, drain the writes, close the archive: in that order, within some time."""
        self._ending = Ending(self._reactor, self._stop(), self.config.stop_timeout + PATIENCE)
        return self._ending.over.addCallback(self._stopped)

    @inlineCallbacks
    def _stop(self) -> Generator[Deferred[Any], object, None]:
        reporting = self._reporter.stop(self.config.stop_timeout) if self._reporter is not None else None
        yield self.factory.drain(self.config.stop_timeout)
        if reporting is not None:
            yield reporting
        if self._ledger is not None:
            yield self._ledger.stop()
        if self._store is not None:
            yield self._store.worker.drained()
            self._store.worker.stop()
        closing = Aside(self._reactor)
        self._closing_since = self._reactor.seconds()
        yield closing.call(self._close)
        yield closing.stop()

    def _close(self) -> None:
        """On a thread: all this may wait for the disk."""
        if self._store is not None:
            self._store.stop()
        if self._archive is not None:
            close(self.log, self._archive)

    def _stopped(self, _: None) -> None:
        if self.has_given_up:
            give_up(self.log, self._store.worker.outstanding if self._store is not None else 0)

    def hurry(self) -> None:
        """Let no association end in its own time, and wait no longer for a disk that does not answer."""
        self.factory.abort_all()
        if self._reporter is not None:
            self._reporter.hurry()
        if self._ending is not None and self._store is not None:
            since = self._closing_since
            stalled = self._store.worker.stalled if since is None else self._reactor.seconds() - since
            self._ending.hasten(stalled)

    def _look(self) -> None:
        if self._reporter is not None:
            self._reporter.look()

    def _make_user(self, association: AssociationProtocol) -> StorageSCP:
        assert self._store is not None
        recorder, title = self._recorder, association.calling_ae_title
        return StorageSCP(
            association,
            self._store,
            self.statistics,
            log_patient_data=self.config.log_patient_data,
            max_object_size=self.config.max_object_size,
            duplicate=self.config.duplicate,
            recorder=recorder.sender(title, is_known=self.factory.access.is_known(title))
            if recorder is not None
            else None,
            commitment=self._make_commitment if self._ledger is not None else None,
            transfers=self._audit.transfers(association, self.config.duplicate) if self._audit else None,
        )

    def _make_commitment(self, user: StorageSCP) -> CommitmentSCP:
        assert self._ledger is not None
        return CommitmentSCP(user, self._ledger, self._reactor)

    def _space_found(self, enough: bool, free: int) -> None:
        """Somebody has looked at the free space. Called by a worker's thread."""
        if not self.factory.occupancy.found_space(enough):
            return
        if enough:
            self.log.warn(
                "enough space again ({left} free): images are taken", left=size_text(free), free=free
            )
        else:
            self.log.error(
                "less than {limit} free ({left}): no images are taken",
                limit=str(self.config.min_free),
                left=size_text(free),
                free=free,
            )


def authenticator(config: Config, aside: Aside) -> Authenticator | None:
    """What checks users, if anything does, by *aside* where that blocks. Raises ConfigError."""
    return Authenticator(config.access, aside) if config.access.checks_users else None


def _policy(config: Config) -> Policy:
    return Policy(
        called_ae_titles=frozenset((config.ae_title,)) if config.check_called_ae else None,
        abstract_syntaxes=config.accept.uids | services(config),
        accept=config.accept,
        transfer_syntaxes=TRANSFER_SYNTAXES.keys(),
        prefer=config.prefer,
        prefer_for=config.prefer_for,
        maximum_length=config.max_pdu,
        implementation_class_uid=IMPLEMENTATION_CLASS_UID,
        implementation_version_name=IMPLEMENTATION_VERSION_NAME,
        operations_window=config.async_window,
    )


def _limits(config: Config) -> Limits:
    return Limits(
        max_assoc=config.max_assoc,
        max_pending=config.max_pending,
        timeout=config.timeout,
        artim_timeout=config.artim_timeout,
        auth_timeout=config.access.auth_timeout,
        max_per_address=config.max_per_address,
        max_rate=config.max_rate,
        min_rate=config.min_rate,
        progress_timeout=config.progress_timeout,
        max_in_flight=-(-config.max_in_flight // max(config.workers, 1)),  # each its share
    )


def _access(config: Config, policy: Policy) -> Access:
    return Access(config.access.callers, policy, user_required=config.access.auth_required)


def services(config: Config) -> frozenset[str]:
    """The SOP classes of the services beside storage."""
    return frozenset((VERIFICATION, STORAGE_COMMITMENT) if config.commitment is not None else (VERIFICATION,))


def start_reporter(ledger: Ledger, reactor: ReactorBase, client_tls: ClientTLS | None) -> Reporter:
    """Have reported what is owed, from the last run of the server on. Raises CannotOpen."""
    reporter = Reporter(ledger, reactor, client_tls)
    try:
        reporter.start()
    except CommitmentsUnavailable as error:
        raise CannotOpen(str(error)) from None
    return reporter


def _resident() -> int:
    """See proc_pid_statm(5). 0 where it cannot be read, as no more files can be opened: whoever asks must go on."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def report(log: Logger, archive: ServerArchive) -> None:
    """Log what opening *archive* after a crash has found."""
    if archive.restored:
        log.warn(
            "recovery: {count:file was|files were} not on the disk yet, and put back from the journal",
            count=Count(len(archive.restored)),
        )
    if archive.index_is_behind:
        log.warn(
            "the index is new, and knows nothing of the files that are there: storescp reindex enters them"
        )
    for recovered in archive.recovered:
        if recovered.entered:
            log.warn(
                "recovery: {count:instance was|instances were} stored but not in the index: entered now",
                count=Count(len(recovered.entered)),
            )
        for path in recovered.without_file:
            log.error("recovery: {path} is in the index, but there is no such file", path=path)
        for path, why in recovered.unreadable:
            log.error("recovery: {path} is no instance: {why}", path=path, why=why)


def give_up(log: Logger, count: int) -> None:
    """Log that the server stops before *count* images have reached the disk, none of which is acknowledged."""
    log.critical(
        "the disk or the index does not answer: the server stops without it; images not acknowledged: {count}",
        count=count,
    )


def close(log: Logger, archive: ServerArchive) -> None:
    """Close *archive*, as far as that goes."""
    try:
        archive.close()
    except (OSError, IndexUnavailable) as error:
        log.error("cannot close the archive: {error}", error=error)
