"""DICOM associations on Twisted transports: bytes, timers, limits, and the ordered end.

What belongs here: the thin adapter between a transport and :class:`~storescp.upper_layer.UpperLayer`. What
messages mean is the business of the association's user (:mod:`storescp.scp`).
"""

from __future__ import annotations

import fcntl
import socket
import termios
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IPushProducer,
    ISystemHandle,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import LogEvent
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from storescp.access import ANYONE, Admitted, Refused, user_refused, user_unchecked
from storescp.certificates import PeerCertificate
from storescp.connections import Connections
from storescp.extended_negotiation import operations_window
from storescp.interfaces import IAssociation, IAssociationUser, Unauthorized
from storescp.logs import AssociationLogger, info_emitter
from storescp.negotiation import AcceptedContext, accepted_contexts, refusals
from storescp.pdu import AAssociateRQ, Fragment, ProtocolViolation
from storescp.upper_layer import (
    AbortIndication,
    AssociateIndication,
    Indication,
    ReleaseIndication,
    State,
    UpperLayer,
)

#: What one read takes at most. Measured: 64 KiB and 1 MiB are both slower.
READ_SIZE = 256 * 1024

#: Bytes that one association may have waiting for storage before its transport is paused, and where it goes on.
HIGH_WATER = 4 * 1024 * 1024
LOW_WATER = 1024 * 1024

#: Seconds that a peer has to take our answers, where no option says so.
WRITE_TIMEOUT = 300.0

#: Seconds that a peer has to take our last bytes and close, before the connection is cut.
CLOSE_TIMEOUT = 10.0


class IConnection(ITCPTransport, ISystemHandle, IPushProducer, IConsumer):
    """What Twisted's stream transports offer, all in one."""


