"""A DICOM peer in memory: real associations with the real protocol, without a socket or a clock that runs.

:class:`World` wires the server's parts together, :class:`Conversation` is one connection to it:

    world = World()
    peer = world.connect()
    peer.associate()
    peer.store(data_set("1.2.3"), "1.2.3")
    assert peer.response().status == 0

Nothing happens by itself: every method of Conversation lets the reactor turn until it has nothing left to do
at this moment, and ``world.clock.advance(seconds)`` lets time pass.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, ParamSpec, TypeAlias

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from storescp import dimse
from storescp.dimse import Status
from storescp.extended_negotiation import OperationsWindow
from storescp.interfaces import Answer, IFlow, IIncomingInstance, IInstanceStore, IService, Origin, Outcome
from storescp.limits import Limits
from storescp.measurements import Measurements
from storescp.negotiation import Policy
from storescp.pdu import (
    PDU,
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRQ,
    Fragment,
    PresentationContext,
    UserInformation,
)
from storescp.pdu_reader import PDUReader
from storescp.protocol import AssociationFactory, AssociationProtocol
from storescp.scp import StorageSCP
from storescp.sop_classes import STORAGE_COMMITMENT, STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES, VERIFICATION
from storescp.statistics import Statistics

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"

#: What associate() proposes unless told otherwise: presentation contexts 1, 3 and 5.
CONTEXTS = (
    (VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,)),
    (CT_IMAGE_STORAGE, (EXPLICIT_VR_LITTLE_ENDIAN,)),
    (MR_IMAGE_STORAGE, (EXPLICIT_VR_LITTLE_ENDIAN,)),
)


class Response(NamedTuple):
    """A response message without a data set, PS3.7 §9.3."""

    presentation_context_id: int
    command_field: int
    message_id: int
    status: int
    comment: str
    elements: dict[int, bytes]


Heard: TypeAlias = PDU | Response

_P = ParamSpec("_P")


@implementer(IReactorFromThreads)
class MemoryReactor:
    """What storage needs of a reactor: what threads want called is called when the reactor turns."""

    def __init__(self) -> None:
        self.calls: deque[Callable[[], object]] = deque()

    def callFromThread(self, callable: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> None:
        self.calls.append(partial(callable, *args, **kwargs))

    def turn(self) -> None:
        while self.calls:
            self.calls.popleft()()


class MemoryTransport(StringTransport):
    """StringTransport that does what TCP transports do where it matters.

    Reading can be paused, and then nothing arrives, not even the end. What is written waits until the
    reactor turns, and for as long as the peer does not read; more than ``bufferSize`` of it pauses the
    registered producer. A connection that is being lost first writes all, and waits for a paused producer.
    """

    bufferSize = 64 * 1024

    def __init__(self, clock: Clock, peer: IPv4Address) -> None:
        super().__init__(peerAddress=peer)  # type: ignore[no-untyped-call]
        self.clock = clock
        self.protocol: Protocol | None = None
        self.peer_reads = True
        self.aborted = False
        self.unsent = bytearray()
        self._arriving: deque[bytes | None] = deque()
        self._producer_paused = False

    # -- the peer's side --

    @property
    def is_reading(self) -> bool:
        return self.connected and self.producerState == "producing" and not self.disconnecting

    def arrive(self, data: bytes | None) -> None:
        """*data* is there to be read; None is the end of the stream."""
        self._arriving.append(data)
        self.clock.callLater(0, self._read)

    def lose(self, error: Exception) -> None:
        """The connection is gone."""
        if self.connected:
            self.connected = False
            if self.producer is not None:
                self.producer.stopProducing()
                self.producer = None
            assert self.protocol is not None
            self.protocol.connectionLost(Failure(error))

    def _read(self) -> None:
        while self._arriving and self.is_reading:
            data = self._arriving.popleft()
            if data is None:
                self.lose(ConnectionDone())
            elif self.protocol is not None:
                self.protocol.dataReceived(data)

    def _write(self) -> None:
        if not self.connected or self.aborted or not self.peer_reads:
            return
        self.io.write(self.unsent)
        self.unsent.clear()
        if self.producer is not None and self._producer_paused:
            self._producer_paused = False
            self.producer.resumeProducing()
        elif self.disconnecting:
            self.lose(ConnectionDone())

    # -- the protocol's side --

    def getHandle(self) -> None:
        """There is no socket."""

    def write(self, data: bytes) -> None:
        if not self.connected or self.aborted:
            return
        self.unsent += data
        if self.producer is not None and len(self.unsent) > self.bufferSize:
            self._producer_paused = True
            self.producer.pauseProducing()
        self.clock.callLater(0, self._write)

    def loseConnection(self) -> None:
        self.disconnecting = True
        self.clock.callLater(0, self._write)

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = self.disconnecting = True
            self.clock.callLater(0, self.lose, ConnectionAborted())

    def unregisterProducer(self) -> None:
        super().unregisterProducer()  # type: ignore[no-untyped-call]
        if self.disconnecting:
            self.clock.callLater(0, self._write)

    def pauseProducing(self) -> None:
        self.producerState = "paused"

    def resumeProducing(self) -> None:
        self.producerState = "producing"
        self.clock.callLater(0, self._read)


class Conversation:
    """One connection to *factory*, from the side of the peer."""

    def __init__(
        self, factory: AssociationFactory, clock: Clock, *, host: str = "192.0.2.1", port: int = 50000
    ) -> None:
        address = IPv4Address("TCP", host, port)
        self.clock = clock
        self.protocol, bottom = self.build(factory, address)
        self.transport = MemoryTransport(clock, address)
        self.transport.protocol = bottom
        self._reader = PDUReader(0)
        self._messages = dimse.MessageReader()
        self._read = 0
        bottom.makeConnection(self.transport)  # the one thing here that no turn follows

    def build(
        self, factory: AssociationFactory, address: IPv4Address
    ) -> tuple[AssociationProtocol, Protocol]:
        """The protocol of the association, and the one that the transport knows."""
        protocol = factory.buildProtocol(address)
        return protocol, protocol

    def turn(self) -> None:
        """Let the reactor do what there is to do now."""
        self.clock.advance(0)

    @property
    def is_open(self) -> bool:
        """Whether the server has the connection still."""
        return self.transport.connected

    def written(self) -> bytes:
        """All that the server has ever sent by its transport."""
        sent: bytes = self.transport.value()
        return sent

    # -- what the peer does --

    def say(self, data: bytes, *, read_size: int = 0) -> None:
        """Send *data*; the server's reads get at most *read_size* bytes of it each (0: all at once)."""
        for piece in _cut(data, read_size):
            self.transport.arrive(piece)
        self.turn()

    def hang_up(self) -> None:
        """Close the connection in order. A server that does not read does not notice."""
        self.transport.arrive(None)
        self.turn()

    def drop(self) -> None:
        """The connection breaks."""
        self.transport.lose(ConnectionLost())
        self.turn()

    def stop_reading(self) -> None:
        """Leave in the network what the server sends."""
        self.transport.peer_reads = False

    def ask_unread(self) -> int:
        """Read nothing, and ask until the server reads no more either: how many times that was."""
        self.stop_reading()
        messages = 0
        while self.transport.is_reading:
            self.echo()
            messages += 1
        return messages

    def read_on(self) -> None:
        """Take what the server has sent, and from now on what it sends."""
        self.transport.peer_reads = True
        self.clock.callLater(0, self.transport._write)
        self.turn()

    def associate(
        self,
        contexts: Sequence[tuple[str, Sequence[str]]] = CONTEXTS,
        *,
        calling: str = "SCU",
        called: str = "STORESCP",
        maximum_length: int = 16384,
        window: int | None = None,
    ) -> AAssociateAC | AAssociateRJ | AAbort | None:
        """Ask for an association; returns the answer. The contexts get the IDs 1, 3, 5 …

        *window* is how many operations the peer asks to have outstanding, None for not asking.
        """
        request = a_associate_rq(
            contexts, calling=calling, called=called, maximum_length=maximum_length, window=window
        )
        self.say(request.encode())
        heard = self.heard()
        if not heard:
            return None
        (answer,) = heard
        assert isinstance(answer, AAssociateAC | AAssociateRJ | AAbort), answer
        return answer

    def echo(self, message_id: int = 1, *, context_id: int = 1) -> None:
        """Send a C-ECHO-RQ."""
        self.message(c_echo(message_id), context_id=context_id)

    def store(
        self,
        data_set: bytes | None,
        sop_instance_uid: str,
        message_id: int = 1,
        *,
        sop_class_uid: str = CT_IMAGE_STORAGE,
        context_id: int = 3,
        fragment: int = 0,
        read_size: int = 0,
    ) -> None:
        """Send a C-STORE-RQ and, but for None, its data set."""
        command = c_store(
            sop_instance_uid, message_id, sop_class_uid=sop_class_uid, has_data_set=data_set is not None
        )
        self.message(command, data_set, context_id=context_id, fragment=fragment, read_size=read_size)

    def message(
        self,
        command: Mapping[int, bytes],
        data_set: bytes | None = None,
        *,
        context_id: int,
        fragment: int = 0,
        read_size: int = 0,
    ) -> None:
        """Send a message in PDVs of at most *fragment* bytes (0: no limit)."""
        data = p_data(context_id, True, dimse.encode_command(command), fragment)
        if data_set is not None:
            data += p_data(context_id, False, data_set, fragment)
        self.say(data, read_size=read_size)

    def release(self) -> None:
        """Send A-RELEASE-RQ."""
        self.say(AReleaseRQ().encode())

    def abort(self) -> None:
        """Send A-ABORT."""
        self.say(AAbort(0, 0).encode())

    # -- what the peer hears --

    def heard(self) -> list[Heard]:
        """What the server has said since the last time; its messages must be whole ones."""
        self.turn()
        said = self.written()
        self._reader.feed(said[self._read :])
        self._read = len(said)
        heard: list[Heard] = []
        while (item := self._reader.next()) is not None:
            if not isinstance(item, Fragment):
                heard.append(item)
            elif (command := self._messages.command(item)) is not None:
                heard.append(_response(item.presentation_context_id, command))
        return heard

    def response(self) -> Response:
        """The response that is the only thing heard since the last time."""
        (response,) = self.heard()
        assert isinstance(response, Response), response
        return response

    def statuses(self) -> list[int]:
        """The statuses of the responses heard since the last time; nothing else was heard."""
        heard = self.heard()
        responses = [item for item in heard if isinstance(item, Response)]
        assert responses == heard, heard
        return [response.status for response in responses]


