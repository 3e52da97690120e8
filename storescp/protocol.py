"""DICOM associations on Twisted transports: bytes, timers, limits, and the ordered end.

What belongs here: the thin adapter between a transport and :class:`~storescp.upper_layer.UpperLayer`. What
messages mean is the business of the association's user (:mod:`storescp.scp`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import LogEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from storescp.access import ANYONE, Admitted, Refused
from storescp.certificates import PeerCertificate
from storescp.connections import Connections
from storescp.counting import Count
from storescp.extended_negotiation import operations_window
from storescp.flow import Flow
from storescp.interfaces import IAssociation, IAssociationUser
from storescp.logs import AssociationLogger, info_emitter
from storescp.negotiation import AcceptedContext, accepted_contexts, refusals
from storescp.outlet import Outlet
from storescp.patience import Patience
from storescp.pdu import AAssociateAC, AAssociateRQ, Fragment, ProtocolViolation
from storescp.state_table import State
from storescp.transports import READ_SIZE, IConnection, bottom_of, origin_of, socket_of, unacknowledged
from storescp.upper_layer import (
    AbortIndication,
    AssociateIndication,
    Indication,
    ReleaseIndication,
    UpperLayer,
)
from storescp.user_check import checked

#: Seconds that a peer has to take our last bytes and close, before the connection is cut.
CLOSE_TIMEOUT = 10.0


@implementer(IAssociation)
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
        self._upper_layer = upper_layer = UpperLayer(factory.policy.maximum_length)
        self._user: IAssociationUser | None = None
        self._limits = factory.limits  # of its time: new settings are for those who come
        self._clock = factory.clock
        self._began = self._last_heard = self._clock.seconds()
        self._artim: IDelayedCall | None = None
        self._closing: IDelayedCall | None = None
        self._checking: Deferred[Any] | None = None  # who the user is
        self._patience: Patience | None = None
        self._received = 0
        self._releasing = False
        self._connected = False
        self._is_wrapped = False
        self._acknowledge: Callable[[], None] | None = None
        self._outlet = outlet = Outlet(upper_layer.encode_data)
        self._flow = flow = Flow(factory.in_flight, factory.limits, factory.clock, self._not_taken)
        # Not by way of methods of our own: each image calls them.
        self.send_from_thread = outlet.send_from_thread
        self.held, self.released, self.hold_back = flow.held, flow.released, flow.hold_back

    # -- IProtocol: the transport's side --

    def connectionMade(self) -> None:
        self._connected = True
        assert self.transport is not None
        bottom = bottom_of(self.transport)
        if isinstance(bottom, Connection):
            bottom.bufferSize = READ_SIZE
        self._is_wrapped = bottom is not self.transport
        handle = socket_of(self.transport)
        past: socket.socket | None = None
        if handle is not None and handle.family in (socket.AF_INET, socket.AF_INET6):
            if not self._is_wrapped:  # what goes into TLS must not go past it
                past = handle
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
            # Senders that write a PDU in two pieces with Nagle's algorithm on (DCMTK, Orthanc) wait with the
            # second one for our ACK, which the kernel delays by 40 ms unless it is told not to, again and again.
            # That costs a packet: no need where a response will take the ACK along.
            self._acknowledge = partial(handle.setsockopt, socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self._outlet.open(self.transport, past)
        self._flow.open(self.transport)
        self.transport.registerProducer(self._flow, True)
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
        self._outlet.withdraw()
        self._flow.close()
        self._end_association()
        for timer in (self._artim, self._closing):
            if timer is not None and timer.active():
                timer.cancel()
        self._artim = self._closing = None
        self.parent.closed(self)

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

    def sent_from_thread(self) -> None:
        self._last_heard = self._clock.seconds()
        if self._outlet.rest and self._connected:
            self._outlet.write(b"")

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
        if self._is_wrapped and self.transport is not None:
            # A load balancer may have said meanwhile whom it speaks for (PROXY protocol).
            self.address, self.host = origin_of(self.transport.getPeer())
        verdict = self.parent.access.judge(request, self.host or None, self.peer_certificate)
        if isinstance(verdict, Refused):
            self._refuse(request, verdict)
            return
        identity, authenticator = request.user_information.user_identity, self.parent.authenticator
        if identity is None or authenticator is None:
            self._admit(request, verdict, None)
            return
        # Until this fires the upper layer stays in state 3, in which the peer may do nothing but abort.
        checking = self._checking = checked(authenticator, identity, self._limits.auth_timeout, self._clock)
        checking.addCallback(partial(self._checked, request, verdict)).addErrback(self._cannot_answer)

    def _checked(self, request: AAssociateRQ, admitted: Admitted, user: str | Refused) -> None:
        if self._checking is None:
            return  # nor does anybody want to know any more
        self._checking = None
        if isinstance(user, Refused):
            self._refuse(request, user)
        else:
            self._admit(request, admitted, user)
        self._flush()

    def _admit(self, request: AAssociateRQ, admitted: Admitted, user: str | None) -> None:
        """The association may be, and *user* is who asks for it: accept it, if that one may and there is room."""
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
        self._outlet.share()
        self._began = self._clock.seconds()
        self.parent.associated(self)
        self._patience = Patience(self, self._limits, self._clock, self._lost_patience)
        self._log_accepted(request, answer, user)

    def _log_accepted(self, request: AAssociateRQ, answer: AAssociateAC, user: str | None) -> None:
        text = "association accepted: {calling} at {address} to {called}, {accepted} of {proposed:context}"
        event: LogEvent = {
            "calling": request.calling_ae_title,
            "called": request.called_ae_title,
            "address": self.address,
            "accepted": len(self.contexts),
            "proposed": Count(len(request.presentation_contexts)),
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

    def _cannot_answer(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return  # nor does anybody want to know any more
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
            if self._patience is not None:
                self._patience.stop()
                self._patience = None
            self._releasing = False
            user.association_ended(released=released)
            self.parent.disassociated(self)

    # -- timers and the transport --

    def _flush(self) -> None:
        if not self._connected:
            return
        assert self.transport is not None
        data = self._upper_layer.data_to_send()
        if self._outlet.shared is not None and not self._upper_layer.can_send_data:
            self._outlet.withdraw()
        if data:
            self._outlet.write(data)
        if self._upper_layer.artim_running is not (self._artim is not None):
            self._set_artim()
        if self._upper_layer.transport_closing:
            self._close()

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

    # -- Watched: what patience looks at --

    @property
    def last_heard(self) -> float:
        return max(self._last_heard, self._flow.resumed_at)

    @property
    def received(self) -> int:
        return self._received

    @property
    def not_read(self) -> float:
        return self._flow.not_read

    @property
    def is_ours(self) -> bool:
        return self._flow.waits_for_storage or (self._user is not None and self._user.busy)

    @property
    def incomplete(self) -> object:
        incomplete = self._user.incomplete if self._user is not None else None
        return self._upper_layer if incomplete is None and self._upper_layer.is_inside_pdu else incomplete

    def _lost_patience(self, why: str, is_slow: bool) -> None:
        self.parent.statistics.slow += is_slow
        self._abort(0, 0, why)

    def _not_taken(self) -> None:
        """The peer has had its time to read what we sent. What we would say now it would not read either."""
        if self._user is not None:
            self.parent.statistics.slow += 1
            self._log_abort("it does not take our answers", 0, 0)
            self._end_association()
        self._cut()

    def _close(self) -> None:
        if self._closing is None and self.transport is not None:
            self._closing = self._clock.callLater(CLOSE_TIMEOUT, self._cut)
            self._flow.close()
            self.transport.unregisterProducer()  # else the transport waits for it before it closes
            self.transport.resumeProducing()  # TLS that is paused would not see the peer close
            handle = socket_of(self.transport)
            if handle is not None and unacknowledged(handle):
                # The peer had its time. Closed in order, the connection would live on in the kernel, for minutes.
                self._cut()
            else:
                self.transport.loseConnection()

    def _cut(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()


_info = info_emitter(AssociationProtocol)


class AssociationFactory(Connections[AssociationProtocol]):
    """Makes the protocols."""

    def buildProtocol(self, addr: IAddress | None) -> AssociationProtocol:
        return AssociationProtocol(self, *origin_of(addr))
