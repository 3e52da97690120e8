"""A Verification and Storage SCU, PS3.4 Annexes A and B, over a blocking socket. No Twisted.

What belongs here: one association as its requestor, and as many messages at a time as the peer agrees to. Nothing is
printed and no file is searched for; every failure of the association is an AssociationError in one line.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, NoReturn

from storescp import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, dimse
from storescp.dimse import Command, InvalidMessage, MessageReader
from storescp.extended_negotiation import OperationsWindow, operations_window
from storescp.pdu import (
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    Fragment,
    PresentationContext,
    UserIdentity,
    UserInformation,
)
from storescp.scu_errors import AssociationError, ContextNotAccepted, Rejected, aborted
from storescp.scu_tls import tls_reason
from storescp.state_table import State
from storescp.stored_file import read_at
from storescp.upper_layer import (
    AbortIndication,
    AssociateConfirmation,
    Indication,
    ReleaseConfirmation,
    ReleaseIndication,
    UpperLayer,
)

#: The longest P-DATA-TF that we take; responses are all that comes.
MAXIMUM_LENGTH = 16384

#: Bytes of a data set that are read and sent in one step; even, as every fragment must be (PS3.8 Annex E.1).
PIECE = 256 * 1024

_US = struct.Struct("<H")


class Response(NamedTuple):
    """How the peer answered: Status and Error Comment, PS3.7 Annex C."""

    status: int
    comment: str


class SCU:
    """An association with the application entity at *host* and *port*.

    *contexts* are pairs of abstract and transfer syntax, each proposed as a presentation context of its own, so
    that what is accepted is known exactly; at most MAXIMUM_CONTEXTS. *timeout* is in seconds, for the connection and
    for each answer. *user* is who asks; if a positive response is requested, the lack of one is an error. *tls* makes
    the connection a secure one. So many operations as *window* says are asked to be outstanding at a time, PS3.7
    §D.3.3.3; ``window`` is how many the peer allows. All methods but abort() raise AssociationError, after which the
    association is over. As a context manager it releases the association at the end, or aborts it when something was
    raised.
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
        window: int = 1,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout = timeout
        self._user = user
        self.window = window
        self._upper_layer = UpperLayer(MAXIMUM_LENGTH)
        self._messages = MessageReader()
        self._message_id = 0
        self._outstanding: dict[int, int] = {}  # command fields by message ID
        self._arrived: deque[tuple[int, Response]] = deque()
        self.accepted: dict[tuple[str, str], int] = {}
        self._socket = _connected(host, port, timeout, tls)
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
        self._flush()
        return self.response()[1]

    def send(
        self,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        descriptor: int,
        offset: int,
    ) -> int:
        """C-STORE, PS3.7 §9.1.1, of the data set that an open file has from *offset* to its end; the message ID.

        There must be room for it in the window. Raises ContextNotAccepted, and OSError when the file cannot be read;
        then only abort() is left.
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
                return self._message_id

    def response(self) -> tuple[int, Response]:
        """Wait for the next answer: the message ID of what it is to, and what it says."""
        while not self._arrived:
            self._take(self._next())
        return self._arrived.popleft()

    def arrived(self) -> list[tuple[int, Response]]:
        """The answers that came before an AssociationError, and that nobody has asked for."""
        arrived = list(self._arrived)
        self._arrived.clear()
        return arrived

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
            self._close()

    def abort(self) -> None:
        """Abort the association, PS3.8 §7.3, if there still is one, and close the connection."""
        if self._upper_layer.is_established:
            self._upper_layer.abort()
            try:
                self._socket.sendall(self._upper_layer.data_to_send())
            except OSError:
                pass  # gone already
        self._close()

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
            other=(OperationsWindow(self.window, 1).item,) if self.window != 1 else (),
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
        window = operations_window(event.response.user_information.other) or OperationsWindow()
        self.window = min(self.window, window.invoked or self.window)
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
        self._outstanding[self._message_id] = command_field
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

    def _take(self, event: Indication) -> None:
        """Take what the peer said: of an answer, perhaps a part."""
        if isinstance(event, ReleaseIndication):
            self._upper_layer.release_response()
            self._flush()
            self._close()
            raise AssociationError(
                "the peer released the association instead of an answer", is_transient=True
            )
        assert isinstance(event, Fragment)  # _next() raises for the other indications of state 6
        try:
            if not event.is_command:
                raise InvalidMessage("a data set that nobody asked for")
            command = self._messages.command(event)
            if command is not None:
                self._arrived.append(self._answer(command))
        except InvalidMessage as error:
            self._give_up(f"the peer broke the protocol: {error}")

    def _answer(self, command: Command) -> tuple[int, Response]:
        field = command.command_field
        if not field & dimse.RESPONSE:
            raise InvalidMessage(f"a message {field:04X}H instead of a response")
        message_id = command.integer(dimse.MESSAGE_ID_BEING_RESPONDED_TO)
        if self._outstanding.pop(message_id, None) != field & ~dimse.RESPONSE:
            raise InvalidMessage("a response to another message")
        comment = command.elements.get(dimse.ERROR_COMMENT, b"").decode("latin-1").strip("\0 ")
        return message_id, Response(command.integer(dimse.STATUS), comment)

    def _give_up(self, why: str, *, is_transient: bool = False) -> NoReturn:
        self.abort()
        raise AssociationError(why, is_transient=is_transient)

    # -- bytes --

    def _flush(self) -> None:
        try:
            self._socket.sendall(self._upper_layer.data_to_send())
        except TimeoutError:
            self._give_up(f"the peer took no data for {self._timeout:g} s", is_transient=True)
        except OSError:
            # What the peer said last, answers and A-ABORT perhaps, may still be there to be read.
            while self._upper_layer.state is State.DATA_TRANSFER:
                self._take(self._next())
            self._next()
            self._give_up("the connection was lost", is_transient=True)

    def _next(self) -> Indication:
        """The peer's next indication."""
        while True:
            event = self._upper_layer.next_event()
            if event is None:
                try:
                    data = self._socket.recv(65536)
                except TimeoutError:
                    self._give_up(f"no answer within {self._timeout:g} s", is_transient=True)
                except ssl.SSLError as error:
                    self._upper_layer.connection_lost()
                    self._give_up(f"the TLS connection failed: {tls_reason(error)}")
                except OSError:
                    data = b""
                if data:
                    self._upper_layer.receive_data(data)
                    continue
                self._upper_layer.connection_lost()
                self._give_up("the connection was lost", is_transient=True)
            if isinstance(event, AbortIndication):
                self._farewell()
                raise aborted(event)
            return event

    def _farewell(self) -> None:
        """Send the A-ABORT that the upper layer owes to a peer that broke the protocol."""
        try:
            self._socket.sendall(self._upper_layer.data_to_send())
        except OSError:
            pass
        self._close()

    def _close(self) -> None:
        if isinstance(self._socket, ssl.SSLSocket):
            try:
                self._socket.settimeout(0)  # TLS says farewell, and does not wait for the peer's
                self._socket.unwrap()
            except (OSError, ValueError):
                pass
        self._socket.close()


def _connected(host: str, port: int, timeout: float, tls: ssl.SSLContext | None) -> socket.socket:
    """A connection. Raises AssociationError."""
    try:
        connection = socket.create_connection((host, port), timeout)
    except TimeoutError:
        raise AssociationError(f"no connection within {timeout:g} s", is_transient=True) from None
    except (OSError, UnicodeError) as error:  # UnicodeError: no name that DNS could have
        reason = error.strerror if isinstance(error, OSError) else None
        is_known = isinstance(error, OSError) and not isinstance(error, socket.gaierror)
        raise AssociationError(f"cannot connect: {reason or error}", is_transient=is_known) from None
    if tls is None:
        return connection
    try:
        return tls.wrap_socket(connection, server_hostname=host)
    except (OSError, ValueError) as error:  # ValueError: no name that a certificate could have
        connection.close()
        if isinstance(error, TimeoutError):
            raise AssociationError(f"no TLS handshake within {timeout:g} s", is_transient=True) from None
        raise AssociationError(f"the TLS handshake failed: {tls_reason(error)}") from None


def _uid(uid: str) -> bytes:
    value = uid.encode("ascii")
    return value + b"\0" * (len(value) & 1)