class World:
    """A server's parts around *store*, on a clock that stands still."""

    def __init__(
        self,
        store: IInstanceStore | None = None,
        *,
        max_assoc: int = 10,
        max_pending: int = 100,
        timeout: float = 300,
        artim_timeout: float = 30,
        maximum_length: int = 16384,
        log_patient_data: bool = False,
        max_object_size: int = 0,
        max_per_address: int = 0,
        max_rate: float = 0,
        min_rate: float = 0,
        progress_timeout: float = 0,
        max_in_flight: int = 0,
        async_window: int = 64,
        measurements: Measurements | None = None,
        commitment: Callable[[StorageSCP], IService] | None = None,
    ) -> None:
        recorder = measurements.recorder() if measurements is not None else None
        self.clock = Clock()
        self.statistics = Statistics()
        self.memory = MemoryStore()
        used = store if store is not None else self.memory

        def user(association: AssociationProtocol) -> StorageSCP:
            return StorageSCP(
                association,
                used,
                self.statistics,
                log_patient_data=log_patient_data,
                max_object_size=max_object_size,
                recorder=recorder.sender(association.calling_ae_title, is_known=False) if recorder else None,
                commitment=commitment,
                monotonic=self.clock.seconds,
            )

        self.factory = AssociationFactory(
            Policy(
                called_ae_titles=None,
                abstract_syntaxes=STORAGE_SOP_CLASSES.keys() | {VERIFICATION, STORAGE_COMMITMENT},
                transfer_syntaxes=TRANSFER_SYNTAXES.keys(),
                maximum_length=maximum_length,
                implementation_class_uid="1.2.3",
                implementation_version_name="WORLD",
                operations_window=async_window,
            ),
            Limits(
                max_assoc=max_assoc,
                max_pending=max_pending,
                timeout=timeout,
                artim_timeout=artim_timeout,
                max_per_address=max_per_address,
                max_rate=max_rate,
                min_rate=min_rate,
                progress_timeout=progress_timeout,
                max_in_flight=max_in_flight,
            ),
            user,
            self.clock,
            self.statistics,
        )
        self.factory.recorder = recorder
        self._ports = iter(range(50000, 60000))

    def connect(self, host: str = "192.0.2.1") -> Conversation:
        """A peer connects from *host*."""
        peer = Conversation(self.factory, self.clock, host=host, port=next(self._ports))
        peer.turn()
        return peer

    def associated(self, window: int | None = None) -> Conversation:
        """A peer connects and is given an association."""
        peer = self.connect()
        answer = peer.associate(window=window)
        assert isinstance(answer, AAssociateAC), answer
        return peer


