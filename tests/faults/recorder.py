"""A disk that remembers the order of things: a file in user space, under a loop device, and a log of what it was told.

``python -m tests.faults.recorder DISK LOG COUNTER MOUNT_POINT`` serves the file DISK under the name MOUNT_POINT, as a
file system of FUSE that consists of one file, until that is unmounted. Every write and every flush is appended to LOG
in the order of arrival. COUNTER, 8 bytes, holds their number in little-endian order, for others to map: it is counted
before the answer is given, so whoever was told that something is on the disk finds it counted.

The protocol is spoken directly (linux/fuse.h, version 7.31): it takes no library, and a dozen kinds of requests.
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple


class Opcode(enum.IntEnum):
    """The requests that one file brings about."""

    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


_IN = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
_OUT = struct.Struct("<IiQ")  # length, -errno, unique
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_ATTR_OUT = struct.Struct("<QII6Q10I")
_READ_WRITE = struct.Struct("<QQIIQII")  # handle, offset, size, flags, lock owner, flags, padding

_MAX_WRITE = 1 << 20
_ASYNC_READ, _BIG_WRITES, _MAX_PAGES, _KEEP_CACHE = 1 << 0, 1 << 5, 1 << 22, 1 << 1

_ENTRY = struct.Struct("<QI")


class Entry(NamedTuple):
    """A write, or a flush: that has no data."""

    offset: int
    data: bytes


def entries(log: BinaryIO) -> Iterator[Entry]:
    """Read the log."""
    while head := log.read(_ENTRY.size):
        offset, size = _ENTRY.unpack(head)
        yield Entry(offset, log.read(size))


def serve(device: int, disk: int, log: BinaryIO, counter: memoryview) -> None:
    """Answer the kernel's requests until the file system is unmounted."""
    count = 0
    size = os.fstat(disk).st_size

    def record(offset: int, data: memoryview | bytes) -> None:
        nonlocal count
        log.write(_ENTRY.pack(offset, len(data)))
        log.write(data)
        count += 1
        counter[:8] = count.to_bytes(8, "little")

    attributes = _ATTR_OUT.pack(
        1 << 30, 0, 0, 1, size, size // 512, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0
    )
    buffer = memoryview(bytearray(_MAX_WRITE + 8192))
    while True:
        try:
            length = os.readv(device, [buffer])
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            if error.errno in (errno.ENOENT, errno.EINTR):
                continue
            raise
        _, opcode, unique, *_ = _IN.unpack_from(buffer)
        body = buffer[_IN.size : length]
        failure, answer = 0, b""
        match opcode:
            case Opcode.INIT:
                _, _, read_ahead, flags = struct.unpack_from("<IIII", body)
                flags &= _ASYNC_READ | _BIG_WRITES | _MAX_PAGES
                answer = _INIT_OUT.pack(
                    7, 31, read_ahead, flags, 16, 12, _MAX_WRITE, 1, _MAX_WRITE // 4096, 0, 0
                )
            case Opcode.GETATTR | Opcode.SETATTR:
                answer = attributes
            case Opcode.OPEN:
                answer = struct.pack("<QII", 1, _KEEP_CACHE, 0)
            case Opcode.READ:
                _, offset, wanted, *_ = _READ_WRITE.unpack_from(body)
                answer = os.pread(disk, wanted, offset)
            case Opcode.WRITE:
                _, offset, wanted, *_ = _READ_WRITE.unpack_from(body)
                data = body[_READ_WRITE.size : _READ_WRITE.size + wanted]
                os.pwrite(disk, data, offset)
                record(offset, data)
                answer = struct.pack("<II", wanted, 0)
            case Opcode.FSYNC:
                record(0, b"")
            case Opcode.RELEASE | Opcode.FLUSH | Opcode.DESTROY:
                pass
            case Opcode.FORGET | Opcode.BATCH_FORGET | Opcode.INTERRUPT:
                continue  # these have no answer
            case _:
                failure = errno.ENOSYS
        os.writev(device, [_OUT.pack(_OUT.size + len(answer), -failure, unique), answer])


def main(disk: str, log: str, counter: str, mount_point: str) -> None:
    """Mount, say so, serve."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=100600,user_id=0,group_id=0,allow_other"
    command = ["mount", "--internal-only", "-t", "fuse", "-o", options, "recorder", mount_point]
    subprocess.run(command, check=True, pass_fds=[device])
    with (
        open(disk, "r+b", buffering=0) as file,
        open(log, "wb") as record,
        open(counter, "r+b") as number,
        mmap.mmap(number.fileno(), 8) as shared,
        memoryview(shared) as view,
    ):
        print("ready", flush=True)
        serve(device, file.fileno(), record, view)


if __name__ == "__main__":
    main(*sys.argv[1:])
