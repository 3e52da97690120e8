"""One file of the journal: frames of lines, and of the contents that they announce. Blocking; no Twisted.

What belongs here: bytes on the disk, and what may be believed of them after a power cut. A frame is whole, or it
does not count: it is written by one call, has a checksum, and only what a sync has followed was relied upon. The
file is overwritten from the start again and again, for overwriting costs no metadata; every time it has another
generation, so that what is left of the last one is not taken for its continuation.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from io import FileIO
from typing import NamedTuple

from storescp.flushing import sync_path
from storescp.part10 import IOV_MAX
from storescp.stored_file import read_at

#: The file grows by so many bytes at a time, in which there are zeros.
GROWTH = 1024 * 1024

_MAGIC = b"SCJ1"
_BEGINNING = struct.Struct("<4sI")  # magic, checksum of all that follows
_REST = struct.Struct("<8sQIQ")  # generation, stamp, bytes of lines, of contents
_HEAD = struct.Struct("<4sI8sQIQ")  # both
_PIECE = 1024 * 1024

Pieces = Sequence[bytes | memoryview]

#: Syncs the files and the directories of these descriptors; what became of each.
Sync = Callable[[Sequence[int], Sequence[int]], list[OSError | None]]


class Content(NamedTuple):
    """Where the bytes of an instance's file are: in *file*, a path, from *offset* on. Its *inode*, if that is known."""

    file: str
    offset: int
    size: int
    inode: int = 0


class Event(NamedTuple):
    """A line of *file*. ``stamp``, the machine's monotonic time in nanoseconds, is the order of all journals' events.

    ``kind`` is one of the following; ``inode`` (0: not known) and ``checksum`` (of all bytes) belong to BEGUN,
    ``content`` to CONTENT.
    """

    file: str
    stamp: int
    kind: str
    path: str
    inode: int = 0
    checksum: int = 0
    content: Content | None = None


BEGUN = "+"  #: a file is about to get this path,
CONTENT = "*"  #: or one whose bytes are in the journal
VOID = "!"  #: the last of these with this path did not become a file
SETTLED = "-"  #: one beginning of the path is done with
ANEW = "="  #: without a path: of all before nothing is open but what is begun in the same frame


def line(kind: str, path: str, number: int = 0, checksum: int = 0) -> str:
    """A line; *number* is an inode, or the size of a content."""
    return f"{kind}{path}\t{number}\t{checksum}\n"


class JournalFile:
    """The file at *path*. What is written is on the disk when a call returns, if there is a *sync*. Raises OSError."""

    def __init__(self, path: str, sync: Sync | None) -> None:
        self.path = path
        self.position = 0
        self._sync = sync
        self._file = -1
        self._end = 0
        self._generation = b""

    def restart(self, lines: str) -> None:
        """Forget all that is in it; *lines* begin what is open."""
        if self._file < 0:
            is_new = not os.path.exists(self.path)
            self._file = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o666)
            self._end = os.fstat(self._file).st_size
            if is_new and self._sync is not None:
                sync_path(os.path.dirname(self.path))
        self.position = 0
        self._generation = os.urandom(8)
        self.append(line(ANEW, "") + lines)

    def append(
        self,
        text: str,
        contents: Sequence[Pieces] = (),
        files: Sequence[int] = (),
        directories: Sequence[int] = (),
    ) -> tuple[int, list[OSError | None]]:
        """Write a frame of the lines *text*, while *files* and *directories*, descriptors, are synced, too.

        Returns the offset of the first of *contents*, and what became of *files* and *directories*. After an error
        nothing is known of the frame.
        """
        lines = text.encode("utf-8", "surrogateescape")
        pieces = [piece for content in contents for piece in content]
        size = sum(map(len, pieces))
        checked = _REST.pack(self._generation, time.monotonic_ns(), len(lines), size) + lines
        checksum = zlib.crc32(checked)
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
        pieces.insert(0, _BEGINNING.pack(_MAGIC, checksum) + checked)
        start = self.position + _HEAD.size + len(lines)
        end = start + size
        grown = self._end
        if end > grown and self._sync is not None:
            grown = -(-end // GROWTH) * GROWTH
            pieces.append(bytes(grown - end))
        failures: list[OSError | None] = []
        try:
            self._write(pieces)
            if self._sync is not None:
                failed, *failures = self._sync([self._file, *files], directories)
                if failed is not None:
                    raise failed
        except OSError:
            with contextlib.suppress(OSError):  # what is there must not count, as far as that can be had
                os.pwrite(self._file, bytes(_HEAD.size), self.position)
                os.fdatasync(self._file)
            raise
        self.position = end
        self._end = max(grown, end)
        return start, failures

    def erase(self) -> None:
        """Nothing in it counts any more; it does not matter when the disk learns of that."""
        self.position = 0
        if os.pwrite(self._file, bytes(_HEAD.size), 0) != _HEAD.size:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)

    def close(self) -> None:
        """Let go of it."""
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):
                os.close(file)

    def _write(self, pieces: Pieces) -> None:
        position = self.position
        for start in range(0, len(pieces), IOV_MAX):
            part = pieces[start : start + IOV_MAX]
            wanted = sum(map(len, part))
            if os.pwritev(self._file, part, position) != wanted:  # a full disk shows first as a short count
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            position += wanted


def read(path: str) -> list[Event]:
    """What the file at *path* holds; nothing if there is none. Raises OSError."""
    events: list[Event] = []
    generation = None
    position = 0
    with contextlib.suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:
        while frame := _read_frame(file, position):
            found, stamp, lines, size = frame
            if found != (generation or found):
                break
            generation = found
            offset = position + _HEAD.size + len(lines)
            position = offset + size
            for text in lines.decode("utf-8", "surrogateescape").splitlines():
                name, number, checksum = text[1:].rsplit("\t", 2)
                if text[0] == CONTENT:
                    content = Content(path, offset, int(number))
                    events.append(Event(path, stamp, CONTENT, name, content=content))
                    offset += int(number)
                else:
                    events.append(Event(path, stamp, text[0], name, int(number), int(checksum)))
    return events


def _read_frame(file: FileIO, position: int) -> tuple[bytes, int, bytes, int] | None:
    """Generation, stamp, lines and bytes of contents of the frame there; None if it is none, or not whole."""
    head = os.pread(file.fileno(), _HEAD.size, position)
    if len(head) < _HEAD.size:
        return None
    magic, expected, generation, stamp, line_size, size = _HEAD.unpack(head)
    if magic != _MAGIC or position + line_size + size > os.fstat(file.fileno()).st_size:
        return None
    position += _HEAD.size
    lines = read_at(file.fileno(), line_size, position)
    checksum = zlib.crc32(lines, zlib.crc32(head[_BEGINNING.size :]))
    end = position + line_size + size
    position += line_size
    while position < end and (piece := os.pread(file.fileno(), min(_PIECE, end - position), position)):
        checksum = zlib.crc32(piece, checksum)
        position += len(piece)
    return (generation, stamp, lines, size) if checksum == expected else None
