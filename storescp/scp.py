"""The services: Verification (PS3.4 Annex A) and Storage (PS3.4 Annex B) as an SCP.

What belongs here: what a message means and how it is answered. Where instances go is the store's business, and storage
commitment that of :mod:`storescp.commitment`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.logger import LogEvent
from zope.interface import implementer

from storescp import dimse, tags
from storescp.dimse import Command, MessageReader, Status, encode_response
from storescp.interfaces import (
    IAssociation,
    IAssociationUser,
    IIncomingInstance,
    IInstanceStore,
    IService,
    Origin,
    Outcome,
)
from storescp.logs import AssociationLogger, info_emitter
from storescp.measurements import Sender
from storescp.naming import Duplicate
from storescp.pdu import Fragment
from storescp.sop_classes import STORAGE_COMMITMENT, VERIFICATION
from storescp.statistics import Statistics

if TYPE_CHECKING:
    from storescp.audit import Transfers

#: The SOP classes with a service of their own, whose contexts nothing is stored on.
_NOT_STORAGE = frozenset((VERIFICATION, STORAGE_COMMITMENT))


@implementer(IAssociationUser)
class StorageSCP:
    """The services on one association. See IAssociationUser.

    Whether the peer has the answer to an instance is told the store as soon as that is certain: of as many answers as
    requests have come beyond the window, for so many have made room for others; and of all when it asks for release.

    *commitment* makes that of storage commitment, if it is given.
    """

    log = AssociationLogger()

    def __init__(
        self,
        association: IAssociation,
        store: IInstanceStore,
        statistics: Statistics,
        *,
        log_patient_data: bool = False,
        max_object_size: int = 0,
        duplicate: Duplicate | None = None,
        recorder: Sender | None = None,
        commitment: Callable[[StorageSCP], IService] | None = None,
        transfers: Transfers | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.association = association
        self.association_id = association.association_id
        self._store = store
        self._statistics = statistics
        self._log_patient_data = log_patient_data
        self._max_object_size = max_object_size
        self._duplicate = association.caller.duplicate or duplicate
        self._recorder = recorder
        self._transfers = transfers  # for the audit trail, if there is one
        self._size = 0  # of the data set that is arriving, as far as there is a limit
        self._monotonic = monotonic
        self._messages = MessageReader()
        self._incoming: IIncomingInstance | None = None
        self._request: tuple[int, Command, float] | None = None  # whose data set is arriving
        self._refusal: tuple[Status, str] | None = None
        self._make_commitment = commitment
        self._commitment: IService | None = None
        self._service: IService | None = None  # that wants the data set that is arriving
        self._outstanding = 0
        self._window = association.operations_window
        # Message IDs that a peer with a larger window waits for; whoever answers takes them out, before that.
        self._invoked: set[int] | None = set() if self._window > 1 else None
        self._is_held_back = False
        self._late: set[int] = set()  # those that it does not wait for, as it asks for release
        # Where those instances are of which it is not certain yet that the peer has the answer.
        self._answered: list[str] = []
        self._certain = -self._window  # how many answers the peer must have beyond those that were told
        self._has_ended = False

    @property
    def busy(self) -> bool:
        """Whether instances are being stored that are not answered yet."""
        if self._outstanding:
            self._store.collect()
        return self._outstanding > 0

    @property
    def incomplete(self) -> object:
        """See IAssociationUser."""
        return self._messages.incomplete

    def fragment_received(self, fragment: Fragment) -> None:
        """See IAssociationUser."""
        if fragment.is_command:
            command = self._messages.command(fragment)
            if command is not None:
                self._command(fragment.presentation_context_id, command)
            return
        self._messages.data_set(fragment)
        if self._max_object_size:
            self._limit_size(len(fragment.data))
        incoming = self._incoming
        if incoming is not None:
            incoming.write(fragment.data)
        elif self._service is not None:
            self._service.write(fragment.data)
        if fragment.is_last:
            self._data_set_complete()

    def release_requested(self) -> bool:
        """See IAssociationUser."""
        if not self.busy:
            return False
        if self._invoked:
            self._late.update(self._invoked)
        self._store.hurry()
        return True

    def association_ended(self, *, released: bool) -> None:
        """See IAssociationUser."""
        self._settle_answered(len(self._answered), arrived=released)
        if self._incoming is not None:
            self._incoming.cancel()
            self._incoming = None
        self._has_ended = True
        self._report_transfers()
        if self._commitment is not None:
            self._commitment.association_ended()

    def request_begun(self) -> None:
        """A service has a request to answer, which a release has to wait for."""
        self._outstanding += 1

    def request_ended(self) -> None:
        """It is answered."""
        self._outstanding -= 1
        self._report_transfers()
        if not self._outstanding:
            self.association.idle()

    def _report_transfers(self) -> None:
        """Have reported what was received, when that is over."""
        if self._transfers is not None and self._has_ended and not self._outstanding:
            self._transfers.report()

    def _command(self, context_id: int, command: Command) -> None:
        self._statistics.messages += 1
        context = self.association.contexts.get(context_id)
        if context is None:
            raise dimse.InvalidMessage(
                f"a message on presentation context {context_id}, which was not accepted"
            )
        field = command.command_field
        if field == dimse.C_CANCEL_RQ or field & dimse.RESPONSE:
            if self._commitment is not None and field & dimse.RESPONSE:
                self._commitment.response(command)
            else:
                # Nothing here can be cancelled, and nothing was asked of the peer: there is nothing to answer.
                self.log.debug("ignored command {field:04X}H", field=field)
            return
        self._certain += 1
        if self._answered and self._certain > 0:
            self._settle_answered(self._certain, arrived=True)
        if field == dimse.C_STORE_RQ:
            self._c_store(context_id, command)
        elif context.abstract_syntax == STORAGE_COMMITMENT and self._make_commitment is not None:
            if self._commitment is None:
                self._commitment = self._make_commitment(self)
            if self._commitment.request(context_id, command):
                self._service = self._commitment
        elif command.has_data_set:
            self._request = (context_id, command, 0.0)
            self._refusal = (Status.UNRECOGNIZED_OPERATION, "")
        elif field == dimse.C_ECHO_RQ and context.abstract_syntax == VERIFICATION:
            self.respond(context_id, command, Status.SUCCESS)
        else:
            self.respond(context_id, command, Status.UNRECOGNIZED_OPERATION)

    def _c_store(self, context_id: int, command: Command) -> None:
        association = self.association
        context = association.contexts[context_id]
        sop_class = command.uid(dimse.AFFECTED_SOP_CLASS_UID)
        message_id = command.message_id  # a request that cannot be answered is no message
        request = (context_id, command, self._monotonic())
        refusal: tuple[Status, str] | None = None
        if sop_class != context.abstract_syntax:
            refusal = Status.SOP_CLASS_NOT_SUPPORTED, "not the SOP class of the presentation context"
        elif sop_class in _NOT_STORAGE:
            refusal = Status.UNRECOGNIZED_OPERATION, ""
        elif self._invoked is not None and message_id in self._invoked:
            refusal = Status.DUPLICATE_INVOCATION, "an operation with this message ID is outstanding"
        if not command.has_data_set:
            self._refuse(request, *(refusal or (Status.CANNOT_UNDERSTAND, "no data set")))
            return
        self._request, self._refusal = request, refusal
        self._size = 0
        if refusal is None:
            if self._invoked is not None:
                self._invoke(message_id, self._invoked)
            origin = Origin(
                sop_class,
                command.uid(dimse.AFFECTED_SOP_INSTANCE_UID),
                context.transfer_syntax,
                association.calling_ae_title,
                association.called_ae_title,
                association.caller.directory,
                self._duplicate,
                self.association_id,
            )
            self._incoming = self._store.begin(origin, association)

    def _invoke(self, message_id: int, invoked: set[int]) -> None:
        """One more operation is outstanding. PS3.7 does not say what becomes of one too many: it waits."""
        if len(invoked) >= self._window:
            self._is_held_back = True
            self.association.hold_back(True)
            self._store.hurry()
        invoked.add(message_id)

    def _limit_size(self, more: int) -> None:
        """Give up an instance as soon as it is too large: what was stored of it goes, what still comes is not kept.

        It is answered when all of it has come: senders do not listen before.
        """
        self._size += more
        if self._incoming is not None and self._size > self._max_object_size:
            self._incoming.cancel()
            self._incoming = None
            if self._invoked is not None and self._request is not None:
                self._invoked.discard(self._request[1].message_id)
            self._statistics.oversized += 1
            self._refusal = Status.OUT_OF_RESOURCES, f"larger than {self._max_object_size} bytes"

    def _data_set_complete(self) -> None:
        request, incoming = self._request, self._incoming
        self._request = self._incoming = None
        if request is None:
            service, self._service = self._service, None
            if service is not None:
                service.data_set_complete()
            return  # else it is of a command that gets no answer
        if incoming is None:
            assert self._refusal is not None
            self._refuse(request, *self._refusal)
            return
        self._outstanding += 1
        context_id, command, began = request
        send = self.association.send_from_thread
        invoked = self._invoked
        timing = None if self._recorder is None else Timing(self._monotonic, began, self._recorder)

        def answer(status: Status, comment: str) -> bool:
            if invoked is not None:
                invoked.discard(command.message_id)  # first: who has the answer may use it again
            is_sent = send(context_id, encode_response(command, status, comment))
            if timing is not None:
                timing.answered()
            return is_sent

        incoming.finish(answer).addCallback(self._stored, request, timing)

    def _refuse(self, request: tuple[int, Command, float], status: Status, comment: str) -> None:
        context_id, command, _ = request
        if command.command_field == dimse.C_STORE_RQ:
            self._statistics.instances_failed += 1
            if self._recorder is not None:
                self._recorder.answered(None, status, 0, 0.0)
            self.log.warn(
                "C-STORE from {calling} refused: {status:04X}H {comment}",
                calling=self.association.calling_ae_title,
                status=status,
                comment=comment,
            )
        self.respond(context_id, command, status, comment)

    def _stored(
        self, outcome: Outcome, request: tuple[int, Command, float], timing: Timing | None = None
    ) -> None:
        self._outstanding -= 1
        context_id, command, began = request
        if self._invoked is not None:
            self._invoked.discard(command.message_id)
            self._make_room(self._invoked)
        statistics = self._statistics
        if outcome.status is Status.SUCCESS:
            statistics.instances_stored += 1
            statistics.bytes_stored += outcome.size
        else:
            statistics.instances_failed += 1
        if outcome.is_answered:
            self.association.sent_from_thread()
        else:
            self._send(context_id, command, outcome.status, outcome.comment)
        if timing is not None:
            timing.record(outcome)
        if not outcome.is_open:
            self._certain -= 1
        elif self.association.can_send and not (self._late and command.message_id in self._late):
            self._answered.append(outcome.path)
        else:
            self._store.unacknowledged(outcome.path)
        self._log_store(outcome, began)
        if self._transfers is not None:
            self._transfers.add(outcome)
            self._report_transfers()
        if not self._outstanding:
            self.association.idle()

    def _make_room(self, invoked: set[int]) -> None:
        if self._is_held_back:
            self._is_held_back = len(invoked) >= self._window
            if self._is_held_back:
                self._store.hurry()
            else:
                self.association.hold_back(False)

    def _settle_answered(self, count: int, *, arrived: bool) -> None:
        """Tell of the first *count* answers, as far as there are so many."""
        answered = self._answered[:count]
        del self._answered[:count]
        self._certain -= len(answered)
        tell = self._store.acknowledged if arrived else self._store.unacknowledged
        for path in answered:
            tell(path)

    def respond(self, context_id: int, command: Command, status: int, comment: str = "") -> None:
        """Answer what is no instance that was stored."""
        self._certain -= 1
        self._send(context_id, command, status, comment)

    def _send(self, context_id: int, command: Command, status: int, comment: str) -> None:
        if self.association.can_send:
            self.association.send_command(context_id, encode_response(command, status, comment))

    def _log_store(self, outcome: Outcome, began: float) -> None:
        head = outcome.head
        modality = (head and head.text(tags.MODALITY)) or "-"
        event: LogEvent = {
            "calling": self.association.calling_ae_title,
            "modality": modality[:16] if modality.isprintable() else "-",  # it must not forge log lines
            "size": outcome.size,
            "ms": (self._monotonic() - began) * 1000,
        }
        text = "C-STORE from {calling}: {modality} {size} bytes in {ms:.1f} ms"
        if head is not None and self._log_patient_data:
            text += " patient {patient!r} study {study!r} instance {instance!r}"
            event["patient"] = head.text(tags.PATIENT_ID) or ""
            event["study"] = head.text(tags.STUDY_INSTANCE_UID)  # not uid(): it may be what failed
            event["instance"] = head.text(tags.SOP_INSTANCE_UID)
        if outcome.status is Status.SUCCESS:
            _info(self, text + " stored", event)
        else:
            self.log.warn(
                text + " failed: {status:04X}H {comment}",
                **event,
                status=outcome.status,
                comment=outcome.comment,
            )


_info = info_emitter(StorageSCP)


class Timing:
    """How long the answer to an instance takes that is there now, and *began* to come then."""

    __slots__ = ("_complete", "_monotonic", "_recorder", "_until")

    def __init__(self, monotonic: Callable[[], float], began: float, recorder: Sender) -> None:
        self._monotonic = monotonic
        self._recorder = recorder
        self._complete = self._until = monotonic()
        recorder.received(self._complete - began)

    def answered(self) -> None:
        """At this moment. Any thread may."""
        self._until = self._monotonic()

    def record(self, outcome: Outcome) -> None:
        """It is, by that thread or by now."""
        if not outcome.is_answered:
            self.answered()
        head = outcome.head
        modality = head.raw.get(tags.MODALITY) if head is not None else None
        self._recorder.answered(modality, outcome.status, outcome.size, self._until - self._complete)
