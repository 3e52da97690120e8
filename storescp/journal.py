"""The journal: which instances may be on the disk without everybody knowing it yet. Blocking; no Twisted.

What belongs here: the paths that are being given to files, from just before until it is known whether the sender
has had its answer. Whatever dies meanwhile, the next start finds them here, and looks at these few files instead of
the whole archive (:mod:`storescp.recovery`). The index need not reach the disk with every commit for the
same reason: what it may have lost is in the journal.

The file holds a line for each event: ``+PATH`` before a file is given that name, ``-PATH`` when that is
settled. It is made with its full size and overwritten from the start: syncing that costs no metadata. Lines
end where the zeros begin. When it is full it is begun anew with what is open.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable

from storescp.part10 import sync_directory

#: Bytes of a journal; some 8,000 instances until it is begun anew with what is still open.
SIZE = 1024 * 1024


class Journal:
    """The journal at *path*, made if missing. Raises OSError, as every method does.

    *sync*: what :meth:`begin` writes is on the disk when it returns. ``settle_index`` is called before lines are
    forgotten that the index is to answer for. ``found`` are the paths that the last process left, settled or
    not. All but :meth:`end` must be called by one thread at a time.
    """

    def __init__(self, path: str, *, sync: bool, size: int = SIZE) -> None:
        self.settle_index: Callable[[], None] = lambda: None
        self._path = path
        self._sync = sync
        self._size = size
        self._ended: deque[str] = deque()
        self._lines: list[str] = []  # of what has ended, not written yet
        self.found, self._open = _read(path)
        self._file = -1
        self._position = self._end = 0

    @property
    def open_paths(self) -> list[str]:
        """The paths that were begun and not ended, oldest first."""
        self._settle()
        return list(self._open)

    def begin(self, paths: Iterable[str]) -> None:
        """Files are about to be given *paths*."""
        self._settle()
        lines, self._lines = self._lines, []
        for path in paths:
            self._open[path] = self._open.get(path, 0) + 1
            lines.append(f"+{path}\n")
        data = "".join(lines).encode("ascii")
        if self._file < 0 or self._position + len(data) > self._end:
            self.restart()
            return
        try:
            written = os.pwrite(self._file, data, self._position)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
            if self._sync:
                os.fdatasync(self._file)
        except OSError:
            self._forget_file()  # nobody knows what it holds now: the next one begins anew
            raise
        self._position += written

    def end(self, path: str) -> None:
        """One beginning of *path* is settled. Costs nothing: it is written with what begins next. Any thread may."""
        self._ended.append(path)

    def restart(self) -> None:
        """Begin the file anew with what is open."""
        self._settle()
        self._lines.clear()
        self._forget_file()
        self.settle_index()
        data = "".join(f"+{path}\n" * count for path, count in self._open.items()).encode("ascii")
        new = self._path + ".new"
        file = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
        try:
            content = data + bytes(max(self._size - len(data), self._size // 2))
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file, rest) :]
            if self._sync:
                os.fsync(file)
            os.rename(new, self._path)
            if self._sync:
                sync_directory(os.path.dirname(self._path))
        except OSError:
            os.close(file)
            raise
        self._file, self._position, self._end = file, len(data), len(content)

    def reset(self) -> None:
        """Nothing is open."""
        self._ended.clear()
        self._open.clear()
        self.restart()

    def close(self) -> None:
        """Leave what is open for the next start."""
        try:
            self.restart()
        finally:
            self._forget_file()

    def _settle(self) -> None:
        while self._ended:  # others may add to it meanwhile
            path = self._ended.popleft()
            self._lines.append(f"-{path}\n")
            count = self._open.pop(path, 0)
            if count > 1:
                self._open[path] = count - 1

    def _forget_file(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):
                os.close(file)


def _read(path: str) -> tuple[list[str], dict[str, int]]:
    """All paths begun, and path -> how often it was begun and not ended. A line that is cut short never counted."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return [], {}
    begun: dict[str, None] = {}
    still_open: dict[str, int] = {}
    for line in content.partition(b"\0")[0].split(b"\n")[:-1]:
        name = line[1:].decode("ascii", "replace")
        if line[:1] == b"+":
            begun[name] = None
            still_open[name] = still_open.get(name, 0) + 1
        elif still_open.get(name, 0) > 1:
            still_open[name] -= 1
        else:
            still_open.pop(name, None)
    return list(begun), still_open
