"""An association of our own, as its requestor, on a Twisted transport: PS3.8 §7.1.

What belongs here: one association, on which requests are sent one at a time, each with a time limit. What they say is
the caller's business. (The operator's commands, which may wait, have :mod:`storescp.scu`.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from storescp import dimse
from storescp.dimse import Command, InvalidMessage, MessageReader
from storescp.pdu import AAssociateAC, AAssociateRJ, AAssociateRQ, Fragment, ProtocolViolation
from storescp.scu import MAXIMUM_LENGTH
from storescp.scu_errors import AssociationError, Rejected, aborted
from storescp.transports import end_of
from storescp.upper_layer import (
    AbortIndication,
    AssociateConfirmation,
    Indication,
    ReleaseConfirmation,
    ReleaseIndication,
    UpperLayer,
)

#: Seconds that a peer has to take our last bytes, before the connection is cut.
CLOSE_TIMEOUT = 5.0


class RequestedAssociation(Protocol):
    """One association that *request* asks for. What it is waited for comes within *timeout* seconds, or it is over.

    All that is waited for fails with AssociationError, whose message is one line, when the association ends.
    """

    transport: ITCPTransport | None

    def __init__(self, request: AAssociateRQ, clock: IReactorTime, timeout: float) -> None:
        self.established: Deferred[AAssociateAC] = Deferred()
        self._request = request
        self._clock = clock
        self._timeout = timeout
        self._upper_layer = UpperLayer(MAXIMUM_LENGTH)
        self._messages = MessageReader()
        self._message_id = 0
        self._timer: IDelayedCall | None = None
        self._waiting: Deferred[Any] | None = None
        self._closing: IDelayedCall | None = None

    # -- IProtocol --

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.setTcpNoDelay(True)
        self._wait(self.established)
        self._upper_layer.associate(self._request)
        self._flush()

    def dataReceived(self, data: bytes) -> None:
        self._upper_layer.receive_data(data)
        while (indication := self._upper_layer.next_event()) is not None:
            try:
                self._indication(indication)
            except ProtocolViolation as violation:
                self._give_up(f"the peer broke the protocol: {violation}")
        self._flush()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._upper_layer.connection_lost()
        closing, self._closing = self._closing, None
        if closing is not None:
            closing.cancel()
        self._fail(end_of(reason.value))

    # -- the caller's side --

    def request(
        self, presentation_context_id: int, command: Callable[[int], bytes], data_set: bytes
    ) -> Deferred[int]:
        """Send what *command* makes of a message ID, and a data set; fires with the status of the response."""
        response: Deferred[int] = Deferred()
        if not self._upper_layer.is_established:
            response.errback(AssociationError("the association has ended"))
            return response
        self._message_id = self._message_id % 0xFFFF + 1
        self._upper_layer.send_data(presentation_context_id, True, command(self._message_id))
        self._upper_layer.send_data(presentation_context_id, False, data_set)
        self._wait(response)
        self._flush()
        return response

    def release(self) -> Deferred[None]:
        """Release the association."""
        released: Deferred[None] = Deferred()
        if self._upper_layer.is_established:
            self._wait(released)
            self._upper_layer.release()
            self._flush()
        else:
            released.callback(None)
        return released

    def abort(self, why: str) -> None:
        """End it now."""
        self._give_up(why)

    # -- the upper layer's side --

    def _indication(self, indication: Indication) -> None:
        match indication:
            case AssociateConfirmation(response):
                if isinstance(response, AAssociateRJ):
                    self._flush()
                    self._fail(str(Rejected(response)))
                else:
                    self._fire(response)
            case Fragment():
                self._fragment(indication)
            case ReleaseIndication():
                self._upper_layer.release_response()
                self._flush()
                self._fail("the peer released the association instead of an answer")
            case ReleaseConfirmation():
                self._fire(None)
            case AbortIndication():
                self._flush()
                self._fail(str(aborted(indication)))

    def _fragment(self, fragment: Fragment) -> None:
        if not fragment.is_command:
            self._messages.data_set(fragment)  # a reply to an event, of which nothing is wanted
            return
        command = self._messages.command(fragment)
        if command is not None:
            self._command(command)

    def _command(self, command: Command) -> None:
        if not command.command_field & dimse.RESPONSE:
            raise InvalidMessage(f"a message {command.command_field:04X}H instead of a response")
        if command.integer(dimse.MESSAGE_ID_BEING_RESPONDED_TO) != self._message_id:
            raise InvalidMessage("a response to another message")
        self._fire(command.integer(dimse.STATUS))

    # -- what is waited for --

    def _wait(self, deferred: Deferred[Any]) -> None:
        self._waiting = deferred
        self._timer = self._clock.callLater(self._timeout, self._late)

    def _late(self) -> None:
        self._timer = None
        self._give_up(f"no answer within {self._timeout:g} s")

    def _take_waiting(self) -> Deferred[Any] | None:
        waiting, self._waiting = self._waiting, None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return waiting

    def _fire(self, result: object) -> None:
        waiting = self._take_waiting()
        if waiting is not None:
            waiting.callback(result)

    def _fail(self, why: str) -> None:
        waiting = self._take_waiting()
        if waiting is not None:
            waiting.errback(AssociationError(why))

    def _give_up(self, why: str) -> None:
        if self._upper_layer.is_established:
            self._upper_layer.abort()
            self._flush()
        elif self._closing is None:
            self._cut()
        self._fail(why)

    def _flush(self) -> None:
        assert self.transport is not None
        data = self._upper_layer.data_to_send()
        if data:
            self.transport.write(data)
        over = self._upper_layer.transport_closing or self._upper_layer.artim_running
        if over and self._closing is None:
            self._closing = self._clock.callLater(CLOSE_TIMEOUT, self._cut)
            self.transport.loseConnection()

    def _cut(self) -> None:
        if self._closing is not None and not self._closing.active():
            self._closing = None
        if self.transport is not None:
            self.transport.abortConnection()
