"""The DICOM Upper Layer state machine, PS3.8 §9.2, as data and without a network.

What belongs here: Table 9-10 and what its actions do to a connection. Bytes go in by
:meth:`UpperLayer.receive_data`, indications come out of :meth:`UpperLayer.next_event`, and what must be
sent is fetched by :meth:`UpperLayer.data_to_send`. Timers and sockets belong to the caller, who looks at
``artim_running`` and ``transport_closing`` after each call.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from storescp import pdu
from storescp.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ, AReleaseRP, AReleaseRQ, Fragment
from storescp.pdu_reader import PDUReader


class State(enum.IntEnum):
    """PS3.8 §9.2.1, Table 9-1 to 9-5."""

    IDLE = 1
    AWAITING_ASSOCIATE_RQ = 2
    AWAITING_LOCAL_ASSOCIATE_RESPONSE = 3
    AWAITING_TRANSPORT_CONNECTION = 4
    AWAITING_ASSOCIATE_AC_OR_RJ = 5
    DATA_TRANSFER = 6
    AWAITING_RELEASE_RP = 7
    AWAITING_LOCAL_RELEASE_RESPONSE = 8
    COLLISION_REQUESTOR_AWAITING_LOCAL_RELEASE_RESPONSE = 9
    COLLISION_ACCEPTOR_AWAITING_RELEASE_RP = 10
    COLLISION_REQUESTOR_AWAITING_RELEASE_RP = 11
    COLLISION_ACCEPTOR_AWAITING_LOCAL_RELEASE_RESPONSE = 12
    AWAITING_TRANSPORT_CLOSE = 13


class Input(enum.IntEnum):
    """What can happen to the machine: the events of PS3.8 Table 9-10, under their numbers there."""

    ASSOCIATE_REQUEST = 1
    TRANSPORT_CONFIRMATION = 2
    ASSOCIATE_AC_PDU = 3
    ASSOCIATE_RJ_PDU = 4
    TRANSPORT_INDICATION = 5
    ASSOCIATE_RQ_PDU = 6
    ASSOCIATE_RESPONSE_ACCEPT = 7
    ASSOCIATE_RESPONSE_REJECT = 8
    P_DATA_REQUEST = 9
    P_DATA_PDU = 10
    RELEASE_REQUEST = 11
    RELEASE_RQ_PDU = 12
    RELEASE_RP_PDU = 13
    RELEASE_RESPONSE = 14
    ABORT_REQUEST = 15
    ABORT_PDU = 16
    TRANSPORT_CLOSED = 17
    ARTIM_EXPIRED = 18
    INVALID_PDU = 19


class Action(enum.Enum):
    """The actions of PS3.8 Tables 9-6 to 9-9, under their names there."""

    AE_1 = "AE-1"
    AE_2 = "AE-2"
    AE_3 = "AE-3"
    AE_4 = "AE-4"
    AE_5 = "AE-5"
    AE_6 = "AE-6"
    AE_7 = "AE-7"
    AE_8 = "AE-8"
    DT_1 = "DT-1"
    DT_2 = "DT-2"
    AR_1 = "AR-1"
    AR_2 = "AR-2"
    AR_3 = "AR-3"
    AR_4 = "AR-4"
    AR_5 = "AR-5"
    AR_6 = "AR-6"
    AR_7 = "AR-7"
    AR_8 = "AR-8"
    AR_9 = "AR-9"
    AR_10 = "AR-10"
    AA_1 = "AA-1"
    AA_2 = "AA-2"
    AA_3 = "AA-3"
    AA_4 = "AA-4"
    AA_5 = "AA-5"
    AA_6 = "AA-6"
    AA_7 = "AA-7"
    AA_8 = "AA-8"


_A = Action
_DATA_TRANSFER = State.DATA_TRANSFER


def _row(cells: str) -> dict[State, tuple[Action, State]]:
    """``"2:AA-1>13 3:AA-8>13"``: state, action, next state, as the columns of Table 9-10 have them."""
    row = {}
    for cell in cells.split():
        state, _, rest = cell.partition(":")
        action, _, following = rest.partition(">")
        row[State(int(state))] = (Action(action), State(int(following)))
    return row


_OPEN_AA8 = "6:AA-8>13 7:AA-8>13 8:AA-8>13 9:AA-8>13 10:AA-8>13 11:AA-8>13 12:AA-8>13"

#: PS3.8 Table 9-10, an event a row. A cell that the standard leaves blank cannot happen and is absent.
#: AE-6 may end in state 13 and AR-8 in state 10 instead of the ones given.
TABLE: dict[Input, dict[State, tuple[Action, State]]] = {
    Input.ASSOCIATE_REQUEST: _row("1:AE-1>4"),
    Input.TRANSPORT_CONFIRMATION: _row("4:AE-2>5"),
    Input.ASSOCIATE_AC_PDU: _row(f"2:AA-1>13 3:AA-8>13 5:AE-3>6 {_OPEN_AA8} 13:AA-6>13"),
    Input.ASSOCIATE_RJ_PDU: _row(f"2:AA-1>13 3:AA-8>13 5:AE-4>1 {_OPEN_AA8} 13:AA-6>13"),
    Input.TRANSPORT_INDICATION: _row("1:AE-5>2"),
    Input.ASSOCIATE_RQ_PDU: _row(f"2:AE-6>3 3:AA-8>13 5:AA-8>13 {_OPEN_AA8} 13:AA-7>13"),
    Input.ASSOCIATE_RESPONSE_ACCEPT: _row("3:AE-7>6"),
    Input.ASSOCIATE_RESPONSE_REJECT: _row("3:AE-8>13"),
    Input.P_DATA_REQUEST: _row("6:DT-1>6 8:AR-7>8"),
    Input.P_DATA_PDU: _row(
        "2:AA-1>13 3:AA-8>13 5:AA-8>13 6:DT-2>6 7:AR-6>7 8:AA-8>13 9:AA-8>13 10:AA-8>13 11:AA-8>13 12:AA-8>13 "
        "13:AA-6>13"
    ),
    Input.RELEASE_REQUEST: _row("6:AR-1>7"),
    Input.RELEASE_RQ_PDU: _row(
        "2:AA-1>13 3:AA-8>13 5:AA-8>13 6:AR-2>8 7:AR-8>9 8:AA-8>13 9:AA-8>13 10:AA-8>13 11:AA-8>13 12:AA-8>13 "
        "13:AA-6>13"
    ),
    Input.RELEASE_RP_PDU: _row(
        "2:AA-1>13 3:AA-8>13 5:AA-8>13 6:AA-8>13 7:AR-3>1 8:AA-8>13 9:AA-8>13 10:AR-10>12 11:AR-3>1 12:AA-8>13 "
        "13:AA-6>13"
    ),
    Input.RELEASE_RESPONSE: _row("8:AR-4>13 9:AR-9>11 12:AR-4>13"),
    Input.ABORT_REQUEST: _row(
        "3:AA-1>13 4:AA-2>1 5:AA-1>13 6:AA-1>13 7:AA-1>13 8:AA-1>13 9:AA-1>13 10:AA-1>13 11:AA-1>13 12:AA-1>13"
    ),
    Input.ABORT_PDU: _row(
        "2:AA-2>1 3:AA-3>1 5:AA-3>1 6:AA-3>1 7:AA-3>1 8:AA-3>1 9:AA-3>1 10:AA-3>1 11:AA-3>1 12:AA-3>1 13:AA-2>1"
    ),
    Input.TRANSPORT_CLOSED: _row(
        "2:AA-5>1 3:AA-4>1 4:AA-4>1 5:AA-4>1 6:AA-4>1 7:AA-4>1 8:AA-4>1 9:AA-4>1 10:AA-4>1 11:AA-4>1 12:AA-4>1 "
        "13:AR-5>1"
    ),
    Input.ARTIM_EXPIRED: _row("2:AA-2>1 13:AA-2>1"),
    Input.INVALID_PDU: _row(f"2:AA-1>13 3:AA-8>13 5:AA-8>13 {_OPEN_AA8} 13:AA-7>13"),
}


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
        elif action is _A.AR_8 and not self._requestor:
            following = State.COLLISION_ACCEPTOR_AWAITING_RELEASE_RP
        self.state = following
        return outcome

    # -- the actions --

    def _nothing(self, subject: _Subject) -> None:
        """AE-1 (the caller opens the transport), AA-6 (ignore)."""

    def _send(self, subject: _Subject) -> None:
        """AE-7, DT-1, AR-1, AR-7, AR-9."""
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

    def _send_request(self, subject: _Subject) -> None:
        """AE-2."""
        self._send(subject)

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
        """AR-2."""
        return ReleaseIndication()

    def _indicate_collision(self, subject: _Subject) -> Indication:
        """AR-8: the next state depends on who asked for the association; see _handle."""
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
    _A.AE_1: UpperLayer._nothing,
    _A.AE_2: UpperLayer._send_request,
    _A.AE_3: UpperLayer._confirm_associate,
    _A.AE_4: UpperLayer._confirm_reject,
    _A.AE_5: UpperLayer._start_artim,
    _A.AE_6: UpperLayer._indicate_associate,
    _A.AE_7: UpperLayer._send,
    _A.AE_8: UpperLayer._send_and_start_artim,
    _A.DT_1: UpperLayer._send,
    _A.DT_2: UpperLayer._indicate_data,
    _A.AR_1: UpperLayer._send,
    _A.AR_2: UpperLayer._indicate_release,
    _A.AR_3: UpperLayer._confirm_release,
    _A.AR_4: UpperLayer._send_and_start_artim,
    _A.AR_5: UpperLayer._stop_artim,
    _A.AR_6: UpperLayer._indicate_data,
    _A.AR_7: UpperLayer._send,
    _A.AR_8: UpperLayer._indicate_collision,
    _A.AR_9: UpperLayer._send,
    _A.AR_10: UpperLayer._confirm_collision,
    _A.AA_1: UpperLayer._abort,
    _A.AA_2: UpperLayer._close,
    _A.AA_3: UpperLayer._indicate_abort,
    _A.AA_4: UpperLayer._indicate_loss,
    _A.AA_5: UpperLayer._stop_artim,
    _A.AA_6: UpperLayer._nothing,
    _A.AA_7: UpperLayer._abort_again,
    _A.AA_8: UpperLayer._abort_and_indicate,
}


def _violation(subject: _Subject) -> pdu.ProtocolViolation:
    if isinstance(subject, pdu.ProtocolViolation):
        return subject
    name = "P-DATA-TF" if isinstance(subject, Fragment) else type(subject).__name__
    return pdu.UnexpectedPDU(f"{name} was not expected now")
