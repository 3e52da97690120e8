"""The server as a Twisted service: start, and the ordered stop.

What belongs here: which part comes first. Nothing is opened before twistd has forked and dropped its
privileges, but for the ports, which may need them.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Generator
from typing import Any

from twisted.application.service import IServiceCollection, Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from storescp import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, __version__
from storescp.archive import Archive, CannotOpen
from storescp.config import Config, Sync
from storescp.index import IndexUnavailable
from storescp.negotiation import Policy
from storescp.protocol import AssociationFactory, AssociationProtocol, Limits
from storescp.recovery import Recovered
from storescp.scp import StorageSCP
from storescp.sop_classes import TRANSFER_SYNTAXES, VERIFICATION
from storescp.space import FreeSpace
from storescp.statistics import Statistics
from storescp.store import InstanceStore

#: Threads that write. Where none waits for the disk one does more than two that contend for the interpreter; where
#: each does, several share what a flush of the disk costs.
WRITER_THREADS = {Sync.NEVER: 1, Sync.ALWAYS: 8}


class CannotStart(Exception):
    """What keeps the server from starting; str() is one line for the operator."""


class StoreSCPService(Service):
    """The whole server. Making and starting it raise CannotStart."""

    name = "storescp"
    log = Logger()

    def __init__(self, config: Config, reactor: ReactorBase) -> None:
        self.config = config
        self.log_observer: ILogObserver | None = None
        self.statistics = Statistics()
        self.factory = AssociationFactory(
            Policy(
                called_ae_title=config.ae_title if config.check_called_ae else None,
                abstract_syntaxes=config.accept | {VERIFICATION},
                transfer_syntaxes=TRANSFER_SYNTAXES.keys(),
                prefer=config.prefer,
                maximum_length=config.max_pdu,
                implementation_class_uid=IMPLEMENTATION_CLASS_UID,
                implementation_version_name=IMPLEMENTATION_VERSION_NAME,
            ),
            Limits(
                max_assoc=config.max_assoc,
                max_pending=config.max_pending,
                timeout=config.timeout,
                artim_timeout=config.artim_timeout,
            ),
            self._make_user,
            reactor,
            self.statistics,
        )
        self._reactor = reactor
        self._endpoints: list[tuple[str, IStreamServerEndpoint]] = []
        for text in config.listen:
            try:
                self._endpoints.append((text, serverFromString(reactor, text)))
            except Exception as error:  # noqa: BLE001 - plugins of Twisted read it, and raise anything
                raise CannotStart(f"--listen: expected a Twisted endpoint, got {text!r}: {error}") from None
        self._ports: list[IListeningPort] = []
        self._archive: Archive | None = None
        self._store: InstanceStore | None = None
        self._began = 0.0

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Give the application, which is what twistd hands us to, its log observer too."""
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
        if self.log_observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.log_observer)

    # -- start --

    def privilegedStartService(self) -> None:
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        failures: list[Failure] = []
        for text, endpoint in self._endpoints:
            endpoint.listen(self.factory).addCallbacks(self._ports.append, failures.append)
            if failures:
                error = failures[0].value
                reason = error.socketError if isinstance(error, CannotListenError) else error
                raise CannotStart(f"cannot listen on {text}: {reason}")

    def startService(self) -> None:
        if not self._ports:
            self.privilegedStartService()  # nobody needed privileges
        super().startService()  # type: ignore[no-untyped-call]
        _raise_descriptor_limit()
        config = self.config
        try:
            self._archive = archive = Archive(config)
        except CannotOpen as error:
            raise CannotStart(str(error)) from None
        for recovered in archive.recovered:
            self._report(recovered)
        self._store = InstanceStore(
            self._reactor,
            self._reactor,
            archive.directory,
            archive.committer,
            naming=config.naming,
            threads=WRITER_THREADS[config.sync],
            space=FreeSpace(archive.directory.root, config.min_free, self._space_changed),
            digest=config.digest,
        )
        self._store.worker.start()
        self._began = time.monotonic()
        # Whoever reads "listening" may stop us at once: not before the reactor runs and takes signals.
        self._reactor.callWhenRunning(self._banner)

    def _make_user(self, association: AssociationProtocol) -> StorageSCP:
        assert self._store is not None
        return StorageSCP(
            association, self._store, self.statistics, log_patient_data=self.config.log_patient_data
        )

    def _report(self, recovered: Recovered) -> None:
        """What a start after a crash has found."""
        if recovered.entered:
            self.log.warn(
                "recovery: {count} instances were stored but not in the index, and are now",
                count=len(recovered.entered),
            )
        for path in recovered.without_file:
            self.log.error("recovery: {path} is in the index, but there is no such file", path=path)
        for path, why in recovered.unreadable:
            self.log.error("recovery: {path} is no instance: {why}", path=path, why=why)

    def _space_changed(self, enough: bool, free: int) -> None:
        """The free space has crossed its limit. Called by a worker's thread."""
        if enough:
            self.log.warn("enough space again ({free} bytes free): images are taken", free=free)
        else:
            self.log.error(
                "less than {limit} free ({free} bytes): no images are taken",
                limit=str(self.config.min_free),
                free=free,
            )

    def _banner(self) -> None:
        config = self.config
        self.log.info(
            "storescp {version}: AE title {ae_title}, {called} called titles; storing {count} SOP classes"
            " ({accept}) in {directory}; index {index}",
            version=__version__,
            ae_title=config.ae_title,
            called="other" if not config.check_called_ae else "no other",
            count=len(config.accept),
            accept=", ".join(config.accept_names),
            directory=str(config.storage_dir),
            index=config.index_db or "none",
        )
        self.log.info(
            "naming {naming}, duplicates {duplicate}, sync {sync}; at most {max_assoc} associations,"
            " {max_pending} connections without one; idle timeout {timeout:g} s, ARTIM {artim:g} s;"
            " PDUs up to {max_pdu} bytes",
            naming=config.naming.value,
            duplicate=config.duplicate.value,
            sync=config.sync.value,
            max_assoc=config.max_assoc,
            max_pending=config.max_pending,
            timeout=config.timeout,
            artim=config.artim_timeout,
            max_pdu=config.max_pdu or "unlimited",
        )
        for port in self._ports:
            self.log.info("listening on {address}", address=_address(port))

    # -- stop --

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], object, None]:
        """Stop listening, let associations end, drain the writes, close the index: in that order."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.log.info("stopping: {count} associations open", count=len(self.factory.associations))
        ports, self._ports = self._ports, []
        yield gatherResults([maybeDeferred(port.stopListening) for port in ports])
        yield self.factory.drain(self.config.stop_timeout)
        if self._store is not None:
            yield self._store.worker.drained()
            self._store.stop()
        if self._archive is not None:
            try:
                self._archive.close()
            except (OSError, IndexUnavailable) as error:
                self.log.error("cannot close the archive: {error}", error=error)
        self._farewell()

    def _farewell(self) -> None:
        statistics = self.statistics
        self.log.info(
            "stopped after {uptime:.0f} s: {associations} associations ({rejected} rejected, {aborted} aborted),"
            " {messages} messages, {stored} instances stored ({bytes_stored} bytes), {failed} failed,"
            " {bytes_received} bytes received",
            uptime=time.monotonic() - self._began,
            associations=statistics.associations,
            rejected=statistics.rejected,
            aborted=statistics.aborted,
            messages=statistics.messages,
            stored=statistics.instances_stored,
            bytes_stored=statistics.bytes_stored,
            failed=statistics.instances_failed,
            bytes_received=statistics.bytes_received,
        )

    def take_signals(self) -> None:
        """Have SIGINT and SIGTERM stop the server and the process end with 0; a second one hurries.

        Without this twistd ends by the very signal, which a supervisor takes for a crash.
        """

        def stop(number: int, frame: object) -> None:
            self._reactor.callFromThread(self._stop)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)

    def _stop(self) -> None:
        if self.running:
            self._reactor.stop()
        else:
            self.factory.abort_all()


def _raise_descriptor_limit() -> None:
    """Have as many descriptors as we may: an association takes three, and systems give 1024 to who does not ask."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _address(port: IListeningPort) -> str:
    host = port.getHost()
    if isinstance(host, IPv4Address | IPv6Address):
        return f"{host.host} port {host.port}"
    return str(getattr(host, "name", host))