@implementer(IInstanceStore)
class MemoryStore:
    """A store that keeps instances in memory, and by itself never ends storing one: see MemoryInstance."""

    def __init__(self) -> None:
        self.instances: list[MemoryInstance] = []
        self.told: list[tuple[str, bool]] = []
        self.results: list[Callable[[], None]] = []

    def begin(self, origin: Origin, flow: IFlow) -> IIncomingInstance:
        self.instances.append(MemoryInstance(origin, flow))
        return self.instances[-1]

    def collect(self) -> None:
        results, self.results = self.results, []
        for result in results:
            result()

    def hurry(self) -> None:
        """Nobody is slow here."""

    def acknowledged(self, path: str) -> None:
        self.told.append((path, True))

    def unacknowledged(self, path: str) -> None:
        self.told.append((path, False))


@implementer(IIncomingInstance)
class MemoryInstance:
    """An instance in a MemoryStore. It keeps holding its bytes until :meth:`end` or :meth:`written`."""

    def __init__(self, origin: Origin, flow: IFlow) -> None:
        self.origin = origin
        self.path = ""
        self.data = bytearray()
        self.cancelled = False
        self.answer: Answer | None = None
        self.finished: Deferred[Outcome] | None = None
        self._flow = flow
        self._held = 0

    def write(self, data: memoryview) -> None:
        self.data += data
        self._held += len(data)
        self._flow.held(len(data))

    def finish(self, answer: Answer | None = None) -> Deferred[Outcome]:
        self.answer = answer
        self.finished = Deferred()
        return self.finished

    def cancel(self) -> None:
        self.cancelled = True
        self.written()

    def written(self) -> None:
        """The storage has caught up."""
        held, self._held = self._held, 0
        self._flow.released(held)

    def end(self, status: Status = Status.SUCCESS, comment: str = "", *, is_answered: bool = False) -> None:
        """The instance is stored, or has failed to be; *is_answered* by another thread."""
        self.written()
        assert self.finished is not None
        self.finished.callback(
            Outcome(status, comment, len(self.data), self.path, None, bool(self.path), is_answered)
        )


