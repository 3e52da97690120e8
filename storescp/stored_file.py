"""What is known of a DICOM file, PS3.10 §7, that this server or another program has stored. Blocking; no Twisted.

What belongs here: reading, by descriptors and in pieces, whatever size the file is of or claims to be of.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from io import FileIO
from typing import NamedTuple

from storescp import tags
from storescp.beneath import Beneath
from storescp.dataset_head import PIECE as HEAD_PIECE
from storescp.dataset_head import Head, HeadError, HeadReader
from storescp.early_end import early_end
from storescp.index_rows import ReceivedInstance

#: Bytes of File Meta Information, with preamble and prefix; some 500 are usual. More than that is no such file.
MAX_FILE_META = 64 * 1024

#: Bytes of data set that are compared or hashed in one step.
PIECE = 1024 * 1024

_ELEMENT = struct.Struct("<HH2sH")
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_FIRST_READ = 4096


class NotAnInstance(ValueError):
    """The file holds no instance that could be indexed. The message is one line that says why."""


class FileHead(NamedTuple):
    """File Meta Information, PS3.10 §7.1. AE titles are empty when absent; ``data_set_offset`` is in bytes."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    source_ae_title: str
    data_set_offset: int


def read_file_head(descriptor: int) -> FileHead:
    """Read the File Meta Information of an open file; its position stays. Raises NotAnInstance and OSError."""
    data = read_at(descriptor, _FIRST_READ, 0)
    if data[128:132] != b"DICM":
        raise NotAnInstance("not a DICOM file")
    elements, end = _file_meta(data)
    if len(data) - end < 8:  # not up to the first element of the data set
        data = read_at(descriptor, MAX_FILE_META, 0)
        elements, end = _file_meta(data)
        if len(data) == MAX_FILE_META and len(data) - end < 8:
            raise NotAnInstance(f"its File Meta Information has more than {MAX_FILE_META} bytes")
        if end > len(data) or 0 < len(data) - end < 8:
            raise NotAnInstance("cut short in its File Meta Information")
    return FileHead(
        _uid(elements, 0x0002, "SOP Class UID"),
        _uid(elements, 0x0003, "SOP Instance UID"),
        _uid(elements, 0x0010, "Transfer Syntax UID"),
        _text(elements.get(0x0016, b"")),
        end,
    )


def read_instance(root: str, path: str, digest: str | None) -> ReceivedInstance:
    """What the index is to know of the file at *path*, with "/" under *root*; received when it was last modified.

    *digest* is the name of an algorithm of hashlib. Raises NotAnInstance, SymbolicLink and OSError.
    """
    with contextlib.closing(Beneath(root)) as beneath, open_below(beneath, path) as file:
        return _instance(file, path, digest)[0]


def examine_instance(root: str, path: str, digest: str | None) -> tuple[ReceivedInstance, str]:
    """The same, and what is missing at the end of its data set: see :func:`storescp.early_end.early_end`."""
    with contextlib.closing(Beneath(root)) as beneath, open_below(beneath, path) as file:
        instance, head = _instance(file, path, digest)
        return instance, early_end(file.fileno(), head.data_set_offset, head.transfer_syntax_uid)


def _instance(file: FileIO, path: str, digest: str | None) -> tuple[ReceivedInstance, FileHead]:
    status = os.fstat(file.fileno())
    head = read_file_head(file.fileno())
    data_set = read_data_set_head(file.fileno(), head)
    for tag, name in (
        (tags.SOP_INSTANCE_UID, "SOP"),
        (tags.STUDY_INSTANCE_UID, "Study"),
        (tags.SERIES_INSTANCE_UID, "Series"),
    ):
        if data_set.uid(tag) is None:
            raise NotAnInstance(f"its data set has no {name} Instance UID")
    if data_set.uid(tags.SOP_INSTANCE_UID) != head.sop_instance_uid:
        raise NotAnInstance(
            f"SOP Instance UID {data_set.uid(tags.SOP_INSTANCE_UID)!r:.80} in its data set,"
            f" {head.sop_instance_uid!r:.80} in its File Meta Information"
        )
    instance = ReceivedInstance(
        data_set,
        head.sop_class_uid,
        head.sop_instance_uid,
        head.transfer_syntax_uid,
        path,
        status.st_size,
        head.source_ae_title,
        status.st_mtime,
        digest and file_digest(file, digest),
    )
    return instance, head


def read_data_set_head(descriptor: int, head: FileHead) -> Head:
    """The head of the data set of an open file, with UIDs that are ASCII. Raises NotAnInstance and OSError."""
    reader = HeadReader(head.transfer_syntax_uid)
    offset = head.data_set_offset
    try:
        while (piece := read_at(descriptor, HEAD_PIECE, offset)) and not reader.feed(piece):
            offset += len(piece)
        data_set = reader.finish()
        for tag in (
            tags.SOP_CLASS_UID,
            tags.SOP_INSTANCE_UID,
            tags.STUDY_INSTANCE_UID,
            tags.SERIES_INSTANCE_UID,
        ):
            data_set.uid(tag)
    except HeadError as error:
        raise NotAnInstance(str(error)) from None
    return data_set


def open_file(path: str) -> FileIO:
    """Open a regular file for reading. Raises NotAnInstance for anything else, and OSError."""
    # O_NONBLOCK: a FIFO without a writer would block.
    return _regular(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def open_below(beneath: Beneath, path: str) -> FileIO:
    """As :func:`open_file`, for a path that no link is followed on. Raises SymbolicLink, too."""
    return _regular(beneath.open_file(path))


def _regular(descriptor: int) -> FileIO:
    file = FileIO(descriptor)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotAnInstance("not a regular file")
    return file


def file_digest(file: FileIO, algorithm: str) -> str:
    """The digest of the whole file, as "algorithm:hexadecimal".

    Raises ValueError for an algorithm that hashlib does not have, and OSError.
    """
    file.seek(0)
    return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def same_data_set(a: int, a_offset: int, b: int, b_offset: int) -> bool:
    """Whether two open files have the same bytes from their offsets to their ends. Raises OSError."""
    if os.fstat(a).st_size - a_offset != os.fstat(b).st_size - b_offset:
        return False
    done = 0
    while piece := read_at(a, PIECE, a_offset + done):
        if piece != read_at(b, len(piece), b_offset + done):
            return False
        done += len(piece)
    return True


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read *size* bytes from *offset*, fewer only where the file ends. Raises OSError."""
    data = os.pread(descriptor, size, offset)
    while 0 < len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def _file_meta(data: bytes) -> tuple[dict[int, bytes], int]:
    """The elements of group 0002 by element number, and where they end, perhaps beyond *data*.

    They are told by their group: the group length (0002,0000) is wrong in some files.
    """
    elements: dict[int, bytes] = {}
    position, size = 132, len(data)
    while position + 8 <= size:
        group, element, vr, length = _ELEMENT.unpack_from(data, position)
        if group != 0x0002:
            break
        if not (vr.isalpha() and vr.isupper()):
            raise NotAnInstance("its File Meta Information is not in explicit VR little endian")
        start = position + 8
        if vr in _LONG:
            length = int.from_bytes(data[start : start + 4], "little")
            start += 4
        elements[element] = data[start : start + length]
        position = start + length
    return elements, position


def _uid(elements: dict[int, bytes], element: int, name: str) -> str:
    try:
        uid = elements.get(element, b"").rstrip(b"\0 ").decode("ascii")
    except UnicodeDecodeError:
        uid = ""
    if not uid:
        raise NotAnInstance(f"its File Meta Information has no {name} (0002,{element:04X})")
    return uid


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip("\0 ")
