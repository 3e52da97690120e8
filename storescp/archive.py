"""All that a server keeps on the disk, opened in the right order: directory, index, journal. Blocking; no Twisted."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import stat
from collections.abc import Sequence

from storescp.beneath import SymbolicLink
from storescp.commit import Committer
from storescp.config import Config, Sync
from storescp.index import Index, IndexUnavailable
from storescp.journal import SIZE, WITHOUT_CONTENTS, Journal
from storescp.lost_answers import LostAnswers
from storescp.recovery import recover
from storescp.restoration import restore
from storescp.space import no_room
from storescp.storage_directory import PRIVATE_DIRECTORY, StorageDirectory, make_private


class CannotOpen(Exception):
    """The archive cannot be used; str() is one line for the operator."""


class ServerArchive:
    """The archive that *config* describes, after whatever a crash left undone was done (``recovered``), and put
    back what a power cut took of it (``restored``, paths).

    Only one server may have it at a time. *worker* is the number of one of its processes, where it has several:
    they share all but their journals and hidden names. ``lock`` is the descriptor that keeps other servers out, as
    long as any process has it. Raises CannotOpen.
    """

    lock = -1
    restored: Sequence[str] = ()
    index_is_behind = False
    """Whether the index was made just now, below a directory that has something: a backup, or another's archive."""

    def __init__(self, config: Config, worker: int | None = None) -> None:
        self.index: Index | None = None
        with contextlib.ExitStack() as stack:
            try:
                self._open(config, worker, stack)
            except BlockingIOError:
                raise CannotOpen(
                    f"the storage directory {str(config.storage_dir)!r} is in use by another server"
                ) from None
            except OSError as error:
                raise CannotOpen(_cannot_write(config, error)) from None
            except IndexUnavailable as error:
                raise CannotOpen(f"{error}{no_room(config.index_db)}") from None
            self._close = stack.pop_all()

    def _open(self, config: Config, worker: int | None, stack: contextlib.ExitStack) -> None:
        """Open everything, to be closed by *stack*. Raises OSError and IndexUnavailable."""
        root = config.storage_dir
        private = os.path.join(root, PRIVATE_DIRECTORY)
        sync = config.sync is Sync.ALWAYS
        if worker is None:
            make_private(os.path.abspath(root), config.modes)
            self.lock = _lock(private)
            stack.callback(os.close, self.lock)
        self.directory = StorageDirectory(root, sync=sync, worker=worker, modes=config.modes)
        stack.callback(self.directory.close)
        if config.index_db is not None:
            if worker is None and not os.path.exists(config.index_db):
                self.index_is_behind = any(entry.name != PRIVATE_DIRECTORY for entry in os.scandir(root))
            self.index = Index(config.index_db)
            stack.callback(self.index.close)
        lost = LostAnswers(os.path.join(private, "lost-answers"), sync=sync)
        exclusive: _FileLock | None = None
        name = "journal"
        if worker is not None:
            name = f"journal-{worker}"
            exclusive = _FileLock(os.path.join(private, "commit-lock"))
            stack.callback(exclusive.close)
        together = self.directory.sync_together if sync else None
        size = _journal_size(private) if sync else WITHOUT_CONTENTS
        journal = Journal(os.path.join(private, name), together, size)
        stack.callback(journal.close)
        others: list[Journal] = []
        if worker is None:  # of a server that had several processes, perhaps more than now
            paths = glob.glob(os.path.join(glob.escape(private), "journal-*[0-9]"))
            others = [Journal(path, together) for path in paths if not path.endswith(".2")]
        journals = (journal, *others)
        if worker is None:  # while a server lives, so does what its system has not written yet
            self.restored = restore(self.directory, [event for one in journals for event in one.events])
        self.recovered = [recover(self.directory, self.index, one, lost, config.digest) for one in journals]
        for other in others:
            other.remove()
        self.directory.clean()
        self.committer = Committer(self.directory, self.index, journal, lost, config.duplicate, exclusive)

    def close(self) -> None:
        """Close everything; what is open stays in the journal. Raises OSError and IndexUnavailable."""
        self._close.close()


class _FileLock:
    """A context that only one process is in at a time; others wait. Not for threads."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._file)


def _cannot_write(config: Config, error: OSError) -> str:
    """What is wrong with the storage directory, in one line."""
    line = f"the storage directory {str(config.storage_dir)!r} cannot be written: {error.strerror}"
    if isinstance(error, SymbolicLink):
        line += f": {error.filename!r}"
    mode = config.modes.directory or 0
    if error.errno == errno.EPERM and mode & stat.S_ISGID:
        line += f": directory-mode {mode:o} wants RestrictSUIDSGID=no of systemd, or directories with g+s"
    return line


def _journal_size(directory: str) -> int:
    """Bytes: on a small disk it must not take much of the room."""
    status = os.statvfs(directory)
    return min(SIZE, status.f_blocks * status.f_frsize // 200)


def _lock(directory: str) -> int:
    """A descriptor that holds the lock until it is closed. Raises BlockingIOError when another one does."""
    lock = os.open(os.path.join(directory, "lock"), os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
