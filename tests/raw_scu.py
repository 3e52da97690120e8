"""A sender that does as it is told, right or wrong: the server's own encoders over a blocking socket.

``python -m tests.raw_scu PORT`` sends the first half of an instance, says so and waits to be killed.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TypeAlias

from storescp import dimse, pdu
from storescp.dimse import Command, MessageReader
from storescp.extended_negotiation import OperationsWindow
from storescp.pdu import (
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
    Fragment,
    PresentationContext,
    UserInformation,
    encode_p_data,
)
from storescp.pdu_reader import PDUReader
from storescp.sop_classes import VERIFICATION

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"

#: Contexts 1 and 3 and 5 and 7, proposed unless others are asked for.
CONTEXTS = ((VERIFICATION, IMPLICIT), (CT, EXPLICIT), (CT, IMPLICIT), (CT, DEFLATED))
ECHO_CONTEXT, EXPLICIT_CONTEXT, IMPLICIT_CONTEXT, DEFLATED_CONTEXT = 1, 3, 5, 7

Answer: TypeAlias = pdu.PDU | Command | None

_LONG_VRS = {"OB", "OW", "OF", "OD", "OL", "SQ", "UC", "UN", "UR", "UT"}


def element(tag: int, vr: str, value: bytes | str, length: int | None = None) -> bytes:
    """An element in Explicit VR Little Endian; *length* is claimed instead of the true one."""
    if isinstance(value, str):
        value = value.encode("ascii")
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB") else b" "
    claimed = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    return head + (struct.pack("<xxI", claimed) if vr in _LONG_VRS else struct.pack("<H", claimed)) + value


def implicit(tag: int, value: bytes | str, length: int | None = None) -> bytes:
    """An element in Implicit VR Little Endian; *length* is claimed instead of the true one."""
    if isinstance(value, str):
        value = value.encode("ascii")
    value += b"\0" * (len(value) % 2)
    claimed = len(value) if length is None else length
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, claimed) + value


def instance(
    uid: str,
    *,
    sop_class: str | None = CT,
    sop_instance: str | None = None,
    study: str | None = "1.2.3",
    series: str | None = "1.2.3.4",
    first: bytes = b"",
    patient: bytes = b"",
    pixels: bytes = b"\0\0",
) -> bytes:
    """A data set in Explicit VR Little Endian. None leaves a UID out; *first* comes in front of all of them.

    *patient* are encoded elements of group 0010.
    """

    def ui(tag: int, text: str | None) -> bytes:
        return element(tag, "UI", text.encode("latin-1")) if text is not None else b""

    return b"".join(
        (
            first,
            ui(0x00080016, sop_class),
            ui(0x00080018, uid if sop_instance is None else sop_instance or None),
            element(0x00080060, "CS", "CT"),
            patient,
            ui(0x0020000D, study),
            ui(0x0020000E, series),
            element(0x00280010, "US", b"\1\0"),
            element(0x00280011, "US", b"\1\0"),
            element(0x7FE00010, "OW", pixels),
        )
    )


def store_command(
    uid: str | bytes, *, message_id: int = 1, sop_class: str = CT, data_set: bool = True
) -> bytes:
    """An encoded C-STORE-RQ, PS3.7 §9.3.1.1."""
    value = uid.encode("latin-1") if isinstance(uid, str) else uid
    name = sop_class.encode()
    return dimse.encode_command(
        {
            dimse.AFFECTED_SOP_CLASS_UID: name + b"\0" * (len(name) & 1),
            dimse.COMMAND_FIELD: struct.pack("<H", dimse.C_STORE_RQ),
            dimse.MESSAGE_ID: struct.pack("<H", message_id),
            dimse.PRIORITY: b"\0\0",
            dimse.COMMAND_DATA_SET_TYPE: struct.pack("<H", 0 if data_set else dimse.NO_DATA_SET),
            dimse.AFFECTED_SOP_INSTANCE_UID: value + b"\0" * (len(value) & 1),
        }
    )


def echo_command(message_id: int = 1) -> bytes:
    """An encoded C-ECHO-RQ, PS3.7 §9.3.5.1."""
    return dimse.encode_command(
        {
            dimse.AFFECTED_SOP_CLASS_UID: VERIFICATION.encode() + b"\0",
            dimse.COMMAND_FIELD: struct.pack("<H", dimse.C_ECHO_RQ),
            dimse.MESSAGE_ID: struct.pack("<H", message_id),
            dimse.COMMAND_DATA_SET_TYPE: struct.pack("<H", dimse.NO_DATA_SET),
        }
    )


def p_data(context_id: int, is_command: bool, is_last: bool, data: bytes) -> bytes:
    """One P-DATA-TF with one PDV, PS3.8 §9.3.5, whether that makes sense or not."""
    control = is_command | is_last << 1
    return struct.pack(">BxIIBB", 4, len(data) + 6, len(data) + 2, context_id, control) + data


class RawSCU:
    """One connection to a server. Counts the bytes it sends."""

    def __init__(self, address: tuple[str, int], *, timeout: float = 60.0, source: str = "") -> None:
        self.socket = socket.create_connection(address, timeout, (source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0
        self._reader = PDUReader(0)
        self._messages = MessageReader()
        self._maximum_length = 0

    def __enter__(self) -> RawSCU:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    # -- bytes --

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.socket.sendall(data)
        self.sent += len(data)

    def receive(self) -> Answer:
        """The next PDU or response; None when the server has closed the connection, in whatever way."""
        while True:
            item = self._reader.next()
            if isinstance(item, Fragment):
                command = self._messages.command(item)
                if command is not None:
                    return command
            elif item is not None:
                return item
            else:
                try:
                    data = self.socket.recv(65536)
                except (ConnectionResetError, BrokenPipeError):
                    data = b""
                if not data:
                    return None
                self._reader.feed(data)

    def reset(self) -> None:
        """Close with a TCP reset, as a crashed host does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # -- associations and messages --

    def associate(
        self,
        contexts: Sequence[tuple[str, str]] = CONTEXTS,
        *,
        calling: str = "RAW",
        called: str = "STORESCP",
        window: int = 1,
    ) -> AAssociateAC | AAssociateRJ | None:
        """Ask for an association with one context a pair (SOP class, transfer syntax), and for more than one operation
        at a time; the answer, or None when the server has closed the connection instead.
        """
        proposed = (
            PresentationContext(2 * number + 1, abstract, (transfer,))
            for number, (abstract, transfer) in enumerate(contexts)
        )
        user = UserInformation(other=(OperationsWindow(window, 1).item,) if window != 1 else ())
        self.send(AAssociateRQ(called, calling, tuple(proposed), user).encode())
        answer = self.receive()
        assert answer is None or isinstance(answer, AAssociateAC | AAssociateRJ), answer
        if isinstance(answer, AAssociateAC):
            self._maximum_length = answer.user_information.maximum_length
        return answer

    def send_command(self, command: bytes, context_id: int = EXPLICIT_CONTEXT) -> None:
        """Send an encoded command set."""
        self.send(encode_p_data(context_id, True, command, self._maximum_length))

    def send_data_set(self, data: bytes, context_id: int = EXPLICIT_CONTEXT) -> None:
        """Send a whole data set."""
        self.send(encode_p_data(context_id, False, data, self._maximum_length))

    def store(self, uid: str | bytes, data: bytes, context_id: int = EXPLICIT_CONTEXT) -> int | AAbort | None:
        """Send an instance; its status, or the A-ABORT that came instead, or None when neither came."""
        self.send_command(store_command(uid), context_id)
        self.send_data_set(data, context_id)
        return self.status()

    def status(self) -> int | AAbort | None:
        """The status of the next response, or the A-ABORT that came instead, or None when neither came."""
        answer = self.receive()
        if isinstance(answer, Command):
            return answer.integer(dimse.STATUS)
        assert answer is None or isinstance(answer, AAbort), answer
        return answer

    def release(self) -> None:
        """Release the association and see the connection closed."""
        self.send(AReleaseRQ().encode())
        answer = self.receive()
        assert isinstance(answer, AReleaseRP), answer
        self.socket.close()


def store(address: tuple[str, int], instances: Iterable[tuple[str, bytes]]) -> list[int | AAbort | None]:
    """Send instances, UIDs and data sets, on one association; the statuses."""
    with RawSCU(address) as scu:
        answer = scu.associate()
        assert isinstance(answer, AAssociateAC), answer
        statuses = [scu.store(uid, data) for uid, data in instances]
        scu.release()
    return statuses


def main(port: int) -> None:
    """Stop in the middle of an instance."""
    with RawSCU(("127.0.0.1", port)) as scu:
        scu.associate(calling="VICTIM")
        data = instance("1.2.3.4.9", pixels=bytes(4_000_000))
        scu.send_command(store_command("1.2.3.4.9"))
        for start in range(0, len(data) // 2, 100_000):
            scu.send(p_data(EXPLICIT_CONTEXT, False, False, data[start : start + 100_000]))
        print("half of it is sent", flush=True)
        scu.receive()


if __name__ == "__main__":
    main(int(sys.argv[1]))
