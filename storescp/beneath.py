"""Directories and files below a root, opened without following a symbolic link on the way. Blocking; no Twisted.

What belongs here: from a path to a descriptor. Who has that has what stood there then, whatever becomes of the path:
what is judged is what is used. The root itself may have been reached by links: those are the operator's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import time
from typing import NamedTuple

#: Number of the system call openat2 (Linux 5.6) on all machines but Alpha.
_OPENAT2 = 437
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_ABSENT = (errno.ENOSYS, errno.EPERM)  # EPERM: of a filter of system calls that does not know it


class SymbolicLink(OSError):
    """A link stands in the way, or in the place of a file; ``filename`` is where."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ELOOP, "symbolic links are not followed", path)


class Modes(NamedTuple):
    """The permissions of files and directories that are made, whatever the umask is. None: as the umask leaves them."""

    file: int | None = None
    directory: int | None = None


#: Seconds for which a directory may be kept open: who moves it away takes along what arrives in that time.
KEPT = 1.0

#: Directories that are kept open.
MOST = 64

AS_UMASK = Modes()


class _OpenHow(ctypes.Structure):
    """struct open_how of linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_system_call = ctypes.CDLL(None, use_errno=True).syscall
_system_call.restype = ctypes.c_long
_system_call.argtypes = (
    *(ctypes.c_long, ctypes.c_long, ctypes.c_char_p),
    *(ctypes.POINTER(_OpenHow), ctypes.c_size_t),
)

_RESOLVE = 0x02 | 0x04 | 0x08  # no magic links, no symbolic links, beneath
_DIRECTORY_HOW = _OpenHow(_DIRECTORY, 0, _RESOLVE)
_FILE_HOW = _OpenHow(_FILE, 0, _RESOLVE)
_PROBE_HOW = _OpenHow(os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE)
_HOW_SIZE = ctypes.sizeof(_OpenHow)


class Beneath:
    """What is below the directory *root*, a path; ``descriptor`` is open until :meth:`close`.

    Paths are relative, with "/" between their components and nothing before or behind; "" is the root. Every method
    raises FileNotFoundError for what is not there, SymbolicLink, and OSError.
    """

    def __init__(self, root: str, modes: Modes = AS_UMASK) -> None:
        self._name = root
        self._modes = modes
        self.descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._has_call = True

    def close(self) -> None:
        let_go(self.descriptor)

    def open(self, directory: str) -> int:
        """A descriptor of *directory*."""
        descriptor = self._open(directory or ".", _DIRECTORY_HOW)
        if descriptor is None:
            return self._walk(directory)
        if descriptor < 0:
            raise self._error(-descriptor, directory)
        return descriptor

    def make(self, directory: str) -> int:
        """As :meth:`open`; what is missing of it is made."""
        return self._walk(directory, make=True)

    def open_file(self, path: str) -> int:
        """A descriptor to read from whatever file *path* is, which may be a FIFO: that does not block."""
        descriptor = self._open(path, _FILE_HOW)
        if descriptor is None:
            directory, _, name = path.rpartition("/")
            folder = self._walk(directory)
            try:
                return os.open(name, _FILE, dir_fd=folder)
            except OSError as error:
                raise self._error(error.errno, path) from None
            finally:
                let_go(folder)
        if descriptor < 0:
            raise self._error(-descriptor, path)
        return descriptor

    def has(self, path: str) -> bool:
        """Whether something has the name *path*, be it a link. What is above need not exist."""
        # One call, which leaves nothing to be closed: most names are not taken.
        descriptor = self._open(path, _PROBE_HOW)
        if descriptor == -errno.ENOENT:
            return False
        if descriptor is not None and descriptor >= 0:
            let_go(descriptor)
            return True
        directory, _, name = path.rpartition("/")
        try:
            folder = self.open(directory)
        except FileNotFoundError:
            return False
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        finally:
            let_go(folder)
        return True

    def _open(self, path: str, how: _OpenHow) -> int | None:
        """By the one call that can: a descriptor, or an error's negative number; None where there is no such call."""
        while self._has_call:
            descriptor: int = _system_call(_OPENAT2, self.descriptor, os.fsencode(path), how, _HOW_SIZE)
            if descriptor >= 0:
                return descriptor
            number = ctypes.get_errno()
            if number in _ABSENT:
                self._has_call = False
            elif number != errno.EINTR:
                return -number
        return None

    def _walk(self, directory: str, *, make: bool = False) -> int:
        """Component by component."""
        descriptor = os.open(".", _DIRECTORY, dir_fd=self.descriptor)
        try:
            for component in directory.split("/") if directory else ():
                try:
                    below = os.open(component, _DIRECTORY, dir_fd=descriptor)
                except FileNotFoundError:
                    if not make:
                        raise
                    below = make_directory(component, self._modes.directory, descriptor)
                let_go(descriptor)
                descriptor = below
        except OSError as error:
            let_go(descriptor)
            raise self._error(error.errno, directory) from None
        return descriptor

    def _error(self, number: int | None, path: str) -> OSError:
        """What to raise for *path*: a link is called so."""
        if number in (errno.ELOOP, errno.ENOTDIR):
            above = self._name
            for component in path.split("/"):
                above = os.path.join(above, component)
                with contextlib.suppress(OSError):
                    if stat.S_ISLNK(os.lstat(above).st_mode):
                        return SymbolicLink(above)
        return OSError(number, os.strerror(number or 0), os.path.join(self._name, path))


class Recent:
    """The directories of *beneath* that are used again and again, kept open for a moment. For one thread only."""

    def __init__(self, beneath: Beneath) -> None:
        self._beneath = beneath
        self._open: dict[str, tuple[int, float]] = {}

    def open(self, directory: str) -> int:
        """As that of Beneath; not to be closed."""
        now = time.monotonic()
        found = self._open.get(directory)
        if found is not None and now - found[1] < KEPT:
            return found[0]
        descriptor = self._beneath.open(directory)
        for oldest, (_, opened) in list(self._open.items()):
            if now - opened < KEPT and len(self._open) < MOST:
                break
            self.drop(oldest)
        self._open[directory] = descriptor, now
        return descriptor

    def drop(self, directory: str) -> None:
        """It may be another one now."""
        if found := self._open.pop(directory, None):
            let_go(found[0])

    def close(self) -> None:
        for directory in list(self._open):
            self.drop(directory)


def make_directory(name: str, mode: int | None, above: int | None = None) -> int:
    """Make the directory *name*, in the one with the descriptor *above*, unless it is there; a descriptor of it.

    One that is made has exactly this *mode*, unless that is None. Raises OSError.
    """
    try:
        os.mkdir(name, 0o777 if mode is None else mode & 0o777, dir_fd=above)
    except FileExistsError:
        mode = None
    descriptor = os.open(name, _DIRECTORY, dir_fd=above)
    # Where the bit for the group is handed on, it need not be set: a sandbox may forbid that.
    if mode is not None and stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        os.fchmod(descriptor, mode)
    return descriptor


def let_go(descriptor: int) -> None:
    """Close a descriptor that nothing was written by: that this fails says nothing of the disk, and changes nothing."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