@implementer(IAssociation, IPushProducer)
class AssociationProtocol(Protocol):
    """One connection of a peer that wants to send instances."""

    log = AssociationLogger()
    transport: IConnection | None

    def __init__(self, factory: AssociationFactory, address: str, host: str = "") -> None:
        self.parent = factory
        self.address = address
        self.host = host
        """The peer's IP address; empty where there is none."""
        self.association_id = next(factory.association_ids)
        self.caller = ANYONE
        self.calling_ae_title = ""
        self.called_ae_title = ""
        self.user = ""
        """Who has been authenticated."""
        #: What a peer has shown, and TLS has verified.
        self.peer_certificate: PeerCertificate | None = None
        self.contexts: dict[int, AcceptedContext] = {}
        self.operations_window = 1
        self._upper_layer = UpperLayer(factory.policy.maximum_length)
        self._user: IAssociationUser | None = None
        self._limits = factory.limits  # of its time: new settings are for those who come
        self._clock = factory.clock
        self._began = self._last_heard = self._clock.seconds()
        self._artim: IDelayedCall | None = None
        self._idle: IDelayedCall | None = None
        self._closing: IDelayedCall | None = None
        self._checking: Deferred[Any] | None = None  # who the user is
        self._unread: IDelayedCall | None = None  # since when the peer does not read what we send
        self._progress: IDelayedCall | None = None
        self._received = 0
        # What is being judged for its progress: since when, what had been received then, for how long we have not read.
        self._incomplete: object = None
        self._judged_from, self._judged_received, self._not_read = 0.0, 0, 0.0
        self._paused_at: float | None = None
        self._held = 0
        self._in_flight = factory.in_flight
        self._waits_for_storage = False
        self._waits_for_answers = False
        self._releasing = False
        self._connected = False
        self._socket: socket.socket | None = None
        # A descriptor of our own, that no other thread can find closed, or reused, while it sends.
        self._direct: socket.socket | None = None
        self._sending = threading.Lock()
        self._rest = b""  # of what another thread could not send to its end
        self._acknowledge: Callable[[], None] | None = None

    # -- IProtocol, IPushProducer: the transport's side --

    def connectionMade(self) -> None:
        self._connected = True
        assert self.transport is not None
        bottom = _bottom(self.transport)
        if isinstance(bottom, Connection):
            bottom.bufferSize = READ_SIZE
        handle = bottom.getHandle()
        if isinstance(handle, socket.socket) and handle.family in (socket.AF_INET, socket.AF_INET6):
            if bottom is self.transport:  # what goes into TLS must not go past it
                self._socket = handle
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
            # Senders that write a PDU in two pieces with Nagle's algorithm on (DCMTK, Orthanc) wait with the
            # second one for our ACK, which the kernel delays by 40 ms unless it is told not to, again and again.
            # That costs a packet: no need where a response will take the ACK along.
            self._acknowledge = partial(handle.setsockopt, socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self.transport.registerProducer(self, True)
        self.parent.opened(self)
        self._upper_layer.connection_made()
        self._flush()

    def dataReceived(self, data: bytes) -> None:
        self._last_heard = self._clock.seconds()
        size = len(data)
        self._received += size
        self.parent.statistics.bytes_received += size
        upper_layer = self._upper_layer
        upper_layer.receive_data(data)
        more_to_come = True
        while (indication := upper_layer.next_event()) is not None:
            if type(indication) is not Fragment:
                self._indication(indication)
                continue
            assert self._user is not None
            try:
                self._user.fragment_received(indication)
            except ProtocolViolation as violation:
                self._abort(violation.source, violation.reason, str(violation))
                return
            more_to_come = indication.is_command or not indication.is_last
        self._flush()
        if more_to_come and self._acknowledge is not None:
            self._acknowledge()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._connected = False
        indication = self._upper_layer.connection_lost()
        if indication is not None:
            self._indication(indication)
        elif not self.calling_ae_title:
            self.log.debug("{address} closed without an association", address=self.address)
        self._stop_checking()
        with self._sending:
            self._stop_sending_directly()
        self._end_association()
        for timer in (self._artim, self._idle, self._progress, self._closing, self._unread):
            if timer is not None and timer.active():
                timer.cancel()
        self._artim = self._idle = self._progress = self._closing = self._unread = None
        self.parent.closed(self)

    def pauseProducing(self) -> None:
        """The peer does not read our responses: no use in reading more requests, for ever or at all."""
        if self._unread is None:
            limits = self._limits
            delay = min(filter(None, (limits.timeout, limits.progress_timeout)), default=WRITE_TIMEOUT)
            self._unread = self._clock.callLater(delay, self._not_taken)
            self._set_reading()

    def resumeProducing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
            self._set_reading()

    def stopProducing(self) -> None:
        """The connection is gone; connectionLost follows."""

    # -- IFlow: the store's side --

    def held(self, size: int) -> bool:
        self._held += size
        in_flight = self._in_flight
        in_flight.total += size
        if (self._held > HIGH_WATER or in_flight.total > in_flight.limit) and not self._waits_for_storage:
            self._waits_for_storage = True
            self._set_reading()
        return self._waits_for_storage

    def released(self, size: int) -> bool:
        self._held -= size
        in_flight = self._in_flight
        in_flight.total -= size
        # Who has nothing held may always go on, whatever others have: so all of them advance, by a read each, and
        # none waits for another.
        if self._waits_for_storage and (
            not self._held or (self._held <= LOW_WATER and in_flight.total <= in_flight.limit)
        ):
            self._waits_for_storage = False
            self._last_heard = self._clock.seconds()  # the silence was ours
            self._set_reading()
        return self._waits_for_storage

    # -- IAssociation: the user's side --

    @property
    def can_send(self) -> bool:
        return self._connected and self._upper_layer.can_send_data

    def send_command(self, presentation_context_id: int, data: bytes) -> None:
        self._upper_layer.send_data(presentation_context_id, True, data)
        self._last_heard = self._clock.seconds()
        self._flush()

    @property
    def is_releasing(self) -> bool:
        return self._releasing

    def send_message(self, presentation_context_id: int, command: bytes, data_set: bytes) -> None:
        # As one piece: what other threads send must not come between.
        self._upper_layer.send_data(presentation_context_id, True, command)
        self._upper_layer.send_data(presentation_context_id, False, data_set)
        self._last_heard = self._clock.seconds()
        self._flush()

    def send_from_thread(self, presentation_context_id: int, data: bytes) -> bool:
        encoded = self._upper_layer.encode_data(presentation_context_id, True, data)
        with self._sending:
            if self._direct is None:
                return False
            try:
                sent = self._direct.send(encoded)
            except OSError:
                sent = 0  # full, or gone
            if sent == len(encoded):
                return True
            self._stop_sending_directly()
            self._rest = encoded[sent:] if sent else b""
        return sent > 0

    def sent_from_thread(self) -> None:
        self._last_heard = self._clock.seconds()
        if self._rest and self._connected:
            self._write(b"")

    def hold_back(self, waits: bool) -> None:
        self._waits_for_answers = waits
        self._last_heard = self._clock.seconds()  # the silence was ours
        self._set_reading()

    def idle(self) -> None:
        if self._releasing:
            self._release()

    # -- the factory's side --

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_ending(self) -> bool:
        """Whether our last word is said, and the peer has a moment to take it."""
        return self._upper_layer.transport_closing or (
            self._upper_layer.state is State.AWAITING_TRANSPORT_CLOSE
        )

    def abort(self, why: str) -> None:
        """End the association now, as the service user: or drop a connection that has none."""
        if self._upper_layer.is_established:
            self._abort(0, 0, why)
        elif self._connected:
            self.log.debug("{address} dropped: {why}", address=self.address, why=why)
            self._cut()

    # -- the upper layer's side --

    def _indication(self, indication: Indication) -> None:
        if self._artim is not None:
            self._set_artim()  # if it is to run on, _flush starts it anew
        match indication:
            case AssociateIndication(request):
                self._associate(request)
            case ReleaseIndication():
                waits = self._user is not None and self._user.release_requested()
                self._releasing = True
                if not waits:
                    self._release()
            case AbortIndication():
                self._aborted(indication)

    def _associate(self, request: AAssociateRQ) -> None:
        if self._socket is None and self.transport is not None:
            # A load balancer may have said meanwhile whom it speaks for (PROXY protocol).
            self.address, self.host = _origin(self.transport.getPeer())
        verdict = self.parent.access.judge(request, self.host or None, self.peer_certificate)
        if isinstance(verdict, Refused):
            self._refuse(request, verdict)
            return
        identity, authenticator = request.user_information.user_identity, self.parent.authenticator
        if identity is None or authenticator is None:
            self._admit(request, verdict, None)
            return
        # Until this fires the upper layer stays in state 3, in which the peer may do nothing but abort.
        checking = maybeDeferred(authenticator.authenticate, identity)
        self._checking = checking
        checking.addTimeout(self._limits.auth_timeout, self._clock)
        checking.addCallbacks(partial(self._admit, request, verdict), partial(self._not_checked, request))
        checking.addCallbacks(lambda _: self._flush(), self._cannot_answer)

    def _admit(self, request: AAssociateRQ, admitted: Admitted, user: str | None) -> None:
        """The association may be, and *user* is who asks for it: accept it, if that one may and there is room."""
        self._checking = None
        caller, answer = admitted
        refused = self.parent.access.judge_user(caller, user) or self.parent.begin(caller)
        if refused is not None:
            self._refuse(request, refused)
            return
        identity = request.user_information.user_identity
        if user is not None and identity is not None and identity.positive_response_requested:
            answer = replace(
                answer, user_information=replace(answer.user_information, user_identity_response=b"")
            )
        self.caller = caller
        self.calling_ae_title = request.calling_ae_title
        self.called_ae_title = request.called_ae_title
        if user is not None:
            self.user = user
            if self.parent.audit is not None:
                self.parent.audit.authenticated(request, self.host, user)
        self.contexts = accepted_contexts(request, answer)
        window = operations_window(answer.user_information.other)
        if window is not None:
            self.operations_window = window.invoked
        self._upper_layer.accept(answer)
        self._user = self.parent.user_factory(self)
        if self._socket is not None:
            try:
                self._direct = self._socket.dup()
            except OSError:  # too many descriptors
                pass
        self._began = self._clock.seconds()
        self.parent.associated(self)
        self._watch_idleness(self._limits.timeout)
        self._judge_progress_from_now()
        text = "association accepted: {calling} at {address} to {called}, {accepted} of {proposed} contexts"
        event: LogEvent = {
            "calling": request.calling_ae_title,
            "called": request.called_ae_title,
            "address": self.address,
            "accepted": len(self.contexts),
            "proposed": len(request.presentation_contexts),
        }
        if user is not None:
            text += ", user {user!r}"
            event["user"] = user
        if self.operations_window > 1:
            text += ", {window} operations at a time"
            event["window"] = self.operations_window
        if len(self.contexts) < len(request.presentation_contexts):
            classes = refusals(request, answer)
            if classes:
                text += "; refused: {classes}"
                event["classes"] = classes
        _info(self, text, event)

    def _refuse(self, request: AAssociateRQ, refused: Refused) -> None:
        self.parent.rejected(request.calling_ae_title, refused.counter)
        self._upper_layer.reject(refused.answer)
        if self.parent.audit is not None:
            self.parent.audit.rejected(request, self.host, refused)
        self.parent.repeated.warn(
            f"{refused.why} {self.host}",
            self.log,
            "association rejected: {calling!r} at {address} to {called!r}: {reason}",
            calling=request.calling_ae_title,
            called=request.called_ae_title,
            address=self.address,
            reason=refused.why,
        )

    def _not_checked(self, request: AAssociateRQ, failure: Failure) -> None:
        """The user is not who it says, or nobody can tell."""
        if self._checking is None:
            return  # nor does anybody want to know any more
        self._checking = None
        error = failure.value
        if isinstance(error, Unauthorized):
            self._refuse(request, user_refused(str(error)))
        elif isinstance(error, TimeoutError):
            limit = self._limits.auth_timeout
            self._refuse(request, user_unchecked(f"the user could not be checked within {limit:g} s"))
        else:  # its words are not repeated: who knows whether they have the passcode in them
            self._refuse(request, user_unchecked(f"the user could not be checked: {type(error).__name__}"))

    def _cannot_answer(self, failure: Failure) -> None:
        self.log.failure("an association could not be answered", failure)
        self._cut()

    def _stop_checking(self) -> None:
        checking, self._checking = self._checking, None
        if checking is not None:
            checking.cancel()

    def _release(self) -> None:
        self._releasing = False
        self._upper_layer.release_response()
        self.parent.released(self)
        _info(
            self,
            "association released: {calling} at {address} after {seconds:.3f} s",
            {
                "calling": self.calling_ae_title,
                "address": self.address,
                "seconds": self._clock.seconds() - self._began,
            },
        )
        self._end_association(released=True)
        self._flush()

    def _aborted(self, indication: AbortIndication) -> None:
        self._stop_checking()
        if self._user is None:
            if indication.by_peer:
                self.log.debug("{address}: {why}", address=self.address, why=indication.why)
            else:
                self.parent.repeated.warn(
                    f"stranger {self.host}",
                    self.log,
                    "{address} aborted without an association: {why}",
                    address=self.address,
                    why=indication.why,
                )
            return
        self._log_abort(indication.why, indication.source, indication.reason)
        self._end_association()

    def _abort(self, source: int, reason: int, why: str) -> None:
        self._upper_layer.abort(source, reason)
        self._log_abort(why, source, reason)
        self._end_association()
        self._flush()

    def _log_abort(self, why: str, source: int, reason: int) -> None:
        self.parent.aborted(self)
        self.log.warn(
            "association aborted: {calling} at {address}: {why} (source {source}, reason {reason})",
            calling=self.calling_ae_title,
            address=self.address,
            why=why,
            source=source,
            reason=reason,
        )

    def _end_association(self, *, released: bool = False) -> None:
        user, self._user = self._user, None
        if user is not None:
            self._releasing = False
            user.association_ended(released=released)
            self.parent.disassociated(self)

    # -- timers and the transport --

    def _flush(self) -> None:
        if not self._connected:
            return
        assert self.transport is not None
        data = self._upper_layer.data_to_send()
        if self._direct is not None and not self._upper_layer.can_send_data:
            with self._sending:
                self._stop_sending_directly()
        if data:
            self._write(data)
        if self._upper_layer.artim_running is not (self._artim is not None):
            self._set_artim()
        if self._upper_layer.transport_closing:
            self._close()

    def _write(self, data: bytes) -> None:
        """Send *data*: now if the socket takes it, where the transport would wait for its next turn."""
        assert self.transport is not None
        with self._sending:
            if self._socket is not None and not self._rest:
                try:
                    sent = self._socket.send(data)
                except OSError:
                    sent = 0  # full, or gone: the transport finds out which
                if sent == len(data):
                    return
                data = data[sent:]
            # What the transport has to send must not be overtaken.
            self._socket = None
            self._stop_sending_directly()
            data, self._rest = self._rest + data, b""
        self.transport.write(data)

    def _stop_sending_directly(self) -> None:
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.close()

    def _set_artim(self) -> None:
        if self._artim is not None:
            self._artim.cancel()
            self._artim = None
        elif self._limits.artim_timeout:
            self._artim = self._clock.callLater(self._limits.artim_timeout, self._artim_expired)

    def _artim_expired(self) -> None:
        self._artim = None
        self.log.debug("{address}: ARTIM timer expired", address=self.address)
        self._upper_layer.artim_expired()
        self._flush()

    def _watch_idleness(self, delay: float) -> None:
        if delay:
            self._idle = self._clock.callLater(delay, self._check_idleness)

    def _check_idleness(self) -> None:
        """One timer, not re-armed at every packet: it looks back when it fires."""
        self._idle = None
        if self._user is None:
            return
        timeout = self._limits.timeout
        ours = self._waits_for_storage or self._user.busy
        silence = 0.0 if ours else self._clock.seconds() - self._last_heard
        if silence >= timeout:
            self._abort(0, 0, f"idle for {timeout:g} s")
        else:
            self._watch_idleness(timeout - silence)

    def _judge_progress_from_now(self) -> None:
        """Begin a period in which a message that is not complete has to get on."""
        period = self._limits.progress_timeout
        if period and self._limits.min_rate:
            now = self._judged_from = self._clock.seconds()
            self._judged_received, self._not_read = self._received, 0.0
            if self._paused_at is not None:
                self._paused_at = now
            self._incomplete = self._begun()
            self._progress = self._clock.callLater(period, self._check_progress)

    def _begun(self) -> object:
        """Stands for what the peer has begun to send, and not ended; None when that is nothing."""
        assert self._user is not None
        incomplete = self._user.incomplete
        return self._upper_layer if incomplete is None and self._upper_layer.is_inside_pdu else incomplete

    def _check_progress(self) -> None:
        """One timer, too. A message that stretches over a whole period must have brought enough for it."""
        self._progress = None
        if self._user is None:
            return
        limits = self._limits
        if self._incomplete is not None and self._begun() is self._incomplete:
            now = self._clock.seconds()
            not_read = self._not_read + (now - self._paused_at if self._paused_at is not None else 0.0)
            read_for = now - self._judged_from - not_read
            if read_for < limits.progress_timeout:  # the time in which we did not read is not the peer's
                delay = max(limits.progress_timeout - read_for, 0.001)
                self._progress = self._clock.callLater(delay, self._check_progress)
                return
            if self._received - self._judged_received < limits.min_rate * read_for:
                self.parent.statistics.slow += 1
                self._abort(0, 0, f"less than {limits.min_rate:g} bytes a second of what it had begun")
                return
        self._judge_progress_from_now()

    def _set_reading(self) -> None:
        if not self._connected or self._closing is not None:
            return
        assert self.transport is not None
        if self._waits_for_storage or self._waits_for_answers or self._unread is not None:
            if self._paused_at is None:
                self._paused_at = self._clock.seconds()
            self.transport.pauseProducing()
        else:
            if self._paused_at is not None:
                self._not_read += self._clock.seconds() - self._paused_at
                self._paused_at = None
            self.transport.resumeProducing()

    def _not_taken(self) -> None:
        """The peer has had its time to read what we sent. What we would say now it would not read either."""
        self._unread = None
        if self._user is not None:
            self.parent.statistics.slow += 1
            self._log_abort("it does not take our answers", 0, 0)
            self._end_association()
        self._cut()

    def _close(self) -> None:
        if self._closing is None and self.transport is not None:
            self._closing = self._clock.callLater(CLOSE_TIMEOUT, self._cut)
            self.transport.unregisterProducer()  # else the transport waits for it before it closes
            self.transport.resumeProducing()  # TLS that is paused would not see the peer close
            if self._is_unread():
                # The peer had its time. Closed in order, the connection would live on in the kernel, for minutes.
                self._cut()
            else:
                self.transport.loseConnection()

    def _is_unread(self) -> bool:
        """Whether the kernel has something that the peer's kernel does not take."""
        assert self.transport is not None
        handle = _bottom(self.transport).getHandle()
        return isinstance(handle, socket.socket) and any(fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)))

    def _cut(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()


_info = info_emitter(AssociationProtocol)


def _bottom(transport: IConnection) -> IConnection:
    """The transport beneath those that only wrap one, as TLS does."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport  # type: ignore[assignment] # what wraps such a one is one
    return transport


def _origin(peer: IAddress | None) -> tuple[str, str]:
    """The address of a peer as the log has it, and its host: empty where there is none."""
    host, port = getattr(peer, "host", None), getattr(peer, "port", None)
    return (f"{host}:{port}", host) if host is not None else ("local socket", "")


class AssociationFactory(Connections[AssociationProtocol]):
    """Makes the protocols."""

    def buildProtocol(self, addr: IAddress | None) -> AssociationProtocol:
        return AssociationProtocol(self, *_origin(addr))
