"""Reaching the disk: of a file, a directory, or a whole file system at once, syncfs(2). Blocking; no Twisted."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from collections.abc import Sequence

#: File systems of which one call is known to bring everything to the disk, files, names and the disk's own cache.
WHOLE = frozenset(("btrfs", "ext2", "ext3", "ext4", "f2fs", "tmpfs", "xfs", "zfs"))

#: Before this version Linux did not tell of what could not be written.
_SINCE = (5, 8)

#: Numbers of the system calls io_setup, io_destroy, io_getevents and io_submit, by machine.
_AIO_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_AIO_MAXIMUM = 64  # files that are synced at the same time
_IOCB_CMD_FSYNC, _IOCB_CMD_FDSYNC = 2, 3

_sync_file_range = ctypes.CDLL(None).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2


def start_writing(descriptor: int) -> None:
    """Have the disk begin with what was written to a file, sync_file_range(2).

    So that it works while we do: a sync, which has to follow, waits for less. That also tells what failed.
    """
    _sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


def sync_path(path: str) -> None:
    """Wait until what the file, or directory, at *path* holds is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def can_sync_file_system(directory: str) -> bool:
    """Whether :func:`sync_file_system` is to be relied upon for the file system that *directory* is on."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if version is None or tuple(map(int, version.groups())) < _SINCE:
        return False
    return _type_of(os.path.realpath(directory)) in WHOLE


def sync_file_system(descriptor: int) -> None:
    """Wait until all of the file system that *descriptor* is on is on the disk. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _type_of(path: str) -> str:
    """The type of the file system that an absolute *path* without symbolic links is on, as proc(5) tells."""
    found, longest = "", -1
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for entry in file:
            before, _, after = entry.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split(" ")[4])
            # Of several on the same point the last one is seen.
            if len(point) >= longest and (path == point or path.startswith(point.rstrip("/") + "/")):
                found, longest = after.split(" ")[0], len(point)
    return found


def sync_each(files: Sequence[int], directories: Sequence[int] = ()) -> list[OSError | None]:
    """The contents of open *files* and *directories* to the disk, one after the other; what became of each."""
    results: list[OSError | None] = []
    for number, descriptor in enumerate((*files, *directories)):
        try:
            if number < len(files):
                os.fdatasync(descriptor)
            else:  # to fdatasync(2) a new name is not always something that must reach the disk
                os.fsync(descriptor)
        except OSError as error:
            results.append(error)
        else:
            results.append(None)
    return results


class _IOCB(ctypes.Structure):
    """struct iocb of linux/aio_abi.h, as far as fsync needs it."""

    _fields_ = (
        ("aio_data", ctypes.c_uint64),
        ("aio_key", ctypes.c_uint64),  # and flags
        ("aio_lio_opcode", ctypes.c_uint16),
        ("aio_reqprio", ctypes.c_int16),
        ("aio_fildes", ctypes.c_uint32),
        ("_rest", ctypes.c_uint64 * 5),
    )


class _Event(ctypes.Structure):
    """struct io_event: ``res`` is 0, or an error's negative number."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("obj", ctypes.c_uint64),
        ("res", ctypes.c_int64),
        ("res2", ctypes.c_int64),
    )


class ParallelSync:
    """As :func:`sync_each`, all at the same time: by io_submit(2), one thread waits for what many would.

    Where the system has no such call they go one after the other.
    """

    def __init__(self) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._context = ctypes.c_ulong(0)
        numbers = _AIO_NUMBERS.get(os.uname().machine, (0, 0, 0, 0))
        self._setup, self._destroy, self._get_events, self._submit = map(ctypes.c_long, numbers)
        self._turn = threading.Lock()
        self._can = numbers[1] > 0 and self._call(self._setup, _AIO_MAXIMUM, ctypes.byref(self._context)) == 0

    def close(self) -> None:
        """Let go of what the kernel keeps for this."""
        if self._can:
            self._can = False
            self._call(self._destroy, self._context)

    def __call__(self, files: Sequence[int], directories: Sequence[int] = ()) -> list[OSError | None]:
        if not self._can or len(files) + len(directories) < 2:
            return sync_each(files, directories)
        todo = [(_IOCB_CMD_FDSYNC, file) for file in files]
        todo += [(_IOCB_CMD_FSYNC, directory) for directory in directories]
        with self._turn:
            parts = [todo[i : i + _AIO_MAXIMUM] for i in range(0, len(todo), _AIO_MAXIMUM)]
            return [result for part in parts for result in self._together(part)]

    def _together(self, todo: Sequence[tuple[int, int]]) -> list[OSError | None]:
        count = len(todo)
        blocks = (_IOCB * count)()
        pointers = (ctypes.POINTER(_IOCB) * count)()
        for number, (code, descriptor) in enumerate(todo):
            block = blocks[number]
            block.aio_data, block.aio_lio_opcode, block.aio_fildes = number, code, descriptor
            pointers[number] = ctypes.pointer(block)
        submitted = max(self._call(self._submit, self._context, ctypes.c_long(count), pointers), 0)
        events = (_Event * count)()
        got = 0
        while got < submitted:
            wanted = ctypes.c_long(submitted - got)
            more = self._call(
                self._get_events, self._context, wanted, wanted, ctypes.byref(events[got]), ctypes.c_void_p()
            )
            if more < 0 and ctypes.get_errno() != errno.EINTR:
                self.close()  # which waits for what is under way; from now on one after the other
                return _one_by_one(todo)
            got += max(more, 0)
        results = [None] * submitted + _one_by_one(todo[submitted:])  # what the kernel had no room for
        for event in events[:got]:
            if event.res:
                results[event.data] = OSError(-event.res, os.strerror(-event.res))
        return results


def _one_by_one(todo: Sequence[tuple[int, int]]) -> list[OSError | None]:
    files = [descriptor for code, descriptor in todo if code == _IOCB_CMD_FDSYNC]
    return sync_each(files, [descriptor for code, descriptor in todo if code == _IOCB_CMD_FSYNC])
