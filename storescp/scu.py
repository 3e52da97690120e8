"""A Verification and Storage SCU, PS3.4 Annexes A and B, over a blocking socket. No Twisted.

What belongs here: one association as its requestor, one message at a time. Nothing is printed and no file is
searched for; every failure of the association is an AssociationError in one line.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, NoReturn

from storescp import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, dimse
from storescp.dimse import Command, InvalidMessage, MessageReader
from storescp.pdu import (
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    Fragment,
    PresentationContext,
    UserIdentity,
    UserInformation,
)
from storescp.stored_file import read_at
from storescp.upper_layer import (
    AbortIndication,
    AssociateConfirmation,
    Indication,
    ReleaseConfirmation,
    ReleaseIndication,
    UpperLayer,
)

#: Presentation contexts of one association: their IDs are the odd numbers of a byte, PS3.8 §9.3.2.2.
MAX_CONTEXTS = 128

#: The longest P-DATA-TF that we take; responses are all that comes.
MAXIMUM_LENGTH = 16384

#: Bytes of a data set that are read and sent in one step; even, as every fragment must be (PS3.8 Annex E.1).
PIECE = 256 * 1024

# PS3.8 Tables 9-21 and 9-26, in the standard's words.
_RESULTS = {1: "permanent", 2: "transient"}
_SOURCES = {
    1: "service-user",
    2: "service-provider (ACSE related function)",
    3: "service-provider (Presentation related function)",
}
_REASONS = {
    (1, 1): "no-reason-given",
    (1, 2): "application-context-name-not-supported",
    (1, 3): "calling-AE-title-not-recognized",
    (1, 7): "called-AE-title-not-recognized",
    (2, 1): "no-reason-given",
    (2, 2): "protocol-version-not-supported",
    (3, 1): "temporary-congestion",
    (3, 2): "local-limit-exceeded",
}
_ABORT_REASONS = {
    0: "reason-not-specified",
    1: "unrecognized-PDU",
    2: "unexpected-PDU",
    4: "unrecognized-PDU-parameter",
    5: "unexpected-PDU-parameter",
    6: "invalid-PDU-parameter-value",
}
_US = struct.Struct("<H")


class AssociationError(Exception):
    """There is no association, or no more. The message is one line without the peer's address."""


class Rejected(AssociationError):
    """The peer sent A-ASSOCIATE-RJ; ``response`` has the numbers."""

    def __init__(self, response: AAssociateRJ) -> None:
        result, source, reason = response.result, response.source, response.reason
        super().__init__(
            f"association rejected ({_RESULTS.get(result, f'result {result}')}) by the"
            f" {_SOURCES.get(source, f'source {source}')}: {_REASONS.get((source, reason), f'reason {reason}')}"
        )
        self.response = response


class ContextNotAccepted(Exception):
    """The peer does not take this SOP class in this transfer syntax; the association goes on."""

    def __init__(self, abstract_syntax: str, transfer_syntax: str) -> None:
        super().__init__(f"presentation context not accepted: {abstract_syntax} in {transfer_syntax}")


class Response(NamedTuple):
    """How the peer answered: Status and Error Comment, PS3.7 Annex C."""

    status: int
    comment: str


