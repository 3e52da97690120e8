"""DICOM files, PS3.10 §7: preamble, File Meta Information, and how a streamed data set becomes a file.

What belongs here: one file and the directory it lives in, by blocking calls. A file is written without a
name and given one when it is complete, so that no reader ever sees half of it, no writer overwrites
another, and a crash leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import struct
from collections.abc import Iterable, Sequence

from storescp import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from storescp.flushing import ParallelSync, can_sync_file_system, sync_file_system, sync_path

#: The directory under the storage directory that holds what is not an instance.
PRIVATE_DIRECTORY = ".storescp"

_SHORT = struct.Struct("<HH2sH")
#: Pieces that one writev takes on Linux.
IOV_MAX = 1024
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


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


class StorageDirectory:
    """The directory tree that instances are stored in.

    ``sync`` makes :meth:`UnnamedFile.sync` and :meth:`sync_directories` reach the disk. Opening it creates
    it, and proves that it can be written. What a crash may have left is there until :meth:`clean`; of several
    processes each *worker* has hidden names of its own. Raises OSError.
    """

    def __init__(self, root: str | os.PathLike[str], *, sync: bool, worker: int | None = None) -> None:
        self.root = os.path.abspath(root)
        self.sync = sync
        private = os.path.join(self.root, PRIVATE_DIRECTORY)
        self._hidden = os.path.join(private, "incoming", *([] if worker is None else [str(worker)]))
        os.makedirs(self._hidden, exist_ok=True)
        if sync:
            for directory in (private, self.root, os.path.dirname(self.root)):
                sync_path(directory)
        self.sync_together = ParallelSync()
        self._own = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._numbers = itertools.count()
        self._proc = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        self._root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        self.hidden_descriptor = os.open(self._hidden, os.O_RDONLY | os.O_DIRECTORY)
        #: Of the file system that one call syncs.
        self._device = os.stat(self._root).st_dev if sync and can_sync_file_system(self.root) else -1
        self._durable: set[str] = set()
        self._anonymous = True
        self.create().close()

    def close(self) -> None:
        os.close(self._proc)
        os.close(self._root)
        os.close(self.hidden_descriptor)
        self.sync_together.close()

    def leftovers(self) -> dict[int, str]:
        """The files that have a hidden name, by inode. Raises OSError."""
        return {
            os.lstat(name).st_ino: name
            for folder, _, names in os.walk(self._hidden)
            for name in (os.path.join(folder, name) for name in names)
        }

    def clean(self) -> None:
        """Remove what is left in the place of hidden names: of all processes, or of this worker. Raises OSError."""
        for folder, folders, names in os.walk(self._hidden, topdown=False):
            for name in names:
                os.unlink(os.path.join(folder, name))
            for name in folders:
                os.rmdir(os.path.join(folder, name))

    def create(self, *, is_safe: bool = False) -> UnnamedFile:
        """A new file without a name; its content *is_safe* elsewhere until it is flushed. Raises OSError."""
        # What is synced without a name is, for a file system without a journal, a file that nobody wants: a power
        # cut soon after the naming would take it. Where it must last, it has a name from the beginning.
        if self._anonymous and (is_safe or not self.sync):
            try:
                return UnnamedFile(os.open(self._hidden, os.O_TMPFILE | os.O_RDWR, 0o666), None)
            except OSError as error:
                if error.errno not in _NO_TMPFILE or not os.path.isdir(self._hidden):
                    raise
                self._anonymous = False  # NFS and others: a name where nobody looks does as well
        name = self._hidden_name()
        return UnnamedFile(os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666), name)

    def name(self, file: UnnamedFile, path: str) -> None:
        """Give *file* its *path* below the root, in one step.

        Raises FileExistsError when the name is taken, and OSError.
        """
        target = self.path_of(path)
        try:
            self._link(file, target)
        except FileNotFoundError:
            directory = os.path.dirname(target)
            # They may have been there before, and been removed: what is made anew is not durable yet.
            missing = directory
            while missing != self.root and not os.path.isdir(missing):
                self._durable.discard(missing)
                missing = os.path.dirname(missing)
            try:
                os.makedirs(directory, exist_ok=True)
                self._link(file, target)
            except OSError:
                self.prune(path)
                raise

    def replace(self, file: UnnamedFile, path: str) -> str:
        """Put *file* in the place of the one at *path*, in one step.

        Returns the hidden name under which the old file is kept until :meth:`forget` or :meth:`restore`.
        """
        target = self.path_of(path)
        old, new = self._hidden_name(), self._hidden_name()
        self._link(file, new)
        try:
            try:
                os.link(target, old)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                shutil.copyfile(target, old)  # moving it away would leave nothing there if we died now
            os.rename(new, target)
        except OSError:
            for name in (old, new):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
            raise
        return old

    def restore(self, old: str, path: str) -> None:
        """Undo :meth:`replace`, durably."""
        target = self.path_of(path)
        os.rename(old, target)
        if self.sync:
            sync_path(os.path.dirname(target))

    def forget(self, old: str) -> None:
        """A hidden name is not needed any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(old)

    def remove(self, path: str) -> None:
        """Undo :meth:`name`, and take away the directories that this leaves empty, durably."""
        target = self.path_of(path)
        os.unlink(target)
        remaining = self.prune(path)
        if self.sync:
            sync_path(remaining)

    def prune(self, path: str) -> str:
        """Take away the directories above *path* that are empty; returns the first that stays."""
        directory = os.path.dirname(self.path_of(path))
        with contextlib.suppress(OSError):
            while directory != self.root:
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(directory)
                self._durable.discard(directory)
                directory = os.path.dirname(directory)
        return directory

    def path_of(self, path: str) -> str:
        """Where the file at *path* below the root is."""
        return os.path.join(self.root, path)

    def has(self, path: str) -> bool:
        """Whether the name is taken."""
        return os.path.lexists(self.path_of(path))

    def inode_of(self, path: str) -> int:
        """Of the file that has the name; 0 when there is none. Raises OSError."""
        try:
            return os.lstat(self.path_of(path)).st_ino
        except FileNotFoundError:
            return 0

    def sync_file(self, path: str) -> None:
        """Make a file that has its name already durable, content and name. Raises OSError."""
        if self.sync:
            sync_path(self.path_of(path))
            self.sync_directories([path])

    def flush(self, paths: Iterable[str]) -> None:
        """Make files that have got their names durable, as :meth:`sync_file`, all at once. Raises OSError.

        Those that are gone again are nobody's business.
        """
        if not self.sync:
            return
        apart = []  # where the call does not do for all, or something is mounted below the root
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path_of(path)).st_dev != self._device:
                    apart.append(path)
        if self._device >= 0:
            sync_file_system(self._root)
        names = set(map(self.path_of, apart))
        directories = names
        while directories := {os.path.dirname(name) for name in directories if name != self.root}:
            names |= directories
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sync_path(name)

    def sync_directories(self, paths: Iterable[str]) -> None:
        """Make the names given to *paths* durable: their directories, each once. Raises OSError."""
        if not self.sync:
            return
        # A directory that is used for the first time may be as new as the file: its own name needs a sync too.
        pending: set[str] = set()
        for directory in {os.path.dirname(self.path_of(path)) for path in paths}:
            pending.add(directory)
            while directory not in self._durable and directory != self.root:
                directory = os.path.dirname(directory)
                pending.add(directory)
        with contextlib.ExitStack() as stack:
            descriptors = []
            for directory in pending:
                descriptors.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
                stack.callback(os.close, descriptors[-1])
            for failure in self.sync_together((), descriptors):
                if failure is not None:
                    raise failure
        if len(self._durable) > 100_000:
            self._durable.clear()
        self._durable |= pending

    def _hidden_name(self) -> str:
        return os.path.join(self._hidden, f"{self._own}-{next(self._numbers)}")

    def _link(self, file: UnnamedFile, target: str) -> None:
        if file.name is None:
            # With a directory descriptor CPython calls linkat, which follows /proc's link to the inode.
            os.link(str(file.descriptor), target, src_dir_fd=self._proc, follow_symlinks=True)
            return
        try:
            os.link(file.name, target)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            # No hard links here. The caller lets nobody else use this path meanwhile.
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
            os.rename(file.name, target)
            file.name = None


class UnnamedFile:
    """A file that is being written. ``name`` is its hidden name where it has one, which goes when it is closed."""

    __slots__ = ("descriptor", "name", "size")

    def __init__(self, descriptor: int, name: str | None) -> None:
        self.descriptor = descriptor
        self.name = name
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
                os.unlink(self.name)


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    return _SHORT.pack(0x0002, element, vr, len(value)) + value


def _uid(element: int, uid: str) -> bytes:
    value = uid.encode("ascii")
    return _element(element, b"UI", value + b"\0" * (len(value) & 1))


def _text(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("latin-1")
    return _element(element, vr, value + b" " * (len(value) & 1))
