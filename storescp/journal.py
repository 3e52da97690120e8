"""The journal: which instances may be on the disk without everybody knowing it yet. Blocking; no Twisted.

What belongs here: the paths that are being given to files, from just before until it is known whether the sender
has had its answer; and the whole bytes of small files. One sync of the journal is then all that a group of those
waits for: they, their directories and the index reach the disk later, all together. Whatever dies meanwhile, the
next start finds here what it has to look at, instead of the whole archive (:mod:`storescp.recovery`), and what a
power cut took (:mod:`storescp.restoration`).

There are two files, used in turn. When one is full, or a moment has passed, the other is begun with what is open;
the first is needed until all that it answers for is on the disk otherwise: that is settled meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from storescp.journal_file import (
    ANEW,
    BEGUN,
    CONTENT,
    SETTLED,
    VOID,
    Content,
    Event,
    JournalFile,
    Pieces,
    Sync,
    line,
    read,
)

#: Bytes of one of the two files, unless a single frame has more: thousands of small instances.
SIZE = 64 * 1024 * 1024

#: Bytes of one that has but paths, some thousands: the next start looks at each.
WITHOUT_CONTENTS = 1024 * 1024


class Beginning(NamedTuple):
    """A file is about to be given *path*. *content* is its bytes; if it is synced itself, *checksum* is theirs."""

    path: str
    inode: int = 0
    checksum: int = 0
    content: Pieces = ()


class Unsettled(NamedTuple):
    """What one of the files answers for: contents by path; of the files that are synced the paths and hidden names."""

    contents: dict[str, Content]
    synced: list[tuple[str, str | None]]


class Journal:
    """The journal at *path* and beside it, made if missing. Raises OSError, as every method does.

    What :meth:`begin` writes is on the disk when it returns, if there is a *sync*. ``settle`` is called with what is
    about to be forgotten: when it returns, the files and their names are on the disk, and so is the index. ``events``
    is what the last process left, ``found`` the paths among it, settled or not; :meth:`reset` has to follow. All
    but :meth:`end` and :meth:`settle_old` must be called by one thread at a time.
    """

    def __init__(self, path: str, sync: Sync | None, size: int = SIZE) -> None:
        self.settle: Callable[[Unsettled], None] = lambda unsettled: None
        self.paths = (path, path + ".2")
        # The older of the two first.
        found = sorted(map(read, self.paths), key=lambda events: events[-1].stamp if events else 0)
        self.events = [event for events in found for event in events]
        # How often a path was begun and not ended, and inode and checksum of the last one that is synced.
        self._open: dict[str, tuple[int, int, int]] = {}
        for event in self.events:
            self._count(event)
        begun = (event.path for event in self.events if event.kind in (BEGUN, CONTENT))
        self.found = list(dict.fromkeys(begun))
        self._size = size
        self._ended: deque[str] = deque()
        self._lines: list[str] = []  # of what has ended, not written yet
        self._file, self._other = (JournalFile(name, sync) for name in self.paths)
        if self.events and self.events[-1].file == self.paths[1]:
            self._file, self._other = self._other, self._file
        self._is_reset = False
        self._is_usable = False
        self._is_used = False
        self._unsettled = Unsettled({}, [])
        self._old: Unsettled | None = None  # of the other file
        self._settling = threading.Lock()

    @property
    def open_paths(self) -> list[str]:
        """The paths that were begun and not ended, oldest first."""
        self._take_ends()
        return list(self._open)

    @property
    def unsettled(self) -> int:
        """How many files this answers for: nothing else has them on the disk, or their names."""
        both = (self._unsettled, self._old)
        return sum(len(one.contents) + len(one.synced) for one in both if one is not None)

    def begin(
        self,
        beginnings: Sequence[Beginning],
        files: Sequence[int] = (),
        directories: Sequence[int] = (),
    ) -> list[OSError | None]:
        """These files are about to get their names; *files* and *directories*, descriptors, are synced meanwhile.

        Returns what became of these. When it raises nothing was begun.
        """
        self._take_ends()
        lines, contents, sizes = [], [], []
        for path, inode, checksum, content in beginnings:
            if content:
                contents.append(content)
                sizes.append(sum(map(len, content)))
                lines.append(line(CONTENT, path, sizes[-1]))
            else:
                lines.append(line(BEGUN, path, inode, checksum))
        text = "".join(lines)
        if not self._is_usable or self._file.position + len(text) + sum(sizes) > self._size:
            self._switch()
        offset, failures = self._append(text, contents, files, directories)
        sizes.reverse()
        for path, inode, checksum, content in beginnings:
            count = self._open.get(path, (0, 0, 0))[0] + 1
            # Of a file that is not on the disk yet the inode must not be taken for that of one that is.
            self._open[path] = (count, 0, 0) if content else (count, inode, checksum)
            if content:
                size = sizes.pop()
                self._unsettled.contents[path] = Content(self._file.path, offset, size, inode)
                offset += size
        return failures

    def keep(self, path: str, hidden: str | None) -> None:
        """A synced file that was begun last has got its name; the *hidden* one is needed until that is on the disk."""
        self._unsettled.synced.append((path, hidden))

    def void(self, paths: Iterable[str]) -> None:
        """What was begun last with these *paths* did not become files."""
        self._append("".join(line(VOID, path) for path in paths))

    def end(self, path: str) -> None:
        """One beginning of *path* is settled. Costs nothing: it is written with what begins next. Any thread may."""
        self._ended.append(path)

    def rotate(self) -> None:
        """Begin the other file, unless it has to be settled yet; nothing happens when nothing has happened."""
        if self._is_used and self._old is None:
            self._switch()

    def settle_old(self) -> None:
        """Settle what only the file that is full answers for. Any thread may."""
        with self._settling:
            if self._old is not None:
                self.settle(self._old)
                self._other.erase()
                self._old = None

    def reset(self) -> None:
        """All that was found is settled, and nothing is open."""
        self._ended.clear()
        self._lines.clear()
        self._open.clear()
        self.events = []
        # The older one first: what it says of a path must not outlive what the newer one says.
        for file in (self._other, self._file):
            file.restart("")
        self._is_reset = self._is_usable = True

    def close(self) -> None:
        """Settle everything; what is open is left for the next start, and all if there was no :meth:`reset`."""
        try:
            if self._is_reset and (self._is_used or not self._is_usable):
                self._switch()
            self.settle_old()
        finally:
            self._file.close()
            self._other.close()

    def remove(self) -> None:
        """Take away what was reset."""
        self._file.close()
        self._other.close()
        for path in (self._other.path, self._file.path):
            os.unlink(path)

    def _switch(self) -> None:
        self.settle_old()
        self._take_ends()
        lines = (line(BEGUN, path, *which) * count for path, (count, *which) in self._open.items())
        self._other.restart("".join(lines))
        self._lines.clear()
        self._file, self._other = self._other, self._file
        self._old, self._unsettled = self._unsettled, Unsettled({}, [])
        self._is_usable, self._is_used = True, False

    def _append(
        self,
        lines: str,
        contents: Sequence[Pieces] = (),
        files: Sequence[int] = (),
        directories: Sequence[int] = (),
    ) -> tuple[int, list[OSError | None]]:
        self._is_used = True
        ended = "".join(self._lines)
        self._lines.clear()
        try:
            return self._file.append(ended + lines, contents, files, directories)
        except OSError:
            self._is_usable = False  # nobody knows what is in it now
            raise

    def _take_ends(self) -> None:
        while self._ended:  # others may add to it meanwhile
            path = self._ended.popleft()
            self._lines.append(line(SETTLED, path))
            self._settled(path)

    def _settled(self, path: str) -> None:
        count, inode, checksum = self._open.pop(path, (0, 0, 0))
        if count > 1:
            self._open[path] = count - 1, inode, checksum

    def _count(self, event: Event) -> None:
        if event.kind in (BEGUN, CONTENT):
            count = self._open.get(event.path, (0, 0, 0))[0]
            self._open[event.path] = count + 1, event.inode, event.checksum
        elif event.kind == ANEW:
            self._open.clear()
        elif event.kind == SETTLED:
            self._settled(event.path)