class SCU:
    """An association with the application entity at *host* and *port*.

    *contexts* are pairs of abstract and transfer syntax, each proposed as a presentation context of its own, so
    that what is accepted is known exactly; at most MAX_CONTEXTS. *timeout* is in seconds, for the connection and
    for each answer. *user* is who asks; if a positive response is requested, the lack of one is an error. All methods
    but abort() raise AssociationError, after which the association is over. As a context manager it releases the
    association at the end, or aborts it when something was raised.
    """

    def __init__(
        self,
        host: str,
        port: int,
        contexts: Sequence[tuple[str, str]],
        *,
        calling_ae_title: str,
        called_ae_title: str,
        timeout: float,
        user: UserIdentity | None = None,
    ) -> None:
        self._timeout = timeout
        self._user = user
        self._upper_layer = UpperLayer(MAXIMUM_LENGTH)
        self._messages = MessageReader()
        self._message_id = 0
        self.accepted: dict[tuple[str, str], int] = {}
        try:
            self._socket = socket.create_connection((host, port), timeout)
        except TimeoutError:
            raise AssociationError(f"no connection within {timeout:g} s") from None
        except (OSError, UnicodeError) as error:  # UnicodeError: no name that DNS could have
            reason = error.strerror if isinstance(error, OSError) else None
            raise AssociationError(f"cannot connect: {reason or error}") from None
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._associate(contexts, calling_ae_title, called_ae_title)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> SCU:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._upper_layer.is_established:
            self.release()
        else:
            self.abort()

    def echo(self, abstract_syntax: str, transfer_syntax: str) -> Response:
        """C-ECHO, PS3.7 §9.1.5. Raises ContextNotAccepted."""
        context_id = self._context(abstract_syntax, transfer_syntax)
        self._send_command(context_id, dimse.C_ECHO_RQ, abstract_syntax, {})
        return self._response(dimse.C_ECHO_RQ)

    def store(
        self,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        descriptor: int,
        offset: int,
    ) -> Response:
        """C-STORE, PS3.7 §9.1.1, of the data set that an open file has from *offset* to its end.

        Raises ContextNotAccepted, and OSError when the file cannot be read; then only abort() is left.
        """
        context_id = self._context(sop_class_uid, transfer_syntax_uid)
        self._send_command(
            context_id,
            dimse.C_STORE_RQ,
            sop_class_uid,
            {
                dimse.PRIORITY: _US.pack(0),  # medium
                dimse.AFFECTED_SOP_INSTANCE_UID: _uid(sop_instance_uid),
            },
        )
        end = os.fstat(descriptor).st_size
        while True:
            piece = read_at(descriptor, min(PIECE, end - offset), offset)
            offset += len(piece)
            if not piece and offset < end:
                raise OSError("the file has become shorter while it was read")
            # Fragments are even (PS3.8 Annex E.1). Only a deflated data set may want its padding (PS3.5 §A.5).
            piece += b"\0" * (len(piece) & 1)
            self._upper_layer.send_data(context_id, False, piece, is_last=offset >= end)
            self._flush()
            if offset >= end:
                return self._response(dimse.C_STORE_RQ)

    def release(self) -> None:
        """Release the association, PS3.8 §7.2, and close the connection."""
        try:
            self._upper_layer.release()
            self._flush()
            while not isinstance(event := self._next(), ReleaseConfirmation):
                if not isinstance(event, ReleaseIndication):
                    self._give_up("the peer answered A-RELEASE-RQ with data")
                self._upper_layer.release_response()  # both have asked at once
                self._flush()
        finally:
            self._socket.close()

    def abort(self) -> None:
        """Abort the association, PS3.8 §7.3, if there still is one, and close the connection."""
        if self._upper_layer.is_established:
            self._upper_layer.abort()
            try:
                self._socket.sendall(self._upper_layer.data_to_send())
            except OSError:
                pass  # gone already
        self._socket.close()

    # -- the association --

    def _associate(
        self, contexts: Sequence[tuple[str, str]], calling_ae_title: str, called_ae_title: str
    ) -> None:
        proposed = tuple(
            PresentationContext(2 * number + 1, abstract_syntax, (transfer_syntax,))
            for number, (abstract_syntax, transfer_syntax) in enumerate(contexts)
        )
        user_information = UserInformation(
            MAXIMUM_LENGTH,
            IMPLEMENTATION_CLASS_UID,
            IMPLEMENTATION_VERSION_NAME,
            user_identity=self._user,
        )
        self._upper_layer.associate(
            AAssociateRQ(called_ae_title, calling_ae_title, proposed, user_information)
        )
        self._flush()
        event = self._next()
        assert isinstance(event, AssociateConfirmation)  # the only indication that Table 9-10 has in state 5
        if isinstance(event.response, AAssociateRJ):
            raise Rejected(event.response)
        assert isinstance(event.response, AAssociateAC)
        wanted = self._user is not None and self._user.positive_response_requested
        if wanted and event.response.user_information.user_identity_response is None:
            self._give_up("the peer does not say that it has checked the user")
        results = {context.id: context.result for context in event.response.presentation_contexts}
        self.accepted = {
            (context.abstract_syntax, context.transfer_syntaxes[0]): context.id
            for context in proposed
            if results.get(context.id) == 0
        }

    def _context(self, abstract_syntax: str, transfer_syntax: str) -> int:
        context_id = self.accepted.get((abstract_syntax, transfer_syntax))
        if context_id is None:
            raise ContextNotAccepted(abstract_syntax, transfer_syntax)
        return context_id

    # -- messages --

    def _send_command(
        self, context_id: int, command_field: int, sop_class_uid: str, elements: dict[int, bytes]
    ) -> None:
        """Queue a command; it goes with the first piece of its data set, if there is one."""
        self._message_id = self._message_id % 0xFFFF + 1
        has_data_set = command_field == dimse.C_STORE_RQ
        command = dimse.encode_command(
            {
                dimse.AFFECTED_SOP_CLASS_UID: _uid(sop_class_uid),
                dimse.COMMAND_FIELD: _US.pack(command_field),
                dimse.MESSAGE_ID: _US.pack(self._message_id),
                dimse.COMMAND_DATA_SET_TYPE: _US.pack(0x0001 if has_data_set else dimse.NO_DATA_SET),
                **elements,
            }
        )
        self._upper_layer.send_data(context_id, True, command)

    def _response(self, command_field: int) -> Response:
        self._flush()
        try:
            command = self._command()
            if command.command_field != command_field | dimse.RESPONSE:
                raise InvalidMessage(f"a message {command.command_field:04X}H instead of a response")
            if command.integer(dimse.MESSAGE_ID_BEING_RESPONDED_TO) != self._message_id:
                raise InvalidMessage("a response to another message")
            comment = command.elements.get(dimse.ERROR_COMMENT, b"").decode("latin-1").strip("\0 ")
            return Response(command.integer(dimse.STATUS), comment)
        except InvalidMessage as error:
            self._give_up(f"the peer broke the protocol: {error}")

    def _command(self) -> Command:
        while True:
            event = self._next()
            if isinstance(event, ReleaseIndication):
                self._upper_layer.release_response()
                self._flush()
                self._socket.close()
                raise AssociationError("the peer released the association instead of an answer")
            assert isinstance(event, Fragment)  # _next() raises for the other indications of state 6
            if not event.is_command:
                raise InvalidMessage("a data set that nobody asked for")
            command = self._messages.command(event)
            if command is not None:
                return command

    def _give_up(self, why: str) -> NoReturn:
        self.abort()
        raise AssociationError(why)

    # -- bytes --

    def _flush(self) -> None:
        try:
            self._socket.sendall(self._upper_layer.data_to_send())
        except TimeoutError:
            self._give_up(f"the peer took no data for {self._timeout:g} s")
        except OSError:
            # What the peer said last, A-ABORT perhaps, may still be there to be read.
            self._next()
            self._give_up("the connection was lost")

    def _next(self) -> Indication:
        """The peer's next indication."""
        while True:
            event = self._upper_layer.next_event()
            if event is None:
                try:
                    data = self._socket.recv(65536)
                except TimeoutError:
                    self._give_up(f"no answer within {self._timeout:g} s")
                except OSError:
                    data = b""
                if data:
                    self._upper_layer.receive_data(data)
                    continue
                self._upper_layer.connection_lost()
                self._give_up("the connection was lost")
            if isinstance(event, AbortIndication):
                self._farewell()
                raise AssociationError(_abort_text(event))
            return event

    def _farewell(self) -> None:
        """Send the A-ABORT that the upper layer owes to a peer that broke the protocol."""
        try:
            self._socket.sendall(self._upper_layer.data_to_send())
        except OSError:
            pass
        self._socket.close()


def _abort_text(event: AbortIndication) -> str:
    if not event.by_peer:
        return f"the peer broke the protocol: {event.why}"
    if event.source == 0:
        return "association aborted by the service-user"
    reason = _ABORT_REASONS.get(event.reason, f"reason {event.reason}")
    return f"association aborted by the service-provider: {reason}"


def _uid(uid: str) -> bytes:
    value = uid.encode("ascii")
    return value + b"\0" * (len(value) & 1)
