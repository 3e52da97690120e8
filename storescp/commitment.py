"""Storage Commitment Push Model, PS3.4 Annex J, as an SCP: what it says and hears on the requester's association.

What belongs here: requests (N-ACTION), and reports (N-EVENT-REPORT) as long as the association lasts on which they
were asked for. The others are the business of :mod:`storescp.reporter`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from storescp import dimse
from storescp.commitment_data import (
    ITEM_BYTES,
    OTHER_BYTES,
    REQUEST_STORAGE_COMMITMENT,
    ActionStatus,
    BadRequest,
    Report,
)
from storescp.commitment_ledger import Encoded, Ledger
from storescp.commitment_store import CommitmentsUnavailable, Owed, Taken
from storescp.counting import Count
from storescp.dimse import Command, encode_command
from storescp.interfaces import IService
from storescp.logs import AssociationLogger
from storescp.scp import StorageSCP
from storescp.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE

#: Seconds for the requester to confirm a report.
RESPONSE_TIMEOUT = 60.0

#: Requests of one association that are being taken: each may have some megabytes.
MOST_AT_ONCE = 8

_US = struct.Struct("<H")


def encode_event_report(message_id: int, event_type_id: int) -> bytes:
    """The command set of an N-EVENT-REPORT-RQ with a data set, PS3.7 §10.3.1.1."""
    return encode_command(
        {
            dimse.AFFECTED_SOP_CLASS_UID: STORAGE_COMMITMENT.encode().ljust(20, b"\0"),
            dimse.COMMAND_FIELD: _US.pack(dimse.N_EVENT_REPORT_RQ),
            dimse.MESSAGE_ID: _US.pack(message_id),
            dimse.COMMAND_DATA_SET_TYPE: _US.pack(0x0001),
            dimse.AFFECTED_SOP_INSTANCE_UID: STORAGE_COMMITMENT_INSTANCE.encode(),
            dimse.EVENT_TYPE_ID: _US.pack(event_type_id),
        }
    )


class _Action(NamedTuple):
    """A request whose data set is arriving; with the status and comment of what is to be refused."""

    context_id: int
    command: Command
    refusal: tuple[ActionStatus, str] | None


@implementer(IService)
class CommitmentSCP:
    """The service on the association of *user*. See IService."""

    log = AssociationLogger()

    def __init__(self, user: StorageSCP, ledger: Ledger, clock: IReactorTime) -> None:
        self._user = user
        self._association = user.association
        self.association_id = user.association_id
        self._ledger = ledger
        self._clock = clock
        self._longest = OTHER_BYTES + ITEM_BYTES * ledger.settings.max_items
        self._action: _Action | None = None
        self._data = bytearray()
        self._size = 0
        self._taking = 0  # requests that are not answered yet
        self._message_id = 0
        self._held: dict[int, Owed] = {}  # what nobody else reports as long as the association lasts
        self._reported: dict[int, tuple[Owed, Report]] = {}  # by message ID: what waits for being confirmed
        self._timers: set[IDelayedCall] = set()
        self._ended = False

    def request(self, context_id: int, command: Command) -> bool:
        """See IService."""
        command.message_id  # noqa: B018 - a request that cannot be answered is no message
        action = _Action(context_id, command, _refusal(command))
        if not command.has_data_set:
            self._respond(
                action, *(action.refusal or (ActionStatus.INVALID_ARGUMENT_VALUE, "no Action Information"))
            )
            return False
        self._action, self._data, self._size = action, bytearray(), 0
        return True

    def response(self, command: Command) -> None:
        """See IService."""
        if command.command_field == dimse.N_EVENT_REPORT_RQ | dimse.RESPONSE:
            self._confirmed(command)

    def write(self, data: memoryview) -> None:
        """See IService. What is too much is not kept."""
        self._size += len(data)
        if self._size <= self._longest:
            self._data += data

    def data_set_complete(self) -> None:
        """See IService."""
        action, self._action = self._action, None
        assert action is not None
        data, self._data = bytes(self._data), bytearray()
        if action.refusal is not None:
            self._respond(action, *action.refusal)
        elif self._size > self._longest:
            self._respond(action, ActionStatus.RESOURCE_LIMITATION, f"more than {self._longest} bytes")
        elif self._taking >= MOST_AT_ONCE:
            self._respond(action, ActionStatus.RESOURCE_LIMITATION, "too many requests at once")
        else:
            association = self._association
            self._taking += 1
            self._user.request_begun()
            self._ledger.take(
                data,
                association.contexts[action.context_id].transfer_syntax,
                association.calling_ae_title,
                association.called_ae_title,
            ).addCallbacks(
                self._taken, self._not_taken, callbackArgs=(action,), errbackArgs=(action,)
            ).addBoth(self._answered)

    def association_ended(self) -> None:
        """See IService."""
        self._ended = True
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        held, self._held = self._held, {}
        for owed in held.values():
            self._ledger.let_go(owed)

    # -- requests --

    def _taken(self, result: tuple[Taken, Owed | None], action: _Action) -> None:
        taken, owed = result
        if taken is Taken.IN_USE:
            self._respond(action, ActionStatus.INVALID_ARGUMENT_VALUE, "the Transaction UID is in use")
            return
        if taken is Taken.TOO_MANY:
            self._respond(
                action, ActionStatus.RESOURCE_LIMITATION, "too many requests wait for their reports"
            )
            return
        self._respond(action, ActionStatus.SUCCESS)
        if owed is None:
            return
        self.log.info(
            "storage commitment: {calling} asks for {count:instance}, transaction {uid}",
            calling=owed.calling_ae_title,
            count=Count(len(owed.request.references)),
            uid=owed.request.transaction_uid,
        )
        if self._ended:
            self._ledger.let_go(owed)
            return
        self._held[owed.id] = owed
        self._later(self._ledger.settings.delay, lambda: self._report(owed, action.context_id))

    def _not_taken(self, failure: Failure, action: _Action) -> None:
        error = failure.value
        if isinstance(error, BadRequest):
            self._respond(action, error.status, str(error))
        elif isinstance(error, CommitmentsUnavailable):
            self.log.error("{error}", error=error)
            self._respond(action, ActionStatus.RESOURCE_LIMITATION, "requests cannot be taken at present")
        else:
            self.log.failure("a request for storage commitment could not be taken", failure)
            self._respond(action, ActionStatus.PROCESSING_FAILURE, "internal error")

    def _answered(self, _: object) -> None:
        self._taking -= 1
        self._user.request_ended()

    def _respond(self, action: _Action, status: ActionStatus, comment: str = "") -> None:
        if status is not ActionStatus.SUCCESS:
            self.log.warn(
                "storage commitment: request from {calling} refused: {status:04X}H {comment}",
                calling=self._association.calling_ae_title,
                status=status,
                comment=comment,
            )
        # What an N-ACTION-RQ requests is what its response says to be affected, PS3.7 §10.3.3.
        elements = dict(action.command.elements)
        for requested, affected in (
            (dimse.REQUESTED_SOP_CLASS_UID, dimse.AFFECTED_SOP_CLASS_UID),
            (dimse.REQUESTED_SOP_INSTANCE_UID, dimse.AFFECTED_SOP_INSTANCE_UID),
        ):
            if requested in elements:
                elements[affected] = elements.pop(requested)
        self._user.respond(action.context_id, Command(elements), status, comment)

    # -- reports --

    def _report(self, owed: Owed, context_id: int) -> None:
        transfer_syntax = self._association.contexts[context_id].transfer_syntax
        encoding: Deferred[Encoded] = self._ledger.encoded(owed, transfer_syntax)
        encoding.addCallbacks(
            self._send, self._cannot_tell, callbackArgs=(owed, context_id), errbackArgs=(owed,)
        )

    def _send(self, encoded: Encoded, owed: Owed, context_id: int) -> None:
        if owed.id not in self._held:
            return  # the association has ended
        association = self._association
        if not association.can_send or association.is_releasing:
            self._let_go(owed)
            return
        self._message_id = message_id = self._message_id % 0xFFFF + 1
        report = encoded.report
        self._reported[message_id] = owed, report
        self._later(RESPONSE_TIMEOUT, lambda: self._not_confirmed(message_id, "no response"))
        association.send_message(
            context_id, encode_event_report(message_id, report.event_type_id), encoded.data_set
        )

    def _cannot_tell(self, failure: Failure, owed: Owed) -> None:
        self._ledger.failed(failure)
        if self._held.pop(owed.id, None) is not None:
            self._ledger.postpone(owed)

    def _confirmed(self, command: Command) -> None:
        message_id = command.integer(dimse.MESSAGE_ID_BEING_RESPONDED_TO)
        status = command.integer(dimse.STATUS)
        if status != ActionStatus.SUCCESS:
            self._not_confirmed(message_id, f"status {status:04X}H")
        elif message_id in self._reported:
            owed, report = self._reported.pop(message_id)
            del self._held[owed.id]
            self._ledger.confirmed(owed, report, "on its association", self.log)

    def _not_confirmed(self, message_id: int, why: str) -> None:
        if message_id in self._reported:
            owed, _ = self._reported.pop(message_id)
            self.log.warn(
                "storage commitment: {calling} does not confirm a report on its association: {why}",
                calling=owed.calling_ae_title,
                why=why,
            )
            self._let_go(owed)

    def _let_go(self, owed: Owed) -> None:
        del self._held[owed.id]
        self._ledger.let_go(owed)

    def _later(self, delay: float, function: Callable[[], None]) -> None:
        def call() -> None:
            self._timers.discard(timer)
            function()

        timer = self._clock.callLater(delay, call)
        self._timers.add(timer)


def _refusal(command: Command) -> tuple[ActionStatus, str] | None:
    """Why a request is none for this service, before its data set is looked at."""
    if command.command_field != dimse.N_ACTION_RQ:
        return ActionStatus.UNRECOGNIZED_OPERATION, ""
    if command.uid(dimse.REQUESTED_SOP_CLASS_UID) != STORAGE_COMMITMENT:
        return ActionStatus.NO_SUCH_SOP_CLASS, ""
    if command.uid(dimse.REQUESTED_SOP_INSTANCE_UID) != STORAGE_COMMITMENT_INSTANCE:
        return ActionStatus.NO_SUCH_SOP_INSTANCE, ""
    if command.integer(dimse.ACTION_TYPE_ID) != REQUEST_STORAGE_COMMITMENT:
        return ActionStatus.NO_SUCH_ACTION, ""
    return None
