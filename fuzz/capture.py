"""Renews the seeds: ``python -m fuzz.capture`` has real senders talk to the real server through a recording proxy.

What they say becomes seeds of whole conversations; cut up it gives those of the decoders.
"""

from __future__ import annotations

import pathlib
import shutil
import struct
import tempfile
from collections.abc import Iterator
from typing import TypeAlias

from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
)
from twisted.trial.unittest import SynchronousTestCase

from fuzz import HERE
from storescp import pdu
from storescp.extended_negotiation import STORAGE_SERVICE_CLASS
from storescp.part10 import FileMeta
from storescp.pdu import AAssociateRQ, Fragment
from storescp.pdu_reader import PDUReader
from tests.conversation import (
    CT_IMAGE_STORAGE,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    data_set,
)
from tests.recorder import Recorder
from tests.server import Server, run

Item: TypeAlias = (
    AsynchronousOperationsWindowNegotiation
    | SCP_SCU_RoleSelectionNegotiation
    | SOPClassCommonExtendedNegotiation
    | SOPClassExtendedNegotiation
)

#: The byte in front of a conversation: in one piece, and then the peer hangs up.
WHOLE = b"\x20"


def files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Two small images, in explicit and implicit VR."""
    for number, syntax in enumerate((EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)):
        uid = f"1.2.3.{number}"
        content = data_set(
            uid,
            transfer_syntax_uid=syntax,
            pixels=bytes(64),
            Rows=4,
            Columns=8,
            SpecificCharacterSet="ISO_IR 100",
        )
        path = folder / f"{number}.dcm"
        path.write_bytes(FileMeta(CT_IMAGE_STORAGE, syntax, "SCU", "SCP").encode(uid) + content)
        yield path


def converse(port: int, images: list[pathlib.Path]) -> Iterator[str]:
    """Have each sender say something, and yield what to call that."""
    senders: tuple[tuple[str, list[object]], ...] = (
        ("dcmtk-echo", ["echoscu", "-aet", "SENDER", "127.0.0.1", port]),
        ("dcmtk-store", ["storescu", "127.0.0.1", port, *images]),
        ("dcmtk-user", ["storescu", "-usr", "somebody", "-pwd", "secret", "127.0.0.1", port, images[1]]),
        ("dcmtk-required", ["storescu", "-R", "--max-pdu", 4096, "127.0.0.1", port, images[0]]),
        ("gdcm-echo", ["gdcmscu", "--echo", "127.0.0.1", port]),
        ("gdcm-store", ["gdcmscu", "--store", "127.0.0.1", port, images[0]]),
    )
    for name, (program, *arguments) in senders:
        done = run(str(program), *arguments)
        if done.returncode and program != "gdcmscu":  # which aborts after the release, whoever it talks to
            raise SystemExit(f"{name}: {done.stdout}")
        yield name
    entity = AE("PYNETDICOM")
    entity.add_requested_context(CT_IMAGE_STORAGE, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
    association = entity.associate("127.0.0.1", port)
    association.send_c_store(images[1])
    association.release()
    yield "pynetdicom-store"
    association = entity.associate("127.0.0.1", port)
    association.abort()
    yield "pynetdicom-abort"
    association = entity.associate("127.0.0.1", port, ext_neg=list(items()))
    association.send_c_store(images[0])
    association.release()
    yield "pynetdicom-items"


def items() -> list[Item]:
    """Every item of the user information that pynetdicom can propose."""
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked, window.maximum_number_operations_performed = 4, 1
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = UID(CT_IMAGE_STORAGE), True, True
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid = UID(CT_IMAGE_STORAGE)
    extended.service_class_application_information = b"\3\0\0\0\2"
    common = SOPClassCommonExtendedNegotiation()
    common.sop_class_uid, common.service_class_uid = UID("1.2.3.4"), UID(STORAGE_SERVICE_CLASS)
    common.related_general_sop_class_identification = [UID(CT_IMAGE_STORAGE), UID("1.2.3")]
    return [window, role, extended, common]


def save(target: str, name: str, data: bytes) -> None:
    """Keep a seed."""
    folder = HERE / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def cut_up(name: str, stream: bytes) -> None:
    """Make the seeds of the decoders out of what one sender said."""
    save("conversation", name, WHOLE + stream)
    save("pdus", name, b"\x3f" + stream)
    reader = PDUReader(0)
    reader.feed(stream)
    data, number = b"", 0
    while (item := reader.next()) is not None:
        if isinstance(item, AAssociateRQ):
            save("user_information", name, item.user_information.encode()[4:])
        elif isinstance(item, Fragment):
            data += item.data
            if item.is_last:
                kind = "command" if item.is_command else "head"
                explicit = data[4:6].isalpha()
                save(kind, f"{name}-{number}", data if item.is_command else bytes([explicit]) + data)
                data, number = b"", number + 1


def main() -> None:
    """Capture all."""
    case = SynchronousTestCase()
    shutil.rmtree(HERE / "seeds", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        images = list(files(pathlib.Path(folder)))
        try:
            recorder = Recorder(Server(case, "--duplicate", "replace").address)
            for name in converse(recorder.port, images):
                cut_up(name, bytes(recorder.said[-1]))
        finally:
            case.doCleanups()
        for image in images:
            save("stored", image.stem, image.read_bytes())
    contexts = tuple(pdu.PresentationContext(2 * n + 1, "1.2.3", ("1.2", "1.3")) for n in range(128))
    save("pdus", "many-contexts", b"\x00" + AAssociateRQ("A", "B", contexts).encode())
    save("pdus", "refusals", b"\x01" + pdu.AAssociateRJ(1, 1, 7).encode() + pdu.AAbort(2, 6).encode())
    identity = struct.pack(">BxH", 0x58, 10) + b"\2\1\0\1A\0\3xyz" + struct.pack(">BxHHH", 0x53, 4, 1, 1)
    save("user_information", "identity-and-window", identity)


if __name__ == "__main__":
    main()