# -- encodings --


def a_associate_rq(
    contexts: Sequence[tuple[str, Sequence[str]]] = CONTEXTS,
    *,
    calling: str = "SCU",
    called: str = "STORESCP",
    maximum_length: int = 16384,
    window: int | None = None,
) -> AAssociateRQ:
    """A-ASSOCIATE-RQ for *contexts*, pairs of abstract syntax and transfer syntaxes, with the IDs 1, 3, 5 …"""
    return AAssociateRQ(
        called,
        calling,
        tuple(
            PresentationContext(2 * number + 1, abstract_syntax, tuple(transfer_syntaxes))
            for number, (abstract_syntax, transfer_syntaxes) in enumerate(contexts)
        ),
        UserInformation(
            maximum_length,
            "1.2.3.4",
            other=() if window is None else (OperationsWindow(window, 1).item,),
        ),
    )


def us(value: int) -> bytes:
    """A command set's value of VR US."""
    return struct.pack("<H", value)


def ui(uid: str) -> bytes:
    """A command set's value of VR UI."""
    value = uid.encode("ascii")
    return value + b"\0" * (len(value) % 2)


def c_echo(message_id: int = 1) -> dict[int, bytes]:
    """C-ECHO-RQ, PS3.7 §9.3.5.1."""
    return {
        dimse.AFFECTED_SOP_CLASS_UID: ui(VERIFICATION),
        dimse.COMMAND_FIELD: us(dimse.C_ECHO_RQ),
        dimse.MESSAGE_ID: us(message_id),
        dimse.COMMAND_DATA_SET_TYPE: us(dimse.NO_DATA_SET),
    }


