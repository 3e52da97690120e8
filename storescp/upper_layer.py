"""One connection's half of the DICOM Upper Layer protocol, PS3.8 §9.2, without a network.

What belongs here: what the actions of Table 9-10 (:mod:`storescp.state_table`) do to a connection. Bytes go in by
:meth:`UpperLayer.receive_data`, indications come out of :meth:`UpperLayer.next_event`, and what must be
sent is fetched by :meth:`UpperLayer.data_to_send`. Timers and sockets belong to the caller, who looks at
``artim_running`` and ``transport_closing`` after each call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from storescp import pdu
from storescp.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ, AReleaseRP, AReleaseRQ, Fragment
from storescp.pdu_reader import PDUReader
from storescp.state_table import TABLE, Action, Input, State

_DATA_TRANSFER = State.DATA_TRANSFER


@dataclass(frozen=True, slots=True)
class AssociateIndication:
    """A peer asks for an association; answer with :meth:`UpperLayer.accept` or :meth:`UpperLayer.reject`."""

    request: AAssociateRQ


@dataclass(frozen=True, slots=True)
class AssociateConfirmation:
    """The peer's answer to our request."""

    response: AAssociateAC | AAssociateRJ


@dataclass(frozen=True, slots=True)
class ReleaseIndication:
    """The peer asks for release; answer with :meth:`UpperLayer.release_response`."""


@dataclass(frozen=True, slots=True)
class ReleaseConfirmation:
    """The peer agreed to the release that we asked for."""


@dataclass(frozen=True, slots=True)
class AbortIndication:
    """A-ABORT or A-P-ABORT indication: the association is over; ``why`` is for people."""

    source: int
    reason: int
    by_peer: bool
    why: str


Indication: TypeAlias = (
    AssociateIndication
    | AssociateConfirmation
    | ReleaseIndication
    | ReleaseConfirmation
    | AbortIndication
    | Fragment
)

_PDU_INPUT: dict[type[object], Input] = {
    AAssociateRQ: Input.ASSOCIATE_RQ_PDU,
    AAssociateAC: Input.ASSOCIATE_AC_PDU,
    AAssociateRJ: Input.ASSOCIATE_RJ_PDU,
    AReleaseRQ: Input.RELEASE_RQ_PDU,
    AReleaseRP: Input.RELEASE_RP_PDU,
    AAbort: Input.ABORT_PDU,
    Fragment: Input.P_DATA_PDU,
}

_Subject: TypeAlias = pdu.PDU | Fragment | pdu.ProtocolViolation | bytes | None


