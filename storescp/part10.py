"""A DICOM file, PS3.10 §7: preamble, File Meta Information, and the descriptor that a streamed data set is written to.

What belongs here: the bytes of one file, by blocking calls. Where it has its name is the business of
:mod:`storescp.storage_directory`.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from storescp import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

#: Pieces that one writev takes on Linux.
IOV_MAX = 1024

_SHORT = struct.Struct("<HH2sH")


class FileMeta:
    """File Meta Information, PS3.10 §7.1, for the instances of one presentation context and one caller.

    All but the SOP Instance UID is encoded once.
    """

    def __init__(
        self, sop_class_uid: str, transfer_syntax_uid: str, calling_ae_title: str, called_ae_title: str
    ) -> None:
        version = struct.pack("<HH2sxxI2s", 0x0002, 0x0001, b"OB", 2, b"\0\1")
        self._head = version + _uid(0x0002, sop_class_uid)
        self._tail = b"".join(
            (
                _uid(0x0010, transfer_syntax_uid),
                _uid(0x0012, IMPLEMENTATION_CLASS_UID),
                _text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
                _text(0x0016, b"AE", calling_ae_title),  # Source: who gave us the content
                _text(0x0017, b"AE", calling_ae_title),  # Sending
                _text(0x0018, b"AE", called_ae_title),  # Receiving
            )
        )

    def encode(self, sop_instance_uid: str) -> bytes:
        """Preamble, prefix and File Meta Information of one instance."""
        instance = _uid(0x0003, sop_instance_uid)
        length = len(self._head) + len(instance) + len(self._tail)
        return b"".join(
            (
                bytes(128),
                b"DICM",
                _SHORT.pack(0x0002, 0x0000, b"UL", 4),
                length.to_bytes(4, "little"),
                self._head,
                instance,
                self._tail,
            )
        )


class UnnamedFile:
    """A file that is being written.

    ``name`` is its hidden name, in the *folder* with that descriptor, where it has one; it goes when it is closed.
    """

    __slots__ = ("descriptor", "folder", "name", "size")

    def __init__(self, descriptor: int, name: str | None, folder: int) -> None:
        self.descriptor = descriptor
        self.name = name
        self.folder = folder
        self.size = 0

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Append *pieces*, all of them: a full disk shows first as a short count. Raises OSError."""
        for start in range(0, len(pieces), IOV_MAX):
            part = pieces[start : start + IOV_MAX]
            wanted = sum(map(len, part))
            written = os.writev(self.descriptor, part)
            self.size += written
            if written != wanted:
                self._write_rest(b"".join(part)[written:])

    def _write_rest(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.write(self.descriptor, rest)
            if not written:
                raise OSError(errno.EIO, "nothing could be written")
            self.size += written
            rest = rest[written:]

    def give_up_name(self) -> str | None:
        """The hidden name stays when the file is closed."""
        name, self.name = self.name, None
        return name

    def sync(self) -> None:
        """Wait until the content is on the disk. Raises OSError."""
        os.fdatasync(self.descriptor)

    def close(self) -> None:
        """Let go of the file; without a name it is gone."""
        try:
            os.close(self.descriptor)
        finally:
            if self.name is not None:
                os.unlink(self.name, dir_fd=self.folder)


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    return _SHORT.pack(0x0002, element, vr, len(value)) + value


def _uid(element: int, uid: str) -> bytes:
    value = uid.encode("ascii")
    return _element(element, b"UI", value + b"\0" * (len(value) & 1))


def _text(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("latin-1")
    return _element(element, vr, value + b" " * (len(value) & 1))