def c_store(
    sop_instance_uid: str,
    message_id: int = 1,
    *,
    sop_class_uid: str = CT_IMAGE_STORAGE,
    has_data_set: bool = True,
) -> dict[int, bytes]:
    """C-STORE-RQ, PS3.7 §9.3.1.1."""
    return {
        dimse.AFFECTED_SOP_CLASS_UID: ui(sop_class_uid),
        dimse.COMMAND_FIELD: us(dimse.C_STORE_RQ),
        dimse.MESSAGE_ID: us(message_id),
        dimse.PRIORITY: us(0),
        dimse.COMMAND_DATA_SET_TYPE: us(0 if has_data_set else dimse.NO_DATA_SET),
        dimse.AFFECTED_SOP_INSTANCE_UID: ui(sop_instance_uid),
    }


def command(field: int, message_id: int = 1, *, has_data_set: bool = False) -> dict[int, bytes]:
    """Any other command."""
    return {
        dimse.COMMAND_FIELD: us(field),
        dimse.MESSAGE_ID: us(message_id),
        dimse.COMMAND_DATA_SET_TYPE: us(1 if has_data_set else dimse.NO_DATA_SET),
    }


def p_data(
    context_id: int, is_command: bool, data: bytes, fragment: int = 0, *, is_last: bool = True
) -> bytes:
    """P-DATA-TF PDUs of one PDV each with at most *fragment* bytes of *data* (0: all in one)."""
    pieces = list(_cut(data, fragment)) or [b""]
    encoded = []
    for number, piece in enumerate(pieces, 1):
        control = is_command | (2 if is_last and number == len(pieces) else 0)
        encoded.append(struct.pack(">BxIIBB", 4, len(piece) + 6, len(piece) + 2, context_id, control) + piece)
    return b"".join(encoded)


def data_set(
    sop_instance_uid: str,
    *,
    transfer_syntax_uid: str = EXPLICIT_VR_LITTLE_ENDIAN,
    pixels: bytes = b"",
    without: Iterable[str] = (),
    **attributes: object,
) -> bytes:
    """An encoded CT image with *attributes* by their keywords, and *without* some that it would have."""
    dataset = Dataset()
    values: dict[str, object] = {
        "SOPClassUID": CT_IMAGE_STORAGE,
        "SOPInstanceUID": sop_instance_uid,
        "StudyDate": "20310203",
        "Modality": "CT",
        "PatientName": "Doe^Jane",
        "PatientID": "4711",
        "StudyInstanceUID": "1.2.1",
        "SeriesInstanceUID": "1.2.2",
    }
    for keyword, value in (values | attributes).items():
        if keyword not in without:
            setattr(dataset, keyword, value)
    if pixels:
        dataset.add_new(0x7FE00010, "OW", pixels)
    out = DicomBytesIO()
    out.is_little_endian = True
    out.is_implicit_VR = transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
    write_dataset(out, dataset)
    return out.getvalue()


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size or len(data) or 1):
        yield data[start : start + (size or len(data))]


def _response(context_id: int, command: dimse.Command) -> Response:
    assert command.command_field & dimse.RESPONSE and not command.has_data_set, command.elements
    comment = command.elements.get(dimse.ERROR_COMMENT, b"").decode("ascii").rstrip()
    return Response(
        context_id,
        command.command_field,
        command.integer(dimse.MESSAGE_ID_BEING_RESPONDED_TO),
        command.integer(dimse.STATUS),
        comment,
        command.elements,
    )