class UpperLayer:
    """One connection's half of the DICOM Upper Layer protocol.

    ``maximum_length`` is what we announce for P-DATA-TF, in bytes, 0 for no limit. A local call that the
    state does not allow raises RuntimeError: that is a mistake of the caller, never of the peer.
    """

    def __init__(self, maximum_length: int) -> None:
        self.state = State.IDLE
        self.artim_running = False
        self.transport_closing = False
        self._reader = PDUReader(maximum_length)
        self._readable = True  # false once the byte stream makes no sense any more
        self._requestor = False
        self._peer_maximum_length = 0
        self._out: list[bytes] = []

    # -- the transport's side --

    def connection_made(self) -> None:
        """The peer opened the transport connection (E5)."""
        self._handle(Input.TRANSPORT_INDICATION)

    def receive_data(self, data: bytes) -> None:
        """Take what was read; nothing happens until :meth:`next_event` is asked."""
        if self._readable:
            self._reader.feed(data)

    def next_event(self) -> Indication | None:
        """The next indication in what was received, or None when that is used up."""
        while self._readable:
            try:
                item = self._reader.next()
            except pdu.ProtocolViolation as violation:
                self._readable = False
                return self._handle(Input.INVALID_PDU, violation)
            if item is None:
                return None
            if type(item) is Fragment and self.state is _DATA_TRANSFER:
                return item  # DT-2: this and DT-1 are what nearly all the traffic is
            indication = self._handle(_PDU_INPUT[type(item)], item)
            if indication is not None:
                return indication
        return None

    def data_to_send(self) -> bytes:
        """All that is to be written now, and forget it."""
        if not self._out:
            return b""
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return data

    def connection_lost(self) -> Indication | None:
        """The transport connection is closed, by whomever (E17)."""
        self._readable = False
        self._out.clear()  # nobody is left to take it
        if self.state is State.IDLE:
            return None
        return self._handle(Input.TRANSPORT_CLOSED)

    def artim_expired(self) -> None:
        """The ARTIM timer ran out (E18)."""
        self.artim_running = False
        self._handle(Input.ARTIM_EXPIRED)

    # -- the user's side --

    def associate(self, request: AAssociateRQ) -> None:
        """Ask for an association over a transport connection that is already open (E1, E2)."""
        self._requestor = True
        self._handle(Input.ASSOCIATE_REQUEST)
        self._handle(Input.TRANSPORT_CONFIRMATION, request)

    def accept(self, response: AAssociateAC) -> None:
        """Accept the association that was asked for (E7): with the maximum length that *response* announces."""
        self._reader.maximum_length = response.user_information.maximum_length
        self._handle(Input.ASSOCIATE_RESPONSE_ACCEPT, response)

    def reject(self, response: AAssociateRJ) -> None:
        """Reject the association that was asked for (E8)."""
        self._handle(Input.ASSOCIATE_RESPONSE_REJECT, response)

    def send_data(
        self, presentation_context_id: int, is_command: bool, data: bytes, *, is_last: bool = True
    ) -> None:
        """Send a command or data set (E9), cut to what the peer takes; unless *is_last*, more of it follows."""
        encoded = self.encode_data(presentation_context_id, is_command, data, is_last=is_last)
        if self.state is _DATA_TRANSFER:
            self._out.append(encoded)  # DT-1
        else:
            self._handle(Input.P_DATA_REQUEST, encoded)

    def encode_data(
        self, presentation_context_id: int, is_command: bool, data: bytes, *, is_last: bool = True
    ) -> bytes:
        """What :meth:`send_data` sends. It changes nothing here, so any thread may ask."""
        return pdu.encode_p_data(
            presentation_context_id, is_command, data, self._peer_maximum_length, is_last=is_last
        )

    def release(self) -> None:
        """Ask for release (E11)."""
        self._handle(Input.RELEASE_REQUEST, AReleaseRQ())

    def release_response(self) -> None:
        """Agree to the peer's release (E14)."""
        self._handle(Input.RELEASE_RESPONSE, AReleaseRP())

    def abort(self, source: int = 0, reason: int = 0) -> None:
        """Abort (E15); by default as the service user, PS3.8 Table 9-26."""
        self._handle(Input.ABORT_REQUEST, AAbort(source, reason))

    @property
    def can_send_data(self) -> bool:
        """Whether the table allows a P-DATA request now: also after the peer asked for release (AR-7)."""
        return self.state is State.DATA_TRANSFER or self.state is State.AWAITING_LOCAL_RELEASE_RESPONSE

    @property
    def is_inside_pdu(self) -> bool:
        """Whether the peer has begun a PDU, and not ended it."""
        return self._readable and self._reader.is_inside

    @property
    def is_established(self) -> bool:
        """Whether an association stands, releasing or not."""
        return State.DATA_TRANSFER <= self.state <= State.COLLISION_ACCEPTOR_AWAITING_LOCAL_RELEASE_RESPONSE

    # -- the table --

    def _handle(self, event: Input, subject: _Subject = None) -> Indication | None:
        cell = TABLE[event].get(self.state)
        if cell is None:
            raise RuntimeError(f"{event.name} cannot happen in Sta{self.state} {self.state.name}")
        action, following = cell
        outcome = _ACTIONS[action](self, subject)
        if isinstance(outcome, State):
            following, outcome = outcome, None
        elif action is Action.AR_8 and not self._requestor:
            following = State.COLLISION_ACCEPTOR_AWAITING_RELEASE_RP
        self.state = following
        return outcome

    # -- the actions --

    def _nothing(self, subject: _Subject) -> None:
        """AE-1 (the caller opens the transport), AA-6 (ignore)."""

    def _send(self, subject: _Subject) -> None:
        """AE-2, AE-7, DT-1, AR-1, AR-7, AR-9."""
        if isinstance(subject, bytes):
            self._out.append(subject)
        elif subject is not None and not isinstance(subject, Fragment | pdu.ProtocolViolation):
            self._out.append(subject.encode())

    def _start_artim(self, subject: _Subject) -> None:
        """AE-5."""
        self.artim_running = True

    def _stop_artim(self, subject: _Subject) -> None:
        """AR-5, AA-5."""
        self.artim_running = False

    def _send_and_start_artim(self, subject: _Subject) -> None:
        """AE-8, AR-4."""
        self._send(subject)
        self.artim_running = True

    def _close(self, subject: _Subject) -> None:
        """AA-2, and the end of AE-4, AR-3 and AA-3: what still arrives finds nobody."""
        self.artim_running = False
        self.transport_closing = True
        self._readable = False

    def _indicate_associate(self, subject: _Subject) -> Indication | State | None:
        """AE-6: the provider's own test is the protocol version, PS3.8 §9.3.2 (bit 0 means version 1)."""
        assert isinstance(subject, AAssociateRQ)
        self.artim_running = False
        if not subject.protocol_version & 1:
            # Rejected permanent, by the provider (ACSE): protocol version not supported, Table 9-21.
            self._send_and_start_artim(AAssociateRJ(1, 2, 2))
            return State.AWAITING_TRANSPORT_CLOSE
        self._peer_maximum_length = subject.user_information.maximum_length
        return AssociateIndication(subject)

    def _confirm_associate(self, subject: _Subject) -> Indication:
        """AE-3."""
        assert isinstance(subject, AAssociateAC)
        self._peer_maximum_length = subject.user_information.maximum_length
        return AssociateConfirmation(subject)

    def _confirm_reject(self, subject: _Subject) -> Indication:
        """AE-4."""
        assert isinstance(subject, AAssociateRJ)
        self._close(None)
        return AssociateConfirmation(subject)

    def _indicate_data(self, subject: _Subject) -> Indication:
        """DT-2, AR-6."""
        assert isinstance(subject, Fragment)
        return subject

    def _indicate_release(self, subject: _Subject) -> Indication:
        """AR-2; AR-8, whose next state depends on who asked for the association: see _handle."""
        return ReleaseIndication()

    def _confirm_collision(self, subject: _Subject) -> Indication:
        """AR-10: our release is confirmed, the peer's awaits :meth:`release_response`."""
        return ReleaseConfirmation()

    def _confirm_release(self, subject: _Subject) -> Indication:
        """AR-3."""
        self._close(None)
        return ReleaseConfirmation()

    def _abort(self, subject: _Subject) -> Indication | None:
        """AA-1: what is sent to a peer that had no association yet is the user's abort."""
        if isinstance(subject, AAbort):
            self._send_and_start_artim(subject)
            return None
        farewell, why = AAbort(0, 0), "the peer did not begin with A-ASSOCIATE-RQ"
        if isinstance(subject, pdu.ProtocolViolation):
            why = str(subject)
        self._send_and_start_artim(farewell)
        return AbortIndication(farewell.source, farewell.reason, False, why)

    def _abort_again(self, subject: _Subject) -> None:
        """AA-7."""
        self._send(AAbort(2, _violation(subject).reason))

    def _abort_and_indicate(self, subject: _Subject) -> Indication:
        """AA-8: PS3.8 Table 9-26 names the reason."""
        violation = _violation(subject)
        self._send_and_start_artim(AAbort(2, violation.reason))
        return AbortIndication(2, violation.reason, False, str(violation))

    def _indicate_abort(self, subject: _Subject) -> Indication:
        """AA-3."""
        assert isinstance(subject, AAbort)
        self._close(None)
        return AbortIndication(subject.source, subject.reason, True, "A-ABORT received")

    def _indicate_loss(self, subject: _Subject) -> Indication:
        """AA-4."""
        return AbortIndication(2, 0, True, "the connection was lost")


