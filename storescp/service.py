"""The server as a Twisted service: start, and the ordered stop.

What belongs here: which part comes first. Nothing is opened before twistd has forked and dropped its
privileges, but for the ports, which may need them.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from twisted.application.service import IServiceCollection, Service
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLClientConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from storescp.archive import CannotOpen
from storescp.banner import banner, farewell
from storescp.config import Config, ConfigError
from storescp.counting import Count
from storescp.log_lines import log_again
from storescp.log_settings import LogLevel, LogLevels
from storescp.logs import LineObserver
from storescp.readiness import Phase, Readiness
from storescp.receiver import Receiver, authenticator
from storescp.reloading import Reloading
from storescp.space import INTERVAL
from storescp.supervisor import Supervisor
from storescp.systemd import Systemd
from storescp.tls_settings import TLSSettings, beneath, is_secure
from storescp.worker import Aside, Periodic

if TYPE_CHECKING:
    from storescp.audit import Audit
    from storescp.tls_context import TLS


class CannotStart(Exception):
    """What keeps the server from starting; str() is one line for the operator."""


class StoreSCPService(Service):
    """The whole server. Making and starting it raise CannotStart. *reloading* reads the settings again."""

    name = "storescp"
    log = Logger()

    def __init__(self, config: Config, reactor: ReactorBase, reloading: Reloading | None = None) -> None:
        self.config = config
        self._reloading = reloading
        self.log_observer: ILogObserver | None = None
        self._reactor = reactor
        self._is_to_stop = False
        self._endpoints: list[tuple[str, IStreamServerEndpoint]] = []
        self._endpoints += ((text, endpoint_of(text, reactor)) for text in config.listen)
        self._ports: list[tuple[IListeningPort, bool]] = []  # whether with TLS
        self._crew: Receiver | Supervisor
        self._factory: Factory
        if config.workers > 1:
            self._crew = Supervisor(config, reactor, self._relay, self._client_tls)
            self._factory = Factory()  # it makes nothing: the workers' do
            self._factory.noisy = False
        else:
            self._crew = Receiver(config, reactor, client_tls=self._client_tls)
            self._factory = self._crew.factory
        self._secure_factory: IProtocolFactory = self._factory
        self._tls: TLS | None = None
        if config.tls is not None:
            try:
                from storescp.tls import SecureFactory
                from storescp.tls_context import TLS
            except ImportError as error:
                raise CannotStart(
                    f"TLS: expected the packages that pip install 'storescp[tls]' brings, got: {error}"
                ) from None
            self._tls = TLS(config.tls)
            if isinstance(self._crew, Receiver):
                self._secure_factory = SecureFactory(self._tls, self._crew.factory, reactor)
        self.readiness = Readiness(self._crew)
        self._systemd = Systemd(os.environ, reactor, self.readiness.faults, self._status)
        self._web: IStreamServerEndpoint | None = None
        self._web_factory: IProtocolFactory | None = None
        self._web_port: IListeningPort | None = None
        if config.http is not None:
            self._web = endpoint_of(config.http, reactor, "--http")
            try:
                from storescp.web import site
            except ImportError as error:
                raise CannotStart(
                    f"--http: expected the packages that pip install 'storescp[web]' brings, got: {error}"
                ) from None
            self._web_factory = site(self._crew, self.readiness, reactor)
        self._watch: Periodic | None = None
        self._audit: Audit | None = None
        self._began = 0.0

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Give the application, which is what twistd hands us to, its log observer too."""
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
        if self.log_observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.log_observer)

    # -- start --

    def privilegedStartService(self) -> None:
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        self._load_credentials()
        if self._reloading is not None:
            self._warn(self._reloading.warnings())
        for text, endpoint in self._endpoints:
            secure = is_secure(text)
            factory = self._secure_factory if secure else self._factory
            self._ports.append((_listen(text, endpoint, factory), secure))
        if self._web is not None and self._web_factory is not None:
            self._web_port = _listen(str(self.config.http), self._web, self._web_factory)

    def startService(self) -> None:
        if not self._ports:
            self.privilegedStartService()  # nobody needed privileges
        super().startService()  # type: ignore[no-untyped-call]
        _raise_descriptor_limit()
        self._start_audit()
        try:
            if isinstance(self._crew, Supervisor):
                self._crew.start([(self._listener(port), secure) for port, secure in self._ports])
            else:
                self._crew.start()
        except CannotOpen as error:
            raise CannotStart(self._placed(error)) from None
        if self._web is not None:
            self.readiness.watch.look()
            self._watch = Periodic(self.readiness.watch.look, INTERVAL)
        self._began = time.monotonic()
        if self._audit is not None:
            self._audit.started()
        # Whoever reads "listening" may stop us at once: not before the reactor runs and takes signals.
        self._reactor.callWhenRunning(self._running)

    def _start_audit(self) -> None:
        """Have events reported from now on, if anybody wants that. Raises CannotStart."""
        settings = self.config.logs.audit
        if settings is None:
            return
        try:
            from storescp.audit import Audit

            self._audit = Audit(settings, self.config.ae_title, self._reactor)
        except ImportError as error:
            raise CannotStart(
                f"--audit tls: expected the packages that pip install 'storescp[tls]' brings, got: {error}"
            ) from None
        except ValueError as error:
            raise CannotStart(self._placed(error)) from None
        self._audit.start()
        if isinstance(self._crew, Receiver):  # workers do it themselves
            self._crew.report_to(self._audit)

    def _load_credentials(self) -> None:
        """Read what TLS needs: as long as we may. Raises CannotStart."""
        if self.config.tls is None:
            return
        assert self._tls is not None
        self._tls.adopt(self._read_credentials(self.config.tls))
        if isinstance(self._crew, Supervisor):
            self._crew.use(self._tls.credentials)

    def _read_credentials(self, settings: TLSSettings) -> TLS:
        """Raises CannotStart."""
        from storescp.credentials import BadCredentials
        from storescp.tls_context import TLS

        tls = TLS(settings)
        try:
            warnings = tls.load()
        except BadCredentials as error:
            raise CannotStart(self._placed(error)) from None
        self._warn(warnings)
        return tls

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            self.log.warn("{warning}", warning=warning)

    def _placed(self, error: Exception) -> str:
        """What is wrong, and where it was given, if that is known."""
        return self._reloading.placed(str(error)) if self._reloading is not None else str(error)

    def reload(self) -> None:
        """Read the settings again, and do as they say as far as that goes; or change nothing, and say why."""
        if not self.running:
            return
        self._systemd.reloading()
        try:
            self._reload()
        finally:
            self._systemd.ready()

    def _reload(self) -> None:
        try:
            reading = self._reloading.read() if self._reloading is not None else None
            config = reading.config if reading is not None else self.config
            tls = self._read_credentials(config.tls) if config.tls is not None else None
            if isinstance(self._crew, Supervisor):
                # What the workers will make, and might not be able to.
                authenticator(config, Aside(self._reactor))
                self._crew.configure(config, tls.credentials if tls is not None else None)
            else:
                self._crew.use(config)
        except (ConfigError, CannotStart, OSError) as error:
            self.log.error("SIGHUP: nothing has changed: {error}", error=self._placed(error))
            return
        before, self.config = self.config, config
        if tls is not None and self._tls is not None:
            self._tls.adopt(tls)
        # What is said of it is said by the old level or by the new one.
        levels = before.logs.levels, config.logs.levels
        self._set_log_levels(min(levels, key=lambda one: list(LogLevel).index(one.of(self.log.namespace))))
        if tls is not None:
            self.log.info("TLS: files read again")
        if self._reloading is not None and reading is not None:
            self._reloading.take(reading)
            self._warn(self._reloading.warnings())
            for line in reading.changed:
                self.log.info("SIGHUP: {line}", line=line)
            for line in reading.waiting:
                self.log.warn("SIGHUP: needs a restart: {line}", line=line)
            self.log.info(
                "SIGHUP: settings read again: {changed} changed, {waiting:needs|need} a restart",
                changed=len(reading.changed),
                waiting=Count(len(reading.waiting)),
            )
        self._set_log_levels(config.logs.levels)

    def _set_log_levels(self, levels: LogLevels) -> None:
        if isinstance(self.log_observer, LineObserver):
            self.log_observer.set_levels(levels)

    def _client_tls(self) -> IOpenSSLClientConnectionCreator:
        """What makes connections to others, with our credentials."""
        assert self._tls is not None
        return self._tls.client()

    def _listener(self, port: IListeningPort) -> socket.socket:
        """The socket of *port*, which from now on accepts nothing itself."""
        listener = getattr(port, "socket", None)
        if getattr(port, "factory", None) is not self._factory or not isinstance(listener, socket.socket):
            raise CannotStart(
                f"--workers: expected 1 where others than tcp:, unix: and systemd: listen, got {self.config.workers}"
            )
        assert isinstance(port, FileDescriptor)
        port.stopReading()
        return listener

    def _relay(self, lines: str) -> None:
        """Workers have logged *lines*."""
        if not isinstance(self.log_observer, LineObserver):
            log_again(lines)
            return
        with contextlib.suppress(OSError):  # a log that cannot be written stops nobody, here as elsewhere
            self.log_observer.relay(lines)

    def _running(self) -> None:
        self.readiness.phase = Phase.RUNNING
        addresses = [_address(port) + ", TLS" * secure for port, secure in self._ports]
        banner(
            self.log, self.config, addresses, _address(self._web_port) if self._web_port is not None else ""
        )
        self._systemd.ready()

    # -- stop --

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], object, None]:
        """Stop listening, let associations end, drain the writes, close the index: in that order."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.readiness.phase = Phase.STOPPING
        self._systemd.stopping()
        self.log.info("stopping: {count:association} open", count=Count(self._crew.associations))
        ports, self._ports = self._ports, []
        yield gatherResults([maybeDeferred(port.stopListening) for port, _ in ports])
        yield self._crew.stop()
        farewell(self.log, self._crew.statistics, time.monotonic() - self._began)
        if self._audit is not None:
            self._audit.stopped()
            yield self._audit.stop()
        self._systemd.stopped()
        if self._web_port is not None:  # until now: it tells why nothing is taken
            yield maybeDeferred(self._web_port.stopListening)
        if self._watch is not None:
            self._watch.stop(wait=False)
        if self._crew.has_given_up:
            atexit.register(self._end_at_once)  # twistd knows no exit status but 0

    def _end_at_once(self) -> None:
        """With exit status 1; what belongs to threads that wait for a disk is not touched any more."""
        if isinstance(self.log_observer, LineObserver):
            self.log_observer.flush()
        os._exit(1)

    def _status(self) -> str:
        """For systemctl status."""
        statistics = self._crew.statistics
        return (
            f"{self.readiness.phase.value}: {Count(self._crew.associations):association},"
            f" {Count(statistics.instances_stored):instance} stored, {statistics.instances_failed} failed"
        )

    def take_signals(self) -> None:
        """Have SIGINT and SIGTERM stop the server and the process end with 0; a second one hurries.

        It ends with 1 when the disk does not answer, or a worker has not ended in good order.

        SIGHUP has the settings read again, with the files that they name, and ends nothing.

        Without this twistd ends by the very signal, which a supervisor takes for a crash.
        """

        def stop(number: int, frame: object) -> None:
            self._reactor.callFromThread(self._stop)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        signal.signal(signal.SIGHUP, lambda number, frame: self._reactor.callFromThread(self.reload))

    def _stop(self) -> None:
        if self.running and not self._is_to_stop:
            self._is_to_stop = True
            self._reactor.stop()
        else:
            self._reactor.callLater(0, self._crew.hurry)  # by then the stop has begun


def _reason(error: Exception, endpoint: str) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, PermissionError) and endpoint.startswith(("tcp", "tls")):
        return f"{reason} (ports below 1024 are for root, and for who has CAP_NET_BIND_SERVICE)"
    return reason


def _listen(text: str, endpoint: IStreamServerEndpoint, factory: IProtocolFactory) -> IListeningPort:
    """Listen on the *endpoint* that *text* says. Raises CannotStart."""
    failures: list[Failure] = []
    ports: list[IListeningPort] = []
    maybeDeferred(endpoint.listen, factory).addCallbacks(ports.append, failures.append)
    error = failures[0].value if failures else None
    if isinstance(error, CannotListenError):
        raise CannotStart(f"cannot listen on {text}: {_reason(error.socketError, text)}")
    if isinstance(error, OSError):
        raise CannotStart(f"cannot listen on {text}: {_reason(error, text)}")
    if not ports or not IListeningPort.providedBy(ports[0]):
        raise CannotStart(f"cannot listen on {text}: expected an endpoint that takes connections from now on")
    return ports[0]


def endpoint_of(text: str, reactor: object, option: str = "--listen") -> IStreamServerEndpoint:
    """The endpoint that a string describes. Raises CannotStart."""
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, beneath(text))
    except Exception as error:  # noqa: BLE001 - plugins of Twisted read it, and raise anything
        raise CannotStart(f"{option}: expected a Twisted endpoint, got {text!r}: {error}") from None
    return endpoint


def _raise_descriptor_limit() -> None:
    """Have as many descriptors as we may: an association takes three, and systems give 1024 to who does not ask."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _address(port: IListeningPort) -> str:
    host = port.getHost()
    if isinstance(host, IPv4Address | IPv6Address):
        return f"{host.host} port {host.port}"
    name = getattr(host, "name", None)
    return os.fsdecode(name) if name else str(host)
