"""The directory tree that instances are stored in: how a file gets a name there, and what is durable when.

What belongs here: names, by blocking calls. A file is written without one and given it when it is complete, so that
no reader ever sees half of it, no writer overwrites another, and a crash leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Collection, Iterable, Iterator

from storescp.beneath import AS_UMASK, Beneath, Modes, Recent, SymbolicLink, let_go, make_directory
from storescp.flushing import ParallelSync, can_sync_file_system, sync_file_system, sync_path
from storescp.part10 import UnnamedFile

#: The directory under the storage directory that holds what is not an instance.
PRIVATE_DIRECTORY = ".storescp"

_PIECE = 1024 * 1024
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class StorageDirectory:
    """The directory tree that instances are stored in.

    ``sync`` makes :meth:`UnnamedFile.sync` and :meth:`sync_directories` reach the disk. Opening it creates
    it, and proves that it can be written. What a crash may have left is there until :meth:`clean`; of several
    processes each *worker* has hidden names of its own, which are relative to ``hidden_descriptor``. Paths are relative
    to the root; no symbolic link below that is followed, even if a directory becomes one meanwhile. Raises OSError,
    and for a link SymbolicLink, as every method does.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        sync: bool,
        worker: int | None = None,
        modes: Modes = AS_UMASK,
    ) -> None:
        self.root = os.path.abspath(root)
        self.sync = sync
        self._mode = modes.file
        make_private(self.root, modes)
        with contextlib.ExitStack() as stack:
            self.beneath = Beneath(self.root, modes)
            stack.callback(self.beneath.close)
            hidden = (PRIVATE_DIRECTORY, "incoming", *([] if worker is None else [str(worker)]))
            self.hidden_descriptor = self.beneath.make("/".join(hidden))
            stack.callback(os.close, self.hidden_descriptor)
            if sync:
                for directory in (PRIVATE_DIRECTORY, "", ".."):
                    sync_path(os.path.join(self.root, directory))
            self._proc = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, self._proc)
            #: Of the file system that one call syncs.
            self._device = -1
            if sync and can_sync_file_system(self.root):
                self._device = os.stat(self.beneath.descriptor).st_dev
            self.sync_together = ParallelSync()
            stack.callback(self.sync_together.close)
            self._recent = Recent(self.beneath)
            stack.callback(self._recent.close)
            self._own = f"{os.getpid()}-{os.urandom(4).hex()}"
            self._numbers = itertools.count()
            self._durable: set[str] = set()
            self._anonymous = True
            self.create().close()
            self._close = stack.pop_all()

    def close(self) -> None:
        self._close.close()

    def leftovers(self) -> dict[int, str]:
        """The hidden names that there are, by inode."""
        return {
            os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_ino: os.path.join(folder, name)
            for folder, _, names, descriptor in os.fwalk(".", dir_fd=self.hidden_descriptor)
            for name in names
        }

    def clean(self) -> None:
        """Remove what is left in the place of hidden names: of all processes, or of this worker."""
        for _, folders, names, descriptor in os.fwalk(".", topdown=False, dir_fd=self.hidden_descriptor):
            for name in names:
                os.unlink(name, dir_fd=descriptor)
            for name in folders:
                os.rmdir(name, dir_fd=descriptor)

    def create(self, *, is_safe: bool = False) -> UnnamedFile:
        """A new file without a name; its content *is_safe* elsewhere until it is flushed."""
        # What is synced without a name is, for a file system without a journal, a file that nobody wants: a power
        # cut soon after the naming would take it. Where it must last, it has a name from the beginning.
        if self._anonymous and (is_safe or not self.sync):
            try:
                return self._create(None, os.O_TMPFILE)
            except OSError as error:
                if error.errno not in _NO_TMPFILE or not os.fstat(self.hidden_descriptor).st_nlink:
                    raise
                self._anonymous = False  # NFS and others: a name where nobody looks does as well
        return self._create(self._hidden_name(), os.O_CREAT | os.O_EXCL)

    def name(self, file: UnnamedFile, path: str, *, asked: bool = False) -> None:
        """Give *file* its *path*, in one step.

        *asked*: :meth:`has` was, just now and by the one thread that does so: links were looked for then. Raises
        FileExistsError when the name is taken.
        """
        directory, _, name = path.rpartition("/")
        if asked:
            try:
                self._link(file, name, self._recent.open(directory))
                return
            except FileNotFoundError:
                self._recent.drop(directory)
        # They may have been there before, and been removed: what is made anew is not durable yet.
        missing = directory
        while missing and not self.beneath.has(missing):
            self._durable.discard(missing)
            missing = missing.rpartition("/")[0]
        try:
            descriptor = self.beneath.make(directory)
            try:
                self._link(file, name, descriptor)
            finally:
                let_go(descriptor)
        except FileExistsError:
            raise
        except OSError:
            self.prune(path)
            raise

    def replace(self, file: UnnamedFile, path: str) -> str:
        """Put *file* in the place of the one at *path*, in one step.

        Returns the hidden name under which the old file is kept until :meth:`forget` or :meth:`restore`.
        """
        old, new = self._hidden_name(), self._hidden_name()
        with self._directory_of(path) as (directory, name):
            self._link(file, new, self.hidden_descriptor)
            try:
                try:
                    _link(name, directory, old, self.hidden_descriptor)
                except OSError as error:
                    if error.errno not in _NO_LINK:
                        raise
                    # Moving it away would leave nothing there if we died now.
                    self._copy(name, directory, old)
                os.rename(new, name, src_dir_fd=self.hidden_descriptor, dst_dir_fd=directory)
            except OSError:
                self.forget(old)
                self.forget(new)
                raise
        return old

    def restore(self, old: str, path: str) -> None:
        """Undo :meth:`replace`, durably."""
        with self._directory_of(path) as (directory, name):
            os.rename(old, name, src_dir_fd=self.hidden_descriptor, dst_dir_fd=directory)
            if self.sync:
                os.fsync(directory)

    def forget(self, old: str) -> None:
        """A hidden name is not needed any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(old, dir_fd=self.hidden_descriptor)

    def open_hidden(self, name: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
        """A descriptor of the file with a hidden name."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self.hidden_descriptor)

    def remove(self, path: str) -> None:
        """Undo :meth:`name`, and take away the directories that this leaves empty, durably."""
        with self._directory_of(path) as (directory, name):
            os.unlink(name, dir_fd=directory)
        remaining = self.prune(path)
        if self.sync:
            self._sync(remaining)

    def prune(self, path: str) -> str:
        """Take away the directories above *path* that are empty; returns the first that stays."""
        directory = path.rpartition("/")[0]
        with contextlib.suppress(OSError):
            while directory:
                with contextlib.suppress(FileNotFoundError), self._directory_of(directory) as (above, name):
                    os.rmdir(name, dir_fd=above)
                self._durable.discard(directory)
                directory = directory.rpartition("/")[0]
        return directory

    def has(self, path: str) -> bool:
        """Whether the name is taken, be it by a link."""
        return self.beneath.has(path)

    def inode_of(self, path: str) -> int:
        """Of the file that has the name; 0 when there is none, or but a link leads there."""
        try:
            with self._directory_of(path) as (directory, name):
                return os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
        except (FileNotFoundError, SymbolicLink):
            return 0

    def sync_file(self, path: str) -> None:
        """Make a file that has its name already durable, content and name."""
        if self.sync:
            self._sync(path)
            self.sync_directories([path])

    def flush(self, paths: Iterable[str]) -> None:
        """Make files that have got their names durable, as :meth:`sync_file`, all at once.

        Those that are gone again, or that a link has taken the way to, are nobody's business.
        """
        if not self.sync:
            return
        apart = set()  # where the call does not do for all, or something is mounted below the root
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                if (
                    os.stat(path, dir_fd=self.beneath.descriptor, follow_symlinks=False).st_dev
                    != self._device
                ):
                    apart.add(path)
        if self._device >= 0:
            sync_file_system(self.beneath.descriptor)
        for name in apart | _directories(apart, frozenset()):
            with contextlib.suppress(FileNotFoundError, SymbolicLink):
                self._sync(name)

    def sync_directories(self, paths: Iterable[str]) -> None:
        """Make the names given to *paths* durable: their directories, each once."""
        if not self.sync:
            return
        # A directory that is used for the first time may be as new as the file: its own name needs a sync too.
        pending = _directories(paths, self._durable)
        with contextlib.ExitStack() as stack:
            descriptors = []
            for directory in pending:
                descriptors.append(self.beneath.open(directory))
                stack.callback(let_go, descriptors[-1])
            for failure in self.sync_together((), descriptors):
                if failure is not None:
                    raise failure
        if len(self._durable) > 100_000:
            self._durable.clear()
        self._durable |= pending

    def _create(self, name: str | None, flags: int) -> UnnamedFile:
        mode = 0o666 if self._mode is None else self._mode
        descriptor = self.open_hidden(name or ".", flags | os.O_RDWR, mode)
        file = UnnamedFile(descriptor, name, self.hidden_descriptor)
        if self._mode is not None:
            try:
                os.fchmod(descriptor, mode)
            except OSError:
                file.close()
                raise
        return file

    def _hidden_name(self) -> str:
        return f"{self._own}-{next(self._numbers)}"

    @contextlib.contextmanager
    def _directory_of(self, path: str) -> Iterator[tuple[int, str]]:
        """The open directory of *path*, and the name there."""
        directory, _, name = path.rpartition("/")
        descriptor = self.beneath.open(directory)
        try:
            yield descriptor, name
        finally:
            let_go(descriptor)

    def _sync(self, path: str) -> None:
        descriptor = self.beneath.open_file(path or ".")
        try:
            os.fsync(descriptor)
        finally:
            let_go(descriptor)

    def _copy(self, name: str, directory: int, hidden: str) -> None:
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        with (
            contextlib.closing(self._create(hidden, os.O_CREAT | os.O_EXCL)) as new,
            open(source, "rb") as old,
        ):
            while piece := old.read(_PIECE):
                new.write([piece])
            os.fchmod(new.descriptor, stat.S_IMODE(os.fstat(source).st_mode))
            new.give_up_name()

    def _link(self, file: UnnamedFile, name: str, directory: int) -> None:
        if file.name is None:
            _link(str(file.descriptor), self._proc, name, directory, follow=True)  # /proc's link to the inode
            return
        try:
            _link(file.name, file.folder, name, directory)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            # No hard links here. The caller lets nobody else use this path meanwhile.
            with contextlib.suppress(FileNotFoundError):
                os.stat(name, dir_fd=directory, follow_symlinks=False)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
            os.rename(file.name, name, src_dir_fd=file.folder, dst_dir_fd=directory)
            file.name = None


def make_private(root: str, modes: Modes) -> None:
    """Make the storage directory *root*, if need be, and the one below it that is ours, for nobody else to look into.

    Raises SymbolicLink if that is a link, and OSError.
    """
    if not os.path.isdir(root):
        os.makedirs(os.path.dirname(root), exist_ok=True)
        os.close(make_directory(root, modes.directory))
    # A group that the storage directory hands on is for the files, too: they are made below ours.
    handed_on = os.stat(root).st_mode & stat.S_ISGID
    with contextlib.closing(Beneath(root, Modes(directory=0o700 | handed_on))) as beneath:
        os.close(beneath.make(PRIVATE_DIRECTORY))


def _link(name: str, directory: int, new: str, new_directory: int, *, follow: bool = False) -> None:
    os.link(name, new, src_dir_fd=directory, dst_dir_fd=new_directory, follow_symlinks=follow)


def _directories(paths: Iterable[str], known: Collection[str]) -> set[str]:
    """Those that *paths* are in, each with those above it: up to one that is *known*, or to the root, inclusively."""
    found = set()
    for directory in {path.rpartition("/")[0] for path in paths}:
        found.add(directory)
        while directory and directory not in known:
            directory = directory.rpartition("/")[0]
            found.add(directory)
    return found