_ACTIONS: dict[Action, Callable[[UpperLayer, _Subject], Indication | State | None]] = {
    Action.AE_1: UpperLayer._nothing,
    Action.AE_2: UpperLayer._send,
    Action.AE_3: UpperLayer._confirm_associate,
    Action.AE_4: UpperLayer._confirm_reject,
    Action.AE_5: UpperLayer._start_artim,
    Action.AE_6: UpperLayer._indicate_associate,
    Action.AE_7: UpperLayer._send,
    Action.AE_8: UpperLayer._send_and_start_artim,
    Action.DT_1: UpperLayer._send,
    Action.DT_2: UpperLayer._indicate_data,
    Action.AR_1: UpperLayer._send,
    Action.AR_2: UpperLayer._indicate_release,
    Action.AR_3: UpperLayer._confirm_release,
    Action.AR_4: UpperLayer._send_and_start_artim,
    Action.AR_5: UpperLayer._stop_artim,
    Action.AR_6: UpperLayer._indicate_data,
    Action.AR_7: UpperLayer._send,
    Action.AR_8: UpperLayer._indicate_release,
    Action.AR_9: UpperLayer._send,
    Action.AR_10: UpperLayer._confirm_collision,
    Action.AA_1: UpperLayer._abort,
    Action.AA_2: UpperLayer._close,
    Action.AA_3: UpperLayer._indicate_abort,
    Action.AA_4: UpperLayer._indicate_loss,
    Action.AA_5: UpperLayer._stop_artim,
    Action.AA_6: UpperLayer._nothing,
    Action.AA_7: UpperLayer._abort_again,
    Action.AA_8: UpperLayer._abort_and_indicate,
}


def _violation(subject: _Subject) -> pdu.ProtocolViolation:
    if isinstance(subject, pdu.ProtocolViolation):
        return subject
    name = "P-DATA-TF" if isinstance(subject, Fragment) else type(subject).__name__
    return pdu.UnexpectedPDU(f"{name} was not expected now")
